//! One slow client: it says nothing, says it byte by byte, or reads almost nothing, until the
//! server closes the connection or the time is over.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use rustls::ClientConnection;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{AsyncReadWrite, Server};
use crate::scenario::slow::peer;
use crate::scenario::{ANSWERS_WITHIN, Client, within};

/// How a client is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// Connects and never speaks.
    Silent,
    /// Sends its first TLS message byte by byte.
    DripHello,
    /// Sends a request's head byte by byte, after a good handshake.
    DripHead,
    /// Sends a request's body byte by byte, after a whole head.
    DripBody,
    /// Asks for a large answer and reads almost nothing of it.
    SlowRead,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Silent, Self::DripHello, Self::DripHead, Self::DripBody, Self::SlowRead];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::DripHello => "drip-hello",
            Self::DripHead => "drip-head",
            Self::DripBody => "drip-body",
            Self::SlowRead => "slow-read",
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct End {
    /// From the end of its connecting to the server's closing, if that came in time.
    pub(super) closed_after: Option<Duration>,
    /// What the server answered, if it did.
    pub(super) status: Option<u16>,
}

/// What became of it, or why it did not begin.
pub(super) type Ended = Result<End, String>;

/// A slow client.
pub(super) struct SlowClient {
    pub(super) kind: Kind,
    pub(super) client: Client,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) content_type: String,
}

impl SlowClient {
    /// Is slow until the server has enough of it, or until `until`.
    pub(super) async fn run(&self, server: &Server, until: Instant) -> Ended {
        match self.kind {
            Kind::Silent => {
                let mut tcp = self.tcp(server).await?;
                Ok(drip(&mut tcp, &[], until).await)
            }
            Kind::DripHello => {
                let mut tcp = self.tcp(server).await?;
                let hello = self.hello(server)?;
                Ok(drip(&mut tcp, &hello, until).await)
            }
            Kind::DripHead => {
                let mut tls = within(ANSWERS_WITHIN, self.tls(server)).await?;
                let head = format!(
                    "GET {} HTTP/1.1\r\nhost: {}\r\nx-slow: {}",
                    self.path,
                    self.authority,
                    "a".repeat(SLOW_BYTES)
                );
                Ok(drip(&mut tls, head.as_bytes(), until).await)
            }
            Kind::DripBody => {
                let mut tls = within(ANSWERS_WITHIN, self.tls(server)).await?;
                let length = format!("content-length: {SLOW_BYTES}\r\n");
                let content_type = format!("content-type: {}\r\n", self.content_type);
                let head = self.head("POST", &(content_type + &length));
                send(&mut tls, head.as_bytes()).await?;
                Ok(drip(&mut tls, &[b' '; SLOW_BYTES - 1], until).await)
            }
            Kind::SlowRead => {
                let mut tls = within(ANSWERS_WITHIN, self.tls(server)).await?;
                send(&mut tls, self.head("GET", "").as_bytes()).await?;
                Ok(read_little(&mut tls, until).await)
            }
        }
    }

    fn head(&self, method: &str, more: &str) -> String {
        let (path, authority) = (&self.path, &self.authority);
        let authorization = match self.authorization.as_ref().map(HeaderValue::to_str) {
            Some(Ok(value)) => format!("authorization: {value}\r\n"),
            Some(Err(_)) | None => String::new(),
        };
        format!("{method} {path} HTTP/1.1\r\nhost: {authority}\r\n{authorization}{more}\r\n")
    }

    async fn tcp(&self, server: &Server) -> Result<TcpStream, String> {
        let connected =
            within(ANSWERS_WITHIN, async { Ok(server.connect_tcp(self.client.at).await) });
        let tcp = connected.await?.ok_or_else(no_tls)?;
        let tcp = tcp.map_err(|error| format!("connect: {error}"))?;
        tcp.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
        Ok(tcp)
    }

    async fn tls(&self, server: &Server) -> Result<TlsStream<TcpStream>, String> {
        let name = server.name().ok_or_else(no_tls)?;
        let tcp = self.tcp(server).await?;
        let connector = TlsConnector::from(Arc::clone(&self.client.settings));
        connector.connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))
    }

    /// The first message of a real handshake.
    fn hello(&self, server: &Server) -> Result<Vec<u8>, String> {
        let name = server.name().ok_or_else(no_tls)?;
        let mut session = ClientConnection::new(Arc::clone(&self.client.settings), name)
            .map_err(|error| format!("TLS: {error}"))?;
        let mut hello = Vec::new();
        session.write_tls(&mut hello).map_err(|error| format!("TLS: {error}"))?;
        Ok(hello)
    }
}

fn no_tls() -> String {
    "connect: the server is a unix socket".to_owned()
}

async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> Result<(), String> {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    within(ANSWERS_WITHIN, async { sent.await.map_err(|error| format!("HTTP: {error}")) }).await
}

/// Sends `bytes`, one each second, and then nothing more, until the server closes the connection.
async fn drip(stream: &mut dyn AsyncReadWrite, bytes: &[u8], until: Instant) -> End {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(EACH_BYTE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut left, mut end, mut said) = (bytes.iter(), End::default(), Vec::new());
    let mut buffer = [0; 1024];
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return end,
            read = stream.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) if said.len() < STATUS_BYTES => {
                    said.extend(buffer.iter().take(count));
                    end.status = status(&said);
                }
                Ok(_) => {}
            },
            _ = ticks.tick(), if !left.as_slice().is_empty() => {
                let byte = left.next().copied().unwrap_or_default();
                let sent = async {
                    stream.write_all(&[byte]).await?;
                    stream.flush().await
                };
                // A server that does not even take a byte: the time ends it.
                match tokio::time::timeout_at(until, sent).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break,
                    Err(_) => return end,
                }
            }
        }
    }
    end.closed_after = Some(began.elapsed());
    end
}

/// Reads a byte each second. The end of a connection lies behind all that was not read, so that the
/// operating system is asked what became of it.
async fn read_little(tls: &mut TlsStream<TcpStream>, until: Instant) -> End {
    let began = Instant::now();
    let (mut end, mut said) = (End::default(), Vec::new());
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return end,
            read = tls.read_u8() => match read {
                Ok(byte) if said.len() < STATUS_BYTES => {
                    said.push(byte);
                    end.status = status(&said);
                    if said.len() < STATUS_BYTES {
                        // The status line is read at once: it tells whether there is an answer.
                        continue;
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            },
        }
        if tokio::time::timeout_at(until, tokio::time::sleep(EACH_BYTE)).await.is_err() {
            return end;
        }
        if peer::has_closed(tls.get_ref().0) {
            break;
        }
    }
    end.closed_after = Some(began.elapsed());
    end
}

/// The status of an answer that begins with these bytes; nothing if they are no HTTP/1.1.
fn status(said: &[u8]) -> Option<u16> {
    let text = said.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

const EACH_BYTE: Duration = Duration::from_secs(1);

/// Longer than the load lasts, in seconds, and shorter than what servers take.
const SLOW_BYTES: usize = 4096;

/// `HTTP/1.1 200`.
const STATUS_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_bytes() {
        assert_eq!(status(b"HTTP/1.1 408"), Some(408));
        assert_eq!(status(b"HTTP/1.1 40"), None);
        assert_eq!(status(b"\x15\x03\x03\x00\x02\x02\x28"), None, "a TLS alert");
    }

    #[tokio::test]
    async fn dripping_ends_when_the_other_side_closes_or_the_time_is_over() {
        let (mut ours, theirs) = tokio::io::duplex(64);
        let until = Instant::now() + Duration::from_millis(50);
        let end = drip(&mut ours, b"abc", until).await;
        assert_eq!(end, End::default(), "nobody closed it");
        let mut theirs = theirs;
        theirs.write_all(b"HTTP/1.1 408 Timeout\r\n").await.unwrap();
        drop(theirs);
        let end = drip(&mut ours, b"abc", Instant::now() + Duration::from_secs(30)).await;
        assert_eq!(end.status, Some(408));
        assert!(end.closed_after.is_some());
    }
}
