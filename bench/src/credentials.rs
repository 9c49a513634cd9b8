//! The certificates that the load is made with, each as ready TLS settings with its staff token.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::HeaderValue;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::cli::{Group, Mode, RunArgs};

/// Why the credentials can not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read `{}`: name a PEM file", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("`{}` holds no usable certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("certificate and key in `{}` can not be used together", dir.display())]
    Pair {
        dir: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("cannot read token file `{}`", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("token file `{}` holds no token", .0.display())]
    NoToken(PathBuf),
    #[error("TLS settings are refused")]
    Settings(#[source] rustls::Error),
}

/// One certificate of the load.
pub(crate) struct Credential {
    config: ClientConfig,
    /// The value of the Authorization header.
    pub(crate) authorization: Option<HeaderValue>,
}

impl Credential {
    /// Settings for one task; its sessions are its own, so that tasks do not take each other's
    /// tickets.
    pub(crate) fn settings(&self, mode: Mode) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        config.resumption = match mode {
            Mode::Keepalive | Mode::Handshake => Resumption::disabled(),
            Mode::Resumed => Resumption::in_memory_sessions(SESSIONS_PER_TASK_MAX),
        };
        Arc::new(config)
    }
}

/// Reads everything that the arguments name.
pub(crate) fn read(args: &RunArgs) -> Result<Vec<Credential>, Error> {
    let roots = trusted(&args.trust)?;
    let tokens: Vec<_> =
        args.token_file.iter().map(|path| token(path)).collect::<Result<_, _>>()?;
    let mut credentials = Vec::new();
    for (at, dir) in args.certs.iter().enumerate() {
        let authorization = tokens.get(at).or_else(|| tokens.first()).cloned();
        let config = config(dir, roots.clone(), args.group)?;
        credentials.push(Credential { config, authorization });
    }
    Ok(credentials)
}

fn config(dir: &Path, roots: RootCertStore, group: Group) -> Result<ClientConfig, Error> {
    let key_path = dir.join("key.pem");
    let key = PrivateKeyDer::from_pem_file(&key_path)
        .map_err(|source| Error::Pem { path: key_path, source })?;
    let chain = certificates(&dir.join("cert.pem"))?;
    ClientConfig::builder_with_provider(Arc::new(provider(group)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::Settings)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|source| Error::Pair { dir: dir.to_owned(), source })
}

fn provider(group: Group) -> CryptoProvider {
    let kx_groups = match group {
        Group::Hybrid => {
            vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519]
        }
        Group::X25519 => vec![aws_lc_rs::kx_group::X25519],
    };
    CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() }
}

fn trusted(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(path)?);
    if roots.is_empty() { Err(Error::NoCertificate(path.to_owned())) } else { Ok(roots) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| Error::Pem { path: path.to_owned(), source })?;
    if found.is_empty() { Err(Error::NoCertificate(path.to_owned())) } else { Ok(found) }
}

fn token(path: &Path) -> Result<HeaderValue, Error> {
    let text = fs::read_to_string(path)
        .map_err(|source| Error::Token { path: path.to_owned(), source })?;
    let value = HeaderValue::from_str(&format!("Bearer {}", text.trim())).ok();
    let mut value =
        value.filter(|_| !text.trim().is_empty()).ok_or_else(|| Error::NoToken(path.to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

const SESSIONS_PER_TASK_MAX: usize = 4;
