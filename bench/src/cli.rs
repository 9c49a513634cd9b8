//! The command line, and what all loads have in common: whom they load and as whom.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::audit::AuditArgs;
use crate::cold_start::ColdStartArgs;
use crate::credentials::is_path;
use crate::decide::DecideArgs;
use crate::gate::GateArgs;
use crate::issuing::IssuingArgs;
use crate::lab::LabArgs;
use crate::lab::backend::BackendArgs;
use crate::lab::facts::{FactsArgs, RevokeArgs};
use crate::lab::fixture::FixtureArgs;
use crate::lab::stages::StagesArgs;
use crate::load::RunArgs;
use crate::propagation::PropagationArgs;
use crate::scenario::idle::IdleArgs;
use crate::scenario::revocation::RevocationArgs;
use crate::scenario::slow::SlowArgs;
use crate::scenario::storm::StormArgs;
use crate::scenario::stream::StreamArgs;
use crate::suite::{ReportArgs, SuiteArgs};
use crate::target::Target;
use crate::tools::ToolsArgs;

/// Loads a gateway over mutual TLS and measures it.
#[derive(Debug, Parser)]
#[command(name = "sekisho-bench", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Requests or connections, in a closed loop, at a fixed rate, or as an office day has them
    Run(RunArgs),
    /// Many distinct terminals come back at once while others are being served
    Storm(StormArgs),
    /// Slow and silent clients beside good ones: what the good ones notice
    SlowClients(SlowArgs),
    /// From a revocation to the first refusal, on live, HTTP/2 and resumed connections
    Revocation(RevocationArgs),
    /// Large bodies up or down
    Stream(StreamArgs),
    /// Memory of connections that say nothing
    Idle(IdleArgs),
    /// What durable audit records and their verification cost on a disk
    Audit(AuditArgs),
    /// What a decision costs among many registrations, and how much memory they take
    Decide(DecideArgs),
    /// How fast certificates are issued by a running box
    Issuing(IssuingArgs),
    /// How long a gateway takes to start, from a snapshot and from the facts that it keeps on disk
    ColdStart(ColdStartArgs),
    /// How soon every gateway has applied a change that the hub commits
    Propagation(PropagationArgs),
    /// Instruction counts of the paths that matter, against the committed baseline
    Gate(GateArgs),
    /// Starts one system with all that it needs, and says how to load it
    Lab(LabArgs),
    /// Makes terminals, facts and the configuration of all systems in a folder
    Fixture(FixtureArgs),
    /// A back end that answers at once
    Backend(BackendArgs),
    /// Publishes a fixture's facts to gateways
    Facts(FactsArgs),
    /// Tells the facts publisher that a certificate is revoked
    Revoke(RevokeArgs),
    /// The gateway's parts put together without audit, or without policy and audit
    Stages(StagesArgs),
    /// All measurements, side by side, with their results as JSON
    Suite(SuiteArgs),
    /// The page of a results file
    Report(ReportArgs),
    /// This generator beside h2load and ab, against nginx alone
    Tools(ToolsArgs),
}

/// The key exchange that is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    /// X25519MLKEM768, as clients of the gateway prefer it
    Hybrid,
    /// X25519 alone, as peers without ML-KEM can do it
    X25519,
}

/// Whom to load, and as whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct TargetArgs {
    /// Server, such as https://localhost:8443; must be loopback, unless --allow-host names it
    #[arg(long, value_name = "URL")]
    pub(crate) target: Target,
    /// Host other than loopback that may be loaded: name the target's host once more
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_host: Option<String>,
    /// Folders with cert.pem and key.pem (and token, path), or folders of such folders
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    pub(crate) certs: Vec<PathBuf>,
    /// How many terminals to leave out at the beginning
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) certs_from: usize,
    /// How many terminals to take; all that are left, if not given
    #[arg(long, value_name = "N")]
    pub(crate) certs_count: Option<usize>,
    /// PEM file with the certificates that the server's own certificate must chain to
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: PathBuf,
    /// File with a staff access token; one for all terminals, or one for each in the same order
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) token_file: Vec<PathBuf>,
    /// Key exchange to offer
    #[arg(long, value_enum, default_value = "hybrid")]
    pub(crate) group: Group,
    /// Path and query to GET, for terminals that have none of their own
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    /// Come from this many different loopback addresses, if the target is loopback
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=60_000)
    )]
    pub(crate) source_addresses: u32,
}

impl TargetArgs {
    /// Refuses what the arguments together make wrong.
    ///
    /// # Errors
    /// One line for the user.
    pub(crate) fn check(&self) -> Result<(), String> {
        let host = self.target.host();
        if !self.target.is_loopback() && self.allow_host.as_deref() != Some(host) {
            return Err(format!(
                "`{host}` is not this machine: say `--allow-host {host}` if its operator agreed to \
                 being loaded"
            ));
        }
        if !is_path(&self.path) {
            return Err(format!("`{}` is not a path: it starts with / and is encoded", self.path));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<(), String> {
        let line = format!("sekisho-bench run --trust t.pem --certs a {line}");
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        let Command::Run(args) = cli.command else { unreachable!("the line says `run`") };
        args.target.check()
    }

    #[test]
    fn only_loopback_and_hosts_named_twice_may_be_loaded() {
        for good in [
            "--target https://localhost:8443",
            "--target https://127.0.0.1:8443",
            "--target https://[::1]:8443",
            "--target unix:/run/backend.sock",
            "--target https://gw.example:8443 --allow-host gw.example",
        ] {
            check(good).unwrap();
        }
        for bad in [
            "--target https://gw.example:8443",
            "--target https://gw.example:8443 --allow-host other.example",
            "--target https://localhost.example:8443",
            "--target https://192.0.2.1:8443",
        ] {
            let problem = check(bad).unwrap_err();
            assert!(problem.contains("--allow-host"), "{bad}: {problem}");
        }
    }

    #[test]
    fn paths_start_with_a_slash_and_hold_nothing_else_than_a_path() {
        let target = "--target https://localhost:8443";
        check(target).unwrap();
        assert!(check(&format!("{target} --path v1")).is_err());
        assert!(check(&format!("{target} --path /v1\r\nx:")).is_err());
    }
}
