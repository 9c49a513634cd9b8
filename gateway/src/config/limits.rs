//! `[limits]`: what anybody may take. Every limit has its unit in its name.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Checker;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    connections_max: usize,
    connections_per_address_max: usize,
    hello_timeout_ms: u64,
    handshakes_in_flight_max: usize,
    handshakes_in_flight_per_address_max: usize,
    handshakes_per_second_max: u32,
    handshakes_per_second_per_address_max: u32,
    handshake_timeout_ms: u64,
    requests_in_flight_max: usize,
    requests_in_flight_per_party_max: usize,
    requests_per_second_per_party_max: u32,
    request_headers_max: usize,
    request_header_bytes_max: usize,
    request_target_bytes_max: usize,
    request_body_bytes_max: u64,
    request_head_timeout_ms: u64,
    request_read_timeout_ms: u64,
    request_body_timeout_ms: u64,
    response_write_timeout_ms: u64,
    h2_streams_max: u32,
    h1_idle_timeout_s: u64,
    h2_idle_timeout_ms: u64,
    h2_pending_resets_max: usize,
    drain_timeout_ms: u64,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: 4_000,
            hello_timeout_ms: 2_000,
            handshakes_in_flight_max: 512,
            handshakes_in_flight_per_address_max: 128,
            handshakes_per_second_max: 5_000,
            handshakes_per_second_per_address_max: 1_000,
            handshake_timeout_ms: 5_000,
            requests_in_flight_max: 800,
            requests_in_flight_per_party_max: 64,
            requests_per_second_per_party_max: 200,
            request_headers_max: 56,
            request_header_bytes_max: 32 * 1024,
            request_target_bytes_max: 2_048,
            request_body_bytes_max: 4 * 1024 * 1024,
            request_head_timeout_ms: 10_000,
            request_read_timeout_ms: 15_000,
            request_body_timeout_ms: 20_000,
            response_write_timeout_ms: 20_000,
            h2_streams_max: 64,
            h1_idle_timeout_s: 60,
            h2_idle_timeout_ms: 60_000,
            h2_pending_resets_max: 20,
            drain_timeout_ms: 8_000,
        }
    }
}

/// More than a system has descriptors.
const CONNECTIONS_MAX: usize = 10_000_000;

/// The limits in force. Every one of them is a hard bound.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open downstream connections, in all.
    pub connections_max: usize,
    /// Open downstream connections from one address.
    pub connections_per_address_max: usize,
    /// From accept to the first byte of the client's hello; a silent client takes no handshake
    /// slot.
    pub hello_timeout: Duration,
    /// TLS handshakes going on at once.
    pub handshakes_in_flight_max: usize,
    /// TLS handshakes going on at once from one address.
    pub handshakes_in_flight_per_address_max: usize,
    /// TLS handshakes begun in a second.
    pub handshakes_per_second_max: NonZeroU32,
    /// TLS handshakes begun in a second from one address.
    pub handshakes_per_second_per_address_max: NonZeroU32,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Requests passed to the hub at once; fewer than the hub takes.
    pub requests_in_flight_max: usize,
    /// Requests of one party (an office, a municipality, a system) passed to the hub at once.
    pub requests_in_flight_per_party_max: usize,
    /// Requests of one party in a second.
    pub requests_per_second_per_party_max: NonZeroU32,
    /// Header lines of one request; fewer than the hub takes.
    pub request_headers_max: usize,
    /// All header names and values of one request, in bytes.
    pub request_header_bytes_max: usize,
    /// Path and query of one request, in bytes.
    pub request_target_bytes_max: usize,
    /// The body of one request, in bytes.
    pub request_body_bytes_max: u64,
    /// From the first byte of a request's head to its end.
    pub request_head_timeout: Duration,
    /// For each read of a request.
    pub request_read_timeout: Duration,
    /// From a request's head to the last byte of its body, however it comes.
    pub request_body_timeout: Duration,
    /// For each write of a response that the client does not take.
    pub response_write_timeout: Duration,
    /// Concurrent streams of one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// An HTTP/1.1 connection without a request is closed after this time, in whole seconds.
    pub h1_idle_timeout: Duration,
    /// An HTTP/2 connection without streams is closed after this time.
    pub h2_idle_timeout: Duration,
    /// Streams of one HTTP/2 connection that the client took back before they were looked at; one
    /// more ends it.
    pub h2_pending_resets_max: usize,
    /// How long a drain waits for requests in flight.
    pub drain_timeout: Duration,
}

impl Checker {
    pub(super) fn limits(&mut self, table: &str, raw: &RawLimits) -> Limits {
        for (key, value) in positive(raw) {
            if value == 0 {
                self.problem(&key.replacen("limits", table, 1), "must be greater than 0");
            }
        }
        if raw.connections_max > CONNECTIONS_MAX {
            let what = format!("must be at most {CONNECTIONS_MAX}");
            self.problem(&format!("{table}.connections_max"), &what);
        }
        let at_least_one = |value| NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN);
        Limits {
            handshakes_per_second_max: at_least_one(raw.handshakes_per_second_max),
            handshakes_per_second_per_address_max: at_least_one(
                raw.handshakes_per_second_per_address_max,
            ),
            requests_per_second_per_party_max: at_least_one(raw.requests_per_second_per_party_max),
            connections_max: raw.connections_max,
            connections_per_address_max: raw.connections_per_address_max,
            hello_timeout: Duration::from_millis(raw.hello_timeout_ms),
            handshakes_in_flight_per_address_max: raw.handshakes_in_flight_per_address_max,
            requests_in_flight_max: raw.requests_in_flight_max,
            requests_in_flight_per_party_max: raw.requests_in_flight_per_party_max,
            request_headers_max: raw.request_headers_max,
            handshakes_in_flight_max: raw.handshakes_in_flight_max,
            handshake_timeout: Duration::from_millis(raw.handshake_timeout_ms),
            request_header_bytes_max: raw.request_header_bytes_max,
            request_target_bytes_max: raw.request_target_bytes_max,
            request_body_bytes_max: raw.request_body_bytes_max,
            request_head_timeout: Duration::from_millis(raw.request_head_timeout_ms),
            request_read_timeout: Duration::from_millis(raw.request_read_timeout_ms),
            request_body_timeout: Duration::from_millis(raw.request_body_timeout_ms),
            response_write_timeout: Duration::from_millis(raw.response_write_timeout_ms),
            h2_streams_max: raw.h2_streams_max,
            h1_idle_timeout: Duration::from_secs(raw.h1_idle_timeout_s),
            h2_pending_resets_max: raw.h2_pending_resets_max,
            h2_idle_timeout: Duration::from_millis(raw.h2_idle_timeout_ms),
            drain_timeout: Duration::from_millis(raw.drain_timeout_ms),
        }
    }
}

/// What must not be 0.
fn positive(raw: &RawLimits) -> Vec<(&'static str, u64)> {
    vec![
        ("limits.connections_max", raw.connections_max as u64),
        ("limits.connections_per_address_max", raw.connections_per_address_max as u64),
        ("limits.hello_timeout_ms", raw.hello_timeout_ms),
        ("limits.handshakes_in_flight_max", raw.handshakes_in_flight_max as u64),
        (
            "limits.handshakes_in_flight_per_address_max",
            raw.handshakes_in_flight_per_address_max as u64,
        ),
        ("limits.handshakes_per_second_max", u64::from(raw.handshakes_per_second_max)),
        (
            "limits.handshakes_per_second_per_address_max",
            u64::from(raw.handshakes_per_second_per_address_max),
        ),
        (
            "limits.requests_per_second_per_party_max",
            u64::from(raw.requests_per_second_per_party_max),
        ),
        ("limits.requests_in_flight_max", raw.requests_in_flight_max as u64),
        ("limits.requests_in_flight_per_party_max", raw.requests_in_flight_per_party_max as u64),
        ("limits.request_headers_max", raw.request_headers_max as u64),
        ("limits.handshake_timeout_ms", raw.handshake_timeout_ms),
        ("limits.request_header_bytes_max", raw.request_header_bytes_max as u64),
        ("limits.request_target_bytes_max", raw.request_target_bytes_max as u64),
        ("limits.request_body_bytes_max", raw.request_body_bytes_max),
        ("limits.request_head_timeout_ms", raw.request_head_timeout_ms),
        ("limits.request_read_timeout_ms", raw.request_read_timeout_ms),
        ("limits.request_body_timeout_ms", raw.request_body_timeout_ms),
        ("limits.response_write_timeout_ms", raw.response_write_timeout_ms),
        ("limits.h2_streams_max", u64::from(raw.h2_streams_max)),
        ("limits.h1_idle_timeout_s", raw.h1_idle_timeout_s),
        ("limits.h2_idle_timeout_ms", raw.h2_idle_timeout_ms),
        ("limits.h2_pending_resets_max", raw.h2_pending_resets_max as u64),
        ("limits.drain_timeout_ms", raw.drain_timeout_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file that operators begin with tells every limit with its default, as a comment.
    #[test]
    fn the_shipped_file_tells_every_limit_with_its_default() {
        let shipped = include_str!("../../../appliance/config/gateway.toml");
        let told = shipped.split("#   [limits]\n").nth(1).unwrap();
        let told = told.lines().map_while(|line| line.strip_prefix("#   "));
        let told: String = told.flat_map(|line| [line, "\n"]).collect();
        let told: toml::Table = toml::from_str(&told).unwrap();
        assert_eq!(told, toml::Table::try_from(RawLimits::default()).unwrap());
    }
}
