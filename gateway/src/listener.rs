//! The public socket: accepts, admits, shakes hands, and hands the stream to pingora.
//!
//! Invariants: a handshake begins only with leave of [`Admission`], and ends within its deadline;
//! every failed handshake is recorded with its reason in words.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora_core::apps::ServerApp;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::{HttpProxy, ProxyHttp};
use policies::overlay::NetworkKind;
use policies::reason::Reason;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::access::Denied;
use crate::admission::{Admission, FORGET_INTERVAL, Opened, Refusal, Share};
use crate::audit::Recorder;
use crate::client_cert::{Candidate, Reason as Unfit, Refused, Seen, take_seen};
use crate::config::Limits;
use crate::downstream::{Connection, DownstreamStream, LiveConnections};
use crate::facts_feed::LiveFacts;
use crate::metrics::Metrics;
use crate::proxy::{Gateway, new_request_id};
use crate::tls::{self, LiveTls};

/// Everything that a new connection needs. `P` is what pingora asks in its phases: in the gateway
/// [`Gateway`], and nothing else.
pub struct Listener<P = Gateway> {
    /// Terminates TLS, and says who the client is.
    pub tls: Arc<LiveTls>,
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
    /// On which network it stands.
    pub network: NetworkKind,
    /// Who may begin a handshake.
    pub admission: Admission,
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
    pub async fn run(self: Arc<Self>, socket: Arc<TcpListener>) {
        let mut shutdown = self.shutdown.clone();
        let mut forget = tokio::time::interval(FORGET_INTERVAL);
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = forget.tick() => {
                    self.admission.forget_silent();
                    continue;
                }
                _ = shutdown.wait_for(|draining| *draining) => return,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most often out of file descriptors: give the open connections time to end.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let share = match self.admission.accepted() {
                Ok(share) => share,
                Err(refusal) => {
                    self.count(refusal.code());
                    continue;
                }
            };
            let listener = self.clone();
            self.tasks.spawn(async move {
                if let Err(refusal) = listener.serve(tcp, peer, share).await {
                    listener.refused(peer, refusal);
                }
            });
        }
    }

    async fn serve(
        &self,
        mut tcp: TcpStream,
        peer: SocketAddr,
        share: Share,
    ) -> Result<(), Refusal> {
        // Small responses must not wait for the peer's acknowledgement of the last one.
        let _ = tcp.set_nodelay(true);
        let opened = self.admission.open(share, &mut tcp, peer).await?;
        let admitted = self.admission.handshake(&opened)?;
        let established = self.handshake(tcp, &opened).await;
        drop(admitted);
        let (stream, connection) = match established {
            Ok(established) => established,
            Err((failure, tcp)) => {
                self.record(opened.address, &failure);
                linger(tcp).await;
                return Ok(());
            }
        };
        // What pingora hands back has no further use: its loop served every request.
        let _ = self.proxy.process_new(Box::new(stream), &self.shutdown).await;
        if connection.has_unserved_bytes() {
            // pingora answered, or dropped, what it could not read as a request.
            let denied = Denied::because(Reason::BadRequest);
            self.recorder.denied(&connection, &new_request_id(), &denied, (0, 0));
            self.metrics.requests.count(None, Some(Reason::BadRequest));
        }
        Ok(())
    }

    fn refused(&self, peer: SocketAddr, refusal: Refusal) {
        self.count(refusal.code());
        if refusal == Refusal::ProxyHeader {
            // Not a client's doing: a balancer is set up otherwise than the configuration says.
            tracing::warn!(%peer, "a source of `proxy_protocol_from` sent no PROXY header (v2)");
        }
    }

    fn count(&self, outcome: &str) {
        self.metrics.handshakes.with_label_values(&[outcome]).inc();
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        opened: &Opened,
    ) -> Result<(DownstreamStream, Arc<Connection>), (Failure, Option<TcpStream>)> {
        let (mut tls, candidate) = timeout(self.limits.handshake_timeout, self.accept(tcp))
            .await
            .unwrap_or(Err((Failure::Timeout, None)))?;
        match self.admit(&tls, candidate, opened.address) {
            Ok(connection) => DownstreamStream::new(tls, connection.clone(), &self.limits)
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
    ) -> Result<(TlsStream<TcpStream>, Option<Candidate>), (Failure, Option<TcpStream>)> {
        let acceptor = TlsAcceptor::from(self.tls.current().server.clone());
        let mut accept = Box::pin(acceptor.accept(tcp).into_fallible());
        let mut seen = None;
        let accepted = poll_fn(|context| {
            let polled = accept.as_mut().poll(context);
            // The verifier runs inside this poll, on this thread, and nowhere else.
            seen = take_seen().or(seen.take());
            polled
        })
        .await;
        match (accepted, seen) {
            (Ok(tls), seen) => Ok((tls, seen.and_then(Seen::candidate))),
            (Err((_, tcp)), Some(Seen::Refused(refused))) => {
                Err((Failure::Certificate(refused), Some(tcp)))
            }
            (Err((error, tcp)), Some(Seen::Candidate(candidate))) if tls::is_not_holder(&error) => {
                let refused = candidate.refused(Unfit::NotTheHolder);
                Err((Failure::Certificate(refused), Some(tcp)))
            }
            (Err((error, tcp)), Some(Seen::Candidate(_)) | None) => {
                Err((Failure::Tls(error), Some(tcp)))
            }
        }
    }

    /// After the handshake, full or resumed: who is it, and may they still come in?
    fn admit(
        &self,
        tls: &TlsStream<TcpStream>,
        candidate: Option<Candidate>,
        address: SocketAddr,
    ) -> Result<Arc<Connection>, Failure> {
        let (_, session) = tls.get_ref();
        let client = self.tls.admit(session.peer_certificates(), candidate);
        let client = client.map_err(Failure::Certificate)?;
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let kind = if resumed { "resumed" } else { "full" };
        self.count(kind);
        let http1 = session.alpn_protocol() != Some(b"h2");
        let names = self.tls.current().names(session.server_name());
        let from = (address, self.network);
        let connection = self.live.enter(client, names, from, resumed, http1);
        // A revocation that came between the check and the listing finds the connection here. A
        // suspended office may connect: each of its requests is told why it is refused.
        if self.facts.current().revoked(connection.client().serial()).is_some() {
            self.live.cut_where(|client| !self.facts.may_stay(client));
        }
        // So does a trust bundle that came then.
        let trust = self.tls.current().trust.clone();
        if !trust.trusts(connection.client()) {
            self.live.cut_where(|client| !trust.trusts(client));
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
