//! Consents at national scale: an immutable base and the changes since it was made.
//!
//! ```text
//!  changes (shared map: person ─► all of the person's) ─► being merged ─► base
//!
//!  base   rows:  person ─► id (40 bits), kinds (16), from (31), term (9)  packed, by person, id
//!         by_id: the rows in the order of the ids
//!         terms: the last seconds that most consents share
//!         rare:  row ─► consent                                            sorted by row
//! ```
//!
//! Most persons gave one consent and most consents last for one of few terms: a row of 18 bytes at
//! some millions. One that was withdrawn, or that a row cannot tell, stands in `rare`, and its row
//! says so. A person in the changes has all of them there: nothing in the base counts any more.
//!
//! INVARIANT: an id is told of one person; a person's consents are in the order of their ids, so
//! that the newest one speaks for the person.

use std::collections::HashMap;
use std::sync::Arc;

use crate::document::DocumentSet;

use super::Consent;
use super::layers::{self, Layers};
use super::packed::{Packed, Packer};
use super::registrations::{EPOCH, RARE, TIMES_BYTES, Terms, seconds, times, times_of};
use super::shared_map::SharedMap;
use super::table::Indexed;

mod copy;

/// Consents by the number of their person (see [`super::pair_key`]).
#[derive(Debug, Clone, Default)]
pub(super) struct Consents {
    layers: Layers<Base, Arc<[Consent]>>,
    /// Whose the consents are that were changed, by id.
    owners: SharedMap<u64, u64>,
}

/// A merge of changes into a new base.
pub(super) type Merge = layers::Merge<Base, Arc<[Consent]>>;
/// A base that is ready to be taken.
pub(super) type Merged = layers::Merged<Base>;

impl Consents {
    /// The person's consents, oldest id first.
    #[inline]
    pub(super) fn of(&self, person: u64) -> impl Iterator<Item = Consent> {
        let changed = self.layers.changed(person);
        let base = changed.is_none().then(|| self.layers.base().of(person));
        changed.into_iter().flat_map(|own| own.iter().copied()).chain(base.into_iter().flatten())
    }

    /// Replaces the consent with the same id.
    pub(super) fn insert(&mut self, person: u64, consent: Consent) {
        let owner = self.owners.get(&consent.id).copied();
        let owner = owner.or_else(|| self.layers.base().owner(consent.id));
        if let Some(owner) = owner.filter(|owner| *owner != person) {
            let others = self.of(owner).filter(|other| other.id != consent.id).collect();
            self.layers.change(owner, others);
        }
        let mut own: Vec<_> = self.of(person).filter(|other| other.id != consent.id).collect();
        own.insert(own.partition_point(|other| other.id < consent.id), consent);
        self.layers.change(person, own.into());
        if owner != Some(person) {
            self.owners.insert(consent.id, person);
        }
    }

    /// How many persons' consents changed since the base was made.
    pub(super) fn changed(&self) -> usize {
        self.layers.changes().len()
    }

    /// Bytes of the base, and how many consents it holds.
    pub(super) fn base_size(&self) -> (usize, usize) {
        let base = self.layers.base();
        (base.bytes(), base.packed.count)
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
        if !self.layers.end_merge(merged) {
            return;
        }
        self.owners = SharedMap::default();
        let Self { layers, owners } = self;
        layers.changes().for_each(|person, own| {
            for consent in &**own {
                owners.insert(consent.id, *person);
            }
        });
    }
}

/// Makes the new base of a merge.
pub(super) fn run(merge: Merge) -> Merged {
    merge.run(|base, changed| {
        let mut gathered = Gathered::default();
        for (row, person) in base.packed.keys().enumerate() {
            if changed.get(&person).is_none() {
                gathered.push(person, base.read(row));
            }
        }
        changed.for_each(|person, own| {
            own.iter().for_each(|consent| gathered.push(*person, *consent));
        });
        gathered.into_base()
    })
}

/// Gathers the consents of a snapshot, in any order.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    rows: Vec<GatheredRow>,
    terms: Terms,
    rare: HashMap<u64, Consent>,
}

#[derive(Debug)]
struct GatheredRow {
    person: u64,
    id: u64,
    since: u32,
    /// Which of the terms, from 1 on; 0 for none.
    term: u32,
    scope: DocumentSet,
}

impl Gathered {
    /// Takes one; a later one of the same id replaces an earlier one.
    pub(super) fn push(&mut self, person: u64, consent: Consent) {
        let Consent { id, scope, from, until, withdrawn } = consent;
        let common = seconds(from).filter(|_| withdrawn.is_none() && id >> ID_BITS == 0);
        let common = common.and_then(|since| Some((since, self.terms.count(until)?)));
        let (since, term) = common.unwrap_or((RARE, 0));
        if since == RARE {
            self.rare.insert(id, consent);
        }
        self.rows.push(GatheredRow { person, id, since, term, scope });
    }

    /// The consents with these as their base.
    pub(super) fn finish(self) -> Consents {
        Consents { layers: Layers::new(self.into_base()), ..Consents::default() }
    }

    fn into_base(self) -> Base {
        let Self { mut rows, terms, rare } = self;
        // Stable, so that of two rows of one id the later stays the later; and they mostly come in
        // this order.
        rows.sort_by_key(|row| row.id);
        rows.reverse();
        rows.dedup_by_key(|row| row.id);
        rows.sort_unstable_by_key(|row| (row.person, row.id));
        let untils = terms.untils();
        let mut builder = Builder::new(rows.len(), terms);
        for row in rows {
            let GatheredRow { person, id, since, term, scope } = row;
            let until = term.checked_sub(1).map(|term| untils[term as usize]);
            let from = EPOCH + u64::from(since);
            let common = Consent { id, scope, from, until, withdrawn: None };
            let rare = (since == RARE).then(|| rare.get(&id).copied()).flatten();
            builder.push(person, rare.unwrap_or(common));
        }
        builder.finish()
    }
}

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Base {
    packed: Packed<VALUE_BYTES>,
    by_id: Vec<u32>,
    terms: Vec<u64>,
    rare: Vec<(u32, Consent)>,
}

impl Base {
    #[inline]
    fn of(&self, person: u64) -> impl Iterator<Item = Consent> {
        self.packed.rows_of(person).map(|row| self.read(row))
    }

    #[inline]
    fn read(&self, row: usize) -> Consent {
        let (id, scope, since, term) = parts(self.packed.value(row));
        if since != RARE {
            let until = term.checked_sub(1).map(|term| self.terms[term]);
            return Consent { id, scope, from: EPOCH + u64::from(since), until, withdrawn: None };
        }
        match self.rare.binary_search_by_key(&(row as u32), |(own, _)| *own) {
            Ok(at) => self.rare[at].1,
            // INVARIANT: the builder enters a rare consent in both places. Closed, if not.
            Err(_) => Consent { id, scope, from: u64::MAX, until: Some(0), withdrawn: Some(0) },
        }
    }

    /// Whose the consent with this id is.
    fn owner(&self, id: u64) -> Option<u64> {
        let id_at = |row: &u32| self.read(*row as usize).id;
        let at = self.by_id.binary_search_by_key(&id, id_at).ok()?;
        Some(self.packed.key(self.by_id[at] as usize))
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
            + self.by_id.capacity() * size_of::<u32>()
            + self.rare.capacity() * size_of::<(u32, Consent)>()
    }
}

/// Writes a base from consents in the order of their persons and ids.
struct Builder {
    packer: Packer<VALUE_BYTES>,
    ids: Vec<(u64, u32)>,
    terms: Vec<u64>,
    numbers: Indexed<u64, u64>,
    rare: Vec<(u32, Consent)>,
}

impl Builder {
    fn new(count: usize, terms: Terms) -> Self {
        let terms = terms.commonest();
        let mut numbers = Indexed::default();
        terms.iter().zip(1..).for_each(|(until, number)| {
            numbers.insert(*until, number);
        });
        let ids = Vec::with_capacity(count);
        Self { packer: Packer::new(count), ids, terms, numbers, rare: Vec::new() }
    }

    fn push(&mut self, person: u64, consent: Consent) {
        let Consent { id, scope, from, until, withdrawn } = consent;
        let row = self.packer.count() as u32;
        let number = until.map_or(Some(0), |until| self.numbers.get(&until).copied());
        let common = seconds(from).zip(number);
        let common = common.filter(|_| withdrawn.is_none() && id >> ID_BITS == 0);
        if common.is_none() {
            self.rare.push((row, consent));
        }
        let (since, number) = common.unwrap_or((RARE, 0));
        self.packer.push(person, value(id, scope, since, number));
        self.ids.push((id, row));
    }

    fn finish(self) -> Base {
        let Self { packer, mut ids, terms, mut rare, .. } = self;
        ids.sort_unstable();
        rare.shrink_to_fit();
        let by_id = ids.into_iter().map(|(_, row)| row).collect();
        Base { packed: packer.finish(), by_id, terms, rare }
    }
}

fn value(id: u64, scope: DocumentSet, since: u32, number: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    value[..ID_BYTES].copy_from_slice(&id.to_le_bytes()[..ID_BYTES]);
    value[ID_BYTES..ID_BYTES + 2].copy_from_slice(&scope.bits().to_le_bytes());
    value[ID_BYTES + 2..].copy_from_slice(&times(since, number));
    value
}

/// Id, kinds, from and the number of the term.
#[inline]
fn parts(value: [u8; VALUE_BYTES]) -> (u64, DocumentSet, u32, usize) {
    let [i0, i1, i2, i3, i4, s0, s1, times @ ..] = value;
    let id = u64::from_le_bytes([i0, i1, i2, i3, i4, 0, 0, 0]);
    // INVARIANT: only bits of known kinds are written or read from a copy.
    let scope = DocumentSet::from_bits(u16::from_le_bytes([s0, s1])).unwrap_or_default();
    let (since, term) = times_of(times);
    (id, scope, since, term)
}

const ID_BYTES: usize = 5;
const ID_BITS: u32 = 40;
const VALUE_BYTES: usize = ID_BYTES + 2 + TIMES_BYTES;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::shared_map::mix;
    use super::*;
    use crate::document::DocumentKind;

    fn consent() -> impl Strategy<Value = Consent> {
        let id = prop_oneof![8 => 0u64..40, 1 => (1u64 << 40) - 1..(1 << 40) + 2];
        let time = || prop_oneof![4 => EPOCH..EPOCH + 20, 1 => 0u64..1 << 60, 1 => Just(u64::MAX)];
        let kinds = prop::sample::subsequence(DocumentKind::ALL.to_vec(), 0..=12);
        let rarely = || prop::option::weighted(0.3, time());
        (id, kinds, time(), rarely(), rarely()).prop_map(|(id, kinds, from, until, withdrawn)| {
            Consent { id, scope: DocumentSet::from_iter(kinds), from, until, withdrawn }
        })
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u64, Consent),
        BeginMerge,
        EndMerge,
        Replace(Vec<(u64, Consent)>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let entry = || (0u64..20, consent());
        prop_oneof![
            20 => entry().prop_map(|(person, consent)| Step::Put(person, consent)),
            2 => Just(Step::BeginMerge),
            2 => Just(Step::EndMerge),
            1 => prop::collection::vec(entry(), 0..100).prop_map(Step::Replace),
        ]
    }

    type Model = BTreeMap<u64, (u64, Consent)>;

    fn agree(own: &Consents, model: &Model) {
        for person in 0..20 {
            let expected = model.values().filter(|(owner, _)| *owner == person);
            let expected: Vec<_> = expected.map(|(_, consent)| *consent).collect();
            assert_eq!(own.of(mix(person)).collect::<Vec<_>>(), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn they_are_a_map_through_changes_merges_and_snapshots(
            steps in prop::collection::vec(step(), 0..200)
        ) {
            let (mut own, mut model) = (Consents::default(), Model::new());
            let mut merges = Vec::new();
            for step in steps {
                let reader = (own.clone(), model.clone());
                match step {
                    Step::Put(person, consent) => {
                        own.insert(mix(person), consent);
                        model.insert(consent.id, (person, consent));
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
                        for (person, consent) in entries {
                            gathered.push(mix(person), consent);
                            model.insert(consent.id, (person, consent));
                        }
                        own = gathered.finish();
                        prop_assert_eq!(own.base_size().1, model.len());
                    }
                }
                agree(&own, &model);
                agree(&reader.0, &reader.1);
            }
        }
    }

    #[test]
    fn a_consent_costs_what_the_module_says() {
        let count = 300_000;
        let mut gathered = Gathered::default();
        for id in 0..count {
            let (from, until) = (1_790_000_000 + id, Some(1_900_000_000 + id % 400 * 86_400));
            let scope = DocumentSet::held();
            gathered.push(mix(id), Consent { id, scope, from, until, withdrawn: None });
        }
        let (bytes, held) = gathered.finish().base_size();
        assert_eq!(held as u64, count);
        // A row of 18 bytes, 4 in the order of the ids, and the share of the index.
        assert!(bytes <= 25 * held, "{bytes} bytes for {held}");
    }
}
