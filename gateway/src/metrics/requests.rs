//! Requests: how many by kind of document, decision and reason, and how long they took.

use std::sync::OnceLock;
use std::time::Duration;

use policies::document::DocumentKind;
use policies::reason::Reason;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec};

use super::Registered;

/// What is counted of requests.
#[derive(Debug)]
pub struct RequestMetrics {
    /// `sekisho_requests_total{document, decision, reason}`.
    counters: IntCounterVec,
    /// Those of `counters` that were needed so far, by document and then by reason.
    handles: Vec<OnceLock<IntCounter>>,
    /// `sekisho_request_seconds{decision}`.
    allowed_seconds: Histogram,
    denied_seconds: Histogram,
    /// `sekisho_hub_first_byte_seconds`.
    hub_seconds: Histogram,
}

impl RequestMetrics {
    pub(super) fn new(all: &mut Registered) -> Result<Self, prometheus::Error> {
        let requests =
            ("sekisho_requests_total", "Requests by kind of document, decision and primary reason");
        let counters = all.counters(requests, &["document", "decision", "reason"])?;
        let histogram = |name, help| HistogramOpts::new(name, help).buckets(BUCKETS_S.to_vec());
        let options = histogram(
            "sekisho_request_seconds",
            "Time from a request's head to the end of its response, in seconds",
        );
        let seconds = all.add(HistogramVec::new(options, &["decision"]))?;
        let hub_seconds = all.add(Histogram::with_opts(histogram(
            "sekisho_hub_first_byte_seconds",
            "Time from choosing the hub to the first byte of its answer, in seconds",
        )))?;
        let handles = (DocumentKind::ALL.len() + 1) * REASONS;
        Ok(Self {
            counters,
            handles: std::iter::repeat_with(OnceLock::new).take(handles).collect(),
            allowed_seconds: seconds.with_label_values(&["allow"]),
            denied_seconds: seconds.with_label_values(&["deny"]),
            hub_seconds,
        })
    }

    /// A request came to its end: allowed, or `refused` for its primary reason.
    pub fn finished(
        &self,
        document: Option<DocumentKind>,
        refused: Option<Reason>,
        took: Duration,
    ) {
        self.count(document, refused);
        let seconds = if refused.is_none() { &self.allowed_seconds } else { &self.denied_seconds };
        seconds.observe(took.as_secs_f64());
    }

    /// The same for what was refused before it could be timed.
    pub fn count(&self, document: Option<DocumentKind>, refused: Option<Reason>) {
        let document_at = document.map_or(0, |kind| kind as usize + 1);
        let reason_at = refused.map_or(0, |reason| reason as usize + 1);
        // INVARIANT: there is a handle for every pair.
        let Some(handle) = self.handles.get(document_at * REASONS + reason_at) else { return };
        let counter = handle.get_or_init(|| {
            let document = document.as_ref().map_or("none", DocumentKind::as_str);
            let decision = if refused.is_none() { "allow" } else { "deny" };
            let reason = refused.as_ref().map_or("none", Reason::as_str);
            self.counters.with_label_values(&[document, decision, reason])
        });
        counter.inc();
    }

    /// The hub began to answer.
    pub fn hub_answered(&self, took: Duration) {
        self.hub_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn counters(&self) -> &IntCounterVec {
        &self.counters
    }
}

/// Reasons, and that there is none.
const REASONS: usize = Reason::ALL.len() + 1;

/// From a refusal out of memory to the longest wait for a body.
const BUCKETS_S: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_of_document_and_reason_has_a_counter_of_its_own() {
        let metrics = RequestMetrics::new(&mut Registered::default()).unwrap();
        let with_none = |kinds: &[DocumentKind]| -> Vec<Option<DocumentKind>> {
            std::iter::once(None).chain(kinds.iter().copied().map(Some)).collect()
        };
        let documents = with_none(DocumentKind::ALL);
        let mut reasons: Vec<Option<Reason>> = Reason::ALL.iter().copied().map(Some).collect();
        reasons.push(None);
        for document in &documents {
            reasons.iter().for_each(|reason| metrics.count(*document, *reason));
        }
        assert_eq!(metrics.handles.len(), documents.len() * reasons.len());
        for handle in &metrics.handles {
            assert_eq!(handle.get().map(IntCounter::get), Some(1));
        }
    }
}
