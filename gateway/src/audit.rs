//! What the gateway writes down: a decision for every request, allowed or denied, a completion with
//! the same request id, and every failed handshake.
//!
//! With `durability = "before-response"` the decision of a permitted request is on disk before the
//! first byte of its response leaves: [`Recorded::on_disk`] is awaited by `proxy` there.
//!
//! Invariants: a permitted request without a decision record does not pass; a completion is written
//! only where the decision stands in the log by itself; insured persons appear under their
//! pseudonym only.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use audit_log::{ALLOW, Actor, AuditLog, DENY, Event, Object, Pseudonym, Receipt};
use policies::identity::{Identity, Staff};
use policies::operations::{Numbered, Operation};
use policies::overlay::NetworkKind;
use policies::reason::ReasonSet;
use tokio::sync::watch;

use crate::access::{Denied, Permit};
use crate::client_cert::Refused;
use crate::downstream::Connection;
use crate::policy::LivePolicy;

/// Writes the gateway's records.
pub struct Recorder {
    log: AuditLog,
    pseudonym: Pseudonym,
    policy: Arc<LivePolicy>,
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
        self.0.durable().await
    }
}

/// How the answer to a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All of the hub's answer left.
    Complete,
    /// The refusal left.
    Refused,
    /// It was permitted, and the hub's answer was kept back: the facts had moved, or the record
    /// could not be written.
    Withheld,
    /// We cut the connection: the certificate is no longer accepted, or the gateway ends.
    Cut,
    /// The client went away.
    ClientGone,
    /// The hub's answer broke off, or there was none.
    UpstreamFailed,
    /// Something here failed.
    Failed,
}

impl Ending {
    /// The stable word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused => "refused",
            Self::Withheld => "withheld",
            Self::Cut => "cut",
            Self::ClientGone => "client_gone",
            Self::UpstreamFailed => "upstream_failed",
            Self::Failed => "failed",
        }
    }
}

impl Recorder {
    /// Records into `log`.
    pub fn new(log: AuditLog, pseudonym_key: &[u8; 32], policy: Arc<LivePolicy>) -> Self {
        Self { log, pseudonym: Pseudonym::new(pseudonym_key), policy }
    }

    /// Whether records can be written.
    pub fn is_available(&self) -> bool {
        self.log.is_available()
    }

    /// The number of the last record that is on disk.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.log.committed()
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
            actor: actor(connection, claims.staff.as_ref()),
            action: Some(claims.operation.clone()),
            object: self.object(permit.operation()),
            decision: ALLOW.to_owned(),
            reasons: Vec::new(),
            policy: permit.policy().version().to_owned(),
            facts_ca_seq: claims.facts_ca_seq,
            facts_hub_seq: claims.facts_hub_seq,
            client_addr: connection.address().to_string(),
            network: network(connection),
        };
        self.log.append(&event).map(Recorded)
    }

    /// Records that a request was denied; says whether the denial stands in the log by itself. One
    /// of a flood is only counted. A log that does not take it is not a reason to answer otherwise:
    /// the denial stands.
    pub fn denied(
        &self,
        connection: &Connection,
        request_id: &str,
        denied: &Denied,
        facts_seq: (u64, u64),
    ) -> bool {
        let operation = denied.operation.as_deref();
        // A denial that was not decided stands beside the policy in force.
        let decided_with = denied.policy.clone();
        let policy = decided_with.unwrap_or_else(|| Arc::clone(&self.policy.current()));
        let event = Event::Decision {
            request_id: request_id.to_owned(),
            actor: actor(connection, denied.staff.as_ref()),
            action: operation.map(|operation| operation.id.to_string()),
            object: operation.map(|operation| self.object(operation)).unwrap_or_default(),
            decision: DENY.to_owned(),
            reasons: codes(denied.reasons),
            policy: policy.version().to_owned(),
            facts_ca_seq: facts_seq.0,
            facts_hub_seq: facts_seq.1,
            client_addr: connection.address().to_string(),
            network: network(connection),
        };
        self.append(&event).is_some_and(|receipt| !receipt.is_counted())
    }

    /// Records how the answer to a request ended; `reasons` are the codes of a permitted one that
    /// was refused after all.
    pub fn completed(
        &self,
        request_id: &str,
        status: u16,
        bytes_sent: u64,
        duration_us: u64,
        ending: Ending,
        reasons: Vec<String>,
    ) {
        let _ = self.append(&Event::Completion {
            request_id: request_id.to_owned(),
            status,
            bytes_sent,
            duration_us,
            outcome: ending.as_str().to_owned(),
            reasons,
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
        let _ = self.append(&Event::HandshakeFailed {
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            client_addr: address.to_string(),
            actor: refused.and_then(claimed),
        });
    }

    /// Records that the gateway is ready.
    pub fn started(&self) {
        let _ =
            self.append(&Event::ServiceStarted { version: env!("CARGO_PKG_VERSION").to_owned() });
    }

    /// Gives the log to the process at the other end of `successor`; what is recorded here from
    /// then on passes through it.
    ///
    /// # Errors
    /// When it was not taken: the log is written here as before.
    pub async fn hand_over(&self, successor: UnixStream) -> Result<(), audit_log::Error> {
        self.log.hand_over(successor).await?;
        let _ = self.append(&Event::HandedOver);
        Ok(())
    }

    /// Ends the records of a gateway that gave its log away.
    pub fn ended(&self) {
        self.log.clone().close();
    }

    /// Records a regular end and closes the log.
    pub fn stopped(&self) {
        let _ = self.append(&Event::ServiceStopped);
        self.log.clone().close();
    }

    /// What the request is about, as far as its path says.
    fn object(&self, operation: &Operation) -> Object {
        let Operation { insured, insurer, document, numbered, .. } = operation;
        let (version, name) = match (numbered, insurer) {
            (Some(Numbered::Version(version)), _) => (Some(version.to_string()), None),
            (Some(Numbered::Consent(id)), _) => (None, Some(format!("consent/{id}"))),
            (Some(Numbered::InboxItem(id)), Some(insurer)) => {
                (None, Some(format!("municipality/{insurer}/inbox/{id}")))
            }
            (None, Some(insurer)) if insured.is_none() => {
                (None, Some(format!("municipality/{insurer}")))
            }
            (Some(Numbered::InboxItem(_)) | None, _) => (None, None),
        };
        Object {
            insured: insured.map(|insured| self.pseudonym.of(&insured.to_string())),
            document: document.map(|document| document.to_string()),
            document_id: version,
            name,
        }
    }

    fn append(&self, event: &Event) -> Option<Receipt> {
        self.log
            .append(event)
            .inspect_err(|error| {
                let error: &dyn std::error::Error = error;
                tracing::error!(error, "audit record could not be written");
            })
            .ok()
    }
}

/// The network, where it is another than the internet.
fn network(connection: &Connection) -> Option<String> {
    let network = connection.network();
    (network != NetworkKind::Open).then(|| network.as_str().to_owned())
}

fn actor(connection: &Connection, staff: Option<&Staff>) -> Actor {
    let client = connection.client();
    let actor = Actor::of(client.identity().path()).serial(client.shown_serial().to_string());
    match staff {
        Some(staff) => actor.staff(&staff.id, staff.job.as_str()),
        None => actor,
    }
}

/// What a refused certificate says of itself.
fn claimed(refused: &Refused) -> Option<Actor> {
    let serial = refused.serial?;
    let principal = refused.claimed.as_deref().unwrap_or("unidentified");
    Some(Actor::of(principal).serial(serial.to_string()))
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

/// The reasons as they stand in records.
pub fn codes(reasons: ReasonSet) -> Vec<String> {
    reasons.iter().map(|reason| reason.as_str().to_owned()).collect()
}
