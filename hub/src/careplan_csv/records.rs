//! From bytes to rows: strict MS932 and strict quoting, with the line of the file kept.
//!
//! One pass over the bytes. Commas, quotes and line ends are below 0x40 and therefore never the
//! second byte of an MS932 character, so that structure is still found after a wrong character.
//!
//! Invariants: every wrong byte is reported where it stands; a row whose quoting is wrong is marked
//! `broken` and not looked at again; what is kept in memory is bounded by the limits of the parent
//! module and [`COLUMNS_KEPT_MAX`].

use encoding_rs::SHIFT_JIS;

use super::columns::Column;
use super::{Problems, ROWS_MAX};

/// The most columns of a row that are kept; more are only counted.
const COLUMNS_KEPT_MAX: usize = 64;

/// One column of a row.
#[derive(Debug, Default)]
pub(super) struct Field {
    /// The text without its quotes, doubled quotes made single.
    pub(super) text: String,
    /// Whether a wrong character in it was already reported.
    pub(super) damaged: bool,
}

/// One row.
#[derive(Debug)]
pub(super) struct Record {
    /// The line of the file on which it starts, from 1.
    pub(super) line: u32,
    /// The columns, at most [`COLUMNS_KEPT_MAX`].
    pub(super) fields: Vec<Field>,
    /// How many columns there are.
    pub(super) columns: usize,
    /// Whether its quoting is wrong, which was already reported.
    pub(super) broken: bool,
}

/// Splits a file into rows. `table` only gives columns their names in problems.
pub(super) fn split(bytes: &[u8], table: &[Column], problems: &mut Problems) -> Vec<Record> {
    if is_utf8(bytes) {
        problems.add(
            0,
            0,
            "文字コード",
            "ファイルの文字コードが UTF-8 です。Shift-JIS（MS932）で保存し直してください。",
        );
        return Vec::new();
    }
    let mut splitter = Splitter::new(table, problems);
    let mut rest = bytes;
    while !rest.is_empty() && splitter.records.len() < ROWS_MAX {
        let (token, length) = next_token(rest);
        splitter.take(token);
        rest = rest.get(length..).unwrap_or_default();
    }
    if rest.is_empty() { splitter.finish() } else { splitter.too_many_rows() }
}

/// Whether the file is surely UTF-8: a byte order mark, or valid UTF-8 that is not valid MS932.
fn is_utf8(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        return true;
    }
    let valid = std::str::from_utf8(bytes).is_ok_and(|text| !text.is_ascii());
    valid && SHIFT_JIS.decode_without_bom_handling_and_without_replacement(bytes).is_none()
}

enum Token {
    Comma,
    Quote,
    LineEnd(&'static str),
    Text(char),
    Wrong(Wrong),
}

/// Why a character may not stand in the file.
enum Wrong {
    /// No character of MS932.
    Undecodable(u8),
    /// 外字: the user-defined area F040–F9FC.
    Gaiji(u8, u8),
    /// A control character other than tab and line ends.
    Control(u8),
}

impl Wrong {
    fn message(&self, place: usize) -> String {
        match self {
            Self::Undecodable(byte) => format!(
                "{place} 文字目に Shift-JIS（MS932）にない文字があります（バイト 0x{byte:02X}）。\
                 MS932 の文字に置き換えてください。"
            ),
            Self::Gaiji(lead, trail) => format!(
                "{place} 文字目に外字があります（0x{lead:02X}{trail:02X}）。外字は使えません。\
                 MS932 の文字に置き換えてください。"
            ),
            Self::Control(byte) => {
                format!("{place} 文字目に制御文字があります（0x{byte:02X}）。取り除いてください。")
            }
        }
    }
}

/// The token at the start of `bytes`, which is not empty, and its length in bytes.
fn next_token(bytes: &[u8]) -> (Token, usize) {
    match *bytes {
        [b'\r', b'\n', ..] => (Token::LineEnd("\r\n"), 2),
        [b'\n', ..] => (Token::LineEnd("\n"), 1),
        [b'\r', ..] => (Token::LineEnd("\r"), 1),
        [b',', ..] => (Token::Comma, 1),
        [b'"', ..] => (Token::Quote, 1),
        [byte @ (0x09 | 0x20..=0x7E), ..] => (Token::Text(char::from(byte)), 1),
        [byte @ (0x00..=0x1F | 0x7F), ..] => (Token::Wrong(Wrong::Control(byte)), 1),
        // Half-width katakana: JIS X 0201, U+FF61 and on.
        [byte @ 0xA1..=0xDF, ..] => (Token::Text(katakana(byte)), 1),
        [lead @ 0xF0..=0xF9, trail @ (0x40..=0x7E | 0x80..=0xFC), ..] => {
            (Token::Wrong(Wrong::Gaiji(lead, trail)), 2)
        }
        [lead @ (0x81..=0x9F | 0xE0..=0xFC), trail @ 0x40..=0xFC, ..] => double_byte(lead, trail),
        [byte, ..] => (Token::Wrong(Wrong::Undecodable(byte)), 1),
        [] => (Token::LineEnd(""), 0),
    }
}

fn katakana(byte: u8) -> char {
    char::from_u32(0xFF61 + u32::from(byte) - 0xA1).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn double_byte(lead: u8, trail: u8) -> (Token, usize) {
    let pair = [lead, trail];
    let text = SHIFT_JIS.decode_without_bom_handling_and_without_replacement(&pair);
    let mut characters = text.iter().flat_map(|text| text.chars());
    match (characters.next(), characters.next()) {
        (Some(character), None) if !('\u{E000}'..='\u{F8FF}').contains(&character) => {
            (Token::Text(character), 2)
        }
        // A second byte below 0x80 may be a character of its own: only the first is given up.
        _ if trail < 0x80 => (Token::Wrong(Wrong::Undecodable(lead)), 1),
        _ => (Token::Wrong(Wrong::Undecodable(lead)), 2),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of a column.
    Start,
    /// In a column without quotes.
    Bare,
    /// Inside quotes.
    Quoted,
    /// After a quote that may close the column or be the first of a doubled one.
    Closed,
}

struct Splitter<'a> {
    table: &'a [Column],
    problems: &'a mut Problems,
    records: Vec<Record>,
    record: Record,
    field: Field,
    state: State,
    line: u32,
    /// Line and column of the last opening quote.
    opened: (u32, u32),
    line_end_reported: bool,
}

impl<'a> Splitter<'a> {
    fn new(table: &'a [Column], problems: &'a mut Problems) -> Self {
        Self {
            table,
            problems,
            records: Vec::new(),
            record: empty_record(1),
            field: Field::default(),
            state: State::Start,
            line: 1,
            opened: (0, 0),
            line_end_reported: false,
        }
    }

    fn take(&mut self, token: Token) {
        match (self.state, token) {
            (State::Quoted, Token::Quote) => self.state = State::Closed,
            (State::Closed, Token::Quote) => {
                self.state = State::Quoted;
                self.field.text.push('"');
            }
            (State::Start, Token::Quote) => {
                self.state = State::Quoted;
                self.opened = (self.line, self.column());
            }
            (State::Bare, Token::Quote) => self.stray_quote(),
            (State::Quoted, Token::Comma) => self.field.text.push(','),
            (State::Start | State::Bare | State::Closed, Token::Comma) => self.end_field(),
            (State::Quoted, Token::LineEnd(end)) => {
                self.field.text.push_str(end);
                self.line += 1;
            }
            (State::Start | State::Bare | State::Closed, Token::LineEnd(end)) => {
                self.end_record(end);
            }
            (state, Token::Text(character)) => self.push(state, character),
            (state, Token::Wrong(wrong)) => {
                let place = self.field.text.chars().count() + 1;
                let column = self.column();
                let item = self.table.get(self.record.columns).map_or("文字", |known| known.name);
                self.problems.add(self.line, column, item, wrong.message(place));
                self.field.damaged = true;
                self.push(state, char::REPLACEMENT_CHARACTER);
            }
        }
    }

    fn column(&self) -> u32 {
        u32::try_from(self.record.columns + 1).unwrap_or(u32::MAX)
    }

    fn push(&mut self, state: State, character: char) {
        match state {
            State::Start => self.state = State::Bare,
            State::Closed => {
                self.stray_quote();
                self.state = State::Bare;
            }
            State::Bare | State::Quoted => {}
        }
        self.field.text.push(character);
    }

    /// A quote that neither opens nor closes a column; said once a row.
    fn stray_quote(&mut self) {
        if !self.record.broken {
            self.record.broken = true;
            let column = self.column();
            self.problems.add(
                self.record.line,
                column,
                "引用符",
                "引用符（\"）の使い方が正しくありません。項目全体を \" で囲み、文中の \" は \"\" と二つ重ねてください。",
            );
        }
    }

    fn end_field(&mut self) {
        let field = std::mem::take(&mut self.field);
        if self.record.fields.len() < COLUMNS_KEPT_MAX {
            self.record.fields.push(field);
        }
        self.record.columns += 1;
        self.state = State::Start;
    }

    fn end_record(&mut self, end: &str) {
        if end != "\r\n" && !self.line_end_reported {
            self.line_end_reported = true;
            self.problems.add(
                self.line,
                0,
                "改行コード",
                "行の終わりの改行コードが CRLF ではありません。すべての行を CRLF で終えてください。",
            );
        }
        let blank = self.state == State::Start && self.record.columns == 0;
        self.end_field();
        self.line += 1;
        let record = std::mem::replace(&mut self.record, empty_record(self.line));
        if blank {
            let message = "空の行があります。取り除いてください。";
            self.problems.add(record.line, 0, "行全体", message);
        } else {
            self.records.push(record);
        }
    }

    /// The end of the file, after a last row that may lack its line end.
    fn finish(mut self) -> Vec<Record> {
        if self.state == State::Quoted {
            self.record.broken = true;
            let (line, column) = self.opened;
            self.problems.add(
                line,
                column,
                "引用符",
                "引用符（\"）が閉じられていません。項目の終わりに \" を付けてください。",
            );
        }
        if self.state != State::Start || self.record.columns > 0 {
            self.end_record("\r\n");
        }
        if self.records.is_empty() && self.problems.is_empty() {
            let message = "データの行がありません。計画の行を入れて送信してください。";
            self.problems.add(0, 0, "ファイル全体", message);
        }
        self.records
    }

    fn too_many_rows(self) -> Vec<Record> {
        let message = format!("行が多すぎます（上限 {ROWS_MAX} 行）。分割して送信してください。");
        self.problems.add(0, 0, "ファイル全体", message);
        self.records
    }
}

fn empty_record(line: u32) -> Record {
    Record { line, fields: Vec::new(), columns: 0, broken: false }
}
