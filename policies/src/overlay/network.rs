//! Ranges of IP addresses, as ADDRESS/LENGTH (CIDR, RFC 4632 and RFC 4291 §2.3).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

/// Why a text is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not an address, or not with a length that it can have.
    #[error("`{0}` is not a range of addresses")]
    Malformed(String),
    /// Bits behind the length are set: the writer meant another range.
    #[error("`{0}` has bits set behind its length")]
    HostBits(String, Network),
}

impl Network {
    /// Whether an address lies in the range. An IPv4 address that comes as IPv6 (`::ffff:…`)
    /// counts as the IPv4 address that it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                let mask = mask(self.length, &self.address);
                bits(address.to_canonical()) & mask == bits(self.address)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || Error::Malformed(text.chars().take(80).collect());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let width = width(&address);
        let length = length.map_or(Ok(width), str::parse).map_err(|_| malformed())?;
        if length > width {
            return Err(malformed());
        }
        let masked = bits(address) & mask(length, &address);
        if masked == bits(address) {
            return Ok(Self { address, length });
        }
        let meant = Self { address: address_of(masked, &address), length };
        Err(Error::HostBits(text.to_owned(), meant))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

const fn width(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address_of(bits: u128, like: &IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

/// The leading `length` bits of an address as wide as `like`.
fn mask(length: u8, like: &IpAddr) -> u128 {
    let behind = u32::from(width(like) - length);
    let all = u128::MAX >> (128 - u32::from(width(like)));
    all & u128::MAX.checked_shl(behind).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_own_addresses_and_no_others() {
        for (range, address, inside) in [
            ("203.0.113.0/24", "203.0.113.9", true),
            ("203.0.113.0/24", "203.0.114.9", false),
            ("203.0.113.0/24", "::ffff:203.0.113.9", true),
            ("203.0.113.9", "203.0.113.9", true),
            ("203.0.113.9", "203.0.113.8", false),
            ("0.0.0.0/0", "198.51.100.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8:5::/48", "2001:db8:5:ffff::1", true),
            ("2001:db8:5::/48", "2001:db8:6::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
        ] {
            let network: Network = range.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), inside, "{range} {address}");
        }
    }

    #[test]
    fn a_range_that_is_not_one_is_refused_and_the_meant_one_named() {
        let meant = "203.0.113.0/24".parse().unwrap();
        let refused = "203.0.113.9/24".parse::<Network>();
        assert_eq!(refused, Err(Error::HostBits("203.0.113.9/24".into(), meant)));
        for wrong in
            ["203.0.113.0/33", "203.0.113/24", "::/129", "office", "10.0.0.0/", "1.2.3.4/x"]
        {
            assert!(matches!(wrong.parse::<Network>(), Err(Error::Malformed(_))), "{wrong}");
        }
    }
}
