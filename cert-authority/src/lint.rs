//! Reads a finished certificate back with another parser than the one that wrote it, and compares
//! it field by field with what was asked for.
//!
//! Used three times: by the signer before and after it signs, and by the RA on what comes back from
//! the signer. A certificate with a finding is never released.
//!
//! The check is closed: an extension that is not in the list of what the role has is a finding, and
//! so is a wrong criticality. Linting whole stores after the fact, and with outside tools, belongs
//! here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use policies::identity::Serial;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name, X509Version};

use crate::key::key_identifier;
use crate::profile::{Name, Oid, Role, Template, Usage};

/// What is wrong with a certificate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It can not be parsed.
    #[error("the certificate is malformed")]
    Malformed,
    /// These fields differ from what was asked for.
    #[error("these fields differ: {}", .0.join(", "))]
    Findings(Vec<&'static str>),
}

/// The CA that should have signed.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Its subject.
    pub name: Name,
    /// DER of its subject; `None` if the certificate signs itself.
    pub name_der: Option<Vec<u8>>,
    /// Its key identifier.
    pub key_id: Vec<u8>,
    /// Its SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
}

impl Authority {
    /// Takes what a CA's certificate says.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it can not be parsed or is no CA's certificate of ours.
    pub fn from_certificate(der: &[u8]) -> Result<Self, Error> {
        let read = Read::from_der(der)?;
        let name = read.subject.filter(|_| read.is_ca).ok_or(Error::Malformed)?;
        let key_id = key_identifier(&read.point);
        Ok(Self { name, name_der: Some(read.subject_der), key_id, spki: read.spki })
    }
}

/// What the second parser read.
#[derive(Debug, Clone)]
pub struct Read {
    /// The serial number.
    pub serial: Serial,
    /// The subject, if it has our form.
    pub subject: Option<Name>,
    /// The subject, DER.
    pub subject_der: Vec<u8>,
    /// First second of validity.
    pub not_before: OffsetDateTime,
    /// Last second of validity.
    pub not_after: OffsetDateTime,
    /// The SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// The subjectPublicKey bits.
    pub point: Vec<u8>,
    /// Whether BasicConstraints say that it is a CA's.
    pub is_ca: bool,
    /// The part that is signed (TBSCertificate), DER.
    pub signed_part: Vec<u8>,
    extensions: Vec<Vec<u8>>,
}

impl Read {
    /// Parses a certificate.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let certificate = parse(der)?;
        let time = |at: i64| OffsetDateTime::from_unix_timestamp(at).map_err(|_| Error::Malformed);
        let validity = certificate.validity();
        Ok(Self {
            serial: Serial::from_bytes(certificate.raw_serial()).map_err(|_| Error::Malformed)?,
            subject: name_of(certificate.subject()),
            subject_der: certificate.subject().as_raw().to_owned(),
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
            spki: certificate.public_key().raw.to_owned(),
            point: certificate.public_key().subject_public_key.data.to_vec(),
            is_ca: certificate.is_ca(),
            signed_part: certificate.tbs_certificate.as_ref().to_owned(),
            extensions: certificate
                .extensions()
                .iter()
                .map(|extension| extension.oid.as_bytes().to_owned())
                .collect(),
        })
    }

    /// Whether an extension with this OID is present.
    pub fn has_extension(&self, oid: &Oid) -> bool {
        self.extensions.contains(&oid.to_der_content())
    }
}

/// Compares a certificate with the template, the key and the CA it should have.
///
/// # Errors
/// Every [`Error`]; all findings together.
pub fn check(
    der: &[u8],
    template: &Template,
    spki: &[u8],
    authority: &Authority,
) -> Result<Read, Error> {
    let certificate = parse(der)?;
    let read = Read::from_der(der)?;
    let mut findings = Findings(vec![]);
    check_base(&mut findings, &certificate, template, spki);
    check_issuer(&mut findings, &certificate, authority);
    check_extensions(&mut findings, &certificate, template, &read, authority);
    if findings.0.is_empty() { Ok(read) } else { Err(Error::Findings(findings.0)) }
}

/// Whether a certificate names this CA as its issuer and carries its signature.
pub fn is_signed_by(der: &[u8], authority: &Authority) -> bool {
    let Ok(certificate) = parse(der) else { return false };
    let mut findings = Findings(vec![]);
    check_issuer(&mut findings, &certificate, authority);
    findings.0.is_empty()
}

struct Findings(Vec<&'static str>);

impl Findings {
    fn expect(&mut self, field: &'static str, holds: bool) {
        if !holds {
            self.0.push(field);
        }
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Error::Malformed)?;
    if rest.is_empty() { Ok(certificate) } else { Err(Error::Malformed) }
}

fn check_base(
    findings: &mut Findings,
    certificate: &X509Certificate<'_>,
    template: &Template,
    spki: &[u8],
) {
    let validity = certificate.validity();
    let seconds = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let expected = (template.not_before.unix_timestamp(), template.not_after.unix_timestamp());
    findings.expect("version", certificate.version() == X509Version::V3);
    findings.expect("serialNumber", certificate.raw_serial() == template.serial.as_bytes());
    findings.expect("validity", seconds == expected);
    findings.expect("subject", name_of(certificate.subject()).as_ref() == Some(&template.subject));
    findings.expect("subjectPublicKeyInfo", certificate.public_key().raw == spki);
    let unique_ids =
        (&certificate.tbs_certificate.issuer_uid, &certificate.tbs_certificate.subject_uid);
    findings.expect("uniqueIdentifiers", unique_ids == (&None, &None));
}

fn check_issuer(findings: &mut Findings, certificate: &X509Certificate<'_>, authority: &Authority) {
    findings.expect("issuer", name_of(certificate.issuer()).as_ref() == Some(&authority.name));
    let name_der = authority.name_der.as_deref().unwrap_or(certificate.subject().as_raw());
    findings.expect("issuer encoding", certificate.issuer().as_raw() == name_der);
    let (inner, outer) = (&certificate.tbs_certificate.signature, &certificate.signature_algorithm);
    findings.expect("signatureAlgorithm", inner == outer && outer.parameters.is_none());
    let algorithm = match authority.spki.len() {
        P256_SPKI_BYTES => ECDSA_WITH_SHA256,
        _ => ECDSA_WITH_SHA384,
    };
    findings.expect("signature strength", outer.algorithm.as_bytes() == algorithm);
    let signed = SubjectPublicKeyInfo::from_der(&authority.spki)
        .is_ok_and(|(_, key)| certificate.verify_signature(Some(&key)).is_ok());
    findings.expect("signature", signed);
}

/// The extensions that the template's role has, with their criticality, and nothing else.
fn expected_extensions(template: &Template) -> BTreeMap<Vec<u8>, bool> {
    let mut expected = BTreeMap::from([
        (oid(&[2, 5, 29, 14]), false), // subjectKeyIdentifier
        (oid(&[2, 5, 29, 15]), true),  // keyUsage
        (oid(&[2, 5, 29, 19]), true),  // basicConstraints
        (oid(&[2, 5, 29, 35]), false), // authorityKeyIdentifier
    ]);
    if template.usage().is_some() {
        expected.insert(oid(&[2, 5, 29, 37]), false); // extKeyUsage
    }
    match template.role {
        Role::Ca { .. } => {}
        Role::Server { .. } => {
            expected.insert(oid(&[2, 5, 29, 17]), false); // subjectAltName
        }
        Role::Client { .. } => {
            expected.insert(oid(&[2, 5, 29, 17]), false);
            expected.insert(oid(&[2, 5, 29, 32]), false); // certificatePolicies
        }
    }
    if let Some(marker) = &template.marker {
        expected.insert(marker.to_der_content(), false);
    }
    expected
}

fn check_extensions(
    findings: &mut Findings,
    certificate: &X509Certificate<'_>,
    template: &Template,
    read: &Read,
    authority: &Authority,
) {
    let present: BTreeMap<Vec<u8>, bool> = certificate
        .extensions()
        .iter()
        .map(|extension| (extension.oid.as_bytes().to_owned(), extension.critical))
        .collect();
    let no_duplicates = present.len() == certificate.extensions().len();
    findings.expect("duplicate extensions", no_duplicates);
    findings.expect("list of extensions", present == expected_extensions(template));
    for extension in certificate.extensions() {
        let parsed = extension.parsed_extension();
        if let Some((field, holds)) =
            check_extension(parsed, extension.value, template, read, authority)
        {
            findings.expect(field, holds);
        }
    }
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the parser's list is open; the list of extensions is compared as a whole before"
)]
fn check_extension(
    parsed: &ParsedExtension<'_>,
    value: &[u8],
    template: &Template,
    read: &Read,
    authority: &Authority,
) -> Option<(&'static str, bool)> {
    let is_ca = matches!(template.role, Role::Ca { .. });
    Some(match parsed {
        ParsedExtension::SubjectKeyIdentifier(id) => {
            ("subjectKeyIdentifier", id.0 == key_identifier(&read.point))
        }
        ParsedExtension::AuthorityKeyIdentifier(id) => {
            let only = id.authority_cert_issuer.is_none() && id.authority_cert_serial.is_none();
            let fits = id.key_identifier.as_ref().is_some_and(|id| id.0 == authority.key_id);
            ("authorityKeyIdentifier", only && fits)
        }
        // RFC 5280 §4.2.1.3: bit 0 digitalSignature; bits 5 and 6 keyCertSign, cRLSign.
        ParsedExtension::KeyUsage(usage) => {
            ("keyUsage", usage.flags == if is_ca { 0b110_0000 } else { 0b1 })
        }
        ParsedExtension::BasicConstraints(basic) => {
            let path_len = match template.role {
                Role::Ca { path_len, .. } => Some(u32::from(path_len)),
                Role::Client { .. } | Role::Server { .. } => None,
            };
            // DER leaves out cA = FALSE, so a leaf has an empty sequence.
            let encoded = is_ca || value == [0x30, 0];
            let fits = basic.ca == is_ca && basic.path_len_constraint == path_len;
            ("basicConstraints", fits && encoded)
        }
        ParsedExtension::ExtendedKeyUsage(_) => {
            ("extKeyUsage", template.usage().is_some_and(|usage| value == eku_der(usage)))
        }
        ParsedExtension::SubjectAlternativeName(names) => {
            ("subjectAltName", names_fit(&names.general_names, &template.role))
        }
        ParsedExtension::CertificatePolicies(policies) => (
            "certificatePolicies",
            matches!((policies.as_slice(), &template.role),
                ([one], Role::Client { policy, .. })
                    if one.policy_id.as_bytes() == policy.to_der_content()
                        && one.policy_qualifiers.is_none()),
        ),
        ParsedExtension::UnsupportedExtension { .. } => ("marker", value == [0x05, 0x00]),
        _ => return None,
    })
}

fn names_fit(found: &[GeneralName<'_>], role: &Role) -> bool {
    match role {
        Role::Ca { .. } => false,
        Role::Client { uri, .. } => matches!(found, [GeneralName::URI(found)] if found == uri),
        Role::Server { names, addresses } => {
            let octets = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let addresses: Vec<Vec<u8>> = addresses.iter().map(octets).collect();
            let expected = names.iter().map(|name| GeneralName::DNSName(name));
            let addresses = addresses.iter().map(|octets| GeneralName::IPAddress(octets));
            expected.chain(addresses).eq(found.iter().cloned())
        }
    }
}

/// extKeyUsage with one purpose: a sequence of one OID of eight bytes.
fn eku_der(usage: Usage) -> [u8; 12] {
    let last = match usage {
        Usage::Server => 1,
        Usage::Client => 2,
    };
    [0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, last]
}

/// Our form of a name: C=JP (PrintableString), O, OU if any, CN, one value each, in this order.
fn name_of(name: &X509Name<'_>) -> Option<Name> {
    let mut parts = vec![];
    for rdn in name.iter_rdn() {
        let mut attributes = rdn.iter();
        let (only, None) = (attributes.next()?, attributes.next()) else { return None };
        parts.push((only.attr_type().as_bytes(), only.attr_value().tag().0, only.as_str().ok()?));
    }
    let (country, rest) = parts.split_first()?;
    let (organization, rest) = rest.split_first()?;
    let (common_name, unit) = rest.split_last()?;
    let unit = match unit {
        [] => None,
        [(UNIT, UTF8, unit)] => Some((*unit).to_owned()),
        _ => return None,
    };
    match (country, organization, common_name) {
        ((COUNTRY, PRINTABLE, "JP"), (ORGANIZATION, UTF8, o), (COMMON_NAME, UTF8, cn)) => {
            Some(Name { organization: (*o).to_owned(), unit, common_name: (*cn).to_owned() })
        }
        _ => None,
    }
}

fn oid(arcs: &[u64]) -> Vec<u8> {
    Oid::fixed(arcs).to_der_content()
}

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const COUNTRY: &[u8] = &[0x55, 4, 6];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
const UNIT: &[u8] = &[0x55, 4, 11];
const UTF8: u32 = 12;
const PRINTABLE: u32 = 19;

const P256_SPKI_BYTES: usize = 91;
/// 1.2.840.10045.4.3.2 and .3 (RFC 5758 §3.2).
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_WITH_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];

#[cfg(test)]
mod tests;
