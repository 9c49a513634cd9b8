//! A small HTTPS client: one TLS connection with a client certificate, many requests on it.
//!
//! It exists because the command and the tour must see what other clients hide: the name of the TLS
//! alert, whether a session was resumed, and that two requests went over the same connection.
//!
//! A [`Client`] is one terminal: trust, certificate, TLS version, and the session tickets that its
//! connections share. Nothing is retried and nothing reconnects by itself.
//!
//! Invariant: every call ends, by an answer, an error, or [`CALL_TIMEOUT`].

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate chain and its key, as a client presents them.
#[derive(Debug)]
pub(crate) struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Reads PEM files: leaf first, then its issuers; the key as PKCS#8 or SEC 1.
    ///
    /// # Errors
    /// When a file is missing or holds no such thing.
    pub(crate) fn from_files(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let unusable = |path: &Path| format!("file `{}` cannot be used", path.display());
        let key = PrivateKeyDer::from_pem_file(key).with_context(|| unusable(key))?;
        Ok(Self { chain: certificates(certificate)?, key })
    }

    /// Takes DER made in memory.
    pub(crate) fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Self {
        Self { chain, key }
    }

    /// The leaf certificate.
    pub(crate) fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// The highest TLS version that a client offers; it is also the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// Whether a connection began with a whole handshake or with a session ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// Certificates were exchanged.
    Full,
    /// A ticket of an earlier connection was accepted (RFC 8446 §2.2).
    Resumed,
}

/// One terminal's side of TLS, towards one server.
#[derive(Clone)]
pub(crate) struct Client {
    authority: Authority,
    config: Arc<ClientConfig>,
}

impl Client {
    /// A client for `url` (`https://host:port`) that trusts the certificates in the PEM file
    /// `trust` and presents `credentials`, if any. Connections of one client, and of its clones,
    /// share their session tickets.
    ///
    /// # Errors
    /// When the URL, the trust file or the credentials cannot be used.
    pub(crate) fn new(
        url: &str,
        trust: &Path,
        credentials: Option<&Credentials>,
        version: TlsVersion,
    ) -> anyhow::Result<Self> {
        let uri: http::Uri = url.parse().with_context(|| format!("URL `{url}`"))?;
        let authority = uri.authority().with_context(|| format!("URL `{url}` names no host"))?;
        let versions: &[&rustls::SupportedProtocolVersion] = match version {
            TlsVersion::Tls12 => &[&rustls::version::TLS12],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)?
            .with_root_certificates(roots(trust)?);
        let mut config = match credentials.cloned() {
            Some(Credentials { chain, key }) => builder
                .with_client_auth_cert(chain, key)
                .context("the client certificate does not fit its key")?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        config.enable_early_data = false;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { authority: authority.clone(), config: Arc::new(config) })
    }

    /// Opens a connection. With TLS 1.3 a server may still refuse the client certificate after
    /// this: then the first [`Connection::send`] fails. See [`Client::refusal`].
    ///
    /// # Errors
    /// [`Error`] with the local address, by which the server's records name the connection.
    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        Connection::over(self.authority.clone(), self.handshake().await?).await
    }

    /// Opens a connection that the server should refuse and waits for its verdict: the error, or
    /// `None` when the server accepted the certificate.
    pub(crate) async fn refusal(&self) -> Option<Error> {
        let mut opened = match self.handshake().await {
            Ok(opened) => opened,
            Err(error) => return Some(error),
        };
        let mut byte = [0; 1];
        let read = tokio::time::timeout(VERDICT_TIMEOUT, opened.stream.read(&mut byte)).await;
        let cause = match read {
            Err(_) | Ok(Ok(1..)) => return None,
            Ok(Ok(0)) => Cause::Closed("the server closed the connection".to_owned()),
            Ok(Err(error)) => Cause::of(&error),
        };
        Some(Error { local: Some(opened.local), handshake: opened.kind(), cause })
    }

    async fn handshake(&self) -> Result<Opened, Error> {
        let host = self.authority.host();
        let port = self.authority.port_u16().unwrap_or(443);
        let failed = |local, cause| Error { local, handshake: None, cause };
        let tcp = timed(TcpStream::connect((host.trim_matches(['[', ']']), port)))
            .await
            .map_err(|cause| failed(None, cause))?;
        let address = |error: std::io::Error| failed(None, Cause::of(&error));
        let local = tcp.local_addr().map_err(address)?;
        tcp.set_nodelay(true).map_err(address)?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| failed(None, Cause::Tls(error.to_string())))?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = timed(connector.connect(name, tcp))
            .await
            .map_err(|cause| failed(Some(local), cause))?;
        Ok(Opened { stream, local })
    }
}

/// A connection before HTTP.
struct Opened {
    stream: TlsStream<TcpStream>,
    local: SocketAddr,
}

impl Opened {
    fn kind(&self) -> Option<Handshake> {
        match self.stream.get_ref().1.handshake_kind()? {
            HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest => Some(Handshake::Full),
            HandshakeKind::Resumed => Some(Handshake::Resumed),
        }
    }
}

/// An open connection; it is closed when this is dropped.
pub(crate) struct Connection {
    authority: Authority,
    local: SocketAddr,
    handshake: Option<Handshake>,
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<hyper::Result<()>>,
    ended: Option<String>,
}

impl Connection {
    async fn over(authority: Authority, opened: Opened) -> Result<Self, Error> {
        let (local, handshake) = (opened.local, opened.kind());
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(opened.stream)).await.map_err(
                |error| Error { local: Some(local), handshake, cause: Cause::of(&error) },
            )?;
        let driver = tokio::spawn(connection);
        Ok(Self { authority, local, handshake, sender, driver, ended: None })
    }

    /// How the connection began.
    pub(crate) fn handshake(&self) -> Option<Handshake> {
        self.handshake
    }

    /// Sends one request on this connection and reads the whole answer.
    ///
    /// # Errors
    /// [`Error`] when the connection was refused, closed or cut. It is not usable after that.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response, Error> {
        let request = self.request(method, target, headers, body.into());
        let request = request.map_err(|error| self.failed(Cause::Http(error.to_string())))?;
        if let Some(ended) = &self.ended {
            return Err(self.failed(Cause::Closed(ended.clone())));
        }
        match self.exchange(request).await {
            Ok(response) => Ok(response),
            Err(cause) => {
                let cause = self.driver_cause().await.unwrap_or(cause);
                self.ended = Some(cause.to_string());
                Err(self.failed(cause))
            }
        }
    }

    async fn exchange(&mut self, request: http::Request<Full<Bytes>>) -> Result<Response, Cause> {
        // Until the connection's task has put the last answer aside, it takes no further request.
        timed(self.sender.ready()).await?;
        let response = timed(self.sender.send_request(request)).await?;
        timed(Response::read(response)).await
    }

    /// What ended the connection's own task; it knows of alerts that the request does not.
    async fn driver_cause(&mut self) -> Option<Cause> {
        match tokio::time::timeout(VERDICT_TIMEOUT, &mut self.driver).await {
            Ok(Ok(Err(error))) => Some(Cause::of(&error)),
            Ok(Ok(Ok(())) | Err(_)) | Err(_) => None,
        }
    }

    fn failed(&self, cause: Cause) -> Error {
        Error { local: Some(self.local), handshake: self.handshake, cause }
    }

    fn request(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<http::Request<Full<Bytes>>, http::Error> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, self.authority.as_str());
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == CONTENT_TYPE.as_str()) {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(HeaderName::try_from(*name)?, HeaderValue::try_from(*value)?);
        }
        request.body(Full::new(body))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Response {
    /// HTTP status.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body, at most [`ANSWER_BYTES_MAX`].
    pub(crate) body: Bytes,
}

impl Response {
    async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Self, BodyError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok(Self { status: head.status.as_u16(), headers: head.headers, body })
    }

    /// The body as JSON; `null` when it is none.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct Error {
    /// This side's address, by which the server's records name the connection.
    pub(crate) local: Option<SocketAddr>,
    /// How the connection began, if it began.
    pub(crate) handshake: Option<Handshake>,
    /// What failed.
    pub(crate) cause: Cause,
}

/// What failed.
#[derive(Debug)]
pub(crate) enum Cause {
    /// The server sent this TLS alert (name as in RFC 8446 §6).
    Alert(String),
    /// TLS failed on this side.
    Tls(String),
    /// The connection was closed or cut without a word.
    Closed(String),
    /// HTTP failed.
    Http(String),
    /// Nothing came within [`CALL_TIMEOUT`].
    Timeout,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alert(name) => write!(f, "TLS alert `{name}`"),
            Self::Tls(text) => write!(f, "TLS failed: {text}"),
            Self::Closed(text) => write!(f, "connection closed: {text}"),
            Self::Http(text) => write!(f, "HTTP failed: {text}"),
            Self::Timeout => write!(f, "no answer within {} s", CALL_TIMEOUT.as_secs()),
        }
    }
}

impl Cause {
    /// Finds the deepest known cause of an error.
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = Self::of_one(error) {
                return found;
            }
            cause = error.source();
        }
        Self::Http(error.to_string())
    }

    fn of_one(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref() {
            return Some(Self::Alert(alert_name(*alert)));
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(Self::Tls(error.to_string()));
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // An I/O error that wraps another does not name it as its source.
            let inner = error.get_ref().and_then(|inner| Self::of_one(inner));
            let cut = error.kind() == std::io::ErrorKind::UnexpectedEof;
            let words =
                if cut { "without close_notify".to_owned() } else { error.kind().to_string() };
            return Some(inner.unwrap_or(Self::Closed(words)));
        }
        let last = error.source().is_none();
        let closed = error.downcast_ref::<hyper::Error>().is_some_and(|error| {
            last && (error.is_canceled() || error.is_closed() || error.is_incomplete_message())
        });
        closed.then(|| Self::Closed(error.to_string()))
    }
}

/// `CertificateExpired` → `certificate_expired`, `UnknownCA` → `unknown_ca`.
fn alert_name(alert: AlertDescription) -> String {
    let mut name = String::new();
    let mut before = '_';
    for letter in format!("{alert:?}").chars() {
        if letter.is_ascii_uppercase() && before.is_ascii_lowercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
        before = letter;
    }
    name
}

/// Runs a step of a call with its time limit.
async fn timed<T, E>(step: impl Future<Output = Result<T, E>>) -> Result<T, Cause>
where
    E: Into<BodyError>,
{
    match tokio::time::timeout(CALL_TIMEOUT, step).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            let error: BodyError = error.into();
            Err(Cause::of(error.as_ref()))
        }
        Err(_) => Err(Cause::Timeout),
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let unusable = || format!("file `{}` cannot be used", path.display());
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).with_context(unusable)?.collect();
    let found = found.with_context(unusable)?;
    anyhow::ensure!(!found.is_empty(), "file `{}` holds no certificate", path.display());
    Ok(found)
}

fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .with_context(|| format!("file `{}` holds an unusable certificate", path.display()))?;
    }
    Ok(roots)
}

/// For one step of one call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a server's refusal is waited for after the client's side of a handshake is done.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Sessions remembered by one client.
const SESSIONS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_have_the_names_of_the_standard() {
        for (alert, name) in [
            (AlertDescription::CertificateRequired, "certificate_required"),
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::ProtocolVersion, "protocol_version"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }

    #[test]
    fn an_alert_is_found_below_an_io_error() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, alert);
        assert_eq!(Cause::of(&error).to_string(), "TLS alert `certificate_revoked`");
    }
}
