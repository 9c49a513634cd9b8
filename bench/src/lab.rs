//! What the measured systems need around them, the same for all: terminals and facts, a back end, a
//! publisher of facts, nginx, HAProxy, and the gateway whole or in stages.
//!
//! ```text
//!  run, storm, … ──► nginx | HAProxy | stages | sekisho-gateway ──► backend (one unix socket)
//!                                        ▲
//!  fixture (certificates, tokens) ───► facts (two signed feeds)
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

pub(crate) mod fixture;
pub(crate) mod backend;
pub(crate) mod facts;
pub(crate) mod stages;
pub(crate) mod systems;

pub(crate) use fixture::Scale;
pub(crate) use systems::{Running, System};

/// A fixture folder, opened.
#[derive(Debug)]
pub(crate) struct Lab {
    dir: PathBuf,
    scale: Scale,
}

/// Which facts are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FactsSet {
    /// The terminals', and as many offices, registrations and revocations as the scale says
    Full,
    /// The same without the revocations
    Unrevoked,
    /// What the terminals need, and nothing else
    Bare,
    /// The terminals', and those of an invented country with as many registrations, made as they
    /// are sent
    Country,
}

impl FactsSet {
    /// The name on the command line and of its sockets.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Unrevoked => "unrevoked",
            Self::Bare => "bare",
            Self::Country => "country",
        }
    }
}

/// How a program is started.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    /// The one processor that it may use.
    pub(crate) cpu: Option<usize>,
    /// Words put before the program, such as those of valgrind.
    pub(crate) wrapper: Vec<String>,
    /// It must answer within this time.
    pub(crate) ready_within: Duration,
    /// How often the publisher says that it is alive, in milliseconds.
    pub(crate) heartbeat_ms: u64,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            cpu: None,
            wrapper: Vec::new(),
            ready_within: Duration::from_secs(60),
            heartbeat_ms: policies::feed::HEARTBEAT_INTERVAL_MS,
        }
    }
}

impl Start {
    /// Pinned to one processor.
    pub(crate) fn on(cpu: usize) -> Self {
        Self { cpu: Some(cpu), ..Self::default() }
    }
}

impl Lab {
    /// Opens the fixture of this scale in `dir`, and makes it if there is none, or one of another
    /// scale, or one whose tokens run out soon.
    ///
    /// # Errors
    /// If a file can not be written.
    pub(crate) fn make(dir: &Path, scale: &Scale) -> anyhow::Result<Self> {
        if !fixture::is_usable(dir, scale) {
            fixture::make(dir, scale)?;
        }
        Self::open(dir)
    }

    /// Opens what is there.
    ///
    /// # Errors
    /// If `dir` holds no fixture.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let scale = fixture::read(dir)?.scale;
        let dir = dir.canonicalize().with_context(|| format!("folder `{}`", dir.display()))?;
        std::fs::create_dir_all(dir.join("run"))?;
        Ok(Self { dir, scale })
    }

    /// How many of everything there are.
    pub(crate) fn scale(&self) -> &Scale {
        &self.scale
    }

    /// The folder of terminals, for `--certs`.
    pub(crate) fn terminals(&self) -> PathBuf {
        self.dir.join("terminals")
    }

    /// The root certificate, for `--trust`.
    pub(crate) fn trust(&self) -> PathBuf {
        self.dir.join("pki/root.pem")
    }

    /// Method, path and content type of a store request that is permitted to the first terminal.
    pub(crate) fn upload(&self) -> (String, String, String) {
        let path = format!("/v1/insured/{}/documents/home-care-plan", fixture::insured(0));
        ("POST".to_owned(), path, "application/json".to_owned())
    }

    /// The words that revoke a certificate; `{serial}` stands for its serial number.
    pub(crate) fn revoke_command(&self, set: FactsSet, program: &Path) -> String {
        let (program, dir) = (program.display(), self.dir.display());
        let set = set.as_str();
        format!("{program} revoke --dir {dir} --set {set} --serial {{serial}}")
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }
}

/// Arguments of `lab`.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// Fixture folder; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The system to start
    #[arg(long, value_enum, default_value = "gateway-async")]
    system: System,
    /// The facts that its gateway decides from
    #[arg(long, value_enum, default_value = "bare")]
    set: FactsSet,
    /// Pin the system to this processor
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    #[command(flatten)]
    scale: Scale,
}

/// Starts a back end, a publisher of facts and one system, tells how to load it, and waits.
///
/// # Errors
/// If one of them does not come up.
pub(crate) fn run(args: &LabArgs) -> anyhow::Result<()> {
    let lab = Lab::make(&args.dir, &args.scale)?;
    let _backend = lab.start_backend(&Start::default())?;
    let _facts = lab.start_facts(args.set, &Start::default())?;
    let start = Start { cpu: args.cpu, ..Start::default() };
    let system = lab.start(args.system, args.set, &start)?;
    println!(
        "{} is up, pid {}. To load it:\n  sekisho-bench run --target {} --certs {} --trust {} \
         --group x25519 --pid {}\nEnd with Ctrl-C.",
        args.system.as_str(),
        system.pid,
        system.url,
        lab.terminals().display(),
        lab.trust().display(),
        system.pid
    );
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(tokio::signal::ctrl_c())?;
    system.stop()
}
