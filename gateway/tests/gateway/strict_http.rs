//! Requests sent raw over TLS: what is ambiguous is refused, once and for good, and what reaches
//! the hub is a head of the gateway's own.

use std::time::Duration;

use crate::harness::{Client, Reply, Setup, World};
use crate::{CARD, office};

/// A class of offences, and requests of it; `{h}` stands for the headers of an office's request.
type Class = (&'static str, &'static [&'static str]);

const START: &str = "GET {card} HTTP/1.1\r\nHost: localhost\r\n{h}";
const POST: &str = "POST /v1/session HTTP/1.1\r\nHost: localhost\r\n{h}";

/// `{get}` and `{post}` stand for [`START`] and [`POST`].
const CLASSES: [Class; 14] = [
    (
        "Content-Length with Transfer-Encoding",
        &[
            "{post}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            "{post}content-length: 0\r\ntransfer-encoding: CHUNKED\r\n\r\n0\r\n\r\n",
            "{get}Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "{post}Content-Length: 5\r\nTransfer-Encoding: identity\r\n\r\nabcde",
        ],
    ),
    (
        "several Content-Length",
        &[
            "{post}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            "{post}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            "{post}Content-Length: 3, 3\r\n\r\nabc",
            "{post}Content-Length: +3\r\n\r\nabc",
            "{post}Content-Length: 0x3\r\n\r\nabc",
            "{post}Content-Length: 3 3\r\n\r\nabc",
            "{post}Content-Length: \r\n\r\n",
        ],
    ),
    (
        "bare LF or CR",
        &[
            "GET {card} HTTP/1.1\nHost: localhost\r\n{h}\r\n",
            "{get}X: 1\n\r\n",
            "{get}X: 1\r\n\n",
            "GET {card} HTTP/1.1\nHost: localhost\n\n",
            "{get}X: a\rb\r\n\r\n",
            "GET {card}\r HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
        ],
    ),
    (
        "obs-fold",
        &[
            "{get}X: 1\r\n 2\r\n\r\n",
            "{get}X: 1\r\n\t2\r\n\r\n",
            "{get} X: 1\r\n\r\n",
            "{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
            "GET {card} HTTP/1.1\r\nHost:\r\n localhost\r\n{h}\r\n",
        ],
    ),
    (
        "chunk extensions and sizes",
        &[
            "{post}Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\n\r\n3;{long}\r\nabc\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\n\r\n3;a\x01\r\nabc\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
        ],
    ),
    (
        "odd Transfer-Encoding",
        &[
            "{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: identity\r\n\r\n",
            "{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            "{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
    ),
    (
        "duplicate or missing Host",
        &[
            "GET {card} HTTP/1.1\r\n{h}\r\n",
            "{get}Host: localhost\r\n\r\n",
            "{get}Host: other\r\n\r\n",
            "GET {card} HTTP/1.1\r\nHost:\r\n{h}\r\n",
            "GET {card} HTTP/1.1\r\nHost: a, b\r\n{h}\r\n",
            "GET {card} HTTP/1.1\r\nHost: user@localhost\r\n{h}\r\n",
        ],
    ),
    (
        "absolute form",
        &[
            "GET https://localhost{card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET https://other{card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET http://localhost{card} HTTP/1.1\r\nHost: other\r\n{h}\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET localhost HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
        ],
    ),
    (
        "dot segments and encoded slashes",
        &[
            "GET /v1/../{card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET /v1/./session HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET /x/%2e%2e{card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET /v1%2fsession HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET /v1%5csession HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET /{card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card}/ HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
        ],
    ),
    (
        "bytes in the path",
        &[
            "GET /v1/日 HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card}\x01 HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card}\x7f HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card};a=b HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card}#x HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card}?日 HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card}\0 HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
        ],
    ),
    (
        "header names and values",
        &[
            "{get}X Y: 1\r\n\r\n",
            "{get}: 1\r\n\r\n",
            "{get}X\r\n\r\n",
            "{get}X: a\0b\r\n\r\n",
            "{get}X: \x1b\r\n\r\n",
            "{get}X(a): 1\r\n\r\n",
        ],
    ),
    (
        "header count and size",
        &[
            "{get}{many}\r\n",
            "{get}X: {huge}\r\n\r\n",
            "{get}{huge}: 1\r\n\r\n",
            "GET /{huge} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "{huge}{huge}",
        ],
    ),
    (
        "methods and versions",
        &[
            "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "TRACE {card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "get {card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "PROPFIND {card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card} HTTP/1.0\r\nHost: localhost\r\n{h}\r\n",
            "GET  {card} HTTP/1.1\r\nHost: localhost\r\n{h}\r\n",
            "GET {card}\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
    ),
    (
        "upgrade and connection options",
        &[
            "{get}Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "{get}Upgrade: h2c\r\n\r\n",
            "{get}Connection: authorization\r\n\r\n",
            "{get}Connection: sekisho-permit, close\r\n\r\n",
            "{get}TE: gzip\r\n\r\n",
            "{get}Expect: anything\r\n\r\n",
        ],
    ),
];

fn fill(text: &str, headers: &str) -> String {
    let many: String = (0..60).map(|at| format!("X-{at}: 1\r\n")).collect();
    let text = text.replace("{get}", START).replace("{post}", POST);
    let text = text.replace("{card}", CARD).replace("{h}", headers).replace("{many}", &many);
    text.replace("{long}", &"x".repeat(300)).replace("{huge}", &"x".repeat(40_000))
}

/// The answer, after which nothing else comes.
async fn last_answer(client: &mut Client, request: &str) -> std::io::Result<Reply> {
    let reply = client.raw(request).await?;
    let after = tokio::time::timeout(Duration::from_secs(5), client.raw("")).await;
    assert!(matches!(after, Ok(Err(_))), "a second answer came, or the connection stays open");
    Ok(reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused_and_nothing_of_them_reaches_the_hub() {
    let more = "refusals_per_minute_max = 1000";
    let world = World::start_with(Setup { more, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    world.received.lock().unwrap().clear();
    let mut sent = 0;
    for (class, requests) in CLASSES {
        assert!(requests.len() >= 5, "{class}");
        for request in requests {
            let mut client = world.client(&party).await;
            let request = fill(request, &headers);
            // What follows must not be taken for a request of its own.
            let smuggled =
                format!("{request}GET {CARD} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
            let reply = last_answer(&mut client, &smuggled).await;
            let reply = reply.unwrap_or_else(|error| panic!("{class}: {error}: {request:.200}"));
            let code = reply.body["code"].as_str();
            assert_eq!((reply.status, code), (400, Some("bad_request")), "{class}: {request:.200}");
            sent += 1;
        }
    }
    let received = world.received.lock().unwrap().clone();
    assert!(received.is_empty(), "the hub received {received:#?}");
    let events = world.events_when(|events| refusals(events) >= sent).await;
    assert_eq!(refusals(&events), sent, "each refusal is recorded once");
}

fn refusals(events: &[audit_log::Event]) -> usize {
    // An offence in a body comes after the decision, so the completion tells of it.
    let is_refusal = |event: &&audit_log::Event| match event {
        audit_log::Event::Decision { reasons, .. }
        | audit_log::Event::Completion { reasons, .. } => {
            reasons.iter().any(|reason| reason == "bad_request")
        }
        audit_log::Event::HandshakeFailed { .. }
        | audit_log::Event::Aggregated { .. }
        | audit_log::Event::Intent { .. }
        | audit_log::Event::Effect { .. }
        | audit_log::Event::Outcome { .. }
        | audit_log::Event::ServiceStarted { .. }
        | audit_log::Event::ServiceStopped
        | audit_log::Event::HandedOver
        | audit_log::Event::Checkpoint { .. }
        | audit_log::Event::TailCut { .. }
        | audit_log::Event::Unfinished { .. }
        | audit_log::Event::Unavailable { .. }
        | audit_log::Event::ClockStepped { .. }
        | audit_log::Event::SegmentsDeleted { .. } => false,
    };
    events.iter().filter(is_refusal).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reaches_the_hub_is_a_head_of_the_gateways_own() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    world.received.lock().unwrap().clear();
    let mut client = world.client(&party).await;
    let foreign = "X-Forwarded-For: 10.0.0.1\r\nSekisho-Principal: office/9\r\n\
         Sekisho-Permit: v1.x.y\r\nX_Sekisho_Serial: 1\r\nForwarded: for=1\r\nCookie: a=b\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authorization: x\r\nTrailer: X\r\nX-Anything: 1\r\n\
         User-Agent: u\r\n";
    let ask = format!("{foreign}{headers}accept:application/json\r\nCONNECTION: Keep-Alive\r\n");
    assert_eq!(client.get(&format!("{CARD}?a=%41"), &ask).await.unwrap().status, 200);
    let post = format!(
        "POST /v1/session HTTP/1.1\r\nHost: localhost\r\n{ask}Content-Type: application/json\r\n\
         Transfer-Encoding: Chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    );
    assert_eq!(client.raw(&post).await.unwrap().status, 200);
    let received = world.received.lock().unwrap().clone();
    let shown: Vec<String> = received.iter().map(|request| without_values(request)).collect();
    let get = format!(
        "GET {CARD}?a=%41 HTTP/1.1\r\nhost: hub\r\naccept: application/json\r\n\
         sekisho-permit: *\r\nsekisho-request-id: *\r\nsekisho-principal: *\r\n\
         sekisho-serial: *\r\nsekisho-staff-job: *\r\n\r\n"
    );
    let post = "POST /v1/session HTTP/1.1\r\nhost: hub\r\naccept: application/json\r\n\
         content-type: application/json\r\nsekisho-permit: *\r\nsekisho-request-id: *\r\n\
         sekisho-principal: *\r\nsekisho-serial: *\r\ntransfer-encoding: chunked\r\n\r\n\
         3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(shown, [get, post.to_owned()]);
    assert!(received[0].contains("\r\nsekisho-principal: office/1370000001/terminal/front-1\r\n"));
}

/// The values of our own headers, which differ each time, as `*`.
pub fn without_values(request: &str) -> String {
    let lines = request.split("\r\n").map(|line| match line.split_once(": ") {
        Some((name, _)) if name.to_lowercase().starts_with("sekisho-") => {
            format!("{}: *", name.to_lowercase())
        }
        Some((name, value)) => format!("{}: {value}", name.to_lowercase()),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_together_are_answered_in_their_order() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let one = |at: u32| format!("GET {CARD}?at={at} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    let post = format!(
        "POST /v1/session?at=2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n{headers}\r\nabc"
    );
    let bad = "GET /v1/../x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let all = [one(1), post, one(3), bad.to_owned(), one(5)].concat();
    let mut replies = vec![client.raw(&all).await.unwrap()];
    for _ in 0..3 {
        replies.push(client.raw("").await.unwrap());
    }
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 200, 200, 400]);
    for (reply, at) in replies.iter().zip(1..4) {
        let head = reply.body["head"].as_str().unwrap();
        assert!(head.contains(&format!("?at={at} ")), "{head}");
    }
    assert!(client.raw("").await.is_err(), "what follows an offence was answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_slowly_is_refused_in_its_time() {
    let limits = "request_head_timeout_ms = 700";
    let world = World::start_with(Setup { limits, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    // Time between requests is another matter.
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    let began = std::time::Instant::now();
    let dripping = async {
        for byte in
            format!("GET {CARD} HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(500)).chars()
        {
            if client.send(&byte.to_string()).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            if began.elapsed() > Duration::from_millis(900) {
                break;
            }
        }
    };
    dripping.await;
    let reply = client.raw("").await.unwrap();
    assert_eq!(reply.status, 400);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_take_its_answer_is_given_up() {
    let limits = "response_write_timeout_ms = 700";
    let world = World::start_with(Setup { limits, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let ask = format!("GET {CARD}?pad=30000000 HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    client.send(&ask).await.unwrap();
    world.audit_with(r#""outcome":"client_gone""#).await;
    drop(client);
}
