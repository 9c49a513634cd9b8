//! Nothing passes without a permit for exactly this request.

use std::time::Duration;

use policies::permit::{HEADER, LIFETIME_MS, PermitKey};

use super::harness::*;
use crate::clock;

#[tokio::test]
async fn every_request_without_a_permit_is_refused_alike() {
    let hub = TestHub::start().await;
    for (method, target) in [
        ("GET", "/v1/registrations"),
        ("GET", "/nowhere"),
        ("BREW", "/v1/registrations"),
        ("POST", "/v1/session"),
        ("GET", "/healthz"),
    ] {
        let answer = hub.call(CARE, method, target).send_with("").await;
        assert_eq!(answer.refused(403), "permit_required", "{method} {target}");
    }
}

#[tokio::test]
async fn foreign_wrong_and_doubled_permits_are_refused() {
    let hub = TestHub::start().await;
    let call = || hub.call(CARE, "GET", "/v1/registrations");
    let line = |permit: &str| format!("{HEADER}: {permit}\r\n");
    let good = hub.key.seal(&call().claims).unwrap();
    assert_eq!(call().send_with(&line(&good)).await.status, 200);

    let foreign = PermitKey::new(&[9; 32]).unwrap().seal(&call().claims).unwrap();
    let other_target = hub.key.seal(&hub.call(CARE, "GET", "/v1/opinion-requests").claims).unwrap();
    let mut claims = call().claims;
    claims.operation = "opinion-requests.list".into();
    let other_operation = hub.key.seal(&claims).unwrap();
    for (name, headers) in [
        ("foreign key", line(&foreign)),
        ("other target", line(&other_target)),
        ("other operation", line(&other_operation)),
        ("not understood", line("v1.x.y")),
        ("two permits", line(&good).repeat(2)),
        ("identity headers instead", "sekisho-principal: office/1370000001\r\n".to_owned()),
    ] {
        let answer = call().send_with(&headers).await;
        assert_eq!(answer.refused(403), "permit_required", "{name}");
    }
}

#[tokio::test]
async fn a_permit_that_has_run_out_is_asked_for_again() {
    let hub = TestHub::start().await;
    let mut call = hub.call(CARE, "GET", "/v1/registrations");
    call.claims.expires_ms = clock::now_ms() - LIFETIME_MS;
    let answer = call.send().await;
    assert_eq!(answer.refused(503), "upstream_unavailable");
    assert!(answer.head.contains("\r\nretry-after: 1"), "{}", answer.head);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let second = Duration::from_secs(1);
    let hub = TestHub::start_changed("", |limits| {
        assert_eq!(limits.body_time, Duration::from_secs(20));
        limits.body_time = second;
    })
    .await;
    let file = "/v1/care-plan-files/UP1KYO_1370000001_43_1370000002_15_20261001120000.CSV";
    let calls = [
        hub.call(CITY, "PUT", "/v1/municipalities/131016/sharing"),
        hub.call(CITY, "POST", &person("documents/insured-card")),
        hub.call(PORTAL, "POST", &person("consents/1/withdrawal")),
        hub.call(EXCHANGE, "POST", file),
    ];
    for call in calls {
        let operation = call.claims.operation.clone();
        let answer = call.bytes("application/json", b"{".to_vec()).send_short(5);
        let answer = tokio::time::timeout(second * 5, answer).await.expect("hung up");
        assert_eq!(answer.refused(408), "body_timeout", "{operation}");
        assert!(answer.head.contains("\r\nconnection: close"), "{}", answer.head);
    }
}

#[tokio::test]
async fn a_permit_for_another_person_than_the_path_is_refused() {
    let hub = TestHub::start().await;
    let mut call = hub.call(PORTAL, "GET", &person("access-history"));
    call.claims.insured = Some("131016/0000000002".parse().unwrap());
    assert_eq!(call.send().await.refused(403), "permit_required");
}

#[tokio::test]
async fn unknown_paths_are_told_only_with_a_permit() {
    let hub = TestHub::start().await;
    for (method, target) in [
        ("GET", "/nowhere"),
        ("DELETE", "/v1/registrations"),
        ("GET", "/v1/insured/131016/0000000001/claims"),
    ] {
        let answer = hub.call(CARE, method, target).send().await;
        assert_eq!(answer.refused(404), "no_such_operation", "{method} {target}");
        assert_eq!(answer.json["request_id"], "req-1");
    }
}

#[tokio::test]
async fn claims_documents_are_not_held() {
    let hub = TestHub::start().await;
    let mut call = hub.call(CARE, "GET", &person("documents/insured-card"));
    call.claims.target = person("documents/benefit-claims");
    assert_eq!(call.send().await.refused(404), "not_held");
}
