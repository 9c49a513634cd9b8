//! `sekisho completion SHELL`: a completion script on standard output.

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::output;

/// Arguments of `completion`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Runs `completion`.
///
/// # Errors
/// Never, in practice: the script is text.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    output::line(String::from_utf8(script(args.shell))?.trim_end());
    Ok(true)
}

fn script(shell: Shell) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sekisho", &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_the_subcommands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(script(shell)).unwrap();
            assert!(text.contains("doctor") && text.contains("revoke"), "{shell:?}");
        }
    }
}
