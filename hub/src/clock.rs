//! Time: the only place where the hub reads the clock, and the forms in which it takes and prints
//! times.
//!
//! Rows and facts hold Unix seconds. A day without a time of day is a day in Japan (UTC+9): it
//! begins at 00:00:00 and ends at 23:59:59 there. Answers print instants as RFC 3339 in UTC, and an
//! instant that was given as a day as that day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, UtcOffset};

/// Unix seconds now.
pub(crate) fn now_s() -> u64 {
    now().as_secs()
}

/// Unix milliseconds now.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX)
}

/// `2026-04-01T00:00:00Z`.
pub(crate) fn rfc3339(seconds: u64) -> String {
    instant(seconds).and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Unix milliseconds of an RFC 3339 instant.
pub(crate) fn parse_ms(text: &str) -> Option<u64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

/// `2026年4月1日 9時0分`: the minute in Japan.
pub(crate) fn japan_minute(seconds: u64) -> String {
    let minute = instant(seconds).and_then(|at| at.to_offset(japan()).format(MINUTE_JA).ok());
    minute.unwrap_or_default()
}

/// The first second of the day in Japan that `seconds` lies in.
pub(crate) fn today_begin(seconds: u64) -> u64 {
    seconds - (seconds + JAPAN_S) % DAY_S
}

/// The first second that `text` means: a day, or an RFC 3339 instant.
pub(crate) fn begin_of(text: &str) -> Option<u64> {
    day_begin(text).or_else(|| parse_instant(text))
}

/// The last second that `text` means: a day, or an RFC 3339 instant.
pub(crate) fn end_of(text: &str) -> Option<u64> {
    day_begin(text).map(|begin| begin + DAY_S - 1).or_else(|| parse_instant(text))
}

/// The day that begins at `seconds` in Japan, else the instant.
pub(crate) fn print_begin(seconds: u64) -> String {
    if (seconds + JAPAN_S).is_multiple_of(DAY_S) { japan_day(seconds) } else { rfc3339(seconds) }
}

/// The day that ends at `seconds` in Japan, else the instant.
pub(crate) fn print_end(seconds: u64) -> String {
    if (seconds + 1 + JAPAN_S).is_multiple_of(DAY_S) {
        japan_day(seconds)
    } else {
        rfc3339(seconds)
    }
}

/// A day of the calendar, `YYYY-MM-DD`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Day(String);

impl Day {
    /// The day as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `text` is a day of the calendar.
    pub(crate) fn is_day(text: &str) -> bool {
        Date::parse(text, DAY).is_ok()
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if Self::is_day(&text) {
            Ok(Self(text))
        } else {
            let shown: String = text.chars().take(40).collect();
            Err(serde::de::Error::custom(format!("`{shown}` is not a day: expected `YYYY-MM-DD`")))
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn instant(seconds: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
}

fn parse_instant(text: &str) -> Option<u64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp()).ok()
}

fn day_begin(text: &str) -> Option<u64> {
    let day = Date::parse(text, DAY).ok()?;
    let begin = day.midnight().assume_utc().unix_timestamp();
    u64::try_from(begin).ok()?.checked_sub(JAPAN_S)
}

fn japan_day(seconds: u64) -> String {
    let day = instant(seconds).map(|at| at.to_offset(japan()).date());
    day.and_then(|day| day.format(DAY).ok()).unwrap_or_default()
}

fn japan() -> UtcOffset {
    UtcOffset::from_hms(9, 0, 0).unwrap_or(UtcOffset::UTC)
}

const DAY: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
const MINUTE_JA: &[BorrowedFormatItem<'_>] = format_description!(
    "[year]年[month padding:none]月[day padding:none]日 [hour padding:none]時[minute padding:none]分"
);
const DAY_S: u64 = 86_400;
const JAPAN_S: u64 = 9 * 3_600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_a_day_in_japan() {
        let begin = begin_of("2026-04-01").unwrap();
        assert_eq!(rfc3339(begin), "2026-03-31T15:00:00Z");
        assert_eq!(print_begin(begin), "2026-04-01");
        assert_eq!(today_begin(begin), begin);
        assert_eq!(today_begin(begin + DAY_S - 1), begin);
        let end = end_of("2026-04-01").unwrap();
        assert_eq!(rfc3339(end), "2026-04-01T14:59:59Z");
        assert_eq!(print_end(end), "2026-04-01");
    }

    #[test]
    fn instants_are_taken_and_printed_as_they_are() {
        let at = begin_of("2026-04-01T10:00:00+09:00").unwrap();
        assert_eq!(print_begin(at), "2026-04-01T01:00:00Z");
        assert_eq!(end_of("2026-04-01T01:00:00Z"), Some(at));
    }

    #[test]
    fn people_read_the_minute_in_japan_and_records_have_milliseconds() {
        let at_ms = parse_ms("2026-03-31T15:05:59.250Z").unwrap();
        assert_eq!(at_ms % 60_000, 59_250);
        assert_eq!(japan_minute(at_ms / 1_000), "2026年4月1日 0時5分");
        assert_eq!(parse_ms("2026-03-31"), None);
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for bad in ["", "2026-02-30", "2026-2-3", "20260203", "1900-01-01x", "令和8年"] {
            assert_eq!(begin_of(bad), None, "{bad}");
            assert!(!Day::is_day(bad), "{bad}");
        }
    }
}
