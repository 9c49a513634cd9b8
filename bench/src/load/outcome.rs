//! What a run counted: by thread while it lasts, merged at its end.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::Serialize;

use crate::cli::Group;
use crate::client::Answer;
use crate::load::Mode;
use crate::report::{Cpu, Histogram, Latency};

/// One operation that is over.
pub(super) struct Done {
    pub(super) hour: u8,
    /// From the intended time to the start.
    pub(super) waited: Duration,
    /// From the intended time to the whole answer.
    pub(super) took: Duration,
    pub(super) answer: Result<Answer, String>,
}

/// What one thread counts.
pub(super) struct Tally {
    /// By hour; one outside days.
    hours: Vec<HourTally>,
    waited: Histogram,
    statuses: BTreeMap<u16, u64>,
    failures: BTreeMap<String, u64>,
}

struct HourTally {
    latency: Histogram,
    failed: u64,
    made: u64,
    resumed: u64,
}

impl Tally {
    pub(super) fn new(hours: u8) -> anyhow::Result<Self> {
        let hour = || {
            Histogram::new().map(|latency| HourTally { latency, failed: 0, made: 0, resumed: 0 })
        };
        Ok(Self {
            hours: (0..hours.max(1)).map(|_| hour()).collect::<Result<_, _>>()?,
            waited: Histogram::new()?,
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
        })
    }

    pub(super) fn note(&mut self, done: Done) {
        self.waited.record(done.waited);
        let Some(hour) = self.hours.get_mut(usize::from(done.hour)) else { return };
        match done.answer {
            Ok(answer) => {
                hour.latency.record(done.took);
                *self.statuses.entry(answer.status).or_default() += 1;
            }
            Err(failure) => {
                hour.failed += 1;
                self.fail(failure, 1);
            }
        }
    }

    /// Operations that were never begun.
    pub(super) fn never_begun(&mut self, count: u64) {
        if count > 0 {
            self.fail("still in line when the run ended".to_owned(), count);
        }
    }

    fn fail(&mut self, failure: String, count: u64) {
        let full = self.failures.len() >= FAILURES_MAX && !self.failures.contains_key(&failure);
        let failure = if full { "other".to_owned() } else { failure };
        *self.failures.entry(failure).or_default() += count;
    }

    pub(super) fn connected(&mut self, hour: u8, resumed: bool) {
        if let Some(hour) = self.hours.get_mut(usize::from(hour)) {
            hour.made += 1;
            hour.resumed += u64::from(resumed);
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        for (hour, other) in self.hours.iter_mut().zip(other.hours) {
            hour.latency.add(&other.latency);
            hour.failed += other.failed;
            hour.made += other.made;
            hour.resumed += other.resumed;
        }
        self.waited.add(&other.waited);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (failure, count) in other.failures {
            self.fail(failure, count);
        }
    }
}

/// What is known of a run besides what was counted.
pub(super) struct Facts {
    pub(super) target: String,
    pub(super) mode: Mode,
    pub(super) group: Group,
    pub(super) http: u8,
    pub(super) connections: u32,
    pub(super) streams: u32,
    pub(super) threads: u32,
    pub(super) rate: Option<f64>,
    /// Operations a second of each hour, of days.
    pub(super) hour_rates: Vec<f64>,
    pub(super) took: Duration,
    /// How long the operations were to become due.
    pub(super) intended: Option<Duration>,
    pub(super) server_cpu: Option<(u32, Duration)>,
    pub(super) own_cpu: Duration,
}

/// A run, as it is told.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) target: String,
    pub(crate) mode: Mode,
    pub(crate) group: Group,
    pub(crate) http: u8,
    pub(crate) connections: u32,
    pub(crate) streams: u32,
    pub(crate) threads: u32,
    /// Operations a second that were asked for; null in a closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) seconds: f64,
    pub(crate) answered: u64,
    pub(crate) per_second: f64,
    /// From the intended time, if there is a rate.
    pub(crate) latency: Option<Latency>,
    /// The part of it before the operation could begin; null in a closed loop.
    pub(crate) waited: Option<Latency>,
    /// Whether the operations were served about as fast as they came; null in a closed loop.
    pub(crate) kept_up: Option<bool>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) connections_made: u64,
    pub(crate) connections_resumed: u64,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) generator: Generator,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hours: Vec<Hour>,
}

/// What the load itself cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Generator {
    pub(crate) cpu_seconds: f64,
    /// Share of its threads' time: near 1, the generator was the limit and not the server.
    pub(crate) busy: f64,
}

/// One hour of a day.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Hour {
    pub(crate) hour: u8,
    pub(crate) rate: f64,
    pub(crate) answered: u64,
    pub(crate) failures: u64,
    pub(crate) latency: Option<Latency>,
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
}

impl Report {
    pub(super) fn of(facts: Facts, tally: Tally) -> anyhow::Result<Self> {
        let mut all = Histogram::new()?;
        tally.hours.iter().for_each(|hour| all.add(&hour.latency));
        let answered = tally.statuses.values().sum();
        let seconds = facts.took.as_secs_f64().max(1e-9);
        let kept_up = facts.intended.map(|intended| {
            let slack = (intended / 20).max(BEHIND_MAX);
            facts.took <= intended + slack
        });
        Ok(Self {
            target: facts.target,
            mode: facts.mode,
            group: facts.group,
            http: facts.http,
            connections: facts.connections,
            streams: facts.streams,
            threads: facts.threads,
            rate: facts.rate,
            seconds,
            answered,
            per_second: answered as f64 / seconds,
            latency: all.latency(),
            waited: facts.rate.and(tally.waited.latency()),
            kept_up,
            connections_made: tally.hours.iter().map(|hour| hour.made).sum(),
            connections_resumed: tally.hours.iter().map(|hour| hour.resumed).sum(),
            cpu: facts.server_cpu.map(|(pid, used)| Cpu::of(pid, used, answered)),
            generator: Generator {
                cpu_seconds: facts.own_cpu.as_secs_f64(),
                busy: facts.own_cpu.as_secs_f64() / (seconds * f64::from(facts.threads)),
            },
            hours: hours(&facts.hour_rates, &tally.hours),
            statuses: tally.statuses,
            failures: tally.failures,
        })
    }
}

fn hours(rates: &[f64], hours: &[HourTally]) -> Vec<Hour> {
    (0u8..)
        .zip(rates.iter().zip(hours))
        .map(|(at, (rate, hour))| {
            let latency = hour.latency.latency();
            Hour {
                hour: at,
                rate: *rate,
                answered: latency.map_or(0, |latency| latency.count),
                failures: hour.failed,
                latency,
                handshakes: hour.made - hour.resumed,
                resumed: hour.resumed,
            }
        })
        .collect()
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} {}, HTTP/{}, {} connections × {} streams, {} threads",
            self.target,
            self.mode.as_str(),
            self.http,
            self.connections,
            self.streams,
            self.threads
        )?;
        let (answered, seconds) = (self.answered, self.seconds);
        writeln!(f, "answered     {answered} in {seconds:.2} s, {:.0} a second", self.per_second)?;
        self.pace(f)?;
        line(f, "latency", self.latency)?;
        line(f, "in line", self.waited)?;
        for (status, count) in &self.statuses {
            writeln!(f, "status {status}   {count}")?;
        }
        for (failure, count) in &self.failures {
            writeln!(f, "failed       {count}: {failure}")?;
        }
        let (made, resumed) = (self.connections_made, self.connections_resumed);
        writeln!(f, "connections  {made} made, {resumed} of them resumed")?;
        if let Some(cpu) = &self.cpu {
            let coarse = if cpu.coarse { " (coarse: measure longer)" } else { "" };
            let (pid, each) = (cpu.pid, cpu.us_per_operation);
            writeln!(f, "server CPU   {:.2} s of {pid}, {each:.1} µs each{coarse}", cpu.seconds)?;
        }
        let Generator { cpu_seconds, busy } = self.generator;
        let limit = if busy > BUSY { ": it was the limit, not the server" } else { "" };
        writeln!(f, "generator    {cpu_seconds:.2} s CPU, {:.0} % busy{limit}", busy * 100.0)?;
        self.hours.iter().try_for_each(|hour| writeln!(f, "{hour}"))
    }
}

impl Report {
    fn pace(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.rate else { return Ok(()) };
        let kept_up = match self.kept_up {
            Some(false) => "NOT kept up with: the last answers came far behind",
            Some(true) | None => "kept up with",
        };
        writeln!(f, "rate         {rate} a second, {kept_up}")
    }
}

impl Display for Hour {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (p50, p99) = self.latency.map_or((0, 0), |latency| (latency.p50_us, latency.p99_us));
        write!(
            f,
            "{:02}:00  {:8.1} a second, {:8} answered, {} failed, p50 {p50} µs, p99 {p99} µs, \
             {} handshakes, {} resumed",
            self.hour, self.rate, self.answered, self.failures, self.handshakes, self.resumed
        )
    }
}

fn line(f: &mut Formatter<'_>, name: &str, latency: Option<Latency>) -> fmt::Result {
    let Some(l) = latency else { return Ok(()) };
    writeln!(
        f,
        "{name:12} p50 {} µs, p90 {}, p99 {}, p99.9 {}, max {}, mean {:.1}",
        l.p50_us, l.p90_us, l.p99_us, l.p999_us, l.max_us, l.mean_us
    )
}

/// Different failures that are told apart.
const FAILURES_MAX: usize = 64;
/// A run that ends this much later than its last operation was due did not keep up.
const BEHIND_MAX: Duration = Duration::from_millis(500);
/// Above this the generator has nothing left to give.
const BUSY: f64 = 0.95;
