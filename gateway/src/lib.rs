//! The gateway: the enforcement point between the open internet and the hub.
//!
//! The files stand in the order in which one request passes through them:
//!
//! ```text
//!  config ─► listener ─► tls ─► client_cert ─► downstream ─► framing ─► session
//!            admission,  TLS    certificate    the stream    refuse     staff token
//!            sockets     1.3    → Verified-    pingora       ambiguous  → VerifiedStaff
//!                        only     Client       reads         HTTP
//!                                                                          │
//!  admin ◄─ facts_feed ─────────► access ◄─────────────────────────────────┘
//!  ready,   signed facts          decide → Permit | Denied
//!  metrics  → Facts                  │
//!  trust  ─► CAs, known chains       │
//!  policy ─► bundle or built-in      │
//!  bulk   ─► reads in this hour      │
//!                                    ├─► audit     decision record, on disk before the first byte
//!                                    │     └─► audit_stream   the records, offered to the hub
//!                                    └─► upstream  takes &Permit: cannot be reached without one
//!                                          └─► response_check   the answer is the permitted one
//!
//!  proxy    the pingora phases that call the above, in call order
//! ```
//!
//! Invariants:
//! - no request reaches the hub without a [`access::Permit`], and only [`access`] makes one;
//! - an office principal is a certificate *and* a staff token;
//! - revocation is looked at on every request, full handshake and resumption alike;
//! - what the gateway does not know is denied.

pub mod config;
pub mod credentials;
pub mod slots;
pub mod admission;
pub mod listener;
pub mod tls;
pub mod client_cert;
pub mod trust;
pub mod outside_ca;
pub mod crl;
pub mod downstream;
pub mod framing;
pub mod session;
pub mod policy;
pub mod bulk;
pub mod access;
pub mod audit;
pub mod audit_stream;
pub mod hub_request;
pub mod upstream;
pub mod response_check;
pub mod party_limits;
pub mod denial;
pub mod proxy;
pub mod facts_copy;
pub mod facts_feed;
pub mod staleness;
pub mod activity;
pub mod admin;
pub mod control;
pub mod metrics;
pub mod takeover;
pub mod entrances;
pub mod reload;
pub mod run;
