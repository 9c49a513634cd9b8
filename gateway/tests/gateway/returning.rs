//! Terminals that come back: their chain is remembered, and nothing else about them.

use std::sync::Arc;

use policies::feed::Fact;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;

use crate::harness::{OFFICE, Party, World, now};
use crate::{CARD, office};

/// How often a chain was looked up and found, and how often not.
async fn lookups(world: &World) -> (u64, u64) {
    let metrics = world.admin_get("/metrics").await;
    let count = |result: &str| {
        let name = format!("sekisho_chain_cache_total{{result=\"{result}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.and_then(|count| count.parse().ok()).unwrap()
    };
    (count("hit"), count("miss"))
}

/// Full handshakes only.
fn without_tickets(world: &World, party: &Party) -> Arc<rustls::ClientConfig> {
    let mut config = world.client_config(Some(party));
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_verified_once_and_revocation_is_looked_at_each_time() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let config = without_tickets(&world, &party);
    for n in 0..3 {
        let mut client = world.connect(config.clone()).await.unwrap();
        assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
        assert!(!client.was_resumed());
        assert_eq!(lookups(&world).await, (n, 1));
    }
    world.ca.send(Fact::Revoked { serial: party.serial.parse().unwrap(), at: now() });
    world.refused(config, "revoked").await;
    let (hits, misses) = lookups(&world).await;
    assert!(hits >= 3 && misses == 1, "it was remembered when it was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_looks_its_chain_up_too() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let config = Arc::new(world.client_config(Some(&party)));
    for (resumed, expected) in [(false, (0, 1)), (true, (1, 1)), (true, (2, 1))] {
        let mut client = world.connect(config.clone()).await.unwrap();
        assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
        assert_eq!((client.was_resumed(), lookups(&world).await), (resumed, expected));
    }
}

/// Who has a certificate, which is no secret, and not its key.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesClientCert for Thief {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_without_its_key_is_not_remembered() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let other = world.pki.client(&format!("office/{OFFICE}/terminal/other"), 2);
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&other.key).unwrap();
    let stolen = CertifiedKey::new(party.chain.clone(), key);
    let mut config = world.client_config(None);
    config.client_auth_cert_resolver = Arc::new(Thief(Arc::new(stolen)));
    config.resumption = Resumption::disabled();
    world.refused(Arc::new(config), "not_the_holder").await;
    let log = world.audit_with(r#""reason":"not_the_holder""#).await;
    assert!(log.contains(&party.serial) && log.contains("terminal/front-1"), "{log}");

    let (_, before) = lookups(&world).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    assert_eq!(lookups(&world).await, (0, before + 1), "the thief's attempt left it behind");
}
