//! The judge: follows a log from its first header to its last record and names the first line that
//! does not belong. It shares with the writer the [`crate::encoding`], the check of a signed note
//! and the hash functions, and nothing else; it counts the Merkle tree in its own way.
//!
//! ```text
//! checkpoint, tombstone ──► where to start ──► blocks (all cores) ──► chain: order, tree, heads
//!                                                   │ not sound
//!                                                   └──► the segment again: which line
//! ```
//!
//! What it finds: a changed byte, a missing, inserted, swapped or replaced record, a truncated,
//! replaced or missing segment, a clock that goes back, hashes that were counted anew (the signed
//! checkpoints do not fit), a forged checkpoint or tombstone, records cut from the end (the file
//! `checkpoint`, or a head that left the box, covers more). A torn tail is told apart, because a
//! loss of power leaves one too and the next start of the program cuts it.
//!
//! What it can not find: a change among the newest records that no checkpoint covers yet
//! ([`Summary::covered`]), and the log and its file `checkpoint` both set back to an earlier state;
//! for the latter keep heads elsewhere and hand them over ([`VerifyOptions::heads`]).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tlog_tiles::Hash;

use crate::checkpoint::{Checkpoint, CheckpointError, VerifyingKey};
use crate::encoding::{self, Tombstone};
use crate::read;

mod blocks;
mod chain;
mod line;
mod roots;

use blocks::{Jobs, Piece};
use chain::Chain;

/// What a sound log holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Number of the last record.
    pub records: u64,
    /// Number of segments that belong to the log.
    pub segments: u64,
    /// Number of the first record that was read; 0 when there is none.
    pub first_record: u64,
    /// Its time, RFC 3339.
    pub first_at: Option<String>,
    /// Time of the last record, RFC 3339.
    pub last_at: Option<String>,
    /// Hash of the last record, lower-case hex.
    pub head: String,
    /// How many checkpoints in the log were checked.
    pub checkpoints: u64,
    /// Records that the last of them covers.
    pub covered: u64,
    /// What retention has deleted.
    pub deleted: Option<Deleted>,
    /// How many of the given heads lie before the records that were read, so that nothing can be
    /// said of them.
    pub heads_unchecked: usize,
    /// Request ids of permits without completion and of intents without outcome, oldest first; at
    /// most 1000.
    pub unfinished: Vec<String>,
    /// How many there are beyond these.
    pub unfinished_more: u64,
}

/// Whole segments that retention deleted, as their signed tombstone says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Number of the last deleted record.
    pub through_record: u64,
    /// Its time, RFC 3339.
    pub until: String,
    /// When it was deleted, RFC 3339.
    pub at: String,
}

/// What is known of a log beforehand.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Records up to this checkpoint are trusted: what lies before the segment that holds its last
    /// record is not read again.
    pub from: Option<Checkpoint>,
    /// Checkpoints that left the box: each must be a head of this log.
    pub heads: Vec<Checkpoint>,
}

/// The first thing that is wrong with a log.
#[derive(Debug)]
pub struct VerifyError {
    /// The segment, or the folder when no segment is at fault.
    pub file: PathBuf,
    /// Line in the file; 1 is the header, 0 when no line is at fault.
    pub line: u64,
    /// Number of the record that belongs there; `None` for a header, another file or the folder.
    pub record: Option<u64>,
    /// What is wrong.
    pub problem: Problem,
}

/// A way in which a log can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file or folder can not be read.
    #[error("it can not be read")]
    Unreadable(#[source] io::Error),
    /// A compressed segment was damaged.
    #[error("the compressed segment was changed: it can not be decompressed from here on")]
    Undecodable(#[source] io::Error),
    /// The folder holds no segment.
    #[error("the folder holds no audit log")]
    NoSegments,
    /// A segment file is missing from the sequence.
    #[error("segment {expected} is missing")]
    MissingSegment {
        /// Its number.
        expected: u64,
    },
    /// The log does not begin with its first segment, and nothing signed says why.
    #[error(
        "segments 1 to {last} are missing, and no tombstone proves that retention deleted them"
    )]
    NoTombstone {
        /// The last missing one.
        last: u64,
    },
    /// The tombstone is not one of this log.
    #[error("the tombstone is forged")]
    ForgedTombstone(#[source] CheckpointError),
    /// The first segment does not continue what the tombstone fixes.
    #[error(
        "the segment was replaced: it does not continue record {record}, the last one that the \
         signed tombstone names as deleted"
    )]
    TombstoneDiffers {
        /// The last deleted record.
        record: u64,
    },
    /// The header was changed, is of another format or names another source or number.
    #[error("the segment header is wrong: {0}")]
    BadHeader(&'static str),
    /// The next segment begins with a later record than this one's end leaves.
    #[error("the segment was truncated: records {first} to {last} are missing")]
    TruncatedSegment {
        /// First missing record.
        first: u64,
        /// Last missing record.
        last: u64,
    },
    /// The header does not name the last hash before it.
    #[error("the segment was replaced: its header does not continue the segment before it")]
    ReplacedSegment,
    /// The line does not have the form of a record.
    #[error("the line was changed: it is not a record")]
    NotARecord,
    /// The hash does not fit the bytes.
    #[error("the record was changed: its bytes do not give its hash")]
    Changed,
    /// Records were taken out.
    #[error("records {first} to {last} are missing")]
    Missing {
        /// First missing record.
        first: u64,
        /// Last missing record.
        last: u64,
    },
    /// The record that belongs here comes later.
    #[error("records were swapped: record {found} stands here")]
    Swapped {
        /// The record that stands here.
        found: u64,
    },
    /// A record stands here that does not belong here.
    #[error("a record was inserted here or before: record {found} stands here")]
    Inserted {
        /// The record that stands here.
        found: u64,
    },
    /// A whole record with a fitting hash of its own was exchanged.
    #[error("the record before it was replaced: `prev` is not that record's hash")]
    ReplacedBefore,
    /// The time is less than that of the line before.
    #[error("the clock goes back: {at} after {before}")]
    ClockBack {
        /// Time of the line before.
        before: String,
        /// Time of this record.
        at: String,
    },
    /// The event is not JSON.
    #[error("the event is not JSON")]
    BadEvent,
    /// The checkpoint was not signed by the key of this log.
    #[error("the checkpoint is forged")]
    BadCheckpoint(#[source] CheckpointError),
    /// A genuine checkpoint stands where it was not written.
    #[error(
        "the checkpoint is forged: its signature is good, but it covers {covers} records and \
         {before} stand before it"
    )]
    WrongSize {
        /// Records that it covers.
        covers: u64,
        /// Records before it.
        before: u64,
    },
    /// The records before a genuine checkpoint are not those that it was signed for.
    #[error(
        "records {first} to {last} are not those that were signed: among them some were changed, \
         removed or added and all hashes counted anew, but the checkpoint here does not fit them"
    )]
    WrongRoot {
        /// First record after the last good checkpoint's.
        first: u64,
        /// Last record before this checkpoint.
        last: u64,
    },
    /// Far more records without a checkpoint than the writer ever leaves.
    #[error(
        "no checkpoint covers the records from {first} to here: checkpoints were removed and all \
         hashes counted anew"
    )]
    Uncovered {
        /// First record without one.
        first: u64,
    },
    /// The record is not the checkpoint that it was when the file `checkpoint` was written.
    #[error("the checkpoint that the file `checkpoint` holds stood here: it was removed")]
    CheckpointRemoved,
    /// The file `checkpoint` was taken away.
    #[error("the file `checkpoint` was removed: the log holds checkpoints that belong into it")]
    NoCheckpointFile,
    /// The file `checkpoint` is an old one.
    #[error(
        "the file `checkpoint` was replaced by an old one: it covers {covers} records, the log's \
         newest checkpoint covers {newest}"
    )]
    OldCheckpointFile {
        /// Records that the file covers.
        covers: u64,
        /// Records that the newest checkpoint in the log covers.
        newest: u64,
    },
    /// Records were cut from the end of the log.
    #[error(
        "the newest records {first} to {through} were cut off: {what} covers {covers} records, the \
         log ends at {}", first - 1
    )]
    CutOff {
        /// What proves it.
        what: &'static str,
        /// First missing record.
        first: u64,
        /// Last record that is known to be missing.
        through: u64,
        /// Records that the proof covers.
        covers: u64,
    },
    /// The log is another one from some record on.
    #[error(
        "the log was forked: {what} covers {covers} records, but with other content than the first \
         {covers} of this log"
    )]
    Forked {
        /// What proves it.
        what: &'static str,
        /// Records that it covers.
        covers: u64,
    },
    /// The last line is incomplete, as after a loss of power.
    #[error("torn tail: the last {bytes} bytes are not a whole record (the next start cuts them)")]
    TornTail {
        /// Length of the incomplete line.
        bytes: u64,
    },
}

impl VerifyError {
    fn at(file: &Path, line: u64, record: Option<u64>, problem: Problem) -> Self {
        Self { file: file.to_owned(), line, record, problem }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit log `{}`", self.file.display())?;
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        if let Some(record) = self.record {
            write!(f, " (record {record})")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for VerifyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.problem)
    }
}

/// A tree head that the log must have had.
#[derive(Debug, Clone)]
struct Mark {
    size: u64,
    root: Hash,
    what: &'static str,
}

/// Checks the whole log in `dir`.
///
/// # Errors
/// [`VerifyError`] names the first thing that is wrong.
pub fn verify(dir: &Path, key: &VerifyingKey) -> Result<Summary, VerifyError> {
    verify_with(dir, key, &VerifyOptions::default(), &mut |_| {})
}

/// Checks the log in `dir` against what is known of it; `progress` is told the number of the last
/// record that was checked.
///
/// # Errors
/// [`VerifyError`] names the first thing that is wrong.
pub fn verify_with(
    dir: &Path,
    key: &VerifyingKey,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Summary, VerifyError> {
    // In this order, so that a writer at work does not make a sound log look wrong: what the files
    // claim is in the segments by then, and what the list lacks is in the tombstone by then.
    let file = read_checkpoint_file(dir, key);
    let listed = encoding::list_segments(dir)
        .map_err(|error| VerifyError::at(dir, 0, None, Problem::Unreadable(error)))?;
    let tombstone = read_tombstone(dir, key)?;
    let numbers = segments_of(dir, listed, tombstone.as_ref())?;

    let in_file = file.as_ref().ok().and_then(Option::as_ref);
    let marks = marks_of(options, key).map_err(|problem| VerifyError::at(dir, 0, None, problem))?;
    let begin = Chain::new(key, &marks, in_file);
    let (skipped, mut chain) = start_of(dir, begin, &numbers, options, tombstone.as_ref())?;
    let heads_unchecked = chain.skip_marks();
    let read = numbers.get(skipped..).unwrap_or_default();
    chain = follow(dir, key, read, chain, progress)?;

    check_end(dir, key, &chain)?;
    let deleted = tombstone.map(|tombstone| Deleted {
        through_record: tombstone.through_record,
        until: tombstone.until,
        at: tombstone.deleted_at,
    });
    Ok(sum_up(chain, numbers.len() as u64, deleted, heads_unchecked))
}

/// The segments of the log, without what an interrupted deletion left behind.
fn segments_of(
    dir: &Path,
    listed: Vec<(u64, PathBuf)>,
    tombstone: Option<&Tombstone>,
) -> Result<Vec<u64>, VerifyError> {
    let wrong = |problem| VerifyError::at(dir, 0, None, problem);
    let deleted = tombstone.map_or(0, |tombstone| tombstone.through_segment);
    let numbers: Vec<u64> =
        listed.into_iter().map(|(number, _)| number).filter(|number| *number > deleted).collect();
    let first = *numbers.first().ok_or_else(|| wrong(Problem::NoSegments))?;
    if first > 1 && tombstone.is_none() {
        return Err(wrong(Problem::NoTombstone { last: first - 1 }));
    }
    for (expected, number) in (deleted + 1..).zip(&numbers) {
        if *number != expected {
            return Err(wrong(Problem::MissingSegment { expected }));
        }
    }
    Ok(numbers)
}

fn read_checkpoint_file(dir: &Path, key: &VerifyingKey) -> Result<Option<Checkpoint>, Problem> {
    let Some(note) = read_note(&dir.join(encoding::CHECKPOINT_FILE))? else { return Ok(None) };
    Checkpoint::open(&note, key).map(Some).map_err(Problem::BadCheckpoint)
}

fn read_tombstone(dir: &Path, key: &VerifyingKey) -> Result<Option<Tombstone>, VerifyError> {
    let path = dir.join(encoding::TOMBSTONE_FILE);
    let wrong = |problem| VerifyError::at(&path, 0, None, problem);
    let forged = |error| wrong(Problem::ForgedTombstone(error));
    let Some(note) = read_note(&path).map_err(wrong)? else { return Ok(None) };
    let text = key.open(&note).map_err(forged)?;
    let tombstone = std::str::from_utf8(&text).ok().and_then(Tombstone::parse);
    match tombstone {
        Some(tombstone) if tombstone.origin == key.name() => Ok(Some(tombstone)),
        Some(tombstone) => Err(forged(CheckpointError::OtherLog {
            found: tombstone.origin,
            wanted: key.name().to_owned(),
        })),
        None => Err(forged(CheckpointError::Malformed)),
    }
}

/// A signed note beside the segments, as far as one is looked at.
fn read_note(path: &Path) -> Result<Option<String>, Problem> {
    use std::io::Read as _;
    let mut note = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(NOTE_BYTES_MAX).read_to_end(&mut note));
    match read {
        // Bytes that are no text make no note, which opening it will say.
        Ok(_) => Ok(Some(String::from_utf8_lossy(&note).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::Unreadable(error)),
    }
}

/// What is known of the log's tree beforehand, by size.
fn marks_of(options: &VerifyOptions, key: &VerifyingKey) -> Result<Vec<Mark>, Problem> {
    let mut marks = Vec::new();
    for (heads, what) in [
        (options.from.as_slice(), "the checkpoint to start from"),
        (options.heads.as_slice(), "a checkpoint that left the box"),
    ] {
        for head in heads {
            // Whoever opened it may have done so with another key.
            Checkpoint::open(head.note(), key).map_err(Problem::BadCheckpoint)?;
            marks.push(Mark { size: head.size(), root: head.hash(), what });
        }
    }
    marks.sort_by_key(|mark| mark.size);
    Ok(marks)
}

/// Where to begin: how many segments need not be read, and what holds before the first that is.
fn start_of<'a>(
    dir: &Path,
    begin: Chain<'a>,
    numbers: &[u64],
    options: &VerifyOptions,
    tombstone: Option<&Tombstone>,
) -> Result<(usize, Chain<'a>), VerifyError> {
    let after = |at: usize| {
        let number = numbers.get(at).copied().unwrap_or_default();
        read::header_of(dir, number).ok().and_then(|header| begin.clone().after(&header))
    };
    let trusted = options.from.as_ref().map_or(1, |from| from.size().max(1));
    // A header that can not be read is named when its segment is followed.
    let skipped = read::last_where(dir, numbers, |header| header.first <= trusted).unwrap_or(0);
    if skipped > 0
        && let Some(chain) = after(skipped)
        && chain.next <= trusted
    {
        return Ok((skipped, chain));
    }
    let (Some(tombstone), Some(first)) = (tombstone, numbers.first()) else {
        return Ok((0, begin));
    };
    match after(0) {
        Some(chain) if chain.continues(tombstone) => Ok((0, chain)),
        found => {
            let path = encoding::open_numbered(dir, *first)
                .map_or_else(|_| dir.join(encoding::segment_name(*first)), |(path, _)| path);
            let problem = if found.is_some() {
                Problem::TombstoneDiffers { record: tombstone.through_record }
            } else {
                Problem::BadHeader("its bytes were changed")
            };
            Err(VerifyError::at(&path, 1, None, problem))
        }
    }
}

/// Follows the segments on all cores.
fn follow<'a>(
    dir: &Path,
    key: &VerifyingKey,
    numbers: &[u64],
    mut chain: Chain<'a>,
    progress: &mut dyn FnMut(u64),
) -> Result<Chain<'a>, VerifyError> {
    let jobs = Jobs::new();
    std::thread::scope(|scope| {
        let pieces = blocks::start(scope, dir, numbers, key, &jobs);
        let (mut number, mut before) = (0, chain.clone());
        // Whether the rest of the segment was followed line by line already.
        let mut followed = false;
        for piece in pieces {
            let sound = match piece {
                Piece::Header { number: begun, line } => {
                    (number, before, followed) = (begun, chain.clone(), false);
                    let path = segment_path(dir, number);
                    chain.follow_header(number, &path, &line).is_ok()
                }
                _ if followed => true,
                Piece::Block(block) => {
                    block.recv().ok().flatten().is_some_and(|block| chain.join(block).is_ok())
                }
                Piece::Bad => false,
            };
            if !sound {
                let last = numbers.last() == Some(&number);
                chain = follow_lines(dir, number, &before, last)?;
                followed = true;
            }
            progress(chain.next - 1);
        }
        Ok(chain)
    })
}

/// Follows one segment line by line. A writer at work may have the last line half written: then it
/// is read again.
fn follow_lines<'a>(
    dir: &Path,
    number: u64,
    before: &Chain<'a>,
    last: bool,
) -> Result<Chain<'a>, VerifyError> {
    let length = || std::fs::metadata(segment_path(dir, number)).map_or(0, |data| data.len());
    let mut attempts = 0..LIVE_ATTEMPTS_MAX;
    loop {
        let length_before = length();
        let mut chain = before.clone();
        let error = match chain.follow_segment(dir, number, last) {
            Ok(()) => return Ok(chain),
            Err(error) => error,
        };
        if !matches!(error.problem, Problem::TornTail { .. }) || attempts.next().is_none() {
            return Err(error);
        }
        std::thread::sleep(LIVE_PAUSE);
        if length() == length_before {
            return Err(error);
        }
    }
}

/// The file that a segment is in now.
fn segment_path(dir: &Path, number: u64) -> PathBuf {
    let plain = dir.join(encoding::segment_name(number));
    let compressed = dir.join(encoding::compressed_name(number));
    if !plain.exists() && compressed.exists() { compressed } else { plain }
}

/// Compares the end of the log with what is known of it.
fn check_end(dir: &Path, key: &VerifyingKey, chain: &Chain<'_>) -> Result<(), VerifyError> {
    let of_file = |problem| VerifyError::at(&dir.join(encoding::CHECKPOINT_FILE), 0, None, problem);
    if let Some(problem) = chain.cut_off() {
        return Err(chain.at_end(dir, problem));
    }
    // A writer at work replaces the file shortly after the record: read it again.
    match read_checkpoint_file(dir, key).map_err(of_file)? {
        None if chain.checkpoints > 1 => Err(of_file(Problem::NoCheckpointFile)),
        Some(file) if is_old(&file, chain) => {
            Err(of_file(Problem::OldCheckpointFile { covers: file.size(), newest: chain.covered }))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether the file should long have been replaced. The writer shows a checkpoint shortly after it
/// is on disk; a loss of power in between is no fault of the log.
fn is_old(file: &Checkpoint, chain: &Chain<'_>) -> bool {
    let due = chain.newer_at.as_deref().and_then(encoding::at_unix_ms);
    let newest = encoding::at_unix_ms(&chain.covered_at);
    let behind_ms = newest.zip(due).map_or(0, |(newest, due)| newest.saturating_sub(due));
    chain.is_in_file(file) && behind_ms > SHOWN_WITHIN_MS
}

fn sum_up(
    chain: Chain<'_>,
    segments: u64,
    deleted: Option<Deleted>,
    heads_unchecked: usize,
) -> Summary {
    let last_at = chain.first.is_some().then_some(chain.at);
    let (first_record, first_at) = chain.first.map_or((0, None), |(number, at)| (number, Some(at)));
    let (unfinished, unfinished_more) = chain.unfinished.names();
    Summary {
        records: chain.next - 1,
        segments,
        first_record,
        first_at,
        last_at,
        head: encoding::hash_text(&chain.hash),
        checkpoints: chain.checkpoints,
        covered: chain.covered,
        deleted,
        heads_unchecked,
        unfinished,
        unfinished_more,
    }
}

/// Longest time that the file `checkpoint` may be behind the log.
const SHOWN_WITHIN_MS: i64 = 60_000;
/// The writer makes a checkpoint after a few thousand records, or when a full queue is on disk;
/// more records than this never lack one.
const UNCOVERED_RECORDS_MAX: u64 = 1 << 20;
/// As much of `checkpoint` and `tombstone` as is looked at: more than a good one has.
const NOTE_BYTES_MAX: u64 = 64 * 1024;
const LIVE_PAUSE: Duration = Duration::from_millis(20);
const LIVE_ATTEMPTS_MAX: u32 = 20;

#[cfg(test)]
mod tests;
