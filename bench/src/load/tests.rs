//! The loop against a small TLS server that insists on a client certificate.

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use clap::Parser;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::cli::{Cli, Command};

struct Server {
    dir: tempfile::TempDir,
    address: SocketAddr,
    full: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// A CA, a server certificate and a client folder `a`, all under `dir`.
fn certificates(dir: &Path) -> (CertificateDer<'static>, CertificateDer<'static>, KeyPair) {
    let ca_key = key();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "bench test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let leaf = |usage, key: &KeyPair| {
        let mut params =
            CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![usage];
        params.signed_by(key, &issuer).unwrap()
    };
    let (server_key, client_key) = (key(), key());
    let server = leaf(ExtendedKeyUsagePurpose::ServerAuth, &server_key);
    let client = leaf(ExtendedKeyUsagePurpose::ClientAuth, &client_key);
    std::fs::create_dir(dir.join("a")).unwrap();
    std::fs::write(dir.join("a/cert.pem"), client.pem()).unwrap();
    std::fs::write(dir.join("a/key.pem"), client_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("trust.pem"), ca.pem()).unwrap();
    (ca.der().clone(), server.der().clone(), server_key)
}

fn config(
    ca: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: &KeyPair,
) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf], key)
        .unwrap();
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    Arc::new(config)
}

impl Server {
    /// Answers every request with `answer`; closes a connection after `per_connection` of them.
    async fn start(answer: &'static str, per_connection: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ca, leaf, key) = certificates(dir.path());
        let acceptor = tokio_rustls::TlsAcceptor::from(config(ca, leaf, &key));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            dir,
            address: listener.local_addr().unwrap(),
            full: Arc::default(),
            resumed: Arc::default(),
            requests: Arc::default(),
        };
        let (full, resumed) = (Arc::clone(&server.full), Arc::clone(&server.resumed));
        let requests = Arc::clone(&server.requests);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, requests) = (acceptor.clone(), Arc::clone(&requests));
                let (full, resumed) = (Arc::clone(&full), Arc::clone(&resumed));
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    match tls.get_ref().1.handshake_kind() {
                        Some(HandshakeKind::Resumed) => resumed.fetch_add(1, Ordering::SeqCst),
                        _ => full.fetch_add(1, Ordering::SeqCst),
                    };
                    for _ in 0..per_connection {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            match tls.read_u8().await {
                                Ok(byte) => head.push(byte),
                                Err(_) => return,
                            }
                        }
                        requests.fetch_add(1, Ordering::SeqCst);
                        let token = String::from_utf8(head).unwrap().contains("Bearer TOKEN");
                        let answer = if token { answer } else { NO_TOKEN };
                        tls.write_all(answer.as_bytes()).await.unwrap();
                        tls.flush().await.unwrap();
                    }
                    let _ = tls.shutdown().await;
                });
            }
        });
        std::fs::write(server.dir.path().join("token"), "TOKEN\n").unwrap();
        server
    }

    async fn load(&self, rest: &str) -> Result<Report, Error> {
        let dir = self.dir.path().display();
        let line = format!(
            "sekisho-bench run --target https://{} --certs {dir}/a --trust {dir}/trust.pem {rest}",
            self.address
        );
        let parsed = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Run(args) = parsed.command else { unreachable!("the line says `run`") };
        args.check().unwrap();
        run(&args).await
    }

    fn token(&self) -> String {
        format!("--token-file {}/token", self.dir.path().display())
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const NO_TOKEN: &str = "HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n";
const MOVED: &str =
    "HTTP/1.1 302 Found\r\nlocation: https://192.0.2.1/\r\ncontent-length: 0\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn keepalive_keeps_its_connections_and_counts_every_answer() {
    let server = Server::start(OK, usize::MAX).await;
    let pid = std::process::id();
    let rest = format!("--connections 3 --requests 60 --pid {pid} {}", server.token());
    let report = server.load(&rest).await.unwrap();
    assert_eq!(report.statuses, BTreeMap::from([(200, 60)]));
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(report.connections_made, 0, "all were made before the clock started");
    assert_eq!(server.full.load(Ordering::SeqCst), 3);
    assert_eq!(server.requests.load(Ordering::SeqCst), 63, "with one each to warm up");
    let latency = report.latency.unwrap();
    assert!(latency.p50_us > 0 && latency.p50_us <= latency.p99_us);
    assert!(report.cpu.unwrap().coarse);
    assert!(report.to_string().contains("60 in"), "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (json["statuses"]["200"].as_u64(), json["mode"].as_str()),
        (Some(60), Some("keepalive"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_makes_a_full_one_for_each_operation() {
    let server = Server::start(OK, usize::MAX).await;
    for group in ["hybrid", "x25519"] {
        let before = server.full.load(Ordering::SeqCst);
        let rest = format!("--mode handshake --group {group} --connections 2 --requests 10");
        let report = server.load(&rest).await.unwrap();
        assert_eq!(report.statuses, BTreeMap::from([(401, 10)]));
        assert_eq!((report.connections_made, report.connections_resumed), (10, 0));
        assert_eq!(server.full.load(Ordering::SeqCst) - before, 10);
        assert_eq!(server.resumed.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resumed_resumes_each_operation_after_one_full_handshake_a_task() {
    let server = Server::start(OK, usize::MAX).await;
    let report = server
        .load(&format!("--mode resumed --connections 2 --requests 20 {}", server.token()))
        .await
        .unwrap();
    assert_eq!(report.statuses, BTreeMap::from([(200, 20)]));
    assert_eq!((report.connections_made, report.connections_resumed), (20, 20));
    assert_eq!(server.full.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_server_closes_is_made_anew() {
    let server = Server::start(OK, 5).await;
    let report =
        server.load(&format!("--connections 1 --requests 30 {}", server.token())).await.unwrap();
    let answered = report.answered();
    let failed: u64 = report.failures.values().sum();
    assert_eq!(answered + failed, 30);
    assert!(answered >= 20 && report.connections_made >= 4, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_counted_and_not_followed() {
    let server = Server::start(MOVED, usize::MAX).await;
    let report =
        server.load(&format!("--connections 1 --requests 5 {}", server.token())).await.unwrap();
    assert_eq!(report.statuses, BTreeMap::from([(302, 5)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_or_not_trusted_shows_as_failures() {
    let server = Server::start(OK, usize::MAX).await;
    let other = Server::start(OK, usize::MAX).await;
    let trust = other.dir.path().join("trust.pem");
    std::fs::copy(trust, server.dir.path().join("trust.pem")).unwrap();
    let report = server.load("--connections 1 --requests 2").await.unwrap();
    assert_eq!(report.answered(), 0);
    let failures: Vec<_> = report.failures.keys().collect();
    assert!(failures[0].starts_with("TLS: invalid peer certificate"), "{failures:?}");
    assert_eq!(server.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_files_are_named() {
    let server = Server::start(OK, usize::MAX).await;
    let error = server.load("--token-file /nonexistent/token").await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/token"), "{error}");
    std::fs::remove_file(server.dir.path().join("a/key.pem")).unwrap();
    let error = server.load("").await.err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("key.pem")));
}
