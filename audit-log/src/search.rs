//! Search: the records of a log that a [`Query`] asks for, in order, each decision with its
//! completion and each intent with its outcome. Segments that have an index are read only where
//! its terms point; the others, the open one among them, are read whole. Memory is bounded: what
//! waits for its completion waits for at most [`JOIN_MS_MAX`] and [`HELD_MAX`] other results.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::encoding;
use crate::entry::{Entry, Event};
use crate::index::{Index, Part, Pieces, lines_of, term, terms_of};
use crate::log::Error;
use crate::read::{self, SegmentLines};

/// What is looked for: all parts that are given must hold; without any, everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Pseudonym of the insured person.
    pub insured: Option<String>,
    /// 事業所番号 of the office that acted.
    pub office: Option<String>,
    /// Id of the member of staff who acted.
    pub staff: Option<String>,
    /// Identity path of the principal that acted.
    pub terminal: Option<String>,
    /// Document kind.
    pub document: Option<String>,
    /// Reason of a denial or of a failed handshake.
    pub reason: Option<String>,
    /// Operation or action.
    pub action: Option<String>,
    /// Request id.
    pub request_id: Option<String>,
    /// `allow` or `deny`; counted denials are denials too.
    pub decision: Option<String>,
    /// Not before this time (RFC 3339 in the form of the log).
    pub from: Option<String>,
    /// Not after this time.
    pub until: Option<String>,
}

impl Query {
    fn parts(&self) -> impl Iterator<Item = (Part, &str)> {
        [
            (Part::Insured, &self.insured),
            (Part::Office, &self.office),
            (Part::Staff, &self.staff),
            (Part::Terminal, &self.terminal),
            (Part::Document, &self.document),
            (Part::Reason, &self.reason),
            (Part::Action, &self.action),
            (Part::RequestId, &self.request_id),
            (Part::Decision, &self.decision),
        ]
        .into_iter()
        .filter_map(|(part, value)| Some((part, value.as_deref()?)))
    }

    /// Whether an entry is one that is looked for.
    pub fn matches(&self, entry: &Entry) -> bool {
        let in_time = self.from.as_ref().is_none_or(|from| *from <= entry.at)
            && self.until.as_ref().is_none_or(|until| *until >= entry.at);
        in_time && self.parts().all(|(part, value)| holds(&entry.event, part, value))
    }
}

fn holds(event: &Event, wanted: Part, value: &str) -> bool {
    let mut found = false;
    terms_of(event, &mut |part, text| found |= part == wanted && text == value);
    found
}

/// One result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The record.
    pub entry: Entry,
    /// The completion of a decision, or the outcome of an intent.
    pub completion: Option<Entry>,
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchProgress {
    /// Segments that are done.
    pub segments_done: u64,
    /// Segments that have to be looked at.
    pub segments: u64,
    /// Results so far.
    pub records_found: u64,
}

/// The records of the log in `dir` that `query` asks for, first to last. A completion or outcome
/// that stands beside its decision or intent is not given once more by itself. An error ends the
/// stream.
pub fn search<'a>(
    dir: &Path,
    query: &Query,
    progress: &'a mut dyn FnMut(SearchProgress),
) -> impl Iterator<Item = Result<Found, Error>> + use<'a> {
    let (segments, failure) = match segments_from(dir, query) {
        Ok(segments) => (segments, None),
        Err(error) => (VecDeque::new(), Some(error)),
    };
    Search {
        dir: dir.to_owned(),
        query: query.clone(),
        terms: query.parts().map(|(part, value)| term(part, value)).collect(),
        told: SearchProgress {
            segments_done: 0,
            segments: segments.len() as u64,
            records_found: 0,
        },
        progress,
        segments,
        source: None,
        held: VecDeque::new(),
        given: 0,
        waiting: HashMap::new(),
        failure,
        line: Vec::new(),
    }
}

/// The segments that can hold what is looked for, as far as the times of the headers tell.
fn segments_from(dir: &Path, query: &Query) -> Result<VecDeque<u64>, Error> {
    let numbers = read::segment_numbers(dir)?;
    let skip = match &query.from {
        Some(from) => read::last_where(dir, &numbers, |header| header.at < *from)?,
        None => 0,
    };
    Ok(numbers.into_iter().skip(skip).collect())
}

struct Search<'a> {
    dir: PathBuf,
    query: Query,
    terms: Vec<u64>,
    told: SearchProgress,
    progress: &'a mut dyn FnMut(SearchProgress),
    segments: VecDeque<u64>,
    source: Option<Source>,
    /// Results in order; the first may wait for its completion.
    held: VecDeque<Held>,
    /// How many results left `held` at its front.
    given: u64,
    /// What waits, by kind and request id: its place, counted from the first result of all.
    waiting: HashMap<(Pair, String), u64>,
    failure: Option<Error>,
    line: Vec<u8>,
}

struct Held {
    found: Found,
    /// Under which name it waits, and until which time of the log.
    waits: Option<((Pair, String), String)>,
}

/// Two kinds of events that share a request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pair {
    DecisionCompletion,
    IntentOutcome,
}

/// Where the next record comes from.
enum Source {
    Lines(SegmentLines),
    Picked(Picked),
}

/// The records of an indexed segment that are worth a look.
struct Picked {
    index: Index,
    wanted: BTreeSet<u64>,
    /// The piece that is unpacked, and its place in the index.
    piece: Option<(usize, Vec<u8>)>,
    /// Bytes of the piece that are done.
    done: usize,
}

impl Iterator for Search<'_> {
    type Item = Result<Found, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(failure) = self.failure.take() {
                self.segments.clear();
                self.source = None;
                self.held.clear();
                return Some(Err(failure));
            }
            let ready = self.held.front().is_some_and(|held| held.waits.is_none());
            if ready || self.held.len() > HELD_MAX {
                return self.give();
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => return self.give(),
                Err(error) => self.failure = Some(error),
            }
        }
    }
}

impl Search<'_> {
    fn give(&mut self) -> Option<Result<Found, Error>> {
        let held = self.held.pop_front()?;
        if let Some((name, _)) = held.waits {
            self.waiting.remove(&name);
        }
        self.given += 1;
        Some(Ok(held.found))
    }

    /// Looks at one more record or segment; `false` when there is none.
    fn step(&mut self) -> Result<bool, Error> {
        let Some(source) = &mut self.source else { return self.open_next() };
        let last = self.segments.is_empty();
        let entry = match source {
            Source::Lines(lines) => {
                let there = lines.next(&mut self.line, last)?;
                there.then(|| lines.entry(&self.line)).transpose()?
            }
            Source::Picked(picked) => picked.next()?,
        };
        match entry {
            Some(entry) => self.look_at(entry),
            None => {
                self.source = None;
                self.told.segments_done += 1;
                (self.progress)(self.told);
            }
        }
        Ok(true)
    }

    fn open_next(&mut self) -> Result<bool, Error> {
        let Some(number) = self.segments.pop_front() else { return Ok(false) };
        if let Some(index) = Index::load(&self.dir, number) {
            self.give_up_waiting(&index.at_first);
            return Ok(self.open_indexed(number, index));
        }
        let lines = SegmentLines::open(&self.dir, number)?;
        self.give_up_waiting(&lines.header.at);
        if self.is_past(&lines.header.at) {
            self.segments.clear();
            return Ok(false);
        }
        self.source = Some(Source::Lines(lines));
        Ok(true)
    }

    /// Whether nothing from this time on is looked for.
    fn is_past(&self, at: &str) -> bool {
        self.waiting.is_empty() && self.query.until.as_ref().is_some_and(|until| **until < *at)
    }

    fn open_indexed(&mut self, number: u64, index: Index) -> bool {
        let has_records = index.first <= index.last;
        if has_records && self.is_past(&index.at_first) {
            self.segments.clear();
            return false;
        }
        if self.terms.is_empty() {
            // Everything of it is looked at.
            match SegmentLines::open(&self.dir, number) {
                Ok(lines) => self.source = Some(Source::Lines(lines)),
                Err(error) => self.failure = Some(error),
            }
            return true;
        }
        let mut wanted: Option<BTreeSet<u64>> = None;
        let in_time = self.query.from.as_ref().is_none_or(|from| *from <= index.at_last)
            && self.query.until.as_ref().is_none_or(|until| *until >= index.at_first);
        for term in self.terms.iter().filter(|_| in_time) {
            let records = index.records_of(*term).into_iter();
            wanted = Some(match wanted {
                None => records.collect(),
                Some(before) => records.filter(|record| before.contains(record)).collect(),
            });
        }
        let mut picked = Picked { index, wanted: wanted.unwrap_or_default(), piece: None, done: 0 };
        for (_, id) in self.waiting.keys() {
            picked.want_request(id, 0);
        }
        self.source = Some(Source::Picked(picked));
        true
    }

    fn look_at(&mut self, entry: Entry) {
        self.give_up_waiting(&entry.at);
        if let Some(place) = ends(&entry.event).and_then(|name| self.waiting.remove(&name)) {
            let place = usize::try_from(place - self.given).unwrap_or(usize::MAX);
            if let Some(held) = self.held.get_mut(place) {
                held.waits = None;
                held.found.completion = Some(entry);
            }
            return;
        }
        if !self.query.matches(&entry) {
            return;
        }
        let waits = begins(&entry.event).map(|name| (name, join_deadline(&entry.at)));
        if let Some((name, _)) = &waits {
            if let Some(Source::Picked(picked)) = &mut self.source {
                picked.want_request(&name.1, entry.number);
            }
            let place = self.given + self.held.len() as u64;
            if let Some(before) = self.waiting.insert(name.clone(), place) {
                // Two of the same name: the completion belongs to the later one.
                let before = usize::try_from(before - self.given).unwrap_or(usize::MAX);
                self.held.get_mut(before).into_iter().for_each(|held| held.waits = None);
            }
        }
        self.told.records_found += 1;
        self.held.push_back(Held { found: Found { entry, completion: None }, waits });
    }

    /// Lets go of what has waited too long at this time of the log.
    fn give_up_waiting(&mut self, at: &str) {
        for held in &mut self.held {
            match &held.waits {
                Some((_, deadline)) if **deadline >= *at => break,
                Some((name, _)) => {
                    self.waiting.remove(name);
                    held.waits = None;
                }
                // What is behind the first that waits is mostly young.
                None => {}
            }
        }
    }
}

impl Picked {
    /// Adds what may be the completion of a record.
    fn want_request(&mut self, id: &str, after: u64) {
        let records = self.index.records_of(term(Part::RequestId, id));
        self.wanted.extend(records.into_iter().filter(|record| *record > after));
    }

    fn next(&mut self) -> Result<Option<Entry>, Error> {
        while let Some(record) = self.wanted.pop_first() {
            let Some(piece) = self.index.piece_of(record) else { continue };
            if self.piece.as_ref().is_none_or(|(unpacked, _)| *unpacked != piece) {
                let offset = self.index.places.get(piece).map_or(0, |place| place.offset);
                let unpacked = Pieces::open(&self.index.path, offset)?.next()?;
                self.piece = Some((piece, unpacked.map_or_else(Vec::new, |(_, bytes)| bytes)));
                self.done = 0;
            }
            if let Some(entry) = self.entry(record)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Finds a record in the unpacked piece, behind those that were found before.
    fn entry(&mut self, number: u64) -> Result<Option<Entry>, Error> {
        let bytes = self.piece.as_ref().and_then(|(_, bytes)| bytes.get(self.done..));
        for line in lines_of(bytes.unwrap_or_default()) {
            self.done += line.len() + 1;
            let Some(record) = encoding::parse_record(line).filter(|record| record.n == number)
            else {
                continue;
            };
            let damaged = |_| Error::Damaged {
                file: self.index.path.clone(),
                line: number.saturating_sub(self.index.first) + 2,
                what: "the event is not one that this version knows",
            };
            return Ok(Some(Entry {
                number,
                at: record.at.to_owned(),
                event: serde_json::from_slice(record.event).map_err(damaged)?,
                hash: encoding::hash_text(record.hash),
            }));
        }
        Ok(None)
    }
}

/// The name under which an event waits for its end.
fn begins(event: &Event) -> Option<(Pair, String)> {
    if let Event::Decision { request_id, .. } = event {
        return Some((Pair::DecisionCompletion, request_id.clone()));
    }
    if let Event::Intent { request_id: Some(request_id), .. } = event {
        return Some((Pair::IntentOutcome, request_id.clone()));
    }
    None
}

/// The name of what an event ends.
fn ends(event: &Event) -> Option<(Pair, String)> {
    if let Event::Completion { request_id, .. } = event {
        return Some((Pair::DecisionCompletion, request_id.clone()));
    }
    if let Event::Outcome { request_id: Some(request_id), .. } = event {
        return Some((Pair::IntentOutcome, request_id.clone()));
    }
    None
}

/// Until when the end of a record of this time is waited for.
fn join_deadline(at: &str) -> String {
    encoding::at_text(encoding::at_unix_ms(at).unwrap_or(0).saturating_add(JOIN_MS_MAX))
}

/// Longest time between a decision and its completion, or an intent and its outcome, at which they
/// are still put together.
const JOIN_MS_MAX: i64 = 60 * 60 * 1000;
/// Most results that are held back behind one that waits.
const HELD_MAX: usize = 10_000;

#[cfg(test)]
mod tests;
