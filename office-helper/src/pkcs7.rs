//! Takes the certificates out of a certs-only PKCS#7 (degenerate SignedData, RFC 5652 §5.1, as
//! RFC 7030 §4.1.3 uses it). A reader for definite-length DER and the one structure around the
//! certificates; the certificates themselves are returned unopened.
//!
//! INVARIANT: input comes from the network; every length is checked, nothing is recursive, and at
//! most [`CERTIFICATES_MAX`] are returned.

/// Most certificates in one answer: a leaf and a short chain.
const CERTIFICATES_MAX: usize = 8;

/// Why the bytes are no list of certificates.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the DER is broken at `{0}`")]
    Broken(&'static str),
    #[error("it is PKCS#7 of another kind than SignedData")]
    OtherKind,
    #[error("it holds no certificate")]
    Empty,
    #[error("it holds more than {CERTIFICATES_MAX} certificates")]
    TooMany,
}

/// The certificates of `ContentInfo { signedData, SignedData { …, certificates [0], … } }` as DER,
/// in their order.
pub(crate) fn certificates(der: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut outer = Reader(der);
    let mut info = Reader(outer.expect(SEQUENCE, "ContentInfo")?.content);
    outer.end("ContentInfo")?;
    if info.expect(OBJECT_IDENTIFIER, "contentType")?.content != SIGNED_DATA {
        return Err(Error::OtherKind);
    }
    let mut explicit = Reader(info.expect(CONTEXT_0, "content")?.content);
    info.end("content")?;
    let mut signed = Reader(explicit.expect(SEQUENCE, "SignedData")?.content);
    explicit.end("SignedData")?;
    signed.expect(INTEGER, "version")?;
    signed.expect(SET, "digestAlgorithms")?;
    signed.expect(SEQUENCE, "encapContentInfo")?;
    if signed.peek() != Some(CONTEXT_0) {
        return Err(Error::Empty);
    }
    list(signed.expect(CONTEXT_0, "certificates")?.content)
}

fn list(content: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut reader = Reader(content);
    let mut found = Vec::new();
    while !reader.0.is_empty() {
        if found.len() == CERTIFICATES_MAX {
            return Err(Error::TooMany);
        }
        found.push(reader.expect(SEQUENCE, "certificate")?.whole.to_vec());
    }
    if found.is_empty() { Err(Error::Empty) } else { Ok(found) }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

/// One tag-length-value.
struct Element<'a> {
    whole: &'a [u8],
    content: &'a [u8],
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn expect(&mut self, tag: u8, what: &'static str) -> Result<Element<'a>, Error> {
        if self.peek() != Some(tag) {
            return Err(Error::Broken(what));
        }
        self.take().ok_or(Error::Broken(what))
    }

    fn end(&self, what: &'static str) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Broken(what)) }
    }

    /// X.690 §8.1 with the shortest definite length (§10.1); up to 3 length bytes.
    fn take(&mut self) -> Option<Element<'a>> {
        let (&first, after) = self.0.get(1..)?.split_first()?;
        let (length, length_bytes) = match first {
            0..=0x7f => (usize::from(first), 0),
            0x81..=0x83 => {
                let count = usize::from(first & 0x7f);
                let bytes = after.get(..count)?;
                let length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                let shortest = length > 0x7f && bytes.first() != Some(&0);
                (shortest.then_some(length)?, count)
            }
            _ => return None,
        };
        let head = 2 + length_bytes;
        let (whole, rest) = self.0.split_at_checked(head + length)?;
        self.0 = rest;
        Some(Element { whole, content: whole.get(head..)? })
    }
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
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn openssl(arguments: &[&str], dir: &Path) {
        let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn certificate(name: &str) -> rcgen::Certificate {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap()
    }

    /// A file made by another program: leaf and CA, as openssl writes them.
    fn made_by_openssl(count: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Vec::new();
        let mut arguments = "crl2pkcs7 -nocrl -outform DER -out out.p7".to_owned();
        for at in 0..count {
            let certificate = certificate(&format!("c{at}.example"));
            std::fs::write(dir.path().join(format!("{at}.pem")), certificate.pem()).unwrap();
            arguments.push_str(&format!(" -certfile {at}.pem"));
            made.push(certificate.der().to_vec());
        }
        openssl(&arguments.split(' ').collect::<Vec<_>>(), dir.path());
        (std::fs::read(dir.path().join("out.p7")).unwrap(), made)
    }

    #[test]
    fn certificates_of_a_file_made_by_openssl_come_out_whole_and_in_order() {
        let (der, made) = made_by_openssl(2);
        assert_eq!(certificates(&der).unwrap(), made);
    }

    #[test]
    fn too_many_certificates_and_none_are_refused() {
        assert_eq!(certificates(&made_by_openssl(9).0), Err(Error::TooMany));
        // crl2pkcs7 needs at least one certificate, so this is written by hand.
        let empty = [
            &[0x30, 0x23, 0x06, 0x09][..],
            SIGNED_DATA,
            &[0xa0, 0x16, 0x30, 0x14, 0x02, 0x01, 0x01, 0x31, 0x00, 0x30, 0x0b, 0x06, 0x09],
            &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01, 0x31, 0x00],
        ]
        .concat();
        assert_eq!(certificates(&empty), Err(Error::Empty));
        let mut other_kind = empty;
        other_kind[12] = 0x03;
        assert_eq!(certificates(&other_kind), Err(Error::OtherKind));
    }

    #[test]
    fn every_cut_and_every_added_byte_is_refused() {
        let (der, _) = made_by_openssl(1);
        for cut in 0..der.len() {
            assert!(certificates(&der[..cut]).is_err(), "cut at {cut}");
        }
        assert!(certificates(&[der, vec![0]].concat()).is_err());
    }

    #[test]
    fn no_changed_byte_makes_the_reader_panic() {
        let (der, _) = made_by_openssl(1);
        for at in 0..der.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = der.clone();
                changed[at] = value;
                let _ = certificates(&changed);
            }
        }
    }

    #[test]
    fn long_forms_of_short_lengths_are_refused() {
        for bytes in [&[0x30, 0x81, 0x01, 0x00][..], &[0x30, 0x82, 0x00, 0x81], &[0x30, 0x80, 0, 0]]
        {
            assert!(Reader(bytes).take().is_none());
        }
    }
}
