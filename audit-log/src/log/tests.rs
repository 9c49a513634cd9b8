//! The writer on real files, with the faults of a disk put in where none can be provoked.

use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use super::*;
use std::sync::OnceLock;

use crate::clock::now_ms;
use crate::encoding::{self, FORMAT, GENESIS, Header, segment_name};
use crate::entry::{ALLOW, Actor, DENY, Object};
use crate::{Entry, Problem, Summary, VerifyError, latest_checkpoint, read};

/// The key of every log that the tests write.
pub(crate) fn key() -> CheckpointKey {
    static KEY: OnceLock<CheckpointKey> = OnceLock::new();
    KEY.get_or_init(|| match std::env::var_os("AUDIT_LOG_TEST_KEY") {
        Some(path) => CheckpointKey::load(Path::new(&path)).unwrap(),
        None => CheckpointKey::parse(&key_text(), "the tests' key").unwrap(),
    })
    .clone()
}

fn key_text() -> String {
    static TEXT: OnceLock<String> = OnceLock::new();
    let generate = || CheckpointKey::generate("sekisho.test/audit/test").unwrap().1;
    TEXT.get_or_init(generate).clone()
}

/// Writes the key to where a program started by a test finds it.
fn store_key(path: &Path) {
    std::fs::write(path, key_text()).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Options under which a checkpoint is written at the end of a segment and at close only.
pub(crate) fn options(durability: Durability, segment_bytes_max: u64) -> Options {
    Options {
        durability,
        segment_bytes_max,
        checkpoint_interval: Duration::from_secs(3600),
        ..Options::new("test", key())
    }
}

fn verify(dir: &Path) -> Result<Summary, VerifyError> {
    crate::verify(dir, key().verifying_key())
}

fn events(dir: &Path) -> Vec<Event> {
    read(dir).map(|entry| entry.unwrap().event).collect()
}

/// The segment's file in whichever form it has by now.
fn segment(dir: &Path, number: u64) -> PathBuf {
    let segments = encoding::list_segments(dir).unwrap();
    segments.into_iter().find(|(found, _)| *found == number).unwrap().1
}

fn open(dir: &Path) -> AuditLog {
    AuditLog::open(dir, options(Durability::BeforeResponse, 1 << 20)).unwrap()
}

fn started(version: &str) -> Event {
    Event::ServiceStarted { version: version.into() }
}

fn versions(dir: &Path) -> Vec<String> {
    let version =
        |event| if let Event::ServiceStarted { version } = event { Some(version) } else { None };
    events(dir).into_iter().filter_map(version).collect()
}

fn append(log: &AuditLog, version: &str) {
    log.append(&started(version)).unwrap().durable_blocking().unwrap();
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
    let mut committed = log.committed();
    for number in 1..=3 {
        append(&log, &number.to_string());
        assert_eq!(*committed.borrow_and_update(), number);
    }
    log.close();
    assert_eq!(versions(dir.path()), ["1", "2", "3"]);
    let entries: Vec<Entry> = read(dir.path()).map(Result::unwrap).collect();
    assert_eq!(entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(matches!(entries[3].event, Event::Checkpoint { .. }));
    let summary = verify(dir.path()).unwrap();
    assert_eq!((summary.records, summary.segments), (4, 1));
    assert_eq!(summary.head, entries[3].hash);
    assert_eq!(summary.last_at.as_ref(), Some(&entries[3].at));
    assert_eq!(*committed.borrow_and_update(), 4);
    let head = latest_checkpoint(dir.path(), key().verifying_key()).unwrap().unwrap();
    assert_eq!((head.size(), head.origin()), (3, "sekisho.test/audit/test"));
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
    for _ in 1..=3 {
        let log = open(dir.path());
        append(&log, "x");
        log.close();
    }
    assert_eq!(versions(dir.path()), ["x", "x", "x"]);
    // Three records, each under a checkpoint; an opening and closing without any adds nothing.
    open(dir.path()).close();
    assert_eq!(verify(dir.path()).unwrap().records, 6);
}

#[test]
fn segments_rotate_by_bytes_and_the_chain_goes_through() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1000)).unwrap();
    let receipts: Vec<_> =
        (0..40).map(|n: u32| log.append(&started(&n.to_string())).unwrap()).collect();
    for receipt in receipts {
        receipt.durable_blocking().unwrap();
    }
    log.close();
    let summary = verify(dir.path()).unwrap();
    assert!(summary.segments > 5, "{summary:?}");
    assert_eq!(summary.records, 40 + summary.segments, "a checkpoint closes each segment");
    assert_eq!(versions(dir.path()), (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
    for (_, path) in encoding::list_segments(dir.path()).unwrap() {
        assert!(std::fs::metadata(path).unwrap().len() < 1000 + 1200);
    }
    // It continues in the last segment, or in the next.
    let log = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1000)).unwrap();
    append(&log, "40");
    log.close();
    verify(dir.path()).unwrap();
    assert_eq!(versions(dir.path()).len(), 41);
}

#[test]
fn a_tail_torn_at_any_byte_is_named_cut_and_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for version in ["1", "2", "3"] {
        append(&log, version);
    }
    log.close();
    let path = dir.path().join(segment_name(1));
    let whole = std::fs::read(&path).unwrap();
    // The closing checkpoint goes, and the file that says how far it went: as if the power had
    // gone before.
    std::fs::remove_file(dir.path().join(encoding::CHECKPOINT_FILE)).unwrap();
    let line_end = |before: usize| whole[..before].iter().rposition(|byte| *byte == b'\n').unwrap();
    let end = line_end(whole.len() - 1) + 1;
    let last = line_end(end - 1) + 1;
    for cut in last + 1..end {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = verify(dir.path()).unwrap_err();
        assert!(matches!(error.problem, Problem::TornTail { .. }), "{cut}: {error}");
        assert_eq!((error.line, error.record), (4, Some(3)));
        let log = open(dir.path());
        append(&log, "new");
        log.close();
        assert_eq!(versions(dir.path()), ["1", "2", "new"]);
        let cut_event =
            Event::TailCut { segment: segment_name(1), bytes: (cut - last) as u64, last_record: 2 };
        assert!(events(dir.path()).contains(&cut_event));
        verify(dir.path()).unwrap();
        let kept = dir.path().join(format!("00000001.cut-{last}"));
        assert_eq!(std::fs::read(&kept).unwrap(), &whole[last..cut]);
        std::fs::remove_file(dir.path().join(encoding::CHECKPOINT_FILE)).unwrap();
    }
}

#[test]
fn a_tail_of_zeros_is_cut_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, "1");
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
        assert!(std::fs::read(&path).unwrap().starts_with(&whole));
        assert_eq!(versions(dir.path()), ["1"]);
        verify(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join(encoding::CHECKPOINT_FILE)).unwrap();
    }
}

#[test]
fn damage_that_no_loss_of_power_explains_is_not_cut_but_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for version in ["1", "2", "3"] {
        append(&log, version);
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
                for turn in 0..100 {
                    append(&log, &format!("{caller}/{turn}"));
                }
            });
        }
    });
    log.close();
    verify(dir.path()).unwrap();
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
    first.await.unwrap();
    wait_until("the sync of the second batch", || slow.syncs.load(Ordering::SeqCst) == 3);
    slow.release.send(Ok(())).unwrap();
    for receipt in others {
        receipt.durable().await.unwrap();
    }
    assert_eq!(slow.syncs.load(Ordering::SeqCst), 3, "50 records shared one sync");
    drop(slow.release);
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
    append(&log, "kept");
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
    append(&log, "after");
    log.close();
    assert_eq!(versions(dir.path()), ["kept", "after"]);
    assert_eq!(verify(dir.path()).unwrap().segments, 2);
    // Both the one that waited and the one that was turned away at the door.
    let told = events(dir.path()).into_iter().find_map(|event| {
        if let Event::Unavailable { reason, refused, .. } = event {
            Some((reason, refused))
        } else {
            None
        }
    });
    let (reason, refused) = told.unwrap();
    assert!(reason.contains("sync"), "{reason}");
    assert_eq!(refused, 2);
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
    append(&log, "kept");
    full.store(true, Ordering::SeqCst);
    let error = log.append(&started("lost")).unwrap().durable_blocking().unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(versions(dir.path()), ["kept"]);
    full.store(false, Ordering::SeqCst);
    wait_until("recovery", || log.is_available());
    append(&log, "after");
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
    append(&log, "1");
    free.store(DISK_RESERVE_BYTES - 1, Ordering::SeqCst);
    let error = log.append(&started("2")).unwrap().durable_blocking().unwrap_err();
    assert!(error.to_string().contains("make room"), "{error}");
    assert!(!log.is_available());
    std::thread::sleep(REOPEN_INTERVAL + Duration::from_millis(100));
    assert!(!log.is_available(), "still no room");
    free.store(DISK_RESERVE_BYTES, Ordering::SeqCst);
    wait_until("recovery", || log.is_available());
    append(&log, "3");
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
    append(&log, "1");
    let error = log.append(&started("2")).unwrap().durable_blocking().unwrap_err();
    assert!(error.to_string().contains("00000002.jsonl"), "{error}");
    std::fs::remove_dir(&obstacle).unwrap();
    wait_until("recovery", || log.is_available());
    append(&log, "3");
    log.close();
    assert_eq!(versions(dir.path()), ["1", "3"]);
    assert!(verify(dir.path()).unwrap().segments >= 2);
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
        tree: Vec::new(),
    };
    std::fs::write(dir.path().join(segment_name(1)), encoding::header_line(&header)).unwrap();
    let log = open(dir.path());
    append(&log, "1");
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
    for _ in 0..10 {
        append(&log, "x");
    }
    wait_until("the sync of the batch", || syncs.load(Ordering::SeqCst) >= 2);
    append(&log, "last");
    let before = syncs.load(Ordering::SeqCst);
    log.close();
    assert!(syncs.load(Ordering::SeqCst) > before, "closing syncs");
    verify(dir.path()).unwrap();
    assert_eq!(versions(dir.path()).len(), 11);
}

#[test]
fn a_closed_log_refuses_and_dropping_the_last_clone_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let clone = log.clone();
    let receipt = log.append(&started("1")).unwrap();
    log.close();
    receipt.durable_blocking().unwrap();
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

mod checkpoints;
mod crash;
mod flood;
mod handover;
