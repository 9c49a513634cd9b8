//! An operator's policy folder, and how it becomes the [`Matrix`] that is decided with.
//!
//! ```text
//!  POLICY/
//!    sharing-matrix.toml   optional; the built-in one otherwise
//!    overlays/*.toml       what is taken away, by office, group or municipality
//!    policy.toml           `source`, and `ack-widening`: the cells that open more than built in
//!    tests.json            the authors' cases: request, expected decision and reasons
//!    signatures.toml       two operators' signatures, where a cell is opened
//!
//!  parse ─► total table ─► floors ─► widening acknowledged and signed ─► authors' cases ─► Policy
//! ```
//!
//! Invariants: a folder with one problem gives no [`Policy`], so a running one is never replaced by
//! half of another; every problem is told with file, line, column and what to do; the version is a
//! hash over everything that decides, so that it names one policy only.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use aws_lc_rs::digest;
use serde::Deserialize;
use toml::Spanned;

use crate::identity::OfficeNumber;
use crate::matrix::{Matrix, Profile};
use crate::overlay::Overlays;
use crate::problem::{Problem, did_you_mean};

pub mod folder;
pub mod diff;
pub mod cases;
pub mod signature;

use diff::CellChange;
use signature::Signer;

/// The texts of a policy folder, by their path in it.
pub type Files = BTreeMap<String, String>;

/// What a folder is checked with.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The profile in force.
    pub profile: Profile,
    /// The operators whose signatures count.
    pub signers: &'a [Signer],
    /// Whether there is such an office; without it, offices are not looked up.
    pub is_known: Option<&'a dyn Fn(OfficeNumber) -> bool>,
}

/// A policy that passed every check.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What is decided with: the matrix, narrowed by the overlays.
    pub matrix: Matrix,
    /// Where its matrix differs from the built-in one.
    pub changes: Vec<CellChange>,
    /// How many authors' cases it passed.
    pub cases: usize,
}

impl Policy {
    /// Checks the texts of a folder. No texts at all are the built-in matrix by itself.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn load(files: &Files, terms: &Terms<'_>) -> Result<Self, Vec<Problem>> {
        let mut problems = unknown_files(files);
        let manifest = keep(&mut problems, manifest(files));
        let base = built_in(terms.profile)?;
        let matrix = keep(&mut problems, matrix(files, terms.profile));
        let overlays: Vec<(String, String)> =
            files.iter().filter(|(path, _)| is_overlay(path)).map(clone).collect();
        let overlays = keep(&mut problems, Overlays::parse(&overlays, terms.is_known));
        let cases = keep(&mut problems, cases::parse(files));
        let version = version(files, terms.profile);
        let (Some(manifest), Some(matrix), Some(overlays)) = (manifest, matrix, overlays) else {
            return Err(problems);
        };
        let changes = diff::cells(&base, &matrix);
        problems.extend(unacknowledged(files, &manifest, &changes));
        if changes.iter().any(|change| change.widens) {
            problems.extend(signature::check(files, &version, terms.signers));
        }
        let matrix = match overlays.is_empty() && !files.contains_key(MATRIX) {
            true => matrix,
            false => matrix.narrowed_by(overlays, version),
        };
        let cases = cases.unwrap_or_default();
        if !cases.is_empty() {
            problems.extend(cases::check(files, &cases, &matrix));
        }
        if problems.is_empty() {
            Ok(Self { matrix, changes, cases: cases.len() })
        } else {
            Err(problems)
        }
    }
}

/// What policy.toml says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Manifest {
    #[serde(default)]
    #[expect(dead_code, reason = "said for the reader; the version covers it")]
    source: String,
    #[serde(default)]
    ack_widening: Vec<Spanned<String>>,
}

fn manifest(files: &Files) -> Result<Manifest, Vec<Problem>> {
    let Some(text) = files.get(MANIFEST) else { return Ok(Manifest::default()) };
    toml::from_str(text).map_err(|error| vec![of_toml(MANIFEST, text, &error)])
}

/// The shipped matrix.
///
/// # Errors
/// If it does not load, which a test of this crate rules out.
pub fn built_in(profile: Profile) -> Result<Matrix, Vec<Problem>> {
    Matrix::builtin(profile)
        .map_err(|error| vec![Problem::of_file(MATRIX, error.to_string(), "reinstall")])
}

/// What a policy would decide with, whatever its cases and signatures say: for its authors to try.
///
/// # Errors
/// Problems of the matrix and the overlays.
pub fn uncommitted(files: &Files, profile: Profile) -> Result<Matrix, Vec<Problem>> {
    let overlays: Vec<(String, String)> =
        files.iter().filter(|(path, _)| is_overlay(path)).map(clone).collect();
    let overlays = Overlays::parse(&overlays, None)?;
    Ok(matrix(files, profile)?.narrowed_by(overlays, version(files, profile)))
}

fn matrix(files: &Files, profile: Profile) -> Result<Matrix, Vec<Problem>> {
    let Some(text) = files.get(MATRIX) else { return built_in(profile) };
    // The matrix's own reader tells what is wrong; only here it is known where that stands.
    if let Err(error) = toml::from_str::<toml::Table>(text) {
        return Err(vec![of_toml(MATRIX, text, &error)]);
    }
    Matrix::parse(text, profile).map_err(|error| {
        let prefix = format!("{MATRIX}: ");
        let place = |problem: &String| {
            let what = problem.strip_prefix(&prefix).unwrap_or(problem);
            Problem::at(MATRIX, text, &mentioned(text, what), what, MATRIX_HINT)
        };
        error.problems().iter().map(place).collect()
    })
}

/// Where in the text the first thing stands that a problem names in backticks.
fn mentioned(text: &str, problem: &str) -> Range<usize> {
    let starts = |word: &str| {
        let mut offset = 0;
        text.split_inclusive('\n').find_map(|line| {
            let at = offset + line.len() - line.trim_start().len();
            offset += line.len();
            let begins = line
                .trim_start()
                .strip_prefix(word)
                .is_some_and(|rest| rest.trim_start().starts_with('=') || rest.starts_with(']'));
            begins.then_some(at)
        })
    };
    let words = || problem.split('`').skip(1).step_by(2).filter(|word| !word.is_empty());
    // Rules are told with their source in brackets.
    let source = problem.rfind("]: ").and_then(|end| {
        let start = problem[..end].rfind("  [")?;
        text.find(&format!("\"{}\"", &problem[start + 3..end]))
    });
    let found = source.or_else(|| words().find_map(starts)).or_else(|| {
        words().find_map(|word| text.find(&format!("\"{word}\"")).or_else(|| text.find(word)))
    });
    let at = found.unwrap_or(0);
    at..at
}

/// Cells that open more than built in are exactly those that policy.toml names.
fn unacknowledged(files: &Files, manifest: &Manifest, changes: &[CellChange]) -> Vec<Problem> {
    let named: BTreeSet<&str> =
        manifest.ack_widening.iter().map(|cell| cell.get_ref().as_str()).collect();
    let widened: Vec<&str> =
        changes.iter().filter(|change| change.widens).map(|change| change.cell.as_str()).collect();
    let text = files.get(MATRIX).map_or("", String::as_str);
    let missing = changes.iter().filter(|it| it.widens && !named.contains(it.cell.as_str()));
    let missing = missing.map(|change| {
        let row = format!("`{}`", change.cell.split('/').next().unwrap_or_default());
        let what = format!(
            "cell `{}` opens more than the built-in matrix: {} → {}",
            change.cell, change.before, change.after
        );
        let hint = format!(
            "put the cell back; or add \"{}\" to `ack-widening` in {MANIFEST} and have two \
             operators sign the policy",
            change.cell
        );
        Problem::at(MATRIX, text, &mentioned(text, &row), what, hint)
    });
    let text = files.get(MANIFEST).map_or("", String::as_str);
    let idle = manifest.ack_widening.iter().filter(|it| !widened.contains(&it.get_ref().as_str()));
    let idle = idle.map(|cell| {
        let what = format!("`{}` is not a cell that this policy widens", cell.get_ref());
        let hint = match widened.is_empty() {
            true => "take it out: nothing is widened".to_owned(),
            false => did_you_mean(cell.get_ref(), widened.iter().copied()),
        };
        Problem::at(MANIFEST, text, &cell.span(), what, hint)
    });
    missing.chain(idle).collect()
}

fn unknown_files(files: &Files) -> Vec<Problem> {
    let known = |path: &str| FILES.contains(&path) || is_overlay(path);
    let unknown = files.keys().filter(|path| !known(path));
    let problem = |path: &String| {
        let hint = did_you_mean(path, FILES.into_iter().chain(["overlays/NAME.toml"]));
        Problem::of_file(path, "is not a file of a policy", hint)
    };
    unknown.map(problem).collect()
}

/// Hex SHA-256 over everything that decides: each file but the signatures, and the profile. A
/// policy without matrix and overlays has the version of the built-in matrix instead.
pub fn version(files: &Files, profile: Profile) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut put = |part: &str| {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    };
    put("sekisho-policy-v1");
    put(profile.as_str());
    for (path, text) in files.iter().filter(|(path, _)| path.as_str() != SIGNATURES) {
        put(path);
        put(text);
    }
    hex::encode(context.finish())
}

fn of_toml(file: &str, text: &str, error: &toml::de::Error) -> Problem {
    let what = error.message().replace('\n', " ");
    let hint = "see docs/policies.md for the keys of this file";
    Problem::at(file, text, &error.span().unwrap_or(0..0), what, hint)
}

fn keep<T>(problems: &mut Vec<Problem>, read: Result<T, Vec<Problem>>) -> Option<T> {
    read.map_err(|found| problems.extend(found)).ok()
}

fn clone((path, text): (&String, &String)) -> (String, String) {
    (path.clone(), text.clone())
}

fn is_overlay(path: &str) -> bool {
    let name = path.strip_prefix("overlays/").and_then(|name| name.strip_suffix(".toml"));
    name.is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

/// The file of the matrix.
pub const MATRIX: &str = "sharing-matrix.toml";
/// The file of what is acknowledged.
pub const MANIFEST: &str = "policy.toml";
/// The file of the authors' cases.
pub const CASES: &str = "tests.json";
/// The file of the signatures.
pub const SIGNATURES: &str = "signatures.toml";
const FILES: [&str; 4] = [MATRIX, MANIFEST, CASES, SIGNATURES];
const MATRIX_HINT: &str = "lay the row beside the ministry's table; how marks and footnotes are \
                           read stands at the head of the built-in sharing-matrix.toml";

#[cfg(test)]
mod tests;
