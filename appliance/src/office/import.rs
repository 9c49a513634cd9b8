//! Reading a CSV file of offices. The whole file is checked before anything is registered, and
//! every problem is told with its line.

use std::collections::BTreeMap;

use policies::identity::{OfficeNumber, ServiceType};
use serde_json::Value;

use super::Office;

/// What a file holds and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// The offices with the line that each came from.
    pub(super) offices: Vec<(u64, Office)>,
    /// What must be corrected; at most [`PROBLEMS_MAX`].
    pub(super) problems: Vec<String>,
    /// Whether there are more problems than those.
    more: bool,
    /// What should be looked at.
    pub(super) warnings: Vec<String>,
}

/// Reads the bytes of a file.
pub(super) fn read(bytes: &[u8]) -> Checked {
    let mut checked = Checked::default();
    let Some(text) = decode(bytes) else {
        checked.problems.push("neither UTF-8 nor Shift-JIS: save the file as UTF-8".to_owned());
        return checked;
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut seen: BTreeMap<OfficeNumber, u64> = BTreeMap::new();
    for (at, record) in reader.records().enumerate() {
        match record {
            Ok(record) => checked.record(at, &record, &mut seen),
            Err(error) => checked.problem(0, &format!("not CSV: {error}")),
        }
    }
    if checked.offices.is_empty() && checked.problems.is_empty() {
        checked.problems.push("no offices in the file".to_owned());
    }
    checked
}

impl Checked {
    fn record(
        &mut self,
        at: usize,
        record: &csv::StringRecord,
        seen: &mut BTreeMap<OfficeNumber, u64>,
    ) {
        let line = record.position().map(csv::Position::line).unwrap_or_default();
        let cells: Vec<&str> = record.iter().collect();
        if at == 0 {
            if cells != COLUMNS {
                let expected = COLUMNS.join(",");
                self.problem(line, &format!("the first line must be `{expected}`"));
            }
            return;
        }
        let &[number, name, service_types, medical] = cells.as_slice() else {
            self.problem(line, &format!("{} columns: 4 are expected", cells.len()));
            return;
        };
        let number = self.number(line, number, seen);
        let name = self.name(line, name);
        let medical = self.medical(line, medical);
        let service_types = self.service_types(line, service_types, medical);
        if let (Some(number), Some(name), Some(medical), Some(service_types)) =
            (number, name, medical, service_types)
        {
            let office = Office { number, name, service_types, medical };
            let warning = office.warning().map(|text| format!("line {line}: {text}"));
            self.warnings.extend(warning);
            self.offices.push((line, office));
        }
    }

    fn number(
        &mut self,
        line: u64,
        text: &str,
        seen: &mut BTreeMap<OfficeNumber, u64>,
    ) -> Option<OfficeNumber> {
        let number = text.parse::<OfficeNumber>();
        let number = number.map_err(|error| self.problem(line, &error.to_string())).ok()?;
        if let Some(first) = seen.get(&number) {
            let first = *first;
            self.problem(line, &format!("office `{number}` is in line {first} already"));
            return None;
        }
        seen.insert(number, line);
        Some(number)
    }

    fn name(&mut self, line: u64, text: &str) -> Option<String> {
        let length = text.chars().count();
        if (1..=NAME_CHARACTERS_MAX).contains(&length) && !text.chars().any(char::is_control) {
            return Some(text.to_owned());
        }
        let limit = NAME_CHARACTERS_MAX;
        self.problem(line, &format!("the name has {length} characters: write 1 to {limit}"));
        None
    }

    fn medical(&mut self, line: u64, text: &str) -> Option<bool> {
        match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.problem(line, &format!("medical is `{text}`: write true or false"));
                None
            }
        }
    }

    fn service_types(
        &mut self,
        line: u64,
        text: &str,
        medical: Option<bool>,
    ) -> Option<Vec<ServiceType>> {
        let mut codes = Vec::new();
        let mut good = true;
        for code in text.split(';').map(str::trim).filter(|code| !code.is_empty()) {
            match code.parse::<ServiceType>() {
                Ok(code) if codes.contains(&code) => {
                    self.problem(line, &format!("service type `{code}` comes twice"));
                    good = false;
                }
                Ok(code) => codes.push(code),
                Err(error) => {
                    self.problem(line, &error.to_string());
                    good = false;
                }
            }
        }
        if codes.is_empty() && good && medical == Some(false) {
            self.problem(line, "no service type: only a medical institution may have none");
            good = false;
        }
        good.then_some(codes)
    }

    /// Finds offices that are registered already with other data.
    pub(super) fn compare(&mut self, known: &[&Value]) {
        let known: BTreeMap<&str, &Value> = known
            .iter()
            .filter_map(|office| Some((office.get("number")?.as_str()?, *office)))
            .collect();
        let mut differing = Vec::new();
        for (line, office) in &self.offices {
            let Some(registered) = known.get(office.number.as_str()) else { continue };
            let wanted = office.to_json();
            let same = ["name", "medical"].iter().all(|key| registered.get(key) == wanted.get(key))
                && service_types(registered) == service_types(&wanted);
            if !same {
                differing.push((*line, office.number));
            }
        }
        for (line, number) in differing {
            self.problem(line, &format!("office `{number}` is registered with other data"));
        }
    }

    fn problem(&mut self, line: u64, what: &str) {
        if self.problems.len() < PROBLEMS_MAX {
            let text = if line == 0 { what.to_owned() } else { format!("line {line}: {what}") };
            self.problems.push(text);
        } else {
            self.more = true;
        }
    }

    /// How many problems there are, in words.
    pub(super) fn how_many(&self) -> String {
        match (self.problems.len(), self.more) {
            (told, true) => format!("more than {told} problems"),
            (1, false) => "1 problem".to_owned(),
            (told, false) => format!("{told} problems"),
        }
    }
}

/// The service types of an office; their order has no meaning.
fn service_types(office: &Value) -> Vec<String> {
    let codes = office.get("service_types").and_then(Value::as_array).into_iter().flatten();
    let mut codes: Vec<String> =
        codes.filter_map(|code| code.as_str().map(str::to_owned)).collect();
    codes.sort();
    codes
}

/// UTF-8 (with or without a byte order mark), else Shift-JIS.
fn decode(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Some(text.to_owned());
    }
    let text = encoding_rs::SHIFT_JIS.decode_without_bom_handling_and_without_replacement(bytes);
    text.map(std::borrow::Cow::into_owned)
}

/// The columns, in order.
const COLUMNS: [&str; 4] = ["number", "name", "service_types", "medical"];

/// The longest name, in characters.
const NAME_CHARACTERS_MAX: usize = 100;

/// The most problems that are told.
const PROBLEMS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HEAD: &str = "number,name,service_types,medical\n";

    fn problems(lines: &str) -> Vec<String> {
        read(format!("{HEAD}{lines}").as_bytes()).problems
    }

    #[test]
    fn good_files_are_read_in_both_encodings() {
        let text = format!(
            "{HEAD}9970000018,見本 居宅,43,false\n\"9970000026\",\"見本, 通所\",15; 78,false\n\
             9910000011,見本 病院,,true\n"
        );
        let shift_jis = encoding_rs::SHIFT_JIS.encode(&text).0.into_owned();
        let with_mark = [b"\xef\xbb\xbf".as_slice(), text.as_bytes()].concat();
        for bytes in [text.into_bytes(), shift_jis, with_mark] {
            let checked = read(&bytes);
            assert_eq!(checked.problems, Vec::<String>::new());
            let names: Vec<&str> =
                checked.offices.iter().map(|(_, office)| office.name.as_str()).collect();
            assert_eq!(names, ["見本 居宅", "見本, 通所", "見本 病院"]);
            assert_eq!(checked.offices[1].1.service_types.len(), 2);
            assert_eq!(checked.offices[1].0, 3);
        }
    }

    #[test]
    fn every_problem_is_told_with_its_line() {
        for (name, line, expected) in [
            ("number", "997,x,43,false", "line 2: `997` is not an office number"),
            ("columns", "9970000018,x,43", "line 2: 3 columns"),
            ("name", "9970000018,,43,false", "line 2: the name has 0 characters"),
            ("medical", "9970000018,x,43,ja", "line 2: medical is `ja`"),
            ("service", "9970000018,x,4,false", "line 2: `4` is not a service type"),
            ("none", "9970000018,x,,false", "line 2: no service type"),
            ("twice", "9970000018,x,43;43,false", "line 2: service type `43` comes twice"),
        ] {
            let problems = problems(line);
            assert_eq!(problems.len(), 1, "{name}: {problems:?}");
            assert!(problems[0].starts_with(expected), "{name}: {problems:?}");
        }
        let many = problems("1,,4,x\n9970000018,x,43,false\n9970000018,y,43,false\n");
        assert_eq!(many.len(), 5, "{many:?}");
        assert!(
            many[4].contains("line 4") && many[4].contains("line 2 already")
                || many[4].contains("line 3 already"),
            "{many:?}"
        );
    }

    #[test]
    fn files_that_are_no_such_file_are_refused() {
        assert!(read(b"a,b\n1,2\n").problems[0].contains("the first line must be"));
        assert!(read(HEAD.as_bytes()).problems[0].contains("no offices"));
        assert!(read(b"").problems[0].contains("no offices"));
        assert!(read(b"\xff\xff\xff").problems[0].contains("neither UTF-8"));
        assert_eq!(problems(&"x\n".repeat(300)).len(), PROBLEMS_MAX);
        for (lines, expected) in
            [(1, "1 problem"), (100, "100 problems"), (101, "more than 100 problems")]
        {
            let checked = read(format!("{HEAD}{}", "x\n".repeat(lines)).as_bytes());
            assert_eq!(checked.how_many(), expected);
        }
    }

    #[test]
    fn a_wrong_check_digit_warns_and_does_not_refuse() {
        let mut warned = 0;
        for digit in 0..10 {
            let checked = read(format!("{HEAD}997000001{digit},x,43,false\n").as_bytes());
            assert!(checked.problems.is_empty());
            warned += checked.warnings.len();
        }
        assert!((8..=9).contains(&warned), "{warned}");
    }

    #[test]
    fn offices_known_with_other_data_are_problems_and_equal_ones_are_not() {
        let mut checked =
            read(format!("{HEAD}9970000018,a,43;15,false\n9970000026,b,15,false\n").as_bytes());
        let same = json!({"number": "9970000018", "name": "a", "service_types": ["15", "43"],
            "medical": false, "suspended": false});
        let other = json!({"number": "9970000026", "name": "c", "service_types": ["15"],
            "medical": false, "suspended": false});
        checked.compare(&[&same, &other]);
        assert_eq!(checked.problems, ["line 3: office `9970000026` is registered with other data"]);
    }
}
