//! `sekisho-ra`: arguments → configuration → [`cert_authority::ra::run`] → exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use cert_authority::config::RaConfig;
use cert_authority::{ra, serve};
use clap::Parser;

/// The registration authority: enrols terminals, revokes certificates, publishes both to gateways.
#[derive(Parser)]
#[command(name = "sekisho-ra", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and end: 0 if it can be used, 64 if not.
    #[arg(long)]
    check_config: bool,
    /// End when stdin ends: the supervisor is gone.
    #[arg(long)]
    supervised: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    serve::log_to_stderr();
    let loaded = RaConfig::load(&arguments.config)
        .map_err(anyhow::Error::from)
        .and_then(|config| ra::tls_config(&config).map(|_| config).map_err(Into::into));
    let config = match loaded {
        Ok(config) => config,
        Err(error) => return fail(&error, 64),
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    match run(config, arguments.supervised) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn run(config: RaConfig, supervised: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(async {
        let stop = serve::stop_token(supervised).context("signals cannot be watched")?;
        Ok(ra::run(config, stop).await?)
    })
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    for line in format!("{error:#}").lines() {
        eprintln!("error: {line}");
    }
    ExitCode::from(code)
}
