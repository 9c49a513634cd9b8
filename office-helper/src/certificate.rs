//! A terminal's certificate as the helper reads it: whose it is, which key it holds, how long it
//! lasts; and the check that what came back from enrolment is what was asked for.

use std::sync::Arc;

use policies::identity::{self, Identity, Serial};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate can not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("it is not an X.509 certificate")]
    Malformed,
    #[error("its subject alternative names hold {0} URIs instead of one identity")]
    NotOneUri(usize),
    #[error("its identity can not be read")]
    Identity(#[from] identity::Error),
    #[error("no certificate that came back holds the key of this terminal")]
    OtherKey,
    #[error("it is for `{found}`, not for `{wanted}`: the code was issued for another identity")]
    OtherIdentity { found: String, wanted: String },
    #[error("the certificate of its issuer did not come with it")]
    NoIssuer,
    #[error("it is not a valid client certificate of its issuer")]
    Chain(#[source] rustls::Error),
}

/// A certificate taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) der: Vec<u8>,
    pub(crate) identity: Identity,
    pub(crate) serial: Serial,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
}

impl Certificate {
    /// Reads a terminal's certificate.
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, Error> {
        let x509 = parse(der)?;
        let time = |at: i64| OffsetDateTime::from_unix_timestamp(at).map_err(|_| Error::Malformed);
        Ok(Self {
            der: der.to_vec(),
            identity: identity_of(&x509)?,
            serial: Serial::from_bytes(x509.raw_serial())?,
            not_before: time(x509.validity().not_before.timestamp())?,
            not_after: time(x509.validity().not_after.timestamp())?,
            spki: x509.public_key().raw.to_vec(),
        })
    }
}

/// The leaf and what it was issued by, as they will be sent to servers.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) leaf: Certificate,
    /// Issuing CA and any further intermediates, without a root; DER.
    pub(crate) issuers: Vec<Vec<u8>>,
}

/// Picks the leaf with our key out of `certificates`, and checks that it names `wanted` and that
/// its issuer, which must be there too, signed it as a client certificate valid now.
pub(crate) fn check(
    certificates: &[Vec<u8>],
    spki: &[u8],
    wanted: &Identity,
) -> Result<Chain, Error> {
    let mut leaf = None;
    for der in certificates {
        if parse(der)?.public_key().raw == spki {
            leaf = Some(Certificate::from_der(der)?);
        }
    }
    let leaf = leaf.ok_or(Error::OtherKey)?;
    if leaf.identity != *wanted {
        return Err(Error::OtherIdentity { found: leaf.identity.path(), wanted: wanted.path() });
    }
    let issuers = issuers(certificates, &leaf.der)?;
    let issuer = issuers.first().ok_or(Error::NoIssuer)?;
    verify(&leaf.der, issuer)?;
    Ok(Chain { leaf, issuers })
}

/// Follows the issuer names from `leaf` up; a self-signed root ends the chain and is left out,
/// unless it issued the leaf itself.
fn issuers(certificates: &[Vec<u8>], leaf: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut issuer = parse(leaf)?.issuer().as_raw().to_vec();
    for _ in certificates {
        let mut next = None;
        for der in certificates {
            let x509 = parse(der)?;
            let is_root = x509.issuer().as_raw() == x509.subject().as_raw();
            let wanted = x509.subject().as_raw() == issuer && der != leaf;
            if wanted && (found.is_empty() || !is_root) && !found.contains(der) {
                next = Some((der.clone(), x509.issuer().as_raw().to_vec()));
            }
        }
        let Some((der, above)) = next else { break };
        found.push(der);
        issuer = above;
    }
    Ok(found)
}

/// Signature, validity and EKU clientAuth, by the rules a TLS server applies.
fn verify(leaf: &[u8], issuer: &[u8]) -> Result<(), Error> {
    let mut anchors = RootCertStore::empty();
    anchors.add(CertificateDer::from(issuer)).map_err(Error::Chain)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(anchors), provider)
        .build()
        .map_err(|_| Error::NoIssuer)?;
    verifier
        .verify_client_cert(&CertificateDer::from(leaf), &[], UnixTime::now())
        .map(|_| ())
        .map_err(Error::Chain)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    match X509Certificate::from_der(der) {
        Ok(([], x509)) => Ok(x509),
        _ => Err(Error::Malformed),
    }
}

/// The identity in the one SAN URI. Which domain stands in it is the operator's choice, so any is
/// taken here; the gateway insists on its own.
fn identity_of(x509: &X509Certificate<'_>) -> Result<Identity, Error> {
    let extension = x509.subject_alternative_name().map_err(|_| Error::Malformed)?;
    let names = extension.map(|san| san.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = Vec::new();
    for name in names {
        if let GeneralName::URI(uri) = name {
            uris.push(*uri);
        }
    }
    let [uri] = uris.as_slice() else { return Err(Error::NotOneUri(uris.len())) };
    let domain = uri.strip_prefix("https://").and_then(|rest| rest.split('/').next());
    Ok(Identity::from_san_uri(uri, domain.unwrap_or_default())?)
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
    };

    use super::*;

    /// An issuing CA made for one test.
    pub(crate) struct Ca {
        pub(crate) issuer: Issuer<'static, KeyPair>,
        pub(crate) der: Vec<u8>,
    }

    pub(crate) fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    pub(crate) fn ca(name: &str) -> Ca {
        let key = key();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Ca { issuer: Issuer::new(params, key), der }
    }

    /// A leaf for `path`, valid from now for `days` (negative: it has expired).
    pub(crate) fn leaf(
        ca: &Ca,
        key: &KeyPair,
        path: &str,
        days: i64,
        usage: ExtendedKeyUsagePurpose,
    ) -> Vec<u8> {
        let mut params = CertificateParams::default();
        let uri = format!("https://id.sekisho.example/{path}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![usage];
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(400);
        // A minute more, so that whole days are left while the test runs.
        params.not_after =
            OffsetDateTime::now_utc() + time::Duration::days(days) + time::Duration::MINUTE;
        params.signed_by(key, &ca.issuer).unwrap().der().to_vec()
    }

    pub(crate) const FRONT: &str = "office/1370000001/terminal/front-1";

    fn front() -> Identity {
        Identity::from_path(FRONT).unwrap()
    }

    const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;

    #[test]
    fn leaf_and_issuer_are_found_in_any_order() {
        let (other, ca, key) = (ca("other"), ca("issuing"), key());
        let leaf = leaf(&ca, &key, FRONT, 10, CLIENT);
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        for certificates in [
            vec![leaf.clone(), ca.der.clone(), other.der.clone()],
            vec![other.der, ca.der.clone(), leaf.clone()],
        ] {
            let chain = check(&certificates, &spki, &front()).unwrap();
            assert_eq!(chain.leaf.der, leaf);
            assert_eq!(chain.leaf.identity, front());
            assert_eq!(chain.issuers, vec![ca.der.clone()]);
        }
    }

    #[test]
    fn each_wrong_answer_is_refused_for_its_own_reason() {
        let impostor = ca("issuing");
        let (ca, other_terminal, key) = (ca("issuing"), key(), key());
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let good = leaf(&ca, &key, FRONT, 10, CLIENT);
        let refused = |certificates: &[Vec<u8>]| check(certificates, &spki, &front()).unwrap_err();

        let other_key = leaf(&ca, &other_terminal, FRONT, 10, CLIENT);
        assert!(matches!(refused(&[other_key, ca.der.clone()]), Error::OtherKey));
        let path = "office/1370000001/terminal/front-2";
        let other = leaf(&ca, &key, path, 10, CLIENT);
        assert!(matches!(refused(&[other, ca.der.clone()]), Error::OtherIdentity { .. }));
        assert!(matches!(refused(std::slice::from_ref(&good)), Error::NoIssuer));
        assert!(matches!(refused(&[good, impostor.der]), Error::Chain(_)));
        let expired = leaf(&ca, &key, FRONT, -1, CLIENT);
        assert!(matches!(refused(&[expired, ca.der.clone()]), Error::Chain(_)));
        let server = leaf(&ca, &key, FRONT, 10, ExtendedKeyUsagePurpose::ServerAuth);
        assert!(matches!(refused(&[server, ca.der]), Error::Chain(_)));
        assert!(matches!(refused(&[vec![0x30, 0x00]]), Error::Malformed));
    }
}
