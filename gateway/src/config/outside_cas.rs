//! `[[outside_cas]]`: CAs that are not ours, and where their revocation lists are.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use super::Checker;
use crate::crl::Place;
use crate::outside_ca::{IdentityRule, Settings, WhenStale};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOutsideCa {
    name: String,
    anchors: PathBuf,
    identity: RawIdentity,
    crl: RawCrl,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawIdentity {
    KokuhoSubject,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCrl {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default = "default_refresh_ms")]
    refresh_ms: u64,
    #[serde(default = "default_fetch_timeout_ms")]
    fetch_timeout_ms: u64,
    #[serde(default = "default_max_age_ms")]
    max_age_ms: u64,
    #[serde(default = "default_bytes_max")]
    bytes_max: usize,
    #[serde(default)]
    when_stale: RawWhenStale,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawWhenStale {
    #[default]
    Deny,
    Warn,
}

const fn default_refresh_ms() -> u64 {
    5 * 60 * 1000
}

const fn default_fetch_timeout_ms() -> u64 {
    30_000
}

const fn default_max_age_ms() -> u64 {
    24 * 60 * 60 * 1000
}

/// Some two million entries.
const fn default_bytes_max() -> usize {
    100 * 1024 * 1024
}

impl Checker {
    pub(super) fn outside_cas(&mut self, raw: &[RawOutsideCa]) -> Vec<Settings> {
        raw.iter().filter_map(|raw| self.outside_ca(raw)).collect()
    }

    fn outside_ca(&mut self, raw: &RawOutsideCa) -> Option<Settings> {
        let (crl, place) = (&raw.crl, self.place(&raw.crl));
        for (key, value) in [
            ("outside_cas.crl.refresh_ms", crl.refresh_ms),
            ("outside_cas.crl.fetch_timeout_ms", crl.fetch_timeout_ms),
            ("outside_cas.crl.max_age_ms", crl.max_age_ms),
            ("outside_cas.crl.bytes_max", crl.bytes_max as u64),
        ] {
            if value == 0 {
                self.problem(key, "must be greater than 0");
            }
        }
        Some(Settings {
            name: raw.name.clone(),
            anchors: raw.anchors.clone(),
            identity: match raw.identity {
                RawIdentity::KokuhoSubject => IdentityRule::KokuhoSubject,
            },
            place: place?,
            refresh: Duration::from_millis(crl.refresh_ms),
            fetch_timeout: Duration::from_millis(crl.fetch_timeout_ms),
            max_age: Duration::from_millis(crl.max_age_ms),
            bytes_max: crl.bytes_max,
            when_stale: match crl.when_stale {
                RawWhenStale::Deny => WhenStale::Deny,
                RawWhenStale::Warn => WhenStale::Warn,
            },
        })
    }

    fn place(&mut self, crl: &RawCrl) -> Option<Place> {
        let url = match (&crl.file, &crl.url) {
            (Some(file), None) => return Some(Place::File(file.clone())),
            (None, Some(url)) => url,
            (None, None) | (Some(_), Some(_)) => {
                self.problem("outside_cas.crl", "must name one `file` or one `url`");
                return None;
            }
        };
        let uri = url.parse::<Uri>().ok();
        let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.authority().is_some());
        let uri = uri.ok_or_else(|| {
            format!("`{url}` is not a URL of plain HTTP, such as `http://crl.example/ca.crl`")
        });
        self.keep("outside_cas.crl.url", uri).map(Place::Http)
    }
}
