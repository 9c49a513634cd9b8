//! Why a request was refused: stable codes, with words for people in Japanese and English.
//!
//! Codes never change their meaning: records, metrics, dashboards and care software rely on them.

use serde::Serialize;

use crate::identity::named;

named! {
    /// A reason for refusing a request. The order is the order of the gates: the first one that is
    /// closed is the primary reason.
    Reason, "a reason code", {
        /// The certificate is not one this gateway accepts on this listener.
        CertificateKindRefused = "certificate_kind_refused",
        /// The certificate was revoked.
        CertificateRevoked = "certificate_revoked",
        /// The certificate has expired, or is not yet valid.
        CertificateExpired = "certificate_expired",
        /// Method and path match no operation.
        NoSuchOperation = "no_such_operation",
        /// The request is malformed or ambiguous.
        BadRequest = "bad_request",
        /// No facts, or facts too old to decide from.
        FactsStale = "facts_stale",
        /// The office of the certificate is not registered with the operator.
        OfficeUnknown = "office_unknown",
        /// The office is suspended.
        OfficeSuspended = "office_suspended",
        /// An office request without a staff token.
        StaffTokenMissing = "staff_token_missing",
        /// The staff token is not one of the hub's, or not of this office.
        StaffTokenInvalid = "staff_token_invalid",
        /// The staff token has run out.
        StaffTokenExpired = "staff_token_expired",
        /// The staff token belongs to another terminal's certificate.
        TokenNotBound = "token_not_bound",
        /// A browser's request that changes something, without the token of its own page.
        CsrfTokenInvalid = "csrf_token_invalid",
        /// The staff session was ended.
        StaffSessionEnded = "staff_session_ended",
        /// Too many requests.
        RateLimited = "rate_limited",
        /// The office read as much in this hour as an operator's policy allows.
        BulkCeiling = "bulk_ceiling",
        /// Outside the hours that an operator's policy sets.
        OutOfHours = "out_of_hours",
        /// From an address that an operator's policy does not name.
        AddressNotAllowed = "address_not_allowed",
        /// An operator's policy has paused this.
        Paused = "paused",
        /// The municipality shares with the offices of its pilot only.
        NotInPilot = "not_in_pilot",
        /// The hub does not hold this kind of document.
        NotHeld = "not_held",
        /// The sharing matrix never opens this to the principal.
        NotShared = "not_shared",
        /// The member of staff does not have the job that the rule asks for.
        WrongJob = "wrong_job",
        /// The person belongs to another insurer.
        NotOwnInsurer = "not_own_insurer",
        /// The person's municipality does not share yet.
        NotLive = "not_live",
        /// The office is not registered as 担当事業所 for the person.
        NotRegistered = "not_registered",
        /// The registration has lapsed or was ended.
        RegistrationLapsed = "registration_lapsed",
        /// The viewing period is over.
        ViewingPeriodOver = "viewing_period_over",
        /// The office does not make the person's plan.
        NotPlanningOffice = "not_planning_office",
        /// The insurer did not ask this institution for an opinion.
        OpinionRequestMissing = "opinion_request_missing",
        /// The person has not consented.
        ConsentRequired = "consent_required",
        /// The person withdrew the consent.
        ConsentWithdrawn = "consent_withdrawn",
        /// The consent has run out.
        ConsentExpired = "consent_expired",
        /// Only the author may do this.
        NotAuthor = "not_author",
        /// The document's state does not allow it.
        DocumentState = "document_state",
        /// The audit log cannot be written.
        AuditUnavailable = "audit_unavailable",
        /// The hub does not answer.
        UpstreamUnavailable = "upstream_unavailable",
        /// The hub's answer is not the permitted one.
        ResponseMismatch = "response_mismatch",
    }
}

/// Who can remove the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fixer {
    /// The office itself.
    Office,
    /// The person (利用者).
    Person,
    /// The municipality.
    Municipality,
    /// The network operator.
    Operator,
    /// Nobody: the rules do not allow it.
    Nobody,
}

impl Fixer {
    /// Whom to ask, in Japanese and English.
    pub const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Office => ("事業所", "the office itself"),
            Self::Person => ("利用者ご本人", "the person"),
            Self::Municipality => ("市区町村", "the person's municipality"),
            Self::Operator => ("運用者", "the network operator"),
            Self::Nobody => ("どなたにも変更できません", "nobody: the rules do not allow it"),
        }
    }
}

impl Reason {
    /// The HTTP status that the gateway answers with.
    pub const fn status(self) -> u16 {
        match self {
            Self::NoSuchOperation | Self::NotHeld => 404,
            Self::BadRequest => 400,
            Self::StaffTokenMissing
            | Self::StaffTokenInvalid
            | Self::StaffTokenExpired
            | Self::TokenNotBound
            | Self::StaffSessionEnded => 401,
            Self::RateLimited | Self::BulkCeiling => 429,
            Self::ResponseMismatch => 502,
            Self::FactsStale | Self::AuditUnavailable | Self::UpstreamUnavailable => 503,
            Self::CertificateKindRefused
            | Self::CertificateRevoked
            | Self::CertificateExpired
            | Self::OfficeUnknown
            | Self::OfficeSuspended
            | Self::OutOfHours
            | Self::AddressNotAllowed
            | Self::Paused
            | Self::CsrfTokenInvalid
            | Self::NotInPilot
            | Self::NotShared
            | Self::WrongJob
            | Self::NotOwnInsurer
            | Self::NotLive
            | Self::NotRegistered
            | Self::RegistrationLapsed
            | Self::ViewingPeriodOver
            | Self::NotPlanningOffice
            | Self::OpinionRequestMissing
            | Self::ConsentRequired
            | Self::ConsentWithdrawn
            | Self::ConsentExpired
            | Self::NotAuthor
            | Self::DocumentState => 403,
        }
    }

    /// One polite sentence in Japanese: what is missing and what to do.
    #[expect(clippy::too_many_lines, reason = "a table: one text for each reason")]
    pub const fn ja(self) -> &'static str {
        match self {
            Self::CertificateKindRefused => {
                "この種類の証明書では、この窓口を利用できません。証明書の種類をご確認ください。"
            }
            Self::CertificateRevoked => {
                "この端末の証明書は失効しています。運用者に新しい証明書の発行をご依頼ください。"
            }
            Self::CertificateExpired => {
                "この端末の証明書は有効期間外です。証明書を更新してください。"
            }
            Self::NoSuchOperation => {
                "この操作はありません。要求先のパスとメソッドをご確認ください。"
            }
            Self::BadRequest => "要求の形式が正しくありません。内容をご確認ください。",
            Self::FactsStale => {
                "最新の登録・同意の情報を確認できないため、一時的に応答できません。しばらくしてから再度お試しください。"
            }
            Self::OfficeUnknown => {
                "この事業所は登録されていません。運用者に事業所の登録をご依頼ください。"
            }
            Self::OfficeSuspended => "この事業所は利用停止中です。運用者にお問い合わせください。",
            Self::StaffTokenMissing => {
                "職員のログインが必要です。ログインしてから再度お試しください。"
            }
            Self::StaffTokenInvalid => {
                "ログイン情報を確認できません。もう一度ログインしてください。"
            }
            Self::StaffTokenExpired => {
                "ログインの有効時間が過ぎました。もう一度ログインしてください。"
            }
            Self::TokenNotBound => {
                "このログインは別の端末で行われたものです。この端末でログインしてください。"
            }
            Self::CsrfTokenInvalid => {
                "画面の有効性を確認できません。画面を開き直してから、もう一度操作してください。"
            }
            Self::StaffSessionEnded => {
                "このログインは終了しています。もう一度ログインしてください。"
            }
            Self::RateLimited => "要求の回数が多すぎます。しばらくしてから再度お試しください。",
            Self::BulkCeiling => {
                "1時間あたりの閲覧件数の上限に達しました。次の時間帯に再度お試しください。上限の変更は運用者にご相談ください。"
            }
            Self::OutOfHours => {
                "利用できる時間帯ではありません。時間帯の変更は運用者にご相談ください。"
            }
            Self::AddressNotAllowed => {
                "この接続元からは利用できません。接続元の追加は運用者にご依頼ください。"
            }
            Self::Paused => "この利用は一時停止中です。再開の予定は運用者にお問い合わせください。",
            Self::NotInPilot => {
                "この方の市区町村では、先行実施に参加する事業所のみ利用できます。市区町村にお問い合わせください。"
            }
            Self::NotHeld => "この書類は介護情報基盤では取り扱っていません。",
            Self::NotShared => "この書類は、貴事業所には共有されない書類です。",
            Self::WrongJob => "この書類は、定められた職種の職員のみ閲覧できます。",
            Self::NotOwnInsurer => "他の保険者の被保険者については、この操作を行えません。",
            Self::NotLive => "この方の市区町村では、まだ情報の共有が始まっていません。",
            Self::NotRegistered => {
                "本人確認と担当事業所の登録が必要です。マイナンバーカードによる本人確認を行ってください。"
            }
            Self::RegistrationLapsed => {
                "担当事業所の登録が終了しています。改めて本人確認と登録を行ってください。"
            }
            Self::ViewingPeriodOver => "閲覧できる期間が過ぎています。",
            Self::NotPlanningOffice => {
                "この方のケアプランを作成する事業所として届け出られていません。"
            }
            Self::OpinionRequestMissing => {
                "保険者からの主治医意見書作成依頼が確認できません。保険者にお問い合わせください。"
            }
            Self::ConsentRequired => "この書類の閲覧には、ご本人の同意が必要です。",
            Self::ConsentWithdrawn => "ご本人が同意を撤回されたため、閲覧できません。",
            Self::ConsentExpired => "ご本人の同意の期間が終了しています。",
            Self::NotAuthor => "この操作は、書類の作成者のみ行えます。",
            Self::DocumentState => "書類の現在の状態では、この操作を行えません。",
            Self::AuditUnavailable => {
                "記録を保存できないため、一時的に応答できません。運用者にお問い合わせください。"
            }
            Self::UpstreamUnavailable => {
                "介護情報基盤に接続できません。しばらくしてから再度お試しください。"
            }
            Self::ResponseMismatch => {
                "応答の内容を確認できないため、お渡しできません。運用者に要求番号をお伝えください。"
            }
        }
    }

    /// The same in English.
    pub const fn en(self) -> &'static str {
        match self {
            Self::CertificateKindRefused => "this kind of certificate may not be used here",
            Self::CertificateRevoked => {
                "the certificate is revoked; ask the operator for a new one"
            }
            Self::CertificateExpired => "the certificate is outside its validity; renew it",
            Self::NoSuchOperation => "there is no such operation; check path and method",
            Self::BadRequest => "the request is malformed",
            Self::FactsStale => "current registrations and consents are not known; try again later",
            Self::OfficeUnknown => "the office is not registered with the operator",
            Self::OfficeSuspended => "the office is suspended; ask the operator",
            Self::StaffTokenMissing => "a staff login is required",
            Self::StaffTokenInvalid => "the staff token is not valid; log in again",
            Self::StaffTokenExpired => "the staff token has run out; log in again",
            Self::TokenNotBound => "the staff token belongs to another terminal",
            Self::CsrfTokenInvalid => {
                "the request does not bring the CSRF token of its session; open the page anew"
            }
            Self::StaffSessionEnded => "the staff session has ended; log in again",
            Self::RateLimited => "too many requests; try again later",
            Self::BulkCeiling => {
                "as many reads as allowed in this hour; try again in the next, or ask the operator"
            }
            Self::OutOfHours => "outside the permitted hours; ask the operator to change them",
            Self::AddressNotAllowed => {
                "not from this address; ask the operator to add where you connect from"
            }
            Self::Paused => "the operator has paused this; ask the operator when it goes on",
            Self::NotInPilot => {
                "the person's municipality shares with the offices of its pilot only; ask it"
            }
            Self::NotHeld => "this kind of document is not held here",
            Self::NotShared => "this document is not shared with this party",
            Self::WrongJob => "only staff with the required job may do this",
            Self::NotOwnInsurer => "the person belongs to another insurer",
            Self::NotLive => "the person's municipality does not share yet",
            Self::NotRegistered => {
                "the office must check the person's identity and register as their office first"
            }
            Self::RegistrationLapsed => "the registration has ended; check identity again",
            Self::ViewingPeriodOver => "the viewing period is over",
            Self::NotPlanningOffice => "the office does not make this person's care plan",
            Self::OpinionRequestMissing => {
                "the insurer has not asked this institution for an opinion"
            }
            Self::ConsentRequired => "the person's consent is required",
            Self::ConsentWithdrawn => "the person withdrew consent",
            Self::ConsentExpired => "the person's consent has run out",
            Self::NotAuthor => "only the author may do this",
            Self::DocumentState => "the document's state does not allow this",
            Self::AuditUnavailable => "the audit log cannot be written; try again later",
            Self::UpstreamUnavailable => "the hub does not answer; try again later",
            Self::ResponseMismatch => {
                "the answer was not the permitted one and is withheld; tell the operator"
            }
        }
    }

    /// Who can remove this reason.
    pub const fn fixer(self) -> Fixer {
        match self {
            Self::CertificateKindRefused
            | Self::CertificateRevoked
            | Self::OfficeUnknown
            | Self::OfficeSuspended
            | Self::FactsStale
            | Self::BulkCeiling
            | Self::OutOfHours
            | Self::AddressNotAllowed
            | Self::Paused
            | Self::AuditUnavailable
            | Self::UpstreamUnavailable
            | Self::ResponseMismatch => Fixer::Operator,
            Self::CertificateExpired
            | Self::NoSuchOperation
            | Self::BadRequest
            | Self::StaffTokenMissing
            | Self::StaffTokenInvalid
            | Self::StaffTokenExpired
            | Self::TokenNotBound
            | Self::CsrfTokenInvalid
            | Self::StaffSessionEnded
            | Self::RateLimited
            | Self::WrongJob
            | Self::NotRegistered
            | Self::RegistrationLapsed
            | Self::NotPlanningOffice
            | Self::DocumentState => Fixer::Office,
            Self::ConsentRequired | Self::ConsentWithdrawn | Self::ConsentExpired => Fixer::Person,
            Self::NotInPilot | Self::NotLive | Self::OpinionRequestMissing => Fixer::Municipality,
            Self::NotHeld
            | Self::NotShared
            | Self::NotOwnInsurer
            | Self::ViewingPeriodOver
            | Self::NotAuthor => Fixer::Nobody,
        }
    }

    /// Whether this reason is about certificate, office or staff, or about when, from where and how
    /// often they ask, and nobody else. While one of these stands, nothing that depends on a person
    /// is told.
    pub const fn is_about_principal(self) -> bool {
        matches!(
            self,
            Self::CertificateKindRefused
                | Self::CertificateRevoked
                | Self::CertificateExpired
                | Self::OfficeUnknown
                | Self::OfficeSuspended
                | Self::StaffTokenMissing
                | Self::StaffTokenInvalid
                | Self::StaffTokenExpired
                | Self::TokenNotBound
                | Self::CsrfTokenInvalid
                | Self::StaffSessionEnded
                | Self::BulkCeiling
                | Self::OutOfHours
                | Self::AddressNotAllowed
        )
    }

    /// Whether this reason already presumes that the principal may know of the person. Such a
    /// reason is not told to an office that is not registered for the person.
    pub const fn reveals_person(self) -> bool {
        matches!(
            self,
            Self::NotLive
                | Self::RegistrationLapsed
                | Self::ViewingPeriodOver
                | Self::NotPlanningOffice
                | Self::OpinionRequestMissing
                | Self::ConsentRequired
                | Self::ConsentWithdrawn
                | Self::ConsentExpired
                | Self::NotAuthor
                | Self::DocumentState
        )
    }
}

/// A set of reasons, as a bit set. Serialised as a list of codes in gate order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ReasonSet(u64);

impl ReasonSet {
    /// No reason.
    pub const EMPTY: Self = Self(0);

    /// Adds a reason.
    pub fn insert(&mut self, reason: Reason) {
        self.0 |= 1 << reason as u64;
    }

    /// Whether the set holds `reason`.
    pub const fn contains(self, reason: Reason) -> bool {
        self.0 & (1 << reason as u64) != 0
    }

    /// The reasons in either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set without `reason`.
    pub const fn without(self, reason: Reason) -> Self {
        Self(self.0 & !(1 << reason as u64))
    }

    /// Whether there is no reason.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many reasons there are.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The reasons that the principal is told. A principal that is itself in question learns only
    /// that; one that may not look at the person (not registered, not the insurer, registration
    /// over) learns nothing that depends on the person. Never empty unless the set itself is.
    pub fn told(self) -> Self {
        let about_principal = self.iter().any(Reason::is_about_principal);
        let outsider = self.contains(Reason::NotRegistered) || self.contains(Reason::NotOwnInsurer);
        let former = self.contains(Reason::RegistrationLapsed);
        let is_told = |reason: &Reason| match (about_principal, outsider, former) {
            (true, _, _) => reason.is_about_principal() || *reason == Reason::FactsStale,
            (false, true, _) => !reason.reveals_person(),
            (false, false, true) => {
                !reason.reveals_person() || *reason == Reason::RegistrationLapsed
            }
            (false, false, false) => true,
        };
        self.iter().filter(is_told).collect()
    }

    /// The reasons in gate order.
    pub fn iter(self) -> impl Iterator<Item = Reason> {
        Reason::ALL.iter().copied().filter(move |reason| self.contains(*reason))
    }
}

impl From<Reason> for ReasonSet {
    fn from(reason: Reason) -> Self {
        let mut set = Self::EMPTY;
        set.insert(reason);
        set
    }
}

impl FromIterator<Reason> for ReasonSet {
    fn from_iter<I: IntoIterator<Item = Reason>>(reasons: I) -> Self {
        reasons.into_iter().fold(Self::EMPTY, |mut set, reason| {
            set.insert(reason);
            set
        })
    }
}

impl Serialize for ReasonSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_in_question_is_told_only_about_itself() {
        let told = |reasons: &[Reason]| -> Vec<Reason> {
            reasons.iter().copied().collect::<ReasonSet>().told().iter().collect()
        };
        let staff = Reason::StaffTokenMissing;
        assert_eq!(told(&[staff, Reason::NotRegistered, Reason::ConsentRequired]), [staff]);
        let other = Reason::NotOwnInsurer;
        assert_eq!(told(&[other, Reason::NotLive, Reason::ConsentWithdrawn]), [other]);
        let lapsed = Reason::RegistrationLapsed;
        assert_eq!(told(&[lapsed, Reason::ConsentWithdrawn]), [lapsed]);
        let both = [Reason::NotLive, Reason::ConsentRequired];
        assert_eq!(told(&both), both);
    }

    #[test]
    fn every_reason_has_words_and_a_refusing_status() {
        for reason in Reason::ALL {
            assert!(reason.ja().ends_with('。'), "{reason}");
            assert!(!reason.en().is_empty() && reason.status() >= 400, "{reason}");
        }
        assert!(Reason::ALL.len() <= 64);
    }
}
