//! Slow and silent clients beside good ones: what the good ones notice, which slow ones the server
//! gets rid of, and what memory they cost it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Usage;
use crate::cli::TargetArgs;
use crate::client::Server;
use crate::credentials::is_path;
use crate::scenario::regulars::{Phase, Regulars, Served};
use crate::scenario::slow::client::{Ended, Kind, SlowClient};
use crate::scenario::stream::with_bytes;
use crate::scenario::{Client, Counts, Memory, MemoryWatch, Statuses, World};
use crate::scenario::{check_files, count, runtime, shown, shown_latency};

mod client;
mod peer;

/// Arguments of `slow-clients`.
#[derive(Debug, Args)]
pub(crate) struct SlowArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Slow clients of each kind
    #[arg(
        long,
        value_name = "N",
        default_value = "100",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    slow: u32,
    /// Good clients, each asking in a closed loop
    #[arg(
        long,
        value_name = "N",
        default_value = "32",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    good: u32,
    /// Seconds with slow clients; before it, the good ones are alone for as long, at most ten
    #[arg(
        long,
        value_name = "S",
        default_value = "20",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    duration_s: u64,
    /// Path of a large answer for those that read slowly; the terminal's own with
    /// `?bytes=67108864`, if not given
    #[arg(long, value_name = "PATH")]
    slow_path: Option<String>,
    /// Path that the first terminal POSTs a slow body to; its own, if not given
    #[arg(long, value_name = "PATH")]
    post_path: Option<String>,
    /// Content type of the slow body
    #[arg(long, default_value = "application/json")]
    content_type: String,
    /// Process whose memory is read
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    good: u32,
    /// Of each kind.
    slow: u32,
    kinds: Vec<KindReport>,
    alone: Served,
    beside: Served,
    memory_bytes: Option<Memory>,
}

/// What became of one kind of slow clients.
#[derive(Debug, Serialize)]
struct KindReport {
    kind: Kind,
    started: u64,
    closed_by_server: u64,
    median_seconds_to_close: Option<f64>,
    /// What the server answered them.
    statuses: Statuses,
    /// Why some did not even begin.
    failures: Counts,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} good clients, {} slow ones of each kind", self.good, self.slow)?;
        for (what, served) in [("alone", &self.alone), ("beside", &self.beside)] {
            let latency = shown_latency(served.latency.as_ref());
            let failures = shown(&served.failures);
            writeln!(f, "  {what:<7} {:.0}/s, {latency}; failures {failures}", served.per_second)?;
        }
        for kind in &self.kinds {
            let after = match kind.median_seconds_to_close {
                Some(seconds) => format!(" after {seconds:.1} s (median)"),
                None => String::new(),
            };
            writeln!(
                f,
                "  {:<10} {} of {} closed by the server{after}; statuses {}; failures {}",
                kind.kind.as_str(),
                kind.closed_by_server,
                kind.started,
                shown(&kind.statuses),
                shown(&kind.failures)
            )?;
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if let Some(memory) = self.memory_bytes {
            let (before, peak) = (mib(memory.before), mib(memory.peak));
            writeln!(f, "  memory {before:.1} MiB before, {peak:.1} MiB at most")?;
        }
        Ok(())
    }
}

/// Lets the good ones be alone, then beside the slow ones.
///
/// # Errors
/// What can not be read, what is too much, or good clients that are not served at the start.
pub(crate) fn run(args: &SlowArgs) -> anyhow::Result<()> {
    args.target.check().map_err(Usage)?;
    if args.target.target.unix_path().is_some() {
        return Err(Usage("slow clients need a server with TLS, no unix socket".to_owned()).into());
    }
    for path in [&args.slow_path, &args.post_path].into_iter().flatten() {
        if !is_path(path) {
            let text = format!("`{path}` is not a path: it starts with / and is encoded");
            return Err(Usage(text).into());
        }
    }
    let all = args.slow as usize * Kind::ALL.len() + args.good as usize;
    check_files(all, "--slow or --good")?;
    let report = runtime()?.block_on(slow(args))?;
    crate::print(&report, args.json)
}

pub(super) async fn slow(args: &SlowArgs) -> anyhow::Result<Report> {
    let world = World::open(&args.target).await?;
    let good = world.clients(args.good as usize)?;
    let clients = slow_clients(args, &world)?;
    let beside_for = Duration::from_secs(args.duration_s);
    let alone_for = beside_for.min(ALONE_MAX);
    let regulars = Regulars::start(Arc::clone(&world.server), good, Duration::ZERO).await?;
    tokio::time::sleep(SETTLES_WITHIN).await;
    eprintln!("slow-clients: the good ones are alone for {} s", alone_for.as_secs());
    regulars.enter(Phase::Alone);
    tokio::time::sleep(alone_for).await;
    regulars.enter(Phase::Settling);
    let memory = MemoryWatch::start(args.pid)?;
    regulars.enter(Phase::Beside);
    let began = Instant::now();
    let ended = misbehave(&world.server, clients, beside_for).await?;
    let beside_took = began.elapsed();
    regulars.enter(Phase::Settling);
    let memory_bytes = match memory {
        Some(watch) => Some(watch.finish().await?),
        None => None,
    };
    let both = regulars.finish().await?;
    Ok(Report {
        good: args.good,
        slow: args.slow,
        kinds: Kind::ALL.into_iter().map(|kind| kind_report(kind, &ended)).collect(),
        alone: both.alone.served(alone_for),
        beside: both.beside.served(beside_took),
        memory_bytes,
    })
}

fn slow_clients(args: &SlowArgs, world: &World) -> anyhow::Result<Vec<SlowClient>> {
    let first = world.terminals.first().context("there is no terminal")?;
    let authority = args.target.target.authority();
    let mut clients = Vec::new();
    let terminals = world.terminals.iter().cycle();
    for (terminal, number) in terminals.zip(0..args.slow) {
        for (kind, at) in Kind::ALL.into_iter().zip(0..) {
            let terminal = if kind == Kind::DripBody { first } else { terminal };
            let path = match kind {
                Kind::Silent | Kind::DripHello | Kind::DripHead => terminal.path.clone(),
                Kind::DripBody => args.post_path.clone().unwrap_or_else(|| terminal.path.clone()),
                Kind::SlowRead => args
                    .slow_path
                    .clone()
                    .unwrap_or_else(|| with_bytes(&terminal.path, LARGE_BYTES)),
            };
            let at = number.wrapping_mul(Kind::ALL.len() as u32).wrapping_add(at);
            let client = Client::of(&world.server, terminal, crate::credentials::Http::One, at)?;
            let authorization = terminal.authorization.clone();
            let content_type = args.content_type.clone();
            let authority = authority.clone();
            clients.push(SlowClient { kind, client, authority, path, authorization, content_type });
        }
    }
    Ok(clients)
}

/// Starts the slow ones over a moment, so that their handshakes are no storm, and waits.
async fn misbehave(
    server: &Arc<Server>,
    clients: Vec<SlowClient>,
    lasts: Duration,
) -> anyhow::Result<Vec<(Kind, Ended)>> {
    let began = Instant::now();
    let until = began + lasts;
    let starts_within = (lasts / 4).min(STARTS_WITHIN_MAX);
    let all = clients.len() as u32;
    let mut tasks = JoinSet::new();
    for (slow, number) in clients.into_iter().zip(0u32..) {
        let server = Arc::clone(server);
        let due = began + starts_within * number / all.max(1);
        tasks.spawn(async move {
            tokio::time::sleep_until(due).await;
            (slow.kind, slow.run(&server, until).await)
        });
    }
    let progress = tokio::spawn(progress(began));
    let mut ended = Vec::new();
    while let Some(one) = tasks.join_next().await {
        ended.push(one.context("a slow client failed")?);
    }
    // The server may have got rid of all of them: the good ones are still beside what it does then.
    tokio::time::sleep_until(until).await;
    progress.abort();
    Ok(ended)
}

async fn progress(began: Instant) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        eprintln!("slow-clients: {:.0} s beside slow ones", began.elapsed().as_secs_f64());
    }
}

fn kind_report(kind: Kind, ended: &[(Kind, Ended)]) -> KindReport {
    let mut report = KindReport {
        kind,
        started: 0,
        closed_by_server: 0,
        median_seconds_to_close: None,
        statuses: Statuses::new(),
        failures: Counts::new(),
    };
    let mut closed = Vec::new();
    for (_, ended) in ended.iter().filter(|(of, _)| *of == kind) {
        match ended {
            Ok(end) => {
                report.started += 1;
                closed.extend(end.closed_after);
                if let Some(status) = end.status {
                    *report.statuses.entry(status).or_default() += 1;
                }
            }
            Err(failure) => count(&mut report.failures, failure),
        }
    }
    closed.sort();
    report.closed_by_server = closed.len() as u64;
    report.median_seconds_to_close = closed.get(closed.len() / 2).map(Duration::as_secs_f64);
    report
}

const LARGE_BYTES: u64 = 64 << 20;
const ALONE_MAX: Duration = Duration::from_secs(10);
const SETTLES_WITHIN: Duration = Duration::from_millis(500);
const STARTS_WITHIN_MAX: Duration = Duration::from_secs(2);
