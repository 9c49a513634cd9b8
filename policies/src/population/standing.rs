//! One combination of everything that a decision about a pair depends on, put before the decision.

use std::sync::Arc;

use crate::decide::{FeedState, Query, explain, visible};
use crate::document::{DocumentKind, DocumentSet};
use crate::facts::Facts;
use crate::feed::Fact;
use crate::identity::{
    Identity, InsuredKey, InsuredNumber, InsurerNumber, Job, OfficeNumber, Serial, Staff,
    TerminalId,
};
use crate::matrix::Matrix;
use crate::operations::{Action, Operation};
use crate::overlay::Circumstances;

use super::{Record, State};

/// What a decision about a pair depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Combination<'a> {
    /// One office of those that stand alike.
    pub(super) office: OfficeNumber,
    pub(super) record: Option<&'a Record>,
    /// One insurer of those that stand alike.
    pub(super) insurer: InsurerNumber,
    pub(super) live: bool,
    pub(super) given: DocumentSet,
    pub(super) state: State,
}

/// A combination as facts about one office and one person.
pub(super) struct Stood {
    facts: Facts,
    principal: Option<Identity>,
    office: OfficeNumber,
    insured: InsuredKey,
}

impl Combination<'_> {
    /// An office and a person of whom exactly this is so.
    pub(super) fn stand(&self) -> Stood {
        let Self { office, insurer, .. } = *self;
        let insured = InsuredKey { insurer, number: InsuredNumber::from_last_digits(1) };
        let principal = TERMINAL.parse::<TerminalId>().ok();
        let principal = principal.map(|terminal| Identity::Office { number: office, terminal });
        let mut facts = Facts::new();
        if let Some(record) = self.record {
            let Record { service_types, medical, suspended } = record.clone();
            let name = String::new();
            facts.apply(Fact::Office { number: office, service_types, medical, suspended, name });
        }
        facts.apply(Fact::Sharing { insurer, from: self.live.then_some(NOW) });
        facts.apply(Fact::Consent {
            id: 1,
            insured,
            scope: self.given,
            from: NOW,
            until: None,
            withdrawn: None,
        });
        if self.state.contains(State::REGISTERED) {
            let (until, ended) = (None, None);
            facts.apply(Fact::Registration { office, insured, from: NOW, until, ended });
        }
        let active = self.state.contains(State::PLANS_FOR);
        facts.apply(Fact::PlansFor { office, insured, active });
        if self.state.contains(State::ASKED) {
            let open = self.state.contains(State::OPEN);
            facts.apply(Fact::OpinionRequest { office, insured, open });
        }
        for document in self.state.wrote().iter() {
            let party = principal.as_ref().map(Identity::party).unwrap_or_default();
            facts.apply(Fact::Author { party, insured, document });
        }
        Stood { facts, principal, office, insured }
    }
}

impl Stood {
    /// The kinds that staff of some job may see.
    pub(super) fn open(&self, matrix: &Matrix) -> DocumentSet {
        let seen = |job: &Job| self.seen(matrix, *job);
        Job::ALL.iter().map(seen).fold(DocumentSet::EMPTY, DocumentSet::union)
    }

    /// The cell through which an open kind is open.
    pub(super) fn cell(&self, matrix: &Matrix, document: DocumentKind) -> String {
        let sees = |job: &&Job| self.seen(matrix, **job).contains(document);
        let way = Job::ALL.iter().find(sees).and_then(|job| {
            let told = self.ask(*job, Some(document), |query| explain(matrix, &self.facts, query));
            told?.ways.into_iter().find(|way| way.open)
        });
        match way {
            Some(way) => format!("{document}/{}", way.r#for),
            None => document.to_string(),
        }
    }

    fn seen(&self, matrix: &Matrix, job: Job) -> DocumentSet {
        let seen = self.ask(job, None, |query| visible(matrix, &self.facts, query));
        seen.unwrap_or_default()
    }

    fn ask<T>(
        &self,
        job: Job,
        document: Option<DocumentKind>,
        decided: impl FnOnce(&Query<'_>) -> T,
    ) -> Option<T> {
        let staff = Staff { id: String::new(), office: self.office, job, session: String::new() };
        let action = match document {
            Some(_) => Action::ViewDocument,
            None => Action::ListDocuments,
        };
        let operation = Operation {
            id: Arc::from(action.as_str()),
            action,
            document,
            insured: Some(self.insured),
            insurer: Some(self.insured.insurer),
            numbered: None,
        };
        let query = Query {
            principal: self.principal.as_ref()?,
            serial: Serial::from(std::num::NonZeroU128::MIN),
            not_after: NOW,
            staff: Some(&staff),
            operation: &operation,
            now: NOW,
            feeds: FeedState::fresh(),
            circumstances: Circumstances::default(),
        };
        Some(decided(&query))
    }
}

/// Any moment: a combination says what is so now.
const NOW: u64 = 1;
const TERMINAL: &str = "a";
