//! Unix sockets: mode 0600, own uid only, never taken from a running process.
//!
//! INVARIANT: a socket appears under its name only when it listens and has its mode; it is removed
//! when the listener is dropped.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A live process listens there.
    #[error("`{}` is already in use by a running process: stop it first", .0.display())]
    InUse(PathBuf),
    /// There is a file of another kind.
    #[error("`{}` is not a socket: remove it or set another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("socket `{}` failed", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A peer runs under another uid.
    #[error("peer with uid {0} is not the hub's own uid")]
    OtherUid(u32),
}

/// A listening socket.
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`; the socket that a killed process left behind is replaced.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotASocket`], [`Error::Io`].
    pub(crate) fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        refuse_live(path)?;
        let mut making = path.as_os_str().to_owned();
        making.push(".new");
        let making = PathBuf::from(making);
        let _ = std::fs::remove_file(&making);
        let listener = UnixListener::bind(&making).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&making, mode).map_err(failed)?;
        std::fs::rename(&making, path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The next peer of our own uid.
    ///
    /// # Errors
    /// [`Error::OtherUid`], [`Error::Io`].
    pub(crate) async fn accept(&self) -> Result<UnixStream, Error> {
        let failed = |source| Error::Io { path: self.path.clone(), source };
        let (stream, _) = self.listener.accept().await.map_err(failed)?;
        let peer = stream.peer_cred().map_err(failed)?.uid();
        if peer == rustix::process::geteuid().as_raw() {
            Ok(stream)
        } else {
            Err(Error::OtherUid(peer))
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn refuse_live(path: &Path) -> Result<(), Error> {
    let about = match std::fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
    };
    if !about.file_type().is_socket() {
        return Err(Error::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(Error::InUse(path.to_owned())),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_kept_and_a_dead_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.sock");
        let live = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::InUse(_))));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        drop(live);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&path).unwrap());
        std::fs::write(&path, b"text").unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::NotASocket(_))));
    }
}
