//! The fast path: a thread cuts the segments into blocks of whole lines, workers check the blocks,
//! and the caller joins the results in order.
//!
//! ```text
//!  reader ──► jobs ──► worker, worker, … ──┐ one answer a block
//!     └────── pieces, in log order ────────┴──► caller: edges, tree, checkpoints
//! ```
//!
//! A block is sound or it is not; which of its lines is at fault is found by reading the segment
//! once more line by line. Memory: a few blocks of [`BLOCK_BYTES`] for each worker wait between
//! the threads.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use tlog_tiles::Hash;

use super::line::{Line, Notice, Work, check_line};
use crate::checkpoint::{Checkpoint, VerifyingKey};
use crate::encoding::{self, HexHash, LINE_BYTES_MAX, Lines};

/// What the caller gets, in log order.
pub(super) enum Piece {
    /// A segment begins; the line is empty when it can not be read.
    Header { number: u64, line: Vec<u8> },
    /// The next records of the segment.
    Block(Receiver<Option<Block>>),
    /// What follows in the segment can not be read, or is no whole line.
    Bad,
}

/// A block whose lines are sound and fit each other.
pub(super) struct Block {
    pub(super) first: u64,
    pub(super) prev: HexHash,
    pub(super) first_at: String,
    pub(super) last_hash: HexHash,
    pub(super) last_at: String,
    pub(super) leaves: Vec<Hash>,
    pub(super) checkpoints: Vec<FoundCheckpoint>,
    /// What was begun in this block and has not ended in it, with its record's number.
    pub(super) opened: Vec<(WorkId, u64)>,
    /// What has ended in this block and was not begun in it.
    pub(super) closed: Vec<WorkId>,
}

/// A checkpoint record whose signature is good.
pub(super) struct FoundCheckpoint {
    /// Number of the record.
    pub(super) record: u64,
    pub(super) checkpoint: Checkpoint,
}

/// A request id, and of which kind of work.
pub(super) type WorkId = (Work, String);

/// Reads and checks the segments on threads of `scope`.
pub(super) fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    dir: &'env Path,
    numbers: &'env [u64],
    key: &'env VerifyingKey,
    jobs: &'env Jobs,
) -> Receiver<Piece> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let (pieces, results) = sync_channel(workers + 2);
    scope.spawn(move || {
        // An error of sending means that the caller has seen enough.
        let _ = numbers.iter().try_for_each(|number| read_segment(dir, *number, jobs, &pieces));
        jobs.end();
    });
    for _ in 0..workers {
        scope.spawn(move || {
            while let Some(Job { bytes, answer }) = jobs.next() {
                // Nobody waits for the answer any more when the caller has seen enough.
                let _ = answer.send(check_block(&bytes, key));
            }
        });
    }
    results
}

/// Blocks on their way to a worker. Their number is bounded by that of the pieces.
pub(super) struct Jobs {
    sender: Mutex<Option<Sender<Job>>>,
    receiver: Mutex<Receiver<Job>>,
}

struct Job {
    bytes: Vec<u8>,
    answer: SyncSender<Option<Block>>,
}

impl Jobs {
    pub(super) fn new() -> Self {
        let (sender, receiver) = channel();
        Self { sender: Mutex::new(Some(sender)), receiver: Mutex::new(receiver) }
    }

    fn push(&self, job: Job) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            // INVARIANT: the receiver lives as long as the sender.
            let _ = sender.send(job);
        }
    }

    fn next(&self) -> Option<Job> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    fn end(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The caller has gone.
struct Gone;

fn read_segment(
    dir: &Path,
    number: u64,
    jobs: &Jobs,
    pieces: &SyncSender<Piece>,
) -> Result<(), Gone> {
    let send = |piece| pieces.send(piece).map_err(|_| Gone);
    let mut line = Vec::new();
    let opened = encoding::open_numbered(dir, number).and_then(|(_, mut lines)| {
        encoding::read_line(&mut lines, &mut line)?;
        Ok(lines)
    });
    let Ok(mut lines) = opened else {
        return send(Piece::Header { number, line: Vec::new() });
    };
    send(Piece::Header { number, line })?;
    let mut rest = Vec::new();
    loop {
        let Some(bytes) = next_block(&mut lines, &mut rest) else { return send(Piece::Bad) };
        if bytes.is_empty() {
            return Ok(());
        }
        let (answer, answered) = sync_channel(1);
        send(Piece::Block(answered))?;
        jobs.push(Job { bytes, answer });
    }
}

/// The next whole lines; `rest` keeps what is left of the last one. Empty at a clean end.
fn next_block(lines: &mut Lines, rest: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES + LINE_BYTES_MAX);
    bytes.append(rest);
    loop {
        let read = lines.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut bytes).ok()?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole > 0 || bytes.is_empty() {
            *rest = bytes.split_off(whole);
            return Some(bytes);
        }
        if read == 0 || bytes.len() >= LINE_BYTES_MAX {
            return None;
        }
    }
}

/// Checks whole lines; `None` when any of them is wrong.
fn check_block(mut bytes: &[u8], key: &VerifyingKey) -> Option<Block> {
    let mut builder = Builder::default();
    while !bytes.is_empty() {
        let mut rest = bytes;
        let length = rest.skip_until(b'\n').ok()?;
        let line = bytes.get(..length)?.strip_suffix(b"\n")?;
        if length > LINE_BYTES_MAX {
            return None;
        }
        builder.add(check_line(line).ok()?, key)?;
        bytes = rest;
    }
    builder.finish()
}

#[derive(Default)]
struct Builder<'a> {
    first: Option<(u64, HexHash, &'a str)>,
    last: Option<(u64, &'a [u8], &'a str)>,
    leaves: Vec<Hash>,
    checkpoints: Vec<FoundCheckpoint>,
    opened: HashMap<(Work, Cow<'a, str>), u64>,
    closed: Vec<WorkId>,
}

impl<'a> Builder<'a> {
    fn add(&mut self, line: Line<'a>, key: &VerifyingKey) -> Option<()> {
        let record = line.record;
        match self.last {
            None => self.first = Some((record.n, record.prev.try_into().ok()?, record.at)),
            Some((n, hash, at)) => {
                let fits = record.n == n + 1 && record.prev == hash && record.at >= at;
                fits.then_some(())?;
            }
        }
        self.last = Some((record.n, record.hash, record.at));
        self.leaves.push(line.leaf);
        match line.notice {
            Notice::Nothing => {}
            Notice::Opened(work, id) => {
                self.opened.insert((work, id), record.n);
            }
            Notice::Closed(work, id) => {
                let id = (work, id);
                if self.opened.remove(&id).is_none() {
                    self.closed.push((id.0, id.1.into_owned()));
                }
            }
            Notice::Checkpoint(note) => {
                let checkpoint = Checkpoint::open(&note, key).ok()?;
                self.checkpoints.push(FoundCheckpoint { record: record.n, checkpoint });
            }
        }
        Some(())
    }

    fn finish(self) -> Option<Block> {
        let (first, prev, first_at) = self.first?;
        let (_, last_hash, last_at) = self.last?;
        Some(Block {
            first,
            prev,
            first_at: first_at.to_owned(),
            last_hash: last_hash.try_into().ok()?,
            last_at: last_at.to_owned(),
            leaves: self.leaves,
            checkpoints: self.checkpoints,
            opened: self
                .opened
                .into_iter()
                .map(|((work, id), record)| ((work, id.into_owned()), record))
                .collect(),
            closed: self.closed,
        })
    }
}

const BLOCK_BYTES: usize = 4 << 20;
