//! End-to-end tests: one binary, one file per theme, real programs and real outside clients.
//!
//! Read `mtls` first, then `sharing`: the first shows who gets a connection at all, the second who
//! sees a document.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise, and says where"
)]

mod scenes;
mod mtls;
mod enrolment;
mod sharing;
mod policy;
mod revocation;
mod headers;
mod denials;
mod responses;
mod durability;
mod crash;
mod kill;
mod staleness;
mod upgrade;
mod reload;
mod seeing;
mod dashboard;
mod logs;
mod evidence;
mod heads;
mod keys;
mod bad_input;
mod idempotence;
mod config;
mod doctor;
