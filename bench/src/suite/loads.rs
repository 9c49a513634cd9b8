//! The measurements beside the rounds: latency at a fixed rate, the mass of revocations, idle
//! connections, the storm, slow clients, streams, and the office day.

use std::time::Duration;

use anyhow::Context as _;

use crate::lab::{FactsSet, Running, System};

use super::answers::{
    IdleAnswer, RevocationAnswer, RunAnswer, SlowAnswer, StormAnswer, StreamAnswer,
};
use super::results::{
    Day, Idle, OpenLoop, OpenRound, Percentiles, Results, SetCost, SetPair, Streaming, median,
};
use super::session::{Session, now, words};

/// Latency at half of each system's own highest throughput, and what of it the system added.
///
/// # Errors
/// If a system does not start; single measurements that fail are noted in the session.
pub(crate) fn open_loop(
    session: &mut Session,
    results: &mut Results,
    backend: &Running,
) -> anyhow::Result<()> {
    for system in [System::Nginx, System::Haproxy, System::Async, System::Durable] {
        let most = results.series("keepalive", "x25519", system.as_str());
        let Some(most) = most.map(|series| series.median.per_second) else {
            let why = anyhow::anyhow!("its highest throughput was not measured");
            session.fail(&format!("open loop, {}", system.as_str()), &why);
            continue;
        };
        match open_loop_of(session, system, most, backend) {
            Ok(measured) => results.open_loop.push(measured),
            Err(error) => session.fail(&format!("open loop, {}", system.as_str()), &error),
        }
    }
    Ok(())
}

fn open_loop_of(
    session: &mut Session,
    system: System,
    most_per_second: f64,
    backend: &Running,
) -> anyhow::Result<OpenLoop> {
    let rate = (most_per_second / 2.0).round();
    let running = session.start(system, FactsSet::Full)?;
    let pairs = if session.quick { 1 } else { 3 };
    let mut rounds = Vec::new();
    for _ in 0..pairs {
        let started_at = now();
        let through = at_rate(session, &running.url, Some(running.pid), rate)?;
        let straight = at_rate(session, &backend.url, None, rate)?;
        rounds.push(OpenRound {
            started_at,
            failures: through.failed() + straight.failed(),
            generator_busy: through.generator.busy,
            through: through.latency.context("no latency was told")?,
            straight: straight.latency.context("no latency was told")?,
        });
    }
    running.stop()?;
    let over = |figure: fn(&OpenRound) -> f64| {
        median(&rounds.iter().map(figure).collect::<Vec<_>>()).unwrap_or_default()
    };
    let measured = OpenLoop {
        system: system.as_str().to_owned(),
        most_per_second,
        rate,
        through: Percentiles {
            p50_us: over(|round| round.through.p50_us as f64),
            p99_us: over(|round| round.through.p99_us as f64),
        },
        straight: Percentiles {
            p50_us: over(|round| round.straight.p50_us as f64),
            p99_us: over(|round| round.straight.p99_us as f64),
        },
        added: Percentiles {
            p50_us: over(|round| round.through.p50_us as f64 - round.straight.p50_us as f64),
            p99_us: over(|round| round.through.p99_us as f64 - round.straight.p99_us as f64),
        },
        rounds,
    };
    session.say(&format!(
        "open loop {:<17} {rate:.0}/s: p50 {:.0} µs, p99 {:.0} µs; added {:.0} and {:.0}",
        measured.system,
        measured.through.p50_us,
        measured.through.p99_us,
        measured.added.p50_us,
        measured.added.p99_us
    ));
    Ok(measured)
}

fn at_rate(
    session: &mut Session,
    url: &str,
    pid: Option<u32>,
    rate: f64,
) -> anyhow::Result<RunAnswer> {
    let seconds = "2";
    let mut args = words(&["--mode", "keepalive", "--group", "x25519", "--threads", "1"]);
    args.extend(words(&["--connections", "32", "--certs-count", "32"]));
    args.extend(words(&["--rate", &format!("{rate:.0}"), "--duration-s", seconds]));
    if let Some(pid) = pid {
        args.extend(words(&["--pid", &pid.to_string()]));
    }
    few_failures(session.load("run", url, &args, Duration::from_secs(60))?)
}

/// A figure of work that was not done is no figure.
fn few_failures(answer: RunAnswer) -> anyhow::Result<RunAnswer> {
    let (failed, good) = (answer.failed(), answer.good());
    if good == 0 || failed * 1_000 > good + failed {
        let RunAnswer { statuses, failures, .. } = answer;
        anyhow::bail!("{failed} of {} failed: {statuses:?} {failures:?}", good + failed);
    }
    Ok(answer)
}

/// The cost of a handshake and a request with the mass of revocations and without it, in pairs.
///
/// # Errors
/// If a gateway or its facts do not start, or a measurement fails.
pub(crate) fn revocation_set(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let facts = session.start_facts(FactsSet::Unrevoked)?;
    let with = session.start(System::Async, FactsSet::Full)?;
    let without = session.start(System::Async, FactsSet::Unrevoked)?;
    let pairs = if session.quick { 2 } else { 5 };
    let part = session.terminals / pairs;
    for (mode, operations) in [("handshake", part.min(2_800)), ("keepalive", 32_000)] {
        let operations = if session.quick { operations / 2 } else { operations };
        let mut measured = Vec::new();
        for pair in 0..pairs {
            let from = pair * part;
            let terminals = if mode == "handshake" { operations } else { 32 };
            let args = set_args(mode, operations, from, terminals);
            let mut one = |running: &Running| cpu_us(session, running, &args);
            // The first of a pair and the second are not the same place: turn them.
            let ((with_us, some), (without_us, more)) = if pair % 2 == 0 {
                let first = one(&with)?;
                (first, one(&without)?)
            } else {
                let first = one(&without)?;
                (one(&with)?, first)
            };
            measured.push(SetPair { with_us, without_us, failures: some + more });
        }
        let cost = set_cost(mode, measured);
        session.say(&format!(
            "revocation set, {mode}: {:.1} µs with, {:.1} µs without: {:+.1} %",
            cost.with_us, cost.without_us, cost.change_percent
        ));
        results.revocation_set.push(cost);
    }
    with.stop()?;
    without.stop()?;
    facts.stop()
}

fn set_args(mode: &str, operations: usize, from: usize, terminals: usize) -> Vec<String> {
    let mut args = words(&["--mode", mode, "--group", "x25519", "--threads", "1"]);
    args.extend(words(&["--connections", "32", "--requests", &operations.to_string()]));
    args.extend(words(&["--certs-from", &from.to_string()]));
    args.extend(words(&["--certs-count", &terminals.to_string()]));
    args
}

fn cpu_us(session: &mut Session, running: &Running, args: &[String]) -> anyhow::Result<(f64, u64)> {
    let mut args = args.to_vec();
    args.extend(words(&["--pid", &running.pid.to_string()]));
    let answer = session.load("run", &running.url, &args, Duration::from_secs(60))?;
    let answer = few_failures(answer)?;
    let cpu = answer.cpu.context("no CPU time was told")?;
    Ok((cpu.seconds * 1e6 / answer.good().max(1) as f64, answer.failed()))
}

pub(crate) fn set_cost(mode: &str, pairs: Vec<SetPair>) -> SetCost {
    let over = |figure: fn(&SetPair) -> f64| {
        median(&pairs.iter().map(figure).collect::<Vec<_>>()).unwrap_or_default()
    };
    SetCost {
        mode: mode.to_owned(),
        with_us: over(|pair| pair.with_us),
        without_us: over(|pair| pair.without_us),
        change_percent: over(|pair| (pair.with_us / pair.without_us - 1.0) * 100.0),
        pairs,
    }
}

/// From a revocation to the first refusal. The terminals that are revoked are the last ones.
///
/// # Errors
/// If the gateway does not start or the measurement fails.
pub(crate) fn revocation_timing(
    session: &mut Session,
    results: &mut Results,
) -> anyhow::Result<()> {
    let running = session.start(System::Async, FactsSet::Full)?;
    let rounds = if session.quick { 5 } else { 20 };
    let from = session.terminals.saturating_sub(rounds);
    let revoke = session.lab()?.revoke_command(FactsSet::Full, session.program());
    let mut args = words(&["--revoke", &revoke, "--rounds", &rounds.to_string()]);
    args.extend(words(&["--certs-from", &from.to_string()]));
    args.extend(words(&["--certs-count", &rounds.to_string()]));
    let within = Duration::from_secs(120);
    let answer: RevocationAnswer = session.load("revocation", &running.url, &args, within)?;
    running.stop()?;
    session.say(&format!("revocation timing: {} revoked", answer.revoked));
    results.revocation_timing = Some(answer);
    Ok(())
}

/// Memory of connections that say nothing.
///
/// # Errors
/// Never: what fails is noted in the session.
pub(crate) fn idle(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    for system in [System::Async, System::Nginx, System::Haproxy] {
        match idle_of(session, system) {
            Ok(answer) => results.idle.push(Idle { system: system.as_str().to_owned(), answer }),
            Err(error) => session.fail(&format!("idle, {}", system.as_str()), &error),
        }
    }
    Ok(())
}

fn idle_of(session: &mut Session, system: System) -> anyhow::Result<IdleAnswer> {
    // A mass of facts leaves freed memory behind, in which connections would hide.
    let running = session.start(system, FactsSet::Bare)?;
    let connections = if session.quick { "1000" } else { "10000" };
    let mut args = words(&["--connections", connections, "--requests-first", "1"]);
    args.extend(words(&["--group", "x25519", "--source-addresses", "16"]));
    args.extend(words(&["--certs-count", &session.terminals.min(10_000).to_string()]));
    args.extend(words(&["--pid", &running.pid.to_string()]));
    let within = Duration::from_secs(120);
    let answer: IdleAnswer = session.load("idle", &running.url, &args, within)?;
    running.stop()?;
    session.say(&format!(
        "idle {:<17} {} connections, {:.0} bytes each",
        system.as_str(),
        answer.connections,
        answer.bytes_per_connection.unwrap_or_default()
    ));
    Ok(answer)
}

/// All terminals of the fixture come back at once.
///
/// # Errors
/// If the gateway does not start or the measurement fails.
pub(crate) fn storm(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let running = session.start(System::Async, FactsSet::Full)?;
    let terminals = if session.quick { session.terminals.min(4_000) } else { session.terminals };
    let mut args = words(&["--established", "64", "--arrive-within-ms", "1000"]);
    args.extend(words(&["--tries", "1", "--source-addresses", "64"]));
    args.extend(words(&["--certs-count", &terminals.to_string()]));
    args.extend(words(&["--pid", &running.pid.to_string()]));
    let within = Duration::from_secs(120);
    let answer: StormAnswer = session.load("storm", &running.url, &args, within)?;
    running.stop()?;
    session.say(&format!(
        "storm: {} of {} answered in {:.1} s, {} errors",
        answer.answered,
        answer.terminals,
        answer.seconds,
        answer.failures.values().sum::<u64>()
    ));
    results.storm = Some(answer);
    Ok(())
}

/// Slow and silent clients beside good ones.
///
/// # Errors
/// If the gateway does not start or the measurement fails.
pub(crate) fn slow_clients(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let running = session.start(System::Async, FactsSet::Full)?;
    let (slow, seconds) = if session.quick { ("40", "3") } else { ("200", "14") };
    let mut args = words(&["--slow", slow, "--good", "32", "--duration-s", seconds]);
    let (_, post_path, content_type) = session.lab()?.upload();
    args.extend(words(&["--post-path", &post_path, "--content-type", &content_type]));
    args.extend(words(&["--certs-count", "2000", "--pid", &running.pid.to_string()]));
    let within = Duration::from_secs(150);
    let answer: SlowAnswer = session.load("slow-clients", &running.url, &args, within)?;
    running.stop()?;
    session.say(&format!(
        "slow clients: good ones {:.0}/s alone, {:.0}/s beside them",
        answer.alone.per_second, answer.beside.per_second
    ));
    results.slow_clients = Some(answer);
    Ok(())
}

/// Large bodies, the gateway and nginx in turn.
///
/// # Errors
/// If a system does not start; what else fails is noted in the session.
pub(crate) fn streaming(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let rounds = if session.quick { 2 } else { 3 };
    for direction in ["down", "up"] {
        let ours = session.start(System::Async, FactsSet::Full)?;
        let theirs = session.start(System::Nginx, FactsSet::Full)?;
        let sides = [(System::Async, ours), (System::Nginx, theirs)];
        let mut answers: [Vec<StreamAnswer>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for ((system, running), answers) in sides.iter().zip(&mut answers) {
                match stream(session, *system, running, direction) {
                    Ok(answer) => answers.push(answer),
                    Err(error) => {
                        let what = format!("streaming {direction}, {}", system.as_str());
                        session.fail(&what, &error);
                    }
                }
            }
        }
        for ((system, running), rounds) in sides.into_iter().zip(answers) {
            running.stop()?;
            results.streaming.extend(streaming_of(system, direction, rounds));
        }
    }
    Ok(())
}

fn stream(
    session: &mut Session,
    system: System,
    running: &Running,
    direction: &str,
) -> anyhow::Result<StreamAnswer> {
    let bytes: u64 = if session.quick { 256 << 20 } else { 1 << 30 };
    let mut args = words(&["--direction", direction, "--bytes", &bytes.to_string()]);
    args.extend(words(&["--streams", "1", "--group", "x25519", "--certs-count", "1"]));
    args.extend(words(&["--pid", &running.pid.to_string()]));
    if direction == "up" {
        let (method, path, content_type) = session.lab()?.upload();
        args.extend(words(&["--method", &method, "--path", &path]));
        args.extend(words(&["--content-type", &content_type]));
    }
    let within = Duration::from_secs(60);
    let answer: StreamAnswer = session.load("stream", &running.url, &args, within)?;
    let refused = answer.statuses.keys().any(|status| !status.starts_with('2'));
    if refused || answer.failures.values().any(|count| *count > 0) {
        anyhow::bail!("statuses {:?}, failures {:?}", answer.statuses, answer.failures);
    }
    session.say(&format!(
        "streaming {direction:<4} {:<17} {:.0} MiB/s",
        system.as_str(),
        answer.mib_per_second
    ));
    Ok(answer)
}

fn streaming_of(system: System, direction: &str, rounds: Vec<StreamAnswer>) -> Option<Streaming> {
    let speeds: Vec<f64> = rounds.iter().map(|round| round.mib_per_second).collect();
    let costs: Vec<f64> = rounds.iter().filter_map(|round| round.cpu_us_per_mib).collect();
    Some(Streaming {
        system: system.as_str().to_owned(),
        direction: direction.to_owned(),
        mib_per_second: median(&speeds)?,
        cpu_us_per_mib: median(&costs),
        rounds,
    })
}

/// An office day, its hours shortened.
///
/// # Errors
/// If the gateway does not start or the measurement fails.
pub(crate) fn day(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let running = session.start(System::Async, FactsSet::Full)?;
    let hour_ms: u64 = if session.quick { 200 } else { 750 };
    let rate = DAY_RATE.to_string();
    let mut args = words(&["--mode", "day", "--first-to-tenth", "--threads", "1"]);
    args.extend(words(&["--hour-ms", &hour_ms.to_string(), "--rate", &rate]));
    // Read before the day begins, which takes its time.
    let terminals = if session.quick { session.terminals.min(4_000) } else { session.terminals };
    args.extend(words(&["--certs-count", &terminals.to_string()]));
    args.extend(words(&["--group", "x25519", "--pid", &running.pid.to_string()]));
    let answer: RunAnswer = session.load("run", &running.url, &args, Duration::from_secs(120))?;
    running.stop()?;
    session.say(&format!("office day: {} answered, {} failed", answer.answered, answer.failed()));
    let failures = answer.failed();
    results.day = Some(Day {
        system: System::Async.as_str().to_owned(),
        hour_ms,
        answered: answer.answered,
        failures,
        cpu_us: answer.cpu.map(|cpu| cpu.us_per_operation),
        latency: answer.latency,
        hours: answer.hours.unwrap_or_default(),
    });
    Ok(())
}

/// Requests a second in the busiest hour: a node's head-room by the sizing of the exchange.
const DAY_RATE: u32 = 5_000;
