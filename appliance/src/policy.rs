//! `sekisho policy matrix|explain`: the sharing matrix as text, and why a request would be allowed
//! or refused with the facts as they are now.
//!
//! `explain` makes the decision with the gateway's own code: it reads both signed feeds as a
//! subscriber that acknowledges nothing, with the public keys of config/gateway.toml.

use std::path::Path;

use anyhow::Context as _;
use policies::decide::{Explanation, FeedState, Leases, Query, explain};
use policies::document::DocumentKind;
use policies::facts::Facts;
use policies::feed::{LINE_BYTES_MAX, Source, Subscriber, Update};
use policies::identity::{Identity, InsuredKey, Job, OfficeNumber, Serial, Staff, TerminalId};
use policies::matrix::{Matrix, Profile};
use policies::operations::Operations;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::UnixStream;

use crate::admin::Admin;
use crate::cert;
use crate::cli::Context;
use crate::clock;
use crate::exit::usage;
use crate::layout::{Layout, Part};
use crate::output::{self, progress};
use crate::part_config;

/// Subcommands of `policy`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the sharing matrix
    Matrix {
        /// Which reading of it: deck-2025 or impl-2027; by default the one in force
        #[arg(long)]
        profile: Option<Profile>,
    },
    /// Say why a request would be allowed or refused now
    Explain(Explain),
}

/// Arguments of `policy explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// The office that asks (事業所番号)
    #[arg(long, value_name = "NUMBER")]
    office: OfficeNumber,
    /// The person: 保険者番号/被保険者番号
    #[arg(long, value_name = "INSURER/NUMBER")]
    insured: InsuredKey,
    /// The kind of document, such as certification-survey
    #[arg(long, value_name = "KIND")]
    document: DocumentKind,
    /// 職種 of the member of staff who asks
    #[arg(long, value_name = "JOB", default_value = "care-manager")]
    job: Job,
    /// What is asked for
    #[arg(long, value_enum, default_value_t = Wish::View)]
    action: Wish,
    /// The certificate that asks; by default one of the office's own
    #[arg(long)]
    serial: Option<Serial>,
    /// Which reading of the matrix; by default the one in force
    #[arg(long)]
    profile: Option<Profile>,
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

/// Runs `policy`.
///
/// # Errors
/// When the matrix does not load, or the feeds cannot be read.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    match command {
        Command::Matrix { profile } => {
            let matrix = matrix(*profile, &context.layout)?;
            let value = json!({
                "profile": matrix.profile(),
                "version": matrix.version(),
                "text": matrix.render(),
            });
            output::data(context.json, &value, || matrix.render().trim_end().to_owned());
        }
        Command::Explain(wanted) => {
            context.layout.must_exist()?;
            let explanation = explained(wanted, &context.layout).await?;
            let value = serde_json::to_value(&explanation)?;
            output::data(context.json, &value, || explanation.to_string().trim_end().to_owned());
        }
    }
    Ok(true)
}

/// The matrix of the wanted profile, else of the one in config/gateway.toml, else the default.
fn matrix(profile: Option<Profile>, layout: &Layout) -> anyhow::Result<Matrix> {
    let configured = || -> anyhow::Result<Profile> {
        if !layout.config(Part::Gateway).exists() {
            return Ok(Profile::default());
        }
        let text = part_config::value(layout, Part::Gateway, "policy_profile")?;
        text.parse().map_err(|error| usage(format!("key `policy_profile`: {error}")))
    };
    let profile = profile.map_or_else(configured, Ok)?;
    Matrix::builtin(profile).context("the sharing matrix does not load")
}

async fn explained(wanted: &Explain, layout: &Layout) -> anyhow::Result<Explanation> {
    let matrix = matrix(wanted.profile, layout)?;
    let mut facts = Facts::new();
    let ca_sent_ms = read_feed(layout, Source::Ca, &mut facts).await?;
    let hub_sent_ms = read_feed(layout, Source::Hub, &mut facts).await?;
    let certificate = certificate(wanted, layout).await?;
    let staff = Staff {
        id: "explain".to_owned(),
        office: wanted.office,
        job: wanted.job,
        session: "explain".to_owned(),
    };
    let (method, path) = request(wanted);
    let operation = Operations::builtin()
        .context("the operations table does not load")?
        .resolve(method, &path)
        .ok_or_else(|| usage(format!("`{}` is not held: no operation", wanted.document)))?;
    let now = clock::now_s();
    let age = |sent_ms: u64| Some((now * 1000).saturating_sub(sent_ms));
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
    };
    Ok(explain(&matrix, &facts, &query))
}

fn request(wanted: &Explain) -> (&'static str, String) {
    let documents = format!("/v1/insured/{}/documents", wanted.insured);
    match wanted.action {
        Wish::View => ("GET", format!("{documents}/{}", wanted.document)),
        Wish::Store => ("POST", format!("{documents}/{}", wanted.document)),
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
async fn certificate(wanted: &Explain, layout: &Layout) -> anyhow::Result<Certificate> {
    let ra = Admin::ra(layout);
    let answer = ra.get(&format!("/certificates?office={}", wanted.office)).await?;
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
        return Err(usage(format!("office {} has no certificate {serial}", wanted.office)));
    }
    progress("note: the office has no certificate in force; a good one is assumed");
    let terminal: TerminalId = "assumed".parse()?;
    Ok(Certificate {
        identity: Identity::Office { number: wanted.office, terminal },
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

/// Takes the snapshot of one feed; returns when it was sent, Unix milliseconds.
async fn read_feed(layout: &Layout, source: Source, facts: &mut Facts) -> anyhow::Result<u64> {
    let name = source.as_str();
    let value =
        |key: &str| part_config::value(layout, Part::Gateway, &format!("feeds.{name}.{key}"));
    let mut subscriber = Subscriber::new(source, &value("public_key")?)?;
    let socket = value("socket")?;
    let line = first_line(Path::new(&socket)).await.with_context(|| {
        format!("feed `{socket}` cannot be read: start the box with `sekisho up`")
    })?;
    let update = subscriber.accept(line.trim_end())?;
    let Update::Replace(all) = update else { anyhow::bail!("feed `{socket}` gave no snapshot") };
    facts.replace(source, all);
    facts.set_seq(source, subscriber.applied_seq());
    Ok(subscriber.caught_up_at_ms())
}

async fn first_line(socket: &Path) -> anyhow::Result<String> {
    let stream = UnixStream::connect(socket).await?;
    let limit = u64::try_from(LINE_BYTES_MAX)?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream).take(limit);
    let read = reader.read_line(&mut line);
    tokio::time::timeout(FEED_TIMEOUT, read).await??;
    Ok(line)
}

/// For one feed's snapshot.
const FEED_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_snapshot_is_read_with_the_key_of_the_gateways_file() {
        use policies::feed::{Fact, GENESIS_HEAD, Message, Signer};
        use tokio::io::AsyncWriteExt as _;

        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        let signer = Signer::from_pkcs8(Source::Ca, &Signer::generate_pkcs8().unwrap()).unwrap();
        crate::files::private_folder(&layout.root().join("config")).unwrap();
        let socket = layout.root().join("s");
        let text = format!(
            "[feeds.ca]\nsocket = \"{}\"\npublic_key = \"{}\"\n",
            socket.display(),
            signer.public_key()
        );
        std::fs::write(layout.config(Part::Gateway), text).unwrap();
        let office: OfficeNumber = "9970000015".parse().unwrap();
        let fact = Fact::Office {
            number: office,
            service_types: vec![],
            medical: true,
            suspended: false,
            name: String::new(),
        };
        let message = Message::Snapshot {
            seq: 7,
            head: GENESIS_HEAD.to_owned(),
            sent_at_ms: 9,
            facts: vec![fact],
        };
        let line = signer.line(&message).unwrap();
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        });
        let mut facts = Facts::new();
        assert_eq!(read_feed(&layout, Source::Ca, &mut facts).await.unwrap(), 9);
        assert_eq!(facts.seq(Source::Ca), 7);
        assert!(facts.office(office).is_some_and(|office| office.medical));
    }
}
