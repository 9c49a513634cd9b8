//! The floors: what no data file may open, whatever its marks and rules say. Looked at for every
//! cell and rule before a matrix is used.

use super::{Mark, Matrix, PartyRule, Rule, Standing, Who, problem};
use crate::decide::Needs;
use crate::document::DocumentKind;
use crate::operations::{Action, Subject};

impl Matrix {
    /// The floors that no data file may break.
    pub(super) fn broken_floors(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for document in DocumentKind::ALL {
            for standing in Standing::ALL {
                let cell = self.cell(*document, *standing);
                for rule in cell.rules() {
                    if let Some(floor) = view_floor(*document, *standing, rule) {
                        problems.push(problem(&format!("row `{document}`, `{standing}`: {floor}")));
                    }
                }
            }
        }
        for rule in &self.party_rules {
            if let Some(floor) = party_floor(rule) {
                problems.push(problem(&format!("{}: {floor}", rule.describe())));
            }
        }
        problems
    }
}

/// The floor that a view rule breaks, if any.
fn view_floor(document: DocumentKind, standing: Standing, rule: &Rule) -> Option<&'static str> {
    let has = |need| rule.needs.contains(need);
    let consent = rule.mark == Some(Mark::WithConsent) && standing != Standing::Person;
    if !document.is_held() {
        Some("claims are never shared")
    } else if consent && !has(Needs::CONSENT) {
        Some("◎ must ask for consent")
    } else if standing.column().is_office() && !rule.own_only && !has(Needs::REGISTERED) {
        Some("an office reads others' documents only when registered")
    } else if standing != Standing::OwnInsurer && !has(Needs::LIVE) {
        Some("nobody but the insurer reads before the municipality shares")
    } else {
        None
    }
}

/// The floor that a submission or resource rule breaks, if any.
fn party_floor(rule: &PartyRule) -> Option<&'static str> {
    let needs = rule.rule.needs;
    let about_person = rule.action.subject() != Subject::Nobody;
    let office = matches!(rule.who, Who::Office | Who::MedicalInstitution);
    let relation = Needs::REGISTERED.union(Needs::PLANS_FOR).union(Needs::OPINION_REQUEST);
    let files_request = rule.action == Action::FileCarePlanRequest;
    if rule.document.is_some_and(|document| !document.is_held()) {
        Some("claims are never stored")
    } else if office && about_person && !files_request && !needs.any_of(relation) {
        Some("an office needs a registration, a plan or a request for anything about a person")
    } else if VIEWS.contains(&rule.action) && office && !needs.contains(Needs::REGISTERED) {
        Some("an office views only when registered")
    } else if VIEWS.contains(&rule.action)
        && rule.who != Who::OwnInsurer
        && !needs.contains(Needs::LIVE)
    {
        Some("nobody but the insurer views before the municipality shares")
    } else if !about_person && needs != Needs::NONE {
        Some("an operation about nobody cannot ask for facts about a person")
    } else {
        None
    }
}

const VIEWS: [Action; 3] =
    [Action::ListDocuments, Action::ViewCertification, Action::ViewAccessHistory];
