//! The staff token: who at the office is asking.
//!
//! A program sends it as a bearer token, a browser in a cookie; from a cookie it counts only with
//! the CSRF token for whatever is not a `GET` (see [`policies::browser_session`]).
//!
//! The hub mints ES256 tokens bound to the terminal's certificate (RFC 8705 §3.1 `cnf.x5t#S256`).
//! A P-256 check costs more than a whole keep-alive request, so a token that verified is remembered
//! by its SHA-256 in a bounded cache; expiry, the signing key's state, the session's state and the
//! binding are looked at on every request.
//!
//! Invariants: [`VerifiedStaff`] has one constructor; only tokens whose signature verified are
//! remembered; a token is never logged.

use aws_lc_rs::digest;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use policies::browser_session::{self, CSRF_HEADER, STAFF_COOKIE};
use policies::facts::Facts;
use policies::identity::{Identity, Job, OfficeNumber, Staff};
use policies::reason::Reason;
use prometheus::IntCounter;
use quick_cache::sync::Cache;
use serde::Deserialize;

use crate::client_cert::VerifiedClient;
use crate::metrics::Metrics;

/// Tokens remembered at once.
const TOKENS_MAX: usize = 50_000;

/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 4_096;

const ISSUER: &str = "sekisho-hub";

#[derive(Debug, Clone, Deserialize)]
struct Claims {
    sub: String,
    office: OfficeNumber,
    job: Job,
    sid: String,
    exp: u64,
    cnf: Confirmation,
    /// Of the CSRF token, where the token was made for a cookie.
    csrf: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Confirmation {
    #[serde(rename = "x5t#S256")]
    certificate_sha256: String,
}

/// A token whose signature verified, as it is remembered.
#[derive(Debug, Clone)]
struct Token {
    kid: String,
    staff: Staff,
    expires: u64,
    certificate_sha256: String,
    csrf_digest: Option<String>,
}

/// A member of staff whose token was verified for this client and this moment.
#[derive(Debug)]
pub struct VerifiedStaff(Staff);

impl VerifiedStaff {
    /// Who it is.
    pub fn staff(&self) -> &Staff {
        &self.0
    }
}

/// Verifies staff tokens.
pub struct StaffTokens {
    verified: Cache<[u8; 32], Token>,
    hits: IntCounter,
    misses: IntCounter,
}

impl StaffTokens {
    /// Remembers no token yet.
    pub fn new(metrics: &Metrics) -> Self {
        let counter = |result| metrics.staff_tokens.with_label_values(&[result]);
        Self { verified: Cache::new(TOKENS_MAX), hits: counter("hit"), misses: counter("miss") }
    }

    /// Verifies the request's staff token for `client` at `now` (Unix seconds).
    ///
    /// # Errors
    /// The one [`Reason`] why the token does not count.
    pub fn verify(
        &self,
        (method, headers): (&str, &HeaderMap),
        client: &VerifiedClient,
        facts: &Facts,
        now: u64,
    ) -> Result<VerifiedStaff, Reason> {
        let presented = Presented::of(headers)?;
        let token = self.signed_token(presented.text(), facts)?;
        if facts.staff_key(&token.kid).is_none_or(|key| key.retired) {
            return Err(Reason::StaffTokenInvalid);
        }
        check_binding(&token, client)?;
        if token.expires <= now {
            return Err(Reason::StaffTokenExpired);
        }
        if facts.session_ended(&token.staff.session) {
            return Err(Reason::StaffSessionEnded);
        }
        if matches!(presented, Presented::Cookie(_)) {
            check_csrf(&token, method, headers)?;
        }
        Ok(VerifiedStaff(token.staff))
    }

    fn signed_token(&self, text: &str, facts: &Facts) -> Result<Token, Reason> {
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let key: [u8; 32] = hash.as_ref().try_into().map_err(|_| Reason::StaffTokenInvalid)?;
        if let Some(token) = self.verified.get(&key) {
            self.hits.inc();
            return Ok(token);
        }
        self.misses.inc();
        let token = check_signature(text, facts).ok_or(Reason::StaffTokenInvalid)?;
        self.verified.insert(key, token.clone());
        Ok(token)
    }
}

/// A token, by the way that it came.
enum Presented<'h> {
    Bearer(&'h str),
    Cookie(&'h str),
}

impl<'h> Presented<'h> {
    /// The one token of the request.
    fn of(headers: &'h HeaderMap) -> Result<Self, Reason> {
        let cookies = headers.get_all(COOKIE).into_iter().map(http::HeaderValue::as_bytes);
        let cookie = browser_session::cookie(cookies, STAFF_COOKIE)
            .map_err(|_| Reason::StaffTokenInvalid)?;
        match cookie {
            None => bearer(headers).map(Self::Bearer),
            Some(token) if !headers.contains_key(AUTHORIZATION) => Ok(Self::Cookie(token)),
            Some(_) => Err(Reason::StaffTokenInvalid),
        }
    }

    fn text(&self) -> &'h str {
        match self {
            Self::Bearer(text) | Self::Cookie(text) => text,
        }
    }
}

/// A browser's request was made by the page that logged in. `GET` and `HEAD` change nothing, and
/// their answers cannot be read from another site.
fn check_csrf(token: &Token, method: &str, headers: &HeaderMap) -> Result<(), Reason> {
    // A token that was made for a program has no place in a cookie.
    let digest = token.csrf_digest.as_deref().ok_or(Reason::StaffTokenInvalid)?;
    if matches!(method, "GET" | "HEAD") {
        return Ok(());
    }
    // Every browser of today says where a request comes from; one that does not is no reason.
    let own = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin");
    let mut values = headers.get_all(CSRF_HEADER).iter();
    let brought = values.next().filter(|_| values.next().is_none());
    let brought = brought.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fits = browser_session::same(&browser_session::csrf_digest(brought), digest);
    if own && fits { Ok(()) } else { Err(Reason::CsrfTokenInvalid) }
}

/// Exactly one `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Result<&str, Reason> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Reason::StaffTokenMissing)?;
    let text = value.to_str().map_err(|_| Reason::StaffTokenInvalid)?;
    let (scheme, token) = text.split_once(' ').ok_or(Reason::StaffTokenInvalid)?;
    let fits = scheme.eq_ignore_ascii_case("bearer") && token.len() <= TOKEN_BYTES_MAX;
    if fits && values.next().is_none() { Ok(token) } else { Err(Reason::StaffTokenInvalid) }
}

fn check_signature(text: &str, facts: &Facts) -> Option<Token> {
    let header = jsonwebtoken::decode_header(text).ok()?;
    let kid = header.kid?;
    let key = facts.staff_key(&kid)?;
    let key = DecodingKey::from_ec_components(&key.x, &key.y).ok()?;
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_issuer(&[ISSUER]);
    rules.set_required_spec_claims(&["exp", "iss", "sub"]);
    rules.validate_aud = false;
    // Expiry is looked at on every request, of remembered tokens too.
    rules.validate_exp = false;
    let claims = jsonwebtoken::decode::<Claims>(text, &key, &rules).ok()?.claims;
    Some(Token {
        kid,
        staff: Staff {
            id: claims.sub,
            office: claims.office,
            job: claims.job,
            session: claims.sid,
        },
        expires: claims.exp,
        certificate_sha256: claims.cnf.certificate_sha256,
        csrf_digest: claims.csrf,
    })
}

fn check_binding(token: &Token, client: &VerifiedClient) -> Result<(), Reason> {
    let same_office = matches!(
        client.identity(),
        Identity::Office { number, .. } if *number == token.staff.office
    );
    if !same_office {
        return Err(Reason::StaffTokenInvalid);
    }
    if token.certificate_sha256 != client.sha256() {
        return Err(Reason::TokenNotBound);
    }
    Ok(())
}
