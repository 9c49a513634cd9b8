//! The terminals that the load is made with: each a certificate with its key, as ready TLS
//! settings, with its staff token and its path.
//!
//! A folder that holds `cert.pem` and `key.pem` is one terminal; `token` (a staff access token) and
//! `path` (what it asks for) may lie beside them. Any other folder holds terminals in its folders,
//! taken in the order of their names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use hyper::header::HeaderValue;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::cli::{Group, TargetArgs};

/// Why the credentials can not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read `{}`: name a PEM file", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("cannot read the folder `{}`", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` holds neither cert.pem and key.pem nor folders with them", .0.display())]
    NoTerminal(PathBuf),
    #[error("there are {have} terminals, and {wanted} from the {from}th on are asked for")]
    TooFew { have: usize, from: usize, wanted: usize },
    #[error("{tokens} token files for {terminals} terminals: give one for all or one for each")]
    Tokens { tokens: usize, terminals: usize },
    #[error("`{}` holds no usable certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("certificate and key in `{}` can not be used together", dir.display())]
    Pair {
        dir: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("cannot read `{}`", path.display())]
    Text {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` holds no token", .0.display())]
    NoToken(PathBuf),
    #[error("`{}` holds no path: it starts with / and is encoded", .0.display())]
    NoPath(PathBuf),
    #[error("a thread that reads terminals broke")]
    Broken,
    #[error("TLS settings are refused")]
    Settings(#[source] rustls::Error),
}

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http {
    /// HTTP/1.1 (RFC 9112).
    One,
    /// HTTP/2 (RFC 9113).
    Two,
}

/// One terminal.
pub(crate) struct Terminal {
    /// Its folder.
    pub(crate) dir: PathBuf,
    config: ClientConfig,
    /// The value of the Authorization header.
    pub(crate) authorization: Option<HeaderValue>,
    /// Path and query that it asks for.
    pub(crate) path: String,
}

impl Terminal {
    /// TLS settings that do a full handshake each time.
    pub(crate) fn settings(&self, http: Http) -> Arc<ClientConfig> {
        self.with_resumption(http, Resumption::disabled())
    }

    /// TLS settings that resume; the sessions belong to these settings alone, so that tasks do not
    /// take each other's tickets.
    pub(crate) fn resuming_settings(&self, http: Http) -> Arc<ClientConfig> {
        self.with_resumption(http, Resumption::in_memory_sessions(SERVERS_PER_TASK_MAX))
    }

    fn with_resumption(&self, http: Http, resumption: Resumption) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        config.resumption = resumption;
        config.alpn_protocols = match http {
            Http::One => vec![b"http/1.1".to_vec()],
            Http::Two => vec![b"h2".to_vec()],
        };
        Arc::new(config)
    }
}

/// Reads everything that the arguments name.
///
/// # Errors
/// What can not be read or does not fit.
pub(crate) fn read(args: &TargetArgs) -> Result<Vec<Terminal>, Error> {
    let builder = Builder {
        roots: trusted(&args.trust)?,
        provider: Arc::new(provider(args.group)),
        path: args.path.clone(),
    };
    let dirs = folders(args)?;
    let tokens: Vec<_> =
        args.token_file.iter().map(|path| token(path)).collect::<Result<_, _>>()?;
    if tokens.len() > 1 && tokens.len() != dirs.len() {
        return Err(Error::Tokens { tokens: tokens.len(), terminals: dirs.len() });
    }
    builder.terminals(&dirs, &tokens)
}

/// The terminals' folders, cut to the part that is asked for.
fn folders(args: &TargetArgs) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for dir in &args.certs {
        if dir.join("cert.pem").exists() {
            found.push(dir.clone());
            continue;
        }
        let entries = fs::read_dir(dir)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|source| Error::Folder { path: dir.clone(), source })?;
        let mut inner: Vec<PathBuf> = entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.join("cert.pem").exists())
            .collect();
        if inner.is_empty() {
            return Err(Error::NoTerminal(dir.clone()));
        }
        inner.sort();
        found.append(&mut inner);
    }
    let (have, from) = (found.len(), args.certs_from);
    let wanted = args.certs_count.unwrap_or_else(|| have.saturating_sub(from).max(1));
    if from + wanted > have {
        return Err(Error::TooFew { have, from, wanted });
    }
    Ok(found.into_iter().skip(from).take(wanted).collect())
}

/// What all terminals have in common.
struct Builder {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    path: String,
}

impl Builder {
    /// Reads the terminals on all CPUs: each key is checked against its certificate, which takes
    /// seconds for tens of thousands.
    fn terminals(&self, dirs: &[PathBuf], tokens: &[HeaderValue]) -> Result<Vec<Terminal>, Error> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let part = dirs.len().div_ceil(cpus).max(1);
        let read = |(number, dirs): (usize, &[PathBuf])| -> Result<Vec<Terminal>, Error> {
            let of = |at: usize| tokens.get(at).or_else(|| tokens.first()).cloned();
            let numbered = dirs.iter().enumerate();
            numbered.map(|(at, dir)| self.terminal(dir.clone(), of(number * part + at))).collect()
        };
        let parts: Vec<_> = thread::scope(|scope| {
            let started: Vec<_> = dirs
                .chunks(part)
                .enumerate()
                .map(|chunk| scope.spawn(move || read(chunk)))
                .collect();
            started.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        let mut terminals = Vec::with_capacity(dirs.len());
        for part in parts {
            terminals.append(&mut part.map_err(|_| Error::Broken)??);
        }
        Ok(terminals)
    }

    fn terminal(&self, dir: PathBuf, given: Option<HeaderValue>) -> Result<Terminal, Error> {
        let beside = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        let authorization = match (given, beside("token")) {
            (Some(given), _) => Some(given),
            (None, Some(path)) => Some(token(&path)?),
            (None, None) => None,
        };
        let path = match beside("path") {
            Some(path) => {
                let written = text(&path)?.trim().to_owned();
                is_path(&written).then_some(written).ok_or(Error::NoPath(path))?
            }
            None => self.path.clone(),
        };
        let config = self.config(&dir)?;
        Ok(Terminal { dir, config, authorization, path })
    }

    fn config(&self, dir: &Path) -> Result<ClientConfig, Error> {
        let key_path = dir.join("key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|source| Error::Pem { path: key_path, source })?;
        let chain = certificates(&dir.join("cert.pem"))?;
        ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::Settings)?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(chain, key)
            .map_err(|source| Error::Pair { dir: dir.to_owned(), source })
    }
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

/// Whether `path` can stand in a request line as it is.
pub(crate) fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic() && c != '#')
}

fn trusted(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(path)?);
    if roots.is_empty() { Err(Error::NoCertificate(path.to_owned())) } else { Ok(Arc::new(roots)) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| Error::Pem { path: path.to_owned(), source })?;
    if found.is_empty() { Err(Error::NoCertificate(path.to_owned())) } else { Ok(found) }
}

fn text(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Text { path: path.to_owned(), source })
}

fn token(path: &Path) -> Result<HeaderValue, Error> {
    let text = text(path)?;
    let value = HeaderValue::from_str(&format!("Bearer {}", text.trim())).ok();
    let mut value =
        value.filter(|_| !text.trim().is_empty()).ok_or_else(|| Error::NoToken(path.to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Sessions are kept for this many servers; rustls keeps up to eight tickets for each.
const SERVERS_PER_TASK_MAX: usize = 4;
