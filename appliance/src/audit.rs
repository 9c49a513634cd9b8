//! `sekisho audit verify|show`: the audit logs of the four programs.
//!
//! Works on a stopped box as well as on a running one.

use anyhow::Context as _;
use audit_log::{Problem, Summary, VerifyError};
use serde_json::{Value, json};

use crate::cli::Context;
use crate::layout::{Layout, Part};
use crate::output;

/// Subcommands of `audit`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check every record and name the first bad one; exit code 1 if there is one
    Verify {
        /// Only the log of this part
        #[arg(long)]
        part: Option<Part>,
    },
    /// Print records
    Show {
        /// Only the log of this part
        #[arg(long)]
        part: Option<Part>,
        /// Only this many of the newest records of each log
        #[arg(long, value_name = "N", default_value_t = 20)]
        last: usize,
    },
}

/// Runs `audit`.
///
/// # Errors
/// When a log cannot be read.
pub(crate) fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    match command {
        Command::Verify { part } => Ok(verify(*part, context)),
        Command::Show { part, last } => show(*part, *last, context),
    }
}

fn parts(part: Option<Part>) -> Vec<Part> {
    part.map_or_else(|| Part::ALL.to_vec(), |part| vec![part])
}

fn verify(part: Option<Part>, context: &Context) -> bool {
    let results: Vec<(Part, Result<Summary, VerifyError>)> =
        parts(part).into_iter().map(|part| (part, verified(&context.layout, part))).collect();
    let good = results.iter().all(|(_, result)| result.is_ok());
    let value: Vec<Value> = results.iter().map(|(part, result)| to_json(*part, result)).collect();
    output::data(context.json, &json!({"ok": good, "logs": value}), || {
        let lines: Vec<String> =
            results.iter().map(|(part, result)| to_text(*part, result)).collect();
        lines.join("\n")
    });
    good
}

/// Verifies one log. A running program may be in the middle of writing the last line: then the
/// tail is looked at again a little later before it is called torn.
fn verified(layout: &Layout, part: Part) -> Result<Summary, VerifyError> {
    let folder = layout.audit(part);
    let mut result = audit_log::verify(&folder);
    for _ in 0..TAIL_TRIES {
        let torn = matches!(&result, Err(VerifyError { problem: Problem::TornTail { .. }, .. }));
        if !torn {
            break;
        }
        std::thread::sleep(TAIL_WAIT);
        result = audit_log::verify(&folder);
    }
    result
}

fn to_json(part: Part, result: &Result<Summary, VerifyError>) -> Value {
    match result {
        Ok(summary) => json!({"part": part.as_str(), "ok": true, "summary": summary}),
        Err(error) => json!({
            "part": part.as_str(),
            "ok": false,
            "file": error.file,
            "line": error.line,
            "record": error.record,
            "problem": error.problem.to_string(),
        }),
    }
}

fn to_text(part: Part, result: &Result<Summary, VerifyError>) -> String {
    match result {
        Ok(Summary { records, segments, head, .. }) => {
            let head: String = head.chars().take(16).collect();
            format!("✓ {}: {records} records in {segments} segments, head {head}…", part.as_str())
        }
        Err(error) => format!("✗ {}: {error}", part.as_str()),
    }
}

fn show(part: Option<Part>, last: usize, context: &Context) -> anyhow::Result<bool> {
    let mut shown = Vec::new();
    for part in parts(part) {
        let folder = context.layout.audit(part);
        let mut newest = std::collections::VecDeque::new();
        for entry in audit_log::read(&folder) {
            let entry = entry.with_context(|| format!("audit log of {}", part.as_str()))?;
            newest.push_back(entry);
            if newest.len() > last {
                newest.pop_front();
            }
        }
        for entry in newest {
            let mut value = serde_json::to_value(&entry)?;
            value["part"] = json!(part.as_str());
            shown.push(value);
        }
    }
    shown.sort_by_key(|value| output::field(value, "at"));
    output::data(context.json, &Value::Array(shown.clone()), || {
        let lines: Vec<String> = shown.iter().map(record_line).collect();
        lines.join("\n")
    });
    Ok(true)
}

fn record_line(value: &Value) -> String {
    let text = |key: &str| output::field(value, key);
    format!("{} {} {} {}", text("at"), text("part"), text("number"), text("event"))
}

/// How often a torn tail is looked at again.
const TAIL_TRIES: u32 = 5;

/// The wait between two looks.
const TAIL_WAIT: std::time::Duration = std::time::Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use audit_log::{AuditLog, Durability, Event, Options};

    #[test]
    fn a_changed_byte_is_named_by_part_file_and_record() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        let dir = layout.audit(Part::Hub);
        let options = Options {
            durability: Durability::BeforeResponse,
            segment_bytes_max: 1 << 20,
            source: "hub".to_owned(),
        };
        let log = AuditLog::open(&dir, options).unwrap();
        for _ in 0..3 {
            let receipt = log.append(&Event::ServiceStopped).unwrap();
            receipt.durable_blocking().unwrap();
        }
        log.close();
        assert!(verified(&layout, Part::Hub).is_ok());
        let file = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|kind| kind == "jsonl"))
            .unwrap();
        let text = std::fs::read_to_string(&file).unwrap().replacen("stopped", "stoPped", 1);
        std::fs::write(&file, text).unwrap();
        let line = to_text(Part::Hub, &verified(&layout, Part::Hub));
        assert!(line.starts_with("✗ hub: ") && line.contains("record 1"), "{line}");
    }
}
