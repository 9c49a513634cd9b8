//! Bytes that are read here and there, on pages of 2 MiB where the system has them.
//!
//! A look-up among hundreds of megabytes waits for the page table as well as for the memory, and on
//! pages of 4 KiB the page table itself does not fit the caches.

use std::ops::Deref;

use memmap2::{Advice, MmapMut};

/// See the module's words. Written once, from its beginning to its end.
#[derive(Debug, Default)]
pub(super) struct Huge {
    memory: Memory,
    length: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Pages(MmapMut),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Huge {
    /// None yet, with room for `bytes`.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let pages = (bytes >= PAGES_FROM_BYTES).then(|| MmapMut::map_anon(bytes).ok()).flatten();
        let memory = match pages {
            Some(pages) => {
                // A system without such pages gives others.
                #[cfg(target_os = "linux")]
                let _ = pages.advise(Advice::HugePage);
                Memory::Pages(pages)
            }
            None => Memory::Heap(Vec::with_capacity(bytes)),
        };
        Self { memory, length: 0 }
    }

    /// Appends; what is beyond the room given at first goes where there is some.
    #[inline]
    pub(super) fn extend_from_slice(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        match &mut self.memory {
            Memory::Heap(own) => own.extend_from_slice(bytes),
            Memory::Pages(pages) if end <= pages.len() => {
                pages[self.length..end].copy_from_slice(bytes);
            }
            Memory::Pages(pages) => {
                let mut own = pages[..self.length].to_vec();
                own.extend_from_slice(bytes);
                self.memory = Memory::Heap(own);
            }
        }
        self.length = end;
    }

    /// Bytes of memory that it takes.
    pub(super) fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Heap(own) => own.capacity(),
            // Pages that were never written are not there.
            Memory::Pages(_) => self.length,
        }
    }

    /// The little-endian integer at index `at`.
    #[inline]
    pub(super) fn u32_at(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self[4 * at..4 * at + 4]);
        u32::from_le_bytes(word)
    }
}

impl Deref for Huge {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(own) => own,
            Memory::Pages(pages) => &pages[..self.length],
        }
    }
}

impl From<Vec<u8>> for Huge {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.len() < PAGES_FROM_BYTES {
            return Self { length: bytes.len(), memory: Memory::Heap(bytes) };
        }
        let mut own = Self::with_capacity(bytes.len());
        own.extend_from_slice(&bytes);
        own
    }
}

const PAGES_FROM_BYTES: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_whether_few_or_many() {
        for capacity in [0, 10, PAGES_FROM_BYTES] {
            let mut own = Huge::with_capacity(capacity);
            let chunk: Vec<u8> = (0..=255).collect();
            // One chunk more than there is room for.
            let chunks = capacity / chunk.len() + 1;
            (0..chunks).for_each(|_| own.extend_from_slice(&chunk));
            assert_eq!(own.len(), chunks * chunk.len());
            assert!(own.chunks(chunk.len()).all(|part| part == chunk));
            assert_eq!(own.u32_at(1), u32::from_le_bytes([4, 5, 6, 7]));
            assert!(own.capacity() >= own.len());
            let again = Huge::from(own.to_vec());
            assert_eq!(*again, *own);
        }
    }
}
