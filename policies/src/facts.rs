//! The facts of one gateway in memory: offices, revocations, registrations, consents, authorship,
//! plans, opinion requests, go-live dates, staff keys and ended sessions.
//!
//! [`crate::feed`] checks the lines; this module folds them: [`Facts::replace`] for a snapshot,
//! [`Facts::apply`] for a change. A decision reads one [`Facts`] value from beginning to end, so a
//! reader never sees half a change: the writer clones (cheap: shared maps), changes its clone and
//! swaps it in whole.
//!
//! Absent means closed: no lookup here invents a default that opens anything.
//!
//! Made for the whole country in one gateway: see `registrations` for 40 million of them,
//! `consents`, and `table` for what else a snapshot brings much of. Changes lie above, in a
//! `shared_map`. A copy of [`Facts`] is a few pointers, so the writer never makes a reader wait and
//! never copies a map.
//!
//! ```text
//!  snapshot ─► Loading ──► Loaded ─► install ─┐
//!  copy     ─► read_from ──┘                  ├─► Facts ─► begin_merge ─► Merge::run ─► end_merge
//!  change   ─► apply ─────────────────────────┘     └─► write_to ─► copy
//! ```

use std::sync::Arc;

use crate::document::{DocumentKind, DocumentSet};
use crate::feed::{Fact, Source};
use crate::identity::{Identity, InsuredKey, InsurerNumber, OfficeNumber, Serial};

mod consents;
mod copy;
mod huge;
mod layers;
mod packed;
mod pair_key;
mod registrations;
mod service_types;
mod shared_map;
mod table;

#[cfg(test)]
mod model;

pub use copy::{CopyError, LAYOUT};
pub use pair_key::{Full, PAIR_KEY_VERSION};
pub use service_types::ServiceTypes;

use consents::Consents;
use pair_key::Ordinals;
use registrations::Registrations;
use shared_map::SharedMap;
use table::Table;

pub(crate) use pair_key::Person;

/// An office as the operator registered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Office {
    /// The service types of its record.
    pub service_types: ServiceTypes,
    /// Whether it is a medical institution (病院・診療所).
    pub medical: bool,
    /// Whether the operator suspended it.
    pub suspended: bool,
    /// Its name, for people to read; empty if its fact told none.
    pub name: String,
}

/// A registration as 担当事業所. Times are Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// When it began.
    pub from: u64,
    /// Its last second, if it lapses.
    pub until: Option<u64>,
    /// When it was ended by hand; any value means ended.
    pub ended: Option<u64>,
}

/// How a registration stands at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationState {
    /// In force since this time.
    InForce(u64),
    /// Over since this time: lapsed or ended.
    Over(u64),
    /// None, or not begun.
    Absent,
}

/// One consent. Times are Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consent {
    /// Its id in the hub.
    pub id: u64,
    /// The kinds of document that it covers.
    pub scope: DocumentSet,
    /// When it begins.
    pub from: u64,
    /// Its last second, if it ends.
    pub until: Option<u64>,
    /// When it was withdrawn; any value means withdrawn.
    pub withdrawn: Option<u64>,
}

/// How a person's consent to one kind of document stands at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsentState {
    /// This consent covers the kind now.
    Given(u64),
    /// The newest consent that named the kind was withdrawn.
    Withdrawn(u64),
    /// The newest consent that named the kind ran out.
    Expired(u64),
    /// No consent names the kind, or it has not begun.
    Absent,
}

/// A public key that signs staff tokens (ES256), as coordinates in base64url without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaffKey {
    /// The P-256 point's x.
    pub x: String,
    /// The P-256 point's y.
    pub y: String,
    /// Whether tokens of this key are no longer accepted.
    pub retired: bool,
}

/// Every fact that decisions are made from.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    ca: CaFacts,
    hub: HubFacts,
    ca_seq: u64,
    hub_seq: u64,
}

#[derive(Debug, Clone, Default)]
struct CaFacts {
    offices: Table<OfficeNumber, Office>,
    revoked: Table<Serial, u64>,
}

/// Everything about a pair of office and person goes by the pair's number, which `ordinals` tells.
#[derive(Debug, Clone, Default)]
struct HubFacts {
    ordinals: Ordinals,
    registrations: Registrations,
    consents: Consents,
    parties: Table<Arc<str>, u32>,
    authors: Table<(InsuredKey, u32), DocumentSet>,
    plans: Table<u64, ()>,
    opinion_requests: Table<u64, bool>,
    sharing: Table<InsurerNumber, u64>,
    staff_keys: SharedMap<String, StaffKey>,
    sessions_ended: SharedMap<String, u64>,
    full: Option<Full>,
}

impl Facts {
    /// No facts: every decision about an office or person is a deny.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the snapshot of one source: everything it said before is forgotten. Facts that are not
    /// the source's to tell are ignored.
    pub fn replace(&mut self, source: Source, facts: Vec<Fact>) {
        let mut loading = Loading::new(source);
        facts.into_iter().for_each(|fact| loading.take(fact));
        self.install(loading.finish());
    }

    /// Takes a snapshot that was loaded: everything that its source said before is forgotten.
    pub fn install(&mut self, loaded: Loaded) {
        match loaded.source {
            Source::Ca => self.ca = loaded.facts.ca,
            Source::Hub => self.hub = loaded.facts.hub,
        }
    }

    /// Takes one changed fact.
    pub fn apply(&mut self, fact: Fact) {
        match fact {
            Fact::Office { number, service_types, medical, suspended, name } => {
                let service_types = service_types.into();
                let office = Office { service_types, medical, suspended, name };
                self.ca.offices.insert(number, office);
            }
            Fact::Revoked { serial, at } => {
                self.ca.revoked.insert(serial, at);
            }
            Fact::Registration { .. }
            | Fact::Consent { .. }
            | Fact::Author { .. }
            | Fact::PlansFor { .. }
            | Fact::OpinionRequest { .. }
            | Fact::Sharing { .. }
            | Fact::StaffKey { .. }
            | Fact::SessionEnded { .. } => match self.hub.apply(fact) {
                Some(Numbered::Registration(pair, registration)) => {
                    self.hub.registrations.insert(pair, registration);
                }
                Some(Numbered::Consent(person, consent)) => {
                    self.hub.consents.insert(person, consent);
                }
                None => {}
            },
        }
    }

    /// Whether every fact had room. One that has none is left out, which closes and never opens;
    /// still, such facts are not the source's, and are not to be decided from.
    ///
    /// # Errors
    /// [`Full`], of the first fact that had no room since the snapshot.
    pub fn complete(&self) -> Result<(), Full> {
        self.hub.full.map_or(Ok(()), Err)
    }

    /// Begins to merge the registrations and consents that changed into their bases, if at least
    /// `changes_min` did and no merge is under way. [`Merge::run`] takes its time: call it where
    /// nobody waits, then bring the result to [`Facts::end_merge`].
    pub fn begin_merge(&mut self, changes_min: usize) -> Option<Merge> {
        let HubFacts { registrations, consents, .. } = &mut self.hub;
        let changed = registrations.changed() + consents.changed();
        if changed < changes_min || registrations.is_merging() || consents.is_merging() {
            return None;
        }
        let (registrations, consents) = (registrations.begin_merge(), consents.begin_merge());
        let is_due = registrations.is_some() || consents.is_some();
        is_due.then_some(Merge { registrations, consents })
    }

    /// Takes the merged bases; changes made meanwhile are kept.
    pub fn end_merge(&mut self, merged: Merged) {
        if let Some(merged) = merged.registrations {
            self.hub.registrations.end_merge(merged);
        }
        if let Some(merged) = merged.consents {
            self.hub.consents.end_merge(merged);
        }
    }

    /// Bytes of memory that the registrations' base takes, and how many it holds.
    pub fn registrations_size(&self) -> (usize, usize) {
        self.hub.registrations.base_size()
    }

    /// Bytes of memory that the consents' base takes, and how many it holds.
    pub fn consents_size(&self) -> (usize, usize) {
        self.hub.consents.base_size()
    }

    /// The sequence of `source` that these facts stand at; 0 before its first snapshot.
    pub fn seq(&self, source: Source) -> u64 {
        match source {
            Source::Ca => self.ca_seq,
            Source::Hub => self.hub_seq,
        }
    }

    /// Notes the sequence of `source` that was applied last.
    pub fn set_seq(&mut self, source: Source, seq: u64) {
        match source {
            Source::Ca => self.ca_seq = seq,
            Source::Hub => self.hub_seq = seq,
        }
    }

    /// The office's record.
    pub fn office(&self, number: OfficeNumber) -> Option<&Office> {
        self.ca.offices.get(&number)
    }

    /// When the certificate was revoked (Unix seconds), if it was.
    pub fn revoked(&self, serial: Serial) -> Option<u64> {
        self.ca.revoked.get(&serial).copied()
    }

    /// The office's registration for the person, whatever its state.
    pub fn registration(&self, office: OfficeNumber, insured: InsuredKey) -> Option<Registration> {
        self.hub.registrations.get(self.hub.ordinals.key(office, insured)?)
    }

    /// How the office's registration for the person stands at `now` (Unix seconds).
    pub fn registration_state(
        &self,
        office: OfficeNumber,
        insured: InsuredKey,
        now: u64,
    ) -> RegistrationState {
        let pair = self.hub.ordinals.key(office, insured);
        pair.map_or(RegistrationState::Absent, |pair| self.registration_of(pair, now))
    }

    /// The same, for a pair whose number is known.
    #[inline]
    pub(crate) fn registration_of(&self, pair: u64, now: u64) -> RegistrationState {
        match self.hub.registrations.get(pair) {
            Some(Registration { ended: Some(ended), .. }) => RegistrationState::Over(ended),
            Some(Registration { until: Some(until), .. }) if until < now => {
                RegistrationState::Over(until)
            }
            Some(Registration { from, .. }) if from <= now => RegistrationState::InForce(from),
            Some(_) | None => RegistrationState::Absent,
        }
    }

    /// The person, if anything that goes by persons can be known of him or her.
    #[inline]
    pub(crate) fn person(&self, insured: InsuredKey) -> Option<Person> {
        self.hub.ordinals.person(insured)
    }

    /// The number of the pair, if anything that goes by pairs can be known of it.
    #[inline]
    pub(crate) fn pair(&self, office: OfficeNumber, person: Person) -> Option<u64> {
        self.hub.ordinals.pair(office, person)
    }

    /// The person's consents, oldest id first.
    pub fn consents(&self, insured: InsuredKey) -> impl Iterator<Item = Consent> {
        let person = self.person(insured);
        person.into_iter().flat_map(|person| self.hub.consents.of(person.key()))
    }

    /// How the person's consent to `document` stands at `now` (Unix seconds).
    pub fn consent_state(
        &self,
        insured: InsuredKey,
        document: DocumentKind,
        now: u64,
    ) -> ConsentState {
        let person = self.person(insured);
        person.map_or(ConsentState::Absent, |person| self.consent_of(person, document, now))
    }

    /// The same, for a person whose number is known.
    pub(crate) fn consent_of(
        &self,
        person: Person,
        document: DocumentKind,
        now: u64,
    ) -> ConsentState {
        let mut state = ConsentState::Absent;
        let own = self.hub.consents.of(person.key());
        for consent in own.filter(|consent| consent.scope.contains(document)) {
            state = match (consent.withdrawn, consent.until) {
                (Some(withdrawn), _) => ConsentState::Withdrawn(withdrawn),
                (None, Some(until)) if until < now => ConsentState::Expired(until),
                (None, _) if consent.from <= now => return ConsentState::Given(consent.id),
                (None, _) => state,
            };
        }
        state
    }

    /// Whether `party` (see [`crate::identity::Identity::party`]) wrote a document of this kind for
    /// the person.
    pub fn author(&self, party: &str, insured: InsuredKey, document: DocumentKind) -> bool {
        let party = self.hub.parties.get(party);
        party.is_some_and(|party| self.author_of(*party, insured, document))
    }

    /// The number of the principal's party, if it ever wrote anything.
    pub(crate) fn party(&self, principal: &Identity) -> Option<u32> {
        if self.hub.parties.len() == 0 {
            return None;
        }
        principal.with_party(|party| self.hub.parties.get(party).copied())
    }

    /// As [`Facts::author`], for a party whose number is known.
    pub(crate) fn author_of(
        &self,
        party: u32,
        insured: InsuredKey,
        document: DocumentKind,
    ) -> bool {
        let kinds = self.hub.authors.get(&(insured, party));
        kinds.is_some_and(|kinds| kinds.contains(document))
    }

    /// Whether the office makes the person's care plan.
    pub fn plans_for(&self, office: OfficeNumber, insured: InsuredKey) -> bool {
        self.hub.ordinals.key(office, insured).is_some_and(|pair| self.plans_of(pair))
    }

    /// The same, for a pair whose number is known.
    pub(crate) fn plans_of(&self, pair: u64) -> bool {
        self.hub.plans.get(&pair).is_some()
    }

    /// Whether the insurer's request to this institution for an opinion on the person is open;
    /// `None` if there never was one.
    pub fn opinion_request(&self, office: OfficeNumber, insured: InsuredKey) -> Option<bool> {
        self.opinion_request_of(self.hub.ordinals.key(office, insured)?)
    }

    /// The same, for a pair whose number is known.
    pub(crate) fn opinion_request_of(&self, pair: u64) -> Option<bool> {
        self.hub.opinion_requests.get(&pair).copied()
    }

    /// Since when the municipality shares (Unix seconds); may lie ahead. `None`: it does not.
    pub fn sharing(&self, insurer: InsurerNumber) -> Option<u64> {
        self.hub.sharing.get(&insurer).copied()
    }

    /// A key that signs staff tokens.
    pub fn staff_key(&self, kid: &str) -> Option<&StaffKey> {
        self.hub.staff_keys.get(kid)
    }

    /// Whether a staff session was ended.
    pub fn session_ended(&self, session: &str) -> bool {
        self.hub.sessions_ended.get(session).is_some()
    }
}

impl HubFacts {
    /// Takes one of the hub's facts; gives one back that a snapshot and a change keep in different
    /// places.
    fn apply(&mut self, fact: Fact) -> Option<Numbered> {
        match fact {
            Fact::Registration { office, insured, from, until, ended } => {
                let pair = self.pair(office, insured)?;
                return Some(Numbered::Registration(pair, Registration { from, until, ended }));
            }
            Fact::Consent { id, insured, scope, from, until, withdrawn } => {
                let person = self.ordinals.person_or_new(insured);
                let person = person.inspect_err(|full| self.note(*full)).ok()?;
                let consent = Consent { id, scope, from, until, withdrawn };
                return Some(Numbered::Consent(person.key(), consent));
            }
            Fact::Author { party, insured, document } => self.put_author(party, insured, document),
            Fact::PlansFor { office, insured, active } => {
                let key = self.pair(office, insured)?;
                match active {
                    true => self.plans.insert(key, ()),
                    false => self.plans.remove(&key),
                }
            }
            Fact::OpinionRequest { office, insured, open } => {
                let key = self.pair(office, insured)?;
                self.opinion_requests.insert(key, open);
            }
            Fact::Sharing { insurer, from } => match from {
                Some(from) => self.sharing.insert(insurer, from),
                None => self.sharing.remove(&insurer),
            },
            Fact::StaffKey { kid, x, y, retired } => {
                self.staff_keys.insert(kid, StaffKey { x, y, retired });
            }
            Fact::SessionEnded { session, until } => {
                self.sessions_ended.insert(session, until);
            }
            // The CA's.
            Fact::Office { .. } | Fact::Revoked { .. } => {}
        }
        None
    }

    fn pair(&mut self, office: OfficeNumber, insured: InsuredKey) -> Option<u64> {
        let key = self.ordinals.key_or_new(office, insured);
        key.inspect_err(|full| self.note(*full)).ok()
    }

    fn note(&mut self, full: Full) {
        self.full = self.full.or(Some(full));
    }

    fn put_author(&mut self, party: String, insured: InsuredKey, document: DocumentKind) {
        let next = self.parties.len() as u32;
        let party = match self.parties.get(party.as_str()) {
            Some(known) => *known,
            None => {
                self.parties.insert(party.into(), next);
                next
            }
        };
        let mut kinds = self.authors.get(&(insured, party)).copied().unwrap_or_default();
        kinds.insert(document);
        self.authors.insert((insured, party), kinds);
    }
}

/// A fact about a pair or person that has a number.
enum Numbered {
    Registration(u64, Registration),
    Consent(u64, Consent),
}

/// A merge of changed registrations and consents into their bases: takes its time, and nobody waits
/// for it.
#[derive(Debug)]
pub struct Merge {
    registrations: Option<registrations::Merge>,
    consents: Option<consents::Merge>,
}

/// Bases that are ready to be taken.
#[derive(Debug)]
pub struct Merged {
    registrations: Option<registrations::Merged>,
    consents: Option<consents::Merged>,
}

impl Merge {
    /// Makes the new bases.
    pub fn run(self) -> Merged {
        Merged {
            registrations: self.registrations.map(registrations::run),
            consents: self.consents.map(consents::run),
        }
    }
}

/// The snapshot of one source while it comes in, beside the facts that are in use.
#[derive(Debug)]
pub struct Loading {
    source: Source,
    facts: Facts,
    registrations: registrations::Gathered,
    consents: consents::Gathered,
}

impl Loading {
    /// A snapshot of `source` of which nothing has come.
    pub fn new(source: Source) -> Self {
        let (registrations, consents) = Default::default();
        Self { source, facts: Facts::new(), registrations, consents }
    }

    /// Takes one fact; a later one with the same key replaces an earlier one. A fact that is not
    /// the source's to tell is ignored.
    pub fn take(&mut self, fact: Fact) {
        match (self.source, fact.source()) {
            (Source::Ca, Source::Ca) => self.facts.apply(fact),
            (Source::Hub, Source::Hub) => match self.facts.hub.apply(fact) {
                Some(Numbered::Registration(pair, registration)) => {
                    self.registrations.push(pair, registration);
                }
                Some(Numbered::Consent(person, consent)) => {
                    self.consents.push(person, consent);
                }
                None => {}
            },
            (Source::Ca, Source::Hub) | (Source::Hub, Source::Ca) => {}
        }
    }

    /// Everything has come. Sorts the registrations: seconds at national scale.
    pub fn finish(mut self) -> Loaded {
        self.facts.hub.registrations = self.registrations.finish();
        self.facts.hub.consents = self.consents.finish();
        Loaded { source: self.source, facts: self.facts }
    }
}

/// A snapshot that came whole.
#[derive(Debug)]
pub struct Loaded {
    source: Source,
    facts: Facts,
}

impl Loaded {
    /// Whether every fact had room; see [`Facts::complete`].
    ///
    /// # Errors
    /// [`Full`], of the first that had none.
    pub fn complete(&self) -> Result<(), Full> {
        self.facts.complete()
    }
}

impl FromIterator<Fact> for Facts {
    /// Folds facts of any source, later ones replacing earlier ones.
    fn from_iter<I: IntoIterator<Item = Fact>>(facts: I) -> Self {
        facts.into_iter().fold(Self::new(), |mut folded, fact| {
            folded.apply(fact);
            folded
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insured() -> InsuredKey {
        "131016/0000000001".parse().unwrap()
    }

    fn office() -> OfficeNumber {
        "1370000001".parse().unwrap()
    }

    fn consent(id: u64, from: u64, until: Option<u64>, withdrawn: Option<u64>) -> Fact {
        let scope = DocumentSet::from_iter([DocumentKind::LifeFeedback]);
        Fact::Consent { id, insured: insured(), scope, from, until, withdrawn }
    }

    fn life_at(facts: &Facts, now: u64) -> ConsentState {
        facts.consent_state(insured(), DocumentKind::LifeFeedback, now)
    }

    #[test]
    fn a_consent_is_given_from_its_first_to_its_last_second() {
        let facts = Facts::from_iter([consent(1, 10, Some(20), None)]);
        assert_eq!(life_at(&facts, 9), ConsentState::Absent);
        assert_eq!(life_at(&facts, 10), ConsentState::Given(1));
        assert_eq!(life_at(&facts, 20), ConsentState::Given(1));
        assert_eq!(life_at(&facts, 21), ConsentState::Expired(20));
        let other = facts.consent_state(insured(), DocumentKind::HomeCarePlan, 15);
        assert_eq!(other, ConsentState::Absent);
    }

    #[test]
    fn a_withdrawn_consent_covers_nothing_and_a_new_one_does() {
        let mut facts = Facts::from_iter([consent(1, 0, None, None)]);
        facts.apply(consent(1, 0, None, Some(5)));
        assert_eq!(life_at(&facts, 4), ConsentState::Withdrawn(5));
        facts.apply(consent(2, 6, None, None));
        assert_eq!(life_at(&facts, 7), ConsentState::Given(2));
        assert_eq!(facts.consents(insured()).count(), 2);
    }

    #[test]
    fn a_consent_that_moves_to_another_person_leaves_the_first() {
        let mut facts = Facts::from_iter([consent(1, 0, None, None)]);
        let other: InsuredKey = "131016/0000000002".parse().unwrap();
        let scope = DocumentSet::held();
        facts.apply(Fact::Consent {
            id: 1,
            insured: other,
            scope,
            from: 0,
            until: None,
            withdrawn: None,
        });
        assert_eq!(life_at(&facts, 1), ConsentState::Absent);
        assert_eq!(facts.consents(other).count(), 1);
    }

    #[test]
    fn a_registration_is_in_force_until_its_last_second_or_its_end() {
        let fact = |until, ended| Fact::Registration {
            office: office(),
            insured: insured(),
            from: 10,
            until,
            ended,
        };
        let state = |facts: &Facts, now| facts.registration_state(office(), insured(), now);
        let mut facts = Facts::from_iter([fact(Some(20), None)]);
        assert_eq!(state(&facts, 9), RegistrationState::Absent);
        assert_eq!(state(&facts, 20), RegistrationState::InForce(10));
        assert_eq!(state(&facts, 21), RegistrationState::Over(20));
        facts.apply(fact(None, Some(30)));
        assert_eq!(state(&facts, 15), RegistrationState::Over(30));
    }

    #[test]
    fn a_snapshot_replaces_only_its_own_source() {
        let sharing = Fact::Sharing { insurer: insured().insurer, from: Some(1) };
        let revoked = Fact::Revoked { serial: "01".parse().unwrap(), at: 1 };
        let mut facts = Facts::from_iter([sharing.clone(), revoked.clone()]);
        facts.set_seq(Source::Ca, 4);
        facts.replace(Source::Hub, vec![revoked]);
        assert_eq!(facts.sharing(insured().insurer), None);
        assert_eq!(facts.revoked("01".parse().unwrap()), Some(1));
        facts.replace(Source::Ca, vec![sharing]);
        assert_eq!(facts.revoked("01".parse().unwrap()), None);
        assert_eq!(facts.sharing(insured().insurer), None, "not the CA's to tell");
        assert_eq!((facts.seq(Source::Ca), facts.seq(Source::Hub)), (4, 0));
    }

    #[test]
    fn a_reader_keeps_what_it_began_with() {
        let mut facts = Facts::from_iter([Fact::PlansFor {
            office: office(),
            insured: insured(),
            active: true,
        }]);
        let reader = facts.clone();
        facts.apply(Fact::PlansFor { office: office(), insured: insured(), active: false });
        assert!(reader.plans_for(office(), insured()));
        assert!(!facts.plans_for(office(), insured()));
    }
}
