//! From a certificate to a [`VerifiedClient`]: chain, validity, purpose, policy, identity,
//! revocation.
//!
//! [`Verifier`] runs inside a full handshake. A resumed session never calls it (RFC 8446 §2.2), so
//! [`VerifiedClient::from_handshake`] looks at validity, identity and revocation again after every
//! handshake, full or resumed, and `access` looks at revocation on every request.
//!
//! Belongs here later: the cache of verified chains, and identity rules of outside CAs.
//!
//! Invariants: a [`VerifiedClient`] exists only for a peer whose handshake was completed by a
//! `ServerConfig` that uses [`Verifier`]; the text of a certificate is never trusted, only its SAN.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use policies::identity::{Identity, Serial};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use crate::facts_feed::LiveFacts;

/// Why a client certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The bytes are no X.509 certificate.
    #[error("certificate is not understood")]
    Malformed,
    /// After its `notAfter`.
    #[error("expired {0}")]
    Expired(String),
    /// Before its `notBefore`.
    #[error("not valid before {0}")]
    NotYetValid(String),
    /// No trust anchor signed it.
    #[error("unknown issuer `{0}`")]
    UnknownIssuer(String),
    /// Its extended key usage does not hold clientAuth.
    #[error("not a client certificate (extended key usage lacks clientAuth)")]
    WrongPurpose,
    /// None of its policies is one of the operator's.
    #[error("certificate policy is not one of the operator's")]
    WrongPolicy,
    /// Its SAN holds no identity of this operator, or more than one.
    #[error("SAN carries no single identity: {0}")]
    NoIdentity(String),
    /// Operator certificates are not for public listeners.
    #[error("operator certificates are refused on public listeners")]
    OperatorRefused,
    /// It was revoked.
    #[error("revoked")]
    Revoked,
    /// The chain or signature does not verify.
    #[error("chain does not verify: {0}")]
    Chain(String),
}

impl Reason {
    /// Whether only the text about the holder is wrong, which counts for nothing from a stranger.
    const fn is_about_holder(&self) -> bool {
        matches!(self, Self::WrongPolicy | Self::NoIdentity(_) | Self::OperatorRefused)
    }

    /// A stable word for metrics and records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed_certificate",
            Self::Expired(_) => "expired",
            Self::NotYetValid(_) => "not_yet_valid",
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::WrongPurpose => "wrong_purpose",
            Self::WrongPolicy => "wrong_policy",
            Self::NoIdentity(_) => "no_identity",
            Self::OperatorRefused => "operator_refused",
            Self::Revoked => "revoked",
            Self::Chain(_) => "chain_invalid",
        }
    }
}

/// A refused certificate: the reason, and what is known of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// Its serial number, where it could be read.
    pub serial: Option<Serial>,
    /// The identity it names, where it could be read. Not proved by anything.
    pub claimed: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl std::error::Error for Refused {}

/// What a leaf certificate says, read but not yet believed.
struct Leaf {
    identity: Identity,
    serial: Serial,
    not_after: u64,
    sha256: String,
}

/// A client whose certificate was verified in a TLS handshake with this gateway.
#[derive(Debug)]
pub struct VerifiedClient {
    identity: Identity,
    serial: Serial,
    not_after: u64,
    sha256: String,
}

impl VerifiedClient {
    /// Looks at the leaf again after a completed handshake, full or resumed.
    ///
    /// # Errors
    /// [`Refused`] if the certificate has expired or was revoked since the session began.
    pub fn from_handshake(
        rules: &LeafRules,
        facts: &LiveFacts,
        peer_certificates: Option<&[CertificateDer<'_>]>,
    ) -> Result<Self, Refused> {
        let leaf = peer_certificates.and_then(<[_]>::first).ok_or(Refused {
            reason: Reason::Malformed,
            serial: None,
            claimed: None,
        })?;
        let leaf = rules.read(leaf, now())?;
        refuse_revoked(facts, &leaf)?;
        Ok(Self {
            identity: leaf.identity,
            serial: leaf.serial,
            not_after: leaf.not_after,
            sha256: leaf.sha256,
        })
    }

    /// The principal that the certificate names.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// `notAfter`, Unix seconds.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// SHA-256 of the certificate, base64url without padding (RFC 8705 §3.1 `x5t#S256`).
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

fn refuse_revoked(facts: &LiveFacts, leaf: &Leaf) -> Result<(), Refused> {
    if facts.current().revoked(leaf.serial).is_some() {
        return Err(Refused {
            reason: Reason::Revoked,
            serial: Some(leaf.serial),
            claimed: Some(leaf.identity.path()),
        });
    }
    Ok(())
}

/// What every leaf must say, whoever signed it.
#[derive(Debug, Clone)]
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
    fn read(&self, der: &CertificateDer<'_>, now: u64) -> Result<Leaf, Refused> {
        let unreadable = Refused { reason: Reason::Malformed, serial: None, claimed: None };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unreadable.clone())?;
        let serial = Serial::from_bytes(certificate.raw_serial()).map_err(|_| unreadable)?;
        let identity = self.identity(&certificate);
        let claimed = identity.as_ref().ok().map(Identity::path);
        let refuse = |reason| Refused { reason, serial: Some(serial), claimed: claimed.clone() };
        check_purpose(&certificate).map_err(refuse)?;
        check_validity(&certificate, now).map_err(refuse)?;
        self.check_policy(&certificate).map_err(refuse)?;
        let identity = identity.map_err(refuse)?;
        if matches!(identity, Identity::Operator { .. }) {
            return Err(refuse(Reason::OperatorRefused));
        }
        let sha256 = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, der));
        let not_after = certificate.validity().not_after.timestamp().try_into().unwrap_or(0);
        Ok(Leaf { identity, serial, not_after, sha256 })
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

fn check_purpose(certificate: &X509Certificate<'_>) -> Result<(), Reason> {
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if usage.value.client_auth => Ok(()),
        _ => Err(Reason::WrongPurpose),
    }
}

fn check_validity(certificate: &X509Certificate<'_>, now: u64) -> Result<(), Reason> {
    let validity = certificate.validity();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if now > validity.not_after.timestamp() {
        return Err(Reason::Expired(date(validity.not_after.timestamp())));
    }
    if now < validity.not_before.timestamp() {
        return Err(Reason::NotYetValid(date(validity.not_before.timestamp())));
    }
    Ok(())
}

fn date(unix: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix)
        .map_or_else(|_| "at an unknown time".to_owned(), |at| at.date().to_string())
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The client certificate verifier of the public listener.
pub struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    rules: LeafRules,
    facts: Arc<LiveFacts>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier that trusts `anchors` (the issuing CAs) and nothing else.
    ///
    /// # Errors
    /// A line for the operator if an anchor cannot be used.
    pub fn new(
        anchors: &[CertificateDer<'static>],
        provider: Arc<rustls::crypto::CryptoProvider>,
        rules: LeafRules,
        facts: Arc<LiveFacts>,
    ) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        for anchor in anchors {
            roots
                .add(anchor.clone())
                .map_err(|error| format!("trust anchor cannot be used: {error}"))?;
        }
        // INVARIANT: no CRLs here. rustls verifies a CRL's signature again in every handshake, and
        // a resumed session asks nobody; revocation is a fact, looked at in memory instead.
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| format!("client certificate verifier: {error}"))?;
        Ok(Self { chain, rules, facts })
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Refused> {
        let chain = self.chain.verify_client_cert(end_entity, intermediates, now);
        let leaf = match (self.rules.read(end_entity, now.as_secs()), &chain) {
            // What a stranger's certificate says of its holder does not matter: it is a stranger's.
            (Err(refused), Err(error)) if refused.reason.is_about_holder() => {
                return Err(Refused { reason: chain_reason(error, end_entity), ..refused });
            }
            (leaf, _) => leaf?,
        };
        let verified = chain.map_err(|error| Refused {
            reason: chain_reason(&error, end_entity),
            serial: Some(leaf.serial),
            claimed: Some(leaf.identity.path()),
        })?;
        refuse_revoked(&self.facts, &leaf)?;
        Ok(verified)
    }
}

fn chain_reason(error: &rustls::Error, end_entity: &CertificateDer<'_>) -> Reason {
    if let rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) = error {
        let issuer = X509Certificate::from_der(end_entity)
            .map(|(_, certificate)| certificate.issuer().to_string())
            .unwrap_or_default();
        return Reason::UnknownIssuer(issuer.chars().take(120).collect());
    }
    Reason::Chain(error.to_string())
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now).map_err(|refused| {
            let error = match refused.reason {
                Reason::Expired(_) => CertificateError::Expired,
                Reason::NotYetValid(_) => CertificateError::NotValidYet,
                Reason::UnknownIssuer(_) => CertificateError::UnknownIssuer,
                Reason::Revoked => CertificateError::Revoked,
                Reason::Malformed
                | Reason::WrongPurpose
                | Reason::WrongPolicy
                | Reason::NoIdentity(_)
                | Reason::OperatorRefused
                | Reason::Chain(_) => {
                    CertificateError::Other(rustls::OtherError(Arc::new(refused.clone())))
                }
            };
            REFUSED.with(|slot| slot.set(Some(refused)));
            rustls::Error::InvalidCertificate(error)
        })
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

thread_local! {
    /// The refusal of the handshake step that runs on this thread now. rustls turns a verifier's
    /// error into an alert and keeps only its kind, so the whole [`Refused`] waits here until the
    /// poll that caused it returns; see [`take_refused`].
    static REFUSED: std::cell::Cell<Option<Refused>> = const { std::cell::Cell::new(None) };
}

/// Takes the refusal that the poll just finished on this thread left behind.
pub(crate) fn take_refused() -> Option<Refused> {
    REFUSED.with(std::cell::Cell::take)
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
