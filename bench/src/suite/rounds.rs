//! The systems side by side: in every round, in every mode, each system in turn on the same core,
//! the order turned by one from round to round.
//!
//! All systems of a round are started before it and stopped after it, so that their caches are
//! empty at its beginning. The one that is not being measured waits for connections and costs
//! nothing. New terminals are new: each round takes its own part of them, and the gateway of that
//! round has never seen one of them.

use std::time::Duration;

use crate::lab::{FactsSet, Running, System};

use super::answers::RunAnswer;
use super::results::{Results, Round, Series};
use super::session::{Session, now, stopped, words};

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
    pub(crate) http: u8,
    systems: &'static [System],
    /// Which part of the terminals, counted from the round's own.
    part: usize,
    /// How many terminals; as many as operations if none.
    terminals: Option<usize>,
    /// Operations of nginx, HAProxy and the gateway: what each does in about 1.2 s of CPU time.
    operations: [usize; 3],
}

impl Mode {
    fn operations(&self, system: System, quick: bool) -> usize {
        let [nginx, haproxy, gateway] = self.operations;
        let full = match system {
            System::Nginx => nginx,
            System::Haproxy => haproxy,
            System::Transport | System::Policy | System::Async | System::Durable => gateway,
        };
        if quick { full / 2 } else { full }
    }

    /// The terminals and operations of a round.
    fn share(&self, system: System, round: usize, quick: bool, terminals: usize) -> Share {
        let all = rounds(quick);
        let part_terminals = terminals / all;
        let operations = self.operations(system, quick);
        let count = self.terminals.unwrap_or(operations).min(part_terminals);
        Share {
            from: (round + self.part) % all * part_terminals,
            count,
            // A new terminal comes once.
            operations: if self.terminals.is_none() { count } else { operations },
        }
    }
}

/// Which terminals make how many operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    from: usize,
    count: usize,
    operations: usize,
}

/// Measures all rounds and notes their series in `results`.
///
/// # Errors
/// Never: what fails is noted in the session.
pub(crate) fn measure(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let mut measured: Vec<(Mode, System, Round)> = Vec::new();
    let rounds = rounds(session.quick);
    for round in 0..rounds {
        if stopped() {
            anyhow::bail!("ended in round {} of {rounds}", round + 1);
        }
        one_round(session, round, &mut measured);
    }
    for mode in &MODES {
        for system in mode.systems {
            let rounds: Vec<Round> = measured
                .iter()
                .filter(|(of_mode, of_system, _)| of_mode == mode && of_system == system)
                .map(|(_, _, round)| round.clone())
                .collect();
            let series = Series::of(mode.name, mode.group, mode.http, system.as_str(), rounds);
            let place = if mode.http == 2 { &mut results.http2 } else { &mut results.side_by_side };
            place.extend(series);
        }
    }
    Ok(())
}

fn one_round(session: &mut Session, round: usize, measured: &mut Vec<(Mode, System, Round)>) {
    let mut order = System::ALL;
    order.rotate_left(round % System::ALL.len());
    let mut up: Vec<(System, Running)> = Vec::new();
    for system in order {
        match session.start(system, FactsSet::Full) {
            Ok(running) => up.push((system, running)),
            Err(error) => session.fail(&format!("side by side, {}", system.as_str()), &error),
        }
    }
    for (system, running) in &up {
        if let Err(error) = warm(session, round, running) {
            session.fail(&format!("side by side, warming up {}", system.as_str()), &error);
        }
    }
    for mode in &MODES {
        for (system, running) in &up {
            if !mode.systems.contains(system) || stopped() {
                continue;
            }
            match one(session, round, mode, *system, running) {
                Ok(done) => measured.push((*mode, *system, done)),
                Err(error) => {
                    let what = format!(
                        "side by side, {} {}{}, {}, round {}",
                        mode.name,
                        mode.group,
                        if mode.http == 2 { " HTTP/2" } else { "" },
                        system.as_str(),
                        round + 1
                    );
                    session.fail(&what, &error);
                }
            }
        }
    }
    for (system, running) in up {
        if let Err(error) = running.stop() {
            session.fail(&format!("stopping {}", system.as_str()), &error);
        }
    }
}

/// Work that is not counted, by terminals that no mode of this round takes: whatever a process does
/// only for its first clients is no cost of the mode that happens to be measured first.
fn warm(session: &mut Session, round: usize, running: &Running) -> anyhow::Result<()> {
    let part_terminals = session.terminals / rounds(session.quick);
    let from = (round + 1) * part_terminals - WARM_TERMINALS;
    let mut args = words(&["--mode", "returning", "--group", "x25519", "--threads", "1"]);
    args.extend(words(&["--connections", CONNECTIONS, "--requests", WARM_REQUESTS]));
    args.extend(words(&["--certs-from", &from.to_string()]));
    args.extend(words(&["--certs-count", &WARM_TERMINALS.to_string()]));
    let _: RunAnswer = session.load("run", &running.url, &args, ONE_WITHIN)?;
    Ok(())
}

fn one(
    session: &mut Session,
    round: usize,
    mode: &Mode,
    system: System,
    running: &Running,
) -> anyhow::Result<Round> {
    let all = rounds(session.quick);
    let Share { from, count, operations } =
        mode.share(system, round, session.quick, session.terminals);
    let mut args = words(&["--mode", mode.name, "--group", mode.group]);
    args.extend(words(&["--http", &mode.http.to_string(), "--threads", "1"]));
    args.extend(words(&["--requests", &operations.to_string()]));
    args.extend(words(&["--certs-from", &from.to_string(), "--certs-count", &count.to_string()]));
    args.extend(words(&["--pid", &running.pid.to_string()]));
    if mode.http == 2 {
        args.extend(words(&["--connections", HTTP2_CONNECTIONS, "--streams", HTTP2_STREAMS]));
    } else {
        args.extend(words(&["--connections", CONNECTIONS]));
    }
    let (started_at, lost) = (now(), running.feeds_lost());
    let answer: RunAnswer = session.load("run", &running.url, &args, ONE_WITHIN)?;
    if running.feeds_lost() > lost {
        anyhow::bail!("the gateway lost a feed of facts meanwhile and took a snapshot anew");
    }
    let done = figures(session, round, started_at, &answer)?;
    session.say(&format!(
        "round {}/{all} {:<9} {:<6} HTTP/{} {:<17} {:>7.1} µs CPU {:>7.0}/s{}",
        round + 1,
        mode.name,
        mode.group,
        mode.http,
        system.as_str(),
        done.cpu_us,
        done.per_second,
        if done.failures > 0 { format!(" {} failures", done.failures) } else { String::new() }
    ));
    Ok(done)
}

fn figures(
    session: &Session,
    round: usize,
    started_at: String,
    answer: &RunAnswer,
) -> anyhow::Result<Round> {
    let Some(cpu) = answer.cpu else { anyhow::bail!("no CPU time was told") };
    let Some(latency) = answer.latency else { anyhow::bail!("no latency was told") };
    let made = answer.connections_made.max(1);
    Ok(Round {
        run: session.run.clone(),
        round: round + 1,
        started_at,
        seconds: answer.seconds,
        cpu_us: cpu.seconds * 1e6 / answer.good().max(1) as f64,
        cpu_seconds: cpu.seconds,
        per_second: answer.per_second,
        p50_us: latency.p50_us,
        p99_us: latency.p99_us,
        operations: answer.good(),
        failures: answer.failed(),
        resumed_share: answer.connections_resumed as f64 / made as f64,
        generator_busy: answer.generator.busy,
    })
}

pub(crate) fn rounds(quick: bool) -> usize {
    if quick { 3 } else { 5 }
}

const EVERY: &[System] = &System::ALL;
const WHOLE: &[System] = &[System::Nginx, System::Haproxy, System::Async, System::Durable];
const HTTP2: &[System] = &[System::Nginx, System::Haproxy, System::Async];
const OURS: &[System] = &[System::Async];

/// New terminals come first in a round: nobody has been there before them.
const MODES: [Mode; 7] = [
    Mode {
        name: "handshake",
        group: "x25519",
        http: 1,
        systems: EVERY,
        part: 0,
        terminals: None,
        operations: [1_100, 1_100, 3_900],
    },
    Mode {
        name: "handshake",
        group: "hybrid",
        http: 1,
        systems: OURS,
        part: 1,
        terminals: None,
        operations: [0, 0, 3_900],
    },
    Mode {
        name: "returning",
        group: "x25519",
        http: 1,
        systems: WHOLE,
        part: 0,
        terminals: Some(RETURNING_TERMINALS),
        operations: [1_100, 1_100, 5_000],
    },
    Mode {
        name: "resumed",
        group: "x25519",
        http: 1,
        systems: WHOLE,
        part: 0,
        terminals: Some(RETURNING_TERMINALS),
        operations: [2_000, 2_000, 6_500],
    },
    Mode {
        name: "resumed",
        group: "hybrid",
        http: 1,
        systems: OURS,
        part: 0,
        terminals: Some(RETURNING_TERMINALS),
        operations: [0, 0, 6_000],
    },
    Mode {
        name: "keepalive",
        group: "x25519",
        http: 1,
        systems: EVERY,
        part: 2,
        terminals: Some(KEPT_TERMINALS),
        operations: [60_000, 70_000, 45_000],
    },
    Mode {
        name: "keepalive",
        group: "x25519",
        http: 2,
        systems: HTTP2,
        part: 2,
        terminals: Some(KEPT_TERMINALS),
        operations: [50_000, 80_000, 30_000],
    },
];

const WARM_TERMINALS: usize = 64;
const WARM_REQUESTS: &str = "400";
const RETURNING_TERMINALS: usize = 500;
const KEPT_TERMINALS: usize = 32;
const CONNECTIONS: &str = "32";
pub(crate) const HTTP2_CONNECTIONS: &str = "8";
pub(crate) const HTTP2_STREAMS: &str = "8";
/// Far more than any of them takes on a quiet machine.
const ONE_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_terminals_are_new_to_the_gateway_of_their_round() {
        for (quick, round) in [(true, 0), (true, 2), (false, 0), (false, 4)] {
            let mut seen: Vec<Share> = Vec::new();
            for mode in &MODES {
                let share = mode.share(System::Async, round, quick, 20_000);
                let warm = (round + 1) * (20_000 / rounds(quick)) - WARM_TERMINALS;
                assert!(share.from + share.count <= warm || share.from > warm, "{share:?}");
                let overlaps = |other: &Share| {
                    share.from < other.from + other.count && other.from < share.from + share.count
                };
                if mode.name == "handshake" {
                    assert!(!seen.iter().any(overlaps), "{mode:?} {share:?} {seen:?}");
                    assert_eq!(share.operations, share.count);
                }
                if mode.name == "returning" {
                    let first = seen.first().unwrap();
                    let visited = share.from == first.from && share.count <= first.count;
                    assert!(visited, "returning terminals have been there: {share:?} {first:?}");
                }
                seen.push(share);
            }
        }
    }

    #[test]
    fn no_terminal_is_new_in_two_rounds() {
        for quick in [true, false] {
            let mode = &MODES[0];
            let shares =
                (0..rounds(quick)).map(|round| mode.share(System::Async, round, quick, 20_000));
            let mut shares: Vec<Share> = shares.collect();
            shares.sort_by_key(|share| share.from);
            assert!(shares.windows(2).all(|pair| pair[0].from + pair[0].count <= pair[1].from));
            assert!(shares.iter().all(|share| share.from + share.count <= 20_000));
        }
    }
}
