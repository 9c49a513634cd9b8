//! `sekisho audit report`: what the logs say over some days, with the figures and how they were
//! counted.
//!
//! Days are those of Japan. Invariant: every figure can be found again with `audit search`.

use std::collections::{BTreeMap, BTreeSet};

use audit_log::{ALLOW, Actor, DENY, Entry, Event, Found, Query};
use serde_json::{Value, json};

use crate::clock;
use crate::layout::Part;
use crate::output;

use super::moment;
use super::search::in_order;
use super::selection::Selection;
use super::words;

/// Subcommands of `report`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Denied requests and refused connections by reason
    Denials(Days<7>),
    /// Offices that read far more persons than usual
    Readers(Days<30>),
    /// How many registrations by card check each member of staff made
    CardChecks(Days<30>),
    /// Permits without completion and intents without outcome, by name
    Unfinished(Days<30>),
}

/// How far a report looks back.
#[derive(Debug, clap::Args)]
pub(super) struct Days<const DEFAULT: u32> {
    /// Today and this many days before it (in Japan)
    #[arg(long, value_name = "N", default_value_t = DEFAULT)]
    days: u32,
}

/// Runs `report`; `false` when there is something to look at.
///
/// # Errors
/// When a log cannot be read.
pub(super) fn run(command: &Command, selection: &Selection, json: bool) -> anyhow::Result<bool> {
    match command {
        Command::Denials(days) => denials(&selection.of_part(Part::Gateway)?, days.days, json),
        Command::Readers(days) => readers(&selection.of_part(Part::Gateway)?, days.days, json),
        Command::CardChecks(days) => card_checks(&selection.of_part(Part::Hub)?, days.days, json),
        Command::Unfinished(days) => unfinished(selection, days.days, json),
    }
}

/// Everything since the beginning of the first day.
fn since(days: u32) -> Query {
    Query { from: Some(moment::days_ago(days, clock::now_s())), ..Query::default() }
}

/// How often a reason was given: recorded one by one, and counted in floods.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Counted {
    recorded: u64,
    in_floods: u64,
}

/// Reasons of denials and of refused connections.
#[derive(Debug, Default)]
struct Denials {
    denials: BTreeMap<String, Counted>,
    connections: BTreeMap<String, Counted>,
}

impl Denials {
    fn add(&mut self, event: &Event) {
        if let Event::Decision { decision, reasons, .. } = event
            && decision == DENY
        {
            for reason in reasons {
                self.denials.entry(reason.clone()).or_default().recorded += 1;
            }
        }
        if let Event::HandshakeFailed { reason, .. } = event {
            self.connections.entry(reason.clone()).or_default().recorded += 1;
        }
        if let Event::Aggregated { what, reasons, .. } = event {
            let of_denials = what == "denials";
            let table = if of_denials { &mut self.denials } else { &mut self.connections };
            for (reason, count) in reasons {
                table.entry(reason.clone()).or_default().in_floods += count;
            }
        }
    }
}

fn denials(selection: &Selection, days: u32, json: bool) -> anyhow::Result<bool> {
    let query = since(days);
    let mut counted = Denials::default();
    in_order(selection, &query, &mut |_, found| {
        counted.add(&found.entry.event);
        Ok(())
    })?;
    let table = |reasons: &BTreeMap<String, Counted>| {
        let mut rows: Vec<(&String, &Counted)> = reasons.iter().collect();
        rows.sort_by_key(|(_, counted)| std::cmp::Reverse(counted.recorded + counted.in_floods));
        rows.into_iter().map(|(code, n)| (code.clone(), n.clone())).collect::<Vec<_>>()
    };
    let (requests, connections) = (table(&counted.denials), table(&counted.connections));
    let list = |rows: &[(String, Counted)]| -> Vec<Value> {
        rows.iter()
            .map(|(reason, n)| {
                json!({"reason": reason, "count": n.recorded + n.in_floods,
                       "recorded": n.recorded, "in_floods": n.in_floods})
            })
            .collect()
    };
    let value = json!({"since": query.from, "denials": list(&requests),
                       "refused_connections": list(&connections)});
    output::data(json, &value, || {
        format!(
            "since {}\n\n{}\n\n{}\n\nA denial with several reasons counts under each of them.",
            query.from.as_deref().unwrap_or("-"),
            counts_table("DENIED REQUESTS", &requests),
            counts_table("REFUSED CONNECTIONS", &connections)
        )
    });
    Ok(true)
}

fn counts_table(title: &str, rows: &[(String, Counted)]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|(reason, n)| {
            let all = n.recorded + n.in_floods;
            vec![all.to_string(), n.recorded.to_string(), n.in_floods.to_string(), reason.clone()]
        })
        .collect();
    let table = output::table(&["COUNT", "RECORDED", "IN FLOODS", "REASON"], &rows);
    format!("{title}\n{table}")
}

/// An office's last day and the days before it.
#[derive(Debug, PartialEq, Eq)]
struct Reader {
    office: String,
    day: String,
    persons: u64,
    /// Median of the earlier days on which it read at all.
    usual: Option<u64>,
    days_before: usize,
    /// Why it stands out, if it does.
    why: Option<String>,
}

/// Distinct persons by office and day.
type PersonsRead = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn readers(selection: &Selection, days: u32, json: bool) -> anyhow::Result<bool> {
    let query = Query { decision: Some(ALLOW.to_owned()), ..since(days) };
    let mut read = PersonsRead::new();
    in_order(selection, &query, &mut |_, found| {
        add_reading(&mut read, &found);
        Ok(())
    })?;
    let readers = compared(&read);
    let value: Vec<Value> = readers
        .iter()
        .map(|reader| {
            json!({"office": reader.office, "day": reader.day, "persons": reader.persons,
                   "usual": reader.usual, "days_before": reader.days_before, "why": reader.why})
        })
        .collect();
    let flagged = readers.iter().filter(|reader| reader.why.is_some()).count();
    output::data(json, &json!({"since": query.from, "offices": value}), || {
        readers_text(&readers, flagged, query.from.as_deref().unwrap_or("-"))
    });
    Ok(flagged == 0)
}

fn add_reading(read: &mut PersonsRead, found: &Found) {
    if let Event::Decision { actor, object, decision, .. } = &found.entry.event
        && let (Some(office), Some(person)) = (&actor.office, &object.insured)
        && decision == ALLOW
    {
        let day = moment::day_in_japan(&found.entry.at);
        let of_office = read.entry(office.clone()).or_default();
        of_office.entry(day).or_default().insert(person.clone());
    }
}

/// Each office's last day against its own earlier days, or against the other offices.
fn compared(read: &PersonsRead) -> Vec<Reader> {
    let last_counts: BTreeMap<&String, u64> = read
        .iter()
        .filter_map(|(office, days)| Some((office, days.last_key_value()?.1.len() as u64)))
        .collect();
    let mut readers: Vec<Reader> = read
        .iter()
        .filter_map(|(office, days)| {
            let (day, persons) = days.last_key_value()?;
            let before: Vec<u64> =
                days.values().rev().skip(1).map(|persons| persons.len() as u64).collect();
            let others = last_counts.iter().filter(|(other, _)| **other != office);
            let others: Vec<u64> = others.map(|(_, count)| *count).collect();
            let persons = persons.len() as u64;
            Some(Reader {
                office: office.clone(),
                day: day.clone(),
                persons,
                usual: median(&before),
                days_before: before.len(),
                why: stands_out(persons, median(&before), median(&others)),
            })
        })
        .collect();
    readers.sort_by(|one, other| {
        (other.why.is_some(), other.persons).cmp(&(one.why.is_some(), one.persons))
    });
    readers
}

fn stands_out(persons: u64, own: Option<u64>, others: Option<u64>) -> Option<String> {
    if persons < PERSONS_MIN {
        return None;
    }
    let (usual, whose) = match (own, others) {
        (Some(own), _) => (own, "its own median of earlier days"),
        (None, Some(others)) => (others, "the median of the other offices (no earlier day)"),
        (None, None) => return None,
    };
    (persons > usual.saturating_mul(FACTOR))
        .then(|| format!("{persons} persons, more than {FACTOR} times {whose} ({usual})"))
}

fn median(counts: &[u64]) -> Option<u64> {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

fn readers_text(readers: &[Reader], flagged: usize, since: &str) -> String {
    let rows: Vec<Vec<String>> = readers
        .iter()
        .map(|reader| {
            vec![
                if reader.why.is_some() { "✗".to_owned() } else { "✓".to_owned() },
                reader.office.clone(),
                reader.day.clone(),
                reader.persons.to_string(),
                reader.usual.map_or("-".to_owned(), |usual| usual.to_string()),
                reader.days_before.to_string(),
                reader.why.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head = ["", "OFFICE", "LAST DAY", "PERSONS", "USUAL", "DAYS BEFORE", "WHY"];
    format!(
        "since {since}\n\n{}\n\n{flagged} of {} offices stand out. PERSONS: distinct persons about \
         whom a request was allowed on that day;\nUSUAL: the median of the office's earlier days. \
         Below {PERSONS_MIN} persons none stands out.",
        output::table(&head, &rows),
        readers.len()
    )
}

/// What one member of staff registered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Checks {
    registrations: u64,
    persons: BTreeSet<String>,
    last_at: String,
}

fn card_checks(selection: &Selection, days: u32, json: bool) -> anyhow::Result<bool> {
    let query = Query { action: Some(REGISTERS.to_owned()), ..since(days) };
    let mut by_staff: BTreeMap<(String, String), Checks> = BTreeMap::new();
    in_order(selection, &query, &mut |_, found| {
        if let Event::Effect { actor, object, .. } = &found.entry.event {
            let checks = by_staff.entry(who(actor)).or_default();
            checks.registrations += 1;
            checks.persons.extend(object.insured.clone());
            checks.last_at.clone_from(&found.entry.at);
        }
        Ok(())
    })?;
    let value: Vec<Value> = by_staff
        .iter()
        .map(|((principal, staff), checks)| {
            json!({"principal": principal, "staff": staff, "registrations": checks.registrations,
                   "persons": checks.persons.len(), "last_at": checks.last_at})
        })
        .collect();
    output::data(json, &json!({"since": query.from, "staff": value}), || {
        let rows: Vec<Vec<String>> = by_staff
            .iter()
            .map(|((principal, staff), checks)| {
                let (count, persons) = (checks.registrations, checks.persons.len());
                let cells = [principal.clone(), staff.clone(), count.to_string()];
                cells.into_iter().chain([persons.to_string(), checks.last_at.clone()]).collect()
            })
            .collect();
        format!(
            "since {}\n\n{}\n\nCounted: what the hub recorded as done under `{REGISTERS}`, by \
             which an office becomes\n担当事業所 of a person after the card check.",
            query.from.as_deref().unwrap_or("-"),
            output::table(&["WHO", "STAFF", "REGISTRATIONS", "PERSONS", "LAST"], &rows)
        )
    });
    Ok(true)
}

/// The party (without its terminal) and the member of staff.
fn who(actor: &Actor) -> (String, String) {
    let party = actor.office.as_ref().map(|office| format!("office/{office}"));
    let principal = party.unwrap_or_else(|| actor.principal.clone());
    (principal, actor.staff.clone().unwrap_or("-".to_owned()))
}

fn unfinished(selection: &Selection, days: u32, json: bool) -> anyhow::Result<bool> {
    let query = since(days);
    let mut open = Open::default();
    in_order(selection, &query, &mut |part, found| {
        open.add(part, found);
        Ok(())
    })?;
    let more = open.more;
    let open = open.oldest_first();
    let value: Vec<Value> = open
        .iter()
        .map(|(part, entry)| {
            json!({"part": part, "number": entry.number, "at": entry.at, "event": entry.event})
        })
        .collect();
    let value = json!({"since": query.from, "unfinished": value, "more": more});
    output::data(json, &value, || {
        let mut lines = vec![format!("since {}", query.from.as_deref().unwrap_or("-"))];
        lines.extend(open.iter().map(|(part, entry)| words::line(part, entry, None)));
        lines.extend((more > 0).then(|| format!("… and {more} more")));
        lines.push(format!("{} permits or intents without an end", open.len() as u64 + more));
        if selection.is_running && !open.is_empty() {
            lines.push("(the box is running: what began a moment ago may still be open)".into());
        }
        lines.join("\n")
    });
    Ok(true)
}

/// What has begun and not ended so far. A search joins what lies near together; what ended long
/// after it began is joined here.
#[derive(Default)]
struct Open {
    begun: BTreeMap<(&'static str, String), Entry>,
    more: u64,
}

impl Open {
    fn add(&mut self, part: &'static str, found: Found) {
        if let Event::Completion { request_id, .. }
        | Event::Outcome { request_id: Some(request_id), .. } = &found.entry.event
        {
            self.begun.remove(&(part, request_id.clone()));
        }
        let id = words::expects_end(&found.entry.event).map(str::to_owned);
        match id {
            Some(_) if found.completion.is_some() => {}
            Some(id) if self.begun.len() < UNFINISHED_MAX => {
                self.begun.insert((part, id), found.entry);
            }
            Some(_) => self.more += 1,
            None => {}
        }
    }

    fn oldest_first(self) -> Vec<(&'static str, Entry)> {
        let mut open: Vec<_> =
            self.begun.into_iter().map(|((part, _), entry)| (part, entry)).collect();
        open.sort_by(|(_, one), (_, other)| one.at.cmp(&other.at));
        open
    }
}

/// The hub's action by which an office becomes 担当事業所 of a person.
const REGISTERS: &str = "registrations.record";

/// An office stands out with more than this many times the usual …
const FACTOR: u64 = 3;

/// … and at least this many persons.
const PERSONS_MIN: u64 = 20;

/// At most this many are remembered as open.
const UNFINISHED_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offices: &[(&str, &[usize])]) -> PersonsRead {
        fn days(counts: &[usize]) -> impl Iterator<Item = (String, BTreeSet<String>)> {
            counts.iter().enumerate().map(|(day, count)| {
                let persons = (0..*count).map(|person| format!("{person:032}")).collect();
                (format!("2026-04-{:02}", day + 1), persons)
            })
        }
        offices.iter().map(|(office, n)| ((*office).to_owned(), days(n).collect())).collect()
    }

    fn flagged(offices: &[(&str, &[usize])]) -> Vec<String> {
        let readers = compared(&read(offices));
        readers.into_iter().filter(|r| r.why.is_some()).map(|reader| reader.office).collect()
    }

    #[test]
    fn an_office_stands_out_against_its_own_earlier_days() {
        assert_eq!(flagged(&[("1", &[5, 6, 7, 40]), ("2", &[30, 31, 32])]), ["1"]);
        assert!(flagged(&[("1", &[5, 6, 7, 18])]).is_empty(), "3 times, but few");
        assert!(flagged(&[("1", &[10, 10, 30])]).is_empty(), "3 times exactly");
        assert_eq!(flagged(&[("1", &[10, 10, 31])]), ["1"]);
    }

    #[test]
    fn an_office_without_history_is_measured_by_the_others() {
        assert_eq!(flagged(&[("1", &[100]), ("2", &[9]), ("3", &[10])]), ["1"]);
        assert!(flagged(&[("1", &[100]), ("2", &[90]), ("3", &[80])]).is_empty());
        assert!(flagged(&[("1", &[100])]).is_empty(), "nothing to measure by");
    }

    #[test]
    fn floods_are_counted_with_what_was_recorded_one_by_one() {
        let mut denials = Denials::default();
        let flood = |what: &str| Event::Aggregated {
            what: what.into(),
            party: "others".into(),
            from: String::new(),
            until: String::new(),
            count: 40,
            reasons: BTreeMap::from([("x".to_owned(), 30), ("y".to_owned(), 20)]),
            insured: BTreeMap::new(),
            insured_not_named: 0,
        };
        denials.add(&flood("denials"));
        denials.add(&flood("handshake_failures"));
        denials.add(&Event::HandshakeFailed {
            reason: "x".into(),
            detail: String::new(),
            client_addr: String::new(),
            actor: None,
        });
        assert_eq!(denials.denials["x"], Counted { recorded: 0, in_floods: 30 });
        assert_eq!(denials.connections["x"], Counted { recorded: 1, in_floods: 30 });
    }

    #[test]
    fn what_ended_long_after_it_began_is_not_open() {
        let found = |number, event| {
            let at = format!("2026-04-01T09:00:00.{number:03}Z");
            let entry = Entry { number, at, event, hash: String::new() };
            Found { entry, completion: None }
        };
        let begins = |id: Option<&str>| Event::Intent {
            request_id: id.map(str::to_owned),
            actor: Actor::of("system/life"),
            action: "x".into(),
            object: audit_log::Object::default(),
            detail: String::new(),
        };
        let ends = |id: &str| Event::Completion {
            request_id: id.to_owned(),
            status: 200,
            bytes_sent: 1,
            duration_us: 1,
            outcome: "complete".into(),
        };
        let mut open = Open::default();
        open.add("hub", found(1, begins(Some("a"))));
        open.add("hub", found(2, begins(Some("b"))));
        open.add("hub", found(3, begins(None)));
        open.add(
            "hub",
            Found { completion: Some(found(9, ends("c")).entry), ..found(4, begins(Some("c"))) },
        );
        open.add("gateway", found(5, ends("b")));
        open.add("hub", found(6, ends("a")));
        let left: Vec<u64> = open.oldest_first().iter().map(|(_, entry)| entry.number).collect();
        assert_eq!(left, [2]);
    }
}
