//! No personal data, no token and no key in any log or metric: a box is used in every way that is
//! refused or goes wrong, and then everything that it wrote down or shows is searched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use e2e::{Code, System, Terminal, run, wait_until};
use serde_json::{Value, json};

use crate::scenes::{document, readable_survey, withdraw};

/// What must be nowhere: a name for the reader of a failure, and the word.
type Secrets = Vec<(String, String)>;

/// What stands in a document and says something of a person.
const REMARK: &str = "夜間に不安が強く家族が付き添う";

#[test]
fn no_log_and_no_metric_names_a_person_a_token_or_a_key() {
    let system = System::start();
    let mut secrets = used(&system);
    secrets.extend(keys(&system.data()));
    secrets.extend(demo_people(&system));
    let written = wait_until("every part to log", 10, || {
        let written = written(&system);
        let parts = ["gateway", "hub", "ra", "signer", "supervisor"];
        let logged = parts.iter().all(|part| {
            written.get(&format!("run/{part}.log")).is_some_and(|text| !text.is_empty())
        });
        logged.then_some(written)
    });
    shows_what_happened(&system, &written);
    let found = search(&written, &secrets);
    assert!(found.is_empty(), "{} leaks:\n{}", found.len(), found.join("\n"));
    // The same search finds each of them where it stands.
    for secret in &secrets {
        let mut log = written["run/gateway.log"].clone();
        log.push_str(&format!("{{\"message\":\"asked for {} just now\"}}\n", secret.1));
        let planted = BTreeMap::from([("run/gateway.log".to_owned(), log)]);
        assert_eq!(search(&planted, std::slice::from_ref(secret)).len(), 1, "{}", secret.0);
    }
    // Offices are told apart on the control socket and in the audit log only.
    let office = system.care_management().office.clone().unwrap();
    assert!(!written["metrics of the gateway"].contains(&office));
}

/// Uses the box; gives what was shown to it in confidence.
fn used(system: &System) -> Secrets {
    let office = system.care_management();
    let name = &office.name;
    let (read, stranger) = (system.person(8_101), system.person(8_102));
    let (token, consent) = readable_survey(system, &read);
    let survey = document(&read, "certification-survey");
    let send = |path: &str| system.curl(name).token(&token).get(path).send();
    send(&survey).expect(200, "");
    send(&document(&stranger, "certification-survey")).expect(403, "not_registered");
    send(&format!("{survey}?of={stranger}")).expect(200, "");
    let encoded = survey.replace("certification", "%63ertification");
    send(&encoded).expect(400, "bad_request");
    send(&document(&stranger, "no-such-kind")).expect(404, "no_such_operation");
    let bad = "no.such.token-8101";
    system.curl(name).token(bad).get(&survey).send().expect(401, "staff_token_invalid");
    let body = json!({"surveyed_on": REMARK, "overview": REMARK, "remarks": REMARK, "items": 1});
    let municipality = &system.municipality().name;
    let stored = system.curl(municipality).post(&survey, &body).send();
    assert_eq!(stored.status, 422, "{}", stored.json);
    let body = json!({"surveyed_on": "2026-05-01", "overview": REMARK, "items": {"1-1": 2},
        "remarks": REMARK});
    system.curl(municipality).post(&survey, &body).send().expect(201, "");
    let mut secrets = session(system);
    withdraw(system, &read, &consent);
    handshakes(system, &survey);
    secrets.extend(enrolment(system));
    // With the hub gone, and with a client that goes away.
    let pid = system.pid("hub").unwrap().to_string();
    run("kill", ["-STOP", &pid]).ok();
    let gone = system.curl(municipality).arg("--max-time").arg("1").get(&survey).try_send();
    run("kill", ["-CONT", &pid]).ok();
    assert!(gone.is_err(), "{gone:?}");
    system.kill_and_wait("hub");
    let number = |insured: &str| insured.split('/').next_back().unwrap().to_owned();
    secrets.extend([
        ("an insured number".to_owned(), number(&read)),
        ("another's insured number".to_owned(), number(&stranger)),
        ("a token that is none".to_owned(), bad.to_owned()),
        ("a remark in a document".to_owned(), REMARK.to_owned()),
    ]);
    secrets.extend(parts_of("staff token", &token));
    secrets
}

/// A staff session from login to logout; the passwords and tokens in it.
fn session(system: &System) -> Secrets {
    let name = &system.care_management().name;
    let account = fs::read_to_string(system.path(&format!("demo/{name}/staff.json"))).unwrap();
    let account: Value = serde_json::from_str(&account).unwrap();
    let password = account["password"].as_str().unwrap();
    let wrong = "not-the-password-8101";
    let login = |password: &str| {
        let body = json!({"staff_id": account["id"], "password": password});
        system.curl(name).post("/v1/session", &body).send()
    };
    login(wrong).expect(401, "login_failed");
    let session = login(password).expect(200, "").json;
    let token = |field: &str| session[field].as_str().unwrap().to_owned();
    let (access, refresh) = (token("access_token"), token("refresh_token"));
    let body = json!({ "refresh_token": refresh });
    let renewed = system.curl(name).post("/v1/session/refresh", &body).send().expect(200, "").json;
    let end = system.curl(name).token(&access).method("DELETE", "/v1/session").send();
    assert_eq!(end.status, 204);
    let mut secrets: Secrets = vec![
        ("a password".to_owned(), password.to_owned()),
        ("a wrong password".to_owned(), wrong.to_owned()),
        ("a refresh token".to_owned(), refresh),
        ("its successor".to_owned(), renewed["refresh_token"].as_str().unwrap().to_owned()),
    ];
    secrets.extend(parts_of("access token", &access));
    secrets.extend(parts_of("renewed token", renewed["access_token"].as_str().unwrap()));
    secrets
}

/// Handshakes that fail, each in its way.
fn handshakes(system: &System, path: &str) {
    let office = system.care_management();
    let foreign = Terminal::foreign(system, &office.cert);
    system.curl_without_certificate().get(path).cut_off();
    system.curl_with(&foreign.cert, &foreign.key).get(path).cut_off();
    system.curl(&office.name).arg("--tls-max").arg("1.2").get(path).cut_off();
    let clear = format!("http://{}{path}", system.gateway_address());
    run("curl", ["--silent", "--noproxy", "*", "--max-time", "5", &clear]);
}

/// A terminal that enrols, and one whose code is not right; their codes.
fn enrolment(system: &System) -> Secrets {
    let number = system.care_management().office.clone().unwrap();
    let code = Code::issue(system, &number, "seen", &json!({"profile": "office-browser"}));
    let key = system.scratch().join("seen.key");
    let request = e2e::new_request(&key, &e2e::EC_P256);
    let wrong = Code { id: code.id.clone(), secret: "WRONG-WRONG-WRONG-WRONG-8101".to_owned() };
    assert_eq!(wrong.present(system, &request).status, 401);
    assert_eq!(code.present(system, &request).status, 200);
    let mut secrets = vec![
        ("the secret of a code".to_owned(), code.secret),
        ("a wrong secret".to_owned(), wrong.secret),
    ];
    secrets.extend(key_words(&key));
    secrets
}

/// The parts of a token that nobody else could have made. Its head is the same for all.
fn parts_of(name: &str, token: &str) -> Secrets {
    let parts: Vec<&str> = token.split('.').collect();
    let [_, claims, signature] = parts[..] else { panic!("{token}") };
    [("claims", claims), ("signature", signature)]
        .map(|(part, text)| (format!("{part} of a {name}"), text.to_owned()))
        .to_vec()
}

/// The people of the demo, and what every token, key or card secret looks like.
fn demo_people(system: &System) -> Secrets {
    let mut secrets = Secrets::new();
    for file in files(&system.path("demo")) {
        if file.ends_with("staff.json") {
            let account: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            let name = account["name"].as_str().unwrap().split(" (").next().unwrap().to_owned();
            secrets.push((format!("staff `{name}`"), name));
        }
    }
    assert!(secrets.len() >= 3, "{secrets:?}");
    for (what, word) in [
        ("an insured person", "見本 一郎"),
        ("another insured person", "見本 二子"),
        ("a key in PEM", "PRIVATE KEY"),
        ("any JWT", "eyJ"),
        ("an Authorization header", "Bearer "),
    ] {
        secrets.push((what.to_owned(), word.to_owned()));
    }
    secrets
}

/// Every private or secret key of the box, in each form in which a program might write it.
fn keys(data: &Path) -> Secrets {
    let is_key = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        [".key", ".pkcs8", "key.pem"].iter().any(|end| name.ends_with(end))
    };
    let keys: Vec<PathBuf> = files(data).into_iter().filter(is_key).collect();
    for wanted in ["permit.key", "pseudonym.key", "feed-hub.pkcs8", "care-management-1"] {
        let is_there = keys.iter().any(|path| path.to_str().unwrap().contains(wanted));
        assert!(is_there, "no {wanted} in {keys:?}");
    }
    keys.iter().flat_map(|path| key_words(path)).collect()
}

fn key_words(path: &Path) -> Secrets {
    let bytes = fs::read(path).unwrap();
    let name = format!("key {}", path.display());
    let words: Vec<String> = match std::str::from_utf8(&bytes) {
        // The text form of a key for heads: its last part is the key, those before are public.
        Ok(text) if text.starts_with("PRIVATE+KEY+") => {
            text.trim().splitn(5, '+').skip(4).map(str::to_owned).collect()
        }
        Ok(text) if text.starts_with("-----BEGIN") => {
            text.lines().filter(|line| !line.starts_with("---")).map(str::to_owned).collect()
        }
        Ok(_) | Err(_) => {
            let base64 = run("base64", ["-w0", path.to_str().unwrap()]).ok().stdout;
            let base64 = base64.trim_end_matches('=').to_owned();
            let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let list: Vec<String> = bytes.iter().take(16).map(u8::to_string).collect();
            vec![base64.replace('+', "-").replace('/', "_"), base64, hex, list.join(", ")]
        }
    };
    assert!(!words.is_empty() && words.iter().all(|word| word.len() >= 16), "{name}");
    words.into_iter().map(|word| (name.clone(), word)).collect()
}

/// Everything that the box wrote down or shows to whoever watches it, by its name.
fn written(system: &System) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for folder in ["run", "audit"] {
        for file in files(&system.path(folder)) {
            let name = file.strip_prefix(system.data()).unwrap().to_str().unwrap().to_owned();
            all.insert(name, String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned());
        }
    }
    for path in ["metrics", "readyz", "livez", "policy"] {
        let url = format!("{}/{path}", system.admin_url());
        let text = run("curl", ["-s", "--noproxy", "*", &url]).ok().stdout;
        all.insert(format!("{path} of the gateway"), text);
    }
    let hub = system.admin("hub-admin", "GET", "/metrics", &Value::Null);
    all.insert("metrics of the hub".into(), String::from_utf8_lossy(&hub.body).into_owned());
    for args in [&["top", "--once", "--json"][..], &["top", "--once"], &["status", "--json"]] {
        let told = system.sekisho(args.iter().copied()).ok();
        all.insert(args.join(" "), format!("{}{}", told.stdout, told.stderr));
    }
    all
}

/// Silence is no proof: what was done must have left its traces.
fn shows_what_happened(system: &System, written: &BTreeMap<String, String>) {
    let metrics = &written["metrics of the gateway"];
    for traced in ["not_registered", "staff_token_invalid", "bad_request", "no_certificate"] {
        assert!(metrics.contains(traced), "{traced}: {metrics}");
    }
    for traced in ["no_certificate", "unknown_issuer", "tls_version"] {
        system.audited("gateway", &["handshake_failed", traced]);
    }
    assert!(written["top --once --json"].contains("parties"));
    let audit: usize =
        written.iter().filter(|(name, _)| name.starts_with("audit/")).map(|it| it.1.len()).sum();
    assert!(audit > 10_000, "the audit logs hold {audit} bytes");
}

/// Where each of the words stands.
fn search(written: &BTreeMap<String, String>, secrets: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (place, text) in written {
        for (name, word) in secrets {
            let is_in = |line: &&str| line.contains(word.as_str()) || line.contains(&escaped(word));
            if let Some(line) = text.lines().find(is_in) {
                let line: String = line.chars().take(300).collect();
                found.push(format!("{name} in {place}: {line}"));
            }
        }
    }
    found
}

/// The word as JSON writes it where it keeps to ASCII.
fn escaped(word: &str) -> String {
    let of =
        |at: char| if at.is_ascii() { at.to_string() } else { format!("\\u{:04x}", at as u32) };
    word.chars().map(of).collect()
}

/// The files of a folder and of those in it; sockets are none.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}
