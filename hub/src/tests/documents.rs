//! Storing, listing and delivering documents; the access history.

use policies::decide::Needs;
use serde_json::{Value, json};

use super::harness::*;

fn survey(overview: &str) -> Value {
    json!({"surveyed_on":"2026-10-01","overview":overview,"items":{"1-1":2},"remarks":"なし"})
}

fn card() -> Value {
    json!({ "valid_from": "2026-04-01", "valid_until": "2027-03-31", "care_level": "22" })
}

const READ: Needs = Needs::LIVE.union(Needs::REGISTERED);

#[tokio::test]
async fn versions_are_kept_and_the_newest_is_shown() {
    let hub = TestHub::start().await;
    for (version, overview) in [(1, "first"), (2, "second")] {
        let stored = hub.store(CITY, "certification-survey", survey(overview)).await.expect(201);
        assert_eq!(stored["version"], version);
        assert_eq!(stored["author"], "municipality/131016");
    }
    let get = async |rest: &str| {
        let call = hub.call(CITY, "GET", &person(&format!("documents/certification-survey{rest}")));
        call.grant("certification-survey", false, Needs::NONE).send().await
    };
    let newest = get("").await.expect(200);
    assert_eq!(newest["content"]["overview"], "second");
    assert_eq!(newest["kind_ja"], "認定調査票");
    assert_eq!(get("/versions/1").await.expect(200)["content"]["overview"], "first");
    assert_eq!(get("/versions/3").await.refused(404), "no_document");
    let versions = get("/versions").await.expect(200);
    let numbers: Vec<&Value> =
        versions["versions"].as_array().unwrap().iter().map(|v| &v["version"]).collect();
    assert_eq!(numbers, [2, 1]);
}

#[tokio::test]
async fn a_stale_permit_delivers_nothing_that_own_rows_do_not_bear_out() {
    let hub = TestHub::start().await;
    hub.store(CITY, "insured-card", card()).await.expect(201);
    let view = async || {
        let call = hub.call(CARE, "GET", &person("documents/insured-card"));
        call.grant("insured-card", false, READ).send().await
    };
    let answer = view().await;
    assert_eq!(answer.refused(403), "not_registered");
    assert_eq!(answer.json["missing"], json!(["not_registered"]));
    hub.register(CARE).await;
    assert_eq!(view().await.refused(403), "not_live");
    hub.go_live().await;
    view().await.expect(200);
    let end = json!({"office":"1370000001","insured":insured(),"reason":"moved","operator":"op"});
    hub.admin("POST", "/registrations/end", end.clone()).await.expect(200);
    assert_eq!(view().await.refused(403), "registration_lapsed");
    assert_eq!(hub.admin("POST", "/registrations/end", end).await.refused(404), "no_registration");
    hub.register(CARE).await;
    view().await.expect(200);
}

#[tokio::test]
async fn a_registration_lapses_by_itself() {
    let hub = TestHub::start().await;
    hub.go_live().await;
    hub.store(CITY, "insured-card", card()).await.expect(201);
    let until = crate::clock::rfc3339(crate::clock::now_s() + 1);
    let office = "1370000001";
    let body = json!({
        "office": office, "insured": insured(), "until": until, "reason": "t", "operator": "o",
    });
    hub.admin("POST", "/registrations", body).await.expect(201);
    let view = async || {
        let call = hub.call(CARE, "GET", &person("documents/insured-card"));
        call.grant("insured-card", false, READ).send().await
    };
    view().await.expect(200);
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    assert_eq!(view().await.refused(403), "registration_lapsed");
    let list = hub.call(CARE, "GET", "/v1/registrations").send().await.expect(200);
    assert_eq!(list["registrations"][0]["state"], "lapsed");
}

#[tokio::test]
async fn own_only_shows_what_the_office_itself_wrote() {
    let hub = TestHub::start().await;
    let opinion = |text: &str| json!({"written_on":"2026-10-01","institution":"x","opinion":text});
    hub.store(HOSPITAL, "physician-opinion", opinion("ours")).await.expect(201);
    hub.store(DAY_CARE, "physician-opinion", opinion("theirs")).await.expect(201);
    let view = hub.call(HOSPITAL, "GET", &person("documents/physician-opinion"));
    let own = view.grant("physician-opinion", true, Needs::NONE).send().await.expect(200);
    assert_eq!((&own["content"]["opinion"], &own["version"]), (&json!("ours"), &json!(1)));
    let other = hub.call(HOSPITAL, "GET", &person("documents/physician-opinion/versions/2"));
    let other = other.grant("physician-opinion", true, Needs::NONE).send().await;
    assert_eq!(other.refused(404), "no_document");
    // Where everything would need a consent that is missing, that is what is told.
    let nothing_own = hub.call(CARE, "GET", &person("documents/physician-opinion"));
    let nothing_own = nothing_own.grant("physician-opinion", false, Needs::CONSENT).grant(
        "physician-opinion",
        true,
        Needs::NONE,
    );
    assert_eq!(nothing_own.send().await.refused(403), "consent_required");
}

#[tokio::test]
async fn a_list_holds_only_kinds_that_are_granted_and_borne_out() {
    let hub = TestHub::start().await;
    hub.go_live().await;
    hub.register(CARE).await;
    hub.store(CITY, "insured-card", card()).await.expect(201);
    hub.store(CITY, "certification-survey", survey("x")).await.expect(201);
    hub.store(CITY, "burden-ratio", json!({"ratio":1,"valid_from":"2026-08-01"})).await.expect(201);
    let list = hub.call(CARE, "GET", &person("documents")).needs(READ);
    let list = list
        .grant("insured-card", false, READ)
        .grant("certification-survey", false, READ.union(Needs::CONSENT))
        .grant("housing-equipment", false, READ);
    let list = list.send().await.expect(200);
    let kinds: Vec<&Value> =
        list["documents"].as_array().unwrap().iter().map(|entry| &entry["kind"]).collect();
    assert_eq!(kinds, ["insured-card"]);
    assert_eq!(list["documents"][0]["own"], false);
    assert_eq!(list["insured"], insured());
    let stranger = hub.call(DAY_CARE, "GET", &person("documents")).needs(READ);
    let stranger = stranger.grant("insured-card", false, Needs::NONE).send().await;
    assert_eq!(stranger.refused(403), "not_registered");
}

#[tokio::test]
async fn documents_that_are_not_complete_are_refused_with_every_problem() {
    let hub = TestHub::start_with("document_bytes_max = 1024\n").await;
    let answer = hub.store(CITY, "insured-card", json!({"care_level": ""})).await;
    assert_eq!(answer.refused(422), "document_invalid");
    assert_eq!(answer.json["problems"].as_array().unwrap().len(), 3);
    let mut large = card();
    large["note"] = "x".repeat(2_000).into();
    assert_eq!(hub.store(CITY, "insured-card", large).await.refused(413), "body_too_large");
    let text = hub.call(CITY, "POST", &person("documents/insured-card"));
    let text = text.grant("insured-card", false, Needs::NONE).bytes("text/plain", b"{}".to_vec());
    assert_eq!(text.send().await.refused(415), "content_type");
    let ungranted = hub.call(CITY, "POST", &person("documents/insured-card")).json(card());
    assert_eq!(ungranted.send().await.refused(403), "not_shared");
    let view = hub.call(CITY, "GET", &person("documents/insured-card"));
    let view = view.grant("insured-card", false, Needs::NONE).send().await;
    assert_eq!(view.refused(404), "no_document");
}

#[tokio::test]
async fn a_national_system_stores_for_the_office_that_made_it() {
    let hub = TestHub::start().await;
    let content = json!({"period":"2026-09","measures":[{"adl":80}]});
    let post = async |principal: &str, query: &str| {
        let call = hub.call(principal, "POST", &person(&format!("documents/life-feedback{query}")));
        call.grant("life-feedback", false, Needs::NONE).json(content.clone()).send().await
    };
    assert_eq!(post(LIFE, "").await.refused(422), "body_invalid");
    assert_eq!(post(LIFE, "?author_office=x").await.refused(422), "query_invalid");
    assert_eq!(post(CITY, "?author_office=1370000002").await.refused(403), "not_author");
    let stored = post(LIFE, "?author_office=1370000002").await.expect(201);
    assert_eq!(stored["author"], "office/1370000002");
    let own = hub.call(DAY_CARE, "GET", &person("documents/life-feedback"));
    own.grant("life-feedback", true, Needs::NONE).send().await.expect(200);
}

#[tokio::test]
async fn every_delivery_stands_in_the_access_history() {
    let hub = TestHub::start().await;
    hub.store(CITY, "insured-card", card()).await.expect(201);
    hub.session(CARE, "s1", "care-manager", "sess").await;
    let view = hub.call(CARE, "GET", &person("documents/insured-card"));
    let view = view.grant("insured-card", false, Needs::NONE).staff("s1", "care-manager", "sess");
    view.send().await.expect(200);
    let view = hub.call(PORTAL, "GET", &person("documents/insured-card/versions/1"));
    view.grant("insured-card", false, Needs::NONE).send().await.expect(200);
    let refused = hub.call(DAY_CARE, "GET", &person("documents/insured-card"));
    refused.grant("insured-card", false, READ).send().await.refused(403);
    let history = hub.call(PORTAL, "GET", &person("access-history")).send().await.expect(200);
    let accesses = history["accesses"].as_array().unwrap();
    assert_eq!(accesses.len(), 2, "{history}");
    assert_eq!(accesses[0]["party"], "system/portal");
    assert_eq!(accesses[1]["party"], "office/1370000001");
    assert_eq!(accesses[1]["staff_job"], "care-manager");
    assert_eq!(accesses[1]["document_kind_ja"], "被保険者証");
    assert_eq!(accesses[1]["action"], "documents.view");
}

#[tokio::test]
async fn every_write_is_announced_and_recorded() {
    let hub = TestHub::start().await;
    hub.store(CITY, "insured-card", card()).await.expect(201);
    assert_eq!(hub.audit("documents.store"), ["intent", "effect", "outcome:done"]);
    let refused = hub.call(CITY, "POST", &person("consents")).json(json!({
        "scope": [], "collected_by": "municipality", "method": "paper",
    }));
    assert_eq!(refused.send().await.refused(422), "body_invalid");
    assert_eq!(hub.audit("consents.record"), ["intent", "outcome:body_invalid"]);
    let text: String = std::fs::read_dir(hub.path("audit"))
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap_or_default())
        .collect();
    assert!(!text.contains("0000000001") && !text.contains("care_level"), "{text}");
}

#[tokio::test]
async fn records_name_certificate_staff_person_and_document() {
    let hub = TestHub::start().await;
    hub.session(CARE, "s1", "care-manager", "sess").await;
    let plan = json!({"created_on": "2026-10-01", "tables": {"1": [1]}});
    let store = hub.call(CARE, "POST", &person("documents/home-care-plan"));
    let store = store.grant("home-care-plan", false, Needs::NONE);
    store.staff("s1", "care-manager", "sess").json(plan).send().await.expect(201);
    hub.go_live().await;
    let entries = audit_log::read(&hub.path("audit"));
    let events: Vec<Value> =
        entries.map(|entry| serde_json::to_value(entry.unwrap().event).unwrap()).collect();
    let of = |action: &str| -> Vec<&Value> {
        events.iter().filter(|event| event["action"] == action).collect()
    };
    let stored = of("documents.store");
    assert_eq!(stored.len(), 3);
    let actor = json!({"principal": CARE, "office": "1370000001", "serial": "01ab", "staff": "s1",
                       "job": "care-manager"});
    assert!(stored.iter().all(|event| event["actor"] == actor), "{stored:?}");
    assert!(stored.iter().all(|event| event["request_id"] == "req-1"), "{stored:?}");
    let mut object =
        json!({"insured": hub.hub.pseudonym.of(INSURED), "document": "home-care-plan"});
    assert_eq!(stored[0]["object"], object, "the version is not known before");
    object["document_id"] = "1".into();
    assert!(stored[1..].iter().all(|event| event["object"] == object), "{stored:?}");
    assert_eq!(of("sharing.set")[0]["object"], json!({"name": "municipality/131016"}));
    let set = of("staff.set")[0];
    assert_eq!(set["actor"], json!({"principal": "operator/admin"}));
    assert_eq!(set["object"], json!({"name": "office/1370000001 staff s1"}));
}

#[tokio::test]
async fn certification_moves_forward_only() {
    let hub = TestHub::start().await;
    let step = async |body: Value| {
        hub.call(CITY, "POST", &person("certification")).json(body).send().await
    };
    let before = hub.call(CARE, "GET", &person("certification")).send().await.expect(200);
    assert_eq!(before["stage"], Value::Null);
    let survey = json!({"stage":"survey-done","on":"2026-10-05"});
    assert_eq!(step(survey.clone()).await.refused(409), "certification_stage");
    step(json!({"stage":"applied","on":"2026-10-01"})).await.expect(200);
    step(survey.clone()).await.expect(200);
    assert_eq!(step(survey).await.refused(409), "certification_stage");
    let decided = json!({"stage":"decided","on":"2026-11-01"});
    assert_eq!(step(decided).await.refused(422), "body_invalid");
    let result = json!({"care_level":"22","valid_from":"2026-11-01","valid_until":"2027-10-31"});
    step(json!({"stage":"decided","on":"2026-11-01","result":result})).await.expect(200);
    step(json!({"stage":"applied","on":"2027-09-01"})).await.expect(200);
    let now = hub.call(CARE, "GET", &person("certification")).send().await.expect(200);
    assert_eq!(now["stage"], "applied");
    assert_eq!(now["result"], result);
    assert_eq!(now["history"].as_array().unwrap().len(), 4);
    let stranger = hub.call(CARE, "GET", &person("certification")).needs(READ).send().await;
    assert_eq!(stranger.refused(403), "not_registered");
}

#[tokio::test]
async fn an_operator_registers_only_in_a_demo() {
    let hub = TestHub::start_with("demo = false\n").await;
    let body = json!({"office":"1370000001","insured":insured(),"reason":"x","operator":"op"});
    let answer = hub.admin("POST", "/registrations", body).await;
    assert_eq!(answer.refused(403), "not_in_production");
    assert_eq!(hub.audit("registrations.record"), ["intent", "outcome:not_in_production"]);
    let status = hub.admin("GET", "/status", Value::Null).await.expect(200);
    assert_eq!((&status["registrations"], &status["demo"]), (&json!(0), &json!(false)));
}

#[tokio::test]
async fn a_document_is_delivered_as_it_came() {
    let hub = TestHub::start().await;
    let content = r#"{"period": "2026-09","measures":[1.10,12345678901234567890123,1E-7], "a":0}"#;
    let target = person("documents/life-feedback?author_office=1370000002");
    let store = |body: &str| {
        let call = hub.call(LIFE, "POST", &target).grant("life-feedback", false, Needs::NONE);
        call.bytes("application/json", body.as_bytes().to_vec()).send()
    };
    store(content).await.expect(201);
    let view = hub.call(DAY_CARE, "GET", &person("documents/life-feedback"));
    let view = view.grant("life-feedback", false, Needs::NONE).send().await;
    assert!(view.text.contains(content), "{}", view.text);
    let doubled = store(r#"{"period":"a","measures":[1],"period":"b"}"#).await;
    assert_eq!(doubled.refused(422), "document_invalid");
    assert_eq!(doubled.json["problems"][0]["field"], "period");
}

#[tokio::test]
async fn certification_and_its_readers_stand_in_the_access_history() {
    let hub = TestHub::start().await;
    let view = async || hub.call(CARE, "GET", &person("certification")).send().await.expect(200);
    view().await;
    let step = hub.call(CITY, "POST", &person("certification"));
    step.json(json!({"stage":"applied","on":"2026-10-01"})).send().await.expect(200);
    view().await;
    let history = hub.call(PORTAL, "GET", &person("access-history")).send().await.expect(200);
    let accesses = history["accesses"].as_array().unwrap();
    assert_eq!(accesses.len(), 1, "{history}");
    assert_eq!(accesses[0]["action"], "certification.view");
    assert_eq!(accesses[0]["party"], "office/1370000001");
    assert_eq!(accesses[0]["version"], Value::Null);
}

#[tokio::test]
async fn the_access_history_comes_in_pages() {
    let hub = TestHub::start().await;
    hub.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1001)
         INSERT INTO accesses (insurer, number, at, party, principal, kind, version, action,
         request_id)
         SELECT '131016', '0000000001', i, 'p', 'p', 'insured-card', i, 'a', 'r' FROM n",
    )
    .await;
    let page = async |query: &str| {
        hub.call(PORTAL, "GET", &person(&format!("access-history{query}"))).send().await
    };
    let first = page("").await.expect(200);
    assert_eq!(first["accesses"].as_array().unwrap().len(), 1_000);
    let next = first["next"].as_str().unwrap();
    let last = page(&format!("?before={next}")).await.expect(200);
    assert_eq!(last["accesses"].as_array().unwrap().len(), 1);
    assert_eq!((&last["accesses"][0]["version"], &last["next"]), (&json!(1), &Value::Null));
    let more = format!("?before={next}&colour=1");
    for unknown in ["?after=1", "?before=x", "?before=2", &more] {
        assert_eq!(page(unknown).await.refused(422), "query_invalid", "{unknown}");
    }
}
