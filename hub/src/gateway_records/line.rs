//! One line of the gateway's record stream, read into what the index keeps of it.
//!
//! INVARIANT: an error says where in the line, never what stood there.

use audit_log::{Event, Object};
use policies::identity::Identity;
use serde::Deserialize;

use crate::clock;

/// Why a line is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It is not JSON of this form.
    #[error("no JSON of this form at column {column}")]
    Json {
        /// Where.
        column: usize,
    },
    /// It is no line of the stream.
    #[error(
        "none of: `log` and `last`; `number`, `at`, `event` and `hash`; `through` and its `hash`"
    )]
    Form,
    /// A hash is none.
    #[error("`{0}` is not a hash of 64 lower-case hex digits")]
    Hash(&'static str),
    /// A time is none.
    #[error("`{0}` is not an RFC 3339 instant")]
    Time(&'static str),
}

/// A line.
#[derive(Debug)]
pub(super) enum Line {
    /// Which log it is.
    Hello(Hello),
    /// A record of the log.
    Record(Record),
    /// Everything up to the record of this number was sent; its hash, where it is known.
    Through(u64, Option<String>),
}

/// What the gateway says of its log before anything else.
#[derive(Debug)]
pub(super) struct Hello {
    /// The log's name.
    pub(super) origin: String,
    /// Hash of the record before the first that was asked for, if there is one.
    pub(super) before: Option<String>,
    /// Number of the last record.
    pub(super) last: u64,
}

/// A record.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) at_ms: u64,
    pub(super) hash: String,
    pub(super) what: What,
}

/// What the index keeps of a record.
#[derive(Debug)]
pub(super) enum What {
    Decision(Box<Decision>),
    Completion(Completion),
    Denials(Denials),
    /// Not about a person.
    Nothing,
}

/// Who asked.
#[derive(Debug)]
pub(super) struct Party {
    /// `office/1370000001`.
    pub(super) path: String,
    pub(super) name: Option<String>,
}

/// What the gateway decided about one request.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) request_id: String,
    pub(super) party: Party,
    pub(super) staff_job: Option<String>,
    pub(super) action: Option<String>,
    pub(super) object: Object,
    pub(super) decision: String,
    pub(super) reasons: Vec<String>,
}

/// How a request ended.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) request_id: String,
    pub(super) status: u16,
    pub(super) bytes_sent: u64,
    pub(super) outcome: String,
    pub(super) reasons: Vec<String>,
}

/// Denials that were counted.
#[derive(Debug)]
pub(super) struct Denials {
    pub(super) party: Party,
    pub(super) from_ms: u64,
    pub(super) until_ms: u64,
    pub(super) of: Vec<DenialsOf>,
}

/// Those that concerned one person (pseudonym).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DenialsOf {
    pub(super) insured: String,
    pub(super) count: u64,
    /// Only reasons that are certainly those of this person's denials.
    pub(super) reasons: Vec<String>,
}

#[derive(Deserialize)]
struct RawLine {
    log: Option<String>,
    before: Option<String>,
    last: Option<u64>,
    number: Option<u64>,
    at: Option<String>,
    event: Option<Event>,
    party_name: Option<String>,
    through: Option<u64>,
    hash: Option<String>,
}

/// Reads one line, without its end.
///
/// # Errors
/// [`Error`]
pub(super) fn parse(line: &[u8]) -> Result<Line, Error> {
    let raw: RawLine =
        serde_json::from_slice(line).map_err(|error| Error::Json { column: error.column() })?;
    let RawLine { log, before, last, number, at, event, party_name, through, hash } = raw;
    let (before, hash) = (checked("before", before)?, checked("hash", hash)?);
    match (log.zip(last), number.zip(at).zip(event).zip(hash.clone()), through) {
        (Some((log, last)), None, None) => {
            Ok(Line::Hello(Hello { origin: short(&log), before, last }))
        }
        (None, Some((((number, at), event), hash)), None) => {
            let at_ms = clock::parse_ms(&at).ok_or(Error::Time("at"))?;
            Ok(Line::Record(Record { number, at_ms, hash, what: what(event, party_name)? }))
        }
        (None, None, Some(through)) if number.is_none() => Ok(Line::Through(through, hash)),
        (_, _, _) => Err(Error::Form),
    }
}

fn checked(name: &'static str, hash: Option<String>) -> Result<Option<String>, Error> {
    let is_hash = |hash: &String| {
        hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    if hash.as_ref().is_none_or(is_hash) { Ok(hash) } else { Err(Error::Hash(name)) }
}

fn what(event: Event, party_name: Option<String>) -> Result<What, Error> {
    match event {
        Event::Decision { request_id, actor, action, object, decision, reasons, .. } => {
            let party = Party::new(&actor.principal, party_name);
            let staff_job = actor.job;
            let found =
                Decision { request_id, party, staff_job, action, object, decision, reasons };
            let is_kept = found.is_kept();
            Ok(if is_kept { What::Decision(Box::new(found)) } else { What::Nothing })
        }
        Event::Completion { request_id, status, bytes_sent, outcome, reasons, .. } => {
            let ended = Completion { request_id, status, bytes_sent, outcome, reasons };
            Ok(What::Completion(ended))
        }
        Event::Aggregated { what, party, from, until, count, reasons, insured, .. } => {
            if what != "denials" || insured.is_empty() {
                return Ok(What::Nothing);
            }
            let of = |(insured, number): (String, u64)| DenialsOf {
                // The reasons are those of all persons together: they are this person's when there
                // is only one of them, or no denial of another.
                reasons: if number == count || reasons.len() == 1 {
                    reasons.keys().cloned().collect()
                } else {
                    Vec::new()
                },
                insured,
                count: number,
            };
            Ok(What::Denials(Denials {
                party: Party::new(&party, party_name),
                from_ms: clock::parse_ms(&from).ok_or(Error::Time("from"))?,
                until_ms: clock::parse_ms(&until).ok_or(Error::Time("until"))?,
                of: insured.into_iter().map(of).collect(),
            }))
        }
        Event::HandshakeFailed { .. }
        | Event::Intent { .. }
        | Event::Effect { .. }
        | Event::Outcome { .. }
        | Event::ServiceStarted { .. }
        | Event::ServiceStopped
        | Event::HandedOver
        | Event::Checkpoint { .. }
        | Event::TailCut { .. }
        | Event::Unfinished { .. }
        | Event::Unavailable { .. }
        | Event::ClockStepped { .. }
        | Event::SegmentsDeleted { .. } => Ok(What::Nothing),
    }
}

impl Party {
    fn new(principal: &str, name: Option<String>) -> Self {
        let path = match Identity::from_path(principal) {
            Ok(identity) => identity.party(),
            Err(_) => short(principal),
        };
        Self { path, name: name.map(|name| short(&name)) }
    }
}

impl Decision {
    /// A decision is kept when it is about a person, or when the hub's own row may say so.
    fn is_kept(&self) -> bool {
        let action = self.action.as_deref().unwrap_or_default();
        let is_own_list = self.party.path == PORTAL
            && self.decision == audit_log::ALLOW
            && OWN_LISTS.contains(&action);
        (self.object.insured.is_some() || action == INBOX_VIEW) && !is_own_list
    }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(PARTY_CHARS_MAX).collect()
}

/// The person's own window.
const PORTAL: &str = "system/portal";
/// What the portal lists for the person: that they looked into their own lists, this history among
/// them, would only hide what others did.
const OWN_LISTS: [&str; 4] =
    ["documents.list", "documents.versions", "consents.list", "access-history.view"];
/// The path names an item of an inbox; the item names the person.
const INBOX_VIEW: &str = "inbox.view";
const PARTY_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn lines_that_are_neither_record_nor_number_are_refused_without_their_words() {
        let at = "2026-04-01T00:00:00.000Z";
        let (stopped, hash) = (json!({"event": "service_stopped"}), "0".repeat(64));
        for (line, expected) in [
            ("{".to_owned(), "column 1"),
            (String::new(), "column 0"),
            ("[]".to_owned(), "column"),
            (r#"{"number":"4711secret"}"#.to_owned(), "column"),
            (json!({"number": 1}).to_string(), "none of"),
            (json!({"number": 1, "through": 1}).to_string(), "none of"),
            (json!({"log": "secret"}).to_string(), "none of"),
            (json!({"number": 1, "at": at, "event": stopped}).to_string(), "none of"),
            (json!({"through": 1, "hash": "secret"}).to_string(), "`hash`"),
            (json!({"log": "l", "last": 1, "before": "secret"}).to_string(), "`before`"),
            (
                json!({"number": 1, "at": "secret", "event": stopped, "hash": hash}).to_string(),
                "`at`",
            ),
            (json!({"number": 1, "at": at, "event": {"event": "secret"}}).to_string(), "column"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{line}: {error}");
        }
        let line = json!({"number": 1, "at": at, "event": stopped, "hash": hash, "more": 1});
        let line = line.to_string();
        assert!(matches!(parse(line.as_bytes()), Ok(Line::Record(Record { number: 1, .. }))));
    }

    fn denials(insured: &Value, reasons: &Value) -> Vec<DenialsOf> {
        let hash = "0".repeat(64);
        let line = json!({"number": 9, "at": "2026-04-01T00:01:00.000Z", "hash": hash, "event": {
            "event": "aggregated", "what": "denials", "party": "office/1370000001/terminal/a",
            "from": "2026-04-01T00:00:00.000Z", "until": "2026-04-01T00:00:59.000Z",
            "count": 10, "reasons": reasons, "insured": insured,
        }});
        let Line::Record(record) = parse(line.to_string().as_bytes()).unwrap() else { panic!() };
        let What::Denials(denials) = record.what else { panic!() };
        assert_eq!(denials.party.path, "office/1370000001");
        denials.of
    }

    #[test]
    fn counted_denials_tell_only_reasons_that_are_certainly_the_persons_own() {
        let (one, two) = (json!({"not_live": 10}), json!({"not_live": 4, "consent_withdrawn": 9}));
        let reasons =
            |insured: Value, reasons: &Value| denials(&insured, reasons).remove(0).reasons;
        assert_eq!(reasons(json!({"p1": 10}), &one), ["not_live"]);
        assert_eq!(reasons(json!({"p1": 10}), &two), ["consent_withdrawn", "not_live"]);
        assert_eq!(reasons(json!({"p1": 3, "p2": 7}), &one), ["not_live"]);
        assert_eq!(reasons(json!({"p1": 3, "p2": 7}), &two), [""; 0]);
    }
}
