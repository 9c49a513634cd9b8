//! Who looked at a person's documents, 届出 and certification, who tried to, and how it ended.
//!
//! ```text
//!  hub's own rows (one a delivery) ──┐
//!  gateway's decisions ──────────────┼─► one entry a request, newest first ─► words ─► the person
//!  gateway's counted denials ────────┘
//! ```
//!
//! Invariants: every delivery writes a row in the transaction that reads the document, so that
//! nothing is delivered without one, whether or not the gateway's record of it is indexed yet. A
//! request that has such a row stands in the list at the place of that row, any other at that of
//! the gateway's record; so an index that lags, or is made anew, moves nothing. The list of one
//! pager is that of the moment of its first page: rows that come later do not shift it. Members of
//! staff are named by their job only.

mod entry;
mod words;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use policies::document::DocumentKind;
use policies::identity::InsuredKey;
use policies::permit::PermitClaims;
use serde::Deserialize;
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use crate::body::query;
use crate::declared::About;
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::int;
use crate::{Hub, clock, gateway_records, insured};
use entry::{Entry, Place, Source};

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
            Self::CarePlanRequest(_) => CARE_PLAN_REQUEST,
            Self::Certification(_) => CERTIFICATION,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    before: Option<String>,
}

/// `GET …/access-history[?before=CURSOR]`: newest first, [`PAGE_MAX`] a page.
pub(crate) async fn list(
    State(hub): State<Hub>,
    permit: Permitted,
    uri: Uri,
) -> Result<Response, Refusal> {
    let insured = permit.insured()?;
    let page: Page = query(&uri)?;
    let before = match &page.before {
        Some(text) => Some(Cursor::parse(text).ok_or_else(no_such_page)?),
        None => None,
    };
    let is_current = hub.access_index.is_current();
    let mut tx = permit.read(&hub).await?;
    insured::require(&mut tx, permit.claims(), insured, clock::now_s()).await?;
    let cursor = match before {
        Some(cursor) => cursor,
        None => Cursor::first(&mut tx, insured).await?,
    };
    let pseudonym = hub.pseudonym.of(&insured.to_string());
    let (entries, next) = read_page(&mut tx, insured, &pseudonym, cursor).await?;
    let complete = is_current && !gateway_records::is_rebuilding(&mut tx).await?;
    let accesses: Vec<_> = entries.iter().map(Entry::print).collect();
    let answer = json!({ "accesses": accesses, "next": next, "complete": complete });
    About::person(insured).answer(axum::Json(answer))
}

/// The newest entries before `cursor`, and where the next page begins.
async fn read_page(
    conn: &mut SqliteConnection,
    insured: InsuredKey,
    pseudonym: &str,
    cursor: Cursor,
) -> Result<(Vec<Entry>, Option<String>), Refusal> {
    // One more than a page of each: then those of the page are among them, and so is the next one.
    let rows = i64::try_from(PAGE_MAX + 1).unwrap_or(i64::MAX);
    let mut entries = entry::deliveries(conn, insured, pseudonym, cursor, rows).await?;
    entries.extend(entry::decisions(conn, insured, pseudonym, cursor, rows).await?);
    entries.extend(entry::counted(conn, pseudonym, cursor, rows).await?);
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.place));
    let has_more = entries.len() > PAGE_MAX;
    entries.truncate(PAGE_MAX);
    let last = entries.last().filter(|_| has_more);
    let next = last.map(|entry| Cursor { before: entry.place, ..cursor }.print());
    Ok((entries, next))
}

/// Where a page begins, in the list of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The page holds what stands before this place.
    before: Place,
    /// The person's last delivery at that moment.
    last_delivery: i64,
}

impl Cursor {
    async fn first(conn: &mut SqliteConnection, insured: InsuredKey) -> Result<Self, sqlx::Error> {
        let last_delivery: Option<i64> =
            sqlx::query_scalar("SELECT MAX(id) FROM accesses WHERE insurer = $1 AND number = $2")
                .bind(insured.insurer.as_str())
                .bind(insured.number.as_str())
                .fetch_one(conn)
                .await?;
        Ok(Self { before: Place::LAST, last_delivery: last_delivery.unwrap_or(0) })
    }

    /// The form that the client gives back.
    fn print(self) -> String {
        let Place { at_ms, source, id } = self.before;
        let source = source as u8;
        URL_SAFE_NO_PAD.encode(format!("1.{at_ms}.{source}.{id}.{}", self.last_delivery))
    }

    /// Reads exactly what [`Cursor::print`] printed.
    fn parse(text: &str) -> Option<Self> {
        if text.len() > CURSOR_BYTES_MAX {
            return None;
        }
        let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = plain.split('.');
        let mut number = || parts.next()?.parse::<i64>().ok().filter(|number| *number >= 0);
        let (1, at_ms, source) = (number()?, number()?, Source::from_number(number()?)?) else {
            return None;
        };
        let before = Place { at_ms, source, id: number()? };
        let cursor = Self { before, last_delivery: number()? };
        (cursor.print() == text).then_some(cursor)
    }
}

fn no_such_page() -> Refusal {
    Refusal::coded(
        StatusCode::UNPROCESSABLE_ENTITY,
        "query_invalid",
        "`before` is not the `next` of an earlier page: begin again without it",
        "`before` が正しくありません。前のページの `next` の値をそのまま指定するか、最初のページからやり直してください。",
    )
}

/// A 届出 in the access history.
pub(crate) const CARE_PLAN_REQUEST: &str = "care-plan-request";
/// Progress and result of a certification in the access history.
pub(crate) const CERTIFICATION: &str = "certification";
const PAGE_MAX: usize = 1_000;
const CURSOR_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_only_what_was_printed() {
        let before = Place { at_ms: 1_775_001_600_000, source: Source::Decision, id: 7 };
        let cursor = Cursor { before, last_delivery: 12 };
        let text = cursor.print();
        assert_eq!(Cursor::parse(&text), Some(cursor));
        for plain in
            ["", "1", "1.2.3", "1.5.9.1.1", "2.5.1.1.1", "1.5.1.-1.1", "1.5.1.1.1.1", "1.05.1.1.1"]
        {
            assert_eq!(Cursor::parse(&URL_SAFE_NO_PAD.encode(plain)), None, "{plain}");
        }
        for text in ["2", "x", "%", &format!("{text}A"), &"A".repeat(1_000)] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
