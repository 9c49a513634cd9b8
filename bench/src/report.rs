//! What one run found, for the screen and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::cli::{Group, Mode};

/// The result of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) target: String,
    pub(crate) path: String,
    pub(crate) mode: Mode,
    pub(crate) group: Group,
    pub(crate) connections: u32,
    /// Wall-clock seconds from the first operation to the last.
    pub(crate) seconds: f64,
    /// Answered operations per second.
    pub(crate) requests_per_second: f64,
    /// Latency of answered operations; in the connection modes with connecting.
    pub(crate) latency: Option<Latency>,
    /// Answers by HTTP status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Operations that got no answer, by what went wrong.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Connections made during the run.
    pub(crate) connections_made: u64,
    /// Of those, how many resumed a session.
    pub(crate) connections_resumed: u64,
    /// CPU time of the server's process.
    pub(crate) cpu: Option<Cpu>,
}

/// Latency in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: u32,
    pub(crate) p99_us: u32,
    pub(crate) max_us: u32,
}

/// CPU time of the server over the run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cpu {
    pub(crate) pid: u32,
    /// User and system time, seconds.
    pub(crate) seconds: f64,
    /// Microseconds per answered operation.
    pub(crate) us_per_operation: f64,
    /// Whether the run was too short for the kernel's 10 ms ticks.
    pub(crate) coarse: bool,
}

impl Report {
    /// Operations that got an HTTP answer, whatever it said.
    pub(crate) fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }
}

impl Latency {
    /// The nearest-rank percentiles of what was measured; `None` without any.
    pub(crate) fn of(mut measured_us: Vec<u32>) -> Option<Self> {
        measured_us.sort_unstable();
        let rank = |percent: usize| {
            let rank = (measured_us.len() * percent).div_ceil(100);
            measured_us.get(rank.saturating_sub(1)).copied()
        };
        Some(Self { p50_us: rank(50)?, p99_us: rank(99)?, max_us: rank(100)? })
    }
}

impl Cpu {
    pub(crate) fn of(pid: u32, used: Duration, operations: u64) -> Self {
        Self {
            pid,
            seconds: used.as_secs_f64(),
            us_per_operation: used.as_secs_f64() * 1e6 / operations.max(1) as f64,
            coarse: used < COARSE_BELOW,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "target          {}{}", self.target, self.path)?;
        writeln!(
            f,
            "mode            {:?}, {:?}, {} connections",
            self.mode, self.group, self.connections
        )?;
        writeln!(f, "answered        {} in {:.2} s", self.answered(), self.seconds)?;
        writeln!(f, "throughput      {:.0} requests/s", self.requests_per_second)?;
        if let Some(latency) = &self.latency {
            writeln!(
                f,
                "latency         p50 {} µs, p99 {} µs, max {} µs (closed loop)",
                latency.p50_us, latency.p99_us, latency.max_us
            )?;
        }
        for (status, count) in &self.statuses {
            writeln!(f, "status {status}      {count}")?;
        }
        for (failure, count) in &self.failures {
            writeln!(f, "failed          {count}: {failure}")?;
        }
        writeln!(
            f,
            "connections     {} made, {} resumed",
            self.connections_made, self.connections_resumed
        )?;
        if let Some(cpu) = &self.cpu {
            let coarse = if cpu.coarse { " (coarse: use more requests)" } else { "" };
            writeln!(
                f,
                "server CPU      {:.1} µs per operation, {:.2} s in all, pid {}{coarse}",
                cpu.us_per_operation, cpu.seconds, cpu.pid
            )?;
        }
        Ok(())
    }
}

/// Below a hundred ticks of 10 ms, one tick is more than a percent.
const COARSE_BELOW: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        for (measured, expected) in [
            (vec![], None),
            (vec![5], Some((5, 5, 5))),
            ((1..=100).rev().collect(), Some((50, 99, 100))),
            ((1..=1000).collect(), Some((500, 990, 1000))),
            (vec![1, 2], Some((1, 2, 2))),
        ] {
            let found = Latency::of(measured).map(|l| (l.p50_us, l.p99_us, l.max_us));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn cpu_time_is_shared_out_and_short_runs_are_called_coarse() {
        let cpu = Cpu::of(7, Duration::from_secs(2), 100_000);
        assert!((cpu.us_per_operation - 20.0).abs() < 1e-9);
        assert!(!cpu.coarse);
        assert!(Cpu::of(7, Duration::from_millis(990), 1).coarse);
    }
}
