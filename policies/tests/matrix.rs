//! The whole matrix as text: every operation × principal × combination of facts, both profiles,
//! compared with the committed `matrix.out`. `UPDATE_SNAPSHOT=1` writes it anew; read the
//! difference before committing it, it is what changes for the people of the matrix.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise"
)]

mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use policies::decide::Decision;
use policies::facts::Facts;
use policies::matrix::{Matrix, Profile};
use policies::operations::Operation;
use policies::reason::Reason;
use world::{Case, OpinionRequest, Subject};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix.out");

const LEGEND: &str = "\
Every operation, principal and combination of facts. Written by tests/matrix.rs; see there.

One line is one principal. The 16 signs are the 16 combinations of four facts:

    not live            live                 the municipality shares
    -------- --------   -------- --------
    other    author     other    author      the office wrote such a document (author), or not
    .. rr .. rr ..                           r  registered as 担当事業所
    .c .c                                     c  the person's consent

  so `abcd efgh  ijkl mnop` is: not live {other: a –, b consent, c registered, d both; author: e–h},
  then the same when live. Signs:

    ■ allowed    □ allowed, own documents only
    n not_shared   l not_live      r not_registered   c consent_required   a not_author
    j wrong_job    p not_planning_office   o opinion_request_missing   i not_own_insurer
    k certificate_kind_refused
  (a letter is the primary reason; the others are missing too)

  A further line of the same principal shows the facts in brackets, where they change something:
  [plans] the office makes the person's plan · [asked] the insurer sent the institution a
  主治医意見書作成依頼 that was answered · [open] one that is open.
";

#[test]
fn the_whole_matrix_is_as_committed() {
    let printed = print();
    if std::env::var_os("UPDATE_SNAPSHOT").is_some() {
        std::fs::write(SNAPSHOT, &printed).unwrap();
    }
    let committed = std::fs::read_to_string(SNAPSHOT).unwrap();
    let differing = printed.lines().zip(committed.lines()).find(|(now, then)| now != then);
    if let Some((now, then)) = differing {
        panic!(
            "the matrix changed:\n  committed: {then}\n  now:       {now}\n  \
             (UPDATE_SNAPSHOT=1 writes it anew)"
        );
    }
    assert_eq!(printed.lines().count(), committed.lines().count());
}

fn print() -> String {
    let mut out = LEGEND.to_owned();
    let subjects = known();
    for profile in Profile::ALL {
        let matrix = Matrix::builtin(*profile).unwrap();
        let table = matrix.render();
        // The version is a hash of the file: every edit of a comment would change it.
        let table = table.replace(matrix.version(), "(hash of the data)");
        let _ = write!(out, "\n{}\n{table}", "=".repeat(100));
        for operation in world::all_operations(&world::operations()) {
            print_operation(&mut out, &matrix, &operation, &subjects);
        }
    }
    out
}

type Known = (Subject, Vec<(Case, Facts)>);

/// Every subject with the facts of every case.
fn known() -> Vec<Known> {
    let with_facts = |subject: Subject| {
        let facts = world::cases().into_iter().map(|case| (case, world::facts(&subject, case)));
        let facts = facts.collect();
        (subject, facts)
    };
    world::subjects().into_iter().map(with_facts).collect()
}

fn print_operation(out: &mut String, matrix: &Matrix, operation: &Operation, subjects: &[Known]) {
    let document =
        operation.document.map_or(String::new(), |kind| format!(" {kind} {}", kind.ja()));
    let _ = writeln!(out, "\n{} {}{document}", matrix.profile(), operation.action);
    let mut same: BTreeMap<char, Vec<&str>> = BTreeMap::new();
    for (subject, facts) in subjects {
        let lines = lines(matrix, subject, facts, operation);
        if let [(_, only)] = lines.as_slice()
            && let Some(sign) = only.chars().next()
            && only.chars().all(|other| other == sign || other == ' ')
        {
            same.entry(sign).or_default().push(subject.name);
        } else {
            for (variant, signs) in lines {
                let _ = writeln!(out, "  {}{signs}", pad(&format!("{} {variant}", subject.name)));
            }
        }
    }
    for (sign, names) in same {
        let _ = writeln!(out, "  {sign} always: {}", names.join(" · "));
    }
}

/// The line of a subject without plan and request, then those variants where plan or request change
/// something.
fn lines(
    matrix: &Matrix,
    subject: &Subject,
    facts: &[(Case, Facts)],
    operation: &Operation,
) -> Vec<(String, String)> {
    let mut all: Vec<(Case, String)> = Vec::new();
    for cases in facts.chunks(16) {
        let sign = |(_, facts): &(Case, Facts)| sign(matrix, subject, operation, facts);
        let signs: Vec<char> = cases.iter().map(sign).collect();
        let groups: Vec<String> = signs.chunks(4).map(|group| group.iter().collect()).collect();
        let signs = format!("{} {}  {} {}", groups[0], groups[1], groups[2], groups[3]);
        all.push((cases[0].0, signs));
    }
    let of = |plans, request| {
        let same = |(case, _): &&(Case, String)| case.plans == plans && case.request == request;
        all.iter().find(same).map(|(_, signs)| signs.clone())
    };
    let changes = |(case, signs): &(Case, String)| {
        let first = !case.plans && case.request == OpinionRequest::Absent;
        let same_plan = case.plans && of(false, case.request).as_ref() == Some(signs);
        let same_request = case.request != OpinionRequest::Absent
            && of(case.plans, OpinionRequest::Absent).as_ref() == Some(signs);
        first || !(same_plan || same_request)
    };
    let shown = all.iter().filter(|line| changes(line));
    shown.map(|(case, signs)| (variant(*case), signs.clone())).collect()
}

fn variant(case: Case) -> String {
    let request = match case.request {
        OpinionRequest::Absent => "",
        OpinionRequest::Answered => "[asked]",
        OpinionRequest::Open => "[open]",
    };
    format!("{}{request}", if case.plans { "[plans]" } else { "" })
}

fn sign(matrix: &Matrix, subject: &Subject, operation: &Operation, facts: &Facts) -> char {
    match world::decided(matrix, subject, facts, operation) {
        Decision::Allow(grant) => {
            let kinds: Vec<_> = grant.kinds().collect();
            let own_only = !kinds.is_empty() && kinds.iter().all(|kind| kind.own_only);
            if own_only { '□' } else { '■' }
        }
        Decision::Deny(denial) => letter(denial.primary()),
    }
}

fn letter(reason: Reason) -> char {
    match reason {
        Reason::NotShared => 'n',
        Reason::NotLive => 'l',
        Reason::NotRegistered => 'r',
        Reason::ConsentRequired => 'c',
        Reason::NotAuthor => 'a',
        Reason::WrongJob => 'j',
        Reason::NotPlanningOffice => 'p',
        Reason::OpinionRequestMissing => 'o',
        Reason::NotOwnInsurer => 'i',
        Reason::CertificateKindRefused => 'k',
        other => panic!("{other} cannot come from these facts"),
    }
}

fn pad(text: &str) -> String {
    let wide = |c: char| !c.is_ascii() && c != '–';
    let columns: usize = text.chars().map(|c| if wide(c) { 2 } else { 1 }).sum();
    format!("{text}{}", " ".repeat(46usize.saturating_sub(columns).max(1)))
}
