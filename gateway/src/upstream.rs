//! The hub, reached over its unix socket, for requests that hold a [`Permit`].
//!
//! Invariants: every function here that reaches the hub takes `&Permit`; whatever identity headers
//! a client sent are removed before ours are set, and ours are printed from verified values.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::RequestHeader;

use crate::access::Permit;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Prefixes and names by which gateways and proxies tell a back end who is asking.
const IDENTITY_PREFIXES: [&str; 8] = [
    "sekisho-",
    "x-sekisho-",
    "x-forwarded-",
    "x-client-",
    "x-ssl-",
    "ssl-client-",
    "x-real-",
    "x-original-",
];
const IDENTITY_NAMES: [&str; 7] = [
    "forwarded",
    "x-forwarded",
    "via",
    "client-cert",
    "client-cert-chain",
    "x-remote-user",
    "remote-user",
];

/// The hub as an upstream.
#[derive(Debug)]
pub struct Hub {
    socket: PathBuf,
}

impl Hub {
    /// A hub that listens on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Where pingora connects to for a permitted request.
    ///
    /// # Errors
    /// If the socket's path cannot be used.
    pub fn peer(&self, _permit: &Permit) -> Result<Box<HttpPeer>> {
        let path = self.socket.to_str().ok_or_else(|| {
            Error::explain(ErrorType::InternalError, "hub socket path is not UTF-8")
        })?;
        let mut peer = HttpPeer::new_uds(path, false, String::new())?;
        peer.options.connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.total_connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.read_timeout = Some(READ_TIMEOUT);
        peer.options.write_timeout = Some(READ_TIMEOUT);
        peer.options.idle_timeout = Some(IDLE_TIMEOUT);
        Ok(Box::new(peer))
    }

    /// Turns a client's request head into the one that the hub gets.
    ///
    /// # Errors
    /// If a header value cannot be written.
    pub fn prepare(
        &self,
        permit: &Permit,
        sealed: &str,
        request: &mut RequestHeader,
    ) -> Result<()> {
        remove_foreign_identity(request);
        let claims = permit.claims();
        request.insert_header("host", "hub")?;
        request.insert_header(policies::permit::HEADER, sealed)?;
        request.insert_header("sekisho-request-id", &claims.request_id)?;
        request.insert_header("sekisho-principal", claims.principal.path())?;
        request.insert_header("sekisho-serial", claims.serial.to_string())?;
        if let Some(staff) = &claims.staff {
            request.insert_header("sekisho-staff-job", staff.job.as_str())?;
        }
        Ok(())
    }
}

/// Removes what a client says of its own identity.
pub fn remove_foreign_identity(request: &mut RequestHeader) {
    let foreign: Vec<HeaderName> =
        request.headers.keys().filter(|name| tells_identity(name)).cloned().collect();
    for name in foreign {
        request.remove_header(&name);
    }
    // The hub reads no token: who is asking stands in the permit.
    request.remove_header(&http::header::AUTHORIZATION);
    request.remove_header(&http::header::COOKIE);
}

fn tells_identity(name: &HeaderName) -> bool {
    let name = name.as_str();
    IDENTITY_NAMES.contains(&name)
        || IDENTITY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        // An underscore reads as a hyphen in some back ends.
        || name.contains('_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_tell_identity_are_known() {
        for name in [
            "sekisho-permit",
            "x-forwarded-for",
            "x-client-cert",
            "x-ssl-client-s-dn",
            "forwarded",
            "x_sekisho_principal",
            "client-cert",
        ] {
            assert!(tells_identity(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["content-type", "accept", "user-agent"] {
            assert!(!tells_identity(&HeaderName::from_static(name)), "{name}");
        }
    }
}
