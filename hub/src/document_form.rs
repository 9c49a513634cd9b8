//! The form of each 様式: which fields its JSON must have at the top, and what they hold.
//!
//! The lists are short on purpose: they hold what other parts of the hub and the reader's screen
//! rely on. The object is stored as it came, byte for byte, so that no number changes its value on
//! the way; an object that has a key twice, which two readers may read in two ways, is refused. The
//! complete item definitions of the ministry's layouts belong here, kind by kind.

use axum::http::StatusCode;
use policies::document::DocumentKind;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::clock::Day;
use crate::refusal::Refusal;

mod duplicate_keys;

/// What a field must hold.
#[derive(Clone, Copy)]
enum Form {
    /// Anything but null, an empty text, list or object.
    Filled,
    /// A text that is not empty.
    Text,
    /// `YYYY-MM-DD`.
    Day,
    /// 1, 2 or 3 (割).
    Ratio,
    /// A whole number of yen, not negative.
    Yen,
    /// An object that is not empty.
    Object,
    /// A list; it may be empty.
    List,
    /// A decimal id; the field may be left out.
    OptionalId,
}

/// A document as it came, and what the hub itself reads in it.
#[derive(Debug)]
pub(crate) struct Document {
    /// The JSON object, unchanged.
    pub(crate) text: Box<RawValue>,
    /// `created_on` at the top, where there is one.
    pub(crate) created_on: Option<String>,
    /// `request_id` at the top, where there is one.
    pub(crate) request_id: Option<i64>,
}

/// The document in `bytes`, if it is a JSON object with the fields of `kind`.
///
/// # Errors
/// `document_invalid` with every problem.
pub(crate) fn parse(kind: DocumentKind, bytes: &[u8]) -> Result<Document, Refusal> {
    let unreadable = |error: serde_json::Error| {
        invalid(kind, vec![problem("", &format!("JSON として読めません（{error}）。"))])
    };
    let value: Value = serde_json::from_slice(bytes).map_err(unreadable)?;
    let text: Box<RawValue> = serde_json::from_slice(bytes).map_err(unreadable)?;
    let doubled = duplicate_keys::find(text.get()).map_err(unreadable)?;
    let Value::Object(fields) = &value else {
        return Err(invalid(kind, vec![problem("", "JSON のオブジェクトで送信してください。")]));
    };
    let problems: Vec<Value> = fields_of(kind)
        .iter()
        .filter_map(|(name, form)| check(fields, name, *form))
        .chain(period(fields))
        .chain(doubled.iter().map(|key| problem(key, "同じ項目が二つ以上あります。")))
        .collect();
    if !problems.is_empty() {
        return Err(invalid(kind, problems));
    }
    let created_on = fields.get("created_on").and_then(Value::as_str).map(str::to_owned);
    let request_id = fields.get("request_id").and_then(Value::as_i64);
    Ok(Document { text, created_on, request_id })
}

const fn fields_of(kind: DocumentKind) -> &'static [(&'static str, Form)] {
    match kind {
        DocumentKind::InsuredCard => {
            &[("valid_from", Form::Day), ("valid_until", Form::Day), ("care_level", Form::Text)]
        }
        DocumentKind::BurdenRatio => &[("ratio", Form::Ratio), ("valid_from", Form::Day)],
        DocumentKind::BurdenLimit => {
            &[("stage", Form::Filled), ("valid_from", Form::Day), ("valid_until", Form::Day)]
        }
        DocumentKind::CertificationSurvey => &[
            ("surveyed_on", Form::Day),
            ("overview", Form::Filled),
            ("items", Form::Filled),
            ("remarks", Form::Filled),
        ],
        DocumentKind::PhysicianOpinion => &[
            ("request_id", Form::OptionalId),
            ("written_on", Form::Day),
            ("institution", Form::Filled),
            ("opinion", Form::Filled),
        ],
        DocumentKind::CertificationApplication => {
            &[("applied_on", Form::Day), ("kind", Form::Text)]
        }
        DocumentKind::HomeCarePlan | DocumentKind::FacilityCarePlan => {
            &[("created_on", Form::Day), ("tables", Form::Object)]
        }
        DocumentKind::LifeFeedback => &[("period", Form::Filled), ("measures", Form::Filled)],
        DocumentKind::HousingEquipment => {
            &[("ceiling_yen", Form::Yen), ("used_yen", Form::Yen), ("items", Form::List)]
        }
        DocumentKind::BenefitManagement | DocumentKind::BenefitClaims => &[],
    }
}

fn check(fields: &Map<String, Value>, name: &str, form: Form) -> Option<Value> {
    let value = match (fields.get(name), form) {
        (None, Form::OptionalId) => return None,
        (None | Some(Value::Null), _) => return Some(problem(name, "この項目は必須です。")),
        (Some(value), _) => value,
    };
    let text = value.as_str().unwrap_or("");
    let (right, expected) = match form {
        Form::Filled => (is_filled(value), "内容を入力してください。"),
        Form::Text => (!text.trim().is_empty(), "文字列で入力してください。"),
        Form::Day => (Day::is_day(text), "実在する日付を YYYY-MM-DD の形で入力してください。"),
        Form::Ratio => (
            value.as_u64().is_some_and(|ratio| (1..=3).contains(&ratio)),
            "負担割合を 1、2、3 のいずれかの数値で入力してください。",
        ),
        Form::Yen => (value.is_u64(), "金額（円）を 0 以上の整数で入力してください。"),
        Form::Object => (
            value.as_object().is_some_and(|object| !object.is_empty()),
            "空でないオブジェクトで入力してください。",
        ),
        Form::List => (value.is_array(), "一覧（配列）で入力してください。"),
        Form::OptionalId => (value.is_u64(), "依頼番号を整数で入力してください。"),
    };
    if right { None } else { Some(problem(name, expected)) }
}

fn is_filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn period(fields: &Map<String, Value>) -> Option<Value> {
    let day = |name: &str| fields.get(name).and_then(Value::as_str).filter(|day| Day::is_day(day));
    let (from, until) = (day("valid_from")?, day("valid_until")?);
    if until < from {
        return Some(problem("valid_until", "有効期間の終了日が開始日より前になっています。"));
    }
    None
}

fn problem(field: &str, message_ja: &str) -> Value {
    json!({ "field": field, "message_ja": message_ja })
}

fn invalid(kind: DocumentKind, problems: Vec<Value>) -> Refusal {
    Refusal::coded(
        StatusCode::UNPROCESSABLE_ENTITY,
        "document_invalid",
        format!("the document is not a complete `{kind}`: see problems; nothing was stored"),
        format!("{}の内容に誤りがあります。保存していません。", kind.ja()),
    )
    .with("problems", Value::Array(problems))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named_at_once() {
        let body = br#"{"valid_from":"2026-02-30","care_level":"  "}"#;
        let refusal = parse(DocumentKind::InsuredCard, body).unwrap_err();
        let text = format!("{refusal:?}");
        for field in ["valid_from", "valid_until", "care_level"] {
            assert!(text.contains(field), "{text}");
        }
    }

    #[test]
    fn forms_accept_what_they_describe() {
        let complete = [
            (
                DocumentKind::InsuredCard,
                r#"{"valid_from":"2026-04-01","valid_until":"2027-03-31","care_level":"22"}"#,
            ),
            (DocumentKind::BurdenRatio, r#"{"ratio":1,"valid_from":"2026-08-01"}"#),
            (
                DocumentKind::PhysicianOpinion,
                r#"{"written_on":"2026-04-01","institution":"x","opinion":"y"}"#,
            ),
            (DocumentKind::HousingEquipment, r#"{"ceiling_yen":200000,"used_yen":0,"items":[]}"#),
        ];
        for (kind, body) in complete {
            assert!(parse(kind, body.as_bytes()).is_ok(), "{kind}");
        }
    }

    #[test]
    fn a_document_is_kept_byte_for_byte() {
        let text = r#"{ "ratio":1, "valid_from":"2026-08-01","big":12345678901234567890123,
            "exact":1.10,"small":1E-7}"#;
        let body = format!("  {text}\n");
        let document = parse(DocumentKind::BurdenRatio, body.as_bytes()).unwrap();
        assert_eq!(document.text.get(), text);
    }

    #[test]
    fn doubled_keys_are_named_wherever_they_stand() {
        let body = br#"{"ratio":1,"valid_from":"2026-08-01","a":[{"x":1},{"b":1,"\u0062":2}],
            "ratio":2}"#;
        let refusal = format!("{:?}", parse(DocumentKind::BurdenRatio, body).unwrap_err());
        assert!(refusal.contains("document_invalid"), "{refusal}");
        assert!(refusal.contains("\"a.1.b\"") && refusal.contains("\"ratio\""), "{refusal}");
    }

    #[test]
    fn wrong_values_are_refused() {
        let wrong = [
            (DocumentKind::BurdenRatio, r#"{"ratio":4,"valid_from":"2026-08-01"}"#),
            (DocumentKind::BurdenRatio, r#"{"ratio":"1","valid_from":"2026-08-01"}"#),
            (DocumentKind::HousingEquipment, r#"{"ceiling_yen":-1,"used_yen":0,"items":[]}"#),
            (DocumentKind::HomeCarePlan, r#"{"created_on":"2026-08-01","tables":{}}"#),
            (
                DocumentKind::BurdenLimit,
                r#"{"stage":2,"valid_from":"2026-08-02","valid_until":"2026-08-01"}"#,
            ),
            (DocumentKind::LifeFeedback, "[]"),
            (DocumentKind::LifeFeedback, "{"),
        ];
        for (kind, body) in wrong {
            assert_eq!(
                parse(kind, body.as_bytes()).unwrap_err().code(),
                "document_invalid",
                "{body}"
            );
        }
    }
}
