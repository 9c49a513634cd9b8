//! The bytes of one HTTP/1.1 request head: what is refused, and how long its body is.
//!
//! Source: RFC 9112 §§2.2, 3, 5.1, 5.2, 6.1–6.3; RFC 9110 §§5.5, 7.2, 7.6.1, 8.6, 9.

use crate::config::Limits;

use super::Ambiguous;

/// What one head may be.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Header lines.
    pub headers_max: usize,
    /// Bytes of the whole head.
    pub head_bytes_max: usize,
    /// Bytes of the request target.
    pub target_bytes_max: usize,
}

impl HeadLimits {
    /// The head's share of the gateway's limits.
    pub fn of(limits: &Limits) -> Self {
        Self {
            headers_max: limits.request_headers_max,
            // A line has a colon, a space and CR LF beside name and value.
            head_bytes_max: limits.request_header_bytes_max
                + 4 * limits.request_headers_max
                + limits.request_target_bytes_max
                + REQUEST_LINE_REST,
            target_bytes_max: limits.request_target_bytes_max,
        }
    }
}

/// How the body that follows a head is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// Checks a whole head, the empty line at its end included.
///
/// # Errors
/// [`Ambiguous`] names the first offence.
pub fn check(head: &[u8], limits: &HeadLimits) -> Result<Body, Ambiguous> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let request_line = lines.next().ok_or(Ambiguous("empty head"))?;
    check_request_line(ended(request_line)?, limits)?;
    let mut seen = Seen::default();
    for line in lines {
        let line = line.strip_suffix(b"\r").ok_or(BARE_LF)?;
        if line.is_empty() {
            return seen.body();
        }
        seen.take(line)?;
        if seen.headers > limits.headers_max {
            return Err(Ambiguous("too many headers"));
        }
    }
    Err(Ambiguous("head without an end"))
}

/// What the header lines say that decides where the request ends and whom it is for.
#[derive(Default)]
struct Seen {
    headers: usize,
    hosts: usize,
    length: Option<u64>,
    lengths: usize,
    encodings: usize,
}

impl Seen {
    fn take(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        let (name, value) = header(line)?;
        self.headers += 1;
        // Names are told apart by length first: most lines are none of these.
        match name.len() {
            2 if is(name, b"te") && !is(value, b"trailers") => {
                return Err(Ambiguous("TE other than trailers"));
            }
            4 if is(name, b"host") => {
                self.hosts += 1;
                check_host(value)?;
            }
            6 if is(name, b"expect") && !is_known_expectation(value) => {
                return Err(Ambiguous("expectation other than 100-continue"));
            }
            7 if is(name, b"upgrade") => return Err(Ambiguous("upgrade is not offered")),
            10 if is(name, b"connection") => check_connection(value)?,
            14 if is(name, b"content-length") => {
                self.lengths += 1;
                self.length = Some(length(value)?);
            }
            17 if is(name, b"transfer-encoding") => {
                self.encodings += 1;
                if !is(value, b"chunked") {
                    return Err(Ambiguous("transfer coding other than chunked"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn body(self) -> Result<Body, Ambiguous> {
        match (self.hosts, self.lengths, self.encodings) {
            (1, 0, 0) => Ok(Body::None),
            (1, 1, 0) => {
                Ok(self.length.filter(|length| *length > 0).map_or(Body::None, Body::Length))
            }
            (1, 0, 1) => Ok(Body::Chunked),
            (0, _, _) => Err(Ambiguous("no Host header")),
            (1, 2.., _) => Err(Ambiguous("more than one Content-Length")),
            (1, _, 2..) => Err(Ambiguous("more than one Transfer-Encoding")),
            (1, _, _) => Err(Ambiguous("both Content-Length and Transfer-Encoding")),
            _ => Err(Ambiguous("more than one Host header")),
        }
    }
}

/// A line ends in CR LF: the LF was split off, the CR must stand there, and no other CR or NUL.
fn ended(line: &[u8]) -> Result<&[u8], Ambiguous> {
    let line = line.strip_suffix(b"\r").ok_or(BARE_LF)?;
    if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
        return Err(CR_OR_NUL);
    }
    Ok(line)
}

fn check_request_line(line: &[u8], limits: &HeadLimits) -> Result<(), Ambiguous> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Ambiguous("request line is not method, target and version"));
    };
    if version != b"HTTP/1.1" {
        return Err(Ambiguous("HTTP version is not 1.1"));
    }
    check_method(method)?;
    check_target(target, limits)
}

/// Checks a method of either version.
pub(super) fn check_method(method: &[u8]) -> Result<(), Ambiguous> {
    if METHODS.contains(&method) { Ok(()) } else { Err(Ambiguous("method is not offered")) }
}

/// Origin form only (RFC 9112 §3.2.1), and a path that nobody could read in two ways.
fn check_target(target: &[u8], limits: &HeadLimits) -> Result<(), Ambiguous> {
    if target.len() > limits.target_bytes_max {
        return Err(Ambiguous("request target is too long"));
    }
    if target.first() != Some(&b'/') {
        return Err(Ambiguous("request target is not in origin form"));
    }
    if target.contains(&b'#') {
        return Err(Ambiguous("request target holds a fragment"));
    }
    let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if !query.iter().all(u8::is_ascii_graphic) {
        return Err(Ambiguous("request target holds bytes outside ASCII"));
    }
    super::check_path(path)
}

fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Ambiguous> {
    if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(Ambiguous("folded header line"));
    }
    let colon =
        line.iter().position(|byte| *byte == b':').ok_or(Ambiguous("header without colon"))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !are(name, TOKEN) {
        return Err(Ambiguous("header name is not a token"));
    }
    check_value(value)?;
    Ok((name, value.trim_ascii()))
}

/// Checks a header's value of either version.
pub(super) fn check_value(value: &[u8]) -> Result<(), Ambiguous> {
    if are(value, VISIBLE) {
        return Ok(());
    }
    let odd = value.iter().any(|byte| matches!(byte, b'\r' | 0));
    let other = Ambiguous("header holds a character that is not visible ASCII");
    Err(if odd { CR_OR_NUL } else { other })
}

/// Nothing else is asked of a server before it reads a body (RFC 9110 §10.1.1).
pub(super) fn is_known_expectation(value: &[u8]) -> bool {
    is(value, b"100-continue")
}

/// Whether all bytes are of a class. Every byte of every head is looked up here.
fn are(bytes: &[u8], class: u8) -> bool {
    bytes.iter().fold(class, |all, byte| all & CLASSES[usize::from(*byte)]) == class
}

/// RFC 9110 §5.6.2.
const TOKEN: u8 = 1;
/// RFC 9110 §5.5, without the bytes outside ASCII that it leaves to the past.
const VISIBLE: u8 = 2;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = b'\t';
    while byte < 127 {
        if byte == b'\t' || byte >= b' ' {
            classes[byte as usize] |= VISIBLE;
        }
        let is_mark = matches!(
            byte,
            b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~'
        );
        if is_mark || byte.is_ascii_alphanumeric() {
            classes[byte as usize] |= TOKEN;
        }
        byte += 1;
    }
    classes
};

const BARE_LF: Ambiguous = Ambiguous("line ends in a bare LF");
const CR_OR_NUL: Ambiguous = Ambiguous("CR or NUL inside a line");

/// RFC 9110 §7.2: a name or address, and a port.
fn check_host(value: &[u8]) -> Result<(), Ambiguous> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(byte);
    if value.is_empty() || !value.iter().all(plain) {
        return Err(Ambiguous("Host is not a name or address"));
    }
    Ok(())
}

/// RFC 9110 §7.6.1: a client may not declare other headers to be of this connection only.
fn check_connection(value: &[u8]) -> Result<(), Ambiguous> {
    let options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    for option in options {
        if !is(option, b"close") && !is(option, b"keep-alive") && !is(option, b"te") {
            return Err(Ambiguous("connection option other than close and keep-alive"));
        }
    }
    Ok(())
}

/// RFC 9110 §8.6: digits and nothing else; no list, no sign.
pub(super) fn length(value: &[u8]) -> Result<u64, Ambiguous> {
    let odd = Ambiguous("Content-Length is not a plain number");
    if value.is_empty() || value.len() > 18 {
        return Err(odd);
    }
    value.iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(byte - b'0')),
        _ => Err(odd),
    })
}

fn is(text: &[u8], lower: &[u8]) -> bool {
    text.eq_ignore_ascii_case(lower)
}

/// What operations are made of, and what asks about them. No CONNECT, no TRACE.
const METHODS: [&[u8]; 7] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"];

/// Method, version, spaces and line ends of the request line, and the empty line.
const REQUEST_LINE_REST: usize = 32;
