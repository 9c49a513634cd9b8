//! `sekisho-bench cold-start`: how long a gateway takes to start with a whole country's facts.
//!
//! ```text
//!  facts of an invented country, made as they are sent
//!    ─► gateway with nothing on its disk ─► ready (snapshot) ─► facts kept on disk
//!    ─► ended and started again          ─► ready (local copy)
//! ```

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;

use crate::decide::field_bytes;
use crate::lab::{FactsSet, Lab, Scale, Start};

/// Arguments of `cold-start`.
#[derive(Debug, Args)]
pub(crate) struct ColdStartArgs {
    /// Registrations; the country's offices, consents and revocations go with them
    #[arg(
        long,
        value_name = "N",
        default_value_t = 40_000_000,
        value_parser = clap::value_parser!(u64).range(1_000..=50_000_000)
    )]
    registrations: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct ColdStartReport {
    registrations: u64,
    /// From the start of the program to ready, with nothing on disk.
    snapshot_seconds: f64,
    /// From ready to the facts being on disk.
    kept_after_seconds: f64,
    /// What they take there.
    kept_bytes: u64,
    /// What a gateway takes to end.
    end_seconds: f64,
    /// From the start of the program to ready, from what was kept.
    copy_seconds: f64,
    /// Memory after that.
    resident_bytes: u64,
}

/// Runs it.
///
/// # Errors
/// When the publisher or the gateway does not start.
pub(crate) fn run(args: &ColdStartArgs) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let registrations = usize::try_from(args.registrations)?;
    let scale = Scale { terminals: 1, offices: 0, registrations, revocations: 0 };
    let lab = Lab::make(dir.path(), &scale)?;
    let start = Start { ready_within: READY_WITHIN, ..Start::default() };
    let backend = lab.start_backend(&start)?;
    let facts = lab.start_facts(FactsSet::Country, &start)?;

    let began = Instant::now();
    let first = lab.start_keeping(FactsSet::Country, &start)?;
    let snapshot_seconds = began.elapsed().as_secs_f64();
    let copy = first.run_dir().context("a gateway without a folder")?.join("facts");
    let kept = copy.join("hub.facts");
    let began = Instant::now();
    while !kept.exists() {
        ensure!(began.elapsed() < READY_WITHIN, "the facts do not come to the disk");
        std::thread::sleep(POLL);
    }
    let kept_after_seconds = began.elapsed().as_secs_f64();
    let kept_bytes = kept.metadata()?.len() + copy.join("ca.facts").metadata()?.len();

    let began = Instant::now();
    let (ending, second) = lab.start_keeping_again(first, &start)?;
    let copy_seconds = (began.elapsed() - ending).as_secs_f64();
    let report = ColdStartReport {
        registrations: args.registrations,
        snapshot_seconds,
        kept_after_seconds,
        kept_bytes,
        end_seconds: ending.as_secs_f64(),
        copy_seconds,
        resident_bytes: resident_bytes(second.pid)?,
    };
    for running in [second, facts, backend] {
        running.stop()?;
    }
    crate::print(&report, args.json)
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(Path::new(&path))?;
    field_bytes(&status, "VmRSS").with_context(|| format!("`{path}` does not say `VmRSS`"))
}

impl fmt::Display for ColdStartReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes / 1_048_576;
        writeln!(out, "{} registrations and what goes with them", self.registrations)?;
        writeln!(out, "from a snapshot    ready after {:.1} s", self.snapshot_seconds)?;
        writeln!(
            out,
            "kept on disk       {:.1} s later, {} MiB",
            self.kept_after_seconds,
            mib(self.kept_bytes)
        )?;
        writeln!(
            out,
            "from the disk      ready after {:.1} s (ending took {:.1} s), {} MiB of memory",
            self.copy_seconds,
            self.end_seconds,
            mib(self.resident_bytes)
        )
    }
}

const READY_WITHIN: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
