//! The hub, reached on any of its nodes, for requests that hold a [`Permit`].
//!
//! ```text
//!  &Permit ──► choose a node ──► Attempt ──► pingora's pool of connections to that node
//!               │ answers when asked (health)     └─ answered / failed ──► breaker, counters
//!               │ not left alone (breaker)
//!               └ fewest requests in flight, round robin among equals
//! ```
//!
//! Invariants: only [`Hub::attempt`] leads to the hub, and it takes `&Permit`; a request is
//! answered by one node, and goes to another only as long as no byte of it reached one, or if
//! reading twice is no harm and no byte of an answer came ([`Hub::may_retry`]); when no node
//! may be tried that is said at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora_error::Result;
use tokio::sync::watch;

use crate::access::Permit;
use crate::config::HubNodes;
use crate::facts_feed::now_ms;
use crate::metrics::Metrics;

mod breaker;
mod health;
mod node;
mod tunnel;

use node::Node;
pub use node::{Attempt, Outcome};

/// To how many nodes one request goes at most.
pub const TRIES_MAX: usize = 3;

/// A permit that ends sooner is not taken to another node: the hub would refuse it.
const PERMIT_LEFT_MS_MIN: u64 = 500;

/// The hub as an upstream.
pub struct Hub {
    nodes: Box<[Arc<Node>]>,
    next: AtomicUsize,
    /// Ends the questions to the nodes when the hub goes.
    watching: watch::Sender<bool>,
}

impl Hub {
    /// A hub of the nodes that the configuration names, which are asked again and again whether
    /// they answer.
    ///
    /// # Errors
    /// If a node's place cannot be used.
    pub fn new(settings: &HubNodes, metrics: &Metrics) -> Result<Self> {
        let places = settings.nodes.iter().cloned().enumerate();
        let nodes = places.map(|(at, place)| Node::new(at, place, settings, metrics).map(Arc::new));
        let nodes = nodes.collect::<Result<Box<[Arc<Node>]>>>()?;
        let watching = watch::Sender::new(false);
        for node in &nodes {
            tokio::spawn(health::watch(node.clone(), settings.clone(), watching.subscribe()));
        }
        Ok(Self { nodes, next: AtomicUsize::new(0), watching })
    }

    /// Takes the place of `before`: what only that had is shown no longer.
    pub fn replace(&self, before: &Self, metrics: &Metrics) {
        let gone = before.nodes.iter().map(|node| node.name());
        for name in gone.filter(|name| !self.nodes.iter().any(|node| node.name() == *name)) {
            // Gone already is as good.
            let _ = metrics.hub_node_up.remove_label_values(&[&name]);
        }
    }

    /// An attempt on the node that is best now, and not among `tried`; `None`: there is none. A
    /// node that failed is tried with a write only when there is no other: a read can be taken
    /// elsewhere.
    pub fn attempt(&self, permit: &Permit, tried: u64) -> Option<Attempt> {
        if let [node] = &*self.nodes {
            return is_usable(node, tried).then(|| node.attempt()).flatten();
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let doubtful = self.doubtful();
        let others = if is_read(permit) { None } else { self.best(first, tried | doubtful) };
        others.or_else(|| self.best(first, tried))
    }

    /// The node with the fewest requests in flight; of equals the first one in turn.
    fn best(&self, first: usize, tried: u64) -> Option<Attempt> {
        let mut passed = tried;
        loop {
            let in_turn = (0..self.nodes.len())
                .filter_map(|step| self.nodes.get(first.wrapping_add(step) % self.nodes.len()));
            let usable = in_turn.filter(|node| is_usable(node, passed));
            let node = usable.min_by_key(|node| node.in_flight())?;
            if let Some(attempt) = node.attempt() {
                return Some(attempt);
            }
            passed |= node.bit;
        }
    }

    /// Nodes that failed and did not answer a request since.
    fn doubtful(&self) -> u64 {
        let doubtful = self.nodes.iter().filter(|node| !node.is_trusted());
        doubtful.fold(0, |set, node| set | node.bit)
    }

    /// Whether a request that a node did not answer may go to another: nothing comes of asking
    /// twice, no byte of an answer came, and the permit lasts.
    pub fn may_retry(permit: &Permit, attempt: &Attempt) -> bool {
        is_read(permit)
            && !attempt.is_answered()
            && permit.claims().expires_ms > now_ms().saturating_add(PERMIT_LEFT_MS_MIN)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.watching.send_replace(true);
    }
}

fn is_read(permit: &Permit) -> bool {
    matches!(permit.claims().method.as_str(), "GET" | "HEAD")
}

fn is_usable(node: &Node, tried: u64) -> bool {
    node.bit & tried == 0 && node.answers()
}
