//! What the gateway counts, in Prometheus form; docs/metrics.md says what each of it means.
//!
//! Invariants: no label holds a name, number or address of a person, an office or a client, and
//! each has a closed list of values (nodes are those of the configuration); what a request counts
//! is looked up by its labels once, and then never again.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

mod feeds;
mod requests;

pub use feeds::FeedMetrics;
pub use requests::RequestMetrics;

/// The gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    registered: Registered,
    /// Of requests, and of the hub's answers to them.
    pub requests: RequestMetrics,
    /// `sekisho_handshakes_total{outcome}`: `full`, `resumed` or the reason of the failure.
    pub handshakes: IntCounterVec,
    /// `sekisho_connections_open`.
    pub connections_open: IntGauge,
    /// `sekisho_policy_loads_total{policy, outcome}`: `active` or `shadow`, `loaded` or `refused`.
    pub policy_loads: IntCounterVec,
    /// `sekisho_policy_shadow_total{cell, difference}`: where a candidate decides otherwise.
    pub shadow_differences: IntCounterVec,
    /// `sekisho_hub_requests_total{node, outcome}`: attempts to have a request answered.
    pub hub_requests: IntCounterVec,
    /// `sekisho_hub_node_up{node}`: whether requests go to the node.
    pub hub_node_up: IntGaugeVec,
    /// `sekisho_response_mismatches_total`: answers of the hub that were not the permitted ones.
    pub response_mismatches: IntCounter,
    /// Of the age of facts.
    pub feeds: FeedMetrics,
    /// Of certificates.
    pub trust: TrustMetrics,
    /// `sekisho_staff_token_cache_total{result}`: `hit` or `miss`.
    pub staff_tokens: IntCounterVec,
}

/// A metric as it is registered, also where nothing was counted yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// The names of its labels.
    pub labels: Vec<String>,
}

/// The registry, and what went into it.
#[derive(Debug, Default)]
struct Registered {
    registry: Registry,
    described: Vec<Described>,
}

impl Registered {
    /// Registers what `made` is, and gives it back.
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        made: Result<C, prometheus::Error>,
    ) -> Result<C, prometheus::Error> {
        let made = made?;
        self.registry.register(Box::new(made.clone()))?;
        self.described.extend(made.desc().into_iter().map(|desc| Described {
            name: desc.fq_name.clone(),
            labels: desc.variable_labels.clone(),
        }));
        Ok(made)
    }

    fn counters(
        &mut self,
        (name, help): (&str, &str),
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&mut self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::new(name, help))
    }
}

/// What a counter says of each value of `label`, where `of` holds of all labels.
fn by_label(
    counters: &IntCounterVec,
    label: &str,
    of: impl Fn(&BTreeMap<String, String>) -> bool,
) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for family in counters.collect() {
        for metric in family.get_metric() {
            let pairs = metric.get_label().iter();
            let labels: BTreeMap<String, String> =
                pairs.map(|pair| (pair.name().to_owned(), pair.value().to_owned())).collect();
            if let Some(value) = labels.get(label).filter(|_| of(&labels)) {
                let sum: &mut u64 = sums.entry(value.clone()).or_default();
                *sum += metric.get_counter().get_value() as u64;
            }
        }
    }
    sums
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// If a metric's name is not valid; a start-up error.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut all = Registered::default();
        let handshakes = ("sekisho_handshakes_total", "TLS handshakes by outcome");
        let loads = ("sekisho_policy_loads_total", "Policies read, by which and outcome");
        let shadow =
            ("sekisho_policy_shadow_total", "Requests that the shadow policy decides otherwise");
        let tokens = ("sekisho_staff_token_cache_total", "Staff tokens looked up, by result");
        let hub = ("sekisho_hub_requests_total", "Attempts on a hub node by outcome");
        let policy_loads = all.counters(loads, &["policy", "outcome"])?;
        for which in ["active", "shadow"] {
            policy_loads.with_label_values(&[which, "refused"]);
        }
        Ok(Self {
            requests: RequestMetrics::new(&mut all)?,
            handshakes: all.counters(handshakes, &["outcome"])?,
            connections_open: all.gauge("sekisho_connections_open", "Open client connections")?,
            policy_loads,
            shadow_differences: all.counters(shadow, &["cell", "difference"])?,
            response_mismatches: all.add(IntCounter::new(
                "sekisho_response_mismatches_total",
                "Answers of the hub that were withheld: not about the permitted person or document",
            ))?,
            hub_requests: all.counters(hub, &["node", "outcome"])?,
            hub_node_up: all.add(IntGaugeVec::new(
                Opts::new("sekisho_hub_node_up", "Whether requests go to a hub node"),
                &["node"],
            ))?,
            feeds: FeedMetrics::new(&mut all)?,
            trust: TrustMetrics::new(&mut all)?,
            staff_tokens: all.counters(tokens, &["result"])?,
            registered: all,
        })
    }

    /// Every metric of the gateway's own; what the audit log counts comes beside.
    pub fn described(&self) -> &[Described] {
        &self.registered.described
    }

    /// What the shadow policy decided otherwise: cell, difference, how often.
    pub fn shadow_counts(&self) -> Vec<(String, String, u64)> {
        let families = self.shadow_differences.collect();
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

    /// Requests refused so far, by reason.
    pub fn denials(&self) -> BTreeMap<String, u64> {
        let denied = |labels: &BTreeMap<String, String>| labels["decision"] == "deny";
        by_label(self.requests.counters(), "reason", denied)
    }

    /// Handshakes so far, by outcome.
    pub fn handshakes(&self) -> BTreeMap<String, u64> {
        by_label(&self.handshakes, "outcome", |_| true)
    }

    /// Takes in what the audit log counts about itself.
    ///
    /// # Errors
    /// If it was taken in before; a start-up error.
    pub fn include(&self, log: &audit_log::Metrics) -> Result<(), prometheus::Error> {
        log.register(&self.registered.registry)
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        let mut bytes = Vec::new();
        // Encoding into memory fails only for an empty metric family, which is then left out.
        let _ = TextEncoder::new().encode(&self.registered.registry.gather(), &mut bytes);
        String::from_utf8(bytes).unwrap_or_default()
    }
}

/// What is counted of certificates and revocation lists.
#[derive(Debug)]
pub struct TrustMetrics {
    /// `sekisho_chain_cache_total{result}`: `hit` or `miss`.
    pub chain_cache: IntCounterVec,
    /// `sekisho_certificate_loads_total{outcome}`: `loaded` or `refused`.
    pub certificate_loads: IntCounterVec,
    /// `sekisho_server_certificate_not_after_seconds`, Unix time.
    pub server_not_after: IntGauge,
    /// `sekisho_trust_anchor_not_after_seconds`, Unix time: of the first that expires.
    pub anchor_not_after: IntGauge,
    /// `sekisho_outside_crl_loads_total{outcome}`: `loaded` or `refused`.
    pub outside_crl_loads: IntCounterVec,
    /// `sekisho_outside_crls_stale`: outside CAs without a fresh revocation list.
    pub outside_crls_stale: IntGauge,
}

impl TrustMetrics {
    fn new(all: &mut Registered) -> Result<Self, prometheus::Error> {
        let chains = ("sekisho_chain_cache_total", "Client chains looked up, by result");
        let certificates = (
            "sekisho_certificate_loads_total",
            "Server certificates and trust bundles that came, by outcome",
        );
        let crls = (
            "sekisho_outside_crl_loads_total",
            "Fetches of outside CAs' revocation lists, by outcome",
        );
        let this = Self {
            chain_cache: all.counters(chains, &["result"])?,
            certificate_loads: all.counters(certificates, &["outcome"])?,
            server_not_after: all.gauge(
                "sekisho_server_certificate_not_after_seconds",
                "When the first of the server's certificates expires, Unix time",
            )?,
            anchor_not_after: all.gauge(
                "sekisho_trust_anchor_not_after_seconds",
                "When the first of the CAs for clients expires, Unix time",
            )?,
            outside_crl_loads: all.counters(crls, &["outcome"])?,
            outside_crls_stale: all.gauge(
                "sekisho_outside_crls_stale",
                "Outside CAs without a fresh revocation list",
            )?,
        };
        // A refusal must be seen to rise, and so to have been none.
        for counters in [&this.certificate_loads, &this.outside_crl_loads] {
            for outcome in ["loaded", "refused"] {
                counters.with_label_values(&[outcome]);
            }
        }
        Ok(this)
    }
}
