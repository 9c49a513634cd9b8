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
//! The layout for national scale belongs here (40 million registrations): one exact 64-bit key per
//! (office, person) pair, bijectively mixed, plus a flag byte and a bucket index, 9.5 bytes a pair;
//! an immutable base with a small delta. Never a lossy hash: a false "registered" is a disclosure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::document::{DocumentKind, DocumentSet};
use crate::feed::{Fact, Source};
use crate::identity::{InsuredKey, InsurerNumber, OfficeNumber, Serial, ServiceType};

/// An office as the operator registered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Office {
    /// The service types of its record.
    pub service_types: Vec<ServiceType>,
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

type Pair = (OfficeNumber, InsuredKey);

/// Every fact that decisions are made from.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    offices: Arc<HashMap<OfficeNumber, Office>>,
    revoked: Arc<HashMap<Serial, u64>>,
    registrations: Arc<HashMap<Pair, Registration>>,
    consents: Arc<HashMap<InsuredKey, Vec<Consent>>>,
    consent_owners: Arc<HashMap<u64, InsuredKey>>,
    authors: Arc<HashMap<InsuredKey, HashMap<String, DocumentSet>>>,
    plans: Arc<HashSet<Pair>>,
    opinion_requests: Arc<HashMap<Pair, bool>>,
    sharing: Arc<HashMap<InsurerNumber, u64>>,
    staff_keys: Arc<HashMap<String, StaffKey>>,
    sessions_ended: Arc<HashMap<String, u64>>,
    ca_seq: u64,
    hub_seq: u64,
}

impl Facts {
    /// No facts: every decision about an office or person is a deny.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the snapshot of one source: everything it said before is forgotten. Facts that are not
    /// the source's to tell are ignored.
    pub fn replace(&mut self, source: Source, facts: Vec<Fact>) {
        match source {
            Source::Ca => {
                self.offices = Arc::default();
                self.revoked = Arc::default();
            }
            Source::Hub => {
                *self = Self {
                    offices: Arc::clone(&self.offices),
                    revoked: Arc::clone(&self.revoked),
                    ca_seq: self.ca_seq,
                    hub_seq: self.hub_seq,
                    ..Self::default()
                };
            }
        }
        facts.into_iter().filter(|fact| fact.source() == source).for_each(|fact| self.apply(fact));
    }

    /// Takes one changed fact.
    pub fn apply(&mut self, fact: Fact) {
        match fact {
            Fact::Office { number, service_types, medical, suspended, name } => {
                let office = Office { service_types, medical, suspended, name };
                Arc::make_mut(&mut self.offices).insert(number, office);
            }
            Fact::Revoked { serial, at } => {
                Arc::make_mut(&mut self.revoked).insert(serial, at);
            }
            Fact::Registration { office, insured, from, until, ended } => {
                let registration = Registration { from, until, ended };
                Arc::make_mut(&mut self.registrations).insert((office, insured), registration);
            }
            Fact::Consent { id, insured, scope, from, until, withdrawn } => {
                self.put_consent(insured, Consent { id, scope, from, until, withdrawn });
            }
            Fact::Author { party, insured, document } => {
                let authors = Arc::make_mut(&mut self.authors);
                authors.entry(insured).or_default().entry(party).or_default().insert(document);
            }
            Fact::PlansFor { office, insured, active } => {
                let plans = Arc::make_mut(&mut self.plans);
                if active {
                    plans.insert((office, insured))
                } else {
                    plans.remove(&(office, insured))
                };
            }
            Fact::OpinionRequest { office, insured, open } => {
                Arc::make_mut(&mut self.opinion_requests).insert((office, insured), open);
            }
            Fact::Sharing { insurer, from } => {
                let sharing = Arc::make_mut(&mut self.sharing);
                match from {
                    Some(from) => sharing.insert(insurer, from),
                    None => sharing.remove(&insurer),
                };
            }
            Fact::StaffKey { kid, x, y, retired } => {
                Arc::make_mut(&mut self.staff_keys).insert(kid, StaffKey { x, y, retired });
            }
            Fact::SessionEnded { session, until } => {
                Arc::make_mut(&mut self.sessions_ended).insert(session, until);
            }
        }
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
        self.offices.get(&number)
    }

    /// When the certificate was revoked (Unix seconds), if it was.
    pub fn revoked(&self, serial: Serial) -> Option<u64> {
        self.revoked.get(&serial).copied()
    }

    /// The office's registration for the person, whatever its state.
    pub fn registration(&self, office: OfficeNumber, insured: InsuredKey) -> Option<&Registration> {
        self.registrations.get(&(office, insured))
    }

    /// How the office's registration for the person stands at `now` (Unix seconds).
    pub fn registration_state(
        &self,
        office: OfficeNumber,
        insured: InsuredKey,
        now: u64,
    ) -> RegistrationState {
        match self.registration(office, insured) {
            Some(Registration { ended: Some(ended), .. }) => RegistrationState::Over(*ended),
            Some(Registration { until: Some(until), .. }) if *until < now => {
                RegistrationState::Over(*until)
            }
            Some(Registration { from, .. }) if *from <= now => RegistrationState::InForce(*from),
            Some(_) | None => RegistrationState::Absent,
        }
    }

    /// The person's consents, oldest id first.
    pub fn consents(&self, insured: InsuredKey) -> &[Consent] {
        self.consents.get(&insured).map_or(&[], Vec::as_slice)
    }

    /// How the person's consent to `document` stands at `now` (Unix seconds).
    pub fn consent_state(
        &self,
        insured: InsuredKey,
        document: DocumentKind,
        now: u64,
    ) -> ConsentState {
        let mut state = ConsentState::Absent;
        for consent in self.consents(insured).iter().filter(|c| c.scope.contains(document)) {
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
        self.authors
            .get(&insured)
            .and_then(|parties| parties.get(party))
            .is_some_and(|kinds| kinds.contains(document))
    }

    /// Whether the office makes the person's care plan.
    pub fn plans_for(&self, office: OfficeNumber, insured: InsuredKey) -> bool {
        self.plans.contains(&(office, insured))
    }

    /// Whether the insurer's request to this institution for an opinion on the person is open;
    /// `None` if there never was one.
    pub fn opinion_request(&self, office: OfficeNumber, insured: InsuredKey) -> Option<bool> {
        self.opinion_requests.get(&(office, insured)).copied()
    }

    /// Since when the municipality shares (Unix seconds); may lie ahead. `None`: it does not.
    pub fn sharing(&self, insurer: InsurerNumber) -> Option<u64> {
        self.sharing.get(&insurer).copied()
    }

    /// A key that signs staff tokens.
    pub fn staff_key(&self, kid: &str) -> Option<&StaffKey> {
        self.staff_keys.get(kid)
    }

    /// Whether a staff session was ended.
    pub fn session_ended(&self, session: &str) -> bool {
        self.sessions_ended.contains_key(session)
    }

    /// Replaces the consent with the same id. Consents of a person are kept in order of id, so that
    /// the newest one speaks for the person.
    fn put_consent(&mut self, insured: InsuredKey, consent: Consent) {
        let owners = Arc::make_mut(&mut self.consent_owners);
        let consents = Arc::make_mut(&mut self.consents);
        if let Some(owner) = owners.insert(consent.id, insured)
            && let Some(earlier) = consents.get_mut(&owner)
        {
            earlier.retain(|other| other.id != consent.id);
        }
        let own = consents.entry(insured).or_default();
        let at = own.partition_point(|other| other.id < consent.id);
        own.insert(at, consent);
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
        assert_eq!(facts.consents(insured()).len(), 2);
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
        assert_eq!(facts.consents(other).len(), 1);
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
