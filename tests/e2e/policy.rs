//! The operator's policies: what is refused and told, what takes effect through the real gateway,
//! and why a request was refused.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::{Ran, System, sekisho, wait_until};
use serde_json::Value;

use crate::scenes::{consent, document, readable_survey, survey_becomes, survey_stored, withdraw};

/// A policy folder in the system's scratch folder.
fn policy(system: &System, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = system.scratch().join(name);
    fs::create_dir_all(dir.join("overlays")).unwrap();
    for (path, text) in files {
        fs::write(dir.join(path), text).unwrap();
    }
    dir
}

/// An overlay for every office that takes away `text`, with a case that shows it.
fn narrowing(system: &System, name: &str, text: &str, case: &str) -> PathBuf {
    let overlay = format!("source = \"e2e\"\n[applies-to]\nevery-office = true\n{text}\n");
    let case = format!(
        "[{{\"name\": \"case\", \"principal\": \"office/1370000001\", \"service_types\": [\"43\"],\
         \"job\": \"care-manager\", \"at\": \"2026-04-06T10:00\", \"decision\": \"deny\",\
         \"request\": \"GET /v1/insured/131016/0000000001/documents/certification-survey\",\
         \"facts\": [\"live\", \"registered\", \"consent\"], {case}}}]"
    );
    let files = [("overlays/narrow.toml", overlay.as_str()), ("tests.json", case.as_str())];
    policy(system, name, &files)
}

fn status(system: &System) -> Value {
    let url = format!("{}/policy", system.admin_url());
    let asked = e2e::run("curl", ["--silent", "--noproxy", "*", "--fail", &url]);
    asked.ok().json()
}

fn promote(system: &System, dir: &Path) -> Ran {
    system.sekisho(["policy", "promote", dir.to_str().unwrap(), "--json"])
}

fn metric(system: &System, line: &str) -> bool {
    let url = format!("{}/metrics", system.admin_url());
    let asked = e2e::run("curl", ["--silent", "--noproxy", "*", "--fail", &url]).ok();
    asked.stdout.lines().any(|found| found.starts_with(line))
}

#[test]
fn a_bad_policy_is_refused_with_file_line_and_hint_and_the_active_one_stays() {
    let system = System::start();
    let active = status(&system)["version"].clone();
    let overlay =
        |target: &str, rest: &str| format!("source = \"x\"\n[applies-to]\n{target}\n{rest}");
    let shipped = include_str!("../../policies/data/sharing-matrix.toml");
    let opened = shipped.replacen("\"◎ᵃ\",        \"–\", ", "\"◎ᵃ\",        \"○ᵃ\",", 1);
    let rule = "needs = [\"registered\", \"live\"]\nsource = \"ケ(1) ★";
    let floor = shipped.replacen(rule, "needs = [\"live\"]\nsource = \"ケ(1) ★", 1);
    assert!(opened != shipped && floor != shipped);
    let typo = overlay("every-office = true", "[hour]\ndays = [\"mon\"]\n");
    let unknown = overlay("offices = [\"9990000009\"]", "[paused]\neverything = true\n");
    let widening = overlay("every-office = true", "[allow]\ndocuments = [\"insured-card\"]\n");
    let cases: [(&str, &str, &str, &[&str]); 5] = [
        ("typo", "overlays/a.toml", &typo, &["overlays/a.toml:4:2", "`hours`"]),
        ("office", "overlays/a.toml", &unknown, &["overlays/a.toml:3:12", "sekisho office add"]),
        ("widen", "overlays/a.toml", &widening, &["overlays/a.toml:4:2", "only takes away"]),
        ("cell", "sharing-matrix.toml", &opened, &["certification-survey/care", "ack-widening"]),
        ("floor", "sharing-matrix.toml", &floor, &["sharing-matrix.toml:", "registration"]),
    ];
    for (name, file, text, words) in cases {
        let dir = policy(&system, name, &[(file, text), ("tests.json", "[]")]);
        let check = system.sekisho(["policy", "check", dir.to_str().unwrap()]);
        assert_eq!(check.code, 1, "{check}");
        let told = |line: &&str| words.iter().all(|word| line.contains(word));
        assert!(check.stdout.lines().any(|line| told(&line)), "{words:?}: {check}");
        let refused = promote(&system, &dir);
        assert_eq!(refused.code, 1, "{refused}");
        assert_eq!(status(&system)["version"], active, "{name}");

        // The gateway itself refuses it too, when it is put in the active one's place by hand.
        let place = system.path("policy/active");
        let good = fs::read_link(&place).unwrap();
        fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink(&dir, &place).unwrap();
        let loads = status(&system)["loads"].clone();
        e2e::run("kill", ["-HUP", &system.pid("gateway").unwrap().to_string()]).ok();
        let told = wait_until("the gateway to read its policy", 10, || {
            Some(status(&system)).filter(|told| told["loads"] != loads)
        });
        assert_eq!(told["version"], active, "{name}");
        let refused = told["refused"].as_array().unwrap();
        assert!(!refused.is_empty() && refused.iter().all(|it| it["hint"] != ""), "{told}");
        fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink(&good, &place).unwrap();
    }
    assert!(metric(&system, "sekisho_policy_loads_total{outcome=\"refused\",policy=\"active\"} 5"));
}

#[test]
fn a_good_overlay_takes_effect_is_recorded_and_goes_again() {
    let system = System::start();
    let office = system.care_management();
    let insured = system.person(1_101);
    let (token, _) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let before = status(&system)["version"].as_str().unwrap().to_owned();

    let text = "[paused]\ndocuments = [\"certification-survey\"]";
    let paused = narrowing(&system, "paused", text, "\"reasons\": [\"paused\"]");
    let promoted = promote(&system, &paused).ok().json();
    let version = promoted["version"].as_str().unwrap().to_owned();
    let change = status(&system)["change"].clone();
    assert_eq!(change["from"], before.as_str(), "{change}");
    assert_eq!(change["overlays"][0]["overlay"], "narrow", "{change}");
    assert_eq!((&change["widened"], &change["narrowed"]), (&0.into(), &0.into()), "{change}");
    let ask = || system.curl(&office.name).token(&token).get(&path).send();
    let refused = ask().expect(403, "paused");
    assert_eq!(refused.json["fix_by"], "operator");
    system.audited("gateway", &["\"paused\"", &version]);
    let list = system.curl(&office.name).token(&token);
    let list = list.get(&format!("/v1/insured/{insured}/documents")).send().expect(200, "");
    assert!(!list.json.to_string().contains("certification-survey"), "{}", list.json);

    let text = "[addresses]\nallowed = [\"203.0.113.0/24\"]";
    let reasons = "\"address\": \"198.51.100.1\", \"reasons\": [\"address_not_allowed\"]";
    promote(&system, &narrowing(&system, "address", text, reasons)).ok();
    ask().expect(403, "address_not_allowed");

    let text = "[bulk]\nreads-per-hour-max = 2";
    let reasons = "\"reads_this_hour\": 2, \"reasons\": [\"bulk_ceiling\"]";
    promote(&system, &narrowing(&system, "bulk", text, reasons)).ok();
    let statuses: Vec<u16> = (0..6).map(|_| ask().status).collect();
    // The hour may turn in between: two more then.
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    let over = ask().expect(429, "bulk_ceiling");
    let wait = over.header("retry-after").and_then(|text| text.parse::<u64>().ok());
    assert!(wait.is_some_and(|seconds| (1..=3_600).contains(&seconds)), "{over:?}");

    // A restart begins with what was promoted.
    system.kill_and_wait("gateway");
    ask().expect(200, "");
    let names = status(&system)["overlays"].clone();
    assert_eq!(names, serde_json::json!(["narrow"]));

    promote(&system, &policy(&system, "none", &[])).ok();
    ask().expect(200, "");
    assert_eq!(status(&system)["version"], before.as_str());
}

#[test]
fn a_candidate_in_shadow_is_counted_and_not_enforced_and_then_promoted() {
    let system = System::start();
    let office = system.care_management();
    let insured = system.person(1_102);
    let (token, _) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let ask = || system.curl(&office.name).token(&token).get(&path).send();
    let text = "[paused]\ndocuments = [\"certification-survey\"]";
    let paused = narrowing(&system, "paused", text, "\"reasons\": [\"paused\"]");
    let dir = paused.to_str().unwrap();

    system.sekisho(["policy", "shadow", "start", dir]).ok();
    ask().expect(200, "");
    ask().expect(200, "");
    let told = system.sekisho(["policy", "shadow", "status", "--json"]).ok().json();
    let cell = "documents.view/certification-survey/office";
    assert_eq!(told["differences"], serde_json::json!([[cell, "would_deny", 2]]));
    let difference = system.sekisho(["policy", "diff", "active", "shadow", "--json"]).ok().json();
    assert_eq!(difference["overlays"][0]["overlay"], "narrow");
    let changed = difference["requests"]["changed"].as_array().unwrap();
    let survey = changed.iter().filter(|it| it["document"] == "certification-survey").count();
    assert!(survey >= 2, "{difference}");
    assert!(changed.iter().all(|it| it["new"]["reasons"][0] == "paused"), "{difference}");

    system.sekisho(["policy", "promote"]).ok();
    ask().expect(403, "paused");
    let told = system.sekisho(["policy", "shadow", "stop", "--json"]).ok().json();
    assert!(told["version"].is_null());
}

#[test]
fn explain_gives_the_cause_and_whom_to_ask_for_each_denial_of_the_tour() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(1_103);
    survey_stored(&system, &insured);
    let token = system.token(&office.name);
    let explained = |reply: &e2e::Reply| {
        let id = reply.json["request_id"].as_str().unwrap().to_owned();
        system.audited("gateway", &[&id]);
        let args = ["policy", "explain", "--request", &id, "--insured", &insured, "--json"];
        system.sekisho(args).ok().json()
    };
    let denied = |code: &str, asked: &str| {
        let reply = survey_becomes(&system, office, &token, &insured, (403, code));
        let told = explained(&reply);
        let cause = told["causes"].as_array().unwrap().iter().find(|it| it["reason"] == code);
        assert_eq!(cause.unwrap()["fix_by"], asked, "{told}");
        assert_eq!(told["now"]["primary"], code, "{told}");
        assert!(told["now"]["changes"].to_string().contains(code), "{told}");
        let way = &told["now"]["ways"][0];
        assert!(way["cell"].as_str().unwrap().contains("certification-survey"), "{told}");
    };
    denied("not_registered", "office");
    system.register(office.office.as_ref().unwrap(), &insured);
    denied("consent_required", "person");
    let id = consent(&system, &insured);
    survey_becomes(&system, office, &token, &insured, (200, ""));
    withdraw(&system, &insured, &id);
    denied("consent_withdrawn", "person");

    // A party that the matrix never opens to, and a person of nobody's.
    let application = document(&insured, "certification-application");
    let reply = system.curl(&office.name).token(&token).get(&application).send();
    let told = explained(&reply.expect(403, "not_shared"));
    assert_eq!(told["causes"][0]["fix_by"], "nobody");
    let without =
        system.curl(&office.name).get(&application).send().expect(401, "staff_token_missing");
    assert_eq!(explained(&without)["causes"][0]["reason"], "staff_token_missing");
    system
        .sekisho(["policy", "explain", "--request", "ffffffffffffffffffffffff"])
        .refused(64, &["ffffffffffffffffffffffff", "check the id"]);
}

#[test]
fn the_matrix_is_printed_as_the_slide_and_as_fields() {
    let fields = sekisho(["policy", "matrix", "--json"]).ok().json();
    let fields = fields.as_array().unwrap();
    assert_eq!(fields.len(), 11 * 6 * 2);
    let survey = |party: &str| {
        let same = |it: &&Value| {
            it["document"] == "certification-survey"
                && it["party"] == party
                && it["relation"] == "other"
        };
        fields.iter().find(same).unwrap()["mark"].clone()
    };
    assert_eq!(survey("care-management"), "consent");
    assert_eq!(survey("care-service"), "none");
    assert!(sekisho(["policy", "matrix"]).ok().stdout.contains("居宅介護支援事業所※1"));
}
