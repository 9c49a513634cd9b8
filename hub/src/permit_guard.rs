//! The door of the hub: nothing passes without a permit that the gateway sealed for this request.
//!
//! ```text
//!  request ──► require_permit (whole router, unknown paths too) ─► route ─► Permitted ─► handler
//!                 ├─ 403 permit_required                             └─ other operation: 403
//!                 └─ 503 when the permit has run out: the gateway makes a new one
//! ```
//!
//! Invariants: [`Permitted`] has one constructor, the extractor, which takes the permit that
//! [`require_permit`] opened; every handler asks for it and learns who asks only from it. Identity
//! headers of a request are never read. A handler begins its transaction with [`Permitted::read`],
//! [`Permitted::write`] or [`crate::work::Work::permitted`], which look there at the session of the
//! member of staff that the permit names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use policies::document::DocumentKind;
use policies::identity::{InsuredKey, InsurerNumber, OfficeNumber};
use policies::permit::{self, HEADER, OpenedPermit, PermitClaims};
use policies::reason::Reason;

use sqlx::sqlite::SqliteConnection;
use tokio::time::Instant;

use crate::refusal::{Refusal, finish};
use crate::store::{ReadTx, WriteTx};
use crate::{Hub, body, clock, staff};

/// The id of the operation that a route carries out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteOperation(pub(crate) &'static str);

/// What [`require_permit`] found at the head of a request.
pub(crate) struct Admitted {
    opened: OpenedPermit,
    body_until: Instant,
    body_time: Duration,
}

impl Admitted {
    /// The whole body, if it is not longer than `bytes_max` and here in time.
    pub(crate) async fn read_body(&self, body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
        let bytes = body::read(body, bytes_max, self.body_until).await?;
        self.check_life(clock::now_ms())?;
        Ok(bytes)
    }

    /// Refuses when the permit ran out longer ago than a body may take.
    fn check_life(&self, now_ms: u64) -> Result<(), Refusal> {
        let allowance_ms = u64::try_from(self.body_time.as_millis()).unwrap_or(u64::MAX);
        if self.opened.claims().expires_ms.saturating_add(allowance_ms) < now_ms {
            return Err(Reason::UpstreamUnavailable.into());
        }
        Ok(())
    }
}

/// Opens the permit of every request, whatever its path, and runs the rest to its end even when the
/// gateway hangs up, so that a committed write always gets its records.
pub(crate) async fn require_permit(
    State(hub): State<Hub>,
    mut request: Request,
    next: Next,
) -> Response {
    let opened = match open(&hub, &request) {
        Ok(opened) => opened,
        Err(refusal) => return finish(refusal.into_response(), ""),
    };
    let request_id = opened.claims().request_id.clone();
    let body_time = hub.limits.body_time;
    let body_until = Instant::now() + body_time;
    request.extensions_mut().insert(Arc::new(Admitted { opened, body_until, body_time }));
    match tokio::spawn(next.run(request)).await {
        Ok(response) => finish(response, &request_id),
        Err(error) => finish(Refusal::Internal(Box::new(error)).into_response(), &request_id),
    }
}

fn open(hub: &Hub, request: &Request) -> Result<OpenedPermit, Refusal> {
    let mut headers = request.headers().get_all(HEADER).iter();
    let (Some(header), None) = (headers.next(), headers.next()) else {
        return Err(Refusal::permit("one sekisho-permit header is expected"));
    };
    let header = header.to_str().map_err(|_| Refusal::permit("permit header is not text"))?;
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    hub.permit_key.open(header, request.method().as_str(), target, clock::now_ms()).map_err(
        |error| match error {
            permit::Error::Expired => Reason::UpstreamUnavailable.into(),
            permit::Error::Key
            | permit::Error::Malformed
            | permit::Error::Mac
            | permit::Error::OtherRequest => Refusal::permit(error),
        },
    )
}

/// A request that the gateway permitted, for the operation of this route and the person and insurer
/// of this path.
pub(crate) struct Permitted {
    admitted: Arc<Admitted>,
    parameters: HashMap<String, String>,
}

impl Permitted {
    /// What the gateway permitted.
    pub(crate) fn claims(&self) -> &PermitClaims {
        self.admitted.opened.claims()
    }

    /// The whole body, if it is not longer than `bytes_max` and here in time.
    pub(crate) async fn read_body(&self, body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
        self.admitted.read_body(body, bytes_max).await
    }

    /// Begins a transaction that sees one state of the rows, with the staff session live in it.
    pub(crate) async fn read(&self, hub: &Hub) -> Result<ReadTx, Refusal> {
        let mut tx = hub.store.read().await?;
        self.require_session(&mut tx).await?;
        Ok(tx)
    }

    /// Begins a transaction that may write what needs no audit record of its own, with the staff
    /// session live in it.
    pub(crate) async fn write(&self, hub: &Hub) -> Result<WriteTx, Refusal> {
        let mut tx = hub.store.write().await?;
        self.require_session(tx.conn()).await?;
        Ok(tx)
    }

    /// Refuses when the permit names a member of staff whose session is not live.
    pub(crate) async fn require_session(&self, conn: &mut SqliteConnection) -> Result<(), Refusal> {
        match &self.claims().staff {
            Some(staff) => staff::require_live(conn, self.claims(), staff, clock::now_s()).await,
            None => Ok(()),
        }
    }

    /// The person in the path.
    pub(crate) fn insured(&self) -> Result<InsuredKey, Refusal> {
        self.claims().insured.ok_or_else(|| Refusal::permit("permit names no insured person"))
    }

    /// The municipality in the path, which must be the one that asks.
    pub(crate) fn own_insurer(&self) -> Result<InsurerNumber, Refusal> {
        let insurer =
            self.claims().insurer.ok_or_else(|| Refusal::permit("permit names no insurer"))?;
        if self.claims().principal.party() == format!("municipality/{insurer}") {
            Ok(insurer)
        } else {
            Err(Reason::NotOwnInsurer.into())
        }
    }

    /// The office that asks.
    pub(crate) fn office(&self) -> Result<OfficeNumber, Refusal> {
        self.claims().principal.office().ok_or_else(|| Reason::NotShared.into())
    }

    /// The kind of document in the path, which must be one that is held.
    pub(crate) fn kind(&self) -> Result<DocumentKind, Refusal> {
        let kind = self.parameter("kind").parse::<DocumentKind>().ok();
        kind.filter(|kind| kind.is_held()).ok_or_else(|| Reason::NotHeld.into())
    }

    /// A decimal number in the path.
    pub(crate) fn number(&self, name: &str) -> Result<i64, Refusal> {
        self.parameter(name).parse().map_err(|_| Reason::BadRequest.into())
    }

    /// A part of the path; empty if the route has none of this name.
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }

    fn check_path(&self) -> Result<(), Refusal> {
        let claims = self.claims();
        let differs = |name, claimed: Option<String>| {
            self.parameters.get(name).is_some_and(|path| Some(path.as_str()) != claimed.as_deref())
        };
        let number = claims.insured.map(|insured| insured.number.to_string());
        let insurer = claims
            .insured
            .map(|insured| insured.insurer)
            .or(claims.insurer)
            .map(|insurer| insurer.to_string());
        if differs("insurer", insurer) || differs("number", number) {
            return Err(Refusal::permit("permit is for another person or insurer"));
        }
        Ok(())
    }
}

impl FromRequestParts<Hub> for Permitted {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, hub: &Hub) -> Result<Self, Refusal> {
        let admitted = parts
            .extensions
            .get::<Arc<Admitted>>()
            .cloned()
            .ok_or_else(|| Refusal::permit("no permit"))?;
        let operation = parts.extensions.get::<RouteOperation>().map(|operation| operation.0);
        if operation != Some(admitted.opened.claims().operation.as_str()) {
            return Err(Refusal::permit("permit is for another operation"));
        }
        let Path(parameters) = Path::from_request_parts(parts, hub)
            .await
            .map_err(|_| Refusal::from(Reason::BadRequest))?;
        let permitted = Self { admitted, parameters };
        permitted.check_path()?;
        Ok(permitted)
    }
}

#[cfg(test)]
mod tests {
    use policies::permit::{LIFETIME_MS, PermitKey};

    use super::*;
    use crate::tests::harness::{CARE, TestHub};

    #[tokio::test]
    async fn a_permit_lives_as_long_as_its_body_may_take() {
        let hub = TestHub::start().await;
        let claims = hub.call(CARE, "GET", "/v1/registrations").claims;
        let expires_ms = claims.expires_ms;
        let key = PermitKey::new(&[7; 32]).unwrap();
        let header = key.seal(&claims).unwrap();
        let sealed_ms = expires_ms - LIFETIME_MS;
        let opened = key.open(&header, "GET", "/v1/registrations", sealed_ms).unwrap();
        let body_time = Duration::from_secs(20);
        let admitted = Admitted { opened, body_until: Instant::now() + body_time, body_time };
        assert!(admitted.check_life(expires_ms + 20_000).is_ok());
        let refused = admitted.check_life(expires_ms + 20_001).unwrap_err();
        assert_eq!(refused.code(), "upstream_unavailable");
    }
}
