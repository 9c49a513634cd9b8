//! How old the facts are, and what that age allows.

use policies::decide::FeedState;
use policies::feed::Source;
use prometheus::{Gauge, GaugeVec, IntGauge, IntGaugeVec, Opts};

use super::Registered;
use crate::staleness::{Stage, Stages};

/// What is shown of the feeds.
#[derive(Debug)]
pub struct FeedMetrics {
    /// `sekisho_feed_age_seconds{feed}`.
    ages: [Gauge; 2],
    /// `sekisho_feed_stage{feed}`.
    stages: [IntGauge; 2],
    /// `sekisho_feed_lease_seconds{feed, stage}`.
    leases: GaugeVec,
}

impl FeedMetrics {
    pub(super) fn new(all: &mut Registered) -> Result<Self, prometheus::Error> {
        let ages = Opts::new("sekisho_feed_age_seconds", "Age of the facts of a feed, in seconds");
        let ages = all.add(GaugeVec::new(ages, &["feed"]))?;
        let stages = "0 fresh, 1 late, 2 nothing that rests on consent is shared, 3 all is denied";
        let stages = Opts::new("sekisho_feed_stage", stages);
        let stages = all.add(IntGaugeVec::new(stages, &["feed"]))?;
        let leases = "Age beyond which a stage begins, in seconds, as configured";
        let leases = Opts::new("sekisho_feed_lease_seconds", leases);
        Ok(Self {
            ages: SOURCES.map(|source| ages.with_label_values(&[source.as_str()])),
            stages: SOURCES.map(|source| stages.with_label_values(&[source.as_str()])),
            leases: all.add(GaugeVec::new(leases, &["feed", "stage"]))?,
        })
    }

    /// Shows what is configured.
    pub fn configured(&self, stages: &Stages) {
        for source in SOURCES {
            for stage in Stage::ALL {
                if let Some(ms) = stages.begins_after_ms(source, stage) {
                    let labels = [source.as_str(), stage.as_str()];
                    self.leases.with_label_values(&labels).set(seconds(ms));
                }
            }
        }
    }

    /// Shows how old the facts are now.
    pub fn show(&self, stages: &Stages, feeds: &FeedState) {
        for (at, source) in SOURCES.into_iter().enumerate() {
            let age_ms = stages.age_ms(source, feeds);
            if let (Some(age), Some(stage)) = (self.ages.get(at), self.stages.get(at)) {
                age.set(age_ms.map_or(f64::INFINITY, seconds));
                stage.set(stages.of(source, age_ms).number());
            }
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

const SOURCES: [Source; 2] = [Source::Ca, Source::Hub];
