//! Step 5: the person, through マイナポータル: which documents there are, what they say, and who looked.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;

use super::exchange::{Answer, Line};
use super::party::{CARE_MANAGEMENT, Cast, OTHER_CARE_MANAGEMENT, Office, Scene};
use super::report::Report;

/// The kinds that the tour stored and the matrix shows to the person.
const VISIBLE: [&str; 4] = ["insured-card", "burden-ratio", "home-care-plan", "life-feedback"];

/// The kinds that the tour stored and the matrix never shows to the person.
const HIDDEN: [&str; 2] = ["certification-survey", "physician-opinion"];

/// Walks step 5.
pub(super) async fn walk(scene: &Scene, cast: &Cast, report: &mut Report) -> anyhow::Result<()> {
    report.step(5, "本人がマイナポータルから書類と閲覧の記録を見る");
    let mut portal = Line::open(&cast.portal).await?;
    let answer = portal.get(&scene.path("documents")).await?;
    let kinds = texts(&answer, "documents", "kind");
    let came = format!("{answer} {}", texts(&answer, "documents", "kind_ja").join("、"));
    let has = |kind: &&str| kinds.iter().any(|found| found == *kind);
    let fits = VISIBLE.iter().all(has) && !HIDDEN.iter().any(has);
    let expected = format!("{} があり、{} がない", VISIBLE.join("、"), HIDDEN.join("、"));
    report.check("書類の一覧を見る", &came, &expected, answer.status == 200 && fits)?;
    for kind in VISIBLE {
        let answer = portal.get(&scene.path(&format!("documents/{kind}"))).await?;
        let name = answer.text("kind_ja").unwrap_or(kind).to_owned();
        report.answered(&format!("{name}を開く"), &answer, 200)?;
    }
    let answer = portal.get(&scene.path(&format!("documents/{}", HIDDEN[0]))).await?;
    report.refused("本人には共有されない認定調査票を求める", &answer, 403, "not_shared")?;
    history(scene, &mut portal, report).await
}

/// The person reads who looked and who was refused, with the offices' names. The hub has the
/// gateway's records a moment after the gateway.
async fn history(scene: &Scene, portal: &mut Line, report: &mut Report) -> anyhow::Result<()> {
    let target = scene.path("access-history");
    let request = (Method::GET, target.as_str(), &Value::Null);
    let (answer, _) = portal.until(request, Instant::now(), HISTORY_MAX, is_whole).await?;
    let lines: Vec<&str> = answer
        .list("accesses")
        .iter()
        .filter_map(|access| access.get("text_ja")?.as_str())
        .collect();
    let came = format!("{answer} {} 件\n{}", lines.len(), lines.join("\n"));
    let expected = format!(
        "200 {}による認定調査票の閲覧と、{}の拒否された要求が、事業所の名前で載っている",
        CARE_MANAGEMENT.name, OTHER_CARE_MANAGEMENT.name
    );
    report.check("だれが閲覧し、だれが拒否されたかを見る", &came, &expected, is_whole(&answer))
}

/// Whether the history names the care manager's look and the other office's refused one.
fn is_whole(answer: &Answer) -> bool {
    let has = |office: &Office, decision: &str| {
        answer.list("accesses").iter().any(|access| {
            let text = |key: &str| access.get(key).and_then(Value::as_str).unwrap_or_default();
            text("party_name") == office.name
                && text("decision") == decision
                && text("document_kind") == "certification-survey"
        })
    };
    has(&CARE_MANAGEMENT, "permitted") && has(&OTHER_CARE_MANAGEMENT, "denied")
}

fn texts(answer: &Answer, list: &str, field: &str) -> Vec<String> {
    let texts = answer.list(list).iter().filter_map(|item| item.get(field)?.as_str());
    texts.map(str::to_owned).collect()
}

/// Within this the history has everything that happened before.
const HISTORY_MAX: Duration = Duration::from_secs(5);
