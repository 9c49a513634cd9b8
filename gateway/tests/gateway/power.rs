//! Power goes at a random moment while clients read documents: whatever anyone received of a
//! document must stand in what the disk kept.
//!
//! The disk is simulated: bytes that were written and not synced are lost when the power goes, but
//! for a random part, which may have become zeros.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use audit_log::{ALLOW, AuditLog, CheckpointKey, Disk, Event, Options};

use crate::harness::{Setup, World};
use crate::{CARD, SURVEY, office};

const ROUNDS: u32 = 200;
const TIME_MAX: Duration = Duration::from_secs(55);
const CLIENTS: u8 = 3;

/// A disk whose power goes after some calls.
struct Power {
    off: AtomicBool,
    state: Mutex<State>,
}

struct State {
    random: u64,
    calls_left: u64,
    /// Bytes that are safe, by file.
    synced: HashMap<u64, u64>,
    log: Option<PathBuf>,
    image: PathBuf,
}

impl State {
    /// A number below `end` (splitmix64).
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// What the disk would show after the power came back.
    fn keep_what_is_left(&mut self) {
        let Some(log) = self.log.clone() else { return };
        std::fs::create_dir_all(&self.image).unwrap();
        for entry in std::fs::read_dir(log).unwrap() {
            let entry = entry.unwrap();
            let (Ok(metadata), Ok(mut bytes)) = (entry.metadata(), std::fs::read(entry.path()))
            else {
                continue;
            };
            let name = entry.file_name();
            if Path::new(&name).extension().is_some_and(|end| end == "jsonl" || end == "new") {
                let safe = self.synced.get(&metadata.ino()).copied().unwrap_or(0);
                let safe = safe.min(bytes.len() as u64);
                let kept = safe + self.below(bytes.len() as u64 - safe + 1);
                bytes.truncate(kept as usize);
                if self.below(4) == 0 {
                    let zeros = safe + self.below(kept - safe + 1);
                    bytes[zeros as usize..].fill(0);
                }
            }
            std::fs::write(self.image.join(name), bytes).unwrap();
        }
    }
}

impl Power {
    fn new(seed: u64, image: PathBuf) -> Arc<Self> {
        let mut state =
            State { random: seed, calls_left: 0, synced: HashMap::new(), log: None, image };
        state.calls_left = 1 + state.below(120);
        Arc::new(Self { off: AtomicBool::new(false), state: Mutex::new(state) })
    }

    fn is_off(&self) -> bool {
        self.off.load(Ordering::SeqCst)
    }

    /// From now on the calls count, and the log in `dir` is what is lost in part.
    fn watch(&self, dir: PathBuf) {
        self.state.lock().unwrap().log = Some(dir);
    }

    fn cut(&self, state: &mut State) {
        if !self.off.swap(true, Ordering::SeqCst) {
            state.keep_what_is_left();
        }
    }

    /// Runs one call of the disk, before, in the middle of, or after which the power may go.
    fn call(&self, run: impl Fn(&mut State, bool) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if self.is_off() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if state.log.is_some() {
            state.calls_left -= 1;
        }
        if state.calls_left > 0 {
            return run(&mut state, false);
        }
        match state.below(3) {
            0 => {}
            1 => drop(run(&mut state, true)),
            _ => drop(run(&mut state, false)),
        }
        self.cut(&mut state);
        Err(io::ErrorKind::NotConnected.into())
    }

    fn disk(self: &Arc<Self>) -> Disk {
        let (write, sync) = (Arc::clone(self), Arc::clone(self));
        Disk {
            write: Box::new(move |file, bytes| {
                write.call(|state, half| {
                    let part = state.below(bytes.len() as u64) as usize;
                    let mut file = file;
                    file.write_all(if half { &bytes[..part] } else { bytes })
                })
            }),
            sync: Box::new(move |file| {
                // As long as a fast disk takes, so that records queue up behind one another.
                std::thread::sleep(Duration::from_micros(300));
                sync.call(|state, half| state.sync(file, half))
            }),
            free_bytes: Disk::real().free_bytes,
        }
    }
}

impl State {
    fn sync(&mut self, file: &File, half: bool) -> io::Result<()> {
        let metadata = file.metadata()?;
        let before = self.synced.get(&metadata.ino()).copied().unwrap_or(0).min(metadata.len());
        let more = metadata.len() - before;
        let synced = if half { before + self.below(more + 1) } else { metadata.len() };
        self.synced.insert(metadata.ino(), synced);
        Ok(())
    }
}

/// What clients received: the request ids of documents of which any byte arrived.
#[derive(Default)]
struct Received {
    begun: Vec<String>,
    whole: usize,
}

/// Reads documents for as long as there are answers.
async fn read_documents(world: &World, serial: u8, received: &Mutex<Received>) -> io::Result<()> {
    let (party, headers) = office(world, serial).await;
    let mut client = world.connect(Arc::new(world.client_config(Some(&party)))).await?;
    for n in 0_u64.. {
        // A denial between, so that not everything in the log is a permit.
        let path = if n % 5 == 4 { SURVEY } else { CARD };
        let path = format!("{path}?pad={}", if n % 4 == 0 { 2_000_000 } else { 10 });
        let mut delivery = client.begin(&path, &headers).await?;
        while client.more(&mut delivery).await? {
            let mut received = received.lock().unwrap();
            if delivery.status == 200 && received.begun.last() != Some(&delivery.request_id) {
                received.begun.push(delivery.request_id.clone());
            }
        }
        received.lock().unwrap().whole += usize::from(delivery.status == 200);
    }
    Ok(())
}

/// One round in a runtime of its own, which dies with the power, answers half-way or not.
fn run_until_power_is_off(power: &Arc<Power>, key_file: &Path) -> Received {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all: Vec<Arc<Mutex<Received>>> = (0..CLIENTS).map(|_| Arc::default()).collect();
    let world = runtime.block_on(async {
        let disk = power.disk();
        let world = Arc::new(World::start_with(Setup { disk, ..Setup::default() }).await);
        std::fs::copy(world.dir.path().join("audit.key"), key_file).unwrap();
        power.watch(world.audit_dir());
        for (serial, received) in (1..).zip(&all) {
            let (world, received) = (Arc::clone(&world), Arc::clone(received));
            tokio::spawn(async move { read_documents(&world, serial, &received).await });
        }
        let start = Instant::now();
        while !power.is_off() {
            assert!(start.elapsed() < Duration::from_secs(20), "the power never went");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        // What is on its way may still arrive, for a random while.
        let while_us = {
            let mut state = power.state.lock().unwrap();
            state.below(2) * state.below(5_000)
        };
        tokio::time::sleep(Duration::from_micros(while_us)).await;
        world
    });
    runtime.shutdown_background();
    drop(world);
    let mut sum = Received::default();
    for received in all {
        let received = received.lock().unwrap();
        sum.begun.extend(received.begun.iter().cloned());
        sum.whole += received.whole;
    }
    sum
}

/// Opens what the disk kept as the next start would, and returns the permits that it knows.
fn recovered_permits(image: &Path, key_file: &Path) -> (HashSet<String>, bool) {
    let key = CheckpointKey::load(key_file).unwrap();
    let head = audit_log::latest_checkpoint(image, key.verifying_key()).unwrap();
    AuditLog::open(image, Options::new("gateway", key.clone())).unwrap().close();
    let options =
        audit_log::VerifyOptions { heads: head.into_iter().collect(), ..Default::default() };
    audit_log::verify_with(image, key.verifying_key(), &options, &mut |_| {}).unwrap();
    let (mut permits, mut torn) = (HashSet::new(), false);
    for entry in audit_log::read(image) {
        let event = entry.unwrap().event;
        torn |= matches!(event, Event::TailCut { .. });
        if let Event::Decision { request_id, decision, .. } = event
            && decision == ALLOW
        {
            permits.insert(request_id);
        }
    }
    (permits, torn)
}

#[test]
fn no_document_that_was_delivered_is_missing_after_a_power_cut() {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let (start, mut rounds, mut torn) = (Instant::now(), 0_u32, 0);
    let (mut documents, mut in_part) = (0, 0);
    while rounds < ROUNDS && start.elapsed() < TIME_MAX {
        let seed = seed.wrapping_add(u64::from(rounds));
        let dir = tempfile::tempdir().unwrap();
        let (image, key_file) = (dir.path().join("image"), dir.path().join("audit.key"));
        let power = Power::new(seed, image.clone());
        let received = run_until_power_is_off(&power, &key_file);
        let (permits, was_torn) = recovered_permits(&image, &key_file);
        for request_id in &received.begun {
            assert!(permits.contains(request_id), "seed {seed}: {request_id} is not in the log");
        }
        documents += received.begun.len();
        in_part += received.begun.len() - received.whole;
        torn += u32::from(was_torn);
        rounds += 1;
    }
    println!(
        "{rounds} power cuts in {:.0} s: {documents} documents received, {in_part} of them in \
         part, all of them in the log; {torn} torn tails cut",
        start.elapsed().as_secs_f64()
    );
    assert!(rounds >= 10 && documents > 0 && torn > 0, "{rounds} {documents} {torn}");
}
