//! docs/metrics.md names every metric of the running gateway with its type and its labels, and none
//! that does not exist.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::World;
use crate::{CARD, SURVEY, office};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

/// Type (where anything was counted yet) and labels of each metric, by name.
type Shown = BTreeMap<String, (Option<String>, BTreeSet<String>)>;

/// The rows of the page's tables.
fn page(text: &str) -> Shown {
    let rows = text.lines().filter(|line| line.starts_with("| `sekisho_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else { panic!("{row}") };
        assert!(!unit.is_empty() && meaning.ends_with('.'), "{row}");
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| label != "–").collect();
        (name.trim_matches('`').to_owned(), (Some(kind.to_owned()), labels))
    })
    .collect()
}

/// What `/metrics` shows.
fn shown(text: &str) -> Shown {
    let mut shown = Shown::new();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for (name, kind) in types.map(|line| line.split_once(' ').unwrap()) {
        shown.insert(name.to_owned(), (Some(kind.to_owned()), BTreeSet::new()));
    }
    for line in text.lines().filter(|line| line.starts_with("sekisho_")) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let family = shown.keys().filter(|family| name.starts_with(family.as_str())).max();
        let family = family.unwrap_or_else(|| panic!("no TYPE: {line}")).clone();
        let pairs = rest.rsplit_once('}').unwrap().0.split("\",").filter(|pair| !pair.is_empty());
        let labels = pairs.map(|pair| pair.split_once('=').unwrap().0.to_owned());
        let labels = labels.filter(|label| label != "le");
        shown.get_mut(&family).unwrap().1.extend(labels);
    }
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_running_gateway_name_the_same_metrics() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    assert_eq!(client.get(CARD, &headers).await.unwrap().status, 200);
    assert_eq!(client.get(SURVEY, &headers).await.unwrap().status, 403);
    for line in [
        "sekisho_requests_total{decision=\"allow\",document=\"insured-card\",reason=\"none\"} 1",
        "sekisho_request_seconds_count{decision=\"deny\"} 1",
        "sekisho_hub_first_byte_seconds_count 1",
        "sekisho_staff_token_cache_total{result=\"hit\"} 1",
        "sekisho_staff_token_cache_total{result=\"miss\"} 1",
        "sekisho_feed_stage{feed=\"hub\"} 0",
        "sekisho_feed_lease_seconds{feed=\"ca\",stage=\"deny\"} 60",
        "sekisho_certificate_loads_total{outcome=\"refused\"} 0",
    ] {
        world.metric(line).await;
    }
    let mut running = shown(&world.admin_get("/metrics").await);
    // What was not counted yet is registered all the same.
    for metric in gateway::metrics::Metrics::new().unwrap().described() {
        let labels = metric.labels.iter().cloned().collect();
        let known = running.entry(metric.name.clone()).or_insert((None, labels));
        assert_eq!(known.1, metric.labels.iter().cloned().collect(), "{}", metric.name);
    }
    let page = page(&std::fs::read_to_string(PAGE).unwrap());
    let names = |all: &Shown| all.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&page), names(&running), "page, then program");
    for (name, (kind, labels)) in running {
        assert_eq!(page[&name].1, labels, "labels of {name}: page, then program");
        if kind.is_some() {
            assert_eq!(page[&name].0, kind, "type of {name}: page, then program");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_ca_to_expire_is_shown() {
    let world = World::start().await;
    let metrics = world.admin_get("/metrics").await;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {metrics}")).trim().parse().unwrap()
    };
    let now = crate::now() as f64;
    assert!(value("sekisho_trust_anchor_not_after_seconds ") > now);
    assert!(value("sekisho_server_certificate_not_after_seconds ") > now);
}
