//! The files that TLS is made from: read at the start, and again whenever they change.
//!
//! Invariants: what is taken fits together as a whole (the key is the certificate's, every
//! certificate parses, something in it is still valid); a production gateway never trusts a demo
//! CA, at the start and later alike; a key that others can read is refused.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::client_cert::{Digest, Validity, sha256};
use crate::framing::authority::ServerNames;
use crate::outside_ca::Settings;

/// Where the files are, and what they may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate.
    pub server: KeyFiles,
    /// Further ones, for clients that ask for their names.
    pub sni: Vec<KeyFiles>,
    /// Our issuing CAs.
    pub trust_anchors: PathBuf,
    /// Outside CAs.
    pub outside: Vec<Settings>,
    /// The extension (object identifier's bytes) that marks a demo CA, where none may be trusted.
    pub refused_marker: Option<Vec<u8>>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
}

/// A certificate that the gateway shows.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    /// Chain and key.
    pub key: Arc<CertifiedKey>,
    /// Whom it names.
    pub names: Arc<ServerNames>,
    validity: Validity,
}

/// The certificates that the gateway shows, by the name that a client asks for (SNI, RFC 6066 §3).
#[derive(Debug, Clone)]
pub struct ServerCertificates {
    first: ServerCertificate,
    further: Vec<ServerCertificate>,
}

impl ServerCertificates {
    /// The first one that holds `name`, in the order of the configuration. Who asks for no name, or
    /// for one that is not ours, is shown the first of all.
    pub fn for_name(&self, name: Option<&str>) -> &ServerCertificate {
        let holds = |it: &&ServerCertificate| name.is_some_and(|name| it.names.holds(name));
        self.all().find(holds).unwrap_or(&self.first)
    }

    fn all(&self) -> impl Iterator<Item = &ServerCertificate> {
        std::iter::once(&self.first).chain(&self.further)
    }
}

impl ResolvesServerCert for ServerCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.for_name(hello.server_name()).key.clone())
    }
}

/// What the files held at one time.
pub struct Credentials {
    /// What the gateway shows.
    pub servers: Arc<ServerCertificates>,
    /// Our issuing CAs.
    pub trust_anchors: Vec<CertificateDer<'static>>,
    /// The issuing CAs of `Files::outside`, one for one.
    pub outside: Vec<Vec<CertificateDer<'static>>>,
    /// Tells one content of the files from another.
    pub(crate) digest: Digest,
}

/// One thing that is wrong: the configuration's key, and what to do.
pub type Problem = (&'static str, String);

impl Files {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Every problem.
    pub fn read(&self, provider: &CryptoProvider) -> Result<Credentials, Vec<Problem>> {
        let mut reading = Reading::default();
        let first = reading.server(FIRST, &self.server, provider);
        let further = self.sni.iter().filter_map(|it| reading.server(SNI, it, provider));
        let further: Vec<_> = further.collect();
        let trust_anchors = reading.certificates("trust_anchors", &self.trust_anchors);
        let marker = self.refused_marker.as_deref();
        reading.anchors("trust_anchors", trust_anchors.as_deref(), &self.trust_anchors, marker);
        let outside = self.outside.iter().filter_map(|ca| {
            let anchors = reading.certificates(OUTSIDE, &ca.anchors);
            reading.anchors(OUTSIDE, anchors.as_deref(), &ca.anchors, marker);
            anchors
        });
        let outside: Vec<_> = outside.collect();
        match (first, trust_anchors) {
            (Some(first), Some(trust_anchors)) if reading.problems.is_empty() => {
                let servers = Arc::new(ServerCertificates { first, further });
                let digest = sha256(&reading.bytes);
                Ok(Credentials { servers, trust_anchors, outside, digest })
            }
            _ => Err(reading.problems),
        }
    }
}

impl Credentials {
    /// When the first of the server's certificates expires, Unix seconds.
    pub(crate) fn server_not_after(&self) -> i64 {
        let ends = self.servers.all().map(|it| it.validity.until());
        ends.min().and_then(|first| first.try_into().ok()).unwrap_or(i64::MAX)
    }

    /// Whether everything that must be valid is so at `now` (Unix seconds).
    ///
    /// # Errors
    /// A line for the operator.
    pub fn check_validity(&self, now: u64) -> Result<(), Problem> {
        let unfit = |key| move |reason| (key, format!("the certificate is {reason}"));
        self.servers.first.validity.check(now).map_err(unfit(FIRST.0))?;
        for further in &self.servers.further {
            further.validity.check(now).map_err(unfit(SNI.0))?;
        }
        let valid = self.trust_anchors.iter().filter_map(validity);
        if valid.into_iter().any(|validity| validity.check(now).is_ok()) {
            return Ok(());
        }
        Err(("trust_anchors", "no CA in it is valid now".to_owned()))
    }
}

fn validity(der: &CertificateDer<'_>) -> Option<Validity> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| Validity::of(&certificate))
}

/// Collects problems, and everything that was read.
#[derive(Default)]
struct Reading {
    problems: Vec<Problem>,
    bytes: Vec<u8>,
}

impl Reading {
    fn keep<T>(&mut self, key: &'static str, value: Result<T, String>) -> Option<T> {
        value.map_err(|problem| self.problems.push((key, problem))).ok()
    }

    fn certificates(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let shown = path.display();
        let unreadable =
            |why: &dyn std::fmt::Display| format!("cannot read certificates from `{shown}`: {why}");
        let read = std::fs::read(path).map_err(|error| unreadable(&error));
        let bytes = self.keep(key, read)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let chain = chain.map_err(|error| unreadable(&error)).and_then(|chain| {
            match chain.iter().position(|der| validity(der).is_none()) {
                Some(at) => Err(unreadable(&format!("number {} is no certificate", at + 1))),
                None if chain.is_empty() => Err(format!("file `{shown}` holds no certificate")),
                None => Ok(chain),
            }
        });
        self.bytes.extend(bytes);
        self.keep(key, chain)
    }

    fn private_key(&mut self, key: &'static str, path: &Path) -> Option<PrivateKeyDer<'static>> {
        let bytes = self.keep(key, read_private(path))?;
        let parsed = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| format!("file `{}` holds no PEM private key", path.display()));
        self.bytes.extend(bytes);
        self.keep(key, parsed)
    }

    /// A certificate with its key; `keys` are the configuration's for both.
    fn server(
        &mut self,
        keys: (&'static str, &'static str),
        files: &KeyFiles,
        provider: &CryptoProvider,
    ) -> Option<ServerCertificate> {
        let chain = self.certificates(keys.0, &files.certificate);
        let key = self.private_key(keys.1, &files.key);
        let (chain, key) = chain.zip(key)?;
        let leaf = chain.first()?;
        let validity = validity(leaf)?;
        let names = Arc::new(ServerNames::of(leaf));
        if names.is_empty() {
            let what = "the certificate names no host: no client could verify it".to_owned();
            self.problems.push((keys.0, what));
        }
        let fits = CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| format!("does not fit `{}`: {error}", keys.0));
        let key = Arc::new(self.keep(keys.1, fits)?);
        Some(ServerCertificate { key, names, validity })
    }

    /// Demo and production never mix: a demo CA's certificate carries a marker extension.
    fn anchors(
        &mut self,
        key: &'static str,
        anchors: Option<&[CertificateDer<'static>]>,
        path: &Path,
        refused_marker: Option<&[u8]>,
    ) {
        let marked = refused_marker.is_some_and(|marker| {
            anchors.unwrap_or_default().iter().any(|anchor| has_extension(anchor, marker))
        });
        if marked {
            let what = format!(
                "`{}` holds a demo CA's certificate: a production gateway never trusts it",
                path.display()
            );
            self.problems.push((key, what));
        }
    }
}

/// The configuration's keys of certificate and key.
const FIRST: (&str, &str) = ("server_certificate", "server_key");
const SNI: (&str, &str) = ("sni_certificates.certificate", "sni_certificates.key");
const OUTSIDE: &str = "outside_cas.anchors";

fn has_extension(der: &CertificateDer<'_>, oid: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        certificate.extensions().iter().any(|extension| extension.oid.as_bytes() == oid)
    })
}

/// Reads a file that only its owner may read.
pub(crate) fn read_private(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path)
        .map_err(|error| format!("cannot read key file `{shown}`: {error}"))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!("key file `{shown}` is readable by others: run `chmod 600 {shown}`"));
    }
    std::fs::read(path).map_err(|error| format!("cannot read key file `{shown}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("permit.key");
        std::fs::write(&path, [1; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_private(&path).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_private(&path).unwrap().len(), 32);
    }
}
