//! The public socket: accepts, admits, shakes hands, and hands the stream to pingora.
//!
//! Belongs here later: PROXY protocol, slow-client deadlines.
//!
//! Invariants: no more connections and handshakes at once than the limits say, in all and from one
//! address; a client that says nothing takes no handshake slot; a handshake ends within its
//! deadline; every failed handshake is recorded with its reason in words.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pingora_core::apps::ServerApp;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::{HttpProxy, ProxyHttp};
use policies::reason::Reason;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::access::Denied;
use crate::audit::Recorder;
use crate::client_cert::{LeafRules, Refused, VerifiedClient, take_refused};
use crate::config::Limits;
use crate::downstream::{Connection, DownstreamStream, LiveConnections};
use crate::facts_feed::LiveFacts;
use crate::metrics::Metrics;
use crate::proxy::{Gateway, new_request_id};
use crate::slots::Slots;
use crate::tls;

/// Everything that a new connection needs. `P` is what pingora asks in its phases: in the gateway
/// [`Gateway`], and nothing else.
pub struct Listener<P = Gateway> {
    /// Terminates TLS.
    pub acceptor: TlsAcceptor,
    /// What every leaf certificate must say.
    pub rules: LeafRules,
    /// Where revocation and suspension are looked up.
    pub facts: Arc<LiveFacts>,
    /// Where connections are listed.
    pub live: Arc<LiveConnections>,
    /// Where failed handshakes are recorded.
    pub recorder: Arc<Recorder>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
    /// The proxy behind.
    pub proxy: Arc<HttpProxy<P>>,
    /// Limits.
    pub limits: Limits,
    /// Turns `true` when the gateway drains.
    pub shutdown: ShutdownWatch,
    /// Counts the connections that are still served.
    pub tasks: TaskTracker,
}

/// How a handshake failed.
enum Failure {
    Timeout,
    Certificate(Refused),
    Tls(io::Error),
}

impl<P> Listener<P>
where
    P: ProxyHttp + Send + Sync + 'static,
    P::CTX: Send + Sync,
{
    /// Accepts until the gateway drains.
    pub async fn run(self: Arc<Self>, socket: TcpListener) {
        let limits = &self.limits;
        let connections = Slots::new(limits.connections_max, limits.connections_per_address_max);
        let handshakes = Slots::new(
            limits.handshakes_in_flight_max,
            limits.handshakes_in_flight_per_address_max,
        );
        let mut shutdown = self.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = shutdown.wait_for(|draining| *draining) => return,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most often out of file descriptors: give the open connections time to end.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(slot) = connections.take(address.ip()) else {
                self.count("over_limit");
                continue;
            };
            let (listener, handshakes) = (self.clone(), handshakes.clone());
            self.tasks.spawn(async move {
                listener.serve(tcp, address, &handshakes).await;
                drop(slot);
            });
        }
    }

    async fn serve(&self, tcp: TcpStream, address: SocketAddr, handshakes: &Arc<Slots<IpAddr>>) {
        // Small responses must not wait for the peer's acknowledgement of the last one.
        let _ = tcp.set_nodelay(true);
        if !self.speaks(&tcp).await {
            return self.count("no_hello");
        }
        let Some(slot) = handshakes.take(address.ip()) else {
            return self.count("over_limit");
        };
        let established = self.handshake(tcp, address).await;
        drop(slot);
        let (stream, connection) = match established {
            Ok(established) => established,
            Err((failure, tcp)) => {
                self.record(address, &failure);
                return linger(tcp).await;
            }
        };
        // What pingora hands back has no further use: its loop served every request.
        let _ = self.proxy.process_new(Box::new(stream), &self.shutdown).await;
        if connection.has_unserved_bytes() {
            // pingora answered, or dropped, what it could not read as a request.
            let denied = Denied::because(Reason::BadRequest);
            self.recorder.denied(&connection, &new_request_id(), &denied, (0, 0));
            self.metrics.requests.with_label_values(&["deny", Reason::BadRequest.as_str()]).inc();
        }
    }

    /// Whether the client begins to speak in time. Until then it has cost a socket, no more.
    async fn speaks(&self, tcp: &TcpStream) -> bool {
        let mut byte = [0];
        let first = timeout(self.limits.hello_timeout, tcp.peek(&mut byte)).await;
        matches!(first, Ok(Ok(1..)))
    }

    fn count(&self, outcome: &str) {
        self.metrics.handshakes.with_label_values(&[outcome]).inc();
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> Result<(DownstreamStream, Arc<Connection>), (Failure, Option<TcpStream>)> {
        let mut tls = timeout(self.limits.handshake_timeout, self.accept(tcp))
            .await
            .unwrap_or(Err((Failure::Timeout, None)))?;
        match self.admit(&tls, address) {
            Ok(connection) => DownstreamStream::new(tls, connection.clone())
                .map(|stream| (stream, connection))
                .map_err(|error| (Failure::Tls(error), None)),
            Err(failure) => {
                // The peer may be gone already; the refusal stands either way.
                let _ = timeout(LINGER, tls.shutdown()).await;
                Err((failure, Some(tls.into_inner().0)))
            }
        }
    }

    async fn accept(
        &self,
        tcp: TcpStream,
    ) -> Result<TlsStream<TcpStream>, (Failure, Option<TcpStream>)> {
        let mut accept = Box::pin(self.acceptor.accept(tcp).into_fallible());
        let mut refused = None;
        let accepted = poll_fn(|context| {
            let polled = accept.as_mut().poll(context);
            // The verifier runs inside this poll, on this thread, and nowhere else.
            refused = take_refused().or(refused.take());
            polled
        })
        .await;
        accepted.map_err(|(error, tcp)| match refused {
            Some(refused) => (Failure::Certificate(refused), Some(tcp)),
            None => (Failure::Tls(error), Some(tcp)),
        })
    }

    /// After the handshake, full or resumed: who is it, and may they still come in?
    fn admit(
        &self,
        tls: &TlsStream<TcpStream>,
        address: SocketAddr,
    ) -> Result<Arc<Connection>, Failure> {
        let (_, session) = tls.get_ref();
        let client =
            VerifiedClient::from_handshake(&self.rules, &self.facts, session.peer_certificates())
                .map_err(Failure::Certificate)?;
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let kind = if resumed { "resumed" } else { "full" };
        self.count(kind);
        let http1 = session.alpn_protocol() != Some(b"h2");
        let connection = self.live.enter(client, address, resumed, http1);
        // A revocation that came between the check and the listing finds the connection here. A
        // suspended office may connect: each of its requests is told why it is refused.
        if self.facts.current().revoked(connection.client().serial()).is_some() {
            self.live.cut_where(|client| !self.facts.may_stay(client));
        }
        Ok(connection)
    }

    fn record(&self, address: SocketAddr, failure: &Failure) {
        let (reason, detail, refused) = match failure {
            Failure::Timeout => {
                let limit = self.limits.handshake_timeout.as_millis();
                ("timeout", format!("handshake not done within {limit} ms"), None)
            }
            Failure::Certificate(refused) => {
                (refused.reason.code(), refused.reason.to_string(), Some(refused))
            }
            Failure::Tls(error) => {
                let (reason, detail) = tls::failure(error);
                (reason, detail, None)
            }
        };
        self.count(reason);
        self.recorder.handshake_failed(address, reason, &detail, refused);
    }
}

/// Lets the alert arrive: a socket closed with unread bytes is reset, and the peer then sees a
/// broken connection instead of the reason.
async fn linger(tcp: Option<TcpStream>) {
    let Some(mut tcp) = tcp else {
        return;
    };
    let _ = tcp.shutdown().await;
    let mut rest = tcp.take(LINGER_BYTES_MAX);
    let _ = timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}

const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: u64 = 64 * 1024;
