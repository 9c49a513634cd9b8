//! The gateway's own modules put together in stages, to tell what each layer costs:
//!
//! - `transport`: TLS, client certificate, framing, identity headers, hub; no policy, no audit;
//! - `policy`: the same with staff token, facts and decision; no audit.
//!
//! There is no switch in `sekisho-gateway` that turns a layer off, and this assembly is no gateway:
//! it listens on loopback only, and it is not shipped.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use audit_log::AuditLog;
use clap::{Args, ValueEnum};
use gateway::access::{Access, Asked, Permit};
use gateway::admission::Admission;
use gateway::audit::Recorder;
use gateway::config::{Config, HubNode, Limits};
use gateway::downstream::{Connection, LiveConnections, connection_of};
use gateway::facts_feed::LiveFacts;
use gateway::hub_request;
use gateway::listener::Listener;
use gateway::metrics::Metrics;
use gateway::policy::LivePolicy;
use gateway::session::StaffTokens;
use gateway::tls::LiveTls;
use gateway::upstream::{Attempt, Hub};
use gateway::{framing, run};
use http::Method;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{ProxyHttp, Session};
use policies::operations::Operations;
use policies::overlay::NetworkKind;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::lab::fixture;

/// Arguments of `stages`.
#[derive(Debug, Args)]
pub(crate) struct StagesArgs {
    /// Up to which layer
    #[arg(long, value_enum)]
    stage: Layer,
    /// A gateway's configuration file; its listener must be loopback
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Up to which layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// Without policy and audit
    Transport,
    /// Without audit
    Policy,
}

/// Serves until it is ended.
///
/// # Errors
/// If the configuration is refused, or what it names can not be used.
pub(crate) fn run(args: &StagesArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    ensure!(config.listen.ip().is_loopback(), "stages listen on loopback only");
    ensure!(
        config.id_domain == fixture::ID_DOMAIN,
        "stages serve a fixture's terminals only, whose `id_domain` is `{}`",
        fixture::ID_DOMAIN
    );
    rustls::crypto::CryptoProvider::install_default(gateway::tls::provider())
        .map_err(|_| anyhow::anyhow!("another cryptography provider is installed already"))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config, args.stage))
}

async fn serve(config: Config, layer: Layer) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new()?);
    let facts = Arc::new(LiveFacts::default());
    let live = LiveConnections::new(metrics.clone());
    let tls = LiveTls::start(&config, facts.clone(), live.clone(), metrics.clone());
    let tls = tls.map_err(anyhow::Error::msg)?;
    let policy = LivePolicy::start(config.policy.clone(), facts.clone(), metrics.clone());
    let policy = Arc::new(policy.map_err(|problems| anyhow::anyhow!("policy: {problems:?}"))?);
    let operations = Operations::builtin().context("operations table")?;
    let log = AuditLog::open(&config.audit.dir, run::log_options(&config.audit))?;
    // For failed handshakes, which are no part of what is measured.
    let recorder = Recorder::new(log, &config.audit.pseudonym_key, policy.clone());
    let recorder = Arc::new(recorder);
    let socket = tokio::net::TcpListener::bind(config.listen).await?;
    let address = socket.local_addr()?;
    let _feeds = run::spawn_feeds(&config, &facts, &live, true);
    run::first_facts(&facts).await;
    let hub = Hub::new(&config.hub, &metrics).map_err(anyhow::Error::from)?;
    let [HubNode::Unix(hub_socket)] = &config.hub.nodes[..] else {
        anyhow::bail!("the back end is one unix socket")
    };
    let hub_socket = hub_socket.clone();
    let tokens = StaffTokens::new(&metrics);
    let access = Access::new(policy, operations, facts.clone(), tokens, config.permit_key);
    let stage = Stage { access, hub, hub_socket, layer, limits: config.limits.clone() };
    let (_stop, shutdown) = watch::channel(false);
    let listener = Listener {
        tls,
        facts,
        live,
        recorder,
        metrics,
        proxy: Arc::new(run::proxy(stage, &config.limits)),
        network: NetworkKind::Open,
        admission: Admission::new(&config.limits, &[]),
        limits: config.limits.clone(),
        shutdown,
        tasks: TaskTracker::new(),
    };
    let addresses = run::Addresses { public: address, admin: address, closed: None };
    run::write_ready_file(&config.ready_file, &addresses)?;
    Arc::new(listener).run(Arc::new(socket)).await;
    Ok(())
}

/// What pingora asks in its phases.
struct Stage {
    access: Access,
    hub: Hub,
    hub_socket: String,
    layer: Layer,
    limits: Limits,
}

#[derive(Default)]
struct Context {
    connection: Option<Arc<Connection>>,
    permit: Option<Permit>,
    attempt: Option<Attempt>,
    request_id: String,
}

impl Context {
    fn connection(&self) -> Result<&Connection> {
        self.connection
            .as_deref()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "no verified connection"))
    }
}

#[async_trait]
impl ProxyHttp for Stage {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context { request_id: gateway::proxy::new_request_id(), ..Context::default() }
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        context.connection = connection_of(session.digest());
        session.set_read_timeout(Some(self.limits.request_read_timeout));
        let request = session.req_header();
        let connection = context.connection()?;
        let check = || framing::check_request(request, &self.limits, connection.names());
        let target = connection
            .offence()
            .map_or_else(check, Err)
            .map_err(|_| Error::explain(ErrorType::HTTPStatus(400), "ambiguous request"))?;
        if self.layer == Layer::Policy {
            let asked = Asked {
                method: request.method.as_str(),
                path: request.uri.path(),
                target,
                headers: &request.headers,
                request_id: &context.request_id,
                address: context.connection()?.address().ip(),
                network: context.connection()?.network(),
            };
            let permit = self.access.authorize(context.connection()?.client(), asked);
            let permit =
                permit.map_err(|_| Error::explain(ErrorType::HTTPStatus(403), "request denied"))?;
            context.permit = Some(permit);
        }
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        context: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        match &context.permit {
            Some(permit) => {
                context.attempt = self.hub.attempt(permit, 0);
                let attempt = context.attempt.as_ref();
                let no_node = || Error::explain(ErrorType::HTTPStatus(503), "no node");
                attempt.map(|attempt| attempt.peer(None)).ok_or_else(no_node)
            }
            None => HttpPeer::new_uds(&self.hub_socket, false, String::new()).map(Box::new),
        }
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        if let Some(permit) = &context.permit {
            let sealed = self.access.seal(permit).map_err(|error| {
                Error::because(ErrorType::InternalError, "while sealing a permit", error)
            })?;
            return hub_request::prepare(permit, &sealed, request);
        }
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        *request = hub_request::anew(request.method.as_str(), target, request)?;
        let client = context.connection()?.client();
        request.insert_header("sekisho-principal", client.identity().path())?;
        request.insert_header("sekisho-serial", client.serial().to_string())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let is_read = session.req_header().method == Method::GET;
        if let (true, Some(permit)) = (is_read, &context.permit) {
            let client = context.connection()?.client();
            self.access
                .still_allowed(client, permit)
                .map_err(|_| Error::explain(ErrorType::HTTPStatus(403), "request denied"))?;
        }
        response.remove_header(&http::header::SERVER);
        response.insert_header("sekisho-request-id", &context.request_id)?;
        response.insert_header(http::header::CACHE_CONTROL, "no-store")
    }
}
