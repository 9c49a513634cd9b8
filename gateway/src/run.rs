//! Start and end of the gateway: policy before facts, facts before listening, drain before exit.

use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use audit_log::{AuditLog, Options};
use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v2::server::default_h2_options;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, ProxyHttp, http_proxy};
use policies::feed::Source;
use policies::operations::Operations;
use policies::problem::Problem;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::admin::{self, Admin};
use crate::audit::Recorder;
use crate::audit_stream::{self, AuditStream};
use crate::config::{Audit, Config, Limits};
use crate::control::{self, Control};
use crate::downstream::LiveConnections;
use crate::entrances::{ClientSockets, Entrances, Shared};
use crate::facts_feed::{FeedTask, Feeds, LiveFacts};
use crate::metrics::Metrics;
use crate::policy::LivePolicy;
use crate::reload::{self, Reloader};
use crate::session::StaffTokens;
use crate::staleness::{self, Stages};
use crate::takeover::{self, PrivateSocket};
use crate::tls::LiveTls;
use crate::upstream::{Hub, TRIES_MAX};

/// Segments of the audit log are closed at this size.
const AUDIT_SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How a gateway begins and ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// The end of standard input (the supervisor's pipe) is a word to stop, too.
    pub supervised: bool,
    /// Another gateway runs, and gives its place to this one.
    pub takes_over: bool,
}

/// Where a gateway listens.
pub struct Sockets {
    public: Arc<TcpListener>,
    admin: TcpListener,
    closed: Option<Arc<TcpListener>>,
}

/// Where the audit log comes from.
enum Log {
    /// It is open already.
    Open(AuditLog),
    /// From the gateway that runs now, when this one is ready.
    OfPredecessor,
}

/// How a gateway came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was told to stop.
    Stopped,
    /// Another gateway serves in its place.
    Replaced,
}

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// What kept it from starting.
pub async fn run(config: Config, inherited: Vec<StdTcpListener>, manner: Manner) -> Result<()> {
    let sockets = Sockets::of(&config, inherited, manner.takes_over).await?;
    let log =
        if manner.takes_over { Log::OfPredecessor } else { Log::Open(open_log(&config.audit)?) };
    serve(config, log, sockets, end(manner.supervised)).await
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
    let sockets = Sockets::of(&config, Vec::new(), false).await?;
    serve(config, Log::Open(log), sockets, ended).await
}

impl Sockets {
    /// The inherited sockets (public, admin, and of the closed network if there is one), or new
    /// ones where the configuration says.
    async fn of(config: &Config, inherited: Vec<StdTcpListener>, takes_over: bool) -> Result<Self> {
        let closed = config.closed_network.as_ref().map(|closed| closed.listen);
        let wanted: Vec<(&str, SocketAddr)> = [("listen", config.listen)]
            .into_iter()
            .chain([("admin_listen", config.admin_listen)])
            .chain(closed.map(|address| ("closed_network.listen", address)))
            .collect();
        let mut sockets = Vec::new();
        if inherited.is_empty() && !takes_over {
            for (key, address) in wanted {
                sockets.push(bind(key, address).await?);
            }
        } else {
            anyhow::ensure!(
                inherited.len() == wanted.len(),
                "{} inherited sockets where {} are needed (public, admin, closed network if there \
                 is one): take-over works under whoever holds the sockets of both gateways \
                 (LISTEN_FDS); a listener that is added or taken away needs a restart",
                inherited.len(),
                wanted.len()
            );
            for ((key, address), socket) in wanted.into_iter().zip(inherited) {
                sockets.push(listening(key, address, socket)?);
            }
        }
        let mut sockets = sockets.into_iter();
        let (Some(public), Some(admin)) = (sockets.next(), sockets.next()) else {
            anyhow::bail!("no sockets")
        };
        Ok(Self { public: Arc::new(public), admin, closed: sockets.next().map(Arc::new) })
    }

    fn addresses(&self) -> std::io::Result<Addresses> {
        let closed = self.closed.as_ref().map(|socket| socket.local_addr()).transpose()?;
        Ok(Addresses { public: self.public.local_addr()?, admin: self.admin.local_addr()?, closed })
    }
}

/// Where a gateway listens, as it tells.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// On the internet.
    pub public: SocketAddr,
    /// For metrics and readiness.
    pub admin: SocketAddr,
    /// On the closed network.
    pub closed: Option<SocketAddr>,
}

/// An inherited socket, which must be the one that the configuration means.
fn listening(key: &str, wanted: SocketAddr, inherited: StdTcpListener) -> Result<TcpListener> {
    let address = inherited.local_addr().context("inherited socket")?;
    anyhow::ensure!(
        wanted.port() == 0 || wanted == address,
        "key `{key}` says {wanted}, and the socket that was given listens on {address}: stop the \
         box and start it again"
    );
    inherited.set_nonblocking(true).context("inherited socket")?;
    TcpListener::from_std(inherited).context("inherited socket")
}

async fn serve(
    config: Config,
    log: Log,
    sockets: Sockets,
    ended: impl Future<Output = ()>,
) -> Result<()> {
    let parts = Parts::new(&config)?;
    let facts = parts.facts.clone();
    let mut ended = std::pin::pin!(ended);
    let takes_over = matches!(log, Log::OfPredecessor);
    let feeds = spawn_feeds(&config, &facts, &parts.live, !takes_over);
    let log = match log {
        Log::Open(log) => log,
        // It goes on serving until this one could.
        Log::OfPredecessor => tokio::select! {
            log = predecessors_log(&config, &facts) => log?,
            () = &mut ended => return Ok(()),
        },
    };
    let recorder = recorder(&config.audit, log, &parts.policy, &parts.metrics)?;
    let mut records = Records::new(&config.audit, &recorder, &facts);
    records.start()?;
    let successors = config.takeover_socket.as_deref().map(PrivateSocket::bind).transpose();
    let successors = successors.context("key `takeover_socket`")?;
    let addresses = sockets.addresses()?;
    let (stop, shutdown) = watch::channel(false);
    let (drain_asked, controlled) = (Arc::new(Notify::new()), config.control_socket.clone());
    let (reload_asked, reloads) = reload::queue();
    let control = parts.control(&drain_asked, reload_asked, &shutdown);
    let admin = parts.admin(&recorder, &shutdown);
    let admin_task = tokio::spawn(admin::serve(sockets.admin, admin));
    parts.watch(config.certificate_check_interval, &shutdown);
    tokio::select! {
        () = first_facts(&facts) => {}
        () = &mut ended => return Ok(()),
    }
    let ready_file = config.ready_file.clone();
    let clients = ClientSockets { open: sockets.public, closed: sockets.closed };
    let entrances = parts.entrances(&config, &recorder, &shutdown, clients)?;
    let reloader = Reloader::new(&config, addresses, &parts);
    if takes_over {
        feeds.take_copies();
    }
    recorder.started();
    write_ready_file(&ready_file, &addresses)?;
    tracing::info!(?addresses, takes_over, "ready");
    if let Some(path) = controlled {
        let socket = PrivateSocket::bind(&path).context("key `control_socket`")?;
        tokio::spawn(control::serve(socket, control));
    }
    let recording = recorder.clone();
    let mut place = Place { entrances, reloader, reloads, recorder: recording, records, feeds };
    let end = {
        let told = std::pin::pin!(async {
            tokio::select! {
                () = ended => {}
                () = drain_asked.notified() => {}
            }
        });
        place.hold(successors, told).await
    };
    tracing::info!(replaced = end == End::Replaced, "draining");
    if end == End::Stopped {
        // A ready file that is gone already is as good.
        let _ = std::fs::remove_file(&ready_file);
    }
    let _ = stop.send(true);
    place.entrances.drain(end == End::Replaced).await;
    let _ = admin_task.await;
    match end {
        End::Stopped => recorder.stopped(),
        End::Replaced => recorder.ended(),
    }
    Ok(())
}

/// What stands before there are facts and a log.
pub struct Parts {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The facts in memory.
    pub facts: Arc<LiveFacts>,
    /// stages
    pub stages: Stages,
    /// Open connections.
    pub live: Arc<LiveConnections>,
    /// TLS as it is now.
    pub tls: Arc<LiveTls>,
    /// The policy as it is now.
    pub policy: Arc<LivePolicy>,
}

impl Parts {
    fn new(config: &Config) -> Result<Self> {
        let metrics = Arc::new(Metrics::new()?);
        let facts = Arc::new(LiveFacts::with_leases(config.stages.leases));
        let live = LiveConnections::new(metrics.clone());
        let tls = LiveTls::start(config, facts.clone(), live.clone(), metrics.clone());
        let tls = tls.map_err(anyhow::Error::msg)?;
        let policy = LivePolicy::start(config.policy.clone(), facts.clone(), metrics.clone());
        let policy = Arc::new(policy.map_err(|problems| refused_policy(&problems))?);
        Ok(Self { metrics, facts, stages: config.stages, live, tls, policy })
    }

    /// What goes on beside the requests.
    fn watch(&self, certificates: Duration, shutdown: &watch::Receiver<bool>) {
        tokio::spawn(reload_on_hangup(self.policy.clone(), self.tls.clone()));
        tokio::spawn(self.tls.clone().watch(certificates, shutdown.clone()));
        let (facts, metrics) = (self.facts.clone(), self.metrics.clone());
        tokio::spawn(staleness::watch(self.stages, facts, metrics, shutdown.clone()));
    }

    fn admin(&self, recorder: &Arc<Recorder>, shutdown: &watch::Receiver<bool>) -> Arc<Admin> {
        Arc::new(Admin {
            facts: self.facts.clone(),
            recorder: recorder.clone(),
            policy: self.policy.clone(),
            stages: self.stages,
            metrics: self.metrics.clone(),
            shutdown: shutdown.clone(),
        })
    }

    fn control(
        &self,
        drain: &Arc<Notify>,
        reload: mpsc::Sender<reload::Asked>,
        shutdown: &watch::Receiver<bool>,
    ) -> Arc<Control> {
        Arc::new(Control {
            reload,
            live: self.live.clone(),
            facts: self.facts.clone(),
            metrics: self.metrics.clone(),
            drain: drain.clone(),
            shutdown: shutdown.clone(),
        })
    }

    /// The listeners, behind which everything else is one.
    fn entrances(
        &self,
        config: &Config,
        recorder: &Arc<Recorder>,
        shutdown: &watch::Receiver<bool>,
        sockets: ClientSockets,
    ) -> Result<Entrances> {
        let operations = Operations::builtin().context("operations table")?;
        let hub = Hub::new(&config.hub, &self.metrics).map_err(anyhow::Error::from)?;
        let (policy, facts) = (self.policy.clone(), self.facts.clone());
        let tokens = StaffTokens::new(&self.metrics);
        let access = Access::new(policy, operations, facts, tokens, config.permit_key.clone());
        let shared = Shared {
            tls: self.tls.clone(),
            facts: self.facts.clone(),
            live: self.live.clone(),
            recorder: recorder.clone(),
            metrics: self.metrics.clone(),
            access: Arc::new(access),
            hub: Arc::new(hub),
            shutdown: shutdown.clone(),
        };
        Ok(Entrances::new(shared, config, sockets))
    }
}

/// What only one gateway has at a time, and what goes with it.
struct Place {
    entrances: Entrances,
    reloader: Reloader,
    reloads: mpsc::Receiver<reload::Asked>,
    recorder: Arc<Recorder>,
    records: Records,
    feeds: Feeds,
}

impl Place {
    /// Serves until told to stop, or until a successor has taken the place.
    async fn hold(
        &mut self,
        successors: Option<PrivateSocket>,
        mut ended: Pin<&mut impl Future<Output = ()>>,
    ) -> End {
        loop {
            let mut accepting = self.entrances.accept();
            let successor = tokio::select! {
                () = &mut ended => None,
                successor = next_successor(successors.as_ref()) => Some(successor),
                Some(asked) = self.reloads.recv() => {
                    self.reload(asked).await;
                    accepting.shutdown().await;
                    continue;
                }
            };
            // Connections from now on wait in the socket's queue, for whoever serves next.
            accepting.shutdown().await;
            self.records.stop().await;
            let Some(successor) = successor else { return End::Stopped };
            tracing::info!("a successor is ready: handing over");
            self.feeds.release_copies();
            match self.recorder.hand_over(successor).await {
                Ok(()) => return End::Replaced,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "the successor did not take over: serving on");
                }
            }
            self.feeds.take_copies();
            if let Err(error) = self.records.start() {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "audit stream: the hub gets no records");
            }
        }
    }
}

impl Place {
    /// Whoever asked may be gone; the configuration is taken all the same.
    async fn reload(&mut self, asked: reload::Asked) {
        let reloaded = self.reloader.reload().await.map(|taken| {
            self.entrances.relimit(&taken.config, taken.hub);
            taken.reloaded
        });
        let _ = asked.send(reloaded.inspect_err(|problems| {
            problems.iter().for_each(|it| tracing::error!(problem = it, "reload refused"));
        }));
    }
}

async fn next_successor(socket: Option<&PrivateSocket>) -> StdUnixStream {
    match socket {
        Some(socket) => takeover::asked(socket).await,
        None => std::future::pending().await,
    }
}

/// The audit log's records as they are offered to the hub.
struct Records {
    socket: PathBuf,
    dir: PathBuf,
    origin: String,
    committed: watch::Receiver<u64>,
    facts: Arc<LiveFacts>,
    running: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Records {
    fn new(audit: &Audit, recorder: &Recorder, facts: &Arc<LiveFacts>) -> Self {
        Self {
            socket: audit.stream_socket.clone(),
            dir: audit.dir.clone(),
            origin: audit.key.verifying_key().name().to_owned(),
            committed: recorder.committed(),
            facts: facts.clone(),
            running: None,
        }
    }

    fn start(&mut self) -> Result<(), audit_stream::Error> {
        let socket = audit_stream::Socket::bind(&self.socket)?;
        let (stop, shutdown) = watch::channel(false);
        let stream = AuditStream {
            origin: self.origin.clone(),
            dir: self.dir.clone(),
            committed: self.committed.clone(),
            facts: self.facts.clone(),
            shutdown,
        };
        self.running = Some((stop, tokio::spawn(Arc::new(stream).run(socket))));
        Ok(())
    }

    async fn stop(&mut self) {
        if let Some((stop, running)) = self.running.take() {
            let _ = stop.send(true);
            let _ = running.await;
        }
    }
}

/// The audit log of the gateway that serves now, which then serves no longer.
async fn predecessors_log(config: &Config, facts: &LiveFacts) -> Result<AuditLog> {
    first_facts(facts).await;
    let socket = config.takeover_socket.as_deref().context("key `takeover_socket` is missing")?;
    let asked = takeover::ask(socket).await;
    let predecessor =
        asked.with_context(|| format!("no gateway gives its place on `{}`", socket.display()))?;
    let (dir, options) = (config.audit.dir.clone(), log_options(&config.audit));
    let taken =
        tokio::task::spawn_blocking(move || AuditLog::take_over(&dir, options, predecessor));
    taken.await?.with_context(|| format!("audit log `{}`", config.audit.dir.display()))
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

/// Reads the policy folders and the certificates again at every SIGHUP.
async fn reload_on_hangup(policy: Arc<LivePolicy>, tls: Arc<LiveTls>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        let (policy, tls) = (policy.clone(), tls.clone());
        let _ = tokio::task::spawn_blocking(move || {
            tls.look_again();
            policy.reload()
        })
        .await;
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} (key `{key}`): free the port or choose another address")
    })
}

/// Follows both feeds until what is returned is dropped. Without `reads_copies` the facts on disk
/// are another gateway's.
#[must_use]
pub fn spawn_feeds(
    config: &Config,
    facts: &Arc<LiveFacts>,
    live: &Arc<LiveConnections>,
    reads_copies: bool,
) -> Feeds {
    let feeds = [(Source::Ca, &config.feed_ca), (Source::Hub, &config.feed_hub)];
    let tasks = feeds.map(|(source, feed)| FeedTask {
        source,
        feed: feed.clone(),
        copy: config.facts_copy.clone(),
        gateway_id: config.id.clone(),
        facts: facts.clone(),
        live: live.clone(),
    });
    Feeds::follow(tasks.into(), reads_copies)
}

/// Until there are facts of both feeds, kept on disk or delivered, there is nothing to decide from.
pub async fn first_facts(facts: &LiveFacts) {
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
        max_retries: TRIES_MAX,
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(conf), service);
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(limits.h2_idle_timeout);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(limits.h2_streams_max);
    h2.max_header_list_size(u32::try_from(limits.request_header_bytes_max).unwrap_or(u32::MAX));
    h2.max_pending_accept_reset_streams(limits.h2_pending_resets_max);
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

/// Tells where the gateway listens, atomically.
///
/// # Errors
/// If the file can not be written.
pub fn write_ready_file(path: &Path, addresses: &Addresses) -> Result<()> {
    let body = serde_json::json!({
        "pid": std::process::id(),
        "addresses": {
            "public": addresses.public.to_string(),
            "admin": addresses.admin.to_string(),
            "closed": addresses.closed.map(|address| address.to_string()),
        },
    });
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, format!("{body}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write ready file `{}`", path.display()))
}
