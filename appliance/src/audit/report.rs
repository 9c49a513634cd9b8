//! `sekisho audit report`: what the logs say over some days, with the figures and how they were
//! counted.
//!
//! Days are those of Japan. Invariant: every figure can be found again with `audit search`.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash as _, Hasher as _};

use anyhow::Context as _;
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
    /// How many registrations each operator or member of staff recorded (card checks themselves are
    /// not recorded yet)
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

/// How often a reason was given: recorded one by one, counted in floods, and for requests that were
/// permitted and refused after all.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Counted {
    recorded: u64,
    in_floods: u64,
    after_permit: u64,
}

impl Counted {
    const fn all(&self) -> u64 {
        self.recorded + self.in_floods + self.after_permit
    }
}

/// Reasons of denials and of refused connections.
#[derive(Debug, Default)]
struct Denials {
    denials: BTreeMap<String, Counted>,
    connections: BTreeMap<String, Counted>,
}

impl Denials {
    fn add_found(&mut self, found: &Found) {
        self.add(&found.entry.event);
        if let Some(end) = &found.completion {
            self.add(&end.event);
        }
    }

    fn add(&mut self, event: &Event) {
        if let Event::Completion { reasons, .. } = event {
            for reason in reasons {
                self.denials.entry(reason.clone()).or_default().after_permit += 1;
            }
        }
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
        counted.add_found(&found);
        Ok(())
    })?;
    let table = |reasons: &BTreeMap<String, Counted>| {
        let mut rows: Vec<(&String, &Counted)> = reasons.iter().collect();
        rows.sort_by_key(|(_, counted)| std::cmp::Reverse(counted.all()));
        rows.into_iter().map(|(code, n)| (code.clone(), n.clone())).collect::<Vec<_>>()
    };
    let (requests, connections) = (table(&counted.denials), table(&counted.connections));
    let list = |rows: &[(String, Counted)]| -> Vec<Value> {
        rows.iter()
            .map(|(reason, n)| {
                json!({"reason": reason, "count": n.all(), "recorded": n.recorded,
                       "in_floods": n.in_floods, "after_permit": n.after_permit})
            })
            .collect()
    };
    let value = json!({"since": query.from, "denials": list(&requests),
                       "refused_connections": list(&connections)});
    output::data(json, &value, || {
        format!(
            "since {}\n\n{}\n\n{}\n\nA denial with several reasons counts under each of them. \
             AFTER PERMIT: requests that were\npermitted and refused before their answer left.",
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
            let counts = [n.all(), n.recorded, n.in_floods, n.after_permit];
            counts.iter().map(u64::to_string).chain([reason.clone()]).collect()
        })
        .collect();
    let table = output::table(&["COUNT", "RECORDED", "IN FLOODS", "AFTER PERMIT", "REASON"], &rows);
    format!("{title}\n{table}")
}

/// One office and one of its days: the one that stands out, or its last.
#[derive(Debug, PartialEq, Eq)]
struct Reader {
    office: String,
    day: String,
    /// Whether that day is not over yet.
    is_partial: bool,
    persons: u64,
    /// Median of the office's other days on which it read at all.
    usual: Option<u64>,
    other_days: usize,
    /// Why it stands out, if it does.
    why: Option<String>,
}

/// Distinct persons by office and day. Records come in order: only the day that is being read is
/// held person by person.
#[derive(Debug, Default)]
struct Reading {
    day: String,
    persons: BTreeMap<String, BTreeSet<u128>>,
    counts: Counts,
}

/// By office and day, how many distinct persons.
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

impl Reading {
    /// Adds what was permitted and not refused after all.
    fn add_found(&mut self, found: &Found) -> anyhow::Result<()> {
        let refused = found.completion.as_ref().is_some_and(
            |end| matches!(&end.event, Event::Completion { reasons, .. } if !reasons.is_empty()),
        );
        if let Event::Decision { actor, object, decision, .. } = &found.entry.event
            && let (Some(office), Some(person)) = (&actor.office, &object.insured)
            && decision == ALLOW
            && !refused
        {
            let person = u128::from_str_radix(person, 16).with_context(|| {
                format!("record {}: the person is no pseudonym", found.entry.number)
            })?;
            self.add(moment::day_in_japan(&found.entry.at), office, person);
        }
        Ok(())
    }

    fn add(&mut self, day: String, office: &str, person: u128) {
        if day != self.day {
            self.end_day();
            self.day = day;
        }
        self.persons.entry(office.to_owned()).or_default().insert(person);
    }

    fn end_day(&mut self) {
        for (office, persons) in std::mem::take(&mut self.persons) {
            let days = self.counts.entry(office).or_default();
            *days.entry(self.day.clone()).or_default() += persons.len() as u64;
        }
    }

    fn end(mut self) -> Counts {
        self.end_day();
        self.counts
    }
}

fn readers(selection: &Selection, days: u32, json: bool) -> anyhow::Result<bool> {
    let query = Query { decision: Some(ALLOW.to_owned()), ..since(days) };
    let mut read = Reading::default();
    in_order(selection, &query, &mut |_, found| read.add_found(&found))?;
    let today = moment::day_in_japan(&moment::days_ago(0, clock::now_s()));
    let readers = compared(&read.end(), &today);
    let value: Vec<Value> = readers
        .iter()
        .map(|reader| {
            json!({"office": reader.office, "day": reader.day, "partial": reader.is_partial,
                   "persons": reader.persons, "usual": reader.usual,
                   "other_days": reader.other_days, "why": reader.why})
        })
        .collect();
    let flagged = readers.iter().filter(|reader| reader.why.is_some()).count();
    output::data(json, &json!({"since": query.from, "today": today, "offices": value}), || {
        readers_text(&readers, flagged, query.from.as_deref().unwrap_or("-"))
    });
    Ok(flagged == 0)
}

/// Every day of each office against its own other days, or against the other offices. Of an office
/// without a day that stands out, its last day. A day that is not over is judged, and judges no
/// other.
fn compared(counts: &Counts, today: &str) -> Vec<Reader> {
    let whole = |days: &BTreeMap<String, u64>, but: &str| -> Vec<u64> {
        let others = days.iter().filter(|(day, _)| *day != but && *day != today);
        others.map(|(_, count)| *count).collect()
    };
    let usual: BTreeMap<&String, u64> = counts
        .iter()
        .map(|(office, days)| {
            let last = days.last_key_value().map_or(0, |(_, count)| *count);
            (office, median(&whole(days, "")).unwrap_or(last))
        })
        .collect();
    let mut readers = Vec::new();
    for (office, days) in counts {
        let others: Vec<u64> =
            usual.iter().filter(|(other, _)| **other != office).map(|(_, count)| *count).collect();
        let mut judged: Vec<Reader> = days
            .iter()
            .map(|(day, persons)| {
                let own = whole(days, day);
                Reader {
                    office: office.clone(),
                    day: day.clone(),
                    is_partial: day == today,
                    persons: *persons,
                    usual: median(&own),
                    other_days: own.len(),
                    why: stands_out(*persons, median(&own), median(&others)),
                }
            })
            .collect();
        let last = judged.pop();
        judged.retain(|reader| reader.why.is_some());
        readers.extend(last.filter(|last| last.why.is_some() || judged.is_empty()));
        readers.extend(judged);
    }
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
        (Some(own), _) => (own, "its own median of other days"),
        (None, Some(others)) => (others, "the median of the other offices (no other day)"),
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
            let so_far = if reader.is_partial { " (so far)" } else { "" };
            vec![
                if reader.why.is_some() { "✗".to_owned() } else { "✓".to_owned() },
                reader.office.clone(),
                format!("{}{so_far}", reader.day),
                reader.persons.to_string(),
                reader.usual.map_or("-".to_owned(), |usual| usual.to_string()),
                reader.other_days.to_string(),
                reader.why.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head = ["", "OFFICE", "DAY", "PERSONS", "USUAL", "OTHER DAYS", "WHY"];
    format!(
        "since {since}\n\n{}\n\n{flagged} days of offices stand out; of an office without one its \
         last day is shown. PERSONS: distinct\npersons about whom a request was allowed on that \
         day, today so far; USUAL: the median of the office's\nother days. Below {PERSONS_MIN} \
         persons none stands out.",
        output::table(&head, &rows)
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
             which an office becomes\n担当事業所 of a person. Until card checks are recorded, these \
             are registrations by operator.",
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

/// `false` when something has no end; on a running box, when it began more than a minute ago.
fn unfinished(selection: &Selection, days: u32, json: bool) -> anyhow::Result<bool> {
    let query = since(days);
    let mut open = Open::default();
    in_order(selection, &query, &mut |part, found| {
        open.add(part, found);
        Ok(())
    })?;
    let more = open.more();
    let open = open.oldest_first();
    let recent = clock::text(i64::try_from(clock::now_s()).unwrap_or_default() - RECENT_S);
    let is_old = |entry: &Entry| !selection.is_running || entry.at < recent;
    let is_good = more == 0 && !open.iter().any(|(_, entry)| is_old(entry));
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
    Ok(is_good)
}

/// What has begun and not ended so far. A search joins what lies near together; what ended long
/// after it began is joined here.
#[derive(Default)]
struct Open {
    begun: BTreeMap<(&'static str, String), Entry>,
    /// Those beyond [`UNFINISHED_MAX`], by hash alone.
    beyond: HashSet<u64>,
    /// Those beyond [`BEYOND_MAX`] too: their ends are not known.
    uncounted: u64,
}

impl Open {
    fn add(&mut self, part: &'static str, found: Found) {
        if let Event::Completion { request_id, .. }
        | Event::Outcome { request_id: Some(request_id), .. } = &found.entry.event
            && self.begun.remove(&(part, request_id.clone())).is_none()
        {
            self.beyond.remove(&hash(part, request_id));
        }
        let id = words::expects_end(&found.entry.event).map(str::to_owned);
        match id {
            Some(_) if found.completion.is_some() => {}
            Some(id) if self.begun.len() < UNFINISHED_MAX => {
                self.begun.insert((part, id), found.entry);
            }
            Some(id) if self.beyond.len() < BEYOND_MAX => {
                self.beyond.insert(hash(part, &id));
            }
            Some(_) => self.uncounted += 1,
            None => {}
        }
    }

    fn more(&self) -> u64 {
        self.beyond.len() as u64 + self.uncounted
    }

    fn oldest_first(self) -> Vec<(&'static str, Entry)> {
        let mut open: Vec<_> =
            self.begun.into_iter().map(|((part, _), entry)| (part, entry)).collect();
        open.sort_by(|(_, one), (_, other)| one.at.cmp(&other.at));
        open
    }
}

fn hash(part: &str, request_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (part, request_id).hash(&mut hasher);
    hasher.finish()
}

/// The hub's action by which an office becomes 担当事業所 of a person.
const REGISTERS: &str = "registrations.record";

/// An office stands out with more than this many times the usual …
const FACTOR: u64 = 3;

/// … and at least this many persons.
const PERSONS_MIN: u64 = 20;

/// At most this many are remembered as open with their record …
const UNFINISHED_MAX: usize = 10_000;

/// … and this many more by hash.
const BEYOND_MAX: usize = 1_000_000;

/// What a running box has begun so lately may still be open, in seconds.
const RECENT_S: i64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(offices: &[(&str, &[u64])]) -> Counts {
        fn days(counts: &[u64]) -> impl Iterator<Item = (String, u64)> {
            let days = counts.iter().enumerate();
            days.map(|(day, count)| (format!("2026-04-{:02}", day + 1), *count))
        }
        offices.iter().map(|(office, n)| ((*office).to_owned(), days(n).collect())).collect()
    }

    fn flagged(offices: &[(&str, &[u64])]) -> Vec<String> {
        let readers = compared(&counts(offices), "2026-05-01");
        let out = readers.into_iter().filter(|reader| reader.why.is_some());
        out.map(|reader| format!("{} {}", reader.office, &reader.day[8..])).collect()
    }

    #[test]
    fn an_office_stands_out_against_its_own_other_days() {
        assert_eq!(flagged(&[("1", &[5, 6, 7, 40]), ("2", &[30, 31, 32])]), ["1 04"]);
        assert!(flagged(&[("1", &[5, 6, 7, 18])]).is_empty(), "3 times, but few");
        assert!(flagged(&[("1", &[10, 10, 30])]).is_empty(), "3 times exactly");
        assert_eq!(flagged(&[("1", &[10, 10, 31])]), ["1 03"]);
        assert_eq!(flagged(&[("1", &[10, 90, 10, 40, 10])]), ["1 02", "1 04"], "not the last day");
    }

    #[test]
    fn an_office_without_history_is_measured_by_the_others() {
        assert_eq!(flagged(&[("1", &[100]), ("2", &[9]), ("3", &[10])]), ["1 01"]);
        assert!(flagged(&[("1", &[100]), ("2", &[90]), ("3", &[80])]).is_empty());
        assert!(flagged(&[("1", &[100])]).is_empty(), "nothing to measure by");
    }

    #[test]
    fn today_is_judged_and_judges_no_other_day() {
        let readers = compared(&counts(&[("1", &[30, 30, 1])]), "2026-04-03");
        let [reader] = readers.as_slice() else { panic!("{readers:?}") };
        assert!(reader.is_partial && reader.why.is_none());
        assert_eq!((reader.usual, reader.other_days), (Some(30), 2));
        let readers = compared(&counts(&[("1", &[100, 30, 1])]), "2026-04-03");
        assert_eq!(readers[0].day, "2026-04-01", "30 is usual, not 1 or the median with it");
    }

    #[test]
    fn persons_are_counted_once_a_day() {
        let mut reading = Reading::default();
        for (day, person) in [("01", 1), ("01", 2), ("01", 1), ("02", 1), ("02", 1)] {
            reading.add(format!("2026-04-{day}"), "1", person);
        }
        assert_eq!(reading.end(), counts(&[("1", &[2, 1])]));
    }

    #[test]
    fn a_permit_that_was_refused_after_all_counts_as_a_denial() {
        let mut denials = Denials::default();
        denials.add(&Event::Completion {
            request_id: "a".into(),
            status: 403,
            bytes_sent: 1,
            duration_us: 1,
            outcome: "complete".into(),
            reasons: vec!["not_registered".into()],
        });
        let expected = Counted { after_permit: 1, ..Counted::default() };
        assert_eq!(denials.denials["not_registered"], expected);
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
        assert_eq!(denials.denials["x"], Counted { in_floods: 30, ..Counted::default() });
        assert_eq!(
            denials.connections["x"],
            Counted { recorded: 1, in_floods: 30, after_permit: 0 }
        );
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
            reasons: Vec::new(),
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
