//! Key files, PEM and the few bytes that are computed from keys.
//!
//! INVARIANT: a private key is never written over, never readable by others, and never in a log.
//! Files are written to a temporary name, synced and then given their name, so that a crash leaves
//! either nothing or the whole file.
//!
//! Keys in PKCS#11 tokens belong here: the same [`rcgen::SigningKey`], another place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use policies::identity::Serial;
use rcgen::KeyPair;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// Why a key or certificate file can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can not be read.
    #[error("`{0}` cannot be read: check that it exists and who owns it")]
    Read(PathBuf, #[source] io::Error),
    /// The file can not be written.
    #[error("`{0}` cannot be written: check the folder and the space left")]
    Write(PathBuf, #[source] io::Error),
    /// Others than the owner have access to a private key.
    #[error("key file `{path}` is readable by others (mode {mode:03o}): run chmod 600 {path}")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("`{path}` is not usable: expected {expected}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The file is there already and holds something else.
    #[error("`{0}` exists already and is not written over")]
    Exists(PathBuf),
    /// The system gave no random bytes.
    #[error("the system gave no randomness")]
    Randomness,
}

/// Reads a file that only its owner may read.
///
/// # Errors
/// [`Error::Read`], [`Error::Mode`].
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source| Error::Read(path.to_owned(), source);
    let mode = fs::metadata(path).map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Mode { path: path.to_owned(), mode });
    }
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

/// Reads a private key for TLS, PEM or PKCS#8 DER.
///
/// # Errors
/// [`Error::Read`], [`Error::Mode`], [`Error::Form`].
pub fn read_tls_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let bytes = read_private(path)?;
    let form = || Error::Form { path: path.to_owned(), expected: "a private key, PEM or PKCS#8" };
    if bytes.starts_with(b"-----") {
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| form())
    } else {
        PrivateKeyDer::try_from(bytes.to_vec()).map_err(|_| form())
    }
}

/// Reads a CA's private key, PEM or PKCS#8 DER.
///
/// # Errors
/// [`Error::Read`], [`Error::Mode`], [`Error::Form`].
pub fn read_signing_key(path: &Path) -> Result<KeyPair, Error> {
    let der = read_tls_key(path)?;
    KeyPair::try_from(&der)
        .map_err(|_| Error::Form { path: path.to_owned(), expected: "an ECDSA private key" })
}

/// Reads the certificates of a PEM file, in order; at least one.
///
/// # Errors
/// [`Error::Read`], [`Error::Form`].
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = fs::read(path).map_err(|source| Error::Read(path.to_owned(), source))?;
    let form = || Error::Form { path: path.to_owned(), expected: "certificates in PEM form" };
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|_| form())?;
    if certificates.is_empty() { Err(form()) } else { Ok(certificates) }
}

/// One certificate as PEM, lines of 64 characters.
pub fn certificate_to_pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", wrap_64(&text))
}

/// The one certificate of a PEM text, and nothing else.
pub fn certificate_from_pem(text: &str) -> Option<Vec<u8>> {
    let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes());
    match (sections.next(), sections.next()) {
        (Some(Ok((SectionKind::Certificate, der))), None) => Some(der),
        _ => None,
    }
}

/// `text` in lines of 64 characters, each ended.
pub fn wrap_64(text: &str) -> String {
    let mut wrapped = String::with_capacity(text.len() + text.len() / 64 + 1);
    for (at, character) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            wrapped.push('\n');
        }
        wrapped.push(character);
    }
    wrapped.push('\n');
    wrapped
}

/// Makes a folder that only its owner may enter; leaves one that exists.
///
/// # Errors
/// [`Error::Write`].
pub fn make_private_dir(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::Write(path.to_owned(), source))
}

/// Writes a new file whole or not at all; refuses to replace one.
///
/// # Errors
/// [`Error::Exists`], [`Error::Write`].
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let failed = |source| Error::Write(path.to_owned(), source);
    let temporary = write_temporary(path, bytes, mode).map_err(failed)?;
    // A hard link, unlike a rename, fails if the name is taken.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary).map_err(failed)?;
    match linked {
        Ok(()) => sync_parent(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Error::Exists(path.to_owned()))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Writes a file whole or not at all, in the place of one that may exist. Never for keys.
///
/// # Errors
/// [`Error::Write`].
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let failed = |source| Error::Write(path.to_owned(), source);
    let temporary = write_temporary(path, bytes, mode).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    sync_parent(path).map_err(failed)
}

/// A random, positive serial number of exactly 16 bytes (RFC 5280 §4.1.2.2).
///
/// # Errors
/// [`Error::Randomness`].
pub fn random_serial() -> Result<Serial, Error> {
    let mut bytes = random_bytes::<SERIAL_BYTES>()?;
    // Top bit clear: positive. Next bit set: the length never varies.
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Serial::from_bytes(&bytes).map_err(|_| Error::Randomness)
}

/// Random bytes from the operating system.
///
/// # Errors
/// [`Error::Randomness`].
pub fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Randomness)?;
    Ok(bytes)
}

/// The key identifier of a public key: the first 160 bits of SHA-256 over the subjectPublicKey bits
/// (RFC 7093 §2 method 1). rcgen's own methods hash the whole SubjectPublicKeyInfo.
pub fn key_identifier(subject_public_key: &[u8]) -> Vec<u8> {
    sha256(subject_public_key)[..20].to_vec()
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    // Left over from a killed process with the same id: never linked, so never in use.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(temporary)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// How many bytes a serial number of ours has.
pub const SERIAL_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_never_written_over_and_never_readable_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_new(&path, b"one", 0o600).unwrap();
        assert!(matches!(write_new(&path, b"two", 0o600), Err(Error::Exists(_))));
        assert_eq!(read_private(&path).unwrap().as_slice(), b"one");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_private(&path).unwrap_err();
        assert!(error.to_string().contains("run chmod 600"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn serials_are_positive_and_16_bytes_long() {
        for _ in 0..200 {
            let serial = random_serial().unwrap();
            assert_eq!(serial.as_bytes().len(), SERIAL_BYTES);
            assert_eq!(serial.as_bytes()[0] & 0x80, 0);
        }
    }

    #[test]
    fn pem_round_trips_and_refuses_a_second_section() {
        let text = certificate_to_pem(&[7; 100]);
        assert_eq!(certificate_from_pem(&text).unwrap(), [7; 100]);
        assert!(certificate_from_pem(&format!("{text}{text}")).is_none());
        assert!(certificate_from_pem("nothing").is_none());
    }
}
