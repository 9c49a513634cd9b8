//! Connections that say nothing: what memory the server keeps for each.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::cli::TargetArgs;
use crate::client::{Connection, Server};
use crate::cpu;
use crate::scenario::{Client, Counts, World, check_files, count, runtime, shown};

/// Arguments of `idle`.
#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// Connections to open
    #[arg(
        long,
        value_name = "N",
        default_value = "1000",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    connections: u32,
    /// Requests on each connection before it falls silent
    #[arg(
        long,
        value_name = "N",
        default_value = "0",
        value_parser = clap::value_parser!(u32).range(0..=1)
    )]
    requests_first: u32,
    /// Process whose memory is read; start it anew before, because memory that it has had and freed
    /// is not seen when it takes it again
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// That were open at the end.
    connections: u64,
    failures: Counts,
    memory_bytes: Option<Memory>,
    bytes_per_connection: Option<f64>,
    seconds: f64,
    requests_first: u32,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Memory {
    before: u64,
    after: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "idle: {} connections open after {:.1} s; failures {}",
            self.connections,
            self.seconds,
            shown(&self.failures)
        )?;
        let (Some(memory), Some(each)) = (self.memory_bytes, self.bytes_per_connection) else {
            return Ok(());
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "  memory {:.1} MiB before, {:.1} MiB after: {each:.0} bytes for each connection",
            mib(memory.before),
            mib(memory.after)
        )
    }
}

/// Opens the connections and looks at the server's memory.
///
/// # Errors
/// What can not be read, what is too much, or if no connection could be opened.
pub(crate) fn run(args: &IdleArgs) -> anyhow::Result<()> {
    args.target.check().map_err(crate::Usage)?;
    check_files(args.connections as usize, "--connections")?;
    let report = runtime()?.block_on(idle(args))?;
    crate::print(&report, args.json)?;
    anyhow::ensure!(report.connections > 0, "no connection could be opened");
    Ok(())
}

pub(super) async fn idle(args: &IdleArgs) -> anyhow::Result<Report> {
    let world = World::open(&args.target).await?;
    let mut clients = world.clients(args.connections as usize)?;
    // One connection that goes again: what the server makes once is no cost of the others.
    if let Some(first) = clients.first() {
        match open(&world.server, first, args.requests_first).await {
            Ok(connection) => connection.close().await,
            Err(problem) => anyhow::bail!("the first connection could not be opened: {problem}"),
        }
        tokio::time::sleep(QUIET).await;
    }
    let before = args.pid.map(cpu::resident_bytes).transpose()?;
    let began = Instant::now();
    clients.reverse();
    let (opened, failures) = open_all(&world.server, clients, args.requests_first).await?;
    tokio::time::sleep(QUIET).await;
    let seconds = began.elapsed().as_secs_f64();
    let after = args.pid.map(cpu::resident_bytes).transpose()?;
    let connections = opened.len() as u64;
    let memory_bytes = before.zip(after).map(|(before, after)| Memory { before, after });
    let bytes_per_connection = memory_bytes
        .filter(|_| connections > 0)
        .map(|memory| (memory.after as f64 - memory.before as f64) / connections as f64);
    drop(opened);
    let requests_first = args.requests_first;
    Ok(Report {
        connections,
        failures,
        memory_bytes,
        bytes_per_connection,
        seconds,
        requests_first,
    })
}

/// Opens one connection after another, some at the same time, and keeps them.
async fn open_all(
    server: &Arc<Server>,
    mut clients: Vec<Client>,
    requests_first: u32,
) -> anyhow::Result<(Vec<Connection>, Counts)> {
    let wanted = clients.len();
    let (mut opened, mut failures) = (Vec::with_capacity(wanted), Counts::new());
    let mut tasks = JoinSet::new();
    let mut told = Instant::now();
    loop {
        while tasks.len() < AT_ONCE {
            let Some(client) = clients.pop() else { break };
            let server = Arc::clone(server);
            tasks.spawn(async move { open(&server, &client, requests_first).await });
        }
        let Some(one) = tasks.join_next().await else { return Ok((opened, failures)) };
        match one.context("opening a connection failed")? {
            Ok(connection) => opened.push(connection),
            Err(failure) => count(&mut failures, &failure),
        }
        if told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            eprintln!("idle: {} of {wanted} connections open", opened.len());
        }
    }
}

async fn open(server: &Server, client: &Client, requests: u32) -> Result<Connection, String> {
    let mut connection = client.connect(server).await?;
    for _ in 0..requests {
        let answer = client.ask(&mut connection).await?;
        if !(200..300).contains(&answer.status) {
            return Err(format!("status {}", answer.status));
        }
    }
    Ok(connection)
}

/// Few enough that what is needed during handshakes is little beside what stays.
const AT_ONCE: usize = 16;
const QUIET: Duration = Duration::from_secs(2);
