//! Running the hub: sockets, connections, start and end.
//!
//! ```text
//!  start: audit log ─► database ─► token key published ─► sockets ─► ready file
//!  end:   no new connections ─► open requests finish ─► database and log closed ─► files removed
//! ```
//!
//! Invariants: a peer of another uid is hung up on; nothing listens before the log can be written;
//! the ready file stands only while the sockets do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use audit_log::{AuditLog, Event, Options, Pseudonym};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::feed::{self, Gateways};
use crate::gateway_records::{self, AccessIndex};
use crate::socket::{self, Listener};
use crate::staff::password::Passwords;
use crate::staff::token::{self, TokenKey};
use crate::store::{self, Store};
use crate::{Hub, HubParts, admin, ready_file, retention, routes, staff};

/// Why the hub does not start or does not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The audit log.
    #[error("audit log in `{}` cannot be opened", path.display())]
    Audit {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: audit_log::Error,
    },
    /// The database is gone, but the audit log knows of it.
    #[error(
        "database `{}` is missing, and there are audit records of it: restore it from the backup",
        .0.display()
    )]
    LostDatabase(PathBuf),
    /// An audit record could not be written.
    #[error("audit record cannot be written")]
    Record(#[from] audit_log::Error),
    /// The database.
    #[error("hub store failed")]
    Store(#[from] store::Error),
    /// The staff token key.
    #[error("staff tokens cannot be signed")]
    Token(#[from] token::Error),
    /// A socket.
    #[error("socket failed")]
    Socket(#[from] socket::Error),
    /// The ready file.
    #[error("ready file `{}` cannot be written", path.display())]
    Ready {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the hub until `stop` turns true.
///
/// # Errors
/// [`Error`] when it cannot start; whatever had begun is ended and removed again.
pub async fn run(config: Config, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
    let sockets = [&config.socket, &config.admin_socket, &config.feed_socket].map(Clone::clone);
    let (ready_path, kept_for) = (config.ready_file.clone(), config.audit_retention);
    let hub = open(config).await?;
    let [requests, admin, feed] = sockets;
    let listeners = (Listener::bind(&requests)?, Listener::bind(&admin)?, Listener::bind(&feed)?);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_http(listeners.0, routes::router(hub.clone()), stop.clone(), REQUESTS_MAX));
    tasks.spawn(serve_http(listeners.1, admin::router(hub.clone()), stop.clone(), ADMINS_MAX));
    tasks.spawn(serve_feed(listeners.2, hub.clone(), stop.clone()));
    tasks.spawn(gateway_records::follow(hub.clone(), stop.clone()));
    tasks.spawn(retention::keep(hub.clone(), kept_for, stop.clone()));
    let ready = ready_file::ReadyFile::write(&ready_path)
        .map_err(|source| Error::Ready { path: ready_path, source })?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "hub is ready");
    stopped(&mut stop).await;
    drop(ready);
    while tasks.join_next().await.is_some() {}
    close(&hub).await
}

/// Opens log, database and keys, and publishes the token key.
pub(crate) async fn open(config: Config) -> Result<Hub, Error> {
    let options = Options {
        retention: config.audit_retention,
        ..Options::new("hub", config.audit_key.clone())
    };
    refuse_lost_database(&config)?;
    // The database comes before the log, so that a first start that breaks off in between leaves
    // no records of a database that never was.
    let store = Store::open(&config.database).await?;
    let audit = AuditLog::open(&config.audit_dir, options)
        .map_err(|source| Error::Audit { path: config.audit_dir.clone(), source })?;
    let token_key = TokenKey::open(&config.staff_token_key)?;
    let hub: Hub = Arc::new(HubParts {
        gateways: Gateways::new(&config.gateways),
        access_index: AccessIndex::new(config.audit_stream_socket),
        pseudonym: Pseudonym::new(&config.pseudonym_key),
        passwords: Passwords::new(),
        limits: config.limits,
        permit_key: config.permit_key,
        feed_signer: config.feed_signer,
        token_key,
        store,
        audit,
    });
    let started = Event::ServiceStarted { version: env!("CARGO_PKG_VERSION").to_owned() };
    hub.audit.append(&started)?.durable().await?;
    staff::publish_key(&hub).await.map_err(store::Error::Query)?;
    Ok(hub)
}

/// An empty database in the place of a lost one would forget consents, withdrawals and documents
/// without a word.
fn refuse_lost_database(config: &Config) -> Result<(), Error> {
    // Segments, compressed or not, the proof of deleted ones, and the log of an earlier format.
    let is_trace = |name: &str| {
        name.ends_with(".jsonl")
            || name.ends_with(".jsonl.zst")
            || name == "tombstone"
            || name == "format-1"
    };
    let has_records = std::fs::read_dir(&config.audit_dir).is_ok_and(|entries| {
        entries.filter_map(Result::ok).any(|entry| entry.file_name().to_str().is_some_and(is_trace))
    });
    if has_records && !config.database.exists() {
        return Err(Error::LostDatabase(config.database.clone()));
    }
    Ok(())
}

async fn close(hub: &Hub) -> Result<(), Error> {
    hub.store.close().await;
    hub.audit.append(&Event::ServiceStopped)?.durable().await?;
    let audit = hub.audit.clone();
    // Writes the last checkpoint; a failure of the task leaves that to the next start.
    let _ = tokio::task::spawn_blocking(move || audit.close()).await;
    tracing::info!("hub has stopped");
    Ok(())
}

/// Serves HTTP/1.1 on `listener`, at most `connections_max` connections at once.
pub(crate) async fn serve_http(
    listener: Listener,
    router: Router,
    mut stop: watch::Receiver<bool>,
    connections_max: usize,
) {
    let slots = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = stopped(&mut stop) => break,
        };
        let Some((stream, slot)) = accepted else { continue };
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            serve_connection(stream, router, stop).await;
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_MAX, finished).await.is_err() {
        tracing::warn!("requests were cut off at the end of the drain");
    }
}

async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok(stream) => Some((stream, slot)),
        Err(error) => {
            tracing::warn!(error = %crate::refusal::chain(&error), "connection refused");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve_connection(stream: UnixStream, router: Router, mut stop: watch::Receiver<bool>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(true);
    let service = TowerToHyperService::new(router);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stopped(&mut stop) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %crate::refusal::chain(&error), "connection ended early");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves the facts feed.
pub(crate) async fn serve_feed(listener: Listener, hub: Hub, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(SUBSCRIBERS_MAX));
    let mut subscribers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = stopped(&mut stop) => break,
        };
        let Some((stream, slot)) = accepted else { continue };
        let hub = hub.clone();
        subscribers.spawn(async move {
            feed::serve(hub, stream).await;
            drop(slot);
        });
        while subscribers.try_join_next().is_some() {}
    }
    subscribers.shutdown().await;
}

const REQUESTS_MAX: usize = 1_024;
const ADMINS_MAX: usize = 16;
const SUBSCRIBERS_MAX: usize = 64;
const HEADERS_MAX: usize = 64;
/// A permit names every granted kind: some kilobytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Also how long a kept connection may be idle; longer than the gateway keeps one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
const DRAIN_MAX: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
