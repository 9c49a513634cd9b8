//! Enrolment: one-time code + request → certificate. The same steps for every way in.
//!
//! 1. the code's secret (wrong ones are counted);
//! 2. the request: proof of possession, key policy;
//! 3. claim: the code is bound to the key and the intent is stored, or the certificate that this
//!    code and key have already is given again;
//! 4. audit: intent;
//! 5. the signer signs; what comes back is linted here too;
//! 6. the certificate is stored, then audited (effect, outcome), and only then handed out.
//!
//! A crash anywhere leaves the stored intent. The next start, or the next request with the same
//! code and key, abandons its serial number (revoked, in case it was signed) and signs a new one.
//!
//! Renewal by mTLS and the web page use the same steps from 2 on and belong here.

use std::net::SocketAddr;
use std::sync::Arc;

use audit_log::{Actor, Object};
use policies::identity::{Identity, Serial};
use time::{Duration, OffsetDateTime};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::audit::{Trail, Work};
use crate::key;
use crate::lint::{self, Authority};
use crate::profile::{self, BACKDATE, Profile, Rules};
use crate::protocol::{self, SignRequest, SignerClient};
use crate::request::{self, PublicKey};
use crate::serve::chain;
use crate::store::{self, Claim, Claimant, Given, Intended, NewCode, Store};

/// Why no certificate was given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The code, office or key is refused, or the database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The request is refused.
    #[error(transparent)]
    Request(#[from] request::Error),
    /// The profile does not fit.
    #[error(transparent)]
    Profile(#[from] profile::Error),
    /// The signer gave no certificate.
    #[error(transparent)]
    Signer(#[from] protocol::Error),
    /// What the signer gave is not what was asked for.
    #[error("the signer's certificate differs from what was asked for")]
    Lint(#[source] lint::Error),
    /// The audit log can not be written.
    #[error("the audit log cannot be written")]
    Audit(#[from] audit_log::Error),
    /// No randomness.
    #[error(transparent)]
    Key(#[from] key::Error),
}

/// A new code, as shown once to the operator.
#[derive(Debug)]
pub struct IssuedCode {
    /// The public id.
    pub id: String,
    /// The secret in groups of four.
    pub secret: String,
    /// The last second at which it may be used, Unix seconds.
    pub expires_at: i64,
}

/// Gives certificates to those who hold a code.
pub struct Enrolment {
    store: Store,
    signer: SignerClient,
    trail: Trail,
    rules: Rules,
    authority: Authority,
    /// One request at a time per code (and per sixty-fourth of all codes).
    turns: [Mutex<()>; 64],
    /// The enrolments that have begun.
    tasks: TaskTracker,
}

impl Enrolment {
    /// Enrolment with its store, signer and audit log; `tasks` counts what has begun.
    pub fn new(
        store: Store,
        signer: SignerClient,
        trail: Trail,
        rules: Rules,
        authority: Authority,
        tasks: TaskTracker,
    ) -> Self {
        let turns = std::array::from_fn(|_| Mutex::new(()));
        Self { store, signer, trail, rules, authority, turns, tasks }
    }

    /// Issues a one-time code.
    ///
    /// # Errors
    /// [`Error::Profile`], [`Error::Store`], [`Error::Audit`], [`Error::Key`].
    pub async fn issue_code(
        &self,
        identity: &Identity,
        profile: Profile,
        not_after_s: Option<u32>,
        valid_hours: u32,
    ) -> Result<IssuedCode, Error> {
        self.rules.allows(profile, identity, not_after_s)?;
        let (id, secret) = (crockford(&key::random_bytes::<5>()?), new_secret()?);
        let issued_at = OffsetDateTime::now_utc().unix_timestamp();
        let expires_at = issued_at + i64::from(valid_hours) * 3600;
        let work = Work {
            request_id: Some(audit_log::work_id()),
            actor: Actor::of("operator"),
            action: "code.issue",
            object: Object::named(format!("code/{id}")),
        };
        let about = format!("{} {identity} valid {valid_hours} h", profile.as_str());
        self.trail.record(&work.intent(about)).await?;
        let code = NewCode {
            id: &id,
            secret: &secret,
            identity,
            profile,
            not_after_s,
            issued_at,
            expires_at,
        };
        let stored = self.store.add_code(&code).await;
        let result = if stored.is_ok() { "done" } else { "refused" };
        self.trail.record(&work.outcome(result, "")).await?;
        stored?;
        Ok(IssuedCode { id, secret: in_groups(&secret), expires_at })
    }

    /// Gives the certificate (DER) for a code and a PKCS#10 request.
    ///
    /// # Errors
    /// Every [`Error`].
    pub async fn enrol(
        self: Arc<Self>,
        code_id: String,
        secret: String,
        csr: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        // A task of its own: a client that goes away does not stop the work half-way.
        let tasks = self.tasks.clone();
        let work = tasks.spawn(async move { self.enrol_here(&code_id, &secret, &csr).await });
        work.await.unwrap_or(Err(Error::Signer(protocol::Error::Lost)))
    }

    /// Records that a request was refused before any work began on it. What is refused later has
    /// its outcome on record.
    pub fn record_refusal(&self, client: SocketAddr, code_id: &str, error: &Error) {
        if let Some(reason) = refusal_code(error) {
            let code_id = normalise(code_id);
            // Whoever confuses the two fields would otherwise leave the secret here.
            let is_id =
                code_id.len() == ID_LENGTH && code_id.bytes().all(|c| ALPHABET.contains(&c));
            let code = if is_id { format!("code/{code_id}") } else { "code/malformed".to_owned() };
            self.trail.denied(client, Object::named(code), reason);
        }
    }

    async fn enrol_here(&self, code_id: &str, secret: &str, csr: &[u8]) -> Result<Vec<u8>, Error> {
        let (code_id, secret) = (normalise(code_id), normalise(secret));
        let turn = usize::from(key::sha256(code_id.as_bytes())[0] % 64);
        let _turn = match self.turns.get(turn) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        let work = Work {
            request_id: Some(hex::encode(key::random_bytes::<8>()?)),
            actor: Actor::of(format!("code/{code_id}")),
            action: "certificate.issue",
            object: Object::default(),
        };
        let code = match self.store.open_code(&code_id, &secret).await {
            Err(error @ store::Error::CodeWrong { counted: true }) => {
                self.trail.record(&work.outcome("code_wrong", "")).await?;
                return Err(error.into());
            }
            opened => opened?,
        };
        // The code speaks for the office that it was issued to.
        let office = code.identity.office().map(|number| number.to_string());
        let work = Work { actor: Actor { office, ..work.actor }, ..work };
        let key = PublicKey::from_request(csr)?;
        let now = OffsetDateTime::now_utc();
        let serial = key::random_serial()?;
        let claimant = Claimant { code_id: &code.id, key: &key, serial, now: now.unix_timestamp() };
        match self.store.claim(&claimant).await? {
            Claim::Again(given) => self.give_again(work, given).await,
            Claim::Sign(intended) => {
                let work = Work { object: Object::named(serial.to_string()), ..work };
                self.record_abandoned(&intended.abandoned).await?;
                let result = self.sign(&work, &intended, &key, serial, now).await;
                self.settle(&work, serial, result).await
            }
        }
    }

    /// A crash may have come after the certificate was stored and before its outcome was recorded:
    /// then it is recorded now, before the certificate goes out.
    async fn give_again(&self, work: Work, given: Given) -> Result<Vec<u8>, Error> {
        let Given { serial, der, accounted } = given;
        if !accounted {
            let work = Work { object: Object::named(serial.to_string()), ..work };
            let hash = hex::encode(key::sha256(&der));
            let detail = format!("certificate sha256 {hash}");
            self.trail.record(&work.outcome("given again", detail)).await?;
            self.store.set_accounted(serial).await?;
        }
        Ok(der)
    }

    /// Abandons every intent that has no answer: called at start, before anyone can ask.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Audit`].
    pub async fn recover(&self) -> Result<(), Error> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let abandoned = self.store.abandon_all(now).await?;
        self.record_abandoned(&abandoned).await
    }

    async fn record_abandoned(&self, serials: &[Serial]) -> Result<(), Error> {
        for serial in serials {
            let work = Work {
                request_id: None,
                actor: Actor::of("ra"),
                action: "certificate.issue",
                object: Object::named(serial.to_string()),
            };
            tracing::warn!(%serial, "an intent without answer was abandoned and revoked");
            let detail = "no answer from the signer was stored; revoked";
            self.trail.record(&work.outcome("abandoned", detail)).await?;
        }
        Ok(())
    }

    async fn sign(
        &self,
        work: &Work,
        intended: &Intended,
        key: &PublicKey,
        serial: Serial,
        now: OffsetDateTime,
    ) -> Result<(Vec<u8>, (i64, i64)), Error> {
        let Intended { identity, profile, not_after_s, .. } = intended;
        let about = format!("{} {identity} key {}", profile.as_str(), hex::encode(key.sha256()));
        self.trail.record(&work.intent(about)).await?;
        let request = SignRequest {
            request_id: work.request_id.clone().unwrap_or_default(),
            profile: *profile,
            identity: identity.clone(),
            spki_der_b64: SignRequest::encode_spki(key.spki()),
            serial,
            not_after_s: *not_after_s,
        };
        let der = self.signer.sign(&request).await?;
        let validity = self.check(&der, &request, key, now)?;
        Ok((der, validity))
    }

    /// Lints what the signer sent against a template of our own, made for the time it was signed
    /// at.
    fn check(
        &self,
        der: &[u8],
        request: &SignRequest,
        key: &PublicKey,
        now: OffsetDateTime,
    ) -> Result<(i64, i64), Error> {
        let read = lint::Read::from_der(der).map_err(Error::Lint)?;
        let signed_at = read.not_before + BACKDATE;
        if (signed_at - now).abs() > CLOCK_SLACK {
            return Err(Error::Lint(lint::Error::Findings(vec!["notBefore"])));
        }
        let template = self.rules.client(
            request.profile,
            &request.identity,
            request.not_after_s,
            request.serial,
            signed_at,
        )?;
        lint::check(der, &template, key.spki(), &self.authority).map_err(Error::Lint)?;
        Ok((read.not_before.unix_timestamp(), read.not_after.unix_timestamp()))
    }

    async fn settle(
        &self,
        work: &Work,
        serial: Serial,
        result: Result<(Vec<u8>, (i64, i64)), Error>,
    ) -> Result<Vec<u8>, Error> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        match result {
            Ok((der, validity)) => {
                self.store.settle_issued(serial, &der, validity, now).await?;
                let hash = hex::encode(key::sha256(&der));
                self.trail.record(&work.effect(format!("certificate sha256 {hash}"))).await?;
                self.trail.record(&work.outcome("done", "")).await?;
                self.store.set_accounted(serial).await?;
                Ok(der)
            }
            Err(error) if nothing_was_signed(&error) => {
                self.store.settle_refused(serial, &chain(&error), now).await?;
                self.trail.record(&work.outcome("refused", chain(&error))).await?;
                Err(error)
            }
            Err(error) => {
                self.store.abandon_serial(serial, &chain(&error), now).await?;
                self.trail.record(&work.outcome("abandoned", chain(&error))).await?;
                Err(error)
            }
        }
    }
}

/// Whether an error is sure to have come before any signature.
fn nothing_was_signed(error: &Error) -> bool {
    match error {
        Error::Signer(protocol::Error::Lost | protocol::Error::Withheld(_)) | Error::Lint(_) => {
            false
        }
        Error::Signer(
            protocol::Error::Unreachable(..)
            | protocol::Error::Foreign(_)
            | protocol::Error::Refused(_),
        )
        | Error::Store(_)
        | Error::Request(_)
        | Error::Profile(_)
        | Error::Audit(_)
        | Error::Key(_) => true,
    }
}

/// 120 random bits as 24 characters.
fn new_secret() -> Result<String, key::Error> {
    Ok(crockford(&key::random_bytes::<15>()?))
}

/// Crockford's base 32: no I, L, O, U. Five bytes give eight characters; a rest is not used here.
fn crockford(bytes: &[u8]) -> String {
    let (groups, _) = bytes.as_chunks::<5>();
    let mut text = String::with_capacity(groups.len() * 8);
    for group in groups {
        let bits = group.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        for shift in (0..8).rev() {
            let at = (bits >> (shift * 5)) as usize & 31;
            text.extend(ALPHABET.get(at).map(|byte| char::from(*byte)));
        }
    }
    text
}

fn in_groups(secret: &str) -> String {
    let mut grouped = String::with_capacity(secret.len() * 5 / 4);
    for (at, character) in secret.chars().enumerate() {
        if at > 0 && at % 4 == 0 {
            grouped.push('-');
        }
        grouped.push(character);
    }
    grouped
}

/// What a person typed → what was issued: case, hyphens and spaces do not matter, and letters that
/// look like digits are read as those.
/// The code of a refusal that leaves no other record; `None` when there is one, or when the fault
/// is ours.
fn refusal_code(error: &Error) -> Option<&'static str> {
    match error {
        Error::Request(_) => Some("request_malformed"),
        Error::Store(error) => match error {
            store::Error::CodeWrong { counted: false } => Some("code_unknown"),
            store::Error::CodeLocked => Some("code_locked"),
            store::Error::CodeExpired => Some("code_expired"),
            store::Error::CodeUsed => Some("code_used"),
            store::Error::KeyReused => Some("key_reused"),
            store::Error::Revoked => Some("certificate_revoked"),
            store::Error::UnknownOffice(_) => Some("office_unknown"),
            store::Error::OfficeSuspended(_) => Some("office_suspended"),
            store::Error::CodeWrong { counted: true }
            | store::Error::Database(_)
            | store::Error::Migrate(_)
            | store::Error::File(_)
            | store::Error::AuditFolder(_)
            | store::Error::Gone { .. }
            | store::Error::Corrupt(_)
            | store::Error::OfficeDiffers(_)
            | store::Error::UnknownSerial(_) => None,
        },
        Error::Profile(_) | Error::Signer(_) | Error::Lint(_) | Error::Audit(_) | Error::Key(_) => {
            None
        }
    }
}

/// Characters of a code's public id: five bytes in base 32.
const ID_LENGTH: usize = 8;

fn normalise(typed: &str) -> String {
    typed
        .chars()
        .filter(|c| !matches!(c, '-' | ' '))
        .take(64)
        .map(|c| match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        })
        .collect()
}

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// How far the signer's clock may be from ours; both run on one machine.
const CLOCK_SLACK: Duration = Duration::minutes(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, keeping, office, rules, told_of};

    #[tokio::test]
    async fn a_certificate_stored_before_a_crash_gets_its_outcome_when_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let audit = dir.path().join("audit");
        let store = Store::open(&dir.path().join("ra.sqlite"), &audit).await.unwrap();
        let data = serde_json::json!({"number": "1370000001", "name": "A",
            "service_types": ["43"], "medical": false});
        store.add_office(serde_json::from_value(data).unwrap(), 0).await.unwrap();
        let enrolment = Arc::new(Enrolment::new(
            store.clone(),
            SignerClient::new(&dir.path().join("none.sock")),
            Trail::open(keeping(&audit), "ra").unwrap(),
            rules(true),
            Authority::from_certificate(&Ca::new().issuing).unwrap(),
            TaskTracker::new(),
        ));
        let code = enrolment.issue_code(&office(), Profile::OfficeBrowser, None, 1).await.unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let csr = csr.der().to_vec();
        let (public, serial) =
            (PublicKey::from_request(&csr).unwrap(), key::random_serial().unwrap());
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claimant = Claimant { code_id: &code.id, key: &public, serial, now };
        store.claim(&claimant).await.unwrap();
        store.settle_issued(serial, b"der", (now, now + 9), now).await.unwrap();
        for _ in 0..2 {
            let asked =
                Arc::clone(&enrolment).enrol(code.id.clone(), code.secret.clone(), csr.clone());
            assert_eq!(asked.await.unwrap(), b"der");
        }
        assert_eq!(told_of(&audit, &serial.to_string()), ["given again"], "once");
    }

    #[test]
    fn secrets_have_120_bits_in_readable_groups_and_survive_typing() {
        let secret = new_secret().unwrap();
        assert_eq!(secret.len(), 24);
        assert!(secret.bytes().all(|byte| ALPHABET.contains(&byte)));
        let shown = in_groups(&secret);
        assert_eq!(shown.len(), 29);
        assert_eq!(normalise(&shown), secret);
        assert_eq!(normalise(&shown.to_lowercase().replace('-', " ")), secret);
        assert_eq!(normalise("oO-iIlL"), "001111");
        assert_eq!(crockford(&[0xff; 5]), "ZZZZZZZZ");
        assert_eq!(crockford(&[0, 0, 0, 0, 1]), "00000001");
    }
}
