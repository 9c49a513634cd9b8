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
    let first = lines.next_line().await.unwrap().unwrap();
    assert_eq!(subscriber.accept(&first).unwrap(), Update::Replace(vec![]));
    let data = OfficeData {
        number: "1370000001".parse().unwrap(),
        name: "A".into(),
        service_types: vec![],
        medical: true,
    };
    store.add_office(data, 1).await.unwrap();
    let change = lines.next_line().await.unwrap().unwrap();
    let update = subscriber.accept(&change).unwrap();
    assert!(matches!(update, Update::Apply(Fact::Office { medical: true, .. })));
    let beat = lines.next_line().await.unwrap().unwrap();
    assert_eq!(subscriber.accept(&beat).unwrap(), Update::Alive);

    write.write_all(b"{\"gateway\":\"gw-1\",\"applied_seq\":1}\n").await.unwrap();
    assert_eq!(gateways.wait(1, Duration::from_millis(400)).await, ["gw-2"]);
    let status = gateways.status();
    assert_eq!((status[0].applied_seq, status[1].heard_ms_ago), (1, None));
    stop.cancel();
    task.await.unwrap();
}
