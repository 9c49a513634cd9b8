//! The writer on real files, with the faults of a disk put in where none can be provoked.

use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use super::*;
use crate::encoding::{self, FORMAT, GENESIS, Header, segment_name};
use crate::{Problem, read, verify};

pub(crate) fn options(durability: Durability, segment_bytes_max: u64) -> Options {
    Options { durability, segment_bytes_max, source: "test".into() }
}

fn open(dir: &Path) -> AuditLog {
    AuditLog::open(dir, options(Durability::BeforeResponse, 1 << 20)).unwrap()
}

fn started(version: &str) -> Event {
    Event::ServiceStarted { version: version.into() }
}

fn versions(dir: &Path) -> Vec<String> {
    read(dir)
        .map(|entry| {
            let Event::ServiceStarted { version } = entry.unwrap().event else {
                panic!("an event that no test appends");
            };
            version
        })
        .collect()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come true within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn records_come_back_in_order_with_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for number in 1..=3 {
        let receipt = log.append(&started(&number.to_string())).unwrap();
        assert_eq!(receipt.durable_blocking().unwrap(), number);
    }
    log.close();
    assert_eq!(versions(dir.path()), ["1", "2", "3"]);
    let entries: Vec<_> = read(dir.path()).map(Result::unwrap).collect();
    assert_eq!(entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3]);
    let summary = verify(dir.path()).unwrap();
    assert_eq!((summary.records, summary.segments), (3, 1));
    assert_eq!(summary.head, entries[2].hash);
    assert_eq!(summary.last_at.as_ref(), Some(&entries[2].at));
}

#[test]
fn folder_and_files_are_readable_by_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("audit").join("gateway");
    let log = open(&dir);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(segment_name(1))), 0o600);
    assert_eq!(mode(&dir.join("lock")), 0o600);
    log.close();
}

#[test]
fn a_reopened_log_continues_its_chain() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3u64 {
        let log = open(dir.path());
        assert_eq!(log.append(&started("x")).unwrap().durable_blocking().unwrap(), round);
        log.close();
    }
    assert_eq!(verify(dir.path()).unwrap().records, 3);
}

#[test]
fn segments_rotate_by_bytes_and_the_chain_goes_through() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1000)).unwrap();
    let receipts: Vec<_> =
        (0..40).map(|n: u32| log.append(&started(&n.to_string())).unwrap()).collect();
    for (at, receipt) in (1..).zip(receipts) {
        assert_eq!(receipt.durable_blocking().unwrap(), at);
    }
    log.close();
    let summary = verify(dir.path()).unwrap();
    assert_eq!(summary.records, 40);
    assert!(summary.segments > 5, "{summary:?}");
    assert_eq!(versions(dir.path()), (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
    for (_, path) in encoding::list_segments(dir.path()).unwrap() {
        assert!(std::fs::metadata(path).unwrap().len() < 1000 + 400);
    }
    // It continues in the last segment, or in the next.
    let log = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1000)).unwrap();
    assert_eq!(log.append(&started("40")).unwrap().durable_blocking().unwrap(), 41);
    log.close();
    assert_eq!(verify(dir.path()).unwrap().records, 41);
}

#[test]
fn a_tail_torn_at_any_byte_is_named_cut_and_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for version in ["1", "2", "3"] {
        log.append(&started(version)).unwrap().durable_blocking().unwrap();
    }
    log.close();
    let path = dir.path().join(segment_name(1));
    let whole = std::fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for cut in last + 1..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = verify(dir.path()).unwrap_err();
        assert!(matches!(error.problem, Problem::TornTail { .. }), "{cut}: {error}");
        assert_eq!((error.line, error.record), (4, Some(3)));
        let log = open(dir.path());
        assert_eq!(log.append(&started("new")).unwrap().durable_blocking().unwrap(), 3);
        log.close();
        assert_eq!(versions(dir.path()), ["1", "2", "new"]);
        verify(dir.path()).unwrap();
        let kept = dir.path().join(format!("00000001.cut-{last}"));
        assert_eq!(std::fs::read(&kept).unwrap(), &whole[last..cut]);
    }
}

#[test]
fn a_tail_of_zeros_is_cut_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&started("1")).unwrap().durable_blocking().unwrap();
    log.close();
    let path = dir.path().join(segment_name(1));
    let whole = std::fs::read(&path).unwrap();
    for torn in [vec![0; 9000], [b"{\"n\":2,\"at".to_vec(), vec![0; 200_000]].concat()] {
        std::fs::write(&path, [whole.clone(), torn].concat()).unwrap();
        assert!(matches!(
            verify(dir.path()).unwrap_err().problem,
            Problem::TornTail { .. } | Problem::NotARecord
        ));
        open(dir.path()).close();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn damage_that_no_loss_of_power_explains_is_not_cut_but_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for version in ["1", "2", "3"] {
        log.append(&started(version)).unwrap().durable_blocking().unwrap();
    }
    log.close();
    let path = dir.path().join(segment_name(1));
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = text.replacen("\"version\":\"2\"", "\"version\":\"9\"", 1);
    std::fs::write(&path, &changed).unwrap();
    let error = AuditLog::open(dir.path(), options(Durability::Async, 1000)).err().unwrap();
    assert!(matches!(error, Error::Damaged { line: 3, .. }), "{error}");
    assert!(error.to_string().contains("sekisho audit verify"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), changed);
}

#[test]
fn a_second_writer_is_refused_until_the_first_has_closed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let error = AuditLog::open(dir.path(), options(Durability::Async, 1000)).err().unwrap();
    assert!(matches!(error, Error::Locked(_)));
    assert!(error.to_string().contains("in use by another process"), "{error}");
    drop(log);
    open(dir.path()).close();
}

#[test]
fn the_log_of_another_program_and_a_bad_source_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close();
    let as_source = |source: &str| {
        let options = Options { source: source.into(), ..options(Durability::Async, 1000) };
        AuditLog::open(dir.path(), options).err().unwrap()
    };
    assert!(matches!(as_source("hub"), Error::OtherSource { .. }));
    assert!(matches!(as_source("a\"b"), Error::BadSource(_)));
    assert!(matches!(as_source(""), Error::BadSource(_)));
}

#[test]
fn concurrent_appends_leave_no_gap_and_keep_each_callers_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 20_000)).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let log = log.clone();
            scope.spawn(move || {
                let mut last = 0;
                for turn in 0..100 {
                    let receipt = log.append(&started(&format!("{caller}/{turn}"))).unwrap();
                    let number = receipt.durable_blocking().unwrap();
                    assert!(number > last);
                    last = number;
                }
            });
        }
    });
    log.close();
    assert_eq!(verify(dir.path()).unwrap().records, 800);
    let written = versions(dir.path());
    for caller in 0..8 {
        let prefix = format!("{caller}/");
        let turns: Vec<u32> = written
            .iter()
            .filter_map(|version| version.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert_eq!(turns, (0..100).collect::<Vec<_>>());
    }
}

/// A disk whose syncs wait for a word and count.
struct SlowDisk {
    release: mpsc::Sender<std::io::Result<()>>,
    syncs: Arc<AtomicU64>,
}

fn slow_disk() -> (Disk, SlowDisk) {
    let (release, released) = mpsc::channel::<std::io::Result<()>>();
    let syncs = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&syncs);
    let released = Mutex::new(released);
    let disk = Disk {
        sync: Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            released.lock().unwrap().recv().unwrap_or(Ok(()))
        }),
        ..Disk::real()
    };
    (disk, SlowDisk { release, syncs })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_resolves_only_after_the_sync_and_one_sync_serves_many() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, slow) = slow_disk();
    slow.release.send(Ok(())).unwrap();
    let log =
        AuditLog::open_on(disk, dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    let first = log.append(&started("first")).unwrap();
    wait_until("the sync of the first batch", || slow.syncs.load(Ordering::SeqCst) == 2);
    // Written already, but not synced: the receipt must wait.
    assert_eq!(versions(dir.path()), ["first"]);
    let mut first = Box::pin(first.durable());
    let early = tokio::time::timeout(Duration::from_millis(100), &mut first).await;
    assert!(early.is_err(), "resolved before fdatasync");
    let others: Vec<_> =
        (0..50).map(|n: u32| log.append(&started(&n.to_string())).unwrap()).collect();
    slow.release.send(Ok(())).unwrap();
    assert_eq!(first.await.unwrap(), 1);
    wait_until("the sync of the second batch", || slow.syncs.load(Ordering::SeqCst) == 3);
    slow.release.send(Ok(())).unwrap();
    for (number, receipt) in (2..).zip(others) {
        assert_eq!(receipt.durable().await.unwrap(), number);
    }
    assert_eq!(slow.syncs.load(Ordering::SeqCst), 3, "50 records shared one sync");
    log.close();
    verify(dir.path()).unwrap();
}

#[test]
fn a_failed_sync_fails_its_receipts_and_the_log_comes_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, slow) = slow_disk();
    slow.release.send(Ok(())).unwrap();
    let log =
        AuditLog::open_on(disk, dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    slow.release.send(Ok(())).unwrap();
    log.append(&started("kept")).unwrap().durable_blocking().unwrap();
    let lost = log.append(&started("lost")).unwrap();
    slow.release.send(Err(std::io::Error::from_raw_os_error(5))).unwrap();
    let error = lost.durable_blocking().unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("sync"), "{error}");
    assert!(!log.is_available());
    assert!(matches!(log.append(&started("refused")), Err(Error::Unavailable { .. })));
    // Cut, sync, header of a new segment: from here on every sync succeeds.
    drop(slow.release);
    wait_until("recovery", || log.is_available());
    assert_eq!(log.append(&started("after")).unwrap().durable_blocking().unwrap(), 2);
    log.close();
    assert_eq!(versions(dir.path()), ["kept", "after"]);
    let summary = verify(dir.path()).unwrap();
    assert_eq!((summary.records, summary.segments), (2, 2));
}

#[test]
fn a_full_disk_fails_the_batch_leaves_no_half_line_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let is_full = Arc::clone(&full);
    let real = Disk::real();
    let disk = Disk {
        write: Box::new(move |mut file, bytes| {
            if is_full.load(Ordering::SeqCst) {
                file.write_all(&bytes[..bytes.len() / 2])?;
                return Err(std::io::Error::from_raw_os_error(28));
            }
            (real.write)(file, bytes)
        }),
        ..Disk::real()
    };
    let log =
        AuditLog::open_on(disk, dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    log.append(&started("kept")).unwrap().durable_blocking().unwrap();
    full.store(true, Ordering::SeqCst);
    let error = log.append(&started("lost")).unwrap().durable_blocking().unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(verify(dir.path()).unwrap().records, 1);
    full.store(false, Ordering::SeqCst);
    wait_until("recovery", || log.is_available());
    assert_eq!(log.append(&started("after")).unwrap().durable_blocking().unwrap(), 2);
    log.close();
    assert_eq!(versions(dir.path()), ["kept", "after"]);
    verify(dir.path()).unwrap();
}

#[test]
fn a_breach_of_the_disk_reserve_makes_the_log_unavailable_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(DISK_RESERVE_BYTES));
    let told = Arc::clone(&free);
    let disk =
        Disk { free_bytes: Box::new(move |_| Ok(told.load(Ordering::SeqCst))), ..Disk::real() };
    let log =
        AuditLog::open_on(disk, dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    log.append(&started("1")).unwrap().durable_blocking().unwrap();
    free.store(DISK_RESERVE_BYTES - 1, Ordering::SeqCst);
    let error = log.append(&started("2")).unwrap().durable_blocking().unwrap_err();
    assert!(error.to_string().contains("make room"), "{error}");
    assert!(!log.is_available());
    std::thread::sleep(REOPEN_INTERVAL + Duration::from_millis(100));
    assert!(!log.is_available(), "still no room");
    free.store(DISK_RESERVE_BYTES, Ordering::SeqCst);
    wait_until("recovery", || log.is_available());
    assert_eq!(log.append(&started("3")).unwrap().durable_blocking().unwrap(), 2);
    log.close();
    assert_eq!(versions(dir.path()), ["1", "3"]);
    assert_eq!(verify(dir.path()).unwrap().segments, 1);
}

#[test]
fn records_on_disk_before_a_failed_rotation_are_confirmed_and_it_heals() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 400)).unwrap();
    let obstacle = dir.path().join(segment_name(2));
    std::fs::create_dir(&obstacle).unwrap();
    log.append(&started("1")).unwrap().durable_blocking().unwrap();
    let error = log.append(&started("2")).unwrap().durable_blocking().unwrap_err();
    assert!(error.to_string().contains("00000002.jsonl"), "{error}");
    std::fs::remove_dir(&obstacle).unwrap();
    wait_until("recovery", || log.is_available());
    assert_eq!(log.append(&started("3")).unwrap().durable_blocking().unwrap(), 2);
    log.close();
    assert_eq!(versions(dir.path()), ["1", "3"]);
    assert_eq!(verify(dir.path()).unwrap().segments, 2);
}

#[test]
fn time_in_the_log_does_not_go_back_with_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let future = encoding::at_text(now_ms() + 3_600_000);
    let header = Header {
        format: FORMAT.into(),
        source: "test".into(),
        segment: 1,
        first: 1,
        at: future.clone(),
        prev: encoding::hash_text(&GENESIS),
    };
    std::fs::write(dir.path().join(segment_name(1)), encoding::header_line(&header).0).unwrap();
    let log = open(dir.path());
    log.append(&started("1")).unwrap().durable_blocking().unwrap();
    log.close();
    assert_eq!(read(dir.path()).next().unwrap().unwrap().at, future);
    verify(dir.path()).unwrap();
}

#[test]
fn async_receipts_come_at_once_and_the_sync_follows_without_further_appends() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&syncs);
    let disk = Disk {
        sync: Box::new(move |file| {
            count.fetch_add(1, Ordering::SeqCst);
            file.sync_data()
        }),
        ..Disk::real()
    };
    let log = AuditLog::open_on(disk, dir.path(), options(Durability::Async, 1 << 20)).unwrap();
    for number in 1..=10 {
        assert_eq!(log.append(&started("x")).unwrap().durable_blocking().unwrap(), number);
    }
    wait_until("the sync of the batch", || syncs.load(Ordering::SeqCst) >= 2);
    log.append(&started("last")).unwrap().durable_blocking().unwrap();
    let before = syncs.load(Ordering::SeqCst);
    log.close();
    assert!(syncs.load(Ordering::SeqCst) > before, "closing syncs");
    assert_eq!(verify(dir.path()).unwrap().records, 11);
}

#[test]
fn a_closed_log_refuses_and_dropping_the_last_clone_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let clone = log.clone();
    let receipt = log.append(&started("1")).unwrap();
    log.close();
    assert_eq!(receipt.durable_blocking().unwrap(), 1);
    assert!(!clone.is_available());
    assert!(matches!(clone.append(&started("2")), Err(Error::Unavailable { .. })));
    drop(clone);
    let log = AuditLog::open(dir.path(), options(Durability::Async, 1000)).unwrap();
    let _ = log.append(&started("2")).unwrap();
    drop(log);
    assert_eq!(versions(dir.path()), ["1", "2"]);
}

#[test]
fn an_event_that_is_too_long_and_a_full_queue_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, slow) = slow_disk();
    slow.release.send(Ok(())).unwrap();
    let log =
        AuditLog::open_on(disk, dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    let long = started(&"x".repeat(EVENT_BYTES_MAX));
    assert!(matches!(log.append(&long), Err(Error::TooLong { .. })));
    let large = started(&"x".repeat(EVENT_BYTES_MAX - 100));
    let refused = (0..2 * QUEUE_BYTES_MAX / EVENT_BYTES_MAX).find_map(|_| log.append(&large).err());
    assert!(refused.unwrap().to_string().contains("queue"));
    assert!(log.is_available(), "a slow disk is not a broken one");
    drop(slow.release);
    log.close();
    verify(dir.path()).unwrap();
}

/// The program that `a_killed_writer_…` starts and kills; run by itself it has nothing to do.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var("AUDIT_LOG_TEST_DIR") else { return };
    let log = AuditLog::open(Path::new(&dir), options(Durability::BeforeResponse, 5000)).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let log = log.clone();
            scope.spawn(move || {
                for turn in 0.. {
                    let name = format!("{caller}-{turn}");
                    let receipt = log.append(&started(&name)).unwrap();
                    let number = receipt.durable_blocking().unwrap();
                    writeln!(std::io::stdout(), "durable {number} {name}").unwrap();
                }
            });
        }
    });
}

#[test]
fn a_killed_writer_loses_no_record_that_it_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let mut confirmed = Vec::new();
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("log::tests::child_that_appends_until_it_is_killed")
            .env("AUDIT_LOG_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        for line in output.lines().map_while(Result::ok) {
            let Some((_, record)) = line.split_once("durable ") else { continue };
            let (number, name) = record.split_once(' ').unwrap();
            confirmed.push((number.parse::<u64>().unwrap(), name.to_owned()));
            if confirmed.len() % 60 == 0 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        open(dir.path()).close();
        let summary = verify(dir.path()).unwrap();
        assert!(summary.records >= confirmed.len() as u64);
    }
    let written = versions(dir.path());
    assert!(confirmed.len() >= 180);
    for (number, name) in confirmed {
        assert_eq!(written[number as usize - 1], name);
    }
}
