//! Step 6, requests: what is refused although the certificate is good.

use bytes::Bytes;
use http::Method;

use super::exchange::{Answer, Line};
use super::party::{Cast, Scene};
use super::report::Report;

/// Walks the requests of step 6. `care_manager` is logged in, registered, and without consent.
pub(super) async fn walk(
    scene: &Scene,
    cast: &Cast,
    care_manager: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.step(6, "拒否されるべき要求を送る");
    let mut bare = Line::open(&cast.care_management).await?;
    let answer = bare.get("/v1/registrations").await?;
    report.refused("職員のトークンなしで要求する", &answer, 401, "staff_token_missing")?;
    let mut moved = Line::open(&cast.second_terminal).await?;
    moved.token.clone_from(&care_manager.token);
    let answer = moved.get("/v1/registrations").await?;
    let does = "職員のトークンを同じ事業所の別の端末へ移して使う";
    report.refused(does, &answer, 401, "token_not_bound")?;
    spoofed(scene, care_manager, report).await?;
    let answer = care_manager.get("/v1/everything").await?;
    report.refused("存在しないパスを要求する", &answer, 404, "no_such_operation")?;
    for kind in ["benefit-claims", "benefit-management"] {
        let answer = care_manager.get(&scene.path(&format!("documents/{kind}"))).await?;
        let fits =
            answer.status == 404 && ["no_such_operation", "not_held"].contains(&answer.code());
        let does = format!("請求の書類（{kind}）を要求する（経路がない）");
        report.check(&does, &answer.to_string(), "404", fits)?;
    }
    Ok(())
}

/// Identity headers that a client sends must change nothing.
async fn spoofed(
    scene: &Scene,
    care_manager: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    let city = format!("municipality/{}/terminal/city", scene.insurer);
    let headers = [
        ("sekisho-permit", "v1.e30.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        ("sekisho-principal", city.as_str()),
        ("sekisho-staff", "administrator"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1;proto=https"),
        ("x-forwarded-client-cert", "Subject=\"CN=990010\""),
        ("x-client-cert", "-----BEGIN CERTIFICATE-----"),
        ("x-ssl-client-verify", "SUCCESS"),
        ("ssl-client-s-dn", "CN=990010"),
    ];
    let targets = [scene.path("documents/certification-survey"), "/v1/registrations".to_owned()];
    for target in targets {
        let plain = care_manager.get(&target).await?;
        let spoofed = care_manager.send(Method::GET, &target, &headers, Bytes::new()).await?;
        let came = format!("ヘッダーなし: {plain}\nヘッダーあり: {spoofed}");
        let does =
            format!("身元を偽るヘッダーを付けて要求する（{} 種類、{target}）", headers.len());
        report.check(&does, &came, "答えが変わらない", same(&plain, &spoofed))?;
    }
    Ok(())
}

/// Whether two answers are the same but for the request id.
fn same(one: &Answer, other: &Answer) -> bool {
    let text = |answer: &Answer| {
        let id = answer.request_id.clone().unwrap_or_default();
        let text = answer.to_text();
        if id.is_empty() { text } else { text.replace(&id, "") }
    };
    one.status == other.status && text(one) == text(other)
}
