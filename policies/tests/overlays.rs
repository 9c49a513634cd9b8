//! Overlays in a decision: they only take away, from the list as from the document, and a paused
//! service type never makes an office something that may see more.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise"
)]

mod world;

use std::sync::LazyLock;

use policies::decide::{Decision, decide, explain, visible};
use policies::document::{DocumentKind, DocumentSet};
use policies::facts::Facts;
use policies::matrix::{Matrix, Profile};
use policies::operations::{Action, Operation};
use policies::overlay::{Circumstances, Overlays};
use policies::reason::Reason;
use proptest::prelude::*;
use world::{Case, NOW, OpinionRequest, Subject};

/// What an overlay can say, each as the body of a file.
const BODIES: [&str; 9] = [
    "[[hours]]\ndays = [\"mon\", \"wed\", \"fri\"]\nfrom = \"00:00\"\nuntil = \"24:00\"\n",
    "[addresses]\nallowed = [\"203.0.113.0/24\"]\n",
    "[paused]\ndocuments = [\"insured-card\", \"home-care-plan\"]\n",
    "[paused]\nservice-types = [\"15\"]\n",
    "[paused]\nservice-types = [\"43\", \"51\"]\n",
    "[paused]\nservice-types = [\"52\", \"13\"]\n",
    "[paused]\neverything = true\n",
    "[bulk]\nreads-per-hour-max = 3\n",
    "[pilot]\noffices = [\"1370000019\"]\n",
];

const TARGETS: [&str; 4] = [
    "every-office = true",
    "offices = [\"1370000001\"]",
    "service-types = [\"15\", \"43\"]",
    "municipalities = [\"131016\"]",
];

fn overlay(target: usize, body: usize) -> String {
    // A pilot is a municipality's, and a ceiling is not.
    let target = match body {
        8 => 3,
        7 if target == 3 => 0,
        _ => target,
    };
    format!("source = \"x\"\n[applies-to]\n{}\n{}", TARGETS[target], BODIES[body])
}

fn narrowed(texts: &[String], profile: Profile) -> Matrix {
    let named = |(at, text): (usize, &String)| (format!("overlays/{at}.toml"), text.clone());
    let files: Vec<_> = texts.iter().enumerate().map(named).collect();
    let overlays = Overlays::parse(&files, None).unwrap();
    Matrix::builtin(profile).unwrap().narrowed_by(overlays, "x".to_owned())
}

fn opened(decision: &Decision) -> DocumentSet {
    match decision {
        Decision::Allow(grant) => grant.documents(),
        Decision::Deny(_) => DocumentSet::EMPTY,
    }
}

static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(world::subjects);
static CASES: LazyLock<Vec<Case>> = LazyLock::new(world::cases);
static OPERATIONS: LazyLock<Vec<Operation>> =
    LazyLock::new(|| world::all_operations(&world::operations()));
static MATRICES: LazyLock<Vec<Matrix>> = LazyLock::new(|| {
    Profile::ALL.iter().map(|profile| Matrix::builtin(*profile).unwrap()).collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_never_opens_anything(
        subject in 0..SUBJECTS.len(),
        case in 0..CASES.len(),
        operation in 0..OPERATIONS.len(),
        profile in 0..2usize,
        chosen in proptest::collection::vec((0..4usize, 0..9usize), 1..4),
        (day, reads) in (0..7u64, 0..6u32),
        address in proptest::sample::select(vec![None, Some("203.0.113.9"), Some("198.51.100.9")]),
    ) {
        let (subject, operation) = (&SUBJECTS[subject], &OPERATIONS[operation]);
        let texts: Vec<String> = chosen.iter().map(|(to, body)| overlay(*to, *body)).collect();
        let narrow = narrowed(&texts, Profile::ALL[profile]);
        let facts = world::facts(subject, CASES[case]);
        let staff = world::staff(subject);
        let mut query = world::query(subject, staff.as_ref(), operation);
        query.now = NOW + day * 86_400;
        query.not_after = query.now;
        let address = address.map(|text| text.parse().unwrap());
        query.circumstances = Circumstances { address, network: None, reads_this_hour: reads };
        let wide = decide(&MATRICES[profile], &facts, &query);
        let now = decide(&narrow, &facts, &query);
        prop_assert!(wide.is_allow() || !now.is_allow(), "{texts:?}: {wide:?} {now:?}");
        prop_assert_eq!(opened(&wide).union(opened(&now)), opened(&wide));
        if let (Decision::Deny(before), Decision::Deny(after)) = (&wide, &now) {
            prop_assert_eq!(before.reasons.union(after.reasons), after.reasons);
        }
        let list = visible(&narrow, &facts, &query);
        prop_assert_eq!(visible(&MATRICES[profile], &facts, &query).union(list),
            visible(&MATRICES[profile], &facts, &query));
        if subject.principal.office().is_none() {
            prop_assert_eq!(&wide, &now);
        }
        // The explanation says the same, and names the overlay that closes.
        let told = explain(&narrow, &facts, &query);
        prop_assert_eq!(told.outcome == "allow", now.is_allow());
        let closes = told.gates.iter().any(|gate| gate.gate == "overlay" && !gate.open);
        prop_assert_eq!(wide.is_allow() && !now.is_allow(), closes && wide.is_allow());
    }

    #[test]
    fn a_list_holds_what_could_be_viewed_under_overlays(
        subject in 0..SUBJECTS.len(),
        case in 0..CASES.len(),
        chosen in proptest::collection::vec((0..4usize, 0..9usize), 1..3),
    ) {
        let subject = &SUBJECTS[subject];
        let texts: Vec<String> = chosen.iter().map(|(to, body)| overlay(*to, *body)).collect();
        let narrow = narrowed(&texts, Profile::Deck2025);
        let facts = world::facts(subject, CASES[case]);
        let staff = world::staff(subject);
        let list = world::operation(&world::operations(), Action::ListDocuments, None);
        let listed = visible(&narrow, &facts, &world::query(subject, staff.as_ref(), &list));
        for kind in DocumentKind::ALL.iter().filter(|kind| kind.is_held()) {
            let view = world::operation(&world::operations(), Action::ViewDocument, Some(*kind));
            let query = world::query(subject, staff.as_ref(), &view);
            let viewed = decide(&narrow, &facts, &query).is_allow();
            prop_assert_eq!(listed.contains(*kind), viewed, "{}", kind);
        }
    }
}

fn subject(name: &str) -> Subject {
    world::subjects().into_iter().find(|subject| subject.name == name).unwrap()
}

fn everything() -> Case {
    Case {
        live: true,
        author: true,
        registered: true,
        consent: true,
        plans: true,
        request: OpinionRequest::Open,
    }
}

fn view(name: &str, paused: &str, kind: DocumentKind) -> Vec<Reason> {
    let text = format!(
        "source = \"x\"\n[applies-to]\nevery-office = true\n[paused]\nservice-types = [{paused}]\n"
    );
    let matrix = narrowed(&[text], Profile::Deck2025);
    let subject = subject(name);
    let operation = world::operation(&world::operations(), Action::ViewDocument, Some(kind));
    match world::decided(&matrix, &subject, &world::facts(&subject, everything()), &operation) {
        Decision::Allow(_) => Vec::new(),
        Decision::Deny(denial) => denial.reasons.iter().collect(),
    }
}

#[test]
fn a_paused_service_type_closes_what_only_it_opens() {
    let (card, survey) = (DocumentKind::InsuredCard, DocumentKind::CertificationSurvey);
    assert_eq!(view("通所15 care worker", "\"15\"", card), [Reason::Paused]);
    assert_eq!(view("通所15 care worker", "\"16\"", card), []);
    assert_eq!(view("居宅+介護43,15 clerk", "\"15\"", card), []);
    assert_eq!(view("居宅+介護43,15 clerk", "\"43\"", survey), [Reason::Paused]);
    assert_eq!(view("居宅+介護43,15 clerk", "\"43\"", card), []);
    assert_eq!(view("居宅+介護43,15 clerk", "\"15\", \"43\"", card), [Reason::Paused]);
}

#[test]
fn what_was_closed_anyway_is_not_said_to_be_paused() {
    let survey = DocumentKind::CertificationSurvey;
    assert_eq!(view("通所15 care worker", "\"15\"", survey), [Reason::WrongJob]);
}

#[test]
fn no_facts_and_no_office_are_denied_with_and_without_overlays() {
    let text =
        "source = \"x\"\n[applies-to]\nevery-office = true\n[bulk]\nreads-per-hour-max = 9\n";
    for matrix in [MATRICES[0].clone(), narrowed(&[text.to_owned()], Profile::Deck2025)] {
        for subject in SUBJECTS.iter().filter(|subject| subject.principal.office().is_some()) {
            for operation in OPERATIONS.iter() {
                let decision = world::decided(&matrix, subject, &Facts::new(), operation);
                assert!(!decision.is_allow(), "{} {}", subject.name, operation.id);
            }
        }
    }
}
