//! What an answer of the hub says of itself: about whom it is, and which kinds of document are in
//! it. The hub declares it in two headers; the gateway holds it against the permit and delivers
//! nothing that was not permitted.
//!
//! ```text
//!  sekisho-insured: 131016/0000000001          the person
//!  sekisho-document-kind: care-plan,...        the kinds, parted by commas; empty: no document
//! ```
//!
//! Invariants: every answer to a request about a person carries both headers, once each; absent,
//! doubled or not understood is refused like a wrong one.

use crate::document::{DocumentKind, DocumentSet};
use crate::identity::{InsuredKey, InsurerNumber};
use crate::permit::PermitClaims;

/// The response header that names the person.
pub const INSURED_HEADER: &str = "sekisho-insured";

/// The response header that names the kinds of document.
pub const KINDS_HEADER: &str = "sekisho-document-kind";

/// What an answer must say of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: it is about nobody in particular.
    Nothing,
    /// One of this insurer's people.
    PersonOf(InsurerNumber),
    /// This person, and no kind of document but these.
    Person(InsuredKey, DocumentSet),
    /// This person, and this one kind of document.
    Document(InsuredKey, DocumentKind),
}

/// Why an answer is not the permitted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It does not say whom it is about.
    #[error("the answer declares no insured person")]
    PersonMissing,
    /// It says so twice, or not in the form that is understood.
    #[error("the answer's declared person is not understood")]
    PersonUnclear,
    /// It is about somebody else.
    #[error("the answer declares another person than the permitted one")]
    OtherPerson,
    /// It does not say which kinds of document it holds.
    #[error("the answer declares no kinds of document")]
    KindsMissing,
    /// It says so twice, or not in the form that is understood.
    #[error("the answer's declared kinds of document are not understood")]
    KindsUnclear,
    /// It holds another kind of document, or not the one that was asked for.
    #[error("the answer declares other kinds of document than the permitted ones")]
    OtherKind,
}

impl Mismatch {
    /// The word for it in a metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PersonMissing => "person_missing",
            Self::PersonUnclear => "person_unclear",
            Self::OtherPerson => "other_person",
            Self::KindsMissing => "kinds_missing",
            Self::KindsUnclear => "kinds_unclear",
            Self::OtherKind => "other_kind",
        }
    }
}

impl Expected {
    /// What the answer to a permitted request must say. `document` is the kind in its path, and
    /// `one_item` whether it is about one item of a municipality's inbox.
    pub fn of(claims: &PermitClaims, document: Option<DocumentKind>, one_item: bool) -> Self {
        match (claims.insured, document, claims.insurer) {
            (Some(insured), Some(kind), _) => Self::Document(insured, kind),
            (Some(insured), None, _) => {
                Self::Person(insured, claims.grants.iter().map(|it| it.document).collect())
            }
            (None, _, Some(insurer)) if one_item => Self::PersonOf(insurer),
            (None, ..) => Self::Nothing,
        }
    }

    /// Holds what an answer declares against it. Each argument gives the values of one header.
    ///
    /// # Errors
    /// [`Mismatch`]; the answer must then be withheld.
    pub fn check<'v>(
        self,
        insured: impl Iterator<Item = &'v [u8]>,
        kinds: impl Iterator<Item = &'v [u8]>,
    ) -> Result<(), Mismatch> {
        if self == Self::Nothing {
            return Ok(());
        }
        let insured = only(insured, Mismatch::PersonMissing, Mismatch::PersonUnclear)?;
        let insured: InsuredKey = insured.parse().map_err(|_| Mismatch::PersonUnclear)?;
        let kinds = only(kinds, Mismatch::KindsMissing, Mismatch::KindsUnclear)?;
        let kinds = parse_kinds(kinds).ok_or(Mismatch::KindsUnclear)?;
        let (right_person, right_kinds) = match self {
            Self::Nothing => (true, true),
            Self::PersonOf(insurer) => (insured.insurer == insurer, true),
            Self::Person(person, open) => {
                (insured == person, kinds.iter().all(|kind| open.contains(kind)))
            }
            Self::Document(person, kind) => {
                (insured == person, kinds == [kind].into_iter().collect())
            }
        };
        match (right_person, right_kinds) {
            (true, true) => Ok(()),
            (false, _) => Err(Mismatch::OtherPerson),
            (true, false) => Err(Mismatch::OtherKind),
        }
    }
}

/// The header value for `kinds`.
pub fn print_kinds(kinds: DocumentSet) -> String {
    kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(",")
}

fn parse_kinds(text: &str) -> Option<DocumentSet> {
    if text.is_empty() {
        return Some(DocumentSet::EMPTY);
    }
    text.split(',').map(|kind| kind.parse::<DocumentKind>().ok()).collect()
}

fn only<'v>(
    mut values: impl Iterator<Item = &'v [u8]>,
    missing: Mismatch,
    unclear: Mismatch,
) -> Result<&'v str, Mismatch> {
    let value = values.next().ok_or(missing)?;
    if values.next().is_some() {
        return Err(unclear);
    }
    std::str::from_utf8(value).map_err(|_| unclear)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "131016/0000000001";
    const OTHER: &str = "131016/0000000002";

    #[track_caller]
    fn check(expected: Expected, insured: &[&str], kinds: &[&str]) -> Result<(), Mismatch> {
        expected.check(
            insured.iter().map(|value| value.as_bytes()),
            kinds.iter().map(|value| value.as_bytes()),
        )
    }

    #[test]
    fn the_answer_about_one_document_is_that_document() {
        let one = Expected::Document(ME.parse().unwrap(), DocumentKind::InsuredCard);
        for (insured, kinds, expected) in [
            (&[ME][..], &["insured-card"][..], Ok(())),
            (&[], &["insured-card"], Err(Mismatch::PersonMissing)),
            (&[ME, ME], &["insured-card"], Err(Mismatch::PersonUnclear)),
            (&[""], &["insured-card"], Err(Mismatch::PersonUnclear)),
            (&[OTHER], &["insured-card"], Err(Mismatch::OtherPerson)),
            (&["131017/0000000001"], &["insured-card"], Err(Mismatch::OtherPerson)),
            (&[ME], &[], Err(Mismatch::KindsMissing)),
            (&[ME], &["insured-card", "insured-card"], Err(Mismatch::KindsUnclear)),
            (&[ME], &["insured-card, care-plan"], Err(Mismatch::KindsUnclear)),
            (&[ME], &["anything"], Err(Mismatch::KindsUnclear)),
            (&[ME], &[""], Err(Mismatch::OtherKind)),
            (&[ME], &["burden-ratio"], Err(Mismatch::OtherKind)),
            (&[ME], &["insured-card,burden-ratio"], Err(Mismatch::OtherKind)),
        ] {
            assert_eq!(check(one, insured, kinds), expected, "{insured:?} {kinds:?}");
        }
    }

    #[test]
    fn a_list_holds_no_kind_that_is_not_open() {
        let open = [DocumentKind::InsuredCard, DocumentKind::BurdenRatio].into_iter().collect();
        let list = Expected::Person(ME.parse().unwrap(), open);
        assert_eq!(check(list, &[ME], &[""]), Ok(()));
        assert_eq!(check(list, &[ME], &["burden-ratio,insured-card"]), Ok(()));
        let closed = check(list, &[ME], &["insured-card,physician-opinion"]);
        assert_eq!(closed, Err(Mismatch::OtherKind));
        assert_eq!(check(list, &[ME], &[]), Err(Mismatch::KindsMissing));
    }

    #[test]
    fn an_inbox_item_is_about_one_of_the_insurers_own_people() {
        let item = Expected::PersonOf("131016".parse().unwrap());
        assert_eq!(check(item, &[OTHER], &["physician-opinion"]), Ok(()));
        assert_eq!(check(item, &["271004/0000000001"], &[""]), Err(Mismatch::OtherPerson));
        assert_eq!(check(item, &[], &[""]), Err(Mismatch::PersonMissing));
        assert_eq!(check(Expected::Nothing, &[], &[]), Ok(()));
    }
}
