//! The audit keys: for each log one Ed25519 key in `DIR/secrets`, its public half pinned in
//! `<DIR>.audit-keys` beside the folder.
//!
//! ```text
//!  up ─► key file missing, no log yet ─► made, its public half added to the pins
//!     ─► key file there ─► its public half must be the pinned one
//!  audit verify ─► believes the pins alone, never the key files
//! ```
//!
//! Invariants: an existing key is never replaced; a pin is only ever added, and no pin is added
//! for a log that already has signed records unless the operator asks (`sekisho audit pin`).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use audit_log::{CheckpointKey, VerifyingKey};

use crate::exit::usage;
use crate::files;
use crate::layout::{Layout, Part};
use crate::output::progress;
use crate::part_config;
use crate::secrets;

/// The pinned public keys of a file, in its order.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    path: PathBuf,
    keys: Vec<VerifyingKey>,
}

impl Pins {
    /// Reads the file; one that does not exist holds no pins.
    ///
    /// # Errors
    /// A usage error when it cannot be read or a line is no key.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut pins = Self { path: path.to_owned(), keys: Vec::new() };
        if !path.exists() {
            return Ok(pins);
        }
        let text = files::read_text(path).map_err(|error| usage(format!("{error:#}")))?;
        let lines = text.lines().map(str::trim).enumerate();
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let key = VerifyingKey::parse(line).map_err(|error| {
                usage(format!("pins `{}`, line {}: {error}", path.display(), at + 1))
            })?;
            pins.keys.push(key);
        }
        Ok(pins)
    }

    /// The key of a part's log. Where a folder was made anew under the same name, the file holds
    /// more than one: the last counts.
    pub(crate) fn of(&self, part: Part) -> Option<&VerifyingKey> {
        self.keys.iter().rfind(|key| part_of(key.name()) == Some(part))
    }

    /// The key of that name; of several, the last.
    pub(crate) fn named(&self, name: &str) -> Option<&VerifyingKey> {
        self.keys.iter().rfind(|key| key.name() == name)
    }

    /// The key of a part's log.
    ///
    /// # Errors
    /// A usage error that names the file when there is none.
    pub(crate) fn require(&self, part: Part) -> anyhow::Result<&VerifyingKey> {
        self.of(part).ok_or_else(|| {
            usage(format!(
                "no public key of {} is pinned in `{}`: name the file with --pins, or start the \
                 box once with `sekisho up`",
                part.as_str(),
                self.path.display()
            ))
        })
    }

    /// The newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.keys.iter().rev()
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line. In place and not by a rename, so that the file may belong to this user in a
    /// folder that does not.
    fn add(&mut self, key: &VerifyingKey, layout: &Layout) -> anyhow::Result<()> {
        let unwritable = || {
            format!(
                "pins `{}` cannot be written: make the file writable to you, it holds public keys \
                 only",
                self.path.display()
            )
        };
        let mut text = String::new();
        if !self.path.exists() {
            text = head(layout);
        } else if !files::read_text(&self.path).with_context(unwritable)?.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(key.as_str());
        text.push('\n');
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .append(true)
            .mode(0o644)
            .open(&self.path)
            .with_context(unwritable)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(unwritable)?;
        self.keys.push(key.clone());
        Ok(())
    }
}

/// The part that a log's name ends in.
pub(crate) fn part_of(name: &str) -> Option<Part> {
    let word = name.rsplit('/').next()?;
    Part::ALL.into_iter().find(|part| part.as_str() == word)
}

/// The key file of a part: what its configuration names, or the usual one.
///
/// # Errors
/// When the configuration cannot be read.
pub(crate) fn key_file(layout: &Layout, part: Part) -> anyhow::Result<PathBuf> {
    let usual = layout.audit_key(part);
    if !layout.config(part).exists() {
        return Ok(usual);
    }
    Ok(part_config::find(layout, part, config_key(part))?.map_or(usual, PathBuf::from))
}

/// The folder of a part's log: what its configuration names, or the usual one.
///
/// # Errors
/// When the configuration cannot be read.
pub(crate) fn log_folder(layout: &Layout, part: Part) -> anyhow::Result<PathBuf> {
    let key = match part {
        Part::Gateway => "audit.dir",
        Part::Signer | Part::Ra | Part::Hub => "audit_dir",
    };
    if !layout.config(part).exists() {
        return Ok(layout.audit(part));
    }
    let configured = part_config::find(layout, part, key)?;
    Ok(configured.map_or_else(|| layout.audit(part), PathBuf::from))
}

/// The key in a part's configuration that names the key file.
pub(crate) const fn config_key(part: Part) -> &'static str {
    match part {
        Part::Gateway => "audit.key",
        Part::Signer | Part::Ra | Part::Hub => "audit_key",
    }
}

/// Makes the keys that are missing and pins them; refuses a key that is not the pinned one.
/// `lost::refuse` has already looked for keys that must not be made anew.
///
/// # Errors
/// When a file cannot be written; a usage error when key and pin differ, or a log has signed
/// records and no pin.
pub(crate) fn ensure(layout: &Layout, id_domain: &str) -> anyhow::Result<()> {
    let mut pins = Pins::read(&layout.pins())?;
    let prefix = log_prefix(layout, id_domain)?;
    let mut pinned = Vec::new();
    for part in Part::ALL {
        let path = key_file(layout, part)?;
        if !path.exists() {
            make(&path, &format!("{prefix}/{}", part.as_str()), &pins)?;
        }
        let key = load(&path)?;
        match check(&pins, &path, key.verifying_key())? {
            Pinned::Same => {}
            Pinned::Missing if has_signed_records(&log_folder(layout, part)?) => {
                return Err(missing_pin(layout, part, &pins));
            }
            Pinned::Missing => {
                pins.add(key.verifying_key(), layout)?;
                pinned.push(part.as_str());
            }
        }
    }
    if !pinned.is_empty() {
        progress(&format!(
            "audit keys of {} are pinned in `{}`: keep a copy of that file elsewhere",
            pinned.join(", "),
            pins.path.display()
        ));
    }
    Ok(())
}

fn make(path: &Path, name: &str, pins: &Pins) -> anyhow::Result<()> {
    if let Some(pinned) = pins.named(name) {
        return Err(usage(format!(
            "key file `{}` is missing, and `{}` pins `{}`: restore it from the backup, or, if this \
             is a new box, move that file away",
            path.display(),
            pins.path.display(),
            pinned.as_str()
        )));
    }
    let (_, text) = CheckpointKey::generate(name)?;
    files::write_private(path, format!("{text}\n").as_bytes())
}

/// Pins the present keys on the operator's word; returns the lines that were added.
///
/// # Errors
/// As [`ensure`], but for missing pins.
pub(crate) fn pin(layout: &Layout) -> anyhow::Result<Vec<String>> {
    let mut pins = Pins::read(&layout.pins())?;
    let mut added = Vec::new();
    for part in Part::ALL {
        let path = key_file(layout, part)?;
        let key = load(&path)?;
        match check(&pins, &path, key.verifying_key())? {
            Pinned::Same => {}
            Pinned::Missing => {
                pins.add(key.verifying_key(), layout)?;
                added.push(key.verifying_key().as_str().to_owned());
            }
        }
    }
    Ok(added)
}

/// How a key stands to the pins.
enum Pinned {
    Same,
    Missing,
}

/// # Errors
/// A usage error when a key of this name is pinned and is another one.
fn check(pins: &Pins, path: &Path, key: &VerifyingKey) -> anyhow::Result<Pinned> {
    match pins.named(key.name()) {
        Some(pinned) if pinned == key => Ok(Pinned::Same),
        None => Ok(Pinned::Missing),
        Some(pinned) => Err(usage(format!(
            "key file `{}` has the public half `{}`, and `{}` pins `{}`: restore the key file from \
             the backup, or, if the key was replaced on purpose, move the log away and write the \
             new public half there",
            path.display(),
            key.as_str(),
            pins.path.display(),
            pinned.as_str()
        ))),
    }
}

/// Whether the key of a part is there and the pinned one; in words for `doctor`.
///
/// # Errors
/// With what is wrong.
pub(crate) fn state(layout: &Layout, part: Part) -> anyhow::Result<()> {
    let pins = Pins::read(&layout.pins())?;
    let path = key_file(layout, part)?;
    match check(&pins, &path, load(&path)?.verifying_key())? {
        Pinned::Same => Ok(()),
        Pinned::Missing => Err(missing_pin(layout, part, &pins)),
    }
}

fn load(path: &Path) -> anyhow::Result<CheckpointKey> {
    CheckpointKey::load(path).map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        usage(format!("key file `{}`: {error}{}", path.display(), source.unwrap_or_default()))
    })
}

fn missing_pin(layout: &Layout, part: Part, pins: &Pins) -> anyhow::Error {
    usage(format!(
        "`{}` does not pin the public key of {}, whose log has signed records: put the file of \
         pins there again (a moved folder has it under its old name), or pin the present keys with \
         `sekisho audit pin --data {}`",
        pins.path.display(),
        part.as_str(),
        layout.quoted()
    ))
}

/// Whether a log's folder holds records under a key. The format before had none.
pub(crate) fn has_signed_records(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.into_iter().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name == "checkpoint"
            || name == "tombstone"
            || name.ends_with(".jsonl.zst")
            || (name.ends_with(".jsonl") && !is_format_1(&entry.path()))
    })
}

/// Whether a segment begins as those of format 1 do.
fn is_format_1(segment: &Path) -> bool {
    use std::io::Read as _;
    let mut start = Vec::new();
    let read =
        std::fs::File::open(segment).and_then(|file| file.take(64).read_to_end(&mut start)).is_ok();
    read && String::from_utf8_lossy(&start).contains("sekisho-audit/1\"")
}

/// `<id_domain>/audit/<random word>`, so that no two boxes share a name; what the keys that are
/// there have, where there are some.
fn log_prefix(layout: &Layout, id_domain: &str) -> anyhow::Result<String> {
    for part in Part::ALL {
        if let Ok(key) = CheckpointKey::load(&key_file(layout, part)?)
            && let Some((prefix, _)) = key.verifying_key().name().rsplit_once('/')
        {
            return Ok(prefix.to_owned());
        }
    }
    let word = secrets::random::<4>()?.map(|byte| format!("{byte:02x}")).concat();
    Ok(format!("{id_domain}/audit/{word}"))
}

fn head(layout: &Layout) -> String {
    format!(
        "# Public halves of the keys that sign the heads of the audit logs in `{}`.\n\
         # `sekisho audit verify` believes these alone. Keep a copy where the box cannot write.\n",
        layout.root().display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{error_line, exit_code};
    use std::os::unix::fs::PermissionsExt as _;

    fn folder() -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(&folder.path().join("data")).unwrap();
        for folder in layout.folders() {
            files::private_folder(&folder).unwrap();
        }
        (folder, layout)
    }

    fn signed_log(layout: &Layout, part: Part) {
        let header = "{\"format\":\"sekisho-audit/2\",\"source\":\"hub\"}\n";
        std::fs::write(layout.audit(part).join("00000001.jsonl"), header).unwrap();
    }

    #[test]
    fn keys_are_made_once_private_and_pinned_beside_the_folder() {
        let (_folder, layout) = folder();
        ensure(&layout, "id.example").unwrap();
        let pins = std::fs::read_to_string(layout.pins()).unwrap();
        assert_eq!(pins.lines().filter(|line| !line.starts_with('#')).count(), 4, "{pins}");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for part in Part::ALL {
            assert_eq!(mode(&layout.audit_key(part)), 0o600);
            signed_log(&layout, part);
            state(&layout, part).unwrap();
        }
        let hub = Pins::read(&layout.pins()).unwrap().of(Part::Hub).unwrap().clone();
        let words: Vec<&str> = hub.name().split('/').collect();
        assert_eq!(
            (words[0], words[1], words[2].len(), words[3]),
            ("id.example", "audit", 8, "hub")
        );
        ensure(&layout, "id.example").unwrap();
        assert_eq!(std::fs::read_to_string(layout.pins()).unwrap(), pins);
    }

    #[test]
    fn another_key_than_the_pinned_one_is_refused_with_both() {
        let (_folder, layout) = folder();
        ensure(&layout, "id.example").unwrap();
        let before = std::fs::read_to_string(layout.pins()).unwrap();
        let name = load(&layout.audit_key(Part::Ra)).unwrap().verifying_key().name().to_owned();
        let (other, text) = CheckpointKey::generate(&name).unwrap();
        files::write_private(&layout.audit_key(Part::Ra), text.as_bytes()).unwrap();
        for error in [ensure(&layout, "id.example").unwrap_err(), pin(&layout).unwrap_err()] {
            let line = error_line(&error);
            assert!(line.contains(other.verifying_key().as_str()), "{line}");
            assert!(line.contains("audit-ra.key") && line.contains(".audit-keys"), "{line}");
            assert_eq!(exit_code(&error), 64);
        }
        assert_eq!(std::fs::read_to_string(layout.pins()).unwrap(), before);
    }

    #[test]
    fn a_pinned_key_that_is_gone_is_not_made_anew() {
        let (_folder, layout) = folder();
        ensure(&layout, "id.example").unwrap();
        let key = layout.audit_key(Part::Signer);
        std::fs::remove_file(&key).unwrap();
        let line = error_line(&ensure(&layout, "id.example").unwrap_err());
        assert!(line.contains("audit-signer.key` is missing"), "{line}");
        assert!(!key.exists());
    }

    #[test]
    fn missing_pins_of_a_log_with_records_are_not_made_up() {
        let (_folder, layout) = folder();
        ensure(&layout, "id.example").unwrap();
        std::fs::remove_file(layout.pins()).unwrap();
        ensure(&layout, "id.example").unwrap();
        signed_log(&layout, Part::Gateway);
        std::fs::remove_file(layout.pins()).unwrap();
        let line = error_line(&ensure(&layout, "id.example").unwrap_err());
        assert!(line.contains("sekisho audit pin"), "{line}");
        assert_eq!(pin(&layout).unwrap().len(), 1, "the others were pinned already");
        ensure(&layout, "id.example").unwrap();
    }

    #[test]
    fn only_segments_under_a_key_count_as_signed() {
        let (_folder, layout) = folder();
        let folder = layout.audit(Part::Hub);
        assert!(!has_signed_records(&folder));
        let old = "{\"format\":\"sekisho-audit/1\",\"source\":\"hub\"}\n";
        std::fs::write(folder.join("00000001.jsonl"), old).unwrap();
        assert!(!has_signed_records(&folder));
        signed_log(&layout, Part::Hub);
        assert!(has_signed_records(&folder));
    }

    #[test]
    fn a_file_without_a_last_newline_is_added_to_and_the_last_line_of_a_name_counts() {
        let (_folder, layout) = folder();
        let name = "id.example/audit/0a0b0c0d/hub";
        let key = || CheckpointKey::generate(name).unwrap().0.verifying_key().clone();
        let (first, second) = (key(), key());
        std::fs::write(layout.pins(), first.as_str()).unwrap();
        Pins::read(&layout.pins()).unwrap().add(&second, &layout).unwrap();
        let pins = Pins::read(&layout.pins()).unwrap();
        assert_eq!(pins.keys, [first, second.clone()]);
        assert_eq!((pins.named(name), pins.of(Part::Hub)), (Some(&second), Some(&second)));
    }

    #[test]
    fn a_configuration_that_cannot_be_read_is_told() {
        let (_folder, layout) = folder();
        assert_eq!(log_folder(&layout, Part::Hub).unwrap(), layout.audit(Part::Hub));
        std::fs::write(layout.config(Part::Hub), "audit_dir = \"/elsewhere\"\n").unwrap();
        assert_eq!(log_folder(&layout, Part::Hub).unwrap(), Path::new("/elsewhere"));
        std::fs::write(layout.config(Part::Hub), "audit_dir = \n").unwrap();
        log_folder(&layout, Part::Hub).unwrap_err();
    }

    #[test]
    fn a_line_that_is_no_key_is_named() {
        let (_folder, layout) = folder();
        std::fs::write(layout.pins(), "# mine\n\nno key\n").unwrap();
        let error = Pins::read(&layout.pins()).unwrap_err();
        assert!(error_line(&error).contains("line 3"), "{error}");
        assert_eq!(exit_code(&error), 64);
    }
}
