//! What a stranger sends: a PKCS#10 request (RFC 2986) → [`PublicKey`].
//!
//! A request is a wish, not an order: the only thing taken from it is the public key, after its own
//! signature showed that the sender holds the private one. Subject, extensions and attributes are
//! not looked at, so what Windows or a care application puts there does no harm.
//!
//! INVARIANT: a [`PublicKey`] is a point on P-256. ECDSA P-256 is the one key type of client
//! certificates: RSA-2048 may not be taken into use any more from 2031 (CRYPTREC LS-0003), and RSA
//! in TLS 1.3 needs PSS, which old Windows providers lack (RFC 9963).

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::key::sha256;

/// Why a request or key is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are no PKCS#10 request.
    #[error("the request is no PKCS#10 certificate signing request in DER form")]
    Malformed,
    /// The key is of another kind.
    #[error("the key is {0}: make an ECDSA key on curve P-256")]
    KeyKind(String),
    /// The point is not on the curve, or not written in full.
    #[error("the P-256 key is not a valid uncompressed point")]
    Point,
    /// The request's own signature does not fit its key.
    #[error("the signature of the request does not fit its key")]
    Signature,
}

/// A P-256 public key that may be certified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
}

impl PublicKey {
    /// Reads a request and checks that its sender holds the key.
    ///
    /// # Errors
    /// Every [`Error`].
    pub fn from_request(der: &[u8]) -> Result<Self, Error> {
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| Error::Malformed)?;
        if !rest.is_empty() {
            return Err(Error::Malformed);
        }
        let key = Self::from_spki(request.certification_request_info.subject_pki.raw)?;
        request.verify_signature().map_err(|_| Error::Signature)?;
        Ok(key)
    }

    /// Reads a SubjectPublicKeyInfo and checks the key policy.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::KeyKind`], [`Error::Point`].
    pub fn from_spki(der: &[u8]) -> Result<Self, Error> {
        match der.strip_prefix(P256_PREFIX) {
            Some(point) if point.len() == 64 => {
                let whole = &der[P256_PREFIX.len() - 1..];
                ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, whole).map_err(|_| Error::Point)?;
                Ok(Self { spki: der.to_owned() })
            }
            _ => Err(kind_of(der)),
        }
    }

    /// The SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The uncompressed point, 65 bytes: the value of the subjectPublicKey bit string.
    pub fn point(&self) -> &[u8] {
        // INVARIANT: `from_spki` checked prefix and length.
        self.spki.get(P256_PREFIX.len() - 1..).unwrap_or_default()
    }

    /// What the key is remembered by: SHA-256 of its SubjectPublicKeyInfo.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.spki)
    }
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        self.point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// Says what a refused key is, for the person who made it.
fn kind_of(der: &[u8]) -> Error {
    let Ok((rest, spki)) = SubjectPublicKeyInfo::from_der(der) else { return Error::Malformed };
    if !rest.is_empty() {
        return Error::Malformed;
    }
    match spki.parsed() {
        Ok(ParsedKey::RSA(key)) => Error::KeyKind(format!("RSA-{}", key.key_size())),
        Ok(ParsedKey::EC(point)) if point.key_size() == 256 => Error::Point,
        Ok(ParsedKey::EC(point)) => {
            Error::KeyKind(format!("an elliptic-curve key of {} bits", point.key_size()))
        }
        Ok(ParsedKey::DSA(_) | ParsedKey::GostR3410(_) | ParsedKey::GostR3410_2012(_)) => {
            Error::KeyKind("a DSA or GOST key".to_owned())
        }
        Ok(ParsedKey::Unknown(_)) | Err(_) => Error::KeyKind("of an unknown kind".to_owned()),
    }
}

/// DER of a P-256 SubjectPublicKeyInfo up to the point's first byte: id-ecPublicKey, prime256v1,
/// bit string of 66 bytes, no unused bits, uncompressed (RFC 5480 §2).
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_p256_request_gives_its_key() {
        let key = KeyPair::generate().unwrap();
        let der = CertificateParams::default().serialize_request(&key).unwrap();
        let public = PublicKey::from_request(der.der()).unwrap();
        assert_eq!(public.spki(), key.subject_public_key_info());
        assert_eq!(public.subject_public_key_info(), key.subject_public_key_info());
        assert_eq!(public.point().len(), 65);
    }

    #[test]
    fn other_keys_are_refused_by_name() {
        for (algorithm, expected) in [
            (&rcgen::PKCS_RSA_SHA256, "RSA-2048"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "an elliptic-curve key of 384 bits"),
            (&rcgen::PKCS_ED25519, "of an unknown kind"),
        ] {
            let error = PublicKey::from_request(&request(algorithm)).unwrap_err();
            assert_eq!(error, Error::KeyKind(expected.into()));
        }
    }

    #[test]
    fn a_broken_signature_is_refused() {
        let mut der = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        let last = der.len() - 1;
        der[last] ^= 1;
        assert_eq!(PublicKey::from_request(&der).unwrap_err(), Error::Signature);
    }

    #[test]
    fn a_point_off_the_curve_is_refused() {
        let key = KeyPair::generate().unwrap();
        let mut spki = key.subject_public_key_info();
        let last = spki.len() - 1;
        spki[last] ^= 1;
        assert_eq!(PublicKey::from_spki(&spki).unwrap_err(), Error::Point);
    }

    #[test]
    fn rubbish_and_trailing_bytes_are_refused() {
        let mut der = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        der.push(0);
        assert_eq!(PublicKey::from_request(&der).unwrap_err(), Error::Malformed);
        assert_eq!(PublicKey::from_request(b"no").unwrap_err(), Error::Malformed);
        assert_eq!(PublicKey::from_spki(&[]).unwrap_err(), Error::Malformed);
        for length in 0..der.len() - 1 {
            assert!(PublicKey::from_request(&der[..length]).is_err());
        }
    }
}
