//! A running demo box: where its parts answer, and how many certificates it may sign in a minute.
//!
//! Only demo boxes are loaded: the measurement leaves thousands of offices and certificates behind.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::Usage;

/// Where a box answers.
pub(super) struct DemoBox {
    /// The RA's admin socket.
    pub(super) admin_socket: PathBuf,
    /// Where terminals enrol.
    pub(super) enrol: SocketAddr,
    /// How terminals speak to it.
    pub(super) tls: Arc<ClientConfig>,
    /// The RA's process.
    pub(super) ra_pid: u32,
    /// The signer's process.
    pub(super) signer_pid: u32,
    /// What the signer may sign in a minute.
    pub(super) issue_rate_per_minute_max: u32,
}

impl DemoBox {
    /// Finds the parts of the box that runs in `data`. If it may not sign `certificates` at once,
    /// it is allowed more and started again with `sekisho`, or it is said how.
    ///
    /// # Errors
    /// When it does not run, is none for demonstration, or may not sign enough.
    pub(super) fn open(
        data: &Path,
        sekisho: Option<&Path>,
        certificates: u32,
    ) -> anyhow::Result<Self> {
        let file = data.join("config/signer.toml");
        let mut issue_rate_per_minute_max = rate_of_demo(&file)?;
        if certificates.saturating_add(SIGNED_BEFORE_MAX) > issue_rate_per_minute_max {
            let Some(sekisho) = sekisho else {
                return Err(too_few(&file, data, issue_rate_per_minute_max).into());
            };
            raise_rate(&file)?;
            issue_rate_per_minute_max = RATE_PER_MINUTE_MAX;
            eprintln!("the signer's limit is now {RATE_PER_MINUTE_MAX} a minute; starting again");
            call(sekisho, &["down"], data)?;
            call(sekisho, &["up", "--demo", "--detach"], data)?;
        }
        let run = data.join("run");
        let (ra_pid, enrol) = ready(&run.join("ra.ready.json"))?;
        let (signer_pid, _) = ready(&run.join("signer.ready.json"))?;
        Ok(Self {
            admin_socket: run.join("ra-admin.sock"),
            enrol: enrol.context("the RA does not say where it listens")?,
            tls: Arc::new(tls(&data.join("demo/trust.pem"))?),
            ra_pid,
            signer_pid,
            issue_rate_per_minute_max,
        })
    }
}

/// Refuses a folder that is not a demo box's: what a measurement does stays in it.
///
/// # Errors
/// When it is none.
pub(crate) fn must_be_demo(data: &Path) -> anyhow::Result<()> {
    rate_of_demo(&data.join("config/signer.toml")).map(|_| ())
}

fn too_few(file: &Path, data: &Path, rate: u32) -> Usage {
    Usage(format!(
        "the signer may sign {rate} certificates a minute: give --sekisho PATH to raise that, or \
         set {RATE_KEY} = {RATE_PER_MINUTE_MAX} in `{}`, then `sekisho down` and `sekisho up \
         --demo --detach` with --data `{}`",
        file.display(),
        data.display()
    ))
}

/// The signer's limit, if the box is one for demonstration.
fn rate_of_demo(file: &Path) -> anyhow::Result<u32> {
    let what = || format!("`{}` cannot be read: is it a box's data folder?", file.display());
    let text = std::fs::read_to_string(file).with_context(what)?;
    let table: toml::Table = text.parse().with_context(what)?;
    if table.get("demo").and_then(toml::Value::as_bool) != Some(true) {
        return Err(Usage(format!(
            "`{}` belongs to a box that is not for demonstration: what is \
             measured would stay in it; make one with `sekisho up --demo --detach`",
            file.display()
        ))
        .into());
    }
    let rate = table.get(RATE_KEY).and_then(toml::Value::as_integer);
    rate.and_then(|rate| u32::try_from(rate).ok())
        .with_context(|| format!("`{}` has no usable `{RATE_KEY}`", file.display()))
}

/// Writes the highest limit into the signer's file; every other line stays as it is.
fn raise_rate(file: &Path) -> anyhow::Result<()> {
    let what = || format!("`{}` cannot be changed", file.display());
    let text = std::fs::read_to_string(file).with_context(what)?;
    let is_rate = |line: &str| {
        line.strip_prefix(RATE_KEY).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let lines = text.lines().map(|line| match is_rate(line) {
        true => format!("{RATE_KEY} = {RATE_PER_MINUTE_MAX}\n"),
        false => format!("{line}\n"),
    });
    std::fs::write(file, lines.collect::<String>()).with_context(what)
}

/// Runs a command of `sekisho` on the data folder to its end.
///
/// # Errors
/// When it cannot be started, or fails: with its last line.
pub(crate) fn call(sekisho: &Path, arguments: &[&str], data: &Path) -> anyhow::Result<()> {
    let output = Command::new(sekisho)
        .args(arguments)
        .arg("--data")
        .arg(data)
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("`{}` cannot be started", sekisho.display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    anyhow::ensure!(
        output.status.success(),
        "`sekisho {}` ended with {}: {last}",
        arguments.join(" "),
        output.status
    );
    Ok(())
}

/// Process id and public address from the file by which a part says that it is ready.
fn ready(file: &Path) -> anyhow::Result<(u32, Option<SocketAddr>)> {
    let what = || {
        format!(
            "`{}` does not say that the box runs: start it with `sekisho up --demo --detach`",
            file.display()
        )
    };
    let text = std::fs::read_to_string(file).with_context(what)?;
    let ready: serde_json::Value = serde_json::from_str(&text).with_context(what)?;
    let pid = ready["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).with_context(what)?;
    let address = ready["addresses"]["public"].as_str();
    Ok((pid, address.map(str::parse).transpose().with_context(what)?))
}

/// As a terminal without a certificate speaks TLS: it knows the root alone.
fn tls(trust: &Path) -> anyhow::Result<ClientConfig> {
    let what = || format!("`{}` holds no certificate to trust", trust.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(trust).with_context(what)? {
        roots.add(certificate.with_context(what)?).with_context(what)?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Terminals come for the first time.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

const RATE_KEY: &str = "issue_rate_per_minute_max";
/// The most that the signer accepts as its limit.
const RATE_PER_MINUTE_MAX: u32 = 100_000;
/// The demo's own terminals, which may have been signed in the same minute.
const SIGNED_BEFORE_MAX: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNER: &str = "# The most certificates signed in a minute.\ndemo = true\n\
                          issue_rate_per_minute_max = 600\nid_domain = \"a.example\"\n";

    fn data(signer: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("config")).unwrap();
        std::fs::write(dir.path().join("config/signer.toml"), signer).unwrap();
        dir
    }

    fn problem(signer: &str, certificates: u32) -> anyhow::Error {
        DemoBox::open(data(signer).path(), None, certificates).err().unwrap()
    }

    #[test]
    fn only_demo_boxes_that_may_sign_enough_are_measured() {
        let error = problem(SIGNER, 501);
        assert!(error.downcast_ref::<Usage>().is_some(), "{error}");
        assert!(error.to_string().contains("600 certificates a minute"), "{error}");
        // The next thing that is missing is the box itself.
        let error = problem(SIGNER, 500).to_string();
        assert!(error.contains("does not say that the box runs"), "{error}");
        let error = problem(&SIGNER.replace("true", "false"), 1);
        assert!(error.downcast_ref::<Usage>().is_some(), "{error}");
        assert!(problem("demo = true\n", 1).to_string().contains("no usable"));
    }

    #[test]
    fn the_limit_alone_is_raised() {
        let dir = data(SIGNER);
        let file = dir.path().join("config/signer.toml");
        assert_eq!(rate_of_demo(&file).unwrap(), 600);
        raise_rate(&file).unwrap();
        assert_eq!(rate_of_demo(&file).unwrap(), 100_000);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.replace("100000", "600"), SIGNER);
    }

    #[test]
    fn a_ready_file_says_which_process_and_where() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ra.ready.json");
        let text = r#"{"pid":7,"addresses":{"public":"127.0.0.1:8444"}}"#;
        std::fs::write(&file, text).unwrap();
        assert_eq!(ready(&file).unwrap(), (7, Some("127.0.0.1:8444".parse().unwrap())));
        std::fs::write(&file, r#"{"pid":7,"addresses":{}}"#).unwrap();
        assert_eq!(ready(&file).unwrap(), (7, None));
        std::fs::write(&file, r#"{"addresses":{"public":"127.0.0.1:8444"}}"#).unwrap();
        assert!(ready(&file).is_err());
    }
}
