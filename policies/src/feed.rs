//! The facts feed: how facts travel from where they are written to the gateway.
//!
//! One line of JSON per message, over a unix socket (or mTLS). A subscriber first gets a
//! [`Message::Snapshot`] at sequence S, then every [`Message::Change`] after it, and a
//! [`Message::Heartbeat`] at least each [`HEARTBEAT_INTERVAL_MS`]. Every line is signed with the
//! feed key of its source (Ed25519, apart from every other key), and changes are hash-chained, so a
//! lost, repeated, reordered or foreign line is found. The subscriber answers with [`Ack`] lines.
//!
//! This module is the protocol without I/O: [`Signer`] makes lines, [`Subscriber`] checks them.
//!
//! Invariants: sequence numbers have no gaps; a line that does not verify changes nothing.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::document::{DocumentKind, DocumentSet};
use crate::identity::{InsuredKey, InsurerNumber, OfficeNumber, Serial, ServiceType};

/// How often a publisher sends a heartbeat when nothing changes, in milliseconds.
pub const HEARTBEAT_INTERVAL_MS: u64 = 500;

/// The longest name of an office, in characters.
pub const OFFICE_NAME_CHARACTERS_MAX: usize = 200;

/// The longest line that a subscriber accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The head of an empty change log.
pub const GENESIS_HEAD: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Who publishes a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The cert-authority's RA: offices and revocations.
    Ca,
    /// The hub: registrations, consents, authorship, go-live, requests, staff.
    Hub,
}

impl Source {
    /// The name used in files, metrics and signatures.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Hub => "hub",
        }
    }
}

/// One fact. A fact replaces the earlier fact with the same [`Fact::key`]; facts are never removed,
/// they say themselves that they ended. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fact {
    /// 事業所: an office as the operator registered it.
    Office {
        /// 事業所番号.
        number: OfficeNumber,
        /// The service types of its record.
        service_types: Vec<ServiceType>,
        /// Whether the institution is a medical one (病院・診療所).
        medical: bool,
        /// Whether the operator suspended it.
        suspended: bool,
        /// Its name as the operator registered it, for people to read; empty in facts written
        /// before offices told their names. An empty one is left out, so that the text of such a
        /// fact, and with it the chain, stays what it was.
        #[serde(
            default,
            skip_serializing_if = "String::is_empty",
            deserialize_with = "office_name"
        )]
        name: String,
    },
    /// A revoked certificate.
    Revoked {
        /// Its serial number.
        serial: Serial,
        /// When the revocation was recorded.
        at: u64,
    },
    /// 担当事業所 registration of an office for a person.
    Registration {
        /// The registered office.
        office: OfficeNumber,
        /// The person.
        insured: InsuredKey,
        /// When it began.
        from: u64,
        /// When it lapses (last second), if set.
        until: Option<u64>,
        /// When it was ended by hand.
        ended: Option<u64>,
    },
    /// 同意: one consent of a person.
    Consent {
        /// The consent's id in the hub.
        id: u64,
        /// The person.
        insured: InsuredKey,
        /// The kinds of document it covers.
        scope: DocumentSet,
        /// When it begins.
        from: u64,
        /// When it ends (last second), if set.
        until: Option<u64>,
        /// When the person withdrew it.
        withdrawn: Option<u64>,
    },
    /// `party` wrote at least one document of this kind for this person.
    Author {
        /// [`crate::identity::Identity::party`] of the author.
        party: String,
        /// The person.
        insured: InsuredKey,
        /// The kind.
        document: DocumentKind,
    },
    /// ※1: the office makes the person's care plan (an accepted 届出 or a facility plan).
    PlansFor {
        /// The planning office.
        office: OfficeNumber,
        /// The person.
        insured: InsuredKey,
        /// Whether it still does.
        active: bool,
    },
    /// 主治医意見書作成依頼: the insurer asked this institution for an opinion on this person.
    OpinionRequest {
        /// The institution.
        office: OfficeNumber,
        /// The person.
        insured: InsuredKey,
        /// Whether the request is still to be answered.
        open: bool,
    },
    /// A municipality's go-live: it shares its people's documents from this time on.
    Sharing {
        /// The insurer.
        insurer: InsurerNumber,
        /// Since when; `None` means it does not share.
        from: Option<u64>,
    },
    /// A public key of the hub that signs staff tokens (ES256).
    StaffKey {
        /// The JWK key id.
        kid: String,
        /// The P-256 point's x, base64url without padding.
        x: String,
        /// The P-256 point's y, base64url without padding.
        y: String,
        /// Whether tokens of this key are no longer accepted.
        retired: bool,
    },
    /// A staff session that was ended (logout, lock, leaver).
    SessionEnded {
        /// The session id.
        session: String,
        /// When its last token would have expired; may be forgotten after that.
        until: u64,
    },
}

impl Fact {
    /// Whose fact this is to tell. A feed that tells another's is refused.
    pub const fn source(&self) -> Source {
        match self {
            Self::Office { .. } | Self::Revoked { .. } => Source::Ca,
            Self::Registration { .. }
            | Self::Consent { .. }
            | Self::Author { .. }
            | Self::PlansFor { .. }
            | Self::OpinionRequest { .. }
            | Self::Sharing { .. }
            | Self::StaffKey { .. }
            | Self::SessionEnded { .. } => Source::Hub,
        }
    }

    /// What this fact is about: a later fact with the same key replaces it.
    pub fn key(&self) -> String {
        match self {
            Self::Office { number, .. } => format!("office/{number}"),
            Self::Revoked { serial, .. } => format!("revoked/{serial}"),
            Self::Registration { office, insured, .. } => {
                format!("registration/{office}/{insured}")
            }
            Self::Consent { id, .. } => format!("consent/{id}"),
            Self::Author { party, insured, document } => {
                format!("author/{party}/{insured}/{document}")
            }
            Self::PlansFor { office, insured, .. } => format!("plans-for/{office}/{insured}"),
            Self::OpinionRequest { office, insured, .. } => {
                format!("opinion-request/{office}/{insured}")
            }
            Self::Sharing { insurer, .. } => format!("sharing/{insurer}"),
            Self::StaffKey { kid, .. } => format!("staff-key/{kid}"),
            Self::SessionEnded { session, .. } => format!("session-ended/{session}"),
        }
    }
}

fn office_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if name.chars().count() <= OFFICE_NAME_CHARACTERS_MAX {
        Ok(name)
    } else {
        Err(D::Error::custom("the name of an office is too long"))
    }
}

/// The head after appending `fact` at `seq` to a log whose head was `previous`:
/// hex SHA-256 over `previous`, `seq` and the fact's JSON, separated by newlines.
pub fn next_head(previous: &str, seq: u64, fact_json: &str) -> String {
    let text = format!("{previous}\n{seq}\n{fact_json}");
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

/// What a line of the feed says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Every current fact at sequence `seq`.
    Snapshot {
        /// The last change that the snapshot holds.
        seq: u64,
        /// The head of the change log there.
        head: String,
        /// When that was read from the source's log, Unix milliseconds.
        sent_at_ms: u64,
        /// The facts, in any order.
        facts: Vec<Fact>,
    },
    /// The change after `seq - 1`.
    Change {
        /// Its sequence number.
        seq: u64,
        /// The head before it.
        previous: String,
        /// The source's newest sequence when this change was read from its log. Until the
        /// subscriber has applied that one, it is behind, however young this line is.
        latest_seq: u64,
        /// When the change was read from the log, Unix milliseconds.
        sent_at_ms: u64,
        /// The changed fact.
        fact: Fact,
    },
    /// Nothing changed since `seq`; the source is alive.
    Heartbeat {
        /// The last change.
        seq: u64,
        /// The head there.
        head: String,
        /// When that was read from the source's log, Unix milliseconds.
        sent_at_ms: u64,
    },
}

/// What a subscriber sends back, one line of JSON each time it applied something or got a
/// heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// The gateway's configured id.
    pub gateway: String,
    /// The sequence that decisions there are now made from.
    pub applied_seq: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    payload: String,
    signature: String,
}

/// What is wrong with a line of the feed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not an Ed25519 key in the expected form.
    #[error("feed key is not usable: expected {0}")]
    Key(&'static str),
    /// The line is no envelope, or its payload no message.
    #[error("feed line is not understood")]
    Malformed(#[source] serde_json::Error),
    /// The signature does not fit.
    #[error("feed line is not signed by the {0} feed key")]
    Signature(&'static str),
    /// A change came before the snapshot, or does not follow the last one.
    #[error("feed jumps from sequence {have} to {got}: a new snapshot is needed")]
    Gap {
        /// The last sequence that was applied.
        have: u64,
        /// The sequence that came.
        got: u64,
    },
    /// The chain does not fit.
    #[error("feed hash chain breaks at sequence {0}: a new snapshot is needed")]
    Chain(u64),
    /// A fact that is another source's to tell.
    #[error("the {0} feed tells `{1}`, which is not its own fact")]
    Foreign(&'static str, String),
    /// A snapshot older than what was already applied.
    #[error("feed snapshot at sequence {got} is older than {have}, which was already applied")]
    Rollback {
        /// The last sequence that was applied.
        have: u64,
        /// The snapshot's sequence.
        got: u64,
    },
}

fn signed_bytes(source: Source, payload: &str) -> Vec<u8> {
    format!("sekisho-feed-v1\n{}\n{payload}", source.as_str()).into_bytes()
}

/// Signs the lines of one feed.
pub struct Signer {
    source: Source,
    key: Ed25519KeyPair,
}

impl Signer {
    /// A new feed key as PKCS#8 DER. Fails only if the system has no randomness.
    ///
    /// # Errors
    /// [`Error::Key`] when the key could not be made.
    pub fn generate_pkcs8() -> Result<Vec<u8>, Error> {
        Ed25519KeyPair::generate()
            .and_then(|key| key.to_pkcs8v1())
            .map(|document| document.as_ref().to_vec())
            .map_err(|_| Error::Key("system randomness"))
    }

    /// Takes the feed key, PKCS#8 DER.
    ///
    /// # Errors
    /// [`Error::Key`] for any other form.
    pub fn from_pkcs8(source: Source, der: &[u8]) -> Result<Self, Error> {
        let key = Ed25519KeyPair::from_pkcs8(der)
            .map_err(|_| Error::Key("an Ed25519 private key in PKCS#8 form"))?;
        Ok(Self { source, key })
    }

    /// The public half, base64, as it stands in the gateway's configuration.
    pub fn public_key(&self) -> String {
        use aws_lc_rs::signature::KeyPair;
        STANDARD.encode(self.key.public_key().as_ref())
    }

    /// The signed line for `message`, without a line end.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the message cannot be written as JSON.
    pub fn line(&self, message: &Message) -> Result<String, Error> {
        let payload = serde_json::to_string(message).map_err(Error::Malformed)?;
        let signature = STANDARD.encode(self.key.sign(&signed_bytes(self.source, &payload)));
        serde_json::to_string(&Envelope { payload, signature }).map_err(Error::Malformed)
    }
}

/// What a checked line means for the subscriber's facts.
#[derive(Debug, PartialEq, Eq)]
pub enum Update {
    /// Replace all facts of this source.
    Replace(Vec<Fact>),
    /// Apply one fact.
    Apply(Fact),
    /// Nothing changed.
    Alive,
}

/// Checks the lines of one feed, in the order in which they came.
pub struct Subscriber {
    source: Source,
    public_key: Vec<u8>,
    position: Option<(u64, String)>,
    newest: (u64, String),
    caught_up_at_ms: u64,
}

impl Subscriber {
    /// A subscriber that trusts `public_key` (base64, as printed by [`Signer::public_key`]).
    ///
    /// # Errors
    /// [`Error::Key`] if that is not 32 bytes of base64.
    pub fn new(source: Source, public_key: &str) -> Result<Self, Error> {
        let public_key = STANDARD
            .decode(public_key)
            .ok()
            .filter(|key| key.len() == 32)
            .ok_or(Error::Key("an Ed25519 public key, 32 bytes in base64"))?;
        Ok(Self {
            source,
            public_key,
            position: None,
            newest: (0, String::new()),
            caught_up_at_ms: 0,
        })
    }

    /// The sequence that was applied last.
    pub fn applied_seq(&self) -> u64 {
        self.position.as_ref().map_or(0, |(seq, _)| *seq)
    }

    /// The source's time at which nothing that it knew was missing here, Unix milliseconds; 0
    /// before the first snapshot. The age of the facts is counted from it, so that a long queue of
    /// changes never passes for fresh.
    pub fn caught_up_at_ms(&self) -> u64 {
        self.caught_up_at_ms
    }

    /// Forgets the position: after a reconnect or an error, the next line must be a snapshot. The
    /// newest sequence and head seen stay remembered, so an old copy cannot undo a revocation.
    pub fn restart(&mut self) {
        self.position = None;
    }

    /// Checks one line.
    ///
    /// # Errors
    /// Any [`Error`]; the caller drops the connection, calls [`Subscriber::restart`] and asks for
    /// a new snapshot. Nothing may be applied from a line that failed.
    pub fn accept(&mut self, line: &str) -> Result<Update, Error> {
        let envelope: Envelope = serde_json::from_str(line).map_err(Error::Malformed)?;
        self.verify(&envelope)?;
        let message: Message = serde_json::from_str(&envelope.payload).map_err(Error::Malformed)?;
        match message {
            Message::Snapshot { seq, head, sent_at_ms, facts } => {
                facts.iter().try_for_each(|fact| self.own(fact))?;
                // Order is by sequence and head alone: a clock that was set back must not keep a
                // gateway from recovering.
                if seq < self.newest.0 {
                    return Err(Error::Rollback { have: self.newest.0, got: seq });
                }
                if seq == self.newest.0 && !self.newest.1.is_empty() && head != self.newest.1 {
                    return Err(Error::Chain(seq));
                }
                self.advance(seq, head);
                self.caught_up_at_ms = sent_at_ms;
                Ok(Update::Replace(facts))
            }
            Message::Change { seq, previous, latest_seq, sent_at_ms, fact } => {
                self.own(&fact)?;
                let head = self.follow(seq, &previous)?;
                let fact_json = serde_json::to_string(&fact).map_err(Error::Malformed)?;
                self.advance(seq, next_head(&head, seq, &fact_json));
                if seq >= latest_seq {
                    self.caught_up_at_ms = sent_at_ms;
                }
                Ok(Update::Apply(fact))
            }
            Message::Heartbeat { seq, head, sent_at_ms } => {
                match &self.position {
                    Some((have, have_head)) if *have == seq && *have_head == head => {}
                    Some((have, _)) if *have == seq => return Err(Error::Chain(seq)),
                    _ => return Err(Error::Gap { have: self.applied_seq(), got: seq }),
                }
                self.caught_up_at_ms = sent_at_ms;
                Ok(Update::Alive)
            }
        }
    }

    fn verify(&self, envelope: &Envelope) -> Result<(), Error> {
        let wrong = || Error::Signature(self.source.as_str());
        let signature = STANDARD.decode(&envelope.signature).map_err(|_| wrong())?;
        UnparsedPublicKey::new(&ED25519, &self.public_key)
            .verify(&signed_bytes(self.source, &envelope.payload), &signature)
            .map_err(|_| wrong())
    }

    fn own(&self, fact: &Fact) -> Result<(), Error> {
        if fact.source() == self.source {
            Ok(())
        } else {
            Err(Error::Foreign(self.source.as_str(), fact.key()))
        }
    }

    fn follow(&self, seq: u64, previous: &str) -> Result<String, Error> {
        match &self.position {
            Some((have, head)) if have + 1 == seq => {
                if head == previous {
                    Ok(head.clone())
                } else {
                    Err(Error::Chain(seq))
                }
            }
            _ => Err(Error::Gap { have: self.applied_seq(), got: seq }),
        }
    }

    fn advance(&mut self, seq: u64, head: String) {
        self.newest = (seq, head.clone());
        self.position = Some((seq, head));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(n: u64) -> Fact {
        Fact::Sharing { insurer: "131016".parse().unwrap(), from: Some(n) }
    }

    fn pair() -> (Signer, Subscriber) {
        let signer = Signer::from_pkcs8(Source::Hub, &Signer::generate_pkcs8().unwrap()).unwrap();
        let subscriber = Subscriber::new(Source::Hub, &signer.public_key()).unwrap();
        (signer, subscriber)
    }

    fn snapshot(seq: u64, head: &str, sent_at_ms: u64) -> Message {
        Message::Snapshot { seq, head: head.into(), sent_at_ms, facts: vec![fact(seq)] }
    }

    #[test]
    fn a_snapshot_then_changes_then_heartbeats_are_accepted() {
        let (signer, mut subscriber) = pair();
        let line = signer.line(&snapshot(0, GENESIS_HEAD, 1)).unwrap();
        assert_eq!(subscriber.accept(&line).unwrap(), Update::Replace(vec![fact(0)]));
        let change = Message::Change {
            seq: 1,
            previous: GENESIS_HEAD.into(),
            latest_seq: 1,
            sent_at_ms: 2,
            fact: fact(7),
        };
        let line = signer.line(&change).unwrap();
        assert_eq!(subscriber.accept(&line).unwrap(), Update::Apply(fact(7)));
        let head = next_head(GENESIS_HEAD, 1, &serde_json::to_string(&fact(7)).unwrap());
        let line = signer.line(&Message::Heartbeat { seq: 1, head, sent_at_ms: 3 }).unwrap();
        assert_eq!(subscriber.accept(&line).unwrap(), Update::Alive);
        assert_eq!((subscriber.applied_seq(), subscriber.caught_up_at_ms()), (1, 3));
    }

    #[test]
    fn an_office_fact_of_before_names_keeps_its_text_and_a_long_name_is_refused() {
        let old = concat!(
            r#"{"fact":"office","number":"1370000001","service_types":[],"#,
            r#""medical":false,"suspended":false}"#
        );
        let fact: Fact = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&fact).unwrap(), old);
        for (length, accepted) in [(200, true), (201, false)] {
            let name = format!(r#""name":"{}"}}"#, "見".repeat(length));
            let named = old.replace("false}", &format!("false,{name}"));
            let read: Result<Fact, _> = serde_json::from_str(&named);
            assert_eq!(read.is_ok(), accepted, "{length}");
            if let Ok(fact) = read {
                assert_eq!(serde_json::to_string(&fact).unwrap(), named);
            }
        }
    }

    #[test]
    fn a_subscriber_that_is_behind_does_not_count_as_fresh() {
        let (signer, mut subscriber) = pair();
        subscriber.accept(&signer.line(&snapshot(0, GENESIS_HEAD, 1)).unwrap()).unwrap();
        let mut head = GENESIS_HEAD.to_owned();
        for (seq, caught_up) in [(1, 1), (2, 1), (3, 50)] {
            let fact = fact(seq);
            let previous = head.clone();
            head = next_head(&previous, seq, &serde_json::to_string(&fact).unwrap());
            let change = Message::Change { seq, previous, latest_seq: 3, sent_at_ms: 50, fact };
            subscriber.accept(&signer.line(&change).unwrap()).unwrap();
            assert_eq!(subscriber.caught_up_at_ms(), caught_up, "after {seq}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_keep_a_snapshot_out() {
        let (signer, mut subscriber) = pair();
        subscriber.accept(&signer.line(&snapshot(5, "aa", 9_000)).unwrap()).unwrap();
        subscriber.restart();
        let other = signer.line(&snapshot(5, "bb", 1_000)).unwrap();
        assert!(matches!(subscriber.accept(&other), Err(Error::Chain(5))));
        subscriber.accept(&signer.line(&snapshot(5, "aa", 1_000)).unwrap()).unwrap();
        assert_eq!(subscriber.caught_up_at_ms(), 1_000);
    }

    #[test]
    fn lines_of_another_key_source_or_text_are_refused() {
        let (signer, mut subscriber) = pair();
        let (other, _) = pair();
        let message = snapshot(0, GENESIS_HEAD, 1);
        let foreign = other.line(&message).unwrap();
        assert!(matches!(subscriber.accept(&foreign), Err(Error::Signature("hub"))));
        let line = signer.line(&message).unwrap().replace("131016", "131017");
        assert!(matches!(subscriber.accept(&line), Err(Error::Signature("hub"))));
        assert!(matches!(subscriber.accept("{}"), Err(Error::Malformed(_))));
    }

    #[test]
    fn a_feed_that_tells_another_sources_fact_is_refused() {
        let (signer, mut subscriber) = pair();
        let foreign = Fact::Revoked { serial: "01".parse().unwrap(), at: 1 };
        let facts = vec![fact(0), foreign.clone()];
        let snapshot_line =
            Message::Snapshot { seq: 0, head: GENESIS_HEAD.into(), sent_at_ms: 1, facts };
        let line = signer.line(&snapshot_line).unwrap();
        assert!(matches!(subscriber.accept(&line), Err(Error::Foreign("hub", _))));
        subscriber.accept(&signer.line(&snapshot(0, GENESIS_HEAD, 1)).unwrap()).unwrap();
        let previous = GENESIS_HEAD.to_owned();
        let change =
            Message::Change { seq: 1, previous, latest_seq: 1, sent_at_ms: 2, fact: foreign };
        let line = signer.line(&change).unwrap();
        assert!(matches!(subscriber.accept(&line), Err(Error::Foreign("hub", _))));
        assert_eq!(subscriber.applied_seq(), 0);
    }

    #[test]
    fn gaps_forks_and_old_snapshots_are_refused() {
        let (signer, mut subscriber) = pair();
        let change = |seq, previous: &str| Message::Change {
            seq,
            previous: previous.into(),
            latest_seq: seq,
            sent_at_ms: 9,
            fact: fact(seq),
        };
        let early = signer.line(&change(1, GENESIS_HEAD)).unwrap();
        assert!(matches!(subscriber.accept(&early), Err(Error::Gap { have: 0, got: 1 })));
        subscriber.accept(&signer.line(&snapshot(5, GENESIS_HEAD, 10)).unwrap()).unwrap();
        let gap = signer.line(&change(7, GENESIS_HEAD)).unwrap();
        assert!(matches!(subscriber.accept(&gap), Err(Error::Gap { have: 5, got: 7 })));
        let fork = signer.line(&change(6, "ff")).unwrap();
        assert!(matches!(subscriber.accept(&fork), Err(Error::Chain(6))));
        subscriber.restart();
        let old = signer.line(&snapshot(4, GENESIS_HEAD, 11)).unwrap();
        assert!(matches!(subscriber.accept(&old), Err(Error::Rollback { have: 5, got: 4 })));
    }
}
