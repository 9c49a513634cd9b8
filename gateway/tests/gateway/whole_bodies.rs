//! The body of an HTTP/2 request reaches the hub whole or not at all, however it ends.
//!
//! Source: RFC 9113 §§5.4.2, 8.1, 8.1.1.

use std::time::Duration;

use audit_log::Event;

use crate::harness::{Party, World};
use crate::raw_http2::Verdict::{Reset, Status};
use crate::raw_http2::{
    DATA, END_STREAM, Fields, GOAWAY, PADDED, RST_STREAM, Verdict, WINDOW_UPDATE, frame,
};
use crate::slow_clients::{ask, raw};
use crate::strict_http::without_values;
use crate::{CARD, office};

const PATIENCE: Duration = Duration::from_secs(10);
/// For what might still come to the hub, of what must not.
const LATER: Duration = Duration::from_millis(300);

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;

fn data(flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, 1, bytes)
}

async fn world() -> (World, Party, Fields) {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    (world, party, ask("POST", "/v1/session", &headers))
}

/// What ends badly, and how the gateway must answer it.
fn broken(post: &Fields) -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let trailers = |name, value| Fields::of(&[(name, value)]).headers(1, END_STREAM);
    let told = |length: &str| post.add("content-length", length).headers(1, 0);
    let (begun, part, plain) = (post.headers(1, 0), data(0, b"abc"), trailers("x-a", "1"));
    let window = frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]);
    let whole = [begun.clone(), part.clone(), data(END_STREAM, b"de")].concat();
    vec![
        (
            "less than told, ended by trailers",
            [told("5"), part.clone(), plain.clone()].concat(),
            Reset(PROTOCOL_ERROR),
        ),
        ("nothing of what was told", [told("5"), plain.clone()].concat(), Reset(PROTOCOL_ERROR)),
        (
            "less than told, ended by an empty frame",
            [told("5"), part.clone(), data(END_STREAM, b"")].concat(),
            Reset(PROTOCOL_ERROR),
        ),
        (
            "as long as told, but trailers",
            { [told("3"), part.clone(), plain.clone()].concat() },
            Status(400),
        ),
        ("trailers", [begun.clone(), part.clone(), plain.clone()].concat(), Status(400)),
        ("trailers in place of a body", [begun.clone(), plain].concat(), Status(400)),
        (
            "trailers with a pseudo-header",
            [begun, part, trailers(":path", "/v1/registrations")].concat(),
            Status(400),
        ),
        ("a stream that errs after its end", [whole, window].concat(), Reset(FLOW_CONTROL_ERROR)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_what_its_head_said_never_reaches_the_hub_as_whole() {
    let (world, party, post) = world().await;
    let mut wrong = Vec::new();
    // Which of the hub's and the stream's end comes first is a matter of luck: several times.
    for (name, bytes, expected) in (0..5).flat_map(|_| broken(&post)) {
        let mut raw = raw(&world, &party).await;
        raw.send(&bytes).await;
        let verdict = raw.verdict(PATIENCE).await;
        if verdict != expected {
            wrong.push(format!("{name}: {verdict:?}, not {expected:?}"));
        }
        let received = std::mem::take(&mut *world.received.lock().unwrap());
        if !received.is_empty() {
            wrong.push(format!("{name}: the hub received {received:?}"));
        }
    }
    tokio::time::sleep(LATER).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(world.received.lock().unwrap().is_empty());
}

/// What breaks an upload off.
fn ends() -> Vec<(&'static str, Vec<u8>)> {
    let reset = |code: u32| frame(RST_STREAM, 0, 1, &code.to_be_bytes());
    vec![
        ("a reset without an error", reset(0)),
        ("a reset", reset(8)),
        ("a frame that breaks the connection", frame(RST_STREAM, 0, 1, &[0; 3])),
        ("a goodbye", frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])),
        ("the end of the connection", Vec::new()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_is_no_whole_request() {
    let (world, party, post) = world().await;
    let part = [post.headers(1, 0), data(0, b"abc")].concat();
    for (at, (name, end)) in ends().into_iter().enumerate() {
        let mut raw = raw(&world, &party).await;
        raw.send(&part).await;
        // The hub has a part of it before the end comes.
        world.events_when(|events| of(events, "decision") > at).await;
        tokio::time::sleep(LATER).await;
        raw.send(&end).await;
        drop(raw);
        world.events_when(|events| of(events, "completion") > at).await;
        let received = world.received.lock().unwrap().clone();
        assert!(received.is_empty(), "{name}: the hub received {received:?}");
    }
    for (name, end) in ends() {
        let mut raw = raw(&world, &party).await;
        raw.send(&[part.as_slice(), &end].concat()).await;
        drop(raw);
        // Whether it is decided at all depends on which of them is seen first.
        tokio::time::sleep(LATER).await;
        let received = world.received.lock().unwrap().clone();
        assert!(received.is_empty(), "{name}, at once: the hub received {received:?}");
    }
}

fn of(events: &[Event], kind: &str) -> usize {
    let is_one = |event: &&Event| serde_json::to_value(event).unwrap()["event"] == kind;
    events.iter().filter(is_one).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_body_has_one_end_however_it_is_cut() {
    let (world, party, post) = world().await;
    let told = post.add("content-length", "5").headers(1, 0);
    let untold = post.headers(1, 0);
    let (start, end) = (data(0, b"abc"), data(END_STREAM, b"de"));
    let padded = data(PADDED, b"\x04abc\0\0\0\0");
    let (none, last) = (data(0, b""), data(END_STREAM, b""));
    let own = "sekisho-permit: *\r\nsekisho-request-id: *\r\nsekisho-principal: *\r\n\
               sekisho-serial: *\r\n";
    let post = "POST /v1/session HTTP/1.1\r\nhost: hub\r\n";
    let chunks = "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let chunked = format!("{post}{own}{chunks}");
    let counted = format!("{post}content-length: 5\r\n{own}\r\nabcde");
    let nothing = format!("{post}{own}transfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    let middle = data(0, b"de");
    for (name, frames, expected) in [
        ("two frames", vec![&untold, &start, &end], &chunked),
        ("padding", vec![&untold, &padded, &end], &chunked),
        ("empty frames", vec![&untold, &none, &start, &none, &middle, &last], &chunked),
        ("a length", vec![&told, &start, &end], &counted),
        ("a length and an empty frame", vec![&told, &start, &middle, &last], &counted),
        ("nothing but an empty frame", vec![&untold, &last], &nothing),
    ] {
        let mut raw = raw(&world, &party).await;
        for frame in frames {
            raw.send(frame).await;
            // Each is read by itself.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        assert_eq!(raw.verdict(PATIENCE).await, Status(200), "{name}");
        // A second end would be seen by the hub as the beginning of another request.
        tokio::time::sleep(LATER).await;
        let received = std::mem::take(&mut *world.received.lock().unwrap());
        let shown: Vec<String> = received.iter().map(|request| without_values(request)).collect();
        assert_eq!(shown, [expected.as_str()], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_taken_back_at_once_is_not_asked_of_the_hub() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let get = ask("GET", CARD, &headers).alone();
    let reset = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    for _ in 0..20 {
        let mut raw = raw(&world, &party).await;
        // In one record, so that both are there before the request is looked at.
        raw.send(&[get.as_slice(), &reset].concat()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(LATER).await;
    let received = world.received.lock().unwrap().len();
    assert_eq!(received, 0, "asked of the hub all the same");
}
