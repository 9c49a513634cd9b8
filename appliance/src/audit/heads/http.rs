//! An HTTP endpoint: each head is posted as text/plain; any 2xx means that it arrived.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::settings::HttpSink;

/// Posts one head.
///
/// # Errors
/// When there is no connection, TLS does not trust the server, or the answer is not 2xx.
pub(super) async fn post(sink: &HttpSink, note: &str) -> anyhow::Result<()> {
    let host = sink.url.host().context("the URL names no host")?;
    let is_tls = sink.url.scheme_str() == Some("https");
    let port = sink.url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let bare = host.trim_matches(['[', ']']);
    let tcp = TcpStream::connect((bare, port)).await.context("no connection")?;
    let status = if is_tls {
        let name = ServerName::try_from(bare.to_owned()).context("the host cannot be checked")?;
        let connector = TlsConnector::from(Arc::new(trusting(sink)?));
        exchange(connector.connect(name, tcp).await.context("no TLS connection")?, sink, note).await
    } else {
        exchange(tcp, sink, note).await
    }?;
    anyhow::ensure!(status.is_success(), "it answered {status}");
    Ok(())
}

fn trusting(sink: &HttpSink) -> anyhow::Result<ClientConfig> {
    let unusable = || format!("trust file `{}` cannot be used", sink.trust.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&sink.trust).with_context(unusable)? {
        // A system's bundle may hold one that is no trust anchor by today's rules.
        let _passed_over = roots.add(certificate.with_context(unusable)?);
    }
    anyhow::ensure!(!roots.is_empty(), "{}: no certificate in it", unusable());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn exchange<S>(stream: S, sink: &HttpSink, note: &str) -> anyhow::Result<http::StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let authority = sink.url.authority().context("the URL names no host")?;
    let target = sink.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = http::Request::post(target)
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(Full::new(Bytes::from(note.to_owned())))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.context("no answer");
    driver.abort();
    Ok(answer?.status())
}
