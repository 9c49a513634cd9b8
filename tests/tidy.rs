//! Tidy: the house style that no compiler checks, enforced by an ordinary test.
//!
//! Reads the repository as text: dependency arrows of the workspace, file heads, line lengths,
//! words that mark unfinished code, keys and large files that must never be committed. Every
//! offence is listed with its file and line before the test fails. Each rule is a function from a
//! file (or the manifests) to offences, and is itself shown to find its offence.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// One thing that must be changed, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Offence {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

fn offence(file: &str, line: usize, what: impl Into<String>) -> Offence {
    Offence { file: file.to_owned(), line, what: what.into() }
}

/// A text file of the repository, by its path from the top.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Code that is shipped: not the test package, the load generator, or a test file.
    fn is_product(&self) -> bool {
        let outside = ["tests/", "bench/"].iter().any(|top| self.path.starts_with(top));
        self.is_rust()
            && !outside
            && !self.path.contains("/tests/")
            && !self.path.ends_with("/tests.rs")
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line))
    }
}

const FILE_BYTES_MAX: u64 = 1024 * 1024;
const LINE_CHARS_MAX: usize = 100;

/// Who may depend on whom. `None`: on everything (tests and measurements).
const ARROWS: &[(&str, Option<&[&str]>)] = &[
    ("policies", Some(&[])),
    ("audit-log", Some(&[])),
    ("gateway", Some(&["policies", "audit-log"])),
    ("cert-authority", Some(&["policies", "audit-log"])),
    ("hub", Some(&["policies", "audit-log"])),
    ("office-helper", Some(&["policies"])),
    ("appliance", Some(&["policies", "audit-log"])),
    ("e2e", None),
    ("sekisho-bench", None),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["common", "util", "utils", "types", "helpers", "shared"];

/// Crates whose library never writes to standard output.
const QUIET: [&str; 5] = ["policies/", "audit-log/", "gateway/", "cert-authority/", "hub/"];

#[test]
fn the_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files = walk(root);
    assert!(files.len() > 30, "the walk found only {} files: is this the repository?", files.len());

    let mut offences = manifest_offences(&read_manifests(root));
    let names: Vec<String> = files.iter().map(|path| relative(root, path)).collect();
    offences.extend(decision_offences(&names));
    for (path, name) in files.iter().zip(&names) {
        offences.extend(name_offences(name));
        offences.extend(size_offences(name, fs::metadata(path).unwrap().len()));
        if let Ok(text) = fs::read_to_string(path) {
            offences.extend(text_offences(&Source::new(name, &text)));
        }
    }
    offences.sort();
    let list: String = offences.iter().map(|offence| format!("  {offence}\n")).collect();
    assert!(offences.is_empty(), "{} offences against the house style:\n{list}", offences.len());
}

// --- files ---------------------------------------------------------------------------------------

/// Every file of the repository, without what git ignores and build folders.
fn walk(root: &Path) -> Vec<PathBuf> {
    let ignored =
        [".git", "target", "data", "data.heads", "data.audit-keys"].map(|name| root.join(name));
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let build_folder = path.join("CACHEDIR.TAG").exists();
            if path.is_symlink() || ignored.contains(&path) || build_folder {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap().to_string_lossy().into_owned()
}

fn name_offences(name: &str) -> Vec<Offence> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let mut offences = Vec::new();
    if file == "rust-toolchain" || file == "rust-toolchain.toml" {
        offences.push(offence(name, 1, "no toolchain file: the installed stable is used"));
    }
    if [".key", ".p12", ".pfx", ".pkcs8"].iter().any(|end| file.ends_with(end)) {
        offences.push(offence(name, 1, "looks like a key: make it at run time"));
    }
    // A module shared by integration tests cannot be `tests/foo.rs`: that is a test of its own.
    if file == "mod.rs" && !name.contains("/tests/") {
        offences.push(offence(name, 1, "write `foo.rs` beside `foo/`, not `foo/mod.rs`"));
    }
    offences
}

fn size_offences(name: &str, bytes: u64) -> Vec<Offence> {
    if bytes <= FILE_BYTES_MAX {
        return Vec::new();
    }
    vec![offence(name, 1, format!("{bytes} bytes; the limit is {FILE_BYTES_MAX}"))]
}

/// `docs/decisions/` holds `NNN-title.md`, numbered from 001 without a gap.
fn decision_offences(names: &[String]) -> Vec<Offence> {
    let mut offences = Vec::new();
    let mut expected = 1;
    for name in names {
        let Some(file) = name.strip_prefix("docs/decisions/") else { continue };
        let number = file.split_once('-').map_or("", |(number, _)| number);
        if number.len() != 3 || number.parse() != Ok(expected) || !file.ends_with(".md") {
            offences.push(offence(name, 1, format!("expected `{expected:03}-title.md`")));
        }
        expected += 1;
    }
    offences
}

// --- text ----------------------------------------------------------------------------------------

fn text_offences(source: &Source) -> Vec<Offence> {
    let mut offences = private_key_offences(source);
    offences.extend(machine_path_offences(source));
    if source.is_rust() {
        offences.extend(head_offences(source));
        offences.extend(line_offences(source));
    }
    if source.is_product() {
        offences.extend(unfinished_offences(source));
        offences.extend(printing_offences(source));
    }
    offences
}

fn head_offences(source: &Source) -> Vec<Offence> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![offence(
        &source.path,
        1,
        "open the file with `//!`: what it is, its place, its invariants",
    )]
}

fn line_offences(source: &Source) -> Vec<Offence> {
    let mut offences = Vec::new();
    for (at, line) in source.lines() {
        let chars = line.chars().count();
        if chars > LINE_CHARS_MAX {
            let what = format!("{chars} characters; the limit is {LINE_CHARS_MAX}");
            offences.push(offence(&source.path, at, what));
        }
        if line.trim_start().starts_with("#[ignore") {
            offences.push(offence(&source.path, at, "a test that does not run proves nothing"));
        }
    }
    offences
}

/// Whether `word` stands in `line` with no letter, digit or hyphen on either side.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

fn unfinished_offences(source: &Source) -> Vec<Offence> {
    let words = ["todo!", "unimplemented!", "FIXME", "XXX", "HACK"];
    let phrases = ["placeholder", "not implemented", "for now,"];
    let mut offences = Vec::new();
    for (at, line) in source.lines() {
        let lower = line.to_lowercase();
        let word = words.iter().find(|word| has_word(line, word.trim_end_matches('!')));
        let word = word.filter(|word| line.contains(**word));
        if let Some(found) = word.or_else(|| phrases.iter().find(|phrase| lower.contains(**phrase)))
        {
            offences.push(offence(
                &source.path,
                at,
                format!("`{found}`: finish it or leave it out"),
            ));
        }
        if has_word(line, "TODO") && !line.contains("TODO(#") {
            offences.push(offence(&source.path, at, "`TODO(#number)` or nothing"));
        }
    }
    offences
}

fn printing_offences(source: &Source) -> Vec<Offence> {
    let quiet = QUIET.iter().any(|top| source.path.starts_with(top))
        && !source.path.ends_with("/main.rs")
        && !source.path.contains("/src/bin/");
    let mut offences = Vec::new();
    for (at, line) in source.lines().filter(|_| quiet) {
        let code = line.trim_start();
        let found = ["println!(", "print!(", "dbg!("]
            .iter()
            .find(|call| code.match_indices(**call).any(|(at, _)| !code[..at].ends_with('e')));
        if let Some(call) = found.filter(|_| !code.starts_with("//")) {
            offences.push(offence(
                &source.path,
                at,
                format!("`{call}`: a library logs, it never prints"),
            ));
        }
    }
    offences
}

/// A PEM head followed by base64 is a key; the head alone may be code that reads one.
fn private_key_offences(source: &Source) -> Vec<Offence> {
    let base64 = |line: &str| {
        let line = line.trim();
        line.len() >= 40 && line.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
    };
    let lines: Vec<&str> = source.text.lines().collect();
    let head = |line: &str| line.contains("-----BEGIN ") && line.contains("PRIVATE KEY-----");
    let mut offences = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let body = lines.iter().skip(at + 1).take(3).any(|next| base64(next));
        if head(line) && body {
            offences.push(offence(&source.path, at + 1, "a private key: make it at run time"));
        }
    }
    offences
}

/// Paths of one machine's folders mean nothing on another.
fn machine_path_offences(source: &Source) -> Vec<Offence> {
    let paths = [concat!("/work/", "main"), concat!("/ro", "ot/"), concat!("/tmp/", "target-")];
    let mut offences = Vec::new();
    for (at, line) in source.lines() {
        if let Some(path) = paths.iter().find(|path| line.contains(**path)) {
            offences.push(offence(&source.path, at, format!("`{path}` is a path of one machine")));
        }
    }
    offences
}

// --- manifests -----------------------------------------------------------------------------------

/// The manifests by folder; the workspace's own under an empty name.
fn read_manifests(root: &Path) -> BTreeMap<String, toml::Table> {
    let read = |path: PathBuf| -> toml::Table {
        fs::read_to_string(&path).unwrap().parse().unwrap_or_else(|e| panic!("{path:?}: {e}"))
    };
    let workspace = read(root.join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap().clone();
    let mut manifests = BTreeMap::from([(String::new(), workspace)]);
    for member in members {
        let folder = member.as_str().unwrap().to_owned();
        manifests.insert(folder.clone(), read(root.join(&folder).join("Cargo.toml")));
    }
    manifests
}

fn manifest_offences(manifests: &BTreeMap<String, toml::Table>) -> Vec<Offence> {
    let ours: Vec<&str> = manifests.values().filter_map(package_name).collect();
    let members = manifests.iter().filter(|(folder, _)| !folder.is_empty());
    members.flat_map(|(folder, manifest)| member_offences(folder, manifest, &ours)).collect()
}

fn package_name(manifest: &toml::Table) -> Option<&str> {
    manifest.get("package")?.get("name")?.as_str()
}

fn member_offences(folder: &str, manifest: &toml::Table, ours: &[&str]) -> Vec<Offence> {
    let file = format!("{folder}/Cargo.toml");
    let name = package_name(manifest).unwrap_or("");
    let mut offences = Vec::new();
    if EMPTY_NAMES.contains(&name) || EMPTY_NAMES.contains(&folder) {
        offences.push(offence(&file, 1, format!("`{name}` says nothing about what is inside")));
    }
    let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    if lints.and_then(toml::Value::as_bool) != Some(true) {
        offences.push(offence(&file, 1, "missing `[lints] workspace = true`"));
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(member, _)| *member == name) else {
        offences.push(offence(&file, 1, format!("`{name}` is not in tidy's table of arrows")));
        return offences;
    };
    let Some(allowed) = allowed else { return offences };
    for dependency in dependencies(manifest) {
        if ours.contains(&dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
            let what = format!("`{name}` may not depend on `{dependency}` (design: {allowed:?})");
            offences.push(offence(&file, 1, what));
        }
    }
    offences
}

/// What the shipped code depends on, by package name. Dev-dependencies are left out: a test may
/// look at anything.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let mut tables: Vec<&toml::Table> = Vec::new();
    let mut collect = |table: &'_ toml::Table| -> Vec<String> {
        let kinds = ["dependencies", "build-dependencies"];
        let tables = kinds.iter().filter_map(|kind| table.get(*kind)?.as_table());
        tables.flat_map(|table| table.iter().map(renamed)).collect()
    };
    let mut names = collect(manifest);
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    names.extend(tables.into_iter().flat_map(&mut collect));
    names
}

fn renamed((key, value): (&String, &toml::Value)) -> String {
    value.get("package").and_then(toml::Value::as_str).unwrap_or(key).to_owned()
}

// --- each rule finds its offence -----------------------------------------------------------------

#[test]
fn each_text_rule_finds_its_offence_and_nothing_else() {
    let key = format!("-----BEGIN {} KEY-----\n{}\n", "PRIVATE", "A".repeat(64));
    let cases: &[(&str, &str, &[&str])] = &[
        ("hub/src/a.rs", "//! A file.\nfn a() {}\n", &[]),
        ("hub/src/a.rs", "fn a() {}\n", &["hub/src/a.rs:1: open the file"]),
        ("hub/src/a.rs", "//! A.\n\n// FIXME\n", &["hub/src/a.rs:3: `FIXME`"]),
        ("hub/src/a.rs", "//! A.\nfn a() { todo!() }\n", &["hub/src/a.rs:2: `todo!`"]),
        ("hub/src/a.rs", "//! A.\n// TODO tidy\n", &["hub/src/a.rs:2: `TODO(#number)`"]),
        ("hub/src/a.rs", "//! A.\n// TODO(#7) tidy\n", &[]),
        ("hub/src/a.rs", "//! A.\n// a list of todo items, XXX-XXXX\n", &[]),
        ("hub/src/a.rs", "//! A placeholder.\n", &["hub/src/a.rs:1: `placeholder`"]),
        ("tests/e2e/a.rs", "//! A placeholder.\n", &[]),
        ("hub/src/a.rs", "//! A.\nprintln!(\"x\");\n", &["hub/src/a.rs:2: `println!(`"]),
        ("hub/src/a.rs", "//! A.\neprintln!(\"x\");\n", &[]),
        ("hub/src/main.rs", "//! A.\nprintln!(\"x\");\n", &[]),
        ("tests/e2e/a.rs", "//! A.\n#[ignore]\n", &["tests/e2e/a.rs:2: a test that does not"]),
        ("docs/a.md", &key, &["docs/a.md:1: a private key"]),
        ("hub/src/a.rs", "//! Reads -----BEGIN PRIVATE KEY-----\n", &[]),
    ];
    for (path, text, expected) in cases {
        let found = text_offences(&Source::new(path, text));
        let found: Vec<String> = found.iter().map(Offence::to_string).collect();
        let fits = found.len() == expected.len()
            && found.iter().zip(*expected).all(|(found, start)| found.starts_with(start));
        assert!(fits, "{path} {text:?}: {found:?}, expected {expected:?}");
    }
    let long = format!("//! {}\n", "あ".repeat(97));
    let found = text_offences(&Source::new("hub/src/a.rs", &long));
    assert_eq!(found, [offence("hub/src/a.rs", 1, "101 characters; the limit is 100")]);
}

#[test]
fn each_file_rule_finds_its_offence() {
    assert_eq!(name_offences("hub/rust-toolchain.toml").len(), 1);
    assert_eq!(name_offences("tests/ca.key").len(), 1);
    assert_eq!(name_offences("hub/src/pages/mod.rs").len(), 1);
    assert!(name_offences("hub/tests/world/mod.rs").is_empty());
    assert!(name_offences("hub/src/key.rs").is_empty());
    assert_eq!(size_offences("docs/a.png", FILE_BYTES_MAX + 1).len(), 1);
    let names = ["docs/decisions/001-a.md", "docs/decisions/003-b.md", "docs/decisions/notes.md"];
    let found = decision_offences(&names.map(str::to_owned));
    let lines: Vec<String> = found.iter().map(Offence::to_string).collect();
    assert_eq!(
        lines,
        [
            "docs/decisions/003-b.md:1: expected `002-title.md`",
            "docs/decisions/notes.md:1: expected `003-title.md`",
        ]
    );
}

#[test]
fn each_manifest_rule_finds_its_offence() {
    let manifest = |text: &str| -> toml::Table { text.parse().unwrap() };
    let hub = "[package]\nname = \"hub\"\n[lints]\nworkspace = true\n";
    let ours = ["hub", "gateway", "policies"];
    let offences = |text: &str| member_offences("hub", &manifest(text), &ours).len();
    assert_eq!(offences(hub), 0);
    assert_eq!(offences(&format!("{hub}[dependencies]\npolicies.workspace = true")), 0);
    assert_eq!(offences(&format!("{hub}[dependencies]\ngateway.workspace = true")), 1);
    assert_eq!(offences(&format!("{hub}[dependencies]\ng = {{ package = \"gateway\" }}")), 1);
    assert_eq!(offences(&format!("{hub}[target.'cfg(unix)'.dependencies]\ngateway = \"1\"")), 1);
    assert_eq!(offences(&format!("{hub}[dev-dependencies]\ngateway.workspace = true")), 0);
    assert_eq!(offences("[package]\nname = \"hub\"\n"), 1);
    assert_eq!(offences("[package]\nname = \"utils\"\n[lints]\nworkspace = true\n"), 2);
}
