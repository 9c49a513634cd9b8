//! `sekisho-gateway`: arguments → [`Config`] → run → exit code.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use gateway::config::Config;
use gateway::run::Manner;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The secure gateway in front of the long-term-care information platform.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and exit: 0 if it is good, 64 if not.
    #[arg(long)]
    check_config: bool,
    /// Stop when standard input ends: the supervisor holds the other end.
    #[arg(long)]
    supervised: bool,
    /// Take the place of the gateway that runs, on listening sockets that both inherit
    /// (LISTEN_FDS=2: public, admin), without a request lost.
    #[arg(long)]
    take_over: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are not errors; a closed terminal is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(problems) => {
            problems.0.iter().for_each(|line| complain(line));
            return ExitCode::from(64);
        }
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    init_log();
    let manner = Manner { supervised: arguments.supervised, takes_over: arguments.take_over };
    match inherited().and_then(|sockets| start(config, sockets, manner)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            complain(&chain.join(": "));
            ExitCode::FAILURE
        }
    }
}

/// The listening sockets that the starter holds, if it does (the `LISTEN_FDS` protocol of systemd).
fn inherited() -> anyhow::Result<Vec<TcpListener>> {
    let mut given = listenfd::ListenFd::from_env();
    let sockets = (0..given.len()).map(|at| given.take_tcp_listener(at));
    let sockets: Vec<_> = sockets.collect::<Result<_, _>>().context("inherited sockets")?;
    Ok(sockets.into_iter().flatten().collect())
}

fn start(config: Config, sockets: Vec<TcpListener>, manner: Manner) -> anyhow::Result<()> {
    rustls::crypto::CryptoProvider::install_default(gateway::tls::provider())
        .map_err(|_| anyhow::anyhow!("another cryptography provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(gateway::run::run(config, sockets, manner));
    // A thread reads the supervisor's pipe for as long as that is open: nobody waits for it.
    runtime.shutdown_timeout(LAST_WORK);
    ended
}

/// How long facts that are being written to disk may take at the end; half-written ones are dropped
/// at the next start.
const LAST_WORK: Duration = Duration::from_millis(500);

fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter).init();
}

#[allow(clippy::print_stderr, reason = "the one clear line that an operator reads")]
fn complain(line: &str) {
    eprintln!("error: {line}");
}
