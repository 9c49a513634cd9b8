//! `sekisho audit access-index [status|rebuild]`: the hub's index of the gateway's records, from
//! which access histories are answered.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::admin::Admin;
use crate::audit_keys::{self, Pins};
use crate::cli::Context;
use crate::clock;
use crate::layout::{Layout, Part};
use crate::output;
use crate::part_config;

/// Arguments of `access-index`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(value_enum, default_value = "status")]
    what: What,
}

/// What is done with the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Say how far it is
    Status,
    /// Forget it and read the gateway's records again from the first
    Rebuild,
}

/// Runs `access-index`.
///
/// # Errors
/// When the hub does not run or refuses.
pub(super) async fn run(args: &Args, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let hub = Admin::hub(&context.layout);
    let answer = match args.what {
        What::Status => hub.get("/access-index").await?,
        What::Rebuild => hub.post("/access-index/rebuild", &json!({})).await?,
    };
    output::data(context.json, &answer, || {
        let mut lines: Vec<String> = answer
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| format!("{}: {}", key.replace('_', " "), output::field(&answer, key)))
            .collect();
        if args.what == What::Rebuild {
            lines.insert(0, "the index is made anew; see how far it is with `status`".to_owned());
        }
        lines.join("\n")
    });
    Ok(true)
}

/// How far the index of a running box is, in words; nothing where the hub keeps none.
/// `is_settled`: gateway and hub have been up long enough to have found each other.
///
/// # Errors
/// With what is wrong: not connected, or behind the gateway's log for more than a minute.
pub(crate) async fn health(layout: &Layout, is_settled: bool) -> anyhow::Result<Option<String>> {
    if part_config::find(layout, Part::Hub, "audit_stream_socket")?.is_none() {
        return Ok(None);
    }
    let answer = Admin::hub(layout).get("/access-index").await.context("access index")?;
    let folder = audit_keys::log_folder(layout, Part::Gateway)?;
    let pins = Pins::read(&layout.pins())?;
    let through = answer["through"].as_u64().unwrap_or(0);
    let behind = tokio::task::spawn_blocking(move || {
        let key = pins.of(Part::Gateway)?;
        let newest = audit_log::latest_checkpoint(&folder, key).ok().flatten()?.size();
        let waits_s = if newest > through { waiting_s(&folder, through + 1) } else { 0 };
        Some(Behind { newest, waits_s })
    });
    judged(&answer, behind.await.ok().flatten(), is_settled).map(Some)
}

/// The gateway's log against the index.
#[derive(Debug, Clone, Copy)]
struct Behind {
    /// Records that its newest head covers.
    newest: u64,
    /// How long the first record that is not in the index has been on disk.
    waits_s: u64,
}

fn judged(answer: &Value, behind: Option<Behind>, is_settled: bool) -> anyhow::Result<String> {
    let through = answer["through"].as_u64().unwrap_or(0);
    let anew = if answer["rebuilding"] == json!(true) { ", being made anew" } else { "" };
    let of = behind.map(|behind| format!(" of {}", behind.newest)).unwrap_or_default();
    let how_far = format!("access index through {through}{of}{anew}");
    anyhow::ensure!(
        answer["connected"] == json!(true) || !is_settled,
        "{how_far}: the hub does not reach the gateway's records, so access histories stand still: \
         look at the logs of hub and gateway"
    );
    if let Some(behind) = behind
        && behind.waits_s > LAG_S
    {
        anyhow::bail!(
            "{how_far}: {} s behind, so access histories lack what came since",
            behind.waits_s
        );
    }
    Ok(how_far)
}

/// The age of a record, or of the first that is left after it.
fn waiting_s(folder: &Path, number: u64) -> u64 {
    let first = audit_log::read_from(folder, number).next().and_then(Result::ok);
    let at = first.and_then(|entry| OffsetDateTime::parse(&entry.at, &Rfc3339).ok());
    let at = at.and_then(|at| u64::try_from(at.unix_timestamp()).ok());
    at.map_or(0, |at| clock::now_s().saturating_sub(at))
}

/// An index further behind than this is told, in seconds.
const LAG_S: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_stands_still_is_told() {
        let answer = |connected: bool, anew: bool| {
            let mut answer = json!({"through": 7, "records": 3, "connected": connected});
            answer["rebuilding"] = json!(anew);
            answer
        };
        let behind = |waits_s| Some(Behind { newest: 9, waits_s });
        let told = judged(&answer(true, false), behind(3), true).unwrap();
        assert_eq!(told, "access index through 7 of 9");
        judged(&answer(false, false), behind(3), false).unwrap();
        let error = judged(&answer(false, false), behind(3), true).unwrap_err().to_string();
        assert!(error.contains("does not reach the gateway's records"), "{error}");
        let error = judged(&answer(true, true), behind(61), true).unwrap_err().to_string();
        assert!(error.contains("being made anew: 61 s behind"), "{error}");
    }
}
