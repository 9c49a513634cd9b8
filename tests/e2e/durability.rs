//! A part that is killed comes back by itself and has lost nothing it had promised.

use e2e::System;

use crate::scenes::{document, readable_survey, survey_becomes, survey_stored};

#[test]
fn a_killed_hub_keeps_every_stored_document() {
    let system = System::start();
    let office = system.care_management();
    let insured = system.person(3_001);
    let (token, _) = readable_survey(&system, &insured);
    for _ in 0..2 {
        survey_stored(&system, &insured);
        system.kill_and_wait("hub");
    }
    let seen = survey_becomes(&system, office, &token, &insured, (200, ""));
    assert_eq!(seen.json["version"], 3, "{}", seen.json);
    system.sekisho(["audit", "verify"]).ok();
}

#[test]
fn a_killed_gateway_keeps_the_record_of_every_delivered_document() {
    let system = System::start();
    let office = system.care_management();
    let insured = system.person(3_002);
    let (token, _) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let mut delivered = Vec::new();
    for _ in 0..3 {
        let reply = system.curl(&office.name).token(&token).get(&path).send().expect(200, "");
        delivered.push(reply.header("sekisho-request-id").expect("a request id").to_owned());
        system.kill_and_wait("gateway");
    }
    for request_id in &delivered {
        system.audited("gateway", &["\"decision\"", request_id, "allow"]);
    }
    system.sekisho(["audit", "verify"]).ok();
}

#[test]
fn a_killed_ra_and_signer_keep_every_certificate_and_revocation() {
    let system = System::start();
    let number = system.care_management().office.clone().unwrap();
    let terminal = e2e::Terminal::enrol(&system, &number, "before-the-crash");
    let args = ["cert", "revoke", &terminal.serial, "--reason", "superseded", "--wait"];
    system.sekisho(args).ok();
    let before = system.sekisho(["cert", "list", "--json"]).ok().json();
    system.kill_and_wait("ra");
    system.kill_and_wait("signer");
    let after = system.sekisho(["cert", "list", "--json"]).ok().json();
    assert_eq!(before, after);
    system.curl_with(&terminal.cert, &terminal.key).get("/v1/registrations").cut_off();
    e2e::Terminal::enrol(&system, &number, "after-the-crash");
    system.sekisho(["audit", "verify"]).ok();
}

#[test]
fn a_changed_byte_in_the_audit_log_is_found_and_named() {
    let system = System::start();
    let insured = system.person(3_003);
    readable_survey(&system, &insured);
    let folder = system.path("audit/gateway");
    let stopped = system.stop();
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.metadata().unwrap().len() > 1_000);
    let file = files.first().expect("a segment");
    let mut bytes = std::fs::read(file).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let at = text.find("\"allow\"").expect("an allowed request") + 1;
    bytes[at] = b'A';
    std::fs::write(file, bytes).unwrap();
    let data = stopped.data();
    let verify = e2e::sekisho(["audit", "verify", "--data", data.to_str().unwrap()]);
    assert_eq!(verify.code, 1, "{verify}");
    verify.no_panic();
    let name = file.file_name().unwrap().to_str().unwrap();
    let told = format!("{}{}", verify.stdout, verify.stderr);
    assert!(told.contains(name), "{verify}");
}
