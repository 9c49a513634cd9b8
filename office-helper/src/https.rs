//! One HTTP/1.1 request over one TLS 1.3 connection, with every limit stated. No redirects, no
//! proxy, no connection kept: an office helper asks rarely.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Time for connecting, asking and receiving, all together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer body in bytes.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read certificates from `{}`: name a PEM file", path.display())]
    Trust {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error(
        "`{}` holds no usable certificate: name a PEM file with the CA's certificate",
        .0.display()
    )]
    NoTrust(PathBuf),
    #[error("the terminal's certificate and key can not be used together")]
    Client(#[source] rustls::Error),
    #[error("TLS settings are refused")]
    Settings(#[source] rustls::Error),
    #[error("cannot connect to `{origin}`: check the address, the network and the firewall")]
    Connect {
        origin: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no secure connection (TLS 1.3) with `{origin}`")]
    Tls {
        origin: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{origin}` broke the exchange off")]
    Exchange {
        origin: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the answer of `{origin}` is incomplete or longer than {BODY_BYTES_MAX} bytes")]
    Body { origin: String },
    #[error("`{origin}` did not answer within {} seconds", EXCHANGE_TIMEOUT.as_secs())]
    Timeout { origin: String },
}

/// Scheme, host and port of a server: `https://host[:port]`, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    host: ServerName<'static>,
    host_text: String,
    port: u16,
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is not an address like https://localhost:8444");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let plain = uri.scheme_str() == Some("https") && uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let (true, Some(authority)) = (plain, authority) else { return Err(expected()) };
        let host_text = authority.host().trim_matches(['[', ']']).to_owned();
        let host = ServerName::try_from(host_text.clone()).map_err(|_| expected())?;
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            _ => authority.port_u16().ok_or_else(expected)?,
        };
        Ok(Self { host, host_text, port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl Origin {
    /// The value of the Host header.
    pub(crate) fn authority(&self) -> String {
        if self.host_text.contains(':') {
            format!("[{}]:{}", self.host_text, self.port)
        } else {
            format!("{}:{}", self.host_text, self.port)
        }
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The terminal's certificate chain and key, for servers that ask for them.
pub(crate) struct ClientIdentity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// TLS 1.3 only, trusting what `trust` holds and nothing else.
pub(crate) fn settings(
    trust: &Path,
    client: Option<ClientIdentity>,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::Settings)?
        .with_root_certificates(trusted(trust)?);
    let config = match client {
        Some(client) => {
            builder.with_client_auth_cert(client.chain, client.key).map_err(Error::Client)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn trusted(path: &Path) -> Result<RootCertStore, Error> {
    let unreadable = |source| Error::Trust { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() { Err(Error::NoTrust(path.to_owned())) } else { Ok(roots) }
}

/// Sends one request and reads the whole answer.
pub(crate) async fn exchange(
    origin: &Origin,
    settings: Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Error> {
    tokio::time::timeout(EXCHANGE_TIMEOUT, ask(origin, settings, request))
        .await
        .unwrap_or_else(|_| Err(Error::Timeout { origin: origin.to_string() }))
}

async fn ask(
    origin: &Origin,
    settings: Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Error> {
    let name = || origin.to_string();
    let tcp = TcpStream::connect((origin.host_text.as_str(), origin.port))
        .await
        .map_err(|source| Error::Connect { origin: name(), source })?;
    let tls = TlsConnector::from(settings)
        .connect(origin.host.clone(), tcp)
        .await
        .map_err(|source| Error::Tls { origin: name(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .map_err(|source| Error::Exchange { origin: name(), source })?;
    let connection = tokio::spawn(connection);
    let answer = sender
        .send_request(request)
        .await
        .map_err(|source| Error::Exchange { origin: name(), source })?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|_| Error::Body { origin: name() })?
        .to_bytes();
    connection.abort();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_https_with_host_and_port_only() {
        for (text, shown) in [
            ("https://localhost:8444", "https://localhost:8444"),
            ("https://ra.example.jp/", "https://ra.example.jp:443"),
            ("https://127.0.0.1:1", "https://127.0.0.1:1"),
            ("https://[::1]:8444", "https://[::1]:8444"),
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), shown);
        }
        for bad in [
            "localhost:8444",
            "http://localhost:8444",
            "https://localhost:8444/path",
            "https://localhost:8444/?a=b",
            "https://user@localhost:8444",
            "https://localhost:99999",
            "https://localhost:",
            "",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_trust_file_without_certificates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.pem");
        assert!(matches!(settings(&path, None), Err(Error::Trust { .. })));
        std::fs::write(&path, "not a certificate").unwrap();
        assert!(matches!(settings(&path, None), Err(Error::NoTrust(_))));
    }
}
