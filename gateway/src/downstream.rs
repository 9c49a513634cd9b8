//! The stream that pingora reads and writes: TLS to a verified client, with writes held until
//! flush.
//!
//! pingora writes a response's header and body apart and flushes once; holding them makes one TLS
//! record and one system call of both. The stream carries its [`Connection`] to the request phases
//! through pingora's proxy digest, the one place where a digest takes a value of ours on HTTP/1.1
//! and HTTP/2 alike.
//!
//! On HTTP/1.1 only bytes that [`crate::framing::scanner`] lets pass are read on, one message at a
//! time: what follows it waits for its answer. A message whose head is refused is read on as one
//! that the phases answer with the refusal; nothing of its own bytes is.
//!
//! Invariant: every open stream is listed in [`LiveConnections`], so that one whose certificate is
//! revoked can be cut.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use policies::overlay::NetworkKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::activity::{Activity, Counter, Ended};
use crate::client_cert::VerifiedClient;
use crate::config::Limits;
use crate::framing::Ambiguous;
use crate::framing::authority::ServerNames;
use crate::framing::head::HeadLimits;
use crate::framing::scanner::{Scanner, Step};
use crate::metrics::Metrics;

/// Writes are held up to this many bytes before they are sent without a flush.
const WRITE_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// One downstream connection: who is on the other end, and the means to cut it.
#[derive(Debug)]
pub struct Connection {
    number: u64,
    client: VerifiedClient,
    party: Arc<str>,
    names: Arc<ServerNames>,
    address: SocketAddr,
    network: NetworkKind,
    resumed: bool,
    http1: bool,
    unserved_bytes: AtomicU64,
    /// The last message was answered.
    ready: AtomicBool,
    /// What is wrong with the message that pingora reads now, if anything.
    offence: OnceLock<Ambiguous>,
    answered: Counter,
    cut: CancellationToken,
    live: Arc<LiveConnections>,
}

/// A body that must come; dropped when it has come, or nobody waits for it any longer.
#[derive(Debug)]
pub struct BodyDue(AbortHandle);

impl Drop for BodyDue {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// The verified client.
    pub fn client(&self) -> &VerifiedClient {
        &self.client
    }

    /// The party that the client belongs to, as [`policies::identity::Identity::party`] says it.
    pub fn party(&self) -> &Arc<str> {
        &self.party
    }

    /// Whom its requests may be for: the names that the server showed when it began.
    pub fn names(&self) -> &ServerNames {
        &self.names
    }

    /// The client's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The network of the listener that it came by.
    pub fn network(&self) -> NetworkKind {
        self.network
    }

    /// Whether bytes came that no request phase has seen. On HTTP/1.1 that is a request that
    /// pingora could not read; HTTP/2 has frames of its own between requests.
    pub fn has_unserved_bytes(&self) -> bool {
        self.http1 && self.unserved_bytes.load(Ordering::Relaxed) > 0
    }

    /// What came up to now belongs to a request that is decided and recorded.
    pub fn served(&self) {
        self.unserved_bytes.store(0, Ordering::Relaxed);
    }

    /// A message was answered: counts it, and lets the next one be read.
    pub fn answered(&self, denied: bool) {
        self.answered.count(denied);
        self.ready.store(true, Ordering::Release);
    }

    /// What is wrong with the bytes of the message that is being read. It is the last one of its
    /// connection.
    pub fn offence(&self) -> Option<Ambiguous> {
        self.offence.get().copied()
    }

    /// Whether it was cut: what follows on it is the gateway's doing, not the client's.
    pub fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// A stream of this connection owes the body of its request: if what is returned still lives
    /// after `timeout`, the connection is cut. pingora waits for the next piece of an HTTP/2 body
    /// without a limit.
    pub fn body_due(self: &Arc<Self>, timeout: Duration) -> BodyDue {
        let connection = self.clone();
        let cut = tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            tracing::info!("an HTTP/2 body did not come in time, connection cut");
            // INVARIANT: what was an offence first stays it.
            let _ = connection.offence.set(Ambiguous("body did not come in time"));
            connection.cut.cancel();
        });
        BodyDue(cut.abort_handle())
    }

    /// Whether the TLS session was resumed.
    pub fn resumed(&self) -> bool {
        self.resumed
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.live.forget(self);
    }
}

/// Every open downstream connection.
#[derive(Debug)]
pub struct LiveConnections {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Entry>>,
    ended: Mutex<Ended>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Entry {
    client: std::sync::Weak<Connection>,
    cut: CancellationToken,
}

impl LiveConnections {
    /// An empty registry.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            next: AtomicU64::new(1),
            open: Mutex::default(),
            ended: Mutex::default(),
            metrics,
        })
    }

    /// Lists a new connection.
    pub fn enter(
        self: &Arc<Self>,
        client: VerifiedClient,
        names: Arc<ServerNames>,
        (address, network): (SocketAddr, NetworkKind),
        resumed: bool,
        http1: bool,
    ) -> Arc<Connection> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        let connection = Arc::new(Connection {
            number,
            party: client.identity().party().into(),
            client,
            names,
            address,
            network,
            resumed,
            http1,
            unserved_bytes: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            offence: OnceLock::new(),
            answered: Counter::default(),
            cut: cut.clone(),
            live: self.clone(),
        });
        let entry = Entry { client: Arc::downgrade(&connection), cut };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, entry);
        self.metrics.connections_open.inc();
        connection
    }

    /// Cuts the connections whose client `is_refused` now; returns how many.
    pub fn cut_where(&self, is_refused: impl Fn(&VerifiedClient) -> bool) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let refused: Vec<(Arc<Connection>, CancellationToken)> = open
            .values()
            .filter_map(|entry| Some((entry.client.upgrade()?, entry.cut.clone())))
            .filter(|(connection, _)| is_refused(&connection.client))
            .collect();
        // A connection's drop takes the lock again: release it before the last reference goes.
        drop(open);
        refused.iter().for_each(|(_, cut)| cut.cancel());
        refused.len()
    }

    /// What each party did, on open connections and on those that ended within a minute.
    pub fn activity(&self) -> HashMap<String, Activity> {
        let open: Vec<Arc<Connection>> = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.values().filter_map(|entry| entry.client.upgrade()).collect()
        };
        let mut by_party = self.ended.lock().unwrap_or_else(PoisonError::into_inner).by_party();
        for connection in open {
            let party = connection.party.to_string();
            by_party.entry(party).or_default().add_open(&connection.answered);
        }
        by_party
    }

    fn forget(&self, connection: &Connection) {
        let number = connection.number;
        let gone = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if gone.is_some() {
            self.metrics.connections_open.dec();
        }
        let party = connection.party.to_string();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.remember(party, &connection.answered);
    }
}

/// The stream handed to pingora.
pub struct DownstreamStream {
    tls: TlsStream<TcpStream>,
    held: BytesMut,
    /// What came on HTTP/1.1 and was not read on yet, of which `approved` bytes may be.
    inbox: BytesMut,
    approved: usize,
    /// `None` on HTTP/2, whose frames are delimited by themselves.
    scanner: Option<Scanner>,
    /// Until when a head that has begun must have ended.
    head_due: Option<Pin<Box<Sleep>>>,
    head_timeout: Duration,
    connection: Arc<Connection>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    ssl_digest: Arc<SslDigest>,
    proxy_digest: Arc<ProxyDigest>,
    socket_digest: Arc<SocketDigest>,
    alpn: Option<ALPN>,
}

impl fmt::Debug for DownstreamStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownstreamStream").finish_non_exhaustive()
    }
}

impl DownstreamStream {
    /// Wraps an accepted TLS stream for `connection`.
    ///
    /// # Errors
    /// If pingora's carrier for our value cannot be made.
    pub fn new(
        tls: TlsStream<TcpStream>,
        connection: Arc<Connection>,
        limits: &Limits,
    ) -> io::Result<Self> {
        let (tcp, session) = tls.get_ref();
        let alpn = match session.alpn_protocol() {
            Some(b"h2") => Some(ALPN::H2),
            Some(_) => Some(ALPN::H1),
            None => None,
        };
        let socket_digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        let cut = Box::pin(connection.cut.clone().cancelled_owned());
        let carrier = ResponseHeader::build(200, None).map_err(io::Error::other)?;
        let proxy_digest = ProxyDigest::new(Box::new(carrier), Some(Box::new(connection.clone())));
        let scanner = connection.http1.then(|| Scanner::new(HeadLimits::of(limits)));
        Ok(Self {
            connection,
            held: BytesMut::new(),
            inbox: BytesMut::new(),
            approved: 0,
            scanner,
            head_due: None,
            head_timeout: limits.request_head_timeout,
            cut,
            ssl_digest: Arc::new(SslDigest::new("TLS13", "TLSv1.3", None, None, Vec::new())),
            proxy_digest: Arc::new(proxy_digest),
            socket_digest: Arc::new(socket_digest),
            alpn,
            tls,
        })
    }

    fn check_cut(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "connection cut: the certificate is no longer accepted",
            )),
            Poll::Pending => Ok(()),
        }
    }

    fn poll_send_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.tls).poll_write(context, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for DownstreamStream {
    /// Tells the peer that nothing follows (RFC 8446 §6.1), as far as the socket takes it at once:
    /// without it an ended connection looks like a truncated one.
    fn drop(&mut self) {
        if !self.held.is_empty() {
            return;
        }
        let (tcp, session) = self.tls.get_mut();
        session.send_close_notify();
        let mut alert = Vec::new();
        while session.wants_write() && session.write_tls(&mut alert).is_ok() {}
        let _ = tcp.try_write(&alert);
    }
}

/// The connection that a pingora session runs on.
pub fn connection_of(digest: Option<&pingora_core::protocols::Digest>) -> Option<Arc<Connection>> {
    let carried = digest?.proxy_digest.as_ref()?.user_data.as_ref()?;
    carried.downcast_ref::<Arc<Connection>>().cloned()
}

impl AsyncRead for DownstreamStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_cut(context)?;
        if !this.held.is_empty() && this.poll_send_held(context)?.is_ready() {
            // A peer that waits for these bytes before it speaks again would wait for ever.
            let _ = Pin::new(&mut this.tls).poll_flush(context)?;
        }
        let Some(mut scanner) = this.scanner.take() else {
            return this.poll_plain(context, buffer);
        };
        let polled = this.poll_scanned(&mut scanner, context, buffer);
        this.scanner = Some(scanner);
        polled
    }
}

impl DownstreamStream {
    /// Bytes as they come.
    fn poll_plain(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.tls).poll_read(context, buffer);
        let read = (buffer.filled().len() - before) as u64;
        self.connection.unserved_bytes.fetch_add(read, Ordering::Relaxed);
        polled
    }

    /// Only bytes that the scanner lets pass.
    fn poll_scanned(
        &mut self,
        scanner: &mut Scanner,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.approved > 0 {
                self.pass(buffer);
                return Poll::Ready(Ok(()));
            }
            if self.connection.offence().is_some() {
                return self.after_offence(scanner);
            }
            if self.connection.ready.swap(false, Ordering::AcqRel) && !scanner.answered() {
                // The answer came before the end of its body; it counts when that has come.
                self.connection.ready.store(true, Ordering::Release);
            }
            let plain = usize::try_from(scanner.plain_bytes()).unwrap_or(usize::MAX);
            if plain > 0 && self.inbox.is_empty() {
                let read = ready!(self.poll_body(context, buffer, plain))?;
                scanner.passed_plain(read);
                return Poll::Ready(Ok(()));
            }
            match scanner.step(&self.inbox) {
                Step::Pass(count) => {
                    self.approved = count;
                    self.head_due = None;
                }
                Step::Refuse(ambiguous) => self.refuse(ambiguous, scanner),
                Step::Hold if self.inbox.len() >= HELD_BYTES_MAX => return Poll::Pending,
                Step::More if self.is_head_late(scanner, context) => {
                    self.refuse(Ambiguous("head did not come in time"), scanner);
                }
                Step::More | Step::Hold => {
                    if ready!(self.poll_more(context))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Hands on what was approved.
    fn pass(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.approved.min(buffer.remaining());
        buffer.put_slice(&self.inbox[..count]);
        self.inbox.advance(count);
        self.approved -= count;
        if self.inbox.is_empty() {
            // An idle connection holds no memory for what it may say some day.
            self.inbox = BytesMut::new();
        }
    }

    /// A body's bytes go where they are wanted, at no copy.
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        plain: usize,
    ) -> Poll<io::Result<usize>> {
        let count = plain.min(buffer.remaining()).min(READ_BYTES);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(count));
        ready!(self.poll_plain(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        Poll::Ready(Ok(read))
    }

    /// Reads into the inbox; 0 when the peer has ended.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let length = self.inbox.len();
        self.inbox.resize(length + HEAD_READ_BYTES, 0);
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut part = ReadBuf::new(&mut inbox[length..]);
        let polled = self.poll_plain(context, &mut part);
        let read = part.filled().len();
        inbox.truncate(length + read);
        self.inbox = if inbox.is_empty() { BytesMut::new() } else { inbox };
        ready!(polled)?;
        Poll::Ready(Ok(read))
    }

    /// Whether a head that has begun takes too long. A connection that says nothing is idle, which
    /// is another matter.
    fn is_head_late(&mut self, scanner: &Scanner, context: &mut Context<'_>) -> bool {
        if self.inbox.is_empty() || !scanner.is_in_head() {
            return false;
        }
        let timeout = self.head_timeout;
        let due = self.head_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        due.as_mut().poll(context).is_ready()
    }

    /// From here on nothing is read. An offence in a head is answered by the phases, which see
    /// [`REFUSED_HEAD`] in its place.
    fn refuse(&mut self, ambiguous: Ambiguous, scanner: &Scanner) {
        tracing::info!(reason = %ambiguous, "request refused as ambiguous");
        self.inbox = BytesMut::new();
        if !scanner.is_in_body() {
            self.inbox.extend_from_slice(REFUSED_HEAD);
            self.approved = REFUSED_HEAD.len();
        }
        // INVARIANT: nothing is scanned after an offence.
        let _ = self.connection.offence.set(ambiguous);
    }

    fn after_offence(&self, scanner: &Scanner) -> Poll<io::Result<()>> {
        match self.connection.offence() {
            Some(ambiguous) if scanner.is_in_body() => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, ambiguous)))
            }
            // The answer is on its way, and ends the connection.
            Some(_) | None => Poll::Pending,
        }
    }
}

/// How long and how much is read past an offence before the connection is closed.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: u64 = 256 * 1024;

/// What the phases see of a message that is not to be read on: enough to answer.
const REFUSED_HEAD: &[u8] = b"GET /refused HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// Bytes that are read at once where a head is awaited: more than most have.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// Bytes that are read at once: a TLS record.
const READ_BYTES: usize = 16 * 1024;
/// Bytes that may wait behind a message that is not answered yet.
const HELD_BYTES_MAX: usize = 64 * 1024;

impl AsyncWrite for DownstreamStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_cut(context)?;
        if this.held.len() >= WRITE_BUFFER_BYTES_MAX {
            ready!(this.poll_send_held(context))?;
        }
        let taken = bytes.len().min(WRITE_BUFFER_BYTES_MAX);
        this.held.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_cut(context)?;
        ready!(this.poll_send_held(context))?;
        Pin::new(&mut this.tls).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_held(context))?;
        Pin::new(&mut this.tls).poll_shutdown(context)
    }
}

#[async_trait]
impl Shutdown for DownstreamStream {
    async fn shutdown(&mut self) {
        // The peer may be gone already; there is nobody left to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
        if self.connection.offence().is_some() {
            // A socket that is closed with unread bytes is reset, and the answer with it.
            let (tcp, _) = self.tls.get_mut();
            let mut rest = tcp.take(LINGER_BYTES_MAX);
            let _ = timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
        }
    }
}

impl UniqueID for DownstreamStream {
    fn id(&self) -> UniqueIDType {
        self.tls.get_ref().0.as_raw_fd()
    }
}

impl Ssl for DownstreamStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(self.ssl_digest.clone())
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.alpn.clone()
    }
}

impl GetTimingDigest for DownstreamStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for DownstreamStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.proxy_digest.clone())
    }
}

impl GetSocketDigest for DownstreamStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket_digest.clone())
    }
}

impl Peek for DownstreamStream {}
