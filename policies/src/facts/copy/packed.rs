//! Packed rows to bytes and back, as they lie in memory.

use std::io::{self, Read, Write};

use crate::facts::huge::Huge;
use crate::facts::packed::{BUCKET_BITS_MAX, OFFSET_BYTES, Packed, WORD_BYTES};

use super::{CopyError, Input, Output};

impl<const VALUE: usize> Packed<VALUE> {
    pub(in crate::facts) fn write_to<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        out.count(self.count)?;
        if self.count == 0 {
            return Ok(());
        }
        out.u8(self.bucket_bits as u8)?;
        out.bytes(&self.offsets)?;
        out.bytes(&self.rows)
    }

    /// Reads what was written: no look-up can leave its arrays, and the keys are in order.
    pub(in crate::facts) fn read_from<R: Read>(
        input: &mut Input<'_, R>,
    ) -> Result<Self, CopyError> {
        let count = input.u64()?;
        if count == 0 {
            return Ok(Self::default());
        }
        let count =
            u32::try_from(count).map_err(|_| input.damaged_before(8, "more rows than can be"))?;
        let bucket_bits = u32::from(input.u8()?);
        if bucket_bits > BUCKET_BITS_MAX {
            return Err(input.damaged_before(1, "an index wider than any"));
        }
        let count = count as usize;
        let offsets = input.bytes(((1 << bucket_bits) + 1) * OFFSET_BYTES)?.into();
        let mut own = Self { count, bucket_bits, offsets, rows: Huge::default() };
        let last = own.offsets_len() - 1;
        let sorted = (0..last).all(|at| own.offset(at) <= own.offset(at + 1));
        if own.offset(0) != 0 || own.offset(last) != count || !sorted {
            return Err(input.damaged("an index that does not fit its rows"));
        }
        own.rows = input.bytes(count * Self::row_bytes(bucket_bits) + WORD_BYTES)?.into();
        match own.keys().is_sorted() {
            true => Ok(own),
            false => Err(input.damaged("rows that are not in the order of their keys")),
        }
    }
}
