//! A part that publishes facts falls silent under a running box: the gateway tells, then denies, in
//! the stages that are configured; when the part is back the answers are right on the connections
//! that there were.

use std::fs;

use e2e::{KeptOpen, System, run, wait_until};

use crate::scenes::{document, readable_survey};

/// Stages that a test can wait for, in the place of those that the box was set up with.
fn with_short_leases() -> System {
    let stopped = System::start().stop();
    let file = stopped.data().join("config/gateway.toml");
    let mut config = fs::read_to_string(&file).unwrap();
    for (key, from, to) in [
        ("alarm_ms", 3_000, 1_500),
        ("hub_consent_ms", 5_000, 4_000),
        ("hub_deny_ms", 10_000, 6_000),
        ("ca_deny_ms", 60_000, 4_000),
    ] {
        let line = format!("{key} = {from}");
        assert!(config.contains(&line), "{line}: {config}");
        config = config.replace(&line, &format!("{key} = {to}"));
    }
    fs::write(&file, config).unwrap();
    stopped.start()
}

/// Waits until the gateway says that a feed is in a stage.
fn stage(system: &System, feed: &str, stage: u8) {
    let line = format!("sekisho_feed_stage{{feed=\"{feed}\"}} {stage}");
    let url = format!("{}/metrics", system.admin_url());
    wait_until(&line, 20, || {
        let metrics = run("curl", ["-s", "--noproxy", "*", &url]).stdout;
        metrics.lines().any(|shown| shown == line).then_some(())
    });
}

fn signal(system: &System, part: &str, name: &str) {
    run("kill", [&format!("-{name}"), &system.pid(part).unwrap().to_string()]).ok();
}

/// What an office is told on a connection that must stay.
fn answer(connection: &mut KeptOpen, path: &str, token: &str) -> (u16, String) {
    let reply = connection.get(path, Some(token)).expect("the connection was lost");
    (reply.status, reply.code().to_owned())
}

#[test]
fn a_silent_cert_authority_denies_in_stages_and_a_restart_makes_nothing_young() {
    let system = with_short_leases();
    let office = system.care_management();
    let insured = system.person(9_101);
    let (token, _) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let right = (200, String::new());
    let stale = (503, "facts_stale".to_owned());
    let mut connection = system.keep_open(&office.cert, &office.key);
    assert_eq!(answer(&mut connection, &path, &token), right);
    signal(&system, "ra", "STOP");
    stage(&system, "ca", 1);
    assert_eq!(answer(&mut connection, &path, &token), right, "T1 denies nothing");
    stage(&system, "ca", 3);
    assert_eq!(answer(&mut connection, &path, &token), stale);
    let log = fs::read_to_string(system.path("run/gateway.log")).unwrap();
    for told in ["facts are late", "facts are stale: every request is denied"] {
        assert!(log.contains(told), "{told}: {log}");
    }
    // One that starts now has the copy on disk, as old as it is.
    let before = system.pid("gateway");
    signal(&system, "gateway", "KILL");
    wait_until("another gateway", 30, || system.pid("gateway").filter(|pid| Some(*pid) != before));
    let mut connection = system.keep_open(&office.cert, &office.key);
    assert_eq!(answer(&mut connection, &path, &token), stale);
    signal(&system, "ra", "CONT");
    wait_until("the right answer again", 20, || {
        (answer(&mut connection, &path, &token) == right).then_some(())
    });
    stage(&system, "ca", 0);
    system.wait_ready();
    system.sekisho(["audit", "verify"]).ok();
}

#[test]
fn a_silent_hub_denies_in_stages_and_no_connection_is_lost() {
    let system = with_short_leases();
    let office = system.care_management();
    let insured = system.person(9_102);
    let (token, _) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let mut connection = system.keep_open(&office.cert, &office.key);
    assert_eq!(answer(&mut connection, &path, &token), (200, String::new()));
    signal(&system, "hub", "STOP");
    for number in [1, 2] {
        stage(&system, "hub", number);
    }
    // It rests on consent, and so it is not even asked for.
    assert_eq!(answer(&mut connection, &path, &token), (503, "facts_stale".to_owned()));
    stage(&system, "hub", 3);
    assert_eq!(answer(&mut connection, &path, &token), (503, "facts_stale".to_owned()));
    signal(&system, "hub", "CONT");
    wait_until("the right answer again", 20, || {
        (answer(&mut connection, &path, &token).0 == 200).then_some(())
    });
    stage(&system, "hub", 0);
    system.wait_ready();
}
