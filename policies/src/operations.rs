//! The operations table: method + path → what is asked for.
//!
//! Unknown method or path is a deny. Paths are matched byte for byte: no percent-encoding, no empty
//! segment, no dot segment ever matches, so gateway and hub cannot read one path in two ways.

use std::sync::Arc;

use crate::document::DocumentKind;
use crate::identity::{InsuredKey, InsurerNumber, named};

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
}
