//! The subscriber's side: which line may follow which.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Envelope, Error, Fact, Hello, Message, Position, Source, next_head, signed_bytes};

/// What a checked line means for the subscriber's facts.
#[derive(Debug, PartialEq, Eq)]
pub enum Update {
    /// A part of a snapshot. Nothing counts before [`Update::Whole`].
    Part {
        /// Whether it is the first: what came of another snapshot is to be dropped.
        begins: bool,
        /// The facts.
        facts: Vec<Fact>,
    },
    /// The snapshot is whole: it replaces all facts of this source.
    Whole,
    /// Apply one fact.
    Apply(Fact),
    /// Nothing changed.
    Alive,
}

/// Checks the lines of one feed, in the order in which they came.
#[derive(Clone)]
pub struct Subscriber {
    source: Source,
    public_key: Vec<u8>,
    position: Option<Position>,
    loading: Option<Loading>,
    newest: Option<Position>,
    caught_up_at_ms: u64,
}

/// A snapshot that is coming in.
#[derive(Clone)]
struct Loading {
    snapshot: String,
    position: Position,
    next: u64,
}

impl Subscriber {
    /// A subscriber that trusts `public_key` (base64, as printed by
    /// [`super::Signer::public_key`]).
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
            loading: None,
            newest: None,
            caught_up_at_ms: 0,
        })
    }

    /// Goes on from facts that were kept, which lacked nothing at `caught_up_at_ms` (the source's
    /// time, Unix milliseconds).
    pub fn resume(&mut self, position: Position, caught_up_at_ms: u64) {
        self.newest = Some(position.clone());
        self.position = Some(position);
        self.caught_up_at_ms = caught_up_at_ms;
    }

    /// The first line to send, for the gateway with this id.
    pub fn hello(&self, gateway: Option<&str>) -> Hello {
        Hello {
            gateway: gateway.map(str::to_owned),
            have: self.position.clone(),
            seen: self.newest.clone(),
        }
    }

    /// Where the facts stand; `None` before the first snapshot.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// The sequence that was applied last.
    pub fn applied_seq(&self) -> u64 {
        self.position.as_ref().map_or(0, |position| position.seq)
    }

    /// The source's time at which nothing that it knew was missing here, Unix milliseconds; 0
    /// before the first snapshot. The age of the facts is counted from it, so that a long queue of
    /// changes never passes for fresh.
    pub fn caught_up_at_ms(&self) -> u64 {
        self.caught_up_at_ms
    }

    /// The connection ended: the next one goes on where this one stood.
    pub fn disconnect(&mut self) {
        self.loading = None;
    }

    /// Forgets the position: the next line must begin a snapshot. The newest sequence and head seen
    /// stay remembered, so an old copy cannot undo a revocation.
    pub fn restart(&mut self) {
        self.loading = None;
        self.position = None;
    }

    /// Checks one line.
    ///
    /// # Errors
    /// Any [`Error`]; the caller drops the connection, calls [`Subscriber::restart`] and asks for
    /// a new snapshot. Nothing may be applied from a line that failed.
    pub fn accept(&mut self, line: &str) -> Result<Update, Error> {
        let envelope: Envelope = serde_json::from_str(line).map_err(Error::malformed)?;
        self.verify(&envelope)?;
        let message: Message = serde_json::from_str(&envelope.payload).map_err(Error::malformed)?;
        match message {
            Message::Part { snapshot, seq, head, part, facts } => {
                facts.iter().try_for_each(|fact| self.own(fact))?;
                let begins = self.take_part(snapshot, Position { seq, head }, part)?;
                Ok(Update::Part { begins, facts })
            }
            Message::Snapshot { snapshot, seq, head, parts, seen_head, sent_at_ms } => {
                let position = Position { seq, head };
                self.end_snapshot(&snapshot, &position, parts)?;
                self.after_what_was_seen(seen_head.as_deref())?;
                self.advance(position);
                self.caught_up_at_ms = sent_at_ms;
                Ok(Update::Whole)
            }
            Message::Change { seq, previous, latest_seq, sent_at_ms, fact } => {
                self.own(&fact)?;
                self.amid_no_snapshot("a change")?;
                let head = self.follow(seq, &previous)?;
                let fact_json = serde_json::to_string(&fact).map_err(Error::malformed)?;
                self.advance(Position { seq, head: next_head(&head, seq, &fact_json) });
                if seq >= latest_seq {
                    self.caught_up_at_ms = sent_at_ms;
                }
                Ok(Update::Apply(fact))
            }
            Message::Heartbeat { seq, head, sent_at_ms } => {
                self.amid_no_snapshot("a heartbeat")?;
                match &self.position {
                    Some(have) if have.seq == seq && have.head == head => {}
                    Some(have) if have.seq == seq => return Err(Error::Chain(seq)),
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
            Err(Error::Foreign(self.source.as_str()))
        }
    }

    /// Says whether the part begins a snapshot.
    fn take_part(
        &mut self,
        snapshot: String,
        position: Position,
        part: u64,
    ) -> Result<bool, Error> {
        if part == 0 && self.loading.is_none() {
            self.not_older(&position)?;
            self.loading = Some(Loading { snapshot, position, next: 1 });
            return Ok(true);
        }
        let same = |own: &&mut Loading| own.snapshot == snapshot && own.position == position;
        let expected = self.loading.as_ref().map_or(0, |own| own.next);
        match self.loading.as_mut().filter(same) {
            Some(own) if own.next == part => {
                own.next += 1;
                Ok(false)
            }
            Some(_) | None => Err(Error::Broken { expected, got: format!("part {part}") }),
        }
    }

    fn end_snapshot(
        &mut self,
        snapshot: &str,
        position: &Position,
        parts: u64,
    ) -> Result<(), Error> {
        let whole = |own: &Loading| {
            own.snapshot == snapshot && own.position == *position && own.next == parts
        };
        // A snapshot without facts has no parts.
        let empty = self.loading.is_none() && parts == 0;
        if !empty && !self.loading.as_ref().is_some_and(whole) {
            let expected = self.loading.as_ref().map_or(0, |own| own.next);
            return Err(Error::Broken { expected, got: format!("the end after {parts} parts") });
        }
        self.not_older(position)?;
        self.loading = None;
        Ok(())
    }

    /// Order is by sequence and head alone: a clock that was set back must not keep a gateway from
    /// recovering.
    fn not_older(&self, position: &Position) -> Result<(), Error> {
        match &self.newest {
            Some(newest) if position.seq < newest.seq => {
                Err(Error::Rollback { have: newest.seq, got: position.seq })
            }
            Some(newest) if position.seq == newest.seq && position.head != newest.head => {
                Err(Error::Fork(position.seq))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The source's log must have passed through the newest place that was seen here: sequence
    /// numbers alone catch up.
    fn after_what_was_seen(&self, seen_head: Option<&str>) -> Result<(), Error> {
        match &self.newest {
            Some(newest) if seen_head != Some(newest.head.as_str()) => Err(Error::Fork(newest.seq)),
            Some(_) | None => Ok(()),
        }
    }

    fn amid_no_snapshot(&self, what: &str) -> Result<(), Error> {
        match &self.loading {
            Some(own) => Err(Error::Broken { expected: own.next, got: what.to_owned() }),
            None => Ok(()),
        }
    }

    fn follow(&self, seq: u64, previous: &str) -> Result<String, Error> {
        match &self.position {
            Some(have) if have.seq + 1 == seq => {
                if have.head == previous {
                    Ok(have.head.clone())
                } else {
                    Err(Error::Chain(seq))
                }
            }
            _ => Err(Error::Gap { have: self.applied_seq(), got: seq }),
        }
    }

    fn advance(&mut self, position: Position) {
        self.newest = Some(position.clone());
        self.position = Some(position);
    }
}

#[cfg(test)]
mod tests;
