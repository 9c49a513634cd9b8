//! What one audit record says: the [`Event`], the [`Entry`] that carries it through the log, and
//! the [`Pseudonym`] under which an insured person appears in it.
//!
//! INVARIANT: no personal data in clear. Fields named `insured` hold a pseudonym, `detail` holds
//! technical words only, and no field ever holds a key, token, PIN, password or name. The callers
//! keep this; the types here can not check it.
//!
//! The wire form is JSON with the tag `event`, names in snake case, absent values left out:
//! `{"event":"service_started","version":"0.1.0"}`. A new variant or optional field may be added
//! within format version 1; removing or renaming one needs a new version ([`crate::encoding`]).

use std::fmt;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

/// Something that happened and must stay provable.
///
/// A decision and its completion share the `request_id`; so do an intent, its effects and its
/// outcome. A decision without a completion, or an intent without an outcome, shows a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The gateway decided about a request, allowed or not.
    Decision {
        /// Joins this decision with its completion and the hub's records.
        request_id: String,
        /// Identity path of the certificate, such as `office/1370000001/terminal/front-1`.
        principal: String,
        /// Serial of the certificate, lower-case hex.
        serial: String,
        /// Staff id from the staff token, when there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        staff: Option<String>,
        /// Name of the operation, such as `document.view`; absent when the path names none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operation: Option<String>,
        /// Pseudonym of the insured person; never the number itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        insured: Option<String>,
        /// Document kind, when the operation concerns one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        document: Option<String>,
        /// `allow` or `deny`.
        outcome: String,
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
    },
    /// A connection was refused before any request.
    HandshakeFailed {
        /// Stable reason word, such as `certificate_expired`.
        reason: String,
        /// Technical detail, one line.
        detail: String,
        /// Address and port of the client.
        client_addr: String,
        /// Serial of the certificate, when one was presented.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serial: Option<String>,
        /// Identity path of the certificate, when it could be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
    },
    /// Something is about to be done (certificate to be signed, registration to be written).
    Intent {
        /// Joins intent, effects and outcome, when the work came from a request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Who wants it: an identity path, or `operator/<name>`.
        actor: String,
        /// Stable word for what is done, such as `certificate.issue`.
        action: String,
        /// What it is done to: a serial, an office number, a pseudonym.
        object: String,
        /// Technical detail, one line; may be empty.
        detail: String,
    },
    /// A lasting change was made.
    Effect {
        /// The request id of the intent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Who wanted it.
        actor: String,
        /// Stable word for what was done.
        action: String,
        /// What it was done to.
        object: String,
        /// Technical detail, one line; may be empty.
        detail: String,
    },
    /// How the work that an intent announced has ended.
    Outcome {
        /// The request id of the intent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Who wanted it.
        actor: String,
        /// Stable word for what was done.
        action: String,
        /// What it was done to.
        object: String,
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
    /// SHA-256 of the record, lower-case hex: what the next record names as `prev`.
    pub hash: String,
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
            serial: None,
            principal: None,
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
