//! Which logs a command is about, where they lie and which key is believed for each.
//!
//! Invariant: the key comes from the pins alone, never from beside the log.

use std::path::{Path, PathBuf};

use audit_log::VerifyingKey;

use crate::audit_keys::{self, Pins};
use crate::cli::Context;
use crate::exit::usage;
use crate::layout::Part;
use crate::lock::Lock;

use super::Args;

/// One log.
#[derive(Debug, Clone)]
pub(super) struct Log {
    /// Whose.
    pub(super) part: Part,
    /// Its folder.
    pub(super) folder: PathBuf,
}

impl Log {
    /// The part's name.
    pub(super) const fn name(&self) -> &'static str {
        self.part.as_str()
    }
}

/// The chosen logs and the pins.
#[derive(Debug)]
pub(super) struct Selection {
    /// In the order of starting.
    pub(super) logs: Vec<Log>,
    /// What is believed.
    pub(super) pins: Pins,
    /// Whether the box that writes them runs.
    pub(super) is_running: bool,
    is_copy: bool,
}

impl Selection {
    /// These logs, as copies.
    #[cfg(test)]
    pub(super) fn for_test(logs: Vec<Log>, pins: Pins) -> Self {
        Self { logs, pins, is_running: false, is_copy: true }
    }

    /// What the arguments choose.
    ///
    /// # Errors
    /// A usage error when a folder is none of ours or a copy's part is not known; when a part's
    /// configuration cannot be read.
    pub(super) fn of(args: &Args, context: &Context) -> anyhow::Result<Self> {
        let pins = Self::pins_of(args, context)?;
        if let Some(folder) = &args.folder {
            let part = args.part.map_or_else(|| part_of_copy(folder), Ok)?;
            let logs = vec![Log { part, folder: folder.clone() }];
            return Ok(Self { logs, pins, is_running: false, is_copy: true });
        }
        let layout = &context.layout;
        layout.must_exist()?;
        let parts = args.part.map_or_else(|| Part::ALL.to_vec(), |part| vec![part]);
        let logs = parts
            .into_iter()
            .map(|part| Ok(Log { part, folder: audit_keys::log_folder(layout, part)? }));
        let logs = logs.collect::<anyhow::Result<_>>()?;
        Ok(Self { logs, pins, is_running: Lock::is_held(layout), is_copy: false })
    }

    /// The pins that the arguments name, or those beside the data folder.
    ///
    /// # Errors
    /// A usage error when the file cannot be read.
    pub(super) fn pins_of(args: &Args, context: &Context) -> anyhow::Result<Pins> {
        let path = args.pins.clone().unwrap_or_else(|| context.layout.pins());
        if args.pins.is_some() && !path.is_file() {
            return Err(usage(format!("pins `{}` are not a file: check the path", path.display())));
        }
        Pins::read(&path)
    }

    /// The key that is believed for a log. A file of pins may know several boxes: then a copy's own
    /// checkpoint says which of the pinned ones it is.
    ///
    /// # Errors
    /// A usage error when none is pinned.
    pub(super) fn key(&self, log: &Log) -> anyhow::Result<&VerifyingKey> {
        let claimed = if self.is_copy { origin(&log.folder) } else { None };
        let named = claimed.and_then(|name| self.pins.named(&name));
        let fits = named.filter(|key| audit_keys::part_of(key.name()) == Some(log.part));
        fits.map_or_else(|| self.pins.require(log.part), Ok)
    }

    /// The log that a checkpoint's origin names.
    ///
    /// # Errors
    /// A usage error when it is not among the chosen ones.
    pub(super) fn named(&self, origin: &str) -> anyhow::Result<&Log> {
        let part = audit_keys::part_of(origin);
        self.logs.iter().find(|log| Some(log.part) == part).ok_or_else(|| {
            usage(format!("a checkpoint of `{origin}` belongs to none of the chosen logs"))
        })
    }

    /// The log of one part.
    ///
    /// # Errors
    /// A usage error when it is not among the chosen ones.
    pub(super) fn of_part(&self, part: Part) -> anyhow::Result<Self> {
        let logs: Vec<Log> = self.logs.iter().filter(|log| log.part == part).cloned().collect();
        if logs.is_empty() {
            return Err(usage(format!("this report is made from the log of {}", part.as_str())));
        }
        let Self { pins, is_running, is_copy, .. } = self;
        Ok(Self { logs, pins: pins.clone(), is_running: *is_running, is_copy: *is_copy })
    }

    /// The one chosen log.
    ///
    /// # Errors
    /// A usage error when there are several.
    pub(super) fn only(&self) -> anyhow::Result<&Log> {
        match self.logs.as_slice() {
            [log] => Ok(log),
            _ => Err(usage("several logs have such a record: name one with --part")),
        }
    }
}

/// The part whose log a folder copies, as its own checkpoint says.
fn part_of_copy(folder: &Path) -> anyhow::Result<Part> {
    if !folder.is_dir() {
        return Err(usage(format!("`{}` is not a folder: check the path", folder.display())));
    }
    origin(folder).as_deref().and_then(audit_keys::part_of).ok_or_else(|| {
        usage(format!("`{}` does not say whose log it is: name it with --part", folder.display()))
    })
}

/// The name in the first line of a log's newest checkpoint.
fn origin(folder: &Path) -> Option<String> {
    let note = crate::files::read_at_most(&folder.join("checkpoint"), 4096).ok()?;
    String::from_utf8(note).ok()?.lines().next().map(str::to_owned)
}
