//! TLS to a node, made with our own rustls: pingora is built without any
//! (docs/decisions/002-own-tls-termination.md).
//!
//! ```text
//!  pingora ── one end of a pair of sockets ── relay ── TLS 1.3, both show who they are ── node
//! ```
//!
//! pingora keeps connections by the descriptor of a socket, so it gets a real one. It takes one for
//! the node's when it is told that the peer's address is unspecified ([`ADDRESS`]), and asks for
//! nothing but that the other end lives; which node it is it knows by the group key.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_error::{Error, ErrorType, Result};
use tokio::io::copy;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::NodeTls;

/// What pingora is told to connect to.
pub(super) const ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 1));

/// Connects to one node.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) address: SocketAddr,
    pub(super) tls: Arc<NodeTls>,
}

/// A connection to `address` on which both sides showed who they are.
pub(super) async fn connect(
    address: SocketAddr,
    tls: &NodeTls,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(tls.client.clone()).connect(tls.server_name.clone(), stream).await
}

#[async_trait]
impl L4Connect for Tunnel {
    async fn connect(&self, _address: &PeerAddr) -> Result<Stream> {
        let connected = async {
            let far = connect(self.address, &self.tls).await?;
            Ok::<_, std::io::Error>((far, UnixStream::pair()?))
        };
        let (far, (near, end)) = connected.await.map_err(|error| {
            Error::because(ErrorType::ConnectError, "while connecting to a node of the hub", error)
        })?;
        tokio::spawn(relay(end, far));
        Ok(Stream::from(near))
    }
}

/// Until either side closes; the other is closed then.
async fn relay(near: UnixStream, far: TlsStream<TcpStream>) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = tokio::io::split(far);
    tokio::select! {
        _ = copy(&mut near_read, &mut far_write) => {}
        _ = copy(&mut far_read, &mut near_write) => {}
    }
}
