//! Refusals that come in floods are counted instead of written, so that nobody can fill the log.
//!
//! Up to N refusals a minute and party (certificate, or address of a failed handshake) are recorded
//! one by one. What is beyond goes into one [`Event::Aggregated`] a party, written every
//! [`FLUSH_INTERVAL`]. Counts are exact; a kill of the process loses those of one interval at most.
//!
//! Limits, so that many parties together can not fill the log or the memory either:
//! [`PARTIES_MAX`] are counted apart, the rest as `others`; of all parties together
//! [`PARTIES_WRITTEN_FACTOR`] × N a minute are recorded one by one.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::encoding;
use crate::entry::Event;

/// How long counts wait before they are written.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(10);
/// Parties whose refusals are counted apart.
pub const PARTIES_MAX: usize = 1_000;
/// How many times the limit of one party all parties together may have recorded one by one.
pub const PARTIES_WRITTEN_FACTOR: u32 = 100;
/// Insured persons that an aggregated record names.
pub const INSURED_NAMED_MAX: usize = 200;

const DENIALS: &str = "denials";
const HANDSHAKE_FAILURES: &str = "handshake_failures";
const OTHERS: &str = "others";
const MINUTE_MS: i64 = 60_000;

/// Decides which refusals are written and counts the others.
pub(crate) struct Flood {
    per_minute_max: u32,
    minute: i64,
    written: u32,
    written_by: HashMap<Party, u32>,
    counted: BTreeMap<Party, Counts>,
}

/// What is counted apart: the kind of refusal and whose it is.
type Party = (&'static str, String);

struct Counts {
    from_ms: i64,
    until_ms: i64,
    count: u64,
    reasons: BTreeMap<String, u64>,
    insured: BTreeMap<String, u64>,
    insured_not_named: u64,
}

impl Flood {
    pub(crate) fn new(per_minute_max: u32) -> Self {
        Self {
            per_minute_max,
            minute: 0,
            written: 0,
            written_by: HashMap::new(),
            counted: BTreeMap::new(),
        }
    }

    /// Whether the refusal is to be written; otherwise it was counted. Without `room` on the disk
    /// every refusal is counted. An event that is no refusal is always to be written.
    pub(crate) fn admits(&mut self, event: &Event, at_ms: i64, room: bool) -> bool {
        let Some(party) = party(event) else { return true };
        let minute = at_ms.div_euclid(MINUTE_MS);
        if minute != self.minute {
            self.minute = minute;
            self.written = 0;
            self.written_by.clear();
        }
        if room && self.has_turn(&party) {
            return true;
        }
        self.count(party, event, at_ms);
        false
    }

    fn has_turn(&mut self, party: &Party) -> bool {
        let in_all_max = self.per_minute_max.saturating_mul(PARTIES_WRITTEN_FACTOR);
        let by_party = self.written_by.get(party).copied().unwrap_or(0);
        if self.written >= in_all_max || by_party >= self.per_minute_max {
            return false;
        }
        self.written += 1;
        self.written_by.insert(party.clone(), by_party + 1);
        true
    }

    fn count(&mut self, party: Party, event: &Event, at_ms: i64) {
        let known = self.counted.contains_key(&party);
        let party = if known || self.counted.len() < PARTIES_MAX {
            party
        } else {
            (party.0, OTHERS.to_owned())
        };
        let counts = self.counted.entry(party).or_insert_with(|| Counts::new(at_ms));
        counts.add(event, at_ms);
    }

    /// Whether something was counted and not taken.
    pub(crate) fn is_counting(&self) -> bool {
        !self.counted.is_empty()
    }

    /// Takes everything counted, as events to be written.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.counted)
            .into_iter()
            .map(|((what, party), counts)| counts.event(what, party))
            .collect()
    }

    /// Counts again what was taken and could not be written.
    pub(crate) fn put_back(&mut self, events: Vec<Event>) {
        for event in events {
            let Event::Aggregated { what, party, .. } = &event else { continue };
            let what = if what == DENIALS { DENIALS } else { HANDSHAKE_FAILURES };
            let party = (what, party.clone());
            let Some(counts) = Counts::of(event) else { continue };
            match self.counted.get_mut(&party) {
                Some(known) => known.merge(counts),
                None => drop(self.counted.insert(party, counts)),
            }
        }
    }
}

impl Counts {
    fn new(at_ms: i64) -> Self {
        Self {
            from_ms: at_ms,
            until_ms: at_ms,
            count: 0,
            reasons: BTreeMap::new(),
            insured: BTreeMap::new(),
            insured_not_named: 0,
        }
    }

    fn add(&mut self, event: &Event, at_ms: i64) {
        self.until_ms = self.until_ms.max(at_ms);
        self.count += 1;
        match event {
            Event::Decision { reasons, object, .. } => {
                for reason in reasons {
                    *self.reasons.entry(reason.clone()).or_default() += 1;
                }
                if let Some(insured) = &object.insured {
                    self.add_insured(insured, 1);
                }
            }
            Event::HandshakeFailed { reason, .. } => {
                *self.reasons.entry(reason.clone()).or_default() += 1;
            }
            Event::Completion { .. }
            | Event::Aggregated { .. }
            | Event::Intent { .. }
            | Event::Effect { .. }
            | Event::Outcome { .. }
            | Event::ServiceStarted { .. }
            | Event::ServiceStopped
            | Event::Checkpoint { .. }
            | Event::TailCut { .. }
            | Event::Unfinished { .. }
            | Event::Unavailable { .. }
            | Event::ClockStepped { .. }
            | Event::SegmentsDeleted { .. } => {}
        }
    }

    fn add_insured(&mut self, insured: &str, count: u64) {
        if let Some(known) = self.insured.get_mut(insured) {
            *known += count;
        } else if self.insured.len() < INSURED_NAMED_MAX {
            self.insured.insert(insured.to_owned(), count);
        } else {
            self.insured_not_named += count;
        }
    }

    fn merge(&mut self, other: Self) {
        self.from_ms = self.from_ms.min(other.from_ms);
        self.until_ms = self.until_ms.max(other.until_ms);
        self.count += other.count;
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        for (insured, count) in other.insured {
            self.add_insured(&insured, count);
        }
        self.insured_not_named += other.insured_not_named;
    }

    fn event(self, what: &str, party: String) -> Event {
        Event::Aggregated {
            what: what.to_owned(),
            party,
            from: encoding::at_text(self.from_ms),
            until: encoding::at_text(self.until_ms),
            count: self.count,
            reasons: self.reasons,
            insured: self.insured,
            insured_not_named: self.insured_not_named,
        }
    }

    fn of(event: Event) -> Option<Self> {
        let Event::Aggregated { from, until, count, reasons, insured, insured_not_named, .. } =
            event
        else {
            return None;
        };
        let from_ms = encoding::at_unix_ms(&from)?;
        let until_ms = encoding::at_unix_ms(&until)?;
        Some(Self { from_ms, until_ms, count, reasons, insured, insured_not_named })
    }
}

/// Whose refusal it is; `None` for what is no refusal.
fn party(event: &Event) -> Option<Party> {
    if !event.is_refusal() {
        return None;
    }
    match event {
        Event::Decision { actor, .. } => Some((DENIALS, actor.principal.clone())),
        Event::HandshakeFailed { client_addr, .. } => {
            Some((HANDSHAKE_FAILURES, address(client_addr)))
        }
        Event::Completion { .. }
        | Event::Aggregated { .. }
        | Event::Intent { .. }
        | Event::Effect { .. }
        | Event::Outcome { .. }
        | Event::ServiceStarted { .. }
        | Event::ServiceStopped
        | Event::Checkpoint { .. }
        | Event::TailCut { .. }
        | Event::Unfinished { .. }
        | Event::Unavailable { .. }
        | Event::ClockStepped { .. }
        | Event::SegmentsDeleted { .. } => None,
    }
}

/// The address without its port; of an IPv6 address the /64, which one subscriber has whole.
fn address(client: &str) -> String {
    match client.parse::<SocketAddr>().map(|client| client.ip()) {
        Ok(IpAddr::V4(address)) => address.to_string(),
        Ok(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(address) => address.to_string(),
            None => {
                let network = u128::from(address) & (u128::MAX << 64);
                format!("{}/64", Ipv6Addr::from(network))
            }
        },
        Err(_) => OTHERS.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Actor, DENY, Object};

    fn denial(principal: &str, insured: &str) -> Event {
        Event::Decision {
            request_id: "r".into(),
            actor: Actor::of(principal),
            action: None,
            object: Object::person(insured),
            decision: DENY.into(),
            reasons: vec!["not_registered".into(), "consent_required".into()],
            policy: "p".into(),
            facts_ca_seq: 1,
            facts_hub_seq: 1,
            client_addr: "192.0.2.1:1".into(),
        }
    }

    fn failure(client_addr: &str) -> Event {
        Event::HandshakeFailed {
            reason: "unknown_ca".into(),
            detail: String::new(),
            client_addr: client_addr.into(),
            actor: None,
        }
    }

    #[test]
    fn what_is_beyond_the_limit_is_counted_exactly() {
        let mut flood = Flood::new(3);
        let written = (0..10).filter(|_| flood.admits(&denial("office/1", "p"), 1, true)).count();
        assert_eq!(written, 3);
        assert!(flood.admits(&denial("office/2", "p"), 1, true));
        let events = flood.take();
        let [Event::Aggregated { what, party, count, reasons, insured, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!((what.as_str(), party.as_str(), *count), (DENIALS, "office/1", 7));
        assert_eq!(reasons.values().collect::<Vec<_>>(), [&7, &7]);
        assert_eq!(insured.get("p"), Some(&7));
        assert!(!flood.is_counting());
        // What could not be written is counted on.
        assert!(!flood.admits(&denial("office/1", "q"), 2, true));
        flood.put_back(events);
        let [Event::Aggregated { count, insured, .. }] = &flood.take()[..] else { panic!() };
        assert_eq!((*count, insured.len()), (8, 2));
        // The next minute begins anew.
        assert!(flood.admits(&denial("office/1", "p"), 60_001, true));
    }

    #[test]
    fn many_parties_share_a_limit_and_the_last_ones_are_others() {
        let mut flood = Flood::new(1);
        let parties = 3 * PARTIES_MAX as u64;
        let mut written = 0;
        for party in 0..parties {
            written += u64::from(flood.admits(&denial(&format!("office/{party}"), "p"), 1, true));
        }
        assert_eq!(written, u64::from(PARTIES_WRITTEN_FACTOR));
        let events = flood.take();
        assert_eq!(events.len(), PARTIES_MAX + 1);
        let count = |event: &Event| {
            let Event::Aggregated { count, .. } = event else { return 0 };
            *count
        };
        assert_eq!(events.iter().map(count).sum::<u64>() + written, parties);
    }

    #[test]
    fn without_room_every_refusal_is_counted_and_nothing_else() {
        let mut flood = Flood::new(60);
        assert!(!flood.admits(&denial("office/1", "p"), 1, false));
        assert!(flood.admits(&Event::ServiceStopped, 1, false));
        assert_eq!(flood.take().len(), 1);
    }

    #[test]
    fn a_subscriber_of_ipv6_is_one_party() {
        assert_eq!(address("192.0.2.1:443"), "192.0.2.1");
        assert_eq!(address("[2001:db8:1:2:3:4:5:6]:443"), "2001:db8:1:2::/64");
        assert_eq!(address("[::ffff:192.0.2.1]:443"), "192.0.2.1");
        let mut flood = Flood::new(1);
        assert!(flood.admits(&failure("[2001:db8::1]:1"), 1, true));
        assert!(!flood.admits(&failure("[2001:db8::2]:2"), 1, true));
        assert!(flood.admits(&failure("[2001:db8:0:1::2]:2"), 1, true));
    }

    #[test]
    fn persons_beyond_the_named_ones_are_counted() {
        let mut flood = Flood::new(0);
        for person in 0..INSURED_NAMED_MAX + 5 {
            flood.admits(&denial("office/1", &person.to_string()), 1, true);
        }
        let [Event::Aggregated { insured, insured_not_named, .. }] = &flood.take()[..] else {
            panic!()
        };
        assert_eq!((insured.len(), *insured_not_named), (INSURED_NAMED_MAX, 5));
    }
}
