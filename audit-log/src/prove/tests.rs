//! Every proof of small logs of many segments, against roots that were counted leaf by leaf.

use proptest::prelude::*;

use super::*;
use crate::checkpoint::CheckpointKey;
use crate::crafted::{Crafted, compress};
use crate::encoding::{CHECKPOINT_FILE, segment_name};
use crate::index::build_index;

/// Segments of different lengths: their ends fall on all sorts of places in the tree.
fn log_of(lengths: &[u64]) -> Crafted {
    let mut log = Crafted::new();
    for (at, length) in lengths.iter().enumerate() {
        if at > 0 {
            log.begin_segment();
        }
        for _ in 1..*length {
            log.push_sample();
        }
        log.checkpoint();
    }
    log
}

/// A checkpoint of any size, as the log could have signed it.
fn head(log: &Crafted, size: u64) -> Checkpoint {
    log.key.sign(size, log.roots[size as usize], "2026-04-01T09:00:00.000Z").unwrap()
}

fn set_head(dir: &Path, head: &Checkpoint) {
    std::fs::write(dir.join(CHECKPOINT_FILE), head.note()).unwrap();
}

const LENGTHS: [&[u64]; 5] =
    [&[1], &[20], &[1, 1, 1, 2, 1, 1, 3, 1], &[5, 6, 7, 3, 11, 2], &[8, 8, 4, 16, 1, 2]];

#[test]
fn every_record_is_proved_under_every_checkpoint() {
    for lengths in LENGTHS {
        let log = log_of(lengths);
        let dir = log.write();
        for with_index in [false, true] {
            if with_index {
                for number in 1..lengths.len() as u64 {
                    compress(dir.path(), number, 3);
                    build_index(dir.path(), number).unwrap();
                }
            }
            for size in 1..=log.tree.size() {
                set_head(dir.path(), &head(&log, size));
                for number in 1..=size {
                    let key = log.verifying_key();
                    let proof = prove_record(dir.path(), number, key).unwrap();
                    let proved = check_record_proof(&proof, key).unwrap();
                    assert_eq!((proved.number, proved.checkpoint.size()), (number, size));
                }
                let beyond = prove_record(dir.path(), size + 1, log.verifying_key());
                assert!(
                    matches!(beyond, Err(ProofError::NotCovered { covered, .. }) if covered == size)
                );
            }
        }
    }
}

#[test]
fn every_two_checkpoints_are_proved_consistent() {
    for lengths in LENGTHS {
        let log = log_of(lengths);
        let dir = log.write();
        for with_index in [false, true] {
            if with_index {
                for number in 1..lengths.len() as u64 {
                    build_index(dir.path(), number).unwrap();
                }
            }
            for large in 0..=log.tree.size() {
                for small in 0..=large {
                    let (older, newer) = (head(&log, small), head(&log, large));
                    let proof = prove_consistency(dir.path(), &older, &newer).unwrap();
                    let checked = check_consistency_proof(&proof, log.verifying_key()).unwrap();
                    assert_eq!(checked, (older, newer));
                }
            }
        }
    }
}

#[test]
fn a_segment_that_is_not_needed_is_not_read() {
    let log = log_of(&[8; 8]);
    let dir = log.write();
    for number in 1..8 {
        build_index(dir.path(), number).unwrap();
        if number != 3 {
            // Only the header is left, and the records are no records.
            let mut bytes = log.segments[number as usize - 1][0].clone();
            bytes.extend(b"unreadable\n");
            std::fs::write(dir.path().join(segment_name(number)), bytes).unwrap();
        }
    }
    let proof = prove_record(dir.path(), 20, log.verifying_key()).unwrap();
    assert_eq!(check_record_proof(&proof, log.verifying_key()).unwrap().number, 20);
    assert!(prove_record(dir.path(), 10, log.verifying_key()).is_err());
}

#[test]
fn what_an_index_says_is_not_taken_on_trust() {
    let log = log_of(&[8; 4]);
    let other = log_of(&[9, 7, 8, 8]);
    let (dir, other_dir) = (log.write(), other.write());
    build_index(other_dir.path(), 2).unwrap();
    let from = other_dir.path().join(encoding::index_name(2));
    std::fs::copy(from, dir.path().join(encoding::index_name(2))).unwrap();
    for number in 1..=31 {
        let proof = prove_record(dir.path(), number, log.verifying_key()).unwrap();
        check_record_proof(&proof, log.verifying_key()).unwrap();
    }
}

#[test]
fn after_a_deletion_what_is_left_can_be_proved_and_nothing_else() {
    let log = log_of(&[5, 6, 7, 3, 11, 2]);
    let dir = log.write();
    for number in 1..=2 {
        std::fs::remove_file(dir.path().join(segment_name(number))).unwrap();
    }
    let key = log.verifying_key();
    for number in 1..=33 {
        let proof = prove_record(dir.path(), number, key);
        if number <= 11 {
            assert!(matches!(proof, Err(ProofError::Deleted { first: 12 })), "{number}");
        } else {
            check_record_proof(&proof.unwrap(), key).unwrap();
        }
    }
    for small in 12..=33 {
        let proof = prove_consistency(dir.path(), &head(&log, small), &head(&log, 33)).unwrap();
        check_consistency_proof(&proof, key).unwrap();
    }
    let gone = prove_consistency(dir.path(), &head(&log, 7), &head(&log, 33));
    assert!(matches!(gone, Err(ProofError::Deleted { first: 12 })), "{gone:?}");
}

#[test]
fn without_the_file_checkpoint_the_newest_record_of_one_is_used() {
    let log = log_of(&[5, 6, 7]);
    let dir = log.write();
    std::fs::remove_file(dir.path().join(CHECKPOINT_FILE)).unwrap();
    let proof = prove_record(dir.path(), 17, log.verifying_key()).unwrap();
    let proved = check_record_proof(&proof, log.verifying_key()).unwrap();
    assert_eq!(proved.checkpoint.size(), 17);
    assert!(proof.starts_with("c2sp.org/tlog-proof@v1\nextra eyJuIjoxNyw"), "{proof}");
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        prove_record(empty.path(), 1, log.verifying_key()),
        Err(ProofError::NotCovered { covered: 0, .. })
    ));
}

#[test]
fn a_changed_record_or_a_fork_gives_no_proof() {
    let mut log = log_of(&[5, 6, 7]);
    let key = log.key.verifying_key().clone();
    let line = String::from_utf8(log.segments[1][3].clone()).unwrap();
    log.segments[1][3] = line.replace("facts_ca_seq\":", "facts_ca_seq\":1").into_bytes();
    assert_ne!(line.as_bytes(), log.segments[1][3]);
    let dir = log.write();
    for number in [2, 7, 8] {
        let error = prove_record(dir.path(), number, &key).unwrap_err();
        assert!(matches!(error, ProofError::OtherRoot), "{number}: {error}");
    }
    let sound = log_of(&[5, 6, 7]);
    let mut other = Crafted::with_key(sound.key.clone());
    (0..9).for_each(|_| other.push(&crate::crafted::sample(3)));
    let error = prove_consistency(sound.write().path(), &head(&other, 9), &head(&sound, 17));
    assert!(matches!(error, Err(ProofError::OtherRoot)));
    let error = prove_consistency(sound.write().path(), &head(&sound, 9), &head(&sound, 3));
    assert!(matches!(error, Err(ProofError::Order { older: 9, newer: 3 })));
}

#[test]
fn proofs_of_another_record_log_or_key_are_refused() {
    let log = log_of(&[5, 6, 7]);
    let dir = log.write();
    let key = log.verifying_key();
    let proof = prove_record(dir.path(), 9, key).unwrap();
    let refused = |text: &str| check_record_proof(text, key).unwrap_err();
    assert!(matches!(refused(&proof.replace("index 8\n", "index 7\n")), ProofError::NotIncluded));
    let other = prove_record(dir.path(), 10, key).unwrap();
    let line = |text: &str, at: usize| text.lines().nth(at).unwrap().to_owned();
    let swapped = proof.replace(&line(&proof, 1), &line(&other, 1));
    assert!(matches!(refused(&swapped), ProofError::NotIncluded));
    let (stranger, _) = CheckpointKey::generate(key.name()).unwrap();
    let error = check_record_proof(&proof, stranger.verifying_key()).unwrap_err();
    assert!(matches!(error, ProofError::Checkpoint(CheckpointError::BadSignature(_))));
    // A genuine inner node is no record.
    assert!(matches!(refused(""), ProofError::Malformed(_)));
    assert!(matches!(refused(&"x".repeat(PROOF_BYTES_MAX + 1)), ProofError::Malformed(_)));
    let many = proof.replace("\n\n", &format!("\n{}\n", format!("{EMPTY_HASH}\n").repeat(200)));
    assert!(matches!(refused(&many), ProofError::Malformed(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_change_of_a_proof_is_refused_without_a_panic(
        at in any::<prop::sample::Index>(),
        cut in 0..80usize,
        new in prop::collection::vec(any::<u8>(), 0..20),
        consistency in any::<bool>(),
    ) {
        let log = log_of(&[5, 6, 7]);
        let dir = log.write();
        let key = log.verifying_key();
        let proof = if consistency {
            prove_consistency(dir.path(), &head(&log, 6), &head(&log, 17)).unwrap()
        } else {
            prove_record(dir.path(), 9, key).unwrap()
        };
        let mut bytes = proof.clone().into_bytes();
        let at = at.index(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, new);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let accepted = if consistency {
            check_consistency_proof(&text, key).is_ok()
        } else {
            check_record_proof(&text, key).is_ok()
        };
        prop_assert_eq!(accepted, text == proof);
    }
}
