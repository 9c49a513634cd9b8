//! `sekisho audit pin`: writes the public halves of the present keys down again, on the operator's
//! word that these are the right ones.

use serde_json::json;

use crate::audit_keys;
use crate::cli::Context;
use crate::output;

/// Runs `pin`.
///
/// # Errors
/// When another key of that name is pinned, or the file cannot be written.
pub(super) fn run(context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let added = audit_keys::pin(&context.layout)?;
    let file = context.layout.pins();
    output::data(context.json, &json!({"file": file, "added": added}), || {
        if added.is_empty() {
            return format!("`{}` already pins every key", file.display());
        }
        format!("added to `{}`:\n{}", file.display(), added.join("\n"))
    });
    Ok(true)
}
