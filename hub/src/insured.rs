//! What the hub's own rows say about an insured person right now, and whether they bear out what
//! the gateway permitted.
//!
//! A permit names needs; [`failing`] looks each of them up in the transaction that will read or
//! write the document. So a permit made from facts that are a moment old delivers nothing stale.
//!
//! Invariants: absent row = need not met; reason codes are those of the gateway.

use policies::decide::{GrantedKind, Needs};
use policies::document::{DocumentKind, DocumentSet};
use policies::identity::{InsuredKey, OfficeNumber};
use policies::permit::PermitClaims;
use policies::reason::{Reason, ReasonSet};
use sqlx::sqlite::SqliteConnection;

use crate::refusal::Refusal;
use crate::{consent, notices, registration, sharing};

/// What of one kind of document a request may see.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sight {
    /// Every version.
    pub(crate) any: bool,
    /// The versions that the principal wrote.
    pub(crate) own: bool,
    /// The needs that were not met.
    pub(crate) closed: ReasonSet,
}

impl Sight {
    /// Whether anything may be seen.
    pub(crate) fn is_open(self) -> bool {
        self.any || self.own
    }

    /// Refuses when nothing may be seen.
    pub(crate) fn require(self) -> Result<Self, Refusal> {
        if self.is_open() { Ok(self) } else { Err(self.refusal()) }
    }

    /// The refusal that names what is missing.
    pub(crate) fn refusal(self) -> Refusal {
        if self.closed.is_empty() { Reason::NotShared.into() } else { Refusal::Gates(self.closed) }
    }
}

/// Refuses unless the needs of the whole request are met.
pub(crate) async fn require(
    conn: &mut SqliteConnection,
    claims: &PermitClaims,
    insured: InsuredKey,
    now: u64,
) -> Result<(), Refusal> {
    let closed = failing(conn, claims, claims.needs, insured, None, now).await?;
    if closed.is_empty() { Ok(()) } else { Err(Refusal::Gates(closed)) }
}

/// What the request may see of `kind`: each grant of the permit whose needs are met.
pub(crate) async fn sight(
    conn: &mut SqliteConnection,
    claims: &PermitClaims,
    insured: InsuredKey,
    kind: DocumentKind,
    now: u64,
) -> Result<Sight, Refusal> {
    let mut sight = Sight::default();
    for grant in claims.grants.iter().filter(|grant| grant.document == kind) {
        let GrantedKind { own_only, needs, .. } = *grant;
        let closed = failing(conn, claims, needs, insured, Some(kind), now).await?;
        if closed.is_empty() {
            sight.any |= !own_only;
            sight.own = true;
        } else {
            sight.closed = sight.closed.union(closed);
        }
    }
    Ok(sight)
}

/// The needs that are not met, as reasons.
async fn failing(
    conn: &mut SqliteConnection,
    claims: &PermitClaims,
    needs: Needs,
    insured: InsuredKey,
    kind: Option<DocumentKind>,
    now: u64,
) -> Result<ReasonSet, Refusal> {
    let mut closed = ReasonSet::EMPTY;
    if needs.contains(Needs::LIVE) && !sharing::is_live(conn, insured.insurer, now).await? {
        closed.insert(Reason::NotLive);
    }
    if needs.contains(Needs::CONSENT) {
        // An operation that is not about one kind needs a consent to everything that is held.
        let scope = kind.map_or_else(DocumentSet::held, |kind| [kind].into_iter().collect());
        closed = closed.union(consent::missing(conn, insured, scope, now).await?);
    }
    Ok(closed.union(failing_of_office(conn, claims, needs, insured, now).await?))
}

async fn failing_of_office(
    conn: &mut SqliteConnection,
    claims: &PermitClaims,
    needs: Needs,
    insured: InsuredKey,
    now: u64,
) -> Result<ReasonSet, Refusal> {
    let Some(office) = claims.principal.office() else {
        let asked = OFFICE_NEEDS.iter().filter(|(need, _)| needs.contains(*need));
        return Ok(asked.map(|(_, reason)| *reason).collect());
    };
    let mut closed = ReasonSet::EMPTY;
    for (need, _) in OFFICE_NEEDS.iter().filter(|(need, _)| needs.contains(*need)) {
        closed = closed.union(office_need(conn, *need, office, insured, now).await?);
    }
    Ok(closed)
}

async fn office_need(
    conn: &mut SqliteConnection,
    need: Needs,
    office: OfficeNumber,
    insured: InsuredKey,
    now: u64,
) -> Result<ReasonSet, Refusal> {
    let (met, reason) = match need {
        Needs::REGISTERED => return registration::missing(conn, office, insured, now).await,
        Needs::PLANS_FOR => {
            (notices::plans_for(conn, office, insured).await?, Reason::NotPlanningOffice)
        }
        Needs::OPINION_REQUEST => {
            (notices::is_asked(conn, office, insured, true).await?, Reason::OpinionRequestMissing)
        }
        _ => {
            (notices::is_asked(conn, office, insured, false).await?, Reason::OpinionRequestMissing)
        }
    };
    Ok(if met { ReasonSet::EMPTY } else { reason.into() })
}

/// Needs about the office that asks; for any other principal they are not met.
const OFFICE_NEEDS: [(Needs, Reason); 4] = [
    (Needs::REGISTERED, Reason::NotRegistered),
    (Needs::PLANS_FOR, Reason::NotPlanningOffice),
    (Needs::OPINION_REQUEST, Reason::OpinionRequestMissing),
    (Needs::OPINION_REQUEST_EVER, Reason::OpinionRequestMissing),
];
