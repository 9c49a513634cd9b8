//! The folder of a terminal: `key.pem` (PKCS#8, mode 0600) and `cert.pem` (leaf, then issuing CA).
//!
//! INVARIANT: each file is whole or absent: written under another name, synced, renamed. The key of
//! an enrolment under way waits as `key.pem.pending`, so that an enrolment that was cut off after
//! the CA issued asks again with the same key and gets the same certificate.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// Why the folder can not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "`{}` is already there: use another folder, or --replace to give up the old key",
        .0.display()
    )]
    Exists(PathBuf),
    #[error("key file `{0}` is readable by others: run chmod 600 {0}")]
    Exposed(String),
    #[error("`{}` is longer than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    #[error("`{}` holds no PEM certificate", .0.display())]
    NoCertificate(PathBuf),
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, path: path.to_owned(), source }
}

/// The folder of one terminal.
pub(crate) struct Folder {
    dir: PathBuf,
}

impl Folder {
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    fn pending_key(&self) -> PathBuf {
        self.dir.join("key.pem.pending")
    }

    fn new_certificate(&self) -> PathBuf {
        self.dir.join("cert.pem.new")
    }

    /// Makes the folder, mode 0700; finishes a change that was cut off between its two renames;
    /// refuses a key that is there already, unless it is to be replaced.
    pub(crate) fn prepare(&self, replace: bool) -> Result<(), Error> {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(io_error("create", &self.dir))?;
        if self.new_certificate().exists() && !self.pending_key().exists() {
            rename(&self.new_certificate(), &self.certificate())?;
        }
        for path in [self.key(), self.certificate()] {
            if !replace && path.exists() {
                return Err(Error::Exists(path));
            }
        }
        Ok(())
    }

    /// The key of an enrolment that was cut off, if there is one.
    pub(crate) fn read_pending_key(&self) -> Result<Option<Zeroizing<String>>, Error> {
        let path = self.pending_key();
        if path.exists() { read_key(&path).map(Some) } else { Ok(None) }
    }

    /// Keeps the key of the enrolment under way.
    pub(crate) fn write_pending_key(&self, pem: &str) -> Result<(), Error> {
        write(&self.pending_key(), pem.as_bytes(), 0o600)
    }

    /// Puts the pending key and its certificate chain in their places.
    pub(crate) fn install(&self, chain_pem: &str) -> Result<(), Error> {
        let new = self.new_certificate();
        write_in_place(&new, chain_pem.as_bytes(), 0o644).map_err(io_error("write", &new))?;
        rename(&self.pending_key(), &self.key())?;
        rename(&new, &self.certificate())?;
        sync_dir(&self.dir).map_err(io_error("sync", &self.dir))
    }
}

/// Reads a key file that only its owner may read.
pub(crate) fn read_key(path: &Path) -> Result<Zeroizing<String>, Error> {
    let metadata = std::fs::metadata(path).map_err(io_error("read", path))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(Error::Exposed(path.display().to_string()));
    }
    let file = File::open(path).map_err(io_error("read", path))?;
    read_text(file, path)
}

/// Reads a short secret: from standard input when `path` is `-`. White space around it goes.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, Error> {
    let text = if path == Path::new("-") {
        read_text(io::stdin().lock(), path)?
    } else {
        read_text(File::open(path).map_err(io_error("read", path))?, path)?
    };
    Ok(Zeroizing::new(text.trim().to_owned()))
}

fn read_text(from: impl Read, path: &Path) -> Result<Zeroizing<String>, Error> {
    // Room for everything at once: growing would leave copies of a key behind.
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX + 1));
    let limit = FILE_BYTES_MAX as u64 + 1;
    from.take(limit).read_to_string(&mut text).map_err(io_error("read", path))?;
    if text.len() > FILE_BYTES_MAX { Err(Error::TooLong(path.to_owned())) } else { Ok(text) }
}

/// The certificates of a PEM file, in their order.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = std::fs::read(path).map_err(io_error("read", path))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| Error::NoCertificate(path.to_owned()))
}

/// One certificate as PEM (RFC 7468 §5).
pub(crate) fn certificate_pem(der: &[u8]) -> String {
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let text = STANDARD.encode(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Writes a file so that its name never names a part of it.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let unfinished = PathBuf::from(name);
    write_in_place(&unfinished, bytes, mode).map_err(io_error("write", &unfinished))?;
    rename(&unfinished, path)
}

fn write_in_place(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // `create_new` and a fresh file: neither an old mode nor a link planted there counts.
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(io_error("replace", to))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

const FILE_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_enrolment_leaves_two_files_with_the_right_modes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::at(&dir.path().join("terminal"));
        folder.prepare(false).unwrap();
        folder.write_pending_key("KEY").unwrap();
        assert_eq!(folder.read_pending_key().unwrap().unwrap().as_str(), "KEY");
        folder.install("CHAIN").unwrap();
        assert_eq!(std::fs::read_to_string(folder.key()).unwrap(), "KEY");
        assert_eq!(std::fs::read_to_string(folder.certificate()).unwrap(), "CHAIN");
        assert_eq!(mode(&folder.key()), 0o600);
        assert_eq!(mode(&folder.dir), 0o700);
        let names: Vec<_> = std::fs::read_dir(&folder.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn an_existing_key_or_certificate_is_refused_unless_it_is_to_be_replaced() {
        for name in ["key.pem", "cert.pem"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), "old").unwrap();
            let folder = Folder::at(dir.path());
            assert!(matches!(folder.prepare(false), Err(Error::Exists(_))));
            folder.prepare(true).unwrap();
            folder.write_pending_key("KEY").unwrap();
            // Until the new pair is there, the old one stays.
            assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "old");
            folder.install("CHAIN").unwrap();
            assert_ne!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "old");
        }
    }

    #[test]
    fn a_change_cut_off_between_its_renames_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::at(dir.path());
        std::fs::write(folder.key(), "NEW KEY").unwrap();
        std::fs::write(folder.certificate(), "OLD CHAIN").unwrap();
        std::fs::write(folder.new_certificate(), "NEW CHAIN").unwrap();
        assert!(matches!(folder.prepare(false), Err(Error::Exists(_))));
        assert_eq!(std::fs::read_to_string(folder.certificate()).unwrap(), "NEW CHAIN");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        std::fs::write(&path, "KEY").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let text = read_key(&path).unwrap_err().to_string();
        assert!(text.contains("run chmod 600"), "{text}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_key(&path).unwrap().as_str(), "KEY");
    }

    #[test]
    fn a_link_in_place_of_the_unfinished_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let folder = Folder::at(dir.path());
        let planted = dir.path().join("key.pem.pending.tmp");
        std::os::unix::fs::symlink(&victim, planted).unwrap();
        folder.write_pending_key("KEY").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    }

    #[test]
    fn secrets_are_trimmed_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "7KQ4-AAAA\r\n").unwrap();
        assert_eq!(read_secret(&path).unwrap().as_str(), "7KQ4-AAAA");
        std::fs::write(&path, "x".repeat(FILE_BYTES_MAX + 1)).unwrap();
        assert!(matches!(read_secret(&path), Err(Error::TooLong(_))));
    }

    #[test]
    fn pem_lines_are_those_of_rfc_7468() {
        let pem = certificate_pem(&[7; 100]);
        assert!(pem.lines().all(|line| line.len() <= 64));
        let path = tempfile::tempdir().unwrap().keep().join("c.pem");
        std::fs::write(&path, pem.repeat(2)).unwrap();
        let read = read_certificates(&path).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].as_ref(), &[7; 100]);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
