//! `sekisho down`: asks the supervisor to stop everything and waits until it has.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use crate::cli::Context;
use crate::layout::{Layout, Part};
use crate::lock::Lock;
use crate::output::{self, progress};
use crate::process;
use crate::supervisor::{Status, status_file};
use crate::up::leftovers_are_gone;

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
        forget_dead(layout).await?;
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

/// The record of the supervisor that holds the lock. It writes it right after it took the lock;
/// gives it a moment. A record of any other process is stale: it is removed and nothing is killed.
async fn running_status(layout: &Layout) -> anyhow::Result<Status> {
    let deadline = Instant::now() + RECORD_TIMEOUT;
    loop {
        let told = Status::read(layout)?;
        match told {
            Some(status) if status.is_live(layout) => return Ok(status),
            Some(status) if Instant::now() >= deadline => return Err(stale(layout, status.pid)),
            Some(_) | None => {}
        }
        anyhow::ensure!(
            Instant::now() < deadline && Lock::is_held(layout),
            "the supervisor does not say which process it is: look for the process that has `{}` \
             open and end it",
            layout.run("supervisor.lock").display()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn stale(layout: &Layout, pid: u32) -> anyhow::Error {
    let file = status_file(layout);
    let _already_gone = std::fs::remove_file(&file);
    anyhow::anyhow!(
        "record `{}` is stale (process {pid} is not the supervisor of this folder) and was \
         removed; nothing was stopped: look for the process that has `{}` open and end it",
        file.display(),
        layout.run("supervisor.lock").display()
    )
}

/// Removes the record of a supervisor that was killed, once its parts are gone, unless another
/// starts at this moment.
async fn forget_dead(layout: &Layout) -> anyhow::Result<()> {
    let file = status_file(layout);
    if !file.exists() {
        return Ok(());
    }
    if let Some(dead) = Status::read(layout).unwrap_or_default() {
        leftovers_are_gone(&dead, layout).await?;
    }
    if let Some(_lock) = Lock::take(layout)? {
        std::fs::remove_file(&file)
            .with_context(|| format!("stale record `{}` cannot be removed", file.display()))?;
        progress(&format!("record `{}` was stale and is removed", file.display()));
    }
    Ok(())
}

/// How long a supervisor may hold the lock without a record.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Each part, and what brings the heads out, may take its whole time to stop, one after the other.
const DOWN_TIMEOUT: Duration =
    Duration::from_secs(process::STOP_TIMEOUT.as_secs() * (Part::ALL.len() as u64 + 1) + 5);

#[cfg(test)]
mod tests {
    use super::*;

    fn record(layout: &Layout, pid: u32) {
        let text =
            format!(r#"{{"pid":{pid},"phase":"up","started_at":"x","parts":[],"addresses":{{}}}}"#);
        std::fs::write(status_file(layout), text).unwrap();
    }

    #[tokio::test]
    async fn a_process_that_is_not_this_folders_supervisor_is_never_ended() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        crate::files::private_folder(&layout.run("")).unwrap();
        let own = std::env::current_exe().unwrap();
        let own = own.file_name().unwrap().to_str().unwrap();
        for name in ["sekisho", "sekisho-hub", &format!("{own}-hub")] {
            let program = folder.path().join(name);
            std::fs::copy("/bin/sleep", &program).unwrap();
            let mut other = std::process::Command::new(&program).arg("60").spawn().unwrap();
            record(&layout, other.id());
            let lock = Lock::take(&layout).unwrap().unwrap();
            let stopped = tokio::time::timeout(Duration::from_secs(6), stop(&layout)).await;
            let alive = other.try_wait().unwrap().is_none();
            other.kill().unwrap();
            other.wait().unwrap();
            drop(lock);
            assert!(alive, "{name}");
            let error = stopped.unwrap().unwrap_err().to_string();
            assert!(error.contains("is stale") && error.contains("removed"), "{error}");
            assert!(!status_file(&layout).exists());
        }
    }

    #[tokio::test]
    async fn the_record_of_a_killed_supervisor_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        crate::files::private_folder(&layout.run("")).unwrap();
        assert!(!stop(&layout).await.unwrap());
        record(&layout, 1);
        drop(Lock::take(&layout).unwrap());
        assert!(!stop(&layout).await.unwrap());
        assert!(!status_file(&layout).exists());
    }
}
