//! What the gateway counts, in Prometheus form. No label holds a name, number or address.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// The gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `sekisho_requests_total{decision, reason}`.
    pub requests: IntCounterVec,
    /// `sekisho_handshakes_total{outcome}`: `full`, `resumed` or the reason of the failure.
    pub handshakes: IntCounterVec,
    /// `sekisho_connections_open`.
    pub connections_open: IntGauge,
    /// `sekisho_policy_loads_total{policy, outcome}`: `active` or `shadow`, `loaded` or `refused`.
    pub policy_loads: IntCounterVec,
    /// `sekisho_policy_shadow_total{cell, difference}`: where a candidate decides otherwise.
    pub shadow_differences: IntCounterVec,
    /// `sekisho_request_seconds{decision}`: from the request's header to the end of the response.
    pub request_seconds: HistogramVec,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// If a metric's name is not valid; a start-up error.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("sekisho_requests_total", "Requests by decision and primary reason"),
            &["decision", "reason"],
        )?;
        let handshakes = IntCounterVec::new(
            Opts::new("sekisho_handshakes_total", "TLS handshakes by outcome"),
            &["outcome"],
        )?;
        let policy_loads = IntCounterVec::new(
            Opts::new("sekisho_policy_loads_total", "Policies read, by which and outcome"),
            &["policy", "outcome"],
        )?;
        let shadow_differences = IntCounterVec::new(
            Opts::new(
                "sekisho_policy_shadow_total",
                "Requests that the shadow policy decides otherwise",
            ),
            &["cell", "difference"],
        )?;
        let connections_open =
            IntGauge::new("sekisho_connections_open", "Open downstream connections")?;
        let request_seconds = HistogramVec::new(
            HistogramOpts::new("sekisho_request_seconds", "Time to answer a request, in seconds")
                .buckets(vec![0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0]),
            &["decision"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(handshakes.clone()))?;
        registry.register(Box::new(policy_loads.clone()))?;
        registry.register(Box::new(shadow_differences.clone()))?;
        registry.register(Box::new(connections_open.clone()))?;
        registry.register(Box::new(request_seconds.clone()))?;
        Ok(Self {
            registry,
            requests,
            handshakes,
            connections_open,
            policy_loads,
            shadow_differences,
            request_seconds,
        })
    }

    /// What the shadow policy decided otherwise: cell, difference, how often.
    pub fn shadow_counts(&self) -> Vec<(String, String, u64)> {
        let families = prometheus::core::Collector::collect(&self.shadow_differences);
        let counted = families.iter().flat_map(|family| family.get_metric()).map(|metric| {
            let label = |name: &str| {
                let pair = metric.get_label().iter().find(|pair| pair.name() == name);
                pair.map(|pair| pair.value().to_owned()).unwrap_or_default()
            };
            let count = metric.get_counter().get_value();
            (label("cell"), label("difference"), count as u64)
        });
        counted.collect()
    }

    /// Takes in what the audit log counts about itself.
    ///
    /// # Errors
    /// If it was taken in before; a start-up error.
    pub fn include(&self, log: &audit_log::Metrics) -> Result<(), prometheus::Error> {
        log.register(&self.registry)
    }

    /// The text exposition format, with `extra` gauges (name, help, value) that are read at scrape
    /// time.
    pub fn render(&self, extra: &[(&str, &str, f64)]) -> String {
        let mut bytes = Vec::new();
        // Encoding into memory fails only for an empty metric family, which is then left out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut bytes);
        let mut text = String::from_utf8(bytes).unwrap_or_default();
        for (name, help, value) in extra {
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"));
        }
        text
    }
}
