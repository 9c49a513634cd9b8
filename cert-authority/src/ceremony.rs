//! Makes the hierarchy: root (P-384, pathLen 1) → issuing CA for clients (P-256, pathLen 0), and in
//! a demo system also → a CA for servers and the two server certificates.
//!
//! `sekisho-signer init` may be run again at any time: what exists and is sound is kept, what a
//! crash left unfinished is completed from the key that is already there, a demo server certificate
//! that ends within 30 days is renewed, and anything that does not fit together is refused by name.
//!
//! Invariants: a key is written before the certificate that names it; no key is ever replaced;
//! outside a demo system the root's key belongs on a medium that is taken away (`--root-key`).
//!
//! A ceremony file that is reviewed before it is carried out, key custodians, the second issuing CA
//! and the root's own CRL belong here.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm};
use time::{Duration, OffsetDateTime};

use crate::issuer::{self, Issuer};
use crate::key;
use crate::lint::{self, Authority, Read};
use crate::profile::{BACKDATE, Name, Oid, Role, Template, Usage, marker_oid};

/// Why the hierarchy could not be made or completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can not be read or written.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// A certificate could not be signed.
    #[error("`{0}` could not be signed")]
    Sign(PathBuf, #[source] issuer::Error),
    /// Another `init` is at work in the folder.
    #[error("another init is at work in `{0}`: wait for it to end")]
    Busy(PathBuf),
    /// A certificate is there, but not its key.
    #[error("`{certificate}` exists but its key `{key}` is missing: restore the key from backup")]
    KeyMissing {
        /// The certificate.
        certificate: PathBuf,
        /// The key that should be there.
        key: PathBuf,
    },
    /// The root is gone while certificates below it exist.
    #[error("`{0}` is missing while certificates below it exist: restore it from backup")]
    RootMissing(PathBuf),
    /// A certificate has to be signed by the root, whose key is elsewhere.
    #[error("the root's key `{0}` is needed: attach its medium and name it with --root-key")]
    RootOffline(PathBuf),
    /// An existing certificate does not fit.
    #[error("`{path}` does not fit: {why}; move the folder away and run init again")]
    Unfit {
        /// The certificate.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What to make, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The folder of the hierarchy.
    pub dir: PathBuf,
    /// O of every name.
    pub operator_name: String,
    /// The OID arc that the operator owns.
    pub policy_arc: Oid,
    /// Whether to mark everything as demo and to make server certificates.
    pub demo: bool,
    /// Where the root's key is or shall be.
    pub root_key: PathBuf,
}

/// What happened to one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was made.
    Made,
    /// It was there and is sound.
    Kept,
    /// It was about to expire and was made anew for the same key.
    Renewed,
}

impl Step {
    /// The word that `init` prints.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Kept => "kept",
            Self::Renewed => "renewed",
        }
    }
}

/// Carries out the plan; returns each certificate with what happened to it.
///
/// # Errors
/// Every [`Error`]. What was made before the error is kept, and a later call goes on from there.
pub fn init(plan: &Plan, now: OffsetDateTime) -> Result<Vec<(PathBuf, Step)>, Error> {
    key::make_private_dir(&plan.dir)?;
    let _lock = lock(&plan.dir)?;
    let mut ceremony = Ceremony { plan, now, steps: vec![] };
    let root = ceremony.root()?;
    ceremony.authority(&ISSUING, &root)?;
    if plan.demo {
        let servers = ceremony.authority(&SERVERS, &root)?;
        key::make_private_dir(&plan.dir.join("servers"))?;
        for name in SERVER_NAMES {
            ceremony.server(name, &servers)?;
        }
    }
    Ok(ceremony.steps)
}

/// A CA of the hierarchy.
struct Spec {
    file: &'static str,
    common_name: &'static str,
    algorithm: &'static SignatureAlgorithm,
    days: i64,
    path_len: u8,
    usage: Option<Usage>,
}

/// The root as far as it is here: always its certificate, its key only if it is attached.
struct Root {
    certificate: Vec<u8>,
    issuer: Option<Issuer>,
}

struct Ceremony<'a> {
    plan: &'a Plan,
    now: OffsetDateTime,
    steps: Vec<(PathBuf, Step)>,
}

impl Ceremony<'_> {
    fn root(&mut self) -> Result<Root, Error> {
        let (path, key_path) = (self.path(ROOT.file, "pem"), self.plan.root_key.clone());
        if !path.exists() && self.path(ISSUING.file, "pem").exists() {
            return Err(Error::RootMissing(path));
        }
        if path.exists() {
            let certificate = self.existing(&path, None)?;
            let issuer = match key_path.exists() {
                true => Some(self.issuer(&path, &certificate, &key_path)?),
                false => None,
            };
            return Ok(Root { certificate, issuer });
        }
        let key = self.key(&key_path, ROOT.algorithm)?;
        let name = self.name(ROOT.common_name);
        let copy = key::read_signing_key(&key_path)?;
        let own =
            Issuer::unnamed(name, copy).map_err(|source| Error::Sign(path.clone(), source))?;
        let certificate = self.sign(&path, self.ca_template(&ROOT)?, &key, &own)?;
        self.write(&path, &[&certificate], Step::Made)?;
        let issuer = Some(self.issuer(&path, &certificate, &key_path)?);
        Ok(Root { certificate, issuer })
    }

    fn authority(&mut self, spec: &Spec, root: &Root) -> Result<Issuer, Error> {
        let (path, key_path) = (self.path(spec.file, "pem"), self.path(spec.file, "key"));
        if path.exists() {
            if !key_path.exists() {
                return Err(Error::KeyMissing { certificate: path, key: key_path });
            }
            let certificate = self.existing(&path, Some(&root.certificate))?;
            return self.issuer(&path, &certificate, &key_path);
        }
        let Some(parent) = &root.issuer else {
            return Err(Error::RootOffline(self.plan.root_key.clone()));
        };
        let key = self.key(&key_path, spec.algorithm)?;
        let certificate = self.sign(&path, self.ca_template(spec)?, &key, parent)?;
        self.write(&path, &[&certificate], Step::Made)?;
        self.issuer(&path, &certificate, &key_path)
    }

    fn server(&mut self, name: &str, parent: &Issuer) -> Result<(), Error> {
        let servers = self.plan.dir.join("servers");
        let (path, key_path) =
            (servers.join(format!("{name}.pem")), servers.join(format!("{name}.key")));
        let step = match self.server_end(&path)? {
            Some(end) if end - self.now > RENEW_BEFORE => {
                self.steps.push((path, Step::Kept));
                return Ok(());
            }
            Some(_) => Step::Renewed,
            None => Step::Made,
        };
        let key = self.key(&key_path, &rcgen::PKCS_ECDSA_P256_SHA256)?;
        let leaf = self.sign(&path, self.server_template(name)?, &key, parent)?;
        let chain = key::read_certificates(&self.path(SERVERS.file, "pem"))?;
        let mut certificates: Vec<&[u8]> = vec![&leaf];
        certificates.extend(chain.iter().map(|certificate| certificate.as_ref()));
        self.write(&path, &certificates, step)
    }

    fn server_end(&self, path: &Path) -> Result<Option<OffsetDateTime>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let unfit = || Error::Unfit { path: path.to_owned(), why: "it is malformed" };
        let certificates = key::read_certificates(path)?;
        let leaf = certificates.first().ok_or_else(unfit)?;
        Ok(Some(Read::from_der(leaf).map_err(|_| unfit())?.not_after))
    }

    /// Reads a CA certificate that is there already and checks that it belongs to this hierarchy.
    fn existing(&mut self, path: &Path, root: Option<&[u8]>) -> Result<Vec<u8>, Error> {
        let unfit = |why| Error::Unfit { path: path.to_owned(), why };
        let certificate = match key::read_certificates(path)?.as_slice() {
            [one] => one.to_vec(),
            _ => return Err(unfit("it holds more than one certificate")),
        };
        let read = Read::from_der(&certificate).map_err(|_| unfit("it is malformed"))?;
        if read.has_extension(&marker_oid(&self.plan.policy_arc)) != self.plan.demo {
            return Err(unfit(
                "its demo marker and --demo differ, and demo and production never mix",
            ));
        }
        if read.not_after <= self.now {
            return Err(unfit("it has expired"));
        }
        let signer = Authority::from_certificate(root.unwrap_or(&certificate))
            .map_err(|_| unfit("it is not a CA's"))?;
        if !lint::is_signed_by(&certificate, &signer) {
            return Err(unfit("it is not signed by the root beside it"));
        }
        self.steps.push((path.to_owned(), Step::Kept));
        Ok(certificate)
    }

    fn issuer(&self, path: &Path, certificate: &[u8], key: &Path) -> Result<Issuer, Error> {
        Issuer::new(certificate, key::read_signing_key(key)?)
            .map_err(|source| Error::Sign(path.to_owned(), source))
    }

    /// The key in the file, made first if it is not there.
    fn key(&self, path: &Path, algorithm: &'static SignatureAlgorithm) -> Result<KeyPair, Error> {
        if !path.exists() {
            let key = KeyPair::generate_for(algorithm)
                .map_err(|source| Error::Sign(path.to_owned(), issuer::Error::Sign(source)))?;
            let pem = zeroize::Zeroizing::new(key.serialize_pem());
            key::write_new(path, pem.as_bytes(), 0o600)?;
        }
        let key = key::read_signing_key(path)?;
        if key.algorithm() == algorithm {
            Ok(key)
        } else {
            Err(Error::Unfit { path: path.to_owned(), why: "the key is of another kind" })
        }
    }

    fn sign(
        &self,
        path: &Path,
        template: Template,
        key: &impl PublicKeyData,
        issuer: &Issuer,
    ) -> Result<Vec<u8>, Error> {
        issuer
            .prepare(template, key)
            .and_then(|prepared| issuer.issue(prepared, key))
            .map_err(|source| Error::Sign(path.to_owned(), source))
    }

    fn write(&mut self, path: &Path, certificates: &[&[u8]], step: Step) -> Result<(), Error> {
        let pem: String = certificates.iter().map(|der| key::certificate_to_pem(der)).collect();
        match step {
            Step::Made => key::write_new(path, pem.as_bytes(), 0o644)?,
            Step::Renewed => key::replace(path, pem.as_bytes(), 0o644)?,
            Step::Kept => {}
        }
        self.steps.push((path.to_owned(), step));
        Ok(())
    }

    fn ca_template(&self, spec: &Spec) -> Result<Template, Error> {
        let role = Role::Ca { path_len: spec.path_len, usage: spec.usage };
        self.template(self.name(spec.common_name), spec.days, role)
    }

    fn server_template(&self, name: &str) -> Result<Template, Error> {
        let role = Role::Server {
            names: vec!["localhost".to_owned()],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        };
        self.template(self.name(&format!("demo {name}")), SERVER_DAYS, role)
    }

    fn template(&self, subject: Name, days: i64, role: Role) -> Result<Template, Error> {
        let not_before = self.now.replace_nanosecond(0).unwrap_or(self.now) - BACKDATE;
        Ok(Template {
            serial: key::random_serial()?,
            subject,
            not_before,
            not_after: not_before + Duration::days(days) - Duration::SECOND,
            role,
            marker: self.plan.demo.then(|| marker_oid(&self.plan.policy_arc)),
        })
    }

    fn name(&self, common_name: &str) -> Name {
        Name {
            organization: self.plan.operator_name.clone(),
            unit: None,
            common_name: common_name.to_owned(),
        }
    }

    fn path(&self, stem: &str, extension: &str) -> PathBuf {
        self.plan.dir.join(format!("{stem}.{extension}"))
    }
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(".init.lock");
    let failed = |source| Error::Key(key::Error::Write(path.clone(), source));
    let file = File::create(&path).map_err(failed)?;
    // A program that was just started elsewhere holds a copy of every open file for a moment, so a
    // lock that was given back may still be seen as taken.
    let began = std::time::Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => return Err(Error::Busy(dir.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

static ROOT: Spec = Spec {
    file: "root",
    common_name: "Root CA 1",
    algorithm: &rcgen::PKCS_ECDSA_P384_SHA384,
    days: 7305,
    path_len: 1,
    usage: None,
};

static ISSUING: Spec = Spec {
    file: "issuing",
    common_name: "Client Issuing CA 1",
    algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
    days: 2191,
    path_len: 0,
    usage: Some(Usage::Client),
};

static SERVERS: Spec = Spec {
    file: "server-ca",
    common_name: "Demo Server CA 1",
    algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
    days: 2191,
    path_len: 0,
    usage: Some(Usage::Server),
};

/// The programs of a demo system that have a server certificate.
const SERVER_NAMES: [&str; 2] = ["gateway", "ra"];

const SERVER_DAYS: i64 = 90;

const RENEW_BEFORE: Duration = Duration::days(30);

#[cfg(test)]
mod tests;
