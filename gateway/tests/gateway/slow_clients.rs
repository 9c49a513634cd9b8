//! Point 1: clients that are slow, silent or in a flood, on HTTP/1.1 and HTTP/2. Each costs what
//! the limits say, for as long as they say, and nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{Party, Setup, World};
use crate::raw_http2::Verdict::{Closed, Status};
use crate::raw_http2::{
    CONTINUATION, DATA, END_STREAM, Fields, HEADERS, RST_STREAM, Raw, SETTINGS, Verdict, frame,
};
use crate::{CARD, code, office};

const PATIENCE: Duration = Duration::from_secs(10);
/// `ENHANCE_YOUR_CALM` (RFC 9113 §7).
const TOO_MUCH: Verdict = Closed(Some(11));

async fn world(limits: &'static str) -> World {
    World::start_with(Setup { limits, ..Setup::default() }).await
}

pub async fn raw(world: &World, party: &Party) -> Raw {
    let mut config = world.client_config(Some(party));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Raw::begin(world.tls(Arc::new(config)).await.unwrap()).await
}

pub fn ask(method: &str, path: &str, headers: &str) -> Fields {
    let token = headers.trim().strip_prefix("Authorization: ").unwrap();
    Fields::of(&[
        (":method", method),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        ("authorization", token),
    ])
}

/// Whether the office is served as if nothing happened.
async fn serves(world: &World, party: &Party, headers: &str) {
    let mut client = world.client(party).await;
    assert_eq!(client.get(CARD, headers).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_drop_by_drop_has_a_deadline() {
    let world = world("request_body_timeout_ms = 600").await;
    let (party, headers) = office(&world, 1).await;
    world.received.lock().unwrap().clear();
    let began = Instant::now();
    let mut client = world.client(&party).await;
    let head = "POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n";
    client.send(head).await.unwrap();
    let reply = loop {
        client.send("a").await.unwrap();
        if let Ok(reply) = tokio::time::timeout(Duration::from_millis(50), client.raw("")).await {
            break reply.unwrap();
        }
        assert!(began.elapsed() < PATIENCE, "HTTP/1.1: never refused");
    };
    assert_eq!((reply.status, code(&reply)), (408, "bad_request"));

    let mut raw = raw(&world, &party).await;
    raw.send(&ask("POST", "/v1/session", &headers).headers(1, 0)).await;
    let verdict = loop {
        raw.send(&frame(DATA, 0, 1, b"a")).await;
        let verdict = raw.verdict(Duration::from_millis(50)).await;
        if verdict != Verdict::Silence {
            break verdict;
        }
        assert!(began.elapsed() < PATIENCE * 2, "HTTP/2: never refused");
    };
    assert_eq!(verdict, Status(408));
    assert!(world.received.lock().unwrap().is_empty(), "the hub got a whole request");
    serves(&world, &party, &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_comes_is_not_waited_for() {
    let limits = "request_read_timeout_ms = 500\nrequest_body_timeout_ms = 800";
    let world = world(limits).await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let head = "POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n";
    client.send(head).await.unwrap();
    let reply = tokio::time::timeout(PATIENCE, client.raw("")).await.unwrap().unwrap();
    assert_eq!((reply.status, code(&reply)), (408, "bad_request"));
    let mut raw = raw(&world, &party).await;
    raw.send(&ask("POST", "/v1/session", &headers).headers(1, 0)).await;
    tokio::time::timeout(PATIENCE, raw.ended()).await.expect("HTTP/2: waited for");
    let events = world.events_when(|events| refused(events) == 2).await;
    assert_eq!(refused(&events), 2, "both are on record: {events:?}");
}

/// Completions that tell of a bad request.
fn refused(events: &[audit_log::Event]) -> usize {
    let is_refused = |event: &&audit_log::Event| {
        let json = serde_json::to_value(event).unwrap();
        json["event"] == "completion" && json["reasons"][0] == "bad_request"
    };
    events.iter().filter(is_refused).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_http1_connection_is_closed() {
    let world = world("h1_idle_timeout_s = 1").await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    tokio::time::timeout(PATIENCE, client.closed()).await.expect("silent after an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_http2_connection_is_closed() {
    let world = world("h2_idle_timeout_ms = 400").await;
    let (party, headers) = office(&world, 1).await;
    let mut silent = raw(&world, &party).await;
    let mut served = raw(&world, &party).await;
    served.send(&ask("GET", CARD, &headers).alone()).await;
    assert_eq!(served.verdict(PATIENCE).await, Status(200));
    tokio::time::timeout(PATIENCE, silent.ended()).await.expect("silent from its beginning");
    tokio::time::timeout(PATIENCE, served.ended()).await.expect("silent after an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_head_that_never_ends_has_a_deadline() {
    let world = world("h2_idle_timeout_ms = 400").await;
    let (party, headers) = office(&world, 1).await;
    let block = ask("GET", CARD, &headers).block();
    let mut silent = raw(&world, &party).await;
    silent.send(&frame(HEADERS, END_STREAM, 1, &block[..20])).await;
    tokio::time::timeout(PATIENCE, silent.ended()).await.expect("silent within its head");
    let mut slow = raw(&world, &party).await;
    slow.send(&frame(HEADERS, END_STREAM, 1, &block[..20])).await;
    let mut sent = 0;
    for byte in block[20..].iter().take(200) {
        if !slow.sent(&frame(CONTINUATION, 0, 1, &[*byte])).await {
            break;
        }
        sent += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Ten seconds of it were ready.
    assert!(sent < 200, "a head came byte by byte for as long as it liked");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_as_soon_as_they_begin_end_the_connection() {
    let world = world("").await;
    let (party, headers) = office(&world, 1).await;
    let get = ask("GET", CARD, &headers);
    let mut raw = raw(&world, &party).await;
    for stream in 0..5_000 {
        let stream = stream * 2 + 1;
        let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        raw.send(&[get.headers(stream, END_STREAM), reset].concat()).await;
    }
    assert_eq!(raw.verdict(PATIENCE).await, TOO_MUCH);
    serves(&world, &party, &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_endless_continuations_ends_the_connection() {
    let world = world("").await;
    let (party, headers) = office(&world, 1).await;
    let mut raw = raw(&world, &party).await;
    let line = Fields::of(&[("x-a", &"a".repeat(1_000))]).block();
    raw.send(&frame(HEADERS, END_STREAM, 1, &ask("GET", CARD, &headers).block())).await;
    let mut sent = 0;
    while sent < 50_000_000 && raw.sent(&frame(CONTINUATION, 0, 1, &line)).await {
        sent += line.len();
    }
    assert!(sent < 5_000_000, "{sent} bytes of a head were taken");
    assert_eq!(raw.verdict(PATIENCE).await, TOO_MUCH);
    let mut raw = self::raw(&world, &party).await;
    raw.send(&frame(HEADERS, END_STREAM, 1, &[])).await;
    let mut sent = 0;
    while sent < 1_000_000 && raw.sent(&frame(CONTINUATION, 0, 1, &[])).await {
        sent += 1;
    }
    assert!(sent < 1_000_000, "as many empty frames as one likes");
    assert_eq!(raw.verdict(PATIENCE).await, TOO_MUCH);
    serves(&world, &party, &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_taken_is_not_kept_for_ever() {
    let world = world("response_write_timeout_ms = 500\nh2_idle_timeout_ms = 400").await;
    let (party, headers) = office(&world, 1).await;
    let mut raw = raw(&world, &party).await;
    // A window of nothing: the answer's body cannot leave.
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    raw.send(&ask("GET", CARD, &headers).alone()).await;
    assert_eq!(raw.verdict(PATIENCE).await, Status(200));
    tokio::time::timeout(PATIENCE, raw.ended()).await.expect("kept");
    serves(&world, &party, &headers).await;
}
