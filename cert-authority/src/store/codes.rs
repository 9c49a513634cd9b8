//! One-time codes (発行用コード): a public id and a secret of 120 bits, for one identity.
//!
//! The secret is random, so a plain hash keeps it (a slow password hash would only help guessers to
//! tie up the RA). Five wrong secrets lock that id and nothing else, since ids and office numbers
//! are no secrets.

use policies::identity::Identity;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use subtle::ConstantTimeEq;

use super::{Error, Store, offices};
use crate::key::sha256;
use crate::profile::Profile;

/// What a new code is for.
#[derive(Debug, Clone)]
pub struct NewCode<'a> {
    /// The public id.
    pub id: &'a str,
    /// The secret, normalised.
    pub secret: &'a str,
    /// Whom the certificate will name.
    pub identity: &'a Identity,
    /// The profile.
    pub profile: Profile,
    /// For the short-lived profile: seconds from issue to end.
    pub not_after_s: Option<u32>,
    /// When it was issued, Unix seconds.
    pub issued_at: i64,
    /// The last second at which it may be used, Unix seconds.
    pub expires_at: i64,
}

/// A code whose secret was shown.
#[derive(Debug, Clone)]
pub struct Code {
    /// The public id.
    pub id: String,
    /// Whom the certificate will name.
    pub identity: Identity,
    /// The profile.
    pub profile: Profile,
    /// For the short-lived profile: seconds from issue to end.
    pub not_after_s: Option<u32>,
    /// The last second at which it may be used, Unix seconds.
    pub expires_at: i64,
    /// The key that used it.
    pub(super) spki_sha256: Option<Vec<u8>>,
    secret_hash: Vec<u8>,
    wrong_count: u32,
}

impl Code {
    fn of(row: &SqliteRow) -> Result<Self, Error> {
        let identity: &str = row.get("identity");
        let profile: &str = row.get("profile");
        Ok(Self {
            id: row.get("id"),
            identity: serde_json::from_str(identity).map_err(|_| Error::Corrupt("identity"))?,
            profile: profile.parse().map_err(|_| Error::Corrupt("profile"))?,
            not_after_s: row.get("not_after_s"),
            expires_at: row.get("expires_at"),
            spki_sha256: row.get("spki_sha256"),
            secret_hash: row.get("secret_hash"),
            wrong_count: row.get("wrong_count"),
        })
    }
}

impl Store {
    /// Stores a code. An office must be registered and not suspended.
    ///
    /// # Errors
    /// [`Error::UnknownOffice`], [`Error::OfficeSuspended`], [`Error::Database`].
    pub async fn add_code(&self, code: &NewCode<'_>) -> Result<(), Error> {
        let mut write = self.begin().await?;
        if let Some(number) = code.identity.office() {
            offices::check_active(write.connection(), number).await?;
        }
        let identity =
            serde_json::to_string(code.identity).map_err(|_| Error::Corrupt("identity"))?;
        sqlx::query(
            "INSERT INTO code
             (id, secret_hash, identity, profile, not_after_s, issued_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(code.id)
        .bind(secret_hash(code.id, code.secret).to_vec())
        .bind(identity)
        .bind(code.profile.as_str())
        .bind(code.not_after_s)
        .bind(code.issued_at)
        .bind(code.expires_at)
        .execute(write.connection())
        .await?;
        write.commit().await
    }

    /// The code, if the secret is its own. A wrong secret is counted. Whether the code may still be
    /// used is decided later, by [`Store::claim`].
    ///
    /// # Errors
    /// [`Error::CodeWrong`], [`Error::CodeLocked`], [`Error::Database`].
    pub async fn open_code(&self, id: &str, secret: &str) -> Result<Code, Error> {
        let shown = secret_hash(id, secret);
        let code = match load(&mut *self.read.acquire().await?, id).await? {
            Some(code) => code,
            None => return Err(Error::CodeWrong { counted: false }),
        };
        if code.wrong_count >= WRONG_MAX {
            return Err(Error::CodeLocked);
        }
        if bool::from(shown.ct_eq(code.secret_hash.as_slice())) {
            return Ok(code);
        }
        let mut write = self.begin().await?;
        sqlx::query("UPDATE code SET wrong_count = wrong_count + 1 WHERE id = ?")
            .bind(id)
            .execute(write.connection())
            .await?;
        write.commit().await?;
        Err(Error::CodeWrong { counted: true })
    }
}

pub(super) async fn load(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<Code>, Error> {
    let row =
        sqlx::query("SELECT * FROM code WHERE id = ?").bind(id).fetch_optional(connection).await?;
    row.as_ref().map(Code::of).transpose()
}

fn secret_hash(id: &str, secret: &str) -> [u8; 32] {
    sha256(format!("sekisho-code-v1\n{id}\n{secret}").as_bytes())
}

/// After so many wrong secrets an id is locked.
pub(super) const WRONG_MAX: u32 = 5;
