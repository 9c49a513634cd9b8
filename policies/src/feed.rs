//! The facts feed: how facts travel from where they are written to the gateway.
//!
//! One line of JSON per message, over a unix socket (or mTLS). The subscriber begins with a
//! [`Hello`] that says what it has; the source goes on from there with every [`Message::Change`]
//! after it, or, if it cannot, sends a snapshot in numbered [`Message::Part`] lines that a
//! [`Message::Snapshot`] line ends. A [`Message::Heartbeat`] comes at least each
//! [`HEARTBEAT_INTERVAL_MS`] after that. Every line is signed with the feed key of its source
//! (Ed25519, apart from every other key), and changes are hash-chained, so a lost, repeated,
//! reordered or foreign line is found. The subscriber answers with [`Ack`] lines.
//!
//! ```text
//!  subscriber                                        source
//!     Hello { have: none | seq, head } ──────────────►
//!     ◄── Part 0, Part 1, …, Snapshot     only if `have` is none, unknown or far behind
//!     ◄── Change seq+1, Change seq+2, …, Heartbeat, …
//!     Ack { applied_seq } ───────────────────────────►
//! ```
//!
//! This module is the protocol without I/O: [`Signer`] makes lines, [`Subscriber`] checks them.
//!
//! Invariants: sequence numbers have no gaps; a line that does not verify changes nothing; a
//! snapshot counts when its last line came, not before.

use aws_lc_rs::digest;
use aws_lc_rs::rand;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

mod fact;
mod subscriber;

pub use fact::Fact;
pub use subscriber::{Subscriber, Update};

/// How often a publisher sends a heartbeat when nothing changes, in milliseconds.
pub const HEARTBEAT_INTERVAL_MS: u64 = 500;

/// The longest name of an office, in characters.
pub const OFFICE_NAME_CHARACTERS_MAX: usize = 200;

/// The longest line that a subscriber accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest line that a subscriber sends, in bytes.
pub const ANSWER_BYTES_MAX: u64 = 4_096;

/// How far a source's clock may be ahead of a subscriber's, in milliseconds. Whoever counts out a
/// subscriber's lease adds it.
pub const CLOCK_AHEAD_MS_MAX: u64 = 2_000;

/// A part of a snapshot has at most so many facts.
pub const PART_FACTS_MAX: usize = 4_096;

/// A subscriber that lacks more changes than this is sent a snapshot: it is there sooner.
pub const RESUME_CHANGES_MAX: u64 = 100_000;

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

/// The head after appending `fact` at `seq` to a log whose head was `previous`:
/// hex SHA-256 over `previous`, `seq` and the fact's JSON, separated by newlines.
pub fn next_head(previous: &str, seq: u64, fact_json: &str) -> String {
    let text = format!("{previous}\n{seq}\n{fact_json}");
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

/// A place in a source's change log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The last change; 0 before the first.
    pub seq: u64,
    /// The head of the hash chain there.
    pub head: String,
}

impl Position {
    /// Before the first change.
    pub fn genesis() -> Self {
        Self { seq: 0, head: GENESIS_HEAD.to_owned() }
    }
}

/// What a line of the feed says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Some of the facts that are current at sequence `seq`; made by [`Parts::part`].
    Part {
        /// Which snapshot, so that parts of two never mix.
        snapshot: String,
        /// The last change that the snapshot holds.
        seq: u64,
        /// The head of the change log there.
        head: String,
        /// Its number, from 0 on.
        part: u64,
        /// Facts, in any order.
        facts: Vec<Fact>,
    },
    /// The snapshot is whole; made by [`Parts::end`].
    Snapshot {
        /// Which one.
        snapshot: String,
        /// The last change that it holds.
        seq: u64,
        /// The head of the change log there.
        head: String,
        /// How many parts it had.
        parts: u64,
        /// The head that the log had at the sequence which the subscriber named as seen: one that
        /// was restored from a backup has another there, or none.
        seen_head: Option<String>,
        /// When it was read from the source's log, Unix milliseconds.
        sent_at_ms: u64,
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

/// The first line of a subscriber: who it is, and which facts it holds already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The gateway's configured id; none of a reader that no lease is given to.
    pub gateway: Option<String>,
    /// Where its facts stand; none if it holds none.
    pub have: Option<Position>,
    /// The newest place that it has seen, whether it still holds those facts or not: a snapshot
    /// must show that it comes after it.
    pub seen: Option<Position>,
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
    /// The line is no envelope, or its payload no message. What stands there is not repeated: it
    /// may be about a person.
    #[error("feed line is not understood: {0} error at column {1}")]
    Malformed(&'static str, usize),
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
    #[error("the {0} feed tells a fact that is not its own")]
    Foreign(&'static str),
    /// The source's past is another one.
    #[error(
        "feed tells another past than the one already applied up to sequence {0}: if the source \
         was restored from a backup, remove the facts that this subscriber keeps on disk and \
         restart it"
    )]
    Fork(u64),
    /// A part that does not follow the last one, or another line amid a snapshot.
    #[error("feed snapshot breaks off: expected part {expected}, got {got}")]
    Broken {
        /// The number of the part that was to come.
        expected: u64,
        /// What came.
        got: String,
    },
    /// A snapshot older than what was already applied.
    #[error(
        "feed snapshot at sequence {got} is older than {have}, which was already applied: if the \
         source was restored from a backup, remove the facts that this subscriber keeps on disk \
         and restart it"
    )]
    Rollback {
        /// The last sequence that was applied.
        have: u64,
        /// The snapshot's sequence.
        got: u64,
    },
}

impl Error {
    #[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
    fn malformed(error: serde_json::Error) -> Self {
        let kind = match error.classify() {
            serde_json::error::Category::Io => "read",
            serde_json::error::Category::Syntax => "syntax",
            serde_json::error::Category::Data => "data",
            serde_json::error::Category::Eof => "end",
        };
        Self::Malformed(kind, error.column())
    }
}

fn signed_bytes(source: Source, payload: &str) -> Vec<u8> {
    format!("sekisho-feed-v2\n{}\n{payload}", source.as_str()).into_bytes()
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
        self.sign(serde_json::to_string(message).map_err(Error::malformed)?)
    }

    fn sign(&self, payload: String) -> Result<String, Error> {
        let signature = STANDARD.encode(self.key.sign(&signed_bytes(self.source, &payload)));
        serde_json::to_string(&Envelope { payload, signature }).map_err(Error::malformed)
    }
}

/// Makes the lines of one snapshot.
pub struct Parts {
    snapshot: String,
    position: Position,
    sent_at_ms: u64,
    count: u64,
}

impl Parts {
    /// A snapshot of the facts at `position`, which were read at `sent_at_ms` (Unix milliseconds).
    ///
    /// # Errors
    /// [`Error::Key`] if the system has no randomness.
    pub fn begin(position: Position, sent_at_ms: u64) -> Result<Self, Error> {
        let mut id = [0; 8];
        rand::fill(&mut id).map_err(|_| Error::Key("system randomness"))?;
        Ok(Self { snapshot: hex::encode(id), position, sent_at_ms, count: 0 })
    }

    /// All lines of a snapshot of facts that are at hand.
    ///
    /// # Errors
    /// As the single steps.
    pub fn all(
        signer: &Signer,
        position: Position,
        sent_at_ms: u64,
        facts: &[Fact],
    ) -> Result<Vec<String>, Error> {
        Self::all_after(signer, position, sent_at_ms, facts, None)
    }

    /// The same for a subscriber that has seen the place where the log had this head.
    ///
    /// # Errors
    /// As [`Parts::all`].
    pub fn all_after(
        signer: &Signer,
        position: Position,
        sent_at_ms: u64,
        facts: &[Fact],
        seen_head: Option<String>,
    ) -> Result<Vec<String>, Error> {
        let mut parts = Self::begin(position, sent_at_ms)?;
        let mut lines = Vec::new();
        for chunk in facts.chunks(PART_FACTS_MAX) {
            let texts: Result<Vec<_>, _> = chunk.iter().map(serde_json::to_string).collect();
            lines.push(parts.part(signer, &texts.map_err(Error::malformed)?)?);
        }
        lines.push(parts.end(signer, seen_head)?.0);
        Ok(lines)
    }

    /// The signed line of the next part, without a line end. `facts` are at most
    /// [`PART_FACTS_MAX`], each as the JSON text that the source keeps.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the line cannot be written as JSON.
    pub fn part<T: AsRef<str>>(&mut self, signer: &Signer, facts: &[T]) -> Result<String, Error> {
        let Self { snapshot, position: Position { seq, head }, count, .. } = self;
        let begin = format!(r#"{{"message":"part","snapshot":"{snapshot}","seq":{seq},"#);
        let mut payload = format!(r#"{begin}"head":"{head}","part":{count},"facts":["#);
        for (at, fact) in facts.iter().enumerate() {
            payload.push_str(if at == 0 { "" } else { "," });
            payload.push_str(fact.as_ref());
        }
        payload.push_str("]}");
        *count += 1;
        signer.sign(payload)
    }

    /// The signed line that ends the snapshot, and where it stands. `seen_head` is what the log
    /// says of the place that the subscriber has seen.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the line cannot be written as JSON.
    pub fn end(
        self,
        signer: &Signer,
        seen_head: Option<String>,
    ) -> Result<(String, Position), Error> {
        let Self { snapshot, position, sent_at_ms, count: parts } = self;
        let Position { seq, head } = position.clone();
        let message = Message::Snapshot { snapshot, seq, head, parts, seen_head, sent_at_ms };
        Ok((signer.line(&message)?, position))
    }
}
