//! A file drop: `<folder>/<origin>/<size>.checkpoint`, and the newest as `latest`.
//!
//! Invariants: a file under its final name is whole and on disk; the folder itself is never made
//! here, since a drop that is not mounted must be noticed; a head smaller than the newest one
//! there, or another over as many records, is refused, and no `.checkpoint` is ever written over.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use audit_log::Checkpoint;

use super::drop_folder;

/// Writes one head.
///
/// # Errors
/// When the folder is not there or not writable; when a newer head lies there, or another over as
/// many records.
pub(super) fn write(folder: &Path, head: &Checkpoint) -> anyhow::Result<()> {
    anyhow::ensure!(folder.is_dir(), "`{}` is not a folder: is it mounted?", folder.display());
    let own = folder.join(drop_folder(head.origin()));
    if !own.is_dir() {
        fs::create_dir(&own).with_context(|| format!("folder `{}`", own.display()))?;
    }
    let latest = own.join(LATEST);
    if let Some(size) = size_of(&latest)
        && size > head.size()
    {
        anyhow::bail!(
            "`{}` covers {size} records, and the log's newest head only {}: records may have been \
             cut off",
            latest.display(),
            head.size()
        );
    }
    let file = own.join(file_name(head.size()));
    for kept in [&file, &latest] {
        is_no_other(kept, head)?;
    }
    if !file.exists() {
        write_whole(&file, head.note())?;
    }
    write_whole(&latest, head.note())?;
    fs::File::open(&own)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("folder `{}`", own.display()))?;
    Ok(())
}

fn file_name(size: u64) -> String {
    format!("{size:020}.{ENDING}")
}

/// What a witness was given stays: a head over as many records with another root is a second
/// history. The same head signed anew, at another time, is none.
fn is_no_other(kept: &Path, head: &Checkpoint) -> anyhow::Result<()> {
    if !kept.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(kept)
        .with_context(|| format!("file `{}` cannot be read", kept.display()))?;
    let origin_size_root = |note: &str| note.lines().take(3).map(str::to_owned).collect::<Vec<_>>();
    let (before, now) = (origin_size_root(&text), origin_size_root(head.note()));
    let is_over_fewer = size_of(kept).is_some_and(|size| size < head.size());
    anyhow::ensure!(
        before == now || (is_over_fewer && before.first() == now.first()),
        "`{}` holds another head over {} records: the log was written anew, or something else \
         writes there; it is left as it is",
        kept.display(),
        head.size()
    );
    Ok(())
}

/// The number of records that a note on disk covers; its signature is not looked at here.
fn size_of(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.lines().nth(1)?.parse().ok()
}

/// By a temporary file and a rename; readable by everybody, as heads are no secret.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o644);
        let mut file = options.open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("file `{}` cannot be written", path.display()))
}

/// Thins the old heads of one log.
pub(super) fn thin_log(folder: &Path, origin: &str) {
    thin(&folder.join(drop_folder(origin)));
}

/// Of the heads before the newest [`KEPT_NEWEST`], keeps the last of each hour: a newer head proves
/// what the older ones proved. A drop that lets nothing be removed keeps all.
fn thin(own: &Path) {
    let all = files(own);
    let Some(old) = all.len().checked_sub(KEPT_NEWEST).and_then(|count| all.get(..count)) else {
        return;
    };
    for pair in old.windows(2) {
        if let [this, next] = pair
            && hour(this).is_some()
            && hour(this) == hour(next)
        {
            let _kept_where_not_permitted = fs::remove_file(this);
        }
    }
}

/// The heads in a folder, smallest first.
fn files(own: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(own).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == ENDING));
    files.sort();
    files
}

/// The hour in which a head was signed, `YYYY-MM-DDTHH`.
fn hour(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let time = text.lines().find_map(|line| line.strip_prefix("time "))?;
    time.get(..13).map(str::to_owned)
}

const LATEST: &str = "latest";
const ENDING: &str = "checkpoint";

/// So many of the newest heads all stay.
const KEPT_NEWEST: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use audit_log::{AuditLog, CheckpointKey, Event, Options};

    fn head(records: usize) -> Checkpoint {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = CheckpointKey::generate("id.example/audit/hub").unwrap();
        let log = AuditLog::open(folder.path(), Options::new("hub", key.clone())).unwrap();
        for _ in 0..records {
            log.append(&Event::ServiceStopped).unwrap().durable_blocking().unwrap();
        }
        log.close();
        audit_log::latest_checkpoint(folder.path(), key.verifying_key()).unwrap().unwrap()
    }

    #[test]
    fn a_head_lies_under_its_size_and_as_the_latest() {
        let drop = tempfile::tempdir().unwrap();
        let head = head(2);
        write(drop.path(), &head).unwrap();
        let own = drop.path().join("id.example_audit_hub");
        for name in [file_name(head.size()), LATEST.to_owned()] {
            assert_eq!(fs::read_to_string(own.join(name)).unwrap(), head.note());
        }
        assert_eq!(fs::read_dir(&own).unwrap().count(), 2, "nothing temporary stays");
    }

    #[test]
    fn a_shorter_log_is_noticed_and_a_missing_mount_too() {
        let drop = tempfile::tempdir().unwrap();
        write(drop.path(), &head(9)).unwrap();
        let error = write(drop.path(), &head(1)).unwrap_err().to_string();
        assert!(error.contains("may have been cut off"), "{error}");
        let error = write(&drop.path().join("none"), &head(1)).unwrap_err().to_string();
        assert!(error.contains("is it mounted?"), "{error}");
    }

    #[test]
    fn another_head_over_as_many_records_is_never_written_over_the_witness() {
        let drop = tempfile::tempdir().unwrap();
        let (first, second) = (head(2), head(2));
        assert_eq!(first.size(), second.size());
        assert_ne!(first.root(), second.root());
        write(drop.path(), &first).unwrap();
        write(drop.path(), &first).unwrap();
        let own = drop.path().join("id.example_audit_hub");
        for removed in [None, Some(LATEST)] {
            if let Some(name) = removed {
                fs::remove_file(own.join(name)).unwrap();
            }
            let error = write(drop.path(), &second).unwrap_err().to_string();
            assert!(error.contains("written anew"), "{error}");
            let kept = fs::read_to_string(own.join(file_name(first.size()))).unwrap();
            assert_eq!(kept, first.note());
        }
    }

    #[test]
    fn old_heads_are_thinned_to_one_an_hour() {
        let own = tempfile::tempdir().unwrap();
        let count = KEPT_NEWEST + 120;
        for at in 0..count {
            let hour = at / 60;
            let text = format!("o\n{at}\nr\ntime 2026-04-01T{:02}:00:00.000Z\n", hour % 24);
            fs::write(own.path().join(file_name(at as u64)), text).unwrap();
        }
        thin(own.path());
        let left = files(own.path());
        assert_eq!(left.len(), KEPT_NEWEST + 2);
        assert!(left[0].ends_with(file_name(59)) && left[1].ends_with(file_name(119)));
    }
}
