//! Step 5: the person, through マイナポータル: which documents there are, what they say, and who looked.

use serde_json::Value;

use super::exchange::{Answer, Line};
use super::party::{CARE_MANAGEMENT, Cast, Scene};
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

/// The care manager's look at the 認定調査票 stands in the person's access history.
async fn history(scene: &Scene, portal: &mut Line, report: &mut Report) -> anyhow::Result<()> {
    let answer = portal.get(&scene.path("access-history")).await?;
    let accesses = answer.list("accesses");
    let text = |access: &Value, key: &str| {
        access.get(key).and_then(Value::as_str).unwrap_or("-").to_owned()
    };
    let by_care_manager = accesses.iter().any(|access| {
        text(access, "party").ends_with(CARE_MANAGEMENT.number)
            && text(access, "document_kind") == "certification-survey"
    });
    let lines: Vec<String> = accesses
        .iter()
        .map(|access| {
            format!(
                "{} {} {}",
                text(access, "at"),
                text(access, "party"),
                text(access, "document_kind_ja")
            )
        })
        .collect();
    let came = format!("{answer} {} 件\n{}", lines.len(), lines.join("\n"));
    let expected = "200 居宅介護支援事業所による認定調査票の閲覧が載っている";
    report.check("だれが閲覧したかを見る", &came, expected, by_care_manager)
}

fn texts(answer: &Answer, list: &str, field: &str) -> Vec<String> {
    let texts = answer.list(list).iter().filter_map(|item| item.get(field)?.as_str());
    texts.map(str::to_owned).collect()
}
