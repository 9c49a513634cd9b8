//! What measurements are told with: latency from a histogram, CPU time of the server and of the
//! generator itself.

use std::time::Duration;

use serde::Serialize;

/// Latency in microseconds, from an HDR histogram of three significant digits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
}

/// Collects latencies.
#[derive(Debug, Clone)]
pub(crate) struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    /// From 1 µs to an hour; what is longer counts as an hour.
    ///
    /// # Errors
    /// Never with these bounds.
    pub(crate) fn new() -> Result<Self, hdrhistogram::CreationError> {
        hdrhistogram::Histogram::new_with_bounds(1, HOUR_US, 3).map(Self)
    }

    /// Notes one latency.
    pub(crate) fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(HOUR_US);
        self.0.saturating_record(us.max(1));
    }

    /// Adds what another one collected.
    pub(crate) fn add(&mut self, other: &Self) {
        // Both have the same bounds, so that nothing can lie outside.
        let _ = self.0.add(&other.0);
    }

    /// The percentiles; `None` if nothing was collected.
    pub(crate) fn latency(&self) -> Option<Latency> {
        (!self.0.is_empty()).then(|| Latency {
            count: self.0.len(),
            mean_us: self.0.mean(),
            p50_us: self.0.value_at_quantile(0.5),
            p90_us: self.0.value_at_quantile(0.9),
            p99_us: self.0.value_at_quantile(0.99),
            p999_us: self.0.value_at_quantile(0.999),
            max_us: self.0.max(),
        })
    }
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

impl Cpu {
    /// Shares `used` out among `operations`.
    pub(crate) fn of(pid: u32, used: Duration, operations: u64) -> Self {
        Self {
            pid,
            seconds: used.as_secs_f64(),
            us_per_operation: used.as_secs_f64() * 1e6 / operations.max(1) as f64,
            coarse: used < COARSE_BELOW,
        }
    }
}

const HOUR_US: u64 = 3_600_000_000;

/// Below a hundred ticks of 10 ms, one tick is more than a percent.
const COARSE_BELOW: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_three_digits() {
        let mut histogram = Histogram::new().unwrap();
        assert!(histogram.latency().is_none());
        (1..=1000).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let latency = histogram.latency().unwrap();
        for (found, expected) in
            [(latency.p50_us, 500_000), (latency.p99_us, 990_000), (latency.max_us, 1_000_000)]
        {
            assert!(found.abs_diff(expected) <= expected / 1000, "{found} {expected}");
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
