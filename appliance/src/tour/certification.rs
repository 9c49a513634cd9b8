//! Step 2: the municipality stores its documents, the hospital sends a 主治医意見書, the municipality
//! receives it, and certification moves on.

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};
use time::{Date, Duration, OffsetDateTime};

use super::exchange::{Answer, Line};
use super::party::{Cast, HOSPITAL, Scene, number};
use super::report::Report;

/// What the 認定調査票 of the tour says; step 4 looks for it.
pub(super) const SURVEY_OVERVIEW: &str =
    "自宅で一人暮らし。入浴と買い物に見守りが必要（架空の記載）";

/// Walks step 2.
pub(super) async fn walk(scene: &Scene, cast: &Cast, report: &mut Report) -> anyhow::Result<()> {
    report.step(2, "市区町村が認定情報を登録し、病院が主治医意見書を提出する");
    report.say(&format!(
        "  対象: 保険者 {}、被保険者番号 {}（架空）",
        scene.insurer, scene.person.number
    ));
    let mut city = Line::open(&cast.municipality).await?;
    share(scene, &mut city, report).await?;
    store_documents(scene, &mut city, report).await?;
    advance(scene, &mut city, report, json!({"stage": "applied"}), "認定申請の受付").await?;
    advance(scene, &mut city, report, json!({"stage": "survey-done"}), "認定調査の終了").await?;
    submit_opinion(scene, cast, &mut city, report).await?;
    receive_opinion(scene, &mut city, report).await?;
    for (stage, what) in
        [("opinion-received", "主治医意見書の受領"), ("panel-scheduled", "認定審査会の予定")]
    {
        advance(scene, &mut city, report, json!({"stage": stage}), what).await?;
    }
    let result = json!({
        "care_level": "22", "valid_from": day(0), "valid_until": day(730),
    });
    let decided = json!({"stage": "decided", "result": result});
    advance(scene, &mut city, report, decided, "認定結果の決定（要介護2）").await?;
    let answer = city.get(&scene.path("certification")).await?;
    let came = format!("{answer} 現在の段階: {}", answer.text("stage").unwrap_or("なし"));
    let fits = answer.status == 200 && answer.text("stage") == Some("decided");
    report.check("認定の進み具合を参照する", &came, "200 decided", fits)
}

/// `YYYY-MM-DD`, so many days from today (UTC).
pub(super) fn day(offset: i64) -> String {
    let today: Date = OffsetDateTime::now_utc().date();
    let day = today.saturating_add(Duration::days(offset));
    format!("{:04}-{:02}-{:02}", day.year(), u8::from(day.month()), day.day())
}

async fn share(scene: &Scene, city: &mut Line, report: &mut Report) -> anyhow::Result<()> {
    let target = format!("/v1/municipalities/{}/sharing", scene.insurer);
    let answer = city.put(&target, &json!({"from": "2026-04-01"})).await?;
    report.answered("市区町村が情報の共有を開始する", &answer, 200)
}

async fn store_documents(
    scene: &Scene,
    city: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    let documents = [
        (
            "insured-card",
            "被保険者証",
            json!({"valid_from": day(0), "valid_until": day(730), "care_level": "22"}),
        ),
        (
            "burden-ratio",
            "負担割合証",
            json!({"ratio": 1, "valid_from": day(0), "valid_until": day(365)}),
        ),
        (
            "certification-survey",
            "認定調査票",
            json!({
                "surveyed_on": day(-10), "overview": SURVEY_OVERVIEW,
                "items": {"1-1": "ない", "2-1": "見守り等"}, "remarks": "特記事項なし（架空の記載）",
            }),
        ),
    ];
    for (kind, name, content) in documents {
        let target = scene.path(&format!("documents/{kind}"));
        let answer = city.soon(Method::POST, &target, &content, 201).await?;
        report.answered(&format!("市区町村が{name}を登録する"), &answer, 201)?;
    }
    Ok(())
}

async fn advance(
    scene: &Scene,
    city: &mut Line,
    report: &mut Report,
    mut to: Value,
    what: &str,
) -> anyhow::Result<()> {
    to["on"] = json!(day(0));
    let answer = city.post(&scene.path("certification"), &to).await?;
    report.answered(&format!("認定の段階を進める: {what}"), &answer, 200)
}

async fn submit_opinion(
    scene: &Scene,
    cast: &Cast,
    city: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    let request = json!({"office": number(&HOSPITAL)?, "due": day(14)});
    let answer = city.post(&scene.path("opinion-requests"), &request).await?;
    report.answered("市区町村が病院へ主治医意見書の作成を依頼する", &answer, 201)?;
    let (mut hospital, answer) =
        Line::log_in(scene, &cast.hospital, &HOSPITAL, "physician").await?;
    report.answered("病院の医師がログインする", &answer, 200)?;
    let done = |answer: &Answer| answer.to_text().contains(scene.person.number.as_str());
    let request = (Method::GET, "/v1/opinion-requests", &Value::Null);
    let now = std::time::Instant::now();
    let (answer, _) = hospital.until(request, now, super::exchange::EFFECT_MAX, done).await?;
    let found = done(&answer);
    let came = format!("{answer}{}", if found { " この方への依頼があります" } else { "" });
    report.check("病院が受け取った依頼の一覧を見る", &came, "200 依頼がある", found)?;
    let opinion = json!({
        "written_on": day(0), "institution": HOSPITAL.name,
        "opinion": "症状は安定している。転倒に注意が必要（架空の記載）",
    });
    let target = scene.path("documents/physician-opinion");
    let answer = hospital.soon(Method::POST, &target, &opinion, 201).await?;
    report.answered("病院が主治医意見書を提出する", &answer, 201)
}

async fn receive_opinion(
    scene: &Scene,
    city: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    let inbox = format!("/v1/municipalities/{}/inbox", scene.insurer);
    let item = find_item(scene, city, &inbox).await?;
    let came = match &item {
        Some(item) => format!("200 受信箱の番号 {item}"),
        None => "見つかりません".to_owned(),
    };
    let does = "市区町村が受信箱で主治医意見書を見つける";
    report.check(does, &came, "この方の主治医意見書がある", item.is_some())?;
    let item = item.context("no inbox item")?;
    let answer = city.get(&format!("{inbox}/{item}")).await?;
    let fits = answer.status == 200 && answer.to_text().contains("転倒に注意が必要");
    let came = format!("{answer}{}", if fits { " 意見書の本文があります" } else { "" });
    report.check("受信箱の主治医意見書を開く", &came, "200 本文がある", fits)?;
    let answer = city.post(&format!("{inbox}/{item}/receipt"), &json!({})).await?;
    report.answered("主治医意見書を受領する", &answer, 200)
}

/// The newest inbox item with this person's opinion; the inbox may have several pages.
async fn find_item(scene: &Scene, city: &mut Line, inbox: &str) -> anyhow::Result<Option<String>> {
    let mut found = None;
    let mut after: Option<String> = None;
    for _ in 0..INBOX_PAGES_MAX {
        let target = match &after {
            Some(after) => format!("{inbox}?after={after}"),
            None => inbox.to_owned(),
        };
        let page = city.get(&target).await?;
        let items = page.list("items");
        let id = |item: &Value| item.get("id").map(|id| id.to_string().replace('"', ""));
        let this_one = |item: &&Value| {
            let is_opinion = item.get("kind").and_then(Value::as_str) == Some("physician-opinion");
            is_opinion && item.to_string().contains(scene.person.number.as_str())
        };
        found = items.iter().rev().find(this_one).and_then(id).or(found);
        let last = items.last().and_then(id);
        if last.is_none() || last == after {
            break;
        }
        after = last;
    }
    Ok(found)
}

/// The most pages of the inbox that are read.
const INBOX_PAGES_MAX: u32 = 1_000;
