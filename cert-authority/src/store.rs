//! The RA's memory: offices, one-time codes, issuances, revocations, and the change log of facts.
//!
//! One SQLite file (WAL, `synchronous=FULL`). All writes go through one connection, each in a
//! transaction that begins IMMEDIATE, so that writers queue and the change log has no gaps.
//!
//! Invariants:
//! - a fact is published in the transaction of the rows it tells of (`Write::publish`);
//! - a serial number is stored before the signer hears of it, and is settled or abandoned later;
//! - a one-time secret is stored only as a hash.
//!
//! PostgreSQL by URL, and the rows for CRL shards, belong here.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{Stream, TryStreamExt as _};
use policies::feed::{Fact, GENESIS_HEAD, Position, next_head};
use policies::identity::{OfficeNumber, Serial};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Row, Sqlite, SqliteConnection, Transaction};
use tokio::sync::watch;

mod offices;
mod codes;
mod certificates;

pub use certificates::{
    Certificate, Claim, Claimant, Counts, Given, Intended, Reason, Revocation, State,
};
pub use codes::{Code, NewCode};
pub use offices::{Office, OfficeData};

/// Why the store says no, or can not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The database could not be brought to this version.
    #[error("the database could not be brought to this version")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The file can not be made.
    #[error("the database file cannot be made: check its folder")]
    File(#[source] io::Error),
    /// Whether there are audit records can not be seen.
    #[error("the audit folder cannot be read: check its owner and mode")]
    AuditFolder(#[source] io::Error),
    /// The file is gone or empty, and the audit log tells of work that was in it.
    #[error(
        "`{}` is {state}, and there are audit records of it: restore it from the backup",
        path.display()
    )]
    Gone {
        /// The database file.
        path: PathBuf,
        /// `missing` or `empty`.
        state: &'static str,
    },
    /// A row does not hold what it should.
    #[error("the database holds an unreadable {0}")]
    Corrupt(&'static str),
    /// No office has this number.
    #[error("office `{0}` is not registered: add it first")]
    UnknownOffice(OfficeNumber),
    /// The office exists with other data.
    #[error("office `{0}` is registered with other data")]
    OfficeDiffers(OfficeNumber),
    /// The office is suspended.
    #[error("office `{0}` is suspended: resume it first")]
    OfficeSuspended(OfficeNumber),
    /// The code id or the secret is wrong.
    #[error("the code or its secret is wrong")]
    CodeWrong {
        /// Whether the id exists, so that the attempt was counted.
        counted: bool,
    },
    /// Too many wrong secrets.
    #[error("the code is locked after {} wrong secrets", codes::WRONG_MAX)]
    CodeLocked,
    /// The code's time is over.
    #[error("the code has expired")]
    CodeExpired,
    /// Another key used the code.
    #[error("the code was used with another key")]
    CodeUsed,
    /// The key has a certificate that came from another code.
    #[error("the key was used before: make a new key")]
    KeyReused,
    /// The certificate that this code gave was revoked.
    #[error("the certificate of this code was revoked")]
    Revoked,
    /// No certificate has this serial.
    #[error("serial `{0}` is not known")]
    UnknownSerial(Serial),
}

/// The RA's database.
#[derive(Clone)]
pub struct Store {
    read: SqlitePool,
    write: SqlitePool,
    changed: watch::Sender<u64>,
}

/// Every current fact at one place of the change log.
pub struct Snapshot {
    /// That place.
    pub position: Position,
    transaction: Transaction<'static, Sqlite>,
}

impl Snapshot {
    /// The facts as the JSON texts that the log keeps, in any order.
    pub fn facts(&mut self) -> impl Stream<Item = Result<String, Error>> + '_ {
        sqlx::query_scalar("SELECT fact FROM fact_current")
            .fetch(&mut *self.transaction)
            .map_err(Error::from)
    }
}

/// One row of the change log.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its sequence number.
    pub seq: u64,
    /// The fact.
    pub fact: Fact,
    /// The head after it.
    pub head: String,
}

impl Store {
    /// Opens the database and brings it to this version. Makes it if it is not there and nothing
    /// was ever recorded in `audit_dir`: an empty database in place of a lost one would take every
    /// revocation back. So it is opened before the audit log.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::File`], [`Error::Database`], [`Error::Migrate`].
    pub async fn open(path: &Path, audit_dir: &Path) -> Result<Self, Error> {
        check_not_lost(path, audit_dir)?;
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(Error::File)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let write =
            SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await?;
        let store = Self { read, write, changed: watch::Sender::new(0) };
        let seq = store.position().await?.seq;
        store.changed.send_replace(seq);
        Ok(store)
    }

    /// Closes the database files.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// Follows the last sequence number of the change log.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The end of the change log.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn position(&self) -> Result<Position, Error> {
        position(&mut *self.read.acquire().await?).await
    }

    /// Every current fact, with the position at which it is current.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut transaction = self.read.begin().await?;
        let position = position(&mut transaction).await?;
        Ok(Snapshot { position, transaction })
    }

    /// The head that the change log had at `seq`; `None` if it has not come so far.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn head_at(&self, seq: u64) -> Result<Option<String>, Error> {
        if seq == 0 {
            return Ok(Some(GENESIS_HEAD.to_owned()));
        }
        let head = sqlx::query_scalar("SELECT head FROM change_log WHERE seq = ?")
            .bind(seq as i64)
            .fetch_optional(&self.read)
            .await?;
        Ok(head)
    }

    /// The newest sequence of the change log; 0 for an empty one.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn latest_seq(&self) -> Result<u64, Error> {
        let row = sqlx::query("SELECT coalesce(max(seq), 0) FROM change_log");
        Ok(row.fetch_one(&self.read).await?.get::<i64, _>(0) as u64)
    }

    /// At most `limit` changes after `seq`, in order.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`].
    pub async fn changes_after(&self, seq: u64, limit: u32) -> Result<Vec<Change>, Error> {
        let rows = sqlx::query(
            "SELECT seq, fact, head FROM change_log WHERE seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(seq as i64)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Change {
                    seq: row.get::<i64, _>(0) as u64,
                    fact: fact_of(row.get(1))?,
                    head: row.get(2),
                })
            })
            .collect()
    }

    async fn begin(&self) -> Result<Write<'_>, Error> {
        let transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Write { transaction, published: None, changed: &self.changed })
    }
}

/// A write transaction that may publish facts. Dropped without [`Write::commit`], it never was.
struct Write<'a> {
    transaction: Transaction<'a, Sqlite>,
    published: Option<u64>,
    changed: &'a watch::Sender<u64>,
}

impl Write<'_> {
    fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    /// Appends a fact to the change log; returns its sequence number.
    async fn publish(&mut self, fact: &Fact) -> Result<u64, Error> {
        let last = position(self.connection()).await?;
        let seq = last.seq + 1;
        let json = serde_json::to_string(fact).map_err(|_| Error::Corrupt("fact"))?;
        sqlx::query("INSERT INTO change_log (seq, fact, head) VALUES (?, ?, ?)")
            .bind(seq as i64)
            .bind(&json)
            .bind(next_head(&last.head, seq, &json))
            .execute(self.connection())
            .await?;
        sqlx::query(
            "INSERT INTO fact_current (key, fact) VALUES (?, ?)
             ON CONFLICT (key) DO UPDATE SET fact = excluded.fact",
        )
        .bind(fact.key())
        .bind(&json)
        .execute(self.connection())
        .await?;
        self.published = Some(seq);
        Ok(seq)
    }

    /// Makes it last, then wakes the feed.
    async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await?;
        if let Some(seq) = self.published {
            self.changed.send_replace(seq);
        }
        Ok(())
    }
}

async fn position(connection: &mut SqliteConnection) -> Result<Position, Error> {
    let row = sqlx::query("SELECT seq, head FROM change_log ORDER BY seq DESC LIMIT 1")
        .fetch_optional(connection)
        .await?;
    Ok(match row {
        Some(row) => Position { seq: row.get::<i64, _>(0) as u64, head: row.get(1) },
        None => Position { seq: 0, head: GENESIS_HEAD.to_owned() },
    })
}

fn check_not_lost(path: &Path, audit_dir: &Path) -> Result<(), Error> {
    let state = match std::fs::metadata(path) {
        Ok(file) if file.len() > 0 => return Ok(()),
        Ok(_) => "empty",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "missing",
        Err(error) => return Err(Error::File(error)),
    };
    let entries = match std::fs::read_dir(audit_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::AuditFolder(error)),
    };
    for entry in entries {
        let name = entry.map_err(Error::AuditFolder)?.file_name();
        // A closed segment is compressed, and a log of the first format was moved into a folder.
        let is_segment = |end: &OsStr| end == "jsonl" || end == "zst";
        if Path::new(&name).extension().is_some_and(is_segment) || name == FORMER_LOG {
            return Err(Error::Gone { path: path.to_owned(), state });
        }
    }
    Ok(())
}

fn fact_of(json: &str) -> Result<Fact, Error> {
    serde_json::from_str(json).map_err(|_| Error::Corrupt("fact"))
}

/// Where `audit_log` puts a log of the first format.
const FORMER_LOG: &str = "format-1";
const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
