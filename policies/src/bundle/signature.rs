//! Signatures of a policy that opens a cell: two different operators', over its version.

use std::collections::BTreeSet;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use toml::Spanned;

use super::{Files, SIGNATURES, of_toml};
use crate::problem::{Problem, did_you_mean};

/// An operator whose signature counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The operator's name.
    pub operator: String,
    /// The Ed25519 public key, 32 bytes.
    pub public_key: Vec<u8>,
}

/// Why a key or signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not 32 bytes in base64.
    #[error("the key of operator `{0}` must be an Ed25519 public key: 32 bytes in base64")]
    PublicKey(String),
    /// Not a private key.
    #[error("the private key must be Ed25519 in PKCS#8 (openssl genpkey -algorithm ed25519)")]
    PrivateKey,
}

impl Signer {
    /// Takes a name and a public key in base64.
    ///
    /// # Errors
    /// [`Error::PublicKey`].
    pub fn new(operator: &str, public_key: &str) -> Result<Self, Error> {
        let bytes = STANDARD.decode(public_key.trim()).unwrap_or_default();
        if bytes.len() != 32 {
            return Err(Error::PublicKey(operator.to_owned()));
        }
        Ok(Self { operator: operator.to_owned(), public_key: bytes })
    }
}

/// What an operator signs to agree to a policy.
pub fn message(version: &str) -> Vec<u8> {
    format!("sekisho-policy-v1\n{version}\n").into_bytes()
}

/// An operator's signature, as it stands in signatures.toml. `pkcs8` is the private key (DER).
///
/// # Errors
/// [`Error::PrivateKey`].
pub fn sign(operator: &str, pkcs8: &[u8], version: &str) -> Result<String, Error> {
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| Error::PrivateKey)?;
    let signature = STANDARD.encode(key.sign(&message(version)));
    Ok(format!("[[signature]]\noperator = \"{operator}\"\nsignature = \"{signature}\"\n"))
}

/// What is wrong with the signatures of a policy that needs them.
pub(super) fn check(files: &Files, version: &str, signers: &[Signer]) -> Vec<Problem> {
    let text = files.get(SIGNATURES).map_or("", String::as_str);
    let raw: RawSignatures = match toml::from_str(text) {
        Ok(raw) => raw,
        Err(error) => return vec![of_toml(SIGNATURES, text, &error)],
    };
    let mut problems = Vec::new();
    let mut keys = BTreeSet::new();
    for signature in &raw.signature {
        let (name, span) = (signature.operator.get_ref(), signature.operator.span());
        let mut wrong = |what: String, hint: String| {
            problems.push(Problem::at(SIGNATURES, text, &span, what, hint));
        };
        let Some(signer) = signers.iter().find(|signer| signer.operator == *name) else {
            let known = signers.iter().map(|signer| signer.operator.as_str());
            wrong(format!("operator `{name}` may not sign policies"), did_you_mean(name, known));
            continue;
        };
        let bytes = STANDARD.decode(&signature.signature).unwrap_or_default();
        let key = UnparsedPublicKey::new(&ED25519, &signer.public_key);
        match key.verify(&message(version), &bytes) {
            Ok(()) => drop(keys.insert(signer.public_key.clone())),
            Err(_) => wrong(
                format!("the signature of `{name}` is not over this policy"),
                format!("a change after signing needs new signatures; the version is {version}"),
            ),
        }
    }
    if keys.len() < SIGNATURES_MIN && problems.is_empty() {
        let what = format!("{} of {SIGNATURES_MIN} signatures are there", keys.len());
        let hint = "a policy that opens a cell is signed by two operators, each with a key of \
                    their own: `sekisho policy sign DIR --operator NAME --key FILE`";
        problems.push(Problem::of_file(SIGNATURES, what, hint));
    }
    problems
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSignatures {
    #[serde(default)]
    signature: Vec<RawSignature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSignature {
    operator: Spanned<String>,
    signature: String,
}

const SIGNATURES_MIN: usize = 2;
