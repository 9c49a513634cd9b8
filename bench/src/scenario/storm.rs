//! A reconnect storm: after an outage many distinct terminals come back within a moment, each with
//! a full handshake and a request, while others are being served.
//!
//! The time of a terminal counts from the moment at which it was to start, also if the generator
//! could start it only later: nothing that waits is left out.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::TargetArgs;
use crate::client::{Answer, Connection, Server};
use crate::cpu;
use crate::report::{Cpu, Histogram, Latency};
use crate::scenario::regulars::{Both, Phase, Regulars};
use crate::scenario::{
    Client, Counts, FILES_SPARE, Statuses, World, check_files, count, files_max, runtime, shown,
    shown_latency,
};

/// Arguments of `storm`.
#[derive(Debug, Args)]
pub(crate) struct StormArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Connections that are served before and during the storm
    #[arg(
        long,
        value_name = "N",
        default_value = "64",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    established: u32,
    /// All terminals start within this time, evenly
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    arrive_within_ms: u64,
    /// Connections kept open at most, the oldest closed first; half of the limit of open files, if
    /// not given, because a proxy under the same limit needs two for each
    #[arg(long, value_name = "N")]
    hold_max: Option<usize>,
    /// How often a refused terminal tries; with 1 a refusal is an error
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=100)
    )]
    tries: u32,
    /// Process whose CPU time is read
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    terminals: u64,
    answered: u64,
    failures: Counts,
    retries: u64,
    /// From the start of the first to the end of the last.
    seconds: f64,
    per_second: f64,
    /// From the moment at which a terminal was to start to its whole answer, tries included.
    time_to_answer: Option<Latency>,
    established: Established,
    statuses: Statuses,
    cpu: Option<Cpu>,
    arrive_within_ms: u64,
    hold_max: u64,
}

/// Those who were served meanwhile.
#[derive(Debug, Serialize)]
struct Established {
    connections: u64,
    before: Option<Latency>,
    during: Option<Latency>,
    /// How late the generator itself was to ask, during the storm; about a millisecond is its
    /// clock's.
    generator_late: Option<Latency>,
    failures: Counts,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "storm: {} of {} terminals answered in {:.2} s ({:.0}/s), {} retries",
            self.answered, self.terminals, self.seconds, self.per_second, self.retries
        )?;
        writeln!(f, "  statuses {}; failures {}", shown(&self.statuses), shown(&self.failures))?;
        writeln!(f, "  time to answer: {}", shown_latency(self.time_to_answer.as_ref()))?;
        let established = &self.established;
        writeln!(f, "  {} established connections", established.connections)?;
        writeln!(f, "    before: {}", shown_latency(established.before.as_ref()))?;
        writeln!(f, "    during: {}", shown_latency(established.during.as_ref()))?;
        let late = shown_latency(established.generator_late.as_ref());
        writeln!(f, "    the generator itself was late by: {late}")?;
        writeln!(f, "    failures {}", shown(&established.failures))?;
        match &self.cpu {
            Some(cpu) => writeln!(
                f,
                "  server: {:.2} s CPU, {:.1} µs for each terminal (the established included)",
                cpu.seconds, cpu.us_per_operation
            ),
            None => Ok(()),
        }
    }
}

/// Runs the storm.
///
/// # Errors
/// What can not be read, what is too much, or if no terminal was answered.
pub(crate) fn run(args: &StormArgs) -> anyhow::Result<()> {
    args.target.check().map_err(crate::Usage)?;
    let report = runtime()?.block_on(storm(args))?;
    crate::print(&report, args.json)?;
    anyhow::ensure!(report.answered > 0, "no terminal was answered");
    Ok(())
}

pub(super) async fn storm(args: &StormArgs) -> anyhow::Result<Report> {
    let established = args.established as usize;
    let hold_max = args.hold_max.unwrap_or_else(|| files_max() / 2);
    check_files(established.saturating_add(hold_max.max(1)), "--hold-max or --established")?;
    let world = World::open(&args.target).await?;
    let clients = world.clients(world.terminals.len())?;
    let open_max = files_max() - established - FILES_SPARE;
    let storm = Arc::new(Storm::new(Arc::clone(&world.server), args.tries, hold_max, open_max));
    let regulars =
        Regulars::start(Arc::clone(&world.server), world.clients(established)?, PAUSE).await?;
    tokio::time::sleep(SETTLES_WITHIN).await;
    regulars.enter(Phase::Alone);
    tokio::time::sleep(BEFORE).await;
    let cpu_before = args.pid.map(cpu::used).transpose()?;
    regulars.enter(Phase::Beside);
    let (all, took) = arrive(&storm, clients, Duration::from_millis(args.arrive_within_ms)).await?;
    regulars.enter(Phase::Settling);
    let cpu_after = args.pid.map(cpu::used).transpose()?;
    let served = regulars.finish().await?;
    let cpu = args
        .pid
        .zip(cpu_before)
        .zip(cpu_after)
        .map(|((pid, before), after)| Cpu::of(pid, after.saturating_sub(before), all.answered));
    Ok(report(args, &storm, all, took, &served, cpu))
}

fn report(
    args: &StormArgs,
    storm: &Storm,
    all: All,
    took: Duration,
    served: &Both,
    cpu: Option<Cpu>,
) -> Report {
    let mut failures = served.alone.failures.clone();
    for (what, more) in &served.beside.failures {
        *failures.entry(what.clone()).or_default() += more;
    }
    let seconds = took.as_secs_f64();
    Report {
        terminals: all.terminals,
        answered: all.answered,
        failures: all.failures,
        retries: all.retries,
        seconds,
        per_second: all.answered as f64 / seconds.max(f64::MIN_POSITIVE),
        time_to_answer: all.histogram.latency(),
        established: Established {
            connections: u64::from(args.established),
            before: served.alone.latency(),
            during: served.beside.latency(),
            generator_late: served.beside.late(),
            failures,
        },
        statuses: all.statuses,
        cpu,
        arrive_within_ms: args.arrive_within_ms,
        hold_max: storm.hold_max as u64,
    }
}

/// What all terminals of the storm have in common.
pub(super) struct Storm {
    server: Arc<Server>,
    tries: u32,
    hold_max: usize,
    /// One permit for each connection, open or being opened.
    open: Arc<Semaphore>,
    /// Connections that have had their answer.
    held: Mutex<VecDeque<Held>>,
    done: AtomicU64,
}

/// A connection that stays open.
struct Held {
    _connection: Connection,
    _permit: OwnedSemaphorePermit,
}

/// What all terminals had together.
pub(super) struct All {
    terminals: u64,
    pub(super) answered: u64,
    retries: u64,
    histogram: Histogram,
    statuses: Statuses,
    failures: Counts,
}

/// What one terminal had.
struct One {
    outcome: Result<Answer, String>,
    took: Duration,
    retries: u64,
}

impl All {
    fn add(&mut self, one: One) {
        self.retries += one.retries;
        match one.outcome {
            Ok(answer) => {
                self.answered += 1;
                *self.statuses.entry(answer.status).or_default() += 1;
                self.histogram.record(one.took);
            }
            Err(failure) => count(&mut self.failures, &failure),
        }
    }
}

/// Lets the terminals come, each at its moment, and waits for the last of them.
pub(super) async fn arrive(
    storm: &Arc<Storm>,
    clients: Vec<Client>,
    within: Duration,
) -> anyhow::Result<(All, Duration)> {
    let terminals = clients.len();
    let mut all = All {
        terminals: terminals as u64,
        answered: 0,
        retries: 0,
        histogram: Histogram::new()?,
        statuses: Statuses::new(),
        failures: Counts::new(),
    };
    // From here on this thread only makes the storm: who is served meanwhile goes before.
    let _ = rustix::process::nice(NICE);
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, number) in clients.into_iter().zip(0u32..) {
        let due = began + within * number / (terminals as u32).max(1);
        let storm = Arc::clone(storm);
        tasks.spawn(async move { storm.terminal(&client, due).await });
    }
    let progress = tokio::spawn(progress(Arc::clone(storm), terminals));
    while let Some(one) = tasks.join_next().await {
        all.add(one.context("a terminal of the storm failed")?);
    }
    let took = began.elapsed();
    progress.abort();
    let held = std::mem::take(&mut *storm.held.lock().unwrap_or_else(PoisonError::into_inner));
    drop(held);
    Ok((all, took))
}

async fn progress(storm: Arc<Storm>, terminals: usize) {
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let done = storm.done.load(Ordering::Relaxed);
        eprintln!("storm: {:.0} s, {done} of {terminals} done", began.elapsed().as_secs_f64());
    }
}

impl Storm {
    pub(super) fn new(server: Arc<Server>, tries: u32, hold_max: usize, open_max: usize) -> Self {
        let open = Arc::new(Semaphore::new(open_max.min(Semaphore::MAX_PERMITS)));
        let (held, done) = (Mutex::default(), AtomicU64::new(0));
        Self { server, tries, hold_max, open, held, done }
    }

    /// One terminal, from the moment at which it is to start.
    async fn terminal(&self, client: &Client, due: Instant) -> One {
        tokio::time::sleep_until(due).await;
        let mut retries = 0;
        let outcome = loop {
            let outcome = self.attempt(client).await;
            let refused = match &outcome {
                Ok(answer) => OVERLOADED.contains(&answer.status),
                Err(_) => true,
            };
            if !refused || retries + 1 >= u64::from(self.tries) {
                break outcome;
            }
            retries += 1;
            tokio::time::sleep(jittered(client.at)).await;
        };
        self.done.fetch_add(1, Ordering::Relaxed);
        One { outcome, took: due.elapsed(), retries }
    }

    async fn attempt(&self, client: &Client) -> Result<Answer, String> {
        let permit = self.permit().await?;
        let mut connection = client.connect(&self.server).await?;
        let answer = client.ask(&mut connection).await?;
        self.hold(Held { _connection: connection, _permit: permit });
        Ok(answer)
    }

    /// Leave to open a connection; the oldest that is held makes room.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, String> {
        if let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() {
            return Ok(permit);
        }
        drop(self.oldest());
        let permit = Arc::clone(&self.open).acquire_owned().await;
        permit.map_err(|_| "the generator gave no leave to connect".to_owned())
    }

    fn oldest(&self) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn hold(&self, one: Held) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push_back(one);
        // Whoever waits for leave while nothing was held can get it only from here.
        let full = held.len() > self.hold_max || self.open.available_permits() == 0;
        let too_old = if full { held.pop_front() } else { None };
        drop(held);
        drop(too_old);
    }
}

/// A short pause that is not the same for all, so that they do not come back at once again.
fn jittered(at: u32) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mixed = (u64::from(now.subsec_nanos()) ^ u64::from(at)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    RETRY_AFTER + Duration::from_millis((mixed >> 33) % RETRY_JITTER_MS)
}

/// Statuses that say: later.
const OVERLOADED: [u16; 2] = [429, 503];
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_JITTER_MS: u64 = 400;

/// What an established client waits between two requests.
const PAUSE: Duration = Duration::from_millis(10);
const SETTLES_WITHIN: Duration = Duration::from_millis(300);
const BEFORE: Duration = Duration::from_secs(3);
const NICE: i32 = 5;
