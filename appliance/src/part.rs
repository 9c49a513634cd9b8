//! One supervised part as the supervisor sees it: a state machine without I/O.
//!
//! ```text
//!            spawned            ready              exited
//!  Stopped ───────────► Starting ───────► Up ─────────────► Backoff ──(delay)──► Starting
//!                          │  exited                           ▲
//!                          └───────────────────────────────────┘
//!  any ──(stop)──► Stopping ──► Stopped
//! ```
//!
//! Invariant: a part that keeps dying is restarted ever more slowly, 0.2 s to 5 s; one that stayed
//! up for [`STABLE_AFTER`] starts again from 0.2 s.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where a part is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// No process, and none wanted.
    Stopped,
    /// A process that is not ready yet.
    Starting,
    /// Ready.
    Up,
    /// It died; waiting before the next start.
    Backoff,
    /// Asked to end.
    Stopping,
}

/// What `run/supervisor.json` says of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The part.
    pub(crate) name: String,
    /// Its process, where there is one.
    pub(crate) pid: Option<u32>,
    /// Its state.
    pub(crate) state: State,
    /// How often it was started again.
    pub(crate) restarts: u32,
    /// How it last ended, with its last error line.
    pub(crate) last_exit: Option<String>,
    /// When it became ready, RFC 3339.
    pub(crate) ready_at: Option<String>,
    #[serde(skip)]
    backoff: Option<Duration>,
}

impl Record {
    /// A part that was never started.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            pid: None,
            state: State::Stopped,
            restarts: 0,
            last_exit: None,
            ready_at: None,
            backoff: None,
        }
    }

    /// A process was made.
    pub(crate) fn spawned(&mut self, pid: Option<u32>) {
        if self.state == State::Backoff {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.pid = pid;
        self.state = State::Starting;
        self.ready_at = None;
    }

    /// Its ready file appeared.
    pub(crate) fn ready(&mut self, now: String) {
        self.state = State::Up;
        self.ready_at = Some(now);
    }

    /// Another process has taken its place, ready.
    pub(crate) fn replaced(&mut self, pid: Option<u32>, now: String) {
        self.pid = pid;
        self.ready(now);
    }

    /// It ended by itself after `lived`; returns how long to wait before the next start.
    pub(crate) fn exited(&mut self, how: String, lived: Duration) -> Duration {
        let doubled = self.backoff.map(|last| (last * 2).min(BACKOFF_MAX));
        let delay = match doubled {
            Some(delay) if lived < STABLE_AFTER => delay,
            Some(_) | None => BACKOFF_MIN,
        };
        self.backoff = Some(delay);
        self.pid = None;
        self.state = State::Backoff;
        self.last_exit = Some(how);
        self.ready_at = None;
        delay
    }

    /// It was asked to end.
    pub(crate) fn stopping(&mut self) {
        self.state = State::Stopping;
    }

    /// It ended as asked.
    pub(crate) fn stopped(&mut self) {
        self.pid = None;
        self.state = State::Stopped;
        self.ready_at = None;
    }
}

/// The first wait before a restart.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// The longest wait before a restart.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A part that lived this long is not in a crash loop.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_their_limit_and_start_over_after_a_stable_life() {
        let mut part = Record::new("hub");
        let short = Duration::from_secs(1);
        let waits: Vec<u128> = (0..7).map(|_| part.exited("x".into(), short).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(part.exited("x".into(), STABLE_AFTER), BACKOFF_MIN);
        assert_eq!(part.exited("x".into(), short), BACKOFF_MIN * 2);
    }

    #[test]
    fn restarts_are_counted_but_not_the_first_start() {
        let mut part = Record::new("hub");
        part.spawned(Some(1));
        part.ready("t".into());
        assert_eq!((part.state, part.restarts, part.pid), (State::Up, 0, Some(1)));
        part.exited("killed by signal 9".into(), Duration::ZERO);
        assert_eq!((part.state, part.pid), (State::Backoff, None));
        part.spawned(Some(2));
        assert_eq!((part.state, part.restarts, part.ready_at.clone()), (State::Starting, 1, None));
        part.stopping();
        part.stopped();
        assert_eq!((part.state, part.pid), (State::Stopped, None));
        assert_eq!(part.last_exit.as_deref(), Some("killed by signal 9"));
    }

    #[test]
    fn the_record_is_written_with_fixed_names() {
        let mut part = Record::new("ra");
        part.spawned(Some(7));
        let json = serde_json::to_string(&part).unwrap();
        assert!(json.contains(r#""state":"starting""#), "{json}");
        assert!(!json.contains("backoff"), "{json}");
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), part);
    }
}
