//! What is wrong with a policy file: where it stands, what it is and what to do. All problems of a
//! policy are collected and told together.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// One problem of a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, as a path inside the policy's folder.
    pub file: String,
    /// The line, counted from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// The column in characters, counted from 1; 0 where the file as a whole is meant.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub hint: String,
}

impl Problem {
    /// A problem at a byte range of the file's text.
    pub fn at(
        file: &str,
        text: &str,
        span: &Range<usize>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (line, column) = position(text, span.start);
        Self { file: file.to_owned(), line, column, problem: problem.into(), hint: hint.into() }
    }

    /// A problem of a file as a whole.
    pub fn of_file(file: &str, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        let (problem, hint) = (problem.into(), hint.into());
        Self { file: file.to_owned(), line: 0, column: 0, problem, hint }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.problem)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; hint: {}", self.hint) }
    }
}

/// Line and column, both counted from 1, of a byte of `text`.
pub fn position(text: &str, byte: usize) -> (usize, usize) {
    let mut end = byte.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (line, before[start..].chars().count() + 1)
}

/// The known word that is nearest to what was written, if one is near enough to be meant.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (written.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|word| (distance(written, word), word))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, word)| word)
}

/// A hint for a word that is not known: the nearest one, or all of them.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(written, known.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("write one of {}", known.join(", ")),
    }
}

/// How many characters must be added, taken away or changed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        let known = ["offices", "service-types", "municipalities"];
        assert_eq!(nearest("office", known), Some("offices"));
        assert_eq!(nearest("service_type", known), Some("service-types"));
        assert_eq!(nearest("colour", known), None);
        assert!(did_you_mean("colour", known).contains("municipalities"));
    }

    #[test]
    fn a_position_counts_lines_and_characters_from_one() {
        let text = "a\n事業 = x\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, text.find('x').unwrap()), (2, 6));
        assert_eq!(position(text, 999), (3, 1));
        let problem = Problem::at("o.toml", text, &(2..3), "bad", "do");
        assert_eq!(problem.to_string(), "o.toml:2:1: bad; hint: do");
    }
}
