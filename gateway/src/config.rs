//! The configuration file: [`RawConfig`] is what stands in it, [`Config`] is what it means.
//!
//! All problems are reported together, each naming the key and what to do. Secrets are read here
//! once; a key file that others can read is refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_log::{CheckpointKey, Durability};
use policies::bundle::signature::Signer;
use policies::matrix::Profile;
use policies::overlay::network::Network;
use policies::permit::PermitKey;
use serde::Deserialize;

mod closed_network;
mod hub;
mod limits;
mod outside_cas;
mod staleness;

pub use closed_network::ClosedNetwork;
use closed_network::RawClosedNetwork;
use hub::RawHub;
pub use hub::{HubNode, HubNodes, NodeTls};
pub use limits::Limits;
use limits::RawLimits;
use outside_cas::RawOutsideCa;
use staleness::RawStaleness;

use crate::credentials::{Credentials, Files, KeyFiles, read_private};
use crate::facts_copy::CopyPlace;
use crate::facts_feed::chain;
use crate::staleness::Stages;

/// Why a configuration is refused: one line for each problem.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Error(pub Vec<String>);

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    id: String,
    id_domain: String,
    #[serde(default = "default_policy_arc")]
    policy_arc: String,
    listen: String,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
    admin_listen: String,
    server_certificate: PathBuf,
    server_key: PathBuf,
    #[serde(default)]
    sni_certificates: Vec<RawKeyFiles>,
    trust_anchors: PathBuf,
    hub_socket: Option<PathBuf>,
    #[serde(default)]
    hub: RawHub,
    permit_key: PathBuf,
    #[serde(default = "default_profile")]
    policy_profile: String,
    #[serde(default)]
    policy: RawPolicy,
    ready_file: PathBuf,
    takeover_socket: Option<PathBuf>,
    control_socket: Option<PathBuf>,
    #[serde(default)]
    demo: bool,
    audit: RawAudit,
    feeds: RawFeeds,
    facts_copy: Option<RawFactsCopy>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default = "default_verified_chains_max")]
    verified_chains_max: usize,
    #[serde(default = "default_certificate_check_interval_ms")]
    certificate_check_interval_ms: u64,
    #[serde(default)]
    outside_cas: Vec<RawOutsideCa>,
    closed_network: Option<RawClosedNetwork>,
    #[serde(default)]
    staleness: RawStaleness,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPolicy {
    dir: Option<PathBuf>,
    shadow_dir: Option<PathBuf>,
    operators: Vec<RawOperator>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeyFiles {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOperator {
    name: String,
    public_key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAudit {
    dir: PathBuf,
    pseudonym_key: PathBuf,
    key: PathBuf,
    stream_socket: PathBuf,
    #[serde(default = "default_durability")]
    durability: String,
    #[serde(default = "default_retention_days")]
    retention_days: u32,
    #[serde(default = "default_refusals_per_minute_max")]
    refusals_per_minute_max: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFeeds {
    ca: RawFeed,
    hub: RawFeed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFactsCopy {
    dir: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFeed {
    socket: PathBuf,
    public_key: String,
}

fn default_policy_arc() -> String {
    "2.999.1".to_owned()
}

fn default_profile() -> String {
    "deck-2025".to_owned()
}

fn default_durability() -> String {
    "before-response".to_owned()
}

/// Five years.
const fn default_retention_days() -> u32 {
    1826
}

const fn default_refusals_per_minute_max() -> u32 {
    60
}

/// Some 20 MB: the terminals of one region.
const fn default_verified_chains_max() -> usize {
    50_000
}

const fn default_certificate_check_interval_ms() -> u64 {
    10_000
}

/// A hundred years.
const SNI_CERTIFICATES_MAX: usize = 100;
const RETENTION_DAYS_MAX: u32 = 36_525;

const REFUSALS_PER_MINUTE_MAX: u32 = 100_000;

/// Where one facts feed comes from.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The publisher's unix socket.
    pub socket: PathBuf,
    /// Its Ed25519 public key, base64.
    pub public_key: String,
}

/// How the audit log is kept, and where its records are offered.
pub struct Audit {
    /// The log's folder.
    pub dir: PathBuf,
    /// Signs the log's heads.
    pub key: CheckpointKey,
    /// The key of the pseudonyms in the records.
    pub pseudonym_key: [u8; 32],
    /// What "written" means.
    pub durability: Durability,
    /// The unix socket on which the records are offered.
    pub stream_socket: PathBuf,
    /// Whole segments that are older are deleted.
    pub retention: Duration,
    /// Refusals of one party in a minute that are written one by one; more are only counted.
    pub refusals_per_minute_max: u32,
}

/// The checked configuration.
pub struct Config {
    /// The file that it stands in.
    pub file: PathBuf,
    /// What is written there; secrets are in files of their own.
    pub written: toml::Table,
    /// This gateway's id in acknowledgements and records.
    pub id: String,
    /// The domain of the SAN URIs.
    pub id_domain: String,
    /// The OID arc of the operator's certificate policies.
    pub policy_arc: String,
    /// The public listener.
    pub listen: SocketAddr,
    /// Balancers in front of it, which say where a client is (PROXY protocol version 2).
    pub proxy_protocol_from: Vec<Network>,
    /// The loopback listener for metrics and readiness.
    pub admin_listen: SocketAddr,
    /// Where server certificate, key and trust anchors are.
    pub files: Files,
    /// What those files held when this was read.
    pub credentials: Credentials,
    /// The files are looked at again after each such time.
    pub certificate_check_interval: Duration,
    /// Where the hub is.
    pub hub: HubNodes,
    /// The key that permits are sealed with.
    pub permit_key: PermitKey,
    /// Where the policy comes from, and which reading of the sharing matrix is in force.
    pub policy: crate::policy::Source,
    /// Written when the gateway is ready.
    pub ready_file: PathBuf,
    /// Where a successor asks for this gateway's place; `None`: nowhere.
    pub takeover_socket: Option<PathBuf>,
    /// Where the operator looks and acts by name (mode 0600); `None`: nowhere.
    pub control_socket: Option<PathBuf>,
    /// Whether certificates of a demo CA are accepted.
    pub demo: bool,
    /// The audit log.
    pub audit: Audit,
    /// Offices and revocations.
    pub feed_ca: Feed,
    /// Registrations, consents and the rest.
    pub feed_hub: Feed,
    /// Where the facts are kept on disk, if anywhere.
    pub facts_copy: Option<CopyPlace>,
    /// Limits.
    pub limits: Limits,
    /// The listener on the closed network, if there is one.
    pub closed_network: Option<ClosedNetwork>,
    /// Client chains that verified and are remembered.
    pub verified_chains_max: usize,
    /// How old facts may be.
    pub stages: Stages,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`Error`] with a line for each problem.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error(vec![format!("cannot read config file `{}`: {error}", path.display())])
        })?;
        let raw: RawConfig = toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let what = error.message().replace('\n', " ");
            Error(vec![format!("config file `{}`: line {line}: {what}", path.display())])
        })?;
        let written = text.parse::<toml::Table>();
        let written = written.map_err(|error| Error(vec![error.message().to_owned()]))?;
        let checker = Checker { file: path.to_owned(), problems: Vec::new() };
        checker.check(raw, written)
    }
}

/// Collects problems while the parts of the file are turned into what they mean.
struct Checker {
    file: PathBuf,
    problems: Vec<String>,
}

impl Checker {
    fn check(mut self, raw: RawConfig, written: toml::Table) -> Result<Config, Error> {
        let listen = self.address("listen", &raw.listen);
        let proxies = self.networks("proxy_protocol_from", &raw.proxy_protocol_from);
        let admin_listen = self.admin_address(&raw.admin_listen);
        let credentials = self.credentials(&raw);
        self.check_numbers(&raw);
        self.check_demo_listener(raw.demo, ("listen", listen));
        let permit_key = self.secret("permit_key", &raw.permit_key).and_then(|bytes| {
            let key = PermitKey::new(&bytes);
            self.keep("permit_key", key)
        });
        let hub = self.hub(raw.hub_socket, raw.hub);
        let audit = self.audit(raw.audit);
        let policy = self.policy(&raw.policy_profile, raw.policy);
        self.check_feed("feeds.ca.public_key", &raw.feeds.ca.public_key);
        self.check_feed("feeds.hub.public_key", &raw.feeds.hub.public_key);
        let facts_copy = raw.facts_copy.and_then(|copy| self.facts_copy(copy));
        let limits = self.limits("limits", &raw.limits);
        let closed_network = raw
            .closed_network
            .and_then(|closed| self.closed_network(closed, &raw.limits, raw.demo));
        let stages = self.staleness(&raw.staleness);
        match (listen, admin_listen, credentials, hub.zip(permit_key), audit, policy) {
            (
                Some(listen),
                Some(admin_listen),
                Some((files, credentials)),
                Some((hub, permit_key)),
                Some(audit),
                Some(policy),
            ) if self.problems.is_empty() => Ok(Config {
                file: self.file,
                written,
                id: raw.id,
                id_domain: raw.id_domain,
                policy_arc: raw.policy_arc,
                listen,
                proxy_protocol_from: proxies,
                admin_listen,
                files,
                credentials,
                certificate_check_interval: Duration::from_millis(
                    raw.certificate_check_interval_ms,
                ),
                hub,
                permit_key,
                policy,
                ready_file: raw.ready_file,
                takeover_socket: raw.takeover_socket,
                control_socket: raw.control_socket,
                demo: raw.demo,
                audit,
                feed_ca: feed(raw.feeds.ca),
                feed_hub: feed(raw.feeds.hub),
                facts_copy,
                limits,
                closed_network,
                verified_chains_max: raw.verified_chains_max,
                stages,
            }),
            _ => Err(Error(self.problems)),
        }
    }

    fn check_numbers(&mut self, raw: &RawConfig) {
        for (key, value) in [
            ("verified_chains_max", raw.verified_chains_max as u64),
            ("certificate_check_interval_ms", raw.certificate_check_interval_ms),
        ] {
            if value == 0 {
                self.problem(key, "must be greater than 0");
            }
        }
        if raw.id.is_empty() || raw.id.len() > 64 {
            self.problem("id", "must be 1 to 64 characters");
        }
    }

    fn problem(&mut self, key: &str, what: &str) {
        let file = self.file.display();
        self.problems.push(format!("config file `{file}`: key `{key}`: {what}"));
    }

    fn keep<T, E: std::fmt::Display>(&mut self, key: &str, value: Result<T, E>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, &error.to_string());
                None
            }
        }
    }

    fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let parsed = text.parse::<SocketAddr>();
        let parsed = parsed.map_err(|_| {
            format!("`{text}` is not an address: write ADDRESS:PORT, such as `127.0.0.1:8443`")
        });
        self.keep(key, parsed)
    }

    fn networks(&mut self, key: &str, texts: &[String]) -> Vec<Network> {
        texts.iter().filter_map(|text| self.keep(key, text.parse())).collect()
    }

    fn admin_address(&mut self, text: &str) -> Option<SocketAddr> {
        let address = self.address("admin_listen", text)?;
        if address.ip().is_loopback() {
            return Some(address);
        }
        let what = format!("`{text}` is not a loopback address: metrics are served there only");
        self.problem("admin_listen", &what);
        None
    }

    /// The files of TLS, and what they hold.
    fn credentials(&mut self, raw: &RawConfig) -> Option<(Files, Credentials)> {
        let marker = crate::client_cert::oid_bytes(&format!("{}.99", raw.policy_arc));
        let marker = self.keep("policy_arc", marker)?;
        let (certificate, key) = (raw.server_certificate.clone(), raw.server_key.clone());
        if raw.sni_certificates.len() > SNI_CERTIFICATES_MAX {
            let what = format!("at most {SNI_CERTIFICATES_MAX} certificates");
            self.problem("sni_certificates", &what);
        }
        let further = |it: &RawKeyFiles| KeyFiles {
            certificate: it.certificate.clone(),
            key: it.key.clone(),
        };
        let files = Files {
            server: KeyFiles { certificate, key },
            sni: raw.sni_certificates.iter().map(further).collect(),
            trust_anchors: raw.trust_anchors.clone(),
            outside: self.outside_cas(&raw.outside_cas),
            refused_marker: (!raw.demo).then_some(marker),
        };
        match files.read(&crate::tls::provider()) {
            Ok(credentials) => Some((files, credentials)),
            Err(problems) => {
                problems.iter().for_each(|(key, what)| self.problem(key, what));
                None
            }
        }
    }

    fn facts_copy(&mut self, raw: RawFactsCopy) -> Option<CopyPlace> {
        let key = self.secret("facts_copy.key", &raw.key)?;
        Some(CopyPlace { dir: raw.dir, key })
    }

    fn secret(&mut self, key: &str, path: &Path) -> Option<[u8; 32]> {
        let bytes = self.private_file(key, path)?;
        let sized: Result<[u8; 32], String> = bytes
            .try_into()
            .map_err(|_| format!("file `{}` must hold exactly 32 bytes", path.display()));
        self.keep(key, sized)
    }

    fn private_file(&mut self, key: &str, path: &Path) -> Option<Vec<u8>> {
        let read = read_private(path);
        self.keep(key, read)
    }

    /// The policy's source. Its folder is read here too, so that a wrong policy is told with
    /// everything else that is wrong, and by `--check-config`.
    fn policy(&mut self, profile: &str, raw: RawPolicy) -> Option<crate::policy::Source> {
        let profile = self.keep("policy_profile", profile.parse::<Profile>());
        let mut signers: Vec<Signer> = Vec::new();
        for operator in raw.operators {
            let signer = Signer::new(&operator.name, &operator.public_key);
            let Some(signer) = self.keep("policy.operators", signer) else { continue };
            if signers.iter().any(|other| other.operator == signer.operator) {
                let what = format!("operator `{}` is named twice", signer.operator);
                self.problem("policy.operators", &what);
            }
            signers.push(signer);
        }
        let (dir, shadow_dir) = (raw.dir, raw.shadow_dir);
        let source = crate::policy::Source { dir, shadow_dir, signers, profile: profile? };
        if let Err(problems) = source.active(None) {
            problems.iter().for_each(|it| self.problem("policy.dir", &it.to_string()));
        }
        Some(source)
    }

    fn audit(&mut self, raw: RawAudit) -> Option<Audit> {
        let pseudonym_key = self.secret("audit.pseudonym_key", &raw.pseudonym_key);
        let key = CheckpointKey::load(&raw.key).map_err(|error| chain(&error));
        let key = self.keep("audit.key", key);
        let durability = self.durability(&raw.durability);
        let (days, refusals) = (raw.retention_days, raw.refusals_per_minute_max);
        for (name, value, max) in [
            ("audit.retention_days", days, RETENTION_DAYS_MAX),
            ("audit.refusals_per_minute_max", refusals, REFUSALS_PER_MINUTE_MAX),
        ] {
            if !(1..=max).contains(&value) {
                self.problem(name, &format!("must be from 1 to {max}"));
            }
        }
        Some(Audit {
            dir: raw.dir,
            key: key?,
            pseudonym_key: pseudonym_key?,
            durability,
            stream_socket: raw.stream_socket,
            retention: Duration::from_secs(u64::from(days) * 24 * 3600),
            refusals_per_minute_max: refusals,
        })
    }

    fn durability(&mut self, text: &str) -> Durability {
        match text {
            "before-response" => Durability::BeforeResponse,
            "async" => Durability::Async,
            other => {
                let what = format!("`{other}` is neither `before-response` nor `async`");
                self.problem("audit.durability", &what);
                Durability::BeforeResponse
            }
        }
    }

    fn check_feed(&mut self, key: &str, public_key: &str) {
        let checked = policies::feed::Subscriber::new(policies::feed::Source::Ca, public_key);
        let _ = self.keep(key, checked.map(|_| ()));
    }

    fn check_demo_listener(&mut self, demo: bool, (key, listen): (&str, Option<SocketAddr>)) {
        if let Some(listen) = listen
            && demo
            && !listen.ip().is_loopback()
        {
            let what = format!("`{listen}` is not a loopback address: a demo listens there only");
            self.problem(key, &what);
        }
    }
}

fn feed(raw: RawFeed) -> Feed {
    Feed { socket: raw.socket, public_key: raw.public_key }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).err().unwrap().0
    }

    const TEXT: &str = r#"
        id = "gw-1"
        id_domain = "id.sekisho.example"
        listen = "127.0.0.1"
        admin_listen = "0.0.0.0:9901"
        server_certificate = "/nonexistent/server.pem"
        server_key = "/nonexistent/server.key"
        trust_anchors = "/nonexistent/issuing.pem"
        hub_socket = "/run/hub.sock"
        permit_key = "/nonexistent/permit.key"
        policy_profile = "deck-1999"
        ready_file = "/run/ready.json"
        [audit]
        dir = "/var/audit"
        pseudonym_key = "/nonexistent/pseudonym.key"
        key = "/nonexistent/audit.key"
        stream_socket = "/run/audit-stream.sock"
        durability = "never"
        retention_days = 0
        refusals_per_minute_max = 100001
        [feeds.ca]
        socket = "/run/ca.sock"
        public_key = "AAAA"
        [feeds.hub]
        socket = "/run/hub-feed.sock"
        public_key = "AAAA"
        [facts_copy]
        dir = "/var/facts"
        key = "/nonexistent/facts-copy.key"
        [closed_network]
        listen = "10.8.0.1"
        proxy_protocol_from = ["10.8.0.1/8"]
        [closed_network.limits]
        connections_max = 0
    "#;

    #[test]
    fn every_problem_is_reported_with_its_key() {
        let problems = load(TEXT);
        for key in [
            "`listen`",
            "`admin_listen`",
            "`server_certificate`",
            "`server_key`",
            "`trust_anchors`",
            "`permit_key`",
            "`policy_profile`",
            "`audit.pseudonym_key`",
            "`audit.key`",
            "`audit.durability`",
            "`audit.retention_days`",
            "`audit.refusals_per_minute_max`",
            "`feeds.ca.public_key`",
            "`facts_copy.key`",
            "`closed_network.listen`",
            "`closed_network.proxy_protocol_from`",
            "`closed_network.limits.connections_max`",
        ] {
            assert!(problems.iter().any(|line| line.contains(key)), "{key}: {problems:?}");
        }
        assert!(problems.iter().all(|line| !line.contains('\n')));
    }

    #[test]
    fn an_unknown_limit_of_the_closed_network_is_named() {
        let problems = load(&TEXT.replace("connections_max = 0", "connection_max = 1"));
        let named = |line: &String| {
            line.contains("`closed_network.limits`") && line.contains("connection_max")
        };
        assert!(problems.iter().any(named), "{problems:?}");
    }

    #[test]
    fn an_unknown_key_and_a_missing_file_are_named() {
        let problems = load(&TEXT.replace("id = ", "colour = \"red\"\nid = "));
        assert!(problems[0].contains("colour"), "{problems:?}");
        let missing = Config::load(Path::new("/nonexistent/gateway.toml")).err().unwrap();
        assert!(missing.0[0].contains("/nonexistent/gateway.toml"));
    }
}
