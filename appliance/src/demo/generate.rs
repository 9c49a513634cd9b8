//! `sekisho demo generate`: the facts of an invented country, as files, the same for the same seed.
//!
//! ```text
//!  .NAME.PID/  ca.jsonl  hub.jsonl  manifest.json  ── renamed to ──►  OUT/
//! ```
//!
//! A line is one fact as in docs/feed.md. Nothing is seen at OUT before everything is written, and
//! what could not be written whole is taken away again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use aws_lc_rs::digest;
use policies::feed::Fact;
use policies::national::{AS_OF, Nation, Size};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::Context;
use crate::exit::usage;
use crate::output::{self, progress};

/// Arguments of `demo generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many offices
    #[arg(long, value_name = "N", default_value_t = Size::default().offices)]
    offices: u64,
    /// How many registrations
    #[arg(long, value_name = "N", default_value_t = Size::default().registrations)]
    registrations: u64,
    /// How many insured persons; by default nine for ten registrations
    #[arg(long, value_name = "N")]
    insured: Option<u64>,
    /// How many consents; by default one for six persons
    #[arg(long, value_name = "N")]
    consents: Option<u64>,
    /// How many revoked certificates; by default one for forty registrations
    #[arg(long, value_name = "N")]
    revoked: Option<u64>,
    /// How many municipalities
    #[arg(long, value_name = "N", default_value_t = Size::default().municipalities)]
    municipalities: u64,
    /// The same number gives the same facts, byte by byte
    #[arg(long, value_name = "S")]
    seed: u64,
    /// The folder to make; one that exists must be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What manifest.json says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// [`FORMAT`].
    pub(crate) format: String,
    /// What the facts were made from.
    pub(crate) size: Size,
    /// The moment at which the country stands, Unix seconds.
    pub(crate) as_of: u64,
    /// How many facts of each kind.
    pub(crate) facts: BTreeMap<String, u64>,
    /// The files beside it.
    pub(crate) files: Vec<Listed>,
}

/// A file of a generated folder.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Args {
    fn size(&self) -> Size {
        let registrations = self.registrations;
        let insured = self.insured.unwrap_or_else(|| (registrations / 10 * 9).max(1));
        Size {
            offices: self.offices,
            registrations,
            insured,
            consents: self.consents.unwrap_or(insured / 6),
            municipalities: self.municipalities,
            revoked: self.revoked.unwrap_or(registrations / 40),
            seed: self.seed,
        }
    }
}

/// Runs `demo generate`.
///
/// # Errors
/// A usage error for a size of which there is no country and for a folder that is not empty;
/// otherwise when the files cannot be written.
pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let nation = Nation::new(args.size()).map_err(|error| usage(error.to_string()))?;
    let started = Instant::now();
    let manifest = write(&nation, &args.out)?;
    let took_ms = started.elapsed().as_millis() as u64;
    let value = json!({"out": args.out, "took_ms": took_ms, "manifest": manifest});
    output::data(context.json, &value, || told(&manifest, &args.out, took_ms));
    Ok(true)
}

fn told(manifest: &Manifest, out: &Path, took_ms: u64) -> String {
    let counts = manifest.facts.iter().map(|(kind, count)| vec![kind.clone(), count.to_string()]);
    let files = manifest
        .files
        .iter()
        .map(|file| vec![file.name.clone(), file.bytes.to_string(), file.sha256.clone()]);
    [
        output::table(&["fact", "count"], &counts.collect::<Vec<_>>()),
        String::new(),
        output::table(&["file", "bytes", "sha256"], &files.collect::<Vec<_>>()),
        String::new(),
        format!("`{}` written in {}.{:03} s", out.display(), took_ms / 1000, took_ms % 1000),
    ]
    .join("\n")
}

/// Writes the folder, whole or not at all.
pub(crate) fn write(nation: &Nation, out: &Path) -> anyhow::Result<Manifest> {
    let temporary = beside(out)?;
    enough_room(nation, &temporary)?;
    fs::create_dir(&temporary)
        .with_context(|| format!("folder `{}` cannot be made", temporary.display()))?;
    let written = write_all(nation, &temporary).and_then(|manifest| {
        let unnamed = || format!("folder `{}` cannot be made", out.display());
        fs::rename(&temporary, out).with_context(unnamed)?;
        Ok(manifest)
    });
    if written.is_err() {
        let _nothing_more_to_do = fs::remove_dir_all(&temporary);
    }
    written
}

/// A folder name beside `out`, which must be new or empty.
fn beside(out: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(mut entries) = fs::read_dir(out) {
        if entries.next().is_some() {
            let text = "is not empty: name a new folder, or empty it";
            return Err(usage(format!("folder `{}` {text}", out.display())));
        }
    } else if fs::symlink_metadata(out).is_ok() {
        return Err(usage(format!("`{}` is not a folder: name a new one", out.display())));
    }
    let whole = std::path::absolute(out).with_context(|| format!("path `{}`", out.display()))?;
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(usage(format!("`{}` names no folder: name a new one", out.display())));
    };
    if !parent.is_dir() {
        return Err(usage(format!("there is no folder `{}`: make it first", parent.display())));
    }
    Ok(parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id())))
}

fn write_all(nation: &Nation, folder: &Path) -> anyhow::Result<Manifest> {
    let mut facts = BTreeMap::new();
    let mut files = Vec::new();
    let sources: [(&str, Box<dyn Iterator<Item = Fact> + '_>); 2] =
        [(CA, Box::new(nation.ca_facts())), (HUB, Box::new(nation.hub_facts()))];
    for (name, told) in sources {
        progress(&format!("writing {name}"));
        let path = folder.join(name);
        let listed = write_facts(&path, name, told, &mut facts);
        files.push(listed.with_context(|| format!("file `{}` cannot be written", path.display()))?);
    }
    let facts = facts.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
    let manifest =
        Manifest { format: FORMAT.to_owned(), size: nation.size(), as_of: AS_OF, facts, files };
    let text = format!("{:#}\n", json!(manifest));
    crate::files::write_private(&folder.join(MANIFEST), text.as_bytes())?;
    Ok(manifest)
}

fn write_facts(
    path: &Path,
    name: &str,
    facts: impl Iterator<Item = Fact>,
    counts: &mut BTreeMap<&'static str, u64>,
) -> anyhow::Result<Listed> {
    let mut out = Hashed {
        file: fs::File::create_new(path)?,
        hash: digest::Context::new(&digest::SHA256),
        bytes: 0,
    };
    let mut buffer = BufWriter::with_capacity(1 << 20, &mut out);
    let mut lines = 0;
    for fact in facts {
        serde_json::to_writer(&mut buffer, &fact)?;
        buffer.write_all(b"\n")?;
        lines += 1;
        *counts.entry(kind(&fact)).or_default() += 1;
    }
    buffer.flush()?;
    drop(buffer);
    out.file.sync_all()?;
    let sha256 = out.hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Listed { name: name.to_owned(), lines, bytes: out.bytes, sha256 })
}

/// A file, and the hash of what was written to it.
struct Hashed {
    file: fs::File,
    hash: digest::Context,
    bytes: u64,
}

impl Write for &mut Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The name of a fact's kind, as its `fact` member says it.
const fn kind(fact: &Fact) -> &'static str {
    match fact {
        Fact::Office { .. } => "office",
        Fact::Revoked { .. } => "revoked",
        Fact::Registration { .. } => "registration",
        Fact::Consent { .. } => "consent",
        Fact::Author { .. } => "author",
        Fact::PlansFor { .. } => "plans_for",
        Fact::OpinionRequest { .. } => "opinion_request",
        Fact::Sharing { .. } => "sharing",
        Fact::StaffKey { .. } => "staff_key",
        Fact::SessionEnded { .. } => "session_ended",
    }
}

/// Refuses at once what would fill the disk after a minute.
fn enough_room(nation: &Nation, temporary: &Path) -> anyhow::Result<()> {
    let Some(parent) = temporary.parent() else { return Ok(()) };
    let disk = rustix::fs::statvfs(parent)
        .with_context(|| format!("the disk of `{}` cannot be looked at", parent.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let wanted = bytes_expected(nation)?;
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    if free < wanted {
        return Err(usage(format!(
            "the files need about {} MiB and `{}` has {} MiB free: name a folder on another disk, \
             or ask for fewer",
            mib(wanted),
            parent.display(),
            mib(free)
        )));
    }
    Ok(())
}

/// About how many bytes the files take, from the first facts of each kind, and a tenth more.
fn bytes_expected(nation: &Nation) -> anyhow::Result<u64> {
    let size = nation.size();
    let kinds: [(u64, &dyn Fn(u64) -> Fact); 5] = [
        (size.offices, &|at| nation.office(at)),
        (size.revoked, &|at| nation.revoked(at)),
        (size.municipalities, &|at| nation.sharing(at)),
        (size.consents, &|at| nation.consent(at)),
        (size.registrations, &|at| nation.registration(at)),
    ];
    let mut bytes = 0;
    for (count, fact) in kinds {
        let looked_at = count.min(SAMPLE);
        let mut sampled = 0;
        for at in 0..looked_at {
            sampled += serde_json::to_string(&fact(at))?.len() as u64 + 1;
        }
        bytes += sampled * count / looked_at.max(1);
    }
    Ok(bytes + bytes / 10)
}

/// What a generated folder says of itself.
pub(crate) const FORMAT: &str = "sekisho-national-v1";
/// The file of the counts and hashes.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The file of what the cert-authority tells.
pub(crate) const CA: &str = "ca.jsonl";
/// The file of what the hub tells.
pub(crate) const HUB: &str = "hub.jsonl";
const SAMPLE: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn size(seed: u64) -> Size {
        Size {
            offices: 200,
            registrations: 2_000,
            insured: 1_800,
            consents: 300,
            municipalities: 20,
            revoked: 50,
            seed,
        }
    }

    fn generate(out: &Path, seed: u64) -> anyhow::Result<Manifest> {
        write(&Nation::new(size(seed)).unwrap(), out)
    }

    #[test]
    fn the_same_seed_gives_the_same_files_and_the_manifest_tells_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let manifest = generate(&at("a"), 7).unwrap();
        fs::create_dir(at("b")).unwrap();
        assert_eq!(generate(&at("b"), 7).unwrap(), manifest);
        assert_ne!(generate(&at("c"), 8).unwrap().files, manifest.files);
        let text = fs::read_to_string(at("a").join(MANIFEST)).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
        for file in &manifest.files {
            let bytes = fs::read(at("a").join(&file.name)).unwrap();
            let hash = digest::digest(&digest::SHA256, &bytes);
            let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((bytes.len() as u64, hex), (file.bytes, file.sha256.clone()));
            assert_eq!(bytes, fs::read(at("b").join(&file.name)).unwrap());
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let facts: Vec<Fact> =
                lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
            assert_eq!(facts.len() as u64, file.lines);
        }
        assert_eq!(manifest.facts["registration"], 2_000);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else is left");
    }

    #[test]
    fn a_folder_that_holds_something_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("mine"), "x").unwrap();
        for (path, told) in [
            (out.clone(), "is not empty"),
            (out.join("mine"), "is not a folder"),
            (out.join("no/deeper"), "make it first"),
        ] {
            let error = generate(&path, 7).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
            assert_eq!(crate::exit::exit_code(&error), 64);
        }
        assert_eq!(fs::read_to_string(out.join("mine")).unwrap(), "x");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_the_files_will_take_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let nation = Nation::new(size(7)).unwrap();
        let manifest = write(&nation, &folder.path().join("a")).unwrap();
        let written: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        let expected = bytes_expected(&nation).unwrap();
        assert!(expected > written && expected < written * 3 / 2, "{expected} {written}");
    }
}
