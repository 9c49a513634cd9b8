//! The lock on a data folder: whoever holds it is its supervisor, so two `up` never fight.
//!
//! The kernel drops the lock with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;

use crate::layout::Layout;

/// Held for as long as the supervisor runs.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` when another process holds it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub(crate) fn take(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.run("supervisor.lock");
        let unusable = || format!("lock file `{}` cannot be used", path.display());
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(unusable)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(unusable),
        }
    }

    /// Takes the lock on the demo, so that two commands never fill it at the same time; waits for
    /// the other one.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub(crate) async fn of_demo(layout: &Layout) -> anyhow::Result<Self> {
        let path = layout.demo("lock");
        let taken = tokio::task::spawn_blocking(move || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            file.lock()?;
            Ok(file)
        });
        let file = taken.await?.context("the lock on the demo cannot be used")?;
        Ok(Self { _file: file })
    }

    /// Whether a process has this folder's lock file open, as its supervisor has.
    pub(crate) fn is_held_by(layout: &Layout, pid: u32) -> bool {
        let same =
            |path: &std::path::Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let lock = same(&layout.run("supervisor.lock"));
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        lock.is_some() && open.filter_map(Result::ok).any(|entry| same(&entry.path()) == lock)
    }

    /// Whether a supervisor runs on this folder.
    pub(crate) fn is_held(layout: &Layout) -> bool {
        layout.run("supervisor.lock").exists() && matches!(Self::take(layout), Ok(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_is_kept_out_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        crate::files::private_folder(&layout.run("")).unwrap();
        assert!(!Lock::is_held(&layout));
        let lock = Lock::take(&layout).unwrap();
        assert!(lock.is_some() && Lock::is_held(&layout));
        assert!(Lock::take(&layout).unwrap().is_none());
        let own = std::process::id();
        assert!(Lock::is_held_by(&layout, own) && !Lock::is_held_by(&layout, 1));
        drop(lock);
        assert!(!Lock::is_held(&layout) && !Lock::is_held_by(&layout, own));
    }
}
