//! The request head that the hub gets: made anew from what was checked, never a client's passed on.
//!
//! Invariant: of a client's headers only those in [`PASSED`] reach the hub, one value each, and a
//! browser's refresh token with the one request that is for it;
//! whatever else a client says of itself, of the connection or of other proxies does not.

use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, IF_MATCH, IF_NONE_MATCH,
    TRANSFER_ENCODING,
};
use http::{HeaderName, HeaderValue};
use pingora_error::Result;
use pingora_http::RequestHeader;
use policies::browser_session::{
    self, CSRF_HEADER, REFRESH_COOKIE, REFRESH_HEADER, REFRESH_OPERATION,
};

use crate::access::Permit;

/// What a request may say to the hub. The framing headers say what the gateway made of the body.
const PASSED: [HeaderName; 8] = [
    ACCEPT,
    ACCEPT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    IF_MATCH,
    IF_NONE_MATCH,
    TRANSFER_ENCODING,
];

/// Headers of ours.
const OWN_HEADERS: usize = 8;

/// Turns a client's request head into the one that the hub gets.
///
/// # Errors
/// If a header value cannot be written.
pub fn prepare(permit: &Permit, sealed: &str, request: &mut RequestHeader) -> Result<()> {
    let claims = permit.claims();
    // INVARIANT: the permit's target is the one that was checked.
    let mut head = anew(&claims.method, &claims.target, request)?;
    head.insert_header(policies::permit::HEADER, sealed)?;
    head.insert_header("sekisho-request-id", &claims.request_id)?;
    head.insert_header("sekisho-principal", claims.principal.path())?;
    head.insert_header("sekisho-serial", claims.serial.to_string())?;
    if let Some(staff) = &claims.staff {
        head.insert_header("sekisho-staff-job", staff.job.as_str())?;
    }
    if claims.operation == REFRESH_OPERATION {
        pass_refresh_token(request, &mut head)?;
    }
    *request = head;
    Ok(())
}

/// A browser has its refresh token in a cookie, and cookies do not pass.
fn pass_refresh_token(request: &RequestHeader, head: &mut RequestHeader) -> Result<()> {
    let cookies = request.headers.get_all(COOKIE).into_iter().map(HeaderValue::as_bytes);
    // One that is doubtful is none: the hub then asks for a login.
    if let Ok(Some(token)) = browser_session::cookie(cookies, REFRESH_COOKIE) {
        head.insert_header(REFRESH_HEADER, token)?;
        if let Some(value) = request.headers.get(CSRF_HEADER) {
            head.insert_header(CSRF_HEADER, value.clone())?;
        }
    }
    Ok(())
}

/// A head for the hub with what of `request` may pass, and nothing of ours yet.
///
/// # Errors
/// If method or target cannot be written.
pub fn anew(method: &str, target: &str, request: &RequestHeader) -> Result<RequestHeader> {
    let size = Some(PASSED.len() + OWN_HEADERS);
    let mut head = RequestHeader::build(method, target.as_bytes(), size)?;
    head.insert_header("host", "hub")?;
    for name in &PASSED {
        if let Some(value) = request.headers.get(name) {
            head.insert_header(name.clone(), value.clone())?;
        }
    }
    Ok(head)
}
