//! Looks after what the writer leaves behind, so that the writer never waits for it: shows the
//! newest checkpoint in its file, compresses and indexes closed segments, and deletes those whose
//! retention is over.
//!
//! ```text
//!  checkpoint on disk ──► checkpoint.new ──► checkpoint
//!  00000001.jsonl ──► 00000001.jsonl.zst.new ──► .jsonl.zst, .jsonl removed ──► .index
//!  older than retention: verified ──► tombstone signed, on disk ──► files removed ──► record
//! ```
//!
//! INVARIANT: a plain segment is removed only after the compressed one was read back equal and is
//! on disk. Only whole segments from the front are deleted, only when the signed checkpoint at
//! their end fits them, and only after the tombstone that proves it is on disk. Whatever is
//! interrupted is taken up again at the next start.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tlog_tiles::Hash;

use crate::checkpoint::Checkpoint;
use crate::clock::now_ms;
use crate::encoding::{self, Header, Tombstone};
use crate::entry::Event;
use crate::index;
use crate::log::{Error, Options, Shared, encode};
use crate::segment::{replace, sync_dir};
use crate::tree::Frontier;

/// Default of [`Options::retention_grace`].
pub const RETENTION_GRACE: Duration = Duration::from_secs(24 * 3600);
/// How often the retention is looked at when no segment is closed.
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

/// What the writer says.
pub(crate) enum Told {
    /// This checkpoint is on disk.
    Checkpoint(String),
    /// A segment was closed.
    SegmentClosed,
}

/// The threads that look after what the writer leaves behind: one for checkpoints, which are due
/// each second, and one for segments, which take their time.
pub(crate) struct Keeper {
    told: Sender<Told>,
    stopping: Arc<AtomicBool>,
    threads: [JoinHandle<()>; 2],
}

impl Keeper {
    /// Starts it; segments that an earlier run left behind come first.
    pub(crate) fn start(dir: &Path, options: Options, shared: Arc<Shared>) -> Result<Self, Error> {
        let (told, hears) = channel();
        let (closed, is_told) = channel();
        let show = dir.to_owned();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let dir_kept = dir.to_owned();
        let mut keeping = Keeping { dir: dir_kept, options, shared, stopping: stop, expired: None };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            thread.map_err(|source| Error::io("start the keeper of", dir, source))
        };
        let heads = start("audit-head", Box::new(move || show_heads(&show, &hears, &closed)))?;
        let segments = start("audit-keeper", Box::new(move || keeping.run(&is_told)))?;
        Ok(Self { told, stopping, threads: [heads, segments] })
    }

    /// Hears what the writer did. What a keeper that ended leaves undone is done at the next start.
    pub(crate) fn tell(&self, told: Told) {
        let _ = self.told.send(told);
    }

    /// Ends it after the segment it is at.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.told);
        for thread in self.threads {
            // What it did not finish is taken up at the next start.
            let _ = thread.join();
        }
    }
}

/// Shows each checkpoint in its file; of several that wait, the newest.
fn show_heads(dir: &Path, hears: &Receiver<Told>, closed: &Sender<Closed>) {
    while let Ok(first) = hears.recv() {
        let mut newest = None;
        for told in std::iter::once(first).chain(hears.try_iter()) {
            match told {
                Told::Checkpoint(note) => newest = Some(note),
                // A segment that can not be told of is found at the next start.
                Told::SegmentClosed => drop(closed.send(Closed)),
            }
        }
        let shown = newest.map(|note| replace(dir, encoding::CHECKPOINT_FILE, &note));
        if let Some(Err(error)) = shown {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "audit log: the file `checkpoint` could not be written");
        }
    }
}

/// Says that a segment was closed.
struct Closed;

struct Keeping {
    dir: PathBuf,
    options: Options,
    shared: Arc<Shared>,
    stopping: Arc<AtomicBool>,
    /// The last segment that was expired at an earlier look, and when that was.
    expired: Option<(u64, Instant)>,
}

/// Why a closed segment can not be looked after.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("`{}` can not be {doing}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` does not read back as it was written", .0.display())]
    NotEqual(PathBuf),
    #[error(
        "`{}` is not what its signed checkpoint says, so nothing is deleted: run `sekisho audit \
         verify`",
        .0.display()
    )]
    NotSound(PathBuf),
    #[error("the tombstone can not be signed")]
    Tombstone(#[from] crate::checkpoint::CheckpointError),
    #[error(transparent)]
    Log(#[from] Error),
}

impl Keeping {
    fn run(&mut self, closed: &Receiver<Closed>) {
        loop {
            self.attend();
            match closed.recv_timeout(RETENTION_INTERVAL) {
                Ok(Closed) => while closed.try_recv().is_ok() {},
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn attend(&mut self) {
        for result in [self.expire(), self.compress_closed(), self.index_closed()] {
            if let Err(error) = result {
                let error: &dyn std::error::Error = &error;
                tracing::error!(
                    dir = %self.dir.display(),
                    error,
                    "audit log: a closed segment could not be looked after; tried again later"
                );
            }
        }
    }

    /// All segments but the one that is being written.
    fn closed(&self) -> Result<Vec<(u64, PathBuf)>, KeepError> {
        let mut segments = self.segments()?;
        segments.pop();
        Ok(segments)
    }

    fn segments(&self) -> Result<Vec<(u64, PathBuf)>, KeepError> {
        encoding::list_segments(&self.dir).map_err(|source| self.io("listed", &self.dir, source))
    }

    fn io(&self, doing: &'static str, path: &Path, source: io::Error) -> KeepError {
        KeepError::Io { doing, path: path.to_owned(), source }
    }

    fn compress_closed(&self) -> Result<(), KeepError> {
        let mut result = Ok(());
        for (number, path) in self.closed()? {
            if !encoding::is_compressed(&path) && !self.is_stopping() {
                // One that can not be compressed does not hold up the others.
                result = self.compress(number, &path).and(result);
            }
        }
        result
    }

    fn compress(&self, number: u64, plain: &Path) -> Result<(), KeepError> {
        let target = self.dir.join(encoding::compressed_name(number));
        let unfinished = target.with_extension("zst.new");
        compress_file(plain, &unfinished).map_err(|source| self.io("compressed", plain, source))?;
        let equal = reads_equal(plain, &unfinished)
            .map_err(|source| self.io("read back", &unfinished, source))?;
        if !equal {
            return Err(KeepError::NotEqual(unfinished));
        }
        // An index made before names places in the plain file.
        let _ = std::fs::remove_file(self.dir.join(encoding::index_name(number)));
        let swapped = std::fs::rename(&unfinished, &target)
            .and_then(|()| sync_dir(&self.dir))
            .and_then(|()| std::fs::remove_file(plain))
            .and_then(|()| sync_dir(&self.dir));
        swapped.map_err(|source| self.io("replaced by its compressed form", plain, source))
    }

    fn index_closed(&self) -> Result<(), KeepError> {
        let mut result = Ok(());
        for (number, _) in self.closed()? {
            let is_there = self.dir.join(encoding::index_name(number)).exists();
            if !is_there && !self.is_stopping() {
                result = index::build_index(&self.dir, number).map_err(KeepError::from).and(result);
            }
        }
        result
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Deletes the segments whose last record is older than the retention.
    ///
    /// A clock that is wrong for a moment must not cost the log: only what was expired at a look
    /// [`Options::retention_grace`] ago too is deleted.
    fn expire(&mut self) -> Result<(), KeepError> {
        let retention_ms = i64::try_from(self.options.retention.as_millis()).unwrap_or(i64::MAX);
        let before = encoding::at_text(now_ms().saturating_sub(retention_ms));
        let segments = self.segments()?;
        let mut expired = None;
        // The header of a segment bears the time of the last record before it.
        for (at, (_, path)) in segments.iter().enumerate().skip(1) {
            let header = read_header(path).map_err(|source| self.io("read", path, source))?;
            let header = header.ok_or_else(|| KeepError::NotSound(path.clone()))?;
            if header.at >= before {
                break;
            }
            expired = Some((at, header));
        }
        let last = expired.as_ref().and_then(|(count, _)| segments.get(count - 1));
        if !self.is_ripe(last.map(|(number, _)| *number)) {
            return self.remove_buried();
        }
        if let Some((count, next)) = expired {
            self.bury(segments.get(..count).unwrap_or_default(), &next)?;
        }
        self.remove_buried()
    }

    /// Whether something is expired now and was at a look long enough ago.
    fn is_ripe(&mut self, expired: Option<u64>) -> bool {
        let Some(through) = expired else {
            self.expired = None;
            return false;
        };
        match self.expired {
            Some((_, since)) if since.elapsed() >= self.options.retention_grace => {
                self.expired = None;
                true
            }
            Some(_) => false,
            None => {
                self.expired = Some((through, Instant::now()));
                self.options.retention_grace.is_zero()
            }
        }
    }

    /// Signs that the records before the segment of header `next` are deleted, and deletes them.
    fn bury(&self, expired: &[(u64, PathBuf)], next: &Header) -> Result<(), KeepError> {
        let Some((number, last)) = expired.last() else { return Ok(()) };
        let end = self.sound_end(last)?;
        let roots: Vec<String> = end.roots().iter().map(|root| hex::encode(root.0)).collect();
        if end.size() + 1 != next.first || roots != next.tree {
            return Err(KeepError::NotSound(last.clone()));
        }
        let last_hash =
            next.prev.as_bytes().try_into().map_err(|_| KeepError::NotSound(last.clone()))?;
        let tombstone = Tombstone {
            origin: self.options.key.verifying_key().name().to_owned(),
            through_segment: *number,
            through_record: end.size(),
            last_hash,
            root: end.root(),
            until: next.at.clone(),
            deleted_at: encoding::at_text(now_ms()),
            retention_days: self.options.retention.as_secs() / (24 * 3600),
        };
        let note = self.options.key.sign_text(tombstone.to_text().as_bytes())?;
        replace(&self.dir, encoding::TOMBSTONE_FILE, &note)
            .and_then(|()| sync_dir(&self.dir))
            .map_err(|source| self.io("signed off", &self.dir, source))?;
        tracing::info!(
            dir = %self.dir.display(),
            through_segment = number,
            through_record = end.size(),
            until = %next.at,
            "audit log: segments older than the retention are deleted"
        );
        self.remove_buried()?;
        let event = Event::SegmentsDeleted {
            through_segment: *number,
            through_record: end.size(),
            until: next.at.clone(),
        };
        drop(self.shared.push(encode(&event)?, false)?);
        Ok(())
    }

    /// The tree at the end of a segment, if every checkpoint in it was signed by our key over what
    /// is before it. After a failure a segment ends without one; then its end is the writer's own
    /// word, which the next header must repeat.
    fn sound_end(&self, path: &Path) -> Result<Frontier, KeepError> {
        let not_sound = || KeepError::NotSound(path.to_owned());
        let io = |source| self.io("read", path, source);
        let header = read_header(path).map_err(io)?.ok_or_else(not_sound)?;
        let roots: Option<Vec<Hash>> =
            header.tree.iter().map(|root| encoding::unhex(root.as_bytes())).collect();
        let size = header.first.saturating_sub(1);
        let mut tree = roots.and_then(|roots| Frontier::new(size, roots)).ok_or_else(not_sound)?;
        let mut reader = encoding::open_segment(path).map_err(io)?;
        let mut line = Vec::new();
        encoding::read_line(&mut reader, &mut line).map_err(io)?;
        while encoding::read_line(&mut reader, &mut line).map_err(io)? > 0 {
            let whole = line.strip_suffix(b"\n").ok_or_else(not_sound)?;
            let (text, _) = encoding::split_hash(whole).ok_or_else(not_sound)?;
            let record = encoding::parse_record(whole).ok_or_else(not_sound)?;
            if let Ok(Event::Checkpoint { note }) = serde_json::from_slice(record.event) {
                let key = self.options.key.verifying_key();
                let checkpoint = Checkpoint::open(&note, key).map_err(|_| not_sound())?;
                if checkpoint.size() != tree.size() || checkpoint.hash() != tree.root() {
                    return Err(not_sound());
                }
            }
            tree.push(tlog_tiles::record_hash(text));
        }
        Ok(tree)
    }

    /// Removes the files of deleted segments, also those that an earlier run left behind.
    fn remove_buried(&self) -> Result<(), KeepError> {
        let key = self.options.key.verifying_key();
        let path = self.dir.join(encoding::TOMBSTONE_FILE);
        let Ok(note) = std::fs::read_to_string(&path) else { return Ok(()) };
        let tombstone = key
            .open(&note)
            .ok()
            .and_then(|text| Tombstone::parse(std::str::from_utf8(&text).ok()?));
        let tombstone = tombstone.ok_or(KeepError::NotSound(path))?;
        let mut removed = false;
        for (number, _) in self.closed()? {
            if number > tombstone.through_segment {
                break;
            }
            let names = [
                encoding::index_name(number),
                encoding::segment_name(number),
                encoding::compressed_name(number),
            ];
            for path in names.map(|name| self.dir.join(name)) {
                match std::fs::remove_file(&path) {
                    Ok(()) => removed = true,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(self.io("deleted", &path, source)),
                }
            }
        }
        if removed {
            sync_dir(&self.dir).map_err(|source| self.io("synced", &self.dir, source))?;
        }
        Ok(())
    }
}

fn read_header(path: &Path) -> io::Result<Option<Header>> {
    let mut line = Vec::new();
    encoding::read_line(&mut encoding::open_segment(path)?, &mut line)?;
    Ok(line.strip_suffix(b"\n").and_then(encoding::parse_header))
}

/// Compresses whole lines into frames of about [`FRAME_BYTES`], so that one record can be read
/// without the segment before it.
fn compress_file(plain: &Path, target: &Path) -> io::Result<()> {
    let mut reader = encoding::open_segment(plain)?;
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(target)?;
    let mut frame = Vec::with_capacity(FRAME_BYTES + encoding::LINE_BYTES_MAX);
    loop {
        let length = reader.read_until(b'\n', &mut frame)?;
        if frame.len() >= FRAME_BYTES || length == 0 && !frame.is_empty() {
            file.write_all(&zstd::bulk::compress(&frame, COMPRESSION_LEVEL)?)?;
            frame.clear();
        }
        if length == 0 {
            break;
        }
    }
    file.sync_all()
}

fn reads_equal(plain: &Path, compressed: &Path) -> io::Result<bool> {
    let mut plain = encoding::open_segment(plain)?;
    let mut unpacked = zstd::stream::read::Decoder::new(File::open(compressed)?)?;
    let (mut one, mut other) = (Vec::new(), Vec::new());
    loop {
        one.clear();
        other.clear();
        plain.by_ref().take(FRAME_BYTES as u64).read_to_end(&mut one)?;
        unpacked.by_ref().take(FRAME_BYTES as u64).read_to_end(&mut other)?;
        if one != other {
            return Ok(false);
        }
        if one.is_empty() {
            return Ok(true);
        }
    }
}

const FRAME_BYTES: usize = 1 << 20;
const COMPRESSION_LEVEL: i32 = 3;
