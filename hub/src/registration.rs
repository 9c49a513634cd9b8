//! 担当事業所: which office is registered for which person, since when and until when.
//!
//! The newest row of a pair is the one in force. A registration follows from a check of the
//! person's card, which belongs in identity_check.rs; without that check the operator records one
//! with a reason, in a demo only, marked `method = operator`.

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use policies::feed::Fact;
use policies::identity::{InsuredKey, OfficeNumber};
use policies::reason::{Reason, ReasonSet};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::body::{JsonBody, Text, next_page, query};
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, seconds};
use crate::work::{Deed, Work, person};
use crate::{Hub, clock};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    #[serde(default)]
    after: i64,
}

/// `GET /v1/registrations`: the persons of the office that asks (利用者一覧), [`PAGE_MAX`] a page.
pub(crate) async fn list(
    State(hub): State<Hub>,
    permit: Permitted,
    uri: Uri,
) -> Result<Response, Refusal> {
    let office = permit.office()?;
    let page: Page = query(&uri)?;
    let mut tx = permit.read(&hub).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, insurer, number, from_s, until_s, ended_s FROM registrations r
         WHERE office = $1 AND id > $2 AND id = (SELECT MAX(id) FROM registrations n
           WHERE n.office = r.office AND n.insurer = r.insurer AND n.number = r.number)
         ORDER BY id LIMIT $3",
    )
    .bind(office.as_str())
    .bind(page.after)
    .bind(PAGE_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let now = clock::now_s();
    let next = next_page(&rows, PAGE_MAX, |row| row.0);
    let registrations: Vec<Value> = rows.iter().map(|row| print(row, now)).collect();
    Ok(axum::Json(json!({ "registrations": registrations, "next_after": next })).into_response())
}

/// What the operator asks for with `POST /registrations`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRegistration {
    office: OfficeNumber,
    insured: InsuredKey,
    #[serde(default)]
    until: Option<String>,
    reason: Text<200>,
    operator: Text<64>,
    #[serde(default)]
    wait: bool,
}

/// `POST /registrations` of the admin socket: only in a demo, with a reason.
pub(crate) async fn record_by_operator(
    State(hub): State<Hub>,
    JsonBody(new): JsonBody<NewRegistration>,
) -> Result<Response, Refusal> {
    let detail = format!("method=operator office={} reason={}", new.office, new.reason.as_str());
    let deed =
        Deed::by_operator(new.operator.as_str(), "registrations.record", person(&hub, new.insured));
    let mut work = Work::begin(&hub, deed.detail(detail.replace('\n', " "))).await?;
    let result = record(&hub, &mut work, &new).await;
    let ((), seq) = work.finish_with_seq(result).await?;
    let answer = hub.gateways.acknowledgement(seq.unwrap_or(hub.store.seq()), new.wait).await;
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

async fn record(hub: &Hub, work: &mut Work, new: &NewRegistration) -> Result<(), Refusal> {
    if !hub.limits.demo {
        return Err(Refusal::coded(
            StatusCode::FORBIDDEN,
            "not_in_production",
            "an operator records registrations in a demo only; \
             in production a registration follows from the check of the person's card",
            "本番環境では、運用者による担当事業所の登録はできません。カードによる本人確認が必要です。",
        ));
    }
    let now = clock::now_s();
    let until = parse_until(new.until.as_deref(), now)?;
    sqlx::query(
        "INSERT INTO registrations (office, insurer, number, from_s, until_s, ended_s, method,
         reason, operator, recorded_at) VALUES ($1, $2, $3, $4, $5, NULL, 'operator', $6, $7, $8)",
    )
    .bind(new.office.as_str())
    .bind(new.insured.insurer.as_str())
    .bind(new.insured.number.as_str())
    .bind(int(now))
    .bind(until.map(int))
    .bind(new.reason.as_str())
    .bind(new.operator.as_str())
    .bind(int(now))
    .execute(work.conn())
    .await?;
    work.effect("registration recorded, method=operator");
    let (office, insured) = (new.office, new.insured);
    work.publish(&Fact::Registration { office, insured, from: now, until, ended: None }).await
}

/// What the operator asks for with `POST /registrations/end`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndOfRegistration {
    office: OfficeNumber,
    insured: InsuredKey,
    reason: Text<200>,
    operator: Text<64>,
    #[serde(default)]
    wait: bool,
}

/// `POST /registrations/end` of the admin socket.
pub(crate) async fn end_by_operator(
    State(hub): State<Hub>,
    JsonBody(end): JsonBody<EndOfRegistration>,
) -> Result<Response, Refusal> {
    let detail = format!("office={} reason={}", end.office, end.reason.as_str());
    let deed =
        Deed::by_operator(end.operator.as_str(), "registrations.end", person(&hub, end.insured));
    let mut work = Work::begin(&hub, deed.detail(detail.replace('\n', " "))).await?;
    let result = end_newest(&mut work, end.office, end.insured).await;
    let ((), seq) = work.finish_with_seq(result).await?;
    let answer = hub.gateways.acknowledgement(seq.unwrap_or(hub.store.seq()), end.wait).await;
    Ok(axum::Json(answer).into_response())
}

async fn end_newest(
    work: &mut Work,
    office: OfficeNumber,
    insured: InsuredKey,
) -> Result<(), Refusal> {
    let Some((id, _, _, from, until, None)) = newest(work.conn(), office, insured).await? else {
        return Err(Refusal::missing(
            "no_registration",
            "the office has no registration for this person that could be ended",
            "終了できる担当事業所の登録がありません。",
        ));
    };
    let now = clock::now_s();
    sqlx::query("UPDATE registrations SET ended_s = $1 WHERE id = $2")
        .bind(int(now))
        .bind(id)
        .execute(work.conn())
        .await?;
    work.effect("registration ended");
    let (from, until) = (seconds(from), until.map(seconds));
    work.publish(&Fact::Registration { office, insured, from, until, ended: Some(now) }).await
}

/// Why the office is not registered for the person now; empty if it is.
pub(crate) async fn missing(
    conn: &mut SqliteConnection,
    office: OfficeNumber,
    insured: InsuredKey,
    now: u64,
) -> Result<ReasonSet, Refusal> {
    let Some((_, _, _, from, until, ended)) = newest(conn, office, insured).await? else {
        return Ok(Reason::NotRegistered.into());
    };
    if ended.is_some() || until.is_some_and(|until| until < int(now)) {
        return Ok(Reason::RegistrationLapsed.into());
    }
    Ok(if from > int(now) { Reason::NotRegistered.into() } else { ReasonSet::EMPTY })
}

async fn newest(
    conn: &mut SqliteConnection,
    office: OfficeNumber,
    insured: InsuredKey,
) -> Result<Option<Row>, Refusal> {
    Ok(sqlx::query_as(
        "SELECT id, insurer, number, from_s, until_s, ended_s FROM registrations
         WHERE office = $1 AND insurer = $2 AND number = $3 ORDER BY id DESC LIMIT 1",
    )
    .bind(office.as_str())
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .fetch_optional(conn)
    .await?)
}

fn parse_until(text: Option<&str>, now: u64) -> Result<Option<u64>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let until = clock::end_of(text).ok_or_else(|| {
        Refusal::body("`until` is neither a day `YYYY-MM-DD` nor an RFC 3339 instant")
    })?;
    if until <= now {
        return Err(Refusal::body("`until` is in the past"));
    }
    Ok(Some(until))
}

fn print((_, insurer, number, from, until, ended): &Row, now: u64) -> Value {
    let lapsed = until.is_some_and(|until| until < int(now));
    let state = match (ended, lapsed) {
        (Some(_), _) => "ended",
        (None, true) => "lapsed",
        (None, false) => "active",
    };
    json!({
        "insured": { "insurer": insurer, "number": number },
        "from": clock::rfc3339(seconds(*from)),
        "until": until.map(|until| clock::print_end(seconds(until))),
        "ended": ended.map(|ended| clock::rfc3339(seconds(ended))),
        "state": state,
    })
}

/// id, insurer, number, from, until, ended.
type Row = (i64, String, String, i64, Option<i64>, Option<i64>);

const PAGE_MAX: i64 = 1_000;
