//! How many persons' documents an office has read in this hour, for the ceilings of an operator's
//! overlays. Only offices that a ceiling applies to are counted.
//!
//! Invariants: the count goes up before the decision, so that requests at one time cannot slip
//! through together; a read that was refused is given back; the memory is bounded, and an office
//! beyond the bound is at its ceiling. Each gateway counts for itself.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

use policies::identity::OfficeNumber;

/// Reads by office in the hour that is running.
pub struct Reads {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    hour: u64,
    counts: HashMap<OfficeNumber, u32>,
}

/// A read that counts; given back when it is dropped before [`Counted::keep`].
pub struct Counted<'a> {
    reads: &'a Reads,
    office: OfficeNumber,
    hour: u64,
    before: u32,
    kept: bool,
}

impl Counted<'_> {
    /// How many came before it in the hour.
    pub fn before(&self) -> u32 {
        self.before
    }

    /// It was allowed, and counts.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.reads.give_back(self.office, self.hour);
        }
    }
}

impl Default for Reads {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new() }
    }
}

impl Reads {
    /// Counts a read at `now` (Unix seconds).
    pub fn take(&self, office: OfficeNumber, now: u64) -> Counted<'_> {
        let hour = now / HOUR_S;
        let before = self.with(office, |shard| {
            if shard.hour != hour {
                *shard = Shard { hour, counts: HashMap::new() };
            }
            if shard.counts.len() >= OFFICES_PER_SHARD_MAX && !shard.counts.contains_key(&office) {
                return u32::MAX;
            }
            let count = shard.counts.entry(office).or_default();
            let before = *count;
            *count = count.saturating_add(1);
            before
        });
        Counted { reads: self, office, hour, before, kept: false }
    }

    fn give_back(&self, office: OfficeNumber, hour: u64) {
        self.with(office, |shard| {
            if shard.hour == hour
                && let Some(count) = shard.counts.get_mut(&office)
            {
                *count = count.saturating_sub(1);
            }
        });
    }

    fn with<T>(&self, office: OfficeNumber, work: impl FnOnce(&mut Shard) -> T) -> T {
        let at = self.hasher.hash_one(office) as usize % SHARDS;
        // INVARIANT: `default` makes SHARDS shards.
        work(&mut self.shards[at].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Seconds until counts begin anew.
pub fn seconds_to_next_hour(now: u64) -> u64 {
    HOUR_S - now % HOUR_S
}

const HOUR_S: u64 = 3600;
const SHARDS: usize = 16;
/// In all more than three times the offices of the country.
const OFFICES_PER_SHARD_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn office() -> OfficeNumber {
        "1370000001".parse().unwrap()
    }

    #[test]
    fn kept_reads_count_until_the_hour_turns_and_refused_ones_do_not() {
        let reads = Reads::default();
        for before in 0..3 {
            let counted = reads.take(office(), 7_200);
            assert_eq!(counted.before(), before);
            counted.keep();
        }
        drop(reads.take(office(), 7_300));
        assert_eq!(reads.take(office(), 10_799).before(), 3);
        let other = "1370000019".parse().unwrap();
        assert_eq!(reads.take(other, 7_400).before(), 0);
        assert_eq!(reads.take(office(), 10_800).before(), 0);
        assert_eq!((seconds_to_next_hour(10_799), seconds_to_next_hour(10_800)), (1, 3_600));
    }

    #[test]
    fn requests_at_one_time_each_see_the_others() {
        let reads = Reads::default();
        let open: Vec<Counted<'_>> = (0..5).map(|_| reads.take(office(), 0)).collect();
        let before: Vec<u32> = open.iter().map(Counted::before).collect();
        assert_eq!(before, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn what_is_given_back_after_the_hour_turned_takes_nothing_from_the_next() {
        let reads = Reads::default();
        let late = reads.take(office(), 3_599);
        reads.take(office(), 3_600).keep();
        drop(late);
        assert_eq!(reads.take(office(), 3_601).before(), 1);
    }
}
