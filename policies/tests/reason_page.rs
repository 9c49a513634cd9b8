//! docs/reasons.md is generated from `policies/src/reason.rs` and held to it here
//! (`UPDATE_SNAPSHOT=1` writes it anew), and every reason has a test that names it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use policies::document::DocumentKind;
use policies::reason::Reason;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");

const HEAD: &str = "\
# Reasons

Why a request was refused: every code that an answer, a record or a metric can hold, with the words
that the office sees and who can change it. Codes never change their meaning. The order is the order
of the gates: of several reasons the first is the primary one and gives the HTTP status.

Generated from `policies/src/reason.rs` by `policies/tests/reason_page.rs`; do not edit.

| code | HTTP | Japanese | English | ask |
|---|---|---|---|---|
";

#[test]
fn the_page_is_as_generated() {
    let mut page = HEAD.to_owned();
    for reason in Reason::ALL {
        let (ask_ja, ask) = reason.fixer().words();
        writeln!(
            page,
            "| `{reason}` | {} | {} | {} | {ask} ({ask_ja}) |",
            reason.status(),
            reason.ja(),
            reason.en()
        )
        .unwrap();
    }
    if std::env::var_os("UPDATE_SNAPSHOT").is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    assert_eq!(fs::read_to_string(PAGE).unwrap(), page, "UPDATE_SNAPSHOT=1 writes it anew");
}

/// Reasons that `decide` does not give: who does, and the test that shows it. The last two are
/// codes that no program gives. No source says when a viewing period (閲覧期限) ends other than by a
/// registration's or a consent's own last second, which have reasons of their own, nor names a
/// state in which a document may not be read or written; the codes keep their place and words for
/// the API's annex 4, which does.
const ELSEWHERE: [(Reason, Option<&str>); 10] = [
    (Reason::NoSuchOperation, Some("hub/src/tests/permits.rs")),
    (Reason::StaffTokenExpired, Some("gateway/tests/gateway/main.rs")),
    (Reason::TokenNotBound, Some("gateway/tests/gateway/main.rs")),
    (Reason::CsrfTokenInvalid, Some("gateway/tests/gateway/browser_session.rs")),
    (Reason::RateLimited, Some("gateway/tests/gateway/records.rs")),
    (Reason::AuditUnavailable, Some("gateway/tests/gateway/records.rs")),
    (Reason::UpstreamUnavailable, Some("hub/src/tests/permits.rs")),
    (Reason::ResponseMismatch, Some("gateway/tests/gateway/response_checks.rs")),
    (Reason::ViewingPeriodOver, None),
    (Reason::DocumentState, None),
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

#[test]
fn every_reason_has_a_case() {
    let own = ["policies/tests/reasons.rs", "policies/src/overlay/tests.rs"].map(read).concat();
    for reason in Reason::ALL {
        match ELSEWHERE.iter().find(|(other, _)| other == reason) {
            None => assert!(own.contains(&format!("Reason::{}", variant(*reason))), "{reason}"),
            Some((_, Some(path))) => assert!(read(path).contains(reason.as_str()), "{reason}"),
            Some((_, None)) => {
                let named = format!("Reason::{}", variant(*reason));
                let giving = sources(".").into_iter().filter(|path| read(path).contains(&named));
                let giving: Vec<String> = giving.filter(|path| !path.ends_with(WORDS)).collect();
                assert!(giving.is_empty(), "{reason} is given now, by {giving:?}: give it a case");
            }
        }
    }
}

/// Every Rust file that is shipped, by its path from the top.
fn sources(folder: &str) -> Vec<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(top).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("{folder}/{name}");
        let is_ours = !name.starts_with('.') && name != "target" && name != "tests";
        if is_ours && Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&path).is_dir() {
            found.extend(sources(&path));
        } else if is_ours && name.ends_with(".rs") && !path.ends_with("policies/src/reason.rs") {
            found.push(path);
        }
    }
    found
}

/// Words for the access history, of every reason.
const WORDS: &str = "hub/src/access_history/words.rs";

/// `not_live` is `NotLive`.
fn variant(reason: Reason) -> String {
    let word = |word: &str| format!("{}{}", word[..1].to_uppercase(), &word[1..]);
    reason.as_str().split('_').map(word).collect()
}

#[test]
fn every_document_kind_is_in_the_snapshot() {
    let snapshot = read("policies/tests/matrix.out");
    for kind in DocumentKind::ALL {
        for action in ["view-document", "submit-document"] {
            let line = format!("deck-2025 {action} {kind} ");
            assert_eq!(snapshot.contains(&line), kind.is_held(), "{action} {kind}");
        }
        assert!(snapshot.contains(kind.ja()), "{kind}");
    }
}
