//! The TLS settings of the public listener: our own rustls `ServerConfig`.
//!
//! pingora's `TlsSettings` fixes TLS 1.2, the session store and a 60 s handshake, so the gateway
//! accepts TLS itself and hands pingora a finished stream (docs/decisions/002).
//!
//! Invariants:
//! - TLS 1.3 only (RFC 8446), no early data, client certificate required;
//! - session ticket keys live in this process's memory only: a rustls ticket carries the client's
//!   chain, so its key could forge any office;
//! - X25519MLKEM768 is preferred, X25519 and P-256 follow.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;

use crate::client_cert::{LeafRules, Verifier};
use crate::config::Config;
use crate::facts_feed::LiveFacts;

/// The provider of the public listener: aws-lc-rs with the groups and suites named here.
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

/// Builds the listener's TLS configuration.
///
/// # Errors
/// One line for the operator: which file does not fit, and why.
pub fn server_config(config: &Config, facts: Arc<LiveFacts>) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(provider());
    let rules = LeafRules::new(&config.id_domain, &config.policy_arc)?;
    let verifier = Verifier::new(&config.trust_anchors, provider.clone(), rules, facts)?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| format!("TLS 1.3 is not available: {error}"))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(config.server.chain.clone(), config.server.key.clone_key())
        .map_err(|error| {
            format!("`server_certificate` and `server_key` do not fit together: {error}")
        })?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.ticketer =
        aws_lc_rs::Ticketer::new().map_err(|error| format!("session ticket keys: {error}"))?;
    tls.send_tls13_tickets = 2;
    tls.max_early_data_size = 0;
    Ok(Arc::new(tls))
}

/// Why a handshake failed, in words, where the certificate was not the reason.
pub fn failure(error: &std::io::Error) -> (&'static str, String) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::NoCertificatesPresented) => {
            ("no_certificate", "client sent no certificate".to_owned())
        }
        Some(rustls::Error::PeerIncompatible(incompatible)) => {
            let words = format!("{incompatible:?}");
            if words.contains("SupportedVersions")
                || words.contains("Tls12")
                || words.contains("Tls13")
            {
                ("tls_version", "client offered TLS 1.2 or older only".to_owned())
            } else {
                ("peer_incompatible", words)
            }
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            ("alert_received", format!("client refused: {alert:?}"))
        }
        Some(other) => ("protocol_error", other.to_string()),
        None => ("connection_lost", error.kind().to_string()),
    }
}
