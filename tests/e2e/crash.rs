//! A gateway that is killed at any moment has recorded every document that reached a client.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use e2e::{OwnGateway, System};
use serde_json::Value;

use crate::scenes::{document, readable_survey};

/// How often it is killed.
const KILLS: u32 = 15;

/// How many read at the same time.
const READERS: usize = 4;

#[test]
fn every_document_that_arrived_before_a_crash_has_its_decision_on_record() {
    let system = System::start();
    let insured = system.person(6_001);
    let (token, _) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let gateway = RwLock::new(OwnGateway::prepare(&system));
    gateway.write().unwrap().start();
    let delivered = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let call = gateway.read().unwrap().curl(&system, "care-management-1");
                    let arrived = call.token(&token).get(&path).arrived();
                    let Some(reply) = arrived else { continue };
                    if reply.status == 200 && !reply.body.is_empty() {
                        let id = reply.header("sekisho-request-id").expect("a request id");
                        delivered.lock().unwrap().push(id.to_owned());
                    }
                }
            });
        }
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(20 + random() % 230));
            let mut gateway = gateway.write().unwrap();
            gateway.kill();
            gateway.start();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut gateway = gateway.into_inner().unwrap();
    gateway.audit(&["verify"]).ok();
    gateway.stop();
    gateway.audit(&["verify"]).ok();
    let delivered = delivered.into_inner().unwrap();
    assert!(delivered.len() >= KILLS as usize, "only {} documents arrived", delivered.len());
    check(&gateway, &delivered);
}

/// Every delivered document has its decision, and what a crash left open is named.
fn check(gateway: &OwnGateway, delivered: &[String]) {
    let records = gateway.audit(&["show", "--json", "--last", "1000000"]).ok().json();
    let mut allowed = BTreeSet::new();
    let mut open = BTreeSet::new();
    let mut named = BTreeSet::new();
    let mut starts = 0;
    for record in records.as_array().unwrap() {
        let event = &record["event"];
        let id = event["request_id"].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str().unwrap() {
            "decision" if event["decision"] == "allow" => {
                allowed.insert(id.clone());
                open.insert(id);
            }
            "completion" => {
                open.remove(&id);
            }
            "unfinished" => {
                let ids = event["request_ids"].as_array().unwrap();
                named.extend(ids.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            "service_started" => starts += 1,
            _ => {}
        }
    }
    let lost: Vec<&String> = delivered.iter().filter(|id| !allowed.contains(*id)).collect();
    assert!(lost.is_empty(), "delivered without a decision on record: {lost:?}");
    assert_eq!(starts, KILLS + 1);
    assert_eq!(named, open, "what crashes left open is named, and nothing else");
    let told = gateway.audit(&["verify", "--json"]).ok().json();
    let told = told["logs"][0]["summary"]["unfinished"].as_array().unwrap().clone();
    let told: BTreeSet<String> =
        told.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect();
    assert_eq!(told, open);
    eprintln!(
        "{} documents arrived over {KILLS} crashes, {} left open",
        delivered.len(),
        open.len()
    );
}

/// Another number each time.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}
