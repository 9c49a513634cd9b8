//! Starts the four parts in order, keeps them running, and stops them in reverse order.
//!
//! ```text
//!  (heads of the audit logs, if brought) ─► signer ─► ra ─► hub ─► gateway ─► /readyz 200 ─► up
//! ```
//!
//! Invariants: the box is up only when every part is ready; a start that fails half-way stops what
//! it started; `run/supervisor.json` is replaced as a whole on every change.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::admin;
use crate::clock;
use crate::files;
use crate::layout::{Layout, Part};
use crate::lock::Lock;
use crate::output::progress;
use crate::part::Record;
use crate::part_config;
use crate::process::{self, READY_TIMEOUT, Running, Spec};

/// What the whole box is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Parts are being started for the first time.
    Starting,
    /// Every part was ready; whoever dies is restarted.
    Up,
    /// Parts are being stopped.
    Stopping,
}

/// What `run/supervisor.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The supervisor's process.
    pub(crate) pid: u32,
    /// What the box is doing.
    pub(crate) phase: Phase,
    /// When the supervisor started, RFC 3339.
    pub(crate) started_at: String,
    /// The parts, in the order of starting.
    pub(crate) parts: Vec<Record>,
    /// `gateway`, `enrol` and `admin`, where they are known.
    pub(crate) addresses: BTreeMap<String, SocketAddr>,
    /// Upgrades of the gateway since the start; `None`: this supervisor knows of none.
    #[serde(default)]
    pub(crate) upgrades: Option<Upgrades>,
}

/// What became of the upgrades of the gateway.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Upgrades {
    /// Those that were asked for and have ended, well or not.
    pub(crate) done: u64,
    /// Why the last one failed, if it did.
    pub(crate) failed: Option<String>,
}

impl Status {
    /// Reads the file of a folder; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(crate) fn read(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = status_file(layout);
        let text = match files::read_text(&path) {
            // Also when it goes between two looks: the supervisor removes it at its end.
            Err(_) if !path.exists() => return Ok(None),
            read => read?,
        };
        let status = serde_json::from_str(&text)
            .with_context(|| format!("file `{}` is not understood", path.display()))?;
        Ok(Some(status))
    }

    /// Whether the process of this record still is the supervisor of this folder: it runs
    /// `sekisho` and holds the folder's lock. A number may have been given to another program,
    /// or to the supervisor of another folder, since.
    pub(crate) fn is_live(&self, layout: &Layout) -> bool {
        let program = process::program_of(self.pid);
        program.as_deref() == Some(PROGRAM) && Lock::is_held_by(layout, self.pid)
    }

    /// One address of the running box.
    ///
    /// # Errors
    /// When it is not known.
    pub(crate) fn address(&self, name: &str) -> anyhow::Result<SocketAddr> {
        self.addresses
            .get(name)
            .copied()
            .with_context(|| format!("the box has told no `{name}` address: see `sekisho status`"))
    }
}

/// The file in which the supervisor says what it does.
pub(crate) fn status_file(layout: &Layout) -> PathBuf {
    layout.run("supervisor.json")
}

/// The running box.
pub(crate) struct Supervisor {
    layout: Layout,
    shared: Arc<Shared>,
    watchers: Vec<Watcher>,
}

struct Watcher {
    name: &'static str,
    stop: oneshot::Sender<()>,
    upgrade: Arc<Notify>,
    task: JoinHandle<()>,
}

struct Shared {
    file: PathBuf,
    status: Mutex<Status>,
}

impl Supervisor {
    /// A supervisor that has started nothing yet. Its record takes the place of whatever an
    /// earlier run left; the caller holds the folder's lock.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub(crate) fn new(layout: &Layout) -> anyhow::Result<Self> {
        let status = Status {
            pid: std::process::id(),
            phase: Phase::Starting,
            started_at: clock::now_text(),
            parts: Part::ALL.iter().map(|part| Record::new(part.as_str())).collect(),
            addresses: BTreeMap::new(),
            upgrades: Some(Upgrades::default()),
        };
        let file = status_file(layout);
        files::write_private(&file, serde_json::to_string_pretty(&status)?.as_bytes())?;
        let shared = Shared { file, status: Mutex::new(status) };
        Ok(Self { layout: layout.clone(), shared: Arc::new(shared), watchers: Vec::new() })
    }

    /// Starts every part in order and waits until the gateway says that it is ready. What brings
    /// the heads of the audit logs out, if they are to be brought anywhere, comes first and so
    /// ends last: the heads with which the parts close their logs leave too.
    ///
    /// # Errors
    /// When a part does not become ready; the caller then calls [`Supervisor::stop`].
    pub(crate) async fn start(&mut self, brings_heads: bool) -> anyhow::Result<()> {
        let specs: Vec<Spec> = Part::ALL
            .iter()
            .map(|part| Spec::new(&self.layout, *part))
            .collect::<anyhow::Result<_>>()?;
        if brings_heads {
            let record = Record::new(process::HEAD_BRINGER);
            self.shared.change(|status| status.parts.push(record));
            self.start_part(Spec::head_bringer(&self.layout)?).await?;
        }
        for spec in specs {
            let spec = match spec.name == Part::Gateway.as_str() {
                true => spec.with_sockets(gateway_sockets(&self.layout).await?),
                false => spec,
            };
            self.start_part(spec).await?;
        }
        self.keep_ports()?;
        gateway_is_ready(&self.shared.snapshot()).await?;
        self.shared.change(|status| status.phase = Phase::Up);
        Ok(())
    }

    /// The current state.
    pub(crate) fn status(&self) -> Status {
        self.shared.snapshot()
    }

    /// Has a new process take the gateway's place; the record says how it went.
    pub(crate) fn upgrade(&self) {
        let gateway = self.watchers.iter().find(|part| part.name == Part::Gateway.as_str());
        if let Some(gateway) = gateway {
            gateway.upgrade.notify_one();
        }
    }

    /// Stops every part in reverse order and removes `run/supervisor.json`.
    pub(crate) async fn stop(mut self) {
        self.shared.change(|status| status.phase = Phase::Stopping);
        while let Some(watcher) = self.watchers.pop() {
            progress(&format!("stopping {}", watcher.name));
            let _already_gone = watcher.stop.send(());
            let _joined = watcher.task.await;
        }
        let _already_gone = std::fs::remove_file(&self.shared.file);
    }

    async fn start_part(&mut self, spec: Spec) -> anyhow::Result<()> {
        let name = spec.name;
        progress(&format!("starting {name}"));
        let mut running = spec.spawn()?;
        self.shared.record(name, |record| record.spawned(running.child.id()));
        match spec.ready(&mut running).await {
            Ok(addresses) => self.shared.ready(name, &addresses),
            Err(error) => {
                running.stop().await;
                self.shared.record(name, Record::stopped);
                return Err(error);
            }
        }
        let (stop, stopped) = oneshot::channel();
        let upgrade = Arc::new(Notify::new());
        let asked = Arc::clone(&upgrade);
        let task = tokio::spawn(watch(spec, running, Arc::clone(&self.shared), stopped, asked));
        self.watchers.push(Watcher { name, stop, upgrade, task });
        Ok(())
    }

    /// A listener on port 0 got a free port: writes it down, so that a restarted part comes back
    /// on the same one.
    fn keep_ports(&self) -> anyhow::Result<()> {
        let status = self.shared.snapshot();
        for (part, key, name) in LISTENERS {
            let Some(address) = status.addresses.get(name) else { continue };
            let configured = part_config::value(&self.layout, part, key)?;
            if configured.parse::<SocketAddr>().is_ok_and(|written| written.port() == 0) {
                part_config::change(&self.layout, part, key, &address.to_string())?;
            }
        }
        Ok(())
    }
}

impl Shared {
    fn snapshot(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut status);
        let text = serde_json::to_string_pretty(&*status).unwrap_or_default();
        if let Err(error) = files::write_private(&self.file, text.as_bytes()) {
            progress(&format!("warning: {error:#}"));
        }
        result
    }

    fn record<T>(&self, name: &str, change: impl FnOnce(&mut Record) -> T) -> Option<T> {
        self.change(|status| status.parts.iter_mut().find(|record| record.name == name).map(change))
    }

    fn ready(&self, name: &str, told: &Value) {
        self.record(name, |record| record.ready(clock::now_text()));
        self.change(|status| {
            let own = LISTENERS.iter().filter(|(owner, ..)| owner.as_str() == name);
            for (listener, _, name) in own {
                let key = told_key(*listener, name);
                let address = told.get(key).and_then(Value::as_str).and_then(|t| t.parse().ok());
                if let Some(address) = address {
                    status.addresses.insert((*name).to_owned(), address);
                }
            }
        });
    }

    fn upgraded(&self, failed: Option<String>) {
        self.change(|status| {
            let upgrades = status.upgrades.get_or_insert_default();
            (upgrades.done, upgrades.failed) = (upgrades.done + 1, failed);
        });
    }

    fn exited(&self, name: &str, how: &str, lived: Duration) -> Duration {
        let delay = self.record(name, |record| record.exited(how.to_owned(), lived));
        let delay = delay.unwrap_or(crate::part::BACKOFF_MAX);
        progress(&format!("{how}; starting it again in {} ms", delay.as_millis()));
        delay
    }
}

/// The key under which a part's ready file tells an address.
fn told_key(part: Part, name: &'static str) -> &'static str {
    match name {
        "admin" | "closed" if part == Part::Gateway => name,
        _ => "public",
    }
}

/// The gateway's listening sockets: public, admin, and the closed network's if there is one. None
/// where the configuration's addresses are not understood: the gateway says what is wrong there.
async fn gateway_sockets(layout: &Layout) -> anyhow::Result<Vec<TcpListener>> {
    let mut sockets = Vec::new();
    for key in ["listen", "admin_listen", CLOSED_NETWORK] {
        let text = match part_config::find(layout, Part::Gateway, key)? {
            Some(text) => text,
            None if key == CLOSED_NETWORK => break,
            None => part_config::value(layout, Part::Gateway, key)?,
        };
        let Ok(address) = text.parse::<SocketAddr>() else { return Ok(Vec::new()) };
        let socket = tokio::net::TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} (key `{key}`): free the port or choose another")
        })?;
        sockets.push(socket.into_std()?);
    }
    Ok(sockets)
}

/// Restarts the part whenever it dies, until told to stop.
async fn watch(
    spec: Spec,
    mut running: Running,
    shared: Arc<Shared>,
    mut stop: oneshot::Receiver<()>,
    upgrade: Arc<Notify>,
) {
    // Those whose place was taken: killed with this task if they are still there.
    let mut leaving = JoinSet::new();
    loop {
        let ended = tokio::select! {
            ended = running.child.wait() => ended,
            _ = &mut stop => break,
            () = upgrade.notified() => {
                let successor = tokio::select! {
                    successor = succeed(&spec) => successor,
                    _ = &mut stop => break,
                };
                let failed = match successor {
                    Ok(successor) => {
                        let (pid, now) = (successor.child.id(), clock::now_text());
                        shared.record(spec.name, |record| record.replaced(pid, now));
                        leaving.spawn(std::mem::replace(&mut running, successor).leave());
                        None
                    }
                    Err(error) => Some(format!("{error:#}")),
                };
                shared.upgraded(failed);
                continue;
            }
            Some(_) = leaving.join_next() => continue,
        };
        let how = match ended {
            Ok(status) => spec.how_it_ended(status, &running),
            Err(error) => format!("{} ended: {error}", spec.title),
        };
        let delay = shared.exited(spec.name, &how, running.started.elapsed());
        match restart(&spec, &shared, delay, &mut stop).await {
            Some(restarted) => running = restarted,
            None => {
                shared.record(spec.name, Record::stopped);
                return;
            }
        }
    }
    shared.record(spec.name, Record::stopping);
    if !running.stop().await {
        progress(&format!("{} did not end in time and was killed", spec.title));
    }
    shared.record(spec.name, Record::stopped);
}

/// A process that has taken the place of the one that runs.
async fn succeed(spec: &Spec) -> anyhow::Result<Running> {
    spec.check().await?;
    let mut running = spec.spawn_successor()?;
    match spec.ready(&mut running).await {
        Ok(_) => Ok(running),
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

/// Tries until the part is ready; `None` when told to stop.
async fn restart(
    spec: &Spec,
    shared: &Shared,
    mut delay: Duration,
    stop: &mut oneshot::Receiver<()>,
) -> Option<Running> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = &mut *stop => return None,
        }
        let started = Instant::now();
        let mut running = match spec.spawn() {
            Ok(running) => running,
            Err(error) => {
                delay = shared.exited(spec.name, &format!("{error:#}"), started.elapsed());
                continue;
            }
        };
        shared.record(spec.name, |record| record.spawned(running.child.id()));
        let ready = tokio::select! {
            ready = spec.ready(&mut running) => Some(ready),
            _ = &mut *stop => None,
        };
        match ready {
            Some(Ok(addresses)) => {
                shared.ready(spec.name, &addresses);
                progress(&format!("{} is up again", spec.title));
                return Some(running);
            }
            Some(Err(error)) => {
                running.stop().await;
                delay = shared.exited(spec.name, &format!("{error:#}"), started.elapsed());
            }
            None => {
                running.stop().await;
                return None;
            }
        }
    }
}

async fn gateway_is_ready(status: &Status) -> anyhow::Result<()> {
    let address = status.address("admin")?.to_string();
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let answer = admin::get_plain(&address, "/readyz").await;
        if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = match answer {
                Ok(answer) => answer.body.to_string(),
                Err(error) => format!("{error:#}"),
            };
            anyhow::bail!("the gateway runs but is not ready: {why}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The file name of this program.
const PROGRAM: &str = "sekisho";

/// Which part listens where: part, key in its file, name in `addresses`.
pub(crate) const LISTENERS: [(Part, &str, &str); 4] = [
    (Part::Gateway, "listen", "gateway"),
    (Part::Ra, "listen", "enrol"),
    (Part::Gateway, "admin_listen", "admin"),
    (Part::Gateway, CLOSED_NETWORK, "closed"),
];

/// The key of the gateway's listener on the closed network, which not every box has.
const CLOSED_NETWORK: &str = "closed_network.listen";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_supervisor_replaces_the_record_of_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        files::private_folder(&layout.run("")).unwrap();
        let dead = r#"{"pid":1,"phase":"up","started_at":"x","parts":[],
            "addresses":{"gateway":"127.0.0.1:1"}}"#;
        std::fs::write(status_file(&layout), dead).unwrap();
        assert!(!Status::read(&layout).unwrap().unwrap().is_live(&layout));
        let _supervisor = Supervisor::new(&layout).unwrap();
        let status = Status::read(&layout).unwrap().unwrap();
        assert_eq!((status.pid, status.phase), (std::process::id(), Phase::Starting));
        assert!(status.addresses.is_empty());
    }
}
