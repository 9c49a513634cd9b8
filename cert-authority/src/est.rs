//! The public face: EST (RFC 7030, with the clarifications of RFC 8951) over TLS 1.3.
//!
//! `cacerts` and `simpleenroll` with HTTP Basic `<code id>:<secret>`. Answers are base64 without
//! line breaks, as most clients want; Cisco libest needs breaks, and is known by its User-Agent.
//! The Content-Transfer-Encoding header of requests means nothing (RFC 8951 §3.1).
//!
//! This file alone turns errors into what strangers see: a short line in Japanese and English. The
//! log gets the chain at debug level, and one warning a minute with the count: strangers must not
//! be able to fill the disk.
//!
//! `simplereenroll` by mTLS, `csrattrs` (RFC 9908) and the enrolment web page belong here.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use crate::enrol::{self, Enrolment};
use crate::key::wrap_64;
use crate::protocol;
use crate::request;
use crate::serve::chain;
use crate::slots::Tally;
use crate::store;

/// What the public routes work with.
#[derive(Clone)]
pub struct Est {
    enrolment: Arc<Enrolment>,
    ca_chain: Arc<[CertificateDer<'static>]>,
    refused: Arc<Tally>,
}

/// The public routes.
pub fn router(enrolment: Arc<Enrolment>, ca_chain: &[CertificateDer<'static>]) -> Router {
    let refused = Tally::each_minute("enrolments refused");
    let state = Est { enrolment, ca_chain: ca_chain.into(), refused };
    Router::new()
        .route("/.well-known/est/cacerts", get(cacerts))
        .route("/.well-known/est/simpleenroll", post(simpleenroll))
        .route("/healthz", get(|| async { "ok\n" }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}

async fn cacerts(State(est): State<Est>, headers: HeaderMap) -> Response {
    let certificates: Vec<&[u8]> = est.ca_chain.iter().map(|der| der.as_ref()).collect();
    certificates_response(&certificates, "application/pkcs7-mime", &headers)
}

async fn simpleenroll(
    State(est): State<Est>,
    Extension(client): Extension<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some((code_id, secret)) = basic_credentials(&headers) else {
        return refusal(&Refusal::NO_CREDENTIALS);
    };
    let Some(csr) = decode_body(&body) else { return refusal(&Refusal::NOT_BASE64) };
    match Arc::clone(&est.enrolment).enrol(code_id.clone(), secret, csr).await {
        Ok(leaf) => {
            let mut certificates: Vec<&[u8]> = vec![&leaf];
            certificates.extend(est.ca_chain.first().map(|issuing| issuing.as_ref()));
            certificates_response(&certificates, ENROLLED_TYPE, &headers)
        }
        Err(error) => {
            est.enrolment.record_refusal(client, &code_id, &error);
            let refused = Refusal::of(&error);
            let (status, error) = (refused.status, chain(&error));
            tracing::debug!(status = status.as_u16(), error, "enrolment refused");
            est.refused.add(status.is_server_error().then_some(error));
            refusal(&refused)
        }
    }
}

/// What a stranger is told.
struct Refusal {
    status: StatusCode,
    ja: &'static str,
    en: String,
}

impl Refusal {
    const NO_CREDENTIALS: Self = Self {
        status: StatusCode::UNAUTHORIZED,
        ja: "発行用コードと秘密の番号を入力してください。",
        en: String::new(),
    };
    const NOT_BASE64: Self = Self {
        status: StatusCode::BAD_REQUEST,
        ja: "証明書発行要求（CSR）をBase64で送ってください。",
        en: String::new(),
    };

    fn of(error: &enrol::Error) -> Self {
        let (status, ja) = match error {
            enrol::Error::Store(error) => Self::of_store(error),
            enrol::Error::Request(error) => (StatusCode::BAD_REQUEST, Self::of_request(error)),
            enrol::Error::Profile(_) => {
                (StatusCode::FORBIDDEN, "このコードでは発行できません。運用者に連絡してください。")
            }
            enrol::Error::Signer(protocol::Error::Refused(refusal)) if refusal.code != "rate" => {
                (StatusCode::FORBIDDEN, "発行が認められませんでした。運用者に連絡してください。")
            }
            enrol::Error::Signer(_)
            | enrol::Error::Lint(_)
            | enrol::Error::Audit(_)
            | enrol::Error::Key(_) => (StatusCode::SERVICE_UNAVAILABLE, BUSY_JA),
        };
        let en = match status {
            StatusCode::SERVICE_UNAVAILABLE => "the service is busy: try again shortly".to_owned(),
            _ => error.to_string(),
        };
        Self { status, ja, en }
    }

    fn of_store(error: &store::Error) -> (StatusCode, &'static str) {
        match error {
            store::Error::CodeWrong { .. } => {
                (StatusCode::UNAUTHORIZED, "発行用コードまたは秘密の番号が違います。")
            }
            store::Error::CodeLocked => (
                StatusCode::FORBIDDEN,
                "この発行用コードは使えなくなりました（誤入力の回数超過）。運用者に連絡してください。",
            ),
            store::Error::CodeExpired => (
                StatusCode::FORBIDDEN,
                "発行用コードの有効期限が切れています。運用者に連絡してください。",
            ),
            store::Error::CodeUsed => (
                StatusCode::FORBIDDEN,
                "この発行用コードは別の鍵で使用済みです。運用者に連絡してください。",
            ),
            store::Error::KeyReused => {
                (StatusCode::CONFLICT, "この鍵は使用済みです。新しい鍵を作ってください。")
            }
            store::Error::Revoked => (
                StatusCode::FORBIDDEN,
                "この発行用コードの証明書は失効しています。運用者に連絡してください。",
            ),
            store::Error::UnknownOffice(_) | store::Error::OfficeSuspended(_) => (
                StatusCode::FORBIDDEN,
                "この事業所には現在発行できません。運用者に連絡してください。",
            ),
            store::Error::Database(_)
            | store::Error::Migrate(_)
            | store::Error::File(_)
            | store::Error::AuditFolder(_)
            | store::Error::Gone { .. }
            | store::Error::Corrupt(_)
            | store::Error::OfficeDiffers(_)
            | store::Error::UnknownSerial(_) => (StatusCode::SERVICE_UNAVAILABLE, BUSY_JA),
        }
    }

    const fn of_request(error: &request::Error) -> &'static str {
        match error {
            request::Error::Malformed => "証明書発行要求（CSR）の形式が正しくありません。",
            request::Error::KeyKind(_) | request::Error::Point => {
                "鍵の種類が正しくありません。ECDSA P-256 の鍵を作ってください。"
            }
            request::Error::Signature => "証明書発行要求（CSR）の署名が鍵と合いません。",
        }
    }
}

fn refusal(refused: &Refusal) -> Response {
    let en = match refused.en.as_str() {
        "" if refused.status == StatusCode::UNAUTHORIZED => "send a one-time code and its secret",
        "" => "send the certificate signing request as base64",
        en => en,
    };
    let text = format!("{} / {en}\n", refused.ja);
    let plain = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    let mut response = (refused.status, plain, text).into_response();
    let extra = match refused.status {
        StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, "Basic realm=\"sekisho\"")),
        StatusCode::SERVICE_UNAVAILABLE => Some((RETRY_AFTER, "5")),
        _ => None,
    };
    if let Some((name, value)) = extra {
        response.headers_mut().insert(name, axum::http::HeaderValue::from_static(value));
    }
    response
}

fn certificates_response(
    certificates: &[&[u8]],
    content_type: &'static str,
    headers: &HeaderMap,
) -> Response {
    let base64 = STANDARD.encode(certs_only(certificates));
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let body = if agent.contains("libest") { wrap_64(&base64) } else { base64 };
    let encoding = HeaderName::from_static("content-transfer-encoding");
    let head = [(CONTENT_TYPE, content_type), (encoding, "base64"), (CACHE_CONTROL, "no-store")];
    (head, body).into_response()
}

fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

/// The request's DER: base64 with any white space, also with PEM lines around it.
fn decode_body(body: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(body).ok()?;
    let base64: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .flat_map(str::chars)
        .filter(|c| !c.is_ascii_whitespace())
        .collect();
    STANDARD.decode(base64).ok().filter(|der| !der.is_empty())
}

/// A certs-only CMS SignedData (RFC 5652 §5.1, RFC 5272 §4.1). The certificates keep the order
/// given, the leaf first: CMS is BER, and readers print them in this order.
fn certs_only(certificates: &[&[u8]]) -> Vec<u8> {
    use yasna::Tag;
    use yasna::models::ObjectIdentifier;
    let signed_data = ObjectIdentifier::from_slice(&[1, 2, 840, 113_549, 1, 7, 2]);
    let data = ObjectIdentifier::from_slice(&[1, 2, 840, 113_549, 1, 7, 1]);
    yasna::construct_der(|writer| {
        writer.write_sequence(|content_info| {
            content_info.next().write_oid(&signed_data);
            content_info.next().write_tagged(Tag::context(0), |writer| {
                writer.write_sequence(|signed| {
                    signed.next().write_u8(1);
                    signed.next().write_set(|_| ());
                    signed.next().write_sequence(|content| content.next().write_oid(&data));
                    signed.next().write_tagged_implicit(Tag::context(0), |writer| {
                        writer.write_sequence(|list| {
                            for der in certificates {
                                list.next().write_der(der);
                            }
                        });
                    });
                    signed.next().write_set(|_| ());
                });
            });
        });
    })
}

const BUSY_JA: &str = "ただいま発行できません。しばらくしてからもう一度お試しください。";
const ENROLLED_TYPE: &str = "application/pkcs7-mime; smime-type=certs-only";
/// A P-256 request has under 1 kB; certreq's with all attributes under 8 kB.
const BODY_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_may_have_white_space_and_pem_lines() {
        let encoded = STANDARD.encode([1, 2, 3]);
        for body in [
            encoded.clone(),
            format!(" {}\r\n{}\n", &encoded[..2], &encoded[2..]),
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{encoded}\n-----END X-----\n"),
        ] {
            assert_eq!(decode_body(body.as_bytes()).unwrap(), [1, 2, 3]);
        }
        assert!(decode_body(b"").is_none());
        assert!(decode_body(b"%%%").is_none());
        assert!(decode_body(&[0xff]).is_none());
    }

    #[test]
    fn credentials_are_basic_with_a_colon() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            basic_credentials(&headers)
        };
        let good = format!("basic {}", STANDARD.encode("ID:A-B:C"));
        assert_eq!(with(&good).unwrap(), ("ID".into(), "A-B:C".into()));
        assert!(with("Bearer abc").is_none());
        assert!(with(&format!("Basic {}", STANDARD.encode("nocolon"))).is_none());
        assert!(basic_credentials(&HeaderMap::new()).is_none());
    }
}
