//! The demo: invented offices, terminals, staff and documents, so that a new box shows something.
//!
//! ```text
//!  prepare ─► parties (who) ─► enrol (offices, codes, certificates, staff) ─► seed (documents)
//!         └─► trust.pem, env.json
//! ```
//!
//! Everything is made the way a real party would make it: certificates by `sekisho-office enrol`,
//! documents through the gateway. Idempotent and resumable: each finished step is written down in
//! `demo/steps.json` and not done again, so what an operator changed in the demo stays.
//!
//! Invariant: every name is invented and says 見本; the office numbers carry the prefecture code 99,
//! which does not exist.

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cli::Context;
use crate::client::{Client, Credentials, TlsVersion};
use crate::exit::usage;
use crate::files;
use crate::layout::Layout;
use crate::lock::Lock;
use crate::output::{self, progress, shell_quoted};
use crate::supervisor::Status;

pub(crate) mod generate;
mod parties;
mod steps;
mod enrol;
mod seed;

/// Subcommands of `demo`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Log in as a demo party's staff and print the access token
    Token {
        /// The party's name in env.json, such as care-management-1
        party: String,
    },
    /// Write the facts of an invented country, the same for the same seed; needs no data folder
    Generate(generate::Args),
}

/// Runs `demo`.
///
/// # Errors
/// When the folder holds no such party, the login is refused, or facts cannot be written.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    let party = match command {
        Command::Token { party } => party,
        Command::Generate(args) => return generate::run(args, context),
    };
    context.layout.must_exist()?;
    let answer = login(&context.layout, party).await?;
    output::data(context.json, &answer, || output::field(&answer, "access_token"));
    Ok(true)
}

/// Fills the demo as far as it is not filled yet and returns what env.json holds.
///
/// # Errors
/// When a step is refused; the next `up --demo` goes on there.
pub(crate) async fn prepare(layout: &Layout, status: &Status) -> anyhow::Result<Value> {
    files::private_folder(&layout.demo(""))?;
    let _lock = Lock::of_demo(layout).await?;
    let root = files::read(&layout.ca("root.pem"))?;
    files::write_private(&layout.demo("trust.pem"), &root)?;
    let env = env(layout, status)?;
    files::write_private(&layout.demo("env.json"), format!("{env:#}\n").as_bytes())?;
    let mut steps = steps::Steps::read(layout)?;
    enrol::offices(layout, &mut steps).await?;
    enrol::terminals(layout, &env, &mut steps).await?;
    enrol::staff(layout, &mut steps).await?;
    seed::documents(layout, &env, &mut steps).await?;
    seed::registration(layout, &mut steps).await?;
    Ok(env)
}

/// Where the box listens, as URLs.
///
/// # Errors
/// When the supervisor does not know an address.
pub(crate) fn addresses(status: &Status) -> anyhow::Result<Value> {
    Ok(json!({
        "gateway": format!("https://localhost:{}", status.address("gateway")?.port()),
        "enrol": format!("https://localhost:{}", status.address("enrol")?.port()),
        "admin": format!("http://{}", status.address("admin")?),
    }))
}

fn env(layout: &Layout, status: &Status) -> anyhow::Result<Value> {
    let mut env = addresses(status)?;
    let insured: Vec<Value> = parties::INSURED
        .iter()
        .map(|(number, name)| json!({"insurer": parties::INSURER, "number": number, "name": name}))
        .collect();
    env["trust"] = json!(layout.demo("trust.pem"));
    env["parties"] = parties::ALL.iter().map(|party| party.to_json(layout)).collect();
    env["insured"] = json!(insured);
    env["note"] = json!("見本: all offices, persons and documents are invented");
    Ok(env)
}

/// A client with a demo party's certificate.
///
/// # Errors
/// When its files are missing or do not fit.
fn client(layout: &Layout, gateway: &str, party: &str) -> anyhow::Result<Client> {
    let folder = layout.demo(party);
    let credentials = Credentials::from_files(&folder.join("cert.pem"), &folder.join("key.pem"))?;
    Client::new(gateway, &layout.demo("trust.pem"), Some(&credentials), TlsVersion::Tls13)
}

async fn login(layout: &Layout, name: &str) -> anyhow::Result<Value> {
    let env_file = layout.demo("env.json");
    if !env_file.is_file() {
        return Err(usage(format!(
            "`{}` holds no demo: start one with `sekisho up --demo` in a new --data",
            layout.root().display()
        )));
    }
    let env: Value = serde_json::from_str(&files::read_text(&env_file)?)?;
    let party = parties::find(name)?;
    if party.staff.is_none() {
        return Err(usage(format!(
            "party `{name}` is no office: it needs no staff token, its certificate is enough"
        )));
    }
    let staff: Value =
        serde_json::from_str(&files::read_text(&layout.demo(name).join("staff.json"))?)?;
    let gateway = env["gateway"].as_str().context("env.json names no gateway")?;
    let body = json!({"staff_id": staff["id"], "password": staff["password"]});
    let mut connection = client(layout, gateway, name)?.connect().await?;
    let headers = [("content-type", "application/json")];
    let path = "/v1/session";
    let answer = connection.send(http::Method::POST, path, &headers, body.to_string()).await?;
    anyhow::ensure!(
        answer.status == 200,
        "login of `{name}` was refused with {}: {}",
        answer.status,
        answer.json()["detail"].as_str().unwrap_or("no message")
    );
    Ok(answer.json())
}

/// The lines that are printed when the box is up.
pub(crate) fn what_to_try(layout: &Layout, env: &Value) -> String {
    let at = |key: &str| env[key].as_str().unwrap_or("-").to_owned();
    let mut lines = vec![
        String::new(),
        format!("gateway    {}", at("gateway")),
        format!("enrolment  {}", at("enrol")),
        format!("admin      {}", at("admin")),
        format!("data       {}", layout.root().display()),
    ];
    if env["parties"].is_array() {
        lines.extend(curl_lines(layout, &at("gateway"), &at("admin")));
    }
    let data = layout.quoted();
    let own = own_program();
    lines.extend([
        String::new(),
        "Status, then stop:".to_owned(),
        format!("  {own} status --data {data}"),
        format!("  {own} down --data {data}"),
    ]);
    lines.join("\n")
}

fn curl_lines(layout: &Layout, gateway: &str, admin: &str) -> Vec<String> {
    let office = "care-management-1";
    let file = |name: &str| shell_quoted(&layout.demo(name).display().to_string());
    let curl = format!(
        "curl --cert {} --key {} --cacert {} -H \"authorization: Bearer $TOKEN\"",
        file(&format!("{office}/cert.pem")),
        file(&format!("{office}/key.pem")),
        file("trust.pem"),
    );
    let person = |at: usize| {
        let number = parties::INSURED.get(at).map_or("", |(number, _)| number);
        format!("{gateway}/v1/insured/{}/{number}/documents", parties::INSURER)
    };
    vec![
        String::new(),
        "Try (見本: every office, person and document is invented). A care manager logs in:"
            .to_owned(),
        format!("  TOKEN=$({} demo token {office} --data {})", own_program(), layout.quoted()),
        "The documents that the office may see of its person, and one of them:".to_owned(),
        format!("  {curl} {}", person(0)),
        format!("  {curl} {}/certification-survey", person(0)),
        "A person whom the office is not registered for is refused (403), with the reason:"
            .to_owned(),
        format!("  {curl} {}/certification-survey", person(1)),
        "Metrics:".to_owned(),
        format!("  curl {admin}/metrics"),
    ]
}

fn own_program() -> String {
    let own = std::env::current_exe().map(|path| path.display().to_string());
    shell_quoted(&own.unwrap_or_else(|_| "sekisho".to_owned()))
}

/// Says what a step does.
fn says(text: &str) {
    progress(&format!("demo: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn status() -> Status {
        let at = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let names = [("gateway", 8443), ("enrol", 8444), ("admin", 9901)];
        Status {
            pid: 1,
            phase: crate::supervisor::Phase::Up,
            started_at: String::new(),
            parts: Vec::new(),
            upgrades: None,
            addresses: names
                .map(|(name, port)| (name.to_owned(), at(port)))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn env_json_has_its_promised_form() {
        let layout = Layout::new(Path::new("/d")).unwrap();
        let env = env(&layout, &status()).unwrap();
        assert_eq!(env["gateway"], "https://localhost:8443");
        assert_eq!(env["enrol"], "https://localhost:8444");
        assert_eq!(env["admin"], "http://127.0.0.1:9901");
        assert_eq!(env["trust"], "/d/demo/trust.pem");
        assert_eq!(env["insured"][0]["insurer"], "131016");
        assert_eq!(env["insured"][0]["number"], "0000000001");
        let first = &env["parties"][0];
        assert_eq!(first["name"], "care-management-1");
        assert_eq!(first["kind"], "office");
        assert_eq!(first["service_types"], json!(["43"]));
        assert_eq!(first["cert"], "/d/demo/care-management-1/cert.pem");
        assert_eq!(first["key"], "/d/demo/care-management-1/key.pem");
    }

    #[test]
    fn printed_lines_are_whole_commands() {
        let layout = Layout::new(Path::new("/d e")).unwrap();
        let env = env(&layout, &status()).unwrap();
        let text = what_to_try(&layout, &env);
        assert!(text.contains("--cert '/d e/demo/care-management-1/cert.pem'"), "{text}");
        assert!(text.contains("demo token care-management-1 --data '/d e'"), "{text}");
        assert!(text.contains("http://127.0.0.1:9901/metrics"), "{text}");
    }
}
