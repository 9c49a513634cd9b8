//! Whether the other side of a connection has closed it, asked of the operating system: whoever
//! does not read does not see the end, which lies behind what was not read.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Whether the other side has closed the connection, as far as it can be known.
///
/// Of a connection within this machine both ends stand in proc(5); of another one, only that its
/// end has come can be seen.
pub(super) fn has_closed(tcp: &TcpStream) -> bool {
    if let (Ok(own), Ok(other)) = (tcp.local_addr(), tcp.peer_addr())
        && other.ip().is_loopback()
        && let Some(is_established) = established_lately(other, own)
    {
        return !is_established;
    }
    // Ready at once, or not at all: there may be nothing to read.
    match pin!(tcp.ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        Poll::Ready(Err(_)) => true,
        Poll::Pending => false,
    }
}

/// Asks the table of connections, which is read once for all who ask within a moment. `None`
/// without such a table.
fn established_lately(local: SocketAddr, remote: SocketAddr) -> Option<bool> {
    static LAST: Mutex<Option<(Instant, Table)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.as_ref().is_none_or(|(read, _)| read.elapsed() > READ_EACH) {
        *last = Some((Instant::now(), Table::read()?));
    }
    last.as_ref().map(|(_, table)| table.has(local, remote))
}

/// All established connections, as pairs of addresses as they are written there.
struct Table(HashSet<(String, String)>);

impl Table {
    fn read() -> Option<Self> {
        let texts: Vec<_> =
            TABLES.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
        if texts.is_empty() {
            return None;
        }
        let lines = texts.iter().flat_map(|text| text.lines().skip(1));
        Some(Self(lines.filter_map(established).collect()))
    }

    fn has(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.contains(&(written(local), written(remote)))
    }
}

/// Local and remote address of a line, if its connection is established.
fn established(line: &str) -> Option<(String, String)> {
    let mut fields = line.split_whitespace().skip(1);
    // An IPv4 address in the table of IPv6 ends as it stands in the other one.
    let plain = |field: &str| field.strip_prefix(MAPPED).unwrap_or(field).to_owned();
    let (local, remote) = (plain(fields.next()?), plain(fields.next()?));
    (fields.next()? == ESTABLISHED).then_some((local, remote))
}

/// An address as proc(5) writes it: words of 32 bits in the machine's own order.
fn written(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| {
        let word = <[u8; 4]>::try_from(word).unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(word))
    });
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
const MAPPED: &str = "0000000000000000FFFF0000";
const ESTABLISHED: &str = "01";
const READ_EACH: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_close_behind_unread_bytes_is_seen() {
        for (listens, to) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")]
        {
            let listener = TcpListener::bind(listens).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let ours = TcpStream::connect((to, port)).await.unwrap();
            let (mut theirs, _) = listener.accept().await.unwrap();
            // More than the other side's window: the end can not be sent before it is read.
            let large = vec![0; 64 << 20];
            let sent = tokio::time::timeout(Duration::from_millis(200), theirs.write_all(&large));
            assert!(sent.await.is_err(), "nobody reads");
            let (own, other) = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
            assert!(Table::read().unwrap().has(other, own), "{listens}");
            drop(theirs);
            assert!(!Table::read().unwrap().has(other, own), "{listens}");
        }
    }
}
