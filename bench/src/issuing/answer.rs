//! What an enrolment answers: a certs-only PKCS#7 (degenerate SignedData, RFC 5652 §5.1, as
//! RFC 7030 §4.1.3 uses it) in base64, and whether its first certificate is for the key that asked.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::server::ParsedCertificate;
use rustls_pki_types::CertificateDer;

/// Whether the body holds first a certificate for the key with this SubjectPublicKeyInfo.
///
/// # Errors
/// What is wrong, in words that are the same for the same cause.
pub(super) fn check(body: &[u8], spki: &[u8]) -> Result<(), &'static str> {
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let der = STANDARD.decode(text).map_err(|_| "the answer is not base64")?;
    let leaf = first_certificate(&der).ok_or("the answer is not a list of certificates")?;
    let leaf = CertificateDer::from(leaf);
    let parsed =
        ParsedCertificate::try_from(&leaf).map_err(|_| "the certificate can not be read")?;
    let same = parsed.subject_public_key_info().as_ref() == spki;
    if same { Ok(()) } else { Err("the certificate is for another key") }
}

/// The first of the certificates in `ContentInfo { signedData, [0] SignedData { version,
/// digestAlgorithms, encapContentInfo, [0] certificates, … } }`.
fn first_certificate(der: &[u8]) -> Option<&[u8]> {
    let mut info = take(&mut { der }, SEQUENCE)?.content;
    let kind = take(&mut info, OBJECT_IDENTIFIER)?.content;
    let mut explicit = take(&mut info, CONTEXT_0)?.content;
    let mut signed = take(&mut explicit, SEQUENCE)?.content;
    for tag in [INTEGER, SET, SEQUENCE] {
        take(&mut signed, tag)?;
    }
    let mut certificates = take(&mut signed, CONTEXT_0)?.content;
    let first = take(&mut certificates, SEQUENCE)?.whole;
    (kind == SIGNED_DATA).then_some(first)
}

/// One tag-length-value.
struct Element<'a> {
    whole: &'a [u8],
    content: &'a [u8],
}

/// Takes an element with this tag off the front: definite lengths of up to 3 bytes (X.690 §8.1.3).
fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<Element<'a>> {
    let (&first, after) = input.strip_prefix(&[tag])?.split_first()?;
    let (length, length_bytes) = match first {
        0..=0x7f => (usize::from(first), 0),
        0x81..=0x83 => {
            let count = usize::from(first & 0x7f);
            let bytes = after.get(..count)?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), count)
        }
        _ => return None,
    };
    let head = 2 + length_bytes;
    let (whole, rest) = input.split_at_checked(head + length)?;
    *input = rest;
    Some(Element { whole, content: whole.get(head..)? })
}

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_0: u8 = 0xa0;
/// 1.2.840.113549.1.7.2
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};

    use super::*;

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    fn certificate(key: &KeyPair) -> Vec<u8> {
        let params = CertificateParams::new(vec!["terminal.example".to_owned()]).unwrap();
        params.self_signed(key).unwrap().der().to_vec()
    }

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &length, content].concat()
    }

    fn answer(certificates: &[Vec<u8>]) -> Vec<u8> {
        let data = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
        let signed = [
            &[INTEGER, 1, 1, SET, 0][..],
            &element(SEQUENCE, &data),
            &element(CONTEXT_0, &certificates.concat()),
            &[SET, 0],
        ]
        .concat();
        let kind = [&[OBJECT_IDENTIFIER, 9][..], SIGNED_DATA].concat();
        element(SEQUENCE, &[kind, element(CONTEXT_0, &element(SEQUENCE, &signed))].concat())
    }

    #[test]
    fn the_first_certificate_must_be_for_the_key() {
        let (mine, other) = (key(), key());
        let spki = mine.subject_public_key_info();
        let (leaf, issuer) = (certificate(&mine), certificate(&other));
        let good = STANDARD.encode(answer(&[leaf.clone(), issuer.clone()]));
        assert_eq!(check(good.as_bytes(), &spki), Ok(()));
        let broken_lines = good.as_bytes().chunks(64).collect::<Vec<_>>().join(&b"\r\n"[..]);
        assert_eq!(check(&broken_lines, &spki), Ok(()));
        let turned = STANDARD.encode(answer(&[issuer, leaf]));
        let found = check(turned.as_bytes(), &spki);
        assert_eq!(found, Err("the certificate is for another key"));
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        let mine = key();
        let spki = mine.subject_public_key_info();
        assert_eq!(check("鍵".as_bytes(), &spki), Err("the answer is not base64"));
        let not_list = Err("the answer is not a list of certificates");
        assert_eq!(check(b"QUJD", &spki), not_list);
        assert_eq!(check(STANDARD.encode(answer(&[])).as_bytes(), &spki), not_list);
        let junk = STANDARD.encode(answer(&[element(SEQUENCE, b"junk")]));
        assert_eq!(check(junk.as_bytes(), &spki), Err("the certificate can not be read"));
    }

    #[test]
    fn every_cut_is_refused_and_none_panics() {
        let mine = key();
        let spki = mine.subject_public_key_info();
        let der = answer(&[certificate(&mine)]);
        for end in 0..der.len() {
            assert!(check(STANDARD.encode(&der[..end]).as_bytes(), &spki).is_err(), "{end}");
        }
    }
}
