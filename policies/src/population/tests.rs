//! Counting by combinations gives what deciding for every pair by itself gives.

use std::collections::BTreeSet;

use super::*;
use crate::bundle::{self, Files};
use crate::decide::{FeedState, Query, visible};
use crate::facts::Facts;
use crate::identity::{Identity, Job, Serial, Staff};
use crate::matrix::Profile;
use crate::national::{AS_OF, Nation, Size};
use crate::operations::{Action, Operation};
use crate::overlay::Circumstances;

const SMALL: Size = Size {
    offices: 400,
    registrations: 4_000,
    insured: 3_600,
    consents: 500,
    municipalities: 40,
    revoked: 10,
    seed: 3,
};

fn facts() -> Vec<Fact> {
    let nation = Nation::new(SMALL).unwrap();
    nation.ca_facts().chain(nation.hub_facts()).collect()
}

fn population(facts: &[Fact]) -> Result<Population, Error> {
    let mut builder = Builder::new(AS_OF);
    facts.iter().for_each(|fact| builder.take(fact));
    builder.finish()
}

fn narrowed(overlays: &[(&str, &str)]) -> Matrix {
    let file = |(name, text): &(&str, &str)| {
        (format!("overlays/{name}.toml"), format!("source = \"x\"\n{text}"))
    };
    let files: Files = overlays.iter().map(file).collect();
    bundle::uncommitted(&files, Profile::Deck2025).unwrap()
}

/// The kinds that staff of some job may see, decided with all the facts.
fn open(matrix: &Matrix, facts: &Facts, office: OfficeNumber, insured: InsuredKey) -> DocumentSet {
    let principal = Identity::Office { number: office, terminal: "front".parse().unwrap() };
    let operation = Operation {
        id: "documents.list".into(),
        action: Action::ListDocuments,
        document: None,
        insured: Some(insured),
        insurer: Some(insured.insurer),
        numbered: None,
    };
    let mut open = DocumentSet::EMPTY;
    for job in Job::ALL {
        let staff = Staff { id: "s".into(), office, job: *job, session: "t".into() };
        let query = Query {
            principal: &principal,
            serial: Serial::from_bytes(&[1]).unwrap(),
            not_after: AS_OF,
            staff: Some(&staff),
            operation: &operation,
            now: AS_OF,
            feeds: FeedState::fresh(),
            circumstances: Circumstances::default(),
        };
        open = open.union(visible(matrix, facts, &query));
    }
    open
}

/// Pairs, open before and after, widened, narrowed: one by one.
fn one_by_one(told: &[Fact], old: &Matrix, new: &Matrix) -> [u64; 5] {
    let facts = Facts::from_iter(told.to_vec());
    let pair = |fact: &Fact| match fact {
        Fact::Registration { office, insured, .. }
        | Fact::PlansFor { office, insured, .. }
        | Fact::OpinionRequest { office, insured, .. } => Some((*office, *insured)),
        Fact::Author { party, insured, .. } => {
            Some((party.strip_prefix("office/")?.parse().unwrap(), *insured))
        }
        Fact::Office { .. }
        | Fact::Revoked { .. }
        | Fact::Consent { .. }
        | Fact::Sharing { .. }
        | Fact::StaffKey { .. }
        | Fact::SessionEnded { .. } => None,
    };
    let pairs: BTreeSet<_> = told.iter().filter_map(pair).collect();
    let mut counts = [pairs.len() as u64, 0, 0, 0, 0];
    for (office, insured) in pairs {
        let before = open(old, &facts, office, insured);
        let after = open(new, &facts, office, insured);
        let without = |a: DocumentSet, b: DocumentSet| {
            a.iter().filter(|document| !b.contains(*document)).count() as u64
        };
        counts[1] += before.iter().count() as u64;
        counts[2] += after.iter().count() as u64;
        counts[3] += without(after, before);
        counts[4] += without(before, after);
    }
    counts
}

fn counted(diff: &Diff) -> [u64; 5] {
    [diff.pairs, diff.open_before, diff.open_after, diff.widened, diff.narrowed]
}

#[test]
fn it_counts_what_deciding_for_every_pair_counts() {
    let mut told = facts();
    // A pair without a registration, and one of an office that nobody registered.
    let nation = Nation::new(SMALL).unwrap();
    let stranger: OfficeNumber = "1370000001".parse().unwrap();
    let document = crate::document::DocumentKind::PhysicianOpinion;
    for (at, office) in [(3_000, nation.office(7).key()), (3_001, format!("office/{stranger}"))] {
        let insured = nation.insured(at);
        told.push(Fact::Author { party: office, insured, document });
        let consent = DocumentSet::held();
        let id = 1_000_000 + at;
        let (from, until, withdrawn) = (1, Some(AS_OF), None);
        told.push(Fact::Consent { id, insured, scope: consent, from, until, withdrawn });
    }
    let insurer = nation.insured(0).insurer;
    let Fact::Office { number: one, .. } = nation.office(0) else { panic!("no office") };
    let Fact::Office { number: two, .. } = nation.office(47) else { panic!("no office") };
    let deck = Matrix::builtin(Profile::Deck2025).unwrap();
    let later = Matrix::builtin(Profile::Impl2027).unwrap();
    let pilot = narrowed(&[
        (
            "pilot",
            &format!(
                "[applies-to]\nmunicipalities = [\"{insurer}\"]\n[pilot]\noffices = [\"{one}\"]"
            ),
        ),
        ("off", &format!("[applies-to]\noffices = [\"{two}\"]\n[paused]\neverything = true")),
        ("life", "[applies-to]\nevery-office = true\n[paused]\ndocuments = [\"life-feedback\"]"),
        ("types", "[applies-to]\nservice-types = [\"43\"]\n[paused]\nservice-types = [\"43\"]"),
    ]);
    let population = population(&told).unwrap();
    for (name, old, new, changes) in [
        ("same", &deck, &deck, false),
        ("later profile", &deck, &later, true),
        ("back", &later, &deck, true),
        ("overlays", &deck, &pilot, true),
        ("overlays taken away", &pilot, &later, true),
    ] {
        let diff = population.diff(old, new);
        assert_eq!(counted(&diff), one_by_one(&told, old, new), "{name}");
        assert_eq!(diff.widened + diff.narrowed > 0, changes, "{name}");
        assert!(diff.open_before > 1_000, "{name}");
        let cells = diff.cells.iter().fold((0, 0), |sum, cell| {
            assert!(cell.cell.contains('/'), "{name}: {}", cell.cell);
            (sum.0 + cell.widened, sum.1 + cell.narrowed)
        });
        assert_eq!(cells, (diff.widened, diff.narrowed), "{name}");
        assert!(diff.combinations < 4_000, "{name}: {}", diff.combinations);
    }
}

#[test]
fn only_cells_that_changed_are_told() {
    let deck = Matrix::builtin(Profile::Deck2025).unwrap();
    let later = Matrix::builtin(Profile::Impl2027).unwrap();
    let changed: BTreeSet<String> =
        bundle::diff::cells(&deck, &later).into_iter().map(|it| it.cell).collect();
    let diff = population(&facts()).unwrap().diff(&deck, &later);
    for cell in &diff.cells {
        assert!(changed.contains(&cell.cell), "{} did not change", cell.cell);
    }
    let plans = diff.cells.iter().find(|it| it.cell == "home-care-plan/home-support").unwrap();
    assert!(plans.widened > 0 && plans.narrowed == 0, "{plans:?}");
}

#[test]
fn hours_addresses_and_ceilings_are_not_counted() {
    let deck = Matrix::builtin(Profile::Deck2025).unwrap();
    let never = narrowed(&[(
        "never",
        "[applies-to]\nevery-office = true\n[[hours]]\ndays = [\"sun\"]\nfrom = \"00:00\"\n\
         until = \"00:01\"\n[addresses]\nallowed = [\"203.0.113.9/32\"]\n[bulk]\n\
         reads-per-hour-max = 1",
    )]);
    let diff = population(&facts()).unwrap().diff(&deck, &never);
    assert_eq!((diff.widened, diff.narrowed), (0, 0));
}

#[test]
fn a_fact_that_comes_twice_is_refused_by_name() {
    let nation = Nation::new(SMALL).unwrap();
    let Fact::Registration { office, insured, .. } = nation.registration(5) else {
        panic!("no registration")
    };
    let mut told = facts();
    told.push(nation.registration(5));
    assert_eq!(population(&told).unwrap_err(), Error::Twice { office, insured });
}
