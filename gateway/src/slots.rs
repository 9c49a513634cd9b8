//! Bounded slots, in all and for each holder: so that one address or one office cannot take what
//! everybody needs.
//!
//! Invariant: a [`Slot`] that is dropped is free again; no count outlives its slots. How many there
//! are may change while they are held: those that are too many then are not taken back.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A number of slots, each held by some `K`.
#[derive(Debug)]
pub struct Slots<K: Eq + Hash + Clone> {
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    all_max: usize,
    each_max: usize,
    all: usize,
    each: HashMap<K, usize>,
}

/// One slot, free again when dropped.
#[derive(Debug)]
pub struct Slot<K: Eq + Hash + Clone> {
    slots: Arc<Slots<K>>,
    holder: K,
}

impl<K: Eq + Hash + Clone> Slots<K> {
    /// `all_max` slots, at most `each_max` of them for one holder.
    pub fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        let held = Mutex::new(Held { all_max, each_max, all: 0, each: HashMap::new() });
        Arc::new(Self { held })
    }

    /// From now on `all_max` slots, at most `each_max` of them for one holder.
    pub fn limit(&self, all_max: usize, each_max: usize) {
        let mut held = self.held();
        (held.all_max, held.each_max) = (all_max, each_max);
    }

    fn held(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for `holder`, if there is one.
    pub fn take(self: &Arc<Self>, holder: K) -> Option<Slot<K>> {
        let mut held = self.held();
        let has = held.each.get(&holder).copied().unwrap_or(0);
        if held.all >= held.all_max || has >= held.each_max {
            return None;
        }
        held.all += 1;
        held.each.insert(holder.clone(), has + 1);
        drop(held);
        Some(Slot { slots: self.clone(), holder })
    }
}

impl<K: Eq + Hash + Clone> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut held = self.slots.held();
        held.all -= 1;
        match held.each.get_mut(&self.holder) {
            Some(has) if *has > 1 => *has -= 1,
            Some(_) | None => {
                held.each.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_in_all_and_for_each_and_come_back() {
        let slots = Slots::new(3, 2);
        let (a1, a2) = (slots.take("a").unwrap(), slots.take("a").unwrap());
        assert!(slots.take("a").is_none(), "one holder took more than its share");
        let b1 = slots.take("b").unwrap();
        assert!(slots.take("c").is_none(), "more than there are");
        drop(a1);
        let c1 = slots.take("c").unwrap();
        drop((a2, b1, c1));
        assert!(slots.held.lock().unwrap().each.is_empty());
        assert_eq!(slots.held.lock().unwrap().all, 0);
    }

    #[test]
    fn other_limits_count_what_is_held_already() {
        let slots = Slots::new(2, 2);
        let held = [slots.take("a").unwrap(), slots.take("a").unwrap()];
        slots.limit(3, 1);
        assert!(slots.take("a").is_none(), "its share is smaller now, and taken");
        let b = slots.take("b").unwrap();
        assert!(slots.take("c").is_none(), "more than there are");
        drop((held, b));
        assert!(slots.take("a").is_some());
    }
}
