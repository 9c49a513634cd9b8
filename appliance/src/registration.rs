//! `sekisho registration add|end`: an operator's registration of an office for a person
//! (担当事業所), marked `method=operator`; the hub allows it only in a demo folder.

use policies::identity::{InsuredKey, OfficeNumber};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::cli::Context;
use crate::output;

/// Subcommands of `registration`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Register an office for a person
    Add {
        #[command(flatten)]
        pair: Pair,
        /// When it lapses, such as 2027-03-31T15:00:00Z
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
    },
    /// End a registration
    End {
        #[command(flatten)]
        pair: Pair,
    },
}

/// An office, a person, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Pair {
    /// 事業所番号
    #[arg(long, value_name = "NUMBER")]
    office: OfficeNumber,
    /// The person: 保険者番号/被保険者番号
    #[arg(long, value_name = "INSURER/NUMBER")]
    insured: InsuredKey,
    /// Why; kept in the audit log
    #[arg(long)]
    reason: String,
    /// Who does it; kept in the audit log
    #[arg(long, value_name = "NAME", default_value = "operator")]
    operator: String,
    /// Return only after every gateway applies it; exit code 1 otherwise
    #[arg(long)]
    wait: bool,
}

/// Runs `registration`.
///
/// # Errors
/// When the hub does not run or refuses.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let hub = Admin::hub(&context.layout);
    let (answer, done, wait) = match command {
        Command::Add { pair, until } => {
            let mut body = body(pair);
            if let Some(until) = until {
                body["until"] = json!(until);
            }
            (hub.post("/registrations", &body).await?, "registered", pair.wait)
        }
        Command::End { pair } => {
            (hub.post("/registrations/end", &body(pair)).await?, "ended", pair.wait)
        }
    };
    output::data(context.json, &answer, || done.to_owned());
    Ok(!wait || output::is_acknowledged(&answer))
}

fn body(pair: &Pair) -> Value {
    json!({
        "office": pair.office,
        "insured": pair.insured,
        "reason": pair.reason,
        "operator": pair.operator,
        "wait": pair.wait,
    })
}
