//! One run of the suite at work: starts the other commands of this program as processes pinned to
//! the load core, reads their answers, remembers what failed and how everything was called.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::macros::format_description;

use super::results::{Failed, Part, Pins};
use crate::lab::{FactsSet, Lab, Running, Start, System};

/// What all measurements need.
pub(crate) struct Session {
    /// Nothing, if it could not be made.
    lab: Option<Lab>,
    /// The folder for everything that is made on the way.
    pub(crate) work: PathBuf,
    pub(crate) pins: Pins,
    pub(crate) quick: bool,
    /// The run's name, in every round.
    pub(crate) run: String,
    pub(crate) terminals: usize,
    pub(crate) failed: Vec<Failed>,
    pub(crate) commands: Vec<String>,
    pub(crate) parts: Vec<Part>,
    program: PathBuf,
    began: Instant,
}

impl Session {
    /// # Errors
    /// If this program does not know where it is.
    pub(crate) fn new(
        lab: Option<Lab>,
        work: PathBuf,
        pins: Pins,
        quick: bool,
        terminals: usize,
    ) -> anyhow::Result<Self> {
        let mut chance = [0u8; 8];
        aws_lc_rs::rand::fill(&mut chance)?;
        let program = std::env::current_exe().context("this program does not know its own file")?;
        Ok(Self {
            lab,
            work,
            pins,
            quick,
            run: hex::encode(chance),
            terminals,
            failed: Vec::new(),
            commands: Vec::new(),
            parts: Vec::new(),
            program,
            began: Instant::now(),
        })
    }

    /// Terminals, facts and systems.
    ///
    /// # Errors
    /// If they could not be made.
    pub(crate) fn lab(&self) -> anyhow::Result<&Lab> {
        self.lab.as_ref().context("there are no terminals and facts")
    }

    /// A progress line with the time so far.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("[{:>4} s] {text}", self.began.elapsed().as_secs());
    }

    /// Remembers that something could not be measured.
    pub(crate) fn fail(&mut self, what: &str, why: &anyhow::Error) {
        let why = self.shown(&format!("{why:#}"));
        self.say(&format!("{what}: FAILED: {why}"));
        let failed = Failed { what: what.to_owned(), why };
        if !self.failed.contains(&failed) {
            self.failed.push(failed);
        }
    }

    /// Does one part, and notes how long it took. A part that fails is noted, and the next begins.
    pub(crate) fn part(
        &mut self,
        name: &str,
        budget: Duration,
        work: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) {
        if stopped() {
            self.fail(name, &anyhow::anyhow!("the run was ended before it"));
            return;
        }
        self.say(&format!("-- {name} (budget {} s)", budget.as_secs()));
        let began = Instant::now();
        if let Err(error) = work(self) {
            self.fail(name, &error);
        }
        let (part, budget_seconds) = (name.to_owned(), budget.as_secs());
        self.parts.push(Part { part, budget_seconds, seconds: began.elapsed().as_secs_f64() });
    }

    /// Starts a system on the server's core.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub(crate) fn start(&mut self, system: System, set: FactsSet) -> anyhow::Result<Running> {
        let options = Start::on(self.pins.server_cpu);
        let running = self
            .lab()?
            .start(system, set, &options)
            .with_context(|| format!("{} does not start", system.as_str()))?;
        let command = running.command.clone();
        self.note(&command);
        Ok(running)
    }

    /// Starts the facts publisher on the load core.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub(crate) fn start_facts(&mut self, set: FactsSet) -> anyhow::Result<Running> {
        let running = self.lab()?.start_facts(set, &Start::on(self.pins.load_cpu))?;
        let command = running.command.clone();
        self.note(&command);
        Ok(running)
    }

    /// Starts the back end on the load core.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub(crate) fn start_backend(&mut self) -> anyhow::Result<Running> {
        let running = self.lab()?.start_backend(&Start::on(self.pins.load_cpu))?;
        let command = running.command.clone();
        self.note(&command);
        Ok(running)
    }

    /// Has `command` load the server at `url` with terminals of the fixture; reads its answer.
    ///
    /// # Errors
    /// If the command fails, takes too long, or answers something else.
    pub(crate) fn load<T: DeserializeOwned>(
        &mut self,
        command: &str,
        url: &str,
        more: &[String],
        within: Duration,
    ) -> anyhow::Result<T> {
        let terminals = self.lab()?.terminals().display().to_string();
        let trust = self.lab()?.trust().display().to_string();
        let mut args = words(&[command, "--target", url, "--certs", &terminals]);
        args.extend(words(&["--trust", &trust]));
        args.extend_from_slice(more);
        args.push("--json".to_owned());
        let load_cpu = self.pins.load_cpu;
        self.answer(&args, Some(load_cpu), within)
    }

    /// Runs another command of this program and reads its answer.
    ///
    /// # Errors
    /// If the command fails, takes too long, or answers something else.
    pub(crate) fn answer<T: DeserializeOwned>(
        &mut self,
        args: &[String],
        cpu: Option<usize>,
        within: Duration,
    ) -> anyhow::Result<T> {
        let program = self.program.clone();
        let text = self.output(&program, args, cpu, within)?;
        let name = args.first().map_or("", String::as_str);
        serde_json::from_str(&text)
            .with_context(|| format!("`sekisho-bench {name}` answered something else"))
    }

    /// Runs a program to its end and reads what it printed.
    ///
    /// # Errors
    /// If it fails or takes too long.
    pub(crate) fn output(
        &mut self,
        program: &Path,
        args: &[String],
        cpu: Option<usize>,
        within: Duration,
    ) -> anyhow::Result<String> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pinned = cpu.map_or(String::new(), |cpu| format!("taskset -c {cpu} "));
        self.note(&format!("{pinned}{name} {}", quoted(args)));
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", &cpu.to_string()]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let (said, told) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.args(args).stdin(Stdio::null());
        command.stdout(said.try_clone()?).stderr(told.try_clone()?);
        let mut child = command.spawn().context("cannot start a process (is taskset there?)")?;
        let first = args.first().map_or("", String::as_str);
        let status = wait(&mut child, within).with_context(|| format!("`{name} {first}`"))?;
        let told = text(told)?;
        if !status.success() {
            anyhow::bail!("`{name} {first}` failed ({status}): {}", complaint(&told));
        }
        text(said)
    }

    /// The same, also when the run was asked to end: what was started is stopped.
    ///
    /// # Errors
    /// If it fails or takes too long.
    pub(crate) fn output_always(
        &mut self,
        program: &Path,
        args: &[String],
        within: Duration,
    ) -> anyhow::Result<String> {
        let asked = STOPPED.swap(false, Ordering::Relaxed);
        let output = self.output(program, args, None, within);
        STOPPED.fetch_or(asked, Ordering::Relaxed);
        output
    }

    /// The program beside this one.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.program.with_file_name(name)
    }

    /// This program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Remembers how something was called, once.
    fn note(&mut self, command: &str) {
        let shown = self.shown(command);
        if !self.commands.contains(&shown) {
            self.commands.push(shown);
        }
    }

    /// Without paths of this machine and what differs from call to call.
    fn shown(&self, text: &str) -> String {
        let work = self.work.display().to_string();
        let fixture = fixture_dir(&self.work, self.quick).display().to_string();
        let programs = self.program.parent().map(|dir| format!("{}/", dir.display()));
        let text = text.replace(&fixture, "FIXTURE").replace(&work, "WORK");
        let text = programs.map_or(text.clone(), |programs| text.replace(&programs, ""));
        let text = without_numbers(&text, std::process::id());
        let words: Vec<&str> = text.split(' ').collect();
        let shown = words.iter().enumerate().map(|(at, word)| {
            match at.checked_sub(1).and_then(|before| words.get(before)) {
                Some(&"--pid") => "PID",
                Some(&"--certs-from") => "N",
                Some(&"--rate") => "RATE",
                Some(&"--target") if word.starts_with("https://127.0.0.1:") => {
                    "https://127.0.0.1:PORT"
                }
                Some(&"--target") if word.starts_with("https://localhost:") => {
                    "https://localhost:PORT"
                }
                _ => word,
            }
        });
        shown.collect::<Vec<_>>().join(" ")
    }
}

/// The folder of terminals, facts and systems; one of each scale, so that neither is made anew
/// after a run of the other kind.
pub(crate) fn fixture_dir(work: &Path, quick: bool) -> PathBuf {
    work.join(if quick { "fixture-quick" } else { "fixture" })
}

/// Asks the run to end soon, in good order.
pub(crate) fn stop() {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Whether the run was asked to end.
pub(crate) fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Arguments from words.
pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The moment, as results files have it.
pub(crate) fn now() -> String {
    let form =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::now_utc().format(&form).unwrap_or_default()
}

/// Every start has a folder of its own, named by this process and a number: not told.
fn without_numbers(text: &str, process: u32) -> String {
    let mark = format!("-{process}-");
    let mut parts = text.split(&mark);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    shown
}

/// Waits for the child's end; kills it when its time is over or the run is.
fn wait(child: &mut Child, within: Duration) -> anyhow::Result<ExitStatus> {
    let until = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let (late, ended) = (Instant::now() >= until, stopped());
        if late || ended {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            child.wait()?;
            let why = if late { "was not done in time" } else { "was ended with the run" };
            anyhow::bail!("{why}; it had {} s", within.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// What a child wrote into the file that it was given.
fn text(mut file: File) -> anyhow::Result<String> {
    use std::io::Seek as _;
    file.rewind()?;
    let mut text = String::new();
    file.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The line that says what went wrong: the last error, or else the last line.
fn complaint(told: &str) -> &str {
    let last = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
    told.lines().rfind(|line| line.starts_with("error")).unwrap_or(last)
}

fn quoted(args: &[String]) -> String {
    let quoted = args
        .iter()
        .map(|arg| if arg.contains([' ', '{']) { format!("'{arg}'") } else { arg.clone() });
    quoted.collect::<Vec<_>>().join(" ")
}

static STOPPED: AtomicBool = AtomicBool::new(false);
const POLL: Duration = Duration::from_millis(5);
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_takes_too_long_is_ended_and_told() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let error = wait(&mut child, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("in time"), "{error}");
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn the_error_is_told_rather_than_the_hint_below_it() {
        assert_eq!(
            complaint("a\nerror: no such argument\n\nFor more, try --help\n"),
            "error: no such argument"
        );
        assert_eq!(complaint("one\ntwo\n\n"), "two");
    }

    #[test]
    fn folders_of_single_starts_are_told_alike() {
        let told = without_numbers("nginx -p run/nginx-77-10 -c run/nginx-77-10/nginx.conf", 77);
        assert_eq!(told, "nginx -p run/nginx -c run/nginx/nginx.conf");
        assert_eq!(without_numbers("run --requests 10", 77), "run --requests 10");
    }

    #[test]
    fn moments_are_read_back() {
        use time::format_description::well_known::Rfc3339;
        let age = OffsetDateTime::now_utc() - OffsetDateTime::parse(&now(), &Rfc3339).unwrap();
        assert!(age.abs() < time::Duration::minutes(1));
    }
}
