//! What the unit tests share: a CA made at run time, and outside judges of certificates.

use std::path::Path;
use std::process::Command;

use audit_log::CheckpointKey;
use policies::identity::Identity;
use rcgen::{KeyPair, PublicKeyData};
use time::{Duration, OffsetDateTime};

use crate::audit::Keeping;
use crate::issuer::Issuer;
use crate::key;
use crate::profile::{Name, Role, Rules, Template, Usage};

/// The rules of a test CA.
pub(crate) fn rules(demo: bool) -> Rules {
    Rules {
        operator_name: "試験 Operator".into(),
        id_domain: "id.sekisho.example".into(),
        policy_arc: "2.999.1".parse().unwrap(),
        demo,
    }
}

/// A log in `dir` under a new key.
pub(crate) fn keeping(dir: &Path) -> Keeping {
    let (key, _) = CheckpointKey::generate("id.sekisho.example/audit/test").unwrap();
    Keeping { dir: dir.to_owned(), key, retention: std::time::Duration::from_secs(86_400) }
}

/// What the log in `dir` says of `object`, in order: `intent`, `effect`, or an outcome's result.
pub(crate) fn told_of(dir: &Path, object: &str) -> Vec<String> {
    audit_log::read(dir)
        .map(|entry| serde_json::to_value(entry.unwrap().event).unwrap())
        .filter(|event| event["object"]["name"] == object)
        .map(|event| event["result"].as_str().or(event["event"].as_str()).unwrap().to_owned())
        .collect()
}

/// A terminal of an office.
pub(crate) fn office() -> Identity {
    Identity::from_path("office/1370000001/terminal/front-1").unwrap()
}

/// A root and an issuing CA below it: the issuer, and both certificates.
pub(crate) struct Ca {
    pub(crate) root: Vec<u8>,
    pub(crate) issuing: Vec<u8>,
    pub(crate) issuer: Issuer,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let der = key.serialize_der();
        let again = KeyPair::try_from(der.as_slice()).unwrap();
        let root_template = ca_template("Root", 1, None);
        let own = Issuer::unnamed(root_template.subject.clone(), again).unwrap();
        let root = sign(&own, root_template, &key);
        let root_issuer = Issuer::new(&root, key).unwrap();
        let key = KeyPair::generate().unwrap();
        let issuing = sign(&root_issuer, ca_template("Issuing", 0, Some(Usage::Client)), &key);
        let issuer = Issuer::new(&issuing, key).unwrap();
        Self { root, issuing, issuer }
    }
}

/// Prepares and issues.
pub(crate) fn sign(issuer: &Issuer, template: Template, key: &impl PublicKeyData) -> Vec<u8> {
    let prepared = issuer.prepare(template, key).unwrap();
    issuer.issue(prepared, key).unwrap()
}

fn ca_template(common_name: &str, path_len: u8, usage: Option<Usage>) -> Template {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    Template {
        serial: key::random_serial().unwrap(),
        subject: Name {
            organization: "試験 Operator".into(),
            unit: None,
            common_name: common_name.into(),
        },
        not_before: now - Duration::minutes(5),
        not_after: now + Duration::days(2000),
        role: Role::Ca { path_len, usage },
        marker: None,
    }
}

/// What `openssl verify -x509_strict` says, with the root trusted.
pub(crate) fn openssl_accepts(root: &[u8], issuing: &[u8], leaf: &[u8], purpose: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, der: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, key::certificate_to_pem(der)).unwrap();
        path
    };
    let (root, issuing, leaf) = (file("root", root), file("issuing", issuing), file("leaf", leaf));
    openssl_verify(&root, &issuing, &leaf, purpose)
}

pub(crate) fn openssl_verify(root: &Path, issuing: &Path, leaf: &Path, purpose: &str) -> bool {
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
        .arg(root)
        .arg("-untrusted")
        .arg(issuing)
        .arg(leaf)
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// What webpki says, with `anchor` trusted and `intermediates` sent along.
pub(crate) fn webpki_accepts(anchor: &[u8], intermediates: &[&[u8]], leaf: &[u8]) -> bool {
    use rustls_pki_types::{CertificateDer, UnixTime};
    let anchor = CertificateDer::from(anchor);
    let anchors = [webpki::anchor_from_trusted_cert(&anchor).unwrap()];
    let intermediates: Vec<CertificateDer<'_>> =
        intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let leaf = CertificateDer::from(leaf);
    let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &intermediates,
        UnixTime::now(),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
    .is_ok()
}
