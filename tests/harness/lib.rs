//! The harness of the end-to-end tests: the real programs as processes, real outside clients.
//!
//! ```text
//!  System::start() ──► `sekisho up --demo --detach` in a temporary folder, port 0
//!     │                      └─ reads demo/env.json: addresses, parties, persons
//!     ├─ curl("care-management-1").get(…).send() ──► `curl` ──TLS──► gateway
//!     ├─ keep_open(party) ──► `openssl s_client`, several requests on one connection
//!     ├─ admin(socket, …) ──► `curl --unix-socket`
//!     └─ Drop ──► `sekisho down`, then waits until no process of the folder is left
//! ```
//!
//! Invariants: nothing here speaks HTTP or TLS itself, the clients are other people's; every key is
//! made at run time; every wait has a limit and says what it waited for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test harness stops at the first surprise, and says where"
)]

mod programs;
mod system;
mod client;
mod kept_open;
mod terminal;
mod own_gateway;
mod receivers;

pub use client::{Call, CurlFailed, Reply};
pub use kept_open::KeptOpen;
pub use own_gateway::{OwnGateway, audit_copy};
pub use programs::{Ran, program, run, sekisho, wait_until};
pub use receivers::{Received, datagrams, https, unix_datagrams};
pub use system::{Party, Start, System};
pub use terminal::{Code, EC_P256, Terminal, inspect, new_request, write_certificates};
