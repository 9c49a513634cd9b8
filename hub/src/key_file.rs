//! Key files: read only when nobody else can read them, written once and never over another.
//!
//! INVARIANT: no key leaves this module in an error or a log line.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened, read or written.
    #[error("key file `{}` cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others may read the file.
    #[error("key file `{0}` is readable by others: run chmod 600 {0}", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
    },
    /// The file is too big to be a key.
    #[error("key file `{}` is bigger than {KEY_BYTES_MAX} bytes", path.display())]
    Size {
        /// The file.
        path: PathBuf,
    },
    /// The content is neither PKCS#8 PEM nor DER.
    #[error("key is not PKCS#8: expected DER, or PEM that begins with BEGIN PRIVATE KEY")]
    Form,
}

/// Reads a key file.
///
/// # Errors
/// [`Error::Io`], [`Error::Mode`], [`Error::Size`].
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.mode() & 0o077 != 0 {
        return Err(Error::Mode { path: path.to_owned() });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > KEY_BYTES_MAX {
        return Err(Error::Size { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Writes a new key file, mode 0600; it is on disk when this returns. Refuses an existing file.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// The DER of a PKCS#8 key given as DER or PEM.
///
/// # Errors
/// [`Error::Form`].
pub(crate) fn pkcs8_der(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    if bytes.first() == Some(&0x30) {
        return Ok(Zeroizing::new(bytes.to_vec()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Form)?;
    let body = text
        .split_once("-----BEGIN PRIVATE KEY-----")
        .and_then(|(_, rest)| rest.split_once("-----END PRIVATE KEY-----"))
        .map(|(body, _)| Zeroizing::new(body.split_ascii_whitespace().collect::<String>()))
        .ok_or(Error::Form)?;
    STANDARD.decode(body.as_bytes()).map(Zeroizing::new).map_err(|_| Error::Form)
}

const KEY_BYTES_MAX: u64 = 16 * 1024;
