//! The facts of the running box: both signed feeds, read as a subscriber that acknowledges nothing,
//! with the public keys of config/gateway.toml.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use policies::facts::Facts;
use policies::feed::{Fact, LINE_BYTES_MAX, Source, Subscriber, Update};
use policies::identity::InsuredKey;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::UnixStream;

use crate::layout::{Layout, Part};
use crate::part_config;

/// What a feed told.
pub(super) struct Told {
    /// When it was sent, Unix milliseconds.
    pub(super) sent_at_ms: u64,
    /// Everybody whom its facts are about.
    pub(super) insured: BTreeSet<InsuredKey>,
}

/// Takes the snapshot of one feed into `facts`.
///
/// # Errors
/// When the box does not run, or the feed is not signed by whom the configuration names.
pub(super) async fn read(
    layout: &Layout,
    source: Source,
    facts: &mut Facts,
) -> anyhow::Result<Told> {
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
    let insured = all.iter().filter_map(about).collect();
    facts.replace(source, all);
    facts.set_seq(source, subscriber.applied_seq());
    Ok(Told { sent_at_ms: subscriber.caught_up_at_ms(), insured })
}

/// The person whom a fact is about.
fn about(fact: &Fact) -> Option<InsuredKey> {
    match fact {
        Fact::Registration { insured, .. }
        | Fact::Consent { insured, .. }
        | Fact::Author { insured, .. }
        | Fact::PlansFor { insured, .. }
        | Fact::OpinionRequest { insured, .. } => Some(*insured),
        Fact::Office { .. }
        | Fact::Revoked { .. }
        | Fact::Sharing { .. }
        | Fact::StaffKey { .. }
        | Fact::SessionEnded { .. } => None,
    }
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
    use policies::identity::OfficeNumber;

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
        assert_eq!(read(&layout, Source::Ca, &mut facts).await.unwrap().sent_at_ms, 9);
        assert_eq!(facts.seq(Source::Ca), 7);
        assert!(facts.office(office).is_some_and(|office| office.medical));
    }
}
