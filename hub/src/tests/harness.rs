//! A hub in a temporary folder, and calls to it as the gateway would make them.

use std::path::{Path, PathBuf};

use audit_log::CheckpointKey;
use futures::TryStreamExt as _;
use policies::decide::{GrantedKind, Needs};
use policies::document::DocumentKind;
use policies::feed::{Fact, Signer, Source, Subscriber};
use policies::identity::{Identity, Staff};
use policies::operations::Operations;
use policies::permit::{HEADER, LIFETIME_MS, PermitClaims, PermitKey};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::config::{Config, Limits};
use crate::socket::Listener;
use crate::{Hub, admin, clock, gateway_records, key_file, routes, server};

/// The insured person that most tests are about, and paths about them.
pub(crate) const INSURED: &str = "131016/0000000001";
pub(crate) const CARE: &str = "office/1370000001/terminal/front-1";
pub(crate) const DAY_CARE: &str = "office/1370000002/terminal/front-1";
pub(crate) const HOSPITAL: &str = "office/1310000001/terminal/ward-1";
pub(crate) const CITY: &str = "municipality/131016/terminal/kaigo-1";
pub(crate) const PORTAL: &str = "system/portal/terminal/p-1";
pub(crate) const LIFE: &str = "system/life/terminal/l-1";
pub(crate) const EXCHANGE: &str = "system/care-plan-exchange/terminal/x-1";

/// `/v1/insured/131016/0000000001/<rest>`.
pub(crate) fn person(rest: &str) -> String {
    format!("/v1/insured/{INSURED}/{rest}")
}

/// Writes keys and a configuration into `folder`; `more` is appended to the file.
pub(crate) fn write_config(folder: &Path, more: &str) -> PathBuf {
    let path = |name: &str| folder.join(name);
    let mut random = [0; 64];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    key_file::write_new(&path("permit.key"), &random[..32]).unwrap();
    key_file::write_new(&path("pseudonym.key"), &random[32..]).unwrap();
    key_file::write_new(&path("feed-hub.pkcs8"), &Signer::generate_pkcs8().unwrap()).unwrap();
    let (_, audit_key) = CheckpointKey::generate("hub.test/audit/hub").unwrap();
    key_file::write_new(&path("audit.key"), audit_key.as_bytes()).unwrap();
    let names = [
        ("socket", "hub.sock"),
        ("admin_socket", "hub-admin.sock"),
        ("feed_socket", "hub-feed.sock"),
        ("feed_key", "feed-hub.pkcs8"),
        ("permit_key", "permit.key"),
        ("staff_token_key", "staff-token.pkcs8"),
        ("pseudonym_key", "pseudonym.key"),
        ("database", "hub.sqlite"),
        ("audit_dir", "audit"),
        ("audit_key", "audit.key"),
        ("ready_file", "hub.ready.json"),
    ];
    let mut text: String = names
        .iter()
        .map(|(key, name)| format!("{key} = {:?}\n", path(name).display().to_string()))
        .collect();
    text.push_str("gateways = [\"gw-1\"]\n");
    if !more.contains("demo") {
        text.push_str("demo = true\n");
    }
    text.push_str(more);
    let file = path("hub.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// A running hub; it ends with the value.
pub(crate) struct TestHub {
    folder: TempDir,
    pub(crate) hub: Hub,
    pub(crate) key: PermitKey,
    _stop: watch::Sender<bool>,
}

impl TestHub {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    pub(crate) async fn start_with(more: &str) -> Self {
        Self::start_changed(more, |_| {}).await
    }

    /// As [`TestHub::start_with`], with limits that no file sets.
    pub(crate) async fn start_changed(more: &str, change: impl FnOnce(&mut Limits)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), more, change).await
    }

    /// A hub that follows the record stream at `gateway.sock` in its folder.
    pub(crate) async fn start_following() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("gateway.sock").display().to_string();
        Self::start_in(folder, &format!("audit_stream_socket = {socket:?}\n"), |_| {}).await
    }

    async fn start_in(folder: TempDir, more: &str, change: impl FnOnce(&mut Limits)) -> Self {
        let file = write_config(folder.path(), more);
        let mut config = Config::load(&file).unwrap_or_else(|error| panic!("{error}"));
        change(&mut config.limits);
        let key = std::fs::read(folder.path().join("permit.key")).unwrap();
        let hub = server::open(config).await.unwrap();
        let (stop, stopping) = watch::channel(false);
        let bind = |name: &str| Listener::bind(&folder.path().join(name)).unwrap();
        let (requests, admins, feed) =
            (bind("hub.sock"), bind("hub-admin.sock"), bind("hub-feed.sock"));
        let router = routes::router(hub.clone());
        tokio::spawn(server::serve_http(requests, router, stopping.clone(), 64));
        let router = admin::router(hub.clone());
        tokio::spawn(server::serve_http(admins, router, stopping.clone(), 4));
        tokio::spawn(server::serve_feed(feed, hub.clone(), stopping.clone()));
        tokio::spawn(gateway_records::follow(hub.clone(), stopping));
        Self { folder, hub, key: PermitKey::new(&key).unwrap(), _stop: stop }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Every current fact.
    pub(super) async fn facts(&self) -> Vec<Fact> {
        let mut snapshot = self.hub.store.snapshot().await.unwrap();
        let texts: Vec<String> = snapshot.facts().try_collect().await.unwrap();
        texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }

    /// A subscriber that trusts this hub's feed.
    pub(crate) fn subscriber(&self) -> Subscriber {
        Subscriber::new(Source::Hub, &self.hub.feed_signer.public_key()).unwrap()
    }

    /// A call that the gateway permits without any grant or need; add them.
    pub(crate) fn call(&self, principal: &str, method: &str, target: &str) -> Call<'_> {
        let path = target.split('?').next().unwrap();
        let operation = Operations::builtin().unwrap().resolve(method, path);
        let claims = PermitClaims {
            method: method.into(),
            target: target.into(),
            operation: operation.as_ref().map_or("none".into(), |found| found.id.to_string()),
            principal: Identity::from_path(principal).unwrap(),
            serial: "01ab".parse().unwrap(),
            certificate_sha256: format!("sha-of-{principal}"),
            staff: None,
            insured: operation.as_ref().and_then(|found| found.insured),
            insurer: operation.as_ref().and_then(|found| found.insurer),
            grants: Vec::new(),
            needs: Needs::NONE,
            request_id: "req-1".into(),
            facts_ca_seq: 1,
            facts_hub_seq: 1,
            expires_ms: clock::now_ms() + LIFETIME_MS,
        };
        let (body, headers) = (Vec::new(), String::new());
        Call { hub: self, claims, body, content_type: "application/json", headers }
    }

    /// Stores a document as `principal`.
    pub(crate) async fn store(&self, principal: &str, kind: &str, content: Value) -> Answer {
        let call = self.call(principal, "POST", &person(&format!("documents/{kind}")));
        call.grant(kind, false, Needs::NONE).json(content).send().await
    }

    /// A call to the admin socket.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = body.to_string();
        let head = head(method, path, "application/json", body.len(), "");
        exchange(&self.path("hub-admin.sock"), &head, body.as_bytes()).await
    }

    /// A member of staff of the office of `principal` with a live session there.
    pub(crate) async fn session(&self, principal: &str, id: &str, job: &str, session: &str) {
        let office = Identity::from_path(principal).unwrap().office().unwrap();
        let body = serde_json::json!({
            "office": office, "id": id, "name": "見本", "job": job, "password": "correct horse",
        });
        self.admin("POST", "/staff", body).await.expect(201);
        let mut tx = self.hub.store.write().await.unwrap();
        sqlx::query(
            "INSERT INTO sessions (id, office, staff_id, certificate_sha256, began_at,
             refresh_until) VALUES ($1, $2, $3, $4, 0, $5)",
        )
        .bind(session)
        .bind(office.as_str())
        .bind(id)
        .bind(format!("sha-of-{principal}"))
        .bind(i64::MAX)
        .execute(tx.conn())
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }

    /// Changes rows as no request could.
    pub(crate) async fn sql(&self, statement: &'static str) {
        let mut tx = self.hub.store.write().await.unwrap();
        sqlx::query(statement).execute(tx.conn()).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Registers the office of `principal` for [`INSURED`].
    pub(crate) async fn register(&self, principal: &str) {
        let office = Identity::from_path(principal).unwrap().office().unwrap();
        let body = serde_json::json!({
            "office": office, "insured": insured(), "reason": "test", "operator": "op",
        });
        self.admin("POST", "/registrations", body).await.expect(201);
    }

    /// The municipality of [`INSURED`] shares from 2020 on.
    pub(crate) async fn go_live(&self) {
        let call = self.call(CITY, "PUT", "/v1/municipalities/131016/sharing");
        call.json(serde_json::json!({ "from": "2020-04-01" })).send().await.expect(200);
    }

    /// The audit records of one action, as `event:result`.
    pub(crate) fn audit(&self, action: &str) -> Vec<String> {
        let entries = audit_log::read(&self.path("audit"));
        let events = entries.map(|entry| serde_json::to_value(entry.unwrap().event).unwrap());
        events
            .filter(|event| event["action"] == action)
            .map(|event| {
                let (event, result) = (&event["event"], event["result"].as_str());
                format!(
                    "{}{}",
                    event.as_str().unwrap(),
                    result.map_or(String::new(), |r| format!(":{r}"))
                )
            })
            .collect()
    }
}

/// [`INSURED`] as JSON.
pub(crate) fn insured() -> Value {
    serde_json::json!({ "insurer": "131016", "number": "0000000001" })
}

/// One call, until it is sent.
pub(crate) struct Call<'a> {
    hub: &'a TestHub,
    pub(crate) claims: PermitClaims,
    body: Vec<u8>,
    content_type: &'a str,
    headers: String,
}

impl<'a> Call<'a> {
    pub(crate) fn grant(mut self, kind: &str, own_only: bool, needs: Needs) -> Self {
        let document: DocumentKind = kind.parse().unwrap();
        self.claims.grants.push(GrantedKind { document, own_only, needs });
        self
    }

    pub(crate) fn needs(mut self, needs: Needs) -> Self {
        self.claims.needs = needs;
        self
    }

    pub(crate) fn staff(mut self, id: &str, job: &str, session: &str) -> Self {
        let office = self.claims.principal.office().unwrap();
        let (id, session) = (id.to_owned(), session.to_owned());
        self.claims.staff = Some(Staff { id, office, job: job.parse().unwrap(), session });
        self
    }

    pub(crate) fn certificate(mut self, sha256: &str) -> Self {
        self.claims.certificate_sha256 = sha256.into();
        self
    }

    #[allow(clippy::needless_pass_by_value, reason = "calls read better with `json!` in place")]
    pub(crate) fn json(mut self, body: Value) -> Self {
        self.body = body.to_string().into_bytes();
        self
    }

    pub(crate) fn bytes(mut self, content_type: &'a str, body: Vec<u8>) -> Self {
        (self.content_type, self.body) = (content_type, body);
        self
    }

    pub(crate) async fn send(self) -> Answer {
        let permit = self.hub.key.seal(&self.claims).unwrap();
        let headers = format!("{HEADER}: {permit}\r\n{}", self.headers);
        self.send_with(&headers).await
    }

    /// One more header of the request.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    /// Sends the head and a body that is `missing` bytes shorter than the head says.
    pub(crate) async fn send_short(self, missing: usize) -> Answer {
        let permit = self.hub.key.seal(&self.claims).unwrap();
        let PermitClaims { method, target, .. } = &self.claims;
        let headers = format!("{HEADER}: {permit}\r\n");
        let length = self.body.len() + missing;
        let head = head(method, target, self.content_type, length, &headers);
        let head = head.replace("connection: close\r\n", "");
        exchange(&self.hub.path("hub.sock"), &head, &self.body).await
    }

    /// Sends with these header lines in place of the permit's.
    pub(crate) async fn send_with(self, headers: &str) -> Answer {
        let PermitClaims { method, target, .. } = &self.claims;
        let head = head(method, target, self.content_type, self.body.len(), headers);
        exchange(&self.hub.path("hub.sock"), &head, &self.body).await
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) head_as_sent: String,
    pub(crate) text: String,
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.json);
        self.json
    }

    /// Asserts a refusal and gives its code.
    pub(crate) fn refused(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{}", self.json);
        self.json["code"].as_str().unwrap()
    }
}

fn head(method: &str, target: &str, content_type: &str, length: usize, more: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n\
         content-type: {content_type}\r\ncontent-length: {length}\r\n{more}\r\n"
    )
}

async fn exchange(socket: &Path, head: &str, body: &[u8]) -> Answer {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The hub may refuse and close before it has read a large body.
    let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let json = serde_json::from_str(body).unwrap_or(Value::Null);
    Answer {
        status,
        head: head.to_lowercase(),
        head_as_sent: head.to_owned(),
        text: body.to_owned(),
        json,
    }
}
