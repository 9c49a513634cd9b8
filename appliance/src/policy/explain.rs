//! `sekisho policy explain`: why a request would be allowed or refused with the facts as they are
//! now, or why a recorded one was.

use policies::decide::{Explanation, FeedState, Leases, Query, explain};
use policies::document::DocumentKind;
use policies::facts::Facts;
use policies::feed::Source;
use policies::identity::{Identity, InsuredKey, Job, OfficeNumber, Serial, Staff, TerminalId};
use policies::matrix::{Matrix, Profile};
use policies::operations::Operations;
use policies::overlay::{Circumstances, NetworkKind, hours};
use serde_json::Value;
use std::net::IpAddr;

use anyhow::Context as _;

use super::{feeds, place, terms, why};
use crate::admin::Admin;
use crate::cert;
use crate::cli::Context;
use crate::clock;
use crate::exit::usage;
use crate::layout::Layout;
use crate::output::{self, progress};

/// Arguments of `policy explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// A request that is in the audit log, by the id that its answer carried
    #[arg(long, value_name = "ID", conflicts_with_all = ["office", "document", "serial"])]
    pub(super) request: Option<String>,
    /// The office that asks (事業所番号)
    #[arg(long, value_name = "NUMBER", required_unless_present = "request")]
    office: Option<OfficeNumber>,
    /// The person: 保険者番号/被保険者番号
    #[arg(long, value_name = "INSURER/NUMBER", required_unless_present = "request")]
    pub(super) insured: Option<InsuredKey>,
    /// The kind of document, such as certification-survey
    #[arg(long, value_name = "KIND", required_unless_present = "request")]
    document: Option<DocumentKind>,
    /// 職種 of the member of staff who asks
    #[arg(long, value_name = "JOB", default_value = "care-manager")]
    job: Job,
    /// What is asked for
    #[arg(long, value_enum, default_value_t = Wish::View)]
    action: Wish,
    /// The certificate that asks; by default one of the office's own
    #[arg(long)]
    serial: Option<Serial>,
    /// Which reading of the built-in matrix; by default the policy in force
    #[arg(long)]
    profile: Option<Profile>,
    /// The address that asks
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// By which network it asks: open or closed
    #[arg(long, value_name = "NETWORK", default_value = "open")]
    network: NetworkKind,
    /// When, in Japan, such as 2026-04-06T10:00; by default now
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Reads by the office before this one in the hour
    #[arg(long, value_name = "N", default_value_t = 0)]
    reads: u32,
}

/// What may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wish {
    /// View the document
    View,
    /// Store a new version
    Store,
    /// List the person's documents
    List,
}

/// Runs `explain`.
///
/// # Errors
/// When the box does not run, or the request is not in the audit log.
pub(super) async fn run(wanted: &Explain, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    if let Some(id) = &wanted.request {
        return why::run(id, wanted.insured, context).await;
    }
    let explanation = explained(wanted, &context.layout).await?;
    let value = serde_json::to_value(&explanation)?;
    output::data(context.json, &value, || explanation.to_string().trim_end().to_owned());
    Ok(true)
}

async fn explained(wanted: &Explain, layout: &Layout) -> anyhow::Result<Explanation> {
    let (Some(office), Some(insured), Some(document)) =
        (wanted.office, wanted.insured, wanted.document)
    else {
        return Err(usage("name --office, --insured and --document, or --request"));
    };
    let matrix = matrix(wanted, layout)?;
    let mut facts = Facts::new();
    let ca_sent_ms = feeds::read(layout, Source::Ca, &mut facts).await?.sent_at_ms;
    let hub_sent_ms = feeds::read(layout, Source::Hub, &mut facts).await?.sent_at_ms;
    let certificate = certificate(wanted, office, layout).await?;
    let staff =
        Staff { id: "explain".to_owned(), office, job: wanted.job, session: "explain".to_owned() };
    let (method, path) = request(wanted.action, insured, document);
    let operation = Operations::builtin()
        .context("the operations table does not load")?
        .resolve(method, &path)
        .ok_or_else(|| usage(format!("`{document}` is not held: no operation")))?;
    let clock_s = clock::now_s();
    let now = match &wanted.at {
        Some(at) => hours::unix(at)
            .ok_or_else(|| usage(format!("--at `{at}`: write it as 2026-04-06T10:00")))?,
        None => clock_s,
    };
    let age = |sent_ms: u64| Some((clock_s * 1000).saturating_sub(sent_ms));
    let query = Query {
        principal: &certificate.identity,
        serial: certificate.serial,
        not_after: certificate.not_after,
        staff: Some(&staff),
        operation: &operation,
        now,
        feeds: FeedState {
            ca_age_ms: age(ca_sent_ms),
            hub_age_ms: age(hub_sent_ms),
            leases: Leases::default(),
        },
        circumstances: Circumstances {
            address: wanted.address,
            network: Some(wanted.network),
            reads_this_hour: wanted.reads,
        },
    };
    Ok(explain(&matrix, &facts, &query))
}

/// The policy in force, or the built-in matrix of a profile.
fn matrix(wanted: &Explain, layout: &Layout) -> anyhow::Result<Matrix> {
    match wanted.profile {
        Some(profile) => terms::built_in(Some(profile), layout),
        None => place::active(layout),
    }
}

fn request(action: Wish, insured: InsuredKey, document: DocumentKind) -> (&'static str, String) {
    let documents = format!("/v1/insured/{insured}/documents");
    match action {
        Wish::View => ("GET", format!("{documents}/{document}")),
        Wish::Store => ("POST", format!("{documents}/{document}")),
        Wish::List => ("GET", documents),
    }
}

/// The certificate that is thought to ask.
struct Certificate {
    identity: Identity,
    serial: Serial,
    not_after: u64,
}

/// The named certificate, or the office's newest one; where the office has none, a good one is
/// assumed, and said so.
async fn certificate(
    wanted: &Explain,
    office: OfficeNumber,
    layout: &Layout,
) -> anyhow::Result<Certificate> {
    let ra = Admin::ra(layout);
    let answer = ra.get(&format!("/certificates?office={office}")).await?;
    let mut found = None;
    for item in cert::items(&answer) {
        let certificate = read_certificate(item);
        let named = certificate.as_ref().is_some_and(|it| wanted.serial == Some(it.serial));
        let active = item.get("state").and_then(Value::as_str) == Some("active");
        if named || (wanted.serial.is_none() && active) {
            found = certificate.or(found);
        }
    }
    if let Some(found) = found {
        return Ok(found);
    }
    if let Some(serial) = wanted.serial {
        return Err(usage(format!("office {office} has no certificate {serial}")));
    }
    progress("note: the office has no certificate in force; a good one is assumed");
    let terminal: TerminalId = "assumed".parse()?;
    Ok(Certificate {
        identity: Identity::Office { number: office, terminal },
        serial: Serial::from_bytes(&[1])?,
        not_after: u64::MAX,
    })
}

fn read_certificate(item: &Value) -> Option<Certificate> {
    let not_after = time::OffsetDateTime::parse(
        item.get("not_after")?.as_str()?,
        &time::format_description::well_known::Rfc3339,
    );
    Some(Certificate {
        identity: cert::identity(item)?,
        serial: item.get("serial")?.as_str()?.parse().ok()?,
        not_after: u64::try_from(not_after.ok()?.unix_timestamp()).ok()?,
    })
}
