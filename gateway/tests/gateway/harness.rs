//! A whole gateway in one process: a PKI made at run time, two signed feeds that the test drives,
//! and a hub that opens every permit and answers with what it was told.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use audit_log::{AuditLog, CheckpointKey, Disk, Entry, Event, VerifyingKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use policies::feed::{Fact, Hello, Message, Parts, Position, Signer, Source, next_head};
use policies::permit::{PermitClaims, PermitKey};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
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
        self.leaf_of(CertificateParams::default(), san, usage, serial)
    }

    /// A client's certificate with a validity of its own, in years.
    pub fn client_between(&self, path: &str, serial: u8, (from, until): (i32, i32)) -> Party {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let uri = format!("https://id.sekisho.example/{path}");
        let san = SanType::URI(uri.try_into().unwrap());
        self.leaf_of(params, san, ExtendedKeyUsagePurpose::ClientAuth, serial)
    }

    /// A certificate that names an office in its subject only.
    pub fn subject_only(&self, office: &str, kind: &str, serial: u8) -> Party {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, office);
        params.distinguished_name.push(DnType::OrganizationalUnitName, kind);
        let san = SanType::DnsName("office.example".try_into().unwrap());
        self.leaf_of(params, san, ExtendedKeyUsagePurpose::ClientAuth, serial)
    }

    /// A certificate of the gateway itself.
    pub fn server(&self, serial: u8) -> Party {
        self.server_of(CertificateParams::default(), serial)
    }

    /// One that expired when `year` began.
    pub fn server_until(&self, serial: u8, year: i32) -> Party {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.server_of(params, serial)
    }

    /// One for another name than `localhost`.
    pub fn server_named(&self, name: &str, serial: u8) -> Party {
        let san = SanType::DnsName(name.try_into().unwrap());
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        self.leaf_of(CertificateParams::default(), san, usage, serial)
    }

    fn server_of(&self, params: CertificateParams, serial: u8) -> Party {
        let san = SanType::DnsName("localhost".try_into().unwrap());
        self.leaf_of(params, san, ExtendedKeyUsagePurpose::ServerAuth, serial)
    }

    fn leaf_of(
        &self,
        mut params: CertificateParams,
        san: SanType,
        usage: ExtendedKeyUsagePurpose,
        serial: u8,
    ) -> Party {
        let key = KeyPair::generate().unwrap();
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
    hellos: Arc<Mutex<Vec<Hello>>>,
    mute: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Feed {
    fn start(source: Source, socket: &Path, facts: Vec<Fact>) -> Self {
        let pkcs8 = Signer::generate_pkcs8().unwrap();
        let signer = Signer::from_pkcs8(source, &pkcs8).unwrap();
        let public_key = signer.public_key();
        let listener = UnixListener::bind(socket).unwrap();
        let (changes, receiver) = mpsc::unbounded_channel();
        let hellos = Arc::new(Mutex::new(Vec::new()));
        let (mute, muted) = watch::channel(false);
        let publishing = Publishing {
            signer,
            facts,
            at: Position::genesis(),
            changes: receiver,
            hellos: hellos.clone(),
            muted,
        };
        let task = tokio::spawn(publishing.run(listener));
        Self { changes, public_key, hellos, mute, task }
    }

    pub fn send(&self, fact: Fact) {
        self.changes.send(fact).unwrap();
    }

    /// What the gateway said that it has, once for each of its connections.
    pub fn had(&self) -> Vec<Option<u64>> {
        let hellos = self.hellos.lock().unwrap();
        hellos.iter().map(|hello| hello.have.as_ref().map(|have| have.seq)).collect()
    }

    /// The source says nothing more, or speaks again. What is sent meanwhile comes then.
    pub fn mute(&self, mute: bool) {
        self.mute.send_replace(mute);
    }

    /// The source is gone for good.
    pub fn cut(&self) {
        self.task.abort();
    }
}

struct Publishing {
    signer: Signer,
    facts: Vec<Fact>,
    at: Position,
    changes: mpsc::UnboundedReceiver<Fact>,
    hellos: Arc<Mutex<Vec<Hello>>>,
    muted: watch::Receiver<bool>,
}

impl Publishing {
    /// Serves one gateway after the other.
    async fn run(mut self, listener: UnixListener) {
        while let Ok((stream, _)) = listener.accept().await {
            // A gateway that goes away is no news.
            let _ = self.serve(BufReader::new(stream)).await;
        }
    }

    async fn serve(&mut self, mut stream: BufReader<UnixStream>) -> std::io::Result<()> {
        let sent_at_ms = gateway::facts_feed::now_ms;
        let mut hello = String::new();
        stream.read_line(&mut hello).await?;
        let hello: Hello = serde_json::from_str(&hello)?;
        let goes_on = hello.have.as_ref() == Some(&self.at);
        self.hellos.lock().unwrap().push(hello);
        let mut lines = String::new();
        if !goes_on {
            let (at, facts) = (self.at.clone(), &self.facts);
            let all = Parts::all(&self.signer, at, sent_at_ms(), facts).unwrap();
            lines = all.join("\n") + "\n";
        }
        loop {
            // A connection that is given up meanwhile is found out by writing to it.
            let _ = self.muted.wait_for(|muted| !muted).await;
            stream.get_mut().write_all(lines.as_bytes()).await?;
            let next = tokio::time::timeout(Duration::from_millis(100), self.changes.recv()).await;
            let Position { seq, head } = self.at.clone();
            let message = match next {
                Ok(Some(fact)) => {
                    let json = serde_json::to_string(&fact).unwrap();
                    let latest_seq = seq + 1;
                    self.at = Position { seq: seq + 1, head: next_head(&head, seq + 1, &json) };
                    self.facts.push(fact.clone());
                    let (seq, previous) = (latest_seq, head);
                    Message::Change { seq, previous, latest_seq, sent_at_ms: sent_at_ms(), fact }
                }
                Ok(None) => std::future::pending().await,
                Err(_) => Message::Heartbeat { seq, head, sent_at_ms: sent_at_ms() },
            };
            lines = self.signer.line(&message).unwrap() + "\n";
        }
    }
}

/// A hub that answers each request with its head and the permit's claims, as JSON.
async fn hub(listener: UnixListener, received: Arc<Mutex<Vec<String>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let received = received.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            while let Some(answer) = echo(&mut stream, &received).await {
                if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Reads one request, keeps it, and gives the answer to it. A hub is asked for its health too: that
/// is not kept.
pub async fn echo<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
    received: &Mutex<Vec<String>>,
) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    if head.starts_with("GET /livez ") {
        return Some("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_owned());
    }
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    if header(&head, "transfer-encoding").is_some() {
        body = chunks(stream).await?;
    }
    received.lock().unwrap().push(format!("{head}{}", String::from_utf8_lossy(&body)));
    let mut words = head.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let key = PermitKey::new(&[7; 32]).unwrap();
    let permit = header(&head, "sekisho-permit")?;
    let opened = key.open(&permit, method, target, gateway::facts_feed::now_ms()).unwrap();
    // What the test wants of the hub stands in the query: nothing else of its own passes.
    let wish = |name: &str| {
        let query = target.split_once('?').map(|(_, query)| query).unwrap_or_default();
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
    };
    let padding = wish("pad").and_then(|text| text.parse().ok()).unwrap_or(0);
    let json = serde_json::json!({
        "head": head, "claims": opened.claims(), "padding": "x".repeat(padding),
    });
    let json = json.to_string();
    let waits_ms = wish("wait-ms").and_then(|text| text.parse().ok()).unwrap_or(0);
    tokio::time::sleep(Duration::from_millis(waits_ms)).await;
    let status = match wish("refuse") {
        Some(codes) => format!("403 Forbidden\r\nsekisho-refused: {codes}"),
        None => wish("status").unwrap_or_else(|| "200 OK".to_owned()).replace('+', " "),
    };
    let (about, holds) = (wish("about"), wish("holds"));
    let declared = declared(opened.claims(), about.as_deref(), holds.as_deref());
    let json = if wish("empty").is_some() { String::new() } else { json };
    let length = json.len();
    Some(format!("HTTP/1.1 {status}\r\n{declared}content-length: {length}\r\n\r\n{json}"))
}

/// What a hub says of its answer: the truth, or one header line for each value of a wish (parted by
/// `+`; `nothing`: no line).
pub fn declared(claims: &PermitClaims, about: Option<&str>, holds: Option<&str>) -> String {
    let path = claims.target.split('?').next().unwrap_or_default();
    let truth = match (claims.insured, claims.insurer) {
        (Some(insured), _) => insured.to_string(),
        (None, Some(insurer)) if path.contains("/inbox/") => format!("{insurer}/0000000001"),
        (None, _) => return String::new(),
    };
    let kind = path.split('/').skip_while(|part| *part != "documents").nth(1);
    let lines = |name: &str, values: &str| -> String {
        let values = values.split('+').filter(|value| *value != "nothing");
        values.map(|value| format!("{name}: {value}\r\n")).collect()
    };
    lines("sekisho-insured", about.unwrap_or(&truth))
        + &lines("sekisho-document-kind", holds.or(kind).unwrap_or_default())
}

/// The bytes of a chunked body as they come.
async fn chunks<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut data = vec![0; size + 2];
        stream.read_exact(&mut data).await.ok()?;
        all.extend_from_slice(line.as_bytes());
        all.extend_from_slice(&data);
        if size == 0 {
            return Some(all);
        }
    }
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
    /// Lines at the top of the configuration.
    pub top: &'static str,
    /// Lines of the part about limits.
    pub limits: &'static str,
    /// Further tables of the configuration.
    pub tables: String,
    pub segment_bytes_max: u64,
    /// A table `[hub]` in the place of the one socket.
    pub hub: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            disk: Disk::real(),
            more: "",
            top: "",
            limits: "",
            tables: String::new(),
            segment_bytes_max: audit_log::SEGMENT_BYTES_MAX,
            hub: None,
        }
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub pki: Pki,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    /// On the closed network, where the configuration has one.
    pub closed: Option<SocketAddr>,
    pub ca: Feed,
    pub hub: Feed,
    /// The bytes of each whole request that reached the hub.
    pub received: Arc<Mutex<Vec<String>>>,
    pub audit_key: VerifyingKey,
    staff_key: EcdsaKeyPair,
    end: Option<oneshot::Sender<()>>,
    running: Running,
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
        let server = pki.server(99);
        write(&path("server.pem"), pem("CERTIFICATE", &server.chain[0]).as_bytes());
        write(&path("server.key"), pem("PRIVATE KEY", server.key.secret_der()).as_bytes());
        write(&path("issuing.pem"), pki.ca_pem.as_bytes());
        write(&path("permit.key"), &[7; 32]);
        write(&path("pseudonym.key"), &[8; 32]);
        write(&path("facts-copy.key"), &[9; 32]);
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
        let received = Arc::default();
        tokio::spawn(hub(UnixListener::bind(path("hub.sock")).unwrap(), Arc::clone(&received)));
        let mut text = setup.top.to_owned()
            + &config(dir.path(), &ca, &hub_feed, (setup.more, setup.limits))
            + &setup.tables;
        if let Some(hub) = &setup.hub {
            let socket = format!("hub_socket = \"{}\"", path("hub.sock").display());
            text = text.replace(&socket, "") + hub;
        }
        write(&path("gateway.toml"), text.as_bytes());
        let (end, running) = begin(dir.path(), setup.disk, setup.segment_bytes_max);
        let (public, admin, closed) = ready(&path("ready.json")).await;
        Self {
            audit_key: audit_key.verifying_key().clone(),
            end: Some(end),
            dir,
            pki,
            public,
            admin,
            closed,
            ca,
            hub: hub_feed,
            received,
            staff_key,
            running,
        }
    }

    /// Starts the gateway again, which was stopped.
    pub async fn begin(&mut self) {
        let dir = self.dir.path();
        let (end, running) = begin(dir, Disk::real(), audit_log::SEGMENT_BYTES_MAX);
        (self.end, self.running) = (Some(end), running);
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) {
        (self.public, self.admin, self.closed) = ready(&self.dir.path().join("ready.json")).await;
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
        self.token_with(party, session, expires, None)
    }

    /// The same, made for a browser that has the CSRF token of this digest.
    pub fn token_with(
        &self,
        party: &Party,
        session: &str,
        expires: u64,
        csrf: Option<&str>,
    ) -> String {
        let header = serde_json::json!({ "alg": "ES256", "typ": "JWT", "kid": "k1" });
        let mut claims = serde_json::json!({
            "iss": "sekisho-hub", "sub": "staff-1", "office": OFFICE, "job": "care-manager",
            "sid": session, "iat": now(), "exp": expires, "jti": "j",
            "cnf": { "x5t#S256": party.sha256 },
        });
        if let Some(csrf) = csrf {
            claims["csrf"] = csrf.into();
        }
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
        Self::client_config_trusting(&self.pki, party)
    }

    pub fn client_config_trusting(pki: &Pki, party: Option<&Party>) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pki.ca_pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        match party {
            Some(party) => {
                builder.with_client_auth_cert(party.chain.clone(), party.key.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        }
    }

    pub async fn connect(&self, config: Arc<rustls::ClientConfig>) -> std::io::Result<Client> {
        Ok(Client::of(self.tls(config).await?))
    }

    /// A stream for whatever the caller speaks on it.
    pub async fn tls(
        &self,
        config: Arc<rustls::ClientConfig>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_on(TcpStream::connect(self.public).await?, config).await
    }

    /// The same on a connection that the caller made.
    pub async fn tls_on(
        &self,
        tcp: TcpStream,
        config: Arc<rustls::ClientConfig>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(config).connect(name, tcp).await
    }

    /// Waits until the metrics hold `line`.
    pub async fn metric(&self, line: &str) {
        for _ in 0..250 {
            if self.admin_get("/metrics").await.lines().any(|shown| shown == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the metrics never said `{line}`: {}", self.admin_get("/metrics").await);
    }

    pub async fn client(&self, party: &Party) -> Client {
        self.connect(Arc::new(self.client_config(Some(party)))).await.unwrap()
    }

    /// Puts another file in the place of one of the gateway's, at once.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        let (new, path) = (self.dir.path().join("new"), self.dir.path().join(name));
        write(&new, bytes);
        std::fs::rename(new, path).unwrap();
    }

    /// Connects until it is refused, and waits until the log says that it was for `reason`.
    pub async fn refused(&self, config: Arc<rustls::ClientConfig>, reason: &str) {
        for _ in 0..500 {
            let served = match self.connect(config.clone()).await {
                Ok(mut client) => client.get("/v1/registrations", "").await.is_ok(),
                Err(_) => false,
            };
            if !served {
                self.audit_with(&format!(r#""reason":"{reason}""#)).await;
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never refused");
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

type Running = JoinHandle<anyhow::Result<()>>;

fn begin(dir: &Path, disk: Disk, segment_bytes_max: u64) -> (oneshot::Sender<()>, Running) {
    let config = gateway::config::Config::load(&dir.join("gateway.toml")).unwrap();
    let mut options = gateway::run::log_options(&config.audit);
    options.segment_bytes_max = segment_bytes_max;
    let log = AuditLog::open_on(disk, &config.audit.dir, options).unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let ended = async {
        let _ = ended.await;
    };
    (end, tokio::spawn(gateway::run::run_until(config, log, ended)))
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
    pub fn of(stream: TlsStream<TcpStream>) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub async fn get(&mut self, path: &str, headers: &str) -> std::io::Result<Reply> {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")).await
    }

    /// Sends bytes and waits for nothing.
    pub async fn send(&mut self, bytes: &str) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_bytes()).await?;
        self.stream.get_mut().flush().await
    }

    pub async fn raw(&mut self, request: &str) -> std::io::Result<Reply> {
        if !request.is_empty() {
            self.send(request).await?;
        }
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

    /// Returns when the gateway has closed the connection.
    pub async fn closed(&mut self) {
        let mut byte = [0];
        while self.stream.read(&mut byte).await.is_ok_and(|read| read > 0) {}
    }

    pub fn key_exchange_group(&self) -> Option<rustls::NamedGroup> {
        let (_, session) = self.stream.get_ref().get_ref();
        session.negotiated_key_exchange_group().map(|group| group.name())
    }

    /// What the gateway showed.
    pub fn server_certificate(&self) -> CertificateDer<'static> {
        let (_, session) = self.stream.get_ref().get_ref();
        session.peer_certificates().unwrap()[0].clone().into_owned()
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

fn config(dir: &Path, ca: &Feed, hub: &Feed, (more, limits): (&str, &str)) -> String {
    let dir = dir.display();
    let (ca, hub) = (&ca.public_key, &hub.public_key);
    // Tests ask as fast as they can, all for one party; a test of the rate names its own.
    let rate = "requests_per_second_per_party_max";
    let rate = if limits.contains(rate) { String::new() } else { format!("{rate} = 100000") };
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
        certificate_check_interval_ms = 50
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
        [facts_copy]
        dir = "{dir}/facts"
        key = "{dir}/facts-copy.key"
        [limits]
        {rate}
        {limits}
        "#
    )
}

async fn ready(path: &PathBuf) -> (SocketAddr, SocketAddr, Option<SocketAddr>) {
    for _ in 0..500 {
        if let Ok(text) = std::fs::read_to_string(path) {
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let address =
                |name: &str| json["addresses"][name].as_str().map(|it| it.parse().unwrap());
            return (address("public").unwrap(), address("admin").unwrap(), address("closed"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the gateway never became ready");
}

pub fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
