//! `sekisho audit index rebuild`: the search indexes of closed segments, made anew from them.

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::output;

use super::progress::Progress;
use super::selection::Selection;

/// Arguments of `index`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(value_enum, default_value = "rebuild")]
    what: What,
}

/// What is done with the indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Make them anew
    Rebuild,
}

/// Runs `index`.
///
/// # Errors
/// When a log cannot be read or an index not be written.
pub(super) fn run(args: &Args, selection: &Selection, json: bool) -> anyhow::Result<bool> {
    let What::Rebuild = args.what;
    let mut rebuilt: Vec<(&str, u64)> = Vec::new();
    for log in &selection.logs {
        let mut progress = Progress::new();
        let segments = audit_log::rebuild_index(&log.folder, &mut |done, all| {
            progress.tell(|| format!("{}: segment {done} of {all}", log.name()));
        })
        .with_context(|| format!("indexes of {}", log.name()))?;
        rebuilt.push((log.name(), segments));
    }
    let values: Vec<Value> =
        rebuilt.iter().map(|(part, n)| json!({"part": part, "segments": n})).collect();
    output::data(json, &Value::Array(values), || {
        let lines = rebuilt.iter().map(|(part, n)| format!("{part}: {n} closed segments indexed"));
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(true)
}
