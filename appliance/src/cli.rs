//! The command line: which subcommands there are, and which file does what.

use std::path::PathBuf;

use crate::layout::Layout;
use crate::{
    audit, cert, code, completion, demo, doctor, down, gateway, office, policy, registration,
    staff, status, top, tour, up,
};

/// Operates Sekisho: the secure gateway in front of 介護情報基盤.
#[derive(Debug, clap::Parser)]
#[command(name = "sekisho", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The data folder
    #[arg(long, global = true, value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    /// Print data as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start the cert-authority, the hub and the gateway, and keep them running
    Up(up::Args),
    /// Stop everything
    Down,
    /// Say of each part whether it is up, degraded or down, and why
    Status,
    /// Show who uses the gateway right now, what is refused and which handshakes fail
    Top(top::Args),
    /// Walk through the main job step by step, on a system of its own
    Tour,
    /// Register and list offices (事業所)
    #[command(subcommand)]
    Office(office::Command),
    /// Issue one-time enrolment codes (発行用コード)
    #[command(subcommand)]
    Code(code::Command),
    /// List and revoke certificates
    #[command(subcommand)]
    Cert(cert::Command),
    /// Upgrade the running gateway, or have it read its configuration again
    #[command(subcommand)]
    Gateway(gateway::Command),
    /// Explain decisions and print the sharing matrix
    #[command(subcommand)]
    Policy(policy::Command),
    /// Record and end registrations (担当事業所) by hand; demo folders only
    #[command(subcommand)]
    Registration(registration::Command),
    /// Make and lock staff accounts
    #[command(subcommand)]
    Staff(staff::Command),
    /// Use the invented demo parties
    #[command(subcommand)]
    Demo(demo::Command),
    /// Verify, search and prove the audit logs, and bring their heads out
    Audit(audit::Args),
    /// Check ports, clock, disk, keys, certificates and feeds
    Doctor,
    /// Print a shell completion script
    Completion(completion::Args),
}

/// What every subcommand gets.
#[derive(Debug)]
pub(crate) struct Context {
    /// The data folder.
    pub(crate) layout: Layout,
    /// Whether data is printed as JSON.
    pub(crate) json: bool,
}

/// Runs the chosen subcommand; `false` means that it worked and the answer is bad (exit code 1).
///
/// # Errors
/// Whatever the subcommand could not do.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<bool> {
    let context = Context { layout: Layout::new(&cli.data)?, json: cli.json };
    match cli.command {
        Command::Up(args) => up::run(&args, &context).await,
        Command::Down => down::run(&context).await,
        Command::Status => status::run(&context).await,
        Command::Top(args) => top::run(&args, &context).await,
        Command::Tour => {
            let options = tour::TourOptions { data: cli.data, json: cli.json };
            tour::run(options).await
        }
        Command::Office(command) => office::run(&command, &context).await,
        Command::Code(command) => code::run(&command, &context).await,
        Command::Cert(command) => cert::run(&command, &context).await,
        Command::Gateway(command) => gateway::run(&command, &context).await,
        Command::Policy(command) => policy::run(&command, &context).await,
        Command::Registration(command) => registration::run(&command, &context).await,
        Command::Staff(command) => staff::run(&command, &context).await,
        Command::Demo(command) => demo::run(&command, &context).await,
        Command::Audit(args) => audit::run(&args, &context).await,
        Command::Doctor => doctor::run(&context).await,
        Command::Completion(args) => completion::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_takes_data_and_json() {
        for line in [
            "up --demo --detach --gateway-listen 127.0.0.1:0",
            "down",
            "status",
            "tour",
            "office add 9970000018 --name x --service-types 43;46 --medical",
            "office list",
            "office show 9970000018",
            "office suspend 9970000018 --reason x",
            "office resume 9970000018",
            "office import a.csv",
            "code issue --office 9970000018 --terminal a --profile office-api --valid-hours 1",
            "code issue --municipality 131016",
            "code issue --system life",
            "code issue --operator op-1",
            "cert list --office 9970000018",
            "cert show 01ab",
            "cert revoke 01ab --reason key-compromise --wait",
            "gateway upgrade",
            "gateway reload",
            "top --once --interval-s 2 --parties 5",
            "policy matrix --profile impl-2027",
            "policy explain --office 9970000018 --insured 131016/0000000001 \
                 --document insured-card",
            "policy explain --request 0195a1b2c3d4e5f60718293a",
            "policy check policy/active",
            "policy test policy/active",
            "policy diff active shadow --last 5",
            "policy diff built-in p --population d",
            "policy diff built-in p --population-of-seed 1",
            "policy sign p --operator kawa --key kawa.pem",
            "policy shadow start p",
            "policy shadow stop",
            "policy shadow status",
            "policy promote p",
            "policy promote",
            "registration add --office 9970000018 --insured 131016/0000000001 --reason x",
            "registration end --office 9970000018 --insured 131016/0000000001 --reason x",
            "staff add --office 9970000018 --id s1 --name x --job care-manager",
            "staff lock --office 9970000018 --id s1",
            "demo token care-management-1",
            "demo generate --offices 10 --registrations 20 --insured 5 --consents 3 --revoked 1 \
                 --seed 7 --out d",
            "audit verify --part gateway",
            "audit show --last 3",
            "audit verify --from a --heads b --pins c --folder d",
            "audit prove 7 --part hub --out p",
            "audit prove --between a b",
            "audit check-proof p",
            "audit search --person 131016/0000000001 --office 9970000018 --denied \
                 --since 2026-04-01 --until 2026-04-01T09:00:00+09:00 --last 5",
            "audit export --format csv --out x.csv --excel --reason not_registered",
            "audit index rebuild",
            "audit report denials --days 7",
            "audit report readers",
            "audit report card-checks",
            "audit report unfinished",
            "audit push",
            "audit access-index rebuild",
            "audit pin",
            "doctor",
            "completion bash",
        ] {
            let words = format!("sekisho {line} --data /tmp/x --json");
            let parsed = Cli::try_parse_from(words.split(' '));
            assert!(parsed.as_ref().is_ok_and(|cli| cli.json), "{line}: {:?}", parsed.err());
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "nothing",
            "up --gateway-listen here",
            "office add 12 --name x --service-types 43",
            "office add 9970000018 --name x --service-types 4",
            "code issue",
            "code issue --office 9970000018 --municipality 131016",
            "code issue --system other",
            "cert revoke 01ab",
            "cert revoke 01ab --reason because",
            "cert show xyz",
            "policy explain --office 9970000018",
            "policy matrix --profile other",
            "policy check",
            "policy diff active",
            "policy diff active shadow --population d --population-of-seed 1",
            "policy shadow",
            "policy explain --request a --office 9970000018",
            "completion tcsh",
            "demo generate --out d",
            "demo generate --seed 1",
            "demo generate --seed x --out d",
            "audit prove",
            "audit prove 0",
            "audit prove 7 --between a b",
            "audit search --allowed --denied",
            "audit search --since yesterday",
            "audit search --pseudonym xyz",
            "audit export",
        ] {
            let words = format!("sekisho {line}");
            assert!(Cli::try_parse_from(words.trim().split(' ')).is_err(), "{line}");
        }
    }
}
