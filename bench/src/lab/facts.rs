//! Publishes a fixture's facts to gateways, as the cert-authority and the hub do: two signed feeds
//! on unix sockets (see `policies::feed`).
//!
//! The mass of facts is made from numbers, not stored. A snapshot at scale takes longer to sign
//! than a gateway waits for a line, so one is made ready by the word `prepare` on the control
//! socket, right before a gateway is started; `revoke SERIAL` there becomes a change for all
//! subscribers at once. Signing is done beside the heartbeats, so that no gateway that is being
//! measured loses its feed while the next one is started.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader as StdBufReader, Write as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use gateway::facts_feed::now_ms;
use policies::feed::{Fact, GENESIS_HEAD, LINE_BYTES_MAX, Message, Signer, Source, next_head};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;

use crate::lab::fixture::{self, Made, Scale};
use crate::lab::{FactsSet, Lab};

/// Arguments of `facts`.
#[derive(Debug, Args)]
pub(crate) struct FactsArgs {
    /// Fixture folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Which facts
    #[arg(long, value_enum, default_value = "bare")]
    set: FactsSet,
    /// How often to say that nothing changed, in milliseconds
    #[arg(
        long,
        value_name = "MS",
        default_value_t = policies::feed::HEARTBEAT_INTERVAL_MS,
        value_parser = clap::value_parser!(u64).range(10..=1_500)
    )]
    heartbeat_ms: u64,
}

/// Arguments of `revoke`.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// Fixture folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Which publisher to tell
    #[arg(long, value_enum, default_value = "bare")]
    set: FactsSet,
    /// Serial number of the certificate, in hex
    #[arg(long, value_name = "HEX")]
    serial: String,
}

/// The sockets of one publisher.
pub(crate) struct Sockets {
    pub(crate) ca: PathBuf,
    pub(crate) hub: PathBuf,
    control: PathBuf,
}

impl Sockets {
    /// Those of `set` in the fixture.
    pub(crate) fn of(dir: &Path, set: FactsSet) -> Self {
        let path = |name: &str| dir.join(format!("run/{}-{name}.sock", set.as_str()));
        Self { ca: path("ca"), hub: path("hub"), control: path("control") }
    }

    /// Says `line` to the publisher and waits until it is done.
    ///
    /// # Errors
    /// If no publisher answers, or it refuses.
    pub(crate) fn tell(&self, line: &str) -> anyhow::Result<()> {
        let mut stream = StdUnixStream::connect(&self.control).with_context(|| {
            format!("no publisher of facts answers on `{}`", self.control.display())
        })?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        StdBufReader::new(stream).read_line(&mut answer)?;
        ensure!(answer.trim() == "done", "the publisher of facts said `{}`", answer.trim());
        Ok(())
    }
}

/// Tells the publisher that a certificate is revoked.
///
/// # Errors
/// If no publisher answers.
pub(crate) fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    Sockets::of(&args.dir, args.set).tell(&format!("revoke {}", args.serial))
}

/// Publishes until it is ended.
///
/// # Errors
/// If the fixture can not be read or a socket not be used.
pub(crate) fn run(args: &FactsArgs) -> anyhow::Result<()> {
    // Opened for its checks; the sockets are named from the folder as it was given.
    let lab = Lab::open(&args.dir)?;
    let made = fixture::read(&args.dir)?;
    let scale = scale_of(lab.scale(), args.set);
    let ca = Publisher::new(&args.dir, Source::Ca, ca_facts(&scale)?)?;
    let hub = Publisher::new(&args.dir, Source::Hub, hub_facts(&scale, &made)?)?;
    let sockets = Sockets::of(&args.dir, args.set);
    let heartbeat = Duration::from_millis(args.heartbeat_ms);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (ca, hub) = (Arc::new(ca), Arc::new(hub));
        tokio::try_join!(
            publish(listen(&sockets.ca)?, Arc::clone(&ca), heartbeat),
            publish(listen(&sockets.hub)?, Arc::clone(&hub), heartbeat),
            control(listen(&sockets.control)?, ca, hub),
        )
        .map(|_| ())
    })
}

fn scale_of(scale: &Scale, set: FactsSet) -> Scale {
    match set {
        FactsSet::Full => scale.clone(),
        FactsSet::Unrevoked => Scale { revocations: 0, ..scale.clone() },
        FactsSet::Bare => {
            Scale { offices: 0, registrations: 0, revocations: 0, terminals: scale.terminals }
        }
    }
}

/// Facts as the inside of a JSON list.
fn json_list(facts: impl Iterator<Item = anyhow::Result<Fact>>) -> anyhow::Result<String> {
    let mut list = String::new();
    for fact in facts {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(&serde_json::to_string(&fact?)?);
    }
    Ok(list)
}

fn ca_facts(scale: &Scale) -> anyhow::Result<String> {
    let own = (0..scale.terminals).map(fixture::office);
    let others = (0..scale.offices).map(other_office);
    let offices = own.chain(others).map(|number| {
        Ok(Fact::Office {
            name: format!("見本居宅介護支援事業所{number}"),
            number: number.parse()?,
            service_types: vec!["43".parse()?],
            medical: false,
            suspended: false,
        })
    });
    let revoked = (0..scale.revocations)
        .map(|at| Ok(Fact::Revoked { serial: revoked_serial(at).parse()?, at: 1_790_000_000 }));
    json_list(offices.chain(revoked))
}

fn hub_facts(scale: &Scale, made: &Made) -> anyhow::Result<String> {
    let staff_key = Fact::StaffKey {
        kid: fixture::STAFF_KEY_ID.to_owned(),
        x: made.staff_key_x.clone(),
        y: made.staff_key_y.clone(),
        retired: false,
    };
    let sharing = Fact::Sharing { insurer: "131016".parse()?, from: Some(1) };
    let registration = |office: String, insured: String| {
        let (office, insured) = (office.parse()?, insured.parse()?);
        Ok(Fact::Registration { office, insured, from: 1, until: None, ended: None })
    };
    let own =
        (0..scale.terminals).map(|at| registration(fixture::office(at), fixture::insured(at)));
    // A person has about three offices, an office many persons.
    let offices = scale.offices.max(1);
    let others = (0..scale.registrations)
        .map(|at| registration(other_office(at % offices), other_insured(at / 3)));
    json_list([Ok(staff_key), Ok(sharing)].into_iter().chain(own).chain(others))
}

fn other_office(at: usize) -> String {
    format!("26{at:08}")
}

fn other_insured(at: usize) -> String {
    format!("261009/{at:010}")
}

/// Serial numbers that no terminal has, spread as random ones are.
fn revoked_serial(at: usize) -> String {
    let spread = (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    format!("20{:014x}{spread:016x}", at as u64)
}

/// One feed.
struct Publisher {
    source: Source,
    signer: Signer,
    key: Ed25519KeyPair,
    /// The facts at sequence 0, as the inside of a JSON list.
    facts: String,
    state: Mutex<State>,
    /// Held while a snapshot is made, so that two gateways do not have it made twice.
    prepared: Mutex<Option<Prepared>>,
    changes: broadcast::Sender<Arc<str>>,
}

#[derive(Clone)]
struct State {
    seq: u64,
    head: String,
    changed: Vec<Fact>,
}

/// A snapshot line that is ready to be sent.
struct Prepared {
    seq: u64,
    made: Instant,
    line: Arc<str>,
}

impl Publisher {
    fn new(dir: &Path, source: Source, facts: String) -> anyhow::Result<Self> {
        let path = dir.join(format!("keys/feed-{}.pkcs8", source.as_str()));
        let der = std::fs::read(&path).with_context(|| format!("key `{}`", path.display()))?;
        let key = Ed25519KeyPair::from_pkcs8(&der)
            .map_err(|_| anyhow::anyhow!("`{}` holds no Ed25519 key", path.display()))?;
        let state = State { seq: 0, head: GENESIS_HEAD.to_owned(), changed: Vec::new() };
        let publisher = Self {
            source,
            signer: Signer::from_pkcs8(source, &der)?,
            key,
            facts,
            state: Mutex::new(state),
            prepared: Mutex::new(None),
            changes: broadcast::channel(CHANGES_WAITING_MAX).0,
        };
        let bytes = publisher.snapshot()?.len();
        ensure!(
            bytes < LINE_BYTES_MAX,
            "the snapshot of the {} feed has {bytes} bytes, and a line may have {LINE_BYTES_MAX}: \
             make a fixture of smaller scale",
            source.as_str()
        );
        Ok(publisher)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot line of this moment, or a prepared one that is still true.
    fn snapshot(&self) -> anyhow::Result<Arc<str>> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state().clone();
        if let Some(ready) = prepared.as_ref()
            && ready.seq == state.seq
            && ready.made.elapsed() < PREPARED_LASTS
        {
            return Ok(Arc::clone(&ready.line));
        }
        let line = self.signed_snapshot(&state)?;
        *prepared =
            Some(Prepared { seq: state.seq, made: Instant::now(), line: Arc::clone(&line) });
        Ok(line)
    }

    /// Made from the ready list: the same bytes that [`Signer::line`] makes of the message, without
    /// building a million facts each time.
    fn signed_snapshot(&self, state: &State) -> anyhow::Result<Arc<str>> {
        let mut payload = String::with_capacity(self.facts.len() + 1024);
        write!(
            payload,
            r#"{{"message":"snapshot","seq":{},"head":"{}","sent_at_ms":{},"facts":[{}"#,
            state.seq,
            state.head,
            now_ms(),
            self.facts
        )?;
        for fact in &state.changed {
            payload.push(',');
            payload.push_str(&serde_json::to_string(fact)?);
        }
        payload.push_str("]}");
        let signed = format!("sekisho-feed-v1\n{}\n{payload}", self.source.as_str());
        let signature = STANDARD.encode(self.key.sign(signed.as_bytes()));
        drop(signed);
        let payload = serde_json::to_string(&payload)?;
        Ok(format!("{{\"payload\":{payload},\"signature\":\"{signature}\"}}\n").into())
    }

    /// Makes the next snapshot anew.
    fn prepare(&self) -> anyhow::Result<()> {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.snapshot().map(|_| ())
    }

    /// Appends a change and sends it to all subscribers.
    fn change(&self, fact: Fact) -> anyhow::Result<()> {
        let mut state = self.state();
        let (seq, previous) = (state.seq + 1, state.head.clone());
        state.head = next_head(&previous, seq, &serde_json::to_string(&fact)?);
        state.seq = seq;
        state.changed.push(fact.clone());
        let sent_at_ms = now_ms();
        let change = Message::Change { seq, previous, latest_seq: seq, sent_at_ms, fact };
        let line: Arc<str> = format!("{}\n", self.signer.line(&change)?).into();
        // Nobody may be listening.
        let _ = self.changes.send(line);
        Ok(())
    }

    fn heartbeat(&self) -> anyhow::Result<String> {
        let (seq, head) = {
            let state = self.state();
            (state.seq, state.head.clone())
        };
        let beat = Message::Heartbeat { seq, head, sent_at_ms: now_ms() };
        Ok(format!("{}\n", self.signer.line(&beat)?))
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // A socket of an earlier run is in the way.
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("cannot listen on `{}`", path.display()))
}

async fn publish(
    listener: UnixListener,
    publisher: Arc<Publisher>,
    heartbeat: Duration,
) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let publisher = Arc::clone(&publisher);
        tokio::spawn(async move {
            // A gateway that goes away is no news.
            let _ = subscriber(stream, publisher, heartbeat).await;
        });
    }
}

/// Snapshot, then changes and heartbeats; acknowledgements are read and dropped.
async fn subscriber(
    stream: UnixStream,
    publisher: Arc<Publisher>,
    heartbeat: Duration,
) -> anyhow::Result<()> {
    let (mut acks, mut stream) = stream.into_split();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while acks.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    });
    // Before the snapshot is taken, so that no change falls in between; one that the snapshot holds
    // already breaks the order, and the gateway asks anew.
    let mut changes = publisher.changes.subscribe();
    let maker = Arc::clone(&publisher);
    let snapshot = tokio::task::spawn_blocking(move || maker.snapshot()).await??;
    stream.write_all(snapshot.as_bytes()).await?;
    drop(snapshot);
    loop {
        match tokio::time::timeout(heartbeat, changes.recv()).await {
            Ok(Ok(line)) => stream.write_all(line.as_bytes()).await?,
            Ok(Err(_)) => bail!("the subscriber is too slow"),
            Err(_) => stream.write_all(publisher.heartbeat()?.as_bytes()).await?,
        }
    }
}

async fn control(
    listener: UnixListener,
    ca: Arc<Publisher>,
    hub: Arc<Publisher>,
) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(1), stream.read_line(&mut line)).await;
        let answer = match read {
            Ok(Ok(_)) => {
                let (ca, hub) = (Arc::clone(&ca), Arc::clone(&hub));
                let obeyed = move || obey(line.trim(), &ca, &hub);
                tokio::task::spawn_blocking(obeyed).await?
            }
            Ok(Err(_)) | Err(_) => continue,
        };
        let answer = answer.map_or_else(|error| format!("{error:#}\n"), |()| "done\n".to_owned());
        // Who asked may be gone.
        let _ = stream.get_mut().write_all(answer.as_bytes()).await;
    }
}

fn obey(line: &str, ca: &Publisher, hub: &Publisher) -> anyhow::Result<()> {
    match line.split_once(' ') {
        None if line == "prepare" => ca.prepare().and_then(|()| hub.prepare()),
        Some(("revoke", serial)) => {
            let serial = serial.parse().with_context(|| format!("serial `{serial}`"))?;
            ca.change(Fact::Revoked { serial, at: now_ms() / 1000 })
        }
        _ => bail!("neither `prepare` nor `revoke SERIAL`"),
    }
}

const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// For how long a snapshot that was made ready is sent to those who connect.
const PREPARED_LASTS: Duration = Duration::from_secs(30);
const CHANGES_WAITING_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use policies::feed::{Subscriber, Update};

    use super::*;

    #[test]
    fn a_subscriber_takes_the_snapshot_and_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let scale = Scale { terminals: 2, offices: 3, registrations: 7, revocations: 5 };
        Lab::make(dir.path(), &scale).unwrap();
        let made = fixture::read(dir.path()).unwrap();
        for (source, facts, count) in [
            (Source::Ca, ca_facts(&scale).unwrap(), 2 + 3 + 5),
            (Source::Hub, hub_facts(&scale, &made).unwrap(), 2 + 2 + 7),
        ] {
            let publisher = Publisher::new(dir.path(), source, facts).unwrap();
            let mut subscriber = Subscriber::new(source, &publisher.signer.public_key()).unwrap();
            let line = publisher.snapshot().unwrap();
            let Update::Replace(facts) = subscriber.accept(line.trim_end()).unwrap() else {
                unreachable!("a snapshot replaces")
            };
            assert_eq!(facts.len(), count);
            let beat = publisher.heartbeat().unwrap();
            assert_eq!(subscriber.accept(beat.trim_end()).unwrap(), Update::Alive);
        }
    }

    #[test]
    fn a_revocation_is_a_change_that_follows_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let scale = Scale { terminals: 1, offices: 0, registrations: 0, revocations: 0 };
        Lab::make(dir.path(), &scale).unwrap();
        let made = fixture::read(dir.path()).unwrap();
        let new = |source, facts| Publisher::new(dir.path(), source, facts).unwrap();
        let ca = new(Source::Ca, ca_facts(&scale).unwrap());
        let hub = new(Source::Hub, hub_facts(&scale, &made).unwrap());
        let mut subscriber = Subscriber::new(Source::Ca, &ca.signer.public_key()).unwrap();
        subscriber.accept(ca.snapshot().unwrap().trim_end()).unwrap();
        let mut changes = ca.changes.subscribe();
        let serial = revoked_serial(1);
        obey(&format!("revoke {serial}"), &ca, &hub).unwrap();
        let line = changes.try_recv().unwrap();
        let applied = subscriber.accept(line.trim_end()).unwrap();
        let Update::Apply(Fact::Revoked { serial: told, .. }) = applied else {
            unreachable!("a change applies: {applied:?}")
        };
        assert_eq!(told.as_str(), serial);
        let mut late = Subscriber::new(Source::Ca, &ca.signer.public_key()).unwrap();
        let line = ca.snapshot().unwrap();
        let Update::Replace(facts) = late.accept(line.trim_end()).unwrap() else {
            unreachable!("a snapshot replaces")
        };
        assert_eq!(facts.len(), 2);
        assert!(obey("revoke nonsense", &ca, &hub).is_err());
        assert!(obey("stop", &ca, &hub).is_err());
    }
}
