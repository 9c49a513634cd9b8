//! The goals of the project, row by row: what this run found, how far it is from the goal, and for
//! rows that it could not measure whole, what is missing.

use super::results::{Goal, OpenLoop, Results, SetCost, SetPair, Streaming, least, most, rounded};

/// All rows, in the order of the goals table.
pub(crate) fn rows(results: &Results) -> Vec<Goal> {
    let mut rows = ratio_rows(results);
    rows.push(hybrid_row(results));
    rows.extend(latency_rows(results));
    rows.extend(decision_rows(results));
    rows.extend(revocation_rows(results));
    rows.push(idle_row(results));
    rows.extend(storm_rows(results));
    rows.push(issuing_row(results));
    rows.extend(audit_rows(results));
    rows.extend(streaming_rows(results));
    rows
}

/// A goal that is an upper bound.
struct AtMost<'a> {
    row: &'a str,
    goal: &'a str,
    bound: f64,
    unit: &'a str,
    digits: usize,
}

impl AtMost<'_> {
    fn row(&self, measured: Option<f64>, why_not: &str) -> Goal {
        let Some(measured) = measured else { return missing(self.row, self.goal, why_not) };
        let met = measured <= self.bound;
        let distance = if met {
            let below = (1.0 - measured / self.bound) * 100.0;
            format!("{below:.0} % below")
        } else {
            format!("{:.2}× the goal", measured / self.bound)
        };
        Goal {
            row: self.row.to_owned(),
            goal: self.goal.to_owned(),
            measured: Some(format!("{measured:.*}{}", self.digits, self.unit)),
            distance: Some(distance),
            met: Some(met),
            why_not: None,
        }
    }
}

/// A goal that is a lower bound.
fn at_least(row: &str, goal: &str, bound: f64, unit: &str, measured: Option<f64>) -> Goal {
    let Some(measured) = measured else { return missing(row, goal, NOT_MEASURED) };
    let met = measured >= bound;
    let distance = if met {
        format!("{:.0} % above", (measured / bound - 1.0) * 100.0)
    } else {
        format!("{:.2}× of the goal", measured / bound)
    };
    Goal {
        row: row.to_owned(),
        goal: goal.to_owned(),
        measured: Some(format!("{}{unit}", thousands(measured))),
        distance: Some(distance),
        met: Some(met),
        why_not: None,
    }
}

fn missing(row: &str, goal: &str, why_not: &str) -> Goal {
    Goal {
        row: row.to_owned(),
        goal: goal.to_owned(),
        measured: None,
        distance: None,
        met: None,
        why_not: Some(why_not.to_owned()),
    }
}

/// What was found at a smaller scale than the goal's tells nothing about the goal.
fn smaller(mut goal: Goal, is_smaller: bool, why_not: &str) -> Goal {
    if is_smaller && goal.measured.is_some() {
        goal.met = None;
        goal.why_not = Some(why_not.to_owned());
    }
    goal
}

fn ratio_rows(results: &Results) -> Vec<Goal> {
    let rows = [
        ("keepalive_cpu_vs_haproxy", "CPU per keep-alive request, vs HAProxy", 1.0),
        ("keepalive_cpu_vs_nginx", "CPU per keep-alive request, vs nginx (first step)", 1.0),
        ("handshake_cpu_vs_nginx", "CPU per new full mTLS handshake, vs nginx", 0.25),
        ("returning_cpu_vs_nginx", "CPU per handshake of a returning terminal, vs nginx", 0.18),
        ("resumed_cpu_vs_nginx", "CPU per resumed connection, vs nginx resumed", 0.25),
    ];
    rows.into_iter()
        .map(|(name, row, bound)| {
            let why = results.ratios_refused.get(name).map_or(NOT_MEASURED, String::as_str);
            let goal = format!("≤ {bound:.2}×");
            let at_most = AtMost { row, goal: &goal, bound, unit: "×", digits: 2 };
            at_most.row(results.ratios.get(name).copied(), why)
        })
        .collect()
}

/// The hybrid key exchange is a line of its own without a bound that peers could be held against.
fn hybrid_row(results: &Results) -> Goal {
    let cpu = |group| results.series("handshake", group, ASYNC).map(|s| s.median.cpu_us);
    let (row, goal) = ("X25519MLKEM768 on a new full handshake", "about +23 µs");
    let (Some(hybrid), Some(plain)) = (cpu("hybrid"), cpu("x25519")) else {
        return missing(row, goal, NOT_MEASURED);
    };
    let more = hybrid - plain;
    Goal {
        row: row.to_owned(),
        goal: goal.to_owned(),
        measured: Some(format!("{more:+.0} µs ({plain:.0} to {hybrid:.0} µs)")),
        distance: Some(format!("{:+.0} µs", more - HYBRID_US)),
        met: None,
        why_not: Some("a line of its own: the goal is an expectation, no bound".to_owned()),
    }
}

fn latency_rows(results: &Results) -> Vec<Goal> {
    let of = |system: &str| results.open_loop.iter().find(|open| open.system == system);
    let durable = |figure: fn(&OpenLoop) -> f64| {
        Some((figure(of("gateway-durable")?) - figure(of(ASYNC)?)) / 1_000.0)
    };
    let commit = results.audit.as_ref().map(|audit| audit.some_callers.latency);
    let p50 = |open: &OpenLoop| open.added.p50_us;
    let p99 = |open: &OpenLoop| open.added.p99_us;
    let mut rows = Vec::new();
    for (row, goal, bound, measured) in [
        ("added latency at half load, p50", "≤ 0.3 ms", 0.3, of(ASYNC).map(p50)),
        ("added latency at half load, p99", "≤ 2 ms", 2.0, of(ASYNC).map(p99)),
    ] {
        let at_most = AtMost { row, goal, bound, unit: " ms", digits: 3 };
        rows.push(at_most.row(measured.map(|us| us / 1_000.0), NOT_MEASURED));
    }
    for (name, bound, measured) in [
        ("p50", commit.map(|latency| latency.p50_us), durable(p50)),
        ("p99", commit.map(|latency| latency.p99_us), durable(p99)),
    ] {
        let row = format!("durable audit on top of it, {name}");
        let Some(bound) = bound.map(|us| us as f64 / 1_000.0) else {
            rows.push(missing(&row, "+ 1 group commit", "the group commit was not measured"));
            continue;
        };
        let goal = format!("+ 1 group commit ({bound:.2} ms with 32 waiting)");
        let at_most = AtMost { row: &row, goal: &goal, bound, unit: " ms", digits: 3 };
        rows.push(at_most.row(measured, NOT_MEASURED));
    }
    rows
}

fn decision_rows(results: &Results) -> Vec<Goal> {
    let decision = results.decision.as_ref();
    let few = decision.is_some_and(|decision| decision.registrations < 40_000_000);
    let why = "measured with fewer than the goal's 40 million registrations";
    let us = |ns: f64| ns / 1_000.0;
    let p50 = AtMost {
        row: "decision, random persons, p50",
        goal: "≤ 0.3 µs",
        bound: 0.3,
        unit: " µs",
        digits: 3,
    };
    let p99 = AtMost {
        row: "decision, random persons, p99",
        goal: "≤ 1 µs",
        bound: 1.0,
        unit: " µs",
        digits: 3,
    };
    let bytes = AtMost {
        row: "memory per registration",
        goal: "≤ 12 bytes",
        bound: 12.0,
        unit: " bytes",
        digits: 1,
    };
    let build = decision.map(|decision| {
        format!(
            "{:.1} s to put {} registrations into memory in one process",
            decision.build_seconds,
            thousands(decision.registrations as f64)
        )
    });
    vec![
        smaller(p50.row(decision.map(|d| us(d.spread.p50_ns)), NOT_MEASURED), few, why),
        smaller(p99.row(decision.map(|d| us(d.spread.p99_ns)), NOT_MEASURED), few, why),
        smaller(bytes.row(decision.map(|d| d.bytes_per_registration), NOT_MEASURED), few, why),
        Goal {
            measured: build,
            ..missing(
                "cold start of the gateway from its local copy",
                "≤ 10 s",
                "not part of the suite, for its memory and minutes: `sekisho-bench cold-start` \
                 starts the gateway on a local copy; the figure is the building of the table alone",
            )
        },
    ]
}

fn revocation_rows(results: &Results) -> Vec<Goal> {
    let change = |mode: &str| {
        let cost: Option<&SetCost> = results.revocation_set.iter().find(|cost| cost.mode == mode);
        cost.map(|cost| cost.change_percent)
    };
    let mut rows = Vec::new();
    for (mode, row) in [
        ("handshake", "1,000,000 revocations: handshake cost"),
        ("keepalive", "1,000,000 revocations: request cost"),
    ] {
        let goal = "≤ 2 % more";
        let Some(change) = change(mode) else {
            rows.push(missing(row, goal, NOT_MEASURED));
            continue;
        };
        let few = results.facts.revocations < 1_000_000;
        let told = Goal {
            row: row.to_owned(),
            goal: goal.to_owned(),
            measured: Some(format!("{change:+.1} %")),
            distance: Some(format!("{:+.1} points", change - 2.0)),
            met: Some(change <= 2.0),
            why_not: None,
        };
        let told = smaller(told, few, "measured with fewer than the goal's 1,000,000 revocations");
        rows.push(noisy(told, results.revocation_set.iter().find(|cost| cost.mode == mode)));
    }
    let timing = results.revocation_timing.as_ref();
    for (row, latency) in [
        ("revoked to refused, live HTTP/1.1, p99", timing.and_then(|timing| timing.live_http1)),
        ("revoked to refused, live HTTP/2, p99", timing.and_then(|timing| timing.live_http2)),
        ("revoked to refused, resumed sessions, p99", timing.and_then(|timing| timing.resumed)),
    ] {
        let at_most = AtMost { row, goal: "≤ 1 s", bound: 1_000.0, unit: " ms", digits: 1 };
        let not_refused = timing.map_or(0, |timing| timing.not_refused);
        let measured = latency.map(|latency| latency.p99_us as f64 / 1_000.0);
        let mut row = at_most.row(measured, NOT_MEASURED);
        if not_refused > 0 {
            row.met = Some(false);
            row.why_not = Some(format!("{not_refused} were never refused"));
        }
        rows.push(row);
    }
    rows
}

/// Pairs that lie further apart than the bound say nothing about it.
fn noisy(mut goal: Goal, cost: Option<&SetCost>) -> Goal {
    let percent = |pair: &SetPair| (pair.with_us / pair.without_us - 1.0) * 100.0;
    let pairs: Vec<f64> = cost.iter().flat_map(|cost| cost.pairs.iter().map(percent)).collect();
    let (Some(least), Some(most)) = (least(&pairs), most(&pairs)) else { return goal };
    if most - least > 2.0 {
        goal.met = None;
        goal.why_not = Some(format!("its pairs lie between {least:+.1} and {most:+.1} %"));
    }
    goal
}

fn idle_row(results: &Results) -> Goal {
    let ours = results.idle.iter().find(|idle| idle.system == ASYNC).map(|idle| &idle.answer);
    let at_most = AtMost {
        row: "memory per idle mTLS connection",
        goal: "≤ 16 KB at 10,000 connections",
        bound: 16.0,
        unit: " KB",
        digits: 1,
    };
    let measured = ours.and_then(|idle| idle.bytes_per_connection).map(|bytes| bytes / 1_000.0);
    let mut goal = at_most.row(measured, NOT_MEASURED);
    let failures = ours.map_or(0, |idle| idle.failures.values().sum::<u64>());
    if failures > 0 {
        goal.met = Some(false);
        goal.why_not = Some(format!("{failures} connections failed"));
    }
    let few = ours.is_some_and(|idle| idle.connections < 10_000);
    smaller(goal, few, "measured with fewer connections than the goal's 10,000")
}

fn storm_rows(results: &Results) -> Vec<Goal> {
    let storm = results.storm.as_ref();
    let few = storm.is_some_and(|storm| storm.terminals < 20_000);
    let why = "measured with fewer terminals than the goal's 20,000";
    let (row, goal) = ("reconnect storm: terminals without an error", "all of 20,000");
    let errors = match storm {
        None => missing(row, goal, NOT_MEASURED),
        Some(storm) => {
            let refused: u64 = storm
                .statuses
                .iter()
                .filter(|(status, _)| *status != "200")
                .map(|(_, count)| count)
                .sum();
            let errors = storm.failures.values().sum::<u64>()
                + storm.established.failures.values().sum::<u64>()
                + refused;
            let measured = format!(
                "{} of {} answered, {errors} errors, {} retries",
                thousands(storm.answered as f64),
                thousands(storm.terminals as f64),
                storm.retries
            );
            Goal {
                row: row.to_owned(),
                goal: goal.to_owned(),
                measured: Some(measured),
                distance: Some(format!("{errors} errors")),
                met: Some(errors == 0 && storm.answered >= storm.terminals),
                why_not: None,
            }
        }
    };
    let at_most = AtMost {
        row: "reconnect storm: p99 of established clients",
        goal: "≤ 50 ms",
        bound: 50.0,
        unit: " ms",
        digits: 1,
    };
    let during = storm.and_then(|storm| storm.established.during);
    let p99 = at_most.row(during.map(|latency| latency.p99_us as f64 / 1_000.0), NOT_MEASURED);
    vec![smaller(errors, few, why), smaller(p99, few, why)]
}

fn issuing_row(results: &Results) -> Goal {
    let at_most = AtMost {
        row: "issuing 250,000 terminal certificates",
        goal: "≤ 300 s on 2 cores",
        bound: 300.0,
        unit: " s",
        digits: 0,
    };
    let issuing = results.issuing.as_ref();
    let mut goal = at_most.row(issuing.map(|issuing| issuing.seconds_for_250000), NOT_MEASURED);
    if let Some(issuing) = issuing {
        let why_not = format!(
            "reckoned from {} certificates on {} cores",
            thousands(issuing.certificates as f64),
            results.machine.cores
        );
        goal = smaller(goal, true, &why_not);
    }
    goal
}

fn audit_rows(results: &Results) -> Vec<Goal> {
    let audit = results.audit.as_ref();
    vec![
        at_least(
            "durable audit records with group commit",
            "≥ 50,000/s",
            50_000.0,
            "/s",
            audit.map(|audit| audit.many_callers.records_per_second),
        ),
        at_least(
            "`audit verify`",
            "≥ 1,000,000 records/s",
            1_000_000.0,
            "/s",
            audit.map(|audit| audit.verify.records_per_second),
        ),
    ]
}

fn streaming_rows(results: &Results) -> Vec<Goal> {
    let of = |system: &str, direction: &str| -> Option<&Streaming> {
        results
            .streaming
            .iter()
            .find(|stream| stream.system == system && stream.direction == direction)
    };
    let mut rows = Vec::new();
    for direction in ["down", "up"] {
        let pair = of(ASYNC, direction).zip(of("nginx", direction));
        let ratio = pair.map(|(ours, theirs)| ours.mib_per_second / theirs.mib_per_second);
        let row = format!("1 GiB {direction}, vs nginx");
        let few = pair.is_some_and(|(ours, _)| ours.rounds.iter().any(|r| r.bytes < 1 << 30));
        let goal = streaming_ratio(&row, ratio);
        rows.push(smaller(goal, few, "measured with less than the goal's 1 GiB"));
    }
    let growth = results
        .streaming
        .iter()
        .filter(|stream| stream.system == ASYNC)
        .flat_map(|stream| &stream.rounds)
        .filter_map(|round| round.memory_bytes)
        .map(|memory| memory.peak.saturating_sub(memory.before) as f64 / 1_048_576.0)
        .max_by(f64::total_cmp);
    let flat = AtMost {
        row: "memory while streaming",
        goal: "flat (≤ 16 MiB more)",
        bound: 16.0,
        unit: " MiB more",
        digits: 1,
    };
    rows.push(flat.row(growth, NOT_MEASURED));
    rows
}

fn streaming_ratio(row: &str, ratio: Option<f64>) -> Goal {
    let goal = "≥ 0.9×";
    let Some(ratio) = ratio else { return missing(row, goal, NOT_MEASURED) };
    Goal {
        row: row.to_owned(),
        goal: goal.to_owned(),
        measured: Some(format!("{ratio:.2}×")),
        distance: Some(format!("{:.2}× of the goal", ratio / 0.9)),
        met: Some(rounded(ratio) >= 0.9),
        why_not: None,
    }
}

/// A figure with as many digits as it deserves: three or more.
pub(crate) fn told(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.1}") } else { thousands(value) }
}

/// A whole number with commas.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 && text != "0" { format!("-{text}") } else { text }
}

const ASYNC: &str = "gateway-async";
const HYBRID_US: f64 = 23.0;
const NOT_MEASURED: &str = "not measured in this run";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_met_at_the_bound() {
        let at_most = AtMost { row: "r", goal: "g", bound: 1.0, unit: "×", digits: 2 };
        assert_eq!(at_most.row(Some(1.0), "").met, Some(true));
        let over = at_most.row(Some(1.5), "");
        assert_eq!((over.met, over.distance.as_deref()), (Some(false), Some("1.50× the goal")));
        assert_eq!(at_most.row(None, "why").why_not.as_deref(), Some("why"));
        assert_eq!(at_least("r", "g", 10.0, "/s", Some(9.0)).met, Some(false));
    }

    #[test]
    fn a_smaller_scale_tells_nothing_about_the_goal() {
        let at_most = AtMost { row: "r", goal: "g", bound: 1.0, unit: "×", digits: 2 };
        let goal = smaller(at_most.row(Some(0.5), ""), true, "fewer");
        assert_eq!((goal.met, goal.why_not.as_deref()), (None, Some("fewer")));
        assert!(goal.measured.is_some());
    }

    #[test]
    fn thousands_have_commas() {
        for (value, text) in
            [(0.0, "0"), (999.0, "999"), (1_234_567.4, "1,234,567"), (-1e3, "-1,000")]
        {
            assert_eq!(thousands(value), text);
        }
    }
}
