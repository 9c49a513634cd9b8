//! The file name: `<KIND>_<送信元>_<種類>_<送信先>_<種類>_<YYYYMMDDHHMMSS>.CSV`.
//!
//! Every problem of the name is reported with line 0, before those of the content.

use policies::identity::{OfficeNumber, ServiceType};
use time::macros::format_description;

use super::{FileKind, Problems};

/// What a right file name says.
pub(super) struct FileName {
    pub(super) sender: OfficeNumber,
    pub(super) receiver: OfficeNumber,
    pub(super) receiver_service: ServiceType,
    pub(super) made_at: String,
}

/// The kinds of the standard that carry something else, for a clearer message.
const OTHER_KINDS: &[&str] =
    &["UP3KYO", "UPHOSOKU", "UPPLAN", "UPJSK", "UPYOBO", "UPKIHON", "DLT1KYO", "DLTPLAN", "DLTJSK"];

/// サービス種類コード of 居宅介護支援, the only service that makes 居宅サービス計画 tables 1 and 2.
const CARE_MANAGEMENT: &str = "43";

const ITEM: &str = "ファイル名";

/// The kind that the name begins with, however wrong the rest is.
pub(super) fn kind(name: &str) -> Option<FileKind> {
    match name.split_once('_')?.0 {
        "UP1KYO" => Some(FileKind::Up1Kyo),
        "UP2KYO" => Some(FileKind::Up2Kyo),
        _ => None,
    }
}

/// Reads the name; `None` when a problem was reported.
pub(super) fn parse(name: &str, problems: &mut Problems) -> Option<FileName> {
    let parts: Vec<&str> = name.strip_suffix(".CSV").unwrap_or_default().split('_').collect();
    let (Some(_), [_, sender, service, receiver, receiver_service, made_at]) =
        (kind(name), parts.as_slice())
    else {
        problems.add(0, 0, ITEM, wrong_form(name));
        return None;
    };
    if *service != CARE_MANAGEMENT {
        problems.add(
            0,
            0,
            ITEM,
            "送信元のサービス種類コードが 43（居宅介護支援）ではありません。\
             居宅サービス計画は居宅介護支援事業所から送信してください。",
        );
    }
    let sender = office(sender, "送信元事業所番号", problems);
    let receiver = office(receiver, "送信先事業所番号", problems);
    let receiver_service = service_type(receiver_service, problems);
    let made_at = timestamp(made_at, problems);
    Some(FileName {
        sender: sender?,
        receiver: receiver?,
        receiver_service: receiver_service?,
        made_at: made_at?,
    })
}

fn wrong_form(name: &str) -> String {
    let first = name.split('_').next().unwrap_or_default();
    if OTHER_KINDS.contains(&first) {
        return format!(
            "{first} のファイルは、ここでは受け付けていません。\
             UP1KYO（第1表）または UP2KYO（第2表）のファイルを送信してください。"
        );
    }
    "ファイル名の形式が正しくありません。「UP1KYO_送信元事業所番号_43_送信先事業所番号_サービス種類_\
     年月日時分秒.CSV」の形式にしてください（第2表は UP2KYO）。"
        .to_owned()
}

fn office(text: &str, what: &str, problems: &mut Problems) -> Option<OfficeNumber> {
    let number = text.parse().ok();
    if number.is_none() {
        let message = format!(
            "{what}が正しくありません。10 桁の半角数字・英大文字（I、O、Q を除く）にしてください。"
        );
        problems.add(0, 0, ITEM, message);
    }
    number
}

fn service_type(text: &str, problems: &mut Problems) -> Option<ServiceType> {
    let service = text.parse().ok();
    if service.is_none() {
        let message = "送信先のサービス種類コードが正しくありません。2 桁の半角数字・英大文字にしてください。";
        problems.add(0, 0, ITEM, message);
    }
    service
}

/// `20191025200201` → `2019-10-25T20:02:01`.
fn timestamp(text: &str, problems: &mut Problems) -> Option<String> {
    let form = format_description!("[year][month][day][hour][minute][second]");
    let digits = text.len() == 14 && text.bytes().all(|byte| byte.is_ascii_digit());
    let made_at = digits.then(|| time::PrimitiveDateTime::parse(text, form).ok()).flatten();
    if made_at.is_none() {
        let message =
            "末尾の日時が正しくありません。西暦の年月日時分秒を 14 桁の数字にしてください。";
        problems.add(0, 0, ITEM, message);
    }
    let printed = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    made_at?.format(printed).ok()
}
