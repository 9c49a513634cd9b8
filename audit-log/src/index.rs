//! `NNNNNNNN.index`: what a closed segment holds, so that a search need not read it and a proof
//! need not hash it again. Made from the segment alone, by the same bytes each time; a missing or
//! damaged one is not used, and [`rebuild_index`] makes all of them anew.
//!
//! ```text
//! "sekisho-audit-index/1\n"
//! segment · first record · last record                    u64 each, little-endian as all numbers
//! at of the first and of the last record                  24 bytes each; spaces when there is none
//! 1 when made from the compressed segment, else 0         u8
//! count · (level u8 · number u64 · hash)                  the perfect subtrees of the records
//! count · (first record u64 · offset u64)                 frames, or 1 MiB pieces, of the file
//! count · (term u64 · end of its postings u64)            sorted by term
//! length · postings                                       record numbers: varints, each the
//!                                                         difference to the one before
//! SHA-256 of all before
//! ```
//!
//! A term is the first 8 bytes of the SHA-256 of a letter, a colon and a value ([`terms_of`]).
//! Terms only choose candidates: whoever uses them looks at the records themselves.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use tlog_tiles::{Hash, node_hash, record_hash};

use crate::encoding::{self, LINE_BYTES_MAX, RecordLine};
use crate::entry::{Actor, DENY, Event, Object};
use crate::log::Error;
use crate::read;

/// Makes the index of a closed segment.
pub(crate) fn build_index(dir: &Path, segment: u64) -> Result<(), Error> {
    let bytes = Builder::read(dir, segment)?.into_bytes();
    let path = dir.join(encoding::index_name(segment));
    let unfinished = path.with_extension("index.new");
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_data()
        })
        .and_then(|()| std::fs::rename(&unfinished, &path))
        .map_err(|source| Error::io("write", &path, source))
}

/// Makes the index of every closed segment in `dir` anew; `progress` is told how many of how many
/// are done. Returns their number.
///
/// # Errors
/// [`Error::Io`], [`Error::Damaged`].
pub fn rebuild_index(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<u64, Error> {
    let mut numbers = read::segment_numbers(dir)?;
    // The last one is open.
    numbers.pop();
    let total = numbers.len() as u64;
    for (done, number) in (1..).zip(numbers) {
        build_index(dir, number)?;
        progress(done, total);
    }
    Ok(total)
}

/// An index whose checksum is good.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) at_first: String,
    pub(crate) at_last: String,
    /// The segment in the form that the places are offsets in.
    pub(crate) path: PathBuf,
    pub(crate) subtrees: Vec<Subtree>,
    pub(crate) places: Vec<Place>,
    terms: Vec<(u64, usize)>,
    postings: Vec<u8>,
}

/// A perfect subtree of the log's tree: its records are numbers `number << level` and up, from 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Subtree {
    pub(crate) level: u8,
    pub(crate) number: u64,
    pub(crate) hash: Hash,
}

/// Where in the file a piece of whole lines begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Place {
    /// The first record in it.
    pub(crate) record: u64,
    pub(crate) offset: u64,
}

impl Index {
    /// The index of a segment, if there is a sound one for the form that the segment is in.
    pub(crate) fn load(dir: &Path, segment: u64) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = File::open(dir.join(encoding::index_name(segment))).ok()?;
        file.take(INDEX_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if digest(&SHA256, body).as_ref() != sum {
            return None;
        }
        let mut body = body.strip_prefix(MAGIC)?;
        let cursor = &mut body;
        if take_number(cursor)? != segment {
            return None;
        }
        let (first, last) = (take_number(cursor)?, take_number(cursor)?);
        let (at_first, at_last) = (take_at(cursor)?, take_at(cursor)?);
        let compressed = take(cursor, 1)? == [1];
        let index = Self {
            first,
            last,
            at_first,
            at_last,
            path: dir.join(if compressed {
                encoding::compressed_name(segment)
            } else {
                encoding::segment_name(segment)
            }),
            subtrees: take_list(cursor, |cursor| {
                let level = *take(cursor, 1)?.first()?;
                let number = take_number(cursor)?;
                let hash = Hash(take(cursor, 32)?.try_into().ok()?);
                Some(Subtree { level, number, hash })
            })?,
            places: take_list(cursor, |cursor| {
                Some(Place { record: take_number(cursor)?, offset: take_number(cursor)? })
            })?,
            terms: take_list(cursor, |cursor| {
                Some((take_number(cursor)?, usize::try_from(take_number(cursor)?).ok()?))
            })?,
            postings: {
                let length = usize::try_from(take_number(cursor)?).ok()?;
                take(cursor, length)?.to_vec()
            },
        };
        (cursor.is_empty() && index.path.exists()).then_some(index)
    }

    /// The records that may hold a term, in order.
    pub(crate) fn records_of(&self, term: u64) -> Vec<u64> {
        let Ok(at) = self.terms.binary_search_by_key(&term, |(term, _)| *term) else {
            return Vec::new();
        };
        let end_of = |at: usize| self.terms.get(at).map_or(0, |(_, end)| *end);
        let start = at.checked_sub(1).map_or(0, end_of);
        let mut bytes = self.postings.get(start..end_of(at)).unwrap_or_default();
        let mut record = self.first;
        let mut records = Vec::new();
        while let Some(difference) = take_varint(&mut bytes) {
            record = record.saturating_add(difference);
            records.push(record);
        }
        records
    }

    /// The piece of the file that holds a record: its place in `places`.
    pub(crate) fn piece_of(&self, record: u64) -> Option<usize> {
        self.places.partition_point(|place| place.record <= record).checked_sub(1)
    }
}

/// The terms under which an event can be found.
pub(crate) fn terms_of(event: &Event, add: &mut dyn FnMut(Part, &str)) {
    match event {
        Event::Decision { request_id, actor, action, object, decision, reasons, .. } => {
            add(Part::RequestId, request_id);
            add_actor(actor, add);
            add_object(object, add);
            action.iter().for_each(|action| add(Part::Action, action));
            add(Part::Decision, decision);
            reasons.iter().for_each(|reason| add(Part::Reason, reason));
        }
        Event::Completion { request_id, .. } => add(Part::RequestId, request_id),
        Event::HandshakeFailed { reason, actor, .. } => {
            add(Part::Reason, reason);
            actor.iter().for_each(|actor| add_actor(actor, add));
        }
        Event::Aggregated { what, party, reasons, insured, .. } => {
            add_actor(&Actor::of(party), add);
            reasons.keys().for_each(|reason| add(Part::Reason, reason));
            insured.keys().for_each(|insured| add(Part::Insured, insured));
            if what == "denials" {
                add(Part::Decision, DENY);
            }
        }
        Event::Intent { request_id, actor, action, object, .. }
        | Event::Effect { request_id, actor, action, object, .. }
        | Event::Outcome { request_id, actor, action, object, .. } => {
            request_id.iter().for_each(|id| add(Part::RequestId, id));
            add_actor(actor, add);
            add(Part::Action, action);
            add_object(object, add);
        }
        Event::Unfinished { request_ids } => {
            request_ids.iter().for_each(|id| add(Part::RequestId, id));
        }
        Event::ServiceStarted { .. }
        | Event::ServiceStopped
        | Event::HandedOver
        | Event::Checkpoint { .. }
        | Event::TailCut { .. }
        | Event::Unavailable { .. }
        | Event::ClockStepped { .. }
        | Event::SegmentsDeleted { .. } => {}
    }
}

fn add_actor(actor: &Actor, add: &mut dyn FnMut(Part, &str)) {
    add(Part::Terminal, &actor.principal);
    actor.office.iter().for_each(|office| add(Part::Office, office));
    actor.staff.iter().for_each(|staff| add(Part::Staff, staff));
}

fn add_object(object: &Object, add: &mut dyn FnMut(Part, &str)) {
    object.insured.iter().for_each(|insured| add(Part::Insured, insured));
    object.document.iter().for_each(|document| add(Part::Document, document));
}

/// What of an event a term is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Insured,
    Office,
    Staff,
    Terminal,
    Document,
    Reason,
    Action,
    RequestId,
    Decision,
}

impl Part {
    fn letter(self) -> char {
        match self {
            Self::Insured => 'i',
            Self::Office => 'o',
            Self::Staff => 's',
            Self::Terminal => 't',
            Self::Document => 'd',
            Self::Reason => 'r',
            Self::Action => 'a',
            Self::RequestId => 'q',
            Self::Decision => 'x',
        }
    }
}

/// The hash that stands for a term.
pub(crate) fn term(part: Part, value: &str) -> u64 {
    let hash = digest(&SHA256, format!("{}:{value}", part.letter()).as_bytes());
    hash.as_ref().iter().take(8).fold(0, |term, byte| term << 8 | u64::from(*byte))
}

/// A segment file in pieces of whole lines that can each be read by itself: the frames of a
/// compressed one, or about [`PIECE_BYTES`] of a plain one.
pub(crate) struct Pieces {
    path: PathBuf,
    file: BufReader<File>,
}

impl Pieces {
    pub(crate) fn open(path: &Path, offset: u64) -> Result<Self, Error> {
        let open = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(BufReader::new(file))
        };
        let file = open().map_err(|source| Error::io("open", path, source))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The next piece and its offset; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, Error> {
        let (offset, bytes) =
            self.read().map_err(|source| Error::io("read", &self.path, source))?;
        match bytes {
            None => Ok(None),
            Some(bytes) if bytes.is_empty() || bytes.ends_with(b"\n") => Ok(Some((offset, bytes))),
            Some(_) => Err(damaged(&self.path, "a piece of the segment does not end with a line")),
        }
    }

    fn read(&mut self) -> io::Result<(u64, Option<Vec<u8>>)> {
        let offset = self.file.stream_position()?;
        if self.file.fill_buf()?.is_empty() {
            return Ok((offset, None));
        }
        let mut bytes = Vec::new();
        if encoding::is_compressed(&self.path) {
            let frame = zstd::stream::read::Decoder::with_buffer(&mut self.file)?.single_frame();
            frame.take(FRAME_BYTES_MAX).read_to_end(&mut bytes)?;
        } else {
            self.file.by_ref().take(PIECE_BYTES).read_to_end(&mut bytes)?;
            if !bytes.ends_with(b"\n") {
                let rest = LINE_BYTES_MAX as u64;
                self.file.by_ref().take(rest).read_until(b'\n', &mut bytes)?;
            }
        }
        Ok((offset, Some(bytes)))
    }
}

/// The lines of a piece, without their LF.
pub(crate) fn lines_of(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

fn damaged(path: &Path, what: &'static str) -> Error {
    Error::Damaged { file: path.to_owned(), line: 0, what }
}

/// An index in the making.
struct Builder {
    segment: u64,
    compressed: bool,
    first: u64,
    next: u64,
    at_first: String,
    at_last: String,
    subtrees: Vec<Subtree>,
    places: Vec<Place>,
    /// Terms and record numbers.
    found: Vec<(u64, u64)>,
}

impl Builder {
    fn read(dir: &Path, segment: u64) -> Result<Self, Error> {
        let opened = read::SegmentLines::open(dir, segment)?;
        let (path, first) = (opened.path, opened.header.first);
        let mut builder = Self {
            segment,
            compressed: encoding::is_compressed(&path),
            first,
            next: first,
            at_first: NO_TIME.to_owned(),
            at_last: NO_TIME.to_owned(),
            subtrees: Vec::new(),
            places: Vec::new(),
            found: Vec::new(),
        };
        let mut pieces = Pieces::open(&path, 0)?;
        let mut header = true;
        while let Some((offset, bytes)) = pieces.next()? {
            builder.places.push(Place { record: builder.next, offset });
            for line in lines_of(&bytes) {
                if std::mem::take(&mut header) {
                    continue;
                }
                let record = encoding::parse_record(line)
                    .filter(|record| record.n == builder.next)
                    .ok_or_else(|| damaged(&path, "this is not the next record"))?;
                let (text, _) = encoding::split_hash(line).unwrap_or_default();
                builder.add(&record, record_hash(text));
            }
        }
        Ok(builder)
    }

    fn add(&mut self, record: &RecordLine<'_>, leaf: Hash) {
        if self.next == self.first {
            record.at.clone_into(&mut self.at_first);
        }
        record.at.clone_into(&mut self.at_last);
        self.next += 1;
        push_leaf(&mut self.subtrees, record.n - 1, leaf);
        // A search does not find what this version does not know.
        if let Ok(event) = serde_json::from_slice::<Event>(record.event) {
            let mut add = |part, value: &str| self.found.push((term(part, value), record.n));
            terms_of(&event, &mut add);
        }
    }

    fn into_bytes(mut self) -> Vec<u8> {
        self.found.sort_unstable();
        self.found.dedup();
        let mut postings = Vec::new();
        let mut terms: Vec<(u64, u64)> = Vec::new();
        let mut before = self.first;
        for (term, record) in &self.found {
            if terms.last().is_none_or(|(last, _)| last != term) {
                terms.push((*term, 0));
                before = self.first;
            }
            put_varint(&mut postings, record - before);
            before = *record;
            if let Some((_, end)) = terms.last_mut() {
                *end = postings.len() as u64;
            }
        }
        let mut out = MAGIC.to_vec();
        for number in [self.segment, self.first, self.next - 1] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.at_first.as_bytes());
        out.extend(self.at_last.as_bytes());
        out.push(u8::from(self.compressed));
        put_list(&mut out, &self.subtrees, |out, subtree| {
            out.push(subtree.level);
            out.extend(subtree.number.to_le_bytes());
            out.extend(subtree.hash.0);
        });
        put_list(&mut out, &self.places, |out, place| {
            out.extend(place.record.to_le_bytes());
            out.extend(place.offset.to_le_bytes());
        });
        put_list(&mut out, &terms, |out, (term, end)| {
            out.extend(term.to_le_bytes());
            out.extend(end.to_le_bytes());
        });
        out.extend((postings.len() as u64).to_le_bytes());
        out.extend(postings);
        let sum = digest(&SHA256, &out);
        out.extend(sum.as_ref());
        out
    }
}

/// Appends leaf `number` (from 0) to the perfect subtrees of a run of leaves.
pub(crate) fn push_leaf(subtrees: &mut Vec<Subtree>, number: u64, leaf: Hash) {
    let mut top = Subtree { level: 0, number, hash: leaf };
    while let Some(left) = subtrees.pop_if(|left| {
        left.level == top.level && left.number & 1 == 0 && left.number + 1 == top.number
    }) {
        let hash = node_hash(left.hash, top.hash);
        top = Subtree { level: top.level + 1, number: top.number / 2, hash };
    }
    subtrees.push(top);
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| put(out, item));
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take<'a>(cursor: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = cursor.split_at_checked(length)?;
    *cursor = rest;
    Some(taken)
}

fn take_number(cursor: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(cursor, 8)?.try_into().ok()?))
}

fn take_at(cursor: &mut &[u8]) -> Option<String> {
    String::from_utf8(take(cursor, NO_TIME.len())?.to_vec()).ok()
}

fn take_list<T>(
    cursor: &mut &[u8],
    mut item: impl FnMut(&mut &[u8]) -> Option<T>,
) -> Option<Vec<T>> {
    let count = take_number(cursor)?;
    (0..count).map(|_| item(cursor)).collect()
}

fn take_varint(cursor: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *take(cursor, 1)?.first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

const MAGIC: &[u8] = b"sekisho-audit-index/1\n";
const NO_TIME: &str = "                        ";
const PIECE_BYTES: u64 = 1 << 20;
/// Longest frame that is unpacked; the writer makes frames of about 1 MiB.
const FRAME_BYTES_MAX: u64 = 64 << 20;
/// Largest index that is read.
const INDEX_BYTES_MAX: u64 = 1 << 30;

#[cfg(test)]
mod tests;
