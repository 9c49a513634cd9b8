//! The committed counts, and how a new count compares with them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::kind::Kind;

/// How far a count may lie from its baseline, either way. Faster is not red for being faster: a
/// baseline that is too high would let the next slow-down pass.
pub(super) const TOLERANCE_PERCENT: f64 = 3.0;

/// Kinds of machine that are kept.
const KINDS_MAX: usize = 64;

type Counts = BTreeMap<String, f64>;

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Baselines {
    baselines: Vec<Baseline>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    kind: Kind,
    /// Instructions of one operation, by case.
    instructions: Counts,
}

impl Baselines {
    /// Reads the file; one that is not there holds nothing.
    ///
    /// # Errors
    /// If it cannot be read or is not of this form.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read `{}`", path.display()));
            }
        };
        let read: Self = serde_json::from_str(&text).with_context(|| {
            let name = path.display();
            format!("`{name}` is not a file of baselines: restore it from the repository")
        })?;
        let sane = |count: &f64| count.is_finite() && *count > 0.0;
        let good = read.baselines.len() <= KINDS_MAX
            && read.baselines.iter().all(|one| one.instructions.values().all(sane));
        anyhow::ensure!(
            good,
            "`{}` holds a count that is not above 0, or more than {KINDS_MAX} kinds: restore it",
            path.display()
        );
        Ok(read)
    }

    /// The counts of a kind of machine.
    pub(super) fn of(&self, kind: &Kind) -> Option<&Counts> {
        self.baselines.iter().find(|one| one.kind == *kind).map(|one| &one.instructions)
    }

    /// Takes new counts for a kind; cases that were not counted now stay as they are.
    pub(super) fn record(&mut self, kind: &Kind, rows: &[Row]) {
        let known = self.baselines.iter().position(|one| one.kind == *kind);
        let mut counts = known.map(|at| self.baselines.remove(at).instructions).unwrap_or_default();
        counts.extend(rows.iter().map(|row| (row.case.clone(), row.instructions)));
        self.baselines.insert(0, Baseline { kind: kind.clone(), instructions: counts });
        self.baselines.truncate(KINDS_MAX);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }
}

/// Instructions of one operation, from one or more rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Count {
    median: f64,
    /// From the lowest to the highest round, percent of the median; `None` of one round.
    spread_percent: Option<f64>,
}

impl Count {
    /// `None` if there is no round, or one counted nothing.
    pub(super) fn of(mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_by(f64::total_cmp);
        let (low, high) = (*rounds.first()?, *rounds.last()?);
        let median = *rounds.get(rounds.len() / 2)?;
        (low > 0.0).then(|| Self {
            median: (median * 10.0).round() / 10.0,
            spread_percent: (rounds.len() > 1).then(|| (high - low) / median * 100.0),
        })
    }
}

/// One case beside its baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) case: String,
    instructions: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    spread_percent: Option<f64>,
    baseline: Option<f64>,
    change_percent: Option<f64>,
    /// Whether the change is small enough; `None` if there is nothing to compare with.
    pub(super) ok: Option<bool>,
}

impl Row {
    pub(super) fn new(case: &str, count: Count, baseline: Option<f64>) -> Self {
        let change_percent = baseline.map(|before| (count.median - before) * 100.0 / before);
        Self {
            case: case.to_owned(),
            instructions: count.median,
            spread_percent: count.spread_percent,
            baseline,
            change_percent,
            ok: change_percent.map(|change| change.abs() <= TOLERANCE_PERCENT),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number =
            |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
        let change = self.change_percent.map_or("–".to_owned(), |value| format!("{value:+.2} %"));
        let spread = self.spread_percent.map_or("–".to_owned(), |value| format!("{value:.2} %"));
        let verdict = match (self.ok, self.change_percent) {
            (Some(false), Some(change)) if change > 0.0 => "  SLOWER",
            (Some(false), _) => "  FASTER: record it",
            (Some(true), _) => "",
            (None, _) => "  not compared",
        };
        let (before, now) = (number(self.baseline), number(Some(self.instructions)));
        write!(f, "{:<14} {before:>12} {now:>12} {change:>9}  {spread}{verdict}", self.case)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn row(now: f64, before: Option<f64>) -> Row {
        Row::new("handshake", Count::of(vec![now]).unwrap(), before)
    }

    pub(in crate::gate) fn kind(valgrind: &str) -> Kind {
        let text = format!(
            r#"{{"profile":"release","rustc":"1","cc":"gcc","libc":"glibc 2",
                "valgrind":"{valgrind}","cpu":{{"architecture":"x86_64","features":["avx2"]}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn three_percent_either_way_is_within() {
        for (now, ok, word) in [
            (1030.0, true, "+3.00 %"),
            (970.0, true, "-3.00 %"),
            (1031.0, false, "SLOWER"),
            (969.0, false, "FASTER"),
        ] {
            let row = row(now, Some(1000.0));
            assert_eq!(row.ok, Some(ok), "{now}");
            assert!(row.to_string().contains(word), "{row}");
        }
    }

    #[test]
    fn a_case_without_a_baseline_is_not_compared() {
        let row = row(1000.0, None);
        assert_eq!((row.ok, row.change_percent), (None, None));
        assert!(row.to_string().contains("not compared"), "{row}");
    }

    #[test]
    fn the_median_of_the_rounds_counts_and_their_spread_is_told() {
        let count = Count::of(vec![102.0, 100.0, 101.0]).unwrap();
        assert!((count.median - 101.0).abs() < 1e-9);
        assert!((count.spread_percent.unwrap() - 200.0 / 101.0).abs() < 1e-9);
        assert_eq!(Count::of(vec![7.0]).unwrap().spread_percent, None);
        assert_eq!(Count::of(Vec::new()), None);
        assert_eq!(Count::of(vec![5.0, 0.0]), None);
    }

    #[test]
    fn counts_are_kept_by_kind_and_by_case() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate.json");
        let mut baselines = Baselines::read(&path).unwrap();
        assert!(baselines.of(&kind("a")).is_none());
        baselines.record(&kind("a"), &[row(1000.0, None)]);
        let decide = Row { case: "decide".to_owned(), ..row(7.0, None) };
        baselines.record(&kind("a"), std::slice::from_ref(&decide));
        baselines.record(&kind("b"), &[decide]);
        baselines.write(&path).unwrap();

        let read = Baselines::read(&path).unwrap();
        let counts = read.of(&kind("a")).unwrap();
        assert_eq!(counts.len(), 2);
        assert_eq!(counts.get("handshake"), Some(&1000.0));
        assert_eq!(read.of(&kind("b")).unwrap().get("handshake"), None);
        assert!(read.of(&kind("c")).is_none());
    }

    #[test]
    fn a_broken_file_is_one_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate.json");
        for broken in ["", "{", r#"{"baselines":7}"#, r#"{"baselines":[],"more":1}"#] {
            fs::write(&path, broken).unwrap();
            let error = format!("{:#}", Baselines::read(&path).unwrap_err());
            assert!(error.contains("gate.json") && error.contains("restore"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let mut baselines = Baselines::default();
        let negative = Row { instructions: -1.0, ..row(1.0, None) };
        baselines.record(&kind("a"), &[negative]);
        baselines.write(&path).unwrap();
        let error = format!("{:#}", Baselines::read(&path).unwrap_err());
        assert!(error.contains("not above 0"), "{error}");
        assert!(Baselines::read(dir.path()).is_err());
    }
}
