//! Checkpoints, closed segments and retention, on real files.

use super::*;
use crate::encoding::Tombstone;

fn checkpoint_sizes(dir: &Path) -> Vec<u64> {
    let size = |event| {
        if let Event::Checkpoint { note } = event {
            Some(crate::Checkpoint::open(&note, key().verifying_key()).unwrap().size())
        } else {
            None
        }
    };
    events(dir).into_iter().filter_map(size).collect()
}

#[test]
fn a_checkpoint_follows_within_the_interval_without_further_appends() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        checkpoint_interval: Duration::from_millis(20),
        ..options(Durability::BeforeResponse, 1 << 20)
    };
    let log = AuditLog::open(dir.path(), options).unwrap();
    append(&log, "1");
    append(&log, "2");
    let head = || latest_checkpoint(dir.path(), key().verifying_key()).unwrap();
    wait_until("a checkpoint over both", || head().is_some_and(|head| head.size() >= 2));
    // Nothing new: no further one.
    let sizes = checkpoint_sizes(dir.path());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(checkpoint_sizes(dir.path()), sizes);
    log.close();
    assert_eq!(checkpoint_sizes(dir.path()), sizes);
    verify(dir.path()).unwrap();
}

#[test]
fn a_checkpoint_comes_after_so_many_records_too() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options { checkpoint_records_max: 10, ..options(Durability::BeforeResponse, 1 << 20) };
    let log = AuditLog::open(dir.path(), options).unwrap();
    for _ in 0..25 {
        append(&log, "x");
    }
    log.close();
    assert_eq!(checkpoint_sizes(dir.path()), [10, 21, 27]);
    verify(dir.path()).unwrap();
}

fn small_segments(retention: Duration) -> Options {
    let options = options(Durability::BeforeResponse, 2_000);
    Options { retention, retention_grace: Duration::ZERO, ..options }
}

/// Every segment but the last is compressed and indexed.
fn wait_until_kept(dir: &Path) {
    wait_until("the keeper's work", || {
        let mut segments = encoding::list_segments(dir).unwrap();
        segments.pop();
        segments.iter().all(|(number, path)| {
            encoding::is_compressed(path) && dir.join(encoding::index_name(*number)).exists()
        })
    });
}

#[test]
fn closed_segments_are_compressed_and_indexed_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), small_segments(RETENTION)).unwrap();
    for number in 0..60 {
        append(&log, &number.to_string());
    }
    wait_until_kept(dir.path());
    log.close();
    let segments = encoding::list_segments(dir.path()).unwrap();
    let (last, closed) = segments.split_last().unwrap();
    assert!(closed.len() > 3);
    assert!(!encoding::is_compressed(&last.1));
    for (number, path) in closed {
        assert!(encoding::is_compressed(path), "{}", path.display());
        assert!(!dir.path().join(segment_name(*number)).exists());
        assert!(dir.path().join(encoding::index_name(*number)).exists());
    }
    assert_eq!(versions(dir.path()), (0..60).map(|n| n.to_string()).collect::<Vec<_>>());
    verify(dir.path()).unwrap();
}

#[test]
fn an_interrupted_compression_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), small_segments(RETENTION)).unwrap();
    for number in 0..30 {
        append(&log, &number.to_string());
    }
    wait_until_kept(dir.path());
    log.close();
    // Both forms are there, the compressed one half written under its first name.
    let compressed = segment(dir.path(), 1);
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut encoding::open_segment(&compressed).unwrap(), &mut plain)
        .unwrap();
    std::fs::write(dir.path().join(segment_name(1)), plain).unwrap();
    std::fs::write(&compressed, b"half").unwrap();
    std::fs::write(dir.path().join("00000002.jsonl.zst.new"), b"half").unwrap();
    verify(dir.path()).unwrap();
    let log = AuditLog::open(dir.path(), small_segments(RETENTION)).unwrap();
    wait_until_kept(dir.path());
    log.close();
    assert!(encoding::is_compressed(&segment(dir.path(), 1)));
    assert_eq!(versions(dir.path()).len(), 30);
    verify(dir.path()).unwrap();
}

#[test]
fn whole_expired_segments_are_deleted_with_a_signed_tombstone() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), small_segments(RETENTION)).unwrap();
    for number in 0..40 {
        append(&log, &number.to_string());
    }
    log.close();
    let before = encoding::list_segments(dir.path()).unwrap().len();
    let records = verify(dir.path()).unwrap().records;
    std::thread::sleep(Duration::from_millis(5));
    // From here on segments are large, so that the record of the deletion is not deleted too.
    let options = Options { segment_bytes_max: 1 << 20, ..small_segments(RETENTION) };
    let options = Options { retention: Duration::from_millis(1), ..options };
    let log = AuditLog::open(dir.path(), options).unwrap();
    wait_until("the deletion", || encoding::list_segments(dir.path()).unwrap().len() == 1);
    let is_told = |event: &Event| matches!(event, Event::SegmentsDeleted { .. });
    wait_until("the record of it", || events(dir.path()).iter().any(is_told));
    append(&log, "after");
    log.close();
    assert!(before > 3);
    let note = std::fs::read_to_string(dir.path().join(encoding::TOMBSTONE_FILE)).unwrap();
    let text = key().verifying_key().open(&note).unwrap();
    let tombstone = Tombstone::parse(std::str::from_utf8(&text).unwrap()).unwrap();
    assert_eq!(tombstone.through_segment, before as u64 - 1);
    assert!(verify(dir.path()).unwrap().records > records);
    assert_eq!(versions(dir.path()).last().unwrap(), "after");
    // Without its tombstone the log has simply lost its beginning.
    std::fs::remove_file(dir.path().join(encoding::TOMBSTONE_FILE)).unwrap();
    verify(dir.path()).unwrap_err();
}

#[test]
fn a_segment_that_is_not_what_its_checkpoint_says_is_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), small_segments(RETENTION)).unwrap();
    for number in 0..12 {
        append(&log, &number.to_string());
    }
    wait_until_kept(dir.path());
    log.close();
    let segments = encoding::list_segments(dir.path()).unwrap();
    let path = &segments[segments.len() - 2].1;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut encoding::open_segment(path).unwrap(), &mut text).unwrap();
    let changed = text.replacen("service_started", "service_stOrted", 1);
    assert_ne!(changed, text);
    std::fs::write(path, zstd::bulk::compress(changed.as_bytes(), 3).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let log = AuditLog::open(dir.path(), small_segments(Duration::from_millis(1))).unwrap();
    append(&log, "x");
    log.close();
    assert!(!dir.path().join(encoding::TOMBSTONE_FILE).exists());
    assert!(path.exists());
}

#[test]
fn a_log_of_format_1_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    for number in 1..=2 {
        let line = format!("{{\"format\":\"sekisho-audit/1\",\"source\":\"test\",{number}}}\n");
        std::fs::write(dir.path().join(segment_name(number)), line).unwrap();
    }
    let log = open(dir.path());
    append(&log, "1");
    log.close();
    assert!(dir.path().join("format-1/00000001.jsonl").exists());
    assert!(dir.path().join("format-1/00000002.jsonl").exists());
    assert_eq!(versions(dir.path()), ["1"]);
    verify(dir.path()).unwrap();
}

#[test]
fn permits_and_intents_left_open_are_named_at_the_next_start_once() {
    let dir = tempfile::tempdir().unwrap();
    let decision = |request_id: &str| Event::Decision {
        request_id: request_id.into(),
        actor: Actor::of("office/1/terminal/a"),
        action: None,
        object: Object::default(),
        decision: ALLOW.into(),
        reasons: Vec::new(),
        policy: "p".into(),
        facts_ca_seq: 1,
        facts_hub_seq: 1,
        client_addr: "192.0.2.1:5".into(),
        network: None,
    };
    let intent = Event::Intent {
        request_id: Some("intent".into()),
        actor: Actor::of("operator/o"),
        action: "certificate.issue".into(),
        object: Object::named("01"),
        detail: String::new(),
    };
    let completion = Event::Completion {
        request_id: "finished".into(),
        status: 200,
        bytes_sent: 1,
        duration_us: 1,
        outcome: "complete".into(),
        reasons: Vec::new(),
    };
    let log = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1_000)).unwrap();
    for event in [decision("open"), decision("finished"), intent, completion] {
        log.append(&event).unwrap().durable_blocking().unwrap();
    }
    log.close();
    let unfinished = || -> Vec<Vec<String>> {
        let ids = |event| {
            if let Event::Unfinished { request_ids } = event { Some(request_ids) } else { None }
        };
        events(dir.path()).into_iter().filter_map(ids).collect()
    };
    assert!(unfinished().is_empty());
    open(dir.path()).close();
    open(dir.path()).close();
    // Only the last two segments are looked through, so an older one may be missing.
    let [ids] = &unfinished()[..] else { panic!("{:?}", unfinished()) };
    assert!(ids.contains(&"intent".to_owned()), "{ids:?}");
    assert!(!ids.contains(&"finished".to_owned()), "{ids:?}");
}

#[test]
fn a_clock_that_is_wrong_for_a_moment_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), small_segments(RETENTION)).unwrap();
    for number in 0..20 {
        append(&log, &number.to_string());
    }
    log.close();
    std::thread::sleep(Duration::from_millis(5));
    let options = small_segments(Duration::from_millis(1));
    let options = Options { retention_grace: Duration::from_secs(3600), ..options };
    let log = AuditLog::open(dir.path(), options).unwrap();
    append(&log, "x");
    log.close();
    assert!(!dir.path().join(encoding::TOMBSTONE_FILE).exists());
    assert_eq!(versions(dir.path()).len(), 21);
}

#[test]
fn a_checkpoint_that_could_not_be_written_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let is_full = Arc::clone(&full);
    let disk = Disk {
        write: Box::new(move |mut file, bytes| {
            if is_full.load(Ordering::SeqCst) {
                file.write_all(&bytes[..bytes.len() / 2])?;
                return Err(std::io::Error::from_raw_os_error(28));
            }
            file.write_all(bytes)
        }),
        ..Disk::real()
    };
    let options =
        Options { checkpoint_records_max: 3, ..options(Durability::BeforeResponse, 1 << 20) };
    let log = AuditLog::open_on(disk, dir.path(), options).unwrap();
    append(&log, "1");
    append(&log, "2");
    full.store(true, Ordering::SeqCst);
    log.append(&started("3")).unwrap().durable_blocking().unwrap_err();
    std::thread::sleep(Duration::from_millis(50));
    let shown = latest_checkpoint(dir.path(), key().verifying_key()).unwrap();
    assert_eq!(shown, None);
    full.store(false, Ordering::SeqCst);
    wait_until("recovery", || log.is_available());
    append(&log, "4");
    log.close();
    verify(dir.path()).unwrap();
}

#[test]
fn a_log_shorter_than_its_shown_checkpoint_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for number in 0..9 {
        append(&log, &number.to_string());
    }
    log.close();
    let refused = || {
        let error = AuditLog::open(dir.path(), options(Durability::Async, 1000)).err().unwrap();
        assert!(matches!(error, Error::NotWhatItWas { .. }), "{error}");
        error.to_string()
    };
    let path = dir.path().join(segment_name(1));
    let whole = std::fs::read_to_string(&path).unwrap();
    let cut: String = whole.split_inclusive('\n').take(5).collect();
    std::fs::write(&path, &cut).unwrap();
    assert!(refused().contains("covers 9 records, the log ends at 4"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), cut, "left as it is");
    std::fs::remove_file(&path).unwrap();
    assert!(refused().contains("the log was removed"));
}

#[test]
fn a_header_that_says_format_1_does_not_move_a_signed_log_aside() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, "1");
    log.close();
    let path = dir.path().join(segment_name(1));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("sekisho-audit/2", "sekisho-audit/1", 1)).unwrap();
    AuditLog::open(dir.path(), options(Durability::Async, 1000)).err().unwrap();
    assert!(path.exists());
}

#[test]
fn segments_that_are_being_written_are_never_buried() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), small_segments(RETENTION)).unwrap();
    for number in 0..30 {
        append(&log, &number.to_string());
    }
    log.close();
    std::thread::sleep(Duration::from_millis(5));
    let options = Options { segment_bytes_max: 1 << 20, ..small_segments(RETENTION) };
    let options = Options { retention: Duration::from_millis(1), ..options };
    let log = AuditLog::open(dir.path(), options.clone()).unwrap();
    wait_until("the deletion", || encoding::list_segments(dir.path()).unwrap().len() == 1);
    log.close();
    // Someone takes the rest away: a new log would begin at numbers that the tombstone covers.
    for (_, path) in encoding::list_segments(dir.path()).unwrap() {
        std::fs::remove_file(path).unwrap();
    }
    assert!(AuditLog::open(dir.path(), options).is_err());
}
