//! Publishes the CA's facts to gateways, and knows how far each gateway has come.
//!
//! A subscriber says what it has; it gets every change after that in order (after a snapshot, if
//! the change log does not go on from there), and a heartbeat each 500 ms; each line is signed
//! (`policies::feed`). It answers with acknowledgements. "Effective everywhere" means:
//! every configured gateway has acknowledged the change, or can not have a valid lease any more.
//!
//! INVARIANT: a gateway's lease is taken to run from the last line that may have reached it, not
//! from the last word heard of it, so [`Gateways::missing`] never calls a change effective too
//! early.
//!
//! Feeds over mTLS, for gateways on other machines, belong here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use policies::feed::{
    Ack, HEARTBEAT_INTERVAL_MS, Hello, Message, PART_FACTS_MAX, Parts, Position,
    RESUME_CHANGES_MAX, Signer,
};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::protocol::read_line;
use crate::serve::{chain, is_same_user};
use crate::store::{self, Store};

/// Why a subscriber was dropped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The facts can not be read.
    #[error("the facts cannot be read")]
    Store(#[from] store::Error),
    /// A line can not be made.
    #[error("a feed line cannot be made")]
    Line(#[from] policies::feed::Error),
    /// The subscriber did not say what it has.
    #[error("the subscriber did not begin with a hello: is it of another version?")]
    Hello,
    /// The subscriber does not read.
    #[error("the subscriber does not read")]
    Slow,
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
}

/// What is known of one gateway.
#[derive(Debug, Clone, Serialize)]
pub struct GatewayStatus {
    /// Its configured id.
    pub id: String,
    /// The change that it has acknowledged last.
    pub applied_seq: u64,
    /// Milliseconds since its last acknowledgement; `None` if there was none since the start.
    pub heard_ms_ago: Option<u64>,
}

/// How far the configured gateways have come.
pub struct Gateways {
    lease: Duration,
    state: Mutex<HashMap<String, Progress>>,
    changed: watch::Sender<()>,
}

#[derive(Clone)]
struct Progress {
    applied_seq: u64,
    heard: Option<Instant>,
    /// The last time at which a line may have begun a lease there.
    maybe_fed: Instant,
}

impl Gateways {
    /// The gateways that are configured. Each may hold a lease from before this start.
    pub fn new(ids: &[String], lease: Duration) -> Self {
        let fresh = Progress { applied_seq: 0, heard: None, maybe_fed: Instant::now() };
        let state = ids.iter().map(|id| (id.clone(), fresh.clone())).collect();
        Self { lease, state: Mutex::new(state), changed: watch::Sender::new(()) }
    }

    /// A line went out to this gateway, or to one that has not yet said who it is.
    fn fed(&self, gateway: Option<&str>) {
        let now = Instant::now();
        for (id, progress) in self.lock().iter_mut() {
            if gateway.is_none_or(|gateway| gateway == id) {
                progress.maybe_fed = now;
            }
        }
    }

    /// A gateway acknowledged; says whether it is a configured one.
    fn acknowledged(&self, ack: &Ack) -> bool {
        let known = match self.lock().get_mut(&ack.gateway) {
            Some(progress) => {
                progress.applied_seq = ack.applied_seq;
                progress.heard = Some(Instant::now());
                true
            }
            None => false,
        };
        self.changed.send_replace(());
        known
    }

    fn is_configured(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    /// The gateways that may still decide from facts before `seq`, by id.
    pub fn missing(&self, seq: u64) -> Vec<String> {
        let mut missing: Vec<String> = self
            .lock()
            .iter()
            .filter(|(_, p)| p.applied_seq < seq && p.maybe_fed.elapsed() <= self.lease)
            .map(|(id, _)| id.clone())
            .collect();
        missing.sort();
        missing
    }

    /// Waits until no gateway is missing, at most for `limit`; returns those that still are.
    pub async fn wait(&self, seq: u64, limit: Duration) -> Vec<String> {
        let mut changed = self.changed.subscribe();
        let deadline = Instant::now() + limit;
        loop {
            let missing = self.missing(seq);
            let left = deadline.saturating_duration_since(Instant::now());
            if missing.is_empty() || left.is_zero() {
                return missing;
            }
            // Also looks by itself: a lease ends without anybody saying so.
            let _ = tokio::time::timeout(left.min(LOOK_INTERVAL), changed.changed()).await;
        }
    }

    /// What is known of each gateway, by id.
    pub fn status(&self) -> Vec<GatewayStatus> {
        let mut all: Vec<GatewayStatus> = self
            .lock()
            .iter()
            .map(|(id, progress)| GatewayStatus {
                id: id.clone(),
                applied_seq: progress.applied_seq,
                heard_ms_ago: progress.heard.map(|heard| heard.elapsed().as_millis() as u64),
            })
            .collect();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Progress>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The feed's server.
pub struct Publisher {
    store: Store,
    signer: Signer,
    gateways: Arc<Gateways>,
    snapshots: Semaphore,
}

impl Publisher {
    /// A publisher of the store's facts.
    pub fn new(store: Store, signer: Signer, gateways: Arc<Gateways>) -> Self {
        Self { store, signer, gateways, snapshots: Semaphore::new(SNAPSHOTS_MAX) }
    }

    /// Serves subscribers until `stop`.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let limit = Arc::new(Semaphore::new(SUBSCRIBERS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&limit).try_acquire_owned() else { continue };
            if !is_same_user(&stream) {
                tracing::warn!("feed connection of another user refused");
                continue;
            }
            let (publisher, stop) = (Arc::clone(&self), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = publisher.subscriber(stream, stop).await {
                    tracing::info!(error = chain(&error), "feed subscriber dropped");
                }
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn subscriber(&self, stream: UnixStream, stop: CancellationToken) -> Result<(), Error> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let hello = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            hello = hear_hello(&mut read) => hello?,
        };
        let named = hello.gateway.clone().filter(|id| self.gateways.is_configured(id));
        let name = watch::Sender::new(named);
        let line = Line { publisher: self, write, name: name.subscribe() };
        // Beside each other: a subscriber that is writing must not have to wait for one that is.
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = self.acknowledgements(read, name) => ended,
            ended = self.publish_to(line, hello) => ended,
        }
    }

    async fn publish_to(&self, mut line: Line<'_>, hello: Hello) -> Result<(), Error> {
        let mut changed = self.store.follow();
        let position = match hello.have {
            Some(have) if self.goes_on_from(&have).await? => have,
            Some(_) | None => self.send_snapshot(&mut line, hello.seen).await?,
        };
        let mut position = self.send_heartbeat(&mut line, position).await?;
        let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_INTERVAL_MS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        loop {
            tokio::select! {
                followed = changed.changed() => {
                    if followed.is_err() {
                        return Ok(());
                    }
                    position = self.send_changes(&mut line, position).await?;
                }
                _ = heartbeat.tick() => {
                    position = self.send_heartbeat(&mut line, position).await?;
                }
            }
        }
    }

    /// Whether the change log passed through `have`, not so long ago that a snapshot is quicker.
    async fn goes_on_from(&self, have: &Position) -> Result<bool, Error> {
        let latest = self.store.latest_seq().await?;
        let near = latest.saturating_sub(have.seq) <= RESUME_CHANGES_MAX;
        Ok(near && self.store.head_at(have.seq).await?.as_ref() == Some(&have.head))
    }

    /// A heartbeat says that nothing is newer: so the log is looked at first.
    async fn send_heartbeat(
        &self,
        line: &mut Line<'_>,
        position: Position,
    ) -> Result<Position, Error> {
        let sent_at_ms = now_ms();
        let before = position.seq;
        let position = self.send_changes(line, position).await?;
        if position.seq == before {
            let Position { seq, head } = position.clone();
            line.send(&Message::Heartbeat { seq, head, sent_at_ms }).await?;
        }
        Ok(position)
    }

    async fn send_snapshot(
        &self,
        line: &mut Line<'_>,
        seen: Option<Position>,
    ) -> Result<Position, Error> {
        // Each holds a reading connection for as long as it takes.
        let _turn = self.snapshots.acquire().await;
        let sent_at_ms = now_ms();
        let mut snapshot = self.store.snapshot().await?;
        let mut parts = Parts::begin(snapshot.position.clone(), sent_at_ms)?;
        let mut chunks = std::pin::pin!(snapshot.facts().try_chunks(PART_FACTS_MAX));
        while let Some(facts) = chunks.try_next().await.map_err(|error| error.1)? {
            line.write(parts.part(&self.signer, &facts)?).await?;
        }
        let seen_head = match seen {
            Some(seen) => self.store.head_at(seen.seq).await?,
            None => None,
        };
        let (end, position) = parts.end(&self.signer, seen_head)?;
        line.write(end).await?;
        Ok(position)
    }

    async fn send_changes(
        &self,
        line: &mut Line<'_>,
        mut position: Position,
    ) -> Result<Position, Error> {
        loop {
            // The time comes first: what is committed after it is not vouched for by this batch.
            let sent_at_ms = now_ms();
            let latest_seq = self.store.latest_seq().await?;
            let changes = self.store.changes_after(position.seq, BATCH).await?;
            if changes.is_empty() {
                return Ok(position);
            }
            for change in changes {
                let store::Change { seq, fact, head } = change;
                let previous = position.head;
                let change = Message::Change { seq, previous, latest_seq, sent_at_ms, fact };
                line.send(&change).await?;
                position = Position { seq, head };
            }
        }
    }

    async fn acknowledgements(
        &self,
        mut read: BufReader<OwnedReadHalf>,
        name: watch::Sender<Option<String>>,
    ) -> Result<(), Error> {
        while let Some(text) = read_line(&mut read).await? {
            match serde_json::from_str::<Ack>(&text) {
                Ok(ack) if self.gateways.acknowledged(&ack) => {
                    name.send_replace(Some(ack.gateway));
                }
                Ok(ack) => tracing::warn!(gateway = ack.gateway, "unknown gateway acknowledged"),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// The sending side of one subscriber.
struct Line<'a> {
    publisher: &'a Publisher,
    write: OwnedWriteHalf,
    name: watch::Receiver<Option<String>>,
}

impl Line<'_> {
    async fn send(&mut self, message: &Message) -> Result<(), Error> {
        self.write(self.publisher.signer.line(message)?).await
    }

    async fn write(&mut self, mut text: String) -> Result<(), Error> {
        text.push('\n');
        self.publisher.gateways.fed(self.name.borrow().as_deref());
        let written = tokio::time::timeout(SEND_TIMEOUT, self.write.write_all(text.as_bytes()));
        written.await.map_err(|_| Error::Slow)??;
        Ok(())
    }
}

/// The subscriber's first line.
async fn hear_hello(read: &mut BufReader<OwnedReadHalf>) -> Result<Hello, Error> {
    let text = tokio::time::timeout(HELLO_TIMEOUT, read_line(read)).await;
    let text = text.map_err(|_| Error::Hello)??.ok_or(Error::Hello)?;
    serde_json::from_str(&text).map_err(|_| Error::Hello)
}

fn now_ms() -> u64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).max(0) as u64
}

const SUBSCRIBERS_MAX: usize = 64;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const BATCH: u32 = 1000;
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Snapshots that are sent at the same time; more wait for their turn.
const SNAPSHOTS_MAX: usize = 2;

#[cfg(test)]
mod tests;
