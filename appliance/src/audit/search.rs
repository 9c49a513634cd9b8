//! `sekisho audit search`: accesses and other records, one line each, oldest first over all logs.

use std::collections::VecDeque;

use anyhow::Context as _;
use audit_log::{Found, Query, SearchProgress};
use serde_json::{Value, json};

use crate::cli::Context;
use crate::output;

use super::filter::Filter;
use super::progress::Progress;
use super::selection::{Log, Selection};
use super::words;

/// Arguments of `search`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Only this many of the newest
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

/// Runs `search`.
///
/// # Errors
/// When a log cannot be read.
pub(super) fn run(args: &Args, selection: &Selection, context: &Context) -> anyhow::Result<bool> {
    let query = args.filter.query(context)?;
    let mut printed = Printed { json: context.json, count: 0 };
    let mut newest: VecDeque<(&'static str, Found)> = VecDeque::new();
    in_order(selection, &query, &mut |part, found| {
        match args.last {
            None => printed.print(part, &found),
            Some(last) => {
                newest.push_back((part, found));
                if newest.len() > last {
                    newest.pop_front();
                }
            }
        }
        Ok(())
    })?;
    for (part, found) in &newest {
        printed.print(part, found);
    }
    printed.end();
    Ok(true)
}

/// Calls `each` with everything that is found in the chosen logs, oldest first.
///
/// # Errors
/// When a log cannot be read; what `each` gives.
pub(super) fn in_order(
    selection: &Selection,
    query: &Query,
    each: &mut dyn FnMut(&'static str, Found) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut tellers: Vec<Box<dyn FnMut(SearchProgress)>> =
        selection.logs.iter().map(teller).collect();
    let mut streams = Vec::new();
    for (log, tell) in selection.logs.iter().zip(&mut tellers) {
        let stream = audit_log::search(&log.folder, query, tell.as_mut());
        streams.push((log, Box::new(stream) as Box<dyn Iterator<Item = _>>, None));
    }
    loop {
        for (log, stream, next) in &mut streams {
            if next.is_none() {
                let found: Option<Result<Found, audit_log::Error>> = stream.next();
                *next = found.transpose().with_context(|| format!("log of {}", log.name()))?;
            }
        }
        // Of those at the same time the first log's comes first.
        let earliest = streams
            .iter_mut()
            .filter(|(_, _, next)| next.is_some())
            .min_by(|(_, _, one), (_, _, other)| at(one.as_ref()).cmp(at(other.as_ref())));
        let Some((log, _, next)) = earliest else { return Ok(()) };
        let name = log.name();
        if let Some(found) = next.take() {
            each(name, found)?;
        }
    }
}

fn at(found: Option<&Found>) -> &str {
    found.map(|found| found.entry.at.as_str()).unwrap_or_default()
}

fn teller(log: &Log) -> Box<dyn FnMut(SearchProgress)> {
    let (name, mut progress) = (log.name(), Progress::new());
    Box::new(move |so_far| {
        let SearchProgress { segments_done, segments, records_found, .. } = so_far;
        progress.tell(|| {
            format!("{name}: segment {segments_done} of {segments}, {records_found} found")
        });
    })
}

/// What a found record is as JSON.
///
/// # Errors
/// Never in practice: every event can be written.
pub(super) fn to_json(part: &str, found: &Found) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(&found.entry)?;
    value["part"] = json!(part);
    if let Some(completion) = &found.completion {
        value["completion"] = serde_json::to_value(completion)?;
    }
    Ok(value)
}

/// Lines, or the items of one JSON array, as they come.
struct Printed {
    json: bool,
    count: u64,
}

impl Printed {
    fn print(&mut self, part: &str, found: &Found) {
        if self.json {
            let open = if self.count == 0 { "[" } else { "," };
            let value = to_json(part, found).unwrap_or_default();
            output::line(&format!("{open}{value}"));
        } else {
            output::line(&words::line(part, &found.entry, found.completion.as_ref()));
        }
        self.count += 1;
    }

    fn end(&self) {
        if self.json {
            output::line(if self.count == 0 { "[]" } else { "]" });
        } else if self.count == 0 {
            output::progress("nothing found");
        }
    }
}
