//! The audit log: append-only, provable, on disk before the answer leaves.
//!
//! ```text
//!  gateway, ra, signer, hub                       DIR/00000001.jsonl.zst  closed, compressed
//!     append(&Event) ──► queue ──► one writer ──►     00000001.index      to search it
//!        Receipt  ◄── after fdatasync ──┘             00000002.jsonl      header · record · …
//!                  key ──► checkpoint ──────────►     checkpoint          newest signed tree head
//!                                                     tombstone           proof of what is deleted
//!                      read · search · prove  ◄───────┤
//!                      verify(dir, pinned key) ◄──────┘
//! ```
//!
//! - `entry`: what a record says, and the pseudonym of an insured person.
//! - [`encoding`]: the bytes of a line and what its hash covers; with `checkpoint` the only thing
//!   that writer and verifier share.
//! - `checkpoint`: signed tree heads and their keys; `tree`: the Merkle tree while appending.
//! - `log`: the queue; `flood`, `clock`: what is written and when; `writer`: group commit,
//!   checkpoints, rotation, recovery; `handover`: to the process that takes its place; `segment`:
//!   the files; `keeper`: compression and retention.
//! - `read`: streams the records; `verify`: names the first bad one; `prove`: shows one record to
//!   somebody who has nothing else; `index`, `search`: finds records.
//! - `metrics`: what a log counts about itself.
//!
//! A log proves that nothing before a checkpoint was changed, taken out, put in or reordered, to
//! everyone who has the public key; and that nothing was cut off its end, to everyone who has a
//! checkpoint that left the box.

mod entry;
pub mod encoding;
mod checkpoint;
mod tree;
mod log;
mod flood;
mod clock;
mod writer;
mod handover;
mod segment;
mod keeper;
mod read;
mod verify;
mod index;
mod prove;
mod search;
mod metrics;

#[cfg(test)]
mod crafted;

pub use checkpoint::{
    CHECKPOINT_BYTES_MAX, Checkpoint, CheckpointError, CheckpointKey, VerifyingKey,
    latest_checkpoint,
};
pub use entry::{ALLOW, Actor, DENY, Entry, Event, Object, Pseudonym, work_id};
pub use flood::{
    FLUSH_INTERVAL, FLUSH_INTERVAL_LOW, INSURED_COUNTED_MAX, INSURED_NAMED_MAX, PARTIES_MAX,
    PARTIES_WRITTEN_FACTOR, WRITTEN_A_DAY_MAX,
};
pub use index::rebuild_index;
pub use keeper::{RETENTION_GRACE, RETENTION_INTERVAL};
pub use log::{
    ASYNC_QUEUE_BYTES_MAX, AuditLog, DISK_RESERVE_BYTES, Durability, Error, Options,
    PERMIT_RESERVE_BYTES, QUEUE_BYTES_MAX, REOPEN_INTERVAL, RETENTION, Receipt, SEGMENT_BYTES_MAX,
    SYNC_INTERVAL, UNSYNCED_RECORDS_MAX,
};
pub use metrics::Metrics;
pub use prove::{
    ProofError, ProvedRecord, check_consistency_proof, check_record_proof, prove_consistency,
    prove_record,
};
pub use read::{read, read_from};
pub use search::{Found, Query, SearchProgress, search};
pub use segment::{Disk, SpaceCall, SyncCall, WriteCall};
pub use verify::{Deleted, Problem, Summary, VerifyError, VerifyOptions, verify, verify_with};
