//! A map of what a snapshot brought, with the changes since above it.
//!
//! ```text
//!  changes (shared map) ─► base   slots:   half of the key's spread │ place among the entries
//!                                 entries: key, value               in the order they came
//! ```
//!
//! A look-up waits for memory twice, and once for a key that is not there: the slot tells that from
//! half of the spread. Keys are compared whole all the same. While nobody else holds the base it is
//! changed in place, so that loading makes no changes; afterwards it is never written again.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use super::shared_map::{SharedMap, spread};

/// See the module's words.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    base: Arc<Indexed<K, V>>,
    /// What changed since; `None` for what was taken out.
    changes: SharedMap<K, Option<V>>,
    count: usize,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { base: Arc::clone(&self.base), changes: self.changes.clone(), count: self.count }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { base: Arc::default(), changes: SharedMap::default(), count: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Table<K, V> {
    /// How many entries it holds.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The value of `key`.
    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(changed) = self.changes.get(key) {
            return changed.as_ref();
        }
        self.base.get(key)
    }

    /// Sets the value of `key`.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.changes.len() == 0
            && let Some(base) = Arc::get_mut(&mut self.base)
        {
            self.count += usize::from(base.insert(key, value));
            return;
        }
        self.count += usize::from(self.get(&key).is_none());
        self.changes.insert(key, Some(value));
    }

    /// Takes out the entry of `key`.
    pub(super) fn remove(&mut self, key: &K) {
        if self.get(key).is_some() {
            self.count -= 1;
            self.changes.insert(key.clone(), None);
        }
    }

    /// Calls `visit` with every entry, in no order, until it fails.
    pub(super) fn try_for_each<E>(
        &self,
        mut visit: impl FnMut(&K, &V) -> Result<(), E>,
    ) -> Result<(), E> {
        for (key, value) in &self.base.entries {
            if self.changes.get(key).is_none() {
                visit(key, value)?;
            }
        }
        let mut visit_some = |key: &K, value: &Option<V>| match value {
            Some(value) => visit(key, value),
            None => Ok(()),
        };
        self.changes.try_for_each(&mut visit_some)
    }
}

/// Entries in the order in which they came, found through an open table.
#[derive(Debug)]
pub(super) struct Indexed<K, V> {
    slots: Vec<u64>,
    entries: Vec<(K, V)>,
}

impl<K, V> Default for Indexed<K, V> {
    fn default() -> Self {
        Self { slots: Vec::new(), entries: Vec::new() }
    }
}

impl<K: Hash + Eq, V> Indexed<K, V> {
    /// The entries, in the order in which they came.
    pub(super) fn entries(&self) -> &[(K, V)] {
        &self.entries
    }

    /// The value of `key`.
    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        // INVARIANT: a slot names a place among the entries.
        self.place(key).map(|place| &self.entries[place].1)
    }

    /// The place of `key` among the entries.
    #[inline]
    pub(super) fn place<Q>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut probe = Probe::new(spread(key), self.slots.len())?;
        loop {
            let slot = self.slots[probe.at];
            if slot == EMPTY {
                return None;
            }
            let place = (slot as u32) as usize;
            if slot >> TAG_SHIFT == probe.tag && self.entries[place].0.borrow() == key {
                return Some(place);
            }
            probe.step();
        }
    }

    /// The entry at a place, to change its value.
    pub(super) fn value_mut(&mut self, place: usize) -> &mut V {
        &mut self.entries[place].1
    }

    /// Sets the value of `key`; says whether it is a new one.
    pub(super) fn insert(&mut self, key: K, value: V) -> bool {
        if let Some(place) = self.place(&key) {
            self.entries[place].1 = value;
            return false;
        }
        if (self.entries.len() + 1) * 4 > self.slots.len() * 3 {
            self.slots = vec![EMPTY; (self.slots.len() * 2).max(SLOTS_MIN)];
            for (place, (key, _)) in self.entries.iter().enumerate() {
                put(&mut self.slots, spread(key), place);
            }
        }
        put(&mut self.slots, spread(&key), self.entries.len());
        self.entries.push((key, value));
        true
    }
}

/// INVARIANT: at least a quarter of the slots is empty.
fn put(slots: &mut [u64], spread: u64, place: usize) {
    let Some(mut probe) = Probe::new(spread, slots.len()) else { return };
    while slots[probe.at] != EMPTY {
        probe.step();
    }
    slots[probe.at] = probe.tag << TAG_SHIFT | place as u64;
}

/// The slots at which a key may be, one after the other.
struct Probe {
    at: usize,
    mask: usize,
    tag: u64,
}

impl Probe {
    #[inline]
    fn new(spread: u64, slots: usize) -> Option<Self> {
        let mask = slots.checked_sub(1)?;
        Some(Self { at: spread as usize & mask, mask, tag: spread >> TAG_SHIFT })
    }

    #[inline]
    fn step(&mut self) {
        self.at = (self.at + 1) & self.mask;
    }
}

const TAG_SHIFT: u32 = 32;
/// No place is this one: there are never so many entries.
const EMPTY: u64 = u64::MAX;
const SLOTS_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Many keys of one spread, so that slots are stepped through.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Clashing(u16);

    impl Hash for Clashing {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            (self.0 % 5).hash(state);
        }
    }

    fn agree(steps: &[(u16, Option<u8>)], copy_each: usize) {
        let (mut table, mut model) = (Table::default(), HashMap::new());
        let mut earlier = Vec::new();
        for (at, (raw, value)) in steps.iter().enumerate() {
            match value {
                Some(value) => {
                    table.insert(Clashing(*raw), *value);
                    model.insert(*raw, *value);
                }
                None => {
                    table.remove(&Clashing(*raw));
                    model.remove(raw);
                }
            }
            if at % copy_each == copy_each - 1 {
                earlier.push((table.clone(), model.clone()));
            }
        }
        earlier.push((table, model));
        for (table, model) in earlier {
            assert_eq!(table.len(), model.len());
            let mut seen = HashMap::new();
            let visit = |key: &Clashing, value: &u8| {
                assert_eq!(seen.insert(key.0, *value), None);
                Ok::<(), ()>(())
            };
            table.try_for_each(visit).unwrap();
            assert_eq!(seen, model);
            for raw in 0..300 {
                assert_eq!(table.get(&Clashing(raw)), model.get(&raw));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn it_is_a_hash_map_and_a_copy_stays_as_it_was(
            steps in prop::collection::vec((0u16..300, prop::option::weighted(0.8, 0u8..)), 0..500),
            copy_each in 1usize..600,
        ) {
            agree(&steps, copy_each);
        }
    }
}
