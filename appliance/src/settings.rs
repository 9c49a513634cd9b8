//! `config/sekisho.toml`: what the operator chose for the whole box.
//!
//! [`RawSettings`] is what stands in the file, [`Settings`] is what it means; all problems are
//! reported together. Written on the first `up`, changed only by listen addresses that were given
//! on the command line; every other line stays as it is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::exit::usage;
use crate::files;
use crate::toml_text::{self, quoted};

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    demo: bool,
    gateway_listen: String,
    enrol_listen: String,
    admin_listen: String,
    #[serde(default)]
    audit: RawAudit,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAudit {
    heads: Option<RawHeads>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeads {
    file_drop: Option<String>,
    http: Option<String>,
    http_trust: Option<String>,
    syslog: Option<String>,
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
    /// Where the heads of the audit logs are brought; `None` when the file has no such table.
    pub(crate) heads: Option<Heads>,
}

/// The sinks to which the heads of the audit logs are brought; there may be none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Heads {
    /// A folder.
    pub(crate) file_drop: Option<PathBuf>,
    /// A URL to which they are posted.
    pub(crate) http: Option<HttpSink>,
    /// A syslog receiver.
    pub(crate) syslog: Option<SyslogSink>,
}

/// An HTTP endpoint; without TLS on loopback only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpSink {
    /// `https://…`.
    pub(crate) url: http::Uri,
    /// PEM file with the certificates that it may be issued under.
    pub(crate) trust: PathBuf,
}

/// A syslog receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SyslogSink {
    /// `udp://host:port`: one datagram a message (RFC 5426).
    Udp(String),
    /// `tcp://host:port`: octet counting (RFC 6587 §3.4.1).
    Tcp(String),
    /// `unix:/dev/log`: a datagram socket.
    Unix(PathBuf),
}

impl Heads {
    /// One folder and nothing else.
    pub(crate) fn file_drop(folder: PathBuf) -> Self {
        Self { file_drop: Some(folder), ..Self::default() }
    }

    /// Whether there is no sink.
    pub(crate) fn is_empty(&self) -> bool {
        self.file_drop.is_none() && self.http.is_none() && self.syslog.is_none()
    }

    fn check(raw: &RawHeads, problems: &mut Vec<String>) -> Self {
        let mut checked = |key: &str, found: Result<(), String>| {
            problems.extend(found.err().map(|why| format!("key `audit.heads.{key}`: {why}")));
        };
        let file_drop = raw.file_drop.as_ref().map(PathBuf::from);
        if let Some(folder) = &file_drop {
            let whole = folder.is_absolute();
            checked("file_drop", whole.then_some(()).ok_or("name it from `/` on".to_owned()));
        }
        let trust = raw.http_trust.clone().unwrap_or(SYSTEM_TRUST.to_owned());
        let http = raw.http.as_ref().and_then(|url| match HttpSink::parse(url, &trust) {
            Ok(sink) => Some(sink),
            Err(why) => {
                checked("http", Err(why));
                None
            }
        });
        if raw.http_trust.is_some() && raw.http.is_none() {
            checked("http_trust", Err("there is no `http` that it could be for".to_owned()));
        }
        let syslog = raw.syslog.as_ref().and_then(|target| match SyslogSink::parse(target) {
            Ok(sink) => Some(sink),
            Err(why) => {
                checked("syslog", Err(why));
                None
            }
        });
        Self { file_drop, http, syslog }
    }
}

impl HttpSink {
    /// Scheme, host, port and path. A query may hold a secret and is never shown.
    pub(crate) fn shown(&self) -> String {
        shown(&self.url)
    }

    fn parse(text: &str, trust: &str) -> Result<Self, String> {
        let wrong = || "this is no URL: write `https://host/path`".to_owned();
        let url: http::Uri = text.parse().map_err(|_| wrong())?;
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            // Not repeated here: what stands before the @ is a secret.
            return Err("a URL with a user or password is not taken: leave it out".to_owned());
        }
        let host = url.host().ok_or_else(wrong)?;
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if loopback => {}
            Some("http") => {
                return Err(format!("`{}` is without TLS: use `https://`", shown(&url)));
            }
            Some(_) | None => return Err(wrong()),
        }
        Ok(Self { url, trust: PathBuf::from(trust) })
    }
}

fn shown(url: &http::Uri) -> String {
    let scheme = url.scheme_str().unwrap_or_default();
    let authority = url.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    format!("{scheme}://{authority}{}", url.path())
}

impl SyslogSink {
    fn parse(text: &str) -> Result<Self, String> {
        let host_and_port = |rest: &str| {
            let port = rest.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            port.and_then(|(_, port)| port.parse::<u16>().ok()).map(|_| rest.to_owned())
        };
        let parsed = if let Some(rest) = text.strip_prefix("udp://") {
            host_and_port(rest).map(Self::Udp)
        } else if let Some(rest) = text.strip_prefix("tcp://") {
            host_and_port(rest).map(Self::Tcp)
        } else {
            let path = text.strip_prefix("unix:").filter(|path| path.starts_with('/'));
            path.map(|path| Self::Unix(PathBuf::from(path)))
        };
        parsed.ok_or_else(|| {
            format!("`{text}`: write `udp://host:port`, `tcp://host:port` or `unix:/dev/log`")
        })
    }
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
            heads: None,
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
            heads: None,
        };
        let heads = raw.audit.heads.as_ref().map(|heads| Heads::check(heads, &mut problems));
        let settings = Self { heads, ..settings };
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

    /// Writes the file; in one that exists only what differs is changed.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        if !path.exists() {
            return files::write_private(path, self.render().as_bytes());
        }
        let before = files::read_config(path)?;
        let written = Self::read(path)?;
        let mut text = before.clone();
        for ((_, key, address), (_, _, old)) in self.listeners().iter().zip(written.listeners()) {
            if *address != old {
                text =
                    toml_text::set(&text, "", key, &quoted(&address.to_string())).unwrap_or(text);
            }
        }
        if let (None, Some(heads)) = (&written.heads, &self.heads) {
            text.push_str(&heads_table(Some(heads)));
        }
        if text != before {
            files::write_private(path, text.as_bytes())?;
        }
        Ok(())
    }

    /// The text of the file.
    pub(crate) fn render(&self) -> String {
        self.render_box() + &heads_table(self.heads.as_ref())
    }

    fn render_box(&self) -> String {
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

fn heads_table(heads: Option<&Heads>) -> String {
    let drop = heads.and_then(|heads| heads.file_drop.as_ref());
    let value = drop.map(|folder| quoted(&folder.display().to_string()));
    let (table, drop) = match (heads, value) {
        (Some(_), Some(value)) => ("[audit.heads]", format!("file_drop = {value}")),
        (Some(_), None) => ("[audit.heads]", DROP_EXAMPLE.to_owned()),
        (None, _) => ("# [audit.heads]", DROP_EXAMPLE.to_owned()),
    };
    format!(
        "\n# Where the signed heads of the audit logs are brought as they are made, so that \
         records cut off\n# at the end are seen: a place that this box cannot change \
         afterwards.\n{table}\n\
         {drop}\n\
         # http = \"https://witness.example/heads\"\n\
         # http_trust = \"/etc/ssl/certs/ca-certificates.crt\"\n\
         # syslog = \"tcp://loghost.example:601\"    # or udp://host:port, or unix:/dev/log\n"
    )
}

const DROP_EXAMPLE: &str = "# file_drop = \"/mnt/witness/heads\"";

/// Where Debian keeps the certificates that it trusts.
const SYSTEM_TRUST: &str = "/etc/ssl/certs/ca-certificates.crt";

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
    fn sinks_are_read_and_wrong_ones_named_together() {
        let base = Settings::new(true).render();
        assert_eq!(written(&base).unwrap().heads, None);
        let good = format!(
            "{base}[audit.heads]\nfile_drop = \"/mnt/h\"\nhttp = \"https://w.example/h\"\n\
             syslog = \"udp://127.0.0.1:514\"\n"
        );
        let heads = written(&good).unwrap().heads.unwrap();
        assert_eq!(heads.file_drop.as_deref(), Some(Path::new("/mnt/h")));
        assert_eq!(heads.syslog, Some(SyslogSink::Udp("127.0.0.1:514".to_owned())));
        assert_eq!(heads.http.unwrap().trust, Path::new(SYSTEM_TRUST));
        let bad = format!(
            "{base}[audit.heads]\nfile_drop = \"h\"\nhttp = \"http://w.example/h\"\n\
             syslog = \"loghost\"\n"
        );
        let line = error_line(&written(&bad).unwrap_err());
        for key in ["file_drop", "heads.http`", "syslog", "https://", "unix:/dev/log"] {
            assert!(line.contains(key), "{line}");
        }
    }

    #[test]
    fn secrets_in_a_sinks_url_are_refused_or_not_shown() {
        let trust = SYSTEM_TRUST;
        let sink = HttpSink::parse("https://w.example:8443/h?token=geheim", trust).unwrap();
        assert_eq!(sink.shown(), "https://w.example:8443/h");
        for url in ["https://user:geheim@w.example/h", "http://w.example/h?token=geheim"] {
            let why = HttpSink::parse(url, trust).unwrap_err();
            assert!(!why.contains("geheim"), "{why}");
        }
    }

    #[test]
    fn a_file_that_exists_keeps_the_operators_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sekisho.toml");
        let mut settings = Settings::new(true);
        let old = settings.render_box() + "# mine\n";
        std::fs::write(&path, &old).unwrap();
        settings.write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), old);
        settings.enrol_listen = "127.0.0.1:7".parse().unwrap();
        settings.heads = Some(Heads::file_drop("/d".into()));
        settings.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("# mine\n") && text.contains("127.0.0.1:7"), "{text}");
        assert_eq!(Settings::read(&path).unwrap(), settings);
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
