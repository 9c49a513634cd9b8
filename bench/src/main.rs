//! `sekisho-bench`: load over real mTLS, and what it cost the server.
//!
//! ```text
//!  cli ─► target (which hosts may be loaded) ─► credentials (TLS settings of each terminal)
//!                                                  └─► client (one connection) ─┐
//!         load      streams of requests: closed loop, open loop, office day ────┤
//!         scenario  storm, slow clients, revocation, large bodies, silence ─────┴─► report
//!                                      cpu: /proc/PID before and after ─────────────┘
//!         lab       terminals, facts, back end, nginx, HAProxy, the gateway whole and in stages
//!         suite     all of it side by side ─► results file ─► page
//!         gate      instruction counts, for CI
//!         audit, decide, issuing   what needs no load
//! ```
//!
//! A closed loop asks again as soon as the answer is there: right for CPU time per operation and
//! for the highest throughput, wrong for latency under a given load, because a slow server slows
//! its own load down. That is what the open loop is for.
//!
//! Exit codes: 0 run to its end, 1 failed or no request was answered, 64 wrong usage.

#![allow(clippy::print_stdout, reason = "a command line program answers on stdout")]

mod cli;
mod target;
mod credentials;
mod client;
mod load;
mod scenario;
mod cold_start;
mod cpu;
mod propagation;
mod report;
mod audit;
mod decide;
mod issuing;
mod gate;
mod lab;
mod suite;
mod tools;

use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let done = match &cli.command {
        Command::Run(args) => load::run(args),
        Command::Storm(args) => scenario::storm::run(args),
        Command::SlowClients(args) => scenario::slow::run(args),
        Command::Revocation(args) => scenario::revocation::run(args),
        Command::Stream(args) => scenario::stream::run(args),
        Command::Idle(args) => scenario::idle::run(args),
        Command::Audit(args) => audit::run(args).and_then(|report| print(&report, args.json)),
        Command::Decide(args) => decide::run(args),
        Command::Issuing(args) => issuing::run(args),
        Command::ColdStart(args) => cold_start::run(args),
        Command::Propagation(args) => propagation::run(args),
        Command::Gate(args) => gate::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Fixture(args) => lab::fixture::run(args),
        Command::Backend(args) => lab::backend::run(args),
        Command::Facts(args) => lab::facts::run(args),
        Command::Revoke(args) => lab::facts::revoke(args),
        Command::Stages(args) => lab::stages::run(args),
        Command::Suite(args) => suite::run(args),
        Command::Report(args) => suite::report(args),
        Command::Tools(args) => tools::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let usage = error.downcast_ref::<Usage>().is_some();
            if usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Wrong usage that only several arguments together show.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

pub(crate) fn print(report: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Wrong usage, as in BSD's `sysexits.h`.
const EXIT_USAGE: u8 = 64;
