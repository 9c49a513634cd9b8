//! Another configuration under the running gateway: all of it, or nothing and every problem told.
//!
//! ```text
//!  POST /reload ─► file good? ─► only keys that can change? ─► policy good? ─► certificates good?
//!                                                  ─► taken: certificates, policy, hub, limits
//! ```
//!
//! What a running gateway cannot change (sockets, feeds, the audit log, who it is) is refused by
//! name: `sekisho gateway upgrade` starts a new process with it, and loses nothing either.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::policy::LivePolicy;
use crate::run::{Addresses, Parts};
use crate::tls::LiveTls;
use crate::upstream::Hub;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Keys whose values are others now. Files that they name are read anew in any case.
    pub changed: Vec<String>,
    /// The version of the policy that decides now.
    pub policy: String,
}

/// Whoever asks is told what changed, or all that kept it from being taken, a line each.
pub type Asked = oneshot::Sender<Result<Reloaded, Vec<String>>>;

/// Where reloads are asked for. One at a time; more wait.
pub fn queue() -> (mpsc::Sender<Asked>, mpsc::Receiver<Asked>) {
    mpsc::channel(WAITING_MAX)
}

const WAITING_MAX: usize = 4;

/// What a reload changes, but for the listeners.
#[derive(Clone)]
pub struct Reloader {
    file: PathBuf,
    written: toml::Table,
    addresses: Addresses,
    tls: Arc<LiveTls>,
    policy: Arc<LivePolicy>,
    metrics: Arc<Metrics>,
}

/// What was taken, and what the caller is to take.
pub struct Taken {
    /// The configuration, for its limits.
    pub config: Config,
    /// Its nodes of the hub.
    pub hub: Hub,
    /// What changed.
    pub reloaded: Reloaded,
}

impl Reloader {
    /// Of a gateway that serves with `config`, and listens on `addresses`.
    pub fn new(config: &Config, addresses: Addresses, parts: &Parts) -> Self {
        Self {
            file: config.file.clone(),
            written: config.written.clone(),
            addresses,
            tls: parts.tls.clone(),
            policy: parts.policy.clone(),
            metrics: parts.metrics.clone(),
        }
    }

    /// Reads the file again and takes certificates and policy; hub and limits are the caller's to
    /// take.
    ///
    /// # Errors
    /// A line for each problem; everything is then as before.
    pub async fn reload(&mut self) -> Result<Taken, Vec<String>> {
        let this = self.clone();
        let taken = tokio::task::spawn_blocking(move || this.take())
            .await
            .unwrap_or_else(|error| Err(vec![error.to_string()]))?;
        self.written.clone_from(&taken.config.written);
        Ok(taken)
    }

    fn take(&self) -> Result<Taken, Vec<String>> {
        let config = Config::load(&self.file).map_err(|problems| problems.0)?;
        let mut changed = changed_keys(&self.written, &config.written);
        changed.retain(|key| !self.is_where_it_listens(key, &config));
        let fixed = changed.iter().filter(|key| !is_reloadable(key));
        let fixed: Vec<&str> = fixed.map(String::as_str).collect();
        if !fixed.is_empty() {
            return Err(vec![refused(&fixed)]);
        }
        let policy = self.policy.prepare(&config.policy);
        let policy = policy.map_err(|problems| -> Vec<String> {
            problems.iter().map(|it| format!("key `policy.dir`: {it}")).collect()
        })?;
        let hub = Hub::new(&config.hub, &self.metrics);
        let hub = hub.map_err(|error| vec![format!("key `hub`: {error}")])?;
        // The last thing that can be refused.
        self.tls.reload(&config).map_err(|problem| vec![problem])?;
        let reloaded = Reloaded { changed, policy: policy.version().to_owned() };
        self.policy.take(policy);
        tracing::info!(changed = ?reloaded.changed, policy = reloaded.policy, "reloaded");
        Ok(Taken { config, hub, reloaded })
    }

    /// Port 0 in the file means any; whoever started the gateway may have written down which.
    fn is_where_it_listens(&self, key: &str, config: &Config) -> bool {
        let Addresses { public, admin, closed } = self.addresses;
        match key {
            "listen" => config.listen == public,
            "admin_listen" => config.admin_listen == admin,
            "closed_network.listen" => {
                closed.is_some() && config.closed_network.as_ref().map(|it| it.listen) == closed
            }
            _ => false,
        }
    }
}

fn refused(keys: &[&str]) -> String {
    format!(
        "a gateway that runs cannot take other values of `{}`: put them back, or have a new \
         process take them with `sekisho gateway upgrade` (addresses: `sekisho down`, then `up`)",
        keys.join("`, `")
    )
}

/// Keys, and tables with all their keys, that a running gateway can change.
const RELOADABLE: [&str; 13] = [
    "proxy_protocol_from",
    "server_certificate",
    "server_key",
    "sni_certificates",
    "trust_anchors",
    "outside_cas",
    "verified_chains_max",
    "policy",
    "policy_profile",
    "hub",
    "hub_socket",
    "limits",
    "closed_network.limits",
];

fn is_reloadable(key: &str) -> bool {
    let within = |table: &&str| key.strip_prefix(*table).is_some_and(|rest| rest.starts_with('.'));
    key == "closed_network.proxy_protocol_from"
        || RELOADABLE.iter().any(|table| key == *table || within(table))
}

/// The keys, dotted, whose values differ.
fn changed_keys(was: &toml::Table, is: &toml::Table) -> Vec<String> {
    let mut changed = Vec::new();
    collect(&mut changed, "", was, is);
    changed
}

fn collect(changed: &mut Vec<String>, above: &str, was: &toml::Table, is: &toml::Table) {
    let none = toml::Table::new();
    let only_before = was.keys().filter(|key| !is.contains_key(*key));
    for key in is.keys().chain(only_before) {
        let dotted = format!("{above}{key}");
        match (was.get(key), is.get(key)) {
            (was, is) if was == is => {}
            (Some(toml::Value::Table(was)), Some(toml::Value::Table(is))) => {
                collect(changed, &format!("{dotted}."), was, is);
            }
            (None, Some(toml::Value::Table(is))) => {
                collect(changed, &format!("{dotted}."), &none, is);
            }
            (Some(toml::Value::Table(was)), None) => {
                collect(changed, &format!("{dotted}."), was, &none);
            }
            (Some(_) | None, Some(_) | None) => changed.push(dotted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_are_named_and_told_apart() {
        let was: toml::Table = toml::from_str(
            "listen = '127.0.0.1:1'\nproxy_protocol_from = []\n[limits]\nconnections_max = 1\n\
             [feeds.ca]\nsocket = 'a'\n[[outside_cas]]\nname = 'a'",
        )
        .unwrap();
        let is: toml::Table = toml::from_str(
            "listen = '127.0.0.1:2'\nproxy_protocol_from = []\n[limits]\nconnections_max = 2\n\
             hello_timeout_ms = 3\n[feeds.ca]\nsocket = 'b'\n[[outside_cas]]\nname = 'b'\n\
             [closed_network]\nlisten = '10.0.0.1:1'\n[closed_network.limits]\nconnections_max = 1",
        )
        .unwrap();
        let changed = changed_keys(&was, &is);
        let (can, cannot): (Vec<&str>, Vec<&str>) =
            changed.iter().map(String::as_str).partition(|key| is_reloadable(key));
        let limits = "closed_network.limits.connections_max";
        assert_eq!(
            can,
            [limits, "limits.connections_max", "limits.hello_timeout_ms", "outside_cas"]
        );
        assert_eq!(cannot, ["closed_network.listen", "feeds.ca.socket", "listen"]);
        assert!(changed_keys(&is, &is).is_empty());
        assert!(!is_reloadable("limits_of_another_kind"));
    }
}
