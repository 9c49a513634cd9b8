//! The rows that the stream is indexed into, and how far they go.
//!
//! Invariants: the epoch grows when the index begins anew, and rows are added only in the epoch
//! that they were asked for in. Rows of a log before the newest are never removed here, and what
//! one of them tells already is not told again by a newer one, as when a log was restored from a
//! backup.

use sqlx::sqlite::SqliteConnection;

use super::line::{Completion, Decision, Denials, Hello, Record, What};
use crate::store::{Store, WriteTx, int, seconds};

/// How far the index goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(super) epoch: i64,
    /// Everything up to this record was seen.
    pub(super) through: u64,
    /// Hash of that record, where it is known.
    pub(super) hash: Option<String>,
    /// Id of the log that is indexed.
    pub(super) log: i64,
    /// Its name, once it was seen.
    pub(super) origin: Option<String>,
    /// The index is whole again when it has come this far.
    pub(super) rebuild_until: u64,
    is_clearing: bool,
}

impl Position {
    /// Whether the log of `hello`, which was asked for all after `through`, is the one indexed.
    pub(super) fn is_of(&self, hello: &Hello) -> bool {
        let is_same = |ours: &Option<String>, theirs: Option<&String>| {
            ours.as_ref().zip(theirs).is_none_or(|(ours, theirs)| ours == theirs)
        };
        self.through <= hello.last
            && is_same(&self.origin, Some(&hello.origin))
            && is_same(&self.hash, hello.before.as_ref())
    }

    /// Rows up to this number are of the logs before.
    fn base(&self) -> i64 {
        (self.log - 1).saturating_mul(LOG_ROWS)
    }

    /// The number of the row of record `number`.
    fn row(&self, number: u64) -> i64 {
        self.base().saturating_add(int(number))
    }

    /// Whether the index is being made anew.
    pub(crate) fn is_rebuilding(&self) -> bool {
        self.is_clearing || self.through < self.rebuild_until
    }
}

/// Records that wait for one commit.
#[derive(Debug, Default)]
pub(super) struct Batch {
    records: Vec<Record>,
    rows: usize,
}

impl Batch {
    /// Adds a record.
    pub(super) fn push(&mut self, record: Record) {
        self.rows += match &record.what {
            What::Decision(_) | What::Completion(_) => 1,
            What::Denials(denials) => denials.of.len(),
            What::Nothing => return,
        };
        self.records.push(record);
    }

    /// How many rows it writes.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }
}

/// Where the index stands, and how many rows it has.
pub(super) async fn look(store: &Store) -> Result<(Position, u64), sqlx::Error> {
    let mut tx = store.read().await?;
    let position = position(&mut tx).await?;
    let rows: i64 = sqlx::query_scalar(
        "SELECT (SELECT COUNT(*) FROM gateway_decisions)
              + (SELECT COUNT(*) FROM gateway_denials_counted)",
    )
    .fetch_one(&mut *tx)
    .await?;
    Ok((position, seconds(rows)))
}

/// Keeps what is indexed, and begins with the log of `hello` at its record 1.
pub(super) async fn begin_log(
    conn: &mut SqliteConnection,
    hello: &Hello,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE access_index SET epoch = epoch + 1, log = log + 1, origin = $1, through = 0,
         hash = NULL, clearing = 0, rebuild_until = $2",
    )
    .bind(&hello.origin)
    .bind(int(hello.last))
    .execute(conn)
    .await
    .map(drop)
}

/// Lets the index of the newest log begin anew at record 1; it is whole again where it stood.
pub(super) async fn set_anew(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE access_index SET epoch = epoch + 1, through = 0, hash = NULL, clearing = 1,
         rebuild_until = CASE WHEN rebuild_until > through THEN rebuild_until ELSE through END",
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Removes what is left of an earlier index of the newest log, a part a commit, and says where the
/// index stands.
pub(super) async fn clear(store: &Store) -> Result<Position, sqlx::Error> {
    loop {
        let mut tx = store.write().await?;
        let before = position(tx.conn()).await?;
        if !before.is_clearing {
            return Ok(before);
        }
        if clear_some(tx.conn(), before.base()).await? == 0 {
            sqlx::query("UPDATE access_index SET clearing = 0").execute(tx.conn()).await?;
        }
        tx.commit().await?;
    }
}

async fn clear_some(conn: &mut SqliteConnection, base: i64) -> Result<u64, sqlx::Error> {
    let decisions = sqlx::query(
        "DELETE FROM gateway_decisions
         WHERE number IN
           (SELECT number FROM gateway_decisions WHERE number > $2 ORDER BY number LIMIT $1)",
    )
    .bind(CLEARED_MAX)
    .bind(base)
    .execute(&mut *conn)
    .await?;
    let denials = sqlx::query(
        "DELETE FROM gateway_denials_counted
         WHERE number IN
           (SELECT number FROM gateway_denials_counted WHERE number > $2 ORDER BY number LIMIT $1)",
    )
    .bind(CLEARED_MAX)
    .bind(base)
    .execute(conn)
    .await?;
    Ok(decisions.rows_affected() + denials.rows_affected())
}

/// Adds the rows of `batch` and sets how far the index goes, in one commit. `false` when the index
/// has begun anew since: then nothing was added.
pub(super) async fn add(
    store: &Store,
    position: &Position,
    batch: &Batch,
) -> Result<bool, sqlx::Error> {
    let mut tx = store.write().await?;
    let moved = sqlx::query(
        "UPDATE access_index SET through = $1, hash = $2, rebuild_until = $3, origin = $5
         WHERE epoch = $4",
    )
    .bind(int(position.through))
    .bind(position.hash.as_deref())
    .bind(int(position.rebuild_until))
    .bind(position.epoch)
    .bind(position.origin.as_deref())
    .execute(tx.conn())
    .await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    for record in &batch.records {
        add_record(&mut tx, position, record).await?;
    }
    tx.commit().await?;
    Ok(true)
}

async fn add_record(
    tx: &mut WriteTx,
    position: &Position,
    record: &Record,
) -> Result<(), sqlx::Error> {
    match &record.what {
        What::Decision(decision) => add_decision(tx.conn(), position, record, decision).await,
        What::Completion(completion) => complete(tx.conn(), completion).await,
        What::Denials(denials) => add_denials(tx.conn(), position, record, denials).await,
        What::Nothing => Ok(()),
    }
}

async fn add_decision(
    conn: &mut SqliteConnection,
    position: &Position,
    record: &Record,
    decision: &Decision,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO gateway_decisions (number, at, insured, request_id, party, party_name,
         staff_job, action, kind, document_id, decision, reasons)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 WHERE NOT EXISTS
           (SELECT 1 FROM gateway_decisions WHERE request_id = $4 AND number <= $13)
         ON CONFLICT (number) DO NOTHING",
    )
    .bind(position.row(record.number))
    .bind(int(record.at_ms))
    .bind(decision.object.insured.as_deref())
    .bind(&decision.request_id)
    .bind(&decision.party.path)
    .bind(decision.party.name.as_deref())
    .bind(decision.staff_job.as_deref())
    .bind(decision.action.as_deref())
    .bind(decision.object.document.as_deref())
    .bind(decision.object.document_id.as_deref())
    .bind(&decision.decision)
    .bind(list(&decision.reasons)?)
    .bind(position.base())
    .execute(conn)
    .await
    .map(drop)
}

/// A completion of a decision that is not kept changes nothing.
async fn complete(conn: &mut SqliteConnection, completion: &Completion) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE gateway_decisions SET status = $1, bytes_sent = $2, outcome = $3, late_reasons = $5
         WHERE request_id = $4 AND status IS NULL",
    )
    .bind(i64::from(completion.status))
    .bind(int(completion.bytes_sent))
    .bind(&completion.outcome)
    .bind(&completion.request_id)
    .bind(list(&completion.reasons)?)
    .execute(conn)
    .await
    .map(drop)
}

async fn add_denials(
    conn: &mut SqliteConnection,
    position: &Position,
    record: &Record,
    denials: &Denials,
) -> Result<(), sqlx::Error> {
    for of in &denials.of {
        sqlx::query(
            "INSERT INTO gateway_denials_counted (number, insured, from_at, until_at, party,
             party_name, reasons, count)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE NOT EXISTS
               (SELECT 1 FROM gateway_denials_counted WHERE insured = $2 AND until_at = $4
                  AND from_at = $3 AND party = $5 AND count = $8 AND number <= $9)
             ON CONFLICT (number, insured) DO NOTHING",
        )
        .bind(position.row(record.number))
        .bind(&of.insured)
        .bind(int(denials.from_ms))
        .bind(int(denials.until_ms))
        .bind(&denials.party.path)
        .bind(denials.party.name.as_deref())
        .bind(list(&of.reasons)?)
        .bind(int(of.count))
        .bind(position.base())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

fn list(reasons: &[String]) -> Result<String, sqlx::Error> {
    serde_json::to_string(reasons).map_err(|source| sqlx::Error::Encode(Box::new(source)))
}

#[derive(sqlx::FromRow)]
struct IndexRow {
    epoch: i64,
    through: i64,
    hash: Option<String>,
    log: i64,
    origin: Option<String>,
    rebuild_until: i64,
    clearing: bool,
}

/// Where the index stands.
pub(crate) async fn position(conn: &mut SqliteConnection) -> Result<Position, sqlx::Error> {
    let row: IndexRow = sqlx::query_as(
        "SELECT epoch, through, hash, log, origin, rebuild_until, clearing FROM access_index",
    )
    .fetch_one(conn)
    .await?;
    let IndexRow { epoch, through, hash, log, origin, rebuild_until, clearing } = row;
    let (through, rebuild_until) = (seconds(through), seconds(rebuild_until));
    Ok(Position { epoch, through, hash, log, origin, rebuild_until, is_clearing: clearing })
}

/// More than any log has records.
const LOG_ROWS: i64 = 1 << 40;
/// Rows of each table that one commit removes.
const CLEARED_MAX: i64 = 1_000;
