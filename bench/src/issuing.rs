//! `sekisho-bench issuing`: how fast certificates are issued by a running demo box.
//!
//! ```text
//!  settings of the box ─► offices and codes (admin socket) ─► keys and requests ─► measured:
//!     enrolments over TLS, `--callers` at a time ─► answer: is the certificate for this key?
//!     CPU time of RA and signer before and after
//! ```
//!
//! An enrolment is what a terminal does (EST simpleenroll, RFC 7030 §4.2): everything that the RA
//! and the signer do for it is in the figure, linting, store and audit records on disk included.
//! Offices, codes, keys and requests are made before, and told apart.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cpu;
use crate::report::{Histogram, Latency};

mod answer;
pub(crate) mod demo_box;
mod terminal;

use demo_box::DemoBox;
use terminal::{Caller, Terminal};

/// Arguments of `issuing`.
#[derive(Debug, Args)]
pub(crate) struct IssuingArgs {
    /// Data folder of a demo box that runs (`sekisho up --demo --detach --data DIR`); the offices
    /// and certificates of the measurement stay in it
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The `sekisho` program: where the box may sign fewer certificates in a minute than are asked
    /// for, its limit is raised in config/signer.toml and the box is started again
    #[arg(long, value_name = "PATH")]
    sekisho: Option<PathBuf>,
    /// Certificates to have issued
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4_000,
        value_parser = clap::value_parser!(u32).range(1..=90_000)
    )]
    certificates: u32,
    /// Enrolments at the same time; the signer serves 16 connections and turns the next away, so
    /// that more than about 12 show how many terminals must come again
    #[arg(
        long,
        value_name = "N",
        default_value_t = 12,
        value_parser = clap::value_parser!(u32).range(1..=240)
    )]
    callers: u32,
    /// Open a connection for each certificate, as a terminal does, instead of keeping connections
    #[arg(long)]
    reconnect: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct IssuingReport {
    /// Issued, each for the key that asked for it.
    certificates: u64,
    callers: u32,
    /// From the first enrolment's start to the last one's end.
    seconds: f64,
    per_second: f64,
    /// At this rate.
    seconds_for_250000: f64,
    /// Of enrolments that brought a certificate, with the handshake where one was made.
    latency: Option<Latency>,
    cpu_us: CpuPerCertificate,
    /// Connections opened.
    handshakes: u64,
    failures: BTreeMap<String, u64>,
    /// Making offices, codes, keys and requests; not in `seconds`.
    prepare_seconds: f64,
    /// What the signer may sign in a minute.
    issue_rate_per_minute_max: u32,
}

/// Microseconds of CPU time for each certificate issued.
#[derive(Debug, Serialize)]
struct CpuPerCertificate {
    ra: f64,
    signer: f64,
}

/// Runs it.
///
/// # Errors
/// When the box does not run, is none for demonstration, or issues nothing.
pub(crate) fn run(args: &IssuingArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    crate::print(&report, args.json)
}

async fn measure(args: &IssuingArgs) -> anyhow::Result<IssuingReport> {
    let demo_box = DemoBox::open(&args.data, args.sekisho.as_deref(), args.certificates)?;
    let started = Instant::now();
    let terminals: Arc<[Terminal]> = terminal::prepare(&demo_box, args.certificates).await?.into();
    let prepare_seconds = started.elapsed().as_secs_f64();

    let (ra_before, signer_before) = (cpu::used(demo_box.ra_pid)?, cpu::used(demo_box.signer_pid)?);
    let started = Instant::now();
    let found = enrol_all(&demo_box, &terminals, args).await?;
    let seconds = started.elapsed().as_secs_f64();
    let (ra, signer) = (cpu::used(demo_box.ra_pid)?, cpu::used(demo_box.signer_pid)?);

    let latency = found.histogram.latency();
    let certificates = latency.map_or(0, |latency| latency.count);
    anyhow::ensure!(certificates > 0, "no certificate was issued: {:?}", found.failures);
    let per_second = certificates as f64 / seconds;
    let share = |used: Duration| used.as_secs_f64() * MICROSECONDS_PER_SECOND / certificates as f64;
    Ok(IssuingReport {
        certificates,
        callers: args.callers,
        seconds,
        per_second,
        seconds_for_250000: TERMINALS_OF_THE_COUNTRY / per_second,
        latency,
        cpu_us: CpuPerCertificate {
            ra: share(ra.saturating_sub(ra_before)),
            signer: share(signer.saturating_sub(signer_before)),
        },
        handshakes: found.handshakes,
        failures: found.failures,
        prepare_seconds,
        issue_rate_per_minute_max: demo_box.issue_rate_per_minute_max,
    })
}

/// What callers found.
struct Found {
    histogram: Histogram,
    failures: BTreeMap<String, u64>,
    handshakes: u64,
}

impl Found {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Histogram::new()?, failures: BTreeMap::new(), handshakes: 0 })
    }

    fn add(&mut self, other: Self) {
        self.histogram.add(&other.histogram);
        self.handshakes += other.handshakes;
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
    }
}

/// Every terminal enrols once; callers take the next one as soon as they are free.
async fn enrol_all(
    demo_box: &DemoBox,
    terminals: &Arc<[Terminal]>,
    args: &IssuingArgs,
) -> anyhow::Result<Found> {
    let next = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for at in 0..args.callers {
        let caller = Caller::new(demo_box, at, args.reconnect);
        let (terminals, next, done) = (Arc::clone(terminals), Arc::clone(&next), Arc::clone(&done));
        callers.spawn(async move { enrol_some(caller, &terminals, &next, &done).await });
    }
    let mut found = Found::new()?;
    let mut each_second = tokio::time::interval(Duration::from_secs(1));
    each_second.tick().await;
    loop {
        tokio::select! {
            joined = callers.join_next() => match joined {
                Some(of_caller) => found.add(of_caller??),
                None => return Ok(found),
            },
            _ = each_second.tick() => {
                eprintln!("{} of {} enrolments", done.load(Ordering::Relaxed), terminals.len());
            }
        }
    }
}

async fn enrol_some(
    mut caller: Caller,
    terminals: &[Terminal],
    next: &AtomicUsize,
    done: &AtomicUsize,
) -> anyhow::Result<Found> {
    let mut found = Found::new()?;
    while let Some(terminal) = terminals.get(next.fetch_add(1, Ordering::Relaxed)) {
        let started = Instant::now();
        let answered = caller.enrol(terminal).await;
        let took = started.elapsed();
        let checked =
            answered.and_then(|body| answer::check(&body, &terminal.spki).map_err(str::to_owned));
        match checked {
            Ok(()) => found.histogram.record(took),
            Err(failure) => *found.failures.entry(failure).or_default() += 1,
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    found.handshakes = caller.handshakes;
    Ok(found)
}

impl fmt::Display for IssuingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificates, callers, seconds, .. } = self;
        writeln!(f, "{certificates} certificates in {seconds:.1} s, {callers} callers")?;
        writeln!(f, "certificates a second   {:10.1}", self.per_second)?;
        writeln!(f, "250,000 certificates    {:10.0} s at this rate", self.seconds_for_250000)?;
        if let Some(latency) = &self.latency {
            let Latency { p50_us, p90_us, p99_us, max_us, .. } = latency;
            writeln!(f, "latency, us    p50 {p50_us}  p90 {p90_us}  p99 {p99_us}  max {max_us}")?;
        }
        let CpuPerCertificate { ra, signer } = self.cpu_us;
        writeln!(f, "CPU a certificate       {ra:10.0} us RA, {signer:.0} us signer")?;
        writeln!(f, "handshakes              {:10}", self.handshakes)?;
        writeln!(f, "prepared in             {:10.1} s", self.prepare_seconds)?;
        writeln!(f, "the signer's limit      {:10} a minute", self.issue_rate_per_minute_max)?;
        for (failure, count) in &self.failures {
            writeln!(f, "failed {count} times: {failure}")?;
        }
        Ok(())
    }
}

/// Terminals that need a certificate when the whole country starts.
const TERMINALS_OF_THE_COUNTRY: f64 = 250_000.0;
const MICROSECONDS_PER_SECOND: f64 = 1e6;
