//! The population of `sekisho policy diff`: a folder of `sekisho demo generate`, or the same
//! country made in memory from its seed.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use aws_lc_rs::digest;
use policies::feed::Fact;
use policies::matrix::Matrix;
use policies::national::{AS_OF, Nation, Size};
use policies::population::{Builder, Diff, Population};
use serde::Serialize;

use crate::demo::generate::{FORMAT, Listed, MANIFEST, Manifest};
use crate::exit::usage;
use crate::files;
use crate::output::{self, progress};

/// Which population, if one is wanted.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(super) struct Wanted {
    /// Also count what changes for a population: a folder made by `sekisho demo generate`
    #[arg(long, value_name = "DIR")]
    population: Option<PathBuf>,
    /// The same for a country of the default size with this seed, made in memory
    #[arg(long, value_name = "S")]
    population_of_seed: Option<u64>,
}

/// What a change means to a population, and what it took to find out.
#[derive(Debug, Serialize)]
pub(super) struct Counted {
    reading_ms: u64,
    counting_ms: u64,
    #[serde(flatten)]
    diff: Diff,
}

impl Wanted {
    /// Counts what changes, if a population was named.
    ///
    /// # Errors
    /// A usage error when the folder is not as `demo generate` made it.
    pub(super) fn count(&self, old: &Matrix, new: &Matrix) -> anyhow::Result<Option<Counted>> {
        let started = Instant::now();
        let population = match (&self.population, self.population_of_seed) {
            (Some(dir), _) => read(dir)?,
            (None, Some(seed)) => made(Size { seed, ..Size::default() })?,
            (None, None) => return Ok(None),
        };
        let reading_ms = started.elapsed().as_millis() as u64;
        let started = Instant::now();
        let diff = population.diff(old, new);
        let counting_ms = started.elapsed().as_millis() as u64;
        Ok(Some(Counted { reading_ms, counting_ms, diff }))
    }
}

/// For people: the sums, then a line for each cell.
pub(super) fn text(counted: &Counted) -> String {
    let Counted { reading_ms, counting_ms, diff } = counted;
    let mut lines = vec![
        format!(
            "of {} pairs of office and person: {} triples with a kind of document open, {} shut",
            diff.pairs, diff.widened, diff.narrowed
        ),
        format!(
            "  open before {}, after {}; {} combinations, counted in {counting_ms} ms (facts read \
             in {reading_ms} ms)",
            diff.open_before, diff.open_after, diff.combinations
        ),
    ];
    if !diff.cells.is_empty() {
        let row = |it: &policies::population::CellCount| {
            vec![format!("  {}", it.cell), it.widened.to_string(), it.narrowed.to_string()]
        };
        let rows: Vec<Vec<String>> = diff.cells.iter().map(row).collect();
        lines.push(output::table(&["  cell", "open", "shut"], &rows));
    }
    lines.join("\n")
}

fn made(size: Size) -> anyhow::Result<Population> {
    progress("making the population");
    let nation = Nation::new(size).map_err(|error| usage(error.to_string()))?;
    let mut builder = Builder::new(AS_OF);
    // Revoked certificates are no part of a population.
    (0..size.offices).for_each(|at| builder.take(&nation.office(at)));
    nation.hub_facts().for_each(|fact| builder.take(&fact));
    builder.finish().map_err(|error| usage(error.to_string()))
}

fn read(dir: &Path) -> anyhow::Result<Population> {
    let path = dir.join(MANIFEST);
    let remake = "make the folder with `sekisho demo generate`";
    let text = files::read_text(&path).map_err(|error| usage(format!("{error:#}: {remake}")))?;
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|error| usage(format!("file `{}`: {error}: {remake}", path.display())))?;
    if manifest.format != FORMAT {
        let told = &manifest.format;
        let path = path.display();
        return Err(usage(format!("file `{path}` has format `{told}`, not `{FORMAT}`: {remake}")));
    }
    let mut builder = Builder::new(manifest.as_of);
    for listed in &manifest.files {
        progress(&format!("reading {}", listed.name));
        read_facts(dir, listed, &mut builder)?;
    }
    builder.finish().map_err(|error| usage(format!("folder `{}`: {error}", dir.display())))
}

/// Every line of a file, which must be what the manifest tells.
fn read_facts(dir: &Path, listed: &Listed, builder: &mut Builder) -> anyhow::Result<()> {
    if listed.name.contains('/') {
        return Err(usage(format!("`{}` in {MANIFEST} is not a file of the folder", listed.name)));
    }
    let path = dir.join(&listed.name);
    let unreadable = || format!("file `{}` cannot be read", path.display());
    let file = File::open(&path).map_err(|error| usage(format!("{}: {error}", unreadable())))?;
    let mut lines = BufReader::with_capacity(1 << 20, file);
    let mut hash = digest::Context::new(&digest::SHA256);
    let (mut line, mut at) = (Vec::new(), 0u64);
    while lines.read_until(b'\n', &mut line).with_context(unreadable)? > 0 {
        at += 1;
        hash.update(&line);
        let fact: Fact = serde_json::from_slice(&line).map_err(|error| {
            usage(format!("file `{}`, line {at}: {error}: see docs/feed.md", path.display()))
        })?;
        builder.take(&fact);
        line.clear();
    }
    let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != listed.sha256 {
        let (path, told) = (path.display(), &listed.sha256);
        return Err(usage(format!(
            "file `{path}` has SHA-256 {found} and {MANIFEST} says {told}: make the folder anew"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::generate;
    use policies::matrix::Profile;

    const SMALL: Size = Size {
        offices: 200,
        registrations: 2_000,
        insured: 1_800,
        consents: 300,
        municipalities: 20,
        revoked: 50,
        seed: 7,
    };

    fn generated() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("nation");
        generate::write(&Nation::new(SMALL).unwrap(), &out).unwrap();
        (folder, out)
    }

    #[test]
    fn a_folder_counts_as_the_country_that_it_was_made_from() {
        let (_folder, out) = generated();
        let deck = Matrix::builtin(Profile::Deck2025).unwrap();
        let later = Matrix::builtin(Profile::Impl2027).unwrap();
        let read = read(&out).unwrap().diff(&deck, &later);
        assert_eq!(read, made(SMALL).unwrap().diff(&deck, &later));
        assert!(read.pairs == 2_000 && read.widened > 0 && read.narrowed > 0, "{read:?}");
        let shown = text(&Counted { reading_ms: 1, counting_ms: 2, diff: read });
        assert!(shown.contains("home-care-plan/home-support"), "{shown}");
    }

    #[test]
    fn a_folder_that_was_changed_is_refused_with_file_and_line() {
        let (_folder, out) = generated();
        let hub = out.join(generate::HUB);
        let whole = std::fs::read_to_string(&hub).unwrap();
        let refused = || {
            let error = read(&out).unwrap_err();
            assert_eq!(crate::exit::exit_code(&error), 64, "{error:#}");
            format!("{error:#}")
        };
        std::fs::write(&hub, whole.replacen("\"from\"", "\"form\"", 1)).unwrap();
        assert!(refused().contains("hub.jsonl`, line 1: "), "{}", refused());
        std::fs::write(&hub, whole.lines().next().unwrap()).unwrap();
        assert!(refused().contains("make the folder anew"), "{}", refused());
        std::fs::remove_file(&hub).unwrap();
        assert!(refused().contains("hub.jsonl` cannot be read"), "{}", refused());
        std::fs::write(out.join(MANIFEST), "{}").unwrap();
        assert!(refused().contains("sekisho demo generate"), "{}", refused());
    }
}
