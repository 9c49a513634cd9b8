//! What a leaf certificate says: who holds it, for what, and how long.
//!
//! Reading believes nothing: only `trust` joins what was read to a chain that verified.

use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use policies::identity::{Identity, Serial};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::{Reason, Refused};
use crate::trust::Anchor;

/// SHA-256 of a certificate.
pub(crate) type Digest = [u8; 32];

/// SHA-256 of `der`.
pub(crate) fn sha256(der: &[u8]) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
    bytes
}

/// A leaf certificate whose chain leads to an anchor.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) said: Said,
    pub(crate) anchor: Arc<Anchor>,
}

/// What a leaf certificate says, read and not yet believed.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) identity: Identity,
    /// The serial as decisions and facts know it: an outside CA's is qualified by its issuer.
    pub(crate) serial: Serial,
    /// The serial that stands in the certificate.
    pub(crate) shown_serial: Serial,
    /// Of the leaf and, once its chain verified, of everything above it.
    pub(crate) validity: Validity,
    pub(crate) digest: Digest,
    /// The digest as RFC 8705 §3.1 writes it.
    pub(crate) digest_text: String,
}

impl Said {
    pub(super) fn new(
        der: &[u8],
        identity: Identity,
        serial: Serial,
        shown_serial: Serial,
        validity: Validity,
    ) -> Self {
        let digest = sha256(der);
        let digest_text = URL_SAFE_NO_PAD.encode(digest);
        Self { identity, serial, shown_serial, validity, digest, digest_text }
    }
}

/// From when until when something is valid, Unix seconds, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    from: i64,
    until: i64,
}

impl Validity {
    /// What the certificate says.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() }
    }

    /// The time that both cover.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), until: self.until.min(other.until) }
    }

    /// The last second, for what counts no time before 1970.
    pub(crate) fn until(self) -> u64 {
        self.until.try_into().unwrap_or(0)
    }

    /// Whether `now` (Unix seconds) lies within.
    pub(crate) fn check(self, now: u64) -> Result<(), Reason> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if now > self.until {
            return Err(Reason::Expired(date(self.until)));
        }
        if now < self.from {
            return Err(Reason::NotYetValid(date(self.from)));
        }
        Ok(())
    }
}

/// What every leaf must say, whoever signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafRules {
    id_domain: String,
    policy_prefix: Vec<u8>,
}

impl LeafRules {
    /// Rules for SAN URIs under `id_domain` and policies under `<policy_arc>.1`.
    ///
    /// # Errors
    /// If `policy_arc` is not an object identifier.
    pub fn new(id_domain: &str, policy_arc: &str) -> Result<Self, String> {
        let policy_prefix = oid_bytes(&format!("{policy_arc}.1"))?;
        Ok(Self { id_domain: id_domain.to_owned(), policy_prefix })
    }

    /// Reads and checks a leaf at `now` (Unix seconds). The purpose is looked at first, so that a
    /// server certificate is called one, whoever signed it.
    pub(crate) fn read(&self, der: &CertificateDer<'_>, now: u64) -> Result<Said, Refused> {
        let unreadable = Refused { reason: Reason::Malformed, serial: None, claimed: None };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unreadable.clone())?;
        let serial = Serial::from_bytes(certificate.raw_serial()).map_err(|_| unreadable)?;
        let identity = self.identity(&certificate);
        let claimed = identity.as_ref().ok().map(Identity::path);
        let refuse = |reason| Refused { reason, serial: Some(serial), claimed: claimed.clone() };
        check_purpose(&certificate).map_err(refuse)?;
        let validity = Validity::of(&certificate);
        validity.check(now).map_err(refuse)?;
        self.check_policy(&certificate).map_err(refuse)?;
        let identity = identity.map_err(refuse)?;
        if matches!(identity, Identity::Operator { .. }) {
            return Err(refuse(Reason::OperatorRefused));
        }
        Ok(Said::new(der, identity, serial, serial, validity))
    }

    fn identity(&self, certificate: &X509Certificate<'_>) -> Result<Identity, Reason> {
        let san = certificate
            .subject_alternative_name()
            .map_err(|_| Reason::NoIdentity("extension is not understood".to_owned()))?
            .ok_or_else(|| Reason::NoIdentity("no subject alternative name".to_owned()))?;
        let uris: Vec<&str> = san
            .value
            .general_names
            .iter()
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        match uris.as_slice() {
            [uri] => Identity::from_san_uri(uri, &self.id_domain)
                .map_err(|error| Reason::NoIdentity(error.to_string())),
            _ => Err(Reason::NoIdentity(format!("{} URIs", uris.len()))),
        }
    }

    fn check_policy(&self, certificate: &X509Certificate<'_>) -> Result<(), Reason> {
        let ours = certificate.extensions().iter().any(|extension| {
            if let ParsedExtension::CertificatePolicies(policies) = extension.parsed_extension() {
                policies.iter().any(|policy| {
                    let oid = policy.policy_id.as_bytes();
                    oid.len() > self.policy_prefix.len() && oid.starts_with(&self.policy_prefix)
                })
            } else {
                false
            }
        });
        if ours { Ok(()) } else { Err(Reason::WrongPolicy) }
    }
}

/// The content bytes of a dotted object identifier (X.690 §8.19). Ours, because the parser's text
/// form of identifiers under `2.` with a second arc above 47 is wrong.
pub(crate) fn oid_bytes(dotted: &str) -> Result<Vec<u8>, String> {
    let bad = || format!("`{dotted}` is not an object identifier, such as `2.999.1`");
    let arcs: Result<Vec<u64>, _> = dotted.split('.').map(str::parse).collect();
    let arcs = arcs.map_err(|_| bad())?;
    let [first @ 0..=2, second, rest @ ..] = arcs.as_slice() else {
        return Err(bad());
    };
    let head = first.checked_mul(40).and_then(|base| base.checked_add(*second)).ok_or_else(bad)?;
    let mut bytes = Vec::new();
    for arc in std::iter::once(&head).chain(rest) {
        let groups = (64 - (arc | 1).leading_zeros()).div_ceil(7);
        bytes.extend((0..groups).rev().map(|group| {
            let more = if group == 0 { 0 } else { 0x80 };
            ((arc >> (7 * group)) & 0x7f) as u8 | more
        }));
    }
    Ok(bytes)
}

pub(super) fn check_purpose(certificate: &X509Certificate<'_>) -> Result<(), Reason> {
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if usage.value.client_auth => Ok(()),
        _ => Err(Reason::WrongPurpose),
    }
}

pub(crate) fn date(unix: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix)
        .map_or_else(|_| "at an unknown time".to_owned(), |at| at.date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_identifiers_encode_as_x690_says() {
        for (dotted, bytes) in [
            ("2.5.29.32", &[0x55, 0x1d, 0x20][..]),
            ("2.999.1.1", &[0x88, 0x37, 0x01, 0x01]),
            ("1.3.6.1.4.1.311", &[0x2b, 6, 1, 4, 1, 0x82, 0x37]),
        ] {
            assert_eq!(oid_bytes(dotted).unwrap(), bytes, "{dotted}");
        }
        for bad in ["", "3.1", "1", "2.999.", "a.b"] {
            assert!(oid_bytes(bad).is_err(), "{bad}");
        }
    }
}
