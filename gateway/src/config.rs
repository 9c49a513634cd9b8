//! The configuration file: [`RawConfig`] is what stands in it, [`Config`] is what it means.
//!
//! All problems are reported together, each naming the key and what to do. Secrets are read here
//! once; a key file that others can read is refused.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_log::{CheckpointKey, Durability};
use policies::bundle::signature::Signer;
use policies::matrix::Profile;
use policies::permit::PermitKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::facts_feed::chain;

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
    admin_listen: String,
    server_certificate: PathBuf,
    server_key: PathBuf,
    trust_anchors: PathBuf,
    hub_socket: PathBuf,
    permit_key: PathBuf,
    #[serde(default = "default_profile")]
    policy_profile: String,
    #[serde(default)]
    policy: RawPolicy,
    ready_file: PathBuf,
    #[serde(default)]
    demo: bool,
    audit: RawAudit,
    feeds: RawFeeds,
    #[serde(default)]
    limits: RawLimits,
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
struct RawFeed {
    socket: PathBuf,
    public_key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    connections_max: usize,
    connections_per_address_max: usize,
    hello_timeout_ms: u64,
    handshakes_in_flight_max: usize,
    handshakes_in_flight_per_address_max: usize,
    handshake_timeout_ms: u64,
    requests_in_flight_max: usize,
    requests_in_flight_per_party_max: usize,
    request_headers_max: usize,
    request_header_bytes_max: usize,
    request_target_bytes_max: usize,
    request_body_bytes_max: u64,
    request_read_timeout_ms: u64,
    h2_streams_max: u32,
    h2_idle_timeout_ms: u64,
    drain_timeout_ms: u64,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: 4_000,
            hello_timeout_ms: 2_000,
            handshakes_in_flight_max: 512,
            handshakes_in_flight_per_address_max: 128,
            handshake_timeout_ms: 5_000,
            requests_in_flight_max: 800,
            requests_in_flight_per_party_max: 64,
            request_headers_max: 56,
            request_header_bytes_max: 32 * 1024,
            request_target_bytes_max: 2_048,
            request_body_bytes_max: 4 * 1024 * 1024,
            request_read_timeout_ms: 15_000,
            h2_streams_max: 64,
            h2_idle_timeout_ms: 60_000,
            drain_timeout_ms: 8_000,
        }
    }
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

/// A hundred years.
const RETENTION_DAYS_MAX: u32 = 36_525;

const REFUSALS_PER_MINUTE_MAX: u32 = 100_000;

/// The limits in force. Every one of them is a hard bound.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open downstream connections, in all.
    pub connections_max: usize,
    /// Open downstream connections from one address.
    pub connections_per_address_max: usize,
    /// From accept to the first byte of the client's hello; a silent client takes no handshake
    /// slot.
    pub hello_timeout: Duration,
    /// TLS handshakes going on at once.
    pub handshakes_in_flight_max: usize,
    /// TLS handshakes going on at once from one address.
    pub handshakes_in_flight_per_address_max: usize,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Requests passed to the hub at once; fewer than the hub takes.
    pub requests_in_flight_max: usize,
    /// Requests of one party (an office, a municipality, a system) passed to the hub at once.
    pub requests_in_flight_per_party_max: usize,
    /// Header lines of one request; fewer than the hub takes.
    pub request_headers_max: usize,
    /// All header names and values of one request, in bytes.
    pub request_header_bytes_max: usize,
    /// Path and query of one request, in bytes.
    pub request_target_bytes_max: usize,
    /// The body of one request, in bytes.
    pub request_body_bytes_max: u64,
    /// For each read of a request.
    pub request_read_timeout: Duration,
    /// Concurrent streams of one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// An HTTP/2 connection without streams is closed after this time.
    pub h2_idle_timeout: Duration,
    /// How long a drain waits for requests in flight.
    pub drain_timeout: Duration,
}

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

/// The server's certificate chain and key, read and matched to each other when TLS is set up.
pub struct ServerIdentity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
}

/// The checked configuration.
pub struct Config {
    /// This gateway's id in acknowledgements and records.
    pub id: String,
    /// The domain of the SAN URIs.
    pub id_domain: String,
    /// The OID arc of the operator's certificate policies.
    pub policy_arc: String,
    /// The public listener.
    pub listen: SocketAddr,
    /// The loopback listener for metrics and readiness.
    pub admin_listen: SocketAddr,
    /// Server certificate and key.
    pub server: ServerIdentity,
    /// The issuing CAs.
    pub trust_anchors: Vec<CertificateDer<'static>>,
    /// The hub's request socket.
    pub hub_socket: PathBuf,
    /// The key that permits are sealed with.
    pub permit_key: PermitKey,
    /// Where the policy comes from, and which reading of the sharing matrix is in force.
    pub policy: crate::policy::Source,
    /// Written when the gateway is ready.
    pub ready_file: PathBuf,
    /// Whether certificates of a demo CA are accepted.
    pub demo: bool,
    /// The audit log.
    pub audit: Audit,
    /// Offices and revocations.
    pub feed_ca: Feed,
    /// Registrations, consents and the rest.
    pub feed_hub: Feed,
    /// Limits.
    pub limits: Limits,
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
        Checker { file: path.display().to_string(), problems: Vec::new() }.check(raw)
    }
}

/// Collects problems while the parts of the file are turned into what they mean.
struct Checker {
    file: String,
    problems: Vec<String>,
}

impl Checker {
    fn check(mut self, raw: RawConfig) -> Result<Config, Error> {
        let listen = self.address("listen", &raw.listen);
        let admin_listen = self.admin_address(&raw.admin_listen);
        let chain = self.certificates("server_certificate", &raw.server_certificate);
        let key = self.private_key("server_key", &raw.server_key);
        let trust_anchors = self.certificates("trust_anchors", &raw.trust_anchors);
        self.check_demo(raw.demo, &raw.policy_arc, &raw.trust_anchors, trust_anchors.as_deref());
        self.check_demo_listener(raw.demo, listen);
        let permit_key = self.secret("permit_key", &raw.permit_key).and_then(|bytes| {
            let key = PermitKey::new(&bytes);
            self.keep("permit_key", key)
        });
        let audit = self.audit(raw.audit);
        let policy = self.policy(&raw.policy_profile, raw.policy);
        self.check_feed("feeds.ca.public_key", &raw.feeds.ca.public_key);
        self.check_feed("feeds.hub.public_key", &raw.feeds.hub.public_key);
        let limits = self.limits(&raw.limits);
        if raw.id.is_empty() || raw.id.len() > 64 {
            self.problem("id", "must be 1 to 64 characters");
        }
        match (listen, admin_listen, chain, key, trust_anchors, permit_key, audit, policy) {
            (
                Some(listen),
                Some(admin_listen),
                Some(chain),
                Some(key),
                Some(trust_anchors),
                Some(permit_key),
                Some(audit),
                Some(policy),
            ) if self.problems.is_empty() => Ok(Config {
                id: raw.id,
                id_domain: raw.id_domain,
                policy_arc: raw.policy_arc,
                listen,
                admin_listen,
                server: ServerIdentity { chain, key },
                trust_anchors,
                hub_socket: raw.hub_socket,
                permit_key,
                policy,
                ready_file: raw.ready_file,
                demo: raw.demo,
                audit,
                feed_ca: feed(raw.feeds.ca),
                feed_hub: feed(raw.feeds.hub),
                limits,
            }),
            _ => Err(Error(self.problems)),
        }
    }

    fn problem(&mut self, key: &str, what: &str) {
        self.problems.push(format!("config file `{}`: key `{key}`: {what}", self.file));
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

    fn admin_address(&mut self, text: &str) -> Option<SocketAddr> {
        let address = self.address("admin_listen", text)?;
        if address.ip().is_loopback() {
            return Some(address);
        }
        let what = format!("`{text}` is not a loopback address: metrics are served there only");
        self.problem("admin_listen", &what);
        None
    }

    fn certificates(&mut self, key: &str, path: &Path) -> Option<Vec<CertificateDer<'static>>> {
        let read: Result<Vec<_>, String> =
            CertificateDer::pem_file_iter(path).map_err(|error| error.to_string()).and_then(
                |items| items.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string()),
            );
        match read {
            Ok(chain) if !chain.is_empty() => Some(chain),
            Ok(_) => {
                self.problem(key, &format!("file `{}` holds no certificate", path.display()));
                None
            }
            Err(error) => {
                self.problem(
                    key,
                    &format!("cannot read certificates from `{}`: {error}", path.display()),
                );
                None
            }
        }
    }

    fn private_key(&mut self, key: &str, path: &Path) -> Option<PrivateKeyDer<'static>> {
        let bytes = self.private_file(key, path)?;
        let parsed = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| format!("file `{}` holds no PEM private key", path.display()));
        self.keep(key, parsed)
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

    /// Demo and production never mix: a demo CA's certificate carries a marker extension.
    fn check_demo(
        &mut self,
        demo: bool,
        policy_arc: &str,
        path: &Path,
        anchors: Option<&[CertificateDer<'static>]>,
    ) {
        let marker = crate::client_cert::oid_bytes(&format!("{policy_arc}.99"));
        let Some(marker) = self.keep("policy_arc", marker) else {
            return;
        };
        let marked = anchors.unwrap_or(&[]).iter().any(|anchor| has_extension(anchor, &marker));
        if marked && !demo {
            let what = format!(
                "`{}` holds a demo CA's certificate: a production gateway never trusts it",
                path.display()
            );
            self.problem("trust_anchors", &what);
        }
    }

    fn check_demo_listener(&mut self, demo: bool, listen: Option<SocketAddr>) {
        if let Some(listen) = listen
            && demo
            && !listen.ip().is_loopback()
        {
            let what = format!("`{listen}` is not a loopback address: a demo listens there only");
            self.problem("listen", &what);
        }
    }

    fn limits(&mut self, raw: &RawLimits) -> Limits {
        let positive = [
            ("limits.connections_max", raw.connections_max as u64),
            ("limits.connections_per_address_max", raw.connections_per_address_max as u64),
            ("limits.hello_timeout_ms", raw.hello_timeout_ms),
            ("limits.handshakes_in_flight_max", raw.handshakes_in_flight_max as u64),
            (
                "limits.handshakes_in_flight_per_address_max",
                raw.handshakes_in_flight_per_address_max as u64,
            ),
            ("limits.requests_in_flight_max", raw.requests_in_flight_max as u64),
            (
                "limits.requests_in_flight_per_party_max",
                raw.requests_in_flight_per_party_max as u64,
            ),
            ("limits.request_headers_max", raw.request_headers_max as u64),
            ("limits.handshake_timeout_ms", raw.handshake_timeout_ms),
            ("limits.request_header_bytes_max", raw.request_header_bytes_max as u64),
            ("limits.request_target_bytes_max", raw.request_target_bytes_max as u64),
            ("limits.request_body_bytes_max", raw.request_body_bytes_max),
            ("limits.request_read_timeout_ms", raw.request_read_timeout_ms),
            ("limits.h2_streams_max", u64::from(raw.h2_streams_max)),
            ("limits.h2_idle_timeout_ms", raw.h2_idle_timeout_ms),
            ("limits.drain_timeout_ms", raw.drain_timeout_ms),
        ];
        for (key, value) in positive {
            if value == 0 {
                self.problem(key, "must be greater than 0");
            }
        }
        Limits {
            connections_max: raw.connections_max,
            connections_per_address_max: raw.connections_per_address_max,
            hello_timeout: Duration::from_millis(raw.hello_timeout_ms),
            handshakes_in_flight_per_address_max: raw.handshakes_in_flight_per_address_max,
            requests_in_flight_max: raw.requests_in_flight_max,
            requests_in_flight_per_party_max: raw.requests_in_flight_per_party_max,
            request_headers_max: raw.request_headers_max,
            handshakes_in_flight_max: raw.handshakes_in_flight_max,
            handshake_timeout: Duration::from_millis(raw.handshake_timeout_ms),
            request_header_bytes_max: raw.request_header_bytes_max,
            request_target_bytes_max: raw.request_target_bytes_max,
            request_body_bytes_max: raw.request_body_bytes_max,
            request_read_timeout: Duration::from_millis(raw.request_read_timeout_ms),
            h2_streams_max: raw.h2_streams_max,
            h2_idle_timeout: Duration::from_millis(raw.h2_idle_timeout_ms),
            drain_timeout: Duration::from_millis(raw.drain_timeout_ms),
        }
    }
}

fn feed(raw: RawFeed) -> Feed {
    Feed { socket: raw.socket, public_key: raw.public_key }
}

fn has_extension(der: &CertificateDer<'_>, oid: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        certificate.extensions().iter().any(|extension| extension.oid.as_bytes() == oid)
    })
}

/// Reads a file that only its owner may read.
fn read_private(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path)
        .map_err(|error| format!("cannot read key file `{shown}`: {error}"))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!("key file `{shown}` is readable by others: run `chmod 600 {shown}`"));
    }
    std::fs::read(path).map_err(|error| format!("cannot read key file `{shown}`: {error}"))
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
        ] {
            assert!(problems.iter().any(|line| line.contains(key)), "{key}: {problems:?}");
        }
        assert!(problems.iter().all(|line| !line.contains('\n')));
    }

    #[test]
    fn an_unknown_key_and_a_missing_file_are_named() {
        let problems = load(&TEXT.replace("id = ", "colour = \"red\"\nid = "));
        assert!(problems[0].contains("colour"), "{problems:?}");
        let missing = Config::load(Path::new("/nonexistent/gateway.toml")).err().unwrap();
        assert!(missing.0[0].contains("/nonexistent/gateway.toml"));
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("permit.key");
        std::fs::write(&path, [1; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_private(&path).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_private(&path).unwrap().len(), 32);
    }
}
