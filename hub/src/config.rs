//! The configuration: `RawConfig` (what the file says) → [`Config`] (checked, keys loaded).
//!
//! Every problem of the file is reported at once, one line each, naming file, key and what to do.
//! INVARIANT: a [`Config`] can be run as it is; nothing is validated later.

use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_log::CheckpointKey;
use policies::feed::{Signer, Source};
use policies::identity::TerminalId;
use policies::permit::PermitKey;
use serde::Deserialize;

use crate::body::BODY_TIME;
use crate::key_file;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("config file `{}` cannot be read: check the path given with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is not the TOML that is expected; the message names key, line and column.
    #[error("config file `{}`: {message}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What the parser says, on one line.
        message: String,
    },
    /// Values that cannot be used, one line each.
    #[error("{}", .0.join("\n"))]
    Values(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    socket: PathBuf,
    admin_socket: PathBuf,
    feed_socket: PathBuf,
    feed_key: PathBuf,
    permit_key: PathBuf,
    staff_token_key: PathBuf,
    pseudonym_key: PathBuf,
    database: PathBuf,
    audit_dir: PathBuf,
    audit_key: PathBuf,
    #[serde(default = "default_audit_retention_days")]
    audit_retention_days: u64,
    #[serde(default)]
    audit_stream_socket: Option<PathBuf>,
    ready_file: PathBuf,
    #[serde(default)]
    gateways: Vec<String>,
    #[serde(default)]
    demo: bool,
    #[serde(default = "default_token_lifetime_s")]
    token_lifetime_s: u64,
    #[serde(default = "default_refresh_lifetime_s")]
    refresh_lifetime_s: u64,
    #[serde(default = "default_document_bytes_max")]
    document_bytes_max: usize,
}

/// The checked configuration.
pub struct Config {
    pub(crate) socket: PathBuf,
    pub(crate) admin_socket: PathBuf,
    pub(crate) feed_socket: PathBuf,
    pub(crate) feed_signer: Signer,
    pub(crate) permit_key: PermitKey,
    pub(crate) staff_token_key: PathBuf,
    pub(crate) pseudonym_key: [u8; 32],
    pub(crate) database: PathBuf,
    pub(crate) audit_dir: PathBuf,
    pub(crate) audit_key: CheckpointKey,
    pub(crate) audit_retention: Duration,
    pub(crate) audit_stream_socket: Option<PathBuf>,
    pub(crate) ready_file: PathBuf,
    pub(crate) gateways: Vec<String>,
    pub(crate) limits: Limits,
}

/// The values that handlers look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Whether the data folder is a demo's: registrations by the operator are possible.
    pub(crate) demo: bool,
    pub(crate) token_lifetime_s: u64,
    pub(crate) refresh_lifetime_s: u64,
    pub(crate) document_bytes_max: usize,
    /// How long after its head a body may take to be complete.
    pub(crate) body_time: Duration,
}

impl Config {
    /// Reads and checks `file`.
    ///
    /// # Errors
    /// [`Error`]; every wrong value is in one [`Error::Values`].
    pub fn load(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| Error::Read { path: file.to_owned(), source })?;
        let raw: RawConfig = toml::from_str(&text).map_err(|error| Error::Form {
            path: file.to_owned(),
            message: one_line(&error, &text),
        })?;
        Checker { file, problems: Vec::new() }.check(raw)
    }
}

/// The keys that the file names, loaded.
struct Keys {
    permit_key: PermitKey,
    pseudonym_key: [u8; 32],
    feed_signer: Signer,
    audit_key: CheckpointKey,
}

struct Checker<'a> {
    file: &'a Path,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn check(mut self, raw: RawConfig) -> Result<Config, Error> {
        let limits = self.limits(&raw);
        self.gateways(&raw.gateways);
        for (key, path) in raw.placed() {
            self.parent(key, path);
        }
        let permit_key = self.secret("permit_key", &raw.permit_key, |bytes| {
            PermitKey::new(bytes).map_err(|error| error.to_string())
        });
        let pseudonym_key = self.secret("pseudonym_key", &raw.pseudonym_key, |bytes| {
            <[u8; 32]>::try_from(bytes).map_err(|_| "pseudonym key must be 32 bytes".to_owned())
        });
        let feed_signer = self.secret("feed_key", &raw.feed_key, |bytes| {
            let der = key_file::pkcs8_der(bytes).map_err(|error| error.to_string())?;
            Signer::from_pkcs8(Source::Hub, &der).map_err(|error| error.to_string())
        });
        if raw.staff_token_key.exists() {
            let _ = self.secret("staff_token_key", &raw.staff_token_key, |_| Ok(()));
        }
        let audit_key = CheckpointKey::load(&raw.audit_key)
            .map_err(|error| self.problem("audit_key", crate::refusal::chain(&error)))
            .ok();
        match (permit_key, pseudonym_key, feed_signer, audit_key) {
            (Some(permit_key), Some(pseudonym_key), Some(feed_signer), Some(audit_key))
                if self.problems.is_empty() =>
            {
                let keys = Keys { permit_key, pseudonym_key, feed_signer, audit_key };
                Ok(raw.into_config(keys, limits))
            }
            _ => Err(Error::Values(self.problems)),
        }
    }

    fn problem(&mut self, key: &str, what: impl std::fmt::Display) {
        self.problems.push(format!("{}: key `{key}`: {what}", self.file.display()));
    }

    fn limits(&mut self, raw: &RawConfig) -> Limits {
        let ranges = [
            ("token_lifetime_s", raw.token_lifetime_s, 60, 86_400),
            ("refresh_lifetime_s", raw.refresh_lifetime_s, 60, 7 * 86_400),
            ("audit_retention_days", raw.audit_retention_days, 1, 36_525),
            ("document_bytes_max", raw.document_bytes_max as u64, 1_024, 64 * 1024 * 1024),
        ];
        for (key, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                self.problem(key, format!("`{value}` is out of range: set {low} to {high}"));
            }
        }
        Limits {
            demo: raw.demo,
            token_lifetime_s: raw.token_lifetime_s,
            refresh_lifetime_s: raw.refresh_lifetime_s,
            document_bytes_max: raw.document_bytes_max,
            body_time: BODY_TIME,
        }
    }

    fn gateways(&mut self, gateways: &[String]) {
        if gateways.len() > GATEWAYS_MAX {
            self.problem("gateways", format!("more than {GATEWAYS_MAX} gateways"));
        }
        for (at, gateway) in gateways.iter().enumerate() {
            if let Err(error) = gateway.parse::<TerminalId>() {
                self.problem("gateways", error);
            } else if gateways[..at].contains(gateway) {
                self.problem("gateways", format!("`{gateway}` is listed twice: remove one"));
            }
        }
    }

    fn parent(&mut self, key: &str, path: &Path) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if !parent.unwrap_or(Path::new(".")).is_dir() {
            let folder = parent.map(|parent| parent.display().to_string()).unwrap_or_default();
            self.problem(key, format!("folder `{folder}` does not exist: make it or set the key"));
        }
    }

    fn secret<T>(
        &mut self,
        key: &str,
        path: &Path,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Option<T> {
        let parsed =
            key_file::read(path).map_err(|error| crate::refusal::chain(&error)).and_then(|bytes| {
                parse(&bytes).map_err(|what| format!("key file `{}`: {what}", path.display()))
            });
        parsed.map_err(|what| self.problem(key, what)).ok()
    }
}

impl RawConfig {
    /// The files that the hub makes itself: their folders must be there.
    fn placed(&self) -> [(&'static str, &Path); 6] {
        [
            ("socket", &self.socket),
            ("admin_socket", &self.admin_socket),
            ("feed_socket", &self.feed_socket),
            ("staff_token_key", &self.staff_token_key),
            ("database", &self.database),
            ("ready_file", &self.ready_file),
        ]
    }

    fn into_config(self, keys: Keys, limits: Limits) -> Config {
        let Keys { permit_key, pseudonym_key, feed_signer, audit_key } = keys;
        Config {
            socket: self.socket,
            admin_socket: self.admin_socket,
            feed_socket: self.feed_socket,
            feed_signer,
            permit_key,
            staff_token_key: self.staff_token_key,
            pseudonym_key,
            database: self.database,
            audit_dir: self.audit_dir,
            audit_key,
            audit_retention: DAY * u32::try_from(self.audit_retention_days).unwrap_or(u32::MAX),
            audit_stream_socket: self.audit_stream_socket,
            ready_file: self.ready_file,
            gateways: self.gateways,
            limits,
        }
    }
}

fn one_line(error: &toml::de::Error, text: &str) -> String {
    let line =
        error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().replace('\n', " ");
    line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
}

const fn default_token_lifetime_s() -> u64 {
    3_600
}

const fn default_refresh_lifetime_s() -> u64 {
    8 * 3_600
}

const fn default_audit_retention_days() -> u64 {
    1_826
}

const fn default_document_bytes_max() -> usize {
    1024 * 1024
}

const GATEWAYS_MAX: usize = 64;
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::harness::write_config;

    #[test]
    fn a_complete_file_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let file = write_config(folder.path(), "");
        let config = Config::load(&file).map_err(|error| error.to_string()).ok().unwrap();
        assert_eq!(config.limits.token_lifetime_s, 3_600);
        assert_eq!(config.gateways, ["gw-1"]);
        assert_eq!(config.audit_retention, DAY * 1_826);
        assert_eq!(config.audit_stream_socket, None);
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str("audit_retention_days = 30\naudit_stream_socket = \"/run/x.sock\"\n");
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&file).map_err(|error| error.to_string()).ok().unwrap();
        assert_eq!(config.audit_retention, DAY * 30);
        assert_eq!(config.audit_stream_socket, Some("/run/x.sock".into()));
    }

    #[test]
    fn a_hub_without_its_audit_key_is_not_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = write_config(folder.path(), "");
        std::fs::remove_file(folder.path().join("audit.key")).unwrap();
        let Err(Error::Values(problems)) = Config::load(&file) else { panic!("accepted") };
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("key `audit_key`") && problems[0].contains("audit.key"));
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: String = text
            .lines()
            .filter(|line| !line.starts_with("audit_key"))
            .collect::<Vec<_>>()
            .join("\n");
        std::fs::write(&file, lines).unwrap();
        let Err(error) = Config::load(&file) else { panic!("accepted") };
        assert!(error.to_string().contains("missing field `audit_key`"), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }

    #[test]
    fn every_problem_is_reported_with_file_and_key() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = write_config(folder.path(), "token_lifetime_s = 1\n");
        std::fs::write(folder.path().join("pseudonym.key"), b"short").unwrap();
        let loose = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.path().join("permit.key"), loose).unwrap();
        let Err(Error::Values(problems)) = Config::load(&file) else { panic!("accepted") };
        let text = problems.join("\n");
        for expected in ["`token_lifetime_s`", "`pseudonym_key`", "chmod 600", "hub.toml"] {
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(problems.len(), 3, "{text}");
    }

    #[test]
    fn unknown_keys_and_missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = write_config(folder.path(), "colour = 1\n");
        let Err(error) = Config::load(&file) else { panic!("accepted") };
        assert!(error.to_string().contains("unknown field `colour`"), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        let Err(error) = Config::load(Path::new("/nowhere/hub.toml")) else { panic!("accepted") };
        assert!(matches!(error, Error::Read { .. }));
    }
}
