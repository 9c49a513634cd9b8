//! The pingora phases of one request, in call order; each is a call or two into the files above.
//!
//! ```text
//!  request_filter            framing, access, audit   → Permit, or the refusal is answered here
//!  request_body_filter       body limit
//!  upstream_peer             upstream::peer(&Permit)
//!  upstream_request_filter   upstream::prepare(&Permit): identity headers out, ours in
//!  response_filter           decide again if facts moved; the record is on disk
//!  response_body_filter      what was withheld does not leave
//!  fail_to_proxy             one clear error
//!  logging                   completion record, metrics
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use policies::reason::{ErrorBody, Reason, ReasonSet};

use crate::access::{Access, Asked, Denied, Permit};
use crate::audit::{Ending, Recorded, Recorder, codes};
use crate::bulk;
use crate::client_cert;
use crate::config::Limits;
use crate::downstream::{Connection, connection_of};
use crate::framing;
use crate::metrics::Metrics;
use crate::slots::{Slot, Slots};
use crate::upstream::Hub;

/// The gateway as pingora sees it.
pub struct Gateway {
    access: Access,
    recorder: Arc<Recorder>,
    hub: Hub,
    in_flight: Arc<Slots<String>>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

/// What is known of one request while it passes.
pub struct RequestContext {
    started: Instant,
    request_id: String,
    connection: Option<Arc<Connection>>,
    permit: Option<Permit>,
    recorded: Option<Recorded>,
    /// Whether the decision stands in the log by itself; otherwise there is nothing to complete.
    decided: bool,
    refused: ReasonSet,
    /// Codes with which the hub refused a permitted request.
    refused_by_hub: Vec<String>,
    status: Option<u16>,
    body_bytes: u64,
    withheld: Withheld,
    slot: Option<Slot<String>>,
}

/// Whether the hub's body passes, or was withheld after the hub had answered already.
enum Withheld {
    No,
    /// The refusal takes the place of the hub's body.
    Replace(Bytes),
    /// The refusal was sent; the rest of the hub's body is dropped.
    Drop,
}

/// From the request's head to the last byte of its body; as long as the hub waits.
const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(20);

impl Gateway {
    /// Puts the parts together.
    pub fn new(
        access: Access,
        recorder: Arc<Recorder>,
        hub: Hub,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let in_flight =
            Slots::new(limits.requests_in_flight_max, limits.requests_in_flight_per_party_max);
        Self { access, recorder, hub, in_flight, limits, metrics }
    }

    /// Framing, then access, then the decision record: a permit that was not recorded is none.
    fn admit(
        &self,
        session: &Session,
        connection: &Connection,
        request_id: &str,
    ) -> Result<(Permit, Recorded), Denied> {
        let request = session.req_header();
        let target = self.check_framing(session, request)?;
        let asked = Asked {
            method: request.method.as_str(),
            path: request.uri.path(),
            target,
            headers: &request.headers,
            request_id,
            address: connection.address().ip(),
        };
        let permit = self.access.authorize(connection.client(), asked)?;
        match self.recorder.allowed(connection, &permit) {
            Ok(recorded) => Ok((permit, recorded)),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "decision could not be recorded, request refused");
                Err(Denied::because(Reason::AuditUnavailable))
            }
        }
    }

    fn check_framing<'r>(
        &self,
        session: &Session,
        request: &'r RequestHeader,
    ) -> Result<&'r str, Denied> {
        let head = session.as_http1().map(|http1| http1.get_headers_raw_bytes());
        head.map_or(Ok(()), |head| framing::check_http1_head(&head))
            .and_then(|()| framing::check_request(request, &self.limits))
            .map_err(|ambiguous| {
                tracing::info!(reason = %ambiguous, "request refused as ambiguous");
                Denied::because(Reason::BadRequest)
            })
    }

    async fn refuse(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
        connection: &Connection,
        denied: &Denied,
    ) -> Result<()> {
        let seq = self.access.facts_seq();
        context.decided = self.recorder.denied(connection, &context.request_id, denied, seq);
        context.refused = denied.reasons;
        if denied.reasons.contains(Reason::BadRequest) {
            // Where one request ends is not certain: the connection carries no further one.
            session.set_keepalive(None);
        }
        let status = primary(denied.reasons).status();
        context.status = Some(status);
        respond(session, status, denied.reasons, &context.request_id).await
    }

    /// Right before the first byte of the response: nothing stale and nothing unrecorded leaves.
    async fn release(
        &self,
        context: &mut RequestContext,
        is_read: bool,
    ) -> std::result::Result<(), ReasonSet> {
        if let (true, Some(permit), Some(connection)) =
            (is_read, &context.permit, &context.connection)
        {
            self.access.still_allowed(connection.client(), permit)?;
        }
        let Some(recorded) = context.recorded.take() else {
            return Ok(());
        };
        recorded.on_disk().await.map_err(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "decision could not be recorded, answer withheld");
            context.decided = false;
            Reason::AuditUnavailable.into()
        })
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext {
            started: Instant::now(),
            request_id: new_request_id(),
            connection: None,
            permit: None,
            recorded: None,
            decided: false,
            refused: ReasonSet::EMPTY,
            refused_by_hub: Vec::new(),
            status: None,
            body_bytes: 0,
            withheld: Withheld::No,
            slot: None,
        }
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
    ) -> Result<bool> {
        let connection = connection_of(session.digest()).ok_or_else(|| {
            Error::explain(ErrorType::InternalError, "session without a verified connection")
        })?;
        session.set_read_timeout(Some(self.limits.request_read_timeout));
        connection.served();
        context.connection = Some(connection.clone());
        context.slot = self.in_flight.take(connection.client().identity().party());
        if context.slot.is_none() {
            let request = session.req_header();
            let (method, path) = (request.method.as_str(), request.uri.path());
            let denied = self.access.denied(method, path, Reason::RateLimited);
            self.refuse(session, context, &connection, &denied).await?;
            return Ok(true);
        }
        match self.admit(session, &connection, &context.request_id) {
            Ok((permit, recorded)) => {
                context.permit = Some(permit);
                context.recorded = Some(recorded);
                context.decided = true;
                Ok(false)
            }
            Err(denied) => {
                self.refuse(session, context, &connection, &denied).await?;
                Ok(true)
            }
        }
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        context: &mut RequestContext,
    ) -> Result<()> {
        if context.started.elapsed() > REQUEST_BODY_TIMEOUT {
            context.refused = Reason::BadRequest.into();
            return Err(Error::explain(ErrorType::HTTPStatus(408), "request body came too slowly"));
        }
        context.body_bytes += body.as_ref().map_or(0, Bytes::len) as u64;
        if context.body_bytes > self.limits.request_body_bytes_max {
            context.refused = Reason::BadRequest.into();
            return Err(Error::explain(ErrorType::HTTPStatus(413), "request body is too long"));
        }
        Ok(())
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        context: &mut RequestContext,
    ) -> Result<Box<HttpPeer>> {
        self.hub.peer(permit(context)?)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        let permit = permit(context)?;
        let sealed = self.access.seal(permit).map_err(|error| {
            Error::because(ErrorType::InternalError, "while sealing a permit", error)
        })?;
        self.hub.prepare(permit, &sealed, request)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        context.refused_by_hub = take_refusal(response);
        let is_read = session.req_header().method == Method::GET;
        if let Err(reasons) = self.release(context, is_read).await {
            // The hub's answer never leaves; the client's connection stays as good as it was.
            context.refused = reasons;
            let has_body = response.status != http::StatusCode::NO_CONTENT;
            let body = if has_body {
                refusal_body(reasons, &context.request_id)
            } else {
                // No body follows a 204 from the hub, so none can be put in its place.
                Bytes::new()
            };
            let status = primary(reasons).status();
            *response = refusal_head(status, &body, &context.request_id)?;
            context.withheld = Withheld::Replace(body);
            return Ok(());
        }
        response.remove_header(&http::header::SERVER);
        response.insert_header("sekisho-request-id", &context.request_id)?;
        response.insert_header(http::header::CACHE_CONTROL, "no-store")?;
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        context: &mut RequestContext,
    ) -> Result<Option<Duration>> {
        match std::mem::replace(&mut context.withheld, Withheld::Drop) {
            Withheld::No => context.withheld = Withheld::No,
            Withheld::Replace(refusal) => *body = Some(refusal),
            Withheld::Drop => *body = None,
        }
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut RequestContext,
    ) -> FailToProxy {
        let downstream_gone = *error.esource() == ErrorSource::Downstream;
        let status = if let ErrorType::HTTPStatus(status) = error.etype() {
            *status
        } else if downstream_gone {
            0
        } else {
            Reason::UpstreamUnavailable.status()
        };
        if context.refused.is_empty() && status != 0 {
            context.refused = Reason::UpstreamUnavailable.into();
        }
        context.status = Some(status);
        if status != 0 && session.response_written().is_none() {
            session.set_keepalive(None);
            // The client may be gone; the completion record says how it ended.
            let _ = respond(session, status, context.refused, &context.request_id).await;
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        context: &mut RequestContext,
    ) {
        if let Some(connection) = &context.connection {
            connection.served();
        }
        let elapsed = context.started.elapsed();
        let written = session.response_written().map(|response| response.status.as_u16());
        let status = written.or(context.status).unwrap_or(0);
        if context.decided {
            let bytes = session.body_bytes_sent() as u64;
            let duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            let ending = ending(error, context);
            let reasons = late_reasons(context);
            let id = &context.request_id;
            self.recorder.completed(id, status, bytes, duration_us, ending, reasons);
        }
        let (decision, reason) = if context.refused.is_empty() {
            ("allow", "none")
        } else {
            ("deny", primary(context.refused).as_str())
        };
        self.metrics.requests.with_label_values(&[decision, reason]).inc();
        self.metrics.request_seconds.with_label_values(&[decision]).observe(elapsed.as_secs_f64());
    }

    /// Paths hold insured numbers, so pingora's own log lines get no request summary.
    fn request_summary(&self, _session: &Session, context: &RequestContext) -> String {
        format!("request {}", context.request_id)
    }

    fn suppress_error_log(
        &self,
        _session: &Session,
        _context: &RequestContext,
        _error: &Error,
    ) -> bool {
        true
    }
}

/// How a request ended, from what pingora says of it and what we did.
fn ending(error: Option<&Error>, context: &RequestContext) -> Ending {
    let Some(error) = error else {
        return match (context.refused.is_empty(), &context.permit) {
            (true, _) => Ending::Complete,
            (false, Some(_)) => Ending::Withheld,
            (false, None) => Ending::Refused,
        };
    };
    if context.connection.as_ref().is_some_and(|connection| connection.is_cut()) {
        return Ending::Cut;
    }
    match error.esource() {
        ErrorSource::Downstream => Ending::ClientGone,
        ErrorSource::Upstream => Ending::UpstreamFailed,
        // A limit of ours, answered with a refusal.
        ErrorSource::Internal | ErrorSource::Unset
            if matches!(error.etype(), ErrorType::HTTPStatus(_)) =>
        {
            Ending::Refused
        }
        ErrorSource::Internal | ErrorSource::Unset => Ending::Failed,
    }
}

/// Why a permitted request was refused after all. The reasons of a denial stand in its decision.
fn late_reasons(context: &mut RequestContext) -> Vec<String> {
    if context.permit.is_none() {
        Vec::new()
    } else if context.refused.is_empty() {
        std::mem::take(&mut context.refused_by_hub)
    } else {
        codes(context.refused)
    }
}

/// Takes out of the hub's answer why it refused, which is for the record and not for the client.
fn take_refusal(response: &mut ResponseHeader) -> Vec<String> {
    let Some(header) = response.remove_header(HUB_REFUSED) else { return Vec::new() };
    if response.status.as_u16() < 400 {
        return Vec::new();
    }
    let is_code = |code: &&str| {
        (1..=CODE_BYTES_MAX).contains(&code.len())
            && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let codes = header.to_str().unwrap_or_default().split(',').filter(is_code);
    codes.take(CODES_MAX).map(str::to_owned).collect()
}

/// The header in which the hub says why it refused: codes, parted by commas.
const HUB_REFUSED: &str = "sekisho-refused";
const CODE_BYTES_MAX: usize = 64;
const CODES_MAX: usize = 32;

fn permit(context: &RequestContext) -> Result<&Permit> {
    context
        .permit
        .as_ref()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "request without a permit"))
}

fn primary(reasons: ReasonSet) -> Reason {
    reasons.iter().next().unwrap_or(Reason::UpstreamUnavailable)
}

async fn respond(
    session: &mut Session,
    status: u16,
    reasons: ReasonSet,
    request_id: &str,
) -> Result<()> {
    let body = refusal_body(reasons, request_id);
    let mut response = refusal_head(status, &body, request_id)?;
    if let Some(seconds) = retry_after_s(reasons) {
        response.insert_header(http::header::RETRY_AFTER, seconds)?;
    }
    let is_head = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(response), is_head).await?;
    if is_head {
        return Ok(());
    }
    session.write_response_body(Some(body), true).await
}

fn refusal_body(reasons: ReasonSet, request_id: &str) -> Bytes {
    Bytes::from(ErrorBody::new(reasons, request_id).to_json())
}

/// When a refusal for too much will be over, in seconds.
fn retry_after_s(reasons: ReasonSet) -> Option<u64> {
    if reasons.contains(Reason::RateLimited) {
        Some(1)
    } else if primary(reasons) == Reason::BulkCeiling {
        Some(bulk::seconds_to_next_hour(client_cert::now()))
    } else {
        None
    }
}

fn refusal_head(status: u16, body: &Bytes, request_id: &str) -> Result<ResponseHeader> {
    let mut response = ResponseHeader::build(status, Some(5))?;
    response.insert_header(http::header::CONTENT_TYPE, "application/json; charset=utf-8")?;
    response.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    response.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    response.insert_header("sekisho-request-id", request_id)?;
    if status == 401 {
        response.insert_header(http::header::WWW_AUTHENTICATE, "Bearer")?;
    }
    Ok(response)
}

/// 24 hex digits: Unix milliseconds, so that ids sort by time, then 52 random bits.
pub fn new_request_id() -> String {
    let mut random = [0; 8];
    // Without randomness the id is only less unique; the milliseconds still tell requests apart.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let random = u64::from_be_bytes(random) & 0xF_FFFF_FFFF_FFFF;
    format!("{:011x}{random:013x}", crate::facts_feed::now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_of_one_length_and_do_not_repeat() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| new_request_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 24));
    }

    #[test]
    fn the_hubs_reasons_are_taken_out_and_only_codes_are_kept() {
        for (status, told, kept) in [
            (403, "not_registered,not_live", vec!["not_registered", "not_live"]),
            (404, "no_document", vec!["no_document"]),
            (422, "Name 1,,x y,0000000001,body_invalid", vec!["body_invalid"]),
            (200, "not_registered", vec![]),
        ] {
            let mut response = ResponseHeader::build(status, None).unwrap();
            response.insert_header(HUB_REFUSED, told).unwrap();
            assert_eq!(take_refusal(&mut response), kept, "{told}");
            assert!(!response.headers.contains_key(HUB_REFUSED), "{told}");
        }
    }
}
