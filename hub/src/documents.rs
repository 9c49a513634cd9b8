//! 様式: storing, listing and delivering documents.
//!
//! ```text
//!  store:  permit ─► needs in own rows ─► form of the content ─► next version ─► (notices) ─► 201
//!  view:   permit ─► needs in own rows ─► newest visible version + access row, one commit ─► 200
//! ```
//!
//! Invariants: a version is never overwritten; what a request may see is what the permit grants and
//! the hub's own rows bear out in the same transaction; no document leaves without its access row.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use policies::document::{DocumentKind, DocumentSet};
use policies::feed::Fact;
use policies::identity::{Identity, InsuredKey, OfficeNumber, SystemName};
use policies::reason::Reason;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::access_history::Subject;
use crate::body::{query, require_json};
use crate::declared::About;
use crate::document_form::Document;
use crate::insured::Sight;
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::{int, parsed, seconds};
use crate::work::Work;
use crate::{Hub, access_history, clock, document_form, insured, notices};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreParameters {
    #[serde(default)]
    author_office: Option<OfficeNumber>,
}

/// A version to be stored.
pub(crate) struct NewVersion<'a> {
    pub(crate) insured: InsuredKey,
    pub(crate) kind: DocumentKind,
    /// [`Identity::party`] of the author.
    pub(crate) author: String,
    /// The principal that sent it.
    pub(crate) submitted_by: String,
    pub(crate) request_id: &'a str,
    /// 作成日 of a care plan.
    pub(crate) created_on: Option<String>,
    /// The JSON object, as it is delivered.
    pub(crate) content: Box<RawValue>,
}

/// A version that was stored.
pub(crate) struct Stored {
    pub(crate) id: i64,
    pub(crate) version: i64,
    pub(crate) at: u64,
}

/// `POST …/documents/{kind}`.
pub(crate) async fn store(
    State(hub): State<Hub>,
    permit: Permitted,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let kind = permit.kind()?;
    let parameters: StoreParameters = query(&uri)?;
    require_json(&headers)?;
    let bytes = permit.read_body(body, hub.limits.document_bytes_max).await?;
    let document = document_form::parse(kind, &bytes)?;
    let author = author(&permit.claims().principal, &parameters)?;
    let mut work = Work::permitted(&hub, &permit, format!("{kind} author {author}")).await?;
    let result = store_checked(&mut work, &permit, kind, author, document).await;
    let stored = work.finish(result).await?;
    About::documents(permit.insured()?, [kind]).answer((StatusCode::CREATED, axum::Json(stored)))
}

/// Office and municipality write for themselves; a national system writes what an office made.
fn author(principal: &Identity, parameters: &StoreParameters) -> Result<String, Refusal> {
    let needs_office =
        || Refusal::body("query parameter `author_office` is required: the office that made it");
    match (principal, parameters.author_office) {
        (Identity::System { name: SystemName::Life | SystemName::CarePlanExchange, .. }, given) => {
            Ok(format!("office/{}", given.ok_or_else(needs_office)?))
        }
        (_, None) => Ok(principal.party()),
        (_, Some(_)) => Err(Reason::NotAuthor.into()),
    }
}

async fn store_checked(
    work: &mut Work,
    permit: &Permitted,
    kind: DocumentKind,
    author: String,
    document: Document,
) -> Result<Value, Refusal> {
    let (insured, claims, now) = (permit.insured()?, permit.claims(), clock::now_s());
    insured::require(work.conn(), claims, insured, now).await?;
    insured::sight(work.conn(), claims, insured, kind, now).await?.require()?;
    let Document { text: content, created_on, request_id: named_request } = document;
    let stored = insert(
        work,
        NewVersion {
            insured,
            kind,
            author: author.clone(),
            submitted_by: claims.principal.path(),
            request_id: &claims.request_id,
            created_on,
            content,
        },
    )
    .await?;
    if kind == DocumentKind::PhysicianOpinion {
        notices::opinion_came(work, permit, insured, &stored, named_request).await?;
    }
    work.document(kind.as_str(), stored.version);
    work.effect(format!("{kind} version {} stored", stored.version));
    Ok(json!({
        "kind": kind,
        "version": stored.version,
        "stored_at": clock::rfc3339(stored.at),
        "author": author,
    }))
}

/// Stores the next version, and publishes what it says about its author.
pub(crate) async fn insert(work: &mut Work, new: NewVersion<'_>) -> Result<Stored, Refusal> {
    let (insurer, number) = (new.insured.insurer, new.insured.number);
    let at = clock::now_s();
    let last: Option<i64> = sqlx::query_scalar(
        "SELECT MAX(version) FROM documents WHERE insurer = $1 AND number = $2 AND kind = $3",
    )
    .bind(insurer.as_str())
    .bind(number.as_str())
    .bind(new.kind.as_str())
    .fetch_one(work.conn())
    .await?;
    let version = last.unwrap_or(0) + 1;
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO documents (insurer, number, kind, version, author, submitted_by, stored_at,
         created_on, request_id, content) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         RETURNING id",
    )
    .bind(insurer.as_str())
    .bind(number.as_str())
    .bind(new.kind.as_str())
    .bind(version)
    .bind(&new.author)
    .bind(&new.submitted_by)
    .bind(int(at))
    .bind(&new.created_on)
    .bind(new.request_id)
    .bind(new.content.get())
    .fetch_one(work.conn())
    .await?;
    publish_author(work, &new).await?;
    Ok(Stored { id, version, at })
}

async fn publish_author(work: &mut Work, new: &NewVersion<'_>) -> Result<(), Refusal> {
    let (insured, document) = (new.insured, new.kind);
    let author = Fact::Author { party: new.author.clone(), insured, document };
    work.publish_new(&author).await?;
    let office = new.author.strip_prefix("office/").and_then(|number| number.parse().ok());
    match office {
        Some(office) if new.kind == DocumentKind::FacilityCarePlan => {
            notices::facility_plans_for(work, office, insured).await
        }
        Some(_) | None => Ok(()),
    }
}

/// `GET …/documents`: the newest visible version of each kind that the permit opens.
pub(crate) async fn list(State(hub): State<Hub>, permit: Permitted) -> Result<Response, Refusal> {
    let (insured, claims, now) = (permit.insured()?, permit.claims(), clock::now_s());
    let mut tx = permit.read(&hub).await?;
    insured::require(&mut tx, claims, insured, now).await?;
    let (mut documents, mut listed) = (Vec::new(), DocumentSet::EMPTY);
    for kind in DocumentKind::ALL.iter().copied().filter(|kind| kind.is_held()) {
        let sight = insured::sight(&mut tx, claims, insured, kind, now).await?;
        if sight.is_open() {
            let newest = versions(&mut tx, &permit, insured, kind, sight, 1).await?;
            for row in &newest {
                listed.insert(parsed(&row.kind)?);
                documents.push(row.describe(kind, claims));
            }
        }
    }
    let person = json!({ "insurer": insured.insurer, "number": insured.number });
    About::documents(insured, listed.iter())
        .answer(axum::Json(json!({ "insured": person, "documents": documents })))
}

/// `GET …/documents/{kind}/versions`: the visible versions, newest first.
pub(crate) async fn list_versions(
    State(hub): State<Hub>,
    permit: Permitted,
) -> Result<Response, Refusal> {
    let (insured, kind, now) = (permit.insured()?, permit.kind()?, clock::now_s());
    let mut tx = permit.read(&hub).await?;
    insured::require(&mut tx, permit.claims(), insured, now).await?;
    let sight = insured::sight(&mut tx, permit.claims(), insured, kind, now).await?.require()?;
    let rows = versions(&mut tx, &permit, insured, kind, sight, VERSIONS_MAX).await?;
    if rows.is_empty() {
        return Err(nothing_visible(sight));
    }
    let versions: Vec<Value> = rows.iter().map(|row| row.describe(kind, permit.claims())).collect();
    let listed: DocumentSet = rows.iter().map(|row| parsed(&row.kind)).collect::<Result<_, _>>()?;
    About::documents(insured, listed.iter())
        .answer(axum::Json(json!({ "kind": kind, "kind_ja": kind.ja(), "versions": versions })))
}

/// `GET …/documents/{kind}`: the newest visible version.
pub(crate) async fn view(State(hub): State<Hub>, permit: Permitted) -> Result<Response, Refusal> {
    deliver(&hub, &permit, None).await
}

/// `GET …/documents/{kind}/versions/{version}`.
pub(crate) async fn view_version(
    State(hub): State<Hub>,
    permit: Permitted,
) -> Result<Response, Refusal> {
    let version = permit.number("version")?;
    deliver(&hub, &permit, Some(version)).await
}

async fn deliver(hub: &Hub, permit: &Permitted, version: Option<i64>) -> Result<Response, Refusal> {
    let (insured, kind, now) = (permit.insured()?, permit.kind()?, clock::now_s());
    let claims = permit.claims();
    let mut tx = permit.write(hub).await?;
    insured::require(tx.conn(), claims, insured, now).await?;
    let sight = insured::sight(tx.conn(), claims, insured, kind, now).await?.require()?;
    let found: Option<Full> = sqlx::query_as(
        "SELECT insurer, number, kind, version, author, stored_at, content FROM documents
         WHERE insurer = $1 AND number = $2 AND kind = $3 AND ($4 OR author = $5)
           AND ($6 IS NULL OR version = $6) ORDER BY version DESC LIMIT 1",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(kind.as_str())
    .bind(sight.any)
    .bind(claims.principal.party())
    .bind(version)
    .fetch_optional(tx.conn())
    .await?;
    let found = found.ok_or_else(|| nothing_visible(sight))?;
    let subject = Subject::Document(kind, found.version);
    access_history::record(tx.conn(), claims, insured, subject, now).await?;
    tx.commit().await?;
    let about = found.about()?;
    about.answer(axum::Json(found.deliver(kind)?))
}

async fn versions(
    conn: &mut SqliteConnection,
    permit: &Permitted,
    insured: InsuredKey,
    kind: DocumentKind,
    sight: Sight,
    limit: i64,
) -> Result<Vec<Head>, Refusal> {
    Ok(sqlx::query_as(
        "SELECT kind, version, author, stored_at FROM documents
         WHERE insurer = $1 AND number = $2 AND kind = $3 AND ($4 OR author = $5)
         ORDER BY version DESC LIMIT $6",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(kind.as_str())
    .bind(sight.any)
    .bind(permit.claims().principal.party())
    .bind(limit)
    .fetch_all(conn)
    .await?)
}

/// Where an own version could be seen but there is none, a closed gate is the better answer.
fn nothing_visible(sight: Sight) -> Refusal {
    if sight.any || sight.closed.is_empty() {
        Refusal::missing(
            "no_document",
            "there is no such document of this person",
            "この方のこの書類は登録されていません。",
        )
    } else {
        sight.refusal()
    }
}

/// A version without its content.
#[derive(sqlx::FromRow)]
struct Head {
    kind: String,
    version: i64,
    author: String,
    stored_at: i64,
}

impl Head {
    fn describe(&self, kind: DocumentKind, claims: &policies::permit::PermitClaims) -> Value {
        json!({
            "kind": kind,
            "kind_ja": kind.ja(),
            "version": self.version,
            "stored_at": clock::rfc3339(seconds(self.stored_at)),
            "author": self.author,
            "own": self.author == claims.principal.party(),
        })
    }
}

/// A version with its content.
#[derive(sqlx::FromRow)]
struct Full {
    insurer: String,
    number: String,
    kind: String,
    version: i64,
    author: String,
    stored_at: i64,
    content: String,
}

/// A delivered version; its content is the text that was stored.
#[derive(Serialize)]
struct Delivered {
    kind: DocumentKind,
    kind_ja: &'static str,
    version: i64,
    stored_at: String,
    author: String,
    content: Box<RawValue>,
}

impl Full {
    fn about(&self) -> Result<About, Refusal> {
        let insured = InsuredKey { insurer: parsed(&self.insurer)?, number: parsed(&self.number)? };
        Ok(About::documents(insured, [parsed(&self.kind)?]))
    }

    fn deliver(self, kind: DocumentKind) -> Result<Delivered, Refusal> {
        Ok(Delivered {
            kind,
            kind_ja: kind.ja(),
            version: self.version,
            stored_at: clock::rfc3339(seconds(self.stored_at)),
            author: self.author,
            content: RawValue::from_string(self.content)?,
        })
    }
}

const VERSIONS_MAX: i64 = 1_000;
