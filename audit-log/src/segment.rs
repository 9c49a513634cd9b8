//! Segment files as the writer sees them: begin one, continue one, find and cut a torn tail.
//!
//! INVARIANT: a segment file never exists without a whole header: it is written under another
//! name, synced, and renamed.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tlog_tiles::Hash;

use crate::checkpoint::{Checkpoint, CheckpointError, VerifyingKey, latest_checkpoint};
use crate::encoding::{self, FORMAT, GENESIS, Header, HexHash};
use crate::entry::{ALLOW, Event};
use crate::log::Error;
use crate::tree::Frontier;

/// What the log asks of a disk, so that one can be put in its place that fails in ways which can
/// not be provoked on a sound one.
pub struct Disk {
    /// Appends bytes to a file.
    pub write: Box<WriteCall>,
    /// Puts the written bytes of a file on the medium.
    pub sync: Box<SyncCall>,
    /// Bytes that an ordinary user may still write on the file system of a folder.
    pub free_bytes: Box<SpaceCall>,
}

/// See [`Disk::write`].
pub type WriteCall = dyn Fn(&File, &[u8]) -> io::Result<()> + Send;
/// See [`Disk::sync`].
pub type SyncCall = dyn Fn(&File) -> io::Result<()> + Send;
/// See [`Disk::free_bytes`].
pub type SpaceCall = dyn Fn(&Path) -> io::Result<u64> + Send;

impl Disk {
    /// write, fdatasync and statvfs.
    pub fn real() -> Self {
        Self {
            write: Box::new(|mut file, bytes| file.write_all(bytes)),
            sync: Box::new(File::sync_data),
            free_bytes: Box::new(|dir| {
                let space = rustix::fs::statvfs(dir)?;
                Ok(space.f_bavail.saturating_mul(space.f_frsize))
            }),
        }
    }
}

/// A place in the log: everything before it is written.
#[derive(Debug, Clone)]
pub(crate) struct Position {
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Bytes of the segment up to here.
    pub(crate) length: u64,
    /// The tree of all records before.
    pub(crate) tree: Frontier,
    /// Leaf hash of the record before.
    pub(crate) prev: HexHash,
    /// Time of the line before, Unix milliseconds.
    pub(crate) at_ms: i64,
    /// Number of the last checkpoint record: what is before needs no further one.
    pub(crate) covered: u64,
}

impl Position {
    /// The position before the first segment.
    pub(crate) fn origin(at_ms: i64) -> Self {
        Self { segment: 0, length: 0, tree: Frontier::default(), prev: GENESIS, at_ms, covered: 0 }
    }

    /// The number of the next record.
    pub(crate) fn next_number(&self) -> u64 {
        self.tree.size() + 1
    }

    /// Goes past a record of `bytes` bytes with its LF.
    pub(crate) fn advance(&mut self, leaf: Hash, bytes: usize, at_ms: i64) {
        self.tree.push(leaf);
        self.prev = encoding::hex(&leaf);
        self.length += bytes as u64;
        self.at_ms = at_ms;
    }
}

/// Makes the folder, mode 0700, if it is missing.
pub(crate) fn create_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::io("create", dir, source))
}

/// Begins the segment after `end` and syncs it with its folder entry.
pub(crate) fn begin(
    disk: &Disk,
    dir: &Path,
    source: &str,
    end: &Position,
) -> Result<(File, Position), Error> {
    let number = end.segment + 1;
    let header = Header {
        format: FORMAT.to_owned(),
        source: source.to_owned(),
        segment: number,
        first: end.next_number(),
        at: encoding::at_text(end.at_ms),
        prev: encoding::hash_text(&end.prev),
        tree: end.tree.roots().iter().map(|root| hex::encode(root.0)).collect(),
    };
    let line = encoding::header_line(&header);
    let path = dir.join(encoding::segment_name(number));
    let unfinished = dir.join(format!("{number:08}.new"));
    let file = (|| {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(&line)?;
        (disk.sync)(&file)?;
        match std::fs::read(&path) {
            // An attempt that failed after its rename: the same position gives the same header.
            Ok(found) if found == line => {}
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        std::fs::rename(&unfinished, &path)?;
        sync_dir(dir)?;
        open_for_append(&path)
    })()
    .map_err(|source| Error::io("create", &path, source))?;
    let length = line.len() as u64;
    Ok((file, Position { segment: number, length, ..end.clone() }))
}

/// Opens a segment so that writes go to its end.
pub(crate) fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// Replaces a small file as a whole: after a loss of power the old or the new one is there.
pub(crate) fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let unfinished = dir.join(format!("{name}.new"));
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&unfinished, dir.join(name))
}

/// Puts the entries of a folder on the medium.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A log that is continued.
pub(crate) struct Resumed {
    pub(crate) file: File,
    pub(crate) end: Position,
    /// Told when a torn tail was cut.
    pub(crate) cut: Option<Event>,
    /// Request ids of permits and intents that the log does not say the end of.
    pub(crate) open: Open,
    /// The last checkpoint of the segment.
    pub(crate) note: Option<String>,
}

/// Opens the last segment, cuts a torn tail and puts the rest on disk.
pub(crate) fn resume(
    disk: &Disk,
    dir: &Path,
    path: &Path,
    source: &str,
    shown: Option<&Checkpoint>,
    mut open: Open,
) -> Result<Resumed, Error> {
    let io_error = |doing| move |source| Error::io(doing, path, source);
    let (header, end, note) = scan(path, shown, &mut open)?;
    if let Some(shown) = shown.filter(|shown| shown.size() >= end.tree.size()) {
        let what = format!(
            "the file `checkpoint` covers {} records, the log ends at {}: its newest records were \
             cut off",
            shown.size(),
            end.tree.size()
        );
        return Err(Error::NotWhatItWas { dir: dir.to_owned(), what });
    }
    if header.source != source {
        return Err(Error::OtherSource {
            dir: dir.to_owned(),
            found: header.source,
            wanted: source.to_owned(),
        });
    }
    let file = open_for_append(path).map_err(io_error("open"))?;
    let length = file.metadata().map_err(io_error("open"))?.len();
    let mut cut = None;
    if length > end.length {
        let kept = keep_tail(path, end.length).map_err(io_error("keep the torn tail of"))?;
        file.set_len(end.length).map_err(io_error("cut the torn tail of"))?;
        let (bytes, last_record) = (length - end.length, end.tree.size());
        tracing::warn!(
            file = %path.display(),
            bytes,
            last_record,
            kept_as = %kept.display(),
            "audit log: the last start ended without its last words (loss of power or kill): cut \
             the torn tail at the last whole record"
        );
        let segment = encoding::segment_name(end.segment);
        cut = Some(Event::TailCut { segment, bytes, last_record });
    }
    (disk.sync)(&file).map_err(io_error("sync"))?;
    Ok(Resumed { file, end, cut, open, note })
}

/// The checkpoint that was shown last.
pub(crate) fn shown(dir: &Path, key: &VerifyingKey) -> Result<Option<Checkpoint>, Error> {
    latest_checkpoint(dir, key).map_err(|error| match error {
        CheckpointError::Io { path, source } => Error::Io { doing: "read", path, source },
        CheckpointError::LooseMode(_)
        | CheckpointError::NotAKey { .. }
        | CheckpointError::BadName(_)
        | CheckpointError::Malformed
        | CheckpointError::OtherLog { .. }
        | CheckpointError::BadSignature(_)
        | CheckpointError::Signing => {
            let what = format!("its file `checkpoint`: {error}");
            Error::NotWhatItWas { dir: dir.to_owned(), what }
        }
    })
}

/// Refuses a folder without segments that once had some.
pub(crate) fn must_be_new(dir: &Path) -> Result<(), Error> {
    let left = [encoding::CHECKPOINT_FILE, encoding::TOMBSTONE_FILE];
    match left.iter().find(|name| dir.join(name).exists()) {
        None => Ok(()),
        Some(name) => {
            let what = format!("the file `{name}` is there, but no segment: the log was removed");
            Err(Error::NotWhatItWas { dir: dir.to_owned(), what })
        }
    }
}

/// Copies what follows `offset` into a file beside the segment.
fn keep_tail(path: &Path, offset: u64) -> io::Result<PathBuf> {
    let kept = path.with_extension(format!("cut-{offset}"));
    let mut segment = File::open(path)?;
    segment.seek(SeekFrom::Start(offset))?;
    let mut copy =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&kept)?;
    io::copy(&mut segment, &mut copy)?;
    copy.sync_all()?;
    Ok(kept)
}

/// Follows one segment to its last whole record.
fn scan(
    path: &Path,
    shown: Option<&Checkpoint>,
    open: &mut Open,
) -> Result<(Header, Position, Option<String>), Error> {
    let io_error = |source| Error::io("read", path, source);
    let damaged = |line, what| Error::Damaged { file: path.to_owned(), line, what };
    if encoding::is_compressed(path) {
        return Err(damaged(0, "the segment after it is missing"));
    }
    let mut reader = encoding::open_segment(path).map_err(io_error)?;
    let mut line = Vec::new();
    let length = encoding::read_line(&mut reader, &mut line).map_err(io_error)?;
    let (header, mut end) = line
        .strip_suffix(b"\n")
        .and_then(encoding::parse_header)
        .filter(|header| header.format == FORMAT)
        .and_then(|header| Some((after_header(&header, length)?, header)))
        .map(|(end, header)| (header, end))
        .ok_or_else(|| damaged(1, "the segment header is not one of this format"))?;
    let mut note = None;
    for line_number in 2.. {
        let length = encoding::read_line(&mut reader, &mut line).map_err(io_error)?;
        if length == 0 {
            break;
        }
        if shown.is_some_and(|shown| differs(shown, &end)) {
            return Err(damaged(
                line_number,
                "the records before it are not those that were signed",
            ));
        }
        // Nothing that was ever confirmed by a shown checkpoint is cut.
        let is_covered = shown.is_some_and(|shown| shown.size() >= end.tree.size());
        if let Some(checkpoint) = follow(&mut end, &line) {
            open.take(&line);
            note = checkpoint.or(note);
        } else if encoding::has_hole(&line) && !is_covered
            || is_torn(&line, &mut reader).map_err(io_error)?
        {
            break;
        } else {
            return Err(damaged(line_number, "the record does not fit the chain"));
        }
    }
    Ok((header, end, note))
}

/// Whether the log has another root than a checkpoint of its size.
fn differs(shown: &Checkpoint, end: &Position) -> bool {
    shown.size() == end.tree.size() && shown.hash() != end.tree.root()
}

/// The position after a header of `length` bytes.
fn after_header(header: &Header, length: usize) -> Option<Position> {
    let size = header.first.checked_sub(1)?;
    let roots: Option<Vec<Hash>> =
        header.tree.iter().map(|root| encoding::unhex(root.as_bytes())).collect();
    Some(Position {
        segment: header.segment,
        length: length as u64,
        tree: Frontier::new(size, roots?)?,
        prev: header.prev.as_bytes().try_into().ok()?,
        at_ms: encoding::at_unix_ms(&header.at)?,
        covered: 0,
    })
}

/// Goes past `line`, if it is the whole next record; gives the note of a checkpoint.
fn follow(end: &mut Position, line: &[u8]) -> Option<Option<String>> {
    let whole = line.strip_suffix(b"\n")?;
    let (text, _) = encoding::split_hash(whole)?;
    let record = encoding::parse_record(whole)?;
    let leaf = tlog_tiles::record_hash(text);
    let fits = record.n == end.next_number()
        && record.prev == end.prev
        && record.hash == encoding::hex(&leaf);
    let at_ms = encoding::at_unix_ms(record.at).filter(|_| fits)?;
    end.advance(leaf, line.len(), at_ms);
    if !record.event.starts_with(CHECKPOINT_EVENT) {
        return Some(None);
    }
    end.covered = end.tree.size();
    let Ok(Event::Checkpoint { note }) = serde_json::from_slice(record.event) else {
        return None;
    };
    Some(Some(note))
}

/// How the event of a checkpoint record begins.
const CHECKPOINT_EVENT: &[u8] = br#"{"event":"checkpoint","#;

/// Permits without completion and intents without outcome, by request id, in their order; of the
/// last two segments only, which is where a program that was stopped left them.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// By kind (whether it is an intent) and request id.
    numbers: BTreeMap<(bool, String), u64>,
    ids: BTreeMap<u64, String>,
}

/// As much of an event as tells what it begins or ends.
#[derive(Deserialize)]
struct Ends<'a> {
    event: &'a str,
    #[serde(borrow)]
    request_id: Option<std::borrow::Cow<'a, str>>,
    decision: Option<&'a str>,
    #[serde(default)]
    request_ids: Vec<String>,
}

impl Open {
    /// What the records of a segment leave open. It is only to be told, so an unreadable segment
    /// (which the verifier names) leaves nothing.
    pub(crate) fn of_segment(path: &Path) -> Self {
        let mut open = Self::default();
        let Ok(mut reader) = encoding::open_segment(path) else { return open };
        let mut line = Vec::new();
        while matches!(encoding::read_line(&mut reader, &mut line), Ok(length) if length > 0) {
            open.take(&line);
        }
        open
    }

    fn take(&mut self, line: &[u8]) {
        let record = line.strip_suffix(b"\n").and_then(encoding::parse_record);
        let ends = record.and_then(|record| {
            serde_json::from_slice::<Ends<'_>>(record.event).ok().map(|ends| (record.n, ends))
        });
        let Some((number, ends)) = ends else { return };
        let id = ends.request_id.map(std::borrow::Cow::into_owned);
        match (ends.event, id) {
            ("decision", Some(id)) if ends.decision == Some(ALLOW) => {
                self.begin((false, id), number)
            }
            ("intent", Some(id)) => self.begin((true, id), number),
            ("completion", Some(id)) => self.end(&(false, id)),
            ("outcome", Some(id)) => self.end(&(true, id)),
            ("unfinished", _) => {
                for id in ends.request_ids {
                    self.end(&(false, id.clone()));
                    self.end(&(true, id));
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, id: (bool, String), number: u64) {
        if self.ids.len() < OPEN_MAX {
            self.ids.insert(number, id.1.clone());
            if let Some(earlier) = self.numbers.insert(id, number) {
                self.ids.remove(&earlier);
            }
        }
    }

    fn end(&mut self, id: &(bool, String)) {
        if let Some(number) = self.numbers.remove(id) {
            self.ids.remove(&number);
        }
    }

    /// The records that name what is open.
    pub(crate) fn events(self) -> Vec<Event> {
        let ids: Vec<String> = self.ids.into_values().collect();
        ids.chunks(IDS_MAX).map(|ids| Event::Unfinished { request_ids: ids.to_vec() }).collect()
    }
}

const OPEN_MAX: usize = 100_000;
const IDS_MAX: usize = 500;

/// Whether a bad line is what a loss of power leaves: the last line without its end, or nothing
/// but zeros from some byte on up to the end of the file.
fn is_torn(line: &[u8], rest: &mut impl BufRead) -> io::Result<bool> {
    let zeros_from = line.iter().position(|byte| *byte == 0);
    let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let starts_torn = match zeros_from {
        Some(at) => line.get(at..).is_some_and(zeros),
        None => !line.ends_with(b"\n"),
    };
    if !starts_torn {
        return Ok(false);
    }
    let mut block = [0u8; 8192];
    loop {
        let length = rest.read(&mut block)?;
        match block.get(..length) {
            Some([]) => return Ok(true),
            Some(bytes) if zeros(bytes) => {}
            _ => return Ok(false),
        }
    }
}

/// Moves a log of format 1, which has no checkpoints, out of the way: it stays as it is in
/// `format-1/`.
pub(crate) fn set_format_1_aside(dir: &Path) -> Result<(), Error> {
    let io_error = |doing| move |source| Error::io(doing, dir, source);
    let segments = encoding::list_segments(dir).map_err(io_error("list"))?;
    let signed = [encoding::CHECKPOINT_FILE, encoding::TOMBSTONE_FILE];
    if segments.is_empty() || signed.iter().any(|name| dir.join(name).exists()) {
        return Ok(());
    }
    for (_, path) in &segments {
        let mut line = Vec::new();
        let mut reader = encoding::open_segment(path).map_err(io_error("read"))?;
        encoding::read_line(&mut reader, &mut line).map_err(io_error("read"))?;
        if !line.starts_with(FORMAT_1_HEADER) {
            return Ok(());
        }
    }
    let aside = dir.join("format-1");
    create_dir(&aside)?;
    // The last segment goes last: an interrupted move is then taken up again.
    for (_, path) in &segments {
        let Some(name) = path.file_name() else { continue };
        let target = aside.join(name);
        if target.exists() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(Error::Io { doing: "move an old log to", path: target, source });
        }
        std::fs::rename(path, target).map_err(io_error("move the old log of"))?;
    }
    sync_dir(&aside).and_then(|()| sync_dir(dir)).map_err(io_error("sync"))?;
    tracing::warn!(
        kept_in = %aside.display(),
        segments = segments.len(),
        "audit log: a log of format 1 was moved aside; a new log begins"
    );
    Ok(())
}

const FORMAT_1_HEADER: &[u8] = br#"{"format":"sekisho-audit/1","#;
