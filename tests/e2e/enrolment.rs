//! How a terminal gets its certificate: EST with a one-time code, spoken by curl and openssl.

use e2e::{Code, EC_P256, System, inspect, new_request, run, write_certificates};
use serde_json::json;

fn code(system: &System, terminal: &str) -> Code {
    let office = system.care_management().office.clone().unwrap();
    Code::issue(system, &office, terminal, &json!({ "profile": "office-browser" }))
}

fn request(system: &System, name: &str) -> String {
    new_request(&system.scratch().join(format!("{name}.key")), &EC_P256)
}

#[test]
fn the_identity_comes_from_the_code_and_not_from_the_request() {
    let system = System::shared();
    let reply = code(&system, "named-by-code").present(&system, &request(&system, "named"));
    assert_eq!(reply.status, 200);
    let content = reply.header("content-type").unwrap_or("").to_owned();
    assert!(content.starts_with("application/pkcs7-mime"), "{content}");
    let cert = system.scratch().join("named.pem");
    write_certificates(&reply.body, &cert);
    let printed = inspect(&cert, "-text");
    assert!(printed.contains("/terminal/named-by-code"), "{printed}");
    assert!(!printed.to_lowercase().contains("nobody"), "{printed}");
}

#[test]
fn a_code_is_good_for_one_key() {
    let system = System::shared();
    let code = code(&system, "once");
    assert_eq!(code.present(&system, &request(&system, "once-1")).status, 200);
    let again = code.present(&system, &request(&system, "once-2"));
    assert!((400..500).contains(&again.status), "{again:?}");
}

#[test]
fn wrong_secrets_are_refused_and_lock_only_that_code() {
    let system = System::shared();
    let (locked, other) = (code(&system, "locked"), code(&system, "not-locked"));
    let wrong = Code { secret: other.secret.clone(), ..locked.clone() };
    let request = request(&system, "locked");
    for _ in 0..5 {
        let reply = wrong.present(&system, &request);
        assert!((400..500).contains(&reply.status), "{reply:?}");
    }
    let reply = locked.present(&system, &request);
    assert!((400..500).contains(&reply.status), "the right secret of a locked code: {reply:?}");
    assert_eq!(other.present(&system, &request).status, 200);
}

#[test]
fn requests_without_a_code_or_with_an_unfit_key_are_refused() {
    let system = System::shared();
    let call = system.curl_without_certificate().to_enrol();
    let call = call.method("POST", "/.well-known/est/simpleenroll");
    let anonymous = call.body(request(&system, "anonymous").into_bytes()).send();
    assert_eq!(anonymous.status, 401, "{anonymous:?}");
    assert!(anonymous.header("www-authenticate").is_some_and(|value| value.starts_with("Basic")));

    let code = code(&system, "unfit-key");
    let kinds: [&[&str]; 2] = [
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
    ];
    for kind in kinds {
        let request = new_request(&system.scratch().join("unfit.key"), kind);
        let reply = code.present(&system, &request);
        assert!((400..500).contains(&reply.status), "{kind:?}: {reply:?}");
    }
    for garbage in ["", "not base64!", "MAA="] {
        let reply = code.present(&system, garbage);
        assert!((400..500).contains(&reply.status), "{garbage}: {reply:?}");
    }
    let fit = code.present(&system, &request(&system, "fit-key"));
    assert_eq!(fit.status, 200, "a refused request must not use the code up: {fit:?}");
}

#[test]
fn the_ca_certificates_verify_what_the_ca_issued() {
    let system = System::shared();
    let call = system.curl_without_certificate().to_enrol();
    let reply = call.get("/.well-known/est/cacerts").send();
    assert_eq!(reply.status, 200);
    let chain = system.scratch().join("cacerts.pem");
    write_certificates(&reply.body, &chain);
    let (chain, cert) = (chain.to_str().unwrap(), &system.care_management().cert);
    run("openssl", ["verify", "-x509_strict", "-CAfile", chain, cert.to_str().unwrap()]).ok();
}

#[test]
fn the_enrolment_listener_speaks_tls_1_3_only() {
    let system = System::shared();
    let call = system.curl_without_certificate().to_enrol().arg("--tls-max").arg("1.2");
    call.get("/healthz").cut_off();
    let call = system.curl_without_certificate().to_enrol();
    assert_eq!(call.get("/healthz").send().status, 200);
}
