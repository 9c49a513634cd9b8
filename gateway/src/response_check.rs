//! The hub's answer, held against the permit before a byte of it leaves: whom it is about and which
//! kinds of document are in it must be what was permitted. A slip in the hub, or another answer on
//! a connection that went out of step, delivers nothing.
//!
//! Invariant: what the hub declares is for us; the client never gets it.

use pingora_http::ResponseHeader;
use policies::declared::{Expected, INSURED_HEADER, KINDS_HEADER, Mismatch};
use policies::operations::Numbered;

use crate::access::Permit;

/// Takes what `response` declares of itself out of it, and holds it against `permit`. A refusal of
/// the hub's is about nobody.
///
/// # Errors
/// [`Mismatch`]; the answer must then be withheld.
pub fn take_declared(
    permit: &Permit,
    is_refusal: bool,
    response: &mut ResponseHeader,
) -> Result<(), Mismatch> {
    let checked = if is_refusal || response.status.is_informational() {
        Ok(())
    } else {
        let values =
            |name| response.headers.get_all(name).into_iter().map(http::HeaderValue::as_bytes);
        expected(permit).check(values(INSURED_HEADER), values(KINDS_HEADER))
    };
    response.remove_header(INSURED_HEADER);
    response.remove_header(KINDS_HEADER);
    checked
}

fn expected(permit: &Permit) -> Expected {
    let operation = permit.operation();
    let one_item = matches!(operation.numbered, Some(Numbered::InboxItem(_)));
    Expected::of(permit.claims(), operation.document, one_item)
}
