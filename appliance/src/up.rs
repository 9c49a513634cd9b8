//! `sekisho up`: makes or keeps the data folder, starts the box, supervises it.
//!
//! ```text
//!  up ──► prepare (folders, secrets, CA, configs) ──► supervisor ──► ready ──► demo ──► wait
//!  up --detach ──► the same in a background process; returns when it is ready
//! ```
//!
//! Idempotent: nothing that exists is replaced, and a box that already runs is left running.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::audit_keys;
use crate::cli::Context;
use crate::demo;
use crate::down;
use crate::exit::{BAD_USAGE, usage};
use crate::files;
use crate::layout::{Layout, Part};
use crate::lock::Lock;
use crate::lost;
use crate::output::{self, progress};
use crate::part_config::{self, FileValues, Names};
use crate::policy;
use crate::process;
use crate::secrets;
use crate::settings::{Heads, ListenArgs, Settings};
use crate::supervisor::{LISTENERS, Phase, Status, Supervisor};

/// Arguments of `up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Make an invented demo: offices, terminals, staff, documents; loopback only
    #[arg(long)]
    demo: bool,
    /// Return when everything is ready; the box runs on in the background
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    listen: ListenArgs,
    /// Operator's name in certificates (first start only)
    #[arg(long, value_name = "NAME")]
    operator_name: Option<String>,
    /// Domain of the identities in certificates (first start only)
    #[arg(long, value_name = "DOMAIN")]
    id_domain: Option<String>,
    /// This is the background process of `--detach`
    #[arg(long, hide = true)]
    background: bool,
}

/// Runs `up`.
///
/// # Errors
/// When the box does not become ready; nothing is left running then.
pub(crate) async fn run(args: &Args, context: &Context) -> anyhow::Result<bool> {
    make_run_folder(&context.layout)?;
    if args.detach { detached(args, context).await } else { supervised(args, context).await }
}

fn make_run_folder(layout: &Layout) -> anyhow::Result<()> {
    let root = layout.root();
    if root.exists() && !root.is_dir() {
        return Err(usage(format!("`{}` is not a folder: choose another --data", root.display())));
    }
    files::data_root(root)?;
    files::private_folder(&layout.run(""))?;
    files::refuse_open_folder(&layout.run(""))
}

async fn supervised(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    let Some(_lock) = Lock::take(layout)? else {
        anyhow::bail!(
            "the box already runs on `{}`: stop it first with `sekisho down --data {}`",
            layout.root().display(),
            layout.quoted()
        );
    };
    let stop = StopSignals::new()?;
    let earlier = Status::read(layout).unwrap_or_default();
    let mut supervisor = Supervisor::new(layout)?;
    let served = until_stopped(&mut supervisor, stop, earlier, args, context).await;
    supervisor.stop().await;
    served.map(|()| true)
}

/// Prepares the folder and serves until a signal comes or something fails.
async fn until_stopped(
    supervisor: &mut Supervisor,
    mut stop: StopSignals,
    earlier: Option<Status>,
    args: &Args,
    context: &Context,
) -> anyhow::Result<()> {
    let layout = &context.layout;
    let mut upgrades = signal(SignalKind::user_defined2())?;
    let settings = prepare(args, layout)?;
    if let Some(earlier) = earlier {
        leftovers_are_gone(&earlier, layout).await?;
    }
    ports_are_free(layout, &settings)?;
    tokio::select! {
        served = serve(supervisor, &settings, args, context) => served?,
        () = stop.next() => {}
    }
    while !stop.seen {
        tokio::select! {
            () = stop.next() => {}
            _ = upgrades.recv() => supervisor.upgrade(),
        }
    }
    Ok(())
}

/// Starts everything and, in the foreground, fills the demo and prints what to try.
async fn serve(
    supervisor: &mut Supervisor,
    settings: &Settings,
    args: &Args,
    context: &Context,
) -> anyhow::Result<()> {
    supervisor.start(brings_heads(settings)).await?;
    if !args.background {
        finish(settings, &supervisor.status(), context).await?;
        progress("running; Ctrl-C stops everything");
    }
    Ok(())
}

/// Whether the heads of the audit logs are to be brought anywhere.
fn brings_heads(settings: &Settings) -> bool {
    settings.heads.as_ref().is_some_and(|heads| !heads.is_empty())
}

/// Fills the demo (once) and prints what to try.
async fn finish(settings: &Settings, status: &Status, context: &Context) -> anyhow::Result<()> {
    let env = if settings.demo {
        demo::prepare(&context.layout, status).await.context("the demo could not be filled")?
    } else {
        demo::addresses(status)?
    };
    output::data(context.json, &env, || demo::what_to_try(&context.layout, &env));
    Ok(())
}

async fn detached(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    if Lock::is_held(layout) {
        return already_running(args, context).await;
    }
    let path = layout.run("supervisor.log");
    let (log, offset) = process::open_log(&path)?;
    let child = background_process(args, layout, log)?;
    let status = match wait_until_up(layout, Some((child, path, offset))).await {
        Ok(status) => status,
        // Another `up` was quicker.
        Err(_) if Lock::is_held(layout) => return already_running(args, context).await,
        Err(error) => return Err(error),
    };
    let settings = Settings::read(&layout.settings())?;
    if let Err(error) = finish(&settings, &status, context).await {
        down::stop(layout).await?;
        return Err(error);
    }
    Ok(true)
}

async fn already_running(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    let status = wait_until_up(layout, None).await?;
    let settings = Settings::read(&layout.settings())?;
    same_kind(args, &settings, layout)?;
    progress(&format!("the box already runs on `{}`", layout.root().display()));
    finish(&settings, &status, context).await?;
    Ok(true)
}

type Background = (tokio::process::Child, std::path::PathBuf, u64);

fn background_process(
    args: &Args,
    layout: &Layout,
    log: std::fs::File,
) -> anyhow::Result<tokio::process::Child> {
    let own = std::env::current_exe().context("own program file is not known")?;
    let mut command = tokio::process::Command::new(own);
    command.args(["up", "--background", "--data"]).arg(layout.root());
    if args.demo {
        command.arg("--demo");
    }
    let listen = [
        ("--gateway-listen", args.listen.gateway_listen),
        ("--enrol-listen", args.listen.enrol_listen),
        ("--admin-listen", args.listen.admin_listen),
    ];
    for (option, address) in listen {
        command.args(address.map(|address| format!("{option}={address}")));
    }
    command.args(args.operator_name.iter().map(|name| format!("--operator-name={name}")));
    command.args(args.id_domain.iter().map(|name| format!("--id-domain={name}")));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().context("the background process cannot be started")
}

/// Waits for the supervisor in the background; tells its last error line if it ends.
async fn wait_until_up(
    layout: &Layout,
    mut background: Option<Background>,
) -> anyhow::Result<Status> {
    let deadline = Instant::now() + UP_TIMEOUT;
    loop {
        if let Some((child, log, offset)) = background.as_mut()
            && let Some(ended) = child.try_wait()?
        {
            return Err(why_it_ended(ended, log, *offset));
        }
        anyhow::ensure!(
            background.is_some() || Lock::is_held(layout),
            "the box that was being started on `{}` has ended: see `{}`",
            layout.root().display(),
            layout.run("supervisor.log").display()
        );
        let status = Status::read(layout)?;
        let pid = background.as_ref().and_then(|(child, ..)| child.id());
        if let Some(status) = status
            && status.phase == Phase::Up
            && pid.is_none_or(|pid| pid == status.pid)
            && status.is_live(layout)
        {
            return Ok(status);
        }
        anyhow::ensure!(Instant::now() < deadline, "the box is not up: see `sekisho status`");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn why_it_ended(ended: std::process::ExitStatus, log: &Path, offset: u64) -> anyhow::Error {
    let bytes = std::fs::read(log).unwrap_or_default();
    let from = usize::try_from(offset).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
    let line = process::last_error_line(&text)
        .unwrap_or_else(|| format!("the background process ended: see `{}`", log.display()));
    if ended.code() == Some(i32::from(BAD_USAGE)) { usage(line) } else { anyhow::anyhow!(line) }
}

/// Makes what is missing in the data folder.
fn prepare(args: &Args, layout: &Layout) -> anyhow::Result<Settings> {
    let fresh = !layout.settings().exists();
    let mut settings =
        if fresh { Settings::new(args.demo) } else { Settings::read(&layout.settings())? };
    same_kind(args, &settings, layout)?;
    if settings.demo && settings.heads.is_none() {
        settings.heads = Some(Heads::file_drop(layout.demo_heads()));
    }
    make_demo_drop(layout, &settings)?;
    let settings = settings.with(&args.listen)?;
    make_folders(layout)?;
    lost::refuse(layout)?;
    let keys = secrets::ensure(layout)?;
    let names = names(args);
    audit_keys::ensure(layout, &id_domain(layout, &names)?)?;
    make_ca(layout, &settings, &names)?;
    let values = FileValues { settings: &settings, names: &names, keys: &keys };
    part_config::write_missing(layout, &values)?;
    part_config::bring_forward(layout, &values)?;
    apply_listen(layout, &settings, &args.listen)?;
    settings.write(&layout.settings())?;
    server_certificates_exist(layout)?;
    Ok(settings)
}

/// A demo's own file drop is made here; any other must be there, or it is not mounted.
fn make_demo_drop(layout: &Layout, settings: &Settings) -> anyhow::Result<()> {
    let folder = layout.demo_heads();
    let is_ours = settings.demo
        && settings.heads.as_ref().is_some_and(|heads| heads.file_drop.as_ref() == Some(&folder));
    if is_ours { files::private_folder(&folder) } else { Ok(()) }
}

fn make_folders(layout: &Layout) -> anyhow::Result<()> {
    for folder in layout.folders().iter().filter(|folder| folder.as_path() != layout.root()) {
        files::private_folder(folder)?;
    }
    policy::make_place(layout)?;
    layout.closed_folders().iter().try_for_each(|folder| files::refuse_open_folder(folder))
}

fn same_kind(args: &Args, settings: &Settings, layout: &Layout) -> anyhow::Result<()> {
    if args.demo && !settings.demo {
        return Err(usage(format!(
            "`{}` was made without --demo, and demo and production never mix: choose another \
             --data for the demo",
            layout.root().display()
        )));
    }
    Ok(())
}

fn names(args: &Args) -> Names {
    let or = |given: &Option<String>, default: &str| given.clone().unwrap_or(default.to_owned());
    let operator = if args.demo { "Sekisho Demo (invented)" } else { "Care Network Operator" };
    Names {
        operator_name: or(&args.operator_name, operator),
        id_domain: or(&args.id_domain, "id.sekisho.example"),
    }
}

/// Runs `sekisho-signer init`, which keeps what exists.
fn make_ca(layout: &Layout, settings: &Settings, names: &Names) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(process::program(Part::Signer.program())?);
    command.arg("init").arg("--dir").arg(layout.ca(""));
    command.args(["--operator-name", &operator_name(layout, names)]);
    if settings.demo {
        command.arg("--demo");
    }
    let output = command.output().context("sekisho-signer cannot be started")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "the certificate authority could not be made: {}",
        process::last_error_line(&errors).unwrap_or_else(|| output.status.to_string())
    );
    let chain = [files::read(&layout.ca("issuing.pem"))?, files::read(&layout.ca("root.pem"))?];
    files::write_private(&layout.ca("chain.pem"), &chain.concat())
}

/// The domain in signer.toml, once that exists.
fn id_domain(layout: &Layout, names: &Names) -> anyhow::Result<String> {
    if !layout.config(Part::Signer).exists() {
        return Ok(names.id_domain.clone());
    }
    part_config::value(layout, Part::Signer, "id_domain")
}

/// The name in signer.toml, once that exists.
fn operator_name(layout: &Layout, names: &Names) -> String {
    part_config::value(layout, Part::Signer, "operator_name")
        .unwrap_or_else(|_| names.operator_name.clone())
}

/// Addresses of the command line go into the parts' files; a free port is asked for again.
fn apply_listen(layout: &Layout, settings: &Settings, given: &ListenArgs) -> anyhow::Result<()> {
    let asked = [given.gateway_listen, given.enrol_listen, given.admin_listen];
    for (((part, key, _), (_, _, address)), asked) in
        LISTENERS.iter().zip(settings.listeners()).zip(asked)
    {
        if asked.is_some() || address.port() == 0 {
            part_config::change(layout, *part, key, &address.to_string())?;
        }
    }
    Ok(())
}

/// In production the operator brings server certificates; says so before anything starts.
fn server_certificates_exist(layout: &Layout) -> anyhow::Result<()> {
    for (part, key) in [
        (Part::Ra, "server_certificate"),
        (Part::Ra, "server_key"),
        (Part::Gateway, "server_certificate"),
        (Part::Gateway, "server_key"),
    ] {
        let file = part_config::value(layout, part, key)?;
        if !Path::new(&file).is_file() {
            return Err(usage(format!(
                "config file `{}`: `{key}` names `{file}`, which {}: put your server certificate \
                 there, or change the key",
                layout.config(part).display(),
                if Path::new(&file).is_dir() { "is a folder" } else { "does not exist" }
            )));
        }
    }
    Ok(())
}

/// Parts of a supervisor that was killed end by themselves when their input closes; waits for it.
///
/// # Errors
/// When one does not end in time.
pub(crate) async fn leftovers_are_gone(earlier: &Status, layout: &Layout) -> anyhow::Result<()> {
    let deadline = Instant::now() + process::STOP_TIMEOUT + Duration::from_secs(2);
    let pids: Vec<u32> = earlier.parts.iter().filter_map(|part| part.pid).collect();
    for pid in pids {
        while is_part(pid, layout) {
            anyhow::ensure!(
                Instant::now() < deadline,
                "process {pid} of an earlier run still ends: wait, or end it with `kill {pid}`"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Whether a process is one of the parts' programs and runs with this folder's configuration, or
/// brings this folder's heads out.
fn is_part(pid: u32, layout: &Layout) -> bool {
    let name = process::program_of(pid);
    if name.as_deref() == Some("sekisho") {
        let brings = process::has_word(pid, "push") && process::has_argument(pid, layout.root());
        return brings && pid != std::process::id();
    }
    let part = Part::ALL.into_iter().find(|part| name.as_deref() == Some(part.program()));
    part.is_some_and(|part| process::has_argument(pid, &layout.config(part)))
}

fn ports_are_free(layout: &Layout, settings: &Settings) -> anyhow::Result<()> {
    for ((part, key, _), (option, ..)) in LISTENERS.iter().zip(settings.listeners()) {
        let (part, key) = (*part, *key);
        let address = part_config::value(layout, part, key)?;
        if let Err(error) = std::net::TcpListener::bind(&address) {
            anyhow::bail!(
                "address `{address}` cannot be listened on ({error}): config file `{}`, key \
                 `{key}`: stop the program that uses it, or choose another with `sekisho up \
                 {option} ADDRESS`",
                layout.config(part).display()
            );
        }
    }
    Ok(())
}

/// SIGINT and SIGTERM; SIGHUP (a closed terminal) is taken and does nothing.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    seen: bool,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            seen: false,
        })
    }

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => break,
                _ = self.terminate.recv() => break,
                _ = self.hangup.recv() => {}
            }
        }
        self.seen = true;
    }
}

/// For the whole start: four parts, then the gateway's facts.
const UP_TIMEOUT: Duration = Duration::from_secs(180);
