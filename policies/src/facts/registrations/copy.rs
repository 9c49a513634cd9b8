//! Registrations to bytes and back: the base's arrays as they lie in memory, then the changes.
//!
//! What is read is looked at row by row, so that no look-up can leave its array and every pair
//! names an office and an insurer that the copy names.

use std::io::{self, Read, Write};

use crate::facts::copy::{CopyError, Input, Output};
use crate::facts::layers::Layers;
use crate::facts::packed::Packed;
use crate::facts::pair_key::Ordinals;

use super::{Base, RARE, Rare, Registration, Registrations, times_of};

impl Registrations {
    /// Writes all of them.
    pub(in crate::facts) fn write_to<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        self.layers.base().write_to(out)?;
        self.layers.write_changes(out, |out, key, Registration { from, until, ended }| {
            out.u64(key)?;
            out.u64(*from)?;
            out.option(*until)?;
            out.option(*ended)
        })
    }

    /// Reads what was written; every pair must be one of `ordinals`.
    pub(in crate::facts) fn read_from<R: Read>(
        input: &mut Input<'_, R>,
        ordinals: &Ordinals,
    ) -> Result<Self, CopyError> {
        input.part("registrations");
        let base = Base::read_from(input, ordinals)?;
        input.part("changed registrations");
        let mut own = Self { layers: Layers::new(base) };
        for _ in 0..input.u64()? {
            let key = input.u64()?;
            if !ordinals.holds_pair(key) {
                return Err(input.damaged_before(8, "an office or insurer that is not told"));
            }
            let (from, until, ended) = (input.u64()?, input.option()?, input.option()?);
            own.insert(key, Registration { from, until, ended });
        }
        Ok(own)
    }
}

impl Base {
    fn write_to<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        self.packed.write_to(out)?;
        out.terms(&self.terms)?;
        out.count(self.rare.len())?;
        self.rare.iter().try_for_each(|(key, rare)| {
            out.u64(*key)?;
            rare.registration.iter().try_for_each(|time| out.u64(*time))
        })
    }

    fn read_from<R: Read>(
        input: &mut Input<'_, R>,
        ordinals: &Ordinals,
    ) -> Result<Self, CopyError> {
        let packed = Packed::read_from(input)?;
        let terms = input.terms()?;
        let mut rare = Vec::new();
        for _ in 0..input.u64()? {
            let key = input.u64()?;
            rare.push((key, Rare { registration: [input.u64()?, input.u64()?, input.u64()?] }));
        }
        let base = Self { packed, terms, rare };
        base.check(ordinals).map_err(|what| input.damaged(what))?;
        Ok(base)
    }

    /// Whether every row says something that can be.
    fn check(&self, ordinals: &Ordinals) -> Result<(), &'static str> {
        let (mut earlier, mut rare) = (None, self.rare.iter());
        for (row, key) in self.packed.keys().enumerate() {
            if earlier == Some(key) {
                return Err("a registration that comes twice");
            }
            earlier = Some(key);
            if !ordinals.holds_pair(key) {
                return Err("an office or insurer that is not told");
            }
            let (from, term) = times_of(self.packed.value(row));
            if term > self.terms.len() {
                return Err("a row with a term that is not told");
            }
            if from == RARE && rare.next().is_none_or(|(own, _)| *own != key) {
                return Err("a rare registration that is not told");
            }
        }
        rare.next().map_or(Ok(()), |_| Err("a rare registration without its row"))
    }
}
