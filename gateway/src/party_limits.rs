//! How much one party (an office, a municipality, a system) may ask for, at one time and in a
//! second, on all its connections together.

use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::Limits;
use crate::slots::{Slot, Slots};

/// The requests of all parties, and those of each.
pub struct PartyLimits {
    in_flight: Arc<Slots<Arc<str>>>,
    rate: DefaultKeyedRateLimiter<Arc<str>>,
}

impl PartyLimits {
    /// What `limits` say. What it remembers of parties that are silent goes after a while, as long
    /// as a runtime runs.
    pub fn new(limits: &Limits) -> Arc<Self> {
        Self::limited(Slots::new(0, 0), limits)
    }

    /// The same with other limits, which count what is in flight already.
    pub fn relimited(&self, limits: &Limits) -> Arc<Self> {
        Self::limited(self.in_flight.clone(), limits)
    }

    fn limited(in_flight: Arc<Slots<Arc<str>>>, limits: &Limits) -> Arc<Self> {
        let party_max = limits.requests_in_flight_per_party_max;
        in_flight.limit(limits.requests_in_flight_max, party_max);
        let limits = Arc::new(Self {
            in_flight,
            rate: RateLimiter::keyed(Quota::per_second(limits.requests_per_second_per_party_max)),
        });
        let kept = Arc::downgrade(&limits);
        tokio::spawn(async move {
            while let Some(limits) = kept.upgrade() {
                limits.rate.retain_recent();
                limits.rate.shrink_to_fit();
                drop(limits);
                tokio::time::sleep(FORGET_INTERVAL).await;
            }
        });
        limits
    }

    /// Room for one more request of `party`, if there is any now.
    pub fn take(&self, party: &Arc<str>) -> Option<Slot<Arc<str>>> {
        self.rate.check_key(party).ok()?;
        self.in_flight.take(party.clone())
    }
}

const FORGET_INTERVAL: Duration = Duration::from_secs(60);
