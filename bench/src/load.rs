//! The closed loop: one task a connection, each asking again as soon as its answer is whole, until
//! the operations are used up.
//!
//! Before the clock starts, every task of the keep-alive mode has made its connection and one
//! request on it, and every task of the resumed mode has a session to resume; the server's CPU time
//! is read at the same two moments as the clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;

use crate::cli::{Mode, RunArgs};
use crate::report::{Cpu, Latency, Report};
use crate::{cpu, credentials, target};

/// Longest time for one operation.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an operation without an answer, so that a dead server is not hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(20);

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Target(#[from] target::Error),
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    #[error(transparent)]
    Cpu(#[from] cpu::Error),
    #[error("the path or host can not stand in a request")]
    Request(#[source] hyper::http::Error),
    #[error("a task of the load ended early")]
    Task(#[source] tokio::task::JoinError),
}

/// Runs the load that `args` describe.
pub(crate) async fn run(args: &RunArgs) -> Result<Report, Error> {
    let addresses = args.target.addresses().await?;
    let credentials = credentials::read(args)?;
    // A wrong pid is told before any load, not after.
    args.pid.map(cpu::used).transpose()?;
    let counters = Arc::new(Counters::default());
    let start = Arc::new(Barrier::new(args.connections as usize + 1));
    let mut tasks = JoinSet::new();
    for (at, credential) in (0..args.connections).zip(credentials.iter().cycle()) {
        let client = Client {
            addresses: addresses.clone(),
            first_address: at as usize,
            name: args.target.name(),
            settings: credential.settings(args.mode),
            request: request(args, credential.authorization.clone())?,
        };
        let worker = Worker::new(client, args, Arc::clone(&counters));
        tasks.spawn(worker.run(args.mode, Arc::clone(&start)));
    }
    start.wait().await;
    let cpu_before = args.pid.map(cpu::used).transpose()?;
    let began = Instant::now();
    let progress = progress(Arc::clone(&counters), args.requests);
    let mut total = Tally::default();
    while let Some(tally) = tasks.join_next().await {
        total.add(tally.map_err(Error::Task)?);
    }
    let took = began.elapsed();
    progress.abort();
    let cpu_after = args.pid.map(cpu::used).transpose()?;
    let cpu_used = cpu_before.zip(cpu_after).map(|(before, after)| after.saturating_sub(before));
    Ok(report(args, total, took, cpu_used))
}

fn report(args: &RunArgs, total: Tally, took: Duration, cpu_used: Option<Duration>) -> Report {
    let answered: u64 = total.statuses.values().sum();
    Report {
        target: format!("https://{}", args.target.authority()),
        path: args.path.clone(),
        mode: args.mode,
        group: args.group,
        connections: args.connections,
        seconds: took.as_secs_f64(),
        requests_per_second: answered as f64 / took.as_secs_f64().max(1e-9),
        latency: Latency::of(total.latency_us),
        statuses: total.statuses,
        failures: total.failures,
        connections_made: total.connections_made,
        connections_resumed: total.connections_resumed,
        cpu: args.pid.zip(cpu_used).map(|(pid, used)| Cpu::of(pid, used, answered)),
    }
}

fn request(
    args: &RunArgs,
    authorization: Option<HeaderValue>,
) -> Result<Request<Empty<Bytes>>, Error> {
    let mut builder = Request::get(args.path.as_str()).header(HOST, args.target.authority());
    if let Some(value) = authorization {
        builder = builder.header(AUTHORIZATION, value);
    }
    builder.body(Empty::new()).map_err(Error::Request)
}

/// A line a second on stderr while the run lasts.
fn progress(counters: Arc<Counters>, requests: u64) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.tick().await;
        let mut before = 0;
        loop {
            second.tick().await;
            let done = counters.done.load(Ordering::Relaxed);
            let failed = counters.failed.load(Ordering::Relaxed);
            eprintln!(
                "{done} of {requests} done, {} in the last second, {failed} failed",
                done - before
            );
            before = done;
        }
    })
}

/// Shared by all tasks.
#[derive(Default)]
struct Counters {
    taken: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
}

/// What one task counts; added up at the end.
#[derive(Default)]
struct Tally {
    latency_us: Vec<u32>,
    statuses: BTreeMap<u16, u64>,
    failures: BTreeMap<String, u64>,
    connections_made: u64,
    connections_resumed: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.latency_us.extend(other.latency_us);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.connections_made += other.connections_made;
        self.connections_resumed += other.connections_resumed;
    }
}

/// One connection's loop.
struct Worker {
    client: Client,
    operations: u64,
    counters: Arc<Counters>,
    tally: Tally,
    open: Option<Connection>,
}

impl Worker {
    fn new(client: Client, args: &RunArgs, counters: Arc<Counters>) -> Self {
        Self { client, operations: args.requests, counters, tally: Tally::default(), open: None }
    }

    async fn run(mut self, mode: Mode, start: Arc<Barrier>) -> Tally {
        match mode {
            Mode::Keepalive | Mode::Resumed => {
                // What goes wrong here goes wrong again, and is counted, during the run.
                let _ = self.timed_operation(mode).await;
                self.tally = Tally::default();
            }
            Mode::Handshake => {}
        }
        start.wait().await;
        while self.counters.taken.fetch_add(1, Ordering::Relaxed) < self.operations {
            let began = Instant::now();
            match self.timed_operation(mode).await {
                Ok(status) => {
                    let took = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
                    self.tally.latency_us.push(took);
                    *self.tally.statuses.entry(status.as_u16()).or_default() += 1;
                    self.counters.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(failure) => {
                    self.open = None;
                    *self.tally.failures.entry(failure).or_default() += 1;
                    self.counters.failed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
        self.tally
    }

    async fn timed_operation(&mut self, mode: Mode) -> Result<StatusCode, String> {
        tokio::time::timeout(OPERATION_TIMEOUT, self.operation(mode))
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    async fn operation(&mut self, mode: Mode) -> Result<StatusCode, String> {
        let mut connection = match self.open.take() {
            Some(connection) if !connection.sender.is_closed() => connection,
            _ => {
                let connection = self.client.connect().await?;
                self.tally.connections_made += 1;
                self.tally.connections_resumed += u64::from(connection.resumed);
                connection
            }
        };
        let status = connection.ask(self.client.request.clone()).await?;
        match mode {
            Mode::Keepalive => self.open = Some(connection),
            Mode::Handshake | Mode::Resumed => connection.close().await,
        }
        Ok(status)
    }
}

/// How one task reaches the server.
struct Client {
    addresses: Vec<SocketAddr>,
    /// Tasks start at different addresses of a host with several.
    first_address: usize,
    name: ServerName<'static>,
    settings: Arc<ClientConfig>,
    request: Request<Empty<Bytes>>,
}

impl Client {
    async fn connect(&self) -> Result<Connection, String> {
        let tcp = self.connect_tcp().await.map_err(|error| format!("connect: {error}"))?;
        tcp.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
        let tls = TlsConnector::from(Arc::clone(&self.settings))
            .connect(self.name.clone(), tcp)
            .await
            .map_err(|error| format!("TLS: {error}"))?;
        let resumed = tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        let (sender, connection) =
            handshake(TokioIo::new(tls)).await.map_err(|error| format!("HTTP: {error}"))?;
        let driver = tokio::spawn(async move {
            // What breaks a connection is told to the request on it.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver, resumed })
    }

    /// The first address that answers: localhost often has two, and a server only one of them.
    async fn connect_tcp(&self) -> std::io::Result<TcpStream> {
        let mut failure = std::io::ErrorKind::AddrNotAvailable.into();
        let addresses = self.addresses.iter().cycle().skip(self.first_address);
        for address in addresses.take(self.addresses.len()) {
            match TcpStream::connect(address).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
    resumed: bool,
}

impl Connection {
    /// Sends the request and reads the answer to its end.
    async fn ask(&mut self, request: Request<Empty<Bytes>>) -> Result<StatusCode, String> {
        let failed = |error: hyper::Error| format!("HTTP: {}", cause(&error));
        self.sender.ready().await.map_err(failed)?;
        let answer = self.sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(failed)?;
        }
        Ok(status)
    }

    /// Ends the connection in order: close_notify, then FIN.
    async fn close(self) {
        drop(self.sender);
        // A driver that panicked has nothing left to close.
        let _ = self.driver.await;
    }
}

/// The innermost cause says what happened (a TLS alert, a reset).
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests;
