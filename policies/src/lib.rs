//! Sekisho's decision point: identities, the sharing matrix, facts, and the only code that says
//! yes or no.
//!
//! ```text
//!  SAN URI ──► identity ─┐
//!  method + path ──► operations ─┤
//!  feed lines ──► feed ──► facts ─┼──► decide ──► Allow(Grant) ──► permit (sealed for the hub)
//!  sharing-matrix.toml ──► matrix ┘          └──► Deny(Denial with every reason)
//!  overlays/*.toml ──► overlay ─┘
//! ```
//!
//! `bundle` makes a [`matrix::Matrix`] with its overlays from an operator's policy folder;
//! `national` invents the facts of a whole country, to measure and to try policies on.
//!
//! Invariants:
//! - nothing here does I/O, reads a clock or spawns a task: time and bytes come in as arguments
//!   (but for `bundle::folder`, which reads a policy folder for the programs that load one);
//! - what is not written in the data files is denied;
//! - this crate holds the only parser of identities and SAN URIs in the workspace.

pub mod identity;
pub mod browser_session;
pub mod document;
pub mod operations;
pub mod matrix;
pub mod problem;
pub mod overlay;
pub mod feed;
pub mod facts;
pub mod reason;
pub mod problem_document;
pub mod decide;
pub mod permit;
pub mod declared;
pub mod bundle;
pub mod national;
pub mod population;
