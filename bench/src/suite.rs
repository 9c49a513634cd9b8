//! `sekisho-bench suite` and `report`: all measurements in one run, side by side, and the page that
//! is made from their results.
//!
//! ```text
//!  session (starts the other commands, pinned) ─► rounds (all systems in turn) ─┐
//!                                               ─► loads (fixed rate, storm, …) ─┼─► results
//!                                               ─► alone (audit, decide, issuing)┘     │
//!  ratio (may it be told?) ◄───────────────────────────────────────────────────────────┤
//!  goals (how far from them?) ◄────────────────────────────────────────────────────────┤
//!  page, plots ◄───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Nothing that fails is left out silently: it is told in the results and on the page, and the
//! command ends with 1 after everything else was done and written.

mod session;
mod rounds;
mod loads;
mod alone;
mod answers;
mod results;
mod machine;
mod ratio;
mod goals;
mod page;
mod plots;

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::Usage;
use crate::lab::{FactsSet, Lab, Running, Scale};
use results::{FORMAT, FactsScale, Pins, Results};
use session::Session;

/// Arguments of `suite`.
#[derive(Debug, Args)]
pub(crate) struct SuiteArgs {
    /// Folder for DATE.json and latest.json; plots go into `plots` in it
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    out: PathBuf,
    /// The page; written by runs of all parts
    #[arg(long, value_name = "FILE", default_value = "bench/REPORT.md")]
    page: PathBuf,
    /// Fewer rounds and shorter measurements: four minutes instead of fourteen
    #[arg(long)]
    quick: bool,
    /// Folder for terminals, facts, sockets and logs; kept and used again
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Only these parts; such a run writes DATE.json alone
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<PartName>,
    /// Core of the measured server
    #[arg(long, value_name = "N", default_value_t = 0)]
    server_cpu: usize,
    /// Core of the generator, the back end and the facts publisher
    #[arg(long, value_name = "N", default_value_t = 1)]
    load_cpu: usize,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Results file
    #[arg(long, value_name = "FILE", default_value = "bench/results/latest.json")]
    results: PathBuf,
    /// Page to write; its plots go into `plots` beside the results file
    #[arg(long, value_name = "FILE", default_value = "bench/REPORT.md")]
    out: PathBuf,
}

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PartName {
    /// All systems in turn, in every mode
    SideBySide,
    /// Latency at half of the highest throughput (needs side-by-side)
    OpenLoop,
    /// Cost of a million revocations
    RevocationSet,
    /// Memory of idle connections
    Idle,
    /// All terminals come back at once
    Storm,
    /// Slow clients beside good ones
    SlowClients,
    /// Large bodies
    Streaming,
    /// The office day
    Day,
    /// From a revocation to the first refusal
    RevocationTiming,
    /// Audit records
    Audit,
    /// Decisions
    Decide,
    /// Issuing of certificates
    Issuing,
}

impl PartName {
    const ALL: [Self; 12] = [
        Self::SideBySide,
        Self::OpenLoop,
        Self::RevocationSet,
        Self::Idle,
        Self::Storm,
        Self::SlowClients,
        Self::Streaming,
        Self::Day,
        Self::RevocationTiming,
        Self::Audit,
        Self::Decide,
        Self::Issuing,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::SideBySide => "side-by-side",
            Self::OpenLoop => "open-loop",
            Self::RevocationSet => "revocation-set",
            Self::Idle => "idle",
            Self::Storm => "storm",
            Self::SlowClients => "slow-clients",
            Self::Streaming => "streaming",
            Self::Day => "day",
            Self::RevocationTiming => "revocation-timing",
            Self::Audit => "audit",
            Self::Decide => "decide",
            Self::Issuing => "issuing",
        }
    }

    /// What it may take on a quiet machine: (full, quick), in seconds.
    fn budget(self, quick: bool) -> Duration {
        let (full, short) = match self {
            Self::SideBySide => (330, 100),
            Self::OpenLoop => (110, 22),
            Self::RevocationSet => (60, 15),
            Self::Idle => (45, 12),
            Self::Storm => (25, 6),
            Self::SlowClients => (45, 10),
            Self::Streaming => (40, 14),
            Self::Day => (42, 8),
            Self::RevocationTiming => (15, 6),
            Self::Audit => (20, 6),
            Self::Decide => (60, 8),
            Self::Issuing => (45, 15),
        };
        Duration::from_secs(if quick { short } else { full })
    }

    /// Whether it is done without back end and facts.
    fn is_alone(self) -> bool {
        matches!(self, Self::Audit | Self::Decide | Self::Issuing)
    }
}

/// Runs the suite.
///
/// # Errors
/// When something could not be measured, after everything else was written.
pub(crate) fn run(args: &SuiteArgs) -> anyhow::Result<()> {
    check(args)?;
    let parts = if args.only.is_empty() { PartName::ALL.to_vec() } else { args.only.clone() };
    end_on_signals()?;
    machine::raise_open_files();
    let work = work_dir(args)?;
    let _held = hold(&work)?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder `{}`", args.out.display()))?;
    let ticks_before = machine::ticks();
    let mut results = empty(args);
    results.started_at = session::now();
    let (lab, no_lab) = lab(&work, &parts, args.quick);
    let pins = results.pins;
    let mut session = Session::new(lab, work, pins, args.quick, results.facts.terminals)?;
    if let Some(error) = no_lab {
        session.fail("terminals and facts", &error);
    }
    results.run.clone_from(&session.run);
    results.software = machine::software(session.program());
    measure(&mut session, &mut results, &parts);
    results.finished_at = session::now();
    results.machine.load_average_after = machine::load_average();
    results.machine.stolen_percent = machine::stolen_percent(ticks_before, machine::ticks());
    results.limits_changed = session.lab().map(Lab::limits_changed).unwrap_or_default();
    results.parts = session.parts;
    results.failed = session.failed;
    results.commands = session.commands;
    ratio::fill(&mut results);
    results.goals = goals::rows(&results);
    write(args, &results)?;
    print!("{}", page::summary(&results));
    close(&results)
}

/// Makes the page of a results file.
///
/// # Errors
/// If the file can not be read, or has a ratio that may not be told.
pub(crate) fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let results = Results::read(&args.results)?;
    page_of(&results, &args.results, &args.out)
}

fn check(args: &SuiteArgs) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if args.server_cpu == args.load_cpu {
        let problem = "server and load need a core each: choose --server-cpu and --load-cpu";
        return Err(Usage(problem.to_owned()).into());
    }
    let highest = args.server_cpu.max(args.load_cpu);
    if highest >= cores {
        let problem = format!("there is no core {highest}: this machine has {cores}");
        return Err(Usage(problem).into());
    }
    Ok(())
}

/// What the systems need, if a part asks for it, or why there is none.
fn lab(work: &Path, parts: &[PartName], quick: bool) -> (Option<Lab>, Option<anyhow::Error>) {
    if parts.iter().all(|part| part.is_alone()) {
        return (None, None);
    }
    eprintln!("terminals, facts and configurations: made, or taken from the last run");
    match Lab::make(&session::fixture_dir(work, quick), &scale(quick))
        .context("cannot make what the systems need")
    {
        Ok(lab) => (Some(lab), None),
        Err(error) => (None, Some(error)),
    }
}

/// The folder of all that is made on the way, absolute because the systems are started with paths
/// in it.
fn work_dir(args: &SuiteArgs) -> anyhow::Result<PathBuf> {
    let ours = format!("sekisho-bench-{}", rustix::process::geteuid().as_raw());
    let dir = args.work.clone().unwrap_or_else(|| std::env::temp_dir().join(ours));
    std::path::absolute(&dir).with_context(|| format!("`{}` is no folder", dir.display()))
}

/// Makes the folder for us alone, and holds it while the run lasts: two runs at once would measure
/// each other.
fn hold(dir: &Path) -> anyhow::Result<fs::File> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the folder `{}`", dir.display()))?;
    let owner = fs::metadata(dir)?.uid();
    let us = rustix::process::geteuid().as_raw();
    anyhow::ensure!(
        owner == us,
        "`{}` belongs to user {owner}: name another folder with --work",
        dir.display()
    );
    let lock = fs::File::create(dir.join("lock"))?;
    lock.try_lock().map_err(|_| {
        anyhow::anyhow!("another run works in `{}`: wait for its end", dir.display())
    })?;
    Ok(lock)
}

fn empty(args: &SuiteArgs) -> Results {
    let (commit, dirty) = machine::commit();
    let scale = scale(args.quick);
    Results {
        format: FORMAT.to_owned(),
        run: String::new(),
        started_at: String::new(),
        finished_at: String::new(),
        quick: args.quick,
        only: args.only.iter().map(|part| part.as_str().to_owned()).collect(),
        commit,
        dirty,
        machine: machine::facts(),
        software: std::collections::BTreeMap::new(),
        pins: Pins { server_cpu: args.server_cpu, load_cpu: args.load_cpu },
        facts: FactsScale {
            terminals: scale.terminals,
            offices: scale.offices,
            registrations: scale.registrations,
            revocations: scale.revocations,
        },
        limits_changed: Vec::new(),
        parts: Vec::new(),
        side_by_side: Vec::new(),
        ratios: std::collections::BTreeMap::new(),
        ratio_details: std::collections::BTreeMap::new(),
        ratios_refused: std::collections::BTreeMap::new(),
        open_loop: Vec::new(),
        http2: Vec::new(),
        revocation_set: Vec::new(),
        revocation_timing: None,
        idle: Vec::new(),
        storm: None,
        slow_clients: None,
        streaming: Vec::new(),
        day: None,
        audit: None,
        decision: None,
        issuing: None,
        goals: Vec::new(),
        failed: Vec::new(),
        commands: Vec::new(),
    }
}

/// All parts: first those that load a system, then those that need the machine alone.
fn measure(session: &mut Session, results: &mut Results, parts: &[PartName]) {
    let (alone, loading): (Vec<PartName>, Vec<PartName>) =
        PartName::ALL.iter().filter(|part| parts.contains(part)).partition(|part| part.is_alone());
    if !loading.is_empty() {
        match around(session) {
            Ok((backend, facts)) => {
                for part in loading {
                    one(session, results, part, Some(&backend));
                }
                for running in facts.into_iter().chain([backend]) {
                    if let Err(error) = running.stop() {
                        session.fail("stopping the back end and the facts", &error);
                    }
                }
            }
            Err(error) => {
                for part in loading {
                    session.fail(part.as_str(), &error);
                }
            }
        }
    }
    for part in alone {
        one(session, results, part, None);
    }
}

/// The back end and the facts publishers.
fn around(session: &mut Session) -> anyhow::Result<(Running, Vec<Running>)> {
    let backend = session.start_backend().context("the back end does not start")?;
    let mut facts = Vec::new();
    for set in [FactsSet::Full, FactsSet::Bare] {
        facts.push(session.start_facts(set).context("the facts publisher does not start")?);
    }
    Ok((backend, facts))
}

fn one(session: &mut Session, results: &mut Results, part: PartName, backend: Option<&Running>) {
    let budget = part.budget(session.quick);
    session.part(part.as_str(), budget, |session| match part {
        PartName::SideBySide => rounds::measure(session, results),
        PartName::OpenLoop => {
            let backend = backend.context("there is no back end")?;
            loads::open_loop(session, results, backend)
        }
        PartName::RevocationSet => loads::revocation_set(session, results),
        PartName::Idle => loads::idle(session, results),
        PartName::Storm => loads::storm(session, results),
        PartName::SlowClients => loads::slow_clients(session, results),
        PartName::Streaming => loads::streaming(session, results),
        PartName::Day => loads::day(session, results),
        PartName::RevocationTiming => loads::revocation_timing(session, results),
        PartName::Audit => alone::audit(session, results),
        PartName::Decide => alone::decide(session, results),
        PartName::Issuing => alone::issuing(session, results),
    });
}

/// DATE.json; of a whole run also latest.json and the page.
fn write(args: &SuiteArgs, results: &Results) -> anyhow::Result<()> {
    let name: String = results.started_at.chars().filter(|c| *c != ':').take(17).collect();
    let dated = args.out.join(format!("{name}Z.json"));
    results.write(&dated)?;
    eprintln!("results: {}", dated.display());
    if !args.only.is_empty() {
        return Ok(());
    }
    if session::stopped() || results.side_by_side.is_empty() {
        eprintln!("not a whole run: latest.json and the page stay as they are");
        return Ok(());
    }
    let latest = args.out.join("latest.json");
    results.write(&latest)?;
    // Read back, so that the page is of the file and not of what this process remembers.
    page_of(&Results::read(&latest)?, &latest, &args.page)
}

fn page_of(results: &Results, file: &Path, out: &Path) -> anyhow::Result<()> {
    ratio::check(results).with_context(|| format!("`{}`", file.display()))?;
    let here = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
    let (page_dir, file_dir) = (here(out), here(file));
    // The page names its plots by paths from itself.
    let (plots, link) = match file_dir.strip_prefix(&page_dir) {
        Ok(below) => (file_dir.join("plots"), below.join("plots")),
        Err(_) => (page_dir.join("plots"), PathBuf::from("plots")),
    };
    fs::create_dir_all(&plots)
        .with_context(|| format!("cannot make the folder `{}`", plots.display()))?;
    let drawn = plots::draw(results, &plots)?;
    let text = page::of(results, &drawn, &link.display().to_string());
    fs::write(out, text).with_context(|| format!("cannot write `{}`", out.display()))?;
    eprintln!("page: {}", out.display());
    Ok(())
}

fn close(results: &Results) -> anyhow::Result<()> {
    let refused = if results.only.is_empty() { results.ratios_refused.len() } else { 0 };
    if results.failed.is_empty() && refused == 0 {
        return Ok(());
    }
    anyhow::bail!(
        "{} measurements failed and {refused} ratios are refused: see above, and in the results",
        results.failed.len()
    )
}

/// An interrupted run stops what it started.
fn end_on_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        eprintln!("ending: what was started is stopped, what was measured is written");
        session::stop();
    })?;
    Ok(())
}

/// What the gateway has in memory while it is measured. All registrations of the country are
/// measured by `decide`; here a part of them, because each round starts its gateways anew.
fn scale(quick: bool) -> Scale {
    if quick {
        return Scale {
            terminals: 20_000,
            offices: 20_000,
            registrations: 100_000,
            revocations: 100_000,
        };
    }
    Scale { terminals: 20_000, offices: 20_000, registrations: 1_000_000, revocations: 1_000_000 }
}
