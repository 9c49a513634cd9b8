//! The one server that is loaded. Its address is looked up once, before the run; redirects are
//! counted and never followed, so no other host is ever asked.
//!
//! `unix:PATH` is a back end on this machine, spoken to in plain HTTP/1.1: what a request costs
//! without any gateway, to subtract from what it costs with one.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hyper::Uri;
use rustls_pki_types::ServerName;

/// `https://host[:port]` or `unix:PATH`, nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
    unix_path: Option<PathBuf>,
}

/// Why the target has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot look up `{host}`")]
    Lookup {
        host: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{0}` has no address")]
    NoAddress(String),
    #[error("`{host}` has the address {address}, which is not this machine")]
    NotLoopback { host: String, address: IpAddr },
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is not an address like https://localhost:8443");
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            let name = ServerName::try_from("localhost").map_err(|_| expected())?;
            let unix_path = Some(PathBuf::from(path));
            return Ok(Self { host: "localhost".to_owned(), port: 0, name, unix_path });
        }
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let plain = uri.scheme_str() == Some("https") && uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let (true, Some(authority)) = (plain, authority) else { return Err(expected()) };
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            _ => authority.port_u16().ok_or_else(expected)?,
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| expected())?;
        Ok(Self { host, port, name, unix_path: None })
    }
}

impl Target {
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The socket, if it is one on this machine.
    pub(crate) fn unix_path(&self) -> Option<&Path> {
        self.unix_path.as_deref()
    }

    /// The name that the server's certificate must carry.
    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// The value of the Host header.
    pub(crate) fn authority(&self) -> String {
        if self.unix_path.is_some() {
            self.host.clone()
        } else if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the host is this machine by its own words.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// How people write it.
    pub(crate) fn shown(&self) -> String {
        match &self.unix_path {
            Some(path) => format!("unix:{}", path.display()),
            None => format!("https://{}", self.authority()),
        }
    }

    /// Every address of the host, the ones to try first first. A name that says loopback and does
    /// not mean it is refused.
    pub(crate) async fn addresses(&self) -> Result<Vec<SocketAddr>, Error> {
        let host = || self.host.clone();
        let found: Vec<SocketAddr> = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|source| Error::Lookup { host: host(), source })?
            .collect();
        if found.is_empty() {
            return Err(Error::NoAddress(host()));
        }
        let other = found.iter().find(|address| !address.ip().is_loopback());
        match other {
            Some(address) if self.is_loopback() => {
                Err(Error::NotLoopback { host: host(), address: address.ip() })
            }
            _ => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_https_origins() {
        for good in ["https://localhost:8443", "https://[::1]:8443/", "https://gw.example"] {
            good.parse::<Target>().unwrap();
        }
        for bad in [
            "http://localhost:8443",
            "https://localhost:8443/v1",
            "https://u@localhost",
            "localhost:8443",
            "https://localhost:99999",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        assert_eq!("https://[::1]:8443".parse::<Target>().unwrap().authority(), "[::1]:8443");
    }
}
