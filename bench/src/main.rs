//! `sekisho-bench`: load over real mTLS, and what it cost the server.
//!
//! ```text
//!  cli ─► target (which hosts may be loaded) ─► credentials (TLS settings of each certificate)
//!                                  └─► load: closed loop, one task a connection ─► report
//!                                             cpu: /proc/PID/stat before and after ──┘
//! ```
//!
//! A closed loop asks again as soon as the answer is there: right for CPU time per operation and
//! for the highest throughput, wrong for latency under a given load, because a slow server slows
//! its own load down. Here belong therefore also: open-loop arrival at a fixed rate with latency
//! counted from the intended time, runs of the peers (nginx, HAProxy) in turn in one run, body
//! streaming, reconnect storms, and the page that is made from the results.
//!
//! Exit codes: 0 run to its end, 1 failed or no request was answered, 64 wrong usage.

#![allow(clippy::print_stdout, reason = "a command line program answers on stdout")]

mod cli;
mod target;
mod credentials;
mod load;
mod cpu;
mod report;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, RunArgs};
use report::Report;

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
    let Command::Run(args) = cli.command;
    if let Err(problem) = args.check() {
        eprintln!("error: {problem}");
        return ExitCode::from(EXIT_USAGE);
    }
    match run(&args) {
        Ok(report) if report.answered() > 0 => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("error: no request was answered");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(load::run(args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(report)
}

/// Wrong usage, as in BSD's `sysexits.h`.
const EXIT_USAGE: u8 = 64;
