//! The keys of the audit logs: made for a folder of an earlier version too, never made over, never
//! believed without their pins.

use std::fs;
use std::path::Path;

use e2e::{System, sekisho};

const PARTS: [&str; 4] = ["signer", "ra", "hub", "gateway"];

/// Takes from a folder what an earlier version did not have.
fn as_before(data: &Path) {
    for part in PARTS {
        fs::remove_file(data.join(format!("secrets/audit-{part}.key"))).unwrap();
        let config = data.join(format!("config/{part}.toml"));
        let new = ["audit_key", "audit_retention_days", "audit_stream_socket", "key ="];
        let newer = ["stream_socket", "retention_days", "refusals_per_minute_max"];
        let text = fs::read_to_string(&config).unwrap();
        let kept =
            text.lines().filter(|line| !new.iter().chain(&newer).any(|key| line.starts_with(key)));
        let text: String = kept.map(|line| format!("{line}\n")).collect();
        let text = text.split("\n[facts_copy]").next().unwrap();
        fs::write(&config, format!("# the operator's own line\n{text}")).unwrap();
        let log = data.join(format!("audit/{part}"));
        fs::remove_dir_all(&log).unwrap();
        fs::create_dir(&log).unwrap();
        let zeros = "0".repeat(64);
        let header = format!(
            "{{\"format\":\"sekisho-audit/1\",\"source\":\"{part}\",\"segment\":1,\"first\":1,\
             \"at\":\"2026-04-01T09:00:00.000Z\",\"prev\":\"{zeros}\",\"hash\":\"{zeros}\"}}\n"
        );
        fs::write(log.join("00000001.jsonl"), header).unwrap();
    }
    let settings = data.join("config/sekisho.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let before = text.find("\n# Where the signed heads").expect("the table of sinks");
    fs::write(&settings, &text[..before]).unwrap();
    fs::remove_file(data.with_file_name("data.audit-keys")).unwrap();
    fs::remove_dir_all(data.with_file_name("data.heads")).unwrap();
    let _ = fs::remove_file(data.join("run/heads.json"));
}

#[test]
fn a_folder_of_an_earlier_version_is_brought_forward() {
    let stopped = System::start().stop();
    as_before(&stopped.data());
    let system = stopped.start();
    for part in PARTS {
        assert!(system.path(&format!("secrets/audit-{part}.key")).is_file());
        assert!(system.path(&format!("audit/{part}/format-1/00000001.jsonl")).is_file(), "{part}");
        let text = fs::read_to_string(system.path(&format!("config/{part}.toml"))).unwrap();
        assert!(text.contains("# the operator's own line\n"), "{text}");
    }
    assert!(system.path("store/facts/hub.facts").is_file());
    assert!(system.pins().is_file() && system.heads().is_dir());
    system.sekisho(["audit", "verify"]).ok();
    system.sekisho(["status"]).ok();
    let doctor = system.sekisho(["doctor"]).ok();
    assert!(doctor.stdout.contains("✓ audit keys"), "{doctor}");
}

#[test]
fn lost_and_exchanged_keys_and_pins_are_told_and_nothing_starts_over() {
    let stopped = System::start().stop();
    let data = stopped.data();
    let key = data.join("secrets/audit-hub.key");
    let pins = data.with_file_name("data.audit-keys");
    let aside = data.with_file_name("aside");

    fs::rename(&key, &aside).unwrap();
    stopped.try_up().refused(1, &["audit-hub.key", "is missing", "restore it from the backup"]);
    assert!(!key.exists());
    fs::rename(&aside, &key).unwrap();

    let text = fs::read_to_string(&pins).unwrap();
    let hub = text.lines().find(|line| line.contains("/hub+")).unwrap();
    let name = hub.split('+').next().unwrap();
    let (other, _) = audit_log::CheckpointKey::generate(name).unwrap();
    let other = other.verifying_key().as_str();
    fs::write(&pins, text.replace(hub, other)).unwrap();
    stopped.try_up().refused(64, &["audit-hub.key", other, hub]);
    let verify = sekisho(["audit", "verify", "--part", "hub", "--data", data.to_str().unwrap()]);
    assert_eq!(verify.code, 1, "{verify}");

    fs::remove_file(&pins).unwrap();
    stopped.try_up().refused(64, &["data.audit-keys", "sekisho audit pin"]);
    sekisho(["audit", "pin", "--data", data.to_str().unwrap()]).ok();
    let pinned = |text: &str| {
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(pinned(&fs::read_to_string(&pins).unwrap()), pinned(&text));
    stopped.start().sekisho(["audit", "verify"]).ok();
}
