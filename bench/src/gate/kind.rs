//! The kind of machine that counts hold for: what the code is made by, and what it finds.
//!
//! Under valgrind a program sees valgrind's CPU, not the machine's: the same one on every machine
//! with AVX2. The features that code paths are chosen by (AWS-LC, memchr, the C library) are asked
//! for in there.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::callgrind;

/// What instruction counts depend on beside the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kind {
    /// `release` or `debug`.
    pub(super) profile: String,
    /// What compiled this program, as it says in its `.comment` section.
    rustc: String,
    /// The C compiler here: AWS-LC and the allocator are built with it.
    cc: String,
    /// The C library.
    libc: String,
    valgrind: String,
    cpu: Features,
}

/// What a CPU says it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Features {
    architecture: String,
    features: Vec<String>,
}

impl Kind {
    pub(super) fn of_this_machine() -> Result<Self> {
        let this = std::env::current_exe().context("cannot tell which program this is")?;
        let this = this.to_string_lossy();
        let comment = answer("readelf", &["--string-dump=.comment", &this])?;
        let rustc = rustc(&comment).context("`readelf` finds no rustc in this program")?;
        let cc = answer("cc", &["--version"])?;
        let wrapper = ["valgrind", "--quiet", "--tool=none"].map(str::to_owned);
        let cpu = callgrind::run(&wrapper, &["gate", "--features"])?;
        Ok(Self {
            profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            rustc,
            cc: cc.lines().next().unwrap_or_default().to_owned(),
            libc: answer("getconf", &["GNU_LIBC_VERSION"])?,
            valgrind: answer("valgrind", &["--version"])?,
            cpu: serde_json::from_str(&cpu).context("cannot read the features")?,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}", self.cpu.architecture, self.cpu.features.join(" "))?;
        write!(f, "; {} build; {}; {}; ", self.profile, self.rustc, self.cc)?;
        write!(f, "{}; {}", self.libc, self.valgrind)
    }
}

fn answer(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start `{program}`: run scripts/install.sh"))?;
    anyhow::ensure!(output.status.success(), "`{program}` ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The one line of rustc in a section as `readelf --string-dump` prints it: `  [    2c]  text`.
/// Other lines come and go with what happens to be linked.
fn rustc(dump: &str) -> Option<String> {
    let texts = dump.lines().filter_map(|line| line.split_once("]  ")).map(|(_, text)| text.trim());
    texts.filter(|text| text.starts_with("rustc ")).map(str::to_owned).next()
}

/// A list of those features of this CPU that are named.
#[cfg(target_arch = "x86_64")]
macro_rules! features {
    ($($feature:tt),+) => {
        [$(($feature, std::arch::is_x86_feature_detected!($feature))),+]
    };
}

impl Features {
    /// As this process sees it.
    pub(super) fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        let known = features!(
            "adx",
            "aes",
            "avx",
            "avx2",
            "avx512bw",
            "avx512f",
            "bmi1",
            "bmi2",
            "fma",
            "lzcnt",
            "movbe",
            "pclmulqdq",
            "popcnt",
            "sha",
            "sse4.1",
            "sse4.2",
            "ssse3",
            "vaes",
            "vpclmulqdq"
        );
        #[cfg(not(target_arch = "x86_64"))]
        let known: [(&str, bool); 0] = [];
        Self {
            architecture: std::env::consts::ARCH.to_owned(),
            features: known
                .into_iter()
                .filter(|(_, has)| *has)
                .map(|(name, _)| name.to_owned())
                .collect(),
        }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.architecture, self.features.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_is_found_among_what_else_was_linked() {
        let dump = "\nString dump of section '.comment':\n  [     0]  GCC: (Debian 12) 12.2.0\n  \
                    [    2c]  rustc version 1.95.0 (x 2026-04-14)\n  [    8b]  clang 22\n";
        assert_eq!(rustc(dump).as_deref(), Some("rustc version 1.95.0 (x 2026-04-14)"));
        assert_eq!(rustc("no such section"), None);
    }

    #[test]
    fn features_survive_the_way_through_json() {
        let here = Features::here();
        let text = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Features>(&text).unwrap(), here);
        assert_eq!(here.architecture, std::env::consts::ARCH);
    }
}
