//! `sekisho policy diff OLD NEW`: cells and overlays that change, and which of the last recorded
//! requests would have been decided otherwise, with the facts of now.

use std::collections::HashMap;
use std::path::Path;

use audit_log::{Entry, Event};
use policies::bundle::diff;
use policies::decide::{Decision, decide};
use policies::matrix::Matrix;
use policies::overlay::counts_as_read;
use policies::reason::ReasonSet;
use serde::Serialize;
use serde_json::json;

use super::{OwnTerms, place, population, recorded};
use crate::cli::Context;
use crate::output::{self, progress};

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A policy folder, or `active`, `shadow` or `built-in`
    #[arg(value_name = "OLD")]
    old: String,
    /// The same
    #[arg(value_name = "NEW")]
    new: String,
    /// Look at this many of the newest recorded requests
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    last: usize,
    #[command(flatten)]
    population: population::Wanted,
}

/// A recorded request that would be decided otherwise.
#[derive(Debug, Serialize)]
struct Changed {
    request_id: String,
    at: String,
    principal: String,
    operation: String,
    document: Option<String>,
    old: Told,
    new: Told,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Told {
    decision: &'static str,
    reasons: ReasonSet,
}

/// What became of the recorded requests.
#[derive(Debug, Default)]
struct Replayed {
    looked_at: usize,
    unknown: usize,
    changed: Vec<Changed>,
}

/// Runs `diff`.
///
/// # Errors
/// When a policy does not load.
pub(super) async fn run(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let (old, new) = (matrix(&args.old, context)?, matrix(&args.new, context)?);
    let (cells, overlays) = (diff::cells(&old, &new), diff::overlays(&old, &new));
    let replayed = match replay(&old, &new, args.last, context).await {
        Ok(replayed) => replayed,
        Err(error) => {
            progress(&format!("note: recorded requests are not looked at: {error:#}"));
            Replayed::default()
        }
    };
    let counted = args.population.count(&old, &new)?;
    let value = json!({
        "old": old.version(),
        "new": new.version(),
        "cells": cells,
        "overlays": overlays,
        "requests": {
            "looked_at": replayed.looked_at,
            "unknown": replayed.unknown,
            "changed": replayed.changed,
        },
        "population": counted,
    });
    output::data(context.json, &value, || {
        let mut lines = vec![format!("old {}\nnew {}", old.version(), new.version())];
        for cell in &cells {
            let word = match (cell.widens, cell.narrows) {
                (true, true) => "changes",
                (true, false) => "opens",
                (false, _) => "closes",
            };
            lines.push(format!("{word} {}: {} → {}", cell.cell, cell.before, cell.after));
        }
        for overlay in &overlays {
            let shown = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
            let (was, is) = (shown(&overlay.before), shown(&overlay.after));
            lines.push(format!("overlay {}: {was} → {is}", overlay.overlay));
        }
        lines.push(requests_text(&replayed));
        lines.extend(counted.as_ref().map(population::text));
        lines.join("\n")
    });
    Ok(true)
}

fn requests_text(replayed: &Replayed) -> String {
    let Replayed { looked_at, unknown, changed } = replayed;
    let mut lines = vec![format!(
        "of {looked_at} recorded requests {} would change; {unknown} cannot be decided again",
        changed.len()
    )];
    for it in changed {
        let told = |side: &Told| {
            let reasons: Vec<&'static str> = side.reasons.iter().map(|it| it.as_str()).collect();
            format!("{} {}", side.decision, reasons.join(" ")).trim_end().to_owned()
        };
        let document = it.document.as_deref().unwrap_or("-");
        let (old, new) = (told(&it.old), told(&it.new));
        lines.push(format!(
            "  {} {} {} {document} by {}: {old} → {new}",
            it.request_id, it.at, it.operation, it.principal
        ));
    }
    lines.join("\n")
}

fn matrix(named: &str, context: &Context) -> anyhow::Result<Matrix> {
    let layout = &context.layout;
    let terms = OwnTerms::read(layout)?;
    let dir = match named {
        "built-in" => return super::terms::built_in(Some(terms.profile()), layout),
        "active" => return place::active(layout),
        "shadow" => place::shadow_dir(layout)?,
        dir => Path::new(dir).to_owned(),
    };
    let policy = terms.load(&place::read(&dir)?).map_err(|problems| place::refused(&problems))?;
    Ok(policy.matrix)
}

async fn replay(
    old: &Matrix,
    new: &Matrix,
    last: usize,
    context: &Context,
) -> anyhow::Result<Replayed> {
    context.layout.must_exist()?;
    let entries = recorded::newest(&context.layout, last)?;
    let known = recorded::Known::read(&context.layout, None).await?;
    let mut replayed = Replayed { looked_at: entries.len(), ..Replayed::default() };
    let mut reads: HashMap<(String, String), u32> = HashMap::new();
    for entry in &entries {
        let count = reads.entry(hour(entry)).or_default();
        let Some(request) = known.request(entry, *count) else {
            replayed.unknown += 1;
            continue;
        };
        let query = request.query();
        let (was, is) = (told(old, &known, &query), told(new, &known, &query));
        if was.decision == "allow" && counts_as_read(query.operation.action) {
            *count += 1;
        }
        if was != is {
            replayed.changed.extend(changed(entry, was, is));
        }
    }
    Ok(replayed)
}

/// Reads are counted by party and hour of the log's time, as the gateway does.
fn hour(entry: &Entry) -> (String, String) {
    let office = if let Event::Decision { actor, .. } = &entry.event {
        actor.office.clone().unwrap_or_default()
    } else {
        String::new()
    };
    (office, entry.at.chars().take(13).collect())
}

fn told(matrix: &Matrix, known: &recorded::Known, query: &policies::decide::Query<'_>) -> Told {
    match decide(matrix, &known.facts, query) {
        Decision::Allow(_) => Told { decision: "allow", reasons: ReasonSet::EMPTY },
        Decision::Deny(denial) => Told { decision: "deny", reasons: denial.reasons },
    }
}

fn changed(entry: &Entry, old: Told, new: Told) -> Option<Changed> {
    let Event::Decision { request_id, actor, action, object, .. } = &entry.event else {
        return None;
    };
    Some(Changed {
        request_id: request_id.clone(),
        at: entry.at.clone(),
        principal: actor.principal.clone(),
        operation: action.clone().unwrap_or_default(),
        document: object.document.clone(),
        old,
        new,
    })
}
