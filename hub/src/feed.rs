//! The hub's facts feed: what the gateways decide from, as it is committed here.
//!
//! ```text
//!  change_log ──► publish_to(stream): Snapshot, Change …, Heartbeat each 500 ms ──► gateway
//!  Gateways   ◄── Ack {gateway, applied_seq} ──────────────────────────────────────┘
//! ```
//!
//! Invariants: a subscriber gets every change after its snapshot, in order and without gaps; lines
//! are signed with the feed key, which signs nothing else; a line bears the time just before its
//! rows were read, never that of its sending, so that a slow connection makes no old fact young; an
//! acknowledgement is believed only for a gateway that the configuration names.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use policies::feed::{Ack, HEARTBEAT_INTERVAL_MS, Message};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::Hub;
use crate::store::{self, Batch, Change, Snapshot};

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
    /// The subscriber sent something else than acknowledgements.
    #[error("feed subscriber sent a line that is no acknowledgement")]
    Ack,
}

/// What is known of the gateways that the configuration names.
pub(crate) struct Gateways {
    started: Instant,
    seen: Mutex<BTreeMap<String, Seen>>,
    moved: watch::Sender<()>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    applied_seq: u64,
    heard: Option<Instant>,
}

impl Gateways {
    pub(crate) fn new(ids: &[String]) -> Self {
        let seen = ids.iter().map(|id| (id.clone(), Seen::default())).collect();
        Self { started: Instant::now(), seen: Mutex::new(seen), moved: watch::channel(()).0 }
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

    /// The gateways that have not applied `seq` and were heard within `window` (or not yet, since
    /// the hub started within it).
    fn missing(&self, seq: u64, window: Duration, new_counts: bool) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = |gateway: &Seen| match gateway.heard {
            Some(heard) => heard.elapsed() < window,
            None => new_counts && self.started.elapsed() < window,
        };
        let behind = seen.iter().filter(|(_, gateway)| gateway.applied_seq < seq);
        behind.filter(|(_, gateway)| alive(gateway)).map(|(id, _)| id.clone()).collect()
    }

    /// Waits until the gateways that listen have applied `seq`, at most `at_most`.
    pub(crate) async fn settle(&self, seq: u64, at_most: Duration) {
        let missing = || self.missing(seq, LISTENING, false);
        let _ = self.wait(at_most, missing).await;
    }

    /// What an admin call answers about `seq`: with `wait`, only when every gateway has applied it
    /// or has been silent for [`T3`], after which it denies by itself.
    pub(crate) async fn acknowledgement(&self, seq: u64, wait: bool) -> Value {
        let at_most = if wait { T3 + Duration::from_secs(2) } else { Duration::ZERO };
        let missing = self.wait(at_most, || self.missing(seq, T3, true)).await;
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
    let (reading, writing) = stream.into_split();
    let ended = tokio::select! {
        ended = publish_to(&hub, writing) => ended,
        ended = hear_acks(&hub, reading) => ended,
    };
    match ended {
        Ok(()) => tracing::info!("feed subscriber left"),
        Err(error) => {
            tracing::warn!(error = %crate::refusal::chain(&error), "feed subscriber dropped")
        }
    }
}

async fn publish_to(hub: &Hub, mut stream: OwnedWriteHalf) -> Result<(), Error> {
    let mut changes = hub.store.changes();
    let Snapshot { read_at_ms, mut seq, mut head, facts } = hub.store.snapshot().await?;
    let message = Message::Snapshot { seq, head: head.clone(), sent_at_ms: read_at_ms, facts };
    send(hub, &mut stream, &message).await?;
    let mut said = Instant::now();
    loop {
        changes.mark_unchanged();
        let Batch { read_at_ms: sent_at_ms, latest_seq, changes: news } =
            hub.store.changes_after(seq).await?;
        if news.is_empty() {
            if said.elapsed() >= HEARTBEAT {
                let heartbeat = Message::Heartbeat { seq, head: head.clone(), sent_at_ms };
                send(hub, &mut stream, &heartbeat).await?;
                said = Instant::now();
            }
            let left = HEARTBEAT.saturating_sub(said.elapsed());
            let _ = tokio::time::timeout(left, changes.changed()).await;
            continue;
        }
        for Change { seq: next, fact, head: head_after } in news {
            seq = next;
            let previous = std::mem::replace(&mut head, head_after);
            let message = Message::Change { seq, previous, latest_seq, sent_at_ms, fact };
            send(hub, &mut stream, &message).await?;
        }
        said = Instant::now();
    }
}

async fn send(hub: &Hub, stream: &mut OwnedWriteHalf, message: &Message) -> Result<(), Error> {
    let mut line = hub.feed_signer.line(message)?;
    line.push('\n');
    tokio::time::timeout(SEND_TIMEOUT, stream.write_all(line.as_bytes()))
        .await
        .map_err(|_| Error::Stuck)??;
    Ok(())
}

async fn hear_acks(hub: &Hub, stream: OwnedReadHalf) -> Result<(), Error> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut stream).take(ACK_BYTES_MAX).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(());
        }
        let ack: Ack = serde_json::from_slice(&line).map_err(|_| Error::Ack)?;
        hub.gateways.hear(&ack);
    }
}

const HEARTBEAT: Duration = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
/// After this silence a gateway lets nothing through that rests on the hub's facts.
const T3: Duration = Duration::from_secs(10);
/// A gateway that was heard within this time listens.
const LISTENING: Duration = Duration::from_millis(1_500);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const ACK_BYTES_MAX: u64 = 4_096;
