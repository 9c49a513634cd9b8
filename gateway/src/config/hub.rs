//! `hub_socket`, or `[hub]`: where the hub's nodes are, and how long the gateway waits for them.
//!
//! A node is a unix socket, or an address with mutual TLS. Without TLS an address must be a
//! loopback one: the permit says who asks, but nobody on the way may read what is answered.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;

use super::Checker;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHub {
    nodes: Vec<RawNode>,
    connect_timeout_ms: u64,
    response_timeout_ms: u64,
    idle_timeout_ms: u64,
    health_interval_ms: u64,
    health_timeout_ms: u64,
    breaker_failures_max: u32,
    breaker_open_ms: u64,
}

impl Default for RawHub {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            connect_timeout_ms: 300,
            response_timeout_ms: 8_000,
            idle_timeout_ms: 50_000,
            health_interval_ms: 1_000,
            health_timeout_ms: 2_000,
            breaker_failures_max: 5,
            breaker_open_ms: 1_000,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    socket: Option<PathBuf>,
    address: Option<String>,
    tls: Option<RawNodeTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNodeTls {
    server_name: String,
    anchors: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// Where the hub is, and how long the gateway waits for it.
#[derive(Debug, Clone)]
pub struct HubNodes {
    /// One or more; each serves any request.
    pub nodes: Vec<HubNode>,
    /// Until a connection stands, TLS included.
    pub connect_timeout: Duration,
    /// For the next part of an answer, once the request is with the node.
    pub response_timeout: Duration,
    /// An idle connection is kept for so long.
    pub idle_timeout: Duration,
    /// How often a node is asked whether it answers.
    pub health_interval: Duration,
    /// How long it may take to say so.
    pub health_timeout: Duration,
    /// After so many failures in a row a node is left alone.
    pub breaker_failures_max: u32,
    /// For how long it is left alone before one request tries it.
    pub breaker_open: Duration,
}

/// Where one node is.
#[derive(Debug, Clone)]
pub enum HubNode {
    /// A unix socket, by a path that is text.
    Unix(String),
    /// An address.
    Tcp {
        /// Where it listens.
        address: SocketAddr,
        /// How both sides show who they are; `None` on loopback only.
        tls: Option<Arc<NodeTls>>,
    },
}

/// Mutual TLS with a node.
#[derive(Debug)]
pub struct NodeTls {
    /// The name in the node's certificate.
    pub server_name: ServerName<'static>,
    /// Which CAs that certificate may come from, and what the gateway shows.
    pub client: Arc<ClientConfig>,
}

/// More than anybody has, and as many as a set of bits holds.
const NODES_MAX: usize = 64;

impl Checker {
    /// The nodes. `socket` is `hub_socket`, the short form of one node.
    pub(super) fn hub(&mut self, socket: Option<PathBuf>, raw: RawHub) -> Option<HubNodes> {
        for (key, value) in [
            ("hub.connect_timeout_ms", raw.connect_timeout_ms),
            ("hub.response_timeout_ms", raw.response_timeout_ms),
            ("hub.idle_timeout_ms", raw.idle_timeout_ms),
            ("hub.health_interval_ms", raw.health_interval_ms),
            ("hub.health_timeout_ms", raw.health_timeout_ms),
            ("hub.breaker_failures_max", u64::from(raw.breaker_failures_max)),
            ("hub.breaker_open_ms", raw.breaker_open_ms),
        ] {
            if value == 0 {
                self.problem(key, "must be greater than 0");
            }
        }
        let nodes = match (socket, raw.nodes) {
            (Some(socket), nodes) if nodes.is_empty() => {
                self.unix("hub_socket", &socket).into_iter().collect()
            }
            (None, nodes) if (1..=NODES_MAX).contains(&nodes.len()) => {
                nodes.into_iter().map(|node| self.node(node)).collect::<Option<Vec<_>>>()?
            }
            (Some(_) | None, _) => {
                let what = format!("must be one socket, or `[[hub.nodes]]` 1 to {NODES_MAX} nodes");
                self.problem("hub_socket", &what);
                return None;
            }
        };
        let ms = Duration::from_millis;
        (!nodes.is_empty()).then(|| HubNodes {
            nodes,
            connect_timeout: ms(raw.connect_timeout_ms),
            response_timeout: ms(raw.response_timeout_ms),
            idle_timeout: ms(raw.idle_timeout_ms),
            health_interval: ms(raw.health_interval_ms),
            health_timeout: ms(raw.health_timeout_ms),
            breaker_failures_max: raw.breaker_failures_max,
            breaker_open: ms(raw.breaker_open_ms),
        })
    }

    fn unix(&mut self, key: &str, path: &Path) -> Option<HubNode> {
        let text = path.to_str().filter(|text| text.len() <= SOCKET_PATH_BYTES_MAX);
        let text = text.map(str::to_owned).ok_or_else(|| {
            format!("must be a path of at most {SOCKET_PATH_BYTES_MAX} bytes of UTF-8")
        });
        self.keep(key, text).map(HubNode::Unix)
    }

    fn node(&mut self, raw: RawNode) -> Option<HubNode> {
        match (raw.socket, raw.address, raw.tls) {
            (Some(socket), None, None) => self.unix("hub.nodes.socket", &socket),
            (None, Some(address), tls) => {
                let address = self.address("hub.nodes.address", &address)?;
                if tls.is_none() && !address.ip().is_loopback() {
                    let what = format!("`{address}` is not on this machine: it needs `tls`");
                    self.problem("hub.nodes.address", &what);
                    return None;
                }
                let tls = match tls {
                    Some(raw) => Some(Arc::new(self.node_tls(&raw)?)),
                    None => None,
                };
                Some(HubNode::Tcp { address, tls })
            }
            (None, None, _) | (Some(_), Some(_), _) | (Some(_), None, Some(_)) => {
                self.problem("hub.nodes", "must name a `socket`, or an `address` and its `tls`");
                None
            }
        }
    }

    fn node_tls(&mut self, raw: &RawNodeTls) -> Option<NodeTls> {
        let name = ServerName::try_from(raw.server_name.clone());
        let server_name = self.keep("hub.nodes.tls.server_name", name);
        let anchors = self.keep("hub.nodes.tls.anchors", certificates(&raw.anchors));
        let certificate = self.keep("hub.nodes.tls.certificate", certificates(&raw.certificate));
        let key = self.private_file("hub.nodes.tls.key", &raw.key).and_then(|bytes| {
            let key = PrivateKeyDer::from_pem_slice(&bytes);
            self.keep("hub.nodes.tls.key", key.map_err(|_| "holds no PEM private key"))
        });
        let (server_name, anchors) = (server_name?, anchors?);
        let (certificate, key) = (certificate?, key?);
        let client = Arc::new(self.keep("hub.nodes.tls", client(anchors, certificate, key))?);
        Some(NodeTls { server_name, client })
    }
}

fn client(
    anchors: Vec<CertificateDer<'static>>,
    certificate: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor)?;
    }
    ClientConfig::builder_with_provider(Arc::new(crate::tls::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificate, key)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| format!("cannot read certificates from `{shown}`: {error}"))?;
    if read.is_empty() { Err(format!("file `{shown}` holds no certificate")) } else { Ok(read) }
}

/// `sockaddr_un` holds 108 bytes with the end.
const SOCKET_PATH_BYTES_MAX: usize = 107;
