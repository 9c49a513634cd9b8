//! A whole gateway in one process: a PKI made at run time, two signed feeds that the test drives,
//! and a hub that opens every permit and answers with what it was told.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use audit_log::{AuditLog, CheckpointKey, Disk, Entry, Event, VerifyingKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use policies::feed::{Fact, GENESIS_HEAD, Message, Signer, Source, next_head};
use policies::permit::PermitKey;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const OFFICE: &str = "1370000001";
pub const OFFICE_NAME: &str = "見本居宅介護支援事業所";
pub const INSURED: &str = "131016/0000000001";

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A certificate and its key.
pub struct Party {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub serial: String,
    pub sha256: String,
}

pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub ca_pem: String,
}

impl Pki {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), ca_pem }
    }

    pub fn leaf(&self, san: SanType, usage: ExtendedKeyUsagePurpose, serial: u8) -> Party {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![san];
        params.extended_key_usages = vec![usage];
        params.serial_number = Some(SerialNumber::from_slice(&[serial; 16]));
        // certificatePolicies with the one policy 2.999.1.1.1
        let policies = vec![0x30, 0x09, 0x30, 0x07, 0x06, 0x05, 0x88, 0x37, 0x01, 0x01, 0x01];
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 32], policies);
        params.custom_extensions = vec![extension];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let der = certificate.der().clone();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
        Party {
            chain: vec![der],
            key: PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            serial: hex::encode([serial; 16]),
            sha256: URL_SAFE_NO_PAD.encode(digest),
        }
    }

    pub fn client(&self, path: &str, serial: u8) -> Party {
        let uri = format!("https://id.sekisho.example/{path}");
        let san = SanType::URI(uri.try_into().unwrap());
        self.leaf(san, ExtendedKeyUsagePurpose::ClientAuth, serial)
    }
}

/// A feed that the test drives: every fact sent is one change.
pub struct Feed {
    changes: mpsc::UnboundedSender<Fact>,
    pub public_key: String,
}

impl Feed {
    fn start(source: Source, socket: &Path, facts: Vec<Fact>) -> Self {
        let pkcs8 = Signer::generate_pkcs8().unwrap();
        let signer = Signer::from_pkcs8(source, &pkcs8).unwrap();
        let public_key = signer.public_key();
        let listener = UnixListener::bind(socket).unwrap();
        let (changes, receiver) = mpsc::unbounded_channel();
        tokio::spawn(publish(listener, signer, facts, receiver));
        Self { changes, public_key }
    }

    pub fn send(&self, fact: Fact) {
        self.changes.send(fact).unwrap();
    }
}

async fn publish(
    listener: UnixListener,
    signer: Signer,
    facts: Vec<Fact>,
    mut changes: mpsc::UnboundedReceiver<Fact>,
) {
    let sent_at_ms = gateway::facts_feed::now_ms;
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut at = (0u64, GENESIS_HEAD.to_owned());
    let snapshot =
        Message::Snapshot { seq: 0, head: at.1.clone(), sent_at_ms: sent_at_ms(), facts };
    let mut line = signer.line(&snapshot).unwrap();
    loop {
        line.push('\n');
        stream.write_all(line.as_bytes()).await.unwrap();
        let next = tokio::time::timeout(Duration::from_millis(100), changes.recv()).await;
        let message = match next {
            Ok(Some(fact)) => {
                let previous = at.1.clone();
                let json = serde_json::to_string(&fact).unwrap();
                at = (at.0 + 1, next_head(&previous, at.0 + 1, &json));
                let (seq, latest_seq) = (at.0, at.0);
                Message::Change { seq, previous, latest_seq, sent_at_ms: sent_at_ms(), fact }
            }
            Ok(None) => return,
            Err(_) => {
                Message::Heartbeat { seq: at.0, head: at.1.clone(), sent_at_ms: sent_at_ms() }
            }
        };
        line = signer.line(&message).unwrap();
    }
}

/// A hub that answers each request with its head and the permit's claims, as JSON.
async fn hub(listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            while let Some(answer) = echo(&mut stream).await {
                if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn echo(stream: &mut BufReader<tokio::net::UnixStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let mut words = head.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let key = PermitKey::new(&[7; 32]).unwrap();
    let permit = header(&head, "sekisho-permit")?;
    let opened = key.open(&permit, method, target, gateway::facts_feed::now_ms()).unwrap();
    let padding = header(&head, "pad").and_then(|text| text.parse().ok()).unwrap_or(0);
    let json = serde_json::json!({
        "head": head, "claims": opened.claims(), "padding": "x".repeat(padding),
    });
    let json = json.to_string();
    let waits_ms = header(&head, "wait-ms").and_then(|text| text.parse().ok()).unwrap_or(0);
    tokio::time::sleep(Duration::from_millis(waits_ms)).await;
    let status = match header(&head, "refuse") {
        Some(codes) => format!("403 Forbidden\r\nsekisho-refused: {codes}"),
        None => "200 OK".to_owned(),
    };
    Some(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{json}", json.len()))
}

pub fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// How the gateway's audit log is kept.
pub struct Setup {
    pub disk: Disk,
    /// More lines in the configuration's part about it.
    pub more: &'static str,
    pub segment_bytes_max: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self { disk: Disk::real(), more: "", segment_bytes_max: audit_log::SEGMENT_BYTES_MAX }
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub pki: Pki,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub ca: Feed,
    pub hub: Feed,
    pub audit_key: VerifyingKey,
    staff_key: EcdsaKeyPair,
    end: Option<oneshot::Sender<()>>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl World {
    pub async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    pub async fn start_with(setup: Setup) -> Self {
        let _ = rustls::crypto::CryptoProvider::install_default(gateway::tls::provider());
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let pki = Pki::new("Test issuing CA");
        let server = pki.leaf(
            SanType::DnsName("localhost".try_into().unwrap()),
            ExtendedKeyUsagePurpose::ServerAuth,
            99,
        );
        write(&path("server.pem"), pem("CERTIFICATE", &server.chain[0]).as_bytes());
        write(&path("server.key"), pem("PRIVATE KEY", server.key.secret_der()).as_bytes());
        write(&path("issuing.pem"), pki.ca_pem.as_bytes());
        write(&path("permit.key"), &[7; 32]);
        write(&path("pseudonym.key"), &[8; 32]);
        let (audit_key, text) = CheckpointKey::generate("test.example/audit/gateway").unwrap();
        write(&path("audit.key"), text.as_bytes());
        let staff_key = {
            let document = EcdsaKeyPair::generate_pkcs8(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &aws_lc_rs::rand::SystemRandom::new(),
            )
            .unwrap();
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap()
        };
        let ca = Feed::start(Source::Ca, &path("ca.sock"), vec![office()]);
        let hub_feed = Feed::start(Source::Hub, &path("hub-feed.sock"), hub_facts(&staff_key));
        tokio::spawn(hub(UnixListener::bind(path("hub.sock")).unwrap()));
        write(&path("gateway.toml"), config(dir.path(), &ca, &hub_feed, setup.more).as_bytes());
        let config = gateway::config::Config::load(&path("gateway.toml")).unwrap();
        let mut options = gateway::run::log_options(&config.audit);
        options.segment_bytes_max = setup.segment_bytes_max;
        let log = AuditLog::open_on(setup.disk, &config.audit.dir, options).unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let ended = async {
            let _ = ended.await;
        };
        let running = tokio::spawn(gateway::run::run_until(config, log, ended));
        let (public, admin) = ready(&path("ready.json")).await;
        Self {
            audit_key: audit_key.verifying_key().clone(),
            end: Some(end),
            dir,
            pki,
            public,
            admin,
            ca,
            hub: hub_feed,
            staff_key,
            running,
        }
    }

    /// Ends the gateway in good order; its log is closed then.
    pub async fn stop(&mut self) {
        self.end.take().unwrap().send(()).unwrap();
        (&mut self.running).await.unwrap().unwrap();
    }

    /// Where the gateway's log is.
    pub fn audit_dir(&self) -> PathBuf {
        self.dir.path().join("audit")
    }

    /// Everything that the log holds on disk now.
    pub fn entries(&self) -> Vec<Entry> {
        audit_log::read(&self.audit_dir()).map(Result::unwrap).collect()
    }

    /// The events, once `enough` says that what was waited for is there.
    pub async fn events_when(&self, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..1_000 {
            events = self.entries().into_iter().map(|entry| entry.event).collect();
            if enough(&events) {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the audit log never said it: {events:?}");
    }

    /// A staff token for `party`'s certificate, as the hub would mint it.
    pub fn token(&self, party: &Party, session: &str, expires: u64) -> String {
        let header = serde_json::json!({ "alg": "ES256", "typ": "JWT", "kid": "k1" });
        let claims = serde_json::json!({
            "iss": "sekisho-hub", "sub": "staff-1", "office": OFFICE, "job": "care-manager",
            "sid": session, "iat": now(), "exp": expires, "jti": "j",
            "cnf": { "x5t#S256": party.sha256 },
        });
        let body = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = self.staff_key.sign(&random, body.as_bytes()).unwrap();
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub fn client_config(&self, party: Option<&Party>) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca_pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        match party {
            Some(party) => {
                builder.with_client_auth_cert(party.chain.clone(), party.key.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        }
    }

    pub async fn connect(&self, config: Arc<rustls::ClientConfig>) -> std::io::Result<Client> {
        let tcp = TcpStream::connect(self.public).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let tls = TlsConnector::from(config).connect(name, tcp).await?;
        Ok(Client { stream: BufReader::new(tls) })
    }

    pub async fn client(&self, party: &Party) -> Client {
        self.connect(Arc::new(self.client_config(Some(party)))).await.unwrap()
    }

    /// One answer of the admin listener, head and body.
    pub async fn admin_get(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The audit log as text, once it holds `wanted`.
    pub async fn audit_with(&self, wanted: &str) -> String {
        for _ in 0..100 {
            let text: String = std::fs::read_dir(self.audit_dir())
                .unwrap()
                .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
                .collect();
            if text.contains(wanted) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the audit log never said {wanted}");
    }
}

/// One kept-open HTTP/1.1 connection.
pub struct Client {
    stream: BufReader<TlsStream<TcpStream>>,
}

/// What a client got of an answer.
pub struct Delivery {
    pub status: u16,
    pub request_id: String,
    pub bytes: usize,
    pub missing: usize,
}

pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: serde_json::Value,
}

impl Client {
    pub async fn get(&mut self, path: &str, headers: &str) -> std::io::Result<Reply> {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")).await
    }

    /// Sends bytes and waits for nothing.
    pub async fn send(&mut self, bytes: &str) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_bytes()).await?;
        self.stream.get_mut().flush().await
    }

    pub async fn raw(&mut self, request: &str) -> std::io::Result<Reply> {
        self.send(request).await?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let length = header(&head, "content-length").and_then(|text| text.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut body).await?;
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Reply { status, head, body })
    }

    /// Asks for a document and takes all that comes of the answer.
    pub async fn deliver(&mut self, path: &str, headers: &str) -> std::io::Result<Delivery> {
        let mut delivery = self.begin(path, headers).await?;
        while self.more(&mut delivery).await? {}
        Ok(delivery)
    }

    /// Asks for a document and takes the head of the answer.
    pub async fn begin(&mut self, path: &str, headers: &str) -> std::io::Result<Delivery> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")).await?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let length = header(&head, "content-length").and_then(|text| text.parse().ok());
        Ok(Delivery {
            status: head.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap(),
            request_id: header(&head, "sekisho-request-id").unwrap(),
            bytes: 0,
            missing: length.unwrap_or(0),
        })
    }

    /// Takes the next bytes of the body; `false` when there are no more.
    pub async fn more(&mut self, delivery: &mut Delivery) -> std::io::Result<bool> {
        if delivery.missing == 0 {
            return Ok(false);
        }
        let taken = self.stream.fill_buf().await?.len().min(delivery.missing);
        if taken == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.stream.consume(taken);
        delivery.missing -= taken;
        delivery.bytes += taken;
        Ok(true)
    }

    pub fn key_exchange_group(&self) -> Option<rustls::NamedGroup> {
        let (_, session) = self.stream.get_ref().get_ref();
        session.negotiated_key_exchange_group().map(|group| group.name())
    }

    pub fn was_resumed(&self) -> bool {
        let (_, session) = self.stream.get_ref().get_ref();
        session.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }
}

fn office() -> Fact {
    Fact::Office {
        number: OFFICE.parse().unwrap(),
        service_types: vec!["43".parse().unwrap()],
        medical: false,
        suspended: false,
        name: OFFICE_NAME.to_owned(),
    }
}

fn hub_facts(staff_key: &EcdsaKeyPair) -> Vec<Fact> {
    let point = staff_key.public_key().as_ref();
    let insured = INSURED.parse().unwrap();
    vec![
        Fact::StaffKey {
            kid: "k1".into(),
            x: URL_SAFE_NO_PAD.encode(&point[1..33]),
            y: URL_SAFE_NO_PAD.encode(&point[33..65]),
            retired: false,
        },
        Fact::Sharing { insurer: "131016".parse().unwrap(), from: Some(1) },
        Fact::Registration {
            office: OFFICE.parse().unwrap(),
            insured,
            from: 1,
            until: None,
            ended: None,
        },
    ]
}

fn config(dir: &Path, ca: &Feed, hub: &Feed, more: &str) -> String {
    let dir = dir.display();
    let (ca, hub) = (&ca.public_key, &hub.public_key);
    format!(
        r#"
        id = "gw-1"
        id_domain = "id.sekisho.example"
        listen = "127.0.0.1:0"
        admin_listen = "127.0.0.1:0"
        server_certificate = "{dir}/server.pem"
        server_key = "{dir}/server.key"
        trust_anchors = "{dir}/issuing.pem"
        hub_socket = "{dir}/hub.sock"
        permit_key = "{dir}/permit.key"
        ready_file = "{dir}/ready.json"
        demo = true
        [audit]
        dir = "{dir}/audit"
        pseudonym_key = "{dir}/pseudonym.key"
        key = "{dir}/audit.key"
        stream_socket = "{dir}/stream.sock"
        {more}
        [feeds.ca]
        socket = "{dir}/ca.sock"
        public_key = "{ca}"
        [feeds.hub]
        socket = "{dir}/hub-feed.sock"
        public_key = "{hub}"
        "#
    )
}

async fn ready(path: &PathBuf) -> (SocketAddr, SocketAddr) {
    for _ in 0..500 {
        if let Ok(text) = std::fs::read_to_string(path) {
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let address = |name: &str| json["addresses"][name].as_str().unwrap().parse().unwrap();
            return (address("public"), address("admin"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the gateway never became ready");
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
