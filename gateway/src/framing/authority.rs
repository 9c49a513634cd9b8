//! Whom a request is for: only this gateway, by a name that its own certificate holds.
//!
//! A client that verified the certificate knows such a name. A request for any other one was meant
//! for somebody else: sent over a connection that was taken to serve both (RFC 9113 §9.1.1), or
//! made to be read in two ways. Where there are several certificates, the names are those of the
//! one that this connection's client was shown.
//!
//! Source: RFC 9110 §§4.2, 7.2; RFC 3986 §3.2; RFC 6125 §6.4.3.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Ambiguous;

/// The names in the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerNames {
    /// In lower case.
    hosts: Vec<String>,
    /// What follows the `*` of a wildcard, with its dot.
    below: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl ServerNames {
    /// The names that clients verify `certificate` by: none if it does not parse.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut names = Self::default();
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return names };
        let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return names };
        for name in &alternatives.value.general_names {
            names.take(name);
        }
        names
    }

    /// Whether no request could be for this server.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.below.is_empty() && self.addresses.is_empty()
    }

    /// Checks the value of Host or `:authority`: a name of ours, and maybe a port. Which port
    /// clients come through is not known here.
    ///
    /// # Errors
    /// [`Ambiguous`] names the offence.
    pub fn check(&self, authority: &[u8]) -> Result<(), Ambiguous> {
        let (host, port) = split(authority).ok_or(Ambiguous("authority is no name and port"))?;
        if !port.is_none_or(is_port) {
            return Err(Ambiguous("port of the authority is no port"));
        }
        let Ok(host) = std::str::from_utf8(host) else { return Err(FOREIGN) };
        if self.holds(host) { Ok(()) } else { Err(FOREIGN) }
    }

    fn take(&mut self, name: &GeneralName<'_>) {
        // Other kinds of names are of no use to an HTTPS client.
        if let GeneralName::DNSName(name) = name {
            let name = name.to_ascii_lowercase();
            match name.strip_prefix('*') {
                Some(below) if below.starts_with('.') => self.below.push(below.to_owned()),
                Some(_) => {}
                None => self.hosts.push(name),
            }
        } else if let GeneralName::IPAddress(bytes) = name {
            let four = <[u8; 4]>::try_from(*bytes).map(|it| IpAddr::V4(it.into()));
            let sixteen = <[u8; 16]>::try_from(*bytes).map(|it| IpAddr::V6(it.into()));
            self.addresses.extend(four.or(sixteen));
        }
    }

    /// Whether `host`, without a port, is one of them.
    pub fn holds(&self, host: &str) -> bool {
        if self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host)) {
            return true;
        }
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match bracketed {
            Some(six) => six.parse().map(IpAddr::V6),
            None => host.parse().map(IpAddr::V4),
        };
        if let Ok(address) = address {
            return self.addresses.contains(&address);
        }
        // A wildcard stands for one label.
        host.find('.').is_some_and(|dot| {
            let (label, below) = host.split_at(dot);
            is_label(label) && self.below.iter().any(|ours| ours.eq_ignore_ascii_case(below))
        })
    }
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Host and port; the host of an IPv6 address is in brackets.
fn split(authority: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let from = match authority.first()? {
        b'[' => authority.iter().position(|byte| *byte == b']')?,
        _ => 0,
    };
    match authority.get(from..)?.iter().position(|byte| *byte == b':') {
        Some(colon) => Some((authority.get(..from + colon)?, authority.get(from + colon + 1..))),
        None => Some((authority, None)),
    }
}

/// RFC 3986 allows an empty port and leading zeros; nobody sends them.
fn is_port(port: &[u8]) -> bool {
    let digits = port.iter().all(u8::is_ascii_digit) && port.first() != Some(&b'0');
    let number = std::str::from_utf8(port).ok().and_then(|port| port.parse::<u16>().ok());
    digits && number.is_some()
}

const FOREIGN: Ambiguous = Ambiguous("authority is not a name of this server");

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ServerNames {
        let names = ["gw.example", "*.care.example", "10.0.0.1", "::1"];
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(names.map(str::to_owned).to_vec()).unwrap();
        ServerNames::of(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn names_in_the_certificate_are_ours_with_any_port() {
        for ours in [
            "gw.example",
            "GW.Example",
            "gw.example:443",
            "gw.example:65535",
            "a.care.example",
            "A.CARE.example:8443",
            "10.0.0.1",
            "10.0.0.1:8443",
            "[::1]",
            "[::1]:8443",
        ] {
            assert_eq!(names().check(ours.as_bytes()), Ok(()), "{ours}");
        }
    }

    #[test]
    fn other_names_and_odd_ports_are_refused() {
        for foreign in [
            "",
            "example",
            "gw.example.",
            "gw.example.evil",
            "x.gw.example",
            "care.example",
            ".care.example",
            "a.b.care.example",
            "*.care.example",
            "10.0.0.2",
            "010.0.0.1",
            "::1",
            "[::2]",
            "[::1",
            "[gw.example]",
            "[10.0.0.1]",
            "gw.example:",
            "gw.example:0",
            "gw.example:0443",
            "gw.example:65536",
            "gw.example:+1",
            "gw.example:1:2",
            "gw.example@evil",
            "gw.example, evil",
            "gw.example/",
            " gw.example",
        ] {
            assert!(names().check(foreign.as_bytes()).is_err(), "{foreign}");
        }
        assert!(names().check(b"gw.example\xff").is_err());
        let none = ServerNames::default();
        assert!(none.is_empty() && none.check(b"gw.example").is_err());
    }
}
