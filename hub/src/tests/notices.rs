//! Opinion requests, the inbox, 届出 and go-live.

use policies::decide::Needs;
use policies::feed::Fact;
use serde_json::{Value, json};

use super::harness::*;

async fn inbox(hub: &TestHub) -> Vec<Value> {
    let call = hub.call(CITY, "GET", "/v1/municipalities/131016/inbox");
    call.send().await.expect(200)["items"].as_array().unwrap().clone()
}

async fn receipt(hub: &TestHub, id: &Value, body: Value) -> Answer {
    let target = format!("/v1/municipalities/131016/inbox/{id}/receipt");
    hub.call(CITY, "POST", &target).json(body).send().await
}

fn opinion(mut more: Value) -> Value {
    let mut body = json!({"written_on":"2026-10-01","institution":"見本病院","opinion":"安定"});
    body.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
    body
}

#[tokio::test]
async fn an_opinion_is_asked_for_submitted_received_and_asked_for_no_more() {
    let hub = TestHub::start().await;
    let submit = async |content: Value| {
        let call = hub.call(HOSPITAL, "POST", &person("documents/physician-opinion"));
        call.grant("physician-opinion", false, Needs::OPINION_REQUEST).json(content).send().await
    };
    assert_eq!(submit(opinion(json!({}))).await.refused(403), "opinion_request_missing");
    let ask = async || {
        let call = hub.call(CITY, "POST", &person("opinion-requests"));
        call.json(json!({"office":"1310000001","due":"2026-11-30"})).send().await
    };
    let id = ask().await.expect(201)["id"].clone();
    assert_eq!(ask().await.expect(200)["id"], id);
    let requests = async || {
        let call = hub.call(HOSPITAL, "GET", "/v1/opinion-requests");
        call.send().await.expect(200)["opinion_requests"].clone()
    };
    assert_eq!(requests().await[0]["state"], "open");
    let foreign = submit(opinion(json!({"request_id": 77}))).await;
    assert_eq!(foreign.refused(422), "body_invalid");
    submit(opinion(json!({"request_id": id}))).await.expect(201);
    assert_eq!(requests().await[0]["state"], "answered");
    assert_eq!(submit(opinion(json!({}))).await.refused(403), "opinion_request_missing");

    let items = inbox(&hub).await;
    assert_eq!(items.len(), 1);
    assert_eq!(
        (&items[0]["kind"], &items[0]["from"]),
        (&json!("physician-opinion"), &json!("office/1310000001"))
    );
    let target = format!("/v1/municipalities/131016/inbox/{}", items[0]["id"]);
    let item = hub.call(CITY, "GET", &target).send().await.expect(200);
    assert_eq!(item["content"]["opinion"], "安定");
    let first = receipt(&hub, &items[0]["id"], json!({})).await.expect(200);
    let again = receipt(&hub, &items[0]["id"], json!({})).await.expect(200);
    assert_eq!(first["received_at"], again["received_at"]);
    let judged = receipt(&hub, &items[0]["id"], json!({"accepted": true})).await;
    assert_eq!(judged.refused(422), "body_invalid");
    let history = hub.call(PORTAL, "GET", &person("access-history")).send().await.expect(200);
    assert_eq!(history["accesses"][0]["action"], "inbox.view");
    let ever = hub.call(HOSPITAL, "GET", &person("documents/physician-opinion"));
    ever.grant("physician-opinion", false, Needs::OPINION_REQUEST_EVER).send().await.expect(200);
}

#[tokio::test]
async fn an_accepted_notice_makes_the_office_the_planning_one() {
    let hub = TestHub::start().await;
    let file = async |office: &str, agreed: bool| {
        let call = hub.call(office, "POST", &person("care-plan-requests"));
        call.json(json!({"starts_on":"2026-12-01","person_agreed":agreed})).send().await
    };
    assert_eq!(file(CARE, false).await.refused(422), "agreement_required");
    file(CARE, true).await.expect(201);
    let plans = async |office: &str| {
        hub.call(office, "GET", &person("certification")).needs(Needs::PLANS_FOR).send().await
    };
    assert_eq!(plans(CARE).await.refused(403), "not_planning_office");
    let id = inbox(&hub).await[0]["id"].clone();
    receipt(&hub, &id, json!({})).await.expect(200);
    assert_eq!(plans(CARE).await.refused(403), "not_planning_office");
    receipt(&hub, &id, json!({"accepted": true})).await.expect(200);
    receipt(&hub, &id, json!({"accepted": true})).await.expect(200);
    assert_eq!(receipt(&hub, &id, json!({"accepted": false})).await.refused(409), "already_judged");
    plans(CARE).await.expect(200);

    file(DAY_CARE, true).await.expect(201);
    let id = inbox(&hub).await[1]["id"].clone();
    receipt(&hub, &id, json!({"accepted": true})).await.expect(200);
    plans(DAY_CARE).await.expect(200);
    assert_eq!(plans(CARE).await.refused(403), "not_planning_office");
    let facts = hub.facts().await;
    let active = |number: &str, active| Fact::PlansFor {
        office: number.parse().unwrap(),
        insured: INSURED.parse().unwrap(),
        active,
    };
    assert!(
        facts.contains(&active("1370000001", false)) && facts.contains(&active("1370000002", true))
    );
}

#[tokio::test]
async fn a_facility_plan_makes_the_facility_the_planning_office() {
    let hub = TestHub::start().await;
    let plan = json!({"created_on":"2026-10-01","tables":{"1":{"policy":"x"}}});
    hub.store(DAY_CARE, "facility-care-plan", plan).await.expect(201);
    let call = hub.call(DAY_CARE, "GET", &person("certification")).needs(Needs::PLANS_FOR);
    call.send().await.expect(200);
}

#[tokio::test]
async fn an_inbox_is_its_municipalitys_own() {
    let hub = TestHub::start().await;
    let other = "municipality/131024/terminal/kaigo-1";
    let foreign = hub.call(other, "GET", "/v1/municipalities/131016/inbox").send().await;
    assert_eq!(foreign.refused(403), "not_own_insurer");
    let office = hub.call(CARE, "GET", "/v1/municipalities/131016/inbox").send().await;
    assert_eq!(office.refused(403), "not_own_insurer");
    hub.store(HOSPITAL, "physician-opinion", opinion(json!({}))).await.expect(201);
    let id = inbox(&hub).await[0]["id"].clone();
    let target = format!("/v1/municipalities/131024/inbox/{id}");
    assert_eq!(hub.call(other, "GET", &target).send().await.refused(404), "no_inbox_item");
    let after = format!("/v1/municipalities/131016/inbox?after={id}");
    let after = hub.call(CITY, "GET", &after).send().await.expect(200);
    assert_eq!(after["items"], json!([]));
}

#[tokio::test]
async fn go_live_lies_ahead_or_is_taken_back() {
    let hub = TestHub::start().await;
    let set = async |from: Value| {
        let call = hub.call(CITY, "PUT", "/v1/municipalities/131016/sharing");
        call.json(json!({ "from": from })).send().await
    };
    let live =
        async || hub.call(CARE, "GET", &person("certification")).needs(Needs::LIVE).send().await;
    assert_eq!(live().await.refused(403), "not_live");
    set(json!("2099-04-01")).await.expect(200);
    assert_eq!(live().await.refused(403), "not_live");
    assert_eq!(set(json!("2026-04-01")).await.expect(200)["from"], "2026-04-01");
    live().await.expect(200);
    set(Value::Null).await.expect(200);
    assert_eq!(live().await.refused(403), "not_live");
    assert_eq!(set(json!("soon")).await.refused(422), "body_invalid");
}

async fn file_notice(hub: &TestHub, office: &str) -> Value {
    let call = hub.call(office, "POST", &person("care-plan-requests"));
    let body = json!({"starts_on":"2026-12-01","person_agreed":true,"address":"見本市1-1"});
    call.json(body).send().await.expect(201);
    inbox(hub).await.last().unwrap()["id"].clone()
}

async fn plans(hub: &TestHub, office: &str) -> Answer {
    hub.call(office, "GET", &person("certification")).needs(Needs::PLANS_FOR).send().await
}

#[tokio::test]
async fn an_older_notice_does_not_undo_a_newer_one() {
    let hub = TestHub::start().await;
    let older = file_notice(&hub, CARE).await;
    let newer = file_notice(&hub, DAY_CARE).await;
    receipt(&hub, &newer, json!({"accepted": true})).await.expect(200);
    let refused = receipt(&hub, &older, json!({"accepted": true})).await;
    assert_eq!(refused.refused(409), "newer_notice_accepted");
    assert_eq!(plans(&hub, CARE).await.refused(403), "not_planning_office");
    plans(&hub, DAY_CARE).await.expect(200);
    receipt(&hub, &older, json!({"accepted": false})).await.expect(200);
}

#[tokio::test]
async fn a_takeover_ends_the_notice_and_leaves_the_facility_plan() {
    let hub = TestHub::start().await;
    let plan = json!({"created_on":"2026-10-01","tables":{"1":{"policy":"x"}}});
    hub.store(CARE, "facility-care-plan", plan.clone()).await.expect(201);
    for office in [CARE, DAY_CARE] {
        let notice = file_notice(&hub, office).await;
        receipt(&hub, &notice, json!({"accepted": true})).await.expect(200);
        plans(&hub, CARE).await.expect(200);
        plans(&hub, office).await.expect(200);
    }
    let ended = |fact: &Fact| matches!(fact, Fact::PlansFor { active: false, .. });
    assert!(!hub.facts().await.iter().any(ended));
    // The other way round: the notice ends also where a facility plan came after it.
    hub.store(DAY_CARE, "facility-care-plan", plan).await.expect(201);
    let notice = file_notice(&hub, CARE).await;
    receipt(&hub, &notice, json!({"accepted": true})).await.expect(200);
    let mut tx = hub.hub.store.read().await.unwrap();
    let sources: Vec<(String, String)> = sqlx::query_as(
        "SELECT office, source FROM plans_for WHERE active = 1 ORDER BY office, source",
    )
    .fetch_all(&mut *tx)
    .await
    .unwrap();
    let sources: Vec<(&str, &str)> = sources.iter().map(|(o, s)| (&**o, &**s)).collect();
    let expected = [
        ("1370000001", "care-plan-request"),
        ("1370000001", "facility-care-plan"),
        ("1370000002", "facility-care-plan"),
    ];
    assert_eq!(sources, expected);
}

#[tokio::test]
async fn an_address_read_from_the_inbox_stands_in_the_access_history() {
    let hub = TestHub::start().await;
    let id = file_notice(&hub, CARE).await;
    let target = format!("/v1/municipalities/131016/inbox/{id}");
    let item = hub.call(CITY, "GET", &target).send().await.expect(200);
    assert_eq!((&item["id"], &item["content"]["address"]), (&id, &json!("見本市1-1")));
    let history = hub.call(PORTAL, "GET", &person("access-history")).send().await.expect(200);
    let access = &history["accesses"][0];
    assert_eq!(access["action"], "care-plan-requests.view");
    assert_eq!(access["party"], "municipality/131016");
    assert_eq!(access["document_kind_ja"], "居宅サービス計画作成依頼届出");
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let hub = TestHub::start().await;
    hub.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 501)
         INSERT INTO inbox (insurer, number, kind, sender, at)
         SELECT '131016', '0000000001', 'care-plan-request', 'p', i FROM n",
    )
    .await;
    hub.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 501)
         INSERT INTO opinion_requests (insurer, number, office, due, requested_by, requested_at)
         SELECT '131016', '0000000001', '1310000001', '2026-12-01', 'm', i FROM n",
    )
    .await;
    let page = async |principal: &str, target: &str, list: &str| {
        let page = hub.call(principal, "GET", target).send().await.expect(200);
        (page[list].as_array().unwrap().len(), page["next"].clone())
    };
    let items = "/v1/municipalities/131016/inbox";
    assert_eq!(page(CITY, items, "items").await, (500, json!(500)));
    let rest = format!("{items}?after=500");
    assert_eq!(page(CITY, &rest, "items").await, (1, Value::Null));
    let (asked, list) = ("/v1/opinion-requests", "opinion_requests");
    assert_eq!(page(HOSPITAL, asked, list).await, (500, json!(2)));
    let rest = format!("{asked}?before=2");
    assert_eq!(page(HOSPITAL, &rest, list).await, (1, Value::Null));
}
