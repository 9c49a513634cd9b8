//! `sekisho-hub`: arguments → configuration → hub → exit code.

use std::error::Error;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hub::config::Config;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The hub: documents, registrations, consents and staff behind the gateway.
#[derive(Parser)]
#[command(name = "sekisho-hub", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and end: 0 if it can be used, else 64.
    #[arg(long)]
    check_config: bool,
    /// End when standard input ends, that is, when the supervisor has died.
    #[arg(long)]
    supervised: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(&error, BAD_USAGE),
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    log_to_stderr();
    match run(config, arguments.supervised) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error, 1),
    }
}

fn run(config: Config, supervised: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, stopping) = watch::channel(false);
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        if supervised {
            let stop = stop.clone();
            std::thread::spawn(move || stop_at_end_of_input(&stop));
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.send_replace(true);
        });
        Ok(hub::server::run(config, stopping).await?)
    })
}

fn stop_at_end_of_input(stop: &watch::Sender<bool>) {
    let mut input = std::io::stdin().lock();
    let mut bytes = [0; 256];
    while matches!(input.read(&mut bytes), Ok(1..)) {}
    stop.send_replace(true);
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs =
        tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter);
    let _ = logs.try_init();
}

/// One line a problem, each with its chain of sources.
fn fail(error: &(dyn Error + 'static), code: u8) -> ExitCode {
    let mut chain = String::new();
    let mut source = error.source();
    while let Some(inner) = source {
        chain.push_str(": ");
        chain.push_str(&inner.to_string());
        source = inner.source();
    }
    for line in error.to_string().lines() {
        eprintln!("error: {line}{chain}");
    }
    ExitCode::from(code)
}

const BAD_USAGE: u8 = 64;
