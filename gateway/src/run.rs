//! Start and end of the gateway: policy before facts, facts before listening, drain before exit.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use audit_log::{AuditLog, Options};
use pingora_core::apps::{HttpServerApp, HttpServerOptions};
use pingora_core::protocols::http::v2::server::default_h2_options;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, ProxyHttp, http_proxy};
use policies::feed::Source;
use policies::operations::Operations;
use policies::problem::Problem;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::admin::{self, Admin};
use crate::audit::Recorder;
use crate::audit_stream::{self, AuditStream};
use crate::client_cert::LeafRules;
use crate::config::{Audit, Config, Limits};
use crate::downstream::LiveConnections;
use crate::facts_feed::{FeedTask, LiveFacts};
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::policy::LivePolicy;
use crate::proxy::Gateway;
use crate::upstream::Hub;

/// Segments of the audit log are closed at this size.
const AUDIT_SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Runs the gateway until it is told to stop. With `supervised`, the end of standard input (the
/// supervisor's pipe) is such a word too.
///
/// # Errors
/// What kept it from starting.
pub async fn run(config: Config, supervised: bool) -> Result<()> {
    let log = open_log(&config.audit)?;
    run_until(config, log, end(supervised)).await
}

/// Runs the gateway on a log that is open already, until `ended`; then drains, and closes the log.
///
/// # Errors
/// What kept it from starting.
pub async fn run_until(
    config: Config,
    log: AuditLog,
    ended: impl Future<Output = ()>,
) -> Result<()> {
    let metrics = Arc::new(Metrics::new()?);
    let facts = Arc::new(LiveFacts::default());
    let live = LiveConnections::new(metrics.clone());
    let tls = crate::tls::server_config(&config, facts.clone()).map_err(anyhow::Error::msg)?;
    let policy = LivePolicy::start(config.policy.clone(), facts.clone(), metrics.clone());
    let policy = Arc::new(policy.map_err(|problems| refused_policy(&problems))?);
    let operations = Operations::builtin().context("operations table")?;
    let recorder = recorder(&config.audit, log, &policy, &metrics)?;
    let stream_socket = audit_stream::Socket::bind(&config.audit.stream_socket)?;
    let socket = bind("listen", config.listen).await?;
    let admin_socket = bind("admin_listen", config.admin_listen).await?;
    let addresses = (socket.local_addr()?, admin_socket.local_addr()?);
    let (stop, shutdown) = watch::channel(false);
    let admin = Arc::new(Admin {
        facts: facts.clone(),
        recorder: recorder.clone(),
        policy: policy.clone(),
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    });
    let admin_task = tokio::spawn(admin::serve(admin_socket, admin));
    spawn_feeds(&config, &facts, &live);
    tokio::spawn(reload_on_hangup(policy.clone()));
    let mut ended = std::pin::pin!(ended);
    tokio::select! {
        () = first_snapshots(&facts) => {}
        () = &mut ended => return Ok(()),
    }
    let access = Access::new(policy, operations, facts.clone(), config.permit_key);
    let hub = Hub::new(&config.hub_socket);
    let gateway =
        Gateway::new(access, recorder.clone(), hub, config.limits.clone(), metrics.clone());
    let proxy = Arc::new(proxy(gateway, &config.limits));
    let stream = AuditStream {
        origin: config.audit.key.verifying_key().name().to_owned(),
        dir: config.audit.dir,
        committed: recorder.committed(),
        facts: facts.clone(),
        shutdown: shutdown.clone(),
    };
    let streaming = tokio::spawn(Arc::new(stream).run(stream_socket));
    let tasks = TaskTracker::new();
    let listener = Arc::new(Listener {
        acceptor: TlsAcceptor::from(tls),
        rules: LeafRules::new(&config.id_domain, &config.policy_arc).map_err(anyhow::Error::msg)?,
        facts,
        live: live.clone(),
        recorder: recorder.clone(),
        metrics,
        proxy: proxy.clone(),
        limits: config.limits.clone(),
        shutdown,
        tasks: tasks.clone(),
    });
    let accepting = tokio::spawn(listener.run(socket));
    recorder.started();
    write_ready_file(&config.ready_file, addresses)?;
    tracing::info!(public = %addresses.0, admin = %addresses.1, "ready");
    ended.await;
    tracing::info!("draining");
    // A ready file that is gone already is as good.
    let _ = std::fs::remove_file(&config.ready_file);
    let _ = stop.send(true);
    drain(&proxy, &live, tasks, config.limits.drain_timeout).await;
    let _ = tokio::join!(accepting, admin_task, streaming);
    recorder.stopped();
    Ok(())
}

fn recorder(
    audit: &Audit,
    log: AuditLog,
    policy: &Arc<LivePolicy>,
    metrics: &Metrics,
) -> Result<Arc<Recorder>> {
    metrics.include(log.metrics()).context("metrics of the audit log")?;
    Ok(Arc::new(Recorder::new(log, &audit.pseudonym_key, policy.clone())))
}

/// How the configuration wants the log to be kept.
pub fn log_options(audit: &Audit) -> Options {
    Options {
        durability: audit.durability,
        segment_bytes_max: AUDIT_SEGMENT_BYTES_MAX,
        retention: audit.retention,
        refusals_per_minute_max: audit.refusals_per_minute_max,
        ..Options::new("gateway", audit.key.clone())
    }
}

fn open_log(audit: &Audit) -> Result<AuditLog> {
    AuditLog::open(&audit.dir, log_options(audit))
        .with_context(|| format!("audit log `{}`", audit.dir.display()))
}

fn refused_policy(problems: &[Problem]) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("policy refused: {}", lines.join("; "))
}

/// Reads the policy folders again at every SIGHUP.
async fn reload_on_hangup(policy: Arc<LivePolicy>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        let policy = policy.clone();
        let _ = tokio::task::spawn_blocking(move || policy.reload()).await;
    }
}

async fn bind(key: &str, address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} (key `{key}`): free the port or choose another address")
    })
}

/// Follows both feeds for as long as the runtime lives.
pub fn spawn_feeds(config: &Config, facts: &Arc<LiveFacts>, live: &Arc<LiveConnections>) {
    for (source, feed) in [(Source::Ca, &config.feed_ca), (Source::Hub, &config.feed_hub)] {
        let task = FeedTask {
            source,
            feed: feed.clone(),
            gateway_id: config.id.clone(),
            facts: facts.clone(),
            live: live.clone(),
        };
        tokio::spawn(task.run());
    }
}

/// Until both feeds have delivered a snapshot there is nothing to decide from.
pub async fn first_snapshots(facts: &LiveFacts) {
    loop {
        let state = facts.feed_state();
        if state.ca_age_ms.is_some() && state.hub_age_ms.is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The pingora proxy around `service`, with our limits in place of pingora's defaults.
pub fn proxy<P: ProxyHttp>(service: P, limits: &Limits) -> HttpProxy<P> {
    let conf = ServerConf {
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        upstream_keepalive_pool_size: 256,
        max_retries: 2,
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(conf), service);
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(limits.h2_idle_timeout);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(limits.h2_streams_max);
    h2.max_header_list_size(u32::try_from(limits.request_header_bytes_max).unwrap_or(u32::MAX));
    proxy.h2_options = Some(h2);
    proxy
}

/// Returns when the operator, the supervisor or the terminal says so.
async fn end(supervised: bool) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = supervisor_gone(supervised) => tracing::warn!("the supervisor is gone"),
    }
}

async fn supervisor_gone(supervised: bool) {
    if !supervised {
        std::future::pending::<()>().await;
    }
    let mut stdin = tokio::io::stdin();
    let mut byte = [0];
    while stdin.read(&mut byte).await.is_ok_and(|read| read > 0) {}
}

/// Lets requests in flight end, then cuts what is left.
async fn drain(
    proxy: &Arc<HttpProxy<Gateway>>,
    live: &LiveConnections,
    tasks: TaskTracker,
    limit: Duration,
) {
    proxy.http_cleanup().await;
    tasks.close();
    if tokio::time::timeout(limit, tasks.wait()).await.is_err() {
        let cut = live.cut_where(|_| true);
        tracing::warn!(connections = cut, "drain deadline passed, connections cut");
        let _ = tokio::time::timeout(Duration::from_millis(500), tasks.wait()).await;
    }
}

/// Tells where the gateway listens, atomically.
///
/// # Errors
/// If the file can not be written.
pub fn write_ready_file(
    path: &Path,
    (public, admin): (std::net::SocketAddr, std::net::SocketAddr),
) -> Result<()> {
    let body = serde_json::json!({
        "pid": std::process::id(),
        "addresses": { "public": public.to_string(), "admin": admin.to_string() },
    });
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, format!("{body}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write ready file `{}`", path.display()))
}
