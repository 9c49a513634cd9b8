//! The facts of one source as bytes: the copy on disk that a gateway starts from.
//!
//! ```text
//!  head      "SEKISHO FACTS\n" │ layout │ layout of pair numbers │ source
//!  ca        offices │ revocations
//!  hub       insurers and offices, by ordinal │ registrations │ consents │ authors │ plans │
//!            opinion requests │ go-live dates │ staff keys │ ended sessions
//!  end       "END\n"
//! ```
//!
//! Integers are little-endian, texts and lists have their length before them. A copy proves nothing
//! about where it comes from: whoever keeps it on disk proves that first. Still, nothing that is
//! read is believed: what could not have been written is a [`CopyError`] that says where.
//! [`LAYOUT`] changes with the form, and a copy of another one is refused.

use std::io::{self, Read, Write};

use crate::document::DocumentKind;
use crate::feed::Source;
use crate::identity::{InsuredKey, Serial};

use super::consents::Consents;
use super::pair_key::Ordinals;
use super::registrations::Registrations;
use super::{CaFacts, Facts, HubFacts, Loaded, Office, PAIR_KEY_VERSION, StaffKey};

mod bytes;
mod packed;

pub use bytes::CopyError;
pub(super) use bytes::{Input, Output};

/// The form of the copy.
pub const LAYOUT: u8 = 1;

impl Facts {
    /// Writes everything that `source` said, but not its sequence. Many small writes: `out` wants a
    /// buffer.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, source: Source, out: &mut impl Write) -> io::Result<()> {
        let mut out = Output(out);
        out.bytes(MAGIC)?;
        out.u8(LAYOUT)?;
        out.u8(PAIR_KEY_VERSION)?;
        out.u8(number(source))?;
        match source {
            Source::Ca => self.ca.write_to(&mut out)?,
            Source::Hub => self.hub.write_to(&mut out)?,
        }
        out.bytes(END)
    }
}

impl Loaded {
    /// Reads what [`Facts::write_to`] wrote of `source`, and nothing beyond it. Many small reads:
    /// `input` wants a buffer.
    ///
    /// # Errors
    /// [`CopyError`], of the first thing that is wrong.
    pub fn read_from(source: Source, input: &mut impl Read) -> Result<Self, CopyError> {
        let mut input = Input::new(input);
        if input.exact()? != *MAGIC {
            return Err(input.damaged_before(MAGIC.len() as u64, "not a copy of facts"));
        }
        let (layout, pairs) = (input.u8()?, input.u8()?);
        if (layout, pairs) != (LAYOUT, PAIR_KEY_VERSION) {
            let found = format!("{layout}.{pairs}");
            let wanted = format!("{LAYOUT}.{PAIR_KEY_VERSION}");
            return Err(CopyError::OtherLayout { found, wanted });
        }
        if input.u8()? != number(source) {
            return Err(input.damaged_before(1, "the facts of another source"));
        }
        let mut facts = Facts::new();
        match source {
            Source::Ca => facts.ca = CaFacts::read_from(&mut input)?,
            Source::Hub => facts.hub = HubFacts::read_from(&mut input)?,
        }
        input.part("end");
        if input.exact()? != *END {
            return Err(input.damaged_before(END.len() as u64, "more than was to come"));
        }
        Ok(Self { source, facts })
    }
}

fn number(source: Source) -> u8 {
    match source {
        Source::Ca => 0,
        Source::Hub => 1,
    }
}

impl CaFacts {
    fn write_to<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        out.count(self.offices.len())?;
        self.offices.try_for_each(|number, office| {
            let Office { service_types, medical, suspended, name } = office;
            out.bytes(number.as_str().as_bytes())?;
            out.u8(u8::from(*medical))?;
            out.u8(u8::from(*suspended))?;
            out.u32(service_types.len() as u32)?;
            service_types.iter().try_for_each(|code| out.bytes(code.as_str().as_bytes()))?;
            out.text(name)
        })?;
        out.count(self.revoked.len())?;
        self.revoked.try_for_each(|serial, at| {
            out.u8(serial.as_bytes().len() as u8)?;
            out.bytes(serial.as_bytes())?;
            out.u64(*at)
        })
    }

    fn read_from<R: Read>(input: &mut Input<'_, R>) -> Result<Self, CopyError> {
        let mut own = Self::default();
        input.part("offices");
        for _ in 0..input.u64()? {
            let number = input.parsed::<10, _>()?;
            let (medical, suspended) = (input.flag()?, input.flag()?);
            let mut service_types = Vec::new();
            for _ in 0..input.u32()? {
                service_types.push(input.parsed::<2, _>()?);
            }
            let name = input.text()?;
            let service_types = service_types.into();
            own.offices.insert(number, Office { service_types, medical, suspended, name });
        }
        input.part("revocations");
        for _ in 0..input.u64()? {
            let length = usize::from(input.u8()?);
            let bytes = input.bytes(length)?;
            let serial = Serial::from_bytes(&bytes).ok().filter(|own| own.as_bytes() == bytes);
            let serial =
                serial.ok_or_else(|| input.damaged_before(length as u64, "not a serial number"))?;
            own.revoked.insert(serial, input.u64()?);
        }
        Ok(own)
    }
}

impl HubFacts {
    fn write_to<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        let (insurers, offices) = self.ordinals.in_order();
        out.count(insurers.len())?;
        insurers.iter().try_for_each(|insurer| out.bytes(insurer.as_str().as_bytes()))?;
        out.count(offices.len())?;
        offices.iter().try_for_each(|office| out.bytes(office.as_str().as_bytes()))?;
        self.registrations.write_to(out)?;
        self.consents.write_to(out)?;
        self.write_authors(out)?;
        self.write_pairs(out)?;
        self.write_others(out)
    }

    fn write_authors<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        let mut parties = Vec::with_capacity(self.parties.len());
        self.parties.try_for_each(|party, number| {
            parties.push((*number, party.clone()));
            Ok::<(), io::Error>(())
        })?;
        parties.sort_unstable_by_key(|(number, _)| *number);
        out.count(parties.len())?;
        parties.iter().try_for_each(|(_, party)| out.text(party))?;
        out.count(self.authors.len())?;
        self.authors.try_for_each(|(insured, party), kinds| {
            write_insured(out, *insured)?;
            out.u32(*party)?;
            out.u16(kinds.bits())
        })
    }

    fn write_pairs<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        out.count(self.plans.len())?;
        self.plans.try_for_each(|key, ()| out.u64(*key))?;
        out.count(self.opinion_requests.len())?;
        self.opinion_requests.try_for_each(|key, open| {
            out.u64(*key)?;
            out.u8(u8::from(*open))
        })
    }

    fn write_others<W: Write>(&self, out: &mut Output<'_, W>) -> io::Result<()> {
        out.count(self.sharing.len())?;
        self.sharing.try_for_each(|insurer, from| {
            out.bytes(insurer.as_str().as_bytes())?;
            out.u64(*from)
        })?;
        out.count(self.staff_keys.len())?;
        self.staff_keys.try_for_each(|kid, StaffKey { x, y, retired }| {
            out.text(kid)?;
            out.text(x)?;
            out.text(y)?;
            out.u8(u8::from(*retired))
        })?;
        out.count(self.sessions_ended.len())?;
        self.sessions_ended.try_for_each(|session, until| {
            out.text(session)?;
            out.u64(*until)
        })
    }

    fn read_from<R: Read>(input: &mut Input<'_, R>) -> Result<Self, CopyError> {
        input.part("ordinals");
        let (mut insurers, mut offices) = (Vec::new(), Vec::new());
        for _ in 0..input.u64()? {
            insurers.push(input.parsed::<6, _>()?);
        }
        for _ in 0..input.u64()? {
            offices.push(input.parsed::<10, _>()?);
        }
        let ordinals = Ordinals::from_order(insurers, offices)
            .ok_or_else(|| input.damaged("more than there is room for, or one twice"))?;
        let registrations = Registrations::read_from(input, &ordinals)?;
        let consents = Consents::read_from(input, &ordinals)?;
        let mut own = Self { ordinals, registrations, consents, ..Self::default() };
        own.read_authors(input)?;
        own.read_pairs(input)?;
        own.read_others(input)?;
        Ok(own)
    }

    fn read_authors<R: Read>(&mut self, input: &mut Input<'_, R>) -> Result<(), CopyError> {
        input.part("authors");
        for number in 0..input.u64()? {
            self.parties.insert(input.text()?.into(), number as u32);
            if self.parties.len() as u64 == number {
                return Err(input.damaged("a party that comes twice"));
            }
        }
        for _ in 0..input.u64()? {
            let insured = read_insured(input)?;
            let party = input.u32()?;
            if party as usize >= self.parties.len() {
                return Err(input.damaged_before(4, "a party that is not told"));
            }
            let kinds = input.kinds()?;
            self.authors.insert((insured, party), kinds);
        }
        Ok(())
    }

    fn read_pairs<R: Read>(&mut self, input: &mut Input<'_, R>) -> Result<(), CopyError> {
        input.part("plans");
        for _ in 0..input.u64()? {
            let key = self.read_pair(input)?;
            self.plans.insert(key, ());
        }
        input.part("opinion requests");
        for _ in 0..input.u64()? {
            let key = self.read_pair(input)?;
            self.opinion_requests.insert(key, input.flag()?);
        }
        Ok(())
    }

    fn read_pair<R: Read>(&self, input: &mut Input<'_, R>) -> Result<u64, CopyError> {
        let key = input.u64()?;
        let told = self.ordinals.holds_pair(key).then_some(key);
        told.ok_or_else(|| input.damaged_before(8, "an office or insurer that is not told"))
    }

    fn read_others<R: Read>(&mut self, input: &mut Input<'_, R>) -> Result<(), CopyError> {
        input.part("go-live dates");
        for _ in 0..input.u64()? {
            let insurer = input.parsed::<6, _>()?;
            self.sharing.insert(insurer, input.u64()?);
        }
        input.part("staff keys");
        for _ in 0..input.u64()? {
            let (kid, x, y) = (input.text()?, input.text()?, input.text()?);
            self.staff_keys.insert(kid, StaffKey { x, y, retired: input.flag()? });
        }
        input.part("ended sessions");
        for _ in 0..input.u64()? {
            let session = input.text()?;
            self.sessions_ended.insert(session, input.u64()?);
        }
        Ok(())
    }
}

fn write_insured<W: Write>(out: &mut Output<'_, W>, insured: InsuredKey) -> io::Result<()> {
    out.bytes(insured.insurer.as_str().as_bytes())?;
    out.bytes(insured.number.as_str().as_bytes())
}

fn read_insured<R: Read>(input: &mut Input<'_, R>) -> Result<InsuredKey, CopyError> {
    Ok(InsuredKey { insurer: input.parsed::<6, _>()?, number: input.parsed::<10, _>()? })
}

const MAGIC: &[u8; 14] = b"SEKISHO FACTS\n";
const END: &[u8; 4] = b"END\n";
const _: () = assert!(DocumentKind::ALL.len() < u16::BITS as usize);
