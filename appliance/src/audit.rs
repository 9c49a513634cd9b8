//! `sekisho audit …`: the audit logs of the four programs, and what is made of them.
//!
//! ```text
//!  selection (which logs, which pins) ─► verify · prove · search · export · report · index · show
//!  push ─► heads.rs: newest checkpoints ─► folder · HTTP · syslog
//!  access-index ─► the hub's admin socket
//! ```
//!
//! Works on a stopped box as well as on a running one, and on a copy of a log outside any data
//! folder (`--folder`). Invariant: nothing here changes a log.

use std::path::PathBuf;

use crate::cli::Context;
use crate::layout::Part;

mod selection;
mod moment;
mod filter;
mod words;
mod progress;
mod verify;
mod prove;
mod search;
mod export;
mod report;
mod show;
mod index;
pub(crate) mod access_index;
mod pin;
pub(crate) mod heads;
mod push;

use selection::Selection;

/// `audit` and what holds for all its subcommands.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the log of this part
    #[arg(long, global = true)]
    part: Option<Part>,
    /// Pinned public keys; otherwise the file beside the data folder, DIR.audit-keys
    #[arg(long, global = true, value_name = "FILE")]
    pins: Option<PathBuf>,
    /// A copy of one log's folder, instead of the logs of a data folder
    #[arg(long, global = true, value_name = "DIR")]
    folder: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// Subcommands of `audit`.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check every record, signed head and proof of deletion; exit code 1 names the first bad one
    Verify(verify::Args),
    /// Write a proof that one record is in the log, or that one head continues another
    Prove(prove::ProveArgs),
    /// Check a proof with nothing but the pinned key, and say in words what it proves
    CheckProof(prove::CheckArgs),
    /// Find accesses and other records, one line each
    Search(search::Args),
    /// Write records as CSV or JSON lines
    Export(export::Args),
    /// Reports: denials, readers, card checks, unfinished work
    #[command(subcommand)]
    Report(report::Command),
    /// Print the newest records as they are
    Show(show::Args),
    /// Make the search indexes of closed segments anew
    Index(index::Args),
    /// Bring the newest signed heads to the sinks of config/sekisho.toml
    Push(push::Args),
    /// The hub's index for access histories: its state, or make it anew
    AccessIndex(access_index::Args),
    /// Pin the present public keys, where the file of pins was lost
    Pin,
}

/// Runs `audit`.
///
/// # Errors
/// When a log cannot be read, or something else that was named.
pub(crate) async fn run(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let select = || Selection::of(args, context);
    match &args.command {
        Command::Verify(verify) => verify::run(verify, &select()?, context.json),
        Command::Prove(prove) => prove::prove(prove, &select()?),
        Command::CheckProof(check) => {
            prove::check(check, &Selection::pins_of(args, context)?, context.json)
        }
        Command::Search(search) => search::run(search, &select()?, context),
        Command::Export(export) => export::run(export, &select()?, context),
        Command::Report(report) => report::run(report, &select()?, context.json),
        Command::Show(show) => show::run(show, &select()?, context.json),
        Command::Index(index) => index::run(index, &select()?, context.json),
        Command::Push(push) => push::run(push, context).await,
        Command::AccessIndex(index) => access_index::run(index, context).await,
        Command::Pin => pin::run(context),
    }
}
