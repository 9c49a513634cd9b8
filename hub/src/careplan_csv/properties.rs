//! Properties of the parser, tried on made-up files: what was written is read, and nothing makes it
//! panic. The generator is a fixed sequence, so a failure is found again by its case number.

use serde_json::Value;

use super::parse;
use super::tests::{NAME_1, NAME_2, encode, row_1};

/// How many files each property is tried on.
const CASES: u64 = 2_000;

/// Texts of MS932 with everything that CSV must protect, second bytes below 0x80 among them.
const PARTS: &[&str] = &[
    "介護", "支援", "、", "。", "①", "ｱ", "ﾞ", "髙", "\"", "\"\"", ",", "\r\n", "\n", "\r", "A",
    "z", "0", " ", "　", "\t", "～", "ソ", "表", "能", "\\",
];

/// SplitMix64.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn text(&mut self) -> String {
        (0..self.below(12)).map(|_| PARTS[self.below(PARTS.len())]).collect()
    }

    fn bytes(&mut self, length_max: usize) -> Vec<u8> {
        (0..self.below(length_max)).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn what_was_written_is_read() {
    for case in 0..CASES {
        let mut sequence = Sequence(case);
        let texts: Vec<String> = (0..1 + sequence.below(5)).map(|_| sequence.text()).collect();
        let row = |(at, text): (usize, &String)| {
            let mut row = row_1(&format!("{:010}", at + 1));
            row[23].clone_from(text);
            row
        };
        let rows: Vec<_> = texts.iter().enumerate().map(row).collect();
        let file = parse(NAME_1, &encode(&rows)).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(file.rows, rows.len(), "case {case}");
        for (plan, text) in file.plans().iter().zip(&texts) {
            let read = plan.table.get("support_policy").and_then(Value::as_str).unwrap_or("");
            assert_eq!(read, if text.trim().is_empty() { "" } else { text }, "case {case}");
        }
    }
}

#[test]
fn no_bytes_make_it_panic() {
    for case in 0..CASES {
        let bytes = Sequence(case).bytes(600);
        for name in [NAME_1, NAME_2] {
            if let Err(refusal) = parse(name, &bytes) {
                assert!(!refusal.problems.is_empty(), "case {case}");
            }
        }
    }
}

#[test]
fn no_change_of_a_right_file_makes_it_panic() {
    let right = encode(&[row_1("0000000001"), row_1("0000000002")]);
    for case in 0..CASES {
        let (mut sequence, mut bytes) = (Sequence(case), right.clone());
        for _ in 0..=sequence.below(3) {
            let at = sequence.below(bytes.len());
            bytes[at] = sequence.next() as u8;
        }
        bytes.truncate(right.len() - sequence.below(right.len()) * sequence.below(2));
        if let Err(refusal) = parse(NAME_1, &bytes) {
            assert!(!refusal.problems.is_empty(), "case {case}");
        }
    }
}

#[test]
fn no_name_makes_it_panic() {
    for case in 0..CASES {
        let mut sequence = Sequence(case);
        let mut name = NAME_1.as_bytes().to_vec();
        let at = sequence.below(name.len());
        name[at] = sequence.next() as u8;
        let _ = parse(&String::from_utf8_lossy(&name), b"");
        let _ = parse(&String::from_utf8_lossy(&sequence.bytes(60)), b"");
    }
}
