//! Finding and running programs: ours from the build folder of this test, others from the machine.
//!
//! Every run has a time limit, kept by `timeout` of coreutils, and no standard input.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long one command may take, in seconds.
const COMMAND_SECONDS_MAX: u32 = 180;

/// What a finished command left behind.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; 124 when the time limit passed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// The command itself, if it exited with 0; stops the test otherwise.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// Stops the test unless the command exited with `code` and told the user what is wrong: at
    /// least one line that holds every one of `words`, and no panic.
    pub fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self}");
        self.no_panic();
        let told = self.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(told, "no line on stderr holds all of {words:?}\n{self}");
    }

    /// Stops the test if the command panicked or printed a stack trace.
    pub fn no_panic(&self) {
        for sign in ["panicked at", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!self.stderr.contains(sign), "{self}");
        }
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON: {e}\n{self}"))
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "{command}: exit {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// The path of one of our programs, built into the same folder as this test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps");
    let path = profile.join(name);
    assert!(path.is_file(), "{} is not built: run `make test`", path.display());
    path
}

/// Runs a command to its end.
pub fn run<I, S>(program: impl AsRef<OsStr>, args: I) -> Ran
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(COMMAND_SECONDS_MAX.to_string());
    command.arg(program).args(args).stdin(Stdio::null());
    let line = format!("{command:?}");
    let output = command.output().unwrap_or_else(|e| panic!("{line}: {e}"));
    Ran {
        command: line,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the operator command.
pub fn sekisho<I, S>(args: I) -> Ran
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    run(program("sekisho"), args)
}

/// Looks every 50 ms until `look` finds something; stops the test after `seconds_max`.
pub fn wait_until<T>(what: &str, seconds_max: u64, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds_max);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {seconds_max} s in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
