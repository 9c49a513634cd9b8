//! CPU time of another process: the figure that holds on a noisy machine, where throughput does
//! not. And its memory.

use std::path::PathBuf;
use std::time::Duration;

/// Why neither CPU time nor memory can be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read `{}`: is the process running?", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` has not the form that proc(5) describes", .0.display())]
    Form(PathBuf),
}

/// User and system time that process `pid` has used so far, all its threads together.
///
/// The kernel counts in ticks of 10 ms: measure long enough that a tick does not matter.
pub(crate) fn used(pid: u32) -> Result<Duration, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let stat = std::fs::read_to_string(&path)
        .map_err(|source| Error::Read { path: path.clone(), source })?;
    let ticks = ticks(&stat).ok_or(Error::Form(path))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Fields 14 and 15 (utime, stime); field 2 is the command in brackets and may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory that process `pid` has resident now, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/statm"));
    let statm = std::fs::read_to_string(&path)
        .map_err(|source| Error::Read { path: path.clone(), source })?;
    let pages = resident_pages(&statm).ok_or(Error::Form(path))?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// The second field; the first is what is mapped, resident or not.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_command_name() {
        let stat = "7 (a) 1 (b) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 9 9 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn our_own_time_grows_with_work() {
        let before = used(std::process::id()).unwrap();
        let mut sum = 0u64;
        while used(std::process::id()).unwrap() < before + Duration::from_millis(30) {
            sum = std::hint::black_box((0..100_000u64).fold(sum, u64::wrapping_add));
        }
        assert!(matches!(used(u32::MAX), Err(Error::Read { .. })));
    }

    #[test]
    fn resident_memory_grows_with_what_is_touched() {
        assert_eq!(resident_pages("900 33 5 1 0 60 0"), Some(33));
        assert_eq!(resident_pages("900"), None);
        let before = resident_bytes(std::process::id()).unwrap();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = resident_bytes(std::process::id()).unwrap();
        assert!(after >= before + (32 << 20), "{before} {after} {}", touched.len());
        assert!(matches!(resident_bytes(u32::MAX), Err(Error::Read { .. })));
    }
}
