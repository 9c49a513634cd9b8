//! Consents to bytes and back: the base's arrays as they lie in memory, then the changes.

use std::io::{self, Read, Write};

use crate::document::DocumentSet;
use crate::facts::Consent;
use crate::facts::copy::{CopyError, Input, Output};
use crate::facts::layers::Layers;
use crate::facts::packed::Packed;
use crate::facts::pair_key::Ordinals;

use super::{Base, Consents, ID_BYTES, RARE, parts};

impl Consents {
    /// Writes all of them.
    pub(in crate::facts) fn write_to<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        self.layers.base().write_to(out)?;
        self.layers.write_changes(out, |out, person, own| {
            out.u64(person)?;
            out.count(own.len())?;
            own.iter().try_for_each(|consent| write_consent(out, consent))
        })
    }

    /// Reads what was written; every person's insurer must be one of `ordinals`.
    pub(in crate::facts) fn read_from<R: Read>(
        input: &mut Input<'_, R>,
        ordinals: &Ordinals,
    ) -> Result<Self, CopyError> {
        input.part("consents");
        let base = Base::read_from(input, ordinals)?;
        input.part("changed consents");
        let mut own = Self { layers: Layers::new(base), ..Self::default() };
        for _ in 0..input.u64()? {
            let person = input.u64()?;
            if !ordinals.holds_person(person) {
                return Err(input.damaged_before(8, "an insurer that is not told"));
            }
            let mut consents = Vec::new();
            for _ in 0..input.u64()? {
                let consent = read_consent(input)?;
                own.owners.insert(consent.id, person);
                consents.push(consent);
            }
            if !consents.is_sorted_by(|one, next| one.id < next.id) {
                return Err(input.damaged("consents that are not in the order of their ids"));
            }
            own.layers.change(person, consents.into());
        }
        Ok(own)
    }
}

impl Base {
    fn write_to<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        self.packed.write_to(out)?;
        out.terms(&self.terms)?;
        out.count(self.rare.len())?;
        self.rare.iter().try_for_each(|(row, consent)| {
            out.u32(*row)?;
            write_consent(out, consent)
        })?;
        out.u32s(&self.by_id)
    }

    fn read_from<R: Read>(
        input: &mut Input<'_, R>,
        ordinals: &Ordinals,
    ) -> Result<Self, CopyError> {
        let packed = Packed::read_from(input)?;
        let terms = input.terms()?;
        let mut rare = Vec::new();
        for _ in 0..input.u64()? {
            rare.push((input.u32()?, read_consent(input)?));
        }
        let by_id = input.u32s(packed.count)?;
        let base = Self { packed, by_id, terms, rare };
        base.check(ordinals).map_err(|what| input.damaged(what))?;
        Ok(base)
    }

    /// Whether every row says something that can be, and is found by its id.
    fn check(&self, ordinals: &Ordinals) -> Result<(), &'static str> {
        let mut rare = self.rare.iter();
        let mut earlier = None;
        for (row, person) in self.packed.keys().enumerate() {
            if !ordinals.holds_person(person) {
                return Err("an insurer that is not told");
            }
            let value = self.packed.value(row);
            let kinds = u16::from_le_bytes([value[ID_BYTES], value[ID_BYTES + 1]]);
            if DocumentSet::from_bits(kinds).is_none() {
                return Err("a kind of document that does not exist");
            }
            let (_, _, since, term) = parts(value);
            if term > self.terms.len() {
                return Err("a row with a term that is not told");
            }
            if since == RARE && rare.next().is_none_or(|(own, _)| *own as usize != row) {
                return Err("a rare consent that is not told");
            }
            let here = Some((person, self.read(row).id));
            if earlier >= here {
                return Err("consents that are not in the order of their ids");
            }
            earlier = here;
        }
        if rare.next().is_some() {
            return Err("a rare consent without its row");
        }
        let in_range = self.by_id.iter().all(|row| (*row as usize) < self.packed.count);
        let id = |row: &u32| self.read(*row as usize).id;
        match in_range && self.by_id.is_sorted_by(|one, next| id(one) < id(next)) {
            true => Ok(()),
            false => Err("ids that are not in order"),
        }
    }
}

fn write_consent<W: Write>(out: &mut Output<'_, W>, consent: &Consent) -> io::Result<()> {
    let Consent { id, scope, from, until, withdrawn } = *consent;
    out.u64(id)?;
    out.u16(scope.bits())?;
    out.u64(from)?;
    out.option(until)?;
    out.option(withdrawn)
}

fn read_consent<R: Read>(input: &mut Input<'_, R>) -> Result<Consent, CopyError> {
    let (id, scope) = (input.u64()?, input.kinds()?);
    let (from, until, withdrawn) = (input.u64()?, input.option()?, input.option()?);
    Ok(Consent { id, scope, from, until, withdrawn })
}
