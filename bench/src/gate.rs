//! Instruction counts of the paths that matter, against the committed baseline: a figure that does
//! not depend on how busy the machine is, and that a change of a few percent cannot hide from.
//!
//! ```text
//!  case × N ──► this program again, under callgrind ──┐
//!  case × 2N ─► the same                              ├─► (second − first) / N ─► baseline ± 3 %
//!               (`request`: the gateway instead)      ┘        one operation
//! ```
//!
//! Twice as often minus once leaves what one operation costs: everything that happens once (start,
//! first use of a table, end) is in both counts. What the code does depends on the CPU that it
//! finds, on its compilers and on the C library, so a baseline holds for one [`kind::Kind`] of
//! machine, and counts of any other are printed and not compared.

mod kind;
mod callgrind;
mod baseline;
mod cases;
mod world;
mod request;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use baseline::{Baselines, Row};
use kind::Kind;

use crate::Usage;

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct GateArgs {
    /// File with the committed counts
    #[arg(long, value_name = "FILE", default_value = "bench/gate.json")]
    baselines: PathBuf,
    /// Record what is counted now as the baseline of this kind of machine
    #[arg(long)]
    accept: bool,
    /// Only this case; may be given several times
    #[arg(long = "case", value_enum, value_name = "CASE")]
    cases: Vec<Case>,
    /// Count each case so many times, take the median and tell how far the counts lie apart
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=99)
    )]
    rounds: u16,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    /// Do the one case named so many times, here, without counting
    #[arg(long, value_name = "N", hide = true)]
    iterations: Option<u64>,
    /// Print what this CPU says it can do, as a program sees it
    #[arg(long, hide = true)]
    features: bool,
}

/// A path that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// A decision that lets a request through, facts of 20,000 registrations
    DecideAllow,
    /// A decision that refuses for want of a registration and a consent
    DecideDeny,
    /// The server's part of a full handshake, client certificate and all
    Handshake,
    /// The same, of a terminal whose chain was verified before
    Returning,
    /// The server's part of a resumed handshake
    Resumed,
    /// A request on a kept HTTP/1.1 connection, all that the gateway does for it
    Request,
}

impl Case {
    const ALL: &[Self] = &[
        Self::DecideAllow,
        Self::DecideDeny,
        Self::Handshake,
        Self::Returning,
        Self::Resumed,
        Self::Request,
    ];

    /// The name in the file and on the command line.
    const fn as_str(self) -> &'static str {
        match self {
            Self::DecideAllow => "decide-allow",
            Self::DecideDeny => "decide-deny",
            Self::Handshake => "handshake",
            Self::Returning => "returning",
            Self::Resumed => "resumed",
            Self::Request => "request",
        }
    }

    /// How often it is done in the shorter of two runs: so often that chance (hash seeds, nonces,
    /// rejected samples) moves the count of one by less than half a percent.
    const fn iterations(self) -> u64 {
        match self {
            Self::DecideAllow | Self::DecideDeny => 10_000,
            Self::Handshake | Self::Returning | Self::Resumed => 300,
            Self::Request => 2_000,
        }
    }
}

/// Runs it.
///
/// # Errors
/// What kept it from counting, or that a count left its baseline.
pub(crate) fn run(args: &GateArgs) -> Result<()> {
    if args.features {
        return crate::print(&kind::Features::here(), true);
    }
    if let Some(iterations) = args.iterations {
        let [case] = args.cases.as_slice() else {
            return Err(Usage("--iterations goes with one --case".to_owned()).into());
        };
        return cases::repeat(*case, iterations);
    }
    let report = measure(args)?;
    crate::print(&report, args.json)?;
    report.verdict()
}

fn measure(args: &GateArgs) -> Result<Report> {
    let mut baselines = Baselines::read(&args.baselines)?;
    let kind = Kind::of_this_machine()?;
    if args.accept && kind.profile != "release" {
        let words = "--accept: baselines are counts of a release build: cargo build --release";
        return Err(Usage(words.to_owned()).into());
    }
    let chosen = if args.cases.is_empty() { Case::ALL } else { args.cases.as_slice() };
    let mut counts = Vec::with_capacity(chosen.len());
    for case in chosen {
        let count =
            count(*case, args.rounds).with_context(|| format!("case `{}`", case.as_str()))?;
        counts.push((*case, count));
    }
    let known = baselines.of(&kind).cloned();
    let rows: Vec<Row> = counts
        .iter()
        .map(|(case, count)| {
            let before = known.as_ref().and_then(|known| known.get(case.as_str()));
            Row::new(case.as_str(), *count, before.copied())
        })
        .collect();
    if args.accept {
        baselines.record(&kind, &rows);
        baselines.write(&args.baselines)?;
    }
    Ok(Report {
        cases: rows,
        compared: known.is_some(),
        accepted: args.accept.then(|| args.baselines.display().to_string()),
        cpu: kind,
    })
}

/// Instructions of one operation: the median of `rounds`, and how far apart they lie in percent.
fn count(case: Case, rounds: u16) -> Result<baseline::Count> {
    let mut found = Vec::with_capacity(usize::from(rounds));
    let requests = (case == Case::Request).then(request::Requests::new).transpose()?;
    let instructions = |iterations| match &requests {
        Some(requests) => requests.count(iterations),
        None => callgrind::count_case(case.as_str(), iterations),
    };
    for round in 1..=rounds {
        let iterations = case.iterations();
        let once = instructions(iterations)?;
        let twice = instructions(2 * iterations)?;
        let one = twice.saturating_sub(once) as f64 / iterations as f64;
        eprintln!("{} ({round} of {rounds}): {one:.1} instructions", case.as_str());
        found.push(one);
    }
    baseline::Count::of(found).context("no instruction was counted: is the function still called?")
}

/// What was counted.
#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Row>,
    /// Whether there was a baseline of this kind of machine.
    compared: bool,
    /// The file that the counts were recorded in.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<String>,
    cpu: Kind,
}

impl Report {
    /// # Errors
    /// If a count lies outside of what is allowed and was not accepted.
    fn verdict(&self) -> Result<()> {
        let outside = self.cases.iter().filter(|row| row.ok == Some(false)).count();
        if outside == 0 || self.accepted.is_some() {
            return Ok(());
        }
        anyhow::bail!(
            "{outside} of {} counts are more than {} % from the baseline; if that is meant, record \
             it in the same commit: make bench-gate ACCEPT=1",
            self.cases.len(),
            baseline::TOLERANCE_PERCENT
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "instructions of one operation, by callgrind")?;
        writeln!(f, "{:<14} {:>12} {:>12} {:>9}  spread", "case", "baseline", "now", "change")?;
        self.cases.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        writeln!(f, "machine: {}", self.cpu)?;
        if let Some(file) = &self.accepted {
            return writeln!(f, "recorded as the baseline in `{file}`");
        }
        let new = self.cases.iter().any(|row| row.ok.is_none());
        match (self.compared, new) {
            (false, _) => writeln!(
                f,
                "not compared: there is no baseline for this kind of machine and these compilers; \
                 to record one:\n  make bench-gate ACCEPT=1"
            ),
            (true, true) => writeln!(
                f,
                "a case without a baseline was not compared; to record it:\n  \
                 make bench-gate ACCEPT=1"
            ),
            (true, false) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(counted: f64, before: Option<f64>) -> Report {
        let count = baseline::Count::of(vec![counted]).unwrap();
        Report {
            cases: vec![Row::new("handshake", count, before)],
            compared: before.is_some(),
            accepted: None,
            cpu: baseline::tests::kind("valgrind-3"),
        }
    }

    #[test]
    fn a_count_outside_is_red_and_says_what_to_do() {
        report(1020.0, Some(1000.0)).verdict().unwrap();
        for counted in [1040.0, 960.0] {
            let red = report(counted, Some(1000.0));
            let words = red.verdict().unwrap_err().to_string();
            assert!(words.contains("1 of 1") && words.contains("ACCEPT=1"), "{words}");
            let accepted = Report { accepted: Some("gate.json".to_owned()), ..red };
            accepted.verdict().unwrap();
            assert!(accepted.to_string().contains("recorded as the baseline in `gate.json`"));
        }
    }

    #[test]
    fn an_unknown_kind_of_machine_is_green_and_called_not_compared() {
        let unknown = report(1000.0, None);
        unknown.verdict().unwrap();
        let text = unknown.to_string();
        assert!(text.contains("\nnot compared: there is no baseline"), "{text}");
        assert!(text.contains("ACCEPT=1"), "{text}");
    }

    #[test]
    fn a_case_that_the_baselines_lack_is_told() {
        let new = Report { compared: true, ..report(1000.0, None) };
        new.verdict().unwrap();
        assert!(new.to_string().contains("a case without a baseline was not compared"));
    }
}
