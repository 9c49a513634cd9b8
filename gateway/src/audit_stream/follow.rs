//! Follows the log's files from one record on, behind the writer.
//!
//! Older segments are read by [`audit_log::read_from`], which knows their compressed form. The one
//! that is being written is read here, so that each step goes on where the last one ended.
//!
//! Invariants: only records that were on disk when a step began are looked at. What lies behind
//! them in the file may be cut off and written anew, so no byte of it is kept from step to step.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use audit_log::{Entry, Event};
use serde::Deserialize;

/// Longer than any line of a log.
const LINE_BYTES_MAX: u64 = 128 * 1024;

/// Why the log can not be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A segment can not be read as a log.
    #[error(transparent)]
    Log(#[from] audit_log::Error),
    /// The operating system refused something.
    #[error("segment {segment} cannot be read")]
    Io {
        /// The segment's number.
        segment: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A line is not the record that stands there.
    #[error("segment {segment}: record {number} is not where it should be")]
    NotARecord {
        /// The segment's number.
        segment: u64,
        /// The number of the record that was looked for.
        number: u64,
    },
}

/// A record as it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'r> {
    pub(super) number: u64,
    pub(super) at: &'r str,
    pub(super) event: &'r Event,
    pub(super) hash: &'r str,
}

/// Takes a record; says whether to go on.
pub(super) type Each<'e> = dyn FnMut(Seen<'_>) -> bool + 'e;

/// A place in the log.
pub(super) struct Follower {
    dir: PathBuf,
    next: u64,
    hash: Option<String>,
    tail: Option<Tail>,
}

impl Follower {
    /// Before record `from`; `hash` is that of the record before it, where it is known.
    pub(super) fn new(dir: &Path, from: u64, hash: Option<String>) -> Self {
        Self { dir: dir.to_owned(), next: from, hash, tail: None }
    }

    /// The number of the record before this place.
    pub(super) fn read(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// The hash of that record, where it is known.
    pub(super) fn hash(&self) -> Option<&str> {
        self.hash.as_deref()
    }

    /// Reads up to record `through`, which is on disk, or until `each` says no.
    pub(super) fn read_through(&mut self, through: u64, each: &mut Each<'_>) -> Result<(), Error> {
        while self.next <= through {
            let (before, by_tail) = (self.next, self.tail.is_some());
            let wanted = match &mut self.tail {
                Some(tail) => tail.read((&mut self.next, &mut self.hash), through, each)?,
                None => self.read_segments(through, each)?,
            };
            if !wanted {
                return Ok(());
            }
            self.tail = match self.tail.take() {
                // The segment ended before `through`: the next one goes on.
                Some(tail) if self.next <= through => Tail::open(&self.dir, tail.segment + 1)?,
                Some(tail) => Some(tail),
                None => Tail::find(&self.dir, self.next)?,
            };
            if !by_tail && self.next == before {
                // No way led on: the segments are being replaced at this moment.
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_segments(&mut self, through: u64, each: &mut Each<'_>) -> Result<bool, Error> {
        for entry in audit_log::read_from(&self.dir, self.next) {
            let entry = entry?;
            if entry.number > through {
                break;
            }
            self.next = entry.number + 1;
            let Entry { number, at, event, hash } = &entry;
            let wanted = each(Seen { number: *number, at, event, hash });
            self.hash = Some(entry.hash);
            if !wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A place in a segment that is not compressed.
struct Tail {
    segment: u64,
    file: File,
    offset: u64,
}

#[derive(Deserialize)]
struct Header {
    first: u64,
}

#[derive(Deserialize)]
struct Numbered {
    n: u64,
}

#[derive(Deserialize)]
struct Record {
    n: u64,
    at: String,
    event: Event,
    hash: String,
}

impl Tail {
    /// The beginning of segment `number`; `None` if there is none, or it is compressed already.
    fn open(dir: &Path, segment: u64) -> Result<Option<Self>, Error> {
        match File::open(dir.join(format!("{segment:08}.jsonl"))) {
            Ok(file) => Ok(Some(Self { segment, file, offset: 0 })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { segment, source }),
        }
    }

    /// The place before record `next` in the segment that is being written.
    fn find(dir: &Path, next: u64) -> Result<Option<Self>, Error> {
        let failed = |source| Error::Io { segment: 0, source };
        let mut newest = None;
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
            newest = newest.max(number.and_then(|number| number.parse::<u64>().ok()));
        }
        let Some(mut tail) = newest.map(|number| Self::open(dir, number)).transpose()?.flatten()
        else {
            return Ok(None);
        };
        let segment = tail.segment;
        Ok(tail.skip_to(next).map_err(|source| Error::Io { segment, source })?.then_some(tail))
    }

    /// Moves to record `next`; `false` if the segment begins after it.
    fn skip_to(&mut self, next: u64) -> io::Result<bool> {
        let mut reader = BufReader::new(&self.file);
        let mut line = Vec::new();
        read_line(&mut reader, &mut line)?;
        if serde_json::from_slice::<Header>(&line).is_ok_and(|header| header.first > next) {
            return Ok(false);
        }
        self.offset = line.len() as u64;
        // The newest lines may be unfinished: what is no record yet ends the way.
        while read_line(&mut reader, &mut line)? {
            match serde_json::from_slice::<Numbered>(&line) {
                Ok(Numbered { n }) if n < next => self.offset += line.len() as u64,
                Ok(_) | Err(_) => break,
            }
        }
        Ok(true)
    }

    /// Reads up to record `through` or to the segment's end; says whether `each` wants more.
    fn read(
        &mut self,
        (next, hash): (&mut u64, &mut Option<String>),
        through: u64,
        each: &mut Each<'_>,
    ) -> Result<bool, Error> {
        let segment = self.segment;
        let failed = |source| Error::Io { segment, source };
        self.file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        let mut reader = BufReader::with_capacity(64 * 1024, &self.file);
        let mut line = Vec::new();
        while *next <= through && read_line(&mut reader, &mut line).map_err(failed)? {
            let length = line.len() as u64;
            if self.offset == 0 {
                self.offset = length;
                continue;
            }
            let record: Record = serde_json::from_slice(&line)
                .ok()
                .filter(|record: &Record| record.n == *next)
                .ok_or(Error::NotARecord { segment, number: *next })?;
            self.offset += length;
            *next += 1;
            let Record { n, at, event, hash: own } = &record;
            let wanted = each(Seen { number: *n, at, event, hash: own });
            *hash = Some(record.hash);
            if !wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Reads one whole line; `false` at the end, also when the last line is not finished.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', line)?;
    Ok(line.ends_with(b"\n"))
}
