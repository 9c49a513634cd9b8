//! Rows of a few bytes under exact 64-bit keys, sorted by key.
//!
//! ```text
//!  offsets: bucket = the key's first k bits ─► rows [first, last)
//!  rows:    rest of the key │ value of VALUE bytes
//! ```
//!
//! A row does not repeat the bits that its bucket tells. Keys are well mixed (see
//! [`super::shared_map::mix`]), so a bucket holds few rows. A key may come more than once where its
//! owner lets it.

use super::huge::Huge;

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Packed<const VALUE: usize> {
    pub(super) count: usize,
    pub(super) bucket_bits: u32,
    /// Integers of four bytes, little-endian.
    pub(super) offsets: Huge,
    /// Ends with [`WORD_BYTES`] that are of no row, so that a word can be read at every row.
    pub(super) rows: Huge,
}

impl<const VALUE: usize> Packed<VALUE> {
    /// Bytes of a row: those of the key that hold the bits which the bucket does not tell, and the
    /// value.
    pub(super) const fn row_bytes(bucket_bits: u32) -> usize {
        (u64::BITS - bucket_bits).div_ceil(8) as usize + VALUE
    }

    /// The rows of this key, in order.
    #[inline]
    pub(super) fn rows_of(&self, key: u64) -> impl Iterator<Item = usize> {
        let (mut row, mut end) = (0, 0);
        if self.count > 0 {
            let bucket = bucket(key, self.bucket_bits);
            (row, end) = (self.offset(bucket), self.offset(bucket + 1));
        }
        let width = Self::row_bytes(self.bucket_bits);
        let tail_bits = 8 * (width - VALUE);
        let tail = low_bits(key, tail_bits);
        let is_own = move |row: usize| low_bits(self.word(row * width), tail_bits) == tail;
        while row < end && !is_own(row) {
            row += 1;
        }
        (row..end).take_while(move |row| is_own(*row))
    }

    /// The value of a row.
    #[inline]
    pub(super) fn value(&self, row: usize) -> [u8; VALUE] {
        let width = Self::row_bytes(self.bucket_bits);
        let mut value = [0; VALUE];
        value.copy_from_slice(&self.rows[(row + 1) * width - VALUE..(row + 1) * width]);
        value
    }

    /// The key of a row.
    pub(super) fn key(&self, row: usize) -> u64 {
        // INVARIANT: the first offset is 0, so one at least is not above the row.
        let (mut bucket, mut above) = (0, self.offsets_len());
        while above - bucket > 1 {
            let middle = bucket + (above - bucket) / 2;
            match self.offset(middle) <= row {
                true => bucket = middle,
                false => above = middle,
            }
        }
        self.key_in(bucket, row)
    }

    /// The key of every row, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = u64> {
        let buckets = 0..self.offsets_len().saturating_sub(1);
        buckets.flat_map(move |bucket| {
            let rows = self.offset(bucket)..self.offset(bucket + 1);
            rows.map(move |row| self.key_in(bucket, row))
        })
    }

    pub(super) fn offsets_len(&self) -> usize {
        self.offsets.len() / OFFSET_BYTES
    }

    #[inline]
    pub(super) fn offset(&self, bucket: usize) -> usize {
        self.offsets.u32_at(bucket) as usize
    }

    fn key_in(&self, bucket: usize, row: usize) -> u64 {
        let tail_bits = u64::BITS - self.bucket_bits;
        let head = (bucket as u64).checked_shl(tail_bits).unwrap_or(0);
        let at = row * Self::row_bytes(self.bucket_bits);
        head | low_bits(self.word(at), tail_bits as usize)
    }

    /// The 8 bytes from `at` on.
    #[inline]
    fn word(&self, at: usize) -> u64 {
        let mut word = [0; WORD_BYTES];
        word.copy_from_slice(&self.rows[at..at + WORD_BYTES]);
        u64::from_le_bytes(word)
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.capacity() + self.offsets.capacity()
    }
}

/// Writes rows in the order of their keys.
pub(super) struct Packer<const VALUE: usize>(Packed<VALUE>);

impl<const VALUE: usize> Packer<VALUE> {
    /// For at most `count` rows.
    pub(super) fn new(count: usize) -> Self {
        let bucket_bits = count.max(2).ilog2().saturating_sub(1).min(BUCKET_BITS_MAX);
        let row_bytes = Packed::<VALUE>::row_bytes(bucket_bits);
        Self(Packed {
            count: 0,
            bucket_bits,
            offsets: Huge::with_capacity(((1 << bucket_bits) + 1) * OFFSET_BYTES),
            rows: Huge::with_capacity(count * row_bytes + WORD_BYTES),
        })
    }

    /// How many rows were written.
    pub(super) fn count(&self) -> usize {
        self.0.count
    }

    /// Writes the next row.
    #[inline]
    pub(super) fn push(&mut self, key: u64, value: [u8; VALUE]) {
        let own = &mut self.0;
        let bucket = bucket(key, own.bucket_bits);
        // 2³² rows would be 40 GB, a hundred times the country.
        while own.offsets_len() <= bucket {
            own.offsets.extend_from_slice(&(own.count as u32).to_le_bytes());
        }
        let tail = Packed::<VALUE>::row_bytes(own.bucket_bits) - VALUE;
        own.rows.extend_from_slice(&key.to_le_bytes()[..tail]);
        own.rows.extend_from_slice(&value);
        own.count += 1;
    }

    /// Every row was written.
    pub(super) fn finish(self) -> Packed<VALUE> {
        let mut own = self.0;
        while own.offsets_len() <= 1 << own.bucket_bits {
            own.offsets.extend_from_slice(&(own.count as u32).to_le_bytes());
        }
        own.rows.extend_from_slice(&[0; WORD_BYTES]);
        own
    }
}

fn bucket(key: u64, bits: u32) -> usize {
    key.checked_shr(u64::BITS - bits).unwrap_or(0) as usize
}

pub(super) fn low_bits(word: u64, bits: usize) -> u64 {
    word & u64::MAX >> (u64::BITS as usize - bits)
}

pub(super) const WORD_BYTES: usize = 8;
pub(super) const OFFSET_BYTES: usize = 4;
pub(super) const BUCKET_BITS_MAX: u32 = 24;
