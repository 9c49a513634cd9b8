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
//! INVARIANT: there is an active policy from before the first request on; it changes whole or not
//! at all, and a decision is made from one of them from beginning to end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use policies::bundle::signature::Signer;
use policies::bundle::{Policy, Terms, folder};
use policies::decide::{Decision, Query, decide};
use policies::facts::Facts;
use policies::identity::OfficeNumber;
use policies::matrix::{Matrix, Profile};
use policies::problem::Problem;
use policies::reason::ReasonSet;
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
    source: Source,
    facts: Arc<LiveFacts>,
    metrics: Arc<Metrics>,
    active: ArcSwap<Matrix>,
    shadow: ArcSwapOption<Matrix>,
    told: Mutex<Told>,
}

/// What the operator is told of the last reload.
#[derive(Default)]
struct Told {
    /// How often the folders were read.
    loads: u64,
    at_ms: u64,
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
        tracing::info!(policy = matrix.version(), profile = %matrix.profile(), "policy loaded");
        let live = Self {
            active: ArcSwap::from_pointee(matrix),
            shadow: ArcSwapOption::empty(),
            told: Mutex::default(),
            source,
            facts,
            metrics,
        };
        live.load_shadow(None);
        Ok(live)
    }

    /// The policy now. Hold it for one decision.
    pub fn current(&self) -> Guard<Arc<Matrix>> {
        self.active.load()
    }

    /// Reads both folders again. What has a problem changes nothing.
    pub fn reload(&self) {
        let facts = self.facts.current();
        let is_known = |office: OfficeNumber| facts.office(office).is_some();
        let refused = match self.source.active(Some(&is_known)) {
            Ok(matrix) => {
                let version = matrix.version().to_owned();
                let was = self.active.swap(Arc::new(matrix));
                tracing::info!(policy = version, was = was.version(), "policy loaded");
                self.metrics.policy_loads.with_label_values(&["active", "loaded"]).inc();
                Vec::new()
            }
            Err(problems) => {
                self.refuse("active", &problems);
                problems
            }
        };
        self.told().active_refused = refused;
        self.load_shadow(Some(&is_known));
        let mut told = self.told();
        told.loads += 1;
        told.at_ms = now_ms();
    }

    fn load_shadow(&self, is_known: Option<&dyn Fn(OfficeNumber) -> bool>) {
        let refused = match self.source.shadow(is_known) {
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
        let told = self.told();
        let shown =
            |dir: &Option<PathBuf>| dir.as_deref().map(Path::display).map(|it| it.to_string());
        json!({
            "profile": active.profile(),
            "version": active.version(),
            "overlays": active.overlays().iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
            "dir": shown(&self.source.dir),
            "loads": told.loads,
            "loaded_at_ms": told.at_ms,
            "refused": told.active_refused,
            "shadow": {
                "version": shadow.as_ref().map(|matrix| matrix.version()),
                "dir": shown(&self.source.shadow_dir),
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
