//! Segment files as the writer sees them: begin one, continue one, find and cut a torn tail.
//!
//! INVARIANT: a segment file never exists without a whole header: it is written under another
//! name, synced, and renamed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::encoding::{self, FORMAT, Header, HexHash};
use crate::log::Error;

/// What the writer asks of a disk that can fail in ways no test can provoke on a sound one.
pub(crate) struct Disk {
    /// Appends bytes to a file.
    pub(crate) write: Box<WriteCall>,
    /// Puts the written bytes of a file on the medium.
    pub(crate) sync: Box<SyncCall>,
    /// Bytes that an ordinary user may still write on the file system of a folder.
    pub(crate) free_bytes: Box<SpaceCall>,
}

type WriteCall = dyn Fn(&File, &[u8]) -> io::Result<()> + Send;
type SyncCall = dyn Fn(&File) -> io::Result<()> + Send;
type SpaceCall = dyn Fn(&Path) -> io::Result<u64> + Send;

impl Disk {
    /// write, fdatasync and statvfs.
    pub(crate) fn real() -> Self {
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

/// A place in the chain: everything before it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Bytes of the segment up to here.
    pub(crate) length: u64,
    /// Hash of the line before.
    pub(crate) hash: HexHash,
    /// Number of the next record.
    pub(crate) next_number: u64,
    /// Time of the line before, Unix milliseconds.
    pub(crate) at_ms: i64,
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
        first: end.next_number,
        at: encoding::at_text(end.at_ms),
        prev: encoding::hash_text(&end.hash),
    };
    let (line, hash) = encoding::header_line(&header);
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
    Ok((file, Position { segment: number, length, hash, ..*end }))
}

/// Opens a segment so that writes go to its end.
pub(crate) fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// Puts the entries of a folder on the medium.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Opens the last segment, cuts a torn tail and puts the rest on disk.
pub(crate) fn resume(
    disk: &Disk,
    dir: &Path,
    path: &Path,
    source: &str,
) -> Result<(File, Position), Error> {
    let io_error = |doing| move |source| Error::io(doing, path, source);
    let (header, end) = scan(path)?;
    if header.source != source {
        return Err(Error::OtherSource {
            dir: dir.to_owned(),
            found: header.source,
            wanted: source.to_owned(),
        });
    }
    let file = open_for_append(path).map_err(io_error("open"))?;
    let length = file.metadata().map_err(io_error("open"))?.len();
    if length > end.length {
        let kept = keep_tail(path, end.length).map_err(io_error("keep the torn tail of"))?;
        file.set_len(end.length).map_err(io_error("cut the torn tail of"))?;
        tracing::warn!(
            file = %path.display(),
            bytes = length - end.length,
            last_record = end.next_number - 1,
            kept_as = %kept.display(),
            "audit log: cut a torn tail at the last whole record"
        );
    }
    (disk.sync)(&file).map_err(io_error("sync"))?;
    Ok((file, end))
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

/// Follows the chain of one segment to its last whole record.
fn scan(path: &Path) -> Result<(Header, Position), Error> {
    let io_error = |source| Error::io("read", path, source);
    let damaged = |line, what| Error::Damaged { file: path.to_owned(), line, what };
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(io_error)?);
    let mut line = Vec::new();
    let length = encoding::read_line(&mut reader, &mut line).map_err(io_error)?;
    let (header, hash) = line
        .strip_suffix(b"\n")
        .and_then(encoding::parse_header)
        .filter(|(header, _)| header.format == FORMAT)
        .ok_or_else(|| damaged(1, "the segment header is not one of this format"))?;
    let at_ms = encoding::at_unix_ms(&header.at)
        .ok_or_else(|| damaged(1, "the segment header names no time"))?;
    let mut end = Position {
        segment: header.segment,
        length: length as u64,
        hash,
        next_number: header.first,
        at_ms,
    };
    for line_number in 2.. {
        let length = encoding::read_line(&mut reader, &mut line).map_err(io_error)?;
        if length == 0 {
            break;
        }
        match follow(&end, &line) {
            Some(next) => end = next,
            None if is_torn(&line, &mut reader).map_err(io_error)? => break,
            None => return Err(damaged(line_number, "the record does not fit the chain")),
        }
    }
    Ok((header, end))
}

/// The position after `line`, if it is the whole next record.
fn follow(end: &Position, line: &[u8]) -> Option<Position> {
    let whole = line.strip_suffix(b"\n")?;
    let (text, _) = encoding::split_hash(whole)?;
    let record = encoding::parse_record(whole)?;
    let hash = encoding::hash(text);
    let fits = record.n == end.next_number && record.prev == end.hash && record.hash == hash;
    fits.then_some(Position {
        segment: end.segment,
        length: end.length + line.len() as u64,
        hash,
        next_number: end.next_number + 1,
        at_ms: encoding::at_unix_ms(record.at)?,
    })
}

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
