//! Who sees a document: the story of one 認定調査票, told over curl.

use std::fs;
use std::time::{Duration, Instant};

use e2e::System;
use serde_json::{Value, json};

use crate::scenes::{consent, document, readable_survey, survey_becomes, survey_stored, withdraw};

/// The goal is 1 s (`sekisho-bench revocation` measures it); a busy machine gets more.
const BOUND: Duration = Duration::from_secs(5);

#[test]
fn a_survey_opens_with_registration_and_consent_and_closes_with_withdrawal() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(1_001);
    survey_stored(&system, &insured);
    let token = system.token(&office.name);

    survey_becomes(&system, office, &token, &insured, (403, "not_registered"));
    system.register(office.office.as_ref().unwrap(), &insured);
    let refused = survey_becomes(&system, office, &token, &insured, (403, "consent_required"));
    assert_eq!(refused.json["fix_by"], "person");
    let id = consent(&system, &insured);
    let seen = survey_becomes(&system, office, &token, &insured, (200, ""));
    assert_eq!(seen.json["kind_ja"], "認定調査票");
    assert_eq!(seen.json["content"]["overview"], "demo");

    let other = system.office("15", &[office]);
    let other_token = system.token(&other.name);
    let ask = system.curl(&other.name).token(&other_token);
    let refused = ask.get(&document(&insured, "certification-survey")).send();
    assert_eq!(refused.status, 403, "{refused:?}");

    withdraw(&system, &insured, &id);
    survey_becomes(&system, office, &token, &insured, (403, "consent_withdrawn"));
}

#[test]
fn withdrawal_reaches_an_open_connection_at_once() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(1_002);
    let (token, id) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let mut open = system.keep_open(&office.cert, &office.key);
    assert_eq!(open.get(&path, Some(&token)).expect("an answer").status, 200);

    withdraw(&system, &insured, &id);
    let withdrawn = Instant::now();
    loop {
        let reply = open.get(&path, Some(&token)).expect("an answer on the same connection");
        if reply.status == 403 {
            assert_eq!(reply.code(), "consent_withdrawn");
            break;
        }
        assert!(withdrawn.elapsed() < BOUND, "still open after {BOUND:?}");
    }
}

#[test]
fn an_unregistered_office_cannot_tell_a_known_person_from_an_unknown_one() {
    let system = System::shared();
    let office = system.care_management();
    let token = system.token(&office.name);
    let known = system.person(1_003);
    survey_stored(&system, &known);
    let answer = |insured: &str| {
        let call = system.curl(&office.name).token(&token);
        let mut reply = call.get(&document(insured, "certification-survey")).send();
        reply.json["request_id"] = json!(null);
        (reply.status, reply.json)
    };
    assert_eq!(answer(&known), answer(&system.person(999_999)));
}

#[test]
fn a_list_shows_only_what_may_be_seen() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(1_004);
    readable_survey(&system, &insured);
    let application = json!({ "applied_on": "2026-04-10", "kind": "new" });
    let municipality = &system.municipality().name;
    let card = json!({
        "valid_from": "2026-05-01", "valid_until": "2027-04-30", "care_level": "care-2",
    });
    let store =
        |kind: &str, body| system.curl(municipality).post(&document(&insured, kind), body).send();
    store("insured-card", &card).expect(201, "");
    // 要介護認定申請書 is the person's and the municipality's; the matrix never opens it to an office.
    let _ = store("certification-application", &application);

    let token = system.token(&office.name);
    let list = system.curl(&office.name).token(&token);
    let list = list.get(&format!("/v1/insured/{insured}/documents")).send().expect(200, "");
    let kinds: Vec<&str> = list.json["documents"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|document| document["kind"].as_str())
        .collect();
    assert!(kinds.contains(&"certification-survey"), "{kinds:?}");
    assert!(kinds.contains(&"insured-card"), "{kinds:?}");
    assert!(!kinds.contains(&"certification-application"), "{kinds:?}");
}

#[test]
fn an_office_without_a_staff_token_or_with_another_terminals_is_refused() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(1_005);
    let path = document(&insured, "certification-survey");
    system.curl(&office.name).get(&path).send().expect(401, "staff_token_missing");
    let garbage = system.curl(&office.name).token("not.a.token").get(&path).send();
    garbage.expect(401, "staff_token_invalid");

    let token = system.token(&office.name);
    let number = office.office.as_ref().unwrap();
    let terminal = e2e::Terminal::enrol(&system, number, "second-desk");
    let taken = system.curl_with(&terminal.cert, &terminal.key).token(&token).get(&path).send();
    taken.expect(401, "token_not_bound");
}

#[test]
fn unknown_paths_and_claims_documents_have_no_route() {
    let system = System::shared();
    let office = system.care_management();
    let token = system.token(&office.name);
    let insured = system.person(1_006);
    let claims = [document(&insured, "benefit-claims"), document(&insured, "benefit-management")];
    let odd = ["/v1/nothing", "/v1/insured/../session", "/V1/registrations", "//v1/registrations"];
    for path in claims.iter().map(String::as_str).chain(odd) {
        let reply = system.curl(&office.name).token(&token).get(path).send();
        let refused = [400, 404].contains(&reply.status);
        assert!(refused, "{path}: {} {}", reply.status, reply.code());
    }
}

#[test]
fn the_person_sees_who_looked() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(1_007);
    readable_survey(&system, &insured);
    let path = format!("/v1/insured/{insured}/access-history");
    let history = system.curl("portal").get(&path).send().expect(200, "");
    let accesses = history.json["accesses"].as_array().unwrap();
    let party = format!("office/{}", office.office.as_ref().unwrap());
    let seen = accesses.iter().any(|access| {
        access["party"] == party.as_str() && access["document_kind"] == "certification-survey"
    });
    assert!(seen, "{}", history.json);
}

/// A browser's side: what it was given stays in a jar, and goes with every request.
#[test]
fn a_browser_keeps_its_session_in_cookies() {
    let system = System::shared();
    let name = &system.care_management().name;
    let account = fs::read_to_string(system.path(&format!("demo/{name}/staff.json"))).unwrap();
    let account: Value = serde_json::from_str(&account).unwrap();
    let jar = tempfile::NamedTempFile::new().unwrap();
    let jar = jar.path().to_str().unwrap();
    let curl = || system.curl(name).arg("--cookie").arg(jar).arg("--cookie-jar").arg(jar);
    let csrf = |reply: &Value| format!("sekisho-csrf: {}", reply["csrf_token"].as_str().unwrap());

    let login =
        json!({"staff_id": account["id"], "password": account["password"], "form": "cookie"});
    let first = curl().post("/v1/session", &login).send().expect(200, "").json;
    assert!(first["access_token"].is_null() && first["refresh_token"].is_null(), "{first}");
    curl().get("/v1/registrations").send().expect(200, "");
    let again = || curl().post("/v1/session/refresh", &json!({}));
    again().send().expect(403, "csrf_token_invalid");
    let second = again().header(&csrf(&first)).send().expect(200, "").json;
    assert_ne!(first["csrf_token"], second["csrf_token"]);
    curl().get("/v1/registrations").send().expect(200, "");

    let end = || curl().method("DELETE", "/v1/session");
    end().send().expect(403, "csrf_token_invalid");
    end().header(&csrf(&first)).send().expect(403, "csrf_token_invalid");
    let ended = end().header(&csrf(&second)).send().expect(204, "");
    let cleared = ended.headers.iter().filter(|(name, value)| {
        name == "set-cookie" && value.starts_with("__Host-sekisho-") && value.contains("Max-Age=0;")
    });
    assert_eq!(cleared.count(), 3, "{:?}", ended.headers);
    // A jar that becomes empty is not written by curl, so the token is still sent: it has ended.
    curl().get("/v1/registrations").send().expect(401, "staff_session_ended");
}
