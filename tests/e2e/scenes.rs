//! Scenes that several themes start from: a municipality that shares, a stored document, a person
//! who consented.

use e2e::{Party, Reply, System, wait_until};
use serde_json::json;

/// The path of one document of a person.
pub(crate) fn document(insured: &str, kind: &str) -> String {
    format!("/v1/insured/{insured}/documents/{kind}")
}

/// The demo municipality shares its people's documents, and stored a 認定調査票 for `insured`.
pub(crate) fn survey_stored(system: &System, insured: &str) {
    let municipality = &system.municipality().name;
    let insurer = insured.split('/').next().unwrap();
    let path = format!("/v1/municipalities/{insurer}/sharing");
    let reply = system.curl(municipality).method("PUT", &path).json(&json!({"from": "2026-04-01"}));
    reply.send().expect(200, "");
    let survey = json!({
        "surveyed_on": "2026-05-01", "overview": "demo", "items": {"1-1": 2}, "remarks": "demo",
    });
    let stored =
        system.curl(municipality).post(&document(insured, "certification-survey"), &survey);
    let stored = stored.send().expect(201, "");
    assert_eq!(stored.json["kind"], "certification-survey");
}

/// The municipality records the person's consent; gives its id.
pub(crate) fn consent(system: &System, insured: &str) -> String {
    let body = json!({
        "scope": "all", "from": "2026-04-01", "until": null,
        "collected_by": "municipality", "method": "paper",
    });
    let path = format!("/v1/insured/{insured}/consents");
    let reply = system.curl(&system.municipality().name).post(&path, &body).send().expect(201, "");
    let id = &reply.json["id"];
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

/// The municipality records that the person withdrew a consent.
pub(crate) fn withdraw(system: &System, insured: &str, consent: &str) {
    let path = format!("/v1/insured/{insured}/consents/{consent}/withdrawal");
    system.curl(&system.municipality().name).post(&path, &json!({})).send().expect(200, "");
}

/// A party asks for the 認定調査票 until the answer is `status` and `code`: facts travel to the
/// gateway by a feed, within a second.
pub(crate) fn survey_becomes(
    system: &System,
    party: &Party,
    token: &str,
    insured: &str,
    (status, code): (u16, &str),
) -> Reply {
    let what = format!("{status} {code} for {}", party.name);
    wait_until(&what, 5, || {
        let call = system.curl(&party.name).token(token);
        let reply = call.get(&document(insured, "certification-survey")).send();
        (reply.status == status && reply.code() == code).then_some(reply)
    })
}

/// A care-management office that may read the 認定調査票 of `insured`: stored, registered,
/// consented. Gives the office's staff token and the consent's id.
pub(crate) fn readable_survey(system: &System, insured: &str) -> (String, String) {
    let office = system.care_management();
    let token = system.token(&office.name);
    survey_stored(system, insured);
    system.register(office.office.as_ref().unwrap(), insured);
    let consent = consent(system, insured);
    survey_becomes(system, office, &token, insured, (200, ""));
    (token, consent)
}
