//! The policy that is decided with, and a candidate beside it.
//!
//! ```text
//!  policy.dir ────────► checked ─► active ──► every decision
//!  policy.shadow_dir ─► checked ─► shadow ──► decided too, differences counted, never enforced
//! ```
//!
//! Both folders are read at the start and on SIGHUP. A folder with a problem is refused as a whole:
//! every problem is logged with file, line and hint, a counter goes up, and what was active stays.
//!
//! Before the swap every cell and overlay that differs from the running policy is counted and
//! logged; at the start, when none runs yet, from the built-in matrix. That is told, never refused:
//! to take a pause back opens what the running policy had shut, and needs no signature. What opens
//! more than the built-in matrix was refused before, whatever runs, unless it is acknowledged and
//! signed ([`policies::bundle`]).
//!
//! INVARIANT: there is an active policy from before the first request on; it changes whole or not
//! at all, and a decision is made from one of them from beginning to end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use policies::bundle::diff::{self, CellChange, OverlayChange};
use policies::bundle::signature::Signer;
use policies::bundle::{Policy, Terms, built_in, folder};
use policies::decide::{Decision, Query, decide};
use policies::facts::Facts;
use policies::identity::OfficeNumber;
use policies::matrix::{Matrix, Profile};
use policies::problem::Problem;
use policies::reason::ReasonSet;
use serde::Serialize;
use serde_json::{Value, json};

use crate::facts_feed::{LiveFacts, now_ms};
use crate::metrics::Metrics;

/// Where policies come from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The active policy's folder; without one, the built-in matrix by itself.
    pub dir: Option<PathBuf>,
    /// The candidate's folder; may be absent on disk, which means that there is none.
    pub shadow_dir: Option<PathBuf>,
    /// The operators whose signatures count.
    pub signers: Vec<Signer>,
    /// The reading of the sharing matrix.
    pub profile: Profile,
}

impl Source {
    /// Reads and checks the active policy. `is_known` as in [`Terms`].
    ///
    /// # Errors
    /// Every problem of the folder.
    pub fn active(
        &self,
        is_known: Option<&dyn Fn(OfficeNumber) -> bool>,
    ) -> Result<Matrix, Vec<Problem>> {
        let files = match &self.dir {
            Some(dir) => folder::read(dir)?,
            None => policies::bundle::Files::new(),
        };
        self.checked(&files, is_known)
    }

    fn shadow(
        &self,
        is_known: Option<&dyn Fn(OfficeNumber) -> bool>,
    ) -> Result<Option<Matrix>, Vec<Problem>> {
        match self.shadow_dir.as_deref().filter(|dir| dir.exists()) {
            Some(dir) => self.checked(&folder::read(dir)?, is_known).map(Some),
            None => Ok(None),
        }
    }

    fn checked(
        &self,
        files: &policies::bundle::Files,
        is_known: Option<&dyn Fn(OfficeNumber) -> bool>,
    ) -> Result<Matrix, Vec<Problem>> {
        let terms = Terms { profile: self.profile, signers: &self.signers, is_known };
        Policy::load(files, &terms).map(|policy| policy.matrix)
    }
}

/// The policies in memory.
pub struct LivePolicy {
    source: Mutex<Source>,
    facts: Arc<LiveFacts>,
    metrics: Arc<Metrics>,
    active: ArcSwap<Matrix>,
    shadow: ArcSwapOption<Matrix>,
    told: Mutex<Told>,
}

/// A policy that was checked, and is not in force yet.
pub struct Prepared {
    source: Source,
    matrix: Matrix,
}

impl Prepared {
    /// Its version.
    pub fn version(&self) -> &str {
        self.matrix.version()
    }
}

/// How a policy differs from the one before it, by trying every combination of facts.
#[derive(Debug, Default, Serialize)]
struct Change {
    /// The version before it.
    from: String,
    /// Cells that open something; one may do both.
    widened: usize,
    /// Cells that shut something.
    narrowed: usize,
    cells: Vec<CellChange>,
    overlays: Vec<OverlayChange>,
}

impl Change {
    fn between(was: &Matrix, is: &Matrix) -> Self {
        let cells = diff::cells(was, is);
        Self {
            from: was.version().to_owned(),
            widened: cells.iter().filter(|cell| cell.widens).count(),
            narrowed: cells.iter().filter(|cell| cell.narrows).count(),
            overlays: diff::overlays(was, is),
            cells,
        }
    }

    /// One line for the policy, then one for each cell and overlay.
    fn log(&self, is: &Matrix) {
        tracing::info!(
            policy = is.version(),
            profile = %is.profile(),
            was = self.from,
            widened_cells = self.widened,
            narrowed_cells = self.narrowed,
            overlays = self.overlays.len(),
            "policy loaded"
        );
        for CellChange { cell, before, after, widens, narrows } in &self.cells {
            tracing::warn!(cell, before, after, widens, narrows, "policy changes a cell");
        }
        for OverlayChange { overlay, before, after } in &self.overlays {
            tracing::warn!(overlay, before, after, "policy changes an overlay");
        }
    }
}

/// What the operator is told of the last reload.
#[derive(Default)]
struct Told {
    /// How often the folders were read.
    loads: u64,
    at_ms: u64,
    /// What the last policy that was taken changed.
    change: Change,
    active_refused: Vec<Problem>,
    shadow_refused: Vec<Problem>,
}

impl LivePolicy {
    /// Loads the policy to begin with. Offices are not looked up: there are no facts yet, and an
    /// overlay for an office that is gone takes nothing from anybody.
    ///
    /// # Errors
    /// Every problem of the active policy's folder; a bad candidate is only told.
    pub fn start(
        source: Source,
        facts: Arc<LiveFacts>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Vec<Problem>> {
        let matrix = source.active(None)?;
        let change = Change::between(&built_in(source.profile)?, &matrix);
        change.log(&matrix);
        let live = Self {
            active: ArcSwap::from_pointee(matrix),
            shadow: ArcSwapOption::empty(),
            told: Mutex::new(Told { change, ..Told::default() }),
            source: Mutex::new(source),
            facts,
            metrics,
        };
        let source = live.source().clone();
        live.load_shadow(&source, None);
        Ok(live)
    }

    /// The policy now. Hold it for one decision.
    pub fn current(&self) -> Guard<Arc<Matrix>> {
        self.active.load()
    }

    /// Reads both folders again. What has a problem changes nothing.
    pub fn reload(&self) {
        let source = self.source().clone();
        match self.prepare(&source) {
            Ok(prepared) => self.take(prepared),
            Err(problems) => {
                self.told().active_refused = problems;
                self.finish_loading(&source);
            }
        }
    }

    /// Reads and checks what `source` says, and changes nothing yet.
    ///
    /// # Errors
    /// Every problem of the active policy's folder.
    pub fn prepare(&self, source: &Source) -> Result<Prepared, Vec<Problem>> {
        let facts = self.facts.current();
        let is_known = |office: OfficeNumber| facts.office(office).is_some();
        let matrix = source.active(Some(&is_known));
        let matrix = matrix.inspect_err(|problems| self.refuse("active", problems))?;
        Ok(Prepared { source: source.clone(), matrix })
    }

    /// Decides with `prepared` from the next decision on.
    pub fn take(&self, prepared: Prepared) {
        let Prepared { source, matrix } = prepared;
        let change = Change::between(&self.active.load(), &matrix);
        change.log(&matrix);
        self.active.store(Arc::new(matrix));
        self.metrics.policy_loads.with_label_values(&["active", "loaded"]).inc();
        *self.source() = source.clone();
        let mut told = self.told();
        told.change = change;
        told.active_refused = Vec::new();
        drop(told);
        self.finish_loading(&source);
    }

    fn finish_loading(&self, source: &Source) {
        let facts = self.facts.current();
        self.load_shadow(source, Some(&|office: OfficeNumber| facts.office(office).is_some()));
        let mut told = self.told();
        told.loads += 1;
        told.at_ms = now_ms();
    }

    fn load_shadow(&self, source: &Source, is_known: Option<&dyn Fn(OfficeNumber) -> bool>) {
        let refused = match source.shadow(is_known) {
            Ok(matrix) => {
                if let Some(matrix) = &matrix {
                    tracing::info!(policy = matrix.version(), "shadow policy loaded");
                    self.metrics.policy_loads.with_label_values(&["shadow", "loaded"]).inc();
                }
                self.shadow.store(matrix.map(Arc::new));
                Vec::new()
            }
            Err(problems) => {
                self.refuse("shadow", &problems);
                problems
            }
        };
        self.told().shadow_refused = refused;
    }

    fn refuse(&self, which: &str, problems: &[Problem]) {
        self.metrics.policy_loads.with_label_values(&[which, "refused"]).inc();
        for problem in problems {
            tracing::error!(which, %problem, "policy refused, the active one stays");
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&self) -> std::sync::MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The candidate, if there is one.
    pub fn shadow(&self) -> Guard<Option<Arc<Matrix>>> {
        self.shadow.load()
    }

    /// Decides with the candidate too, and counts and logs where it differs. Enforces nothing.
    pub fn compare(&self, facts: &Facts, query: &Query<'_>, active: &Decision, request_id: &str) {
        let Some(shadow) = &*self.shadow.load() else { return };
        let candidate = decide(shadow, facts, query);
        let (was, is) = (reasons(active), reasons(&candidate));
        let difference = match (active.is_allow(), candidate.is_allow()) {
            (true, true) if active == &candidate => return,
            (false, false) if was == is => return,
            (true, false) => "would_deny",
            (false, true) => "would_allow",
            (true, true) => "other_grant",
            (false, false) => "other_reasons",
        };
        let cell = cell(query);
        self.metrics.shadow_differences.with_label_values(&[&cell, difference]).inc();
        tracing::info!(
            request_id,
            cell,
            difference,
            shadow = shadow.version(),
            active_reasons = ?was.iter().collect::<Vec<_>>(),
            shadow_reasons = ?is.iter().collect::<Vec<_>>(),
            "the shadow policy decides otherwise"
        );
    }

    /// What the operator asks for under `/policy`.
    pub fn status(&self) -> Value {
        let active = self.active.load();
        let shadow = self.shadow.load();
        let (told, source) = (self.told(), self.source().clone());
        let shown =
            |dir: &Option<PathBuf>| dir.as_deref().map(Path::display).map(|it| it.to_string());
        json!({
            "profile": active.profile(),
            "version": active.version(),
            "overlays": active.overlays().iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
            "dir": shown(&source.dir),
            "loads": told.loads,
            "loaded_at_ms": told.at_ms,
            "change": told.change,
            "refused": told.active_refused,
            "shadow": {
                "version": shadow.as_ref().map(|matrix| matrix.version()),
                "dir": shown(&source.shadow_dir),
                "refused": told.shadow_refused,
                "differences": self.metrics.shadow_counts(),
            },
        })
    }
}

fn reasons(decision: &Decision) -> ReasonSet {
    match decision {
        Decision::Allow(_) => ReasonSet::EMPTY,
        Decision::Deny(denial) => denial.reasons,
    }
}

/// Operation and kind of document: few, and nobody's number.
fn cell(query: &Query<'_>) -> String {
    let operation = query.operation;
    let party = crate::audit::principal_kind(query.principal);
    match operation.document {
        Some(document) => format!("{}/{document}/{party}", operation.id),
        None => format!("{}/{party}", operation.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../policies/data/sharing-matrix.toml");

    /// A policy that shuts 認定調査票 for every 居宅介護支援事業所, with the case that it needs.
    fn narrower(dir: &Path) {
        let narrowed = SHIPPED.replacen("\"◎ᵃ\"", "\"–\"", 1);
        assert_ne!(narrowed, SHIPPED);
        std::fs::write(dir.join("sharing-matrix.toml"), narrowed).unwrap();
        let case = r#"[{"name": "shut", "principal": "office/1370000001",
            "service_types": ["43"], "job": "care-manager", "at": "2026-04-06T10:00",
            "request": "GET /v1/insured/131016/0000000001/documents/certification-survey",
            "facts": ["live", "registered", "consent"],
            "decision": "deny", "reasons": ["not_shared"]}]"#;
        std::fs::write(dir.join("tests.json"), case).unwrap();
    }

    #[test]
    fn each_load_tells_what_differs_from_the_policy_that_ran() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("policy");
        std::fs::create_dir(&dir).unwrap();
        let source = Source { dir: Some(dir.clone()), ..Source::default() };
        let metrics = Arc::new(Metrics::new().unwrap());
        let live = LivePolicy::start(source, Arc::default(), metrics).unwrap();
        let told = || live.status()["change"].clone();
        let counts = |told: &Value| [told["widened"].clone(), told["narrowed"].clone()];
        let built_in = live.status()["version"].clone();
        assert_eq!(counts(&told()), [0, 0], "the built-in matrix itself");

        narrower(&dir);
        live.reload();
        let narrowed = told();
        assert_eq!(narrowed["from"], built_in, "{narrowed}");
        assert!(narrowed["widened"] == 0 && narrowed["narrowed"] != 0, "{narrowed}");
        let cell = narrowed["cells"].as_array().unwrap().iter();
        let mut cell = cell.filter(|it| it["cell"] == "certification-survey/home-support");
        assert_eq!(cell.next().unwrap()["after"], "–", "{narrowed}");

        // Refused: nothing ran in its place, so nothing else is told.
        std::fs::write(dir.join("tests.json"), "[").unwrap();
        live.reload();
        assert_eq!(told(), narrowed);

        // Back to the built-in matrix: that opens what ran had shut, and is no widening to sign.
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
        live.reload();
        let back = told();
        assert_eq!(counts(&back), [narrowed["narrowed"].clone(), 0.into()], "{back}");
        assert_eq!(live.status()["version"], built_in);
    }

    #[test]
    fn at_the_start_the_built_in_matrix_is_what_ran() {
        let folder = tempfile::tempdir().unwrap();
        narrower(folder.path());
        let source = Source { dir: Some(folder.path().to_owned()), ..Source::default() };
        let metrics = Arc::new(Metrics::new().unwrap());
        let live = LivePolicy::start(source, Arc::default(), metrics).unwrap();
        let change = &live.status()["change"];
        assert!(change["narrowed"] != 0 && change["widened"] == 0, "{change}");
    }

    #[test]
    fn what_opens_more_than_built_in_is_refused_whatever_runs() {
        let folder = tempfile::tempdir().unwrap();
        narrower(folder.path());
        let source = Source { dir: Some(folder.path().to_owned()), ..Source::default() };
        let metrics = Arc::new(Metrics::new().unwrap());
        let live = LivePolicy::start(source, Arc::default(), metrics).unwrap();
        let (running, change) = (live.status()["version"].clone(), live.status()["change"].clone());
        let opened = SHIPPED.replacen("\"◎ᵃ\",        \"–\", ", "\"◎ᵃ\",        \"○ᵃ\",", 1);
        assert_ne!(opened, SHIPPED);
        std::fs::write(folder.path().join("sharing-matrix.toml"), opened).unwrap();
        std::fs::remove_file(folder.path().join("tests.json")).unwrap();
        live.reload();
        let status = live.status();
        assert_eq!((&status["version"], &status["change"]), (&running, &change));
        assert!(status["refused"].to_string().contains("ack-widening"), "{status}");
    }
}
