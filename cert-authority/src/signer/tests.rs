//! Tests of the signer: each refusal, asked for directly.

use super::*;
use crate::profile::Profile;
use crate::testing::{Ca, keeping, office, openssl_accepts, rules, told_of, webpki_accepts};
use policies::identity::Identity;
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};

struct Bench {
    dir: tempfile::TempDir,
    ca: Ca,
    signer: Signer,
}

fn bench(demo: bool, rate: u32) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let keeping = keeping(&dir.path().join("audit"));
    let (ca, trail) = (Ca::new(), Trail::open(keeping, "signer").unwrap());
    let Ca { root, issuing, issuer } = ca;
    let ledger = dir.path().join("signed-serials.bin");
    let signer = Signer::new(rules(demo), issuer, &ledger, rate, trail).unwrap();
    Bench { dir, ca: Ca { root, issuing, issuer: Ca::new().issuer }, signer }
}

fn request(profile: &str, identity: &Identity, key: &KeyPair) -> Value {
    json!({
        "request_id": "r1",
        "profile": profile,
        "identity": identity,
        "spki_der_b64": SignRequest::encode_spki(&key.subject_public_key_info()),
        "serial": key::random_serial().unwrap(),
    })
}

fn code(answer: &SignResponse) -> &str {
    match answer {
        SignResponse::Signed { .. } => "signed",
        SignResponse::Refused { error } => &error.code,
        SignResponse::Withheld { withheld } => &withheld.code,
    }
}

#[test]
fn a_good_request_is_signed_and_fully_accounted_for() {
    let bench = bench(false, 600);
    let key = KeyPair::generate().unwrap();
    let request = request("office-browser", &office(), &key);
    let SignResponse::Signed { certificate_pem } = bench.signer.answer(&request.to_string()) else {
        panic!("refused");
    };
    let der = key::certificate_from_pem(&certificate_pem).unwrap();
    assert!(openssl_accepts(&bench.ca.root, &bench.ca.issuing, &der, "sslclient"));
    assert!(webpki_accepts(&bench.ca.issuing, &[], &der));
    let words = told_of(&bench.dir.path().join("audit"), request["serial"].as_str().unwrap());
    assert_eq!(words, ["intent", "effect", "done"]);
}

#[test]
fn each_wrong_request_is_refused_for_its_own_reason() {
    let bench = bench(false, 600);
    let p256 = KeyPair::generate().unwrap();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let system = Identity::from_path("system/portal/terminal/a").unwrap();
    let good = request("office-browser", &office(), &p256);
    let with = |field: &str, value: Value| {
        let mut request = good.clone();
        request[field] = value;
        request
    };
    let cases = [
        ("another kind of principal", request("office-browser", &system, &p256), "profile"),
        ("office for a system profile", request("system", &office(), &p256), "profile"),
        ("demo profile", with("profile", "short-lived".into()), "profile"),
        ("a lifetime of its own choice", with("not_after_s", 10.into()), "profile"),
        ("an RSA key", request("office-browser", &office(), &rsa), "key_policy"),
        ("a P-384 key", request("office-browser", &office(), &p384), "key_policy"),
        ("a key that is no base64", with("spki_der_b64", "%".into()), "malformed"),
        ("an unknown profile", with("profile", "root".into()), "malformed"),
        ("an unknown field", with("is_ca", true.into()), "malformed"),
        (
            "a malformed office",
            with(
                "identity",
                json!({"kind": "office", "number": "1/../2",
            "terminal": "a"}),
            ),
            "malformed",
        ),
        ("a short serial", with("serial", "4001".into()), "serial"),
        ("a negative serial", with("serial", "ff".repeat(16).into()), "serial"),
    ];
    for (name, request, expected) in cases {
        assert_eq!(code(&bench.signer.answer(&request.to_string())), expected, "{name}");
    }
    assert_eq!(code(&bench.signer.answer(&good.to_string())), "signed");
}

#[test]
fn an_audit_failure_after_the_signature_does_not_say_that_nothing_was_signed() {
    let bench = bench(false, 600);
    let line = request("office-browser", &office(), &KeyPair::generate().unwrap()).to_string();
    let request: SignRequest = serde_json::from_str(&line).unwrap();
    let work = Work {
        request_id: None,
        actor: Actor::of("ra"),
        action: "certificate.sign",
        object: Object::named(request.serial.to_string()),
    };
    let der = bench.signer.sign(&request, &work, OffsetDateTime::now_utc()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(bench.signer.trail.clone().close());
    let late = bench.signer.account(&work, &der).unwrap_err().into_response();
    assert!(matches!(late, SignResponse::Withheld { .. }), "{late:?}");
    assert_eq!(code(&late), "unaccounted");
    let mut before: Value = serde_json::from_str(&line).unwrap();
    before["serial"] = json!(key::random_serial().unwrap());
    let before = bench.signer.answer(&before.to_string());
    assert!(matches!(before, SignResponse::Refused { .. }), "{before:?}");
    assert_eq!(code(&before), "unavailable");
}

#[test]
fn a_serial_is_never_signed_twice_even_after_a_restart() {
    let bench = bench(false, 600);
    let request = request("office-browser", &office(), &KeyPair::generate().unwrap()).to_string();
    assert_eq!(code(&bench.signer.answer(&request)), "signed");
    assert_eq!(code(&bench.signer.answer(&request)), "serial");
    let path = bench.dir.path().join("signed-serials.bin");
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"torn").unwrap();
    let mut ledger = Ledger::open(&path).unwrap();
    let serial: SignRequest = serde_json::from_str(&request).unwrap();
    assert!(!ledger.reserve(serial.serial).unwrap());
    assert!(ledger.reserve(key::random_serial().unwrap()).unwrap());
    assert_eq!(Ledger::open(&path).unwrap().known.len(), 2);
}

#[test]
fn the_rate_is_limited_and_refused_requests_count() {
    let bench = bench(false, 2);
    let answers: Vec<String> =
        (0..3).map(|_| code(&bench.signer.answer("{}")).to_owned()).collect();
    assert_eq!(answers, ["malformed", "malformed", "rate"]);
    let start = Instant::now();
    let mut rate = Rate::new(60, start);
    assert!((0..60).all(|_| rate.take(start)));
    assert!(!rate.take(start));
    assert!(rate.take(start + Duration::from_millis(1001)));
    assert!(!rate.take(start + Duration::from_millis(1002)));
}

#[test]
fn the_demo_profile_ends_when_it_says() {
    let bench = bench(true, 600);
    let mut request = request("short-lived", &office(), &KeyPair::generate().unwrap());
    request["not_after_s"] = 5.into();
    let SignResponse::Signed { certificate_pem } = bench.signer.answer(&request.to_string()) else {
        panic!("refused");
    };
    let der = key::certificate_from_pem(&certificate_pem).unwrap();
    let end = crate::lint::Read::from_der(&der).unwrap().not_after;
    let left = (end - OffsetDateTime::now_utc()).whole_seconds();
    assert!((3..=5).contains(&left), "{left}");
    assert_eq!(Profile::ShortLived.number(), 6);
}
