//! Nothing passes without a permit for exactly this request.

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
async fn foreign_wrong_expired_and_doubled_permits_are_refused() {
    let hub = TestHub::start().await;
    let call = || hub.call(CARE, "GET", "/v1/registrations");
    let line = |permit: &str| format!("{HEADER}: {permit}\r\n");
    let good = hub.key.seal(&call().claims).unwrap();
    assert_eq!(call().send_with(&line(&good)).await.status, 200);

    let foreign = PermitKey::new(&[9; 32]).unwrap().seal(&call().claims).unwrap();
    let other_target = hub.key.seal(&hub.call(CARE, "GET", "/v1/opinion-requests").claims).unwrap();
    let mut claims = call().claims;
    claims.expires_ms = clock::now_ms() - LIFETIME_MS;
    let expired = hub.key.seal(&claims).unwrap();
    let mut claims = call().claims;
    claims.operation = "opinion-requests.list".into();
    let other_operation = hub.key.seal(&claims).unwrap();
    for (name, headers) in [
        ("foreign key", line(&foreign)),
        ("other target", line(&other_target)),
        ("expired", line(&expired)),
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
        assert_eq!(answer.json["error"]["request_id"], "req-1");
    }
}

#[tokio::test]
async fn claims_documents_are_not_held() {
    let hub = TestHub::start().await;
    let mut call = hub.call(CARE, "GET", &person("documents/insured-card"));
    call.claims.target = person("documents/benefit-claims");
    assert_eq!(call.send().await.refused(404), "not_held");
}
