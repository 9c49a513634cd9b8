//! `sekisho gateway …`: what is done to the gateway while it serves.
//!
//! ```text
//!  upgrade ─► configuration good? ─► supervisor (SIGUSR2) ─► new process ready ─► takes the place
//! ```
//!
//! The new process is of the program file and the configuration as they are now; the old one
//! answers what it has and ends. When anything is bad the old one serves on.
//!
//! `reload` asks the process that runs to take what of the configuration can change under it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::cli::Context;
use crate::layout::{Layout, Part};
use crate::output;
use crate::process::{self, Spec};
use crate::supervisor::{Status, Upgrades};

/// Subcommands of `gateway`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Have a new process, of the program and configuration as they are now, take the gateway's
    /// place; no request is lost
    Upgrade,
    /// Have the gateway that runs take its configuration anew: limits, policy and certificates;
    /// nothing of it when any part is bad
    Reload,
}

/// Runs one of them.
///
/// # Errors
/// When it could not be done; the gateway is then as before.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    match command {
        Command::Upgrade => upgrade(context).await,
        Command::Reload => reload(context).await,
    }
}

async fn reload(context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    layout.must_exist()?;
    Spec::new(layout, Part::Gateway)?.check().await?;
    let gateway = Admin::gateway(layout);
    let answer = gateway.ask(http::Method::POST, "/reload", None).await?;
    anyhow::ensure!(answer.status == 200, "nothing was changed: {}", problems(&answer.body));
    output::data(context.json, &answer.body, || told_changes(&answer.body));
    Ok(true)
}

fn problems(body: &Value) -> String {
    let lines = body["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

fn told_changes(body: &Value) -> String {
    let changed = body["changed"].as_array().map(Vec::as_slice).unwrap_or_default();
    let keys: Vec<&str> = changed.iter().filter_map(Value::as_str).collect();
    let keys = if keys.is_empty() { "no key has changed".to_owned() } else { keys.join(", ") };
    let policy = body["policy"].as_str().unwrap_or_default();
    format!("reloaded: {keys}; policy {policy}")
}

async fn upgrade(context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    layout.must_exist()?;
    let (before, done) = running(layout)?;
    Spec::new(layout, Part::Gateway)?.check().await?;
    let old = gateway_pid(&before);
    process::signal(Some(before.pid), rustix::process::Signal::USR2);
    let began = Instant::now();
    loop {
        tokio::time::sleep(POLL).await;
        let (status, upgrades) = running(layout)?;
        if upgrades.done > done.done {
            let failed = upgrades.failed.filter(|_| upgrades.done == done.done + 1);
            anyhow::ensure!(failed.is_none(), "the gateway serves on as before: {}", told(failed));
            let took_ms = began.elapsed().as_millis() as u64;
            let new = gateway_pid(&status);
            let value = json!({ "old_pid": old, "new_pid": new, "took_ms": took_ms });
            output::data(context.json, &value, || {
                let pid = new.map(|pid| pid.to_string()).unwrap_or_default();
                format!("process {pid} serves now (after {took_ms} ms)")
            });
            return Ok(true);
        }
        anyhow::ensure!(
            began.elapsed() < UPGRADE_TIMEOUT,
            "the new process is not ready after {} s; the gateway serves on as before: see `{}`",
            UPGRADE_TIMEOUT.as_secs(),
            layout.log(Part::Gateway).display()
        );
    }
}

fn told(failed: Option<String>) -> String {
    failed.unwrap_or_default()
}

/// The record of the box that runs.
fn running(layout: &Layout) -> anyhow::Result<(Status, Upgrades)> {
    let status = Status::read(layout)?.filter(|status| status.is_live(layout));
    let status = status.with_context(|| {
        format!("nothing runs on `{}`: start it with `sekisho up`", layout.root().display())
    })?;
    let upgrades = status.upgrades.clone().context(
        "the supervisor that runs is of a version without upgrades: stop it with `sekisho down` \
         and start it again",
    )?;
    Ok((status, upgrades))
}

fn gateway_pid(status: &Status) -> Option<u32> {
    let gateway = status.parts.iter().find(|part| part.name == Part::Gateway.as_str());
    gateway.and_then(|part| part.pid)
}

const POLL: Duration = Duration::from_millis(30);
/// As long as the supervisor waits for the new process, and a little.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(45);
