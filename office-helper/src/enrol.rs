//! First enrolment of a terminal: the key is made here and stays here; a request proves that we
//! hold it; what comes back is checked before it is kept.

use std::fmt;

use policies::identity::Identity;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use zeroize::Zeroizing;

use crate::certificate::{self, Chain};
use crate::cli::EnrolArgs;
use crate::files::{self, Folder};
use crate::status::Status;
use crate::{est, https};

/// Why a terminal could not be enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Files(#[from] files::Error),
    #[error("the secret of the code is empty: write it into the file, or on standard input")]
    NoSecret,
    #[error("the key could not be made or used")]
    Key(#[source] rcgen::Error),
    #[error(transparent)]
    Https(#[from] https::Error),
    #[error(transparent)]
    Est(#[from] est::Error),
    #[error("the certificate that came back is not kept")]
    Certificate(#[from] certificate::Error),
}

/// A finished enrolment, for the screen.
#[derive(Debug)]
pub(crate) struct Enrolled {
    status: Status,
    key: String,
    certificate: String,
}

impl fmt::Display for Enrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "証明書を受け取りました。 / The certificate is here.")?;
        write!(f, "{}", self.status)?;
        writeln!(f, "  秘密鍵 / key          {} (この端末から出さないでください)", self.key)?;
        writeln!(f, "  証明書 / certificate  {}", self.certificate)
    }
}

/// Makes a key, has it certified under the one-time code, and keeps both.
///
/// An enrolment that was cut off is taken up with the same key.
pub(crate) async fn enrol(args: &EnrolArgs) -> Result<Enrolled, Error> {
    let folder = Folder::at(&args.out);
    folder.prepare(args.replace)?;
    let secret = files::read_secret(&args.secret_file)?;
    if secret.is_empty() {
        return Err(Error::NoSecret);
    }
    let settings = https::settings(&args.trust, None)?;
    let key = pending_key(&folder)?;
    let csr = request(&key, &args.identity).map_err(Error::Key)?;
    let certificates = est::simple_enrol(&args.url, settings, &args.code, &secret, &csr).await?;
    let chain = certificate::check(&certificates, &key.subject_public_key_info(), &args.identity)?;
    folder.install(&chain_pem(&chain))?;
    Ok(Enrolled {
        status: Status::of(&chain.leaf, time::OffsetDateTime::now_utc()),
        key: folder.key().display().to_string(),
        certificate: folder.certificate().display().to_string(),
    })
}

fn pending_key(folder: &Folder) -> Result<KeyPair, Error> {
    if let Some(pem) = folder.read_pending_key()? {
        return KeyPair::from_pem(&pem).map_err(Error::Key);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Key)?;
    folder.write_pending_key(&Zeroizing::new(key.serialize_pem()))?;
    Ok(key)
}

/// PKCS#10 as DER. The CA takes the public key and the proof of possession from it and builds the
/// rest from its profile; the name is there so that a person reading the request knows whose it is.
fn request(key: &KeyPair, identity: &Identity) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name(identity));
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// `<number>-<terminal>`, within the 64 characters that X.520 allows.
fn common_name(identity: &Identity) -> String {
    match identity {
        Identity::Office { number, terminal } => format!("{number}-{terminal}"),
        Identity::Municipality { insurer, terminal } => format!("{insurer}-{terminal}"),
        Identity::System { name, terminal } => format!("{name}-{terminal}"),
        Identity::Operator { name } => name.to_string(),
    }
}

fn chain_pem(chain: &Chain) -> String {
    let mut pem = files::certificate_pem(&chain.leaf.der);
    for issuer in &chain.issuers {
        pem.push_str(&files::certificate_pem(issuer));
    }
    pem
}

#[cfg(test)]
mod tests;
