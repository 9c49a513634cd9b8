//! An immutable base and what changed since it was made, until both are merged into a new base.
//!
//! ```text
//!  changes ─► being merged ─► base        looked up in this order, the first one found counts
//! ```
//!
//! INVARIANT: a new base takes the place of the one that it was made from, and of no other.

use std::io::{self, Write};
use std::sync::Arc;

use super::copy::Output;
use super::shared_map::SharedMap;

/// A base `B`, and values `V` by key above it.
#[derive(Debug)]
pub(super) struct Layers<B, V> {
    base: Arc<B>,
    merging: SharedMap<u64, V>,
    changes: SharedMap<u64, V>,
}

impl<B, V> Clone for Layers<B, V> {
    fn clone(&self) -> Self {
        Self {
            base: Arc::clone(&self.base),
            merging: self.merging.clone(),
            changes: self.changes.clone(),
        }
    }
}

impl<B: Default, V> Default for Layers<B, V> {
    fn default() -> Self {
        Self::new(B::default())
    }
}

impl<B, V> Layers<B, V> {
    /// A base that nothing stands above.
    pub(super) fn new(base: B) -> Self {
        Self { base: Arc::new(base), merging: SharedMap::default(), changes: SharedMap::default() }
    }

    /// What does not change.
    #[inline]
    pub(super) fn base(&self) -> &B {
        &self.base
    }
}

impl<B, V: Clone> Layers<B, V> {
    /// What stands above the base for `key`.
    #[inline]
    pub(super) fn changed(&self, key: u64) -> Option<&V> {
        self.changes.get(&key).or_else(|| self.merging.get(&key))
    }

    /// Sets the value of `key`.
    pub(super) fn change(&mut self, key: u64, value: V) {
        self.changes.insert(key, value);
    }

    /// What changed since the last merge began.
    pub(super) fn changes(&self) -> &SharedMap<u64, V> {
        &self.changes
    }

    /// Whether a merge is under way.
    pub(super) fn is_merging(&self) -> bool {
        self.merging.len() > 0
    }

    /// What a merge needs, if anything changed and no merge is under way.
    pub(super) fn begin_merge(&mut self) -> Option<Merge<B, V>> {
        if self.changes.len() == 0 || self.is_merging() {
            return None;
        }
        self.merging = std::mem::take(&mut self.changes);
        Some(Merge { base: Arc::clone(&self.base), changes: self.merging.clone() })
    }

    /// Takes the merged base; changes made meanwhile stay above it. One that was merged from what
    /// was replaced since is dropped. Says whether it was taken.
    pub(super) fn end_merge(&mut self, merged: Merged<B>) -> bool {
        let fits = Arc::ptr_eq(&self.base, &merged.from) && self.is_merging();
        if fits {
            self.base = merged.base;
            self.merging = SharedMap::default();
        }
        fits
    }

    /// Writes what stands above the base: how many, then each by `write`.
    pub(super) fn write_changes<W: Write>(
        &self,
        out: &mut Output<'_, W>,
        mut write: impl FnMut(&mut Output<'_, W>, u64, &V) -> io::Result<()>,
    ) -> io::Result<()> {
        out.count(self.merging.len() + self.changes.len())?;
        // The later ones last, so that they are the ones that stay.
        for layer in [&self.merging, &self.changes] {
            layer.try_for_each(|key, value| write(out, *key, value))?;
        }
        Ok(())
    }
}

/// A merge of changes into a new base: takes its time, and nobody waits for it.
#[derive(Debug)]
pub(super) struct Merge<B, V> {
    base: Arc<B>,
    changes: SharedMap<u64, V>,
}

/// A base that is ready to be taken.
#[derive(Debug)]
pub(super) struct Merged<B> {
    from: Arc<B>,
    base: Arc<B>,
}

impl<B, V> Merge<B, V> {
    /// Has `make` make the new base from the one before and what changed.
    pub(super) fn run(self, make: impl FnOnce(&B, &SharedMap<u64, V>) -> B) -> Merged<B> {
        let base = Arc::new(make(&self.base, &self.changes));
        Merged { from: self.base, base }
    }
}
