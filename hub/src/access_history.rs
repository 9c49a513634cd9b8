//! Who looked at a person's documents.
//!
//! Every delivery of a document writes a row in the transaction that reads it, so that nothing is
//! delivered without one. The person reads them through マイナポータル; the portal's own reads on the
//! person's behalf are listed as well. The gateway's decision records, matched by request id, will
//! be indexed here too (denied attempts, completions).

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use policies::document::DocumentKind;
use policies::identity::InsuredKey;
use policies::permit::PermitClaims;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, seconds};
use crate::{Hub, clock, insured};

/// Records that `version` of `kind` is delivered to the principal of `claims`.
pub(crate) async fn record(
    conn: &mut SqliteConnection,
    claims: &PermitClaims,
    insured: InsuredKey,
    kind: DocumentKind,
    version: i64,
    now: u64,
) -> Result<(), Refusal> {
    sqlx::query(
        "INSERT INTO accesses (insurer, number, at, party, principal, staff_id, staff_job, kind,
         version, action, request_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(int(now))
    .bind(claims.principal.party())
    .bind(claims.principal.path())
    .bind(claims.staff.as_ref().map(|staff| staff.id.as_str()))
    .bind(claims.staff.as_ref().map(|staff| staff.job.as_str()))
    .bind(kind.as_str())
    .bind(version)
    .bind(&claims.operation)
    .bind(&claims.request_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// `GET …/access-history`: newest first, at most [`ACCESSES_MAX`].
pub(crate) async fn list(State(hub): State<Hub>, permit: Permitted) -> Result<Response, Refusal> {
    let insured = permit.insured()?;
    let mut tx = hub.store.read().await?;
    insured::require(&mut tx, permit.claims(), insured, clock::now_s()).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT at, party, staff_job, kind, version, action, request_id FROM accesses
         WHERE insurer = $1 AND number = $2 ORDER BY id DESC LIMIT $3",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(ACCESSES_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let accesses: Vec<Value> = rows.iter().map(Row::print).collect();
    Ok(axum::Json(json!({ "accesses": accesses })).into_response())
}

#[derive(sqlx::FromRow)]
struct Row {
    at: i64,
    party: String,
    staff_job: Option<String>,
    kind: String,
    version: i64,
    action: String,
    request_id: String,
}

impl Row {
    fn print(&self) -> Value {
        json!({
            "at": clock::rfc3339(seconds(self.at)),
            "party": self.party,
            "staff_job": self.staff_job,
            "document_kind": self.kind,
            "document_kind_ja": self.kind.parse::<DocumentKind>().ok().map(DocumentKind::ja),
            "version": self.version,
            "action": self.action,
            "request_id": self.request_id,
        })
    }
}

const ACCESSES_MAX: i64 = 1_000;
