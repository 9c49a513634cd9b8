//! Any single edit of a log is found, or leaves it as it was: property tests.

use std::io::Read;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// One edit of one file.
#[derive(Debug, Clone)]
enum Edit {
    Flip { at: Index, bit: u8 },
    Delete { at: Index, length: usize },
    Insert { at: Index, bytes: Vec<u8> },
    Truncate { at: Index },
    DeleteLine { line: Index },
    DuplicateLine { line: Index, to: Index },
    SwapLines { one: Index, other: Index },
    ReplaceFile { by: Index },
    RemoveFile,
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<Index>;
    prop_oneof![
        (index(), 0..8u8).prop_map(|(at, bit)| Edit::Flip { at, bit }),
        (index(), 1..400usize).prop_map(|(at, length)| Edit::Delete { at, length }),
        (index(), prop::collection::vec(any::<u8>(), 1..60))
            .prop_map(|(at, bytes)| Edit::Insert { at, bytes }),
        index().prop_map(|at| Edit::Truncate { at }),
        index().prop_map(|line| Edit::DeleteLine { line }),
        (index(), index()).prop_map(|(line, to)| Edit::DuplicateLine { line, to }),
        (index(), index()).prop_map(|(one, other)| Edit::SwapLines { one, other }),
        index().prop_map(|by| Edit::ReplaceFile { by }),
        Just(Edit::RemoveFile),
    ]
}

/// What the file holds after the edit; `None` when it is gone.
fn apply(edit: &Edit, bytes: &[u8], others: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut out = bytes.to_vec();
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    match edit {
        Edit::Flip { at, bit } => out[at.index(bytes.len())] ^= 1 << bit,
        Edit::Delete { at, length } => {
            let at = at.index(bytes.len());
            out.drain(at..(at + length).min(bytes.len()));
        }
        Edit::Insert { at, bytes: new } => {
            let at = at.index(bytes.len() + 1);
            out.splice(at..at, new.iter().copied());
        }
        Edit::Truncate { at } => out.truncate(at.index(bytes.len())),
        Edit::DeleteLine { line } => {
            lines.remove(line.index(lines.len()));
            out = lines.concat();
        }
        Edit::DuplicateLine { line, to } => {
            let (line, to) = (line.index(lines.len()), to.index(lines.len() + 1));
            lines.insert(to, lines[line]);
            out = lines.concat();
        }
        Edit::SwapLines { one, other } => {
            let (one, other) = (one.index(lines.len()), other.index(lines.len()));
            lines.swap(one, other);
            out = lines.concat();
        }
        Edit::ReplaceFile { by } => out.clone_from(by.get(others)),
        Edit::RemoveFile => return None,
    }
    Some(out)
}

/// Two segments are deleted, the third is compressed, two are plain.
fn real_log() -> (Crafted, tempfile::TempDir) {
    let log = Crafted::of(5, 6);
    let dir = log.write();
    for number in 1..=2 {
        std::fs::remove_file(dir.path().join(segment_name(number))).unwrap();
    }
    std::fs::write(dir.path().join(encoding::TOMBSTONE_FILE), log.tombstone(2)).unwrap();
    compress(dir.path(), 3, 2);
    (log, dir)
}

/// The log's content, whatever form the segments are in.
fn content(dir: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    for (_, path) in encoding::list_segments(dir).ok()? {
        encoding::open_segment(&path).ok()?.read_to_end(&mut content).ok()?;
    }
    for name in [encoding::CHECKPOINT_FILE, encoding::TOMBSTONE_FILE] {
        content.extend(std::fs::read(dir.join(name)).ok()?);
    }
    Some(content)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_single_edit_is_found(file in any::<Index>(), edit in edit()) {
        let (log, dir) = real_log();
        let mut files: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        prop_assert_eq!(files.len(), 5);
        let before = content(dir.path());
        prop_assert!(before.is_some());
        verify(dir.path(), log.verifying_key()).unwrap();

        let path = file.get(&files);
        let all: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        let whole = std::fs::read(path).unwrap();
        match apply(&edit, &whole, &all) {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        match verify(dir.path(), log.verifying_key()) {
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
            // A compressed form can have bytes that its content does not depend on; a lone
            // checkpoint file that is gone or one step old is what a crash leaves, too.
            Ok(_) => prop_assert_eq!(content(dir.path()), before),
        }
    }

    #[test]
    fn every_edit_with_all_hashes_counted_anew_is_found(
        segment in 0..3usize,
        one in 1..6usize,
        other in 1..6usize,
        what in 0..4u8,
    ) {
        let mut log = Crafted::of(3, 6);
        let before = log.segments.clone();
        let lines = &mut log.segments[segment];
        match what {
            0 => drop(lines.remove(one)),
            1 => lines.insert(one, lines[other].clone()),
            2 => lines.swap(one, other),
            _ => {
                let (n, at, prev, ..) = parts(&lines[one]);
                lines[one] = record(n, &at, &prev, FORGED);
            }
        }
        log.recount();
        if log.segments == before {
            prop_assert!(verify(log.write().path(), log.verifying_key()).is_ok());
        } else {
            prop_assert!(verify(log.write().path(), log.verifying_key()).is_err());
        }
    }
}
