//! Times on the command line: a date in Japan, or RFC 3339; and the days of reports.

use std::fmt;
use std::str::FromStr;

use time::format_description::well_known::Rfc3339;
use time::macros::{format_description, offset};
use time::{Date, Duration, OffsetDateTime, UtcOffset};

/// A date or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// A whole day in Japan.
    Day(Date),
    /// An instant.
    Instant(OffsetDateTime),
}

/// A text that is neither.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no time: write a date (in Japan) such as 2026-04-01, or 2026-04-01T09:00:00+09:00"
)]
pub(super) struct NotAMoment(String);

impl FromStr for Moment {
    type Err = NotAMoment;

    fn from_str(text: &str) -> Result<Self, NotAMoment> {
        let day = Date::parse(text, format_description!("[year]-[month]-[day]")).map(Self::Day);
        let instant = || OffsetDateTime::parse(text, &Rfc3339).map(Self::Instant);
        day.or_else(|_| instant()).map_err(|_| NotAMoment(text.to_owned()))
    }
}

impl Moment {
    /// Its first millisecond, in the form of the log.
    pub(super) fn first(self) -> String {
        match self {
            Self::Day(day) => log_form(midnight(day)),
            Self::Instant(at) => log_form(at),
        }
    }

    /// Its last millisecond.
    pub(super) fn last(self) -> String {
        match self {
            Self::Day(day) => log_form(midnight(day) + Duration::DAY - Duration::MILLISECOND),
            Self::Instant(at) => log_form(at),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day(day) => write!(f, "{day} in Japan"),
            Self::Instant(at) => write!(f, "{at}"),
        }
    }
}

/// The day in Japan on which a record of the log was made, `YYYY-MM-DD`.
pub(super) fn day_in_japan(at: &str) -> String {
    OffsetDateTime::parse(at, &Rfc3339)
        .map(|at| at.to_offset(JAPAN).date().to_string())
        .unwrap_or_else(|_| at.chars().take(10).collect())
}

/// The beginning, in the form of the log, of the day in Japan that was `days` before today's.
pub(super) fn days_ago(days: u32, now_s: u64) -> String {
    let now = i64::try_from(now_s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let today = now.unwrap_or(OffsetDateTime::UNIX_EPOCH).to_offset(JAPAN).date();
    let day = today.checked_sub(Duration::days(i64::from(days))).unwrap_or(Date::MIN);
    Moment::Day(day).first()
}

fn midnight(day: Date) -> OffsetDateTime {
    day.midnight().assume_offset(JAPAN)
}

/// RFC 3339, UTC, milliseconds: such texts compare like the times they name.
fn log_form(at: OffsetDateTime) -> String {
    let at = at.checked_to_offset(UtcOffset::UTC).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let form =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    at.format(&form).unwrap_or_default()
}

/// Japan has no summer time.
const JAPAN: UtcOffset = offset!(+9);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_a_whole_day_in_japan() {
        let day: Moment = "2026-04-01".parse().unwrap();
        assert_eq!(day.first(), "2026-03-31T15:00:00.000Z");
        assert_eq!(day.last(), "2026-04-01T14:59:59.999Z");
        assert_eq!(day.to_string(), "2026-04-01 in Japan");
    }

    #[test]
    fn an_instant_is_taken_with_its_offset() {
        for text in ["2026-04-01T09:00:00+09:00", "2026-04-01T00:00:00Z"] {
            let at: Moment = text.parse().unwrap();
            assert_eq!((at.first(), at.last()), (at.last(), at.first()));
            assert_eq!(at.first(), "2026-04-01T00:00:00.000Z");
        }
        for wrong in ["2026-04", "2026-02-30", "yesterday", "2026-04-01T09:00:00", ""] {
            assert_eq!(wrong.parse::<Moment>(), Err(NotAMoment(wrong.to_owned())));
        }
    }

    #[test]
    fn days_are_those_of_japan() {
        assert_eq!(day_in_japan("2026-03-31T15:00:00.000Z"), "2026-04-01");
        assert_eq!(day_in_japan("2026-03-31T14:59:59.999Z"), "2026-03-31");
        // 2026-04-01T00:30 in Japan.
        let now = 1_774_971_000;
        assert_eq!(days_ago(0, now), "2026-03-31T15:00:00.000Z");
        assert_eq!(days_ago(1, now), "2026-03-30T15:00:00.000Z");
    }
}
