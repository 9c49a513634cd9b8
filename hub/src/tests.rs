//! The hub as a whole: its real routers on real unix sockets, with permits sealed by a test key.

pub(crate) mod harness;
mod permits;
mod declared;
mod documents;
mod care_plan_files;
mod consents;
mod notices;
mod staff;
mod access_history;
mod feed;
