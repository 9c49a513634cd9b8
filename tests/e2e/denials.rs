//! What a client is told that is refused: a problem document, or a page for a browser.

use e2e::System;

use crate::scenes::document;

const BROWSER: &str = "accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[test]
fn a_refusal_of_the_gateway_is_a_problem_document() {
    let system = System::shared();
    let path = document(&system.person(1_090), "certification-survey");
    let reply = system.curl(&system.care_management().name).get(&path).send();
    let reply = reply.expect(401, "staff_token_missing");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.json["type"], "tag:sekisho.example,2026:staff_token_missing");
    assert_eq!(reply.json["status"], 401);
    assert_eq!(reply.json["title"], "staff token missing");
    assert_eq!(reply.json["request_id"].as_str(), reply.header("sekisho-request-id"));
    for words in ["detail", "detail_ja"] {
        assert!(!reply.json[words].as_str().unwrap().is_empty(), "{words}");
    }
}

#[test]
fn so_is_a_refusal_of_the_hub() {
    let system = System::shared();
    let path = document(&system.person(1_091), "certification-survey");
    let reply = system.curl(&system.municipality().name).get(&path).send();
    let reply = reply.expect(404, "no_document");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.json["type"], "tag:sekisho.example,2026:no_document");
    assert_eq!(reply.json["request_id"].as_str(), reply.header("sekisho-request-id"));
}

#[test]
fn a_browser_is_told_in_a_page_that_names_no_person() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(1_092);
    let call = system.curl(&office.name).token(&system.token(&office.name)).header(BROWSER);
    let reply = call.get(&document(&insured, "certification-survey")).send();
    assert_eq!(reply.status, 403);
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(reply.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let page = String::from_utf8(reply.body.clone()).unwrap();
    let id = reply.header("sekisho-request-id").unwrap();
    for words in ["<html lang=\"ja\">", "表示できません", "not_registered", id] {
        assert!(page.contains(words), "{words} is not in {page}");
    }
    let number = insured.rsplit('/').next().unwrap();
    assert!(!page.contains(number), "{page}");
}
