//! Issuances from intent to end, and revocations.
//!
//! ```text
//!  claim ──► intended ──┬─► issued ──────► revoked
//!                       ├─► refused        (nothing was signed; the code is free again)
//!                       └─► abandoned      (the answer was lost; revoked at once, because it may
//!                                           have been signed; the same key may ask again)
//! ```

use policies::feed::Fact;
use policies::identity::{Identity, OfficeNumber, Serial};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{Error, Store, Write, codes, offices};
use crate::profile::Profile;
use crate::request::PublicKey;

/// What became of a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Stored, and the signer's answer is not known.
    Intended,
    /// There is a certificate.
    Issued,
    /// The signer refused.
    Refused,
    /// The answer was lost.
    Abandoned,
}

/// Why a certificate was revoked (RFC 5280 §5.3.1, without holds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The key is, or may be, in other hands.
    KeyCompromise,
    /// The office no longer works under this number.
    CessationOfOperation,
    /// A newer certificate took its place.
    Superseded,
    /// The holder's name or standing changed.
    AffiliationChanged,
    /// The right to it was withdrawn.
    PrivilegeWithdrawn,
    /// No reason given.
    Unspecified,
}

impl Reason {
    /// The name used in requests and rows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyCompromise => "key-compromise",
            Self::CessationOfOperation => "cessation-of-operation",
            Self::Superseded => "superseded",
            Self::AffiliationChanged => "affiliation-changed",
            Self::PrivilegeWithdrawn => "privilege-withdrawn",
            Self::Unspecified => "unspecified",
        }
    }
}

/// Who claims a code, with which key and which new serial number.
#[derive(Debug, Clone, Copy)]
pub struct Claimant<'a> {
    /// The code whose secret was shown.
    pub code_id: &'a str,
    /// The key, whose possession was shown.
    pub key: &'a PublicKey,
    /// A fresh serial number.
    pub serial: Serial,
    /// Now, Unix seconds.
    pub now: i64,
}

/// What a claim leads to.
#[derive(Debug)]
pub enum Claim {
    /// The same key has its certificate already: this one.
    Again(Given),
    /// A certificate is to be signed.
    Sign(Box<Intended>),
}

/// A certificate that was stored before.
#[derive(Debug)]
pub struct Given {
    /// Its serial number.
    pub serial: Serial,
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// Whether the audit log holds the outcome.
    pub accounted: bool,
}

/// A stored intent.
#[derive(Debug)]
pub struct Intended {
    /// Whom the certificate will name.
    pub identity: Identity,
    /// The profile.
    pub profile: Profile,
    /// For the short-lived profile: seconds from issue to end.
    pub not_after_s: Option<u32>,
    /// Earlier serial numbers of the same code and key that were abandoned by this claim.
    pub abandoned: Vec<Serial>,
}

/// A serial number and what is known about it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The serial number.
    pub serial: Serial,
    /// Whom it names.
    pub identity: Identity,
    /// Its profile, by name.
    pub profile: String,
    /// What became of it.
    pub state: State,
    /// When the intent was stored, Unix seconds.
    pub intended_at: i64,
    /// First second of validity.
    pub not_before: Option<i64>,
    /// Last second of validity.
    pub not_after: Option<i64>,
    /// The certificate, DER.
    pub der: Option<Vec<u8>>,
    /// Its revocation.
    pub revocation: Option<Revocation>,
}

/// A recorded revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Why, by name.
    pub reason: String,
    /// When, Unix seconds.
    pub at: i64,
    /// Where it stands in the change log.
    pub seq: u64,
}

/// How much the store holds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Counts {
    /// Registered offices.
    pub offices: i64,
    /// Issued certificates, revoked and expired ones included.
    pub certificates: i64,
    /// Revoked serial numbers, abandoned ones included.
    pub revoked: i64,
}

impl Store {
    /// Binds a code to a key and stores the intent to sign; or finds the certificate that the same
    /// code and key have already.
    ///
    /// # Errors
    /// [`Error::CodeExpired`], [`Error::CodeUsed`], [`Error::KeyReused`], [`Error::Revoked`],
    /// [`Error::UnknownOffice`], [`Error::OfficeSuspended`], [`Error::Database`].
    pub async fn claim(&self, claimant: &Claimant<'_>) -> Result<Claim, Error> {
        let mut write = self.begin().await?;
        let code = codes::load(write.connection(), claimant.code_id).await?;
        let code = code.ok_or(Error::CodeWrong { counted: false })?;
        let key = claimant.key.sha256().to_vec();
        if code.spki_sha256.as_ref().is_some_and(|used| *used != key) {
            return Err(Error::CodeUsed);
        }
        if let Some(given) = issued_before(write.connection(), &code.id, &key).await? {
            return Ok(Claim::Again(given));
        }
        if claimant.now > code.expires_at {
            return Err(Error::CodeExpired);
        }
        if let Some(number) = code.identity.office() {
            offices::check_active(write.connection(), number).await?;
        }
        check_fresh(write.connection(), &code.id, &key).await?;
        let abandoned = abandon(&mut write, Some(&code.id), claimant.now).await?;
        intend(&mut write, &code, claimant, &key).await?;
        write.commit().await?;
        let codes::Code { identity, profile, not_after_s, .. } = code;
        Ok(Claim::Sign(Box::new(Intended { identity, profile, not_after_s, abandoned })))
    }

    /// Stores the certificate of an intent.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn settle_issued(
        &self,
        serial: Serial,
        der: &[u8],
        validity: (i64, i64),
        now: i64,
    ) -> Result<(), Error> {
        let mut write = self.begin().await?;
        let done = sqlx::query(
            "UPDATE issuance SET state = 'issued', settled_at = ?, not_before = ?, not_after = ?,
             certificate = ? WHERE serial = ? AND state = 'intended'",
        )
        .bind(now)
        .bind(validity.0)
        .bind(validity.1)
        .bind(der)
        .bind(serial.as_str())
        .execute(write.connection())
        .await?;
        if done.rows_affected() != 1 {
            return Err(Error::UnknownSerial(serial));
        }
        write.commit().await
    }

    /// Records that the audit log holds the outcome of an issued certificate.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn set_accounted(&self, serial: Serial) -> Result<(), Error> {
        let mut write = self.begin().await?;
        sqlx::query("UPDATE issuance SET accounted = 1 WHERE serial = ?")
            .bind(serial.as_str())
            .execute(write.connection())
            .await?;
        write.commit().await
    }

    /// Records that nothing was signed, and frees the code.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn settle_refused(&self, serial: Serial, why: &str, now: i64) -> Result<(), Error> {
        let mut write = self.begin().await?;
        sqlx::query(
            "UPDATE issuance SET state = 'refused', settled_at = ?, detail = ?
             WHERE serial = ? AND state = 'intended'",
        )
        .bind(now)
        .bind(why)
        .bind(serial.as_str())
        .execute(write.connection())
        .await?;
        sqlx::query(
            "UPDATE code SET spki_sha256 = NULL, used_at = NULL
             WHERE id = (SELECT code_id FROM issuance WHERE serial = ?)",
        )
        .bind(serial.as_str())
        .execute(write.connection())
        .await?;
        write.commit().await
    }

    /// Abandons one intent whose answer was lost, or was not what was asked for.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn abandon_serial(&self, serial: Serial, why: &str, now: i64) -> Result<(), Error> {
        let mut write = self.begin().await?;
        let done = sqlx::query(
            "UPDATE issuance SET state = 'abandoned', settled_at = ?, detail = ?
             WHERE serial = ? AND state = 'intended'",
        )
        .bind(now)
        .bind(why)
        .bind(serial.as_str())
        .execute(write.connection())
        .await?;
        if done.rows_affected() == 1 {
            revoke(&mut write, serial, Reason::Unspecified, now).await?;
        }
        write.commit().await
    }

    /// Abandons every intent that has no answer, and revokes the serials. Returns them.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn abandon_all(&self, now: i64) -> Result<Vec<Serial>, Error> {
        let mut write = self.begin().await?;
        let abandoned = abandon(&mut write, None, now).await?;
        write.commit().await?;
        Ok(abandoned)
    }

    /// Issued certificates, oldest first, of one office or of all.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`].
    pub async fn certificates(
        &self,
        office: Option<OfficeNumber>,
    ) -> Result<Vec<Certificate>, Error> {
        let party = office.map(|number| format!("office/{number}"));
        let rows = sqlx::query(
            "SELECT i.*, r.reason, r.at AS revoked_at, r.seq FROM issuance i
             LEFT JOIN revocation r USING (serial)
             WHERE state = 'issued' AND (?1 IS NULL OR party = ?1) ORDER BY intended_at, serial",
        )
        .bind(party)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(Certificate::of).collect()
    }

    /// What is known about a serial number, whatever became of it.
    ///
    /// # Errors
    /// [`Error::UnknownSerial`], [`Error::Database`], [`Error::Corrupt`].
    pub async fn certificate(&self, serial: Serial) -> Result<Certificate, Error> {
        let row = sqlx::query(
            "SELECT i.*, r.reason, r.at AS revoked_at, r.seq FROM issuance i
             LEFT JOIN revocation r USING (serial) WHERE serial = ?",
        )
        .bind(serial.as_str())
        .fetch_optional(&self.read)
        .await?;
        Certificate::of(&row.ok_or(Error::UnknownSerial(serial))?)
    }

    /// Revokes a serial number and publishes it, also one that this RA did not issue: a stolen
    /// signer socket signs what is recorded nowhere here. Says whether it is known. A second time
    /// changes nothing and returns the first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn revoke(
        &self,
        serial: Serial,
        reason: Reason,
        now: i64,
    ) -> Result<(Revocation, bool), Error> {
        let mut write = self.begin().await?;
        let known = sqlx::query("SELECT 1 FROM issuance WHERE serial = ? AND state <> 'refused'")
            .bind(serial.as_str())
            .fetch_optional(write.connection())
            .await?
            .is_some();
        let revocation = revoke(&mut write, serial, reason, now).await?;
        write.commit().await?;
        Ok((revocation, known))
    }

    /// How much there is.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn counts(&self) -> Result<Counts, Error> {
        let row = sqlx::query(
            "SELECT (SELECT count(*) FROM office),
                    (SELECT count(*) FROM issuance WHERE state = 'issued'),
                    (SELECT count(*) FROM revocation)",
        )
        .fetch_one(&self.read)
        .await?;
        Ok(Counts { offices: row.get(0), certificates: row.get(1), revoked: row.get(2) })
    }
}

impl Certificate {
    fn of(row: &SqliteRow) -> Result<Self, Error> {
        let (serial, identity, state): (&str, &str, &str) =
            (row.get("serial"), row.get("identity"), row.get("state"));
        let revocation = row.get::<Option<String>, _>("reason").map(|reason| Revocation {
            reason,
            at: row.get("revoked_at"),
            seq: row.get::<i64, _>("seq") as u64,
        });
        Ok(Self {
            serial: serial.parse().map_err(|_| Error::Corrupt("serial"))?,
            identity: serde_json::from_str(identity).map_err(|_| Error::Corrupt("identity"))?,
            profile: row.get("profile"),
            state: serde_json::from_value(state.into()).map_err(|_| Error::Corrupt("state"))?,
            intended_at: row.get("intended_at"),
            not_before: row.get("not_before"),
            not_after: row.get("not_after"),
            der: row.get("certificate"),
            revocation,
        })
    }
}

async fn issued_before(
    connection: &mut SqliteConnection,
    code_id: &str,
    key: &[u8],
) -> Result<Option<Given>, Error> {
    let row = sqlx::query(
        "SELECT certificate, r.serial IS NOT NULL, i.serial, accounted FROM issuance i
         LEFT JOIN revocation r USING (serial)
         WHERE code_id = ? AND spki_sha256 = ? AND state = 'issued'",
    )
    .bind(code_id)
    .bind(key)
    .fetch_optional(connection)
    .await?;
    match row {
        Some(row) if row.get::<bool, _>(1) => Err(Error::Revoked),
        Some(row) => Ok(Some(Given {
            serial: row.get::<&str, _>(2).parse().map_err(|_| Error::Corrupt("serial"))?,
            der: row.get(0),
            accounted: row.get(3),
        })),
        None => Ok(None),
    }
}

/// A key is for one terminal and one code; whoever had a certificate before makes a new key.
async fn check_fresh(
    connection: &mut SqliteConnection,
    code_id: &str,
    key: &[u8],
) -> Result<(), Error> {
    let used = sqlx::query(
        "SELECT 1 FROM issuance WHERE spki_sha256 = ? AND code_id <> ? AND state <> 'refused'",
    )
    .bind(key)
    .bind(code_id)
    .fetch_optional(connection)
    .await?;
    if used.is_some() { Err(Error::KeyReused) } else { Ok(()) }
}

async fn intend(
    write: &mut Write<'_>,
    code: &codes::Code,
    claimant: &Claimant<'_>,
    key: &[u8],
) -> Result<(), Error> {
    let identity = serde_json::to_string(&code.identity).map_err(|_| Error::Corrupt("identity"))?;
    sqlx::query(
        "INSERT INTO issuance (serial, code_id, identity, party, profile, spki_sha256, state,
         intended_at) VALUES (?, ?, ?, ?, ?, ?, 'intended', ?)",
    )
    .bind(claimant.serial.as_str())
    .bind(&code.id)
    .bind(identity)
    .bind(code.identity.party())
    .bind(code.profile.as_str())
    .bind(key)
    .bind(claimant.now)
    .execute(write.connection())
    .await?;
    sqlx::query("UPDATE code SET spki_sha256 = ?, used_at = ? WHERE id = ?")
        .bind(key)
        .bind(claimant.now)
        .bind(&code.id)
        .execute(write.connection())
        .await?;
    Ok(())
}

async fn abandon(
    write: &mut Write<'_>,
    code_id: Option<&str>,
    now: i64,
) -> Result<Vec<Serial>, Error> {
    let rows = sqlx::query(
        "UPDATE issuance SET state = 'abandoned', settled_at = ?1, detail = 'no answer'
         WHERE state = 'intended' AND (?2 IS NULL OR code_id = ?2) RETURNING serial",
    )
    .bind(now)
    .bind(code_id)
    .fetch_all(write.connection())
    .await?;
    let mut serials = vec![];
    for row in rows {
        let serial: Serial = row.get::<&str, _>(0).parse().map_err(|_| Error::Corrupt("serial"))?;
        revoke(write, serial, Reason::Unspecified, now).await?;
        serials.push(serial);
    }
    Ok(serials)
}

async fn revoke(
    write: &mut Write<'_>,
    serial: Serial,
    reason: Reason,
    now: i64,
) -> Result<Revocation, Error> {
    if let Some(earlier) = revocation(write.connection(), serial).await? {
        return Ok(earlier);
    }
    let seq = write.publish(&Fact::Revoked { serial, at: now.max(0) as u64 }).await?;
    sqlx::query("INSERT INTO revocation (serial, reason, at, seq) VALUES (?, ?, ?, ?)")
        .bind(serial.as_str())
        .bind(reason.as_str())
        .bind(now)
        .bind(seq as i64)
        .execute(write.connection())
        .await?;
    Ok(Revocation { reason: reason.as_str().to_owned(), at: now, seq })
}

async fn revocation(
    connection: &mut SqliteConnection,
    serial: Serial,
) -> Result<Option<Revocation>, Error> {
    let row = sqlx::query("SELECT reason, at, seq FROM revocation WHERE serial = ?")
        .bind(serial.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|row| Revocation {
        reason: row.get(0),
        at: row.get(1),
        seq: row.get::<i64, _>(2) as u64,
    }))
}
