//! Reads a policy folder. The one place in this crate that touches a disk, so that gateway and
//! operator command read the same files in the same way.

use std::fs;
use std::path::Path;

use super::Files;
use crate::problem::Problem;

/// The texts of a folder: the files in it and in `overlays/`. Names that begin with a dot or end
/// with `~`, as editors leave them, are not read.
///
/// # Errors
/// What cannot be read, or is no text, or is too much.
pub fn read(dir: &Path) -> Result<Files, Vec<Problem>> {
    let mut files = Files::new();
    let mut problems = Vec::new();
    read_into(dir, "", &mut files, &mut problems);
    let bytes: usize = files.values().map(String::len).sum();
    if files.len() > FILES_MAX || bytes > BYTES_MAX {
        let hint = format!("a policy has at most {FILES_MAX} files and {BYTES_MAX} bytes");
        problems.push(Problem::of_file(&dir.display().to_string(), "holds too much", hint));
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

fn read_into(dir: &Path, inside: &str, files: &mut Files, problems: &mut Vec<Problem>) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            let hint = "name a folder that exists and that this program may read";
            let what = format!("cannot be read: {error}");
            problems.push(Problem::of_file(&dir.display().to_string(), what, hint));
            return;
        }
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let relative = format!("{inside}{name}");
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        if path.is_dir() && relative == "overlays" {
            read_into(&path, "overlays/", files, problems);
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(text) => drop(files.insert(relative, text)),
            Err(error) => {
                let hint = "make it a text file (UTF-8), or take it out of the folder";
                let what = format!("cannot be read: {error}");
                problems.push(Problem::of_file(&relative, what, hint));
            }
        }
    }
}

const FILES_MAX: usize = 4_096;
const BYTES_MAX: usize = 16 * 1024 * 1024;
