//! The process is killed, or the power goes, at random points: what was confirmed is there.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;
use crate::{VerifyOptions, verify_with};

/// The program that `a_killed_writer_…` starts and kills; run by itself it has nothing to do.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var("AUDIT_LOG_TEST_DIR") else { return };
    let options = Options {
        checkpoint_interval: Duration::from_millis(3),
        ..options(Durability::BeforeResponse, 20_000)
    };
    let log = AuditLog::open(Path::new(&dir), options).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let log = log.clone();
            scope.spawn(move || {
                for turn in 0.. {
                    let name = format!("{}-{caller}-{turn}", std::process::id());
                    append(&log, &name);
                    writeln!(std::io::stdout(), "durable {name} end").unwrap();
                }
            });
        }
    });
}

/// The key must outlive the processes of this test.
fn child(dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("log::tests::crash::child_that_appends_until_it_is_killed")
        .env("AUDIT_LOG_TEST_DIR", dir)
        .env("AUDIT_LOG_TEST_KEY", dir.with_extension("key"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_writer_loses_no_record_that_it_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("log");
    store_key(&dir.with_extension("key"));
    let mut confirmed = Vec::new();
    for round in 0..KILLS {
        let mut child = child(&dir);
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let kill_after = 1 + round * 7 % 40;
        let mut lines = 0;
        for line in output.lines().map_while(Result::ok) {
            // The last line may be cut off by the kill.
            let Some(name) = line
                .split_once("durable ")
                .and_then(|(_, name)| name.strip_suffix(" end").map(str::to_owned))
            else {
                continue;
            };
            confirmed.push(name);
            lines += 1;
            if lines == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
    }
    open(&dir).close();
    verify(&dir).unwrap();
    let written: std::collections::HashSet<String> = versions(&dir).into_iter().collect();
    assert!(confirmed.len() >= KILLS);
    for name in &confirmed {
        assert!(written.contains(name), "{name} was confirmed and is not in the log");
    }
    println!("{KILLS} kills, {} confirmed records, all in the log", confirmed.len());
}

const KILLS: usize = 200;

/// Remembers per file how many bytes were synced, and fails everything once the power is gone.
#[derive(Clone, Default)]
struct Power {
    synced: Arc<Mutex<HashMap<u64, u64>>>,
    calls_left: Arc<AtomicUsize>,
}

impl Power {
    fn disk(&self) -> Disk {
        let (write, sync) = (self.clone(), self.clone());
        Disk {
            write: Box::new(move |mut file, bytes| {
                if write.is_gone() {
                    // Some of it may reach the medium, or nothing.
                    let part = bytes.len() / 3;
                    file.write_all(&bytes[..part])?;
                    return Err(std::io::Error::from_raw_os_error(5));
                }
                file.write_all(bytes)
            }),
            sync: Box::new(move |file| {
                if sync.is_gone() {
                    return Err(std::io::Error::from_raw_os_error(5));
                }
                let metadata = file.metadata()?;
                sync.synced.lock().unwrap().insert(metadata.ino(), metadata.len());
                Ok(())
            }),
            free_bytes: Box::new(|_| Ok(u64::MAX)),
        }
    }

    fn is_gone(&self) -> bool {
        self.calls_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_err()
    }

    /// Drops what was never synced, but for a part of it that reached the medium by chance.
    fn cut(&self, dir: &Path, chance: usize, hole: bool) {
        for (_, path) in encoding::list_segments(dir).unwrap() {
            // Compressed segments were synced as whole files.
            if encoding::is_compressed(&path) {
                continue;
            }
            let metadata = std::fs::metadata(&path).unwrap();
            let synced = self.synced.lock().unwrap().get(&metadata.ino()).copied().unwrap_or(0);
            let unsynced = metadata.len().saturating_sub(synced);
            let kept = synced + unsynced * chance as u64 / 100;
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(kept).unwrap();
            // Sectors reach the medium in any order: the first of them may be missing.
            let sector = synced.next_multiple_of(512);
            if hole && sector + 512 <= kept {
                std::os::unix::fs::FileExt::write_all_at(&file, &[0; 512], sector).unwrap();
            }
        }
    }
}

use std::fs::File;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn a_loss_of_power_takes_no_record_that_was_confirmed(
        calls in 3usize..60,
        chance in 0usize..=100,
        hole in any::<bool>(),
        callers in 1usize..4,
        segment_bytes in 800u64..6_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let power = Power::default();
        power.calls_left.store(calls, Ordering::SeqCst);
        let options = Options {
            checkpoint_interval: Duration::from_micros(300),
            ..options(Durability::BeforeResponse, segment_bytes)
        };
        let confirmed = Mutex::new(Vec::new());
        if let Ok(log) = AuditLog::open_on(power.disk(), dir.path(), options) {
            std::thread::scope(|scope| {
                for caller in 0..callers {
                    let (log, confirmed) = (log.clone(), &confirmed);
                    scope.spawn(move || {
                        for turn in 0..200 {
                            let name = format!("{caller}-{turn}");
                            let Ok(receipt) = log.append(&started(&name)) else { return };
                            match receipt.durable_blocking() {
                                Ok(()) => confirmed.lock().unwrap().push(name),
                                Err(_) => return,
                            }
                        }
                    });
                }
            });
        }
        power.cut(dir.path(), chance, hole);
        let shown = latest_checkpoint(dir.path(), key().verifying_key()).unwrap();
        open(dir.path()).close();
        let heads = VerifyOptions { heads: shown.into_iter().collect(), ..Default::default() };
        verify_with(dir.path(), key().verifying_key(), &heads, &mut |_| {}).unwrap();
        let written = versions(dir.path());
        for name in confirmed.into_inner().unwrap() {
            prop_assert!(written.contains(&name), "{} was confirmed and is not there", name);
        }
    }
}
