//! 要介護認定: progress and result of a person's certification.
//!
//! Steps are appended; within one application the stage only moves forward, and `applied` begins a
//! new application. Here belongs the panel (認定審査会): its papers, members and sessions.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use policies::identity::InsuredKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::access_history::{CERTIFICATION, Subject};
use crate::body::{JsonBody, Text};
use crate::clock::Day;
use crate::declared::About;
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, seconds};
use crate::work::Work;
use crate::{Hub, access_history, clock, insured};

/// A stage of one application, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// 申請.
    Applied,
    /// 認定調査済み.
    SurveyDone,
    /// 主治医意見書受領.
    OpinionReceived,
    /// 審査会予定.
    PanelScheduled,
    /// 決定.
    Decided,
}

/// 審査結果.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    care_level: Text<20>,
    valid_from: Day,
    valid_until: Day,
}

/// The body of `POST …/certification`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    stage: Stage,
    on: Day,
    #[serde(default)]
    result: Option<Decision>,
}

/// `POST …/certification`.
pub(crate) async fn advance(
    State(hub): State<Hub>,
    permit: Permitted,
    JsonBody(step): JsonBody<Step>,
) -> Result<Response, Refusal> {
    check_result(&step)?;
    let mut work = Work::permitted(&hub, &permit, word(step.stage)).await?;
    let result = append(&mut work, &permit, &step).await;
    let progress = work.finish(result).await?;
    About::person(permit.insured()?).answer(axum::Json(progress))
}

/// `GET …/certification`; where there is something to see, the access history says who saw it.
pub(crate) async fn view(State(hub): State<Hub>, permit: Permitted) -> Result<Response, Refusal> {
    let (insured, claims, now) = (permit.insured()?, permit.claims(), clock::now_s());
    let mut tx = permit.write(&hub).await?;
    insured::require(tx.conn(), claims, insured, now).await?;
    let rows = rows(tx.conn(), insured).await?;
    if let Some(last) = rows.last() {
        let subject = Subject::Certification(last.application);
        access_history::record(tx.conn(), claims, insured, subject, now).await?;
    }
    tx.commit().await?;
    About::person(insured).answer(axum::Json(progress(&rows)?))
}

fn check_result(step: &Step) -> Result<(), Refusal> {
    match (step.stage == Stage::Decided, &step.result) {
        (true, None) => Err(Refusal::body("`result` is required with stage `decided`")),
        (false, Some(_)) => Err(Refusal::body("`result` belongs to stage `decided` only")),
        (true, Some(decision)) if decision.valid_until < decision.valid_from => {
            Err(Refusal::body("`result.valid_until` is before `result.valid_from`"))
        }
        (true, Some(_)) | (false, None) => Ok(()),
    }
}

async fn append(work: &mut Work, permit: &Permitted, step: &Step) -> Result<Value, Refusal> {
    let (insured, now) = (permit.insured()?, clock::now_s());
    insured::require(work.conn(), permit.claims(), insured, now).await?;
    let before = rows(work.conn(), insured).await?;
    let application = application_of(step.stage, before.last())?;
    sqlx::query(
        "INSERT INTO certification_steps (insurer, number, application, stage, on_day, result,
         recorded_by, recorded_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(application)
    .bind(word(step.stage))
    .bind(step.on.as_str())
    .bind(step.result.as_ref().map(serde_json::to_string).transpose()?)
    .bind(permit.claims().principal.party())
    .bind(int(now))
    .execute(work.conn())
    .await?;
    work.document(CERTIFICATION, application);
    work.effect(format!("certification moved to {}", word(step.stage)));
    progress(&rows(work.conn(), insured).await?)
}

/// The number of the application that `stage` belongs to, after the last step.
fn application_of(stage: Stage, last: Option<&Row>) -> Result<i64, Refusal> {
    let current = last.map(|row| (row.application, row.stage()));
    match (stage, current) {
        (Stage::Applied, None) => Ok(1),
        (Stage::Applied, Some((application, _))) => Ok(application + 1),
        (_, Some((application, Some(reached)))) if stage > reached => Ok(application),
        (_, Some(_)) => Err(conflict(
            "the certification is at this stage or beyond; stages only move forward",
            "認定の進捗は、前の段階へ戻すことができません。",
        )),
        (_, None) => Err(conflict(
            "there is no application yet: begin with stage `applied`",
            "認定申請が登録されていません。申請の段階から登録してください。",
        )),
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    application: i64,
    stage: String,
    on_day: String,
    result: Option<String>,
    recorded_at: i64,
}

impl Row {
    fn stage(&self) -> Option<Stage> {
        serde_json::from_value(Value::String(self.stage.clone())).ok()
    }

    fn result(&self) -> Result<Value, Refusal> {
        match &self.result {
            Some(result) => Ok(serde_json::from_str(result)?),
            None => Ok(Value::Null),
        }
    }

    fn print(&self) -> Result<Value, Refusal> {
        Ok(json!({
            "application": self.application,
            "stage": self.stage,
            "on": self.on_day,
            "result": self.result()?,
            "recorded_at": clock::rfc3339(seconds(self.recorded_at)),
        }))
    }
}

/// The newest steps, oldest first.
async fn rows(conn: &mut SqliteConnection, insured: InsuredKey) -> Result<Vec<Row>, Refusal> {
    let mut rows: Vec<Row> = sqlx::query_as(
        "SELECT application, stage, on_day, result, recorded_at FROM certification_steps
         WHERE insurer = $1 AND number = $2 ORDER BY id DESC LIMIT $3",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(STEPS_MAX)
    .fetch_all(conn)
    .await?;
    rows.reverse();
    Ok(rows)
}

/// Where the newest application stands; `result` is that of the newest decision.
fn progress(rows: &[Row]) -> Result<Value, Refusal> {
    let decided = rows.iter().rev().find(|row| row.result.is_some());
    Ok(json!({
        "stage": rows.last().map(|row| row.stage.as_str()),
        "history": rows.iter().map(Row::print).collect::<Result<Vec<_>, _>>()?,
        "result": decided.map(Row::result).transpose()?,
    }))
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Applied => "applied",
        Stage::SurveyDone => "survey-done",
        Stage::OpinionReceived => "opinion-received",
        Stage::PanelScheduled => "panel-scheduled",
        Stage::Decided => "decided",
    }
}

fn conflict(message: &str, message_ja: &str) -> Refusal {
    Refusal::coded(StatusCode::CONFLICT, "certification_stage", message, message_ja)
}

const STEPS_MAX: i64 = 500;
