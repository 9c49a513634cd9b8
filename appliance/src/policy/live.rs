//! `sekisho policy shadow|promote`: a folder into the gateway that runs.
//!
//! The folder is checked here first, written whole, and the gateway told to read it (SIGHUP); what
//! it then says under `/policy` on its loopback listener is what is reported. A policy that the
//! gateway refuses does not stay in the active policy's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use policies::bundle::{Policy, diff};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{OwnTerms, folder, place};
use crate::admin;
use crate::cli::Context;
use crate::layout::{Layout, Part};
use crate::output::{self, field, progress};
use crate::{process, status};

/// Subcommands of `policy shadow`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Shadow {
    /// Let the gateway decide with a candidate too
    Start {
        /// The candidate's folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// End it
    Stop,
    /// What the candidate decided otherwise
    Status,
}

/// Runs `shadow`.
///
/// # Errors
/// When the gateway does not run, or a folder cannot be written.
pub(super) async fn shadow(command: &Shadow, context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    layout.must_exist()?;
    let shadow = place::shadow_dir(layout)?;
    match command {
        Shadow::Start { folder: dir } => {
            let gateway = Gateway::running(layout)?;
            let Some((texts, policy)) = checked(dir, context).await? else { return Ok(false) };
            place::write(&shadow, &texts)?;
            let told = gateway.reload().await?;
            let is_loaded = told["shadow"]["version"] == policy.matrix.version();
            report(&told, is_loaded, context, "in shadow");
            Ok(is_loaded)
        }
        Shadow::Stop => {
            if shadow.exists() {
                fs::remove_dir_all(&shadow)
                    .with_context(|| format!("`{}` cannot be removed", shadow.display()))?;
            }
            let told = Gateway::running(layout)?.reload().await?;
            let is_gone = told["shadow"]["version"].is_null();
            output::data(context.json, &told["shadow"], || "no policy is in shadow".to_owned());
            Ok(is_gone)
        }
        Shadow::Status => {
            let told = Gateway::running(layout)?.told().await?;
            output::data(context.json, &told["shadow"], || shadow_text(&told["shadow"]));
            Ok(true)
        }
    }
}

fn shadow_text(shadow: &Value) -> String {
    if shadow["version"].is_null() {
        return "no policy is in shadow".to_owned();
    }
    let mut lines = vec![format!("in shadow: version {}", field(shadow, "version"))];
    let differences = shadow["differences"].as_array().cloned().unwrap_or_default();
    for difference in &differences {
        let text = |at: usize| difference[at].as_str().unwrap_or("-").to_owned();
        lines.push(format!("  {} {}: {}", difference[2], text(1), text(0)));
    }
    if differences.is_empty() {
        lines.push("  it has decided nothing otherwise".to_owned());
    }
    lines.join("\n")
}

/// Runs `promote`.
///
/// # Errors
/// When a folder cannot be written, or the gateway does not answer.
pub(super) async fn promote(dir: Option<&Path>, context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    layout.must_exist()?;
    let active = place::active_dir(layout)?;
    let dir = dir.map_or_else(|| place::shadow_dir(layout), |dir| Ok(dir.to_owned()))?;
    let Some((texts, policy)) = checked(&dir, context).await? else { return Ok(false) };
    let version = policy.matrix.version();
    if let Ok(before) = place::active(layout) {
        tell_changes(&before, &policy);
    }
    let before = fs::read_link(&active).ok();
    let target = Path::new("versions").join(version.get(..16).unwrap_or(version));
    let parent = active.parent().unwrap_or(layout.root());
    let kept = parent.join(&target);
    // The version that is in force may be promoted again: its folder then stays as it is.
    if !kept.exists() || place::read(&kept)? != texts {
        place::write(&kept, &texts)?;
    }
    place::point(&active, &target)?;
    let Ok(gateway) = Gateway::running(layout) else {
        progress("the gateway does not run: it begins with this policy");
        let value = json!({ "version": version, "active": false });
        output::data(context.json, &value, || format!("version {version} is set"));
        return Ok(true);
    };
    let told = gateway.reload().await?;
    let is_active = told["version"] == version;
    if let (false, Some(before)) = (is_active, before) {
        place::point(&active, &before)?;
    }
    report(&told, is_active, context, "active");
    Ok(is_active)
}

/// What changes for whom, before it does.
fn tell_changes(before: &policies::matrix::Matrix, policy: &Policy) {
    for change in diff::overlays(before, &policy.matrix) {
        let shown = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
        let (was, is) = (shown(&change.before), shown(&change.after));
        progress(&format!("overlay {}: {was} → {is}", change.overlay));
    }
    for change in diff::cells(before, &policy.matrix) {
        progress(&format!("cell {}: {} → {}", change.cell, change.before, change.after));
    }
}

/// A folder that is good; otherwise its problems are printed.
async fn checked(
    dir: &Path,
    context: &Context,
) -> anyhow::Result<Option<(policies::bundle::Files, Policy)>> {
    let texts = place::read(dir)?;
    match OwnTerms::with_offices(&context.layout).await?.load(&texts) {
        Ok(policy) => Ok(Some((texts, policy))),
        refused => {
            folder::report(Some(dir), &refused, context);
            Ok(None)
        }
    }
}

fn report(told: &Value, is_loaded: bool, context: &Context, what: &str) {
    let text = || {
        let side = if what == "active" { told } else { &told["shadow"] };
        if is_loaded {
            return format!("{what}: version {}", field(side, "version"));
        }
        let refused = side["refused"].as_array().cloned().unwrap_or_default();
        let lines: Vec<String> = refused
            .iter()
            .map(|it| {
                format!("{}:{}: {}", field(it, "file"), field(it, "line"), field(it, "problem"))
            })
            .collect();
        format!("refused by the gateway: {}", lines.join("; "))
    };
    output::data(context.json, told, text);
}

/// The gateway that runs on a data folder.
struct Gateway {
    address: String,
    pid: u32,
}

impl Gateway {
    fn running(layout: &Layout) -> anyhow::Result<Self> {
        let status = status::running(layout)?.context("the box does not run: `sekisho up`")?;
        let record = status.parts.iter().find(|part| part.name == Part::Gateway.as_str());
        let pid = record.and_then(|record| record.pid).context("the gateway does not run")?;
        Ok(Self { address: status.address("admin")?.to_string(), pid })
    }

    async fn told(&self) -> anyhow::Result<Value> {
        let answer = admin::get_plain(&self.address, "/policy").await?;
        anyhow::ensure!(answer.status == 200, "the gateway answers {}", answer.status);
        Ok(answer.body)
    }

    /// Tells the gateway to read its folders, and waits until it has.
    async fn reload(&self) -> anyhow::Result<Value> {
        let before = self.told().await?["loads"].clone();
        process::signal(Some(self.pid), Signal::HUP);
        let started = Instant::now();
        while started.elapsed() < RELOAD_TIMEOUT {
            let told = self.told().await?;
            if told["loads"] != before {
                return Ok(told);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("the gateway did not read its policy: see run/gateway.log")
    }
}

/// For reading and checking two folders.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(15);
