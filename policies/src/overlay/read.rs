//! One overlay from its TOML text. Every key is looked at: one that is not known is a problem, and
//! so is every value that does not mean anything. All of a file's problems are told together.

use std::collections::HashSet;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::hours::{Day, Window, minute};
use super::network::{self, Network};
use super::{AppliesTo, Overlay};
use crate::document::{DocumentKind, DocumentSet};
use crate::identity::OfficeNumber;
use crate::problem::{Problem, did_you_mean};

/// Reads one overlay.
///
/// # Errors
/// Every problem of the text.
pub(super) fn overlay(
    file: &str,
    text: &str,
    is_known: Option<&dyn Fn(OfficeNumber) -> bool>,
) -> Result<Overlay, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let hint = "the file must be TOML; see docs/policies.md for an example";
        let at = |error: &toml::de::Error| {
            let what = error.message().replace('\n', " ");
            Problem::at(file, text, &error.span().unwrap_or(0..0), what, hint)
        };
        return Err(errors.iter().map(at).collect());
    }
    let mut reader = Reader { file, text, is_known, problems: Vec::new() };
    let overlay = reader.overlay(&table);
    if reader.problems.is_empty() { Ok(overlay) } else { Err(reader.problems) }
}

/// Reads values and collects problems on the way.
struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    is_known: Option<&'a dyn Fn(OfficeNumber) -> bool>,
    problems: Vec<Problem>,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn overlay(&mut self, table: &Spanned<DeTable<'_>>) -> Overlay {
        let fields = table.get_ref();
        self.known_keys(fields, "", &KEYS);
        let source = fields.get("source").and_then(|value| self.string(value, "source"));
        if source.as_deref().is_none_or(|text| text.trim().is_empty()) {
            let span = fields.get("source").map_or(0..0, Spanned::span);
            let hint = "say who decided it and when, such as `source = \"運用会議 2026-04-01\"`";
            self.problem(&span, "`source` must say why the overlay exists", hint);
        }
        let applies_to = self.applies_to(fields);
        let mut overlay = Overlay {
            name: name_of(self.file).to_owned(),
            source: source.unwrap_or_default(),
            applies_to,
            hours: fields.get("hours").map(|value| self.hours(value)),
            addresses: fields.get("addresses").map(|value| self.addresses(value)),
            networks: fields
                .get("networks")
                .map(|value| self.list(value, "networks", &["open", "closed"])),
            paused_documents: DocumentSet::EMPTY,
            paused_service_types: Vec::new(),
            paused_entirely: false,
            reads_per_hour_max: None,
            pilot: None,
        };
        if let Some(value) = fields.get("paused") {
            self.paused(value, &mut overlay);
        }
        if let Some(value) = fields.get("bulk") {
            self.bulk(value, &mut overlay);
        }
        if let Some(value) = fields.get("pilot") {
            self.pilot(value, &mut overlay);
        }
        if NARROWING.iter().all(|key| !fields.contains_key(*key)) {
            let hint = format!("add one of {}, or delete the file", NARROWING.join(", "));
            self.problem(&(0..0), "the overlay takes nothing away", &hint);
        }
        overlay
    }

    fn applies_to(&mut self, fields: &DeTable<'_>) -> AppliesTo {
        let hint = "add `[applies-to]` with exactly one of offices, service-types, municipalities \
                    or every-office = true";
        let Some(value) = fields.get("applies-to") else {
            self.problem(&(0..0), "`applies-to` is missing", hint);
            return AppliesTo::EveryOffice;
        };
        let Some(fields) = self.table(value, "applies-to") else { return AppliesTo::EveryOffice };
        self.known_keys(fields, "applies-to.", &TARGETS);
        if fields.len() != 1 {
            self.problem(&value.span(), "`applies-to` must name exactly one thing", hint);
        }
        if let Some(value) = fields.get("offices") {
            AppliesTo::Offices(self.offices(value, "applies-to.offices"))
        } else if let Some(value) = fields.get("service-types") {
            AppliesTo::ServiceTypes(self.list(value, "applies-to.service-types", &[]))
        } else if let Some(value) = fields.get("municipalities") {
            AppliesTo::Municipalities(self.list(value, "applies-to.municipalities", &[]))
        } else {
            if let Some(value) = fields.get("every-office")
                && self.boolean(value, "applies-to.every-office") == Some(false)
            {
                self.problem(&value.span(), "`every-office` can only be true", hint);
            }
            AppliesTo::EveryOffice
        }
    }

    fn hours(&mut self, value: &Value<'_>) -> Vec<Window> {
        let windows = self.array(value, "hours", "write `[[hours]]` with days, from and until");
        let windows: Vec<Window> =
            windows.into_iter().flatten().filter_map(|value| self.window(value)).collect();
        if windows.is_empty() && self.problems.is_empty() {
            self.problem(
                &value.span(),
                "`hours` names no hours, which would be closed for ever",
                "name hours, or pause the offices with `[paused]` and `everything = true`",
            );
        }
        windows
    }

    fn window(&mut self, value: &Value<'_>) -> Option<Window> {
        let fields = self.table(value, "hours")?;
        self.known_keys(fields, "hours.", &["days", "from", "until"]);
        let names: Vec<&str> = Day::ALL.iter().map(Day::as_str).collect();
        let days = self.required(fields, value, "hours.days", "days");
        let days = days.map(|days| self.list::<Day>(days, "hours.days", &names));
        let from = self.clock(fields, value, "from");
        let until = self.clock(fields, value, "until");
        let (days, (from, _), (until, span)) = (days?, from?, until?);
        if from >= until {
            let hint = "a window ends on the day on which it began: write two `[[hours]]`, one \
                        until \"24:00\" and one from \"00:00\"";
            self.problem(&span, "`hours.until` must be later than `from`", hint);
        }
        Some(Window { days, from, until })
    }

    fn clock(
        &mut self,
        fields: &DeTable<'_>,
        window: &Value<'_>,
        key: &str,
    ) -> Option<(u16, Range<usize>)> {
        let dotted = format!("hours.{key}");
        let value = self.required(fields, window, &dotted, key)?;
        let text = self.string(value, &dotted)?;
        let read = minute(&text);
        if read.is_none() {
            let what = format!("`{text}` is not a time of day");
            self.problem(&value.span(), &what, "write HH:MM in Japan time, such as \"08:30\"");
        }
        Some((read?, value.span()))
    }

    fn addresses(&mut self, value: &Value<'_>) -> Vec<Network> {
        let Some(fields) = self.table(value, "addresses") else { return Vec::new() };
        self.known_keys(fields, "addresses.", &["allowed"]);
        let Some(list) = self.required(fields, value, "addresses.allowed", "allowed") else {
            return Vec::new();
        };
        let items = self.array(list, "addresses.allowed", "write [\"203.0.113.0/24\"]");
        let mut ranges = Vec::new();
        for item in items.into_iter().flatten() {
            let Some(text) = self.string(item, "addresses.allowed") else { continue };
            match text.parse::<Network>() {
                Ok(range) => ranges.push(range),
                Err(error) => {
                    let hint = match &error {
                        network::Error::HostBits(_, meant) => format!("did you mean `{meant}`?"),
                        network::Error::Malformed(_) => {
                            "write ADDRESS/LENGTH, such as \"203.0.113.0/24\"".to_owned()
                        }
                    };
                    self.problem(&item.span(), &error.to_string(), &hint);
                }
            }
        }
        ranges
    }

    fn paused(&mut self, value: &Value<'_>, overlay: &mut Overlay) {
        let Some(fields) = self.table(value, "paused") else { return };
        let known = ["documents", "service-types", "everything"];
        self.known_keys(fields, "paused.", &known);
        if let Some(list) = fields.get("documents") {
            let held = DocumentKind::ALL.iter().filter(|kind| kind.is_held());
            let held: Vec<&str> = held.map(DocumentKind::as_str).collect();
            let kinds: Vec<DocumentKind> = self.list(list, "paused.documents", &held);
            overlay.paused_documents = kinds.into_iter().collect();
        }
        if let Some(list) = fields.get("service-types") {
            overlay.paused_service_types = self.list(list, "paused.service-types", &[]);
        }
        if let Some(everything) = fields.get("everything") {
            let everything = self.boolean(everything, "paused.everything");
            overlay.paused_entirely = everything.unwrap_or_default();
        }
        if fields.is_empty() {
            let hint = format!("add one of {}", known.join(", "));
            self.problem(&value.span(), "`paused` names nothing", &hint);
        }
    }

    fn bulk(&mut self, value: &Value<'_>, overlay: &mut Overlay) {
        let Some(fields) = self.table(value, "bulk") else { return };
        self.known_keys(fields, "bulk.", &["reads-per-hour-max"]);
        let key = "bulk.reads-per-hour-max";
        let Some(value) = self.required(fields, value, key, "reads-per-hour-max") else { return };
        let DeValue::Integer(number) = value.get_ref() else {
            self.problem(&value.span(), &format!("`{key}` must be a number"), "write such as 500");
            return;
        };
        let number = u32::from_str_radix(number.as_str(), number.radix());
        overlay.reads_per_hour_max = number.ok().filter(|max| *max >= 1);
        if overlay.reads_per_hour_max.is_none() {
            let what = format!("`{key}` must be 1 or more");
            self.problem(&value.span(), &what, "to let nothing pass, write `[paused]`");
        }
        if matches!(overlay.applies_to, AppliesTo::Municipalities(_)) {
            let hint = "reads are counted by office; name offices or service-types";
            self.problem(&value.span(), "a municipality has no bulk ceiling", hint);
        }
    }

    fn pilot(&mut self, value: &Value<'_>, overlay: &mut Overlay) {
        let Some(fields) = self.table(value, "pilot") else { return };
        self.known_keys(fields, "pilot.", &["offices"]);
        let Some(list) = self.required(fields, value, "pilot.offices", "offices") else { return };
        let offices = self.offices(list, "pilot.offices");
        overlay.pilot = Some(offices.into_iter().collect());
        if !matches!(overlay.applies_to, AppliesTo::Municipalities(_)) {
            let hint = "name the municipalities in `applies-to`";
            self.problem(&value.span(), "only a municipality has a pilot", hint);
        }
    }

    fn offices(&mut self, value: &Value<'_>, key: &str) -> Vec<OfficeNumber> {
        let mut seen = HashSet::new();
        let mut offices = Vec::new();
        for (office, span) in self.list_with_spans::<OfficeNumber>(value, key, &[]) {
            if !seen.insert(office) {
                self.problem(&span, &format!("office {office} is named twice"), "name it once");
            }
            if self.is_known.is_some_and(|is_known| !is_known(office)) {
                let digit =
                    if office.check_digit_fits() { "" } else { " (its check digit is off)" };
                let hint = "register it with `sekisho office add`, or correct the number; `sekisho \
                            office list` shows all";
                let what = format!("office {office} is not known here{digit}");
                self.problem(&span, &what, hint);
            }
            offices.push(office);
        }
        offices
    }

    fn list<T: FromStr>(&mut self, value: &Value<'_>, key: &str, known: &[&str]) -> Vec<T> {
        self.list_with_spans(value, key, known).into_iter().map(|(item, _)| item).collect()
    }

    /// A list of names or numbers that is not empty. `known` are all there are, if that is known.
    fn list_with_spans<T: FromStr>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        known: &[&str],
    ) -> Vec<(T, Range<usize>)> {
        let items = self.array(value, key, "write a list, such as [\"…\", \"…\"]");
        let mut read = Vec::new();
        for item in items.into_iter().flatten() {
            let Some(text) = self.string(item, key) else { continue };
            let parsed = text.parse().ok();
            let parsed = parsed.filter(|_| known.is_empty() || known.contains(&text.as_str()));
            match parsed {
                Some(value) => read.push((value, item.span())),
                None => {
                    let hint = match known {
                        [] => form_of(key).to_owned(),
                        known => did_you_mean(&text, known.iter().copied()),
                    };
                    let what = format!("`{text}` is not known in `{key}`");
                    self.problem(&item.span(), &what, &hint);
                }
            }
        }
        read
    }

    fn known_keys(&mut self, fields: &DeTable<'_>, inside: &str, known: &[&str]) {
        for key in fields.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let hint = match WIDENING.contains(&name.as_ref()) {
                true => ONLY_NARROWS.to_owned(),
                false => did_you_mean(name, known.iter().copied()),
            };
            self.problem(&key.span(), &format!("`{inside}{name}` is not a key here"), &hint);
        }
    }

    fn required<'v, 'i>(
        &mut self,
        fields: &'v DeTable<'i>,
        inside: &Value<'i>,
        dotted: &str,
        key: &str,
    ) -> Option<&'v Value<'i>> {
        let found = fields.get(key);
        if found.is_none() {
            self.problem(&inside.span(), &format!("`{dotted}` is missing"), "add it");
        }
        found
    }

    fn table<'v, 'i>(&mut self, value: &'v Value<'i>, key: &str) -> Option<&'v DeTable<'i>> {
        let DeValue::Table(table) = value.get_ref() else {
            let what = format!("`{key}` must be a table");
            self.problem(&value.span(), &what, &format!("write `[{key}]` on a line of its own"));
            return None;
        };
        Some(table)
    }

    fn array<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        key: &str,
        hint: &str,
    ) -> Option<&'v DeArray<'i>> {
        let DeValue::Array(items) = value.get_ref() else {
            self.problem(&value.span(), &format!("`{key}` must be a list"), hint);
            return None;
        };
        if items.is_empty() {
            self.problem(&value.span(), &format!("`{key}` is an empty list"), hint);
        }
        Some(items)
    }

    fn string(&mut self, value: &Value<'_>, key: &str) -> Option<String> {
        let DeValue::String(text) = value.get_ref() else {
            self.problem(&value.span(), &format!("`{key}` must be text"), "put it in quotes");
            return None;
        };
        Some(text.to_string())
    }

    fn boolean(&mut self, value: &Value<'_>, key: &str) -> Option<bool> {
        let DeValue::Boolean(value) = value.get_ref() else {
            let what = format!("`{key}` must be true or false");
            self.problem(&value.span(), &what, "write it without quotes");
            return None;
        };
        Some(*value)
    }

    fn problem(&mut self, span: &Range<usize>, what: &str, hint: &str) {
        self.problems.push(Problem::at(self.file, self.text, span, what, hint));
    }
}

/// `overlays/night.toml` is the overlay `night`.
fn name_of(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".toml").unwrap_or(name)
}

fn form_of(key: &str) -> &'static str {
    if key.ends_with("offices") {
        "a 事業所番号 is 10 characters, digits or capital letters other than I, O and Q"
    } else if key.ends_with("municipalities") {
        "a 保険者番号 is 6 digits"
    } else {
        "a サービス種類コード is 2 characters, such as \"43\""
    }
}

const NARROWING: [&str; 6] = ["hours", "addresses", "networks", "paused", "bulk", "pilot"];
const KEYS: [&str; 8] =
    ["source", "applies-to", "hours", "addresses", "networks", "paused", "bulk", "pilot"];
const TARGETS: [&str; 4] = ["offices", "service-types", "municipalities", "every-office"];

/// What somebody writes who wants to open something.
const WIDENING: [&str; 10] =
    ["allow", "open", "permit", "grant", "share", "shared", "documents", "rows", "cell", "marks"];
const ONLY_NARROWS: &str = "an overlay only takes away; to open a cell, put a sharing-matrix.toml \
                            beside overlays/ and name the cell in `ack-widening` of policy.toml, \
                            signed by two operators";
