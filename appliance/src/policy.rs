//! `sekisho policy …`: the sharing matrix, policy folders, and why a request is allowed or refused.
//!
//! ```text
//!  matrix ─ the table          check · test · diff · sign ─ a folder, before it is used
//!  explain ─ one decision      shadow · promote ─ a folder into the gateway
//! ```
//!
//! Everything is decided with the gateway's own code. A folder that is refused ends with exit code
//! 1 and every problem on a line of its own: file, line, column, what is wrong, what to do.

use std::path::PathBuf;

use policies::identity::OfficeNumber;
use policies::matrix::Profile;
use serde_json::json;

use crate::cli::Context;
use crate::output;

mod terms;
mod feeds;
mod folder;
mod diff;
mod population;
mod recorded;
mod explain;
mod why;
mod place;
mod live;

pub(crate) use place::make as make_place;

use terms::OwnTerms;

/// Subcommands of `policy`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the sharing matrix
    Matrix {
        /// Which reading of it: deck-2025 or impl-2027; by default the one in force
        #[arg(long)]
        profile: Option<Profile>,
    },
    /// Check a policy folder, or some of its files, as the gateway would
    Check {
        /// The folder, or files of one
        #[arg(required = true, value_name = "FILES|DIR")]
        paths: Vec<PathBuf>,
    },
    /// Run the authors' cases of a policy folder (tests.json)
    Test {
        /// The folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Say why a request was or would be allowed or refused, and who can change it
    Explain(Box<explain::Explain>),
    /// What two policies decide differently, and which recorded requests that would have changed
    Diff(diff::Args),
    /// Add an operator's signature to a policy folder that opens a cell
    Sign(folder::Sign),
    /// A candidate beside the active policy: differences are counted, nothing is enforced
    #[command(subcommand)]
    Shadow(live::Shadow),
    /// Make a policy folder the active one
    Promote {
        /// The folder; by default the one in shadow
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

/// Runs `policy`.
///
/// # Errors
/// When a folder, the box or the audit log cannot be read.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    match command {
        Command::Matrix { profile } => {
            let matrix = terms::built_in(*profile, &context.layout)?;
            let value = json!(matrix.fields());
            output::data(context.json, &value, || matrix.render().trim_end().to_owned());
            Ok(true)
        }
        Command::Check { paths } => folder::check(paths, context).await,
        Command::Test { folder } => folder::test(folder, context),
        Command::Explain(wanted) => explain::run(wanted, context).await,
        Command::Diff(args) => diff::run(args, context).await,
        Command::Sign(args) => folder::sign(args, context),
        Command::Shadow(command) => live::shadow(command, context).await,
        Command::Promote { folder } => live::promote(folder.as_deref(), context).await,
    }
}
