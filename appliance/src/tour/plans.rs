//! Step 3: LIFE stores a 利用者フィードバック票; the care-plan exchange stores a plan from Shift-JIS files,
//! and files with something wrong in them are refused whole.

use bytes::Bytes;
use http::Method;
use policies::identity::InsuredKey;
use serde_json::{Value, json};

use super::certification::day;
use super::exchange::{Answer, Line};
use super::party::{CARE_MANAGEMENT, Cast, DAY_SERVICE, OTHER_CARE_MANAGEMENT, Scene, path};
use super::plan_file::{self, Row, SUPPORT_POLICY, encode, first_table, second_table};
use super::report::Report;

/// Walks step 3.
pub(super) async fn walk(scene: &Scene, cast: &Cast, report: &mut Report) -> anyhow::Result<()> {
    report.step(3, "LIFE とケアプランデータ連携システムが登録する");
    let mut life = Line::open(&cast.life).await?;
    let target =
        scene.path(&format!("documents/life-feedback?author_office={}", DAY_SERVICE.number));
    let feedback = json!({
        "period": {"from": day(-90), "until": day(0)},
        "measures": {"barthel_index": 75, "bmi": 21.4},
    });
    let answer = life.post(&target, &feedback).await?;
    report.answered("LIFE が利用者フィードバック票を登録する", &answer, 201)?;
    let mut exchange = Line::open(&cast.exchange).await?;
    let mut portal = Line::open(&cast.portal).await?;
    store(scene, &mut exchange, report).await?;
    stored(scene, &mut portal, report).await?;
    refuse(scene, &mut exchange, report).await?;
    nothing_stored(scene, &mut portal, report).await
}

async fn send(line: &mut Line, name: &str, bytes: Vec<u8>) -> anyhow::Result<Answer> {
    let target = format!("/v1/care-plan-files/{name}");
    let headers = [("content-type", "text/csv; charset=Shift_JIS")];
    line.send(Method::POST, &target, &headers, Bytes::from(bytes)).await
}

async fn store(scene: &Scene, exchange: &mut Line, report: &mut Report) -> anyhow::Result<()> {
    let first = vec![first_table(scene.person, CARE_MANAGEMENT.number)];
    let second = vec![
        second_table(scene.person, "1", "入浴の介助"),
        second_table(scene.person, "2", "浴室までの移動の見守り"),
    ];
    for (kind, table, rows) in [("UP1KYO", "第1表", first), ("UP2KYO", "第2表", second)] {
        let name = plan_file::name(kind);
        let answer = send(exchange, &name, encode(&rows)).await?;
        let does = format!("居宅サービス計画 {table}のファイルを登録する（{name}、Shift-JIS）");
        let count = answer.body.get("rows").and_then(Value::as_u64);
        let came = match count {
            Some(count) => format!("{answer} {count} 行"),
            None => answer.to_string(),
        };
        let fits = answer.status == 201 && count == Some(rows.len() as u64);
        report.check(&does, &came, &format!("201 {} 行", rows.len()), fits)?;
    }
    Ok(())
}

/// The stored plan holds both tables, as the person sees it.
async fn stored(scene: &Scene, portal: &mut Line, report: &mut Report) -> anyhow::Result<()> {
    let answer = portal.get(&scene.path("documents/home-care-plan")).await?;
    let tables = answer.body.pointer("/content/tables");
    let text = tables.map(Value::to_string).unwrap_or_default();
    let holds = [
        text.contains(&SUPPORT_POLICY.replace('"', "\\\"")),
        text.contains("入浴の介助"),
        text.contains("浴室までの移動の見守り"),
    ];
    let fits = answer.status == 200 && holds.iter().all(|holds| *holds);
    let author = answer.text("author").unwrap_or_default();
    let came =
        format!("{answer} 作成者 {author}　第1表 {}　第2表 {}", mark(holds[0]), mark(holds[1]));
    report.check(
        "登録された計画を、作成者と第1表・第2表の内容で確かめる",
        &came,
        "200 第1表と第2表の内容がある",
        fits && author.ends_with(CARE_MANAGEMENT.number),
    )
}

fn mark(holds: bool) -> &'static str {
    if holds { "あり" } else { "なし" }
}

/// A file that must be refused: what is wrong, its bytes, and where the problem is.
struct Wrong {
    what: &'static str,
    bytes: Vec<u8>,
    line: u64,
    column: u64,
}

/// Each file begins with a right row of the bystander, of which nothing may be stored. That row
/// has one line break inside quotes, so that the second row starts on line 3.
fn wrong_files(scene: &Scene) -> [Wrong; 3] {
    let right = first_table(scene.bystander, CARE_MANAGEMENT.number);
    let other = |office| first_table(scene.person, office);
    let file = |second: Row| encode(&[right.clone(), second]);
    let mut short = other(CARE_MANAGEMENT.number);
    short.pop();
    let gaiji = plan_file::with_gaiji(&encode(std::slice::from_ref(&right)), "巡");
    [
        Wrong {
            what: "送信元と介護支援事業者コードが異なるファイル",
            bytes: file(other(OTHER_CARE_MANAGEMENT.number)),
            line: 3,
            column: 13,
        },
        Wrong {
            what: "列の数が足りないファイル", bytes: file(short), line: 3, column: 0
        },
        Wrong { what: "外字を含むファイル", bytes: gaiji, line: 1, column: 8 },
    ]
}

async fn refuse(scene: &Scene, exchange: &mut Line, report: &mut Report) -> anyhow::Result<()> {
    for wrong in wrong_files(scene) {
        let answer = send(exchange, &plan_file::name("UP1KYO"), wrong.bytes).await?;
        let problem = answer.body.pointer("/problems/0");
        let place = |key: &str| problem.and_then(|problem| problem.get(key)?.as_u64());
        let fits = answer.status == 422
            && answer.code() == "care_plan_file_refused"
            && (place("line"), place("column")) == (Some(wrong.line), Some(wrong.column));
        let expected =
            format!("422 care_plan_file_refused（{}行目 {}列目）", wrong.line, wrong.column);
        report.check(&format!("{}を送る", wrong.what), &answer.to_string(), &expected, fits)?;
    }
    Ok(())
}

async fn nothing_stored(
    scene: &Scene,
    portal: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    let bystander = count(portal, scene.bystander).await?;
    let came = format!("拒否したファイルだけに載っている方の書類 {bystander} 件");
    report.check(
        "拒否したファイルの内容が登録されていないことを確かめる",
        &came,
        "0 件",
        bystander == 0,
    )?;
    let answer = portal.get(&scene.path("documents/home-care-plan/versions")).await?;
    let versions = answer.list("versions").len();
    let came = format!("{answer} 計画の版 {versions} 件（第1表の登録と第2表の登録）");
    report.check("対象の方の計画も増えていないことを確かめる", &came, "200 2 件", versions == 2)
}

async fn count(portal: &mut Line, person: InsuredKey) -> anyhow::Result<usize> {
    let answer = portal.get(&path(person, "documents")).await?;
    anyhow::ensure!(answer.status == 200, "list of documents: {answer}");
    Ok(answer.list("documents").len())
}
