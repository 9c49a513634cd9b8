//! What these programs write into their audit logs: intent before, effect after, outcome last.
//!
//! INVARIANT: each call returns only when the record is on disk, and an error stops the work: a
//! certificate that can not be accounted for is not signed, and a revocation is not answered.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use audit_log::{
    Actor, AuditLog, CheckpointKey, DENY, Durability, Error, Event, Object, Options, work_id,
};

/// Where a program keeps its log, under which key and for how long.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// The folder.
    pub dir: PathBuf,
    /// Signs the log's heads.
    pub key: CheckpointKey,
    /// Whole segments that are older are deleted.
    pub retention: Duration,
}

/// An audit log of one program.
#[derive(Clone)]
pub struct Trail {
    log: AuditLog,
}

/// One piece of work: who wants what done to what.
#[derive(Debug, Clone)]
pub struct Work {
    /// Joins the records of one request, here and in the other program's log.
    pub request_id: Option<String>,
    /// Who wants it.
    pub actor: Actor,
    /// Stable word for what is done, such as `certificate.issue`.
    pub action: &'static str,
    /// What it is done to.
    pub object: Object,
}

impl Work {
    /// The record before the work.
    pub fn intent(&self, detail: impl Into<String>) -> Event {
        Event::Intent {
            request_id: self.request_id.clone(),
            actor: self.actor.clone(),
            action: self.action.to_owned(),
            object: self.object.clone(),
            detail: detail.into(),
        }
    }

    /// The record of a lasting change.
    pub fn effect(&self, detail: impl Into<String>) -> Event {
        Event::Effect {
            request_id: self.request_id.clone(),
            actor: self.actor.clone(),
            action: self.action.to_owned(),
            object: self.object.clone(),
            detail: detail.into(),
        }
    }

    /// The record of the end: `done`, or the code of the error.
    pub fn outcome(&self, result: &str, detail: impl Into<String>) -> Event {
        Event::Outcome {
            request_id: self.request_id.clone(),
            actor: self.actor.clone(),
            action: self.action.to_owned(),
            object: self.object.clone(),
            result: result.to_owned(),
            detail: detail.into(),
        }
    }
}

impl Trail {
    /// Opens the log of `source`.
    ///
    /// # Errors
    /// When the log can not be written.
    pub fn open(keeping: Keeping, source: &str) -> Result<Self, Error> {
        let Keeping { dir, key, retention } = keeping;
        let options = Options {
            durability: Durability::BeforeResponse,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            retention,
            ..Options::new(source, key)
        };
        Ok(Self { log: AuditLog::open(&dir, options)? })
    }

    /// What the log counts about itself, in Prometheus form.
    pub fn metrics(&self) -> String {
        self.log.metrics().text()
    }

    /// Records that the program is about to be ready.
    ///
    /// # Errors
    /// When the log can not be written.
    pub async fn begin(&self) -> Result<(), Error> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.record(&Event::ServiceStarted { version }).await
    }

    /// Writes a record and waits until it is on disk.
    ///
    /// # Errors
    /// When the log can not be written.
    pub async fn record(&self, event: &Event) -> Result<(), Error> {
        self.log.append(event)?.durable().await
    }

    /// Writes that a stranger was refused before any work began, with nobody waiting for it; floods
    /// are counted by the log, by the stranger's address.
    pub fn denied(&self, client: SocketAddr, code: Object, reason: &str) {
        let event = Event::Decision {
            request_id: work_id(),
            actor: Actor::of(format!("address/{}", client.ip())),
            action: Some("certificate.issue".to_owned()),
            object: code,
            decision: DENY.to_owned(),
            reasons: vec![reason.to_owned()],
            policy: String::new(),
            facts_ca_seq: 0,
            facts_hub_seq: 0,
            client_addr: client.to_string(),
            network: None,
        };
        if let Err(error) = self.log.append(&event) {
            tracing::error!(%error, "a refusal could not be recorded in the audit log");
        }
    }

    /// Writes that a connection failed before its first request, with nobody waiting for it; floods
    /// are counted by the log.
    pub fn handshake_failed(&self, client: SocketAddr, error: &io::Error) {
        let timed_out = error.kind() == io::ErrorKind::TimedOut;
        let event = Event::HandshakeFailed {
            reason: if timed_out { "handshake_timeout" } else { "handshake_failed" }.to_owned(),
            detail: error.to_string(),
            client_addr: client.to_string(),
            actor: None,
        };
        if let Err(error) = self.log.append(&event) {
            tracing::error!(%error, "a failed handshake could not be recorded in the audit log");
        }
    }

    /// As [`Trail::record`], for threads outside the async runtime.
    ///
    /// # Errors
    /// When the log can not be written.
    pub fn record_blocking(&self, event: &Event) -> Result<(), Error> {
        self.log.append(event)?.durable_blocking()
    }

    /// Records that the program ends, and closes the log.
    pub async fn close(self) {
        if let Err(error) = self.record(&Event::ServiceStopped).await {
            tracing::error!(%error, "the end could not be recorded in the audit log");
        }
        self.log.close();
    }
}

const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
