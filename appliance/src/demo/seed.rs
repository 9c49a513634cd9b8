//! Documents, consent and registration of the demo, made through the gateway as real clients would.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::parties::{INSURED, INSURER};
use super::steps::Steps;
use super::{client, says};
use crate::admin::Admin;
use crate::clock;
use crate::layout::Layout;

/// The municipality goes live, stores documents of the demo persons, and records a consent.
///
/// # Errors
/// When the gateway refuses one of them.
pub(super) async fn documents(
    layout: &Layout,
    env: &Value,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let gateway = env["gateway"].as_str().context("the gateway's address is not known")?;
    let municipality = format!("municipality-{INSURER}");
    let mut connection = None;
    for (step, method, path, body) in requests() {
        if !steps.is_open(&step) {
            continue;
        }
        if connection.is_none() {
            connection = Some(client(layout, gateway, &municipality)?.connect().await?);
        }
        let Some(open) = connection.as_mut() else { continue };
        says(&format!("{municipality}: {method} {path}"));
        let headers = [("content-type", "application/json")];
        let answer = open.send(method, &path, &headers, body.to_string()).await?;
        anyhow::ensure!(
            (200..300).contains(&answer.status),
            "{path} was refused with {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        steps.close(&step)?;
    }
    Ok(())
}

/// What is sent: step, method, path, body.
fn requests() -> Vec<(String, http::Method, String, Value)> {
    let mut requests = vec![(
        "sharing".to_owned(),
        http::Method::PUT,
        format!("/v1/municipalities/{INSURER}/sharing"),
        json!({"from": clock::date(-1)}),
    )];
    for (number, name) in INSURED {
        for (kind, body) in contents(name) {
            requests.push((
                format!("document/{number}/{kind}"),
                http::Method::POST,
                format!("/v1/insured/{INSURER}/{number}/documents/{kind}"),
                body,
            ));
        }
    }
    let (number, _) = INSURED[0];
    requests.push((
        format!("consent/{number}"),
        http::Method::POST,
        format!("/v1/insured/{INSURER}/{number}/consents"),
        json!({
            "scope": "all",
            "from": clock::date(-1),
            "until": null,
            "collected_by": "municipality",
            "method": "paper",
            "evidence": "見本 同意書",
        }),
    ));
    requests
}

/// Invented contents of one person's documents.
fn contents(name: &str) -> [(&'static str, Value); 3] {
    let note = "見本 (invented)";
    [
        (
            "insured-card",
            json!({
                "valid_from": clock::date(-30),
                "valid_until": clock::date(335),
                "care_level": "要介護2",
                "name": name,
                "note": note,
            }),
        ),
        (
            "burden-ratio",
            json!({
                "ratio": 1,
                "valid_from": clock::date(-30),
                "valid_until": clock::date(335),
                "note": note,
            }),
        ),
        (
            "certification-survey",
            json!({
                "surveyed_on": clock::date(-40),
                "overview": {"place": "居宅", "note": note},
                "items": {"1-1": "麻痺等なし", "2-1": "見守り等", "4-1": "ない"},
                "remarks": "見本の特記事項です。",
            }),
        ),
    ]
}

/// The operator registers the demo office for the first person.
///
/// # Errors
/// When the hub refuses.
pub(super) async fn registration(layout: &Layout, steps: &mut Steps) -> anyhow::Result<()> {
    let (number, _) = INSURED[0];
    let office = super::parties::find("care-management-1")?
        .office
        .context("the demo office has no number")?
        .office()?
        .number;
    let step = format!("registration/{office}/{number}");
    if steps.is_open(&step) {
        says(&format!("operator registers {office} for {INSURER}/{number}"));
        let body = json!({
            "office": office,
            "insured": {"insurer": INSURER, "number": number},
            "reason": "demo (見本)",
            "operator": "demo",
            "wait": true,
        });
        Admin::hub(layout).post("/registrations", &body).await?;
        steps.close(&step)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_a_step_of_its_own() {
        let requests = requests();
        let steps: std::collections::BTreeSet<&str> =
            requests.iter().map(|(step, ..)| step.as_str()).collect();
        assert_eq!(steps.len(), requests.len());
        assert_eq!(requests.len(), 1 + 2 * 3 + 1);
    }
}
