//! Dashboard and alert rules ask for what there is: every metric, label and reason that they name
//! is in docs/metrics.md and docs/reasons.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

fn repository(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(name)).unwrap()
}

/// What there is to be asked for.
struct Known {
    /// Labels by name of a series.
    series: BTreeMap<String, BTreeSet<String>>,
    reasons: BTreeSet<String>,
}

impl Known {
    fn read() -> Self {
        let mut series = BTreeMap::new();
        for row in repository("docs/metrics.md").lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (name, kind) = (cells[1].trim_matches('`'), cells[2]);
            let labels: BTreeSet<String> =
                cells[4].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            if kind == "histogram" {
                let of_buckets = labels.iter().cloned().chain(["le".to_owned()]).collect();
                series.insert(format!("{name}_bucket"), of_buckets);
                series.insert(format!("{name}_sum"), labels.clone());
                series.insert(format!("{name}_count"), labels);
            } else {
                series.insert(name.to_owned(), labels);
            }
        }
        series.insert("up".to_owned(), BTreeSet::new());
        let page = repository("docs/reasons.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let reasons = rows.filter_map(|row| row.split('`').next()).map(str::to_owned).collect();
        Self { series, reasons }
    }

    /// Everything that an expression asks for and that does not exist.
    fn missing(&self, expression: &str) -> Vec<String> {
        let mut missing = Vec::new();
        let asked = words(expression);
        let names = asked.iter().filter(|word| word.starts_with("sekisho_") || *word == "up");
        let names: Vec<&String> = names.collect();
        if names.is_empty() {
            missing.push(format!("no metric in `{expression}`"));
        }
        let mut labels: BTreeSet<String> = ["instance", "job"].map(str::to_owned).into();
        for name in names {
            match self.series.get(name) {
                Some(own) => labels.extend(own.iter().cloned()),
                None => missing.push(format!("metric {name}")),
            }
        }
        for label in groups(expression).into_iter().chain(matchers(expression).into_keys()) {
            if !labels.contains(&label) {
                missing.push(format!("label {label}"));
            }
        }
        for value in matchers(expression).remove("reason").unwrap_or_default() {
            if !self.reasons.contains(&value) {
                missing.push(format!("reason {value}"));
            }
        }
        missing
    }
}

/// Names outside of strings.
fn words(expression: &str) -> Vec<String> {
    let outside: String = expression.split('"').step_by(2).collect::<Vec<_>>().join("\"");
    let parts = outside.split(|at: char| !at.is_ascii_alphanumeric() && at != '_');
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Labels in `by (…)`, `on (…)` and the like.
fn groups(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    for keyword in ["by (", "without (", "on (", "ignoring (", "group_left (", "group_right ("] {
        for part in expression.split(keyword).skip(1) {
            let inside = part.split(')').next().unwrap_or_default();
            found.extend(inside.split(',').map(|label| label.trim().to_owned()));
        }
    }
    found
}

/// Labels in `{…}` with the values that are asked for.
fn matchers(expression: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for part in expression.split('{').skip(1) {
        let inside = part.split('}').next().unwrap_or_default();
        let mut pieces = inside.split('"');
        while let (Some(label), Some(values)) = (pieces.next(), pieces.next()) {
            let label = label.trim_matches(|at: char| !at.is_ascii_alphanumeric() && at != '_');
            let values = values.split('|').map(str::to_owned);
            found.entry(label.to_owned()).or_default().extend(values);
        }
    }
    found
}

#[test]
fn what_does_not_exist_is_found() {
    let known = Known::read();
    for (expression, missing) in [
        ("rate(sekisho_requests_total{decision=\"deny\"}[5m])", vec![]),
        ("sum by (le) (rate(sekisho_request_seconds_bucket[5m]))", vec![]),
        ("sekisho_requests", vec!["metric sekisho_requests"]),
        ("sekisho_request_seconds", vec!["metric sekisho_request_seconds"]),
        ("sum by (office) (sekisho_requests_total)", vec!["label office"]),
        ("sekisho_connections_open{decision=\"deny\"}", vec!["label decision"]),
        ("sekisho_requests_total{reason=~\"not_live|no_such\"}", vec!["reason no_such"]),
        ("time() > 5", vec!["no metric in `time() > 5`"]),
    ] {
        assert_eq!(known.missing(expression), missing, "{expression}");
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let known = Known::read();
    let dashboard: Value =
        serde_json::from_str(&repository("appliance/grafana/sekisho-gateway.json")).unwrap();
    assert_eq!(dashboard["uid"], "sekisho-gateway");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "panel ids repeat");
    let (rows, shown): (Vec<&Value>, Vec<&Value>) =
        panels.iter().partition(|panel| panel["type"] == "row");
    let rows: Vec<&str> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    let wanted = [
        "Traffic",
        "Denials",
        "Handshakes",
        "Latency",
        "Hub",
        "Feeds and certificates",
        "Audit log",
    ];
    assert_eq!(rows, wanted);
    let mut asked = BTreeSet::new();
    for panel in shown {
        let title = panel["title"].as_str().unwrap();
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert_eq!(known.missing(expression), Vec::<String>::new(), "{title}: {expression}");
            asked.extend(words(expression));
        }
    }
    // Whoever adds a metric shows it.
    let hidden = known.series.keys().filter(|name| {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let family = family.unwrap_or(name);
        *name != "up" && !asked.iter().any(|word| word.starts_with(family))
    });
    assert_eq!(hidden.collect::<Vec<_>>(), Vec::<&String>::new(), "metrics on no panel");
}

#[test]
fn alert_rules_ask_for_what_there_is() {
    let known = Known::read();
    let documents = YamlLoader::load_from_str(&repository("appliance/grafana/alerts.yml")).unwrap();
    let mut names = BTreeSet::new();
    for group in documents[0]["groups"].as_vec().unwrap() {
        assert_eq!(keys(group), ["name", "rules"]);
        for rule in group["rules"].as_vec().unwrap() {
            let name = rule["alert"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is there twice");
            for key in keys(rule) {
                let known = ["alert", "expr", "for", "labels", "annotations"];
                assert!(known.contains(&key), "{name}: Prometheus knows no key `{key}`");
            }
            let severity = rule["labels"]["severity"].as_str().unwrap();
            assert!(["page", "ticket"].contains(&severity), "{name}: {severity}");
            let told = &rule["annotations"];
            let texts = [&told["summary"], &told["action"]].map(|text| text.as_str().unwrap());
            assert!(texts.iter().all(|text| !text.is_empty()), "{name}");
            let expression = rule["expr"].as_str().unwrap();
            assert_eq!(known.missing(expression), Vec::<String>::new(), "{name}: {expression}");
            check_template(&known, name, expression, &texts.concat());
        }
    }
    for wanted in [
        "SekishoServerCertificateExpires",
        "SekishoTrustAnchorExpires",
        "SekishoFeedLate",
        "SekishoFeedWithoutConsent",
        "SekishoFeedDenies",
        "SekishoAuditUnavailable",
        "SekishoAuditBacklog",
        "SekishoHubDown",
        "SekishoCertificateRefused",
        "SekishoAdmissionRefuses",
        "SekishoResponseSlow",
    ] {
        assert!(names.contains(wanted), "{wanted}");
    }
}

/// A text may speak of labels only that are left of the expression's.
fn check_template(known: &Known, name: &str, expression: &str, text: &str) {
    let grouped = groups(expression);
    for part in text.split("$labels.").skip(1) {
        let label: String =
            part.chars().take_while(|at| at.is_ascii_alphanumeric() || *at == '_').collect();
        let own = words(expression)
            .into_iter()
            .any(|word| known.series.get(&word).is_some_and(|labels| labels.contains(&label)));
        let is_left = grouped.is_empty() && (own || label == "instance");
        assert!(is_left || grouped.contains(&label), "{name}: no label {label} is left");
    }
}

fn keys(yaml: &Yaml) -> Vec<&str> {
    yaml.as_hash().unwrap().keys().map(|key| key.as_str().unwrap()).collect()
}
