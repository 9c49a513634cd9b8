//! What a log counts about itself, in Prometheus form.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry, TextEncoder};

/// The metrics of one open log.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// `sekisho_audit_append_seconds`: from append to its record on disk.
    pub(crate) append_seconds: Histogram,
    /// `sekisho_audit_group_records`: records that one commit put on disk.
    pub(crate) group_records: Histogram,
    /// `sekisho_audit_queue_records`.
    pub(crate) queue_records: IntGauge,
    /// `sekisho_audit_queue_bytes`.
    pub(crate) queue_bytes: IntGauge,
    /// `sekisho_audit_disk_free_bytes`: above the reserve that is never used.
    pub(crate) disk_free_bytes: IntGauge,
    /// `sekisho_audit_available`: 1 while records are taken.
    pub(crate) available: IntGauge,
    /// `sekisho_audit_records_total`.
    pub(crate) records: IntCounter,
    /// `sekisho_audit_refusals_counted_total`: refusals that were counted instead of written.
    pub(crate) refusals_counted: IntCounter,
    /// `sekisho_audit_records_refused_total`: records that could not be written.
    pub(crate) records_refused: IntCounter,
    checkpoint_age_seconds: Gauge,
    uncovered_seconds: Gauge,
    heads: Arc<Mutex<Heads>>,
}

#[derive(Debug, Default)]
struct Heads {
    last: Option<Instant>,
    uncovered_since: Option<Instant>,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let seconds =
            vec![0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];
        let records = vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0];
        let histogram = |name: &str, help: &str, buckets| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        };
        Ok(Self {
            append_seconds: histogram(
                "sekisho_audit_append_seconds",
                "Time from appending a record to the record on disk, in seconds",
                seconds,
            )?,
            group_records: histogram(
                "sekisho_audit_group_records",
                "Records put on disk by one commit",
                records,
            )?,
            queue_records: IntGauge::new(
                "sekisho_audit_queue_records",
                "Records that wait for the disk",
            )?,
            queue_bytes: IntGauge::new(
                "sekisho_audit_queue_bytes",
                "Bytes of the records that wait for the disk",
            )?,
            disk_free_bytes: IntGauge::new(
                "sekisho_audit_disk_free_bytes",
                "Bytes left for records on the log's file system",
            )?,
            available: IntGauge::new(
                "sekisho_audit_available",
                "1 while the audit log takes records",
            )?,
            records: IntCounter::new("sekisho_audit_records_total", "Records written")?,
            refusals_counted: IntCounter::new(
                "sekisho_audit_refusals_counted_total",
                "Refusals counted instead of written one by one",
            )?,
            records_refused: IntCounter::new(
                "sekisho_audit_records_refused_total",
                "Records that could not be written",
            )?,
            checkpoint_age_seconds: Gauge::new(
                "sekisho_audit_checkpoint_age_seconds",
                "Time since the last checkpoint was signed, in seconds; -1 before the first",
            )?,
            uncovered_seconds: Gauge::new(
                "sekisho_audit_uncovered_seconds",
                "Age of the oldest record that no checkpoint covers, in seconds",
            )?,
            heads: Arc::default(),
        })
    }

    /// Lets a registry collect them.
    ///
    /// # Errors
    /// When the registry holds metrics of these names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.clone()))
    }

    /// The text exposition format, for a program that has no other metrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Encoding into memory fails only for an empty metric family, which is then left out.
        let _ = TextEncoder::new().encode_utf8(&self.collect(), &mut text);
        text
    }

    /// A record was written that no checkpoint covers.
    pub(crate) fn uncovered(&self, since: Instant) {
        self.heads().uncovered_since.get_or_insert(since);
    }

    /// A checkpoint over everything was signed.
    pub(crate) fn checkpointed(&self) {
        *self.heads() = Heads { last: Some(Instant::now()), uncovered_since: None };
    }

    fn heads(&self) -> std::sync::MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collectors(&self) -> [&dyn Collector; 11] {
        [
            &self.append_seconds,
            &self.group_records,
            &self.queue_records,
            &self.queue_bytes,
            &self.disk_free_bytes,
            &self.available,
            &self.records,
            &self.refusals_counted,
            &self.records_refused,
            &self.checkpoint_age_seconds,
            &self.uncovered_seconds,
        ]
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.collectors().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let age = |since: Option<Instant>| since.map(|since| since.elapsed().as_secs_f64());
        let heads = self.heads();
        let (last, uncovered) = (age(heads.last), age(heads.uncovered_since));
        drop(heads);
        self.checkpoint_age_seconds.set(last.unwrap_or(-1.0));
        self.uncovered_seconds.set(uncovered.unwrap_or(0.0));
        self.collectors().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Encoder;

    #[test]
    fn ages_are_those_of_the_moment_they_are_asked_for() {
        let registry = Registry::new();
        let metrics = Metrics::new().unwrap();
        metrics.register(&registry).unwrap();
        let text = || {
            let mut text = Vec::new();
            TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert!(text().contains("sekisho_audit_checkpoint_age_seconds -1"));
        metrics.uncovered(Instant::now());
        metrics.checkpointed();
        let after = text();
        assert!(metrics.text().contains("sekisho_audit_append_seconds_count 0"));
        assert!(!after.contains("sekisho_audit_checkpoint_age_seconds -1"), "{after}");
        assert!(after.contains("sekisho_audit_uncovered_seconds 0\n"), "{after}");
    }
}
