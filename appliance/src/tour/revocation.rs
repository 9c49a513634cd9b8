//! Step 6, revocation: one certificate is revoked, and within a second it is refused on a new
//! connection, on a resumed session, and on a connection that was already open.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use crate::client::{Client, Handshake};

use super::exchange::{EFFECT_MAX, in_force_after};
use super::handshakes::{doomed, in_words, recorded_reason, seen};
use super::party::Scene;
use super::report::Report;

/// Walks the revocation of step 6.
pub(super) async fn walk(scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    report.step(6, "証明書を失効させ、1 秒以内に拒否されることを測る");
    let terminal = doomed(scene, "doomed").await?;
    // A client of its own for each way in: sessions are resumed only where they were begun.
    let client = || scene.client(Some(&terminal.credentials));
    let (fresh, returning, staying) = (client()?, client()?, client()?);
    before(&returning, report).await?;
    let mut open = Probe::open(&staying).await?;
    let sent = Instant::now();
    let path = format!("/certificates/{}/revoke", terminal.serial);
    let body = json!({"reason": "key-compromise", "wait": false});
    let revoke = scene.ra.ask(Method::POST, &path, Some(&body));
    let (revoked, new, resumed, open) = tokio::join!(
        revoke,
        until_refused(&fresh, &scene.env.gateway, sent, false),
        until_refused(&returning, &scene.env.gateway, sent, true),
        open.until_refused(sent),
    );
    let revoked = revoked?;
    let does = format!("証明書 {} を失効させる（鍵の漏えい）", terminal.serial);
    report.check(&does, &revoked.status.to_string(), "200", revoked.status == 200)?;
    tell(scene, report, "新しい接続", new).await?;
    alert(&client()?, report).await?;
    tell(scene, report, "前の接続から再開した接続", resumed).await?;
    tell(scene, report, "開いたままの接続", open).await
}

/// What a terminal sees that connects after the revocation and waits for the verdict.
async fn alert(client: &Client, report: &mut Report) -> anyhow::Result<()> {
    let refusal = client.refusal().await;
    let came = refusal
        .as_ref()
        .map_or("接続できてしまいました".to_owned(), |error| seen(&error.cause));
    report.check("失効した証明書: あらためて接続する", &came, "接続の拒否", refusal.is_some())
}

/// Before the revocation a session can be resumed: otherwise the second measure would show nothing.
async fn before(client: &Client, report: &mut Report) -> anyhow::Result<()> {
    let first = Probe::open(client).await?.handshake;
    let second = Probe::open(client).await?.handshake;
    let came = format!("1 回目 {}、2 回目 {}", kind(first), kind(second));
    let fits = (first, second) == (Some(Handshake::Full), Some(Handshake::Resumed));
    let does = "失効の前に、2 回続けて接続する";
    report.check(does, &came, "2 回目は前の接続から再開", fits)
}

fn kind(handshake: Option<Handshake>) -> &'static str {
    match handshake {
        Some(Handshake::Full) => "最初から",
        Some(Handshake::Resumed) => "前の接続から再開",
        None => "不明",
    }
}

/// What a way in came to: when it was first refused, and how.
struct Refused {
    after: Option<Duration>,
    came: String,
    local: Option<std::net::SocketAddr>,
    /// The first refused attempt resumed a session.
    resumed: bool,
    must_resume: bool,
}

async fn tell(
    scene: &Scene,
    report: &mut Report,
    way: &str,
    refused: Refused,
) -> anyhow::Result<()> {
    let mut came = refused.came.clone();
    if let Some(after) = refused.after {
        came = format!("{came}\n{}", in_force_after(after));
    }
    if refused.local.is_some() {
        let record = recorded_reason(scene, refused.local).await?;
        came = format!("{came}\n{}", in_words(record.as_ref()));
    }
    let fits = refused.after.is_some() && (refused.resumed || !refused.must_resume);
    report.check(&format!("失効した証明書: {way}"), &came, "拒否", fits)
}

/// An open connection that asks for something harmless.
struct Probe {
    connection: crate::client::Connection,
    handshake: Option<Handshake>,
}

/// How one request ended.
enum Attempt {
    /// It got as far as the missing staff token.
    LetIn,
    /// It was refused for its certificate, or the connection was.
    Refused { came: String, local: Option<std::net::SocketAddr>, resumed: bool },
}

impl Probe {
    async fn open(client: &Client) -> Result<Self, crate::client::Error> {
        let connection = client.connect().await?;
        let handshake = connection.handshake();
        let mut probe = Self { connection, handshake };
        probe.ask().await?;
        Ok(probe)
    }

    /// Asks without a staff token; returns status and code.
    async fn ask(&mut self) -> Result<(u16, String), crate::client::Error> {
        let response = self.connection.send(Method::GET, "/v1/registrations", &[], "").await?;
        let code =
            response.json().pointer("/code").and_then(|code| code.as_str().map(str::to_owned));
        Ok((response.status, code.unwrap_or_default()))
    }

    async fn attempt(&mut self) -> Attempt {
        match self.ask().await {
            Ok((status, code)) if code == "certificate_revoked" => {
                let resumed = self.handshake == Some(Handshake::Resumed);
                Attempt::Refused { came: format!("{status} {code}"), local: None, resumed }
            }
            Ok(_) => Attempt::LetIn,
            Err(error) => closed(&error),
        }
    }

    /// Asks again and again on this connection.
    async fn until_refused(&mut self, since: Instant) -> Refused {
        loop {
            if let Some(refused) = settled(self.attempt().await, since, false) {
                // The connection was good once: the gateway has no failed handshake to record.
                return Refused { local: None, ..refused };
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn closed(error: &crate::client::Error) -> Attempt {
    let resumed = error.handshake == Some(Handshake::Resumed);
    Attempt::Refused { came: seen(&error.cause), local: error.local, resumed }
}

/// Connects again and again. A connection that never came to TLS is no refusal.
async fn until_refused(
    client: &Client,
    gateway: &str,
    since: Instant,
    must_resume: bool,
) -> Refused {
    loop {
        let attempt = match client.connect().await {
            Ok(connection) => {
                let handshake = connection.handshake();
                Probe { connection, handshake }.attempt().await
            }
            Err(error) if error.local.is_none() => {
                let came = format!("{gateway} へ接続できません: {error}");
                return Refused { after: None, came, local: None, resumed: false, must_resume };
            }
            Err(error) => closed(&error),
        };
        if let Some(refused) = settled(attempt, since, must_resume) {
            return refused;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether an attempt ends the measuring: it was refused, or there is no time left.
fn settled(attempt: Attempt, since: Instant, must_resume: bool) -> Option<Refused> {
    let elapsed = since.elapsed();
    match attempt {
        Attempt::Refused { came, local, resumed } => {
            Some(Refused { after: Some(elapsed), came, local, resumed, must_resume })
        }
        Attempt::LetIn if elapsed > EFFECT_MAX => Some(Refused {
            after: None,
            came: format!("{} 秒たっても拒否されません", EFFECT_MAX.as_secs()),
            local: None,
            resumed: false,
            must_resume,
        }),
        Attempt::LetIn => None,
    }
}

/// How often a revoked certificate is tried.
const POLL: Duration = Duration::from_millis(10);
