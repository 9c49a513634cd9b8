//! 同意: what a person consented to, for how long, who recorded it, and its withdrawal.
//!
//! A consent is never changed but by its withdrawal, which takes effect with the commit: the next
//! read in the hub sees it, whatever permit it carries. Who took a consent follows from who records
//! it. An office takes one only where the person has not said no: what the person or the
//! municipality withdrew, an office does not record anew. Here belong later: proxies (代理人), proof
//! of paper consents, and notices to the offices concerned.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use policies::document::{DocumentKind, DocumentSet};
use policies::feed::Fact;
use policies::identity::{Identity, InsuredKey, SystemName};
use policies::reason::{Reason, ReasonSet};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::body::{JsonBody, OptionalJsonBody, Text};
use crate::declared::About;
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, seconds};
use crate::work::{CONSENT, Work};
use crate::{Hub, clock, insured};

/// What a consent covers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scope {
    All(All),
    Kinds(Vec<DocumentKind>),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum All {
    All,
}

/// Who took the consent.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum CollectedBy {
    Municipality,
    Portal,
    Office,
}

impl CollectedBy {
    fn of(principal: &Identity) -> Result<Self, Refusal> {
        match principal {
            Identity::System { name: SystemName::Portal, .. } => Ok(Self::Portal),
            Identity::Municipality { .. } => Ok(Self::Municipality),
            Identity::Office { .. } => Ok(Self::Office),
            Identity::System { .. } | Identity::Operator { .. } => Err(Reason::NotShared.into()),
        }
    }
}

/// How the consent was given.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Method {
    Paper,
    Online,
}

/// The body of `POST …/consents`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewConsent {
    scope: Scope,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    until: Option<String>,
    /// Follows from the principal; one that is stated must be that.
    #[serde(default)]
    collected_by: Option<CollectedBy>,
    method: Method,
    #[serde(default)]
    evidence: Option<Text<200>>,
}

/// The body of `POST …/withdrawal`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Withdrawal {
    #[serde(default)]
    reason: Option<Text<200>>,
}

/// `POST …/consents`.
pub(crate) async fn record(
    State(hub): State<Hub>,
    permit: Permitted,
    JsonBody(new): JsonBody<NewConsent>,
) -> Result<Response, Refusal> {
    let mut work = Work::permitted(&hub, &permit, "").await?;
    let result = insert(&mut work, &permit, &new).await;
    let consent = work.finish(result).await?;
    About::person(permit.insured()?).answer((StatusCode::CREATED, axum::Json(consent)))
}

async fn insert(work: &mut Work, permit: &Permitted, new: &NewConsent) -> Result<Value, Refusal> {
    let now = clock::now_s();
    let insured = permit.insured()?;
    insured::require(work.conn(), permit.claims(), insured, now).await?;
    let scope = scope_of(&new.scope)?;
    let (from, until) = period(new.from.as_deref(), new.until.as_deref(), now)?;
    let collected_by = CollectedBy::of(&permit.claims().principal)?;
    if new.collected_by.is_some_and(|stated| stated != collected_by) {
        let derived = word(collected_by);
        return Err(Refusal::body(format!("`collected_by` must be `{derived}` or left out")));
    }
    if collected_by == CollectedBy::Office {
        let has_evidence = new.evidence.is_some();
        check_office(work.conn(), insured, scope, from, has_evidence, now).await?;
    }
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO consents (insurer, number, scope, from_s, until_s, collected_by, method,
         evidence, recorded_by, recorded_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         RETURNING id",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(serde_json::to_string(&scope)?)
    .bind(int(from))
    .bind(until.map(int))
    .bind(word(collected_by))
    .bind(word(new.method))
    .bind(new.evidence.as_ref().map(Text::as_str))
    .bind(permit.claims().principal.party())
    .bind(int(now))
    .fetch_one(work.conn())
    .await?;
    work.document(CONSENT, id);
    work.effect(format!("consent {id} recorded"));
    let id = seconds(id);
    work.publish(&Fact::Consent { id, insured, scope, from, until, withdrawn: None }).await?;
    let row = row(work.conn(), insured, int(id)).await?;
    print(&row.ok_or_else(no_consent)?, now)
}

/// What more is asked of an office that records a consent.
async fn check_office(
    conn: &mut SqliteConnection,
    insured: InsuredKey,
    scope: DocumentSet,
    from: u64,
    has_evidence: bool,
    now: u64,
) -> Result<(), Refusal> {
    if !has_evidence {
        return Err(Refusal::body("`evidence` is required of an office"));
    }
    if from < clock::today_begin(now) {
        return Err(Refusal::body("`from` lies in the past: an office records from today on"));
    }
    if is_withdrawn(&rows(conn, insured).await?, scope)? {
        return Err(Refusal::coded(
            StatusCode::CONFLICT,
            "consent_withdrawn_by_person",
            "the person has withdrawn this consent; only the person or the municipality renews it",
            "ご本人が同意を撤回されています。同意の再登録は、ご本人または市区町村が行う必要があります。",
        ));
    }
    Ok(())
}

/// Whether of any kind in `scope` the newest consent was withdrawn by the person or the
/// municipality. `rows` are the person's, newest first.
fn is_withdrawn(rows: &[Row], scope: DocumentSet) -> Result<bool, Refusal> {
    let mut open = scope;
    for row in rows {
        let covered: DocumentSet = serde_json::from_str(&row.scope)?;
        let newest_of: DocumentSet = open.iter().filter(|kind| covered.contains(*kind)).collect();
        let by_office = row.withdrawn_by.as_deref().is_some_and(|by| by.starts_with("office/"));
        if !newest_of.is_empty() && row.withdrawn_s.is_some() && !by_office {
            return Ok(true);
        }
        open = open.iter().filter(|kind| !covered.contains(*kind)).collect();
    }
    Ok(false)
}

/// `GET …/consents`: newest first.
pub(crate) async fn list(State(hub): State<Hub>, permit: Permitted) -> Result<Response, Refusal> {
    let now = clock::now_s();
    let insured = permit.insured()?;
    let mut tx = permit.read(&hub).await?;
    insured::require(&mut tx, permit.claims(), insured, now).await?;
    let rows = rows(&mut tx, insured).await?;
    let consents = rows.iter().map(|row| print(row, now)).collect::<Result<Vec<_>, _>>()?;
    About::person(insured).answer(axum::Json(json!({ "consents": consents })))
}

/// `POST …/consents/{consent}/withdrawal`; a consent that was withdrawn before stays as it is.
pub(crate) async fn withdraw(
    State(hub): State<Hub>,
    permit: Permitted,
    OptionalJsonBody(withdrawal): OptionalJsonBody<Withdrawal>,
) -> Result<Response, Refusal> {
    let mut work = Work::permitted(&hub, &permit, "").await?;
    let result = end(&mut work, &permit, withdrawal.reason.as_ref()).await;
    let consent = work.finish(result).await?;
    About::person(permit.insured()?).answer(axum::Json(consent))
}

async fn end(
    work: &mut Work,
    permit: &Permitted,
    reason: Option<&Text<200>>,
) -> Result<Value, Refusal> {
    let now = clock::now_s();
    let insured = permit.insured()?;
    insured::require(work.conn(), permit.claims(), insured, now).await?;
    let id = permit.number("consent")?;
    let mut row = row(work.conn(), insured, id).await?.ok_or_else(no_consent)?;
    if row.withdrawn_s.is_none() {
        sqlx::query(
            "UPDATE consents SET withdrawn_s = $1, withdrawn_by = $2, withdrawn_reason = $3
             WHERE id = $4 AND withdrawn_s IS NULL",
        )
        .bind(int(now))
        .bind(permit.claims().principal.party())
        .bind(reason.map(Text::as_str))
        .bind(id)
        .execute(work.conn())
        .await?;
        row.withdrawn_s = Some(int(now));
        work.effect(format!("consent {id} withdrawn"));
        work.publish(&row.fact(insured)?).await?;
    }
    print(&row, now)
}

/// Why no consent covers all of `scope` now; empty if one does.
pub(crate) async fn missing(
    conn: &mut SqliteConnection,
    insured: InsuredKey,
    scope: DocumentSet,
    now: u64,
) -> Result<ReasonSet, Refusal> {
    let mut best = Reason::ConsentRequired;
    for row in rows(conn, insured).await? {
        let covered: DocumentSet = serde_json::from_str(&row.scope)?;
        if covered.union(scope) != covered {
            continue;
        }
        match row.state(now) {
            Phase::Active => return Ok(ReasonSet::EMPTY),
            Phase::NotBegun => {}
            // Newest first: the reason of the newest consent that covered it.
            Phase::Withdrawn if best == Reason::ConsentRequired => best = Reason::ConsentWithdrawn,
            Phase::Expired if best == Reason::ConsentRequired => best = Reason::ConsentExpired,
            Phase::Withdrawn | Phase::Expired => {}
        }
    }
    Ok(best.into())
}

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    scope: String,
    from_s: i64,
    until_s: Option<i64>,
    collected_by: String,
    method: String,
    recorded_by: String,
    recorded_at: i64,
    withdrawn_s: Option<i64>,
    withdrawn_by: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    NotBegun,
    Active,
    Expired,
    Withdrawn,
}

impl Row {
    fn state(&self, now: u64) -> Phase {
        let now = int(now);
        if self.withdrawn_s.is_some() {
            Phase::Withdrawn
        } else if self.until_s.is_some_and(|until| until < now) {
            Phase::Expired
        } else if self.from_s > now {
            Phase::NotBegun
        } else {
            Phase::Active
        }
    }

    fn fact(&self, insured: InsuredKey) -> Result<Fact, Refusal> {
        Ok(Fact::Consent {
            id: seconds(self.id),
            insured,
            scope: serde_json::from_str(&self.scope)?,
            from: seconds(self.from_s),
            until: self.until_s.map(seconds),
            withdrawn: self.withdrawn_s.map(seconds),
        })
    }
}

async fn rows(conn: &mut SqliteConnection, insured: InsuredKey) -> Result<Vec<Row>, Refusal> {
    Ok(sqlx::query_as(
        "SELECT id, scope, from_s, until_s, collected_by, method, recorded_by, recorded_at,
         withdrawn_s, withdrawn_by FROM consents WHERE insurer = $1 AND number = $2
         ORDER BY id DESC LIMIT $3",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(CONSENTS_MAX)
    .fetch_all(conn)
    .await?)
}

async fn row(
    conn: &mut SqliteConnection,
    insured: InsuredKey,
    id: i64,
) -> Result<Option<Row>, Refusal> {
    Ok(rows(conn, insured).await?.into_iter().find(|row| row.id == id))
}

fn scope_of(scope: &Scope) -> Result<DocumentSet, Refusal> {
    let kinds = match scope {
        Scope::All(All::All) => return Ok(DocumentSet::held()),
        Scope::Kinds(kinds) => kinds,
    };
    if let Some(kind) = kinds.iter().find(|kind| !kind.is_held()) {
        return Err(Refusal::body(format!("`scope`: `{kind}` is not held here")));
    }
    if kinds.is_empty() {
        return Err(Refusal::body("`scope` is empty: name kinds of documents, or `all`"));
    }
    Ok(kinds.iter().copied().collect())
}

fn period(
    from: Option<&str>,
    until: Option<&str>,
    now: u64,
) -> Result<(u64, Option<u64>), Refusal> {
    let form = |field: &str| {
        Refusal::body(format!("`{field}` is neither a day `YYYY-MM-DD` nor an RFC 3339 instant"))
    };
    let from = match from {
        Some(text) => clock::begin_of(text).ok_or_else(|| form("from"))?,
        None => now,
    };
    let until = match until {
        Some(text) => Some(clock::end_of(text).ok_or_else(|| form("until"))?),
        None => None,
    };
    if until.is_some_and(|until| until < from) {
        return Err(Refusal::body("`until` is before `from`"));
    }
    Ok((from, until))
}

fn print(row: &Row, now: u64) -> Result<Value, Refusal> {
    let state = match row.state(now) {
        Phase::NotBegun => "not-begun",
        Phase::Active => "active",
        Phase::Expired => "expired",
        Phase::Withdrawn => "withdrawn",
    };
    Ok(json!({
        "id": row.id,
        "scope": serde_json::from_str::<Value>(&row.scope)?,
        "from": clock::print_begin(seconds(row.from_s)),
        "until": row.until_s.map(|until| clock::print_end(seconds(until))),
        "collected_by": row.collected_by,
        "method": row.method,
        "recorded_by": row.recorded_by,
        "recorded_at": clock::rfc3339(seconds(row.recorded_at)),
        "withdrawn_at": row.withdrawn_s.map(|at| clock::rfc3339(seconds(at))),
        "state": state,
    }))
}

fn word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        Ok(_) | Err(_) => String::new(),
    }
}

fn no_consent() -> Refusal {
    Refusal::missing(
        "no_consent",
        "the person has no consent with this id",
        "この番号の同意はありません。",
    )
}

/// The newest consents of a person that are looked at.
const CONSENTS_MAX: i64 = 1_000;
