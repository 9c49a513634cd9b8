//! Go-live: since when a municipality shares its people's documents.
//!
//! INVARIANT: a municipality without a row, or without a time in it, does not share.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use policies::feed::Fact;
use policies::identity::InsurerNumber;
use serde::Deserialize;
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use crate::body::JsonBody;
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::int;
use crate::work::Work;
use crate::{Hub, clock};

/// The body of `PUT …/sharing`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sharing {
    from: Option<String>,
}

/// `PUT /v1/municipalities/{insurer}/sharing`: since when it shares, or that it does not.
pub(crate) async fn set(
    State(hub): State<Hub>,
    permit: Permitted,
    JsonBody(sharing): JsonBody<Sharing>,
) -> Result<Response, Refusal> {
    let insurer = permit.own_insurer()?;
    let from = match sharing.from.as_deref() {
        Some(text) => Some(clock::begin_of(text).ok_or_else(|| {
            Refusal::body("`from` is neither a day `YYYY-MM-DD` nor an RFC 3339 instant")
        })?),
        None => None,
    };
    let mut work = Work::permitted(&hub, &permit, "").await?;
    let result = write(&mut work, insurer, from).await;
    work.finish(result).await?;
    let from = from.map(clock::print_begin);
    Ok(axum::Json(json!({ "insurer": insurer, "from": from })).into_response())
}

async fn write(work: &mut Work, insurer: InsurerNumber, from: Option<u64>) -> Result<(), Refusal> {
    sqlx::query(
        "INSERT INTO sharing (insurer, from_s) VALUES ($1, $2)
         ON CONFLICT (insurer) DO UPDATE SET from_s = excluded.from_s",
    )
    .bind(insurer.as_str())
    .bind(from.map(int))
    .execute(work.conn())
    .await?;
    work.effect("sharing set");
    work.publish_new(&Fact::Sharing { insurer, from }).await
}

/// Whether the municipality shares its people's documents.
pub(crate) async fn is_live(
    conn: &mut SqliteConnection,
    insurer: InsurerNumber,
    now: u64,
) -> Result<bool, Refusal> {
    let from: Option<Option<i64>> =
        sqlx::query_scalar("SELECT from_s FROM sharing WHERE insurer = $1")
            .bind(insurer.as_str())
            .fetch_optional(conn)
            .await?;
    Ok(from.flatten().is_some_and(|from| from <= int(now)))
}
