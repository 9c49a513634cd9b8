//! The two programs as they run: real processes, real sockets, real outside clients (curl,
//! openssl).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod system;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use audit_log::Event;
use policies::feed::{Fact, Source, Subscriber, Update};
use system::{OFFICE, P256, System, run, text};

#[test]
fn an_office_enrols_with_openssl_and_curl() {
    let system = System::start();
    let (code, csr) = (system.code("front-1"), system.csr("front-1", P256));

    let (status, head, body) = system.est("/.well-known/est/cacerts", &[]);
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: application/pkcs7-mime"), "{head}");
    assert!(!body.contains('\n'));
    assert_eq!(system.certificates(&body).len(), 2, "issuing CA and root");

    let (status, head, body) = system.enrol(&code, &csr);
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("smime-type=certs-only"), "{head}");
    let chain = system.certificates(&body);
    assert_eq!(chain.len(), 2);
    let (leaf, issuing) = (system.path("leaf.pem"), system.path("ca/issuing.pem"));
    std::fs::write(&leaf, &chain[0]).unwrap();
    assert_eq!(chain[1], std::fs::read_to_string(&issuing).unwrap());
    let verified = run(Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"])
        .args([system.path("ca/root.pem"), "-untrusted".into(), issuing, leaf.clone()]));
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    let shown = text(
        &run(Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(leaf)).stdout,
    );
    for expected in [
        "C = JP, O = Test Operator, OU = 1370000001, CN = 1370000001-front-1",
        "URI:https://id.sekisho.example/office/1370000001/terminal/front-1",
        "Policy: 2.999.1.1.1",
        "TLS Web Client Authentication",
        "CA:FALSE",
        "2.999.1.99",
    ] {
        assert!(shown.contains(expected), "{expected} not in {shown}");
    }

    let (status, _, again) = system.enrol(&code, &csr);
    assert_eq!((status, system.certificates(&again)), (200, chain.clone()), "the same one");
    let old_client = ["-u", &code, "-A", "libest/3.2", "--data-binary", &csr];
    let (_, _, wrapped) = system.est("/.well-known/est/simpleenroll", &old_client);
    assert!(wrapped.lines().count() > 10 && wrapped.lines().all(|line| line.len() <= 64));
    assert_eq!(system.certificates(&wrapped), chain);

    let (_, list) = system.admin("GET", "/certificates?office=1370000001", None);
    assert_eq!(list["certificates"].as_array().unwrap().len(), 1);
    let one = &list["certificates"][0];
    assert_eq!(one["serial"], system.serial(&chain[0]));
    assert_eq!(
        (one["state"].as_str(), one["party"].as_str()),
        (Some("active"), Some("office/1370000001"))
    );
    for log in ["ra", "signer"] {
        system.verify(log);
    }
}

#[test]
fn each_bad_enrolment_is_refused_for_its_own_reason() {
    let system = System::start();
    let code = system.code("front-1");
    let good = system.csr("good", P256);
    let (status, head, _) = system.est("/.well-known/est/simpleenroll", &["-d", &good]);
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: basic realm=\"sekisho\""), "{head}");
    let wrong = format!("{}:0000", code.split(':').next().unwrap());
    let rsa = system.csr("rsa", &["rsa:2048"]);
    let p384 = system.csr("p384", &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"]);
    let mut broken = good.trim_end().to_owned();
    let at = broken.len() / 3;
    broken.replace_range(at..=at, if &broken[at..=at] == "A" { "B" } else { "A" });
    let large = "A".repeat(70_000);
    let large_file = system.path("large");
    std::fs::write(&large_file, large).unwrap();
    let large = format!("@{}", large_file.display());
    for (name, code, csr, status, words) in [
        ("wrong secret", wrong.as_str(), good.as_str(), 401, "secret is wrong"),
        ("unknown code", "NOSUCHID:0000", &good, 401, "secret is wrong"),
        ("RSA", &code, &rsa, 400, "RSA-2048"),
        ("P-384", &code, &p384, 400, "384 bits"),
        ("broken request", &code, &broken, 400, ""),
        ("no request", &code, "AAAA", 400, "no PKCS#10"),
        ("no base64", &code, "%", 400, "base64"),
        ("too large", &code, &large, 413, ""),
    ] {
        let (found, _, body) = system.enrol(code, csr);
        assert_eq!(found, status, "{name}: {body}");
        assert!(body.contains(words), "{name}: {body}");
    }
    assert_eq!(system.enrol(&code, &good).0, 200, "none of these used up the code");
    let other = system.csr("other", P256);
    let (status, _, body) = system.enrol(&code, &other);
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("別の鍵") && body.contains("another key"), "{body}");

    let locked = system.code("front-2");
    let wrong = format!("{}:0000", locked.split(':').next().unwrap());
    for _ in 0..5 {
        assert_eq!(system.enrol(&wrong, &other).0, 401);
    }
    let (status, _, body) = system.enrol(&locked, &other);
    assert_eq!(status, 403);
    assert!(body.contains("locked"), "{body}");

    let suspended = system.code("front-3");
    system.admin("POST", "/offices/1370000001/suspend", Some(r#"{"reason":"test"}"#));
    let (status, _, body) = system.enrol(&suspended, &other);
    assert_eq!(status, 403);
    assert!(body.contains("suspended"), "{body}");

    assert!(!system.log("ra").contains("enrolment refused"), "no line for each refusal");
    assert_eq!(system.enrol("00000000:0000", &other).0, 401);
    let reasons = || -> Vec<String> {
        let entries = audit_log::read(&system.path("audit-ra")).filter_map(Result::ok);
        let denied = entries.filter_map(|entry| {
            let Event::Decision { reasons, .. } = entry.event else { return None };
            reasons.first().cloned()
        });
        denied.collect()
    };
    let wanted =
        ["request_malformed", "code_used", "code_locked", "office_suspended", "code_unknown"];
    let end = Instant::now() + Duration::from_secs(10);
    while !wanted.iter().all(|reason| reasons().iter().any(|found| found == reason)) {
        assert!(Instant::now() < end, "{:?}", reasons());
        std::thread::sleep(Duration::from_millis(50));
    }

    let (status, _, _) = system.est("/healthz", &["--tls-max", "1.2"]);
    assert_eq!(status, 0, "TLS 1.2");
    assert_eq!(system.est("/healthz", &[]).0, 200);
}

#[test]
fn the_admin_socket_answers_as_documented() {
    let system = System::start();
    assert_eq!(system.admin("POST", "/offices", Some(OFFICE)).0, 200, "the same again");
    let other = OFFICE.replace("見本", "別の");
    let (status, body) = system.admin("POST", "/offices", Some(&other));
    assert_eq!((status, body["error"]["code"].as_str()), (409, Some("office_differs")));
    let (status, body) = system.admin("GET", "/offices/1370000009", None);
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("unknown_office")));
    let code = |number: &str, profile: &str| {
        let identity = format!(r#"{{"kind":"office","number":"{number}","terminal":"a"}}"#);
        let body = format!(r#"{{"identity":{identity},"profile":"{profile}"}}"#);
        let (status, body) = system.admin("POST", "/codes", Some(&body));
        (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(code("1370000009", "office-api"), (404, "unknown_office".into()));
    assert_eq!(code("1370000001", "system"), (400, "profile".into()));
    assert_eq!(code("1370000001", "short-lived"), (400, "profile".into()));
    assert_eq!(code("1370000001", "none").1, "bad_request");
    let suspended = system.admin("POST", "/offices/1370000001/suspend", Some(r#"{"reason":"a"}"#));
    assert_eq!((suspended.0, suspended.1["suspended"].as_bool()), (200, Some(true)));
    assert_eq!(code("1370000001", "office-api"), (409, "office_suspended".into()));
    system.admin("POST", "/offices/1370000001/resume", Some(r#"{"reason":"a"}"#));
    assert_eq!(code("1370000001", "office-api").0, 201);
    let revoke = |serial: &str| {
        let path = format!("/certificates/{serial}/revoke");
        system.admin("POST", &path, Some(r#"{"reason":"superseded"}"#))
    };
    let (status, body) = revoke("4001");
    assert_eq!(
        (status, body["known"].as_bool(), body["seq"].as_i64()),
        (200, Some(false), Some(4))
    );
    let told = audit_log::read(&system.path("audit-ra")).any(|entry| {
        matches!(entry.unwrap().event, Event::Outcome { object, result, detail, .. }
            if object == audit_log::Object::named("4001")
                && (result.as_str(), detail.as_str()) == ("done", "not issued by this RA"))
    });
    assert!(told, "the audit log says that it is not ours");
    let (status, body) = revoke("xyz");
    assert_eq!((status, body["error"]["code"].as_str()), (400, Some("bad_request")));
    let (status, body) = system.admin("GET", "/status", None);
    assert_eq!(status, 200);
    assert_eq!((body["offices"].as_i64(), body["feed_seq"].as_i64()), (Some(1), Some(4)));
    assert_eq!(body["gateways"][0]["id"], "gw-1");
    assert_eq!(system.admin("GET", "/metrics", None).0, 200);
    assert_eq!(system.admin("GET", "/nothing", None).0, 404);
}

#[test]
fn a_waiting_revocation_returns_after_the_gateway_acknowledged() {
    let mut system = System::prepare("lease_ms = 60000\nwait_ms = 1500\n");
    system.start_signer();
    system.start_ra();
    system.admin("POST", "/offices", Some(OFFICE));
    let (_, _, body) = system.enrol(&system.code("front-1"), &system.csr("front-1", P256));
    let serial = system.serial(&system.certificates(&body)[0]);
    let path = format!("/certificates/{serial}/revoke");
    let revoke = r#"{"reason":"key-compromise","wait":true}"#;

    let started = Instant::now();
    let (status, answer) = system.admin("POST", &path, Some(revoke));
    assert!(started.elapsed() >= Duration::from_millis(1500));
    assert_eq!((status, answer["acknowledged"].as_bool()), (200, Some(false)), "{answer}");
    assert_eq!(answer["missing"][0], "gw-1");
    let seq = answer["seq"].as_u64().unwrap();

    let mut gateway = Gateway::connect(&system);
    let revoked = gateway.until(seq);
    assert!(revoked.iter().any(|fact| matches!(fact, Fact::Revoked { serial: found, .. }
        if found.to_string() == serial)));
    gateway.acknowledge(seq);
    let (_, again) = system.admin("POST", &path, Some(revoke));
    assert_eq!(again["seq"].as_u64(), Some(seq), "revoking twice: the same answer");
    assert_eq!(again["acknowledged"].as_bool(), Some(true));
    let (_, shown) = system.admin("GET", &format!("/certificates/{serial}"), None);
    assert_eq!(shown["state"], "revoked");
    assert_eq!(shown["revocation"]["reason"], "key-compromise");
    assert!(shown["certificate_pem"].as_str().unwrap().starts_with("-----BEGIN"));
    let (status, _, body) = system.enrol(&system.code("front-1"), &system.csr("front-1", P256));
    assert_eq!(status, 200, "a new key and a new code: {body}");

    // The facts survive a kill, and the same subscriber follows the new process.
    system.kill_ra();
    system.start_ra();
    let mut subscriber = gateway.subscriber;
    subscriber.restart();
    let mut gateway = Gateway::with(&system, subscriber);
    assert_eq!(gateway.until(seq).len(), 2, "office and revocation");
}

#[test]
fn a_change_is_finished_when_its_client_goes_away() {
    let system = System::start();
    // The client goes at another moment each time: before, while and after the RA reads it.
    for n in 0..40 {
        let body = OFFICE.replace("1370000001", &format!("13700001{n:02}"));
        let mut stream = UnixStream::connect(system.path("ra-admin.sock")).unwrap();
        let head = format!(
            "POST /offices HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_micros(500 * (n % 10)));
    }
    let count = || {
        let (mut intents, mut outcomes) = (0, 0);
        for entry in audit_log::read(&system.path("audit-ra")).filter_map(Result::ok) {
            let line = serde_json::to_value(&entry.event).unwrap().to_string();
            if line.contains("office.add") && line.contains("13700001") {
                intents += usize::from(matches!(entry.event, Event::Intent { .. }));
                outcomes += usize::from(matches!(entry.event, Event::Outcome { .. }));
            }
        }
        (intents, outcomes)
    };
    let (mut intents, mut outcomes) = count();
    let started = Instant::now();
    while (intents == 0 || intents != outcomes) && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(100));
        (intents, outcomes) = count();
    }
    assert!(intents > 0, "none began");
    assert_eq!(intents, outcomes, "each that began has its outcome");
}

#[test]
fn a_lost_database_stops_the_ra_at_start() {
    let mut system = System::start();
    assert_eq!(system.end_ra(), Some(0));
    let database = system.path("ra.sqlite");
    std::fs::rename(&database, system.path("backup.sqlite")).unwrap();
    let output = run(Command::new(env!("CARGO_BIN_EXE_sekisho-ra"))
        .args(["--supervised", "--config"])
        .arg(system.path("ra.toml")));
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stderr);
    let errors: Vec<&str> = lines.lines().filter(|line| line.starts_with("error: ")).collect();
    let expected = "is missing, and there are audit records of it: restore it from the backup";
    assert!(
        matches!(errors.as_slice(), [one] if one.contains("ra.sqlite` is missing")
        && one.ends_with(expected)),
        "{lines}"
    );
    assert!(!database.exists());
    std::fs::rename(system.path("backup.sqlite"), &database).unwrap();
    system.start_ra();
}

#[test]
fn one_address_cannot_take_every_slot_and_silence_ends_soon() {
    let system = System::start();
    let silent: Vec<TcpStream> =
        (0..32).map(|_| TcpStream::connect(&system.address).unwrap()).collect();
    let mut more = TcpStream::connect(&system.address).unwrap();
    more.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_ended(&mut more, "the 33rd");
    let started = Instant::now();
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
        assert_ended(&mut stream, "one that sends nothing");
    }
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(system.est("/healthz", &[]).0, 200, "the slots are free again");
    assert!(!system.log("ra").contains("handshake failed"), "no line for each connection");
    let failed = || {
        let entries = audit_log::read(&system.path("audit-ra")).filter_map(Result::ok);
        entries.filter(|entry| matches!(entry.event, Event::HandshakeFailed { .. })).count()
    };
    let end = Instant::now() + Duration::from_secs(10);
    while failed() < 32 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(failed(), 32, "each is in the audit log");
}

/// The other side closed it: not a timeout.
fn assert_ended(stream: &mut TcpStream, which: &str) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{which}: {other:?}"),
    }
}

#[test]
fn a_certificate_that_the_signer_keeps_back_is_revoked() {
    let mut system = System::prepare("");
    let listener = UnixListener::bind(system.path("signer.sock")).unwrap();
    let signer = std::thread::spawn(move || {
        let (mut ra, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&ra).read_line(&mut line).unwrap();
        ra.write_all(b"{\"withheld\":{\"code\":\"unaccounted\",\"message\":\"a\"}}\n").unwrap();
        let request: serde_json::Value = serde_json::from_str(&line).unwrap();
        request["serial"].as_str().unwrap().to_owned()
    });
    system.start_ra();
    system.admin("POST", "/offices", Some(OFFICE));
    let (status, _, body) = system.enrol(&system.code("front-1"), &system.csr("front-1", P256));
    assert_eq!(status, 503, "{body}");
    let (_, record) =
        system.admin("GET", &format!("/certificates/{}", signer.join().unwrap()), None);
    assert_eq!(record["state"], "abandoned", "{record}");
    assert!(record["revocation"]["seq"].is_u64(), "{record}");
}

#[test]
fn a_kill_between_intent_and_answer_is_accounted_for_and_the_client_can_retry() {
    let mut system = System::prepare("");
    system.start_signer();
    // Between the RA and the real signer: hands over the request, keeps the answer back.
    let real = system.path("signer.sock");
    let between = system.path("between.sock");
    let config = std::fs::read_to_string(system.path("ra.toml")).unwrap();
    let bent = config.replace("/signer.sock", "/between.sock");
    std::fs::write(system.path("ra.toml"), bent).unwrap();
    let listener = UnixListener::bind(&between).unwrap();
    let signed = std::thread::spawn(move || {
        let (ra, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&ra).read_line(&mut line).unwrap();
        let mut signer = UnixStream::connect(real).unwrap();
        signer.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&signer).read_line(&mut answer).unwrap();
        let request: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(answer.contains("BEGIN CERTIFICATE"), "it was signed");
        (ra, request["serial"].as_str().unwrap().to_owned())
    });
    system.start_ra();
    system.admin("POST", "/offices", Some(OFFICE));
    let (code, csr) = (system.code("front-1"), system.csr("front-1", P256));
    let lost = std::thread::scope(|scope| {
        let client = scope.spawn(|| system.enrol(&code, &csr).0);
        let (held, serial) = signed.join().unwrap();
        let ra = std::fs::read_to_string(system.path("ra.ready.json")).unwrap();
        let ra: serde_json::Value = serde_json::from_str(&ra).unwrap();
        run(Command::new("kill").args(["-9", &ra["pid"].to_string()]));
        drop(held);
        assert_eq!(client.join().unwrap(), 0, "no answer");
        serial
    });
    system.kill_ra();

    std::fs::write(system.path("ra.toml"), config).unwrap();
    system.start_ra();
    let (_, record) = system.admin("GET", &format!("/certificates/{lost}"), None);
    assert_eq!(record["state"], "abandoned", "{record}");
    assert!(record["revocation"]["seq"].is_u64(), "{record}");
    let (status, _, body) = system.enrol(&code, &csr);
    assert_eq!(status, 200, "{body}");
    assert_ne!(system.serial(&system.certificates(&body)[0]), lost, "never twice the same serial");

    let words: Vec<String> = audit_log::read(&system.path("audit-ra"))
        .map(|entry| serde_json::to_value(entry.unwrap().event).unwrap())
        .filter(|event| event["object"]["name"] == *lost)
        .map(|event| event["result"].as_str().or(event["event"].as_str()).unwrap().to_owned())
        .collect();
    assert_eq!(words, ["intent", "abandoned"]);
    system.verify("ra");
}

#[test]
fn the_programs_start_and_end_in_good_order() {
    let mut system = System::prepare("");
    let check = |program: &str, config: &str| {
        let output = run(Command::new(program)
            .args(["--check-config", "--config"])
            .arg(system.path(config)));
        (output.status.code(), text(&output.stderr))
    };
    let (ra, signer) = (env!("CARGO_BIN_EXE_sekisho-ra"), env!("CARGO_BIN_EXE_sekisho-signer"));
    assert_eq!(check(ra, "ra.toml").0, Some(0));
    assert_eq!(check(signer, "signer.toml").0, Some(0));
    let (code, message) = check(ra, "missing.toml");
    assert_eq!(code, Some(64));
    assert!(message.starts_with("error: ") && message.contains("missing.toml"), "{message}");
    assert_eq!(run(&mut Command::new(ra)).status.code(), Some(64), "no --config");

    let config = std::fs::read_to_string(system.path("signer.toml")).unwrap();
    std::fs::write(system.path("production.toml"), config.replace("demo = true", "demo = false"))
        .unwrap();
    let (code, message) = check(signer, "production.toml");
    assert_eq!(code, Some(64));
    assert!(message.contains("`demo`: the issuing CA is a demo CA"), "{message}");

    system.start_signer();
    system.start_ra();
    let second = run(Command::new(signer).arg("--config").arg(system.path("signer.toml")));
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("already in use by a running process"));
    assert_eq!(system.end_ra(), Some(0));
    assert_eq!(system.end_signer(), Some(0));
    for gone in
        ["ra.ready.json", "ra-admin.sock", "ca-feed.sock", "signer.sock", "signer.ready.json"]
    {
        assert!(!system.path(gone).exists(), "{gone}");
    }
    system.start_ra();
    system.admin("POST", "/offices", Some(OFFICE));
    let (code, csr) = (system.code("front-1"), system.csr("front-1", P256));
    let (status, head, _) = system.enrol(&code, &csr);
    assert_eq!(status, 503, "the signer is down");
    assert!(head.contains("retry-after: 5"), "{head}");
    system.kill_ra();
    assert!(system.path("ra-admin.sock").exists(), "a killed process leaves its sockets");
    system.start_signer();
    system.start_ra();
    assert_eq!(system.enrol(&code, &csr).0, 200, "stale sockets are replaced");
}

/// A gateway's side of the feed.
struct Gateway {
    subscriber: Subscriber,
    lines: BufReader<UnixStream>,
}

impl Gateway {
    fn connect(system: &System) -> Self {
        Self::with(system, Subscriber::new(Source::Ca, &system.feed_public_key).unwrap())
    }

    fn with(system: &System, subscriber: Subscriber) -> Self {
        let mut stream = UnixStream::connect(system.path("ca-feed.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let hello = serde_json::to_string(&subscriber.hello(Some("gw-1"))).unwrap();
        stream.write_all(format!("{hello}\n").as_bytes()).unwrap();
        Self { subscriber, lines: BufReader::new(stream) }
    }

    /// Follows the feed until `seq` is applied; returns the facts on the way.
    fn until(&mut self, seq: u64) -> Vec<Fact> {
        let mut facts = vec![];
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            match self.subscriber.accept(line.trim_end()).unwrap() {
                Update::Part { facts: part, .. } => facts.extend(part),
                Update::Apply(fact) => facts.push(fact),
                Update::Whole | Update::Alive => {}
            }
            if self.subscriber.applied_seq() >= seq {
                return facts;
            }
        }
    }

    fn acknowledge(&mut self, seq: u64) {
        let line = format!("{{\"gateway\":\"gw-1\",\"applied_seq\":{seq}}}\n");
        self.lines.get_mut().write_all(line.as_bytes()).unwrap();
    }
}
