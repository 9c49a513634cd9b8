//! The shipped examples load, and their cases pass: they are what operators begin with.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at the first surprise")]

use std::path::PathBuf;

use policies::bundle::{Policy, Terms, folder};
use policies::matrix::Profile;

fn examples() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn every_example_loads_under_both_profiles() {
    assert!(examples().len() >= 5);
    for dir in examples() {
        for profile in Profile::ALL {
            let terms = Terms { profile: *profile, signers: &[], is_known: None };
            let policy = folder::read(&dir).and_then(|files| Policy::load(&files, &terms));
            let policy = policy.unwrap_or_else(|problems| {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                panic!("{}, {profile}:\n{}", dir.display(), lines.join("\n"))
            });
            assert!(policy.cases >= 4, "{}: {} cases", dir.display(), policy.cases);
            assert!(policy.changes.is_empty() && !policy.matrix.overlays().is_empty());
        }
    }
}

#[test]
fn a_changed_example_fails_one_of_its_cases() {
    for dir in examples() {
        let mut files = folder::read(&dir).unwrap();
        let path = files.keys().find(|path| path.starts_with("overlays/")).unwrap().clone();
        files.remove(&path);
        let terms = Terms { profile: Profile::Deck2025, signers: &[], is_known: None };
        let problems = Policy::load(&files, &terms).err();
        assert!(problems.is_some(), "{}: {path} does nothing", dir.display());
    }
}
