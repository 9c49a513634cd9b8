//! The body of every refusal that a client sees, of gateway and hub alike: a problem document
//! (RFC 9457) with the reason code and words for people in Japanese and English.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::reason::{Fixer, Reason, ReasonSet};

/// The media type of its JSON text (RFC 9457 §3).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What stands before the code in a problem's type: a name that is nobody's address, since a client
/// is to compare it and not to fetch it (RFC 4151; RFC 9457 §3.1.1).
const TYPE_PREFIX: &str = "tag:sekisho.example,2026:";

/// A refusal in words.
#[derive(Debug, Serialize)]
pub struct ProblemDocument {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: String,
    detail_ja: String,
    code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix_by: Option<Fixer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<&'static str>,
    request_id: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl ProblemDocument {
    /// A refusal with a code and words of its own, answered with an HTTP `status`.
    pub fn coded(
        status: u16,
        code: &str,
        (detail, detail_ja): (&str, &str),
        request_id: &str,
    ) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{code}"),
            title: code.replace('_', " "),
            status,
            detail: detail.to_owned(),
            detail_ja: detail_ja.to_owned(),
            code: code.to_owned(),
            fix_by: None,
            missing: Vec::new(),
            request_id: request_id.to_owned(),
            more: Map::new(),
        }
    }

    /// A refusal for `reasons`, answered with an HTTP `status`. Reasons that would tell something
    /// about a person to whom the principal may not look are left out ([`ReasonSet::told`]).
    pub fn of(reasons: ReasonSet, status: u16, request_id: &str) -> Self {
        let told: Vec<Reason> = reasons.told().iter().collect();
        let primary = told.first().copied().unwrap_or(Reason::NotShared);
        let words = (primary.en(), primary.ja());
        Self {
            fix_by: Some(primary.fixer()),
            missing: told.iter().map(Reason::as_str).collect(),
            ..Self::coded(status, primary.as_str(), words, request_id)
        }
    }

    /// Adds what is particular to the code.
    #[must_use]
    pub fn with(mut self, more: Map<String, Value>) -> Self {
        self.more.extend(more);
        self
    }

    /// Its JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What happened, in Japanese.
    pub fn detail_ja(&self) -> &str {
        &self.detail_ja
    }

    /// What happened, in English.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Who can remove the reason, where somebody can be named.
    pub fn fix_by(&self) -> Option<Fixer> {
        self.fix_by
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        &self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unregistered_office_is_told_nothing_about_the_person() {
        let reasons: ReasonSet = [Reason::NotLive, Reason::NotRegistered, Reason::ConsentWithdrawn]
            .into_iter()
            .collect();
        let json = ProblemDocument::of(reasons, 403, "r1").to_json();
        assert!(json.contains(r#""code":"not_registered""#), "{json}");
        assert!(json.contains(r#""missing":["not_registered"]"#), "{json}");
        let registered = ProblemDocument::of(Reason::ConsentWithdrawn.into(), 403, "r1").to_json();
        assert!(registered.contains("consent_withdrawn"), "{registered}");
    }

    #[test]
    fn the_members_of_the_standard_are_there() {
        let json = ProblemDocument::of(Reason::ConsentRequired.into(), 403, "r1").to_json();
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["type"], "tag:sekisho.example,2026:consent_required");
        assert_eq!((&value["title"], &value["status"]), (&"consent required".into(), &403.into()));
        assert_eq!((&value["fix_by"], &value["request_id"]), (&"person".into(), &"r1".into()));
        let own = ProblemDocument::coded(409, "closed", ("it is closed", "終了しています。"), "r2");
        let own = own.with([("line".to_owned(), 3.into())].into_iter().collect()).to_json();
        let value: Value = serde_json::from_str(&own).unwrap();
        assert_eq!((&value["line"], &value["detail_ja"]), (&3.into(), &"終了しています。".into()));
        assert!(value.get("fix_by").is_none() && value.get("missing").is_none());
    }
}
