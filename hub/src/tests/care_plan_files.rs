//! ケアプラン files: stored whole or not at all.

use policies::decide::Needs;
use serde_json::Value;

use super::harness::*;

const NAME_1: &str = "UP1KYO_1370000001_43_1370000002_15_20261001120000.CSV";
const NAME_2: &str = "UP2KYO_1370000001_43_1370000002_15_20261001120000.CSV";

fn table_1(office: &str) -> Vec<u8> {
    table_1_of("0000000001", office)
}

fn table_1_of(insured_number: &str, office: &str) -> Vec<u8> {
    let mut columns = vec![String::new(); 28];
    for (at, value) in [
        (1, "202407"),
        (2, "131016"),
        (3, insured_number),
        (4, "20261001"),
        (8, "\"計画 作成者\""),
        (9, "\"見本居宅介護支援\""),
        (13, office),
        (14, "20261001"),
        (15, "20261001"),
    ] {
        columns[at - 1] = value.to_owned();
    }
    encoding_rs::SHIFT_JIS.encode(&format!("{}\r\n", columns.join(","))).0.into_owned()
}

fn table_2(date: &str) -> Vec<u8> {
    let mut columns = vec![String::new(); 22];
    for (at, value) in [
        (1, "202407"),
        (2, "131016"),
        (3, "0000000001"),
        (4, "20261001"),
        (5, date),
        (6, "1"),
        (7, "\"歩きたい\""),
        (8, "1"),
        (13, "1"),
        (14, "\"通所介護\""),
    ] {
        columns[at - 1] = value.to_owned();
    }
    encoding_rs::SHIFT_JIS.encode(&format!("{}\r\n", columns.join(","))).0.into_owned()
}

async fn send(hub: &TestHub, principal: &str, name: &str, body: Vec<u8>) -> Answer {
    let call = hub.call(principal, "POST", &format!("/v1/care-plan-files/{name}"));
    let call = call.grant("home-care-plan", false, Needs::NONE).bytes("text/csv", body);
    call.send().await
}

async fn plan(hub: &TestHub) -> Answer {
    let call = hub.call(CARE, "GET", &person("documents/home-care-plan"));
    call.grant("home-care-plan", true, Needs::NONE).send().await
}

#[tokio::test]
async fn table_2_completes_the_plan_that_table_1_began() {
    let hub = TestHub::start().await;
    let early = send(&hub, EXCHANGE, NAME_2, table_2("20261001")).await;
    assert_eq!(early.refused(422), "care_plan_file_refused");
    let stored = send(&hub, EXCHANGE, NAME_1, table_1("1370000001")).await.expect(201);
    assert_eq!((&stored["stored"][0]["version"], &stored["rows"]), (&1.into(), &1.into()));
    let other = send(&hub, EXCHANGE, NAME_2, table_2("20260901")).await;
    assert_eq!(other.refused(422), "care_plan_file_refused");
    let stored = send(&hub, EXCHANGE, NAME_2, table_2("20261001")).await.expect(201);
    assert_eq!(stored["stored"][0]["version"], 2);
    let plan = plan(&hub).await.expect(200);
    assert_eq!(plan["author"], "office/1370000001");
    assert_eq!(plan["content"]["created_on"], "2026-10-01");
    assert!(
        plan["content"]["tables"]["1"].is_object() && plan["content"]["tables"]["2"].is_object()
    );
}

#[tokio::test]
async fn a_wrong_file_is_refused_with_line_and_column_and_nothing_stored() {
    let hub = TestHub::start().await;
    let refused = send(&hub, EXCHANGE, NAME_1, table_1("1370000009")).await;
    assert_eq!(refused.refused(422), "care_plan_file_refused");
    let problem = &refused.json["problems"][0];
    assert_eq!((&problem["line"], &problem["column"]), (&1.into(), &13.into()), "{problem}");
    assert!(problem["message_ja"].as_str().is_some_and(|text| !text.is_empty()));
    // One good and one bad row: nothing of the good one either.
    let mixed = [table_1("1370000001"), b"202407,131016\r\n".to_vec()].concat();
    let refused = send(&hub, EXCHANGE, NAME_1, mixed).await;
    assert_eq!(refused.json["problems"][0]["line"], 2);
    assert_eq!(plan(&hub).await.refused(404), "no_document");
    let status = hub.admin("GET", "/status", Value::Null).await.expect(200);
    assert_eq!(status["documents"], 0);
}

#[tokio::test]
async fn only_the_exchange_sends_files() {
    let hub = TestHub::start().await;
    let refused = send(&hub, CARE, NAME_1, table_1("1370000001")).await;
    assert_eq!(refused.refused(403), "not_shared");
}

#[tokio::test]
async fn a_file_that_comes_again_is_answered_as_before() {
    let hub = TestHub::start().await;
    let first = send(&hub, EXCHANGE, NAME_1, table_1("1370000001")).await.expect(201);
    let again = send(&hub, EXCHANGE, NAME_1, table_1("1370000001")).await.expect(200);
    assert_eq!((&again["repeated"], &again["stored"]), (&true.into(), &first["stored"]));
    let status = hub.admin("GET", "/status", Value::Null).await.expect(200);
    assert_eq!(status["documents"], 1);
    let other = table_1_of("0000000002", "1370000001");
    let other = send(&hub, EXCHANGE, NAME_1, other).await;
    assert_eq!(other.refused(409), "care_plan_file_other_content");
}

#[tokio::test]
async fn every_person_of_a_file_has_an_effect_record_of_their_own() {
    let hub = TestHub::start().await;
    let rows = ["0000000001", "0000000002"].map(|number| table_1_of(number, "1370000001"));
    send(&hub, EXCHANGE, NAME_1, rows.concat()).await.expect(201);
    let effects = hub.audit("care-plan-files.store");
    assert_eq!(effects, ["intent", "effect", "effect", "outcome:done"]);
    let entries = audit_log::read(&hub.path("audit"));
    let events = entries.map(|entry| serde_json::to_value(entry.unwrap().event).unwrap());
    let mut objects: Vec<String> = events
        .filter(|event| event["event"] == "effect")
        .map(|event| {
            let object = &event["object"];
            assert_eq!(object["document"], "home-care-plan");
            assert_eq!(object["document_id"], "1");
            object["insured"].as_str().unwrap().to_owned()
        })
        .collect();
    objects.sort();
    let mut expected = ["131016/0000000001", "131016/0000000002"].map(|i| hub.hub.pseudonym.of(i));
    expected.sort();
    assert_eq!(objects, expected);
}

#[tokio::test]
async fn a_file_that_is_too_long_is_refused_with_words() {
    let hub = TestHub::start().await;
    let long = vec![b'a'; crate::careplan_csv::FILE_BYTES_MAX + 1];
    let refused = send(&hub, EXCHANGE, NAME_1, long).await;
    assert_eq!(refused.refused(422), "care_plan_file_refused");
    let message = refused.json["problems"][0]["message_ja"].as_str().unwrap();
    assert!(message.contains("4032 KB"), "{message}");
}
