//! Runs a program under callgrind and reads how many instructions it counted.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The function whose instructions count, with everything that it calls.
///
/// Never inlined, and no other function has these words in its name: callgrind would toggle there.
#[inline(never)]
pub(super) fn counted_by_callgrind(step: &mut dyn FnMut()) {
    step();
    // Work after the call keeps it from becoming a jump.
    std::hint::black_box(());
}

/// Its name, however it is mangled.
const COUNTED: &str = "*counted_by_callgrind*";

/// AWS-LC takes randomness from RDRAND where the CPU has it: a feature that valgrind passes on from
/// the machine below. Masked out, the same instructions run on all machines.
const CPU_MASK: &str = "OPENSSL_ia32cap=~0x4000000000000000:~0x40000";

/// What a gateway does by the clock and not for a request: under callgrind it would do it for fewer
/// requests each time the machine is busy. A name that is no more only makes counts less even.
const BY_THE_CLOCK: [&str; 4] = [
    // the signature of a feed's heartbeat
    "policies::feed::Subscriber::accept",
    // the signed head of the audit log, each second
    "audit_log::writer::Writer::checkpoint",
    // ticks of 10 ms
    "pingora_timeout::timer::TimerManager::clock_thread",
    // AWS-LC's first seed, from how uneven the CPU's time is
    "tree_jitter_initialize_once",
];

/// valgrind and its arguments, to be put before a program of which everything counts, except for
/// what is done by the clock.
pub(super) fn wrapper(counts: &Path) -> Vec<String> {
    let mut words = bare_wrapper(counts);
    words.extend(BY_THE_CLOCK.iter().map(|name| format!("--toggle-collect={name}")));
    // Functions to toggle at make callgrind begin without counting.
    words.push("--collect-atstart=yes".to_owned());
    words
}

fn bare_wrapper(counts: &Path) -> Vec<String> {
    vec![
        "env".to_owned(),
        CPU_MASK.to_owned(),
        "valgrind".to_owned(),
        "--quiet".to_owned(),
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", counts.display()),
    ]
}

/// Counts `case`, done `iterations` times by this program.
pub(super) fn count_case(case: &str, iterations: u64) -> Result<u64> {
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let counts = dir.path().join("counts");
    let mut wrapper = bare_wrapper(&counts);
    wrapper.push(format!("--toggle-collect={COUNTED}"));
    let iterations = iterations.to_string();
    run(&wrapper, &["gate", "--case", case, "--iterations", &iterations])?;
    read(&counts)
}

/// What this program, under valgrind, answers to `arguments`.
pub(super) fn run(wrapper: &[String], arguments: &[&str]) -> Result<String> {
    let this = std::env::current_exe().context("cannot tell which program this is")?;
    let (program, before) = wrapper.split_first().context("no wrapper")?;
    let output = Command::new(program)
        .args(before)
        .arg(this)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot start `valgrind`: install it (apt-get install valgrind)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        bail!("`{}` under valgrind ended with {}: {last}", arguments.join(" "), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The counts that callgrind wrote when its program ended.
pub(super) fn read(counts: &Path) -> Result<u64> {
    let text = fs::read_to_string(counts)
        .with_context(|| format!("callgrind wrote no counts to `{}`", counts.display()))?;
    total(&text).context("callgrind's file has no one line `totals:` with a count")
}

/// The total of a file in callgrind's format.
fn total(text: &str) -> Option<u64> {
    let mut totals = text.lines().filter_map(|line| line.strip_prefix("totals:"));
    let total = totals.next()?.trim().parse().ok()?;
    totals.next().is_none().then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_and_nothing_else() {
        let text = "version: 1\nevents: Ir\nsummary: 12\n\nfn=(1) a\n1 12\n\ntotals: 12\n";
        assert_eq!(total(text), Some(12));
        for bad in
            ["", "summary: 12", "totals:", "totals: x", "totals: 1 2", "totals: 1\ntotals: 2"]
        {
            assert_eq!(total(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_counted_is_also_done() {
        let mut done = 0;
        counted_by_callgrind(&mut || done += 1);
        assert_eq!(done, 1);
    }

    #[test]
    fn a_program_that_cannot_be_started_is_one_clear_error() {
        let error = run(&["no-such-valgrind".to_owned()], &[]).unwrap_err();
        assert!(format!("{error:#}").contains("install it"), "{error:#}");
        let error = run(&["false".to_owned()], &["gate"]).unwrap_err();
        assert!(format!("{error:#}").contains("`gate` under valgrind ended"), "{error:#}");
    }
}
