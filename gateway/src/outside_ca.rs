//! A CA that is not ours and whose certificates identify offices: 国保中央会's, which an office has
//! for 電子請求.
//!
//! Its certificates carry no SAN of ours, so its entry in the configuration names the rule by which
//! their subject is read, and where its revocation lists are. The rule belongs to the trust anchor
//! that a chain led to, never to what a certificate says: ours are read by our rule and no other.
//!
//! INVARIANT: a certificate whose revocation is not known, because there is no list of its issuer,
//! is refused; so is one whose list is stale, unless the operator said `warn`.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use policies::identity::Serial;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::client_cert::{Digest, Reason, now, sha256};
use crate::crl::{self, Issuer, Lists, Place};
use crate::downstream::LiveConnections;
use crate::metrics::Metrics;

/// How a certificate's holder is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityRule {
    /// The subject's one common name is a 事業所番号, its one organisational unit the kind of
    /// certificate.
    KokuhoSubject,
}

/// What a list that should have been renewed means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenStale {
    /// Its CA's certificates are refused.
    Deny,
    /// They pass by what the list says, and the operator is told.
    Warn,
}

/// One entry of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The entry's name in logs.
    pub name: String,
    /// The file with the issuing CAs.
    pub anchors: PathBuf,
    /// How their certificates' holders are read.
    pub identity: IdentityRule,
    /// Where their revocation lists are.
    pub place: Place,
    /// How often they are fetched.
    pub refresh: Duration,
    /// How long one fetch may take.
    pub fetch_timeout: Duration,
    /// How long what was fetched counts as fresh, whatever it says itself.
    pub max_age: Duration,
    /// The longest source that is read.
    pub bytes_max: usize,
    /// What happens when none was fetched in time.
    pub when_stale: WhenStale,
}

/// The lists in use.
#[derive(Debug)]
struct Held {
    lists: Lists,
    /// Of the source's bytes, so that the same are not read twice.
    digest: Digest,
    fetched: Option<Instant>,
}

/// An outside CA with its revocation lists.
#[derive(Debug)]
pub struct OutsideCa {
    settings: Settings,
    issuers: Vec<Issuer>,
    algorithms: WebPkiSupportedAlgorithms,
    held: ArcSwap<Held>,
}

impl OutsideCa {
    /// The entry with what its file of anchors holds, and what `before` knew of the same CAs.
    ///
    /// # Errors
    /// A line for the operator if an anchor is no certificate.
    pub(crate) fn new(
        settings: Settings,
        anchors: &[CertificateDer<'static>],
        algorithms: WebPkiSupportedAlgorithms,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let issuers: Vec<Issuer> = anchors.iter().map(issuer).collect::<Result<_, _>>()?;
        let held = before.map(|known| {
            let held = known.held.load();
            let mut lists = held.lists.clone();
            lists.retain(|digest, _| issuers.iter().any(|issuer| issuer.digest == *digest));
            // What is at the place may say more to these anchors than it said to those before.
            Held { lists, digest: [0; 32], fetched: held.fetched }
        });
        let none = || Held { lists: Lists::new(), digest: [0; 32], fetched: None };
        let held = ArcSwap::from_pointee(held.unwrap_or_else(none));
        Ok(Self { settings, issuers, algorithms, held })
    }

    /// How its certificates' holders are read.
    pub(crate) fn identity(&self) -> IdentityRule {
        self.settings.identity
    }

    /// Whether it is the same entry, whatever its anchors.
    pub(crate) fn has(&self, settings: &Settings) -> bool {
        self.settings == *settings
    }

    /// Whether it is the same entry with the same anchors.
    pub(crate) fn is(&self, settings: &Settings, anchors: &[CertificateDer<'static>]) -> bool {
        let issuers: Result<Vec<Issuer>, _> = anchors.iter().map(issuer).collect();
        self.settings == *settings && issuers.is_ok_and(|issuers| issuers == self.issuers)
    }

    /// Whether the certificate that the CA `issuer` gave this number may pass at `now`.
    ///
    /// # Errors
    /// [`Reason::Revoked`], or [`Reason::RevocationUnknown`].
    pub(crate) fn check(&self, issuer: &Digest, serial: Serial, now: u64) -> Result<(), Reason> {
        let held = self.held.load();
        let unknown = |why: String| Reason::RevocationUnknown(why);
        let list = held.lists.get(issuer);
        let list = list.ok_or_else(|| unknown("there is no list of its issuer".to_owned()))?;
        if list.revokes(serial) {
            return Err(Reason::Revoked);
        }
        let fresh = list.check_due(now).and_then(|()| self.check_age(&held));
        match (fresh, self.settings.when_stale) {
            (Ok(()), _) | (Err(_), WhenStale::Warn) => Ok(()),
            (Err(why), WhenStale::Deny) => Err(unknown(why)),
        }
    }

    fn check_age(&self, held: &Held) -> Result<(), String> {
        let max = self.settings.max_age;
        match held.fetched {
            Some(fetched) if fetched.elapsed() <= max => Ok(()),
            _ => Err(format!("no revocation list was fetched within {} ms", max.as_millis())),
        }
    }

    /// Whether one of its CAs has no fresh list.
    fn is_stale(&self, now: u64) -> bool {
        let held = self.held.load();
        let fresh = |issuer: &Issuer| {
            held.lists.get(&issuer.digest).is_some_and(|list| list.check_due(now).is_ok())
        };
        !self.issuers.iter().all(fresh) || self.check_age(&held).is_err()
    }

    /// Fetches and verifies the lists once.
    async fn refresh(self: Arc<Self>) -> Result<(), String> {
        let Settings { place, bytes_max, fetch_timeout, .. } = &self.settings;
        let bytes = crl::fetch(place, *bytes_max, *fetch_timeout).await?;
        let this = self.clone();
        let taken = tokio::task::spawn_blocking(move || this.take(&bytes));
        taken.await.map_err(|error| error.to_string())?
    }

    fn take(&self, bytes: &[u8]) -> Result<(), String> {
        let (held, digest) = (self.held.load(), sha256(bytes));
        let lists = match digest == held.digest {
            true => held.lists.clone(),
            false => crl::read(bytes, &self.issuers, self.algorithms, &held.lists, now())?,
        };
        self.held.store(Arc::new(Held { lists, digest, fetched: Some(Instant::now()) }));
        Ok(())
    }

    /// Reads the lists if they are in a file, and keeps them fresh from then on.
    pub(crate) fn begin(self: &Arc<Self>, live: &Arc<LiveConnections>, metrics: &Arc<Metrics>) {
        if let Place::File(path) = &self.settings.place
            && let Ok(bytes) = std::fs::read(path)
            && bytes.len() <= self.settings.bytes_max
        {
            // Whatever is wrong is told by the first fetch.
            let _ = self.take(&bytes);
        }
        let followed = Self::follow(Arc::downgrade(self), live.clone(), metrics.clone());
        tokio::spawn(followed);
    }

    /// Keeps the lists fresh for as long as anybody holds the CA, and cuts the connections that
    /// they no longer accept.
    async fn follow(ca: Weak<Self>, live: Arc<LiveConnections>, metrics: Arc<Metrics>) {
        let mut told = (None, false);
        while let Some(this) = ca.upgrade() {
            let (name, refresh) = (this.settings.name.clone(), this.settings.refresh);
            let refused = this.clone().refresh().await.err();
            let outcome = if refused.is_some() { "refused" } else { "loaded" };
            metrics.trust.outside_crl_loads.with_label_values(&[outcome]).inc();
            let stale = this.is_stale(now());
            if let Some(problem) = refused.as_deref().filter(|_| refused != told.0) {
                tracing::error!(ca = name, problem, "revocation lists not taken");
            }
            if stale && !told.1 {
                tracing::error!(ca = name, "revocation lists are stale");
            }
            metrics.trust.outside_crls_stale.add(i64::from(stale) - i64::from(told.1));
            told = (refused, stale);
            let cut = live.cut_where(|client| client.stands_outside().is_err());
            if cut > 0 {
                tracing::info!(ca = name, connections = cut, "cut connections after a fetch");
            }
            drop(this);
            tokio::time::sleep(refresh).await;
        }
        metrics.trust.outside_crls_stale.add(-i64::from(told.1));
    }
}

fn issuer(der: &CertificateDer<'static>) -> Result<Issuer, String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| "trust anchor is no certificate".to_owned())?;
    let root = webpki::anchor_from_trusted_cert(der)
        .map_err(|error| format!("trust anchor cannot be used: {error}"))?;
    Ok(Issuer {
        digest: crate::trust::anchor_digest(&root),
        name: certificate.subject().as_raw().to_vec(),
        key: certificate.public_key().subject_public_key.data.to_vec(),
    })
}
