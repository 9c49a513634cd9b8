//! Step 4: 認定調査票 for the care manager: not registered, registered without consent, with consent,
//! consent withdrawn; all on one open connection.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};

use super::certification::SURVEY_OVERVIEW;
use super::exchange::{Answer, EFFECT_MAX, Line, in_force_after};
use super::party::{CARE_MANAGEMENT, Cast, DAY_SERVICE, OTHER_CARE_MANAGEMENT, Scene, number};
use super::report::Report;

/// Walks step 4; the care manager's line stays open.
pub(super) async fn walk(scene: &Scene, cast: &Cast, report: &mut Report) -> anyhow::Result<Line> {
    report.step(4, "介護支援専門員が認定調査票を閲覧する（一つの接続のまま）");
    let (mut line, answer) =
        Line::log_in(scene, &cast.care_management, &CARE_MANAGEMENT, "care-manager").await?;
    report.answered("介護支援専門員がログインする", &answer, 200)?;
    let survey = scene.path("documents/certification-survey");
    let answer = line.get(&survey).await?;
    report.refused(
        "担当事業所として登録する前に認定調査票を求める",
        &answer,
        403,
        "not_registered",
    )?;
    register(scene, report).await?;
    let came = turns(&mut line, &survey, Instant::now(), 403, "consent_required").await?;
    came.told("登録の後、同意がないまま認定調査票を求める", report)?;
    let consent = give_consent(scene, cast, report).await?;
    let came = turns(&mut line, &survey, Instant::now(), 200, "").await?;
    let overview = came.answer.body.pointer("/content/overview").and_then(Value::as_str);
    let same = overview == Some(SURVEY_OVERVIEW);
    let words = if same {
        "市区町村が登録した内容と同じ"
    } else {
        "内容が異なります"
    };
    let text = format!("{} {words}", came.answer);
    report.check("同意の後に認定調査票を求める", &text, "200 登録した内容", same)?;
    let answer = line.get(&scene.path("certification")).await?;
    let fits = answer.text("stage") == Some("decided");
    let came = format!("{answer} 段階: {}", answer.text("stage").unwrap_or("なし"));
    report.check("担当の介護支援専門員が認定の進み具合を見る", &came, "200 decided", fits)?;
    others_are_refused(scene, cast, &survey, report).await?;
    withdraw(scene, cast, (&mut line, &survey, consent), report).await?;
    Ok(line)
}

async fn register(scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let body = json!({
        "office": number(&CARE_MANAGEMENT)?, "insured": scene.person,
        "reason": "tour: the card check is not part of the demo", "operator": "tour",
    });
    let answer = scene.hub.ask(Method::POST, "/registrations", Some(&body)).await?;
    let came = format!("{}（運用者による登録、method=operator）", answer.status);
    let good = (200..300).contains(&answer.status);
    report.check("担当事業所として登録する", &came, "201", good)
}

async fn give_consent(scene: &Scene, cast: &Cast, report: &mut Report) -> anyhow::Result<String> {
    let mut portal = Line::open(&cast.portal).await?;
    let body = json!({
        "scope": ["certification-survey", "physician-opinion", "life-feedback"],
        "from": null, "until": null, "collected_by": "portal", "method": "online",
    });
    let answer = portal.post(&scene.path("consents"), &body).await?;
    report.answered("本人がマイナポータルから同意する", &answer, 201)?;
    let id = answer.body.get("id").context("the consent has no id")?;
    Ok(id.to_string().replace('"', ""))
}

async fn others_are_refused(
    scene: &Scene,
    cast: &Cast,
    survey: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut other, _) =
        Line::log_in(scene, &cast.other_care_management, &OTHER_CARE_MANAGEMENT, "care-manager")
            .await?;
    let answer = other.get(survey).await?;
    report.refused("別の居宅介護支援事業所が認定調査票を求める", &answer, 403, "not_registered")?;
    let (mut day_service, login) =
        Line::log_in(scene, &cast.day_service, &DAY_SERVICE, "care-worker").await?;
    report.answered("通所介護事業所の介護職員がログインする", &login, 200)?;
    let answer = day_service.get(survey).await?;
    report.refused("通所介護事業所が認定調査票を求める", &answer, 403, "not_shared")
}

/// Withdraws and measures from the moment when the withdrawal is sent.
async fn withdraw(
    scene: &Scene,
    cast: &Cast,
    (line, survey, consent): (&mut Line, &str, String),
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut portal = Line::open(&cast.portal).await?;
    let sent = Instant::now();
    let target = scene.path(&format!("consents/{consent}/withdrawal"));
    let answer = portal.post(&target, &json!({})).await?;
    report.answered("本人がマイナポータルから同意を撤回する", &answer, 200)?;
    let came = turns(line, survey, sent, 403, "consent_withdrawn").await?;
    came.told("撤回の後、同じ接続のまま認定調査票を求める", report)
}

/// What a repeated request came to, and when.
struct Turned {
    answer: Answer,
    after: Duration,
    expected: (u16, &'static str),
}

impl Turned {
    fn told(&self, does: &str, report: &mut Report) -> anyhow::Result<()> {
        let (status, code) = self.expected;
        let came = format!("{}\n{}", self.answer, in_force_after(self.after));
        let fits = is(&self.answer, self.expected);
        report.check(does, &came, &format!("{status} {code}"), fits)
    }
}

fn is(answer: &Answer, (status, code): (u16, &str)) -> bool {
    answer.status == status && answer.code() == code
}

/// Repeats `GET target` until it has this status and code, on the same connection.
async fn turns(
    line: &mut Line,
    target: &str,
    since: Instant,
    status: u16,
    code: &'static str,
) -> anyhow::Result<Turned> {
    let expected = (status, code);
    let request = (Method::GET, target, &Value::Null);
    let (answer, after) =
        line.until(request, since, EFFECT_MAX, |answer| is(answer, expected)).await?;
    Ok(Turned { answer, after, expected })
}
