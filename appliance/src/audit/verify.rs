//! `sekisho audit verify`: every record, head and proof of deletion, and the first bad one.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use audit_log::{Checkpoint, Problem, Summary, VerifyError, VerifyOptions, VerifyingKey};
use serde_json::{Value, json};

use crate::exit::usage;
use crate::files;
use crate::output;

use super::heads::drop_folder;
use super::progress::Progress;
use super::selection::{Log, Selection};

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Trust the records up to this checkpoint, and check only that log from there on
    #[arg(long, value_name = "CHECKPOINT_FILE")]
    from: Option<PathBuf>,
    /// A folder of heads that left the box: each must lie in its log
    #[arg(long, value_name = "DIR")]
    heads: Option<PathBuf>,
}

/// One log and what came of it.
struct Verified {
    name: &'static str,
    heads: usize,
    /// Heads were asked for and none of this log was found, in words.
    no_heads: Option<String>,
    result: Result<Summary, VerifyError>,
}

impl Verified {
    const fn is_good(&self) -> bool {
        self.result.is_ok() && self.no_heads.is_none()
    }
}

/// Runs `verify`; `false` when a log is bad.
///
/// # Errors
/// When a checkpoint that was named cannot be used, or no key is pinned.
pub(super) fn run(args: &Args, selection: &Selection, json: bool) -> anyhow::Result<bool> {
    let mut verified = Vec::new();
    for (log, options) in jobs(args, selection)? {
        let key = selection.key(log)?;
        let heads = options.heads.len();
        let result = one(log, key, &options);
        let asked = args.heads.as_deref().filter(|_| heads == 0);
        let no_heads = asked.map(|folder| no_heads(folder, key.name()));
        verified.push(Verified { name: log.name(), heads, no_heads, result });
    }
    let good = verified.iter().all(Verified::is_good);
    let value: Vec<Value> = verified.iter().map(to_json).collect();
    output::data(json, &json!({"ok": good, "logs": value}), || {
        let mut lines: Vec<String> = verified.iter().map(to_text).collect();
        let is_open = |log: &Verified| {
            log.result.as_ref().is_ok_and(|summary| !summary.unfinished.is_empty())
        };
        if selection.is_running && verified.iter().any(is_open) {
            lines.push("  (the box is running: what began a moment ago may still be open)".into());
        }
        lines.join("\n")
    });
    Ok(good)
}

/// Which logs are looked at, and what is known of them from outside.
fn jobs<'a>(
    args: &Args,
    selection: &'a Selection,
) -> anyhow::Result<Vec<(&'a Log, VerifyOptions)>> {
    if let Some(file) = &args.from {
        let note = note(file)?;
        let log = selection.named(note.lines().next().unwrap_or_default())?;
        let key = selection.key(log)?;
        let from = open(&note, key, file)?;
        let heads = outside_heads(args, key)?;
        return Ok(vec![(log, VerifyOptions { from: Some(from), heads })]);
    }
    selection
        .logs
        .iter()
        .map(|log| {
            let heads = outside_heads(args, selection.key(log)?)?;
            Ok((log, VerifyOptions { from: None, heads }))
        })
        .collect()
}

/// The heads of one log in the folder that was named: in its own folder, as a file drop has it,
/// or directly there.
fn outside_heads(args: &Args, key: &VerifyingKey) -> anyhow::Result<Vec<Checkpoint>> {
    let Some(folder) = &args.heads else { return Ok(Vec::new()) };
    if !folder.is_dir() {
        return Err(usage(format!("`{}` is not a folder: check --heads", folder.display())));
    }
    let own = folder.join(drop_folder(key.name()));
    let folders = [own.as_path(), folder.as_path()];
    let mut heads = Vec::new();
    for file in folders.into_iter().flat_map(checkpoint_files) {
        let note = note(&file)?;
        // A folder may hold the heads of several logs side by side.
        if note.lines().next() == Some(key.name()) {
            heads.push(open(&note, key, &file)?);
        }
    }
    heads.sort_by_key(Checkpoint::size);
    Ok(heads)
}

/// A log that is set back shows by its heads alone: where they lie must be known.
fn no_heads(folder: &Path, origin: &str) -> String {
    format!(
        "no head of `{origin}` lies in `{}` or in its folder `{}`: name the folder that the heads \
         of this box were brought to",
        folder.display(),
        drop_folder(origin)
    )
}

fn checkpoint_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| {
        file.extension().is_some_and(|kind| kind == "checkpoint")
            || file.file_name().is_some_and(|name| name == "latest")
    });
    files.sort();
    files
}

/// Reads a file with a signed note.
///
/// # Errors
/// A usage error that names it.
pub(super) fn note(file: &Path) -> anyhow::Result<String> {
    let bytes = files::read_at_most(file, audit_log::CHECKPOINT_BYTES_MAX as u64)
        .map_err(|error| usage(format!("{error:#}: check the path")))?;
    String::from_utf8(bytes)
        .map_err(|_| usage(format!("file `{}` is not a checkpoint", file.display())))
}

/// Opens a checkpoint of a file.
///
/// # Errors
/// When the pinned key did not sign it.
pub(super) fn open(note: &str, key: &VerifyingKey, file: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(note, key).with_context(|| format!("checkpoint `{}`", file.display()))
}

/// Verifies one log. A running program may be in the middle of writing the last line: then the
/// tail is looked at again a little later before it is called torn.
fn one(log: &Log, key: &VerifyingKey, options: &VerifyOptions) -> Result<Summary, VerifyError> {
    let mut progress = Progress::new();
    let mut tell = |records: u64| {
        progress.tell(|| format!("{}: {records} records", log.name()));
    };
    let mut result = audit_log::verify_with(&log.folder, key, options, &mut tell);
    for _ in 0..TAIL_TRIES {
        let torn = matches!(&result, Err(VerifyError { problem: Problem::TornTail { .. }, .. }));
        if !torn {
            break;
        }
        std::thread::sleep(TAIL_WAIT);
        result = audit_log::verify_with(&log.folder, key, options, &mut tell);
    }
    result
}

fn to_json(log: &Verified) -> Value {
    match &log.result {
        Ok(summary) => {
            json!({"part": log.name, "ok": log.is_good(), "heads": log.heads,
                   "problem": log.no_heads, "summary": summary})
        }
        Err(error) => json!({
            "part": log.name,
            "ok": false,
            "file": error.file,
            "line": error.line,
            "record": error.record,
            "problem": error.problem.to_string(),
        }),
    }
}

fn to_text(log: &Verified) -> String {
    match &log.result {
        Ok(summary) => match &log.no_heads {
            Some(why) => format!("✗ {}: {why}", log.name),
            None => sound(log, summary),
        },
        Err(error) => format!("✗ {}: {error}", log.name),
    }
}

fn sound(log: &Verified, summary: &Summary) -> String {
    let head: String = summary.head.chars().take(16).collect();
    let mut lines = vec![format!(
        "✓ {}: {} records in {} segments, {} checkpoints checked, {} records covered, head {head}…",
        log.name, summary.records, summary.segments, summary.checkpoints, summary.covered
    )];
    if let (Some(first), Some(last)) = (&summary.first_at, &summary.last_at) {
        lines.push(format!("    from record {} ({first}) to {last}", summary.first_record));
    }
    if log.heads > 0 {
        lines.push(format!("    {} heads that left the box lie in it", log.heads));
    }
    if let Some(deleted) = &summary.deleted {
        lines.push(format!(
            "    deleted by retention on {}: records 1 to {}, until {}",
            deleted.at, deleted.through_record, deleted.until
        ));
    }
    let open = summary.unfinished.len() as u64 + summary.unfinished_more;
    if open > 0 {
        lines.push(format!("    without an end: {open} permits or intents, request ids"));
        let named = summary.unfinished.iter().take(NAMED_MAX);
        lines.extend(named.map(|id| format!("      {id}")));
        let more = open.saturating_sub(NAMED_MAX as u64);
        lines.extend((more > 0).then(|| format!("      … and {more} more")));
    }
    lines.join("\n")
}

/// At most this many request ids are named.
const NAMED_MAX: usize = 20;

/// How often a torn tail is looked at again.
const TAIL_TRIES: u32 = 5;

/// The wait between two looks.
const TAIL_WAIT: std::time::Duration = std::time::Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Part;
    use audit_log::{AuditLog, CheckpointKey, Event, Options};

    #[test]
    fn a_changed_byte_is_named_by_part_file_and_record() {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = CheckpointKey::generate("id.example/audit/hub").unwrap();
        let public = key.verifying_key().clone();
        let log = Log { part: Part::Hub, folder: folder.path().to_owned() };
        let writer = AuditLog::open(&log.folder, Options::new("hub", key)).unwrap();
        for _ in 0..3 {
            writer.append(&Event::ServiceStopped).unwrap().durable_blocking().unwrap();
        }
        writer.close();
        let verified = || one(&log, &public, &VerifyOptions::default());
        let summary = verified().unwrap();
        let text = sound(
            &Verified { name: "hub", heads: 0, no_heads: None, result: verified() },
            &summary,
        );
        assert!(text.starts_with("✓ hub: ") && text.contains("checkpoints"), "{text}");
        let file = log.folder.join("00000001.jsonl");
        let text = std::fs::read_to_string(&file).unwrap().replacen("stopped", "stoPped", 1);
        std::fs::write(&file, text).unwrap();
        let line = to_text(&Verified { name: "hub", heads: 0, no_heads: None, result: verified() });
        assert!(line.starts_with("✗ hub: ") && line.contains("record 1"), "{line}");
    }

    #[test]
    fn a_folder_without_heads_of_the_log_shows_nothing_and_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = CheckpointKey::generate("id.example/audit/hub").unwrap();
        let pins = folder.path().join("pins");
        std::fs::write(&pins, key.verifying_key().as_str()).unwrap();
        let log = Log { part: Part::Hub, folder: folder.path().join("log") };
        AuditLog::open(&log.folder, Options::new("hub", key)).unwrap().close();
        let pins = crate::audit_keys::Pins::read(&pins).unwrap();
        let selection = Selection::for_test(vec![log], pins);
        let heads = |folder: Option<PathBuf>| Args { from: None, heads: folder };
        assert!(run(&heads(None), &selection, false).unwrap());
        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(!run(&heads(Some(empty.clone())), &selection, false).unwrap());
        let told = no_heads(&empty, "id.example/audit/hub");
        assert!(told.contains("`id.example/audit/hub`") && told.contains("empty"), "{told}");
    }

    #[test]
    fn heads_of_other_logs_and_other_files_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = CheckpointKey::generate("id.example/audit/hub").unwrap();
        let log = folder.path().join("log");
        let writer = AuditLog::open(&log, Options::new("hub", key.clone())).unwrap();
        writer.append(&Event::ServiceStopped).unwrap().durable_blocking().unwrap();
        writer.close();
        let newest = audit_log::latest_checkpoint(&log, key.verifying_key()).unwrap().unwrap();
        let drop = folder.path().join("drop");
        let own = drop.join(drop_folder(key.verifying_key().name()));
        std::fs::create_dir_all(&own).unwrap();
        for (name, text) in [
            ("00000000000000000001.checkpoint", newest.note()),
            ("latest", newest.note()),
            ("other.checkpoint", "id.example/audit/ra\n1\n"),
            ("notes.txt", "mine"),
        ] {
            std::fs::write(own.join(name), text).unwrap();
        }
        let args = Args { from: None, heads: Some(drop) };
        assert_eq!(outside_heads(&args, key.verifying_key()).unwrap().len(), 2);
        let (other, _) = CheckpointKey::generate("id.example/audit/hub").unwrap();
        let error = outside_heads(&args, other.verifying_key()).unwrap_err();
        assert!(format!("{error:#}").contains("was not signed by the pinned key"), "{error:#}");
    }
}
