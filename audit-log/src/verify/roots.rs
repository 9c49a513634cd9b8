//! The Merkle tree as the verifier counts it (RFC 6962 section 2.1): written apart from the
//! writer's, so that a mistake in one shows in the other.
//!
//! A binary counter: slot `l` holds the root of a perfect subtree of 2^l leaves that waits for its
//! right neighbour. A new leaf is carried through the occupied slots as a 1 is added to a number.

use tlog_tiles::{EMPTY_HASH, Hash, node_hash};

#[derive(Debug, Clone, Default)]
pub(super) struct Roots {
    size: u64,
    slots: Vec<Option<Hash>>,
}

impl Roots {
    /// The tree that a header describes: the roots of its perfect subtrees, largest first.
    pub(super) fn of(size: u64, tree: &[Hash]) -> Option<Self> {
        let levels = u64::BITS - size.leading_zeros();
        let mut given = tree.iter().rev();
        let mut slots = Vec::new();
        for level in 0..levels {
            let occupied = size >> level & 1 == 1;
            slots.push(if occupied { Some(*given.next()?) } else { None });
        }
        given.next().is_none().then_some(Self { size, slots })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn push(&mut self, leaf: Hash) {
        self.size += 1;
        let mut carried = leaf;
        for slot in &mut self.slots {
            match slot.take() {
                Some(left) => carried = node_hash(left, carried),
                None => {
                    *slot = Some(carried);
                    return;
                }
            }
        }
        self.slots.push(Some(carried));
    }

    pub(super) fn root(&self) -> Hash {
        let join = |right: Option<Hash>, left: &Hash| match right {
            Some(right) => Some(node_hash(*left, right)),
            None => Some(*left),
        };
        self.slots.iter().flatten().fold(None, join).unwrap_or(EMPTY_HASH)
    }

    /// The occupied slots, largest subtree first: what the header of the next segment must say.
    pub(super) fn tree(&self) -> impl Iterator<Item = &Hash> {
        self.slots.iter().rev().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_tiles::record_hash;

    /// RFC 6962 section 2.1 word for word.
    fn definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => EMPTY_HASH,
            [leaf] => *leaf,
            _ => {
                let k = leaves.len().next_power_of_two() / 2;
                node_hash(definition(&leaves[..k]), definition(&leaves[k..]))
            }
        }
    }

    #[test]
    fn roots_are_those_of_the_definition() {
        let leaves: Vec<Hash> = (0..130u8).map(|n| record_hash(&[n])).collect();
        let mut roots = Roots::default();
        assert!(roots.root() == EMPTY_HASH);
        for (at, leaf) in leaves.iter().enumerate() {
            roots.push(*leaf);
            assert!(roots.root() == definition(&leaves[..=at]), "size {}", at + 1);
            let tree: Vec<Hash> = roots.tree().copied().collect();
            let mut again = Roots::of(roots.size(), &tree).unwrap();
            assert!(again.root() == roots.root());
            again.push(*leaf);
            assert!(Roots::of(roots.size(), &tree[1..]).is_none());
        }
    }
}
