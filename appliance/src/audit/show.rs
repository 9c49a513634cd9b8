//! `sekisho audit show`: the newest records of each log, as they are.

use std::collections::VecDeque;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::output;

use super::selection::Selection;
use super::words;

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this many of the newest records of each log
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
}

/// Runs `show`.
///
/// # Errors
/// When a log cannot be read.
pub(super) fn run(args: &Args, selection: &Selection, json: bool) -> anyhow::Result<bool> {
    let mut shown = Vec::new();
    for log in &selection.logs {
        let mut newest = VecDeque::new();
        for entry in audit_log::read(&log.folder) {
            newest.push_back(entry.with_context(|| format!("audit log of {}", log.name()))?);
            if newest.len() > args.last {
                newest.pop_front();
            }
        }
        shown.extend(newest.into_iter().map(|entry| (log.name(), entry)));
    }
    shown.sort_by(|(_, one), (_, other)| one.at.cmp(&other.at));
    let values: anyhow::Result<Vec<Value>> = shown
        .iter()
        .map(|(part, entry)| {
            let mut value = serde_json::to_value(entry)?;
            value["part"] = json!(part);
            Ok(value)
        })
        .collect();
    output::data(json, &Value::Array(values?), || {
        let lines = shown.iter().map(|(part, entry)| {
            format!("{} {part} #{} {}", entry.at, entry.number, words::of(&entry.event))
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(true)
}
