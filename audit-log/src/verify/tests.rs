//! Every way in which a log can be tampered with, on real files.

use super::*;
use crate::encoding::{GENESIS, Header, header_line, segment_name, write_record};

/// A log whose records the test forges at will.
struct Forged {
    dir: tempfile::TempDir,
}

/// One segment of lines; every record's `at` is its number in milliseconds.
fn segment(number: u64, first: u64, prev: &HexHash, records: u64) -> (Vec<Vec<u8>>, HexHash) {
    let header = Header {
        format: FORMAT.into(),
        source: "test".into(),
        segment: number,
        first,
        at: encoding::at_text(first as i64),
        prev: encoding::hash_text(prev),
    };
    let (line, mut hash) = header_line(&header);
    let mut lines = vec![line];
    for n in first..first + records {
        let (line, next) = record(n, n as i64, &hash, "x");
        lines.push(line);
        hash = next;
    }
    (lines, hash)
}

fn record(n: u64, at_ms: i64, prev: &HexHash, word: &str) -> (Vec<u8>, HexHash) {
    let mut line = Vec::new();
    let event = format!("{{\"event\":\"service_started\",\"version\":\"{word}\"}}");
    let hash = write_record(&mut line, n, &encoding::at_text(at_ms), prev, event.as_bytes());
    (line, hash)
}

fn hash_of(line: &[u8]) -> HexHash {
    let (_, hash) = encoding::split_hash(line.strip_suffix(b"\n").unwrap()).unwrap();
    hash.try_into().unwrap()
}

/// Two segments: records 1 to 5, records 6 to 10.
fn two_segments() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (one, hash) = segment(1, 1, &GENESIS, 5);
    let (two, _) = segment(2, 6, &hash, 5);
    (one, two)
}

impl Forged {
    fn new(segments: &[(u64, Vec<u8>)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (number, bytes) in segments {
            std::fs::write(dir.path().join(segment_name(*number)), bytes).unwrap();
        }
        Self { dir }
    }

    /// File name, line, record and the name of the problem's variant.
    fn found(&self) -> (String, u64, Option<u64>, String) {
        let error = verify(self.dir.path()).unwrap_err();
        let name = error.file.file_name().unwrap().to_str().unwrap().to_owned();
        let problem = format!("{:?}", error.problem);
        (name, error.line, error.record, problem)
    }

    fn assert_found(&self, file: u64, line: u64, record: Option<u64>, problem: &str) {
        let problem = problem.to_owned();
        assert_eq!(self.found(), (segment_name(file), line, record, problem));
    }
}

fn forged(one: &[Vec<u8>], two: &[Vec<u8>]) -> Forged {
    Forged::new(&[(1, one.concat()), (2, two.concat())])
}

#[test]
fn a_sound_log_is_summed_up() {
    let (one, two) = two_segments();
    let summary = verify(forged(&one, &two).dir.path()).unwrap();
    assert_eq!((summary.records, summary.segments), (10, 2));
    assert_eq!(summary.first_at.unwrap(), "1970-01-01T00:00:00.001Z");
    assert_eq!(summary.last_at.unwrap(), "1970-01-01T00:00:00.010Z");
    assert_eq!(summary.head.as_bytes(), hash_of(&two[5]));
}

#[test]
fn a_byte_changed_at_any_position_is_found_at_its_line() {
    let (one, hash) = segment(1, 1, &GENESIS, 2);
    let (two, _) = segment(2, 3, &hash, 2);
    let lines: Vec<Vec<u8>> = one.iter().chain(&two).cloned().collect();
    let whole = lines.concat();
    let split = one.concat().len();
    let mut starts = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        starts.extend(std::iter::repeat_n(at, line.len()));
    }
    let log = forged(&one, &two);
    for (at, start) in starts.iter().enumerate() {
        for flip in [0x01, 0x20, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            let second = at >= split;
            let (number, part) = if second { (2, &bytes[split..]) } else { (1, &bytes[..split]) };
            std::fs::write(log.dir.path().join(segment_name(number)), part).unwrap();
            let error = verify(log.dir.path()).unwrap_err();
            let line = start + 1 - if second { one.len() } else { 0 };
            assert_eq!(error.line, line as u64, "byte {at}: {error}");
            assert!(error.file.ends_with(segment_name(number)), "byte {at}: {error}");
        }
        std::fs::write(log.dir.path().join(segment_name(1)), &whole[..split]).unwrap();
        std::fs::write(log.dir.path().join(segment_name(2)), &whole[split..]).unwrap();
    }
    verify(log.dir.path()).unwrap();
}

#[test]
fn a_changed_word_is_called_a_change() {
    let (mut one, two) = two_segments();
    one[3] = String::from_utf8(one[3].clone()).unwrap().replace("\"x\"", "\"y\"").into_bytes();
    forged(&one, &two).assert_found(1, 4, Some(3), "Changed");
}

#[test]
fn missing_records_are_named() {
    let (mut one, two) = two_segments();
    one.drain(2..4);
    forged(&one, &two).assert_found(1, 3, Some(2), "Missing { first: 2, last: 3 }");
}

#[test]
fn swapped_records_are_told_from_missing_ones() {
    let (mut one, two) = two_segments();
    one.swap(2, 3);
    forged(&one, &two).assert_found(1, 3, Some(2), "Swapped { found: 3 }");
}

#[test]
fn a_repeated_or_forged_record_is_an_inserted_one() {
    let (mut one, two) = two_segments();
    one.insert(3, one[2].clone());
    forged(&one, &two).assert_found(1, 4, Some(3), "Inserted { found: 2 }");
    // A forger who computes the hash is found at the next genuine record.
    let (mut one, two) = two_segments();
    let (line, _) = record(3, 3, &hash_of(&one[2]), "forged");
    one.insert(3, line);
    forged(&one, &two).assert_found(1, 5, Some(4), "Inserted { found: 3 }");
}

#[test]
fn a_record_replaced_with_a_fitting_hash_is_found_at_the_next() {
    let (mut one, two) = two_segments();
    one[3] = record(3, 3, &hash_of(&one[2]), "forged").0;
    forged(&one, &two).assert_found(1, 5, Some(4), "ReplacedBefore");
    // Also across the end of a segment.
    let (mut one, two) = two_segments();
    one[5] = record(5, 5, &hash_of(&one[4]), "forged").0;
    forged(&one, &two).assert_found(2, 1, None, "ReplacedSegment");
}

#[test]
fn a_segment_cut_at_its_end_is_named() {
    let (mut one, two) = two_segments();
    one.truncate(4);
    forged(&one, &two).assert_found(1, 5, Some(4), "TruncatedSegment { first: 4, last: 5 }");
    let (mut one, two) = two_segments();
    one[5].truncate(40);
    forged(&one, &two).assert_found(1, 6, Some(5), "TruncatedSegment { first: 5, last: 5 }");
}

#[test]
fn a_replaced_or_missing_segment_is_named() {
    let (one, two) = two_segments();
    let (other, _) = segment(1, 1, &[b'1'; 64], 5);
    Forged::new(&[(1, other.concat()), (2, two.concat())]).assert_found(
        1,
        1,
        None,
        "ReplacedSegment",
    );
    let (other, _) = segment(2, 6, &[b'1'; 64], 5);
    Forged::new(&[(1, one.concat()), (2, other.concat())]).assert_found(
        2,
        1,
        None,
        "ReplacedSegment",
    );
    let found = Forged::new(&[(2, two.concat())]).found();
    assert_eq!(found.3, "MissingSegment { expected: 1 }");
    let found = Forged::new(&[(1, one.concat()), (3, two.concat())]).found();
    assert_eq!(found.3, "MissingSegment { expected: 2 }");
    // A renamed segment says which one it is.
    let renamed = Forged::new(&[(1, one.concat()), (2, one.concat())]);
    assert!(renamed.found().3.contains("another segment"));
}

#[test]
fn a_header_of_another_format_or_source_is_refused() {
    let (one, _) = two_segments();
    let with = |format: &str, source: &str| {
        let header = Header {
            format: format.into(),
            source: source.into(),
            segment: 2,
            first: 6,
            at: encoding::at_text(6),
            prev: encoding::hash_text(&hash_of(&one[5])),
        };
        Forged::new(&[(1, one.concat()), (2, header_line(&header).0)])
    };
    verify(with(FORMAT, "test").dir.path()).unwrap();
    assert!(with("sekisho-audit/2", "test").found().3.contains("format"));
    assert!(with(FORMAT, "hub").found().3.contains("source"));
}

#[test]
fn a_clock_that_goes_back_is_found() {
    let (mut one, _) = two_segments();
    one.truncate(3);
    one.push(record(3, 1, &hash_of(&one[2]), "x").0);
    Forged::new(&[(1, one.concat())]).assert_found(
        1,
        4,
        Some(3),
        "ClockBack { before: \"1970-01-01T00:00:00.002Z\", at: \"1970-01-01T00:00:00.001Z\" }",
    );
}

#[test]
fn a_torn_tail_is_a_kind_of_its_own() {
    let (one, mut two) = two_segments();
    two[5].truncate(30);
    forged(&one, &two).assert_found(2, 6, Some(10), "TornTail { bytes: 30 }");
}

#[test]
fn a_line_without_end_an_event_that_is_no_json_and_an_empty_folder_are_refused() {
    let (one, mut two) = two_segments();
    two.push(vec![b'x'; LINE_BYTES_MAX + 1]);
    forged(&one, &two).assert_found(2, 7, Some(11), "NotARecord");
    let mut line = Vec::new();
    write_record(&mut line, 6, &encoding::at_text(6), &hash_of(&one[5]), b"{\"event\":}");
    let mut broken = one;
    broken.push(line);
    Forged::new(&[(1, broken.concat())]).assert_found(1, 7, Some(6), "BadEvent");
    assert!(matches!(
        verify(Forged::new(&[]).dir.path()).unwrap_err().problem,
        Problem::NoSegments
    ));
    let missing = verify(Path::new("/nonexistent/audit")).unwrap_err();
    assert!(matches!(missing.problem, Problem::Unreadable(_)));
}

#[test]
fn the_message_names_file_line_record_and_what_is_wrong() {
    let (mut one, two) = two_segments();
    one.drain(2..4);
    let text = verify(forged(&one, &two).dir.path()).unwrap_err().to_string();
    assert!(
        text.ends_with("00000001.jsonl`, line 3 (record 2): records 2 to 3 are missing"),
        "{text}"
    );
}
