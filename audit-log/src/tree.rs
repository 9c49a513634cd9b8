//! The Merkle tree of a log (RFC 6962 section 2.1), as far as one has to remember it to append:
//! the roots of the perfect subtrees that make up the tree, one for each 1 bit of its size.
//!
//! Record `n` is leaf `n - 1`. Hashing, proofs and their checks are `tlog_tiles`'.

use tlog_tiles::{EMPTY_HASH, Hash, node_hash};

/// The perfect subtrees of the tree over the first [`Frontier::size`] records, left to right.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// Takes the subtrees of a tree of `size` leaves; `None` when their number does not fit.
    pub(crate) fn new(size: u64, roots: Vec<Hash>) -> Option<Self> {
        (roots.len() == size.count_ones() as usize).then_some(Self { size, roots })
    }

    /// Number of leaves.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the perfect subtrees, largest first.
    pub(crate) fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// Appends a leaf.
    pub(crate) fn push(&mut self, leaf: Hash) {
        let mut root = leaf;
        // Each trailing 1 bit of the size is a perfect subtree that the new leaf completes a
        // larger one with.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                root = node_hash(left, root);
            }
        }
        self.roots.push(root);
        self.size += 1;
    }

    /// The root of the whole tree.
    pub(crate) fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev().copied();
        let last = roots.next().unwrap_or(EMPTY_HASH);
        roots.fold(last, |right, left| node_hash(left, right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_tiles::record_hash;

    fn hex(hash: Hash) -> String {
        hex::encode(hash.0)
    }

    #[test]
    fn roots_are_those_of_the_reference_implementation() {
        // The leaves and roots of the certificate transparency project's own test
        // (merkletree/merkle_tree_test.cc, "reference" inputs).
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Frontier::default();
        assert_eq!(tree.root(), EMPTY_HASH);
        for (leaf, root) in leaves.iter().zip(roots) {
            tree.push(record_hash(leaf));
            assert_eq!(hex(tree.root()), root);
            assert_eq!(Frontier::new(tree.size(), tree.roots().to_vec()), Some(tree.clone()));
        }
        assert_eq!(Frontier::new(7, tree.roots().to_vec()), None);
    }
}
