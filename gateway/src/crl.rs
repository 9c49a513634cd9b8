//! Certificate revocation lists of outside CAs: fetched, verified once, held as sets.
//!
//! Invariants:
//! - a list counts only for the CA whose key signed it, so equal serials of two CAs are two things;
//! - a list whose number is lower than that of the one held is refused: an old list brings a
//!   revoked certificate back;
//! - a source is taken whole or not at all: a list with an extension that is not understood, a
//!   delta or a list of a part of the certificates is refused.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::header::HOST;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use policies::identity::Serial;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::AsyncReadExt;
use x509_parser::extensions::X509Extension;
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::{CertificateRevocationList, FromDer, ParsedExtension};

use crate::client_cert::{Digest, date};

/// Where lists come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file that something else keeps fresh.
    File(PathBuf),
    /// A server. Plain HTTP: what counts is the signature (RFC 5280 §8).
    Http(Uri),
}

/// A CA that may sign lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issuer {
    /// Of its name and key, as the trust bundle has it.
    pub(crate) digest: Digest,
    /// The whole DER of its name.
    pub(crate) name: Vec<u8>,
    /// Its public key's bits.
    pub(crate) key: Vec<u8>,
}

/// One verified list.
#[derive(Debug)]
pub(crate) struct List {
    number: BigUint,
    next_update: i64,
    revoked: HashSet<Serial>,
}

/// The verified lists, by the CA that signed.
pub(crate) type Lists = HashMap<Digest, Arc<List>>;

impl List {
    /// Whether it names the certificate.
    pub(crate) fn revokes(&self, serial: Serial) -> bool {
        self.revoked.contains(&serial)
    }

    /// Whether a newer one should have come before `now` (Unix seconds).
    ///
    /// # Errors
    /// Words for the record.
    pub(crate) fn check_due(&self, now: u64) -> Result<(), String> {
        if i64::try_from(now).is_ok_and(|now| now <= self.next_update) {
            return Ok(());
        }
        Err(format!("the revocation list was due for renewal on {}", date(self.next_update)))
    }
}

/// Reads lists, PEM or DER, and puts them in the place of those `held` from the same CAs.
///
/// # Errors
/// A line for the operator; nothing of the source counts then.
pub(crate) fn read(
    bytes: &[u8],
    issuers: &[Issuer],
    algorithms: WebPkiSupportedAlgorithms,
    held: &Lists,
    now: u64,
) -> Result<Lists, String> {
    let mut lists = held.clone();
    for der in ders(bytes)? {
        let (rest, crl) = CertificateRevocationList::from_der(&der)
            .map_err(|_| "not a certificate revocation list".to_owned())?;
        if !rest.is_empty() {
            return Err("bytes after the end of the list".to_owned());
        }
        let issuer = signer(&crl, issuers, algorithms)?;
        let list = list(&crl, now)?;
        if let Some(known) = held.get(&issuer.digest)
            && known.number > list.number
        {
            let (from, to) = (&known.number, &list.number);
            return Err(format!("the list's number went back from {from} to {to}"));
        }
        lists.insert(issuer.digest, Arc::new(list));
    }
    Ok(lists)
}

fn ders(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'_>>, String> {
    if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Ok(vec![CertificateRevocationListDer::from(bytes)]);
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err("no list in it".to_owned()),
        lists => lists.map_err(|error| format!("not PEM: {error}")),
    }
}

/// The CA that signed, by name and signature.
fn signer<'a>(
    crl: &CertificateRevocationList<'_>,
    issuers: &'a [Issuer],
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<&'a Issuer, String> {
    let named = issuers.iter().filter(|issuer| issuer.name == crl.issuer().as_raw());
    let (message, signature) = (crl.tbs_cert_list.as_ref(), crl.signature_value.data.as_ref());
    let object = crl.signature_algorithm.algorithm.as_bytes();
    let algorithm = |id: &[u8]| id.get(2..2 + object.len()) == Some(object);
    let signed = |issuer: &&Issuer| {
        let all = algorithms.all.iter().filter(|it| algorithm(it.signature_alg_id().as_ref()));
        all.into_iter().any(|it| it.verify_signature(&issuer.key, message, signature).is_ok())
    };
    let mut named = named.peekable();
    if named.peek().is_none() {
        let name: String = crl.issuer().to_string().chars().take(120).collect();
        return Err(format!("issuer `{name}` is none of this entry's `anchors`"));
    }
    named.find(signed).ok_or_else(|| "the list's signature does not verify".to_owned())
}

fn list(crl: &CertificateRevocationList<'_>, now: u64) -> Result<List, String> {
    let ahead = i64::try_from(now).unwrap_or(i64::MAX).saturating_add(CLOCK_AHEAD_SECONDS_MAX);
    if crl.last_update().timestamp() > ahead {
        return Err(format!("the list is of {}", date(crl.last_update().timestamp())));
    }
    let next_update = crl.next_update().ok_or("the list has no nextUpdate")?.timestamp();
    let number = crl.crl_number().ok_or("the list has no number")?.clone();
    crl.extensions().iter().try_for_each(check_extension)?;
    let revoked = crl.iter_revoked_certificates().map(|entry| {
        if entry.extensions().iter().any(|extension| extension.critical) {
            return Err("an entry has an extension that is not understood".to_owned());
        }
        Serial::from_bytes(entry.raw_serial()).map_err(|error| error.to_string())
    });
    Ok(List { number, next_update, revoked: revoked.collect::<Result<_, _>>()? })
}

fn check_extension(extension: &X509Extension<'_>) -> Result<(), String> {
    if let ParsedExtension::IssuingDistributionPoint(part) = extension.parsed_extension() {
        let is_part = part.only_contains_ca_certs
            || part.only_contains_attribute_certs
            || part.only_some_reasons.is_some()
            || part.indirect_crl;
        return match is_part {
            true => Err("the list covers a part of the certificates only".to_owned()),
            false => Ok(()),
        };
    }
    if extension.oid.as_bytes() == DELTA {
        return Err("a delta list is not taken".to_owned());
    }
    let known = [CRL_NUMBER, AUTHORITY_KEY].contains(&extension.oid.as_bytes());
    if extension.critical && !known {
        return Err(format!("extension {} is not understood", extension.oid));
    }
    Ok(())
}

/// Takes what the place holds now, up to `bytes_max`, within `limit`.
///
/// # Errors
/// A line for the operator.
pub(crate) async fn fetch(
    place: &Place,
    bytes_max: usize,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let fetched = async {
        match place {
            Place::File(path) => {
                let file = tokio::fs::File::open(path).await.map_err(|it| it.to_string())?;
                let (mut bytes, more) = (Vec::new(), bytes_max as u64 + 1);
                let read = file.take(more).read_to_end(&mut bytes).await;
                read.map_err(|error| error.to_string())?;
                if bytes.len() > bytes_max {
                    return Err(format!("longer than {bytes_max} bytes"));
                }
                Ok(bytes)
            }
            Place::Http(uri) => over_http(uri, bytes_max).await,
        }
    };
    let fetched = tokio::time::timeout(limit, fetched).await;
    fetched.unwrap_or_else(|_| Err(format!("not fetched within {} ms", limit.as_millis())))
}

async fn over_http(uri: &Uri, bytes_max: usize) -> Result<Vec<u8>, String> {
    let told = |error: &dyn std::error::Error| crate::facts_feed::chain(error);
    let authority = uri.authority().ok_or("no server in the URL")?;
    let address = (authority.host(), authority.port_u16().unwrap_or(80));
    let tcp = tokio::net::TcpStream::connect(address).await.map_err(|error| told(&error))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
    let (mut sender, connection) = handshake.map_err(|error| told(&error))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = http::Request::get(path).header(HOST, authority.as_str());
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| told(&error))?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(|error| told(&error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("the server answered {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), bytes_max).collect().await;
        Ok(body.map_err(|error| told(error.as_ref()))?.to_bytes().to_vec())
    };
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        // What it ended with, the asking side is told.
        _ = connection => asked.await,
    }
}

/// A list may be of a moment that lies so far ahead of this machine's clock.
const CLOCK_AHEAD_SECONDS_MAX: i64 = 300;

/// deltaCRLIndicator, 2.5.29.27 (RFC 5280 §5.2.4).
const DELTA: &[u8] = &[0x55, 0x1d, 0x1b];

/// cRLNumber, 2.5.29.20.
const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 0x14];

/// authorityKeyIdentifier, 2.5.29.35.
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
