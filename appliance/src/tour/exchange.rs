//! One line to the gateway: an open connection, with a staff token where there is one.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Connection, Response};
use crate::secrets;

use super::party::{Office, Scene, Terminal, number};

/// An open connection to the gateway. It never reconnects: what is asked on it is asked on the same
/// TLS connection.
pub(super) struct Line {
    connection: Connection,
    /// The staff access token that is sent along.
    pub(super) token: Option<String>,
}

impl Line {
    /// Opens a connection of a terminal.
    pub(super) async fn open(terminal: &Terminal) -> anyhow::Result<Self> {
        let connection = terminal
            .client
            .connect()
            .await
            .with_context(|| format!("`{}` could not connect", terminal.identity))?;
        Ok(Self { connection, token: None })
    }

    /// Makes a staff account for this tour, opens a connection and logs in.
    pub(super) async fn log_in(
        scene: &Scene,
        terminal: &Terminal,
        office: &Office,
        job: &str,
    ) -> anyhow::Result<(Self, Answer)> {
        let password = secrets::random_text(20)?;
        let staff_id = format!("tour-{}-{job}", scene.mark);
        let account = json!({
            "office": number(office)?, "id": staff_id, "name": "関所 巡（架空）", "job": job,
            "password": password,
        });
        scene.hub.post("/staff", &account).await?;
        let mut line = Self::open(terminal).await?;
        let body = json!({"staff_id": staff_id, "password": password});
        let answer = line.post("/v1/session", &body).await?;
        line.token = answer.text("access_token").map(str::to_owned);
        Ok((line, answer))
    }

    /// `GET target`.
    pub(super) async fn get(&mut self, target: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, target, &[], Bytes::new()).await
    }

    /// `POST target` with a JSON body.
    pub(super) async fn post(&mut self, target: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(Method::POST, target, &[], body.to_string().into()).await
    }

    /// `PUT target` with a JSON body.
    pub(super) async fn put(&mut self, target: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(Method::PUT, target, &[], body.to_string().into()).await
    }

    /// Sends any request, the staff token with it.
    pub(super) async fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut all: Vec<(&str, &str)> = headers.to_vec();
        all.extend(authorization.as_deref().map(|value| ("authorization", value)));
        let what = format!("{method} {target}");
        let response = self.connection.send(method, target, &all, body).await;
        response.map(Answer::from).context(what)
    }

    /// Repeats a request until its answer is `done`, for at most `limit`; the last answer and the
    /// time since `since`.
    pub(super) async fn until(
        &mut self,
        request: (Method, &str, &Value),
        since: Instant,
        limit: Duration,
        done: impl Fn(&Answer) -> bool,
    ) -> anyhow::Result<(Answer, Duration)> {
        let (method, target, body) = request;
        let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        loop {
            let answer = self.send(method.clone(), target, &[], bytes.clone()).await?;
            let elapsed = since.elapsed();
            if done(&answer) || elapsed > limit {
                return Ok((answer, elapsed));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Repeats a request until it has this status: a change that was just made reaches the gateway
    /// by its feed a moment later.
    pub(super) async fn soon(
        &mut self,
        method: Method,
        target: &str,
        body: &Value,
        status: u16,
    ) -> anyhow::Result<Answer> {
        let done = |answer: &Answer| answer.status == status;
        let (answer, _) =
            self.until((method, target, body), Instant::now(), EFFECT_MAX, done).await?;
        Ok(answer)
    }
}

/// An answer of the gateway or the hub.
#[derive(Debug)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// The JSON body; `null` when empty or no JSON.
    pub(super) body: Value,
    /// The id by which records and error text name the request.
    pub(super) request_id: Option<String>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        let id = response.headers.get("sekisho-request-id");
        Self {
            status: response.status,
            body: response.json(),
            request_id: id.and_then(|id| id.to_str().ok()).map(str::to_owned),
        }
    }
}

impl Answer {
    /// The stable code of a refusal; empty when there is none.
    pub(super) fn code(&self) -> &str {
        self.error("code")
    }

    /// A text of the body.
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.body.get(field).and_then(Value::as_str)
    }

    /// A list of the body.
    pub(super) fn list(&self, field: &str) -> &[Value] {
        self.body.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The whole body as text, to look for something in it.
    pub(super) fn to_text(&self) -> String {
        self.body.to_string()
    }

    fn error(&self, field: &str) -> &str {
        self.text(field).unwrap_or_default()
    }

    /// The problems that a refused file or document lists, one line each.
    pub(super) fn problems(&self) -> Vec<String> {
        let problems = self.body.pointer("/problems").and_then(Value::as_array);
        problems.into_iter().flatten().map(problem).collect()
    }
}

fn problem(value: &Value) -> String {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let number = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or_default();
    let place = match (number("line"), number("column")) {
        (0, _) => String::new(),
        (line, 0) => format!("{line}行目 "),
        (line, column) => format!("{line}行目 {column}列目 "),
    };
    let item = if text("item").is_empty() { text("field") } else { text("item") };
    format!("{place}「{item}」{}", text("message_ja"))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.code().is_empty() {
            return write!(f, "{}", self.status);
        }
        write!(f, "{} {}: {}", self.status, self.code(), self.error("detail_ja"))?;
        for problem in self.problems() {
            write!(f, "\n{problem}")?;
        }
        Ok(())
    }
}

/// Within what time a change should be in force everywhere. One that takes longer is told so: how
/// long it takes on a busy machine says more of the machine.
const EFFECT_GOAL: Duration = Duration::from_secs(1);

/// When a change that is not in force yet is taken for one that never will be.
pub(super) const EFFECT_MAX: Duration = Duration::from_secs(10);

/// How long a change took, held against the goal.
pub(super) fn in_force_after(took: Duration) -> String {
    let told = format!("{:.1} ミリ秒後", took.as_secs_f64() * 1e3);
    if took <= EFFECT_GOAL { told } else { told + "（目標の 1 秒を超えました）" }
}

/// How often a change is looked for.
const POLL: Duration = Duration::from_millis(5);
