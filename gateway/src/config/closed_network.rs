//! `[closed_network]`: the second listener, for medical institutions and municipalities that come
//! by an IP-VPN and not by the internet.

use std::net::SocketAddr;

use policies::overlay::network::Network;
use serde::Deserialize;

use super::limits::RawLimits;
use super::{Checker, Limits};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClosedNetwork {
    listen: String,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
    #[serde(default)]
    limits: toml::Table,
}

/// The listener on the closed network. What comes by it is decided with the fact that it does.
#[derive(Debug, Clone)]
pub struct ClosedNetwork {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Balancers in front of it, which say where a client is.
    pub proxy_protocol_from: Vec<Network>,
    /// Its own limits: those of `[limits]` but for what `[closed_network.limits]` says.
    pub limits: Limits,
}

impl Checker {
    pub(super) fn closed_network(
        &mut self,
        raw: RawClosedNetwork,
        limits: &RawLimits,
        demo: bool,
    ) -> Option<ClosedNetwork> {
        let listen = self.address("closed_network.listen", &raw.listen);
        self.check_demo_listener(demo, ("closed_network.listen", listen));
        let key = "closed_network.proxy_protocol_from";
        let proxy_protocol_from = self.networks(key, &raw.proxy_protocol_from);
        let limits = self.keep("closed_network.limits", over(limits, raw.limits))?;
        let limits = self.limits("closed_network.limits", &limits);
        Some(ClosedNetwork { listen: listen?, proxy_protocol_from, limits })
    }
}

/// `limits` with the keys of `own` in the place of theirs.
fn over(limits: &RawLimits, own: toml::Table) -> Result<RawLimits, String> {
    let mut all = toml::Table::try_from(limits).map_err(|error| error.to_string())?;
    all.extend(own);
    all.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}
