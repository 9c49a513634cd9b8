//! `sekisho audit push`: brings each new signed head of the four logs to every sink.
//!
//! ```text
//!  checkpoint files ─► watch: continues the last one? ─► accepted ─┬─► sink task: folder
//!                        └─ no: told loudly, not brought           ├─► sink task: HTTP
//!  run/heads.json ◄── what was accepted and delivered ◄────────────┴─► sink task: syslog
//! ```
//!
//! A process of its own: it holds no key, cannot write a log, and may fail without stopping the
//! gateway. Invariants: one sink never waits for another; a head that is smaller than the last
//! accepted one, or that does not continue it, is not brought anywhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use audit_log::{Checkpoint, ProofError, VerifyingKey};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::audit_keys::{self, Pins};
use crate::cli::Context;
use crate::clock;
use crate::exit::usage;
use crate::files;
use crate::layout::{Layout, Part};
use crate::output::{self, progress};
use crate::process::HEAD_BRINGER;
use crate::settings::Settings;

use super::heads::{Delivered, LogState, Sink, State, state_file};

/// Arguments of `push`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on, with each new head, until stopped
    #[arg(long)]
    follow: bool,
    /// `sekisho up` runs this: end when standard input does
    #[arg(long, hide = true, requires = "follow")]
    supervised: bool,
}

/// Runs `push`; `false` when a head could not be brought somewhere.
///
/// # Errors
/// When no sink is configured, or another process already brings the heads.
pub(super) async fn run(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    layout.must_exist()?;
    let settings = Settings::read(&layout.settings())?;
    let sinks = settings.heads.as_ref().map(Sink::all).unwrap_or_default();
    if sinks.is_empty() {
        return Err(usage(format!(
            "no sink is configured: write one under [audit.heads] of `{}`",
            layout.settings().display()
        )));
    }
    if args.follow { follow(args, layout, sinks).await } else { once(context, &sinks).await }
}

/// One look, one delivery to each sink.
async fn once(context: &Context, sinks: &[Sink]) -> anyhow::Result<bool> {
    let layout = &context.layout;
    let Some(_lock) = try_lock(layout)? else {
        anyhow::bail!(
            "another process already brings the heads of this folder: see `sekisho status`"
        )
    };
    let shared = Shared::open(layout);
    let heads = tokio::task::block_in_place(|| shared.look(layout));
    for sink in sinks {
        shared.deliver(sink, &heads).await;
    }
    shared.save();
    let state = shared.snapshot();
    let told = state.told();
    output::data(context.json, &json!({"ok": told.is_ok(), "state": state}), || match &told {
        Ok(told) => format!("✓ {told}"),
        Err(problems) => format!("✗ {problems}"),
    });
    Ok(told.is_ok())
}

async fn follow(args: &Args, layout: &Layout, sinks: Vec<Sink>) -> anyhow::Result<bool> {
    let mut stop = Stop::new(args.supervised)?;
    if args.supervised {
        say_ready(layout)?;
    }
    let _lock = tokio::select! {
        lock = lock(layout) => lock?,
        () = stop.wait() => return Ok(true),
    };
    let shared = Arc::new(Shared::open(layout));
    let (publish, published) = watch::channel(Heads::new());
    let names: Vec<String> = sinks.iter().map(ToString::to_string).collect();
    progress(&format!("heads of the audit logs are brought to: {}", names.join(", ")));
    let mut tasks = tokio::task::JoinSet::new();
    for sink in sinks {
        tasks.spawn(bring(sink, published.clone(), Arc::clone(&shared)));
    }
    drop(published);
    loop {
        let (looked, own) = (Arc::clone(&shared), layout.clone());
        let heads = tokio::task::spawn_blocking(move || {
            let heads = looked.look(&own);
            looked.save();
            heads
        });
        let heads = heads.await.context("the look at the logs broke off")?;
        publish.send_if_modified(|last| {
            let is_new = *last != heads;
            *last = heads;
            is_new
        });
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stop.wait() => break,
        }
    }
    // The heads with which the programs closed their logs shall leave too.
    let last = tokio::task::block_in_place(|| shared.look(layout));
    publish.send_replace(last);
    drop(publish);
    let _given_up =
        tokio::time::timeout(LAST_TIMEOUT, async { while tasks.join_next().await.is_some() {} })
            .await;
    shared.save();
    Ok(true)
}

/// Brings what is published to one sink, until nothing more will be.
async fn bring(sink: Sink, mut published: watch::Receiver<Heads>, shared: Arc<Shared>) {
    let mut wait = RETRY_MIN;
    let mut alarmed = Instant::now();
    loop {
        let heads = published.borrow_and_update().clone();
        let all_there = shared.deliver(&sink, &heads).await;
        if all_there {
            wait = RETRY_MIN;
            if published.changed().await.is_err() {
                return;
            }
            continue;
        }
        if let Some(alarm) = shared.alarm(&sink)
            && alarmed.elapsed() >= ALARM_AFTER
        {
            progress(&format!("alarm: {alarm}"));
            alarmed = Instant::now();
        }
        // Whoever stops this does not wait for a sink that takes nothing.
        if published.has_changed().is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// The newest accepted head of each log.
type Heads = BTreeMap<Part, Checkpoint>;

/// What is known, in memory and in `run/heads.json`.
struct Shared {
    path: std::path::PathBuf,
    /// With whether it differs from the file.
    state: Mutex<(State, bool)>,
    /// By part: the last head that was proved to continue the one before, and when to prove next.
    proved: Mutex<BTreeMap<Part, (Checkpoint, Instant)>>,
}

impl Shared {
    /// What the last run left. A file that cannot be used is told and begun anew: the sinks know
    /// what they have.
    fn open(layout: &Layout) -> Self {
        let state = State::read(layout).unwrap_or_else(|error| {
            progress(&format!("warning: {error:#}: begun anew"));
            State::default()
        });
        Self {
            path: state_file(layout),
            state: Mutex::new((state, false)),
            proved: Mutex::default(),
        }
    }

    fn snapshot(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.0.clone();
        change(&mut state.0);
        state.1 |= state.0 != before;
    }

    /// Writes the file if something has changed. What a loss of power takes of it is found again
    /// in the logs and the sinks.
    fn save(&self) {
        let (state, is_changed) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.0.clone(), std::mem::take(&mut state.1))
        };
        if !is_changed {
            return;
        }
        let text = serde_json::to_string_pretty(&state).unwrap_or_default();
        if let Err(error) = files::write_private_soon(&self.path, text.as_bytes()) {
            progress(&format!("warning: {error:#}"));
        }
    }

    /// Looks at the newest head of each log; those that continue the last accepted one are
    /// accepted.
    fn look(&self, layout: &Layout) -> Heads {
        let mut heads = Heads::new();
        let pins = match Pins::read(&layout.pins()) {
            Ok(pins) => pins,
            Err(error) => {
                let problem = format!("{error:#}");
                Part::ALL.iter().for_each(|part| self.tell(*part, Some(problem.clone())));
                return heads;
            }
        };
        for part in Part::ALL {
            let before = self.snapshot().logs.remove(part.as_str()).unwrap_or_default();
            match self.newest(layout, part, &pins, &before) {
                Ok(None) => {}
                Ok(Some(head)) => {
                    self.accept(part, &head);
                    heads.insert(part, head);
                }
                Err(error) => self.tell(part, Some(format!("{error:#}"))),
            }
        }
        heads
    }

    /// The newest head of a log, if it continues the one that was accepted before.
    ///
    /// # Errors
    /// When it does not, cannot be read, or is not signed by the pinned key.
    fn newest(
        &self,
        layout: &Layout,
        part: Part,
        pins: &Pins,
        before: &LogState,
    ) -> anyhow::Result<Option<Checkpoint>> {
        let folder = audit_keys::log_folder(layout, part);
        let key = pins.require(part)?;
        let head = audit_log::latest_checkpoint(&folder, key)?;
        let Some(accepted) = &before.accepted else { return Ok(head) };
        // Of an earlier box of this name, whose key is no longer the pinned one.
        if accepted.lines().next() != Some(key.name()) {
            return Ok(head);
        }
        let accepted = Checkpoint::open(accepted, key)?;
        let Some(head) = head else {
            anyhow::bail!(
                "the log has no head any more, and one over {} records was brought out: {ADVICE}",
                accepted.size()
            )
        };
        is_not_smaller(&accepted, &head)?;
        self.prove(part, &folder, key, (accepted, &head))?;
        Ok(Some(head))
    }

    /// Proves that a head continues the last proved one. On a large log a proof takes a while:
    /// then it is not made for every head, but from the last proved one on.
    fn prove(
        &self,
        part: Part,
        folder: &Path,
        key: &VerifyingKey,
        (accepted, head): (Checkpoint, &Checkpoint),
    ) -> anyhow::Result<()> {
        let known = self.proved.lock().unwrap_or_else(PoisonError::into_inner).remove(&part);
        let now = Instant::now();
        let (from, not_before) = known.unwrap_or((accepted, now));
        let next = if head.size() > from.size() && now >= not_before {
            continues(folder, key, &from, head)?;
            (head.clone(), now + now.elapsed() * PROOF_PAUSE)
        } else {
            (from, not_before)
        };
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).insert(part, next);
        Ok(())
    }

    fn accept(&self, part: Part, head: &Checkpoint) {
        self.change(|state| {
            let accepted = LogState {
                accepted: Some(head.note().to_owned()),
                size: head.size(),
                problem: None,
            };
            state.logs.insert(part.as_str().to_owned(), accepted);
        });
    }

    /// Tells a problem once, when it comes or changes.
    fn tell(&self, part: Part, problem: Option<String>) {
        self.change(|state| {
            let log = state.logs.entry(part.as_str().to_owned()).or_default();
            if log.problem != problem {
                if let Some(problem) = &problem {
                    progress(&format!("alarm: {}: {problem}", part.as_str()));
                }
                log.problem = problem;
            }
        });
    }

    /// Brings what the sink does not have yet; whether it has everything then.
    async fn deliver(&self, sink: &Sink, heads: &Heads) -> bool {
        let name = sink.to_string();
        for (part, head) in heads {
            let has =
                self.snapshot().sinks.get(&name).and_then(|sink| {
                    sink.delivered.get(part.as_str()).map(|delivered| delivered.size)
                });
            if has == Some(head.size()) {
                continue;
            }
            let delivered = sink.deliver(head).await;
            self.note_delivery(&name, *part, head, delivered.as_ref().err());
            if delivered.is_err() {
                return false;
            }
        }
        true
    }

    fn note_delivery(
        &self,
        name: &str,
        part: Part,
        head: &Checkpoint,
        error: Option<&anyhow::Error>,
    ) {
        self.change(|state| {
            let sink = state.sinks.entry(name.to_owned()).or_default();
            let Some(error) = error else {
                let delivered = Delivered { size: head.size(), at_s: clock::now_s() };
                sink.delivered.insert(part.as_str().to_owned(), delivered);
                if sink.failing_since_s.take().is_some() {
                    progress(&format!("{name} takes heads again"));
                }
                sink.error = None;
                return;
            };
            let error = format!("head of {}: {error:#}", part.as_str());
            if sink.error.as_ref() != Some(&error) {
                progress(&format!("warning: {name}: {error}"));
            }
            sink.error = Some(error);
            sink.failing_since_s.get_or_insert(clock::now_s());
        });
    }

    /// In words, when a sink has taken nothing for too long.
    fn alarm(&self, sink: &Sink) -> Option<String> {
        let name = sink.to_string();
        let state = self.snapshot().sinks.remove(&name)?;
        let seconds = clock::now_s().saturating_sub(state.failing_since_s?);
        let why = state.error.unwrap_or_default();
        (seconds > ALARM_AFTER.as_secs())
            .then(|| format!("no head has reached {name} for {seconds} s: {why}"))
    }
}

fn is_not_smaller(before: &Checkpoint, head: &Checkpoint) -> anyhow::Result<()> {
    anyhow::ensure!(
        head.size() >= before.size(),
        "the newest head covers {} records, and one over {} records was brought out: records were \
         cut off: {ADVICE}",
        head.size(),
        before.size()
    );
    anyhow::ensure!(
        head.size() > before.size() || head.root() == before.root(),
        "two heads over {} records differ: the log was written anew: {ADVICE}",
        head.size()
    );
    Ok(())
}

/// Whether a head continues an earlier, smaller one.
///
/// # Errors
/// When it does not.
fn continues(
    folder: &Path,
    key: &VerifyingKey,
    before: &Checkpoint,
    head: &Checkpoint,
) -> anyhow::Result<()> {
    let proof = match audit_log::prove_consistency(folder, before, head) {
        Ok(proof) => proof,
        // What retention has deleted since is proved by the tombstone, to `audit verify`.
        Err(ProofError::Deleted { .. }) => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "the head over {} records is not shown to continue the one over {}: {ADVICE}",
                    head.size(),
                    before.size()
                )
            });
        }
    };
    audit_log::check_consistency_proof(&proof, key)
        .map(|_| ())
        .with_context(|| format!("the log's proof for its newest head is wrong: {ADVICE}"))
}

/// The lock of whoever brings heads; waits for another.
async fn lock(layout: &Layout) -> anyhow::Result<std::fs::File> {
    let mut is_told = false;
    loop {
        if let Some(lock) = try_lock(layout)? {
            return Ok(lock);
        }
        if !is_told {
            progress("another process brings the heads of this folder: waiting for its end");
            is_told = true;
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

fn try_lock(layout: &Layout) -> anyhow::Result<Option<std::fs::File>> {
    let path = layout.run("heads.lock");
    let unusable = || format!("lock file `{}` cannot be used", path.display());
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(unusable),
    }
}

fn say_ready(layout: &Layout) -> anyhow::Result<()> {
    let ready = json!({"pid": std::process::id(), "addresses": {}});
    let path = layout.run(&format!("{HEAD_BRINGER}.ready.json"));
    files::write_private(&path, ready.to_string().as_bytes())
}

/// SIGTERM, SIGINT, or the end of the supervisor.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    orphaned: Option<oneshot::Receiver<()>>,
}

impl Stop {
    fn new(is_supervised: bool) -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            orphaned: is_supervised.then(end_of_input),
        })
    }

    async fn wait(&mut self) {
        let orphaned = async {
            match &mut self.orphaned {
                Some(orphaned) => {
                    let _also_when_dropped = orphaned.await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = orphaned => {}
        }
    }
}

/// Told when standard input ends. A thread of its own, which the end of the process ends.
fn end_of_input() -> oneshot::Receiver<()> {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _ended_either_way = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _nobody_waits = tell.send(());
    });
    told
}

/// What to do about a log that does not continue.
const ADVICE: &str = "look with `sekisho audit verify --heads`; after restoring a backup on \
    purpose, remove run/heads.json";

/// Proofs take at most one part in so many of the time.
const PROOF_PAUSE: u32 = 20;

/// How often the logs' newest heads are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The first and the longest wait before a delivery is tried again.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A sink that takes nothing for so long is told again and again.
const ALARM_AFTER: Duration = Duration::from_secs(60);

/// How long the end may take.
const LAST_TIMEOUT: Duration = Duration::from_secs(5);

const LOCK_POLL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use audit_log::{AuditLog, CheckpointKey, Event, Options};

    struct Box {
        _folder: tempfile::TempDir,
        layout: Layout,
    }

    fn a_box() -> Box {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(&folder.path().join("data")).unwrap();
        for folder in layout.folders() {
            files::private_folder(&folder).unwrap();
        }
        audit_keys::ensure(&layout, true, "id.example").unwrap();
        Box { _folder: folder, layout }
    }

    fn write(layout: &Layout, records: usize) {
        let key = CheckpointKey::load(&layout.audit_key(Part::Hub)).unwrap();
        let log = AuditLog::open(&layout.audit(Part::Hub), Options::new("hub", key)).unwrap();
        for _ in 0..records {
            log.append(&Event::ServiceStopped).unwrap().durable_blocking().unwrap();
        }
        log.close();
    }

    #[test]
    fn a_head_that_continues_is_accepted_and_a_cut_log_is_not() {
        let a_box = a_box();
        let layout = &a_box.layout;
        write(layout, 3);
        let shared = Shared::open(layout);
        let first = shared.look(layout);
        assert_eq!(first.keys().collect::<Vec<_>>(), [&Part::Hub]);
        let copy = layout.root().join("copy");
        copy_files(&layout.audit(Part::Hub), &copy);
        write(layout, 5);
        let second = shared.look(layout);
        assert!(second[&Part::Hub].size() > first[&Part::Hub].size());
        shared.save();

        std::fs::remove_dir_all(layout.audit(Part::Hub)).unwrap();
        copy_files(&copy, &layout.audit(Part::Hub));
        let shared = Shared::open(layout);
        assert!(shared.look(layout).is_empty());
        let problem = shared.snapshot().told().unwrap_err();
        assert!(problem.contains("records were cut off"), "{problem}");

        std::fs::remove_dir_all(layout.audit(Part::Hub)).unwrap();
        files::private_folder(&layout.audit(Part::Hub)).unwrap();
        write(layout, 30);
        assert!(shared.look(layout).is_empty());
        let problem = shared.snapshot().told().unwrap_err();
        assert!(problem.contains("not shown to continue"), "{problem}");
    }

    fn copy_files(from: &Path, to: &Path) {
        files::private_folder(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }

    #[tokio::test]
    async fn a_sink_gets_each_head_once_and_failures_are_remembered() {
        let a_box = a_box();
        let layout = &a_box.layout;
        let written = layout.clone();
        tokio::task::spawn_blocking(move || write(&written, 3)).await.unwrap();
        let folder = layout.demo_heads();
        let sinks = Sink::all(&crate::settings::Heads::file_drop(folder.clone()));
        let shared = Shared::open(layout);
        let heads = shared.look(layout);
        assert!(!shared.deliver(&sinks[0], &heads).await);
        assert!(shared.snapshot().told().unwrap_err().contains("is it mounted?"));
        std::fs::create_dir(&folder).unwrap();
        assert!(shared.deliver(&sinks[0], &heads).await);
        shared.snapshot().told().unwrap();
        shared.save();
        assert_eq!(State::read(layout).unwrap(), shared.snapshot());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(shared.deliver(&sinks[0], &heads).await, "it has that head");
    }
}
