//! The door of the log: [`AuditLog::append`] puts an event into the queue, the [`Receipt`] tells
//! when it is on disk. Behind it one writer thread ([`crate::writer`]) commits whatever has queued
//! up in one write and one fdatasync (group commit), so that the disk's latency is paid once for
//! all requests that wait together.
//!
//! INVARIANT: times are given under the queue's lock, so the order of records is the order of
//! appends and `at` never decreases, even when the clock does ([`crate::clock`]).
//!
//! INVARIANT: a log that can not be written says so: from the first failed write, sync or breach
//! of the disk reserve on, every waiting receipt and every append gets [`Error::Unavailable`],
//! until the writer has found a sound state again by itself. A record whose receipt failed is not
//! in the log afterwards (unless the process died in between).
//!
//! INVARIANT: refusals ([`Event::is_refusal`]), which anyone outside can cause, never stop the
//! others: floods of them are counted ([`crate::flood`]), they may fill half of the queue, and the
//! last [`PERMIT_RESERVE_BYTES`] of the disk are not for them.
//!
//! Limits: [`QUEUE_BYTES_MAX`], [`DISK_RESERVE_BYTES`], [`crate::encoding::EVENT_BYTES_MAX`]; with
//! [`Durability::Async`] at most [`UNSYNCED_RECORDS_MAX`] written records or [`SYNC_INTERVAL`], and
//! [`ASYNC_QUEUE_BYTES_MAX`] of queued ones when the disk stalls, can be lost.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::checkpoint::CheckpointKey;
use crate::clock::Clock;
use crate::encoding::EVENT_BYTES_MAX;
use crate::entry::Event;
use crate::flood::Flood;
use crate::handover::Link;
use crate::keeper::RETENTION_GRACE;
use crate::metrics::Metrics;
use crate::segment::Disk;
use crate::writer::Writer;

/// Most bytes of events that may wait for the disk; beyond it an append is refused.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// As [`QUEUE_BYTES_MAX`], with [`Durability::Async`]: what may be lost beside what is unsynced.
pub const ASYNC_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Free bytes the file system must keep; below it the log counts as unavailable.
pub const DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Free bytes above the reserve that only permits and completed work may use; refusals are only
/// counted when it is reached.
pub const PERMIT_RESERVE_BYTES: u64 = 192 * 1024 * 1024;
/// Most records that [`Durability::Async`] leaves without fdatasync.
pub const UNSYNCED_RECORDS_MAX: u64 = 4096;
/// Longest time that [`Durability::Async`] leaves a record without fdatasync.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(50);
/// Longest time that records gather before they are written when nobody waits for them
/// ([`Durability::Async`]): waking the writer for each costs more than the record. Part of
/// [`SYNC_INTERVAL`].
pub(crate) const GATHER_INTERVAL: Duration = Duration::from_millis(10);
/// Records that are written without further gathering.
const GATHER_RECORDS_MAX: usize = 512;
/// Pause between attempts to write again after a failure.
pub const REOPEN_INTERVAL: Duration = Duration::from_millis(500);
/// Default of [`Options::segment_bytes_max`].
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Default of [`Options::retention`]: five years.
pub const RETENTION: Duration = Duration::from_secs(1826 * 24 * 3600);

/// Why the log can not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("audit log: cannot {doing} `{}`", path.display())]
    Io {
        /// What was tried: `open`, `create`, `read`, …
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Another process holds the lock file.
    #[error(
        "audit log `{}` is in use by another process: stop that process or name another folder",
        .0.display()
    )]
    Locked(PathBuf),
    /// The source name in the options can not stand in a segment header.
    #[error("audit log source `{0}`: expected 1 to 32 lower-case letters, digits and hyphens")]
    BadSource(String),
    /// The folder holds the log of another program.
    #[error(
        "audit log `{}` is the log of `{found}`, not of `{wanted}`: name another folder",
        dir.display()
    )]
    OtherSource {
        /// The folder.
        dir: PathBuf,
        /// The source named by the last segment.
        found: String,
        /// The source in the options.
        wanted: String,
    },
    /// The last segment is damaged in a way that a loss of power does not explain.
    #[error(
        "audit log `{}`, line {line}: {what}; run `sekisho audit verify`, keep this folder as \
         evidence and start with a new one",
        file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Its first bad line; 1 is the header.
        line: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The log is not the one that its signed files tell of.
    #[error(
        "audit log `{}`: {what}; run `sekisho audit verify`, keep this folder as evidence and \
         start with a new one",
        dir.display()
    )]
    NotWhatItWas {
        /// The folder.
        dir: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The log can not be written at the moment; it recovers by itself when the cause is gone.
    #[error("audit log is unavailable: {reason}")]
    Unavailable {
        /// The cause, one line.
        reason: Arc<str>,
    },
    /// The event is longer than a record may be.
    #[error(
        "audit event has {bytes} bytes, more than the {EVENT_BYTES_MAX} that a record may have"
    )]
    TooLong {
        /// Its length as JSON.
        bytes: usize,
    },
    /// The event has no JSON form.
    #[error("audit event can not be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The metrics could not be made.
    #[error("audit log: the metrics can not be made")]
    Metrics(#[source] prometheus::Error),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

/// When a receipt resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After the record is on disk (fdatasync).
    BeforeResponse,
    /// At once; the record reaches the disk within [`SYNC_INTERVAL`].
    Async,
}

/// How a log is to be kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program that writes, such as `gateway`; named in every segment header.
    pub source: String,
    /// Signs the checkpoints; its name is the log's origin.
    pub key: CheckpointKey,
    /// When a receipt resolves.
    pub durability: Durability,
    /// Bytes after which a new segment is begun.
    pub segment_bytes_max: u64,
    /// Longest time that a record on disk is without a checkpoint.
    pub checkpoint_interval: Duration,
    /// Most records that are without a checkpoint.
    pub checkpoint_records_max: u64,
    /// How long whole segments are kept after their last record.
    pub retention: Duration,
    /// How long segments must have been expired before they are deleted, by the monotonic clock: a
    /// system clock that is wrong for a moment costs nothing. It begins anew at each start.
    pub retention_grace: Duration,
    /// Refusals a minute and party that are recorded one by one; more are counted.
    pub refusals_per_minute_max: u32,
}

impl Options {
    /// The defaults: on disk before the response, segments of 64 MiB, a checkpoint each second or
    /// 8,192 records, kept for five years, 60 refusals a minute and party one by one.
    pub fn new(source: impl Into<String>, key: CheckpointKey) -> Self {
        Self {
            source: source.into(),
            key,
            durability: Durability::BeforeResponse,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            checkpoint_interval: Duration::from_secs(1),
            checkpoint_records_max: 8192,
            retention: RETENTION,
            retention_grace: RETENTION_GRACE,
            refusals_per_minute_max: 60,
        }
    }
}

/// A log open for writing; clones share it. The last clone that goes away closes it.
#[derive(Clone)]
pub struct AuditLog {
    handle: Arc<Handle>,
}

impl AuditLog {
    /// Opens the log in `dir` or begins one (folder mode 0700), takes its lock and starts the
    /// writer. A tail torn by a loss of power is cut at the last whole record, kept beside the
    /// segment as `NNNNNNNN.cut-<offset>`, told by a warning and recorded as
    /// [`Event::TailCut`]. A log of format 1 found there is moved into `format-1/`.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::BadSource`], [`Error::OtherSource`], [`Error::Damaged`],
    /// [`Error::NotWhatItWas`], [`Error::Io`], [`Error::Metrics`].
    pub fn open(dir: &Path, options: Options) -> Result<Self, Error> {
        Self::open_on(Disk::real(), dir, options)
    }

    /// As [`AuditLog::open`], on a disk that may fail in ways of the caller's choice.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn open_on(disk: Disk, dir: &Path, options: Options) -> Result<Self, Error> {
        let metrics = Metrics::new().map_err(Error::Metrics)?;
        let writer = Writer::open(disk, dir, options, metrics, Begun::ByItself)?;
        Self::start(writer, dir)
    }

    /// Takes the log over from the process at the other end of `predecessor`, which called
    /// [`AuditLog::hand_over`], and appends what that process still has to say. What it left open
    /// is not told as unfinished: it goes on there.
    ///
    /// # Errors
    /// As [`AuditLog::open`]; [`Error::Io`] if the other process does not give the log up.
    pub fn take_over(dir: &Path, options: Options, predecessor: UnixStream) -> Result<Self, Error> {
        let io_error = |source| Error::io("take over", dir, source);
        let mut link = Link::await_release(predecessor).map_err(io_error)?;
        let metrics = Metrics::new().map_err(Error::Metrics)?;
        let writer = Writer::open(Disk::real(), dir, options, metrics, Begun::TakenOver)?;
        link.confirm().map_err(io_error)?;
        let log = Self::start(writer, dir)?;
        let shared = Arc::clone(&log.handle.shared);
        std::thread::Builder::new()
            .name("audit-handover".to_owned())
            .spawn(move || link.receive(&shared))
            .map_err(|source| Error::io("start the reader of", dir, source))?;
        Ok(log)
    }

    fn start(mut writer: Writer, dir: &Path) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(&writer));
        shared.committed.send_replace(writer.records_on_disk());
        writer.attach(&shared)?;
        let thread = std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| Error::io("start the writer of", dir, source))?;
        Ok(Self { handle: Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) }) })
    }

    /// Gives the log to the process at the other end of `successor`, which calls
    /// [`AuditLog::take_over`]. From then on what is appended here passes through it. Returns when
    /// the successor has the log; [`AuditLog::committed`] then stands still.
    ///
    /// # Errors
    /// [`Error::Io`] when the successor does not take it; the log is then written here as before.
    pub async fn hand_over(&self, successor: UnixStream) -> Result<(), Error> {
        let (told, done) = oneshot::channel();
        let shared = &self.handle.shared;
        shared.lock().successor = Some(Handing { successor, told });
        shared.wake.notify_one();
        done.await.unwrap_or_else(|_| Err(Error::Unavailable { reason: STOPPED.into() }))
    }

    /// Queues an event. A refusal that is part of a flood is only counted
    /// ([`Receipt::is_counted`]).
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the log can not be written, its queue is full or it was closed;
    /// [`Error::TooLong`], [`Error::Encode`].
    pub fn append(&self, event: &Event) -> Result<Receipt, Error> {
        let shared = &self.handle.shared;
        if event.is_refusal() && !shared.admits(event) {
            return Ok(Receipt { waiting: None, counted: true });
        }
        let json = encode(event)?;
        match shared.push(json, event.is_refusal()) {
            // Nobody waits for a refusal's record, so it is counted and not lost.
            Err(Error::Unavailable { .. }) if event.is_refusal() && !shared.is_closed() => {
                shared.recount(event);
                Ok(Receipt { waiting: None, counted: true })
            }
            pushed => pushed,
        }
    }

    /// Whether the log could be written when it was last tried.
    pub fn is_available(&self) -> bool {
        self.handle.shared.available.load(Ordering::Acquire)
    }

    /// What the log counts about itself.
    pub fn metrics(&self) -> &Metrics {
        &self.handle.shared.metrics
    }

    /// The number of the last record on disk, and every later one: what readers may be shown.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.handle.shared.committed.subscribe()
    }

    /// Puts everything queued on disk under a last checkpoint and ends the writer; other clones
    /// get [`Error::Unavailable`] from then on.
    #[allow(clippy::needless_pass_by_value, reason = "closing uses the log up")]
    pub fn close(self) {
        self.handle.stop();
    }
}

/// The JSON of an event, within its limit.
pub(crate) fn encode(event: &Event) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(event).map_err(Error::Encode)?;
    if json.len() > EVENT_BYTES_MAX {
        return Err(Error::TooLong { bytes: json.len() });
    }
    Ok(json)
}

/// Tells when one record is on disk.
#[must_use = "a record is durable only when its receipt has resolved"]
#[derive(Debug)]
pub struct Receipt {
    waiting: Option<oneshot::Receiver<Committed>>,
    counted: bool,
}

impl Receipt {
    /// Waits until the record is as durable as the options ask for.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it could not be written; then it is not in the log.
    pub async fn durable(self) -> Result<(), Error> {
        match self.waiting {
            None => Ok(()),
            Some(waiting) => outcome(waiting.await.ok()),
        }
    }

    /// As [`Receipt::durable`], for code outside an async runtime (inside one it panics).
    ///
    /// # Errors
    /// As [`Receipt::durable`].
    pub fn durable_blocking(self) -> Result<(), Error> {
        match self.waiting {
            None => Ok(()),
            Some(waiting) => outcome(waiting.blocking_recv().ok()),
        }
    }

    /// Whether the event was a refusal in a flood, which was counted and not written.
    pub fn is_counted(&self) -> bool {
        self.counted
    }
}

fn outcome(committed: Option<Committed>) -> Result<(), Error> {
    match committed {
        Some(Ok(())) => Ok(()),
        Some(Err(reason)) => Err(Error::Unavailable { reason }),
        None => Err(Error::Unavailable { reason: STOPPED.into() }),
    }
}

/// What the writer tells a receipt.
pub(crate) type Committed = Result<(), Arc<str>>;

/// An event on its way to the disk.
pub(crate) struct Queued {
    /// Given by the writer when it composes the record; 0 before.
    pub(crate) number: u64,
    pub(crate) at_ms: i64,
    pub(crate) is_refusal: bool,
    pub(crate) json: Vec<u8>,
    pub(crate) appended: Instant,
    pub(crate) waiter: Option<oneshot::Sender<Committed>>,
}

impl Queued {
    /// A record that nobody waits for.
    pub(crate) fn own(json: Vec<u8>) -> Self {
        let (number, at_ms, appended) = (0, 0, Instant::now());
        Self { number, at_ms, is_refusal: false, json, appended, waiter: None }
    }
}

/// To whom the log is to be given, and whom to tell when that is done.
pub(crate) struct Handing {
    pub(crate) successor: UnixStream,
    pub(crate) told: oneshot::Sender<Result<(), Error>>,
}

/// How a writer comes to its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// The process that wrote before has ended.
    ByItself,
    /// The process that wrote before goes on, and says what it still has to say.
    TakenOver,
}

/// What the writer is to do next.
pub(crate) enum Work {
    /// Give the log away.
    HandOver(Handing),
    /// Commit these records.
    Batch(Vec<Queued>),
    /// Nothing came until the time that the writer asked to be woken at.
    Due,
    /// Try to become available again.
    Recover,
    /// Closed and drained.
    End,
}

/// The queue between appends and the writer.
pub(crate) struct Shared {
    durability: Durability,
    available: AtomicBool,
    /// Whether the disk has room for refusals.
    room: AtomicBool,
    queue: Mutex<Queue>,
    flood: Mutex<Flood>,
    wake: Condvar,
    pub(crate) metrics: Metrics,
    pub(crate) committed: watch::Sender<u64>,
}

struct Queue {
    records: Vec<Queued>,
    bytes: usize,
    clock: Clock,
    /// Why appends are refused, while they are.
    unavailable: Option<Arc<str>>,
    /// Appends that were refused since that was last told; refusals, which are counted, aside.
    refused: u64,
    successor: Option<Handing>,
    closed: bool,
}

impl Shared {
    fn new(writer: &Writer) -> Self {
        let options = writer.options();
        let metrics = writer.metrics().clone();
        let queue = Queue {
            records: Vec::new(),
            bytes: 0,
            clock: Clock::new(writer.last_at_ms()),
            unavailable: None,
            refused: 0,
            successor: None,
            closed: false,
        };
        metrics.available.set(1);
        Self {
            durability: options.durability,
            available: AtomicBool::new(true),
            room: AtomicBool::new(true),
            queue: Mutex::new(queue),
            flood: Mutex::new(Flood::new(options.refusals_per_minute_max)),
            wake: Condvar::new(),
            metrics,
            committed: watch::channel(0).0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flood(&self) -> MutexGuard<'_, Flood> {
        self.flood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a refusal is to be written; else it was counted.
    fn admits(&self, event: &Event) -> bool {
        let room = self.room.load(Ordering::Relaxed);
        let admitted = self.flood().admits(event, crate::clock::now_ms(), room);
        if !admitted {
            self.metrics.refusals_counted.inc();
        }
        admitted
    }

    pub(crate) fn push(&self, json: Vec<u8>, is_refusal: bool) -> Result<Receipt, Error> {
        let mut queue = self.lock();
        if let Some(reason) = queue.refusal(json.len(), is_refusal, self.durability) {
            queue.refused += u64::from(!is_refusal);
            drop(queue);
            self.metrics.records_refused.inc();
            return Err(Error::Unavailable { reason });
        }
        let before = queue.records.len();
        let (at_ms, step) = queue.clock.read();
        if let Some(step) = step.and_then(|step| encode(&step).ok()) {
            tracing::warn!("audit log: the system's clock was set");
            queue.put(at_ms, step, false, None);
        }
        let (waiter, waiting) = match self.durability {
            Durability::BeforeResponse => {
                let (waiter, waiting) = oneshot::channel();
                (Some(waiter), Some(waiting))
            }
            Durability::Async => (None, None),
        };
        queue.put(at_ms, json, is_refusal, waiter);
        let wakes = match self.durability {
            Durability::BeforeResponse => true,
            // The writer wakes to begin gathering, and to end it before its time.
            Durability::Async => {
                let enough = |records| records >= GATHER_RECORDS_MAX;
                before == 0 || enough(queue.records.len()) && !enough(before)
            }
        };
        self.metrics.queue_records.set(i64::try_from(queue.records.len()).unwrap_or(i64::MAX));
        self.metrics.queue_bytes.set(i64::try_from(queue.bytes).unwrap_or(i64::MAX));
        drop(queue);
        if wakes {
            self.wake.notify_one();
        }
        Ok(Receipt { waiting, counted: false })
    }

    /// Waits for work, at most until `due`.
    pub(crate) fn next(&self, due: Option<Instant>) -> Work {
        let mut queue = self.lock();
        loop {
            if let Some(handing) = queue.successor.take() {
                return Work::HandOver(handing);
            }
            if let Some(left) = self.gathering(&queue) {
                let waited = self.wake.wait_timeout(queue, left);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if !queue.records.is_empty() {
                queue.bytes = 0;
                self.metrics.queue_records.set(0);
                self.metrics.queue_bytes.set(0);
                return Work::Batch(std::mem::take(&mut queue.records));
            }
            if queue.closed {
                return Work::End;
            }
            if queue.unavailable.is_some() {
                let (mut queue, _) = self
                    .wake
                    .wait_timeout_while(queue, REOPEN_INTERVAL, |queue| {
                        !queue.closed && queue.successor.is_none()
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                return match queue.successor.take() {
                    Some(handing) => Work::HandOver(handing),
                    None if queue.closed => Work::End,
                    None => Work::Recover,
                };
            }
            queue = match due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Work::Due,
                Some(left) => {
                    self.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// How long the records in the queue may still wait for others.
    fn gathering(&self, queue: &Queue) -> Option<Duration> {
        let first = queue.records.first()?;
        if self.durability == Durability::BeforeResponse
            || queue.closed
            || queue.records.len() >= GATHER_RECORDS_MAX
        {
            return None;
        }
        GATHER_INTERVAL.checked_sub(first.appended.elapsed()).filter(|left| !left.is_zero())
    }

    /// The time of a record that the log itself writes now; `None` while records wait that have
    /// an earlier time and come after it.
    pub(crate) fn at_ms(&self) -> Option<i64> {
        let mut queue = self.lock();
        queue.records.is_empty().then(|| queue.clock.read_only())
    }

    /// Says whether the disk has room for refusals.
    pub(crate) fn set_room(&self, room: bool) {
        self.room.store(room, Ordering::Relaxed);
    }

    /// Whether refusals were counted and wait to be written.
    pub(crate) fn is_counting(&self) -> bool {
        self.flood().is_counting()
    }

    /// Whether the disk has room for refusals.
    pub(crate) fn has_room(&self) -> bool {
        self.room.load(Ordering::Relaxed)
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Counts a refusal that could not be written.
    pub(crate) fn recount(&self, event: &Event) {
        self.metrics.refusals_counted.inc();
        self.flood().recount(event, crate::clock::now_ms());
    }

    /// Takes the number of appends that were refused since it was last taken.
    pub(crate) fn take_refused(&self) -> u64 {
        std::mem::take(&mut self.lock().refused)
    }

    /// Takes what was counted.
    pub(crate) fn take_counted(&self) -> Vec<Event> {
        self.flood().take()
    }

    /// Refuses appends from now on, and hands back what is queued so that it can be failed too.
    pub(crate) fn set_unavailable(&self, reason: &Arc<str>) -> Vec<Queued> {
        let mut queue = self.lock();
        queue.unavailable = Some(Arc::clone(reason));
        queue.bytes = 0;
        self.available.store(false, Ordering::Release);
        self.metrics.available.set(0);
        std::mem::take(&mut queue.records)
    }

    /// Takes appends again.
    pub(crate) fn set_available(&self) {
        let mut queue = self.lock();
        queue.unavailable = None;
        self.available.store(true, Ordering::Release);
        self.metrics.available.set(1);
    }

    fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }
}

impl Queue {
    fn put(
        &mut self,
        at_ms: i64,
        json: Vec<u8>,
        is_refusal: bool,
        waiter: Option<oneshot::Sender<Committed>>,
    ) {
        self.bytes += json.len() + RECORD_OVERHEAD_BYTES;
        let appended = Instant::now();
        self.records.push(Queued { number: 0, at_ms, is_refusal, json, appended, waiter });
    }

    /// Why an event of `bytes` can not be taken.
    fn refusal(&self, bytes: usize, is_refusal: bool, durability: Durability) -> Option<Arc<str>> {
        let bytes_max = match durability {
            Durability::BeforeResponse => QUEUE_BYTES_MAX,
            Durability::Async => ASYNC_QUEUE_BYTES_MAX,
        };
        let bytes_max = if is_refusal { bytes_max / 2 } else { bytes_max };
        if self.closed {
            Some(STOPPED.into())
        } else if self.unavailable.is_some() {
            self.unavailable.clone()
        } else if self.bytes + bytes > bytes_max {
            Some("the disk is too slow: the queue of records is full".into())
        } else {
            None
        }
    }
}

/// Owns the writer's thread.
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    fn stop(&self) {
        self.shared.close();
        let writer = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // The writer's own end has already told waiting receipts if it panicked.
            let _ = writer.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) const STOPPED: &str = "the log was closed";
const RECORD_OVERHEAD_BYTES: usize = 96;

#[cfg(test)]
mod tests;
