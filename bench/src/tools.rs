//! The generator beside public tools, against nginx alone: whoever makes the same work must find
//! the same cost of it. Of the public tools nginx's CPU time is counted around their whole run;
//! ours is what `run` itself tells.
//!
//! ```text
//!  tools ─► server: one nginx on its own core, which passes requests on to itself
//!    └─ each work, round by round, in turn: h2load | ab ◄─► sekisho-bench run
//!         └─ parse: what the public tools print
//! ```

mod parse;
mod server;

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::cpu;
use parse::Told;
use server::Server;

/// Arguments of `tools`.
#[derive(Debug, Args)]
pub(crate) struct ToolsArgs {
    /// Results file
    #[arg(long, value_name = "FILE", default_value = "bench/results/tools.json")]
    out: PathBuf,
    /// Rounds; told are medians
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Requests of each measurement with kept connections
    #[arg(long, value_name = "N", default_value_t = 150_000,
          value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    requests: u64,
    /// Handshakes of each measurement with new connections
    #[arg(long, value_name = "N", default_value_t = 4_000,
          value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    handshakes: u64,
    /// Core of nginx
    #[arg(long, value_name = "N", default_value_t = 0)]
    server_cpu: usize,
    /// Core of the tools
    #[arg(long, value_name = "N", default_value_t = 1)]
    load_cpu: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Work that both sides can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    H2loadOne,
    H2loadTwo,
    AbKept,
    AbHandshake,
}

impl Work {
    const ALL: [Self; 4] = [Self::H2loadOne, Self::H2loadTwo, Self::AbKept, Self::AbHandshake];

    fn tool(self) -> &'static str {
        match self {
            Self::H2loadOne | Self::H2loadTwo => "h2load",
            Self::AbKept | Self::AbHandshake => "ab",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::H2loadOne => "kept connections, HTTP/1.1, no client certificate",
            Self::H2loadTwo => "kept connections, HTTP/2, one stream, no client certificate",
            Self::AbKept => "kept connections, client certificate",
            Self::AbHandshake => "full handshake with client certificate, request, close",
        }
    }

    /// Where the two sides do not do quite the same.
    fn note(self) -> &'static str {
        match self {
            Self::H2loadOne | Self::H2loadTwo => "h2load sends a user-agent header as well",
            Self::AbKept => "ab speaks HTTP/1.0 with keep-alive, and sends two more headers",
            Self::AbHandshake => "ab speaks HTTP/1.0: the server closes; here the client does",
        }
    }

    fn is_mutual(self) -> bool {
        matches!(self, Self::AbKept | Self::AbHandshake)
    }

    fn operations(self, args: &ToolsArgs) -> u64 {
        if self == Self::AbHandshake { args.handshakes } else { args.requests }
    }

    /// The public tool's arguments.
    fn theirs(self, args: &ToolsArgs, server: &Server) -> Vec<String> {
        let count = self.operations(args).to_string();
        let mut said = match self {
            Self::H2loadOne | Self::H2loadTwo => {
                words(&["-t1", "-c", CONNECTIONS, "-m1", "-n", &count, H2LOAD_CIPHERS])
            }
            Self::AbKept | Self::AbHandshake => {
                let both = server.both().display().to_string();
                words(&["-q", "-f", "TLS1.3", "-E", &both, "-c", CONNECTIONS, "-n", &count])
            }
        };
        match self {
            Self::H2loadOne => said.push("--h1".to_owned()),
            Self::AbKept => said.push("-k".to_owned()),
            Self::H2loadTwo | Self::AbHandshake => {}
        }
        said.push(format!("{}/", server.url(self.is_mutual())));
        said
    }

    /// The arguments of `run`.
    fn ours(self, args: &ToolsArgs, server: &Server) -> Vec<String> {
        let url = server.url(self.is_mutual());
        let (terminal, trust) = (server.terminal(), server.trust());
        let mut said = words(&["run", "--json", "--group", "x25519", "--threads", "1"]);
        said.extend(words(&["--target", &url, "--connections", CONNECTIONS]));
        said.extend(words(&["--certs", &terminal.display().to_string()]));
        said.extend(words(&["--trust", &trust.display().to_string()]));
        said.extend(words(&["--requests", &self.operations(args).to_string()]));
        said.extend(words(&["--pid", &server.worker().to_string()]));
        match self {
            Self::H2loadTwo => said.extend(words(&["--http", "2"])),
            Self::AbHandshake => said.extend(words(&["--mode", "returning"])),
            Self::H2loadOne | Self::AbKept => {}
        }
        said
    }
}

/// What one measurement told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Figures {
    /// nginx's CPU time, microseconds per operation.
    cpu_us: f64,
    per_second: f64,
    /// How much of the time nginx was busy, 0 to 1.
    server_busy: f64,
}

/// One work, done by both sides.
#[derive(Debug, Serialize)]
struct Comparison {
    work: &'static str,
    tool: &'static str,
    note: &'static str,
    ours: Figures,
    theirs: Figures,
    /// Of CPU time per operation: ours against theirs.
    cpu_difference_percent: f64,
    /// Nothing, where nginx was not the bottleneck of both.
    per_second_difference_percent: Option<f64>,
    same: bool,
    rounds: Vec<Round>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Round {
    ours: Figures,
    theirs: Figures,
}

/// What is printed and written.
#[derive(Debug, Serialize)]
struct Report {
    format: &'static str,
    software: Vec<String>,
    same_within_percent: f64,
    comparisons: Vec<Comparison>,
}

/// Compares.
///
/// # Errors
/// If a tool is missing or fails, or if the two sides do not find the same.
pub(crate) fn run(args: &ToolsArgs) -> anyhow::Result<()> {
    ensure!(args.server_cpu != args.load_cpu, crate::Usage(SAME_CORE.to_owned()));
    let software = software()?;
    let server = Server::start(args.server_cpu)?;
    let mut rounds: Vec<Vec<Round>> = Work::ALL.iter().map(|_| Vec::new()).collect();
    for at in 0..args.rounds {
        for (work, done) in Work::ALL.into_iter().zip(&mut rounds) {
            eprintln!("round {} of {}: {}: {}", at + 1, args.rounds, work.tool(), work.as_str());
            done.push(round(work, args, &server, at % 2 == 1)?);
        }
    }
    server.stop()?;
    let comparisons: Vec<_> =
        Work::ALL.into_iter().zip(rounds).map(|(work, done)| compare(work, done)).collect();
    let report = Report { format: FORMAT, software, same_within_percent: SAME_WITHIN, comparisons };
    if let Some(folder) = args.out.parent() {
        fs::create_dir_all(folder).with_context(|| format!("folder `{}`", folder.display()))?;
    }
    fs::write(&args.out, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("cannot write `{}`", args.out.display()))?;
    crate::print(&report, args.json)?;
    let different = report.comparisons.iter().filter(|one| !one.same).count();
    ensure!(different == 0, "{different} comparisons differ by more than {SAME_WITHIN} %");
    Ok(())
}

/// Both sides one after the other; who begins changes from round to round.
fn round(work: Work, args: &ToolsArgs, server: &Server, ours_last: bool) -> anyhow::Result<Round> {
    if ours_last {
        let theirs = theirs(work, args, server)?;
        return Ok(Round { ours: ours(work, args, server)?, theirs });
    }
    let ours = ours(work, args, server)?;
    Ok(Round { ours, theirs: theirs(work, args, server)? })
}

fn theirs(work: Work, args: &ToolsArgs, server: &Server) -> anyhow::Result<Figures> {
    let before = cpu::used(server.worker())?;
    let said = output(work.tool(), &work.theirs(args, server), args.load_cpu)?;
    let used = cpu::used(server.worker())?.saturating_sub(before).as_secs_f64();
    let told = match work {
        Work::H2loadOne | Work::H2loadTwo => Told::from_h2load(&said),
        Work::AbKept | Work::AbHandshake => Told::from_ab(&said),
    }
    .with_context(|| format!("what `{}` printed is not understood", work.tool()))?;
    let (wanted, tool) = (work.operations(args), work.tool());
    ensure!(told.good == wanted, "`{tool}` got {} good answers of {wanted}", told.good);
    Ok(Figures {
        cpu_us: used * 1e6 / told.good as f64,
        per_second: told.per_second,
        server_busy: used * told.per_second / told.good as f64,
    })
}

/// What of `run`'s report is needed here.
#[derive(Debug, Deserialize)]
struct Run {
    answered: u64,
    per_second: f64,
    seconds: f64,
    connections_resumed: u64,
    cpu: RunCpu,
}

#[derive(Debug, Deserialize)]
struct RunCpu {
    seconds: f64,
    us_per_operation: f64,
}

fn ours(work: Work, args: &ToolsArgs, server: &Server) -> anyhow::Result<Figures> {
    let own = std::env::current_exe().context("this program does not know its own file")?;
    let said = output(&own.display().to_string(), &work.ours(args, server), args.load_cpu)?;
    let run: Run = serde_json::from_str(&said).context("`run` answered something else")?;
    let wanted = work.operations(args);
    ensure!(run.answered == wanted, "`run` got {} good answers of {wanted}", run.answered);
    ensure!(run.connections_resumed == 0, "sessions were resumed: no full handshakes");
    Ok(Figures {
        cpu_us: run.cpu.us_per_operation,
        per_second: run.per_second,
        server_busy: run.cpu.seconds / run.seconds,
    })
}

/// Runs a tool on its core to its end; what it printed.
fn output(tool: &str, args: &[String], load_cpu: usize) -> anyhow::Result<String> {
    let name = tool.rsplit('/').next().unwrap_or(tool);
    let limit = TOOL_SECONDS_MAX.to_string();
    let output = Command::new("timeout")
        .args([&limit, "taskset", "--cpu-list", &load_cpu.to_string(), tool])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot start `timeout`")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let last = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
    ensure!(output.status.success(), "`{name}` failed ({}): {last}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("`{name}` printed no text"))
}

/// The versions of all that takes part.
fn software() -> anyhow::Result<Vec<String>> {
    let mut found = vec![format!("sekisho-bench {}", env!("CARGO_PKG_VERSION"))];
    for (tool, argument) in [("nginx", "-v"), ("h2load", "--version"), ("ab", "-V")] {
        let output = Command::new(tool).arg(argument).stdin(Stdio::null()).output();
        let output = output.with_context(|| {
            format!("`{tool}` is missing: install nginx, nghttp2-client and apache2-utils")
        })?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        found.push(text.lines().next().unwrap_or(tool).to_owned());
    }
    Ok(found)
}

fn compare(work: Work, rounds: Vec<Round>) -> Comparison {
    let side = |of: fn(&Round) -> Figures| {
        let middle = |figure: fn(&Figures) -> f64| {
            median(rounds.iter().map(|round| figure(&of(round))).collect())
        };
        Figures {
            cpu_us: middle(|figures| figures.cpu_us),
            per_second: middle(|figures| figures.per_second),
            server_busy: middle(|figures| figures.server_busy),
        }
    };
    let (ours, theirs) = (side(|round| round.ours), side(|round| round.theirs));
    let cpu_difference_percent = percent(ours.cpu_us, theirs.cpu_us);
    let saturated = ours.server_busy.min(theirs.server_busy) >= BUSY;
    let per_second = saturated.then(|| percent(ours.per_second, theirs.per_second));
    let is_near = |difference: f64| difference.abs() <= SAME_WITHIN;
    Comparison {
        work: work.as_str(),
        tool: work.tool(),
        note: work.note(),
        ours,
        theirs,
        cpu_difference_percent,
        per_second_difference_percent: per_second,
        same: is_near(cpu_difference_percent) && per_second.is_none_or(is_near),
        rounds,
    }
}

fn percent(ours: f64, theirs: f64) -> f64 {
    (ours / theirs - 1.0) * 100.0
}

/// Of an even number the mean of the two in the middle; of none not a number.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let upper = figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN);
    let lower = figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN);
    f64::midpoint(lower, upper)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.software.join(", "))?;
        for one in &self.comparisons {
            writeln!(f, "\n{} ({})", one.work, one.note)?;
            writeln!(f, "  {:<14} {:>14} {:>12} {:>11}", "", "nginx CPU µs", "per second", "busy")?;
            for (name, figures) in [("sekisho-bench", one.ours), (one.tool, one.theirs)] {
                let Figures { cpu_us, per_second, server_busy } = figures;
                let busy = server_busy * 100.0;
                writeln!(f, "  {name:<14} {cpu_us:>14.1} {per_second:>12.0} {busy:>9.0} %")?;
            }
            let rate = one.per_second_difference_percent.map_or_else(
                || "nginx not the limit".to_owned(),
                |percent| format!("{percent:+.1} %"),
            );
            let cpu = format!("{:+.1} %", one.cpu_difference_percent);
            let verdict = if one.same { "same" } else { "DIFFERENT" };
            writeln!(f, "  {:<14} {cpu:>14} {rate:>12}   {verdict}", "difference")?;
        }
        Ok(())
    }
}

const FORMAT: &str = "sekisho-bench-tools/1";
const CONNECTIONS: &str = "32";
/// The cipher that the other tools prefer by themselves.
const H2LOAD_CIPHERS: &str = "--tls13-ciphers=TLS_AES_256_GCM_SHA384";
const SAME_CORE: &str = "--server-cpu and --load-cpu must be different cores";
/// Two figures are the same up to this.
const SAME_WITHIN: f64 = 10.0;
/// From here on nginx is what limits the rate.
const BUSY: f64 = 0.9;
const TOOL_SECONDS_MAX: u32 = 600;

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cpu_us: f64, per_second: f64, server_busy: f64) -> Figures {
        Figures { cpu_us, per_second, server_busy }
    }

    #[test]
    fn medians_are_those_of_the_middle() {
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 9.0]) - 3.0).abs() < 1e-9);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn ten_percent_of_cpu_time_are_the_same_and_more_are_not() {
        let with = |cpu_us| {
            let (ours, theirs) = (figures(cpu_us, 50.0, 0.5), figures(100.0, 99.0, 0.5));
            compare(Work::AbKept, vec![Round { ours, theirs }])
        };
        assert!(with(109.0).same && with(91.0).same);
        assert!(!with(111.0).same && !with(89.0).same);
        assert!(!with(f64::NAN).same);
    }

    #[test]
    fn rates_are_compared_only_where_nginx_limits_both() {
        let with = |busy| {
            let (ours, theirs) = (figures(1.0, 50.0, 0.99), figures(1.0, 100.0, busy));
            compare(Work::AbKept, vec![Round { ours, theirs }])
        };
        let limited = with(0.95);
        assert!((limited.per_second_difference_percent.unwrap() + 50.0).abs() < 1e-9);
        assert!(!limited.same);
        assert!(with(0.5).per_second_difference_percent.is_none() && with(0.5).same);
    }
}
