//! The decision: (matrix, facts, query) → [`Decision`]. No I/O, no clock, no randomness.
//!
//! ```text
//!  certificate · feeds · office · staff ── base gates ──┐
//!  overlays (hours, addresses, pauses …) ── base gates ─┤
//!  matrix cell or party rule ── ways ── needs, job ─────┴─► every way closed → Deny(all reasons)
//!                                                           one way open     → Allow(Grant)
//! ```
//!
//! A *way* is one rule that could say yes. All base gates are looked at, and of the ways the one
//! that is nearest to open, so that a denial names everything that is missing. An absent fact is a
//! closed gate; no way at all is `not_shared`. [`decide`], [`visible`] and [`explain`] are one
//! implementation: the same ways, looked at by the same gates.

use std::cell::OnceCell;

use crate::document::{DocumentKind, DocumentSet};
use crate::facts::{ConsentState, Facts, Office, Person, RegistrationState};
use crate::identity::{Identity, InsurerNumber, Job, Serial, ServiceType, Staff, SystemName};
use crate::matrix::{Matrix, PartyRule, Rule, Standing, Who};
use crate::operations::{Action, Operation, Subject};
use crate::overlay::{self, Circumstances, Narrowed};
use crate::reason::{Reason, ReasonSet};

mod explain;
mod grant;
mod standings;

pub use explain::{Change, Explanation, Gate, Way, closing_overlays, explain};
pub use grant::{Grant, GrantedKind, Needs};

use standings::Standings;

/// For how long a silent feed may still be decided from, in milliseconds since its last
/// authenticated line was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leases {
    /// Beyond this age of the hub's feed, nothing that rests on consent is shared.
    pub hub_consent_ms: u64,
    /// Beyond this age of the hub's feed, everything is denied.
    pub hub_deny_ms: u64,
    /// Beyond this age of the cert-authority's feed, everything is denied.
    pub ca_deny_ms: u64,
}

impl Default for Leases {
    fn default() -> Self {
        Self { hub_consent_ms: 5_000, hub_deny_ms: 10_000, ca_deny_ms: 60_000 }
    }
}

/// How old the facts are. `None`: no snapshot yet, which is as stale as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FeedState {
    /// Age of the cert-authority's feed in milliseconds.
    pub ca_age_ms: Option<u64>,
    /// Age of the hub's feed in milliseconds.
    pub hub_age_ms: Option<u64>,
    /// For how long they may be decided from.
    pub leases: Leases,
}

impl FeedState {
    /// Both feeds alive this moment.
    pub fn fresh() -> Self {
        Self { ca_age_ms: Some(0), hub_age_ms: Some(0), leases: Leases::default() }
    }

    /// Whether both feeds are so young that age denies nothing.
    pub fn in_lease(&self) -> bool {
        self.ca_in_lease() && self.consent_in_lease() && self.hub_in_lease()
    }

    fn ca_in_lease(&self) -> bool {
        self.ca_age_ms.is_some_and(|age| age <= self.leases.ca_deny_ms)
    }

    fn hub_in_lease(&self) -> bool {
        self.hub_age_ms.is_some_and(|age| age <= self.leases.hub_deny_ms)
    }

    fn consent_in_lease(&self) -> bool {
        self.hub_age_ms.is_some_and(|age| age <= self.leases.hub_consent_ms)
    }
}

/// One request, as far as a decision depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The principal of the verified certificate.
    pub principal: &'a Identity,
    /// The certificate's serial number.
    pub serial: Serial,
    /// The certificate's last valid second, Unix.
    pub not_after: u64,
    /// The member of staff of the verified staff token.
    pub staff: Option<&'a Staff>,
    /// What is asked for.
    pub operation: &'a Operation,
    /// The time of the request, Unix seconds.
    pub now: u64,
    /// How old the facts are.
    pub feeds: FeedState,
    /// What only an operator's overlays look at.
    pub circumstances: Circumstances,
}

/// Yes or no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The request may go on, as far as the grant reaches.
    Allow(Grant),
    /// The request is refused.
    Deny(Denial),
}

/// A refusal: never without a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Everything that is missing.
    pub reasons: ReasonSet,
}

impl Denial {
    /// The first closed gate.
    pub fn primary(&self) -> Reason {
        self.reasons.iter().next().unwrap_or(Reason::NotShared)
    }
}

impl Decision {
    /// Whether the request may go on.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Decides one request.
pub fn decide(matrix: &Matrix, facts: &Facts, query: &Query<'_>) -> Decision {
    let context = Context::new(matrix, facts, query);
    let base = base_gates(&context);
    let outcome = match base.contains(Reason::CertificateKindRefused) {
        true => Err(ReasonSet::EMPTY),
        false => operation_gates(&context),
    };
    let outcome = outcome.map_err(|reasons| match context.is_all_paused() {
        true => Reason::Paused.into(),
        false => reasons,
    });
    let outcome = outcome.and_then(|grant| context.without_paused_types(grant));
    match outcome {
        Ok(grant) if base.is_empty() => Decision::Allow(grant),
        Ok(_) => Decision::Deny(Denial { reasons: base }),
        Err(reasons) => Decision::Deny(Denial { reasons: base.union(reasons) }),
    }
}

/// The kinds of the person's documents that this request may see: those for which [`decide`] would
/// allow the same principal to view them. Empty when the request itself is refused.
pub fn visible(matrix: &Matrix, facts: &Facts, query: &Query<'_>) -> DocumentSet {
    let context = Context::new(matrix, facts, query);
    let about_person = query.operation.insured.is_some() && context.subject_gate().is_none();
    if about_person && base_gates(&context).is_empty() {
        context.unpaused().view_grant(DocumentKind::ALL).documents()
    } else {
        DocumentSet::EMPTY
    }
}

/// The ceiling of reads in an hour that the operator's overlays set for this request, if it counts
/// as a read. Whoever enforces it counts the reads and says them in [`Query::circumstances`].
pub fn reads_per_hour_max(matrix: &Matrix, facts: &Facts, query: &Query<'_>) -> Option<u32> {
    if matrix.overlays().is_empty() {
        return None;
    }
    let request = Context::new(matrix, facts, query).overlay_request()?;
    matrix.overlays().reads_per_hour_max(&request)
}

/// The certificate, the feeds, the office, the member of staff and the operator's overlays.
fn base_gates(context: &Context<'_>) -> ReasonSet {
    let Context { facts, query, .. } = context;
    let mut reasons = context.narrowed.reasons;
    let mut close = |closed: bool, reason| {
        if closed {
            reasons.insert(reason);
        }
    };
    let operator = matches!(query.principal, Identity::Operator { .. });
    close(operator, Reason::CertificateKindRefused);
    close(context.is_revoked, Reason::CertificateRevoked);
    close(query.not_after < query.now, Reason::CertificateExpired);
    close(!query.feeds.ca_in_lease() || !query.feeds.hub_in_lease(), Reason::FactsStale);
    if let Some(number) = query.principal.office() {
        close(context.office.is_none(), Reason::OfficeUnknown);
        close(context.office.is_some_and(|office| office.suspended), Reason::OfficeSuspended);
        let staffed = query.operation.action != Action::Login;
        close(staffed && query.staff.is_none(), Reason::StaffTokenMissing);
        let staff = query.staff.filter(|_| staffed);
        close(staff.is_some_and(|staff| staff.office != number), Reason::StaffTokenInvalid);
        let ended = |staff: &Staff| facts.session_ended(&staff.session);
        close(staff.is_some_and(ended), Reason::StaffSessionEnded);
    }
    reasons
}

/// What the operation itself asks for.
fn operation_gates(context: &Context<'_>) -> Result<Grant, ReasonSet> {
    if let Some(reason) = context.subject_gate() {
        return Err(reason.into());
    }
    let operation = context.query.operation;
    match (operation.action, operation.document) {
        (Action::ViewDocument, Some(document)) => {
            let grant = context.view_grant(&[document]);
            let ways = context.view_ways(document);
            if grant.documents().is_empty() { Err(context.why_closed(ways)) } else { Ok(grant) }
        }
        (Action::ListDocuments, _) => {
            let mut grant = context.view_grant(DocumentKind::ALL);
            match context.party_grant() {
                Ok(rule) => grant.set_needs(rule.needs),
                Err(_) if !grant.documents().is_empty() => {}
                Err(reasons) => return Err(reasons),
            }
            Ok(grant)
        }
        (Action::SubmitCarePlanFile, _) => {
            let mut grant = Grant::default();
            grant.open(DocumentKind::HomeCarePlan, context.party_grant()?);
            Ok(grant)
        }
        (_, Some(document)) => {
            let mut grant = Grant::default();
            grant.open(document, context.party_grant()?);
            Ok(grant)
        }
        (_, None) => Ok(Grant::of(context.party_grant()?.needs)),
    }
}

/// Everything that the gates of one query look at.
///
/// What nearly every decision asks of the facts is asked here, all at once: each look-up waits for
/// memory, and those that do not depend on each other then wait together.
#[derive(Clone)]
struct Context<'a> {
    matrix: &'a Matrix,
    facts: &'a Facts,
    query: &'a Query<'a>,
    person: Option<Person>,
    /// The number of the office and the person.
    pair: Option<u64>,
    registration: RegistrationState,
    office: Option<&'a Office>,
    is_revoked: bool,
    /// Whether the municipality shares.
    is_live: bool,
    /// Every capacity in which the principal reads.
    standings: Standings,
    /// The number that authorship goes by, once it was asked for.
    party: OnceCell<Option<u32>>,
    narrowed: Narrowed,
    /// Whether service types that an overlay pauses count for nothing.
    leaves_out_paused_types: bool,
}

/// A rule that could say yes, and the standing it would do so for.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    standing: Option<Standing>,
    document: Option<DocumentKind>,
    rule: &'a Rule,
}

impl<'a> Context<'a> {
    fn new(matrix: &'a Matrix, facts: &'a Facts, query: &'a Query<'a>) -> Self {
        let number = query.principal.office();
        let person = query.operation.insured.and_then(|insured| facts.person(insured));
        let pair = number.zip(person).and_then(|(office, person)| facts.pair(office, person));
        let registration = match pair {
            Some(pair) => facts.registration_of(pair, query.now),
            None => RegistrationState::Absent,
        };
        let office = number.and_then(|number| facts.office(number));
        let is_revoked = facts.revoked(query.serial).is_some();
        let mut context = Self {
            matrix,
            facts,
            query,
            person,
            pair,
            registration,
            office,
            is_revoked,
            is_live: false,
            standings: Standings::of(matrix, query.principal, office),
            party: OnceCell::new(),
            narrowed: Narrowed::default(),
            leaves_out_paused_types: false,
        };
        let sharing = context.insurer().and_then(|insurer| facts.sharing(insurer));
        context.is_live = sharing.is_some_and(|from| from <= query.now);
        if !matrix.overlays().is_empty()
            && let Some(request) = context.overlay_request()
        {
            context.narrowed = matrix.overlays().gate(&request);
        }
        context
    }

    /// The request as overlays see it; they are about offices only.
    fn overlay_request(&self) -> Option<overlay::Request<'a>> {
        let operation = self.query.operation;
        Some(overlay::Request {
            office: self.query.principal.office()?,
            service_types: self.office.map_or(&[], |office| &*office.service_types),
            insurer: self.insurer(),
            action: operation.action,
            document: operation.document,
            now: self.query.now,
            circumstances: self.query.circumstances,
        })
    }

    /// The same, with paused service types counting for nothing: a standing must be had with and
    /// without them.
    fn unpaused(&self) -> Self {
        if !self.narrowed.has_paused_types {
            return self.clone();
        }
        let whole = Self { leaves_out_paused_types: true, ..self.clone() };
        let Some(office) = self.office else { return whole };
        let left = Standings::of_office(self.matrix, office, |code| whole.counts(code));
        Self { standings: self.standings.intersection(left), ..whole }
    }

    /// Whether the kinds that overlays pause are all that would be open, as in a list that holds
    /// nothing else.
    fn is_all_paused(&self) -> bool {
        let paused_documents = DocumentSet::EMPTY;
        let narrowed = Narrowed { paused_documents, ..self.narrowed };
        !self.narrowed.paused_documents.is_empty()
            && operation_gates(self).is_err()
            && operation_gates(&Self { narrowed, ..self.clone() }).is_ok()
    }

    /// What is left of a grant when paused service types count for nothing: a rule must open with
    /// and without them, so that a pause never makes an office something else that may see more.
    fn without_paused_types(&self, grant: Grant) -> Result<Grant, ReasonSet> {
        if !self.narrowed.has_paused_types {
            return Ok(grant);
        }
        operation_gates(&self.unpaused()).map_err(|_| Reason::Paused.into())
    }

    /// Whether a service type of the office counts.
    fn counts(&self, code: ServiceType) -> bool {
        let request = self.leaves_out_paused_types.then(|| self.overlay_request()).flatten();
        !request.is_some_and(|request| self.matrix.overlays().pauses(&request, code))
    }

    /// The operation names what it is about, and a kind that is held.
    fn subject_gate(&self) -> Option<Reason> {
        let Operation { action, document, insured, insurer, .. } = self.query.operation;
        let given = match action.subject() {
            Subject::Nobody => true,
            Subject::Insurer => insurer.is_some(),
            Subject::Person => insured.is_some(),
            Subject::Document => insured.is_some() && document.is_some(),
        };
        let one_insurer = match (insured, insurer) {
            (Some(insured), Some(insurer)) => insured.insurer == *insurer,
            (Some(_), None) | (None, Some(_)) | (None, None) => true,
        };
        if !given || !one_insurer {
            Some(Reason::BadRequest)
        } else if document.is_some_and(|document| !document.is_held()) {
            Some(Reason::NotHeld)
        } else {
            None
        }
    }

    fn insurer(&self) -> Option<InsurerNumber> {
        let operation = self.query.operation;
        operation.insured.map(|insured| insured.insurer).or(operation.insurer)
    }

    /// Every open kind of `documents`, with the ways that open it.
    fn view_grant(&self, documents: &[DocumentKind]) -> Grant {
        let mut grant = Grant::default();
        let paused = self.narrowed.paused_documents;
        for document in documents.iter().filter(|document| !paused.contains(**document)) {
            for way in self.view_ways(*document) {
                if self.missing(&way).is_empty() {
                    grant.open(*document, way.rule);
                }
            }
        }
        grant
    }

    /// The first open rule for the action and document, or what is missing for the nearest.
    fn party_grant(&self) -> Result<&'a Rule, ReasonSet> {
        let open = self.party_ways().find(|way| self.missing(way).is_empty());
        open.map(|way| way.rule).ok_or_else(|| self.why_closed(self.party_ways()))
    }

    fn view_ways(&self, document: DocumentKind) -> impl Iterator<Item = Candidate<'a>> + use<'a> {
        let matrix = self.matrix;
        self.standings.iter().flat_map(move |standing| {
            let way =
                move |rule| Candidate { standing: Some(standing), document: Some(document), rule };
            matrix.cell(document, standing).rules().map(way)
        })
    }

    fn party_ways(&self) -> impl Iterator<Item = Candidate<'a>> {
        let Operation { action, document, .. } = self.query.operation;
        let document = *document;
        self.matrix
            .party_rules(*action, document)
            .filter(move |rule| self.is_for(rule))
            .map(move |rule| Candidate { standing: None, document, rule: &rule.rule })
    }

    /// Whether a submission or resource rule is for this principal.
    fn is_for(&self, rule: &PartyRule) -> bool {
        let with = names(rule, self.query.principal, self.office, |_| true);
        let without = || names(rule, self.query.principal, self.office, |code| self.counts(code));
        with && (!self.leaves_out_paused_types || without())
    }

    /// Everything that is missing for one way.
    fn missing(&self, way: &Candidate<'_>) -> ReasonSet {
        let mut reasons: ReasonSet =
            way.rule.needs.iter().filter_map(|need| self.need_gate(need, way.document)).collect();
        if self.is_other_insurer() {
            reasons.insert(Reason::NotOwnInsurer);
        }
        if way.rule.needs.contains(Needs::CONSENT) && !self.query.feeds.consent_in_lease() {
            reasons.insert(Reason::FactsStale);
        }
        if way.rule.job.is_some_and(|job| self.job() != Some(job)) {
            reasons.insert(Reason::WrongJob);
        }
        if way.rule.own_only && !self.is_author(way.document) {
            reasons.insert(Reason::NotAuthor);
        }
        reasons
    }

    /// What is missing for the way that is nearest to open; `not_shared` if there is none.
    fn why_closed(&self, ways: impl Iterator<Item = Candidate<'a>>) -> ReasonSet {
        ways.map(|way| (way, self.missing(&way)))
            .filter(|(way, missing)| !out_of_play(way, *missing))
            .min_by_key(|(way, missing)| distance(way, *missing))
            .map_or(Reason::NotShared.into(), |(_, missing)| missing)
    }

    /// Whether the need of a way is met; otherwise why not.
    fn need_gate(&self, need: Needs, document: Option<DocumentKind>) -> Option<Reason> {
        let closed = |open: bool, reason| (!open).then_some(reason);
        match need {
            Needs::LIVE => closed(self.is_live, Reason::NotLive),
            Needs::REGISTERED => self.registration_gate(),
            Needs::CONSENT => self.consent_gate(document),
            Needs::PLANS_FOR => closed(self.makes_the_plan(), Reason::NotPlanningOffice),
            Needs::OPINION_REQUEST => {
                closed(self.opinion_request() == Some(true), Reason::OpinionRequestMissing)
            }
            Needs::OPINION_REQUEST_EVER => {
                closed(self.opinion_request().is_some(), Reason::OpinionRequestMissing)
            }
            _ => Some(Reason::NotShared),
        }
    }

    fn makes_the_plan(&self) -> bool {
        self.pair.is_some_and(|pair| self.facts.plans_of(pair))
    }

    fn opinion_request(&self) -> Option<bool> {
        self.facts.opinion_request_of(self.pair?)
    }

    fn registration_gate(&self) -> Option<Reason> {
        match self.registration {
            RegistrationState::InForce(_) => None,
            RegistrationState::Over(_) => Some(Reason::RegistrationLapsed),
            RegistrationState::Absent => Some(Reason::NotRegistered),
        }
    }

    fn consent(&self, document: Option<DocumentKind>) -> ConsentState {
        match (self.person, document) {
            (Some(person), Some(document)) => {
                self.facts.consent_of(person, document, self.query.now)
            }
            (Some(_), None) | (None, Some(_)) | (None, None) => ConsentState::Absent,
        }
    }

    fn consent_gate(&self, document: Option<DocumentKind>) -> Option<Reason> {
        match self.consent(document) {
            ConsentState::Given(_) => None,
            ConsentState::Withdrawn(_) => Some(Reason::ConsentWithdrawn),
            ConsentState::Expired(_) => Some(Reason::ConsentExpired),
            ConsentState::Absent => Some(Reason::ConsentRequired),
        }
    }

    fn job(&self) -> Option<Job> {
        self.query.staff.map(|staff| staff.job)
    }

    fn is_author(&self, document: Option<DocumentKind>) -> bool {
        match (self.query.operation.insured, document) {
            (Some(insured), Some(document)) => {
                let party = self.party.get_or_init(|| self.facts.party(self.query.principal));
                party.is_some_and(|party| self.facts.author_of(party, insured, document))
            }
            (Some(_), None) | (None, Some(_)) | (None, None) => false,
        }
    }

    /// A municipality asks about another insurer's person or inbox.
    fn is_other_insurer(&self) -> bool {
        match self.query.principal {
            Identity::Municipality { insurer, .. } => self.insurer() != Some(*insurer),
            Identity::Office { .. } | Identity::System { .. } | Identity::Operator { .. } => false,
        }
    }
}

/// Whether a submission or resource rule is for this principal, by those service types that count.
fn names(
    rule: &PartyRule,
    principal: &Identity,
    office: Option<&Office>,
    counts: impl Fn(ServiceType) -> bool,
) -> bool {
    match (rule.who, principal) {
        (Who::Portal, Identity::System { name, .. }) => *name == SystemName::Portal,
        (Who::CarePlanExchange, Identity::System { name, .. }) => {
            *name == SystemName::CarePlanExchange
        }
        (Who::Life, Identity::System { name, .. }) => *name == SystemName::Life,
        (Who::Pmh, Identity::System { name, .. }) => *name == SystemName::Pmh,
        (Who::OwnInsurer, Identity::Municipality { .. }) => true,
        (Who::MedicalInstitution, Identity::Office { .. }) => {
            office.is_some_and(|office| office.medical)
        }
        (Who::Office, Identity::Office { .. }) => {
            let wanted = &rule.service_types;
            let holds = |office: &Office| {
                office.service_types.iter().any(|code| wanted.contains(code) && counts(*code))
            };
            wanted.is_empty() || office.is_some_and(holds)
        }
        (_, _) => false,
    }
}

/// ※1 needs both the job and the plan. A request with neither never came under it, so its reasons
/// would only mislead.
fn out_of_play(way: &Candidate<'_>, missing: ReasonSet) -> bool {
    way.standing.is_some_and(Standing::is_by_footnote_1)
        && missing.contains(Reason::WrongJob)
        && missing.contains(Reason::NotPlanningOffice)
}

/// How far a closed way is from open: authorship cannot be gained by asking, so such ways come
/// last.
fn distance(way: &Candidate<'_>, missing: ReasonSet) -> (bool, u32, bool, Option<Standing>) {
    (missing.contains(Reason::NotAuthor), missing.len(), way.rule.own_only, way.standing)
}
