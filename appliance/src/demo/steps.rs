//! Which steps of the demo are done: `demo/steps.json`, rewritten after each.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::files;
use crate::layout::Layout;

/// The steps that are done.
#[derive(Debug)]
pub(super) struct Steps {
    path: PathBuf,
    done: BTreeSet<String>,
}

impl Steps {
    /// Reads what an earlier run did.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub(super) fn read(layout: &Layout) -> anyhow::Result<Self> {
        let path = layout.demo("steps.json");
        let done = if path.exists() {
            serde_json::from_str(&files::read_text(&path)?)
                .with_context(|| format!("file `{}` is not understood", path.display()))?
        } else {
            BTreeSet::new()
        };
        Ok(Self { path, done })
    }

    /// Whether a step is still to be done.
    pub(super) fn is_open(&self, step: &str) -> bool {
        !self.done.contains(step)
    }

    /// Remembers that a step is done.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn close(&mut self, step: &str) -> anyhow::Result<()> {
        self.done.insert(step.to_owned());
        files::write_private(&self.path, serde_json::to_string_pretty(&self.done)?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_steps_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        files::private_folder(&layout.demo("")).unwrap();
        let mut steps = Steps::read(&layout).unwrap();
        assert!(steps.is_open("a"));
        steps.close("a").unwrap();
        let again = Steps::read(&layout).unwrap();
        assert!(!again.is_open("a") && again.is_open("b"));
    }
}
