//! `config/sekisho.toml`: what the operator chose for the whole box.
//!
//! [`RawSettings`] is what stands in the file, [`Settings`] is what it means; all problems are
//! reported together. Written on the first `up`, changed only by listen addresses that were given
//! on the command line.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::exit::usage;
use crate::files;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    demo: bool,
    gateway_listen: String,
    enrol_listen: String,
    admin_listen: String,
}

/// The checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Whether the folder was made with `--demo`; never changes.
    pub(crate) demo: bool,
    /// The gateway's public listener.
    pub(crate) gateway_listen: SocketAddr,
    /// The RA's enrolment listener.
    pub(crate) enrol_listen: SocketAddr,
    /// The gateway's metrics and readiness; loopback.
    pub(crate) admin_listen: SocketAddr,
}

/// Listen addresses given on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ListenArgs {
    /// Address of the gateway's public listener, such as 127.0.0.1:8443 (port 0: any free port)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway_listen: Option<SocketAddr>,
    /// Address of the enrolment listener, such as 127.0.0.1:8444
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) enrol_listen: Option<SocketAddr>,
    /// Address of metrics and readiness, such as 127.0.0.1:9901; loopback only
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin_listen: Option<SocketAddr>,
}

impl Settings {
    /// The settings of a new folder: loopback in demo, every address otherwise.
    pub(crate) fn new(demo: bool) -> Self {
        let public = if demo { [127, 0, 0, 1] } else { [0, 0, 0, 0] };
        Self {
            demo,
            gateway_listen: SocketAddr::from((public, 8443)),
            enrol_listen: SocketAddr::from((public, 8444)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 9901)),
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// A usage error that names the file and every key that is wrong.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = files::read_config(path)?;
        let named = || format!("config file `{}`", path.display());
        let raw: RawSettings =
            toml::from_str(&text).map_err(|error| usage(toml_line(&error))).with_context(named)?;
        Self::check(&raw).map_err(|problems| usage(problems.join("; "))).with_context(named)
    }

    /// These settings with the addresses of the command line in place.
    ///
    /// # Errors
    /// A usage error when the result may not be.
    pub(crate) fn with(mut self, listen: &ListenArgs) -> anyhow::Result<Self> {
        self.gateway_listen = listen.gateway_listen.unwrap_or(self.gateway_listen);
        self.enrol_listen = listen.enrol_listen.unwrap_or(self.enrol_listen);
        self.admin_listen = listen.admin_listen.unwrap_or(self.admin_listen);
        let problems = self.problems();
        if problems.is_empty() { Ok(self) } else { Err(usage(problems.join("; "))) }
    }

    fn check(raw: &RawSettings) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut address = |key: &str, text: &str| {
            text.parse::<SocketAddr>().unwrap_or_else(|_| {
                problems.push(format!(
                    "key `{key}`: `{text}` is not an address: write an IP address and a port, \
                     such as `127.0.0.1:8443`"
                ));
                SocketAddr::from(([127, 0, 0, 1], 0))
            })
        };
        let settings = Self {
            demo: raw.demo,
            gateway_listen: address("gateway_listen", &raw.gateway_listen),
            enrol_listen: address("enrol_listen", &raw.enrol_listen),
            admin_listen: address("admin_listen", &raw.admin_listen),
        };
        problems.extend(settings.problems());
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let public = [("gateway_listen", self.gateway_listen), ("enrol_listen", self.enrol_listen)];
        for (key, address) in public {
            if self.demo && !address.ip().is_loopback() {
                problems.push(format!(
                    "key `{key}`: `{address}` is not a loopback address, and a demo listens on \
                     loopback only: use 127.0.0.1"
                ));
            }
        }
        if !self.admin_listen.ip().is_loopback() {
            problems.push(format!(
                "key `admin_listen`: `{}` is not a loopback address: use 127.0.0.1",
                self.admin_listen
            ));
        }
        for (first, second) in self.same_twice() {
            problems.push(format!("keys `{first}` and `{second}` name the same address"));
        }
        problems
    }

    fn same_twice(&self) -> Vec<(&'static str, &'static str)> {
        let all = self.listeners();
        let mut found = Vec::new();
        for (at, (_, first, one)) in all.iter().enumerate() {
            for (_, second, other) in all.iter().skip(at + 1) {
                if one == other && one.port() != 0 {
                    found.push((*first, *second));
                }
            }
        }
        found
    }

    /// Every listener: its option, its key here, its address.
    pub(crate) fn listeners(&self) -> [(&'static str, &'static str, SocketAddr); 3] {
        [
            ("--gateway-listen", "gateway_listen", self.gateway_listen),
            ("--enrol-listen", "enrol_listen", self.enrol_listen),
            ("--admin-listen", "admin_listen", self.admin_listen),
        ]
    }

    /// The text of the file.
    pub(crate) fn render(&self) -> String {
        format!(
            "# What holds for the whole box. `sekisho up` writes it on first start; listen \
             addresses given to `sekisho up`\n# replace those here and in the parts' own files.\n\n\
             # Made with --demo: invented data, own server certificates, loopback only. Never \
             change it.\ndemo = {}\n\n\
             # The gateway's public listener.\ngateway_listen = \"{}\"\n\n\
             # The enrolment listener.\nenrol_listen = \"{}\"\n\n\
             # Metrics and readiness, plain HTTP, loopback only.\nadmin_listen = \"{}\"\n",
            self.demo, self.gateway_listen, self.enrol_listen, self.admin_listen
        )
    }
}

/// A TOML error as one line with its position.
fn toml_line(error: &toml::de::Error) -> String {
    error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{error_line, exit_code};

    fn written(text: &str) -> anyhow::Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sekisho.toml");
        std::fs::write(&path, text).unwrap();
        Settings::read(&path)
    }

    #[test]
    fn what_is_written_is_read_back() {
        for demo in [true, false] {
            let settings = Settings::new(demo);
            assert_eq!(written(&settings.render()).unwrap(), settings);
        }
    }

    #[test]
    fn all_problems_are_named_together() {
        let text = "demo = true\ngateway_listen = \"0.0.0.0:1\"\nenrol_listen = \"x\"\n\
                    admin_listen = \"10.0.0.1:9\"\n";
        let error = written(text).unwrap_err();
        let line = error_line(&error);
        for key in ["gateway_listen", "enrol_listen", "admin_listen", "sekisho.toml"] {
            assert!(line.contains(key), "{line}");
        }
        assert_eq!(exit_code(&error), 64);
    }

    #[test]
    fn unknown_and_missing_keys_are_named() {
        let unknown = written(&format!("{}gatway = 1\n", Settings::new(true).render()));
        assert!(error_line(&unknown.unwrap_err()).contains("gatway"));
        let missing = written("demo = true\n");
        assert!(error_line(&missing.unwrap_err()).contains("gateway_listen"));
    }

    #[test]
    fn one_address_twice_is_refused_unless_the_port_is_free() {
        let same: SocketAddr = "127.0.0.1:8443".parse().unwrap();
        let listen = ListenArgs { enrol_listen: Some(same), ..ListenArgs::default() };
        assert!(Settings::new(true).with(&listen).is_err());
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listen = ListenArgs {
            gateway_listen: Some(free),
            enrol_listen: Some(free),
            admin_listen: Some(free),
        };
        assert!(Settings::new(true).with(&listen).is_ok());
    }
}
