//! The words of the access history: what a citizen reads, in plain and polite Japanese.
//!
//! INVARIANT: no word of a member of staff but the job, and no number of the person.

use policies::document::DocumentKind;
use policies::identity::{Job, SystemName};
use policies::reason::Reason;

use super::{CARE_PLAN_REQUEST, CERTIFICATION};
use crate::clock;

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// It was done.
    Done,
    /// It was permitted; nothing more is known.
    Open,
    /// It was permitted, and could not be done.
    Failed,
    /// It was permitted, and no answer came: a write may have been done.
    Unconfirmed,
    /// It was done, and the answer broke off.
    BrokenOff {
        /// Whether a part of the answer left.
        something_left: bool,
    },
    /// It was denied.
    Denied(Option<Reason>),
}

/// What was to be done with what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deed {
    thing: &'static str,
    verb: &'static Verb,
}

/// The forms of a verb, each after を.
#[derive(Debug)]
struct Verb {
    did: &'static str,
    tried: &'static str,
    could_not: &'static str,
    could: &'static str,
    may: &'static str,
    /// Whether what matters is the answer, and not what was written.
    is_read: bool,
}

impl Deed {
    /// The deed of an operation on a document of this name.
    pub(super) fn of(action: Option<&str>, kind_ja: Option<&'static str>) -> Self {
        let document = kind_ja.unwrap_or("書類");
        let (thing, verb) = match action.unwrap_or_default() {
            "documents.list" => ("書類の一覧", &SEE),
            "documents.view" | "documents.view-version" | "inbox.view" => (document, &SEE),
            "care-plan-requests.view" | "certification.view" => (document, &SEE),
            "documents.versions" => ("書類の版の一覧", &SEE),
            "documents.store" => (document, &STORE),
            "consents.list" => ("同意の一覧", &SEE),
            "consents.record" => ("同意", &STORE),
            "consents.withdraw" => ("同意", &WITHDRAW),
            "certification.advance" => ("要介護認定の進捗", &STORE),
            "opinion-requests.send" => ("主治医意見書の作成依頼", &SEND),
            "care-plan-requests.file" => (document, &FILE),
            "access-history.view" => ("情報の利用の記録", &SEE),
            _ => ("情報", &USE),
        };
        Self { thing, verb }
    }

    /// What was done, without reasons: 「認定調査票を見ました」.
    pub(super) fn short(self, end: End) -> String {
        let Verb { did, tried, may, is_read, .. } = self.verb;
        let form = match end {
            End::Done => did,
            End::BrokenOff { .. } if !is_read => did,
            End::Open => may,
            End::Failed | End::Unconfirmed | End::BrokenOff { .. } | End::Denied(_) => tried,
        };
        format!("{}を{form}", self.thing)
    }

    /// What was done, and what became of it.
    pub(super) fn long(self, end: End) -> String {
        let (short, could_not) = (self.short(end), self.verb.could_not);
        match end {
            End::Done | End::Open => short,
            End::BrokenOff { .. } if !self.verb.is_read => short,
            End::Unconfirmed if !self.verb.is_read => {
                format!("{short}が、{}かどうかは確認できません", self.verb.could)
            }
            End::Failed | End::Unconfirmed => format!("{short}が、{could_not}"),
            End::BrokenOff { something_left: true } => {
                format!("{short}が、送信が途中で切れました（一部が届いた可能性があります）")
            }
            End::BrokenOff { something_left: false } => {
                format!("{short}が、送信が途中で切れたため、{could_not}")
            }
            End::Denied(Some(reason)) => format!("{short}が、{}ため、{could_not}", cause(reason)),
            End::Denied(None) => format!("{short}が、認められなかったため、{could_not}"),
        }
    }
}

/// The sentence: when, who, and what. With a `count`, what happened that often in the time.
pub(super) fn sentence(
    (from_s, until_s): (u64, u64),
    who: &str,
    count: Option<i64>,
    deed: &str,
) -> String {
    let when = clock::japan_minute(from_s);
    match count {
        None => format!("{when}（日本時間）、{who}が、あなたの{deed}。"),
        Some(count) => {
            let minutes = until_s.saturating_sub(from_s).div_ceil(60).max(1);
            format!("{when}（日本時間）から、{who}が、{minutes}分間に {count} 回、あなたの{deed}。")
        }
    }
}

/// Who it was: an office by its name, and the job of its member of staff.
pub(super) fn who(party: &str, name: Option<&str>, staff_job: Option<Job>) -> String {
    let who = match (name, party.split_once('/')) {
        (Some(name), _) => name.to_owned(),
        (None, Some(("office", number))) => format!("事業所番号{number}の事業所"),
        (None, Some(("municipality", number))) => format!("市区町村（保険者番号{number}）"),
        (None, Some(("system", name))) => match name.parse() {
            Ok(name) => system(name).to_owned(),
            Err(_) => OTHERS.to_owned(),
        },
        (None, Some(("operator", _))) => "運用者".to_owned(),
        (None, Some(_) | None) => OTHERS.to_owned(),
    };
    match staff_job {
        Some(staff_job) => format!("{who}（{}）", job(staff_job)),
        None => who,
    }
}

/// The name of a job.
pub(super) const fn job(job: Job) -> &'static str {
    match job {
        Job::CareManager => "介護支援専門員",
        Job::Physician => "医師",
        Job::Nurse => "看護職員",
        Job::CareWorker => "介護職員",
        Job::SocialWorker => "相談員",
        Job::Clerk => "事務職員",
    }
}

/// The name of a kind of document, or of what is listed beside documents.
pub(super) fn kind(kind: &str) -> Option<&'static str> {
    match kind {
        CARE_PLAN_REQUEST => Some("居宅サービス計画作成依頼届出"),
        CERTIFICATION => Some("要介護認定の進捗と結果"),
        _ => kind.parse().ok().map(DocumentKind::ja),
    }
}

const fn system(name: SystemName) -> &'static str {
    match name {
        SystemName::CarePlanExchange => "ケアプランデータ連携システム",
        SystemName::Life => "LIFE（科学的介護情報システム）",
        SystemName::Pmh => "PMH（Public Medical Hub）",
        SystemName::Portal => "マイナポータル（ご本人の操作）",
    }
}

/// Why it was denied, for the person.
pub(super) fn because(reason: Reason) -> String {
    format!("{}ためです。", cause(reason))
}

/// Why it was denied, before ため.
const fn cause(reason: Reason) -> &'static str {
    match reason {
        Reason::CertificateKindRefused => "利用できる種類の証明書ではなかった",
        Reason::CertificateRevoked => "端末の証明書が失効していた",
        Reason::CertificateExpired => "端末の証明書が有効期間外だった",
        Reason::NoSuchOperation => "そのような操作がない",
        Reason::BadRequest => "要求の形式が正しくなかった",
        Reason::FactsStale => "登録や同意の最新の情報を確認できなかった",
        Reason::OfficeUnknown => "利用できる事業所として登録されていない",
        Reason::OfficeSuspended => "事業所が利用停止中である",
        Reason::StaffTokenMissing => "職員がログインしていなかった",
        Reason::StaffTokenInvalid => "職員のログインを確認できなかった",
        Reason::StaffTokenExpired => "職員のログインの有効時間が過ぎていた",
        Reason::TokenNotBound => "職員のログインが別の端末のものだった",
        Reason::CsrfTokenInvalid => "開いたままの画面からの操作と確認できなかった",
        Reason::StaffSessionEnded => "職員のログインが終了していた",
        Reason::RateLimited => "要求の回数が多すぎた",
        Reason::BulkCeiling => "1時間に閲覧できる件数を超えていた",
        Reason::OutOfHours => "利用できる時間帯ではなかった",
        Reason::AddressNotAllowed => "利用できる接続元ではなかった",
        Reason::Paused => "運用者が利用を一時停止していた",
        Reason::NotInPilot => "市区町村の先行実施に参加する事業所ではない",
        Reason::NotHeld => "介護情報基盤で取り扱っていない書類である",
        Reason::NotShared => "その相手には共有されない情報である",
        Reason::WrongJob => "定められた職種の職員ではなかった",
        Reason::NotOwnInsurer => "あなたの保険者ではない",
        Reason::NotLive => "市区町村で情報の共有がまだ始まっていない",
        Reason::NotRegistered => "担当事業所として登録されていない",
        Reason::RegistrationLapsed => "担当事業所の登録が終わっている",
        Reason::ViewingPeriodOver => "閲覧できる期間が過ぎている",
        Reason::NotPlanningOffice => "ケアプランを作成する事業所として届け出られていない",
        Reason::OpinionRequestMissing => "主治医意見書の作成を依頼されていない",
        Reason::ConsentRequired => "あなたの同意がない",
        Reason::ConsentWithdrawn => "あなたが同意を撤回している",
        Reason::ConsentExpired => "あなたの同意の期間が終わっている",
        Reason::NotAuthor => "書類の作成者ではない",
        Reason::DocumentState => "書類がその操作をできる状態ではなかった",
        Reason::AuditUnavailable => "利用の記録を保存できない状態だった",
        Reason::UpstreamUnavailable => "介護情報基盤に接続できなかった",
        Reason::ResponseMismatch => "応答の内容を確認できなかった",
    }
}

const SEE: Verb = Verb {
    did: "見ました",
    tried: "見ようとしました",
    could_not: "見られませんでした",
    could: "見られた",
    may: "見ることを認められました",
    is_read: true,
};
const STORE: Verb = Verb {
    did: "登録しました",
    tried: "登録しようとしました",
    could_not: "登録できませんでした",
    could: "登録できた",
    may: "登録することを認められました",
    is_read: false,
};
const WITHDRAW: Verb = Verb {
    did: "撤回しました",
    tried: "撤回しようとしました",
    could_not: "撤回できませんでした",
    could: "撤回できた",
    may: "撤回することを認められました",
    is_read: false,
};
const SEND: Verb = Verb {
    did: "送りました",
    tried: "送ろうとしました",
    could_not: "送れませんでした",
    could: "送れた",
    may: "送ることを認められました",
    is_read: false,
};
const FILE: Verb = Verb {
    did: "提出しました",
    tried: "提出しようとしました",
    could_not: "提出できませんでした",
    could: "提出できた",
    may: "提出することを認められました",
    is_read: false,
};
const USE: Verb = Verb {
    did: "利用しました",
    tried: "利用しようとしました",
    could_not: "利用できませんでした",
    could: "利用できた",
    may: "利用することを認められました",
    is_read: true,
};
const OTHERS: &str = "その他の利用者";

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 1_775_001_600;

    fn view(end: End) -> String {
        let who = who("office/1370000001", Some("見本居宅介護支援事業所"), Some(Job::CareManager));
        let deed = Deed::of(Some("documents.view"), kind("certification-survey"));
        sentence((AT, AT), &who, None, &deed.long(end))
    }

    #[test]
    fn what_was_seen_and_what_was_denied_are_plain_sentences() {
        let begin = "2026年4月1日 9時0分（日本時間）、見本居宅介護支援事業所（介護支援専門員）が、\
                     あなたの認定調査票を";
        for (end, rest) in [
            (End::Done, "見ました。"),
            (End::Open, "見ることを認められました。"),
            (End::Failed, "見ようとしましたが、見られませんでした。"),
            (
                End::Denied(Some(Reason::NotRegistered)),
                "見ようとしましたが、担当事業所として登録されていないため、見られませんでした。",
            ),
            (
                End::BrokenOff { something_left: true },
                "見ようとしましたが、送信が途中で切れました（一部が届いた可能性があります）。",
            ),
        ] {
            assert_eq!(view(end), format!("{begin}{rest}"));
        }
    }

    #[test]
    fn what_was_written_stays_written_when_the_answer_breaks_off() {
        let deed = Deed::of(Some("documents.store"), kind("home-care-plan"));
        let end = End::BrokenOff { something_left: false };
        assert_eq!(deed.long(end), "居宅サービス計画を登録しました");
    }

    #[test]
    fn counted_denials_say_how_often_and_in_how_many_minutes() {
        let who = who("office/1370000002", None, None);
        let deed = Deed::of(None, None).long(End::Denied(Some(Reason::ConsentRequired)));
        assert_eq!(
            sentence((AT, AT + 59), &who, Some(37), &deed),
            "2026年4月1日 9時0分（日本時間）から、事業所番号1370000002の事業所が、1分間に 37 回、\
             あなたの情報を利用しようとしましたが、あなたの同意がないため、利用できませんでした。"
        );
        assert!(sentence((AT, AT + 61), &who, Some(37), &deed).contains("2分間に"));
    }

    #[test]
    fn every_operation_about_a_person_has_words_of_its_own() {
        let text = include_str!("../../../policies/data/operations.toml");
        let data: toml::Table = text.parse().unwrap();
        let text = |entry: &toml::Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let mut seen = 0;
        for entry in data["operation"].as_array().unwrap() {
            let id = text(entry, "id");
            if text(entry, "path").contains("{number}") {
                let deed = Deed::of(Some(&id), None);
                assert_ne!(deed.short(End::Done), "情報を利用しました", "{id}");
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
    }
}
