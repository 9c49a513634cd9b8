//! Issue 6 point 2: which certificate a client is shown, by the name that it asks for (SNI).

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{Client, Party, Setup, World, pem};
use crate::reload::reload;
use crate::{CARD, code, office};

/// A gateway that listens for its operator.
async fn world(dir: &Path) -> World {
    let socket = dir.join("control.sock");
    let top = format!("control_socket = \"{}\"\n", socket.display()).leak();
    World::start_with(Setup { top, ..Setup::default() }).await
}

fn put(world: &World, name: &str, server: &Party) {
    world.replace(&format!("{name}.key"), pem("PRIVATE KEY", server.key.secret_der()).as_bytes());
    world.replace(&format!("{name}.pem"), pem("CERTIFICATE", &server.chain[0]).as_bytes());
}

/// Names the files in the configuration.
fn configure(world: &World, names: &[&str]) {
    let path = world.dir.path().join("gateway.toml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let dir = world.dir.path().display();
    for name in names {
        text += &format!(
            "\n[[sni_certificates]]\n\
             certificate = \"{dir}/{name}.pem\"\nkey = \"{dir}/{name}.key\"\n"
        );
    }
    std::fs::write(path, text).unwrap();
}

/// A connection of a client that asks for `name`.
async fn asking(world: &World, party: &Party, name: &str) -> std::io::Result<Client> {
    let config = Arc::new(world.client_config(Some(party)));
    let tcp = TcpStream::connect(world.public).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    Ok(Client::of(TlsConnector::from(config).connect(name, tcp).await?))
}

async fn status(client: &mut Client, host: &str, headers: &str) -> (u16, String) {
    let request = format!("GET {CARD} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    let reply = client.raw(&request).await.unwrap();
    (reply.status, code(&reply).to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path()).await;
    let (party, headers) = office(&world, 1).await;
    let [kaigo, any] = [("kaigo.example", 91), ("*.kaigo.example", 92)]
        .map(|(name, serial)| world.pki.server_named(name, serial));
    put(&world, "kaigo", &kaigo);
    put(&world, "any", &any);
    assert!(asking(&world, &party, "kaigo.example").await.is_err(), "not there yet");
    configure(&world, &["kaigo", "any"]);
    assert_eq!(reload(dir.path()).await.0, 200);
    let first = world.client(&party).await.server_certificate();
    let shown = |client: &Client| -> CertificateDer<'static> { client.server_certificate() };
    for (name, expected) in [
        ("kaigo.example", &kaigo.chain[0]),
        ("KAIGO.example", &kaigo.chain[0]),
        ("office.kaigo.example", &any.chain[0]),
        ("localhost", &first),
    ] {
        let mut client = asking(&world, &party, name).await.unwrap();
        assert_eq!(shown(&client), *expected, "{name}");
        assert_eq!(status(&mut client, name, &headers).await.0, 200, "{name}");
    }
    // Nobody's name, or no name: the first certificate, which the client then does not take.
    assert!(asking(&world, &party, "other.example").await.is_err());
    assert!(asking(&world, &party, "a.b.kaigo.example").await.is_err(), "a wildcard is one label");
    let mut config = world.client_config(Some(&party));
    config.enable_sni = false;
    let silent = world.connect(Arc::new(config)).await.unwrap();
    assert_eq!(shown(&silent), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_for_the_name_that_its_connection_was_shown() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path()).await;
    let (party, headers) = office(&world, 1).await;
    put(&world, "kaigo", &world.pki.server_named("kaigo.example", 91));
    configure(&world, &["kaigo"]);
    assert_eq!(reload(dir.path()).await.0, 200);
    for (shown, host) in [("kaigo.example", "localhost"), ("localhost", "kaigo.example")] {
        let mut client = asking(&world, &party, shown).await.unwrap();
        let refused = (400, "bad_request".to_owned());
        assert_eq!(status(&mut client, host, &headers).await, refused, "{host} on {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_further_certificate_changes_nothing_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path()).await;
    let (party, _) = office(&world, 1).await;
    let (one, other) =
        (world.pki.server_named("one.example", 91), world.pki.server_named("two.example", 92));
    put(&world, "one", &one);
    configure(&world, &["one"]);
    assert_eq!(reload(dir.path()).await.0, 200);
    // Its key is another's now.
    world.replace("one.key", pem("PRIVATE KEY", other.key.secret_der()).as_bytes());
    let (status, body) = reload(dir.path()).await;
    let problems = body["problems"].to_string();
    assert_eq!(status, 422, "{problems}");
    assert!(problems.contains("sni_certificates.key"), "{problems}");
    assert!(problems.contains("does not fit `sni_certificates.certificate`"), "{problems}");
    let client = asking(&world, &party, "one.example").await.unwrap();
    assert_eq!(client.server_certificate(), one.chain[0], "the one before stays");
}
