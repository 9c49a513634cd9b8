//! Issue 6 point 7: every answer about a person says whom it is about and what is in it.

use policies::decide::Needs;
use policies::declared::{INSURED_HEADER, KINDS_HEADER};
use serde_json::{Value, json};

use super::harness::*;
use crate::routes;

/// The values of one header.
fn values<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    let pairs = answer.head.lines().filter_map(|line| line.split_once(':'));
    pairs.filter(|(found, _)| *found == name).map(|(_, value)| value.trim()).collect()
}

/// One call of every operation about a person, with the kinds that its answer holds. `item` is the
/// inbox item of the opinion that was stored.
fn calls(item: &Value) -> Vec<(&'static str, &'static str, String, Value, &'static str)> {
    let step = json!({"stage":"applied","on":"2026-10-01"});
    let request = json!({"office":"1310000001","due":"2026-11-30"});
    let notice = json!({"starts_on":"2026-12-01","person_agreed":true});
    let consent = json!({"scope":"all","method":"paper"});
    let opinion = person("documents/physician-opinion");
    let (versions, version) = (format!("{opinion}/versions"), format!("{opinion}/versions/1"));
    let survey = json!({"surveyed_on":"2026-10-01","overview":"a","items":{"1-1":2},"remarks":"b"});
    let (inbox, none) = (format!("/v1/municipalities/131016/inbox/{item}"), Value::Null);
    vec![
        (CITY, "GET", person("documents"), none.clone(), "physician-opinion"),
        (CITY, "GET", opinion, none.clone(), "physician-opinion"),
        (CITY, "GET", versions, none.clone(), "physician-opinion"),
        (CITY, "GET", version, none.clone(), "physician-opinion"),
        (CITY, "POST", person("documents/certification-survey"), survey, "certification-survey"),
        (CITY, "GET", person("documents"), none.clone(), "certification-survey,physician-opinion"),
        (CITY, "POST", person("consents"), consent, ""),
        (CITY, "GET", person("consents"), none.clone(), ""),
        (CITY, "POST", person("consents/1/withdrawal"), json!({}), ""),
        (CITY, "POST", person("certification"), step, ""),
        (CITY, "GET", person("certification"), none.clone(), ""),
        (CITY, "POST", person("opinion-requests"), request, ""),
        (CARE, "POST", person("care-plan-requests"), notice, ""),
        (PORTAL, "GET", person("access-history"), none.clone(), ""),
        (CITY, "GET", inbox.clone(), none, "physician-opinion"),
        (CITY, "POST", format!("{inbox}/receipt"), json!({}), ""),
    ]
}

#[tokio::test]
async fn every_operation_about_a_person_declares_person_and_kinds() {
    let hub = TestHub::start().await;
    let opinion = json!({"written_on":"2026-10-01","institution":"x","opinion":"y"});
    hub.store(HOSPITAL, "physician-opinion", opinion).await.expect(201);
    let inbox = hub.call(CITY, "GET", "/v1/municipalities/131016/inbox").send().await.expect(200);
    let mut declared: Vec<String> = Vec::new();
    for (principal, method, target, body, kinds) in calls(&inbox["items"][0]["id"]) {
        let mut call = hub.call(principal, method, &target);
        for kind in ["physician-opinion", "certification-survey"] {
            call = call.grant(kind, false, Needs::NONE);
        }
        declared.push(call.claims.operation.clone());
        let answer = if body.is_null() { call } else { call.json(body) }.send().await;
        assert!((200..300).contains(&answer.status), "{method} {target}: {}", answer.json);
        assert_eq!(values(&answer, INSURED_HEADER), [INSURED], "{method} {target}");
        assert_eq!(values(&answer, KINDS_HEADER), [kinds], "{method} {target}");
    }
    for route in routes::table() {
        let of_person = route.path.contains("{number}") || route.path.contains("{item}");
        let is_called = declared.iter().any(|operation| operation == route.operation);
        assert_eq!(of_person, is_called, "{}: is it about one person?", route.operation);
    }
}
