//! What a change of policy means to a whole population: how many triples of office, person and
//! kind of document open or close.
//!
//! ```text
//!  facts ─► Builder ─► Population: pairs of office and person, 12 bytes each
//!                            │ diff(old, new)
//!                            ▼
//!  pairs ─► combinations of what a decision depends on ─► each decided once by each policy
//! ```
//!
//! Nothing is decided here: of each combination one office and one person are put before
//! [`crate::decide::visible`], and the answer is counted for every pair that stands alike. A test
//! holds it against deciding for every pair by itself.
//!
//! A triple is open if a member of staff of some job may see the kind, with every certificate and
//! feed in order. Hours, addresses and ceilings of reads are left out of both policies: they say
//! when, from where and how often, which is no matter of the population.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::document::DocumentSet;
use crate::feed::Fact;
use crate::identity::{InsuredKey, InsurerNumber, OfficeNumber, ServiceType};
use crate::matrix::Matrix;
use crate::overlay::{AppliesTo, Overlay, Overlays};

mod standing;

use standing::Combination;

/// Why facts are no population.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two facts with one key: it is not known which holds.
    #[error(
        "office {office} and person {insured} have two facts of one kind: give each fact once, as \
         in a snapshot"
    )]
    Twice {
        /// The office.
        office: OfficeNumber,
        /// The person.
        insured: InsuredKey,
    },
    /// More than can be told apart here.
    #[error("more than {max} {what}: a population holds no more")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: u64,
    },
}

/// A population while its facts come in.
#[derive(Debug)]
pub struct Builder {
    at: u64,
    offices: HashMap<OfficeNumber, u32>,
    persons: HashMap<InsuredKey, u32>,
    insurers: HashMap<InsurerNumber, u16>,
    last_person: Option<(InsuredKey, u32)>,
    built: Population,
    error: Option<Error>,
}

/// Every pair of office and person, as far as a decision depends on it.
#[derive(Debug, Default)]
pub struct Population {
    offices: Vec<(OfficeNumber, Option<Record>)>,
    persons: Vec<Person>,
    insurers: Vec<(InsurerNumber, bool)>,
    pairs: Vec<Pair>,
}

/// What of an office's record decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    /// Sorted.
    service_types: Vec<ServiceType>,
    medical: bool,
    suspended: bool,
}

/// A person's insurer, and the kinds that their consents cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Person {
    insurer: u16,
    given: DocumentSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    person: u32,
    office: u32,
    state: State,
}

/// What is so of a pair, as bits: the kinds that the office wrote, and the flags below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
struct State(u32);

/// What a change means to a population.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Pairs of office and person.
    pub pairs: u64,
    /// Combinations that were decided, each by both policies.
    pub combinations: usize,
    /// Triples that were open.
    pub open_before: u64,
    /// Triples that are open.
    pub open_after: u64,
    /// Triples that are open and were not.
    pub widened: u64,
    /// Triples that were open and are not.
    pub narrowed: u64,
    /// The same by cell.
    pub cells: Vec<CellCount>,
}

/// How many triples of one cell change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellCount {
    /// `document/standing`: the cell that opens, or did, as in [`crate::bundle::diff::CellChange`].
    pub cell: String,
    /// Triples that are open and were not.
    pub widened: u64,
    /// Triples that were open and are not.
    pub narrowed: u64,
}

impl Builder {
    /// No facts yet; they will be looked at as they stand at `at` (Unix seconds).
    pub fn new(at: u64) -> Self {
        Self {
            at,
            offices: HashMap::new(),
            persons: HashMap::new(),
            insurers: HashMap::new(),
            last_person: None,
            built: Population::default(),
            error: None,
        }
    }

    /// Takes one fact of either source. One whose key came before is an error at the end.
    pub fn take(&mut self, fact: &Fact) {
        match fact {
            Fact::Office { number, service_types, medical, suspended, name: _ } => {
                let mut service_types = service_types.clone();
                service_types.sort_unstable();
                let office = self.office(*number) as usize;
                let record = Record { service_types, medical: *medical, suspended: *suspended };
                self.built.offices[office].1 = Some(record);
            }
            Fact::Registration { office, insured, from, until, ended } => {
                let over = ended.is_some() || until.is_some_and(|until| until < self.at);
                let in_force = !over && *from <= self.at;
                self.pair(*office, *insured, State::REGISTRATION, in_force, State::REGISTERED);
            }
            Fact::PlansFor { office, insured, active } => {
                self.pair(*office, *insured, State::PLAN, *active, State::PLANS_FOR);
            }
            Fact::OpinionRequest { office, insured, open } => {
                let asked = State::REQUEST.with(State::ASKED);
                self.pair(*office, *insured, asked, *open, State::OPEN);
            }
            Fact::Author { party, insured, document } => {
                // Others than offices are no part of a pair.
                let office = party.strip_prefix("office/").and_then(|number| number.parse().ok());
                let wrote = State::of_author(DocumentSet::from_iter([*document]));
                if let Some(office) = office {
                    self.pair(office, *insured, wrote, false, State::default());
                }
            }
            Fact::Consent { insured, scope, from, until, withdrawn, id: _ } => {
                let over = withdrawn.is_some() || until.is_some_and(|until| until < self.at);
                if !over && *from <= self.at {
                    let person = self.person(*insured) as usize;
                    let given = &mut self.built.persons[person].given;
                    *given = given.union(*scope);
                }
            }
            Fact::Sharing { insurer, from } => {
                let insurer = usize::from(self.insurer(*insurer));
                self.built.insurers[insurer].1 = from.is_some_and(|from| from <= self.at);
            }
            Fact::Revoked { .. } | Fact::StaffKey { .. } | Fact::SessionEnded { .. } => {}
        }
    }

    /// Everything has come.
    ///
    /// # Errors
    /// [`Error`] if it is no population.
    pub fn finish(self) -> Result<Population, Error> {
        let Self { persons, mut built, error, .. } = self;
        built.pairs.sort_by_key(|pair| (pair.person, pair.office));
        let mut twice = None;
        built.pairs.dedup_by(|next, kept| {
            let same = (next.person, next.office) == (kept.person, kept.office);
            if same {
                if kept.state.told_by(next.state) {
                    twice = Some(*next);
                }
                kept.state = kept.state.with(next.state);
            }
            same
        });
        if let Some(pair) = twice {
            let office = built.offices[pair.office as usize].0;
            let insured = persons.iter().find(|(_, at)| **at == pair.person).map(|(it, _)| *it);
            return match insured {
                Some(insured) => Err(Error::Twice { office, insured }),
                None => Err(Error::TooMany { what: "persons", max: u64::from(u32::MAX) }),
            };
        }
        error.map_or(Ok(built), Err)
    }

    fn pair(
        &mut self,
        office: OfficeNumber,
        insured: InsuredKey,
        told: State,
        holds: bool,
        then: State,
    ) {
        let state = if holds { told.with(then) } else { told };
        let (person, office) = (self.person(insured), self.office(office));
        self.built.pairs.push(Pair { person, office, state });
    }

    fn office(&mut self, number: OfficeNumber) -> u32 {
        let offices = &mut self.built.offices;
        *self.offices.entry(number).or_insert_with(|| {
            offices.push((number, None));
            (offices.len() - 1) as u32
        })
    }

    /// A snapshot mostly tells of one person several times in a row.
    fn person(&mut self, insured: InsuredKey) -> u32 {
        if let Some((last, at)) = self.last_person
            && last == insured
        {
            return at;
        }
        let insurer = self.insurer(insured.insurer);
        let persons = &mut self.built.persons;
        let at = *self.persons.entry(insured).or_insert_with(|| {
            persons.push(Person { insurer, given: DocumentSet::EMPTY });
            (persons.len() - 1) as u32
        });
        self.last_person = Some((insured, at));
        at
    }

    fn insurer(&mut self, number: InsurerNumber) -> u16 {
        let insurers = &mut self.built.insurers;
        if let Some(known) = self.insurers.get(&number) {
            return *known;
        }
        let Ok(at) = u16::try_from(insurers.len()) else {
            let error = Error::TooMany { what: "insurers", max: 1 << u16::BITS };
            self.error.get_or_insert(error);
            return 0;
        };
        insurers.push((number, false));
        self.insurers.insert(number, at);
        at
    }
}

impl State {
    /// The office is registered for the person, now.
    const REGISTERED: Self = Self(1 << 16);
    /// The office makes the person's plan.
    const PLANS_FOR: Self = Self(1 << 17);
    /// The institution was asked for an opinion.
    const ASKED: Self = Self(1 << 18);
    /// It is still asked for one.
    const OPEN: Self = Self(1 << 19);
    /// A registration was told, whatever its state; the same for plan and request.
    const REGISTRATION: Self = Self(1 << 20);
    const PLAN: Self = Self(1 << 21);
    const REQUEST: Self = Self(1 << 22);
    const TOLD: u32 = Self::REGISTRATION.0 | Self::PLAN.0 | Self::REQUEST.0;

    fn of_author(kinds: DocumentSet) -> Self {
        Self(u32::from(kinds.bits()))
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether both tell of the same thing.
    const fn told_by(self, other: Self) -> bool {
        self.0 & other.0 & Self::TOLD != 0
    }

    /// Without what was only for putting pairs together.
    const fn decisive(self) -> Self {
        Self(self.0 & !Self::TOLD)
    }

    fn wrote(self) -> DocumentSet {
        DocumentSet::from_bits(self.0 as u16).unwrap_or_default()
    }
}

impl Population {
    /// How many pairs of office and person it holds.
    pub fn pairs(&self) -> u64 {
        self.pairs.len() as u64
    }

    /// What a change from one policy to another means to it.
    pub fn diff(&self, old: &Matrix, new: &Matrix) -> Diff {
        let (old, new) = (whenever(old), whenever(new));
        let counted = self.combinations(&old, &new);
        let mut diff = Diff {
            pairs: self.pairs(),
            combinations: counted.len(),
            open_before: 0,
            open_after: 0,
            widened: 0,
            narrowed: 0,
            cells: Vec::new(),
        };
        let mut cells: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (combination, pairs) in counted {
            let standing = combination.stand();
            let (before, after) = (standing.open(&old), standing.open(&new));
            diff.open_before += pairs * before.iter().count() as u64;
            diff.open_after += pairs * after.iter().count() as u64;
            for document in after.iter().filter(|it| !before.contains(*it)) {
                diff.widened += pairs;
                cells.entry(standing.cell(&new, document)).or_default().0 += pairs;
            }
            for document in before.iter().filter(|it| !after.contains(*it)) {
                diff.narrowed += pairs;
                cells.entry(standing.cell(&old, document)).or_default().1 += pairs;
            }
        }
        let count = |(cell, (widened, narrowed))| CellCount { cell, widened, narrowed };
        diff.cells = cells.into_iter().map(count).collect();
        diff
    }

    /// How many pairs stand in each combination.
    fn combinations<'a>(&'a self, old: &Matrix, new: &Matrix) -> Vec<(Combination<'a>, u64)> {
        let overlays: Vec<&Overlay> = old.overlays().iter().chain(new.overlays().iter()).collect();
        let named = Named::new(&overlays);
        let offices =
            alike(&self.offices, |(number, record)| (record.as_ref(), named.office(*number)));
        let insurers = alike(&self.insurers, |(number, live)| (*live, named.insurer(*number)));
        let mut counted: HashMap<(u32, u32, State), u64> = HashMap::new();
        for pair in &self.pairs {
            let person = self.persons[pair.person as usize];
            let insurer = insurers[usize::from(person.insurer)];
            let person = insurer << u16::BITS | u32::from(person.given.bits());
            let key = (offices[pair.office as usize], person, pair.state.decisive());
            *counted.entry(key).or_default() += 1;
        }
        let combination = |((office, person, state), pairs): ((u32, u32, State), u64)| {
            let (office, record) = &self.offices[office as usize];
            let (insurer, live) = self.insurers[(person >> u16::BITS) as usize];
            let given = DocumentSet::from_bits(person as u16).unwrap_or_default();
            let (office, record) = (*office, record.as_ref());
            (Combination { office, record, insurer, live, given, state }, pairs)
        };
        counted.into_iter().map(combination).collect()
    }
}

/// The first of those that stand alike, for each.
fn alike<'a, T, K: std::hash::Hash + Eq>(all: &'a [T], key: impl Fn(&'a T) -> K) -> Vec<u32> {
    let mut first: HashMap<K, u32> = HashMap::new();
    let each = all.iter().enumerate();
    each.map(|(at, it)| *first.entry(key(it)).or_insert(at as u32)).collect()
}

/// Which offices and municipalities the overlays name, each overlay for itself.
struct Named {
    offices: Vec<HashSet<OfficeNumber>>,
    insurers: Vec<HashSet<InsurerNumber>>,
}

impl Named {
    fn new(overlays: &[&Overlay]) -> Self {
        let mut named = Self { offices: Vec::new(), insurers: Vec::new() };
        for overlay in overlays {
            match &overlay.applies_to {
                AppliesTo::Offices(numbers) => {
                    named.offices.push(numbers.iter().copied().collect());
                }
                AppliesTo::Municipalities(numbers) => {
                    named.insurers.push(numbers.iter().copied().collect());
                }
                // Told apart by the office's record, or not at all.
                AppliesTo::ServiceTypes(_) | AppliesTo::EveryOffice => {}
            }
            named.offices.extend(overlay.pilot.clone());
        }
        named
    }

    fn office(&self, number: OfficeNumber) -> Vec<bool> {
        self.offices.iter().map(|named| named.contains(&number)).collect()
    }

    fn insurer(&self, number: InsurerNumber) -> Vec<bool> {
        self.insurers.iter().map(|named| named.contains(&number)).collect()
    }
}

/// The same policy without hours, addresses and ceilings.
fn whenever(matrix: &Matrix) -> Matrix {
    let overlays = matrix.overlays().iter().map(|overlay| Overlay {
        hours: None,
        addresses: None,
        networks: None,
        reads_per_hour_max: None,
        ..overlay.clone()
    });
    let overlays = Overlays::new(overlays.collect());
    let version = matrix.version().to_owned();
    matrix.clone().narrowed_by(overlays, version)
}

#[cfg(test)]
mod tests;
