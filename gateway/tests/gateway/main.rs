//! The gateway as its clients meet it, with feeds and hub driven by the test.

#![allow(missing_docs, unreachable_pub, reason = "a test binary has no readers of its API")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod admission;
mod browser_session;
mod closed_network;
mod cut;
mod failed_handshakes;
mod floods;
mod harness;
mod kept;
mod long_bodies;
mod live_swap;
mod metrics_page;
mod outside_cas;
mod power;
mod records;
mod staleness;
mod reload;
mod response_checks;
mod raw_http2;
mod server_names;
mod slow_clients;
mod strict_http;
mod strict_http2;
mod returning;
mod stream;
mod upstream;
mod whole_bodies;

use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{INSURED, OFFICE, Party, Pki, Reply, World, header, now};
use policies::feed::Fact;
use rcgen::{ExtendedKeyUsagePurpose, SanType};

const CARD: &str = "/v1/insured/131016/0000000001/documents/insured-card";
const SURVEY: &str = "/v1/insured/131016/0000000001/documents/certification-survey";

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn code(reply: &Reply) -> &str {
    reply.body["code"].as_str().unwrap_or("none")
}

async fn office(world: &World, serial: u8) -> (Party, String) {
    let party = world.pki.client(&format!("office/{OFFICE}/terminal/front-1"), serial);
    let headers = bearer(&world.token(&party, "s1", now() + 600));
    (party, headers)
}

/// The person's consent to everything, and when it was withdrawn.
fn consent(withdrawn: Option<u64>) -> Fact {
    Fact::Consent {
        id: 1,
        insured: INSURED.parse().unwrap(),
        scope: policies::document::DocumentSet::held(),
        from: 1,
        until: None,
        withdrawn,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permitted_request_reaches_the_hub_with_our_identity_only() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let spoofed = format!(
        "{headers}Sekisho-Principal: municipality/131016/terminal/x\r\nSekisho-Permit: v1.e.e\r\n\
         X-Forwarded-For: 10.0.0.1\r\nX_Sekisho_Serial: 1\r\nCookie: a=b\r\n"
    );
    let reply = client.get(CARD, &spoofed).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    let head = reply.body["head"].as_str().unwrap().to_ascii_lowercase();
    let principal = format!("office/{OFFICE}/terminal/front-1");
    assert_eq!(header(&head, "sekisho-principal"), Some(principal));
    for gone in ["x-forwarded-for", "x_sekisho_serial", "cookie", "authorization", "municipality"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    assert_eq!(reply.body["claims"]["staff"]["id"], "staff-1");
    assert_eq!(reply.body["claims"]["serial"], party.serial);
    assert!(header(&reply.head, "sekisho-request-id").is_some());
    let log = world.audit_with(r#""event":"completion""#).await;
    assert!(log.contains(r#""decision":"allow""#) && !log.contains("0000000001"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_post_quantum_hybrid_is_preferred() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    assert_eq!(client.key_exchange_group(), Some(rustls::NamedGroup::X25519MLKEM768));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_thing_is_refused_with_its_reason() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let other = world.pki.client(&format!("office/{OFFICE}/terminal/front-2"), 2);
    let moved = bearer(&world.token(&other, "s1", now() + 600));
    let expired = bearer(&world.token(&party, "s1", now() - 1));
    let forged = headers.replace("Bearer e", "Bearer f");
    for (path, headers, status, expected) in [
        (CARD, "", 401, "staff_token_missing"),
        (CARD, &moved, 401, "token_not_bound"),
        (CARD, &expired, 401, "staff_token_expired"),
        (CARD, &forged, 401, "staff_token_invalid"),
        (SURVEY, &headers, 403, "consent_required"),
        ("/v1/insured/131016/0000000002/documents/insured-card", &headers, 403, "not_registered"),
        (
            "/v1/insured/131016/0000000001/documents/benefit-claims",
            &headers,
            404,
            "no_such_operation",
        ),
        ("/v1/unknown", &headers, 404, "no_such_operation"),
        ("/v1/insured/131016/0000000001/documents/%69nsured-card", &headers, 400, "bad_request"),
    ] {
        let reply = client.get(path, headers).await.unwrap();
        assert_eq!((reply.status, code(&reply)), (status, expected), "{path}");
        assert!(reply.body["detail_ja"].as_str().unwrap().ends_with('。'));
        if expected == "bad_request" {
            // Where an ambiguous request ends is not certain, so its connection ends.
            assert!(client.get(CARD, headers).await.is_err());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consent_opens_and_its_withdrawal_closes_on_the_same_connection() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    for (fact, status) in [(consent(None), 200), (consent(Some(now())), 403)] {
        world.hub.send(fact);
        let start = Instant::now();
        while client.get(SURVEY, &headers).await.unwrap().status != status {
            assert!(start.elapsed() < Duration::from_secs(5), "no {status} within 5 s");
        }
    }
    let reply = client.get(SURVEY, &headers).await.unwrap();
    assert_eq!(code(&reply), "consent_withdrawn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_refused_new_resumed_and_open() {
    let world = World::start().await;
    let (party, headers) = office(&world, 7).await;
    let config = Arc::new(world.client_config(Some(&party)));
    let mut open = world.connect(config.clone()).await.unwrap();
    assert_eq!(open.get(CARD, &headers).await.unwrap().status, 200);
    let mut resumed = world.connect(config.clone()).await.unwrap();
    assert_eq!(resumed.get(CARD, &headers).await.unwrap().status, 200);
    assert!(resumed.was_resumed());
    world.ca.send(Fact::Revoked { serial: party.serial.parse().unwrap(), at: now() });
    let start = Instant::now();
    while open.get(CARD, &headers).await.is_ok_and(|reply| reply.status == 200) {
        assert!(start.elapsed() < Duration::from_secs(5), "still served after 5 s");
    }
    assert!(resumed.get(CARD, &headers).await.is_err(), "the idle connection was not cut");
    for config in [config, Arc::new(world.client_config(Some(&party)))] {
        let refused = match world.connect(config).await {
            Ok(mut client) => client.get(CARD, &headers).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    let log = world.audit_with(r#""reason":"revoked""#).await;
    assert!(log.contains(&party.serial), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_handshakes_are_recorded_in_words() {
    let world = World::start().await;
    let foreign = Pki::new("Foreign CA").client(&format!("office/{OFFICE}/terminal/a"), 3);
    let uri = format!("https://id.sekisho.example/office/{OFFICE}/terminal/a");
    let san = SanType::URI(uri.try_into().unwrap());
    let server = world.pki.leaf(san, ExtendedKeyUsagePurpose::ServerAuth, 4);
    let operator = world.pki.client("operator/alice", 5);
    let nobody = world.pki.client("portal/x", 6);
    for (party, reason) in [
        (None, "no_certificate"),
        (Some(&foreign), "unknown_issuer"),
        (Some(&server), "wrong_purpose"),
        (Some(&operator), "operator_refused"),
        (Some(&nobody), "no_identity"),
    ] {
        let config = Arc::new(world.client_config(party));
        if let Ok(mut client) = world.connect(config).await {
            assert!(client.get(CARD, "").await.is_err(), "{reason}");
        }
        world.audit_with(&format!(r#""reason":"{reason}""#)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_framing_is_refused() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    for request in [
        format!(
            "POST {CARD} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: 3\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!("GET https://localhost{CARD} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"),
    ] {
        let mut client = world.client(&party).await;
        let reply = client.raw(&request).await.unwrap();
        assert_eq!((reply.status, code(&reply)), (400, "bad_request"), "{request}");
    }
    // pingora itself refuses two Host headers, before any phase of ours.
    let mut client = world.client(&party).await;
    let twice = format!("GET {CARD} HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n{headers}\r\n");
    assert_eq!(client.raw(&twice).await.unwrap().status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_office_is_cut_and_refused() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut open = world.client(&party).await;
    assert_eq!(open.get(CARD, &headers).await.unwrap().status, 200);
    world.ca.send(Fact::Office {
        number: OFFICE.parse().unwrap(),
        service_types: vec!["43".parse().unwrap()],
        medical: false,
        suspended: true,
        name: String::new(),
    });
    let start = Instant::now();
    while open.get(CARD, &headers).await.is_ok_and(|reply| reply.status == 200) {
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    let reply = world.client(&party).await.get(CARD, &headers).await.unwrap();
    assert_eq!((reply.status, code(&reply)), (403, "office_suspended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_and_metrics_are_served_on_loopback() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(SURVEY, &headers).await.unwrap().status, 403);
    let ready = world.admin_get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains(r#""ready":true"#), "{ready}");
    // The counter moves after the response has left.
    let counted = "sekisho_requests_total{decision=\"deny\",\
                   document=\"certification-survey\",reason=\"consent_required\"} 1";
    let mut metrics = String::new();
    for _ in 0..100 {
        metrics = world.admin_get("/metrics").await;
        if metrics.contains(counted) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(metrics.contains(counted), "{metrics}");
    for name in [
        "sekisho_feed_age_seconds{feed=\"ca\"} ",
        "sekisho_feed_age_seconds{feed=\"hub\"} ",
        "sekisho_audit_append_seconds_bucket{",
        "sekisho_audit_group_records_bucket{",
        "sekisho_audit_queue_records ",
        "sekisho_audit_queue_bytes ",
        "sekisho_audit_checkpoint_age_seconds ",
        "sekisho_audit_disk_free_bytes ",
        "sekisho_audit_available 1",
        "sekisho_audit_records_total ",
        "sekisho_audit_refusals_counted_total 0",
    ] {
        let lines = metrics.lines().filter(|line| line.starts_with(name)).count();
        assert!(lines > 0, "{name}: {metrics}");
    }
    let twice = metrics.lines().filter(|line| line.starts_with("# TYPE sekisho_audit_available "));
    assert_eq!(twice.count(), 1, "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_read_is_recorded_too() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    // The head is broken off, so no request phase ever sees it.
    let _ = client.raw("GET /v1 HTTP/1.1\r\nbad header line\r\n\r\n").await;
    drop(client);
    let log = world.audit_with(r#""reasons":["bad_request"]"#).await;
    assert_eq!(log.matches(r#""decision":"deny""#).count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_office_cannot_take_the_hub_from_others() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let unfinished = format!(
        "POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n{headers}\r\n"
    );
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut client = world.client(&party).await;
        client.send(&unfinished).await.unwrap();
        held.push(client);
    }
    let mut client = world.client(&party).await;
    let start = Instant::now();
    while client.get(CARD, &headers).await.unwrap().status != 429 {
        assert!(start.elapsed() < Duration::from_secs(10), "never limited");
    }
    let municipality = world.pki.client("municipality/131016/terminal/a", 9);
    let mut other = world.client(&municipality).await;
    assert_eq!(other.get(CARD, "").await.unwrap().status, 200);
    drop(held);
    while client.get(CARD, &headers).await.unwrap().status != 200 {
        assert!(start.elapsed() < Duration::from_secs(20), "the slots never came back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_take_no_handshake_from_others() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut silent = Vec::new();
    for _ in 0..700 {
        silent.push(tokio::net::TcpStream::connect(world.public).await.unwrap());
    }
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_changes_at_once_arrive_together() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    for n in 0..3_000_u64 {
        world.hub.send(Fact::Registration {
            office: OFFICE.parse().unwrap(),
            insured: format!("131016/{:010}", 100 + n).parse().unwrap(),
            from: 1,
            until: None,
            ended: None,
        });
    }
    let last = "/v1/insured/131016/0000003099/documents/insured-card";
    let start = Instant::now();
    while client.get(last, &headers).await.unwrap().status != 200 {
        assert!(start.elapsed() < Duration::from_secs(30), "3,000 changes took over 30 s");
    }
}
