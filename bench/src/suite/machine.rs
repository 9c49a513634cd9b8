//! What one has to know of the machine and the programs to read a figure. Nothing in it names the
//! machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::results::Machine;

/// The machine as it is now.
pub(crate) fn facts() -> Machine {
    let cpu_info = read("/proc/cpuinfo");
    Machine {
        cpu: field(&cpu_info, "model name").unwrap_or("unknown").to_owned(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
            .unwrap_or_default()
            * 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        virtualised: virtualised(&cpu_info),
        open_files_max: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
        load_average_before: load_average(),
        load_average_after: None,
        stolen_percent: None,
    }
}

/// Takes as many open files as the machine permits, for this process and those it starts: ten
/// thousand connections need as many.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, the measurements with many connections tell so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The mean number of runnable tasks of the last minute.
pub(crate) fn load_average() -> Option<f64> {
    read("/proc/loadavg").split(' ').next()?.parse().ok()
}

/// Ticks of all cores so far, and those of them that the hypervisor gave to others.
pub(crate) fn ticks() -> Option<(u64, u64)> {
    let stat = read("/proc/stat");
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|tick| tick.parse().ok()).collect();
    // Guest time (from the ninth on) is part of user time already.
    Some((ticks.iter().take(8).sum(), *ticks.get(7)?))
}

/// The share of stolen time between two readings, percent.
pub(crate) fn stolen_percent(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<f64> {
    let ((all_before, stolen_before), (all, stolen)) = (before?, after?);
    let all = all.checked_sub(all_before).filter(|all| *all > 0)?;
    Some(stolen.saturating_sub(stolen_before) as f64 * 100.0 / all as f64)
}

/// Versions of everything that took part.
pub(crate) fn software(program: &Path) -> BTreeMap<String, String> {
    let beside = |name: &str| program.with_file_name(name).display().to_string();
    let asked: [(&str, &str, &[&str]); 6] = [
        ("rustc", "rustc", &["--version"]),
        ("nginx", "nginx", &["-v"]),
        ("haproxy", "haproxy", &["-v"]),
        ("openssl", "openssl", &["version"]),
        ("sekisho", &beside("sekisho-gateway"), &["--version"]),
        ("sekisho-bench", &beside("sekisho-bench"), &["--version"]),
    ];
    asked
        .into_iter()
        .map(|(name, program, args)| {
            let answer =
                said(program, args).or_else(|| said(&format!("/usr/sbin/{program}"), args));
            (name.to_owned(), answer.unwrap_or_else(|| "not found".to_owned()))
        })
        .collect()
}

/// The commit of the folder that this runs in, and whether it has changes; results themselves do
/// not count.
pub(crate) fn commit() -> (String, Option<bool>) {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"]);
    let mut command = Command::new("git");
    command.args([
        "--no-optional-locks",
        "status",
        "--porcelain",
        "--",
        ".",
        ":!bench/results",
        ":!bench/REPORT.md",
    ]);
    let status = command.output().ok().filter(|output| output.status.success());
    (commit.unwrap_or_else(|| "unknown".to_owned()), status.map(|out| !out.stdout.is_empty()))
}

/// The first line that a program says.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let all = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&all);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

fn virtualised(cpu_info: &str) -> Option<String> {
    let flags = field(cpu_info, "flags").unwrap_or_default();
    flags.split(' ').any(|flag| flag == "hypervisor").then(|| {
        let vendor = read("/sys/class/dmi/id/sys_vendor");
        let vendor = vendor.trim();
        if vendor.is_empty() { "yes".to_owned() } else { format!("yes ({vendor})") }
    })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_a_share_of_all_time() {
        assert_eq!(stolen_percent(Some((100, 0)), Some((300, 10))), Some(5.0));
        assert_eq!(stolen_percent(Some((100, 0)), Some((100, 0))), None);
        assert_eq!(stolen_percent(None, Some((100, 0))), None);
    }

    #[test]
    fn this_machine_has_cores_memory_and_ticks() {
        let machine = facts();
        assert!(machine.cores > 0 && machine.memory_bytes > 0, "{machine:?}");
        let (all, stolen) = ticks().unwrap();
        assert!(all > stolen);
    }
}
