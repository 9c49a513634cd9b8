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

use policies::decide::{Decision, FeedState, decide};
use policies::document::DocumentSet;
use policies::facts::Facts;
use policies::feed::Fact;
use policies::matrix::{Matrix, Profile};
use policies::operations::Operation;
use policies::reason::Reason;
use world::{Case, NOW, OpinionRequest, Subject, insured, office_number};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix.out");

const LEGEND: &str = "\
Every operation, principal and combination of facts. Written by tests/matrix.rs; see there.

One line is one principal. Its 48 signs are the 48 combinations of four facts, in four groups:

    not live                          live                              the municipality shares
    --------------- ---------------   --------------- ---------------
    other           author            other           author            wrote such a document
    .... oooo rrrr  .... oooo rrrr    (the same)                        r  registered as 担当事業所
                                                                        o  was: lapsed or ended
    .ewc .ewc .ewc  .ewc .ewc .ewc                                      c  the person's consent
                                                                        e w  was: run out, withdrawn

  What is not yet in force (a registration, consent or go-live that lies ahead) and a consent to
  other kinds decide as if they were not there; a registration that lapsed decides as one that was
  ended. Signs:

    ■ allowed    □ allowed, own documents only
    n not_shared   l not_live      r not_registered   c consent_required   a not_author
    j wrong_job    p not_planning_office   o opinion_request_missing   i not_own_insurer
    k certificate_kind_refused     x registration_lapsed   e consent_expired   w consent_withdrawn
  (a letter is the primary reason; the others are missing too)

  A further line of the same principal shows the facts in brackets, where they change something:
  [plans] the office makes the person's plan · [asked] the insurer sent the institution a
  主治医意見書作成依頼 that was answered · [open] one that is open.

  At the end of each profile: certificate, office and feeds that are not in order, each with every
  operation and every combination above (but for o, e and w).
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
    let subjects = known();
    let profiles: Vec<String> = std::thread::scope(|scope| {
        let one = |profile: &'static Profile| {
            let subjects = &subjects;
            scope.spawn(move || print_profile(*profile, subjects))
        };
        let all: Vec<_> = Profile::ALL.iter().map(one).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    format!("{LEGEND}{}", profiles.concat())
}

fn print_profile(profile: Profile, subjects: &[Known]) -> String {
    let mut out = String::new();
    let matrix = Matrix::builtin(profile).unwrap();
    let table = matrix.render();
    // The version is a hash of the file: every edit of a comment would change it.
    let table = table.replace(matrix.version(), "(hash of the data)");
    let _ = write!(out, "\n{}\n{table}", "=".repeat(100));
    let operations = world::all_operations(&world::operations());
    for operation in &operations {
        print_operation(&mut out, &matrix, operation, subjects);
    }
    let _ = writeln!(out, "\n{profile} whatever the operation and the facts");
    for (name, state) in STATES {
        print_state(&mut out, name, *state, &matrix, &operations, subjects);
    }
    out
}

/// A registration or consent, by period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    Absent,
    Ahead,
    /// Past its last second.
    RunOut,
    /// Ended by hand: a registration ended, a consent withdrawn.
    Ended,
    InForce,
}

impl Period {
    /// First and last second, and when it was ended.
    fn times(self) -> Option<(u64, Option<u64>, Option<u64>)> {
        match self {
            Self::Absent => None,
            Self::Ahead => Some((NOW + 1, None, None)),
            Self::RunOut => Some((NOW - 10, Some(NOW - 1), None)),
            Self::Ended => Some((NOW - 10, None, Some(NOW - 1))),
            Self::InForce => Some((NOW - 10, Some(NOW), None)),
        }
    }
}

type Known = (Subject, Vec<(Case, Facts)>);

/// Every subject with the facts of every case and period: 48 for each variant of plan and request.
fn known() -> Vec<Known> {
    let with_facts = |subject: Subject| {
        let facts = world::cases().into_iter().filter(|case| !case.registered && !case.consent);
        let facts = facts.flat_map(|case| {
            REGISTRATIONS.iter().flat_map(move |registration| {
                CONSENTS.iter().map(move |consent| (case, *registration, *consent))
            })
        });
        let facts = facts.map(|(case, registration, consent)| {
            (case, in_period(&subject, case, registration, consent, DocumentSet::held()))
        });
        let facts = facts.collect();
        (subject, facts)
    };
    world::subjects().into_iter().map(with_facts).collect()
}

/// The facts of a case that has neither registration nor consent, with these.
fn in_period(
    subject: &Subject,
    case: Case,
    registration: Period,
    consent: Period,
    scope: DocumentSet,
) -> Facts {
    let (office, insured) = (office_number(), insured());
    let mut facts = world::facts(subject, case);
    if let Some((from, until, ended)) = registration.times() {
        facts.apply(Fact::Registration { office, insured, from, until, ended });
    }
    if let Some((from, until, withdrawn)) = consent.times() {
        facts.apply(Fact::Consent { id: 1, insured, scope, from, until, withdrawn });
    }
    facts
}

#[test]
fn what_is_not_in_force_yet_is_as_if_it_were_not_there() {
    let matrix = Matrix::builtin(Profile::Impl2027).unwrap();
    let operations = world::all_operations(&world::operations());
    let absent = |case: &Case| !case.registered && !case.consent;
    for subject in world::subjects() {
        for case in world::cases().into_iter().filter(absent) {
            let facts = |registration, consent| {
                in_period(&subject, case, registration, consent, DocumentSet::held())
            };
            let mut ahead = facts(Period::Absent, Period::InForce);
            let insurer = insured().insurer;
            ahead.apply(Fact::Sharing { insurer, from: Some(NOW + 1) });
            let mut shut = ahead.clone();
            shut.apply(Fact::Sharing { insurer, from: None });
            let alike = [
                (facts(Period::Ahead, Period::Ahead), facts(Period::Absent, Period::Absent)),
                (facts(Period::Ahead, Period::InForce), facts(Period::Absent, Period::InForce)),
                (facts(Period::InForce, Period::Ahead), facts(Period::InForce, Period::Absent)),
                (facts(Period::RunOut, Period::InForce), facts(Period::Ended, Period::InForce)),
                (ahead, shut),
            ];
            for operation in &operations {
                let decided = |facts| world::decided(&matrix, &subject, facts, operation);
                for (at, (one, other)) in alike.iter().enumerate() {
                    let told = || format!("{at}: {}, {}, {case:?}", subject.name, operation.id);
                    assert_eq!(decided(one), decided(other), "{}", told());
                }
                let Some(document) = operation.document else { continue };
                let scope = DocumentSet::held().iter().filter(|kind| *kind != document).collect();
                let (registered, given) = (Period::InForce, Period::InForce);
                let other = in_period(&subject, case, registered, given, scope);
                let none = facts(Period::InForce, Period::Absent);
                assert_eq!(decided(&other), decided(&none), "{}, {case:?}", subject.name);
            }
        }
    }
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
    let group = REGISTRATIONS.len() * CONSENTS.len();
    for cases in facts.chunks(4 * group) {
        let sign = |(_, facts): &(Case, Facts)| sign(matrix, subject, operation, facts);
        let signs: Vec<char> = cases.iter().map(sign).collect();
        let block = |block: &[char]| block.iter().collect::<String>();
        let groups: Vec<String> = signs
            .chunks(group)
            .map(|group| group.chunks(CONSENTS.len()).map(block).collect::<Vec<_>>().join(" "))
            .collect();
        all.push((cases[0].0, groups.join("  ")));
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

/// Something about certificate, office or feeds that is not in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Revoked,
    Expired,
    Suspended,
    Unknown,
    StaffMissing,
    SessionEnded,
    HubSilent,
    CaSilent,
}

impl State {
    fn decided(
        self,
        matrix: &Matrix,
        subject: &Subject,
        facts: &Facts,
        operation: &Operation,
    ) -> Decision {
        let mut facts = facts.clone();
        let staff = world::staff(subject).filter(|_| self != Self::StaffMissing);
        let mut query = world::query(subject, staff.as_ref(), operation);
        match self {
            Self::Revoked => facts.apply(Fact::Revoked { serial: world::serial(), at: NOW }),
            Self::Expired => query.not_after = NOW - 1,
            Self::Suspended => facts.apply(world::office_fact(subject, true)),
            Self::Unknown => facts.replace(policies::feed::Source::Ca, Vec::new()),
            Self::StaffMissing => {}
            Self::SessionEnded => {
                facts.apply(Fact::SessionEnded { session: "session-1".into(), until: NOW });
            }
            Self::HubSilent => query.feeds.hub_age_ms = Some(10_001),
            Self::CaSilent => query.feeds = FeedState { ca_age_ms: None, ..query.feeds },
        }
        decide(matrix, &facts, &query)
    }
}

/// What a state makes of each subject: one answer to everything, or what would be answered anyway.
fn print_state(
    out: &mut String,
    name: &str,
    state: State,
    matrix: &Matrix,
    operations: &[Operation],
    subjects: &[Known],
) {
    let mut same: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (subject, all) in subjects {
        let mut answers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for operation in operations {
            let mut told: Vec<&str> = there_or_not(all)
                .map(|(_, facts)| match state.decided(matrix, subject, facts, operation) {
                    Decision::Deny(denial) if not_in_order(denial.primary()) => {
                        denial.primary().as_str()
                    }
                    other => {
                        let in_order = world::decided(matrix, subject, facts, operation);
                        assert_eq!(other, in_order, "{name}: {}", subject.name);
                        "as in order"
                    }
                })
                .collect();
            told.sort_unstable();
            told.dedup();
            answers.entry(told.join(" or ")).or_default().push(operation.action.as_str());
        }
        let all: Vec<String> = match answers.len() {
            1 => answers.into_keys().collect(),
            _ => {
                let common = answers.iter().max_by_key(|(_, operations)| operations.len());
                let common = common.map(|(answer, _)| answer.clone()).unwrap_or_default();
                let others = answers.into_iter().filter(|(answer, _)| *answer != common);
                let others = others.map(|(answer, on)| format!("{answer} for {}", on.join(", ")));
                std::iter::once(common.clone()).chain(others).collect()
            }
        };
        same.entry(all.join("; but ")).or_default().push(subject.name);
    }
    let _ = writeln!(out, "  {name}");
    for (answer, names) in same {
        let _ = writeln!(out, "    {answer}: {}", names.join(" · "));
    }
}

/// Those combinations in which a registration and a consent are in force or not there at all.
fn there_or_not(all: &[(Case, Facts)]) -> impl Iterator<Item = &(Case, Facts)> {
    let ends = |(at, periods): &(usize, usize)| at % periods == 0 || at % periods == periods - 1;
    let (registrations, consents) = (REGISTRATIONS.len(), CONSENTS.len());
    let wanted = move |at: &usize| ends(&(at / consents, registrations)) && ends(&(*at, consents));
    all.iter().enumerate().filter(move |(at, _)| wanted(at)).map(|(_, known)| known)
}

/// Reasons of certificate, office, staff and feeds, which come before every other.
fn not_in_order(reason: Reason) -> bool {
    reason.is_about_principal() || reason == Reason::FactsStale
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
        Reason::RegistrationLapsed => 'x',
        Reason::ConsentExpired => 'e',
        Reason::ConsentWithdrawn => 'w',
        other => panic!("{other} cannot come from these facts"),
    }
}

fn pad(text: &str) -> String {
    let wide = |c: char| !c.is_ascii() && c != '–';
    let columns: usize = text.chars().map(|c| if wide(c) { 2 } else { 1 }).sum();
    format!("{text}{}", " ".repeat(46usize.saturating_sub(columns).max(1)))
}

const REGISTRATIONS: [Period; 3] = [Period::Absent, Period::Ended, Period::InForce];
const CONSENTS: [Period; 4] = [Period::Absent, Period::RunOut, Period::Ended, Period::InForce];
const STATES: &[(&str, State)] = &[
    ("certificate revoked", State::Revoked),
    ("certificate expired", State::Expired),
    ("office suspended", State::Suspended),
    ("office unknown", State::Unknown),
    ("no staff token", State::StaffMissing),
    ("staff session ended", State::SessionEnded),
    ("the hub's feed silent", State::HubSilent),
    ("the cert-authority's feed never heard", State::CaSilent),
];
