//! `sekisho-bench decide`: what a decision costs among many registrations, and how much memory
//! they take.
//!
//! ```text
//!  pairs (a function of their index) ─► Facts, as the gateway holds them ─► decide, call by call
//!            └─► memory before and after ──────────────────────────────┘
//! ```
//!
//! The decision is the gateway's own, with everything that it is given there: an office's terminal,
//! a member of staff, the operation, facts that are fresh. Every answer is checked.
//!
//! Build time holds the making of the pairs: a few per cent of it.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use policies::decide::{Decision, FeedState, Query, decide};
use policies::facts::{Facts, Loading, Registration};
use policies::feed::{Fact, Source};
use policies::identity::{Identity, InsuredKey, Job, OfficeNumber, Serial, Staff};
use policies::matrix::{Matrix, Profile};
use policies::operations::{Operation, Operations};
use policies::reason::Reason;
use serde::Serialize;

use crate::Usage;

/// Arguments of `decide`.
#[derive(Debug, Args)]
pub(crate) struct DecideArgs {
    /// Registrations of an office for a person
    #[arg(
        long,
        value_name = "N",
        default_value_t = 40_000_000,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000)
    )]
    registrations: u64,
    /// Revoked certificates
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1_000_000,
        value_parser = clap::value_parser!(u64).range(0..=100_000_000)
    )]
    revocations: u64,
    /// Offices that share the registrations
    #[arg(
        long,
        value_name = "N",
        default_value_t = 287_000,
        value_parser = clap::value_parser!(u64).range(1..=10_000_000)
    )]
    offices: u64,
    /// Decisions timed in each of the three ways
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1_000_000,
        value_parser = clap::value_parser!(u64).range(1_000..=100_000_000)
    )]
    decisions: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct DecideReport {
    registrations: u64,
    offices: u64,
    revocations: u64,
    /// Decisions timed in each of the three ways.
    decisions: u64,
    /// All facts, the making of the pairs included.
    build_seconds: f64,
    /// Resident memory after the registrations less that before them.
    bytes_per_registration: f64,
    /// Of this process with all facts.
    resident_bytes: u64,
    /// The most that it ever was: a map that grows is there twice.
    peak_bytes: u64,
    /// Median of two readings of the clock, one directly after the other; taken off every call.
    clock_ns: u64,
    /// The same office, person and certificate each time.
    hot: Nanoseconds,
    /// A random registered pair each time: mostly outside the processor's caches.
    spread: Nanoseconds,
    /// A random office and a random person without any registration.
    denied: Nanoseconds,
}

/// What one call costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Nanoseconds {
    p50_ns: u64,
    p99_ns: u64,
    mean_ns: f64,
}

/// Runs it.
///
/// # Errors
/// When memory does not suffice, or a decision is not the one that the facts demand.
pub(crate) fn run(args: &DecideArgs) -> anyhow::Result<()> {
    crate::print(&measure(args)?, args.json)
}

fn measure(args: &DecideArgs) -> anyhow::Result<DecideReport> {
    check_memory(args)?;
    let pairs = Pairs::new(args.registrations, args.offices);
    let started = Instant::now();
    let mut facts = facts_around(&pairs, args.revocations)?;
    let around = started.elapsed();
    let before = settled_resident_bytes()?;
    let started = Instant::now();
    register(&mut facts, &pairs)?;
    let build_seconds = (around + started.elapsed()).as_secs_f64();
    let after = settled_resident_bytes()?;
    progress(format_args!("deciding {} times in each of three ways", args.decisions));
    let bench = Bench::new(&facts, args.decisions)?;
    let mut random = Random::new(PICKED);
    let first = Asked::registered(&pairs, 0)?;
    let hot = bench.time(true, || Ok(first.clone()))?;
    let spread = bench.time(true, || {
        Ok(Asked { serial: serial(random.next())?, ..Asked::registered(&pairs, random.next())? })
    })?;
    let denied = bench.time(false, || {
        Ok(Asked { serial: serial(random.next())?, ..Asked::stranger(&pairs, random.next())? })
    })?;
    Ok(DecideReport {
        registrations: args.registrations,
        offices: args.offices,
        revocations: args.revocations,
        decisions: args.decisions,
        build_seconds,
        bytes_per_registration: after.saturating_sub(before) as f64 / args.registrations as f64,
        resident_bytes: memory_bytes("VmRSS")?,
        peak_bytes: memory_bytes("VmHWM")?,
        clock_ns: bench.clock_ns,
        hot,
        spread,
        denied,
    })
}

/// Which office is registered for which person, as a function of the registration's index: nothing
/// has to be kept to ask about it later.
///
/// Each person has up to [`OFFICES_OF_A_PERSON`] offices, an equal distance apart from a random
/// first one, so that no pair comes twice. Numbers of persons from [`Pairs::persons`] on have none.
#[derive(Debug, Clone, Copy)]
struct Pairs {
    registrations: u64,
    offices: u64,
    each: u64,
}

impl Pairs {
    fn new(registrations: u64, offices: u64) -> Self {
        Self { registrations, offices, each: OFFICES_OF_A_PERSON.min(offices) }
    }

    fn persons(&self) -> u64 {
        self.registrations.div_ceil(self.each)
    }

    fn registered(&self, index: u64) -> anyhow::Result<(OfficeNumber, InsuredKey)> {
        let (person, nth) = (index / self.each, index % self.each);
        let distance = self.offices / self.each;
        let at = (splitmix64(person) % self.offices + nth * distance) % self.offices;
        Ok((office(at)?, insured(person)?))
    }
}

/// 事業所番号 of office `at`.
fn office(at: u64) -> anyhow::Result<OfficeNumber> {
    Ok(text(&digits::<10>(1_000_000_000 + at))?.parse()?)
}

/// Person `at`, who belongs to one of the municipalities.
fn insured(at: u64) -> anyhow::Result<InsuredKey> {
    let insurer = insurer(splitmix64(at ^ INSURERS_PICKED) % INSURERS);
    Ok(InsuredKey { insurer: text(&insurer)?.parse()?, number: text(&digits::<10>(at))?.parse()? })
}

fn insurer(at: u64) -> [u8; 6] {
    digits(100_000 + at * 7)
}

/// The decimal digits of `value`, the last `N` of them. Forty million numbers are written: this
/// takes no memory and no formatter.
fn digits<const N: usize>(mut value: u64) -> [u8; N] {
    let mut text = [b'0'; N];
    for byte in text.iter_mut().rev() {
        *byte = b'0' + (value % 10) as u8;
        value /= 10;
    }
    text
}

fn text(digits: &[u8]) -> anyhow::Result<&str> {
    Ok(std::str::from_utf8(digits)?)
}

/// A serial number of 16 bytes, as the cert-authority gives them.
fn serial(seed: u64) -> anyhow::Result<Serial> {
    let halves = [splitmix64(seed) | 1 << 63, splitmix64(!seed)];
    Ok(Serial::from_bytes(&halves.map(u64::to_be_bytes).concat())?)
}

/// Offices and revocations: the facts of the cert-authority.
fn facts_around(pairs: &Pairs, revocations: u64) -> anyhow::Result<Facts> {
    let mut facts = Facts::new();
    progress(format_args!("{} offices, {revocations} revocations", pairs.offices));
    for at in 0..pairs.offices {
        facts.apply(Fact::Office {
            number: office(at)?,
            service_types: vec![HOME_SUPPORT.parse()?],
            medical: false,
            suspended: false,
            name: format!("事業所 {at}"),
        });
    }
    // Seeds of revoked serials stay below 2^32; those that are asked with practically never do, and
    // every answer is checked.
    for at in 0..revocations {
        facts.apply(Fact::Revoked { serial: serial(at)?, at: BEFORE });
    }
    Ok(facts)
}

/// The hub's facts, as a snapshot brings them: municipalities that share, registrations.
fn register(facts: &mut Facts, pairs: &Pairs) -> anyhow::Result<()> {
    let mut loading = Loading::new(Source::Hub);
    for at in 0..INSURERS {
        loading.take(Fact::Sharing { insurer: text(&insurer(at))?.parse()?, from: Some(BEFORE) });
    }
    let mut told = Instant::now();
    for index in 0..pairs.registrations {
        let (office, insured) = pairs.registered(index)?;
        let until = Some(NOW + 86_400);
        loading.take(Fact::Registration { office, insured, from: BEFORE, until, ended: None });
        // The clock is not read for each of forty million.
        if index % 65_536 == 0 && told.elapsed().as_secs() >= 1 {
            told = Instant::now();
            progress(format_args!("{index} of {} registrations", pairs.registrations));
        }
    }
    let loaded = loading.finish();
    loaded.complete()?;
    facts.install(loaded);
    Ok(())
}

/// Who asks about whom.
#[derive(Debug, Clone)]
struct Asked {
    office: OfficeNumber,
    insured: InsuredKey,
    serial: Serial,
}

impl Asked {
    /// One of the registered pairs; any number picks one.
    fn registered(pairs: &Pairs, pick: u64) -> anyhow::Result<Self> {
        let (office, insured) = pairs.registered(pick % pairs.registrations)?;
        Ok(Self { office, insured, serial: serial(u64::MAX)? })
    }

    /// A known office, and a person for whom nobody is registered.
    fn stranger(pairs: &Pairs, pick: u64) -> anyhow::Result<Self> {
        let person = pairs.persons() + pick % pairs.persons();
        let office = office(splitmix64(pick) % pairs.offices)?;
        Ok(Self { office, insured: insured(person)?, serial: serial(u64::MAX)? })
    }
}

/// Times decisions about `insured-card`, an office's most common question.
struct Bench<'a> {
    matrix: Matrix,
    facts: &'a Facts,
    view: Operation,
    decisions: u64,
    clock_ns: u64,
}

impl<'a> Bench<'a> {
    fn new(facts: &'a Facts, decisions: u64) -> anyhow::Result<Self> {
        let path = "/v1/insured/100000/0000000000/documents/insured-card";
        let view = Operations::builtin()?
            .resolve("GET", path)
            .context("the operations table does not know how a document is viewed")?;
        let matrix = Matrix::builtin(Profile::Deck2025)?;
        Ok(Self { matrix, facts, view, decisions, clock_ns: clock_ns() })
    }

    /// Calls one by one, what is asked made before the clock starts.
    ///
    /// One call takes hundreds of nanoseconds, and reading the clock some tens: not nothing, so the
    /// clock's own median is taken off each. What the clock costs beyond its median stays in, and
    /// so does what an interrupted call waited: percentiles say more here than the mean.
    fn time(
        &self,
        expected: bool,
        mut ask: impl FnMut() -> anyhow::Result<Asked>,
    ) -> anyhow::Result<Nanoseconds> {
        let mut times_ns = Vec::with_capacity(usize::try_from(self.decisions)?);
        for _ in 0..self.decisions {
            let asked = ask()?;
            let principal =
                Identity::Office { number: asked.office, terminal: "front-desk".parse()? };
            let staff = staff_of(asked.office);
            let operation = Operation {
                insured: Some(asked.insured),
                insurer: Some(asked.insured.insurer),
                ..self.view.clone()
            };
            let query = Query {
                principal: &principal,
                serial: asked.serial,
                not_after: NOW + 86_400,
                staff: Some(&staff),
                operation: &operation,
                now: NOW,
                feeds: FeedState::fresh(),
                circumstances: policies::overlay::Circumstances::default(),
            };
            let started = Instant::now();
            let decision = std::hint::black_box(decide(&self.matrix, self.facts, &query));
            let took = started.elapsed();
            check(&decision, expected, &asked)?;
            times_ns.push((took.as_nanos() as u64).saturating_sub(self.clock_ns));
        }
        Nanoseconds::of(&mut times_ns).context("nothing was decided")
    }
}

fn staff_of(office: OfficeNumber) -> Staff {
    Staff {
        id: "staff-1".to_owned(),
        office,
        job: Job::CareManager,
        session: "4f1d0f9e8c7b6a5d".to_owned(),
    }
}

/// A figure of a decision that came out otherwise would be one of something else.
fn check(decision: &Decision, expected: bool, asked: &Asked) -> anyhow::Result<()> {
    let denied = match decision {
        Decision::Allow(_) => None,
        Decision::Deny(denial) => Some(denial.primary()),
    };
    let right = if expected { None } else { Some(Reason::NotRegistered) };
    let Asked { office, insured, .. } = asked;
    anyhow::ensure!(
        denied == right,
        "office `{office}` asking for `{insured}` gets {denied:?} where the facts say {right:?}"
    );
    Ok(())
}

impl Nanoseconds {
    /// Of the times, which are put in order; `None` without any.
    fn of(times_ns: &mut [u64]) -> Option<Self> {
        times_ns.sort_unstable();
        let sum: u64 = times_ns.iter().sum();
        Some(Self {
            p50_ns: percentile(times_ns, 50)?,
            p99_ns: percentile(times_ns, 99)?,
            mean_ns: sum as f64 / times_ns.len() as f64,
        })
    }
}

/// The smallest value that `percent` of all values do not exceed (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// What the clock shows between two readings with nothing between them: the median of many.
fn clock_ns() -> u64 {
    let mut times_ns: Vec<u64> = (0..CLOCK_READINGS)
        .map(|_| {
            let started = Instant::now();
            started.elapsed().as_nanos() as u64
        })
        .collect();
    times_ns.sort_unstable();
    percentile(&times_ns, 50).unwrap_or(0)
}

/// Refuses what this machine has no memory for, before it swaps or is killed.
fn check_memory(args: &DecideArgs) -> anyhow::Result<()> {
    let need = needed_bytes(args);
    let free = available_bytes(&std::fs::read_to_string("/proc/meminfo")?)
        .context("`/proc/meminfo` does not say `MemAvailable`")?;
    if need > free {
        return Err(Usage(format!(
            "{} registrations need about {} MiB of memory and {} MiB are free: give fewer \
             --registrations",
            args.registrations,
            need >> 20,
            free >> 20
        ))
        .into());
    }
    Ok(())
}

/// What the facts take at most, a little more rather than less.
///
/// The standard library's hash map doubles when 7 of 8 buckets are used, with a byte beside each
/// bucket; while it grows, the half of its size stands beside it.
fn needed_bytes(args: &DecideArgs) -> u64 {
    let map = |entries: u64, entry_bytes: usize| {
        let buckets = (entries * 8 / 7 + 1).next_power_of_two();
        buckets * (entry_bytes as u64 + 1) * 3 / 2
    };
    let registration = size_of::<((OfficeNumber, InsuredKey), Registration)>();
    let times = args.decisions * size_of::<u64>() as u64;
    map(args.registrations, registration)
        + map(args.revocations, size_of::<(Serial, u64)>())
        + args.offices * OFFICE_BYTES
        + times
        + REST_BYTES
}

/// `MemAvailable` of /proc/meminfo (proc(5)): what programs may take without swapping.
fn available_bytes(meminfo: &str) -> Option<u64> {
    field_bytes(meminfo, "MemAvailable")
}

/// Resident memory once the allocator has given back what is no longer used: it does so a little
/// later, and only when it is asked for something. A map that has just grown leaves its old half.
fn settled_resident_bytes() -> anyhow::Result<u64> {
    let mut resident_bytes = memory_bytes("VmRSS")?;
    let mut same = 0;
    for _ in 0..SETTLE_ROUNDS_MAX {
        drop(std::hint::black_box(vec![1_u8; SETTLE_BYTES]));
        std::thread::sleep(SETTLE_PAUSE);
        let now = memory_bytes("VmRSS")?;
        same = if now == resident_bytes { same + 1 } else { 0 };
        resident_bytes = now;
        if same == SETTLE_ROUNDS_SAME {
            break;
        }
    }
    Ok(resident_bytes)
}

/// A field of /proc/self/status (proc(5)).
fn memory_bytes(field: &str) -> anyhow::Result<u64> {
    let path = Path::new("/proc/self/status");
    let status = std::fs::read_to_string(path)
        .with_context(|| format!("`{}` cannot be read", path.display()))?;
    field_bytes(&status, field)
        .with_context(|| format!("`{}` does not say `{field}`", path.display()))
}

pub(crate) fn field_bytes(text: &str, field: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.strip_prefix(field).is_some_and(|rest| rest.starts_with(':')))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        splitmix64(self.0)
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
fn splitmix64(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn progress(line: fmt::Arguments<'_>) {
    eprintln!("{line}");
}

impl fmt::Display for DecideReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registrations, offices, revocations, decisions, .. } = self;
        writeln!(f, "{registrations} registrations, {offices} offices, {revocations} revocations")?;
        writeln!(f, "build                 {:10.1} s", self.build_seconds)?;
        writeln!(f, "a registration        {:10.1} bytes", self.bytes_per_registration)?;
        writeln!(f, "resident              {:10} MiB", self.resident_bytes >> 20)?;
        writeln!(f, "resident at most      {:10} MiB", self.peak_bytes >> 20)?;
        writeln!(f, "the clock, taken off  {:10} ns", self.clock_ns)?;
        writeln!(f, "\n{decisions} decisions each, ns   p50        p99       mean")?;
        for (name, times) in
            [("hot", &self.hot), ("spread", &self.spread), ("denied", &self.denied)]
        {
            let Nanoseconds { p50_ns, p99_ns, mean_ns } = times;
            writeln!(f, "{name:14}{p50_ns:16}{p99_ns:11}{mean_ns:11.1}")?;
        }
        Ok(())
    }
}

/// Home support, therapy, day care, equipment, a clinic: some five offices know a person.
const OFFICES_OF_A_PERSON: u64 = 5;
/// Municipalities of Japan.
const INSURERS: u64 = 1_741;
/// 居宅介護支援.
const HOME_SUPPORT: &str = "43";
/// The time of all questions, Unix seconds; any would do.
const NOW: u64 = 1_800_000_000;
/// When everything began.
const BEFORE: u64 = NOW - 86_400;
const INSURERS_PICKED: u64 = 0x0069_6e73_7572_6572;
const PICKED: u64 = 0x7069_636b_6564_0000;
const SETTLE_ROUNDS_MAX: u32 = 150;
const SETTLE_ROUNDS_SAME: u32 = 15;
const SETTLE_PAUSE: Duration = Duration::from_millis(20);
const SETTLE_BYTES: usize = 1 << 20;
const CLOCK_READINGS: u32 = 100_000;
/// An office with its service types and name, and its place in a map that grows.
const OFFICE_BYTES: u64 = 512;
/// The program itself and what an allocator keeps.
const REST_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn registered_pairs_are_distinct_and_registered_and_strangers_are_not() {
        for (registrations, offices) in [(1, 1), (7, 3), (1_003, 5), (2_000, 97)] {
            let pairs = Pairs::new(registrations, offices);
            let mut facts = facts_around(&pairs, 10).unwrap();
            register(&mut facts, &pairs).unwrap();
            let mut seen = HashSet::new();
            for pick in 0..registrations {
                let asked = Asked::registered(&pairs, pick).unwrap();
                assert!(facts.office(asked.office).is_some());
                assert!(facts.sharing(asked.insured.insurer).is_some());
                assert!(facts.registration(asked.office, asked.insured).is_some());
                assert!(seen.insert((asked.office, asked.insured)));
            }
            for pick in (0..500).map(splitmix64) {
                let asked = Asked::stranger(&pairs, pick).unwrap();
                assert!(facts.office(asked.office).is_some());
                assert!(facts.sharing(asked.insured.insurer).is_some());
                assert!(facts.registration(asked.office, asked.insured).is_none());
            }
        }
    }

    #[test]
    fn a_run_decides_as_the_facts_demand() {
        let args = DecideArgs {
            registrations: 5_000,
            revocations: 100,
            offices: 50,
            decisions: 1_000,
            json: false,
        };
        let report = measure(&args).unwrap();
        assert!(report.peak_bytes >= report.resident_bytes);
        assert!(report.spread.p50_ns <= report.spread.p99_ns);
    }

    #[test]
    fn a_decision_that_the_facts_do_not_demand_is_an_error() {
        let pairs = Pairs::new(100, 10);
        let mut facts = facts_around(&pairs, 10).unwrap();
        let bench = Bench::new(&facts, 1).unwrap();
        let asked = Asked::registered(&pairs, 3).unwrap();
        let error = bench.time(true, || Ok(asked.clone())).unwrap_err().to_string();
        // Without the hub's facts nobody's municipality shares either, which comes first.
        let denied = format!("gets {:?}", Some(Reason::NotLive));
        assert!(error.contains(&denied), "{error}");
        register(&mut facts, &pairs).unwrap();
        let bench = Bench::new(&facts, 1).unwrap();
        bench.time(true, || Ok(asked.clone())).unwrap();
        let revoked = Asked { serial: serial(3).unwrap(), ..asked };
        assert!(bench.time(true, || Ok(revoked.clone())).is_err());
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let sorted: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&sorted, 50), Some(100));
        assert_eq!(percentile(&sorted, 99), Some(198));
        assert_eq!(percentile(&[7], 99), Some(7));
        assert_eq!(percentile(&[], 50), None);
        let times = Nanoseconds::of(&mut [30, 10, 20]).unwrap();
        assert_eq!(times, Nanoseconds { p50_ns: 20, p99_ns: 30, mean_ns: 20.0 });
        assert_eq!(Nanoseconds::of(&mut []), None);
    }

    #[test]
    fn too_many_registrations_are_refused_before_anything_is_built() {
        let args = DecideArgs {
            registrations: 1_000_000_000,
            revocations: 0,
            offices: 1,
            decisions: 1_000,
            json: false,
        };
        // 2^31 buckets of 73 bytes, and half as much again.
        assert!(needed_bytes(&args) > 230_000_000_000);
        let meminfo = "MemTotal:       24684084 kB\nMemAvailable:   22696468 kB\n";
        assert_eq!(available_bytes(meminfo), Some(22_696_468 * 1024));
        assert_eq!(available_bytes("MemTotal: 5 kB\n"), None);
        if available_bytes(&std::fs::read_to_string("/proc/meminfo").unwrap()).unwrap()
            < needed_bytes(&args)
        {
            let error = check_memory(&args).unwrap_err();
            assert!(error.downcast_ref::<Usage>().is_some(), "{error}");
        }
    }

    #[test]
    fn numbers_have_all_their_digits() {
        assert_eq!(&digits::<6>(1_234_567), b"234567");
        assert_eq!(&digits::<10>(42), b"0000000042");
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
    }
}
