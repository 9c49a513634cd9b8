//! One node of the hub: where it is, how it does, and one attempt to have a request answered by it.
//!
//! Invariants: what is in flight is counted as long as an [`Attempt`] lives; a request to a node
//! that does well takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::Result;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::Notify;

use super::breaker::{Breaker, Pass};
use super::tunnel::{self, Tunnel};
use crate::config::{HubNode, HubNodes};
use crate::metrics::Metrics;

/// One node.
pub(super) struct Node {
    /// Its bit in a set of nodes.
    pub(super) bit: u64,
    pub(super) place: HubNode,
    peer: HttpPeer,
    began: Instant,
    answers: AtomicBool,
    /// It answered a request since it was asked for its health.
    served: AtomicBool,
    breaker: Breaker,
    in_flight: AtomicU32,
    /// Something went wrong: it is to be asked now.
    pub(super) trouble: Notify,
    counters: [IntCounter; Outcome::ALL.len()],
    up: IntGauge,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer came.
    Answered,
    /// No connection came to stand.
    Unreachable,
    /// No answer came in time.
    TimedOut,
    /// The connection broke before an answer came.
    Failed,
    /// It broke in the middle of the answer.
    Broken,
}

impl Outcome {
    const ALL: [Self; 5] =
        [Self::Answered, Self::Unreachable, Self::TimedOut, Self::Failed, Self::Broken];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
            Self::Broken => "broken",
        }
    }
}

impl Node {
    pub(super) fn new(
        at: usize,
        place: HubNode,
        settings: &HubNodes,
        metrics: &Metrics,
    ) -> Result<Self> {
        let name = name(&place);
        let counter =
            |outcome: Outcome| metrics.hub_requests.with_label_values(&[&name, outcome.as_str()]);
        let up = metrics.hub_node_up.with_label_values(&[&name]);
        up.set(1);
        let open_ms = u64::try_from(settings.breaker_open.as_millis()).unwrap_or(u64::MAX);
        Ok(Self {
            bit: 1 << at,
            peer: peer(at, &place, settings)?,
            place,
            began: Instant::now(),
            answers: AtomicBool::new(true),
            served: AtomicBool::new(false),
            breaker: Breaker::new(settings.breaker_failures_max, open_ms),
            in_flight: AtomicU32::new(0),
            trouble: Notify::new(),
            counters: Outcome::ALL.map(counter),
            up,
        })
    }

    /// How it is called in metrics and logs.
    pub(super) fn name(&self) -> String {
        name(&self.place)
    }

    /// Whether it answered when it was last asked.
    pub(super) fn answers(&self) -> bool {
        self.answers.load(Ordering::Acquire)
    }

    /// Whether nothing speaks against it.
    pub(super) fn is_trusted(&self) -> bool {
        self.breaker.is_closed()
    }

    /// Requests that are with it.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// An attempt, if it may be tried now.
    pub(super) fn attempt(self: &Arc<Self>) -> Option<Attempt> {
        let pass = self.breaker.pass(self.now_ms())?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Attempt { node: Arc::clone(self), pass, outcome: None })
    }

    /// It was asked whether it answers.
    pub(super) fn asked(&self, answers: bool) {
        if self.answers.swap(answers, Ordering::AcqRel) != answers {
            let node = self.name();
            if answers {
                // It was seen down and is back: what failed before says nothing any more.
                self.breaker.succeeded();
                tracing::info!(node, "hub node answers again");
            } else {
                tracing::error!(node, "hub node does not answer");
            }
            self.show();
        }
    }

    /// Whether it answered a request since this was asked last.
    pub(super) fn has_served(&self) -> bool {
        self.served.swap(false, Ordering::Relaxed)
    }

    fn succeeded(&self) {
        if !self.served.load(Ordering::Relaxed) {
            self.served.store(true, Ordering::Relaxed);
        }
        if self.breaker.succeeded() {
            tracing::info!(node = self.name(), "hub node answers requests again");
            self.show();
        }
    }

    fn failed(&self, pass: Pass) {
        self.trouble.notify_one();
        if self.breaker.failed(pass, self.now_ms()) {
            tracing::error!(node = self.name(), "hub node fails: left alone for a while");
            self.show();
        }
    }

    fn show(&self) {
        self.up.set(i64::from(self.answers() && self.breaker.is_closed()));
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// One request on its way to one node.
pub struct Attempt {
    node: Arc<Node>,
    pass: Pass,
    outcome: Option<Outcome>,
}

impl Attempt {
    /// Where pingora connects to. A client may take its time with the `body` of a request, and the
    /// node is not to blame for that.
    pub fn peer(&self, body: Option<Duration>) -> Box<HttpPeer> {
        let mut peer = Box::new(self.node.peer.clone());
        if let Some(body) = body {
            let options = &mut peer.options;
            options.read_timeout = options.read_timeout.map(|timeout| timeout + body);
        }
        peer
    }

    /// The head of an answer came.
    pub fn answered(&mut self) {
        if self.outcome.is_none() {
            self.outcome = Some(Outcome::Answered);
            self.count(Outcome::Answered);
            self.node.succeeded();
        }
    }

    /// Whether it was answered, or the beginning of an answer came.
    pub fn is_answered(&self) -> bool {
        self.outcome == Some(Outcome::Answered)
    }

    /// It came to nothing, by the node's fault.
    pub fn failed(&mut self, outcome: Outcome) {
        let outcome = if self.is_answered() { Outcome::Broken } else { outcome };
        self.outcome = Some(outcome);
        self.count(outcome);
        self.node.failed(self.pass);
    }

    /// A connection that was kept had been closed: that is no fault.
    pub fn stale(&mut self) {
        self.node.trouble.notify_one();
    }

    /// Its node, as a set.
    pub fn bit(&self) -> u64 {
        self.node.bit
    }

    fn count(&self, outcome: Outcome) {
        if let Some(counter) = self.node.counters.get(outcome as usize) {
            counter.inc();
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.node.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.outcome.is_none() {
            self.node.breaker.undecided(self.pass);
        }
    }
}

fn name(place: &HubNode) -> String {
    match place {
        HubNode::Unix(path) => path.clone(),
        HubNode::Tcp { address, .. } => address.to_string(),
    }
}

fn peer(at: usize, place: &HubNode, settings: &HubNodes) -> Result<HttpPeer> {
    let mut peer = match place {
        HubNode::Unix(path) => HttpPeer::new_uds(path, false, String::new())?,
        HubNode::Tcp { address, tls: None } => HttpPeer::new(*address, false, String::new()),
        HubNode::Tcp { address, tls: Some(tls) } => {
            let mut peer = HttpPeer::new(tunnel::ADDRESS, false, String::new());
            let tunnel = Tunnel { address: *address, tls: tls.clone() };
            peer.options.custom_l4 = Some(Arc::new(tunnel));
            peer
        }
    };
    peer.group_key = at as u64;
    peer.options.connection_timeout = Some(settings.connect_timeout);
    peer.options.total_connection_timeout = Some(settings.connect_timeout);
    peer.options.read_timeout = Some(settings.response_timeout);
    peer.options.write_timeout = Some(settings.response_timeout);
    peer.options.idle_timeout = Some(settings.idle_timeout);
    Ok(peer)
}
