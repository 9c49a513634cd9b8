//! The gateway's records, as far as they are about a person: indexed for the access history.
//!
//! ```text
//!  gateway ── {"log"} · {"number","at","event","hash"} · {"through"} ──► follow ─► line ─► Batch
//!                                              gateway_decisions, … ◄── index (one short commit)
//!  operator ── POST /access-index/rebuild ──► index begins anew ──► follow asks from record 1
//! ```
//!
//! Invariants: rows and the number up to which they were made are committed together, so nothing
//! is indexed twice or left out; a line that is not understood ends the connection and is asked
//! for again, never skipped; a commit holds at most [`ROWS_MAX`] rows, so that users who write wait
//! for no more than one of them. A log of the gateway that is not the one indexed is told by its
//! name or by the hash of the last record: then nothing is removed, and the other log is indexed
//! beside. What the index holds can be made anew from the gateway's log at will.

mod index;
mod line;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::Hub;
use crate::body::{OptionalJsonBody, Text};
use crate::refusal::{Refusal, chain};
use crate::work::{Deed, Work};
use index::{Batch, Position};
use line::{Hello, Line};
use sqlx::sqlite::SqliteConnection;

/// Why the stream is not followed any more.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// There is nobody to connect to.
    #[error("record stream `{}` cannot be reached: is the gateway running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else listens there.
    #[error("record stream is served by uid {0}, which is not the hub's own: nothing was read")]
    OtherUid(u32),
    /// The connection broke.
    #[error("record stream broke off")]
    Io(#[from] std::io::Error),
    /// The gateway hung up.
    #[error("record stream was closed by the gateway")]
    Closed,
    /// Nothing came, not even a number.
    #[error("record stream was silent for {} s", SILENCE_MAX.as_secs())]
    Silent,
    /// A line has no end.
    #[error("record stream: the line after record {after} is longer than {LINE_BYTES_MAX} bytes")]
    TooLong {
        /// The last record before it.
        after: u64,
    },
    /// A line is not understood.
    #[error(
        "record stream: the line after record {after} is not understood; it is asked for again"
    )]
    Line {
        /// The last record before it.
        after: u64,
        /// What is wrong with it.
        #[source]
        source: line::Error,
    },
    /// A number is not above the one before.
    #[error("record stream: number {number} came after record {after}; it is asked for again")]
    OutOfOrder {
        /// The last record before it.
        after: u64,
        /// What came.
        number: u64,
    },
    /// The gateway did not say which log it is, or said it in between.
    #[error(
        "record stream does not begin with the name of its log: are gateway and hub of one version?"
    )]
    NoHello,
    /// The name, hash or length is not that of the log that was indexed.
    #[error(
        "the gateway has another log than the one indexed up to record {indexed}: what is indexed \
         is kept, and its log `{origin}` with {last} records is indexed from the first"
    )]
    OtherLog {
        /// The last record that was indexed.
        indexed: u64,
        /// The other log's name.
        origin: String,
        /// Its last record.
        last: u64,
    },
    /// It can not be recorded that another log is indexed.
    #[error("the change to another log of the gateway cannot be recorded: {0}")]
    Refused(String),
    /// The rows cannot be read or written.
    #[error("access index cannot be read or written")]
    Store(#[from] sqlx::Error),
}

/// What a running hub knows of its index beside the rows.
pub(crate) struct AccessIndex {
    socket: Option<PathBuf>,
    connected: AtomicBool,
    /// When the gateway last said how far it has come, once everything before was indexed.
    whole_at: Mutex<Option<Instant>>,
    anew: Notify,
}

impl AccessIndex {
    /// An index of the records that are served at `socket`; of none without one.
    pub(crate) fn new(socket: Option<PathBuf>) -> Self {
        Self {
            socket,
            connected: AtomicBool::new(false),
            whole_at: Mutex::default(),
            anew: Notify::new(),
        }
    }

    /// Whether the index holds what the gateway recorded up to some seconds ago, unless it is being
    /// made anew.
    pub(crate) fn is_current(&self) -> bool {
        let whole_at = *self.whole_at.lock().unwrap_or_else(PoisonError::into_inner);
        whole_at.is_some_and(|at| at.elapsed() < LAG_MAX)
    }

    fn set_whole_at(&self, at: Option<Instant>) {
        *self.whole_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

/// Follows the gateway's stream until `stop` turns true, through restarts of the gateway.
pub(crate) async fn follow(hub: Hub, mut stop: watch::Receiver<bool>) {
    let Some(socket) = hub.access_index.socket.clone() else { return };
    let (mut pause, mut told) = (PAUSE_MIN, String::new());
    loop {
        let began = Instant::now();
        let mut session = Session::new(&hub);
        let ended = tokio::select! {
            ended = session.run(&socket) => ended,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let is_sound = session.has_advanced || began.elapsed() > PAUSE_MAX;
        drop(session);
        let Err(error) = ended else { continue };
        // A log that contradicts itself is not read again and again without a pause.
        if is_sound && !matches!(error, Error::OtherLog { .. }) {
            (pause, told) = (PAUSE_MIN, String::new());
        }
        let text = chain(&error);
        if text == told {
            tracing::debug!(error = text, "the gateway's records are not indexed");
        } else {
            tracing::warn!(error = text, "the gateway's records are not indexed");
            told = text;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            () = hub.access_index.anew.notified() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// One connection to the stream, and how far the index has come on it.
struct Session<'a> {
    hub: &'a Hub,
    position: Position,
    batch: Batch,
    flush_at: Option<Instant>,
    /// The last record of the log when the connection began.
    last: u64,
    /// Whether everything up to that one is indexed.
    has_caught_up: bool,
    has_advanced: bool,
}

impl<'a> Session<'a> {
    fn new(hub: &'a Hub) -> Self {
        Self {
            hub,
            position: Position::default(),
            batch: Batch::default(),
            flush_at: None,
            last: 0,
            has_caught_up: false,
            has_advanced: false,
        }
    }

    /// Indexes what comes; `Ok` when the index begins anew.
    async fn run(&mut self, socket: &Path) -> Result<(), Error> {
        let store = &self.hub.store;
        self.position = index::clear(store).await?;
        let (mut lines, _open) = connect(socket, self.position.through + 1).await?;
        let connected = Connected(&self.hub.access_index);
        let first = tokio::time::timeout(SILENCE_MAX, lines.next(self.position.through)).await;
        self.greet(&first.unwrap_or(Err(Error::Silent))?).await?;
        connected.is_so();
        loop {
            let flush_at = self.flush_at.unwrap_or_else(|| Instant::now() + SILENCE_MAX);
            let step = tokio::select! {
                line = tokio::time::timeout(SILENCE_MAX, lines.next(self.position.through)) => {
                    self.take_line(line.unwrap_or(Err(Error::Silent))).await?
                }
                () = tokio::time::sleep_until(flush_at) => self.flush().await?,
                () = self.hub.access_index.anew.notified() => Step::Anew,
            };
            if step == Step::Anew {
                return Ok(());
            }
        }
    }

    /// Takes the first line, which says which log it is.
    async fn greet(&mut self, line: &[u8]) -> Result<(), Error> {
        let after = self.position.through;
        let Line::Hello(hello) =
            line::parse(line).map_err(|source| Error::Line { after, source })?
        else {
            return Err(Error::NoHello);
        };
        if !self.position.is_of(&hello) {
            begin_log(self.hub, &self.position, &hello).await?;
            let Hello { origin, last, .. } = hello;
            return Err(Error::OtherLog { indexed: after, origin, last });
        }
        if self.position.rebuild_until > hello.last || self.position.origin.is_none() {
            self.position.rebuild_until = self.position.rebuild_until.min(hello.last);
            self.position.origin = Some(hello.origin);
            self.flush_within(FLUSH_INTERVAL);
        }
        self.last = hello.last;
        Ok(())
    }

    /// Takes one line in; what came before a bad one is kept.
    async fn take_line(&mut self, line: Result<Vec<u8>, Error>) -> Result<Step, Error> {
        let after = self.position.through;
        let line = line
            .and_then(|line| line::parse(&line).map_err(|source| Error::Line { after, source }));
        match line.and_then(|line| self.take(line)) {
            Ok(()) if self.batch.rows() >= ROWS_MAX => self.flush().await,
            Ok(()) => Ok(Step::On),
            Err(error) => {
                self.flush().await?;
                Err(error)
            }
        }
    }

    fn take(&mut self, line: Line) -> Result<(), Error> {
        let after = self.position.through;
        match line {
            Line::Record(record) if record.number <= after => {
                return Err(Error::OutOfOrder { after, number: record.number });
            }
            Line::Record(record) => {
                self.position.through = record.number;
                self.position.hash = Some(record.hash.clone());
                self.batch.push(record);
                self.flush_within(FLUSH_INTERVAL);
            }
            Line::Through(number, _) if number < after => {
                return Err(Error::OutOfOrder { after, number });
            }
            Line::Through(number, hash) => self.note(number, hash),
            Line::Hello(_) => return Err(Error::NoHello),
        }
        Ok(())
    }

    /// Notes that everything up to `number` was sent.
    fn note(&mut self, number: u64, hash: Option<String>) {
        if number > self.position.through {
            self.position.through = number;
            self.position.hash = hash;
            self.flush_within(NOTE_INTERVAL);
        }
        if self.batch.rows() == 0 {
            self.look_whether_caught_up();
        }
        if self.has_caught_up {
            self.hub.access_index.set_whole_at(Some(Instant::now()));
        }
    }

    /// To be called when nothing waits for the commit.
    fn look_whether_caught_up(&mut self) {
        self.has_caught_up |= self.position.through >= self.last;
    }

    fn flush_within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.flush_at = Some(self.flush_at.map_or(at, |before| before.min(at)));
    }

    /// Commits what is waiting, with the number that it goes up to.
    async fn flush(&mut self) -> Result<Step, Error> {
        if self.flush_at.take().is_none() {
            return Ok(Step::On);
        }
        let batch = std::mem::take(&mut self.batch);
        if index::add(&self.hub.store, &self.position, &batch).await? {
            self.has_advanced = true;
            self.look_whether_caught_up();
            Ok(Step::On)
        } else {
            Ok(Step::Anew)
        }
    }
}

/// How a session goes on.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    On,
    Anew,
}

/// Says that the stream is connected, from its first good line until this is dropped.
struct Connected<'a>(&'a AccessIndex);

impl Connected<'_> {
    fn is_so(&self) {
        if !self.0.connected.swap(true, Ordering::Relaxed) {
            tracing::info!("the gateway's records are indexed");
        }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connected.store(false, Ordering::Relaxed);
        self.0.set_whole_at(None);
    }
}

/// Begins with another log of the gateway, on record.
async fn begin_log(hub: &Hub, position: &Position, hello: &Hello) -> Result<(), Error> {
    let object = audit_log::Object::named(format!("gateway-log/{}", hello.origin));
    let refused = |refusal: Refusal| Error::Refused(refusal.code());
    let deed = Deed::by_hub("access-index.other-log", object);
    let mut work = Work::begin(hub, deed).await.map_err(refused)?;
    let result = index::begin_log(work.conn(), hello).await.map_err(Refusal::from);
    work.effect(format!(
        "the gateway came with another log than `{}`, indexed up to record {}: that index is kept",
        position.origin.as_deref().unwrap_or("unknown"),
        position.through,
    ));
    work.finish(result).await.map_err(refused)
}

/// Whether the index is being made anew.
pub(crate) async fn is_rebuilding(conn: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    Ok(index::position(conn).await?.is_rebuilding())
}

/// Connects and asks for every record from `from` on. The half to write is kept open.
async fn connect(path: &Path, from: u64) -> Result<(Lines, OwnedWriteHalf), Error> {
    let failed = |source| Error::Connect { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).await.map_err(failed)?;
    let peer = stream.peer_cred()?.uid();
    if peer != rustix::process::geteuid().as_raw() {
        return Err(Error::OtherUid(peer));
    }
    let (read, mut write) = stream.into_split();
    let ask = format!("{}\n", json!({ "from": from }));
    tokio::time::timeout(SILENCE_MAX, write.write_all(ask.as_bytes()))
        .await
        .map_err(|_| Error::Silent)??;
    Ok((Lines { reader: BufReader::new(read), line: Vec::new() }, write))
}

/// Reads lines; nothing is lost when a read is given up.
struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    /// The next line, without its end.
    async fn next(&mut self, after: u64) -> Result<Vec<u8>, Error> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                return Err(Error::Closed);
            }
            let (part, used, is_whole) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(end) => (chunk.get(..end).unwrap_or_default(), end + 1, true),
                None => (chunk, chunk.len(), false),
            };
            self.line.extend_from_slice(part);
            self.reader.consume(used);
            if self.line.len() > LINE_BYTES_MAX {
                return Err(Error::TooLong { after });
            }
            if is_whole {
                return Ok(std::mem::take(&mut self.line));
            }
        }
    }
}

/// `GET /access-index` of the admin socket.
pub(crate) async fn status(State(hub): State<Hub>) -> Result<Response, Refusal> {
    Ok(axum::Json(describe(&hub).await?).into_response())
}

/// What the operator may say with `POST /access-index/rebuild`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rebuild {
    #[serde(default)]
    operator: Option<Text<64>>,
}

/// `POST /access-index/rebuild` of the admin socket: drops what came from the stream and asks for
/// it again from record 1.
pub(crate) async fn rebuild(
    State(hub): State<Hub>,
    OptionalJsonBody(rebuild): OptionalJsonBody<Rebuild>,
) -> Result<Response, Refusal> {
    let operator = rebuild.operator.as_ref().map_or("admin", Text::as_str);
    let object = audit_log::Object::named("access-index");
    let deed = Deed::by_operator(operator, "access-index.rebuild", object);
    let mut work = Work::begin(&hub, deed).await?;
    let result = match &hub.access_index.socket {
        Some(_) => index::set_anew(work.conn()).await.map_err(Refusal::from),
        None => Err(not_configured()),
    };
    work.effect("index of the gateway's records begins anew");
    work.finish(result).await?;
    hub.access_index.anew.notify_one();
    Ok(axum::Json(describe(&hub).await?).into_response())
}

async fn describe(hub: &Hub) -> Result<Value, Refusal> {
    let (position, records) = index::look(&hub.store).await?;
    Ok(json!({
        "through": position.through,
        "records": records,
        "connected": hub.access_index.connected.load(Ordering::Relaxed),
        "rebuilding": position.is_rebuilding(),
        "log": position.log,
    }))
}

fn not_configured() -> Refusal {
    Refusal::coded(
        StatusCode::CONFLICT,
        "access_index_not_configured",
        "the hub does not index the gateway's records: set `audit_stream_socket` in hub.toml",
        "ゲートウェイの記録の索引は設定されていません。設定の audit_stream_socket をご確認ください。",
    )
}

/// Rows that one commit may add.
const ROWS_MAX: usize = 500;
/// How long a record may wait for the commit.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// How long a number without records may wait for the commit.
const NOTE_INTERVAL: Duration = Duration::from_secs(2);
/// The gateway says each second how far it has come; longer ago than this, the index lags.
const LAG_MAX: Duration = Duration::from_secs(10);
/// The stream says something each second.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// An event has at most 64 KiB.
const LINE_BYTES_MAX: usize = 128 * 1024;
