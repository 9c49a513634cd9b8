//! A map whose copies share what they have in common: a copy is one pointer, and a change copies
//! only the few nodes on its way, never the map. So the writer changes its copy in microseconds
//! while readers go on with theirs.
//!
//! ```text
//!  root (branch of 64) ─► branch of 64 ─► leaf: at most 32 entries, found by comparing keys
//! ```
//!
//! Invariants: keys are compared whole, the spread only chooses the way; an entry lies on the way
//! that its spread names and nowhere else.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// See the module's words.
#[derive(Debug)]
pub(super) struct SharedMap<K, V> {
    root: Node<K, V>,
    count: usize,
}

/// Its pointer leads to the entries or children themselves: each step on the way to an entry is one
/// wait for memory.
#[derive(Debug)]
enum Node<K, V> {
    Leaf(Arc<[(K, V)]>),
    Branch(Arc<[Node<K, V>; CHILDREN]>),
}

impl<K, V> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(entries) => Self::Leaf(Arc::clone(entries)),
            Self::Branch(children) => Self::Branch(Arc::clone(children)),
        }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), count: self.count }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { root: Node::Leaf(Arc::new([])), count: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SharedMap<K, V> {
    /// How many entries it holds.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The value of `key`.
    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.count == 0 {
            return None;
        }
        let mut way = spread(key);
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let own = entries.iter().find(|(own, _)| own.borrow() == key);
                    return own.map(|(_, value)| value);
                }
                Node::Branch(children) => {
                    node = &children[step(way)];
                    way >>= STEP_BITS;
                }
            }
        }
    }

    /// Sets the value of `key`; returns the one before.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let way = spread(&key);
        let before = insert_at(&mut self.root, way, 0, key, value);
        self.count += usize::from(before.is_none());
        before
    }

    /// Calls `visit` with every entry, in no order.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&K, &V)) {
        let visit = |key: &K, value: &V| -> Result<(), std::convert::Infallible> {
            visit(key, value);
            Ok(())
        };
        let Ok(()) = self.try_for_each(visit);
    }

    /// Calls `visit` with every entry, in no order, until it fails.
    pub(super) fn try_for_each<E>(
        &self,
        mut visit: impl FnMut(&K, &V) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut waiting = vec![&self.root];
        while let Some(node) = waiting.pop() {
            match node {
                Node::Leaf(entries) => {
                    entries.iter().try_for_each(|(key, value)| visit(key, value))?;
                }
                Node::Branch(children) => waiting.extend(children.iter()),
            }
        }
        Ok(())
    }
}

fn insert_at<K: Hash + Eq + Clone, V: Clone>(
    node: &mut Node<K, V>,
    way: u64,
    depth: u32,
    key: K,
    value: V,
) -> Option<V> {
    let entries = match node {
        Node::Branch(children) => {
            let child = &mut Arc::make_mut(children)[step(way)];
            return insert_at(child, way >> STEP_BITS, depth + 1, key, value);
        }
        Node::Leaf(entries) => entries,
    };
    if let Some(at) = entries.iter().position(|(own, _)| *own == key) {
        return Some(std::mem::replace(&mut Arc::make_mut(entries)[at].1, value));
    }
    // At the last depth the spread has no bits left to part the entries by.
    if entries.len() < LEAF_ENTRIES_MAX || depth == DEPTH_MAX {
        *entries = entries.iter().cloned().chain([(key, value)]).collect();
        return None;
    }
    let mut parts: [Vec<(K, V)>; CHILDREN] = std::array::from_fn(|_| Vec::new());
    for entry in entries.iter().cloned().chain([(key, value)]) {
        parts[step(spread(&entry.0) >> (depth * STEP_BITS))].push(entry);
    }
    *node = Node::Branch(Arc::new(parts.map(|part| Node::Leaf(part.into()))));
    None
}

fn step(way: u64) -> usize {
    (way % CHILDREN as u64) as usize
}

/// A mix of 64 bits that can be undone: different values stay different, and near ones end far from
/// each other (the finalizer of SplitMix64).
pub(super) const fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The value that was mixed.
pub(super) const fn unmix(mut value: u64) -> u64 {
    value = (value ^ (value >> 31) ^ (value >> 62)).wrapping_mul(0x3196_42B2_D24D_8EC3);
    value = (value ^ (value >> 27) ^ (value >> 54)).wrapping_mul(0x96DE_1B17_3F11_9089);
    value ^ (value >> 30) ^ (value >> 60)
}

pub(super) fn spread<Q: Hash + ?Sized>(key: &Q) -> u64 {
    let mut spread = Spread(0);
    key.hash(&mut spread);
    spread.finish()
}

/// Spreads keys that operators and our own programs choose; it need not stand an attacker's choice.
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

const STEP_BITS: u32 = 6;
const CHILDREN: usize = 1 << STEP_BITS;
const DEPTH_MAX: u32 = u64::BITS / STEP_BITS;
const LEAF_ENTRIES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A key whose spread is the same for many, so that leaves of the last depth are tried too.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Clashing(u16);

    impl Hash for Clashing {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (self.0 % 3).hash(state);
        }
    }

    fn agree<K: Hash + Eq + Clone + std::fmt::Debug>(steps: &[(u16, u8)], key: fn(u16) -> K) {
        let (mut map, mut model) = (SharedMap::default(), HashMap::new());
        let mut earlier = Vec::new();
        for (at, (raw, value)) in steps.iter().enumerate() {
            let (before, expected) = (map.insert(key(*raw), *value), model.insert(*raw, *value));
            assert_eq!(before, expected);
            if at % 64 == 0 {
                earlier.push((map.clone(), model.clone()));
            }
        }
        earlier.push((map, model));
        for (map, model) in earlier {
            assert_eq!(map.len(), model.len());
            let mut seen = 0;
            map.for_each(|_, _| seen += 1);
            assert_eq!(seen, model.len());
            for raw in 0..600 {
                assert_eq!(map.get(&key(raw)), model.get(&raw));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_was_mixed_comes_back(value in any::<u64>()) {
            prop_assert_eq!(unmix(mix(value)), value);
            prop_assert_eq!(mix(unmix(value)), value);
        }

        #[test]
        fn it_is_a_hash_map_and_a_copy_stays_as_it_was(
            steps in prop::collection::vec((0u16..600, any::<u8>()), 0..1500)
        ) {
            agree(&steps, |raw| raw);
            agree(&steps[..steps.len().min(300)], Clashing);
        }
    }
}
