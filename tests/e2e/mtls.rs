//! Who gets a connection: TLS 1.3 with a client certificate of this operator, and nobody else.
//!
//! Each refusal is shown by its own cause alone: to the client as a cut connection, in the audit
//! log by its reason word.

use std::time::{Duration, Instant};

use e2e::{System, Terminal, run};
use serde_json::json;

#[test]
fn a_demo_party_gets_an_answer_over_http2_and_http1() {
    let system = System::shared();
    let office = system.care_management();
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let reply = system.curl(&office.name).arg(option).get("/v1/registrations").send();
        let reply = reply.expect(401, "staff_token_missing");
        assert_eq!(reply.http_version, version);
        assert!(reply.header("sekisho-request-id").is_some(), "{:?}", reply.headers);
    }
}

#[test]
fn no_certificate_is_refused() {
    let system = System::shared();
    system.curl_without_certificate().get("/v1/registrations").cut_off();
    system.audited("gateway", &["handshake_failed", "no_certificate"]);
}

#[test]
fn tls_1_2_is_refused() {
    let system = System::shared();
    let call = system.curl(&system.care_management().name).arg("--tls-max").arg("1.2");
    call.get("/v1/registrations").cut_off();
    system.audited("gateway", &["handshake_failed", "tls_version"]);
}

#[test]
fn a_certificate_of_a_foreign_ca_is_refused() {
    let system = System::shared();
    let foreign = Terminal::foreign(&system, &system.care_management().cert);
    system.curl_with(&foreign.cert, &foreign.key).get("/v1/registrations").cut_off();
    system.audited("gateway", &["handshake_failed", "unknown_issuer", &foreign.serial]);
}

#[test]
fn an_expired_certificate_is_refused() {
    let system = System::shared();
    let office = system.care_management().office.clone().unwrap();
    let fields = json!({ "profile": "short-lived", "not_after_s": 6 });
    let terminal = Terminal::enrol_with(&system, &office, "expires-soon", &fields);
    let ask = || system.curl_with(&terminal.cert, &terminal.key).get("/v1/registrations");
    ask().send().expect(401, "staff_token_missing");
    let start = Instant::now();
    while ask().try_send().is_ok() {
        assert!(start.elapsed() < Duration::from_secs(12), "still accepted after its end");
        std::thread::sleep(Duration::from_millis(500));
    }
    system.audited("gateway", &["handshake_failed", "\"expired\"", &terminal.serial]);
}

#[test]
fn a_server_certificate_used_as_client_is_refused() {
    let system = System::shared();
    let file = |end: &str| system.path(&format!("ca/servers/gateway.{end}"));
    system.curl_with(&file("pem"), &file("key")).get("/v1/registrations").cut_off();
    system.audited("gateway", &["handshake_failed", "wrong_purpose"]);
}

#[test]
fn the_demo_certificates_stand_up_to_openssl() {
    let system = System::shared();
    let office = system.care_management();
    let root = system.path("ca/root.pem");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let verified = run(
        "openssl",
        [
            "verify",
            "-purpose",
            "sslclient",
            "-x509_strict",
            "-CAfile",
            &text(&root),
            "-untrusted",
            &text(&office.cert),
            &text(&office.cert),
        ],
    );
    verified.ok();
    let printed = e2e::inspect(&office.cert, "-text");
    for words in ["TLS Web Client Authentication", "ecdsa-with-SHA256", "prime256v1", "CA:FALSE"] {
        assert!(printed.contains(words), "`{words}` is missing in\n{printed}");
    }
    assert!(!printed.contains("TLS Web Server Authentication"), "{printed}");
}

#[test]
fn metrics_and_readiness_are_on_loopback_and_nowhere_else() {
    let system = System::shared();
    let ask = |path: &str| {
        let url = format!("{}{path}", system.admin_url());
        run("curl", ["--silent", "--fail", "--noproxy", "*", &url])
    };
    assert!(ask("/metrics").ok().stdout.contains("# TYPE"));
    assert_eq!(ask("/readyz").ok().json()["ready"], true);
    ask("/livez").ok();
    let reply = system.curl(&system.care_management().name).get("/metrics").send();
    reply.expect(404, "no_such_operation");
}
