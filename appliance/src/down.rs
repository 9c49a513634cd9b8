//! `sekisho down`: asks the supervisor to stop everything and waits until it has.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use crate::cli::Context;
use crate::layout::{Layout, Part};
use crate::lock::Lock;
use crate::output;
use crate::process;
use crate::supervisor::Status;

/// Runs `down`.
///
/// # Errors
/// When the supervisor does not end in time.
pub(crate) async fn run(context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let was_running = stop(&context.layout).await?;
    let value = json!({ "stopped": was_running });
    output::data(context.json, &value, || {
        if was_running { "stopped".to_owned() } else { "nothing was running".to_owned() }
    });
    Ok(true)
}

/// Stops the box of a folder; `false` when none ran.
///
/// # Errors
/// When the supervisor does not end in time.
pub(crate) async fn stop(layout: &Layout) -> anyhow::Result<bool> {
    if !Lock::is_held(layout) {
        return Ok(false);
    }
    let status = running_status(layout).await?;
    process::signal(Some(status.pid), rustix::process::Signal::TERM);
    let deadline = Instant::now() + DOWN_TIMEOUT;
    while Lock::is_held(layout) {
        anyhow::ensure!(
            Instant::now() < deadline,
            "the supervisor (process {}) did not end in {} s: see `{}`",
            status.pid,
            DOWN_TIMEOUT.as_secs(),
            layout.run("supervisor.log").display()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(true)
}

/// A supervisor writes its file right after it took the lock; gives it a moment.
async fn running_status(layout: &Layout) -> anyhow::Result<Status> {
    let deadline = Instant::now() + process::READY_TIMEOUT;
    loop {
        let told = Status::read(layout)?.filter(|status| is_supervisor(status.pid));
        if let Some(status) = told {
            return Ok(status);
        }
        if Instant::now() >= deadline || !Lock::is_held(layout) {
            return None.context("the supervisor does not say which process it is");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Guards against a process number that was given to another program since.
fn is_supervisor(pid: u32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let own = std::env::current_exe().unwrap_or_default();
    let name = |path: &std::path::Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    name(&program).zip(name(&own)).is_some_and(|(found, own)| found.starts_with(&own))
}

/// Each part may take its whole time to stop, one after the other.
const DOWN_TIMEOUT: Duration =
    Duration::from_secs(process::STOP_TIMEOUT.as_secs() * Part::ALL.len() as u64 + 5);
