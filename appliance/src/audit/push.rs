//! `sekisho audit push`: brings each new signed head of the four logs to every sink.
//!
//! ```text
//!  checkpoint files ─► watch: continues the last one? ─► accepted ─┬─► sink task: folder
//!                        └─ no: told loudly, not brought           ├─► sink task: HTTP
//!  run/heads.json ◄── what was accepted and delivered ◄────────────┴─► sink task: syslog
//! ```
//!
//! A process of its own: it holds no key, cannot write a log, and may fail without stopping the
//! gateway. Invariants: one sink never waits for another, nor one log's head for another's; a head
//! that is smaller than the last accepted one, or that does not continue it, is not brought
//! anywhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use audit_log::Checkpoint;
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

use super::heads::{Delivered, Earlier, Failing, Known, LogState, Sink, State, state_file};

mod judge;

use judge::{Judge, Trouble, Verdict};

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
    let shared = Shared::open(layout, sinks);
    let heads = tokio::task::block_in_place(|| shared.look(layout));
    for sink in sinks {
        shared.deliver(sink, &heads, &mut Retries::default()).await;
    }
    shared.save();
    let state = shared.snapshot();
    // A running box may have a newer head by now: that is no fault of this delivery.
    let told = state.told(&Known::of(layout, true)?);
    output::data(context.json, &json!({"ok": told.is_ok(), "state": state}), || match &told {
        Ok(told) => format!("✓ {told}"),
        Err(problems) => format!("✗ {problems}"),
    });
    Ok(told.is_ok())
}

async fn follow(args: &Args, layout: &Layout, sinks: Vec<Sink>) -> anyhow::Result<bool> {
    let mut stop = Stop::new(args.supervised)?;
    let free = try_lock(layout)?;
    let is_free = free.is_some();
    if args.supervised && !is_free {
        say_ready(layout)?;
    }
    let _lock = match free {
        Some(lock) => lock,
        None => tokio::select! {
            lock = lock(layout) => lock?,
            () = stop.wait() => return Ok(true),
        },
    };
    let shared = Arc::new(Shared::open(layout, &sinks));
    if args.supervised && is_free {
        say_ready(layout)?;
    }
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

/// Brings what is published to one sink, until nothing more will be. Whoever stops this does not
/// wait for a sink that takes nothing.
async fn bring(sink: Sink, mut published: watch::Receiver<Heads>, shared: Arc<Shared>) {
    let mut retries = Retries::default();
    let mut alarmed = Instant::now();
    loop {
        let heads = published.borrow_and_update().clone();
        let all_there = shared.deliver(&sink, &heads, &mut retries).await;
        if let Some(alarm) = shared.alarm(&sink)
            && alarmed.elapsed() >= ALARM_AFTER
        {
            progress(&format!("alarm: {alarm}"));
            alarmed = Instant::now();
        }
        let again = async {
            if all_there {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY_MIN).await;
        };
        tokio::select! {
            changed = published.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

/// The newest accepted head of each log.
type Heads = BTreeMap<Part, Checkpoint>;

/// What is known, in memory and in `run/heads.json`.
struct Shared {
    path: std::path::PathBuf,
    /// With whether it differs from the file.
    state: Mutex<(State, bool)>,
    judge: Judge,
}

impl Shared {
    /// What the last run left, of the sinks that there are now. A file that cannot be used is told
    /// and begun anew: the sinks know what they have.
    fn open(layout: &Layout, sinks: &[Sink]) -> Self {
        let mut state = State::read(layout).unwrap_or_else(|error| {
            progress(&format!("warning: {error:#}: begun anew"));
            State::default()
        });
        let names: Vec<String> = sinks.iter().map(ToString::to_string).collect();
        state.sinks.retain(|name, _| names.contains(name));
        for name in names {
            let sink = state.sinks.entry(name).or_default();
            // While nobody brought heads, none was on its way.
            sink.behind_since_s.clear();
        }
        state.looked_at_s = clock::now_s();
        let shared = Self {
            path: state_file(layout),
            state: Mutex::new((state, true)),
            judge: Judge::default(),
        };
        shared.save();
        shared
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

    /// Looks at the newest head of each log; those that continue the ones before are accepted.
    fn look(&self, layout: &Layout) -> Heads {
        let mut heads = Heads::new();
        let pins = match Pins::read(&layout.pins()) {
            Ok(pins) => pins,
            Err(error) => {
                for part in Part::ALL {
                    self.tell(part, Some(Trouble { text: format!("{error:#}"), stands: false }));
                }
                return heads;
            }
        };
        for part in Part::ALL {
            match self.newest(layout, part, &pins) {
                Ok(Verdict::Nothing) => self.tell(part, None),
                Ok(Verdict::Withheld) => {}
                Ok(Verdict::Sound { head, is_proved }) => {
                    self.accept(part, &head, is_proved);
                    heads.insert(part, head);
                }
                Err(trouble) => self.tell(part, Some(trouble)),
            }
        }
        self.note_look(&heads);
        heads
    }

    fn newest(&self, layout: &Layout, part: Part, pins: &Pins) -> Result<Verdict, Trouble> {
        let folder = audit_keys::log_folder(layout, part)?;
        let key = pins.require(part)?;
        self.note_origin(part, key.name());
        let before = self.snapshot().logs.remove(part.as_str()).unwrap_or_default();
        self.judge.judge(part, &folder, key, &before)
    }

    /// A log under another name than before is another log: that is told once, and written down.
    fn note_origin(&self, part: Part, origin: &str) {
        self.change(|state| {
            let Some(log) = state.logs.get_mut(part.as_str()) else { return };
            let before = log.accepted.as_ref().and_then(|note| note.lines().next());
            let Some(before) = before.filter(|before| *before != origin) else { return };
            progress(&format!(
                "alarm: {}: heads of `{before}` over {} records were brought out, and now \
                 `{origin}` is pinned: unless the box was made anew, find out who changed the pins",
                part.as_str(),
                log.size
            ));
            let earlier =
                Earlier { origin: before.to_owned(), size: log.size, until_s: clock::now_s() };
            let mut all = std::mem::take(&mut log.earlier);
            all.push(earlier);
            let surplus = all.len().saturating_sub(EARLIER_MAX);
            all.drain(..surplus);
            *log = LogState { earlier: all, ..LogState::default() };
        });
    }

    fn accept(&self, part: Part, head: &Checkpoint, is_proved: bool) {
        self.change(|state| {
            let log = state.logs.entry(part.as_str().to_owned()).or_default();
            if is_proved {
                log.proved = Some(head.note().to_owned());
                if log.stands {
                    progress(&format!("{}: its heads continue again", part.as_str()));
                }
            } else if log.proved.is_none() {
                log.proved = log.accepted.take();
            }
            log.accepted = Some(head.note().to_owned());
            log.size = head.size();
            log.problem = None;
            log.stands = false;
        });
    }

    /// Tells a problem once, when it comes or changes. One that stands gives way to no lesser one.
    fn tell(&self, part: Part, trouble: Option<Trouble>) {
        self.change(|state| {
            let log = state.logs.entry(part.as_str().to_owned()).or_default();
            let stands = trouble.as_ref().is_some_and(|trouble| trouble.stands);
            if log.stands && !stands {
                return;
            }
            let problem = trouble.map(|trouble| trouble.text);
            // A cut log that grows is told once, not at every new number of records.
            let is_same = log.stands && after_numbers(&log.problem) == after_numbers(&problem);
            if log.problem != problem {
                if let Some(problem) = problem.as_ref().filter(|_| !is_same) {
                    progress(&format!("alarm: {}: {problem}", part.as_str()));
                }
                log.problem = problem;
            }
            log.stands = stands;
        });
    }

    /// Notes when the logs were looked at, and what each sink has not got of what was found.
    fn note_look(&self, heads: &Heads) {
        let now_s = clock::now_s();
        self.change(|state| {
            if now_s >= state.looked_at_s + LOOK_NOTED_EVERY_S || now_s < state.looked_at_s {
                state.looked_at_s = now_s;
            }
            for sink in state.sinks.values_mut() {
                let is_found = |name: &str| heads.keys().any(|part| part.as_str() == name);
                sink.behind_since_s.retain(|part, _| is_found(part));
                for (part, head) in heads {
                    let part = part.as_str();
                    let has = sink.delivered.get(part).map(|delivered| delivered.size);
                    if has == Some(head.size()) {
                        sink.behind_since_s.remove(part);
                    } else {
                        sink.behind_since_s.entry(part.to_owned()).or_insert(now_s);
                    }
                }
            }
        });
    }

    /// Brings what the sink does not have yet; whether it has everything then. A log whose head it
    /// does not take keeps none of the others back.
    async fn deliver(&self, sink: &Sink, heads: &Heads, retries: &mut Retries) -> bool {
        let name = sink.to_string();
        let mut all_there = true;
        for (part, head) in heads {
            let has =
                self.snapshot().sinks.get(&name).and_then(|sink| {
                    sink.delivered.get(part.as_str()).map(|delivered| delivered.size)
                });
            if has == Some(head.size()) {
                continue;
            }
            if retries.must_wait(*part) {
                all_there = false;
                continue;
            }
            let delivered = sink.deliver(head).await;
            self.note_delivery(&name, *part, head, delivered.as_ref().err());
            retries.tried(*part, delivered.is_ok());
            all_there &= delivered.is_ok();
        }
        all_there
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
            let part = part.as_str();
            let Some(error) = error else {
                let delivered = Delivered { size: head.size(), at_s: clock::now_s() };
                sink.delivered.insert(part.to_owned(), delivered);
                sink.behind_since_s.remove(part);
                if sink.failing.remove(part).is_some() {
                    progress(&format!("{name} takes heads of {part} again"));
                }
                return;
            };
            let error = format!("{error:#}");
            let failing = sink
                .failing
                .entry(part.to_owned())
                .or_insert_with(|| Failing { since_s: clock::now_s(), error: String::new() });
            if failing.error != error {
                progress(&format!("warning: {name}: head of {part}: {error}"));
                failing.error = error;
            }
        });
    }

    /// In words, when a sink has not taken some log's heads for too long.
    fn alarm(&self, sink: &Sink) -> Option<String> {
        let name = sink.to_string();
        let state = self.snapshot().sinks.remove(&name)?;
        let told = state.failing.iter().filter_map(|(part, failing)| {
            let seconds = clock::now_s().saturating_sub(failing.since_s);
            (seconds > ALARM_AFTER.as_secs()).then(|| {
                format!("no head of {part} has reached {name} for {seconds} s: {}", failing.error)
            })
        });
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// An alarm's words after those that count records.
fn after_numbers(problem: &Option<String>) -> Option<&str> {
    problem.as_ref()?.split_once(": ").map(|(_, words)| words)
}

/// When each log's head may be tried again at one sink, and the wait after that.
#[derive(Debug, Default)]
struct Retries(BTreeMap<Part, (Instant, Duration)>);

impl Retries {
    fn must_wait(&self, part: Part) -> bool {
        self.0.get(&part).is_some_and(|(not_before, _)| Instant::now() < *not_before)
    }

    fn tried(&mut self, part: Part, arrived: bool) {
        if arrived {
            self.0.remove(&part);
            return;
        }
        let wait = self.0.get(&part).map_or(RETRY_MIN, |(_, wait)| (*wait * 2).min(RETRY_MAX));
        self.0.insert(part, (Instant::now() + wait, wait));
    }
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

/// How often the logs' newest heads are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A look is written down at least this often.
const LOOK_NOTED_EVERY_S: u64 = 20;

/// At most this many earlier names of a log are remembered.
const EARLIER_MAX: usize = 16;

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
    use std::path::Path;

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
        audit_keys::ensure(&layout, "id.example").unwrap();
        Box { _folder: folder, layout }
    }

    fn write(layout: &Layout, records: usize) {
        write_of(layout, Part::Hub, records);
    }

    fn write_of(layout: &Layout, part: Part, records: usize) {
        let key = CheckpointKey::load(&layout.audit_key(part)).unwrap();
        let log = AuditLog::open(&layout.audit(part), Options::new(part.as_str(), key)).unwrap();
        for _ in 0..records {
            log.append(&Event::ServiceStopped).unwrap().durable_blocking().unwrap();
        }
        log.close();
    }

    fn problem(shared: &Shared) -> String {
        shared.snapshot().told(&Known::default()).unwrap_err()
    }

    fn replace(layout: &Layout, from: &Path) {
        std::fs::remove_dir_all(layout.audit(Part::Hub)).unwrap();
        copy_files(from, &layout.audit(Part::Hub));
    }

    #[test]
    fn a_head_that_continues_is_accepted_and_a_cut_log_is_not() {
        let a_box = a_box();
        let layout = &a_box.layout;
        write(layout, 3);
        let shared = Shared::open(layout, &[]);
        let first = shared.look(layout);
        assert_eq!(first.keys().collect::<Vec<_>>(), [&Part::Hub]);
        let (older, newer) = (layout.root().join("older"), layout.root().join("newer"));
        copy_files(&layout.audit(Part::Hub), &older);
        write(layout, 5);
        let second = shared.look(layout);
        assert!(second[&Part::Hub].size() > first[&Part::Hub].size());
        shared.save();
        copy_files(&layout.audit(Part::Hub), &newer);

        replace(layout, &older);
        let shared = Shared::open(layout, &[]);
        assert!(shared.look(layout).is_empty());
        assert!(problem(&shared).contains("records were cut off"));

        // The cut log grows beyond what was brought out: nothing of it leaves, at no later look and
        // after no restart.
        write(layout, 30);
        assert!(shared.look(layout).is_empty());
        assert!(problem(&shared).contains("not shown to continue"), "{}", problem(&shared));
        for records in [1, 2, 3] {
            write(layout, records);
            assert!(shared.look(layout).is_empty());
            assert!(problem(&shared).contains("not shown to continue"));
        }
        shared.save();
        let shared = Shared::open(layout, &[]);
        assert!(shared.look(layout).is_empty());
        assert!(problem(&shared).contains("not shown to continue"));

        // The true log again: its head is the proved one.
        replace(layout, &newer);
        assert_eq!(shared.look(layout), second);
        shared.snapshot().told(&Known::default()).unwrap();
    }

    #[test]
    fn an_unproved_head_is_no_start_of_a_proof_and_must_be_continued_too() {
        let a_box = a_box();
        let layout = &a_box.layout;
        write(layout, 3);
        let older = layout.root().join("older");
        copy_files(&layout.audit(Part::Hub), &older);
        let shared = Shared::open(layout, &[]);
        let proved = shared.look(layout);
        write(layout, 5);
        let shared_head = {
            let key = CheckpointKey::load(&layout.audit_key(Part::Hub)).unwrap();
            let folder = layout.audit(Part::Hub);
            audit_log::latest_checkpoint(&folder, key.verifying_key()).unwrap().unwrap()
        };
        shared.accept(Part::Hub, &shared_head, false);
        let state = shared.snapshot();
        let log = &state.logs["hub"];
        assert_eq!(log.proved.as_deref(), Some(proved[&Part::Hub].note()));
        assert_eq!(log.accepted.as_deref(), Some(shared_head.note()));
        // A log that continues the proved head alone, not the one that was brought out after it.
        replace(layout, &older);
        write(layout, 30);
        assert!(shared.look(layout).is_empty());
        assert!(problem(&shared).contains("not shown to continue"));
        assert_eq!(shared.snapshot().logs["hub"].proved, log.proved);
    }

    #[test]
    fn a_log_under_another_name_is_written_down() {
        let a_box = a_box();
        let layout = &a_box.layout;
        write(layout, 3);
        let shared = Shared::open(layout, &[]);
        let before = shared.look(layout);
        for part in Part::ALL {
            std::fs::remove_file(layout.audit_key(part)).unwrap();
        }
        std::fs::remove_dir_all(layout.audit(Part::Hub)).unwrap();
        files::private_folder(&layout.audit(Part::Hub)).unwrap();
        audit_keys::ensure(layout, "id.example").unwrap();
        write(layout, 1);
        let now = shared.look(layout);
        assert_ne!(now[&Part::Hub].origin(), before[&Part::Hub].origin());
        let earlier = shared.snapshot().logs["hub"].earlier.clone();
        assert_eq!(earlier.len(), 1);
        assert_eq!(earlier[0].origin, before[&Part::Hub].origin());
        assert_eq!(earlier[0].size, before[&Part::Hub].size());
        shared.look(layout);
        assert_eq!(shared.snapshot().logs["hub"].earlier.len(), 1);
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
        let shared = Shared::open(layout, &sinks);
        let heads = shared.look(layout);
        let known = || Known::for_test(&sinks);
        let mut retries = Retries::default();
        assert!(!shared.deliver(&sinks[0], &heads, &mut retries).await);
        assert!(retries.must_wait(Part::Hub), "it is not tried again at once");
        let told = shared.snapshot().told(&known()).unwrap_err();
        assert!(told.contains("head of hub") && told.contains("is it mounted?"), "{told}");
        std::fs::create_dir(&folder).unwrap();
        assert!(shared.deliver(&sinks[0], &heads, &mut Retries::default()).await);
        shared.snapshot().told(&known()).unwrap();
        shared.save();
        assert_eq!(State::read(layout).unwrap(), shared.snapshot());
        std::fs::remove_dir_all(&folder).unwrap();
        let again = shared.deliver(&sinks[0], &heads, &mut Retries::default()).await;
        assert!(again, "it has that head");
        let other = Sink::all(&crate::settings::Heads::file_drop("/other".into()));
        let names: Vec<String> =
            Shared::open(layout, &other).snapshot().sinks.into_keys().collect();
        assert_eq!(names, ["folder /other"], "sinks that are gone are forgotten");
    }

    #[tokio::test]
    async fn a_log_whose_head_is_not_taken_keeps_no_other_back() {
        let a_box = a_box();
        let layout = &a_box.layout;
        let written = layout.clone();
        tokio::task::spawn_blocking(move || {
            write_of(&written, Part::Signer, 1);
            write(&written, 3);
        })
        .await
        .unwrap();
        let folder = layout.demo_heads();
        std::fs::create_dir(&folder).unwrap();
        let sinks = Sink::all(&crate::settings::Heads::file_drop(folder.clone()));
        let shared = Shared::open(layout, &sinks);
        let heads = shared.look(layout);
        let origin = heads[&Part::Signer].origin().replace('/', "_");
        std::fs::write(folder.join(origin), "in the way").unwrap();
        assert!(!shared.deliver(&sinks[0], &heads, &mut Retries::default()).await);
        let sink = shared.snapshot().sinks.into_values().next().unwrap();
        assert_eq!(sink.failing.keys().collect::<Vec<_>>(), ["signer"]);
        assert_eq!(sink.delivered.keys().collect::<Vec<_>>(), ["hub"]);
    }
}
