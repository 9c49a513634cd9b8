//! `run/heads.json`: which head of each log was last accepted and which each sink has, for the next
//! start and for `status` and `doctor`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::files;
use crate::layout::Layout;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// By part.
    pub(crate) logs: BTreeMap<String, LogState>,
    /// By the sink's own words for itself.
    pub(crate) sinks: BTreeMap<String, SinkState>,
}

/// One log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogState {
    /// The newest head that continues the one before it, as a signed note.
    pub(crate) accepted: Option<String>,
    /// Records that it covers.
    pub(crate) size: u64,
    /// What is wrong with the heads that came after it.
    pub(crate) problem: Option<String>,
}

/// One sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinkState {
    /// By part, what it has.
    pub(crate) delivered: BTreeMap<String, Delivered>,
    /// Since when it takes nothing, Unix seconds.
    pub(crate) failing_since_s: Option<u64>,
    /// Why.
    pub(crate) error: Option<String>,
}

/// A head that a sink has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivered {
    /// Records that it covers.
    pub(crate) size: u64,
    /// When it was delivered, Unix seconds.
    pub(crate) at_s: u64,
}

impl State {
    /// What the last run left; nothing where there is no such file.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(crate) fn read(layout: &Layout) -> anyhow::Result<Self> {
        let path = state_file(layout);
        if !path.exists() {
            return Ok(Self::default());
        }
        serde_json::from_str(&files::read_text(&path)?)
            .with_context(|| format!("file `{}` is not understood", path.display()))
    }

    /// What is wrong, in words; and, if nothing is, what was delivered last.
    pub(crate) fn told(&self) -> Result<String, String> {
        let mut problems: Vec<String> = self
            .logs
            .iter()
            .filter_map(|(part, log)| Some(format!("{part}: {}", log.problem.as_ref()?)))
            .collect();
        problems.extend(self.sinks.iter().filter_map(|(name, sink)| {
            let seconds = clock::now_s().saturating_sub(sink.failing_since_s?);
            let error = sink.error.as_deref().unwrap_or("no reason known");
            Some(format!("{name} has taken no head for {seconds} s: {error}"))
        }));
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let sinks = self.sinks.iter().map(|(name, sink)| {
            let newest = sink.delivered.values().map(|delivered| delivered.at_s).max();
            let age = newest.map(|at| clock::now_s().saturating_sub(at));
            age.map_or(format!("{name}: none yet"), |age| format!("{name}: last {age} s ago"))
        });
        let told = sinks.collect::<Vec<_>>().join(", ");
        Ok(if told.is_empty() { "no head was delivered yet".to_owned() } else { told })
    }
}

/// Where it lies.
pub(crate) fn state_file(layout: &Layout) -> PathBuf {
    layout.run("heads.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_before_what_was_delivered() {
        let mut state = State::default();
        let delivered = Delivered { size: 3, at_s: clock::now_s() };
        let sink = SinkState {
            delivered: BTreeMap::from([("hub".to_owned(), delivered)]),
            ..SinkState::default()
        };
        state.sinks.insert("folder /d".to_owned(), sink);
        assert!(state.told().unwrap().starts_with("folder /d: last "));
        let log = LogState { problem: Some("smaller".into()), ..LogState::default() };
        state.logs.insert("hub".to_owned(), log);
        assert_eq!(state.told(), Err("hub: smaller".to_owned()));
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
