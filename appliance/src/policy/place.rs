//! Where the policies of a data folder lie: `policy/versions/<version>/` hold them, `policy/active`
//! is a link to one of them, and `policy/shadow` is a candidate's folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use policies::bundle::{Files, folder};
use policies::matrix::Matrix;
use policies::problem::Problem;

use super::OwnTerms;
use crate::exit::usage;
use crate::files;
use crate::layout::{Layout, Part};
use crate::part_config;

/// Makes the folders, with an active policy that takes nothing away and opens nothing.
///
/// # Errors
/// When they cannot be made.
pub(crate) fn make(layout: &Layout) -> anyhow::Result<()> {
    let base = layout.policy("versions/built-in");
    for folder in [layout.policy(""), layout.policy("versions"), base] {
        files::private_folder(&folder)?;
    }
    let active = layout.policy("active");
    if active.symlink_metadata().is_err() {
        point(&active, Path::new("versions/built-in"))?;
    }
    Ok(())
}

/// The folder that the gateway reads: that of its configuration.
///
/// # Errors
/// When config/gateway.toml names none.
pub(super) fn active_dir(layout: &Layout) -> anyhow::Result<PathBuf> {
    configured(layout, "policy.dir")
}

/// The folder in which the gateway looks for a candidate.
///
/// # Errors
/// When config/gateway.toml names none.
pub(super) fn shadow_dir(layout: &Layout) -> anyhow::Result<PathBuf> {
    configured(layout, "policy.shadow_dir")
}

fn configured(layout: &Layout, key: &str) -> anyhow::Result<PathBuf> {
    let found = part_config::find(layout, Part::Gateway, key)?;
    found.map(PathBuf::from).ok_or_else(|| {
        let name = if key.ends_with("shadow_dir") { "shadow" } else { "active" };
        usage(format!(
            "config file `{}` names no {key}: add a table [policy] with dir and shadow_dir, such \
             as `{}`, and restart the box",
            layout.config(Part::Gateway).display(),
            layout.policy(name).display()
        ))
    })
}

/// The policy in force, as it lies on disk; the built-in matrix where none is configured.
///
/// # Errors
/// When it does not load.
pub(super) fn active(layout: &Layout) -> anyhow::Result<Matrix> {
    let files = match part_config::find(layout, Part::Gateway, "policy.dir")? {
        Some(dir) => read(Path::new(&dir))?,
        None => Files::new(),
    };
    let policy = OwnTerms::read(layout)?.load(&files).map_err(|problems| refused(&problems))?;
    Ok(policy.matrix)
}

/// The texts of a folder.
///
/// # Errors
/// A usage error when it cannot be read.
pub(super) fn read(dir: &Path) -> anyhow::Result<Files> {
    folder::read(dir).map_err(|problems| refused(&problems))
}

/// Problems as one error, for where a good policy was needed.
pub(super) fn refused(problems: &[Problem]) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    usage(lines.join("; "))
}

/// Writes the texts as a folder of their own: all of it or nothing.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(dir: &Path, texts: &Files) -> anyhow::Result<()> {
    let unwritable = || format!("folder `{}` cannot be written", dir.display());
    let temporary = sibling(dir, "new");
    let _left_over = fs::remove_dir_all(&temporary);
    files::private_folder(&temporary)?;
    for (path, text) in texts {
        let file = temporary.join(path);
        if let Some(parent) = file.parent() {
            files::private_folder(parent)?;
        }
        files::write_private(&file, text.as_bytes())?;
    }
    if dir.exists() {
        let old = sibling(dir, "old");
        let _left_over = fs::remove_dir_all(&old);
        fs::rename(dir, &old).with_context(unwritable)?;
        fs::rename(&temporary, dir).with_context(unwritable)?;
        let _left_over = fs::remove_dir_all(&old);
        return Ok(());
    }
    fs::rename(&temporary, dir).with_context(unwritable)
}

/// Points the active policy at another folder, at once. A real folder in its place becomes a
/// version of its own first, so that nothing an operator wrote is lost.
///
/// # Errors
/// When it cannot be written.
pub(super) fn point(active: &Path, target: &Path) -> anyhow::Result<()> {
    let unwritable = || format!("link `{}` cannot be written", active.display());
    let link = sibling(active, "link");
    let _left_over = fs::remove_file(&link);
    symlink(target, &link).with_context(unwritable)?;
    if active.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        let kept = sibling(active, "before");
        anyhow::ensure!(!kept.exists(), "`{}` is in the way: move it", kept.display());
        fs::rename(active, kept).with_context(unwritable)?;
    }
    fs::rename(&link, active).with_context(unwritable)
}

fn sibling(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{ending}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_replaced_whole_and_the_link_moves_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        make(&layout).unwrap();
        make(&layout).unwrap();
        let active = layout.policy("active");
        assert!(read(&active).unwrap().is_empty());
        let texts = |text: &str| Files::from([("overlays/a.toml".to_owned(), text.to_owned())]);
        let version = layout.policy("versions/1");
        write(&version, &texts("x")).unwrap();
        write(&version, &texts("y")).unwrap();
        point(&active, Path::new("versions/1")).unwrap();
        assert_eq!(read(&active).unwrap(), texts("y"));
        let hidden = fs::read_dir(layout.policy("")).unwrap();
        let left =
            hidden.filter(|it| it.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_real_folder_in_the_links_place_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let active = folder.path().join("active");
        fs::create_dir(&active).unwrap();
        fs::write(active.join("policy.toml"), "source = \"mine\"\n").unwrap();
        point(&active, Path::new("versions/1")).unwrap();
        let kept = folder.path().join(".active.before/policy.toml");
        assert_eq!(fs::read_to_string(kept).unwrap(), "source = \"mine\"\n");
    }
}
