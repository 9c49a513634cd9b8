//! A CA that signs: [`Template`] + public key → [`Prepared`] → certificate.
//!
//! Signing has two steps. [`Issuer::prepare`] builds the certificate and signs it with a key that
//! is thrown away, so that the lint sees exactly what would be signed while nothing of value
//! exists. [`Issuer::issue`] takes the [`Prepared`] by value, so that it can be redeemed once,
//! signs with the real key, and checks that not one byte of the signed part differs from what was
//! linted.
//!
//! INVARIANT: `params` sets every field that rcgen has. rcgen's own defaults are valid until 4096,
//! name a made-up subject, and derive the serial number from the key.

use policies::identity::Serial;
use rcgen::string::{Ia5String, PrintableString};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use time::OffsetDateTime;

use crate::key::key_identifier;
use crate::lint::{self, Authority, Read};
use crate::profile::{Name, Oid, Role, Template, Usage};

/// Why a certificate was not signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CA's certificate and key do not belong together, or it is no CA of ours.
    #[error("the CA's certificate is not usable: {0}")]
    Unusable(&'static str),
    /// The certificate would outlive its CA.
    #[error("the certificate would end after its CA, which ends at {0}")]
    OutlivesIssuer(OffsetDateTime),
    /// A text has a character that the field can not hold.
    #[error("a name has a character that its field cannot hold")]
    Text,
    /// rcgen or the key refused.
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    /// The finished certificate is not what was asked for. Nothing is released.
    #[error("the certificate differs from what was asked for")]
    Lint(#[source] lint::Error),
    /// What was signed is not what was linted.
    #[error("the signed certificate differs from the linted one")]
    Changed,
}

/// A CA with its private key.
pub struct Issuer {
    name: Name,
    /// DER of the subject; `None` while the root signs itself.
    name_der: Option<Vec<u8>>,
    not_after: Option<OffsetDateTime>,
    key_id: Vec<u8>,
    key: KeyPair,
    disposable: KeyPair,
}

/// A certificate that was linted and may be signed, once, by the issuer that prepared it.
pub struct Prepared {
    template: Template,
    params: CertificateParams,
    spki: Vec<u8>,
    signed_part: Vec<u8>,
}

impl Prepared {
    /// The serial number that will be signed.
    pub fn serial(&self) -> Serial {
        self.template.serial
    }
}

impl Issuer {
    /// A CA from its certificate and key.
    ///
    /// # Errors
    /// [`Error::Unusable`] if they do not belong together or the certificate is no CA's.
    pub fn new(certificate: &[u8], key: KeyPair) -> Result<Self, Error> {
        let read = Read::from_der(certificate).map_err(|_| Error::Unusable("it is malformed"))?;
        if !read.is_ca {
            return Err(Error::Unusable("it is not a CA's"));
        }
        if read.spki != key.subject_public_key_info() {
            return Err(Error::Unusable("its key is another one"));
        }
        let name = read.subject.ok_or(Error::Unusable("its subject is not in our form"))?;
        let mut issuer = Self::unnamed(name, key)?;
        issuer.name_der = Some(read.subject_der);
        issuer.not_after = Some(read.not_after);
        Ok(issuer)
    }

    /// The issuer of a root's own certificate.
    ///
    /// # Errors
    /// [`Error::Sign`] if no disposable key could be made.
    pub fn unnamed(name: Name, key: KeyPair) -> Result<Self, Error> {
        let disposable = KeyPair::generate_for(key.algorithm()).map_err(Error::Sign)?;
        let key_id = key_identifier(key.der_bytes());
        Ok(Self { name, name_der: None, not_after: None, key_id, key, disposable })
    }

    /// Builds and lints the certificate.
    ///
    /// # Errors
    /// [`Error::OutlivesIssuer`], [`Error::Text`], [`Error::Sign`], [`Error::Lint`].
    pub fn prepare(
        &self,
        template: Template,
        public_key: &impl PublicKeyData,
    ) -> Result<Prepared, Error> {
        if let Some(end) = self.not_after.filter(|end| template.not_after > *end) {
            return Err(Error::OutlivesIssuer(end));
        }
        let params = params(&template, key_identifier(public_key.der_bytes()))?;
        let spki = public_key.subject_public_key_info();
        let der = self.sign(&params, public_key, &self.disposable)?;
        let authority = self.authority(self.disposable.subject_public_key_info());
        let read = lint::check(&der, &template, &spki, &authority).map_err(Error::Lint)?;
        Ok(Prepared { template, params, spki, signed_part: read.signed_part })
    }

    /// Signs what was prepared; returns the certificate's DER.
    ///
    /// # Errors
    /// [`Error::Sign`], [`Error::Lint`], [`Error::Changed`].
    pub fn issue(&self, prepared: Prepared, key: &impl PublicKeyData) -> Result<Vec<u8>, Error> {
        let Prepared { template, params, spki, signed_part } = prepared;
        let der = self.sign(&params, key, &self.key)?;
        let authority = self.authority(self.key.subject_public_key_info());
        let read = lint::check(&der, &template, &spki, &authority).map_err(Error::Lint)?;
        if read.signed_part == signed_part { Ok(der) } else { Err(Error::Changed) }
    }

    fn authority(&self, spki: Vec<u8>) -> Authority {
        Authority {
            name: self.name.clone(),
            name_der: self.name_der.clone(),
            key_id: self.key_id.clone(),
            spki,
        }
    }

    fn sign(
        &self,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
        key: &KeyPair,
    ) -> Result<Vec<u8>, Error> {
        let mut own = CertificateParams::default();
        own.distinguished_name = distinguished_name(&self.name)?;
        own.key_identifier_method = KeyIdMethod::PreSpecified(self.key_id.clone());
        let issuer = rcgen::Issuer::from_params(&own, key);
        let certificate = params.signed_by(public_key, &issuer).map_err(Error::Sign)?;
        Ok(certificate.der().to_vec())
    }
}

/// The one place where rcgen's parameters are filled in: every field, from the template.
fn params(template: &Template, subject_key_id: Vec<u8>) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.not_before = template.not_before;
    params.not_after = template.not_after;
    params.serial_number = Some(SerialNumber::from_slice(template.serial.as_bytes()));
    params.subject_alt_names = subject_alt_names(&template.role)?;
    params.distinguished_name = distinguished_name(&template.subject)?;
    params.is_ca = match template.role {
        Role::Ca { path_len, .. } => IsCa::Ca(BasicConstraints::Constrained(path_len)),
        Role::Client { .. } | Role::Server { .. } => IsCa::ExplicitNoCa,
    };
    params.key_usages = match template.role {
        Role::Ca { .. } => vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
        Role::Client { .. } | Role::Server { .. } => vec![KeyUsagePurpose::DigitalSignature],
    };
    params.extended_key_usages = match template.usage() {
        Some(Usage::Client) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Some(Usage::Server) => vec![ExtendedKeyUsagePurpose::ServerAuth],
        None => vec![],
    };
    params.name_constraints = None;
    params.crl_distribution_points = vec![];
    params.custom_extensions = custom_extensions(template);
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(subject_key_id);
    Ok(params)
}

fn distinguished_name(name: &Name) -> Result<DistinguishedName, Error> {
    let mut dn = DistinguishedName::new();
    let country = PrintableString::try_from("JP").map_err(|_| Error::Text)?;
    dn.push(DnType::CountryName, DnValue::PrintableString(country));
    dn.push(DnType::OrganizationName, DnValue::Utf8String(name.organization.clone()));
    if let Some(unit) = &name.unit {
        dn.push(DnType::OrganizationalUnitName, DnValue::Utf8String(unit.clone()));
    }
    dn.push(DnType::CommonName, DnValue::Utf8String(name.common_name.clone()));
    Ok(dn)
}

fn subject_alt_names(role: &Role) -> Result<Vec<SanType>, Error> {
    let ia5 = |text: &str| Ia5String::try_from(text).map_err(|_| Error::Text);
    match role {
        Role::Ca { .. } => Ok(vec![]),
        Role::Client { uri, .. } => Ok(vec![SanType::URI(ia5(uri)?)]),
        Role::Server { names, addresses } => {
            let names = names.iter().map(|name| Ok(SanType::DnsName(ia5(name)?)));
            names.chain(addresses.iter().map(|ip| Ok(SanType::IpAddress(*ip)))).collect()
        }
    }
}

fn custom_extensions(template: &Template) -> Vec<CustomExtension> {
    let mut extensions = vec![];
    if let Role::Client { policy, .. } = &template.role {
        extensions.push(certificate_policies(policy));
    }
    if let Some(marker) = &template.marker {
        let null = yasna::construct_der(|writer| writer.write_null());
        extensions.push(CustomExtension::from_oid_content(marker.arcs(), null));
    }
    extensions
}

/// certificatePolicies with one policy and no qualifiers (RFC 5280 §4.2.1.4).
fn certificate_policies(policy: &Oid) -> CustomExtension {
    let oid = yasna::models::ObjectIdentifier::from_slice(policy.arcs());
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|policies| {
            policies.next().write_sequence(|information| information.next().write_oid(&oid));
        });
    });
    CustomExtension::from_oid_content(CERTIFICATE_POLICIES, content)
}

const CERTIFICATE_POLICIES: &[u64] = &[2, 5, 29, 32];
