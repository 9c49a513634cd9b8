//! Revocation and suspension cut: from the change that the feed sends to the refusal, on every kind
//! of connection at once; and nobody else's connection is closed.
//!
//! The goal is 1 s at p99. What is asserted leaves room for a busy machine; the figures are printed
//! (`cargo test -p gateway --test gateway cut -- --nocapture`). A long download counts until its
//! client has taken, at its slow pace, what was on its way already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use policies::feed::Fact;
use rustls::ClientConfig;
use rustls::client::Resumption;

use crate::harness::{Client, Delivery, OFFICE, OFFICE_NAME, Party, World, now};
use crate::{CARD, bearer};

const ROUNDS: u8 = 5;
const BOUND: Duration = Duration::from_secs(5);
const STREAMS: usize = 5;

/// Taken at a pace that makes it last for more than 5 s.
const DOWNLOAD_BYTES: usize = 60_000_000;

/// One client with a connection of each kind.
struct Connections {
    headers: String,
    idle: Client,
    busy: Client,
    streams: http2::SendRequest<Empty<Bytes>>,
    download: (Client, Delivery),
    fresh: Arc<ClientConfig>,
    resuming: Arc<ClientConfig>,
}

impl Connections {
    async fn open(world: &World, party: &Party) -> Self {
        let headers = bearer(&world.token(party, "s1", now() + 600));
        let with = |change: &dyn Fn(&mut ClientConfig)| {
            let mut config = world.client_config(Some(party));
            change(&mut config);
            Arc::new(config)
        };
        let fresh = with(&|config| config.resumption = Resumption::disabled());
        let resuming = with(&|_| {});
        let h2 = with(&|config| config.alpn_protocols = vec![b"h2".to_vec()]);
        let stream = TokioIo::new(world.tls(h2).await.unwrap());
        let (streams, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let mut download = world.connect(fresh.clone()).await.unwrap();
        let long = format!("{CARD}?pad={DOWNLOAD_BYTES}");
        let delivery = download.begin(&long, &headers).await.unwrap();
        assert_eq!(delivery.status, 200);
        let mut this = Self {
            idle: world.connect(resuming.clone()).await.unwrap(),
            busy: world.connect(fresh.clone()).await.unwrap(),
            download: (download, delivery),
            headers,
            streams,
            fresh,
            resuming,
        };
        assert_eq!(this.idle.get(CARD, &this.headers).await.unwrap().status, 200);
        this
    }

    /// Sends `change` when everything goes on; how long each kind was served after that.
    async fn refused_after(
        self,
        world: &World,
        change: impl AsyncFnOnce(),
    ) -> Vec<(&'static str, Duration)> {
        let Self { headers, mut idle, mut busy, streams, download, fresh, resuming } = self;
        let changed = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let at = Instant::now();
            change().await;
            at
        };
        let idle = async {
            idle.closed().await;
            Instant::now()
        };
        let busy = async {
            while busy.get(CARD, &headers).await.is_ok_and(|reply| reply.status == 200) {}
            Instant::now()
        };
        let (changed, idle, busy, streams, download, fresh, resumed) = tokio::join!(
            changed,
            idle,
            busy,
            all_broken(streams, &headers),
            broken_off(download),
            turned_away(world, &fresh, &headers, false),
            turned_away(world, &resuming, &headers, true),
        );
        let kinds = [
            ("new connection", fresh),
            ("resumed session", resumed),
            ("idle keep-alive", idle),
            ("busy keep-alive", busy),
            ("HTTP/2, streams open", streams),
            ("long download", download),
        ];
        let after = |(kind, at): (&'static str, Instant)| {
            assert!(at >= changed, "{kind}: closed before anything changed");
            (kind, at - changed)
        };
        kinds.map(after).to_vec()
    }
}

/// When the last of the open streams broke.
async fn all_broken(streams: http2::SendRequest<Empty<Bytes>>, headers: &str) -> Instant {
    let bearer = headers.trim().strip_prefix("Authorization: ").unwrap();
    let waiting = (0..STREAMS).map(|_| {
        let request = http::Request::get(format!("https://localhost{CARD}?wait-ms=30000"))
            .header("authorization", bearer)
            .body(Empty::new())
            .unwrap();
        let mut streams = streams.clone();
        tokio::spawn(async move { streams.send_request(request).await.map(|it| it.status()) })
    });
    for stream in waiting.collect::<Vec<_>>() {
        let answer = stream.await.unwrap();
        assert!(!answer.as_ref().is_ok_and(|status| status.is_success()), "{answer:?}");
    }
    Instant::now()
}

/// When a download that would take seconds broke off.
async fn broken_off((mut client, mut delivery): (Client, Delivery)) -> Instant {
    let mut paused_at = 0;
    while let Ok(more) = client.more(&mut delivery).await {
        assert!(more, "the download was too short");
        if delivery.bytes > paused_at + DOWNLOAD_BYTES / 1_000 {
            paused_at = delivery.bytes;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(delivery.missing > 0);
    Instant::now()
}

/// When the first new connection was refused, in the handshake or by its answer.
async fn turned_away(
    world: &World,
    config: &Arc<ClientConfig>,
    headers: &str,
    resumed: bool,
) -> Instant {
    loop {
        let Ok(mut client) = world.connect(config.clone()).await else {
            return Instant::now();
        };
        match client.get(CARD, headers).await {
            Ok(reply) if reply.status == 200 => assert_eq!(client.was_resumed(), resumed),
            Ok(_) | Err(_) => return Instant::now(),
        }
    }
}

fn tell(what: &str, figures: &[(&'static str, Duration)]) {
    let mut kinds: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for (kind, after) in figures {
        kinds.entry(kind).or_default().push(*after);
    }
    for (kind, mut times) in kinds {
        times.sort();
        let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
        eprintln!("{what}, {kind}: median {median:.1?}, slowest of {} {slowest:.1?}", times.len());
        assert!(slowest < BOUND, "{what}, {kind}: served for {slowest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_every_kind_of_connection_and_no_other() {
    let world = World::start().await;
    let path = format!("office/{OFFICE}/terminal/front-1");
    // The same office with another certificate.
    let kept = world.pki.client(&path, 100);
    let headers = bearer(&world.token(&kept, "s1", now() + 600));
    let mut bystander = world.client(&kept).await;
    let mut figures = Vec::new();
    for round in 1..=ROUNDS {
        let party = world.pki.client(&path, round);
        let connections = Connections::open(&world, &party).await;
        let revoke = async || {
            world.ca.send(Fact::Revoked { serial: party.serial.parse().unwrap(), at: now() });
        };
        figures.extend(connections.refused_after(&world, revoke).await);
        assert_eq!(bystander.get(CARD, &headers).await.unwrap().status, 200, "a bystander was cut");
    }
    tell("revocation", &figures);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_reaches_every_kind_of_connection_and_no_other() {
    let world = World::start().await;
    let party = world.pki.client(&format!("office/{OFFICE}/terminal/front-1"), 1);
    let municipality = world.pki.client("municipality/131016/terminal/a", 2);
    let mut bystander = world.client(&municipality).await;
    let office = |suspended| Fact::Office {
        number: OFFICE.parse().unwrap(),
        service_types: vec!["43".parse().unwrap()],
        medical: false,
        suspended,
        name: OFFICE_NAME.to_owned(),
    };
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        let connections = Connections::open(&world, &party).await;
        let suspend = async || world.ca.send(office(true));
        figures.extend(connections.refused_after(&world, suspend).await);
        assert_eq!(bystander.get(CARD, "").await.unwrap().status, 200, "a bystander was cut");
        world.ca.send(office(false));
        let headers = bearer(&world.token(&party, "s1", now() + 600));
        let start = Instant::now();
        loop {
            let mut client = world.client(&party).await;
            if client.get(CARD, &headers).await.is_ok_and(|reply| reply.status == 200) {
                break;
            }
            assert!(start.elapsed() < BOUND, "it was never resumed");
        }
    }
    tell("suspension", &figures);
}
