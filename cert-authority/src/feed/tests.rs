//! Tests of the feed: lines a subscriber accepts, acknowledgements, waiting.

use super::*;
use crate::store::OfficeData;
use policies::feed::{Fact, Source, Subscriber, Update};
use tokio::io::AsyncBufReadExt;

fn ids() -> Vec<String> {
    vec!["gw-1".into(), "gw-2".into()]
}

fn ack(gateway: &str, applied_seq: u64) -> Ack {
    Ack { gateway: gateway.into(), applied_seq }
}

#[tokio::test]
async fn a_change_is_effective_when_every_gateway_acknowledged_it() {
    let gateways = Gateways::new(&ids(), Duration::from_secs(60));
    assert_eq!(gateways.missing(1), ["gw-1", "gw-2"]);
    assert!(gateways.acknowledged(&ack("gw-1", 1)));
    assert!(!gateways.acknowledged(&ack("gw-9", 1)));
    assert_eq!(gateways.wait(1, Duration::from_millis(20)).await, ["gw-2"]);
    gateways.acknowledged(&ack("gw-2", 1));
    assert!(gateways.wait(1, Duration::from_secs(10)).await.is_empty());
    assert_eq!(gateways.missing(2).len(), 2);
}

#[tokio::test]
async fn a_gateway_that_can_hold_no_lease_is_not_waited_for() {
    let gateways = Gateways::new(&ids(), Duration::from_millis(100));
    assert_eq!(gateways.missing(1).len(), 2, "one may hold a lease from before the start");
    gateways.acknowledged(&ack("gw-1", 0));
    tokio::time::sleep(Duration::from_millis(120)).await;
    gateways.fed(Some("gw-1"));
    assert_eq!(gateways.missing(1), ["gw-1"], "it was fed just now");
    gateways.fed(None);
    assert_eq!(gateways.missing(1).len(), 2, "a nameless subscriber may be either");
    assert!(gateways.wait(1, Duration::from_secs(10)).await.is_empty());
}

#[tokio::test]
async fn a_subscriber_follows_the_store_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::open(&dir.path().join("ra.sqlite"), &dir.path().join("audit")).await.unwrap();
    let signer = Signer::from_pkcs8(Source::Ca, &Signer::generate_pkcs8().unwrap()).unwrap();
    let mut subscriber = Subscriber::new(Source::Ca, &signer.public_key()).unwrap();
    let gateways = Arc::new(Gateways::new(&ids(), Duration::from_secs(60)));
    let publisher = Arc::new(Publisher::new(store.clone(), signer, Arc::clone(&gateways)));
    let socket = dir.path().join("feed.sock");
    let listener = crate::serve::bind_unix(&socket).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(publisher.serve(listener, stop.clone()));

    let stream = UnixStream::connect(&socket).await.unwrap();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    say(&mut write, &subscriber.hello(Some("gw-1"))).await;
    let mut next = async || lines.next_line().await.unwrap().unwrap();
    assert_eq!(subscriber.accept(&next().await).unwrap(), Update::Whole, "no facts, no parts");
    assert_eq!(subscriber.accept(&next().await).unwrap(), Update::Alive, "young at once");
    let data = OfficeData {
        number: "1370000001".parse().unwrap(),
        name: "A".into(),
        service_types: vec![],
        medical: true,
    };
    store.add_office(data, 1).await.unwrap();
    let update = subscriber.accept(&next().await).unwrap();
    assert!(matches!(update, Update::Apply(Fact::Office { medical: true, .. })));
    assert_eq!(subscriber.accept(&next().await).unwrap(), Update::Alive);

    say(&mut write, &ack("gw-1", 1)).await;
    assert_eq!(gateways.wait(1, Duration::from_millis(400)).await, ["gw-2"]);
    let status = gateways.status();
    assert_eq!((status[0].applied_seq, status[1].heard_ms_ago), (1, None));
    stop.cancel();
    task.await.unwrap();
}

async fn say(write: &mut OwnedWriteHalf, line: &impl Serialize) {
    let line = serde_json::to_string(line).unwrap() + "\n";
    write.write_all(line.as_bytes()).await.unwrap();
}

/// What the publisher sends first to somebody who begins with `hello`, up to the heartbeat.
async fn answers(socket: &std::path::Path, hello: &Hello) -> Vec<Message> {
    #[derive(serde::Deserialize)]
    struct Signed {
        payload: String,
    }
    let (read, mut write) = UnixStream::connect(socket).await.unwrap().into_split();
    say(&mut write, hello).await;
    let (mut lines, mut told) = (BufReader::new(read).lines(), Vec::new());
    while !matches!(told.last(), Some(Message::Heartbeat { .. })) {
        let line = lines.next_line().await.unwrap().unwrap();
        let signed: Signed = serde_json::from_str(&line).unwrap();
        told.push(serde_json::from_str(&signed.payload).unwrap());
    }
    told
}

#[tokio::test]
async fn a_subscriber_that_has_facts_gets_only_what_came_after() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::open(&dir.path().join("ra.sqlite"), &dir.path().join("audit")).await.unwrap();
    let signer = Signer::from_pkcs8(Source::Ca, &Signer::generate_pkcs8().unwrap()).unwrap();
    let gateways = Arc::new(Gateways::new(&ids(), Duration::from_secs(60)));
    let publisher = Arc::new(Publisher::new(store.clone(), signer, gateways));
    let socket = dir.path().join("feed.sock");
    let stop = CancellationToken::new();
    let listener = crate::serve::bind_unix(&socket).unwrap();
    let task = tokio::spawn(publisher.serve(listener, stop.clone()));
    let mut places = vec![Position::genesis()];
    for number in ["1370000001", "1370000019"] {
        let number = number.parse().unwrap();
        let data = OfficeData { number, name: "A".into(), service_types: vec![], medical: true };
        store.add_office(data, 1).await.unwrap();
        places.push(store.position().await.unwrap());
    }
    let kinds = |told: &[Message]| -> Vec<String> {
        let json = |message| serde_json::to_value(message).unwrap()["message"].clone();
        told.iter().map(|message| json(message).as_str().unwrap().to_owned()).collect()
    };
    let told = async |have: Option<Position>| {
        kinds(&answers(&socket, &Hello { gateway: Some("gw-1".into()), have, seen: None }).await)
    };
    assert_eq!(told(None).await, ["part", "snapshot", "heartbeat"]);
    assert_eq!(told(Some(places[0].clone())).await, ["change", "change", "heartbeat"]);
    assert_eq!(told(Some(places[1].clone())).await, ["change", "heartbeat"]);
    assert_eq!(told(Some(places[2].clone())).await, ["heartbeat"]);
    // Another past, or a future that never was: everything anew.
    let forked = Position { seq: 1, head: places[2].head.clone() };
    let ahead = Position { seq: 9, head: places[2].head.clone() };
    for unknown in [forked, ahead] {
        assert_eq!(told(Some(unknown)).await, ["part", "snapshot", "heartbeat"]);
    }
    // Whoever does not say what it has gets nothing.
    let (read, mut write) = UnixStream::connect(&socket).await.unwrap().into_split();
    write.write_all(b"what is revoked?\n").await.unwrap();
    assert_eq!(BufReader::new(read).lines().next_line().await.unwrap(), None);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_subscriber_that_writes_before_it_reads_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::open(&dir.path().join("ra.sqlite"), &dir.path().join("audit")).await.unwrap();
    for at in 0..600 {
        let number = format!("13{at:08}").parse().unwrap();
        let name = "見".repeat(200);
        store
            .add_office(OfficeData { number, name, service_types: vec![], medical: true }, 1)
            .await
            .unwrap();
    }
    let signer = Signer::from_pkcs8(Source::Ca, &Signer::generate_pkcs8().unwrap()).unwrap();
    let gateways = Arc::new(Gateways::new(&ids(), Duration::from_secs(60)));
    let publisher = Arc::new(Publisher::new(store, signer, Arc::clone(&gateways)));
    let socket = dir.path().join("feed.sock");
    let stop = CancellationToken::new();
    let listener = crate::serve::bind_unix(&socket).unwrap();
    let task = tokio::spawn(publisher.serve(listener, stop.clone()));
    let (_read, mut write) = UnixStream::connect(&socket).await.unwrap().into_split();
    say(&mut write, &Hello { gateway: Some("gw-1".into()), have: None, seen: None }).await;
    // The snapshot is more than the socket takes, and nobody reads it yet.
    let all_said = async {
        for _ in 0..5_000 {
            say(&mut write, &ack("gw-1", 7)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), all_said).await.expect("the acks are read");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), task).await.expect("the end is seen").unwrap();
}
