//! Streams the records of a log in order, from plain and from compressed segments, for
//! `sekisho audit show`, for the gateway's record stream and for programs that read back their own
//! intents after a crash. It trusts what it reads: [`crate::verify()`] is the judge.
//!
//! Reading beside a running writer is allowed: an unended last line of the last segment ends the
//! stream, and a segment that was compressed meanwhile is found in its new form.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use crate::encoding::{self, Header, LINE_BYTES_MAX, Lines};
use crate::entry::Entry;
use crate::log::Error;

/// The records of the log in `dir`, first to last. An error ends the stream.
pub fn read(dir: &Path) -> impl Iterator<Item = Result<Entry, Error>> + use<> {
    read_from(dir, 1)
}

/// The records of the log in `dir` from record `number` on; where retention has deleted it, from
/// the first that is left. An error ends the stream.
pub fn read_from(dir: &Path, number: u64) -> impl Iterator<Item = Result<Entry, Error>> + use<> {
    let (segments, failure) = match segments_from(dir, number) {
        Ok(segments) => (segments, None),
        Err(error) => (VecDeque::new(), Some(error)),
    };
    Entries { dir: dir.to_owned(), from: number, segments, open: None, failure, line: Vec::new() }
}

/// Numbers of the segments in `dir`, in order.
pub(crate) fn segment_numbers(dir: &Path) -> Result<Vec<u64>, Error> {
    let segments = encoding::list_segments(dir).map_err(|source| Error::io("list", dir, source))?;
    Ok(segments.into_iter().map(|(number, _)| number).collect())
}

/// The segments that hold record `number` and those after it.
fn segments_from(dir: &Path, number: u64) -> Result<VecDeque<u64>, Error> {
    let numbers = segment_numbers(dir)?;
    let from = last_where(dir, &numbers, |header| header.first <= number)?;
    Ok(numbers.into_iter().skip(from).collect())
}

/// The place in `numbers` of the last segment whose header holds; 0 when none does. Whatever holds
/// of a header must hold of all before it.
pub(crate) fn last_where(
    dir: &Path,
    numbers: &[u64],
    holds: impl Fn(&Header) -> bool,
) -> Result<usize, Error> {
    let (mut low, mut high) = (0, numbers.len());
    while high - low > 1 {
        let middle = low.midpoint(high);
        let Some(number) = numbers.get(middle) else { break };
        if holds(&header_of(dir, *number)?) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The header of a segment.
pub(crate) fn header_of(dir: &Path, number: u64) -> Result<Header, Error> {
    Ok(SegmentLines::open(dir, number)?.header)
}

/// The record lines of one segment, behind its header.
pub(crate) struct SegmentLines {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    lines: Lines,
    line_number: u64,
}

impl SegmentLines {
    /// Opens a segment and reads its header.
    pub(crate) fn open(dir: &Path, number: u64) -> Result<Self, Error> {
        let (path, mut lines) = encoding::open_numbered(dir, number).map_err(|source| {
            Error::io("open", &dir.join(encoding::segment_name(number)), source)
        })?;
        let mut line = Vec::new();
        encoding::read_line(&mut lines, &mut line)
            .map_err(|source| Error::io("read", &path, source))?;
        let header = line
            .strip_suffix(b"\n")
            .and_then(encoding::parse_header)
            .filter(|header| header.format == encoding::FORMAT && header.segment == number);
        match header {
            Some(header) => Ok(Self { path, header, lines, line_number: 1 }),
            None => Err(Error::Damaged {
                file: path,
                line: 1,
                what: "the segment header is not one of this format",
            }),
        }
    }

    /// Reads the next line into `line`, without its LF; `false` at the end. An unended line is the
    /// end of the log's last segment, and damage in any other.
    pub(crate) fn next(&mut self, line: &mut Vec<u8>, last: bool) -> Result<bool, Error> {
        let length = encoding::read_line(&mut self.lines, line)
            .map_err(|source| Error::io("read", &self.path, source))?;
        self.line_number += 1;
        if line.pop_if(|byte| *byte == b'\n').is_some() {
            return Ok(true);
        }
        // A loss of power can leave any number of zeros behind.
        let torn = length < LINE_BYTES_MAX || encoding::ends_in_zeros(line);
        if length == 0 || (last && torn) {
            return Ok(false);
        }
        Err(self.damaged("this is not a record"))
    }

    /// What the line says that was read last.
    pub(crate) fn entry(&self, line: &[u8]) -> Result<Entry, Error> {
        let record =
            encoding::parse_record(line).ok_or_else(|| self.damaged("this is not a record"))?;
        let event = serde_json::from_slice(record.event)
            .map_err(|_| self.damaged("the event is not one that this version knows"))?;
        Ok(Entry {
            number: record.n,
            at: record.at.to_owned(),
            event,
            hash: encoding::hash_text(record.hash),
        })
    }

    /// An error at the line that was read last.
    pub(crate) fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged { file: self.path.clone(), line: self.line_number, what }
    }
}

struct Entries {
    dir: PathBuf,
    from: u64,
    segments: VecDeque<u64>,
    open: Option<SegmentLines>,
    failure: Option<Error>,
    line: Vec<u8>,
}

impl Iterator for Entries {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(failure) = self.failure.take() {
            return Some(Err(failure));
        }
        let entry = self.next_entry().transpose()?;
        if entry.is_err() {
            self.segments.clear();
            self.open = None;
        }
        Some(entry)
    }
}

impl Entries {
    fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            let Some(segment) = &mut self.open else {
                let Some(number) = self.segments.pop_front() else { return Ok(None) };
                match SegmentLines::open(&self.dir, number) {
                    Ok(segment) => self.open = Some(segment),
                    // Retention has just deleted it.
                    Err(Error::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotFound
                            && !self.segments.is_empty() => {}
                    Err(error) => return Err(error),
                }
                continue;
            };
            if !segment.next(&mut self.line, self.segments.is_empty())? {
                self.open = None;
                continue;
            }
            let number = encoding::parse_record(&self.line).map(|record| record.n);
            if number.is_none_or(|number| number >= self.from) {
                return segment.entry(&self.line).map(Some);
            }
        }
    }
}

#[cfg(test)]
mod tests;
