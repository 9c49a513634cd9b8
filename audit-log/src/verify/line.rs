//! What can be said of one record line by itself: its layout, its hash, that its event is JSON, and
//! what of the event concerns the verifier.

use std::borrow::Cow;

use serde::Deserialize;
use tlog_tiles::{Hash, record_hash};

use super::Problem;
use crate::encoding::{self, RecordLine};
use crate::entry::ALLOW;

/// A line that is sound in itself.
pub(super) struct Line<'a> {
    pub(super) record: RecordLine<'a>,
    pub(super) leaf: Hash,
    pub(super) notice: Notice<'a>,
}

/// What the verifier has to remember of an event.
pub(super) enum Notice<'a> {
    Nothing,
    /// Something was permitted or begun.
    Opened(Work, Cow<'a, str>),
    /// It has ended.
    Closed(Work, Cow<'a, str>),
    /// A signed note.
    Checkpoint(Cow<'a, str>),
}

/// Which pair of events shares a request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// Permit and completion.
    Permit,
    /// Intent and outcome.
    Intent,
}

/// Checks a line, given without its LF.
pub(super) fn check_line(line: &[u8]) -> Result<Line<'_>, Problem> {
    let record = encoding::parse_record(line).ok_or(Problem::NotARecord)?;
    let (text, _) = encoding::split_hash(line).ok_or(Problem::NotARecord)?;
    let leaf = record_hash(text);
    if record.hash != encoding::hex(&leaf) {
        return Err(Problem::Changed);
    }
    let notice = read_event(record.event).ok_or(Problem::BadEvent)?;
    Ok(Line { record, leaf, notice })
}

/// The members of any event that matter here; reading them reads all of the JSON.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Option<Text<'a>>,
    #[serde(borrow)]
    decision: Option<Text<'a>>,
    #[serde(borrow)]
    note: Option<Text<'a>>,
}

/// In an `Option`, a bare `Cow` would be copied.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn read_event(event: &[u8]) -> Option<Notice<'_>> {
    if event.first() != Some(&b'{') {
        return None;
    }
    let said: Said<'_> = serde_json::from_str(std::str::from_utf8(event).ok()?).ok()?;
    let id = said.request_id.map(|id| id.0);
    let permitted = said.decision.is_some_and(|decision| decision.0 == ALLOW);
    let notice = match (said.event.as_ref(), id) {
        ("decision", Some(id)) if permitted => Notice::Opened(Work::Permit, id),
        ("completion", Some(id)) => Notice::Closed(Work::Permit, id),
        ("intent", Some(id)) => Notice::Opened(Work::Intent, id),
        ("outcome", Some(id)) => Notice::Closed(Work::Intent, id),
        ("checkpoint", _) => Notice::Checkpoint(said.note?.0),
        _ => Notice::Nothing,
    };
    Some(notice)
}
