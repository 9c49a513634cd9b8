//! `sekisho-signer`: serves signatures, or makes the hierarchy (`init`).
#![allow(clippy::print_stdout, reason = "`init` tells the operator what it made")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use cert_authority::audit::Trail;
use cert_authority::ceremony::{self, Plan};
use cert_authority::config::SignerConfig;
use cert_authority::profile::Oid;
use cert_authority::serve::{self, Presence};
use cert_authority::signer::{self, Signer};
use clap::{Args, Parser, Subcommand};
use time::OffsetDateTime;

/// Holds the issuing key: checks each request itself, then signs. Has no network.
#[derive(Parser)]
#[command(name = "sekisho-signer", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Make the hierarchy, or complete it: nothing that exists is replaced.
    Init(Init),
}

#[derive(Args)]
struct Serve {
    /// The configuration file.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Check the configuration and end: 0 if it can be used, 64 if not.
    #[arg(long)]
    check_config: bool,
    /// End when stdin ends: the supervisor is gone.
    #[arg(long)]
    supervised: bool,
}

#[derive(Args)]
struct Init {
    /// The folder of the hierarchy.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The operator's name, O of every certificate.
    #[arg(long, value_name = "NAME")]
    operator_name: String,
    /// The OID arc that the operator owns.
    #[arg(long, value_name = "OID", default_value = "2.999.1")]
    policy_arc: Oid,
    /// Where the root's key is or shall be [default: DIR/root.key].
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// Mark everything as demo, and make server certificates for localhost.
    #[arg(long)]
    demo: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    if let Some(Command::Init(init)) = arguments.command {
        return end(make_hierarchy(init));
    }
    serve::log_to_stderr();
    let Serve { config, check_config, supervised } = arguments.serve;
    match SignerConfig::load(&config.unwrap_or_default()) {
        Err(error) => fail(&error.into(), 64),
        Ok(_) if check_config => ExitCode::SUCCESS,
        Ok(config) => end(run(config, supervised)),
    }
}

fn make_hierarchy(init: Init) -> anyhow::Result<()> {
    let Init { dir, operator_name, policy_arc, root_key, demo } = init;
    let length = operator_name.chars().count();
    anyhow::ensure!((1..=64).contains(&length), "--operator-name: use 1 to 64 characters");
    let root_key = root_key.unwrap_or_else(|| dir.join("root.key"));
    let plan = Plan { dir, operator_name, policy_arc, demo, root_key };
    for (path, step) in ceremony::init(&plan, OffsetDateTime::now_utc())? {
        println!("{:<8}{}", step.as_str(), path.display());
    }
    if !demo && plan.root_key.exists() {
        println!(
            "now move {} to a medium that is locked away: the root signs only new issuing CAs",
            plan.root_key.display()
        );
    }
    Ok(())
}

fn run(config: SignerConfig, supervised: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(async {
        let stop = serve::stop_token(supervised).context("signals cannot be watched")?;
        warn_about_root_key(&config.ca_dir, config.rules.demo);
        let listener = serve::bind_unix(&config.socket)?;
        let trail =
            Trail::open(config.audit, "signer").context("the audit log cannot be opened")?;
        trail.begin().await?;
        let signer = Signer::new(
            config.rules,
            config.issuer,
            &signer::ledger_path(&config.ca_dir),
            config.issue_rate_per_minute_max,
            trail.clone(),
        )?;
        let _presence =
            Presence::announce(&config.ready_file, &BTreeMap::new(), &[&config.socket])?;
        tracing::info!("ready");
        signer::serve(listener, Arc::new(signer), stop).await;
        trail.close().await;
        Ok(())
    })
}

fn warn_about_root_key(ca_dir: &Path, demo: bool) {
    if !demo && ca_dir.join("root.key").exists() {
        tracing::warn!("the root's key is still in the CA's folder: move it offline");
    }
}

fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    for line in format!("{error:#}").lines() {
        eprintln!("error: {line}");
    }
    ExitCode::from(code)
}
