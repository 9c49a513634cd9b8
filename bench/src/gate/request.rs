//! The request path of the real gateway under callgrind: one kept HTTP/1.1 connection, one request
//! after the other, with staff token, decision and asynchronous audit; back end and facts run
//! outside of what is counted.
//!
//! The gateway is held to one CPU, so that it runs one worker thread on every machine; its facts
//! are bare and their publisher seldom speaks, because each line has a signature to verify.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cli::{Group, TargetArgs};
use crate::client::{Ask, Server};
use crate::credentials::{self, Http};
use crate::lab::{FactsSet, Lab, Running, Scale, Start, System};

use super::callgrind;

/// One terminal and what it needs, made once for all counts.
pub(super) struct Requests {
    dir: tempfile::TempDir,
    lab: Lab,
    cpu: usize,
}

impl Requests {
    pub(super) fn new() -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        let lab = Lab::make(&dir.path().join("lab"), &SCALE)?;
        let allowed = rustix::thread::sched_getaffinity(None).context("cannot tell the CPUs")?;
        let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
        Ok(Self { dir, lab, cpu: cpu.context("no CPU may be used")? })
    }

    /// Instructions of a gateway from its start to its end, with so many requests in between.
    pub(super) fn count(&self, requests: u64) -> Result<u64> {
        let counts = self.dir.path().join("counts");
        let backend = self.lab.start_backend(&Start::default())?;
        let seldom = Start { heartbeat_ms: HEARTBEAT_MS, ..Start::default() };
        let facts = self.lab.start_facts(FactsSet::Bare, &seldom)?;
        let counted = Start {
            cpu: Some(self.cpu),
            wrapper: callgrind::wrapper(&counts),
            ready_within: READY_WITHIN,
            ..Start::default()
        };
        let gateway = self.lab.start(System::Async, FactsSet::Bare, &counted)?;
        let asked = self.ask(&gateway, requests);
        let stopped = gateway.stop();
        asked.and(stopped).and(facts.stop()).and(backend.stop())?;
        callgrind::read(&counts)
    }

    /// Sends the requests, one when the last is answered.
    fn ask(&self, gateway: &Running, requests: u64) -> Result<()> {
        let target = TargetArgs {
            target: gateway.url.parse().map_err(anyhow::Error::msg)?,
            allow_host: None,
            certs: vec![self.lab.terminals()],
            certs_from: 0,
            certs_count: Some(1),
            trust: self.lab.trust(),
            token_file: Vec::<PathBuf>::new(),
            group: Group::Hybrid,
            path: "/".to_owned(),
            source_addresses: 1,
        };
        let terminals = credentials::read(&target)?;
        let terminal = terminals.first().context("there is no terminal")?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let server = Server::find(&target.target, 1).await?;
            let settings = terminal.settings(Http::One);
            let connected = server.connect(&settings, Http::One, 0).await;
            let mut connection = connected.map_err(anyhow::Error::msg)?;
            let ask = Ask::get(&server, terminal)?;
            for at in 0..requests {
                let answer = tokio::time::timeout(ANSWER_WITHIN, connection.ask(&ask)).await;
                let answer = answer.context("no answer in time")?.map_err(anyhow::Error::msg)?;
                ensure!(answer.status == 200, "request {at} is answered {}", answer.status);
            }
            connection.close().await;
            Ok(())
        })
    }
}

const SCALE: Scale = Scale { terminals: 1, offices: 1, registrations: 10, revocations: 0 };
/// As seldom as a feed may speak before the gateway takes it for dead.
const HEARTBEAT_MS: u64 = 1_500;
/// Under callgrind everything takes some fifty times as long.
const READY_WITHIN: Duration = Duration::from_secs(120);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
