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
use crate::output::progress;
use crate::secrets::FeedKeys;
use crate::settings::Settings;
use crate::toml_text::{self, Added, quoted};

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
pub(crate) fn write_missing(layout: &Layout, values: &FileValues<'_>) -> anyhow::Result<()> {
    for part in Part::ALL {
        let path = layout.config(part);
        if !path.exists() {
            let text = render(layout, part, values)?;
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
    values: &FileValues<'_>,
) -> anyhow::Result<String> {
    let own = values.of(layout, part);
    own.iter().try_fold(template(part).to_owned(), |text, (table, key, value)| {
        toml_text::set(&text, table, key, value)
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
    let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
    let changed = toml_text::set(&text, table, name, &quoted(value)).ok_or_else(|| {
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
    find(layout, part, key)?
        .ok_or_else(|| usage(format!("key `{key}` is missing: add it")))
        .with_context(|| format!("config file `{}`", layout.config(part).display()))
}

/// The same; `None` when the file has no such key.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn find(layout: &Layout, part: Part, key: &str) -> anyhow::Result<Option<String>> {
    let table = table(layout, part)?;
    Ok(toml_text::find(&table, key).and_then(|value| value.as_str().map(str::to_owned)))
}

fn table(layout: &Layout, part: Part) -> anyhow::Result<toml::Table> {
    let path = layout.config(part);
    toml::from_str(&files::read_config(&path)?)
        .map_err(|error| usage(error.message().to_owned()))
        .with_context(|| format!("config file `{}`", path.display()))
}

/// Adds the keys that an earlier version did not have to the files that it wrote; every other line
/// stays as it is. Says what it added.
///
/// # Errors
/// When a file cannot be read or written, or takes no further key.
pub(crate) fn bring_forward(layout: &Layout, values: &FileValues<'_>) -> anyhow::Result<()> {
    for part in Part::ALL {
        let path = layout.config(part);
        let before = files::read_config(&path)?;
        let own = values.of(layout, part);
        let text = KEYS_SINCE
            .iter()
            .filter(|(owner, ..)| *owner == part)
            .try_fold(before.clone(), |text, (_, in_table, key, after)| {
                with_key(text, &own, part, (in_table, key, after))
            })
            .and_then(|text| with_tables(text, &own, part))
            .with_context(|| format!("config file `{}`", path.display()))?;
        if text != before {
            files::write_private(&path, text.as_bytes())?;
            progress(&format!("config file `{}` has the keys of this version", path.display()));
        }
    }
    Ok(())
}

fn with_key(
    text: String,
    own: &Values,
    part: Part,
    (in_table, key, after): (&str, &str, &str),
) -> anyhow::Result<String> {
    let dot = if in_table.is_empty() { "" } else { "." };
    let dotted = format!("{in_table}{dot}{key}");
    let table: toml::Table =
        toml::from_str(&text).map_err(|error| usage(error.message().to_owned()))?;
    if toml_text::find(&table, &dotted).is_some() {
        return Ok(text);
    }
    let value = own.iter().find(|(table, name, _)| (*table, *name) == (in_table, key));
    let value = value.map(|(.., value)| value.as_str()).unwrap_or_default();
    let comment = toml_text::comment_above(template(part), in_table, key);
    toml_text::add(&text, in_table, after, &Added { comment: &comment, key, value })
        .ok_or_else(|| usage(format!("key `{dotted}` is missing: add `{dotted} = {value}`")))
}

/// Adds the tables that are missing whole at the end.
fn with_tables(mut text: String, own: &Values, part: Part) -> anyhow::Result<String> {
    let file: toml::Table =
        toml::from_str(&text).map_err(|error| usage(error.message().to_owned()))?;
    for (_, table) in TABLES_SINCE.iter().filter(|(owner, _)| *owner == part) {
        if file.contains_key(*table) {
            continue;
        }
        text.push_str(&format!("\n[{table}]\n"));
        for (_, key, value) in own.iter().filter(|(of, ..)| of == table) {
            let comment = toml_text::comment_above(template(part), table, key);
            text.push_str(&format!("{comment}\n{key} = {value}\n"));
        }
    }
    Ok(text)
}

/// Tables that files of earlier versions lack.
const TABLES_SINCE: [(Part, &str); 1] = [(Part::Gateway, "facts_copy")];

/// Keys that files of earlier versions lack: part, table, key, and the key behind which it comes.
const KEYS_SINCE: [(Part, &str, &str, &str); 8] = [
    (Part::Signer, "", "audit_key", "audit_dir"),
    (Part::Ra, "", "audit_key", "audit_dir"),
    (Part::Hub, "", "audit_stream_socket", "audit_dir"),
    (Part::Hub, "", "audit_key", "audit_dir"),
    (Part::Gateway, "audit", "stream_socket", "dir"),
    (Part::Gateway, "audit", "key", "dir"),
    (Part::Gateway, "", "takeover_socket", "ready_file"),
    (Part::Gateway, "", "control_socket", "ready_file"),
];

/// Where the values of the files come from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileValues<'a> {
    /// What the operator chose.
    pub(crate) settings: &'a Settings,
    /// Names in certificates.
    pub(crate) names: &'a Names,
    /// Public halves of the feed keys.
    pub(crate) keys: &'a FeedKeys,
}

impl FileValues<'_> {
    fn of(&self, layout: &Layout, part: Part) -> Values {
        let Self { settings, names, keys } = self;
        match part {
            Part::Signer => signer_values(layout, settings, names),
            Part::Ra => ra_values(layout, settings, names),
            Part::Hub => hub_values(layout, settings),
            Part::Gateway => gateway_values(layout, settings, names, keys),
        }
    }
}

type Values = Vec<(&'static str, &'static str, String)>;

fn signer_values(layout: &Layout, settings: &Settings, names: &Names) -> Values {
    vec![
        ("", "socket", path(&layout.run("signer.sock"))),
        ("", "ca_dir", path(&layout.root().join("ca"))),
        ("", "audit_dir", path(&layout.audit(Part::Signer))),
        ("", "audit_key", path(&layout.audit_key(Part::Signer))),
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
        ("", "audit_key", path(&layout.audit_key(Part::Ra))),
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
        ("", "audit_key", path(&layout.audit_key(Part::Hub))),
        ("", "audit_stream_socket", path(&layout.run(AUDIT_STREAM))),
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
        ("", "takeover_socket", path(&layout.run("gateway-takeover.sock"))),
        ("", "control_socket", path(&layout.run("gateway-admin.sock"))),
        ("", "demo", settings.demo.to_string()),
        ("policy", "dir", path(&layout.policy("active"))),
        ("policy", "shadow_dir", path(&layout.policy("shadow"))),
        ("audit", "dir", path(&layout.audit(Part::Gateway))),
        ("audit", "key", path(&layout.audit_key(Part::Gateway))),
        ("audit", "stream_socket", path(&layout.run(AUDIT_STREAM))),
        ("audit", "pseudonym_key", path(&layout.secret("pseudonym.key"))),
        ("feeds.ca", "socket", path(&layout.run("ca-feed.sock"))),
        ("feeds.ca", "public_key", quoted(&keys.ca_public)),
        ("feeds.hub", "socket", path(&layout.run("hub-feed.sock"))),
        ("feeds.hub", "public_key", quoted(&keys.hub_public)),
        ("facts_copy", "dir", path(&layout.store("facts"))),
        ("facts_copy", "key", path(&layout.secret("facts-copy.key"))),
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

/// The socket on which the gateway offers its records to the hub.
const AUDIT_STREAM: &str = "audit.sock";

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(part: Part) -> toml::Table {
        let layout = Layout::new(Path::new("/srv/a \"b\"")).unwrap();
        let names =
            Names { operator_name: "見本 \\ 運用".into(), id_domain: "id.example".into() };
        let keys = FeedKeys { ca_public: "CA=".into(), hub_public: "HUB=".into() };
        let settings = Settings::new(true);
        let values = FileValues { settings: &settings, names: &names, keys: &keys };
        let text = render(&layout, part, &values).unwrap();
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

    #[test]
    fn files_of_an_earlier_version_get_the_new_keys_and_keep_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        files::private_folder(&layout.root().join("config")).unwrap();
        let (settings, names) = (
            Settings::new(true),
            Names { operator_name: "x".into(), id_domain: "id.example".into() },
        );
        let keys = FeedKeys { ca_public: "CA=".into(), hub_public: "HUB=".into() };
        let values = FileValues { settings: &settings, names: &names, keys: &keys };
        write_missing(&layout, &values).unwrap();
        let read = |part| files::read_text(&layout.config(part)).unwrap();
        let current: Vec<String> = Part::ALL.into_iter().map(read).collect();
        for part in Part::ALL {
            let names = ["audit_key =", "key =", "audit_stream_socket =", "stream_socket ="];
            let mut text = read(part);
            text = text
                .lines()
                .filter(|line| !names.iter().any(|name| line.starts_with(name)))
                .map(|line| format!("{line}\n"))
                .collect();
            let table = text.find("\n[facts_copy]").unwrap_or(text.len());
            text.truncate(table);
            text.push_str("\n# the operator's own line\n");
            files::write_private(&layout.config(part), text.as_bytes()).unwrap();
        }
        assert!(find(&layout, Part::Hub, "audit_key").unwrap().is_none());
        bring_forward(&layout, &values).unwrap();
        for (part, current) in Part::ALL.into_iter().zip(current) {
            let text = read(part);
            assert!(text.contains("# the operator's own line"), "{text}");
            let table = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
            assert_eq!(table(&text), table(&current), "{text}");
            bring_forward(&layout, &values).unwrap();
            assert_eq!(read(part), text);
        }
    }
}
