//! Refuses ambiguous HTTP before anything is decided from it.
//!
//! pingora normalises some of it (it drops Content-Length beside Transfer-Encoding), so HTTP/1.1
//! heads are looked at as the bytes that came, not as pingora reads them. The request target must
//! be plain: no percent-encoding in the path, no dot or empty segment, so that gateway and hub
//! cannot read one path in two ways.
//!
//! Belongs here later: a scanner inside the stream that follows bodies and chunk extensions too.
//!
//! Source: RFC 9112 §§2.2, 3, 5.1, 5.2, 6.3; RFC 9113 §8.2–8.3.

use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Version};
use pingora_http::RequestHeader;

use crate::config::Limits;

/// What is wrong with a request, in words for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Ambiguous(&'static str);

/// Checks the bytes of an HTTP/1.1 head.
///
/// # Errors
/// [`Ambiguous`] names the first offence.
pub fn check_http1_head(raw: &[u8]) -> Result<(), Ambiguous> {
    let mut lines = raw.split(|byte| *byte == b'\n');
    let request_line = lines.next().ok_or(Ambiguous("empty head"))?;
    check_request_line(ended(request_line)?)?;
    let (mut hosts, mut lengths, mut encodings) = (0, 0, 0);
    for line in lines {
        let line = ended(line)?;
        if line.is_empty() {
            break;
        }
        let name = header_name(line)?;
        hosts += usize::from(name.eq_ignore_ascii_case(b"host"));
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
            check_length(&line[name.len() + 1..])?;
        }
        encodings += usize::from(name.eq_ignore_ascii_case(b"transfer-encoding"));
    }
    match (hosts, lengths, encodings) {
        (1, 0..=1, 0) | (1, 0, 1) => Ok(()),
        (0, _, _) => Err(Ambiguous("no Host header")),
        (1, 2.., _) => Err(Ambiguous("more than one Content-Length")),
        (1, _, 2..) => Err(Ambiguous("more than one Transfer-Encoding")),
        (1, _, _) => Err(Ambiguous("both Content-Length and Transfer-Encoding")),
        _ => Err(Ambiguous("more than one Host header")),
    }
}

/// RFC 9110 §8.6: digits and nothing else; no list, no sign.
fn check_length(value: &[u8]) -> Result<(), Ambiguous> {
    let digits = value.trim_ascii();
    if !digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit) {
        return Ok(());
    }
    Err(Ambiguous("Content-Length is not a plain number"))
}

/// A line ends in CR LF: the LF was split off, the CR must stand there, and no other CR or NUL.
fn ended(line: &[u8]) -> Result<&[u8], Ambiguous> {
    let line = line.strip_suffix(b"\r").ok_or(Ambiguous("line ends in a bare LF"))?;
    if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
        return Err(Ambiguous("CR or NUL inside a line"));
    }
    Ok(line)
}

fn check_request_line(line: &[u8]) -> Result<(), Ambiguous> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    match words.as_slice() {
        [_, target, b"HTTP/1.1"] if target.contains(&b'#') => {
            Err(Ambiguous("request target holds a fragment"))
        }
        [method, target, b"HTTP/1.1"] if !method.is_empty() && target.starts_with(b"/") => Ok(()),
        [_, _, b"HTTP/1.1"] => Err(Ambiguous("request target is not in origin form")),
        [_, _, _] => Err(Ambiguous("HTTP version is not 1.1")),
        _ => Err(Ambiguous("request line is not method, target and version")),
    }
}

fn header_name(line: &[u8]) -> Result<&[u8], Ambiguous> {
    if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(Ambiguous("folded header line"));
    }
    let colon =
        line.iter().position(|byte| *byte == b':').ok_or(Ambiguous("header without colon"))?;
    let name = &line[..colon];
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(token) {
        return Err(Ambiguous("header name is not a token"));
    }
    Ok(name)
}

/// Checks a parsed request of either version, and returns its target (path and query).
///
/// # Errors
/// [`Ambiguous`] names the first offence.
pub fn check_request<'r>(
    request: &'r RequestHeader,
    limits: &Limits,
) -> Result<&'r str, Ambiguous> {
    check_headers(request, limits)?;
    if request.version == Version::HTTP_2 {
        check_http2(request)?;
    }
    let target = request
        .uri
        .path_and_query()
        .map(http::uri::PathAndQuery::as_str)
        .ok_or(Ambiguous("no path"))?;
    if target.len() > limits.request_target_bytes_max {
        return Err(Ambiguous("request target is too long"));
    }
    if request.version != Version::HTTP_2 && request.raw_path() != target.as_bytes() {
        return Err(Ambiguous("request target holds bytes outside ASCII"));
    }
    check_path(request.uri.path())?;
    Ok(target)
}

fn check_headers(request: &RequestHeader, limits: &Limits) -> Result<(), Ambiguous> {
    let bytes: usize =
        request.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if request.headers.len() > limits.request_headers_max {
        return Err(Ambiguous("too many headers"));
    }
    if bytes > limits.request_header_bytes_max {
        return Err(Ambiguous("headers are too long"));
    }
    if request.headers.contains_key(UPGRADE) {
        return Err(Ambiguous("upgrade is not offered"));
    }
    if let Some(encoding) = request.headers.get(TRANSFER_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"chunked")
    {
        return Err(Ambiguous("transfer coding other than chunked"));
    }
    if request.method == Method::CONNECT || request.method == Method::TRACE {
        return Err(Ambiguous("method is not offered"));
    }
    Ok(())
}

/// RFC 9113 §8.2.2 and §8.3.1: no connection headers, and Host agrees with `:authority`.
fn check_http2(request: &RequestHeader) -> Result<(), Ambiguous> {
    if request.headers.contains_key(CONNECTION) || request.headers.contains_key(TRANSFER_ENCODING) {
        return Err(Ambiguous("connection header in HTTP/2"));
    }
    if request.headers.get(TE).is_some_and(|te| te.as_bytes() != b"trailers") {
        return Err(Ambiguous("TE other than trailers in HTTP/2"));
    }
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    let mut hosts = request.headers.get_all(HOST).iter();
    match (authority, hosts.next(), hosts.next()) {
        (_, _, Some(_)) => Err(Ambiguous("more than one Host header")),
        (None, None, None) => Err(Ambiguous("no authority")),
        (Some(authority), Some(host), None) if host.as_bytes() != authority.as_bytes() => {
            Err(Ambiguous("Host and authority differ"))
        }
        _ => Ok(()),
    }
}

/// A plain path: segments of unreserved characters, none empty, none `.` or `..`.
fn check_path(path: &str) -> Result<(), Ambiguous> {
    let rest = path.strip_prefix('/').ok_or(Ambiguous("path does not begin with a slash"))?;
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    if !rest.bytes().all(plain) {
        return Err(Ambiguous("path holds a character that no operation has"));
    }
    if !rest.is_empty() && rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Ambiguous("path holds an empty or dot segment"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            connections_max: 1,
            handshakes_in_flight_max: 1,
            handshake_timeout: std::time::Duration::from_secs(1),
            handshakes_in_flight_per_address_max: 1,
            connections_per_address_max: 1,
            hello_timeout: std::time::Duration::from_secs(1),
            requests_in_flight_max: 1,
            requests_in_flight_per_party_max: 1,
            request_headers_max: 3,
            request_header_bytes_max: 200,
            request_target_bytes_max: 64,
            request_body_bytes_max: 1,
            request_read_timeout: std::time::Duration::from_secs(1),
            h2_streams_max: 1,
            h2_idle_timeout: std::time::Duration::from_secs(1),
            drain_timeout: std::time::Duration::from_secs(1),
        }
    }

    #[test]
    fn plain_heads_pass() {
        for head in [
            "GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(check_http1_head(head.as_bytes()), Ok(()), "{head}");
        }
    }

    #[test]
    fn ambiguous_heads_are_refused_for_their_own_reason() {
        for (head, why) in [
            ("GET /v1 HTTP/1.1\nHost: a\r\n\r\n", "line ends in a bare LF"),
            ("GET /v1 HTTP/1.1\r\nHost: a\n\r\n", "line ends in a bare LF"),
            (
                "GET  /v1 HTTP/1.1\r\nHost: a\r\n\r\n",
                "request line is not method, target and version",
            ),
            ("GET http://a/v1 HTTP/1.1\r\nHost: a\r\n\r\n", "request target is not in origin form"),
            ("GET /v1 HTTP/1.0\r\nHost: a\r\n\r\n", "HTTP version is not 1.1"),
            ("GET /v1 HTTP/1.1\r\n\r\n", "no Host header"),
            ("GET /v1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "more than one Host header"),
            ("GET /v1 HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n b\r\n\r\n", "folded header line"),
            ("GET /v1 HTTP/1.1\r\nHost : a\r\n\r\n", "header name is not a token"),
            ("GET /v1 HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "header without colon"),
            ("GET /v1 HTTP/1.1\r\nHost: a\r\n\n", "line ends in a bare LF"),
            ("GET /v1#a HTTP/1.1\r\nHost: a\r\n\r\n", "request target holds a fragment"),
            (
                "POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n",
                "Content-Length is not a plain number",
            ),
            ("GET /v1 HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", "CR or NUL inside a line"),
            (
                "POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
                "both Content-Length and Transfer-Encoding",
            ),
            (
                "POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                "more than one Content-Length",
            ),
        ] {
            assert_eq!(check_http1_head(head.as_bytes()), Err(Ambiguous(why)), "{head}");
        }
    }

    #[test]
    fn paths_that_could_be_read_twice_are_refused() {
        for path in ["/v1//x", "/v1/../x", "/v1/./x", "/v1/%2e", "/v1/x/", "/v1/a;b", "/v1/日"] {
            assert!(check_path(path).is_err(), "{path}");
        }
        assert_eq!(check_path("/v1/care-plan-files/UP1KYO_1.CSV"), Ok(()));
    }

    #[test]
    fn limits_upgrades_and_odd_methods_are_refused() {
        let request =
            |method: &str, path: &str| RequestHeader::build(method, path.as_bytes(), None).unwrap();
        let mut long = request("GET", "/v1/x");
        long.insert_header("x-a", "a".repeat(201)).unwrap();
        let mut upgrade = request("GET", "/v1/x");
        upgrade.insert_header("upgrade", "websocket").unwrap();
        let mut coding = request("POST", "/v1/x");
        coding.insert_header("transfer-encoding", "gzip, chunked").unwrap();
        let mut many = request("GET", "/v1/x");
        for name in ["x-a", "x-b", "x-c", "x-d"] {
            many.insert_header(name, "1").unwrap();
        }
        let target = request("GET", &format!("/v1/{}", "a".repeat(64)));
        for refused in [many, long, upgrade, coding, target, request("TRACE", "/v1/x")] {
            assert!(check_request(&refused, &limits()).is_err(), "{refused:?}");
        }
        let plain = request("GET", "/v1/x?after=3");
        assert_eq!(check_request(&plain, &limits()), Ok("/v1/x?after=3"));
    }
}
