//! One client connection: TCP with TLS and a client certificate, or a plain unix socket to measure
//! the back end alone; HTTP/1.1 or HTTP/2 on it.
//!
//! HTTP/1.1 is written and read here, lean on purpose: whatever the generator spends on its core,
//! the server can not be asked in that time. Requests are bytes that were put together once;
//! answers are read by `httparse`, their bodies counted and dropped. HTTP/2 is `hyper`'s.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::credentials::{Http, Terminal};
use crate::target::Target;

/// The one server of a run, with its addresses looked up.
pub(crate) struct Server {
    place: Place,
    authority: String,
}

enum Place {
    Tls { addresses: Vec<SocketAddr>, name: ServerName<'static>, source_addresses: u32 },
    Unix(PathBuf),
}

/// What is sent: a head with everything but the framing of the body, and how long the body is.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// The whole head for HTTP/1.1, with `content-length` if there is a body.
    head: Bytes,
    /// The same for HTTP/2.
    parts: http::request::Parts,
    body_bytes: u64,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body_bytes: u64,
}

impl Ask {
    /// A GET of the terminal's path with its staff token.
    pub(crate) fn get(server: &Server, terminal: &Terminal) -> Result<Self, http::Error> {
        Self::of(server, terminal, "GET", &terminal.path, None)
    }

    /// A request with `body` = (content type, length in bytes) of spaces.
    pub(crate) fn of(
        server: &Server,
        terminal: &Terminal,
        method: &str,
        path: &str,
        body: Option<(&str, u64)>,
    ) -> Result<Self, http::Error> {
        let scheme = "https://";
        let uri = format!("{scheme}{}{path}", server.authority);
        let mut builder = http::Request::builder().method(method).uri(uri);
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", server.authority);
        let mut push = |name: &str, value: &http::HeaderValue| {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
        };
        if let Some(value) = &terminal.authorization {
            push("authorization", value);
            builder = builder.header(http::header::AUTHORIZATION, value);
        }
        if matches!(server.place, Place::Unix(_)) {
            // The back end takes no request that does not say who is asking.
            let direct = http::HeaderValue::from_static("1");
            push("x-bench-direct", &direct);
            builder = builder.header("x-bench-direct", direct);
        }
        let mut body_bytes = 0;
        if let Some((content_type, length)) = body {
            body_bytes = length;
            builder = builder.header(http::header::CONTENT_TYPE, content_type);
            head.push_str(&format!("content-type: {content_type}\r\ncontent-length: {length}\r\n"));
        }
        head.push_str("\r\n");
        let (parts, ()) = builder.body(())?.into_parts();
        Ok(Self { head: head.into(), parts, body_bytes })
    }
}

impl Server {
    /// Looks the target up. With `source_addresses` above 1, connections to a loopback address come
    /// from that many different loopback addresses, as terminals come from different places.
    ///
    /// # Errors
    /// If the target has no address, or one that it must not have.
    pub(crate) async fn find(
        target: &Target,
        source_addresses: u32,
    ) -> Result<Self, crate::target::Error> {
        let place = match target.unix_path() {
            Some(path) => Place::Unix(path.to_owned()),
            None => Place::Tls {
                addresses: target.addresses().await?,
                name: target.name(),
                source_addresses,
            },
        };
        Ok(Self { place, authority: target.authority() })
    }

    /// Connects and, except on a unix socket, shakes hands. `at` tells connections apart: they
    /// begin at different addresses of the server, and come from different ones of ours.
    ///
    /// # Errors
    /// What went wrong, in words that are the same for the same cause.
    pub(crate) async fn connect(
        &self,
        settings: &Arc<ClientConfig>,
        http: Http,
        at: u32,
    ) -> Result<Connection, String> {
        match &self.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|error| format!("connect: {error}"))?;
                Connection::over(Box::new(stream), http, false).await
            }
            Place::Tls { addresses, name, source_addresses } => {
                let tcp = connect_tcp(addresses, *source_addresses, at).await;
                let tcp = tcp.map_err(|error| format!("connect: {error}"))?;
                tcp.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
                let tls = TlsConnector::from(Arc::clone(settings))
                    .connect(name.clone(), tcp)
                    .await
                    .map_err(|error| format!("TLS: {error}"))?;
                let session = tls.get_ref().1;
                let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
                if http == Http::Two && session.alpn_protocol() != Some(b"h2") {
                    return Err("HTTP/2 is not spoken by the server (ALPN)".to_owned());
                }
                Connection::over(Box::new(tls), http, resumed).await
            }
        }
    }

    /// A TCP connection alone, for clients that never shake hands. `None` on a unix socket.
    pub(crate) async fn connect_tcp(&self, at: u32) -> Option<std::io::Result<TcpStream>> {
        match &self.place {
            Place::Unix(_) => None,
            Place::Tls { addresses, source_addresses, .. } => {
                Some(connect_tcp(addresses, *source_addresses, at).await)
            }
        }
    }

    /// The name that the server's certificate must carry; `None` on a unix socket.
    pub(crate) fn name(&self) -> Option<ServerName<'static>> {
        match &self.place {
            Place::Unix(_) => None,
            Place::Tls { name, .. } => Some(name.clone()),
        }
    }
}

/// The first address that answers: localhost often has two, and a server only one of them.
async fn connect_tcp(
    addresses: &[SocketAddr],
    source_addresses: u32,
    at: u32,
) -> std::io::Result<TcpStream> {
    let mut failure = std::io::ErrorKind::AddrNotAvailable.into();
    let first = at as usize % addresses.len().max(1);
    for address in addresses.iter().cycle().skip(first).take(addresses.len()) {
        let connected = match address {
            SocketAddr::V4(to) if source_addresses > 1 && to.ip().is_loopback() => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(source(at % source_addresses), 0))?;
                socket.connect(*address).await
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => TcpStream::connect(address).await,
        };
        match connected {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The `at`th loopback address of ours: 127.1.0.1 and so on, all of which are this machine.
fn source(at: u32) -> IpAddr {
    let [_, high, middle, low] = (at % SOURCES_MAX + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, high + 1, middle, low))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open connection.
pub(crate) struct Connection {
    wire: Wire,
    /// Whether its handshake resumed a session.
    pub(crate) resumed: bool,
}

enum Wire {
    One(Http1),
    Two { sender: http2::SendRequest<Body>, driver: JoinHandle<()> },
}

impl Connection {
    async fn over(stream: Box<dyn Stream>, http: Http, resumed: bool) -> Result<Self, String> {
        let wire = match http {
            Http::One => {
                let buffer = Vec::with_capacity(READ_BYTES);
                Wire::One(Http1 { stream, buffer, spent: false })
            }
            Http::Two => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| format!("HTTP: {}", cause(&error)))?;
                let driver = tokio::spawn(async move {
                    // What breaks a connection is told to the requests on it.
                    let _ = connection.await;
                });
                Wire::Two { sender, driver }
            }
        };
        Ok(Self { wire, resumed })
    }

    /// Whether the server said that it answers no more on this HTTP/1.1 connection.
    pub(crate) fn is_spent(&self) -> bool {
        match &self.wire {
            Wire::One(http1) => http1.spent,
            Wire::Two { .. } => false,
        }
    }

    /// A way to ask on the same HTTP/2 connection at the same time; `None` on HTTP/1.1.
    pub(crate) fn stream(&self) -> Option<H2Stream> {
        match &self.wire {
            Wire::One(_) => None,
            Wire::Two { sender, .. } => Some(H2Stream(sender.clone())),
        }
    }

    /// Sends the request and reads the answer to its end.
    ///
    /// # Errors
    /// What went wrong, in words; the connection is of no further use then.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Result<Answer, String> {
        match &mut self.wire {
            Wire::One(http1) => http1.ask(ask).await.map_err(|error| format!("HTTP: {error}")),
            Wire::Two { sender, .. } => H2Stream(sender.clone()).ask(ask).await,
        }
    }

    /// Ends the connection in order: close_notify, then FIN.
    pub(crate) async fn close(self) {
        match self.wire {
            Wire::One(mut http1) => {
                // The other side may have closed first.
                let _ = http1.stream.shutdown().await;
            }
            Wire::Two { sender, driver } => {
                drop(sender);
                // A driver that panicked has nothing left to close.
                let _ = driver.await;
            }
        }
    }
}

/// Reading and writing, as one trait object.
pub(crate) trait AsyncReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> AsyncReadWrite for S {}

/// One HTTP/2 connection, asked on from several tasks.
#[derive(Clone)]
pub(crate) struct H2Stream(http2::SendRequest<Body>);

impl H2Stream {
    /// Sends the request and reads the answer to its end.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Result<Answer, String> {
        let failed = |error: hyper::Error| format!("HTTP: {}", cause(&error));
        self.0.ready().await.map_err(failed)?;
        let request = http::Request::from_parts(ask.parts.clone(), Body { left: ask.body_bytes });
        let answer = self.0.send_request(request).await.map_err(failed)?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        let mut body_bytes = 0;
        while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
            let frame = frame.map_err(failed)?;
            body_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(Answer { status, body_bytes })
    }
}

/// One HTTP/1.1 connection.
struct Http1 {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Whether the server closes the connection after its last answer.
    spent: bool,
}

/// The head of an answer.
struct Head {
    status: u16,
    framing: Framing,
    bytes: usize,
    last: bool,
}

/// How the end of an answer's body is found (RFC 9112 §6.3).
enum Framing {
    Length(u64),
    Chunked,
    /// Up to the end of the connection.
    Rest,
}

impl Http1 {
    async fn ask(&mut self, ask: &Ask) -> std::io::Result<Answer> {
        self.stream.write_all(&ask.head).await?;
        let mut left = ask.body_bytes;
        while left > 0 {
            let now = left.min(SPACES.len() as u64);
            self.stream.write_all(SPACES.get(..now as usize).unwrap_or_default()).await?;
            left -= now;
        }
        self.stream.flush().await?;
        self.answer().await
    }

    async fn answer(&mut self) -> std::io::Result<Answer> {
        let Head { status, framing, bytes, last } = loop {
            match head(&self.buffer)? {
                // More is to come after an interim answer.
                Some(Head { status: 100..200, bytes, .. }) => drop(self.buffer.drain(..bytes)),
                Some(found) => break found,
                None => self.read().await?,
            }
        };
        self.buffer.drain(..bytes);
        self.spent = last;
        let body_bytes = match framing {
            Framing::Length(length) => self.skip(length).await?,
            Framing::Chunked => self.chunks().await?,
            Framing::Rest => self.rest().await?,
        };
        Ok(Answer { status, body_bytes })
    }

    /// Drops that many bytes.
    async fn skip(&mut self, bytes: u64) -> std::io::Result<u64> {
        let mut left = bytes;
        loop {
            let here = left.min(self.buffer.len() as u64);
            self.buffer.drain(..here as usize);
            left -= here;
            if left == 0 {
                return Ok(bytes);
            }
            self.read().await?;
        }
    }

    /// Drops everything up to the end of the connection.
    async fn rest(&mut self) -> std::io::Result<u64> {
        let mut total = self.buffer.len() as u64;
        loop {
            self.buffer.clear();
            match self.stream.read_buf(&mut self.buffer).await? {
                0 => return Ok(total),
                read => total += read as u64,
            }
        }
    }

    async fn chunks(&mut self) -> std::io::Result<u64> {
        let mut total = 0;
        loop {
            let (head_bytes, size) = loop {
                let parsed = httparse::parse_chunk_size(&self.buffer)
                    .map_err(|_| bad("the answer has a bad chunk size"))?;
                if let httparse::Status::Complete(found) = parsed {
                    break found;
                }
                self.read().await?;
            };
            self.buffer.drain(..head_bytes);
            if size == 0 {
                self.trailers().await?;
                return Ok(total);
            }
            // The chunk's data is followed by CRLF.
            let whole =
                size.checked_add(2).ok_or_else(|| bad("the answer has a bad chunk size"))?;
            self.skip(whole).await?;
            total = size.saturating_add(total);
        }
    }

    /// Drops the lines after the last chunk, which end with an empty one.
    async fn trailers(&mut self) -> std::io::Result<()> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let parsed = httparse::parse_headers(&self.buffer, &mut headers)
                .map_err(|error| bad(&format!("bad trailers: {error}")))?;
            if let httparse::Status::Complete((bytes, _)) = parsed {
                self.buffer.drain(..bytes);
                return Ok(());
            }
            self.read().await?;
        }
    }

    /// Reads more; what is kept to be parsed has a limit.
    async fn read(&mut self) -> std::io::Result<()> {
        if self.buffer.len() >= HEAD_BYTES_MAX {
            return Err(bad("the answer's head is too long"));
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(bad("the server closed the connection before its answer was whole")),
            _ => Ok(()),
        }
    }
}

/// The head, once it is whole.
fn head(buffer: &[u8]) -> std::io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(buffer).map_err(|error| bad(&format!("bad answer: {error}")))?;
    let httparse::Status::Complete(bytes) = parsed else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let value =
        |name: &str| response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let framing = if status == 204 || status == 304 {
        Framing::Length(0)
    } else if value("transfer-encoding").is_some() {
        Framing::Chunked
    } else if let Some(header) = value("content-length") {
        let length =
            std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
        Framing::Length(length.ok_or_else(|| bad("the answer has a bad content-length"))?)
    } else {
        Framing::Rest
    };
    let says_close = value("connection")
        .is_some_and(|header| header.value.trim_ascii().eq_ignore_ascii_case(b"close"));
    let last = says_close || matches!(framing, Framing::Rest) || response.version == Some(0);
    Ok(Some(Head { status, framing, bytes, last }))
}

fn bad(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

/// A body of spaces for HTTP/2.
#[derive(Debug)]
pub(crate) struct Body {
    left: u64,
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let now = self.left.min(SPACES.len() as u64);
        self.left -= now;
        let data = Bytes::from_static(SPACES.get(..now as usize).unwrap_or_default());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The innermost cause says what happened (a TLS alert, a reset).
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

static SPACES: [u8; 64 * 1024] = [b' '; 64 * 1024];
const READ_BYTES: usize = 16 * 1024;
/// Well within 127.0.0.0/8.
const SOURCES_MAX: u32 = 1 << 20;
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 * 1024;
