//! The record stream as the hub reads it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use audit_log::{Disk, Entry, Event};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::harness::{OFFICE, OFFICE_NAME, Setup, World};
use crate::{CARD, SURVEY, office};

/// A hub's side of the stream.
struct Reader {
    stream: BufReader<UnixStream>,
    records: BTreeMap<u64, Value>,
    through: Option<u64>,
    hello: Option<Value>,
}

impl Reader {
    async fn connect(world: &World, first_line: &str) -> Self {
        let mut stream = UnixStream::connect(world.dir.path().join("stream.sock")).await.unwrap();
        // One that is refused may be closed before it has spoken.
        let _ = stream.write_all(first_line.as_bytes()).await;
        Self {
            stream: BufReader::new(stream),
            records: BTreeMap::new(),
            through: None,
            hello: None,
        }
    }

    async fn from(world: &World, number: u64) -> Self {
        Self::connect(world, &format!("{{\"from\": {number}}}\n")).await
    }

    /// Takes one line; `false` at the end of the stream.
    async fn take(&mut self) -> bool {
        let mut line = String::new();
        let read = timeout(Duration::from_secs(20), self.stream.read_line(&mut line));
        if read.await.unwrap().unwrap_or(0) == 0 {
            return false;
        }
        let line: Value = serde_json::from_str(&line).unwrap();
        if self.hello.is_none() {
            assert_eq!(line["log"], "test.example/audit/gateway", "which log comes first");
            self.hello = Some(line);
        } else if let Some(through) = line["through"].as_u64() {
            assert!(self.through <= Some(through), "never back");
            self.through = Some(through);
        } else {
            let number = line["number"].as_u64().unwrap();
            assert!(self.records.last_key_value().is_none_or(|(last, _)| *last < number));
            assert!(self.through.is_none_or(|through| through < number));
            self.records.insert(number, line);
        }
        true
    }

    /// Reads until everything up to record `number` was told.
    async fn until(&mut self, number: u64) {
        while self.through.is_none_or(|through| through < number) {
            assert!(self.take().await, "the stream ended");
        }
    }
}

/// What the stream must tell of the log, by record number.
fn expected(entries: &[Entry]) -> BTreeMap<u64, Value> {
    let offered = entries.iter().filter(|entry| {
        matches!(&entry.event, Event::Decision { .. } | Event::Completion { .. })
            || matches!(&entry.event, Event::Aggregated { what, .. } if what == "denials")
    });
    let line = |entry: &Entry| {
        let mut line = serde_json::json!({
            "number": entry.number, "at": entry.at, "event": entry.event, "hash": entry.hash,
        });
        if !matches!(entry.event, Event::Completion { .. }) {
            line["party_name"] = OFFICE_NAME.into();
        }
        (entry.number, line)
    };
    offered.map(line).collect()
}

async fn ask(world: &World, requests: usize) {
    let (party, headers) = office(world, 1).await;
    let mut client = world.client(&party).await;
    for n in 0..requests {
        let (path, status) = if n % 3 == 0 { (SURVEY, 403) } else { (CARD, 200) };
        assert_eq!(client.get(path, &headers).await.unwrap().status, status);
    }
}

/// The log once each of `requests` has its completion.
async fn settled(world: &World, requests: usize) -> Vec<Entry> {
    let done = |events: &[Event]| {
        events.iter().filter(|event| matches!(event, Event::Completion { .. })).count() >= requests
    };
    world.events_when(done).await;
    world.entries()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_everything_then_what_comes_and_resumes() {
    let world =
        World::start_with(Setup { more: "refusals_per_minute_max = 5", ..Setup::default() }).await;
    ask(&world, 60).await;
    // All that was counted is in the log after a while too.
    let counted =
        |events: &[Event]| events.iter().any(|event| matches!(event, Event::Aggregated { .. }));
    world.events_when(counted).await;
    let before = settled(&world, 45).await;
    let last = before.last().unwrap().number;
    let mut all = Reader::from(&world, 1).await;
    all.until(last).await;
    let told: BTreeMap<u64, Value> = all.records.range(..=last).map(pair).collect();
    assert_eq!(told, expected(&before));
    assert!(told.values().any(|line| line["event"]["event"] == "aggregated"));
    assert!(told.values().any(|line| line["event"]["actor"]["office"] == OFFICE));

    let middle = last / 2;
    let mut rest = Reader::from(&world, middle).await;
    rest.until(last).await;
    let told: BTreeMap<u64, Value> = rest.records.range(..=last).map(pair).collect();
    assert_eq!(told, expected(&before).split_off(&middle));
    let hash = before.iter().find(|entry| entry.number == middle - 1).unwrap().hash.clone();
    assert_eq!(rest.hello.as_ref().unwrap()["before"], hash, "the place in the log is named");
    assert_eq!(all.hello.as_ref().unwrap()["before"], "0".repeat(64));

    ask(&world, 6).await;
    let after = settled(&world, 45 + 4).await;
    let last = after.last().unwrap().number;
    for reader in [&mut all, &mut rest] {
        reader.until(last).await;
    }
    let told: BTreeMap<u64, Value> = all.records.range(..=last).map(pair).collect();
    assert_eq!(told, expected(&after), "what came later arrived on the open stream");
    let told: BTreeMap<u64, Value> = rest.records.range(..=last).map(pair).collect();
    assert_eq!(told, expected(&after).split_off(&middle));
}

fn pair((number, line): (&u64, &Value)) -> (u64, Value) {
    (*number, line.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_log_is_told_and_a_number_beyond_it_too() {
    let world = World::start().await;
    ask(&world, 1).await;
    let last = settled(&world, 1).await.last().unwrap().number;
    // The log tells what is on the disk; the file may hold more for a moment.
    Reader::from(&world, 1).await.until(last).await;
    let mut reader = Reader::from(&world, last + 1_000).await;
    let start = Instant::now();
    for _ in 0..4 {
        assert!(reader.take().await);
    }
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(reader.records.is_empty());
    let hello = reader.hello.take().unwrap();
    assert_eq!((hello.get("before"), hello["last"].as_u64() >= Some(last)), (None, true));
    assert!(reader.through >= Some(last) && reader.through < Some(last + 1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_record_is_told_before_it_is_on_disk() {
    let (held, mut disk) = (Arc::new(AtomicBool::new(false)), Disk::real());
    let (is_held, sync) = (held.clone(), disk.sync);
    disk.sync = Box::new(move |file| {
        while is_held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        sync(file)
    });
    let world = World::start_with(Setup { disk, ..Setup::default() }).await;
    ask(&world, 3).await;
    let mut reader = Reader::from(&world, 1).await;
    let settled_last = settled(&world, 3).await.last().unwrap().number;
    reader.until(settled_last).await;
    // From here on everything stays before the disk.
    held.store(true, Ordering::SeqCst);
    let told = reader.records.len();
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    client.send(&format!("GET {CARD} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")).await.unwrap();
    let has_text = |world: &World, wanted: usize| {
        let entries = world.entries();
        entries.iter().filter(|e| matches!(e.event, Event::Decision { .. })).count() == wanted
    };
    for _ in 0..500 {
        if has_text(&world, 4) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(has_text(&world, 4), "the record stands in the file");
    for _ in 0..3 {
        assert!(reader.take().await);
    }
    assert_eq!(reader.records.len(), told, "and is not told");
    held.store(false, Ordering::SeqCst);
    let last = settled(&world, 4).await.last().unwrap().number;
    reader.until(last).await;
    assert_eq!(reader.records.len(), told + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifth_client_and_lines_that_are_no_request_are_refused() {
    let world = World::start().await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Reader::from(&world, 1).await;
        assert!(client.take().await);
        clients.push(client);
    }
    assert!(!Reader::from(&world, 1).await.take().await, "the fifth");
    clients.pop();
    let mut again = Reader::from(&world, 1).await;
    let mut tries = 0;
    while !again.take().await {
        tries += 1;
        assert!(tries < 200, "the slot never came back");
        tokio::time::sleep(Duration::from_millis(50)).await;
        again = Reader::from(&world, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_request_is_refused() {
    let world = World::start().await;
    assert!(Reader::from(&world, 1).await.take().await);
    let long = format!("{{\"from\": 1{}}}\n", " ".repeat(400));
    for wrong in ["{\"from\": 0}\n", "hello\n", "{\"from\": 1, \"to\": 2}\n", &long] {
        assert!(!Reader::connect(&world, wrong).await.take().await, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_were_closed_and_compressed_are_told_too() {
    let segment_bytes_max = 20_000;
    let mut world = World::start_with(Setup { segment_bytes_max, ..Setup::default() }).await;
    let mut live = Reader::from(&world, 1).await;
    let compressed = |world: &World| {
        let files = std::fs::read_dir(world.audit_dir()).unwrap();
        let is_compressed = |name: &std::ffi::OsStr| name.to_str().unwrap().ends_with(".zst");
        files.filter(|file| is_compressed(&file.as_ref().unwrap().file_name())).count()
    };
    let (mut requests, start) = (0, Instant::now());
    while compressed(&world) < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "no segments were compressed");
        ask(&world, 30).await;
        requests += 30;
        // A segment is closed at a checkpoint, and those are a second apart.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let entries = settled(&world, requests).await;
    let last = entries.last().unwrap().number;
    let mut late = Reader::from(&world, 1).await;
    for reader in [&mut live, &mut late] {
        reader.until(last).await;
        let told: BTreeMap<u64, Value> = reader.records.range(..=last).map(pair).collect();
        assert!(told == expected(&entries), "{} of {}", told.len(), expected(&entries).len());
    }
    world.stop().await;
    while live.take().await {}
    assert!(!world.dir.path().join("stream.sock").exists(), "the socket is gone");
}
