//! What a refused request is answered with: the one file that turns errors into HTTP.
//!
//! Handlers return a [`Refusal`]; [`finish`] turns it into a body once the request id is known.
//! Outsiders get a stable code, a sentence in Japanese and English and the request id; the chain of
//! an inner failure goes to the log only.

use std::error::Error as StdError;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use policies::problem_document::{MEDIA_TYPE, ProblemDocument};
use policies::reason::{Reason, ReasonSet};
use serde_json::{Map, Value};

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Gates that are closed in the hub's own rows; same codes as the gateway.
    Gates(ReasonSet),
    /// A refusal of the hub's own.
    Coded(Box<Coded>),
    /// Our fault: the chain is logged, the client is told nothing of it.
    Internal(Box<dyn StdError + Send + Sync>),
}

/// A refusal with a code of the hub's own.
#[derive(Debug)]
pub(crate) struct Coded {
    status: StatusCode,
    code: &'static str,
    message: String,
    message_ja: String,
    more: Map<String, Value>,
}

impl Refusal {
    /// A refusal with a code of the hub's own.
    pub(crate) fn coded(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        message_ja: impl Into<String>,
    ) -> Self {
        let (message, message_ja) = (message.into(), message_ja.into());
        Self::Coded(Box::new(Coded { status, code, message, message_ja, more: Map::new() }))
    }

    /// Adds a field to the body of a coded refusal.
    pub(crate) fn with(mut self, field: &str, value: Value) -> Self {
        if let Self::Coded(coded) = &mut self {
            coded.more.insert(field.to_owned(), value);
        }
        self
    }

    /// The request did not come through the gateway, or not as the gateway permitted it.
    pub(crate) fn permit(what: impl std::fmt::Display) -> Self {
        Self::coded(
            StatusCode::FORBIDDEN,
            "permit_required",
            format!("requests are accepted from the gateway only: {what}"),
            "ゲートウェイを経由した要求のみ受け付けます。",
        )
    }

    /// A body or parameter that is not understood.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::coded(
            StatusCode::UNPROCESSABLE_ENTITY,
            "body_invalid",
            message,
            "要求の内容が正しくありません。項目をご確認ください。",
        )
    }

    /// There is no such operation or row.
    pub(crate) fn missing(code: &'static str, message: &str, message_ja: &str) -> Self {
        Self::coded(StatusCode::NOT_FOUND, code, message, message_ja)
    }

    /// The stable code, as it stands in records.
    pub(crate) fn code(&self) -> String {
        match self {
            Self::Gates(reasons) => first_reason(*reasons).as_str().to_owned(),
            Self::Coded(coded) => coded.code.to_owned(),
            Self::Internal(_) => INTERNAL.to_owned(),
        }
    }

    /// Every code, as the gateway records them.
    fn codes(&self) -> String {
        match self {
            Self::Gates(reasons) => {
                reasons.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(",")
            }
            Self::Coded(_) | Self::Internal(_) => self.code(),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Gates(reasons) => StatusCode::from_u16(first_reason(*reasons).status())
                .unwrap_or(StatusCode::FORBIDDEN),
            Self::Coded(coded) => coded.status,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn document(&self, request_id: &str) -> ProblemDocument {
        let status = self.status().as_u16();
        match self {
            Self::Gates(reasons) => ProblemDocument::of(*reasons, status, request_id),
            Self::Coded(coded) => {
                let words = (&*coded.message, &*coded.message_ja);
                let document = ProblemDocument::coded(status, coded.code, words, request_id);
                document.with(coded.more.clone())
            }
            Self::Internal(_) => ProblemDocument::coded(status, INTERNAL, FAILURE, request_id),
        }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::Gates(reason.into())
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(Box::new(error))
    }
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        Self::Internal(Box::new(error))
    }
}

impl From<audit_log::Error> for Refusal {
    fn from(error: audit_log::Error) -> Self {
        tracing::error!(error = %chain(&error), "audit record could not be written");
        Reason::AuditUnavailable.into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        match response.status() {
            StatusCode::SERVICE_UNAVAILABLE => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // What is left of the body is not waited for.
            StatusCode::REQUEST_TIMEOUT => {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// Gives a refused response its body, and the gateway the codes; logs an inner failure.
pub(crate) fn finish(mut response: Response, request_id: &str) -> Response {
    let Some(refusal) = response.extensions_mut().remove::<Arc<Refusal>>() else {
        return response;
    };
    if let Refusal::Internal(error) = &*refusal {
        tracing::error!(request_id, error = %chain(error.as_ref()), "request failed");
    }
    let problem = HeaderValue::from_static(MEDIA_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, problem);
    if let Ok(codes) = HeaderValue::from_str(&refusal.codes()) {
        response.headers_mut().insert(REFUSED, codes);
    }
    *response.body_mut() = Body::from(refusal.document(request_id).to_json());
    response
}

/// An error and its sources on one line.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

fn first_reason(reasons: ReasonSet) -> Reason {
    reasons.told().iter().next().unwrap_or(Reason::NotShared)
}

/// Tells the gateway why a permitted request was refused; it does not reach the client.
const REFUSED: &str = "sekisho-refused";
const INTERNAL: &str = "hub_failure";
const FAILURE: (&str, &str) = (
    "the hub could not do this; try again, or give the operator the request id",
    "処理できませんでした。再度お試しいただくか、要求番号を運用者にお伝えください。",
);
