//! The operator's commands: HTTP/1.1 and JSON on a unix socket (0600, same user only).
//!
//! Offices, codes, certificates, revocation, status. This file alone turns errors into admin
//! answers:
//! `{"error":{"code","message"}}`. Every change is audited: intent, effect, outcome.
//!
//! INVARIANT: a change that has begun is finished and its outcome recorded, also when the client
//! goes away in the middle (`Admin::finish`).
//!
//! Approval by a second operator, revocation of a terminal or of a whole office, and reload belong
//! here.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use audit_log::{Actor, Object};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use policies::identity::{Identity, OfficeNumber, Serial};
use serde::{Deserialize, Serializer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::task::TaskTracker;

use crate::audit::{Trail, Work};
use crate::enrol::{self, Enrolment};
use crate::feed::Gateways;
use crate::key;
use crate::profile::Profile;
use crate::serve::chain;
use crate::store::{self, Certificate, Office, OfficeData, Reason, State as Issuance, Store};

/// What the admin routes work with.
pub struct Admin {
    /// The database.
    pub store: Store,
    /// Issues codes.
    pub enrolment: Arc<Enrolment>,
    /// Who has acknowledged what.
    pub gateways: Arc<Gateways>,
    /// The audit log.
    pub trail: Trail,
    /// How long a waiting revocation waits.
    pub wait: Duration,
    /// The changes that have begun.
    pub tasks: TaskTracker,
}

impl Admin {
    /// Runs a change in a task of its own: a client that goes away does not stop it half-way.
    async fn finish<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.tasks.spawn(change).await.unwrap_or(Err(Error::Broken))
    }
}

/// Why a command is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is not understood.
    #[error("{0}")]
    BadRequest(String),
    /// The code was refused.
    #[error(transparent)]
    Enrol(#[from] enrol::Error),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The audit log can not be written.
    #[error("the audit log cannot be written")]
    Audit(#[from] audit_log::Error),
    /// The change ended without an answer.
    #[error("the change broke off: look at the audit records")]
    Broken,
}

type Answer = Result<Response, Error>;
type Shared = State<Arc<Admin>>;

/// The admin routes.
pub fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/offices", post(add_office).get(offices))
        .route("/offices/{number}", get(office))
        .route("/offices/{number}/suspend", post(suspend))
        .route("/offices/{number}/resume", post(resume))
        .route("/codes", post(issue_code))
        .route("/certificates", get(certificates))
        .route("/certificates/{serial}", get(certificate))
        .route("/certificates/{serial}/revoke", post(revoke))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            error_response(StatusCode::NOT_FOUND, "unknown_path", "no such command")
        })
        .with_state(admin)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suspension {
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CodeRequest {
    identity: Identity,
    profile: Profile,
    #[serde(default = "default_valid_hours")]
    valid_hours: u32,
    not_after_s: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeRequest {
    reason: Reason,
    #[serde(default)]
    wait: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateFilter {
    office: Option<OfficeNumber>,
}

async fn add_office(State(admin): Shared, body: Result<Json<OfficeData>, JsonRejection>) -> Answer {
    let data = body?.0;
    if !(1..=200).contains(&data.name.chars().count()) || data.name.chars().any(char::is_control) {
        return Err(Error::BadRequest("`name`: use 1 to 200 characters".to_owned()));
    }
    if data.service_types.len() > 100 {
        return Err(Error::BadRequest("`service_types`: at most 100".to_owned()));
    }
    let (office, new) = admin.finish(add(Arc::clone(&admin), data)).await?;
    if !office.data.number.check_digit_fits() {
        let number = office.data.number;
        tracing::warn!(office = %number, "the check digit of the office number is unusual");
    }
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(office)).into_response())
}

async fn add(admin: Arc<Admin>, data: OfficeData) -> Result<(Office, bool), Error> {
    let work = work("office.add", format!("office/{}", data.number));
    admin.trail.record(&work.intent("")).await?;
    let added = admin.store.add_office(data, now()).await;
    let word = match &added {
        Ok((_, true)) => "done",
        Ok((_, false)) => "unchanged",
        Err(_) => "refused",
    };
    admin.trail.record(&work.outcome(word, "")).await?;
    Ok(added?)
}

async fn offices(State(admin): Shared) -> Answer {
    Ok(Json(json!({"offices": admin.store.offices().await?})).into_response())
}

async fn office(State(admin): Shared, number: Result<Path<OfficeNumber>, PathRejection>) -> Answer {
    let Path(number) = number?;
    Ok(Json(admin.store.office(number).await?).into_response())
}

async fn suspend(
    State(admin): Shared,
    number: Result<Path<OfficeNumber>, PathRejection>,
    body: Result<Json<Suspension>, JsonRejection>,
) -> Answer {
    let change = set_suspended(Arc::clone(&admin), number?.0, true, body?.0.reason);
    admin.finish(change).await
}

async fn resume(
    State(admin): Shared,
    number: Result<Path<OfficeNumber>, PathRejection>,
    body: Result<Json<Suspension>, JsonRejection>,
) -> Answer {
    let change = set_suspended(Arc::clone(&admin), number?.0, false, body?.0.reason);
    admin.finish(change).await
}

async fn set_suspended(
    admin: Arc<Admin>,
    number: OfficeNumber,
    to: bool,
    reason: String,
) -> Answer {
    if !(1..=200).contains(&reason.chars().count()) || reason.chars().any(char::is_control) {
        return Err(Error::BadRequest("`reason`: use 1 to 200 characters".to_owned()));
    }
    let action = if to { "office.suspend" } else { "office.resume" };
    let work = work(action, format!("office/{number}"));
    admin.trail.record(&work.intent("")).await?;
    let result = admin.store.set_suspended(number, to, &reason).await;
    let word = if result.is_ok() { "done" } else { "refused" };
    admin.trail.record(&work.outcome(word, "")).await?;
    let (office, seq) = result?;
    Ok(Json(with_seq(&office, seq)).into_response())
}

async fn issue_code(
    State(admin): Shared,
    body: Result<Json<CodeRequest>, JsonRejection>,
) -> Answer {
    let CodeRequest { identity, profile, valid_hours, not_after_s } = body?.0;
    if !(1..=VALID_HOURS_MAX).contains(&valid_hours) {
        return Err(Error::BadRequest(format!("`valid_hours`: use 1 to {VALID_HOURS_MAX}")));
    }
    let enrolment = Arc::clone(&admin.enrolment);
    let change = async move {
        let code = enrolment.issue_code(&identity, profile, not_after_s, valid_hours).await?;
        Ok(code)
    };
    let code = admin.finish(change).await?;
    let answer = json!({
        "code_id": code.id,
        "secret": code.secret,
        "expires_at": text_of(code.expires_at),
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn certificates(
    State(admin): Shared,
    filter: Result<Query<CertificateFilter>, QueryRejection>,
) -> Answer {
    let list = admin.store.certificates(filter?.0.office).await?;
    let list: Vec<Value> = list.iter().map(|certificate| describe(certificate, now())).collect();
    Ok(Json(json!({"certificates": list})).into_response())
}

async fn certificate(State(admin): Shared, serial: Result<Path<Serial>, PathRejection>) -> Answer {
    let certificate = admin.store.certificate(serial?.0).await?;
    let mut answer = describe(&certificate, now());
    if let (Some(fields), Some(der)) = (answer.as_object_mut(), &certificate.der) {
        fields.insert("certificate_pem".to_owned(), key::certificate_to_pem(der).into());
    }
    Ok(Json(answer).into_response())
}

async fn revoke(
    State(admin): Shared,
    serial: Result<Path<Serial>, PathRejection>,
    body: Result<Json<RevokeRequest>, JsonRejection>,
) -> Answer {
    let (Path(serial), Json(RevokeRequest { reason, wait })) = (serial?, body?);
    let (seq, known) = admin.finish(revoke_serial(Arc::clone(&admin), serial, reason)).await?;
    let limit = if wait { admin.wait } else { Duration::ZERO };
    let missing = admin.gateways.wait(seq, limit).await;
    let mut answer = json!({"seq": seq, "known": known, "acknowledged": missing.is_empty()});
    if let (Some(fields), false) = (answer.as_object_mut(), missing.is_empty()) {
        fields.insert("missing".to_owned(), missing.into());
    }
    Ok(Json(answer).into_response())
}

/// The sequence number of the revocation, and whether the serial is one that we issued.
async fn revoke_serial(
    admin: Arc<Admin>,
    serial: Serial,
    reason: Reason,
) -> Result<(u64, bool), Error> {
    let work = work("certificate.revoke", serial.to_string());
    admin.trail.record(&work.intent(reason.as_str())).await?;
    let revoked = admin.store.revoke(serial, reason, now()).await;
    let (word, detail) = match &revoked {
        Ok((revocation, known)) => {
            admin.trail.record(&work.effect(format!("feed sequence {}", revocation.seq))).await?;
            ("done", if *known { "" } else { "not issued by this RA" })
        }
        Err(_) => ("refused", ""),
    };
    admin.trail.record(&work.outcome(word, detail)).await?;
    let (revocation, known) = revoked?;
    Ok((revocation.seq, known))
}

async fn status(State(admin): Shared) -> Answer {
    let counts = admin.store.counts().await?;
    Ok(Json(json!({
        "offices": counts.offices,
        "certificates": counts.certificates,
        "revoked": counts.revoked,
        "feed_seq": admin.store.position().await?.seq,
        "gateways": admin.gateways.status(),
    }))
    .into_response())
}

/// The audit log's metrics, in Prometheus form.
async fn metrics(State(admin): Shared) -> String {
    admin.trail.metrics()
}

fn work(action: &'static str, object: String) -> Work {
    let request_id = Some(audit_log::work_id());
    Work { request_id, actor: Actor::of("operator"), action, object: Object::named(object) }
}

fn describe(certificate: &Certificate, now: i64) -> Value {
    let expired = certificate.not_after.is_some_and(|end| end < now);
    let state = match certificate.state {
        Issuance::Intended => "intended",
        Issuance::Refused => "refused",
        Issuance::Abandoned => "abandoned",
        Issuance::Issued if certificate.revocation.is_some() => "revoked",
        Issuance::Issued if expired => "expired",
        Issuance::Issued => "active",
    };
    let revocation = certificate.revocation.as_ref().map(|revocation| {
        json!({
            "reason": revocation.reason,
            "at": text_of(revocation.at),
            "seq": revocation.seq,
        })
    });
    json!({
        "serial": certificate.serial,
        "party": certificate.identity.party(),
        "identity": certificate.identity,
        "profile": certificate.profile,
        "state": state,
        "requested_at": text_of(certificate.intended_at),
        "not_before": certificate.not_before.map(text_of),
        "not_after": certificate.not_after.map(text_of),
        "certificate_sha256": certificate.der.as_deref().map(|der| hex::encode(key::sha256(der))),
        "revocation": revocation,
    })
}

fn with_seq(office: &Office, seq: u64) -> Value {
    let mut value = serde_json::to_value(office).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("seq".to_owned(), seq.into());
    }
    value
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = match &self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Broken => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Audit(_) => (StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable"),
            Self::Store(error) | Self::Enrol(enrol::Error::Store(error)) => of_store(error),
            Self::Enrol(enrol::Error::Profile(_)) => (StatusCode::BAD_REQUEST, "profile"),
            Self::Enrol(enrol::Error::Audit(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable")
            }
            Self::Enrol(
                enrol::Error::Request(_)
                | enrol::Error::Signer(_)
                | enrol::Error::Lint(_)
                | enrol::Error::Key(_),
            ) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        if status.is_server_error() {
            tracing::error!(error = chain(&self), "admin command failed");
        }
        error_response(status, code, &chain(&self))
    }
}

const fn of_store(error: &store::Error) -> (StatusCode, &'static str) {
    match error {
        store::Error::UnknownOffice(_) => (StatusCode::NOT_FOUND, "unknown_office"),
        store::Error::UnknownSerial(_) => (StatusCode::NOT_FOUND, "unknown_serial"),
        store::Error::OfficeDiffers(_) => (StatusCode::CONFLICT, "office_differs"),
        store::Error::OfficeSuspended(_) => (StatusCode::CONFLICT, "office_suspended"),
        store::Error::CodeWrong { .. }
        | store::Error::CodeLocked
        | store::Error::CodeExpired
        | store::Error::CodeUsed
        | store::Error::KeyReused
        | store::Error::Revoked => (StatusCode::CONFLICT, "code"),
        store::Error::Database(_)
        | store::Error::Migrate(_)
        | store::Error::File(_)
        | store::Error::AuditFolder(_)
        | store::Error::Gone { .. }
        | store::Error::Corrupt(_) => (StatusCode::INTERNAL_SERVER_ERROR, "database"),
    }
}

fn error_response(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({"error": {"code": code, "message": message}}))).into_response()
}

/// Gives axum's refusals of a request's parts our error form.
macro_rules! bad_request {
    ($($rejection:ident),+) => {
        $(impl From<$rejection> for Error {
            fn from(rejection: $rejection) -> Self {
                Self::BadRequest(rejection.body_text())
            }
        })+
    };
}
bad_request!(JsonRejection, PathRejection, QueryRejection);

/// Writes Unix seconds as RFC 3339.
pub(crate) fn rfc3339<S: Serializer>(at: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text_of(*at))
}

fn text_of(at: i64) -> String {
    OffsetDateTime::from_unix_timestamp(at)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

const fn default_valid_hours() -> u32 {
    72
}

/// A code lives at most thirty days.
const VALID_HOURS_MAX: u32 = 720;
