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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use policies::decide::{FeedState, Leases};
use policies::facts::Facts;
use policies::feed::{Ack, Fact, LINE_BYTES_MAX, Source, Subscriber, Update};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::client_cert::VerifiedClient;
use crate::config::Feed;
use crate::downstream::LiveConnections;

/// How long to wait before a lost feed is connected to again.
const RECONNECT_DELAY: Duration = Duration::from_millis(200);

/// A feed that is silent for this long is taken for dead and connected to anew.
const SILENCE_MAX: Duration = Duration::from_millis(2_000);

/// The facts that decisions are made from, and how old they are.
#[derive(Default)]
pub struct LiveFacts {
    facts: ArcSwap<Facts>,
    writer: Mutex<()>,
    generation: AtomicU64,
    sent_at_ms_ca: AtomicU64,
    sent_at_ms_hub: AtomicU64,
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

    /// How old each feed is, counted from the send time of its last authenticated line.
    pub fn feed_state(&self) -> FeedState {
        let now = now_ms();
        FeedState {
            ca_age_ms: age(now, self.sent_at_ms_ca.load(Ordering::Acquire)),
            hub_age_ms: age(now, self.sent_at_ms_hub.load(Ordering::Acquire)),
            leases: Leases::default(),
        }
    }

    fn apply(&self, source: Source, update: Update, seq: u64) {
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut facts = Facts::clone(&self.facts.load());
        match update {
            Update::Replace(all) => facts.replace(source, all),
            Update::Apply(fact) => facts.apply(fact),
            Update::Alive => return,
        }
        facts.set_seq(source, seq);
        self.facts.store(Arc::new(facts));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn heard(&self, source: Source, sent_at_ms: u64) {
        match source {
            Source::Ca => &self.sent_at_ms_ca,
            Source::Hub => &self.sent_at_ms_hub,
        }
        .store(sent_at_ms, Ordering::Release);
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

fn age(now: u64, sent_at_ms: u64) -> Option<u64> {
    (sent_at_ms != 0).then(|| now.saturating_sub(sent_at_ms))
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
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        loop {
            line.clear();
            let mut limited = (&mut reader).take(LINE_BYTES_MAX as u64);
            let read = tokio::time::timeout(SILENCE_MAX, limited.read_line(&mut line));
            let bytes = read.await.map_err(|_| Lost::Silent)??;
            if bytes == 0 {
                return Err(Lost::Ended);
            }
            if !line.ends_with('\n') {
                return Err(Lost::TooLong);
            }
            let update = subscriber.accept(line.trim_end())?;
            self.take(update, subscriber);
            let ack =
                Ack { gateway: self.gateway_id.clone(), applied_seq: subscriber.applied_seq() };
            let mut answer = serde_json::to_string(&ack).unwrap_or_default();
            answer.push('\n');
            writer.write_all(answer.as_bytes()).await?;
        }
    }

    /// Applies a verified update, then cuts whom it refuses, before it is acknowledged.
    fn take(&self, update: Update, subscriber: &Subscriber) {
        let cuts = match &update {
            Update::Replace(facts) => {
                let seq = subscriber.applied_seq();
                tracing::info!(feed = self.source.as_str(), seq, facts = facts.len(), "snapshot");
                self.source == Source::Ca
            }
            Update::Apply(Fact::Revoked { .. }) => true,
            Update::Apply(Fact::Office { suspended, .. }) => *suspended,
            Update::Apply(_) | Update::Alive => false,
        };
        self.facts.apply(self.source, update, subscriber.applied_seq());
        self.facts.heard(self.source, subscriber.sent_at_ms());
        if cuts {
            let cut = self.live.cut_where(|client| !self.facts.may_stay(client));
            if cut > 0 {
                tracing::info!(connections = cut, "cut connections that are no longer accepted");
            }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
