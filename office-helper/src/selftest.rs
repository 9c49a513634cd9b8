//! What a clerk runs when something does not work: readers, certificate, connection, each with what
//! to do about it. Nothing here changes anything or asks for a PIN.

use std::fmt;
use std::path::Path;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;

use crate::cli::SelftestArgs;
use crate::files::{self, Folder};
use crate::https::{self, ClientIdentity, Origin};
use crate::{reader, status};

/// How one test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Good,
    /// Not needed for everything: without a reader documents can still be read.
    Attention,
    Bad,
}

/// One test.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    name: &'static str,
    outcome: Outcome,
    message_ja: String,
    message: String,
}

/// All tests of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    checks: Vec<Check>,
}

impl Report {
    /// Whether nothing was bad.
    pub(crate) fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.outcome != Outcome::Bad)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match check.outcome {
                Outcome::Good => "✓",
                Outcome::Attention => "!",
                Outcome::Bad => "✗",
            };
            writeln!(f, "{mark} {}: {}", check.name, check.message_ja)?;
            writeln!(f, "  {}", check.message)?;
        }
        Ok(())
    }
}

/// Runs the tests that the arguments give the means for.
pub(crate) async fn run(args: &SelftestArgs) -> Report {
    let mut checks = readers();
    if let Some(dir) = &args.dir {
        checks.push(certificate(dir));
    }
    if let (Some(url), Some(trust)) = (&args.url, &args.trust) {
        checks.push(connection(url, trust, args.dir.as_deref()).await);
    }
    Report { checks }
}

fn readers() -> Vec<Check> {
    let survey = reader::survey();
    let outcome = if survey.has_reader() { Outcome::Good } else { Outcome::Attention };
    let check = |(message_ja, message)| Check { name: "reader", outcome, message_ja, message };
    survey.lines().into_iter().map(check).collect()
}

fn certificate(dir: &Path) -> Check {
    let (outcome, (message_ja, message)) = match status::read(dir) {
        Ok(status) => {
            let outcome = match status.state {
                status::State::Valid => Outcome::Good,
                status::State::RenewSoon => Outcome::Attention,
                status::State::NotYetValid | status::State::Expired => Outcome::Bad,
            };
            (outcome, status.summary())
        }
        Err(error) => (Outcome::Bad, ("証明書を読めません".to_owned(), one_line(&error))),
    };
    Check { name: "certificate", outcome, message_ja, message }
}

/// Any HTTP answer shows that network, TLS 1.3 and, where the server asks for one, the certificate
/// work; what the answer says about the path does not matter.
async fn connection(origin: &Origin, trust: &Path, dir: Option<&Path>) -> Check {
    let (outcome, message_ja, message) = match reach(origin, trust, dir).await {
        Ok(status) => (
            Outcome::Good,
            format!("{origin} に接続できました（TLS 1.3、HTTP {status}）"),
            format!("reached {origin} (TLS 1.3, HTTP {status})"),
        ),
        Err(error) => {
            (Outcome::Bad, format!("{origin} に接続できません"), one_line(error.as_ref()))
        }
    };
    Check { name: "connection", outcome, message_ja, message }
}

async fn reach(
    origin: &Origin,
    trust: &Path,
    dir: Option<&Path>,
) -> Result<u16, Box<dyn std::error::Error>> {
    let client = dir.map(client_identity).transpose()?;
    let settings = https::settings(trust, client)?;
    let request = Request::get("/healthz")
        .header(HOST, origin.authority())
        .header(USER_AGENT, concat!("sekisho-office/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::new()))?;
    Ok(https::exchange(origin, settings, request).await?.status.as_u16())
}

fn client_identity(dir: &Path) -> Result<ClientIdentity, Box<dyn std::error::Error>> {
    let folder = Folder::at(dir);
    let chain = files::read_certificates(&folder.certificate())?;
    let pem = files::read_key(&folder.key())?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())?;
    Ok(ClientIdentity { chain, key })
}

/// An error and its causes in one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: Option<&Path>, url: Option<&str>, trust: Option<&Path>) -> SelftestArgs {
        SelftestArgs {
            dir: dir.map(Path::to_owned),
            url: url.map(|url| url.parse().unwrap()),
            trust: trust.map(Path::to_owned),
            json: false,
        }
    }

    #[tokio::test]
    async fn a_missing_reader_is_no_failure_but_a_missing_certificate_is() {
        assert!(run(&args(None, None, None)).await.passed());
        let dir = tempfile::tempdir().unwrap();
        let report = run(&args(Some(dir.path()), None, None)).await;
        assert!(!report.passed());
        let text = report.to_string();
        assert!(text.contains("✗ certificate: 証明書を読めません"), "{text}");
        assert!(text.contains("cert.pem"), "{text}");
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let trust = dir.path().join("trust.pem");
        let ca = crate::certificate::tests::ca("c");
        std::fs::write(&trust, files::certificate_pem(&ca.der)).unwrap();
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("https://127.0.0.1:{port}");
        let report = run(&args(None, Some(&url), Some(&trust))).await;
        assert!(!report.passed());
        assert!(report.to_string().contains(&format!("cannot connect to `{url}`")), "{report}");
        assert!(serde_json::to_string(&report).unwrap().contains("\"outcome\":\"bad\""));
    }
}
