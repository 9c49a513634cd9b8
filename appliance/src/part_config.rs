//! The configuration files of the four programs, written into a data folder.
//!
//! The shipped examples in `appliance/config/` are the templates: `up` puts the folder's own paths
//! and keys in place of the example's, so the two can never differ in their keys. A file that
//! exists is the operator's and is left alone, but for listen addresses given on the command line.

use std::path::Path;

use anyhow::Context as _;

use crate::exit::usage;
use crate::files;
use crate::layout::{Layout, Part};
use crate::secrets::FeedKeys;
use crate::settings::Settings;

/// What stands in the parts' files beside paths.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// O= of every certificate's subject.
    pub(crate) operator_name: String,
    /// Identities are SAN URIs below this domain.
    pub(crate) id_domain: String,
}

/// Writes the files that are missing.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write_missing(
    layout: &Layout,
    settings: &Settings,
    names: &Names,
    keys: &FeedKeys,
) -> anyhow::Result<()> {
    for part in Part::ALL {
        let path = layout.config(part);
        if !path.exists() {
            let text = render(layout, part, settings, names, keys)?;
            files::write_private(&path, text.as_bytes())?;
        }
    }
    Ok(())
}

/// The file of one part.
///
/// # Errors
/// When a key is missing in the template.
pub(crate) fn render(
    layout: &Layout,
    part: Part,
    settings: &Settings,
    names: &Names,
    keys: &FeedKeys,
) -> anyhow::Result<String> {
    let values = match part {
        Part::Signer => signer_values(layout, settings, names),
        Part::Ra => ra_values(layout, settings, names),
        Part::Hub => hub_values(layout, settings),
        Part::Gateway => gateway_values(layout, settings, names, keys),
    };
    values.iter().try_fold(template(part).to_owned(), |text, (table, key, value)| {
        set_key(&text, table, key, value)
            .with_context(|| format!("template of {}.toml has no key `{key}`", part.as_str()))
    })
}

/// Changes one value in the file of a part; every other line stays as it is.
///
/// # Errors
/// When the file has no such key.
pub(crate) fn change(layout: &Layout, part: Part, key: &str, value: &str) -> anyhow::Result<()> {
    let path = layout.config(part);
    let text = files::read_config(&path)?;
    let changed = set_key(&text, "", key, &quoted(value)).ok_or_else(|| {
        usage(format!("config file `{}` has no key `{key}`: add it", path.display()))
    })?;
    if changed != text {
        files::write_private(&path, changed.as_bytes())?;
    }
    Ok(())
}

/// One string value of a part's file, by its dotted key.
///
/// # Errors
/// When the file cannot be read or has no such key.
pub(crate) fn value(layout: &Layout, part: Part, key: &str) -> anyhow::Result<String> {
    let path = layout.config(part);
    let text = files::read_config(&path)?;
    let named = || format!("config file `{}`", path.display());
    let table: toml::Table = toml::from_str(&text)
        .map_err(|error| usage(error.message().to_owned()))
        .with_context(named)?;
    let mut found = Some(&toml::Value::Table(table)).cloned();
    for name in key.split('.') {
        found = found.and_then(|value| value.get(name).cloned());
    }
    found
        .and_then(|value| value.as_str().map(str::to_owned))
        .ok_or_else(|| usage(format!("key `{key}` is missing: add it")))
        .with_context(named)
}

type Values = Vec<(&'static str, &'static str, String)>;

fn signer_values(layout: &Layout, settings: &Settings, names: &Names) -> Values {
    vec![
        ("", "socket", path(&layout.run("signer.sock"))),
        ("", "ca_dir", path(&layout.root().join("ca"))),
        ("", "audit_dir", path(&layout.audit(Part::Signer))),
        ("", "ready_file", path(&layout.ready_file(Part::Signer))),
        ("", "operator_name", quoted(&names.operator_name)),
        ("", "id_domain", quoted(&names.id_domain)),
        ("", "demo", settings.demo.to_string()),
    ]
}

fn ra_values(layout: &Layout, settings: &Settings, names: &Names) -> Values {
    vec![
        ("", "listen", quoted(&settings.enrol_listen.to_string())),
        ("", "server_certificate", path(&layout.ca("servers/ra.pem"))),
        ("", "server_key", path(&layout.ca("servers/ra.key"))),
        ("", "trust_anchors", path(&layout.ca("issuing.pem"))),
        ("", "ca_chain", path(&layout.ca("chain.pem"))),
        ("", "signer_socket", path(&layout.run("signer.sock"))),
        ("", "admin_socket", path(&layout.run("ra-admin.sock"))),
        ("", "feed_socket", path(&layout.run("ca-feed.sock"))),
        ("", "feed_key", path(&layout.secret("feed-ca.pkcs8"))),
        ("", "database", path(&layout.store("ra.sqlite"))),
        ("", "audit_dir", path(&layout.audit(Part::Ra))),
        ("", "ready_file", path(&layout.ready_file(Part::Ra))),
        ("", "id_domain", quoted(&names.id_domain)),
        ("", "demo", settings.demo.to_string()),
    ]
}

fn hub_values(layout: &Layout, settings: &Settings) -> Values {
    vec![
        ("", "socket", path(&layout.run("hub.sock"))),
        ("", "admin_socket", path(&layout.run("hub-admin.sock"))),
        ("", "feed_socket", path(&layout.run("hub-feed.sock"))),
        ("", "feed_key", path(&layout.secret("feed-hub.pkcs8"))),
        ("", "permit_key", path(&layout.secret("permit.key"))),
        ("", "staff_token_key", path(&layout.secret("staff-token.pkcs8"))),
        ("", "database", path(&layout.store("hub.sqlite"))),
        ("", "audit_dir", path(&layout.audit(Part::Hub))),
        ("", "pseudonym_key", path(&layout.secret("pseudonym.key"))),
        ("", "ready_file", path(&layout.ready_file(Part::Hub))),
        ("", "demo", settings.demo.to_string()),
    ]
}

fn gateway_values(layout: &Layout, settings: &Settings, names: &Names, keys: &FeedKeys) -> Values {
    vec![
        ("", "id_domain", quoted(&names.id_domain)),
        ("", "listen", quoted(&settings.gateway_listen.to_string())),
        ("", "admin_listen", quoted(&settings.admin_listen.to_string())),
        ("", "server_certificate", path(&layout.ca("servers/gateway.pem"))),
        ("", "server_key", path(&layout.ca("servers/gateway.key"))),
        ("", "trust_anchors", path(&layout.ca("issuing.pem"))),
        ("", "hub_socket", path(&layout.run("hub.sock"))),
        ("", "permit_key", path(&layout.secret("permit.key"))),
        ("", "ready_file", path(&layout.ready_file(Part::Gateway))),
        ("", "demo", settings.demo.to_string()),
        ("audit", "dir", path(&layout.audit(Part::Gateway))),
        ("audit", "pseudonym_key", path(&layout.secret("pseudonym.key"))),
        ("feeds.ca", "socket", path(&layout.run("ca-feed.sock"))),
        ("feeds.ca", "public_key", quoted(&keys.ca_public)),
        ("feeds.hub", "socket", path(&layout.run("hub-feed.sock"))),
        ("feeds.hub", "public_key", quoted(&keys.hub_public)),
    ]
}

fn template(part: Part) -> &'static str {
    match part {
        Part::Signer => include_str!("../config/signer.toml"),
        Part::Ra => include_str!("../config/ra.toml"),
        Part::Hub => include_str!("../config/hub.toml"),
        Part::Gateway => include_str!("../config/gateway.toml"),
    }
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// `text` as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// `text` with the one-line value of `key` in `table` (empty: before the first table) replaced;
/// `None` when there is no such key.
fn set_key(text: &str, table: &str, key: &str, value: &str) -> Option<String> {
    let mut within = String::new();
    let mut found = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.trim().clone_into(&mut within);
        }
        let is_key = trimmed.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        if is_key && within == table && !found {
            found = true;
            lines.push(format!("{key} = {value}"));
        } else {
            lines.push(line.to_owned());
        }
    }
    found.then(|| lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(part: Part) -> toml::Table {
        let layout = Layout::new(Path::new("/srv/a \"b\"")).unwrap();
        let names =
            Names { operator_name: "見本 \\ 運用".into(), id_domain: "id.example".into() };
        let keys = FeedKeys { ca_public: "CA=".into(), hub_public: "HUB=".into() };
        let text = render(&layout, part, &Settings::new(true), &names, &keys).unwrap();
        assert!(text.contains('#'), "comments stay");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn every_path_of_the_examples_is_replaced_by_one_in_the_folder() {
        for part in Part::ALL {
            let text = toml::to_string(&rendered(part)).unwrap();
            for example in ["/etc/", "/var/lib/", "/run/sekisho", "AAAA", "0.0.0.0"] {
                assert!(!text.contains(example), "{part:?}: {example} in {text}");
            }
        }
    }

    #[test]
    fn values_land_in_their_tables() {
        let gateway = rendered(Part::Gateway);
        assert_eq!(gateway["feeds"]["ca"]["public_key"].as_str(), Some("CA="));
        assert_eq!(gateway["feeds"]["hub"]["public_key"].as_str(), Some("HUB="));
        assert_eq!(gateway["audit"]["dir"].as_str(), Some("/srv/a \"b\"/audit/gateway"));
        assert_eq!(gateway["demo"].as_bool(), Some(true));
        assert_eq!(rendered(Part::Signer)["operator_name"].as_str(), Some("見本 \\ 運用"));
    }

    #[test]
    fn changing_a_key_leaves_every_other_line_alone() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        files::private_folder(&layout.root().join("config")).unwrap();
        let before = "# mine\nlisten = \"a\" # note\nx = 1\n[t]\nlisten = \"b\"\n";
        std::fs::write(layout.config(Part::Ra), before).unwrap();
        change(&layout, Part::Ra, "listen", "127.0.0.1:9").unwrap();
        let after = files::read_text(&layout.config(Part::Ra)).unwrap();
        assert_eq!(after, "# mine\nlisten = \"127.0.0.1:9\"\nx = 1\n[t]\nlisten = \"b\"\n");
        assert_eq!(value(&layout, Part::Ra, "t.listen").unwrap(), "b");
        assert!(value(&layout, Part::Ra, "t.none").is_err());
        assert!(change(&layout, Part::Ra, "none", "1").is_err());
    }
}
