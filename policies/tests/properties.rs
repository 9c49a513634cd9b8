//! What must hold whatever the data says: taking something away never opens anything, no mark of
//! the table is idle, and facts about others change nothing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise"
)]

mod world;

use std::sync::LazyLock;

use policies::decide::{Decision, FeedState, decide};
use policies::document::{DocumentKind, DocumentSet};
use policies::facts::Facts;
use policies::feed::Fact;
use policies::matrix::{Error, Matrix, Profile};
use policies::operations::{Action, Operation};
use proptest::prelude::*;
use toml::{Table, Value};
use world::{Case, NOW, OpinionRequest, Subject, insured, office_number};

const DATA: &str = include_str!("../data/sharing-matrix.toml");
const MARKS: [char; 4] = ['★', '○', '◎', '–'];

static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(world::subjects);
static OPERATIONS: LazyLock<Vec<Operation>> =
    LazyLock::new(|| world::all_operations(&world::operations()));
static MATRICES: LazyLock<Vec<Matrix>> = LazyLock::new(|| {
    Profile::ALL.iter().map(|profile| Matrix::builtin(*profile).unwrap()).collect()
});

fn table() -> Table {
    DATA.parse().unwrap()
}

fn load(table: &Table, profile: Profile) -> Result<Matrix, Error> {
    Matrix::parse(&toml::to_string(table).unwrap(), profile)
}

/// Every subject with the facts of every case.
fn world_facts() -> Vec<(Subject, Vec<Facts>)> {
    let with_facts = |subject: Subject| {
        let facts = world::cases().into_iter().map(|case| world::facts(&subject, case)).collect();
        (subject, facts)
    };
    world::subjects().into_iter().map(with_facts).collect()
}

/// Whether two matrices decide one of these operations differently for anybody in any case. `told`:
/// whether a refusal for other reasons counts as different.
fn differ(
    a: &Matrix,
    b: &Matrix,
    world: &[(Subject, Vec<Facts>)],
    operations: &[Operation],
    told: bool,
) -> bool {
    let differs = |subject: &Subject, facts: &Facts, operation: &Operation| {
        let decided = |matrix| world::decided(matrix, subject, facts, operation);
        match (decided(a), decided(b)) {
            (Decision::Deny(_), Decision::Deny(_)) if !told => false,
            (a, b) => a != b,
        }
    };
    operations.iter().any(|operation| {
        let known = |(subject, cases): &(Subject, Vec<Facts>)| {
            cases.iter().any(|facts| differs(subject, facts, operation))
        };
        world.iter().any(known)
    })
}

/// The cell with the `at`th mark replaced, and ᵃ where an undivided cell now needs it.
fn flip(cell: &str, at: usize, mark: char, is_office: bool) -> String {
    let mut seen = 0;
    let flipped: String = cell
        .chars()
        .map(|c| {
            let is_mark = MARKS.contains(&c);
            seen += usize::from(is_mark);
            if is_mark && seen == at + 1 { mark } else { c }
        })
        .collect();
    let undivided = is_office && !cell.contains('|');
    let plain = flipped.replace('ᵃ', "");
    match undivided {
        true if mark == '–' => plain,
        true => format!("{plain}ᵃ"),
        false => flipped,
    }
}

#[test]
fn the_data_survives_a_round_trip() {
    for profile in Profile::ALL {
        let again = load(&table(), *profile).unwrap();
        let builtin = Matrix::builtin(*profile).unwrap();
        assert_eq!(again.rows(), builtin.rows());
        assert_ne!(again.version(), builtin.version(), "the version is of the text");
    }
    let versions = Profile::ALL.iter().map(|p| Matrix::builtin(*p).unwrap().version().to_owned());
    let versions: std::collections::BTreeSet<String> = versions.collect();
    assert_eq!(versions.len(), Profile::ALL.len());
}

#[test]
fn flipping_any_one_mark_changes_a_decision_or_does_not_load() {
    let world = world_facts();
    let (mut changed, mut refused, mut alike) = (0, 0, 0);
    for document in DocumentKind::ALL.iter().filter(|kind| kind.is_held()) {
        let viewed: Vec<Operation> = OPERATIONS
            .iter()
            .filter(|op| op.document == Some(*document) && op.action == Action::ViewDocument)
            .cloned()
            .collect();
        for (column, from, to, mutant) in mutants(*document) {
            let loaded: Result<Vec<Matrix>, Error> =
                Profile::ALL.iter().map(|profile| load(&mutant, *profile)).collect();
            let Ok(loaded) = loaded else {
                refused += 1;
                continue;
            };
            let differs =
                MATRICES.iter().zip(&loaded).any(|(a, b)| differ(a, b, &world, &viewed, false));
            // The person's own ◎ is their own act of reading: it reads as ○, and as ★ does.
            let reads_alike = column == 0 && from != '–' && to != '–';
            assert_eq!(differs, !reads_alike, "{document}, column {column}: {from} → {to}");
            if differs { changed += 1 } else { alike += 1 }
        }
    }
    println!("mutants: {changed} changed a decision, {refused} did not load, {alike} read alike");
    assert!(changed > 80 && refused < changed, "{changed} {refused} {alike}");
}

/// Every one-mark change of a document's row: column, mark before, mark after, file.
fn mutants(document: DocumentKind) -> Vec<(usize, char, char, Table)> {
    let mut mutants = Vec::new();
    let cells: Vec<String> = table()["rows"][document.as_str()]["marks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell.as_str().unwrap().to_owned())
        .collect();
    for (column, cell) in cells.iter().enumerate() {
        let marks: Vec<char> = cell.chars().filter(|c| MARKS.contains(c)).collect();
        for (at, from) in marks.iter().enumerate() {
            for to in MARKS.iter().filter(|to| *to != from) {
                let mut mutant = table();
                let flipped = flip(cell, at, *to, column > 1);
                mutant["rows"][document.as_str()]["marks"][column] = Value::String(flipped);
                mutants.push((column, *from, *to, mutant));
            }
        }
    }
    mutants
}

#[test]
fn no_rule_and_no_profile_difference_is_idle() {
    let world = world_facts();
    let lists: [(&[&str], Profile); 4] = [
        (&["submission"], Profile::Deck2025),
        (&["resource"], Profile::Deck2025),
        (&["profile", "impl-2027", "cell"], Profile::Impl2027),
        (&["profile", "impl-2027", "condition"], Profile::Impl2027),
    ];
    for (path, profile) in lists {
        let base = Matrix::builtin(profile).unwrap();
        for at in 0..rules(&mut table(), path).len() {
            let mut mutant = table();
            let rule = rules(&mut mutant, path).remove(at);
            let touched: Vec<Operation> =
                OPERATIONS.iter().filter(|op| touches(&rule, path[0], op)).cloned().collect();
            if let Ok(loaded) = load(&mutant, profile) {
                let differs = differ(&base, &loaded, &world, &touched, true);
                assert!(differs, "{path:?} {at} is idle: {rule}");
            }
        }
    }
}

fn rules<'a>(table: &'a mut Table, path: &[&str]) -> &'a mut Vec<Value> {
    let first = &mut table[path[0]];
    let list = path[1..].iter().fold(first, |value, key| &mut value[*key]);
    list.as_array_mut().unwrap()
}

/// Whether removing `rule` from `list` could change this operation.
fn touches(rule: &Value, list: &str, operation: &Operation) -> bool {
    let names = |key: &str, name: &str| match rule.get(key) {
        Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(name)),
        Some(one) => one.as_str() == Some(name),
        None => false,
    };
    let document = operation
        .document
        .is_some_and(|kind| names("document", kind.as_str()) || names("documents", kind.as_str()));
    match list {
        "submission" => operation.action == Action::SubmitDocument && document,
        "resource" => names("action", operation.action.as_str()),
        _ => operation.action == Action::ViewDocument && document,
    }
}

#[test]
fn claims_stay_closed_whatever_their_row_says() {
    let operations = world::operations();
    for document in [DocumentKind::BenefitManagement, DocumentKind::BenefitClaims] {
        let mut operation =
            world::operation(&operations, Action::ViewDocument, Some(DocumentKind::InsuredCard));
        operation.document = Some(document);
        let mut mutant = table();
        let open = ["○※3", "○※3", "★※3 | ○※3", "★※3 | ○※3", "★※3 | ○※3"];
        mutant["rows"][document.as_str()]["marks"] =
            Value::Array(open.iter().map(|cell| Value::String((*cell).to_owned())).collect());
        let matrix = load(&mutant, Profile::Deck2025).unwrap();
        for (subject, cases) in world_facts() {
            for facts in cases {
                assert!(!world::decided(&matrix, &subject, &facts, &operation).is_allow());
            }
        }
        mutant["rows"][document.as_str()]["marks"][0] = Value::String("○".to_owned());
        let error = load(&mutant, Profile::Deck2025).unwrap_err().to_string();
        assert!(error.contains("※3"), "{error}");
    }
}

#[test]
fn every_problem_of_a_matrix_is_reported_together() {
    let mut wrong = table();
    wrong["rows"]["insured-card"]["marks"][0] = Value::String("x".to_owned());
    wrong["rows"]["life-feedback"]["marks"][3] = Value::String("– | ◎".to_owned());
    wrong["rows"]["housing-equipment"]["marks"].as_array_mut().unwrap().pop();
    wrong["rows"].as_table_mut().unwrap().remove("home-care-plan");
    wrong["submission"][0]["who"] = Value::String("anybody".to_owned());
    wrong["resource"][5]["needs"] = Value::Array(vec![Value::String("luck".to_owned())]);
    wrong["footnotes"].as_table_mut().unwrap().remove("ᵈ");
    let error = load(&wrong, Profile::Deck2025).unwrap_err();
    let all = error.to_string();
    for part in [
        "`insured-card`, column `person`: cell `x`",
        "author less than others",
        "must have 5 cells, has 4",
        "row `home-care-plan`: is missing",
        "`anybody`",
        "need `luck`",
        "`ᵈ` is missing",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert!(error.problems().iter().all(|line| line.starts_with("sharing-matrix.toml: ")), "{all}");
    let unknown = format!("surprise = 1\n{DATA}");
    let error = Matrix::parse(&unknown, Profile::Deck2025).unwrap_err().to_string();
    assert!(error.contains("surprise") && !error.contains('\n'), "{error}");
}

#[test]
fn a_matrix_that_breaks_a_floor_does_not_load() {
    let at = |table: &Table, action: &str, who: &str| {
        let list = table["resource"].as_array().unwrap();
        let is = |rule: &&Value| {
            rule["action"].as_str() == Some(action) && rule["who"].as_str() == Some(who)
        };
        list.iter().position(|rule| is(&rule)).unwrap()
    };
    for (action, who, needs, floor) in [
        ("list-documents", "office", vec![], "needs a registration"),
        ("list-documents", "office", vec!["registered"], "before the municipality shares"),
        ("view-certification", "office", vec!["live", "plans-for"], "only when registered"),
        ("view-access-history", "portal", vec![], "before the municipality shares"),
        ("login", "office", vec!["live"], "about nobody"),
    ] {
        let mut wrong = table();
        let index = at(&wrong, action, who);
        let needs = needs.into_iter().map(|need| Value::String(need.to_owned())).collect();
        wrong["resource"][index]["needs"] = Value::Array(needs);
        let error = load(&wrong, Profile::Deck2025).unwrap_err().to_string();
        assert!(error.contains(floor), "{action} {who}: {error}");
    }
}

/// Something that is taken away between two decisions.
#[derive(Debug, Clone, Copy)]
enum Loss {
    ConsentWithdrawn,
    ConsentNarrowed,
    RegistrationEnded,
    RegistrationLapsed,
    OfficeSuspended,
    CertificateRevoked,
    Unlaunched,
    PlanEnded,
    RequestAnswered,
    SessionEnded,
    HubSilent,
    CaSilent,
}

const LOSSES: [Loss; 12] = [
    Loss::ConsentWithdrawn,
    Loss::ConsentNarrowed,
    Loss::RegistrationEnded,
    Loss::RegistrationLapsed,
    Loss::OfficeSuspended,
    Loss::CertificateRevoked,
    Loss::Unlaunched,
    Loss::PlanEnded,
    Loss::RequestAnswered,
    Loss::SessionEnded,
    Loss::HubSilent,
    Loss::CaSilent,
];

impl Loss {
    fn apply(self, subject: &Subject, case: Case, facts: &mut Facts, feeds: &mut FeedState) {
        let (office, insured) = (office_number(), insured());
        let consent = |scope, withdrawn| Fact::Consent {
            id: 1,
            insured,
            scope,
            from: 0,
            until: None,
            withdrawn,
        };
        let registration =
            |until, ended| Fact::Registration { office, insured, from: 0, until, ended };
        match self {
            Self::ConsentWithdrawn => facts.apply(consent(DocumentSet::held(), Some(NOW))),
            Self::ConsentNarrowed if case.consent => {
                facts.apply(consent(DocumentSet::from_iter([DocumentKind::LifeFeedback]), None));
            }
            Self::ConsentNarrowed => {}
            Self::RegistrationEnded => facts.apply(registration(None, Some(NOW))),
            Self::RegistrationLapsed => facts.apply(registration(Some(NOW - 1), None)),
            Self::OfficeSuspended => facts.apply(Fact::Office {
                number: office,
                service_types: subject.service_types.iter().map(|c| c.parse().unwrap()).collect(),
                medical: subject.medical,
                suspended: true,
                name: String::new(),
            }),
            Self::CertificateRevoked => {
                facts.apply(Fact::Revoked { serial: world::serial(), at: NOW });
            }
            Self::Unlaunched => facts.apply(Fact::Sharing { insurer: insured.insurer, from: None }),
            Self::PlanEnded => facts.apply(Fact::PlansFor { office, insured, active: false }),
            Self::RequestAnswered if case.request == OpinionRequest::Open => {
                facts.apply(Fact::OpinionRequest { office, insured, open: false });
            }
            Self::RequestAnswered => {}
            Self::SessionEnded => {
                facts.apply(Fact::SessionEnded { session: "session-1".into(), until: NOW });
            }
            Self::HubSilent => feeds.hub_age_ms = Some(7_000),
            Self::CaSilent => feeds.ca_age_ms = None,
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    (0..world::cases().len()).prop_map(|at| world::cases()[at])
}

fn opened(decision: &Decision) -> DocumentSet {
    match decision {
        Decision::Allow(grant) => grant.documents(),
        Decision::Deny(_) => DocumentSet::EMPTY,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn losing_something_never_opens_anything(
        subject in 0..SUBJECTS.len(),
        case in case(),
        operation in 0..OPERATIONS.len(),
        losses in proptest::sample::subsequence(LOSSES.to_vec(), 1..4),
        matrix in 0..2usize,
    ) {
        let (subject, operation) = (&SUBJECTS[subject], &OPERATIONS[operation]);
        let matrix = &MATRICES[matrix];
        let staff = world::staff(subject);
        let mut query = world::query(subject, staff.as_ref(), operation);
        let mut facts = world::facts(subject, case);
        let before = decide(matrix, &facts, &query);
        for loss in losses {
            loss.apply(subject, case, &mut facts, &mut query.feeds);
        }
        let after = decide(matrix, &facts, &query);
        prop_assert!(before.is_allow() || !after.is_allow());
        prop_assert_eq!(opened(&before).union(opened(&after)), opened(&before));
    }

    #[test]
    fn facts_about_others_change_nothing(
        subject in 0..SUBJECTS.len(),
        case in case(),
        operation in 0..OPERATIONS.len(),
    ) {
        let (subject, operation) = (&SUBJECTS[subject], &OPERATIONS[operation]);
        let matrix = &MATRICES[1];
        let mut facts = world::facts(subject, case);
        let before = world::decided(matrix, subject, &facts, operation);
        let other = "1370000009".parse().unwrap();
        let person = "131016/0000000009".parse().unwrap();
        for (office, insured) in [(other, insured()), (office_number(), person)] {
            let party = format!("office/{office}");
            let document = DocumentKind::HomeCarePlan;
            facts.apply(Fact::Registration { office, insured, from: 0, until: None, ended: None });
            facts.apply(Fact::PlansFor { office, insured, active: true });
            facts.apply(Fact::OpinionRequest { office, insured, open: true });
            facts.apply(Fact::Author { party, insured, document });
        }
        let scope = DocumentSet::held();
        let (until, withdrawn) = (None, None);
            facts.apply(Fact::Consent { id: 9, insured: person, scope, from: 0, until, withdrawn });
        facts.apply(Fact::Sharing { insurer: "131024".parse().unwrap(), from: Some(0) });
        prop_assert_eq!(before, world::decided(matrix, subject, &facts, operation));
    }
}
