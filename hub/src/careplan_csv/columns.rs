//! The columns of each kind of file as data, and what one column may hold.
//!
//! Source: ケアプランデータ連携標準仕様 4.1, annex CSVファイルレイアウト定義書. The order of a table is the
//! order of the columns. Keys are stable: they are stored with the documents.

use policies::identity::{InsuredNumber, InsurerNumber, OfficeNumber};
use serde_json::Value;
use time::macros::format_description;

use super::CSV_VERSION;
use super::records::Field;

/// One column.
pub(super) struct Column {
    /// The item's name in the standard.
    pub(super) name: &'static str,
    /// Its key in the stored table.
    pub(super) key: &'static str,
    required: bool,
    form: Form,
}

/// What a column may hold.
enum Form {
    Version,
    Insurer,
    Insured,
    Office,
    /// `YYYYMMDD`.
    Date,
    /// Three digits, a hyphen, four digits.
    PostCode,
    /// 1 to 99.
    Number,
    /// One of the codes (code, meaning).
    Code(&'static [(&'static str, &'static str)]),
    /// Half-width letters and digits, at most 10.
    Vendor,
    /// Any text.
    Text,
    /// Not used by the standard: looked at by nobody, not kept.
    Unused,
}

const fn must(name: &'static str, key: &'static str, form: Form) -> Column {
    Column { name, key, required: true, form }
}

const fn may(name: &'static str, key: &'static str, form: Form) -> Column {
    Column { name, key, required: false, form }
}

const PLAN_CLASSES: &[(&str, &str)] = &[
    ("11", "初回"),
    ("12", "紹介"),
    ("21", "継続"),
    ("51", "初回＆紹介"),
    ("52", "初回＆継続"),
    ("53", "紹介＆継続"),
    ("54", "初回＆紹介＆継続"),
];

const CERTIFICATION_STATES: &[(&str, &str)] = &[("1", "申請中"), ("2", "認定済")];

const CARE_LEVELS: &[(&str, &str)] = &[
    ("06", "事業対象者"),
    ("12", "要支援1"),
    ("13", "要支援2"),
    ("21", "要介護1"),
    ("22", "要介護2"),
    ("23", "要介護3"),
    ("24", "要介護4"),
    ("25", "要介護5"),
];

const HOUSEKEEPING_REASONS: &[(&str, &str)] =
    &[("1", "一人暮らし"), ("2", "家族等が障害・疾病等"), ("3", "その他")];

const COVERED: &[(&str, &str)] = &[("Y", "対象"), ("N", "対象外")];

/// 居宅サービス計画1表, 28 columns.
pub(super) const UP1KYO: &[Column] = &[
    must("CSVバージョン", "csv_version", Form::Version),
    must("保険者番号", "insurer_number", Form::Insurer),
    must("被保険者番号", "insured_number", Form::Insured),
    must("作成年月日", "created_on", Form::Date),
    may("利用者郵便番号", "person_postcode", Form::PostCode),
    may("利用者住所１", "person_address_1", Form::Text),
    may("利用者住所２", "person_address_2", Form::Text),
    must("居宅サービス計画作成者", "planner_name", Form::Text),
    must("介護支援事業者名", "planning_office_name", Form::Text),
    may("介護支援事業者郵便番号", "planning_office_postcode", Form::PostCode),
    may("介護支援事業者住所１", "planning_office_address_1", Form::Text),
    may("介護支援事業者住所２", "planning_office_address_2", Form::Text),
    must("介護支援事業者コード", "planning_office_number", Form::Office),
    must("居宅サービス計画作成（変更）日", "plan_date", Form::Date),
    must("初回居宅サービス計画作成日", "first_plan_date", Form::Date),
    may("計画書区分", "plan_class", Form::Code(PLAN_CLASSES)),
    may("認定状況区分", "certification_state", Form::Code(CERTIFICATION_STATES)),
    may("認定日", "certified_on", Form::Date),
    may("認定有効期間開始日", "certification_valid_from", Form::Date),
    may("認定有効期間終了日", "certification_valid_until", Form::Date),
    may("要介護状態区分", "care_level", Form::Code(CARE_LEVELS)),
    may("利用者及び家族の生活に対する意向を踏まえた課題分析の結果", "needs_analysis", Form::Text),
    may("介護認定審査会の意見及びサービスの種類の指定", "panel_opinion", Form::Text),
    may("総合的な援助の方針", "support_policy", Form::Text),
    may("生活援助中心型の算定理由", "housekeeping_reason", Form::Code(HOUSEKEEPING_REASONS)),
    may("その他理由", "housekeeping_other_reason", Form::Text),
    may("更新業者コード", "updated_by_vendor", Form::Vendor),
    may("識別子", "marker", Form::Unused),
];

/// 居宅サービス計画2表, 22 columns.
pub(super) const UP2KYO: &[Column] = &[
    must("CSVバージョン", "csv_version", Form::Version),
    must("保険者番号", "insurer_number", Form::Insurer),
    must("被保険者番号", "insured_number", Form::Insured),
    must("居宅計画書作成年月日", "created_on", Form::Date),
    must("居宅サービス計画作成（変更）日", "plan_date", Form::Date),
    may("課題ＮＯ", "need_no", Form::Number),
    may("課題", "need", Form::Text),
    may("援助目標ＮＯ", "goal_no", Form::Number),
    may("長期目標", "long_term_goal", Form::Text),
    may("短期目標", "short_term_goal", Form::Text),
    may("長期期間", "long_term_period", Form::Text),
    may("短期期間", "short_term_period", Form::Text),
    may("援助内容ＮＯ", "service_no", Form::Number),
    may("サービス内容", "service_content", Form::Text),
    may("保険対象区分", "insurance_covered", Form::Code(COVERED)),
    may("サービス種別", "service_kind", Form::Text),
    may("サービス事業者コード", "provider_office_number", Form::Office),
    may("サービス事業所名", "provider_office_name", Form::Text),
    may("頻度", "frequency", Form::Text),
    may("実施期間", "period", Form::Text),
    may("更新業者コード", "updated_by_vendor", Form::Vendor),
    may("識別子", "marker", Form::Unused),
];

impl Column {
    /// The value to keep: `None` for an empty column, the message for a wrong one. A column with a
    /// wrong character was already reported and is passed over.
    pub(super) fn read(&self, field: &Field) -> Result<Option<Value>, String> {
        let text = field.text.as_str();
        if field.damaged {
            return Ok(None);
        }
        if text.trim().is_empty() {
            return if self.required {
                Err("必須の項目が空です。値を入れてください。".to_owned())
            } else {
                Ok(None)
            };
        }
        self.form.read(text)
    }
}

impl Form {
    fn read(&self, text: &str) -> Result<Option<Value>, String> {
        let kept = || Ok(Some(Value::from(text)));
        match self {
            Self::Version if text == CSV_VERSION => kept(),
            Self::Version => Err(format!(
                "CSVバージョンが {CSV_VERSION} ではありません。\
                 標準仕様 4.1（{CSV_VERSION}）のファイルを出力してください。"
            )),
            Self::Insurer if text.parse::<InsurerNumber>().is_ok() => kept(),
            Self::Insurer => Err("保険者番号は半角数字 6 桁にしてください。".to_owned()),
            Self::Insured if text.parse::<InsuredNumber>().is_ok() => kept(),
            Self::Insured => Err(
                "被保険者番号は半角数字 10 桁（生活保護単独の方は H と数字 9 桁）にしてください。"
                    .to_owned(),
            ),
            Self::Office if text.parse::<OfficeNumber>().is_ok() => kept(),
            Self::Office => {
                Err("事業所番号は 10 桁の半角数字・英大文字（I、O、Q を除く）にしてください。"
                    .to_owned())
            }
            Self::Date => date(text).map(Some),
            Self::PostCode if is_post_code(text) => kept(),
            Self::PostCode => Err("郵便番号は半角で「123-4567」の形式にしてください。".to_owned()),
            Self::Number => number(text).map(Some),
            Self::Code(codes) if codes.iter().any(|(code, _)| *code == text) => kept(),
            Self::Code(codes) => {
                Err(format!("コードは {} のいずれかにしてください。", list(codes)))
            }
            Self::Vendor if is_vendor(text) => kept(),
            Self::Vendor => Err("10 文字以内の半角英数字にしてください。".to_owned()),
            Self::Text => kept(),
            Self::Unused => Ok(None),
        }
    }
}

/// `20260401` → `2026-04-01`.
fn date(text: &str) -> Result<Value, String> {
    let form = format_description!("[year][month][day]");
    let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
    let date = digits.then(|| time::Date::parse(text, form).ok()).flatten();
    let date = date.filter(|date| date.year() >= 1900);
    let date = date.and_then(|date| date.format(format_description!("[year]-[month]-[day]")).ok());
    date.map(Value::from).ok_or_else(|| {
        "日付が正しくありません。西暦の年月日を 8 桁の半角数字（例: 20260401）にしてください。"
            .to_owned()
    })
}

fn number(text: &str) -> Result<Value, String> {
    let digits = text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u8>().ok().filter(|number| digits && (1..=99).contains(number));
    number.map(Value::from).ok_or_else(|| "1 から 99 までの半角数字にしてください。".to_owned())
}

fn is_post_code(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| if at == 3 { byte == b'-' } else { byte.is_ascii_digit() };
    text.len() == 8 && text.bytes().enumerate().all(fits)
}

fn is_vendor(text: &str) -> bool {
    text.len() <= 10 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn list(codes: &[(&str, &str)]) -> String {
    let named: Vec<String> =
        codes.iter().map(|(code, meaning)| format!("{code}（{meaning}）")).collect();
    named.join("、")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_columns_of_the_standard_and_keys_of_their_own() {
        for (table, columns, required) in [(UP1KYO, 28, 9), (UP2KYO, 22, 5)] {
            assert_eq!(table.len(), columns);
            assert_eq!(table.iter().filter(|column| column.required).count(), required);
            let mut keys: Vec<_> = table.iter().map(|column| column.key).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), columns);
        }
        assert_eq!(UP1KYO[12].name, "介護支援事業者コード");
        assert_eq!(UP1KYO[13].key, "plan_date");
        assert_eq!(UP2KYO[4].key, "plan_date");
    }
}
