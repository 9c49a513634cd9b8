//! `sekisho`: the operator's command. Starts and stops the box, and speaks to the parts' admin
//! sockets.
//!
//! ```text
//!  arguments ─► cli ─► one file per subcommand ─► data folder (layout, settings, part_config)
//!                                             ├─► processes   (supervisor, process, part)
//!                                             └─► admin sockets (admin)
//! ```

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

mod exit;
mod output;
mod clock;
mod files;
mod gateway;
mod layout;
mod lock;
mod settings;
mod secrets;
mod audit_keys;
mod lost;
mod toml_text;
mod part_config;
mod process;
mod part;
mod supervisor;
mod admin;
mod cli;
mod up;
mod demo;
mod down;
mod status;
mod client;
mod top;
mod tour;
mod office;
mod code;
mod cert;
mod policy;
mod registration;
mod staff;
mod audit;
mod doctor;
mod completion;

fn main() -> ExitCode {
    let arguments = match cli::Cli::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refused(&error),
    };
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(exit::FAILURE),
        Err(error) => {
            output::progress(&exit::error_line(&error));
            ExitCode::from(exit::exit_code(&error))
        }
    }
}

/// Help and version are answers; everything else is one line and exit code 64.
fn refused(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _closed_pipe = error.print();
    } else {
        output::progress(&exit::usage_line(&error.to_string()));
    }
    if asked {
        return ExitCode::SUCCESS;
    }
    ExitCode::from(exit::BAD_USAGE)
}

fn run(arguments: cli::Cli) -> anyhow::Result<bool> {
    let _already_installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(cli::run(arguments))
}
