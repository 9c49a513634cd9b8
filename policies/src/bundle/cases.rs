//! The authors' cases of a policy, `tests.json`: a request, the facts that it meets, and what must
//! come of it. A policy that decides one of them otherwise does not load.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{CASES, Files, MATRIX, is_overlay};
use crate::decide::{Decision, Denial, FeedState, Query, closing_overlays, decide};
use crate::document::{DocumentKind, DocumentSet};
use crate::facts::Facts;
use crate::feed::Fact;
use crate::identity::{Identity, InsuredKey, Job, OfficeNumber, Serial, ServiceType, Staff};
use crate::matrix::Matrix;
use crate::operations::{Operation, Operations};
use crate::overlay::{Circumstances, NetworkKind, hours};
use crate::problem::{Problem, did_you_mean};
use crate::reason::{Reason, ReasonSet};

/// One case as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What must be true, as a sentence.
    pub name: String,
    /// Who asks: `office/1370000001`, `municipality/131016`, `system/life`.
    pub principal: String,
    /// The service types of the office.
    #[serde(default)]
    pub service_types: Vec<ServiceType>,
    /// Whether it is a medical institution.
    #[serde(default)]
    pub medical: bool,
    /// The job of the member of staff who asks.
    pub job: Option<Job>,
    /// Method and path, such as `GET /v1/insured/131016/0000000001/documents/insured-card`.
    pub request: String,
    /// When, in Japan, such as `2026-04-06T10:00`.
    pub at: String,
    /// From where.
    pub address: Option<IpAddr>,
    /// By which network: `open` or `closed`.
    pub network: Option<NetworkKind>,
    /// Reads by the same office before this one in the hour.
    #[serde(default)]
    pub reads_this_hour: u32,
    /// What is true of the person and the office: names of [`FACTS`].
    #[serde(default)]
    pub facts: Vec<String>,
    /// What must come of it.
    pub decision: Expected,
    /// The reasons of a denial, all of them.
    #[serde(default)]
    pub reasons: Vec<Reason>,
}

/// What a case expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// The request goes on.
    Allow,
    /// The request is refused.
    Deny,
}

/// What came of a case.
#[derive(Debug, Clone, Serialize)]
pub struct Ran {
    /// The case.
    pub name: String,
    /// Whether it came as expected.
    pub passed: bool,
    /// What came.
    pub decision: Expected,
    /// The reasons of a denial.
    pub reasons: ReasonSet,
    /// The overlays that closed it.
    pub overlays: Vec<String>,
}

/// What a case can say to be true.
pub const FACTS: [&str; 7] =
    ["live", "registered", "consent", "author", "plans-for", "opinion-request", "suspended"];

/// Reads the cases of a policy. Only the built-in matrix by itself needs none.
///
/// # Errors
/// What cannot be read.
pub fn parse(files: &Files) -> Result<Vec<Case>, Vec<Problem>> {
    let decides = files.keys().any(|path| path == MATRIX || is_overlay(path));
    let hint = "write one case for what is refused and one for what is still allowed; see \
                policies/examples/";
    let Some(text) = files.get(CASES) else {
        let missing = Problem::of_file(CASES, "is missing: a policy shows what it does", hint);
        return if decides { Err(vec![missing]) } else { Ok(Vec::new()) };
    };
    let cases: Vec<Case> = serde_json::from_str(text).map_err(|error| {
        let told = error.to_string();
        let what = told.split(" at line ").next().unwrap_or_default().to_owned();
        let hint = "a list of cases; see docs/policies.md for the fields".to_owned();
        let (file, line, column) = (CASES.to_owned(), error.line(), error.column());
        vec![Problem { file, line, column, problem: what, hint }]
    })?;
    if cases.is_empty() && decides {
        return Err(vec![Problem::of_file(CASES, "holds no case", hint)]);
    }
    Ok(cases)
}

/// What is wrong with the cases: those that come otherwise, and overlays that none shows to refuse.
pub(super) fn check(files: &Files, cases: &[Case], matrix: &Matrix) -> Vec<Problem> {
    let text = files.get(CASES).map_or("", String::as_str);
    let mut problems = Vec::new();
    let mut shown: Vec<String> = Vec::new();
    for case in cases {
        let at = place(text, &case.name);
        match run(case, matrix) {
            Ok(ran) => {
                if !ran.passed {
                    problems.push(Problem::at(CASES, text, &at, told(case, &ran), FAILED_HINT));
                }
                shown.extend(ran.overlays);
            }
            Err((what, hint)) => {
                let what = format!("case `{}`: {what}", case.name);
                problems.push(Problem::at(CASES, text, &at, what, hint));
            }
        }
    }
    for overlay in matrix.overlays().iter().filter(|it| !shown.contains(&it.name)) {
        let file = format!("overlays/{}.toml", overlay.name);
        let what = "no case shows that this overlay refuses anything";
        let hint = format!("add a case to {CASES} that it refuses");
        problems.push(Problem::of_file(&file, what, hint));
    }
    problems
}

/// Runs one case.
///
/// # Errors
/// What in the case is not understood, and a hint.
pub fn run(case: &Case, matrix: &Matrix) -> Result<Ran, (String, String)> {
    let (operation, principal, now) = read(case)?;
    let facts = facts(case, &principal, operation.insured, now)?;
    let staff = principal.office().zip(case.job).map(|(office, job)| Staff {
        id: "case".to_owned(),
        office,
        job,
        session: "case".to_owned(),
    });
    let serial = Serial::from_bytes(&[1]).map_err(|error| (error.to_string(), String::new()))?;
    let query = Query {
        principal: &principal,
        serial,
        not_after: u64::MAX,
        staff: staff.as_ref(),
        operation: &operation,
        now,
        feeds: FeedState::fresh(),
        circumstances: Circumstances {
            address: case.address,
            network: case.network,
            reads_this_hour: case.reads_this_hour,
        },
    };
    let (decision, reasons) = match decide(matrix, &facts, &query) {
        Decision::Allow(_) => (Expected::Allow, ReasonSet::EMPTY),
        Decision::Deny(Denial { reasons }) => (Expected::Deny, reasons),
    };
    let wanted: ReasonSet = case.reasons.iter().copied().collect();
    let passed = decision == case.decision && reasons == wanted;
    let overlays = closing_overlays(matrix, &facts, &query);
    Ok(Ran { name: case.name.clone(), passed, decision, reasons, overlays })
}

fn read(case: &Case) -> Result<(Operation, Identity, u64), (String, String)> {
    let principal = Identity::from_path(&case.principal)
        .or_else(|_| Identity::from_path(&format!("{}/terminal/case", case.principal)));
    let principal = principal.map_err(|error| {
        (error.to_string(), "write office/NUMBER, municipality/NUMBER or system/NAME".to_owned())
    })?;
    let now = hours::unix(&case.at).ok_or_else(|| {
        let what = format!("`{}` is not a time", case.at);
        (what, "write it as in Japan: 2026-04-06T10:00".to_owned())
    })?;
    let operations = Operations::builtin().map_err(|error| (error.to_string(), String::new()))?;
    let (method, path) = case.request.split_once(' ').unwrap_or(("", &case.request));
    let operation = operations.resolve(method, path).ok_or_else(|| {
        let what = format!("`{}` is no operation", case.request);
        (what, "write METHOD /v1/…; docs/api.md has all of them".to_owned())
    })?;
    Ok((operation, principal, now))
}

fn facts(
    case: &Case,
    principal: &Identity,
    insured: Option<InsuredKey>,
    now: u64,
) -> Result<Facts, (String, String)> {
    for name in &case.facts {
        if !FACTS.contains(&name.as_str()) {
            let hint = did_you_mean(name, FACTS);
            return Err((format!("`{name}` is not a fact"), hint));
        }
    }
    let has = |name: &str| case.facts.iter().any(|fact| fact == name);
    let from = now.saturating_sub(1);
    let mut facts = Facts::new();
    let office = principal.office();
    if let Some(number) = office {
        facts.apply(Fact::Office {
            number,
            service_types: case.service_types.clone(),
            medical: case.medical,
            suspended: has("suspended"),
            name: String::new(),
        });
    }
    let Some(insured) = insured else { return Ok(facts) };
    if has("live") {
        facts.apply(Fact::Sharing { insurer: insured.insurer, from: Some(from) });
    }
    if has("consent") {
        let scope = DocumentSet::held();
        facts.apply(Fact::Consent { id: 1, insured, scope, from, until: None, withdrawn: None });
    }
    if has("author") {
        for document in DocumentKind::ALL.iter().copied() {
            facts.apply(Fact::Author { party: principal.party(), insured, document });
        }
    }
    if let Some(office) = office {
        pair_facts(&mut facts, (office, insured), from, has);
    }
    Ok(facts)
}

fn pair_facts(
    facts: &mut Facts,
    (office, insured): (OfficeNumber, InsuredKey),
    from: u64,
    has: impl Fn(&str) -> bool,
) {
    if has("registered") {
        facts.apply(Fact::Registration { office, insured, from, until: None, ended: None });
    }
    if has("plans-for") {
        facts.apply(Fact::PlansFor { office, insured, active: true });
    }
    if has("opinion-request") {
        facts.apply(Fact::OpinionRequest { office, insured, open: true });
    }
}

fn told(case: &Case, ran: &Ran) -> String {
    let list = |decision: Expected, reasons: &[&str]| match decision {
        Expected::Allow => "allow".to_owned(),
        Expected::Deny => format!("deny ({})", reasons.join(", ")),
    };
    let wanted: Vec<&str> = case.reasons.iter().map(Reason::as_str).collect();
    let came: Vec<&'static str> = ran.reasons.iter().map(|reason| reason.as_str()).collect();
    format!(
        "case `{}` expects {} and gets {}",
        case.name,
        list(case.decision, &wanted),
        list(ran.decision, &came)
    )
}

fn place(text: &str, name: &str) -> std::ops::Range<usize> {
    let quoted = serde_json::to_string(name).unwrap_or_default();
    let at = text.find(&quoted).unwrap_or(0);
    at..at
}

const FAILED_HINT: &str = "correct the policy, or the case if the policy is right";
