//! Step 6, handshakes: who does not get as far as a request. For each one the gateway's own record
//! of the reason is shown beside what the client saw.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use audit_log::Event;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType, SerialNumber,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use crate::client::{Cause, Client, Credentials, Error, TlsVersion};
use crate::code::Profile;
use crate::layout::Part;

use super::enrolment;
use super::exchange::Line;
use super::party::{CARE_MANAGEMENT, Cast, Scene, Terminal};
use super::report::Report;

/// Walks the handshakes of step 6.
pub(super) async fn walk(scene: &Scene, cast: &Cast, report: &mut Report) -> anyhow::Result<()> {
    report.step(6, "拒否されるべき接続を試みる");
    let good = &cast.care_management;
    let none = scene.client(None)?;
    refused(scene, report, "クライアント証明書なしで接続する", &none, "no_certificate").await?;
    let tls12 = scene.client_of(Some(&good.credentials), TlsVersion::Tls12)?;
    refused(scene, report, "TLS 1.2 だけで接続する", &tls12, "tls_version").await?;
    let foreign = scene.client(Some(&foreign_certificate(good, scene)?))?;
    let does = "別の認証局が発行した、同じ名義の証明書で接続する";
    refused(scene, report, does, &foreign, "unknown_issuer").await?;
    let server = Credentials::from_files(
        &scene.layout.ca("servers/gateway.pem"),
        &scene.layout.ca("servers/gateway.key"),
    )?;
    let server = scene.client(Some(&server))?;
    let does = "サーバー証明書をクライアント証明書として使う";
    refused(scene, report, does, &server, "wrong_purpose").await?;
    expired(scene, report).await
}

/// Connects where the gateway must refuse, and looks up its record.
async fn refused(
    scene: &Scene,
    report: &mut Report,
    does: &str,
    client: &Client,
    reason: &str,
) -> anyhow::Result<()> {
    let Some(error) = client.refusal().await else {
        return report.check(does, "接続できてしまいました", "接続の拒否", false);
    };
    let record = recorded_reason(scene, error.local).await?;
    let came = format!("{}\n{}", seen(&error.cause), in_words(record.as_ref()));
    let by_the_gateway = matches!(error.cause, Cause::Alert(_) | Cause::Closed(_));
    let fits = by_the_gateway && record.is_some_and(|(recorded, _)| recorded == reason);
    report.check(does, &came, &format!("接続の拒否、監査記録の理由 {reason}"), fits)
}

/// What the client saw, as it is printed.
pub(super) fn seen(cause: &Cause) -> String {
    match cause {
        Cause::Alert(name) => format!("TLS アラート {name}"),
        Cause::Closed(how) => format!("接続が切断されました（{how}）"),
        Cause::Tls(text) => format!("端末側の TLS の誤り（{text}）"),
        Cause::Http(text) => format!("HTTP の誤り（{text}）"),
        Cause::Timeout => "応答がありません".to_owned(),
    }
}

/// The gateway's record about a connection, as it is printed.
pub(super) fn in_words(record: Option<&(String, String)>) -> String {
    match record {
        Some((reason, detail)) => format!("ゲートウェイの記録: {reason}（{detail}）"),
        None => "ゲートウェイの記録がありません".to_owned(),
    }
}

/// Reason and detail of the failed handshake that the gateway recorded for this client address.
pub(super) async fn recorded_reason(
    scene: &Scene,
    local: Option<SocketAddr>,
) -> anyhow::Result<Option<(String, String)>> {
    let Some(local) = local.map(|local| local.to_string()) else { return Ok(None) };
    let deadline = Instant::now() + RECORD_TIMEOUT;
    loop {
        let folder = scene.layout.audit(Part::Gateway);
        let address = local.clone();
        let found = tokio::task::spawn_blocking(move || find_record(&folder, &address)).await??;
        if found.is_some() || Instant::now() > deadline {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn find_record(
    folder: &std::path::Path,
    address: &str,
) -> anyhow::Result<Option<(String, String)>> {
    let mut found = None;
    for entry in audit_log::read(folder) {
        if let Event::HandshakeFailed { reason, detail, client_addr, .. } = entry?.event
            && client_addr == address
        {
            found = Some((reason, detail));
        }
    }
    Ok(found)
}

/// A certificate that says the same as a real one, from a CA made here.
fn foreign_certificate(real: &Terminal, scene: &Scene) -> anyhow::Result<Credentials> {
    let identity = &real.identity;
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
    let (ca_key, leaf_key) = (key()?, key()?);
    let mut ca = parameters("Foreign CA (invented)", 1);
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let mut leaf = parameters(&identity.path(), 2);
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let domain = crate::part_config::value(&scene.layout, Part::Gateway, "id_domain")?;
    leaf.custom_extensions = copied_policies(real)?;
    leaf.subject_alt_names = vec![SanType::URI(identity.to_san_uri(&domain).try_into()?)];
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(ca, ca_key))?;
    let chain = vec![leaf.der().clone(), ca_certificate.der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    Ok(Credentials::from_der(chain, key))
}

/// The certificate policies of a real certificate.
fn copied_policies(real: &Terminal) -> anyhow::Result<Vec<CustomExtension>> {
    let leaf = real.credentials.leaf().context("the terminal has no certificate")?;
    let (_, certificate) = X509Certificate::from_der(leaf)?;
    let policies = certificate.extensions().iter().filter(|extension| {
        matches!(extension.parsed_extension(), ParsedExtension::CertificatePolicies(_))
    });
    let copy = |content: &[u8]| CustomExtension::from_oid_content(&POLICIES, content.to_vec());
    Ok(policies.map(|extension| copy(extension.value)).collect())
}

/// A name, a serial number, valid from an hour ago for a day.
fn parameters(name: &str, serial: u64) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.serial_number = Some(SerialNumber::from(serial));
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - time::Duration::hours(1);
    parameters.not_after = now + time::Duration::days(1);
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

/// A certificate of a few seconds: accepted, then refused on a new and on the open connection.
async fn expired(scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let identity = scene.office(&CARE_MANAGEMENT, "brief")?;
    let enrolled = Instant::now();
    let seconds = Some(SHORT_LIFETIME_S);
    let terminal = enrolment::enrol(scene, identity, Profile::ShortLived, seconds).await?;
    enrolment::tell("有効期間が数秒だけの証明書で端末を登録する", &terminal, report)?;
    let mut open = Line::open(&terminal).await?;
    let answer = open.get("/v1/registrations").await?;
    let does = "有効期間のうちに接続する（職員のトークンはない）";
    report.refused(does, &answer, 401, "staff_token_missing")?;
    let end = Duration::from_secs(u64::from(SHORT_LIFETIME_S) + 2);
    tokio::time::sleep(end.saturating_sub(enrolled.elapsed())).await;
    let does = "有効期限が切れた証明書で接続する";
    refused(scene, report, does, &scene.client(Some(&terminal.credentials))?, "expired").await?;
    let came = still_open(&mut open).await;
    let words = came.as_ref().map_or_else(|text| text.clone(), |(text, _)| text.clone());
    let fits = came.as_ref().map_or(true, |(_, code)| code == "certificate_expired");
    let does = "有効期限が切れた後、開いたままの接続で要求する";
    report.check(does, &words, "403 certificate_expired、または接続の切断", fits)
}

/// Asks on an open connection: the answer with its code, or in words how it ended.
async fn still_open(open: &mut Line) -> Result<(String, String), String> {
    match open.get("/v1/registrations").await {
        Ok(answer) => Ok((answer.to_string(), answer.code().to_owned())),
        Err(error) => Err(ended(&error)),
    }
}

/// How a connection ended.
fn ended(error: &anyhow::Error) -> String {
    let known = error.downcast_ref::<Error>();
    known.map_or_else(|| format!("{error:#}"), |error| seen(&error.cause))
}

/// The lifetime of the certificate that expires, in seconds; the shortest that the CA gives.
const SHORT_LIFETIME_S: u32 = 5;

/// id-ce-certificatePolicies (RFC 5280 §4.2.1.4).
const POLICIES: [u64; 4] = [2, 5, 29, 32];

/// How long a record may take to appear.
const RECORD_TIMEOUT: Duration = Duration::from_secs(3);

/// A terminal to be revoked.
pub(super) async fn doomed(scene: &Scene, name: &str) -> anyhow::Result<Terminal> {
    let identity = scene.office(&CARE_MANAGEMENT, name)?;
    enrolment::enrol(scene, identity, Profile::OfficeBrowser, None).await
}
