//! `sekisho-gateway`: arguments → [`Config`] → run → exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gateway::config::Config;

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
    match start(config, arguments.supervised) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            complain(&chain.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config, supervised: bool) -> anyhow::Result<()> {
    rustls::crypto::CryptoProvider::install_default(gateway::tls::provider())
        .map_err(|_| anyhow::anyhow!("another cryptography provider is installed already"))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(gateway::run::run(config, supervised))
}

fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter).init();
}

#[allow(clippy::print_stderr, reason = "the one clear line that an operator reads")]
fn complain(line: &str) {
    eprintln!("error: {line}");
}
