//! Why a decision is what it is: every gate with the fact behind it, every way with its cell and
//! source, and the smallest change that would allow.
//!
//! For operators only (`sekisho policy explain`): it tells about persons and offices what an office
//! that asks would not be told.

use std::fmt;

use serde::Serialize;

use super::{
    Candidate, Context, Decision, Grant, Needs, Query, base_gates, decide, distance,
    operation_gates,
};
use crate::document::{DocumentKind, DocumentSet};
use crate::facts::{ConsentState, Facts, RegistrationState};
use crate::feed::Source;
use crate::identity::{Identity, InsuredKey, Job, Staff};
use crate::matrix::{Matrix, Profile, Rule};
use crate::operations::Action;
use crate::overlay;
use crate::reason::{Fixer, Reason, ReasonSet};

/// A decision with everything that led to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `allow` or `deny`.
    pub outcome: &'static str,
    /// The first closed gate of a denial.
    pub primary: Option<Reason>,
    /// Everything that is missing, as the decision names it.
    pub reasons: ReasonSet,
    /// The profile that was decided with.
    pub profile: Profile,
    /// The matrix that was decided with.
    pub policy: String,
    /// Sequence of the cert-authority's facts.
    pub facts_ca_seq: u64,
    /// Sequence of the hub's facts.
    pub facts_hub_seq: u64,
    /// The time that was decided for, Unix seconds.
    pub at: u64,
    /// The principal.
    pub principal: String,
    /// The job of the member of staff.
    pub job: Option<Job>,
    /// The operation's id.
    pub operation: String,
    /// What is asked for.
    pub action: Action,
    /// The person.
    pub insured: Option<InsuredKey>,
    /// The kind of document.
    pub document: Option<DocumentKind>,
    /// The kinds that the person's list would hold for the same principal.
    pub visible: DocumentSet,
    /// The gates of certificate, feeds, office and staff.
    pub gates: Vec<Gate>,
    /// Every cell or rule that was looked at.
    pub ways: Vec<Way>,
    /// The smallest set of changes that would allow; empty if it is allowed, or nothing can.
    pub changes: Vec<Change>,
}

/// One gate and the fact that decided it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// The gate's name.
    pub gate: &'static str,
    /// Whether it is open.
    pub open: bool,
    /// Why it is closed.
    pub reason: Option<Reason>,
    /// The fact that was looked at.
    pub fact: String,
}

/// One cell or rule, and whether it opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Way {
    /// The standing (for a cell) or party (for a rule).
    pub r#for: String,
    /// The cell as it stands in the table, or what the rule asks for.
    pub cell: String,
    /// Where it is written.
    pub source: String,
    /// Opens only what the principal itself wrote.
    pub own_only: bool,
    /// Whether it opens.
    pub open: bool,
    /// Its gates.
    pub gates: Vec<Gate>,
}

/// One thing that would have to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The reason that it would remove.
    pub reason: Reason,
    /// Who can do it.
    pub by: Fixer,
    /// What is missing, in English.
    pub message: &'static str,
    /// What is missing, in Japanese.
    pub message_ja: &'static str,
}

/// Explains the decision that [`decide`] makes for the same arguments.
pub fn explain(matrix: &Matrix, facts: &Facts, query: &Query<'_>) -> Explanation {
    let context = Context::new(matrix, facts, query);
    let decision = decide(matrix, facts, query);
    let (outcome, reasons) = match &decision {
        Decision::Allow(_) => ("allow", ReasonSet::EMPTY),
        Decision::Deny(denial) => ("deny", denial.reasons),
    };
    let operation = query.operation;
    Explanation {
        outcome,
        primary: reasons.iter().next(),
        reasons,
        profile: matrix.profile(),
        policy: matrix.version().to_owned(),
        facts_ca_seq: facts.seq(Source::Ca),
        facts_hub_seq: facts.seq(Source::Hub),
        at: query.now,
        principal: query.principal.path(),
        job: query.staff.map(|staff| staff.job),
        operation: operation.id.to_string(),
        action: operation.action,
        insured: operation.insured,
        document: operation.document,
        visible: super::visible(matrix, facts, query),
        gates: context.explain_base(),
        ways: context.explain_ways(),
        changes: if decision.is_allow() { Vec::new() } else { context.smallest_change() },
    }
}

/// The names of the overlays that close a request, each for itself.
pub fn closing_overlays(matrix: &Matrix, facts: &Facts, query: &Query<'_>) -> Vec<String> {
    let context = Context::new(matrix, facts, query);
    let Some(request) = context.overlay_request() else { return Vec::new() };
    let closes = |overlay: &&overlay::Overlay| context.overlay_closes(overlay, &request).is_some();
    matrix.overlays().applying(&request).filter(closes).map(|it| it.name.clone()).collect()
}

impl Context<'_> {
    fn explain_base(&self) -> Vec<Gate> {
        let query = self.query;
        let closed = base_gates(self);
        let gate = |gate, reasons: &[Reason], fact: String| {
            let reason = reasons.iter().copied().find(|reason| closed.contains(*reason));
            Gate { gate, open: reason.is_none(), reason, fact }
        };
        let revoked = match self.facts.revoked(query.serial) {
            Some(at) => format!("serial {} revoked at {at}", query.serial),
            None => format!("serial {} not revoked, valid to {}", query.serial, query.not_after),
        };
        let mut gates = vec![
            gate("certificate-kind", &[Reason::CertificateKindRefused], query.principal.path()),
            gate("certificate", &[Reason::CertificateRevoked, Reason::CertificateExpired], revoked),
            gate("facts", &[Reason::FactsStale], self.feed_fact()),
        ];
        if query.principal.office().is_some() {
            let office = [Reason::OfficeUnknown, Reason::OfficeSuspended];
            gates.push(gate("office", &office, self.office_fact()));
            let staff =
                [Reason::StaffTokenMissing, Reason::StaffTokenInvalid, Reason::StaffSessionEnded];
            gates.push(gate("staff", &staff, staff_fact(query.staff)));
        }
        gates.extend(self.explain_overlays());
        if let Some(reason) = self.subject_gate() {
            let fact = reason.en().to_owned();
            gates.push(Gate { gate: "operation", open: false, reason: Some(reason), fact });
        }
        gates
    }

    /// One gate for each overlay that applies, with what it asks for and what was found.
    fn explain_overlays(&self) -> Vec<Gate> {
        let Some(request) = self.overlay_request() else { return Vec::new() };
        let found = self.query.circumstances;
        let address = found.address.map_or("an unknown address".to_owned(), |it| it.to_string());
        let moment = overlay::hours::Moment::at(request.now);
        let reads = found.reads_this_hour;
        let gate = |overlay: &overlay::Overlay| {
            let reason = self.overlay_closes(overlay, &request);
            let fact = format!(
                "{}: {}  [{}]; asked {moment} from {address}, {reads} reads before in this hour",
                overlay.name,
                overlay.describe(),
                overlay.source
            );
            Gate { gate: "overlay", open: reason.is_none(), reason, fact }
        };
        self.matrix.overlays().applying(&request).map(gate).collect()
    }

    /// Why an overlay that applies closes the request, if it does.
    fn overlay_closes(
        &self,
        overlay: &overlay::Overlay,
        request: &overlay::Request<'_>,
    ) -> Option<Reason> {
        if overlay::protects_people(request.action) {
            return None;
        }
        let types = &overlay.paused_service_types;
        let mut own = request.service_types.iter();
        let pauses_type = own.any(|code| types.contains(code))
            && operation_gates(self).is_ok()
            && self.without_paused_types(Grant::default()).is_err();
        let pauses_kind = !overlay.paused_documents.is_empty() && self.is_all_paused();
        let reason = overlay.closed(request).iter().next();
        reason.or((pauses_type || pauses_kind).then_some(Reason::Paused))
    }

    fn feed_fact(&self) -> String {
        let age =
            |age: Option<u64>| age.map_or("never heard".to_owned(), |ms| format!("{ms} ms old"));
        let feeds = self.query.feeds;
        format!("ca feed {}, hub feed {}", age(feeds.ca_age_ms), age(feeds.hub_age_ms))
    }

    fn office_fact(&self) -> String {
        let Some(office) = self.office else { return "no such office".to_owned() };
        let types: Vec<&str> = office.service_types.iter().map(|code| code.as_str()).collect();
        let medical = if office.medical { ", medical institution" } else { "" };
        let suspended = if office.suspended { ", suspended" } else { "" };
        format!("service types {}{medical}{suspended}", types.join(" "))
    }

    fn explain_ways(&self) -> Vec<Way> {
        let operation = self.query.operation;
        match (operation.action, operation.document) {
            (Action::ViewDocument, Some(document)) => self.explain_cells(document),
            (_, _) => self.party_ways_described(),
        }
    }

    fn explain_cells(&self, document: DocumentKind) -> Vec<Way> {
        let mut ways = Vec::new();
        for standing in self.standings.iter() {
            let cell = self.matrix.cell(document, standing);
            let way = |own_only, open, gates, source: &str| Way {
                r#for: standing.to_string(),
                cell: format!("{document} / {}: {}", standing.column().ja(), cell.text),
                source: source.to_owned(),
                own_only,
                open,
                gates,
            };
            for rule in cell.rules() {
                let found = Candidate { standing: Some(standing), document: Some(document), rule };
                let open = self.missing(&found).is_empty();
                ways.push(way(rule.own_only, open, self.explain_rule(&found), &rule.source));
            }
            if cell.rules().next().is_none() {
                let fact = "the cell is closed to this standing".to_owned();
                let reason = Some(Reason::NotShared);
                let closed = Gate { gate: "cell", open: false, reason, fact };
                ways.push(way(false, false, vec![closed], &cell.source));
            }
        }
        ways
    }

    fn party_ways_described(&self) -> Vec<Way> {
        let operation = self.query.operation;
        let rules = self.matrix.party_rules(operation.action, operation.document);
        let ways = rules.map(|rule| {
            let found = Candidate { standing: None, document: rule.document, rule: &rule.rule };
            let is_for = self.is_for(rule);
            let fact = format!(
                "the rule is {} {}",
                if is_for { "for" } else { "not for" },
                self.query.principal
            );
            let reason = (!is_for).then_some(Reason::NotShared);
            let mut gates = vec![Gate { gate: "party", open: is_for, reason, fact }];
            gates.extend(self.explain_rule(&found));
            Way {
                r#for: rule.who.to_string(),
                cell: rule.describe(),
                source: rule.rule.source.to_string(),
                own_only: false,
                open: is_for && self.missing(&found).is_empty(),
                gates,
            }
        });
        ways.collect()
    }

    fn explain_rule(&self, way: &Candidate<'_>) -> Vec<Gate> {
        let mut gates: Vec<Gate> =
            way.rule.needs.iter().map(|need| self.explain_need(need, way)).collect();
        if matches!(self.query.principal, Identity::Municipality { .. }) {
            let other = self.is_other_insurer();
            let insurer = self.insurer().map_or("none".to_owned(), |insurer| insurer.to_string());
            gates.push(Gate {
                gate: "own-insurer",
                open: !other,
                reason: other.then_some(Reason::NotOwnInsurer),
                fact: format!("the request is about insurer {insurer}"),
            });
        }
        gates.extend(self.explain_job(way.rule));
        if way.rule.own_only {
            let author = self.is_author(way.document);
            gates.push(Gate {
                gate: "author",
                open: author,
                reason: (!author).then_some(Reason::NotAuthor),
                fact: format!(
                    "{} {} such a document for this person",
                    self.query.principal.party(),
                    if author { "wrote" } else { "never wrote" }
                ),
            });
        }
        gates
    }

    fn explain_job(&self, rule: &Rule) -> Option<Gate> {
        let job = rule.job?;
        let open = self.job() == Some(job);
        let has = self.job().map_or("no member of staff".to_owned(), |has| format!("job {has}"));
        let reason = (!open).then_some(Reason::WrongJob);
        Some(Gate { gate: "job", open, reason, fact: format!("{has}; the rule asks for {job}") })
    }

    fn explain_need(&self, need: Needs, way: &Candidate<'_>) -> Gate {
        let stale = need == Needs::CONSENT && !self.query.feeds.consent_in_lease();
        let stale = stale.then_some(Reason::FactsStale);
        let reason = stale.or_else(|| self.need_gate(need, way.document));
        let gate = need.names().next().unwrap_or("need");
        Gate { gate, open: reason.is_none(), reason, fact: self.need_fact(need, way) }
    }

    fn need_fact(&self, need: Needs, way: &Candidate<'_>) -> String {
        match need {
            Needs::LIVE => match self.insurer().and_then(|insurer| self.facts.sharing(insurer)) {
                Some(from) => format!("the municipality shares from {from}"),
                None => "the municipality does not share".to_owned(),
            },
            Needs::REGISTERED => match self.registration {
                RegistrationState::InForce(from) => format!("registered since {from}"),
                RegistrationState::Over(at) => format!("the registration was over at {at}"),
                RegistrationState::Absent => "no registration".to_owned(),
            },
            Needs::CONSENT => match self.consent(way.document) {
                ConsentState::Given(id) => format!("consent {id}"),
                ConsentState::Withdrawn(at) => format!("consent withdrawn at {at}"),
                ConsentState::Expired(at) => format!("consent ended at {at}"),
                ConsentState::Absent => "no consent to this kind of document".to_owned(),
            },
            Needs::PLANS_FOR if self.makes_the_plan() => "the office makes the plan".to_owned(),
            Needs::PLANS_FOR => "the office does not make the plan".to_owned(),
            _ => match self.opinion_request() {
                Some(true) => "an open 主治医意見書作成依頼".to_owned(),
                Some(false) => "an answered 主治医意見書作成依頼".to_owned(),
                None => "no 主治医意見書作成依頼 to this institution".to_owned(),
            },
        }
    }

    /// Everything that the nearest way still needs; nothing if no change could open it.
    fn smallest_change(&self) -> Vec<Change> {
        let mut missing = base_gates(self);
        if let Some(reason) = self.subject_gate() {
            missing.insert(reason);
        } else {
            let operation = self.query.operation;
            let nearest = match (operation.action, operation.document) {
                (Action::ViewDocument, Some(document)) => self.nearest(self.view_ways(document)),
                (_, _) => self.nearest(self.party_ways()),
            };
            missing = missing.union(nearest.unwrap_or(Reason::NotShared.into()));
        }
        let nobody = missing.iter().any(|reason| reason.fixer() == Fixer::Nobody);
        let change = |reason: Reason| Change {
            reason,
            by: reason.fixer(),
            message: reason.en(),
            message_ja: reason.ja(),
        };
        if nobody { Vec::new() } else { missing.iter().map(change).collect() }
    }

    /// What the nearest way misses, ※1 without job and plan included: both could be had.
    fn nearest<'w>(&self, ways: impl Iterator<Item = Candidate<'w>>) -> Option<ReasonSet> {
        ways.map(|way| (way, self.missing(&way)))
            .min_by_key(|(way, missing)| distance(way, *missing))
            .map(|(_, missing)| missing)
    }
}

fn staff_fact(staff: Option<&Staff>) -> String {
    match staff {
        Some(staff) => format!("staff of office {}, job {}", staff.office, staff.job),
        None => "no member of staff".to_owned(),
    }
}

impl fmt::Display for Explanation {
    /// The explanation as lines for an operator.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.insured.map_or(String::new(), |insured| format!(" of {insured}"));
        let document = self.document.map_or(String::new(), |document| format!(" {document}"));
        writeln!(f, "{} {}{document}{subject} by {}", self.outcome, self.action, self.principal)?;
        writeln!(f, "  profile {}  policy {}", self.profile, self.policy)?;
        writeln!(
            f,
            "  facts ca {}, hub {}  at {}",
            self.facts_ca_seq, self.facts_hub_seq, self.at
        )?;
        self.gates.iter().try_for_each(|gate| write_gate(f, "  ", gate))?;
        for way in &self.ways {
            let own = if way.own_only { " (own documents only)" } else { "" };
            writeln!(
                f,
                "  {} as {}: {}{own}  [{}]",
                sign(way.open),
                way.r#for,
                way.cell,
                way.source
            )?;
            way.gates.iter().try_for_each(|gate| write_gate(f, "      ", gate))?;
        }
        for change in &self.changes {
            let (by_ja, by) = change.by.words();
            writeln!(
                f,
                "  to allow: {} ({}); ask {by} ({by_ja})",
                change.message, change.message_ja
            )?;
        }
        Ok(())
    }
}

fn write_gate(f: &mut fmt::Formatter<'_>, indent: &str, gate: &Gate) -> fmt::Result {
    let reason = gate.reason.map_or(String::new(), |reason| format!("  → {reason}"));
    writeln!(f, "{indent}{} {}: {}{reason}", sign(gate.open), gate.gate, gate.fact)
}

fn sign(open: bool) -> &'static str {
    if open { "✓" } else { "✗" }
}
