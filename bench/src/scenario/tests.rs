//! The scenarios against small TLS servers that insist on a client certificate.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use clap::Parser;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::cli::{Cli, Command};

/// A folder with `trust.pem` and `terminals/N`, and the server's settings that belong to it.
struct Pki {
    dir: tempfile::TempDir,
    settings: rustls::ServerConfig,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

impl Pki {
    fn new(terminals: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca_key = key();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&ca_key).unwrap();
        std::fs::write(dir.path().join("trust.pem"), ca.pem()).unwrap();
        let issuer = Issuer::new(params, ca_key);
        for number in 0..terminals {
            client(&dir.path().join(format!("terminals/{number}")), &issuer);
        }
        let server_key = key();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&server_key, &issuer).unwrap();
        let settings = settings(ca.der().clone(), leaf.der().clone(), &server_key);
        Self { dir, settings }
    }

    /// The arguments that all commands have in common.
    fn command(&self, command: &str, address: SocketAddr, rest: &str) -> Command {
        let dir = self.dir.path().display();
        let line = format!(
            "sekisho-bench {command} --target https://{address} --certs {dir}/terminals --trust \
             {dir}/trust.pem --group x25519 {rest}"
        );
        Cli::try_parse_from(line.split_whitespace()).unwrap().command
    }
}

fn client(dir: &Path, issuer: &Issuer<'_, KeyPair>) {
    let client_key = key();
    let mut params = CertificateParams::new(vec!["terminal".into()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&client_key, issuer).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("cert.pem"), leaf.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), client_key.serialize_pem()).unwrap();
}

fn settings(
    ca: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: &KeyPair,
) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut settings = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf], key)
        .unwrap();
    settings.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    settings
}

const TOLD_WITHIN: Duration = Duration::from_millis(100);

/// How the server of a test behaves.
#[derive(Clone, Default)]
struct Manners {
    /// So many connections are closed before their handshake, after those of the regulars.
    refuses: std::ops::Range<usize>,
    /// Whoever is not heard for so long before its request is whole is closed.
    patience: Option<Duration>,
    /// A connection ends after so many requests; 0 for none.
    requests_max: usize,
}

struct TestServer {
    pki: Pki,
    address: SocketAddr,
    handshakes: Arc<AtomicUsize>,
    up: Arc<AtomicUsize>,
    revoked: Arc<AtomicBool>,
}

impl TestServer {
    async fn start(terminals: usize, manners: Manners) -> Self {
        let pki = Pki::new(terminals);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki.settings.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (handshakes, up) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let revoked = Arc::<AtomicBool>::default();
        let server = Self {
            pki,
            address,
            handshakes: Arc::clone(&handshakes),
            up: Arc::clone(&up),
            revoked: Arc::clone(&revoked),
        };
        tokio::spawn(async move {
            for number in 0.. {
                let (tcp, _) = listener.accept().await.unwrap();
                if manners.refuses.contains(&number) {
                    continue;
                }
                let (acceptor, handshakes) = (acceptor.clone(), Arc::clone(&handshakes));
                let (up, revoked) = (Arc::clone(&up), Arc::clone(&revoked));
                tokio::spawn(async move {
                    let patience = manners.patience.unwrap_or(Duration::from_secs(600));
                    let shaken = tokio::time::timeout(patience, acceptor.accept(tcp)).await;
                    let Ok(Ok(mut tls)) = shaken else { return };
                    handshakes.fetch_add(1, Ordering::SeqCst);
                    let mut requests = 0;
                    while let Ok(Some(body)) =
                        tokio::time::timeout(patience, answer(&mut tls, &revoked)).await
                    {
                        up.fetch_add(body, Ordering::SeqCst);
                        requests += 1;
                        if requests == manners.requests_max {
                            break;
                        }
                    }
                    // Whoever does not read can not be told in order.
                    let _ = tokio::time::timeout(TOLD_WITHIN, tls.shutdown()).await;
                });
            }
        });
        server
    }
}

/// Reads a request and answers it; gives back how long its body was.
async fn answer(
    tls: &mut tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    revoked: &AtomicBool,
) -> Option<usize> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let number = |before: &str| -> Option<usize> {
        let (_, after) = head.split_once(before)?;
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let body_bytes = number("content-length: ").unwrap_or_default();
    let mut body = vec![0; body_bytes];
    tls.read_exact(&mut body).await.ok()?;
    let wanted = number("?bytes=").unwrap_or(2);
    let status = if revoked.load(Ordering::SeqCst) { "403 Forbidden" } else { "200 OK" };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {wanted}\r\n\r\n");
    tls.write_all(head.as_bytes()).await.ok()?;
    tls.write_all(&vec![b'x'; wanted]).await.ok()?;
    tls.flush().await.ok()?;
    Some(body_bytes)
}

fn json(report: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(report).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_terminal_of_a_storm_shakes_hands_and_is_counted() {
    let server = TestServer::start(12, Manners::default()).await;
    let rest =
        format!("--established 3 --arrive-within-ms 100 --hold-max 4 --pid {}", std::process::id());
    let Command::Storm(args) = server.pki.command("storm", server.address, &rest) else {
        unreachable!("the line says `storm`")
    };
    let report = json(&storm::storm(&args).await.unwrap());
    assert_eq!((&report["terminals"], &report["answered"]), (&12.into(), &12.into()));
    assert_eq!(report["statuses"], serde_json::json!({"200": 12}));
    assert_eq!(report["time_to_answer"]["count"], 12);
    assert_eq!(report["retries"], 0);
    assert_eq!(report["established"]["failures"], serde_json::json!({}));
    assert!(report["established"]["before"]["count"].as_u64() > Some(3), "{report}");
    assert!(report["established"]["during"]["count"].as_u64() > Some(0), "{report}");
    assert!(report["cpu"]["seconds"].as_f64() > Some(0.0));
    assert_eq!(server.handshakes.load(Ordering::SeqCst), 12 + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_terminal_fails_or_tries_again_as_it_is_told() {
    for (tries, answered, failed) in [(1, 4, 2), (3, 6, 0)] {
        let server = TestServer::start(6, Manners { refuses: 1..3, ..Manners::default() }).await;
        let rest = format!("--established 1 --arrive-within-ms 0 --tries {tries}");
        let Command::Storm(args) = server.pki.command("storm", server.address, &rest) else {
            unreachable!("the line says `storm`")
        };
        let report = json(&storm::storm(&args).await.unwrap());
        assert_eq!(report["answered"], answered, "{report}");
        let failures = report["failures"].as_object().unwrap().values();
        assert_eq!(failures.filter_map(serde_json::Value::as_u64).sum::<u64>(), failed);
        assert_eq!(report["retries"], 2 - failed, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_files_than_permitted_are_refused_with_what_to_do() {
    check_files(1, "--connections").unwrap();
    let problem = check_files(files_max(), "--connections").unwrap_err().to_string();
    assert!(problem.contains("ulimit -n") && problem.contains("--connections"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_go_up_and_down_whole() {
    let server = TestServer::start(1, Manners::default()).await;
    let pid = std::process::id();
    for direction in ["up", "down"] {
        let rest = format!("--direction {direction} --bytes 3000000 --streams 2 --pid {pid}");
        let Command::Stream(args) = server.pki.command("stream", server.address, &rest) else {
            unreachable!("the line says `stream`")
        };
        let report = json(&stream::stream(&args).await.unwrap());
        assert_eq!(report["statuses"], serde_json::json!({"200": 2}), "{direction}");
        assert_eq!(report["failures"], serde_json::json!({}), "{direction}");
        assert!(report["mib_per_second"].as_f64() > Some(0.0));
        assert!(
            report["memory_bytes"]["peak"].as_u64() >= report["memory_bytes"]["before"].as_u64()
        );
    }
    assert_eq!(server.up.load(Ordering::SeqCst), 6_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_short_is_no_success() {
    let server = TestServer::start(1, Manners::default()).await;
    let rest = "--bytes 1000 --path /short";
    let Command::Stream(args) = server.pki.command("stream", server.address, rest) else {
        unreachable!("the line says `stream`")
    };
    let report = json(&stream::stream(&args).await.unwrap());
    assert_eq!(report["failures"], serde_json::json!({"2 bytes were answered": 1}));
    assert_eq!(report["mib_per_second"], 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_all_open_at_the_end() {
    let server = TestServer::start(2, Manners { refuses: 3..5, ..Manners::default() }).await;
    let rest = format!("--connections 10 --requests-first 1 --pid {}", std::process::id());
    let Command::Idle(args) = server.pki.command("idle", server.address, &rest) else {
        unreachable!("the line says `idle`")
    };
    let report = json(&idle::idle(&args).await.unwrap());
    assert_eq!(report["connections"], 8, "{report}");
    let failures = report["failures"].as_object().unwrap().values();
    assert_eq!(failures.filter_map(serde_json::Value::as_u64).sum::<u64>(), 2);
    assert!(report["memory_bytes"]["after"].as_u64() > Some(0));
    assert!(report["bytes_per_connection"].is_number());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_patience_for_a_moment_closes_slow_clients_and_serves_good_ones() {
    let patience = Some(Duration::from_millis(700));
    let server = TestServer::start(2, Manners { patience, ..Manners::default() }).await;
    let rest = "--slow 2 --good 1 --duration-s 6";
    let Command::SlowClients(args) = server.pki.command("slow-clients", server.address, rest)
    else {
        unreachable!("the line says `slow-clients`")
    };
    let report = json(&slow::slow(&args).await.unwrap());
    let kinds = report["kinds"].as_array().unwrap();
    assert_eq!(kinds.len(), 5);
    for kind in kinds {
        assert_eq!((&kind["started"], &kind["closed_by_server"]), (&2.into(), &2.into()), "{kind}");
        assert!(kind["median_seconds_to_close"].as_f64() >= Some(0.5), "{kind}");
    }
    for phase in ["alone", "beside"] {
        assert!(report[phase]["per_second"].as_f64() > Some(0.0), "{report}");
        assert_eq!(report[phase]["failures"], serde_json::json!({}), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_limits_closes_no_slow_client() {
    let server = TestServer::start(1, Manners::default()).await;
    let rest = "--slow 1 --good 1 --duration-s 2";
    let Command::SlowClients(args) = server.pki.command("slow-clients", server.address, rest)
    else {
        unreachable!("the line says `slow-clients`")
    };
    let report = json(&slow::slow(&args).await.unwrap());
    for kind in report["kinds"].as_array().unwrap() {
        assert_eq!((&kind["started"], &kind["closed_by_server"]), (&1.into(), &0.into()), "{kind}");
        assert!(kind["median_seconds_to_close"].is_null());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_go_on_after_a_close_and_end_with_the_refusal() {
    let server = TestServer::start(1, Manners { requests_max: 3, ..Manners::default() }).await;
    let Command::Idle(args) = server.pki.command("idle", server.address, "") else {
        unreachable!("the line says `idle`")
    };
    let world = World::open(&args.target).await.unwrap();
    for stays in [true, false] {
        server.revoked.store(false, Ordering::SeqCst);
        let before = server.handshakes.load(Ordering::SeqCst);
        let client = world.clients(1).unwrap().remove(0);
        let open = if stays { Some(client.connect(&world.server).await.unwrap()) } else { None };
        let clock = Arc::<revocation::Clock>::default();
        let poll = Duration::from_millis(1);
        let watcher = revocation::Watcher {
            server: Arc::clone(&world.server),
            client,
            clock: Arc::clone(&clock),
            poll,
            refused_within: Duration::from_secs(30),
        };
        let watching = tokio::spawn(watcher.watch(open));
        // Several connections, so that some have been closed under the watcher.
        while server.handshakes.load(Ordering::SeqCst) < before + 4 {
            tokio::time::sleep(poll).await;
        }
        assert!(!watching.is_finished(), "a close is no refusal");
        clock.0.set(std::time::Instant::now()).unwrap();
        let revoked_at = std::time::Instant::now();
        server.revoked.store(true, Ordering::SeqCst);
        let refused = watching.await.unwrap().unwrap();
        assert!(refused.is_some_and(|when| when >= revoked_at), "{stays}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_refused_before_it_is_revoked_is_an_error() {
    let server = TestServer::start(1, Manners::default()).await;
    server.revoked.store(true, Ordering::SeqCst);
    let rest = "--rounds 1 --revoke";
    let rest = format!("{rest} true{{serial}}");
    let Command::Revocation(args) = server.pki.command("revocation", server.address, &rest) else {
        unreachable!("the line says `revocation`")
    };
    let error = revocation::revocation(&args).await.err().map(|error| format!("{error:#}"));
    assert!(error.is_some_and(|error| error.contains("before it is revoked: status 403")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_on_serving_or_hangs_has_refused_nothing() {
    let server = TestServer::start(1, Manners::default()).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for address in [server.address, silent.local_addr().unwrap()] {
        let Command::Idle(args) = server.pki.command("idle", address, "") else {
            unreachable!("the line says `idle`")
        };
        let world = World::open(&args.target).await.unwrap();
        let clock = Arc::<revocation::Clock>::default();
        clock.0.set(std::time::Instant::now()).unwrap();
        let watcher = revocation::Watcher {
            server: Arc::clone(&world.server),
            client: world.clients(1).unwrap().remove(0),
            clock,
            poll: Duration::from_millis(1),
            refused_within: Duration::from_millis(200),
        };
        assert_eq!(watcher.watch(None).await.unwrap(), None, "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_terminals_of_a_storm_come_through_if_all_open_files_are_for_held_ones() {
    let server = TestServer::start(9, Manners::default()).await;
    let Command::Idle(args) = server.pki.command("idle", server.address, "") else {
        unreachable!("the line says `idle`")
    };
    let world = World::open(&args.target).await.unwrap();
    let storm = Arc::new(storm::Storm::new(Arc::clone(&world.server), 1, 2, 2));
    let clients = world.clients(9).unwrap();
    let arriving = storm::arrive(&storm, clients, Duration::ZERO);
    let arrived = tokio::time::timeout(Duration::from_secs(30), arriving).await;
    let (all, _) = arrived.expect("terminals wait for each other").unwrap();
    assert_eq!(all.answered, 9);
}

/// A server of HTTP/1.1 and HTTP/2 that refuses a terminal once `revoked/SERIAL` exists.
async fn revoking_server(pki: &Pki) -> SocketAddr {
    let mut settings = pki.settings.clone();
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(settings));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let revoked = pki.dir.path().join("revoked");
    std::fs::create_dir(&revoked).unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, revoked) = (acceptor.clone(), revoked.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let session = tls.get_ref().1;
                let leaf = session.peer_certificates().unwrap()[0].clone();
                let is_two = session.alpn_protocol() == Some(b"h2");
                let mark = revoked.join(hex::encode(revocation::serial_of(&leaf).unwrap()));
                let service = hyper::service::service_fn(move |_| {
                    let status = if mark.exists() { 403 } else { 200 };
                    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"ok"));
                    let answer = http::Response::builder().status(status).body(body).unwrap();
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                let io = hyper_util::rt::TokioIo::new(tls);
                // Clients end their connections as they like.
                if is_two {
                    let executor = hyper_util::rt::TokioExecutor::new();
                    let served = hyper::server::conn::http2::Builder::new(executor);
                    let _ = served.serve_connection(io, service).await;
                } else {
                    let served = hyper::server::conn::http1::Builder::new();
                    let _ = served.serve_connection(io, service).await;
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_timed_on_all_three_ways_from_the_start_of_the_command() {
    let pki = Pki::new(2);
    let address = revoking_server(&pki).await;
    let dir = pki.dir.path().display();
    // The mark is made after a while, and the command goes on for a while after it.
    let script = format!("sleep 0.2; : > {dir}/revoked/$1; sleep 0.2");
    std::fs::write(pki.dir.path().join("revoke.sh"), script).unwrap();
    let rest = "--rounds 2 --poll-us 500";
    let Command::Revocation(mut args) =
        pki.command("revocation", address, &format!("{rest} --revoke {{serial}}"))
    else {
        unreachable!("the line says `revocation`")
    };
    args.revoke = format!("sh {dir}/revoke.sh {{serial}}");
    let report = json(&revocation::revocation(&args).await.unwrap());
    assert_eq!((&report["revoked"], &report["not_refused"]), (&2.into(), &0.into()), "{report}");
    for way in ["live_http1", "live_http2", "resumed"] {
        assert_eq!(report[way]["count"], 2, "{report}");
        assert!(report[way]["p50_us"].as_u64() >= Some(195_000), "{way}: {report}");
    }
    assert!(report["command"]["p50_us"].as_u64() >= Some(390_000), "{report}");
}
