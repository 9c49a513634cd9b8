//! The stream that pingora reads and writes: TLS to a verified client, with writes held until
//! flush.
//!
//! pingora writes a response's header and body apart and flushes once; holding them makes one TLS
//! record and one system call of both. The stream carries its [`Connection`] to the request phases
//! through pingora's proxy digest, the one place where a digest takes a value of ours on HTTP/1.1
//! and HTTP/2 alike.
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::client_cert::VerifiedClient;
use crate::metrics::Metrics;

/// Writes are held up to this many bytes before they are sent without a flush.
const WRITE_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// One downstream connection: who is on the other end, and the means to cut it.
#[derive(Debug)]
pub struct Connection {
    number: u64,
    client: VerifiedClient,
    address: SocketAddr,
    resumed: bool,
    http1: bool,
    unserved_bytes: AtomicU64,
    cut: CancellationToken,
    live: Arc<LiveConnections>,
}

impl Connection {
    /// The verified client.
    pub fn client(&self) -> &VerifiedClient {
        &self.client
    }

    /// The peer's address.
    pub fn address(&self) -> SocketAddr {
        self.address
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

    /// Whether it was cut: what follows on it is the gateway's doing, not the client's.
    pub fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Whether the TLS session was resumed.
    pub fn resumed(&self) -> bool {
        self.resumed
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.live.forget(self.number);
    }
}

/// Every open downstream connection.
#[derive(Debug)]
pub struct LiveConnections {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Entry>>,
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
        Arc::new(Self { next: AtomicU64::new(1), open: Mutex::default(), metrics })
    }

    /// Lists a new connection.
    pub fn enter(
        self: &Arc<Self>,
        client: VerifiedClient,
        address: SocketAddr,
        resumed: bool,
        http1: bool,
    ) -> Arc<Connection> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        let connection = Arc::new(Connection {
            number,
            client,
            address,
            resumed,
            http1,
            unserved_bytes: AtomicU64::new(0),
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

    fn forget(&self, number: u64) {
        let gone = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if gone.is_some() {
            self.metrics.connections_open.dec();
        }
    }
}

/// The stream handed to pingora.
pub struct DownstreamStream {
    tls: TlsStream<TcpStream>,
    held: BytesMut,
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
    pub fn new(tls: TlsStream<TcpStream>, connection: Arc<Connection>) -> io::Result<Self> {
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
        Ok(Self {
            connection,
            held: BytesMut::new(),
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
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.tls).poll_read(context, buffer);
        let read = (buffer.filled().len() - before) as u64;
        this.connection.unserved_bytes.fetch_add(read, Ordering::Relaxed);
        polled
    }
}

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
