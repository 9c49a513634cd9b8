//! Registrations at national scale: an immutable base and the changes since it was made.
//!
//! ```text
//!  changes (shared map) ─► being merged (shared map) ─► base
//!
//!  base   rows:  key ─► from (31 bits) │ term (9 bits)    packed, see `packed`
//!         terms: the last seconds that most registrations share
//!         rare:  key ─► from, until, ended                sorted by key
//! ```
//!
//! At 40 million registrations a row has 5 bytes of its key, 5 of times, and its share of the index
//! is 1.7. Registrations lapse on few different days, so a row names its last second by a number.
//! One that was ended, that lapses when few others do, or that began before 2000 or after 2068
//! stands in `rare`, and its row says so.
//!
//! INVARIANT: a key is in the base once; keys are compared whole.

use std::collections::HashMap;

use super::Registration;
use super::layers::{self, Layers};
use super::packed::{Packed, Packer};
use super::table::Indexed;

mod copy;

/// Registrations by the number of their pair.
#[derive(Debug, Clone, Default)]
pub(super) struct Registrations {
    layers: Layers<Base, Registration>,
}

/// A merge of changes into a new base.
pub(super) type Merge = layers::Merge<Base, Registration>;
/// A base that is ready to be taken.
pub(super) type Merged = layers::Merged<Base>;

impl Registrations {
    /// The registration of the pair with this number.
    pub(super) fn get(&self, key: u64) -> Option<Registration> {
        self.layers.changed(key).copied().or_else(|| self.layers.base().get(key))
    }

    /// Sets one registration.
    pub(super) fn insert(&mut self, key: u64, registration: Registration) {
        self.layers.change(key, registration);
    }

    /// Bytes of the base, and how many registrations it holds.
    pub(super) fn base_size(&self) -> (usize, usize) {
        let base = self.layers.base();
        (base.bytes(), base.packed.count)
    }

    /// How many changed since the base was made.
    pub(super) fn changed(&self) -> usize {
        self.layers.changes().len()
    }

    /// Whether a merge is under way.
    pub(super) fn is_merging(&self) -> bool {
        self.layers.is_merging()
    }

    /// What a merge needs, if anything changed and no merge is under way.
    pub(super) fn begin_merge(&mut self) -> Option<Merge> {
        self.layers.begin_merge()
    }

    /// Takes the merged base.
    pub(super) fn end_merge(&mut self, merged: Merged) {
        self.layers.end_merge(merged);
    }
}

/// Makes the new base of a merge.
pub(super) fn run(merge: Merge) -> Merged {
    merge.run(|base, changed| {
        let mut changes = Vec::with_capacity(changed.len());
        changed.for_each(|key, registration| changes.push((*key, *registration)));
        changes.sort_unstable_by_key(|(key, _)| *key);
        let mut terms = Terms::default();
        let all = base.iter().chain(changes.iter().copied());
        all.for_each(|(_, registration)| {
            terms.count(registration.until);
        });
        let mut builder = Builder::new(base.packed.count + changes.len(), terms);
        let mut changes = changes.into_iter().peekable();
        for (key, registration) in base.iter() {
            while let Some((key, registration)) = changes.next_if(|(changed, _)| *changed < key) {
                builder.push(key, registration);
            }
            let (_, registration) =
                changes.next_if(|(changed, _)| *changed == key).unwrap_or((key, registration));
            builder.push(key, registration);
        }
        changes.for_each(|(key, registration)| builder.push(key, registration));
        builder.finish()
    })
}

/// Gathers the registrations of a snapshot, in any order.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// By the first bits of the key: each part is sorted by itself, while it fits a cache.
    parts: Vec<Vec<GatheredRow>>,
    terms: Terms,
    rare: HashMap<u64, Registration>,
}

#[derive(Debug)]
struct GatheredRow {
    key: u64,
    since: u32,
    /// Which of the terms, from 1 on; 0 for none.
    term: u32,
}

impl Gathered {
    /// Takes one; a later one of the same pair replaces an earlier one.
    pub(super) fn push(&mut self, key: u64, registration: Registration) {
        let term = self.terms.count(registration.until);
        let row = match (common(registration), term) {
            (Some(since), Some(term)) => GatheredRow { key, since, term },
            (Some(_), None) | (None, _) => {
                self.rare.insert(key, registration);
                GatheredRow { key, since: RARE, term: 0 }
            }
        };
        if self.parts.is_empty() {
            self.parts.resize_with(1 << PART_BITS, Vec::new);
        }
        self.parts[(key >> (u64::BITS - PART_BITS)) as usize].push(row);
    }

    /// The registrations with these as their base.
    pub(super) fn finish(self) -> Registrations {
        let Self { mut parts, terms, rare } = self;
        sort(&mut parts);
        let untils = terms.untils();
        let mut builder = Builder::new(parts.iter().map(Vec::len).sum(), terms);
        let numbers: Vec<Option<u64>> =
            untils.iter().map(|until| builder.number(Some(*until))).collect();
        for rows in parts {
            for (at, row) in rows.iter().enumerate() {
                if rows.get(at + 1).is_some_and(|next| next.key == row.key) {
                    continue;
                }
                let rare = (row.since == RARE).then(|| rare.get(&row.key).copied()).flatten();
                let number = match row.term.checked_sub(1) {
                    Some(term) => numbers[term as usize],
                    None => Some(0),
                };
                match (rare, number) {
                    (None, Some(number)) => builder.push_common(row.key, row.since, number),
                    (Some(rare), _) => builder.push(row.key, rare),
                    (None, None) => {
                        let until = row.term.checked_sub(1).map(|term| untils[term as usize]);
                        builder.push(row.key, Registration { until, ..since(row.since) });
                    }
                }
            }
        }
        Registrations { layers: Layers::new(builder.finish()) }
    }
}

/// Sorts each part, on as many cores as a start may take. Stable, so that of two rows of one pair
/// the later stays the later.
fn sort(parts: &mut [Vec<GatheredRow>]) {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4));
    let each = parts.len().div_ceil(cores).max(1);
    let sort = |parts: &mut [Vec<GatheredRow>]| {
        parts.iter_mut().for_each(|rows| rows.sort_by_key(|row| row.key));
    };
    std::thread::scope(|scope| {
        let mut shares = parts.chunks_mut(each);
        let own = shares.next();
        shares.for_each(|share| drop(scope.spawn(move || sort(share))));
        own.into_iter().for_each(sort);
    });
}

/// Last seconds, and how many have each.
#[derive(Debug, Default)]
pub(super) struct Terms {
    seen: Indexed<u64, u64>,
}

impl Terms {
    /// Counts one; returns the number of its last second, from 1 on, 0 for none. `None` if there
    /// were too many different ones to count another.
    pub(super) fn count(&mut self, until: Option<u64>) -> Option<u32> {
        let Some(until) = until else { return Some(0) };
        let place = match self.seen.place(&until) {
            Some(place) => place,
            None if self.seen.entries().len() == TERMS_COUNTED_MAX => return None,
            None => {
                self.seen.insert(until, 0);
                self.seen.entries().len() - 1
            }
        };
        *self.seen.value_mut(place) += 1;
        Some(place as u32 + 1)
    }

    /// Those that were counted, in the order of their numbers.
    pub(super) fn untils(&self) -> Vec<u64> {
        self.seen.entries().iter().map(|(until, _)| *until).collect()
    }

    /// The commonest ones, as many as a row can name.
    pub(super) fn commonest(self) -> Vec<u64> {
        let mut seen = self.seen.entries().to_vec();
        seen.sort_unstable_by_key(|(until, count)| (std::cmp::Reverse(*count), *until));
        seen.into_iter().take(TERMS_MAX).map(|(until, _)| until).collect()
    }
}

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Base {
    packed: Packed<TIMES_BYTES>,
    terms: Vec<u64>,
    rare: Vec<(u64, Rare)>,
}

/// From, until and ended; [`NONE`] stands for none.
#[derive(Debug, Clone, Copy)]
struct Rare {
    registration: [u64; 3],
}

impl Base {
    fn get(&self, key: u64) -> Option<Registration> {
        self.packed.rows_of(key).next().map(|row| self.read(key, row))
    }

    #[inline]
    fn read(&self, key: u64, row: usize) -> Registration {
        let (from, term) = times_of(self.packed.value(row));
        if from != RARE {
            let until = term.checked_sub(1).map(|term| self.terms[term]);
            return Registration { until, ..since(from) };
        }
        match find(&self.rare, key) {
            Some(at) => self.rare[at].1.read(),
            // INVARIANT: the builder enters a rare registration in both places. Closed, if not.
            None => Registration { from: u64::MAX, until: Some(0), ended: Some(0) },
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, Registration)> {
        self.packed.keys().enumerate().map(move |(row, key)| (key, self.read(key, row)))
    }

    fn bytes(&self) -> usize {
        self.packed.bytes() + self.rare.capacity() * size_of::<(u64, Rare)>()
    }
}

/// The place of `key`. Keys are well mixed, so it lies about where the key says, and the search
/// does not wait for memory all over the table.
fn find(rare: &[(u64, Rare)], key: u64) -> Option<usize> {
    let guess = ((u128::from(key) * rare.len() as u128) >> u64::BITS) as usize;
    let mut reach = 64;
    loop {
        let (first, end) = (guess.saturating_sub(reach), (guess + reach).min(rare.len()));
        let begins = first == 0 || rare[first].0 <= key;
        let ends = end == rare.len() || rare[end].0 > key;
        if begins && ends {
            let found = rare[first..end].binary_search_by_key(&key, |(own, _)| *own);
            return found.ok().map(|at| first + at);
        }
        reach *= 4;
    }
}

impl Rare {
    fn new(registration: Registration) -> Self {
        let Registration { from, until, ended } = registration;
        // A last second that never comes is none at all, and an end is an end whenever it was.
        let ended = ended.map_or(NONE, |ended| ended.min(NONE - 1));
        Self { registration: [from, until.unwrap_or(NONE), ended] }
    }

    fn read(self) -> Registration {
        let [from, until, ended] = self.registration;
        let some = |value| (value != NONE).then_some(value);
        Registration { from, until: some(until), ended: some(ended) }
    }
}

/// Writes a base from registrations in the order of their keys.
struct Builder {
    packer: Packer<TIMES_BYTES>,
    terms: Vec<u64>,
    numbers: Indexed<u64, u64>,
    rare: Vec<(u64, Rare)>,
}

impl Builder {
    /// For at most `count` registrations, whose last seconds were counted.
    fn new(count: usize, terms: Terms) -> Self {
        let terms = terms.commonest();
        let mut numbers = Indexed::default();
        terms.iter().zip(1..).for_each(|(until, number)| {
            numbers.insert(*until, number);
        });
        Self { packer: Packer::new(count), terms, numbers, rare: Vec::new() }
    }

    /// The number by which a row names its last second, if it can.
    fn number(&self, until: Option<u64>) -> Option<u64> {
        until.map_or(Some(0), |until| self.numbers.get(&until).copied())
    }

    fn push(&mut self, key: u64, registration: Registration) {
        if let Some((since, number)) = common(registration).zip(self.number(registration.until)) {
            return self.push_common(key, since, number);
        }
        self.packer.push(key, times(RARE, 0));
        self.rare.push((key, Rare::new(registration)));
    }

    fn push_common(&mut self, key: u64, since: u32, number: u64) {
        self.packer.push(key, times(since, number));
    }

    fn finish(self) -> Base {
        let Self { packer, terms, mut rare, .. } = self;
        rare.shrink_to_fit();
        Base { packed: packer.finish(), terms, rare }
    }
}

/// The beginning as a row holds it: seconds since 2000. `None` if the row cannot tell all.
fn common(registration: Registration) -> Option<u32> {
    seconds(registration.from).filter(|_| registration.ended.is_none())
}

/// Seconds since 2000, if they are few enough for a row.
pub(super) fn seconds(from: u64) -> Option<u32> {
    let since = u32::try_from(from.checked_sub(EPOCH)?).ok()?;
    (since < RARE).then_some(since)
}

fn since(since: u32) -> Registration {
    Registration { from: EPOCH + u64::from(since), until: None, ended: None }
}

/// A row's times: 31 bits of `from`, 9 bits that number the term.
pub(super) fn times(since: u32, number: u64) -> [u8; TIMES_BYTES] {
    let mut times = [0; TIMES_BYTES];
    let word = u64::from(since) << TERM_BITS | number;
    times.copy_from_slice(&word.to_le_bytes()[..TIMES_BYTES]);
    times
}

/// `from` and the number of the term.
pub(super) fn times_of(times: [u8; TIMES_BYTES]) -> (u32, usize) {
    let [a, b, c, d, e] = times;
    let word = u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]);
    ((word >> TERM_BITS) as u32, (word as usize) & TERMS_MAX)
}

pub(super) const TIMES_BYTES: usize = 5;
const TERM_BITS: u32 = 9;
pub(super) const TERMS_MAX: usize = (1 << TERM_BITS) - 1;
/// More different last seconds than these are not counted: such registrations are rare ones.
const TERMS_COUNTED_MAX: usize = 1 << 16;
/// In place of `from`: see `rare`.
pub(super) const RARE: u32 = (1 << 31) - 1;
/// 2000-01-01T00:00:00Z, Unix seconds.
pub(super) const EPOCH: u64 = 946_684_800;
const NONE: u64 = u64::MAX;
/// Parts of a snapshot's registrations while they are sorted: 1,024, of 600 KB each at 40 million.
const PART_BITS: u32 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::shared_map::mix;
    use super::*;

    const RARE_FROM: u64 = EPOCH + RARE as u64;

    fn registration() -> impl Strategy<Value = Registration> {
        let odd = RARE_FROM - 1..=RARE_FROM + 1;
        let time =
            move || prop_oneof![3 => EPOCH..EPOCH + 40, 1 => odd.clone(), 1 => 0u64..1 << 60];
        let rarely = || prop::option::weighted(0.2, time());
        (time(), rarely(), rarely()).prop_map(|(from, until, ended)| Registration {
            from,
            until,
            ended,
        })
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u64, Registration),
        BeginMerge,
        EndMerge,
        Replace(Vec<(u64, Registration)>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let entry = || (0u64..300, registration());
        prop_oneof![
            20 => entry().prop_map(|(key, registration)| Step::Put(key, registration)),
            2 => Just(Step::BeginMerge),
            2 => Just(Step::EndMerge),
            1 => prop::collection::vec(entry(), 0..400).prop_map(Step::Replace),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn they_are_a_map_through_changes_merges_and_snapshots(
            steps in prop::collection::vec(step(), 0..200)
        ) {
            let (mut own, mut model) = (Registrations::default(), HashMap::new());
            let mut merges = Vec::new();
            for step in steps {
                let reader = (own.clone(), model.clone());
                match step {
                    Step::Put(key, registration) => {
                        own.insert(mix(key), registration);
                        model.insert(key, registration);
                    }
                    Step::BeginMerge => merges.extend(own.begin_merge()),
                    Step::EndMerge => {
                        if let Some(merge) = merges.pop() {
                            own.end_merge(run(merge));
                        }
                    }
                    Step::Replace(entries) => {
                        let mut gathered = Gathered::default();
                        model.clear();
                        for (key, registration) in entries {
                            gathered.push(mix(key), registration);
                            model.insert(key, registration);
                        }
                        own = gathered.finish();
                        prop_assert_eq!(own.base_size().1, model.len());
                    }
                }
                for (own, model) in [(&own, &model), (&reader.0, &reader.1)] {
                    for key in 0..300 {
                        prop_assert_eq!(own.get(mix(key)), model.get(&key).copied());
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_costs_what_the_module_says() {
        let count = 300_000;
        let mut gathered = Gathered::default();
        for at in 0..count {
            let from = 1_790_000_000 + at;
            // Lapses at the end of one of 500 days.
            let until = Some(1_800_000_000 + at % 500 * 86_400);
            gathered.push(mix(at), Registration { from, until, ended: None });
        }
        let (bytes, held) = gathered.finish().base_size();
        assert_eq!(held as u64, count);
        // 17 bucket bits: 6 + 5 bytes and 2¹⁷ offsets; one byte less each at national scale.
        assert!(bytes <= 13 * held, "{bytes} bytes for {held}");
    }

    #[test]
    fn more_terms_than_a_row_can_name_are_kept_all_the_same() {
        let registration = |at: u64| Registration {
            from: EPOCH + at,
            until: (!at.is_multiple_of(3)).then_some(EPOCH + at % 700 * 86_400),
            ended: None,
        };
        let mut gathered = Gathered::default();
        (0..5_000).for_each(|at| gathered.push(mix(at), registration(at)));
        let mut own = gathered.finish();
        (4_000..6_000).for_each(|at| own.insert(mix(at), registration(at + 1)));
        let merge = own.begin_merge().unwrap();
        own.end_merge(run(merge));
        assert_eq!(own.base_size().1, 6_000);
        for at in 0..6_000 {
            let expected = registration(if at < 4_000 { at } else { at + 1 });
            assert_eq!(own.get(mix(at)), Some(expected), "{at}");
        }
    }

    #[test]
    fn a_merge_of_registrations_replaced_since_is_dropped() {
        let since = |from| Registration { from, until: None, ended: None };
        let mut own = Registrations::default();
        own.insert(1, since(1));
        let merge = own.begin_merge().unwrap();
        assert!(own.begin_merge().is_none(), "one at a time");
        let mut gathered = Gathered::default();
        gathered.push(2, since(2));
        own = gathered.finish();
        own.end_merge(run(merge));
        assert_eq!((own.get(1), own.get(2)), (None, Some(since(2))));
    }
}
