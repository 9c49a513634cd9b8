//! From the file of the sharing matrix to its cell table: reads rows, marks and footnotes, applies
//! the profile's differences, and notes every problem on the way.
//!
//! The reading rules of the table are here and nowhere else: [`mark_needs`] (what a mark asks for
//! in a column), [`admits`] (※2, ᵈ) and [`compile_cell`] (divided and undivided pairs, ᵇ).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::{
    Cell, Column, Mark, Matrix, PartyRule, Profile, Row, Rule, ServiceTypes, Standing, Who, problem,
};
use crate::decide::Needs;
use crate::document::DocumentKind;
use crate::identity::{Job, ServiceType};
use crate::operations::Action;
use crate::overlay::Overlays;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawMatrix {
    footnotes: BTreeMap<String, String>,
    service_types: RawServiceTypes,
    rows: BTreeMap<String, RawRow>,
    submission: Vec<RawPartyRule>,
    resource: Vec<RawPartyRule>,
    profile: BTreeMap<String, RawProfile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawServiceTypes {
    home_support: Vec<String>,
    home_support_when_planning: Vec<String>,
    opinion_writers: Vec<String>,
    facilities: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawRow {
    row: String,
    marks: Vec<String>,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawPartyRule {
    action: Option<String>,
    document: Option<String>,
    who: String,
    #[serde(default)]
    service_types: Vec<String>,
    job: Option<String>,
    needs: Vec<String>,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawProfile {
    #[serde(default)]
    cell: Vec<RawCellChange>,
    #[serde(default)]
    condition: Vec<RawCondition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawCellChange {
    document: String,
    column: String,
    marks: String,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawCondition {
    documents: Vec<String>,
    column: String,
    mark: String,
    #[serde(default)]
    needs: Vec<String>,
    job: Option<String>,
    source: String,
}

/// Half of a cell: a mark and its footnotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Half {
    mark: Mark,
    footnotes: [bool; FOOTNOTES.len()],
}

impl Half {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut signs = text.chars();
        let mark = signs.next()?.to_string().parse().ok()?;
        let mut rest = signs.as_str();
        let mut footnotes = [false; FOOTNOTES.len()];
        while !rest.is_empty() {
            let at = FOOTNOTES.iter().position(|sign| rest.starts_with(sign))?;
            footnotes[at] = true;
            rest = &rest[FOOTNOTES[at].len()..];
        }
        Some(Self { mark, footnotes })
    }

    fn has(&self, sign: &str) -> bool {
        FOOTNOTES.iter().zip(self.footnotes).any(|(known, given)| given && *known == sign)
    }
}

/// A cell as it was written: left and right half; an undivided cell has the same mark in both.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    text: String,
    left: Half,
    right: Half,
    divided: bool,
}

/// Collects the problems of a file while it compiles it. A problem makes the result unusable, but
/// the rest is still checked, so that all are reported together.
#[derive(Default)]
pub(super) struct Compiler {
    pub(super) problems: Vec<String>,
}

impl Compiler {
    pub(super) fn compile(&mut self, raw: &RawMatrix, profile: Profile, version: String) -> Matrix {
        self.check_footnotes(&raw.footnotes);
        let service_types = self.service_types(&raw.service_types);
        let no_changes = RawProfile { cell: Vec::new(), condition: Vec::new() };
        self.check_profiles(raw);
        let changes = raw.profile.get(profile.as_str()).unwrap_or(&no_changes);
        self.check_row_names(&raw.rows);
        let (mut rows, mut cells) = (Vec::new(), Vec::new());
        for document in DocumentKind::ALL {
            let (row, row_cells) = self.row(*document, raw, changes);
            rows.push(row);
            cells.push(row_cells);
        }
        // The enum's order is the table's order but for the claims, which the slide has in between.
        rows.sort_by_key(|row| SLIDE_ORDER.iter().position(|kind| *kind == row.document));
        self.conditions(changes, &mut cells, &mut rows);
        let mut party_rules = self.submissions(&raw.submission);
        party_rules.extend(self.resources(&raw.resource));
        self.check_party_rules(&party_rules, raw);
        let footnotes = raw.footnotes.clone();
        let overlays = Overlays::default();
        Matrix { profile, version, service_types, footnotes, rows, cells, party_rules, overlays }
    }

    fn wrong(&mut self, text: &str) {
        self.problems.push(problem(text));
    }

    fn check_footnotes(&mut self, footnotes: &BTreeMap<String, String>) {
        for sign in FOOTNOTES.iter().chain(["※1"].iter()) {
            if !footnotes.contains_key(*sign) {
                self.wrong(&format!("footnotes: `{sign}` is missing; say what it means"));
            }
        }
        for sign in footnotes.keys() {
            if sign != "※1" && !FOOTNOTES.contains(&sign.as_str()) {
                self.wrong(&format!("footnotes: `{sign}` is not known; remove it"));
            }
        }
    }

    fn service_types(&mut self, raw: &RawServiceTypes) -> ServiceTypes {
        ServiceTypes {
            home_support: self.codes("service-types.home-support", &raw.home_support),
            home_support_when_planning: self
                .codes("service-types.home-support-when-planning", &raw.home_support_when_planning),
            opinion_writers: self.codes("service-types.opinion-writers", &raw.opinion_writers),
            facilities: self.codes("service-types.facilities", &raw.facilities),
        }
    }

    fn codes(&mut self, key: &str, raw: &[String]) -> Vec<ServiceType> {
        raw.iter().filter_map(|code| self.name(key, code)).collect()
    }

    /// Parses a closed name, noting the problem under `key`.
    fn name<T: std::str::FromStr<Err = crate::identity::Error>>(
        &mut self,
        key: &str,
        text: &str,
    ) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(&format!("{key}: {error}"));
                None
            }
        }
    }

    fn needs(&mut self, key: &str, raw: &[String]) -> Needs {
        raw.iter().fold(Needs::NONE, |needs, name| match Needs::from_name(name) {
            Some(need) => needs.union(need),
            None => {
                self.wrong(&format!("{key}: need `{name}` is not known"));
                needs
            }
        })
    }

    fn check_profiles(&mut self, raw: &RawMatrix) {
        for name in raw.profile.keys() {
            if self.name::<Profile>("profile", name) == Some(Profile::Deck2025) {
                self.wrong("profile.deck-2025: the rows themselves are that profile");
            }
        }
        for profile in Profile::ALL.iter().filter(|profile| **profile != Profile::Deck2025) {
            if !raw.profile.contains_key(profile.as_str()) {
                self.wrong(&format!("profile.{profile}: is missing; say what differs"));
            }
        }
    }

    fn check_row_names(&mut self, rows: &BTreeMap<String, RawRow>) {
        for (name, row) in rows {
            let _ = self.name::<DocumentKind>("rows", name);
            if row.source.trim().is_empty() || row.row.trim().is_empty() {
                self.wrong(&format!("row `{name}`: row and source must be given"));
            }
        }
    }

    fn row(
        &mut self,
        document: DocumentKind,
        raw: &RawMatrix,
        changes: &RawProfile,
    ) -> (Row, Vec<Cell>) {
        let mut row = Row {
            row: String::new(),
            document,
            name_ja: document.ja(),
            held: document.is_held(),
            marks: BTreeMap::new(),
            source: String::new(),
            changes: Vec::new(),
        };
        let Some(given) = raw.rows.get(document.as_str()) else {
            self.wrong(&format!("row `{document}`: is missing; every document needs its row"));
            return (row, Vec::new());
        };
        if given.marks.len() != Column::ALL.len() {
            self.wrong(&format!("row `{document}`: must have 5 cells, has {}", given.marks.len()));
            return (row, Vec::new());
        }
        row.row = given.row.clone();
        row.source = given.source.clone();
        let mut cells = Vec::new();
        let mut compiled = BTreeMap::new();
        for (column, text) in Column::ALL.iter().zip(&given.marks) {
            let (text, source) = changed(document, *column, text, &given.source, changes, &mut row);
            row.marks.insert(*column, text.clone());
            compiled.insert(*column, (self.pair(document, *column, &text), source));
        }
        for standing in Standing::ALL {
            if let Some((Some(pair), source)) = compiled.get(&standing.column()) {
                cells.push(compile_cell(document, *standing, pair, source));
            }
        }
        (row, cells)
    }

    /// Reads one cell and checks that its signs fit its column.
    fn pair(&mut self, document: DocumentKind, column: Column, text: &str) -> Option<Pair> {
        let key = format!("row `{document}`, column `{column}`: cell `{text}`");
        let parts: Vec<&str> = text.split('|').collect();
        let halves: Vec<Half> = parts.iter().filter_map(|part| Half::parse(part)).collect();
        let pair = match (parts.len(), halves.as_slice()) {
            (1, [half]) => (*half, *half, false),
            (2, [left, right]) => (*left, *right, true),
            _ => {
                self.wrong(&format!(
                    "{key} must be ★ ○ ◎ or – with known footnotes, once or as `A | B`"
                ));
                return None;
            }
        };
        let pair = Pair { text: text.to_owned(), left: pair.0, right: pair.1, divided: pair.2 };
        if let Some(wrong) = wrong_pair(document, column, &pair) {
            self.wrong(&format!("{key} {wrong}"));
            return None;
        }
        Some(pair)
    }

    fn conditions(&mut self, changes: &RawProfile, cells: &mut [Vec<Cell>], rows: &mut [Row]) {
        for (at, raw) in changes.condition.iter().enumerate() {
            let key = format!("condition {} (`{}`)", at + 1, raw.source);
            let column: Option<Column> = self.name(&key, &raw.column);
            let mark: Option<Mark> = self.name(&key, &raw.mark);
            let job = raw.job.as_ref().and_then(|job| self.name::<Job>(&key, job));
            let needs = self.needs(&key, &raw.needs);
            if job.is_none() && needs == Needs::NONE {
                self.wrong(&format!("{key}: must add a need or a job"));
            }
            for name in &raw.documents {
                let document: Option<DocumentKind> = self.name(&key, name);
                let (Some(document), Some(column), Some(mark)) = (document, column, mark) else {
                    continue;
                };
                let cells = cells.get_mut(document as usize).map_or(&mut [][..], Vec::as_mut_slice);
                if !add_condition(cells, column, mark, (needs, job), &raw.source) {
                    self.wrong(&format!("{key}: `{document}` has no {mark} in column `{column}`"));
                }
                for row in rows.iter_mut().filter(|row| row.document == document) {
                    row.changes.push(condition_text(column, mark, needs, job, &raw.source));
                }
            }
        }
    }

    fn submissions(&mut self, raw: &[RawPartyRule]) -> Vec<PartyRule> {
        let mut rules = Vec::new();
        for (at, raw) in raw.iter().enumerate() {
            let key = format!("submission {} (`{}`)", at + 1, raw.source);
            let document = raw.document.as_ref().and_then(|kind| self.name(&key, kind));
            if raw.action.is_some() || raw.document.is_none() {
                self.wrong(&format!("{key}: must name a document and no action"));
            }
            rules.extend(self.party_rule(&key, Action::SubmitDocument, document, raw));
        }
        rules
    }

    fn resources(&mut self, raw: &[RawPartyRule]) -> Vec<PartyRule> {
        let mut rules = Vec::new();
        for (at, raw) in raw.iter().enumerate() {
            let key = format!("resource {} (`{}`)", at + 1, raw.source);
            if raw.document.is_some() {
                self.wrong(&format!("{key}: a document belongs in a row or a submission"));
            }
            let Some(action) = &raw.action else {
                self.wrong(&format!("{key}: must name an action"));
                continue;
            };
            let action: Option<Action> = self.name(&key, action);
            if matches!(action, Some(Action::ViewDocument | Action::SubmitDocument)) {
                self.wrong(&format!(
                    "{key}: documents are viewed by rows and stored by submissions"
                ));
            }
            if let Some(action) = action {
                rules.extend(self.party_rule(&key, action, None, raw));
            }
        }
        rules
    }

    fn party_rule(
        &mut self,
        key: &str,
        action: Action,
        document: Option<DocumentKind>,
        raw: &RawPartyRule,
    ) -> Option<PartyRule> {
        let who: Option<Who> = self.name(key, &raw.who);
        let service_types = self.codes(key, &raw.service_types);
        let job = raw.job.as_ref().and_then(|job| self.name::<Job>(key, job));
        let needs = self.needs(key, &raw.needs);
        if raw.source.trim().is_empty() {
            self.wrong(&format!("{key}: source must be given"));
        }
        let who = who?;
        if who != Who::Office && !service_types.is_empty() {
            self.wrong(&format!("{key}: service-types only fit `office`"));
        }
        let staffed = matches!(who, Who::Office | Who::MedicalInstitution);
        if !staffed && (job.is_some() || needs.any_of(OFFICE_NEEDS)) {
            self.wrong(&format!("{key}: `{who}` has no staff, registration, plan or request"));
        }
        let source = Arc::from(raw.source.as_str());
        let rule = Rule { own_only: false, needs, job, mark: None, source };
        Some(PartyRule { action, document, who, service_types, rule })
    }

    /// Every action and held document is given, and marks and submissions tell the same story.
    fn check_party_rules(&mut self, rules: &[PartyRule], raw: &RawMatrix) {
        let given: BTreeSet<Action> = rules.iter().map(|rule| rule.action).collect();
        for action in Action::ALL.iter().filter(|action| **action != Action::ViewDocument) {
            if !given.contains(action) {
                self.wrong(&format!("action `{action}`: is missing; say who may"));
            }
        }
        for document in DocumentKind::ALL.iter().filter(|kind| kind.is_held()) {
            let stores =
                |who| rules.iter().any(|rule| rule.document == Some(*document) && rule.who == who);
            if !rules.iter().any(|rule| rule.document == Some(*document)) {
                self.wrong(&format!("document `{document}`: has no submission; say who stores it"));
            }
            let Some(row) = raw.rows.get(document.as_str()) else { continue };
            let star = |at: usize| row.marks.get(at).is_some_and(|text| text.starts_with('★'));
            if star(0) != stores(Who::Portal) {
                self.wrong(&format!(
                    "document `{document}`: ★ for 利用者 and a submission by `portal` go together"
                ));
            }
            if star(1) && !stores(Who::OwnInsurer) {
                self.wrong(&format!(
                    "document `{document}`: ★ for 市区町村 needs a submission by `own-insurer`"
                ));
            }
        }
    }
}

/// The cell's text under the profile, and its source.
fn changed(
    document: DocumentKind,
    column: Column,
    text: &str,
    source: &str,
    changes: &RawProfile,
    row: &mut Row,
) -> (String, String) {
    let change = changes
        .cell
        .iter()
        .find(|change| change.document == document.as_str() && change.column == column.as_str());
    match change {
        Some(change) => {
            row.changes
                .push(format!("{column}: `{text}` → `{}`  [{}]", change.marks, change.source));
            (change.marks.clone(), change.source.clone())
        }
        None => (text.to_owned(), source.to_owned()),
    }
}

/// What is wrong with a cell's signs, if anything.
fn wrong_pair(document: DocumentKind, column: Column, pair: &Pair) -> Option<&'static str> {
    let halves = [pair.left, pair.right];
    let any = |sign: &str| halves.iter().any(|half| half.has(sign));
    let (a, b) = (any("ᵃ"), any("ᵇ"));
    let open = |half: &Half| half.mark != Mark::Never;
    if halves.iter().any(|half| open(half) && half.has("※3") == document.is_held()) {
        return Some("carries ※3 if and only if the document is not held");
    }
    if !column.is_office() {
        return (pair.divided || a || b || any("※2") || any("ᶜ") || any("ᵈ"))
            .then_some("is not an office's: one mark, no other footnote than ※3");
    }
    let undivided_and_open = !pair.divided && open(&pair.left);
    if undivided_and_open != a {
        return Some("carries ᵃ if and only if it is undivided and not –");
    }
    if pair.right.mark == Mark::Author {
        return Some("has ★ for others than the author; ★ belongs in the left half");
    }
    if !open(&pair.left) && open(&pair.right) {
        return Some("shows an author less than others");
    }
    if b && (column != Column::Medical || pair.left.mark == Mark::Author) {
        return Some("has ᵇ, which divides ○ and ◎ of medical institutions only");
    }
    if any("※2") && (column != Column::Care || halves.iter().any(|h| open(h) && !h.has("※2"))) {
        return Some("has ※2, which limits both halves of a 介護 cell");
    }
    if any("ᵈ") && (column != Column::HomeSupport || pair.left.mark != Mark::Author) {
        return Some("has ᵈ, which limits ★ of the 居宅 column");
    }
    (any("ᶜ") && column != Column::HomeSupport).then_some("has ᶜ, which explains a 居宅 cell")
}

/// What `standing` may view of `document`, as its column's cell says.
fn compile_cell(document: DocumentKind, standing: Standing, pair: &Pair, source: &str) -> Cell {
    let source: Arc<str> = Arc::from(source);
    let rule = |half: &Half, own_only: bool| -> Option<Rule> {
        let needs = mark_needs(standing.column(), half.mark)?;
        let (own_needs, job) = standing.own_needs();
        let needs = needs.union(own_needs);
        let open = document.is_held() && admits(standing, half);
        open.then(|| Rule {
            own_only,
            needs,
            job,
            mark: Some(half.mark),
            source: Arc::clone(&source),
        })
    };
    // ᵇ divides institutions, not authors from others.
    let by_institution = pair.left.has("ᵇ");
    let left_is_theirs = by_institution && standing == Standing::MedicalProvidingCare;
    let any = rule(if left_is_theirs { &pair.left } else { &pair.right }, false);
    let has_own = pair.divided && !by_institution;
    let own = has_own.then(|| rule(&pair.left, true)).flatten();
    Cell { text: Arc::from(pair.text.as_str()), source, any, own }
}

/// What a mark asks for in a column; `None` for –.
fn mark_needs(column: Column, mark: Mark) -> Option<Needs> {
    let registered = Needs::LIVE.union(Needs::REGISTERED);
    match (column, mark) {
        (_, Mark::Never) => None,
        (Column::Person, Mark::Author | Mark::Shared | Mark::WithConsent) => Some(Needs::LIVE),
        (Column::Municipality, Mark::Author) => Some(Needs::NONE),
        (Column::Municipality, Mark::Shared) => Some(Needs::LIVE),
        (Column::Municipality, Mark::WithConsent) => Some(Needs::LIVE.union(Needs::CONSENT)),
        (Column::HomeSupport | Column::Care | Column::Medical, Mark::Author) => Some(Needs::LIVE),
        (Column::HomeSupport | Column::Care | Column::Medical, Mark::Shared) => Some(registered),
        (Column::HomeSupport | Column::Care | Column::Medical, Mark::WithConsent) => {
            Some(registered.union(Needs::CONSENT))
        }
    }
}

/// Whether the footnotes of a half let this standing in.
fn admits(standing: Standing, half: &Half) -> bool {
    let opinion_writer = !half.has("※2") || standing == Standing::CareOpinionWriter;
    let facility = !half.has("ᵈ") || standing == Standing::FacilityCareManager;
    opinion_writer && facility
}

/// Adds a profile's condition to the rules with this mark in this column; false if there are none.
fn add_condition(
    cells: &mut [Cell],
    column: Column,
    mark: Mark,
    (needs, job): (Needs, Option<Job>),
    source: &str,
) -> bool {
    let mut found = false;
    let standings = Standing::ALL.iter().zip(cells);
    for (_, cell) in standings.filter(|(standing, _)| standing.column() == column) {
        let rules = [&mut cell.any, &mut cell.own].into_iter().flatten();
        for rule in rules.filter(|rule| rule.mark == Some(mark)) {
            found = true;
            rule.needs = rule.needs.union(needs);
            rule.job = job.or(rule.job);
            rule.source = Arc::from(format!("{}; {source}", rule.source));
        }
    }
    found
}

fn condition_text(
    column: Column,
    mark: Mark,
    needs: Needs,
    job: Option<Job>,
    source: &str,
) -> String {
    let job = job.map(|job| format!("job {job}"));
    let added: Vec<String> = needs.names().map(str::to_owned).chain(job).collect();
    format!("{column} {mark}: also {}  [{source}]", added.join(", "))
}

/// The footnotes that may stand in a cell; ※1 stands in the heading.
pub(super) const FOOTNOTES: [&str; 6] = ["※2", "※3", "ᵃ", "ᵇ", "ᶜ", "ᵈ"];
const OFFICE_NEEDS: Needs = Needs::REGISTERED
    .union(Needs::PLANS_FOR)
    .union(Needs::OPINION_REQUEST)
    .union(Needs::OPINION_REQUEST_EVER);
const SLIDE_ORDER: [DocumentKind; 12] = [
    DocumentKind::CertificationSurvey,
    DocumentKind::PhysicianOpinion,
    DocumentKind::InsuredCard,
    DocumentKind::BurdenRatio,
    DocumentKind::BurdenLimit,
    DocumentKind::CertificationApplication,
    DocumentKind::BenefitManagement,
    DocumentKind::BenefitClaims,
    DocumentKind::LifeFeedback,
    DocumentKind::HomeCarePlan,
    DocumentKind::FacilityCarePlan,
    DocumentKind::HousingEquipment,
];
