//! Starts the two real programs in a temporary folder, and speaks to them with curl and openssl.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use audit_log::{CheckpointKey, VerifyingKey};
use policies::feed::{Signer, Source};
use serde_json::Value;

pub(crate) struct System {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) feed_public_key: String,
    pub(crate) address: String,
    audit_keys: BTreeMap<&'static str, VerifyingKey>,
    signer: Option<Child>,
    ra: Option<Child>,
}

impl System {
    /// A demo hierarchy, both programs running, one office registered.
    pub(crate) fn start() -> Self {
        let mut system = Self::prepare("");
        system.start_signer();
        system.start_ra();
        system.admin("POST", "/offices", Some(OFFICE));
        system
    }

    /// Everything on disk, nothing running.
    pub(crate) fn prepare(more_ra_config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let made = run(Command::new(env!("CARGO_BIN_EXE_sekisho-signer"))
            .args(["init", "--operator-name", "Test Operator", "--demo", "--dir"])
            .arg(dir.path().join("ca")));
        assert!(made.status.success(), "{}", text(&made.stderr));
        let der = Signer::generate_pkcs8().unwrap();
        let feed_public_key = Signer::from_pkcs8(Source::Ca, &der).unwrap().public_key();
        write_private(&dir.path().join("feed-ca.pkcs8"), &der);
        let audit_keys = ["ra", "signer"].map(|part| (part, make_audit_key(dir.path(), part)));
        let pem = |name: &str| std::fs::read_to_string(dir.path().join("ca").join(name)).unwrap();
        let chain = pem("issuing.pem") + &pem("root.pem");
        std::fs::write(dir.path().join("chain.pem"), chain).unwrap();
        let signer = format!(
            "socket = \"{path}/signer.sock\"\nca_dir = \"{path}/ca\"\n\
             audit_dir = \"{path}/audit-signer\"\n\
             audit_key = \"{path}/audit-signer.key\"\nready_file = \"{path}/signer.ready.json\"\n\
             operator_name = \"Test Operator\"\nid_domain = \"id.sekisho.example\"\n\
             policy_arc = \"2.999.1\"\ndemo = true\n"
        );
        std::fs::write(dir.path().join("signer.toml"), signer).unwrap();
        let ra = format!(
            "listen = \"127.0.0.1:0\"\nserver_certificate = \"{path}/ca/servers/ra.pem\"\n\
             server_key = \"{path}/ca/servers/ra.key\"\n\
             trust_anchors = \"{path}/ca/issuing.pem\"\nca_chain = \"{path}/chain.pem\"\n\
             signer_socket = \"{path}/signer.sock\"\nadmin_socket = \"{path}/ra-admin.sock\"\n\
             feed_socket = \"{path}/ca-feed.sock\"\nfeed_key = \"{path}/feed-ca.pkcs8\"\n\
             database = \"{path}/ra.sqlite\"\naudit_dir = \"{path}/audit-ra\"\n\
             audit_key = \"{path}/audit-ra.key\"\naudit_retention_days = 400\n\
             ready_file = \"{path}/ra.ready.json\"\nid_domain = \"id.sekisho.example\"\n\
             gateways = [\"gw-1\"]\ndemo = true\n{more_ra_config}"
        );
        std::fs::write(dir.path().join("ra.toml"), ra).unwrap();
        Self {
            dir,
            feed_public_key,
            address: String::new(),
            audit_keys: audit_keys.into_iter().collect(),
            signer: None,
            ra: None,
        }
    }

    pub(crate) fn start_signer(&mut self) {
        let program = env!("CARGO_BIN_EXE_sekisho-signer");
        self.signer = Some(self.start_program(program, "signer").0);
    }

    pub(crate) fn start_ra(&mut self) {
        let (child, ready) = self.start_program(env!("CARGO_BIN_EXE_sekisho-ra"), "ra");
        self.address = ready["addresses"]["public"].as_str().unwrap().to_owned();
        self.ra = Some(child);
    }

    fn start_program(&self, program: &str, name: &str) -> (Child, Value) {
        let ready_file = self.path(&format!("{name}.ready.json"));
        let _ = std::fs::remove_file(&ready_file);
        let log = std::fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let mut child = Command::new(program)
            .arg("--supervised")
            .arg("--config")
            .arg(self.path(&format!("{name}.toml")))
            .stdin(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let start = Instant::now();
        loop {
            if let Ok(bytes) = std::fs::read(&ready_file) {
                return (child, serde_json::from_slice(&bytes).unwrap());
            }
            let ended = child.try_wait().unwrap();
            let late = start.elapsed() > Duration::from_secs(20);
            assert!(ended.is_none() && !late, "{name}: {}", self.log(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9.
    pub(crate) fn kill_ra(&mut self) {
        let mut ra = self.ra.take().unwrap();
        ra.kill().unwrap();
        ra.wait().unwrap();
    }

    /// Closes the RA's stdin, as a dying supervisor does, and waits for its end.
    pub(crate) fn end_ra(&mut self) -> Option<i32> {
        let mut ra = self.ra.take().unwrap();
        drop(ra.stdin.take());
        ra.wait().unwrap().code()
    }

    pub(crate) fn end_signer(&mut self) -> Option<i32> {
        let mut signer = self.signer.take().unwrap();
        drop(signer.stdin.take());
        signer.wait().unwrap().code()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The audit log of a program holds together.
    pub(crate) fn verify(&self, part: &str) {
        let dir = self.path(&format!("audit-{part}"));
        let verified = audit_log::verify(&dir, &self.audit_keys[part]).unwrap();
        assert!(verified.records > 1, "{verified:?}");
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// An admin call with curl: status and JSON.
    pub(crate) fn admin(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        let mut command = Command::new("curl");
        command.args(["-s", "-w", "\n%{http_code}", "-X", method, "--unix-socket"]);
        command.arg(self.path("ra-admin.sock")).arg(format!("http://admin{path}"));
        if let Some(body) = body {
            command.args(["-H", "content-type: application/json", "-d", body]);
        }
        let output = run(&mut command);
        let answer = text(&output.stdout);
        let (json, status) = answer.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), serde_json::from_str(json).unwrap_or_default())
    }

    /// A new one-time code for a terminal of the registered office: `id:secret`.
    pub(crate) fn code(&self, terminal: &str) -> String {
        let body = format!(
            r#"{{"identity":{{"kind":"office","number":"1370000001","terminal":"{terminal}"}},
                "profile":"office-browser","valid_hours":1}}"#
        );
        let (status, answer) = self.admin("POST", "/codes", Some(&body));
        assert_eq!(status, 201, "{answer}");
        let field = |name: &str| answer[name].as_str().unwrap().to_owned();
        format!("{}:{}", field("code_id"), field("secret"))
    }

    /// Makes a key and a request with openssl; returns the request's base64.
    pub(crate) fn csr(&self, name: &str, newkey: &[&str]) -> String {
        let (key, csr) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.csr")));
        let made = run(Command::new("openssl")
            .args(["req", "-new", "-nodes", "-subj", "/CN=whatever", "-outform", "DER"])
            .args(["-addext", "basicConstraints=CA:TRUE", "-newkey"])
            .args(newkey)
            .arg("-keyout")
            .arg(key)
            .arg("-out")
            .arg(&csr));
        assert!(made.status.success(), "{}", text(&made.stderr));
        let base64 = run(Command::new("openssl").args(["base64", "-in"]).arg(csr));
        text(&base64.stdout)
    }

    /// An EST call with curl: status, head and body.
    pub(crate) fn est(&self, path: &str, more: &[&str]) -> (u16, String, String) {
        let port = self.address.rsplit_once(':').unwrap().1;
        let output = run(Command::new("curl")
            .args(["-s", "-i", "-w", "\n%{http_code}", "--max-time", "20", "--cacert"])
            .arg(self.path("ca/root.pem"))
            .args(more)
            .arg(format!("https://localhost:{port}{path}")));
        let answer = text(&output.stdout);
        let (answer, status) = answer.rsplit_once('\n').unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        (status.parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    pub(crate) fn enrol(&self, code: &str, csr: &str) -> (u16, String, String) {
        let body = ["-u", code, "-H", "content-type: application/pkcs10", "--data-binary", csr];
        self.est("/.well-known/est/simpleenroll", &body)
    }

    /// The certificates of an EST answer as PEM, in order, read by openssl.
    pub(crate) fn certificates(&self, body: &str) -> Vec<String> {
        let (p7, der) = (self.path("answer.p7.b64"), self.path("answer.p7"));
        std::fs::write(&p7, body.trim_end()).unwrap();
        let mut decode = Command::new("openssl");
        decode.args(["base64", "-d", "-in"]).arg(p7).arg("-out").arg(&der);
        if !body.trim_end().contains('\n') {
            decode.arg("-A");
        }
        assert!(run(&mut decode).status.success());
        let printed = run(Command::new("openssl")
            .args(["pkcs7", "-inform", "DER", "-print_certs", "-in"])
            .arg(der));
        assert!(printed.status.success(), "{}", text(&printed.stderr));
        let end = "-----END CERTIFICATE-----\n";
        text(&printed.stdout)
            .split_inclusive(end)
            .filter_map(|part| part.find("-----BEGIN").map(|at| part[at..].to_owned()))
            .collect()
    }

    /// The serial number of a PEM certificate, as openssl reads it, in lower case.
    pub(crate) fn serial(&self, pem: &str) -> String {
        let file = self.path("one.pem");
        std::fs::write(&file, pem).unwrap();
        let output =
            run(Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(file));
        text(&output.stdout).trim().trim_start_matches("serial=").to_ascii_lowercase()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        for child in [self.ra.take(), self.signer.take()].iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("ra:\n{}\nsigner:\n{}", self.log("ra"), self.log("signer"));
        }
    }
}

fn make_audit_key(dir: &Path, part: &str) -> VerifyingKey {
    let name = format!("id.sekisho.example/audit/{part}");
    let (key, text) = CheckpointKey::generate(&name).unwrap();
    write_private(&dir.join(format!("audit-{part}.key")), text.as_bytes());
    key.verifying_key().clone()
}

pub(crate) const OFFICE: &str = r#"{"number":"1370000001","name":"見本居宅介護支援事業所",
    "service_types":["43"],"medical":false}"#;

pub(crate) const P256: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn write_private(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(bytes).unwrap();
}
