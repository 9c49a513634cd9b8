//! `sekisho top`: who uses the gateway right now, what is refused and why, which handshakes fail.
//!
//! The gateway says sums; two looks give rates. On a terminal the table is drawn anew each second
//! until Ctrl-C; `--once` (and any pipe) prints one.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::cli::Context;
use crate::clock;
use crate::output;

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one table and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "S", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval_s: u64,
    /// Parties shown, those with the most requests first
    #[arg(long, value_name = "N", default_value_t = 20)]
    parties: usize,
}

/// Sums since the gateway's start.
#[derive(Debug, Deserialize)]
struct Sums {
    pid: u32,
    at_ms: u64,
    connections_open: i64,
    parties: Vec<PartySums>,
    more_parties: usize,
    denials: BTreeMap<String, u64>,
    handshakes: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct PartySums {
    party: String,
    name: Option<String>,
    connections: u64,
    requests: u64,
    denied: u64,
}

/// What happened between two looks.
#[derive(Debug)]
struct Rates {
    seconds: f64,
    connections_open: i64,
    parties: Vec<PartyRates>,
    more_parties: usize,
    denials: Vec<(String, f64)>,
    handshakes: Vec<(String, f64)>,
}

#[derive(Debug)]
struct PartyRates {
    party: String,
    name: String,
    connections: u64,
    requests_per_second: f64,
    denied_per_second: f64,
}

/// Runs `top`.
///
/// # Errors
/// When the gateway does not run.
pub(crate) async fn run(args: &Args, context: &Context) -> anyhow::Result<bool> {
    let gateway = Admin::gateway(&context.layout);
    let live = std::io::stdout().is_terminal() && !args.once && !context.json;
    let mut before = look(&gateway).await?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(args.interval_s)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(true),
        }
        let now = look(&gateway).await?;
        let rates = Rates::between(&before, &now);
        let text = || rates.to_text(args.parties);
        if !live {
            output::data(context.json, &rates.to_json(args.parties), text);
            return Ok(true);
        }
        redraw(&text());
        before = now;
    }
}

async fn look(gateway: &Admin) -> anyhow::Result<Sums> {
    Ok(serde_json::from_value(gateway.get("/top").await?)?)
}

/// Clears the terminal and writes `text`.
fn redraw(text: &str) {
    let _closed = writeln!(std::io::stdout().lock(), "\x1b[2J\x1b[H{text}");
}

impl Rates {
    /// Sums of another process are rates from its start.
    fn between(before: &Sums, now: &Sums) -> Self {
        let same = before.pid == now.pid;
        let seconds = (now.at_ms.saturating_sub(before.at_ms) as f64 / 1000.0).max(0.001);
        let rate = |before: Option<u64>, now: u64| {
            let before = before.filter(|_| same).unwrap_or(0);
            now.saturating_sub(before) as f64 / seconds
        };
        let rates = |before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>| {
            let each =
                now.iter().map(|(key, now)| (key.clone(), rate(before.get(key).copied(), *now)));
            let mut each: Vec<(String, f64)> = each.filter(|(_, rate)| *rate > 0.0).collect();
            each.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            each
        };
        let known: BTreeMap<&str, &PartySums> =
            before.parties.iter().map(|party| (party.party.as_str(), party)).collect();
        let mut parties: Vec<PartyRates> = now
            .parties
            .iter()
            .map(|party| {
                // One that was not there at the first look has done all of it since.
                let before = known.get(party.party.as_str());
                PartyRates {
                    party: party.party.clone(),
                    name: party.name.clone().unwrap_or_default(),
                    connections: party.connections,
                    requests_per_second: rate(before.map(|it| it.requests), party.requests),
                    denied_per_second: rate(before.map(|it| it.denied), party.denied),
                }
            })
            .collect();
        parties.sort_by(|a, b| b.requests_per_second.total_cmp(&a.requests_per_second));
        Self {
            seconds,
            connections_open: now.connections_open,
            parties,
            more_parties: now.more_parties,
            denials: rates(&before.denials, &now.denials),
            handshakes: rates(&before.handshakes, &now.handshakes),
        }
    }

    fn total(&self, of: impl Fn(&PartyRates) -> f64) -> f64 {
        self.parties.iter().map(of).sum()
    }

    fn to_text(&self, shown: usize) -> String {
        let summary = format!(
            "{}   connections {}   requests {:.1}/s   refused {:.1}/s",
            clock::now_text(),
            self.connections_open,
            self.total(|party| party.requests_per_second),
            self.total(|party| party.denied_per_second),
        );
        let rows: Vec<Vec<String>> = self
            .parties
            .iter()
            .take(shown)
            .map(|party| {
                vec![
                    party.party.clone(),
                    party.name.clone(),
                    party.connections.to_string(),
                    format!("{:.1}", party.requests_per_second),
                    format!("{:.1}", party.denied_per_second),
                ]
            })
            .collect();
        let head = ["PARTY", "NAME", "CONNECTIONS", "REQUESTS/S", "REFUSED/S"];
        let mut text = format!("{summary}\n\n{}", output::table(&head, &rows));
        let more = self.parties.len().saturating_sub(shown) + self.more_parties;
        if more > 0 {
            text.push_str(&format!("\nand {more} more"));
        }
        for (title, rates) in [("REFUSED FOR", &self.denials), ("HANDSHAKES", &self.handshakes)] {
            let rows: Vec<Vec<String>> =
                rates.iter().map(|(key, rate)| vec![key.clone(), format!("{rate:.1}")]).collect();
            text.push_str(&format!("\n\n{}", output::table(&[title, "PER SECOND"], &rows)));
        }
        text
    }

    fn to_json(&self, shown: usize) -> Value {
        let parties = self.parties.iter().take(shown).map(|party| {
            json!({
                "party": party.party,
                "name": party.name,
                "connections": party.connections,
                "requests_per_second": party.requests_per_second,
                "denied_per_second": party.denied_per_second,
            })
        });
        let map =
            |rates: &[(String, f64)]| -> BTreeMap<String, f64> { rates.iter().cloned().collect() };
        json!({
            "seconds": self.seconds,
            "connections_open": self.connections_open,
            "parties": parties.collect::<Vec<_>>(),
            "denials_per_second": map(&self.denials),
            "handshakes_per_second": map(&self.handshakes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(pid: u32, at_ms: u64, requests: u64, denied: u64) -> Sums {
        let told = json!({
            "pid": pid, "at_ms": at_ms, "connections_open": 2, "more_parties": 0,
            "parties": [{
                "party": "office/1370000001", "name": "さくら", "connections": 2,
                "requests": requests, "denied": denied,
            }],
            "denials": { "not_registered": denied }, "handshakes": { "full": 1 },
        });
        serde_json::from_value(told).unwrap()
    }

    #[test]
    fn rates_are_what_happened_between_two_looks() {
        let rates = Rates::between(&sums(7, 1_000, 100, 10), &sums(7, 3_000, 140, 14));
        let party = &rates.parties[0];
        assert_eq!((party.requests_per_second, party.denied_per_second), (20.0, 2.0));
        assert_eq!(rates.denials, [("not_registered".to_owned(), 2.0)]);
        assert_eq!(rates.handshakes, []);
        let text = rates.to_text(20);
        assert!(text.contains("requests 20.0/s   refused 2.0/s"), "{text}");
        assert!(text.contains("office/1370000001  さくら"), "{text}");
    }

    #[test]
    fn a_new_process_counts_from_its_start() {
        let rates = Rates::between(&sums(7, 1_000, 100, 10), &sums(8, 2_000, 5, 0));
        assert_eq!(rates.parties[0].requests_per_second, 5.0);
    }
}
