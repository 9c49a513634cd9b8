//! Who looked at a person's documents, 届出 and certification.
//!
//! Every delivery of one of them writes a row in the transaction that reads it, so that nothing is
//! delivered without one. The person reads them through マイナポータル; the portal's own reads on the
//! person's behalf are listed as well. The gateway's decision records, matched by request id, will
//! be indexed here too (denied attempts, completions).

use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use policies::document::DocumentKind;
use policies::identity::InsuredKey;
use policies::permit::PermitClaims;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::body::{PageBefore, next_page, query};
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, seconds};
use crate::{Hub, clock, insured};

/// What was delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject {
    /// A version of a document.
    Document(DocumentKind, i64),
    /// A 届出 of this id, which holds the person's address.
    CarePlanRequest(i64),
    /// Progress and result of the certification, up to the application of this number.
    Certification(i64),
}

impl Subject {
    fn kind(self) -> &'static str {
        match self {
            Self::Document(kind, _) => kind.as_str(),
            Self::CarePlanRequest(_) => CARE_PLAN_REQUEST.0,
            Self::Certification(_) => CERTIFICATION.0,
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::Document(_, number)
            | Self::CarePlanRequest(number)
            | Self::Certification(number) => number,
        }
    }

    fn action(self, operation: &str) -> &str {
        match self {
            Self::Document(..) => operation,
            Self::CarePlanRequest(_) => "care-plan-requests.view",
            Self::Certification(_) => "certification.view",
        }
    }
}

/// Records that `subject` is delivered to the principal of `claims`.
pub(crate) async fn record(
    conn: &mut SqliteConnection,
    claims: &PermitClaims,
    insured: InsuredKey,
    subject: Subject,
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
    .bind(subject.kind())
    .bind(subject.number())
    .bind(subject.action(&claims.operation))
    .bind(&claims.request_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// `GET …/access-history[?before=ID]`: newest first, [`PAGE_MAX`] a page.
pub(crate) async fn list(
    State(hub): State<Hub>,
    permit: Permitted,
    uri: Uri,
) -> Result<Response, Refusal> {
    let insured = permit.insured()?;
    let page: PageBefore = query(&uri)?;
    let mut tx = permit.read(&hub).await?;
    insured::require(&mut tx, permit.claims(), insured, clock::now_s()).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, at, party, staff_job, kind, version, action, request_id FROM accesses
         WHERE insurer = $1 AND number = $2 AND id < $3 ORDER BY id DESC LIMIT $4",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(page.before())
    .bind(PAGE_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let next = next_page(&rows, PAGE_MAX, |row| row.id);
    let accesses: Vec<Value> = rows.iter().map(Row::print).collect();
    Ok(axum::Json(json!({ "accesses": accesses, "next": next })).into_response())
}

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
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
        let document = self.kind.parse::<DocumentKind>().ok();
        let others = [CARE_PLAN_REQUEST, CERTIFICATION];
        let other = others.iter().find(|(kind, _)| *kind == self.kind).map(|(_, ja)| *ja);
        json!({
            "id": self.id,
            "at": clock::rfc3339(seconds(self.at)),
            "party": self.party,
            "staff_job": self.staff_job,
            "document_kind": self.kind,
            "document_kind_ja": document.map(DocumentKind::ja).or(other),
            "version": document.map(|_| self.version),
            "action": self.action,
            "request_id": self.request_id,
        })
    }
}

const CARE_PLAN_REQUEST: (&str, &str) = ("care-plan-request", "居宅サービス計画作成依頼届出");
const CERTIFICATION: (&str, &str) = ("certification", "要介護認定の進捗と結果");
const PAGE_MAX: i64 = 1_000;
