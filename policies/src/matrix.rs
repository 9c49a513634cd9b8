//! The sharing matrix: parsed from `data/sharing-matrix.toml`, checked, compiled to a cell table.
//!
//! ```text
//!  rows (marks) ─ profile differences ─► cells[document][standing] ─► view rules
//!  submission, resource ───────────────► rules by action (and document)
//! ```
//!
//! A [`Standing`] is a capacity in which a principal reads: an office may have several. A [`Rule`]
//! is one way to a yes: what must be true, and the mark and source that say so.
//!
//! Invariants: every cell and every action is given, nothing has a default; a matrix that breaks a
//! floor (claims are never shared, ◎ asks for consent, an office reads only what is its own or what
//! it is registered for, nobody outside the insurer reads before the municipality shares) does not
//! load. Every problem of the file is reported together.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde::Serialize;

use crate::decide::Needs;
use crate::document::DocumentKind;
use crate::identity::{Job, ServiceType, named};
use crate::operations::Action;
use crate::overlay::Overlays;

mod compile;
pub mod table;
mod floors;

use compile::{Compiler, FOOTNOTES, RawMatrix};

named! {
    /// A dated reading of the sharing matrix.
    Profile, "a profile of the sharing matrix", {
        /// The ministry's slide of 2025, the default.
        Deck2025 = "deck-2025",
        /// The slide with what later ministry papers add and take away.
        Impl2027 = "impl-2027",
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "the named! macro makes the enum, so it cannot mark a default"
)]
impl Default for Profile {
    fn default() -> Self {
        Self::Deck2025
    }
}

named! {
    /// A column of the matrix.
    Column, "a column of the sharing matrix", {
        /// 利用者.
        Person = "person",
        /// 市区町村.
        Municipality = "municipality",
        /// 居宅介護支援事業所（※1）.
        HomeSupport = "home-support",
        /// 介護事業所.
        Care = "care",
        /// 医療機関.
        Medical = "medical",
    }
}

impl Column {
    /// The Japanese heading.
    pub const fn ja(self) -> &'static str {
        match self {
            Self::Person => "利用者",
            Self::Municipality => "市区町村",
            Self::HomeSupport => "居宅介護支援事業所※1",
            Self::Care => "介護事業所",
            Self::Medical => "医療機関",
        }
    }

    const fn is_office(self) -> bool {
        matches!(self, Self::HomeSupport | Self::Care | Self::Medical)
    }
}

named! {
    /// A mark of the matrix.
    Mark, "a mark (★ ○ ◎ –)", {
        /// ★ 作成主体.
        Author = "★",
        /// ○ shared before and after.
        Shared = "○",
        /// ◎ shared with the person's consent.
        WithConsent = "◎",
        /// – never.
        Never = "–",
    }
}

named! {
    /// A capacity in which a principal reads. An office has every one that its record gives it.
    Standing, "a standing", {
        /// 利用者, through マイナポータル.
        Person = "person",
        /// 市区町村: the person's own insurer.
        OwnInsurer = "own-insurer",
        /// 居宅介護支援事業所.
        HomeSupport = "home-support",
        /// 地域包括支援センター, for the persons whose plan it makes.
        HomeSupportWhenPlanning = "home-support-when-planning",
        /// ※1: a care manager of a 介護 office, for a person whose plan the office makes.
        CareOfficeCareManager = "care-office-care-manager",
        /// ※1 and ᵈ: the same in a facility, the author of facility plans.
        FacilityCareManager = "facility-care-manager",
        /// 介護事業所.
        Care = "care",
        /// 介護老人保健施設 and 介護医療院 (※2).
        CareOpinionWriter = "care-opinion-writer",
        /// 医療機関 whose record holds a care service type (ᵇ left).
        MedicalProvidingCare = "medical-providing-care",
        /// Every other 医療機関 (ᵇ right).
        Medical = "medical",
    }
}

impl Standing {
    /// The column that it reads in.
    pub const fn column(self) -> Column {
        match self {
            Self::Person => Column::Person,
            Self::OwnInsurer => Column::Municipality,
            Self::HomeSupport
            | Self::HomeSupportWhenPlanning
            | Self::CareOfficeCareManager
            | Self::FacilityCareManager => Column::HomeSupport,
            Self::Care | Self::CareOpinionWriter => Column::Care,
            Self::MedicalProvidingCare | Self::Medical => Column::Medical,
        }
    }

    /// Whether it exists only through ※1: by the job of the staff and the plan that the office
    /// makes.
    pub const fn is_by_footnote_1(self) -> bool {
        matches!(self, Self::CareOfficeCareManager | Self::FacilityCareManager)
    }

    /// What the standing itself asks for, whatever the document.
    const fn own_needs(self) -> (Needs, Option<Job>) {
        match self {
            Self::HomeSupportWhenPlanning => (Needs::PLANS_FOR, None),
            Self::CareOfficeCareManager | Self::FacilityCareManager => {
                (Needs::PLANS_FOR, Some(Job::CareManager))
            }
            Self::Person
            | Self::OwnInsurer
            | Self::HomeSupport
            | Self::Care
            | Self::CareOpinionWriter
            | Self::MedicalProvidingCare
            | Self::Medical => (Needs::NONE, None),
        }
    }
}

named! {
    /// Who a submission or resource rule is for.
    Who, "a party that a rule can name", {
        /// マイナポータル, for the person.
        Portal = "portal",
        /// The person's own insurer.
        OwnInsurer = "own-insurer",
        /// An office.
        Office = "office",
        /// A medical institution.
        MedicalInstitution = "medical-institution",
        /// ケアプランデータ連携システム.
        CarePlanExchange = "care-plan-exchange",
        /// LIFE.
        Life = "life",
        /// PMH.
        Pmh = "pmh",
    }
}

/// One way to a yes: everything that it asks for must be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Opens only documents that the principal itself wrote.
    pub own_only: bool,
    /// What must be true of the person, the municipality and the office.
    pub needs: Needs,
    /// The job that the member of staff must have.
    pub job: Option<Job>,
    /// The mark, for a rule that comes from a cell.
    pub mark: Option<Mark>,
    /// Where it is written.
    pub source: Arc<str>,
}

/// What one standing may view of one kind of document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The cell as it stands in the table.
    pub text: Arc<str>,
    /// Where it is written.
    pub source: Arc<str>,
    /// The way to every document of the kind.
    pub any: Option<Rule>,
    /// The way to the principal's own documents.
    pub own: Option<Rule>,
}

impl Cell {
    /// The rules of the cell: any document first, then own documents.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.any.iter().chain(self.own.iter())
    }
}

/// A rule of a submission or of another resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartyRule {
    /// What is asked for.
    pub action: Action,
    /// The kind of document, for a submission.
    pub document: Option<DocumentKind>,
    /// Who it is for.
    pub who: Who,
    /// The service types of which an office must have one; empty means any office.
    pub service_types: Vec<ServiceType>,
    /// What must be true.
    pub rule: Rule,
}

/// Service types that decide an office's standings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceTypes {
    /// 居宅介護支援.
    pub home_support: Vec<ServiceType>,
    /// 介護予防支援: 居宅 only for the persons whose plan it makes.
    pub home_support_when_planning: Vec<ServiceType>,
    /// ※2.
    pub opinion_writers: Vec<ServiceType>,
    /// ᵈ.
    pub facilities: Vec<ServiceType>,
}

/// One row of the table as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The row's number on the slide.
    pub row: String,
    /// The kind of document.
    pub document: DocumentKind,
    /// Its Japanese name.
    pub name_ja: &'static str,
    /// Whether the hub stores it.
    pub held: bool,
    /// The cells, by column.
    pub marks: BTreeMap<Column, String>,
    /// Where the row is written.
    pub source: String,
    /// What the profile changed, with its sources.
    pub changes: Vec<String>,
}

/// The checked and compiled matrix of one profile.
#[derive(Debug, Clone)]
pub struct Matrix {
    profile: Profile,
    version: String,
    service_types: ServiceTypes,
    footnotes: BTreeMap<String, String>,
    rows: Vec<Row>,
    cells: Vec<Vec<Cell>>,
    party_rules: Vec<PartyRule>,
    overlays: Overlays,
}

impl Matrix {
    /// The matrix that this crate ships, `data/sharing-matrix.toml`.
    ///
    /// # Errors
    /// [`Error`] with every problem of the file.
    pub fn builtin(profile: Profile) -> Result<Self, Error> {
        Self::parse(include_str!("../data/sharing-matrix.toml"), profile)
    }

    /// Reads, checks and compiles a matrix for one profile.
    ///
    /// # Errors
    /// [`Error`] with every problem of the file.
    pub fn parse(text: &str, profile: Profile) -> Result<Self, Error> {
        let raw: RawMatrix = toml::from_str(text).map_err(|error| {
            let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            Error(vec![format!("sharing-matrix.toml: {line}")])
        })?;
        let mut compiler = Compiler::default();
        let matrix = compiler.compile(&raw, profile, version(text, profile));
        if compiler.problems.is_empty() {
            compiler.problems = matrix.broken_floors();
        }
        if compiler.problems.is_empty() { Ok(matrix) } else { Err(Error(compiler.problems)) }
    }

    /// The same matrix, narrowed by an operator's overlays; `version` names both in every record.
    #[must_use]
    pub fn narrowed_by(self, overlays: Overlays, version: String) -> Self {
        Self { overlays, version, ..self }
    }

    /// What an operator takes away; nothing for a matrix by itself.
    pub fn overlays(&self) -> &Overlays {
        &self.overlays
    }

    /// The profile that was compiled.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Hex SHA-256 of the data text and the profile, or of the whole policy folder: stands in every
    /// decision record.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The service types that decide an office's standings.
    pub fn service_types(&self) -> &ServiceTypes {
        &self.service_types
    }

    /// The rows of the table under this profile, in the order of the slide.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What a standing may view of a kind of document.
    pub fn cell(&self, document: DocumentKind, standing: Standing) -> &Cell {
        // INVARIANT: `compile` fills one cell per document and standing.
        &self.cells[document as usize][standing as usize]
    }

    /// Every rule of a submission or of another resource, in the order of the file.
    pub fn every_party_rule(&self) -> impl Iterator<Item = &PartyRule> {
        self.party_rules.iter()
    }

    /// The rules for an action (and kind of document, for a submission), in the order of the file.
    pub fn party_rules(
        &self,
        action: Action,
        document: Option<DocumentKind>,
    ) -> impl Iterator<Item = &PartyRule> {
        self.party_rules
            .iter()
            .filter(move |rule| rule.action == action && rule.document == document)
    }

    /// The whole matrix as text: the table, its footnotes, submissions and other resources.
    pub fn render(&self) -> String {
        let mut out = format!("profile {}  version {}\n\n", self.profile, self.version);
        self.render_table(&mut out);
        for sign in std::iter::once("※1").chain(FOOTNOTES) {
            let text = self.footnotes.get(sign).map_or("", String::as_str);
            let _ = writeln!(out, "{sign} {text}");
        }
        for row in &self.rows {
            for change in &row.changes {
                let _ = writeln!(out, "{} {}: {change}", row.row, row.document);
            }
        }
        self.render_party_rules(&mut out);
        out
    }

    fn render_table(&self, out: &mut String) {
        let name_width = self.rows.iter().map(|row| width(row.name_ja)).max().unwrap_or(0);
        let heading = |column: &Column| pad(column.ja(), COLUMN_WIDTH);
        let headings: String = Column::ALL.iter().map(heading).collect();
        let _ = writeln!(out, "{}{}{headings}", pad("", 9), pad("様式", name_width + 2));
        for row in &self.rows {
            let cell = |column| pad(row.marks.get(column).map_or("", String::as_str), COLUMN_WIDTH);
            let cells: String = Column::ALL.iter().map(cell).collect();
            let line = format!("{}{}{cells}", pad(&row.row, 9), pad(row.name_ja, name_width + 2));
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out.push('\n');
    }

    fn render_party_rules(&self, out: &mut String) {
        out.push('\n');
        for rule in &self.party_rules {
            let subject = rule.document.map_or(String::new(), |document| format!(" {document}"));
            let left = pad(&format!("{}{subject}", rule.action), 44);
            let _ = writeln!(out, "{left}{}", rule.describe());
        }
    }
}

impl PartyRule {
    /// Who may, and what else must be true, in one line.
    pub fn describe(&self) -> String {
        let mut parts = vec![self.who.to_string()];
        let types: Vec<&str> = self.service_types.iter().map(ServiceType::as_str).collect();
        if !types.is_empty() {
            parts.push(format!("service type {}", types.join("/")));
        }
        parts.extend(self.rule.job.map(|job| format!("job {job}")));
        parts.extend(self.rule.needs.names().map(str::to_owned));
        format!("{}  [{}]", parts.join(" + "), self.rule.source)
    }
}

/// What is wrong with a matrix file: every problem, each naming file, key and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Error(Vec<String>);

impl Error {
    /// The problems, one line each.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

fn version(text: &str, profile: Profile) -> String {
    let text = format!("{text}\n{profile}");
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

fn problem(text: &str) -> String {
    format!("sharing-matrix.toml: {text}")
}

/// How many columns of a terminal a text takes: full-width characters take two. The marks and
/// circled numbers are of ambiguous width and counted as one, as terminals do by default.
fn width(text: &str) -> usize {
    let wide = |c: char| {
        matches!(c as u32, 0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF
            | 0xFE30..=0xFE4F | 0xFF00..=0xFF60 | 0xFFE0..=0xFFE6)
    };
    text.chars().map(|c| if wide(c) { 2 } else { 1 }).sum()
}

fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text)).max(1)))
}

const COLUMN_WIDTH: usize = 22;
