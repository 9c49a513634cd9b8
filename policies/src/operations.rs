//! The operations table: method + path → what is asked for.
//!
//! Unknown method or path is a deny. Paths are matched byte for byte: no percent-encoding, no empty
//! segment, no dot segment ever matches, so gateway and hub cannot read one path in two ways.
//!
//! The table is `data/operations.toml`; [`Operations::parse`] checks it as a whole and reports
//! every problem together. INVARIANT: no path matches two entries of one method.

use std::sync::Arc;

use serde::Deserialize;

use crate::document::DocumentKind;
use crate::identity::{InsuredKey, InsuredNumber, InsurerNumber, named};

named! {
    /// What a request wants to do.
    Action, "an action", {
        /// Staff login and token refresh.
        Login = "login",
        /// End the staff session.
        Logout = "logout",
        /// The office's own registrations (利用者一覧).
        ListOwnRegistrations = "list-own-registrations",
        /// The institution's own 主治医意見書作成依頼.
        ListOwnOpinionRequests = "list-own-opinion-requests",
        /// List a person's documents.
        ListDocuments = "list-documents",
        /// View one kind of a person's documents.
        ViewDocument = "view-document",
        /// Store a new version of a document.
        SubmitDocument = "submit-document",
        /// Store care plans from a file of ケアプランデータ連携標準仕様.
        SubmitCarePlanFile = "submit-care-plan-file",
        /// List a person's consents.
        ListConsents = "list-consents",
        /// Record a consent.
        RecordConsent = "record-consent",
        /// Withdraw a consent.
        WithdrawConsent = "withdraw-consent",
        /// View progress and result of 要介護認定.
        ViewCertification = "view-certification",
        /// Move 要介護認定 on.
        AdvanceCertification = "advance-certification",
        /// Send a 主治医意見書作成依頼.
        SendOpinionRequest = "send-opinion-request",
        /// File a 居宅サービス計画作成依頼届出.
        FileCarePlanRequest = "file-care-plan-request",
        /// The person's own record of who looked.
        ViewAccessHistory = "view-access-history",
        /// Read the municipality's inbox.
        ReadInbox = "read-inbox",
        /// Mark an inbox item as received.
        ReceiveInboxItem = "receive-inbox-item",
        /// Set the municipality's go-live.
        SetSharing = "set-sharing",
    }
}

impl Action {
    /// What the path of such an operation must name.
    pub const fn subject(self) -> Subject {
        match self {
            Self::Login
            | Self::Logout
            | Self::ListOwnRegistrations
            | Self::ListOwnOpinionRequests
            | Self::SubmitCarePlanFile => Subject::Nobody,
            Self::ListDocuments
            | Self::ListConsents
            | Self::RecordConsent
            | Self::WithdrawConsent
            | Self::ViewCertification
            | Self::AdvanceCertification
            | Self::SendOpinionRequest
            | Self::FileCarePlanRequest
            | Self::ViewAccessHistory => Subject::Person,
            Self::ViewDocument | Self::SubmitDocument => Subject::Document,
            Self::ReadInbox | Self::ReceiveInboxItem | Self::SetSharing => Subject::Insurer,
        }
    }
}

/// What an operation is about, and so what its path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Nobody in particular.
    Nobody,
    /// An insurer.
    Insurer,
    /// An insured person.
    Person,
    /// One kind of document of an insured person.
    Document,
}

/// A request that matched an entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The entry's id, such as `documents.view`.
    pub id: Arc<str>,
    /// What is asked for.
    pub action: Action,
    /// The kind of document in the path.
    pub document: Option<DocumentKind>,
    /// The person in the path.
    pub insured: Option<InsuredKey>,
    /// The insurer in the path (also the person's).
    pub insurer: Option<InsurerNumber>,
    /// Which one of several, where the path says so.
    pub numbered: Option<Numbered>,
}

/// A number in a path, and what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbered {
    /// The version of a document.
    Version(u64),
    /// The consent's id.
    Consent(u64),
    /// The item in the municipality's inbox.
    InboxItem(u64),
}

/// The checked operations table.
#[derive(Debug, Clone)]
pub struct Operations(Vec<Entry>);

impl Operations {
    /// The table that this crate ships, `data/operations.toml`.
    ///
    /// # Errors
    /// [`Error`] with every problem of the table.
    pub fn builtin() -> Result<Self, Error> {
        Self::parse(include_str!("../data/operations.toml"))
    }

    /// Reads and checks a table.
    ///
    /// # Errors
    /// [`Error`] with every problem of the table.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let raw: RawOperations =
            toml::from_str(text).map_err(|error| Error(vec![one_line(&error.to_string())]))?;
        let mut problems = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        for raw in raw.operation {
            match Entry::check(&raw) {
                Ok(entry) => {
                    problems.extend(entries.iter().filter_map(|other| other.clash(&entry)));
                    entries.push(entry);
                }
                Err(found) => problems.extend(found),
            }
        }
        if problems.is_empty() { Ok(Self(entries)) } else { Err(Error(problems)) }
    }

    /// Matches a request. `path` is the raw path without the query; `None` is a deny.
    pub fn resolve(&self, method: &str, path: &str) -> Option<Operation> {
        self.0.iter().filter(|entry| entry.method == method).find_map(|entry| entry.resolve(path))
    }

    /// Every entry, in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }
}

/// One entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    id: Arc<str>,
    method: String,
    path: String,
    action: Action,
    segments: Vec<Segment>,
}

impl Entry {
    /// The entry's id, such as `documents.view`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The HTTP method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The path template, such as `/v1/insured/{insurer}/{number}/documents/{kind}`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is asked for.
    pub fn action(&self) -> Action {
        self.action
    }

    fn check(raw: &RawEntry) -> Result<Self, Vec<String>> {
        let at = format!("operations.toml: operation `{}`", raw.id);
        let mut problems = Vec::new();
        let id_byte = |byte: u8| byte.is_ascii_lowercase() || byte == b'-' || byte == b'.';
        if raw.id.is_empty() || !raw.id.bytes().all(id_byte) {
            problems.push(format!("{at}: id must be lower-case letters, `-` and `.`"));
        }
        if !METHODS.contains(&raw.method.as_str()) {
            problems.push(format!("{at}: method `{}` is none of {METHODS:?}", raw.method));
        }
        let action: Option<Action> = raw.action.parse().ok();
        if action.is_none() {
            problems.push(format!("{at}: action `{}` is not known", raw.action));
        }
        let segments = parse_template(&raw.path).unwrap_or_else(|problem| {
            problems.push(format!("{at}: path `{}`: {problem}", raw.path));
            Vec::new()
        });
        match action {
            Some(action) if problems.is_empty() => {
                if let Some(problem) = wrong_subject(action, &segments) {
                    return Err(vec![format!("{at}: path `{}`: {problem}", raw.path)]);
                }
                let id = Arc::from(raw.id.as_str());
                let (method, path) = (raw.method.clone(), raw.path.clone());
                Ok(Self { id, method, path, action, segments })
            }
            Some(_) | None => Err(problems),
        }
    }

    fn clash(&self, other: &Self) -> Option<String> {
        if self.id == other.id {
            return Some(format!("operations.toml: operation `{}` is given twice", self.id));
        }
        let same = self.method == other.method
            && self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|(a, b)| a.overlaps(b));
        same.then(|| {
            format!(
                "operations.toml: operations `{}` and `{}` match the same paths",
                self.id, other.id
            )
        })
    }

    fn resolve(&self, path: &str) -> Option<Operation> {
        let mut operation = Operation {
            id: Arc::clone(&self.id),
            action: self.action,
            document: None,
            insured: None,
            insurer: None,
            numbered: None,
        };
        let mut parts = path.strip_prefix('/')?.split('/');
        for segment in &self.segments {
            let part = parts.next()?;
            match segment {
                Segment::Literal(literal) if literal == part => {}
                Segment::Literal(_) => return None,
                Segment::Insurer => operation.insurer = Some(part.parse().ok()?),
                Segment::Number => {
                    let number: InsuredNumber = part.parse().ok()?;
                    operation.insured = Some(InsuredKey { insurer: operation.insurer?, number });
                }
                Segment::Kind => operation.document = Some(held_kind(part)?),
                Segment::Decimal(counted) => {
                    operation.numbered = Some(counted.number(part)?);
                }
                Segment::File if is_file_name(part) => {}
                Segment::File => return None,
            }
        }
        parts.next().is_none().then_some(operation)
    }
}

/// What is wrong with an operations table: every problem, each naming file, entry and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Error(Vec<String>);

impl Error {
    /// The problems, one line each.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOperations {
    operation: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    id: String,
    method: String,
    path: String,
    action: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Insurer,
    Number,
    Kind,
    Decimal(Counted),
    File,
}

/// What a decimal number in a path counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Versions,
    Consents,
    InboxItems,
}

impl Counted {
    fn number(self, part: &str) -> Option<Numbered> {
        let number = decimal(part)?;
        Some(match self {
            Self::Versions => Numbered::Version(number),
            Self::Consents => Numbered::Consent(number),
            Self::InboxItems => Numbered::InboxItem(number),
        })
    }
}

impl Segment {
    /// Whether one path segment could match both.
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Literal(a), Self::Literal(b)) => a == b,
            (Self::Literal(text), parameter) | (parameter, Self::Literal(text)) => {
                parameter.accepts(text)
            }
            (_, _) => true,
        }
    }

    fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == text,
            Self::Insurer => text.parse::<InsurerNumber>().is_ok(),
            Self::Number => text.parse::<InsuredNumber>().is_ok(),
            Self::Kind => held_kind(text).is_some(),
            Self::Decimal(_) => decimal(text).is_some(),
            Self::File => is_file_name(text),
        }
    }
}

fn parse_template(path: &str) -> Result<Vec<Segment>, String> {
    let rest = path.strip_prefix('/').ok_or("must begin with `/`")?;
    rest.split('/')
        .map(|part| match part {
            "{insurer}" => Ok(Segment::Insurer),
            "{number}" => Ok(Segment::Number),
            "{kind}" => Ok(Segment::Kind),
            "{version}" => Ok(Segment::Decimal(Counted::Versions)),
            "{item}" => Ok(Segment::Decimal(Counted::InboxItems)),
            "{consent}" => Ok(Segment::Decimal(Counted::Consents)),
            "{file}" => Ok(Segment::File),
            _ if is_literal(part) => Ok(Segment::Literal(part.to_owned())),
            _ => Err(format!("`{part}` is neither a known parameter nor a lower-case word")),
        })
        .collect()
}

/// The path must name exactly what the action is about.
fn wrong_subject(action: Action, segments: &[Segment]) -> Option<&'static str> {
    let count = |wanted: &Segment| segments.iter().filter(|segment| *segment == wanted).count();
    let named = (count(&Segment::Insurer), count(&Segment::Number), count(&Segment::Kind));
    let (expected, problem) = match action.subject() {
        Subject::Nobody => ((0, 0, 0), "this action is about no person, insurer or document"),
        Subject::Insurer => ((1, 0, 0), "this action needs {insurer} and nothing else"),
        Subject::Person => ((1, 1, 0), "this action needs {insurer}/{number}"),
        Subject::Document => ((1, 1, 1), "this action needs {insurer}/{number} and {kind}"),
    };
    let at = |wanted: &Segment| segments.iter().position(|segment| segment == wanted);
    let ordered = match (at(&Segment::Insurer), at(&Segment::Number)) {
        (Some(insurer), Some(number)) => insurer < number,
        (Some(_), None) | (None, None) => true,
        (None, Some(_)) => false,
    };
    (named != expected || !ordered).then_some(problem)
}

fn held_kind(text: &str) -> Option<DocumentKind> {
    text.parse().ok().filter(|kind: &DocumentKind| kind.is_held())
}

fn is_literal(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(allowed)
}

fn decimal(text: &str) -> Option<u64> {
    let well_formed = (1..=DECIMAL_DIGITS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.starts_with('0');
    if well_formed { text.parse().ok() } else { None }
}

fn is_file_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    (1..=FILE_NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && text.bytes().any(|byte| byte != b'.')
}

fn one_line(text: &str) -> String {
    format!("operations.toml: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
}

const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];
const DECIMAL_DIGITS_MAX: usize = 10;
const FILE_NAME_BYTES_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> Operations {
        Operations::builtin().unwrap()
    }

    #[test]
    fn the_shipped_table_resolves_its_own_templates() {
        let table = table();
        assert_eq!(table.entries().count(), 23);
        for entry in table.entries() {
            let path = entry
                .path()
                .replace("{insurer}", "131016")
                .replace("{number}", "0000000001")
                .replace("{kind}", "life-feedback")
                .replace("{version}", "12")
                .replace("{item}", "1")
                .replace("{consent}", "9999999999")
                .replace("{file}", "UP1KYO_0300000100_43_0300000005_11_20191025200201.CSV");
            let operation = table.resolve(entry.method(), &path).unwrap();
            assert_eq!((&*operation.id, operation.action), (entry.id(), entry.action()));
            let subject = entry.action().subject();
            assert_eq!(operation.insurer.is_some(), subject != Subject::Nobody, "{path}");
            assert_eq!(operation.document.is_some(), subject == Subject::Document, "{path}");
        }
    }

    #[test]
    fn a_number_in_a_path_is_told_with_what_it_counts() {
        let table = table();
        let person = "/v1/insured/131016/0000000001";
        for (method, path, numbered) in [
            ("GET", format!("{person}/documents/life-feedback"), None),
            (
                "GET",
                format!("{person}/documents/life-feedback/versions/12"),
                Some(Numbered::Version(12)),
            ),
            ("POST", format!("{person}/consents/7/withdrawal"), Some(Numbered::Consent(7))),
            (
                "GET",
                "/v1/municipalities/131016/inbox/9999999999".to_owned(),
                Some(Numbered::InboxItem(9_999_999_999)),
            ),
        ] {
            assert_eq!(table.resolve(method, &path).unwrap().numbered, numbered, "{path}");
        }
    }

    #[test]
    fn every_action_has_an_operation() {
        let table = table();
        for action in Action::ALL {
            assert!(table.entries().any(|entry| entry.action() == *action), "{action}");
        }
    }

    #[test]
    fn paths_are_matched_byte_for_byte() {
        let table = table();
        let documents = "/v1/insured/131016/0000000001/documents";
        assert!(table.resolve("GET", documents).is_some());
        for bad in [
            "",
            "/",
            "v1/session",
            "//v1/session",
            "/v1/session/",
            "/v1//session",
            "/V1/session",
            "/v1/session?x=1",
            "/v1/sessio%6e",
            "/v1/./session",
            "/v1/insured/131016/0000000001/documents/",
            "/v1/insured/131016/0000000001/documents/.",
            "/v1/insured/131016/0000000001/documents/..",
            "/v1/insured/131016/0000000001/documents/benefit-claims",
            "/v1/insured/131016/0000000001/documents/benefit-management",
            "/v1/insured/131016/0000000001/documents/life-feedback%2f",
            "/v1/insured/131016/0000000001/documents/Life-feedback",
            "/v1/insured/131016/0000000001/documents/life-feedback/versions/0",
            "/v1/insured/131016/0000000001/documents/life-feedback/versions/01",
            "/v1/insured/131016/0000000001/documents/life-feedback/versions/12345678901",
            "/v1/insured/131016/0000000001/documents/life-feedback/versions/+1",
            "/v1/insured/13101/0000000001/documents",
            "/v1/insured/131016/000000001/documents",
            "/v1/insured/131016/h000000001/documents",
            "/v1/insured/１３１０１６/0000000001/documents",
        ] {
            assert_eq!(table.resolve("GET", bad), None, "{bad}");
        }
        for bad in ["/v1/care-plan-files/", "/v1/care-plan-files/..", "/v1/care-plan-files/a-b"] {
            assert_eq!(table.resolve("POST", bad), None, "{bad}");
        }
        let long = format!("/v1/care-plan-files/{}", "a".repeat(121));
        assert_eq!(table.resolve("POST", &long), None);
        for method in ["", "get", "HEAD", "PATCH", "OPTIONS", "CONNECT"] {
            assert_eq!(table.resolve(method, documents), None, "{method}");
        }
    }

    #[test]
    fn all_problems_of_a_table_are_reported_together() {
        let text = r#"
            [[operation]]
            id = "a"
            method = "GET"
            path = "/v1/insured/{insurer}/{number}/documents/{kind}"
            action = "view-document"
            [[operation]]
            id = "b"
            method = "GET"
            path = "/v1/insured/{insurer}/{number}/documents/life-feedback"
            action = "list-documents"
            [[operation]]
            id = "c"
            method = "FETCH"
            path = "/v1/{who}"
            action = "fly"
            [[operation]]
            id = "d"
            method = "GET"
            path = "/v1/insured/{number}"
            action = "list-consents"
        "#;
        let error = Operations::parse(text).unwrap_err();
        let all = error.to_string();
        assert_eq!(error.problems().len(), 5, "{all}");
        for part in ["`a` and `b` match", "method `FETCH`", "`fly`", "`{who}`", "needs {insurer}"] {
            assert!(all.contains(part), "{part}: {all}");
        }
        let unknown_key = "[[operation]]\nid='a'\nmethod='GET'\npath='/a'\naction='login'\nwho=1";
        assert!(Operations::parse(unknown_key).unwrap_err().to_string().contains("who"));
    }

    proptest! {
        #[test]
        fn no_text_makes_resolving_panic_or_match_loosely(
            method in "(GET|POST|PUT|DELETE)",
            path in "/v1/[a-z%/.{}0-9-]{0,60}",
        ) {
            if table().resolve(&method, &path).is_some() {
                prop_assert!(!path.contains('%') && !path.contains("//") && !path.ends_with('/'));
            }
        }
    }
}
