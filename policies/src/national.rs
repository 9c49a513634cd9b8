//! The facts of an invented country at the scale of the real one: the same for the same seed.
//!
//! ```text
//!  Size (how many, seed) ─► Nation ─► ca_facts():  offices · revoked certificates
//!                                 └─► hub_facts(): municipalities · consents · registrations …
//! ```
//!
//! For benches, load tests and for trying a policy on a whole population. Every fact is told by its
//! position alone, so that a bench can ask about registration 23,456,789 without the ones before.
//!
//! Invariants: a size and seed give the same facts for ever and on every machine; no pair of office
//! and person comes twice; every number has its check digit, and a prefecture code of 51 to 97
//! (the real one and 50), so that none is that of a real office or municipality.
//!
//! The proportions are those of the ministry's statistics of 2024: offices by kind, insured
//! persons, municipalities.

use std::num::NonZeroU128;

use serde::{Deserialize, Serialize};

use crate::document::{DocumentKind, DocumentSet};
use crate::feed::Fact;
use crate::identity::{InsuredKey, InsuredNumber, InsurerNumber, OfficeNumber, Serial};

mod kinds;

use kinds::Kind;

/// The moment at which the country stands (Unix seconds): 2026-04-01 00:00 in Japan. What began
/// did so before it; decide at this time.
pub const AS_OF: u64 = 1_774_969_200;

/// How large the country is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Offices (事業所).
    pub offices: u64,
    /// Registrations (担当事業所), each of another pair of office and person.
    pub registrations: u64,
    /// Insured persons.
    pub insured: u64,
    /// Consents; one in twenty is a person's second.
    pub consents: u64,
    /// Municipalities.
    pub municipalities: u64,
    /// Revoked certificates.
    pub revoked: u64,
    /// Another seed is another country of the same size.
    pub seed: u64,
}

impl Default for Size {
    /// What one gateway has to hold.
    fn default() -> Self {
        Self {
            offices: 300_000,
            registrations: 40_000_000,
            insured: 36_000_000,
            consents: 6_000_000,
            municipalities: 1_741,
            revoked: 1_000_000,
            seed: 1,
        }
    }
}

/// A size of which there is no country.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There must be one at least.
    #[error("the number of {what} is 0: give at least 1")]
    Zero {
        /// Of what.
        what: &'static str,
    },
    /// More than there are numbers for.
    #[error("the number of {what} is {given}: give at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were wanted.
        given: u64,
        /// How many there may be.
        max: u64,
    },
    /// More registrations than pairs.
    #[error(
        "{registrations} registrations are more than {offices} offices and {insured} insured \
         persons have pairs: give fewer registrations, or more offices or insured"
    )]
    TooFewPairs {
        /// How many registrations were wanted.
        registrations: u64,
        /// Among how many offices.
        offices: u64,
        /// And persons.
        insured: u64,
    },
}

/// An invented country.
#[derive(Debug, Clone)]
pub struct Nation {
    size: Size,
    seed: u64,
    registrations_each: u64,
    offices: Vec<(OfficeNumber, &'static Kind)>,
    municipalities: Vec<InsurerNumber>,
}

impl Nation {
    /// The country of this size and seed.
    ///
    /// # Errors
    /// [`Error`] if there is none.
    pub fn new(size: Size) -> Result<Self, Error> {
        let Size { offices, registrations, insured, .. } = size;
        for (what, given, max) in size.limits() {
            if given > max {
                return Err(Error::TooMany { what, given, max });
            }
        }
        for (what, given, _) in size.limits().into_iter().take(NEEDED) {
            if given == 0 {
                return Err(Error::Zero { what });
            }
        }
        if registrations > offices.saturating_mul(insured) {
            return Err(Error::TooFewPairs { registrations, offices, insured });
        }
        // One person in five needs care, and has every registration.
        let registrations_each = (5 * registrations).div_ceil(insured).max(3).min(offices);
        let seed = mix(size.seed);
        let nation = Self {
            size,
            seed,
            registrations_each,
            offices: Vec::new(),
            municipalities: Vec::new(),
        };
        let offices = (0..offices).map(|at| nation.new_office(at)).collect();
        let municipalities = (0..size.municipalities).map(new_municipality).collect();
        Ok(Self { offices, municipalities, ..nation })
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Everything that the cert-authority tells.
    pub fn ca_facts(&self) -> impl Iterator<Item = Fact> + '_ {
        let offices = (0..self.size.offices).map(|at| self.office(at));
        offices.chain((0..self.size.revoked).map(|at| self.revoked(at)))
    }

    /// Everything that the hub tells.
    pub fn hub_facts(&self) -> impl Iterator<Item = Fact> + '_ {
        let municipalities = (0..self.size.municipalities).map(|at| self.sharing(at));
        let consents = (0..self.size.consents).map(|at| self.consent(at));
        let registrations = (0..self.size.registrations).map(|at| self.registration(at));
        let more = (0..self.size.registrations).filter_map(|at| self.more(at));
        municipalities.chain(consents).chain(registrations).chain(more)
    }

    /// Office `at`, below [`Size::offices`].
    pub fn office(&self, at: u64) -> Fact {
        let (number, kind) = self.pick(at);
        Fact::Office {
            number,
            service_types: kind.service_types.to_vec(),
            medical: kind.medical,
            suspended: self.random(Stream::Suspended, at).is_multiple_of(500),
            name: format!("見本{}{at:06}", kind.name),
        }
    }

    /// Revoked certificate `at`.
    pub fn revoked(&self, at: u64) -> Fact {
        let random = self.random(Stream::Serial, at);
        let ago = random % (3 * YEAR);
        Fact::Revoked { serial: self.serial(at), at: AS_OF - 1 - ago }
    }

    /// Serial number `at`; those from [`Size::revoked`] on are of no revoked certificate.
    pub fn serial(&self, at: u64) -> Serial {
        let random = u128::from(self.random(Stream::Serial, at));
        Serial::from(NonZeroU128::MIN | random << 64 | u128::from(at) << 1)
    }

    /// Since when municipality `at` shares: seven in ten do, two will.
    pub fn sharing(&self, at: u64) -> Fact {
        let random = self.random(Stream::Sharing, at);
        let days = random / 10 % 300 * DAY;
        let from = match random % 10 {
            0..7 => Some(AS_OF - days),
            7..9 => Some(AS_OF + DAY + days),
            _ => None,
        };
        Fact::Sharing { insurer: self.municipality(at), from }
    }

    /// Person `at`, below [`Size::insured`]. Some municipalities are much larger than others.
    pub fn insured(&self, at: u64) -> InsuredKey {
        let number = (at * NUMBER_STEP + self.seed % NUMBERS) % NUMBERS;
        InsuredKey {
            insurer: self.municipality(self.home(at)),
            number: InsuredNumber::from_last_digits(number),
        }
    }

    /// Consent `at`; its id is one more.
    pub fn consent(&self, at: u64) -> Fact {
        let random = self.random(Stream::Consent, at);
        let seconds = self.size.consents / 20;
        let givers = self.size.consents - seconds;
        let from = AS_OF - DAY - random % YEAR;
        let later = from + random / YEAR % (AS_OF - from);
        // Whoever gave a second one took the first back, or it ran out.
        let state = if at < seconds { 90 + random % 2 * 5 } else { random / 7 % 100 };
        let (until, withdrawn) = match state {
            0..60 => (None, None),
            60..90 => (Some(AS_OF + random % (2 * YEAR)), None),
            90..95 => (None, Some(later)),
            _ => (Some(later), None),
        };
        let insured = self.insured(at % givers % self.size.insured);
        Fact::Consent { id: at + 1, insured, scope: scope(random / 11), from, until, withdrawn }
    }

    /// Registration `at`, below [`Size::registrations`]. One person's stand side by side; where
    /// their prefecture has offices enough, all of them are in it.
    pub fn registration(&self, at: u64) -> Fact {
        let random = self.random(Stream::Registration, at);
        let (person, office) = self.pair(at);
        let days = random / 100 % 365 * DAY;
        let (from, until, ended) = match random % 100 {
            0..60 => (AS_OF - DAY - random / 100 % (3 * YEAR), None, None),
            60..90 => (AS_OF - DAY - random / 100 % (3 * YEAR), Some(AS_OF + days + DAY - 1), None),
            90..96 => (AS_OF - 3 * YEAR, Some(AS_OF - days / 4 - 1), None),
            96..99 => (AS_OF - 3 * YEAR, None, Some(AS_OF - 1 - random / 100 % YEAR)),
            _ => (AS_OF + DAY + days, None, None),
        };
        Fact::Registration {
            office: self.pick(office).0,
            insured: self.insured(person),
            from,
            until,
            ended,
        }
    }

    /// What else is so of the pair of registration `at`, for some of them: that the office makes
    /// the plan, was asked for an opinion, or wrote a document.
    pub fn more(&self, at: u64) -> Option<Fact> {
        let random = self.random(Stream::More, at);
        // Most have nothing: looked at before anything else is worked out.
        let [plans, asked, wrote] = [16, 8, 64].map(|one_in| (random >> 8).is_multiple_of(one_in));
        if !(plans || asked || wrote) {
            return None;
        }
        let (person, office) = self.pair(at);
        let (office, kind) = self.pick(office);
        let insured = self.insured(person);
        if wrote {
            let party = format!("office/{office}");
            Some(Fact::Author { party, insured, document: kind.writes })
        } else if asked && kind.medical {
            Some(Fact::OpinionRequest { office, insured, open: random.is_multiple_of(2) })
        } else if plans && at.is_multiple_of(self.registrations_each) {
            Some(Fact::PlansFor { office, insured, active: true })
        } else {
            None
        }
    }

    /// The person and the office of registration `at`.
    fn pair(&self, at: u64) -> (u64, u64) {
        let each = self.registrations_each;
        let (person, turn) = (at / each, at % each);
        let all = self.size.offices;
        let prefecture = self.home(person) % PREFECTURES;
        let near = all.saturating_sub(prefecture).div_ceil(PREFECTURES);
        let random = self.random(Stream::Pair, person);
        // Steps of a `each`th of the way round never meet.
        let office = match near >= each {
            true => prefecture + PREFECTURES * ((random + turn * (near / each)) % near),
            false => (random + turn * (all / each)) % all,
        };
        (person, office)
    }

    /// The municipality of person `at`.
    fn home(&self, at: u64) -> u64 {
        let random = self.random(Stream::Home, at) >> 32;
        // Squared: the first holds 2.4 % of the persons, the last 0.03 %.
        (((random * random) >> 32) * self.size.municipalities) >> 32
    }

    // INVARIANT: both tables hold as many as the size says, and that is at least one.
    fn pick(&self, office: u64) -> (OfficeNumber, &'static Kind) {
        self.offices[(office % self.size.offices) as usize]
    }

    fn municipality(&self, at: u64) -> InsurerNumber {
        self.municipalities[(at % self.size.municipalities) as usize]
    }

    /// Offices stand in turn in the prefectures; no two of one share district and serial.
    fn new_office(&self, at: u64) -> (OfficeNumber, &'static Kind) {
        let (prefecture, place) = (at % PREFECTURES, at / PREFECTURES);
        let random = self.random(Stream::Office, at);
        let district = place / 10_000 * 50 + random % 50;
        let serial = (place % 10_000) as u16;
        let kind = kinds::pick(random / 50);
        let class = kind.class_of(serial);
        (OfficeNumber::from_parts(invented(prefecture), class, district as u8, serial), kind)
    }

    /// A number that looks random, the same each time.
    fn random(&self, stream: Stream, at: u64) -> u64 {
        mix(self.seed ^ mix(at.wrapping_mul(16).wrapping_add(stream as u64)))
    }
}

impl Size {
    /// What is counted, how many are wanted and how many there may be; the first [`NEEDED`] may
    /// not be 0.
    fn limits(&self) -> [(&'static str, u64, u64); 6] {
        [
            ("offices", self.offices, OFFICES_MAX),
            ("registrations", self.registrations, COUNT_MAX),
            ("insured persons", self.insured, COUNT_MAX),
            ("municipalities", self.municipalities, MUNICIPALITIES_MAX),
            ("consents", self.consents, COUNT_MAX),
            ("revoked certificates", self.revoked, COUNT_MAX),
        ]
    }
}

/// What a random number is for, so that no two uses of one position are alike.
#[derive(Debug, Clone, Copy)]
enum Stream {
    Office,
    Suspended,
    Serial,
    Sharing,
    Home,
    Consent,
    Registration,
    Pair,
    More,
}

fn new_municipality(at: u64) -> InsurerNumber {
    InsurerNumber::from_parts(invented(at % PREFECTURES), (101 + at / PREFECTURES) as u16)
}

/// A prefecture's code in this country: there is none between 48 and 99 in the real one.
fn invented(prefecture: u64) -> u8 {
    (51 + prefecture % PREFECTURES) as u8
}

/// Most consents are for everything (包括同意).
fn scope(random: u64) -> DocumentSet {
    let all = DocumentSet::held();
    match random % 20 {
        0..17 => all,
        17..19 => [DocumentKind::CertificationSurvey, DocumentKind::PhysicianOpinion]
            .into_iter()
            .collect(),
        _ => all.iter().filter(|kind| *kind != DocumentKind::LifeFeedback).collect(),
    }
}

/// SplitMix64's last step: every input has another output.
const fn mix(at: u64) -> u64 {
    let mut value = at.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

const DAY: u64 = 86_400;
const YEAR: u64 = 365 * DAY;
const PREFECTURES: u64 = 47;
/// Insured numbers that there are, and a step through them that meets none twice (prime to 10).
const NUMBERS: u64 = 10_000_000_000;
const NUMBER_STEP: u64 = 3_141_592_653;
/// As many as one gateway can tell apart (19 bits).
const OFFICES_MAX: u64 = 1 << 19;
/// As many as one gateway can tell apart (11 bits).
const MUNICIPALITIES_MAX: u64 = 1 << 11;
const COUNT_MAX: u64 = 1_000_000_000;
const NEEDED: usize = 4;

#[cfg(test)]
mod tests;
