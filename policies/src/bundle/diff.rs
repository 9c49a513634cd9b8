//! What two policies decide differently, cell by cell, by trying every combination of facts that a
//! rule can ask for.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::decide::Needs;
use crate::document::DocumentKind;
use crate::identity::{Job, ServiceType};
use crate::matrix::{Cell, Matrix, PartyRule, Rule, Standing, Who};

/// A cell or rule that decides differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellChange {
    /// `document/standing` for viewing, `action/document/party` for a submission, `action/party`
    /// for another resource, `service-types/…` for what makes an office what it is.
    pub cell: String,
    /// What it was.
    pub before: String,
    /// What it is.
    pub after: String,
    /// Whether some combination of facts is allowed now that was not.
    pub widens: bool,
    /// Whether some combination of facts was allowed that is not any more.
    pub narrows: bool,
}

/// An overlay that came, went or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverlayChange {
    /// Its name.
    pub overlay: String,
    /// What it asked for.
    pub before: Option<String>,
    /// What it asks for.
    pub after: Option<String>,
}

/// Every cell and rule that decides differently.
pub fn cells(old: &Matrix, new: &Matrix) -> Vec<CellChange> {
    let mut changes = service_types(old, new);
    for document in DocumentKind::ALL {
        for standing in Standing::ALL {
            let (before, after) = (old.cell(*document, *standing), new.cell(*document, *standing));
            let opened = |cell: &Cell| opened(&cell.rules().collect::<Vec<_>>());
            let told = |cell: &Cell| cell.text.to_string();
            let name = format!("{document}/{standing}");
            changes.extend(change(name, (before, after), opened, told));
        }
    }
    let parties =
        |matrix: &Matrix| -> BTreeSet<Party> { matrix.every_party_rule().map(Party::of).collect() };
    for party in parties(old).union(&parties(new)) {
        let of = |matrix: &Matrix| -> Vec<PartyRule> {
            matrix.every_party_rule().filter(|rule| Party::of(rule) == *party).cloned().collect()
        };
        let (before, after) = (of(old), of(new));
        let codes: BTreeSet<ServiceType> =
            before.iter().chain(&after).flat_map(|rule| rule.service_types.clone()).collect();
        let opened = |rules: &Vec<PartyRule>| opened_to_party(rules, &codes);
        let told = |rules: &Vec<PartyRule>| {
            let all: Vec<String> = rules.iter().map(PartyRule::describe).collect();
            if all.is_empty() { "–".to_owned() } else { all.join(" | ") }
        };
        changes.extend(change(party.to_string(), (&before, &after), opened, told));
    }
    changes
}

/// Every overlay that came, went or changed.
pub fn overlays(old: &Matrix, new: &Matrix) -> Vec<OverlayChange> {
    let told = |matrix: &Matrix| -> BTreeMap<String, (String, String)> {
        let told = |overlay: &crate::overlay::Overlay| {
            let whole = format!("{overlay:?}");
            (overlay.name.clone(), (overlay.describe(), whole))
        };
        matrix.overlays().iter().map(told).collect()
    };
    let (before, after) = (told(old), told(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    let change = |name: &String| OverlayChange {
        overlay: name.clone(),
        before: before.get(name).map(|(text, _)| text.clone()),
        after: after.get(name).map(|(text, _)| text.clone()),
    };
    differs.map(change).collect()
}

/// A combination of everything that a rule can ask for.
type Combination = (Needs, Option<Job>, bool);

fn combinations() -> impl Iterator<Item = Combination> {
    let jobs = || std::iter::once(None).chain(Job::ALL.iter().copied().map(Some));
    Needs::every_set().flat_map(move |needs| {
        jobs().flat_map(move |job| [false, true].map(move |author| (needs, job, author)))
    })
}

/// The combinations that one of the rules opens, and whether any document or own ones only.
fn opened(rules: &[&Rule]) -> BTreeSet<usize> {
    let opens = |rule: &&Rule, (needs, job, author): Combination| {
        needs.contains(rule.needs)
            && rule.job.is_none_or(|wanted| job == Some(wanted))
            && (!rule.own_only || author)
    };
    let mut opened = BTreeSet::new();
    for (at, combination) in combinations().enumerate() {
        let mut open = rules.iter().filter(|rule| opens(rule, combination));
        // Own documents and every document are two things to open.
        if open.clone().any(|rule| !rule.own_only) {
            opened.insert(2 * at);
        }
        if open.any(|_| true) {
            opened.insert(2 * at + 1);
        }
    }
    opened
}

/// The same for each service type that a rule names, and for one that none names.
fn opened_to_party(rules: &[PartyRule], codes: &BTreeSet<ServiceType>) -> BTreeSet<usize> {
    let width = 2 * combinations().count();
    let mut all = BTreeSet::new();
    for (at, code) in codes.iter().map(Some).chain([None]).enumerate() {
        let is_for = |rule: &&PartyRule| {
            rule.service_types.is_empty() || code.is_some_and(|it| rule.service_types.contains(it))
        };
        let own: Vec<&Rule> = rules.iter().filter(is_for).map(|rule| &rule.rule).collect();
        all.extend(opened(&own).into_iter().map(|combination| at * width + combination));
    }
    all
}

fn change<T: ?Sized>(
    cell: String,
    (before, after): (&T, &T),
    opened: impl Fn(&T) -> BTreeSet<usize>,
    told: impl Fn(&T) -> String,
) -> Option<CellChange> {
    let (was, is) = (opened(before), opened(after));
    let (widens, narrows) = (!is.is_subset(&was), !was.is_subset(&is));
    (widens || narrows).then(|| CellChange {
        cell,
        before: told(before),
        after: told(after),
        widens,
        narrows,
    })
}

/// What makes an office a 居宅介護支援事業所 and so on: any change may open something to somebody.
fn service_types(old: &Matrix, new: &Matrix) -> Vec<CellChange> {
    let (old, new) = (old.service_types(), new.service_types());
    let lists = [
        ("home-support", &old.home_support, &new.home_support),
        (
            "home-support-when-planning",
            &old.home_support_when_planning,
            &new.home_support_when_planning,
        ),
        ("opinion-writers", &old.opinion_writers, &new.opinion_writers),
        ("facilities", &old.facilities, &new.facilities),
    ];
    let told = |codes: &[ServiceType]| {
        let codes: Vec<&str> = codes.iter().map(ServiceType::as_str).collect();
        codes.join(" ")
    };
    let same = |a: &[ServiceType], b: &[ServiceType]| {
        a.iter().all(|code| b.contains(code)) && b.iter().all(|code| a.contains(code))
    };
    let changed = lists.into_iter().filter(|(_, before, after)| !same(before, after));
    let change = |(name, before, after): (&str, &Vec<ServiceType>, &Vec<ServiceType>)| CellChange {
        cell: format!("service-types/{name}"),
        before: told(before),
        after: told(after),
        widens: true,
        narrows: true,
    };
    changed.map(change).collect()
}

/// Whom rules are for, and what they allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Party {
    action: crate::operations::Action,
    document: Option<DocumentKind>,
    who: Who,
}

impl Party {
    fn of(rule: &PartyRule) -> Self {
        Self { action: rule.action, document: rule.document, who: rule.who }
    }
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.document {
            Some(document) => write!(f, "{}/{document}/{}", self.action, self.who),
            None => write!(f, "{}/{}", self.action, self.who),
        }
    }
}
