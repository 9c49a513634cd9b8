//! How a log passes to the process that takes its writer's place, without a record lost and with
//! one writer at any time.
//!
//! ```text
//!  the writer now                                             its successor
//!  all on disk, checkpoint, new segment, lock given back
//!         released ───────────────────────────────────────►   takes the lock, opens
//!         ◄─────────────────────────────────────────────────  opened
//!         yours    ───────────────────────────────────────►   writes
//!         p{event} p{event} r{event} (empty line) ────────►   appends, each with its receipt
//!         ◄─────────────────────────────────────────────────  11x reason
//! ```
//!
//! What is appended in the old process from then on goes through the successor's queue, and its
//! receipts resolve when it is on disk there. Until `yours` the old writer can take the log back: a
//! successor that does not get so far has written nothing.
//!
//! INVARIANT: a receipt of the old process resolves well only after the successor said that this
//! very record is on disk.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::encoding::EVENT_BYTES_MAX;
use crate::entry::Event;
use crate::flood::FLUSH_INTERVAL;
use crate::log::{Committed, Error, Queued, Receipt, Shared, Work, encode};

/// What the two say to each other before records pass.
const RELEASED: &str = "released";
const OPENED: &str = "opened";
const YOURS: &str = "yours";

/// Longest time that the successor may take to open the log, while records wait.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Longest time that the writer may take to put everything on disk.
const RELEASE_WITHIN: Duration = Duration::from_secs(10);
/// Longest time for one batch to be on the successor's disk.
const BATCH_WITHIN: Duration = Duration::from_secs(10);
const WORD_BYTES_MAX: u64 = 4096;

/// The old writer's end.
pub(crate) struct Link {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Link {
    fn new(stream: UnixStream) -> io::Result<Self> {
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { reader, writer: stream })
    }

    fn say(&mut self, word: &str) -> io::Result<()> {
        self.writer.write_all(format!("{word}\n").as_bytes())
    }

    fn hear(&mut self, word: &str, within: Duration) -> io::Result<()> {
        self.writer.set_read_timeout(Some(within))?;
        let heard = self.line()?;
        if heard == word { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.reader).take(WORD_BYTES_MAX).read_line(&mut line)?;
        let line = line.strip_suffix('\n').ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(line.to_owned())
    }

    /// The old writer's words: the log is on disk and free; whether the successor has it now.
    pub(crate) fn offer(stream: UnixStream) -> io::Result<Self> {
        let mut link = Self::new(stream)?;
        link.writer.set_write_timeout(Some(BATCH_WITHIN))?;
        link.say(RELEASED)?;
        link.hear(OPENED, OPEN_WITHIN)?;
        link.say(YOURS)?;
        Ok(link)
    }

    /// The successor's words before it opens the log.
    pub(crate) fn await_release(stream: UnixStream) -> io::Result<Self> {
        let mut link = Self::new(stream)?;
        link.hear(RELEASED, RELEASE_WITHIN)?;
        Ok(link)
    }

    /// The successor's words when it has opened the log: only then may it write.
    pub(crate) fn confirm(&mut self) -> io::Result<()> {
        self.say(OPENED)?;
        self.hear(YOURS, OPEN_WITHIN)
    }

    /// Sends what is appended here to the successor until the log is closed.
    pub(crate) fn forward(mut self, shared: &Shared) {
        loop {
            match shared.next(Some(Instant::now() + FLUSH_INTERVAL)) {
                Work::Batch(batch) => self.pass(shared, batch),
                Work::Due => self.pass_counted(shared),
                // The successor's log is not to be had back.
                Work::Recover => {}
                Work::HandOver(_) => tracing::warn!("audit log: it was handed over already"),
                Work::End => break,
            }
        }
        self.pass_counted(shared);
    }

    fn pass(&mut self, shared: &Shared, batch: Vec<Queued>) {
        match self.send(&batch) {
            Ok(answers) => {
                for (record, answer) in batch.into_iter().zip(answers) {
                    answer_one(record, answer);
                }
            }
            Err(error) => {
                let reason: Arc<str> = format!("the process that took it over: {error}").into();
                tracing::error!(%reason, "audit log: unavailable");
                for record in batch.into_iter().chain(shared.set_unavailable(&reason)) {
                    answer_one(record, Err(Arc::clone(&reason)));
                }
            }
        }
    }

    fn pass_counted(&mut self, shared: &Shared) {
        let events = shared.take_counted();
        let queued = |event: &Event| encode(event).ok().map(Queued::own);
        let batch: Vec<Queued> = events.iter().filter_map(queued).collect();
        if !batch.is_empty() {
            self.pass(shared, batch);
        }
    }

    fn send(&mut self, batch: &[Queued]) -> io::Result<Vec<Committed>> {
        let mut frame = Vec::with_capacity(batch.iter().map(|record| record.json.len() + 2).sum());
        for record in batch {
            frame.push(if record.is_refusal { REFUSAL } else { PLAIN });
            frame.extend_from_slice(&record.json);
            frame.push(b'\n');
        }
        frame.push(b'\n');
        self.writer.write_all(&frame)?;
        self.writer.set_read_timeout(Some(BATCH_WITHIN))?;
        let mut line = String::new();
        let longest = batch.len() as u64 + WORD_BYTES_MAX;
        (&mut self.reader).take(longest).read_line(&mut line)?;
        let (each, reason) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        if each.len() != batch.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer = |byte| if byte == STORED { Ok(()) } else { Err(reason.into()) };
        Ok(each.bytes().map(answer).collect())
    }

    /// Appends what the old process sends until it ends.
    pub(crate) fn receive(mut self, shared: &Shared) {
        // It may have nothing to say for as long as its requests take.
        let _ = self.writer.set_read_timeout(None);
        let _ = self.writer.set_write_timeout(Some(BATCH_WITHIN));
        while let Ok(Some(receipts)) = self.take_batch(shared) {
            let mut line = String::with_capacity(receipts.len() + 1);
            let mut reason = String::new();
            for receipt in receipts {
                match receipt.and_then(Receipt::durable_blocking) {
                    Ok(()) => line.push(char::from(STORED)),
                    Err(error) => {
                        line.push(char::from(NOT_STORED));
                        reason = error.to_string();
                    }
                }
            }
            if self.say(&format!("{line} {}", reason.replace('\n', " "))).is_err() {
                break;
            }
        }
        tracing::info!("audit log: the process before this one has ended its records");
    }

    /// The receipts of one batch; `None` when there is no further one.
    fn take_batch(&mut self, shared: &Shared) -> io::Result<Option<Vec<Result<Receipt, Error>>>> {
        let mut receipts = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let longest = EVENT_BYTES_MAX as u64 + 2;
            (&mut self.reader).take(longest).read_until(b'\n', &mut line)?;
            match line.strip_suffix(b"\n") {
                Some([]) => return Ok(Some(receipts)),
                Some([kind @ (PLAIN | REFUSAL), json @ ..]) => {
                    receipts.push(shared.push(json.to_vec(), *kind == REFUSAL));
                }
                _ => return Ok(None),
            }
        }
    }
}

fn answer_one(record: Queued, answer: Committed) {
    if let Some(waiter) = record.waiter {
        // A caller that went away does not need the answer.
        let _ = waiter.send(answer);
    }
}

const PLAIN: u8 = b'p';
const REFUSAL: u8 = b'r';
const STORED: u8 = b'1';
const NOT_STORED: u8 = b'0';
