//! Talking to the parts' admin sockets: HTTP/1.1 and JSON over a unix socket that only this user
//! can open.
//!
//! Invariant: every call ends, by an answer or after [`CALL_TIMEOUT`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::layout::{Layout, Part};

/// The admin socket of one part.
#[derive(Debug)]
pub(crate) struct Admin {
    socket: PathBuf,
    part: Part,
}

/// An answer: its status and JSON body (`null` when empty).
#[derive(Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Value,
}

impl Admin {
    /// The RA's: offices, codes, certificates.
    pub(crate) fn ra(layout: &Layout) -> Self {
        Self { socket: layout.run("ra-admin.sock"), part: Part::Ra }
    }

    /// The hub's: registrations, staff.
    pub(crate) fn hub(layout: &Layout) -> Self {
        Self { socket: layout.run("hub-admin.sock"), part: Part::Hub }
    }

    /// The gateway's: who does what.
    pub(crate) fn gateway(layout: &Layout) -> Self {
        Self { socket: layout.run("gateway-admin.sock"), part: Part::Gateway }
    }

    /// Sends one request and returns a good answer's body.
    ///
    /// # Errors
    /// When the part does not run or refuses; the part's own message is kept.
    pub(crate) async fn call(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let answer = self.ask(method, path, body).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        anyhow::bail!("{} refused: {}", self.part.program(), refusal(&answer))
    }

    /// `GET path`.
    ///
    /// # Errors
    /// As [`Admin::call`].
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(http::Method::GET, path, None).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Admin::call`].
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(http::Method::POST, path, Some(body)).await
    }

    /// Sends one request and returns whatever came back.
    ///
    /// # Errors
    /// When the part does not run or does not answer in time.
    pub(crate) async fn ask(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| self.silent(&error))?;
        let what =
            || format!("{} did not answer on `{}`", self.part.program(), self.socket.display());
        let exchange = exchange(stream, "localhost", method, path, body);
        tokio::time::timeout(CALL_TIMEOUT, exchange).await.with_context(what)?.with_context(what)
    }

    fn silent(&self, error: &std::io::Error) -> anyhow::Error {
        anyhow::anyhow!(
            "{} does not run ({error} on `{}`): start the box with `sekisho up --data DIR`",
            self.part.program(),
            self.socket.display()
        )
    }
}

/// `GET http://<address><path>`: the gateway's readiness, plain HTTP on loopback.
///
/// # Errors
/// When nothing answers within a second or two.
pub(crate) async fn get_plain(address: &str, path: &str) -> anyhow::Result<Answer> {
    let what = || format!("no answer from http://{address}{path}");
    let run = async {
        let stream = TcpStream::connect(address).await?;
        exchange(stream, address, http::Method::GET, path, None).await
    };
    tokio::time::timeout(PROBE_TIMEOUT, run).await.with_context(what)?.with_context(what)
}

/// Whether something accepts connections on a unix socket.
pub(crate) async fn socket_answers(socket: &Path) -> bool {
    let connect = tokio::time::timeout(PROBE_TIMEOUT, UnixStream::connect(socket));
    matches!(connect.await, Ok(Ok(_)))
}

/// The words of a refusal: the part's own code and message where it gave them.
pub(crate) fn refusal(answer: &Answer) -> String {
    let body = &answer.body;
    // The RA's own form, and the hub's problem document.
    let error = body.get("error").unwrap_or(body);
    let text = |key| error.get(key).and_then(Value::as_str);
    match (text("code"), text("message").or_else(|| text("detail"))) {
        (Some(code), Some(message)) => format!("{message} ({code})"),
        (_, Some(message)) => message.to_owned(),
        (_, None) => format!("status {}", answer.status),
    }
}

async fn exchange<S>(
    stream: S,
    host: &str,
    method: http::Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let bytes = body.map(Value::to_string).unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(bytes)))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = read_answer(sender.send_request(request).await?).await;
    driver.abort();
    answer
}

async fn read_answer(response: http::Response<hyper::body::Incoming>) -> anyhow::Result<Answer> {
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("the answer could not be read: {error}"))?
        .to_bytes();
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()))
    };
    Ok(Answer { status, body })
}

/// For one admin call; `--wait` may take as long as the CA facts' lease of 60 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

/// For one look whether a part answers.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_part_that_does_not_run_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        let error = Admin::hub(&layout).get("/status").await.unwrap_err().to_string();
        assert!(error.contains("sekisho-hub does not run"), "{error}");
        assert!(error.contains("sekisho up"), "{error}");
    }

    #[test]
    fn refusals_keep_the_words_of_the_part() {
        let body = json!({"error": {"code": "exists", "message": "office `1` exists"}});
        assert_eq!(refusal(&Answer { status: 409, body }), "office `1` exists (exists)");
        let body = json!({"code": "exists", "detail": "staff `1` exists"});
        assert_eq!(refusal(&Answer { status: 409, body }), "staff `1` exists (exists)");
        assert_eq!(refusal(&Answer { status: 500, body: Value::Null }), "status 500");
    }
}
