//! What the RA and the signer say to each other: one line of JSON each way, over a unix socket
//! whose other end must run under the same user.
//!
//! The RA sends a profile, an identity, a public key and the serial number it has recorded; never a
//! request as it came from outside. The signer answers with a certificate, a refusal, or
//! the word that it signed and keeps the certificate back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use policies::identity::{Identity, Serial};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::key;
use crate::profile::Profile;
use crate::serve;

/// What the signer is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    /// Joins the audit records of both programs.
    pub request_id: String,
    /// The profile.
    pub profile: Profile,
    /// Whom the certificate is for.
    pub identity: Identity,
    /// The SubjectPublicKeyInfo, base64 of DER.
    pub spki_der_b64: String,
    /// The serial number that the RA has recorded.
    pub serial: Serial,
    /// For the short-lived profile: seconds until the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_s: Option<u32>,
}

impl SignRequest {
    /// The public key's bytes, if they are base64.
    pub fn spki(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.spki_der_b64).ok()
    }

    /// The wire form of a SubjectPublicKeyInfo.
    pub fn encode_spki(der: &[u8]) -> String {
        STANDARD.encode(der)
    }
}

/// What the signer answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum SignResponse {
    /// The certificate.
    Signed {
        /// One certificate, PEM.
        certificate_pem: String,
    },
    /// Nothing was signed.
    Refused {
        /// Why not.
        error: Refusal,
    },
    /// The serial number was signed, but the certificate is kept back: it must be revoked.
    Withheld {
        /// Why.
        withheld: Refusal,
    },
}

/// Why the signer did not sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A stable word, such as `profile` or `rate`.
    pub code: String,
    /// One line for the operator.
    pub message: String,
}

/// Why the RA got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No signer took the request: nothing was signed.
    #[error("the signer at `{0}` cannot be reached")]
    Unreachable(PathBuf, #[source] std::io::Error),
    /// The other end of the socket runs under another user.
    #[error("the process at `{0}` runs under another user")]
    Foreign(PathBuf),
    /// The signer said no: nothing was signed.
    #[error("the signer refused ({}): {}", .0.code, .0.message)]
    Refused(Refusal),
    /// Something was signed and kept back.
    #[error("the signer signed but kept the certificate back ({}): {}", .0.code, .0.message)]
    Withheld(Refusal),
    /// The request went out and no answer came: something may have been signed.
    #[error("the signer did not answer")]
    Lost,
}

/// Asks the signer.
#[derive(Debug, Clone)]
pub struct SignerClient {
    socket: PathBuf,
}

impl SignerClient {
    /// A client of the signer that listens at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Sends one request; returns the certificate's DER, not yet checked.
    ///
    /// # Errors
    /// Every [`Error`]. After [`Error::Lost`] and [`Error::Withheld`] the serial number must count
    /// as signed.
    pub async fn sign(&self, request: &SignRequest) -> Result<Vec<u8>, Error> {
        let unreachable = |source| Error::Unreachable(self.socket.clone(), source);
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        if !serve::is_same_user(&stream) {
            return Err(Error::Foreign(self.socket.clone()));
        }
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange(stream, request)).await;
        let line = answer.ok().flatten().ok_or(Error::Lost)?;
        match serde_json::from_str(&line).map_err(|_| Error::Lost)? {
            SignResponse::Signed { certificate_pem } => {
                key::certificate_from_pem(&certificate_pem).ok_or(Error::Lost)
            }
            SignResponse::Refused { error } => Err(Error::Refused(error)),
            SignResponse::Withheld { withheld } => Err(Error::Withheld(withheld)),
        }
    }
}

async fn exchange(mut stream: UnixStream, request: &SignRequest) -> Option<String> {
    let mut line = serde_json::to_string(request).ok()?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await.ok()?;
    read_line(&mut BufReader::new(stream)).await.ok().flatten()
}

/// Reads one line of at most [`LINE_BYTES_MAX`], without its end; `None` at the end of the stream
/// or when the line is longer.
///
/// # Errors
/// When the stream fails or the line is not UTF-8.
pub async fn read_line<R>(reader: &mut R) -> std::io::Result<Option<String>>
where
    R: tokio::io::AsyncBufRead + Unpin,
{
    let mut line = String::new();
    let mut limited = reader.take(LINE_BYTES_MAX);
    limited.read_line(&mut line).await?;
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

/// The longest line on our sockets, in bytes.
pub const LINE_BYTES_MAX: u64 = 16 * 1024;

/// How long the RA waits for a certificate: a signature takes well under a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
