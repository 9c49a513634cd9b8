//! Reading records from any number on, over plain and compressed segments.

use super::*;
use crate::crafted::{Crafted, compress};

fn numbers(dir: &Path, from: u64) -> Vec<u64> {
    read_from(dir, from).map(|entry| entry.unwrap().number).collect()
}

#[test]
fn records_are_read_from_any_number_on_in_both_forms() {
    let log = Crafted::of(5, 7);
    let dir = log.write();
    compress(dir.path(), 1, 3);
    compress(dir.path(), 3, 2);
    for from in 0..=36 {
        let expected: Vec<u64> = (from.max(1)..=35).collect();
        assert_eq!(numbers(dir.path(), from), expected, "from {from}");
    }
    let entry = read(dir.path()).next().unwrap().unwrap();
    assert_eq!((entry.number, entry.hash.len()), (1, 64));
    std::fs::remove_file(dir.path().join(encoding::compressed_name(1))).unwrap();
    assert_eq!(numbers(dir.path(), 3), (8..=35).collect::<Vec<_>>());
}

#[test]
fn an_unended_last_line_ends_the_stream_and_damage_is_an_error() {
    let mut log = Crafted::of(2, 7);
    log.segments[1][7].truncate(30);
    assert_eq!(numbers(log.write().path(), 1), (1..=13).collect::<Vec<_>>());
    log.segments[1][7] = vec![0; 200_000];
    assert_eq!(numbers(log.write().path(), 1), (1..=13).collect::<Vec<_>>());
    log.segments[1][7] = vec![b'x'; 200_000];
    let last = read(log.write().path()).last().unwrap();
    assert!(matches!(last, Err(Error::Damaged { line: 8, .. })), "{last:?}");
    let mut log = Crafted::of(2, 7);
    log.segments[0][7].truncate(30);
    let all: Vec<_> = read(log.write().path()).collect();
    assert_eq!(all.len(), 7);
    assert!(matches!(all.last(), Some(Err(Error::Damaged { line: 8, .. }))));
    let missing: Vec<_> = read(Path::new("/nonexistent/audit")).collect();
    assert!(matches!(missing[..], [Err(Error::Io { .. })]));
}

#[test]
fn a_segment_compressed_after_the_reading_began_is_read_on() {
    let log = Crafted::of(3, 7);
    let dir = log.write();
    let mut entries = read(dir.path());
    assert_eq!(entries.next().unwrap().unwrap().number, 1);
    compress(dir.path(), 1, 3);
    compress(dir.path(), 2, 3);
    assert_eq!(entries.map(|entry| entry.unwrap().number).last(), Some(21));
}
