//! The staff session of a browser: what its cookies are called, and what shows that a request was
//! made by the page that logged in.
//!
//! A browser keeps the two tokens in cookies that no script can read. It sends them with whatever
//! asks, so a request that changes something must also bring the CSRF token, which only a script of
//! our own origin can read and put into a header. It is derived from the refresh token, and the
//! staff token carries its digest: nothing has to be remembered to check it.
//!
//! Source: RFC 6265bis §4.1.3 (`__Host-`), §5.6.7 (SameSite); OWASP CSRF Prevention Cheat Sheet,
//! signed double-submit cookie.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Holds the staff token.
pub const STAFF_COOKIE: &str = "__Host-sekisho-staff";
/// Holds the refresh token.
pub const REFRESH_COOKIE: &str = "__Host-sekisho-refresh";
/// Holds the CSRF token; the one that scripts of the page can read.
pub const CSRF_COOKIE: &str = "__Host-sekisho-csrf";
/// The request header in which a page sends the CSRF token.
pub const CSRF_HEADER: &str = "sekisho-csrf";
/// The request header in which the gateway gives a browser's refresh token to the hub.
pub const REFRESH_HEADER: &str = "sekisho-refresh-token";
/// The one operation whose request carries it.
pub const REFRESH_OPERATION: &str = "session.refresh";

/// The longest token in a cookie or header, in bytes.
const TOKEN_BYTES_MAX: usize = 4_096;

/// The CSRF token that belongs to `refresh_token`: 43 characters of base64url.
pub fn csrf_token(refresh_token: &str) -> String {
    hashed(b"sekisho csrf token\n", refresh_token)
}

/// What a staff token says of the CSRF token that must come with it.
pub fn csrf_digest(csrf_token: &str) -> String {
    hashed(b"sekisho csrf digest\n", csrf_token)
}

/// Whether two tokens or digests are the same, in a time that does not tell how much of them is.
pub fn same(one: &str, other: &str) -> bool {
    verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

fn hashed(label: &[u8], text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, &[label, text.as_bytes()].concat()))
}

/// A cookie came twice or holds no token: which one counts is not certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session cookie is there twice or holds no token")]
pub struct Doubtful;

/// The value of the cookie `name` in the request's `Cookie` headers, of which HTTP/2 may have
/// several (RFC 9113 §8.2.3).
///
/// # Errors
/// [`Doubtful`].
pub fn cookie<'h>(
    headers: impl Iterator<Item = &'h [u8]>,
    name: &str,
) -> Result<Option<&'h str>, Doubtful> {
    let mut found = None;
    let pairs = headers.flat_map(|value| value.split(|byte| *byte == b';'));
    for pair in pairs {
        let pair = pair.trim_ascii();
        let Some(value) = pair.strip_prefix(name.as_bytes()) else { continue };
        let Some(value) = value.strip_prefix(b"=") else { continue };
        if found.is_some() {
            return Err(Doubtful);
        }
        found = Some(token(value).ok_or(Doubtful)?);
    }
    Ok(found)
}

/// `value` if it is of the letters that tokens are made of.
fn token(value: &[u8]) -> Option<&str> {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let fits = (1..=TOKEN_BYTES_MAX).contains(&value.len()) && value.iter().all(is_letter);
    fits.then(|| std::str::from_utf8(value).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cookie_is_found_among_others_and_two_are_doubtful() {
        let find = |headers: &[&'static str]| {
            cookie(headers.iter().map(|text| text.as_bytes()), STAFF_COOKIE)
        };
        assert_eq!(find(&[]), Ok(None));
        assert_eq!(find(&["a=b; __Host-sekisho-staffx=1; x__Host-sekisho-staff=2"]), Ok(None));
        assert_eq!(find(&["a=b; __Host-sekisho-staff=e.y-J_9;c=d"]), Ok(Some("e.y-J_9")));
        assert_eq!(find(&["a=b", "__Host-sekisho-staff=t"]), Ok(Some("t")));
        for doubtful in [
            &["__Host-sekisho-staff=t; __Host-sekisho-staff=t"][..],
            &["__Host-sekisho-staff=t", "__Host-sekisho-staff=u"],
            &["__Host-sekisho-staff="],
            &["__Host-sekisho-staff=\"t\""],
            &["__Host-sekisho-staff=t u"],
        ] {
            assert_eq!(find(doubtful), Err(Doubtful), "{doubtful:?}");
        }
        let long = vec![b'a'; TOKEN_BYTES_MAX + 1];
        assert_eq!(token(&long), None);
    }

    #[test]
    fn a_csrf_token_belongs_to_one_refresh_token() {
        let (one, other) = (csrf_token("refresh-1"), csrf_token("refresh-2"));
        assert!(same(&one, &csrf_token("refresh-1")) && !same(&one, &other));
        assert_ne!(csrf_digest(&one), one, "a token that is read gives no CSRF token");
        assert_eq!(one.len(), 43);
    }
}
