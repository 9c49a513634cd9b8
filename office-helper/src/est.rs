//! The client side of EST simpleenroll (RFC 7030 §4.2 with RFC 8951): a PKCS#10 request goes out
//! under HTTP Basic with the one-time code, a certs-only PKCS#7 comes back.
//!
//! Re-enrolment under the current certificate (§4.2.2) belongs here too.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::{Request, StatusCode};
use rustls::ClientConfig;
use zeroize::Zeroizing;

use crate::https::{self, Answer, Origin};
use crate::pkcs7;

/// Why no certificate came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Https(#[from] https::Error),
    #[error("the code id or its secret can not stand in a request: check the secret file")]
    Credentials,
    #[error("the request can not be built")]
    Request(#[source] hyper::http::Error),
    #[error(
        "the enrolment service does not accept the code or its secret (HTTP 401): check both; \
         after several wrong secrets a code is locked and the operator must issue a new one{0}"
    )]
    Unauthorized(Said),
    #[error("the enrolment service wants an operator's approval first: try again in {0} seconds")]
    Later(String),
    #[error("the enrolment service refused (HTTP {status}){said}")]
    Refused { status: u16, said: Said },
    #[error("the answer of the enrolment service is not base64")]
    NotBase64,
    #[error("the answer of the enrolment service is not a list of certificates")]
    Pkcs7(#[from] pkcs7::Error),
}

/// What the service said, made fit for one line of a terminal.
#[derive(Debug)]
pub(crate) struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

impl Said {
    fn of(answer: &Answer) -> Self {
        let text = String::from_utf8_lossy(&answer.body);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines.collect::<Vec<_>>().join(" / ");
        Self(line.chars().filter(|c| !c.is_control()).take(SAID_CHARACTERS_MAX).collect())
    }
}

/// Sends the request and returns the certificates that came back, as DER, in their order.
pub(crate) async fn simple_enrol(
    origin: &Origin,
    settings: Arc<ClientConfig>,
    code_id: &str,
    secret: &str,
    csr_der: &[u8],
) -> Result<Vec<Vec<u8>>, Error> {
    let request = Request::post("/.well-known/est/simpleenroll")
        .header(HOST, origin.authority())
        .header(USER_AGENT, concat!("sekisho-office/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/pkcs7-mime")
        .header(CONTENT_TYPE, "application/pkcs10")
        .header(AUTHORIZATION, basic(code_id, secret)?)
        .body(Full::new(Bytes::from(STANDARD.encode(csr_der))))
        .map_err(Error::Request)?;
    let answer = https::exchange(origin, settings, request).await?;
    match answer.status {
        StatusCode::OK => Ok(pkcs7::certificates(&decode(&answer.body)?)?),
        StatusCode::ACCEPTED => Err(Error::Later(retry_after(&answer))),
        StatusCode::UNAUTHORIZED => Err(Error::Unauthorized(Said::of(&answer))),
        status => Err(Error::Refused { status: status.as_u16(), said: Said::of(&answer) }),
    }
}

fn basic(code_id: &str, secret: &str) -> Result<HeaderValue, Error> {
    let pair = Zeroizing::new(format!("{code_id}:{secret}"));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&text).map_err(|_| Error::Credentials)?;
    value.set_sensitive(true);
    Ok(value)
}

/// RFC 8951 §3.1: white space within the base64 is to be tolerated.
fn decode(body: &[u8]) -> Result<Vec<u8>, Error> {
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).map_err(|_| Error::NotBase64)
}

fn retry_after(answer: &Answer) -> String {
    let value = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    value.filter(|text| text.bytes().all(|b| b.is_ascii_digit())).unwrap_or("some").to_owned()
}

const SAID_CHARACTERS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_those_of_rfc_7617_and_are_not_shown() {
        let value = basic("Aladdin", "open sesame").unwrap();
        assert_eq!(value.as_bytes(), b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(format!("{value:?}"), "Sensitive");
    }

    #[test]
    fn white_space_in_the_answer_is_tolerated() {
        assert_eq!(decode(b"QU\r\n JD\n").unwrap(), b"ABC");
        assert!(matches!(decode(b"<html>"), Err(Error::NotBase64)));
    }

    #[test]
    fn what_a_service_says_becomes_one_clean_line() {
        let answer = Answer {
            status: StatusCode::BAD_REQUEST,
            headers: hyper::HeaderMap::new(),
            body: Bytes::from("鍵が違います\nwrong key\x1b[31m\n"),
        };
        assert_eq!(Said::of(&answer).to_string(), ": 鍵が違います / wrong key[31m");
    }
}
