//! A log and its proofs as the program writes them, checked by the second implementation in
//! `tests/audit/check_proof.py` (Python, no shared code), and the same after they were changed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, shown on failure")]

use std::path::{Path, PathBuf};
use std::process::Command;

use audit_log::{
    Actor, AuditLog, Checkpoint, CheckpointKey, Event, Object, Options, VerifyOptions,
    VerifyingKey, check_consistency_proof, check_record_proof, latest_checkpoint,
    prove_consistency, prove_record, verify, verify_with,
};

struct Log {
    dir: tempfile::TempDir,
    key: VerifyingKey,
}

impl Log {
    /// A log of several segments, closed in good order.
    fn write(records: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (key, _) = CheckpointKey::generate("sekisho.example/audit/test").unwrap();
        let pinned = key.verifying_key().clone();
        std::fs::write(dir.path().join("vkey"), format!("# pinned\n{}\n", pinned.as_str()))
            .unwrap();
        let mut options = Options::new("test", key);
        options.segment_bytes_max = 32 * 1024;
        options.checkpoint_records_max = 50;
        let log = AuditLog::open(&dir.path().join("log"), options).unwrap();
        for batch in 0..records / 50 {
            let receipts: Vec<_> =
                (0..50).map(|n| log.append(&event(batch * 50 + n)).unwrap()).collect();
            for receipt in receipts {
                receipt.durable_blocking().unwrap();
            }
        }
        log.close();
        Self { dir, key: pinned }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// A copy with all segments unpacked.
    fn unpacked(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(self.log()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            match name.strip_suffix(".zst") {
                Some(plain) => {
                    std::fs::write(to.join(plain), zstd::decode_all(&bytes[..]).unwrap()).unwrap();
                }
                None if name.ends_with(".jsonl") || name == "checkpoint" => {
                    std::fs::write(to.join(name), bytes).unwrap();
                }
                None => {}
            }
        }
        to
    }

    /// Whether the second implementation accepts; prints what it said.
    fn accepts(&self, arguments: &[&Path]) -> bool {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/audit/check_proof.py");
        let output = Command::new("python3")
            .arg(script)
            .args(arguments)
            .arg(self.path("vkey"))
            .output()
            .unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{complaint}");
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{complaint}");
            assert_eq!(complaint.lines().count(), 1, "{complaint}");
            assert!(complaint.starts_with("wrong: "), "{complaint}");
        }
        output.status.success()
    }

    fn accepts_log(&self, dir: &Path) -> bool {
        self.accepts(&[Path::new("--log"), dir])
    }
}

fn event(n: u64) -> Event {
    Event::Intent {
        request_id: Some(format!("req-{n}")),
        actor: Actor::of("office/1370000001/terminal/front-1").staff("staff-1", "care_manager"),
        action: "certificate.issue".into(),
        object: Object::named(format!("office/{n}")),
        detail: "第1号 \"quoted\"".into(),
    }
}

#[test]
fn a_log_of_the_program_is_accepted_by_both_implementations() {
    let log = Log::write(500);
    let summary = verify(&log.log(), &log.key).unwrap();
    assert!(summary.records > 500 && summary.segments > 2, "{summary:?}");
    assert_eq!(summary.covered, summary.records - 1);
    assert_eq!(summary.unfinished.len(), 500);
    assert!(log.accepts_log(&log.unpacked("plain")));
}

#[test]
fn a_proof_is_accepted_by_both_implementations_and_a_changed_one_by_neither() {
    let log = Log::write(300);
    let newest = latest_checkpoint(&log.log(), &log.key).unwrap().unwrap();
    let proof_path = log.path("proof");
    for number in [1, 2, 77, 128, 299, newest.size()] {
        let proof = prove_record(&log.log(), number, &log.key).unwrap();
        std::fs::write(&proof_path, &proof).unwrap();
        assert!(log.accepts(&[&proof_path]), "record {number}");
        assert_eq!(check_record_proof(&proof, &log.key).unwrap().number, number);
    }
    let proof = prove_record(&log.log(), 77, &log.key).unwrap();
    let lines: Vec<&str> = proof.split_inclusive('\n').collect();
    // Every line changed in its middle, or left out.
    for at in 0..lines.len() {
        let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let middle = changed[at].len() / 2;
        let middle = (middle..).find(|at_byte| changed[at].is_char_boundary(*at_byte)).unwrap();
        let letter = if changed[at][middle..].starts_with('A') { "B" } else { "A" };
        changed[at].replace_range(middle..(middle + 1).min(lines[at].len()), letter);
        let mut removed: Vec<&str> = lines.clone();
        removed.remove(at);
        for text in [changed.concat(), removed.concat()] {
            std::fs::write(&proof_path, &text).unwrap();
            assert!(!log.accepts(&[&proof_path]), "line {at}: {text}");
            assert!(check_record_proof(&text, &log.key).is_err(), "line {at}: {text}");
        }
    }
}

#[test]
fn a_changed_log_is_refused_by_the_second_implementation_too() {
    let log = Log::write(300);
    let plain = log.unpacked("plain");
    let first = plain.join("00000001.jsonl");
    let whole = std::fs::read_to_string(&first).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat().concat();
    let mut swapped = lines.clone();
    swapped.swap(5, 6);
    let edits = [
        whole.replacen("req-7\"", "req-8\"", 1),
        without(9),
        swapped.concat(),
        [&lines[..4], &lines[3..]].concat().concat(),
        lines[..20].concat(),
        whole.replacen("\"tree\":[]", "\"tree\":[\"00\"]", 1),
    ];
    for edit in edits {
        assert_ne!(edit, whole);
        std::fs::write(&first, edit).unwrap();
        assert!(!log.accepts_log(&plain));
        assert!(verify(&plain, &log.key).is_err());
    }
    std::fs::write(&first, &whole).unwrap();
    assert!(log.accepts_log(&plain));
    // The newest record is cut off: the file `checkpoint` knows of it.
    let last = std::fs::read_dir(&plain)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .max()
        .unwrap();
    let whole = std::fs::read_to_string(&last).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    std::fs::write(&last, lines[..lines.len() - 1].concat()).unwrap();
    assert!(!log.accepts_log(&plain));
    assert!(verify(&plain, &log.key).unwrap_err().to_string().contains("were cut off"));
    std::fs::write(&last, &whole).unwrap();
    // The key of another log of the same name.
    let (other, _) = CheckpointKey::generate(log.key.name()).unwrap();
    std::fs::write(log.path("vkey"), other.verifying_key().as_str()).unwrap();
    assert!(!log.accepts_log(&plain));
}

#[test]
fn heads_of_the_program_are_proved_consistent_and_verified_from() {
    let log = Log::write(500);
    let mut heads = Vec::new();
    for entry in audit_log::read(&log.log()) {
        if let Event::Checkpoint { note } = entry.unwrap().event {
            heads.push(Checkpoint::open(&note, &log.key).unwrap());
        }
    }
    assert!(heads.len() > 5, "{}", heads.len());
    for older in &heads {
        let newest = heads.last().unwrap();
        let proof = prove_consistency(&log.log(), older, newest).unwrap();
        assert_eq!(check_consistency_proof(&proof, &log.key).unwrap().0, *older);
        let options = VerifyOptions { from: Some(older.clone()), heads: heads.clone() };
        let summary = verify_with(&log.log(), &log.key, &options, &mut |_| {}).unwrap();
        assert!(summary.first_record <= older.size().max(1), "{summary:?}");
    }
}

#[test]
fn a_log_that_is_being_written_is_sound_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let (key, _) = CheckpointKey::generate("sekisho.example/audit/test").unwrap();
    let pinned = key.verifying_key().clone();
    let mut options = Options::new("test", key);
    options.segment_bytes_max = 64 * 1024;
    options.checkpoint_records_max = 50;
    let log = AuditLog::open(dir.path(), options).unwrap();
    let writing = std::thread::spawn(move || {
        for n in 0..4000 {
            let receipt = log.append(&event(n)).unwrap();
            if n % 20 == 0 {
                receipt.durable_blocking().unwrap();
            }
        }
        log.close();
    });
    let (mut records, mut rounds) = (0, 0);
    while !writing.is_finished() || rounds == 0 {
        let summary = verify(dir.path(), &pinned).unwrap();
        assert!(summary.records >= records, "{summary:?}");
        let read = audit_log::read(dir.path()).map(Result::unwrap).count() as u64;
        assert!(read >= summary.records, "{read} {summary:?}");
        records = summary.records;
        rounds += 1;
    }
    writing.join().unwrap();
    assert!(verify(dir.path(), &pinned).unwrap().records > 4000);
}
