//! ケアプランデータ連携標準仕様 4.1: reads the CSV files 居宅サービス計画1表 (`UP1KYO`) and 2表 (`UP2KYO`).
//!
//! ```text
//!  file name ─► file_name ─┐
//!  bytes ─► records (MS932, quotes, lines) ─► columns (one table a kind) ─► plans, one a (person,
//!  date)
//! ```
//!
//! Bytes in, [`CarePlanFile`] or [`Refusal`] out: no I/O and no clock. A file is taken whole or not
//! at all, and a refusal names every problem found (up to [`PROBLEMS_MAX`]) with its line, column
//! and what to do. The further kinds of the standard (`UP3KYO`, `UPHOSOKU`, `UPPLAN`, …) belong
//! here as further tables in `columns`.
//!
//! Invariants: only [`parse`] makes a [`CarePlanFile`]; every identifier in it went through
//! `policies::identity`; a free text or a personal number is never repeated in a message.

use std::collections::HashMap;
use std::fmt;

use policies::identity::{InsuredKey, OfficeNumber, ServiceType};
use serde::Serialize;
use serde_json::{Map, Value};

mod file_name;
mod records;
mod columns;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod properties;

use columns::Column;
use records::Record;

/// The longest file that is read, in bytes: a little less than the gateway lets through, so that
/// the refusal comes from here and says what to do.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;

/// The most rows that one file may hold.
pub const ROWS_MAX: usize = 5_000;

/// The most problems that one refusal lists one by one.
pub const PROBLEMS_MAX: usize = 100;

/// CSVバージョン of the standard's version 4.1, column 1 of every row.
pub const CSV_VERSION: &str = "202407";

/// A kind of file, as the first part of its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum FileKind {
    /// 居宅サービス計画1表: one row a plan.
    #[serde(rename = "UP1KYO")]
    Up1Kyo,
    /// 居宅サービス計画2表: one row a service of a plan.
    #[serde(rename = "UP2KYO")]
    Up2Kyo,
}

impl FileKind {
    /// The first part of the file name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up1Kyo => "UP1KYO",
            Self::Up2Kyo => "UP2KYO",
        }
    }

    /// The number of the plan's table (第1表, 第2表) that the file carries.
    pub const fn table_number(self) -> &'static str {
        match self {
            Self::Up1Kyo => "1",
            Self::Up2Kyo => "2",
        }
    }

    const fn columns(self) -> &'static [Column] {
        match self {
            Self::Up1Kyo => columns::UP1KYO,
            Self::Up2Kyo => columns::UP2KYO,
        }
    }
}

/// A file that was found right in every row.
#[derive(Debug, Clone, PartialEq)]
pub struct CarePlanFile {
    /// Which table the file carries.
    pub kind: FileKind,
    /// 送信元: the office that made the plans, from the file name and 第1表 column 13.
    pub sender: OfficeNumber,
    /// 送信先: the office that the file is for, from the file name.
    pub receiver: OfficeNumber,
    /// サービス種類 of the receiver, from the file name.
    pub receiver_service: ServiceType,
    /// When the sender made the file (Japan time, `YYYY-MM-DDTHH:MM:SS`), from the file name.
    pub made_at: String,
    /// How many rows the file holds.
    pub rows: usize,
    plans: Vec<Plan>,
}

impl CarePlanFile {
    /// The plans, in the order in which they first appear: one for each person and
    /// 居宅サービス計画作成（変更）日.
    pub fn plans(&self) -> Vec<Plan> {
        self.plans.clone()
    }
}

/// One table of one person's plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The person.
    pub insured: InsuredKey,
    /// 居宅サービス計画作成（変更）日, `YYYY-MM-DD`.
    pub plan_date: String,
    /// 第1表: one object with the columns' keys. 第2表: `{"created_on", "rows": [object, …]}`, the
    /// rows in the order of the file. Dates are `YYYY-MM-DD`, codes as in the standard, numbers are
    /// numbers, and empty columns are left out.
    pub table: Value,
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line of the file on which the row starts, from 1, line breaks inside quotes counted;
    /// for a character, the line on which it stands. 0: the file as a whole.
    pub line: u32,
    /// The column of the row, from 1. 0: the whole row or file.
    pub column: u32,
    /// The column's name in the standard, or which part of the file is meant.
    pub item: String,
    /// What is wrong and what to do, in Japanese.
    pub message_ja: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}行目 ", self.line)?;
        }
        if self.column > 0 {
            write!(f, "{}列目 ", self.column)?;
        }
        if !self.item.is_empty() {
            write!(f, "「{}」: ", self.item)?;
        }
        f.write_str(&self.message_ja)
    }
}

/// Why a file is not taken. Nothing of it may be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("the care-plan file is refused: {}", self.first())]
pub struct Refusal {
    /// The problems in the order of the file, at most [`PROBLEMS_MAX`], and where there are more a
    /// last one that says how many.
    pub problems: Vec<Problem>,
}

impl Refusal {
    fn first(&self) -> String {
        self.problems.first().map(Problem::to_string).unwrap_or_default()
    }

    /// One sentence for people.
    pub fn message_ja(&self) -> String {
        "ファイルに誤りがあるため、受け付けられません。内容は保存していません。\
         誤りの箇所を直して、もう一度送信してください。"
            .to_owned()
    }
}

/// Problems as they are found; beyond [`PROBLEMS_MAX`] they are only counted.
#[derive(Debug, Default)]
struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    fn add(&mut self, line: u32, column: u32, item: &str, message_ja: impl Into<String>) {
        if self.list.len() < PROBLEMS_MAX {
            let (item, message_ja) = (item.to_owned(), message_ja.into());
            self.list.push(Problem { line, column, item, message_ja });
        } else {
            self.more += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn into_refusal(mut self) -> Refusal {
        self.list.sort_by_key(|problem| (problem.line, problem.column));
        if self.more > 0 {
            self.list.push(Problem {
                line: 0,
                column: 0,
                item: "ファイル全体".to_owned(),
                message_ja: format!(
                    "ほかに {} 件の誤りがあります。上の誤りを直してから、もう一度送信してください。",
                    self.more
                ),
            });
        }
        Refusal { problems: self.list }
    }
}

/// Reads one file. `file_name` is the name without a folder.
///
/// # Errors
/// [`Refusal`] with every problem found, when anything at all is wrong with name or content.
pub fn parse(file_name: &str, bytes: &[u8]) -> Result<CarePlanFile, Refusal> {
    let mut problems = Problems::default();
    let name = file_name::parse(file_name, &mut problems);
    if bytes.len() > FILE_BYTES_MAX {
        let message = format!(
            "ファイルが大きすぎます（上限 {} KB）。分割して送信してください。",
            FILE_BYTES_MAX / 1024
        );
        problems.add(0, 0, "ファイル全体", message);
        return Err(problems.into_refusal());
    }
    let Some(kind) = file_name::kind(file_name) else { return Err(problems.into_refusal()) };
    let records = records::split(bytes, kind.columns(), &mut problems);
    let sender = name.as_ref().map(|name| name.sender);
    let plans = plans(kind, sender, &records, &mut problems);
    match name {
        Some(name) if problems.is_empty() => Ok(CarePlanFile {
            kind,
            sender: name.sender,
            receiver: name.receiver,
            receiver_service: name.receiver_service,
            made_at: name.made_at,
            rows: records.len(),
            plans,
        }),
        Some(_) | None => Err(problems.into_refusal()),
    }
}

/// One row whose columns were read and found right.
struct Row {
    line: u32,
    insured: InsuredKey,
    plan_date: String,
    values: Map<String, Value>,
}

fn plans(
    kind: FileKind,
    sender: Option<OfficeNumber>,
    records: &[Record],
    problems: &mut Problems,
) -> Vec<Plan> {
    let mut plans: Vec<Plan> = Vec::new();
    let mut first_lines: HashMap<(InsuredKey, String), (usize, u32)> = HashMap::new();
    for record in records {
        let Some(row) = read_row(kind, sender, record, problems) else { continue };
        let key = (row.insured, row.plan_date.clone());
        let first = first_lines.get(&key).copied();
        match (kind, first.and_then(|(at, line)| Some((plans.get_mut(at)?, line)))) {
            (FileKind::Up1Kyo, Some((_, line))) => duplicate_plan(&row, line, problems),
            (FileKind::Up2Kyo, Some((plan, line))) => append_row(plan, line, row, problems),
            (FileKind::Up1Kyo | FileKind::Up2Kyo, None) => {
                first_lines.insert(key, (plans.len(), row.line));
                plans.push(new_plan(kind, row));
            }
        }
    }
    plans
}

/// Checks one row; `None` when a problem was reported that leaves no row to keep.
fn read_row(
    kind: FileKind,
    sender: Option<OfficeNumber>,
    record: &Record,
    problems: &mut Problems,
) -> Option<Row> {
    let table = kind.columns();
    if record.broken {
        return None;
    }
    if record.columns != table.len() {
        let message = format!(
            "列の数が {} です。{} は {} 列です。カンマの過不足と、引用符（\"）の閉じ忘れを確認してください。",
            record.columns,
            kind.as_str(),
            table.len()
        );
        problems.add(record.line, 0, "行全体", message);
        return None;
    }
    let mut values = Map::new();
    let mut right = true;
    for (number, (column, field)) in (1u32..).zip(table.iter().zip(&record.fields)) {
        match column.read(field) {
            Ok(Some(value)) => drop(values.insert(column.key.to_owned(), value)),
            Ok(None) => {}
            Err(message) => {
                right = false;
                problems.add(record.line, number, column.name, message);
            }
        }
    }
    check_together(kind, sender, record.line, &values, problems);
    if right { to_row(record.line, values) } else { None }
}

/// Rules about more than one column, or about a column and the file name.
fn check_together(
    kind: FileKind,
    sender: Option<OfficeNumber>,
    line: u32,
    values: &Map<String, Value>,
    problems: &mut Problems,
) {
    let text = |key: &str| values.get(key).and_then(Value::as_str);
    if kind != FileKind::Up1Kyo {
        return;
    }
    let office = text("planning_office_number");
    if let Some((sender, office)) = sender.zip(office).filter(|(s, o)| s.as_str() != *o) {
        let message = format!(
            "介護支援事業者コード {office} が、ファイル名の送信元事業所番号 {sender} と異なります。\
             計画を作成した事業所から送信してください。"
        );
        problems.add(line, 13, "介護支援事業者コード", message);
    }
    let period = text("certification_valid_from").zip(text("certification_valid_until"));
    if period.is_some_and(|(from, until)| from > until) {
        let message = "認定有効期間の終了日が開始日より前です。日付を確認してください。";
        problems.add(line, 20, "認定有効期間終了日", message);
    }
}

/// Takes the key of the plan out of the checked values.
fn to_row(line: u32, mut values: Map<String, Value>) -> Option<Row> {
    let mut take = |key: &str| match values.remove(key) {
        Some(Value::String(text)) => Some(text),
        Some(_) | None => None,
    };
    take("csv_version")?;
    let insurer = take("insurer_number")?.parse().ok()?;
    let number = take("insured_number")?.parse().ok()?;
    let plan_date = take("plan_date")?;
    Some(Row { line, insured: InsuredKey { insurer, number }, plan_date, values })
}

fn new_plan(kind: FileKind, mut row: Row) -> Plan {
    let table = match kind {
        FileKind::Up1Kyo => Value::Object(row.values),
        FileKind::Up2Kyo => {
            let created_on = row.values.remove("created_on").unwrap_or(Value::Null);
            serde_json::json!({ "created_on": created_on, "rows": [Value::Object(row.values)] })
        }
    };
    Plan { insured: row.insured, plan_date: row.plan_date, table }
}

/// Adds a row of 第2表 to its plan; `first` is the line of the plan's first row.
fn append_row(plan: &mut Plan, first: u32, mut row: Row, problems: &mut Problems) {
    let created_on = row.values.remove("created_on");
    if created_on.as_ref() != plan.table.get("created_on") {
        let message = format!(
            "同じ計画の {first} 行目と作成年月日が異なります。一つの計画では同じ日付にしてください。"
        );
        problems.add(row.line, 4, "居宅計画書作成年月日", message);
    }
    if let Some(rows) = plan.table.get_mut("rows").and_then(Value::as_array_mut) {
        rows.push(Value::Object(row.values));
    }
}

fn duplicate_plan(row: &Row, first: u32, problems: &mut Problems) {
    let message = format!(
        "{first} 行目と同じ被保険者・同じ作成（変更）日の計画です。一つの計画は 1 行だけにしてください。"
    );
    problems.add(row.line, 14, "居宅サービス計画作成（変更）日", message);
}
