//! Staff tokens: ES256 JWTs that the gateway verifies, bound to the terminal's certificate
//! (RFC 8705 §3.1), and the key that signs them.
//!
//! INVARIANT: the private key is read or made at the start, mode 0600, and stays in the process.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use policies::feed::Fact;
use policies::identity::{Job, OfficeNumber};
use serde::{Deserialize, Serialize};

use crate::key_file;

/// Why the token key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key file.
    #[error("staff token key cannot be read or made")]
    File(#[from] key_file::Error),
    /// The key itself.
    #[error("staff token key `{0}` is not a P-256 key in PKCS#8 form")]
    Key(String),
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: String,
    pub(crate) office: OfficeNumber,
    pub(crate) job: Job,
    pub(crate) sid: String,
    pub(crate) iat: u64,
    pub(crate) exp: u64,
    pub(crate) jti: String,
    pub(crate) cnf: Confirmation,
    /// Of the CSRF token, in a token that was made for a browser's cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) csrf: Option<String>,
}

/// The certificate that the token belongs to (RFC 8705 §3.1).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Confirmation {
    #[serde(rename = "x5t#S256")]
    pub(crate) certificate_sha256: String,
}

/// Signs staff tokens.
pub(crate) struct TokenKey {
    key: EncodingKey,
    kid: String,
    x: String,
    y: String,
}

impl TokenKey {
    /// Reads the key, or makes it at the first start.
    ///
    /// # Errors
    /// [`Error`].
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let wrong = || Error::Key(path.display().to_string());
        if !path.exists() {
            let random = SystemRandom::new();
            let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                .map_err(|_| wrong())?;
            key_file::write_new(path, made.as_ref())?;
        }
        let der = key_file::pkcs8_der(&key_file::read(path)?)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
            .map_err(|_| wrong())?;
        let (x, y) = coordinates(pair.public_key().as_ref()).ok_or_else(wrong)?;
        let kid = thumbprint(&x, &y);
        Ok(Self { key: EncodingKey::from_ec_der(&der), kid, x, y })
    }

    /// The public key, as the gateway gets it.
    pub(crate) fn fact(&self) -> Fact {
        let (kid, x, y) = (self.kid.clone(), self.x.clone(), self.y.clone());
        Fact::StaffKey { kid, x, y, retired: false }
    }

    /// The id of the key.
    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }

    /// The signed token.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.key)
    }
}

/// x and y of an uncompressed P-256 point (SEC 1 §2.3.3).
fn coordinates(point: &[u8]) -> Option<(String, String)> {
    let body = point.strip_prefix(&[4])?;
    if body.len() != 64 {
        return None;
    }
    Some((URL_SAFE_NO_PAD.encode(&body[..32]), URL_SAFE_NO_PAD.encode(&body[32..])))
}

/// RFC 7638: SHA-256 over the required members of the JWK in alphabetical order.
fn thumbprint(x: &str, y: &str) -> String {
    let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest(&SHA256, jwk.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_stays() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("staff-token.pkcs8");
        let kid = TokenKey::open(&path).unwrap().kid().to_owned();
        assert_eq!(TokenKey::open(&path).unwrap().kid(), kid);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        std::fs::write(&path, b"\x30nonsense").unwrap();
        assert!(matches!(TokenKey::open(&path), Err(Error::Key(_))));
    }

    #[test]
    fn the_key_id_is_the_thumbprint_of_rfc_7638() {
        // The P-256 key of RFC 7517 appendix A.1; the digest was made with openssl.
        let x = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
        let y = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
        assert_eq!(thumbprint(x, y), "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s");
    }
}
