//! Tests of the whole parser: right files, and one wrong thing at a time.

use encoding_rs::SHIFT_JIS;

use super::*;

pub(super) const NAME_1: &str = "UP1KYO_1370000001_43_1370000019_15_20260401090000.CSV";
pub(super) const NAME_2: &str = "UP2KYO_1370000001_43_1370000019_15_20260401090000.CSV";

/// A right row of 第1表 as column texts.
pub(super) fn row_1(number: &str) -> Vec<String> {
    let mut row = vec![String::new(); 28];
    for (column, text) in [
        (1, "202407"),
        (2, "131016"),
        (3, number),
        (4, "20260401"),
        (5, "100-0001"),
        (8, "関所 花子"),
        (9, "見本居宅介護支援事業所"),
        (13, "1370000001"),
        (14, "20260402"),
        (15, "20250401"),
        (16, "21"),
        (17, "2"),
        (18, "20260315"),
        (19, "20260401"),
        (20, "20280331"),
        (21, "22"),
        (22, "自宅で、\r\n「これからも」暮らしたい。①"),
        (24, "ﾃﾞｲの利用を\"続ける\"。"),
        (27, "ABC123"),
    ] {
        row[column - 1] = text.to_owned();
    }
    row
}

/// A right row of 第2表.
fn row_2(number: &str, service_no: &str) -> Vec<String> {
    let mut row = vec![String::new(); 22];
    for (column, text) in [
        (1, "202407"),
        (2, "131016"),
        (3, number),
        (4, "20260401"),
        (5, "20260402"),
        (6, "1"),
        (7, "一人で入浴できるようになりたい"),
        (8, "1"),
        (9, "自宅で入浴する"),
        (13, service_no),
        (14, "入浴の介助"),
        (15, "Y"),
        (17, "1370000019"),
        (19, "週 2 回"),
    ] {
        row[column - 1] = text.to_owned();
    }
    row
}

pub(super) fn encode(rows: &[Vec<String>]) -> Vec<u8> {
    let quoted = |text: &String| match text.is_empty() {
        true => String::new(),
        false => format!("\"{}\"", text.replace('"', "\"\"")),
    };
    let line = |row: &Vec<String>| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\r\n";
    let text: String = rows.iter().map(line).collect();
    let (bytes, _, unmappable) = SHIFT_JIS.encode(&text);
    assert!(!unmappable);
    bytes.into_owned()
}

fn with(column: usize, text: &str) -> Vec<String> {
    let mut row = row_1("0000000001");
    row[column - 1] = text.to_owned();
    row
}

fn problems(name: &str, bytes: &[u8]) -> Vec<Problem> {
    parse(name, bytes).unwrap_err().problems
}

/// The one problem of a file that has exactly one.
fn problem(name: &str, bytes: &[u8]) -> Problem {
    let found = problems(name, bytes);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn a_right_first_table_is_read() {
    let file = parse(NAME_1, &encode(&[row_1("0000000001"), row_1("H000000002")])).unwrap();
    assert_eq!((file.kind, file.rows), (FileKind::Up1Kyo, 2));
    assert_eq!(file.sender.as_str(), "1370000001");
    assert_eq!(file.receiver.as_str(), "1370000019");
    assert_eq!(file.receiver_service.as_str(), "15");
    assert_eq!(file.made_at, "2026-04-01T09:00:00");
    let plans = file.plans();
    assert_eq!(plans.len(), 2);
    assert_eq!(plans[1].insured.to_string(), "131016/H000000002");
    assert_eq!(plans[0].plan_date, "2026-04-02");
    let table = &plans[0].table;
    assert_eq!(table["created_on"], "2026-04-01");
    assert_eq!(table["planner_name"], "関所 花子");
    assert_eq!(table["needs_analysis"], "自宅で、\r\n「これからも」暮らしたい。①");
    assert_eq!(table["support_policy"], "ﾃﾞｲの利用を\"続ける\"。");
    assert!(table.get("insured_number").is_none() && table.get("panel_opinion").is_none());
}

#[test]
fn a_right_second_table_is_grouped_by_plan_and_keeps_its_order() {
    let rows = [row_2("0000000001", "2"), row_2("0000000002", "1"), row_2("0000000001", "1")];
    let file = parse(NAME_2, &encode(&rows)).unwrap();
    let plans = file.plans();
    assert_eq!((plans.len(), file.rows), (2, 3));
    assert_eq!(plans[0].table["created_on"], "2026-04-01");
    let services: Vec<_> = plans[0].table["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["service_no"].clone())
        .collect();
    assert_eq!(services, [2, 1]);
    assert_eq!(plans[0].table["rows"][0]["insurance_covered"], "Y");
}

#[test]
fn a_last_row_without_line_end_and_columns_without_quotes_are_read() {
    let mut bytes = replace(&encode(&[row_1("0000000001")]), b"\"202407\"", b"202407");
    bytes.truncate(bytes.len() - 2);
    assert_eq!(parse(NAME_1, &bytes).unwrap().rows, 1);
}

#[test]
fn wrong_columns_are_named() {
    for (column, text, item, part) in [
        (1, "202304", "CSVバージョン", "202407"),
        (1, "", "CSVバージョン", "必須"),
        (2, "13101", "保険者番号", "6 桁"),
        (3, "00000００001", "被保険者番号", "10 桁"),
        (4, "20260230", "作成年月日", "日付"),
        (4, "20260２1", "作成年月日", "日付"),
        (5, "1000001", "利用者郵便番号", "123-4567"),
        (8, "　", "居宅サービス計画作成者", "必須"),
        (13, "137000000I", "介護支援事業者コード", "10 桁"),
        (14, "", "居宅サービス計画作成（変更）日", "必須"),
        (15, "00000000", "初回居宅サービス計画作成日", "日付"),
        (16, "13", "計画書区分", "11（初回）"),
        (17, "3", "認定状況区分", "2（認定済）"),
        (21, "11", "要介護状態区分", "25（要介護5）"),
        (25, "4", "生活援助中心型の算定理由", "3（その他）"),
        (27, "ABCDEFGHIJK", "更新業者コード", "10 文字"),
    ] {
        let found = problem(NAME_1, &encode(&[with(column, text)]));
        assert_eq!((found.line, found.column as usize), (1, column), "{found}");
        assert_eq!(found.item, item);
        assert!(found.message_ja.contains(part), "{found}");
    }
    for (column, text) in [(6, "0"), (6, "100"), (8, "+1"), (15, "y"), (17, "1370000o19")] {
        let mut row = row_2("0000000001", "1");
        row[column - 1] = text.to_owned();
        assert_eq!(problem(NAME_2, &encode(&[row])).column as usize, column);
    }
}

#[test]
fn a_sender_other_than_the_planning_office_is_refused() {
    let rows = [row_1("0000000002"), with(13, "1370000019")];
    let found = problem(NAME_1, &encode(&rows));
    // The first row holds one line break inside quotes, so that the second starts on line 3.
    assert_eq!((found.line, found.column), (3, 13));
    assert!(found.message_ja.contains("送信元事業所番号 1370000001"), "{found}");
}

#[test]
fn a_wrong_number_of_columns_is_told_with_the_row() {
    let mut short = row_1("0000000002");
    short.pop();
    let mut long = row_1("0000000003");
    long.push("余り".to_owned());
    let found = problems(NAME_1, &encode(&[row_1("0000000001"), short, long]));
    let places: Vec<_> = found.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(places, [(3, 0), (5, 0)]);
    assert!(found[0].message_ja.contains("列の数が 27 です。UP1KYO は 28 列"), "{}", found[0]);
}

#[test]
fn characters_outside_the_set_are_named_with_line_and_column() {
    let good = encode(&[row_1("0000000001")]);
    let name = SHIFT_JIS.encode("花子").0;
    for (wrong, part) in [
        (&b"\xF0\x40"[..], "外字があります（0xF040）"),
        (b"\xF9\xFC", "外字があります（0xF9FC）"),
        (b"\xFF", "バイト 0xFF"),
        (b"\x80", "バイト 0x80"),
        (b"\xA0", "バイト 0xA0"),
        (b"\x85\x40", "バイト 0x85"),
        (b"\x1B", "制御文字があります（0x1B）"),
        (b"\0", "制御文字があります（0x00）"),
    ] {
        let found = problems(NAME_1, &replace(&good, &name, wrong));
        assert_eq!((found[0].line, found[0].column), (1, 8), "{found:?}");
        assert!(found[0].message_ja.contains(part), "{}", found[0]);
        assert!(found[0].message_ja.contains("4 文字目"), "{}", found[0]);
        assert_eq!(found[0].item, "居宅サービス計画作成者");
    }
    // A lead byte before a quote does not swallow the quote.
    let found = problem(NAME_1, &replace(&good, &name, b"\x81"));
    assert_eq!(found.column, 8);
}

#[test]
fn a_character_after_a_line_break_inside_quotes_is_named_with_its_own_line() {
    let good = encode(&[row_1("0000000001")]);
    let found = problem(NAME_1, &replace(&good, &SHIFT_JIS.encode("①").0, b"\xF0\x41"));
    assert_eq!((found.line, found.column), (2, 22));
}

#[test]
fn the_characters_that_windows_adds_are_taken() {
    for text in ["①㈱Ⅳ～－∥￢", "纊髙﨑", "ｱｲｳﾞ｡", "\t~\\"] {
        let file = parse(NAME_1, &encode(&[with(24, text)])).unwrap();
        assert_eq!(file.plans()[0].table["support_policy"], text);
    }
}

#[test]
fn utf_8_is_told_as_such_and_once() {
    let rows = [row_1("0000000001")];
    let text = SHIFT_JIS.decode(&encode(&rows)).0.into_owned();
    let found = problem(NAME_1, text.as_bytes());
    assert!(found.message_ja.contains("UTF-8"), "{found}");
    let marked = [b"\xEF\xBB\xBF", text.as_bytes()].concat();
    assert_eq!(problem(NAME_1, &marked).item, "文字コード");
}

#[test]
fn wrong_quoting_is_told_once_a_row() {
    let good = encode(&[row_1("0000000001"), row_1("0000000002")]);
    for (from, to, line) in [
        (&b"\"\"\x91"[..], &b"\"\x91"[..], 1), // an inner quote that is not doubled
        (b"\"202407\"", b"20\"2407", 1),
        (b"\"202407\"", b"\"202407\"x", 1),
    ] {
        let found = problem(NAME_1, &replace(&good, from, to));
        assert_eq!((found.line, found.item.as_str()), (line, "引用符"), "{found}");
    }
    let open = replace(&good, b"\"0000000002\"", b"\"0000000002");
    let found = problems(NAME_1, &open);
    assert!(found.iter().all(|problem| problem.item == "引用符" && problem.line == 3), "{found:?}");
    let last = [encode(&[row_1("0000000001")]), b"\"202407".to_vec()].concat();
    let found = problem(NAME_1, &last);
    assert_eq!((found.line, found.column), (3, 1));
    assert!(found.message_ja.contains("閉じられていません"));
}

#[test]
fn line_ends_and_blank_lines() {
    let mut row = row_1("0000000001");
    row[21].clear();
    let good = encode(&[row]);
    for end in [&b"\n"[..], b"\r"] {
        let found = problem(NAME_1, &replace(&good, b"\r\n", end));
        assert_eq!((found.line, found.item.as_str()), (1, "改行コード"));
    }
    let found = problem(NAME_1, &[&good[..], b"\r\n"].concat());
    assert_eq!((found.line, found.item.as_str()), (2, "行全体"));
    assert!(problem(NAME_1, b"").message_ja.contains("データの行がありません"));
}

#[test]
fn the_same_plan_twice_is_refused() {
    let found = problem(NAME_1, &encode(&[row_1("0000000001"), row_1("0000000001")]));
    assert_eq!((found.line, found.column), (3, 14));
    assert!(found.message_ja.starts_with("1 行目と同じ"), "{found}");
    let mut other_date = row_1("0000000001");
    other_date[13] = "20260501".to_owned();
    let file = parse(NAME_1, &encode(&[row_1("0000000001"), other_date])).unwrap();
    assert_eq!(file.plans().len(), 2);
}

#[test]
fn rows_of_one_plan_that_contradict_each_other_are_refused() {
    let mut other = row_2("0000000001", "2");
    other[3] = "20260403".to_owned();
    let found = problem(NAME_2, &encode(&[row_2("0000000001", "1"), other]));
    assert_eq!((found.line, found.column), (2, 4));
    let mut reversed = with(19, "20280331");
    reversed[19] = "20260401".to_owned();
    assert_eq!(problem(NAME_1, &encode(&[reversed])).column, 20);
}

#[test]
fn file_names_follow_the_grammar() {
    let bytes = encode(&[row_1("0000000001")]);
    for (name, part) in [
        ("UP1KYO_1370000001_43_1370000019_15_20260401090000.csv", "形式"),
        ("UP1KYO_1370000001_43_1370000019_15.CSV", "形式"),
        ("UP1KYO_1370000001_43_1370000019_15_20260401090000_1.CSV", "形式"),
        ("PLAN.CSV", "形式"),
        ("", "形式"),
        ("UP3KYO_1370000001_43_1370000019_15_20260401090000.CSV", "UP3KYO のファイル"),
        ("UP1KYO_1370000001_15_1370000019_15_20260401090000.CSV", "43（居宅介護支援）"),
        ("UP1KYO_137000001_43_1370000019_15_20260401090000.CSV", "送信元事業所番号"),
        ("UP1KYO_1370000001_43_137000001O_15_20260401090000.CSV", "送信先事業所番号"),
        ("UP1KYO_1370000001_43_1370000019_1_20260401090000.CSV", "送信先のサービス種類"),
        ("UP1KYO_1370000001_43_1370000019_15_20260431090000.CSV", "日時"),
        ("UP1KYO_1370000001_43_1370000019_15_20260401240000.CSV", "日時"),
        ("UP1KYO_1370000001_43_1370000019_15_+0260401090000.CSV", "日時"),
    ] {
        let found = problem(name, &bytes);
        assert_eq!((found.line, found.item.as_str()), (0, "ファイル名"), "{name}");
        assert!(found.message_ja.contains(part), "{name}: {found}");
    }
}

#[test]
fn every_problem_is_told_at_once_up_to_the_limit() {
    let mut row = with(4, "20261301");
    row[13] = String::new();
    row[20] = "99".to_owned();
    let name = NAME_1.replace("_43_", "_11_");
    let columns: Vec<_> =
        problems(&name, &encode(std::slice::from_ref(&row))).iter().map(|p| p.column).collect();
    assert_eq!(columns, [0, 4, 14, 21]);
    let found = problems(NAME_1, &encode(&vec![row; 40]));
    assert_eq!(found.len(), PROBLEMS_MAX + 1);
    assert!(found[PROBLEMS_MAX].message_ja.contains("ほかに 20 件"), "{}", found[PROBLEMS_MAX]);
}

#[test]
fn limits_are_told() {
    let large = vec![b'a'; FILE_BYTES_MAX + 1];
    assert!(problem(NAME_1, &large).message_ja.contains("大きすぎます"));
    let many = problems(NAME_1, &b"a\r\n".repeat(ROWS_MAX + 1));
    assert!(many[0].message_ja.contains("行が多すぎます"), "{}", many[0]);
    assert_eq!(problem(NAME_1, &b",".repeat(100_000)).message_ja.matches("100001").count(), 1);
}

#[test]
fn messages_do_not_repeat_what_is_personal() {
    let mut row = with(3, "12345678901");
    row[6] = "番地".repeat(10);
    for problem in problems(NAME_1, &encode(&[row])) {
        assert!(
            !problem.message_ja.contains("12345678901") && !problem.message_ja.contains("番地")
        );
    }
}
