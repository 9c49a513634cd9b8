//! ケアプラン from files of ケアプランデータ連携標準仕様: stores what [`crate::careplan_csv`] read.
//!
//! ```text
//!  POST /v1/care-plan-files/{file} ─► careplan_csv::parse ─► one version a person and plan ─► 201
//!                                        └─ any problem: 422 with line and column, nothing stored
//! ```
//!
//! Invariants: a file is stored whole or not at all, in one transaction; 第1表 begins a plan, 第2表
//! completes the sender's plan of the same 居宅サービス計画作成（変更）日 as a new version of it.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use policies::document::DocumentKind;
use policies::identity::{Identity, InsuredKey, SystemName};
use policies::reason::Reason;
use serde_json::{Map, Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::body::read;
use crate::careplan_csv::{self, CarePlanFile, FILE_BYTES_MAX, FileKind, Plan};
use crate::documents::{NewVersion, insert};
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::work::{Deed, Work};
use crate::{Hub, clock, insured};

/// `POST /v1/care-plan-files/{file}`.
pub(crate) async fn store_file(
    State(hub): State<Hub>,
    permit: Permitted,
    body: Body,
) -> Result<Response, Refusal> {
    require_exchange(&permit.claims().principal)?;
    let bytes = read(body, FILE_BYTES_MAX).await?;
    let name = permit.parameter("file").to_owned();
    let deed = Deed::of(&hub, permit.claims()).detail(name.clone());
    let parsed = tokio::task::spawn_blocking(move || careplan_csv::parse(&name, &bytes))
        .await
        .map_err(|error| Refusal::Internal(Box::new(error)))?;
    let mut work = Work::begin(&hub, deed).await?;
    let result = match parsed {
        Ok(file) => store_plans(&mut work, &permit, &file).await,
        Err(refused) => Err(file_refused(&refused)),
    };
    let answer = work.finish(result).await?;
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

fn require_exchange(principal: &Identity) -> Result<(), Refusal> {
    match principal {
        Identity::System { name: SystemName::CarePlanExchange, .. } => Ok(()),
        Identity::System { .. }
        | Identity::Office { .. }
        | Identity::Municipality { .. }
        | Identity::Operator { .. } => Err(Reason::NotShared.into()),
    }
}

async fn store_plans(
    work: &mut Work,
    permit: &Permitted,
    file: &CarePlanFile,
) -> Result<Value, Refusal> {
    let (claims, now) = (permit.claims(), clock::now_s());
    let mut contents = Vec::new();
    let mut without_first = Vec::new();
    for plan in file.plans() {
        insured::require(work.conn(), claims, plan.insured, now).await?;
        let kind = DocumentKind::HomeCarePlan;
        insured::sight(work.conn(), claims, plan.insured, kind, now).await?.require()?;
        match content(work.conn(), file, &plan).await? {
            Some(content) => contents.push((plan.insured, content)),
            None => without_first.push(no_first_table(&plan)),
        }
    }
    if !without_first.is_empty() {
        return Err(refused(without_first));
    }
    let mut stored = Vec::new();
    for (insured, content) in contents {
        stored.push(store_plan(work, permit, file, insured, content).await?);
    }
    work.effect(format!("{} home-care plans stored", stored.len()));
    Ok(json!({ "stored": stored, "rows": file.rows }))
}

async fn store_plan(
    work: &mut Work,
    permit: &Permitted,
    file: &CarePlanFile,
    insured: InsuredKey,
    content: Value,
) -> Result<Value, Refusal> {
    let kind = DocumentKind::HomeCarePlan;
    let stored = insert(
        work,
        NewVersion {
            insured,
            kind,
            author: format!("office/{}", file.sender),
            submitted_by: permit.claims().principal.path(),
            request_id: &permit.claims().request_id,
            content,
        },
    )
    .await?;
    Ok(json!({ "insured": insured, "kind": kind, "version": stored.version }))
}

/// The content of the version that `plan` makes; `None` where 第2表 has no 第1表 to complete.
async fn content(
    conn: &mut SqliteConnection,
    file: &CarePlanFile,
    plan: &Plan,
) -> Result<Option<Value>, Refusal> {
    let mut tables = match file.kind {
        FileKind::Up1Kyo => Map::new(),
        FileKind::Up2Kyo => match tables_of(conn, file, plan).await? {
            Some(tables) => tables,
            None => return Ok(None),
        },
    };
    tables.insert(file.kind.table_number().to_owned(), plan.table.clone());
    Ok(Some(json!({ "created_on": plan.plan_date, "tables": tables })))
}

/// The tables of the sender's newest version of the plan of this date.
async fn tables_of(
    conn: &mut SqliteConnection,
    file: &CarePlanFile,
    plan: &Plan,
) -> Result<Option<Map<String, Value>>, Refusal> {
    let found: Option<String> = sqlx::query_scalar(
        "SELECT content FROM documents WHERE insurer = $1 AND number = $2 AND kind = $3
         AND author = $4 AND created_on = $5 ORDER BY version DESC LIMIT 1",
    )
    .bind(plan.insured.insurer.as_str())
    .bind(plan.insured.number.as_str())
    .bind(DocumentKind::HomeCarePlan.as_str())
    .bind(format!("office/{}", file.sender))
    .bind(&plan.plan_date)
    .fetch_optional(conn)
    .await?;
    let Some(found) = found else { return Ok(None) };
    let content: Value = serde_json::from_str(&found)?;
    let tables = content.get("tables").and_then(Value::as_object).cloned();
    Ok(Some(tables.unwrap_or_default()))
}

fn no_first_table(plan: &Plan) -> Value {
    json!({
        "line": 0,
        "column": 5,
        "item": "居宅サービス計画作成（変更）日",
        "message_ja": format!(
            "作成（変更）日 {} の第1表が登録されていません。先に第1表（UP1KYO）を送信してください。",
            plan.plan_date
        ),
    })
}

fn file_refused(refusal: &careplan_csv::Refusal) -> Refusal {
    refused(refusal.problems.iter().map(|problem| json!(problem)).collect())
}

fn refused(problems: Vec<Value>) -> Refusal {
    Refusal::coded(
        StatusCode::UNPROCESSABLE_ENTITY,
        "care_plan_file_refused",
        "the care-plan file has errors: see problems; nothing of it was stored",
        "ファイルに誤りがあるため、受け付けられません。内容は保存していません。\
         誤りの箇所を直して、もう一度送信してください。",
    )
    .with("problems", Value::Array(problems))
}
