//! The municipality's inbox: what came in for it, its content, and its receipt.
//!
//! Invariants: an inbox is read and received by its own municipality only; a document or notice
//! that is delivered from it stands in the person's access history; a receipt stands once it was
//! given.
//! The delivery to municipal systems by file, in the ministry's interface layouts, belongs here.

use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use policies::document::DocumentKind;
use policies::identity::{InsuredKey, InsurerNumber};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::access_history::Subject;
use crate::body::{OptionalJsonBody, next_page, query};
use crate::declared::About;
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, parsed, seconds};
use crate::work::Work;
use crate::{Hub, access_history, clock, notices};

/// What comes into the inbox: a document or a notice.
pub(crate) struct NewItem {
    pub(crate) kind: &'static str,
    pub(crate) document: Option<i64>,
    pub(crate) notice: Option<i64>,
}

/// Puts an item into the inbox of the person's insurer.
pub(crate) async fn put(
    work: &mut Work,
    permit: &Permitted,
    insured: InsuredKey,
    item: &NewItem,
    now: u64,
) -> Result<(), Refusal> {
    sqlx::query(
        "INSERT INTO inbox (insurer, number, kind, sender, at, document, notice)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(item.kind)
    .bind(permit.claims().principal.party())
    .bind(int(now))
    .bind(item.document)
    .bind(item.notice)
    .execute(work.conn())
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Item {
    id: i64,
    insurer: String,
    number: String,
    kind: String,
    sender: String,
    at: i64,
    document: Option<i64>,
    notice: Option<i64>,
    received_at: Option<i64>,
}

impl Item {
    fn print(&self) -> Value {
        json!({
            "id": self.id,
            "kind": self.kind,
            "insured": { "insurer": self.insurer, "number": self.number },
            "from": self.sender,
            "at": clock::rfc3339(seconds(self.at)),
            "received_at": self.received_at.map(|at| clock::rfc3339(seconds(at))),
        })
    }

    fn insured(&self) -> Result<InsuredKey, Refusal> {
        Ok(InsuredKey { insurer: parsed(&self.insurer)?, number: parsed(&self.number)? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InboxPage {
    #[serde(default)]
    after: i64,
}

/// `GET /v1/municipalities/{insurer}/inbox[?after=ID]`: oldest first, [`LIST_MAX`] a page.
pub(crate) async fn list(
    State(hub): State<Hub>,
    permit: Permitted,
    uri: Uri,
) -> Result<Response, Refusal> {
    let insurer = permit.own_insurer()?;
    let page: InboxPage = query(&uri)?;
    let mut tx = permit.read(&hub).await?;
    let items: Vec<Item> = sqlx::query_as(
        "SELECT id, insurer, number, kind, sender, at, document, notice, received_at FROM inbox
         WHERE insurer = $1 AND id > $2 ORDER BY id LIMIT $3",
    )
    .bind(insurer.as_str())
    .bind(page.after)
    .bind(LIST_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let next = next_page(&items, LIST_MAX, |item| item.id);
    let items: Vec<Value> = items.iter().map(Item::print).collect();
    Ok(axum::Json(json!({ "items": items, "next": next })).into_response())
}

/// `GET /v1/municipalities/{insurer}/inbox/{item}`: the item with its content. A document that is
/// delivered so stands in the person's access history like any other.
pub(crate) async fn view(State(hub): State<Hub>, permit: Permitted) -> Result<Response, Refusal> {
    let (insurer, id) = (permit.own_insurer()?, permit.number("item")?);
    let mut tx = permit.write(&hub).await?;
    let item = item(tx.conn(), insurer, id).await?;
    let (kind, content) = match (item.document, item.notice) {
        (Some(document), _) => {
            let (kind, content) = deliver_document(tx.conn(), &permit, &item, document).await?;
            (Some(kind), Some(content))
        }
        (None, Some(notice)) => {
            (None, Some(deliver_notice(tx.conn(), &permit, &item, notice).await?))
        }
        (None, None) => (None, None),
    };
    tx.commit().await?;
    let about = About::documents(item.insured()?, kind);
    about.answer(axum::Json(WithContent { item: item.print(), content }))
}

/// An item with what came in, as it came.
#[derive(Serialize)]
struct WithContent {
    #[serde(flatten)]
    item: Value,
    content: Option<Box<RawValue>>,
}

/// The address in a 届出 is the person's: who read it stands in the access history.
async fn deliver_notice(
    conn: &mut SqliteConnection,
    permit: &Permitted,
    item: &Item,
    notice: i64,
) -> Result<Box<RawValue>, Refusal> {
    let content = notices::care_plan_request(conn, notice).await?;
    let (insured, now) = (item.insured()?, clock::now_s());
    access_history::record(conn, permit.claims(), insured, Subject::CarePlanRequest(notice), now)
        .await?;
    Ok(to_raw_value(&content)?)
}

async fn deliver_document(
    conn: &mut SqliteConnection,
    permit: &Permitted,
    item: &Item,
    document: i64,
) -> Result<(DocumentKind, Box<RawValue>), Refusal> {
    let (kind, version, content): (String, i64, String) =
        sqlx::query_as("SELECT kind, version, content FROM documents WHERE id = $1")
            .bind(document)
            .fetch_one(&mut *conn)
            .await?;
    let kind: DocumentKind = parsed(&kind)?;
    let (insured, now) = (item.insured()?, clock::now_s());
    let subject = Subject::Document(kind, version);
    access_history::record(conn, permit.claims(), insured, subject, now).await?;
    Ok((kind, RawValue::from_string(content)?))
}

/// The body of `POST …/receipt`; `accepted` is for a 届出 only.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Receipt {
    #[serde(default)]
    accepted: Option<bool>,
}

/// `POST …/inbox/{item}/receipt`: again and again the same answer.
pub(crate) async fn receive(
    State(hub): State<Hub>,
    permit: Permitted,
    OptionalJsonBody(receipt): OptionalJsonBody<Receipt>,
) -> Result<Response, Refusal> {
    let mut work = Work::permitted(&hub, &permit, "").await?;
    let result = take_over(&mut work, &permit, &receipt).await;
    let (insured, item) = work.finish(result).await?;
    About::person(insured).answer(axum::Json(item))
}

async fn take_over(
    work: &mut Work,
    permit: &Permitted,
    receipt: &Receipt,
) -> Result<(InsuredKey, Value), Refusal> {
    let (insurer, id, now) = (permit.own_insurer()?, permit.number("item")?, clock::now_s());
    let mut found = item(work.conn(), insurer, id).await?;
    if found.received_at.is_none() {
        sqlx::query("UPDATE inbox SET received_at = $1, received_by = $2 WHERE id = $3")
            .bind(int(now))
            .bind(permit.claims().principal.path())
            .bind(id)
            .execute(work.conn())
            .await?;
        found.received_at = Some(int(now));
        work.effect(format!("inbox item {id} received"));
    }
    match (found.notice, receipt.accepted) {
        (Some(notice), Some(accepted)) => {
            notices::judge(work, notice, accepted, found.insured()?).await?
        }
        (None, Some(_)) => return Err(Refusal::body("`accepted` belongs to a care-plan request")),
        (Some(_) | None, None) => {}
    }
    let mut answer = found.print();
    if let (Value::Object(fields), Some(accepted)) = (&mut answer, receipt.accepted) {
        fields.insert("accepted".to_owned(), accepted.into());
    }
    Ok((found.insured()?, answer))
}

async fn item(
    conn: &mut SqliteConnection,
    insurer: InsurerNumber,
    id: i64,
) -> Result<Item, Refusal> {
    let found: Option<Item> = sqlx::query_as(
        "SELECT id, insurer, number, kind, sender, at, document, notice, received_at FROM inbox
         WHERE insurer = $1 AND id = $2",
    )
    .bind(insurer.as_str())
    .bind(id)
    .fetch_optional(conn)
    .await?;
    found.ok_or_else(|| {
        Refusal::missing(
            "no_inbox_item",
            "the inbox has no item with this id",
            "この番号の受信項目はありません。",
        )
    })
}

const LIST_MAX: i64 = 500;
