//! When operations are due: at a steady rate or by segments of different rates, with constant
//! spacing or as a Poisson process. Two copies of the same arrivals give the same times, so that
//! one who looks ahead and one who takes them need no list between them.

use std::f64::consts::TAU;
use std::time::Duration;

use crate::load::Arrival;

/// A stretch of time with one rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Operations a second.
    pub(super) rate: f64,
    pub(super) lasts_s: f64,
    /// Hour of the day, 0 outside days.
    pub(super) hour: u8,
    /// Share of logins: full handshakes.
    pub(super) logins: f64,
    /// Share of connections that resume.
    pub(super) resumed: f64,
}

impl Segment {
    /// One rate for `lasts`, or for ever.
    pub(super) fn steady(rate: f64, lasts: Option<Duration>) -> Self {
        let lasts_s = lasts.map_or(f64::INFINITY, |lasts| lasts.as_secs_f64());
        Self { rate, lasts_s, hour: 0, logins: 0.0, resumed: 0.0 }
    }
}

/// What a day's operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A request on a kept connection.
    Request,
    /// A full handshake with one request.
    Login,
    /// A resumed connection with one request.
    Resume,
}

/// One operation to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    /// From the start of the run.
    pub(super) at: Duration,
    pub(super) kind: Kind,
    pub(super) hour: u8,
}

/// The operations of one thread, in order.
#[derive(Debug, Clone)]
pub(super) struct Arrivals {
    segments: Vec<Segment>,
    segment: usize,
    /// Start of the segment, and where in it the process stands, seconds.
    began_s: f64,
    within_s: f64,
    arrival: Arrival,
    /// Only every `threads`th operation of the whole is this thread's.
    threads: f64,
    left: u64,
    /// How far the next operation is away, in operations of the whole.
    distance: f64,
    random: Random,
}

impl Arrivals {
    pub(super) fn new(
        segments: Vec<Segment>,
        arrival: Arrival,
        left: u64,
        at: u32,
        threads: u32,
    ) -> Self {
        let threads_f = f64::from(threads);
        let mut random = Random::new(u64::from(at));
        let distance = match arrival {
            // Threads take turns.
            Arrival::Constant => f64::from(at),
            Arrival::Poisson => random.exponential() * threads_f,
        };
        Self {
            segments,
            segment: 0,
            began_s: 0.0,
            within_s: 0.0,
            arrival,
            threads: threads_f,
            left,
            distance,
            random,
        }
    }

    fn kind(&mut self, segment: Segment) -> Kind {
        if segment.logins + segment.resumed <= 0.0 {
            return Kind::Request;
        }
        let drawn = self.random.unit();
        if drawn < segment.logins {
            Kind::Login
        } else if drawn < segment.logins + segment.resumed {
            Kind::Resume
        } else {
            Kind::Request
        }
    }
}

impl Iterator for Arrivals {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        self.left = self.left.checked_sub(1)?;
        let segment = loop {
            let segment = *self.segments.get(self.segment)?;
            let here = (segment.lasts_s - self.within_s) * segment.rate;
            if self.distance < here {
                break segment;
            }
            self.distance -= here;
            self.began_s += segment.lasts_s;
            self.within_s = 0.0;
            self.segment += 1;
        };
        self.within_s += self.distance / segment.rate;
        self.distance = self.threads
            * match self.arrival {
                Arrival::Constant => 1.0,
                Arrival::Poisson => self.random.exponential(),
            };
        let kind = self.kind(segment);
        let at = Duration::from_secs_f64(self.began_s + self.within_s);
        Some(Due { at, kind, hour: segment.hour })
    }
}

/// SplitMix64: plain, quick, and the same numbers in every run, so that runs can be compared.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(TAU.to_bits()).wrapping_add(TAU.to_bits()))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Above 0, up to 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }

    /// With mean 1.
    fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(arrival: Arrival, threads: u32) -> Vec<f64> {
        let segment = Segment::steady(1000.0, Some(Duration::from_secs(20)));
        let mut times: Vec<f64> = (0..threads)
            .flat_map(|at| Arrivals::new(vec![segment], arrival, u64::MAX, at, threads))
            .map(|due| due.at.as_secs_f64())
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    #[test]
    fn constant_spacing_is_kept_across_threads() {
        for threads in [1, 3] {
            let times = steady(Arrival::Constant, threads);
            assert!(times.len().abs_diff(20_000) <= 3, "{}", times.len());
            assert!(times.windows(2).all(|pair| (pair[1] - pair[0] - 0.001).abs() < 1e-6));
        }
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_vary_as_such_a_process_does() {
        for threads in [1, 3] {
            let times = steady(Arrival::Poisson, threads);
            // Standard deviation of the count is √20000 = 141: eight of them.
            assert!(times.len().abs_diff(20_000) < 1_130, "{}", times.len());
            let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let square = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
            let deviation = (square / gaps.len() as f64).sqrt();
            assert!((0.9..1.1).contains(&(deviation / mean)), "{deviation} {mean}");
        }
    }

    #[test]
    fn segments_have_their_own_rates_and_silent_ones_are_passed_over() {
        let segment = |rate, hour| Segment { hour, ..Segment { lasts_s: 2.0, ..at(rate) } };
        let segments = vec![segment(100.0, 0), segment(0.0, 1), segment(10.0, 2)];
        let dues: Vec<Due> = Arrivals::new(segments, Arrival::Constant, u64::MAX, 0, 1).collect();
        let count = |hour| dues.iter().filter(|due| due.hour == hour).count();
        assert_eq!((count(0), count(1)), (200, 0));
        assert!(count(2).abs_diff(20) <= 1);
        let begins = |due: &&Due| due.hour == 2 && due.at < Duration::from_secs(4);
        assert!(dues.iter().find(begins).is_none());
    }

    fn at(rate: f64) -> Segment {
        Segment::steady(rate, None)
    }
}
