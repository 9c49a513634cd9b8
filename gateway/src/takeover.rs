//! One gateway takes the place of another without a request lost: both run for a while, on the same
//! listening sockets, which whoever started them holds.
//!
//! ```text
//!  the gateway that serves                          its successor (`--take-over`)
//!                                                   configuration, policy, certificates, facts
//!   asked on `takeover_socket`  ◄────────────────   ready to serve
//!   accepts no further connection
//!   audit log on disk, given away  ◄────────────►   audit log taken (audit_log::handover)
//!                                                   accepts on the same sockets
//!   answers what it has, each answer the last
//!   of its connection; its records go through
//!   the successor; ends
//! ```
//!
//! Connections that come in between wait in the sockets' queue. A successor that fails before it
//! has the audit log changes nothing: the gateway goes on as before.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// What a successor says first.
const ASK: &[u8] = b"sekisho-take-over/1\n";
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// A unix socket of mode 0600 at `path`; its file goes when this is dropped, unless another process
/// has put its own in that place.
pub struct PrivateSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl PrivateSocket {
    /// Listens on `path` in the place of whatever is there.
    ///
    /// # Errors
    /// When it can not be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // Bound under another name and renamed when the mode is set: nobody can connect in between.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, path)?;
        let made = std::fs::symlink_metadata(path)?;
        Ok(Self { listener, path: path.to_owned(), file: (made.dev(), made.ino()) })
    }

    /// The next connection of a process of our own user.
    pub async fn accept(&self) -> UnixStream {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let ours = rustix::process::geteuid().as_raw();
            if stream.peer_cred().is_ok_and(|peer| peer.uid() == ours) {
                return stream;
            }
            tracing::warn!(socket = %self.path.display(), "connection of another user refused");
        }
    }
}

impl axum::serve::Listener for PrivateSocket {
    type Io = UnixStream;
    type Addr = PathBuf;

    async fn accept(&mut self) -> (UnixStream, PathBuf) {
        (PrivateSocket::accept(self).await, self.path.clone())
    }

    fn local_addr(&self) -> io::Result<PathBuf> {
        Ok(self.path.clone())
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Waits until a successor asks for this gateway's place.
pub async fn asked(socket: &PrivateSocket) -> StdUnixStream {
    loop {
        let mut stream = socket.accept().await;
        let mut asked = [0; ASK.len()];
        let read = timeout(ASK_WITHIN, stream.read_exact(&mut asked)).await;
        if matches!(read, Ok(Ok(_))) && asked == ASK {
            match stream.into_std().and_then(blocking) {
                Ok(stream) => return stream,
                Err(error) => tracing::warn!(%error, "successor lost"),
            }
        }
    }
}

/// Asks the gateway that listens on `path` for its place.
///
/// # Errors
/// When none listens there.
pub async fn ask(path: &Path) -> io::Result<StdUnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(ASK).await?;
    stream.into_std().and_then(blocking)
}

fn blocking(stream: StdUnixStream) -> io::Result<StdUnixStream> {
    stream.set_nonblocking(false)?;
    Ok(stream)
}
