//! Refusals do not stop permits: counted in floods, kept off the last of the disk and the queue.

use super::*;

fn decision(principal: &str, decision: &str, number: u32) -> Event {
    Event::Decision {
        request_id: format!("r{number}"),
        actor: Actor::of(principal),
        action: Some("documents.view".into()),
        object: Object::person("p"),
        decision: decision.into(),
        reasons: if decision == DENY { vec!["not_registered".into()] } else { Vec::new() },
        policy: "policy".into(),
        facts_ca_seq: 1,
        facts_hub_seq: 2,
        client_addr: "192.0.2.1:5".into(),
        network: None,
    }
}

fn denials(dir: &Path) -> (u64, u64) {
    let (mut written, mut counted) = (0, 0);
    for event in events(dir) {
        if let Event::Decision { decision, .. } = &event {
            written += u64::from(decision == DENY);
        } else if let Event::Aggregated { count, .. } = event {
            counted += count;
        }
    }
    (written, counted)
}

#[test]
fn a_flood_of_denials_is_counted_exactly_and_permits_are_all_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut counted = 0;
    for number in 0..5_000 {
        let receipt = log.append(&decision("office/1/terminal/a", DENY, number)).unwrap();
        counted += u64::from(receipt.is_counted());
        if number % 100 == 0 {
            let permit = decision("office/2/terminal/a", ALLOW, number);
            let receipt = log.append(&permit).unwrap();
            assert!(!receipt.is_counted());
            receipt.durable_blocking().unwrap();
        }
    }
    assert_eq!(log.metrics().refusals_counted.get(), counted);
    log.close();
    let (written, aggregated) = denials(dir.path());
    // The flood may cross the turn of a minute once.
    assert!(written == 60 || written == 120, "{written}");
    assert_eq!((aggregated, written + aggregated), (counted, 5_000));
    verify(dir.path()).unwrap();
}

#[test]
fn the_last_of_the_disk_is_for_permits() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(DISK_RESERVE_BYTES + PERMIT_RESERVE_BYTES - 1));
    let told = Arc::clone(&free);
    let disk =
        Disk { free_bytes: Box::new(move |_| Ok(told.load(Ordering::SeqCst))), ..Disk::real() };
    let log =
        AuditLog::open_on(disk, dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    let permit = |number| {
        let permit = decision("office/2/terminal/a", ALLOW, number);
        log.append(&permit).unwrap().durable_blocking().unwrap();
    };
    permit(1);
    let denial = decision("office/1/terminal/a", DENY, 2);
    assert!(log.append(&denial).unwrap().is_counted(), "no room for refusals");
    permit(3);
    assert_eq!(denials(dir.path()), (0, 0));
    free.store(DISK_RESERVE_BYTES + PERMIT_RESERVE_BYTES, Ordering::SeqCst);
    permit(4);
    assert!(!log.append(&denial).unwrap().is_counted(), "there is room again");
    log.close();
    assert_eq!(denials(dir.path()), (1, 1));
    verify(dir.path()).unwrap();
}

#[test]
fn refusals_fill_half_of_the_queue_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, slow) = slow_disk();
    slow.release.send(Ok(())).unwrap();
    let options = Options {
        refusals_per_minute_max: u32::MAX,
        ..options(Durability::BeforeResponse, 1 << 20)
    };
    let log = AuditLog::open_on(disk, dir.path(), options).unwrap();
    let mut denial = decision("office/1/terminal/a", DENY, 1);
    if let Event::Decision { client_addr, .. } = &mut denial {
        *client_addr = "x".repeat(EVENT_BYTES_MAX - 1000);
    }
    let appended = 2 * QUEUE_BYTES_MAX / EVENT_BYTES_MAX;
    let counted = (0..appended).filter(|_| log.append(&denial).unwrap().is_counted()).count();
    assert!(counted > appended / 2, "{counted}");
    let permit = log.append(&decision("office/2/terminal/a", ALLOW, 2)).unwrap();
    drop(slow.release);
    permit.durable_blocking().unwrap();
    log.close();
    let (written, aggregated) = denials(dir.path());
    assert_eq!((written + aggregated) as usize, appended, "each is written or counted");
}

#[test]
fn denials_of_an_outage_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let disk = Disk {
        sync: Box::new(move |file| {
            if is_broken.load(Ordering::SeqCst) {
                return Err(std::io::Error::from_raw_os_error(5));
            }
            file.sync_data()
        }),
        ..Disk::real()
    };
    let log =
        AuditLog::open_on(disk, dir.path(), options(Durability::BeforeResponse, 1 << 20)).unwrap();
    append(&log, "1");
    broken.store(true, Ordering::SeqCst);
    let denial = decision("office/1/terminal/a", DENY, 1);
    let first = log.append(&denial).unwrap();
    first.durable_blocking().unwrap_err();
    for _ in 0..49 {
        assert!(log.append(&denial).unwrap().is_counted());
    }
    broken.store(false, Ordering::SeqCst);
    wait_until("recovery", || log.is_available());
    log.close();
    assert_eq!(denials(dir.path()), (0, 50));
    verify(dir.path()).unwrap();
}
