//! `sekisho audit show`: the newest records of each log, as they are.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::Context as _;
use audit_log::Entry;
use serde_json::{Value, json};

use crate::files;
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
        let newest = newest(&log.folder, args.last);
        let newest = newest.with_context(|| format!("audit log of {}", log.name()))?;
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

/// The newest records of a log. Its newest head says about where they are: nothing is believed of
/// it but that, and where it is wrong the whole log is read.
fn newest(folder: &Path, count: usize) -> Result<VecDeque<Entry>, audit_log::Error> {
    let covered = files::read_at_most(&folder.join("checkpoint"), 4096).ok();
    let covered = covered.and_then(|note| String::from_utf8(note).ok());
    let covered = covered.and_then(|note| note.lines().nth(1)?.parse::<u64>().ok()).unwrap_or(0);
    let from = covered.saturating_sub(count as u64).max(1);
    let newest = last_of(audit_log::read_from(folder, from), count)?;
    if newest.len() < count && from > 1 {
        return last_of(audit_log::read(folder), count);
    }
    Ok(newest)
}

fn last_of(
    entries: impl Iterator<Item = Result<Entry, audit_log::Error>>,
    count: usize,
) -> Result<VecDeque<Entry>, audit_log::Error> {
    let mut newest = VecDeque::new();
    for entry in entries {
        newest.push_back(entry?);
        if newest.len() > count {
            newest.pop_front();
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_log::{AuditLog, CheckpointKey, Event, Options};

    #[test]
    fn the_newest_records_are_those_whatever_the_head_says() {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = CheckpointKey::generate("id.example/audit/hub").unwrap();
        let log = AuditLog::open(folder.path(), Options::new("hub", key)).unwrap();
        for _ in 0..30 {
            log.append(&Event::ServiceStopped).unwrap().durable_blocking().unwrap();
        }
        log.close();
        let all: Vec<Entry> = audit_log::read(folder.path()).map(Result::unwrap).collect();
        let checkpoint = folder.path().join("checkpoint");
        let text = std::fs::read_to_string(&checkpoint).unwrap();
        for note in [text.as_str(), "o\n999999\n", "o\n1\n", "", "o\n"] {
            std::fs::write(&checkpoint, note).unwrap();
            for count in [0, 1, 7, all.len(), all.len() + 5] {
                let shown = newest(folder.path(), count).unwrap();
                let shown: Vec<Entry> = shown.into();
                assert_eq!(shown, all[all.len().saturating_sub(count)..], "{count} by `{note}`");
            }
        }
    }
}
