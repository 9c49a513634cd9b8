//! Format version 1: the bytes on disk, and what a hash covers. Writer, reader and verifier share
//! this file and nothing else.
//!
//! A log is a folder of segments `00000001.jsonl`, `00000002.jsonl`, …: UTF-8, one JSON object a
//! line, each line ended by one LF, no other white space. The first line of a segment is its
//! header, every other line a record. The order of the members is fixed:
//!
//! ```text
//! {"format":"sekisho-audit/1","source":"gateway","segment":1,"first":1,"at":AT,"prev":HASH,
//!  "hash":HASH}                                                    (in one line on disk)
//! {"n":1,"at":AT,"prev":HASH,"event":{…},"hash":HASH}
//! ```
//!
//! - `n`: record number, 1 for the first record of the log, then without gaps across segments.
//! - `segment`: the number in the file name; `first`: the number of its first record.
//! - `AT`: RFC 3339, UTC, exactly 24 characters (`2026-04-01T09:00:00.000Z`), never decreasing.
//! - `HASH`: 64 lower-case hex digits. `prev` is the hash of the line before, also across a
//!   segment's end, so that headers are links of the chain too; 64 zeros in the very first header.
//! - `hash`: SHA-256 of the bytes of its own line from `{` up to, not including, `,"hash":`. That
//!   text is canonical by being the text on disk: it holds `prev` and then every other member, and
//!   no parser or printer stands between the bytes and their hash.
//!
//! The format word is part of each header and so of the chain: a new encoding starts with a new
//! segment and a new word.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The format word in every segment header.
pub const FORMAT: &str = "sekisho-audit/1";

/// Longest event in bytes of JSON; a longer one is refused at append.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;

/// Longest line in bytes, LF included.
pub(crate) const LINE_BYTES_MAX: usize = EVENT_BYTES_MAX + 1024;

/// A SHA-256 hash as 64 lower-case hex digits.
pub(crate) type HexHash = [u8; 64];

/// What the first header of a log names as `prev`.
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

/// Appends one record line to `out` and returns its hash.
pub(crate) fn write_record(
    out: &mut Vec<u8>,
    n: u64,
    at: &str,
    prev: &HexHash,
    event: &[u8],
) -> HexHash {
    let start = out.len();
    out.extend_from_slice(b"{\"n\":");
    out.extend_from_slice(n.to_string().as_bytes());
    out.extend_from_slice(b",\"at\":\"");
    out.extend_from_slice(at.as_bytes());
    out.extend_from_slice(b"\",\"prev\":\"");
    out.extend_from_slice(prev);
    out.extend_from_slice(b"\",\"event\":");
    out.extend_from_slice(event);
    seal(out, start)
}

/// The line of a segment header and its hash.
pub(crate) fn header_line(header: &Header) -> (Vec<u8>, HexHash) {
    // INVARIANT: `source` passed `is_source_name`, so no value of the header needs escaping.
    let mut line = format!(
        "{{\"format\":\"{}\",\"source\":\"{}\",\"segment\":{},\"first\":{},\
         \"at\":\"{}\",\"prev\":\"{}\"",
        header.format, header.source, header.segment, header.first, header.at, header.prev
    )
    .into_bytes();
    let hash = seal(&mut line, 0);
    (line, hash)
}

/// Closes the line that began at `start` with the hash of what it holds.
fn seal(out: &mut Vec<u8>, start: usize) -> HexHash {
    let hash = hash(out.get(start..).unwrap_or_default());
    out.extend_from_slice(HASH_KEY);
    out.extend_from_slice(&hash);
    out.extend_from_slice(b"\"}\n");
    hash
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
pub(crate) fn parse_header(line: &[u8]) -> Option<(Header, HexHash)> {
    let (text, _) = split_hash(line)?;
    let mut json = text.to_vec();
    json.push(b'}');
    let header: Header = serde_json::from_slice(&json).ok()?;
    if !is_source_name(&header.source) || !is_at(&header.at) {
        return None;
    }
    let (written, hash) = header_line(&header);
    (written.strip_suffix(b"\n")? == line).then_some((header, hash))
}

/// SHA-256 as 64 lower-case hex digits.
pub(crate) fn hash(text: &[u8]) -> HexHash {
    let mut hex_digits = GENESIS;
    let sum = digest::digest(&digest::SHA256, text);
    // INVARIANT: 32 bytes give exactly 64 digits.
    let _ = hex::encode_to_slice(sum.as_ref(), &mut hex_digits);
    hex_digits
}

/// A hash as text.
pub(crate) fn hash_text(hash: &[u8]) -> String {
    String::from_utf8_lossy(hash).into_owned()
}

/// Decimal without sign or leading zeros.
fn parse_number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
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

/// The file name of a segment.
pub(crate) fn segment_name(number: u64) -> String {
    format!("{number:08}.jsonl")
}

/// The segments in `dir`, by number; other files do not count.
pub(crate) fn list_segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| {
            let number = name.strip_suffix(".jsonl")?.parse().ok()?;
            (segment_name(number) == name).then_some(number)
        });
        if let Some(number) = number {
            segments.push((number, entry.path()));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Reads up to one line, LF included, but never more than [`LINE_BYTES_MAX`]; 0 at the end.
pub(crate) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', line)
}

const HASH_KEY: &[u8] = b",\"hash\":\"";
const AT_LENGTH: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_documented_bytes() {
        let mut out = b"before".to_vec();
        let hash = write_record(&mut out, 7, "2026-04-01T09:00:00.000Z", &GENESIS, b"{\"a\":1}");
        let zeros = "0".repeat(64);
        let text = format!(
            "{{\"n\":7,\"at\":\"2026-04-01T09:00:00.000Z\",\"prev\":\"{zeros}\",\
             \"event\":{{\"a\":1}}"
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("before{text},\"hash\":\"{}\"}}\n", hash_text(&hash))
        );
        // What `printf '%s' TEXT | sha256sum` prints, so that a change of the encoding shows.
        assert_eq!(
            hash_text(&hash),
            "9c62cd9440f44514d99811de0d97af9c3eceecea8beb2f1c2ccb6f09f074e3e9"
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
        };
        let (line, hash) = header_line(&header);
        let line = line.strip_suffix(b"\n").unwrap();
        assert_eq!(parse_header(line).unwrap(), (header, hash));
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
    fn numbers_have_one_text() {
        assert_eq!(parse_number(b"10"), Some(10));
        for bad in ["", "01", "+1", "-1", "1 ", "99999999999999999999"] {
            assert_eq!(parse_number(bad.as_bytes()), None, "{bad}");
        }
    }
}
