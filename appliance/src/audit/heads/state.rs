//! `run/heads.json`: which head of each log was last accepted and which each sink has, for the next
//! start and for `status` and `doctor`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit_keys::{self, Pins};
use crate::clock;
use crate::files;
use crate::layout::{Layout, Part};
use crate::settings::Settings;

use super::Sink;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// When the logs were last looked at, Unix seconds; not written at every look.
    #[serde(default)]
    pub(crate) looked_at_s: u64,
    /// By part.
    pub(crate) logs: BTreeMap<String, LogState>,
    /// By the sink's own words for itself.
    pub(crate) sinks: BTreeMap<String, SinkState>,
}

/// One log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogState {
    /// The newest head that may be brought out, as a signed note.
    pub(crate) accepted: Option<String>,
    /// Records that it covers.
    pub(crate) size: u64,
    /// The newest head that was shown to continue the ones before it, as a signed note. Every
    /// proof begins here; an accepted one after it still has to be shown.
    #[serde(default)]
    pub(crate) proved: Option<String>,
    /// What is wrong with the heads that came after it.
    pub(crate) problem: Option<String>,
    /// Whether that stays until a head is shown to continue the last proved one.
    #[serde(default)]
    pub(crate) stands: bool,
    /// Logs of this part under other names, whose heads were brought out before.
    #[serde(default)]
    pub(crate) earlier: Vec<Earlier>,
}

/// A log under another name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Earlier {
    /// Its name.
    pub(crate) origin: String,
    /// Records that its last accepted head covers.
    pub(crate) size: u64,
    /// When the other name was first seen, Unix seconds.
    pub(crate) until_s: u64,
}

/// One sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinkState {
    /// By part, what it has.
    pub(crate) delivered: BTreeMap<String, Delivered>,
    /// By part, what it does not take.
    #[serde(default)]
    pub(crate) failing: BTreeMap<String, Failing>,
    /// By part, since when it has not the newest head, Unix seconds.
    #[serde(default)]
    pub(crate) behind_since_s: BTreeMap<String, u64>,
}

/// A head that a sink has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivered {
    /// Records that it covers.
    pub(crate) size: u64,
    /// When it was delivered, Unix seconds.
    pub(crate) at_s: u64,
}

/// Heads that a sink does not take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failing {
    /// Since when, Unix seconds.
    pub(crate) since_s: u64,
    /// Why.
    pub(crate) error: String,
}

/// What the state is compared with.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The configured sinks, in their own words.
    sinks: Vec<String>,
    /// By part, the log's newest head: the records that it covers and when it was signed.
    newest: BTreeMap<&'static str, (u64, u64)>,
    is_running: bool,
}

impl Known {
    /// These sinks, and no logs, of a running box.
    #[cfg(test)]
    pub(crate) fn for_test(sinks: &[Sink]) -> Self {
        let sinks = sinks.iter().map(ToString::to_string).collect();
        Self { sinks, newest: BTreeMap::new(), is_running: true }
    }

    /// What the settings and the logs say.
    ///
    /// # Errors
    /// When settings, pins or a configuration cannot be read. A head that cannot be read is the
    /// concern of whoever looks at that log.
    pub(crate) fn of(layout: &Layout, is_running: bool) -> anyhow::Result<Self> {
        let heads = Settings::read(&layout.settings())?.heads;
        let sinks = heads.as_ref().map(Sink::all).unwrap_or_default();
        let pins = Pins::read(&layout.pins())?;
        let mut newest = BTreeMap::new();
        for part in Part::ALL {
            let folder = audit_keys::log_folder(layout, part)?;
            let head = pins.of(part).map(|key| audit_log::latest_checkpoint(&folder, key));
            if let Some(Ok(Some(head))) = head {
                newest.insert(part.as_str(), (head.size(), unix_s(head.time())));
            }
        }
        Ok(Self { sinks: sinks.iter().map(ToString::to_string).collect(), newest, is_running })
    }
}

/// Whether every newest head is where it should be, in words.
///
/// # Errors
/// With what is wrong, in words.
pub(crate) fn health(layout: &Layout, is_running: bool) -> Result<String, String> {
    let told =
        || -> anyhow::Result<_> { Ok(State::read(layout)?.told(&Known::of(layout, is_running)?)) };
    told().unwrap_or_else(|error| Err(format!("{error:#}")))
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
    pub(crate) fn told(&self, known: &Known) -> Result<String, String> {
        let mut problems: Vec<String> = self
            .logs
            .iter()
            .filter_map(|(part, log)| Some(format!("{part}: {}", log.problem.as_ref()?)))
            .collect();
        let looked_s = clock::now_s().saturating_sub(self.looked_at_s);
        if known.is_running && looked_s > LAG_S {
            problems.push(format!("nobody has looked for new heads for {looked_s} s"));
        }
        problems.extend(known.sinks.iter().flat_map(|name| self.sink_problems(name, known)));
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let sinks = known.sinks.iter().map(|name| {
            let delivered = self.sinks.get(name).map(|sink| sink.delivered.values());
            let newest = delivered.into_iter().flatten().map(|delivered| delivered.at_s).max();
            let age = newest.map(|at| clock::now_s().saturating_sub(at));
            age.map_or(format!("{name}: none yet"), |age| format!("{name}: last {age} s ago"))
        });
        let told = sinks.collect::<Vec<_>>().join(", ");
        Ok(if told.is_empty() { "no head was delivered yet".to_owned() } else { told })
    }

    fn sink_problems(&self, name: &str, known: &Known) -> Vec<String> {
        let Some(sink) = self.sinks.get(name) else {
            if known.newest.is_empty() {
                return Vec::new();
            }
            let advice = "was it configured after the start? Then start the box again";
            return vec![format!("no head was ever brought to {name}: {advice}")];
        };
        let now_s = clock::now_s();
        let mut problems: Vec<String> = sink
            .failing
            .iter()
            .map(|(part, failing)| {
                let seconds = now_s.saturating_sub(failing.since_s);
                format!("{name} has taken no head of {part} for {seconds} s: {}", failing.error)
            })
            .collect();
        for (part, (size, signed_s)) in &known.newest {
            let is_told = sink.failing.contains_key(*part)
                || self.logs.get(*part).is_some_and(|log| log.problem.is_some());
            let has = sink.delivered.get(*part).map(|delivered| delivered.size);
            if is_told || has.is_some_and(|has| has >= *size) {
                continue;
            }
            // While the box runs, whoever brings the heads says how long one is on its way.
            let since_s = if known.is_running {
                sink.behind_since_s.get(*part).copied().unwrap_or(now_s)
            } else if has.is_some() {
                *signed_s
            } else {
                0
            };
            if now_s.saturating_sub(since_s) > LAG_S {
                let has = has.map_or("none".to_owned(), |has| format!("one over {has}"));
                problems.push(format!(
                    "{name} lacks the newest head of {part} (over {size} records, it has {has}): \
                     run `sekisho audit push`"
                ));
            }
        }
        problems
    }
}

/// Unix seconds of a head's own time; 0, long ago, of one that cannot be read.
fn unix_s(time: &str) -> u64 {
    let at = OffsetDateTime::parse(time, &Rfc3339).map(OffsetDateTime::unix_timestamp);
    at.ok().and_then(|at| u64::try_from(at).ok()).unwrap_or(0)
}

/// Where it lies.
pub(crate) fn state_file(layout: &Layout) -> PathBuf {
    layout.run("heads.json")
}

/// A newest head that is not where it should be for longer than this is told.
const LAG_S: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(size: u64) -> SinkState {
        let delivered = Delivered { size, at_s: clock::now_s() };
        SinkState {
            delivered: BTreeMap::from([("hub".to_owned(), delivered)]),
            ..SinkState::default()
        }
    }

    fn state(sink: SinkState) -> State {
        State {
            looked_at_s: clock::now_s(),
            sinks: BTreeMap::from([("folder /d".to_owned(), sink)]),
            ..State::default()
        }
    }

    fn known(size: u64, is_running: bool) -> Known {
        Known {
            sinks: vec!["folder /d".to_owned()],
            newest: BTreeMap::from([("hub", (size, clock::now_s() - 100))]),
            is_running,
        }
    }

    #[test]
    fn problems_come_before_what_was_delivered() {
        let mut state = state(delivered(3));
        assert!(state.told(&known(3, true)).unwrap().starts_with("folder /d: last "));
        let log = LogState { problem: Some("smaller".into()), ..LogState::default() };
        state.logs.insert("hub".to_owned(), log);
        assert_eq!(state.told(&known(3, true)), Err("hub: smaller".to_owned()));
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }

    #[test]
    fn a_file_of_an_earlier_form_is_understood() {
        let text = r#"{"logs":{"hub":{"accepted":"n","size":3,"problem":null}},"sinks":{"folder /d":
            {"delivered":{"hub":{"size":3,"at_s":7}},"failing_since_s":null,"error":null}}}"#;
        let state: State = serde_json::from_str(text).unwrap();
        assert_eq!(state.logs["hub"].accepted.as_deref(), Some("n"));
        state.told(&known(3, false)).unwrap();
    }

    #[test]
    fn a_head_that_did_not_arrive_is_told() {
        let lacks = |state: &State, known: &Known| {
            let told = state.told(known).unwrap_err();
            assert!(told.contains("lacks the newest head of hub"), "{told}");
        };
        lacks(&state(delivered(2)), &known(3, false));
        lacks(&state(SinkState::default()), &known(3, false));
        let mut behind = delivered(2);
        state(behind.clone()).told(&known(3, true)).unwrap();
        behind.behind_since_s.insert("hub".to_owned(), clock::now_s() - 2 * LAG_S);
        lacks(&state(behind), &known(3, true));
    }

    #[test]
    fn a_sink_without_any_entry_and_a_look_long_ago_are_told() {
        let nothing = State { looked_at_s: clock::now_s(), ..State::default() };
        let told = nothing.told(&known(3, true)).unwrap_err();
        assert!(told.contains("no head was ever brought to folder /d"), "{told}");
        let old = State { looked_at_s: 1, ..state(delivered(3)) };
        assert!(old.told(&known(3, true)).unwrap_err().contains("nobody has looked"));
        old.told(&known(3, false)).unwrap();
    }
}
