//! The entries of an access history: from the hub's own rows, the gateway's decisions, and its
//! counted denials.
//!
//! INVARIANT: every query names the person, by number or by pseudonym; a decision that names nobody
//! is taken only through the person's own row of the same request.

use policies::document::DocumentKind;
use policies::identity::{InsuredKey, Job};
use policies::reason::Reason;
use serde::Serialize;
use sqlx::sqlite::SqliteConnection;

use super::words::{self, End};
use super::{CARE_PLAN_REQUEST, CERTIFICATION, Cursor};
use crate::clock;
use crate::store::seconds;

/// Where an entry comes from. Of the same millisecond, the later source is listed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Delivery = 1,
    Decision = 2,
    Counted = 3,
}

impl Source {
    pub(super) fn from_number(number: i64) -> Option<Self> {
        [Self::Delivery, Self::Decision, Self::Counted]
            .into_iter()
            .find(|source| *source as i64 == number)
    }
}

/// The place of an entry in the list, oldest first. It never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) at_ms: i64,
    pub(super) source: Source,
    pub(super) id: i64,
}

impl Place {
    /// After every entry.
    pub(super) const LAST: Self = Self { at_ms: i64::MAX, source: Source::Counted, id: i64::MAX };

    /// The time in milliseconds and the id below which entries of `source` stand before this place.
    fn bound(self, source: Source) -> (i64, i64) {
        let id = match source.cmp(&self.source) {
            std::cmp::Ordering::Less => i64::MAX,
            std::cmp::Ordering::Equal => self.id,
            std::cmp::Ordering::Greater => 0,
        };
        (self.at_ms, id)
    }

    /// As [`Place::bound`], where the time of the source is in seconds.
    fn bound_s(self, source: Source) -> (i64, i64) {
        let (at_ms, id) = self.bound(source);
        if at_ms % 1_000 == 0 { (at_ms / 1_000, id) } else { (at_ms / 1_000 + 1, 0) }
    }
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: Place,
    party: String,
    party_name: Option<String>,
    staff_job: Option<Job>,
    kind: Option<String>,
    version: Option<i64>,
    action: Option<String>,
    request_id: Option<String>,
    what: What,
}

/// What became of it.
#[derive(Debug)]
enum What {
    Permitted { completion: Option<Completion>, left_the_hub: bool },
    Denied { reasons: Vec<String> },
    Counted { reasons: Vec<String>, count: i64, from_ms: i64 },
}

#[derive(Debug, Clone)]
struct Completion {
    status: i64,
    bytes_sent: i64,
    outcome: String,
    /// Why the permitted request was refused after all.
    reasons: Vec<String>,
}

/// The columns of a completion; they are there together.
#[derive(sqlx::FromRow)]
struct CompletionRow {
    status: Option<i64>,
    bytes_sent: Option<i64>,
    outcome: Option<String>,
    late_reasons: Option<String>,
}

impl CompletionRow {
    fn read(self) -> Result<Option<Completion>, sqlx::Error> {
        let reasons = self.late_reasons.map_or(Ok(Vec::new()), |reasons| list(&reasons))?;
        let Some(((status, bytes_sent), outcome)) =
            self.status.zip(self.bytes_sent).zip(self.outcome)
        else {
            return Ok(None);
        };
        Ok(Some(Completion { status, bytes_sent, outcome, reasons }))
    }
}

impl Completion {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the permitted request was refused after all: the facts had moved before the answer
    /// left, or the hub's own rows said no.
    fn is_refusal(&self) -> bool {
        let names_a_gate = || {
            first_reason(&self.reasons).is_some_and(|reason| {
                !matches!(reason, Reason::BadRequest | Reason::NoSuchOperation)
            })
        };
        self.outcome == "withheld"
            || self.status == FORBIDDEN
            || (self.is_rejection() && names_a_gate())
    }

    /// Whether the request itself was at fault, so that nothing was done.
    fn is_rejection(&self) -> bool {
        (400..500).contains(&self.status)
    }

    fn is_complete(&self) -> bool {
        self.outcome == "complete"
    }
}

const FORBIDDEN: i64 = 403;

/// The form of an entry in the answer.
#[derive(Serialize)]
pub(super) struct Printed<'a> {
    at: String,
    party: &'a str,
    office: Option<&'a str>,
    party_name: Option<&'a str>,
    staff_job: Option<&'static str>,
    staff_job_ja: Option<&'static str>,
    document_kind: Option<&'a str>,
    document_kind_ja: Option<&'static str>,
    version: Option<i64>,
    action: Option<&'a str>,
    action_ja: String,
    decision: &'static str,
    reasons: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    reason_ja: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    request_id: Option<&'a str>,
    text_ja: String,
}

impl Entry {
    pub(super) fn print(&self) -> Printed<'_> {
        let (document_kind, document_kind_ja) = self.kind();
        let reasons = self.reasons();
        let first = first_reason(reasons);
        let (count, from_ms) = match self.what {
            What::Counted { count, from_ms, .. } => (Some(count), Some(from_ms)),
            What::Permitted { .. } | What::Denied { .. } => (None, None),
        };
        let deed = words::Deed::of(self.action.as_deref(), document_kind_ja);
        let (end, who) = (self.end(first), self.who());
        Printed {
            at: clock::rfc3339(seconds(self.place.at_ms) / 1_000),
            party: &self.party,
            office: self.party.strip_prefix("office/"),
            party_name: self.party_name.as_deref(),
            staff_job: self.staff_job.as_ref().map(Job::as_str),
            staff_job_ja: self.staff_job.map(words::job),
            document_kind,
            document_kind_ja,
            version: self.version,
            action: self.action.as_deref(),
            action_ja: deed.short(end),
            decision: if self.is_denied() { "denied" } else { "permitted" },
            reasons,
            reason_ja: first.map(words::because),
            delivered: self.delivered(),
            count,
            from: from_ms.map(|at_ms| clock::rfc3339(seconds(at_ms) / 1_000)),
            request_id: self.request_id.as_deref(),
            text_ja: words::sentence(self.span_s(), &who, count, &deed.long(end)),
        }
    }

    fn is_denied(&self) -> bool {
        match &self.what {
            What::Denied { .. } | What::Counted { .. } => true,
            What::Permitted { completion, .. } => {
                completion.as_ref().is_some_and(Completion::is_refusal)
            }
        }
    }

    /// First and last second.
    fn span_s(&self) -> (u64, u64) {
        let until_ms = seconds(self.place.at_ms);
        let from_ms = match self.what {
            What::Counted { from_ms, .. } => seconds(from_ms),
            What::Permitted { .. } | What::Denied { .. } => until_ms,
        };
        (from_ms / 1_000, until_ms / 1_000)
    }

    fn reasons(&self) -> &[String] {
        match &self.what {
            // Of an answer that did not come, the reasons say nothing of what was done.
            What::Permitted { completion: Some(end), .. }
                if end.is_refusal() || end.is_rejection() =>
            {
                &end.reasons
            }
            What::Permitted { .. } => &[],
            What::Denied { reasons } | What::Counted { reasons, .. } => reasons,
        }
    }

    /// The kind of document and its Japanese name; an operation that names none may be about one.
    fn kind(&self) -> (Option<&str>, Option<&'static str>) {
        let of_action = self.action.as_deref().and_then(|action| match action {
            "certification.view" | "certification.advance" => Some(CERTIFICATION),
            "care-plan-requests.file" | "care-plan-requests.view" => Some(CARE_PLAN_REQUEST),
            _ => None,
        });
        let kind = self.kind.as_deref().or(of_action);
        (kind, kind.and_then(words::kind))
    }

    fn who(&self) -> String {
        words::who(&self.party, self.party_name.as_deref(), self.staff_job)
    }

    fn end(&self, reason: Option<Reason>) -> End {
        let (completion, left_the_hub) = match &self.what {
            What::Denied { .. } | What::Counted { .. } => return End::Denied(reason),
            What::Permitted { completion, left_the_hub } => (completion, *left_the_hub),
        };
        match completion {
            None if left_the_hub => End::Done,
            None => End::Open,
            Some(end) if end.is_refusal() => End::Denied(reason),
            Some(end) if end.is_rejection() => End::Failed,
            Some(end) if !end.is_success() => End::Unconfirmed,
            Some(end) if end.is_complete() => End::Done,
            Some(end) => End::BrokenOff { something_left: end.bytes_sent > 0 },
        }
    }

    /// Whether the answer went out whole; nothing while that is not known.
    fn delivered(&self) -> Option<bool> {
        match &self.what {
            What::Denied { .. } | What::Counted { .. } => Some(false),
            What::Permitted { completion, .. } => {
                completion.as_ref().map(|end| end.is_success() && end.is_complete())
            }
        }
    }
}

#[derive(sqlx::FromRow)]
struct DeliveryRow {
    id: i64,
    at: i64,
    party: String,
    party_name: Option<String>,
    staff_job: Option<String>,
    kind: String,
    version: i64,
    action: String,
    request_id: String,
    #[sqlx(flatten)]
    completion: CompletionRow,
}

/// The hub's own rows, with what the gateway's records of the same request add.
pub(super) async fn deliveries(
    conn: &mut SqliteConnection,
    insured: InsuredKey,
    pseudonym: &str,
    cursor: Cursor,
    rows_max: i64,
) -> Result<Vec<Entry>, sqlx::Error> {
    let (at, id) = cursor.before.bound_s(Source::Delivery);
    let rows: Vec<DeliveryRow> = sqlx::query_as(
        "SELECT a.id, a.at, a.party, d.party_name, a.staff_job, a.kind, a.version, a.action,
           a.request_id, d.status, d.bytes_sent, d.outcome, d.late_reasons
         FROM accesses a LEFT JOIN gateway_decisions d ON d.number = (
           SELECT MIN(n.number) FROM gateway_decisions n WHERE n.request_id = a.request_id
             AND n.decision = 'allow' AND (n.insured = $3 OR n.insured IS NULL))
         WHERE a.insurer = $1 AND a.number = $2 AND (a.at, a.id) < ($4, $5) AND a.id <= $6
         ORDER BY a.at DESC, a.id DESC LIMIT $7",
    )
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(pseudonym)
    .bind(at)
    .bind(id)
    .bind(cursor.last_delivery)
    .bind(rows_max)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Entry::try_from).collect()
}

impl TryFrom<DeliveryRow> for Entry {
    type Error = sqlx::Error;

    fn try_from(row: DeliveryRow) -> Result<Self, sqlx::Error> {
        let is_document = row.kind.parse::<DocumentKind>().is_ok();
        let completion = row.completion.read()?;
        Ok(Self {
            place: Place { at_ms: row.at * 1_000, source: Source::Delivery, id: row.id },
            party: row.party,
            party_name: row.party_name,
            staff_job: job(row.staff_job.as_deref()),
            kind: Some(row.kind),
            version: is_document.then_some(row.version),
            action: Some(row.action),
            request_id: Some(row.request_id),
            what: What::Permitted { completion, left_the_hub: true },
        })
    }
}

#[derive(sqlx::FromRow)]
struct DecisionRow {
    number: i64,
    at: i64,
    party: String,
    party_name: Option<String>,
    staff_job: Option<String>,
    kind: Option<String>,
    document_id: Option<String>,
    action: Option<String>,
    request_id: String,
    decision: String,
    reasons: String,
    #[sqlx(flatten)]
    completion: CompletionRow,
}

/// The gateway's decisions about the person that no row of the hub stands for.
pub(super) async fn decisions(
    conn: &mut SqliteConnection,
    insured: InsuredKey,
    pseudonym: &str,
    cursor: Cursor,
    rows_max: i64,
) -> Result<Vec<Entry>, sqlx::Error> {
    let (at, number) = cursor.before.bound(Source::Decision);
    let rows: Vec<DecisionRow> = sqlx::query_as(
        "SELECT d.number, d.at, d.party, d.party_name, d.staff_job, d.kind, d.document_id,
           d.action, d.request_id, d.decision, d.reasons, d.status, d.bytes_sent, d.outcome,
           d.late_reasons
         FROM gateway_decisions d
         WHERE d.insured = $1 AND (d.at, d.number) < ($2, $3)
           AND NOT (d.decision = 'allow' AND EXISTS (
             SELECT 1 FROM accesses a WHERE a.request_id = d.request_id
               AND a.insurer = $4 AND a.number = $5 AND a.id <= $6))
         ORDER BY d.at DESC, d.number DESC LIMIT $7",
    )
    .bind(pseudonym)
    .bind(at)
    .bind(number)
    .bind(insured.insurer.as_str())
    .bind(insured.number.as_str())
    .bind(cursor.last_delivery)
    .bind(rows_max)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Entry::try_from).collect()
}

impl TryFrom<DecisionRow> for Entry {
    type Error = sqlx::Error;

    fn try_from(row: DecisionRow) -> Result<Self, sqlx::Error> {
        let what = if row.decision == audit_log::ALLOW {
            let completion = row.completion.read()?;
            What::Permitted { completion, left_the_hub: false }
        } else {
            What::Denied { reasons: list(&row.reasons)? }
        };
        let is_document =
            row.kind.as_deref().is_some_and(|kind| kind.parse::<DocumentKind>().is_ok());
        let version = row.document_id.and_then(|id| id.parse().ok()).filter(|_| is_document);
        Ok(Self {
            place: Place { at_ms: row.at, source: Source::Decision, id: row.number },
            party: row.party,
            party_name: row.party_name,
            staff_job: job(row.staff_job.as_deref()),
            kind: row.kind,
            version,
            action: row.action,
            request_id: Some(row.request_id),
            what,
        })
    }
}

#[derive(sqlx::FromRow)]
struct CountedRow {
    number: i64,
    from_at: i64,
    until_at: i64,
    party: String,
    party_name: Option<String>,
    reasons: String,
    count: i64,
}

/// The gateway's denials that were counted, one entry a record.
pub(super) async fn counted(
    conn: &mut SqliteConnection,
    pseudonym: &str,
    cursor: Cursor,
    rows_max: i64,
) -> Result<Vec<Entry>, sqlx::Error> {
    let (at, number) = cursor.before.bound(Source::Counted);
    let rows: Vec<CountedRow> = sqlx::query_as(
        "SELECT number, from_at, until_at, party, party_name, reasons, count
         FROM gateway_denials_counted WHERE insured = $1 AND (until_at, number) < ($2, $3)
         ORDER BY until_at DESC, number DESC LIMIT $4",
    )
    .bind(pseudonym)
    .bind(at)
    .bind(number)
    .bind(rows_max)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Entry::try_from).collect()
}

impl TryFrom<CountedRow> for Entry {
    type Error = sqlx::Error;

    fn try_from(row: CountedRow) -> Result<Self, sqlx::Error> {
        let reasons = list(&row.reasons)?;
        Ok(Self {
            place: Place { at_ms: row.until_at, source: Source::Counted, id: row.number },
            party: row.party,
            party_name: row.party_name,
            staff_job: None,
            kind: None,
            version: None,
            action: None,
            request_id: None,
            what: What::Counted { reasons, count: row.count, from_ms: row.from_at },
        })
    }
}

fn job(text: Option<&str>) -> Option<Job> {
    text.and_then(|text| text.parse().ok())
}

/// The first reason in the order of the gates, of those that this version knows.
fn first_reason(reasons: &[String]) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reasons.iter().any(|code| code == reason.as_str()))
}

fn list(reasons: &str) -> Result<Vec<String>, sqlx::Error> {
    serde_json::from_str(reasons).map_err(|source| sqlx::Error::Decode(Box::new(source)))
}
