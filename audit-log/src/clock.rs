//! The times of records: the system's clock, checked against the monotonic one.
//!
//! INVARIANT: `at` never goes back, also when the clock does: then the records keep the last time
//! until the clock has caught up, and an [`Event::ClockStepped`] says what the clock really said.

use std::time::Instant;

use time::OffsetDateTime;

use crate::encoding;
use crate::entry::Event;

/// Difference between the two clocks that is taken for a step; smaller ones are drift.
const STEP_MS_MIN: i64 = 1_000;

/// Gives each record its time.
pub(crate) struct Clock {
    last_at_ms: i64,
    /// Whether the clock was compared with the end of the log before.
    compared: bool,
    /// A moment at which both clocks were read.
    set_ms: i64,
    set: Instant,
}

impl Clock {
    /// A clock that never gives a time before `last_at_ms`, Unix milliseconds.
    pub(crate) fn new(last_at_ms: i64) -> Self {
        Self { last_at_ms, compared: false, set_ms: now_ms(), set: Instant::now() }
    }

    /// The time of a record of now, and the event that says if the clock was set.
    pub(crate) fn read(&mut self) -> (i64, Option<Event>) {
        self.take(now_ms(), Instant::now())
    }

    /// The time of a record of now; a step of the clock is left for the next [`Clock::read`].
    pub(crate) fn read_only(&mut self) -> i64 {
        self.last_at_ms = self.last_at_ms.max(now_ms());
        self.last_at_ms
    }

    fn take(&mut self, clock_ms: i64, now: Instant) -> (i64, Option<Event>) {
        let passed = now.saturating_duration_since(self.set).as_millis();
        let expected_ms = self.set_ms.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX));
        let by_ms = clock_ms.saturating_sub(expected_ms);
        let step = (by_ms.abs() >= STEP_MS_MIN).then(|| {
            self.set_ms = clock_ms;
            self.set = now;
            Event::ClockStepped { clock: encoding::at_text(clock_ms), by_ms }
        });
        let behind_ms = self.last_at_ms.saturating_sub(clock_ms);
        let was_set_back = !self.compared && behind_ms >= STEP_MS_MIN;
        self.compared = true;
        self.last_at_ms = self.last_at_ms.max(clock_ms);
        let set_back = was_set_back.then(|| Event::ClockStepped {
            clock: encoding::at_text(clock_ms),
            by_ms: behind_ms.saturating_neg(),
        });
        (self.last_at_ms, step.or(set_back))
    }
}

/// The system's clock in Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_set_back_stops_the_records_time_and_is_told_once() {
        let mut clock = Clock::new(0);
        let start = clock.set;
        let at = |ms: u64| start + Duration::from_millis(ms);
        let base = clock.set_ms;
        assert_eq!(clock.take(base + 10, at(10)), (base + 10, None));
        let (back, step) = clock.take(base - 60_000, at(20));
        assert_eq!(back, base + 10);
        let expected = encoding::at_text(base - 60_000);
        assert_eq!(step, Some(Event::ClockStepped { clock: expected, by_ms: -60_020 }));
        // It goes on from there without a word, and the records' time waits for it.
        assert_eq!(clock.take(base - 59_000, at(1_020)), (base + 10, None));
        assert_eq!(clock.take(base + 100, at(60_120)), (base + 100, None));
    }

    #[test]
    fn a_clock_set_forward_is_followed_and_told() {
        let mut clock = Clock::new(0);
        let (start, base) = (clock.set, clock.set_ms);
        let (at, step) = clock.take(base + 3_600_000, start);
        assert_eq!(at, base + 3_600_000);
        assert!(matches!(step, Some(Event::ClockStepped { by_ms: 3_600_000, .. })));
    }

    #[test]
    fn drift_is_no_step_and_the_log_before_is_never_undercut() {
        let mut clock = Clock::new(i64::MAX - 1);
        let (start, base) = (clock.set, clock.set_ms);
        let (at, step) = clock.take(base + 900, start);
        assert_eq!(at, i64::MAX - 1);
        assert!(matches!(step, Some(Event::ClockStepped { by_ms: ..-1_000, .. })), "told once");
        assert_eq!(clock.take(base + 901, start), (i64::MAX - 1, None));
    }
}
