//! Changing single keys of a TOML file as text, so that every other line, with the operator's own
//! comments and order, stays as it is.
//!
//! Invariant: what [`add`] returns is valid TOML that holds the key.

/// `text` with the one-line value of `key` in `table` (empty: before the first table) replaced;
/// `None` when there is no such key.
pub(crate) fn set(text: &str, table: &str, key: &str, value: &str) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = line_of(text, table, key)?;
    *lines.get_mut(at)? = format!("{key} = {value}");
    Some(lines.join("\n") + "\n")
}

/// `text` with `key` added to `table` behind the key `after`, under the lines of `comment`; `None`
/// when no place was found for it.
pub(crate) fn add(text: &str, table: &str, after: &str, added: &Added<'_>) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut new: Vec<String> = added.comment.lines().map(str::to_owned).collect();
    match line_of(text, table, after) {
        Some(at) => {
            new.push(format!("{} = {}", added.key, added.value));
            lines.splice(at + 1..at + 1, new);
        }
        // The table may be written in another way (`audit.dir = …`): dotted keys may stand first.
        None => {
            let dot = if table.is_empty() { "" } else { "." };
            new.push(format!("{table}{dot}{} = {}", added.key, added.value));
            lines.splice(0..0, new);
        }
    }
    let text = lines.join("\n") + "\n";
    let dotted =
        if table.is_empty() { added.key.to_owned() } else { format!("{table}.{}", added.key) };
    find(&toml::from_str(&text).ok()?, &dotted)?;
    Some(text)
}

/// What [`add`] adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Added<'a> {
    /// Comment lines above the key, each with its `#`; may be empty.
    pub(crate) comment: &'a str,
    /// The key.
    pub(crate) key: &'a str,
    /// Its value, as TOML.
    pub(crate) value: &'a str,
}

/// The comment lines that stand directly above a key.
pub(crate) fn comment_above(text: &str, table: &str, key: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let at = line_of(text, table, key).unwrap_or_default();
    let above = lines.get(..at).unwrap_or_default().iter().rev();
    let mut comment: Vec<&str> = above.take_while(|line| line.starts_with('#')).copied().collect();
    comment.reverse();
    comment.join("\n")
}

/// A value by its dotted key.
pub(crate) fn find(table: &toml::Table, key: &str) -> Option<toml::Value> {
    let mut found = Some(toml::Value::Table(table.clone()));
    for name in key.split('.') {
        found = found.and_then(|value| value.get(name).cloned());
    }
    found
}

/// `text` as a TOML string.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn line_of(text: &str, table: &str, key: &str) -> Option<usize> {
    let mut within = String::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.trim().clone_into(&mut within);
        }
        let is_key = line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        if is_key && within == table {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Added<'_> = Added { comment: "# why\n# so", key: "key", value: "\"k\"" };

    #[test]
    fn a_key_is_added_behind_its_neighbour_and_nothing_else_moves() {
        let text = "# mine\ndir = 1\nx = 2\n[audit]\ndir = \"a\" # note\n\n[t]\n";
        let top = add(text, "", "dir", &KEY).unwrap();
        assert!(top.starts_with("# mine\ndir = 1\n# why\n# so\nkey = \"k\"\nx = 2\n"), "{top}");
        let inner = add(text, "audit", "dir", &KEY).unwrap();
        assert_eq!(
            inner,
            "# mine\ndir = 1\nx = 2\n[audit]\ndir = \"a\" # note\n# why\n# so\nkey = \"k\"\n\n[t]\n"
        );
    }

    #[test]
    fn a_table_written_with_dots_gets_a_dotted_key() {
        let text = "audit.dir = \"a\"\n[t]\nx = 1\n";
        let added = add(text, "audit", "dir", &KEY).unwrap();
        assert!(added.contains("audit.key = \"k\""), "{added}");
        // An inline table cannot take a key from outside.
        assert_eq!(add("audit = { dir = \"a\" }\n", "audit", "dir", &KEY), None);
    }

    #[test]
    fn comments_above_a_key_are_found() {
        let text = "# far\n\n# one\n# two\nkey = 1\n";
        assert_eq!(comment_above(text, "", "key"), "# one\n# two");
        assert_eq!(comment_above(text, "", "none"), "");
    }
}
