//! How the command ends: 0 good, 1 failure, 64 bad usage or configuration (EX_USAGE, sysexits(3)),
//! and one clear line on standard error.

use std::fmt;

/// Marks an error as the caller's: a bad argument, a bad file, a bad configuration.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error that ends the command with 64.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(message.into()))
}

/// The exit code for an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Usage>()) { BAD_USAGE } else { FAILURE }
}

/// The line printed for an error: the whole chain, joined by `: `, on one line.
pub(crate) fn error_line(error: &anyhow::Error) -> String {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let text = chain.join(": ");
    let words: Vec<&str> = text.split_whitespace().collect();
    format!("error: {}", words.join(" "))
}

/// What is wrong with the arguments, as one line: clap's text without its usage lines.
pub(crate) fn usage_line(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    let told: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    format!("{}; see `sekisho --help`", told.join(" "))
}

/// Exit code of a failure.
pub(crate) const FAILURE: u8 = 1;

/// Exit code of bad usage or configuration.
pub(crate) const BAD_USAGE: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn usage_errors_are_one_line() {
        let text = "error: missing:\n  --office <N>\n\nUsage: sekisho\n\nFor more information\n";
        assert_eq!(usage_line(text), "error: missing: --office <N>; see `sekisho --help`");
    }

    #[test]
    fn usage_is_found_below_context_and_the_line_is_one_line() {
        let error = Err::<(), _>(usage("no\nsuch key")).context("config file `x`").unwrap_err();
        assert_eq!(exit_code(&error), BAD_USAGE);
        assert_eq!(error_line(&error), "error: config file `x`: no such key");
        assert_eq!(exit_code(&anyhow::anyhow!("boom")), FAILURE);
    }
}
