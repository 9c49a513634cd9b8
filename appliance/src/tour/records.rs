//! Step 7: the audit logs verify; a byte changed in a copy is found and named.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::layout::Part;

use super::party::Scene;
use super::report::Report;
use super::system::sekisho;

/// Walks step 7.
pub(super) async fn walk(scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    report.step(7, "監査記録を検証する");
    let (good, words) = sekisho(&scene.layout, &["audit", "verify"]).await?;
    report.check("sekisho audit verify を実行する", words.trim(), "すべて正しい", good)?;
    let copy = tempfile::tempdir()?;
    copy_log(&scene.layout.audit(Part::Gateway), copy.path())?;
    let sound = audit_log::verify(copy.path());
    let came = match &sound {
        Ok(summary) => format!("記録 {} 件", summary.records),
        Err(error) => error.to_string(),
    };
    report.check("ゲートウェイの記録の写しを検証する", &came, "正しい", sound.is_ok())?;
    let (file, line) = change_one_byte(copy.path())?;
    let place = format!("{} の {line} 行目", file_name(&file));
    let (came, named) = match audit_log::verify(copy.path()) {
        Ok(_) => ("変更が見つかりません".to_owned(), false),
        Err(error) => (error.to_string(), error.file == file && error.line == line),
    };
    let does = format!("写しの {place}を 1 バイト書き換えて検証する");
    report.check(&does, &came, &format!("{place}が誤りとして示される"), named)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn copy_log(from: &Path, to: &Path) -> anyhow::Result<()> {
    for segment in segments(from)? {
        fs::copy(&segment, to.join(file_name(&segment)))?;
    }
    Ok(())
}

/// The segment files of a log, oldest first.
fn segments(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("folder `{}` cannot be read", folder.display()))?;
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            segments.push(path);
        }
    }
    segments.sort();
    Ok(segments)
}

/// Changes a digit in the middle record of the newest segment; returns the file and line.
fn change_one_byte(folder: &Path) -> anyhow::Result<(PathBuf, u64)> {
    let file = segments(folder)?.pop().context("the copy holds no segment")?;
    let mut bytes = fs::read(&file)?;
    let starts: Vec<usize> = std::iter::once(0)
        .chain(bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1))
        .collect();
    // Lines are the starts but the last one, which is the end of the file; line 1 is the header.
    let at = starts.len() / 2;
    let start = *starts.get(at).context("the copy holds too few records")?;
    let digit = bytes
        .get_mut(start..)
        .and_then(|line| line.iter_mut().find(|byte| byte.is_ascii_digit()))
        .context("the record holds no digit")?;
    *digit = if *digit == b'9' { b'8' } else { *digit + 1 };
    fs::write(&file, &bytes)?;
    Ok((file, u64::try_from(at)? + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_changed_in_the_line_that_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000001.jsonl");
        fs::write(&path, "header 1\nrecord 1\nrecord 2\nrecord 9\n").unwrap();
        let (file, line) = change_one_byte(folder.path()).unwrap();
        assert_eq!((file.as_path(), line), (path.as_path(), 3));
        assert_eq!(fs::read_to_string(&path).unwrap(), "header 1\nrecord 1\nrecord 3\nrecord 9\n");
    }
}
