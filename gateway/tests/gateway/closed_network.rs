//! Point 9: the second listener, on the closed network, with limits of its own, and what the policy
//! and the records make of it.

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::harness::{Client, Party, Reply, Setup, World};
use crate::{CARD, code, office};

const OVERLAY: &str = "source = \"運用会議 2026-04-01\"\nnetworks = [\"closed\"]\n\
                       [applies-to]\nevery-office = true\n";

const CASES: &str = r#"[{
  "name": "by the internet it is closed",
  "principal": "office/1370000001", "service_types": ["43"], "job": "care-manager",
  "request": "GET /v1/insured/131016/0000000001/documents/insured-card",
  "at": "2026-04-06T10:00", "network": "open", "facts": ["live", "registered"],
  "decision": "deny", "reasons": ["address_not_allowed"]
}, {
  "name": "by the closed network it is open",
  "principal": "office/1370000001", "service_types": ["43"], "job": "care-manager",
  "request": "GET /v1/insured/131016/0000000001/documents/insured-card",
  "at": "2026-04-06T10:00", "network": "closed", "facts": ["live", "registered"],
  "decision": "allow"
}]"#;

async fn world(policy: &std::path::Path) -> World {
    std::fs::create_dir_all(policy.join("overlays")).unwrap();
    std::fs::write(policy.join("overlays/closed-only.toml"), OVERLAY).unwrap();
    std::fs::write(policy.join("tests.json"), CASES).unwrap();
    let tables = format!(
        "\n[policy]\ndir = \"{}\"\n[closed_network]\nlisten = \"127.0.0.1:0\"\n\
         [closed_network.limits]\nconnections_per_address_max = 1\n",
        policy.display()
    );
    World::start_with(Setup { tables, ..Setup::default() }).await
}

async fn closed(world: &World, party: &Party) -> std::io::Result<Client> {
    let tcp = TcpStream::connect(world.closed.unwrap()).await?;
    let config = Arc::new(world.client_config(Some(party)));
    Ok(Client::of(world.tls_on(tcp, config).await?))
}

async fn get(client: &mut Client, headers: &str) -> Reply {
    client.get(CARD, headers).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_can_ask_for_the_closed_network_and_the_record_says_it() {
    let policy = tempfile::tempdir().unwrap();
    let world = world(policy.path()).await;
    let (party, headers) = office(&world, 1).await;
    let mut open = world.client(&party).await;
    let reply = get(&mut open, &headers).await;
    assert_eq!((reply.status, code(&reply)), (403, "address_not_allowed"));
    let log = world.audit_with("address_not_allowed").await;
    assert!(!log.contains(r#""network""#), "the internet needs no word");
    let mut inside = closed(&world, &party).await.unwrap();
    let reply = get(&mut inside, &headers).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    world.audit_with(r#""network":"closed""#).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_limits_of_its_own() {
    let policy = tempfile::tempdir().unwrap();
    let world = world(policy.path()).await;
    let (party, headers) = office(&world, 1).await;
    let mut first = closed(&world, &party).await.unwrap();
    assert_eq!(get(&mut first, &headers).await.status, 200);
    assert!(closed(&world, &party).await.is_err(), "one for each address");
    for _ in 0..3 {
        let mut open = world.client(&party).await;
        assert_eq!(get(&mut open, &headers).await.status, 403, "served, and decided");
    }
}
