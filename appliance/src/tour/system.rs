//! The system that the tour runs on: started by `sekisho up --demo --detach` on free ports, stopped
//! by `sekisho down`, through the same program files that an operator uses.
//!
//! Invariants: whatever happens, nothing is left running; the listen addresses that an operator had
//! chosen for the folder are put back.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::process::Command;

use crate::files;
use crate::layout::{Layout, Part};
use crate::lock::Lock;
use crate::part_config;
use crate::process;
use crate::settings::Settings;
use crate::supervisor::LISTENERS;

/// What the tour reads from `demo/env.json`.
#[derive(Debug, Deserialize)]
pub(super) struct Env {
    /// The gateway's URL.
    pub(super) gateway: String,
    /// The enrolment URL.
    pub(super) enrol: String,
    /// PEM file of the CA that signed the server certificates.
    pub(super) trust: PathBuf,
}

/// A system of the tour's own.
#[derive(Debug)]
pub(super) struct System {
    layout: Layout,
    /// Files that `up` changes for the free ports, as they were.
    kept: Vec<(PathBuf, String)>,
}

impl System {
    /// Looks whether the folder is free.
    ///
    /// # Errors
    /// When the box already runs on it.
    pub(super) fn prepare(layout: &Layout) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !Lock::is_held(layout),
            "the box already runs on `{}`: stop it first with `sekisho down --data {}`, or give \
             the tour a folder of its own with --data",
            layout.root().display(),
            layout.quoted()
        );
        let files = [layout.settings(), layout.config(Part::Gateway), layout.config(Part::Ra)];
        let kept = files.into_iter().filter(|file| file.is_file());
        let kept: anyhow::Result<Vec<_>> =
            kept.map(|file| files::read_text(&file).map(|text| (file, text))).collect();
        Ok(Self { layout: layout.clone(), kept: kept? })
    }

    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; with the words of `sekisho up`.
    pub(super) async fn start(&self) -> anyhow::Result<Env> {
        let mut arguments = vec!["up", "--demo", "--detach"];
        for option in ["--gateway-listen", "--enrol-listen", "--admin-listen"] {
            arguments.extend([option, "127.0.0.1:0"]);
        }
        let (good, words) = sekisho(&self.layout, &arguments).await?;
        anyhow::ensure!(good, "the system could not be started: {}", last_line(&words));
        let path = self.layout.demo("env.json");
        serde_json::from_str(&files::read_text(&path)?)
            .with_context(|| format!("file `{}` is not understood", path.display()))
    }

    /// Stops what runs and puts the listen addresses back.
    ///
    /// # Errors
    /// When something could not be stopped.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        if Lock::is_held(&self.layout) {
            let (good, words) = sekisho(&self.layout, &["down"]).await?;
            anyhow::ensure!(good, "the system could not be stopped: {}", last_line(&words));
        }
        self.put_back()
    }

    fn put_back(&self) -> anyhow::Result<()> {
        for (file, text) in &self.kept {
            files::write_private(file, text.as_bytes())?;
        }
        if self.kept.is_empty() && self.layout.settings().is_file() {
            self.usual_addresses()?;
        }
        Ok(())
    }

    /// A folder that the tour made gets the addresses that `up` would have chosen.
    fn usual_addresses(&self) -> anyhow::Result<()> {
        let mut settings = Settings::new(true);
        settings.heads = Settings::read(&self.layout.settings())?.heads;
        let usual = [settings.gateway_listen, settings.enrol_listen, settings.admin_listen];
        for ((part, key, _), address) in LISTENERS.iter().zip(usual) {
            part_config::change(&self.layout, *part, key, &address.to_string())?;
        }
        settings.write(&self.layout.settings())
    }
}

impl Drop for System {
    /// Also a tour that broke off by a panic leaves nothing running.
    fn drop(&mut self) {
        if !Lock::is_held(&self.layout) {
            return;
        }
        if let Ok(own) = std::env::current_exe() {
            let down = ["down", "--data"];
            let mut command = std::process::Command::new(own);
            let _best_effort = command.args(down).arg(self.layout.root()).output();
        }
        let _best_effort = self.put_back();
    }
}

/// Runs this program on the data folder; whether it ended well, and what it printed.
///
/// # Errors
/// When it cannot be started.
pub(super) async fn sekisho(layout: &Layout, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let own = std::env::current_exe().context("own program file is not known")?;
    let output = Command::new(own)
        .args(arguments)
        .arg("--data")
        .arg(layout.root())
        .stdin(Stdio::null())
        .output()
        .await
        .context("`sekisho` cannot be started")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout) + &text(&output.stderr)))
}

fn last_line(words: &str) -> String {
    process::last_error_line(words).unwrap_or_else(|| "it said nothing".to_owned())
}
