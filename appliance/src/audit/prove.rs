//! `sekisho audit prove` and `check-proof`: one record, or that one head continues another, shown
//! to somebody who has nothing but the pinned key.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use audit_log::{Checkpoint, ProofError, ProvedRecord, VerifyingKey};
use serde_json::json;

use crate::audit_keys::Pins;
use crate::exit::usage;
use crate::files;
use crate::output::{self, progress};

use super::selection::Selection;
use super::{verify, words};

/// Arguments of `prove`.
#[derive(Debug, clap::Args)]
pub(super) struct ProveArgs {
    /// Number of the record; needs --part
    #[arg(value_name = "RECORD", required_unless_present = "between",
          value_parser = clap::value_parser!(u64).range(1..))]
    record: Option<u64>,
    /// Two checkpoint files: prove that the newer head continues the older one
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], conflicts_with = "record")]
    between: Option<Vec<PathBuf>>,
    /// Write the proof here instead of to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `check-proof`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The proof
    #[arg(value_name = "FILE")]
    proof: PathBuf,
}

/// Runs `prove`.
///
/// # Errors
/// When there is no such record, or no head covers it yet.
pub(super) fn prove(args: &ProveArgs, selection: &Selection) -> anyhow::Result<bool> {
    let text = match (args.record, args.between.as_deref()) {
        (Some(record), _) => {
            let log = selection.only()?;
            audit_log::prove_record(&log.folder, record, selection.key(log)?)
                .with_context(|| format!("record {record} of {} is not proved", log.name()))?
        }
        (None, Some([old, new])) => between(old, new, selection)?,
        (None, _) => return Err(usage("name a record, or two checkpoints with --between")),
    };
    match &args.out {
        Some(file) => {
            files::write_private(file, text.as_bytes())?;
            progress(&format!("proof written to `{}`", file.display()));
        }
        None => output::line(text.trim_end_matches('\n')),
    }
    Ok(true)
}

fn between(old: &Path, new: &Path, selection: &Selection) -> anyhow::Result<String> {
    let (older, newer) = (verify::note(old)?, verify::note(new)?);
    let log = selection.named(newer.lines().next().unwrap_or_default())?;
    let key = selection.key(log)?;
    let older = verify::open(&older, key, old)?;
    let newer = verify::open(&newer, key, new)?;
    if older.size() > newer.size() {
        return Err(usage("the first checkpoint is the newer one: swap them"));
    }
    audit_log::prove_consistency(&log.folder, &older, &newer)
        .context("the newer head is not shown to continue the older one")
}

/// What a proof shows.
#[derive(Debug)]
enum Shown {
    Record(Box<ProvedRecord>),
    Continues(Box<(Checkpoint, Checkpoint)>),
}

/// Runs `check-proof`; `false` when the proof shows nothing.
///
/// # Errors
/// When the file cannot be read or no key is pinned.
pub(super) fn check(args: &CheckArgs, pins: &Pins, json: bool) -> anyhow::Result<bool> {
    let bytes = files::read_given(&args.proof)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| usage(format!("file `{}` is not a proof", args.proof.display())))?;
    let keys: Vec<&VerifyingKey> = pins.newest_first().collect();
    if keys.is_empty() {
        return Err(usage(format!("`{}` pins no key: use --pins", pins.path().display())));
    }
    // The key of the log that the proof names, where it is pinned; its error is the telling one.
    let claimed = keys.iter().find(|key| text.lines().any(|line| line == key.name()));
    let tried = claimed.or(keys.first());
    let result = tried.map(|key| shown(&text, key));
    let file = args.proof.display();
    match result {
        Some(Ok(shown)) => {
            output::data(json, &to_json(&shown), || format!("✓ {file}: {}", to_text(&shown)));
            Ok(true)
        }
        Some(Err(error)) => {
            let why = format!("{error:#}");
            let value = json!({"ok": false, "problem": why});
            output::data(json, &value, || format!("✗ {file}: {why}"));
            Ok(false)
        }
        None => Ok(false),
    }
}

fn shown(text: &str, key: &VerifyingKey) -> anyhow::Result<Shown> {
    let of_record = text.starts_with(RECORD_PROOF);
    let checked: Result<Shown, ProofError> = if of_record {
        audit_log::check_record_proof(text, key).map(|record| Shown::Record(Box::new(record)))
    } else {
        audit_log::check_consistency_proof(text, key).map(|heads| Shown::Continues(Box::new(heads)))
    };
    Ok(checked?)
}

fn to_text(shown: &Shown) -> String {
    match shown {
        Shown::Record(record) => format!(
            "record {} of `{}`, made {}, is in the log\n    {}\n    \
             signed head over {} records, {}",
            record.number,
            record.checkpoint.origin(),
            record.at,
            words::of(&record.event),
            record.checkpoint.size(),
            record.checkpoint.time()
        ),
        Shown::Continues(heads) => continues_text(heads),
    }
}

fn continues_text((older, newer): &(Checkpoint, Checkpoint)) -> String {
    format!(
        "the head of `{}` over {} records ({}) continues the one over {} records ({}): nothing of \
         those was changed, taken out or reordered",
        newer.origin(),
        newer.size(),
        newer.time(),
        older.size(),
        older.time()
    )
}

fn to_json(shown: &Shown) -> serde_json::Value {
    let head = |head: &Checkpoint| {
        json!({"origin": head.origin(), "size": head.size(), "root": head.root(),
               "time": head.time()})
    };
    match shown {
        Shown::Record(record) => json!({
            "ok": true, "proves": "record", "number": record.number, "at": record.at,
            "event": record.event, "checkpoint": head(&record.checkpoint),
        }),
        Shown::Continues(heads) => json!({
            "ok": true, "proves": "consistency", "older": head(&heads.0), "newer": head(&heads.1),
        }),
    }
}

/// How a proof of one record begins (c2sp.org/tlog-proof).
const RECORD_PROOF: &str = "c2sp.org/tlog-proof@";
