//! The ready file: says that the hub listens, and goes with it.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

/// The file while it stands; removed when dropped.
pub(crate) struct ReadyFile(PathBuf);

impl ReadyFile {
    /// Writes the file whole: under another name first, then renamed.
    pub(crate) fn write(path: &Path) -> std::io::Result<Self> {
        let mut making = path.as_os_str().to_owned();
        making.push(".new");
        let making = PathBuf::from(making);
        let text = json!({ "pid": std::process::id(), "addresses": {} }).to_string();
        let mut file = std::fs::File::create(&making)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&making, path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
