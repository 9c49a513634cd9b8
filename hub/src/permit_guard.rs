//! The door of the hub: nothing passes without a permit that the gateway sealed for this request.
//!
//! ```text
//!  request ──► require_permit (whole router, unknown paths too) ─► route ─► Permitted ─► handler
//!                 └─ 403 permit_required                             └─ other operation: 403
//! ```
//!
//! INVARIANT: [`Permitted`] has one constructor, the extractor, which takes the permit that
//! [`require_permit`] opened; every handler asks for it and learns who asks only from it. Identity
//! headers of a request are never read.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use policies::document::DocumentKind;
use policies::identity::{InsuredKey, InsurerNumber, OfficeNumber};
use policies::permit::{HEADER, OpenedPermit, PermitClaims};
use policies::reason::Reason;

use crate::refusal::{Refusal, finish};
use crate::{Hub, clock};

/// The id of the operation that a route carries out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteOperation(pub(crate) &'static str);

/// Opens the permit of every request, whatever its path, and runs the rest to its end even when the
/// gateway hangs up, so that a committed write always gets its records.
pub(crate) async fn require_permit(
    State(hub): State<Hub>,
    mut request: Request,
    next: Next,
) -> Response {
    let opened = match open(&hub, &request) {
        Ok(opened) => Arc::new(opened),
        Err(refusal) => return finish(refusal.into_response(), ""),
    };
    let request_id = opened.claims().request_id.clone();
    request.extensions_mut().insert(opened);
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
    hub.permit_key
        .open(header, request.method().as_str(), target, clock::now_ms())
        .map_err(Refusal::permit)
}

/// A request that the gateway permitted, for the operation of this route and the person and insurer
/// of this path.
pub(crate) struct Permitted {
    opened: Arc<OpenedPermit>,
    parameters: HashMap<String, String>,
}

impl Permitted {
    /// What the gateway permitted.
    pub(crate) fn claims(&self) -> &PermitClaims {
        self.opened.claims()
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
        let opened = parts
            .extensions
            .get::<Arc<OpenedPermit>>()
            .cloned()
            .ok_or_else(|| Refusal::permit("no permit"))?;
        let operation = parts.extensions.get::<RouteOperation>().map(|operation| operation.0);
        if operation != Some(opened.claims().operation.as_str()) {
            return Err(Refusal::permit("permit is for another operation"));
        }
        let Path(parameters) = Path::from_request_parts(parts, hub)
            .await
            .map_err(|_| Refusal::from(Reason::BadRequest))?;
        let permitted = Self { opened, parameters };
        permitted.check_path()?;
        Ok(permitted)
    }
}
