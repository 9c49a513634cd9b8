//! One running box: a data folder under the system's temporary folder, and what it told about
//! itself in `demo/env.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use serde_json::Value;

use crate::client::{Call, Reply};
use crate::kept_open::KeptOpen;
use crate::programs::{Ran, program, run, sekisho, wait_until};

/// A demo party: who it is and where its key lies.
#[derive(Debug, Clone)]
pub struct Party {
    /// Its name in `env.json`, such as `care-management-1`.
    pub name: String,
    /// `office`, `municipality` or `system`.
    pub kind: String,
    /// 事業所番号, for an office.
    pub office: Option<String>,
    /// サービス種類コード of an office.
    pub service_types: Vec<String>,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// A box that runs until this value is dropped.
pub struct System {
    /// Gone once [`System::stop`] took it.
    folder: Option<tempfile::TempDir>,
    env: Value,
    parties: Vec<Party>,
}

/// How to start a box; see [`System::prepare`]. Dropped, it stops what a start that was not to
/// succeed left running.
pub struct Start {
    /// Gone once [`Start::start`] took it.
    folder: Option<tempfile::TempDir>,
}

static SHARED: Mutex<Weak<System>> = Mutex::new(Weak::new());

impl System {
    /// A fresh box with demo data on free ports.
    pub fn start() -> Self {
        Self::prepare().start()
    }

    /// The box that tests share which change nothing for the others: it starts with the first test
    /// that asks and stops with the last.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Self::start());
        *shared = Arc::downgrade(&started);
        started
    }

    /// A box whose data folder a test wants to see before it starts.
    pub fn prepare() -> Start {
        // A short path: the name of a unix socket holds 107 bytes at most.
        let folder = tempfile::Builder::new().prefix("sk-").tempdir_in("/tmp").unwrap();
        Start { folder: Some(folder) }
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.scratch().join("data")
    }

    /// A path in the data folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.data().join(name)
    }

    /// A folder for the test's own files; goes with the system.
    pub fn scratch(&self) -> &Path {
        self.folder.as_ref().expect("a box that was not stopped").path()
    }

    /// The gateway's base URL, such as `https://localhost:40123`.
    pub fn gateway(&self) -> &str {
        self.env["gateway"].as_str().expect("env.json: gateway")
    }

    /// The gateway's `host:port`.
    pub fn gateway_address(&self) -> &str {
        self.gateway().trim_start_matches("https://")
    }

    /// The enrolment listener's base URL.
    pub fn enrol(&self) -> &str {
        self.env["enrol"].as_str().expect("env.json: enrol")
    }

    /// The admin listener's base URL.
    pub fn admin_url(&self) -> &str {
        self.env["admin"].as_str().expect("env.json: admin")
    }

    /// What clients trust.
    pub fn trust(&self) -> PathBuf {
        self.path("demo/trust.pem")
    }

    /// The party of that name.
    pub fn party(&self, name: &str) -> &Party {
        let names: Vec<&str> = self.parties.iter().map(|party| party.name.as_str()).collect();
        let found = self.parties.iter().find(|party| party.name == name);
        found.unwrap_or_else(|| panic!("env.json has no party `{name}`: {names:?}"))
    }

    /// The first 居宅介護支援事業所 of the demo.
    pub fn care_management(&self) -> &Party {
        self.office("43", &[])
    }

    /// An office of the demo with a service type, other than those of `but`.
    pub fn office(&self, service_type: &str, but: &[&Party]) -> &Party {
        let fits = |party: &&Party| {
            party.service_types.iter().any(|own| own == service_type)
                && but.iter().all(|other| other.name != party.name)
        };
        let found = self.parties.iter().find(fits);
        found.unwrap_or_else(|| panic!("no demo office of service type {service_type}"))
    }

    /// The first municipality of the demo.
    pub fn municipality(&self) -> &Party {
        let found = self.parties.iter().find(|party| party.kind == "municipality");
        found.expect("a municipality in env.json")
    }

    /// A person of the demo municipality that no other test uses, as `131016/0000000042`.
    pub fn person(&self, number: u32) -> String {
        let insurer = self.env["insured"][0]["insurer"].as_str().expect("env.json: insured");
        format!("{insurer}/{number:010}")
    }

    /// A staff access token of a demo party.
    pub fn token(&self, party: &str) -> String {
        self.sekisho(["demo", "token", party]).ok().stdout.trim().to_owned()
    }

    /// A request as a party of the demo, by curl.
    pub fn curl(&self, party: &str) -> Call<'_> {
        let party = self.party(party);
        Call::new(self).cert(&party.cert, &party.key)
    }

    /// A request with any certificate, by curl.
    pub fn curl_with(&self, cert: &Path, key: &Path) -> Call<'_> {
        Call::new(self).cert(cert, key)
    }

    /// A request without a client certificate, by curl.
    pub fn curl_without_certificate(&self) -> Call<'_> {
        Call::new(self)
    }

    /// One connection for several requests, by `openssl s_client`.
    pub fn keep_open(&self, cert: &Path, key: &Path) -> KeptOpen {
        KeptOpen::connect(self, cert, key, &[])
    }

    /// The operator command on this box.
    pub fn sekisho<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Ran {
        let data = self.data();
        let args: Vec<&str> = args.into_iter().collect();
        sekisho(args.iter().copied().chain(["--data", data.to_str().unwrap()]))
    }

    /// A request to an admin socket: `ra-admin` or `hub-admin`.
    pub fn admin(&self, socket: &str, method: &str, path: &str, body: &Value) -> Reply {
        let socket = self.path(&format!("run/{socket}.sock"));
        Call::new(self).over_socket(&socket).method(method, path).json(body).send()
    }

    /// Records, as the operator, that `office` is now 担当事業所 of the person.
    pub fn register(&self, office: &str, insured: &str) {
        let args = ["--office", office, "--insured", insured, "--reason", "e2e"];
        self.sekisho(["registration", "add"].into_iter().chain(args)).ok();
    }

    /// The process id of a running part, as its ready file tells it.
    pub fn pid(&self, part: &str) -> Option<u32> {
        let text = fs::read_to_string(self.path(&format!("run/{part}.ready.json"))).ok()?;
        let ready: Value = serde_json::from_str(&text).ok()?;
        ready["pid"].as_u64()?.try_into().ok()
    }

    /// Ends a part as a crash would, and waits until the supervisor has it running again.
    pub fn kill_and_wait(&self, part: &str) {
        let before = self.pid(part).unwrap_or_else(|| panic!("{part} is not ready"));
        run("kill", ["-9", &before.to_string()]).ok();
        wait_until(&format!("{part} to be restarted"), 30, || {
            self.pid(part).filter(|pid| *pid != before)
        });
        self.wait_ready();
    }

    /// Waits until the gateway says that it has facts, a log and a hub.
    pub fn wait_ready(&self) {
        wait_until("the gateway to be ready", 30, || {
            let url = format!("{}/readyz", self.admin_url());
            let asked = run("curl", ["--silent", "--noproxy", "*", "--fail", &url]);
            (asked.code == 0).then_some(())
        });
    }

    /// Every audit record of a part as JSON, oldest first.
    pub fn audit_records(&self, part: &str) -> Vec<Value> {
        let all = ["audit", "show", "--json", "--last", "1000000", "--part", part];
        self.sekisho(all).ok().json().as_array().expect("a list of records").clone()
    }

    /// The file of pinned audit keys, beside the data folder.
    pub fn pins(&self) -> PathBuf {
        self.scratch().join("data.audit-keys")
    }

    /// Where a demo drops the heads of its logs.
    pub fn heads(&self) -> PathBuf {
        self.scratch().join("data.heads")
    }

    /// Waits for an audit record of a part that holds every one of `words`.
    pub fn audited(&self, part: &str, words: &[&str]) -> String {
        wait_until(&format!("a {part} audit record with {words:?}"), 10, || {
            let mut lines = self.audit_records(part).into_iter().map(|record| record.to_string());
            lines.find(|line| words.iter().all(|word| line.contains(word)))
        })
    }

    /// Stops the box, keeping its data folder.
    pub fn stop(mut self) -> Start {
        self.down();
        Start { folder: self.folder.take() }
    }

    fn down(&self) {
        let ran = self.sekisho(["down"]);
        let data = self.data();
        wait_until("every process of the box to end", 20, || {
            running(&data).is_empty().then_some(())
        });
        ran.ok();
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.folder.is_none() {
            return;
        }
        if std::thread::panicking() {
            self.print_logs();
            let _ = self.sekisho(["down"]);
        } else {
            self.down();
        }
    }
}

impl System {
    /// The ends of the parts' logs, for the reader of a failed test.
    fn print_logs(&self) {
        for part in ["supervisor", "signer", "ra", "hub", "gateway"] {
            let text =
                fs::read_to_string(self.path(&format!("run/{part}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(15);
            eprintln!("--- {part}.log, last lines\n{}", lines[from..].join("\n"));
        }
    }
}

impl Start {
    /// The data folder to be.
    pub fn data(&self) -> PathBuf {
        self.scratch().join("data")
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.folder.as_ref().expect("a box that was not started").path()
    }

    /// Runs `sekisho up`, whatever comes of it.
    pub fn try_up(&self) -> Ran {
        self.try_up_with(&[])
    }

    /// The same, with more arguments.
    pub fn try_up_with(&self, more: &[&str]) -> Ran {
        let data = self.data();
        let data = data.to_str().unwrap();
        let mut args = vec!["up", "--demo", "--detach", "--data", data];
        if !self.data().join("config/sekisho.toml").exists() {
            args.extend(FREE_PORTS);
        }
        args.extend(more);
        sekisho(args)
    }

    /// Starts the box.
    pub fn start(mut self) -> System {
        program("sekisho-gateway");
        self.try_up().ok();
        let text = fs::read_to_string(self.data().join("demo/env.json")).expect("demo/env.json");
        let env: Value = serde_json::from_str(&text).expect("demo/env.json is JSON");
        let parties = env["parties"].as_array().expect("env.json: parties");
        let parties = parties.iter().map(read_party).collect();
        let system = System { folder: self.folder.take(), env, parties };
        system.wait_ready();
        system
    }

    /// The processes that still run on the data folder.
    pub fn running(&self) -> Vec<String> {
        running(&self.data())
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if self.folder.is_some() && !self.running().is_empty() {
            let data = self.data();
            let _ = sekisho(["down", "--data", data.to_str().unwrap()]);
        }
    }
}

/// The listeners of a box in a test: any free port.
const FREE_PORTS: [&str; 6] = [
    "--gateway-listen",
    "127.0.0.1:0",
    "--enrol-listen",
    "127.0.0.1:0",
    "--admin-listen",
    "127.0.0.1:0",
];

fn read_party(value: &Value) -> Party {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let types = value["service_types"].as_array().cloned().unwrap_or_default();
    Party {
        name: text("name").expect("party: name"),
        kind: text("kind").expect("party: kind"),
        office: text("office_number"),
        service_types: types.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
        cert: text("cert").expect("party: cert").into(),
        key: text("key").expect("party: key").into(),
    }
}

/// The command lines of processes that name `folder`.
fn running(folder: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(folder.to_str().unwrap())).collect()
}
