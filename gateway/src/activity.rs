//! Who does what right now, for the operator's live table: requests and refusals by party.
//!
//! Each connection counts for itself, so that a request touches nothing that others touch; what a
//! connection counted is kept for a while after it has ended. These numbers name offices, so they
//! leave by the control socket (mode 0600) only and are no metrics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What was answered on one connection.
#[derive(Debug, Default)]
pub struct Counter {
    requests: AtomicU64,
    denied: AtomicU64,
}

impl Counter {
    /// Counts an answer.
    pub fn count(&self, denied: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.denied.fetch_add(u64::from(denied), Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.denied.load(Ordering::Relaxed))
    }
}

/// What a party did, as far as it is still remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Activity {
    /// Its open connections.
    pub connections: u64,
    /// Answers, refusals included.
    pub requests: u64,
    /// Refusals.
    pub denied: u64,
}

impl Activity {
    /// Adds an open connection.
    pub fn add_open(&mut self, counter: &Counter) {
        self.connections += 1;
        self.add(counter);
    }

    fn add(&mut self, counter: &Counter) {
        let (requests, denied) = counter.read();
        self.requests += requests;
        self.denied += denied;
    }
}

/// What ended connections counted, by party.
#[derive(Debug, Default)]
pub struct Ended {
    parties: HashMap<String, (Activity, Instant)>,
}

impl Ended {
    /// Remembers a connection that has ended. Of more parties than [`PARTIES_MAX`] those that were
    /// silent longest are forgotten.
    pub fn remember(&mut self, party: String, counter: &Counter) {
        if self.parties.len() >= PARTIES_MAX && !self.parties.contains_key(&party) {
            self.forget_silent();
            if self.parties.len() >= PARTIES_MAX {
                return;
            }
        }
        let now = Instant::now();
        let (activity, last) = self.parties.entry(party).or_insert((Activity::default(), now));
        activity.add(counter);
        *last = now;
    }

    /// By party, of the last minute.
    pub fn by_party(&mut self) -> HashMap<String, Activity> {
        self.forget_silent();
        self.parties.iter().map(|(party, (activity, _))| (party.clone(), *activity)).collect()
    }

    fn forget_silent(&mut self) {
        self.parties.retain(|_, (_, last)| last.elapsed() < REMEMBERED);
    }
}

/// How long what an ended connection counted is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Parties whose ended connections are remembered.
const PARTIES_MAX: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(requests: u64, denied: u64) -> Counter {
        let counter = Counter::default();
        (0..requests).for_each(|at| counter.count(at < denied));
        counter
    }

    #[test]
    fn what_ended_connections_counted_adds_up_by_party() {
        let mut ended = Ended::default();
        ended.remember("office/1".into(), &counted(3, 1));
        ended.remember("office/1".into(), &counted(2, 0));
        ended.remember("office/2".into(), &counted(1, 1));
        let mut all = ended.by_party();
        let one = all.get_mut("office/1").unwrap();
        assert_eq!(*one, Activity { connections: 0, requests: 5, denied: 1 });
        one.add_open(&counted(4, 4));
        assert_eq!(*one, Activity { connections: 1, requests: 9, denied: 5 });
        assert_eq!(all["office/2"], Activity { connections: 0, requests: 1, denied: 1 });
    }

    #[test]
    fn parties_are_bounded() {
        let mut ended = Ended::default();
        for number in 0..PARTIES_MAX + 10 {
            ended.remember(format!("office/{number}"), &counted(1, 0));
        }
        assert_eq!(ended.by_party().len(), PARTIES_MAX);
        ended.remember("office/0".into(), &counted(1, 0));
        assert_eq!(ended.by_party()["office/0"].requests, 2);
    }
}
