//! The loads against a small TLS server that insists on a client certificate and counts what it is
//! asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use super::*;
use crate::cli::{Cli, Command};

/// How the server answers.
#[derive(Clone, Copy)]
struct Manners {
    answer: &'static str,
    /// Requests on a connection before it is closed.
    requests: usize,
    /// Before each answer.
    pause: Duration,
    /// Once, before the answer to the tenth request: all answers wait.
    stall: Duration,
}

const GOOD: Manners =
    Manners { answer: OK, requests: usize::MAX, pause: Duration::ZERO, stall: Duration::ZERO };

/// What the server saw.
#[derive(Default)]
struct Seen {
    full: AtomicUsize,
    resumed: AtomicUsize,
    requests: AtomicUsize,
    at_once: AtomicUsize,
    at_once_most: AtomicUsize,
    stalled: AtomicBool,
    /// Certificates of full handshakes.
    terminals: Mutex<BTreeSet<Vec<u8>>>,
}

struct TestServer {
    dir: tempfile::TempDir,
    port: u16,
    seen: Arc<Seen>,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// A CA, a server certificate and `terminals` client folders under `dir/t`.
fn certificates(
    dir: &Path,
    terminals: usize,
) -> (CertificateDer<'static>, CertificateDer<'static>, KeyPair) {
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
    for at in 0..terminals {
        let client_key = key();
        let client = leaf(ExtendedKeyUsagePurpose::ClientAuth, &client_key);
        let folder = dir.join(format!("t/{at:05}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cert.pem"), client.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), client_key.serialize_pem()).unwrap();
        std::fs::write(folder.join("token"), "TOKEN\n").unwrap();
    }
    std::fs::write(dir.join("trust.pem"), ca.pem()).unwrap();
    let server_key = key();
    let server = leaf(ExtendedKeyUsagePurpose::ServerAuth, &server_key);
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
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    Arc::new(config)
}

impl Seen {
    fn shaken(&self, tls: &TlsStream<TcpStream>) {
        let session = tls.get_ref().1;
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.resumed.fetch_add(1, Ordering::SeqCst);
            return;
        }
        self.full.fetch_add(1, Ordering::SeqCst);
        let leaf = session.peer_certificates().unwrap()[0].to_vec();
        self.terminals.lock().unwrap().insert(leaf);
    }

    /// One request: counted, and as slow as `manners` want it.
    async fn asked(&self, manners: Manners) {
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.at_once_most.fetch_max(now, Ordering::SeqCst);
        let count = self.requests.fetch_add(1, Ordering::SeqCst);
        if count >= 10 && !manners.stall.is_zero() && !self.stalled.swap(true, Ordering::SeqCst) {
            tokio::time::sleep(manners.stall).await;
        }
        if !manners.pause.is_zero() {
            tokio::time::sleep(manners.pause).await;
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve_one(mut tls: TlsStream<TcpStream>, manners: Manners, seen: Arc<Seen>) {
    for _ in 0..manners.requests {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match tls.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        seen.asked(manners).await;
        let token = String::from_utf8(head).unwrap().contains("Bearer TOKEN");
        let answer = if token { manners.answer } else { NO_TOKEN };
        tls.write_all(answer.as_bytes()).await.unwrap();
        tls.flush().await.unwrap();
    }
    let _ = tls.shutdown().await;
}

async fn serve_two(tls: TlsStream<TcpStream>, manners: Manners, seen: Arc<Seen>) {
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            seen.asked(manners).await;
            let token = request.headers().get("authorization");
            let status = if token.is_some_and(|token| token == "Bearer TOKEN") { 200 } else { 401 };
            http::Response::builder().status(status).body(Full::new(Bytes::from_static(b"ok")))
        }
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(tls), service)
        .await;
}

impl TestServer {
    fn start(terminals: usize, manners: Manners) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ca, leaf, key) = certificates(dir.path(), terminals);
        let acceptor = tokio_rustls::TlsAcceptor::from(config(ca, leaf, &key));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let server = Self { dir, port, seen: Arc::clone(&seen) };
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                    tokio::spawn(async move {
                        let Ok(tls) = acceptor.accept(tcp).await else { return };
                        seen.shaken(&tls);
                        if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                            serve_two(tls, manners, seen).await;
                        } else {
                            serve_one(tls, manners, seen).await;
                        }
                    });
                }
            });
        });
        server
    }

    fn load(&self, rest: &str) -> anyhow::Result<Report> {
        let (dir, port) = (self.dir.path().display(), self.port);
        let line = format!(
            "sekisho-bench run --target https://127.0.0.1:{port} --certs {dir}/t \
             --trust {dir}/trust.pem {rest}"
        );
        let parsed = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Run(args) = parsed.command else { unreachable!("the line says `run`") };
        measure(&args)
    }

    fn full(&self) -> usize {
        self.seen.full.load(Ordering::SeqCst)
    }

    fn resumed(&self) -> usize {
        self.seen.resumed.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    fn terminals(&self) -> usize {
        self.seen.terminals.lock().unwrap().len()
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const NO_TOKEN: &str = "HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n";
const MOVED: &str =
    "HTTP/1.1 302 Found\r\nlocation: https://192.0.2.1/\r\ncontent-length: 0\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: \
                       chunked\r\n\r\n2\r\nok\r\na;x=y\r\n0123456789\r\n0\r\nt: v\r\n\r\n";
const LAST: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
const ENDLESS: &str = "HTTP/1.1 200 OK\r\n\r\nup to the end";

fn ok(count: u64) -> BTreeMap<u16, u64> {
    BTreeMap::from([(200, count)])
}

#[test]
fn keepalive_keeps_its_connections_and_counts_every_answer() {
    let server = TestServer::start(2, GOOD);
    let pid = std::process::id();
    let report =
        server.load(&format!("--connections 3 --requests 60 --threads 2 --pid {pid}")).unwrap();
    assert_eq!(report.statuses, ok(60));
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(report.connections_made, 0, "all were made before the clock started");
    assert_eq!((server.full(), server.terminals()), (3, 2));
    assert_eq!(server.requests(), 63, "with one each to warm up");
    let latency = report.latency.unwrap();
    assert!(latency.p50_us > 0 && latency.p50_us <= latency.p99_us && latency.count == 60);
    assert!(report.cpu.is_some() && report.generator.cpu_seconds > 0.0);
    assert!(report.to_string().contains("60 in"), "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["statuses"]["200"].as_u64(), Some(60));
    assert_eq!(json["mode"].as_str(), Some("keepalive"));
    assert!(json["rate"].is_null() && json["kept_up"].is_null() && json.get("hours").is_none());
}

#[test]
fn handshakes_are_full_and_each_of_another_terminal() {
    let server = TestServer::start(10, GOOD);
    for (at, group) in [(1, "hybrid"), (2, "x25519")] {
        let rest = format!("--mode handshake --group {group} --connections 3 --requests 10");
        let report = server.load(&rest).unwrap();
        assert_eq!((report.statuses.clone(), report.connections_made), (ok(10), 10), "{report}");
        assert_eq!((server.full(), server.resumed(), server.terminals()), (at * 10, 0, 10));
    }
    let report = server.load("--mode handshake --duration-s 60").unwrap();
    assert_eq!(report.answered, 10, "with the terminals the run is over");
}

#[test]
fn fewer_terminals_than_new_handshakes_are_refused() {
    let server = TestServer::start(3, GOOD);
    let error = server.load("--mode handshake --requests 4").unwrap_err();
    assert!(error.downcast_ref::<Usage>().is_some() && error.to_string().contains("there are 3"));
    let rest = "--mode handshake --requests 3 --certs-from 1";
    assert!(server.load(rest).unwrap_err().to_string().contains("there are 2"));
    assert_eq!(server.full(), 0);
}

#[test]
fn returning_terminals_come_again_with_full_handshakes() {
    let server = TestServer::start(5, GOOD);
    let report = server.load("--mode returning --connections 2 --requests 20").unwrap();
    assert_eq!((report.statuses, report.connections_made), (ok(20), 20));
    assert_eq!((server.full(), server.resumed()), (25, 0), "each of five came once before");
    assert_eq!(server.terminals(), 5);
}

#[test]
fn resumed_resumes_each_operation_after_one_full_handshake_a_connection() {
    let server = TestServer::start(2, GOOD);
    for http in [1, 2] {
        let before = server.full();
        let rest = format!("--mode resumed --connections 2 --requests 40 --http {http}");
        let report = server.load(&rest).unwrap();
        assert_eq!(report.statuses, ok(40), "{report}");
        assert_eq!((report.connections_made, report.connections_resumed), (40, 40));
        assert_eq!(server.full() - before, 2);
    }
    assert_eq!(server.resumed(), 80);
}

#[test]
fn http2_streams_are_asked_on_at_the_same_time() {
    let manners = Manners { pause: Duration::from_millis(20), ..GOOD };
    let server = TestServer::start(2, manners);
    let report =
        server.load("--http 2 --streams 8 --connections 2 --requests 96 --threads 1").unwrap();
    assert_eq!(report.statuses, ok(96), "{report}");
    assert_eq!(server.full(), 2, "one connection for eight streams");
    let most = server.seen.at_once_most.load(Ordering::SeqCst);
    assert!((9..=16).contains(&most), "{most} requests at the same time");
}

#[test]
fn in_an_open_loop_a_stall_shows_in_all_that_waited_for_it() {
    let manners = Manners { stall: Duration::from_millis(500), ..GOOD };
    let line = "--connections 1 --requests 200";
    let closed = TestServer::start(1, manners).load(line).unwrap();
    let open =
        TestServer::start(1, manners).load(&format!("{line} --rate 200 --threads 1")).unwrap();
    let (closed, latency) = (closed.latency.unwrap(), open.latency.unwrap());
    // One operation stalls; a hundred are due in that half second, each of them late.
    assert!(closed.p90_us < 250_000 && closed.max_us >= 500_000, "{closed:?}");
    assert!(latency.p90_us >= 250_000 && latency.max_us >= 500_000, "{latency:?}");
    assert!(open.waited.unwrap().p90_us >= 200_000);
    assert!(open.seconds >= 0.99, "200 operations at 200 a second: {}", open.seconds);
}

#[test]
fn a_rate_that_the_server_does_not_keep_up_with_is_told() {
    let manners = Manners { pause: Duration::from_millis(20), ..GOOD };
    let server = TestServer::start(2, manners);
    let rest = "--connections 2 --requests 200 --rate 400 --arrival poisson";
    let report = server.load(rest).unwrap();
    assert_eq!((report.answered, report.kept_up), (200, Some(false)), "{report}");
    assert!(report.to_string().contains("NOT kept up"), "{report}");
    let report = server.load("--connections 2 --requests 20 --rate 20").unwrap();
    assert_eq!(report.kept_up, Some(true), "{report}");
}

#[test]
fn a_day_has_its_hours_with_logins_and_resumptions() {
    let server = TestServer::start(6, GOOD);
    let report = server
        .load("--mode day --rate 400 --hour-ms 200 --connections 4 --first-to-tenth")
        .unwrap();
    assert_eq!(report.hours.len(), 24);
    assert!(report.failures.is_empty(), "{report}");
    let answered: u64 = report.hours.iter().map(|hour| hour.answered).sum();
    assert_eq!((answered, answered), (report.answered, report.statuses[&200]));
    assert_eq!(report.hours[16].answered.abs_diff(80), 0, "the busiest hour: 400 a second");
    assert!(report.hours[3].answered < 10);
    let full: u64 = report.hours.iter().map(|hour| hour.handshakes).sum();
    let resumed: u64 = report.hours.iter().map(|hour| hour.resumed).sum();
    assert!(full > 0 && resumed > 0 && (full + resumed) * 3 < answered, "{report}");
    assert_eq!(resumed as usize, server.resumed());
    // Kept ones, one to resume for each connection, and each terminal's first.
    assert_eq!(full as usize + 4 + 4 + 6, server.full());
}

#[test]
fn a_connection_that_the_server_closes_is_made_anew() {
    let server = TestServer::start(1, Manners { requests: 5, ..GOOD });
    let report = server.load("--connections 1 --requests 30").unwrap();
    let failed: u64 = report.failures.values().sum();
    assert_eq!(report.answered + failed, 30);
    assert!(report.answered >= 20 && report.connections_made >= 4, "{report}");
    // A server that says so beforehand is no failure.
    let server = TestServer::start(1, Manners { requests: 1, answer: LAST, ..GOOD });
    let report = server.load("--connections 1 --requests 6").unwrap();
    assert_eq!((report.statuses, report.connections_made), (ok(6), 6));
}

#[test]
fn answers_are_read_to_their_end_however_that_is_told() {
    let server = TestServer::start(1, Manners { answer: CHUNKED, ..GOOD });
    let report = server.load("--connections 1 --requests 5").unwrap();
    assert_eq!((report.statuses.clone(), report.connections_made), (ok(5), 0), "{report}");
    let server = TestServer::start(1, Manners { answer: ENDLESS, requests: 1, ..GOOD });
    let report = server.load("--connections 1 --requests 5").unwrap();
    assert_eq!((report.statuses.clone(), report.connections_made), (ok(5), 5), "{report}");
}

#[test]
fn redirects_are_counted_and_not_followed() {
    let server = TestServer::start(1, Manners { answer: MOVED, ..GOOD });
    let report = server.load("--connections 1 --requests 5").unwrap();
    assert_eq!(report.statuses, BTreeMap::from([(302, 5)]));
}

#[test]
fn a_server_that_is_not_trusted_shows_as_failures_and_is_asked_nothing() {
    let (server, other) = (TestServer::start(1, GOOD), TestServer::start(1, GOOD));
    let trust = other.dir.path().join("trust.pem");
    std::fs::copy(trust, server.dir.path().join("trust.pem")).unwrap();
    let report = server.load("--connections 1 --requests 2").unwrap();
    assert_eq!(report.answered, 0);
    let failures: Vec<_> = report.failures.keys().collect();
    assert!(failures[0].starts_with("TLS: invalid peer certificate"), "{failures:?}");
    assert_eq!(server.requests(), 0);
}

#[test]
fn what_can_not_be_loaded_with_is_named_before_any_load() {
    let server = TestServer::start(1, GOOD);
    for (rest, named) in [
        ("--token-file /nonexistent/token", "/nonexistent/token"),
        ("--pid 4194999", "4194999"),
        ("--streams 2", "--http 2"),
        ("--mode day", "--rate"),
        ("--mode day --rate 5 --requests 5", "--requests"),
        ("--first-to-tenth", "--mode day"),
    ] {
        let error = server.load(rest).unwrap_err();
        assert!(format!("{error:#}").contains(named), "{rest}: {error:#}");
    }
    std::fs::remove_file(server.dir.path().join("t/00000/key.pem")).unwrap();
    assert!(server.load("").unwrap_err().to_string().contains("key.pem"));
    assert_eq!(server.full(), 0);
}
