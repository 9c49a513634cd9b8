//! What both programs need to run as a process: sockets, readiness, the end, and HTTP over a
//! stream.
//!
//! Invariants: a unix socket is never visible with a looser mode than 0600; the ready file exists
//! only while the program listens; every connection has a time limit.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::key;

/// Why the program can not listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens there.
    #[error("`{0}` is already in use by a running process: stop it first")]
    InUse(PathBuf),
    /// The socket can not be made.
    #[error("the socket `{0}` cannot be made: check that its folder exists and is ours")]
    Socket(PathBuf, #[source] io::Error),
    /// The address can not be bound.
    #[error("cannot listen on {0}: choose a free port, or stop what uses it")]
    Listen(std::net::SocketAddr, #[source] io::Error),
    /// The ready file can not be written.
    #[error("the ready file cannot be written")]
    Ready(#[source] key::Error),
}

/// An error and its causes on one line, joined by `: `.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Logs JSON lines to stderr; `RUST_LOG` chooses, `info` if it says nothing.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let subscriber =
        tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(io::stderr);
    if subscriber.try_init().is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// A token that is cancelled by SIGTERM, SIGINT and, if supervised, by the end of stdin.
///
/// # Errors
/// When the signals can not be watched.
pub fn stop_token(supervised: bool) -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        token.cancel();
    });
    if supervised {
        let token = stop.clone();
        // A plain thread: a blocked read must not hold the runtime when the program ends.
        std::thread::spawn(move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            token.cancel();
        });
    }
    Ok(stop)
}

/// Listens on a unix socket of mode 0600; removes one that a killed process left behind.
///
/// # Errors
/// [`Error::InUse`], [`Error::Socket`].
pub fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Socket(path.to_owned(), source);
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(Error::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(failed(error)),
        Err(_) => {}
    }
    // Bound under another name and renamed when the mode is set: nobody can connect in between.
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(failed)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)?;
    Ok(listener)
}

/// Whether the other end of a socket runs under our user.
pub fn is_same_user(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::getuid().as_raw())
}

/// The ready file and the sockets, removed when this is dropped.
pub struct Presence {
    files: Vec<PathBuf>,
}

impl Presence {
    /// Says that the program is ready.
    ///
    /// # Errors
    /// [`Error::Ready`].
    pub fn announce(
        ready_file: &Path,
        addresses: &BTreeMap<&str, String>,
        sockets: &[&Path],
    ) -> Result<Self, Error> {
        let ready = serde_json::json!({"pid": std::process::id(), "addresses": addresses});
        key::replace(ready_file, ready.to_string().as_bytes(), 0o644).map_err(Error::Ready)?;
        let files = sockets.iter().chain([&ready_file]).map(|file| (*file).to_owned()).collect();
        Ok(Self { files })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Serves HTTP/1.1 on one stream until it ends, `stop`, or `limit`.
pub async fn http<S>(stream: S, router: Router, stop: CancellationToken, limit: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut deadline = std::pin::pin!(tokio::time::sleep(limit));
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended early");
                }
                return;
            }
            () = deadline.as_mut() => return,
            () = stop.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// How long a request's head may take; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = bind_unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let error = bind_unix(&path).unwrap_err();
        assert!(error.to_string().contains("already in use by a running process"));
        drop(listener);
        assert!(path.exists(), "a killed process leaves its socket");
        bind_unix(&path).unwrap();
    }
}
