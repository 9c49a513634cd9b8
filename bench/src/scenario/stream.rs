//! Large bodies up or down: throughput, what each MiB costs the server, and whether its memory
//! stays flat.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::Usage;
use crate::cli::TargetArgs;
use crate::client::{Answer, Ask, Connection, Server};
use crate::cpu;
use crate::credentials::{Terminal, is_path};
use crate::scenario::{Client, Counts, Memory, MemoryWatch, Statuses, World, check_files};
use crate::scenario::{count, runtime, shown, within};

/// Arguments of `stream`.
#[derive(Debug, Args)]
pub(crate) struct StreamArgs {
    /// Whom to load; --path goes before a terminal's own path; without it, the terminal's own path
    /// is asked for as many bytes with `?bytes=N`
    #[command(flatten)]
    target: TargetArgs,
    /// Which way the bodies go
    #[arg(long, value_enum, default_value = "down")]
    direction: Direction,
    /// Length of each body; down, the answer must be as long
    #[arg(
        long,
        value_name = "N",
        default_value = "1073741824",
        value_parser = clap::value_parser!(u64).range(1..=1 << 40)
    )]
    bytes: u64,
    /// Connections that move a body at the same time
    #[arg(
        long,
        value_name = "K",
        default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    streams: u32,
    /// Method of the request; GET down and POST up, if not given
    #[arg(long)]
    method: Option<String>,
    /// Content type of what goes up
    #[arg(long, default_value = "application/octet-stream")]
    content_type: String,
    /// Process whose CPU time and memory are read
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Direction {
    /// To the server
    Up,
    /// From the server
    Down,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    direction: Direction,
    bytes: u64,
    streams: u32,
    seconds: f64,
    /// Of bodies that were moved whole and answered 2xx.
    mib_per_second: f64,
    statuses: Statuses,
    failures: Counts,
    cpu_seconds: Option<f64>,
    cpu_us_per_mib: Option<f64>,
    memory_bytes: Option<Memory>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        let (streams, bytes, seconds) = (self.streams, self.bytes, self.seconds);
        writeln!(
            f,
            "stream {way}: {streams} × {bytes} bytes in {seconds:.2} s, {:.0} MiB/s",
            self.mib_per_second
        )?;
        writeln!(f, "  statuses {}; failures {}", shown(&self.statuses), shown(&self.failures))?;
        if let (Some(seconds), Some(each)) = (self.cpu_seconds, self.cpu_us_per_mib) {
            writeln!(f, "  server: {seconds:.2} s CPU, {each:.0} µs for each MiB")?;
        }
        let mib = |bytes: u64| bytes as f64 / MIB;
        if let Some(memory) = self.memory_bytes {
            let (before, peak) = (mib(memory.before), mib(memory.peak));
            writeln!(f, "  memory {before:.1} MiB before, {peak:.1} MiB at most")?;
        }
        Ok(())
    }
}

/// Moves the bodies.
///
/// # Errors
/// What can not be read, or if no body was moved.
pub(crate) fn run(args: &StreamArgs) -> anyhow::Result<()> {
    args.target.check().map_err(Usage)?;
    check_files(args.streams as usize, "--streams")?;
    let report = runtime()?.block_on(stream(args))?;
    crate::print(&report, args.json)?;
    anyhow::ensure!(report.mib_per_second > 0.0, "no body was moved");
    Ok(())
}

pub(super) async fn stream(args: &StreamArgs) -> anyhow::Result<Report> {
    let world = World::open(&args.target).await?;
    let mut clients = world.clients(args.streams as usize)?;
    for (client, terminal) in clients.iter_mut().zip(world.terminals.iter().cycle()) {
        client.ask = request(args, &world.server, terminal)?;
    }
    let mut open = Vec::with_capacity(clients.len());
    for client in clients {
        let connection = client.connect(&world.server).await;
        let connection = connection.map_err(|error| anyhow::anyhow!("no connection: {error}"))?;
        open.push((client, connection));
    }
    let memory = MemoryWatch::start(args.pid)?;
    let cpu_before = args.pid.map(cpu::used).transpose()?;
    let began = Instant::now();
    let outcomes = move_all(open).await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu_after = args.pid.map(cpu::used).transpose()?;
    let memory_bytes = match memory {
        Some(watch) => Some(watch.finish().await?),
        None => None,
    };
    let cpu = cpu_before.zip(cpu_after).map(|(before, after)| after.saturating_sub(before));
    Ok(report(args, &outcomes, seconds, cpu, memory_bytes))
}

fn report(
    args: &StreamArgs,
    outcomes: &[Result<Answer, String>],
    seconds: f64,
    cpu: Option<Duration>,
    memory_bytes: Option<Memory>,
) -> Report {
    let (mut statuses, mut failures) = (Statuses::new(), Counts::new());
    let mut moved = 0;
    for outcome in outcomes {
        match outcome {
            Ok(answer) => {
                *statuses.entry(answer.status).or_default() += 1;
                let good = (200..300).contains(&answer.status);
                match args.direction {
                    Direction::Down if good && answer.body_bytes != args.bytes => {
                        let text = format!("{} bytes were answered", answer.body_bytes);
                        count(&mut failures, &text);
                    }
                    Direction::Up | Direction::Down if good => moved += args.bytes,
                    Direction::Up | Direction::Down => {}
                }
            }
            Err(failure) => count(&mut failures, failure),
        }
    }
    let mib = moved as f64 / MIB;
    let cpu_seconds = cpu.map(|cpu| cpu.as_secs_f64());
    Report {
        direction: args.direction,
        bytes: args.bytes,
        streams: args.streams,
        seconds,
        mib_per_second: mib / seconds.max(f64::MIN_POSITIVE),
        statuses,
        failures,
        cpu_seconds,
        cpu_us_per_mib: cpu_seconds.filter(|_| moved > 0).map(|seconds| seconds * 1e6 / mib),
        memory_bytes,
    }
}

/// The request that moves a body.
fn request(args: &StreamArgs, server: &Server, terminal: &Terminal) -> anyhow::Result<Ask> {
    let given = Some(args.target.path.as_str()).filter(|path| *path != "/");
    let own = terminal.path.as_str();
    let (default_method, path, body) = match args.direction {
        Direction::Down => {
            let path = given.map_or_else(|| with_bytes(own, args.bytes), str::to_owned);
            ("GET", path, None)
        }
        Direction::Up => {
            let body = (args.content_type.as_str(), args.bytes);
            ("POST", given.unwrap_or(own).to_owned(), Some(body))
        }
    };
    let method = args.method.as_deref().unwrap_or(default_method);
    Ask::of(server, terminal, method, &path, body).with_context(|| {
        format!("no request can be made of the method `{method}` and the path `{path}`")
    })
}

/// The path, with the wish for an answer of so many bytes.
pub(crate) fn with_bytes(path: &str, bytes: u64) -> String {
    debug_assert!(is_path(path));
    let mark = if path.contains('?') { '&' } else { '?' };
    format!("{path}{mark}bytes={bytes}")
}

async fn move_all(open: Vec<(Client, Connection)>) -> anyhow::Result<Vec<Result<Answer, String>>> {
    let mut tasks = JoinSet::new();
    for (client, mut connection) in open {
        tasks.spawn(async move { within(MOVED_WITHIN, connection.ask(&client.ask)).await });
    }
    let progress = tokio::spawn(progress());
    let mut outcomes = Vec::new();
    while let Some(one) = tasks.join_next().await {
        outcomes.push(one.context("a stream failed")?);
    }
    progress.abort();
    Ok(outcomes)
}

async fn progress() {
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        eprintln!("stream: {:.0} s", began.elapsed().as_secs_f64());
    }
}

const MIB: f64 = 1_048_576.0;
const MOVED_WITHIN: Duration = Duration::from_secs(600);
