//! `sekisho doctor` and `status` say what is wrong, or will be, before anybody is turned away.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use e2e::{System, program, run};

#[test]
fn a_healthy_box_passes_and_an_end_that_comes_near_is_told() {
    let system = System::shared();
    let healthy = system.sekisho(["doctor"]).ok();
    assert!(!healthy.stdout.contains('✗'), "{healthy}");

    let data = system.data();
    let sekisho = program("sekisho");
    let later = run(
        "faketime",
        ["+85 days", sekisho.to_str().unwrap(), "doctor", "--data", data.to_str().unwrap()],
    );
    assert_eq!(later.code, 1, "{later}");
    let told = later.stdout.lines().filter(|line| line.starts_with('✗'));
    let told: Vec<&str> = told.collect();
    for name in ["servers/gateway.pem", "servers/ra.pem"] {
        let named = told.iter().any(|line| line.contains(name) && line.contains("ends in"));
        assert!(named, "{name}: {later}");
    }
}

#[test]
fn a_part_that_is_down_and_a_loose_key_are_named() {
    let stopped = System::start().stop();
    let data = stopped.data();
    let ask = |command: &str| e2e::sekisho([command, "--data", data.to_str().unwrap()]);
    let status = ask("status");
    assert_eq!(status.code, 1, "{status}");
    for part in ["signer", "ra", "hub", "gateway"] {
        let line = status.stdout.lines().find(|line| line.starts_with(part));
        assert!(line.is_some_and(|line| line.contains("down")), "{status}");
    }
    let key = data.join("secrets/feed-hub.pkcs8");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let doctor = ask("doctor");
    assert_eq!(doctor.code, 1, "{doctor}");
    let named = doctor.stdout.lines().any(|line| {
        line.starts_with('✗') && line.contains("feed-hub.pkcs8") && line.contains("chmod 600")
    });
    assert!(named, "{doctor}");
}
