//! `sekisho-bench audit`: what evidence costs on this disk.
//!
//! ```text
//!  fdatasync alone ─► one caller ─► many callers (group commit) ─► asynchronous ─► verify
//! ```
//!
//! The records are decisions and their completions in turn, of the size that the gateway writes.
//! The disk's own fdatasync stands beside every figure that waits for it.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use audit_log::{
    ALLOW, Actor, AuditLog, CheckpointKey, Durability, Event, Object, Options, VerifyingKey, verify,
};
use clap::Args;
use serde::Serialize;

use crate::cpu;
use crate::report::{Histogram, Latency};

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Folder on the disk to be measured; a folder in it is made and removed
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Records a measurement
    #[arg(
        long,
        default_value_t = 500_000,
        value_parser = clap::value_parser!(u64).range(1_000..=100_000_000)
    )]
    records: u64,
    /// Requests that wait for their record at the same time
    #[arg(
        long,
        default_value_t = 4_096,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    callers: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What one run found.
#[derive(Debug, Serialize)]
pub(crate) struct AuditReport {
    /// Appending 4 KiB and fdatasync, one after the other.
    fdatasync: Latency,
    fdatasync_per_second: f64,
    /// Records appended one after the other, each awaited.
    one_caller: Appends,
    /// 32 requests at a time, as a gateway under moderate load has them.
    some_callers: Appends,
    /// As many as the arguments say.
    many_callers: Appends,
    /// Receipts that do not wait for the disk.
    asynchronous: Appends,
    verify: Verified,
    /// Bytes on disk a record after compression of the closed segments.
    bytes_per_record: f64,
}

/// How appending went.
#[derive(Debug, Serialize)]
struct Appends {
    callers: u32,
    records: u64,
    records_per_second: f64,
    latency: Latency,
    /// User and system time of this process, load included.
    cpu_us_per_record: f64,
}

/// How verifying went.
#[derive(Debug, Serialize)]
struct Verified {
    records: u64,
    segments: u64,
    checkpoints: u64,
    seconds: f64,
    records_per_second: f64,
    cpu_us_per_record: f64,
}

/// Measures.
///
/// # Errors
/// When the folder can not be written or a log does not verify.
pub(crate) fn run(args: &AuditArgs) -> anyhow::Result<AuditReport> {
    let folder = args.dir.join(format!("sekisho-bench-audit-{}", std::process::id()));
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let report = measure(args, &folder);
    std::fs::remove_dir_all(&folder)
        .with_context(|| format!("cannot remove {}", folder.display()))?;
    report
}

fn measure(args: &AuditArgs, folder: &Path) -> anyhow::Result<AuditReport> {
    let (fdatasync, fdatasync_per_second) = fdatasync(folder)?;
    let (key, _) = CheckpointKey::generate("sekisho.example/bench")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let append = |name: &str, callers, records, durability| {
        let options = Options { durability, ..Options::new("bench", key.clone()) };
        let log = AuditLog::open(&folder.join(name), options)?;
        let appends = runtime.block_on(appends(&log, callers, records))?;
        log.close();
        anyhow::Ok(appends)
    };
    let before = Durability::BeforeResponse;
    let one_caller = append("one", 1, (args.records / 100).min(5_000), before)?;
    let some_callers = append("some", 32, (args.records / 10).min(50_000), before)?;
    let many_callers = append("many", args.callers, args.records, before)?;
    let asynchronous = append("async", 64, args.records, Durability::Async)?;
    let many = folder.join("many");
    let verify = verified(&many, key.verifying_key())?;
    let bytes_per_record = bytes(&many)? as f64 / verify.records.max(1) as f64;
    Ok(AuditReport {
        fdatasync,
        fdatasync_per_second,
        one_caller,
        some_callers,
        many_callers,
        asynchronous,
        verify,
        bytes_per_record,
    })
}

/// The disk by itself.
fn fdatasync(folder: &Path) -> anyhow::Result<(Latency, f64)> {
    let mut file = File::create(folder.join("fdatasync"))?;
    let block = [b'x'; 4096];
    let mut measured = Histogram::new()?;
    let began = Instant::now();
    for _ in 0..FDATASYNCS {
        let each = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        measured.record(each.elapsed());
    }
    let per_second = FDATASYNCS as f64 / began.elapsed().as_secs_f64();
    let latency = measured.latency().context("nothing was measured")?;
    Ok((latency, per_second))
}

async fn appends(log: &AuditLog, callers: u32, records: u64) -> anyhow::Result<Appends> {
    let left = Arc::new(AtomicU64::new(records));
    let cpu_before = cpu::used(std::process::id())?;
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| tokio::spawn(append_while(log.clone(), caller, Arc::clone(&left))))
        .collect();
    let mut measured = Histogram::new()?;
    for task in tasks {
        measured.add(&task.await??);
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu::used(std::process::id())?.saturating_sub(cpu_before);
    Ok(Appends {
        callers,
        records,
        records_per_second: records as f64 / seconds,
        latency: measured.latency().context("nothing was measured")?,
        cpu_us_per_record: cpu.as_secs_f64() * 1e6 / records as f64,
    })
}

/// One caller: appends and waits for the disk until all records are taken.
async fn append_while(
    log: AuditLog,
    caller: u32,
    left: Arc<AtomicU64>,
) -> anyhow::Result<Histogram> {
    let mut measured = Histogram::new()?;
    let take = |left: u64| left.checked_sub(1);
    let mut open = None;
    while let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        let event = match open.take() {
            Some(decided) => completion(decided),
            None => decision(caller, *open.insert(number)),
        };
        let began = Instant::now();
        let receipt = loop {
            match log.append(&event) {
                Ok(receipt) => break receipt,
                // Nobody waits for the disk when asynchronous, so the queue fills up.
                Err(_) if log.is_available() => tokio::time::sleep(QUEUE_FULL_PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        };
        receipt.durable().await?;
        measured.record(began.elapsed());
    }
    Ok(measured)
}

/// A permit of the size that the gateway writes.
fn decision(caller: u32, number: u64) -> Event {
    Event::Decision {
        request_id: request_id(number),
        actor: Actor::of(format!("office/{:010}/terminal/front-1", 1_370_000_000 + caller))
            .serial(format!("{:032x}", u128::from(caller) << 70))
            .staff("staff-0001", "care_manager"),
        action: Some("documents.view".to_owned()),
        object: Object::person(format!("{:032x}", u128::from(number) << 64))
            .document("certification-survey", None),
        decision: ALLOW.to_owned(),
        reasons: Vec::new(),
        policy: "5f2b1c9d0e7a4f63".to_owned(),
        facts_ca_seq: 300_000,
        facts_hub_seq: 40_000_000 + number,
        client_addr: format!("192.0.2.{}:{}", caller % 250, 40_000 + number % 20_000),
        network: None,
    }
}

/// How the request of that permit ended.
fn completion(number: u64) -> Event {
    Event::Completion {
        request_id: request_id(number),
        status: 200,
        bytes_sent: 1_024,
        duration_us: 1_500 + number % 1_000,
        outcome: "complete".to_owned(),
        reasons: Vec::new(),
    }
}

fn request_id(number: u64) -> String {
    format!("{:011x}{number:013x}", 0x19_a000_0000_u64)
}

fn verified(dir: &Path, key: &VerifyingKey) -> anyhow::Result<Verified> {
    let cpu_before = cpu::used(std::process::id())?;
    let began = Instant::now();
    let summary = verify(dir, key)?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu::used(std::process::id())?.saturating_sub(cpu_before);
    Ok(Verified {
        records: summary.records,
        segments: summary.segments,
        checkpoints: summary.checkpoints,
        seconds,
        records_per_second: summary.records as f64 / seconds,
        cpu_us_per_record: cpu.as_secs_f64() * 1e6 / summary.records.max(1) as f64,
    })
}

fn bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

const FDATASYNCS: usize = 2_000;
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50_us, p99_us, max_us, .. } = self.fdatasync;
        writeln!(
            f,
            "fdatasync       p50 {p50_us} µs, p99 {p99_us} µs, max {max_us} µs; {:.0}/s",
            self.fdatasync_per_second
        )?;
        for (name, appends) in [
            ("durable, 1     ", &self.one_caller),
            ("durable, some  ", &self.some_callers),
            ("durable, many  ", &self.many_callers),
            ("asynchronous   ", &self.asynchronous),
        ] {
            writeln!(f, "{name} {appends}")?;
        }
        let verify = &self.verify;
        writeln!(
            f,
            "verify          {:.0} records/s: {} records, {} segments, {} checkpoints in {:.2} s, \
             {:.2} µs CPU a record",
            verify.records_per_second,
            verify.records,
            verify.segments,
            verify.checkpoints,
            verify.seconds,
            verify.cpu_us_per_record
        )?;
        writeln!(f, "on disk         {:.0} bytes a record", self.bytes_per_record)
    }
}

impl fmt::Display for Appends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50_us, p99_us, max_us, .. } = self.latency;
        write!(
            f,
            "{:.0} records/s with {} callers; p50 {p50_us} µs, p99 {p99_us} µs, max {max_us} µs; \
             {:.1} µs CPU a record",
            self.records_per_second, self.callers, self.cpu_us_per_record
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_measures_everything_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let args =
            AuditArgs { dir: dir.path().to_owned(), records: 1_000, callers: 16, json: false };
        let report = run(&args).unwrap();
        assert!(report.verify.records >= 1_000);
        assert!(report.to_string().contains("records/s"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
