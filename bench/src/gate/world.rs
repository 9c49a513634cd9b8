//! The small world that handshakes are counted in: certificates made now, a configuration that
//! names them, and facts that came by the feed, as the gateway has them.

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use audit_log::CheckpointKey;
use gateway::config::Config;
use gateway::downstream::LiveConnections;
use gateway::facts_feed::{FeedTask, LiveFacts, now_ms};
use gateway::metrics::Metrics;
use policies::feed::{Fact, Parts, Position, Signer, Source};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Everything on disk; goes with the value.
pub(super) struct World {
    dir: tempfile::TempDir,
    root: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    signer: Signer,
}

impl World {
    /// Root, intermediate, server and terminal, all P-256, and the gateway's files.
    pub(super) fn make() -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        let (root_params, root_key) = authority("Bench root")?;
        let root = root_params.self_signed(&root_key)?;
        let (params, key) = authority("Bench issuing CA")?;
        let intermediate = params.signed_by(&key, &Issuer::new(root_params, root_key))?;
        let issuer = Issuer::new(params, key);
        let uri = format!("https://{ID_DOMAIN}/office/1370000001/terminal/front-1");
        let client = (SanType::URI(uri.try_into()?), ExtendedKeyUsagePurpose::ClientAuth);
        let server =
            (SanType::DnsName("localhost".try_into()?), ExtendedKeyUsagePurpose::ServerAuth);
        let (server, server_key) = leaf(&issuer, server)?;
        let (terminal, key) = leaf(&issuer, client)?;

        let file = |name: &str, bytes: &[u8]| write(&dir.path().join(name), bytes);
        file("root.pem", root.pem().as_bytes())?;
        file("server.pem", format!("{}{}", server.pem(), intermediate.pem()).as_bytes())?;
        file("server.key", server_key.serialize_pem().as_bytes())?;
        file("permit.key", &[7; 32])?;
        file("pseudonym.key", &[8; 32])?;
        let (_, audit_key) = CheckpointKey::generate("bench.example/audit/gateway")?;
        file("audit.key", audit_key.as_bytes())?;
        let signer = Signer::from_pkcs8(Source::Ca, &Signer::generate_pkcs8()?)?;
        file("gateway.toml", configuration(dir.path(), &signer.public_key()).as_bytes())?;
        let chain = vec![terminal.der().clone(), intermediate.der().clone()];
        Ok(Self { root: root.der().clone(), chain, key, signer, dir })
    }

    /// The gateway's configuration.
    pub(super) fn config(&self) -> Result<Config> {
        Config::load(&self.dir.path().join("gateway.toml"))
            .map_err(|problems| anyhow::anyhow!(problems.0.join("; ")))
    }

    /// The terminal's TLS settings, as its browser would have them: ML-KEM preferred.
    pub(super) fn client(&self, resumption: Resumption) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let key = PrivateKeyDer::from_pem_slice(self.key.serialize_pem().as_bytes())?;
        let mut client = ClientConfig::builder_with_provider(Arc::new(gateway::tls::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain.clone(), key)?;
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        client.resumption = resumption;
        Ok(Arc::new(client))
    }

    /// Facts as the gateway gets them: one signed snapshot of the cert-authority's feed, with
    /// revoked certificates in it, none of them the terminal's.
    pub(super) fn facts(&self, config: &Config) -> Result<Arc<LiveFacts>> {
        let facts = Arc::new(LiveFacts::default());
        let task = FeedTask {
            source: Source::Ca,
            feed: config.feed_ca.clone(),
            copy: None,
            gateway_id: config.id.clone(),
            facts: Arc::clone(&facts),
            live: LiveConnections::new(Arc::new(Metrics::new()?)),
        };
        let revoked = (1..=REVOKED).map(|serial| -> Result<Fact> {
            Ok(Fact::Revoked { serial: format!("{serial:016x}").parse()?, at: 1 })
        });
        let revoked: Vec<Fact> = revoked.collect::<Result<_>>()?;
        let lines = Parts::all(&self.signer, Position::genesis(), now_ms(), &revoked)?.join("\n");
        let listener = UnixListener::bind(&config.feed_ca.socket)?;
        let publisher = std::thread::spawn(move || publish(&listener, &lines));
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let following = tokio::spawn(task.run());
            let came = tokio::time::timeout(SNAPSHOT_WITHIN, snapshot_in(&facts)).await;
            following.abort();
            came
        })?;
        publisher.join().map_err(|_| anyhow::anyhow!("the feed's publisher panicked"))??;
        Ok(facts)
    }
}

async fn snapshot_in(facts: &LiveFacts) {
    while facts.generation() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends the lines and waits until the other end has taken it.
fn publish(listener: &UnixListener, lines: &str) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.write_all(lines.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut rest = Vec::new();
    BufReader::new(stream).take(ACKS_BYTES_MAX).read_to_end(&mut rest)?;
    Ok(())
}

fn authority(name: &str) -> Result<(CertificateParams, KeyPair)> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok((params, KeyPair::generate()?))
}

fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    (name, usage): (SanType, ExtendedKeyUsagePurpose),
) -> Result<(rcgen::Certificate, KeyPair)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![name];
    params.extended_key_usages = vec![usage];
    // certificatePolicies (2.5.29.32) with the one policy 2.999.1.1.1.
    let policies = vec![0x30, 0x09, 0x30, 0x07, 0x06, 0x05, 0x88, 0x37, 0x01, 0x01, 0x01];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 32], policies)];
    Ok((params.signed_by(&key, issuer)?, key))
}

/// Nothing is listened on: TLS settings, rules and the feed's key are read from it.
fn configuration(dir: &Path, feed_key: &str) -> String {
    let dir = dir.display();
    format!(
        r#"
        id = "gate"
        id_domain = "{ID_DOMAIN}"
        listen = "127.0.0.1:0"
        admin_listen = "127.0.0.1:0"
        server_certificate = "{dir}/server.pem"
        server_key = "{dir}/server.key"
        trust_anchors = "{dir}/root.pem"
        hub_socket = "{dir}/hub.sock"
        permit_key = "{dir}/permit.key"
        ready_file = "{dir}/ready.json"
        [audit]
        dir = "{dir}/audit"
        pseudonym_key = "{dir}/pseudonym.key"
        key = "{dir}/audit.key"
        stream_socket = "{dir}/stream.sock"
        [feeds.ca]
        socket = "{dir}/ca.sock"
        public_key = "{feed_key}"
        [feeds.hub]
        socket = "{dir}/hub-feed.sock"
        public_key = "{feed_key}"
        "#
    )
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write `{}`", path.display()))
}

const ID_DOMAIN: &str = "id.sekisho.example";
const REVOKED: u64 = 1_000;
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(60);
const ACKS_BYTES_MAX: u64 = 64 * 1024;
