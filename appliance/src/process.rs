//! One program as a process: start it, wait until it says that it is ready, end it.
//!
//! The standard input of every part is a pipe held by the supervisor: when the supervisor dies,
//! however it dies, the parts read its end and leave (`--supervised`).

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use command_fds::{CommandFdExt as _, FdMapping};
use serde_json::Value;
use tokio::process::{Child, ChildStdin, Command};

use crate::exit::{BAD_USAGE, usage};
use crate::layout::{Layout, Part};

/// How one part is started.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Its name in the supervisor's record.
    pub(crate) name: &'static str,
    /// What it is called in messages.
    pub(crate) title: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    ready_file: PathBuf,
    log: PathBuf,
    /// Listening sockets that it gets: held here, they outlive the process, so that a restart
    /// refuses nobody and a successor can take a process's place.
    sockets: Arc<[TcpListener]>,
}

/// A started part.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process.
    pub(crate) child: Child,
    /// Its standard input, held apart because waiting for a child closes its own.
    input: Option<ChildStdin>,
    /// When it was started.
    pub(crate) started: Instant,
    log_offset: u64,
}

impl Spec {
    /// The program lies beside this one.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn new(layout: &Layout, part: Part) -> anyhow::Result<Self> {
        Ok(Self {
            name: part.as_str(),
            title: part.program(),
            program: program(part.program())?,
            arguments: vec!["--config".into(), layout.config(part).into(), "--supervised".into()],
            ready_file: layout.ready_file(part),
            log: layout.log(part),
            sockets: Arc::default(),
        })
    }

    /// The process gets these listening sockets (`LISTEN_FDS`, in their order).
    pub(crate) fn with_sockets(self, sockets: Vec<TcpListener>) -> Self {
        Self { sockets: sockets.into(), ..self }
    }

    /// `sekisho audit push --follow`: brings the heads of the audit logs out of the box.
    ///
    /// # Errors
    /// When the own program file is not known.
    pub(crate) fn head_bringer(layout: &Layout) -> anyhow::Result<Self> {
        let words = ["audit", "push", "--follow", "--supervised", "--data"];
        let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        arguments.push(layout.root().into());
        Ok(Self {
            name: HEAD_BRINGER,
            title: "sekisho audit push",
            program: std::env::current_exe().context("own program file is not known")?,
            arguments,
            ready_file: layout.run(&format!("{HEAD_BRINGER}.ready.json")),
            log: layout.run(&format!("{HEAD_BRINGER}.log")),
            sockets: Arc::default(),
        })
    }

    /// Starts the process, in its own process group so that a terminal's Ctrl-C reaches only the
    /// supervisor.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn(&self) -> anyhow::Result<Running> {
        if self.ready_file.exists() {
            std::fs::remove_file(&self.ready_file)
                .with_context(|| format!("file `{}`", self.ready_file.display()))?;
        }
        self.spawn_with(&[])
    }

    /// Starts a process that takes the place of the one that runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn_successor(&self) -> anyhow::Result<Running> {
        self.spawn_with(&["--take-over"])
    }

    fn spawn_with(&self, more: &[&str]) -> anyhow::Result<Running> {
        let (log, log_offset) = open_log(&self.log)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        if !self.sockets.is_empty() {
            self.give_sockets(&mut command)?;
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("program `{}` cannot be started", self.program.display()))?;
        let input = child.stdin.take();
        Ok(Running { child, input, started: Instant::now(), log_offset })
    }

    fn give_sockets(&self, command: &mut Command) -> anyhow::Result<()> {
        let mapped = (FIRST_SOCKET..).zip(self.sockets.iter()).map(|(child_fd, socket)| {
            Ok(FdMapping { parent_fd: socket.try_clone()?.into(), child_fd })
        });
        let mapped: Vec<FdMapping> = mapped.collect::<std::io::Result<_>>()?;
        command.env("LISTEN_FDS", mapped.len().to_string()).env_remove("LISTEN_PID");
        command.fd_mappings(mapped).context("listening sockets cannot be given")?;
        Ok(())
    }

    /// Asks the program whether its configuration is good.
    ///
    /// # Errors
    /// With every line of what is wrong.
    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        let arguments = self.arguments.iter().filter(|word| *word != "--supervised");
        let output = Command::new(&self.program).args(arguments).arg("--check-config").output();
        let output = output
            .await
            .with_context(|| format!("program `{}` cannot be started", self.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(usage(last_error_line(&told).unwrap_or_else(|| output.status.to_string())))
    }

    /// Waits until the process is ready; returns the addresses that it tells.
    ///
    /// # Errors
    /// When it ends first or is not ready after [`READY_TIMEOUT`]; with its last error line.
    pub(crate) async fn ready(&self, running: &mut Running) -> anyhow::Result<Value> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(status) = running.child.try_wait()? {
                let how = self.how_it_ended(status, running);
                let bad_usage = status.code() == Some(i32::from(BAD_USAGE));
                return Err(if bad_usage { usage(how) } else { anyhow::anyhow!(how) });
            }
            if let Some(addresses) = self.told_addresses(running.child.id()) {
                return Ok(addresses);
            }
            if Instant::now() >= deadline {
                anyhow::bail!(
                    "{} was not ready after {} s: {}",
                    self.title,
                    READY_TIMEOUT.as_secs(),
                    self.last_words(running)
                );
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    fn told_addresses(&self, pid: Option<u32>) -> Option<Value> {
        let text = std::fs::read_to_string(&self.ready_file).ok()?;
        let told: Value = serde_json::from_str(&text).ok()?;
        let same = told.get("pid").and_then(Value::as_u64) == pid.map(u64::from);
        same.then(|| told.get("addresses").cloned().unwrap_or(Value::Null))
    }

    /// How the process ended, with its last error line.
    pub(crate) fn how_it_ended(&self, status: ExitStatus, running: &Running) -> String {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        if status.code().is_some() {
            format!("{} ended ({how}): {}", self.title, self.last_words(running))
        } else {
            format!("{} ended ({how})", self.title)
        }
    }

    fn last_words(&self, running: &Running) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(running.log_offset).unwrap_or_default();
        let text = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
        last_error_line(&text).unwrap_or_else(|| format!("see `{}`", self.log.display()))
    }
}

impl Running {
    /// Ends the process: its input is closed and it gets SIGTERM; SIGKILL after
    /// [`STOP_TIMEOUT`]. Returns whether it ended by itself.
    pub(crate) async fn stop(mut self) -> bool {
        drop(self.input.take());
        signal(self.child.id(), rustix::process::Signal::TERM);
        self.leave().await
    }

    /// Waits until the process has ended by itself; SIGKILL after [`STOP_TIMEOUT`]. Returns whether
    /// it did.
    pub(crate) async fn leave(mut self) -> bool {
        let ended = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_ok();
        if !ended {
            let _already_gone = self.child.kill().await;
        }
        ended
    }
}

/// Sends a signal to a process; a process that is gone is no error.
pub(crate) fn signal(pid: Option<u32>, signal: rustix::process::Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _already_gone = rustix::process::kill_process(pid, signal);
    }
}

/// The file name of the program that a process runs, also where that file was replaced since;
/// `None` when there is no such process of ours.
pub(crate) fn program_of(pid: u32) -> Option<String> {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = program.file_name()?.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// Whether a path stands among the arguments of a process.
pub(crate) fn has_argument(pid: u32, path: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = std::fs::canonicalize(path).ok();
    let mut given = line.split(|byte| *byte == 0).map(|word| Path::new(OsStr::from_bytes(word)));
    wanted.is_some() && given.any(|given| std::fs::canonicalize(given).ok() == wanted)
}

/// Whether a word stands among the arguments of a process.
pub(crate) fn has_word(pid: u32, word: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|given| given == word.as_bytes())
}

/// A program of the box, beside this one.
///
/// # Errors
/// When it is not there.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("own program file is not known")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.is_file(),
        "program `{}` is missing: build or install it beside `{}`",
        path.display(),
        own.display()
    );
    Ok(path)
}

/// Opens a log for appending, mode 0600; one beyond [`LOG_BYTES_MAX`] is first put aside as `.1`.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open_log(path: &Path) -> anyhow::Result<(std::fs::File, u64)> {
    let unusable = || format!("log file `{}` cannot be written", path.display());
    let length = std::fs::metadata(path).map(|found| found.len()).unwrap_or_default();
    if length > LOG_BYTES_MAX {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        std::fs::rename(path, aside).with_context(unusable)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(unusable)?;
    let offset = file.metadata().with_context(unusable)?.len();
    Ok((file, offset))
}

/// The last lines of a log that tell of an error: every `error: …` line at its end, else the
/// message of a JSON line of level ERROR, else what a panic said, else the last line.
pub(crate) fn last_error_line(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let plain: Vec<&str> = lines
        .iter()
        .rev()
        .skip_while(|line| !line.starts_with("error: "))
        .map_while(|line| line.strip_prefix("error: "))
        .collect();
    if !plain.is_empty() {
        return Some(plain.into_iter().rev().collect::<Vec<_>>().join("; "));
    }
    let panicked = || {
        let at = lines.iter().rposition(|line| line.contains("panicked at "))?;
        lines.get(at + 1).map(|said| format!("it broke off: {said}"))
    };
    let of_json = lines.iter().rev().find_map(|line| error_of_json(line));
    of_json.or_else(panicked).or_else(|| lines.last().map(|line| (*line).to_owned()))
}

fn error_of_json(line: &str) -> Option<String> {
    let record: Value = serde_json::from_str(line).ok()?;
    let is_error = record.get("level").and_then(Value::as_str) == Some("ERROR");
    let message = record.get("fields").and_then(|fields| fields.get("message"));
    is_error.then(|| message.and_then(Value::as_str).unwrap_or(line).to_owned())
}

/// The name of `sekisho audit push` among the parts.
pub(crate) const HEAD_BRINGER: &str = "audit-push";

/// How long a part may take to become ready.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the ready file is looked for.
const READY_POLL: Duration = Duration::from_millis(30);

/// The first inherited socket's number (`sd_listen_fds(3)`).
const FIRST_SOCKET: std::os::fd::RawFd = 3;

/// How long a part may take to end.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A log longer than this is put aside at the next start, in bytes.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_line_is_found_among_json_lines() {
        for (name, log, expected) in [
            (
                "plain",
                "{\"level\":\"INFO\"}\nerror: no key `x`\n{\"level\":\"INFO\"}\n",
                "no key `x`",
            ),
            ("json", "{\"level\":\"ERROR\",\"fields\":{\"message\":\"boom\"}}\n{}\n", "boom"),
            ("several", "x\nerror: a\nerror: b\n", "a; b"),
            ("panic", "thread 'main' panicked at a.rs:1:2:\nboom\nnote: x\n", "it broke off: boom"),
            ("other", "Illegal instruction\n\n", "Illegal instruction"),
        ] {
            assert_eq!(last_error_line(log).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(last_error_line(""), None);
    }

    #[test]
    fn a_process_is_known_by_its_program_and_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (folder.path().join("ra.toml"), folder.path().join("hub.toml"));
        std::fs::write(&own, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let mut child = std::process::Command::new("tail")
            .arg("-f")
            .arg(&own)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        // The kernel shows the arguments a moment after the program has started.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !has_argument(pid, &own) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let found = (program_of(pid), has_argument(pid, &own), has_argument(pid, &other));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found.1, found.2), (true, false), "{:?}", found.0);
        assert!(found.0.is_some() && program_of(pid).is_none());
    }

    #[test]
    fn a_long_log_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.log");
        std::fs::File::create(&path).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        let (_, offset) = open_log(&path).unwrap();
        assert_eq!(offset, 0);
        assert!(folder.path().join("hub.log.1").exists());
    }
}
