//! Point 1: who may begin, how many at a time and in a second, and where they are when a balancer
//! stands in front.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Client, OFFICE, Party, Setup, World, now};
use crate::{CARD, bearer, code, office};

const FROM_HERE: &str = "proxy_protocol_from = [\"127.0.0.1/32\"]\n";
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2: command and family as given, then the addresses and what else follows.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[0x20 | command, family], &length, rest].concat()
}

/// One that says that the client is at `source`.
fn proxied(source: &str) -> Vec<u8> {
    let source: SocketAddr = source.parse().unwrap();
    let ports = [source.port().to_be_bytes(), 8443_u16.to_be_bytes()].concat();
    match source.ip() {
        IpAddr::V4(ip) => header(1, 0x11, &[&ip.octets()[..], &[192, 0, 2, 1], &ports].concat()),
        IpAddr::V6(ip) => header(1, 0x21, &[&ip.octets()[..], &[0; 16], &ports].concat()),
    }
}

/// Sends `first` before the handshake.
async fn connect(world: &World, party: &Party, first: &[u8]) -> io::Result<Client> {
    let mut tcp = TcpStream::connect(world.public).await?;
    tcp.write_all(first).await?;
    let config = Arc::new(world.client_config(Some(party)));
    Ok(Client::of(world.tls_on(tcp, config).await?))
}

async fn served(world: &World, party: &Party, headers: &str, first: &[u8]) -> bool {
    let Ok(mut client) = connect(world, party, first).await else { return false };
    client.get(CARD, headers).await.is_ok_and(|reply| reply.status == 200)
}

fn metric(outcome: &str, count: u32) -> String {
    format!("sekisho_handshakes_total{{outcome=\"{outcome}\"}} {count}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_balancer_says_where_the_client_is() {
    let world = World::start_with(Setup { top: FROM_HERE, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    for (first, shown) in [
        (proxied("203.0.113.9:4711"), "203.0.113.9:4711"),
        (proxied("[2001:db8::7]:4712"), "[2001:db8::7]:4712"),
        // What a cloud adds behind the addresses (PP2_TYPE_NOOP) changes nothing.
        (
            header(1, 0x11, &[198, 51, 100, 3, 192, 0, 2, 1, 0, 80, 1, 187, 4, 0, 2, 7, 7]),
            "198.51.100.3:80",
        ),
    ] {
        assert!(served(&world, &party, &headers, &first).await, "{shown}");
        world.audit_with(&format!("\"client_addr\":\"{shown}\"")).await;
    }
    // Its own checks carry no address.
    assert!(served(&world, &party, &headers, &header(0, 0, &[])).await);
    world.audit_with("\"client_addr\":\"127.0.0.1:").await;
    // However slowly it comes.
    let mut tcp = TcpStream::connect(world.public).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    for byte in proxied("203.0.113.10:1") {
        tcp.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let config = Arc::new(world.client_config(Some(&party)));
    let mut client = Client::of(world.tls_on(tcp, config).await.unwrap());
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_balancer_that_does_not_say_it_is_refused() {
    let limits = "hello_timeout_ms = 300";
    let world = World::start_with(Setup { top: FROM_HERE, limits, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let mut cut_short = proxied("203.0.113.9:4711");
    cut_short[15] = 8;
    cut_short.truncate(24);
    let bad = [
        Vec::new(),
        b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 8443\r\n".to_vec(),
        header(1, 0x31, &[0; 216]),
        header(1, 0x00, &[]),
        header(2, 0x11, &[0; 12]),
        header(1, 0x11, &[0; 4_000]),
        cut_short,
    ];
    for first in &bad {
        assert!(!served(&world, &party, &headers, first).await, "{first:?}");
    }
    world.metric(&metric("proxy_header", u32::try_from(bad.len()).unwrap())).await;
    // Half a header, and then silence.
    let mut tcp = TcpStream::connect(world.public).await.unwrap();
    tcp.write_all(&SIGNATURE).await.unwrap();
    assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0);
    world.metric(&metric("no_hello", 1)).await;
    assert!(served(&world, &party, &headers, &proxied("203.0.113.9:1")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_say_where_they_are() {
    let top = "proxy_protocol_from = [\"10.0.0.0/8\"]\n";
    let world = World::start_with(Setup { top, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    assert!(!served(&world, &party, &headers, &proxied("203.0.113.9:4711")).await);
    assert!(served(&world, &party, &headers, &[]).await);
    let log = world.audit_with("\"decision\":\"allow\"").await;
    assert!(!log.contains("203.0.113.9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_for_each_client_behind_a_balancer_and_in_all() {
    let limits = "connections_per_address_max = 2\nconnections_max = 4";
    let world = World::start_with(Setup { top: FROM_HERE, limits, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let mut open = Vec::new();
    // Two of one address, and two of one network of 64 bits.
    for source in ["203.0.113.9:1", "203.0.113.9:2", "[2001:db8::1]:1", "[2001:db8::2]:1"] {
        let mut client = connect(&world, &party, &proxied(source)).await.unwrap();
        assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200, "{source}");
        open.push(client);
    }
    assert!(!served(&world, &party, &headers, &proxied("198.51.100.1:1")).await, "in all");
    open.pop();
    until(async || served(&world, &party, &headers, &proxied("198.51.100.1:1")).await).await;
    let of_address = proxied("203.0.113.9:3");
    assert!(!served(&world, &party, &headers, &of_address).await, "of one address");
    open.remove(0);
    until(async || served(&world, &party, &headers, &of_address).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_limited_in_a_second_for_each_address() {
    let limits = "handshakes_per_second_per_address_max = 3";
    let world = World::start_with(Setup { top: FROM_HERE, limits, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let (busy, other) = (proxied("203.0.113.9:1"), proxied("203.0.113.10:1"));
    let mut refused = 0;
    while refused == 0 {
        let go = || served(&world, &party, &headers, &busy);
        let served = tokio::join!(go(), go(), go(), go(), go(), go(), go(), go());
        refused = <[bool; 8]>::from(served).iter().filter(|served| !**served).count();
    }
    world.metric(&metric("over_rate", u32::try_from(refused).unwrap())).await;
    assert!(served(&world, &party, &headers, &other).await, "another address is not concerned");
    // A second later it may again.
    until(async || served(&world, &party, &headers, &busy).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_limited_in_a_second_for_each_party() {
    let limits = "requests_per_second_per_party_max = 5";
    let world = World::start_with(Setup { limits, ..Setup::default() }).await;
    let (party, headers) = office(&world, 1).await;
    let second = world.pki.client(&format!("office/{OFFICE}/terminal/front-2"), 2);
    let second_headers = bearer(&world.token(&second, "s2", now() + 600));
    let other = world.pki.client("municipality/131016/terminal/desk-1", 3);
    let mut clients = [world.client(&party).await, world.client(&second).await];
    let mut other = world.client(&other).await;
    // Both terminals of the office together: what one takes the other has not.
    let reply = loop {
        let mut last = None;
        for (client, headers) in clients.iter_mut().zip([&headers, &second_headers]) {
            last = Some(client.get(CARD, headers).await.unwrap());
        }
        match last {
            Some(reply) if reply.status == 429 => break reply,
            Some(_) | None => {}
        }
    };
    assert_eq!(code(&reply), "rate_limited");
    assert_eq!(crate::header(&reply.head, "retry-after").as_deref(), Some("1"));
    assert_ne!(other.get(CARD, "").await.unwrap().status, 429, "another party is not concerned");
    let [client, _] = &mut clients;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200, "the connection serves on");
    world.audit_with("\"rate_limited\"").await;
}

async fn until(happens: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if happens().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it never happened");
}
