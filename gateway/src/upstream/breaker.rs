//! Leaves a node alone that fails again and again, and lets one request try it after a while.
//!
//! ```text
//!  closed ──(N failures in a row)──► open ──(a while)──► one request tries ──answered──► closed
//!                                     ▲                         └────failed────┐
//!                                     └────────────────────────────────────────┘
//! ```
//!
//! Invariants: no lock; while it is closed and nothing fails, a request only reads.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The breaker of one node. Times are milliseconds of one clock that begins at 1 or later.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_max: u32,
    open_ms: u64,
    failures: AtomicU32,
    /// 0: closed.
    open_until_ms: AtomicU64,
    tried: AtomicBool,
}

/// How a request may go to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Like any other.
    Normal,
    /// As the one that tries whether the node is back.
    Trial,
}

impl Breaker {
    /// Closed; opens for `open_ms` after `failures_max` failures in a row.
    pub(super) const fn new(failures_max: u32, open_ms: u64) -> Self {
        Self {
            failures_max,
            open_ms,
            failures: AtomicU32::new(0),
            open_until_ms: AtomicU64::new(0),
            tried: AtomicBool::new(false),
        }
    }

    /// Whether a request may go to the node now.
    pub(super) fn pass(&self, now_ms: u64) -> Option<Pass> {
        match self.open_until_ms.load(Ordering::Acquire) {
            0 => Some(Pass::Normal),
            until if now_ms < until => None,
            _ => (!self.tried.swap(true, Ordering::AcqRel)).then_some(Pass::Trial),
        }
    }

    /// Whether it is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.open_until_ms.load(Ordering::Acquire) == 0
    }

    /// The node answered. Says whether the breaker closed by it.
    pub(super) fn succeeded(&self) -> bool {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.is_closed() {
            return false;
        }
        let was_open = self.open_until_ms.swap(0, Ordering::AcqRel) != 0;
        self.tried.store(false, Ordering::Release);
        was_open
    }

    /// The node did not answer. Says whether the breaker opened by it.
    pub(super) fn failed(&self, pass: Pass, now_ms: u64) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        if pass == Pass::Normal && failures < self.failures_max {
            return false;
        }
        let was = self.open_until_ms.swap(now_ms + self.open_ms, Ordering::AcqRel);
        self.tried.store(false, Ordering::Release);
        was == 0
    }

    /// A trial ended without a word of the node's: another request may try.
    pub(super) fn undecided(&self, pass: Pass) {
        if pass == Pass::Trial {
            self.tried.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_heals_by_one_trial() {
        let breaker = Breaker::new(3, 100);
        assert!(!breaker.failed(Pass::Normal, 1));
        assert!(!breaker.failed(Pass::Normal, 1));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(Pass::Normal, 2));
        assert!(!breaker.failed(Pass::Normal, 2));
        assert_eq!(breaker.pass(2), Some(Pass::Normal));
        assert!(breaker.failed(Pass::Normal, 2));
        assert_eq!(breaker.pass(101), None);
        assert_eq!(breaker.pass(102), Some(Pass::Trial));
        assert_eq!(breaker.pass(102), None, "one tries at a time");
        breaker.undecided(Pass::Trial);
        assert_eq!(breaker.pass(103), Some(Pass::Trial));
        assert!(!breaker.failed(Pass::Trial, 103), "it was open already");
        assert_eq!(breaker.pass(202), None);
        assert_eq!(breaker.pass(203), Some(Pass::Trial));
        assert!(breaker.succeeded());
        assert_eq!(breaker.pass(204), Some(Pass::Normal));
        assert!(!breaker.failed(Pass::Normal, 205), "failures are counted anew");
    }
}
