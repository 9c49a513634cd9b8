//! Step 1: every party enrols with a one-time code. The key is made by `sekisho-office`, which
//! sends a certificate request and gets the certificate.

use std::process::Stdio;

use anyhow::Context as _;
use policies::identity::{Identity, Serial, SystemName};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use crate::client::Credentials;
use crate::code::{self, Profile};
use crate::process;

use super::party::{
    CARE_MANAGEMENT, Cast, DAY_SERVICE, HOSPITAL, OTHER_CARE_MANAGEMENT, Office, Scene, Terminal,
    number,
};
use super::report::Report;

/// Registers the offices and enrols everybody.
pub(super) async fn walk(scene: &Scene, report: &mut Report) -> anyhow::Result<Cast> {
    report.step(1, "事業所を登録し、端末ごとに証明書を発行する（鍵は端末側で作成）");
    for office in [&CARE_MANAGEMENT, &OTHER_CARE_MANAGEMENT, &DAY_SERVICE, &HOSPITAL] {
        register(scene, office, report).await?;
    }
    let office = |office, name| scene.office(office, name);
    let system = |name, terminal| anyhow::Ok(Identity::System { name, terminal });
    let municipality =
        Identity::Municipality { insurer: scene.insurer, terminal: scene.terminal("city")? };
    let exchange = system(SystemName::CarePlanExchange, scene.terminal("exchange")?)?;
    let life = system(SystemName::Life, scene.terminal("life")?)?;
    let portal = system(SystemName::Portal, scene.terminal("portal")?)?;
    let mut told = Told { scene, report };
    Ok(Cast {
        care_management: told.enrol("居宅介護支援事業所", office(&CARE_MANAGEMENT, "a")?).await?,
        second_terminal: told
            .enrol("居宅介護支援事業所（2 台目）", office(&CARE_MANAGEMENT, "b")?)
            .await?,
        other_care_management: told
            .enrol("別の居宅介護支援事業所", office(&OTHER_CARE_MANAGEMENT, "a")?)
            .await?,
        day_service: told.enrol("通所介護事業所", office(&DAY_SERVICE, "a")?).await?,
        hospital: told.enrol("病院", office(&HOSPITAL, "a")?).await?,
        municipality: told.enrol("市区町村の介護保険事務システム", municipality).await?,
        exchange: told.enrol("ケアプランデータ連携システム", exchange).await?,
        life: told.enrol("LIFE", life).await?,
        portal: told.enrol("マイナポータル", portal).await?,
    })
}

async fn register(scene: &Scene, office: &Office, report: &mut Report) -> anyhow::Result<()> {
    let body = json!({
        "number": number(office)?, "name": office.name, "service_types": office.service_types,
        "medical": office.medical,
    });
    let answer = scene.ra.ask(http::Method::POST, "/offices", Some(&body)).await?;
    let does = format!("{}を登録する（事業所番号 {}）", office.what, office.number);
    let came = match answer.status {
        200 => "200 登録済み（同じ内容）".to_owned(),
        201 => "201 登録しました".to_owned(),
        _ => format!("{} {}", answer.status, answer.body),
    };
    report.check(&does, &came, "201（登録済みなら 200）", matches!(answer.status, 200 | 201))
}

struct Told<'t> {
    scene: &'t Scene,
    report: &'t mut Report,
}

impl Told<'_> {
    async fn enrol(&mut self, who: &str, identity: Identity) -> anyhow::Result<Terminal> {
        let profile = Profile::of(&identity);
        let terminal = enrol(self.scene, identity, profile, None).await?;
        tell(&format!("{who}の端末を登録する"), &terminal, self.report)?;
        Ok(terminal)
    }
}

/// Prints what the certificate says and checks that it names the terminal.
pub(super) fn tell(does: &str, terminal: &Terminal, report: &mut Report) -> anyhow::Result<()> {
    let leaf = terminal.credentials.leaf().context("no certificate came")?;
    let (_, certificate) = X509Certificate::from_der(leaf)?;
    let uris = san_uris(&certificate);
    let until = certificate.validity().not_after.to_datetime();
    let came = format!(
        "シリアル番号 {}　有効期限 {}（UTC）\n{}",
        terminal.serial,
        until.format(DAY_AND_TIME)?,
        uris.join(" ")
    );
    let path = format!("/{}", terminal.identity.path());
    let expected = format!("SAN が …{path} だけの証明書");
    let fits = matches!(uris.as_slice(), [uri] if uri.ends_with(&path));
    report.check(does, &came, &expected, fits)
}

fn san_uris(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            continue;
        };
        for name in &names.general_names {
            if let GeneralName::URI(uri) = name {
                uris.push((*uri).to_owned());
            }
        }
    }
    uris
}

/// Gets a code from the RA and runs `sekisho-office enrol` with it.
pub(super) async fn enrol(
    scene: &Scene,
    identity: Identity,
    profile: Profile,
    not_after_s: Option<u32>,
) -> anyhow::Result<Terminal> {
    let code = code::request(&scene.ra, &identity, profile, 1, not_after_s).await?;
    let folder = scene.keys.path().join(identity.path().replace('/', "_"));
    let mut child = Command::new(process::program("sekisho-office")?)
        .args(["enrol", "--url", &scene.env.enrol, "--trust"])
        .arg(&scene.env.trust)
        .args(["--identity", &identity.path(), "--code", field(&code, "code_id")?])
        .args(["--secret-file", "-", "--out"])
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("sekisho-office cannot be started")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(field(&code, "secret")?.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "`{identity}` could not be enrolled: {}",
        process::last_error_line(&words).unwrap_or_default()
    );
    let credentials = Credentials::from_files(&folder.join("cert.pem"), &folder.join("key.pem"))?;
    let leaf = credentials.leaf().context("no certificate came")?;
    let (_, certificate) = X509Certificate::from_der(leaf)?;
    let serial = Serial::from_bytes(certificate.raw_serial())?;
    let client = scene.client(Some(&credentials))?;
    Ok(Terminal { identity, credentials, serial, client })
}

fn field<'v>(value: &'v Value, name: &str) -> anyhow::Result<&'v str> {
    let text = value.get(name).and_then(Value::as_str);
    text.with_context(|| format!("the RA's answer holds no `{name}`"))
}

const DAY_AND_TIME: &[time::format_description::BorrowedFormatItem<'_>] =
    time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
