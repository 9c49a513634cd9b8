//! `[staleness]`: how old facts may be.

use policies::decide::Leases;
use serde::Deserialize;

use super::Checker;
use crate::staleness::Stages;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStaleness {
    alarm_ms: u64,
    hub_consent_ms: u64,
    hub_deny_ms: u64,
    ca_deny_ms: u64,
}

impl Default for RawStaleness {
    fn default() -> Self {
        let Stages { alarm_ms, leases } = Stages::default();
        let Leases { hub_consent_ms, hub_deny_ms, ca_deny_ms } = leases;
        Self { alarm_ms, hub_consent_ms, hub_deny_ms, ca_deny_ms }
    }
}

impl Checker {
    /// Leases may be shorter than the defaults and never longer: cert-authority and hub wait that
    /// long for a gateway that is silent, before they say that a revocation is in force.
    pub(super) fn staleness(&mut self, raw: &RawStaleness) -> Stages {
        let longest = RawStaleness::default();
        for (key, value, max) in [
            ("staleness.hub_consent_ms", raw.hub_consent_ms, longest.hub_consent_ms),
            ("staleness.hub_deny_ms", raw.hub_deny_ms, longest.hub_deny_ms),
            ("staleness.ca_deny_ms", raw.ca_deny_ms, longest.ca_deny_ms),
        ] {
            if value > max {
                self.problem(key, &format!("must not be greater than {max}"));
            }
        }
        let of_hub = [1, raw.alarm_ms, raw.hub_consent_ms, raw.hub_deny_ms];
        if !of_hub.is_sorted() || raw.ca_deny_ms < raw.alarm_ms {
            let order = "0 < alarm_ms <= hub_consent_ms <= hub_deny_ms, alarm_ms <= ca_deny_ms";
            self.problem("staleness", &format!("must be in order: {order}"));
        }
        let RawStaleness { alarm_ms, hub_consent_ms, hub_deny_ms, ca_deny_ms } = *raw;
        Stages { alarm_ms, leases: Leases { hub_consent_ms, hub_deny_ms, ca_deny_ms } }
    }
}
