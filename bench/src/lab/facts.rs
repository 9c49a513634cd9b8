//! Publishes a fixture's facts to gateways, as the cert-authority and the hub do: two signed feeds
//! on unix sockets (see `policies::feed`).
//!
//! The mass of facts is made from numbers. `revoke SERIAL` on the control socket becomes a change
//! for all subscribers at once. A snapshot is signed part by part beside the heartbeats, so that no
//! gateway that is being measured loses its feed while the next one is started.

use std::io::{BufRead as _, BufReader as StdBufReader, Write as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use gateway::facts_feed::now_ms;
use policies::feed::{
    Fact, Hello, Message, PART_FACTS_MAX, Parts, Position, Signer, Source, next_head,
};
use policies::national::{Nation, Size};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
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
    let nation = match args.set {
        FactsSet::Country => Some(Arc::new(nation(lab.scale())?)),
        FactsSet::Full | FactsSet::Unrevoked | FactsSet::Bare => None,
    };
    let new = |source, facts| Publisher::new(&args.dir, source, facts, nation.clone());
    let ca = new(Source::Ca, ca_facts(&scale)?)?;
    let hub = new(Source::Hub, hub_facts(&scale, &made)?)?;
    let sockets = Sockets::of(&args.dir, args.set);
    let heartbeat = Duration::from_millis(args.heartbeat_ms);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (ca, hub) = (Arc::new(ca), Arc::new(hub));
        tokio::try_join!(
            publish(listen(&sockets.ca)?, Arc::clone(&ca), heartbeat),
            publish(listen(&sockets.hub)?, hub, heartbeat),
            control(listen(&sockets.control)?, ca),
        )
        .map(|_| ())
    })
}

fn scale_of(scale: &Scale, set: FactsSet) -> Scale {
    match set {
        FactsSet::Full => scale.clone(),
        FactsSet::Unrevoked => Scale { revocations: 0, ..scale.clone() },
        FactsSet::Bare | FactsSet::Country => {
            Scale { offices: 0, registrations: 0, revocations: 0, terminals: scale.terminals }
        }
    }
}

/// A country with these registrations, and of everything else as much as goes with them.
fn nation(scale: &Scale) -> anyhow::Result<Nation> {
    let whole = Size::default();
    let registrations = u64::try_from(scale.registrations)?;
    let share = |count: u64| (count * registrations / whole.registrations).max(1);
    let size = Size {
        offices: share(whole.offices).max(3),
        registrations,
        insured: share(whole.insured),
        consents: share(whole.consents),
        revoked: share(whole.revoked),
        ..whole
    };
    Ok(Nation::new(size)?)
}

/// Facts as JSON texts.
fn texts(facts: impl Iterator<Item = anyhow::Result<Fact>>) -> anyhow::Result<Vec<String>> {
    facts.map(|fact| Ok(serde_json::to_string(&fact?)?)).collect()
}

fn ca_facts(scale: &Scale) -> anyhow::Result<Vec<String>> {
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
    texts(offices.chain(revoked))
}

fn hub_facts(scale: &Scale, made: &Made) -> anyhow::Result<Vec<String>> {
    let staff_key = Fact::StaffKey {
        kid: fixture::STAFF_KEY_ID.to_owned(),
        x: made.staff_key_x.clone(),
        y: made.staff_key_y.clone(),
        retired: false,
    };
    let sharing = Fact::Sharing { insurer: "131016".parse()?, from: Some(1) };
    let registration = |office: String, insured: String| {
        let (office, insured) = (office.parse()?, insured.parse()?);
        Ok(Fact::Registration { office, insured, from: 1_790_000_000, until: None, ended: None })
    };
    let own =
        (0..scale.terminals).map(|at| registration(fixture::office(at), fixture::insured(at)));
    // A person has about three offices, an office many persons.
    let offices = scale.offices.max(1);
    let others = (0..scale.registrations)
        .map(|at| registration(other_office(at % offices), other_insured(at / 3)));
    texts([Ok(staff_key), Ok(sharing)].into_iter().chain(own).chain(others))
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
    /// The facts at sequence 0, as JSON texts.
    facts: Vec<String>,
    /// More facts at sequence 0.
    nation: Option<Arc<Nation>>,
    state: Mutex<State>,
    changes: broadcast::Sender<(u64, Arc<str>)>,
}

#[derive(Clone)]
struct State {
    position: Position,
    /// The signed changes, from sequence 1 on, and the texts of their facts.
    changed: Vec<(Arc<str>, String)>,
    /// The head after each change, from sequence 0 on.
    heads: Vec<String>,
}

impl Publisher {
    fn new(
        dir: &Path,
        source: Source,
        facts: Vec<String>,
        nation: Option<Arc<Nation>>,
    ) -> anyhow::Result<Self> {
        let path = dir.join(format!("keys/feed-{}.pkcs8", source.as_str()));
        let der = std::fs::read(&path).with_context(|| format!("key `{}`", path.display()))?;
        let position = Position::genesis();
        let heads = vec![position.head.clone()];
        Ok(Self {
            source,
            signer: Signer::from_pkcs8(source, &der)?,
            facts,
            nation,
            state: Mutex::new(State { position, changed: Vec::new(), heads }),
            changes: broadcast::channel(CHANGES_WAITING_MAX).0,
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a change and sends it to all subscribers.
    fn change(&self, fact: Fact) -> anyhow::Result<()> {
        let text = serde_json::to_string(&fact)?;
        let mut state = self.state();
        let Position { seq, head: previous } = state.position.clone();
        let (seq, head) = (seq + 1, next_head(&previous, seq + 1, &text));
        let sent_at_ms = now_ms();
        let change = Message::Change { seq, previous, latest_seq: seq, sent_at_ms, fact };
        let line: Arc<str> = format!("{}\n", self.signer.line(&change)?).into();
        state.heads.push(head.clone());
        state.position = Position { seq, head };
        state.changed.push((line.clone(), text));
        // Nobody may be listening.
        let _ = self.changes.send((seq, line));
        Ok(())
    }

    /// The heartbeat for one who stands at `seq`, which is a place of this log.
    fn heartbeat_at(&self, seq: u64) -> anyhow::Result<String> {
        let head = self.state().heads[seq as usize].clone();
        let beat = Message::Heartbeat { seq, head, sent_at_ms: now_ms() };
        Ok(format!("{}\n", self.signer.line(&beat)?))
    }

    /// The signed changes after `have`, if that is a place of this log.
    fn changes_after(&self, have: &Position) -> Option<Vec<Arc<str>>> {
        let (state, seq) = (self.state(), have.seq as usize);
        (state.heads.get(seq) == Some(&have.head))
            .then(|| state.changed[seq..].iter().map(|(line, _)| line.clone()).collect())
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

/// What the subscriber lacks, then changes and heartbeats; acknowledgements are read and dropped.
async fn subscriber(
    stream: UnixStream,
    publisher: Arc<Publisher>,
    heartbeat: Duration,
) -> anyhow::Result<()> {
    let (answers, mut stream) = stream.into_split();
    let mut answers = BufReader::new(answers).lines();
    let hello: Hello = serde_json::from_str(&answers.next_line().await?.unwrap_or_default())?;
    tokio::spawn(async move { while let Ok(Some(_)) = answers.next_line().await {} });
    // Before the state is looked at, so that no change falls in between.
    let mut changes = publisher.changes.subscribe();
    let missed = hello.have.and_then(|have| Some((have.seq, publisher.changes_after(&have)?)));
    let mut seq = match missed {
        Some((seq, lines)) => {
            for line in &lines {
                stream.write_all(line.as_bytes()).await?;
            }
            seq + lines.len() as u64
        }
        None => send_snapshot(&mut stream, &publisher, hello.seen).await?,
    };
    stream.write_all(publisher.heartbeat_at(seq)?.as_bytes()).await?;
    loop {
        match tokio::time::timeout(heartbeat, changes.recv()).await {
            Ok(Ok((known, _))) if known <= seq => {}
            Ok(Ok((next, line))) => {
                stream.write_all(line.as_bytes()).await?;
                seq = next;
            }
            Ok(Err(_)) => bail!("the subscriber is too slow"),
            Err(_) => stream.write_all(publisher.heartbeat_at(seq)?.as_bytes()).await?,
        }
    }
}

/// Returns the sequence that it stands at.
async fn send_snapshot(
    stream: &mut OwnedWriteHalf,
    publisher: &Arc<Publisher>,
    seen: Option<Position>,
) -> anyhow::Result<u64> {
    let state = publisher.state().clone();
    let seen_head = seen.and_then(|seen| state.heads.get(seen.seq as usize).cloned());
    let seq = state.position.seq;
    let mut parts = Parts::begin(state.position, now_ms())?;
    let changed: Vec<String> = state.changed.into_iter().map(|(_, text)| text).collect();
    for chunk in publisher.facts.chunks(PART_FACTS_MAX).chain(changed.chunks(PART_FACTS_MAX)) {
        let line = parts.part(&publisher.signer, chunk)? + "\n";
        stream.write_all(line.as_bytes()).await?;
        tokio::task::yield_now().await;
    }
    if let Some(nation) = &publisher.nation {
        let mut facts: Box<dyn Iterator<Item = Fact> + Send> = match publisher.source {
            Source::Ca => Box::new(nation.ca_facts()),
            Source::Hub => Box::new(nation.hub_facts()),
        };
        loop {
            let chunk =
                facts.by_ref().take(PART_FACTS_MAX).map(|fact| serde_json::to_string(&fact));
            let chunk: Vec<String> = chunk.collect::<Result<_, _>>()?;
            if chunk.is_empty() {
                break;
            }
            let line = parts.part(&publisher.signer, &chunk)? + "\n";
            stream.write_all(line.as_bytes()).await?;
            tokio::task::yield_now().await;
        }
    }
    let line = parts.end(&publisher.signer, seen_head)?.0 + "\n";
    stream.write_all(line.as_bytes()).await?;
    Ok(seq)
}

async fn control(listener: UnixListener, ca: Arc<Publisher>) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(1), stream.read_line(&mut line)).await;
        let answer = match read {
            Ok(Ok(_)) => obey(line.trim(), &ca),
            Ok(Err(_)) | Err(_) => continue,
        };
        let answer = answer.map_or_else(|error| format!("{error:#}\n"), |()| "done\n".to_owned());
        // Who asked may be gone.
        let _ = stream.get_mut().write_all(answer.as_bytes()).await;
    }
}

fn obey(line: &str, ca: &Publisher) -> anyhow::Result<()> {
    match line.split_once(' ') {
        Some(("revoke", serial)) => {
            let serial = serial.parse().with_context(|| format!("serial `{serial}`"))?;
            ca.change(Fact::Revoked { serial, at: now_ms() / 1000 })
        }
        _ => bail!("not `revoke SERIAL`"),
    }
}

const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const CHANGES_WAITING_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use policies::feed::{Subscriber, Update};

    use super::*;

    /// A gateway's side of one feed.
    struct Gateway {
        subscriber: Subscriber,
        stream: BufReader<UnixStream>,
    }

    impl Gateway {
        async fn connect(publisher: &Arc<Publisher>, subscriber: Subscriber) -> Self {
            let (mut own, other) = UnixStream::pair().unwrap();
            let hello = serde_json::to_string(&subscriber.hello(Some("gw-1"))).unwrap() + "\n";
            own.write_all(hello.as_bytes()).await.unwrap();
            let serve = super::subscriber(other, publisher.clone(), Duration::from_millis(50));
            tokio::spawn(serve);
            Self { subscriber, stream: BufReader::new(own) }
        }

        async fn next(&mut self) -> Update {
            let mut line = String::new();
            self.stream.read_line(&mut line).await.unwrap();
            self.subscriber.accept(line.trim_end()).unwrap()
        }

        /// The facts of the snapshot.
        async fn snapshot(&mut self) -> Vec<Fact> {
            let mut all = Vec::new();
            loop {
                match self.next().await {
                    Update::Part { facts, .. } => all.extend(facts),
                    Update::Whole => return all,
                    Update::Apply(_) | Update::Alive => unreachable!("amid a snapshot"),
                }
            }
        }
    }

    fn new_subscriber(source: Source, publisher: &Publisher) -> Subscriber {
        Subscriber::new(source, &publisher.signer.public_key()).unwrap()
    }

    #[tokio::test]
    async fn a_subscriber_takes_the_snapshot_and_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let scale = Scale { terminals: 2, offices: 3, registrations: 5_000, revocations: 5 };
        Lab::make(dir.path(), &scale).unwrap();
        let made = fixture::read(dir.path()).unwrap();
        for (source, facts, count) in [
            (Source::Ca, ca_facts(&scale).unwrap(), 2 + 3 + 5),
            (Source::Hub, hub_facts(&scale, &made).unwrap(), 2 + 2 + 5_000),
        ] {
            let publisher = Arc::new(Publisher::new(dir.path(), source, facts, None).unwrap());
            let subscriber = new_subscriber(source, &publisher);
            let mut gateway = Gateway::connect(&publisher, subscriber).await;
            assert_eq!(gateway.snapshot().await.len(), count);
            assert_eq!(gateway.next().await, Update::Alive);
            assert_eq!(gateway.next().await, Update::Alive);
        }
    }

    #[tokio::test]
    async fn a_revocation_is_a_change_that_follows_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let scale = Scale { terminals: 1, offices: 0, registrations: 0, revocations: 0 };
        Lab::make(dir.path(), &scale).unwrap();
        let facts = ca_facts(&scale).unwrap();
        let ca = Publisher::new(dir.path(), Source::Ca, facts, None).unwrap();
        let ca = Arc::new(ca);
        let mut gateway = Gateway::connect(&ca, new_subscriber(Source::Ca, &ca)).await;
        assert_eq!(gateway.snapshot().await.len(), 1);
        assert_eq!(gateway.next().await, Update::Alive);
        let (first, second) = (revoked_serial(1), revoked_serial(2));
        obey(&format!("revoke {first}"), &ca).unwrap();
        let revoked = |update: Update| {
            let Update::Apply(Fact::Revoked { serial, .. }) = update else {
                unreachable!("a change applies: {update:?}")
            };
            serial.to_string()
        };
        assert_eq!(revoked(gateway.next().await), first);
        // One that was away gets what came meanwhile; a new one gets everything.
        obey(&format!("revoke {second}"), &ca).unwrap();
        let mut back = Gateway::connect(&ca, gateway.subscriber).await;
        assert_eq!(revoked(back.next().await), second);
        let mut late = Gateway::connect(&ca, new_subscriber(Source::Ca, &ca)).await;
        assert_eq!(late.snapshot().await.len(), 3);
        assert!(obey("revoke nonsense", &ca).is_err());
        assert!(obey("stop", &ca).is_err());
    }
}
