//! A new gateway takes the running one's place: no request is lost, none answered wrongly, and the
//! audit log is one.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{KeptOpen, Reply, System};
use serde_json::{Value, json};

use crate::scenes::document;

/// How often the gateway is replaced; `SEKISHO_TEST_UPGRADES` says another number.
const UPGRADES: u64 = 6;

/// Clients that keep their connection for as long as they may.
const KEEPERS: u32 = 3;

fn upgrades() -> u64 {
    let told = std::env::var("SEKISHO_TEST_UPGRADES").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(UPGRADES)
}

/// Stores documents one after the other on one connection, and on a new one when the gateway says
/// that an answer is the last of its connection.
fn keep_storing(system: &System, insured: &str, stop: &AtomicBool, stored: &Mutex<Vec<String>>) {
    let municipality = system.municipality();
    let path = document(insured, "certification-survey");
    let mut connection: Option<KeptOpen> = None;
    while !stop.load(Ordering::Relaxed) {
        let open = connection
            .get_or_insert_with(|| system.keep_open(&municipality.cert, &municipality.key));
        let body = survey().to_string();
        let reply = open.raw(&format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ));
        let reply = reply.expect("a request was lost: the connection was closed unanswered");
        stored.lock().unwrap().push(taken(&reply));
        if reply.header("connection") == Some("close") {
            connection = None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stores documents, each on a connection of its own.
fn store_anew(system: &System, insured: &str, stop: &AtomicBool, stored: &Mutex<Vec<String>>) {
    let path = document(insured, "certification-survey");
    while !stop.load(Ordering::Relaxed) {
        let reply = system.curl(&system.municipality().name).post(&path, &survey()).send();
        stored.lock().unwrap().push(taken(&reply));
    }
}

fn survey() -> Value {
    json!({"surveyed_on": "2026-05-01", "overview": "demo", "items": {"1-1": 2}, "remarks": "demo"})
}

fn taken(reply: &Reply) -> String {
    let text = String::from_utf8_lossy(&reply.body);
    assert_eq!(reply.status, 201, "{text}");
    reply.header("sekisho-request-id").expect("a request id").to_owned()
}

#[test]
fn upgrades_under_load_lose_no_request_and_no_record() {
    let system = System::start();
    let (stop, stored) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let pids = std::thread::scope(|scope| {
        for number in 0..KEEPERS {
            let insured = system.person(7_001 + number);
            let (system, stop, stored) = (&system, &stop, &stored);
            scope.spawn(move || keep_storing(system, &insured, stop, stored));
        }
        let insured = system.person(7_101);
        let (system, stop, stored) = (&system, &stop, &stored);
        scope.spawn(move || store_anew(system, &insured, stop, stored));
        let replaced = || -> Vec<u64> {
            (0..upgrades())
                .map(|_| {
                    let ran = system.sekisho(["gateway", "upgrade", "--json"]).ok().json();
                    ran["new_pid"].as_u64().expect("new_pid")
                })
                .collect()
        };
        let pids = std::panic::catch_unwind(std::panic::AssertUnwindSafe(replaced));
        stop.store(true, Ordering::Relaxed);
        pids.unwrap()
    });
    let stored = stored.into_inner().unwrap();
    let different: BTreeSet<&u64> = pids.iter().collect();
    assert_eq!(different.len() as u64, upgrades(), "each upgrade is a new process");
    assert!(stored.len() as u64 > upgrades() * u64::from(KEEPERS), "{} stored", stored.len());
    check_records(&system, &stored);
    eprintln!("{} upgrades, {} documents stored, none lost", upgrades(), stored.len());
}

/// Every stored document has its decision and its completion, in a log that verifies.
fn check_records(system: &System, stored: &[String]) {
    system.sekisho(["audit", "verify"]).ok();
    let records = system.audit_records("gateway");
    let ids = |kind: &str| -> BTreeSet<String> {
        let of_kind = records.iter().map(|record| &record["event"]);
        let of_kind = of_kind.filter(|event| event["event"] == kind);
        of_kind.filter_map(|event| event["request_id"].as_str()).map(str::to_owned).collect()
    };
    let (decided, completed) = (ids("decision"), ids("completion"));
    for id in stored {
        assert!(decided.contains(id), "{id} has no decision");
        assert!(completed.contains(id), "{id} has no completion");
    }
    let count =
        |kind| records.iter().filter(|record| record["event"]["event"] == kind).count() as u64;
    assert_eq!((count("service_started"), count("handed_over")), (upgrades() + 1, upgrades()));
}

#[test]
fn a_bad_configuration_is_refused_and_the_gateway_serves_on() {
    let system = System::start();
    let before = gateway_pid(&system);
    let file = system.path("config/gateway.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("nonsense = 1\n{good}")).unwrap();
    let refused = system.sekisho(["gateway", "upgrade"]);
    assert_eq!(refused.code, 64, "{}", refused.stderr);
    assert!(refused.stderr.contains("nonsense"), "{}", refused.stderr);
    // What no look at the file shows: the successor does not come up.
    let moved = good.replace("takeover_socket = \"", "takeover_socket = \"/nowhere");
    fs::write(&file, moved).unwrap();
    let refused = system.sekisho(["gateway", "upgrade"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("serves on as before"), "{}", refused.stderr);
    fs::write(&file, good).unwrap();
    assert_eq!(gateway_pid(&system), before);
    let path = document(&system.person(7_301), "certification-survey");
    system.curl(&system.municipality().name).post(&path, &survey()).send().expect(201, "");
    system.sekisho(["gateway", "upgrade"]).ok();
    assert_ne!(gateway_pid(&system), before);
}

#[test]
fn connections_wait_while_the_gateway_is_started_again() {
    let system = System::start();
    let pid = gateway_pid(&system);
    let path = document(&system.person(7_201), "certification-survey");
    assert!(kill(pid), "process {pid} could not be killed");
    for _ in 0..5 {
        let call = system.curl(&system.municipality().name).post(&path, &survey());
        call.send().expect(201, "");
    }
    assert_ne!(gateway_pid(&system), pid);
}

fn gateway_pid(system: &System) -> u64 {
    let status = fs::read_to_string(system.path("run/supervisor.json")).unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let parts = status["parts"].as_array().unwrap().iter();
    let mut gateway = parts.filter(|part| part["name"] == "gateway");
    gateway.next().unwrap()["pid"].as_u64().unwrap_or(0)
}

fn kill(pid: u64) -> bool {
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success()
}
