//! The pingora phases of one request, in call order; each is a call or two into the files above.
//!
//! ```text
//!  request_filter            framing, access, audit   → Permit, or the refusal is answered here
//!  request_body_filter       body limit; decide again if facts moved
//!  upstream_peer             upstream::attempt(&Permit): a node of the hub
//!  upstream_request_filter   hub_request::prepare(&Permit): a head of our own
//!  response_filter           response_check; decide again if facts moved; the record is on disk
//!  response_body_filter      what was withheld does not leave; decide again if facts moved
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
use policies::document::DocumentKind;
use policies::reason::{Reason, ReasonSet};

use crate::access::{Access, Asked, Denied, Permit};
use crate::audit::{Ending, Recorded, Recorder, codes};
use crate::config::Limits;
use crate::denial::{Denial, primary};
use crate::downstream::{BodyDue, Connection, connection_of};
use crate::framing;
use crate::framing::upload::{self, Broken};
use crate::hub_request;
use crate::metrics::Metrics;
use crate::party_limits::PartyLimits;
use crate::response_check::take_declared;
use crate::slots::Slot;
use crate::upstream::{Attempt, Hub, Outcome};

/// The gateway as pingora sees it.
pub struct Gateway {
    access: Arc<Access>,
    recorder: Arc<Recorder>,
    hub: Arc<Hub>,
    parties: Arc<PartyLimits>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

/// What is known of one request while it passes.
pub struct RequestContext {
    started: Instant,
    request_id: String,
    connection: Option<Arc<Connection>>,
    /// The kind that was asked for, where method and path named one.
    document: Option<DocumentKind>,
    /// When the hub was last chosen for the request, until it answers.
    hub_asked: Option<Instant>,
    permit: Option<Permit>,
    attempt: Option<Attempt>,
    /// Nodes of the hub that could not answer, as a set.
    tried: u64,
    recorded: Option<Recorded>,
    /// Whether the decision stands in the log by itself; otherwise there is nothing to complete.
    decided: bool,
    refused: ReasonSet,
    /// Codes with which the hub refused a permitted request.
    refused_by_hub: Vec<String>,
    status: Option<u16>,
    body_bytes: u64,
    withheld: Withheld,
    /// The answer was decided just now, for the first piece of its body too.
    just_released: bool,
    slot: Option<Slot<Arc<str>>>,
    body_due: Option<BodyDue>,
}

impl RequestContext {
    fn broken(&mut self, broken: Broken) -> Box<Error> {
        match broken {
            Broken::Reset => Error::explain(ErrorType::H2Error, "the stream was reset").into_down(),
            Broken::Malformed(ambiguous) => {
                tracing::info!(reason = %ambiguous, "request refused as ambiguous");
                self.refused = Reason::BadRequest.into();
                Error::explain(ErrorType::HTTPStatus(400), "trailers after the request body")
            }
        }
    }
}

/// Whether the hub's body passes, or was withheld after the hub had answered already.
enum Withheld {
    No,
    /// The refusal takes the place of the hub's body.
    Replace(Bytes),
    /// The refusal was sent; the rest of the hub's body is dropped.
    Drop,
    /// What permitted the request went away while the body was on its way: it breaks off there.
    BrokenOff,
}

impl Gateway {
    /// Puts the parts together.
    pub fn new(
        access: Arc<Access>,
        recorder: Arc<Recorder>,
        hub: Arc<Hub>,
        parties: Arc<PartyLimits>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { access, recorder, hub, parties, limits, metrics }
    }

    /// Framing, then access, then the decision record: a permit that was not recorded is none.
    fn admit(
        &self,
        session: &Session,
        connection: &Connection,
        request_id: &str,
    ) -> Result<(Permit, Recorded), Denied> {
        if connection.offence().is_some() {
            return Err(Denied::because(Reason::BadRequest));
        }
        let request = session.req_header();
        let target = self.check_framing(request, connection)?;
        let asked = Asked {
            method: request.method.as_str(),
            path: request.uri.path(),
            target,
            headers: &request.headers,
            request_id,
            address: connection.address().ip(),
            network: connection.network(),
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
        request: &'r RequestHeader,
        connection: &Connection,
    ) -> Result<&'r str, Denied> {
        let checked = framing::check_request(request, &self.limits, connection.names());
        checked.map_err(|ambiguous| {
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
        context.document = denied.operation.as_ref().and_then(|operation| operation.document);
        if denied.reasons.contains(Reason::BadRequest) {
            // Where one request ends is not certain: the connection carries no further one.
            session.set_keepalive(None);
        }
        let status = primary(denied.reasons).status();
        context.status = Some(status);
        respond(session, status, denied.reasons, &context.request_id).await
    }

    /// The hub's answer is the permitted one, as far as it says.
    fn check(
        &self,
        response: &mut ResponseHeader,
        context: &RequestContext,
    ) -> Result<Result<(), Reason>> {
        let permit = permit(context)?;
        let is_refusal = !context.refused_by_hub.is_empty();
        Ok(take_declared(permit, is_refusal, response).map_err(|mismatch| {
            self.metrics.response_mismatches.inc();
            let (request_id, operation) = (&context.request_id, &permit.operation().id);
            tracing::error!(request_id, %operation, %mismatch, "an answer of the hub is withheld");
            Reason::ResponseMismatch
        }))
    }

    /// Decides again if facts, policy or the feeds' age moved since the permit.
    fn still_allowed(&self, context: &RequestContext) -> std::result::Result<(), ReasonSet> {
        match (&context.permit, &context.connection) {
            (Some(permit), Some(connection)) => {
                self.access.still_allowed(connection.client(), permit)
            }
            _ => Ok(()),
        }
    }

    /// Right before the first byte of the response: nothing stale and nothing unrecorded leaves.
    async fn release(
        &self,
        context: &mut RequestContext,
        is_read: bool,
    ) -> std::result::Result<(), ReasonSet> {
        if is_read {
            self.still_allowed(context)?;
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
            document: None,
            hub_asked: None,
            permit: None,
            attempt: None,
            tried: 0,
            recorded: None,
            decided: false,
            refused: ReasonSet::EMPTY,
            refused_by_hub: Vec::new(),
            status: None,
            body_bytes: 0,
            withheld: Withheld::No,
            just_released: false,
            slot: None,
            body_due: None,
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
        session.set_write_timeout(Some(self.limits.response_write_timeout));
        if session.get_keepalive().is_some() {
            // None: the gateway drains, and this answer is the connection's last one.
            session.set_keepalive(Some(self.limits.h1_idle_timeout.as_secs()));
        }
        connection.served();
        framing::forget_empty_body(session.req_header_mut());
        context.connection = Some(connection.clone());
        context.slot = self.parties.take(connection.party());
        if context.slot.is_none() {
            let request = session.req_header();
            let (method, path) = (request.method.as_str(), request.uri.path());
            let denied = self.access.denied(method, path, Reason::RateLimited);
            self.refuse(session, context, &connection, &denied).await?;
            return Ok(true);
        }
        match self.admit(session, &connection, &context.request_id) {
            Ok((permit, recorded)) => {
                context.document = permit.operation().document;
                context.permit = Some(permit);
                context.recorded = Some(recorded);
                context.decided = true;
                let session = session.as_mut();
                if session.is_http2() && !session.is_body_done() {
                    let limit = self.limits.request_body_timeout + BODY_GRACE;
                    context.body_due = Some(connection.body_due(limit));
                }
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
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut RequestContext,
    ) -> Result<()> {
        if end_of_stream {
            context.body_due = None;
        }
        if context.started.elapsed() > self.limits.request_body_timeout {
            context.refused = Reason::BadRequest.into();
            return Err(Error::explain(ErrorType::HTTPStatus(408), "request body came too slowly"));
        }
        context.body_bytes += body.as_ref().map_or(0, Bytes::len) as u64;
        if context.body_bytes > self.limits.request_body_bytes_max {
            context.refused = Reason::BadRequest.into();
            return Err(Error::explain(ErrorType::HTTPStatus(413), "request body is too long"));
        }
        if let Err(reasons) = self.still_allowed(context) {
            // The hub has not seen the end of the body, so nothing of it counts.
            context.refused = reasons;
            let status = ErrorType::HTTPStatus(primary(reasons).status());
            return Err(Error::explain(status, "no longer permitted while its body came"));
        }
        if end_of_stream {
            if body.as_ref().is_some_and(Bytes::is_empty) {
                // pingora would write a last chunk for it, and another one for the end.
                *body = None;
            }
            let checked = upload::check_end(session.as_downstream_mut(), body.is_none()).await;
            checked.map_err(|broken| context.broken(broken))?;
        }
        Ok(())
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
    ) -> Result<Box<HttpPeer>> {
        // The attempt before, if any, ends here.
        context.attempt = None;
        let attempt = self.hub.attempt(permit(context)?, context.tried).ok_or_else(|| {
            let status = Reason::UpstreamUnavailable.status();
            Error::explain(ErrorType::HTTPStatus(status), "no node of the hub answers").into_up()
        })?;
        let body_timeout = self.limits.request_body_timeout + BODY_GRACE;
        let peer = attempt.peer((!session.is_body_empty()).then_some(body_timeout));
        context.attempt = Some(attempt);
        context.hub_asked = Some(Instant::now());
        Ok(peer)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut RequestContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(attempt) = &mut context.attempt {
            attempt.failed(Outcome::Unreachable);
            context.tried |= attempt.bit();
        }
        // Nothing of the request was sent.
        error.set_retry(true);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        context: &mut RequestContext,
        reused: bool,
    ) -> Box<Error> {
        let began = session.response_written().is_some();
        let again =
            *error.esource() == ErrorSource::Upstream && unanswered(&error, context, reused);
        error.set_retry(again && !began);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        let checked = upload::check_standing(session.as_downstream_mut()).await;
        checked.map_err(|broken| context.broken(broken))?;
        let permit = permit(context)?;
        let sealed = self.access.seal(permit).map_err(|error| {
            Error::because(ErrorType::InternalError, "while sealing a permit", error)
        })?;
        hub_request::prepare(permit, &sealed, request)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        if !response.status.is_informational() {
            if let Some(attempt) = &mut context.attempt {
                attempt.answered();
            }
            if let Some(asked) = context.hub_asked.take() {
                self.metrics.requests.hub_answered(asked.elapsed());
            }
        }
        context.refused_by_hub = take_refusal(response);
        let is_read = session.req_header().method == Method::GET;
        let released = match self.check(response, context)? {
            Ok(()) => self.release(context, is_read).await,
            Err(reason) => Err(reason.into()),
        };
        if let Err(reasons) = released {
            // The hub's answer never leaves; the client's connection stays as good as it was.
            context.refused = reasons;
            let asked = &session.req_header().headers;
            let status = primary(reasons).status();
            let mut denial = Denial::new(status, reasons, &context.request_id, asked)?;
            if !has_body(response) {
                // No body follows from the hub, so none can be put in its place.
                denial = denial.without_body()?;
            }
            *response = denial.head;
            context.withheld = Withheld::Replace(denial.body);
            return Ok(());
        }
        context.just_released = true;
        response.remove_header(&http::header::SERVER);
        response.insert_header("sekisho-request-id", &context.request_id)?;
        response.insert_header(http::header::CACHE_CONTROL, "no-store")?;
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        context: &mut RequestContext,
    ) -> Result<Option<Duration>> {
        match std::mem::replace(&mut context.withheld, Withheld::Drop) {
            Withheld::No => {
                // An answer of one piece never breaks off between its head and its body.
                let first = body.is_some() && std::mem::take(&mut context.just_released);
                let is_read = session.req_header().method == Method::GET;
                if let (true, Err(reasons)) = (is_read && !first, self.still_allowed(context)) {
                    context.refused = reasons;
                    context.withheld = Withheld::BrokenOff;
                    let what = "no longer permitted while its answer went out";
                    return Err(Error::explain(ErrorType::InternalError, what));
                }
                context.withheld = Withheld::No;
            }
            Withheld::Replace(refusal) => *body = Some(refusal),
            Withheld::Drop | Withheld::BrokenOff => *body = None,
        }
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut RequestContext,
    ) -> FailToProxy {
        let offended = context.connection.as_ref().and_then(|it| it.offence()).is_some();
        let downstream_gone = *error.esource() == ErrorSource::Downstream && !offended;
        if offended {
            context.refused = Reason::BadRequest.into();
        }
        let is_slow = is_slow_body(error);
        if is_slow {
            context.refused = Reason::BadRequest.into();
        }
        let status = if let ErrorType::HTTPStatus(status) = error.etype() {
            *status
        } else if is_slow {
            408
        } else if offended {
            Reason::BadRequest.status()
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
            connection.answered(!context.refused.is_empty());
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
        let refused = (!context.refused.is_empty()).then(|| primary(context.refused));
        self.metrics.requests.finished(context.document, refused, elapsed);
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

/// Whether the next piece of a body did not come in its time.
fn is_slow_body(error: &Error) -> bool {
    *error.esource() == ErrorSource::Downstream && *error.etype() == ErrorType::ReadTimedout
}

/// How long a body that is late may take to be refused with an answer, by its next byte.
const BODY_GRACE: Duration = Duration::from_secs(1);

/// How a request ended, from what pingora says of it and what we did.
fn ending(error: Option<&Error>, context: &RequestContext) -> Ending {
    let Some(error) = error else {
        return match (context.refused.is_empty(), &context.permit) {
            (true, _) => Ending::Complete,
            (false, Some(_)) => Ending::Withheld,
            (false, None) => Ending::Refused,
        };
    };
    if is_slow_body(error) {
        return Ending::Refused;
    }
    if matches!(context.withheld, Withheld::BrokenOff) {
        return Ending::Cut;
    }
    if let Some(connection) = context.connection.as_ref().filter(|connection| connection.is_cut()) {
        let is_offence = connection.offence().is_some();
        return if is_offence { Ending::Refused } else { Ending::Cut };
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

/// A node failed while it had the request. Says whether another may have it.
fn unanswered(error: &Error, context: &mut RequestContext, reused: bool) -> bool {
    let (Some(permit), Some(attempt)) = (&context.permit, &mut context.attempt) else {
        return false;
    };
    let again = Hub::may_retry(permit, attempt);
    let timed_out = matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
    if reused && !timed_out && !attempt.is_answered() {
        attempt.stale();
        return again;
    }
    attempt.failed(if timed_out { Outcome::TimedOut } else { Outcome::Failed });
    context.tried |= attempt.bit();
    again
}

/// Whether a body follows this head of an answer to a `GET`, `POST`, `PUT` or `DELETE`.
fn has_body(response: &ResponseHeader) -> bool {
    let length = response.headers.get(http::header::CONTENT_LENGTH);
    !matches!(response.status.as_u16(), 204 | 304)
        && length.is_none_or(|length| length.as_bytes() != b"0")
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

async fn respond(
    session: &mut Session,
    status: u16,
    reasons: ReasonSet,
    request_id: &str,
) -> Result<()> {
    let asked = session.req_header();
    let denial = Denial::new(status, reasons, request_id, &asked.headers)?;
    let is_head = asked.method == Method::HEAD;
    session.write_response_header(Box::new(denial.head), is_head).await?;
    if is_head {
        return Ok(());
    }
    session.write_response_body(Some(denial.body), true).await
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
