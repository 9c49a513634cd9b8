//! The small world that the tests decide in: one person, one of every kind of principal, and every
//! combination of the facts that a cell can ask for.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the world")]

use policies::decide::{Decision, FeedState, Query, decide};
use policies::document::{DocumentKind, DocumentSet};
use policies::facts::Facts;
use policies::feed::Fact;
use policies::identity::{Identity, InsuredKey, Job, OfficeNumber, Serial, Staff};
use policies::matrix::Matrix;
use policies::operations::{Action, Operation, Operations, Subject as About};
use policies::overlay::Circumstances;

pub const NOW: u64 = 1_800_000_000;
pub const OFFICE: &str = "1370000001";

/// A principal of the world, with the office record and the job of the member of staff.
#[derive(Debug, Clone)]
pub struct Subject {
    pub name: &'static str,
    pub principal: Identity,
    pub service_types: &'static [&'static str],
    pub medical: bool,
    pub job: Option<Job>,
}

fn office(
    name: &'static str,
    service_types: &'static [&'static str],
    medical: bool,
    job: Job,
) -> Subject {
    let principal = Identity::from_path(&format!("office/{OFFICE}/terminal/a")).unwrap();
    Subject { name, principal, service_types, medical, job: Some(job) }
}

fn other(name: &'static str, path: &str) -> Subject {
    let principal = Identity::from_path(path).unwrap();
    Subject { name, principal, service_types: &[], medical: false, job: None }
}

/// Every kind of principal that some rule tells apart from another.
pub fn subjects() -> Vec<Subject> {
    use Job::{CareManager, CareWorker, Clerk, Nurse, Physician};
    vec![
        other("利用者 portal", "system/portal/terminal/a"),
        other("市区町村 own", "municipality/131016/terminal/a"),
        other("市区町村 other", "municipality/131024/terminal/a"),
        office("居宅43 care manager", &["43"], false, CareManager),
        office("居宅43 clerk", &["43"], false, Clerk),
        office("包括46 care manager", &["46"], false, CareManager),
        office("包括46 clerk", &["46"], false, Clerk),
        office("居宅+介護43,15 care manager", &["43", "15"], false, CareManager),
        office("居宅+介護43,15 clerk", &["43", "15"], false, Clerk),
        office("包括+介護46,15 care manager", &["46", "15"], false, CareManager),
        office("通所15 care manager", &["15"], false, CareManager),
        office("通所15 care worker", &["15"], false, CareWorker),
        office("特養51 care manager", &["51"], false, CareManager),
        office("特養51 nurse", &["51"], false, Nurse),
        office("老健52 care manager", &["52"], false, CareManager),
        office("老健52 physician", &["52"], false, Physician),
        office("医療院55 care manager", &["55"], false, CareManager),
        office("医療院55 nurse", &["55"], false, Nurse),
        office("居宅+老健43,52 care manager", &["43", "52"], false, CareManager),
        office("病院 physician", &[], true, Physician),
        office("病院 care manager", &[], true, CareManager),
        office("病院+介護13 nurse", &["13"], true, Nurse),
        office("病院+介護13 care manager", &["13"], true, CareManager),
        office("病院+居宅43 clerk", &["43"], true, Clerk),
        office("病院+医療院55 physician", &["55"], true, Physician),
        office("事業所 of no type", &[], false, CareManager),
        other("連携システム", "system/care-plan-exchange/terminal/a"),
        other("LIFE", "system/life/terminal/a"),
        other("PMH", "system/pmh/terminal/a"),
        other("operator", "operator/kawa"),
    ]
}

/// The insurer's 主治医意見書作成依頼 to the institution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpinionRequest {
    Absent,
    Answered,
    Open,
}

/// One combination of the facts that a rule can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub live: bool,
    pub author: bool,
    pub registered: bool,
    pub consent: bool,
    pub plans: bool,
    pub request: OpinionRequest,
}

/// Every combination: first by plan and request, then live, author, registered, consent.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for plans in [false, true] {
        for request in [OpinionRequest::Absent, OpinionRequest::Answered, OpinionRequest::Open] {
            for bits in 0..16u8 {
                let bit = |at: u8| bits & (1 << at) != 0;
                let (live, author) = (bit(3), bit(2));
                let (registered, consent) = (bit(1), bit(0));
                cases.push(Case { live, author, registered, consent, plans, request });
            }
        }
    }
    cases
}

pub fn insured() -> InsuredKey {
    "131016/0000000001".parse().unwrap()
}

pub fn office_number() -> OfficeNumber {
    OFFICE.parse().unwrap()
}

pub fn serial() -> Serial {
    "0a1b".parse().unwrap()
}

/// The facts of a case, for the office of the world.
pub fn facts(subject: &Subject, case: Case) -> Facts {
    let (office, insured) = (office_number(), insured());
    let mut facts = Facts::new();
    facts.apply(office_fact(subject, false));
    let from = case.live.then_some(NOW - 10);
    facts.apply(Fact::Sharing { insurer: insured.insurer, from });
    if case.author {
        for document in DocumentKind::ALL {
            let party = subject.principal.party();
            facts.apply(Fact::Author { party, insured, document: *document });
        }
    }
    if case.registered {
        let from = NOW - 10;
        facts.apply(Fact::Registration { office, insured, from, until: None, ended: None });
    }
    if case.consent {
        let scope = DocumentSet::held();
        let from = NOW - 10;
        facts.apply(Fact::Consent { id: 1, insured, scope, from, until: None, withdrawn: None });
    }
    facts.apply(Fact::PlansFor { office, insured, active: case.plans });
    if case.request != OpinionRequest::Absent {
        let open = case.request == OpinionRequest::Open;
        facts.apply(Fact::OpinionRequest { office, insured, open });
    }
    facts
}

/// The office's record as the operator registered it.
pub fn office_fact(subject: &Subject, suspended: bool) -> Fact {
    let service_types = subject.service_types.iter().map(|code| code.parse().unwrap()).collect();
    let (number, medical, name) = (office_number(), subject.medical, String::new());
    Fact::Office { number, service_types, medical, suspended, name }
}

/// The staff token of the subject, if it is an office.
pub fn staff(subject: &Subject) -> Option<Staff> {
    let job = subject.job?;
    Some(Staff { id: "s1".into(), office: office_number(), job, session: "session-1".into() })
}

pub fn operations() -> Operations {
    Operations::builtin().unwrap()
}

/// The operation for an action (and kind), as the gateway would resolve it.
pub fn operation(
    operations: &Operations,
    action: Action,
    document: Option<DocumentKind>,
) -> Operation {
    let entry = operations.entries().find(|entry| entry.action() == action).unwrap();
    let kind = document.map_or(String::new(), |document| document.to_string());
    let path = entry
        .path()
        .replace("{insurer}", "131016")
        .replace("{number}", "0000000001")
        .replace("{kind}", &kind)
        .replace("{consent}", "1")
        .replace("{item}", "1")
        .replace("{file}", "UP1KYO_1370000001_43_1370000002_15_20260401120000.CSV");
    operations.resolve(entry.method(), &path).unwrap()
}

/// Every operation of the table: one by action, and one by held kind where the path names one.
pub fn all_operations(operations: &Operations) -> Vec<Operation> {
    let mut all = Vec::new();
    for action in Action::ALL {
        if action.subject() == About::Document {
            let held = DocumentKind::ALL.iter().filter(|kind| kind.is_held());
            all.extend(held.map(|kind| operation(operations, *action, Some(*kind))));
        } else {
            all.push(operation(operations, *action, None));
        }
    }
    all
}

/// A query with everything in order that is not part of a case.
pub fn query<'a>(
    subject: &'a Subject,
    staff: Option<&'a Staff>,
    operation: &'a Operation,
) -> Query<'a> {
    Query {
        principal: &subject.principal,
        serial: serial(),
        not_after: NOW + 1_000,
        staff,
        operation,
        now: NOW,
        feeds: FeedState::fresh(),
        circumstances: Circumstances::default(),
    }
}

pub fn decided(
    matrix: &Matrix,
    subject: &Subject,
    facts: &Facts,
    operation: &Operation,
) -> Decision {
    decide(matrix, facts, &query(subject, staff(subject).as_ref(), operation))
}
