//! Consents: given, run out, withdrawn, and what a stale permit gets then.

use std::time::Duration;

use policies::decide::Needs;
use serde_json::{Value, json};

use super::harness::*;
use crate::clock;

async fn consent(hub: &TestHub, more: Value) -> Answer {
    let mut body = json!({"scope":"all","collected_by":"municipality","method":"paper"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    hub.call(CITY, "POST", &person("consents")).json(body).send().await
}

async fn view(hub: &TestHub) -> Answer {
    let call = hub.call(CARE, "GET", &person("documents/life-feedback"));
    call.grant("life-feedback", false, Needs::CONSENT).send().await
}

async fn hub_with_document() -> TestHub {
    let hub = TestHub::start().await;
    let target = person("documents/life-feedback?author_office=1370000002");
    let call = hub.call(LIFE, "POST", &target).grant("life-feedback", false, Needs::NONE);
    call.json(json!({"period":"2026-09","measures":[1]})).send().await.expect(201);
    hub
}

#[tokio::test]
async fn a_consent_opens_and_its_withdrawal_closes_at_once() {
    let hub = hub_with_document().await;
    assert_eq!(view(&hub).await.refused(403), "consent_required");
    consent(&hub, json!({"scope":["home-care-plan"]})).await.expect(201);
    assert_eq!(view(&hub).await.refused(403), "consent_required");
    let given = consent(&hub, json!({"from":"2026-01-01","evidence":"form 12"})).await.expect(201);
    assert_eq!((&given["state"], &given["from"]), (&json!("active"), &json!("2026-01-01")));
    view(&hub).await.expect(200);
    let target = person(&format!("consents/{}/withdrawal", given["id"]));
    for _ in 0..2 {
        let withdrawn = hub.call(PORTAL, "POST", &target).send().await.expect(200);
        assert_eq!(withdrawn["state"], "withdrawn");
        assert_eq!(view(&hub).await.refused(403), "consent_withdrawn");
    }
    let list = hub.call(CITY, "GET", &person("consents")).send().await.expect(200);
    let states: Vec<&Value> =
        list["consents"].as_array().unwrap().iter().map(|entry| &entry["state"]).collect();
    assert_eq!(states, ["withdrawn", "active"]);
    consent(&hub, json!({})).await.expect(201);
    view(&hub).await.expect(200);
}

#[tokio::test]
async fn a_consent_runs_out_by_itself() {
    let hub = hub_with_document().await;
    let until = clock::rfc3339(clock::now_s() + 1);
    consent(&hub, json!({ "until": until })).await.expect(201);
    view(&hub).await.expect(200);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(view(&hub).await.refused(403), "consent_expired");
    consent(&hub, json!({ "from": "2099-01-01" })).await.expect(201);
    assert_eq!(view(&hub).await.refused(403), "consent_expired");
}

#[tokio::test]
async fn consents_that_make_no_sense_are_refused() {
    let hub = TestHub::start().await;
    for bad in [
        json!({"scope":["benefit-claims"]}),
        json!({"scope":["holiday-photos"]}),
        json!({"scope":[]}),
        json!({"from":"yesterday"}),
        json!({"from":"2026-02-01","until":"2026-01-01"}),
        json!({"method":"shouted"}),
        json!({"evidence":"x".repeat(500)}),
        json!({"surprise":true}),
    ] {
        assert_eq!(consent(&hub, bad.clone()).await.refused(422), "body_invalid", "{bad}");
    }
    let target = person("consents/99/withdrawal");
    let none = hub.call(PORTAL, "POST", &target).send().await;
    assert_eq!(none.refused(404), "no_consent");
}

#[tokio::test]
async fn a_consent_of_one_person_is_none_of_another() {
    let hub = hub_with_document().await;
    let id = consent(&hub, json!({})).await.expect(201)["id"].clone();
    let target = format!("/v1/insured/131016/0000000002/consents/{id}/withdrawal");
    assert_eq!(hub.call(PORTAL, "POST", &target).send().await.refused(404), "no_consent");
    view(&hub).await.expect(200);
}
