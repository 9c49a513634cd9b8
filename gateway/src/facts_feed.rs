//! The facts in memory, kept by two signed feeds: the cert-authority's and the hub's.
//!
//! A feed task reads the local copy ([`crate::facts_copy`]), connects, says what it has, takes what
//! came since (or a snapshot), then every change; each line is verified by
//! [`policies::feed::Subscriber`] before it touches anything. A lost connection goes on where it
//! stood; a gap or a broken chain means a new snapshot. The facts held stay in use while their
//! lease runs, and `decide` denies when it has run out.
//!
//! ```text
//!  copy ─► connect ─► Hello ─► lines ─► verify ─► apply ─► cut whom they refuse ─► batch
//!                                                          batch ─► journal ─► Ack
//! ```
//!
//! Invariants: readers never block; a change is visible to the next decision; a client whose
//! certificate or office is refused by a change has its connections cut by the same task.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use policies::decide::{FeedState, Leases};
use policies::facts::{Facts, Full, Loaded, Loading, Merge, Merged};
use policies::feed::{Ack, CLOCK_AHEAD_MS_MAX, Fact, LINE_BYTES_MAX, Source, Subscriber, Update};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::client_cert::VerifiedClient;
use crate::config::Feed;
use crate::downstream::LiveConnections;
use crate::facts_copy::{CopyPlace, Keep, LocalCopy, Standing};

/// How long to wait before a lost feed is connected to again; twice as long each time that it is
/// refused, up to [`RECONNECT_DELAY_MAX`].
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);

/// The same trouble is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Lines that are waiting are applied together, up to this many bytes of them.
const READ_AHEAD_BYTES: usize = 1024 * 1024;

/// A feed that is silent for this long is taken for dead and connected to anew.
const SILENCE_MAX: Duration = Duration::from_millis(2_000);

/// The same while a snapshot comes, or may come when the source has room for another one: its facts
/// count only when it is whole, so that nothing becomes young by waiting.
const SNAPSHOT_SILENCE_MAX: Duration = Duration::from_secs(30);

/// A source that takes no answer for this long is taken for dead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait before a folder that is in use is tried again.
const COPY_RETRY: Duration = Duration::from_secs(2);

/// Batches that wait for the disk; with more, no further lines are read until it has caught up.
const KEEP_WAITING_MAX: usize = 1_024;

/// Registrations that changed are merged into their base when they are this many: some 20 MB.
const MERGE_CHANGES: usize = 200_000;

/// The facts that decisions are made from, and how old they are.
#[derive(Default)]
pub struct LiveFacts {
    facts: ArcSwap<Facts>,
    writer: Mutex<()>,
    generation: AtomicU64,
    leases: Leases,
    ca: Mutex<Option<Freshness>>,
    hub: Mutex<Option<Freshness>>,
}

/// What a feed last vouched for: that nothing was missing at `caught_up_at_ms`, and how old that
/// was when it was heard, on the monotonic clock. The older of both counts, so that a wall clock
/// that is set back makes nothing look younger, and one that runs while the machine sleeps tells
/// the truth.
#[derive(Debug, Clone, Copy)]
struct Freshness {
    caught_up_at_ms: u64,
    age_ms: u64,
    heard: Instant,
}

impl Freshness {
    fn age_now_ms(self) -> u64 {
        let by_wall_clock = now_ms().saturating_sub(self.caught_up_at_ms);
        self.age_ms.saturating_add(self.heard.elapsed().as_millis() as u64).max(by_wall_clock)
    }
}

impl LiveFacts {
    /// No facts yet; they may be decided from for as long as `leases` say.
    pub fn with_leases(leases: Leases) -> Self {
        Self { leases, ..Self::default() }
    }

    /// The facts now. Cheap; hold it for one decision, not longer.
    pub fn current(&self) -> arc_swap::Guard<Arc<Facts>> {
        self.facts.load()
    }

    /// Grows with every change of the facts.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How old each feed is, counted from the moment when it lacked nothing that its source knew.
    pub fn feed_state(&self) -> FeedState {
        FeedState {
            ca_age_ms: self.age_ms(Source::Ca),
            hub_age_ms: self.age_ms(Source::Hub),
            leases: self.leases,
        }
    }

    /// Applies changes in order and publishes them as one. Returns the merge that has become due,
    /// for where nobody waits.
    ///
    /// # Errors
    /// [`Full`] if a fact had no room: nothing is published then.
    fn apply(&self, source: Source, changes: Vec<Fact>, seq: u64) -> Result<Option<Merge>, Full> {
        self.publish(source, seq, |facts| {
            changes.into_iter().for_each(|fact| facts.apply(fact));
            facts.complete()?;
            Ok(facts.begin_merge(MERGE_CHANGES))
        })
    }

    /// Takes all facts of one source, and the changes since, in the place of those it had.
    ///
    /// # Errors
    /// As [`LiveFacts::apply`].
    fn install(
        &self,
        source: Source,
        loaded: Loaded,
        changes: Vec<Fact>,
        seq: u64,
    ) -> Result<(), Full> {
        loaded.complete()?;
        self.publish(source, seq, |facts| {
            facts.install(loaded);
            changes.into_iter().for_each(|fact| facts.apply(fact));
            facts.complete()
        })
    }

    fn publish<T>(
        &self,
        source: Source,
        seq: u64,
        change: impl FnOnce(&mut Facts) -> Result<T, Full>,
    ) -> Result<T, Full> {
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut facts = Facts::clone(&self.facts.load());
        let done = change(&mut facts)?;
        facts.set_seq(source, seq);
        self.facts.store(Arc::new(facts));
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(done)
    }

    /// Takes a merged base. The facts say the same as before, so the generation stays.
    fn end_merge(&self, merged: Merged) {
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut facts = Facts::clone(&self.facts.load());
        facts.end_merge(merged);
        self.facts.store(Arc::new(facts));
    }

    fn freshness(&self, source: Source) -> &Mutex<Option<Freshness>> {
        match source {
            Source::Ca => &self.ca,
            Source::Hub => &self.hub,
        }
    }

    fn age_ms(&self, source: Source) -> Option<u64> {
        let freshness = self.freshness(source).lock().unwrap_or_else(PoisonError::into_inner);
        freshness.map(Freshness::age_now_ms)
    }

    /// Notes what the source vouched for. A time that lies ahead of this machine's clock vouches
    /// for nothing, nor does one that was noted before: the age then goes on from what it was.
    fn heard(&self, source: Source, caught_up_at_ms: u64) {
        let now = now_ms();
        if caught_up_at_ms > now + CLOCK_AHEAD_MS_MAX {
            return;
        }
        let age_ms = now.saturating_sub(caught_up_at_ms);
        let told = Freshness { caught_up_at_ms, age_ms, heard: Instant::now() };
        let mut freshness = self.freshness(source).lock().unwrap_or_else(PoisonError::into_inner);
        if freshness.is_none_or(|known| known.caught_up_at_ms != caught_up_at_ms) {
            *freshness = Some(told);
        }
    }

    /// Whether this client may keep a connection: its certificate is not revoked and its office is
    /// neither unknown nor suspended.
    pub fn may_stay(&self, client: &VerifiedClient) -> bool {
        let facts = self.current();
        let office_open = client
            .identity()
            .office()
            .is_none_or(|number| facts.office(number).is_none_or(|office| !office.suspended));
        office_open && facts.revoked(client.serial()).is_none() && client.stands_outside().is_ok()
    }
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What goes wrong between two snapshots.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("cannot reach the feed")]
    Connect(#[source] std::io::Error),
    #[error("feed socket is held by uid {0}, not by ours")]
    Foreign(u32),
    #[error("feed connection broke")]
    Io(#[from] std::io::Error),
    #[error("feed ended")]
    Ended,
    #[error("feed is silent")]
    Silent,
    #[error("feed takes no acknowledgement")]
    Stuck,
    #[error("a fault of this program, while it took facts")]
    Fault,
    #[error("feed line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error(transparent)]
    Refused(#[from] policies::feed::Error),
    #[error("facts have no room; those held before stay in use")]
    Full(#[from] Full),
}

/// One feed's subscription: runs for as long as the gateway does.
pub struct FeedTask {
    /// Which feed.
    pub source: Source,
    /// Where it comes from.
    pub feed: Feed,
    /// Where its facts are kept on disk; `None`: nowhere, and each start waits for a snapshot.
    pub copy: Option<CopyPlace>,
    /// The id in acknowledgements.
    pub gateway_id: String,
    /// Where its facts go.
    pub facts: Arc<LiveFacts>,
    /// The connections to cut.
    pub live: Arc<LiveConnections>,
}

/// How far a task has come.
struct Progress {
    subscriber: Subscriber,
    loading: Option<Loading>,
    /// The last trouble that was told, and when.
    told: Option<(String, Instant)>,
    /// Refusals since the facts were last whole.
    refusals: u32,
}

/// What taking some lines leaves to be kept on disk, and then to be acknowledged.
#[derive(Default)]
struct Batch {
    keep: Vec<Keep>,
    applied_seq: Option<u64>,
}

/// A task at work. Lines are taken on a thread that may wait: a part of a snapshot takes
/// milliseconds, its end seconds. The disk is another matter, and no line waits for it, only the
/// acknowledgement.
struct Following {
    task: FeedTask,
    progress: Mutex<Progress>,
    copy: Mutex<Option<LocalCopy>>,
    /// Whether the copy is to be written anew.
    is_due: AtomicBool,
}

/// The feeds that are followed, until this is dropped.
pub struct Feeds {
    _tasks: JoinSet<()>,
    following: Vec<Arc<Following>>,
}

impl Feeds {
    /// Follows the feeds of `tasks`. With `reads_copies` what was kept on disk comes first; without
    /// it the copies are another process's until [`Feeds::take_copies`].
    pub fn follow(tasks: Vec<FeedTask>, reads_copies: bool) -> Self {
        let following: Vec<_> = tasks.into_iter().filter_map(FeedTask::begin).collect();
        let mut running = JoinSet::new();
        for own in &following {
            running.spawn(Arc::clone(own).run(reads_copies));
        }
        Self { _tasks: running, following }
    }

    /// Keeps nothing on disk from now on, so that another process can.
    pub fn release_copies(&self) {
        self.following.iter().for_each(|own| *own.copy() = None);
    }

    /// Keeps the facts on disk from now on, as soon as nobody else does.
    pub fn take_copies(&self) {
        for own in &self.following {
            let own = Arc::clone(own);
            tokio::spawn(async move {
                while !own.work(Following::open_copy).await.unwrap_or(true) {
                    tokio::time::sleep(COPY_RETRY).await;
                }
            });
        }
    }
}

impl FeedTask {
    /// Follows the feed for ever.
    pub async fn run(self) {
        if let Some(following) = self.begin() {
            following.run(true).await;
        }
    }

    fn begin(self) -> Option<Arc<Following>> {
        // INVARIANT: `Config` checked the key.
        let subscriber = Subscriber::new(self.source, &self.feed.public_key).ok()?;
        let progress = Progress { subscriber, loading: None, told: None, refusals: 0 };
        Some(Arc::new(Following {
            task: self,
            progress: Mutex::new(progress),
            copy: Mutex::new(None),
            is_due: AtomicBool::new(false),
        }))
    }

    /// Takes the facts that were kept on disk, if they can be trusted.
    fn read_copy(&self, progress: &mut Progress) -> Option<LocalCopy> {
        let place = self.copy.as_ref()?;
        let (feed, dir, began) = (self.source.as_str(), place.dir.display(), Instant::now());
        let opened = LocalCopy::open(self.source, place);
        let mut copy = opened
            .inspect_err(|error| {
                let reason = chain(error);
                tracing::warn!(feed, %dir, reason, "facts cannot be kept: mend the folder");
            })
            .ok()?;
        let taking = || self.take_copy(&mut copy, &mut progress.subscriber);
        // What is read is authenticated only at its end: no fault in reading it may be met again
        // at each start.
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(taking));
        match taken.unwrap_or_else(|_| Err(chain(&Lost::Fault))) {
            Ok(false) => tracing::info!(feed, %dir, "no facts kept on disk yet"),
            Ok(true) => {
                let took_ms = began.elapsed().as_millis() as u64;
                let (seq, age_ms) = (progress.subscriber.applied_seq(), self.age_ms());
                tracing::info!(feed, seq, age_ms, took_ms, "facts read from disk");
            }
            Err(reason) => {
                copy.set_aside();
                tracing::warn!(
                    feed, %dir, reason,
                    "facts kept on disk refused and set aside: a new snapshot is asked for"
                );
            }
        }
        Some(copy)
    }

    /// Says whether there were any.
    fn take_copy(&self, copy: &mut LocalCopy, subscriber: &mut Subscriber) -> Result<bool, String> {
        let Some(kept) = copy.load(subscriber).map_err(|refused| chain(&refused))? else {
            return Ok(false);
        };
        let seq = subscriber.applied_seq();
        if let Err(full) = self.facts.install(self.source, kept.loaded, kept.changes, seq) {
            subscriber.restart();
            return Err(chain(&full));
        }
        self.facts.heard(self.source, subscriber.caught_up_at_ms());
        Ok(true)
    }

    fn age_ms(&self) -> Option<u64> {
        self.facts.age_ms(self.source)
    }

    /// Takes lines in their order: verifies each, applies what they say, cuts whom they refuse.
    /// What came before a line that is refused is taken all the same.
    fn take(&self, progress: &mut Progress, lines: Vec<String>) -> (Batch, Result<(), Lost>) {
        let mut batch = Batch::default();
        let (mut changes, mut kept, mut beat) = (Vec::new(), Vec::new(), None);
        let mut outcome = Ok(());
        for line in lines {
            let taken = match progress.subscriber.accept(&line) {
                Ok(Update::Part { begins, facts }) => {
                    progress.load(self.source, begins, facts);
                    Ok(())
                }
                Ok(Update::Whole) => {
                    // What came before the snapshot is in it.
                    (changes, kept) = (Vec::new(), Vec::new());
                    self.install(progress, &mut batch)
                }
                Ok(Update::Apply(fact)) => {
                    changes.push(fact);
                    kept.push(line);
                    Ok(())
                }
                Ok(Update::Alive) => {
                    beat = Some(line);
                    Ok(())
                }
                Err(refused) => Err(refused.into()),
            };
            if taken.is_err() {
                outcome = taken;
                break;
            }
        }
        let changed = self.change(progress, changes, kept, &mut batch);
        outcome = outcome.and(changed);
        batch.keep.extend(beat.map(Keep::Heard));
        if outcome.is_ok() && progress.loading.is_none() {
            self.facts.heard(self.source, progress.subscriber.caught_up_at_ms());
            batch.applied_seq = Some(progress.subscriber.applied_seq());
            (progress.told, progress.refusals) = (None, 0);
        }
        (batch, outcome)
    }

    fn install(&self, progress: &mut Progress, batch: &mut Batch) -> Result<(), Lost> {
        let loading = progress.loading.take().unwrap_or_else(|| Loading::new(self.source));
        let loaded = loading.finish();
        let seq = progress.subscriber.applied_seq();
        self.facts.install(self.source, loaded, Vec::new(), seq)?;
        tracing::info!(feed = self.source.as_str(), seq, "snapshot");
        if self.source == Source::Ca {
            self.cut();
        }
        batch.keep.extend(self.standing(progress).map(Keep::Snapshot));
        Ok(())
    }

    fn change(
        &self,
        progress: &Progress,
        changes: Vec<Fact>,
        lines: Vec<String>,
        batch: &mut Batch,
    ) -> Result<(), Lost> {
        if changes.is_empty() {
            return Ok(());
        }
        let cuts = changes.iter().any(may_refuse);
        let seq = progress.subscriber.applied_seq();
        let merge = self.facts.apply(self.source, changes, seq)?;
        if cuts {
            self.cut();
        }
        if let Some(merge) = merge {
            let facts = Arc::clone(&self.facts);
            tokio::task::spawn_blocking(move || facts.end_merge(merge.run()));
        }
        batch.keep.push(Keep::Changes(lines));
        Ok(())
    }

    /// Cuts the connections that the facts no longer accept.
    fn cut(&self) {
        let cut = self.live.cut_where(|client| !self.facts.may_stay(client));
        if cut > 0 {
            tracing::info!(connections = cut, "cut connections that are no longer accepted");
        }
    }

    fn standing(&self, progress: &Progress) -> Option<Standing> {
        Some(Standing {
            facts: Arc::clone(&self.facts.current()),
            position: progress.subscriber.position()?.clone(),
            caught_up_at_ms: progress.subscriber.caught_up_at_ms(),
        })
    }
}

impl Progress {
    fn load(&mut self, source: Source, begins: bool, facts: Vec<Fact>) {
        if begins {
            self.loading = None;
        }
        let loading = self.loading.get_or_insert_with(|| Loading::new(source));
        facts.into_iter().for_each(|fact| loading.take(fact));
    }
}

/// Whether a client that is connected now may be refused by this fact.
fn may_refuse(fact: &Fact) -> bool {
    match fact {
        Fact::Revoked { .. } => true,
        Fact::Office { suspended, .. } => *suspended,
        Fact::Registration { .. }
        | Fact::Consent { .. }
        | Fact::Author { .. }
        | Fact::PlansFor { .. }
        | Fact::OpinionRequest { .. }
        | Fact::Sharing { .. }
        | Fact::StaffKey { .. }
        | Fact::SessionEnded { .. } => false,
    }
}

impl Following {
    async fn run(self: Arc<Self>, reads_copy: bool) {
        if reads_copy {
            let read = self.work(|own| {
                let copy = own.task.read_copy(&mut own.progress());
                *own.copy() = copy;
            });
            // A fault is told where it is met, and then nothing was kept.
            let _ = read.await;
        }
        loop {
            let lost = self.read().await;
            tokio::time::sleep(self.lose(&lost)).await;
        }
    }

    /// Begins to keep the facts where another process did; says whether there is nothing left to
    /// try. What lies there is replaced as a whole by the facts held here.
    fn open_copy(&self) -> bool {
        let Some(place) = &self.task.copy else { return true };
        match LocalCopy::open(self.task.source, place) {
            Ok(copy) => {
                *self.copy() = Some(copy);
                self.is_due.store(true, Ordering::Release);
                true
            }
            Err(error) => {
                let (feed, reason) = (self.task.source.as_str(), chain(&error));
                tracing::warn!(feed, reason, "facts cannot be kept on disk yet");
                false
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, Option<LocalCopy>> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` where it may wait.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let own = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&own)).await.map_err(|_| Lost::Fault)
    }

    /// Notes that the connection is lost; returns how long to wait before the next one. A line that
    /// was refused makes the position doubtful; a connection that merely ended does not.
    fn lose(&self, lost: &Lost) -> Duration {
        let mut progress = self.progress();
        progress.loading = None;
        match lost {
            Lost::Refused(_) | Lost::Full(_) | Lost::Fault => {
                progress.subscriber.restart();
                progress.refusals = progress.refusals.saturating_add(1);
            }
            Lost::Connect(_)
            | Lost::Foreign(_)
            | Lost::Io(_)
            | Lost::Ended
            | Lost::Silent
            | Lost::Stuck
            | Lost::TooLong => progress.subscriber.disconnect(),
        }
        let reason = chain(lost);
        let is_news = progress
            .told
            .as_ref()
            .is_none_or(|(told, at)| *told != reason || at.elapsed() >= TELL_AGAIN);
        if is_news {
            tracing::warn!(feed = self.task.source.as_str(), reason, "facts feed lost");
            progress.told = Some((reason, Instant::now()));
        }
        let times = 1 << progress.refusals.saturating_sub(1).min(10);
        RECONNECT_DELAY.saturating_mul(times).min(RECONNECT_DELAY_MAX)
    }

    async fn read(self: &Arc<Self>) -> Lost {
        let (mut reader, writer) = match self.connect().await {
            Ok(stream) => stream,
            Err(lost) => return lost,
        };
        let (batches, waiting) = mpsc::channel(KEEP_WAITING_MAX);
        let stuck = Arc::new(Notify::new());
        let keeper = tokio::spawn(Arc::clone(self).keep(waiting, writer, Arc::clone(&stuck)));
        let lost = tokio::select! {
            lost = self.read_lines(&mut reader, &batches) => lost,
            () = stuck.notified() => Lost::Stuck,
        };
        drop(batches);
        // What was applied is kept before the next connection brings more.
        let _ = keeper.await;
        lost
    }

    /// Connects and says what is here already.
    async fn connect(&self) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), Lost> {
        let stream = UnixStream::connect(&self.task.feed.socket).await.map_err(Lost::Connect)?;
        let uid = stream.peer_cred()?.uid();
        if uid != rustix::process::geteuid().as_raw() {
            return Err(Lost::Foreign(uid));
        }
        let (reader, mut writer) = stream.into_split();
        let hello = self.progress().subscriber.hello(Some(&self.task.gateway_id));
        say(&mut writer, &hello).await?;
        Ok((BufReader::with_capacity(READ_AHEAD_BYTES, reader), writer))
    }

    async fn read_lines(
        self: &Arc<Self>,
        reader: &mut BufReader<OwnedReadHalf>,
        batches: &mpsc::Sender<Batch>,
    ) -> Lost {
        let mut at_most = SNAPSHOT_SILENCE_MAX;
        loop {
            let lines = match read_waiting(reader, at_most).await {
                Ok(lines) => lines,
                Err(lost) => return lost,
            };
            let taken = self.work(|own| own.take(lines)).await;
            let (batch, is_loading, outcome) = match taken {
                Ok(taken) => taken,
                Err(fault) => return fault,
            };
            at_most = if is_loading { SNAPSHOT_SILENCE_MAX } else { SILENCE_MAX };
            // INVARIANT: the keeper listens for as long as there is a sender.
            let _ = batches.send(batch).await;
            if let Err(lost) = outcome {
                return lost;
            }
        }
    }

    /// Says whether a snapshot is coming in, too.
    fn take(&self, lines: Vec<String>) -> (Batch, bool, Result<(), Lost>) {
        let mut progress = self.progress();
        let (mut batch, outcome) = self.task.take(&mut progress, lines);
        let is_loading = progress.loading.is_some();
        if outcome.is_ok() && !is_loading && self.is_due.swap(false, Ordering::AcqRel) {
            batch.keep.extend(self.task.standing(&progress).map(Keep::Anew));
        }
        (batch, is_loading, outcome)
    }

    /// Keeps what was applied, then acknowledges it.
    async fn keep(
        self: Arc<Self>,
        mut batches: mpsc::Receiver<Batch>,
        mut writer: OwnedWriteHalf,
        stuck: Arc<Notify>,
    ) {
        let mut is_heard = true;
        while let Some(Batch { keep, applied_seq }) = batches.recv().await {
            let kept = self.work(move |own| {
                let mut copy = own.copy();
                let Some(copy) = copy.as_mut() else { return };
                if let Some(writing) = copy.keep(keep) {
                    tokio::task::spawn_blocking(|| writing.run());
                }
                if copy.is_due() {
                    own.is_due.store(true, Ordering::Release);
                }
            });
            let is_kept = kept.await.is_ok();
            let Some(applied_seq) = applied_seq.filter(|_| is_heard && is_kept) else { continue };
            let ack = Ack { gateway: self.task.gateway_id.clone(), applied_seq };
            is_heard = say(&mut writer, &ack).await.is_ok();
            if !is_heard {
                stuck.notify_one();
            }
        }
    }
}

async fn say(writer: &mut OwnedWriteHalf, answer: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_string(answer).unwrap_or_default();
    line.push('\n');
    let written = tokio::time::timeout(ANSWER_TIMEOUT, writer.write_all(line.as_bytes()));
    written.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// The next line, and those that have come whole already: one change for the readers.
async fn read_waiting(
    reader: &mut BufReader<OwnedReadHalf>,
    at_most: Duration,
) -> Result<Vec<String>, Lost> {
    let mut lines = vec![read_line(reader, at_most).await?];
    while reader.buffer().contains(&b'\n') {
        lines.push(read_line(reader, at_most).await?);
    }
    Ok(lines)
}

/// One line, without its end.
async fn read_line(
    reader: &mut BufReader<OwnedReadHalf>,
    at_most: Duration,
) -> Result<String, Lost> {
    let mut line = String::new();
    let mut limited = reader.take(LINE_BYTES_MAX as u64);
    let read = tokio::time::timeout(at_most, limited.read_line(&mut line));
    let bytes = read.await.map_err(|_| Lost::Silent)??;
    if bytes == 0 {
        return Err(Lost::Ended);
    }
    if line.pop() != Some('\n') {
        return Err(Lost::TooLong);
    }
    Ok(line)
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_is_as_old_as_what_its_source_vouched_for() {
        let facts = LiveFacts::default();
        assert_eq!(facts.feed_state().ca_age_ms, None);
        facts.heard(Source::Ca, now_ms() - 7_000);
        let age = facts.feed_state().ca_age_ms.unwrap();
        assert!((7_000..8_000).contains(&age), "{age}");
        // A time ahead of our clock vouches for nothing: the age goes on.
        facts.heard(Source::Ca, now_ms() + 60_000);
        assert!(facts.feed_state().ca_age_ms.unwrap() >= 7_000);
    }
}
