//! Everything that holds up to a line of the log, and the step to the next: taken line by line
//! here, or a block at a time by joining what a worker found ([`super::blocks`]).

use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use tlog_tiles::Hash;

use super::blocks::{Block, FoundCheckpoint, WorkId};
use super::line::{Notice, check_line};
use super::roots::Roots;
use super::{Mark, Problem, UNCOVERED_RECORDS_MAX, VerifyError};
use crate::checkpoint::{Checkpoint, VerifyingKey};
use crate::encoding::{self, FORMAT, GENESIS, Header, HexHash, LINE_BYTES_MAX, Lines, Tombstone};

/// What is known up to the line before.
#[derive(Clone)]
pub(super) struct Chain<'a> {
    key: &'a VerifyingKey,
    source: Option<String>,
    /// Leaf hash of the record before.
    pub(super) hash: HexHash,
    pub(super) next: u64,
    pub(super) at: String,
    roots: Roots,
    /// Number and time of the first record that was read.
    pub(super) first: Option<(u64, String)>,
    /// The segment that was begun last and its first record: where a truncation shows.
    segment: Option<(PathBuf, u64)>,
    /// Heads to be met, by size, and how many were met.
    marks: &'a [Mark],
    met: usize,
    /// What the file `checkpoint` holds.
    in_file: Option<&'a Checkpoint>,
    pub(super) checkpoints: u64,
    /// Number of the last checkpoint record, the records it covers, and when it was signed.
    last_checkpoint: u64,
    pub(super) covered: u64,
    pub(super) covered_at: String,
    /// When the first checkpoint was signed that is newer than the one in the file `checkpoint`.
    pub(super) newer_at: Option<String>,
    pub(super) unfinished: Unfinished,
}

impl<'a> Chain<'a> {
    /// Before the first record of a log.
    pub(super) fn new(
        key: &'a VerifyingKey,
        marks: &'a [Mark],
        in_file: Option<&'a Checkpoint>,
    ) -> Self {
        Self {
            key,
            source: None,
            hash: GENESIS,
            next: 1,
            at: String::new(),
            roots: Roots::default(),
            first: None,
            segment: None,
            marks,
            met: 0,
            in_file,
            checkpoints: 0,
            last_checkpoint: 0,
            covered: 0,
            covered_at: String::new(),
            newer_at: None,
            unfinished: Unfinished::default(),
        }
    }

    /// Takes what a header says of the records before it; `None` when its tree does not fit. The
    /// caller compares the tree with something signed.
    pub(super) fn after(mut self, header: &Header) -> Option<Self> {
        let hash = |digits: &String| encoding::unhex(digits.as_bytes());
        let tree: Vec<Hash> = header.tree.iter().map(hash).collect::<Option<_>>()?;
        let before = header.first.checked_sub(1)?;
        self.roots = Roots::of(before, &tree)?;
        self.hash = header.prev.as_bytes().try_into().ok()?;
        self.next = header.first;
        self.at.clone_from(&header.at);
        self.last_checkpoint = before;
        self.covered = before;
        Some(self)
    }

    /// Whether the records before are those that retention deleted.
    pub(super) fn continues(&self, tombstone: &Tombstone) -> bool {
        self.next == tombstone.through_record + 1
            && self.hash == tombstone.last_hash
            && self.at >= tombstone.until
            && self.roots.root() == tombstone.root
    }

    /// Skips the marks whose tree can not be computed any more; returns their number.
    pub(super) fn skip_marks(&mut self) -> usize {
        let size = self.next - 1;
        self.met = self.marks.partition_point(|mark| mark.size < size);
        self.met
    }

    /// Whether the file `checkpoint` still holds what it held at the beginning.
    pub(super) fn is_in_file(&self, file: &Checkpoint) -> bool {
        self.in_file == Some(file)
    }

    /// What proves that records were cut from the end, if anything does.
    pub(super) fn cut_off(&self) -> Option<Problem> {
        // The writer puts a checkpoint into the log before it puts it into the file.
        let file = self.in_file.map(|file| (file.size() + 1, file.size(), CHECKPOINT_FILE_NAME));
        let marks = self.marks.iter().map(|mark| (mark.size, mark.size, mark.what));
        let (through, covers, what) =
            marks.chain(file).filter(|(through, ..)| *through >= self.next).max()?;
        Some(Problem::CutOff { what, first: self.next, through, covers })
    }

    /// Marks that were not met yet.
    fn marks_left(&self) -> &'a [Mark] {
        self.marks.get(self.met..).unwrap_or_default()
    }

    pub(super) fn follow_header(
        &mut self,
        number: u64,
        path: &Path,
        line: &[u8],
    ) -> Result<(), VerifyError> {
        let wrong = |problem| VerifyError::at(path, 1, None, problem);
        let bad = |what| wrong(Problem::BadHeader(what));
        let header = line
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
        let tree = self.roots.tree().map(|hash| encoding::hash_text(&encoding::hex(hash)));
        if !tree.eq(header.tree) {
            return Err(bad("its tree is not that of the records before it"));
        }
        self.meet_marks().map_err(wrong)?;
        self.source = Some(header.source);
        self.at = header.at;
        self.segment = Some((path.to_owned(), header.first));
        Ok(())
    }

    /// The fault lies at the end of the segment before.
    fn truncated_before(&self, path: &Path, first: u64) -> VerifyError {
        let problem = Problem::TruncatedSegment { first: self.next, last: first - 1 };
        self.at_end(path, problem)
    }

    /// An error behind the last line that was followed; in `file` when there was none.
    pub(super) fn at_end(&self, file: &Path, problem: Problem) -> VerifyError {
        let (file, line) = match &self.segment {
            Some((file, first)) => (file.as_path(), 2 + self.next - first),
            None => (file, 0),
        };
        VerifyError::at(file, line, Some(self.next), problem)
    }

    /// Follows a segment line by line.
    pub(super) fn follow_segment(
        &mut self,
        dir: &Path,
        number: u64,
        last: bool,
    ) -> Result<(), VerifyError> {
        let name = dir.join(encoding::segment_name(number));
        let (path, mut lines) = encoding::open_numbered(dir, number)
            .map_err(|error| VerifyError::at(&name, 0, None, Problem::Unreadable(error)))?;
        let unreadable = |line_number, record, error| {
            let problem = if encoding::is_compressed(&path) {
                Problem::Undecodable(error)
            } else {
                Problem::Unreadable(error)
            };
            VerifyError::at(&path, line_number, record, problem)
        };
        let mut line = Vec::new();
        encoding::read_line(&mut lines, &mut line).map_err(|error| unreadable(1, None, error))?;
        self.follow_header(number, &path, &line)?;
        for line_number in 2.. {
            let length = encoding::read_line(&mut lines, &mut line)
                .map_err(|error| unreadable(line_number, Some(self.next), error))?;
            if length == 0 {
                break;
            }
            let record = Some(self.next);
            let followed = match line.strip_suffix(b"\n") {
                Some(whole) => self.follow_record(whole),
                None => Err(unended(&line, &mut lines, last, self.next)),
            };
            if let Err(problem) = followed {
                if last && self.is_hole(&line) {
                    let bytes = length as u64 + rest_of(&mut lines);
                    let problem = Problem::TornTail { bytes };
                    return Err(VerifyError::at(&path, line_number, record, problem));
                }
                let problem = self.look_ahead(problem, &mut lines);
                return Err(VerifyError::at(&path, line_number, record, problem));
            }
        }
        Ok(())
    }

    /// Whether the line is what a loss of power made of records that were never confirmed: the next
    /// start cuts it as well.
    fn is_hole(&self, line: &[u8]) -> bool {
        let is_shown = self.in_file.is_some_and(|file| file.size() + 1 >= self.next);
        line.ends_with(b"\n") && encoding::has_hole(line) && !is_shown
    }

    fn follow_record(&mut self, line: &[u8]) -> Result<(), Problem> {
        let line = check_line(line)?;
        let record = line.record;
        self.check_place(record.n, record.prev, record.at)?;
        let checkpoint = match line.notice {
            Notice::Nothing => None,
            Notice::Opened(work, id) => {
                self.unfinished.open((work, id.into_owned()), record.n);
                None
            }
            Notice::Closed(work, id) => {
                self.unfinished.close(&(work, id.into_owned()));
                None
            }
            Notice::Checkpoint(note) => Some(FoundCheckpoint {
                record: record.n,
                checkpoint: Checkpoint::open(&note, self.key).map_err(Problem::BadCheckpoint)?,
            }),
        };
        self.push(line.leaf, checkpoint.as_ref())?;
        self.first.get_or_insert_with(|| (record.n, record.at.to_owned()));
        record.at.clone_into(&mut self.at);
        self.hash = encoding::hex(&line.leaf);
        Ok(())
    }

    fn check_place(&self, n: u64, prev: &[u8], at: &str) -> Result<(), Problem> {
        if n > self.next {
            return Err(Problem::Missing { first: self.next, last: n - 1 });
        }
        if n < self.next {
            return Err(Problem::Inserted { found: n });
        }
        if prev != self.hash {
            return Err(Problem::ReplacedBefore);
        }
        if *at < *self.at {
            return Err(Problem::ClockBack { before: self.at.clone(), at: at.to_owned() });
        }
        Ok(())
    }

    /// Takes the next record into the tree.
    pub(super) fn push(
        &mut self,
        leaf: Hash,
        checkpoint: Option<&FoundCheckpoint>,
    ) -> Result<(), Problem> {
        match checkpoint {
            Some(found) => self.meet_checkpoint(found)?,
            None if self.next - self.last_checkpoint > UNCOVERED_RECORDS_MAX => {
                return Err(Problem::Uncovered { first: self.last_checkpoint + 1 });
            }
            None => {}
        }
        let in_file = self.in_file.filter(|file| file.size() + 1 == self.next);
        if in_file.is_some_and(|file| checkpoint.is_none_or(|found| found.checkpoint != *file)) {
            return Err(Problem::CheckpointRemoved);
        }
        self.roots.push(leaf);
        self.next += 1;
        self.meet_marks()
    }

    /// Compares the tree of all records before a checkpoint record with what the record says.
    fn meet_checkpoint(&mut self, found: &FoundCheckpoint) -> Result<(), Problem> {
        let checkpoint = &found.checkpoint;
        let before = found.record - 1;
        if checkpoint.size() != before {
            return Err(Problem::WrongSize { covers: checkpoint.size(), before });
        }
        if checkpoint.hash() != self.roots.root() {
            return Err(Problem::WrongRoot { first: self.covered + 1, last: before });
        }
        self.last_checkpoint = found.record;
        self.covered = before;
        if self.in_file.is_some_and(|file| file.size() < before) {
            self.newer_at.get_or_insert_with(|| checkpoint.time().to_owned());
        }
        checkpoint.time().clone_into(&mut self.covered_at);
        self.checkpoints += 1;
        Ok(())
    }

    /// Compares the tree so far with the heads of its size.
    fn meet_marks(&mut self) -> Result<(), Problem> {
        while let Some(mark) = self.marks_left().first()
            && mark.size <= self.roots.size()
        {
            if mark.size == self.roots.size() && mark.root != self.roots.root() {
                return Err(Problem::Forked { what: mark.what, covers: mark.size });
            }
            self.met += 1;
        }
        Ok(())
    }

    /// Takes a sound block; what is wrong when it does not fit is found line by line.
    pub(super) fn join(&mut self, block: Block) -> Result<(), Problem> {
        self.check_place(block.first, &block.prev, &block.first_at)?;
        let mut checkpoints = block.checkpoints.iter().peekable();
        for leaf in &block.leaves {
            let checkpoint = checkpoints.next_if(|found| found.record == self.next);
            self.push(*leaf, checkpoint)?;
        }
        for id in &block.closed {
            self.unfinished.close(id);
        }
        for (id, record) in block.opened {
            self.unfinished.open(id, record);
        }
        self.first.get_or_insert((block.first, block.first_at));
        self.at = block.last_at;
        self.hash = block.last_hash;
        Ok(())
    }

    /// A record that seems missing but stands later in the file was swapped.
    fn look_ahead(&self, problem: Problem, lines: &mut Lines) -> Problem {
        let Problem::Missing { last, .. } = problem else { return problem };
        let mut line = Vec::new();
        while matches!(encoding::read_line(lines, &mut line), Ok(length) if length > 0) {
            let record = line.strip_suffix(b"\n").and_then(encoding::parse_record);
            if record.is_some_and(|record| record.n == self.next) {
                return Problem::Swapped { found: last + 1 };
            }
        }
        problem
    }
}

/// Bytes up to the end of the file.
fn rest_of(lines: &mut Lines) -> u64 {
    let mut bytes = 0;
    while let Ok(more) = lines.fill_buf() {
        if more.is_empty() {
            break;
        }
        let length = more.len();
        bytes += length as u64;
        lines.consume(length);
    }
    bytes
}

/// What a line without its end means.
fn unended(line: &[u8], rest: &mut Lines, last_segment: bool, next: u64) -> Problem {
    let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let mut bytes = line.len() as u64;
    if line.len() >= LINE_BYTES_MAX {
        // A loss of power can leave any number of zeros behind; anything else is no line.
        if !encoding::ends_in_zeros(line) {
            return Problem::NotARecord;
        }
        while let Ok(more) = rest.fill_buf() {
            if more.is_empty() {
                break;
            }
            if !zeros(more) {
                return Problem::NotARecord;
            }
            let length = more.len();
            bytes += length as u64;
            rest.consume(length);
        }
    }
    if last_segment {
        Problem::TornTail { bytes }
    } else {
        Problem::TruncatedSegment { first: next, last: next }
    }
}

/// Permits without completion and intents without outcome.
#[derive(Debug, Clone, Default)]
pub(super) struct Unfinished {
    open: HashMap<WorkId, u64>,
    /// How many were begun while [`UNFINISHED_MAX`] others were open.
    not_kept: u64,
}

impl Unfinished {
    fn open(&mut self, id: WorkId, record: u64) {
        if self.open.len() < UNFINISHED_MAX || self.open.contains_key(&id) {
            self.open.insert(id, record);
        } else {
            self.not_kept += 1;
        }
    }

    fn close(&mut self, id: &WorkId) {
        self.open.remove(id);
    }

    /// The request ids of the oldest, and how many there are beyond them.
    pub(super) fn names(self) -> (Vec<String>, u64) {
        let mut open: Vec<(u64, String)> =
            self.open.into_iter().map(|((_, id), record)| (record, id)).collect();
        open.sort_unstable();
        let more = open.len().saturating_sub(UNFINISHED_NAMED_MAX) as u64 + self.not_kept;
        open.truncate(UNFINISHED_NAMED_MAX);
        (open.into_iter().map(|(_, id)| id).collect(), more)
    }
}

const CHECKPOINT_FILE_NAME: &str = "the file `checkpoint`";
/// Most open request ids that are kept at a time.
const UNFINISHED_MAX: usize = 1_000_000;
/// Most of them that a summary names.
const UNFINISHED_NAMED_MAX: usize = 1000;
