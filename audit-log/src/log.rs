//! The door of the log: [`AuditLog::append`] puts an event into the queue, the [`Receipt`] tells
//! when it is on disk. Behind it one writer thread ([`crate::writer`]) commits whatever has queued
//! up in one write and one fdatasync (group commit), so that the disk's latency is paid once for
//! all requests that wait together.
//!
//! INVARIANT: numbers and times are given under the queue's lock, so the order of records is the
//! order of appends, without gaps, and `at` never decreases even when the clock does.
//!
//! INVARIANT: a log that can not be written says so: from the first failed write, sync or breach
//! of the disk reserve on, every waiting receipt and every append gets [`Error::Unavailable`],
//! until the writer has found a sound state again by itself. A record whose receipt failed is not
//! in the log afterwards (unless the process died in between).
//!
//! Limits: [`QUEUE_BYTES_MAX`], [`DISK_RESERVE_BYTES`], [`crate::encoding::EVENT_BYTES_MAX`]; with
//! [`Durability::Async`] at most [`UNSYNCED_RECORDS_MAX`] records or [`SYNC_INTERVAL`] can be lost
//! by a loss of power. Here belongs later a reserve that only permits may use, so that nobody can
//! fill the log with denials.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::encoding::EVENT_BYTES_MAX;
use crate::entry::Event;
use crate::segment::Disk;
use crate::writer::Writer;

/// Most bytes of events that may wait for the disk; beyond it an append is refused.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Free bytes the file system must keep; below it the log counts as unavailable.
pub const DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Most records that [`Durability::Async`] leaves without fdatasync.
pub const UNSYNCED_RECORDS_MAX: u64 = 4096;
/// Longest time that [`Durability::Async`] leaves a record without fdatasync.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(50);
/// Pause between attempts to write again after a failure.
pub const REOPEN_INTERVAL: Duration = Duration::from_millis(500);

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
    /// When a receipt resolves.
    pub durability: Durability,
    /// Bytes after which a new segment is begun.
    pub segment_bytes_max: u64,
    /// The program that writes, such as `gateway`; named in every segment header.
    pub source: String,
}

/// A log open for writing; clones share it. The last clone that goes away closes it.
#[derive(Clone)]
pub struct AuditLog {
    handle: Arc<Handle>,
}

impl AuditLog {
    /// Opens the log in `dir` or begins one (folder mode 0700), takes its lock and starts the
    /// writer. A tail torn by a loss of power is cut at the last whole record, kept beside the
    /// segment as `NNNNNNNN.cut-<offset>`, and told by a warning.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::BadSource`], [`Error::OtherSource`], [`Error::Damaged`],
    /// [`Error::Io`].
    pub fn open(dir: &Path, options: Options) -> Result<Self, Error> {
        Self::open_on(Disk::real(), dir, options)
    }

    pub(crate) fn open_on(disk: Disk, dir: &Path, options: Options) -> Result<Self, Error> {
        let durability = options.durability;
        let (mut writer, at_ms) = Writer::open(disk, dir, options)?;
        let shared = Arc::new(Shared::new(durability, writer.next_number(), at_ms));
        writer.attach(Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| Error::io("start the writer of", dir, source))?;
        Ok(Self { handle: Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) }) })
    }

    /// Queues an event.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the log can not be written, its queue is full or it was closed;
    /// [`Error::TooLong`], [`Error::Encode`].
    pub fn append(&self, event: &Event) -> Result<Receipt, Error> {
        let json = serde_json::to_vec(event).map_err(Error::Encode)?;
        if json.len() > EVENT_BYTES_MAX {
            return Err(Error::TooLong { bytes: json.len() });
        }
        self.handle.shared.push(json)
    }

    /// Whether the log could be written when it was last tried.
    pub fn is_available(&self) -> bool {
        self.handle.shared.available.load(Ordering::Acquire)
    }

    /// Puts everything queued on disk and ends the writer; other clones get
    /// [`Error::Unavailable`] from then on.
    #[allow(clippy::needless_pass_by_value, reason = "closing uses the log up")]
    pub fn close(self) {
        self.handle.stop();
    }
}

/// Tells when one record is on disk.
#[must_use = "a record is durable only when its receipt has resolved"]
#[derive(Debug)]
pub struct Receipt {
    number: u64,
    waiting: Option<oneshot::Receiver<Committed>>,
}

impl Receipt {
    /// Waits until the record is as durable as the options ask for; returns its number.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it could not be written; then it is not in the log.
    pub async fn durable(self) -> Result<u64, Error> {
        match self.waiting {
            None => Ok(self.number),
            Some(waiting) => outcome(self.number, waiting.await.ok()),
        }
    }

    /// As [`Receipt::durable`], for code outside an async runtime (inside one it panics).
    ///
    /// # Errors
    /// As [`Receipt::durable`].
    pub fn durable_blocking(self) -> Result<u64, Error> {
        match self.waiting {
            None => Ok(self.number),
            Some(waiting) => outcome(self.number, waiting.blocking_recv().ok()),
        }
    }
}

fn outcome(number: u64, committed: Option<Committed>) -> Result<u64, Error> {
    match committed {
        Some(Ok(())) => Ok(number),
        Some(Err(reason)) => Err(Error::Unavailable { reason }),
        None => Err(Error::Unavailable { reason: STOPPED.into() }),
    }
}

/// What the writer tells a receipt.
pub(crate) type Committed = Result<(), Arc<str>>;

/// An event on its way to the disk.
pub(crate) struct Queued {
    pub(crate) number: u64,
    pub(crate) at_ms: i64,
    pub(crate) json: Vec<u8>,
    pub(crate) waiter: Option<oneshot::Sender<Committed>>,
}

/// What the writer is to do next.
pub(crate) enum Work {
    /// Commit these records.
    Batch(Vec<Queued>),
    /// Nothing came until the sync was due.
    SyncDue,
    /// Try to become available again.
    Recover,
    /// Closed and drained.
    End,
}

/// The queue between appends and the writer.
pub(crate) struct Shared {
    durability: Durability,
    available: AtomicBool,
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Queue {
    records: Vec<Queued>,
    bytes: usize,
    next_number: u64,
    last_at_ms: i64,
    /// Why appends are refused, while they are.
    unavailable: Option<Arc<str>>,
    closed: bool,
}

impl Shared {
    fn new(durability: Durability, next_number: u64, last_at_ms: i64) -> Self {
        let queue = Queue {
            records: Vec::new(),
            bytes: 0,
            next_number,
            last_at_ms,
            unavailable: None,
            closed: false,
        };
        Self {
            durability,
            available: AtomicBool::new(true),
            queue: Mutex::new(queue),
            wake: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, json: Vec<u8>) -> Result<Receipt, Error> {
        let mut queue = self.lock();
        if let Some(reason) = queue.refusal(json.len()) {
            return Err(Error::Unavailable { reason });
        }
        let number = queue.next_number;
        queue.next_number += 1;
        queue.last_at_ms = queue.last_at_ms.max(now_ms());
        queue.bytes += json.len() + RECORD_OVERHEAD_BYTES;
        let (waiter, waiting) = match self.durability {
            Durability::BeforeResponse => {
                let (waiter, waiting) = oneshot::channel();
                (Some(waiter), Some(waiting))
            }
            Durability::Async => (None, None),
        };
        let at_ms = queue.last_at_ms;
        queue.records.push(Queued { number, at_ms, json, waiter });
        drop(queue);
        self.wake.notify_all();
        Ok(Receipt { number, waiting })
    }

    /// Waits for work; `sync_due` is when the writer wants to be woken without any.
    pub(crate) fn next(&self, sync_due: Option<Instant>) -> Work {
        let mut queue = self.lock();
        loop {
            if !queue.records.is_empty() {
                queue.bytes = 0;
                return Work::Batch(std::mem::take(&mut queue.records));
            }
            if queue.closed {
                return Work::End;
            }
            if queue.unavailable.is_some() {
                let (queue, _) = self
                    .wake
                    .wait_timeout_while(queue, REOPEN_INTERVAL, |queue| !queue.closed)
                    .unwrap_or_else(PoisonError::into_inner);
                return if queue.closed { Work::End } else { Work::Recover };
            }
            queue = match sync_due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Work::SyncDue,
                Some(left) => {
                    self.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Refuses appends from now on, and hands back what is queued so that it can be failed too.
    pub(crate) fn set_unavailable(&self, reason: &Arc<str>) -> Vec<Queued> {
        let mut queue = self.lock();
        queue.unavailable = Some(Arc::clone(reason));
        queue.bytes = 0;
        self.available.store(false, Ordering::Release);
        std::mem::take(&mut queue.records)
    }

    /// Takes appends again; the next record gets `next_number`.
    pub(crate) fn set_available(&self, next_number: u64) {
        let mut queue = self.lock();
        queue.unavailable = None;
        queue.next_number = next_number;
        self.available.store(true, Ordering::Release);
    }

    fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }
}

impl Queue {
    /// Why an event of `bytes` can not be taken.
    fn refusal(&self, bytes: usize) -> Option<Arc<str>> {
        if self.closed {
            Some(STOPPED.into())
        } else if self.unavailable.is_some() {
            self.unavailable.clone()
        } else if self.bytes + bytes > QUEUE_BYTES_MAX {
            Some("the disk is too slow: the queue of records is full".into())
        } else {
            None
        }
    }
}

/// Owns the writer thread.
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    fn stop(&self) {
        self.shared.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The writer's own end has already told waiting receipts if it panicked.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

pub(crate) const STOPPED: &str = "the log was closed";
const RECORD_OVERHEAD_BYTES: usize = 96;

#[cfg(test)]
mod tests;
