//! Starts and ends the measured systems: nginx and HAProxy of Debian, the gateway in stages, and
//! the shipped gateway. All of them reach the same back end, on the same kind of socket.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::cpu;
use crate::lab::facts::Sockets;
use crate::lab::{FactsSet, Lab, Start, fixture};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum System {
    /// nginx of Debian
    Nginx,
    /// HAProxy of Debian
    Haproxy,
    /// The gateway's modules without policy and audit
    #[value(name = "gateway-transport")]
    Transport,
    /// The gateway's modules without audit
    #[value(name = "gateway-policy")]
    Policy,
    /// The gateway's program, records written behind the answer
    #[value(name = "gateway-async")]
    Async,
    /// The gateway's program as shipped, records on disk before the answer
    #[value(name = "gateway-durable")]
    Durable,
}

impl System {
    /// All of them, in the order in which they are told of.
    pub(crate) const ALL: [Self; 6] =
        [Self::Nginx, Self::Haproxy, Self::Transport, Self::Policy, Self::Async, Self::Durable];

    /// The name in results.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Transport => "gateway-transport",
            Self::Policy => "gateway-policy",
            Self::Async => "gateway-async",
            Self::Durable => "gateway-durable",
        }
    }
}

/// A process of ours; ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process whose CPU time counts: of nginx the worker.
    pub(crate) pid: u32,
    /// Where it is reached.
    pub(crate) url: String,
    /// How it was started, without the folders of this machine.
    pub(crate) command: String,
    /// What it wrote.
    log: PathBuf,
    child: Child,
    /// Its own files, removed at the end.
    run_dir: Option<PathBuf>,
}

impl Running {
    /// Ends it in good order and waits.
    ///
    /// # Errors
    /// If it did not end in time, or its files can not be removed.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.end(rustix::process::Signal::TERM)?;
        if let Some(dir) = self.run_dir.take() {
            fs::remove_dir_all(&dir).with_context(|| format!("folder `{}`", dir.display()))?;
        }
        Ok(())
    }

    /// The folder of its own files.
    pub(crate) fn run_dir(&self) -> Option<&Path> {
        self.run_dir.as_deref()
    }

    /// How often it has lost a feed of facts so far: work that is no part of any measurement.
    pub(crate) fn feeds_lost(&self) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.matches("facts feed lost").count()
    }

    fn end(&mut self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended this moment.
            let _ = rustix::process::kill_process(pid, signal);
        }
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > ENDS_WITHIN {
                self.child.kill()?;
                self.child.wait()?;
                bail!("`{}` did not end within {ENDS_WITHIN:?} and was killed", self.command);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody is left to tell; nginx's worker ends with its master only if that is asked.
        let _ = self.end(rustix::process::Signal::TERM);
        if let Some(dir) = self.run_dir.take() {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

impl Lab {
    /// Starts the back end of all systems.
    ///
    /// # Errors
    /// If it does not come up.
    pub(crate) fn start_backend(&self, start: &Start) -> anyhow::Result<Running> {
        let socket = self.backend();
        let mut words = vec![own_program()?, "backend".into(), "--socket".into()];
        words.push(socket.display().to_string());
        let running = self.spawn(&words, start, "backend", format!("unix:{}", socket.display()))?;
        wait_for_socket(running, &socket, start)
    }

    /// Starts the publisher of `set`.
    ///
    /// # Errors
    /// If it does not come up.
    pub(crate) fn start_facts(&self, set: FactsSet, start: &Start) -> anyhow::Result<Running> {
        let dir = self.dir.display().to_string();
        let heartbeat = start.heartbeat_ms.to_string();
        let words = [own_program()?, "facts".into(), "--dir".into(), dir, "--set".into()];
        let mut words = words.to_vec();
        words.extend([set.as_str().to_owned(), "--heartbeat-ms".into(), heartbeat]);
        let name = format!("facts-{}", set.as_str());
        let running = self.spawn(&words, start, &name, String::new())?;
        wait_for_socket(
            running,
            &self.run_dir().join(format!("{}-control.sock", set.as_str())),
            start,
        )
    }

    /// Starts a system and returns when it answers. The back end must run, and for a gateway the
    /// publisher of `set`.
    ///
    /// # Errors
    /// If it does not come up; with the last lines that it wrote.
    pub(crate) fn start(
        &self,
        system: System,
        set: FactsSet,
        start: &Start,
    ) -> anyhow::Result<Running> {
        let running = match system {
            System::Nginx | System::Haproxy => self.start_peer(system, start),
            System::Transport | System::Policy | System::Async | System::Durable => {
                self.start_gateway(system, set, start)
            }
        }
        .with_context(|| format!("{} does not start", system.as_str()))?;
        settle(running.pid)?;
        Ok(running)
    }

    fn start_peer(&self, system: System, start: &Start) -> anyhow::Result<Running> {
        let name = system.as_str();
        let run = self.fresh_run_dir(name)?;
        let port = free_port()?;
        let is_nginx = system == System::Nginx;
        let (template, file) =
            if is_nginx { (NGINX, "nginx.conf") } else { (HAPROXY, "haproxy.cfg") };
        let config = run.join(file);
        let port_text = port.to_string();
        self.render(template, &config, &run, &[("PORT", &port_text)])?;
        let path = config.display().to_string();
        let words = if is_nginx {
            // nginx's worker drops to another user when the master is root.
            let (folder, user) = (run.display().to_string(), nginx_user());
            let nginx = peer("nginx");
            [&nginx, "-p", &folder, "-c", &path, "-g", &user].map(str::to_owned).to_vec()
        } else {
            [&peer("haproxy"), "-db", "-f", &path].map(str::to_owned).to_vec()
        };
        let mut running = self.spawn(&words, start, name, format!("https://127.0.0.1:{port}"))?;
        running.run_dir = Some(run);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let running = wait_until(running, start, || TcpStream::connect(address).is_ok())?;
        if is_nginx { with_worker(running) } else { Ok(running) }
    }

    fn start_gateway(
        &self,
        system: System,
        set: FactsSet,
        start: &Start,
    ) -> anyhow::Result<Running> {
        let run = self.fresh_run_dir(system.as_str())?;
        self.render_gateway(&run.join("gateway.toml"), &run, system, set)?;
        self.start_in(&run, system, start)
    }

    fn render_gateway(
        &self,
        config: &Path,
        run: &Path,
        system: System,
        set: FactsSet,
    ) -> anyhow::Result<()> {
        let sockets = Sockets::of(&self.dir, set);
        let durability = if system == System::Durable { "before-response" } else { "async" };
        let key = |name: &str| fs::read_to_string(self.dir.join(format!("keys/feed-{name}.pub")));
        let (ca_key, hub_key) = (key("ca")?, key("hub")?);
        let (ca, hub) = (sockets.ca.display().to_string(), sockets.hub.display().to_string());
        let values = [
            ("DURABILITY", durability),
            ("CA", &ca),
            ("HUB", &hub),
            ("CA_KEY", &ca_key),
            ("HUB_KEY", &hub_key),
            ("ID_DOMAIN", fixture::ID_DOMAIN),
        ];
        self.render(GATEWAY, config, run, &values)
    }

    /// Starts a gateway by the configuration that stands in `run`.
    fn start_in(&self, run: &Path, system: System, start: &Start) -> anyhow::Result<Running> {
        let path = run.join("gateway.toml").display().to_string();
        let words = if matches!(system, System::Transport | System::Policy) {
            let stage = if system == System::Policy { "policy" } else { "transport" };
            let own = own_program()?;
            [&own, "stages", "--stage", stage, "--config", &path].map(str::to_owned).to_vec()
        } else {
            vec![program("sekisho-gateway")?, "--config".to_owned(), path]
        };
        let mut running = self.spawn(&words, start, system.as_str(), String::new())?;
        running.run_dir = Some(run.to_owned());
        let ready = run.join("ready.json");
        let mut running = wait_until(running, start, || ready.exists())?;
        running.url = format!("https://{}", public_address(&ready)?);
        Ok(running)
    }

    /// Starts the gateway's program with its facts kept on disk, for `set`, in a folder that
    /// [`Lab::start_keeping_again`] uses again.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub(crate) fn start_keeping(&self, set: FactsSet, start: &Start) -> anyhow::Result<Running> {
        let run = self.fresh_run_dir("keeping")?;
        let config = run.join("gateway.toml");
        self.render_gateway(&config, &run, System::Durable, set)?;
        let copy_key = run.join("facts-copy.key");
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy_key)?;
        fs::write(&copy_key, [5; 32])?;
        let (dir, key) = (run.join("facts"), copy_key.display());
        let more = format!("\n[facts_copy]\ndir = \"{}\"\nkey = \"{key}\"\n", dir.display());
        fs::write(&config, fs::read_to_string(&config)? + &more)?;
        self.start_in(&run, System::Durable, start)
    }

    /// Ends a gateway in good order and starts it again on what it has kept.
    ///
    /// # Errors
    /// As [`Lab::start`], and if it does not end.
    pub(crate) fn start_keeping_again(
        &self,
        mut running: Running,
        start: &Start,
    ) -> anyhow::Result<(Duration, Running)> {
        let began = Instant::now();
        running.end(rustix::process::Signal::TERM)?;
        let ending = began.elapsed();
        let run = running.run_dir.take().context("it has no folder of its own")?;
        Ok((ending, self.start_in(&run, System::Durable, start)?))
    }

    /// Where the back end listens.
    fn backend(&self) -> PathBuf {
        self.run_dir().join("backend.sock")
    }

    /// A new folder for one start, so that nothing of an earlier one is in it.
    fn fresh_run_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let number = next_number();
        let dir = self.run_dir().join(format!("{name}-{}-{number}", std::process::id()));
        let longest = dir.join("haproxy-master.sock").as_os_str().len();
        ensure!(
            longest <= SOCKET_PATH_BYTES_MAX,
            "`{}` is too long for unix sockets in it: name a folder whose path is shorter by {} \
             bytes",
            dir.display(),
            longest - SOCKET_PATH_BYTES_MAX
        );
        fs::create_dir_all(&dir).with_context(|| format!("folder `{}`", dir.display()))?;
        Ok(dir)
    }

    fn render(
        &self,
        template: &str,
        to: &Path,
        run: &Path,
        values: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let nofile = nofile.unwrap_or(NOFILE_MAX).min(NOFILE_MAX);
        let connections = nofile.saturating_sub(100).max(100).to_string();
        let folder = |name: &str| self.dir.join(name).display().to_string();
        let mut text = template
            .replace("@RUN@", &run.display().to_string())
            .replace("@PKI@", &folder("pki"))
            .replace("@KEYS@", &folder("keys"))
            .replace("@BACKEND@", &self.backend().display().to_string())
            .replace("@NOFILE@", &nofile.to_string())
            .replace("@CONNECTIONS@", &connections);
        for (name, value) in values {
            text = text.replace(&format!("@{name}@"), value.trim());
        }
        fs::write(to, text).with_context(|| format!("cannot write `{}`", to.display()))
    }

    fn spawn(
        &self,
        words: &[String],
        start: &Start,
        name: &str,
        url: String,
    ) -> anyhow::Result<Running> {
        let mut all = Vec::new();
        if let Some(cpu) = start.cpu {
            all.extend(["taskset".to_owned(), "-c".to_owned(), cpu.to_string()]);
        }
        all.extend(start.wrapper.iter().cloned());
        all.extend(words.iter().cloned());
        let log_path = self.run_dir().join(format!("{name}-{}.log", next_number()));
        let log = fs::File::create(&log_path)
            .with_context(|| format!("cannot write `{}`", log_path.display()))?;
        // Whatever becomes of us, what we started does not stay behind.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .args(&all)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal is for us; we end what we started.
            .process_group(0)
            .spawn()
            .context("cannot start `setpriv` of util-linux")?;
        let command = self.without_folders(&all.join(" "));
        Ok(Running { pid: child.id(), url, command, log: log_path, child, run_dir: None })
    }

    /// A command line as it is shown to others: programs by name, the fixture as FIXTURE.
    pub(crate) fn without_folders(&self, command: &str) -> String {
        let command = command.replace(&self.dir.display().to_string(), "FIXTURE");
        let words = command.split(' ').map(|word| match word.rsplit_once('/') {
            Some((_, last)) if word.starts_with('/') => last.to_owned(),
            Some(_) | None => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// In words, where the gateway is not set up as it is shipped.
    pub(crate) fn limits_changed(&self) -> Vec<String> {
        let (_, limits) = GATEWAY.split_once("[limits]").unwrap_or_default();
        let limits = limits.lines().filter(|line| line.contains('=')).map(str::to_owned);
        let durability = "durability = \"async\" in gateway-async; \"before-response\" is shipped";
        std::iter::once(durability.to_owned()).chain(limits).collect()
    }
}

/// Waits for `is_ready`; a process that ends meanwhile is told with what it wrote last.
fn wait_until(
    mut running: Running,
    start: &Start,
    is_ready: impl Fn() -> bool,
) -> anyhow::Result<Running> {
    let began = Instant::now();
    while !is_ready() {
        if let Some(status) = running.child.try_wait()? {
            bail!("it ended with {status}: {}", last_words(&running.log));
        }
        ensure!(
            began.elapsed() < start.ready_within,
            "it does not answer within {:?}: {}",
            start.ready_within,
            last_words(&running.log)
        );
        std::thread::sleep(POLL);
    }
    Ok(running)
}

/// The last line of a log, for the reader of an error.
fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    last.map_or_else(|| "it wrote nothing".to_owned(), str::to_owned)
}

/// Waits until the process has done what it does after its start, such as giving back the memory of
/// a snapshot: that is no cost of the first measurement.
pub(crate) fn settle(pid: u32) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut before = cpu::used(pid)?;
    while began.elapsed() < STILL_WITHIN {
        std::thread::sleep(STILL_FOR);
        let now = cpu::used(pid)?;
        if now.saturating_sub(before) <= STILL {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Numbers the starts of this process.
fn next_number() -> u64 {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    STARTED.fetch_add(1, Ordering::Relaxed)
}

fn wait_for_socket(running: Running, socket: &Path, start: &Start) -> anyhow::Result<Running> {
    let name = running.command.clone();
    wait_until(running, start, || UnixStream::connect(socket).is_ok())
        .with_context(|| format!("`{name}` does not start"))
}

/// nginx's one worker is the only child of its master.
fn with_worker(mut running: Running) -> anyhow::Result<Running> {
    let master = running.child.id();
    let path = format!("/proc/{master}/task/{master}/children");
    let began = Instant::now();
    loop {
        let children =
            fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
        if let Some(worker) = children.split_whitespace().next() {
            running.pid = worker.parse().context("nginx's worker")?;
            return Ok(running);
        }
        ensure!(began.elapsed() < ENDS_WITHIN, "nginx has no worker");
        std::thread::sleep(POLL);
    }
}

fn public_address(ready: &Path) -> anyhow::Result<String> {
    let ready: serde_json::Value = serde_json::from_str(&fs::read_to_string(ready)?)?;
    let address = ready.pointer("/addresses/public").and_then(serde_json::Value::as_str);
    address.map(str::to_owned).context("the ready file names no public address")
}

/// A port that nobody listens on this moment.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// When the master is root, its worker stays root, so that it may read the fixture's keys and
/// reach the back end wherever the fixture lies.
fn nginx_user() -> String {
    if rustix::process::geteuid().is_root() { "user root;".to_owned() } else { String::new() }
}

/// This program, for the parts of the lab that it plays itself.
fn own_program() -> anyhow::Result<String> {
    program("sekisho-bench")
}

/// Debian keeps servers where the PATH of others than root does not lead.
pub(crate) fn peer(name: &str) -> String {
    let path = format!("/usr/sbin/{name}");
    if Path::new(&path).is_file() { path } else { name.to_owned() }
}

/// A program that was built beside this one. (Tests run from the folder `deps` below.)
pub(crate) fn program(name: &str) -> anyhow::Result<String> {
    let own = std::env::current_exe().context("where is this program?")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .map(|path| path.display().to_string())
        .with_context(|| {
            format!("`{name}` is not built beside this program: run `cargo build --release`")
        })
}

const NGINX: &str = include_str!("../../peers/nginx.conf");
const HAPROXY: &str = include_str!("../../peers/haproxy.cfg");
const GATEWAY: &str = include_str!("../../peers/gateway.toml");
/// `sun_path` of unix(7) without its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A process that has used no more CPU time than this for a while has nothing left to do: one tick
/// of the kernel's clock.
const STILL: Duration = Duration::from_millis(10);
const STILL_FOR: Duration = Duration::from_millis(300);
const STILL_WITHIN: Duration = Duration::from_secs(10);
/// As many files as a system needs for the largest measurement.
const NOFILE_MAX: u64 = 65_536;
const POLL: Duration = Duration::from_millis(10);
const ENDS_WITHIN: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command as Said};
    use crate::client::{Ask, Server};
    use crate::credentials::{self, Http, Terminal};
    use crate::lab::Scale;

    const SCALE: Scale = Scale { terminals: 3, offices: 5, registrations: 20, revocations: 10 };

    fn terminals(lab: &Lab, url: &str) -> (crate::cli::TargetArgs, Vec<Terminal>) {
        let (certs, trust) = (lab.terminals(), lab.trust());
        let line = format!(
            "sekisho-bench run --target {url} --certs {} --trust {} --group x25519",
            certs.display(),
            trust.display()
        );
        let Said::Run(run) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("the line says `run`")
        };
        let args = run.target;
        let terminals = credentials::read(&args).unwrap();
        (args, terminals)
    }

    /// The status that terminal `number` gets on a new connection.
    async fn status(lab: &Lab, url: &str, number: usize) -> Result<u16, String> {
        let (args, terminals) = terminals(lab, url);
        let server = Server::find(&args.target, 1).await.unwrap();
        let terminal = &terminals[number];
        let ask = Ask::get(&server, terminal).unwrap();
        let mut connection = server.connect(&terminal.settings(Http::One), Http::One, 0).await?;
        connection.ask(&ask).await.map(|answer| answer.status)
    }

    fn is_installed(system: System) -> bool {
        match system {
            System::Nginx | System::Haproxy => {
                let path = std::env::var("PATH").unwrap_or_default();
                let found = path
                    .split(':')
                    .chain(["/usr/sbin"])
                    .any(|folder| Path::new(folder).join(system.as_str()).is_file());
                if !found {
                    println!("{} is not installed here: not started", system.as_str());
                }
                found
            }
            System::Transport | System::Policy | System::Async | System::Durable => true,
        }
    }

    #[tokio::test]
    async fn every_system_answers_a_terminal_through_the_same_back_end() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::make(dir.path(), &SCALE).unwrap();
        let _backend = lab.start_backend(&Start::default()).unwrap();
        let _facts = lab.start_facts(FactsSet::Full, &Start::default()).unwrap();
        for system in System::ALL.into_iter().filter(|system| is_installed(*system)) {
            let running = lab.start(system, FactsSet::Full, &Start::default()).unwrap();
            let answered = status(&lab, &running.url, 1).await;
            assert_eq!(answered, Ok(200), "{}", system.as_str());
            let pid = running.pid;
            assert!(cpu::used(pid).is_ok(), "{}", system.as_str());
            assert!(!running.command.contains(&*dir.path().to_string_lossy()));
            running.stop().unwrap();
            assert!(cpu::used(pid).is_err(), "{} is still there", system.as_str());
        }
    }

    #[tokio::test]
    async fn a_revoked_terminal_is_refused_and_the_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::make(dir.path(), &SCALE).unwrap();
        let _backend = lab.start_backend(&Start::default()).unwrap();
        let _facts = lab.start_facts(FactsSet::Bare, &Start::default()).unwrap();
        let running = lab.start(System::Async, FactsSet::Bare, &Start::default()).unwrap();
        assert_eq!(status(&lab, &running.url, 0).await, Ok(200));
        let serial = hex::encode(fixture::serial(0));
        Sockets::of(&lab.dir, FactsSet::Bare).tell(&format!("revoke {serial}")).unwrap();
        let refused = async {
            while status(&lab, &running.url, 0).await == Ok(200) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap();
        assert_eq!(status(&lab, &running.url, 1).await, Ok(200));
    }

    #[test]
    fn a_fixture_of_the_same_scale_is_used_again_and_foreign_folders_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::make(dir.path(), &SCALE).unwrap();
        let key = lab.terminals().join("00000/key.pem");
        let first = fs::read(&key).unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o077, 0);
        Lab::make(dir.path(), &SCALE).unwrap();
        assert_eq!(fs::read(&key).unwrap(), first);
        Lab::make(dir.path(), &Scale { revocations: 11, ..SCALE }).unwrap();
        assert_ne!(fs::read(&key).unwrap(), first);
        let foreign = tempfile::tempdir().unwrap();
        let letter = foreign.path().join("terminals/letter");
        fs::create_dir(foreign.path().join("terminals")).unwrap();
        fs::write(&letter, "dear").unwrap();
        let problem = Lab::make(foreign.path(), &SCALE).unwrap_err();
        assert!(problem.to_string().contains("something else"), "{problem}");
        assert!(letter.exists());
    }

    #[test]
    fn a_program_that_does_not_come_up_is_told_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::make(dir.path(), &SCALE).unwrap();
        // No publisher of facts runs, and a gateway without facts is not ready.
        let start = Start { ready_within: Duration::from_secs(3), ..Start::default() };
        let problem = lab.start(System::Async, FactsSet::Bare, &start).unwrap_err();
        let told = format!("{problem:#}");
        assert!(told.contains("does not answer within 3s"), "{told}");
        assert!(told.contains("cannot reach the feed"), "{told}");
    }
}
