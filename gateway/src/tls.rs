//! The TLS settings of the public listener: our own rustls `ServerConfig`.
//!
//! pingora's `TlsSettings` fixes TLS 1.2, the session store and a 60 s handshake, so the gateway
//! accepts TLS itself and hands pingora a finished stream (docs/decisions/002).
//!
//! Invariants:
//! - TLS 1.3 only (RFC 8446), no early data, client certificate required;
//! - session ticket keys live in this process's memory only: a rustls ticket carries the client's
//!   chain, so its key could forge any office. They are rotated each 6 h, and a ticket lives 12 h;
//! - X25519MLKEM768 is preferred, X25519 and P-256 follow.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora_core::server::ShutdownWatch;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::version::TLS13;
use rustls::{CertificateError, InvalidMessage, PeerIncompatible, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::client_cert::{Candidate, Digest, LeafRules, Refused, VerifiedClient, Verifier, now};
use crate::config::Config;
use crate::credentials::{Credentials, Files, Problem, ServerCertificates};
use crate::downstream::LiveConnections;
use crate::facts_feed::LiveFacts;
use crate::framing::authority::ServerNames;
use crate::metrics::Metrics;
use crate::outside_ca::OutsideCa;
use crate::trust::{Ingredients, TrustBundle};

/// The provider of the public listener: aws-lc-rs with the groups and suites named here.
///
/// They are within the high-security setting (高セキュリティ型) of IPA's and CRYPTREC's
/// TLS暗号設定ガイドライン (GL-3001, 3.0.1 and 3.1.x): TLS 1.3 with its AES-GCM and
/// ChaCha20-Poly1305 suites, ECDHE on curves of at least 128 bits of security, of which the
/// check-list names P-256 and Curve25519. X25519MLKEM768 is X25519 with ML-KEM beside it, so it is
/// no weaker. The check-list's line on curves was read at second hand; the guideline's own table of
/// suites was not to be had.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// TLS as it is now: one connection sees one of them from its first byte to its admission.
pub struct Tls {
    /// What handshakes are made with.
    pub server: Arc<ServerConfig>,
    /// The CAs that its verifier trusts.
    pub trust: Arc<TrustBundle>,
    servers: Arc<ServerCertificates>,
}

impl Tls {
    /// Whom requests may be for, of a client that asked for `server_name` in its handshake.
    pub fn names(&self, server_name: Option<&str>) -> Arc<ServerNames> {
        self.servers.for_name(server_name).names.clone()
    }
}

/// The listener's TLS configuration, which changes whole or not at all.
pub struct LiveTls {
    provider: Arc<CryptoProvider>,
    /// One for all: a session stays resumable when a certificate is renewed.
    tickets: Arc<dyn ProducesTickets>,
    facts: Arc<LiveFacts>,
    live: Arc<LiveConnections>,
    metrics: Arc<Metrics>,
    current: ArcSwap<Tls>,
    source: Mutex<Source>,
}

/// Outside CAs with their anchors.
type Outside = Vec<(Arc<OutsideCa>, Vec<CertificateDer<'static>>)>;

/// Where TLS comes from, and what came last.
struct Source {
    files: Files,
    rules: LeafRules,
    verified_chains_max: usize,
    /// Of what is in force.
    taken: Digest,
    trust_anchors: Vec<CertificateDer<'static>>,
    outside: Outside,
    /// What was refused last, so that it is told once.
    refused: Option<String>,
}

impl Source {
    /// The outside CAs that `before` has too stay what they are, with their revocation lists.
    fn new(
        (files, rules, verified_chains_max): (Files, LeafRules, usize),
        from: &Credentials,
        provider: &CryptoProvider,
        before: &Outside,
    ) -> Result<Self, String> {
        let outside = files.outside.iter().zip(&from.outside).map(|(settings, anchors)| {
            let same = before.iter().find(|(ca, _)| ca.is(settings, anchors));
            if let Some((ca, _)) = same {
                return Ok((ca.clone(), anchors.clone()));
            }
            let known = before.iter().map(|(ca, _)| &**ca).find(|ca| ca.has(settings));
            let algorithms = provider.signature_verification_algorithms;
            let ca = OutsideCa::new(settings.clone(), anchors, algorithms, known)?;
            Ok((Arc::new(ca), anchors.clone()))
        });
        Ok(Self {
            outside: outside.collect::<Result<_, String>>()?,
            files,
            rules,
            verified_chains_max,
            taken: from.digest,
            trust_anchors: from.trust_anchors.clone(),
            refused: None,
        })
    }

    fn of(config: &Config, provider: &CryptoProvider, before: &Outside) -> Result<Self, String> {
        let rules = LeafRules::new(&config.id_domain, &config.policy_arc)?;
        let settings = (config.files.clone(), rules, config.verified_chains_max);
        Self::new(settings, &config.credentials, provider, before)
    }

    fn trusts_as(&self, other: &Self) -> bool {
        let same_outside = self.outside.len() == other.outside.len()
            && self.outside.iter().zip(&other.outside).all(|(one, it)| Arc::ptr_eq(&one.0, &it.0));
        same_outside
            && self.trust_anchors == other.trust_anchors
            && self.rules == other.rules
            && self.verified_chains_max == other.verified_chains_max
    }
}

impl LiveTls {
    /// TLS as the configuration says. A certificate that has expired is told and taken: no gateway
    /// at all would be worse, and clients judge for themselves.
    ///
    /// # Errors
    /// One line for the operator: which file does not fit, and why.
    pub fn start(
        config: &Config,
        facts: Arc<LiveFacts>,
        live: Arc<LiveConnections>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, String> {
        if let Err((key, problem)) = config.credentials.check_validity(now()) {
            tracing::error!(key, problem, "certificates");
        }
        let provider = Arc::new(provider());
        let tickets = aws_lc_rs::Ticketer::new();
        let tickets = tickets.map_err(|error| format!("session ticket keys: {error}"))?;
        let source = Source::of(config, &provider, &Outside::new())?;
        let trust = trust(1, &source, &provider, &metrics)?;
        let server = server_config(&config.credentials, &provider, &trust, &facts, &tickets)?;
        metrics.trust.server_not_after.set(config.credentials.server_not_after());
        metrics.trust.anchor_not_after.set(trust.first_not_after());
        let servers = config.credentials.servers.clone();
        let current = ArcSwap::from_pointee(Tls { server, trust, servers });
        source.outside.iter().for_each(|(ca, _)| ca.begin(&live, &metrics));
        let source = Mutex::new(source);
        Ok(Arc::new(Self { provider, tickets, facts, live, metrics, current, source }))
    }

    /// TLS now. Cheap; hold it for one step of a handshake, not longer.
    pub fn current(&self) -> arc_swap::Guard<Arc<Tls>> {
        self.current.load()
    }

    /// After a completed handshake, full or resumed: who is it? `candidate` is what the verifier
    /// left behind in it.
    ///
    /// # Errors
    /// As [`VerifiedClient::admit`].
    pub fn admit(
        &self,
        peer_certificates: Option<&[CertificateDer<'_>]>,
        candidate: Option<Candidate>,
    ) -> Result<VerifiedClient, Refused> {
        VerifiedClient::admit(&self.current().trust, &self.facts, peer_certificates, candidate)
    }

    /// Takes another configuration, or nothing of it. Connections whose CA is no longer trusted are
    /// cut, and no others.
    ///
    /// # Errors
    /// One line for the operator; what was in force stays.
    pub fn reload(&self, config: &Config) -> Result<(), String> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = Source::of(config, &self.provider, &source.outside)
            .and_then(|new| self.take(&mut source, new, &config.credentials));
        taken.inspect_err(|_| {
            self.metrics.trust.certificate_loads.with_label_values(&["refused"]).inc();
        })
    }

    /// Looks whether the files have changed, and takes what they hold, or nothing of it. What is
    /// refused is told once.
    pub fn look_again(&self) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(key, what): &Problem| format!("key `{key}`: {what}");
        let taken = match source.files.read(&self.provider) {
            Ok(credentials) if credentials.digest == source.taken => {
                source.refused = None;
                return;
            }
            Ok(credentials) => {
                let settings =
                    (source.files.clone(), source.rules.clone(), source.verified_chains_max);
                Source::new(settings, &credentials, &self.provider, &source.outside)
                    .and_then(|new| self.take(&mut source, new, &credentials))
            }
            Err(problems) => Err(problems.iter().map(told).collect::<Vec<_>>().join("; ")),
        };
        let refused = taken.err();
        if let Some(problem) = refused.as_deref().filter(|_| refused != source.refused) {
            self.metrics.trust.certificate_loads.with_label_values(&["refused"]).inc();
            tracing::error!(problem, "certificates refused, those before stay in force");
        }
        source.refused = refused;
    }

    fn take(&self, source: &mut Source, new: Source, from: &Credentials) -> Result<(), String> {
        let valid = from.check_validity(now());
        valid.map_err(|(key, problem)| format!("key `{key}`: {problem}"))?;
        let was = self.current.load_full();
        let same = source.trusts_as(&new);
        let trust = match same {
            true => was.trust.clone(),
            false => trust(was.trust.generation() + 1, &new, &self.provider, &self.metrics)?,
        };
        let server = server_config(from, &self.provider, &trust, &self.facts, &self.tickets)?;
        for (ca, _) in &new.outside {
            if !source.outside.iter().any(|(known, _)| Arc::ptr_eq(known, ca)) {
                ca.begin(&self.live, &self.metrics);
            }
        }
        let servers = from.servers.clone();
        self.current.store(Arc::new(Tls { server, trust: trust.clone(), servers }));
        *source = new;
        let cut = match same {
            true => 0,
            false => self.live.cut_where(|client| !trust.trusts(client)),
        };
        self.metrics.trust.server_not_after.set(from.server_not_after());
        self.metrics.trust.anchor_not_after.set(trust.first_not_after());
        self.metrics.trust.certificate_loads.with_label_values(&["loaded"]).inc();
        let trust_generation = trust.generation();
        tracing::info!(trust_generation, connections_cut = cut, "certificates taken");
        Ok(())
    }

    /// Looks at the files after each `interval`, until the gateway drains.
    pub async fn watch(self: Arc<Self>, interval: Duration, mut shutdown: ShutdownWatch) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = shutdown.wait_for(|draining| *draining) => return,
            }
            let this = self.clone();
            let _ = tokio::task::spawn_blocking(move || this.look_again()).await;
        }
    }
}

fn trust(
    generation: u64,
    source: &Source,
    provider: &CryptoProvider,
    metrics: &Metrics,
) -> Result<Arc<TrustBundle>, String> {
    let ingredients = Ingredients {
        generation,
        anchors: &source.trust_anchors,
        outside: &source.outside,
        rules: source.rules.clone(),
        algorithms: provider.signature_verification_algorithms,
        verified_chains_max: source.verified_chains_max,
    };
    TrustBundle::new(ingredients, metrics).map(Arc::new)
}

fn server_config(
    credentials: &Credentials,
    provider: &Arc<CryptoProvider>,
    trust: &Arc<TrustBundle>,
    facts: &Arc<LiveFacts>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, String> {
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Verifier::new(trust.clone(), facts.clone(), algorithms);
    let mut tls = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| format!("TLS 1.3 is not available: {error}"))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(credentials.servers.clone());
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.ticketer = tickets.clone();
    tls.send_tls13_tickets = 2;
    tls.max_early_data_size = 0;
    Ok(Arc::new(tls))
}

/// Whether the client's signature over the handshake did not fit the key of its certificate.
pub fn is_not_holder(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(CertificateError::BadSignature)))
}

/// Why a handshake failed, in words, where the certificate was not the reason.
pub fn failure(error: &std::io::Error) -> (&'static str, String) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::NoCertificatesPresented) => {
            ("no_certificate", "client sent no certificate".to_owned())
        }
        Some(rustls::Error::PeerIncompatible(incompatible)) => incompatibility(incompatible),
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            ("not_tls", "client did not speak TLS".to_owned())
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            ("alert_received", format!("client refused: {alert:?}"))
        }
        Some(other) => ("protocol_error", other.to_string()),
        None => ("connection_lost", error.kind().to_string()),
    }
}

/// What the client's hello lacked. rustls tells apart whether the hello names versions at all
/// (RFC 8446 §4.2.1), and a client of TLS 1.2 only has no need to.
fn incompatibility(incompatible: &PeerIncompatible) -> (&'static str, String) {
    let known = [
        (
            PeerIncompatible::SupportedVersionsExtensionRequired,
            "tls_version",
            "client offered TLS 1.2 only",
        ),
        (PeerIncompatible::Tls12NotOffered, "tls_version", "client offered TLS 1.1 or older only"),
        (
            PeerIncompatible::Tls12NotOfferedOrEnabled,
            "tls_version",
            "client offered TLS 1.2 or older only",
        ),
        (
            PeerIncompatible::NoCipherSuitesInCommon,
            "no_common_suite",
            "client offered no cipher suite that is spoken here",
        ),
        (
            PeerIncompatible::NoKxGroupsInCommon,
            "no_common_group",
            "client offered no key exchange group that is spoken here",
        ),
    ];
    match known.iter().find(|(kind, _, _)| kind == incompatible) {
        Some((_, reason, words)) => (reason, (*words).to_owned()),
        None => ("peer_incompatible", format!("{incompatible:?}")),
    }
}
