//! `sekisho tour`: the main job of the box, walked through step by step on a system of its own.
//!
//! ```text
//!  start (free ports) ─► 1 enrol ─► 2 certification ─► 3 LIFE, care plans ─► 4 registration,
//!  consent
//!                         ─► 5 the person ─► 6 what is refused ─► 7 the audit log ─► stop
//! ```
//!
//! Everything goes through the front door: real programs, real TLS, real certificates with keys
//! made by the enrolment client, real files. Each check prints what it does, what came back, and ✓
//! or ✗; the first ✗ ends the tour. Persons and terminals are new each time, so that a tour can be
//! repeated on the same data folder; offices, persons and the municipality are invented.
//!
//! Invariant: whatever happens, what the tour started is stopped.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::layout::Layout;

mod report;
mod system;
mod party;
mod exchange;
mod enrolment;
mod certification;
mod plan_file;
mod plans;
mod consent;
mod person;
mod requests;
mod handshakes;
mod revocation;
mod records;

use report::Report;
use system::System;

/// What the tour is asked for.
#[derive(Debug)]
pub(crate) struct TourOptions {
    /// The data folder; made if it does not exist.
    pub(crate) data: PathBuf,
    /// Whether each check is printed as a line of JSON.
    pub(crate) json: bool,
}

/// Walks the tour; `false` when something was not as it should be.
///
/// # Errors
/// When the system cannot be started or stopped, or already runs on the data folder.
pub(crate) async fn run(options: TourOptions) -> anyhow::Result<bool> {
    let layout = Layout::new(&options.data)?;
    let mut report = Report::new(options.json);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let system = System::prepare(&layout)?;
    let walked = tokio::select! {
        walked = start_and_walk(&system, &layout, &mut report) => walked,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
    };
    let stopped = system.stop().await;
    let all_as_expected = report.finish(&walked);
    stopped.map(|()| all_as_expected)
}

async fn start_and_walk(
    system: &System,
    layout: &Layout,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.say(&format!("システムを起動しています（データ: {}）", layout.root().display()));
    let env = system.start().await?;
    report.say(&format!("起動しました: ゲートウェイ {}　証明書発行 {}", env.gateway, env.enrol));
    walk(party::Scene::new(layout, env)?, report).await
}

async fn walk(scene: party::Scene, report: &mut Report) -> anyhow::Result<()> {
    let cast = enrolment::walk(&scene, report).await?;
    certification::walk(&scene, &cast, report).await?;
    plans::walk(&scene, &cast, report).await?;
    let mut care_manager = consent::walk(&scene, &cast, report).await?;
    person::walk(&scene, &cast, report).await?;
    requests::walk(&scene, &cast, &mut care_manager, report).await?;
    handshakes::walk(&scene, &cast, report).await?;
    revocation::walk(&scene, report).await?;
    records::walk(&scene, &cast, report).await
}
