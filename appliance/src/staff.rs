//! `sekisho staff add|lock`: accounts of an office's staff in the hub.
//!
//! A password is never an argument (other users could read it in the process list): it is read
//! from a file or made here.

use std::path::{Path, PathBuf};

use policies::identity::{Job, OfficeNumber};
use serde_json::json;

use crate::admin::Admin;
use crate::cli::Context;
use crate::exit::usage;
use crate::files;
use crate::output;
use crate::secrets;

/// Subcommands of `staff`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an account, or set the password of an existing one
    Add {
        #[command(flatten)]
        account: Account,
        /// The person's name
        #[arg(long)]
        name: String,
        /// 職種: care-manager, physician, nurse, care-worker, social-worker or clerk
        #[arg(long)]
        job: Job,
        /// A file whose first line is the password; without it one is made and printed once
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Lock an account; its sessions end at once
    Lock {
        #[command(flatten)]
        account: Account,
        /// Return only after every gateway applies it; exit code 1 otherwise
        #[arg(long)]
        wait: bool,
    },
}

/// Which account.
#[derive(Debug, clap::Args)]
pub(crate) struct Account {
    /// 事業所番号
    #[arg(long, value_name = "NUMBER")]
    office: OfficeNumber,
    /// The staff id, unique within the office
    #[arg(long)]
    id: String,
    /// Who does it; kept in the audit log
    #[arg(long, value_name = "NAME", default_value = "operator")]
    operator: String,
}

/// Runs `staff`.
///
/// # Errors
/// When the hub does not run or refuses.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let hub = Admin::hub(&context.layout);
    match command {
        Command::Add { account, name, job, password_file } => {
            let given = password_file.as_deref().map(password).transpose()?;
            let made = if given.is_none() { Some(secrets::random_text(20)?) } else { None };
            let body = json!({
                "office": account.office,
                "id": account.id,
                "name": name,
                "job": job,
                "password": given.as_ref().or(made.as_ref()),
                "operator": account.operator,
            });
            hub.post("/staff", &body).await?;
            let value = json!({"office": account.office, "id": account.id, "password": made});
            output::data(context.json, &value, || match &made {
                Some(made) => format!("staff `{}` may log in with password {made}", account.id),
                None => format!("staff `{}` may log in", account.id),
            });
        }
        Command::Lock { account, wait } => {
            let body = json!({
                "office": account.office,
                "id": account.id,
                "operator": account.operator,
                "wait": wait,
            });
            let answer = hub.post("/staff/lock", &body).await?;
            output::data(context.json, &answer, || format!("staff `{}` is locked", account.id));
            return Ok(!wait || output::is_acknowledged(&answer));
        }
    }
    Ok(true)
}

fn password(path: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(files::read_given(path)?)
        .map_err(|_| usage(format!("password file `{}` is not UTF-8", path.display())))?;
    match text.lines().next().map(str::trim) {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        Some(_) | None => Err(usage(format!("password file `{}` is empty", path.display()))),
    }
}
