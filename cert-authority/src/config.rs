//! Configuration of both programs: a TOML file → `Raw…` (as typed) → checked values.
//!
//! Every problem of a file is reported in one go, each on one line that names the file, the key and
//! what to do. A checked configuration holds what it names (keys, certificates), so nothing can
//! fail later because of a file; there is no other validation afterwards.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_log::CheckpointKey;
use policies::feed::{self, Source};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::audit::Keeping;
use crate::issuer::Issuer;
use crate::key;
use crate::lint::{Authority, Read};
use crate::profile::{Oid, Rules, marker_oid};
use crate::serve::chain;

/// Why a configuration can not be used: one line per problem.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Error(Vec<String>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSigner {
    socket: PathBuf,
    ca_dir: PathBuf,
    audit_dir: PathBuf,
    audit_key: PathBuf,
    audit_retention_days: Option<u32>,
    ready_file: PathBuf,
    operator_name: String,
    id_domain: String,
    policy_arc: Option<String>,
    demo: bool,
    issue_rate_per_minute_max: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRa {
    listen: String,
    server_certificate: PathBuf,
    server_key: PathBuf,
    trust_anchors: PathBuf,
    ca_chain: PathBuf,
    signer_socket: PathBuf,
    admin_socket: PathBuf,
    feed_socket: PathBuf,
    feed_key: PathBuf,
    database: PathBuf,
    audit_dir: PathBuf,
    audit_key: PathBuf,
    audit_retention_days: Option<u32>,
    ready_file: PathBuf,
    id_domain: String,
    policy_arc: Option<String>,
    gateways: Vec<String>,
    demo: bool,
    lease_ms: Option<u64>,
    wait_ms: Option<u64>,
}

/// The signer's configuration.
pub struct SignerConfig {
    /// Where it listens.
    pub socket: PathBuf,
    /// The folder of the hierarchy.
    pub ca_dir: PathBuf,
    /// Its audit log.
    pub audit: Keeping,
    /// Written when it listens.
    pub ready_file: PathBuf,
    /// The CA's own words.
    pub rules: Rules,
    /// The issuing CA with its key.
    pub issuer: Issuer,
    /// Requests in a minute, refused ones included.
    pub issue_rate_per_minute_max: u32,
}

/// The RA's configuration.
pub struct RaConfig {
    /// Where offices enrol.
    pub listen: SocketAddr,
    /// The server certificate with its chain.
    pub server_certificate: Vec<CertificateDer<'static>>,
    /// Its key.
    pub server_key: PrivateKeyDer<'static>,
    /// The issuing CA and what stands above it, as handed to clients.
    pub ca_chain: Vec<CertificateDer<'static>>,
    /// The issuing CA, to check what comes back from the signer.
    pub authority: Authority,
    /// The CA's own words, as far as the issuing CA's certificate and this file say them.
    pub rules: Rules,
    /// Where the signer listens.
    pub signer_socket: PathBuf,
    /// Where the operator's commands arrive.
    pub admin_socket: PathBuf,
    /// Where gateways subscribe.
    pub feed_socket: PathBuf,
    /// Signs the feed.
    pub feed_signer: feed::Signer,
    /// The SQLite file.
    pub database: PathBuf,
    /// Its audit log.
    pub audit: Keeping,
    /// Written when it listens.
    pub ready_file: PathBuf,
    /// The ids of the gateways whose acknowledgement a waiting revocation needs.
    pub gateways: Vec<String>,
    /// After how long without a heartbeat a gateway denies everything by itself (T3).
    pub lease: Duration,
    /// How long a waiting revocation waits.
    pub wait: Duration,
}

impl SignerConfig {
    /// Reads and checks the signer's file.
    ///
    /// # Errors
    /// Every problem of the file together.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let raw: RawSigner = parse(file)?;
        let mut check = Check { file, problems: vec![] };
        let rules =
            check.rules(raw.operator_name, raw.id_domain, raw.policy_arc.as_deref(), raw.demo);
        let rate = raw.issue_rate_per_minute_max.unwrap_or(600);
        if !(1..=100_000).contains(&rate) {
            check.problem("issue_rate_per_minute_max", "use a number from 1 to 100000");
        }
        let issuer = check.issuer(&raw.ca_dir, &rules);
        let audit = check.audit(raw.audit_dir, &raw.audit_key, raw.audit_retention_days);
        match issuer.zip(audit) {
            Some((issuer, audit)) if check.problems.is_empty() => Ok(Self {
                socket: raw.socket,
                ca_dir: raw.ca_dir,
                audit,
                ready_file: raw.ready_file,
                rules,
                issuer,
                issue_rate_per_minute_max: rate,
            }),
            _ => Err(Error(check.problems)),
        }
    }
}

impl RaConfig {
    /// Reads and checks the RA's file.
    ///
    /// # Errors
    /// Every problem of the file together.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let raw: RawRa = parse(file)?;
        let mut check = Check { file, problems: vec![] };
        let listen = check.listen(&raw.listen, raw.demo);
        let server_certificate =
            check.read("server_certificate", key::read_certificates(&raw.server_certificate));
        let server_key = check.read("server_key", key::read_tls_key(&raw.server_key));
        let chain = check.ca_chain(&raw.ca_chain, &raw.trust_anchors);
        let feed_signer = check.feed_signer(&raw.feed_key);
        let audit = check.audit(raw.audit_dir, &raw.audit_key, raw.audit_retention_days);
        let lease = raw.lease_ms.unwrap_or(LEASE_MS);
        let wait = raw.wait_ms.unwrap_or_else(|| default_wait_ms(lease));
        for (key, value) in [("lease_ms", lease), ("wait_ms", wait)] {
            if !(1..=WAIT_MS_MAX).contains(&value) {
                check.problem(key, "use a number of milliseconds from 1 to 600000");
            }
        }
        let operator = chain.as_ref().map(|(_, authority)| authority.name.organization.clone());
        let rules = check.rules(
            operator.unwrap_or("-".into()),
            raw.id_domain,
            raw.policy_arc.as_deref(),
            raw.demo,
        );
        if let Some(issuing) = chain.as_ref().and_then(|(chain, _)| chain.first()) {
            check.marker("ca_chain", issuing, &rules);
        }
        let tls = server_certificate.zip(server_key);
        let (Some(listen), Some(tls), Some(chain), Some(feed), Some(audit)) =
            (listen, tls, chain, feed_signer, audit)
        else {
            return Err(Error(check.problems));
        };
        if !check.problems.is_empty() {
            return Err(Error(check.problems));
        }
        Ok(Self {
            listen,
            server_certificate: tls.0,
            server_key: tls.1,
            ca_chain: chain.0,
            authority: chain.1,
            rules,
            signer_socket: raw.signer_socket,
            admin_socket: raw.admin_socket,
            feed_socket: raw.feed_socket,
            feed_signer: feed,
            database: raw.database,
            audit,
            ready_file: raw.ready_file,
            gateways: raw.gateways,
            lease: Duration::from_millis(lease),
            wait: Duration::from_millis(wait),
        })
    }
}

/// Collects the problems of one file.
struct Check<'a> {
    file: &'a Path,
    problems: Vec<String>,
}

impl Check<'_> {
    fn problem(&mut self, key: &str, text: impl Display) {
        self.problems.push(format!("config file `{}`: `{key}`: {text}", self.file.display()));
    }

    fn read<T>(&mut self, key: &str, read: Result<T, key::Error>) -> Option<T> {
        read.map_err(|error| self.problem(key, chain(&error))).ok()
    }

    fn rules(
        &mut self,
        operator_name: String,
        id_domain: String,
        policy_arc: Option<&str>,
        demo: bool,
    ) -> Rules {
        // RFC 5280 appendix A.1, ub-organization-name.
        let length = operator_name.chars().count();
        if !(1..=64).contains(&length) || operator_name.chars().any(char::is_control) {
            self.problem("operator_name", "use 1 to 64 characters");
        }
        let host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        if !(1..=100).contains(&id_domain.len()) || !id_domain.chars().all(host) {
            self.problem("id_domain", "use a host name in lower case, such as id.example.jp");
        }
        let text = policy_arc.unwrap_or(POLICY_ARC);
        let policy_arc = text.parse().unwrap_or_else(|error: crate::profile::Error| {
            self.problem("policy_arc", error);
            Oid::fixed(&[2, 999, 1])
        });
        Rules { operator_name, id_domain, policy_arc, demo }
    }

    fn listen(&mut self, text: &str, demo: bool) -> Option<SocketAddr> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            self.problem("listen", format!("`{text}` is no address: use 127.0.0.1:8444"));
            return None;
        };
        if demo && !address.ip().is_loopback() {
            self.problem("listen", "a demo system listens on loopback only: use 127.0.0.1");
            return None;
        }
        Some(address)
    }

    fn issuer(&mut self, ca_dir: &Path, rules: &Rules) -> Option<Issuer> {
        let certificate = self.read("ca_dir", key::read_certificates(&ca_dir.join("issuing.pem")));
        let key = self.read("ca_dir", key::read_signing_key(&ca_dir.join("issuing.key")));
        let (certificate, key) = (certificate?.into_iter().next()?, key?);
        self.marker("demo", &certificate, rules);
        Issuer::new(&certificate, key).map_err(|error| self.problem("ca_dir", chain(&error))).ok()
    }

    /// The chain, and that its first certificate is one that the gateways trust.
    fn ca_chain(
        &mut self,
        chain_file: &Path,
        anchors: &Path,
    ) -> Option<(Vec<CertificateDer<'static>>, Authority)> {
        let anchors = self.read("trust_anchors", key::read_certificates(anchors));
        let chain = self.read("ca_chain", key::read_certificates(chain_file))?;
        let issuing = chain.first()?;
        if anchors.is_some_and(|anchors| !anchors.contains(issuing)) {
            self.problem("trust_anchors", "the first certificate of `ca_chain` must be among them");
        }
        match Authority::from_certificate(issuing) {
            Ok(authority) => Some((chain, authority)),
            Err(_) => {
                self.problem("ca_chain", "the first certificate must be the issuing CA's");
                None
            }
        }
    }

    fn audit(&mut self, dir: PathBuf, key: &Path, days: Option<u32>) -> Option<Keeping> {
        let days = days.unwrap_or(RETENTION_DAYS);
        if !(1..=RETENTION_DAYS_MAX).contains(&days) {
            let text = format!("use a number of days from 1 to {RETENTION_DAYS_MAX}");
            self.problem("audit_retention_days", text);
        }
        let key = CheckpointKey::load(key)
            .map_err(|error| self.problem("audit_key", chain(&error)))
            .ok()?;
        Some(Keeping { dir, key, retention: Duration::from_secs(u64::from(days) * 86_400) })
    }

    fn feed_signer(&mut self, file: &Path) -> Option<feed::Signer> {
        let der = self.read("feed_key", key::read_private(file))?;
        feed::Signer::from_pkcs8(Source::Ca, &der)
            .map_err(|error| self.problem("feed_key", chain(&error)))
            .ok()
    }

    /// Demo and production never mix: the CA's marker must say what this file says.
    fn marker(&mut self, key: &str, certificate: &[u8], rules: &Rules) {
        let marked = Read::from_der(certificate)
            .is_ok_and(|read| read.has_extension(&marker_oid(&rules.policy_arc)));
        match (marked, rules.demo) {
            (true, false) => self.problem(
                key,
                "the issuing CA is a demo CA: set demo = true, or make a production CA with \
                 sekisho-signer init",
            ),
            (false, true) => self.problem(
                key,
                "the issuing CA is not a demo CA: set demo = false, or make a demo CA with \
                 sekisho-signer init --demo",
            ),
            (true, true) | (false, false) => {}
        }
    }
}

fn parse<T: DeserializeOwned>(file: &Path) -> Result<T, Error> {
    let failed = |text: String| Error(vec![format!("config file `{}`{text}", file.display())]);
    let text = std::fs::read_to_string(file).map_err(|error| {
        failed(format!(" cannot be read: check the path given with --config: {error}"))
    })?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        failed(format!(": line {line}: {}", error.message().replace('\n', " ")))
    })
}

/// The arc under which policies and the demo marker stand (2.999 is for examples, X.660).
const POLICY_ARC: &str = "2.999.1";
/// T3 of the CA feed: after a minute without a heartbeat a gateway denies everything.
const LEASE_MS: u64 = 60_000;
/// What a waiting revocation waits longer than a lease, so that it can end by the lease.
const WAIT_MORE_MS: u64 = 10_000;
const WAIT_MS_MAX: u64 = 600_000;
/// Five years.
const RETENTION_DAYS: u32 = 1826;
/// A hundred years.
const RETENTION_DAYS_MAX: u32 = 36_525;

fn default_wait_ms(lease_ms: u64) -> u64 {
    lease_ms.saturating_add(WAIT_MORE_MS).min(WAIT_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems<T>(result: Result<T, Error>) -> Vec<String> {
        result.err().unwrap().to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_problem_is_reported_with_file_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ra.toml");
        let mut text = String::from("listen = \"0.0.0.0:8444\"\nid_domain = \"ID.example\"\n");
        for key in [
            "server_certificate",
            "server_key",
            "trust_anchors",
            "ca_chain",
            "signer_socket",
            "admin_socket",
            "feed_socket",
            "feed_key",
            "database",
            "audit_dir",
            "audit_key",
            "ready_file",
        ] {
            text.push_str(&format!("{key} = \"/nonexistent/{key}\"\n"));
        }
        text.push_str("gateways = [\"gw-1\"]\ndemo = true\nlease_ms = 0\n");
        text.push_str("audit_retention_days = 0\n");
        std::fs::write(&file, &text).unwrap();
        let found = problems(RaConfig::load(&file));
        for key in [
            "listen",
            "server_certificate",
            "server_key",
            "trust_anchors",
            "ca_chain",
            "feed_key",
            "audit_key",
            "audit_retention_days",
            "lease_ms",
            "id_domain",
        ] {
            let expected = format!("config file `{}`: `{key}`: ", file.display());
            assert!(found.iter().any(|line| line.starts_with(&expected)), "{key}: {found:?}");
        }
    }

    #[test]
    fn unknown_keys_and_missing_files_are_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("signer.toml");
        let start = format!("config file `{}`", file.display());
        let expected = format!("{start} cannot be read: check the path given with --config: ");
        assert!(problems(SignerConfig::load(&file))[0].starts_with(&expected));
        std::fs::write(&file, "socket = \"a\"\nsokcet = \"b\"\n").unwrap();
        let found = problems(SignerConfig::load(&file));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(&format!("{start}: line 2: ")), "{found:?}");
        assert!(found[0].contains("sokcet"), "{found:?}");
    }

    #[test]
    fn a_revocation_waits_longer_than_a_lease_and_shorter_than_the_command() {
        assert_eq!(default_wait_ms(LEASE_MS), 70_000);
        assert_eq!(default_wait_ms(5_000), 15_000);
        assert_eq!(default_wait_ms(WAIT_MS_MAX), WAIT_MS_MAX);
    }
}
