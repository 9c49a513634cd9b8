//! The facts against a plain one of hash maps, through everything that may happen to them.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::document::DocumentKind::{self, HomeCarePlan, LifeFeedback};

type Pair = (OfficeNumber, InsuredKey);

/// What [`Facts`] means, said in the plainest way.
#[derive(Debug, Clone, Default)]
struct Plain {
    offices: HashMap<OfficeNumber, Office>,
    revoked: HashMap<Serial, u64>,
    registrations: HashMap<Pair, Registration>,
    consents: HashMap<u64, (InsuredKey, Consent)>,
    authors: HashSet<(String, InsuredKey, DocumentKind)>,
    plans: HashSet<Pair>,
    opinion_requests: HashMap<Pair, bool>,
    sharing: HashMap<InsurerNumber, u64>,
    staff_keys: HashMap<String, StaffKey>,
    sessions_ended: HashSet<String>,
}

impl Plain {
    fn replace(&mut self, source: Source, facts: Vec<Fact>) {
        let old = std::mem::take(self);
        *self = match source {
            Source::Ca => Self { offices: HashMap::new(), revoked: HashMap::new(), ..old },
            Source::Hub => Self { offices: old.offices, revoked: old.revoked, ..Self::default() },
        };
        facts.into_iter().filter(|fact| fact.source() == source).for_each(|fact| self.apply(fact));
    }

    fn apply(&mut self, fact: Fact) {
        match fact {
            Fact::Office { number, service_types, medical, suspended, name } => {
                let service_types = service_types.into();
                self.offices.insert(number, Office { service_types, medical, suspended, name });
            }
            Fact::Revoked { serial, at } => {
                self.revoked.insert(serial, at);
            }
            Fact::Registration { office, insured, from, until, ended } => {
                self.registrations.insert((office, insured), Registration { from, until, ended });
            }
            Fact::Consent { id, insured, scope, from, until, withdrawn } => {
                let consent = Consent { id, scope, from, until, withdrawn };
                self.consents.insert(id, (insured, consent));
            }
            Fact::Author { party, insured, document } => {
                self.authors.insert((party, insured, document));
            }
            Fact::PlansFor { office, insured, active: true } => {
                self.plans.insert((office, insured));
            }
            Fact::PlansFor { office, insured, active: false } => {
                self.plans.remove(&(office, insured));
            }
            Fact::OpinionRequest { office, insured, open } => {
                self.opinion_requests.insert((office, insured), open);
            }
            Fact::Sharing { insurer, from: Some(from) } => {
                self.sharing.insert(insurer, from);
            }
            Fact::Sharing { insurer, from: None } => {
                self.sharing.remove(&insurer);
            }
            Fact::StaffKey { kid, x, y, retired } => {
                self.staff_keys.insert(kid, StaffKey { x, y, retired });
            }
            Fact::SessionEnded { session, .. } => {
                self.sessions_ended.insert(session);
            }
        }
    }

    fn consents(&self, insured: InsuredKey) -> Vec<Consent> {
        let own = self.consents.values().filter(|(owner, _)| *owner == insured);
        let mut own: Vec<_> = own.map(|(_, consent)| *consent).collect();
        own.sort_by_key(|consent| consent.id);
        own
    }
}

fn agree(facts: &Facts, plain: &Plain) {
    for insurer in INSURERS {
        let insurer: InsurerNumber = insurer.parse().unwrap();
        assert_eq!(facts.sharing(insurer), plain.sharing.get(&insurer).copied());
    }
    for insured in people() {
        assert_eq!(facts.consents(insured).collect::<Vec<_>>(), plain.consents(insured));
        for (party, document) in PARTIES.iter().flat_map(|p| KINDS.map(|kind| (p, kind))) {
            let wrote = plain.authors.contains(&((*party).to_owned(), insured, document));
            assert_eq!(facts.author(party, insured, document), wrote);
        }
        for office in offices() {
            let pair = (office, insured);
            let registration = plain.registrations.get(&pair).copied();
            assert_eq!(facts.registration(office, insured), registration);
            assert_eq!(facts.plans_for(office, insured), plain.plans.contains(&pair));
            let request = plain.opinion_requests.get(&pair).copied();
            assert_eq!(facts.opinion_request(office, insured), request);
        }
    }
    for office in offices() {
        assert_eq!(facts.office(office), plain.offices.get(&office));
    }
    for serial in serials() {
        assert_eq!(facts.revoked(serial), plain.revoked.get(&serial).copied());
    }
    for name in PARTIES {
        assert_eq!(facts.staff_key(name), plain.staff_keys.get(name));
        assert_eq!(facts.session_ended(name), plain.sessions_ended.contains(name));
    }
}

const INSURERS: [&str; 3] = ["131016", "131024", "261009"];
const PARTIES: [&str; 3] = ["office/1370000001", "municipality/131016", "x"];
const KINDS: [DocumentKind; 2] = [HomeCarePlan, LifeFeedback];

fn people() -> Vec<InsuredKey> {
    let numbers = ["0000000001", "H000000001", "9999999999"];
    let person = |insurer: &str, number: &str| format!("{insurer}/{number}").parse().unwrap();
    INSURERS.iter().flat_map(|insurer| numbers.map(|number| person(insurer, number))).collect()
}

fn offices() -> Vec<OfficeNumber> {
    ["1370000001", "13A0000001", "2670000001"].iter().map(|text| text.parse().unwrap()).collect()
}

fn serials() -> Vec<Serial> {
    ["01", "0100", "ff00ff00ff00ff00ff00"].iter().map(|text| text.parse().unwrap()).collect()
}

fn time() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..100, 1_790_000_000u64..1_790_000_040, 0u64..1 << 50]
}

fn end() -> impl Strategy<Value = Option<u64>> {
    prop::option::weighted(0.3, time())
}

fn pair_fact() -> impl Strategy<Value = Fact> {
    let office = || prop::sample::select(offices());
    let insured = || prop::sample::select(people());
    prop_oneof![
        3 => (office(), insured(), time(), end(), end()).prop_map(
            |(office, insured, from, until, ended)| {
                Fact::Registration { office, insured, from, until, ended }
            }
        ),
        1 => (office(), insured(), any::<bool>())
            .prop_map(|(office, insured, active)| Fact::PlansFor { office, insured, active }),
        1 => (office(), insured(), any::<bool>())
            .prop_map(|(office, insured, open)| Fact::OpinionRequest { office, insured, open }),
    ]
}

fn person_fact() -> impl Strategy<Value = Fact> {
    let insured = || prop::sample::select(people());
    let scope = prop::sample::subsequence(KINDS.to_vec(), 0..=2).prop_map(DocumentSet::from_iter);
    let party = prop::sample::select(PARTIES.to_vec());
    let kind = prop::sample::select(KINDS.to_vec());
    prop_oneof![
        3 => (0u64..12, insured(), scope, time(), end(), end()).prop_map(
            |(id, insured, scope, from, until, withdrawn)| {
                Fact::Consent { id, insured, scope, from, until, withdrawn }
            }
        ),
        1 => (party, insured(), kind)
            .prop_map(|(party, insured, document)| {
                Fact::Author { party: party.to_owned(), insured, document }
            }),
    ]
}

fn other_fact() -> impl Strategy<Value = Fact> {
    let name = || prop::sample::select(PARTIES.to_vec()).prop_map(str::to_owned);
    prop_oneof![
        (prop::sample::select(offices()), any::<bool>(), any::<bool>()).prop_map(
            |(number, medical, suspended)| Fact::Office {
                number,
                service_types: vec![],
                medical,
                suspended,
                name: String::new(),
            }
        ),
        (prop::sample::select(serials()), time())
            .prop_map(|(serial, at)| Fact::Revoked { serial, at }),
        (prop::sample::select(INSURERS.to_vec()), end()).prop_map(|(insurer, from)| {
            Fact::Sharing { insurer: insurer.parse().unwrap(), from }
        }),
        (name(), any::<bool>()).prop_map(|(kid, retired)| Fact::StaffKey {
            kid,
            x: "x".to_owned(),
            y: "y".to_owned(),
            retired,
        }),
        (name(), time()).prop_map(|(session, until)| Fact::SessionEnded { session, until }),
    ]
}

fn fact() -> impl Strategy<Value = Fact> {
    prop_oneof![3 => pair_fact(), 2 => person_fact(), 1 => other_fact()]
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Fact),
    Replace(Source, Vec<Fact>),
    BeginMerge,
    EndMerge,
}

fn step() -> impl Strategy<Value = Step> {
    let source = prop::sample::select(vec![Source::Ca, Source::Hub]);
    prop_oneof![
        20 => fact().prop_map(Step::Apply),
        1 => (source, prop::collection::vec(fact(), 0..60))
            .prop_map(|(source, facts)| Step::Replace(source, facts)),
        2 => Just(Step::BeginMerge),
        2 => Just(Step::EndMerge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn facts_are_what_the_plain_maps_say(steps in prop::collection::vec(step(), 0..150)) {
        let (mut facts, mut plain) = (Facts::new(), Plain::default());
        let mut merges = Vec::new();
        for step in steps {
            let reader = (facts.clone(), plain.clone());
            match step {
                Step::Apply(fact) => {
                    facts.apply(fact.clone());
                    plain.apply(fact);
                }
                Step::Replace(source, all) => {
                    facts.replace(source, all.clone());
                    plain.replace(source, all);
                }
                Step::BeginMerge => merges.extend(facts.begin_merge(1)),
                Step::EndMerge => {
                    if let Some(merge) = merges.pop() {
                        facts.end_merge(merge.run());
                    }
                }
            }
            agree(&reader.0, &reader.1);
            agree(&facts, &plain);
            prop_assert_eq!(facts.complete(), Ok(()));
        }
    }

    #[test]
    fn an_empty_snapshot_leaves_the_other_source(
        all in prop::collection::vec(fact(), 0..80)
    ) {
        let mut facts = Facts::from_iter(all.clone());
        let mut plain = Plain::default();
        all.into_iter().for_each(|fact| plain.apply(fact));
        for source in [Source::Hub, Source::Ca] {
            facts.replace(source, vec![]);
            plain.replace(source, vec![]);
            agree(&facts, &plain);
        }
    }

    #[test]
    fn a_copy_answers_like_the_facts(
        all in prop::collection::vec(fact(), 0..80),
        later in prop::collection::vec(fact(), 0..20),
    ) {
        let (mut facts, mut plain) = (Facts::new(), Plain::default());
        for source in [Source::Ca, Source::Hub] {
            facts.replace(source, all.clone());
            plain.replace(source, all.clone());
        }
        // Some being merged, some changed since, some neither.
        for (at, fact) in later.into_iter().enumerate() {
            facts.apply(fact.clone());
            plain.apply(fact);
            if at == 7 {
                facts.begin_merge(1);
            }
        }
        let mut read = Facts::new();
        for source in [Source::Ca, Source::Hub] {
            read.install(copied(&facts, source));
        }
        agree(&read, &plain);
        // And it goes on from there.
        for (at, fact) in all.into_iter().rev().enumerate() {
            read.apply(fact.clone());
            plain.apply(fact);
            if at == 9 && let Some(merge) = read.begin_merge(1) {
                read.end_merge(merge.run());
            }
        }
        agree(&read, &plain);
    }

    #[test]
    fn a_copy_that_was_changed_or_cut_is_refused_or_can_be_asked(
        all in prop::collection::vec(fact(), 1..60),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut facts = Facts::new();
        for source in [Source::Ca, Source::Hub] {
            facts.replace(source, all.clone());
            let whole = bytes(&facts, source);
            let cut = &whole[..at.index(whole.len())];
            let error = Loaded::read_from(source, &mut &*cut).unwrap_err();
            prop_assert!(matches!(error, CopyError::Short { .. }), "{}", error);
            let mut changed = whole;
            let place = at.index(changed.len());
            changed[place] ^= flip;
            if let Ok(loaded) = Loaded::read_from(source, &mut changed.as_slice()) {
                let mut read = Facts::new();
                read.install(loaded);
                ask_everything(&read);
            }
        }
    }
}

fn bytes(facts: &Facts, source: Source) -> Vec<u8> {
    let mut bytes = Vec::new();
    facts.write_to(source, &mut bytes).unwrap();
    bytes
}

fn copied(facts: &Facts, source: Source) -> Loaded {
    let bytes = bytes(facts, source);
    let mut rest =
        bytes.iter().copied().chain(*b"beyond").collect::<std::collections::VecDeque<_>>();
    let loaded = Loaded::read_from(source, &mut rest).unwrap();
    assert_eq!(rest, b"beyond", "reads its own and no more");
    loaded
}

/// Only that nothing panics.
fn ask_everything(facts: &Facts) {
    let mut facts = facts.clone();
    for merged in [false, true] {
        for insured in people() {
            facts.author(PARTIES[0], insured, HomeCarePlan);
            facts.consent_state(insured, LifeFeedback, 50);
            for office in offices() {
                facts.registration_state(office, insured, 50);
                facts.opinion_request(office, insured);
            }
        }
        if !merged {
            let insured = people()[0];
            facts.apply(Fact::Registration {
                office: offices()[0],
                insured,
                from: 1,
                until: None,
                ended: None,
            });
            let merge = facts.begin_merge(1).unwrap();
            facts.end_merge(merge.run());
        }
    }
}

#[test]
fn a_copy_of_another_kind_is_refused_by_name() {
    let facts = Facts::new();
    let refused =
        |source, bytes: &[u8]| Loaded::read_from(source, &mut &*bytes).unwrap_err().to_string();
    let whole = bytes(&facts, Source::Hub);
    assert!(refused(Source::Ca, &whole).contains("another source"));
    assert!(refused(Source::Hub, b"{\"kind\":\"snapshot\"}").contains("not a copy of facts"));
    let mut later = whole;
    later[14] += 1;
    let expected = format!("layout {}.{PAIR_KEY_VERSION}", LAYOUT + 1);
    assert!(refused(Source::Hub, &later).contains(&expected));
}
