//! What an allowed request may see or do, and what the hub must find true in its own current rows
//! before it shows or stores anything. Crosses to the hub inside the permit.

use serde::{Deserialize, Serialize};

use crate::document::{DocumentKind, DocumentSet};
use crate::matrix::Rule;

/// What the hub must find true in its own current rows before it shows or stores anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Needs(u8);

impl Needs {
    /// Nothing to look up.
    pub const NONE: Self = Self(0);
    /// The person's municipality shares.
    pub const LIVE: Self = Self(1);
    /// The office is registered as 担当事業所 for the person, and the registration has not lapsed.
    pub const REGISTERED: Self = Self(2);
    /// The person's consent covers the kind of document, now.
    pub const CONSENT: Self = Self(4);
    /// The office makes the person's plan.
    pub const PLANS_FOR: Self = Self(8);
    /// The institution holds the insurer's open 主治医意見書作成依頼.
    pub const OPINION_REQUEST: Self = Self(16);
    /// The institution was sent a 主治医意見書作成依頼 at some time (open or answered).
    pub const OPINION_REQUEST_EVER: Self = Self(32);

    const NAMES: [(&'static str, Self); 6] = [
        ("live", Self::LIVE),
        ("registered", Self::REGISTERED),
        ("consent", Self::CONSENT),
        ("plans-for", Self::PLANS_FOR),
        ("opinion-request", Self::OPINION_REQUEST),
        ("opinion-request-ever", Self::OPINION_REQUEST_EVER),
    ];

    /// The needs in either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any need of `other` is in this set.
    pub const fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The need with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, need)| *need)
    }

    /// Every set of needs there is.
    pub fn every_set() -> impl Iterator<Item = Self> {
        (0..1 << Self::NAMES.len()).map(Self)
    }

    /// The names of the needs, in gate order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().filter(move |(_, need)| self.contains(*need)).map(|(name, _)| *name)
    }

    /// The needs, one by one, in gate order.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let next = left & left.wrapping_neg();
            left ^= next;
            (next != 0).then_some(Self(next))
        })
    }

    /// Whether every need of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Serialize for Needs {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for Needs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        names.iter().try_fold(Self::NONE, |needs, name| {
            let need = Self::from_name(name).ok_or_else(|| {
                serde::de::Error::custom(format!("`{name}` is not a need of a permit"))
            })?;
            Ok(needs.union(need))
        })
    }
}

/// One kind of document that a permit opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantedKind {
    /// The kind.
    pub document: DocumentKind,
    /// Only versions that the principal itself wrote.
    pub own_only: bool,
    /// What the hub must find true for this kind.
    pub needs: Needs,
}

/// What an allowed request may see or do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant {
    any: [Option<Needs>; DocumentKind::ALL.len()],
    own: [Option<Needs>; DocumentKind::ALL.len()],
    needs: Needs,
    documents: DocumentSet,
}

impl Grant {
    /// The kinds that are open, with what the hub must find true for each. A kind may come twice:
    /// once for every version, once for the principal's own.
    pub fn kinds(&self) -> impl Iterator<Item = GrantedKind> + '_ {
        let opened = |own_only: bool, needs: &[Option<Needs>; DocumentKind::ALL.len()]| {
            let needs = *needs;
            DocumentKind::ALL.iter().enumerate().filter_map(move |(at, document)| {
                needs[at].map(|needs| GrantedKind { document: *document, own_only, needs })
            })
        };
        opened(false, &self.any).chain(opened(true, &self.own))
    }

    /// What the hub must find true for an operation that is not about one kind of document.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// The kinds of document that are open, whichever versions.
    pub fn documents(&self) -> DocumentSet {
        self.documents
    }

    /// A grant that is not about documents.
    pub(super) fn of(needs: Needs) -> Self {
        Self { needs, ..Self::default() }
    }

    pub(super) fn set_needs(&mut self, needs: Needs) {
        self.needs = needs;
    }

    pub(super) fn open(&mut self, document: DocumentKind, rule: &Rule) {
        self.documents.insert(document);
        let slots = if rule.own_only { &mut self.own } else { &mut self.any };
        let slot = &mut slots[document as usize];
        // Of several open ways the one that leans on the fewest facts.
        if slot.is_none_or(|needs| rule.needs.0.count_ones() < needs.0.count_ones()) {
            *slot = Some(rule.needs);
        }
    }
}
