//! The rows that the stream is indexed into, and how far they go.
//!
//! INVARIANT: the epoch grows when the index begins anew, and rows are added only in the epoch that
//! they were asked for in.

use sqlx::sqlite::SqliteConnection;

use super::line::{Completion, Decision, Denials, Record, What};
use crate::store::{Store, WriteTx, int, seconds};

/// How far the index goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) epoch: i64,
    /// Everything up to this record was seen.
    pub(super) through: u64,
    /// Time of the last record that was seen.
    pub(super) last_at_ms: u64,
    /// The index is whole again when it has come this far.
    pub(super) rebuild_until: u64,
    is_clearing: bool,
}

impl Position {
    /// Whether the index is being made anew.
    pub(super) fn is_rebuilding(&self) -> bool {
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

/// Begins the index anew: see [`set_anew`].
pub(super) async fn begin_anew(store: &Store, until: u64) -> Result<(), sqlx::Error> {
    let mut tx = store.write().await?;
    set_anew(tx.conn(), Some(until)).await?;
    tx.commit().await.map(drop)
}

/// Lets the index begin anew at record 1; it is whole again at `until`, or where it stood.
pub(super) async fn set_anew(
    conn: &mut SqliteConnection,
    until: Option<u64>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE access_index SET epoch = epoch + 1, through = 0, last_at = 0, clearing = 1,
         rebuild_until = CASE WHEN $1 IS NOT NULL THEN $1
           WHEN rebuild_until > through THEN rebuild_until ELSE through END",
    )
    .bind(until.map(int))
    .execute(conn)
    .await
    .map(drop)
}

/// Removes what is left of an earlier index, a part a commit, and says where the index stands.
pub(super) async fn clear(store: &Store) -> Result<Position, sqlx::Error> {
    loop {
        let mut tx = store.write().await?;
        let before = position(tx.conn()).await?;
        if !before.is_clearing {
            return Ok(before);
        }
        if clear_some(tx.conn()).await? == 0 {
            sqlx::query("UPDATE access_index SET clearing = 0").execute(tx.conn()).await?;
        }
        tx.commit().await?;
    }
}

async fn clear_some(conn: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let decisions = sqlx::query(
        "DELETE FROM gateway_decisions
         WHERE number IN (SELECT number FROM gateway_decisions ORDER BY number LIMIT $1)",
    )
    .bind(CLEARED_MAX)
    .execute(&mut *conn)
    .await?;
    let denials = sqlx::query(
        "DELETE FROM gateway_denials_counted
         WHERE number IN (SELECT number FROM gateway_denials_counted ORDER BY number LIMIT $1)",
    )
    .bind(CLEARED_MAX)
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
        "UPDATE access_index SET through = $1, last_at = $2, rebuild_until = $3 WHERE epoch = $4",
    )
    .bind(int(position.through))
    .bind(int(position.last_at_ms))
    .bind(int(position.rebuild_until))
    .bind(position.epoch)
    .execute(tx.conn())
    .await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    for record in &batch.records {
        add_record(&mut tx, record).await?;
    }
    tx.commit().await?;
    Ok(true)
}

async fn add_record(tx: &mut WriteTx, record: &Record) -> Result<(), sqlx::Error> {
    match &record.what {
        What::Decision(decision) => add_decision(tx.conn(), record, decision).await,
        What::Completion(completion) => complete(tx.conn(), completion).await,
        What::Denials(denials) => add_denials(tx.conn(), record.number, denials).await,
        What::Nothing => Ok(()),
    }
}

async fn add_decision(
    conn: &mut SqliteConnection,
    record: &Record,
    decision: &Decision,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO gateway_decisions (number, at, insured, request_id, party, party_name,
         staff_job, action, kind, document_id, decision, reasons)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         ON CONFLICT (number) DO NOTHING",
    )
    .bind(int(record.number))
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
    .execute(conn)
    .await
    .map(drop)
}

/// A completion of a decision that is not kept changes nothing.
async fn complete(conn: &mut SqliteConnection, completion: &Completion) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE gateway_decisions SET status = $1, bytes_sent = $2, outcome = $3
         WHERE request_id = $4 AND status IS NULL",
    )
    .bind(i64::from(completion.status))
    .bind(int(completion.bytes_sent))
    .bind(&completion.outcome)
    .bind(&completion.request_id)
    .execute(conn)
    .await
    .map(drop)
}

async fn add_denials(
    conn: &mut SqliteConnection,
    number: u64,
    denials: &Denials,
) -> Result<(), sqlx::Error> {
    for of in &denials.of {
        sqlx::query(
            "INSERT INTO gateway_denials_counted (number, insured, from_at, until_at, party,
             party_name, reasons, count) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (number, insured) DO NOTHING",
        )
        .bind(int(number))
        .bind(&of.insured)
        .bind(int(denials.from_ms))
        .bind(int(denials.until_ms))
        .bind(&denials.party.path)
        .bind(denials.party.name.as_deref())
        .bind(list(&of.reasons)?)
        .bind(int(of.count))
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

fn list(reasons: &[String]) -> Result<String, sqlx::Error> {
    serde_json::to_string(reasons).map_err(|source| sqlx::Error::Encode(Box::new(source)))
}

async fn position(conn: &mut SqliteConnection) -> Result<Position, sqlx::Error> {
    let (epoch, through, last_at, rebuild_until, clearing): (i64, i64, i64, i64, bool) =
        sqlx::query_as("SELECT epoch, through, last_at, rebuild_until, clearing FROM access_index")
            .fetch_one(conn)
            .await?;
    Ok(Position {
        epoch,
        through: seconds(through),
        last_at_ms: seconds(last_at),
        rebuild_until: seconds(rebuild_until),
        is_clearing: clearing,
    })
}

/// Rows of each table that one commit removes.
const CLEARED_MAX: i64 = 1_000;
