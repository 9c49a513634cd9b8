//! The registration authority as a program: opens everything, then listens, then says it is ready.
//!
//! Three listeners: TLS 1.3 for offices, and two unix sockets for the operator and the gateways.
//! Order at start: database, audit log, intents that a crash left are abandoned, facts of before
//! names are told again, sockets, ready file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin};
use crate::audit::Trail;
use crate::config::RaConfig;
use crate::enrol::{self, Enrolment};
use crate::est;
use crate::feed::{Gateways, Publisher};
use crate::protocol::SignerClient;
use crate::serve::{self, Presence};
use crate::slots::{Slots, Tally};
use crate::store::{self, Store};

/// Why the RA can not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server certificate and key can not be used together.
    #[error("`server_certificate` and `server_key` cannot be used together")]
    Tls(#[from] rustls::Error),
    /// The audit log can not be opened.
    #[error("the audit log cannot be opened")]
    Audit(#[from] audit_log::Error),
    /// The database can not be opened.
    #[error("the database cannot be opened")]
    Store(#[from] store::Error),
    /// What a crash left could not be put in order.
    #[error("unanswered intents could not be settled")]
    Recover(#[from] enrol::Error),
    /// A socket can not be made.
    #[error(transparent)]
    Serve(#[from] serve::Error),
}

/// The TLS side of the public listener: TLS 1.3 only, no session tickets (an enrolment is one
/// request), HTTP/1.1.
///
/// # Errors
/// [`Error::Tls`].
pub fn tls_config(config: &RaConfig) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(config.server_certificate.clone(), config.server_key.clone_key())?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    Ok(Arc::new(tls))
}

/// Runs until `stop`.
///
/// # Errors
/// Every [`Error`]; nothing is left listening.
pub async fn run(config: RaConfig, stop: CancellationToken) -> Result<(), Error> {
    let tls = TlsAcceptor::from(tls_config(&config)?);
    let store = Store::open(&config.database, &config.audit.dir).await?;
    let trail = Trail::open(config.audit, "ra")?;
    let tasks = TaskTracker::new();
    let enrolment = Arc::new(Enrolment::new(
        store.clone(),
        SignerClient::new(&config.signer_socket),
        trail.clone(),
        config.rules,
        config.authority,
        tasks.clone(),
    ));
    trail.begin().await?;
    enrolment.recover().await?;
    let told = store.tell_office_names().await?;
    if told > 0 {
        tracing::info!(offices = told, "offices told again, with their names");
    }

    let public = TcpListener::bind(config.listen)
        .await
        .map_err(|source| serve::Error::Listen(config.listen, source))?;
    let address =
        public.local_addr().map_err(|source| serve::Error::Listen(config.listen, source))?;
    let admin_listener = serve::bind_unix(&config.admin_socket)?;
    let feed_listener = serve::bind_unix(&config.feed_socket)?;
    let _presence = Presence::announce(
        &config.ready_file,
        &BTreeMap::from([("public", address.to_string())]),
        &[&config.admin_socket, &config.feed_socket],
    )?;
    tracing::info!(%address, "ready");

    // However the gateway's clock differs, its lease has ended by then.
    let lease = config.lease + Duration::from_millis(policies::feed::CLOCK_AHEAD_MS_MAX);
    let gateways = Arc::new(Gateways::new(&config.gateways, lease));
    let publisher =
        Arc::new(Publisher::new(store.clone(), config.feed_signer, Arc::clone(&gateways)));
    let est = est::router(Arc::clone(&enrolment), &config.ca_chain);
    let admin = Admin {
        store: store.clone(),
        enrolment,
        gateways,
        trail: trail.clone(),
        wait: config.wait,
        tasks: tasks.clone(),
    };
    let admin_limit = config.wait + ADMIN_TIME_MAX;
    tokio::join!(
        serve_public(public, tls, est, trail.clone(), stop.clone()),
        serve_admin(admin_listener, admin::router(Arc::new(admin)), admin_limit, stop.clone()),
        publisher.serve(feed_listener, stop.clone()),
    );
    // What has begun is finished, also for clients that are gone.
    tasks.close();
    tasks.wait().await;
    store.close().await;
    trail.close().await;
    Ok(())
}

async fn serve_public(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    trail: Trail,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let slots = Slots::new(CLIENTS_MAX, CLIENTS_OF_ONE_ADDRESS_MAX);
    let refused = Tally::each_minute("connections refused because there were too many");
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(slot) = slots.take(peer.ip()) else {
            tracing::debug!(%peer, "connection refused: too many");
            refused.add(None);
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
        let trail = trail.clone();
        tasks.spawn(async move {
            match handshake(stream, &tls).await {
                Ok(stream) => {
                    let router = router.layer(Extension(peer));
                    serve::http(stream, router, stop, CONNECTION_TIME_MAX).await;
                }
                Err(error) => {
                    tracing::debug!(%peer, %error, "handshake failed");
                    trail.handshake_failed(peer, &error);
                }
            }
            drop(slot);
        });
    }
    tasks.close();
    tasks.wait().await;
}

/// Waits for a first byte, then makes the handshake: who sends nothing costs little, and not long.
async fn handshake(
    stream: TcpStream,
    tls: &TlsAcceptor,
) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    if tokio::time::timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut [0])).await?? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await?
}

async fn serve_admin(
    listener: UnixListener,
    router: Router,
    limit: Duration,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let clients = Arc::new(Semaphore::new(ADMIN_CLIENTS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else { continue };
        if !serve::is_same_user(&stream) {
            tracing::warn!("admin connection of another user refused");
            continue;
        }
        let (router, stop) = (router.clone(), stop.clone());
        tasks.spawn(async move {
            serve::http(stream, router, stop, limit).await;
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
}

const CLIENTS_MAX: usize = 256;
const CLIENTS_OF_ONE_ADDRESS_MAX: usize = 32;
const ADMIN_CLIENTS_MAX: usize = 32;
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(2);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
const ADMIN_TIME_MAX: Duration = Duration::from_secs(30);
