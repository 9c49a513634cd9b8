//! `sekisho-office`: the helper program on an office's PC. It enrols the terminal, tells how long
//! its certificate lasts, and tests what the terminal needs.
//!
//! ```text
//!  main ─► cli ─┬─► enrol ──► est ──► https ──► the RA (TLS 1.3)
//!               │     └─► pkcs7, certificate ──► files: DIR/key.pem, DIR/cert.pem
//!               ├─► status ──► certificate
//!               └─► selftest ─► reader (PC/SC), status, https
//! ```
//!
//! Here belong also: `apdu` (the allow-list of card commands that makes the 個人番号 unreadable),
//! `card` (the 利用者証明用 key of the My Number card), `statement` and `verify` (the identity check
//! with the hub), and `renew` (renewal by mTLS before the certificate ends).
//!
//! INVARIANT: a secret, key or PIN never stands in an argument, a log line or an error text.
//! Exit codes: 0 done, 1 failed, 64 wrong usage.

#![allow(clippy::print_stdout, reason = "a command line program answers on stdout")]

mod cli;
mod https;
mod est;
mod pkcs7;
mod certificate;
mod files;
mod enrol;
mod status;
mod reader;
mod selftest;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // A closed stdout or stderr leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    // A provider installed before is the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let good = match command {
        Command::Enrol(args) => {
            let enrolled = runtime.block_on(enrol::enrol(args))?;
            print!("{enrolled}");
            true
        }
        Command::Status(args) => {
            let status = status::read(&args.dir)?;
            print(&status, args.json)?;
            status.is_usable()
        }
        Command::Selftest(args) => {
            let report = runtime.block_on(selftest::run(args));
            print(&report, args.json)?;
            report.passed()
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print<T: std::fmt::Display + serde::Serialize>(value: &T, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(value)?);
    } else {
        print!("{value}");
    }
    Ok(())
}

/// Wrong usage, as in BSD's `sysexits.h`.
const EXIT_USAGE: u8 = 64;
