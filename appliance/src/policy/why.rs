//! `sekisho policy explain --request ID`: a recorded request. What was decided then, each reason
//! with its cause and who can change it, and what would be decided now.

use audit_log::{Event, Found};
use policies::decide::{Explanation, explain};
use policies::identity::InsuredKey;
use policies::reason::Reason;
use serde_json::{Value, json};

use super::{place, recorded};
use crate::cli::Context;
use crate::output::{self, progress};

/// Runs `explain --request`. `insured` is for a person whom no fact is about.
///
/// # Errors
/// When there is no such request in the log.
pub(super) async fn run(
    id: &str,
    insured: Option<InsuredKey>,
    context: &Context,
) -> anyhow::Result<bool> {
    let found = recorded::find(&context.layout, id)?;
    let now = match again(&found, insured, context).await {
        Ok(now) => now,
        Err(error) => {
            progress(&format!("note: not decided again: {error:#}"));
            None
        }
    };
    let causes: Vec<Value> = reasons(&found).iter().map(|code| cause(code)).collect();
    let value = json!({
        "request_id": id,
        "recorded": &found.entry,
        "completion": &found.completion,
        "causes": causes,
        "now": &now,
    });
    output::data(context.json, &value, || text(&found, &causes, now.as_ref()));
    Ok(true)
}

/// The same request with the facts and the policy of now.
async fn again(
    found: &Found,
    insured: Option<InsuredKey>,
    context: &Context,
) -> anyhow::Result<Option<Explanation>> {
    let matrix = place::active(&context.layout)?;
    let known = recorded::Known::read(&context.layout, insured).await?;
    let request = known.request(&found.entry, 0);
    if request.is_none() {
        progress(
            "note: no fact is about that person now; name them with --insured to decide again",
        );
    }
    Ok(request.map(|request| explain(&matrix, &known.facts, &request.query())))
}

/// The codes of the decision; of a permitted one that was refused after all, those of its end.
fn reasons(found: &Found) -> Vec<String> {
    let of = |event: &Event| {
        if let Event::Decision { reasons, .. } | Event::Completion { reasons, .. } = event {
            reasons.clone()
        } else {
            Vec::new()
        }
    };
    let decided = of(&found.entry.event);
    let ended = found.completion.as_ref().map(|entry| of(&entry.event)).unwrap_or_default();
    if decided.is_empty() { ended } else { decided }
}

fn cause(code: &str) -> Value {
    let Ok(reason) = code.parse::<Reason>() else {
        let message = "a reason of the hub; see docs/api.md";
        return json!({ "reason": code, "message": message, "fix_by": "office" });
    };
    let (ask_ja, ask) = reason.fixer().words();
    json!({
        "reason": code,
        "message": reason.en(),
        "message_ja": reason.ja(),
        "fix_by": reason.fixer(),
        "ask": ask,
        "ask_ja": ask_ja,
    })
}

fn text(found: &Found, causes: &[Value], now: Option<&Explanation>) -> String {
    let field = |value: &Value, key: &str| output::field(value, key);
    let mut lines = Vec::new();
    if let Event::Decision { decision, action, actor, policy, .. } = &found.entry.event {
        let action = action.as_deref().unwrap_or("no operation");
        lines.push(format!("{decision} {action} by {}  at {}", actor.principal, found.entry.at));
        lines.push(format!("  policy {policy}"));
    }
    for cause in causes {
        lines.push(format!("  ✗ {}: {}", field(cause, "reason"), field(cause, "message")));
        if !cause["ask"].is_null() {
            let (ask, ask_ja) = (field(cause, "ask"), field(cause, "ask_ja"));
            lines.push(format!("      {}  ask: {ask} ({ask_ja})", field(cause, "message_ja")));
        }
    }
    if let Some(now) = now {
        lines.push("with the facts and the policy of now:".to_owned());
        lines.extend(now.to_string().lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}
