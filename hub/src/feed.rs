//! The hub's facts feed: what the gateways decide from, as it is committed here.
//!
//! ```text
//!  gateway ── Hello {have} ──► change_log goes on from there? else Part …, Snapshot
//!  change_log ──► publish_to(stream): Change …, Heartbeat each 500 ms ──► gateway
//!  Gateways   ◄── Ack {gateway, applied_seq} ─────────────────────────────┘
//! ```
//!
//! Invariants: a subscriber gets every change after its snapshot, in order and without gaps; lines
//! are signed with the feed key, which signs nothing else; a line bears the time just before its
//! rows were read, never that of its sending, so that a slow connection makes no old fact young; an
//! acknowledgement is believed only for a gateway that the configuration names.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use policies::feed::{
    ANSWER_BYTES_MAX, Ack, CLOCK_AHEAD_MS_MAX, HEARTBEAT_INTERVAL_MS, Hello, Message,
    PART_FACTS_MAX, Parts, Position, RESUME_CHANGES_MAX,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, watch};

use crate::Hub;
use crate::store::{self, Batch, Change};

/// Why a subscriber's connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The connection broke.
    #[error("feed connection failed")]
    Io(#[from] std::io::Error),
    /// The change log could not be read.
    #[error("feed cannot read the change log")]
    Store(#[from] store::Error),
    /// A line could not be made.
    #[error("feed line cannot be made")]
    Line(#[from] policies::feed::Error),
    /// The subscriber takes nothing.
    #[error("feed subscriber takes no lines")]
    Stuck,
    /// The subscriber did not say what it has.
    #[error("feed subscriber did not begin with a hello: is it of another version?")]
    Hello,
    /// The subscriber sent something else than acknowledgements.
    #[error("feed subscriber sent a line that is no acknowledgement")]
    Ack,
}

/// What is known of the gateways that the configuration names.
pub(crate) struct Gateways {
    seen: Mutex<BTreeMap<String, Seen>>,
    moved: watch::Sender<()>,
    snapshots: Semaphore,
}

#[derive(Clone, Copy)]
struct Seen {
    applied_seq: u64,
    heard: Option<Instant>,
    /// The last time at which a line may have begun a lease there.
    maybe_fed: Instant,
}

impl Gateways {
    pub(crate) fn new(ids: &[String]) -> Self {
        // Each may hold a lease from before this start.
        let fresh = Seen { applied_seq: 0, heard: None, maybe_fed: Instant::now() };
        let seen = ids.iter().map(|id| (id.clone(), fresh)).collect();
        Self {
            seen: Mutex::new(seen),
            moved: watch::channel(()).0,
            snapshots: Semaphore::new(SNAPSHOTS_MAX),
        }
    }

    fn hear(&self, ack: &Ack) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(&ack.gateway) {
            Some(gateway) => {
                gateway.applied_seq = gateway.applied_seq.max(ack.applied_seq);
                gateway.heard = Some(Instant::now());
            }
            None => {
                tracing::warn!(gateway = %ack.gateway, "acknowledgement of an unknown gateway");
                return;
            }
        }
        drop(seen);
        self.moved.send_replace(());
    }

    /// A line goes out to this gateway, or to one that the configuration does not name.
    fn fed(&self, gateway: Option<&str>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let named = gateway.is_some_and(|gateway| seen.contains_key(gateway));
        for (id, own) in seen.iter_mut() {
            if !named || gateway == Some(id) {
                own.maybe_fed = Instant::now();
            }
        }
    }

    /// The gateways that have not applied `seq` and of which `counts` holds.
    fn missing(&self, seq: u64, counts: impl Fn(&Seen) -> bool) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = seen.iter().filter(|(_, gateway)| gateway.applied_seq < seq);
        behind.filter(|(_, gateway)| counts(gateway)).map(|(id, _)| id.clone()).collect()
    }

    /// Waits until the gateways that listen have applied `seq`, at most `at_most`.
    pub(crate) async fn settle(&self, seq: u64, at_most: Duration) {
        let listens = |own: &Seen| own.heard.is_some_and(|heard| heard.elapsed() < LISTENING);
        let _ = self.wait(at_most, || self.missing(seq, listens)).await;
    }

    /// What an admin call answers about `seq`: with `wait`, only when every gateway has applied it
    /// or cannot be deciding from older facts any more, since nothing reached it for [`T3`].
    pub(crate) async fn acknowledgement(&self, seq: u64, wait: bool) -> Value {
        let at_most = if wait { T3 + Duration::from_secs(2) } else { Duration::ZERO };
        let may_allow = |own: &Seen| own.maybe_fed.elapsed() < T3;
        let missing = self.wait(at_most, || self.missing(seq, may_allow)).await;
        if missing.is_empty() {
            json!({ "seq": seq, "acknowledged": true })
        } else {
            json!({ "seq": seq, "acknowledged": false, "missing": missing })
        }
    }

    async fn wait(&self, at_most: Duration, missing: impl Fn() -> Vec<String>) -> Vec<String> {
        let deadline = Instant::now() + at_most;
        let mut moved = self.moved.subscribe();
        loop {
            let still = missing();
            let left = deadline.saturating_duration_since(Instant::now());
            if still.is_empty() || left.is_zero() {
                return still;
            }
            let _ = tokio::time::timeout(left.min(LOOK_AGAIN), moved.changed()).await;
        }
    }

    /// What `GET /status` shows.
    pub(crate) fn status(&self) -> Vec<Value> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let print = |(id, gateway): (&String, &Seen)| {
            let heard = gateway.heard.map(|heard| heard.elapsed().as_millis() as u64);
            json!({ "id": id, "applied_seq": gateway.applied_seq, "heard_ms_ago": heard })
        };
        seen.iter().map(print).collect()
    }
}

/// Serves one subscriber until its connection ends.
pub(crate) async fn serve(hub: Hub, stream: UnixStream) {
    match subscriber(&hub, stream).await {
        Ok(()) => tracing::info!("feed subscriber left"),
        Err(error) => {
            tracing::warn!(error = %crate::refusal::chain(&error), "feed subscriber dropped")
        }
    }
}

async fn subscriber(hub: &Hub, stream: UnixStream) -> Result<(), Error> {
    let (reading, writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let hello = tokio::time::timeout(HELLO_TIMEOUT, read_answer(&mut reading)).await;
    let hello = hello.map_err(|_| Error::Hello)??.ok_or(Error::Hello)?;
    let hello: Hello = serde_json::from_slice(&hello).map_err(|_| Error::Hello)?;
    let mut line = Line { hub, writing, gateway: hello.gateway.clone() };
    tokio::select! {
        ended = publish_to(hub, &mut line, hello) => ended,
        ended = hear_acks(hub, reading) => ended,
    }
}

async fn publish_to(hub: &Hub, stream: &mut Line<'_>, hello: Hello) -> Result<(), Error> {
    let mut changes = hub.store.changes();
    let Position { mut seq, mut head } = match hello.have {
        Some(have) if goes_on_from(hub, &have).await? => have,
        Some(_) | None => send_snapshot(hub, stream, hello.seen).await?,
    };
    // Nothing was said that makes the facts young: a heartbeat is due at once.
    let mut said: Option<Instant> = None;
    loop {
        changes.mark_unchanged();
        let Batch { read_at_ms: sent_at_ms, latest_seq, changes: news } =
            hub.store.changes_after(seq).await?;
        if news.is_empty() {
            let left = said.map_or(Duration::ZERO, |said| HEARTBEAT.saturating_sub(said.elapsed()));
            if left.is_zero() {
                let heartbeat = Message::Heartbeat { seq, head: head.clone(), sent_at_ms };
                stream.send(hub.feed_signer.line(&heartbeat)?).await?;
                said = Some(Instant::now());
                continue;
            }
            let _ = tokio::time::timeout(left, changes.changed()).await;
            continue;
        }
        for Change { seq: next, fact, head: head_after } in news {
            seq = next;
            let previous = std::mem::replace(&mut head, head_after);
            let message = Message::Change { seq, previous, latest_seq, sent_at_ms, fact };
            stream.send(hub.feed_signer.line(&message)?).await?;
        }
        said = Some(Instant::now());
    }
}

/// Whether the change log passed through `have`, and not so long ago that a snapshot is quicker.
async fn goes_on_from(hub: &Hub, have: &Position) -> Result<bool, Error> {
    let near = hub.store.seq().saturating_sub(have.seq) <= RESUME_CHANGES_MAX;
    Ok(near && hub.store.head_at(have.seq).await?.as_ref() == Some(&have.head))
}

/// Sends every current fact, to one that has `seen` a place of the log; returns where they stand.
async fn send_snapshot(
    hub: &Hub,
    stream: &mut Line<'_>,
    seen: Option<Position>,
) -> Result<Position, Error> {
    // Each holds a reading connection for as long as it takes.
    let _turn = hub.gateways.snapshots.acquire().await;
    let mut snapshot = hub.store.snapshot().await?;
    let mut parts = Parts::begin(snapshot.position.clone(), snapshot.read_at_ms)?;
    let mut chunks = std::pin::pin!(snapshot.facts().try_chunks(PART_FACTS_MAX));
    while let Some(facts) = chunks.try_next().await.map_err(|error| error.1)? {
        stream.send(parts.part(&hub.feed_signer, &facts)?).await?;
    }
    let seen_head = match seen {
        Some(seen) => hub.store.head_at(seen.seq).await?,
        None => None,
    };
    let (line, position) = parts.end(&hub.feed_signer, seen_head)?;
    stream.send(line).await?;
    Ok(position)
}

/// The sending side of one subscriber.
struct Line<'a> {
    hub: &'a Hub,
    writing: OwnedWriteHalf,
    gateway: Option<String>,
}

impl Line<'_> {
    async fn send(&mut self, mut line: String) -> Result<(), Error> {
        line.push('\n');
        self.hub.gateways.fed(self.gateway.as_deref());
        tokio::time::timeout(SEND_TIMEOUT, self.writing.write_all(line.as_bytes()))
            .await
            .map_err(|_| Error::Stuck)??;
        Ok(())
    }
}

async fn hear_acks(hub: &Hub, mut stream: BufReader<OwnedReadHalf>) -> Result<(), Error> {
    while let Some(line) = read_answer(&mut stream).await? {
        let ack: Ack = serde_json::from_slice(&line).map_err(|_| Error::Ack)?;
        hub.gateways.hear(&ack);
    }
    Ok(())
}

/// One line of the subscriber's; `None` at the end.
async fn read_answer(stream: &mut BufReader<OwnedReadHalf>) -> Result<Option<Vec<u8>>, Error> {
    let mut line = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).await?;
    Ok((read > 0).then_some(line))
}

const HEARTBEAT: Duration = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
/// After this silence a gateway lets nothing through that rests on the hub's facts, however its
/// clock differs.
const T3: Duration = Duration::from_millis(10_000 + CLOCK_AHEAD_MS_MAX);
/// A gateway that was heard within this time listens.
const LISTENING: Duration = Duration::from_millis(1_500);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Snapshots that are sent at the same time; more wait for their turn.
const SNAPSHOTS_MAX: usize = 2;
