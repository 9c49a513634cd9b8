//! What a data folder has lost: files that `up` would make anew, though what it holds beside them
//! shows that they were there before.
//!
//! Invariant: nothing is made and nothing starts while something is missing that only a backup
//! brings back. An empty database would un-revoke certificates and forget consents; a new
//! pseudonym key would part each person's records in two; a new feed key would not be believed by
//! the gateway; a new audit key would let a log start over as if nothing had been.

use std::path::{Path, PathBuf};

use policies::feed::Source;

use crate::audit_keys::{self, Pins};
use crate::exit::usage;
use crate::layout::{Layout, Part};
use crate::part_config;
use crate::secrets;

/// Refuses a folder that has lost a database, the pseudonym key, a feed key or an audit key.
///
/// # Errors
/// When one is missing, with all that are; when a feed key is not the one that the gateway
/// believes.
pub(crate) fn refuse(layout: &Layout) -> anyhow::Result<()> {
    let mut problems: Vec<String> = lost_databases(layout)?;
    problems.extend(lost_pseudonyms(layout)?);
    problems.extend(lost_feed_keys(layout)?);
    problems.extend(lost_audit_keys(layout)?);
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
    refuse_other_feed_keys(layout)
}

fn lost_databases(layout: &Layout) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for (part, name) in [(Part::Ra, "ra.sqlite"), (Part::Hub, "hub.sqlite")] {
        let database = named(layout, part, "database", layout.store(name))?;
        let records = named(layout, part, "audit_dir", layout.audit(part))?;
        if !database.exists() && has_records(&records) {
            problems.push(format!(
                "database `{}` is missing, and there are audit records of what it held in `{}`: \
                 restore it from the backup",
                database.display(),
                records.display()
            ));
        }
    }
    Ok(problems)
}

fn lost_pseudonyms(layout: &Layout) -> anyhow::Result<Option<String>> {
    let key = named(layout, Part::Hub, "pseudonym_key", layout.secret("pseudonym.key"))?;
    let folders = [
        named(layout, Part::Gateway, "audit.dir", layout.audit(Part::Gateway))?,
        named(layout, Part::Hub, "audit_dir", layout.audit(Part::Hub))?,
    ];
    let lost = !key.exists() && folders.iter().any(|folder| has_records(folder));
    Ok(lost.then(|| {
        format!(
            "key file `{}` is missing, and there are audit records made with it: restore it from \
             the backup",
            key.display()
        )
    }))
}

fn lost_feed_keys(layout: &Layout) -> anyhow::Result<Vec<String>> {
    let gateway = layout.config(Part::Gateway);
    if !gateway.exists() {
        return Ok(Vec::new());
    }
    let mut problems = Vec::new();
    for feed in FEEDS {
        let key = feed.key_file(layout)?;
        if !key.exists() {
            problems.push(format!(
                "key file `{}` is missing, and `{}` of config file `{}` was made with it: restore \
                 it from the backup",
                key.display(),
                feed.public_key,
                gateway.display()
            ));
        }
    }
    Ok(problems)
}

/// A log whose key is gone can be read and verified, but not continued.
fn lost_audit_keys(layout: &Layout) -> anyhow::Result<Vec<String>> {
    let pins = Pins::read(&layout.pins())?;
    let mut problems = Vec::new();
    for part in Part::ALL {
        let key = audit_keys::key_file(layout, part)?;
        let records = audit_keys::log_folder(layout, part)?;
        if !key.exists() && audit_keys::has_signed_records(&records) {
            let pinned = pins.of(part).map(|pin| format!(" (`{}`)", pin.as_str()));
            problems.push(format!(
                "key file `{}` is missing, and the audit log in `{}` is signed with it{}: restore \
                 it from the backup; if it is lost for good, move the log away first",
                key.display(),
                records.display(),
                pinned.unwrap_or_default()
            ));
        }
    }
    Ok(problems)
}

/// A gateway believes only facts signed with the key that its configuration names.
fn refuse_other_feed_keys(layout: &Layout) -> anyhow::Result<()> {
    let gateway = layout.config(Part::Gateway);
    if !gateway.exists() {
        return Ok(());
    }
    let mut problems = Vec::new();
    for feed in FEEDS {
        let key = feed.key_file(layout)?;
        let public = secrets::public_half(&key, feed.source)?;
        let believed = part_config::value(layout, Part::Gateway, feed.public_key)?;
        if believed.trim() != public {
            problems.push(format!(
                "key file `{}` and `{}` of config file `{}` do not belong together: restore the \
                 key file from the backup, or, if the key was replaced on purpose, write \
                 `{public}` \
                 there",
                key.display(),
                feed.public_key,
                gateway.display()
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(usage(problems.join("; "))) }
}

/// One signed stream of facts to the gateway.
struct Feed {
    part: Part,
    source: Source,
    file: &'static str,
    public_key: &'static str,
}

const FEEDS: [Feed; 2] = [
    Feed {
        part: Part::Ra,
        source: Source::Ca,
        file: "feed-ca.pkcs8",
        public_key: "feeds.ca.public_key",
    },
    Feed {
        part: Part::Hub,
        source: Source::Hub,
        file: "feed-hub.pkcs8",
        public_key: "feeds.hub.public_key",
    },
];

impl Feed {
    fn key_file(&self, layout: &Layout) -> anyhow::Result<PathBuf> {
        named(layout, self.part, "feed_key", layout.secret(self.file))
    }
}

/// The path that a part's file names, or the usual one before there is such a file.
fn named(layout: &Layout, part: Part, key: &str, usual: PathBuf) -> anyhow::Result<PathBuf> {
    if !layout.config(part).exists() {
        return Ok(usual);
    }
    part_config::value(layout, part, key).map(PathBuf::from)
}

/// Whether an audit log's folder holds a segment.
fn has_records(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(Result::ok)
        .any(|entry| entry.path().extension().is_some_and(|kind| kind == "jsonl"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{error_line, exit_code};
    use crate::files;
    use crate::part_config::Names;
    use crate::settings::Settings;

    fn whole() -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(&folder.path().join("data")).unwrap();
        for folder in layout.folders() {
            files::private_folder(&folder).unwrap();
        }
        let keys = secrets::ensure(&layout).unwrap();
        let names = Names { operator_name: "x".into(), id_domain: "id.example".into() };
        audit_keys::ensure(&layout, "id.example").unwrap();
        let settings = Settings::new(true);
        let values = part_config::FileValues { settings: &settings, names: &names, keys: &keys };
        part_config::write_missing(&layout, &values).unwrap();
        for (part, database) in [(Part::Ra, "ra.sqlite"), (Part::Hub, "hub.sqlite")] {
            std::fs::write(layout.audit(part).join("00000001.jsonl"), b"").unwrap();
            std::fs::write(layout.store(database), b"").unwrap();
        }
        (folder, layout)
    }

    #[test]
    fn what_only_a_backup_brings_back_is_named() {
        let (_folder, layout) = whole();
        refuse(&layout).unwrap();
        for file in [
            layout.store("ra.sqlite"),
            layout.store("hub.sqlite"),
            layout.secret("pseudonym.key"),
            layout.secret("feed-ca.pkcs8"),
            layout.secret("feed-hub.pkcs8"),
            layout.audit_key(Part::Ra),
            layout.audit_key(Part::Hub),
        ] {
            let aside = layout.root().join("aside");
            std::fs::rename(&file, &aside).unwrap();
            let line = error_line(&refuse(&layout).unwrap_err());
            assert!(line.contains(&format!("`{}` is missing", file.display())), "{line}");
            assert!(line.contains("restore it from the backup"), "{line}");
            assert!(!file.exists());
            std::fs::rename(&aside, &file).unwrap();
        }
        // Nothing was signed with this one yet.
        std::fs::remove_file(layout.audit_key(Part::Signer)).unwrap();
        refuse(&layout).unwrap();
    }

    #[test]
    fn a_log_of_an_earlier_version_needs_no_key() {
        let (_folder, layout) = whole();
        for part in [Part::Ra, Part::Hub] {
            let old = "{\"format\":\"sekisho-audit/1\"}\n";
            std::fs::write(layout.audit(part).join("00000001.jsonl"), old).unwrap();
            std::fs::remove_file(layout.audit_key(part)).unwrap();
        }
        refuse(&layout).unwrap();
    }

    #[test]
    fn a_new_folder_and_a_moved_database_are_no_loss() {
        let folder = tempfile::tempdir().unwrap();
        refuse(&Layout::new(folder.path()).unwrap()).unwrap();
        let (_folder, layout) = whole();
        let moved = layout.root().join("moved.sqlite");
        std::fs::rename(layout.store("ra.sqlite"), &moved).unwrap();
        part_config::change(&layout, Part::Ra, "database", &moved.display().to_string()).unwrap();
        refuse(&layout).unwrap();
    }

    #[test]
    fn a_feed_key_that_the_gateway_does_not_believe_is_refused() {
        let (_folder, layout) = whole();
        let other = policies::feed::Signer::generate_pkcs8().unwrap();
        files::write_private(&layout.secret("feed-hub.pkcs8"), &other).unwrap();
        let error = refuse(&layout).unwrap_err();
        let line = error_line(&error);
        for words in ["feed-hub.pkcs8`", "gateway.toml`", "`feeds.hub.public_key`", "backup"] {
            assert!(line.contains(words), "{line}");
        }
        assert!(!line.contains("feed-ca"), "{line}");
        assert_eq!(exit_code(&error), 64);
    }
}
