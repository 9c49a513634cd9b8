//! What an answer says of itself to the gateway: about whom it is, and which kinds of document are
//! in it. The gateway delivers no answer about a person that does not say so, or that is not the
//! permitted one.
//!
//! Invariant: where rows were read, this is told from the rows and not from the permit, so that a
//! slip in a query shows.

use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use policies::declared::{INSURED_HEADER, KINDS_HEADER, print_kinds};
use policies::document::{DocumentKind, DocumentSet};
use policies::identity::InsuredKey;

use crate::refusal::Refusal;

/// Whom an answer is about, and which kinds of document are in it.
pub(crate) struct About {
    insured: InsuredKey,
    kinds: DocumentSet,
}

impl About {
    /// About a person; no document is in it.
    pub(crate) fn person(insured: InsuredKey) -> Self {
        Self { insured, kinds: DocumentSet::EMPTY }
    }

    /// About a person, with documents of these kinds.
    pub(crate) fn documents(
        insured: InsuredKey,
        kinds: impl IntoIterator<Item = DocumentKind>,
    ) -> Self {
        Self { insured, kinds: kinds.into_iter().collect() }
    }

    /// The answer with what it says of itself.
    pub(crate) fn answer(&self, answer: impl IntoResponse) -> Result<Response, Refusal> {
        let value = |text: String| {
            HeaderValue::try_from(text).map_err(|error| Refusal::Internal(Box::new(error)))
        };
        let mut response = answer.into_response();
        let headers = response.headers_mut();
        headers.insert(INSURED_HEADER, value(self.insured.to_string())?);
        headers.insert(KINDS_HEADER, value(print_kinds(self.kinds))?);
        Ok(response)
    }
}
