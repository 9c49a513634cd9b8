//! Files of the data folder: folders 0700, files 0600, and writes that are whole or not at all.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};

use crate::exit::usage;
use crate::output::shell_quoted;

/// Makes a folder with mode 0700; one that exists must be a folder of our own, not a link.
///
/// # Errors
/// When it cannot be made; a usage error when something else has its name, or it belongs to
/// another user.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    // Without a closing slash, behind which a link would be followed.
    let path: PathBuf = path.components().collect();
    match fs::symlink_metadata(&path) {
        Ok(found) => is_own_folder(&path, &found),
        Err(error) if error.kind() == ErrorKind::NotFound => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("folder `{}` cannot be made", path.display())),
        Err(error) => Err(error).with_context(|| format!("folder `{}`", path.display())),
    }
}

/// As [`private_folder`], for a data folder: its name may be a link to where it lies.
///
/// # Errors
/// As [`private_folder`].
pub(crate) fn data_root(path: &Path) -> anyhow::Result<()> {
    match fs::metadata(path) {
        Ok(found) => is_own_folder(path, &found),
        Err(_) => private_folder(path),
    }
}

/// Refuses a folder that others may enter.
///
/// # Errors
/// A usage error with the command that mends it.
pub(crate) fn refuse_open_folder(path: &Path) -> anyhow::Result<()> {
    let found = fs::metadata(path).with_context(|| format!("folder `{}`", path.display()))?;
    let mode = found.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path: PathBuf = path.components().collect();
    let quoted = shell_quoted(&path.display().to_string());
    Err(usage(format!(
        "folder `{}` is open to others (mode {mode:03o}): run `chmod 700 {quoted}`",
        path.display()
    )))
}

fn is_own_folder(path: &Path, found: &fs::Metadata) -> anyhow::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let quoted = shell_quoted(&path.display().to_string());
    let path = path.display();
    if found.is_symlink() {
        return Err(usage(format!(
            "folder `{path}` is a symbolic link: put a folder in its place"
        )));
    }
    if !found.is_dir() {
        return Err(usage(format!("`{path}` is not a folder: move it away")));
    }
    if found.uid() != own {
        return Err(usage(format!(
            "folder `{path}` belongs to user {}, and this is user {own}: run as that user, or run \
             `chown -R {own} {quoted}`",
            found.uid()
        )));
    }
    Ok(())
}

/// Writes a file with mode 0600, by a temporary file and a rename, so that a reader sees the old
/// content or the new one.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes, true)
}

/// The same for what may be lost with the power: nothing waits for the disk.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_private_soon(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes, false)
}

fn replace(path: &Path, bytes: &[u8], is_synced: bool) -> anyhow::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(bytes)?;
        if is_synced {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("file `{}` cannot be written", path.display()))
}

/// Reads a text file of at most [`TEXT_BYTES_MAX`].
///
/// # Errors
/// When it is missing, too large, unreadable, or not UTF-8.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = read(path)?;
    String::from_utf8(bytes).with_context(|| format!("file `{}` is not UTF-8", path.display()))
}

/// Reads a file of at most [`TEXT_BYTES_MAX`].
///
/// # Errors
/// When it is missing, too large, unreadable or no regular file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    read_at_most(path, TEXT_BYTES_MAX)
}

pub(crate) fn read_at_most(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let unreadable = || format!("file `{}` cannot be read", path.display());
    // Without NONBLOCK the opening of a FIFO waits for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(std::io::Error::from);
    let file = fs::File::from(opened.with_context(unreadable)?);
    let found = file.metadata().with_context(unreadable)?;
    anyhow::ensure!(found.is_file(), "file `{}` is not a regular file", path.display());
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).with_context(unreadable)?;
    anyhow::ensure!(
        bytes.len() as u64 <= limit,
        "file `{}` has more than {limit} bytes: at most {limit} are read",
        path.display()
    );
    Ok(bytes)
}

/// Reads a configuration file: that it cannot be read is a bad configuration.
///
/// # Errors
/// As [`read_text`], as a usage error.
pub(crate) fn read_config(path: &Path) -> anyhow::Result<String> {
    read_text(path).map_err(|error| {
        usage(format!("config {error:#}: make it readable to you, or restore it from the backup"))
    })
}

/// Reads a file that was named on the command line: that it cannot be read is bad usage.
///
/// # Errors
/// As [`read`], as a usage error.
pub(crate) fn read_given(path: &Path) -> anyhow::Result<Vec<u8>> {
    read(path).map_err(|error| usage(format!("{error:#}: check the path")))
}

/// The largest file that is read whole, in bytes.
pub(crate) const TEXT_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_code;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_and_folders_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        private_folder(&inner).unwrap();
        private_folder(&inner).unwrap();
        let file = inner.join("key");
        write_private(&file, b"one").unwrap();
        write_private(&file, b"two").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&file)), (0o700, 0o600));
        assert_eq!(read_text(&file).unwrap(), "two");
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn only_own_closed_folders_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        private_folder(&real).unwrap();
        refuse_open_folder(&real).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        data_root(&link).unwrap();
        for linked in [link.clone(), link.join("")] {
            let error = private_folder(&linked).unwrap_err();
            assert!(error.to_string().contains("is a symbolic link"), "{error}");
            assert_eq!(exit_code(&error), 64);
        }
        fs::set_permissions(&real, fs::Permissions::from_mode(0o750)).unwrap();
        let error = refuse_open_folder(&real).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        assert_eq!(exit_code(&error), 64);
        let file = folder.path().join("file");
        write_private(&file, b"").unwrap();
        assert!(private_folder(&file).unwrap_err().to_string().contains("is not a folder"));
        // Whoever runs this, one of the two belongs to somebody else.
        let foreign = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&real, Some(12_345), None).unwrap();
            real
        } else {
            PathBuf::from("/usr")
        };
        for error in [private_folder(&foreign).unwrap_err(), data_root(&foreign).unwrap_err()] {
            assert!(error.to_string().contains("chown -R"), "{error}");
            assert_eq!(exit_code(&error), 64);
        }
    }

    #[test]
    fn only_regular_files_of_a_bounded_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        for path in [fifo.as_path(), Path::new("/dev/zero"), folder.path()] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains("is not a regular file"), "{error}");
        }
        let file = folder.path().join("file");
        write_private(&file, b"12345").unwrap();
        assert_eq!(read_at_most(&file, 5).unwrap(), b"12345");
        assert!(read_at_most(&file, 4).unwrap_err().to_string().contains("more than 4 bytes"));
        let error = read_config(&folder.path().join("none.toml")).unwrap_err();
        assert!(error.to_string().contains("restore it from the backup"), "{error}");
        assert_eq!(exit_code(&error), 64);
    }
}
