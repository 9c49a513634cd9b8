//! The facts of one feed on this machine's disk, so that a start does not wait for a snapshot.
//!
//! ```text
//!  hub.facts          header line │ facts (policies::facts) │ HMAC-SHA-256 of both
//!  hub-4711.journal   the signed lines of every change after sequence 4711, as they came
//!  hub.heard          the newest signed heartbeat
//! ```
//!
//! A change is in the journal, on disk, before it is acknowledged. When the journal has grown, or a
//! snapshot came, the facts are written anew beside the old ones and take their place whole.
//!
//! What is read back counts only if it was authenticated: the facts by a key of this gateway, the
//! lines by their source's signature and chain. It is as old as its newest line says, so a gateway
//! whose feed was cut is not made young by a restart; and what is older than the newest heartbeat
//! is refused, so that an older copy in its place does not take a revocation back.
//!
//! INVARIANT: a copy that is refused in any part is not used at all.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use policies::facts::{CopyError, Facts, Loaded};
use policies::feed::{self, Fact, LINE_BYTES_MAX, Position, Source, Subscriber, Update};
use serde::{Deserialize, Serialize};

use crate::facts_feed::chain;

/// Where copies are kept.
#[derive(Clone)]
pub struct CopyPlace {
    /// The folder.
    pub dir: PathBuf,
    /// Authenticates what this gateway wrote there.
    pub key: [u8; 32],
}

/// Why a copy is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A file can not be read.
    #[error("file `{}` cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The header is not one of this version's.
    #[error("file `{}` does not begin as a copy of these facts does", .0.display())]
    Header(PathBuf),
    /// The facts are damaged.
    #[error("file `{}` is damaged", path.display())]
    Facts {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: CopyError,
    },
    /// The authenticator does not fit.
    #[error("file `{}` was changed, or was written with another key", .0.display())]
    Tag(PathBuf),
    /// A journal's line is refused.
    #[error("line {line} of `{}` is refused", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1 on.
        line: usize,
        /// Why.
        #[source]
        source: feed::Error,
    },
    /// A line is no change.
    #[error("line {line} of `{}` is no change", path.display())]
    NoChange {
        /// The file.
        path: PathBuf,
        /// Which line, from 1 on.
        line: usize,
    },
    /// A newer one was seen.
    #[error("it stands at sequence {have}, and sequence {seen} was already seen here")]
    Older {
        /// Where the copy stands.
        have: u64,
        /// What was seen.
        seen: u64,
    },
    /// The newest heartbeat tells of another past.
    #[error("it does not agree with the newest heartbeat")]
    Fork(#[source] feed::Error),
}

/// Facts in use, and where they stand.
pub struct Standing {
    /// At least what is known at the position; later changes may be in them.
    pub facts: Arc<Facts>,
    /// Where the changes go on from.
    pub position: Position,
    /// When nothing was missing, in the source's time, Unix milliseconds.
    pub caught_up_at_ms: u64,
}

/// What is to be kept next.
pub enum Keep {
    /// Changes that were applied, by their lines.
    Changes(Vec<String>),
    /// The newest heartbeat.
    Heard(String),
    /// All facts, of a snapshot: what was kept before is of another time.
    Snapshot(Standing),
    /// All facts, since the journal has grown: what was kept before is as true.
    Anew(Standing),
}

/// Facts that were kept, and where they stand.
pub struct Kept {
    /// The facts as they were written.
    pub loaded: Loaded,
    /// The changes since then.
    pub changes: Vec<Fact>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    source: Source,
    position: Position,
    caught_up_at_ms: u64,
}

/// The copy of one feed's facts.
pub struct LocalCopy {
    source: Source,
    dir: PathBuf,
    key: hmac::Key,
    journal: Option<Journal>,
    /// When the facts were last begun to be written, and whether that failed since.
    written: Option<Instant>,
    heard: Option<Instant>,
    turn: Arc<Turn>,
    lock: Arc<File>,
}

struct Journal {
    file: File,
    lines: u64,
}

/// Facts are written by one at a time, and only the newest are kept.
#[derive(Default)]
struct Turn {
    state: Mutex<TurnState>,
    writing: Mutex<()>,
}

#[derive(Default)]
struct TurnState {
    newest: u64,
    done: u64,
    failed: bool,
}

impl Turn {
    /// Held while files take the place of others, or are removed.
    fn state(&self) -> MutexGuard<'_, TurnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalCopy {
    /// The copy of `source` in `place`, whose folder is made if it is missing.
    ///
    /// # Errors
    /// When the folder can not be made, or another gateway keeps its facts there.
    pub fn open(source: Source, place: &CopyPlace) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&place.dir)?;
        let lock = private_file(&place.dir.join(format!("{}.lock", source.as_str())))?;
        let began = Instant::now();
        // One that ends may still be writing.
        while let Err(error) = lock.try_lock() {
            match error {
                TryLockError::Error(error) => return Err(error),
                TryLockError::WouldBlock if began.elapsed() > LOCK_WITHIN => {
                    let what = "another gateway keeps its facts there: give each its own folder";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
                }
                TryLockError::WouldBlock => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        // What a writing left that did not come to its end.
        let _ = std::fs::remove_file(new_path(&place.dir.join(facts_name(source))));
        Ok(Self {
            source,
            dir: place.dir.clone(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &place.key),
            journal: None,
            written: None,
            heard: None,
            turn: Arc::default(),
            lock: Arc::new(lock),
        })
    }

    /// Keeps something; a [`Writing`] that comes back is still to be run.
    pub fn keep(&mut self, all: Vec<Keep>) -> Option<Writing> {
        let mut writing = None;
        for keep in all {
            match keep {
                Keep::Changes(lines) => self.append(&lines),
                Keep::Heard(line) => self.hear(&line),
                Keep::Snapshot(standing) => {
                    self.remove_all();
                    writing = self.begin(standing);
                }
                Keep::Anew(standing) => writing = self.begin(standing),
            }
        }
        writing
    }

    /// Reads what was kept and has `subscriber` stand where it ends. `None` if nothing was.
    ///
    /// # Errors
    /// [`Refused`]; then the subscriber is as before.
    pub fn load(&mut self, subscriber: &mut Subscriber) -> Result<Option<Kept>, Refused> {
        let Some((header, loaded)) = self.read_facts()? else { return Ok(None) };
        let begin = header.position.seq;
        let mut resumed = subscriber.clone();
        resumed.resume(header.position, header.caught_up_at_ms);
        let changes = self.replay(&mut resumed, begin)?;
        self.compare_heard(&mut resumed)?;
        *subscriber = resumed;
        Ok(Some(Kept { loaded, changes }))
    }

    /// Puts a copy that was refused out of the way, so that it is refused once and can be looked
    /// at.
    pub fn set_aside(&mut self) {
        self.journal = None;
        let facts = self.facts_path();
        // Whatever can not be moved is replaced by the next copy.
        let _ = std::fs::rename(&facts, refused_path(&facts));
        self.remove_journals(|_| true);
        let _ = std::fs::remove_file(self.heard_path());
    }

    /// Keeps changes that were applied, by their lines. On disk when this returns.
    fn append(&mut self, lines: &[String]) {
        let Some(journal) = &mut self.journal else { return };
        let mut text = lines.join("\n");
        text.push('\n');
        let written = journal.file.write_all(text.as_bytes());
        match written.and_then(|()| journal.file.sync_data()) {
            Ok(()) => journal.lines += lines.len() as u64,
            Err(error) => self.give_up(&error),
        }
    }

    /// Keeps the newest heartbeat, once a second. Not synced: an older one is found after a crash,
    /// which only makes the copy look older.
    fn hear(&mut self, line: &str) {
        let due = self.heard.is_none_or(|heard| heard.elapsed() >= HEARD_INTERVAL);
        if self.journal.is_none() || !due {
            return;
        }
        self.heard = Some(Instant::now());
        let path = self.heard_path();
        let new = path.with_extension("heard.new");
        let written = private_file(&new).and_then(|mut file| file.write_all(line.as_bytes()));
        // One that can not be written only makes the copy look older.
        let _ = written.and_then(|()| std::fs::rename(&new, &path));
    }

    /// Whether the facts should be written anew.
    pub fn is_due(&self) -> bool {
        let quiet = self.written.is_none_or(|written| written.elapsed() >= WRITE_INTERVAL);
        let grown = self.journal.as_ref().is_none_or(|own| own.lines >= JOURNAL_LINES);
        let state = self.turn.state();
        quiet && (grown || state.failed) && state.done == state.newest
    }

    /// Begins to write facts; changes from now on go to a new journal. The writing itself is the
    /// returned [`Writing`]'s: it takes seconds.
    fn begin(&mut self, standing: Standing) -> Option<Writing> {
        let Standing { facts, position, caught_up_at_ms } = standing;
        self.written = Some(Instant::now());
        let path = self.dir.join(format!("{}-{}.journal", self.source.as_str(), position.seq));
        let begun = private_file(&path).and_then(|file| {
            sync_folder(&self.dir)?;
            Ok(file)
        });
        match begun {
            Ok(file) => self.journal = Some(Journal { file, lines: 0 }),
            Err(error) => {
                self.give_up(&error);
                return None;
            }
        }
        let header = Header { format: FORMAT, source: self.source, position, caught_up_at_ms };
        let number = {
            let mut state = self.turn.state();
            (state.newest, state.failed) = (state.newest + 1, false);
            state.newest
        };
        Some(Writing {
            header,
            facts,
            path: self.facts_path(),
            key: self.key.clone(),
            turn: Arc::clone(&self.turn),
            number,
            _lock: Arc::clone(&self.lock),
        })
    }

    /// What can not be kept whole is not kept: a copy that lacks a change is worse than none.
    fn give_up(&mut self, error: &io::Error) {
        self.remove_all();
        self.written = Some(Instant::now());
        tracing::warn!(
            feed = self.source.as_str(),
            dir = %self.dir.display(),
            error = chain(error),
            "facts cannot be kept on disk and were removed there: free space or mend the folder; \
             tried again in a minute"
        );
    }

    /// Nothing is kept any more, and what is being written will not be.
    fn remove_all(&mut self) {
        self.journal = None;
        let mut state = self.turn.state();
        state.newest += 1;
        state.done = state.newest;
        let _ = std::fs::remove_file(self.facts_path());
        self.remove_journals(|_| true);
        // Gone for good before anything new is acknowledged.
        let _ = sync_folder(&self.dir);
    }

    fn read_facts(&self) -> Result<Option<(Header, Loaded)>, Refused> {
        let path = self.facts_path();
        let unreadable = |source| Refused::Read { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let length = file.metadata().map_err(unreadable)?.len();
        let told = length.checked_sub(TAG_BYTES as u64);
        let told = told.ok_or_else(|| Refused::Header(path.clone()))?;
        let body = Authenticated { inner: file.take(told), tag: self.context() };
        let mut body = BufReader::with_capacity(BUFFER_BYTES, body);
        let header = read_header(&mut body).map_err(unreadable)?;
        let header = header.filter(|header| header.source == self.source);
        let header = header.ok_or_else(|| Refused::Header(path.clone()))?;
        let damaged = |source| Refused::Facts { path: path.clone(), source };
        let loaded = Loaded::read_from(self.source, &mut body).map_err(damaged)?;
        let ended = body.fill_buf().map_err(unreadable)?.is_empty();
        let Authenticated { inner, tag: own } = body.into_inner();
        let mut tag = [0; TAG_BYTES];
        inner.into_inner().read_exact(&mut tag).map_err(unreadable)?;
        let fits = aws_lc_rs::constant_time::verify_slices_are_equal(own.sign().as_ref(), &tag);
        if !ended || fits.is_err() {
            return Err(Refused::Tag(path));
        }
        Ok(Some((header, loaded)))
    }

    fn context(&self) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(PURPOSE);
        context
    }

    /// Takes the journals from `begin` on, in order; the last one is gone on with.
    fn replay(&mut self, subscriber: &mut Subscriber, begin: u64) -> Result<Vec<Fact>, Refused> {
        let mut changes = Vec::new();
        let mut journals = self.journals();
        journals.retain(|(from, _)| *from >= begin);
        journals.sort();
        for (from, path) in journals {
            if from != subscriber.applied_seq() {
                return Err(Refused::Older { have: subscriber.applied_seq(), seen: from });
            }
            self.journal = Some(replay(&path, subscriber, &mut changes)?);
        }
        Ok(changes)
    }

    /// The newest heartbeat makes the copy as young as it is, or shows that it is an older one. A
    /// heartbeat that is no longer readable tells nothing.
    fn compare_heard(&self, subscriber: &mut Subscriber) -> Result<(), Refused> {
        let Ok(line) = std::fs::read_to_string(self.heard_path()) else { return Ok(()) };
        match subscriber.accept(line.trim_end()) {
            Err(feed::Error::Gap { have, got }) if got > have => {
                Err(Refused::Older { have, seen: got })
            }
            Err(error @ feed::Error::Chain(_)) => Err(Refused::Fork(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn facts_path(&self) -> PathBuf {
        self.dir.join(facts_name(self.source))
    }

    fn heard_path(&self) -> PathBuf {
        self.dir.join(format!("{}.heard", self.source.as_str()))
    }

    /// Every journal with the sequence that it goes on from.
    fn journals(&self) -> Vec<(u64, PathBuf)> {
        journals(&self.dir, self.source)
    }

    fn remove_journals(&self, of: impl Fn(u64) -> bool) {
        remove_journals(&self.dir, self.source, of);
    }
}

/// Facts on their way to the disk.
pub struct Writing {
    header: Header,
    facts: Arc<Facts>,
    path: PathBuf,
    key: hmac::Key,
    turn: Arc<Turn>,
    number: u64,
    /// The folder is in use until this is done.
    _lock: Arc<File>,
}

impl Writing {
    /// Writes them and puts them in the place of the earlier ones, unless newer ones came
    /// meanwhile. Takes seconds: call it where nobody waits.
    pub fn run(self) {
        let _turn = self.turn.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_newest = self.turn.state().newest == self.number;
        let written = if is_newest { self.write() } else { Ok(()) };
        let mut state = self.turn.state();
        state.done = state.done.max(self.number);
        if let Err(error) = written {
            state.failed = true;
            let _ = std::fs::remove_file(new_path(&self.path));
            tracing::warn!(
                file = %self.path.display(),
                error = chain(&error),
                "facts cannot be written to disk: free space or mend the folder; tried again in a \
                 minute"
            );
        }
    }

    fn write(&self) -> io::Result<()> {
        let new = new_path(&self.path);
        let began = Instant::now();
        let mut tag = hmac::Context::with_key(&self.key);
        tag.update(PURPOSE);
        let out = Authenticating { inner: private_file(&new)?, tag, unsynced: 0 };
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
        serde_json::to_writer(&mut out, &self.header)?;
        out.write_all(b"\n")?;
        self.facts.write_to(self.header.source, &mut out)?;
        let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let Authenticating { inner: mut file, tag, .. } = out;
        file.write_all(tag.sign().as_ref())?;
        file.sync_all()?;
        self.replace(&new)?;
        let (source, took_ms) = (self.header.source.as_str(), began.elapsed().as_millis() as u64);
        let seq = self.header.position.seq;
        tracing::info!(feed = source, seq, took_ms, "facts kept on disk");
        Ok(())
    }

    fn replace(&self, new: &Path) -> io::Result<()> {
        // Nobody removes or replaces the same files meanwhile.
        let state = self.turn.state();
        if state.newest != self.number {
            return std::fs::remove_file(new);
        }
        std::fs::rename(new, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        sync_folder(dir)?;
        let seq = self.header.position.seq;
        remove_journals(dir, self.header.source, |from| from < seq);
        // What was refused before is of no more use.
        let _ = std::fs::remove_file(refused_path(&self.path));
        Ok(())
    }
}

fn facts_name(source: Source) -> String {
    format!("{}.facts", source.as_str())
}

fn new_path(facts: &Path) -> PathBuf {
    facts.with_extension("facts.new")
}

fn refused_path(facts: &Path) -> PathBuf {
    facts.with_extension("facts.refused")
}

/// Has names that were made or removed in the folder stay so when the power goes.
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The first line; `None` if it is no header of this format.
fn read_header(body: &mut impl io::BufRead) -> io::Result<Option<Header>> {
    let mut line = Vec::new();
    body.take(HEADER_BYTES_MAX).read_until(b'\n', &mut line)?;
    let header: Option<Header> = serde_json::from_slice(&line).ok();
    Ok(header.filter(|header| header.format == FORMAT))
}

/// Takes one journal's lines; what was being written when the power went is cut off.
fn replay(
    path: &Path,
    subscriber: &mut Subscriber,
    changes: &mut Vec<Fact>,
) -> Result<Journal, Refused> {
    let unreadable = |source| Refused::Read { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).append(true).open(path).map_err(unreadable)?;
    let mut reader = BufReader::new(&file);
    let (mut lines, mut good) = (0, 0);
    loop {
        let mut text = String::new();
        let read = (&mut reader).take(LINE_BYTES_MAX as u64).read_line(&mut text);
        let read = read.map_err(unreadable)?;
        if !text.ends_with('\n') {
            break;
        }
        lines += 1;
        good += read as u64;
        let (path, line) = (path.to_owned(), lines as usize);
        match subscriber.accept(text.trim_end()) {
            Ok(Update::Apply(fact)) => changes.push(fact),
            Ok(Update::Part { .. } | Update::Whole | Update::Alive) => {
                return Err(Refused::NoChange { path, line });
            }
            Err(source) => return Err(Refused::Line { path, line, source }),
        }
    }
    drop(reader);
    file.set_len(good).map_err(unreadable)?;
    Ok(Journal { file, lines })
}

fn journals(dir: &Path, source: Source) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let journal = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let from = name.strip_prefix(source.as_str())?.strip_prefix('-')?;
        Some((from.strip_suffix(".journal")?.parse().ok()?, entry.path()))
    };
    entries.flatten().filter_map(journal).collect()
}

fn remove_journals(dir: &Path, source: Source, of: impl Fn(u64) -> bool) {
    for (_, path) in journals(dir, source).into_iter().filter(|(from, _)| of(*from)) {
        // One that stays lies before the facts or after a gap: it is passed over or refused.
        let _ = std::fs::remove_file(path);
    }
}

/// An empty file that only this user may read.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Adds what is read to the authenticator.
struct Authenticated<R> {
    inner: R,
    tag: hmac::Context,
}

impl<R: Read> Read for Authenticated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.tag.update(&buffer[..read]);
        Ok(read)
    }
}

/// Adds what is written to the authenticator.
struct Authenticating {
    inner: File,
    tag: hmac::Context,
    unsynced: usize,
}

impl Write for Authenticating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.tag.update(&bytes[..written]);
        self.unsynced += written;
        // In steps, so that no one else's sync has to wait for all of it.
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.inner.sync_data()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

const FORMAT: u32 = 1;
/// Keeps an authenticator from meaning anything elsewhere.
const PURPOSE: &[u8] = b"sekisho-facts-copy-v1\n";
const TAG_BYTES: usize = 32;
const HEADER_BYTES_MAX: u64 = 1_024;
const BUFFER_BYTES: usize = 256 * 1024;
const SYNC_BYTES: usize = 32 * 1024 * 1024;
/// For how long one that ends may keep the folder.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
/// The newest heartbeat is kept at most this often.
const HEARD_INTERVAL: Duration = Duration::from_secs(1);
/// With so many changes in the journal, which takes some seconds to read back, the facts are
/// written anew, but not more often than each [`WRITE_INTERVAL`].
const JOURNAL_LINES: u64 = 20_000;
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
