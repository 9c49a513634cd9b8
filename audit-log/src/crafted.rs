//! Logs for tests, made line by line: sound ones, and ones as a forger without the key makes them.

use std::io::Write;
use std::path::Path;

use tempfile::TempDir;
use tlog_tiles::Hash;

use crate::checkpoint::{Checkpoint, CheckpointKey, VerifyingKey};
use crate::encoding::{
    self, FORMAT, GENESIS, Header, HexHash, Tombstone, header_line, write_record,
};
use crate::entry::{Actor, Event, Object};
use crate::tree::Frontier;

/// Lines of one segment, each with its LF; the first is the header.
pub(crate) type Segment = Vec<Vec<u8>>;

/// A log in the making.
pub(crate) struct Crafted {
    pub(crate) key: CheckpointKey,
    pub(crate) segments: Vec<Segment>,
    pub(crate) tree: Frontier,
    /// Roots by size, and leaf hashes.
    pub(crate) roots: Vec<Hash>,
    pub(crate) leaves: Vec<Hash>,
    pub(crate) hash: HexHash,
    pub(crate) at_ms: i64,
    pub(crate) checkpoints: Vec<Checkpoint>,
}

impl Crafted {
    pub(crate) fn new() -> Self {
        let (key, _) = CheckpointKey::generate("sekisho.example/audit/test").unwrap();
        Self::with_key(key)
    }

    pub(crate) fn with_key(key: CheckpointKey) -> Self {
        let mut log = Self {
            key,
            segments: Vec::new(),
            tree: Frontier::default(),
            roots: vec![Frontier::default().root()],
            leaves: Vec::new(),
            hash: GENESIS,
            at_ms: 1_775_000_000_000,
            checkpoints: Vec::new(),
        };
        log.begin_segment();
        log
    }

    /// `segments` segments of `records` records each, the last of each a checkpoint.
    pub(crate) fn of(segments: u64, records: u64) -> Self {
        let mut log = Self::new();
        for segment in 0..segments {
            if segment > 0 {
                log.begin_segment();
            }
            for _ in 1..records {
                log.push_sample();
            }
            log.checkpoint();
        }
        log
    }

    pub(crate) fn verifying_key(&self) -> &VerifyingKey {
        self.key.verifying_key()
    }

    pub(crate) fn next(&self) -> u64 {
        self.tree.size() + 1
    }

    pub(crate) fn begin_segment(&mut self) {
        let header = Header {
            format: FORMAT.into(),
            source: "test".into(),
            segment: self.segments.len() as u64 + 1,
            first: self.next(),
            at: encoding::at_text(self.at_ms),
            prev: encoding::hash_text(&self.hash),
            tree: texts(self.tree.roots()),
        };
        self.segments.push(vec![header_line(&header)]);
    }

    pub(crate) fn push_json(&mut self, json: &[u8]) {
        self.at_ms += 7;
        let mut line = Vec::new();
        let at = encoding::at_text(self.at_ms);
        let leaf = write_record(&mut line, self.next(), &at, &self.hash, json);
        self.segments.last_mut().unwrap().push(line);
        self.tree.push(leaf);
        self.leaves.push(leaf);
        self.roots.push(self.tree.root());
        self.hash = encoding::hex(&leaf);
    }

    pub(crate) fn push(&mut self, event: &Event) {
        self.push_json(&serde_json::to_vec(event).unwrap());
    }

    pub(crate) fn push_sample(&mut self) {
        self.push(&sample(self.next()));
    }

    pub(crate) fn checkpoint(&mut self) {
        let at = encoding::at_text(self.at_ms);
        let checkpoint = self.key.sign(self.tree.size(), self.tree.root(), &at).unwrap();
        self.push(&Event::Checkpoint { note: checkpoint.note().to_owned() });
        self.checkpoints.push(checkpoint);
    }

    /// Writes the log into a new folder.
    pub(crate) fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write_into(dir.path());
        dir
    }

    pub(crate) fn write_into(&self, dir: &Path) {
        for (number, segment) in (1..).zip(&self.segments) {
            std::fs::write(dir.join(encoding::segment_name(number)), segment.concat()).unwrap();
        }
        if let Some(newest) = self.checkpoints.last() {
            std::fs::write(dir.join(encoding::CHECKPOINT_FILE), newest.note()).unwrap();
        }
    }

    /// The tombstone of the first `segments` segments.
    pub(crate) fn tombstone(&self, segments: usize) -> String {
        let records: u64 =
            self.segments[..segments].iter().map(|lines| lines.len() as u64 - 1).sum();
        let last = self.segments[segments - 1].last().unwrap();
        let record = encoding::parse_record(last.strip_suffix(b"\n").unwrap()).unwrap();
        let tombstone = Tombstone {
            origin: self.verifying_key().name().to_owned(),
            through_segment: segments as u64,
            through_record: records,
            last_hash: record.hash.try_into().unwrap(),
            root: self.roots[records as usize],
            until: record.at.to_owned(),
            deleted_at: encoding::at_text(self.at_ms + 1000),
            retention_days: 1826,
        };
        self.key.sign_text(tombstone.to_text().as_bytes()).unwrap()
    }

    /// What a forger without the key can do after any change of the lines: renumbers all records
    /// and counts all hashes anew, headers too. Events stay, checkpoints among them.
    pub(crate) fn recount(&mut self) {
        let (mut hash, mut tree) = (GENESIS, Frontier::default());
        for segment in &mut self.segments {
            for (at, line) in segment.iter_mut().enumerate() {
                let whole = line.strip_suffix(b"\n").unwrap().to_vec();
                if at == 0 {
                    let header = encoding::parse_header(&whole).unwrap();
                    let first = tree.size() + 1;
                    let prev = encoding::hash_text(&hash);
                    *line =
                        header_line(&Header { first, prev, tree: texts(tree.roots()), ..header });
                    continue;
                }
                let record = encoding::parse_record(&whole).unwrap();
                let mut anew = Vec::new();
                let leaf = write_record(&mut anew, tree.size() + 1, record.at, &hash, record.event);
                *line = anew;
                tree.push(leaf);
                hash = encoding::hex(&leaf);
            }
        }
    }
}

fn texts(roots: &[Hash]) -> Vec<String> {
    roots.iter().map(|hash| encoding::hash_text(&encoding::hex(hash))).collect()
}

/// Replaces a plain segment by its compressed form, in frames of `lines` lines.
pub(crate) fn compress(dir: &Path, number: u64, lines: usize) {
    let plain = dir.join(encoding::segment_name(number));
    let bytes = std::fs::read(&plain).unwrap();
    let lines_of: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let mut out = Vec::new();
    for chunk in lines_of.chunks(lines) {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&chunk.concat()).unwrap();
        out.extend(encoder.finish().unwrap());
    }
    std::fs::write(dir.join(encoding::compressed_name(number)), out).unwrap();
    std::fs::remove_file(plain).unwrap();
}

/// Events of several kinds; those of numbers that follow each other belong together in pairs.
pub(crate) fn sample(n: u64) -> Event {
    let request_id = format!("req-{}", n / 2);
    let actor = Actor::of(format!("office/137000000{}/terminal/front-{}", n % 7, n % 3))
        .serial(format!("{n:x}"))
        .staff(format!("staff-{}", n % 11), "care_manager");
    let object = Object::person(format!("{:032x}", n % 13)).document("care-plan", None);
    match n % 8 {
        0 | 2 | 4 => Event::Decision {
            request_id,
            actor,
            action: Some("documents.view".into()),
            object,
            decision: if n % 8 == 4 { "deny" } else { "allow" }.into(),
            reasons: if n % 8 == 4 { vec!["not_in_charge".into()] } else { Vec::new() },
            policy: "b0".repeat(16),
            facts_ca_seq: n,
            facts_hub_seq: n,
            client_addr: "192.0.2.7:50000".into(),
            network: None,
        },
        1 | 3 | 5 => Event::Completion {
            reasons: Vec::new(),
            request_id,
            status: 200,
            bytes_sent: n * 100,
            duration_us: n,
            outcome: "complete".into(),
        },
        6 => Event::Intent {
            request_id: Some(request_id),
            actor,
            action: "certificate.issue".into(),
            object: Object::named("office/1370000001"),
            detail: "\"quoted\" \u{65e5}".into(),
        },
        _ => Event::Outcome {
            request_id: Some(request_id),
            actor,
            action: "certificate.issue".into(),
            object: Object::named("office/1370000001"),
            result: "done".into(),
            detail: String::new(),
        },
    }
}
