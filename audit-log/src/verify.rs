//! The judge: follows the chain from the first header to the last record and names the first line
//! that does not belong. It shares the [`crate::encoding`] with the writer and nothing else.
//!
//! What it finds: a changed byte, a missing, inserted, swapped or replaced record, a truncated,
//! replaced or missing segment, a clock that goes back; a torn tail is told apart, because a loss
//! of power leaves one too and the next start of the program cuts it. What a chain without a key
//! cannot show by itself: records cut from the very end, and a log whose hashes were counted anew
//! from some record on; compare [`Summary::records`] and [`Summary::head`] with what was noted
//! elsewhere. Signed checkpoints belong here for that.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::IgnoredAny;

use crate::encoding::{self, FORMAT, GENESIS, HexHash, LINE_BYTES_MAX, RecordLine};

/// What a sound log holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Number of records, all segments together.
    pub records: u64,
    /// Number of segments.
    pub segments: u64,
    /// Time of the first record, RFC 3339.
    pub first_at: Option<String>,
    /// Time of the last record, RFC 3339.
    pub last_at: Option<String>,
    /// Hash of the last line, lower-case hex: fixes the content of the whole log.
    pub head: String,
}

/// The first thing that is wrong with a log.
#[derive(Debug)]
pub struct VerifyError {
    /// The segment, or the folder when no segment is at fault.
    pub file: PathBuf,
    /// Line in the file; 1 is the header, 0 when no line is at fault.
    pub line: u64,
    /// Number of the record that belongs there; `None` for a header or folder.
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
    /// The folder holds no segment.
    #[error("the folder holds no audit log")]
    NoSegments,
    /// A segment file is missing from the sequence.
    #[error("segment {expected} is missing")]
    MissingSegment {
        /// Its number.
        expected: u64,
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
    /// The last line is incomplete, as after a loss of power.
    #[error("torn tail: the last {bytes} bytes are not a whole record (the next start cuts them)")]
    TornTail {
        /// Length of the incomplete line.
        bytes: u64,
    },
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

/// Checks the whole log in `dir`.
///
/// # Errors
/// [`VerifyError`] names the first thing that is wrong.
pub fn verify(dir: &Path) -> Result<Summary, VerifyError> {
    let of_dir = |problem| VerifyError { file: dir.to_owned(), line: 0, record: None, problem };
    let segments =
        encoding::list_segments(dir).map_err(|error| of_dir(Problem::Unreadable(error)))?;
    let last = segments.last().map(|(number, _)| *number);
    let last = last.ok_or_else(|| of_dir(Problem::NoSegments))?;
    let mut chain = Chain::new();
    for (expected, (number, path)) in (1..).zip(&segments) {
        if *number != expected {
            return Err(of_dir(Problem::MissingSegment { expected }));
        }
        chain.follow_segment(expected, path, expected == last)?;
    }
    Ok(chain.summary(last))
}

/// What is known up to the line before.
struct Chain {
    source: Option<String>,
    hash: HexHash,
    next: u64,
    at: String,
    first_at: Option<String>,
    /// The segment before and its number of lines: where a truncation shows.
    before: Option<(PathBuf, u64)>,
}

impl Chain {
    fn new() -> Self {
        Self {
            source: None,
            hash: GENESIS,
            next: 1,
            at: String::new(),
            first_at: None,
            before: None,
        }
    }

    fn summary(self, segments: u64) -> Summary {
        let last_at = self.first_at.is_some().then_some(self.at);
        Summary {
            records: self.next - 1,
            segments,
            first_at: self.first_at,
            last_at,
            head: encoding::hash_text(&self.hash),
        }
    }

    fn follow_segment(&mut self, number: u64, path: &Path, last: bool) -> Result<(), VerifyError> {
        let at_line =
            |line, record, problem| VerifyError { file: path.to_owned(), line, record, problem };
        let unreadable = |error| at_line(0, None, Problem::Unreadable(error));
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(unreadable)?);
        let mut line = Vec::new();
        encoding::read_line(&mut reader, &mut line).map_err(unreadable)?;
        self.follow_header(number, path, &line)?;
        let mut lines = 1;
        while encoding::read_line(&mut reader, &mut line).map_err(unreadable)? > 0 {
            lines += 1;
            let followed = match line.strip_suffix(b"\n") {
                Some(whole) => self.follow_record(whole),
                None => Err(unended(&line, last, self.next)),
            };
            if let Err(problem) = followed {
                let problem = self.look_ahead(problem, &mut reader);
                return Err(at_line(lines, Some(self.next), problem));
            }
        }
        self.before = Some((path.to_owned(), lines));
        Ok(())
    }

    fn follow_header(&mut self, number: u64, path: &Path, line: &[u8]) -> Result<(), VerifyError> {
        let wrong = |problem| VerifyError { file: path.to_owned(), line: 1, record: None, problem };
        let bad = |what| wrong(Problem::BadHeader(what));
        let (header, hash) = line
            .strip_suffix(b"\n")
            .and_then(encoding::parse_header)
            .ok_or_else(|| bad("its bytes were changed"))?;
        if header.format != FORMAT {
            return Err(bad("it is of a format that this version does not know"));
        }
        if header.segment != number {
            return Err(bad("it names another segment than the file"));
        }
        if self.source.as_ref().is_some_and(|source| *source != header.source) {
            return Err(bad("it names another source than the segment before"));
        }
        if header.first > self.next {
            return Err(self.truncated_before(path, header.first));
        }
        if header.prev.as_bytes() != self.hash || header.first != self.next {
            return Err(wrong(Problem::ReplacedSegment));
        }
        if header.at < self.at {
            return Err(wrong(Problem::ClockBack { before: self.at.clone(), at: header.at }));
        }
        self.source = Some(header.source);
        self.at = header.at;
        self.hash = hash;
        Ok(())
    }

    /// The fault lies at the end of the segment before.
    fn truncated_before(&self, path: &Path, first: u64) -> VerifyError {
        let (file, lines) = self.before.clone().unwrap_or_else(|| (path.to_owned(), 0));
        let problem = Problem::TruncatedSegment { first: self.next, last: first - 1 };
        VerifyError { file, line: lines + 1, record: Some(self.next), problem }
    }

    fn follow_record(&mut self, line: &[u8]) -> Result<(), Problem> {
        let record = encoding::parse_record(line).ok_or(Problem::NotARecord)?;
        let (text, _) = encoding::split_hash(line).ok_or(Problem::NotARecord)?;
        let hash = encoding::hash(text);
        if record.hash != hash {
            return Err(Problem::Changed);
        }
        self.check_place(&record)?;
        if serde_json::from_slice::<IgnoredAny>(record.event).is_err() {
            return Err(Problem::BadEvent);
        }
        self.first_at.get_or_insert_with(|| record.at.to_owned());
        self.at.clear();
        self.at.push_str(record.at);
        self.hash = hash;
        self.next += 1;
        Ok(())
    }

    fn check_place(&self, record: &RecordLine<'_>) -> Result<(), Problem> {
        if record.n > self.next {
            return Err(Problem::Missing { first: self.next, last: record.n - 1 });
        }
        if record.n < self.next {
            return Err(Problem::Inserted { found: record.n });
        }
        if record.prev != self.hash {
            return Err(Problem::ReplacedBefore);
        }
        if *record.at < *self.at {
            return Err(Problem::ClockBack { before: self.at.clone(), at: record.at.to_owned() });
        }
        Ok(())
    }

    /// A record that seems missing but stands later in the file was swapped.
    fn look_ahead(&self, problem: Problem, reader: &mut BufReader<File>) -> Problem {
        let Problem::Missing { last, .. } = problem else { return problem };
        let mut line = Vec::new();
        while matches!(encoding::read_line(reader, &mut line), Ok(length) if length > 0) {
            let record = line.strip_suffix(b"\n").and_then(encoding::parse_record);
            if record.is_some_and(|record| record.n == self.next) {
                return Problem::Swapped { found: last + 1 };
            }
        }
        problem
    }
}

/// What a line without its end means.
fn unended(line: &[u8], last_segment: bool, next: u64) -> Problem {
    if line.len() >= LINE_BYTES_MAX {
        Problem::NotARecord
    } else if last_segment {
        Problem::TornTail { bytes: line.len() as u64 }
    } else {
        Problem::TruncatedSegment { first: next, last: next }
    }
}

#[cfg(test)]
mod tests;
