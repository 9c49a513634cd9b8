//! Refusals that come in floods are counted instead of written, so that nobody can fill the log.
//!
//! Up to N refusals a minute and party (certificate, or address of a failed handshake) are recorded
//! one by one. What is beyond goes into one [`Event::Aggregated`] a party, written every
//! [`FLUSH_INTERVAL`] ([`FLUSH_INTERVAL_LOW`] while the disk has no room for refusals). Counts are
//! exact; a kill of the process loses those of one interval at most.
//!
//! Limits, so that many parties together can not fill the log or the memory either:
//! [`PARTIES_MAX`] are counted apart, the rest as `others`; of all parties together
//! [`PARTIES_WRITTEN_FACTOR`] × N a minute and [`WRITTEN_A_DAY_MAX`] a day are recorded one by one,
//! denials and handshakes apart; [`INSURED_COUNTED_MAX`] persons are counted by pseudonym, the rest
//! by number.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::encoding;
use crate::entry::Event;

/// How long counts wait before they are written.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(10);
/// How long they wait while the disk has no room for refusals.
pub const FLUSH_INTERVAL_LOW: Duration = Duration::from_secs(3600);
/// Parties whose refusals are counted apart.
pub const PARTIES_MAX: usize = 1_000;
/// How many times the limit of one party all parties together may have recorded one by one.
pub const PARTIES_WRITTEN_FACTOR: u32 = 100;
/// Refusals of one kind that are recorded one by one a day.
pub const WRITTEN_A_DAY_MAX: u32 = 500_000;
/// Insured persons that one aggregated record names; a party with more gets several records.
pub const INSURED_NAMED_MAX: usize = 200;
/// Insured persons that are counted apart for all parties together.
pub const INSURED_COUNTED_MAX: usize = 100_000;

const DENIALS: &str = "denials";
const HANDSHAKE_FAILURES: &str = "handshake_failures";
const OTHERS: &str = "others";
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// Decides which refusals are written and counts the others.
pub(crate) struct Flood {
    per_minute_max: u32,
    minute: i64,
    day: i64,
    denials: Written,
    handshake_failures: Written,
    written_by: HashMap<Party, u32>,
    counted: BTreeMap<Party, Counts>,
    /// Persons in `counted`, of all parties together.
    insured: usize,
}

/// What was written one by one of one kind. Each kind has its own limits: who has no certificate
/// can not hide the denials of one who has.
#[derive(Default)]
struct Written {
    this_minute: u32,
    today: u32,
    /// Parties in what was counted.
    parties: usize,
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
            day: 0,
            denials: Written::default(),
            handshake_failures: Written::default(),
            written_by: HashMap::new(),
            counted: BTreeMap::new(),
            insured: 0,
        }
    }

    /// Whether the refusal is to be written; otherwise it was counted. Without `room` on the disk
    /// every refusal is counted. An event that is no refusal is always to be written.
    pub(crate) fn admits(&mut self, event: &Event, at_ms: i64, room: bool) -> bool {
        let Some(party) = party(event) else { return true };
        let minute = at_ms.div_euclid(MINUTE_MS);
        if minute != self.minute {
            self.minute = minute;
            self.denials.this_minute = 0;
            self.handshake_failures.this_minute = 0;
            self.written_by.clear();
        }
        let day = at_ms.div_euclid(DAY_MS);
        if day != self.day {
            self.day = day;
            self.denials.today = 0;
            self.handshake_failures.today = 0;
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
        let written =
            if party.0 == DENIALS { &mut self.denials } else { &mut self.handshake_failures };
        if written.this_minute >= in_all_max
            || written.today >= WRITTEN_A_DAY_MAX
            || by_party >= self.per_minute_max
        {
            return false;
        }
        written.this_minute += 1;
        written.today += 1;
        self.written_by.insert(party.clone(), by_party + 1);
        true
    }

    /// Counts a refusal that could not be written after all.
    pub(crate) fn recount(&mut self, event: &Event, at_ms: i64) {
        if let Some(party) = party(event) {
            self.count(party, event, at_ms);
        }
    }

    fn count(&mut self, party: Party, event: &Event, at_ms: i64) {
        let kind =
            if party.0 == DENIALS { &mut self.denials } else { &mut self.handshake_failures };
        let known = self.counted.contains_key(&party);
        let party = if known || kind.parties < PARTIES_MAX {
            kind.parties += usize::from(!known);
            party
        } else {
            (party.0, OTHERS.to_owned())
        };
        let counts = self.counted.entry(party).or_insert_with(|| Counts::new(at_ms));
        let before = counts.insured.len();
        counts.add(event, at_ms, self.insured < INSURED_COUNTED_MAX);
        self.insured += counts.insured.len() - before;
    }

    /// Whether something was counted and not taken.
    pub(crate) fn is_counting(&self) -> bool {
        !self.counted.is_empty()
    }

    /// Takes everything counted, as events to be written.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        self.insured = 0;
        self.denials.parties = 0;
        self.handshake_failures.parties = 0;
        std::mem::take(&mut self.counted)
            .into_iter()
            .flat_map(|((what, party), counts)| counts.events(what, &party))
            .collect()
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

    fn add(&mut self, event: &Event, at_ms: i64, more_insured: bool) {
        self.until_ms = self.until_ms.max(at_ms);
        self.count += 1;
        match event {
            Event::Decision { reasons, object, .. } => {
                for reason in reasons {
                    *self.reasons.entry(reason.clone()).or_default() += 1;
                }
                if let Some(insured) = &object.insured {
                    self.add_insured(insured, 1, more_insured);
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
            | Event::HandedOver
            | Event::ServiceStopped
            | Event::Checkpoint { .. }
            | Event::TailCut { .. }
            | Event::Unfinished { .. }
            | Event::Unavailable { .. }
            | Event::ClockStepped { .. }
            | Event::SegmentsDeleted { .. } => {}
        }
    }

    fn add_insured(&mut self, insured: &str, count: u64, more: bool) {
        if let Some(known) = self.insured.get_mut(insured) {
            *known += count;
        } else if more {
            self.insured.insert(insured.to_owned(), count);
        } else {
            self.insured_not_named += count;
        }
    }

    /// One record, or several when there are more persons than one record names: the first bears
    /// whatever is not a named person's, each further one the counts of its own persons.
    fn events(self, what: &str, party: &str) -> Vec<Event> {
        let named: Vec<(String, u64)> = self.insured.into_iter().collect();
        let mut parts = named.chunks(INSURED_NAMED_MAX).map(|part| part.iter().cloned().collect());
        let first: BTreeMap<String, u64> = parts.next().unwrap_or_default();
        let rest: Vec<BTreeMap<String, u64>> = parts.collect();
        let in_rest: u64 = rest.iter().flat_map(BTreeMap::values).sum();
        let record = |count, reasons, insured, insured_not_named| Event::Aggregated {
            what: what.to_owned(),
            party: party.to_owned(),
            from: encoding::at_text(self.from_ms),
            until: encoding::at_text(self.until_ms),
            count,
            reasons,
            insured,
            insured_not_named,
        };
        // Which person's denial had which reason is known when there is only one reason.
        let only = (self.reasons.len() == 1).then(|| self.reasons.keys().next().cloned()).flatten();
        let mut reasons = self.reasons;
        if only.is_some() {
            reasons.values_mut().for_each(|count| *count = count.saturating_sub(in_rest));
        }
        let first = record(self.count - in_rest, reasons, first, self.insured_not_named);
        let further = rest.into_iter().map(|insured| {
            let count = insured.values().sum();
            let reasons = only.iter().map(|reason| (reason.clone(), count)).collect();
            record(count, reasons, insured, 0)
        });
        std::iter::once(first).chain(further).collect()
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
        | Event::HandedOver
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
            network: None,
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
    fn failed_handshakes_do_not_hide_whose_denials_there_were() {
        let mut flood = Flood::new(1);
        for number in 0..3 * PARTIES_MAX {
            let address = format!("[2001:db8:{:x}:{:x}::1]:1", number >> 8, number & 0xff);
            flood.admits(&failure(&address), 1, true);
        }
        assert!(flood.admits(&denial("office/spy", "p"), 1, true), "one by one");
        assert!(!flood.admits(&denial("office/spy", "p"), 1, true));
        let spy = |event: &Event| {
            let Event::Aggregated { party, count, .. } = event else { return false };
            (party.as_str(), *count) == ("office/spy", 1)
        };
        assert!(flood.take().iter().any(spy));
    }

    #[test]
    fn many_persons_are_named_in_several_records_whose_counts_sum_up() {
        let mut flood = Flood::new(0);
        let persons = 2 * INSURED_NAMED_MAX + 5;
        for number in 0..2 * persons {
            flood.admits(&denial("office/1", &(number % persons).to_string()), 1, true);
        }
        let parts = flood.take();
        assert_eq!(parts.len(), 3);
        let (mut sum, mut named) = (0, BTreeMap::new());
        for part in &parts {
            let Event::Aggregated { count, insured, insured_not_named: 0, .. } = part else {
                panic!("{part:?}");
            };
            assert!(insured.len() <= INSURED_NAMED_MAX);
            sum += count;
            named.extend(insured.clone());
        }
        assert_eq!((sum, named.len()), (2 * persons as u64, persons));
        assert!(named.values().all(|count| *count == 2));
    }

    #[test]
    fn persons_beyond_the_limit_of_all_are_counted_without_a_name() {
        let mut flood = Flood::new(0);
        for number in 0..INSURED_COUNTED_MAX + 5 {
            flood.admits(&denial("office/1", &number.to_string()), 1, true);
        }
        let mut not_named = 0;
        for part in flood.take() {
            let Event::Aggregated { insured_not_named, .. } = part else { continue };
            not_named += insured_not_named;
        }
        assert_eq!(not_named, 5);
    }
}
