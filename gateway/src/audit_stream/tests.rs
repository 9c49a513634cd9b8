//! Tests of the socket; the records themselves are tested with a whole gateway.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use audit_log::{AuditLog, CheckpointKey, Disk, Options, Receipt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream.sock");
    let socket = Socket::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let error = Socket::bind(&path).err().unwrap();
    assert!(error.to_string().contains("in use by a running process"), "{error}");
    drop(socket);
    assert!(!path.exists());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a killed process leaves its socket");
    Socket::bind(&path).unwrap();
}

/// A log whose segments are closed often, on a disk where now and then a write breaks off.
fn log(dir: &Path, segment_bytes_max: u64, failing: bool) -> AuditLog {
    let (key, _) = CheckpointKey::generate("test.example/audit/gateway").unwrap();
    let options = Options {
        segment_bytes_max,
        checkpoint_interval: Duration::from_millis(20),
        ..Options::new("gateway", key)
    };
    let mut disk = Disk::real();
    let (calls, write) = (AtomicU64::new(1), disk.write);
    disk.write = Box::new(move |file, bytes| {
        if failing && calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(40) {
            write(file, &bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        write(file, bytes)
    });
    AuditLog::open_on(disk, dir, options).unwrap()
}

fn completion(number: usize) -> Event {
    Event::Completion {
        request_id: format!("{number:024x}"),
        status: 200,
        bytes_sent: 1,
        duration_us: 1,
        outcome: "complete".repeat(1 + number % 9),
        reasons: Vec::new(),
    }
}

/// Appends completions in small groups and waits for each group; those that failed are left out.
fn append(log: &AuditLog, groups: usize) -> usize {
    let mut written = 0;
    for group in 0..groups {
        let receipts: Vec<_> =
            (0..group % 4 + 1).map(|n| log.append(&completion(10 * group + n))).collect();
        for receipt in receipts {
            let on_disk = receipt.and_then(Receipt::durable_blocking).is_ok();
            written += usize::from(on_disk);
        }
        if !log.is_available() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    written
}

#[test]
fn a_follower_sees_each_record_once_while_segments_come_go_and_break() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(dir.path(), 3_000, true);
    let committed = log.committed();
    let (done, writer) = (AtomicBool::new(false), log.clone());
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let appending = scope.spawn(|| {
            let written = append(&writer, 200);
            done.store(true, Ordering::SeqCst);
            written
        });
        let mut follower = Follower::new(dir.path(), 1, None);
        loop {
            let last = done.load(Ordering::SeqCst);
            let through = *committed.borrow();
            let mut each = |Seen { number, at, event, hash }: Seen<'_>| {
                assert!(number <= through, "{number} is not on disk");
                seen.push((number, at.to_owned(), event.clone(), hash.to_owned()));
                true
            };
            follower.read_through(through, &mut each).unwrap();
            if last && follower.read() >= through {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(appending.join().unwrap() > 100);
    });
    let last = seen.last().unwrap().0;
    let read = audit_log::read(dir.path()).map(Result::unwrap);
    let expected: Vec<_> = read
        .take_while(|entry| entry.number <= last)
        .map(|entry| (entry.number, entry.at, entry.event, entry.hash))
        .collect();
    assert!(seen == expected, "{} records seen, {} in the log", seen.len(), expected.len());
    let broke = expected.iter().any(|(_, _, event, _)| matches!(event, Event::Unavailable { .. }));
    assert!(broke, "a write broke off");
    log.close();
    // From any record on it is the same.
    for from in [2, last / 3, last / 2, last - 1, last] {
        let mut rest = Vec::new();
        let mut each = |seen: Seen<'_>| {
            rest.push(seen.number);
            seen.number < last - 1
        };
        let mut follower = Follower::new(dir.path(), from, None);
        follower.read_through(last, &mut each).unwrap();
        assert_eq!(rest, (from..=from.max(last - 1)).collect::<Vec<_>>(), "it stops when told to");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(dir.path(), 500_000, false);
    let writer = log.clone();
    let records = tokio::task::spawn_blocking(move || {
        for number in 0..20_000 {
            drop(writer.append(&completion(number)).unwrap());
        }
        writer.append(&completion(0)).unwrap().durable_blocking().unwrap();
        *writer.committed().borrow()
    });
    let records = records.await.unwrap();
    let path = dir.path().join("stream.sock");
    let (stop, shutdown) = watch::channel(false);
    let stream = AuditStream {
        dir: dir.path().to_owned(),
        origin: "test.example/audit/gateway".to_owned(),
        committed: log.committed(),
        facts: Arc::default(),
        shutdown,
    };
    let serving = tokio::spawn(Arc::new(stream).run(Socket::bind(&path).unwrap()));
    let connect = async || {
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(b"{\"from\":1}\n").await.unwrap();
        BufReader::new(client)
    };
    let mut silent = connect().await;
    let begun = Instant::now();
    let mut lines = connect().await.lines();
    let is_end = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        line["through"].as_u64() >= Some(records)
    };
    while !is_end(&lines.next_line().await.unwrap().unwrap()) {}
    tokio::time::sleep((WRITE_TIMEOUT + Duration::from_secs(3)).saturating_sub(begun.elapsed()))
        .await;
    // What was written before is still there to be read, then it ends, far from the last record.
    let mut text = String::new();
    let ended = timeout(Duration::from_secs(20), silent.read_to_string(&mut text)).await;
    assert!(ended.is_ok(), "it was not dropped");
    assert!(!text.is_empty() && !text.lines().any(is_end));
    stop.send(true).unwrap();
    serving.await.unwrap();
}
