//! Each attack on a log, made on a real one; what the verifier says of it is printed.

use std::path::Path;

use super::*;
use crate::checkpoint::CheckpointKey;
use crate::crafted::{Crafted, compress};
use crate::encoding::{
    Header, HexHash, LINE_BYTES_MAX, compressed_name, header_line, segment_name, write_record,
};
use crate::entry::Event;

/// What is wrong with the log in `dir`, in the words that an operator reads, printed too.
fn verdict(dir: &Path, key: &VerifyingKey) -> VerifyError {
    verdict_with(dir, key, &VerifyOptions::default())
}

fn verdict_with(dir: &Path, key: &VerifyingKey, options: &VerifyOptions) -> VerifyError {
    let error = verify_with(dir, key, options, &mut |_| {}).unwrap_err();
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    let text = format!("{error}{}", source.unwrap_or_default());
    println!("{name}\n    {}", text.replace(&format!("{}/", dir.display()), "DIR/"));
    error
}

/// File name, line, record and problem.
fn place(error: &VerifyError) -> (String, u64, Option<u64>, String) {
    let name = error.file.file_name().unwrap().to_str().unwrap().to_owned();
    (name, error.line, error.record, format!("{:?}", error.problem))
}

fn assert_at(error: &VerifyError, file: u64, line: u64, record: Option<u64>, problem: &str) {
    assert_eq!(place(error), (segment_name(file), line, record, problem.to_owned()));
}

impl Crafted {
    fn verdict(&self) -> VerifyError {
        verdict(self.write().path(), self.verifying_key())
    }

    fn assert_found(&self, file: u64, line: u64, record: Option<u64>, problem: &str) {
        assert_at(&self.verdict(), file, line, record, problem);
    }
}

/// A record line of its own, as a forger makes it.
fn record(n: u64, at: &str, prev: &HexHash, json: &[u8]) -> Vec<u8> {
    let mut line = Vec::new();
    write_record(&mut line, n, at, prev, json);
    line
}

fn parts(line: &[u8]) -> (u64, String, HexHash, HexHash, Vec<u8>) {
    let record = encoding::parse_record(line.strip_suffix(b"\n").unwrap()).unwrap();
    (
        record.n,
        record.at.to_owned(),
        record.prev.try_into().unwrap(),
        record.hash.try_into().unwrap(),
        record.event.to_vec(),
    )
}

const FORGED: &[u8] = br#"{"event":"service_started","version":"forged"}"#;

#[test]
fn a_sound_log_is_summed_up() {
    let log = Crafted::of(3, 10);
    let dir = log.write();
    compress(dir.path(), 1, 4);
    let mut told = Vec::new();
    let summary =
        verify_with(dir.path(), log.verifying_key(), &VerifyOptions::default(), &mut |records| {
            told.push(records)
        })
        .unwrap();
    assert_eq!((summary.records, summary.segments, summary.first_record), (30, 3, 1));
    assert_eq!((summary.checkpoints, summary.covered), (3, 29));
    assert_eq!(summary.first_at.unwrap(), "2026-03-31T23:33:20.007Z");
    assert_eq!(summary.last_at.unwrap(), encoding::at_text(log.at_ms));
    assert_eq!(summary.head.as_bytes(), log.hash);
    assert_eq!(summary.deleted, None);
    assert_eq!(told.last(), Some(&30));
}

#[test]
fn permits_and_intents_without_an_end_are_named_oldest_first() {
    let mut log = Crafted::new();
    for n in [2, 6, 16, 17, 4, 18] {
        log.push(&crate::crafted::sample(n));
    }
    log.checkpoint();
    log.begin_segment();
    // The intent of 6 ends in the next segment; the outcome of a permit's id ends nothing.
    log.push(&crate::crafted::sample(7));
    log.push_json(br#"{"event":"outcome","request_id":"req-1"}"#);
    log.checkpoint();
    let summary = verify(log.write().path(), log.verifying_key()).unwrap();
    assert_eq!(summary.unfinished, ["req-1", "req-9"]);
    assert_eq!(summary.unfinished_more, 0);
}

#[test]
fn many_unfinished_are_counted() {
    let mut log = Crafted::new();
    for n in 0..1200 {
        let json = format!(r#"{{"event":"intent","request_id":"r{n}"}}"#);
        log.push_json(json.as_bytes());
    }
    let summary = verify(log.write().path(), log.verifying_key()).unwrap();
    assert_eq!((summary.unfinished.len(), summary.unfinished_more), (1000, 200));
    assert_eq!(summary.unfinished[999], "r999");
}

#[test]
fn a_byte_changed_at_any_position_is_found_at_its_line() {
    let log = Crafted::of(2, 3);
    let dir = log.write();
    for (number, segment) in (1..).zip(&log.segments) {
        let path = dir.path().join(segment_name(number));
        let whole = segment.concat();
        let mut at = 0;
        for (index, line) in segment.iter().enumerate() {
            for _ in 0..line.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                std::fs::write(&path, bytes).unwrap();
                let error = verify(dir.path(), log.verifying_key()).unwrap_err();
                assert_eq!(error.line, index as u64 + 1, "byte {at}: {error}");
                assert_eq!(error.file, path, "byte {at}: {error}");
                at += 1;
            }
        }
        std::fs::write(&path, whole).unwrap();
    }
    verify(dir.path(), log.verifying_key()).unwrap();
}

#[test]
fn a_changed_word_is_called_a_change() {
    let mut log = Crafted::of(2, 6);
    let line = String::from_utf8(log.segments[0][3].clone()).unwrap();
    log.segments[0][3] = line.replace("complete", "aborted!").into_bytes();
    assert_ne!(line.as_bytes(), log.segments[0][3]);
    log.assert_found(1, 4, Some(3), "Changed");
}

#[test]
fn a_change_inside_a_compressed_segment_is_found_in_it() {
    let log = Crafted::of(2, 6);
    let dir = log.write();
    let path = dir.path().join(segment_name(1));
    let mut lines = log.segments[0].clone();
    lines[3] = String::from_utf8(lines[3].clone()).unwrap().replace("complete", "aborted!").into();
    std::fs::write(path, lines.concat()).unwrap();
    compress(dir.path(), 1, 2);
    let error = verdict(dir.path(), log.verifying_key());
    assert_eq!(place(&error), (compressed_name(1), 4, Some(3), "Changed".into()));
    // A byte of the compressed form itself, in the middle of the third frame.
    let dir = log.write();
    compress(dir.path(), 1, 2);
    let path = dir.path().join(compressed_name(1));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
    let error = verdict(dir.path(), log.verifying_key());
    assert_eq!(error.file, path);
    assert!(error.line > 1 && error.line < 8, "{error}");
}

#[test]
fn removed_records_are_named() {
    let mut log = Crafted::of(2, 6);
    log.segments[0].drain(2..4);
    log.assert_found(1, 3, Some(2), "Missing { first: 2, last: 3 }");
}

#[test]
fn swapped_records_are_told_from_missing_ones() {
    let mut log = Crafted::of(2, 6);
    log.segments[0].swap(2, 3);
    log.assert_found(1, 3, Some(2), "Swapped { found: 3 }");
}

#[test]
fn a_repeated_or_forged_record_is_an_inserted_one() {
    let mut log = Crafted::of(2, 6);
    let copy = log.segments[0][2].clone();
    log.segments[0].insert(3, copy);
    log.assert_found(1, 4, Some(3), "Inserted { found: 2 }");
    // A forger who computes the hash is found at the next genuine record.
    let mut log = Crafted::of(2, 6);
    let (_, at, _, hash, _) = parts(&log.segments[0][2]);
    log.segments[0].insert(3, record(3, &at, &hash, FORGED));
    log.assert_found(1, 5, Some(4), "Inserted { found: 3 }");
}

#[test]
fn a_record_replaced_with_a_fitting_hash_is_found_at_the_next() {
    let mut log = Crafted::of(2, 6);
    let (n, at, prev, ..) = parts(&log.segments[0][3]);
    log.segments[0][3] = record(n, &at, &prev, FORGED);
    log.assert_found(1, 5, Some(4), "ReplacedBefore");
    // Also across the end of a segment.
    let mut log = Crafted::of(2, 6);
    let (n, at, prev, ..) = parts(&log.segments[0][6]);
    log.segments[0][6] = record(n, &at, &prev, FORGED);
    log.assert_found(2, 1, None, "ReplacedSegment");
}

#[test]
fn hashes_counted_anew_after_a_change_do_not_fit_the_next_checkpoint() {
    let mut log = Crafted::of(2, 6);
    let (n, at, prev, ..) = parts(&log.segments[1][3]);
    log.segments[1][3] = record(n, &at, &prev, FORGED);
    log.recount();
    let error = log.verdict();
    assert_at(&error, 2, 7, Some(12), "WrongRoot { first: 6, last: 11 }");
    assert!(error.to_string().contains("records 6 to 11 are not those that were signed"));
}

#[test]
fn a_removed_or_inserted_record_with_all_hashes_counted_anew_is_found_at_the_next_checkpoint() {
    let mut log = Crafted::of(2, 6);
    log.segments[0].remove(3);
    log.recount();
    log.assert_found(1, 6, Some(5), "WrongSize { covers: 5, before: 4 }");
    let mut log = Crafted::of(2, 6);
    let (n, at, prev, ..) = parts(&log.segments[0][3]);
    log.segments[0].insert(3, record(n, &at, &prev, FORGED));
    log.recount();
    log.assert_found(1, 8, Some(7), "WrongSize { covers: 5, before: 6 }");
}

#[test]
fn a_removed_checkpoint_shows_like_any_record() {
    let mut log = Crafted::of(2, 6);
    log.segments[0].pop();
    log.assert_found(1, 7, Some(6), "TruncatedSegment { first: 6, last: 6 }");
    // With all hashes counted anew, at the next checkpoint.
    let mut log = Crafted::of(2, 6);
    log.segments[0].pop();
    log.recount();
    log.assert_found(2, 7, Some(11), "WrongSize { covers: 11, before: 10 }");
    // The newest one, with a forged record in its place.
    let mut log = Crafted::of(2, 6);
    let (n, at, prev, ..) = parts(&log.segments[1][6]);
    log.segments[1][6] = record(n, &at, &prev, FORGED);
    let error = log.verdict();
    assert_at(&error, 2, 7, Some(12), "CheckpointRemoved");
    // The newest one, with nothing in its place.
    let mut log = Crafted::of(2, 6);
    log.segments[1].pop();
    let error = log.verdict();
    assert_eq!((error.line, error.record), (7, Some(12)));
    assert!(
        error.to_string().ends_with(
            "the newest records 12 to 12 were cut off: the file `checkpoint` covers 11 records, \
             the log ends at 11"
        ),
        "{error}"
    );
}

#[test]
fn all_checkpoints_removed_is_found_by_the_file_and_by_what_left_the_box() {
    let strip = |log: &mut Crafted| {
        for segment in &mut log.segments {
            segment.pop();
        }
        log.recount();
    };
    let mut log = Crafted::of(2, 6);
    strip(&mut log);
    let error = log.verdict();
    assert!(matches!(error.problem, Problem::CutOff { first: 11, through: 12, .. }), "{error}");
    // The file too: then a head that left the box knows.
    let heads = log.checkpoints.clone();
    log.checkpoints.clear();
    verify(log.write().path(), log.verifying_key()).unwrap();
    let options = VerifyOptions { from: None, heads };
    let error = verdict_with(log.write().path(), log.verifying_key(), &options);
    assert!(matches!(error.problem, Problem::CutOff { first: 11, through: 11, .. }), "{error}");
    let copy = log.segments[1][1].clone();
    log.segments[1].insert(1, copy);
    log.recount();
    let error = verdict_with(log.write().path(), log.verifying_key(), &options);
    assert!(matches!(error.problem, Problem::Forked { covers: 11, .. }), "{error}");
}

#[test]
fn a_long_run_of_records_without_checkpoint_is_refused() {
    let log = Crafted::of(1, 3);
    let marks = [];
    let mut chain = Chain::new(log.verifying_key(), &marks, None);
    for _ in 0..UNCOVERED_RECORDS_MAX {
        chain.push(log.leaves[0], None).unwrap();
    }
    let error = chain.push(log.leaves[0], None).unwrap_err();
    assert!(matches!(error, Problem::Uncovered { first: 1 }));
}

#[test]
fn a_segment_cut_at_its_end_is_named() {
    let mut log = Crafted::of(2, 6);
    log.segments[0].truncate(4);
    log.assert_found(1, 5, Some(4), "TruncatedSegment { first: 4, last: 6 }");
    let mut log = Crafted::of(2, 6);
    log.segments[0][6].truncate(40);
    log.assert_found(1, 7, Some(6), "TruncatedSegment { first: 6, last: 6 }");
}

#[test]
fn records_cut_from_the_end_are_named_by_the_checkpoints_that_cover_them() {
    let mut log = Crafted::of(2, 6);
    log.segments[1].truncate(3);
    let error = log.verdict();
    assert_eq!((error.line, error.record), (4, Some(9)));
    assert!(
        error.to_string().ends_with(
            "the newest records 9 to 12 were cut off: the file `checkpoint` covers 11 records, \
             the log ends at 8"
        ),
        "{error}"
    );
    // The file set back too: then only a head that left the box knows.
    let heads = vec![log.checkpoints.pop().unwrap()];
    let dir = log.write();
    let summary = verify(dir.path(), log.verifying_key()).unwrap();
    assert_eq!((summary.records, summary.covered), (8, 5));
    let options = VerifyOptions { from: None, heads };
    let error = verdict_with(dir.path(), log.verifying_key(), &options);
    assert!(
        error.to_string().ends_with(
            "the newest records 9 to 11 were cut off: a checkpoint that left the box covers 11 \
             records, the log ends at 8"
        ),
        "{error}"
    );
    let options = VerifyOptions { from: options.heads.first().cloned(), heads: Vec::new() };
    let error = verdict_with(dir.path(), log.verifying_key(), &options);
    assert!(error.to_string().contains("the checkpoint to start from covers 11"), "{error}");
}

#[test]
fn a_log_that_was_continued_otherwise_is_forked() {
    let mut log = Crafted::of(1, 6);
    let mut other = Crafted::with_key(log.key.clone());
    for n in 1..6 {
        other.push(&crate::crafted::sample(n + (n / 5) * 2));
    }
    other.checkpoint();
    log.begin_segment();
    log.push_sample();
    log.checkpoint();
    let options = VerifyOptions { from: None, heads: other.checkpoints };
    let error = verdict_with(log.write().path(), log.verifying_key(), &options);
    assert_eq!((error.line, error.record), (6, Some(5)));
    assert!(
        error.to_string().contains("was forked: a checkpoint that left the box covers 5 records"),
        "{error}"
    );
}

#[test]
fn a_replaced_or_missing_segment_is_named() {
    let log = Crafted::of(3, 6);
    let mut other = Crafted::of(3, 6);
    // The whole first segment of another log.
    let mut mixed = Crafted { segments: log.segments.clone(), ..Crafted::of(3, 6) };
    mixed.key = log.key.clone();
    mixed.checkpoints = log.checkpoints.clone();
    mixed.segments[0] = other.segments[0].clone();
    let error = mixed.verdict();
    assert_eq!((error.line, error.record), (7, Some(6)));
    assert!(matches!(error.problem, Problem::BadCheckpoint(_)), "{error}");
    // One that has the same numbers and a chain of its own.
    other.at_ms += 1;
    mixed.segments[0] = log.segments[0].clone();
    mixed.segments[1] = {
        let mut own = Crafted::new();
        own.at_ms += 9;
        (1..7).for_each(|_| own.push_sample());
        own.begin_segment();
        (1..7).for_each(|_| own.push_sample());
        own.segments.pop().unwrap()
    };
    mixed.assert_found(2, 1, None, "ReplacedSegment");
    // A copy of another segment of the same log.
    mixed.segments[1] = log.segments[2].clone();
    assert!(mixed.verdict().to_string().contains("names another segment than the file"));

    let dir = log.write();
    std::fs::remove_file(dir.path().join(segment_name(2))).unwrap();
    let error = verdict(dir.path(), log.verifying_key());
    assert_eq!((error.line, error.record), (0, None));
    assert!(matches!(error.problem, Problem::MissingSegment { expected: 2 }), "{error}");
    let dir = log.write();
    std::fs::remove_file(dir.path().join(segment_name(1))).unwrap();
    let error = verdict(dir.path(), log.verifying_key());
    assert!(matches!(error.problem, Problem::NoTombstone { last: 1 }), "{error}");
    let dir = log.write();
    std::fs::remove_file(dir.path().join(segment_name(3))).unwrap();
    let error = verdict(dir.path(), log.verifying_key());
    assert_at(&error, 2, 8, Some(13), place(&error).3.as_str());
    assert!(matches!(error.problem, Problem::CutOff { first: 13, through: 18, .. }), "{error}");
}

#[test]
fn a_header_of_another_format_source_tree_or_time_is_refused() {
    let log = Crafted::of(2, 6);
    let line = log.segments[1][0].strip_suffix(b"\n").unwrap();
    let header = encoding::parse_header(line).unwrap();
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = header.clone();
        change(&mut header);
        let mut forged = Crafted::with_key(log.key.clone());
        forged.segments = log.segments.clone();
        forged.segments[1][0] = header_line(&header);
        let error = forged.verdict();
        assert_eq!((error.line, error.record), (1, None), "{error}");
        error.to_string()
    };
    assert!(with(&|header| header.format = "sekisho-audit/3".into()).contains("format"));
    assert!(with(&|header| header.source = "hub".into()).contains("source"));
    let text = with(&|header| header.tree[0] = "00".repeat(32));
    assert!(text.contains("its tree is not that of the records before it"), "{text}");
    assert!(with(&|header| drop(header.tree.pop())).contains("its tree is not that"));
    let text = with(&|header| header.at = "2020-01-01T00:00:00.000Z".into());
    assert!(text.contains("the clock goes back: 2020"), "{text}");
}

#[test]
fn a_forged_checkpoint_is_found_at_its_record() {
    let forge = |note: &dyn Fn(&Crafted) -> String| {
        let mut log = Crafted::new();
        for _ in 1..6 {
            log.push_sample();
        }
        let note = note(&log);
        log.push(&Event::Checkpoint { note });
        log.push_sample();
        let error = log.verdict();
        assert_eq!((error.line, error.record), (7, Some(6)), "{error}");
        error
    };
    let at = "2026-04-01T09:00:00.000Z";
    let source = |error: &VerifyError| std::error::Error::source(error).unwrap().to_string();
    // Signed by a key that only has the same name.
    let error = forge(&|log| {
        let (other, _) = CheckpointKey::generate(log.verifying_key().name()).unwrap();
        other.sign(5, log.tree.root(), at).unwrap().note().to_owned()
    });
    assert!(source(&error).contains("not signed by the pinned key"), "{}", source(&error));
    // Signed by the key of another log.
    let error = forge(&|log| {
        let (other, _) = CheckpointKey::generate("sekisho.example/audit/other").unwrap();
        other.sign(5, log.tree.root(), at).unwrap().note().to_owned()
    });
    assert!(source(&error).contains("that of `sekisho.example/audit/other`"));
    // Genuine signatures of something else.
    let error = forge(&|log| log.key.sign(5, log.roots[4], at).unwrap().note().to_owned());
    assert!(matches!(error.problem, Problem::WrongRoot { first: 1, last: 5 }), "{error}");
    let error = forge(&|log| log.key.sign(4, log.roots[4], at).unwrap().note().to_owned());
    assert!(matches!(error.problem, Problem::WrongSize { covers: 4, before: 5 }), "{error}");
    // No note at all.
    let error = forge(&|_| "no note".into());
    assert!(matches!(error.problem, Problem::BadCheckpoint(CheckpointError::Malformed)));
}

#[test]
fn the_file_checkpoint_is_checked_too() {
    let log = Crafted::of(3, 6);
    let check = |bytes: Option<&[u8]>| {
        let dir = log.write();
        let path = dir.path().join(encoding::CHECKPOINT_FILE);
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        verdict(dir.path(), log.verifying_key())
    };
    let (other, _) = CheckpointKey::generate(log.verifying_key().name()).unwrap();
    let note = other.sign(17, log.roots[17], "2026-04-01T09:00:00.000Z").unwrap();
    for forged in [note.note().as_bytes(), b"", b"\xff\xfe", &[b'x'; 100_000]] {
        let error = check(Some(forged));
        assert!(error.file.ends_with("checkpoint"), "{error}");
        assert!(matches!(error.problem, Problem::BadCheckpoint(_)), "{error}");
    }
    assert!(matches!(check(None).problem, Problem::NoCheckpointFile));
    let dir = log.write();
    let path = dir.path().join(encoding::CHECKPOINT_FILE);
    // An earlier one of the same time is what a crash between record and file leaves.
    for checkpoint in &log.checkpoints[..2] {
        std::fs::write(&path, checkpoint.note()).unwrap();
        verify(dir.path(), log.verifying_key()).unwrap();
    }
    let mut log = Crafted::of(1, 6);
    // Once long after the file's one: what a crash leaves. Twice: it was put back.
    log.at_ms += 61_000;
    log.push_sample();
    log.checkpoint();
    let dir = log.write();
    let path = dir.path().join(encoding::CHECKPOINT_FILE);
    std::fs::write(path, log.checkpoints[0].note()).unwrap();
    verify(dir.path(), log.verifying_key()).unwrap();
    log.at_ms += 61_000;
    log.push_sample();
    log.checkpoint();
    let dir = log.write();
    let path = dir.path().join(encoding::CHECKPOINT_FILE);
    std::fs::write(path, log.checkpoints[0].note()).unwrap();
    let error = verdict(dir.path(), log.verifying_key());
    assert!(matches!(error.problem, Problem::OldCheckpointFile { .. }), "{error}");
}

#[test]
fn a_clock_that_goes_back_is_found() {
    let mut log = Crafted::of(1, 6);
    let (n, _, prev, _, event) = parts(&log.segments[0][6]);
    log.segments[0][6] = record(n, "2020-01-01T00:00:00.000Z", &prev, &event);
    log.assert_found(
        1,
        7,
        Some(6),
        "ClockBack { before: \"2026-03-31T23:33:20.035Z\", at: \"2020-01-01T00:00:00.000Z\" }",
    );
}

/// The log without its first two segments, and what is in its tombstone file.
fn expired(log: &Crafted, tombstone: Option<&str>) -> tempfile::TempDir {
    let dir = log.write();
    for number in 1..=2 {
        std::fs::remove_file(dir.path().join(segment_name(number))).unwrap();
    }
    if let Some(note) = tombstone {
        std::fs::write(dir.path().join(encoding::TOMBSTONE_FILE), note).unwrap();
    }
    dir
}

#[test]
fn a_log_is_verified_from_its_tombstone_on() {
    let log = Crafted::of(4, 6);
    let dir = expired(&log, Some(&log.tombstone(2)));
    let summary = verify(dir.path(), log.verifying_key()).unwrap();
    assert_eq!((summary.first_record, summary.records, summary.segments), (13, 24, 2));
    assert_eq!(summary.deleted.unwrap().through_record, 12);
    // What an interrupted deletion left behind does not matter.
    std::fs::write(dir.path().join(segment_name(2)), b"left over").unwrap();
    verify(dir.path(), log.verifying_key()).unwrap();
    // Heads: one that is gone, one at the edge, one behind it.
    let at = "2026-04-01T09:00:00.000Z";
    let heads = [11, 12, 13]
        .map(|size: usize| log.key.sign(size as u64, log.roots[size], at).unwrap())
        .to_vec();
    let options = VerifyOptions { from: None, heads };
    let summary = verify_with(dir.path(), log.verifying_key(), &options, &mut |_| {}).unwrap();
    assert_eq!(summary.heads_unchecked, 1);
    let heads = vec![log.key.sign(12, log.roots[11], at).unwrap()];
    let options = VerifyOptions { from: None, heads };
    let error = verdict_with(dir.path(), log.verifying_key(), &options);
    assert!(matches!(error.problem, Problem::Forked { covers: 12, .. }), "{error}");
}

#[test]
fn a_missing_or_forged_tombstone_is_named() {
    let log = Crafted::of(4, 6);
    let key = log.verifying_key();
    let error = verdict(expired(&log, None).path(), key);
    assert!(error.to_string().ends_with(
        "segments 1 to 2 are missing, and no tombstone proves that retention deleted them"
    ));
    let (other, _) = CheckpointKey::generate(key.name()).unwrap();
    let text = key.open(&log.tombstone(2)).unwrap();
    let forged = other.sign_text(&text).unwrap();
    let error = verdict(expired(&log, Some(&forged)).path(), key);
    assert!(error.file.ends_with("tombstone"), "{error}");
    assert!(matches!(error.problem, Problem::ForgedTombstone(_)), "{error}");
    // Signed by this key, but no tombstone, or that of another log.
    let checkpoint = log.checkpoints[0].note();
    let error = verdict(expired(&log, Some(checkpoint)).path(), key);
    assert!(matches!(error.problem, Problem::ForgedTombstone(CheckpointError::Malformed)));
    let text = String::from_utf8(text).unwrap().replace("audit/test", "audit/other");
    let error =
        verdict(expired(&log, Some(&log.key.sign_text(text.as_bytes()).unwrap())).path(), key);
    assert!(matches!(error.problem, Problem::ForgedTombstone(CheckpointError::OtherLog { .. })));
    // A genuine older one: a segment is missing beyond it.
    let error = verdict(expired(&log, Some(&log.tombstone(1))).path(), key);
    assert!(matches!(error.problem, Problem::MissingSegment { expected: 2 }), "{error}");
    // The first segment that is left was replaced.
    let mut own = Crafted::with_key(log.key.clone());
    own.at_ms += 1;
    (0..12).for_each(|_| own.push_sample());
    own.segments = vec![Vec::new(), Vec::new()];
    own.begin_segment();
    own.push_sample();
    let dir = expired(&log, Some(&log.tombstone(2)));
    std::fs::write(dir.path().join(segment_name(3)), own.segments[2].concat()).unwrap();
    let error = verdict(dir.path(), key);
    assert_at(&error, 3, 1, None, "TombstoneDiffers { record: 12 }");
}

#[test]
fn from_a_checkpoint_on_what_lies_before_is_not_read() {
    let log = Crafted::of(4, 6);
    let dir = log.write();
    let path = dir.path().join(segment_name(1));
    std::fs::write(&path, b"not read").unwrap();
    assert!(verify(dir.path(), log.verifying_key()).is_err());
    for (from, first) in [(1, 7), (2, 13), (3, 19)] {
        let from = Some(log.checkpoints[from].clone());
        let options = VerifyOptions { from, heads: Vec::new() };
        let summary = verify_with(dir.path(), log.verifying_key(), &options, &mut |_| {}).unwrap();
        assert_eq!((summary.first_record, summary.records), (first, 24));
    }
    // The header's tree is not taken on trust.
    let mut forged = Crafted::with_key(log.key.clone());
    forged.segments = log.segments.clone();
    let (n, at, prev, ..) = parts(&forged.segments[1][2]);
    forged.segments[1][2] = record(n, &at, &prev, FORGED);
    forged.recount();
    let options = VerifyOptions { from: Some(log.checkpoints[2].clone()), heads: Vec::new() };
    let error = verdict_with(forged.write().path(), log.verifying_key(), &options);
    assert!(
        error.to_string().contains("forked: the checkpoint to start from covers 17 records"),
        "{error}"
    );
    assert_eq!((error.line, error.record), (6, Some(17)));
}

#[test]
fn a_checkpoint_of_another_log_is_no_place_to_start_from() {
    let log = Crafted::of(2, 6);
    let other = Crafted::of(2, 6);
    let options = VerifyOptions { from: other.checkpoints.first().cloned(), heads: Vec::new() };
    let error = verdict_with(log.write().path(), log.verifying_key(), &options);
    assert!(matches!(error.problem, Problem::BadCheckpoint(_)), "{error}");
}

#[test]
fn a_torn_tail_is_a_kind_of_its_own() {
    let mut log = Crafted::of(2, 6);
    log.checkpoints.pop();
    log.segments[1][6].truncate(30);
    log.assert_found(2, 7, Some(12), "TornTail { bytes: 30 }");
    log.segments[1][6].resize(3 * LINE_BYTES_MAX, 0);
    log.segments[1][6].drain(..30);
    let bytes = log.segments[1][6].len();
    log.assert_found(2, 7, Some(12), &format!("TornTail {{ bytes: {bytes} }}"));
}

#[test]
fn a_line_without_end_an_event_that_is_no_json_and_an_empty_folder_are_refused() {
    let mut log = Crafted::of(2, 6);
    log.segments[1].push(vec![b'x'; LINE_BYTES_MAX + 1]);
    log.assert_found(2, 8, Some(13), "NotARecord");
    log.segments[1].push(b"\n".to_vec());
    log.assert_found(2, 8, Some(13), "NotARecord");
    for event in
        [&b"{\"event\":}"[..], b"{\"a\":1}", b"{}", b"[\"event\"]", b"{\"event\":\"\xff\"}"]
    {
        let mut log = Crafted::new();
        log.push_json(event);
        log.assert_found(1, 2, Some(1), "BadEvent");
    }
    let key = log.key.verifying_key();
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(verify(empty.path(), key).unwrap_err().problem, Problem::NoSegments));
    let missing = verify(Path::new("/nonexistent/audit"), key).unwrap_err();
    assert!(matches!(missing.problem, Problem::Unreadable(_)));
}

#[test]
fn the_message_names_file_line_record_and_what_is_wrong() {
    let mut log = Crafted::of(2, 6);
    log.segments[0].drain(2..4);
    let text = log.verdict().to_string();
    assert!(
        text.ends_with("00000001.jsonl`, line 3 (record 2): records 2 to 3 are missing"),
        "{text}"
    );
}

#[test]
fn a_log_of_many_blocks_is_verified_like_a_small_one() {
    let mut log = Crafted::new();
    for segment in 0..2 {
        if segment > 0 {
            log.begin_segment();
        }
        for n in 1..25_000 {
            log.push_sample();
            if n % 8000 == 0 {
                log.checkpoint();
            }
        }
        log.checkpoint();
    }
    let dir = log.write();
    let summary = verify(dir.path(), log.verifying_key()).unwrap();
    assert_eq!((summary.records, summary.checkpoints), (log.tree.size(), 8));
    // The last record of the sample is a permit whose completion the checkpoint took the place of.
    assert!(summary.unfinished.len() < 9, "{:?}", summary.unfinished);
    let at = log.segments[1].len() - 3;
    log.segments[1].swap(at, at + 1);
    let n = log.segments[0].len() + at - 1;
    log.assert_found(2, at as u64 + 1, Some(n as u64), &format!("Swapped {{ found: {} }}", n + 1));
}

mod edits;
