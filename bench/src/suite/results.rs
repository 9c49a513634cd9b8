//! The results file: everything that was measured in one run, round by round, so that every figure
//! told of it can be counted again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::answers::{
    AuditAnswer, DecideAnswer, Hour, IdleAnswer, IssuingAnswer, Latency, RevocationAnswer,
    SlowAnswer, StormAnswer, StreamAnswer,
};

/// The form that this program writes and reads.
pub(crate) const FORMAT: &str = "sekisho-bench/1";

/// One run of the suite.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) format: String,
    /// Chosen by chance at the start; every round names it.
    pub(crate) run: String,
    pub(crate) started_at: String,
    pub(crate) finished_at: String,
    pub(crate) quick: bool,
    /// The parts that were asked for, if not all.
    #[serde(default)]
    pub(crate) only: Vec<String>,
    pub(crate) commit: String,
    pub(crate) dirty: Option<bool>,
    pub(crate) machine: Machine,
    pub(crate) software: BTreeMap<String, String>,
    pub(crate) pins: Pins,
    pub(crate) facts: FactsScale,
    /// Limits of the gateway that differ from the shipped ones, and why.
    pub(crate) limits_changed: Vec<String>,
    pub(crate) parts: Vec<Part>,
    pub(crate) side_by_side: Vec<Series>,
    pub(crate) ratios: BTreeMap<String, f64>,
    pub(crate) ratio_details: BTreeMap<String, RatioDetail>,
    pub(crate) ratios_refused: BTreeMap<String, String>,
    pub(crate) open_loop: Vec<OpenLoop>,
    pub(crate) http2: Vec<Series>,
    pub(crate) revocation_set: Vec<SetCost>,
    pub(crate) revocation_timing: Option<RevocationAnswer>,
    pub(crate) idle: Vec<Idle>,
    pub(crate) storm: Option<StormAnswer>,
    pub(crate) slow_clients: Option<SlowAnswer>,
    pub(crate) streaming: Vec<Streaming>,
    pub(crate) day: Option<Day>,
    pub(crate) audit: Option<AuditAnswer>,
    pub(crate) decision: Option<DecideAnswer>,
    pub(crate) issuing: Option<IssuingAnswer>,
    pub(crate) goals: Vec<Goal>,
    /// What could not be measured, and why.
    pub(crate) failed: Vec<Failed>,
    pub(crate) commands: Vec<String>,
}

/// Where it was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// The hypervisor, if there is one.
    pub(crate) virtualised: Option<String>,
    pub(crate) open_files_max: u64,
    pub(crate) load_average_before: Option<f64>,
    pub(crate) load_average_after: Option<f64>,
    /// Share of CPU time that the hypervisor gave to others meanwhile, percent.
    pub(crate) stolen_percent: Option<f64>,
}

/// Which core does what.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Pins {
    pub(crate) server_cpu: usize,
    /// The generator, the back end and the facts publisher.
    pub(crate) load_cpu: usize,
}

/// How much the gateway has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FactsScale {
    pub(crate) terminals: usize,
    pub(crate) offices: usize,
    pub(crate) registrations: usize,
    pub(crate) revocations: usize,
}

/// How long a part took, and how long it may take.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) part: String,
    pub(crate) budget_seconds: u64,
    pub(crate) seconds: f64,
}

/// One system in one mode over all rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) mode: String,
    pub(crate) group: String,
    pub(crate) http: u8,
    pub(crate) system: String,
    pub(crate) rounds: Vec<Round>,
    pub(crate) median: Figures,
    pub(crate) min: Figures,
    pub(crate) max: Figures,
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) run: String,
    pub(crate) round: usize,
    pub(crate) started_at: String,
    pub(crate) seconds: f64,
    pub(crate) cpu_us: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) operations: u64,
    pub(crate) failures: u64,
    /// Connections that resumed a session, of all that were made in the measured time.
    pub(crate) resumed_share: f64,
    /// How busy the generator's core was, 0 to 1.
    pub(crate) generator_busy: f64,
}

/// The figures that are told of several rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) cpu_us: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// What stands behind a ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RatioDetail {
    pub(crate) ours: String,
    pub(crate) theirs: String,
    pub(crate) mode: String,
    pub(crate) ours_cpu_us: f64,
    pub(crate) theirs_cpu_us: f64,
    /// The ratio within each round.
    pub(crate) per_round: Vec<f64>,
    pub(crate) per_round_min: f64,
    pub(crate) per_round_max: f64,
    pub(crate) rounds: usize,
}

/// Latency at a fixed rate, through a system and straight to the back end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenLoop {
    pub(crate) system: String,
    /// The system's own highest throughput, from the closed loop.
    pub(crate) most_per_second: f64,
    pub(crate) rate: f64,
    pub(crate) rounds: Vec<OpenRound>,
    pub(crate) through: Percentiles,
    pub(crate) straight: Percentiles,
    /// Median over the rounds of the difference within each.
    pub(crate) added: Percentiles,
}

/// One pair of measurements.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenRound {
    pub(crate) started_at: String,
    pub(crate) through: Latency,
    pub(crate) straight: Latency,
    pub(crate) failures: u64,
    pub(crate) generator_busy: f64,
}

/// Microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// What the mass of revocations costs in one mode.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SetCost {
    pub(crate) mode: String,
    pub(crate) pairs: Vec<SetPair>,
    pub(crate) with_us: f64,
    pub(crate) without_us: f64,
    /// Median of the pairs' differences, percent.
    pub(crate) change_percent: f64,
}

/// One measurement with all revocations and one without.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct SetPair {
    pub(crate) with_us: f64,
    pub(crate) without_us: f64,
    pub(crate) failures: u64,
}

/// Idle connections of one system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) system: String,
    pub(crate) answer: IdleAnswer,
}

/// A stream of one system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Streaming {
    pub(crate) system: String,
    pub(crate) direction: String,
    pub(crate) rounds: Vec<StreamAnswer>,
    pub(crate) mib_per_second: f64,
    pub(crate) cpu_us_per_mib: Option<f64>,
}

/// The office day.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Day {
    pub(crate) system: String,
    pub(crate) hour_ms: u64,
    pub(crate) answered: u64,
    pub(crate) failures: u64,
    pub(crate) cpu_us: Option<f64>,
    pub(crate) latency: Option<Latency>,
    pub(crate) hours: Vec<Hour>,
}

/// A row of the goals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) row: String,
    pub(crate) goal: String,
    pub(crate) measured: Option<String>,
    pub(crate) distance: Option<String>,
    /// `None` if this run can not tell.
    pub(crate) met: Option<bool>,
    pub(crate) why_not: Option<String>,
}

/// A measurement that could not be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) what: String,
    pub(crate) why: String,
}

impl Results {
    /// Reads a results file.
    ///
    /// # Errors
    /// If it can not be read or has another form.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read `{}`: name a results file", path.display()))?;
        let results: Self = serde_json::from_str(&text)
            .with_context(|| format!("`{}` is no results file", path.display()))?;
        if results.format != FORMAT {
            anyhow::bail!("`{}` has the form `{}`, not `{FORMAT}`", path.display(), results.format);
        }
        Ok(results)
    }

    /// Writes the results file, with figures rounded to four digits.
    ///
    /// # Errors
    /// If it can not be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut value = serde_json::to_value(self)?;
        round_all(&mut value);
        let text = serde_json::to_string_pretty(&value)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// The series of a system in a mode over HTTP/1.1.
    pub(crate) fn series(&self, mode: &str, group: &str, system: &str) -> Option<&Series> {
        find(&self.side_by_side, mode, group, system)
    }
}

/// The series of a system in a mode.
pub(crate) fn find<'a>(
    all: &'a [Series],
    mode: &str,
    group: &str,
    system: &str,
) -> Option<&'a Series> {
    all.iter()
        .find(|series| series.mode == mode && series.group == group && series.system == system)
}

impl Series {
    /// Counts the medians and the extremes.
    pub(crate) fn of(
        mode: &str,
        group: &str,
        http: u8,
        system: &str,
        rounds: Vec<Round>,
    ) -> Option<Self> {
        let over = |pick: fn(&[f64]) -> Option<f64>| {
            let of =
                |figure: fn(&Round) -> f64| pick(&rounds.iter().map(figure).collect::<Vec<_>>());
            Some(Figures {
                cpu_us: of(|round| round.cpu_us)?,
                per_second: of(|round| round.per_second)?,
                p50_us: of(|round| round.p50_us as f64)?,
                p99_us: of(|round| round.p99_us as f64)?,
            })
        };
        let (median, min, max) = (over(median)?, over(least)?, over(most)?);
        let (mode, group, system) = (mode.to_owned(), group.to_owned(), system.to_owned());
        Some(Self { mode, group, http, system, rounds, median, min, max })
    }

    /// Whether the server had time left, so that the throughput is the generator's.
    pub(crate) fn generator_bound(&self) -> bool {
        let busy = |round: &Round| round.cpu_seconds / round.seconds.max(f64::MIN_POSITIVE);
        let busy: Vec<f64> = self.rounds.iter().map(busy).collect();
        median(&busy).is_some_and(|busy| busy < SERVER_BUSY_FROM)
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted.get(middle - 1).map(|lower| f64::midpoint(*lower, upper))
}

pub(crate) fn least(values: &[f64]) -> Option<f64> {
    values.iter().copied().min_by(f64::total_cmp)
}

pub(crate) fn most(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

/// Figures are told with five digits at most: the sixth is noise in every one of them.
fn round_all(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().and_then(|v| serde_json::Number::from_f64(rounded(v)));
            if let Some(rounded) = rounded {
                *number = rounded;
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(round_all),
        serde_json::Value::Object(values) => values.values_mut().for_each(round_all),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

/// Five digits.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// Below this share of its core the throughput may be the generator's own.
const SERVER_BUSY_FROM: f64 = 0.95;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run with made-up figures: keep-alive, nginx at 20 µs, the gateway at 30 µs.
    pub(crate) fn invented() -> Results {
        let series = |system: &str, cpu_us: f64, second: usize| {
            let rounds = (0..5).map(|round| invented_round(round, cpu_us, second)).collect();
            Series::of("keepalive", "x25519", 1, system, rounds).unwrap()
        };
        let text = serde_json::json!({
            "format": FORMAT, "run": "r1", "quick": false, "commit": "c", "dirty": false,
            "started_at": "2026-01-01T00:00:00.000Z", "finished_at": "2026-01-01T00:10:00.000Z",
            "machine": Machine::default(), "software": {},
            "pins": {"server_cpu": 0, "load_cpu": 1}, "facts": {"terminals": 1, "offices": 1,
            "registrations": 1, "revocations": 1}, "limits_changed": [], "parts": [],
            "side_by_side": [series("nginx", 20.0, 10), series("gateway-async", 30.0, 20)],
            "ratios": {}, "ratio_details": {}, "ratios_refused": {}, "open_loop": [], "http2": [],
            "revocation_set": [], "revocation_timing": null, "idle": [], "storm": null,
            "slow_clients": null, "streaming": [], "day": null, "audit": null, "decision": null,
            "issuing": null, "goals": [], "failed": [], "commands": [],
        });
        serde_json::from_value(text).unwrap()
    }

    fn invented_round(round: usize, cpu_us: f64, second: usize) -> Round {
        let cpu_us = cpu_us * (1.0 + (round as f64 - 2.0) / 100.0);
        Round {
            run: "r1".to_owned(),
            round: round + 1,
            started_at: format!("2026-01-01T00:0{}:{second}.000Z", round),
            seconds: 2.0,
            cpu_us,
            cpu_seconds: cpu_us * 50_000.0 / 1e6,
            per_second: 25_000.0,
            p50_us: 900,
            p99_us: 2_000,
            operations: 50_000,
            failures: 0,
            resumed_share: 0.0,
            generator_busy: 0.8,
        }
    }

    /// The round of a system, to be changed.
    pub(crate) fn edited<'a>(results: &'a mut Results, system: &str, at: usize) -> &'a mut Round {
        let series = results.side_by_side.iter_mut().find(|series| series.system == system);
        &mut series.unwrap().rounds[at]
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn figures_keep_five_digits() {
        assert_eq!(rounded(22.123_456), 22.123);
        assert_eq!(rounded(41_234.56), 41_235.0);
        assert_eq!(rounded(0.0), 0.0);
        let mut value = serde_json::json!({"a": [1.234_567, 7, "x"]});
        round_all(&mut value);
        assert_eq!(value, serde_json::json!({"a": [1.2346, 7, "x"]}));
    }
}
