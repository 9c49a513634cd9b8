//! The facts feed, read by the gateway's own subscriber.

use std::time::Duration;

use policies::feed::{Ack, Fact, PART_FACTS_MAX, Position, Subscriber, Update};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::harness::*;

struct Gateway {
    subscriber: Subscriber,
    lines: Lines<BufReader<OwnedReadHalf>>,
    acks: OwnedWriteHalf,
}

impl Gateway {
    /// Connects as one that has nothing yet.
    async fn connect(hub: &TestHub) -> Self {
        Self::resume(hub, hub.subscriber()).await
    }

    async fn resume(hub: &TestHub, subscriber: Subscriber) -> Self {
        let stream = UnixStream::connect(hub.path("hub-feed.sock")).await.unwrap();
        let (reading, mut acks) = stream.into_split();
        let hello = serde_json::to_string(&subscriber.hello(Some("gw-1"))).unwrap();
        acks.write_all(format!("{hello}\n").as_bytes()).await.unwrap();
        Self { subscriber, lines: BufReader::new(reading).lines(), acks }
    }

    /// The facts of the snapshot, up to the heartbeat that makes them young.
    async fn snapshot(&mut self) -> Vec<Fact> {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Update::Part { facts, .. } => all.extend(facts),
                Update::Whole => break,
                Update::Apply(_) | Update::Alive => panic!("amid a snapshot"),
            }
        }
        assert_eq!(self.next().await, Update::Alive);
        all
    }

    async fn next(&mut self) -> Update {
        let line = tokio::time::timeout(Duration::from_secs(2), self.lines.next_line());
        let line = line.await.expect("a line within 2 s").unwrap().unwrap();
        self.subscriber.accept(&line).unwrap()
    }

    async fn acknowledge(&mut self, gateway: &str) {
        let (gateway, applied_seq) = (gateway.to_owned(), self.subscriber.applied_seq());
        let line = serde_json::to_string(&Ack { gateway, applied_seq }).unwrap();
        self.acks.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_subscriber_gets_snapshot_changes_and_heartbeats() {
    let hub = TestHub::start().await;
    let mut gateway = Gateway::connect(&hub).await;
    let facts = gateway.snapshot().await;
    assert!(matches!(facts.as_slice(), [Fact::StaffKey { retired: false, .. }]), "{facts:?}");
    hub.go_live().await;
    let Update::Apply(Fact::Sharing { from: Some(_), .. }) = gateway.next().await else {
        panic!("no change")
    };
    assert_eq!(gateway.next().await, Update::Alive);
    // A second subscriber starts from a snapshot that holds it all.
    let mut other = Gateway::connect(&hub).await;
    assert_eq!(other.snapshot().await.len(), 2);
    assert_eq!(other.subscriber.applied_seq(), gateway.subscriber.applied_seq());
}

#[tokio::test]
async fn a_subscriber_that_was_away_gets_what_came_meanwhile_and_nothing_else() {
    let hub = TestHub::start().await;
    let mut gateway = Gateway::connect(&hub).await;
    gateway.snapshot().await;
    let Gateway { mut subscriber, .. } = gateway;
    subscriber.disconnect();
    hub.go_live().await;
    let mut back = Gateway::resume(&hub, subscriber).await;
    assert!(matches!(back.next().await, Update::Apply(Fact::Sharing { .. })));
    assert_eq!(back.next().await, Update::Alive);
    // A log that never was at this place cannot go on from it.
    let mut forked = hub.subscriber();
    forked.resume(Position { seq: 1, head: "f".repeat(64) }, 1);
    let stream = Gateway::resume(&hub, forked).await;
    let Gateway { mut lines, .. } = stream;
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains(r#"\"message\":\"part\""#), "{line}");
}

#[tokio::test]
async fn a_snapshot_of_many_facts_comes_in_parts() {
    let hub = TestHub::start().await;
    let many = PART_FACTS_MAX as u64 + 5;
    let mut tx = hub.hub.store.write().await.unwrap();
    for at in 0..many {
        let insurer = format!("{at:06}").parse().unwrap();
        tx.publish(&Fact::Sharing { insurer, from: Some(at) }).await.unwrap();
    }
    tx.commit().await.unwrap();
    let mut gateway = Gateway::connect(&hub).await;
    let Update::Part { begins: true, facts } = gateway.next().await else { panic!("no part") };
    assert_eq!(facts.len(), PART_FACTS_MAX);
    assert_eq!(gateway.snapshot().await.len() as u64, many + 1 - PART_FACTS_MAX as u64);
}

#[tokio::test]
async fn the_feed_has_no_gap_under_eight_writers() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 20;
    let hub = TestHub::start().await;
    let mut gateway = Gateway::connect(&hub).await;
    gateway.snapshot().await;
    let first = gateway.subscriber.applied_seq();
    let writers = (0..WRITERS).map(|writer| {
        let store = hub.hub.clone();
        tokio::spawn(async move {
            for n in 0..EACH {
                let mut tx = store.store.write().await.unwrap();
                let insurer = format!("{:06}", 100_000 + writer).parse().unwrap();
                tx.publish(&Fact::Sharing { insurer, from: Some(n) }).await.unwrap();
                if n % 5 == 4 {
                    drop(tx);
                } else {
                    tx.commit().await.unwrap();
                }
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let expected = first + WRITERS * EACH * 4 / 5;
    while gateway.subscriber.applied_seq() < expected {
        gateway.next().await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(hub.hub.store.seq(), expected);
    assert_eq!(gateway.next().await, Update::Alive);
}

#[tokio::test]
async fn a_batch_of_changes_names_the_newest_and_when_it_was_read() {
    let hub = TestHub::start().await;
    // The stamp is the time before the read, and a read may begin before the commit that it sees.
    let before = crate::clock::now_ms();
    let mut gateway = Gateway::connect(&hub).await;
    gateway.snapshot().await;
    let mut tx = hub.hub.store.write().await.unwrap();
    for from in [1, 2, 3] {
        let insurer = "131016".parse().unwrap();
        tx.publish(&Fact::Sharing { insurer, from: Some(from) }).await.unwrap();
    }
    let newest = tx.commit().await.unwrap().unwrap();
    let mut stamps = Vec::new();
    while stamps.len() < 3 {
        let line = gateway.lines.next_line().await.unwrap().unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        let message: Value = serde_json::from_str(line["payload"].as_str().unwrap()).unwrap();
        if message["latest_seq"].is_u64() {
            stamps.push((message["latest_seq"].as_u64().unwrap(), message["sent_at_ms"].clone()));
        }
    }
    assert!(stamps.iter().all(|stamp| *stamp == (newest, stamps[0].1.clone())), "{stamps:?}");
    let read_at = stamps[0].1.as_u64().unwrap();
    assert!((before..=crate::clock::now_ms()).contains(&read_at));
}

#[tokio::test]
async fn status_and_wait_tell_what_gateways_have_applied() {
    let hub = TestHub::start().await;
    let mut gateway = Gateway::connect(&hub).await;
    gateway.snapshot().await;
    gateway.acknowledge("unknown").await;
    gateway.acknowledge("gw-1").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = hub.admin("GET", "/status", Value::Null).await.expect(200);
    assert_eq!(status["gateways"].as_array().unwrap().len(), 1);
    assert_eq!(status["gateways"][0]["applied_seq"], 1);
    assert!(status["gateways"][0]["heard_ms_ago"].as_u64().unwrap() < 1_500);

    let body =
        json!({"office":"1370000001","insured":insured(),"reason":"t","operator":"o","wait":true});
    let (answer, ()) = tokio::join!(hub.admin("POST", "/registrations", body.clone()), async {
        assert!(matches!(gateway.next().await, Update::Apply(Fact::Registration { .. })));
        gateway.acknowledge("gw-1").await;
    });
    assert_eq!(answer.expect(201), json!({"seq": 2, "acknowledged": true}));

    let mut unheard = body;
    unheard["wait"] = false.into();
    let answer = hub.admin("POST", "/registrations", unheard).await.expect(201);
    assert_eq!(answer, json!({"seq": 3, "acknowledged": false, "missing": ["gw-1"]}));
}

#[tokio::test]
async fn a_subscriber_that_talks_nonsense_is_dropped() {
    let hub = TestHub::start().await;
    let mut gateway = Gateway::connect(&hub).await;
    gateway.snapshot().await;
    gateway.acks.write_all(b"hello\n").await.unwrap();
    let end = async { while let Ok(Some(_)) = gateway.lines.next_line().await {} };
    tokio::time::timeout(Duration::from_secs(2), end).await.expect("dropped");
}
