//! Files of the data folder: folders 0700, files 0600, and writes that are whole or not at all.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;

use crate::exit::usage;

/// Makes a folder with mode 0700 unless it exists.
///
/// # Errors
/// When it cannot be made, or something else has its name.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("folder `{}` cannot be made", path.display()))
}

/// Writes a file with mode 0600, by a temporary file and a rename, so that a reader sees the old
/// content or the new one.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
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
/// When it is missing, too large or unreadable.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let unreadable = || format!("file `{}` cannot be read", path.display());
    let length = fs::metadata(path).with_context(unreadable)?.len();
    anyhow::ensure!(
        length <= TEXT_BYTES_MAX,
        "file `{}` has {length} bytes: at most {TEXT_BYTES_MAX} are read",
        path.display()
    );
    fs::read(path).with_context(unreadable)
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
}
