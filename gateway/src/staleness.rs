//! Stages of staleness: what is told and what is denied when a feed falls silent.
//!
//! ```text
//!  age of a feed:  fresh ─ T1 alarm ─► late ─ T2 (hub) ─► no_consent ─ T3 ─► deny
//! ```
//!
//! [`policies::decide`] denies by age itself, at each request; here the stages are named, watched,
//! logged and shown. Invariant: no stage begins later than what cert-authority and hub count on
//! when they wait for a gateway that does not answer.

use std::sync::Arc;
use std::time::Duration;

use policies::decide::{FeedState, Leases};
use policies::feed::Source;
use tokio::sync::watch;

use crate::facts_feed::LiveFacts;
use crate::metrics::Metrics;

/// How stale a feed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// As it should be.
    Fresh,
    /// T1: the operator is told, nothing is denied.
    Late,
    /// T2, of the hub's feed: nothing that rests on consent is shared.
    NoConsent,
    /// T3: every request is denied.
    Deny,
}

impl Stage {
    /// Every stage, in the order in which they come.
    pub const ALL: [Self; 4] = [Self::Fresh, Self::Late, Self::NoConsent, Self::Deny];

    /// The name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Late => "late",
            Self::NoConsent => "no_consent",
            Self::Deny => "deny",
        }
    }

    /// As the metrics show it.
    pub const fn number(self) -> i64 {
        match self {
            Self::Fresh => 0,
            Self::Late => 1,
            Self::NoConsent => 2,
            Self::Deny => 3,
        }
    }
}

/// When the stages begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stages {
    /// T1 of both feeds, in milliseconds.
    pub alarm_ms: u64,
    /// T2 and T3.
    pub leases: Leases,
}

impl Default for Stages {
    fn default() -> Self {
        Self { alarm_ms: 3_000, leases: Leases::default() }
    }
}

impl Stages {
    /// Beyond which age a stage begins, if the feed has it.
    pub const fn begins_after_ms(&self, source: Source, stage: Stage) -> Option<u64> {
        match (stage, source) {
            (Stage::Fresh, Source::Ca | Source::Hub) | (Stage::NoConsent, Source::Ca) => None,
            (Stage::Late, Source::Ca | Source::Hub) => Some(self.alarm_ms),
            (Stage::NoConsent, Source::Hub) => Some(self.leases.hub_consent_ms),
            (Stage::Deny, Source::Hub) => Some(self.leases.hub_deny_ms),
            (Stage::Deny, Source::Ca) => Some(self.leases.ca_deny_ms),
        }
    }

    /// The stage at an age; none is as stale as can be.
    pub fn of(&self, source: Source, age_ms: Option<u64>) -> Stage {
        let Some(age_ms) = age_ms else { return Stage::Deny };
        let begun = |stage: &Stage| {
            self.begins_after_ms(source, *stage).is_some_and(|after_ms| age_ms > after_ms)
        };
        Stage::ALL.into_iter().rev().find(begun).unwrap_or(Stage::Fresh)
    }

    /// The age of one feed.
    pub const fn age_ms(&self, source: Source, feeds: &FeedState) -> Option<u64> {
        match source {
            Source::Ca => feeds.ca_age_ms,
            Source::Hub => feeds.hub_age_ms,
        }
    }
}

/// Shows the ages and tells each change of a stage, until the gateway drains.
pub async fn watch(
    stages: Stages,
    facts: Arc<LiveFacts>,
    metrics: Arc<Metrics>,
    mut shutdown: watch::Receiver<bool>,
) {
    metrics.feeds.configured(&stages);
    let mut told = [(Source::Ca, Stage::Fresh), (Source::Hub, Stage::Fresh)];
    loop {
        let feeds = facts.feed_state();
        metrics.feeds.show(&stages, &feeds);
        for (source, was) in &mut told {
            let age_ms = stages.age_ms(*source, &feeds);
            let is = stages.of(*source, age_ms);
            // Before the first facts come there is nothing to be told: nobody is served yet.
            if is != *was && age_ms.is_some() {
                tell(*source, is, age_ms);
                *was = is;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = shutdown.wait_for(|draining| *draining) => return,
        }
    }
}

fn tell(source: Source, stage: Stage, age_ms: Option<u64>) {
    let (feed, name) = (source.as_str(), stage.as_str());
    match stage {
        Stage::Fresh => tracing::info!(feed, stage = name, age_ms, "facts are fresh again"),
        Stage::Late => tracing::warn!(feed, stage = name, age_ms, "facts are late"),
        Stage::NoConsent => tracing::error!(
            feed,
            stage = name,
            age_ms,
            "facts are stale: nothing that rests on consent is shared"
        ),
        Stage::Deny => {
            tracing::error!(feed, stage = name, age_ms, "facts are stale: every request is denied");
        }
    }
}

const LOOK_INTERVAL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_come_in_their_order_and_as_the_decision_takes_them() {
        let stages = Stages::default();
        for (source, age_ms, stage) in [
            (Source::Hub, Some(3_000), Stage::Fresh),
            (Source::Hub, Some(3_001), Stage::Late),
            (Source::Hub, Some(5_000), Stage::Late),
            (Source::Hub, Some(5_001), Stage::NoConsent),
            (Source::Hub, Some(10_001), Stage::Deny),
            (Source::Hub, None, Stage::Deny),
            (Source::Ca, Some(10_001), Stage::Late),
            (Source::Ca, Some(60_000), Stage::Late),
            (Source::Ca, Some(60_001), Stage::Deny),
            (Source::Ca, None, Stage::Deny),
        ] {
            assert_eq!(stages.of(source, age_ms), stage, "{source:?} {age_ms:?}");
        }
    }
}
