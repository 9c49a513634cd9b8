//! What the command prints: data on standard output (text, or JSON with `--json`), progress on
//! standard error, so that output can always be piped.

use std::io::Write as _;

use serde_json::Value;

/// Prints one line of data. A closed pipe is not an error of ours.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed_pipe = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints `value` as JSON, or `text` for people.
pub(crate) fn data(json: bool, value: &Value, text: impl FnOnce() -> String) {
    if json {
        line(&format!("{value:#}"));
    } else {
        line(&text());
    }
}

/// Prints one line of progress.
pub(crate) fn progress(text: &str) {
    let _closed_pipe = writeln!(std::io::stderr().lock(), "{text}");
}

/// A string field of a JSON object, `-` where it is missing; numbers and booleans as text.
pub(crate) fn field(value: &Value, key: &str) -> String {
    match value.get(key) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            texts.join(";")
        }
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_))) => other.to_string(),
    }
}

/// Whether every gateway applies what an answer tells of; where not, says which are missing.
pub(crate) fn is_acknowledged(answer: &Value) -> bool {
    let acknowledged = answer.get("acknowledged").and_then(Value::as_bool).unwrap_or(false);
    if !acknowledged {
        progress(&format!("error: not confirmed by gateway `{}`", field(answer, "missing")));
    }
    acknowledged
}

/// Columns of text, each as wide as its widest cell but the last.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|at| all.iter().filter_map(|row| row.get(at)).map(|cell| width(cell)).max())
        .map(Option::unwrap_or_default)
        .collect();
    let lines: Vec<String> = all.iter().map(|row| aligned(row, &widths)).collect();
    lines.join("\n")
}

fn aligned(row: &[String], widths: &[usize]) -> String {
    let mut text = String::new();
    for (cell, wanted) in row.iter().zip(widths) {
        text.push_str(cell);
        text.push_str(&" ".repeat(wanted.saturating_sub(width(cell)) + 2));
    }
    text.trim_end().to_owned()
}

/// Columns that a text takes on a terminal: letters beyond U+10FF are counted as two.
fn width(text: &str) -> usize {
    text.chars().map(|letter| if u32::from(letter) > 0x10ff { 2 } else { 1 }).sum()
}

/// `text` as one word of a POSIX shell.
pub(crate) fn shell_quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:=@%+,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_wide_letters() {
        let rows = [vec!["居宅".to_owned(), "1".to_owned()], vec!["ab".to_owned(), "2".to_owned()]];
        assert_eq!(table(&["n", "x"], &rows), "n     x\n居宅  1\nab    2");
    }

    #[test]
    fn shell_words_survive_spaces_and_quotes() {
        assert_eq!(shell_quoted("/tmp/a-b"), "/tmp/a-b");
        assert_eq!(shell_quoted("/tmp/a b's"), r"'/tmp/a b'\''s'");
        assert_eq!(shell_quoted(""), "''");
    }
}
