//! `sekisho-bench`: load over real mTLS, and what it cost the server.
//!
//! ```text
//!  cli ─► target (which hosts may be loaded) ─► credentials (TLS settings of each certificate)
//!                                  └─► load: closed loop, one task a connection ─► report
//!                                             cpu: /proc/PID/stat before and after ──┘
//!  cli ─► audit: what durable records and their verification cost on a disk
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
mod audit;
mod target;
mod credentials;
mod load;
mod cpu;
mod report;

use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use cli::{Cli, Command, RunArgs};

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
    let done = match cli.command {
        Command::Run(args) => {
            if let Err(problem) = args.check() {
                eprintln!("error: {problem}");
                return ExitCode::from(EXIT_USAGE);
            }
            run(&args)
        }
        Command::Audit(args) => audit::run(&args).and_then(|report| print(&report, args.json)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(load::run(args))?;
    print(&report, args.json)?;
    anyhow::ensure!(report.answered() > 0, "no request was answered");
    Ok(())
}

fn print(report: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Wrong usage, as in BSD's `sysexits.h`.
const EXIT_USAGE: u8 = 64;
