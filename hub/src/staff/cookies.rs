//! The tokens of a login on their way to the client: in the answer's body for a program, in cookies
//! for a page, and from there back at a refresh.
//!
//! Invariant: the answer to a page holds neither of the tokens, only the CSRF token that its own
//! scripts send with whatever changes something ([`policies::browser_session`]).

use axum::http::header::{CACHE_CONTROL, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{AppendHeaders, IntoResponse, Response};
use policies::browser_session::{
    CSRF_COOKIE, CSRF_HEADER, REFRESH_COOKIE, REFRESH_HEADER, STAFF_COOKIE, csrf_digest,
    csrf_token, same,
};
use policies::reason::Reason;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::body::Secret;
use crate::refusal::Refusal;

/// How the client keeps its tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Form {
    /// It gets them in the answer.
    #[default]
    Bearer,
    /// A browser keeps them, out of its scripts' sight.
    Cookie,
}

impl Form {
    /// What the staff token says of the CSRF token that must come with it.
    pub(super) fn csrf_digest(self, refresh_token: &str) -> Option<String> {
        (self == Self::Cookie).then(|| csrf_digest(&csrf_token(refresh_token)))
    }
}

/// The tokens of a login or refresh.
pub(super) struct Pair {
    pub(super) form: Form,
    pub(super) access_token: Zeroizing<String>,
    pub(super) refresh_token: Zeroizing<String>,
    /// Seconds.
    pub(super) expires_in: u64,
    /// Seconds.
    pub(super) refresh_expires_in: u64,
    /// Who logged in.
    pub(super) staff: Value,
}

impl IntoResponse for Pair {
    fn into_response(self) -> Response {
        let no_store = [(CACHE_CONTROL, "no-store")];
        let mut answer = json!({
            "expires_in": self.expires_in,
            "refresh_expires_in": self.refresh_expires_in,
            "staff": self.staff,
        });
        match self.form {
            Form::Bearer => {
                answer["token_type"] = "Bearer".into();
                answer["access_token"] = self.access_token.as_str().into();
                answer["refresh_token"] = self.refresh_token.as_str().into();
                (no_store, axum::Json(answer)).into_response()
            }
            Form::Cookie => {
                let csrf = csrf_token(&self.refresh_token);
                answer["token_type"] = "Cookie".into();
                answer["csrf_token"] = csrf.as_str().into();
                let set = AppendHeaders([
                    kept(STAFF_COOKIE, &self.access_token, self.expires_in, HTTP_ONLY),
                    kept(REFRESH_COOKIE, &self.refresh_token, self.refresh_expires_in, HTTP_ONLY),
                    kept(CSRF_COOKIE, &csrf, self.refresh_expires_in, ""),
                ]);
                (no_store, set, axum::Json(answer)).into_response()
            }
        }
    }
}

/// Has a browser forget a session; other clients have nothing to forget.
pub(super) fn cleared() -> AppendHeaders<[(HeaderName, String); 3]> {
    AppendHeaders([
        kept(STAFF_COOKIE, "", 0, HTTP_ONLY),
        kept(REFRESH_COOKIE, "", 0, HTTP_ONLY),
        kept(CSRF_COOKIE, "", 0, ""),
    ])
}

/// What keeps a cookie from scripts.
const HTTP_ONLY: &str = "; HttpOnly";

/// A cookie of this host alone, sent to it over TLS by its own pages (RFC 6265bis §4.1.3.2).
fn kept(name: &str, value: &str, seconds: u64, http_only: &str) -> (HeaderName, String) {
    let attributes = format!("Max-Age={seconds}; Path=/; Secure; SameSite=Strict{http_only}");
    (SET_COOKIE, format!("{name}={value}; {attributes}"))
}

/// The refresh token, from the body or from the browser's cookie, which the gateway passes as a
/// header. One from a cookie counts only with the CSRF token that belongs to it.
pub(super) fn presented(
    body: Option<Secret>,
    headers: &HeaderMap,
) -> Result<(Form, Zeroizing<String>), Refusal> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (body, text(REFRESH_HEADER)) {
        (Some(Secret(token)), None) => Ok((Form::Bearer, token)),
        (None, Some(token)) => {
            let brought = text(CSRF_HEADER).unwrap_or_default();
            if !same(brought, &csrf_token(token)) {
                return Err(Reason::CsrfTokenInvalid.into());
            }
            Ok((Form::Cookie, Zeroizing::new(token.to_owned())))
        }
        (Some(_), Some(_)) => {
            Err(Refusal::body("`refresh_token` is in the body and in a cookie: send one of them"))
        }
        (None, None) => Err(Refusal::body("`refresh_token` is missing, and there is no cookie")),
    }
}
