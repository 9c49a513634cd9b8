//! `sekisho code issue`: a one-time enrolment code (発行用コード) for one terminal.
//!
//! The secret is printed once and kept nowhere in clear.

use policies::identity::{Identity, InsurerNumber, OfficeNumber, SystemName, TerminalId};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::cli::Context;
use crate::output::{self, field};
use crate::secrets;
use crate::status;

/// Subcommands of `code`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Issue a code
    Issue(Issue),
}

/// Arguments of `code issue`.
#[derive(Debug, clap::Args)]
pub(crate) struct Issue {
    #[command(flatten)]
    subject: Subject,
    /// The terminal's id: lower-case letters, digits and inner hyphens; made up if left out
    #[arg(long)]
    terminal: Option<TerminalId>,
    /// Certificate profile; by default the one of the subject's kind
    #[arg(long)]
    profile: Option<Profile>,
    /// How long the code may be used, in hours
    #[arg(long, value_name = "HOURS", default_value_t = 72,
        value_parser = clap::value_parser!(u32).range(1..=720))]
    valid_hours: u32,
    /// Lifetime of a short-lived certificate, in seconds (profile short-lived, demo only)
    #[arg(long, value_name = "SECONDS", requires = "profile")]
    not_after_s: Option<u32>,
}

/// Who the certificate will name.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// A terminal of this office (事業所番号)
    #[arg(long, value_name = "NUMBER")]
    office: Option<OfficeNumber>,
    /// A system of this municipality (保険者番号)
    #[arg(long, value_name = "INSURER")]
    municipality: Option<InsurerNumber>,
    /// A national system: care-plan-exchange, life, pmh or portal
    #[arg(long, value_name = "NAME")]
    system: Option<SystemName>,
    /// A network operator
    #[arg(long, value_name = "NAME")]
    operator: Option<TerminalId>,
}

/// Certificate profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    OfficeBrowser,
    OfficeApi,
    Municipality,
    System,
    Operator,
    ShortLived,
}

impl Profile {
    const fn as_str(self) -> &'static str {
        match self {
            Self::OfficeBrowser => "office-browser",
            Self::OfficeApi => "office-api",
            Self::Municipality => "municipality",
            Self::System => "system",
            Self::Operator => "operator",
            Self::ShortLived => "short-lived",
        }
    }

    /// The profile of an identity's kind.
    pub(crate) const fn of(identity: &Identity) -> Self {
        match identity {
            Identity::Office { .. } => Self::OfficeBrowser,
            Identity::Municipality { .. } => Self::Municipality,
            Identity::System { .. } => Self::System,
            Identity::Operator { .. } => Self::Operator,
        }
    }
}

/// Runs `code`.
///
/// # Errors
/// When the RA does not run or refuses.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let Command::Issue(issue) = command;
    let identity = identity(issue)?;
    let profile = issue.profile.unwrap_or(Profile::of(&identity));
    let ra = Admin::ra(&context.layout);
    let hours = issue.valid_hours;
    let mut answer = request(&ra, &identity, profile, hours, issue.not_after_s).await?;
    let enrol = status::running(&context.layout)?
        .and_then(|status| status.addresses.get("enrol").copied())
        .map(|address| format!("https://localhost:{}", address.port()));
    if let Some(object) = answer.as_object_mut() {
        object.insert("identity".to_owned(), json!(identity.path()));
        object.insert("enrol".to_owned(), json!(enrol));
    }
    output::data(context.json, &answer, || as_text(&answer));
    Ok(true)
}

/// Asks the RA for a code.
///
/// # Errors
/// When the RA does not run or refuses.
pub(crate) async fn request(
    ra: &Admin,
    identity: &Identity,
    profile: Profile,
    valid_hours: u32,
    not_after_s: Option<u32>,
) -> anyhow::Result<Value> {
    let mut body = json!({
        "identity": identity,
        "profile": profile.as_str(),
        "valid_hours": valid_hours,
    });
    if let Some(seconds) = not_after_s {
        body["not_after_s"] = json!(seconds);
    }
    ra.post("/codes", &body).await
}

fn identity(issue: &Issue) -> anyhow::Result<Identity> {
    let terminal = match &issue.terminal {
        Some(terminal) => terminal.clone(),
        None => format!("t-{}", secrets::random_text(6)?).parse()?,
    };
    let Subject { office, municipality, system, operator } = &issue.subject;
    Ok(match (office, municipality, system, operator) {
        (Some(number), ..) => Identity::Office { number: *number, terminal },
        (_, Some(insurer), ..) => Identity::Municipality { insurer: *insurer, terminal },
        (_, _, Some(name), _) => Identity::System { name: *name, terminal },
        (_, _, _, Some(name)) => Identity::Operator { name: name.clone() },
        (None, None, None, None) => anyhow::bail!("the code needs a subject"),
    })
}

fn as_text(answer: &Value) -> String {
    format!(
        "certificate for  {}\ncode id          {}\nsecret           {}\nvalid until      {}\n\
         enrol at         {}",
        field(answer, "identity"),
        field(answer, "code_id"),
        field(answer, "secret"),
        field(answer, "expires_at"),
        field(answer, "enrol"),
    )
}
