//! Login, refresh, logout, and what their tokens say.

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use policies::feed::Fact;
use serde_json::{Value, json};

use super::harness::*;
use crate::staff::token::Claims;

async fn add(hub: &TestHub, password: &str) -> Answer {
    let body = json!({
        "office": "1370000001", "id": "sato", "name": "見本 佐藤", "job": "care-manager",
        "password": password,
    });
    hub.admin("POST", "/staff", body).await
}

async fn log_in(hub: &TestHub, principal: &str, id: &str, password: &str) -> Answer {
    let call = hub.call(principal, "POST", "/v1/session");
    call.json(json!({"staff_id":id,"password":password})).send().await
}

async fn refresh(hub: &TestHub, certificate: &str, token: &Value) -> Answer {
    let call = hub.call(CARE, "POST", "/v1/session/refresh").certificate(certificate);
    call.json(json!({ "refresh_token": token })).send().await
}

fn certificate() -> String {
    format!("sha-of-{CARE}")
}

async fn claims(hub: &TestHub, token: &Value) -> Claims {
    let facts = hub.facts().await;
    let mut keys = facts.iter().filter_map(|fact| {
        let Fact::StaffKey { kid, x, y, retired: false } = fact else { return None };
        Some((kid.clone(), x, y))
    });
    let (kid, x, y) = keys.next().unwrap();
    let token = token.as_str().unwrap();
    assert_eq!(jsonwebtoken::decode_header(token).unwrap().kid.unwrap(), kid);
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_issuer(&["sekisho-hub"]);
    rules.validate_aud = false;
    let key = DecodingKey::from_ec_components(x, y).unwrap();
    jsonwebtoken::decode::<Claims>(token, &key, &rules).unwrap().claims
}

#[tokio::test]
async fn a_login_gives_a_token_that_the_published_key_verifies() {
    let hub = TestHub::start().await;
    add(&hub, "correct horse").await.expect(201);
    let answer = log_in(&hub, CARE, "sato", "correct horse").await.expect(200);
    assert_eq!(
        (&answer["expires_in"], &answer["refresh_expires_in"]),
        (&3600.into(), &28800.into())
    );
    assert_eq!(answer["staff"], json!({"id":"sato","name":"見本 佐藤","job":"care-manager"}));
    let claims = claims(&hub, &answer["access_token"]).await;
    assert_eq!((claims.sub.as_str(), claims.office.as_str()), ("sato", "1370000001"));
    assert_eq!((claims.job.as_str(), claims.exp - claims.iat), ("care-manager", 3_600));
    assert_eq!(claims.cnf.certificate_sha256, certificate());
    assert_eq!(hub.audit("session.login"), ["intent", "effect", "outcome:done"]);
}

#[tokio::test]
async fn wrong_unknown_and_foreign_logins_get_one_answer_and_lock_alike() {
    let hub = TestHub::start().await;
    add(&hub, "correct horse").await.expect(201);
    assert_eq!(log_in(&hub, DAY_CARE, "sato", "correct horse").await.refused(401), "login_failed");
    assert_eq!(log_in(&hub, CARE, "", "x").await.refused(401), "login_failed");
    for id in ["sato", "nobody"] {
        for _ in 0..10 {
            assert_eq!(log_in(&hub, CARE, id, "wrong").await.refused(401), "login_failed");
        }
        let locked = log_in(&hub, CARE, id, "correct horse").await;
        assert_eq!(locked.refused(401), "login_locked", "{id}");
        assert!(locked.json["retry_after_s"].as_u64().unwrap() > 590);
    }
    // Only this id of this office is locked, and a new password opens it.
    assert_eq!(log_in(&hub, DAY_CARE, "sato", "x").await.refused(401), "login_failed");
    add(&hub, "another horse").await.expect(201);
    log_in(&hub, CARE, "sato", "another horse").await.expect(200);
}

#[tokio::test]
async fn a_right_password_forgets_the_wrong_ones_before_it() {
    let hub = TestHub::start().await;
    add(&hub, "correct horse").await.expect(201);
    for _ in 0..2 {
        for _ in 0..9 {
            log_in(&hub, CARE, "sato", "wrong").await.refused(401);
        }
        log_in(&hub, CARE, "sato", "correct horse").await.expect(200);
    }
}

#[tokio::test]
async fn refresh_tokens_are_bound_rotated_and_betray_their_reuse() {
    let hub = TestHub::start().await;
    add(&hub, "correct horse").await.expect(201);
    let first = log_in(&hub, CARE, "sato", "correct horse").await.expect(200);
    let session = claims(&hub, &first["access_token"]).await.sid;
    let stolen = refresh(&hub, "another-certificate", &first["refresh_token"]).await;
    assert_eq!(stolen.refused(401), "refresh_failed");
    let second = refresh(&hub, &certificate(), &first["refresh_token"]).await.expect(200);
    assert_eq!(claims(&hub, &second["access_token"]).await.sid, session);
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    let reused = refresh(&hub, &certificate(), &first["refresh_token"]).await;
    assert_eq!(reused.refused(401), "refresh_failed");
    let after = refresh(&hub, &certificate(), &second["refresh_token"]).await;
    assert_eq!(after.refused(401), "refresh_failed");
    assert!(has_ended(&hub, &session).await);
    let bytes = std::fs::read(hub.path("hub.sqlite-wal")).unwrap();
    let token = second["refresh_token"].as_str().unwrap().as_bytes();
    assert!(!bytes.windows(token.len()).any(|window| window == token));
}

async fn has_ended(hub: &TestHub, sid: &str) -> bool {
    let facts = hub.facts().await;
    facts.iter().any(|fact| matches!(fact, Fact::SessionEnded { session, .. } if session == sid))
}

#[tokio::test]
async fn logout_and_lock_end_sessions_everywhere() {
    let hub = TestHub::start().await;
    add(&hub, "correct horse").await.expect(201);
    let first = log_in(&hub, CARE, "sato", "correct horse").await.expect(200);
    let sid = claims(&hub, &first["access_token"]).await.sid;
    let logout = hub.call(CARE, "DELETE", "/v1/session").staff("sato", "care-manager", &sid);
    assert_eq!(logout.send().await.status, 204);
    assert!(has_ended(&hub, &sid).await);
    let after = refresh(&hub, &certificate(), &first["refresh_token"]).await;
    assert_eq!(after.refused(401), "refresh_failed");
    let anonymous = hub.call(CARE, "DELETE", "/v1/session").send().await;
    assert_eq!(anonymous.refused(401), "staff_token_missing");

    log_in(&hub, CARE, "sato", "correct horse").await.expect(200);
    let lock = json!({"office":"1370000001","id":"sato"});
    let locked = hub.admin("POST", "/staff/lock", lock).await.expect(200);
    assert_eq!(locked["sessions_ended"], 1);
    let closed = log_in(&hub, CARE, "sato", "correct horse").await;
    assert_eq!(closed.refused(401), "login_failed");
    let unknown = hub.admin("POST", "/staff/lock", json!({"office":"1370000001","id":"x"})).await;
    assert_eq!(unknown.refused(404), "no_staff");
}

#[tokio::test]
async fn staff_records_that_make_no_sense_are_refused() {
    let hub = TestHub::start().await;
    assert_eq!(add(&hub, "short").await.refused(422), "body_invalid");
    for (field, value) in [("id", "a b"), ("job", "wizard"), ("office", "1"), ("name", "")] {
        let mut body = json!({
            "office": "1370000001", "id": "sato", "name": "n", "job": "clerk",
            "password": "long enough",
        });
        body[field] = value.into();
        let answer = hub.admin("POST", "/staff", body).await;
        assert_eq!(answer.refused(422), "body_invalid", "{field}");
    }
    assert_eq!(hub.admin("GET", "/nowhere", Value::Null).await.refused(404), "no_such_operation");
}

#[tokio::test]
async fn what_staff_ask_for_needs_a_live_session_in_the_same_rows() {
    let hub = TestHub::start().await;
    hub.session(CARE, "s1", "care-manager", "sess").await;
    let plan = json!({"created_on":"2026-10-01","tables":{"1":{}}});
    let requests = [
        ("GET", "/v1/registrations".to_owned(), Value::Null),
        ("GET", "/v1/opinion-requests".to_owned(), Value::Null),
        ("GET", person("documents"), Value::Null),
        ("GET", person("certification"), Value::Null),
        ("GET", person("consents"), Value::Null),
        ("POST", person("documents/home-care-plan"), plan),
        (
            "POST",
            person("care-plan-requests"),
            json!({"starts_on":"2026-12-01","person_agreed":true}),
        ),
    ];
    let ask = async || {
        let mut answers = Vec::new();
        for (method, target, body) in &requests {
            let call = hub.call(CARE, method, target).staff("s1", "care-manager", "sess");
            let call = call.grant("home-care-plan", false, policies::decide::Needs::NONE);
            answers.push(call.json(body.clone()).send().await);
        }
        answers
    };
    for answer in ask().await {
        assert!(answer.status < 300, "{answer:?}");
    }
    for (breaks, mends) in [
        ("UPDATE sessions SET ended_at = 1", "UPDATE sessions SET ended_at = NULL"),
        ("UPDATE sessions SET refresh_until = 1", "UPDATE sessions SET refresh_until = 9e15"),
        ("UPDATE staff SET locked = 1", "UPDATE staff SET locked = 0"),
        (
            "UPDATE sessions SET certificate_sha256 = 'x' || certificate_sha256",
            "DELETE FROM sessions",
        ),
    ] {
        hub.sql(breaks).await;
        for answer in ask().await {
            assert_eq!(answer.refused(401), "staff_session_ended", "{breaks}");
        }
        hub.sql(mends).await;
    }
    let logout = hub.call(CARE, "DELETE", "/v1/session").staff("s1", "care-manager", "sess");
    assert_eq!(logout.send().await.status, 204);
}

#[tokio::test]
async fn a_failed_login_leaves_nothing_that_was_typed_in_the_audit_log() {
    let hub = TestHub::start().await;
    add(&hub, "correct horse").await.expect(201);
    log_in(&hub, CARE, "hunter2-typed-here", "x").await.refused(401);
    log_in(&hub, CARE, "sato", "wrong").await.refused(401);
    let entries = audit_log::read(&hub.path("audit"));
    let events: Vec<String> = entries
        .map(|entry| serde_json::to_string(&entry.unwrap().event).unwrap())
        .filter(|event| event.contains("session.login"))
        .collect();
    assert_eq!(events.len(), 4, "{events:?}");
    assert!(!events.concat().contains("hunter2"), "{events:?}");
    assert!(events[1].contains("staff unknown") && events[3].contains("staff sato"), "{events:?}");
}

/// The cookies that an answer sets: name, value, attributes.
fn cookies(head: &str) -> Vec<(String, String, String)> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let set = lines.filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    set.map(|(_, cookie)| {
        let (pair, attributes) = cookie.trim().split_once("; ").unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned(), attributes.to_owned())
    })
    .collect()
}

#[tokio::test]
async fn a_page_gets_its_tokens_in_cookies_and_refreshes_with_its_csrf_token() {
    let hub = TestHub::start().await;
    add(&hub, "correct horse").await.expect(201);
    let login = json!({"staff_id":"sato","password":"correct horse","form":"cookie"});
    let answer = hub.call(CARE, "POST", "/v1/session").json(login).send().await;
    let cookies_set = cookies(&answer.head_as_sent);
    let body = answer.expect(200);
    assert_eq!((&body["access_token"], &body["refresh_token"]), (&Value::Null, &Value::Null));
    let [staff, refresh_cookie, csrf] = &cookies_set[..] else { panic!("{cookies_set:?}") };
    let hidden = "Path=/; Secure; SameSite=Strict; HttpOnly";
    assert_eq!(staff.0, "__Host-sekisho-staff");
    assert_eq!(staff.2, format!("Max-Age=3600; {hidden}"));
    assert_eq!(refresh_cookie.0, "__Host-sekisho-refresh");
    assert_eq!(refresh_cookie.2, format!("Max-Age=28800; {hidden}"));
    assert_eq!(csrf.0, "__Host-sekisho-csrf");
    assert_eq!(csrf.2, "Max-Age=28800; Path=/; Secure; SameSite=Strict");
    assert_eq!(body["csrf_token"], csrf.1.as_str());
    let claimed = claims(&hub, &staff.1.as_str().into()).await.csrf.unwrap();
    assert_eq!(claimed, policies::browser_session::csrf_digest(&csrf.1));

    let again = |headers: Vec<(&'static str, String)>, body: Value| {
        let call = hub.call(CARE, "POST", "/v1/session/refresh");
        headers.into_iter().fold(call, |call, (name, value)| call.header(name, &value)).json(body)
    };
    let (token, csrf) = (refresh_cookie.1.clone(), csrf.1.clone());
    for wrong in ["", "x", &policies::browser_session::csrf_token("another")] {
        let headers =
            vec![("sekisho-refresh-token", token.clone()), ("sekisho-csrf", wrong.into())];
        assert_eq!(again(headers, json!({})).send().await.refused(403), "csrf_token_invalid");
    }
    let both = vec![("sekisho-refresh-token", token.clone()), ("sekisho-csrf", csrf.clone())];
    let doubled = again(both.clone(), json!({"refresh_token": token})).send().await;
    assert_eq!(doubled.refused(422), "body_invalid");
    assert_eq!(again(vec![], json!({})).send().await.refused(422), "body_invalid");
    let renewed = again(both, json!({})).send().await;
    assert_eq!(cookies(&renewed.head_as_sent).len(), 3);
    assert_ne!(renewed.expect(200)["csrf_token"], csrf.as_str());
}
