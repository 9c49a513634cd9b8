//! What the records say: who, about what, and how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use audit_log::{Disk, Event};
use policies::feed::Fact;

use crate::harness::{INSURED, OFFICE, Setup, World};
use crate::{CARD, SURVEY, code, office};

/// The outcome word of the one completion of `request_id`.
fn outcome(events: &[Event], request_id: &str) -> Option<String> {
    let mut outcomes = events.iter().filter_map(|event| {
        let Event::Completion { request_id: of, outcome, .. } = event else { return None };
        (of == request_id).then(|| outcome.clone())
    });
    let outcome = outcomes.next();
    assert_eq!(outcomes.next(), None, "one completion for {request_id}");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_names_actor_object_and_reasons() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let versions = format!("{CARD}/versions/12");
    let denied = format!("{SURVEY}/versions/3");
    let (allowed, refused) = (
        client.deliver(&versions, &headers).await.unwrap(),
        client.deliver(&denied, &headers).await.unwrap(),
    );
    assert_eq!((allowed.status, refused.status), (200, 403));
    let events = world.events_when(|events| outcome(events, &refused.request_id).is_some()).await;
    let pseudonym = audit_log::Pseudonym::new(&[8; 32]).of(INSURED);
    for (delivery, decision, ending, document, version, action, reasons) in [
        (&allowed, "allow", "complete", "insured-card", "12", "documents.view-version", vec![]),
        (
            &refused,
            "deny",
            "refused",
            "certification-survey",
            "3",
            "documents.view-version",
            vec!["consent_required"],
        ),
    ] {
        let json = events
            .iter()
            .map(|event| serde_json::to_value(event).unwrap())
            .find(|event| {
                event["event"] == "decision" && event["request_id"] == *delivery.request_id
            })
            .unwrap();
        assert_eq!(json["decision"], decision);
        assert_eq!(json["action"], action);
        assert_eq!(
            json["actor"],
            serde_json::json!({
                "principal": format!("office/{OFFICE}/terminal/front-1"), "office": OFFICE,
                "serial": party.serial, "staff": "staff-1", "job": "care-manager",
            })
        );
        assert_eq!(
            json["object"],
            serde_json::json!({
                "insured": pseudonym, "document": document, "document_id": version,
            })
        );
        let told: Vec<String> = serde_json::from_value(json["reasons"].clone()).unwrap_or_default();
        assert_eq!(told, reasons);
        assert_eq!(outcome(&events, &delivery.request_id).as_deref(), Some(ending));
    }
}

/// The reasons of the one completion of a withheld or refused answer.
fn late_reasons(events: &[Event]) -> Option<Vec<String>> {
    events.iter().find_map(|event| {
        let Event::Completion { status: 403, reasons, .. } = event else { return None };
        Some(reasons.clone())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_the_hub_is_recorded_with_its_reasons_and_told_to_nobody_else() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let path = format!("{CARD}?refuse=not_registered,not_live");
    let reply = client.get(&path, &headers).await.unwrap();
    assert_eq!(reply.status, 403);
    assert!(!reply.head.to_lowercase().contains("sekisho-refused"), "{}", reply.head);
    let events = world.events_when(|events| late_reasons(events).is_some()).await;
    assert_eq!(late_reasons(&events).unwrap(), ["not_registered", "not_live"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_withheld_is_recorded_with_its_reasons() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    client
        .send(&format!("GET {CARD}?wait-ms=3000 HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"))
        .await
        .unwrap();
    world.audit_with(r#""decision":"allow""#).await;
    world.hub.send(Fact::Sharing { insurer: "131016".parse().unwrap(), from: None });
    let events = world.events_when(|events| late_reasons(events).is_some()).await;
    assert_eq!(late_reasons(&events).unwrap(), ["not_live"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_too_many_is_denied_by_name() {
    let limits = "requests_in_flight_per_party_max = 1";
    let world = World::start_with(Setup { limits, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let mut first = world.client(&party).await;
    first
        .send(&format!("GET {CARD}?wait-ms=5000 HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"))
        .await
        .unwrap();
    world.audit_with(r#""decision":"allow""#).await;
    let mut second = world.client(&party).await;
    let reply = second.get(SURVEY, &headers).await.unwrap();
    assert_eq!((reply.status, code(&reply)), (429, "rate_limited"));
    let denial = |events: &[Event]| {
        events.iter().find_map(|event| {
            let Event::Decision { action, object, reasons, .. } = event else { return None };
            (reasons == &["rate_limited"]).then(|| (action.clone(), object.clone()))
        })
    };
    let events = world.events_when(|events| denial(events).is_some()).await;
    let (action, object) = denial(&events).unwrap();
    assert_eq!(action.as_deref(), Some("documents.view"));
    assert_eq!(object.document.as_deref(), Some("certification-survey"));
    let pseudonym = audit_log::Pseudonym::new(&[8; 32]).of(INSURED);
    assert_eq!(object.insured, Some(pseudonym));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_about_a_person_is_named() {
    let world = World::start().await;
    let municipality = world.pki.client("municipality/131016/terminal/a", 9);
    let mut client = world.client(&municipality).await;
    let inbox = client.deliver("/v1/municipalities/131016/inbox/7", "").await.unwrap();
    let sharing = client.deliver("/v1/municipalities/131016/inbox", "").await.unwrap();
    assert_eq!((inbox.status, sharing.status), (200, 200));
    let names = |events: &[Event]| -> Vec<String> {
        events
            .iter()
            .filter_map(|event| {
                let Event::Decision { object, .. } = event else { return None };
                object.name.clone()
            })
            .collect()
    };
    let events = world.events_when(|events| names(events).len() == 2).await;
    assert_eq!(names(&events), ["municipality/131016/inbox/7", "municipality/131016"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_and_a_connection_that_is_cut_are_told_apart() {
    let world = World::start().await;
    let (party, headers) = office(&world, 7).await;
    // The answer is longer than what the sockets and the gateway hold.
    for expected in ["client_gone", "cut"] {
        let mut client = world.client(&party).await;
        let asked = format!("GET {CARD}?pad=30000000 HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        client.send(&asked).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        if expected == "cut" {
            world.ca.send(Fact::Revoked { serial: party.serial.parse().unwrap(), at: 1 });
            world.audit_with(r#""outcome":"cut""#).await;
        }
        drop(client);
        world.audit_with(&format!(r#""outcome":"{expected}""#)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_permits_is_told_and_ends_without_hands() {
    let (full, mut disk) = (Arc::new(AtomicBool::new(false)), Disk::real());
    let (is_full, write) = (full.clone(), disk.write);
    disk.write = Box::new(move |file, bytes| {
        if is_full.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        write(file, bytes)
    });
    let world = World::start_with(Setup { disk, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    full.store(true, Ordering::SeqCst);
    // The first may find the disk full only when its answer is about to leave.
    for _ in 0..2 {
        let reply = client.get(CARD, &headers).await.unwrap();
        assert_eq!((reply.status, code(&reply)), (503, "audit_unavailable"));
    }
    let ready = world.admin_get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains(r#""audit":{"ok":false}"#), "{ready}");
    assert!(world.admin_get("/metrics").await.contains("sekisho_audit_available 0"));
    full.store(false, Ordering::SeqCst);
    let start = Instant::now();
    while client.get(CARD, &headers).await.unwrap().status != 200 {
        assert!(start.elapsed() < Duration::from_secs(20), "it never recovered");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(world.admin_get("/readyz").await.starts_with("HTTP/1.1 200"));
    let told =
        |events: &[Event]| events.iter().any(|event| matches!(event, Event::Unavailable { .. }));
    world.events_when(told).await;
}
