//! The hub: the reference back end behind the gateway.
//!
//! ```text
//!  gateway ── sekisho-permit ──► permit_guard ─► routes ─► handler ─► insured (needs in own rows)
//!                                                            │            │ one transaction
//!             facts feed ◄── feed ◄── change_log ◄───────────┴── work ──► store (SQLite)
//!  operator ── admin socket ──► admin                             └─────► audit log
//!  gateway ── stream of its records ──► gateway_records ──► access_history (the person's own view)
//! ```
//!
//! Invariants:
//! - nothing is answered without a permit that the gateway sealed for exactly this request;
//! - what the permit allows is looked up again in the hub's own rows, in the transaction that reads
//!   or writes the document;
//! - every write is announced before it is committed and recorded after it (`work.rs`); what was
//!   answered with 201 is on disk.
//!
//! The pages of the 介護保険資格確認等WEBサービス and the check of the person's card belong in this crate.

pub mod config;
mod key_file;
pub mod server;
mod socket;
mod ready_file;
mod permit_guard;
mod routes;
mod body;
mod declared;
mod insured;
mod documents;
mod document_form;
mod registration;
mod consent;
mod certification;
mod notices;
mod inbox;
mod sharing;
pub mod careplan_csv;
mod care_plans;
mod staff;
mod gateway_records;
mod retention;
mod access_history;
mod feed;
mod admin;
mod work;
mod store;
mod refusal;
mod clock;
#[cfg(test)]
mod tests;

use std::sync::Arc;

/// What every handler works with.
pub(crate) type Hub = Arc<HubParts>;

/// The open parts of a running hub.
pub(crate) struct HubParts {
    store: store::Store,
    audit: audit_log::AuditLog,
    pseudonym: audit_log::Pseudonym,
    permit_key: policies::permit::PermitKey,
    feed_signer: policies::feed::Signer,
    gateways: feed::Gateways,
    access_index: gateway_records::AccessIndex,
    passwords: staff::password::Passwords,
    token_key: staff::token::TokenKey,
    limits: config::Limits,
}
