//! When a ratio may be told: only of two systems that were measured side by side, each doing all
//! of the work that the mode's name says. The same rules guard the making of a results file and
//! the reading of one.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::results::{FORMAT, RatioDetail, Results, Round, Series, least, median, most, rounded};

/// A ratio with a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) name: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) ours: &'static str,
    pub(crate) theirs: &'static str,
}

/// The ratios of every report: CPU time per operation, X25519 on both sides.
pub(crate) const WANTED: [Wanted; 10] = [
    wanted("keepalive_cpu_vs_nginx", "keepalive", ASYNC, NGINX),
    wanted("keepalive_cpu_vs_haproxy", "keepalive", ASYNC, HAPROXY),
    wanted("handshake_cpu_vs_nginx", "handshake", ASYNC, NGINX),
    wanted("returning_cpu_vs_nginx", "returning", ASYNC, NGINX),
    wanted("resumed_cpu_vs_nginx", "resumed", ASYNC, NGINX),
    wanted("keepalive_cpu_vs_nginx_durable", "keepalive", DURABLE, NGINX),
    wanted("keepalive_cpu_vs_haproxy_durable", "keepalive", DURABLE, HAPROXY),
    wanted("handshake_cpu_vs_nginx_durable", "handshake", DURABLE, NGINX),
    wanted("returning_cpu_vs_nginx_durable", "returning", DURABLE, NGINX),
    wanted("resumed_cpu_vs_nginx_durable", "resumed", DURABLE, NGINX),
];

const fn wanted(
    name: &'static str,
    mode: &'static str,
    ours: &'static str,
    theirs: &'static str,
) -> Wanted {
    Wanted { name, mode, ours, theirs }
}

/// Why there is no ratio.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0} was not measured in this mode")]
    NotMeasured(String),
    #[error("{0} has {1} rounds; {ROUNDS_MIN} are needed")]
    FewRounds(String, usize),
    #[error("the two have not the same rounds")]
    OtherRounds,
    #[error("round {0} was not made in this run")]
    OtherRun(usize),
    #[error("round {0} has no moment within the run")]
    OutsideTheRun(usize),
    #[error("the two sides of round {0} lie more than {PAIR_WITHIN_S} s apart")]
    Apart(usize),
    #[error("round {0} begins before the one before it was over")]
    RoundsMixed(usize),
    #[error("{0}, round {1}: more than 0.1 % of the operations failed")]
    Failures(String, usize),
    #[error("{0}, round {1}: fewer than 95 % of the connections were resumed")]
    NotResumed(String, usize),
    #[error("{0}, round {1}: connections were resumed that should have been full handshakes")]
    Resumed(String, usize),
    #[error("{0}, round {1}: too little CPU time for the kernel's ticks of 10 ms")]
    Coarse(String, usize),
    #[error("{0}, round {1}: CPU time per operation does not follow from time and operations")]
    CpuDoesNotFollow(String, usize),
}

/// Counts a ratio from the rounds of both sides, or says why there is none: the median of the
/// rounds' own ratios, because the two sides of a round meet the same machine at the same time.
///
/// # Errors
/// The first rule that is not kept.
pub(crate) fn ratio(results: &Results, wanted: &Wanted) -> Result<(f64, RatioDetail), Refused> {
    let side = |system: &str| {
        results
            .series(wanted.mode, GROUP, system)
            .ok_or_else(|| Refused::NotMeasured(system.to_owned()))
    };
    let (ours, theirs) = (side(wanted.ours)?, side(wanted.theirs)?);
    for series in [ours, theirs] {
        sound(series, results.quick)?;
    }
    side_by_side(results, ours, theirs)?;
    let cpu = |series: &Series| {
        median(&series.rounds.iter().map(|round| round.cpu_us).collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let (ours_cpu_us, theirs_cpu_us) = (cpu(ours), cpu(theirs));
    let per_round: Vec<f64> = pairs(ours, theirs)
        .map(|(our_round, their_round)| rounded(our_round.cpu_us / their_round.cpu_us))
        .collect();
    let detail = RatioDetail {
        ours: wanted.ours.to_owned(),
        theirs: wanted.theirs.to_owned(),
        mode: wanted.mode.to_owned(),
        ours_cpu_us: rounded(ours_cpu_us),
        theirs_cpu_us: rounded(theirs_cpu_us),
        per_round_min: least(&per_round).unwrap_or_default(),
        per_round_max: most(&per_round).unwrap_or_default(),
        rounds: per_round.len(),
        per_round,
    };
    Ok((rounded(median(&detail.per_round).unwrap_or_default()), detail))
}

/// Counts all ratios; those that may not be told are told with the reason.
pub(crate) fn fill(results: &mut Results) {
    let (mut ratios, mut details, mut refused) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for wanted in &WANTED {
        match ratio(results, wanted) {
            Ok((ratio, detail)) => {
                ratios.insert(wanted.name.to_owned(), ratio);
                details.insert(wanted.name.to_owned(), detail);
            }
            Err(reason) => {
                refused.insert(wanted.name.to_owned(), reason.to_string());
            }
        }
    }
    results.ratios = ratios;
    results.ratio_details = details;
    results.ratios_refused = refused;
}

/// Refuses a results file with a ratio that does not follow from its rounds.
///
/// # Errors
/// One line for the user.
pub(crate) fn check(results: &Results) -> anyhow::Result<()> {
    if results.format != FORMAT {
        anyhow::bail!("the results have the form `{}`, not `{FORMAT}`", results.format);
    }
    for (name, told) in &results.ratios {
        let wanted = WANTED
            .iter()
            .find(|wanted| wanted.name == name)
            .ok_or_else(|| anyhow::anyhow!("the ratio `{name}` is not one of this program"))?;
        let (counted, _) = ratio(results, wanted)
            .map_err(|reason| anyhow::anyhow!("the ratio `{name}` is refused: {reason}"))?;
        if (told / counted - 1.0).abs() > TOLD_WITHIN {
            anyhow::bail!(
                "the ratio `{name}` is refused: the file says {told}, its rounds say {counted}"
            );
        }
    }
    Ok(())
}

/// Every round did the work, and enough of it.
fn sound(series: &Series, quick: bool) -> Result<(), Refused> {
    if series.rounds.len() < ROUNDS_MIN {
        return Err(Refused::FewRounds(series.system.clone(), series.rounds.len()));
    }
    let cpu_seconds_min = if quick { CPU_SECONDS_MIN_QUICK } else { CPU_SECONDS_MIN };
    for round in &series.rounds {
        let at = || (series.system.clone(), round.round);
        let all = round.operations + round.failures;
        if round.operations == 0 || round.failures * 1_000 > all {
            let (system, number) = at();
            return Err(Refused::Failures(system, number));
        }
        if series.mode == "resumed" && round.resumed_share < RESUMED_SHARE_MIN {
            let (system, number) = at();
            return Err(Refused::NotResumed(system, number));
        }
        if series.mode != "resumed" && round.resumed_share > FULL_SHARE_MAX {
            let (system, number) = at();
            return Err(Refused::Resumed(system, number));
        }
        if round.cpu_seconds < cpu_seconds_min {
            let (system, number) = at();
            return Err(Refused::Coarse(system, number));
        }
        let counted = round.cpu_seconds * 1e6 / round.operations as f64;
        if (round.cpu_us / counted - 1.0).abs() > TOLD_WITHIN {
            let (system, number) = at();
            return Err(Refused::CpuDoesNotFollow(system, number));
        }
    }
    Ok(())
}

/// The same rounds of the same run, each pair close together, one round after the other.
fn side_by_side(results: &Results, ours: &Series, theirs: &Series) -> Result<(), Refused> {
    let numbers =
        |series: &Series| -> Vec<usize> { series.rounds.iter().map(|round| round.round).collect() };
    let mut seen = numbers(ours);
    seen.sort_unstable();
    seen.dedup();
    if seen.len() != ours.rounds.len() || numbers(ours) != numbers(theirs) {
        return Err(Refused::OtherRounds);
    }
    let run = (moment(&results.started_at), moment(&results.finished_at));
    let mut before: Option<OffsetDateTime> = None;
    for (our_round, their_round) in pairs(ours, theirs) {
        let number = our_round.round;
        for round in [our_round, their_round] {
            if round.run != results.run {
                return Err(Refused::OtherRun(number));
            }
        }
        let (Some(one), Some(other), (Some(from), Some(to))) =
            (moment(&our_round.started_at), moment(&their_round.started_at), run)
        else {
            return Err(Refused::OutsideTheRun(number));
        };
        if one < from || other < from || one > to || other > to {
            return Err(Refused::OutsideTheRun(number));
        }
        if (one - other).abs().whole_seconds() > PAIR_WITHIN_S {
            return Err(Refused::Apart(number));
        }
        if before.is_some_and(|before| one.min(other) < before) {
            return Err(Refused::RoundsMixed(number));
        }
        before = Some(one.max(other));
    }
    Ok(())
}

fn pairs<'a>(ours: &'a Series, theirs: &'a Series) -> impl Iterator<Item = (&'a Round, &'a Round)> {
    ours.rounds.iter().zip(&theirs.rounds)
}

fn moment(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

const NGINX: &str = "nginx";
const HAPROXY: &str = "haproxy";
const ASYNC: &str = "gateway-async";
const DURABLE: &str = "gateway-durable";
/// The peers can do no ML-KEM.
const GROUP: &str = "x25519";

const ROUNDS_MIN: usize = 3;
/// The two sides of a round are measured within this time of each other.
const PAIR_WITHIN_S: i64 = 300;
const RESUMED_SHARE_MIN: f64 = 0.95;
const FULL_SHARE_MAX: f64 = 0.01;
/// Each measurement aims at a second, or half of it when quick; less than this is too little.
const CPU_SECONDS_MIN: f64 = 0.3;
const CPU_SECONDS_MIN_QUICK: f64 = 0.15;
/// Figures in the file are rounded to five digits.
const TOLD_WITHIN: f64 = 0.002;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::results::tests::{edited, invented};

    fn refused(edit: impl FnOnce(&mut Results)) -> Refused {
        let mut results = invented();
        edit(&mut results);
        ratio(&results, &WANTED[0]).unwrap_err()
    }

    #[test]
    fn a_ratio_is_that_of_the_medians() {
        let (told, detail) = ratio(&invented(), &WANTED[0]).unwrap();
        assert!((told - 1.5).abs() < 1e-9, "{told}");
        assert!((detail.ours_cpu_us - 30.0).abs() < 1e-9);
        assert_eq!(detail.rounds, 5);
        assert!(detail.per_round_min <= told && told <= detail.per_round_max);
    }

    #[test]
    fn sides_that_were_not_made_side_by_side_are_refused() {
        let other_run = refused(|results| edited(results, ASYNC, 2).run = "another".to_owned());
        assert_eq!(other_run, Refused::OtherRun(3));
        let removed = refused(|results| {
            let at = results.side_by_side.iter().position(|s| s.system == NGINX).unwrap();
            results.side_by_side[at].rounds.remove(1);
        });
        assert_eq!(removed, Refused::OtherRounds);
        let twice = refused(|results| {
            edited(results, ASYNC, 2).round = 2;
            edited(results, NGINX, 2).round = 2;
        });
        assert_eq!(twice, Refused::OtherRounds);
        let late = "2026-01-01T00:08:00.000Z".to_owned();
        let apart = refused(|results| edited(results, NGINX, 0).started_at = late);
        assert_eq!(apart, Refused::Apart(1));
        let before = "2025-12-31T00:00:00.000Z".to_owned();
        let outside = refused(|results| edited(results, NGINX, 0).started_at = before);
        assert_eq!(outside, Refused::OutsideTheRun(1));
        let early = "2026-01-01T00:01:05.000Z".to_owned();
        let mixed = refused(|results| edited(results, NGINX, 2).started_at = early);
        assert_eq!(mixed, Refused::RoundsMixed(3));
    }

    #[test]
    fn rounds_that_did_not_do_the_work_are_refused() {
        let failed = refused(|results| edited(results, NGINX, 1).failures = 100);
        assert_eq!(failed, Refused::Failures(NGINX.to_owned(), 2));
        let coarse = refused(|results| {
            let round = edited(results, ASYNC, 1);
            round.cpu_seconds /= 10.0;
            round.operations /= 10;
        });
        assert_eq!(coarse, Refused::Coarse(ASYNC.to_owned(), 2));
        let cheaper = refused(|results| edited(results, ASYNC, 1).cpu_us /= 2.0);
        assert_eq!(cheaper, Refused::CpuDoesNotFollow(ASYNC.to_owned(), 2));
        let resumed = refused(|results| edited(results, ASYNC, 1).resumed_share = 0.5);
        assert_eq!(resumed, Refused::Resumed(ASYNC.to_owned(), 2));
        let gone = refused(|results| results.side_by_side.retain(|s| s.system != NGINX));
        assert_eq!(gone, Refused::NotMeasured(NGINX.to_owned()));
        let few = refused(|results| {
            results.side_by_side.iter_mut().for_each(|series| series.rounds.truncate(2));
        });
        assert_eq!(few, Refused::FewRounds(ASYNC.to_owned(), 2));
    }

    #[test]
    fn resumed_means_resumed() {
        let mut results = invented();
        let wanted = WANTED.iter().find(|wanted| wanted.mode == "resumed").unwrap();
        results.side_by_side.iter_mut().for_each(|series| series.mode = "resumed".to_owned());
        let refused = ratio(&results, wanted).unwrap_err();
        assert_eq!(refused, Refused::NotResumed(ASYNC.to_owned(), 1));
        let rounds = results.side_by_side.iter_mut().flat_map(|series| &mut series.rounds);
        rounds.for_each(|round| round.resumed_share = 0.99);
        ratio(&results, wanted).unwrap();
    }

    #[test]
    fn a_file_whose_ratio_does_not_follow_is_refused() {
        let mut results = invented();
        fill(&mut results);
        assert_eq!(results.ratios.len(), 1, "{:?}", results.ratios_refused);
        check(&results).unwrap();
        results.ratios.insert("keepalive_cpu_vs_nginx".to_owned(), 1.1);
        let error = check(&results).unwrap_err().to_string();
        assert!(error.contains("the file says 1.1, its rounds say 1.5"), "{error}");
        results.ratios.insert("a_new_one".to_owned(), 1.0);
        assert!(check(&results).is_err());
    }

    #[test]
    fn the_rules_hold_for_the_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let mut results = invented();
        fill(&mut results);
        results.write(&path).unwrap();
        check(&Results::read(&path).unwrap()).unwrap();
        edited(&mut results, NGINX, 4).run = "another".to_owned();
        results.write(&path).unwrap();
        let error = check(&Results::read(&path).unwrap()).unwrap_err().to_string();
        assert!(error.contains("round 5 was not made in this run"), "{error}");
    }
}
