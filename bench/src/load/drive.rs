//! The run as a whole: one single-threaded runtime for each thread, a common start after the
//! warm-up, and the CPU times of the server and of the generator at the same two moments as the
//! clock.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use crate::client::{Ask, Server};
use crate::cpu;
use crate::credentials::{Http, Terminal};
use crate::load::line::Line;
use crate::load::outcome::{Facts, Report, Tally};
use crate::load::worker::{Caller, Counters, Local, Plan, Shared, Worker};
use crate::load::{Limits, Mode, RunArgs, day};

/// Makes the load that `args` describe with these terminals.
pub(super) fn run(
    args: &RunArgs,
    terminals: Vec<Terminal>,
    limits: Limits,
) -> anyhow::Result<Report> {
    let plan = Arc::new(plan(args, terminals, limits)?);
    let threads = threads(args);
    std::thread::scope(|scope| {
        let (started, waiting) = mpsc::channel();
        let (go, starting) = watch::channel(None);
        let crews: Vec<_> = (0..threads)
            .map(|at| {
                let crew = Crew { plan: Arc::clone(&plan), at, threads };
                crew.start(scope, args, limits, started.clone(), starting.clone())
            })
            .collect();
        drop(started);
        let counters: Vec<_> = crews.iter().map(|(_, counters)| Arc::clone(counters)).collect();
        let (over, running) = mpsc::channel();
        scope.spawn(move || progress(&counters, &running));
        // A thread that ended early is told when it is joined.
        let _all = (0..threads).try_for_each(|_| waiting.recv());
        let before = Moment::now(args.pid)?;
        go.send(Some(before.at)).context("the load did not start")?;
        let tally = joined(crews);
        let after = Moment::now(args.pid)?;
        drop(over);
        Report::of(facts(args, limits, threads, &before, &after), tally?)
    })
}

/// Adds up what the threads counted.
fn joined(crews: Vec<Started<'_>>) -> anyhow::Result<Tally> {
    let mut total: Option<Tally> = None;
    for (thread, _) in crews {
        let tally = thread.join().map_err(|_| anyhow::anyhow!("a thread of the load broke"))??;
        match &mut total {
            Some(total) => total.add(tally),
            None => total = Some(tally),
        }
    }
    total.context("there was no thread")
}

fn facts(args: &RunArgs, limits: Limits, threads: u32, before: &Moment, after: &Moment) -> Facts {
    let used = before.server.zip(after.server).map(|(before, after)| after.saturating_sub(before));
    let hour_rates = match (args.mode, args.rate) {
        (Mode::Day, Some(rate)) => day::rates(rate, args.first_to_tenth),
        _ => Vec::new(),
    };
    Facts {
        target: args.target.target.shown(),
        mode: args.mode,
        group: args.target.group,
        http: args.http,
        connections: args.connections,
        streams: args.streams,
        threads,
        rate: args.rate,
        hour_rates,
        took: after.at - before.at,
        intended: args.intended(limits),
        server_cpu: args.pid.zip(used),
        own_cpu: after.own.saturating_sub(before.own),
    }
}

fn plan(args: &RunArgs, terminals: Vec<Terminal>, limits: Limits) -> anyhow::Result<Plan> {
    let server =
        runtime()?.block_on(Server::find(&args.target.target, args.target.source_addresses))?;
    let mut callers = Vec::with_capacity(terminals.len());
    for terminal in terminals {
        let ask = Ask::get(&server, &terminal).context("path or host can not be asked for")?;
        callers.push(Caller { terminal, ask });
    }
    Ok(Plan {
        server,
        callers,
        mode: args.mode,
        http: args.http(),
        streams: args.streams,
        connections: args.connections,
        operations: limits.operations,
        lasts: limits.lasts,
        taken: AtomicU64::new(0),
        came: AtomicUsize::new(0),
    })
}

/// No more threads than connections.
fn threads(args: &RunArgs) -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = args.threads.unwrap_or_else(|| u32::try_from(cpus).unwrap_or(1));
    wanted.min(args.connections).max(1)
}

fn runtime() -> anyhow::Result<Runtime> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.context("cannot start a runtime")
}

/// Clock and CPU times.
struct Moment {
    at: Instant,
    server: Option<Duration>,
    own: Duration,
}

impl Moment {
    fn now(pid: Option<u32>) -> anyhow::Result<Self> {
        let server = pid.map(cpu::used).transpose()?;
        Ok(Self { at: Instant::now(), server, own: own_cpu() })
    }
}

/// CPU time of this process, to the nanosecond where the kernel counts so.
fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

type Started<'s> = (ScopedJoinHandle<'s, anyhow::Result<Tally>>, Arc<Counters>);

/// The tasks of one thread.
struct Crew {
    plan: Arc<Plan>,
    at: u32,
    threads: u32,
}

impl Crew {
    fn start<'s>(
        self,
        scope: &'s Scope<'s, '_>,
        args: &RunArgs,
        limits: Limits,
        started: mpsc::Sender<()>,
        starting: watch::Receiver<Option<Instant>>,
    ) -> Started<'s> {
        let counters = Arc::new(Counters::default());
        let line = args.arrivals(limits, self.at, self.threads).map(Line::new);
        let hours = if args.mode == Mode::Day { HOURS } else { 1 };
        let shown = Arc::clone(&counters);
        let thread = scope.spawn(move || {
            let tally = RefCell::new(Tally::new(hours)?);
            let local = Rc::new(Local { plan: Arc::clone(&self.plan), line, tally, counters });
            let tasks = LocalSet::new();
            runtime()?.block_on(tasks.run_until(self.work(local, hours, started, starting)))
        });
        (thread, shown)
    }

    async fn work(
        self,
        local: Rc<Local>,
        hours: u8,
        started: mpsc::Sender<()>,
        mut starting: watch::Receiver<Option<Instant>>,
    ) -> anyhow::Result<Tally> {
        let mut warming = JoinSet::new();
        for mut worker in self.workers(&local) {
            warming.spawn_local(async move {
                worker.warm_up().await;
                worker
            });
        }
        let mut workers = Vec::new();
        while let Some(worker) = warming.join_next().await {
            workers.push(worker.context("a task of the load broke")?);
        }
        local.tally.replace(Tally::new(hours)?);
        let _ = started.send(());
        drop(started);
        let began = starting.wait_for(Option::is_some).await.context("the load did not start")?;
        let began = began.unwrap_or_else(Instant::now);
        let mut running = JoinSet::new();
        for worker in workers {
            running.spawn_local(worker.run(began));
        }
        if let Some(line) = &local.line {
            line.run(began).await.context("the kernel gives no timer")?;
        }
        while let Some(done) = running.join_next().await {
            done.context("a task of the load broke")?;
        }
        let mut tally = local.tally.replace(Tally::new(hours)?);
        tally.never_begun(local.line.as_ref().map_or(0, Line::left));
        Ok(tally)
    }

    /// Connections are dealt out to the threads in turn; all streams of one are on one thread.
    fn workers(&self, local: &Rc<Local>) -> Vec<Worker> {
        let mut workers = Vec::new();
        for at in (self.at..self.plan.connections).step_by(self.threads as usize) {
            match self.plan.http {
                Http::One => workers.extend(Worker::new(Rc::clone(local), at, None)),
                Http::Two => {
                    let shared = Shared::default();
                    let stream = |_| Worker::new(Rc::clone(local), at, Some(Rc::clone(&shared)));
                    workers.extend((0..self.plan.streams).filter_map(stream));
                }
            }
        }
        workers
    }
}

/// A line a second on stderr while the run lasts.
fn progress(threads: &[Arc<Counters>], running: &mpsc::Receiver<()>) {
    let sum = |of: fn(&Counters) -> &AtomicU64| -> u64 {
        threads.iter().map(|counters| of(counters).load(Ordering::Relaxed)).sum()
    };
    let mut before = 0;
    while running.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
        let done = sum(|counters| &counters.done);
        let failed = sum(|counters| &counters.failed);
        if done + failed == 0 {
            eprintln!("warming up: {} operations", sum(|counters| &counters.warm));
            continue;
        }
        eprintln!("{done} answered, {} in the last second, {failed} failed", done - before);
        before = done;
    }
}

/// Hours of a day.
const HOURS: u8 = 24;
