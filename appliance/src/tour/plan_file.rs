//! Care-plan files of ケアプランデータ連携標準仕様 4.1 as care software writes them: Shift-JIS (MS932),
//! every column in quotes, CRLF.

use encoding_rs::SHIFT_JIS;
use policies::identity::InsuredKey;
use time::{Duration, OffsetDateTime};

use super::certification::day;
use super::party::{CARE_MANAGEMENT, DAY_SERVICE};

/// What the 第1表 of the tour says about the aim of the support; the documents are searched for it.
pub(super) const SUPPORT_POLICY: &str = "住み慣れた自宅で、\"自分らしく\"暮らす（架空の記載）";

/// One row: the column texts.
pub(super) type Row = Vec<String>;

/// `UP1KYO_…` or `UP2KYO_…`, from the 居宅介護支援事業所 to the 通所介護 office.
pub(super) fn name(kind: &str) -> String {
    let japan = OffsetDateTime::now_utc() + Duration::hours(9);
    let (date, time) = (japan.date(), japan.time());
    format!(
        "{kind}_{}_43_{}_15_{:04}{:02}{:02}{:02}{:02}{:02}.CSV",
        CARE_MANAGEMENT.number,
        DAY_SERVICE.number,
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// A right row of 第1表 for a person; `office` is 介護支援事業者コード.
pub(super) fn first_table(person: InsuredKey, office: &str) -> Row {
    let today = day(0).replace('-', "");
    let (insurer, number) = (person.insurer.to_string(), person.number.to_string());
    let end = day(730).replace('-', "");
    row(
        28,
        &[
            (1, "202407"),
            (2, &insurer),
            (3, &number),
            (4, &today),
            (8, "関所 巡（架空）"),
            (9, CARE_MANAGEMENT.name),
            (13, office),
            (14, &today),
            (15, &today),
            (16, "11"),
            (17, "2"),
            (18, &today),
            (19, &today),
            (20, &end),
            (21, "22"),
            (22, "入浴を続けたい。\r\n買い物にも出かけたい。"),
            (24, SUPPORT_POLICY),
        ],
    )
}

/// A right row of 第2表 for a person: one service.
pub(super) fn second_table(person: InsuredKey, service_no: &str, content: &str) -> Row {
    let today = day(0).replace('-', "");
    let (insurer, number) = (person.insurer.to_string(), person.number.to_string());
    row(
        22,
        &[
            (1, "202407"),
            (2, &insurer),
            (3, &number),
            (4, &today),
            (5, &today),
            (6, "1"),
            (7, "一人で入浴できるようになりたい"),
            (8, "1"),
            (9, "自宅で入浴する"),
            (10, "浴槽をまたげるようになる"),
            (13, service_no),
            (14, content),
            (15, "Y"),
            (16, "通所介護"),
            (17, DAY_SERVICE.number),
            (18, DAY_SERVICE.name),
            (19, "週 2 回"),
        ],
    )
}

/// A row with texts in some of its columns (numbered from 1).
fn row(columns: usize, texts: &[(usize, &str)]) -> Row {
    let text = |column: usize| {
        let found = texts.iter().find(|(number, _)| *number == column);
        found.map(|(_, text)| (*text).to_owned()).unwrap_or_default()
    };
    (1..=columns).map(text).collect()
}

/// The bytes of a file.
pub(super) fn encode(rows: &[Row]) -> Vec<u8> {
    let quoted = |text: &String| format!("\"{}\"", text.replace('"', "\"\""));
    let line = |row: &Row| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\r\n";
    let text: String = rows.iter().map(line).collect();
    SHIFT_JIS.encode(&text).0.into_owned()
}

/// The file with the first `from` replaced by the two bytes of a gaiji (0xF040).
pub(super) fn with_gaiji(bytes: &[u8], from: &str) -> Vec<u8> {
    let from = SHIFT_JIS.encode(from).0;
    let at = bytes.windows(from.len()).position(|window| *window == *from);
    let (before, rest) = bytes.split_at(at.unwrap_or_default());
    [before, b"\xF0\x40", rest.get(from.len()..).unwrap_or_default()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_their_columns_and_gaiji_their_place() {
        let person: InsuredKey = "990010/0000000001".parse().unwrap();
        let first = first_table(person, CARE_MANAGEMENT.number);
        assert_eq!((first.len(), second_table(person, "1", "x").len()), (28, 22));
        assert_eq!(first[12], CARE_MANAGEMENT.number);
        let bytes = encode(&[first]);
        let changed = with_gaiji(&bytes, "巡");
        assert_eq!(changed.len(), bytes.len());
        assert!(changed.windows(2).any(|pair| pair == b"\xF0\x40"));
        assert!(bytes.ends_with(b"\r\n"));
    }

    #[test]
    fn names_follow_the_standard() {
        let name = name("UP1KYO");
        assert_eq!(name.len(), "UP1KYO_0300000100_43_0300000005_11_20191025200201.CSV".len());
    }
}
