//! One process gives its log to the next, and records of both go on.

use std::os::unix::net::UnixStream;

use super::*;

fn hand_over(log: &AuditLog, successor: UnixStream) -> JoinHandle<Result<(), Error>> {
    let log = log.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(log.hand_over(successor))
    })
}

/// The old log, and the one that took it over.
fn handed(dir: &Path, durability: Durability) -> (AuditLog, AuditLog) {
    let old = AuditLog::open(dir, options(durability, 1 << 20)).unwrap();
    old.append(&started("old")).unwrap().durable_blocking().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handing = hand_over(&old, ours);
    let new = AuditLog::take_over(dir, options(durability, 1 << 20), theirs).unwrap();
    handing.join().unwrap().unwrap();
    (old, new)
}

#[test]
fn records_of_both_processes_stand_in_one_sound_log() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = handed(dir.path(), Durability::BeforeResponse);
    new.append(&started("new")).unwrap().durable_blocking().unwrap();
    // What the old one still has to say is on disk when its receipt says so.
    old.append(&started("late")).unwrap().durable_blocking().unwrap();
    assert_eq!(versions(dir.path()), ["old", "new", "late"]);
    let receipts: Vec<Receipt> =
        (0..500).map(|at| old.append(&started(&at.to_string())).unwrap()).collect();
    receipts.into_iter().for_each(|receipt| receipt.durable_blocking().unwrap());
    assert_eq!(versions(dir.path()).len(), 503);
    old.close();
    new.append(&started("last")).unwrap().durable_blocking().unwrap();
    new.close();
    verify(dir.path()).unwrap();
    assert_eq!(versions(dir.path()).last().unwrap(), "last");
}

#[test]
fn what_is_appended_while_the_log_changes_hands_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let old = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    let appending = {
        let old = old.clone();
        std::thread::spawn(move || {
            for at in 0..2_000 {
                old.append(&started(&at.to_string())).unwrap().durable_blocking().unwrap();
            }
        })
    };
    std::thread::sleep(Duration::from_millis(20));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handing = hand_over(&old, ours);
    let new = AuditLog::take_over(dir.path(), options(Durability::BeforeResponse, 1 << 20), theirs);
    let new = new.unwrap();
    handing.join().unwrap().unwrap();
    appending.join().unwrap();
    old.close();
    new.close();
    verify(dir.path()).unwrap();
    let expected: Vec<String> = (0..2_000).map(|at| at.to_string()).collect();
    assert_eq!(versions(dir.path()), expected);
}

#[test]
fn a_successor_that_gives_up_leaves_the_log_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let old = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    old.append(&started("before")).unwrap().durable_blocking().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    hand_over(&old, ours).join().unwrap().unwrap_err();
    old.append(&started("after")).unwrap().durable_blocking().unwrap();
    // One that opened the log and does not hear that it is its own writes nothing.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handing = hand_over(&old, ours);
    let mut word = [0; 9];
    std::io::Read::read_exact(&mut &theirs, &mut word).unwrap();
    assert_eq!(&word, b"released\n");
    (&theirs).write_all(b"closed\n").unwrap();
    handing.join().unwrap().unwrap_err();
    old.append(&started("again")).unwrap().durable_blocking().unwrap();
    old.close();
    verify(dir.path()).unwrap();
    assert_eq!(versions(dir.path()), ["before", "after", "again"]);
}

#[test]
fn a_successor_that_dies_makes_every_further_record_fail() {
    let dir = tempfile::tempdir().unwrap();
    let old = AuditLog::open(dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handing = hand_over(&old, ours);
    let mut words = [0; 9];
    std::io::Read::read_exact(&mut &theirs, &mut words).unwrap();
    (&theirs).write_all(b"opened\n").unwrap();
    handing.join().unwrap().unwrap();
    let waiting = old.append(&started("x")).unwrap();
    drop(theirs);
    assert!(matches!(waiting.durable_blocking(), Err(Error::Unavailable { .. })));
    wait_until("the refusal of records", || old.append(&started("y")).is_err());
    assert!(!old.is_available());
    old.close();
    assert_eq!(versions(dir.path()), Vec::<String>::new());
}

#[test]
fn with_nobody_waiting_records_gather_before_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), options(Durability::Async, 1 << 20)).unwrap();
    let began = Instant::now();
    for _ in 0..40 {
        append(&log, "x");
        std::thread::sleep(Duration::from_micros(200));
    }
    let took = began.elapsed();
    let mut committed = log.committed();
    wait_until("the records to be on disk", || *committed.borrow_and_update() >= 40);
    let groups = log.metrics().group_records.get_sample_count();
    let at_most = took.as_millis() as u64 / GATHER_INTERVAL.as_millis() as u64 + 2;
    assert!(groups <= at_most, "{groups} writes in {took:?}, at most {at_most} expected");
}
