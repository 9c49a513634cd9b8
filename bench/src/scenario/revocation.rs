//! From a revocation to the first refusal: on a live HTTP/1.1 connection, on a live HTTP/2
//! connection, and for a client that resumes sessions.
//!
//! ```text
//!  a terminal ─► three watchers ask again and again ─► all answered 2xx
//!                                    the command starts ──┤ clock
//!       401, 403, a TLS alert, a closed connection ◄──────┘
//! ```
//!
//! A server may close a connection for other reasons. A closed one counts only if a new connection
//! is refused as well, and from then on: the first close may have had another reason, and its time
//! be too early. Otherwise the watcher goes on with the new one.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::Usage;
use crate::cli::TargetArgs;
use crate::client::{Answer, Connection, Server};
use crate::credentials::{Http, Terminal};
use crate::report::{Histogram, Latency};
use crate::scenario::{Client, World, runtime, shown_latency};

/// Arguments of `revocation`.
#[derive(Debug, Args)]
pub(crate) struct RevocationArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Program and arguments that revoke, split at spaces; {serial} becomes the certificate's
    /// serial number in hex
    #[arg(long, value_name = "COMMAND")]
    pub(super) revoke: String,
    /// Terminals that are revoked, one after another
    #[arg(
        long,
        value_name = "N",
        default_value = "10",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    rounds: u32,
    /// Pause of each watcher between two requests
    #[arg(
        long,
        value_name = "US",
        default_value = "1000",
        value_parser = clap::value_parser!(u64).range(0..=1_000_000)
    )]
    poll_us: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What came of it; latencies count from the start of the command.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    revoked: u64,
    live_http1: Option<Latency>,
    live_http2: Option<Latency>,
    resumed: Option<Latency>,
    /// Watchers that were still served ten seconds later.
    not_refused: u64,
    /// To the end of the command.
    command: Option<Latency>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "revocation: {} revoked, {} watchers not refused within {} s",
            self.revoked,
            self.not_refused,
            REFUSED_WITHIN.as_secs()
        )?;
        for (what, latency) in [
            ("live HTTP/1.1", &self.live_http1),
            ("live HTTP/2", &self.live_http2),
            ("resumed", &self.resumed),
            ("command", &self.command),
        ] {
            writeln!(f, "  {what:<13} {}", shown_latency(latency.as_ref()))?;
        }
        Ok(())
    }
}

/// Revokes one terminal after another.
///
/// # Errors
/// What can not be read, a terminal that is not served before, a command that fails.
pub(crate) fn run(args: &RevocationArgs) -> anyhow::Result<()> {
    args.target.check().map_err(Usage)?;
    if args.target.target.unix_path().is_some() {
        return Err(Usage("a unix socket has no certificates to revoke".to_owned()).into());
    }
    if !args.revoke.contains(SERIAL) {
        return Err(Usage(format!("`{}` does not say where {SERIAL} goes", args.revoke)).into());
    }
    let report = runtime()?.block_on(revocation(args))?;
    crate::print(&report, args.json)
}

pub(super) async fn revocation(args: &RevocationArgs) -> anyhow::Result<Report> {
    let world = World::open(&args.target).await?;
    let (have, rounds) = (world.terminals.len(), args.rounds);
    if have < rounds as usize {
        let text = format!("{rounds} rounds need as many terminals, and there are {have}");
        return Err(Usage(text).into());
    }
    let mut all = [Histogram::new()?, Histogram::new()?, Histogram::new()?];
    let mut command = Histogram::new()?;
    let mut not_refused = 0;
    for (terminal, round) in world.terminals.iter().zip(0..rounds) {
        let one = revoke_one(args, &world.server, terminal, round)
            .await
            .with_context(|| format!("terminal `{}`", terminal.dir.display()))?;
        command.record(one.command);
        for (took, histogram) in one.refused.into_iter().zip(&mut all) {
            match took {
                Some(took) => histogram.record(took),
                None => not_refused += 1,
            }
        }
        eprintln!("revocation: {} of {rounds} revoked", round + 1);
    }
    let [live_http1, live_http2, resumed] = all.map(|histogram| histogram.latency());
    let revoked = u64::from(rounds);
    Ok(Report { revoked, live_http1, live_http2, resumed, not_refused, command: command.latency() })
}

/// What one terminal's revocation took.
struct One {
    /// HTTP/1.1, HTTP/2, resumed.
    refused: [Option<Duration>; 3],
    command: Duration,
}

async fn revoke_one(
    args: &RevocationArgs,
    server: &Arc<Server>,
    terminal: &Terminal,
    at: u32,
) -> anyhow::Result<One> {
    let serial = serial(&terminal.dir.join("cert.pem"))?;
    let one = Client::of(server, terminal, Http::One, at)?;
    let two = Client::of(server, terminal, Http::Two, at)?;
    let mut resuming = Client::of(server, terminal, Http::One, at)?;
    resuming.settings = terminal.resuming_settings(Http::One);
    // All of them are served before any of them begins to watch.
    let first = served(server, &one).await.context("HTTP/1.1")?;
    let second = served(server, &two).await.context("HTTP/2")?;
    served(server, &resuming).await.context("first session")?.close().await;
    let again = served(server, &resuming).await.context("second session")?;
    ensure!(again.resumed, "the server does not resume sessions");
    again.close().await;
    let clock = Arc::new(Clock::default());
    let watch = |client, live| {
        let poll = Duration::from_micros(args.poll_us);
        let (server, clock) = (Arc::clone(server), Arc::clone(&clock));
        let watcher = Watcher { server, client, clock, poll, refused_within: REFUSED_WITHIN };
        Task(tokio::spawn(async move { watcher.watch(live).await }))
    };
    let tasks = [watch(one, Some(first)), watch(two, Some(second)), watch(resuming, None)];
    tokio::time::sleep(SETTLES_WITHIN).await;
    let began = Instant::now();
    // Nobody else sets it.
    let _ = clock.0.set(began);
    let command = async {
        run_command(&args.revoke, &serial).await?;
        Ok::<_, anyhow::Error>(began.elapsed())
    };
    let [first, second, third] = tasks;
    let (command, first, second, third) =
        tokio::try_join!(command, first.end(), second.end(), third.end())?;
    let refused = [first, second, third]
        .map(|refused| refused.map(|when| when.saturating_duration_since(began)));
    Ok(One { refused, command })
}

/// When the command started, once it has.
#[derive(Default)]
pub(super) struct Clock(pub(super) OnceLock<Instant>);

/// A watcher's task, which does not outlive its round.
struct Task(JoinHandle<anyhow::Result<Option<Instant>>>);

impl Task {
    async fn end(mut self) -> anyhow::Result<Option<Instant>> {
        (&mut self.0).await.context("a watcher failed")?
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection on which a request was answered 2xx.
async fn served(server: &Server, client: &Client) -> anyhow::Result<Connection> {
    let problem = |text: String| anyhow!("it is not served before it is revoked: {text}");
    let mut connection = client.connect(server).await.map_err(problem)?;
    let answer = client.ask(&mut connection).await.map_err(problem)?;
    match answer.status {
        200..300 => Ok(connection),
        status => Err(problem(format!("status {status}"))),
    }
}

/// What one request told.
enum Seen {
    Served(Option<Connection>),
    Refused,
    /// The connection broke, or none came about.
    Cut(String),
    /// No answer: a server that hangs refuses nothing.
    Nothing,
}

/// Asks again and again, as one client.
pub(super) struct Watcher {
    pub(super) server: Arc<Server>,
    pub(super) client: Client,
    pub(super) clock: Arc<Clock>,
    pub(super) poll: Duration,
    pub(super) refused_within: Duration,
}

impl Watcher {
    /// Asks on `live`, or on a new connection each time, until it is refused. `None` if it is
    /// not refused in time.
    pub(super) async fn watch(self, live: Option<Connection>) -> anyhow::Result<Option<Instant>> {
        let stays = live.is_some();
        let mut open = live;
        loop {
            let refused = match self.ask(open.take(), stays).await {
                Seen::Served(connection) => {
                    open = connection;
                    None
                }
                Seen::Refused => Some(Instant::now()),
                Seen::Nothing => None,
                Seen::Cut(_) => match self.ask(None, stays).await {
                    Seen::Served(connection) => {
                        open = connection;
                        None
                    }
                    Seen::Cut(text) if text.starts_with("connect:") => {
                        bail!("the server is gone: {text}")
                    }
                    Seen::Nothing => None,
                    Seen::Refused | Seen::Cut(_) => Some(Instant::now()),
                },
            };
            let began = self.clock.0.get();
            match (refused, began) {
                (Some(_), None) => bail!("it was refused before it was revoked"),
                (Some(when), Some(began)) => {
                    let took = when.saturating_duration_since(*began);
                    return Ok(Some(when).filter(|_| took <= self.refused_within));
                }
                (None, Some(began)) if began.elapsed() > self.refused_within => return Ok(None),
                (None, _) => tokio::time::sleep(self.poll).await,
            }
        }
    }

    /// One request, with a limit in time.
    async fn ask(&self, open: Option<Connection>, stays: bool) -> Seen {
        let asked = tokio::time::timeout(self.refused_within, self.ask_once(open, stays));
        asked.await.unwrap_or(Seen::Nothing)
    }

    /// One request on `open`, or on a new connection; which is given back if it stays.
    async fn ask_once(&self, open: Option<Connection>, stays: bool) -> Seen {
        let mut connection = match open {
            Some(connection) => connection,
            None => match self.client.connect(&self.server).await {
                Ok(connection) => connection,
                Err(text) => return Seen::Cut(text),
            },
        };
        match self.client.ask(&mut connection).await {
            Ok(Answer { status: 401 | 403, .. }) => Seen::Refused,
            Ok(_) if stays => Seen::Served(Some(connection).filter(|open| !open.is_spent())),
            Ok(_) => {
                connection.close().await;
                Seen::Served(None)
            }
            Err(text) => Seen::Cut(text),
        }
    }
}

/// Runs the command to its end; what it says is told only if it fails.
async fn run_command(words: &str, serial: &str) -> anyhow::Result<()> {
    let words: Vec<String> =
        words.split_whitespace().map(|word| word.replace(SERIAL, serial)).collect();
    let (program, rest) = words.split_first().context("`--revoke` names no program")?;
    let child = tokio::process::Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start `{program}`"))?;
    let ended = tokio::time::timeout(REFUSED_WITHIN, child.wait_with_output())
        .await
        .with_context(|| format!("`{program}` does not end"))??;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        let last = said.lines().last().unwrap_or_default();
        bail!("`{program}` failed with {}: {last}", ended.status);
    }
    Ok(())
}

/// The serial number of the first certificate in a PEM file, in lower-case hex.
fn serial(path: &Path) -> anyhow::Result<String> {
    let certificate = CertificateDer::from_pem_file(path)
        .map_err(|error| anyhow!("cannot read `{}`: {error}", path.display()))?;
    let serial = serial_of(&certificate)
        .with_context(|| format!("`{}` holds no certificate of X.509", path.display()))?;
    Ok(hex::encode(serial))
}

/// The serial number's octets, without the zero that only says that it is positive.
pub(super) fn serial_of(certificate: &[u8]) -> Option<&[u8]> {
    let (outer, _) = value(certificate, SEQUENCE)?;
    let (signed, _) = value(outer, SEQUENCE)?;
    // A certificate of version 1 has no version.
    let after_version = match value(signed, VERSION) {
        Some((_, rest)) => rest,
        None => signed,
    };
    let (serial, _) = value(after_version, INTEGER)?;
    match serial {
        [0, rest @ ..] if !rest.is_empty() => Some(rest),
        [] => None,
        _ => Some(serial),
    }
}

/// The contents of the DER value with this tag at the beginning, and what follows it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if octets.is_empty() || octets.len() > LENGTH_OCTETS_MAX {
            return None;
        }
        (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), rest)
    };
    if found == tag { rest.split_at_checked(length) } else { None }
}

const SERIAL: &str = "{serial}";
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// All watchers ask for this long before the command starts.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const LENGTH_OCTETS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(serial: Vec<u8>) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.serial_number = Some(rcgen::SerialNumber::from(serial));
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn serial_numbers_are_found_in_certificates() {
        for serial in [vec![0x10, 0, 0, 7], vec![0x81, 2, 3], vec![5], vec![0x7f; 20]] {
            let der = certificate(serial.clone());
            assert_eq!(serial_of(&der), Some(serial.as_slice()));
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_serial_number() {
        let whole = certificate(vec![1, 2, 3]);
        assert_eq!(serial_of(&whole[..whole.len() - 1]), None, "cut short");
        for bad in [&[][..], &[0x30], &[0x30, 0x80], &[0x30, 0x85, 1, 1, 1, 1, 1], &[0x31, 0]] {
            assert_eq!(serial_of(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_command_that_fails_is_told_with_its_last_words() {
        run_command("test {serial} = 0a0b", "0a0b").await.unwrap();
        let error = run_command("ls /nonexistent-{serial}", "0a").await.unwrap_err().to_string();
        assert!(error.contains("`ls` failed") && error.contains("/nonexistent-0a"), "{error}");
        let error = run_command("/nonexistent/program", "0a").await.unwrap_err().to_string();
        assert!(error.contains("cannot start"), "{error}");
    }
}
