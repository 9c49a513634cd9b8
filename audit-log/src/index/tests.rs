//! The index of a closed segment: what is in it, and what a damaged one does.

use super::*;
use crate::crafted::{Crafted, compress, sample};

#[test]
fn an_index_says_what_the_segment_holds() {
    let log = Crafted::of(3, 40);
    let dir = log.write();
    compress(dir.path(), 2, 7);
    build_index(dir.path(), 2).unwrap();
    let index = Index::load(dir.path(), 2).unwrap();
    assert_eq!((index.first, index.last), (41, 80));
    assert!(index.at_first < index.at_last);
    assert_eq!(index.places.len(), 6);
    assert_eq!(index.places[1].record, 47);
    let numbers: Vec<u64> =
        (41..80).filter(|n| matches!(sample(*n), Event::Intent { .. })).collect();
    assert!(!numbers.is_empty());
    for n in numbers {
        let id = format!("req-{}", n / 2);
        assert_eq!(index.records_of(term(Part::RequestId, &id)), [n, n + 1]);
    }
    let denied: Vec<u64> = (41..80).filter(|n| n % 8 == 4).collect();
    assert_eq!(index.records_of(term(Part::Reason, "not_in_charge")), denied);
    assert_eq!(index.records_of(term(Part::Decision, "deny")), denied);
    assert!(index.records_of(term(Part::Office, "9999999999")).is_empty());
    // Its subtrees are those of the log's tree: two of level 3 and up have the hashes of all.
    let leaves: u64 = index.subtrees.iter().map(|subtree| 1 << subtree.level).sum();
    assert_eq!(leaves, 40);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join(encoding::index_name(2))).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn rebuilding_gives_the_same_bytes() {
    let log = Crafted::of(4, 50);
    let dir = log.write();
    compress(dir.path(), 1, 9);
    let name = |number| dir.path().join(encoding::index_name(number));
    let mut told = Vec::new();
    assert_eq!(rebuild_index(dir.path(), &mut |done, of| told.push((done, of))).unwrap(), 3);
    assert_eq!(told, [(1, 3), (2, 3), (3, 3)]);
    let before: Vec<Vec<u8>> = (1..4).map(|number| std::fs::read(name(number)).unwrap()).collect();
    assert!(!name(4).exists());
    std::fs::remove_file(name(2)).unwrap();
    std::fs::write(name(3), b"damaged").unwrap();
    rebuild_index(dir.path(), &mut |_, _| {}).unwrap();
    for (number, before) in (1..4).zip(before) {
        assert_eq!(std::fs::read(name(number)).unwrap(), before);
    }
}

#[test]
fn a_damaged_index_or_one_of_another_form_is_not_used() {
    let log = Crafted::of(2, 20);
    let dir = log.write();
    build_index(dir.path(), 1).unwrap();
    let path = dir.path().join(encoding::index_name(1));
    let sound = std::fs::read(&path).unwrap();
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        assert!(Index::load(dir.path(), 1).is_none(), "byte {at}");
        std::fs::write(&path, &sound[..at]).unwrap();
        assert!(Index::load(dir.path(), 1).is_none(), "cut at {at}");
    }
    std::fs::write(&path, &sound).unwrap();
    assert!(Index::load(dir.path(), 1).is_some());
    assert!(Index::load(dir.path(), 2).is_none());
    std::fs::rename(&path, dir.path().join(encoding::index_name(2))).unwrap();
    assert!(Index::load(dir.path(), 2).is_none());
    std::fs::rename(dir.path().join(encoding::index_name(2)), &path).unwrap();
    // Compressed after the index was made: the places are offsets in another file.
    compress(dir.path(), 1, 5);
    assert!(Index::load(dir.path(), 1).is_none());
}

#[test]
fn a_damaged_segment_gets_no_index() {
    let mut log = Crafted::of(2, 20);
    log.segments[0].remove(7);
    let dir = log.write();
    assert!(matches!(build_index(dir.path(), 1), Err(Error::Damaged { .. })));
    assert!(!dir.path().join(encoding::index_name(1)).exists());
}

#[test]
fn numbers_survive_their_short_form() {
    for number in [0, 1, 127, 128, 300, 1 << 40, u64::MAX] {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, number);
        assert_eq!(take_varint(&mut &bytes[..]), Some(number));
    }
    assert_eq!(take_varint(&mut &[0x80u8; 3][..]), None);
    assert_eq!(take_varint(&mut &[0xffu8; 20][..]), None);
}
