//! What the audit logs of a real box prove: every attack on a copy is named, one record is proved
//! without the rest, and records are found, exported and counted.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::{Ran, System, audit_copy, wait_until};
use serde_json::Value;

use crate::scenes::{document, readable_survey};

/// A way to change the lines of a log's newest segment; line 1 is the header.
type Attack = fn(&mut Vec<String>);

const ATTACKS: [(&str, Attack, &str); 8] = [
    ("a byte is changed", |lines| change(lines, "\"allow\"", "\"alloW\""), "changed"),
    ("a time is moved back", |lines| change(lines, "\"at\":\"2", "\"at\":\"1"), "changed"),
    ("a record is taken out", |lines| drop(lines.remove(middle(lines))), "missing"),
    (
        "a record is put in twice",
        |lines| lines.insert(middle(lines), lines[middle(lines)].clone()),
        "inserted",
    ),
    ("two records are swapped", |lines| swap(lines), "swapped"),
    ("a checkpoint is forged", |lines| forge_checkpoint(lines), "changed"),
    (
        "the header is changed",
        |lines| lines[0] = lines[0].replacen("gateway", "gatewaY", 1),
        "header",
    ),
    ("the end is cut inside a record", |lines| cut_inside(lines), "torn tail"),
];

#[test]
fn every_attack_on_a_copy_of_a_real_log_is_named() {
    let system = System::start();
    let insured = system.person(7_001);
    readable_survey(&system, &insured);
    let (log, pins, heads) = (system.path("audit/gateway"), system.pins(), system.heads());
    let stopped = system.stop();
    let sound = audit_copy(&log, &pins, &["verify", "--heads", heads.to_str().unwrap()]).ok();
    assert!(sound.stdout.starts_with('✓'), "{sound}");
    let scratch = stopped.scratch();
    for (at, (name, attack, word)) in ATTACKS.iter().enumerate() {
        let copy = scratch.join(format!("attack-{at}"));
        copy_folder(&log, &copy);
        let file = newest_segment(&copy);
        let mut lines: Vec<String> =
            fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
        attack(&mut lines);
        let mut text = lines.join("\n");
        if *word != "torn tail" {
            text.push('\n');
        }
        fs::write(&file, text).unwrap();
        found(name, &audit_copy(&copy, &pins, &["verify"]), word);
    }
    whole_records_cut_off(&log, &pins, &heads, &scratch.join("attack-cut"));
    another_key(&log, scratch);
}

/// The log as it was some time ago, its newest checkpoint with it: it is sound, and only a head
/// outside shows that records are gone.
fn whole_records_cut_off(log: &Path, pins: &Path, heads: &Path, copy: &Path) {
    copy_folder(log, copy);
    let file = newest_segment(copy);
    let text = fs::read_to_string(&file).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.truncate(lines.len() * 3 / 4);
    let note = |line: &&str| -> Option<String> {
        let record: Value = serde_json::from_str(line).unwrap();
        record["event"]["note"].as_str().map(str::to_owned)
    };
    while note(lines.last().expect("a checkpoint in the log")).is_none() {
        lines.pop();
    }
    fs::write(copy.join("checkpoint"), lines.last().and_then(note).unwrap()).unwrap();
    fs::write(&file, lines.join("\n") + "\n").unwrap();
    audit_copy(copy, pins, &["verify"]).ok();
    let seen = audit_copy(copy, pins, &["verify", "--heads", heads.to_str().unwrap()]);
    found("whole records are cut off the end, seen by the heads outside", &seen, "");
}

/// A log signed by another key of the same name is not believed.
fn another_key(log: &Path, scratch: &Path) {
    let name = fs::read_to_string(log.join("checkpoint")).unwrap();
    let (key, _) = audit_log::CheckpointKey::generate(name.lines().next().unwrap()).unwrap();
    let pins = scratch.join("other-pins");
    fs::write(&pins, format!("{}\n", key.verifying_key().as_str())).unwrap();
    found("another key signed it", &audit_copy(log, &pins, &["verify"]), "forged");
}

fn found(name: &str, verified: &Ran, word: &str) {
    assert_eq!(verified.code, 1, "{name}: {verified}");
    verified.no_panic();
    assert!(
        verified.stdout.starts_with('✗') && verified.stdout.contains(word),
        "{name}: {verified}"
    );
    eprintln!("{name}: {}", verified.stdout.trim());
}

fn middle(lines: &[String]) -> usize {
    lines.len() / 2
}

fn change(lines: &mut [String], from: &str, to: &str) {
    let line = lines.iter_mut().skip(2).find(|line| line.contains(from)).expect("such a line");
    *line = line.replacen(from, to, 1);
}

fn swap(lines: &mut [String]) {
    let at = middle(lines);
    lines.swap(at, at + 1);
}

fn forge_checkpoint(lines: &mut [String]) {
    let is_one = |line: &&mut String| line.contains("\"event\":\"checkpoint\"");
    let line = lines.iter_mut().find(is_one).expect("a checkpoint");
    let at = line.rfind("\\n\"").expect("the end of the note") - 5;
    let other = if line.as_bytes()[at] == b'A' { "B" } else { "A" };
    line.replace_range(at..=at, other);
}

fn cut_inside(lines: &mut [String]) {
    let last = lines.last_mut().unwrap();
    last.truncate(last.len() / 2);
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn newest_segment(folder: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "jsonl"));
    files.sort();
    files.pop().expect("a plain segment")
}

#[test]
fn one_record_and_one_head_are_proved_without_the_log() {
    let system = System::shared();
    let insured = system.person(7_002);
    readable_survey(&system, &insured);
    let search = ["audit", "search", "--part", "gateway", "--last", "1", "--allowed", "--json"];
    let found = system.sekisho(search).ok().json();
    let number = found[0]["number"].to_string();
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (proof, old, new) = (file("proof"), file("old"), file("new"));
    let log = system.path("audit/gateway");
    fs::copy(log.join("checkpoint"), &old).unwrap();
    let prove = ["audit", "prove", &number, "--part", "gateway", "--out", &proof];
    wait_until("a head that covers the record", 10, || {
        (system.sekisho(prove).code == 0).then_some(())
    });
    let pins = system.pins();
    let check =
        |file: &str| e2e::sekisho(["audit", "check-proof", file, "--pins", pins.to_str().unwrap()]);
    let told = check(&proof).ok();
    for word in [&format!("record {number} of"), "allow", "signed head over"] {
        assert!(told.stdout.contains(word), "{word}: {told}");
    }
    let text = fs::read_to_string(&proof).unwrap();
    let broken = text.replacen("\nindex ", "\nindex 1", 1);
    assert_ne!(broken, text, "{text}");
    fs::write(&proof, broken).unwrap();
    assert_eq!(check(&proof).code, 1);

    system.curl("portal").get(&format!("/v1/insured/{insured}/documents")).send().expect(200, "");
    wait_until("a newer head", 10, || {
        let newest = fs::read_to_string(log.join("checkpoint")).ok()?;
        (newest != fs::read_to_string(&old).unwrap()).then(|| fs::write(&new, newest).unwrap())
    });
    let continues = file("continues");
    system.sekisho(["audit", "prove", "--between", &old, &new, "--out", &continues]).ok();
    let told = check(&continues).ok();
    assert!(told.stdout.contains("continues the one over"), "{told}");
    system.sekisho(["audit", "prove", "--between", &new, &old]).refused(64, &["swap"]);
}

/// An office that has nothing to do with the person asks for its 認定調査票.
fn refused(system: &System, insured: &str) {
    let token = system.token("day-care-1");
    let path = document(insured, "certification-survey");
    let reply = system.curl("day-care-1").token(&token).get(&path).send();
    assert_eq!(reply.status, 403, "{}", reply.json);
}

#[test]
fn records_are_found_by_person_office_reason_and_time() {
    let system = System::shared();
    let insured = system.person(7_003);
    readable_survey(&system, &insured);
    refused(&system, &insured);
    let office = system.care_management().office.clone().unwrap();
    let search = |args: &[&str]| -> Vec<Value> {
        let all = ["audit", "search", "--json"].iter().chain(args).copied();
        system.sekisho(all).ok().json().as_array().unwrap().clone()
    };
    let survey = ["--document", "certification-survey"];
    let reads = search(
        &[&["--person", &insured, "--office", &office, "--allowed"], survey.as_slice()].concat(),
    );
    let read = reads.last().expect("the office's look");
    assert_eq!(read["event"]["actor"]["office"], office.as_str());
    assert_eq!(read["completion"]["event"]["status"], 200, "{read}");
    let id = read["event"]["request_id"].as_str().unwrap();
    // The hub's record of the same request stands beside the gateway's.
    let joined = search(&["--request", id]);
    assert!(joined.iter().any(|record| record["part"] == "gateway"), "{joined:?}");
    let denied = search(&["--person", &insured, "--denied"]);
    assert!(denied.iter().all(|record| record["event"]["decision"] == "deny"), "{denied:?}");
    assert!(!denied.is_empty(), "the other office was refused");
    let reason = denied[0]["event"]["reasons"][0].as_str().unwrap();
    assert!(!search(&["--person", &insured, "--reason", reason]).is_empty());
    assert!(search(&["--person", &insured, "--since", "2099-01-01"]).is_empty());
    assert_eq!(search(&["--person", &insured, "--last", "2"]).len(), 2);
    let lines = system.sekisho(["audit", "search", "--person", &insured, "--since", "2026-01-01"]);
    let lines = lines.ok();
    assert!(lines.stderr.contains("2026-01-01 in Japan: 2025-12-31T15:00:00.000Z"), "{lines}");
    assert!(lines.stdout.contains("→ 200, "), "{lines}");
    assert!(!lines.stdout.contains(&insured), "persons stand there under a pseudonym");
}

#[test]
fn records_are_exported_counted_and_indexed_anew() {
    let system = System::shared();
    let insured = system.person(7_004);
    readable_survey(&system, &insured);
    refused(&system, &insured);
    let scratch = tempfile::tempdir().unwrap();
    let (csv, jsonl) = (scratch.path().join("a.csv"), scratch.path().join("a.jsonl"));
    for (format, file) in [("csv", &csv), ("jsonl", &jsonl)] {
        let file = file.to_str().unwrap();
        let args = ["audit", "export", "--format", format, "--out", file, "--person", &insured];
        system.sekisho(args).ok();
    }
    let text = fs::read_to_string(&csv).unwrap();
    let head = text.lines().next().unwrap();
    assert!(head.starts_with("part,number,at,event,request_id,"), "{head}");
    assert!(text.lines().any(|line| line.contains(",allow,")), "{text}");
    let objects = fs::read_to_string(&jsonl).unwrap();
    assert!(objects.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{objects}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2, "nothing else is left");

    let report = |name: &str| system.sekisho(["audit", "report", name, "--json"]).json();
    let denials = report("denials");
    let counted = denials["denials"].as_array().unwrap();
    assert!(counted.iter().any(|row| row["count"].as_u64() > Some(0)), "{denials}");
    let offices = report("readers");
    let office = system.care_management().office.clone().unwrap();
    let listed = offices["offices"].as_array().unwrap();
    assert!(listed.iter().any(|row| row["office"] == office.as_str()), "{offices}");
    let checks = report("card-checks");
    assert!(
        checks["staff"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["registrations"].as_u64() > Some(0)),
        "{checks}"
    );
    assert!(report("unfinished")["unfinished"].is_array());
    system.sekisho(["audit", "index", "rebuild"]).ok();
    let index = system.sekisho(["audit", "access-index", "--json"]).ok().json();
    assert!(index.is_object(), "{index}");
}
