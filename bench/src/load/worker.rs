//! One connection, or one stream of an HTTP/2 connection, and the operations on it.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::Mutex;
use tokio::time::Sleep;

use crate::client::{Answer, Ask, Connection, H2Stream, Server};
use crate::credentials::{Http, Terminal};
use crate::load::Mode;
use crate::load::arrivals::Kind;
use crate::load::line::Line;
use crate::load::outcome::{Done, Tally};

/// What all threads share, unchanged during the run.
pub(super) struct Plan {
    pub(super) server: Server,
    pub(super) callers: Vec<Caller>,
    pub(super) mode: Mode,
    pub(super) http: Http,
    pub(super) streams: u32,
    pub(super) connections: u32,
    pub(super) operations: u64,
    pub(super) lasts: Option<Duration>,
    /// Operations that were begun, in a closed loop.
    pub(super) taken: AtomicU64,
    /// Terminals that came, in the mode `handshake`.
    pub(super) came: AtomicUsize,
}

/// A terminal with its request, ready to be sent.
pub(super) struct Caller {
    pub(super) terminal: Terminal,
    pub(super) ask: Ask,
}

/// What the tasks of one thread share.
pub(super) struct Local {
    pub(super) plan: Arc<Plan>,
    /// `None` in a closed loop.
    pub(super) line: Option<Line>,
    pub(super) tally: RefCell<Tally>,
    pub(super) counters: Arc<Counters>,
}

/// What the progress line shows of one thread.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) warm: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// An HTTP/2 connection that several workers ask on. The number tells connections apart.
pub(super) type Shared = Rc<Mutex<Option<(u64, Connection)>>>;

/// An operation that is to be made now.
#[derive(Clone, Copy)]
struct Operation {
    intended: Instant,
    kind: Kind,
    hour: u8,
}

/// One worker.
pub(super) struct Worker {
    local: Rc<Local>,
    plan: Arc<Plan>,
    /// Which connection of the run this is.
    at: u32,
    kept: Kept,
    /// Sessions of its own terminal.
    resuming: Arc<ClientConfig>,
    /// Turn among the terminals that come again.
    turn: usize,
    /// Hour of the operation being made.
    hour: u8,
    began: Instant,
}

/// The connection that requests go on.
enum Kept {
    One(Option<Connection>),
    Two { shared: Shared, stream: Option<H2Stream>, number: u64 },
}

impl Worker {
    /// `None` if there is no terminal at all.
    pub(super) fn new(local: Rc<Local>, at: u32, shared: Option<Shared>) -> Option<Self> {
        let plan = Arc::clone(&local.plan);
        let own = plan.callers.get(at as usize % plan.callers.len().max(1))?;
        let resuming = own.terminal.resuming_settings(plan.http);
        let kept = match shared {
            Some(shared) => Kept::Two { shared, stream: None, number: 0 },
            None => Kept::One(None),
        };
        let (turn, began) = (at as usize, Instant::now());
        Some(Self { local, plan, at, kept, resuming, turn, hour: 0, began })
    }

    /// Before the clock starts: kept connections are made, terminals that return have come once,
    /// and there is a session to resume. What goes wrong here goes wrong again, and is counted,
    /// during the run.
    pub(super) async fn warm_up(&mut self) {
        match self.plan.mode {
            Mode::Keepalive => self.warm(Kind::Request).await,
            Mode::Handshake => {}
            Mode::Returning => self.warm_terminals().await,
            Mode::Resumed => self.warm(Kind::Resume).await,
            Mode::Day => {
                self.warm(Kind::Request).await;
                self.warm(Kind::Resume).await;
                self.warm_terminals().await;
            }
        }
    }

    /// Each terminal of this worker's comes once.
    async fn warm_terminals(&mut self) {
        let (all, step) = (self.plan.callers.len(), self.plan.connections as usize);
        let own = all.saturating_sub(self.at as usize).div_ceil(step.max(1)).max(1);
        for _ in 0..own {
            self.warm(Kind::Login).await;
        }
    }

    async fn warm(&mut self, kind: Kind) {
        let mut patience = Patience::new();
        let began = Instant::now();
        let done = patience.limit(began, self.operation(kind)).await;
        if let Ok((_, Some(spent))) = done {
            close(spent).await;
        }
        self.local.counters.warm.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes operations until there are no more.
    pub(super) async fn run(mut self, began: Instant) {
        self.began = began;
        let mut patience = Patience::new();
        while let Some(operation) = self.next().await {
            self.hour = operation.hour;
            let started = Instant::now();
            let done = patience.limit(started, self.operation(operation.kind)).await;
            let ended = Instant::now();
            let failed = done.is_err();
            let (answer, spent) = match done {
                Ok((answer, spent)) => (Ok(answer), spent),
                Err(failure) => (Err(failure), None),
            };
            self.note(operation, started, ended, answer);
            if failed {
                self.drop_kept(operation.kind);
                if self.local.line.is_none() {
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
            if let Some(spent) = spent {
                close(spent).await;
            }
        }
    }

    fn note(
        &self,
        operation: Operation,
        started: Instant,
        ended: Instant,
        answer: Result<Answer, String>,
    ) {
        let counters = &self.local.counters;
        let counter = if answer.is_ok() { &counters.done } else { &counters.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.local.tally.borrow_mut().note(Done {
            hour: operation.hour,
            waited: started.saturating_duration_since(operation.intended),
            took: ended.saturating_duration_since(operation.intended),
            answer,
        });
    }

    async fn next(&self) -> Option<Operation> {
        if let Some(line) = &self.local.line {
            let due = line.next().await?;
            let kind = match self.plan.mode {
                Mode::Day => due.kind,
                Mode::Keepalive | Mode::Handshake | Mode::Returning | Mode::Resumed => self.kind(),
            };
            return Some(Operation { intended: self.began + due.at, kind, hour: due.hour });
        }
        let now = Instant::now();
        if self.plan.lasts.is_some_and(|lasts| now.saturating_duration_since(self.began) >= lasts) {
            return None;
        }
        let taken = self.plan.taken.fetch_add(1, Ordering::Relaxed);
        let more = taken < self.plan.operations;
        more.then(|| Operation { intended: now, kind: self.kind(), hour: 0 })
    }

    fn kind(&self) -> Kind {
        match self.plan.mode {
            Mode::Keepalive | Mode::Day => Kind::Request,
            Mode::Handshake | Mode::Returning => Kind::Login,
            Mode::Resumed => Kind::Resume,
        }
    }

    /// Makes one operation. With the answer comes the connection, if it is to be closed.
    async fn operation(&mut self, kind: Kind) -> Result<(Answer, Option<Connection>), String> {
        match kind {
            Kind::Request => match &mut self.kept {
                Kept::One(_) => self.request().await,
                Kept::Two { .. } => self.request_on_stream().await.map(|answer| (answer, None)),
            },
            Kind::Login => {
                let plan = Arc::clone(&self.plan);
                let caller = self.caller_in_turn(&plan)?;
                let settings = caller.terminal.settings(plan.http);
                self.once(&settings, &caller.ask).await
            }
            Kind::Resume => {
                let plan = Arc::clone(&self.plan);
                let settings = Arc::clone(&self.resuming);
                self.once(&settings, &own(&plan, self.at)?.ask).await
            }
        }
    }

    /// The terminal whose turn it is to make a full handshake.
    fn caller_in_turn<'p>(&mut self, plan: &'p Plan) -> Result<&'p Caller, String> {
        let at = match plan.mode {
            Mode::Handshake => self.plan.came.fetch_add(1, Ordering::Relaxed),
            Mode::Keepalive | Mode::Returning | Mode::Resumed | Mode::Day => {
                let turn = self.turn;
                self.turn += plan.connections as usize;
                if self.turn >= plan.callers.len() {
                    self.turn = self.at as usize;
                }
                turn % plan.callers.len().max(1)
            }
        };
        plan.callers.get(at).ok_or_else(|| "no terminal is left".to_owned())
    }

    async fn connect(&self, settings: &Arc<ClientConfig>, at: u32) -> Result<Connection, String> {
        let connection = self.plan.server.connect(settings, self.plan.http, at).await?;
        self.local.tally.borrow_mut().connected(self.hour, connection.resumed);
        Ok(connection)
    }

    /// A connection for one request.
    async fn once(
        &self,
        settings: &Arc<ClientConfig>,
        ask: &Ask,
    ) -> Result<(Answer, Option<Connection>), String> {
        let mut connection = self.connect(settings, self.at).await?;
        let answer = connection.ask(ask).await?;
        Ok((answer, Some(connection)))
    }

    /// A request on the kept HTTP/1.1 connection.
    async fn request(&mut self) -> Result<(Answer, Option<Connection>), String> {
        let caller = own(&self.plan, self.at)?;
        if let Kept::One(Some(connection)) = &mut self.kept {
            let answer = connection.ask(&caller.ask).await?;
            if !connection.is_spent() {
                return Ok((answer, None));
            }
            return Ok((answer, self.take_kept()));
        }
        let mut connection =
            self.connect(&caller.terminal.settings(self.plan.http), self.at).await?;
        let answer = connection.ask(&caller.ask).await?;
        if connection.is_spent() {
            return Ok((answer, Some(connection)));
        }
        self.kept = Kept::One(Some(connection));
        Ok((answer, None))
    }

    fn take_kept(&mut self) -> Option<Connection> {
        match &mut self.kept {
            Kept::One(connection) => connection.take(),
            Kept::Two { .. } => None,
        }
    }

    /// A request on this worker's stream of the HTTP/2 connection.
    async fn request_on_stream(&mut self) -> Result<Answer, String> {
        let caller = own(&self.plan, self.at)?;
        if let Kept::Two { stream: Some(stream), .. } = &mut self.kept {
            return stream.ask(&caller.ask).await;
        }
        let Kept::Two { shared, number, .. } = &self.kept else {
            return Err("not an HTTP/2 connection".to_owned());
        };
        let (shared, broken) = (Rc::clone(shared), *number);
        let mut held = shared.lock().await;
        // Another worker may have replaced the broken connection already.
        if held.as_ref().is_none_or(|(number, _)| *number <= broken) {
            let settings = caller.terminal.settings(self.plan.http);
            *held = None;
            *held = Some((broken + 1, self.connect(&settings, self.at).await?));
        }
        let made = held.as_ref().and_then(|(number, made)| Some((*number, made.stream()?)));
        drop(held);
        let (number, mut stream) = made.ok_or("not an HTTP/2 connection")?;
        self.kept = Kept::Two { shared, stream: Some(stream.clone()), number };
        stream.ask(&caller.ask).await
    }

    /// After a failure on the kept connection it is of no further use.
    fn drop_kept(&mut self, kind: Kind) {
        match (&mut self.kept, kind) {
            (Kept::One(connection), Kind::Request) => *connection = None,
            (Kept::Two { stream, .. }, Kind::Request) => *stream = None,
            (Kept::One(_) | Kept::Two { .. }, Kind::Login | Kind::Resume) => {}
        }
    }
}

/// The terminal of connection `at`.
fn own(plan: &Plan, at: u32) -> Result<&Caller, String> {
    let at = at as usize % plan.callers.len().max(1);
    plan.callers.get(at).ok_or_else(|| "no terminal is left".to_owned())
}

async fn close(connection: Connection) {
    // A server that reads no more is not waited for.
    let _ = tokio::time::timeout(CLOSE_MAX, connection.close()).await;
}

/// A time limit for one operation after the other that arms a timer only when one is over, not
/// twice for each operation.
struct Patience(Pin<Box<Sleep>>);

impl Patience {
    fn new() -> Self {
        Self(Box::pin(tokio::time::sleep(OPERATION_MAX)))
    }

    async fn limit<T>(
        &mut self,
        began: Instant,
        operation: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let mut operation = pin!(operation);
        poll_fn(|context| {
            if let Poll::Ready(done) = operation.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            while self.0.as_mut().poll(context).is_ready() {
                let until = began + OPERATION_MAX;
                if Instant::now() >= until {
                    return Poll::Ready(Err("no answer in time".to_owned()));
                }
                self.0.as_mut().reset(until.into());
            }
            Poll::Pending
        })
        .await
    }
}

/// Longest time for one operation, its wait in line not counted.
const OPERATION_MAX: Duration = Duration::from_secs(30);
/// Longest time to end a connection in order.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Pause after an operation without an answer, so that a dead server is not hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(20);
