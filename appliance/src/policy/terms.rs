//! What policies are checked with here: profile and operators of config/gateway.toml, and the
//! offices that the running box knows.

use anyhow::Context as _;
use policies::bundle::signature::Signer;
use policies::bundle::{Files, Policy, Terms};
use policies::facts::Facts;
use policies::feed::Source;
use policies::matrix::{Matrix, Profile};
use policies::problem::Problem;

use super::{OfficeNumber, feeds};
use crate::exit::usage;
use crate::files;
use crate::layout::{Layout, Part};
use crate::output::progress;
use crate::part_config;

/// The terms of this data folder.
pub(super) struct OwnTerms {
    profile: Profile,
    signers: Vec<Signer>,
    /// The facts of the running cert-authority: its offices.
    offices: Option<Facts>,
}

impl OwnTerms {
    /// Reads them, the offices too where the box runs.
    ///
    /// # Errors
    /// When config/gateway.toml is not understood.
    pub(super) async fn with_offices(layout: &Layout) -> anyhow::Result<Self> {
        let mut terms = Self::read(layout)?;
        let mut facts = Facts::new();
        let ca_feed = layout.config(Part::Gateway).exists();
        if ca_feed && feeds::read(layout, Source::Ca, &mut facts).await.is_ok() {
            terms.offices = Some(facts);
        } else {
            progress("note: the box does not run here, so offices are not looked up");
        }
        Ok(terms)
    }

    /// Reads them; offices are not looked up.
    ///
    /// # Errors
    /// When config/gateway.toml is not understood.
    pub(super) fn read(layout: &Layout) -> anyhow::Result<Self> {
        let profile = profile(layout)?;
        Ok(Self { profile, signers: signers(layout)?, offices: None })
    }

    /// Checks a policy.
    ///
    /// # Errors
    /// Every problem of it.
    pub(super) fn load(&self, files: &Files) -> Result<Policy, Vec<Problem>> {
        let is_known = |office: OfficeNumber| {
            self.offices.as_ref().is_none_or(|facts| facts.office(office).is_some())
        };
        let (profile, signers) = (self.profile, self.signers.as_slice());
        Policy::load(files, &Terms { profile, signers, is_known: Some(&is_known) })
    }

    /// What a policy would decide with, whatever its cases and signatures say.
    ///
    /// # Errors
    /// Problems of the matrix and the overlays.
    pub(super) fn matrix_of(&self, files: &Files) -> Result<Matrix, Vec<Problem>> {
        policies::bundle::uncommitted(files, self.profile)
    }

    /// The profile in force.
    pub(super) fn profile(&self) -> Profile {
        self.profile
    }
}

/// The built-in matrix of the wanted profile, else of the one in force.
///
/// # Errors
/// When config/gateway.toml is not understood.
pub(super) fn built_in(wanted: Option<Profile>, layout: &Layout) -> anyhow::Result<Matrix> {
    let profile = wanted.map_or_else(|| profile(layout), Ok)?;
    Matrix::builtin(profile).context("the sharing matrix does not load")
}

fn profile(layout: &Layout) -> anyhow::Result<Profile> {
    if !layout.config(Part::Gateway).exists() {
        return Ok(Profile::default());
    }
    let text = part_config::value(layout, Part::Gateway, "policy_profile")?;
    text.parse().map_err(|error| usage(format!("key `policy_profile`: {error}")))
}

fn signers(layout: &Layout) -> anyhow::Result<Vec<Signer>> {
    let path = layout.config(Part::Gateway);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let table: toml::Table = toml::from_str(&files::read_config(&path)?)
        .map_err(|error| usage(format!("config file `{}`: {}", path.display(), error.message())))?;
    let operators = table.get("policy").and_then(|policy| policy.get("operators"));
    let operators = operators.and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let text = |operator: &toml::Value, key: &str| {
        operator.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_owned()
    };
    let signer = |operator: &toml::Value| {
        Signer::new(&text(operator, "name"), &text(operator, "public_key"))
            .map_err(|error| usage(error.to_string()))
    };
    operators.iter().map(signer).collect()
}
