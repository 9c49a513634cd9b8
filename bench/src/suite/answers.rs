//! What the other commands answer with `--json`: the parts that the suite reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts by what happened.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Latency in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
}

/// CPU time of the server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) seconds: f64,
    pub(crate) us_per_operation: f64,
}

/// How hard the generator worked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Generator {
    pub(crate) busy: f64,
}

/// Resident memory of the server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) before: u64,
    #[serde(alias = "after")]
    pub(crate) peak: u64,
}

/// `run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunAnswer {
    pub(crate) seconds: f64,
    pub(crate) answered: u64,
    pub(crate) per_second: f64,
    pub(crate) latency: Option<Latency>,
    #[serde(default)]
    pub(crate) statuses: Counts,
    #[serde(default)]
    pub(crate) failures: Counts,
    pub(crate) connections_made: u64,
    pub(crate) connections_resumed: u64,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) generator: Generator,
    #[serde(default)]
    pub(crate) hours: Option<Vec<Hour>>,
}

impl RunAnswer {
    /// Operations that did not end with status 200.
    pub(crate) fn failed(&self) -> u64 {
        let refused = self.statuses.iter().filter(|(status, _)| *status != "200");
        self.failures.values().sum::<u64>() + refused.map(|(_, count)| count).sum::<u64>()
    }

    /// Operations that ended with status 200.
    pub(crate) fn good(&self) -> u64 {
        self.statuses.get("200").copied().unwrap_or_default()
    }
}

/// An hour of the office day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hour {
    pub(crate) hour: u32,
    pub(crate) rate: f64,
    pub(crate) answered: u64,
    pub(crate) failures: u64,
    pub(crate) latency: Option<Latency>,
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
}

/// `storm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StormAnswer {
    pub(crate) terminals: u64,
    pub(crate) answered: u64,
    pub(crate) failures: Counts,
    pub(crate) retries: u64,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    pub(crate) time_to_answer: Option<Latency>,
    pub(crate) established: Established,
    #[serde(default)]
    pub(crate) statuses: Counts,
}

/// Those who were being served when the storm came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Established {
    pub(crate) connections: u64,
    pub(crate) before: Option<Latency>,
    pub(crate) during: Option<Latency>,
    pub(crate) failures: Counts,
}

/// `slow-clients`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlowAnswer {
    pub(crate) good: u64,
    pub(crate) slow: u64,
    pub(crate) kinds: Vec<SlowKind>,
    pub(crate) alone: Served,
    pub(crate) beside: Served,
    pub(crate) memory_bytes: Option<Memory>,
}

/// One way of being slow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlowKind {
    pub(crate) kind: String,
    pub(crate) started: u64,
    pub(crate) closed_by_server: u64,
    pub(crate) median_seconds_to_close: Option<f64>,
}

/// What the good ones had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) per_second: f64,
    pub(crate) latency: Option<Latency>,
    pub(crate) failures: Counts,
}

/// `revocation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RevocationAnswer {
    pub(crate) revoked: u64,
    pub(crate) live_http1: Option<Latency>,
    pub(crate) live_http2: Option<Latency>,
    pub(crate) resumed: Option<Latency>,
    pub(crate) not_refused: u64,
    pub(crate) command: Option<Latency>,
}

/// `stream`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StreamAnswer {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) mib_per_second: f64,
    pub(crate) statuses: Counts,
    pub(crate) failures: Counts,
    pub(crate) cpu_us_per_mib: Option<f64>,
    pub(crate) memory_bytes: Option<Memory>,
}

/// `idle`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct IdleAnswer {
    pub(crate) connections: u64,
    pub(crate) failures: Counts,
    pub(crate) memory_bytes: Option<Memory>,
    pub(crate) bytes_per_connection: Option<f64>,
    pub(crate) seconds: f64,
}

/// `decide`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DecideAnswer {
    pub(crate) registrations: u64,
    pub(crate) offices: u64,
    pub(crate) revocations: u64,
    pub(crate) build_seconds: f64,
    pub(crate) bytes_per_registration: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) hot: Nanoseconds,
    pub(crate) spread: Nanoseconds,
    pub(crate) denied: Nanoseconds,
}

/// How long one decision takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Nanoseconds {
    pub(crate) p50_ns: f64,
    pub(crate) p99_ns: f64,
    pub(crate) mean_ns: f64,
}

/// `issuing`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct IssuingAnswer {
    pub(crate) certificates: u64,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    pub(crate) seconds_for_250000: f64,
    pub(crate) latency: Option<Latency>,
    pub(crate) failures: Counts,
}

/// `audit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AuditAnswer {
    pub(crate) fdatasync: Latency,
    pub(crate) one_caller: Appends,
    pub(crate) some_callers: Appends,
    pub(crate) many_callers: Appends,
    pub(crate) asynchronous: Appends,
    pub(crate) verify: Verified,
    pub(crate) bytes_per_record: f64,
}

/// How appending went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Appends {
    pub(crate) callers: u32,
    pub(crate) records: u64,
    pub(crate) records_per_second: f64,
    pub(crate) latency: Latency,
    pub(crate) cpu_us_per_record: f64,
}

/// How verifying went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verified {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    pub(crate) records_per_second: f64,
    pub(crate) cpu_us_per_record: f64,
}
