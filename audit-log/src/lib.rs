//! The audit log: append-only, hash-chained, on disk before the answer leaves.
//!
//! ```text
//!  gateway, ra, signer, hub                        DIR/00000001.jsonl   header · record · record …
//!     append(&Event) ──► queue ──► one writer ──►      00000002.jsonl   header(prev) · record …
//!        Receipt  ◄── after fdatasync ──┘              lock
//!                                                         │
//!                      sekisho audit …   ◄── read(dir) ───┤
//!                      sekisho audit verify ◄─ verify(dir)┘
//! ```
//!
//! - `entry`: what a record says, and the pseudonym of an insured person.
//! - [`encoding`]: the bytes of a line and what its hash covers; the only thing that writer and
//!   verifier share.
//! - `log`: the queue; `writer`: group commit, rotation, recovery; `segment`: the files.
//! - `read`: streams the records; `verify`: names the first bad one.
//!
//! The chain shows a change that was made without counting the hashes anew. It has no key, so it
//! cannot show that records were cut from the end, nor that everything from some record on was
//! written anew: that takes a signature or a witness outside the disk. Here belong therefore,
//! beside the chain: an RFC 6962 Merkle tree over the records, C2SP checkpoints signed and handed
//! to a witness, proofs that one record is in the log, retention (closing and removing old segments
//! with the checkpoint that still proves them), and search.

mod entry;
pub mod encoding;
mod log;
mod writer;
mod segment;
mod read;
mod verify;

pub use entry::{Entry, Event, Pseudonym};
pub use log::{
    AuditLog, DISK_RESERVE_BYTES, Durability, Error, Options, QUEUE_BYTES_MAX, REOPEN_INTERVAL,
    Receipt, SYNC_INTERVAL, UNSYNCED_RECORDS_MAX,
};
pub use read::read;
pub use verify::{Problem, Summary, VerifyError, verify};
