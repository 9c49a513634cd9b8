//! Staff of an office: login, refresh, logout, and the operator's care of them.
//!
//! ```text
//!  POST /v1/session ─► attempt counted ─► argon2id ─► session + tokens (bound to the certificate)
//!  refresh ─► token used once, session still of this certificate ─► new pair
//!  DELETE  ─► session ended ─► fact SessionEnded ─► gateways refuse its tokens
//! ```
//!
//! A program gets its tokens in the answer, a page in cookies ([`cookies`]).
//!
//! Invariants: an attempt is counted before the password is looked at, so that parallel guesses
//! gain nothing; unknown ids answer, cost and lock like known ones; of a refresh token only the
//! SHA-256 is stored, and one that comes back after its use ends its session; whatever a member of
//! staff asks for is done only while [`require_live`] finds the session live. Multi-factor login
//! and the office's own administrators (管理者ユーザ) belong here.

use audit_log::Object;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use policies::feed::Fact;
use policies::identity::{Job, OfficeNumber, Staff};
use policies::permit::PermitClaims;
use policies::reason::Reason;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;
use zeroize::Zeroizing;

use crate::body::{JsonBody, Secret, Text};
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{WriteTx, int, parsed, seconds};
use crate::work::{Deed, Work};
use crate::{Hub, clock};

mod cookies;
pub(crate) mod password;
pub(crate) mod token;

use cookies::{Form, Pair};
use token::{Claims, Confirmation};

/// The body of `POST /v1/session`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    staff_id: String,
    password: Secret,
    #[serde(default)]
    form: Form,
}

struct Member {
    id: String,
    name: String,
    job: Job,
}

struct Session {
    id: String,
    office: OfficeNumber,
    refresh_until: u64,
}

/// `POST /v1/session`.
pub(crate) async fn log_in(
    State(hub): State<Hub>,
    permit: Permitted,
    JsonBody(login): JsonBody<Login>,
) -> Result<Response, Refusal> {
    let office = permit.office()?;
    let staff_id = staff_id(login.staff_id).unwrap_or_default();
    let known = is_known(&hub, office, &staff_id).await?;
    let attempt = count_attempt(&hub, office, &staff_id).await;
    let checked = match attempt {
        Ok(()) => check(&hub, office, &staff_id, login.password.0).await?,
        Err(refusal) => Err(refusal),
    };
    // What was typed may be a password: only an id that exists is written down.
    let recorded = if known { &*staff_id } else { "unknown" };
    let mut work = Work::permitted(&hub, &permit, format!("staff {recorded}")).await?;
    let result = match checked {
        Ok(member) => begin_session(&hub, &mut work, &permit, &member, login.form).await,
        Err(refusal) => Err(refusal),
    };
    Ok(work.finish(result).await?.into_response())
}

async fn is_known(hub: &Hub, office: OfficeNumber, staff_id: &str) -> Result<bool, Refusal> {
    let mut tx = hub.store.read().await?;
    let found: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM staff WHERE office = $1 AND id = $2")
            .bind(office.as_str())
            .bind(staff_id)
            .fetch_optional(&mut *tx)
            .await?;
    Ok(found.is_some())
}

/// Counts the attempt as failed until it proves right.
async fn count_attempt(hub: &Hub, office: OfficeNumber, staff_id: &str) -> Result<(), Refusal> {
    let now = clock::now_s();
    let mut tx = hub.store.write().await?;
    sqlx::query("DELETE FROM login_attempts WHERE last_at < $1")
        .bind(int(now.saturating_sub(ATTEMPTS_KEPT_S)))
        .execute(tx.conn())
        .await?;
    let (failures, locked_until): (i64, i64) = sqlx::query_as(
        "INSERT INTO login_attempts (office, staff_id, failures, locked_until, last_at)
         VALUES ($1, $2, 1, 0, $3) ON CONFLICT (office, staff_id) DO UPDATE SET
         failures = failures + 1, last_at = excluded.last_at RETURNING failures, locked_until",
    )
    .bind(office.as_str())
    .bind(staff_id)
    .bind(int(now))
    .fetch_one(tx.conn())
    .await?;
    if locked_until > int(now) {
        return Err(locked(seconds(locked_until) - now));
    }
    if failures >= FAILURES_MAX {
        lock_for_a_while(&mut tx, office, staff_id, now).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// From the next attempt on the id is locked, unless this one proves right.
async fn lock_for_a_while(
    tx: &mut WriteTx,
    office: OfficeNumber,
    staff_id: &str,
    now: u64,
) -> Result<(), Refusal> {
    sqlx::query(
        "UPDATE login_attempts SET failures = 0, locked_until = $1
         WHERE office = $2 AND staff_id = $3",
    )
    .bind(int(now + LOCK_S))
    .bind(office.as_str())
    .bind(staff_id)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The member of staff whose password this is. Outer error: ours; inner: the login's.
async fn check(
    hub: &Hub,
    office: OfficeNumber,
    staff_id: &str,
    password: Zeroizing<String>,
) -> Result<Result<Member, Refusal>, Refusal> {
    let mut tx = hub.store.read().await?;
    let row: Option<(String, String, String, i64)> = sqlx::query_as(
        "SELECT name, job, password, locked FROM staff WHERE office = $1 AND id = $2",
    )
    .bind(office.as_str())
    .bind(staff_id)
    .fetch_optional(&mut *tx)
    .await?;
    drop(tx);
    let stored = row.as_ref().map(|(_, _, stored, _)| stored.clone());
    let right = password.len() <= PASSWORD_CHARS_MAX * 4;
    let fits = hub.passwords.verify(office, password, stored).await? && right;
    match row {
        Some((name, job, _, 0)) if fits => {
            Ok(Ok(Member { id: staff_id.to_owned(), name, job: parsed(&job)? }))
        }
        Some(_) | None => Ok(Err(login_failed())),
    }
}

async fn begin_session(
    hub: &Hub,
    work: &mut Work,
    permit: &Permitted,
    member: &Member,
    form: Form,
) -> Result<Pair, Refusal> {
    let (now, office, claims) = (clock::now_s(), permit.office()?, permit.claims());
    sqlx::query("DELETE FROM login_attempts WHERE office = $1 AND staff_id = $2")
        .bind(office.as_str())
        .bind(&member.id)
        .execute(work.conn())
        .await?;
    let session = Session {
        id: random_text::<16>()?,
        office,
        refresh_until: now + hub.limits.refresh_lifetime_s,
    };
    sqlx::query(
        "INSERT INTO sessions (id, office, staff_id, certificate_sha256, began_at, refresh_until)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&session.id)
    .bind(office.as_str())
    .bind(&member.id)
    .bind(&claims.certificate_sha256)
    .bind(int(now))
    .bind(int(session.refresh_until))
    .execute(work.conn())
    .await?;
    work.effect("session begun");
    tokens(hub, work, (claims, form), &session, member, now).await
}

/// A new pair of tokens for the session.
async fn tokens(
    hub: &Hub,
    work: &mut Work,
    (claims, form): (&PermitClaims, Form),
    session: &Session,
    member: &Member,
    now: u64,
) -> Result<Pair, Refusal> {
    let refresh_token = Zeroizing::new(random_text::<32>()?);
    sqlx::query("INSERT INTO refresh_tokens (hash, session) VALUES ($1, $2)")
        .bind(token_hash(&refresh_token))
        .bind(&session.id)
        .execute(work.conn())
        .await?;
    // A token does not outlive its session.
    let lifetime_s = hub.limits.token_lifetime_s.min(session.refresh_until.saturating_sub(now));
    let access = Claims {
        iss: ISSUER.to_owned(),
        sub: member.id.clone(),
        office: session.office,
        job: member.job,
        sid: session.id.clone(),
        iat: now,
        exp: now + lifetime_s,
        jti: random_text::<16>()?,
        cnf: Confirmation { certificate_sha256: claims.certificate_sha256.clone() },
        csrf: form.csrf_digest(&refresh_token),
    };
    let access_token =
        hub.token_key.sign(&access).map_err(|error| Refusal::Internal(Box::new(error)))?;
    Ok(Pair {
        form,
        access_token: Zeroizing::new(access_token),
        refresh_token,
        expires_in: lifetime_s,
        refresh_expires_in: session.refresh_until.saturating_sub(now),
        staff: json!({ "id": member.id, "name": member.name, "job": member.job }),
    })
}

/// The body of `POST /v1/session/refresh`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refresh {
    refresh_token: Option<Secret>,
}

/// A session that has not ended, with the member of staff and one of its refresh tokens.
#[derive(sqlx::FromRow)]
struct LiveSession {
    id: String,
    staff_id: String,
    certificate_sha256: String,
    refresh_until: i64,
    used_at: Option<i64>,
    name: String,
    job: String,
}

/// How a refresh ends: new tokens, or a refusal that ended the session.
enum Refreshed {
    Tokens(Pair),
    Reused,
}

/// `POST /v1/session/refresh`.
pub(crate) async fn refresh(
    State(hub): State<Hub>,
    permit: Permitted,
    headers: HeaderMap,
    JsonBody(refresh): JsonBody<Refresh>,
) -> Result<Response, Refusal> {
    let mut work = Work::permitted(&hub, &permit, "").await?;
    let result = match cookies::presented(refresh.refresh_token, &headers) {
        Ok((form, token)) => rotate(&hub, &mut work, &permit, (form, &token)).await,
        Err(refusal) => Err(refusal),
    };
    match work.finish(result).await? {
        Refreshed::Tokens(tokens) => Ok(tokens.into_response()),
        Refreshed::Reused => Err(refresh_failed()),
    }
}

async fn rotate(
    hub: &Hub,
    work: &mut Work,
    permit: &Permitted,
    (form, refresh_token): (Form, &str),
) -> Result<Refreshed, Refusal> {
    let (now, office, hash) = (clock::now_s(), permit.office()?, token_hash(refresh_token));
    let live: Option<LiveSession> = sqlx::query_as(
        "SELECT s.id, s.staff_id, s.certificate_sha256, s.refresh_until, t.used_at, m.name, m.job
         FROM refresh_tokens t JOIN sessions s ON s.id = t.session
         JOIN staff m ON m.office = s.office AND m.id = s.staff_id
         WHERE t.hash = $1 AND s.office = $2 AND s.ended_at IS NULL AND m.locked = 0",
    )
    .bind(&hash)
    .bind(office.as_str())
    .fetch_optional(work.conn())
    .await?;
    let live = live
        .filter(|live| live.certificate_sha256 == permit.claims().certificate_sha256)
        .filter(|live| live.refresh_until >= int(now))
        .ok_or_else(refresh_failed)?;
    if live.used_at.is_some() {
        end_session(hub, work, &live.id, now).await?;
        work.effect("refresh token came back after its use: session ended");
        return Ok(Refreshed::Reused);
    }
    sqlx::query("UPDATE refresh_tokens SET used_at = $1 WHERE hash = $2")
        .bind(int(now))
        .bind(&hash)
        .execute(work.conn())
        .await?;
    let member = Member { id: live.staff_id, name: live.name, job: parsed(&live.job)? };
    let refresh_until = seconds(live.refresh_until);
    let session = Session { id: live.id, office, refresh_until };
    work.effect("session refreshed");
    let tokens = tokens(hub, work, (permit.claims(), form), &session, &member, now).await?;
    Ok(Refreshed::Tokens(tokens))
}

/// `DELETE /v1/session`: the session of the token that the request came with.
pub(crate) async fn log_out(
    State(hub): State<Hub>,
    permit: Permitted,
) -> Result<Response, Refusal> {
    let mut work = Work::begin(&hub, Deed::of(&hub, permit.claims())).await?;
    let result = match &permit.claims().staff {
        Some(staff) => end_session(&hub, &mut work, &staff.session, clock::now_s()).await,
        None => Err(Reason::StaffTokenMissing.into()),
    };
    work.finish(result).await?;
    Ok((StatusCode::NO_CONTENT, cookies::cleared()).into_response())
}

/// Refuses unless the session of `staff` is live, on this certificate, and the member not locked.
pub(crate) async fn require_live(
    conn: &mut SqliteConnection,
    claims: &PermitClaims,
    staff: &Staff,
    now: u64,
) -> Result<(), Refusal> {
    let live: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM sessions s JOIN staff m ON m.office = s.office AND m.id = s.staff_id
         WHERE s.id = $1 AND s.office = $2 AND s.staff_id = $3 AND s.certificate_sha256 = $4
           AND s.ended_at IS NULL AND s.refresh_until >= $5 AND m.locked = 0",
    )
    .bind(&staff.session)
    .bind(staff.office.as_str())
    .bind(&staff.id)
    .bind(&claims.certificate_sha256)
    .bind(int(now))
    .fetch_optional(conn)
    .await?;
    live.map(drop).ok_or_else(|| Reason::StaffSessionEnded.into())
}

async fn end_session(hub: &Hub, work: &mut Work, id: &str, now: u64) -> Result<(), Refusal> {
    sqlx::query("UPDATE sessions SET ended_at = $1 WHERE id = $2 AND ended_at IS NULL")
        .bind(int(now))
        .bind(id)
        .execute(work.conn())
        .await?;
    work.effect("session ended");
    let until = now + hub.limits.token_lifetime_s;
    work.publish(&Fact::SessionEnded { session: id.to_owned(), until }).await
}

/// What the operator asks for with `POST /staff`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewStaff {
    office: OfficeNumber,
    id: String,
    name: Text<100>,
    job: Job,
    password: Secret,
    #[serde(default)]
    operator: Option<Text<64>>,
}

/// `POST /staff` of the admin socket: makes a member of staff or sets the password anew, which
/// unlocks the id and ends its sessions.
pub(crate) async fn set(
    State(hub): State<Hub>,
    JsonBody(new): JsonBody<NewStaff>,
) -> Result<Response, Refusal> {
    let id = staff_id(new.id.clone()).ok_or_else(|| {
        Refusal::body("`id` is not a staff id: 1 to 64 letters, digits, `.`, `_`, `@` or `-`")
    })?;
    let length = new.password.0.chars().count();
    if !(PASSWORD_CHARS_MIN..=PASSWORD_CHARS_MAX).contains(&length) {
        return Err(Refusal::body(format!(
            "`password` must have {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters"
        )));
    }
    let hash = hub.passwords.hash(new.password.0.clone()).await?;
    let operator = new.operator.as_ref().map_or("admin", Text::as_str);
    let object = Object::named(format!("office/{} staff {id}", new.office));
    let mut work = Work::begin(&hub, Deed::by_operator(operator, "staff.set", object)).await?;
    let result = write_staff(&hub, &mut work, &new, &id, &hash).await;
    work.finish(result).await?;
    let answer = json!({ "office": new.office, "id": id, "job": new.job });
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

async fn write_staff(
    hub: &Hub,
    work: &mut Work,
    new: &NewStaff,
    id: &str,
    hash: &str,
) -> Result<(), Refusal> {
    sqlx::query(
        "INSERT INTO staff (office, id, name, job, password, locked) VALUES ($1, $2, $3, $4, $5, 0)
         ON CONFLICT (office, id) DO UPDATE SET name = excluded.name, job = excluded.job,
         password = excluded.password, locked = 0",
    )
    .bind(new.office.as_str())
    .bind(id)
    .bind(new.name.as_str())
    .bind(new.job.as_str())
    .bind(hash)
    .execute(work.conn())
    .await?;
    sqlx::query("DELETE FROM login_attempts WHERE office = $1 AND staff_id = $2")
        .bind(new.office.as_str())
        .bind(id)
        .execute(work.conn())
        .await?;
    let ended = end_sessions(hub, work, new.office, id).await?;
    work.effect(format!("staff set, {ended} sessions ended"));
    Ok(())
}

/// What the operator asks for with `POST /staff/lock`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    office: OfficeNumber,
    id: String,
    #[serde(default)]
    operator: Option<Text<64>>,
    #[serde(default)]
    wait: bool,
}

/// `POST /staff/lock` of the admin socket: no login any more, and every session ends.
pub(crate) async fn lock(
    State(hub): State<Hub>,
    JsonBody(lock): JsonBody<Lock>,
) -> Result<Response, Refusal> {
    let operator = lock.operator.as_ref().map_or("admin", Text::as_str);
    let id = staff_id(lock.id.clone()).unwrap_or_default();
    let object = Object::named(format!("office/{} staff {id}", lock.office));
    let mut work = Work::begin(&hub, Deed::by_operator(operator, "staff.lock", object)).await?;
    let result = write_lock(&hub, &mut work, lock.office, &id).await;
    let (ended, seq) = work.finish_with_seq(result).await?;
    let seq = seq.unwrap_or(hub.store.seq());
    let mut answer = hub.gateways.acknowledgement(seq, lock.wait).await;
    if let Value::Object(fields) = &mut answer {
        fields.insert("sessions_ended".to_owned(), ended.into());
    }
    Ok(axum::Json(answer).into_response())
}

async fn write_lock(
    hub: &Hub,
    work: &mut Work,
    office: OfficeNumber,
    id: &str,
) -> Result<usize, Refusal> {
    let changed = sqlx::query("UPDATE staff SET locked = 1 WHERE office = $1 AND id = $2")
        .bind(office.as_str())
        .bind(id)
        .execute(work.conn())
        .await?;
    if changed.rows_affected() == 0 {
        return Err(Refusal::missing(
            "no_staff",
            "the office has no member of staff with this id",
            "この職員は登録されていません。",
        ));
    }
    let ended = end_sessions(hub, work, office, id).await?;
    work.effect(format!("staff locked, {ended} sessions ended"));
    Ok(ended)
}

async fn end_sessions(
    hub: &Hub,
    work: &mut Work,
    office: OfficeNumber,
    id: &str,
) -> Result<usize, Refusal> {
    let sessions: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM sessions WHERE office = $1 AND staff_id = $2 AND ended_at IS NULL",
    )
    .bind(office.as_str())
    .bind(id)
    .fetch_all(work.conn())
    .await?;
    for session in &sessions {
        end_session(hub, work, session, clock::now_s()).await?;
    }
    Ok(sessions.len())
}

/// At the start: publishes the token key, retires keys of earlier key files, and forgets sessions
/// and ends of sessions whose last tokens have run out.
pub(crate) async fn publish_key(hub: &Hub) -> Result<(), sqlx::Error> {
    let mut tx = hub.store.write().await?;
    let keys: Vec<String> =
        sqlx::query_scalar("SELECT fact FROM fact_current WHERE key LIKE 'staff-key/%'")
            .fetch_all(tx.conn())
            .await?;
    for key in keys.iter().filter_map(|key| serde_json::from_str(key).ok()) {
        if let Fact::StaffKey { kid, x, y, retired: false } = key
            && kid != hub.token_key.kid()
        {
            tx.publish(&Fact::StaffKey { kid, x, y, retired: true }).await?;
        }
    }
    tx.publish_new(&hub.token_key.fact()).await?;
    forget_old_sessions(&mut tx, clock::now_s()).await?;
    tx.commit().await.map(drop)
}

async fn forget_old_sessions(tx: &mut WriteTx, now: u64) -> Result<(), sqlx::Error> {
    let ended: Vec<(String, String)> =
        sqlx::query_as("SELECT key, fact FROM fact_current WHERE key LIKE 'session-ended/%'")
            .fetch_all(tx.conn())
            .await?;
    for (key, fact) in ended {
        let fact = serde_json::from_str(&fact).ok();
        if matches!(fact, Some(Fact::SessionEnded { until, .. }) if until < now) {
            sqlx::query("DELETE FROM fact_current WHERE key = $1")
                .bind(key)
                .execute(tx.conn())
                .await?;
        }
    }
    for statement in [
        "DELETE FROM refresh_tokens WHERE session IN
         (SELECT id FROM sessions WHERE refresh_until < $1)",
        "DELETE FROM sessions WHERE refresh_until < $1",
    ] {
        sqlx::query(statement).bind(int(now)).execute(tx.conn()).await?;
    }
    Ok(())
}

fn staff_id(text: String) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(allowed);
    fits.then_some(text)
}

fn token_hash(token: &str) -> String {
    hex::encode(digest(&SHA256, token.as_bytes()))
}

fn random_text<const BYTES: usize>() -> Result<String, Refusal> {
    let mut bytes = Zeroizing::new([0u8; BYTES]);
    rand::fill(&mut *bytes)
        .map_err(|_| Refusal::Internal("the system gives no randomness".into()))?;
    Ok(URL_SAFE_NO_PAD.encode(*bytes))
}

fn login_failed() -> Refusal {
    Refusal::coded(
        StatusCode::UNAUTHORIZED,
        "login_failed",
        "staff id or password is wrong",
        "職員IDまたはパスワードが正しくありません。",
    )
}

fn locked(seconds: u64) -> Refusal {
    Refusal::coded(
        StatusCode::UNAUTHORIZED,
        "login_locked",
        "too many wrong passwords in a row; this staff id is locked for a while",
        "パスワードの誤りが続いたため、この職員IDを一時的に停止しています。しばらくしてから再度お試しください。",
    )
    .with("retry_after_s", seconds.into())
}

fn refresh_failed() -> Refusal {
    Refusal::coded(
        StatusCode::UNAUTHORIZED,
        "refresh_failed",
        "the refresh token is not valid on this terminal; log in again",
        "ログインを延長できません。もう一度ログインしてください。",
    )
}

const ISSUER: &str = "sekisho-hub";
const FAILURES_MAX: i64 = 10;
const LOCK_S: u64 = 600;
const ATTEMPTS_KEPT_S: u64 = 24 * 3_600;
const PASSWORD_CHARS_MIN: usize = 8;
const PASSWORD_CHARS_MAX: usize = 128;
