//! Streams the records of a log in order, for `sekisho audit show` and for programs that read back
//! their own intents after a crash. It trusts what it reads: [`crate::verify()`] is the judge.
//!
//! Reading beside a running writer is allowed: a line that is not ended yet ends the stream.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::encoding;
use crate::entry::Entry;
use crate::log::Error;

/// The records of the log in `dir`, first to last. An error ends the stream.
pub fn read(dir: &Path) -> impl Iterator<Item = Result<Entry, Error>> + use<> {
    let (segments, failure) = match encoding::list_segments(dir) {
        Ok(segments) => (segments, None),
        Err(source) => (Vec::new(), Some(Error::io("list", dir, source))),
    };
    let segments = segments.into_iter().map(|(_, path)| path).collect();
    Entries { segments, open: None, failure, line: Vec::new() }
}

struct Entries {
    segments: VecDeque<PathBuf>,
    open: Option<Segment>,
    failure: Option<Error>,
    line: Vec<u8>,
}

struct Segment {
    path: PathBuf,
    reader: BufReader<File>,
    line_number: u64,
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
                let Some(path) = self.segments.pop_front() else { return Ok(None) };
                let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
                let reader = BufReader::with_capacity(1 << 20, file);
                self.open = Some(Segment { path, reader, line_number: 0 });
                continue;
            };
            let length = encoding::read_line(&mut segment.reader, &mut self.line)
                .map_err(|error| Error::io("read", &segment.path, error))?;
            segment.line_number += 1;
            match self.line.strip_suffix(b"\n") {
                None if length < encoding::LINE_BYTES_MAX => self.open = None,
                // The header.
                Some(_) if segment.line_number == 1 => {}
                whole => return segment.entry(whole.unwrap_or_default()).map(Some),
            }
        }
    }
}

impl Segment {
    fn entry(&self, line: &[u8]) -> Result<Entry, Error> {
        let damaged =
            |what| Error::Damaged { file: self.path.clone(), line: self.line_number, what };
        let record = encoding::parse_record(line).ok_or_else(|| damaged("this is not a record"))?;
        let event = serde_json::from_slice(record.event)
            .map_err(|_| damaged("the event is not one that this version knows"))?;
        Ok(Entry {
            number: record.n,
            at: record.at.to_owned(),
            event,
            hash: encoding::hash_text(record.hash),
        })
    }
}
