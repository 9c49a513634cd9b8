//! Enrolment against a small EST server over real TLS 1.3; requests and answers are judged and made
//! by openssl.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::ExtendedKeyUsagePurpose::ClientAuth;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::certificate::tests::{Ca, FRONT, ca, leaf};

const SECRET: &str = "7KQ4-0000-1111-2222";

/// What the server does with the key whose request it got.
type Answer = Box<dyn Fn(&KeyPair) -> (u16, Vec<u8>) + Send>;

struct Rig {
    dir: tempfile::TempDir,
    address: SocketAddr,
    /// Heads of the requests that came in.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    fn out(&self) -> PathBuf {
        self.dir.path().join("terminal")
    }

    /// A server that answers every request by `answer`.
    async fn start(answer: Answer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = certificate::tests::key();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        std::fs::write(dir.path().join("trust.pem"), server.pem()).unwrap();
        std::fs::write(dir.path().join("secret"), format!("{SECRET}\n")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(server.der().to_vec())],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let rig = Self { dir, address, heads: Arc::clone(&heads) };
        let (work, out) = (rig.dir.path().to_owned(), rig.out());
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                let (head, body) = read_request(&mut tls).await;
                heads.lock().unwrap().push(head);
                let key = requested_key(&work, &out, &body);
                let (status, body) = answer(&key);
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
                tls.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
                let _ = tls.shutdown().await;
            }
        });
        rig
    }

    fn args(&self) -> EnrolArgs {
        EnrolArgs {
            url: format!("https://{}", self.address).parse().unwrap(),
            trust: self.dir.path().join("trust.pem"),
            identity: Identity::from_path(FRONT).unwrap(),
            code: "ABCD-1234".into(),
            secret_file: self.dir.path().join("secret"),
            out: self.out(),
            replace: false,
        }
    }
}

async fn read_request(tls: &mut (impl AsyncReadExt + Unpin)) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let mut block = [0; 4096];
        let length = tls.read(&mut block).await.unwrap();
        bytes.extend_from_slice(&block[..length]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let wanted = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= wanted.unwrap().parse().unwrap() {
            return (head.to_owned(), body.as_bytes().to_vec());
        }
    }
}

/// openssl checks the proof of possession; the request must be for the key that waits on disk.
fn requested_key(work: &Path, out: &Path, body: &[u8]) -> KeyPair {
    let csr = work.join("csr.der");
    std::fs::write(&csr, STANDARD.decode(body).unwrap()).unwrap();
    let arguments = ["req", "-inform", "DER", "-verify", "-noout", "-pubkey", "-subject", "-in"];
    let output = Command::new("openssl").args(arguments).arg(&csr).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("1370000001-front-1"), "{printed}");
    let key =
        KeyPair::from_pem(&std::fs::read_to_string(out.join("key.pem.pending")).unwrap()).unwrap();
    let public: String = key.public_key_pem().lines().collect();
    assert!(printed.lines().collect::<String>().contains(&public), "{printed}");
    key
}

/// What an EST server sends: certs-only PKCS#7 in base64, made by openssl.
fn certs_only(certificates: &[&[u8]]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("openssl");
    command.args(["crl2pkcs7", "-nocrl", "-outform", "DER"]);
    for (at, der) in certificates.iter().enumerate() {
        let path = dir.path().join(format!("{at}.pem"));
        std::fs::write(&path, files::certificate_pem(der)).unwrap();
        command.arg("-certfile").arg(path);
    }
    let output = command.output().unwrap();
    assert!(output.status.success());
    STANDARD.encode(output.stdout).into_bytes()
}

fn issue(ca: Ca, path: &'static str) -> Answer {
    Box::new(move |key| {
        let leaf = leaf(&ca, key, path, 398, ClientAuth);
        (200, certs_only(&[&leaf, &ca.der]))
    })
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_terminal_is_enrolled_and_its_status_can_be_read() {
    let ca = ca("issuing");
    let issuer = ca.der.clone();
    let rig = Rig::start(issue(ca, FRONT)).await;
    let enrolled = enrol(&rig.args()).await.unwrap().to_string();
    assert!(enrolled.contains(FRONT) && enrolled.contains("key.pem"), "{enrolled}");
    assert_eq!(names(&rig.out()), ["cert.pem", "key.pem"]);
    let chain = files::read_certificates(&rig.out().join("cert.pem")).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1].as_ref(), issuer);
    let status = crate::status::read(&rig.out()).unwrap();
    assert_eq!((status.identity.as_str(), status.days_left), (FRONT, 398));
    let heads = rig.heads.lock().unwrap();
    let credentials = STANDARD.encode(format!("ABCD-1234:{SECRET}"));
    assert!(heads[0].starts_with("POST /.well-known/est/simpleenroll HTTP/1.1"), "{heads:?}");
    assert!(heads[0].contains(&format!("authorization: Basic {credentials}")), "{heads:?}");
}

#[tokio::test]
async fn a_second_enrolment_needs_replace_and_then_makes_a_new_key() {
    let rig = Rig::start(issue(ca("issuing"), FRONT)).await;
    enrol(&rig.args()).await.unwrap();
    let first = std::fs::read_to_string(rig.out().join("key.pem")).unwrap();
    let refused = enrol(&rig.args()).await.unwrap_err();
    assert!(matches!(refused, Error::Files(files::Error::Exists(_))), "{refused}");
    assert_eq!(rig.heads.lock().unwrap().len(), 1, "nothing was asked");
    enrol(&EnrolArgs { replace: true, ..rig.args() }).await.unwrap();
    assert_ne!(std::fs::read_to_string(rig.out().join("key.pem")).unwrap(), first);
}

#[tokio::test]
async fn a_refusal_is_told_without_the_secret_and_a_retry_uses_the_same_key() {
    let issuing = ca("issuing");
    let turn = Mutex::new(0);
    let rig = Rig::start(Box::new(move |key| {
        let mut turn = turn.lock().unwrap();
        *turn += 1;
        match *turn {
            1 => (401, "発行用コードが違います\nwrong code or secret".into()),
            2 => (400, "bad request".into()),
            _ => (200, certs_only(&[&leaf(&issuing, key, FRONT, 9, ClientAuth), &issuing.der])),
        }
    }))
    .await;
    let error = anyhow::Error::from(enrol(&rig.args()).await.unwrap_err());
    let text = format!("{error:#}");
    assert!(text.contains("HTTP 401") && text.contains("wrong code or secret"), "{text}");
    assert!(!text.contains(SECRET) && !text.contains('\n'), "{text}");
    let pending = std::fs::read_to_string(rig.out().join("key.pem.pending")).unwrap();
    assert_eq!(names(&rig.out()), ["key.pem.pending"]);
    let error = enrol(&rig.args()).await.unwrap_err().to_string();
    assert!(error.contains("HTTP 400): bad request"), "{error}");
    enrol(&rig.args()).await.unwrap();
    assert_eq!(std::fs::read_to_string(rig.out().join("key.pem")).unwrap(), pending);
}

#[tokio::test]
async fn a_certificate_for_another_identity_or_key_is_not_kept() {
    let rig = Rig::start(issue(ca("issuing"), "office/1370000001/terminal/other")).await;
    let error = enrol(&rig.args()).await.unwrap_err();
    assert!(
        matches!(error, Error::Certificate(certificate::Error::OtherIdentity { .. })),
        "{error}"
    );
    assert_eq!(names(&rig.out()), ["key.pem.pending"]);

    let issuing = ca("issuing");
    let rig = Rig::start(Box::new(move |_| {
        let other = certificate::tests::key();
        (200, certs_only(&[&leaf(&issuing, &other, FRONT, 9, ClientAuth), &issuing.der]))
    }))
    .await;
    let error = enrol(&rig.args()).await.unwrap_err();
    assert!(matches!(error, Error::Certificate(certificate::Error::OtherKey)), "{error}");
}

#[tokio::test]
async fn a_server_that_the_trust_file_does_not_vouch_for_gets_no_secret() {
    let rig = Rig::start(issue(ca("issuing"), FRONT)).await;
    let other = rig.dir.path().join("other.pem");
    std::fs::write(&other, files::certificate_pem(&ca("other").der)).unwrap();
    let error = enrol(&EnrolArgs { trust: other, ..rig.args() }).await.unwrap_err();
    assert!(matches!(error, Error::Https(_) | Error::Est(est::Error::Https(_))), "{error}");
    assert!(rig.heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_empty_secret_and_nonsense_as_an_answer_are_refused() {
    let rig = Rig::start(Box::new(|_| (200, b"<html>".to_vec()))).await;
    let error = enrol(&rig.args()).await.unwrap_err();
    assert!(matches!(error, Error::Est(est::Error::NotBase64)), "{error}");
    std::fs::write(rig.dir.path().join("secret"), " \n").unwrap();
    let error = enrol(&rig.args()).await.unwrap_err();
    assert!(matches!(error, Error::NoSecret), "{error}");
}
