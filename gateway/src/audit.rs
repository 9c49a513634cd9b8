//! What the gateway writes down: a decision for every request, allowed or denied, a completion with
//! the same request id, and every failed handshake.
//!
//! With `durability = "before-response"` the decision of a permitted request is on disk before the
//! first byte of its response leaves: [`Recorded::on_disk`] is awaited by `proxy` there.
//!
//! Invariants: a permitted request without a decision record does not pass; insured persons appear
//! under their pseudonym only.

use std::net::SocketAddr;

use audit_log::{AuditLog, Event, Pseudonym, Receipt};
use policies::identity::Identity;
use policies::reason::ReasonSet;

use crate::access::{Denied, Permit};
use crate::client_cert::Refused;
use crate::downstream::Connection;

/// Writes the gateway's records.
pub struct Recorder {
    log: AuditLog,
    pseudonym: Pseudonym,
    policy: String,
}

/// A decision record on its way to disk.
#[derive(Debug)]
pub struct Recorded(Receipt);

impl Recorded {
    /// Waits until the record is as durable as the configuration asks.
    ///
    /// # Errors
    /// The log could not be written: nothing may be delivered.
    pub async fn on_disk(self) -> Result<(), audit_log::Error> {
        self.0.durable().await.map(|_| ())
    }
}

impl Recorder {
    /// Records into `log` under the policy of hash `policy`.
    pub fn new(log: AuditLog, pseudonym_key: &[u8; 32], policy: String) -> Self {
        Self { log, pseudonym: Pseudonym::new(pseudonym_key), policy }
    }

    /// Whether records can be written.
    pub fn is_available(&self) -> bool {
        self.log.is_available()
    }

    /// Records that a request was allowed.
    ///
    /// # Errors
    /// The log does not take records: the request must be refused.
    pub fn allowed(
        &self,
        connection: &Connection,
        permit: &Permit,
    ) -> Result<Recorded, audit_log::Error> {
        let claims = permit.claims();
        let event = Event::Decision {
            request_id: claims.request_id.clone(),
            principal: claims.principal.path(),
            serial: claims.serial.to_string(),
            staff: claims.staff.as_ref().map(|staff| staff.id.clone()),
            operation: Some(claims.operation.clone()),
            insured: claims.insured.map(|insured| self.pseudonym.of(&insured.to_string())),
            document: permit.document().map(|document| document.to_string()),
            outcome: "allow".to_owned(),
            reasons: Vec::new(),
            policy: self.policy.clone(),
            facts_ca_seq: claims.facts_ca_seq,
            facts_hub_seq: claims.facts_hub_seq,
            client_addr: connection.address().to_string(),
        };
        self.log.append(&event).map(Recorded)
    }

    /// Records that a request was denied. A log that does not take it is not a reason to answer
    /// otherwise: the denial stands.
    pub fn denied(
        &self,
        connection: &Connection,
        request_id: &str,
        denied: &Denied,
        facts_seq: (u64, u64),
    ) {
        let operation = denied.operation.as_ref();
        let insured = operation.and_then(|operation| operation.insured);
        let event = Event::Decision {
            request_id: request_id.to_owned(),
            principal: connection.client().identity().path(),
            serial: connection.client().serial().to_string(),
            staff: denied.staff.as_ref().map(|staff| staff.id.clone()),
            operation: operation.map(|operation| operation.id.to_string()),
            insured: insured.map(|insured| self.pseudonym.of(&insured.to_string())),
            document: operation
                .and_then(|operation| operation.document)
                .map(|document| document.to_string()),
            outcome: "deny".to_owned(),
            reasons: codes(denied.reasons),
            policy: self.policy.clone(),
            facts_ca_seq: facts_seq.0,
            facts_hub_seq: facts_seq.1,
            client_addr: connection.address().to_string(),
        };
        self.append(&event);
    }

    /// Records how the answer to a request ended.
    pub fn completed(
        &self,
        request_id: &str,
        status: u16,
        bytes_sent: u64,
        duration_us: u64,
        outcome: &str,
    ) {
        self.append(&Event::Completion {
            request_id: request_id.to_owned(),
            status,
            bytes_sent,
            duration_us,
            outcome: outcome.to_owned(),
        });
    }

    /// Records a handshake that ended before there was a verified client.
    pub fn handshake_failed(
        &self,
        address: SocketAddr,
        reason: &str,
        detail: &str,
        refused: Option<&Refused>,
    ) {
        self.append(&Event::HandshakeFailed {
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            client_addr: address.to_string(),
            serial: refused.and_then(|refused| refused.serial).map(|serial| serial.to_string()),
            principal: refused.and_then(|refused| refused.claimed.clone()),
        });
    }

    /// Records that the gateway is ready.
    pub fn started(&self) {
        self.append(&Event::ServiceStarted { version: env!("CARGO_PKG_VERSION").to_owned() });
    }

    /// Records a regular end and closes the log.
    pub fn stopped(&self) {
        self.append(&Event::ServiceStopped);
        self.log.clone().close();
    }

    fn append(&self, event: &Event) {
        if let Err(error) = self.log.append(event) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "audit record could not be written");
        }
    }
}

/// The principal as it may stand in a trace line: kind only, never a number.
pub fn principal_kind(identity: &Identity) -> &'static str {
    match identity {
        Identity::Office { .. } => "office",
        Identity::Municipality { .. } => "municipality",
        Identity::System { .. } => "system",
        Identity::Operator { .. } => "operator",
    }
}

fn codes(reasons: ReasonSet) -> Vec<String> {
    reasons.iter().map(|reason| reason.as_str().to_owned()).collect()
}
