//! The country is the same for a seed, has no doubles, and shows every state.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::facts::{Facts, RegistrationState};

const SMALL: Size = Size {
    offices: 2_000,
    registrations: 20_000,
    insured: 18_000,
    consents: 3_000,
    municipalities: 100,
    revoked: 500,
    seed: 7,
};

fn all(size: Size) -> Vec<Fact> {
    let nation = Nation::new(size).unwrap();
    nation.ca_facts().chain(nation.hub_facts()).collect()
}

fn kind(fact: &Fact) -> String {
    fact.key().split('/').next().unwrap().to_owned()
}

#[test]
fn a_seed_gives_the_same_facts_and_another_seed_others() {
    let text = |size| serde_json::to_string(&all(size)).unwrap();
    assert_eq!(text(SMALL), text(SMALL));
    assert_ne!(text(SMALL), text(Size { seed: 8, ..SMALL }));
    // Pinned: a data set that was told of by its seed can be made again for ever.
    let nation = Nation::new(Size::default()).unwrap();
    let told = serde_json::to_string(&nation.registration(23_456_789)).unwrap();
    assert_eq!(told, PINNED);
}

#[test]
fn there_are_as_many_as_the_size_says_and_none_comes_twice() {
    let facts = all(SMALL);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut keys = HashSet::new();
    for fact in &facts {
        *counts.entry(kind(fact)).or_default() += 1;
        assert!(keys.insert(fact.key()), "{} comes twice", fact.key());
    }
    assert_eq!(counts["office"], SMALL.offices);
    assert_eq!(counts["revoked"], SMALL.revoked);
    assert_eq!(counts["sharing"], SMALL.municipalities);
    assert_eq!(counts["consent"], SMALL.consents);
    assert_eq!(counts["registration"], SMALL.registrations);
    for more in ["author", "plans-for", "opinion-request"] {
        assert!(counts[more] > 20, "{more}: {}", counts[more]);
    }
}

#[test]
fn each_source_tells_its_own_facts_in_the_form_of_the_feed() {
    use crate::feed::Source;
    let nation = Nation::new(SMALL).unwrap();
    let ca = nation.ca_facts().map(|fact| (Source::Ca, fact));
    for (source, fact) in ca.chain(nation.hub_facts().map(|fact| (Source::Hub, fact))) {
        assert_eq!(fact.source(), source);
        let text = serde_json::to_string(&fact).unwrap();
        assert_eq!(serde_json::from_str::<Fact>(&text).unwrap(), fact, "{text}");
    }
}

#[test]
fn a_fact_is_found_by_its_position() {
    let nation = Nation::new(SMALL).unwrap();
    let hub: Vec<Fact> = nation.hub_facts().collect();
    let before = (SMALL.municipalities + SMALL.consents) as usize;
    assert_eq!(hub[before + 12_345], nation.registration(12_345));
    assert_eq!(hub[SMALL.municipalities as usize + 77], nation.consent(77));
    assert_eq!(nation.ca_facts().nth(1_999), Some(nation.office(1_999)));
}

#[test]
fn numbers_are_valid_and_nobodys() {
    let nation = Nation::new(Size { offices: 1 << 19, municipalities: 1 << 11, ..SMALL }).unwrap();
    let mut seen = HashSet::new();
    for at in 0..1 << 19 {
        let (number, _) = nation.pick(at);
        assert!(number.check_digit_fits(), "{number}");
        assert!((51..98).contains(&number.as_str()[..2].parse::<u32>().unwrap()), "{number}");
        assert!(seen.insert(number), "{number} comes twice");
    }
    let insurers: HashSet<InsurerNumber> = nation.municipalities.iter().copied().collect();
    assert_eq!(insurers.len(), 1 << 11);
}

#[test]
fn a_person_has_registrations_at_different_offices_even_when_there_are_few() {
    for (offices, registrations, insured) in
        [(1, 1, 1), (3, 9, 3), (5, 50, 10), (46, 460, 12), (100, 900, 10), (470, 5_000, 100)]
    {
        let size = Size { offices, registrations, insured, ..SMALL };
        let nation = Nation::new(size).unwrap();
        let pairs: HashSet<(u64, u64)> = (0..registrations).map(|at| nation.pair(at)).collect();
        assert_eq!(pairs.len() as u64, registrations, "{size:?}");
        assert!(pairs.iter().all(|(person, office)| *person < insured && *office < offices));
    }
}

#[test]
fn the_facts_stand_in_every_state_that_a_decision_looks_at() {
    let facts = Facts::from_iter(all(SMALL));
    let nation = Nation::new(SMALL).unwrap();
    let (mut in_force, mut over, mut absent, mut live) = (0, 0, 0, 0);
    for at in 0..SMALL.registrations {
        let Fact::Registration { office, insured, .. } = nation.registration(at) else {
            panic!("not a registration")
        };
        match facts.registration_state(office, insured, AS_OF) {
            RegistrationState::InForce(_) => in_force += 1,
            RegistrationState::Over(_) => over += 1,
            RegistrationState::Absent => absent += 1,
        }
        live += u64::from(facts.sharing(insured.insurer).is_some_and(|from| from <= AS_OF));
    }
    assert!(in_force > 17_000 && over > 1_000 && absent > 50, "{in_force} {over} {absent}");
    assert!((10_000..18_000).contains(&live), "{live}");
    let consents: Vec<Fact> = (0..SMALL.consents).map(|at| nation.consent(at)).collect();
    let count = |is: fn(u64, Option<u64>, Option<u64>) -> bool| {
        let told = consents.iter().filter(|fact| {
            let Fact::Consent { from, until, withdrawn, .. } = fact else { return false };
            is(*from, *until, *withdrawn)
        });
        told.count()
    };
    assert_eq!(count(|from, until, _| from > AS_OF || until.is_some_and(|it| it < from)), 0);
    assert!(count(|_, _, withdrawn| withdrawn.is_some()) > 100);
    assert!(count(|_, until, _| until.is_some_and(|until| until < AS_OF)) > 100);
    let suspended = |fact: &Fact| matches!(fact, Fact::Office { suspended: true, .. });
    assert!((1..20).contains(&nation.ca_facts().filter(suspended).count()));
}

#[test]
fn a_size_of_which_there_is_no_country_is_refused_by_name() {
    let refused = |size| Nation::new(size).unwrap_err().to_string();
    for (size, what) in [
        (Size { offices: 0, ..SMALL }, "offices"),
        (Size { registrations: 0, ..SMALL }, "registrations"),
        (Size { insured: 0, ..SMALL }, "insured persons"),
        (Size { municipalities: 0, ..SMALL }, "municipalities"),
    ] {
        assert_eq!(refused(size), format!("the number of {what} is 0: give at least 1"));
    }
    for (size, what, max) in [
        (Size { offices: (1 << 19) + 1, ..SMALL }, "offices", 524_288),
        (Size { municipalities: 2_049, ..SMALL }, "municipalities", 2_048),
        (Size { consents: u64::MAX, ..SMALL }, "consents", 1_000_000_000),
        (Size { revoked: u64::MAX, ..SMALL }, "revoked certificates", 1_000_000_000),
    ] {
        let told = refused(size);
        assert!(told.contains(what) && told.ends_with(&format!("give at most {max}")), "{told}");
    }
    let told = refused(Size { offices: 3, insured: 3, registrations: 10, ..SMALL });
    assert!(told.contains("give fewer registrations"), "{told}");
    assert!(Nation::new(Size { consents: 0, revoked: 0, ..SMALL }).is_ok());
}

const PINNED: &str = concat!(
    r#"{"fact":"registration","office":"8494511523","#,
    r#""insured":{"insurer":"841189","number":"2580390457"},"#,
    r#""from":1756333991,"until":1795705199,"ended":null}"#
);
