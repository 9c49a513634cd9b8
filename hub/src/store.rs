//! The database: SQLite, one connection that writes and a few that read.
//!
//! ```text
//!  Work / handlers ──► WriteTx (BEGIN IMMEDIATE) ── publish(fact) ──► change_log, fact_current
//!                         └─ commit ──► wakes the feed
//!  lists, feed ──────► ReadTx (one snapshot of the rows)
//! ```
//!
//! Invariants: a fact is written in the transaction of the rows it tells of; there is one writer,
//! so sequence numbers have no gaps; a commit is on disk (WAL, `synchronous = FULL`) before it
//! returns.
//! Here belongs the second database, PostgreSQL by URL: the SQL of the handlers keeps to what both
//! understand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use policies::feed::{Fact, GENESIS_HEAD, Position, next_head};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Sqlite, Transaction};
use tokio::sync::watch;

use crate::clock;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened or made.
    #[error("database `{}` cannot be opened: check the path and its permissions", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// The tables could not be brought to the form of this version.
    #[error("database `{}` cannot be migrated: it may come from a newer version", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// What the database said.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A query failed.
    #[error("database query failed")]
    Query(#[from] sqlx::Error),
    /// A stored fact is not understood.
    #[error("change {seq} of the change log is not understood")]
    Fact {
        /// Its sequence number.
        seq: u64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// The open database.
pub(crate) struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
    changed: watch::Sender<u64>,
}

/// Every current fact at one place in the change log.
pub(crate) struct Snapshot {
    /// Unix milliseconds, just before the rows were read.
    pub(crate) read_at_ms: u64,
    pub(crate) position: Position,
    tx: ReadTx,
}

impl Snapshot {
    /// The facts as the JSON texts that the log keeps, in any order.
    pub(crate) fn facts(&mut self) -> impl Stream<Item = Result<String, Error>> + '_ {
        sqlx::query_scalar("SELECT fact FROM fact_current")
            .fetch(&mut *self.tx)
            .map_err(Error::from)
    }
}

/// One row of the change log.
pub(crate) struct Change {
    pub(crate) seq: u64,
    pub(crate) fact: Fact,
    pub(crate) head: String,
}

/// What one read of the change log found.
pub(crate) struct Batch {
    /// Unix milliseconds, just before the rows were read.
    pub(crate) read_at_ms: u64,
    /// The highest sequence number in the log at that read.
    pub(crate) latest_seq: u64,
    pub(crate) changes: Vec<Change>,
}

/// A transaction that reads one state of the rows.
pub(crate) type ReadTx = Transaction<'static, Sqlite>;

impl Store {
    /// Opens or makes the database file and brings its tables to the form of this version.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Migrate`], [`Error::Query`].
    pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let options = connect_options(path);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone().create_if_missing(true))
            .await
            .map_err(failed)?;
        sqlx::migrate!("./migrations")
            .run(&writer)
            .await
            .map_err(|source| Error::Migrate { path: path.to_owned(), source })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.read_only(true))
            .await
            .map_err(failed)?;
        let store = Self { writer, readers, changed: watch::channel(0).0 };
        let seq = last_change(&mut *store.read().await?).await?.0;
        store.changed.send_replace(seq);
        Ok(store)
    }

    /// Begins the one transaction that may write; others wait.
    pub(crate) async fn write(&self) -> Result<WriteTx, sqlx::Error> {
        let tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(WriteTx { tx, changed: self.changed.clone(), published: None })
    }

    /// Begins a transaction that sees one state of the rows.
    pub(crate) async fn read(&self) -> Result<ReadTx, sqlx::Error> {
        self.readers.begin().await
    }

    /// Tells the sequence number of the last committed change, and wakes at each new one.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The sequence number of the last committed change.
    pub(crate) fn seq(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Every current fact, at one place in the change log.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, Error> {
        let read_at_ms = clock::now_ms();
        let mut tx = self.read().await?;
        let (seq, head) = last_change(&mut tx).await?;
        Ok(Snapshot { read_at_ms, position: Position { seq, head }, tx })
    }

    /// The head that the change log had at `seq`; `None` if it has not come so far.
    pub(crate) async fn head_at(&self, seq: u64) -> Result<Option<String>, Error> {
        if seq == 0 {
            return Ok(Some(GENESIS_HEAD.to_owned()));
        }
        let head = sqlx::query_scalar("SELECT head FROM change_log WHERE seq = $1")
            .bind(int(seq))
            .fetch_optional(&self.readers)
            .await?;
        Ok(head)
    }

    /// The changes after `seq`, oldest first, at most [`CHANGES_MAX`].
    pub(crate) async fn changes_after(&self, seq: u64) -> Result<Batch, Error> {
        let read_at_ms = clock::now_ms();
        let mut tx = self.read().await?;
        let (latest_seq, _) = last_change(&mut tx).await?;
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "SELECT seq, fact, head FROM change_log WHERE seq > $1 ORDER BY seq LIMIT $2",
        )
        .bind(int(seq))
        .bind(CHANGES_MAX)
        .fetch_all(&mut *tx)
        .await?;
        let change = |(seq, fact, head): (i64, String, String)| {
            let seq = seconds(seq);
            let fact = serde_json::from_str(&fact).map_err(|source| Error::Fact { seq, source })?;
            Ok(Change { seq, fact, head })
        };
        let changes = rows.into_iter().map(change).collect::<Result<_, Error>>()?;
        Ok(Batch { read_at_ms, latest_seq, changes })
    }

    /// Closes all connections; the write-ahead log is folded into the file.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// The transaction that writes. Dropped without [`WriteTx::commit`], nothing of it remains.
pub(crate) struct WriteTx {
    tx: Transaction<'static, Sqlite>,
    changed: watch::Sender<u64>,
    published: Option<u64>,
}

impl WriteTx {
    /// The connection, to read and write rows.
    pub(crate) fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }

    /// Appends `fact` to the change log and makes it the current fact of its key.
    pub(crate) async fn publish(&mut self, fact: &Fact) -> Result<(), sqlx::Error> {
        let json =
            serde_json::to_string(fact).map_err(|source| sqlx::Error::Encode(Box::new(source)))?;
        let (last, head) = last_change(&mut self.tx).await?;
        let seq = last + 1;
        sqlx::query("INSERT INTO change_log (seq, fact, head) VALUES ($1, $2, $3)")
            .bind(int(seq))
            .bind(&json)
            .bind(next_head(&head, seq, &json))
            .execute(&mut *self.tx)
            .await?;
        sqlx::query(
            "INSERT INTO fact_current (key, fact) VALUES ($1, $2)
             ON CONFLICT (key) DO UPDATE SET fact = excluded.fact",
        )
        .bind(fact.key())
        .bind(&json)
        .execute(&mut *self.tx)
        .await?;
        self.published = Some(seq);
        Ok(())
    }

    /// Publishes `fact` unless it is the current fact of its key already.
    pub(crate) async fn publish_new(&mut self, fact: &Fact) -> Result<(), sqlx::Error> {
        let json =
            serde_json::to_string(fact).map_err(|source| sqlx::Error::Encode(Box::new(source)))?;
        let current: Option<String> =
            sqlx::query_scalar("SELECT fact FROM fact_current WHERE key = $1")
                .bind(fact.key())
                .fetch_optional(&mut *self.tx)
                .await?;
        if current.as_deref() == Some(json.as_str()) { Ok(()) } else { self.publish(fact).await }
    }

    /// Commits; when it returns, the rows are on disk and the feed was woken. Gives the sequence
    /// number of the last published fact, if there was one.
    pub(crate) async fn commit(self) -> Result<Option<u64>, sqlx::Error> {
        self.tx.commit().await?;
        if let Some(seq) = self.published {
            self.changed.send_replace(seq);
        }
        Ok(self.published)
    }
}

/// A number for a 64-bit column. Times, ids and sequence numbers stay far below the limit.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A time, id or sequence number from a 64-bit column.
pub(crate) fn seconds(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A stored text as the identifier it was when it was stored.
pub(crate) fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, sqlx::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|source| sqlx::Error::Decode(Box::new(source)))
}

async fn last_change(conn: &mut SqliteConnection) -> Result<(u64, String), sqlx::Error> {
    let last: Option<(i64, String)> =
        sqlx::query_as("SELECT seq, head FROM change_log ORDER BY seq DESC LIMIT 1")
            .fetch_optional(conn)
            .await?;
    Ok(last.map_or((0, GENESIS_HEAD.to_owned()), |(seq, head)| (seconds(seq), head)))
}

fn connect_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging()
}

const READERS_MAX: u32 = 4;
const CHANGES_MAX: i64 = 1_000;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(n: u64) -> Fact {
        Fact::Sharing { insurer: "131016".parse().unwrap(), from: Some(n) }
    }

    #[tokio::test]
    async fn a_dropped_transaction_leaves_no_gap() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("hub.sqlite")).await.unwrap();
        let mut kept = store.write().await.unwrap();
        kept.publish(&fact(1)).await.unwrap();
        kept.commit().await.unwrap();
        let mut lost = store.write().await.unwrap();
        lost.publish(&fact(2)).await.unwrap();
        drop(lost);
        let mut next = store.write().await.unwrap();
        next.publish(&fact(3)).await.unwrap();
        assert_eq!(next.commit().await.unwrap(), Some(2));
        let seqs: Vec<u64> =
            store.changes_after(0).await.unwrap().changes.iter().map(|change| change.seq).collect();
        assert_eq!(seqs, [1, 2]);
        let mut snapshot = store.snapshot().await.unwrap();
        let texts: Vec<String> = snapshot.facts().try_collect().await.unwrap();
        assert_eq!(texts, [serde_json::to_string(&fact(3)).unwrap()]);
    }

    #[tokio::test]
    async fn a_long_backlog_comes_in_batches_that_name_the_newest_change() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("hub.sqlite")).await.unwrap();
        let mut tx = store.write().await.unwrap();
        for n in 1..=1_001 {
            tx.publish(&fact(n)).await.unwrap();
        }
        tx.commit().await.unwrap();
        let before = clock::now_ms();
        let first = store.changes_after(0).await.unwrap();
        assert_eq!((first.changes.len(), first.latest_seq), (1_000, 1_001));
        assert!((before..=clock::now_ms()).contains(&first.read_at_ms));
        let second = store.changes_after(1_000).await.unwrap();
        assert_eq!((second.changes.len(), second.latest_seq), (1, 1_001));
    }

    #[tokio::test]
    async fn stored_versions_cannot_be_changed_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("hub.sqlite")).await.unwrap();
        let mut tx = store.write().await.unwrap();
        sqlx::query(
            "INSERT INTO documents (insurer, number, kind, version, author, submitted_by,
             stored_at, request_id, content) VALUES ('1','2','k',1,'a','a',0,'r','{}')",
        )
        .execute(tx.conn())
        .await
        .unwrap();
        for change in ["UPDATE documents SET content = ''", "DELETE FROM documents"] {
            let refused = sqlx::query(change).execute(tx.conn()).await.unwrap_err();
            assert!(refused.to_string().contains("never"), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_database_of_an_earlier_version_keeps_its_accesses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.sqlite");
        let options = connect_options(&path).create_if_missing(true);
        let before = SqlitePoolOptions::new().connect_with(options).await.unwrap();
        sqlx::migrate!("./migrations").run_to(2, &before).await.unwrap();
        sqlx::query(
            "INSERT INTO accesses (insurer, number, at, party, principal, kind, version, action,
             request_id) VALUES ('131016', '0000000001', 1, 'p', 'p', 'insured-card', 1, 'a', 'r')",
        )
        .execute(&before)
        .await
        .unwrap();
        before.close().await;
        let store = Store::open(&path).await.unwrap();
        let mut tx = store.read().await.unwrap();
        for (query, expected) in [
            ("SELECT COUNT(*) FROM accesses", 1i64),
            ("SELECT through FROM access_index", 0),
            ("SELECT COUNT(*) FROM gateway_decisions", 0),
        ] {
            let found: i64 = sqlx::query_scalar(query).fetch_one(&mut *tx).await.unwrap();
            assert_eq!(found, expected, "{query}");
        }
    }

    #[tokio::test]
    async fn an_index_of_an_earlier_version_goes_on_as_that_of_the_first_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.sqlite");
        let options = connect_options(&path).create_if_missing(true);
        let before = SqlitePoolOptions::new().connect_with(options).await.unwrap();
        sqlx::migrate!("./migrations").run_to(3, &before).await.unwrap();
        for statement in [
            "UPDATE access_index SET through = 5, last_at = 1",
            "INSERT INTO gateway_decisions (number, at, request_id, party, decision, reasons)
             VALUES (5, 1, 'r', 'p', 'allow', '[]')",
        ] {
            sqlx::query(statement).execute(&before).await.unwrap();
        }
        before.close().await;
        let store = Store::open(&path).await.unwrap();
        let mut tx = store.read().await.unwrap();
        for (query, expected) in [
            ("SELECT through FROM access_index WHERE log = 1 AND hash IS NULL", 5i64),
            ("SELECT number FROM gateway_decisions WHERE late_reasons IS NULL", 5),
        ] {
            let found: i64 = sqlx::query_scalar(query).fetch_one(&mut *tx).await.unwrap();
            assert_eq!(found, expected, "{query}");
        }
    }

    #[tokio::test]
    async fn the_database_is_durable_and_checks_references() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("hub.sqlite")).await.unwrap();
        let mut tx = store.write().await.unwrap();
        for (pragma, expected) in [("PRAGMA synchronous", 2i64), ("PRAGMA foreign_keys", 1)] {
            let value: i64 = sqlx::query_scalar(pragma).fetch_one(tx.conn()).await.unwrap();
            assert_eq!(value, expected, "{pragma}");
        }
        let mode: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(tx.conn()).await.unwrap();
        assert_eq!(mode, "wal");
    }
}
