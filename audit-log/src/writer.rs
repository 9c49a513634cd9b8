//! The one thread that writes: composes lines, chains their hashes, writes and syncs a whole batch
//! at once, begins new segments, and finds back to a sound state after a failure.
//!
//! Two positions matter. `head` is what was written, `durable` what was synced. After a failed
//! sync nothing written since the last good one can be trusted (the kernel may have dropped the
//! pages and still call the next sync a success), so the segment is cut back to `durable` and a new
//! one is begun.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::encoding::{self, GENESIS};
use crate::log::{
    DISK_RESERVE_BYTES, Durability, Error, Options, Queued, STOPPED, SYNC_INTERVAL, Shared,
    UNSYNCED_RECORDS_MAX, Work, now_ms,
};
use crate::segment::{self, Disk, Position};

/// The writer's side of a log.
pub(crate) struct Writer {
    disk: Disk,
    dir: PathBuf,
    options: Options,
    shared: Option<Arc<Shared>>,
    file: File,
    head: Position,
    durable: Position,
    /// When the oldest unsynced record was written.
    unsynced_since: Option<Instant>,
    /// A sync failed: nothing after `durable` can be trusted.
    distrusted: bool,
    /// The last reason that was logged, so that each is logged once.
    told: Option<Arc<str>>,
    /// Held open: the lock ends with the writer.
    _lock: File,
}

impl Writer {
    /// Takes the lock and continues the log, or begins it. Also returns the time of its last line.
    pub(crate) fn open(disk: Disk, dir: &Path, options: Options) -> Result<(Self, i64), Error> {
        if !encoding::is_source_name(&options.source) {
            return Err(Error::BadSource(options.source));
        }
        segment::create_dir(dir)?;
        let lock = lock(dir)?;
        let segments =
            encoding::list_segments(dir).map_err(|source| Error::io("list", dir, source))?;
        let (file, head) = match segments.last() {
            Some((_, path)) => segment::resume(&disk, dir, path, &options.source)?,
            None => segment::begin(&disk, dir, &options.source, &origin())?,
        };
        let writer = Self {
            disk,
            dir: dir.to_owned(),
            options,
            shared: None,
            file,
            head,
            durable: head,
            unsynced_since: None,
            distrusted: false,
            told: None,
            _lock: lock,
        };
        Ok((writer, head.at_ms))
    }

    /// The number of the next record.
    pub(crate) fn next_number(&self) -> u64 {
        self.head.next_number
    }

    /// Joins the writer to the queue it serves.
    pub(crate) fn attach(&mut self, shared: Arc<Shared>) {
        self.shared = Some(shared);
    }

    /// Serves the queue until it is closed.
    pub(crate) fn run(mut self) {
        let Some(shared) = self.shared.clone() else { return };
        loop {
            let sync_due = self.unsynced_since.map(|since| since + SYNC_INTERVAL);
            match shared.next(sync_due) {
                Work::Batch(batch) => self.commit(&shared, batch),
                Work::SyncDue => {
                    if let Err(failure) = self.sync() {
                        self.fail(&shared, Vec::new(), &failure);
                    }
                }
                Work::Recover => self.recover(&shared),
                Work::End => break,
            }
        }
        if let Err(failure) = self.sync() {
            self.fail(&shared, Vec::new(), &failure);
        }
    }

    fn commit(&mut self, shared: &Shared, batch: Vec<Queued>) {
        match self.store(&batch) {
            Ok(()) => answer(batch, &Ok(())),
            Err(failure) => self.fail(shared, batch, &failure),
        }
    }

    fn store(&mut self, batch: &[Queued]) -> Result<(), Error> {
        self.check_reserve()?;
        let mut buffer = Vec::with_capacity(batch.iter().map(|r| r.json.len() + 256).sum());
        let mut end = self.head;
        for record in batch {
            if end.length >= self.options.segment_bytes_max {
                self.write(&buffer, end)?;
                buffer.clear();
                self.rotate()?;
                end = self.head;
            }
            let start = buffer.len();
            let at = encoding::at_text(record.at_ms);
            end.hash =
                encoding::write_record(&mut buffer, record.number, &at, &end.hash, &record.json);
            end.length += (buffer.len() - start) as u64;
            end.next_number = record.number + 1;
            end.at_ms = record.at_ms;
        }
        self.write(&buffer, end)?;
        let unsynced = self.head.next_number - self.durable.next_number;
        match self.options.durability {
            Durability::BeforeResponse => self.sync(),
            Durability::Async if unsynced >= UNSYNCED_RECORDS_MAX => self.sync(),
            Durability::Async => Ok(()),
        }
    }

    fn check_reserve(&self) -> Result<(), Error> {
        let free = (self.disk.free_bytes)(&self.dir)
            .map_err(|source| Error::io("ask for the free space of", &self.dir, source))?;
        if free >= DISK_RESERVE_BYTES {
            return Ok(());
        }
        let reason = format!(
            "`{}` has {free} bytes free, fewer than the reserve of {DISK_RESERVE_BYTES}: make room",
            self.dir.display()
        );
        Err(Error::Unavailable { reason: reason.into() })
    }

    /// Writes whole lines, after which the log ends at `end`.
    fn write(&mut self, lines: &[u8], end: Position) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        (self.disk.write)(&self.file, lines)
            .map_err(|source| Error::io("write", &self.path(), source))?;
        self.head = end;
        self.unsynced_since.get_or_insert_with(Instant::now);
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
        self.durable = self.head;
        self.unsynced_since = None;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), Error> {
        self.sync()?;
        let (file, head) = segment::begin(&self.disk, &self.dir, &self.options.source, &self.head)?;
        self.file = file;
        self.head = head;
        self.durable = head;
        Ok(())
    }

    /// Refuses what waits and is not on disk, and every append until [`Writer::recover`] succeeds.
    fn fail(&mut self, shared: &Shared, batch: Vec<Queued>, failure: &Error) {
        let reason: Arc<str> = chain(failure).into();
        let queued = shared.set_unavailable(&reason);
        self.salvage();
        let next = self.durable.next_number;
        let (stored, refused): (Vec<_>, Vec<_>) =
            batch.into_iter().chain(queued).partition(|record| record.number < next);
        self.tell(&reason, refused.len());
        answer(stored, &Ok(()));
        answer(refused, &Err(reason));
    }

    /// After a failed write: removes the incomplete lines and syncs the whole ones before them.
    fn salvage(&mut self) {
        let cut = |file: &File, length| {
            file.set_len(length)?;
            (self.disk.sync)(file)
        };
        if !self.distrusted && cut(&self.file, self.head.length).is_ok() {
            self.durable = self.head;
        } else {
            self.distrusted = true;
        }
        self.unsynced_since = None;
    }

    /// Tries to write again; on success appends are taken again.
    fn recover(&mut self, shared: &Shared) {
        match self.restore() {
            Ok(()) => {
                tracing::warn!(
                    dir = %self.dir.display(),
                    next_record = self.head.next_number,
                    "audit log: available again"
                );
                self.told = None;
                shared.set_available(self.head.next_number);
            }
            Err(failure) => self.tell(&chain(&failure).into(), 0),
        }
    }

    fn restore(&mut self) -> Result<(), Error> {
        self.check_reserve()?;
        if self.distrusted {
            let path = self.path();
            let io_error = |doing| {
                let path = path.as_path();
                move |source| Error::io(doing, path, source)
            };
            let file = segment::open_for_append(&path).map_err(io_error("open"))?;
            file.set_len(self.durable.length).map_err(io_error("cut"))?;
            (self.disk.sync)(&file).map_err(io_error("sync"))?;
            self.head = self.durable;
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

    fn tell(&mut self, reason: &Arc<str>, refused: usize) {
        if self.told.as_ref() != Some(reason) {
            tracing::error!(
                dir = %self.dir.display(),
                %reason,
                records_refused = refused,
                "audit log: unavailable"
            );
            self.told = Some(Arc::clone(reason));
        }
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

/// The position before the first segment.
fn origin() -> Position {
    Position { segment: 0, length: 0, hash: GENESIS, next_number: 1, at_ms: now_ms() }
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
        | Error::TooLong { .. }
        | Error::Encode(_) => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
