//! The command line and the checks that need more than one argument.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::audit::AuditArgs;
use crate::target::Target;

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
    /// One measurement: a fixed number of operations in a closed loop
    Run(RunArgs),
    /// What durable audit records and their verification cost on a disk
    Audit(AuditArgs),
}

/// What one operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// One request on a connection that is kept
    Keepalive,
    /// A new connection with a full handshake, one request, close
    Handshake,
    /// A new connection that resumes the session before, one request, close
    Resumed,
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

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Server, such as https://localhost:8443; must be loopback, unless --allow-host names it
    #[arg(long, value_name = "URL")]
    pub(crate) target: Target,
    /// Host other than loopback that may be loaded: name the target's host once more
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_host: Option<String>,
    /// Folders with cert.pem and key.pem; connections take them in turn
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    pub(crate) certs: Vec<PathBuf>,
    /// PEM file with the certificates that the server's own certificate must chain to
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: PathBuf,
    /// File with a staff access token; one for all certificates, or one for each in the same order
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) token_file: Vec<PathBuf>,
    /// What one operation is
    #[arg(long, value_enum, default_value = "keepalive")]
    pub(crate) mode: Mode,
    /// Key exchange to offer
    #[arg(long, value_enum, default_value = "hybrid")]
    pub(crate) group: Group,
    /// Connections open at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,
    /// Operations altogether
    #[arg(
        long,
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000)
    )]
    pub(crate) requests: u64,
    /// Path and query to GET
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    /// Process of the server on this machine, for its CPU time per operation
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl RunArgs {
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
        let tokens = self.token_file.len();
        if tokens > 1 && tokens != self.certs.len() {
            return Err(format!(
                "{tokens} token files for {} certificates: give one for all or one for each",
                self.certs.len()
            ));
        }
        let plain = |c: char| c.is_ascii_graphic() && c != '#';
        if !self.path.starts_with('/') || !self.path.chars().all(plain) {
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
        match Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?.command {
            Command::Run(args) => args.check(),
            Command::Audit(_) => unreachable!("the line says `run`"),
        }
    }

    #[test]
    fn only_loopback_and_hosts_named_twice_may_be_loaded() {
        for good in [
            "--target https://localhost:8443",
            "--target https://127.0.0.1:8443",
            "--target https://[::1]:8443",
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
    fn tokens_are_one_for_all_or_one_for_each_and_paths_start_with_a_slash() {
        let target = "--target https://localhost:8443";
        check(&format!("{target} --certs b --token-file t")).unwrap();
        check(&format!("{target} --certs b --token-file t --token-file u")).unwrap();
        assert!(check(&format!("{target} --token-file t --token-file u")).is_err());
        assert!(check(&format!("{target} --path v1")).is_err());
        assert!(check(&format!("{target} --path /v1\r\nx:")).is_err());
        assert!(check(&format!("{target} --connections 0")).is_err());
    }
}
