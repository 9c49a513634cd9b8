//! Where everything lies in a data folder.
//!
//! The one place that knows file names inside `--data DIR`; every other file asks here.
//!
//! Invariants: the root is absolute; every unix socket path fits the kernel's limit (checked by
//! [`Layout::new`], before anything is created).

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::exit::usage;

/// The longest path of a unix socket, in bytes (`sun_path` less its closing zero, unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest socket name that lies in `run/`.
const LONGEST_SOCKET: &str = "hub-admin.sock";

/// One of the four programs of the box, in the order in which they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Part {
    /// The cert-authority's signer: holds the issuing key, no network.
    Signer,
    /// The cert-authority's RA: enrolment, revocation, its feed.
    Ra,
    /// The hub: documents, registrations, consents, staff, its feed.
    Hub,
    /// The gateway: the enforcement point.
    Gateway,
}

impl Part {
    /// Every part, in the order of starting.
    pub(crate) const ALL: [Self; 4] = [Self::Signer, Self::Ra, Self::Hub, Self::Gateway];

    /// The name used in files, messages and records.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Signer => "signer",
            Self::Ra => "ra",
            Self::Hub => "hub",
            Self::Gateway => "gateway",
        }
    }

    /// The file name of its program.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Signer => "sekisho-signer",
            Self::Ra => "sekisho-ra",
            Self::Hub => "sekisho-hub",
            Self::Gateway => "sekisho-gateway",
        }
    }
}

/// A data folder.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Takes the folder as it was typed; it need not exist yet.
    ///
    /// # Errors
    /// When the path is empty, not UTF-8, or too long for the unix sockets below it.
    pub(crate) fn new(data: &Path) -> anyhow::Result<Self> {
        let root = std::path::absolute(data)
            .with_context(|| format!("data folder `{}` cannot be used", data.display()))?;
        let layout = Self { root };
        if layout.root.to_str().is_none() {
            return Err(usage(format!(
                "data folder `{}` is not UTF-8: choose another --data",
                data.display()
            )));
        }
        let length = layout.run(LONGEST_SOCKET).as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            let over = length - SOCKET_PATH_BYTES_MAX;
            return Err(usage(format!(
                "data folder `{}` is {over} bytes too long for the unix sockets in it: choose a \
                 shorter --data",
                layout.root.display()
            )));
        }
        Ok(layout)
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder, fit for pasting into a shell line.
    pub(crate) fn quoted(&self) -> String {
        crate::output::shell_quoted(&self.root.display().to_string())
    }

    /// `config/sekisho.toml`.
    pub(crate) fn settings(&self) -> PathBuf {
        self.root.join("config/sekisho.toml")
    }

    /// The configuration of a part.
    pub(crate) fn config(&self, part: Part) -> PathBuf {
        self.root.join("config").join(format!("{}.toml", part.as_str()))
    }

    /// A file in `secrets/`.
    pub(crate) fn secret(&self, name: &str) -> PathBuf {
        self.root.join("secrets").join(name)
    }

    /// A file in `ca/`.
    pub(crate) fn ca(&self, name: &str) -> PathBuf {
        self.root.join("ca").join(name)
    }

    /// A database in `store/`.
    pub(crate) fn store(&self, name: &str) -> PathBuf {
        self.root.join("store").join(name)
    }

    /// The audit log of a part.
    pub(crate) fn audit(&self, part: Part) -> PathBuf {
        self.root.join("audit").join(part.as_str())
    }

    /// The key that signs the heads of a part's audit log.
    pub(crate) fn audit_key(&self, part: Part) -> PathBuf {
        self.secret(&format!("audit-{}.key", part.as_str()))
    }

    /// The public halves of those keys: beside the folder, so that who can write the folder does
    /// not thereby choose what is believed.
    pub(crate) fn pins(&self) -> PathBuf {
        self.sibling(".audit-keys")
    }

    /// Where a demo drops the heads of its logs, outside the folder.
    pub(crate) fn demo_heads(&self) -> PathBuf {
        self.sibling(".heads")
    }

    /// A name beside the folder. A link to the folder has the same siblings as the folder itself.
    fn sibling(&self, ending: &str) -> PathBuf {
        let root = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        let mut name: std::ffi::OsString = root.components().collect::<PathBuf>().into();
        name.push(ending);
        name.into()
    }

    /// A file in `run/`.
    pub(crate) fn run(&self, name: &str) -> PathBuf {
        self.root.join("run").join(name)
    }

    /// The file by which a part says that it is ready.
    pub(crate) fn ready_file(&self, part: Part) -> PathBuf {
        self.run(&format!("{}.ready.json", part.as_str()))
    }

    /// The log of a part.
    pub(crate) fn log(&self, part: Part) -> PathBuf {
        self.run(&format!("{}.log", part.as_str()))
    }

    /// A file or folder in `policy/`; empty for the folder itself.
    pub(crate) fn policy(&self, name: &str) -> PathBuf {
        self.root.join("policy").join(name)
    }

    /// A file or folder in `demo/`.
    pub(crate) fn demo(&self, name: &str) -> PathBuf {
        self.root.join("demo").join(name)
    }

    /// Every folder that `up` makes, parents first.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.root.clone()];
        let names = ["config", "secrets", "ca", "store", "audit", "run"];
        folders.extend(names.iter().map(|name| self.root.join(name)));
        folders.extend(Part::ALL.iter().map(|part| self.audit(*part)));
        folders
    }

    /// The folders that nobody else may enter: keys, the certificate authority, sockets.
    pub(crate) fn closed_folders(&self) -> [PathBuf; 3] {
        ["secrets", "ca", "run"].map(|name| self.root.join(name))
    }

    /// Refuses a folder in which `sekisho up` never ran.
    ///
    /// # Errors
    /// A usage error that says how to make one.
    pub(crate) fn must_exist(&self) -> anyhow::Result<()> {
        if self.settings().is_file() {
            return Ok(());
        }
        Err(usage(format!(
            "`{}` is not a data folder of sekisho (no config/sekisho.toml): name it with --data, \
             or make one with `sekisho up`",
            self.root.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_code;

    #[test]
    fn a_path_too_long_for_sockets_is_refused_with_its_excess() {
        let limit = SOCKET_PATH_BYTES_MAX - "/run/".len() - LONGEST_SOCKET.len();
        let fits = format!("/{}", "d".repeat(limit - 1));
        assert!(Layout::new(Path::new(&fits)).is_ok());
        let error = Layout::new(Path::new(&format!("{fits}d"))).unwrap_err();
        assert!(error.to_string().contains("1 bytes too long"), "{error}");
        assert_eq!(exit_code(&error), 64);
    }

    #[test]
    fn relative_folders_become_absolute() {
        let layout = Layout::new(Path::new("data")).unwrap();
        assert!(layout.root().is_absolute());
        assert!(layout.ready_file(Part::Ra).ends_with("data/run/ra.ready.json"));
    }

    #[test]
    fn what_lies_beside_the_folder_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("data");
        let link = folder.path().join("link");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for root in [real.clone(), real.join(""), link] {
            let layout = Layout::new(&root).unwrap();
            assert_eq!(layout.pins(), real.with_file_name("data.audit-keys"));
            assert_eq!(layout.demo_heads(), real.with_file_name("data.heads"));
        }
    }
}
