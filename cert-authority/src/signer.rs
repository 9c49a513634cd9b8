//! The signer: the only process that sees the issuing key.
//!
//! It has no network and believes nothing that the RA says. For each line it checks, from its own
//! configuration: rate, form, profile and identity, demo, validity, key policy; then it prepares
//! and lints, records the serial number so that it can never be signed again, writes its intent,
//! signs, lints again, writes the effect and the outcome, and answers.
//!
//! INVARIANT: no signature without a durable intent, no answer without a durable effect.
//!
//! Approval by two persons for unusual requests, and keys in PKCS#11 tokens, belong here.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use audit_log::{Actor, Object};
use policies::identity::Serial;
use time::OffsetDateTime;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Trail, Work};
use crate::issuer::{self, Issuer};
use crate::key::{self, SERIAL_BYTES};
use crate::profile::{self, Rules};
use crate::protocol::{Refusal, SignRequest, SignResponse, read_line};
use crate::request::{self, PublicKey};
use crate::serve;

/// Why the signer does not sign.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More requests than the configured rate.
    #[error(
        "more than {0} requests in a minute: raise `issue_rate_per_minute_max` or find out who asks"
    )]
    Rate(u32),
    /// The line is no request.
    #[error("the request is not understood")]
    Malformed(#[source] serde_json::Error),
    /// The key field is not base64.
    #[error("the public key is not base64")]
    KeyEncoding,
    /// The profile does not allow it.
    #[error(transparent)]
    Profile(#[from] profile::Error),
    /// The key policy does not allow it.
    #[error(transparent)]
    Key(#[from] request::Error),
    /// The serial number does not have our form.
    #[error("serial `{0}` is not a positive number of {SERIAL_BYTES} bytes")]
    SerialForm(Serial),
    /// The serial number was signed before.
    #[error("serial `{0}` was signed before")]
    SerialUsed(Serial),
    /// The certificate was refused by the issuer or its lint.
    #[error(transparent)]
    Issue(#[from] issuer::Error),
    /// The record of serial numbers can not be written.
    #[error("the record of signed serials cannot be written")]
    Ledger(#[source] std::io::Error),
    /// The audit log can not be written.
    #[error("the audit log cannot be written")]
    Audit(#[from] audit_log::Error),
    /// The certificate was signed, and then it was not what was prepared.
    #[error("what was signed differs from what was prepared")]
    Spoiled(#[source] issuer::Error),
    /// The certificate was signed, and then the audit log could not be written.
    #[error("it was signed, and then the audit log could not be written")]
    Unaccounted(#[source] audit_log::Error),
}

impl Error {
    /// The stable word in answers and records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Rate(_) => "rate",
            Self::Malformed(_) | Self::KeyEncoding => "malformed",
            Self::Profile(_) => "profile",
            Self::Key(_) => "key_policy",
            Self::SerialForm(_) | Self::SerialUsed(_) => "serial",
            Self::Issue(_) => "issue",
            Self::Ledger(_) | Self::Audit(_) => "unavailable",
            Self::Spoiled(_) => "spoiled",
            Self::Unaccounted(_) => "unaccounted",
        }
    }

    const fn is_after_signature(&self) -> bool {
        matches!(self, Self::Spoiled(_) | Self::Unaccounted(_))
    }

    fn into_response(self) -> SignResponse {
        let refusal = Refusal { code: self.code().to_owned(), message: serve::chain(&self) };
        if self.is_after_signature() {
            SignResponse::Withheld { withheld: refusal }
        } else {
            SignResponse::Refused { error: refusal }
        }
    }
}

/// The issuing CA at work.
pub struct Signer {
    rules: Rules,
    issuer: Issuer,
    ledger: Mutex<Ledger>,
    rate: Mutex<Rate>,
    trail: Trail,
}

impl Signer {
    /// A signer with its key, its record of serials and its audit log.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub fn new(
        rules: Rules,
        issuer: Issuer,
        ledger: &Path,
        rate_per_minute_max: u32,
        trail: Trail,
    ) -> Result<Self, Error> {
        Ok(Self {
            rules,
            issuer,
            ledger: Mutex::new(Ledger::open(ledger).map_err(Error::Ledger)?),
            rate: Mutex::new(Rate::new(rate_per_minute_max, Instant::now())),
            trail,
        })
    }

    /// Answers one line.
    pub fn answer(&self, line: &str) -> SignResponse {
        let now = OffsetDateTime::now_utc();
        match self.admit(Instant::now()).and_then(|()| self.handle(line, now)) {
            Ok(der) => SignResponse::Signed { certificate_pem: key::certificate_to_pem(&der) },
            Err(error) => {
                tracing::warn!(code = error.code(), %error, "certificate refused");
                error.into_response()
            }
        }
    }

    fn admit(&self, now: Instant) -> Result<(), Error> {
        let mut rate = lock(&self.rate);
        if rate.take(now) { Ok(()) } else { Err(Error::Rate(rate.per_minute_max)) }
    }

    fn handle(&self, line: &str, now: OffsetDateTime) -> Result<Vec<u8>, Error> {
        let request: SignRequest = serde_json::from_str(line).map_err(Error::Malformed)?;
        let work = Work {
            request_id: Some(request.request_id.chars().take(64).collect()),
            actor: Actor::of("ra"),
            action: "certificate.sign",
            object: Object::named(request.serial.to_string()),
        };
        match self.sign(&request, &work, now) {
            Ok(der) => self.account(&work, &der).map(|()| der),
            Err(error) => {
                let end = work.outcome(error.code(), error.to_string());
                match self.trail.record_blocking(&end) {
                    Err(audit) if !error.is_after_signature() => Err(audit.into()),
                    Ok(()) | Err(_) => Err(error),
                }
            }
        }
    }

    /// Records what was signed; until then it does not go out.
    fn account(&self, work: &Work, der: &[u8]) -> Result<(), Error> {
        let hash = hex::encode(key::sha256(der));
        let effect = work.effect(format!("certificate sha256 {hash}"));
        for record in [effect, work.outcome("done", "")] {
            self.trail.record_blocking(&record).map_err(Error::Unaccounted)?;
        }
        Ok(())
    }

    fn sign(
        &self,
        request: &SignRequest,
        work: &Work,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, Error> {
        if request.serial.as_bytes().len() != SERIAL_BYTES || request.serial.as_bytes()[0] > 0x7f {
            return Err(Error::SerialForm(request.serial));
        }
        let SignRequest { profile, identity, not_after_s, serial, .. } = request;
        let template = self.rules.client(*profile, identity, *not_after_s, *serial, now)?;
        let key = PublicKey::from_spki(&request.spki().ok_or(Error::KeyEncoding)?)?;
        let prepared = self.issuer.prepare(template, &key)?;
        if !lock(&self.ledger).reserve(*serial).map_err(Error::Ledger)? {
            return Err(Error::SerialUsed(*serial));
        }
        let key_name = hex::encode(key.sha256());
        let about = format!("{} {identity} key {key_name}", profile.as_str());
        self.trail.record_blocking(&work.intent(about))?;
        self.issuer.issue(prepared, &key).map_err(Error::Spoiled)
    }
}

/// Serves the socket until `stop`; work that has begun is finished.
pub async fn serve(listener: UnixListener, signer: Arc<Signer>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let limit = Arc::new(tokio::sync::Semaphore::new(CLIENTS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&limit).try_acquire_owned() else { continue };
        if !serve::is_same_user(&stream) {
            tracing::warn!("connection of another user refused");
            continue;
        }
        let (signer, stop) = (Arc::clone(&signer), stop.clone());
        tasks.spawn(async move {
            connection(stream, signer, stop).await;
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn connection(stream: UnixStream, signer: Arc<Signer>, stop: CancellationToken) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let line = tokio::select! {
            () = stop.cancelled() => return,
            line = tokio::time::timeout(LINE_TIMEOUT, read_line(&mut read)) => line,
        };
        let Ok(Ok(Some(line))) = line else { return };
        let signer = Arc::clone(&signer);
        let answered = tokio::task::spawn_blocking(move || signer.answer(&line)).await;
        let Some(mut text) = answered.ok().and_then(|answer| serde_json::to_string(&answer).ok())
        else {
            return;
        };
        text.push('\n');
        if write.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Every serial number that was ever signed, 16 bytes each, on disk before the signature is made.
struct Ledger {
    file: File,
    known: HashSet<[u8; SERIAL_BYTES]>,
}

impl Ledger {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes)?;
        let (whole, torn) = bytes.as_chunks::<SERIAL_BYTES>();
        // A crash may have cut the last one; it was not signed, because the write comes first.
        file.set_len((bytes.len() - torn.len()) as u64)?;
        Ok(Self { file, known: whole.iter().copied().collect() })
    }

    /// Whether the serial is new; then it is on disk when this returns.
    fn reserve(&mut self, serial: Serial) -> std::io::Result<bool> {
        let Ok(bytes) = <[u8; SERIAL_BYTES]>::try_from(serial.as_bytes()) else { return Ok(false) };
        if self.known.contains(&bytes) {
            return Ok(false);
        }
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // A full disk may have taken a part: the next entry must start at a multiple again.
            self.file.set_len((self.known.len() * SERIAL_BYTES) as u64)?;
            return Err(error);
        }
        Ok(self.known.insert(bytes))
    }
}

/// How many requests may still be answered: a bucket of one minute's requests that refills evenly.
struct Rate {
    per_minute_max: u32,
    left: f64,
    at: Instant,
}

impl Rate {
    fn new(per_minute_max: u32, now: Instant) -> Self {
        Self { per_minute_max, left: f64::from(per_minute_max), at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let max = f64::from(self.per_minute_max);
        let refill = now.saturating_duration_since(self.at).as_secs_f64() * max / 60.0;
        self.left = (self.left + refill).min(max);
        self.at = now;
        let admitted = self.left >= 1.0;
        if admitted {
            self.left -= 1.0;
        }
        admitted
    }
}

/// The lock, also after a panic in another thread: the values behind it are replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the record of signed serials is kept, in the CA's folder.
pub fn ledger_path(ca_dir: &Path) -> PathBuf {
    ca_dir.join("signed-serials.bin")
}

const CLIENTS_MAX: usize = 16;
const LINE_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
