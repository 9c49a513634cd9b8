//! Server certificate, key and trust bundle swapped under a running gateway: whole, or not at all.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Name};

use crate::harness::{OFFICE, Party, Pki, World, pem};
use crate::{CARD, office};

const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until new connections are answered with `expected`.
async fn served(world: &World, party: &Party, expected: &CertificateDer<'_>) {
    let start = Instant::now();
    loop {
        let client = world.client(party).await;
        if client.server_certificate() == *expected {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the certificate was never swapped");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the metric, with its labels, stands at `expected`.
pub async fn counted(world: &World, metric: &str, expected: &str) {
    let (start, line) = (Instant::now(), format!("{metric} {expected}"));
    loop {
        let metrics = world.admin_get("/metrics").await;
        if metrics.lines().any(|it| it == line) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "never `{line}`: {metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const REFUSED: &str = "sekisho_certificate_loads_total{outcome=\"refused\"}";
const LOADED: &str = "sekisho_certificate_loads_total{outcome=\"loaded\"}";

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_server_certificate_is_served_and_sessions_go_on() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let config = Arc::new(world.client_config(Some(&party)));
    let mut open = world.connect(config.clone()).await.unwrap();
    assert_eq!(open.get(CARD, &headers).await.unwrap().status, 200);
    let renewed = world.pki.server(98);
    world.replace("server.key", pem("PRIVATE KEY", renewed.key.secret_der()).as_bytes());
    world.replace("server.pem", pem("CERTIFICATE", &renewed.chain[0]).as_bytes());
    served(&world, &party, &renewed.chain[0]).await;
    counted(&world, LOADED, "1").await;
    // rcgen's default, 4096-01-01.
    counted(&world, "sekisho_server_certificate_not_after_seconds", "67090118400").await;
    assert_eq!(open.get(CARD, &headers).await.unwrap().status, 200, "it was cut");
    let mut resumed = world.connect(config).await.unwrap();
    assert_eq!(resumed.get(CARD, &headers).await.unwrap().status, 200);
    assert!(resumed.was_resumed(), "ticket keys were lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_is_refused_and_the_last_good_one_kept() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let before = world.client(&party).await.server_certificate();
    let other = world.pki.server(98);
    let expired = world.pki.server_until(97, 2020);
    let key = |party: &Party| pem("PRIVATE KEY", party.key.secret_der());
    let certificate = |party: &Party| pem("CERTIFICATE", &party.chain[0]);
    let good = std::fs::read(world.dir.path().join("server.pem")).unwrap();
    let own_key = std::fs::read(world.dir.path().join("server.key")).unwrap();
    let anchors = std::fs::read(world.dir.path().join("issuing.pem")).unwrap();
    let mut refused = 0;
    for (what, file, bytes, back) in [
        ("a key of another certificate", "server.pem", certificate(&other), &good),
        ("no certificate", "server.pem", "hello".to_owned(), &good),
        ("half a certificate", "server.pem", certificate(&other)[..300].to_owned(), &good),
        ("another's key", "server.key", key(&other), &own_key),
        ("an empty bundle", "issuing.pem", String::new(), &anchors),
        ("a broken bundle", "issuing.pem", pem("CERTIFICATE", b"nothing"), &anchors),
    ] {
        world.replace(file, bytes.as_bytes());
        refused += 1;
        counted(&world, REFUSED, &refused.to_string()).await;
        let mut client = world.client(&party).await;
        assert_eq!(client.server_certificate(), before, "{what}");
        assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200, "{what}");
        world.replace(file, back);
        // One look at what is good, so that the next refusal is a new one.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.replace("server.key", key(&expired).as_bytes());
    world.replace("server.pem", certificate(&expired).as_bytes());
    let start = Instant::now();
    while !world.admin_get("/metrics").await.contains(REFUSED) {
        assert!(start.elapsed() < PATIENCE);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.client(&party).await.server_certificate(), before, "an expired one is served");
    counted(&world, LOADED, "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_leaves_the_bundle_takes_its_clients_with_it_and_no_others() {
    let world = World::start().await;
    let (kept, headers) = office(&world, 1).await;
    let next = Pki::new("Next issuing CA");
    let both = format!("{}{}", world.pki.ca_pem, next.ca_pem);
    world.replace("issuing.pem", both.as_bytes());
    counted(&world, LOADED, "1").await;
    let party = next.client(&format!("office/{OFFICE}/terminal/front-2"), 2);
    let token = world.token(&party, "s1", crate::now() + 600);
    let its_headers = crate::bearer(&token);
    let config = Arc::new(world.client_config(Some(&party)));
    let mut open = world.connect(config.clone()).await.unwrap();
    assert_eq!(open.get(CARD, &its_headers).await.unwrap().status, 200);
    let mut resumed = world.connect(config.clone()).await.unwrap();
    assert_eq!(resumed.get(CARD, &its_headers).await.unwrap().status, 200);
    assert!(resumed.was_resumed());
    let mut bystander = world.client(&kept).await;
    assert_eq!(bystander.get(CARD, &headers).await.unwrap().status, 200);

    world.replace("issuing.pem", world.pki.ca_pem.as_bytes());
    counted(&world, LOADED, "2").await;
    assert!(open.get(CARD, &its_headers).await.is_err(), "an open connection was kept");
    assert!(resumed.get(CARD, &its_headers).await.is_err(), "an open connection was kept");
    // The ticket is as good as before: what is refused is the chain.
    world.refused(config, "unknown_issuer").await;
    let log = world.audit_with(r#""reason":"unknown_issuer""#).await;
    assert!(log.contains("unknown issuer `CN=Next issuing CA`"), "{log}");
    assert!(log.contains(&party.serial), "{log}");
    assert_eq!(bystander.get(CARD, &headers).await.unwrap().status, 200, "a bystander was cut");
}

/// Notes the names that the gateway gives to choose a certificate by.
#[derive(Debug, Default)]
struct Hints(Mutex<Vec<Vec<u8>>>);

impl ResolvesClientCert for Hints {
    fn resolve(
        &self,
        hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        *self.0.lock().unwrap() = hints.iter().map(|hint| hint.to_vec()).collect();
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_which_cas_count_now() {
    let world = World::start().await;
    let next = Pki::new("Next issuing CA");
    for (at, expected) in [(0, vec!["CN=Test issuing CA"]), (1, vec!["CN=Next issuing CA"])] {
        if at > 0 {
            world.replace("issuing.pem", next.ca_pem.as_bytes());
            counted(&world, LOADED, "1").await;
        }
        let hints = Arc::new(Hints::default());
        let mut config = world.client_config(None);
        config.client_auth_cert_resolver = hints.clone();
        if let Ok(mut client) = world.connect(Arc::new(config)).await {
            assert!(client.get(CARD, "").await.is_err());
        }
        let told = hints.0.lock().unwrap().clone();
        let told: Vec<String> =
            told.iter().map(|hint| X509Name::from_der(hint).unwrap().1.to_string()).collect();
        assert_eq!(told, expected);
    }
}
