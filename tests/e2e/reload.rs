//! Another configuration under the running gateway, and what needs another process or another box.

use std::fs;

use e2e::System;
use serde_json::Value;

use crate::scenes::document;

/// Puts `is` in the place of `was` in the gateway's configuration.
fn change(system: &System, was: &str, is: &str) {
    let file = system.path("config/gateway.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(was), "{was}");
    fs::write(&file, text.replacen(was, is, 1)).unwrap();
}

fn ready(system: &System) -> Value {
    let text = fs::read_to_string(system.path("run/gateway.ready.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn reload_takes_what_can_change_and_names_what_cannot() {
    let system = System::start();
    let before = ready(&system);
    let path = document(&system.person(7_401), "certification-survey");
    let long = "a".repeat(5_000);
    let asked = || {
        let call = system.curl(&system.municipality().name).get(&path);
        call.header(&format!("x-long: {long}")).arg("--http1.1").send()
    };
    assert_eq!(asked().status, 404);
    let file = system.path("config/gateway.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{good}\n[limits]\nrequest_header_bytes_max = 4096\n")).unwrap();
    let told = system.sekisho(["gateway", "reload"]).ok().stdout;
    assert!(told.contains("reloaded: limits.request_header_bytes_max; policy "), "{told}");
    asked().expect(400, "bad_request");

    change(&system, "request_header_bytes_max = 4096", "request_header_bytes_max = 0");
    system.sekisho(["gateway", "reload"]).refused(64, &["limits.request_header_bytes_max"]);
    fs::write(&file, good.replacen("id = \"gw-1\"", "id = \"gw-2\"", 1)).unwrap();
    let refused = system.sekisho(["gateway", "reload"]);
    refused.refused(1, &["nothing was changed", "`id`", "sekisho gateway upgrade"]);
    asked().expect(400, "bad_request");

    fs::write(&file, good).unwrap();
    let told = system.sekisho(["gateway", "reload", "--json"]).ok().json();
    assert_eq!(told["changed"][0], "limits.request_header_bytes_max");
    assert_eq!(asked().status, 404);
    assert_eq!(ready(&system), before, "it is the same process");
}

#[test]
fn a_closed_network_has_a_socket_of_its_own_which_an_upgrade_keeps() {
    let system = System::start();
    let file = system.path("config/gateway.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{good}\n[closed_network]\nlisten = \"127.0.0.1:0\"\n")).unwrap();
    let refused = system.sekisho(["gateway", "reload"]);
    refused.refused(1, &["`closed_network.listen`", "sekisho down"]);
    let system = system.stop().start();
    let at = ready(&system)["addresses"]["closed"].as_str().unwrap().to_owned();
    let port = at.rsplit(':').next().unwrap().to_owned();
    let path = document(&system.person(7_402), "certification-survey");
    let through = |expected: &str| {
        let call = system.curl(&system.municipality().name);
        let reply = call.to(&format!("https://localhost:{port}")).get(&path).send();
        assert_eq!(reply.status, 404, "{expected}");
        let id = reply.header("sekisho-request-id").unwrap().to_owned();
        system.audited("gateway", &[&id, r#""network":"closed""#]);
    };
    through("by the closed network");
    system.sekisho(["gateway", "upgrade"]).ok();
    assert_eq!(ready(&system)["addresses"]["closed"], at.as_str());
    through("by the closed network, after an upgrade");
    system.curl(&system.municipality().name).get(&path).send().expect(404, "no_document");
}
