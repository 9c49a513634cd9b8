//! The listeners, one for each network: each with limits of its own, everything else together.
//!
//! Limits may change while the gateway serves. Then each listener is made anew on the same socket:
//! numbers count what is open already, and time-outs are those of new connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_core::apps::HttpServerApp;
use pingora_core::server::ShutdownWatch;
use policies::overlay::NetworkKind;
use policies::overlay::network::Network;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::admission::Admission;
use crate::audit::Recorder;
use crate::config::{Config, Limits};
use crate::downstream::LiveConnections;
use crate::facts_feed::LiveFacts;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::party_limits::PartyLimits;
use crate::proxy::Gateway;
use crate::run::proxy;
use crate::tls::LiveTls;
use crate::upstream::Hub;

/// What all listeners have together.
pub struct Shared {
    /// Terminates TLS.
    pub tls: Arc<LiveTls>,
    /// Where revocation and suspension are looked up.
    pub facts: Arc<LiveFacts>,
    /// Where connections are listed.
    pub live: Arc<LiveConnections>,
    /// Where decisions are recorded.
    pub recorder: Arc<Recorder>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Decides.
    pub access: Arc<Access>,
    /// Where permitted requests go.
    pub hub: Arc<Hub>,
    /// Turns `true` when the gateway drains.
    pub shutdown: ShutdownWatch,
}

/// Where a gateway listens for clients.
pub struct ClientSockets {
    /// On the internet.
    pub open: Arc<TcpListener>,
    /// On the closed network, if there is such a listener.
    pub closed: Option<Arc<TcpListener>>,
}

/// All listeners, and those whose limits were others and that still serve connections.
pub struct Entrances {
    shared: Shared,
    sockets: ClientSockets,
    tasks: TaskTracker,
    now: Vec<Entrance>,
    before: Vec<Arc<Listener>>,
}

/// A listener, its socket, and what its parties take.
struct Entrance {
    listener: Arc<Listener>,
    socket: Arc<TcpListener>,
    parties: Arc<PartyLimits>,
}

impl Entrances {
    /// A listener for each socket, with the limits of `config`.
    pub fn new(shared: Shared, config: &Config, sockets: ClientSockets) -> Self {
        let tasks = TaskTracker::new();
        let mut this = Self { shared, sockets, tasks, now: Vec::new(), before: Vec::new() };
        this.now = this.all(config);
        this
    }

    /// Accepts on every socket until what is returned is shut down.
    pub fn accept(&self) -> JoinSet<()> {
        let mut accepting = JoinSet::new();
        for entrance in &self.now {
            accepting.spawn(entrance.listener.clone().run(entrance.socket.clone()));
        }
        accepting
    }

    /// Takes the limits of `config` for what is accepted from now on, and `hub` for its requests.
    pub fn relimit(&mut self, config: &Config, hub: Hub) {
        hub.replace(&self.shared.hub, &self.shared.metrics);
        self.shared.hub = Arc::new(hub);
        let now = self.all(config);
        let before = std::mem::replace(&mut self.now, now);
        self.before.extend(before.into_iter().map(|entrance| entrance.listener));
        // Its connections hold a listener; with the last of them it goes.
        self.before.retain(|listener| Arc::strong_count(listener) > 1);
    }

    fn all(&self, config: &Config) -> Vec<Entrance> {
        let open = (&config.proxy_protocol_from[..], &config.limits);
        let open = Some((NetworkKind::Open, self.sockets.open.clone(), open));
        let closed = config.closed_network.as_ref().zip(self.sockets.closed.clone());
        let closed = closed.map(|(it, socket)| {
            (NetworkKind::Closed, socket, (&it.proxy_protocol_from[..], &it.limits))
        });
        let wanted = open.into_iter().chain(closed);
        wanted.map(|(network, socket, limits)| self.entrance(network, socket, limits)).collect()
    }

    fn entrance(
        &self,
        network: NetworkKind,
        socket: Arc<TcpListener>,
        (proxies, limits): (&[Network], &Limits),
    ) -> Entrance {
        let Shared { tls, facts, live, recorder, metrics, access, hub, shutdown } = &self.shared;
        let before = self.now.iter().find(|entrance| entrance.listener.network == network);
        let (admission, parties) = match before {
            Some(Entrance { listener, parties, .. }) => {
                (listener.admission.relimited(limits, proxies), parties.relimited(limits))
            }
            None => (Admission::new(limits, proxies), PartyLimits::new(limits)),
        };
        let gateway = Gateway::new(
            access.clone(),
            recorder.clone(),
            hub.clone(),
            parties.clone(),
            limits.clone(),
            metrics.clone(),
        );
        let listener = Listener {
            tls: tls.clone(),
            facts: facts.clone(),
            live: live.clone(),
            recorder: recorder.clone(),
            metrics: metrics.clone(),
            proxy: Arc::new(proxy(gateway, limits)),
            network,
            admission,
            limits: limits.clone(),
            shutdown: shutdown.clone(),
            tasks: self.tasks.clone(),
        };
        Entrance { listener: Arc::new(listener), socket, parties }
    }

    /// Lets requests in flight end, then cuts what is left.
    ///
    /// A gateway that was replaced has time (`is_patient`): a connection that is idle may just be
    /// about to bring a request, so each gets its next answer as the last one, and only what stays
    /// silent is closed.
    pub async fn drain(&self, is_patient: bool) {
        let Some(Entrance { listener, .. }) = self.now.first() else { return };
        let limit = listener.limits.drain_timeout;
        self.tasks.close();
        let began = Instant::now();
        if is_patient {
            let patience = limit.saturating_sub(CLOSE_WITHIN);
            if tokio::time::timeout(patience, self.tasks.wait()).await.is_ok() {
                return;
            }
        }
        let now = self.now.iter().map(|entrance| &entrance.listener);
        for listener in now.chain(&self.before) {
            listener.proxy.http_cleanup().await;
        }
        let left = limit.saturating_sub(began.elapsed());
        if tokio::time::timeout(left, self.tasks.wait()).await.is_err() {
            let cut = self.shared.live.cut_where(|_| true);
            tracing::warn!(connections = cut, "drain deadline passed, connections cut");
            let _ = tokio::time::timeout(Duration::from_millis(500), self.tasks.wait()).await;
        }
    }
}

/// How long connections that are closed at the end of a patient drain may take for their last
/// requests.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
