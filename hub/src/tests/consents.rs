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

async fn by(hub: &TestHub, principal: &str, body: Value) -> Answer {
    hub.call(principal, "POST", &person("consents")).json(body).send().await
}

#[tokio::test]
async fn who_took_a_consent_follows_from_who_records_it() {
    let hub = TestHub::start().await;
    for (principal, word) in [(CITY, "municipality"), (PORTAL, "portal"), (CARE, "office")] {
        let body = json!({"scope":"all","method":"paper","evidence":"form 1"});
        let recorded = by(&hub, principal, body.clone()).await.expect(201);
        assert_eq!(recorded["collected_by"], word);
        let mut false_word = body;
        false_word["collected_by"] = if word == "portal" { "office" } else { "portal" }.into();
        assert_eq!(by(&hub, principal, false_word).await.refused(422), "body_invalid");
    }
    let body = json!({"scope":"all","method":"paper","evidence":"form 1"});
    assert_eq!(by(&hub, LIFE, body).await.refused(403), "not_shared");
}

#[tokio::test]
async fn an_office_records_with_evidence_and_from_today_on() {
    let hub = TestHub::start().await;
    let bare = json!({"scope":"all","method":"paper"});
    assert_eq!(by(&hub, CARE, bare.clone()).await.refused(422), "body_invalid");
    by(&hub, CITY, bare).await.expect(201);
    let from = |day: u64| {
        let day = clock::print_begin(clock::today_begin(clock::now_s()) - day * 86_400);
        json!({"scope":"all","method":"paper","evidence":"form 1","from":day})
    };
    assert_eq!(by(&hub, CARE, from(1)).await.refused(422), "body_invalid");
    by(&hub, CITY, from(1)).await.expect(201);
    by(&hub, CARE, from(0)).await.expect(201);
}

#[tokio::test]
async fn what_the_person_withdrew_an_office_does_not_record_anew() {
    let hub = TestHub::start().await;
    let scope = |kinds: Value| json!({"scope":kinds,"method":"paper","evidence":"form 1"});
    let withdraw = async |principal: &str, id: &Value| {
        let target = person(&format!("consents/{id}/withdrawal"));
        hub.call(principal, "POST", &target).send().await.expect(200);
    };
    for person_side in [PORTAL, CITY] {
        let given = by(&hub, CITY, scope(json!(["life-feedback"]))).await.expect(201);
        withdraw(person_side, &given["id"]).await;
        for kinds in [json!("all"), json!(["home-care-plan", "life-feedback"])] {
            let refused = by(&hub, CARE, scope(kinds)).await;
            assert_eq!(refused.refused(409), "consent_withdrawn_by_person");
        }
    }
    by(&hub, CARE, scope(json!(["home-care-plan"]))).await.expect(201);
    by(&hub, PORTAL, scope(json!("all"))).await.expect(201);
    let own = by(&hub, CARE, scope(json!("all"))).await.expect(201);
    withdraw(CARE, &own["id"]).await;
    by(&hub, CARE, scope(json!("all"))).await.expect(201);
}
