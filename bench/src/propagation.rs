//! `sekisho-bench propagation`: how soon a change that the hub commits is applied by every gateway.
//!
//! ```text
//!  a demo box ─► its hub is told of N gateways and started again
//!            ─► N - 1 gateways beside the box's own, each with its own folder and port
//!  operator's call: registration, `wait` = true ─► answered when all have applied it
//!  meanwhile: more changes, `--rate` a second
//! ```
//!
//! A gateway acknowledges when its next decision is made from the change and the change is on its
//! disk. So the figure holds the call, the commit, the feed, the decision's facts, N disks and the
//! way back: an upper bound of the time from commit to applied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::json;
use tokio::net::UnixStream;

use crate::issuing::demo_box;
use crate::report::{Histogram, Latency};

/// Arguments of `propagation`.
#[derive(Debug, Args)]
pub(crate) struct PropagationArgs {
    /// Data folder of a demo box that runs (`sekisho up --demo --detach --data DIR`); the
    /// registrations of the measurement stay in it
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The `sekisho` program, with `sekisho-gateway` beside it: the box is started again with more
    /// gateways, and once more without them at the end
    #[arg(long, value_name = "PATH")]
    sekisho: PathBuf,
    /// Gateways, the box's own among them
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..=16)
    )]
    gateways: u32,
    /// Changes to wait for, one after the other
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(10..=100_000)
    )]
    changes: u32,
    /// Changes a second that come meanwhile and that nobody waits for
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(0..=2_000)
    )]
    rate: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct PropagationReport {
    gateways: u32,
    /// From the call to the answer that every gateway has applied it.
    applied: Option<Latency>,
    /// Changes that came meanwhile, in a second.
    meanwhile_per_second: f64,
    /// Answers that named gateways that had not applied it, by what they said.
    failures: BTreeMap<String, u64>,
}

/// Runs it.
///
/// # Errors
/// When the box does not run, is none for demonstration, or a gateway does not start.
pub(crate) fn run(args: &PropagationArgs) -> anyhow::Result<()> {
    demo_box::must_be_demo(&args.data)?;
    let file = args.data.join("config/hub.toml");
    let before = fs::read_to_string(&file).with_context(|| format!("`{}`", file.display()))?;
    let measured = with_gateways(args, &file, &before);
    // Whatever came of it, the box is left as it was.
    let restored = fs::write(&file, &before)
        .with_context(|| format!("`{}` cannot be written", file.display()))
        .and_then(|()| start_again(args));
    let report = measured?;
    restored?;
    crate::print(&report, args.json)
}

fn with_gateways(
    args: &PropagationArgs,
    file: &Path,
    before: &str,
) -> anyhow::Result<PropagationReport> {
    let ids: Vec<String> = (1..=args.gateways).map(|at| format!("gw-{at}")).collect();
    fs::write(file, named(before, &ids)?)?;
    start_again(args)?;
    let dir = tempfile::tempdir()?;
    let others: Vec<Gateway> = ids[1..]
        .iter()
        .map(|id| Gateway::start(args, id, &dir.path().join(id)))
        .collect::<anyhow::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args));
    drop(others);
    report
}

/// The hub's file with these gateways; every other line stays as it is.
fn named(text: &str, ids: &[String]) -> anyhow::Result<String> {
    let is_list = |line: &str| {
        line.strip_prefix("gateways").is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    anyhow::ensure!(text.lines().any(is_list), "the hub's file has no line `gateways = […]`");
    let list: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
    let own = format!("gateways = [{}]", list.join(", "));
    let lines = text.lines().map(|line| if is_list(line) { own.as_str() } else { line });
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

fn start_again(args: &PropagationArgs) -> anyhow::Result<()> {
    demo_box::call(&args.sekisho, &["down"], &args.data)?;
    demo_box::call(&args.sekisho, &["up", "--demo", "--detach"], &args.data)
}

/// A gateway of the measurement's own; ended when dropped.
struct Gateway {
    process: Child,
}

impl Gateway {
    fn start(args: &PropagationArgs, id: &str, dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir(dir)?;
        let box_file = args.data.join("config/gateway.toml");
        let mut config: toml::Table = fs::read_to_string(&box_file)?.parse()?;
        let ready = dir.join("ready.json");
        let path = |name: &str| toml::Value::from(dir.join(name).display().to_string());
        config.insert("id".to_owned(), id.into());
        config.insert("listen".to_owned(), "127.0.0.1:0".into());
        config.insert("admin_listen".to_owned(), "127.0.0.1:0".into());
        config.insert("ready_file".to_owned(), path("ready.json"));
        for (table, key, value) in [
            ("audit", "dir", path("audit")),
            ("audit", "stream_socket", path("audit.sock")),
            ("facts_copy", "dir", path("facts")),
        ] {
            let own = config.get_mut(table).and_then(toml::Value::as_table_mut);
            let own = own.with_context(|| format!("`{}`: no [{table}]", box_file.display()))?;
            own.insert(key.to_owned(), value);
        }
        fs::create_dir(dir.join("audit"))?;
        let file = dir.join("gateway.toml");
        fs::write(&file, config.to_string())?;
        let log = fs::File::create(dir.join("log"))?;
        let process = Command::new(args.sekisho.with_file_name("sekisho-gateway"))
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("`sekisho-gateway` beside `sekisho` cannot be started")?;
        let mut own = Self { process };
        own.wait_until_ready(&ready)
            .with_context(|| fs::read_to_string(dir.join("log")).unwrap_or_default())?;
        Ok(own)
    }

    fn wait_until_ready(&mut self, ready: &Path) -> anyhow::Result<()> {
        let started = Instant::now();
        while !ready.exists() {
            let ended = self.process.try_wait()?;
            anyhow::ensure!(ended.is_none(), "a gateway ended at its start");
            anyhow::ensure!(started.elapsed() < READY_WITHIN, "a gateway is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // One that ended by itself is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn measure(args: &PropagationArgs) -> anyhow::Result<PropagationReport> {
    let socket = args.data.join("run/hub-admin.sock");
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let meanwhile = tokio::spawn(background(
        Operator::connect(&socket).await?,
        args.rate,
        Arc::clone(&stop),
        Arc::clone(&sent),
    ));
    let mut operator = Operator::connect(&socket).await?;
    let mut applied = Histogram::new()?;
    let mut failures = BTreeMap::new();
    let started = Instant::now();
    for at in 0..args.changes {
        let began = Instant::now();
        let answer = operator.register(u64::from(at), true).await?;
        match answer["acknowledged"].as_bool() {
            Some(true) => applied.record(began.elapsed()),
            Some(false) | None => *failures.entry(answer.to_string()).or_default() += 1,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    meanwhile.await??;
    Ok(PropagationReport {
        gateways: args.gateways,
        applied: applied.latency(),
        meanwhile_per_second: sent.load(Ordering::Relaxed) as f64 / seconds,
        failures,
    })
}

/// Changes that nobody waits for, at a rate of their own.
async fn background(
    mut operator: Operator,
    rate: u32,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    if rate == 0 {
        return Ok(());
    }
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let at = sent.fetch_add(1, Ordering::Relaxed);
        operator.register(BACKGROUND_PERSONS + at, false).await?;
    }
    Ok(())
}

/// The operator at the hub's admin socket.
struct Operator {
    sender: SendRequest<Full<Bytes>>,
}

impl Operator {
    async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("no hub answers on `{}`: is the box up?", socket.display()))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Registers the demo's first office for a person.
    async fn register(&mut self, person: u64, wait: bool) -> anyhow::Result<serde_json::Value> {
        let body = json!({
            "office": OFFICE,
            "insured": {"insurer": INSURER, "number": format!("{:010}", person % PERSONS_MAX)},
            "reason": "measurement", "operator": "bench", "wait": wait,
        });
        let request = hyper::Request::post("/registrations")
            .header("host", "hub")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        anyhow::ensure!(
            status.is_success(),
            "the hub answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(serde_json::from_slice(&body)?)
    }
}

impl fmt::Display for PropagationReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} gateways", self.gateways)?;
        if let Some(latency) = &self.applied {
            let ms = |us: u64| us as f64 / 1000.0;
            writeln!(
                out,
                "applied    {} changes, p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
                latency.count,
                ms(latency.p50_us),
                ms(latency.p99_us),
                ms(latency.max_us)
            )?;
        }
        writeln!(out, "meanwhile  {:.0} changes/s", self.meanwhile_per_second)?;
        for (what, count) in &self.failures {
            writeln!(out, "FAILED     {count} × {what}")?;
        }
        Ok(())
    }
}

const READY_WITHIN: Duration = Duration::from_secs(30);
const OFFICE: &str = "9970000015";
const INSURER: &str = "131016";
const BACKGROUND_PERSONS: u64 = 5_000_000_000;
const PERSONS_MAX: u64 = 10_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hubs_file_names_the_gateways_and_keeps_the_rest() {
        let text = "# Who acknowledges.\ngateways = [\"gw-1\"]\ndemo = true\n";
        let ids = ["gw-1".to_owned(), "gw-2".to_owned()];
        let expected = "# Who acknowledges.\ngateways = [\"gw-1\", \"gw-2\"]\ndemo = true\n";
        assert_eq!(named(text, &ids).unwrap(), expected);
        let refused = named("demo = true\n", &ids).unwrap_err();
        assert!(refused.to_string().contains("gateways"), "{refused}");
    }
}
