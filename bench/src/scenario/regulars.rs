//! Clients that are served all the time, while something else happens to the server: what they
//! notice of it.
//!
//! They run on a thread of their own, so that they wait for the server and not for the rest of the
//! generator: a storm of handshakes keeps the generator's own thread busy too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::client::{Answer, Connection, Server};
use crate::report::{Histogram, Latency};
use crate::scenario::{Client, Counts, count};

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing; not counted.
    Settling,
    /// Nothing; what it is compared with.
    Alone,
    /// What is measured.
    Beside,
    /// The end.
    Over,
}

impl Phase {
    const fn number(self) -> u8 {
        match self {
            Self::Settling => 0,
            Self::Alone => 1,
            Self::Beside => 2,
            Self::Over => 3,
        }
    }

    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Settling,
            1 => Self::Alone,
            2 => Self::Beside,
            _ => Self::Over,
        }
    }
}

/// What they had in one phase.
pub(crate) struct Tally {
    histogram: Histogram,
    /// How late they were themselves after their pauses: what the generator is to blame for.
    late: Histogram,
    pub(crate) failures: Counts,
}

/// The same, told.
#[derive(Debug, Serialize)]
pub(crate) struct Served {
    pub(crate) per_second: f64,
    pub(crate) latency: Option<Latency>,
    pub(crate) failures: Counts,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Histogram::new()?, late: Histogram::new()?, failures: Counts::new() })
    }

    fn note(&mut self, outcome: &Result<Answer, String>, took: Duration) {
        match outcome {
            Ok(answer) if (200..300).contains(&answer.status) => self.histogram.record(took),
            Ok(answer) => count(&mut self.failures, &format!("status {}", answer.status)),
            Err(failure) => count(&mut self.failures, failure),
        }
    }

    fn add(&mut self, other: Self) {
        self.histogram.add(&other.histogram);
        self.late.add(&other.late);
        for (what, more) in other.failures {
            *self.failures.entry(what).or_default() += more;
        }
    }

    /// The latency of what was answered.
    pub(crate) fn latency(&self) -> Option<Latency> {
        self.histogram.latency()
    }

    /// How late the generator was to ask.
    pub(crate) fn late(&self) -> Option<Latency> {
        self.late.latency()
    }

    /// What was answered within `took`.
    pub(crate) fn served(self, took: Duration) -> Served {
        let latency = self.latency();
        let answered = latency.map_or(0, |latency| latency.count);
        let per_second = answered as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE);
        Served { per_second, latency, failures: self.failures }
    }
}

/// What they had in both phases.
pub(crate) struct Both {
    pub(crate) alone: Tally,
    pub(crate) beside: Tally,
}

impl Both {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { alone: Tally::new()?, beside: Tally::new()? })
    }
}

/// The clients at work; they end when this is dropped.
pub(crate) struct Regulars {
    phase: Arc<AtomicU8>,
    thread: Option<JoinHandle<anyhow::Result<Both>>>,
}

impl Regulars {
    /// Connects all `clients` and lets each ask every `pause`; without pause if it is zero.
    ///
    /// # Errors
    /// If one of them is not answered at the start.
    pub(crate) async fn start(
        server: Arc<Server>,
        clients: Vec<Client>,
        pause: Duration,
    ) -> anyhow::Result<Self> {
        let phase = Arc::new(AtomicU8::new(Phase::Settling.number()));
        let (ready, is_ready) = oneshot::channel();
        let seen = Arc::clone(&phase);
        let thread = std::thread::Builder::new()
            .name("regulars".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(serve(server, clients, pause, seen, ready))
            })
            .context("no thread for the clients that are served meanwhile")?;
        let regulars = Self { phase, thread: Some(thread) };
        let problem = match is_ready.await {
            Ok(Ok(())) => return Ok(regulars),
            Ok(Err(problem)) => problem,
            Err(_) => "their thread ended".to_owned(),
        };
        Err(anyhow!("clients are not served before anything happens: {problem}"))
    }

    /// From now on counts for `phase`.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase.number(), Ordering::Relaxed);
    }

    /// Ends them and tells what they had.
    ///
    /// # Errors
    /// If their thread failed.
    pub(crate) async fn finish(mut self) -> anyhow::Result<Both> {
        self.enter(Phase::Over);
        let thread = self.thread.take().context("the clients have ended before")?;
        let both = tokio::task::spawn_blocking(move || thread.join()).await?;
        both.map_err(|_| anyhow!("the thread of the clients that were served meanwhile failed"))?
    }
}

impl Drop for Regulars {
    fn drop(&mut self) {
        self.enter(Phase::Over);
    }
}

async fn serve(
    server: Arc<Server>,
    clients: Vec<Client>,
    pause: Duration,
    phase: Arc<AtomicU8>,
    ready: oneshot::Sender<Result<(), String>>,
) -> anyhow::Result<Both> {
    let mut connected = Vec::with_capacity(clients.len());
    for client in clients {
        match first(&server, &client).await {
            Ok(connection) => connected.push((client, connection)),
            Err(problem) => {
                // Whoever waits for it may be gone.
                let _ = ready.send(Err(problem));
                return Both::new();
            }
        }
    }
    let _ = ready.send(Ok(()));
    let mut tasks = tokio::task::JoinSet::new();
    for (client, connection) in connected {
        let (server, phase) = (Arc::clone(&server), Arc::clone(&phase));
        tasks.spawn(async move { keep_asking(&server, &client, connection, pause, &phase).await });
    }
    let mut all = Both::new()?;
    while let Some(one) = tasks.join_next().await {
        let one = one.context("a client that was served meanwhile failed")??;
        all.alone.add(one.alone);
        all.beside.add(one.beside);
    }
    Ok(all)
}

/// A connection on which a first request was answered well.
async fn first(server: &Server, client: &Client) -> Result<Connection, String> {
    let mut connection = client.connect(server).await?;
    let answer = client.ask(&mut connection).await?;
    if (200..300).contains(&answer.status) {
        Ok(connection)
    } else {
        Err(format!("status {}", answer.status))
    }
}

async fn keep_asking(
    server: &Server,
    client: &Client,
    connection: Connection,
    pause: Duration,
    phase: &AtomicU8,
) -> anyhow::Result<Both> {
    let mut both = Both::new()?;
    let mut connection = Some(connection);
    let mut due = Instant::now();
    loop {
        let late = wait_until(due).await;
        // What is asked in one phase counts for it, however late the answer comes.
        let now = Phase::of(phase.load(Ordering::Relaxed));
        let outcome = ask(server, client, &mut connection).await;
        let answered = Instant::now();
        // From the moment when it was due: an answer that takes long delays the questions behind
        // it, and the wait of those is the server's doing too.
        let took = answered.saturating_duration_since(due);
        due = match outcome {
            Ok(_) if pause.is_zero() => answered,
            Ok(_) => due + pause,
            // A server that refuses at once must not be asked without end.
            Err(_) => answered + pause.max(AFTER_FAILURE),
        };
        let tally = match now {
            Phase::Settling => continue,
            Phase::Alone => &mut both.alone,
            Phase::Beside => &mut both.beside,
            Phase::Over => return Ok(both),
        };
        tally.note(&outcome, took);
        tally.late.record(late);
    }
}

/// Waits, and tells how much longer than meant; nothing if the moment was over before.
async fn wait_until(due: Instant) -> Duration {
    if Instant::now() >= due {
        tokio::task::yield_now().await;
        return Duration::ZERO;
    }
    tokio::time::sleep_until(due.into()).await;
    due.elapsed()
}

/// Asks on the connection, or on a new one if the last has failed or come to its end.
async fn ask(
    server: &Server,
    client: &Client,
    connection: &mut Option<Connection>,
) -> Result<Answer, String> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => client.connect(server).await?,
    };
    let answer = client.ask(&mut open).await?;
    *connection = Some(open).filter(|open| !open.is_spent());
    Ok(answer)
}

const AFTER_FAILURE: Duration = Duration::from_millis(10);
