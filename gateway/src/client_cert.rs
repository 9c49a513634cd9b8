//! From a certificate to a [`VerifiedClient`]: chain, validity, purpose, policy, identity,
//! revocation.
//!
//! [`Verifier`] runs inside a full handshake, before the client has proved that it holds the key; a
//! resumed session never calls it (RFC 8446 §2.2). So it only leaves a [`Candidate`] behind, and
//! [`VerifiedClient::admit`] looks at chain, validity, identity and revocation after every
//! handshake, full or resumed; `access` looks at revocation on every request.
//!
//! Invariants: a [`VerifiedClient`] exists only for a peer whose handshake was completed by a
//! `ServerConfig` that uses [`Verifier`]; the text of a certificate is never trusted, only its SAN.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use policies::identity::{Identity, Serial};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

mod leaf;
mod subject;

pub(crate) use leaf::{Digest, Leaf, LeafRules, Said, Validity, date, oid_bytes, sha256};
pub(crate) use subject::read_kokuho;

use crate::facts_feed::LiveFacts;
use crate::trust::{Anchor, Rule, TrustBundle};

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
    /// The outside CA gives certificates of this kind for something else.
    #[error("certificate kind `{0}` is not for care: 介護保険 or 介護DX is needed")]
    WrongKind(String),
    /// Whether the outside CA revoked it cannot be told.
    #[error("revocation not known: {0}")]
    RevocationUnknown(String),
    /// It was revoked.
    #[error("revoked")]
    Revoked,
    /// The client could not prove that it holds the certificate's key.
    #[error("client does not hold the certificate's key")]
    NotTheHolder,
    /// The chain or signature does not verify.
    #[error("chain does not verify: {0}")]
    Chain(String),
}

impl Reason {
    /// Whether only the text about the holder is wrong, which counts for nothing from a stranger.
    pub(crate) const fn is_about_holder(&self) -> bool {
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
            Self::WrongKind(_) => "wrong_certificate_kind",
            Self::RevocationUnknown(_) => "revocation_unknown",
            Self::Revoked => "revoked",
            Self::NotTheHolder => "not_the_holder",
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

/// A certificate that the bundle trusts, of a client that has yet to prove that it holds the key.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub(crate) leaf: Arc<Leaf>,
    /// The bundle that trusts it.
    pub(crate) generation: u64,
}

impl Candidate {
    /// The refusal of a client that broke off, or could not prove that it holds the key.
    pub(crate) fn refused(&self, reason: Reason) -> Refused {
        self.leaf.refused(reason)
    }
}

/// A client whose certificate was verified in a TLS handshake with this gateway.
#[derive(Debug)]
pub struct VerifiedClient {
    leaf: Arc<Leaf>,
}

impl VerifiedClient {
    /// Looks at the certificate again after a completed handshake, full or resumed. `candidate` is
    /// what the verifier left behind in it, if it ran.
    ///
    /// # Errors
    /// [`Refused`] if the bundle no longer trusts it, it has expired, or it was revoked since.
    pub fn admit(
        trust: &TrustBundle,
        facts: &LiveFacts,
        peer_certificates: Option<&[CertificateDer<'_>]>,
        candidate: Option<Candidate>,
    ) -> Result<Self, Refused> {
        let [end_entity, intermediates @ ..] = peer_certificates.unwrap_or_default() else {
            return Err(Refused { reason: Reason::Malformed, serial: None, claimed: None });
        };
        let fits = |it: &Candidate| {
            it.generation == trust.generation() && it.leaf.said.digest == sha256(end_entity)
        };
        let now = now();
        let leaf = match candidate.filter(fits) {
            Some(candidate) => candidate.leaf,
            None => trust.check(end_entity, intermediates, now)?.leaf,
        };
        leaf.stands(facts, now)?;
        // The handshake is complete: the client has proved that it holds the key.
        trust.remember(&leaf);
        Ok(Self { leaf })
    }

    /// The principal that the certificate names.
    pub fn identity(&self) -> &Identity {
        &self.leaf.said.identity
    }

    /// The serial number that stands in the certificate.
    pub fn shown_serial(&self) -> Serial {
        self.leaf.said.shown_serial
    }

    /// Whether the outside CA that it is from, if it is from one, still stands by it.
    ///
    /// # Errors
    /// [`Reason::Revoked`], or [`Reason::RevocationUnknown`].
    pub fn stands_outside(&self) -> Result<(), Reason> {
        self.leaf.stands_outside(now())
    }

    /// The same for a request. What our own CA says is a fact, and part of the decision.
    ///
    /// # Errors
    /// The reason to deny it.
    pub fn may_ask(&self) -> Result<(), policies::reason::Reason> {
        self.stands_outside().map_err(|reason| match reason == Reason::Revoked {
            true => policies::reason::Reason::CertificateRevoked,
            false => policies::reason::Reason::FactsStale,
        })
    }

    /// The serial number as facts and decisions know it: an outside CA's is qualified by its
    /// issuer, so that it is never taken for one of ours.
    pub fn serial(&self) -> Serial {
        self.leaf.said.serial
    }

    /// `notAfter`, Unix seconds; of the chain, where that ends sooner.
    pub fn not_after(&self) -> u64 {
        self.leaf.said.validity.until()
    }

    /// The CA that its chain led to.
    pub(crate) fn anchor(&self) -> &Anchor {
        &self.leaf.anchor
    }

    /// SHA-256 of the certificate, base64url without padding (RFC 8705 §3.1 `x5t#S256`).
    pub fn sha256(&self) -> &str {
        &self.leaf.said.digest_text
    }
}

impl Leaf {
    /// Whether it is valid and not revoked now.
    fn stands(&self, facts: &LiveFacts, now: u64) -> Result<(), Refused> {
        self.said.validity.check(now).map_err(|reason| self.refused(reason))?;
        if facts.current().revoked(self.said.serial).is_some() {
            return Err(self.refused(Reason::Revoked));
        }
        self.stands_outside(now).map_err(|reason| self.refused(reason))
    }

    fn stands_outside(&self, now: u64) -> Result<(), Reason> {
        match &self.anchor.rule {
            Rule::Own => Ok(()),
            Rule::Outside(ca) => ca.check(&self.anchor.digest, self.said.shown_serial, now),
        }
    }

    pub(crate) fn refused(&self, reason: Reason) -> Refused {
        self.said.refused(reason)
    }
}

impl Said {
    pub(crate) fn refused(&self, reason: Reason) -> Refused {
        Refused { reason, serial: Some(self.shown_serial), claimed: Some(self.identity.path()) }
    }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The client certificate verifier of the public listener.
pub struct Verifier {
    trust: Arc<TrustBundle>,
    facts: Arc<LiveFacts>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier that trusts what `trust` trusts, and nothing else.
    pub fn new(
        trust: Arc<TrustBundle>,
        facts: Arc<LiveFacts>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self { trust, facts, algorithms }
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Candidate, Refused> {
        let candidate = self.trust.check(end_entity, intermediates, now.as_secs())?;
        candidate.leaf.stands(&self.facts, now.as_secs())?;
        Ok(candidate)
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trust.hints()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.check(end_entity, intermediates, now) {
            Ok(candidate) => {
                SEEN.with(|slot| slot.set(Some(Seen::Candidate(candidate))));
                Ok(ClientCertVerified::assertion())
            }
            Err(refused) => {
                let error = tls_error(&refused);
                SEEN.with(|slot| slot.set(Some(Seen::Refused(refused))));
                Err(rustls::Error::InvalidCertificate(error))
            }
        }
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
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What rustls makes an alert of.
fn tls_error(refused: &Refused) -> CertificateError {
    match refused.reason {
        Reason::Expired(_) => CertificateError::Expired,
        Reason::NotYetValid(_) => CertificateError::NotValidYet,
        Reason::UnknownIssuer(_) => CertificateError::UnknownIssuer,
        Reason::Revoked => CertificateError::Revoked,
        Reason::RevocationUnknown(_) => CertificateError::UnknownRevocationStatus,
        Reason::Malformed
        | Reason::WrongPurpose
        | Reason::WrongPolicy
        | Reason::NoIdentity(_)
        | Reason::OperatorRefused
        | Reason::NotTheHolder
        | Reason::WrongKind(_)
        | Reason::Chain(_) => {
            CertificateError::Other(rustls::OtherError(Arc::new(refused.clone())))
        }
    }
}

/// What the verifier found in a handshake.
pub enum Seen {
    /// A certificate that is trusted, if the client holds its key.
    Candidate(Candidate),
    /// One that is not.
    Refused(Refused),
}

impl Seen {
    /// The certificate, if it is trusted.
    pub fn candidate(self) -> Option<Candidate> {
        match self {
            Self::Candidate(candidate) => Some(candidate),
            Self::Refused(_) => None,
        }
    }
}

thread_local! {
    /// What the handshake step that runs on this thread now found. rustls turns a verifier's error
    /// into an alert and keeps only its kind, and takes nothing of ours from one that went well, so
    /// it waits here until the poll that caused it returns; see [`take_seen`].
    static SEEN: std::cell::Cell<Option<Seen>> = const { std::cell::Cell::new(None) };
}

/// Takes what the poll just finished on this thread left behind.
pub fn take_seen() -> Option<Seen> {
    SEEN.with(std::cell::Cell::take)
}
