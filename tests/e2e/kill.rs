//! `kill -9` of each part of a box that is in use: every answer is right, or none, or 503; what was
//! promised is kept; the box is whole again without anybody's hand.
//!
//! `crash` kills one gateway as often as it can, `durability` each part at rest; here all parts are
//! in use at once while one of them dies.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{Code, Reply, System, Terminal};
use serde_json::{Value, json};

use crate::scenes::{document, readable_survey, survey_stored};

/// How often each part is killed.
const ROUNDS: usize = 2;

const PARTS: [&str; 4] = ["gateway", "hub", "ra", "signer"];

/// What the clients saw.
#[derive(Default)]
struct Seen {
    /// Request ids of documents that reached a client, whole or in part.
    delivered: Vec<String>,
    /// Request ids of documents that were stored, with their versions.
    stored: Vec<(String, u64)>,
    /// Refusals that must be.
    denied: usize,
    /// Requests that ended in 503 or in nothing.
    disturbed: usize,
    /// What no client may see.
    wrong: Vec<String>,
}

/// A box in use.
struct Load<'a> {
    system: &'a System,
    token: String,
    /// The path of the document that is read, and what it must be.
    readable: (String, Vec<u8>),
    stranger: String,
    written: String,
    revoked: Terminal,
    seen: Mutex<Seen>,
    stop: AtomicBool,
}

impl<'a> Load<'a> {
    fn prepare(system: &'a System) -> Self {
        let office = system.care_management();
        let insured = system.person(9_001);
        let (token, _) = readable_survey(system, &insured);
        let path = document(&insured, "certification-survey");
        let right = system.curl(&office.name).token(&token).get(&path).send().expect(200, "");
        let (stranger, written) = (system.person(9_002), system.person(9_003));
        survey_stored(system, &stranger);
        let number = office.office.as_ref().unwrap();
        let revoked = Terminal::enrol(system, number, "revoked");
        let args = ["cert", "revoke", &revoked.serial, "--reason", "superseded", "--wait"];
        system.sekisho(args).ok();
        Self {
            system,
            token,
            readable: (path, right.body),
            stranger: document(&stranger, "certification-survey"),
            written: document(&written, "certification-survey"),
            revoked,
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// Calls `once` again and again, and notes what it saw.
    fn repeat(&self, mut once: impl FnMut(&mut Seen)) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut now = Seen::default();
            once(&mut now);
            let mut seen = self.seen.lock().unwrap();
            seen.delivered.extend(now.delivered);
            seen.stored.extend(now.stored);
            seen.wrong.extend(now.wrong);
            seen.denied += now.denied;
            seen.disturbed += now.disturbed;
            drop(seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The office reads what it may read.
    fn read(&self, seen: &mut Seen) {
        let (path, right) = &self.readable;
        let call = self.system.curl("care-management-1").token(&self.token).get(path);
        match call.arrived() {
            Some(reply) if reply.status == 200 => {
                if !right.starts_with(&reply.body) {
                    seen.wrong.push(told("read", &reply));
                }
                if !reply.body.is_empty() {
                    seen.delivered.push(id(&reply));
                }
            }
            other => disturbed("read", other, seen),
        }
    }

    /// It asks for what it may not read.
    fn pry(&self, seen: &mut Seen) {
        let call = self.system.curl("care-management-1").token(&self.token).get(&self.stranger);
        match call.arrived() {
            Some(reply) if (reply.status, reply.code()) == (403, "not_registered") => {
                seen.denied += 1;
            }
            other => disturbed("pry", other, seen),
        }
    }

    /// A terminal whose certificate was revoked gets no answer, from no gateway at no time.
    fn knock(&self, seen: &mut Seen) {
        let Terminal { cert, key, .. } = &self.revoked;
        let call = self.system.curl_with(cert, key).token(&self.token).get(&self.readable.0);
        match call.arrived() {
            Some(reply) => seen.wrong.push(told("knock", &reply)),
            None => seen.denied += 1,
        }
    }

    /// The municipality stores version after version.
    fn write(&self, seen: &mut Seen) {
        let body = json!({"surveyed_on": "2026-05-01", "overview": "demo", "items": {"1-1": 2},
            "remarks": "demo"});
        let municipality = &self.system.municipality().name;
        match self.system.curl(municipality).post(&self.written, &body).arrived() {
            Some(reply) if reply.status == 201 => {
                if let Some(version) = reply.json["version"].as_u64() {
                    seen.stored.push((id(&reply), version));
                }
            }
            other => disturbed("write", other, seen),
        }
    }
}

/// An answer that may be while a part is gone: none, or 503 for one of the reasons of that.
fn disturbed(what: &str, reply: Option<Reply>, seen: &mut Seen) {
    let reasons = ["upstream_unavailable", "facts_stale", "audit_unavailable"];
    match reply {
        None => seen.disturbed += 1,
        Some(reply) if reply.status == 503 && reasons.contains(&reply.code()) => {
            seen.disturbed += 1;
        }
        Some(reply) => seen.wrong.push(told(what, &reply)),
    }
}

fn told(what: &str, reply: &Reply) -> String {
    format!("{what}: {} {}", reply.status, String::from_utf8_lossy(&reply.body))
}

fn id(reply: &Reply) -> String {
    reply.header("sekisho-request-id").expect("a request id").to_owned()
}

/// Terminals that ask for their certificates until they have them, whoever dies meanwhile.
fn enrol(system: &System, codes: &[Code]) -> Vec<(Code, String, Vec<u8>)> {
    codes
        .iter()
        .map(|code| {
            let key = system.scratch().join(format!("enrolling-{}.key", code.id));
            let request = e2e::new_request(&key, &e2e::EC_P256);
            let certificates = loop {
                match ask(system, code, &request) {
                    Some(reply) if reply.status == 200 => break reply.body,
                    Some(reply) => assert!(reply.status >= 500, "{}", told("enrol", &reply)),
                    None => {}
                }
                std::thread::sleep(Duration::from_millis(50));
            };
            std::thread::sleep(Duration::from_millis(400));
            (code.clone(), request, certificates)
        })
        .collect()
}

fn ask(system: &System, code: &Code, request: &str) -> Option<Reply> {
    let user = format!("{}:{}", code.id, code.secret);
    let call = system.curl_without_certificate().to_enrol().arg("--user").arg(&user);
    let call = call.header("content-type: application/pkcs10");
    let call = call.method("POST", "/.well-known/est/simpleenroll");
    call.body(request.as_bytes().to_vec()).try_send().ok()
}

#[test]
fn every_part_is_killed_under_load_and_no_answer_is_wrong_and_no_record_lost() {
    let system = System::start();
    let load = Load::prepare(&system);
    let office = system.care_management().office.clone().unwrap();
    let issue = |n: usize| {
        let fields = json!({"profile": "office-browser"});
        Code::issue(&system, &office, &format!("enrolling-{n}"), &fields)
    };
    let codes: Vec<Code> = (0..6).map(issue).collect();
    let enrolled = std::thread::scope(|scope| {
        let (load, codes) = (&load, &codes);
        for _ in 0..2 {
            scope.spawn(|| load.repeat(|seen| load.read(seen)));
        }
        scope.spawn(|| load.repeat(|seen| load.pry(seen)));
        scope.spawn(|| load.repeat(|seen| load.knock(seen)));
        scope.spawn(|| load.repeat(|seen| load.write(seen)));
        let enrolling = scope.spawn(|| enrol(load.system, codes));
        let kill = || {
            for part in PARTS.iter().cycle().take(PARTS.len() * ROUNDS) {
                std::thread::sleep(Duration::from_millis(700));
                load.system.kill_and_wait(part);
            }
        };
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(kill));
        load.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = killed {
            std::panic::resume_unwind(panic);
        }
        enrolling.join().unwrap()
    });
    let seen = load.seen.into_inner().unwrap();
    eprintln!(
        "{} documents delivered, {} stored, {} refusals, {} requests disturbed",
        seen.delivered.len(),
        seen.stored.len(),
        seen.denied,
        seen.disturbed
    );
    assert!(seen.wrong.is_empty(), "{} wrong answers: {:#?}", seen.wrong.len(), seen.wrong);
    assert!(seen.delivered.len() > 20 && seen.stored.len() > 10 && seen.denied > 20);
    assert!(seen.disturbed > 0, "no kill met a request: nothing was shown");
    check_whole(&system);
    check_records(&system, &seen);
    check_versions(&system, &load.written, &seen);
    for (code, request, certificates) in enrolled {
        let again = ask(&system, &code, &request).expect("an answer of the RA");
        assert_eq!((again.status, again.body), (200, certificates), "another certificate");
    }
}

/// Nobody did anything, and every part runs.
fn check_whole(system: &System) {
    let status = system.sekisho(["status", "--json"]).ok().json();
    let text = status.to_string();
    let up = text.matches("\"up\"").count();
    assert!(up >= PARTS.len(), "{text}");
    let supervisor = fs::read_to_string(system.path("run/supervisor.log")).unwrap();
    for part in PARTS {
        let line = format!("sekisho-{part} ended (killed by signal 9)");
        assert_eq!(supervisor.matches(&line).count(), ROUNDS, "{part}: {supervisor}");
    }
}

/// The log verifies, and each document that was delivered or stored has its decision in it.
fn check_records(system: &System, seen: &Seen) {
    system.sekisho(["audit", "verify"]).ok();
    let records = system.audit_records("gateway");
    let allowed: BTreeSet<&str> = records
        .iter()
        .map(|record| &record["event"])
        .filter(|event| event["event"] == "decision" && event["decision"] == "allow")
        .filter_map(|event| event["request_id"].as_str())
        .collect();
    let stored = seen.stored.iter().map(|(id, _)| id);
    let lost: Vec<&String> =
        seen.delivered.iter().chain(stored).filter(|id| !allowed.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "without a decision on record: {lost:?}");
    let is_start = |record: &&Value| record["event"]["event"] == "service_started";
    assert_eq!(records.iter().filter(is_start).count(), ROUNDS + 1);
}

/// Each version that was promised is there, and no number is missing or there twice.
fn check_versions(system: &System, path: &str, seen: &Seen) {
    let municipality = &system.municipality().name;
    let listed = system.curl(municipality).get(&format!("{path}/versions")).send().expect(200, "");
    let listed = listed.json["versions"].as_array().expect("versions").clone();
    let mut kept: Vec<u64> = listed.iter().filter_map(|it| it["version"].as_u64()).collect();
    kept.sort_unstable();
    assert_eq!(kept, (1..=kept.len() as u64).collect::<Vec<_>>());
    let promised: BTreeSet<u64> = seen.stored.iter().map(|(_, version)| *version).collect();
    assert_eq!(promised.len(), seen.stored.len(), "two documents have one version");
    assert!(promised.iter().all(|version| kept.contains(version)), "{promised:?} {kept:?}");
}
