//! Point 9: another configuration under the running gateway, whole or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::harness::{Client, Party, Setup, World, pem};
use crate::live_swap::counted;
use crate::{CARD, code, office};

/// The gateway listens for its operator, and serves two connections of an address.
async fn world(dir: &Path) -> World {
    let socket = dir.join("control.sock");
    let top = format!("control_socket = \"{}\"\n", socket.display()).leak();
    let limits = "connections_per_address_max = 2\nrequest_header_bytes_max = 4096";
    World::start_with(Setup { top, limits, ..Setup::default() }).await
}

fn file(world: &World) -> PathBuf {
    world.dir.path().join("gateway.toml")
}

/// Puts `is` in the place of `was` in the configuration.
pub fn change(world: &World, was: &str, is: &str) {
    let text = std::fs::read_to_string(file(world)).unwrap();
    assert!(text.contains(was), "{was}");
    std::fs::write(file(world), text.replace(was, is)).unwrap();
}

/// A connection, if the gateway takes one more.
async fn another(world: &World, party: &Party) -> Option<Client> {
    world.connect(Arc::new(world.client_config(Some(party)))).await.ok()
}

/// `POST /reload`: status and body.
pub async fn reload(dir: &Path) -> (u16, Value) {
    let mut socket = UnixStream::connect(dir.join("control.sock")).await.unwrap();
    let request = "POST /reload HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

fn problems(body: &Value) -> String {
    let lines = body["problems"].as_array().unwrap().iter();
    lines.map(|line| line.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn other_limits_are_taken_and_count_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path()).await;
    let (party, headers) = office(&world, 1).await;
    let mut first = world.client(&party).await;
    let mut second = world.client(&party).await;
    assert_eq!(second.get(CARD, &headers).await.unwrap().status, 200);
    assert!(another(&world, &party).await.is_none(), "a third connection of this address");

    change(&world, "connections_per_address_max = 2", "connections_per_address_max = 3");
    let (status, body) = reload(dir.path()).await;
    assert_eq!((status, &body["changed"][0]), (200, &"limits.connections_per_address_max".into()));
    assert_eq!(first.get(CARD, &headers).await.unwrap().status, 200, "the connection stays");
    let mut third = another(&world, &party).await.unwrap();
    assert_eq!(third.get(CARD, &headers).await.unwrap().status, 200);
    assert!(another(&world, &party).await.is_none(), "those from before are counted");

    // What is read from a new connection is held to the new limit; the older ones keep theirs.
    let long = format!("{headers}X-Long: {}\r\n", "a".repeat(3_000));
    change(&world, "request_header_bytes_max = 4096", "request_header_bytes_max = 2048");
    assert_eq!(reload(dir.path()).await.0, 200);
    assert_eq!(third.get(CARD, &long).await.unwrap().status, 200);
    drop(first);
    let mut fourth = loop {
        if let Some(client) = another(&world, &party).await {
            break client;
        }
    };
    let reply = fourth.get(CARD, &long).await.unwrap();
    assert_eq!((reply.status, code(&reply)), (400, "bad_request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_part_keeps_the_whole_from_being_taken() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path()).await;
    let (party, headers) = office(&world, 1).await;
    let mut open = [world.client(&party).await, world.client(&party).await];
    change(&world, "connections_per_address_max = 2", "connections_per_address_max = 9");
    let good = std::fs::read_to_string(file(&world)).unwrap();
    let written = |text: String| std::fs::write(file(&world), text).unwrap();
    let id = "id = \"gw-1\"";
    let other = world.pki.server(98).key;
    world.replace("other.key", pem("PRIVATE KEY", other.secret_der()).as_bytes());
    let (key, other_key) = ("server.key\"", "other.key\"");
    let no_policy = "\n[policy]\ndir = \"/nonexistent\"\n";
    for (bad, words) in [
        (format!("nonsense = 1\n{good}"), vec!["line 1", "nonsense"]),
        (
            format!("{good}\nhello_timeout_ms = 0\nh2_streams_max = 0"),
            vec!["limits.hello_timeout_ms", "limits.h2_streams_max"],
        ),
        (good.replace(id, "id = \"gw-2\""), vec!["`id`", "gateway upgrade"]),
        (good.replace(key, other_key), vec!["server_key", "does not fit"]),
        (format!("{good}{no_policy}"), vec!["policy.dir", "/nonexistent"]),
    ] {
        written(bad);
        let (status, body) = reload(dir.path()).await;
        let told = problems(&body);
        assert_eq!(status, 422, "{told}");
        for word in words {
            assert!(told.contains(word), "{word} is not in: {told}");
        }
        assert!(another(&world, &party).await.is_none(), "the limit was taken by itself: {told}");
    }
    for client in &mut open {
        assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    }
    written(good);
    assert_eq!(reload(dir.path()).await.0, 200);
    let mut more = another(&world, &party).await.unwrap();
    assert_eq!(more.get(CARD, &headers).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_files_of_other_names_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path()).await;
    let put = |party: &Party| {
        world.replace("next.key", pem("PRIVATE KEY", party.key.secret_der()).as_bytes());
        world.replace("next.pem", pem("CERTIFICATE", &party.chain[0]).as_bytes());
    };
    let server = world.pki.server(77);
    put(&server);
    change(&world, "server.pem", "next.pem");
    change(&world, "server.key", "next.key");
    let (status, body) = reload(dir.path()).await;
    let changed = ["server_certificate", "server_key"].map(Value::from);
    assert_eq!((status, body["changed"].as_array().unwrap().as_slice()), (200, &changed[..]));
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    assert_eq!(client.server_certificate(), server.chain[0]);
    // Files under their new names are looked after like those before.
    put(&world.pki.server(76));
    counted(&world, "sekisho_certificate_loads_total{outcome=\"loaded\"}", "2").await;
}
