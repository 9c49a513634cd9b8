//! Terminals that have a code and a request but no certificate yet, and the callers that enrol
//! them one after the other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::demo_box::DemoBox;

/// What one terminal brings to its enrolment.
pub(super) struct Terminal {
    authorization: HeaderValue,
    /// PKCS#10 in base64.
    request: Bytes,
    /// Its public key, as the certificate must hold it (SubjectPublicKeyInfo, DER).
    pub(super) spki: Vec<u8>,
}

/// An office, a code and a request for each terminal.
///
/// # Errors
/// When the RA refuses or a key can not be made.
pub(super) async fn prepare(demo_box: &DemoBox, count: u32) -> anyhow::Result<Vec<Terminal>> {
    let socket: Arc<Path> = demo_box.admin_socket.as_path().into();
    let mut tasks = JoinSet::new();
    for first in 0..ADMIN_CALLERS {
        let socket = Arc::clone(&socket);
        tasks.spawn(async move {
            let mut made = Vec::new();
            let mut told = Instant::now();
            for at in (first..count).step_by(ADMIN_CALLERS as usize) {
                made.push(prepare_one(&socket, at).await?);
                if first == 0 && told.elapsed() >= Duration::from_secs(1) {
                    told = Instant::now();
                    eprintln!("{at} of {count} codes");
                }
            }
            anyhow::Ok(made)
        });
    }
    let mut terminals = Vec::new();
    while let Some(made) = tasks.join_next().await {
        terminals.extend(made??);
    }
    Ok(terminals)
}

async fn prepare_one(socket: &Path, at: u32) -> anyhow::Result<Terminal> {
    let number = office_number(at);
    let office = json!({
        "number": number,
        "name": format!("測定事業所 {at}"),
        "service_types": ["43"],
        "medical": false,
    });
    post(socket, "/offices", &office).await?;
    let code = json!({
        "identity": {"kind": "office", "number": number, "terminal": "front-desk"},
        "profile": "office-browser",
        "valid_hours": 1,
    });
    let code = post(socket, "/codes", &code).await?;
    let text = |key: &str| code[key].as_str().with_context(|| format!("the code has no `{key}`"));
    let authorization = basic(text("code_id")?, text("secret")?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok(Terminal {
        authorization,
        request: STANDARD.encode(request.der()).into(),
        spki: key.subject_public_key_info(),
    })
}

/// 事業所番号 of the offices that are made here: the same in each run, so that a box which is
/// measured again gets no more of them.
fn office_number(at: u32) -> String {
    format!("98{at:08}")
}

fn basic(code_id: &str, secret: &str) -> anyhow::Result<HeaderValue> {
    let value = format!("Basic {}", STANDARD.encode(format!("{code_id}:{secret}")));
    let mut value = HeaderValue::from_str(&value)?;
    value.set_sensitive(true);
    Ok(value)
}

/// One command of the RA's operator.
async fn post(socket: &Path, path: &str, body: &Value) -> anyhow::Result<Value> {
    let what = || format!("the RA on `{}`, command `{path}`", socket.display());
    let exchange = async {
        let mut sender = http1(UnixStream::connect(socket).await?).await?;
        let request = Request::post(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        read(sender.send_request(request).await?).await
    };
    let answered = tokio::time::timeout(CALL_TIMEOUT, exchange);
    let (status, body) = answered.await.with_context(what)?.with_context(what)?;
    let text = String::from_utf8_lossy(&body);
    anyhow::ensure!(status.is_success(), "{} is refused ({status}): {text}", what());
    serde_json::from_slice(&body).with_context(what)
}

/// Enrols terminals over TLS, on a connection that it keeps while the RA keeps it.
pub(super) struct Caller {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    /// Where it comes from: the RA takes only some connections from one address.
    source: Option<IpAddr>,
    reconnect: bool,
    open: Option<(SendRequest<Full<Bytes>>, Instant)>,
    /// Connections opened so far.
    pub(super) handshakes: u64,
}

impl Caller {
    pub(super) fn new(demo_box: &DemoBox, at: u32, reconnect: bool) -> Self {
        let source = demo_box.enrol.is_ipv4().then(|| source(at));
        let tls = Arc::clone(&demo_box.tls);
        Self { address: demo_box.enrol, tls, source, reconnect, open: None, handshakes: 0 }
    }

    /// Sends the terminal's request and returns the body of a good answer.
    ///
    /// # Errors
    /// What went wrong, in words that are the same for the same cause.
    pub(super) async fn enrol(&mut self, terminal: &Terminal) -> Result<Bytes, String> {
        let exchange = tokio::time::timeout(CALL_TIMEOUT, self.exchange(terminal)).await;
        let answered = match exchange {
            Ok(answered) => answered.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
        };
        if answered.is_err() || self.reconnect {
            self.open = None;
        }
        match answered? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => Err(refused(status, &body)),
        }
    }

    async fn exchange(&mut self, terminal: &Terminal) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::post("/.well-known/est/simpleenroll")
            .header(HOST, format!("localhost:{}", self.address.port()))
            .header(CONTENT_TYPE, "application/pkcs10")
            .header(AUTHORIZATION, &terminal.authorization)
            .body(Full::new(terminal.request.clone()))?;
        let kept = self
            .open
            .take()
            .filter(|(sender, since)| !sender.is_closed() && since.elapsed() < CONNECTION_AGE_MAX);
        let (mut sender, since) = match kept {
            Some(kept) => kept,
            None => (self.connect().await?, Instant::now()),
        };
        sender.ready().await.context("HTTP")?;
        let answer = sender.send_request(request).await.context("HTTP")?;
        let answer = read(answer).await?;
        self.open = Some((sender, since));
        Ok(answer)
    }

    async fn connect(&mut self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let tcp = match self.source {
            Some(source) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(source, 0))?;
                socket.connect(self.address).await
            }
            None => TcpStream::connect(self.address).await,
        };
        let tcp = tcp.context("connect")?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await;
        self.handshakes += 1;
        http1(tls.context("TLS")?).await
    }
}

/// The loopback address of caller `at`: few callers share one.
fn source(at: u32) -> IpAddr {
    let [.., low] = (at / CALLERS_OF_ONE_ADDRESS).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 2, 0, low.saturating_add(1)))
}

async fn http1<S>(stream: S) -> anyhow::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // What breaks a connection is told to the request on it.
        let _ = connection.await;
    });
    Ok(sender)
}

async fn read(
    answer: http::Response<hyper::body::Incoming>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer can not be read: {error}"))?;
    Ok((status, body.to_bytes()))
}

/// The status, and the English half of what the RA says to people.
fn refused(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let said = text.rsplit(" / ").next().unwrap_or_default();
    let said: String = said.chars().filter(|c| !c.is_control()).take(SAID_MAX).collect();
    format!("HTTP {}: {}", status.as_u16(), said.trim())
}

/// The admin socket serves 32 connections; a closed one counts a moment longer.
const ADMIN_CALLERS: u32 = 8;
/// The RA takes 32 connections from one address; a closed one counts a moment longer.
const CALLERS_OF_ONE_ADDRESS: u32 = 8;
/// The RA ends connections after 60 s, in the middle of a request if there is one.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(25);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 1 << 20;
const SAID_MAX: usize = 160;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use policies::identity::OfficeNumber;

    use super::*;

    #[test]
    fn callers_come_from_addresses_enough_for_the_ra() {
        let mut callers: BTreeMap<IpAddr, u32> = BTreeMap::new();
        (0..240).for_each(|at| *callers.entry(source(at)).or_default() += 1);
        assert_eq!(callers.len(), 30);
        assert!(callers.iter().all(|(address, count)| address.is_loopback() && *count == 8));
    }

    #[test]
    fn offices_have_numbers_of_their_own() {
        for at in [0, 7, 89_999] {
            office_number(at).parse::<OfficeNumber>().unwrap();
        }
        assert_ne!(office_number(1), office_number(10));
    }

    #[test]
    fn refusals_are_grouped_by_what_is_said_in_english() {
        let body = "ただいま発行できません。 / the service is busy: try again shortly\n";
        let said = refused(StatusCode::SERVICE_UNAVAILABLE, body.as_bytes());
        assert_eq!(said, "HTTP 503: the service is busy: try again shortly");
    }

    #[test]
    fn credentials_are_those_of_rfc_7617_and_are_not_shown() {
        let value = basic("Aladdin", "open sesame").unwrap();
        assert_eq!(value.as_bytes(), b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(format!("{value:?}"), "Sensitive");
    }
}
