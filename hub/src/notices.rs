//! What parties send each other: 主治医意見書作成依頼 to institutions, 主治医意見書 and
//! 居宅サービス計画作成依頼届出 to the municipality.
//!
//! ```text
//!  municipality ─ opinion request ─► institution ─ physician-opinion ─► inbox ─► receipt
//!  care-plan office ─ 届出 ─► inbox ─► receipt {"accepted": true} ─► the office plans for the person
//! ```
//!
//! Invariants: a request is closed by the document that answers it, in one commit; only an accepted
//! 届出 or a facility plan makes an office the planning one; of 届出 only the newest counts, and one
//! that is older than the one accepted last is not accepted any more; an office plans as long as
//! any of its sources is active.

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use policies::feed::Fact;
use policies::identity::{InsuredKey, OfficeNumber};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::access_history::CARE_PLAN_REQUEST;
use crate::body::{JsonBody, PageBefore, Text, next_page, query};
use crate::clock::Day;
use crate::declared::About;
use crate::documents::Stored;
use crate::inbox::{self, NewItem};
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, parsed, seconds};
use crate::work::{OPINION_REQUEST, Work};
use crate::{Hub, clock, insured};

// --- 主治医意見書作成依頼 ---

/// The body of `POST …/opinion-requests`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOpinionRequest {
    office: OfficeNumber,
    due: Day,
}

/// `POST …/opinion-requests`; an open request to the same institution is answered again with 200.
pub(crate) async fn send_opinion_request(
    State(hub): State<Hub>,
    permit: Permitted,
    JsonBody(new): JsonBody<NewOpinionRequest>,
) -> Result<Response, Refusal> {
    let mut work = Work::permitted(&hub, &permit, format!("office {}", new.office)).await?;
    let result = ask(&mut work, &permit, &new).await;
    let (status, id) = work.finish(result).await?;
    About::person(permit.insured()?).answer((status, axum::Json(json!({ "id": id }))))
}

async fn ask(
    work: &mut Work,
    permit: &Permitted,
    new: &NewOpinionRequest,
) -> Result<(StatusCode, i64), Refusal> {
    let (insured, now) = (permit.insured()?, clock::now_s());
    insured::require(work.conn(), permit.claims(), insured, now).await?;
    if let Some(open) = open_requests(work.conn(), new.office, insured).await?.first() {
        return Ok((StatusCode::OK, *open));
    }
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO opinion_requests (insurer, number, office, due, requested_by, requested_at)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(new.office.as_str())
    .bind(new.due.as_str())
    .bind(permit.claims().principal.party())
    .bind(int(now))
    .fetch_one(work.conn())
    .await?;
    work.document(OPINION_REQUEST, id);
    work.effect(format!("opinion request {id} sent"));
    work.publish(&Fact::OpinionRequest { office: new.office, insured, open: true }).await?;
    Ok((StatusCode::CREATED, id))
}

/// `GET /v1/opinion-requests[?before=ID]`: the institution's own, newest first, [`LIST_MAX`] a
/// page.
pub(crate) async fn list_opinion_requests(
    State(hub): State<Hub>,
    permit: Permitted,
    uri: Uri,
) -> Result<Response, Refusal> {
    let office = permit.office()?;
    let page: PageBefore = query(&uri)?;
    let mut tx = permit.read(&hub).await?;
    let rows: Vec<OpinionRequest> = sqlx::query_as(
        "SELECT id, insurer, number, due, requested_at, answered_at FROM opinion_requests
         WHERE office = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
    )
    .bind(office.as_str())
    .bind(page.before())
    .bind(LIST_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let requests: Vec<Value> = rows.iter().map(OpinionRequest::print).collect();
    let next = next_page(&rows, LIST_MAX, |row| row.id);
    Ok(axum::Json(json!({ "opinion_requests": requests, "next": next })).into_response())
}

#[derive(sqlx::FromRow)]
struct OpinionRequest {
    id: i64,
    insurer: String,
    number: String,
    due: String,
    requested_at: i64,
    answered_at: Option<i64>,
}

impl OpinionRequest {
    fn print(&self) -> Value {
        json!({
            "id": self.id,
            "insured": { "insurer": self.insurer, "number": self.number },
            "due": self.due,
            "requested_at": clock::rfc3339(seconds(self.requested_at)),
            "state": if self.answered_at.is_some() { "answered" } else { "open" },
            "answered_at": self.answered_at.map(|at| clock::rfc3339(seconds(at))),
        })
    }
}

/// A 主治医意見書 was stored: closes the institution's open request and tells the insurer.
pub(crate) async fn opinion_came(
    work: &mut Work,
    permit: &Permitted,
    insured: InsuredKey,
    stored: &Stored,
    named_request: Option<i64>,
) -> Result<(), Refusal> {
    let Some(office) = permit.claims().principal.office() else { return Ok(()) };
    let open = open_requests(work.conn(), office, insured).await?;
    if named_request.is_some_and(|named| !open.contains(&named)) {
        return Err(Refusal::body(
            "`request_id` is no open request to this institution for this person",
        ));
    }
    if !open.is_empty() {
        sqlx::query(
            "UPDATE opinion_requests SET answered_at = $1, document = $2
             WHERE office = $3 AND insurer = $4 AND number = $5 AND answered_at IS NULL",
        )
        .bind(int(stored.at))
        .bind(stored.id)
        .bind(office.as_str())
        .bind(insured.insurer.as_str())
        .bind(insured.number.as_str())
        .execute(work.conn())
        .await?;
        work.publish(&Fact::OpinionRequest { office, insured, open: false }).await?;
    }
    let item = NewItem { kind: "physician-opinion", document: Some(stored.id), notice: None };
    inbox::put(work, permit, insured, &item, stored.at).await
}

async fn open_requests(
    conn: &mut SqliteConnection,
    office: OfficeNumber,
    insured: InsuredKey,
) -> Result<Vec<i64>, Refusal> {
    Ok(sqlx::query_scalar(
        "SELECT id FROM opinion_requests
         WHERE office = $1 AND insurer = $2 AND number = $3 AND answered_at IS NULL ORDER BY id",
    )
    .bind(office.as_str())
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .fetch_all(conn)
    .await?)
}

/// Whether the insurer asked this institution for an opinion: still open, or ever.
pub(crate) async fn is_asked(
    conn: &mut SqliteConnection,
    office: OfficeNumber,
    insured: InsuredKey,
    still_open: bool,
) -> Result<bool, Refusal> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT id FROM opinion_requests WHERE office = $1 AND insurer = $2 AND number = $3
         AND (NOT $4 OR answered_at IS NULL) LIMIT 1",
    )
    .bind(office.as_str())
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(still_open)
    .fetch_optional(conn)
    .await?;
    Ok(found.is_some())
}

// --- 居宅サービス計画作成依頼届出 ---

/// The body of `POST …/care-plan-requests`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCarePlanRequest {
    starts_on: Day,
    person_agreed: bool,
    /// 住所等: goes to the insurer only.
    #[serde(default)]
    address: Option<Text<200>>,
    #[serde(default)]
    note: Option<Text<500>>,
}

/// `POST …/care-plan-requests`.
pub(crate) async fn file_care_plan_request(
    State(hub): State<Hub>,
    permit: Permitted,
    JsonBody(new): JsonBody<NewCarePlanRequest>,
) -> Result<Response, Refusal> {
    let mut work = Work::permitted(&hub, &permit, "").await?;
    let result = file(&mut work, &permit, &new).await;
    let id = work.finish(result).await?;
    let answer = (StatusCode::CREATED, axum::Json(json!({ "id": id })));
    About::person(permit.insured()?).answer(answer)
}

async fn file(
    work: &mut Work,
    permit: &Permitted,
    new: &NewCarePlanRequest,
) -> Result<i64, Refusal> {
    let (insured, office, now) = (permit.insured()?, permit.office()?, clock::now_s());
    insured::require(work.conn(), permit.claims(), insured, now).await?;
    if !new.person_agreed {
        return Err(Refusal::coded(
            StatusCode::UNPROCESSABLE_ENTITY,
            "agreement_required",
            "the notice may be filed only with the person's agreement",
            "届出にはご本人の同意が必要です。",
        ));
    }
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO care_plan_requests (insurer, number, office, starts_on, address, note,
         filed_by, filed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(office.as_str())
    .bind(new.starts_on.as_str())
    .bind(new.address.as_ref().map(Text::as_str))
    .bind(new.note.as_ref().map(Text::as_str))
    .bind(permit.claims().principal.path())
    .bind(int(now))
    .fetch_one(work.conn())
    .await?;
    work.document(CARE_PLAN_REQUEST, id);
    work.effect(format!("care-plan request {id} filed"));
    let item = NewItem { kind: "care-plan-request", document: None, notice: Some(id) };
    inbox::put(work, permit, insured, &item, now).await?;
    Ok(id)
}

/// What a 届出 says, as its insurer reads it.
pub(crate) async fn care_plan_request(
    conn: &mut SqliteConnection,
    id: i64,
) -> Result<Value, Refusal> {
    let row: (String, String, Option<String>, Option<String>, Option<i64>) = sqlx::query_as(
        "SELECT office, starts_on, address, note, accepted FROM care_plan_requests WHERE id = $1",
    )
    .bind(id)
    .fetch_one(conn)
    .await?;
    let (office, starts_on, address, note, accepted) = row;
    Ok(json!({
        "office": office,
        "starts_on": starts_on,
        "person_agreed": true,
        "address": address,
        "note": note,
        "accepted": accepted.map(|accepted| accepted == 1),
    }))
}

/// Accepts or refuses a 届出; the first judgement stands.
pub(crate) async fn judge(
    work: &mut Work,
    notice: i64,
    accepted: bool,
    insured: InsuredKey,
) -> Result<(), Refusal> {
    let (office, before): (String, Option<i64>) =
        sqlx::query_as("SELECT office, accepted FROM care_plan_requests WHERE id = $1")
            .bind(notice)
            .fetch_one(work.conn())
            .await?;
    match before.map(|before| before == 1) {
        Some(before) if before == accepted => return Ok(()),
        Some(_) => {
            return Err(Refusal::coded(
                StatusCode::CONFLICT,
                "already_judged",
                "the notice was judged otherwise before; ask the office to file it again",
                "この届出はすでに処理されています。事業所に再度の届出をご依頼ください。",
            ));
        }
        None => {}
    }
    sqlx::query("UPDATE care_plan_requests SET accepted = $1 WHERE id = $2")
        .bind(i64::from(accepted))
        .bind(notice)
        .execute(work.conn())
        .await?;
    if !accepted {
        work.effect(format!("care-plan request {notice} refused"));
        return Ok(());
    }
    refuse_older(work, notice, insured).await?;
    let office = parsed(&office)?;
    end_other_planners(work, office, insured).await?;
    set_plans_for(work, office, insured, "care-plan-request").await?;
    work.effect(format!("care-plan request {notice} accepted"));
    Ok(())
}

/// A notice that was filed before the one accepted last would undo the newer choice of the person.
async fn refuse_older(work: &mut Work, notice: i64, insured: InsuredKey) -> Result<(), Refusal> {
    let newer: Option<i64> = sqlx::query_scalar(
        "SELECT id FROM care_plan_requests
         WHERE insurer = $1 AND number = $2 AND accepted = 1 AND id > $3 LIMIT 1",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(notice)
    .fetch_optional(work.conn())
    .await?;
    if newer.is_none() {
        return Ok(());
    }
    Err(Refusal::coded(
        StatusCode::CONFLICT,
        "newer_notice_accepted",
        "a notice that was filed later has been accepted for this person; this one is out of date",
        "この方については、後から提出された届出がすでに受理されています。この届出は受理できません。",
    ))
}

/// Whether the office makes the person's plan, from whatever source.
pub(crate) async fn plans_for(
    conn: &mut SqliteConnection,
    office: OfficeNumber,
    insured: InsuredKey,
) -> Result<bool, Refusal> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT since FROM plans_for
         WHERE office = $1 AND insurer = $2 AND number = $3 AND active = 1 LIMIT 1",
    )
    .bind(office.as_str())
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .fetch_optional(conn)
    .await?;
    Ok(found.is_some())
}

/// The office stored a facility plan of the person.
pub(crate) async fn facility_plans_for(
    work: &mut Work,
    office: OfficeNumber,
    insured: InsuredKey,
) -> Result<(), Refusal> {
    set_plans_for(work, office, insured, "facility-care-plan").await
}

async fn set_plans_for(
    work: &mut Work,
    office: OfficeNumber,
    insured: InsuredKey,
    source: &str,
) -> Result<(), Refusal> {
    sqlx::query(
        "INSERT INTO plans_for (office, insurer, number, source, active, since)
         VALUES ($1, $2, $3, $4, 1, $5) ON CONFLICT (office, insurer, number, source)
         DO UPDATE SET active = 1, since = excluded.since",
    )
    .bind(office.as_str())
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(source)
    .bind(int(clock::now_s()))
    .execute(work.conn())
    .await?;
    work.publish_new(&Fact::PlansFor { office, insured, active: true }).await
}

/// Another 居宅介護支援事業所 took over: the one before no longer plans by its 届出. What it plans as a
/// facility stays.
async fn end_other_planners(
    work: &mut Work,
    office: OfficeNumber,
    insured: InsuredKey,
) -> Result<(), Refusal> {
    let others: Vec<String> = sqlx::query_scalar(
        "UPDATE plans_for SET active = 0 WHERE insurer = $1 AND number = $2 AND office <> $3
         AND source = 'care-plan-request' AND active = 1 RETURNING office",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(office.as_str())
    .fetch_all(work.conn())
    .await?;
    for other in others {
        let office = parsed(&other)?;
        let active = plans_for(work.conn(), office, insured).await?;
        work.publish_new(&Fact::PlansFor { office, insured, active }).await?;
    }
    Ok(())
}

const LIST_MAX: i64 = 500;
