//! Loads that are not a stream of equal requests: storms, slow clients, revocation, large bodies,
//! silent connections.
//!
//! ```text
//!  TargetArgs ─► World (terminals, the server's address)
//!                  ├─► regulars: clients that are served all the time, on a thread of their own
//!                  └─► storm | slow | revocation | stream | idle ─► report
//! ```

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls::ClientConfig;
use tokio::runtime::{Builder, Runtime};

use crate::cli::TargetArgs;
use crate::client::{Answer, Ask, Connection, Server};
use crate::credentials::{self, Http, Terminal};
use crate::{Usage, cpu};

pub(crate) mod regulars;
pub(crate) mod storm;
pub(crate) mod slow;
pub(crate) mod revocation;
pub(crate) mod stream;
pub(crate) mod idle;
#[cfg(test)]
mod tests;

/// How often what happened, by its words.
pub(crate) type Counts = BTreeMap<String, u64>;

/// How often which status was answered.
pub(crate) type Statuses = BTreeMap<u16, u64>;

/// Whom to load, and as whom.
pub(crate) struct World {
    pub(crate) server: Arc<Server>,
    pub(crate) terminals: Vec<Terminal>,
}

impl World {
    /// Reads the terminals and looks the server up.
    ///
    /// # Errors
    /// What can not be read or found.
    pub(crate) async fn open(args: &TargetArgs) -> anyhow::Result<Self> {
        let terminals = credentials::read(args)?;
        let server = Server::find(&args.target, args.source_addresses).await?;
        Ok(Self { server: Arc::new(server), terminals })
    }

    /// Clients that ask for their own paths, each time with a full handshake; terminals are taken
    /// again if there are fewer of them.
    ///
    /// # Errors
    /// If no request can be made of what the terminals say.
    pub(crate) fn clients(&self, count: usize) -> anyhow::Result<Vec<Client>> {
        let cycled = self.terminals.iter().cycle().zip(0..count as u32);
        cycled.map(|(terminal, at)| Client::of(&self.server, terminal, Http::One, at)).collect()
    }
}

/// One client: its TLS settings and its request.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) settings: Arc<ClientConfig>,
    pub(crate) ask: Ask,
    pub(crate) http: Http,
    pub(crate) at: u32,
}

impl Client {
    /// The `at`th client, which asks for the terminal's path.
    ///
    /// # Errors
    /// If no request can be made of what the terminal says.
    pub(crate) fn of(
        server: &Server,
        terminal: &Terminal,
        http: Http,
        at: u32,
    ) -> anyhow::Result<Self> {
        let ask = Ask::get(server, terminal).with_context(|| {
            format!("no request can be made for the terminal `{}`", terminal.dir.display())
        })?;
        Ok(Self { settings: terminal.settings(http), ask, http, at })
    }

    /// Connects, with a limit in time.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(crate) async fn connect(&self, server: &Server) -> Result<Connection, String> {
        within(ANSWERS_WITHIN, server.connect(&self.settings, self.http, self.at)).await
    }

    /// Asks on an open connection, with a limit in time.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(crate) async fn ask(&self, connection: &mut Connection) -> Result<Answer, String> {
        within(ANSWERS_WITHIN, connection.ask(&self.ask)).await
    }
}

/// The outcome of `what`, if there is one in time.
pub(crate) async fn within<T>(
    limit: Duration,
    what: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, what).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

/// One more of `what`.
pub(crate) fn count(counts: &mut Counts, what: &str) {
    match counts.get_mut(what) {
        Some(count) => *count += 1,
        None => {
            counts.insert(what.to_owned(), 1);
        }
    }
}

/// `{text: n, …}` for people.
pub(crate) fn shown<K: std::fmt::Display>(counts: &BTreeMap<K, u64>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let each: Vec<_> = counts.iter().map(|(what, count)| format!("{count}× {what}")).collect();
    each.join(", ")
}

/// A latency for people.
pub(crate) fn shown_latency(latency: Option<&crate::report::Latency>) -> String {
    let Some(latency) = latency else { return "nothing measured".to_owned() };
    let ms = |us: u64| us as f64 / 1e3;
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({} of them)",
        ms(latency.p50_us),
        ms(latency.p99_us),
        ms(latency.max_us),
        latency.count
    )
}

/// One thread if the process may use one processor only: more would only stand in each other's way.
///
/// # Errors
/// If the operating system gives no threads.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder =
        if processors == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.enable_all().build().context("no threads for the load")
}

/// Refuses a load that needs more open files than the process may have.
///
/// # Errors
/// One line: what to raise, what to lower.
pub(crate) fn check_files(needed: usize, lower: &str) -> Result<(), Usage> {
    let limit = files_max();
    let needed = needed.saturating_add(FILES_SPARE);
    if needed <= limit {
        return Ok(());
    }
    Err(Usage(format!(
        "{needed} open files are needed and {limit} are permitted: raise the limit with \
         `ulimit -n {needed}`, or lower {lower}"
    )))
}

/// How many files the process may have open.
pub(crate) fn files_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Memory of a server before and while it was loaded.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Memory {
    pub(crate) before: u64,
    pub(crate) peak: u64,
}

/// Watches the memory of a process until it is asked.
pub(crate) struct MemoryWatch {
    before: u64,
    pid: u32,
    sampler: tokio::task::JoinHandle<u64>,
    over: Arc<tokio::sync::Notify>,
}

impl MemoryWatch {
    /// Begins to look at the process again and again; nothing without a process.
    ///
    /// # Errors
    /// If the process is not there.
    pub(crate) fn start(pid: Option<u32>) -> Result<Option<Self>, cpu::Error> {
        let Some(pid) = pid else { return Ok(None) };
        let before = cpu::resident_bytes(pid)?;
        let over = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&over);
        let sampler = tokio::spawn(async move {
            let mut peak = before;
            let mut ticks = tokio::time::interval(SAMPLE_EVERY);
            loop {
                tokio::select! {
                    () = told.notified() => return peak,
                    _ = ticks.tick() => {
                        // A process that is gone uses nothing; `finish` tells that it is gone.
                        peak = peak.max(cpu::resident_bytes(pid).unwrap_or_default());
                    }
                }
            }
        });
        Ok(Some(Self { before, pid, sampler, over }))
    }

    /// What was seen.
    ///
    /// # Errors
    /// If the process is gone meanwhile.
    pub(crate) async fn finish(self) -> anyhow::Result<Memory> {
        self.over.notify_one();
        let peak = self.sampler.await.context("the memory could not be watched")?;
        let peak = peak.max(cpu::resident_bytes(self.pid)?);
        Ok(Memory { before: self.before, peak })
    }
}

/// Whoever has no answer within this time has none.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// Files that the process itself has open: sockets of the runtime, libraries, output.
pub(crate) const FILES_SPARE: usize = 64;

const SAMPLE_EVERY: Duration = Duration::from_millis(50);
