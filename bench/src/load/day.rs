//! The shape of an office day.
//!
//! What is known: offices work office hours; claims are sent on the 1st to the 10th of a month,
//! weekends included, with the cut-off on the 10th at 17:15 and the help desk open longer on these
//! days; each office logs in about once a day, and a session reads about twenty times. What is
//! assumed here: how that spreads over the hours. On an ordinary day the two halves of the working
//! day are alike, with lunch between them; on a day of claims work grows towards the cut-off, and
//! evening and night are less quiet. Both are shares of their own busiest hour.

use std::time::Duration;

use crate::load::arrivals::Segment;

/// One hour: load as a share of the busiest hour's, and what the operations are.
struct Hour {
    ordinary: f64,
    claims: f64,
    /// Share of operations that are logins: full handshakes of terminals that came before.
    logins: f64,
    /// Share of operations that are connections resumed after a pause.
    resumed: f64,
}

const fn hour(ordinary: f64, claims: f64, logins: f64, resumed: f64) -> Hour {
    Hour { ordinary, claims, logins, resumed }
}

#[rustfmt::skip]
const HOURS: [Hour; 24] = [
    //   ordinary claims logins resumed
    hour(0.01,    0.05,  0.02,  0.02), //  0: machines that fetch by themselves
    hour(0.01,    0.03,  0.02,  0.02),
    hour(0.01,    0.02,  0.02,  0.02),
    hour(0.01,    0.02,  0.02,  0.02),
    hour(0.01,    0.02,  0.02,  0.02),
    hour(0.02,    0.04,  0.05,  0.02),
    hour(0.05,    0.08,  0.10,  0.02),
    hour(0.20,    0.20,  0.20,  0.02), //  7: early offices log in
    hour(0.70,    0.55,  0.20,  0.02), //  8: most offices open at 8:30
    hour(1.00,    0.75,  0.10,  0.03), //  9: the busiest hour of an ordinary day
    hour(0.90,    0.75,  0.04,  0.03),
    hour(0.80,    0.75,  0.02,  0.03),
    hour(0.45,    0.50,  0.01,  0.05), // 12: lunch
    hour(0.85,    0.80,  0.03,  0.08), // 13: back from lunch, sessions are resumed
    hour(0.85,    0.85,  0.02,  0.04),
    hour(0.80,    0.95,  0.02,  0.03),
    hour(0.75,    1.00,  0.02,  0.03), // 16: the last full hour before the cut-off
    hour(0.50,    0.50,  0.02,  0.03), // 17: claims: see `CUT_OFF`
    hour(0.25,    0.30,  0.02,  0.03),
    hour(0.10,    0.20,  0.02,  0.03),
    hour(0.06,    0.15,  0.02,  0.02),
    hour(0.04,    0.12,  0.02,  0.02),
    hour(0.02,    0.10,  0.02,  0.02),
    hour(0.01,    0.08,  0.02,  0.02),
];

/// The cut-off at 17:15: as busy as before for a quarter of an hour, and then the evening's load.
const CUT_OFF_HOUR: u8 = 17;
const CUT_OFF_WITHIN: f64 = 0.25;
const CUT_OFF_BEFORE: f64 = 1.0;

/// A whole day, each hour as long as `hour`, with `rate` operations a second in the busiest.
pub(super) fn segments(rate: f64, hour: Duration, claims: bool) -> Vec<Segment> {
    let hour_s = hour.as_secs_f64();
    let mut segments = Vec::with_capacity(HOURS.len() + 1);
    for (at, shape) in (0u8..).zip(&HOURS) {
        let share = if claims { shape.claims } else { shape.ordinary };
        let whole = Segment {
            rate: rate * share,
            lasts_s: hour_s,
            hour: at,
            logins: shape.logins,
            resumed: shape.resumed,
        };
        if claims && at == CUT_OFF_HOUR {
            let lasts_s = hour_s * CUT_OFF_WITHIN;
            segments.push(Segment { rate: rate * CUT_OFF_BEFORE, lasts_s, ..whole });
            segments.push(Segment { lasts_s: hour_s - lasts_s, ..whole });
        } else {
            segments.push(whole);
        }
    }
    segments
}

/// Operations a second of each hour on average.
pub(super) fn rates(rate: f64, claims: bool) -> Vec<f64> {
    let mut rates = vec![0.0; HOURS.len()];
    for segment in segments(rate, Duration::from_secs(1), claims) {
        if let Some(sum) = rates.get_mut(usize::from(segment.hour)) {
            *sum += segment.rate * segment.lasts_s;
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_whole_and_its_busiest_hour_has_the_rate() {
        for claims in [false, true] {
            let segments = segments(500.0, Duration::from_secs(2), claims);
            let lasts_s: f64 = segments.iter().map(|segment| segment.lasts_s).sum();
            assert!((lasts_s - 48.0).abs() < 1e-9, "{lasts_s}");
            let busiest = segments.iter().map(|segment| segment.rate).fold(0.0, f64::max);
            assert!((busiest - 500.0).abs() < 1e-9, "{busiest}");
            assert!(segments.iter().all(|segment| segment.logins + segment.resumed < 0.5));
        }
    }

    #[test]
    fn claims_fall_off_at_a_quarter_past_five() {
        let evening: Vec<Segment> = segments(100.0, Duration::from_secs(1), true)
            .into_iter()
            .filter(|segment| segment.hour == CUT_OFF_HOUR)
            .collect();
        assert!(matches!(&evening[..], [before, after] if before.rate > after.rate
            && (before.lasts_s - 0.25).abs() < 1e-9));
    }
}
