//! The facts in memory, kept by two signed feeds: the cert-authority's and the hub's.
//!
//! A feed task connects, takes the snapshot, then every change; each line is verified by
//! [`policies::feed::Subscriber`] before it touches anything. A gap, a broken chain or a lost
//! connection means a new snapshot; the facts held stay in use while their lease runs, and
//! `decide` denies when it has run out.
//!
//! Belongs here later: the local copy to start from.
//!
//! Invariants: readers never block; a change is visible to the next decision; a client whose
//! certificate or office is refused by a change has its connections cut by the same task.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use policies::decide::{FeedState, Leases};
use policies::facts::Facts;
use policies::feed::{Ack, Fact, LINE_BYTES_MAX, Source, Subscriber, Update};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use crate::client_cert::VerifiedClient;
use crate::config::Feed;
use crate::downstream::LiveConnections;

/// How long to wait before a lost feed is connected to again.
const RECONNECT_DELAY: Duration = Duration::from_millis(200);

/// How far a source's clock may be ahead of ours, in milliseconds.
const CLOCK_AHEAD_MS_MAX: u64 = 2_000;

/// Lines that are waiting are applied together, up to this many bytes of them.
const READ_AHEAD_BYTES: usize = 1024 * 1024;

/// A feed that is silent for this long is taken for dead and connected to anew.
const SILENCE_MAX: Duration = Duration::from_millis(2_000);

/// The facts that decisions are made from, and how old they are.
#[derive(Default)]
pub struct LiveFacts {
    facts: ArcSwap<Facts>,
    writer: Mutex<()>,
    generation: AtomicU64,
    ca: Mutex<Option<Freshness>>,
    hub: Mutex<Option<Freshness>>,
}

/// How old a feed's facts were when its last line came, and when that was on the monotonic clock,
/// so that a wall clock that is set back makes nothing look younger.
#[derive(Debug, Clone, Copy)]
struct Freshness {
    age_ms: u64,
    heard: Instant,
}

impl Freshness {
    fn age_now_ms(self) -> u64 {
        self.age_ms.saturating_add(self.heard.elapsed().as_millis() as u64)
    }
}

impl LiveFacts {
    /// The facts now. Cheap; hold it for one decision, not longer.
    pub fn current(&self) -> arc_swap::Guard<Arc<Facts>> {
        self.facts.load()
    }

    /// Grows with every change of the facts.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How old each feed is, counted from the moment when it lacked nothing that its source knew.
    pub fn feed_state(&self) -> FeedState {
        FeedState {
            ca_age_ms: self.age_ms(Source::Ca),
            hub_age_ms: self.age_ms(Source::Hub),
            leases: Leases::default(),
        }
    }

    /// Applies updates in order and publishes them as one change: a map that readers still hold is
    /// copied once for all of them.
    fn apply(&self, source: Source, updates: Vec<Update>, seq: u64) {
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut facts = Facts::clone(&self.facts.load());
        for update in updates {
            match update {
                Update::Replace(all) => facts.replace(source, all),
                Update::Apply(fact) => facts.apply(fact),
                Update::Alive => {}
            }
        }
        facts.set_seq(source, seq);
        self.facts.store(Arc::new(facts));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn freshness(&self, source: Source) -> &Mutex<Option<Freshness>> {
        match source {
            Source::Ca => &self.ca,
            Source::Hub => &self.hub,
        }
    }

    fn age_ms(&self, source: Source) -> Option<u64> {
        let freshness = self.freshness(source).lock().unwrap_or_else(PoisonError::into_inner);
        freshness.map(Freshness::age_now_ms)
    }

    /// Notes what the source vouched for. A time that lies ahead of this machine's clock vouches
    /// for nothing: the age then goes on from what it was.
    fn heard(&self, source: Source, caught_up_at_ms: u64) {
        let now = now_ms();
        if caught_up_at_ms > now + CLOCK_AHEAD_MS_MAX {
            return;
        }
        let told = Freshness { age_ms: now.saturating_sub(caught_up_at_ms), heard: Instant::now() };
        let mut freshness = self.freshness(source).lock().unwrap_or_else(PoisonError::into_inner);
        *freshness = Some(told);
    }

    /// Whether this client may keep a connection: its certificate is not revoked and its office is
    /// neither unknown nor suspended.
    pub fn may_stay(&self, client: &VerifiedClient) -> bool {
        let facts = self.current();
        let office_open = client
            .identity()
            .office()
            .is_none_or(|number| facts.office(number).is_none_or(|office| !office.suspended));
        office_open && facts.revoked(client.serial()).is_none()
    }
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What goes wrong between two snapshots.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("cannot reach the feed")]
    Connect(#[source] std::io::Error),
    #[error("feed socket is held by uid {0}, not by ours")]
    Foreign(u32),
    #[error("feed connection broke")]
    Io(#[from] std::io::Error),
    #[error("feed ended")]
    Ended,
    #[error("feed is silent")]
    Silent,
    #[error("feed line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error(transparent)]
    Refused(#[from] policies::feed::Error),
}

/// One feed's subscription: runs for as long as the gateway does.
pub struct FeedTask {
    /// Which feed.
    pub source: Source,
    /// Where it comes from.
    pub feed: Feed,
    /// The id in acknowledgements.
    pub gateway_id: String,
    /// Where its facts go.
    pub facts: Arc<LiveFacts>,
    /// The connections to cut.
    pub live: Arc<LiveConnections>,
}

impl FeedTask {
    /// Follows the feed for ever.
    pub async fn run(self) {
        let subscriber = Subscriber::new(self.source, &self.feed.public_key);
        let Ok(mut subscriber) = subscriber else {
            // INVARIANT: `Config` checked the key.
            return;
        };
        let mut was_up = true;
        loop {
            let lost = self.follow(&mut subscriber).await;
            if was_up || subscriber.applied_seq() > 0 {
                let reason = chain(&lost);
                tracing::warn!(feed = self.source.as_str(), reason, "facts feed lost");
            }
            was_up = false;
            subscriber.restart();
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }

    async fn follow(&self, subscriber: &mut Subscriber) -> Lost {
        match self.read(&self.feed.socket, subscriber).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }

    async fn read(
        &self,
        socket: &Path,
        subscriber: &mut Subscriber,
    ) -> Result<std::convert::Infallible, Lost> {
        let stream = UnixStream::connect(socket).await.map_err(Lost::Connect)?;
        let uid = stream.peer_cred()?.uid();
        if uid != rustix::process::geteuid().as_raw() {
            return Err(Lost::Foreign(uid));
        }
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(READ_AHEAD_BYTES, reader);
        loop {
            let mut updates = vec![accept_line(&mut reader, subscriber).await?];
            // Lines that have come whole already are one change for the readers.
            while reader.buffer().contains(&b'\n') {
                updates.push(accept_line(&mut reader, subscriber).await?);
            }
            self.take(updates, subscriber);
            let ack =
                Ack { gateway: self.gateway_id.clone(), applied_seq: subscriber.applied_seq() };
            let mut answer = serde_json::to_string(&ack).unwrap_or_default();
            answer.push('\n');
            writer.write_all(answer.as_bytes()).await?;
        }
    }

    /// Applies verified updates, then cuts whom they refuse, before they are acknowledged.
    fn take(&self, updates: Vec<Update>, subscriber: &Subscriber) {
        let cuts = updates.iter().any(|update| self.may_refuse(update));
        if updates.iter().any(|update| *update != Update::Alive) {
            self.facts.apply(self.source, updates, subscriber.applied_seq());
        }
        self.facts.heard(self.source, subscriber.caught_up_at_ms());
        if cuts {
            let cut = self.live.cut_where(|client| !self.facts.may_stay(client));
            if cut > 0 {
                tracing::info!(connections = cut, "cut connections that are no longer accepted");
            }
        }
    }

    /// Whether a client that is connected now may be refused by this update.
    fn may_refuse(&self, update: &Update) -> bool {
        match update {
            Update::Replace(facts) => {
                tracing::info!(feed = self.source.as_str(), facts = facts.len(), "snapshot");
                self.source == Source::Ca
            }
            Update::Apply(Fact::Revoked { .. }) => true,
            Update::Apply(Fact::Office { suspended, .. }) => *suspended,
            Update::Apply(_) | Update::Alive => false,
        }
    }
}

async fn accept_line(
    reader: &mut BufReader<OwnedReadHalf>,
    subscriber: &mut Subscriber,
) -> Result<Update, Lost> {
    let mut line = String::new();
    let mut limited = reader.take(LINE_BYTES_MAX as u64);
    let read = tokio::time::timeout(SILENCE_MAX, limited.read_line(&mut line));
    let bytes = read.await.map_err(|_| Lost::Silent)??;
    if bytes == 0 {
        return Err(Lost::Ended);
    }
    if !line.ends_with('\n') {
        return Err(Lost::TooLong);
    }
    Ok(subscriber.accept(line.trim_end())?)
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_is_as_old_as_what_its_source_vouched_for() {
        let facts = LiveFacts::default();
        assert_eq!(facts.feed_state().ca_age_ms, None);
        facts.heard(Source::Ca, now_ms() - 7_000);
        let age = facts.feed_state().ca_age_ms.unwrap();
        assert!((7_000..8_000).contains(&age), "{age}");
        // A time ahead of our clock vouches for nothing: the age goes on.
        facts.heard(Source::Ca, now_ms() + 60_000);
        assert!(facts.feed_state().ca_age_ms.unwrap() >= 7_000);
    }
}
