//! A terminal as a client sees it: a key and a request made by `openssl`, a certificate fetched by
//! `curl` from the enrolment listener. Also keys and certificates that nobody should accept.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::client::Reply;
use crate::programs::run;
use crate::system::System;

/// A key with its certificate chain, in files.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// The serial number of the certificate, lower-case hex.
    pub serial: String,
}

/// A one-time code: public id and secret.
#[derive(Debug, Clone)]
pub struct Code {
    /// The public half.
    pub id: String,
    /// The other half.
    pub secret: String,
}

impl Code {
    /// A new code for a terminal of an office; `fields` go into the request for it.
    pub fn issue(system: &System, office: &str, terminal: &str, fields: &Value) -> Self {
        let identity = json!({ "kind": "office", "number": office, "terminal": terminal });
        let mut request = json!({ "identity": identity, "valid_hours": 1 });
        let more = fields.as_object().expect("an object").clone();
        request.as_object_mut().expect("an object").extend(more);
        let code = system.admin("ra-admin", "POST", "/codes", &request);
        assert!(code.status < 300, "{code:?}");
        Self { id: text(&code.json["code_id"]).into(), secret: text(&code.json["secret"]).into() }
    }

    /// Asks for a certificate with this code for a PKCS#10 request in base64.
    pub fn present(&self, system: &System, request: &str) -> Reply {
        let user = format!("{}:{}", self.id, self.secret);
        let call = system.curl_without_certificate().to_enrol().arg("--user").arg(&user);
        let call = call.header("content-type: application/pkcs10");
        let call = call.method("POST", "/.well-known/est/simpleenroll");
        call.body(request.as_bytes().to_vec()).send()
    }
}

impl Terminal {
    /// Enrols a new terminal of an office with the ordinary profile.
    pub fn enrol(system: &System, office: &str, terminal: &str) -> Self {
        Self::enrol_with(system, office, terminal, &json!({ "profile": "office-browser" }))
    }

    /// The same with other fields in the request for the one-time code.
    pub fn enrol_with(system: &System, office: &str, terminal: &str, fields: &Value) -> Self {
        let code = Code::issue(system, office, terminal, fields);
        let base = system.scratch().join(format!("terminal-{office}-{terminal}"));
        let (key, cert) = (base.with_extension("key"), base.with_extension("pem"));
        let reply = code.present(system, &new_request(&key, &EC_P256));
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        write_certificates(&reply.body, &cert);
        let serial = serial_of(&cert);
        Self { cert, key, serial }
    }

    /// A certificate that says the same as `like` but was signed by nobody known: only its issuer
    /// is a reason to refuse it.
    pub fn foreign(system: &System, like: &Path) -> Self {
        let base = system.scratch().join("foreign");
        let (key, cert) = (base.with_extension("key"), base.with_extension("pem"));
        new_request(&key, &EC_P256);
        let printed = inspect(like, "-text");
        let after = |words: &str| {
            let rest = printed.split(words).nth(1).unwrap_or_else(|| panic!("no {words}"));
            rest.split_whitespace().next().unwrap_or_default().to_owned()
        };
        let san = format!("subjectAltName=URI:{}", after("URI:"));
        let policy = format!("certificatePolicies={}", after("Policy:"));
        let extensions =
            [san.as_str(), &policy, "extendedKeyUsage=clientAuth", "basicConstraints=CA:FALSE"];
        let mut args =
            vec!["req", "-x509", "-new", "-key", path(&key), "-days", "2", "-subj", "/CN=foreign"];
        args.extend(["-out", path(&cert)]);
        args.extend(extensions.iter().flat_map(|extension| ["-addext", extension]));
        openssl(&args);
        let serial = serial_of(&cert);
        Self { cert, key, serial }
    }
}

/// One field of a certificate as `openssl x509` prints it, such as `-text` or `-dates`.
pub fn inspect(cert: &Path, what: &str) -> String {
    openssl(&["x509", "-in", path(cert), "-noout", what])
}

/// `openssl genpkey` arguments of the one kind of key that is accepted.
pub const EC_P256: [&str; 4] = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// A new key of the kind that `genpkey` arguments name, in `key`, and a PKCS#10 request for it in
/// base64. The subject that it asks for is nobody's.
pub fn new_request(key: &Path, kind: &[&str]) -> String {
    openssl(&[&["genpkey", "-out", path(key)], kind].concat());
    let csr = key.with_extension("csr");
    let files = ["-key", path(key), "-out", path(&csr)];
    openssl(
        &[&["req", "-new", "-subj", "/O=Nobody/CN=nobody", "-outform", "DER"], &files[..]].concat(),
    );
    openssl(&["base64", "-A", "-in", path(&csr)])
}

/// Writes the certificates of a certs-only PKCS#7 answer (base64) to `cert` as PEM.
pub fn write_certificates(answer: &[u8], cert: &Path) {
    let (base64, der) = (cert.with_extension("p7"), cert.with_extension("der"));
    fs::write(&base64, answer).unwrap();
    openssl(&["base64", "-d", "-A", "-in", path(&base64), "-out", path(&der)]);
    openssl(&["pkcs7", "-inform", "DER", "-in", path(&der), "-print_certs", "-out", path(cert)]);
}

fn serial_of(cert: &Path) -> String {
    let line = inspect(cert, "-serial");
    line.trim().trim_start_matches("serial=").to_lowercase()
}

fn openssl(args: &[&str]) -> String {
    run("openssl", args).ok().stdout
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}
