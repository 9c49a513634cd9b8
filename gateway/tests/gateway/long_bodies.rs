//! Issue 6 point 7: what permitted a request goes away while a long body is on its way. The body
//! breaks off there, the record says why, and what comes next on the connection is decided anew.

use std::sync::Arc;
use std::time::Duration;

use audit_log::Event;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use policies::feed::Fact;

use crate::harness::{Client, INSURED, OFFICE, World, now};
use crate::{CARD, code, office};

/// More than what buffers on the way hold.
const DOWNLOAD_BYTES: usize = 60_000_000;
const UPLOAD_BYTES: usize = 100_000;
const PLAN: &str = "/v1/insured/131016/0000000001/documents/home-care-plan";

fn session_ended() -> Fact {
    Fact::SessionEnded { session: "s1".into(), until: now() + 600 }
}

fn registration_ended() -> Fact {
    let (office, insured) = (OFFICE.parse().unwrap(), INSURED.parse().unwrap());
    Fact::Registration { office, insured, from: 1, until: None, ended: Some(1) }
}

fn causes() -> [(Fact, &'static str); 2] {
    [(session_ended(), "staff_session_ended"), (registration_ended(), "registration_lapsed")]
}

/// What the log says of the end of the one request that was permitted.
async fn completed(world: &World) -> (String, Vec<String>) {
    let is_it = |event: &Event| matches!(event, Event::Completion { .. });
    let events = world.events_when(|events| events.iter().any(is_it)).await;
    match events.into_iter().find(is_it) {
        Some(Event::Completion { outcome, reasons, .. }) => (outcome, reasons),
        _ => panic!("no completion"),
    }
}

/// The gateway has taken the fact when it refuses by it on a connection of its own.
async fn refused(world: &World, client: &mut Client, headers: &str) {
    for _ in 0..500 {
        if client.get(CARD, headers).await.unwrap().status != 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the fact was not taken: {:?}", world.hub.had());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_download_ends_with_what_permitted_it() {
    for (cause, reason) in causes() {
        let world = World::start().await;
        let (party, headers) = office(&world, 1).await;
        let mut client = world.client(&party).await;
        let target = format!("{CARD}?pad={DOWNLOAD_BYTES}");
        let mut delivery = client.begin(&target, &headers).await.unwrap();
        assert_eq!(delivery.status, 200);
        world.hub.send(cause);
        refused(&world, &mut world.client(&party).await, &headers).await;
        while client.more(&mut delivery).await.is_ok_and(|more| more) {}
        assert!(delivery.missing > 0, "{reason}: all of it was delivered");
        let is_cut = |event: &Event| {
            matches!(event, Event::Completion { request_id, outcome, reasons, .. }
                if *request_id == delivery.request_id
                    && outcome == "cut" && *reasons == [reason.to_owned()])
        };
        world.events_when(|events| events.iter().any(is_cut)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_download_over_http2_is_reset_and_its_connection_goes_on() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut config = world.client_config(Some(&party));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TokioIo::new(world.tls(Arc::new(config)).await.unwrap());
    let (mut streams, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let bearer = headers.trim().strip_prefix("Authorization: ").unwrap().to_owned();
    let ask = |target: String| {
        let request = http::Request::get(format!("https://localhost{target}"));
        request.header("authorization", &bearer).body(Empty::new()).unwrap()
    };
    let answer = streams.send_request(ask(format!("{CARD}?pad={DOWNLOAD_BYTES}"))).await.unwrap();
    assert_eq!(answer.status(), 200);
    world.hub.send(registration_ended());
    refused(&world, &mut world.client(&party).await, &headers).await;
    assert!(answer.into_body().collect().await.is_err(), "all of it was delivered");
    let next = streams.send_request(ask(CARD.to_owned())).await.unwrap();
    assert_eq!(next.status(), 403, "the connection goes on, and decides anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_no_longer_permitted_never_reaches_the_hub_whole() {
    for (cause, reason) in causes() {
        let world = World::start().await;
        let (party, headers) = office(&world, 1).await;
        let mut client = world.client(&party).await;
        let (first, rest) = ("a".repeat(UPLOAD_BYTES / 2), "b".repeat(UPLOAD_BYTES / 2));
        let head = format!(
            "POST {PLAN} HTTP/1.1\r\nHost: localhost\r\n{headers}\
             Content-Length: {UPLOAD_BYTES}\r\n\r\n"
        );
        client.send(&(head.clone() + &first)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.hub.send(cause);
        refused(&world, &mut world.client(&party).await, &headers).await;
        world.received.lock().unwrap().clear();
        let reply = client.raw(&rest).await.unwrap();
        assert_eq!(code(&reply), reason, "{}", reply.head);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(world.received.lock().unwrap().is_empty(), "the hub got the whole of it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_upload_that_stays_permitted_arrives_while_other_facts_move() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let head = format!(
        "POST {PLAN} HTTP/1.1\r\nHost: localhost\r\n{headers}\
         Content-Length: {UPLOAD_BYTES}\r\n\r\n"
    );
    client.send(&head).await.unwrap();
    for number in 0..10_u64 {
        world
            .hub
            .send(Fact::SessionEnded { session: format!("other-{number}"), until: now() + 600 });
        client.send(&"a".repeat(UPLOAD_BYTES / 10)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.raw("").await.unwrap().status, 200);
    let (outcome, reasons) = completed(&world).await;
    assert_eq!((outcome.as_str(), reasons.len()), ("complete", 0));
    assert_eq!(world.received.lock().unwrap().len(), 1);
}
