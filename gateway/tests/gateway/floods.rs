//! Refusals in floods: the first are recorded one by one, the rest are counted exactly, and permits
//! go on.

use std::sync::Arc;

use audit_log::{ALLOW, DENY, Event};

use crate::harness::{OFFICE, Pki, Setup, World};
use crate::{CARD, office};

const ONE_BY_ONE: usize = 5;
const FLOOD: usize = 200;

async fn world() -> World {
    let more = "refusals_per_minute_max = 5";
    World::start_with(Setup { more, ..Setup::default() }).await
}

/// Counts of everything aggregated: records, refusals, refusals that gave `reason`.
fn aggregated(events: &[Event], kind: &str, of: &str, reason: &str) -> (usize, u64, u64) {
    let mut sums = (0, 0, 0);
    for event in events {
        if let Event::Aggregated { what, party, count, reasons, .. } = event {
            assert_eq!((what.as_str(), party.as_str()), (kind, of));
            sums = (sums.0 + 1, sums.1 + count, sums.2 + reasons.get(reason).unwrap_or(&0));
        }
    }
    sums
}

/// A flood may lie across the turn of a minute, and then has up to twice the records of its own.
fn assert_one_by_one(written: usize) {
    assert!((ONE_BY_ONE..=2 * ONE_BY_ONE).contains(&written), "{written} one by one");
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_beyond_the_limit_are_counted_exactly_and_permits_go_on() {
    let mut world = world().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let mut permitted = Vec::new();
    for n in 0..FLOOD {
        // A person whom the office is not registered for: 100 of them in turn.
        let denied = format!("/v1/insured/131016/{:010}/documents/insured-card", 900 + n % 100);
        assert_eq!(client.get(&denied, &headers).await.unwrap().status, 403);
        if n % 20 == 0 {
            let delivery = client.deliver(CARD, &headers).await.unwrap();
            assert_eq!((delivery.status, delivery.missing), (200, 0), "permits go on");
            permitted.push(delivery.request_id);
        }
    }
    drop(client);
    world.stop().await;
    let events: Vec<Event> = world.entries().into_iter().map(|entry| entry.event).collect();
    let (mut denied, mut allowed, mut completed) = (Vec::new(), Vec::new(), Vec::new());
    for event in &events {
        if let Event::Decision { request_id, decision, .. } = event {
            let list = if decision == DENY { &mut denied } else { &mut allowed };
            assert!(decision == DENY || decision == ALLOW);
            list.push(request_id.clone());
        } else if let Event::Completion { request_id, .. } = event {
            completed.push(request_id.clone());
        }
    }
    assert_eq!(allowed, permitted);
    assert_one_by_one(denied.len());
    let of = format!("office/{OFFICE}/terminal/front-1");
    let (records, count, reasons) = aggregated(&events, "denials", &of, "not_registered");
    assert!(records > 0);
    assert_eq!(denied.len() as u64 + count, FLOOD as u64, "each is counted once");
    assert_eq!(count, reasons);
    let mut decided = [denied, allowed].concat();
    decided.sort();
    completed.sort();
    assert_eq!(completed, decided, "what was only counted has no completion");
    audit_log::verify(&world.audit_dir(), &world.audit_key).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_handshakes_beyond_the_limit_are_counted_by_address() {
    let mut world = world().await;
    let foreign = Pki::new("Foreign CA").client(&format!("office/{OFFICE}/terminal/a"), 3);
    let config = Arc::new(world.client_config(Some(&foreign)));
    let attempts = FLOOD / 4;
    for _ in 0..attempts {
        if let Ok(mut client) = world.connect(config.clone()).await {
            assert!(client.get(CARD, "").await.is_err());
        }
    }
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    drop(client);
    world.stop().await;
    let events: Vec<Event> = world.entries().into_iter().map(|entry| entry.event).collect();
    let mut written = 0;
    for event in &events {
        if let Event::HandshakeFailed { reason, actor, .. } = event {
            assert_eq!(reason, "unknown_issuer");
            let claimed = actor.as_ref().unwrap();
            assert_eq!(claimed.serial.as_deref(), Some(foreign.serial.as_str()));
            assert_eq!(claimed.office.as_deref(), Some(OFFICE));
            written += 1;
        }
    }
    assert_one_by_one(written);
    let (_, count, reasons) =
        aggregated(&events, "handshake_failures", "127.0.0.1", "unknown_issuer");
    assert_eq!((written as u64 + count, count), (attempts as u64, reasons));
}
