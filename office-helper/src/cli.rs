//! The command line: what can be typed. Checked values only; what they mean is the business of the
//! modules that take them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use policies::identity::Identity;

use crate::https::Origin;

/// 事業所の端末の証明書の発行、確認、自己診断。
///
/// Enrols an office terminal, shows the state of its certificate, tests what the terminal needs.
#[derive(Debug, Parser)]
#[command(name = "sekisho-office", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// 端末の証明書を発行する / get a certificate for this terminal with a one-time code
    Enrol(EnrolArgs),
    /// 証明書の状態を表示する / show identity, serial and days left
    Status(StatusArgs),
    /// 自己診断 / test card readers, certificate and connection
    Selftest(SelftestArgs),
}

/// Arguments of `enrol`.
#[derive(Debug, Args)]
pub(crate) struct EnrolArgs {
    /// Address of the enrolment service, such as https://localhost:8444
    #[arg(long)]
    pub(crate) url: Origin,
    /// PEM file with the certificates that the service's own certificate must chain to
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: PathBuf,
    /// Identity that the code was issued for, such as office/1370000001/terminal/front-1
    #[arg(long, value_parser = parse_identity)]
    pub(crate) identity: Identity,
    /// Public id of the one-time code (発行用コード)
    #[arg(long, value_name = "CODEID", value_parser = parse_code_id)]
    pub(crate) code: String,
    /// File with the code's secret, or - for standard input; never given as an argument
    #[arg(long, value_name = "FILE|-")]
    pub(crate) secret_file: PathBuf,
    /// Folder for key.pem and cert.pem; made if missing
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Replace a key and certificate that are already there
    #[arg(long)]
    pub(crate) replace: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Folder with key.pem and cert.pem
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `selftest`.
#[derive(Debug, Args)]
pub(crate) struct SelftestArgs {
    /// Folder with key.pem and cert.pem, to test the certificate
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Address to reach: the gateway (needs --dir) or the enrolment service
    #[arg(long, requires = "trust")]
    pub(crate) url: Option<Origin>,
    /// PEM file with the certificates that the server's own certificate must chain to
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_identity(text: &str) -> Result<Identity, String> {
    Identity::from_path(text).map_err(|error| error.to_string())
}

/// HTTP Basic cuts the user name at the first colon (RFC 7617 §2), so none may stand in it.
fn parse_code_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits, hyphens and underscores".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_documented_lines_parse() {
        for line in [
            "sekisho-office enrol --url https://localhost:8444 --trust trust.pem --identity \
             office/1370000001/terminal/front-1 --code ABCD-1234 --secret-file - --out d",
            "sekisho-office status --dir d --json",
            "sekisho-office selftest",
            "sekisho-office selftest --dir d --url https://localhost:8443 --trust t.pem --json",
        ] {
            parse(line).unwrap();
        }
    }

    #[test]
    fn wrong_identities_urls_and_secrets_as_arguments_are_refused() {
        let enrol = "sekisho-office enrol --trust t --secret-file - --out d";
        for rest in [
            "--url http://localhost:8444 --identity office/1370000001/terminal/a --code A",
            "--url https://localhost:8444 --identity office/137/terminal/a --code A",
            "--url https://localhost:8444 --identity office/1370000001/terminal/a --code A:B",
            "--url https://localhost:8444 --identity office/1370000001/terminal/a --code A \
             --secret S",
        ] {
            assert!(parse(&format!("{enrol} {rest}")).is_err(), "{rest}");
        }
        assert!(parse("sekisho-office selftest --url https://localhost:1").is_err());
    }
}
