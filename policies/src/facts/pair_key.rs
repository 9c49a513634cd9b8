//! One exact 64-bit number for a pair of office and person, and one for a person.
//!
//! ```text
//!  63        53 52                                   19 18                    0
//! ┌────────────┬───────────────────────────────────────┬──────────────────────┐
//! │ insurer 11 │           insured number 34           │      office 19       │  then mixed
//! └────────────┴───────────────────────────────────────┴──────────────────────┘
//! ```
//!
//! The number of a person is the same without the office, mixed by itself.
//!
//! Insurers and offices are told by an ordinal, given out in the order in which they are first
//! seen. The mix can be undone, so that two pairs never share a number: a lossy one would some
//! day say "registered" of an office that is not.
//!
//! INVARIANT: an ordinal is never given out twice; when there are none left, the pair is refused.

use std::hash::Hash;
use std::sync::Arc;

use crate::identity::{InsuredKey, InsuredNumber, InsurerNumber, OfficeNumber};

use super::shared_map::{SharedMap, mix, unmix};
use super::table::Indexed;

/// The layout of the numbers; it changes when a width does.
pub const PAIR_KEY_VERSION: u8 = 1;

/// A pair has no number: more insurers or offices than the layout holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The insurers' ordinals are used up.
    #[error(
        "the facts name more than {} insurers, which layout {PAIR_KEY_VERSION} of the facts \
         cannot hold: install a version with a wider layout",
        1 << INSURER_BITS
    )]
    Insurers,
    /// The offices' ordinals are used up.
    #[error(
        "the facts name more than {} offices, which layout {PAIR_KEY_VERSION} of the facts \
         cannot hold: install a version with a wider layout",
        1 << OFFICE_BITS
    )]
    Offices,
}

/// The ordinals of offices and insurers.
#[derive(Debug, Clone, Default)]
pub(super) struct Ordinals {
    offices: Given<OfficeNumber>,
    insurers: Given<InsurerNumber>,
}

/// A person as a number, before the mix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Person(u64);

impl Person {
    /// The number that consents go by.
    pub(super) fn key(self) -> u64 {
        mix(self.0)
    }
}

impl Ordinals {
    /// The person; `None` if nothing was ever said of the insurer.
    #[inline]
    pub(super) fn person(&self, insured: InsuredKey) -> Option<Person> {
        Some(person(self.insurers.get(&insured.insurer)?, insured.number))
    }

    /// The person, with a new ordinal for the insurer where it needs one.
    ///
    /// # Errors
    /// [`Full`] if there is none left.
    pub(super) fn person_or_new(&mut self, insured: InsuredKey) -> Result<Person, Full> {
        let insurer = self.insurers.get_or_new(insured.insurer, INSURER_BITS);
        Ok(person(insurer.ok_or(Full::Insurers)?, insured.number))
    }

    /// The number of the pair; `None` if nothing was ever said of the office.
    #[inline]
    pub(super) fn pair(&self, office: OfficeNumber, person: Person) -> Option<u64> {
        Some(pack(person, self.offices.get(&office)?))
    }

    /// The number of the pair; `None` if nothing was ever said of the office or the insurer.
    pub(super) fn key(&self, office: OfficeNumber, insured: InsuredKey) -> Option<u64> {
        self.pair(office, self.person(insured)?)
    }

    /// The number of the pair, with new ordinals where it needs them.
    ///
    /// # Errors
    /// [`Full`] if there are none left.
    pub(super) fn key_or_new(
        &mut self,
        office: OfficeNumber,
        insured: InsuredKey,
    ) -> Result<u64, Full> {
        let person = self.person_or_new(insured)?;
        let office = self.offices.get_or_new(office, OFFICE_BITS);
        Ok(pack(person, office.ok_or(Full::Offices)?))
    }

    /// Whether the number is that of a pair whose office and insurer have an ordinal.
    pub(super) fn holds_pair(&self, key: u64) -> bool {
        let pair = unmix(key);
        let office = pair & ((1 << OFFICE_BITS) - 1);
        office < self.offices.len() as u64 && self.holds(pair >> OFFICE_BITS)
    }

    /// Whether the number is that of a person whose insurer has an ordinal.
    pub(super) fn holds_person(&self, key: u64) -> bool {
        self.holds(unmix(key))
    }

    fn holds(&self, person: u64) -> bool {
        let number = person & ((1 << NUMBER_BITS) - 1);
        person >> NUMBER_BITS < self.insurers.len() as u64 && number < NUMBERS
    }

    /// The insurers and the offices, each in the order of their ordinals.
    pub(super) fn in_order(&self) -> (Vec<InsurerNumber>, Vec<OfficeNumber>) {
        (self.insurers.in_order(), self.offices.in_order())
    }

    /// Gives the next ordinals to these; `None` if there are none left or one comes twice.
    pub(super) fn from_order(
        insurers: Vec<InsurerNumber>,
        offices: Vec<OfficeNumber>,
    ) -> Option<Self> {
        let counts = (insurers.len(), offices.len());
        let mut own = Self::default();
        for insurer in insurers {
            own.insurers.get_or_new(insurer, INSURER_BITS)?;
        }
        for office in offices {
            own.offices.get_or_new(office, OFFICE_BITS)?;
        }
        ((own.insurers.len(), own.offices.len()) == counts).then_some(own)
    }
}

/// The ordinals of one kind: those that a snapshot gave, which are places in it, and those since.
#[derive(Debug, Clone)]
struct Given<K> {
    base: Arc<Indexed<K, ()>>,
    later: SharedMap<K, u32>,
}

impl<K> Default for Given<K> {
    fn default() -> Self {
        Self { base: Arc::default(), later: SharedMap::default() }
    }
}

impl<K: Hash + Eq + Copy> Given<K> {
    fn len(&self) -> usize {
        self.base.entries().len() + self.later.len()
    }

    #[inline]
    fn get(&self, key: &K) -> Option<u32> {
        let place = self.base.place(key).map(|place| place as u32);
        place.or_else(|| self.later.get(key).copied())
    }

    fn get_or_new(&mut self, key: K, bits: u32) -> Option<u32> {
        if let Some(own) = self.get(&key) {
            return Some(own);
        }
        let next = u32::try_from(self.len()).ok().filter(|next| *next < 1 << bits)?;
        match Arc::get_mut(&mut self.base).filter(|_| self.later.len() == 0) {
            Some(base) => drop(base.insert(key, ())),
            None => drop(self.later.insert(key, next)),
        }
        Some(next)
    }

    fn in_order(&self) -> Vec<K> {
        let mut later = Vec::with_capacity(self.later.len());
        self.later.for_each(|key, ordinal| later.push((*ordinal, *key)));
        later.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        let base = self.base.entries().iter().map(|(key, ())| *key);
        base.chain(later.into_iter().map(|(_, key)| key)).collect()
    }
}

fn person(insurer: u32, number: InsuredNumber) -> Person {
    Person(u64::from(insurer) << NUMBER_BITS | dense(number))
}

fn pack(Person(person): Person, office: u32) -> u64 {
    mix(person << OFFICE_BITS | u64::from(office))
}

/// The number without its text: ten digits count from 0, `H` and nine digits follow from 10¹⁰ on.
fn dense(number: InsuredNumber) -> u64 {
    number.bytes().iter().fold(0, |dense, byte| match byte {
        // Ten, which nine more digits carry to 10 × 10⁹.
        b'H' => 10,
        digit => dense * 10 + u64::from(digit - b'0'),
    })
}

const INSURER_BITS: u32 = 11;
const NUMBER_BITS: u32 = 34;
const OFFICE_BITS: u32 = 19;
/// How many numbers there are: see [`dense`].
const NUMBERS: u64 = 11_000_000_000;
const _: () = assert!(INSURER_BITS + NUMBER_BITS + OFFICE_BITS == u64::BITS);
const _: () = assert!(NUMBERS <= 1 << NUMBER_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_forms_stay_apart_and_fit() {
        let dense_of = |text: &str| dense(text.parse().unwrap());
        assert_eq!(dense_of("0000000000"), 0);
        assert_eq!(dense_of("9999999999"), 9_999_999_999);
        assert_eq!(dense_of("H000000000"), 10_000_000_000);
        assert_eq!(dense_of("H999999999"), 10_999_999_999);
    }

    #[test]
    fn pairs_that_differ_in_one_part_have_different_numbers() {
        let mut ordinals = Ordinals::default();
        let mut seen = std::collections::HashSet::new();
        for office in ["1370000001", "1370000002"] {
            for insured in ["131016/0000000001", "131017/0000000001", "131016/H000000001"] {
                let (office, insured) = (office.parse().unwrap(), insured.parse().unwrap());
                let key = ordinals.key_or_new(office, insured).unwrap();
                assert_eq!(ordinals.key(office, insured), Some(key));
                assert!(seen.insert(key));
            }
        }
    }

    #[test]
    fn the_insurer_that_does_not_fit_is_refused_and_the_others_stay() {
        let mut ordinals = Ordinals::default();
        let office = "1370000001".parse().unwrap();
        let insured = |at: u32| format!("{at:06}/0000000001").parse().unwrap();
        let first = ordinals.key_or_new(office, insured(0)).unwrap();
        for at in 1..1 << INSURER_BITS {
            ordinals.key_or_new(office, insured(at)).unwrap();
        }
        let refused = ordinals.key_or_new(office, insured(1 << INSURER_BITS)).unwrap_err();
        assert_eq!(refused, Full::Insurers);
        assert!(refused.to_string().contains("more than 2048 insurers"), "{refused}");
        assert_eq!(ordinals.key(office, insured(1 << INSURER_BITS)), None);
        assert_eq!(ordinals.key_or_new(office, insured(0)), Ok(first));
    }

    #[test]
    fn the_office_that_does_not_fit_is_refused() {
        let mut ordinals = Ordinals::default();
        let insured = "131016/0000000001".parse().unwrap();
        let office = |at: u32| format!("13{at:08}").parse().unwrap();
        for at in 0..1 << OFFICE_BITS {
            ordinals.key_or_new(office(at), insured).unwrap();
        }
        assert_eq!(ordinals.key_or_new(office(1 << OFFICE_BITS), insured), Err(Full::Offices));
    }
}
