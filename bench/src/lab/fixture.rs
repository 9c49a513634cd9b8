//! A fixture: a PKI of one root and one intermediate, terminals with certificates and staff tokens,
//! and the keys of feeds, permits and records. All keys are made here and stay in the folder.
//!
//! Terminal `n` belongs to an office of its own, which is registered for a person of its own: each
//! request is another row of the facts, as it is on a day.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use policies::feed::{Signer, Source};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};

use crate::lab::Lab;

/// Arguments of `fixture`.
#[derive(Debug, Args)]
pub(crate) struct FixtureArgs {
    /// Folder to make it in
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    scale: Scale,
}

/// How many of everything there are.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
pub(crate) struct Scale {
    /// Terminals with a certificate, a token and an office of their own
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = counted)]
    pub(crate) terminals: usize,
    /// Offices beside those of the terminals
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = counted)]
    pub(crate) offices: usize,
    /// Registrations beside those of the terminals
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = counted)]
    pub(crate) registrations: usize,
    /// Revoked certificates, none of them a terminal's
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = counted)]
    pub(crate) revocations: usize,
}

fn counted(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if number <= COUNT_MAX { Ok(number) } else { Err(format!("at most {COUNT_MAX}")) }
}

/// What stands in the fixture's `facts.toml`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    /// The form of the folder.
    format: u32,
    /// Unix seconds.
    made_at: u64,
    /// Public point of the key that signed the tokens.
    pub(crate) staff_key_x: String,
    /// Public point of the key that signed the tokens.
    pub(crate) staff_key_y: String,
    /// How many of everything there are.
    pub(crate) scale: Scale,
}

/// Makes a fixture, or leaves the one of the same scale that is there.
///
/// # Errors
/// If a file can not be written.
pub(crate) fn run(args: &FixtureArgs) -> anyhow::Result<()> {
    Lab::make(&args.dir, &args.scale).map(|_| ())
}

/// Whether the folder holds a fixture of this form and scale whose tokens last for hours.
pub(crate) fn is_usable(dir: &Path, scale: &Scale) -> bool {
    read(dir).is_ok_and(|made| {
        made.format == FORMAT && made.scale == *scale && made.made_at + REUSED_SECONDS > now()
    })
}

/// Reads what the folder says of itself.
///
/// # Errors
/// If it is no fixture.
pub(crate) fn read(dir: &Path) -> anyhow::Result<Made> {
    let path = dir.join("facts.toml");
    let text = fs::read_to_string(&path).with_context(|| {
        format!("`{}` is no fixture: make one with `sekisho-bench fixture`", dir.display())
    })?;
    toml::from_str(&text).with_context(|| format!("`{}` is not understood", path.display()))
}

/// Makes the fixture; what was in the folder is removed.
///
/// # Errors
/// If the folder holds something else, or a file can not be written.
pub(crate) fn make(dir: &Path, scale: &Scale) -> anyhow::Result<()> {
    ensure!(scale.terminals > 0, "a fixture has at least one terminal");
    clear(dir)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| fs::write(dir.join(MARK), MARK_TEXT))
        .with_context(|| format!("folder `{}`", dir.display()))?;
    for folder in ["pki", "keys", "terminals", "run"] {
        let path = dir.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("folder `{}`", path.display()))?;
    }
    let pki = Pki::make(dir)?;
    let staff = keys(dir)?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = scale.terminals.div_ceil(threads);
    std::thread::scope(|scope| {
        let (pki, staff) = (&pki, &staff);
        let workers: Vec<_> = (0..threads)
            .map(|at| {
                let numbers = at * share..((at + 1) * share).min(scale.terminals);
                scope.spawn(move || {
                    numbers.into_iter().try_for_each(|number| terminal(dir, pki, staff, number))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread ended early")))
        })
    })?;
    let point = staff.public_key().as_ref();
    let part = |range| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
    let made = Made {
        format: FORMAT,
        made_at: now(),
        staff_key_x: part(1..33),
        staff_key_y: part(33..65),
        scale: scale.clone(),
    };
    fs::write(dir.join("facts.toml"), toml::to_string(&made)?)?;
    Ok(())
}

/// Removes an older fixture; a folder without our mark stays as it is, and is told. What says that
/// the fixture is whole goes first.
fn clear(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let empty = fs::read_dir(dir)?.next().is_none();
    let ours = dir.join(MARK).exists();
    ensure!(empty || ours, "folder `{}` holds something else: name another", dir.display());
    match fs::remove_file(dir.join("facts.toml")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    for folder in ["pki", "keys", "terminals", "run"] {
        match fs::remove_dir_all(dir.join(folder)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The office of terminal `number`.
pub(crate) fn office(number: usize) -> String {
    format!("13{number:08}")
}

/// The person of terminal `number`, as 保険者番号/被保険者番号.
pub(crate) fn insured(number: usize) -> String {
    format!("131016/{number:010}")
}

/// A document of that person.
pub(crate) fn document_path(number: usize) -> String {
    format!("/v1/insured/{}/documents/insured-card", insured(number))
}

/// The serial number of terminal `number`'s certificate.
pub(crate) fn serial(number: usize) -> [u8; 16] {
    (0x10_u128 << 120 | number as u128).to_be_bytes()
}

/// Root, intermediate and server certificate.
struct Pki {
    issuer: Issuer<'static, KeyPair>,
    issuing_pem: String,
}

impl Pki {
    fn make(dir: &Path) -> anyhow::Result<Self> {
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = authority("Sekisho bench root", 1);
        let root_pem = root.self_signed(&root_key)?.pem();
        let root_issuer = Issuer::new(root, root_key);
        let issuing_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issuing = authority("Sekisho bench issuing CA", 0);
        let issuing_pem = issuing.signed_by(&issuing_key, &root_issuer)?.pem();
        let issuer = Issuer::new(issuing, issuing_key);
        let server_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "localhost");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let server = server.signed_by(&server_key, &issuer)?.pem();
        write(&dir.join("pki/root.pem"), root_pem.as_bytes())?;
        write(&dir.join("pki/issuing.pem"), issuing_pem.as_bytes())?;
        write(&dir.join("pki/server.pem"), format!("{server}{issuing_pem}").as_bytes())?;
        write(&dir.join("pki/server.key"), server_key.serialize_pem().as_bytes())?;
        // HAProxy wants certificate and key in one file.
        let both = format!("{server}{issuing_pem}{}", server_key.serialize_pem());
        write(&dir.join("pki/server-with-key.pem"), both.as_bytes())?;
        Ok(Self { issuer, issuing_pem })
    }
}

fn authority(name: &str, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The keys of feeds, permits and records; returns the one that signs staff tokens.
fn keys(dir: &Path) -> anyhow::Result<EcdsaKeyPair> {
    let random = SystemRandom::new();
    let mut secret = [0; 32];
    for name in ["permit", "pseudonym"] {
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("no randomness"))?;
        write(&dir.join(format!("keys/{name}.key")), &secret)?;
    }
    for source in [Source::Ca, Source::Hub] {
        let der = Signer::generate_pkcs8()?;
        let signer = Signer::from_pkcs8(source, &der)?;
        let name = source.as_str();
        write(&dir.join(format!("keys/feed-{name}.pkcs8")), &der)?;
        write(&dir.join(format!("keys/feed-{name}.pub")), signer.public_key().as_bytes())?;
    }
    let (_, text) = audit_log::CheckpointKey::generate("bench.example/audit/gateway")?;
    write(&dir.join("keys/audit.key"), text.as_bytes())?;
    let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let document = EcdsaKeyPair::generate_pkcs8(kind, &random)?;
    Ok(EcdsaKeyPair::from_pkcs8(kind, document.as_ref())?)
}

/// One terminal's folder.
fn terminal(dir: &Path, pki: &Pki, staff: &EcdsaKeyPair, number: usize) -> anyhow::Result<()> {
    let folder = dir.join(format!("terminals/{number:05}"));
    fs::create_dir(&folder).with_context(|| format!("folder `{}`", folder.display()))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let office = office(number);
    let uri = format!("https://{ID_DOMAIN}/office/{office}/terminal/front-1");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, office.as_str());
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(SerialNumber::from_slice(&serial(number)));
    params.custom_extensions =
        vec![CustomExtension::from_oid_content(&[2, 5, 29, 32], CERTIFICATE_POLICIES.to_vec())];
    let certificate = params.signed_by(&key, &pki.issuer)?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
    let token = token(staff, &office, &URL_SAFE_NO_PAD.encode(digest))?;
    let chain = format!("{}{}", certificate.pem(), pki.issuing_pem);
    write(&folder.join("cert.pem"), chain.as_bytes())?;
    write(&folder.join("key.pem"), key.serialize_pem().as_bytes())?;
    write(&folder.join("token"), token.as_bytes())?;
    write(&folder.join("path"), document_path(number).as_bytes())
}

/// A staff token as the hub mints it (RFC 7519, bound to the certificate by RFC 8705 §3.1).
fn token(staff: &EcdsaKeyPair, office: &str, certificate: &str) -> anyhow::Result<String> {
    let header = serde_json::json!({ "alg": "ES256", "typ": "JWT", "kid": STAFF_KEY_ID });
    let claims = serde_json::json!({
        "iss": "sekisho-hub", "sub": format!("staff-{office}"), "office": office,
        "job": "care-manager", "sid": format!("session-{office}"), "iat": now(),
        "exp": now() + TOKEN_SECONDS, "jti": office, "cnf": { "x5t#S256": certificate },
    });
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = format!("{}.{}", encode(header), encode(claims));
    let signature = staff
        .sign(&SystemRandom::new(), body.as_bytes())
        .map_err(|_| anyhow::anyhow!("a staff token could not be signed"))?;
    Ok(format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("cannot write `{}`", path.display()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The domain of the SAN URIs.
pub(crate) const ID_DOMAIN: &str = "id.sekisho.example";

/// The id of the key that signs staff tokens.
pub(crate) const STAFF_KEY_ID: &str = "bench-1";

/// certificatePolicies (RFC 5280 §4.2.1.4) with the one policy 2.999.1.1.1.
const CERTIFICATE_POLICIES: [u8; 11] =
    [0x30, 0x09, 0x30, 0x07, 0x06, 0x05, 0x88, 0x37, 0x01, 0x01, 0x01];

/// Only a folder with this file in it is ever cleared.
const MARK: &str = "sekisho-bench-fixture";
const MARK_TEXT: &str = "This folder is made, and cleared, by sekisho-bench fixture.\n";
const FORMAT: u32 = 1;
const COUNT_MAX: usize = 50_000_000;
const TOKEN_SECONDS: u64 = 24 * 3600;
const REUSED_SECONDS: u64 = 20 * 3600;
