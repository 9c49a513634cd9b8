//! The program itself: its arguments, its exit codes, its end, and what a kill leaves behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the helpers of a test fail like the test itself"
)]

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use audit_log::CheckpointKey;
use policies::decide::{GrantedKind, Needs};
use policies::document::DocumentKind;
use policies::feed::Signer;
use policies::permit::{HEADER, LIFETIME_MS, PermitClaims, PermitKey};
use tempfile::TempDir;

const KEY: [u8; 32] = [7; 32];
const TARGET: &str = "/v1/insured/131016/0000000001/documents/burden-ratio";

fn secret(path: &Path, bytes: &[u8]) {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path).unwrap().write_all(bytes).unwrap();
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    secret(&path("permit.key"), &KEY);
    secret(&path("pseudonym.key"), &[8; 32]);
    let (_, audit_key) = CheckpointKey::generate("hub.test/audit/hub").unwrap();
    secret(&path("audit.key"), audit_key.as_bytes());
    secret(&path("feed.pkcs8"), &Signer::generate_pkcs8().unwrap());
    let text: String = [
        ("socket", "hub.sock"),
        ("admin_socket", "admin.sock"),
        ("feed_socket", "feed.sock"),
        ("feed_key", "feed.pkcs8"),
        ("permit_key", "permit.key"),
        ("staff_token_key", "staff-token.pkcs8"),
        ("pseudonym_key", "pseudonym.key"),
        ("database", "hub.sqlite"),
        ("audit_dir", "audit"),
        ("audit_key", "audit.key"),
        ("ready_file", "ready.json"),
    ]
    .iter()
    .map(|(key, name)| format!("{key} = {:?}\n", path(name).display().to_string()))
    .collect();
    std::fs::write(path("hub.toml"), text).unwrap();
    folder
}

fn command(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekisho-hub"));
    command.arg("--config").arg(folder.path().join("hub.toml"));
    command
}

fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    command(folder).args(arguments).output().unwrap()
}

fn start(folder: &TempDir) -> Child {
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child =
        command(folder).arg("--supervised").stdin(Stdio::piped()).stderr(log).spawn().unwrap();
    let pid = format!("\"pid\":{}", child.id());
    let ready = folder.path().join("ready.json");
    wait_until("ready", || std::fs::read_to_string(&ready).is_ok_and(|text| text.contains(&pid)));
    child
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not {what} within 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ask(folder: &TempDir, method: &str, operation: &str, body: &str) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let claims = PermitClaims {
        method: method.into(),
        target: TARGET.into(),
        operation: operation.into(),
        principal: policies::identity::Identity::from_path("municipality/131016/terminal/a")
            .unwrap(),
        serial: "01".parse().unwrap(),
        certificate_sha256: "x".into(),
        staff: None,
        insured: Some("131016/0000000001".parse().unwrap()),
        insurer: Some("131016".parse().unwrap()),
        grants: vec![GrantedKind {
            document: DocumentKind::BurdenRatio,
            own_only: false,
            needs: Needs::NONE,
        }],
        needs: Needs::NONE,
        request_id: "r".into(),
        facts_ca_seq: 0,
        facts_hub_seq: 0,
        expires_ms: now_ms + LIFETIME_MS,
    };
    let permit = PermitKey::new(&KEY).unwrap().seal(&claims).unwrap();
    let mut stream = UnixStream::connect(folder.path().join("hub.sock")).unwrap();
    write!(
        stream,
        "{method} {TARGET} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{HEADER}: {permit}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn sockets(folder: &TempDir) -> [PathBuf; 3] {
    ["hub.sock", "admin.sock", "feed.sock"].map(|name| folder.path().join(name))
}

#[test]
fn what_was_answered_with_201_survives_a_kill() {
    let folder = folder();
    let mut child = start(&folder);
    for version in 1..=5 {
        let answer =
            ask(&folder, "POST", "documents.store", r#"{"ratio":2,"valid_from":"2026-08-01"}"#);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        assert!(answer.contains(&format!("\"version\":{version}")), "{answer}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.path().join("hub.sock").exists());
    let mut child = start(&folder);
    let answer = ask(&folder, "GET", "documents.view", "");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"version\":5"), "{answer}");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let key = CheckpointKey::load(&folder.path().join("audit.key")).unwrap();
    let audit = folder.path().join("audit");
    let summary = audit_log::verify(&audit, key.verifying_key()).unwrap();
    assert!(summary.unfinished.is_empty(), "{:?}", summary.unfinished);
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for entry in audit_log::read(&audit) {
        let event = serde_json::to_value(entry.unwrap().event).unwrap();
        *counts.entry(event["event"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let kinds = ["service_started", "service_stopped", "intent", "effect", "outcome"];
    assert_eq!(kinds.map(|kind| counts[kind]), [2, 1, 5, 5, 5]);
}

#[test]
fn a_lost_database_is_not_replaced_by_an_empty_one() {
    let folder = folder();
    let mut child = start(&folder);
    drop(child.stdin.take());
    child.wait().unwrap();
    for name in ["hub.sqlite", "hub.sqlite-wal", "hub.sqlite-shm"] {
        let _ = std::fs::remove_file(folder.path().join(name));
    }
    let output = run(&folder, &[]);
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.contains("hub.sqlite` is missing") && line.contains("backup"), "{line}");
    assert!(!folder.path().join("hub.sqlite").exists());
}

#[test]
fn a_lost_database_is_noticed_from_any_trace_of_an_earlier_log() {
    for name in ["00000001.jsonl", "00000001.jsonl.zst", "tombstone", "format-1"] {
        let folder = folder();
        std::fs::create_dir(folder.path().join("audit")).unwrap();
        std::fs::write(folder.path().join("audit").join(name), "").unwrap();
        let output = run(&folder, &[]);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {line}");
        assert!(line.contains("hub.sqlite` is missing"), "{name}: {line}");
    }
}

#[test]
fn it_ends_with_its_supervisor_and_removes_what_it_made() {
    let folder = folder();
    let mut child = start(&folder);
    assert!(sockets(&folder).iter().all(|socket| socket.exists()));
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!sockets(&folder).iter().any(|socket| socket.exists()));
    assert!(!folder.path().join("ready.json").exists());
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.lines().all(|line| line.starts_with('{')) && log.contains("hub has stopped"));
}

#[test]
fn a_second_hub_is_refused_and_the_first_stays() {
    let folder = folder();
    let mut child = start(&folder);
    let second = run(&folder, &[]);
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8(second.stderr).unwrap();
    let line = error.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(line.contains("use"), "{error}");
    let answer = ask(&folder, "GET", "documents.view", "");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn bad_configurations_and_usage_exit_with_64() {
    let folder = folder();
    assert_eq!(run(&folder, &["--check-config"]).status.code(), Some(0));
    assert_eq!(run(&folder, &["--colour"]).status.code(), Some(64));
    std::fs::remove_file(folder.path().join("permit.key")).unwrap();
    std::fs::remove_file(folder.path().join("feed.pkcs8")).unwrap();
    for arguments in [&["--check-config"][..], &[]] {
        let output = run(&folder, arguments);
        assert_eq!(output.status.code(), Some(64));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert!(error.lines().all(|line| line.starts_with("error: ") && line.contains("hub.toml")));
        assert!(error.contains("permit.key") && error.contains("feed.pkcs8"), "{error}");
    }
}
