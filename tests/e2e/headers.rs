//! What a client writes into its request never becomes what the hub believes, and a request that
//! two readers could read in two ways is refused.

use e2e::{System, run};

use crate::scenes::{document, readable_survey, survey_stored};

/// Names by which proxies tell back ends who is asking.
const SPOOFED: [&str; 8] = [
    "sekisho-permit: v1.e30.AAAA",
    "sekisho-principal: municipality/131016/terminal/a",
    "sekisho-request-id: chosen-by-the-client",
    "sekisho_principal: municipality/131016/terminal/a",
    "x-forwarded-client-cert: Hash=0;Subject=\"CN=municipality\"",
    "x-ssl-client-verify: SUCCESS",
    "client-cert: :AAAA:",
    "x-remote-user: municipality/131016",
];

#[test]
fn spoofed_identity_headers_open_nothing() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(2_001);
    survey_stored(&system, &insured);
    let token = system.token(&office.name);
    let path = document(&insured, "certification-survey");
    for header in SPOOFED {
        let call = system.curl(&office.name).token(&token).header(header);
        let reply = call.get(&path).send().expect(403, "not_registered");
        assert_ne!(reply.header("sekisho-request-id"), Some("chosen-by-the-client"));
    }
}

#[test]
fn spoofed_identity_headers_do_not_reach_the_hub() {
    let system = System::shared();
    let office = system.care_management();
    let insured = system.person(2_002);
    let (token, _) = readable_survey(&system, &insured);
    let path = document(&insured, "certification-survey");
    let mut call = system.curl(&office.name).token(&token);
    for header in SPOOFED {
        call = call.header(header);
    }
    call.get(&path).send().expect(200, "");
    let history = format!("/v1/insured/{insured}/access-history");
    let history = system.curl("portal").get(&history).send().expect(200, "");
    assert!(!String::from_utf8_lossy(&history.body).contains("chosen-by-the-client"));
    let party = format!("office/{}", office.office.as_ref().unwrap());
    let accesses = history.json["accesses"].as_array().unwrap();
    assert!(accesses.iter().any(|access| access["party"] == party.as_str()), "{accesses:?}");
}

#[test]
fn the_hub_answers_nobody_but_the_gateway() {
    let system = System::shared();
    let socket = system.path("run/hub.sock");
    let ask = |header: &str| {
        let url = "http://localhost/v1/registrations";
        let socket = socket.to_str().unwrap();
        let status = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"];
        let rest = ["--unix-socket", socket, "--header", header, url];
        run("curl", status.iter().chain(&rest)).ok().stdout
    };
    assert_eq!(ask("accept: application/json"), "403");
    assert_eq!(ask(SPOOFED[0]), "403");
}

#[test]
fn ambiguous_requests_are_refused() {
    let system = System::shared();
    let office = system.care_management();
    let line = "GET /v1/registrations HTTP/1.1\r\n";
    let post = "POST /v1/session HTTP/1.1\r\nhost: localhost\r\n";
    let chunked = "transfer-encoding: chunked\r\n";
    let cases = [
        ("two lengths", format!("{post}content-length: 1\r\ncontent-length: 2\r\n\r\nab")),
        ("length and chunks", format!("{post}content-length: 5\r\n{chunked}\r\n0\r\n\r\n")),
        ("a space before the colon", format!("{line}host: localhost\r\naccept : a\r\n\r\n")),
        ("a folded line", format!("{line}host: localhost\r\naccept: a\r\n b\r\n\r\n")),
        ("no host", format!("{line}\r\n")),
        ("two hosts", format!("{line}host: localhost\r\nhost: other\r\n\r\n")),
        ("a bare line feed", format!("{line}host: localhost\naccept: a\r\n\r\n")),
    ];
    for (name, request) in cases {
        let mut open = system.keep_open(&office.cert, &office.key);
        match open.raw(&request) {
            None => {}
            Some(reply) => assert_eq!(reply.status, 400, "{name}: {reply:?}"),
        }
    }
}
