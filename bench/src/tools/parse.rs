//! What h2load and ApacheBench print.

/// What a public tool says of its run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Told {
    /// Requests answered with 2xx, without those that failed.
    pub(super) good: u64,
    pub(super) per_second: f64,
}

impl Told {
    /// `finished in 1.64s, 18310.51 req/s, …` and `status codes: 30000 2xx, …`.
    pub(super) fn from_h2load(text: &str) -> Option<Self> {
        let finished = after(text, "finished in ")?;
        let rate = finished.split(", ").find_map(|part| part.strip_suffix(" req/s"))?;
        let codes = after(text, "status codes: ")?;
        let good = codes.split(", ").find_map(|part| part.strip_suffix(" 2xx"))?;
        Some(Self { good: good.trim().parse().ok()?, per_second: positive(rate)? })
    }

    /// `Complete requests:`, `Failed requests:`, `Requests per second:`, and only if there are
    /// any, `Non-2xx responses:`.
    pub(super) fn from_ab(text: &str) -> Option<Self> {
        let count = |name| after(text, name)?.trim().parse::<u64>().ok();
        let complete = count("Complete requests:")?;
        let failed = count("Failed requests:")?;
        let other = match after(text, "Non-2xx responses:") {
            Some(_) => count("Non-2xx responses:")?,
            None => 0,
        };
        let rate = after(text, "Requests per second:")?.split_whitespace().next()?;
        let good = complete.checked_sub(failed)?.checked_sub(other)?;
        Some(Self { good, per_second: positive(rate)? })
    }
}

/// The rest of the first line that begins with `name`.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

fn positive(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const H2LOAD: &str = "progress: 100% done\n\n\
        finished in 1.64s, 18310.51 req/s, 20.48MB/s\n\
        requests: 30000 total, 30000 started, 30000 done, 29990 succeeded, 10 failed\n\
        status codes: 29990 2xx, 0 3xx, 10 4xx, 0 5xx\n";
    const AB: &str = "Complete requests:      30000\n\
        Failed requests:        5\n   (Connect: 0, Receive: 0, Length: 5, Exceptions: 0)\n\
        Non-2xx responses:      7\n\
        Requests per second:    17432.25 [#/sec] (mean)\n";

    #[test]
    fn h2load_is_read_and_only_good_answers_count() {
        assert_eq!(Told::from_h2load(H2LOAD), Some(Told { good: 29_990, per_second: 18_310.51 }));
        let nothing = "finished in 1.69ms, 0.00 req/s, 0B/s\nstatus codes: 0 2xx, 0 3xx\n";
        assert_eq!(Told::from_h2load(nothing), None);
        assert_eq!(Told::from_h2load(AB), None);
    }

    #[test]
    fn ab_is_read_and_only_good_answers_count() {
        assert_eq!(Told::from_ab(AB), Some(Told { good: 29_988, per_second: 17_432.25 }));
        let all_good = AB.replace("Non-2xx responses:      7\n", "");
        assert_eq!(Told::from_ab(&all_good).map(|told| told.good), Some(29_995));
        let unclear = AB.replace("responses:      7", "responses:      many");
        assert_eq!(Told::from_ab(&unclear), None);
        assert_eq!(Told::from_ab(H2LOAD), None);
    }
}
