//! The sinks to which the signed heads of the logs are brought, so that records cut off at the end
//! are seen: a folder, an HTTP endpoint, a syslog receiver.
//!
//! Invariants: a delivery ends, well or badly, within [`DELIVERY_TIMEOUT`]; no sink waits for
//! another.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use audit_log::Checkpoint;
use tokio::sync::Semaphore;

use crate::settings::{Heads, HttpSink, SyslogSink};

mod folder;
mod http;
mod state;
mod syslog;

pub(crate) use state::{Delivered, Earlier, Failing, Known, LogState, State, health, state_file};

/// The name of a log's folder in a file drop.
pub(super) fn drop_folder(origin: &str) -> String {
    origin.replace('/', "_")
}

/// Where heads are brought.
#[derive(Debug)]
pub(crate) struct Sink {
    kind: Kind,
    /// A write to a dead network folder may never end; it keeps this, and no other begins.
    writing: Arc<Semaphore>,
    written: AtomicU64,
}

#[derive(Debug)]
enum Kind {
    Folder(std::path::PathBuf),
    Http(HttpSink),
    Syslog(SyslogSink),
}

impl Sink {
    /// The sinks that the settings name.
    pub(crate) fn all(heads: &Heads) -> Vec<Self> {
        let folder = heads.file_drop.clone().map(Kind::Folder);
        let http = heads.http.clone().map(Kind::Http);
        let syslog = heads.syslog.clone().map(Kind::Syslog);
        let kinds = [folder, http, syslog].into_iter().flatten();
        kinds
            .map(|kind| Self {
                kind,
                writing: Arc::new(Semaphore::new(1)),
                written: AtomicU64::new(0),
            })
            .collect()
    }

    /// Brings one head there.
    ///
    /// # Errors
    /// When it did not arrive, or is known not to have.
    pub(super) async fn deliver(&self, head: &Checkpoint) -> anyhow::Result<()> {
        let delivery = async {
            match &self.kind {
                Kind::Folder(folder) => self.write(folder, head).await,
                Kind::Http(sink) => http::post(sink, head.note()).await,
                Kind::Syslog(sink) => syslog::send(sink, head).await,
            }
        };
        let in_time = tokio::time::timeout(DELIVERY_TIMEOUT, delivery).await;
        in_time.with_context(|| format!("no end after {} s", DELIVERY_TIMEOUT.as_secs()))?
    }

    async fn write(&self, folder: &std::path::Path, head: &Checkpoint) -> anyhow::Result<()> {
        let permit = Arc::clone(&self.writing)
            .try_acquire_owned()
            .context("an earlier write has not ended yet")?;
        let (folder, head) = (folder.to_owned(), head.clone());
        let thins = self.written.fetch_add(1, Ordering::Relaxed) % THIN_EVERY == THIN_EVERY - 1;
        let written = tokio::task::spawn_blocking(move || {
            let _until_written = permit;
            folder::write(&folder, &head)?;
            if thins {
                folder::thin_log(&folder, head.origin());
            }
            Ok(())
        });
        written.await.context("the write broke off")?
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Folder(folder) => write!(f, "folder {}", folder.display()),
            Kind::Http(sink) => f.write_str(&sink.shown()),
            Kind::Syslog(SyslogSink::Udp(to)) => write!(f, "syslog udp://{to}"),
            Kind::Syslog(SyslogSink::Tcp(to)) => write!(f, "syslog tcp://{to}"),
            Kind::Syslog(SyslogSink::Unix(path)) => write!(f, "syslog unix:{}", path.display()),
        }
    }
}

/// A folder's old heads are thinned after this many deliveries. An odd number meets every log.
const THIN_EVERY: u64 = 501;

/// The longest that one delivery may take.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
