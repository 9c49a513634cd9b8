//! What comes in: request bodies and query parameters, each with its limit.
//!
//! INVARIANT: nothing of a body is used before it was parsed into a type whose every text and list
//! has a limit; unknown fields are refused.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::Hub;
use crate::permit_guard::Admitted;
use crate::refusal::Refusal;

/// A JSON body of at most [`SMALL_BODY_BYTES_MAX`].
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Hub> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Hub) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        require_json(&parts.headers)?;
        let bytes = read_small(&parts, body).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Refusal::body(error.to_string()))
    }
}

/// As [`JsonBody`], where an empty body means the default.
pub(crate) struct OptionalJsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned + Default> FromRequest<Hub> for OptionalJsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Hub) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let bytes = read_small(&parts, body).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        require_json(&parts.headers)?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Refusal::body(error.to_string()))
    }
}

/// The query parameters; none is the default, an unknown one is refused.
pub(crate) fn query<T: DeserializeOwned>(uri: &axum::http::Uri) -> Result<T, Refusal> {
    axum::extract::Query::try_from_uri(uri).map(|query| query.0).map_err(|_| {
        Refusal::coded(
            StatusCode::UNPROCESSABLE_ENTITY,
            "query_invalid",
            "the query has a parameter that this operation does not know, or a wrong value",
            "要求先の URL のパラメータが正しくありません。名前と値をご確認ください。",
        )
    })
}

/// The page of a list that is newest first: what stands before this id.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageBefore {
    #[serde(default)]
    before: Option<i64>,
}

impl PageBefore {
    /// The first id that is not on the page.
    pub(crate) fn before(&self) -> i64 {
        self.before.unwrap_or(i64::MAX)
    }
}

/// The id that the next page begins after, if this page is full.
pub(crate) fn next_page<T>(page: &[T], rows_max: i64, id: impl Fn(&T) -> i64) -> Option<i64> {
    let is_full = i64::try_from(page.len()).is_ok_and(|rows| rows >= rows_max);
    page.last().filter(|_| is_full).map(id)
}

/// Refuses a body that does not say it is JSON.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = given.and_then(|given| given.split(';').next()).unwrap_or("").trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::coded(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "content_type",
        "send the body as content-type: application/json",
        "本文は application/json で送信してください。",
    ))
}

/// A body of at most [`SMALL_BODY_BYTES_MAX`]; on the admin socket, which knows no permits, its
/// time begins now.
async fn read_small(parts: &Parts, body: Body) -> Result<Bytes, Refusal> {
    match parts.extensions.get::<Arc<Admitted>>() {
        Some(admitted) => admitted.read_body(body, SMALL_BODY_BYTES_MAX).await,
        None => read(body, SMALL_BODY_BYTES_MAX, Instant::now() + BODY_TIME).await,
    }
}

/// The whole body, if it is not longer than `bytes_max` and complete at `until`.
pub(crate) async fn read(body: Body, bytes_max: usize, until: Instant) -> Result<Bytes, Refusal> {
    let read = tokio::time::timeout_at(until, to_bytes(body, bytes_max)).await;
    let read = read.map_err(|_| {
        Refusal::coded(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "the body was not complete in time; send it again",
            "本文の受信が時間内に終わりませんでした。もう一度送信してください。",
        )
    })?;
    read.map_err(|_| {
        Refusal::coded(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is incomplete or longer than {bytes_max} bytes"),
            format!("本文が途中で切れているか、上限（{bytes_max} バイト）を超えています。"),
        )
    })
}

/// A text that is not empty, has at most `CHARS_MAX` characters and no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Text<const CHARS_MAX: usize>(String);

impl<const CHARS_MAX: usize> Text<CHARS_MAX> {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de, const CHARS_MAX: usize> Deserialize<'de> for Text<CHARS_MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let odd = |c: char| c.is_control() && c != '\n';
        if text.trim().is_empty() || text.chars().count() > CHARS_MAX || text.contains(odd) {
            let what =
                format!("expected a text of 1 to {CHARS_MAX} characters, no control characters");
            return Err(serde::de::Error::custom(what));
        }
        Ok(Self(text))
    }
}

/// A password or token in a body: wiped when dropped, and never printed.
pub(crate) struct Secret(pub(crate) Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// How long after the head of a request its body may take to be complete.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(20);
/// The longest body of everything that is not a document, in bytes.
pub(crate) const SMALL_BODY_BYTES_MAX: usize = 64 * 1024;
