//! Proofs that stand by themselves: that one record is in the log, and that a newer checkpoint
//! continues an older one. Whoever has such a text and the log's public key needs nothing else.
//!
//! A record proof is a C2SP tlog-proof whose `extra` is the record's text, the bytes that are
//! hashed ([`crate::encoding`]):
//!
//! ```text
//! c2sp.org/tlog-proof@v1
//! extra eyJuIjo3LCJhdCI6IjIwMj…          base64 of the record's text
//! index 6                                leaf index: record number - 1
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2…=     hashes of the audit path, leaf to root
//!
//! sekisho.example/audit/gateway          the checkpoint, as it was signed
//! …
//! ```
//!
//! A consistency proof is `sekisho-audit-consistency@v1`, the hashes (RFC 6962 section 2.1.2), and
//! the older and the newer checkpoint, each behind an empty line. A checkpoint has exactly one
//! empty line itself, before its signatures; so the whole has four.
//!
//! ```text
//!  node of the tree ──► header `tree` of a later segment │ index of a segment │ leaves of one
//!                        (all before it)                   (its own records)    (read in full)
//! ```
//!
//! INVARIANT: every proof is checked against the signed roots before it is handed out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tlog_tiles::{EMPTY_HASH, Hash, HashReader, node_hash, record_hash};

use crate::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, CheckpointError, VerifyingKey};
use crate::encoding::{self, LINE_BYTES_MAX};
use crate::entry::Event;
use crate::index::{Index, Subtree, push_leaf};
use crate::log::Error;
use crate::read::{self, SegmentLines};

/// Why a proof can not be made, or proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The log can not be read.
    #[error("the log can not be read")]
    Log(#[source] Error),
    /// The log has no such record yet, or no checkpoint covers it yet.
    #[error("record {number} is not covered by a checkpoint: the newest covers {covered} records")]
    NotCovered {
        /// The record asked for.
        number: u64,
        /// Records that the newest checkpoint covers.
        covered: u64,
    },
    /// Retention has deleted what the proof needs.
    #[error("records before {first} were deleted by retention: nothing can be proved about them")]
    Deleted {
        /// The first record that is left.
        first: u64,
    },
    /// The older checkpoint covers more than the newer one.
    #[error("the older checkpoint covers {older} records, the newer one {newer}")]
    Order {
        /// Records that the older covers.
        older: u64,
        /// Records that the newer covers.
        newer: u64,
    },
    /// The records do not give the signed root.
    #[error("the records on disk do not give the root that was signed: run `sekisho audit verify`")]
    OtherRoot,
    /// The text is not a proof of the expected form.
    #[error("this is not a proof: {0}")]
    Malformed(&'static str),
    /// The checkpoint in the proof is not one of this log.
    #[error("the checkpoint in the proof is forged")]
    Checkpoint(#[source] CheckpointError),
    /// The hashes do not lead from the record to the signed root.
    #[error("the proof is wrong: the record is not in the log that the checkpoint was signed for")]
    NotIncluded,
    /// The hashes do not lead from one signed root to the other.
    #[error("the proof is wrong: the newer checkpoint does not continue the older one")]
    NotConsistent,
}

/// A record that a proof has shown to be in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct ProvedRecord {
    /// Its number.
    pub number: u64,
    /// When it was appended, RFC 3339.
    pub at: String,
    /// What it says.
    pub event: Event,
    /// The signed head that covers it.
    pub checkpoint: Checkpoint,
}

/// Makes the text that proves record `number` of the log in `dir`, under its newest checkpoint.
///
/// # Errors
/// [`ProofError`].
pub fn prove_record(dir: &Path, number: u64, key: &VerifyingKey) -> Result<String, ProofError> {
    let checkpoint = newest_checkpoint(dir, key)?;
    let covered = checkpoint.as_ref().map_or(0, Checkpoint::size);
    let Some(checkpoint) = checkpoint.filter(|_| (1..=covered).contains(&number)) else {
        return Err(ProofError::NotCovered { number, covered });
    };
    let text = record_text(dir, number)?;
    let hashes = with_nodes(dir, |nodes| {
        let path = nodes.answer(|nodes| tlog_tiles::prove_record(covered, number - 1, nodes))?;
        check_path(&path, &checkpoint, number - 1, &text)
            .then_some(path)
            .ok_or(ProofError::OtherRoot)
    })?;
    let mut proof =
        format!("{RECORD_PROOF}\nextra {}\nindex {}\n", STANDARD.encode(text), number - 1);
    put_hashes(&mut proof, &hashes);
    proof.push('\n');
    proof.push_str(checkpoint.note());
    Ok(proof)
}

/// Checks a record proof; needs nothing but the log's public key.
///
/// # Errors
/// [`ProofError::Malformed`], [`ProofError::Checkpoint`], [`ProofError::NotIncluded`].
pub fn check_record_proof(text: &str, key: &VerifyingKey) -> Result<ProvedRecord, ProofError> {
    let malformed = ProofError::Malformed;
    if text.len() > PROOF_BYTES_MAX {
        return Err(malformed("it is too long"));
    }
    let (head, note) = text.split_once("\n\n").ok_or(malformed("it holds no checkpoint"))?;
    let mut lines = head.split('\n');
    if lines.next() != Some(RECORD_PROOF) {
        return Err(malformed("its first line is not `c2sp.org/tlog-proof@v1`"));
    }
    let record = lines
        .next()
        .and_then(|line| line.strip_prefix("extra "))
        .and_then(|extra| STANDARD.decode(extra).ok())
        .ok_or(malformed("it does not hold the record"))?;
    let index = lines
        .next()
        .and_then(|line| line.strip_prefix("index "))
        .and_then(|digits| encoding::parse_number(digits.as_bytes()))
        .ok_or(malformed("it does not name the index"))?;
    let path = take_hashes(lines)?;
    let checkpoint = Checkpoint::open(note, key).map_err(ProofError::Checkpoint)?;
    if checkpoint.size() > RECORDS_MAX || !check_path(&path, &checkpoint, index, &record) {
        return Err(ProofError::NotIncluded);
    }
    let line =
        [&record, encoding::HASH_KEY, &encoding::hex(&record_hash(&record)), b"\"}"].concat();
    let Some(said) = encoding::parse_record(&line).filter(|said| said.n == index + 1) else {
        return Err(malformed("what it proves is not a record of an audit log"));
    };
    let Ok(event) = serde_json::from_slice(said.event) else {
        return Err(malformed("its event is not one that this version knows"));
    };
    Ok(ProvedRecord { number: said.n, at: said.at.to_owned(), event, checkpoint })
}

/// Makes the text that proves that the log with the head `newer` continues that with the head
/// `older`.
///
/// # Errors
/// [`ProofError`].
pub fn prove_consistency(
    dir: &Path,
    older: &Checkpoint,
    newer: &Checkpoint,
) -> Result<String, ProofError> {
    let (small, large) = (older.size(), newer.size());
    if small > large || large > RECORDS_MAX {
        return Err(ProofError::Order { older: small, newer: large });
    }
    let hashes = with_nodes(dir, |nodes| {
        let hashes = if small == 0 || small == large {
            Vec::new()
        } else {
            nodes.answer(|nodes| tlog_tiles::prove_tree(large, small, nodes))?
        };
        is_consistent(&hashes, older, newer).then_some(hashes).ok_or(ProofError::OtherRoot)
    })?;
    let mut proof = format!("{CONSISTENCY_PROOF}\n");
    put_hashes(&mut proof, &hashes);
    for note in [older.note(), newer.note()] {
        proof.push('\n');
        proof.push_str(note);
    }
    Ok(proof)
}

/// Checks a consistency proof; returns the older and the newer checkpoint.
///
/// # Errors
/// [`ProofError::Malformed`], [`ProofError::Checkpoint`], [`ProofError::Order`],
/// [`ProofError::NotConsistent`].
pub fn check_consistency_proof(
    text: &str,
    key: &VerifyingKey,
) -> Result<(Checkpoint, Checkpoint), ProofError> {
    let malformed = ProofError::Malformed;
    if text.len() > PROOF_BYTES_MAX {
        return Err(malformed("it is too long"));
    }
    let parts: Vec<&str> = text.split("\n\n").take(6).collect();
    let [head, older, older_signatures, newer, newer_signatures] = parts[..] else {
        return Err(malformed("it does not hold two checkpoints"));
    };
    let mut lines = head.split('\n');
    if lines.next() != Some(CONSISTENCY_PROOF) {
        return Err(malformed("its first line is not `sekisho-audit-consistency@v1`"));
    }
    let hashes = take_hashes(lines)?;
    let open = |note: String| Checkpoint::open(&note, key).map_err(ProofError::Checkpoint);
    let older = open(format!("{older}\n\n{older_signatures}\n"))?;
    let newer = open(format!("{newer}\n\n{newer_signatures}"))?;
    let (small, large) = (older.size(), newer.size());
    if small > large || large > RECORDS_MAX {
        return Err(ProofError::Order { older: small, newer: large });
    }
    if is_consistent(&hashes, &older, &newer) {
        Ok((older, newer))
    } else {
        Err(ProofError::NotConsistent)
    }
}

fn check_path(path: &Vec<Hash>, checkpoint: &Checkpoint, index: u64, record: &[u8]) -> bool {
    let leaf = record_hash(record);
    tlog_tiles::check_record(path, checkpoint.size(), checkpoint.hash(), index, leaf).is_ok()
}

/// The sizes must be in order and small enough.
fn is_consistent(hashes: &Vec<Hash>, older: &Checkpoint, newer: &Checkpoint) -> bool {
    if older.size() == 0 {
        return hashes.is_empty() && older.hash() == EMPTY_HASH;
    }
    let (large, root) = (newer.size(), newer.hash());
    tlog_tiles::check_tree(hashes, large, root, older.size(), older.hash()).is_ok()
}

fn put_hashes(proof: &mut String, hashes: &[Hash]) {
    for hash in hashes {
        proof.push_str(&hash.to_string());
        proof.push('\n');
    }
}

fn take_hashes<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<Hash>, ProofError> {
    let hashes: Vec<Hash> = lines
        .take(HASHES_MAX + 1)
        .map(|line| Hash::parse_hash(line).ok().filter(|hash| hash.to_string() == line))
        .collect::<Option<_>>()
        .ok_or(ProofError::Malformed("a line of it is not a hash"))?;
    if hashes.len() > HASHES_MAX {
        return Err(ProofError::Malformed("it holds too many hashes"));
    }
    Ok(hashes)
}

/// The newest checkpoint of the log: from its file, or else from its records.
fn newest_checkpoint(dir: &Path, key: &VerifyingKey) -> Result<Option<Checkpoint>, ProofError> {
    let usable = |checkpoint: &Checkpoint| checkpoint.size() <= RECORDS_MAX;
    if let Ok(Some(checkpoint)) = crate::checkpoint::latest_checkpoint(dir, key)
        && usable(&checkpoint)
    {
        return Ok(Some(checkpoint));
    }
    let numbers = read::segment_numbers(dir).map_err(ProofError::Log)?;
    for (back, number) in numbers.iter().rev().enumerate() {
        let mut newest = None;
        for_each_record(dir, *number, back == 0, |record, _| {
            // Checkpoints are few: the word is looked for before the event is read.
            if record.event.starts_with(b"{\"event\":\"checkpoint\"")
                && let Ok(Event::Checkpoint { note }) = serde_json::from_slice(record.event)
                && let Ok(checkpoint) = Checkpoint::open(&note, key)
            {
                newest = Some(checkpoint).filter(usable);
            }
        })?;
        if newest.is_some() {
            return Ok(newest);
        }
    }
    Ok(None)
}

/// The bytes of a record that its hash covers.
fn record_text(dir: &Path, number: u64) -> Result<Vec<u8>, ProofError> {
    let numbers = read::segment_numbers(dir).map_err(ProofError::Log)?;
    let at = read::last_where(dir, &numbers, |header| header.first <= number)
        .map_err(ProofError::Log)?;
    let Some(segment) = numbers.get(at) else { return Err(ProofError::OtherRoot) };
    let first = read::header_of(dir, *segment).map_err(ProofError::Log)?.first;
    if number < first {
        return Err(ProofError::Deleted { first });
    }
    let mut found = None;
    for_each_record(dir, *segment, at + 1 == numbers.len(), |record, text| {
        if record.n == number {
            found = Some(text.to_vec());
        }
    })?;
    found.ok_or(ProofError::OtherRoot)
}

fn for_each_record(
    dir: &Path,
    segment: u64,
    last: bool,
    mut each: impl FnMut(&encoding::RecordLine<'_>, &[u8]),
) -> Result<(), ProofError> {
    let mut lines = SegmentLines::open(dir, segment).map_err(ProofError::Log)?;
    let mut line = Vec::with_capacity(LINE_BYTES_MAX);
    while lines.next(&mut line, last).map_err(ProofError::Log)? {
        let parts = encoding::parse_record(&line).zip(encoding::split_hash(&line));
        let Some((record, (text, _))) = parts else {
            return Err(ProofError::Log(lines.damaged("this is not a record")));
        };
        each(&record, text);
    }
    Ok(())
}

/// Does `work` with the nodes of the log's tree; when what the indexes say leads nowhere, once more
/// without them.
fn with_nodes<T>(
    dir: &Path,
    mut work: impl FnMut(&Nodes) -> Result<T, ProofError>,
) -> Result<T, ProofError> {
    match work(&Nodes::new(dir, true)?) {
        Err(ProofError::OtherRoot) => work(&Nodes::new(dir, false)?),
        done => done,
    }
}

/// The perfect subtrees of the log's tree, computed from as few segments as possible.
struct Nodes {
    dir: PathBuf,
    numbers: Vec<u64>,
    use_indexes: bool,
    memory: RefCell<Memory>,
}

#[derive(Default)]
struct Memory {
    /// First record (from 0) and tree of the segments whose headers were read.
    headers: HashMap<usize, (u64, Vec<Subtree>)>,
    /// Subtrees that the records of a segment are, where it has an index.
    indexed: HashMap<usize, Option<Vec<Subtree>>>,
    /// The leaves of the segment that was read last.
    leaves: Option<(usize, Vec<Hash>)>,
    failure: Option<ProofError>,
}

impl HashReader for Nodes {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let mut memory = self.memory.borrow_mut();
        let mut hashes = Vec::with_capacity(indexes.len());
        for index in indexes {
            let (level, number) = tlog_tiles::split_stored_hash_index(*index);
            match self.node(&mut memory, level, number) {
                Ok(hash) => hashes.push(hash),
                Err(failure) => {
                    memory.failure = Some(failure);
                    return Err(tlog_tiles::Error::IndexesNotInTree);
                }
            }
        }
        Ok(hashes)
    }
}

impl Nodes {
    fn new(dir: &Path, use_indexes: bool) -> Result<Self, ProofError> {
        let numbers = read::segment_numbers(dir).map_err(ProofError::Log)?;
        Ok(Self { dir: dir.to_owned(), numbers, use_indexes, memory: RefCell::default() })
    }

    /// Runs a prover and gives back this reader's own error instead of the prover's.
    fn answer<T>(
        &self,
        prove: impl FnOnce(&Self) -> Result<T, tlog_tiles::Error>,
    ) -> Result<T, ProofError> {
        prove(self).map_err(|_| self.memory.take().failure.unwrap_or(ProofError::OtherRoot))
    }

    /// The root of the perfect subtree over the leaves `number << level` and up, from 0.
    fn node(&self, memory: &mut Memory, level: u8, number: u64) -> Result<Hash, ProofError> {
        let (start, end) = (number << level, (number + 1) << level);
        // The tree of a header that begins less than one such subtree later holds it whole.
        let after = self.first_from(memory, end)?;
        if number & 1 == 0
            && let Some(at) = after
            && let Some((_, tree)) = memory.headers.get(&at)
            && let Some(found) = find(tree, level, number)
        {
            return Ok(found);
        }
        // The segment that holds the first leaf.
        let holder = self.last_at(memory, start)?;
        let first = self.header(memory, holder)?;
        let next = self.next_first(memory, holder)?;
        let inside = start >= first && next.is_none_or(|next| end <= next);
        if inside {
            if let Some(found) = self.indexed(memory, holder, level, number) {
                return Ok(found);
            }
            let leaves = self.leaves(memory, holder)?;
            let range = usize::try_from(start - first).ok().zip(usize::try_from(end - first).ok());
            let leaves = range.and_then(|(start, end)| leaves.get(start..end));
            return perfect_root(leaves.ok_or(ProofError::OtherRoot)?, number << level)
                .ok_or(ProofError::OtherRoot);
        }
        if level == 0 {
            return Err(ProofError::Deleted { first: first + 1 });
        }
        let left = self.node(memory, level - 1, number * 2)?;
        let right = self.node(memory, level - 1, number * 2 + 1)?;
        Ok(node_hash(left, right))
    }

    /// First record (from 0) of a segment; its tree is in the memory then.
    fn header(&self, memory: &mut Memory, at: usize) -> Result<u64, ProofError> {
        if let Some((first, _)) = memory.headers.get(&at) {
            return Ok(*first);
        }
        let number = *self.numbers.get(at).ok_or(ProofError::OtherRoot)?;
        let header = read::header_of(&self.dir, number).map_err(ProofError::Log)?;
        let first = header.first.checked_sub(1).ok_or(ProofError::OtherRoot)?;
        let mut tree = Vec::new();
        let mut start = 0;
        let bits = (0..64u8).rev().filter(|level| first >> level & 1 == 1);
        for (level, digits) in bits.zip(&header.tree) {
            let hash = encoding::unhex(digits.as_bytes()).ok_or(ProofError::OtherRoot)?;
            tree.push(Subtree { level, number: start >> level, hash });
            start += 1 << level;
        }
        memory.headers.insert(at, (first, tree));
        Ok(first)
    }

    fn next_first(&self, memory: &mut Memory, at: usize) -> Result<Option<u64>, ProofError> {
        if at + 1 >= self.numbers.len() {
            return Ok(None);
        }
        self.header(memory, at + 1).map(Some)
    }

    /// The last segment that begins at or before a leaf; the first one when none does.
    fn last_at(&self, memory: &mut Memory, leaf: u64) -> Result<usize, ProofError> {
        let (mut low, mut high) = (0, self.numbers.len());
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.header(memory, middle)? <= leaf {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The first segment that begins at or after a leaf.
    fn first_from(&self, memory: &mut Memory, leaf: u64) -> Result<Option<usize>, ProofError> {
        let before = match leaf.checked_sub(1) {
            Some(before) => self.last_at(memory, before)?,
            None => 0,
        };
        for at in [before, before + 1] {
            if at < self.numbers.len() && self.header(memory, at)? >= leaf {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn indexed(&self, memory: &mut Memory, at: usize, level: u8, number: u64) -> Option<Hash> {
        if !self.use_indexes {
            return None;
        }
        let segment = *self.numbers.get(at)?;
        let load = || Index::load(&self.dir, segment).map(|index| index.subtrees);
        let subtrees = memory.indexed.entry(at).or_insert_with(load);
        find(subtrees.as_ref()?, level, number)
    }

    fn leaves<'a>(&self, memory: &'a mut Memory, at: usize) -> Result<&'a [Hash], ProofError> {
        if memory.leaves.as_ref().is_none_or(|(read, _)| *read != at) {
            let number = *self.numbers.get(at).ok_or(ProofError::OtherRoot)?;
            let mut leaves = Vec::new();
            for_each_record(&self.dir, number, at + 1 == self.numbers.len(), |_, text| {
                leaves.push(record_hash(text));
            })?;
            memory.leaves = Some((at, leaves));
        }
        Ok(memory.leaves.as_ref().map_or(&[], |(_, leaves)| leaves))
    }
}

fn find(subtrees: &[Subtree], level: u8, number: u64) -> Option<Hash> {
    subtrees
        .iter()
        .find(|subtree| subtree.level == level && subtree.number == number)
        .map(|subtree| subtree.hash)
}

/// The root over leaves that make up one perfect subtree.
fn perfect_root(leaves: &[Hash], start: u64) -> Option<Hash> {
    let mut subtrees = Vec::new();
    for (number, leaf) in (start..).zip(leaves) {
        push_leaf(&mut subtrees, number, *leaf);
    }
    match subtrees[..] {
        [whole] => Some(whole.hash),
        _ => None,
    }
}

const RECORD_PROOF: &str = "c2sp.org/tlog-proof@v1";
const CONSISTENCY_PROOF: &str = "sekisho-audit-consistency@v1";
/// Largest tree that is proved about; keeps the arithmetic of positions far from its limits.
const RECORDS_MAX: u64 = 1 << 48;
/// Most hashes of a proof.
const HASHES_MAX: usize = 128;
/// Longest proof that is looked at.
const PROOF_BYTES_MAX: usize =
    LINE_BYTES_MAX.div_ceil(3) * 4 + HASHES_MAX * 45 + 2 * CHECKPOINT_BYTES_MAX + 256;

#[cfg(test)]
mod tests;
