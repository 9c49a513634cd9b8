//! The one place of this program that reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, RFC 3339, UTC, whole seconds.
pub(crate) fn now_text() -> String {
    text(i64::try_from(now_s()).unwrap_or_default())
}

/// Unix seconds.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

/// Unix seconds as RFC 3339, UTC.
pub(crate) fn text(unix_s: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_s)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Now, moved by `days`, RFC 3339, UTC.
pub(crate) fn text_in_days(days: i64) -> String {
    text(i64::try_from(now_s()).unwrap_or_default() + days * 86_400)
}

/// Today's date, UTC, `YYYY-MM-DD`, moved by `days`.
pub(crate) fn date(days: i64) -> String {
    text_in_days(days).chars().take(10).collect()
}
