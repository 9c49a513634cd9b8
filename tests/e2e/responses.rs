//! Issue 6 point 7: the hub says of every answer about a person whom it is about and what is in it;
//! the gateway takes it out, and withholds nothing that is true.

use e2e::{Reply, System, run};
use serde_json::{Value, json};

use crate::scenes::{document, readable_survey};

fn passed(reply: Reply) -> Value {
    assert!((200..300).contains(&reply.status), "{}: {}", reply.status, reply.json);
    for ours in ["sekisho-insured", "sekisho-document-kind", "sekisho-refused"] {
        assert_eq!(reply.header(ours), None);
    }
    reply.json
}

#[test]
fn every_answer_about_a_person_is_declared_and_delivered() {
    let system = System::start();
    let insured = system.person(8_201);
    let (token, consent) = readable_survey(&system, &insured);
    let (office, city) = (&system.care_management().name, &system.municipality().name);
    let of = |rest: &str| format!("/v1/insured/{insured}/{rest}");
    let survey = document(&insured, "certification-survey");
    for path in [
        of("documents"),
        survey.clone(),
        format!("{survey}/versions"),
        format!("{survey}/versions/1"),
        of("certification"),
    ] {
        passed(system.curl(office).token(&token).get(&path).send());
    }
    let notice = json!({"starts_on": "2026-12-01", "person_agreed": true});
    passed(system.curl(office).token(&token).post(&of("care-plan-requests"), &notice).send());
    passed(system.curl(city).get(&of("consents")).send());
    let insurer = insured.split('/').next().unwrap();
    let inbox = format!("/v1/municipalities/{insurer}/inbox");
    let items = passed(system.curl(city).get(&inbox).send());
    let item = format!("{inbox}/{}", items["items"].as_array().unwrap().last().unwrap()["id"]);
    passed(system.curl(city).get(&item).send());
    passed(system.curl(city).post(&format!("{item}/receipt"), &json!({})).send());
    let step = json!({"stage": "applied", "on": "2026-10-01"});
    passed(system.curl(city).post(&of("certification"), &step).send());
    let due = json!({"office": "1310000001", "due": "2026-11-30"});
    passed(system.curl(city).post(&of("opinion-requests"), &due).send());
    let withdrawal = of(&format!("consents/{consent}/withdrawal"));
    passed(system.curl(city).post(&withdrawal, &json!({})).send());
    let url = format!("{}/metrics", system.admin_url());
    let metrics = run("curl", ["-s", "--noproxy", "*", &url]).ok().stdout;
    assert!(metrics.contains("\nsekisho_response_mismatches_total 0\n"), "{metrics}");
}
