//! The facts of the running box: both signed feeds, read as a subscriber that has nothing and
//! acknowledges nothing, with the public keys of config/gateway.toml.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use policies::facts::{Facts, Loading};
use policies::feed::{Fact, LINE_BYTES_MAX, Source, Subscriber, Update};
use policies::identity::InsuredKey;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
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
    let mut loading = Loading::new(source);
    let mut insured = BTreeSet::new();
    let taken = take_snapshot(Path::new(&socket), &mut subscriber, |part| {
        insured.extend(part.iter().filter_map(about));
        part.into_iter().for_each(|fact| loading.take(fact));
    });
    let taken = tokio::time::timeout(FEED_TIMEOUT, taken).await;
    taken
        .with_context(|| format!("feed `{socket}` gave no whole snapshot within {FEED_TIMEOUT:?}"))
        .and_then(|taken| taken)
        .with_context(|| {
            format!("feed `{socket}` cannot be read: start the box with `sekisho up`")
        })?;
    let loaded = loading.finish();
    loaded.complete()?;
    facts.install(loaded);
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

/// Takes the parts of one snapshot as they come.
async fn take_snapshot(
    socket: &Path,
    subscriber: &mut Subscriber,
    mut take: impl FnMut(Vec<Fact>),
) -> anyhow::Result<()> {
    let mut stream = BufReader::new(UnixStream::connect(socket).await?);
    let hello = serde_json::to_string(&subscriber.hello(None))? + "\n";
    stream.write_all(hello.as_bytes()).await?;
    loop {
        let mut line = String::new();
        (&mut stream).take(u64::try_from(LINE_BYTES_MAX)?).read_line(&mut line).await?;
        anyhow::ensure!(line.ends_with('\n'), "the connection ended amid the snapshot");
        match subscriber.accept(line.trim_end())? {
            Update::Part { facts, .. } => take(facts),
            Update::Whole => return Ok(()),
            Update::Apply(_) | Update::Alive => anyhow::bail!("a change came before the snapshot"),
        }
    }
}

/// For one feed's snapshot.
const FEED_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;
    use policies::identity::OfficeNumber;

    #[tokio::test]
    async fn a_snapshot_is_read_with_the_key_of_the_gateways_file() {
        use policies::feed::{Fact, GENESIS_HEAD, Parts, Position, Signer};

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
        let position = Position { seq: 7, head: GENESIS_HEAD.to_owned() };
        let lines = Parts::all(&signer, position, 9, &[fact]).unwrap().join("\n");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut hello = String::new();
            stream.read_line(&mut hello).await.unwrap();
            assert_eq!(hello, "{\"gateway\":null,\"have\":null,\"seen\":null}\n");
            stream.write_all(format!("{lines}\n").as_bytes()).await.unwrap();
        });
        let mut facts = Facts::new();
        assert_eq!(read(&layout, Source::Ca, &mut facts).await.unwrap().sent_at_ms, 9);
        assert_eq!(facts.seq(Source::Ca), 7);
        assert!(facts.office(office).is_some_and(|office| office.medical));
    }
}
