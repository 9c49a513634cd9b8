//! What one audit record says: the [`Event`], the [`Entry`] that carries it through the log, and
//! the [`Pseudonym`] under which an insured person appears in it.
//!
//! INVARIANT: no personal data in clear. Fields named `insured` hold a pseudonym, `detail` holds
//! technical words only, and no field ever holds a key, token, PIN, password or name. The callers
//! keep this; the types here can not check it.
//!
//! The wire form is JSON with the tag `event`, names in snake case, absent values left out:
//! `{"event":"service_started","version":"0.1.0"}`. A new variant or optional field may be added
//! within one format version; removing or renaming one needs a new version ([`crate::encoding`]).

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

/// Who acts: a certificate, and the member of staff behind it where there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Identity path, such as `office/1370000001/terminal/front-1`, `municipality/131016`,
    /// `system/life` or `operator/<name>`.
    pub principal: String,
    /// 事業所番号 of the principal, when it is an office.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub office: Option<String>,
    /// Serial of the certificate, lower-case hex; absent for what needs none (operator socket).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Staff id from the staff token, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staff: Option<String>,
    /// 職種 of that member of staff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

impl Actor {
    /// The principal alone; `office` is read from its path.
    pub fn of(principal: impl Into<String>) -> Self {
        let principal = principal.into();
        let office = principal
            .strip_prefix("office/")
            .and_then(|rest| rest.split('/').next())
            .filter(|number| !number.is_empty())
            .map(str::to_owned);
        Self { principal, office, ..Self::default() }
    }

    /// Adds the serial of the certificate.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = Some(serial.into());
        self
    }

    /// Adds the member of staff and their job.
    #[must_use]
    pub fn staff(mut self, id: impl Into<String>, job: impl Into<String>) -> Self {
        self.staff = Some(id.into());
        self.job = Some(job.into());
        self
    }
}

/// What it is about; every part may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Pseudonym of the insured person; never the number itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insured: Option<String>,
    /// Document kind, such as `care-plan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Which one of that kind: its version or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_id: Option<String>,
    /// Anything else: a certificate serial, `office/<number>`, `municipality/<number>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Object {
    /// Something that is not a person or document.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    /// A person, by pseudonym.
    pub fn person(pseudonym: impl Into<String>) -> Self {
        Self { insured: Some(pseudonym.into()), ..Self::default() }
    }

    /// Adds the document kind and, where it is known, which one.
    #[must_use]
    pub fn document(mut self, kind: impl Into<String>, id: Option<String>) -> Self {
        self.document = Some(kind.into());
        self.document_id = id;
        self
    }
}

/// Something that happened and must stay provable.
///
/// A decision and its completion share the `request_id`; so do an intent, its effects and its
/// outcome. A decision without a completion, or an intent without an outcome, shows a crash; the
/// next start names them in [`Event::Unfinished`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The gateway decided about a request, allowed or not.
    Decision {
        /// Joins this decision with its completion and the hub's records.
        request_id: String,
        /// Who asked.
        actor: Actor,
        /// Name of the operation, such as `documents.view`; absent when the path names none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        action: Option<String>,
        /// The person and document asked for.
        object: Object,
        /// `allow` or `deny`.
        decision: String,
        /// Stable reason codes of a denial; empty when allowed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reasons: Vec<String>,
        /// Hash of the policy that decided.
        policy: String,
        /// Sequence number of the CA's facts that the decision was made from.
        facts_ca_seq: u64,
        /// Sequence number of the hub's facts that the decision was made from.
        facts_hub_seq: u64,
        /// Address and port of the client.
        client_addr: String,
        /// By which network it came, if by another than the internet: `closed`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
    /// The answer to a request has left, or was broken off.
    Completion {
        /// The request id of the decision.
        request_id: String,
        /// HTTP status sent; 0 when none left.
        status: u16,
        /// Body bytes sent to the client.
        bytes_sent: u64,
        /// Microseconds from the end of the request head to the end of the answer.
        duration_us: u64,
        /// `complete`, or in a word why not.
        outcome: String,
        /// Stable reason codes, when a permitted request was refused after all: the facts had moved
        /// before its answer left, or the hub's own rows said no.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reasons: Vec<String>,
    },
    /// A connection was refused before any request.
    HandshakeFailed {
        /// Stable reason word, such as `certificate_expired`.
        reason: String,
        /// Technical detail, one line.
        detail: String,
        /// Address and port of the client.
        client_addr: String,
        /// What the refused certificate claimed, when there was one that could be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        actor: Option<Actor>,
    },
    /// Denials or failed handshakes of one party beyond what is recorded one by one. Each of them
    /// is counted in exactly one such record.
    Aggregated {
        /// `denials` or `handshake_failures`.
        what: String,
        /// Whose: the principal's path, the client's address (IPv6: its /64), or `others` for all
        /// parties beyond those that are counted apart.
        party: String,
        /// When the first of them happened, RFC 3339.
        from: String,
        /// When the last of them happened, RFC 3339.
        until: String,
        /// How many.
        count: u64,
        /// How many gave which reason; one denial may have several.
        reasons: BTreeMap<String, u64>,
        /// How many concerned which insured person (pseudonym).
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        insured: BTreeMap<String, u64>,
        /// How many concerned a person beyond those named in `insured`.
        #[serde(default, skip_serializing_if = "is_zero")]
        insured_not_named: u64,
    },
    /// Something is about to be done (certificate to be signed, registration to be written).
    Intent {
        /// Joins intent, effects and outcome, when the work came from a request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Who wants it.
        actor: Actor,
        /// Stable word for what is done, such as `certificate.issue`.
        action: String,
        /// What it is done to.
        object: Object,
        /// Technical detail, one line; may be empty.
        detail: String,
    },
    /// A lasting change was made.
    Effect {
        /// The request id of the intent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Who wanted it.
        actor: Actor,
        /// Stable word for what was done.
        action: String,
        /// What it was done to.
        object: Object,
        /// Technical detail, one line; may be empty.
        detail: String,
    },
    /// How the work that an intent announced has ended.
    Outcome {
        /// The request id of the intent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Who wanted it.
        actor: Actor,
        /// Stable word for what was done.
        action: String,
        /// What it was done to.
        object: Object,
        /// `done`, or the code of the error.
        result: String,
        /// Technical detail, one line; may be empty.
        detail: String,
    },
    /// The program that writes this log is ready.
    ServiceStarted {
        /// Its version.
        version: String,
    },
    /// The program that writes this log ends in good order.
    ServiceStopped,
    /// Another process of the same program takes this one's place and goes on with the log; what
    /// this one still answers is recorded through it.
    HandedOver,
    /// A signed tree head over all records before this one, written by the log itself.
    Checkpoint {
        /// C2SP signed note: a tlog-checkpoint of the log so far.
        note: String,
    },
    /// A tail torn by a loss of power was cut when the log was opened.
    TailCut {
        /// Name of the segment file.
        segment: String,
        /// Bytes cut off; they lie beside the segment.
        bytes: u64,
        /// The last whole record before the cut.
        last_record: u64,
    },
    /// Permits without completion, or intents without outcome, that the program before this one
    /// left behind.
    Unfinished {
        /// Their request ids, oldest first; a record names at most 500.
        request_ids: Vec<String>,
    },
    /// The log could not be written for a while.
    Unavailable {
        /// The cause, one line.
        reason: String,
        /// When it began, RFC 3339.
        since: String,
        /// Records that were refused or lost while it lasted.
        refused: u64,
    },
    /// The system's clock was set: it moved otherwise than the monotonic clock.
    ClockStepped {
        /// What the clock says now, RFC 3339; `at` of the records never goes back.
        clock: String,
        /// Milliseconds by which it moved, negative when it went back.
        by_ms: i64,
    },
    /// Whole segments older than the retention time were deleted; `tombstone` beside the segments
    /// has the signed proof.
    SegmentsDeleted {
        /// Number of the last deleted segment.
        through_segment: u64,
        /// Number of the last deleted record.
        through_record: u64,
        /// Time of that record, RFC 3339.
        until: String,
    },
}

impl Event {
    /// Whether it is a refusal that an outsider can cause at will: those are counted instead of
    /// written when they come in floods, and leave the last part of the disk to the others.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::HandshakeFailed { .. } => true,
            Self::Decision { decision, .. } => decision == DENY,
            Self::Completion { .. }
            | Self::Aggregated { .. }
            | Self::Intent { .. }
            | Self::Effect { .. }
            | Self::Outcome { .. }
            | Self::ServiceStarted { .. }
            | Self::ServiceStopped
            | Self::HandedOver
            | Self::Checkpoint { .. }
            | Self::TailCut { .. }
            | Self::Unfinished { .. }
            | Self::Unavailable { .. }
            | Self::ClockStepped { .. }
            | Self::SegmentsDeleted { .. } => false,
        }
    }
}

/// `decision` of an [`Event::Decision`] that let the request through.
pub const ALLOW: &str = "allow";

/// `decision` of an [`Event::Decision`] that did not.
pub const DENY: &str = "deny";

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One record as [`crate::read`] returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Record number: 1 for the first of the log, without gaps.
    pub number: u64,
    /// When it was appended: RFC 3339, UTC, milliseconds; never less than the record before.
    pub at: String,
    /// What happened.
    pub event: Event,
    /// RFC 6962 leaf hash of the record, lower-case hex: what the next record names as `prev`.
    pub hash: String,
}

/// A request id for work that no request brings along (an operator's command, a start-up task), so
/// that its intent, effects and outcome find each other: 24 lower-case hex digits, random.
pub fn work_id() -> String {
    let mut id = [0; 12];
    // Without randomness the time alone tells one piece of work from another.
    if aws_lc_rs::rand::fill(&mut id).is_err() {
        let now = crate::clock::now_ms().to_be_bytes();
        id.iter_mut().zip(now).for_each(|(byte, part)| *byte = part);
    }
    hex::encode(id)
}

/// Turns an insured person's key into a name that only the holder of the key can trace back.
///
/// HMAC-SHA-256, first 16 bytes, lower-case hex. The same person has the same pseudonym in every
/// record made with one key, so that an access history can be asked for; without the key, the
/// space of insured numbers can not be tried out.
#[derive(Clone)]
pub struct Pseudonym {
    key: hmac::Key,
}

impl Pseudonym {
    /// Takes the 32 bytes of `pseudonym.key`.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// The pseudonym of `<insurer number>/<insured number>`.
    pub fn of(&self, insured: &str) -> String {
        let tag = hmac::sign(&self.key, insured.as_bytes());
        hex::encode(tag.as_ref().get(..PSEUDONYM_BYTES).unwrap_or_default())
    }
}

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonym(key hidden)")
    }
}

const PSEUDONYM_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_tagged_in_snake_case_without_absent_values() {
        let event = Event::HandshakeFailed {
            reason: "certificate_expired".into(),
            detail: String::new(),
            client_addr: "127.0.0.1:1".into(),
            actor: None,
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"event":"handshake_failed","reason":"certificate_expired","detail":"","#,
                r#""client_addr":"127.0.0.1:1"}"#
            )
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        assert_eq!(
            serde_json::to_string(&Event::ServiceStopped).unwrap(),
            r#"{"event":"service_stopped"}"#
        );
    }

    #[test]
    fn an_actor_knows_its_office() {
        let office = |path: &str| Actor::of(path).office;
        assert_eq!(office("office/1370000001/terminal/front-1").as_deref(), Some("1370000001"));
        for other in ["municipality/131016", "system/life", "operator/o", "office/", "office"] {
            assert_eq!(office(other), None, "{other}");
        }
    }

    #[test]
    fn a_pseudonym_is_stable_keyed_and_hides_the_number() {
        let one = Pseudonym::new(&[1; 32]);
        let other = Pseudonym::new(&[2; 32]);
        let name = one.of("131016/0000000001");
        assert_eq!(name.len(), 32);
        assert_eq!(name, one.of("131016/0000000001"));
        assert_ne!(name, one.of("131016/0000000002"));
        assert_ne!(name, other.of("131016/0000000001"));
        assert!(!format!("{one:?}").contains("01"));
    }

    #[test]
    fn the_pseudonym_is_hmac_sha_256_cut_to_16_bytes() {
        // RFC 4231 test case 2 has a 4-byte key; HMAC pads a key with zeros, so 32 bytes that end
        // in zeros are the same key.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let name = Pseudonym::new(&key).of("what do ya want for nothing?");
        assert_eq!(name, "5bdcc146bf60754e6a042426089575c7");
    }
}
