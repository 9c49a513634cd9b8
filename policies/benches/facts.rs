//! The facts of the whole country in one gateway: what they take, what a look and a decision cost.
//!
//! ```text
//!  cargo bench -p policies --bench facts                        40 million registrations
//!  SEKISHO_REGISTRATIONS=1000000 cargo bench -p policies …      fewer, where memory is short
//! ```
//!
//! Besides criterion's figures it prints, on stderr: load time, bytes per registration, what the
//! copy takes to write and read, percentiles of single decisions, decisions per second while 1,000
//! changes per second come in, what an overlay costs a decision and what a merge of changes takes.
//!
//! Without `--bench`, as under `cargo test`, everything runs once with few facts.

#![expect(clippy::unwrap_used, reason = "a bench without its data has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use policies::decide::{Decision, FeedState, Query, decide};
use policies::document::{DocumentKind, DocumentSet};
use policies::facts::{Facts, Loaded, Loading};
use policies::feed::{Fact, Source};
use policies::identity::{Identity, InsuredKey, Job, OfficeNumber, Serial, Staff};
use policies::matrix::{Matrix, Profile};
use policies::operations::{Operation, Operations};
use policies::overlay::{Circumstances, Overlays};

const NOW: u64 = 1_800_000_000;
const INSURERS: u64 = 1_741;

/// How many of each there are.
#[derive(Clone, Copy)]
struct Country {
    offices: u64,
    registrations: u64,
    consents: u64,
    revoked: u64,
    questions: u64,
}

impl Country {
    fn asked_for() -> Self {
        if !std::env::args().any(|arg| arg == "--bench") {
            return Self {
                offices: 1_000,
                registrations: 30_000,
                consents: 5_000,
                revoked: 1_000,
                questions: 500,
            };
        }
        let registrations = std::env::var("SEKISHO_REGISTRATIONS");
        Self {
            offices: 300_000,
            registrations: registrations.map_or(40_000_000, |text| text.parse().unwrap()),
            consents: 6_000_000,
            revoked: 1_000_000,
            questions: 200_000,
        }
    }
}

/// A number that looks random, the same each time.
fn random(at: u64) -> u64 {
    let mut value = at.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value ^ (value >> 29)
}

/// `number` in decimal digits, without making a text of it each time.
fn digits<const N: usize, T: std::str::FromStr<Err: std::fmt::Debug>>(mut number: u64) -> T {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    std::str::from_utf8(&digits).unwrap().parse().unwrap()
}

fn insured(at: u64) -> InsuredKey {
    let insurer = digits::<6, _>(100_000 + random(at ^ 77) % INSURERS);
    InsuredKey { insurer, number: digits::<10, _>(at) }
}

fn serial(at: u64) -> Serial {
    Serial::from_bytes(
        &[0x40 | at.to_be_bytes()[0], 7, 7]
            .iter()
            .copied()
            .chain(random(at).to_be_bytes())
            .chain(at.to_be_bytes())
            .collect::<Vec<_>>(),
    )
    .unwrap()
}

impl Country {
    fn office(&self, at: u64) -> OfficeNumber {
        digits::<10, _>(1_300_000_000 + at % self.offices)
    }

    /// Registration `at`: a person has three offices.
    fn registration(&self, at: u64) -> Fact {
        let person = at / 3;
        let office = self.office(random(person) + at % 3 * 100_003);
        // One in three lapses, at the end of one of two hundred days; one in a hundred was ended.
        let until = at.is_multiple_of(3).then_some(NOW + (random(at) % 200 + 1) * 86_400);
        let ended = random(at).is_multiple_of(100).then_some(NOW - 5);
        let from = NOW - 1 - random(at ^ 5) % 30_000_000;
        Fact::Registration { office, insured: insured(person), from, until, ended }
    }

    /// One consent each; one in fifty was withdrawn.
    fn consent(&self, id: u64) -> Fact {
        let withdrawn = random(id).is_multiple_of(50).then_some(NOW - 5);
        let scope = DocumentSet::held();
        let from = NOW - 1 - random(id) % 30_000_000;
        Fact::Consent { id, insured: insured(id), scope, from, until: None, withdrawn }
    }

    fn ca(&self) -> Loaded {
        let mut loading = Loading::new(Source::Ca);
        for at in 0..self.offices {
            loading.take(Fact::Office {
                number: self.office(at),
                service_types: vec!["43".parse().unwrap()],
                medical: false,
                suspended: false,
                name: format!("見本居宅介護支援事業所{at}"),
            });
        }
        let revoked = |at| Fact::Revoked { serial: serial(at), at: 1 };
        (0..self.revoked).for_each(|at| loading.take(revoked(at)));
        loading.finish()
    }

    fn hub(&self) -> Loaded {
        let mut loading = Loading::new(Source::Hub);
        for at in 0..INSURERS {
            let insurer = digits::<6, _>(100_000 + at);
            loading.take(Fact::Sharing { insurer, from: Some(1) });
        }
        (0..self.consents).for_each(|id| loading.take(self.consent(id)));
        // Making the facts is not loading them: its time is taken apart and taken off.
        let started = Instant::now();
        (0..self.registrations).for_each(|at| {
            black_box(self.registration(at));
        });
        let making = started.elapsed();
        let started = Instant::now();
        (0..self.registrations).for_each(|at| loading.take(self.registration(at)));
        let taken = started.elapsed().saturating_sub(making);
        let started = Instant::now();
        let loaded = loading.finish();
        let took = taken + started.elapsed();
        loaded.complete().unwrap();
        eprintln!("{} registrations: loaded in {took:?} (taken {taken:?})", self.registrations);
        loaded
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new();
        facts.install(self.ca());
        eprintln!("offices and revocations: {} MiB resident", resident_mib());
        facts.install(self.hub());
        for (what, (bytes, held)) in
            [("registrations", facts.registrations_size()), ("consents", facts.consents_size())]
        {
            eprintln!("{held} {what}: {:.2} bytes each", bytes as f64 / held as f64);
        }
        eprintln!("all: {} MiB resident", resident_mib());
        facts
    }
}

/// The hub's facts to bytes and back: what a start from the copy on disk takes of this.
fn copy(facts: &Facts) {
    let mut bytes = Vec::new();
    let started = Instant::now();
    facts.write_to(Source::Hub, &mut bytes).unwrap();
    let written = started.elapsed();
    let started = Instant::now();
    Loaded::read_from(Source::Hub, &mut bytes.as_slice()).unwrap();
    let mib = bytes.len() >> 20;
    eprintln!("copy of {mib} MiB: written in {written:?}, read in {:?}", started.elapsed());
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[derive(Clone)]
struct Asked {
    principal: Identity,
    staff: Staff,
    operation: Operation,
}

impl Country {
    fn questions(&self) -> Vec<Asked> {
        let path = "/v1/insured/100000/0000000000/documents/insured-card";
        let view = Operations::builtin().unwrap().resolve("GET", path).unwrap();
        let registered = |at| random(at ^ 0xA5A5) % self.registrations;
        (0..self.questions).map(|at| self.asked(&view, registered(at))).collect()
    }

    fn asked(&self, view: &Operation, at: u64) -> Asked {
        let Fact::Registration { office, insured, .. } = self.registration(at) else {
            unreachable!()
        };
        let staff = Staff {
            id: "staff-1".to_owned(),
            office,
            job: Job::CareManager,
            session: "session-1".to_owned(),
        };
        let terminal = "front-desk".parse().unwrap();
        let principal = Identity::Office { number: office, terminal };
        let insurer = Some(insured.insurer);
        let operation = Operation { insured: Some(insured), insurer, ..view.clone() };
        Asked { principal, staff, operation }
    }
}

fn ask(matrix: &Matrix, facts: &Facts, asked: &Asked, serial: Serial) -> Decision {
    let query = Query {
        principal: &asked.principal,
        serial,
        not_after: NOW + 86_400,
        staff: Some(&asked.staff),
        operation: &asked.operation,
        now: NOW,
        feeds: FeedState::fresh(),
        circumstances: Circumstances::default(),
    };
    decide(matrix, facts, &query)
}

/// A serial that was not revoked.
fn good_serial() -> Serial {
    serial(u64::MAX >> 8)
}

/// Each pair for the first time. The request itself lies in the cache, as it does in a gateway that
/// has just read it; what the facts say of it does not.
fn percentiles(matrix: &Matrix, facts: &Facts, questions: &[Asked]) {
    let clock = (0..1000).map(|_| Instant::now().elapsed().as_nanos() as u64).min().unwrap_or(0);
    let serial = good_serial();
    let mut times: Vec<u64> = questions
        .iter()
        .map(|asked| {
            let asked = black_box(asked.clone());
            let started = Instant::now();
            black_box(ask(matrix, facts, &asked, serial));
            (started.elapsed().as_nanos() as u64).saturating_sub(clock)
        })
        .collect();
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    eprintln!("one decision, never asked before: p50 {} ns, p99 {} ns", at(0.5), at(0.99));
}

/// Readers load the pointer as a gateway does; a writer applies 1,000 changes a second.
fn under_changes(matrix: &Matrix, facts: &Facts, questions: &[Asked], country: Country) {
    let shared = Arc::new(ArcSwap::from_pointee(facts.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
        move || {
            let (mut at, mut times) = (country.registrations, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..10 {
                    let fact = country.registration(at);
                    at += 1;
                    let started = Instant::now();
                    let mut facts = Facts::clone(&shared.load());
                    facts.apply(fact);
                    shared.store(Arc::new(facts));
                    times.push(started.elapsed());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            times.sort_unstable();
            times
        }
    });
    let (started, mut decided, serial) = (Instant::now(), 0u64, good_serial());
    let lasts = Duration::from_millis(if questions.len() < 1_000 { 50 } else { 5_000 });
    while started.elapsed() < lasts {
        for asked in questions {
            black_box(ask(matrix, &shared.load(), asked, serial));
            decided += 1;
        }
    }
    let rate = decided as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let times = writer.join().unwrap();
    let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    eprintln!("{rate:.0} decisions/s on one core under {} changes", times.len());
    eprintln!("a change applied and published: p50 {half:?}, p99 {most:?}");
}

fn merge(facts: &mut Facts, country: Country) {
    let changes = country.registrations.min(200_000);
    (0..changes).for_each(|at| facts.apply(country.registration(country.registrations + at)));
    let merge = facts.begin_merge(1).unwrap();
    let started = Instant::now();
    let merged = merge.run();
    eprintln!("merge of {changes} changes, beside the readers: {:?}", started.elapsed());
    facts.end_merge(merged);
}

/// What overlays that apply to the office cost a decision. The facts of a thousand requests stay in
/// the cache, so that the difference is the overlays'.
fn overlays(criterion: &mut Criterion, matrix: &Matrix, facts: &Facts, questions: &[Asked]) {
    let texts = [
        "applies-to = { every-office = true }\nsource = \"x\"\n[bulk]\nreads-per-hour-max = 200",
        "applies-to = { service-types = [\"43\"] }\nsource = \"x\"\n\
         [[hours]]\ndays = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"]\n\
         from = \"00:00\"\nuntil = \"24:00\"",
    ];
    let questions = &questions[..questions.len().min(1_000)];
    let mut taken = Vec::new();
    for count in [0, 1, 20] {
        let file = |at: usize| (format!("overlays/{at}.toml"), texts[(at + 1) % 2].to_owned());
        let files: Vec<_> = (0..count).map(file).collect();
        let matrix = matrix.clone().narrowed_by(Overlays::parse(&files, None).unwrap(), "x".into());
        let (mut next, serial) = (0, good_serial());
        let allowed = questions.iter().filter(|a| ask(&matrix, facts, a, serial).is_allow());
        assert!(allowed.count() * 2 > questions.len(), "the overlays close nothing");
        let mut decide = || {
            next = (next + 1) % questions.len();
            black_box(ask(&matrix, facts, &questions[next], serial));
        };
        criterion.bench_function(&format!("decide under {count} overlays"), |bench| {
            bench.iter(&mut decide);
        });
        let rounds = 200 * questions.len() as u32;
        let round = || {
            let started = Instant::now();
            (0..rounds).for_each(|_| decide());
            started.elapsed() / rounds
        };
        let best = std::iter::repeat_with(round).take(5).min().unwrap_or_default();
        taken.push((count, best.as_nanos() as f64));
    }
    for (count, nanos) in &taken[1..] {
        let each = (nanos - taken[0].1) / *count as f64;
        eprintln!("an overlay of {count} costs a decision {each:.1} ns");
    }
}

/// What the facts take of a decision, one kind at a time.
fn lookups(criterion: &mut Criterion, facts: &Facts, questions: &[Asked]) {
    let pairs: Vec<_> = questions
        .iter()
        .map(|asked| (asked.staff.office, asked.operation.insured.unwrap()))
        .collect();
    let mut turn = (0..pairs.len()).cycle();
    let mut next = || pairs[turn.next().unwrap_or_default()];
    criterion.bench_function("look up a registration", |bench| {
        bench.iter(|| {
            let (office, insured) = next();
            facts.registration_state(office, insured, NOW)
        });
    });
    criterion.bench_function("look up an office", |bench| {
        bench.iter(|| facts.office(next().0).map(|office| office.suspended));
    });
    criterion.bench_function("look up a consent", |bench| {
        bench.iter(|| facts.consent_state(next().1, DocumentKind::HomeCarePlan, NOW));
    });
    let serials: Vec<_> = (0..questions.len() as u64).map(|at| serial(at * 10)).collect();
    let mut turn = serials.iter().cycle();
    criterion.bench_function("look up a revoked serial", |bench| {
        bench.iter(|| turn.next().and_then(|serial| facts.revoked(*serial)));
    });
}

fn bench(criterion: &mut Criterion) {
    let country = Country::asked_for();
    let mut facts = country.facts();
    copy(&facts);
    let matrix = Matrix::builtin(Profile::Deck2025).unwrap();
    let questions = country.questions();
    percentiles(&matrix, &facts, &questions);
    under_changes(&matrix, &facts, &questions, country);
    let (mut next, serial) = (0, good_serial());
    criterion.bench_function("decide, 200,000 pairs in turn", |bench| {
        bench.iter(|| {
            next = (next + 1) % questions.len();
            ask(&matrix, &facts, &questions[next], serial)
        });
    });
    overlays(criterion, &matrix, &facts, &questions);
    lookups(criterion, &facts, &questions);
    criterion.bench_function("apply a change while readers hold the facts", |bench| {
        let mut at = country.registrations;
        bench.iter_batched(
            || {
                at += 1;
                country.registration(at)
            },
            |fact| {
                let before = facts.clone();
                facts.apply(fact);
                before
            },
            BatchSize::SmallInput,
        );
    });
    merge(&mut facts, country);
}

criterion_group!(benches, bench);
criterion_main!(benches);
