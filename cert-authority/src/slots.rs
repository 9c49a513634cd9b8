//! Connection slots, in all and for each address, so that one address cannot take them all; and a
//! tally of what strangers make us refuse, so that they cannot fill the log.
//!
//! Invariants: a [`Slot`] that is dropped is free again, and no count outlives its slots; a
//! [`Tally`] writes at most one line in its period.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Slots for connections.
pub struct Slots {
    all_max: usize,
    each_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

/// One slot, free again when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    holder: IpAddr,
}

impl Slots {
    /// `all_max` slots, at most `each_max` of them for one address.
    pub fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, each_max, held: Mutex::default() })
    }

    /// A slot for a connection from `address`, if there is one.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let holder = holder(address);
        let mut held = self.lock();
        let has = held.each.get(&holder).copied().unwrap_or(0);
        if held.all >= self.all_max || has >= self.each_max {
            return None;
        }
        held.all += 1;
        held.each.insert(holder, has + 1);
        drop(held);
        Some(Slot { slots: Arc::clone(self), holder })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.slots.lock();
        held.all -= 1;
        match held.each.get_mut(&self.holder) {
            Some(has) if *has > 1 => *has -= 1,
            Some(_) | None => {
                held.each.remove(&self.holder);
            }
        }
    }
}

/// Who holds a slot: an IPv4 address, or the /64 that one IPv6 subscriber has to himself.
fn holder(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        IpAddr::V4(address) => IpAddr::V4(address),
    }
}

/// Counts refusals and writes one warning for each period in which there were any.
pub struct Tally {
    what: &'static str,
    period: Duration,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    refused: u64,
    last_failure: Option<String>,
}

impl Tally {
    /// A tally of `what`, with a line each minute.
    pub fn each_minute(what: &'static str) -> Arc<Self> {
        Self::each(what, Duration::from_secs(60))
    }

    fn each(what: &'static str, period: Duration) -> Arc<Self> {
        Arc::new(Self { what, period, counted: Mutex::default() })
    }

    /// Counts one. `failure` is a cause on our side, of which the line shows the last.
    pub fn add(self: &Arc<Self>, failure: Option<String>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.refused += 1;
        if failure.is_some() {
            counted.last_failure = failure;
        }
        if counted.refused == 1 {
            let tally = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(tally.period).await;
                tally.tell();
            });
        }
    }

    fn tell(&self) {
        let counted =
            std::mem::take(&mut *self.counted.lock().unwrap_or_else(PoisonError::into_inner));
        let Counted { refused, last_failure } = counted;
        tracing::warn!(count = refused, last_failure, "{} in the last minute", self.what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn slots_are_bounded_in_all_and_for_each_address_and_come_back() {
        let slots = Slots::new(3, 2);
        let take = |address: &str| slots.take(address.parse().unwrap());
        let (a1, a2) = (take("10.0.0.1").unwrap(), take("::ffff:10.0.0.1").unwrap());
        assert!(take("10.0.0.1").is_none(), "one address took more than its share");
        let b1 = take("2001:db8::1").unwrap();
        assert!(take("10.0.0.2").is_none(), "more than there are");
        drop(a1);
        let b2 = take("2001:db8::2").unwrap();
        drop(a2);
        assert!(take("2001:db8::3").is_none(), "one /64 is one holder");
        drop((b1, b2));
        assert!(slots.lock().each.is_empty());
        assert_eq!(slots.lock().all, 0);
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_thousand_refusals_are_one_line_with_their_count() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone());
        let _guard = tracing::subscriber::set_default(subscriber.finish());
        let tally = Tally::each("enrolments refused", Duration::from_millis(50));
        for _ in 0..999 {
            tally.add(None);
        }
        tally.add(Some("the disk is full".to_owned()));
        tokio::time::sleep(Duration::from_millis(300)).await;
        tally.add(None);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        for expected in ["WARN", "enrolments refused", "\"count\":1000", "the disk is full"] {
            assert!(text.contains(expected), "{expected} not in {text}");
        }
    }
}
