//! Failed handshakes: each is told in words, with the certificate where there was one, and counted
//! by reason. (How a flood of them is told: `floods`.)

use std::process::{Command, Stdio};
use std::sync::Arc;

use audit_log::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{OFFICE, Party, Pki, Setup, World};
use crate::live_swap::counted;

/// What the log says of a failed handshake: words, and the certificate's serial and office.
async fn told(world: &World, wanted: &str) -> (String, Option<String>, Option<String>) {
    let find = |events: &[Event]| {
        events.iter().find_map(|event| {
            let Event::HandshakeFailed { reason, detail, client_addr, actor } = event else {
                return None;
            };
            assert!(client_addr.starts_with("127.0.0.1:"), "{client_addr}");
            let serial = actor.as_ref().and_then(|actor| actor.serial.clone());
            let office = actor.as_ref().and_then(|actor| actor.office.clone());
            (reason == wanted).then(|| (detail.clone(), serial, office))
        })
    };
    let events = world.events_when(|events| find(events).is_some()).await;
    counted(world, &format!("sekisho_handshakes_total{{outcome=\"{wanted}\"}}"), "1").await;
    find(&events).unwrap()
}

async fn attempt(world: &World, party: &Party) {
    let config = Arc::new(world.client_config(Some(party)));
    if let Ok(mut client) = world.connect(config).await {
        assert!(client.get("/v1/registrations", "").await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_does_not_do_is_told_with_serial_and_office() {
    let world = World::start().await;
    let path = format!("office/{OFFICE}/terminal/front-1");
    let foreign = Pki::new("Foreign CA").client(&path, 1);
    let expired = world.pki.client_between(&path, 2, (2015, 2020));
    let future = world.pki.client_between(&path, 3, (2090, 2095));
    for (party, reason, words) in [
        (&foreign, "unknown_issuer", "unknown issuer `CN=Foreign CA`"),
        (&expired, "expired", "expired 2020-01-01"),
        (&future, "not_yet_valid", "not valid before 2090-01-01"),
    ] {
        attempt(&world, party).await;
        let expected = (words.to_owned(), Some(party.serial.clone()), Some(OFFICE.to_owned()));
        assert_eq!(told(&world, reason).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_shows_no_certificate_is_told_by_what_it_did() {
    let limits = "handshake_timeout_ms = 1000";
    let world = World::start_with(Setup { limits, ..Setup::default() }).await;
    let address = world.public.to_string();
    for (arguments, reason, words) in [
        (&["-tls1_2"][..], "tls_version", "client offered TLS 1.2 only"),
        (&["-groups", "P-521"], "no_common_group", "client offered no key exchange group that is"),
        (
            &["-ciphersuites", "TLS_AES_128_CCM_SHA256"],
            "no_common_suite",
            "client offered no cipher suite that is spoken here",
        ),
        (&["-tls1_3"], "no_certificate", "client sent no certificate"),
    ] {
        let (address, arguments) = (address.clone(), arguments.to_vec());
        let client = tokio::task::spawn_blocking(move || {
            let mut openssl = Command::new("openssl");
            let openssl = openssl.args(["s_client", "-connect", &address, "-ign_eof"]);
            let openssl = openssl.args(arguments).stdin(Stdio::null());
            openssl.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
        });
        assert!(!client.await.unwrap().success(), "{reason}: openssl was content");
        let (detail, serial, office) = told(&world, reason).await;
        assert!(detail.starts_with(words), "{detail}");
        assert_eq!((serial, office), (None, None));
    }

    let mut plain = TcpStream::connect(world.public).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let _ = plain.read_to_end(&mut Vec::new()).await;
    assert_eq!(told(&world, "not_tls").await.0, "client did not speak TLS");

    // The beginning of a hello, and nothing more.
    let mut slow = TcpStream::connect(world.public).await.unwrap();
    slow.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(told(&world, "timeout").await.0, "handshake not done within 1000 ms");

    let mut gone = TcpStream::connect(world.public).await.unwrap();
    gone.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    drop(gone);
    told(&world, "connection_lost").await;

    // A client that does not trust us says so.
    let stranger = Pki::new("Another root");
    let party = world.pki.client(&format!("office/{OFFICE}/terminal/front-1"), 1);
    let config = Arc::new(World::client_config_trusting(&stranger, Some(&party)));
    assert!(world.connect(config).await.is_err());
    assert!(told(&world, "alert_received").await.0.starts_with("client refused: "));
}
