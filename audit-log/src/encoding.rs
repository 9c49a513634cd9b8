//! Format version 2: the bytes on disk, and what a hash covers. Writer, reader and verifier share
//! this file and nothing else.
//!
//! A log is a folder of segments `00000001.jsonl`, `00000002.jsonl`, …: UTF-8, one JSON object a
//! line, each line ended by one LF, no other white space. A closed segment is compressed: then
//! `00000001.jsonl.zst` holds the same bytes in one or more Zstandard frames (RFC 8878). The first
//! line of a segment is its header, every other line a record. The order of the members is fixed:
//!
//! ```text
//! {"format":"sekisho-audit/2","source":"gateway","segment":2,"first":6,"at":AT,"prev":HASH,
//!  "tree":[HASH,…],"hash":HASH}                                    (in one line on disk)
//! {"n":6,"at":AT,"prev":HASH,"event":{…},"hash":HASH}
//! ```
//!
//! - `n`: record number, 1 for the first record of the log, then without gaps across segments.
//! - `segment`: the number in the file name; `first`: the number of its first record.
//! - `AT`: RFC 3339, UTC, exactly 24 characters (`2026-04-01T09:00:00.000Z`), never decreasing.
//! - `HASH`: 64 lower-case hex digits. The text of a line is its bytes from `{` up to, not
//!   including, `,"hash":`; it is canonical by being the text on disk: no parser or printer stands
//!   between the bytes and their hash.
//! - `hash` of a record is its RFC 6962 leaf hash, SHA-256(0x00 ‖ text): one hash makes the chain
//!   and the tree. `prev` is that of the record before, across segments too; 64 zeros in record 1.
//!   In a header `prev` is that of the last record before it, and `hash` is SHA-256(text).
//! - Record `n` is leaf `n - 1` of the log's Merkle tree (RFC 6962 section 2.1). `tree` of a header
//!   holds the roots of the perfect subtrees that make up the tree of all records before it, from
//!   left (largest) to right: one for each 1 bit of `first - 1`. Segments before it may be gone.
//! - A record whose event is `checkpoint` holds a signed tree head over all records before itself.
//!
//! Beside the segments: `checkpoint`, the newest signed tree head; `tombstone`, the signed proof of
//! deleted segments; `NNNNNNNN.index`, made from a segment and replaceable; `lock`.
//!
//! The format word is part of each header: a new encoding starts a new log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tlog_tiles::{Hash, record_hash};

/// The format word in every segment header.
pub const FORMAT: &str = "sekisho-audit/2";

/// Longest event in bytes of JSON; a longer one is refused at append.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;

/// Longest line in bytes, LF included.
pub(crate) const LINE_BYTES_MAX: usize = EVENT_BYTES_MAX + 8 * 1024;

/// The newest checkpoint, beside the segments.
pub(crate) const CHECKPOINT_FILE: &str = "checkpoint";

/// The signed proof of what retention deleted, beside the segments.
pub(crate) const TOMBSTONE_FILE: &str = "tombstone";

/// A SHA-256 hash as 64 lower-case hex digits.
pub(crate) type HexHash = [u8; 64];

/// What the first record of a log names as `prev`.
pub(crate) const GENESIS: HexHash = [b'0'; 64];

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) format: String,
    pub(crate) source: String,
    pub(crate) segment: u64,
    pub(crate) first: u64,
    pub(crate) at: String,
    pub(crate) prev: String,
    /// Roots of the perfect subtrees of all records before, left to right.
    pub(crate) tree: Vec<String>,
}

/// A record line taken apart; nothing in it is checked beyond its layout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordLine<'a> {
    pub(crate) n: u64,
    pub(crate) at: &'a str,
    pub(crate) prev: &'a [u8],
    pub(crate) event: &'a [u8],
    pub(crate) hash: &'a [u8],
}

/// Appends one record line to `out` and returns its leaf hash.
pub(crate) fn write_record(
    out: &mut Vec<u8>,
    n: u64,
    at: &str,
    prev: &HexHash,
    event: &[u8],
) -> Hash {
    let start = out.len();
    out.extend_from_slice(b"{\"n\":");
    out.extend_from_slice(n.to_string().as_bytes());
    out.extend_from_slice(b",\"at\":\"");
    out.extend_from_slice(at.as_bytes());
    out.extend_from_slice(b"\",\"prev\":\"");
    out.extend_from_slice(prev);
    out.extend_from_slice(b"\",\"event\":");
    out.extend_from_slice(event);
    let hash = record_hash(out.get(start..).unwrap_or_default());
    seal(out, &hex(&hash));
    hash
}

/// The line of a segment header.
pub(crate) fn header_line(header: &Header) -> Vec<u8> {
    // INVARIANT: `source` passed `is_source_name` and the hashes are hex digits, so no value of the
    // header needs escaping.
    let tree: Vec<String> = header.tree.iter().map(|hash| format!("\"{hash}\"")).collect();
    let mut line = format!(
        "{{\"format\":\"{}\",\"source\":\"{}\",\"segment\":{},\"first\":{},\
         \"at\":\"{}\",\"prev\":\"{}\",\"tree\":[{}]",
        header.format,
        header.source,
        header.segment,
        header.first,
        header.at,
        header.prev,
        tree.join(",")
    )
    .into_bytes();
    let hash = hex(&header_hash(&line));
    seal(&mut line, &hash);
    line
}

fn header_hash(text: &[u8]) -> Hash {
    let mut hash = Hash::default();
    // INVARIANT: SHA-256 has 32 bytes.
    hash.0.copy_from_slice(digest::digest(&digest::SHA256, text).as_ref());
    hash
}

/// Closes a line with its hash.
fn seal(out: &mut Vec<u8>, hash: &HexHash) {
    out.extend_from_slice(HASH_KEY);
    out.extend_from_slice(hash);
    out.extend_from_slice(b"\"}\n");
}

/// Takes a line without its LF apart into the text that is hashed and the hash it carries.
pub(crate) fn split_hash(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let text_length = line.len().checked_sub(HASH_KEY.len() + 64 + 2)?;
    let (text, rest) = line.split_at_checked(text_length)?;
    let hash = rest.strip_prefix(HASH_KEY)?.strip_suffix(b"\"}")?;
    Some((text, hash))
}

/// Reads the layout of a record line, given without its LF.
pub(crate) fn parse_record(line: &[u8]) -> Option<RecordLine<'_>> {
    let (text, hash) = split_hash(line)?;
    let rest = text.strip_prefix(b"{\"n\":")?;
    let digits = rest.iter().position(|byte| *byte == b',')?;
    let (number, rest) = rest.split_at_checked(digits)?;
    let n = parse_number(number)?;
    let (at, rest) = rest.strip_prefix(b",\"at\":\"")?.split_at_checked(AT_LENGTH)?;
    let (prev, rest) = rest.strip_prefix(b"\",\"prev\":\"")?.split_at_checked(64)?;
    let event = rest.strip_prefix(b"\",\"event\":")?;
    let at = std::str::from_utf8(at).ok().filter(|text| is_at(text))?;
    Some(RecordLine { n, at, prev, event, hash })
}

/// Reads a header line, given without its LF; `Some` only for the exact text that we would write.
pub(crate) fn parse_header(line: &[u8]) -> Option<Header> {
    let (text, _) = split_hash(line)?;
    let mut json = text.to_vec();
    json.push(b'}');
    let header: Header = serde_json::from_slice(&json).ok()?;
    let hashes = || header.tree.iter().chain([&header.prev]);
    if !is_source_name(&header.source) || !is_at(&header.at) {
        return None;
    }
    if hashes().any(|hash| unhex(hash.as_bytes()).is_none()) {
        return None;
    }
    (header_line(&header).strip_suffix(b"\n")? == line).then_some(header)
}

/// A hash as 64 lower-case hex digits.
pub(crate) fn hex(hash: &Hash) -> HexHash {
    let mut digits = GENESIS;
    // INVARIANT: 32 bytes give exactly 64 digits.
    let _ = hex::encode_to_slice(hash.0, &mut digits);
    digits
}

/// Reads 64 lower-case hex digits.
pub(crate) fn unhex(digits: &[u8]) -> Option<Hash> {
    if digits.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let mut hash = Hash::default();
    hex::decode_to_slice(digits, &mut hash.0).ok()?;
    Some(hash)
}

/// A hash as text.
pub(crate) fn hash_text(hash: &[u8]) -> String {
    String::from_utf8_lossy(hash).into_owned()
}

/// Decimal without sign or leading zeros.
pub(crate) fn parse_number(digits: &[u8]) -> Option<u64> {
    let canonical = matches!(digits, [b'0'] | [b'1'..=b'9', ..]);
    let value = |number: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    if canonical { digits.iter().try_fold(0, value) } else { None }
}

/// Whether `source` is 1 to 32 lower-case letters, digits and hyphens.
pub(crate) fn is_source_name(source: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=32).contains(&source.len()) && source.bytes().all(allowed)
}

/// Whether the text has the form of [`at_text`]; such texts compare like the times they name.
pub(crate) fn is_at(text: &str) -> bool {
    text.len() == AT_LENGTH
        && text
            .bytes()
            .zip(b"0000-00-00T00:00:00.000Z")
            .all(|(byte, form)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form })
}

/// A time in Unix milliseconds in the form of the log.
pub(crate) fn at_text(unix_ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

/// The Unix milliseconds of a time in the form of the log.
pub(crate) fn at_unix_ms(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

/// The file name of a segment that is being written.
pub(crate) fn segment_name(number: u64) -> String {
    format!("{number:08}.jsonl")
}

/// The file name of a closed and compressed segment.
pub(crate) fn compressed_name(number: u64) -> String {
    format!("{number:08}.jsonl.zst")
}

/// The file name of a segment's index.
pub(crate) fn index_name(number: u64) -> String {
    format!("{number:08}.index")
}

/// The segments in `dir`, by number; other files do not count. Where a segment is there in both
/// forms, the compressing was not finished and the plain one is named.
pub(crate) fn list_segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        // A folder of that name is no segment: the one before it is still being written.
        let is_folder = entry.file_type()?.is_dir();
        if let Some(number) = name.to_str().and_then(segment_number).filter(|_| !is_folder) {
            segments.push((number, entry.path()));
        }
    }
    // `.jsonl` sorts before `.jsonl.zst`.
    segments.sort_unstable();
    segments.dedup_by_key(|(number, _)| *number);
    Ok(segments)
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".zst").unwrap_or(name).strip_suffix(".jsonl")?;
    let number = digits.parse().ok()?;
    (segment_name(number) == name || compressed_name(number) == name).then_some(number)
}

/// Whether a path is that of a compressed segment.
pub(crate) fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "zst")
}

/// Opens a segment in either form to read its lines.
pub(crate) fn open_segment(path: &Path) -> io::Result<Lines> {
    let file = File::open(path)?;
    if !is_compressed(path) {
        return Ok(Box::new(BufReader::with_capacity(READ_BYTES, file)));
    }
    let plain = zstd::stream::read::Decoder::new(file)?;
    Ok(Box::new(BufReader::with_capacity(READ_BYTES, plain)))
}

/// Opens a segment by its number in whichever form is there: it may be compressed meanwhile.
pub(crate) fn open_numbered(dir: &Path, number: u64) -> io::Result<(PathBuf, Lines)> {
    let plain = dir.join(segment_name(number));
    match open_segment(&plain) {
        Ok(lines) => Ok((plain, lines)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let compressed = dir.join(compressed_name(number));
            let lines = open_segment(&compressed)?;
            Ok((compressed, lines))
        }
        Err(error) => Err(error),
    }
}

/// The bytes of a segment, decompressed.
pub(crate) type Lines = Box<dyn BufRead + Send>;

/// Reads up to one line, LF included, but never more than [`LINE_BYTES_MAX`]; 0 at the end.
pub(crate) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', line)
}

/// What `tombstone` says: which segments retention deleted, and what still fixes their content.
/// On disk it is a note signed by the log's key; its text is this, one value a line:
///
/// ```text
/// sekisho-audit-tombstone/2
/// sekisho.example/audit/gateway                 origin: the log's name
/// segment 4                                     last deleted segment
/// record 81920                                  last deleted record
/// hash HASH                                     its leaf hash
/// root BASE64                                   Merkle root over records 1 to it
/// until AT                                      its time
/// deleted AT                                    when it was deleted
/// retention-days 1826
/// ```
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tombstone {
    pub(crate) origin: String,
    pub(crate) through_segment: u64,
    pub(crate) through_record: u64,
    pub(crate) last_hash: HexHash,
    pub(crate) root: Hash,
    pub(crate) until: String,
    pub(crate) deleted_at: String,
    pub(crate) retention_days: u64,
}

impl Tombstone {
    /// The text that is signed.
    pub(crate) fn to_text(&self) -> String {
        format!(
            "{TOMBSTONE_FORMAT}\n{}\nsegment {}\nrecord {}\nhash {}\nroot {}\n\
             until {}\ndeleted {}\nretention-days {}\n",
            self.origin,
            self.through_segment,
            self.through_record,
            hash_text(&self.last_hash),
            self.root,
            self.until,
            self.deleted_at,
            self.retention_days
        )
    }

    /// Reads the text of a note whose signature was checked; `Some` only for the exact text that
    /// we would write.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        lines.next().filter(|format| *format == TOMBSTONE_FORMAT)?;
        let origin = lines.next()?.to_owned();
        let mut value = |name| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let number = |digits: &str| parse_number(digits.as_bytes());
        let at = |text: &str| is_at(text).then(|| text.to_owned());
        let tombstone = Self {
            origin,
            through_segment: number(value("segment")?)?,
            through_record: number(value("record")?)?,
            last_hash: hex(&unhex(value("hash")?.as_bytes())?),
            root: Hash::parse_hash(value("root")?).ok()?,
            until: at(value("until")?)?,
            deleted_at: at(value("deleted")?)?,
            retention_days: number(value("retention-days")?)?,
        };
        (tombstone.to_text() == text).then_some(tombstone)
    }
}

/// Whether a loss of power left a hole: sectors do not reach the disk in the order they were
/// written, and one that did not reads as zeros.
pub(crate) fn has_hole(line: &[u8]) -> bool {
    let mut zeros = 0;
    line.iter().any(|byte| {
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        zeros >= SECTOR_BYTES
    })
}

/// Whether nothing but zeros follows from some byte on.
pub(crate) fn ends_in_zeros(line: &[u8]) -> bool {
    let from = line.iter().position(|byte| *byte == 0).unwrap_or(line.len());
    from < line.len() && line.iter().skip(from).all(|byte| *byte == 0)
}

const SECTOR_BYTES: usize = 512;
const TOMBSTONE_FORMAT: &str = "sekisho-audit-tombstone/2";
pub(crate) const HASH_KEY: &[u8] = b",\"hash\":\"";
const AT_LENGTH: usize = 24;
const READ_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_documented_bytes() {
        let mut out = b"before".to_vec();
        let at = "2026-04-01T09:00:00.000Z";
        let hash = hex(&write_record(&mut out, 7, at, &GENESIS, b"{\"a\":1}"));
        let zeros = "0".repeat(64);
        let text = format!(
            "{{\"n\":7,\"at\":\"2026-04-01T09:00:00.000Z\",\"prev\":\"{zeros}\",\
             \"event\":{{\"a\":1}}"
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("before{text},\"hash\":\"{}\"}}\n", hash_text(&hash))
        );
        // What `printf '\\0%s' TEXT | sha256sum` prints, so that a change of the encoding shows.
        assert_eq!(
            hash_text(&hash),
            "cbf6b0c8fd55c89d292709647c4a436476ceeb4834e067c21add9b6702895e4d"
        );
        let line = format!("{text},\"hash\":\"{}\"}}", hash_text(&hash));
        let record = parse_record(line.as_bytes()).unwrap();
        assert_eq!((record.n, record.event), (7, b"{\"a\":1}".as_slice()));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["n"], 7);
    }

    #[test]
    fn a_header_is_read_only_in_the_exact_text_that_is_written() {
        let header = Header {
            format: FORMAT.into(),
            source: "gateway".into(),
            segment: 2,
            first: 10,
            at: "2026-04-01T09:00:00.000Z".into(),
            prev: hash_text(&GENESIS),
            tree: vec![hash_text(&[b'a'; 64]), hash_text(&[b'b'; 64])],
        };
        let line = header_line(&header);
        let line = line.strip_suffix(b"\n").unwrap();
        assert_eq!(parse_header(line).unwrap(), header);
        let spaced = String::from_utf8(line.to_vec()).unwrap().replacen(':', ": ", 1);
        assert!(parse_header(spaced.as_bytes()).is_none());
    }

    #[test]
    fn times_keep_their_form_and_compare_as_text() {
        for ms in [0, 1, 999, 1_775_000_000_123] {
            let text = at_text(ms);
            assert!(is_at(&text), "{text}");
            assert_eq!(at_unix_ms(&text), Some(ms));
        }
        assert!(at_text(999) < at_text(1000));
        assert!(!is_at("2026-04-01T09:00:00.0000Z"));
        assert!(!is_at("2026-04-01 09:00:00.000Z"));
    }

    #[test]
    fn a_tombstone_is_read_only_in_the_exact_text_that_is_written() {
        let tombstone = Tombstone {
            origin: "log/a".into(),
            through_segment: 4,
            through_record: 81_920,
            last_hash: [b'a'; 64],
            root: Hash([7; 32]),
            until: "2026-04-01T09:00:00.000Z".into(),
            deleted_at: "2031-04-02T09:00:00.000Z".into(),
            retention_days: 1826,
        };
        let text = tombstone.to_text();
        assert_eq!(text.lines().count(), 9);
        assert_eq!(Tombstone::parse(&text), Some(tombstone));
        for (from, to) in [("segment 4", "segment 04"), ("until ", "until  "), ("/2\n", "/3\n")] {
            assert_eq!(Tombstone::parse(&text.replacen(from, to, 1)), None, "{from}");
        }
        assert_eq!(Tombstone::parse(&format!("{text}\n")), None);
        assert_eq!(Tombstone::parse(text.trim_end()), None);
    }

    #[test]
    fn numbers_have_one_text() {
        assert_eq!(parse_number(b"10"), Some(10));
        assert_eq!(parse_number(b"0"), Some(0));
        assert_eq!(parse_number(b"18446744073709551615"), Some(u64::MAX));
        for bad in
            ["", "01", "00", "+1", "-1", "1 ", "18446744073709551616", "99999999999999999999"]
        {
            assert_eq!(parse_number(bad.as_bytes()), None, "{bad}");
        }
    }
}
