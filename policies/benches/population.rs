//! "What changes for the whole population": 30 million pairs of office and person.
//!
//! ```text
//!  cargo bench -p policies --bench population                  30 million pairs, once
//!  SEKISHO_REGISTRATIONS=1000000 cargo bench -p policies …     fewer, where memory is short
//! ```
//!
//! The figure for the whole population is printed on stderr; criterion measures a hundredth of it,
//! or of what was asked for, again and again.

#![expect(clippy::unwrap_used, reason = "a bench without its data has nothing to measure")]

use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use policies::matrix::{Matrix, Profile};
use policies::national::{AS_OF, Nation, Size};
use policies::population::{Builder, Population};

fn nation(registrations: u64) -> Nation {
    let insured = (registrations / 10 * 9).max(1);
    let consents = insured / 6;
    let size = Size { registrations, insured, consents, revoked: 0, ..Size::default() };
    Nation::new(size).unwrap()
}

fn population(nation: &Nation) -> Population {
    let mut builder = Builder::new(AS_OF);
    nation.ca_facts().chain(nation.hub_facts()).for_each(|fact| builder.take(&fact));
    builder.finish().unwrap()
}

fn bench(criterion: &mut Criterion) {
    let default = if criterion_is_tested() { 100_000 } else { 30_000_000 };
    let registrations =
        std::env::var("SEKISHO_REGISTRATIONS").map_or(default, |text| text.parse().unwrap());
    let old = Matrix::builtin(Profile::Deck2025).unwrap();
    let new = Matrix::builtin(Profile::Impl2027).unwrap();
    let nation = nation(registrations);
    let started = Instant::now();
    let facts = nation.ca_facts().chain(nation.hub_facts()).map(std::hint::black_box).count();
    eprintln!("{facts} facts made in {:?}", started.elapsed());
    let started = Instant::now();
    let whole = population(&nation);
    eprintln!("{} pairs made and sorted in {:?}", whole.pairs(), started.elapsed());
    let started = Instant::now();
    let diff = whole.diff(&old, &new);
    eprintln!(
        "what changes for {} pairs: {:?} ({} combinations; {} triples open, {} shut)",
        diff.pairs,
        started.elapsed(),
        diff.combinations,
        diff.widened,
        diff.narrowed
    );
    drop(whole);
    let part = population(&self::nation((registrations / 100).max(1_000)));
    criterion.bench_function("what changes for a hundredth of the population", |bench| {
        bench.iter(|| part.diff(&old, &new));
    });
}

/// `cargo test` runs benches too, to see that they work.
fn criterion_is_tested() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}

criterion_group!(benches, bench);
criterion_main!(benches);
