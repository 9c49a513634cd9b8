//! Offers the audit log's records on a unix socket: the hub keeps its access histories from them.
//!
//! The client sends one line, `{"from": N}`, the first record that it wants; 1 is everything that
//! is kept. It is answered with JSON lines, in the order of the log and without end:
//!
//! ```text
//! {"log":ORIGIN,"before":HASH,"last":N}                            once, first: which log this is
//! {"number":N,"at":AT,"event":{…},"hash":HASH,"party_name":"…"}    a decision, a completion, …
//! {"through":N,"hash":HASH}                                        everything up to N was sent
//! ```
//!
//! `log` is the name of the key that signs the log's checkpoints, `before` the hash of the record
//! before N (64 zeros before record 1; left out where that record was deleted or is not there yet),
//! and `last` the number of the last record on disk: by these a client knows its log again.
//!
//! Other records than decisions, completions and counted denials are passed over. `through` comes
//! at least each [`HEARTBEAT`]. `party_name` is the office's name from the facts of the moment, and
//! left out where none is known.
//!
//! Invariants: the socket has mode 0600 and the peer our user id; no record is sent before it is on
//! disk; at most [`CLIENTS_MAX`] clients, each with bounded buffers, and one that does not read for
//! [`WRITE_TIMEOUT`] is dropped. Nothing of this can hold up the log or a request.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_log::{Actor, Event};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::facts_feed::{LiveFacts, chain};
use crate::takeover::PrivateSocket;
use follow::{Follower, Seen};

mod follow;

/// Clients at once.
pub const CLIENTS_MAX: usize = 4;
/// Longest time between two `through` lines, as long as the client reads.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Longest time that a client may take to read what is written.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: u64 = 256;
/// The log is looked at no more often, so that many small commits are one step.
const PAUSE: Duration = Duration::from_millis(20);
/// When nothing else was written for so long, `through` is said again.
const SILENCE_MAX: Duration = HEARTBEAT.saturating_sub(Duration::from_millis(200));
const CHUNK_BYTES: usize = 32 * 1024;
const CHUNKS_MAX: usize = 8;

/// Why the socket can not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens there.
    #[error("`{}` is in use by a running process: stop it first", .0.display())]
    InUse(PathBuf),
    /// The socket can not be made.
    #[error(
        "the socket `{}` cannot be made: check that its folder exists and is ours",
        path.display()
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Why a client was dropped.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the client did not say in time from which record it wants to read")]
    Silent,
    #[error("the client's line is not `{{\"from\": N}}` with N from 1")]
    Request,
    #[error("the client does not read")]
    Slow,
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the log cannot be read")]
    Log(#[from] follow::Error),
    #[error("the reader broke off")]
    Broken,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    from: u64,
}

/// Which log this is.
#[derive(Serialize, Clone)]
struct Hello {
    log: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    last: u64,
}

#[derive(Serialize)]
struct Line<'r> {
    number: u64,
    at: &'r str,
    event: &'r Event,
    hash: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    party_name: Option<String>,
}

#[derive(Serialize, Clone, Default)]
struct Through {
    through: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

/// The listening socket; its file goes when this is dropped.
pub struct Socket(PrivateSocket);

impl Socket {
    /// Listens on `path`, mode 0600; replaces a socket that a killed process left behind.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Socket`].
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Socket { path: path.to_owned(), source };
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(Error::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed(error));
            }
            Err(_) => {}
        }
        PrivateSocket::bind(path).map(Self).map_err(failed)
    }
}

/// The server of the records.
pub struct AuditStream {
    /// The log's folder.
    pub dir: PathBuf,
    /// The name of the key that signs its checkpoints.
    pub origin: String,
    /// The number of the last record on disk.
    pub committed: watch::Receiver<u64>,
    /// Where the names of offices are looked up.
    pub facts: Arc<LiveFacts>,
    /// Turns `true` when no record comes here any more: the gateway drains, or gives its log away.
    pub shutdown: watch::Receiver<bool>,
}

impl AuditStream {
    /// Serves clients until it is told to stop.
    pub async fn run(self: Arc<Self>, socket: Socket) {
        let tasks = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(CLIENTS_MAX));
        let mut shutdown = self.shutdown.clone();
        loop {
            let stream = tokio::select! {
                stream = socket.0.accept() => stream,
                _ = shutdown.wait_for(|stopped| *stopped) => break,
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::warn!("audit stream: more than {CLIENTS_MAX} clients, connection refused");
                continue;
            };
            let server = Arc::clone(&self);
            tasks.spawn(async move {
                server.serve(stream).await;
                drop(slot);
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn serve(&self, stream: UnixStream) {
        let mut shutdown = self.shutdown.clone();
        let ended = tokio::select! {
            ended = self.client(stream) => ended,
            _ = shutdown.wait_for(|draining| *draining) => return,
        };
        if let Err(lost) = ended {
            tracing::info!(reason = chain(&lost), "audit stream: client dropped");
        }
    }

    async fn client(&self, stream: UnixStream) -> Result<(), Lost> {
        let (read, write) = stream.into_split();
        let from = timeout(REQUEST_TIMEOUT, request(read)).await.map_err(|_| Lost::Silent)??;
        let hello = self.hello(from).await?;
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let follower = Follower::new(&self.dir, from, hello.before.clone());
        tokio::try_join!(self.follow(follower, sender), send(write, chunks, from, hello))?;
        Ok(())
    }

    async fn hello(&self, from: u64) -> Result<Hello, Lost> {
        let (log, last) = (self.origin.clone(), *self.committed.borrow());
        let dir = self.dir.clone();
        let before = tokio::task::spawn_blocking(move || hash_before(&dir, from, last));
        let before = before.await.map_err(|_| Lost::Broken)??;
        Ok(Hello { log, before, last })
    }

    /// Reads the log on threads that may block, a step for all that was committed meanwhile.
    async fn follow(
        &self,
        mut follower: Follower,
        sender: mpsc::Sender<Chunk>,
    ) -> Result<(), Lost> {
        let mut committed = self.committed.clone();
        while !sender.is_closed() {
            let through = *committed.borrow_and_update();
            let outbox = Outbox::new(Arc::clone(&self.facts), sender.clone());
            let step = move || step(follower, through, outbox);
            follower = tokio::task::spawn_blocking(step).await.map_err(|_| Lost::Broken)??;
            tokio::time::sleep(PAUSE).await;
            if follower.read() >= through && committed.changed().await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

async fn request(read: OwnedReadHalf) -> Result<u64, Lost> {
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_BYTES_MAX)).read_line(&mut line).await?;
    match serde_json::from_str(&line) {
        Ok(Request { from: from @ 1.. }) if line.ends_with('\n') => Ok(from),
        Ok(_) | Err(_) => Err(Lost::Request),
    }
}

/// The hash of the record before `from`, if it is among those up to `last`.
fn hash_before(dir: &Path, from: u64, last: u64) -> Result<Option<String>, follow::Error> {
    let number = from - 1;
    if number == 0 {
        return Ok(Some("0".repeat(64)));
    }
    if number > last {
        return Ok(None);
    }
    let entry = audit_log::read_from(dir, number).next().transpose()?;
    Ok(entry.filter(|entry| entry.number == number).map(|entry| entry.hash))
}

/// Writes which log it is, then what comes, and `through` again when nothing does.
async fn send(
    mut write: OwnedWriteHalf,
    mut chunks: mpsc::Receiver<Chunk>,
    from: u64,
    hello: Hello,
) -> Result<(), Lost> {
    let mut first = Vec::new();
    push_line(&mut first, &hello);
    timeout(WRITE_TIMEOUT, write.write_all(&first)).await.map_err(|_| Lost::Slow)??;
    let mut through = Through { through: (from - 1).min(hello.last), hash: hello.before };
    loop {
        let chunk = match timeout(SILENCE_MAX, chunks.recv()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(()),
            Err(_) => Chunk::new(Vec::new(), through.clone()),
        };
        through = chunk.through;
        timeout(WRITE_TIMEOUT, write.write_all(&chunk.bytes)).await.map_err(|_| Lost::Slow)??;
    }
}

/// Reads everything up to record `through`.
fn step(
    mut follower: Follower,
    through: u64,
    mut outbox: Outbox,
) -> Result<Follower, follow::Error> {
    follower.read_through(through, &mut |seen| outbox.put(seen))?;
    // Where the client asked for records that are not there yet, nothing is before this place.
    let hash = follower.hash().filter(|_| follower.read() <= through);
    outbox.flush(follower.read().min(through), hash);
    Ok(follower)
}

/// Whole lines, the last of them a `through`.
struct Chunk {
    bytes: Vec<u8>,
    through: Through,
}

impl Chunk {
    fn new(mut bytes: Vec<u8>, through: Through) -> Self {
        push_line(&mut bytes, &through);
        Self { bytes, through }
    }
}

/// Collects lines into chunks for one client.
struct Outbox {
    facts: Arc<LiveFacts>,
    sender: mpsc::Sender<Chunk>,
    bytes: Vec<u8>,
    flushed: Instant,
}

impl Outbox {
    fn new(facts: Arc<LiveFacts>, sender: mpsc::Sender<Chunk>) -> Self {
        Self { facts, sender, bytes: Vec::new(), flushed: Instant::now() }
    }

    /// Takes one record; says whether the client is still there.
    fn put(&mut self, seen: Seen<'_>) -> bool {
        let Seen { number, at, event, hash } = seen;
        if let Some(party) = offered(event) {
            let party_name = self.party_name(&party);
            push_line(&mut self.bytes, &Line { number, at, event, hash, party_name });
        }
        let due = self.bytes.len() >= CHUNK_BYTES || self.flushed.elapsed() >= SILENCE_MAX / 2;
        !due || self.flush(number, Some(hash))
    }

    fn flush(&mut self, through: u64, hash: Option<&str>) -> bool {
        let through = Through { through, hash: hash.map(str::to_owned) };
        let chunk = Chunk::new(std::mem::take(&mut self.bytes), through);
        self.flushed = Instant::now();
        self.sender.blocking_send(chunk).is_ok()
    }

    fn party_name(&self, party: &Party) -> Option<String> {
        let number = party.0.as_deref()?.parse().ok()?;
        let facts = self.facts.current();
        let name = facts.office(number).map(|office| office.name.clone());
        name.filter(|name| !name.is_empty())
    }
}

/// 事業所番号 of the office that a record is about, where it is about one.
struct Party(Option<String>);

/// Whose record it is, if it is one of those that are offered.
fn offered(event: &Event) -> Option<Party> {
    match event {
        Event::Decision { actor, .. } => Some(Party(actor.office.clone())),
        Event::Completion { .. } => Some(Party(None)),
        Event::Aggregated { what, party, .. } if what == "denials" => {
            Some(Party(Actor::of(party).office))
        }
        Event::Aggregated { .. }
        | Event::HandshakeFailed { .. }
        | Event::Intent { .. }
        | Event::Effect { .. }
        | Event::Outcome { .. }
        | Event::ServiceStarted { .. }
        | Event::ServiceStopped
        | Event::HandedOver
        | Event::Checkpoint { .. }
        | Event::TailCut { .. }
        | Event::Unfinished { .. }
        | Event::Unavailable { .. }
        | Event::ClockStepped { .. }
        | Event::SegmentsDeleted { .. } => None,
    }
}

fn push_line(bytes: &mut Vec<u8>, line: &impl Serialize) {
    let start = bytes.len();
    // An event came from JSON, so it has a JSON form; a half line must not stay in any case.
    if serde_json::to_writer(&mut *bytes, line).is_err() {
        bytes.truncate(start);
        return;
    }
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests;
