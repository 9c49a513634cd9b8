//! nginx alone on its core, with keys of its own in a temporary folder.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use crate::lab::systems::peer;
use crate::lab::{Lab, Scale};

/// nginx as it runs; ended when this is dropped.
pub(super) struct Server {
    dir: TempDir,
    trust: PathBuf,
    master: Child,
    worker: u32,
    open: u16,
    mutual: u16,
}

impl Server {
    /// Makes keys and starts it.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub(super) fn start(server_cpu: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no temporary folder")?;
        let scale = Scale { terminals: 1, offices: 0, registrations: 0, revocations: 0 };
        let fixture = dir.path().join("fixture");
        let lab = Lab::make(&fixture, &scale)?;
        let run = dir.path().join("run");
        let terminal = dir.path().join("terminal");
        fs::create_dir(&run)?;
        fs::create_dir(&terminal)?;
        // Without token and path: the tools send the same request.
        let from = lab.terminals().join("00000");
        let read = |name| fs::read_to_string(from.join(name)).context("the terminal's files");
        let (chain, key) = (read("cert.pem")?, read("key.pem")?);
        fs::write(terminal.join("cert.pem"), &chain)?;
        fs::write(terminal.join("key.pem"), &key)?;
        fs::write(dir.path().join("both.pem"), chain + &key)?;
        let (open, mutual) = two_free_ports()?;
        let config = NGINX
            .replace("@RUN@", &run.display().to_string())
            .replace("@PKI@", &fixture.join("pki").display().to_string())
            .replace("@ANSWER@", &"x".repeat(ANSWER_BYTES))
            .replace("@PORT_OPEN@", &open.to_string())
            .replace("@PORT_MUTUAL@", &mutual.to_string());
        fs::write(run.join("nginx.conf"), config)?;
        // A master that is root would give its worker to a user who may not enter our folder.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let master = Command::new("taskset")
            .args(["--cpu-list", &server_cpu.to_string(), &peer("nginx"), "-g", user, "-p"])
            .arg(&run)
            .arg("-c")
            .arg(run.join("nginx.conf"))
            .arg("-e")
            .arg(run.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start `taskset`")?;
        let mut server = Self { dir, trust: lab.trust(), master, worker: 0, open, mutual };
        server.worker = server.wait()?;
        Ok(server)
    }

    /// Until it answers; its worker's process.
    fn wait(&mut self) -> anyhow::Result<u32> {
        let id = self.master.id();
        let path = format!("/proc/{id}/task/{id}/children");
        let began = Instant::now();
        loop {
            if let Some(status) = self.master.try_wait()? {
                bail!("nginx does not start ({status})");
            }
            let children = fs::read_to_string(&path).unwrap_or_default();
            let worker = children.split_whitespace().next().map(str::parse);
            let answers = TcpStream::connect(("127.0.0.1", self.mutual)).is_ok();
            if let (Some(worker), true) = (worker, answers) {
                return worker.with_context(|| format!("`{path}` names no process"));
            }
            ensure!(began.elapsed() < WITHIN, "nginx does not answer within {WITHIN:?}");
            std::thread::sleep(POLL);
        }
    }

    /// The process whose CPU time counts.
    pub(super) fn worker(&self) -> u32 {
        self.worker
    }

    /// Where it is reached, with client certificates or without.
    pub(super) fn url(&self, mutual: bool) -> String {
        format!("https://127.0.0.1:{}", if mutual { self.mutual } else { self.open })
    }

    /// A terminal's chain and key, as `run` wants them.
    pub(super) fn terminal(&self) -> PathBuf {
        self.dir.path().join("terminal")
    }

    /// The same in one file, as ab wants them.
    pub(super) fn both(&self) -> PathBuf {
        self.dir.path().join("both.pem")
    }

    /// The root certificate.
    pub(super) fn trust(&self) -> PathBuf {
        self.trust.clone()
    }

    /// Ends it and waits.
    ///
    /// # Errors
    /// If it does not end in time.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if self.master.try_wait()?.is_some() {
            return Ok(());
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.master.id().cast_signed()) {
            // The master ends its worker; it may itself have ended this moment.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let began = Instant::now();
        while self.master.try_wait()?.is_none() {
            if began.elapsed() > WITHIN {
                self.master.kill()?;
                self.master.wait()?;
                bail!("nginx did not end within {WITHIN:?} and was killed");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.end();
    }
}

/// Two ports that nobody listens on this moment.
fn two_free_ports() -> anyhow::Result<(u16, u16)> {
    let bind = || TcpListener::bind(("127.0.0.1", 0));
    let (one, other) = (bind()?, bind()?);
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}

const NGINX: &str = include_str!("../../peers/nginx-tools.conf");
const ANSWER_BYTES: usize = 1024;
const WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);
