//! Who may begin a handshake: connections and handshakes are bounded, in all and for each address,
//! at one time and in a second.
//!
//! Behind a load balancer the client's address is what the balancer says in a PROXY protocol header
//! (version 2); it is asked of listed sources only, and of those always, so that nobody else can
//! say where they come from.
//!
//! Invariant: what a client costs before its handshake is a socket and a task; a handshake needs an
//! [`Admitted`], and [`Admission::handshake`] alone makes one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use policies::overlay::network::Network;
use ppp::v2::{Addresses, Command, Header};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Limits;
use crate::slots::{Slot, Slots};

/// The limits of one listener, and who has a part of them.
pub struct Admission {
    connections: Arc<Slots<()>>,
    connections_each: Arc<Slots<IpAddr>>,
    handshakes: Arc<Slots<IpAddr>>,
    rate: DefaultDirectRateLimiter,
    rate_each: DefaultKeyedRateLimiter<IpAddr>,
    proxies: Vec<Network>,
    hello_timeout: Duration,
}

/// An open connection; its share is free again when this is dropped.
#[derive(Debug)]
pub struct Opened {
    _of_all: Share,
    _of_address: Slot<IpAddr>,
    /// Where the client is: the peer, or what a listed balancer says.
    pub address: SocketAddr,
}

/// One of all connections.
pub type Share = Slot<()>;

/// Leave to shake hands, given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    _slot: Slot<IpAddr>,
}

/// Why a connection goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too many, in all or of this address.
    OverLimit,
    /// Too many in this second, in all or of this address.
    OverRate,
    /// Nothing came in time.
    NoHello,
    /// A listed balancer sent no PROXY protocol header that says where the client is.
    ProxyHeader,
}

impl Refusal {
    /// The label in the metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::OverLimit => "over_limit",
            Self::OverRate => "over_rate",
            Self::NoHello => "no_hello",
            Self::ProxyHeader => "proxy_header",
        }
    }
}

impl Admission {
    /// What `limits` say, for clients and for balancers of `proxies`.
    pub fn new(limits: &Limits, proxies: &[Network]) -> Self {
        let slots = [(); 2].map(|()| Slots::new(0, 0));
        Self::limited((Slots::new(0, 0), slots), limits, proxies)
    }

    /// The same with other limits, which count what is open and in flight already.
    pub fn relimited(&self, limits: &Limits, proxies: &[Network]) -> Self {
        let slots = [self.connections_each.clone(), self.handshakes.clone()];
        Self::limited((self.connections.clone(), slots), limits, proxies)
    }

    fn limited(
        (connections, [connections_each, handshakes]): (Arc<Slots<()>>, [Arc<Slots<IpAddr>>; 2]),
        limits: &Limits,
        proxies: &[Network],
    ) -> Self {
        connections.limit(limits.connections_max, usize::MAX);
        connections_each.limit(usize::MAX, limits.connections_per_address_max);
        let each = limits.handshakes_in_flight_per_address_max;
        handshakes.limit(limits.handshakes_in_flight_max, each);
        let each = limits.handshakes_per_second_per_address_max;
        Self {
            connections,
            connections_each,
            handshakes,
            rate: RateLimiter::direct(Quota::per_second(limits.handshakes_per_second_max)),
            rate_each: RateLimiter::keyed(Quota::per_second(each)),
            proxies: proxies.to_vec(),
            hello_timeout: limits.hello_timeout,
        }
    }

    /// A share of all connections, for one that was just accepted.
    ///
    /// # Errors
    /// [`Refusal::OverLimit`].
    pub fn accepted(&self) -> Result<Share, Refusal> {
        self.connections.take(()).ok_or(Refusal::OverLimit)
    }

    /// Waits until the client begins to speak, and learns where it is. Until then it has cost a
    /// socket, no more.
    ///
    /// # Errors
    /// Any [`Refusal`] but of rate.
    pub async fn open(
        &self,
        of_all: Share,
        tcp: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<Opened, Refusal> {
        let proxied = self.proxies.iter().any(|listed| listed.contains(peer.ip()));
        let address = if proxied {
            let header = timeout(self.hello_timeout, proxied_address(tcp, peer)).await;
            header.map_err(|_| Refusal::NoHello)??
        } else {
            peer
        };
        let of_address = self.connections_each.take(holder(address.ip()));
        let of_address = of_address.ok_or(Refusal::OverLimit)?;
        let mut byte = [0];
        let first = timeout(self.hello_timeout, tcp.peek(&mut byte)).await;
        if !matches!(first, Ok(Ok(1..))) {
            return Err(Refusal::NoHello);
        }
        Ok(Opened { _of_all: of_all, _of_address: of_address, address })
    }

    /// Leave for the handshake of an open connection. An address that asks too often takes nothing
    /// of what all have together.
    ///
    /// # Errors
    /// [`Refusal::OverRate`] or [`Refusal::OverLimit`].
    pub fn handshake(&self, opened: &Opened) -> Result<Admitted, Refusal> {
        let holder = holder(opened.address.ip());
        self.rate_each.check_key(&holder).map_err(|_| Refusal::OverRate)?;
        self.rate.check().map_err(|_| Refusal::OverRate)?;
        let slot = self.handshakes.take(holder).ok_or(Refusal::OverLimit)?;
        Ok(Admitted { _slot: slot })
    }

    /// Forgets addresses that have been silent for long enough to begin anew.
    pub fn forget_silent(&self) {
        self.rate_each.retain_recent();
        self.rate_each.shrink_to_fit();
    }
}

/// How often [`Admission::forget_silent`] is due.
pub const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// Whose share an address takes. Of IPv6 that is the network of 64 bits: one household or office
/// has that many addresses (RFC 6177).
fn holder(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// What a balancer says of the client (PROXY protocol version 2, §2.2). Its own checks (`LOCAL`)
/// are connections of the balancer itself.
async fn proxied_address(tcp: &mut TcpStream, peer: SocketAddr) -> Result<SocketAddr, Refusal> {
    let mut header = vec![0; FIXED_BYTES];
    tcp.read_exact(&mut header).await.map_err(|_| Refusal::NoHello)?;
    if !header.starts_with(ppp::v2::PROTOCOL_PREFIX) {
        return Err(Refusal::ProxyHeader);
    }
    let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if rest > REST_BYTES_MAX {
        return Err(Refusal::ProxyHeader);
    }
    header.resize(FIXED_BYTES + rest, 0);
    tcp.read_exact(&mut header[FIXED_BYTES..]).await.map_err(|_| Refusal::NoHello)?;
    let header = Header::try_from(header.as_slice()).map_err(|_| Refusal::ProxyHeader)?;
    match (header.command, header.addresses) {
        (Command::Local, _) => Ok(peer),
        (Command::Proxy, Addresses::IPv4(it)) => {
            Ok(SocketAddr::from((it.source_address, it.source_port)))
        }
        (Command::Proxy, Addresses::IPv6(it)) => {
            Ok(SocketAddr::from((it.source_address, it.source_port)))
        }
        (Command::Proxy, Addresses::Unspecified | Addresses::Unix(_)) => Err(Refusal::ProxyHeader),
    }
}

/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Addresses and what else a balancer tells, such as the ids of a cloud.
const REST_BYTES_MAX: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_has_the_share_of_its_network() {
        for (a, b, same) in [
            ("2001:db8::1", "2001:db8::ffff:1:2:3", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
        ] {
            let (a, b): (IpAddr, IpAddr) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(holder(a) == holder(b), same, "{a} {b}");
        }
    }
}
