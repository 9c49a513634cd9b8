//! The one thread that writes: composes lines, hashes them into chain and tree, writes and syncs a
//! whole batch at once, signs checkpoints, begins new segments, and finds back to a sound state
//! after a failure.
//!
//! Two positions matter. `head` is what was written, `durable` what was synced. After a failed
//! sync nothing written since the last good one can be trusted (the kernel may have dropped the
//! pages and still call the next sync a success), so the segment is cut back to `durable` and a new
//! one is begun.
//!
//! A checkpoint is the last record of the batch it covers and reaches the disk with it, at no
//! further sync.
//!
//! INVARIANT: a checkpoint leaves the log (file `checkpoint`) only when it and what it covers are
//! durable: a loss of power never makes the log shorter than a head that somebody has seen.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::clock::now_ms;
use crate::encoding;
use crate::entry::Event;
use crate::flood::{FLUSH_INTERVAL, FLUSH_INTERVAL_LOW};
use crate::handover::Link;
use crate::keeper::{Keeper, Told};
use crate::log::{
    Begun, DISK_RESERVE_BYTES, Durability, Error, GATHER_INTERVAL, Handing, Options,
    PERMIT_RESERVE_BYTES, Queued, STOPPED, SYNC_INTERVAL, Shared, UNSYNCED_RECORDS_MAX, Work,
    encode,
};
use crate::metrics::Metrics;
use crate::segment::{self, Disk, Open, Position};

/// The writer's side of a log.
pub(crate) struct Writer {
    disk: Disk,
    dir: PathBuf,
    options: Options,
    metrics: Metrics,
    shared: Option<Arc<Shared>>,
    keeper: Option<Keeper>,
    file: File,
    head: Position,
    durable: Position,
    /// When the oldest unsynced record was written.
    unsynced_since: Option<Instant>,
    /// When the oldest record without a checkpoint was written.
    uncovered_since: Option<Instant>,
    /// The newest checkpoint, while it is not durable.
    unseen: Option<String>,
    /// When refusals began to be counted.
    counting_since: Option<Instant>,
    /// What the log has to say about itself when it can, and what of that is written, not synced.
    own: VecDeque<Event>,
    own_unsynced: Vec<Event>,
    /// A sync failed: nothing after `durable` can be trusted.
    distrusted: bool,
    /// The outage that lasts: its reason, since when, and how many records were refused.
    outage: Option<(Arc<str>, i64, u64)>,
    /// Held open: the lock ends with the writer. `None` while the log is another process's, or may
    /// be.
    lock: Option<File>,
}

/// A log that was found or begun, with its lock.
struct Found {
    lock: File,
    file: File,
    head: Position,
    /// A checkpoint that may not have been shown.
    unseen: Option<String>,
    own: VecDeque<Event>,
}

impl Writer {
    /// Takes the lock and continues the log, or begins it.
    pub(crate) fn open(
        disk: Disk,
        dir: &Path,
        options: Options,
        metrics: Metrics,
        begun: Begun,
    ) -> Result<Self, Error> {
        if !encoding::is_source_name(&options.source) {
            return Err(Error::BadSource(options.source));
        }
        segment::create_dir(dir)?;
        let found = find(&disk, dir, &options, begun)?;
        let uncovered = found.head.covered < found.head.tree.size();
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            options,
            metrics,
            shared: None,
            keeper: None,
            file: found.file,
            durable: found.head.clone(),
            head: found.head,
            unsynced_since: None,
            uncovered_since: uncovered.then(Instant::now),
            unseen: found.unseen,
            counting_since: None,
            own: found.own,
            own_unsynced: Vec::new(),
            distrusted: false,
            outage: None,
            lock: Some(found.lock),
        })
    }

    /// How the log is kept.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// What the log counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The time of the last line, Unix milliseconds.
    pub(crate) fn last_at_ms(&self) -> i64 {
        self.head.at_ms
    }

    /// Number of records on disk.
    pub(crate) fn records_on_disk(&self) -> u64 {
        self.durable.tree.size()
    }

    /// Joins the writer to the queue it serves, and starts the keeper of what it leaves behind.
    pub(crate) fn attach(&mut self, shared: &Arc<Shared>) -> Result<(), Error> {
        self.keeper = Some(Keeper::start(&self.dir, self.options.clone(), Arc::clone(shared))?);
        self.shared = Some(Arc::clone(shared));
        Ok(())
    }

    /// Serves the queue until it is closed.
    pub(crate) fn run(mut self) {
        let Some(shared) = self.shared.clone() else { return };
        if let Some(note) = self.unseen.take() {
            self.tell_keeper(Told::Checkpoint(note));
        }
        loop {
            let done = match shared.next(self.due()) {
                Work::HandOver(handing) => match self.hand_over(&shared, handing) {
                    // The log is another's: nothing is left to finish.
                    Some(link) => return link.forward(&shared),
                    None => Ok(()),
                },
                Work::Batch(batch) => {
                    self.commit(&shared, batch);
                    self.attend(&shared)
                }
                Work::Due => self.look_at_disk(&shared).and_then(|_| self.attend(&shared)),
                Work::Recover => {
                    self.recover(&shared);
                    Ok(())
                }
                Work::End => break,
            };
            if let Err(failure) = done {
                self.fail(&shared, Vec::new(), &failure);
            }
        }
        if let Err(failure) = self.finish(&shared) {
            self.fail(&shared, Vec::new(), &failure);
        }
        self.stop_keeper();
    }

    fn stop_keeper(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.stop();
        }
    }

    /// Gives the log away; `None` when it stayed here.
    fn hand_over(&mut self, shared: &Arc<Shared>, handing: Handing) -> Option<Link> {
        let released = self.release(shared);
        let io_error = |source| Error::io("hand over", &self.dir, source);
        let given = released.and_then(|()| Link::offer(handing.successor).map_err(io_error));
        let (link, told) = match given {
            Ok(link) => (Some(link), Ok(())),
            Err(failure) => {
                if let Err(failure) = self.reclaim(shared) {
                    self.fail(shared, Vec::new(), &failure);
                }
                (None, Err(failure))
            }
        };
        // Whoever asked may be gone.
        let _ = handing.told.send(told);
        link
    }

    /// Everything on disk under a checkpoint, in a segment that is closed; nobody works on the log.
    fn release(&mut self, shared: &Shared) -> Result<(), Error> {
        if self.lock.is_none() || self.distrusted {
            return Err(Error::Unavailable { reason: "the log has no sound end now".into() });
        }
        self.finish(shared)?;
        // The successor reads the last segment whole before it writes.
        self.rotate()?;
        self.stop_keeper();
        self.lock = None;
        Ok(())
    }

    /// Takes the log back that nobody took.
    fn reclaim(&mut self, shared: &Arc<Shared>) -> Result<(), Error> {
        if self.lock.is_some() {
            return Ok(());
        }
        let found = find(&self.disk, &self.dir, &self.options, Begun::TakenOver)?;
        self.lock = Some(found.lock);
        self.file = found.file;
        self.durable = found.head.clone();
        self.head = found.head;
        self.unseen = found.unseen;
        self.own.extend(found.own);
        self.distrusted = false;
        self.attach(shared)
    }

    /// When the writer has something to do even if no record comes.
    fn due(&self) -> Option<Instant> {
        if !self.own.is_empty() {
            return Some(Instant::now());
        }
        let sync = self.unsynced_since.map(|since| since + SYNC_AFTER_WRITE);
        let cover = self.uncovered_since.map(|since| since + self.options.checkpoint_interval);
        // Counting begins without a word to the writer, so it looks now and then.
        let flush = Some(Instant::now() + FLUSH_INTERVAL);
        [sync, cover, flush].into_iter().flatten().min()
    }

    /// Does what is due.
    fn attend(&mut self, shared: &Shared) -> Result<(), Error> {
        self.write_own(shared)?;
        if is_over(self.unsynced_since, SYNC_AFTER_WRITE) {
            self.sync()?;
        }
        // Little room: what was counted is small, but still anyone's to cause.
        let interval = if shared.has_room() { FLUSH_INTERVAL } else { FLUSH_INTERVAL_LOW };
        if !shared.is_counting() {
            self.counting_since = None;
        } else if is_over(self.counting_since, interval) {
            self.write_counted(shared)?;
        } else {
            self.counting_since.get_or_insert_with(Instant::now);
        }
        if self.is_checkpoint_due(&self.head) {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// The last words: everything counted, everything on disk, and a checkpoint over it.
    fn finish(&mut self, shared: &Shared) -> Result<(), Error> {
        if self.distrusted {
            // Nobody was told that what follows is in the log, so it must not turn up later.
            let cut =
                self.file.set_len(self.durable.length).and_then(|()| (self.disk.sync)(&self.file));
            return cut.map_err(|source| Error::io("cut", &self.path(), source));
        }
        self.own.extend(shared.take_counted());
        self.write_own(shared)?;
        if self.head.covered < self.head.tree.size() {
            self.checkpoint()?;
        }
        self.sync()
    }

    fn commit(&mut self, shared: &Shared, mut batch: Vec<Queued>) {
        match self.store(&mut batch, shared) {
            Ok(()) => self.answer_stored(batch),
            Err(failure) => self.fail(shared, batch, &failure),
        }
    }

    fn answer_stored(&self, batch: Vec<Queued>) {
        self.metrics.records.inc_by(batch.len() as u64);
        self.metrics.group_records.observe(batch.len() as f64);
        for record in &batch {
            self.metrics.append_seconds.observe(record.appended.elapsed().as_secs_f64());
        }
        answer(batch, &Ok(()));
    }

    fn store(&mut self, batch: &mut [Queued], shared: &Shared) -> Result<(), Error> {
        self.check_reserve(shared)?;
        let mut buffer = Vec::with_capacity(batch.iter().map(|r| r.json.len() + 256).sum());
        let mut end = self.head.clone();
        for record in batch {
            if end.length >= self.options.segment_bytes_max {
                let note = self.cover(&mut buffer, &mut end)?;
                self.write(&buffer, end, note)?;
                buffer.clear();
                self.rotate()?;
                end = self.head.clone();
            }
            record.number = end.next_number();
            compose(&mut buffer, &mut end, record.at_ms, &record.json);
        }
        let due = self.is_checkpoint_due(&end);
        let note = if due { self.cover(&mut buffer, &mut end)? } else { None };
        self.write(&buffer, end, note)?;
        let unsynced = self.head.tree.size() - self.durable.tree.size();
        match self.options.durability {
            Durability::BeforeResponse => self.sync(),
            Durability::Async if unsynced >= UNSYNCED_RECORDS_MAX => self.sync(),
            Durability::Async => Ok(()),
        }
    }

    /// Writes what the log has to say about itself, and keeps it until it is on disk.
    fn write_own(&mut self, shared: &Shared) -> Result<(), Error> {
        while let Some(event) = self.own.pop_front() {
            let json = match encode(&event) {
                Ok(json) => json,
                Err(error) => {
                    // It would be too long the next time too.
                    tracing::error!(%error, "audit log: a record of the log's own is left out");
                    continue;
                }
            };
            let mut buffer = Vec::new();
            let mut end = self.head.clone();
            let at_ms = shared.at_ms().map_or(end.at_ms, |now_ms| now_ms.max(end.at_ms));
            compose(&mut buffer, &mut end, at_ms, &json);
            if let Err(failure) = self.write(&buffer, end, None) {
                self.own.push_front(event);
                return Err(failure);
            }
            self.metrics.records.inc();
            self.own_unsynced.push(event);
        }
        if self.own_unsynced.is_empty() { Ok(()) } else { self.sync() }
    }

    fn write_counted(&mut self, shared: &Shared) -> Result<(), Error> {
        self.counting_since = None;
        self.own.extend(shared.take_counted());
        self.write_own(shared)
    }

    fn is_checkpoint_due(&self, end: &Position) -> bool {
        let uncovered = end.tree.size() - end.covered;
        uncovered >= self.options.checkpoint_records_max
            || uncovered > 0 && is_over(self.uncovered_since, self.options.checkpoint_interval)
    }

    /// Puts a checkpoint over everything written on disk.
    fn checkpoint(&mut self) -> Result<(), Error> {
        let mut buffer = Vec::new();
        let mut end = self.head.clone();
        let note = self.cover(&mut buffer, &mut end)?;
        self.write(&buffer, end, note)?;
        self.sync()
    }

    /// Signs everything before `end` and composes the record of that; gives the note.
    fn cover(&self, buffer: &mut Vec<u8>, end: &mut Position) -> Result<Option<String>, Error> {
        let size = end.tree.size();
        if end.covered >= size {
            return Ok(None);
        }
        let mut made = None;
        let time = encoding::at_text(now_ms());
        match self.options.key.sign(size, end.tree.root(), &time) {
            Ok(signed) => {
                let note = signed.note().to_owned();
                compose(buffer, end, end.at_ms, &encode(&Event::Checkpoint { note })?);
                made = Some(signed.note().to_owned());
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "audit log: a checkpoint could not be signed");
            }
        }
        // Its own record needs no further one.
        end.covered = end.tree.size();
        Ok(made)
    }

    /// Asks for the free bytes of the file system.
    fn look_at_disk(&self, shared: &Shared) -> Result<u64, Error> {
        let free = (self.disk.free_bytes)(&self.dir)
            .map_err(|source| Error::io("ask for the free space of", &self.dir, source))?;
        let left = free.saturating_sub(DISK_RESERVE_BYTES);
        self.metrics.disk_free_bytes.set(i64::try_from(left).unwrap_or(i64::MAX));
        shared.set_room(left >= PERMIT_RESERVE_BYTES);
        Ok(free)
    }

    fn check_reserve(&self, shared: &Shared) -> Result<(), Error> {
        let free = self.look_at_disk(shared)?;
        if free >= DISK_RESERVE_BYTES {
            return Ok(());
        }
        let reason = format!(
            "`{}` has {free} bytes free, fewer than the reserve of {DISK_RESERVE_BYTES}: make room",
            self.dir.display()
        );
        Err(Error::Unavailable { reason: reason.into() })
    }

    /// Writes whole lines, after which the log ends at `end`; `note` is the last checkpoint among
    /// them.
    fn write(&mut self, lines: &[u8], end: Position, note: Option<String>) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        (self.disk.write)(&self.file, lines)
            .map_err(|source| Error::io("write", &self.path(), source))?;
        let now = Instant::now();
        self.unsynced_since.get_or_insert(now);
        if note.is_some() {
            self.metrics.records.inc();
            self.unseen = note;
        }
        if end.covered < end.tree.size() {
            self.uncovered_since.get_or_insert(now);
            self.metrics.uncovered(now);
        } else {
            self.uncovered_since = None;
        }
        self.head = end;
        Ok(())
    }

    /// Puts what was written on disk.
    fn sync(&mut self) -> Result<(), Error> {
        if self.unsynced_since.is_none() {
            return Ok(());
        }
        if let Err(source) = (self.disk.sync)(&self.file) {
            self.distrusted = true;
            return Err(Error::io("sync", &self.path(), source));
        }
        self.set_durable();
        self.unsynced_since = None;
        Ok(())
    }

    fn set_durable(&mut self) {
        self.durable = self.head.clone();
        self.own_unsynced.clear();
        if let Some(shared) = &self.shared {
            shared.committed.send_replace(self.durable.tree.size());
        }
        if let Some(note) = self.unseen.take() {
            self.metrics.checkpointed();
            self.tell_keeper(Told::Checkpoint(note));
        }
    }

    fn rotate(&mut self) -> Result<(), Error> {
        self.sync()?;
        let (file, head) = segment::begin(&self.disk, &self.dir, &self.options.source, &self.head)?;
        self.file = file;
        self.head = head;
        self.set_durable();
        self.tell_keeper(Told::SegmentClosed);
        Ok(())
    }

    fn tell_keeper(&self, told: Told) {
        if let Some(keeper) = &self.keeper {
            keeper.tell(told);
        }
    }

    /// Refuses what waits and is not on disk, and every append until [`Writer::recover`] succeeds.
    fn fail(&mut self, shared: &Shared, batch: Vec<Queued>, failure: &Error) {
        let reason: Arc<str> = chain(failure).into();
        let queued = shared.set_unavailable(&reason);
        let first = batch.iter().map(|record| record.number).find(|number| *number > 0);
        let first = first.unwrap_or(self.head.next_number());
        self.salvage();
        let next = self.durable.next_number();
        let is_stored = |record: &Queued| record.number > 0 && record.number < next;
        let (stored, refused): (Vec<_>, Vec<_>) =
            batch.into_iter().chain(queued).partition(is_stored);
        let (counted, refused): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|record| record.is_refusal);
        for record in counted {
            if let Ok(event) = serde_json::from_slice(&record.json) {
                shared.recount(&event);
            }
        }
        // Records of earlier batches that were never synced are lost too.
        let lost = refused.len() as u64 + first.saturating_sub(next);
        self.tell(&reason, lost);
        self.metrics.records_refused.inc_by(lost);
        answer(stored, &Ok(()));
        answer(refused, &Err(reason));
    }

    /// After a failed write: removes the incomplete lines and syncs the whole ones before them.
    fn salvage(&mut self) {
        if self.lock.is_none() {
            return;
        }
        let cut = |file: &File, length| {
            file.set_len(length)?;
            (self.disk.sync)(file)
        };
        if !self.distrusted && cut(&self.file, self.head.length).is_ok() {
            self.set_durable();
        } else {
            self.distrusted = true;
            // A checkpoint that did not reach the disk was never made.
            self.unseen = None;
            for event in self.own_unsynced.drain(..).rev() {
                self.own.push_front(event);
            }
        }
        self.unsynced_since = None;
    }

    /// Tries to write again; on success appends are taken again.
    fn recover(&mut self, shared: &Arc<Shared>) {
        match self.restore(shared) {
            Ok(()) => {
                tracing::warn!(
                    dir = %self.dir.display(),
                    next_record = self.head.next_number(),
                    "audit log: available again"
                );
                if let Some((reason, since_ms, refused)) = self.outage.take() {
                    let refused = refused + shared.take_refused();
                    let since = encoding::at_text(since_ms);
                    let reason = reason.to_string();
                    self.own.push_back(Event::Unavailable { reason, since, refused });
                }
                shared.set_available();
            }
            Err(failure) => self.tell(&chain(&failure).into(), 0),
        }
    }

    fn restore(&mut self, shared: &Arc<Shared>) -> Result<(), Error> {
        self.check_reserve(shared)?;
        self.reclaim(shared)?;
        if self.distrusted {
            let path = self.path();
            let io_error = |doing| {
                let path = path.as_path();
                move |source| Error::io(doing, path, source)
            };
            let file = segment::open_for_append(&path).map_err(io_error("open"))?;
            file.set_len(self.durable.length).map_err(io_error("cut"))?;
            (self.disk.sync)(&file).map_err(io_error("sync"))?;
            self.head = self.durable.clone();
            self.rotate()?;
            self.distrusted = false;
        } else if self.head.length >= self.options.segment_bytes_max {
            self.rotate()?;
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.dir.join(encoding::segment_name(self.head.segment))
    }

    fn tell(&mut self, reason: &Arc<str>, refused: u64) {
        let known = self.outage.take();
        if known.as_ref().is_none_or(|(known, ..)| known != reason) {
            tracing::error!(
                dir = %self.dir.display(),
                %reason,
                records_refused = refused,
                "audit log: unavailable"
            );
        }
        let (since_ms, before) =
            known.map_or((now_ms(), 0), |(_, since, refused)| (since, refused));
        self.outage = Some((Arc::clone(reason), since_ms, before + refused));
    }
}

impl Drop for Writer {
    /// However the writer ends, nobody waits for it afterwards.
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            answer(shared.set_unavailable(&STOPPED.into()), &Err(STOPPED.into()));
        }
    }
}

fn answer(batch: Vec<Queued>, committed: &Result<(), Arc<str>>) {
    for waiter in batch.into_iter().filter_map(|record| record.waiter) {
        // A caller that went away does not need the answer.
        let _ = waiter.send(committed.clone());
    }
}

/// Appends the line of the next record.
fn compose(buffer: &mut Vec<u8>, end: &mut Position, at_ms: i64, json: &[u8]) {
    let start = buffer.len();
    let at = encoding::at_text(at_ms);
    let leaf = encoding::write_record(buffer, end.next_number(), &at, &end.prev, json);
    end.advance(leaf, buffer.len() - start, at_ms);
}

fn is_over(since: Option<Instant>, interval: std::time::Duration) -> bool {
    since.is_some_and(|since| since.elapsed() >= interval)
}

/// Takes the lock and finds the end of the log, or begins it.
fn find(disk: &Disk, dir: &Path, options: &Options, begun: Begun) -> Result<Found, Error> {
    let lock = lock(dir)?;
    segment::set_format_1_aside(dir)?;
    let segments = encoding::list_segments(dir).map_err(|source| Error::io("list", dir, source))?;
    let shown = segment::shown(dir, options.key.verifying_key())?;
    let (mut own, mut unseen) = (VecDeque::new(), None);
    let (file, head) = match &segments[..] {
        [] => {
            segment::must_be_new(dir)?;
            segment::begin(disk, dir, &options.source, &Position::origin(now_ms()))?
        }
        [before @ .., (_, last)] => {
            let before = before.last().filter(|_| begun == Begun::ByItself);
            let open = before.map(|(_, path)| Open::of_segment(path)).unwrap_or_default();
            let resumed = segment::resume(disk, dir, last, &options.source, shown.as_ref(), open)?;
            own.extend(resumed.cut);
            if begun == Begun::ByItself {
                own.extend(resumed.open.events());
            }
            // The last end may have come before it was shown.
            unseen = resumed.note;
            (resumed.file, resumed.end)
        }
    };
    Ok(Found { lock, file, head, unseen, own })
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| Error::io("open", &path, source))?;
    // A program that was just started elsewhere holds a copy of every open file for a moment, so a
    // lock that was given back may still be seen as taken.
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => return Err(Error::Locked(dir.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(Error::io("lock", &path, source));
            }
        }
    }
}

/// With [`GATHER_INTERVAL`] before it, a record reaches the disk within [`SYNC_INTERVAL`].
const SYNC_AFTER_WRITE: std::time::Duration = SYNC_INTERVAL.saturating_sub(GATHER_INTERVAL);
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// An error and its sources in one line.
fn chain(error: &Error) -> String {
    let mut text = match error {
        Error::Unavailable { reason } => reason.to_string(),
        Error::Io { .. }
        | Error::Locked(_)
        | Error::BadSource(_)
        | Error::OtherSource { .. }
        | Error::Damaged { .. }
        | Error::NotWhatItWas { .. }
        | Error::TooLong { .. }
        | Error::Encode(_)
        | Error::Metrics(_) => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
