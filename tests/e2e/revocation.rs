//! A revoked certificate is refused at once: on a new connection, on a resumed session, and on a
//! connection that was already open.

use std::time::{Duration, Instant};

use e2e::{KeptOpen, System, Terminal, wait_until};

/// The goal is 1 s (`sekisho-bench revocation` measures it); a busy machine gets more.
const BOUND: Duration = Duration::from_secs(5);

const PATH: &str = "/v1/registrations";

fn office(system: &System) -> String {
    system.care_management().office.clone().unwrap()
}

fn revoke(system: &System, terminal: &Terminal) {
    let args = ["cert", "revoke", &terminal.serial, "--reason", "key-compromise", "--wait"];
    system.sekisho(args).ok();
}

#[test]
fn a_new_connection_is_refused() {
    let system = System::shared();
    let terminal = Terminal::enrol(&system, &office(&system), "revoked-new");
    let ask = || system.curl_with(&terminal.cert, &terminal.key).get(PATH);
    ask().send().expect(401, "staff_token_missing");
    revoke(&system, &terminal);
    ask().cut_off();
    system.audited("gateway", &["handshake_failed", "revoked", &terminal.serial]);
}

#[test]
fn an_open_connection_is_refused_or_cut() {
    let system = System::shared();
    let terminal = Terminal::enrol(&system, &office(&system), "revoked-open");
    let mut open = system.keep_open(&terminal.cert, &terminal.key);
    assert_eq!(open.get(PATH, None).expect("an answer").code(), "staff_token_missing");
    revoke(&system, &terminal);
    let revoked = Instant::now();
    loop {
        match open.get(PATH, None) {
            None => break,
            Some(reply) if reply.code() == "certificate_revoked" => break,
            Some(reply) => assert_eq!(reply.code(), "staff_token_missing", "{reply:?}"),
        }
        assert!(revoked.elapsed() < BOUND, "still open after {BOUND:?}");
    }
}

#[test]
fn other_connections_stay_open() {
    let system = System::shared();
    let kept = Terminal::enrol(&system, &office(&system), "bystander");
    let gone = Terminal::enrol(&system, &office(&system), "revoked-beside");
    let mut open = system.keep_open(&kept.cert, &kept.key);
    assert!(open.get(PATH, None).is_some());
    revoke(&system, &gone);
    assert!(!open.closed_within(Duration::from_secs(1)));
    assert_eq!(open.get(PATH, None).expect("an answer").code(), "staff_token_missing");
}

#[test]
fn a_resumed_session_is_refused() {
    let system = System::shared();
    let terminal = Terminal::enrol(&system, &office(&system), "revoked-resumed");
    let session = system.scratch().join("session.pem");
    let session = session.to_str().unwrap();
    let connect = |more: &[&str]| KeptOpen::connect(&system, &terminal.cert, &terminal.key, more);

    let mut first = connect(&["-sess_out", session]);
    assert!(first.get(PATH, None).is_some());
    drop(first);
    let mut resumed = connect(&["-sess_in", session]);
    assert_eq!(resumed.get(PATH, None).expect("resumes").code(), "staff_token_missing");
    drop(resumed);

    revoke(&system, &terminal);
    let mut refused = connect(&["-sess_in", session]);
    match refused.get(PATH, None) {
        None => {}
        Some(reply) => assert_eq!(reply.code(), "certificate_revoked", "{reply:?}"),
    }
}

#[test]
fn a_suspended_office_is_refused_until_it_is_resumed() {
    let system = System::start();
    let office = system.care_management();
    let number = office.office.as_deref().unwrap();
    let mut open = system.keep_open(&office.cert, &office.key);
    assert!(open.get(PATH, None).is_some());
    let ask = || system.curl(&office.name).get(PATH).try_send();

    system.sekisho(["office", "suspend", number, "--reason", "e2e"]).ok();
    wait_until("the open connection to be refused", 5, || {
        let reply = open.get(PATH, None);
        reply.is_none_or(|reply| reply.code() == "office_suspended").then_some(())
    });
    wait_until("a new connection to be refused", 5, || {
        ask().map_or(true, |reply| reply.code() == "office_suspended").then_some(())
    });
    system.sekisho(["office", "resume", number, "--reason", "e2e"]).ok();
    wait_until("an answer after it was resumed", 5, || {
        ask().is_ok_and(|reply| reply.code() == "staff_token_missing").then_some(())
    });
}
