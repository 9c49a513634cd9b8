//! Streams of requests or connections: the loads behind `run`.
//!
//! ```text
//!  RunArgs ─► drive: one runtime a thread, warm-up, the common start, CPU time, progress
//!               ├─► worker: one connection (or one HTTP/2 stream) and its operations
//!               ├─► line: open loop; operations that are due and not taken yet
//!               │     └─ arrivals: when they are due ◄─ day: how an office day is shaped
//!               └─► outcome: what was counted, merged, as JSON and as text
//! ```
//!
//! A closed loop asks again as soon as the answer is there: right for CPU time per operation and
//! for the highest throughput, wrong for latency under a given load, because a slow server slows
//! its own load down. With a rate, operations have an intended time each, and latency is counted
//! from it: what waits because all connections are busy has its waiting counted.

mod arrivals;
mod day;
mod drive;
mod line;
mod outcome;
mod worker;

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::Usage;
use crate::cli::TargetArgs;
use crate::credentials::{Http, Terminal};
use crate::load::arrivals::Arrivals;
use crate::load::outcome::Report;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// What an operation is
    #[arg(long, value_enum, default_value = "keepalive")]
    pub(crate) mode: Mode,
    /// HTTP/1.1 or HTTP/2
    #[arg(long, value_name = "1|2", default_value_t = 1, value_parser = http_version())]
    pub(crate) http: u8,
    /// Requests at the same time on each HTTP/2 connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = counted(1_000))]
    pub(crate) streams: u32,
    /// Connections at the same time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = counted(60_000))]
    pub(crate) connections: u32,
    /// Operations to measure; without this and --duration-s 10000, or one for each terminal in
    /// the mode `handshake`
    #[arg(long, value_name = "N", conflicts_with = "duration_s",
          value_parser = clap::value_parser!(u64).range(1..=10_000_000_000))]
    pub(crate) requests: Option<u64>,
    /// Seconds to measure
    #[arg(long, value_name = "S", value_parser = counted(86_400))]
    pub(crate) duration_s: Option<u32>,
    /// Operations a second, whether the server keeps up or not (open loop); in the mode `day`
    /// those of the busiest hour
    #[arg(long, value_name = "R", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// How operations follow each other at that rate
    #[arg(long, value_enum, default_value = "constant")]
    pub(crate) arrival: Arrival,
    /// Threads, each with its own connections; all CPUs this process may use, if not given
    #[arg(long, value_name = "N", value_parser = counted(256))]
    pub(crate) threads: Option<u32>,
    /// Process of the server whose CPU time is told, all its threads together
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Length of one hour of the mode `day`, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_500, value_parser = counted(3_600_000))]
    pub(crate) hour_ms: u32,
    /// In the mode `day`: one of the days on which claims are sent, up to the cut-off at 17:15
    #[arg(long)]
    pub(crate) first_to_tenth: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// A request on a connection that is kept
    Keepalive,
    /// A connection of a terminal that did not come before: full handshake, request, close
    Handshake,
    /// The same of terminals that come again and again, with a full handshake each time
    Returning,
    /// A connection that resumes the session before: handshake, request, close
    Resumed,
    /// An office day by the hour: kept connections, logins in the morning, some resumed
    Day,
}

impl Mode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Keepalive => "keepalive",
            Self::Handshake => "handshake",
            Self::Returning => "returning",
            Self::Resumed => "resumed",
            Self::Day => "day",
        }
    }
}

/// How operations follow each other in an open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrival {
    /// With the same time between them
    Constant,
    /// Independently of each other, as from many offices
    Poisson,
}

/// When a run ends: at the first of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    operations: u64,
    lasts: Option<Duration>,
}

/// Runs it.
///
/// # Errors
/// What went wrong, or that nothing was answered.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let report = measure(args)?;
    crate::print(&report, args.json)?;
    anyhow::ensure!(report.answered > 0, "no request was answered");
    Ok(())
}

/// Makes the load and counts.
fn measure(args: &RunArgs) -> anyhow::Result<Report> {
    args.target.check().map_err(Usage)?;
    args.check().map_err(Usage)?;
    // A wrong pid is told before any load, not after.
    args.pid.map(crate::cpu::used).transpose()?;
    let terminals = crate::credentials::read(&args.target)?;
    let limits = args.limits(&terminals).map_err(Usage)?;
    drive::run(args, terminals, limits)
}

impl RunArgs {
    /// Refuses what the arguments together make wrong.
    fn check(&self) -> Result<(), String> {
        let day = self.mode == Mode::Day;
        if self.streams > 1 && (self.http == 1 || !(day || self.mode == Mode::Keepalive)) {
            return Err("--streams needs --http 2 and kept connections".to_owned());
        }
        if day && self.rate.is_none() {
            return Err("--mode day needs --rate, that of the busiest hour".to_owned());
        }
        if day && (self.requests.is_some() || self.duration_s.is_some()) {
            return Err(
                "--mode day lasts 24 times --hour-ms: leave --requests and --duration-s out"
                    .to_owned(),
            );
        }
        if self.first_to_tenth && !day {
            return Err("--first-to-tenth belongs to --mode day".to_owned());
        }
        let plain = self.target.target.unix_path().is_some();
        if plain && (self.mode != Mode::Keepalive || self.http == 2) {
            return Err("a unix socket is spoken to in plain HTTP/1.1: --mode keepalive".to_owned());
        }
        Ok(())
    }

    /// How long the run is.
    fn limits(&self, terminals: &[Terminal]) -> Result<Limits, String> {
        let lasts = self.duration_s.map(|seconds| Duration::from_secs(seconds.into()));
        let unlimited = lasts.is_some() || self.mode == Mode::Day;
        let wanted = self.requests.or(unlimited.then_some(u64::MAX));
        if self.mode != Mode::Handshake {
            return Ok(Limits { operations: wanted.unwrap_or(REQUESTS), lasts });
        }
        let have = terminals.len() as u64;
        match self.requests {
            Some(wanted) if wanted > have => Err(format!(
                "{wanted} new handshakes need as many terminals, and there are {have}: take \
                 `--requests {have}`, or `--mode returning` to let terminals come again"
            )),
            Some(_) | None => Ok(Limits { operations: wanted.unwrap_or(have).min(have), lasts }),
        }
    }

    /// How long operations become due, if they come at a rate.
    fn intended(&self, limits: Limits) -> Option<Duration> {
        let rate = self.rate?;
        if self.mode == Mode::Day {
            return Some(Duration::from_millis(self.hour_ms.into()) * 24);
        }
        let counted = Duration::try_from_secs_f64(limits.operations as f64 / rate);
        Some(counted.unwrap_or(Duration::MAX).min(limits.lasts.unwrap_or(Duration::MAX)))
    }

    fn http(&self) -> Http {
        if self.http == 2 { Http::Two } else { Http::One }
    }

    /// The operations of thread `at` of `threads`, if they come at a rate.
    fn arrivals(&self, limits: Limits, at: u32, threads: u32) -> Option<Arrivals> {
        let rate = self.rate?;
        let segments = match self.mode {
            Mode::Day => {
                let hour = Duration::from_millis(self.hour_ms.into());
                day::segments(rate, hour, self.first_to_tenth)
            }
            Mode::Keepalive | Mode::Handshake | Mode::Returning | Mode::Resumed => {
                vec![arrivals::Segment::steady(rate, limits.lasts)]
            }
        };
        let (operations, all) = (limits.operations, u64::from(threads));
        let share = operations / all + u64::from(u64::from(at) < operations % all);
        Some(Arrivals::new(segments, self.arrival, share, at, threads))
    }
}

fn counted(most: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=most)
}

fn http_version() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(1..=2)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    let possible = (RATE_MIN..=RATE_MAX).contains(&rate);
    possible.then_some(rate).ok_or(format!("`{text}` is not from {RATE_MIN} to {RATE_MAX}"))
}

/// Operations of a run that does not say how many.
const REQUESTS: u64 = 10_000;
/// One operation in a hundred seconds.
const RATE_MIN: f64 = 0.01;
/// More than any generator on one machine makes.
const RATE_MAX: f64 = 10_000_000.0;

#[cfg(test)]
mod tests;
