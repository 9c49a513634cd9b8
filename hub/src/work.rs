//! One audited write: intent → transaction → effect → outcome.
//!
//! ```text
//!  begin ── Intent appended, BEGIN IMMEDIATE ──► handler checks and writes ──► finish
//!   finish(Ok):  Intent durable → COMMIT → Effect, Outcome("done") durable → answer
//!   finish(Err): ROLLBACK → Outcome(code) → refusal
//! ```
//!
//! Invariants: no row is committed before its intent is on disk; an effect is recorded only after
//! the commit, so that the log never claims what did not happen. An intent without an outcome shows
//! that the hub was stopped in between: the rows, which carry the request id, tell how it ended.

use std::time::Duration;

use audit_log::{Actor, Event, Object, Receipt};
use policies::feed::Fact;
use policies::identity::InsuredKey;
use policies::permit::PermitClaims;
use sqlx::sqlite::SqliteConnection;

use crate::Hub;
use crate::permit_guard::Permitted;
use crate::refusal::Refusal;
use crate::store::WriteTx;

/// Who does what to what: the fields that intent, effect and outcome share.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    request_id: Option<String>,
    actor: Actor,
    action: String,
    object: Object,
    detail: String,
}

impl Deed {
    /// A deed that a permitted request asks for. The person appears under the pseudonym.
    pub(crate) fn of(hub: &Hub, claims: &PermitClaims) -> Self {
        let actor = Actor::of(claims.principal.path()).serial(claims.serial.to_string());
        let actor = match &claims.staff {
            Some(staff) => actor.staff(&staff.id, staff.job.as_str()),
            None => actor,
        };
        let object = match (&claims.insured, &claims.insurer) {
            (Some(insured), _) => person(hub, *insured),
            (None, Some(insurer)) => Object::named(format!("municipality/{insurer}")),
            (None, None) => Object::named(claims.principal.party()),
        };
        Self {
            request_id: Some(claims.request_id.clone()),
            actor,
            action: claims.operation.clone(),
            object,
            detail: String::new(),
        }
    }

    /// A deed of the operator.
    pub(crate) fn by_operator(operator: &str, action: &str, object: Object) -> Self {
        Self {
            // So that a kill between its intent and its outcome is named at the next start.
            request_id: Some(audit_log::work_id()),
            actor: Actor::of(format!("operator/{operator}")),
            action: action.to_owned(),
            object,
            detail: String::new(),
        }
    }

    /// A deed of the hub itself.
    pub(crate) fn by_hub(action: &str, object: Object) -> Self {
        Self { actor: Actor::of("hub"), ..Self::by_operator("", action, object) }
    }

    /// Adds technical detail, one line without personal data.
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn intent(&self) -> Event {
        let Self { request_id, actor, action, object, detail } = self.clone();
        Event::Intent { request_id, actor, action, object, detail }
    }

    fn effect(&self, effect: &str) -> Event {
        let Self { request_id, actor, action, object, .. } = self.clone();
        Event::Effect { request_id, actor, action, object, detail: effect.to_owned() }
    }

    /// One record for all, or one for each person, who is its object.
    fn effects(&self, effect: &str, on: Vec<(Object, String)>) -> Vec<Event> {
        if on.is_empty() {
            return vec![self.effect(effect)];
        }
        let of =
            |(object, effect): (Object, String)| Self { object, ..self.clone() }.effect(&effect);
        on.into_iter().map(of).collect()
    }

    fn outcome(&self, result: &str) -> Event {
        let Self { request_id, actor, action, object, detail } = self.clone();
        Event::Outcome { request_id, actor, action, object, result: result.to_owned(), detail }
    }
}

/// A write that has begun. Dropped without [`Work::finish`], nothing of it remains but its intent.
pub(crate) struct Work {
    hub: Hub,
    tx: WriteTx,
    deed: Deed,
    intent: Receipt,
    effect: String,
    effects_on: Vec<(Object, String)>,
}

impl Work {
    /// Announces `deed` and begins the transaction.
    ///
    /// # Errors
    /// `audit_unavailable` when the log cannot be written; a failure of the database.
    pub(crate) async fn begin(hub: &Hub, deed: Deed) -> Result<Self, Refusal> {
        let intent = hub.audit.append(&deed.intent())?;
        let tx = match hub.store.write().await {
            Ok(tx) => tx,
            Err(error) => {
                let refusal = Refusal::from(error);
                hub.audit.append(&deed.outcome(&refusal.code()))?.durable().await?;
                return Err(refusal);
            }
        };
        Ok(Self {
            hub: hub.clone(),
            tx,
            deed,
            intent,
            effect: String::new(),
            effects_on: Vec::new(),
        })
    }

    /// Announces what a permitted request does, and begins the transaction with the session of its
    /// member of staff live in it. `detail` is one line without personal data.
    ///
    /// # Errors
    /// As [`Work::begin`]; `staff_session_ended`.
    pub(crate) async fn permitted(
        hub: &Hub,
        permit: &Permitted,
        detail: impl Into<String>,
    ) -> Result<Self, Refusal> {
        let mut deed = Deed::of(hub, permit.claims()).detail(detail);
        if let Some((kind, id)) = named_in_path(permit) {
            deed.object = deed.object.document(kind, id);
        }
        let mut work = Self::begin(hub, deed).await?;
        match permit.require_session(work.conn()).await {
            Ok(()) => Ok(work),
            Err(refusal) => work.finish(Err(refusal)).await,
        }
    }

    /// The connection, to read and write rows.
    pub(crate) fn conn(&mut self) -> &mut SqliteConnection {
        self.tx.conn()
    }

    /// Publishes a fact with the rows of this write.
    pub(crate) async fn publish(&mut self, fact: &Fact) -> Result<(), Refusal> {
        Ok(self.tx.publish(fact).await?)
    }

    /// Publishes a fact unless it is current already.
    pub(crate) async fn publish_new(&mut self, fact: &Fact) -> Result<(), Refusal> {
        Ok(self.tx.publish_new(fact).await?)
    }

    /// What the effect record will say was changed.
    pub(crate) fn effect(&mut self, effect: impl Into<String>) {
        self.effect = effect.into();
    }

    /// What kind of document, and which one, effect and outcome will name.
    pub(crate) fn document(&mut self, kind: &str, id: i64) {
        let object = std::mem::take(&mut self.deed.object);
        self.deed.object = object.document(kind, Some(id.to_string()));
    }

    /// As [`Work::effect`], where one request stores documents of several persons: one record a
    /// person, in place of the one for all.
    pub(crate) fn effect_on(
        &mut self,
        insured: InsuredKey,
        (kind, id): (&str, String),
        effect: impl Into<String>,
    ) {
        let object = person(&self.hub, insured).document(kind, Some(id));
        self.effects_on.push((object, effect.into()));
    }

    /// Commits what was written, or rolls it back, and records how it ended. With an `Ok` the
    /// gateways that listen have the published facts when this returns, unless they are slow.
    pub(crate) async fn finish<T>(self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        self.finish_with_seq(result).await.map(|(value, _)| value)
    }

    /// As [`Work::finish`]; also gives the sequence number of the last published fact.
    pub(crate) async fn finish_with_seq<T>(
        self,
        result: Result<T, Refusal>,
    ) -> Result<(T, Option<u64>), Refusal> {
        let Self { hub, tx, deed, intent, effect, effects_on } = self;
        let value = match result {
            Ok(value) => value,
            Err(refusal) => {
                drop(tx);
                hub.audit.append(&deed.outcome(&refusal.code()))?.durable().await?;
                return Err(refusal);
            }
        };
        intent.durable().await?;
        let seq = match tx.commit().await {
            Ok(seq) => seq,
            Err(error) => {
                hub.audit.append(&deed.outcome("commit_failed"))?.durable().await?;
                return Err(error.into());
            }
        };
        // Records reach the disk in order: with the outcome, the effect is durable too.
        for event in deed.effects(&effect, effects_on) {
            drop(hub.audit.append(&event)?);
        }
        hub.audit.append(&deed.outcome("done"))?.durable().await?;
        if let Some(seq) = seq {
            hub.gateways.settle(seq, SETTLE_MAX).await;
        }
        Ok((value, seq))
    }
}

/// A person as the object of a record: by pseudonym, never by number.
pub(crate) fn person(hub: &Hub, insured: InsuredKey) -> Object {
    Object::person(hub.pseudonym.of(&insured.to_string()))
}

/// What the path of the request names beside person and insurer.
fn named_in_path(permit: &Permitted) -> Option<(&'static str, Option<String>)> {
    let number = |name| permit.number(name).ok().map(|number| Some(number.to_string()));
    let kind = permit.kind().ok().map(|kind| (kind.as_str(), None));
    kind.or_else(|| number("consent").map(|id| (CONSENT, id)))
        .or_else(|| number("item").map(|id| (INBOX_ITEM, id)))
}

/// What audit records call things that are no 様式.
pub(crate) const CONSENT: &str = "consent";
/// An item of a municipality's inbox.
pub(crate) const INBOX_ITEM: &str = "inbox-item";
/// 主治医意見書作成依頼.
pub(crate) const OPINION_REQUEST: &str = "opinion-request";

/// How long a write waits for the gateways that listen to apply its facts, so that the client's
/// next request is decided from them. The write itself does not depend on it.
const SETTLE_MAX: Duration = Duration::from_millis(250);
