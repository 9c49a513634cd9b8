//! Step 7: the audit logs verify; in copies, a changed byte and records cut off at the end are
//! found and named; one record is proved to somebody who has nothing but the public key.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::layout::{Layout, Part};
use crate::settings::Settings;

use super::exchange::Line;
use super::party::{Cast, Scene};
use super::report::Report;
use super::system::sekisho;

/// Walks step 7.
pub(super) async fn walk(scene: &Scene, cast: &Cast, report: &mut Report) -> anyhow::Result<()> {
    report.step(7, "監査記録を検証する");
    let layout = &scene.layout;
    let (good, words) = sekisho(layout, &["audit", "verify"]).await?;
    report.check("sekisho audit verify を実行する", words.trim(), "すべて正しい", good)?;
    let copies = tempfile::tempdir()?;
    let copy = copies.path().join("copy");
    copy_log(&layout.audit(Part::Gateway), &copy)?;
    let (good, words) = verify_copy(layout, &copy, &[]).await?;
    report.check("ゲートウェイの記録の写しを検証する", words.trim(), "正しい", good)?;
    one_byte(layout, &copy, &copies.path().join("changed"), report).await?;
    cut_off(scene, cast, &copy, report).await?;
    one_record(layout, copies.path(), report).await
}

/// A byte of a copy is changed: the line is named.
async fn one_byte(
    layout: &Layout,
    copy: &Path,
    changed: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    copy_log(copy, changed)?;
    let (file, line) = change_one_byte(changed)?;
    let place = format!("{} の {line} 行目", file_name(&file));
    let (good, words) = verify_copy(layout, changed, &[]).await?;
    let named = words.contains(&file_name(&file)) && words.contains(&format!("line {line} "));
    let does = format!("写しの {place}を 1 バイト書き換えて検証する");
    report.check(&does, words.trim(), &format!("{place}が誤りとして示される"), !good && named)
}

/// The copy is older than what has left the box since: as a log looks whose end was cut off.
async fn cut_off(
    scene: &Scene,
    cast: &Cast,
    copy: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let layout = &scene.layout;
    let heads = Settings::read(&layout.settings())?.heads.and_then(|heads| heads.file_drop);
    let heads = heads.context("no file drop is configured under [audit.heads]")?;
    let mut portal = Line::open(&cast.portal).await?;
    portal.get(&scene.path("documents")).await?;
    let size = size_of(&copy.join("checkpoint"))?;
    wait_for_head(&heads, size).await?;
    let heads = heads.display().to_string();
    let with_heads = ["--heads", heads.as_str()];
    let words = ["audit", "verify", "--part", "gateway"];
    let (good, came) = sekisho(layout, &[words.as_slice(), &with_heads].concat()).await?;
    let does = "箱の外に届いた署名付きの先頭（ヘッド）と照らして検証する";
    report.check(does, came.trim(), "正しい", good)?;
    let (good, came) = verify_copy(layout, copy, &with_heads).await?;
    let does = "末尾の記録を切り捨てた写しを、箱の外のヘッドと照らして検証する";
    report.check(does, came.trim(), "切り捨てが示される", !good && came.contains('✗'))
}

/// Waits until the gateway's newest head in the drop covers more than `size` records.
async fn wait_for_head(heads: &Path, size: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + HEAD_MAX;
    loop {
        let folders = fs::read_dir(heads).with_context(|| format!("`{}`", heads.display()))?;
        let newest = folders
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().ends_with("_gateway"))
            .filter_map(|entry| size_of(&entry.path().join("latest")).ok())
            .max();
        if newest.is_some_and(|newest| newest > size) {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "no head over more than {size} records reached `{}`",
            heads.display()
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Number of records that a checkpoint covers.
fn size_of(checkpoint: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(checkpoint)
        .with_context(|| format!("file `{}` cannot be read", checkpoint.display()))?;
    let size = text.lines().nth(1).and_then(|line| line.parse().ok());
    size.with_context(|| format!("file `{}` is no checkpoint", checkpoint.display()))
}

/// One record, proved without the rest of the log.
async fn one_record(layout: &Layout, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let search = ["audit", "search", "--part", "gateway", "--allowed", "--last", "1", "--json"];
    let (_, words) = sekisho(layout, &search).await?;
    let found: Vec<Value> =
        serde_json::from_str(&words).with_context(|| format!("search said `{words}`"))?;
    let number = found.first().and_then(|record| record.get("number")).and_then(Value::as_u64);
    let number = number.context("no allowed request was found")?.to_string();
    let file = folder.join("proof").display().to_string();
    let prove = ["audit", "prove", &number, "--part", "gateway", "--out", &file];
    let deadline = Instant::now() + HEAD_MAX;
    // The next head covers the newest record within a second.
    let (good, words) = loop {
        let (good, words) = sekisho(layout, &prove).await?;
        if good || Instant::now() >= deadline {
            break (good, words);
        }
        tokio::time::sleep(POLL).await;
    };
    let does = format!("記録 {number} がログにあることの証明を作る");
    report.check(&does, words.trim(), "証明のファイルができる", good)?;
    let (good, words) = sekisho(layout, &["audit", "check-proof", &file]).await?;
    let does = "その証明だけを、公開鍵で確かめる（ログは使わない）";
    let names = words.contains(&format!("record {number} of"));
    report.check(does, words.trim(), "その記録がログにある", good && names)?;
    change_record_in_proof(Path::new(&file))?;
    let (good, words) = sekisho(layout, &["audit", "check-proof", &file]).await?;
    let does = "証明の中の記録を 1 文字書き換えて確かめる";
    report.check(does, words.trim(), "誤りとして示される", !good && words.contains('✗'))
}

/// Changes one letter of the record that a proof carries (its line `extra`, base64).
fn change_record_in_proof(file: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(file)?;
    let at = text.find("\nextra ").context("the proof carries no record")? + "\nextra ".len() + 40;
    let letter = text.get(at..=at).context("the record in the proof is too short")?;
    let other = if letter == "A" { "B" } else { "A" };
    let mut changed = text.clone();
    changed.replace_range(at..=at, other);
    fs::write(file, changed)?;
    Ok(())
}

/// Runs `sekisho audit verify` on a copy, with the pins of the data folder.
async fn verify_copy(
    layout: &Layout,
    copy: &Path,
    more: &[&str],
) -> anyhow::Result<(bool, String)> {
    let folder = copy.display().to_string();
    let mut arguments = vec!["audit", "verify", "--part", "gateway", "--folder", &folder];
    arguments.extend(more);
    sekisho(layout, &arguments).await
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Copies a log that may be written at this moment: its newest checkpoint first, so that the
/// copied records are never behind it.
fn copy_log(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    for name in ["checkpoint", "tombstone"] {
        let file = from.join(name);
        if file.is_file() {
            fs::copy(&file, to.join(name))?;
        }
    }
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
        let name = file_name(&path);
        if name.ends_with(".jsonl") || name.ends_with(".jsonl.zst") {
            segments.push(path);
        }
    }
    segments.sort();
    Ok(segments)
}

/// Changes a digit in the middle record of the newest segment, which is not compressed; returns
/// the file and line.
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

/// A head reaches the file drop within this; in idle hours it takes a second or two.
const HEAD_MAX: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(100);

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
