//! Folders that load, and every way in which one is refused.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

const SHIPPED: &str = include_str!("../../data/sharing-matrix.toml");
const NIGHT: &str = "source = \"test\"\n[applies-to]\nevery-office = true\n[[hours]]\n\
                     days = [\"mon\"]\nfrom = \"09:00\"\nuntil = \"17:00\"\n";
const CASE: &str = r#"[{ "name": "closed at night", "principal": "office/1370000001",
  "service_types": ["43"], "job": "care-manager", "at": "2026-04-06T20:00",
  "request": "GET /v1/insured/131016/0000000001/documents/insured-card",
  "facts": ["live", "registered"], "decision": "deny", "reasons": ["out_of_hours"] }]"#;
/// The 認定調査票 opens to 介護 offices with consent.
const OPENED: [(&str, &str); 1] = [(
    "\"◎ᵃ\",        \"–\",           \"–\"           ], row = \"認①\"",
    "\"◎ᵃ\",        \"◎ᵃ\",          \"–\"           ], row = \"認①\"",
)];
const OPENED_CASE: &str = r#"[{ "name": "a care office reads the survey with consent",
  "principal": "office/1370000001", "service_types": ["15"], "job": "care-worker",
  "at": "2026-04-06T10:00",
  "request": "GET /v1/insured/131016/0000000001/documents/certification-survey",
  "facts": ["live", "registered", "consent"], "decision": "allow" }]"#;

fn files(given: &[(&str, &str)]) -> Files {
    given.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

fn load(files: &Files, signers: &[Signer]) -> Result<Policy, Vec<Problem>> {
    Policy::load(files, &Terms { profile: Profile::Deck2025, signers, is_known: None })
}

fn refused(files: &Files, words: &[&str]) {
    let problems = load(files, &[]).err().unwrap();
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let found = told.iter().any(|told| words.iter().all(|word| told.contains(word)));
    assert!(found, "{words:?} in {told:#?}");
}

fn opened() -> String {
    OPENED.iter().fold(SHIPPED.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "the shipped row reads otherwise");
        text.replace(from, to)
    })
}

#[test]
fn no_files_are_the_built_in_matrix() {
    let policy = load(&Files::new(), &[]).unwrap();
    let built_in = built_in(Profile::Deck2025).unwrap();
    assert_eq!(policy.matrix.version(), built_in.version());
    assert!(policy.changes.is_empty() && policy.matrix.overlays().is_empty());
}

#[test]
fn an_overlay_with_its_case_loads_and_changes_the_version() {
    let night = files(&[("overlays/night.toml", NIGHT), (CASES, CASE)]);
    let policy = load(&night, &[]).unwrap();
    assert_eq!((policy.cases, policy.matrix.overlays().iter().count()), (1, 1));
    assert_eq!(policy.matrix.version(), version(&night, Profile::Deck2025));
    let later = files(&[("overlays/night.toml", &NIGHT.replace("17:00", "18:00")), (CASES, CASE)]);
    assert_ne!(load(&later, &[]).unwrap().matrix.version(), policy.matrix.version());
}

#[test]
fn a_policy_without_cases_or_with_one_that_fails_is_refused() {
    refused(&files(&[("overlays/night.toml", NIGHT)]), &["tests.json", "missing"]);
    refused(&files(&[("overlays/night.toml", NIGHT), (CASES, "[]")]), &["holds no case"]);
    let day = CASE.replace("20:00", "10:00");
    let wrong = files(&[("overlays/night.toml", NIGHT), (CASES, &day)]);
    refused(&wrong, &["tests.json:1:12", "expects deny (out_of_hours) and gets allow"]);
    refused(&wrong, &["overlays/night.toml", "no case shows"]);
    let wrong = CASE.replace("GET /v1", "GET /v2");
    refused(&files(&[("overlays/night.toml", NIGHT), (CASES, &wrong)]), &["is no operation"]);
    let wrong = CASE.replace("\"live\"", "\"alive\"");
    let wrong = files(&[("overlays/night.toml", NIGHT), (CASES, &wrong)]);
    refused(&wrong, &["`alive` is not a fact", "did you mean `live`"]);
    let wrong = CASE.replace("\"job\"", "\"jobb\"");
    refused(&files(&[("overlays/night.toml", NIGHT), (CASES, &wrong)]), &["tests.json:2:", "jobb"]);
}

#[test]
fn a_file_that_does_not_belong_is_named_with_the_one_that_was_meant() {
    refused(&files(&[("test.json", "[]")]), &["test.json", "did you mean `tests.json`"]);
    refused(&files(&[("overlays/a.json", "")]), &["overlays/a.json", "not a file of a policy"]);
    refused(&files(&[(MANIFEST, "ack_widening = []")]), &["policy.toml:1:1", "ack_widening"]);
}

#[test]
fn a_broken_matrix_is_told_with_its_line() {
    let at = |text: &str, needle: &str| {
        let line = text.lines().position(|line| line.starts_with(needle)).unwrap() + 1;
        format!("{MATRIX}:{line}:1")
    };
    let typo = SHIPPED.replace("insured-card  ", "insured-cart  ");
    refused(
        &files(&[(MATRIX, &typo), (CASES, CASE)]),
        &[&at(&typo, "insured-cart"), "insured-cart"],
    );
    let floor = SHIPPED
        .replace("\"★※3 | –\",   \"–\",           \"–\"", "\"★ | –\",   \"–\",           \"–\"");
    assert_ne!(floor, SHIPPED);
    let broken = files(&[(MATRIX, &floor), (CASES, CASE)]);
    refused(&broken, &[&at(&floor, "benefit-management"), "※3"]);
    let rule = "needs = [\"registered\", \"live\"]\nsource = \"ケ(1) ★";
    let unregistered = SHIPPED.replace(rule, "needs = [\"live\"]\nsource = \"ケ(1) ★");
    assert_ne!(unregistered, SHIPPED);
    let line = unregistered.lines().position(|line| line.starts_with("source = \"ケ(1) ★"));
    let place = format!("{MATRIX}:{}:10", line.unwrap() + 1);
    let broken = files(&[(MATRIX, &unregistered), (CASES, CASE)]);
    refused(&broken, &[&place, "an office needs a registration"]);
    refused(&files(&[(MATRIX, "[rows"), (CASES, CASE)]), &["sharing-matrix.toml:1:"]);
}

#[test]
fn a_cell_that_opens_is_named_acknowledged_and_signed_by_two() {
    let matrix = opened();
    let cells = ["certification-survey/care", "certification-survey/care-opinion-writer"];
    let ack = format!("ack-widening = [\"{}\", \"{}\"]\n", cells[0], cells[1]);
    let bare = files(&[(MATRIX, &matrix), (CASES, OPENED_CASE)]);
    for cell in cells {
        refused(&bare, &["sharing-matrix.toml:", cell, "ack-widening"]);
    }
    let too_much = ack.replace("]", ", \"insured-card/care\"]");
    let more = files(&[(MATRIX, &matrix), (CASES, OPENED_CASE), (MANIFEST, &too_much)]);
    refused(&more, &["policy.toml:1:", "`insured-card/care` is not a cell"]);
    let mut named = files(&[(MATRIX, &matrix), (CASES, OPENED_CASE), (MANIFEST, &ack)]);
    refused(&named, &["signatures.toml", "0 of 2"]);

    let keys: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let random = aws_lc_rs::rand::SystemRandom::new();
            Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref().to_vec()
        })
        .collect();
    let signer = |name: &str, key: &[u8]| {
        let public = Ed25519KeyPair::from_pkcs8(key).unwrap().public_key().as_ref().to_vec();
        Signer::new(name, &STANDARD.encode(public)).unwrap()
    };
    let signers = [signer("kawa", &keys[0]), signer("yama", &keys[1]), signer("umi", &keys[0])];
    let version = version(&named, Profile::Deck2025);
    let sign = |name: &str, key: &[u8]| signature::sign(name, key, &version).unwrap();
    let (kawa, yama) = (sign("kawa", &keys[0]), sign("yama", &keys[1]));
    let mut with = |text: String| {
        named.insert(SIGNATURES.to_owned(), text);
        load(&named, &signers).map(|policy| policy.changes).map_err(|all| all[0].to_string())
    };
    assert!(with(kawa.clone()).unwrap_err().contains("1 of 2"));
    assert!(with(format!("{kawa}{kawa}")).unwrap_err().contains("1 of 2"));
    // Two names with one key are one operator.
    assert!(with(format!("{kawa}{}", sign("umi", &keys[0]))).unwrap_err().contains("1 of 2"));
    assert!(with(format!("{kawa}{}", sign("neko", &keys[1]))).unwrap_err().contains("`neko`"));
    let other = signature::sign("yama", &keys[1], "other").unwrap();
    assert!(with(format!("{kawa}{other}")).unwrap_err().contains("not over this policy"));
    let changes = with(format!("{kawa}{yama}")).unwrap();
    assert_eq!(changes.iter().map(|it| it.cell.as_str()).collect::<Vec<_>>(), cells);
    assert!(changes.iter().all(|change| change.widens && !change.narrows));
}

#[test]
fn a_cell_that_closes_needs_no_signature() {
    let closed = SHIPPED.replace(
        "\"◎ᵃ\",        \"–\",           \"–\"           ], row = \"認①\"",
        "\"–\",         \"–\",           \"–\"           ], row = \"認①\"",
    );
    assert_ne!(closed, SHIPPED);
    let case =
        CASE.replace("insured-card", "certification-survey").replace("out_of_hours", "not_shared");
    let policy = load(&files(&[(MATRIX, &closed), (CASES, &case)]), &[]).unwrap();
    assert!(policy.changes.iter().all(|change| change.narrows && !change.widens), "{policy:?}");
    assert!(!policy.changes.is_empty());
}
