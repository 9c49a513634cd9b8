//! A second gateway of a running box, which the test itself starts and kills: same hub, same facts,
//! a log and a key of its own. No supervisor waits before it starts it again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::client::Call;
use crate::programs::{Ran, program, run, sekisho, wait_until};
use crate::system::System;

/// The gateway; killed when dropped.
pub struct OwnGateway {
    folder: PathBuf,
    child: Option<Child>,
    port: u16,
}

impl OwnGateway {
    /// Writes its configuration, made from that of the box's own gateway.
    pub fn prepare(system: &System) -> Self {
        let folder = system.scratch().join("own-gateway");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let (key, text) = audit_log::CheckpointKey::generate("id.test/audit/gateway").unwrap();
        fs::write(folder.join("audit.key"), text).unwrap();
        fs::set_permissions(folder.join("audit.key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(folder.join("pins"), format!("{}\n", key.verifying_key().as_str())).unwrap();
        // Taken from the system and given back at once, so that it stays the same over restarts.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = fs::read_to_string(system.path("config/gateway.toml")).unwrap();
        let mut config: toml::Table = toml::from_str(&text).unwrap();
        let path = |name: &str| toml::Value::from(folder.join(name).to_str().unwrap());
        config.insert("id".into(), "gw-own".into());
        config.insert("listen".into(), format!("127.0.0.1:{port}").into());
        config.insert("admin_listen".into(), "127.0.0.1:0".into());
        config.insert("ready_file".into(), path("ready.json"));
        let audit = config["audit"].as_table_mut().unwrap();
        audit.insert("dir".into(), path("log"));
        audit.insert("key".into(), path("audit.key"));
        audit.insert("stream_socket".into(), path("stream.sock"));
        fs::write(folder.join("gateway.toml"), config.to_string()).unwrap();
        Self { folder, child: None, port }
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) {
        let _ = fs::remove_file(self.folder.join("ready.json"));
        let mut options = fs::OpenOptions::new();
        let log = options.create(true).append(true).open(self.folder.join("gateway.log")).unwrap();
        let child = Command::new(program("sekisho-gateway"))
            .arg("--config")
            .arg(self.folder.join("gateway.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let admin = wait_until("the test's own gateway to listen", 30, || {
            let ready = fs::read_to_string(self.folder.join("ready.json")).ok()?;
            let ready: Value = serde_json::from_str(&ready).ok()?;
            ready["addresses"]["admin"].as_str().map(str::to_owned)
        });
        wait_until("the test's own gateway to be ready", 30, || {
            let url = format!("http://{admin}/readyz");
            let asked = run("curl", ["--silent", "--noproxy", "*", "--fail", &url]);
            (asked.code == 0).then_some(())
        });
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a started gateway");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends it in good order.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("a started gateway");
        run("kill", ["-TERM", &child.id().to_string()]).ok();
        let ended = wait_until("the test's own gateway to end", 20, || child.try_wait().unwrap());
        assert!(ended.success(), "{ended}");
    }

    /// A request to it as a demo party.
    pub fn curl<'a>(&self, system: &'a System, party: &str) -> Call<'a> {
        system.curl(party).to(&format!("https://localhost:{}", self.port))
    }

    /// The folder of its log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// `sekisho audit …` on its log.
    pub fn audit(&self, args: &[&str]) -> Ran {
        audit_copy(&self.log(), &self.folder.join("pins"), args)
    }
}

impl Drop for OwnGateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let text = fs::read_to_string(self.folder.join("gateway.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(15);
            eprintln!("--- own gateway's log, last lines\n{}", lines[from..].join("\n"));
        }
    }
}

/// `sekisho audit …` on a copy of the gateway's log, believing `pins`.
pub fn audit_copy(log: &Path, pins: &Path, args: &[&str]) -> Ran {
    let (log, pins) = (log.to_str().unwrap(), pins.to_str().unwrap());
    let end = ["--folder", log, "--pins", pins, "--part", "gateway"];
    sekisho(["audit"].iter().chain(args).chain(&end))
}
