//! Offices, terminals and staff of the demo.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use x509_parser::pem::Pem;

use super::parties::{self, Party};
use super::says;
use super::steps::Steps;
use crate::admin::Admin;
use crate::clock;
use crate::code::{self, Profile};
use crate::files;
use crate::layout::Layout;
use crate::process;
use crate::secrets;

/// Registers the offices.
///
/// # Errors
/// When the RA refuses.
pub(super) async fn offices(layout: &Layout, steps: &mut Steps) -> anyhow::Result<()> {
    let ra = Admin::ra(layout);
    for office in parties::ALL.iter().filter_map(|party| party.office) {
        let office = office.office()?;
        let step = format!("office/{}", office.number);
        if steps.is_open(&step) {
            says(&format!("registering office {} {}", office.number, office.name));
            ra.post("/offices", &office.to_json()).await?;
            steps.close(&step)?;
        }
    }
    Ok(())
}

/// Enrols every terminal that has no certificate, or one that ends soon.
///
/// # Errors
/// When a code or certificate is refused.
pub(super) async fn terminals(
    layout: &Layout,
    env: &Value,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let ra = Admin::ra(layout);
    let url = env["enrol"].as_str().context("the enrolment address is not known")?;
    for party in &parties::ALL {
        let step = format!("terminal/{}", party.name);
        let folder = layout.demo(party.name);
        if steps.is_open(&step) || ends_soon(&folder.join("cert.pem")) {
            says(&format!("enrolling {}", party.name));
            let identity = party.identity()?;
            let code = code::request(&ra, &identity, Profile::of(&identity), 1, None).await?;
            enrol(layout, url, party, &code)
                .await
                .with_context(|| format!("enrolment of `{}`", party.name))?;
            steps.close(&step)?;
        }
    }
    Ok(())
}

/// Runs `sekisho-office enrol`; the secret goes over its standard input, not its arguments.
async fn enrol(layout: &Layout, url: &str, party: &Party, code: &Value) -> anyhow::Result<()> {
    let text = |key: &str| code[key].as_str().with_context(|| format!("the code has no `{key}`"));
    let mut child = tokio::process::Command::new(process::program("sekisho-office")?)
        .args(["enrol", "--url", url, "--identity", party.path, "--code", text("code_id")?])
        .args(["--secret-file", "-", "--replace", "--trust"])
        .arg(layout.demo("trust.pem"))
        .arg("--out")
        .arg(layout.demo(party.name))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("sekisho-office cannot be started")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text("secret")?.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{}",
        process::last_error_line(&errors).unwrap_or_else(|| output.status.to_string())
    );
    Ok(())
}

/// Whether a certificate is missing, unreadable, or ends within [`RENEW_BEFORE_S`].
fn ends_soon(path: &Path) -> bool {
    let not_after = files::read(path).ok().and_then(|bytes| {
        let pem = Pem::iter_from_buffer(&bytes).next()?.ok()?;
        Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
    });
    let limit = i64::try_from(clock::now_s() + RENEW_BEFORE_S).unwrap_or(i64::MAX);
    not_after.is_none_or(|not_after| not_after < limit)
}

/// Makes the staff accounts, each with a random password in the party's `staff.json`.
///
/// # Errors
/// When the hub refuses.
pub(super) async fn staff(layout: &Layout, steps: &mut Steps) -> anyhow::Result<()> {
    let hub = Admin::hub(layout);
    let mut known: Vec<Value> = Vec::new();
    for party in &parties::ALL {
        let Some(account) = account(layout, party, &known)? else { continue };
        let step = format!("staff/{}/{}", account["office"], account["id"]).replace('"', "");
        let file = layout.demo(party.name).join("staff.json");
        files::write_private(&file, format!("{account:#}\n").as_bytes())?;
        if steps.is_open(&step) {
            says(&format!("staff account of {}", party.name));
            hub.post("/staff", &account).await?;
            steps.close(&step)?;
        }
        known.push(account);
    }
    Ok(())
}

/// The account of a party: the one in its folder, else one of the same office's other terminal,
/// else a new one.
fn account(layout: &Layout, party: &Party, known: &[Value]) -> anyhow::Result<Option<Value>> {
    let (Some(staff), Some(office)) = (party.staff, party.office) else { return Ok(None) };
    let file = layout.demo(party.name).join("staff.json");
    if file.is_file() {
        let text = files::read_text(&file)?;
        let account = serde_json::from_str(&text)
            .with_context(|| format!("file `{}` is not understood", file.display()))?;
        return Ok(Some(account));
    }
    let number = office.office()?.number;
    let same =
        |account: &&Value| account["id"] == json!(staff.id) && account["office"] == json!(number);
    if let Some(account) = known.iter().find(same) {
        return Ok(Some(account.clone()));
    }
    Ok(Some(json!({
        "office": number,
        "id": staff.id,
        "name": staff.name,
        "job": staff.job,
        "password": secrets::random_text(20)?,
    })))
}

/// Demo certificates are made anew this long before their end, in seconds.
const RENEW_BEFORE_S: u64 = 7 * 86_400;
