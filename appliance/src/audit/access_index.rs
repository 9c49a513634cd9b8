//! `sekisho audit access-index [status|rebuild]`: the hub's index of the gateway's records, from
//! which access histories are answered.

use serde_json::json;

use crate::admin::Admin;
use crate::cli::Context;
use crate::output;

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
