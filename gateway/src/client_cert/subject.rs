//! The holder of an outside CA's certificate, read from its subject.
//!
//! 国保中央会's profile is not public, so the layout is our reading of it, and the one place to
//! change: `OU` = the kind of certificate, `CN` = 事業所番号. A certificate is one office's, and may
//! lie on several of its terminals, so its terminal is named after the certificate.

use policies::identity::{Identity, OfficeNumber, Serial, TerminalId};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

use super::leaf::check_purpose;
use super::{Digest, Reason, Refused, Said, Validity, sha256};

/// Reads a leaf that the outside CA `issuer` signed, by the rule `kokuho-subject`, at `now`.
pub(crate) fn read_kokuho(
    der: &CertificateDer<'_>,
    issuer: &Digest,
    now: u64,
) -> Result<Said, Refused> {
    let unreadable = Refused { reason: Reason::Malformed, serial: None, claimed: None };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unreadable.clone())?;
    let shown = Serial::from_bytes(certificate.raw_serial()).map_err(|_| unreadable.clone())?;
    let key = qualified(issuer, shown).map_err(|_| unreadable)?;
    let identity = identity(&certificate, key);
    let claimed = identity.as_ref().ok().map(Identity::path);
    let refuse = |reason| Refused { reason, serial: Some(shown), claimed: claimed.clone() };
    // An extended key usage is not known to be in these certificates; where it is, it counts.
    if !matches!(certificate.extended_key_usage(), Ok(None)) {
        check_purpose(&certificate).map_err(refuse)?;
    }
    let validity = Validity::of(&certificate);
    validity.check(now).map_err(refuse)?;
    check_kind(&certificate).map_err(refuse)?;
    let identity = identity.map_err(refuse)?;
    Ok(Said::new(der, identity, key, shown, validity))
}

/// The serial as decisions know it: of this issuer and no other. As an INTEGER it would be
/// negative, and a certificate's serial is positive (RFC 5280 §4.1.2.2), so no serial of our own CA
/// equals it.
fn qualified(issuer: &Digest, serial: Serial) -> Result<Serial, policies::identity::Error> {
    let mut bytes = sha256(&[issuer.as_slice(), serial.as_bytes()].concat());
    bytes[0] |= 0x80;
    Serial::from_bytes(&bytes[..20])
}

fn identity(certificate: &X509Certificate<'_>, key: Serial) -> Result<Identity, Reason> {
    let unfit = |why: String| Reason::NoIdentity(why);
    let name = one(certificate.subject().iter_common_name())
        .ok_or_else(|| unfit("the subject has not one common name".to_owned()))?;
    let number: OfficeNumber = name.parse().map_err(|error| unfit(format!("{error}")))?;
    let terminal = format!("kokuho-{}", hex::encode(&key.as_bytes()[..12]));
    let terminal: TerminalId = terminal.parse().map_err(|error| unfit(format!("{error}")))?;
    Ok(Identity::Office { number, terminal })
}

/// 介護保険 and 介護DX are for care; 障害, 代理人 and what is not known are not.
fn check_kind(certificate: &X509Certificate<'_>) -> Result<(), Reason> {
    let kind = one(certificate.subject().iter_organizational_unit()).unwrap_or("not told");
    match kind.strip_suffix("証明書").unwrap_or(kind) {
        "介護保険" | "介護DX" => Ok(()),
        other => Err(Reason::WrongKind(other.chars().take(40).collect())),
    }
}

fn one<'a, 'b: 'a>(
    mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'b>>,
) -> Option<&'a str> {
    let value = values.next()?.as_str().ok()?;
    values.next().is_none().then_some(value)
}
