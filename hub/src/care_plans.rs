//! ケアプラン from files of ケアプランデータ連携標準仕様: stores what [`crate::careplan_csv`] read.
//!
//! ```text
//!  POST /v1/care-plan-files/{file} ─► careplan_csv::parse ─► one version a person and plan ─► 201
//!                                        └─ any problem: 422 with line and column, nothing stored
//! ```
//!
//! Invariants: a file is stored whole or not at all, in one transaction; 第1表 begins a plan, 第2表
//! completes the sender's plan of the same 居宅サービス計画作成（変更）日 as a new version of it; a file that
//! comes again is answered as the first time and stores nothing.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use policies::document::DocumentKind;
use policies::identity::{Identity, InsuredKey, SystemName};
use policies::reason::Reason;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::careplan_csv::{self, CarePlanFile, FILE_BYTES_MAX, FileKind, Plan};
use crate::documents::{NewVersion, insert};
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::int;
use crate::work::Work;
use crate::{Hub, clock, insured};

/// `POST /v1/care-plan-files/{file}`.
pub(crate) async fn store_file(
    State(hub): State<Hub>,
    permit: Permitted,
    body: Body,
) -> Result<Response, Refusal> {
    require_exchange(&permit.claims().principal)?;
    let bytes = permit.read_body(body, BODY_BYTES_MAX).await?;
    let sent = Sent { name: permit.parameter("file").to_owned(), sha256: sha256(&bytes) };
    let name = sent.name.clone();
    let parsed = tokio::task::spawn_blocking(move || careplan_csv::parse(&name, &bytes))
        .await
        .map_err(|error| Refusal::Internal(Box::new(error)))?;
    let mut work = Work::permitted(&hub, &permit, sent.name.clone()).await?;
    let result = match parsed {
        Ok(file) => take(&mut work, &permit, &file, &sent).await,
        Err(refused) => Err(file_refused(&refused)),
    };
    let (status, answer) = work.finish(result).await?;
    Ok((status, axum::Json(answer)).into_response())
}

/// A file as it was sent.
struct Sent {
    name: String,
    sha256: String,
}

/// Stores the plans, or answers with the first result where this file was stored before.
async fn take(
    work: &mut Work,
    permit: &Permitted,
    file: &CarePlanFile,
    sent: &Sent,
) -> Result<(StatusCode, Value), Refusal> {
    let before: Option<(String, String)> = sqlx::query_as(
        "SELECT sha256, answer FROM care_plan_files WHERE sender = $1 AND name = $2",
    )
    .bind(file.sender.as_str())
    .bind(&sent.name)
    .fetch_optional(work.conn())
    .await?;
    if let Some((sha256, answer)) = before {
        if sha256 != sent.sha256 {
            return Err(other_content());
        }
        work.effect("nothing: the file was stored before");
        let mut answer: Map<String, Value> = serde_json::from_str(&answer)?;
        answer.insert("repeated".to_owned(), true.into());
        return Ok((StatusCode::OK, Value::Object(answer)));
    }
    let answer = store_plans(work, permit, file).await?;
    sqlx::query(
        "INSERT INTO care_plan_files (sender, name, sha256, answer, stored_at)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(file.sender.as_str())
    .bind(&sent.name)
    .bind(&sent.sha256)
    .bind(answer.to_string())
    .bind(int(clock::now_s()))
    .execute(work.conn())
    .await?;
    Ok((StatusCode::CREATED, answer))
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
    let mut versions_of: BTreeMap<InsuredKey, Vec<String>> = BTreeMap::new();
    let kind = DocumentKind::HomeCarePlan;
    for (insured, content) in contents {
        let version = store_plan(work, permit, file, insured, content).await?;
        stored.push(json!({ "insured": insured, "kind": kind, "version": version }));
        versions_of.entry(insured).or_default().push(version.to_string());
    }
    for (insured, versions) in versions_of {
        let effect = format!("{} home-care plans stored", versions.len());
        work.effect_on(insured, (kind.as_str(), versions.join(",")), effect);
    }
    Ok(json!({ "stored": stored, "rows": file.rows }))
}

async fn store_plan(
    work: &mut Work,
    permit: &Permitted,
    file: &CarePlanFile,
    insured: InsuredKey,
    content: PlanContent,
) -> Result<i64, Refusal> {
    let stored = insert(
        work,
        NewVersion {
            insured,
            kind: DocumentKind::HomeCarePlan,
            author: format!("office/{}", file.sender),
            submitted_by: permit.claims().principal.path(),
            request_id: &permit.claims().request_id,
            content: to_raw_value(&content)?,
            created_on: Some(content.created_on),
        },
    )
    .await?;
    Ok(stored.version)
}

/// What a plan of this file form holds; the tables that were stored before stay as they came.
#[derive(Serialize, Deserialize)]
struct PlanContent {
    created_on: String,
    tables: Tables,
}

type Tables = BTreeMap<String, Box<RawValue>>;

/// The content of the version that `plan` makes; `None` where 第2表 has no 第1表 to complete.
async fn content(
    conn: &mut SqliteConnection,
    file: &CarePlanFile,
    plan: &Plan,
) -> Result<Option<PlanContent>, Refusal> {
    let mut tables = match file.kind {
        FileKind::Up1Kyo => Tables::new(),
        FileKind::Up2Kyo => match tables_of(conn, file, plan).await? {
            Some(tables) => tables,
            None => return Ok(None),
        },
    };
    tables.insert(file.kind.table_number().to_owned(), to_raw_value(&plan.table)?);
    Ok(Some(PlanContent { created_on: plan.plan_date.clone(), tables }))
}

/// The tables of the sender's newest version of the plan of this date.
async fn tables_of(
    conn: &mut SqliteConnection,
    file: &CarePlanFile,
    plan: &Plan,
) -> Result<Option<Tables>, Refusal> {
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
    let content: PlanContent = serde_json::from_str(&found)?;
    Ok(Some(content.tables))
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

fn other_content() -> Refusal {
    Refusal::coded(
        StatusCode::CONFLICT,
        "care_plan_file_other_content",
        "a file of this name with other content was stored before; send it under a new name",
        "同じ名前で内容の異なるファイルを、すでに受け付けています。\
         作成日時を改めたファイル名で、もう一度送信してください。",
    )
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
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

/// More than a file may have, so that one that is too long is refused by its reader.
const BODY_BYTES_MAX: usize = FILE_BYTES_MAX + 64 * 1024;
