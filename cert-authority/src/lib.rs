//! The certificate authority: who gets a certificate, who loses it, and how the gateway learns.
//!
//! ```text
//!  office ── TLS 1.3 ──► est ──► enrol ──► protocol ══ unix socket ══► signer ──► issuer ──► lint
//!  (CSR, one-time code)            │  │                                  │ profile · request
//!  (again)
//!                                  │  └── lint (again) ◄── certificate ──┘
//!  operator ── admin socket ► admin┤
//!                                store ──► change log ──► feed ── signed lines ──► gateways (acks)
//! ```
//!
//! Two programs, two security contexts. `sekisho-ra` faces the network, parses what strangers send
//! and holds no CA key. `sekisho-signer` holds the issuing key, has no network, and believes
//! nothing that the RA says: it checks profile, identity, key, validity and rate itself.
//!
//! Invariants:
//! - a certificate's content comes from its profile; of a CSR only the public key is taken;
//! - a serial number is recorded before it is signed, and never signed twice;
//! - a certificate leaves a program only after another parser has read back what was asked for;
//! - a fact is written in the same transaction as the rows it tells of;
//! - every program here writes its own audit log: intent, effect, outcome.
//!
//! The modules stand in the order in which a certificate comes to be. Here belong also: sharded
//! CRLs for other consumers (there is no OCSP: the feed is faster and needs no live answer), the
//! roll-over between two issuing CAs, keys in PKCS#11 tokens, renewal by mTLS, and the enrolment
//! web page.

pub mod config;
pub mod key;
pub mod profile;
pub mod request;
pub mod issuer;
pub mod lint;
pub mod ceremony;
pub mod audit;
pub mod protocol;
pub mod signer;
pub mod store;
pub mod enrol;
pub mod est;
pub mod feed;
pub mod admin;
pub mod serve;
pub mod slots;
pub mod ra;

#[cfg(test)]
mod testing;
