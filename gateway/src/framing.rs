//! Refuses ambiguous HTTP before anything is decided from it.
//!
//! pingora normalises much of it before its phases run (bare LF, odd spaces, Content-Length beside
//! Transfer-Encoding, dot segments), so HTTP/1.1 is looked at as the bytes that came: [`scanner`]
//! sits in the stream that pingora reads ([`crate::downstream`]), [`head`] says what a head may be.
//! Requests of both versions are looked at once more when they are parsed; [`upload`] asks what an
//! HTTP/2 stream hides. The request target must be plain: no percent-encoding in the path, no dot
//! or empty segment, so that gateway and hub cannot read one path in two ways.
//!
//! Source: RFC 9112 §§2.2, 3, 5.1, 5.2, 6, 7.1; RFC 9113 §8.2–8.3.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Scheme;
use http::{HeaderValue, Version};
use pingora_http::RequestHeader;

use crate::config::Limits;

pub mod authority;
pub mod head;
pub mod scanner;
pub mod upload;
#[cfg(test)]
#[path = "framing/tests.rs"]
mod scanner_tests;

use authority::ServerNames;

/// What is wrong with a request, in words for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Ambiguous(pub(crate) &'static str);

/// Checks a parsed request of either version, sent to a server of these `names`, and returns its
/// target (path and query).
///
/// # Errors
/// [`Ambiguous`] names the first offence.
pub fn check_request<'r>(
    request: &'r RequestHeader,
    limits: &Limits,
    names: &ServerNames,
) -> Result<&'r str, Ambiguous> {
    check_headers(request, limits)?;
    let authority = if request.version == Version::HTTP_2 {
        check_http2(request)?
    } else {
        request.headers.get(HOST).map(HeaderValue::as_bytes).ok_or(NO_AUTHORITY)?
    };
    names.check(authority)?;
    let target = request
        .uri
        .path_and_query()
        .map(http::uri::PathAndQuery::as_str)
        .ok_or(Ambiguous("no path"))?;
    if target.len() > limits.request_target_bytes_max {
        return Err(Ambiguous("request target is too long"));
    }
    if request.raw_path() != target.as_bytes() || !target.bytes().all(|it| it.is_ascii_graphic()) {
        return Err(Ambiguous("request target holds bytes outside ASCII"));
    }
    check_path(request.uri.path().as_bytes())?;
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
    if request.headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Ambiguous("more than one Authorization header"));
    }
    head::check_method(request.method.as_str().as_bytes())
}

/// What of HTTP/1.1 was looked at as bytes already, and what is HTTP/2's own (RFC 9113 §§8.2–8.3):
/// `:authority` is there and Host agrees with it, no connection headers, plain values, one length.
/// Returns the authority.
fn check_http2(request: &RequestHeader) -> Result<&[u8], Ambiguous> {
    let headers = &request.headers;
    if headers.contains_key(CONNECTION) || headers.contains_key(TRANSFER_ENCODING) {
        return Err(Ambiguous("connection header in HTTP/2"));
    }
    if headers.get_all(TE).iter().any(|te| te.as_bytes() != b"trailers") {
        return Err(Ambiguous("TE other than trailers in HTTP/2"));
    }
    if headers.get_all(EXPECT).iter().any(|it| !head::is_known_expectation(it.as_bytes())) {
        return Err(Ambiguous("expectation other than 100-continue"));
    }
    if request.uri.scheme() != Some(&Scheme::HTTPS) {
        return Err(Ambiguous("scheme is not https"));
    }
    for value in headers.values() {
        head::check_value(value.as_bytes())?;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        head::length(length.as_bytes())?;
    }
    if lengths.next().is_some() {
        return Err(Ambiguous("more than one Content-Length"));
    }
    let authority = request.uri.authority().ok_or(NO_AUTHORITY)?.as_str();
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(Ambiguous("more than one Host header")),
        (Some(host), None) if host.as_bytes() != authority.as_bytes() => {
            Err(Ambiguous("Host and authority differ"))
        }
        (_, None) => Ok(authority.as_bytes()),
    }
}

/// A length of 0 says nothing that the end of an HTTP/2 stream does not say, and a client can lie
/// in it: whoever believed it would pass the request on before the body that comes after all.
pub fn forget_empty_body(request: &mut RequestHeader) {
    let is_empty = |length: &HeaderValue| length.as_bytes() == b"0";
    if request.version == Version::HTTP_2
        && request.headers.get(CONTENT_LENGTH).is_some_and(is_empty)
        && request.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_none()
    {
        request.remove_header(&CONTENT_LENGTH);
    }
}

const NO_AUTHORITY: Ambiguous = Ambiguous("no authority");

/// A plain path: segments of unreserved characters, none empty, none `.` or `..`.
fn check_path(path: &[u8]) -> Result<(), Ambiguous> {
    let rest = path.strip_prefix(b"/").ok_or(Ambiguous("path does not begin with a slash"))?;
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    if !rest.iter().copied().all(plain) {
        return Err(Ambiguous("path holds a character that no operation has"));
    }
    let mut parts = rest.split(|byte| *byte == b'/');
    if !rest.is_empty() && parts.any(|part| matches!(part, b"" | b"." | b"..")) {
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
            handshakes_per_second_max: std::num::NonZeroU32::MIN,
            handshakes_per_second_per_address_max: std::num::NonZeroU32::MIN,
            requests_per_second_per_party_max: std::num::NonZeroU32::MIN,
            request_headers_max: 3,
            request_header_bytes_max: 200,
            request_target_bytes_max: 64,
            request_body_bytes_max: 1,
            request_head_timeout: std::time::Duration::from_secs(1),
            request_read_timeout: std::time::Duration::from_secs(1),
            request_body_timeout: std::time::Duration::from_secs(1),
            h1_idle_timeout: std::time::Duration::from_secs(1),
            h2_pending_resets_max: 1,
            response_write_timeout: std::time::Duration::from_secs(1),
            h2_streams_max: 1,
            h2_idle_timeout: std::time::Duration::from_secs(1),
            drain_timeout: std::time::Duration::from_secs(1),
        }
    }

    #[test]
    fn paths_that_could_be_read_twice_are_refused() {
        for path in ["/v1//x", "/v1/../x", "/v1/./x", "/v1/%2e", "/v1/x/", "/v1/a;b", "/v1/日"] {
            assert!(check_path(path.as_bytes()).is_err(), "{path}");
        }
        assert_eq!(check_path(b"/v1/care-plan-files/UP1KYO_1.CSV"), Ok(()));
    }

    fn names() -> ServerNames {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        ServerNames::of(params.self_signed(&key).unwrap().der())
    }

    fn request(method: &str, path: &str) -> RequestHeader {
        let mut request = RequestHeader::build(method, path.as_bytes(), None).unwrap();
        request.insert_header("host", "localhost:8443").unwrap();
        request
    }

    fn with(mut request: RequestHeader, headers: &[(&'static str, &str)]) -> RequestHeader {
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn limits_upgrades_and_odd_methods_are_refused() {
        let get = || request("GET", "/v1/x");
        let four = ["x-a", "x-b", "x-c", "x-d"].map(|name| (name, "1"));
        for refused in [
            with(get(), &[("x-a", &"a".repeat(201))]),
            with(get(), &[("upgrade", "websocket")]),
            with(request("POST", "/v1/x"), &[("transfer-encoding", "gzip, chunked")]),
            with(get(), &[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
            with(get(), &four),
            request("GET", &format!("/v1/{}", "a".repeat(64))),
            request("TRACE", "/v1/x"),
            request("PROPFIND", "/v1/x"),
        ] {
            assert!(check_request(&refused, &limits(), &names()).is_err(), "{refused:?}");
        }
        let plain = request("GET", "/v1/x?after=3");
        assert_eq!(check_request(&plain, &limits(), &names()), Ok("/v1/x?after=3"));
    }

    #[test]
    fn a_request_for_another_server_is_refused() {
        for host in ["other", "localhost.", "localhost:0", "127.0.0.1"] {
            let mut foreign = request("GET", "/v1/x");
            foreign.insert_header("host", host).unwrap();
            assert!(check_request(&foreign, &limits(), &names()).is_err(), "{host}");
        }
        let nobody = RequestHeader::build("GET", b"/v1/x", None).unwrap();
        assert_eq!(check_request(&nobody, &limits(), &names()), Err(NO_AUTHORITY));
    }
}
