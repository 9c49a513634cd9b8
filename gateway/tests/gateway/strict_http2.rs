//! Point 5, HTTP/2: what could be read in two ways is refused, and what reaches the hub is the
//! gateway's own. Frames are written by hand, since libraries send none of these.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::harness::{Party, Setup, World};
use crate::raw_http2::Verdict::{Closed, Reset, Status};
use crate::raw_http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Fields, GOAWAY, HEADERS, PADDED, PING, PRIORITY,
    PUSH_PROMISE, RST_STREAM, Raw, SETTINGS, Verdict, WINDOW_UPDATE, frame,
};
use crate::strict_http::without_values;
use crate::{CARD, office};

/// What is sent after the prefaces, and what must come of it.
type Case = (&'static str, Vec<u8>, Verdict);

/// Error codes (RFC 9113 §7). Who ends the connection where the stream would do is the stricter.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;

const MALFORMED: Verdict = Reset(PROTOCOL_ERROR);
const BROKEN: Verdict = Closed(Some(PROTOCOL_ERROR));

fn pseudo_headers(get: &Fields) -> Vec<Case> {
    let late = get.without(":path").add(":path", CARD);
    let connect = Fields::of(&[(":method", "CONNECT"), (":authority", "localhost:443")]);
    let extended = get.set(":method", "CONNECT").first(":protocol", "websocket");
    vec![
        ("no method", get.without(":method").alone(), MALFORMED),
        ("no path", get.without(":path").alone(), MALFORMED),
        ("no scheme", get.without(":scheme").alone(), MALFORMED),
        ("two methods", get.first(":method", "GET").alone(), MALFORMED),
        ("two paths", get.first(":path", "/v1/registrations").alone(), MALFORMED),
        ("two schemes", get.first(":scheme", "https").alone(), MALFORMED),
        ("two authorities", get.first(":authority", "localhost").alone(), MALFORMED),
        ("an unknown one", get.first(":proto", "x").alone(), BROKEN),
        ("an answer's", get.first(":status", "200").alone(), MALFORMED),
        ("one after a header", late.alone(), MALFORMED),
        ("upper case", get.without(":method").first(":METHOD", "GET").alone(), BROKEN),
        ("empty method", get.set(":method", "").alone(), BROKEN),
        ("empty path", get.set(":path", "").alone(), MALFORMED),
        ("CONNECT", connect.alone(), Status(405)),
        ("extended CONNECT", extended.alone(), MALFORMED),
        ("plain http", get.set(":scheme", "http").alone(), Status(400)),
        ("another scheme", get.set(":scheme", "ftp").alone(), Status(400)),
    ]
}

fn authorities(get: &Fields) -> Vec<Case> {
    let of = |authority: &str| get.set(":authority", authority).alone();
    let host_only = |host: &str| get.without(":authority").add("host", host).alone();
    vec![
        ("none", get.without(":authority").alone(), Status(400)),
        ("host alone", host_only("localhost"), Status(400)),
        ("a foreign host alone", host_only("other"), Status(400)),
        ("host differs", get.add("host", "other").alone(), Status(400)),
        ("host differs in its port", get.add("host", "localhost:1").alone(), Status(400)),
        ("two hosts", get.add("host", "localhost").add("host", "localhost").alone(), Status(400)),
        ("foreign", of("other"), Status(400)),
        ("foreign, with our name in it", of("localhost.other"), Status(400)),
        ("empty", of(""), MALFORMED),
        ("with a user", of("localhost@other"), Status(400)),
        ("with our name as a user", of("other@localhost"), Status(400)),
        ("port 0", of("localhost:0"), Status(400)),
        ("no port after its colon", of("localhost:"), Status(400)),
        ("with a space", of("local host"), MALFORMED),
        ("with a path", of("localhost/v1"), MALFORMED),
    ]
}

fn bytes_of_fields(get: &Fields) -> Vec<Case> {
    let value = |value: &[u8]| get.add("x-a", value).alone();
    let name = |name: &[u8]| get.add(name, "1").alone();
    vec![
        ("CR in a value", value(b"a\rb"), BROKEN),
        ("LF in a value", value(b"a\nb"), BROKEN),
        ("NUL in a value", value(b"a\0b"), BROKEN),
        ("a header in a value", value(b"a\r\nsekisho-principal: b"), BROKEN),
        ("not ASCII in a value", value(b"a\xffb"), Status(400)),
        ("DEL in a value", value(b"a\x7fb"), BROKEN),
        ("upper case in a name", name(b"X-A"), BROKEN),
        ("a space in a name", name(b"x a"), BROKEN),
        ("a colon in a name", name(b"x:a"), BROKEN),
        ("a line in a name", name(b"x\r\nsekisho-principal"), BROKEN),
        ("NUL in a name", name(b"x\0a"), BROKEN),
        ("an empty name", name(b""), BROKEN),
        ("two tokens", get.add("authorization", "Bearer x").alone(), Status(400)),
    ]
}

fn connection_headers(get: &Fields) -> Vec<Case> {
    vec![
        ("connection", get.add("connection", "close").alone(), MALFORMED),
        ("keep-alive", get.add("keep-alive", "timeout=5").alone(), MALFORMED),
        ("proxy-connection", get.add("proxy-connection", "close").alone(), MALFORMED),
        ("transfer-encoding", get.add("transfer-encoding", "chunked").alone(), MALFORMED),
        ("upgrade", get.add("upgrade", "websocket").alone(), MALFORMED),
        ("te", get.add("te", "gzip").alone(), MALFORMED),
        ("te twice", get.add("te", "trailers").add("te", "gzip").alone(), MALFORMED),
        ("an expectation", get.add("expect", "anything").alone(), Status(400)),
    ]
}

fn targets(get: &Fields) -> Vec<Case> {
    let path = |path: &[u8]| get.set(":path", path).alone();
    let method = |method: &str| get.set(":method", method).alone();
    let long = format!("/v1/{}", "x".repeat(9_000));
    vec![
        ("dot segments", path(b"/v1/insured/../registrations"), Status(400)),
        ("encoded dots", path(b"/v1/%2e%2e/registrations"), Status(400)),
        ("an encoded slash", path(b"/v1%2fregistrations"), Status(400)),
        ("an empty segment", path(b"//v1/registrations"), Status(400)),
        ("a backslash", path(b"/v1\\registrations"), Status(400)),
        ("a whole URL", path(b"https://localhost/v1/registrations"), MALFORMED),
        ("no slash first", path(b"v1/registrations"), MALFORMED),
        ("an asterisk", path(b"*"), Status(400)),
        ("a space", path(b"/v1/registrations HTTP/1.1"), MALFORMED),
        ("a line", path(b"/v1\r\nsekisho-principal: x"), MALFORMED),
        ("NUL", path(b"/v1/\0"), MALFORMED),
        ("not ASCII", path("/v1/名".as_bytes()), Status(400)),
        ("too long", path(long.as_bytes()), Status(400)),
        ("TRACE", method("TRACE"), Status(400)),
        ("a method in lower case", method("get"), Status(400)),
        ("an unknown method", method("PROPFIND"), Status(400)),
        ("a method with a space", method("GET /"), BROKEN),
    ]
}

fn bodies(post: &Fields) -> Vec<Case> {
    let length = |length: &str| post.add("content-length", length);
    let trailers = |trailers: Fields| {
        let body = frame(DATA, 0, 1, b"abc");
        [post.headers(1, 0), body, trailers.headers(1, END_STREAM)].concat()
    };
    let unended = {
        let body = frame(DATA, 0, 1, b"abc");
        let trailers = Fields::of(&[("x-a", "1")]).headers(1, 0);
        [post.headers(1, 0), body, trailers].concat()
    };
    vec![
        ("shorter than told", length("5").with_body(b"abc"), MALFORMED),
        ("longer than told", length("2").with_body(b"abc"), MALFORMED),
        ("some where none was told", length("0").with_body(b"abc"), MALFORMED),
        ("none where some was told", length("5").alone(), MALFORMED),
        ("two lengths", length("3").add("content-length", "5").with_body(b"abc"), MALFORMED),
        ("a list of lengths", length("3,3").with_body(b"abc"), MALFORMED),
        ("a signed length", length("+3").with_body(b"abc"), MALFORMED),
        ("a negative length", length("-3").with_body(b"abc"), MALFORMED),
        ("a length in hexadecimal", length("0x3").with_body(b"abc"), MALFORMED),
        ("connection after it", trailers(Fields::of(&[("connection", "close")])), MALFORMED),
        ("upper case after it", trailers(Fields::of(&[("X-A", "1")])), BROKEN),
        ("trailers that end nothing", unended, MALFORMED),
    ]
}

fn frames(get: &Fields) -> Vec<Case> {
    let (block, connection) = (get.block(), |kind, payload: &[u8]| frame(kind, 0, 0, payload));
    let begun = frame(HEADERS, END_STREAM, 1, &block[..20]);
    let rest = frame(CONTINUATION, END_HEADERS, 1, &block[20..]);
    let ping = frame(PING, 0, 0, &[0; 8]);
    let lower = [get.headers(5, END_STREAM), get.headers(3, END_STREAM)].concat();
    let after_end = [get.headers(1, END_STREAM), frame(DATA, END_STREAM, 1, b"abc")].concat();
    let promise = frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &block[..]].concat());
    let padded = frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &[255, 0x82]);
    let own_parent = frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]);
    let ends = END_STREAM | END_HEADERS;
    vec![
        ("an even stream", get.headers(2, END_STREAM), BROKEN),
        ("stream 0", get.headers(0, END_STREAM), BROKEN),
        ("a lower stream", lower, BROKEN),
        ("a body of no request", frame(DATA, END_STREAM, 1, b"abc"), BROKEN),
        ("a body on stream 0", connection(DATA, b"abc"), BROKEN),
        ("a body after the end", after_end, BROKEN),
        ("too large", frame(DATA, 0, 1, &[0; 16_385]), Closed(Some(FRAME_SIZE_ERROR))),
        ("half a setting", connection(SETTINGS, &[0; 5]), BROKEN),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[]), BROKEN),
        ("a window of nothing more", connection(WINDOW_UPDATE, &[0; 4]), BROKEN),
        (
            "a window too large",
            connection(WINDOW_UPDATE, &[0x7f, 0xff, 0xff, 0xff]),
            Closed(Some(FLOW_CONTROL_ERROR)),
        ),
        ("a promise", promise, BROKEN),
        ("half a ping", connection(PING, &[0; 4]), BROKEN),
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8]), BROKEN),
        ("a continuation of nothing", rest.clone(), BROKEN),
        ("a ping within a head", [begun, ping, rest].concat(), BROKEN),
        ("more padding than frame", padded, BROKEN),
        ("an index of nothing", frame(HEADERS, ends, 1, &[0xff, 0x7f]), BROKEN),
        ("a name of nothing", frame(HEADERS, ends, 1, &[0xbf]), BROKEN),
        ("its own parent", own_parent, MALFORMED),
        ("a reset of nothing", frame(RST_STREAM, 0, 1, &[0; 4]), BROKEN),
        ("a goodbye of a stream", frame(GOAWAY, 0, 1, &[0; 8]), BROKEN),
    ]
}

async fn connect(world: &World, party: &Party) -> TlsStream<TcpStream> {
    let mut config = world.client_config(Some(party));
    config.alpn_protocols = vec![b"h2".to_vec()];
    world.tls(Arc::new(config)).await.unwrap()
}

fn requests(headers: &str) -> (Fields, Fields) {
    let token = headers.trim().strip_prefix("Authorization: ").unwrap();
    let of = |method, path| {
        Fields::of(&[
            (":method", method),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", path),
            ("authorization", token),
        ])
    };
    (of("GET", CARD), of("POST", "/v1/session").add("content-type", "application/json"))
}

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_could_be_read_in_two_ways_never_reach_the_hub() {
    let more = "refusals_per_minute_max = 1000";
    let world = World::start_with(Setup { more, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let (get, post) = requests(&headers);
    world.received.lock().unwrap().clear();
    let (mut sent, mut wrong) = (0, Vec::new());
    for (class, cases) in [
        ("pseudo-headers", pseudo_headers(&get)),
        ("authority", authorities(&get)),
        ("bytes", bytes_of_fields(&get)),
        ("connection headers", connection_headers(&get)),
        ("target", targets(&get)),
        ("body", bodies(&post)),
        ("frames", frames(&get)),
    ] {
        assert!(cases.len() >= 5, "{class}");
        for (name, bytes, expected) in cases {
            let mut raw = Raw::begin(connect(&world, &party).await).await;
            raw.send(&bytes).await;
            let verdict = raw.verdict(PATIENCE).await;
            if verdict != expected {
                wrong.push(format!("{class}: {name}: {verdict:?}, not {expected:?}"));
            }
            sent += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(sent >= 60, "{sent} cases");
    let received = world.received.lock().unwrap().clone();
    assert!(received.is_empty(), "the hub received {received:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reaches_the_hub_from_frames_is_of_the_gateways_own() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let (get, post) = requests(&headers);
    let own = "sekisho-permit: *\r\nsekisho-request-id: *\r\nsekisho-principal: *\r\n\
               sekisho-serial: *\r\n";
    let card = format!("GET {CARD} HTTP/1.1\r\nhost: hub\r\n{own}sekisho-staff-job: *\r\n\r\n");
    let start = "POST /v1/session HTTP/1.1\r\nhost: hub\r\ncontent-type: application/json\r\n";
    let empty = format!("{start}{own}\r\n");
    let login = format!("{start}{own}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let block = get.block();
    let (head, tail) = block.split_at(30);
    let parts = [frame(HEADERS, END_STREAM, 1, head), frame(CONTINUATION, END_HEADERS, 1, tail)];
    let foreign = [
        ("host", "localhost"),
        ("te", "trailers"),
        ("sekisho-principal", "office/9"),
        ("sekisho-permit", "v1.x.y"),
        ("forwarded", "for=1"),
        ("x-forwarded-for", "10.0.0.1"),
        ("cookie", "a=b"),
        ("x-anything", "1"),
    ];
    let foreign = foreign.iter().fold(get.clone(), |all, (name, value)| all.add(name, value));
    let unknown = frame(0x20, 0xff, 1, b"any");
    for (name, bytes, expected) in [
        ("a plain request", get.alone(), card.clone()),
        ("in two frames", parts.concat(), card.clone()),
        ("with headers that are not passed on", foreign.alone(), card.clone()),
        ("after a frame of no known kind", [unknown, get.alone()].concat(), card.clone()),
        ("to our name with a port", get.set(":authority", "LOCALHOST:443").alone(), card.clone()),
        ("a target with a fragment", get.set(":path", format!("{CARD}#x")).alone(), card.clone()),
        ("no body, and so told", post.add("content-length", "0").alone(), empty),
        ("a body", post.with_body(b"abc"), login),
    ] {
        world.received.lock().unwrap().clear();
        let mut raw = Raw::begin(connect(&world, &party).await).await;
        raw.send(&bytes).await;
        assert_eq!(raw.verdict(PATIENCE).await, Status(200), "{name}");
        let received = world.received.lock().unwrap().clone();
        let shown: Vec<String> = received.iter().map(|request| without_values(request)).collect();
        assert_eq!(shown, [expected], "{name}");
    }
}
