//! Drops what is older than the audit log is kept: rows of the index of the gateway's records, and
//! the hub's own rows of deliveries.
//!
//! Invariants: nothing is dropped before its time; rows are looked for without holding up those who
//! write, and removed in short commits.

use std::time::Duration;

use tokio::sync::watch;

use crate::store::{Store, int};
use crate::{Hub, clock};

/// One table: its first old rows, and their removal. `$1` is the oldest time that is kept.
struct Table {
    name: &'static str,
    find: &'static str,
    remove: &'static str,
    times_in_ms: bool,
}

/// Looks at the start, and once a day, until `stop` turns true.
pub(crate) async fn keep(hub: Hub, retention: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        let sweep = async {
            match sweep(&hub.store, retention, clock::now_ms()).await {
                Ok(0) => {}
                Ok(rows) => tracing::info!(rows, "rows older than the retention time are dropped"),
                Err(error) => {
                    let error = crate::refusal::chain(&error);
                    tracing::warn!(error, "rows older than the retention time are still there");
                }
            }
            tokio::time::sleep(INTERVAL).await;
        };
        tokio::select! {
            () = sweep => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Removes everything that was older than `retention` at `now_ms`; says how many rows.
async fn sweep(store: &Store, retention: Duration, now_ms: u64) -> Result<u64, sqlx::Error> {
    let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    let kept_from_ms = now_ms.saturating_sub(retention_ms);
    let mut rows = 0;
    for table in &TABLES {
        let kept_from = int(if table.times_in_ms { kept_from_ms } else { kept_from_ms / 1_000 });
        while let Some(removed) = remove_some(store, table, kept_from).await? {
            tracing::debug!(table = table.name, removed, "old rows dropped");
            rows += removed;
        }
    }
    Ok(rows)
}

async fn remove_some(
    store: &Store,
    table: &Table,
    kept_from: i64,
) -> Result<Option<u64>, sqlx::Error> {
    let last: Option<i64> =
        sqlx::query_scalar(table.find).bind(kept_from).fetch_one(&mut *store.read().await?).await?;
    let Some(last) = last else { return Ok(None) };
    let mut tx = store.write().await?;
    let removed = sqlx::query(table.remove).bind(kept_from).bind(last).execute(tx.conn()).await?;
    tx.commit().await?;
    Ok(Some(removed.rows_affected()))
}

const TABLES: [Table; 3] = [
    Table {
        name: "accesses",
        find: "SELECT MAX(id) FROM
               (SELECT id FROM accesses WHERE at < $1 ORDER BY id LIMIT 1000)",
        remove: "DELETE FROM accesses WHERE at < $1 AND id <= $2",
        times_in_ms: false,
    },
    Table {
        name: "gateway_decisions",
        find: "SELECT MAX(number) FROM
               (SELECT number FROM gateway_decisions WHERE at < $1 ORDER BY number LIMIT 1000)",
        remove: "DELETE FROM gateway_decisions WHERE at < $1 AND number <= $2",
        times_in_ms: true,
    },
    Table {
        name: "gateway_denials_counted",
        find: "SELECT MAX(number) FROM (SELECT number FROM gateway_denials_counted
               WHERE until_at < $1 ORDER BY number LIMIT 1000)",
        remove: "DELETE FROM gateway_denials_counted WHERE until_at < $1 AND number <= $2",
        times_in_ms: true,
    },
];
const INTERVAL: Duration = Duration::from_secs(24 * 3_600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::harness::TestHub;

    #[tokio::test]
    async fn what_is_too_old_goes_and_what_is_not_stays() {
        let hub = TestHub::start().await;
        // Second n of 3,000, in each table.
        for statement in [
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
             INSERT INTO accesses (insurer, number, at, party, principal, kind, version, action,
             request_id) SELECT '131016', '1', i, 'p', 'p', 'k', 1, 'a', 'r' FROM n",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
             INSERT INTO gateway_decisions (number, at, request_id, party, decision, reasons)
             SELECT i, i * 1000, 'r', 'p', 'allow', '[]' FROM n",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
             INSERT INTO gateway_denials_counted (number, insured, from_at, until_at, party,
             reasons, count) SELECT i, 'p', i, i * 1000, 'p', '[]', 1 FROM n",
        ] {
            hub.sql(statement).await;
        }
        let store = &hub.hub.store;
        let day = Duration::from_secs(86_400);
        let now_ms = 86_400_000 + 2_501_000;
        assert_eq!(sweep(store, day, now_ms).await.unwrap(), 3 * 2_500);
        assert_eq!(sweep(store, day, now_ms).await.unwrap(), 0);
        for oldest in [
            "SELECT MIN(at) * 1000 FROM accesses",
            "SELECT MIN(at) FROM gateway_decisions",
            "SELECT MIN(until_at) FROM gateway_denials_counted",
        ] {
            let mut tx = store.read().await.unwrap();
            let oldest: i64 = sqlx::query_scalar(oldest).fetch_one(&mut *tx).await.unwrap();
            assert_eq!(oldest, 2_501_000);
        }
    }
}
