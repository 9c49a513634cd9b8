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
/// codes that no program gives yet; they keep their place and their words.
const ELSEWHERE: [(Reason, Option<&str>); 8] = [
    (Reason::NoSuchOperation, Some("hub/src/tests/permits.rs")),
    (Reason::StaffTokenExpired, Some("gateway/tests/gateway/main.rs")),
    (Reason::StaffTokenOtherTerminal, Some("gateway/tests/gateway/main.rs")),
    (Reason::RateLimited, Some("gateway/tests/gateway/records.rs")),
    (Reason::AuditUnavailable, Some("gateway/tests/gateway/records.rs")),
    (Reason::UpstreamUnavailable, Some("hub/src/tests/permits.rs")),
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
            Some((_, None)) => assert!(!own.contains(&variant(*reason)), "{reason} is given now"),
        }
    }
}

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
