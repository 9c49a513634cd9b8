//! `sekisho audit export`: records as CSV or JSON lines, streamed.
//!
//! Invariants: a file under its final name is whole; a cell never begins with what a spreadsheet
//! would take for a formula.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use audit_log::{Actor, Event, Found, Object};

use crate::cli::Context;
use crate::exit::usage;
use crate::output::progress;

use super::filter::Filter;
use super::search;
use super::selection::Selection;

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The form of the file
    #[arg(long, value_enum)]
    format: Format,
    /// Write this file, whole or not at all, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<std::path::PathBuf>,
    /// Begin with a byte order mark, without which Excel misreads UTF-8
    #[arg(long)]
    excel: bool,
    #[command(flatten)]
    filter: Filter,
}

/// The form of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A header row, then one row a record
    Csv,
    /// One JSON object a line
    Jsonl,
}

/// Runs `export`.
///
/// # Errors
/// When a log cannot be read or the file not be written.
pub(super) fn run(args: &Args, selection: &Selection, context: &Context) -> anyhow::Result<bool> {
    if args.excel && args.format != Format::Csv {
        return Err(usage("--excel is for --format csv"));
    }
    let Some(path) = &args.out else {
        let out = std::io::stdout().lock();
        return match write(args, selection, context, out) {
            Err(error) if is_closed_pipe(&error) => Ok(true),
            written => written.map(|_| true),
        };
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let unwritable = || format!("file `{}` cannot be written", path.display());
    let temporary = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
        .map_err(|error| usage(format!("{}: {error}", unwritable())))?;
    let records = write(args, selection, context, temporary.as_file()).map_err(|error| {
        // What is wrong with a log is not said of the file.
        let is_ours = error.downcast_ref::<std::io::Error>().is_some();
        if is_ours { error.context(unwritable()) } else { error }
    })?;
    temporary.as_file().sync_all().with_context(unwritable)?;
    temporary.persist(path).map_err(|error| error.error).with_context(unwritable)?;
    std::fs::File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .with_context(unwritable)?;
    progress(&format!("{records} records written to `{}`", path.display()));
    Ok(true)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
            == Some(std::io::ErrorKind::BrokenPipe)
    })
}

fn write(
    args: &Args,
    selection: &Selection,
    context: &Context,
    out: impl Write,
) -> anyhow::Result<u64> {
    let query = args.filter.query(context)?;
    let mut out = BufWriter::new(out);
    let mut records = 0;
    match args.format {
        Format::Jsonl => search::in_order(selection, &query, &mut |part, found| {
            records += 1;
            let value = search::to_json(part, &found)?;
            Ok(writeln!(out, "{value}")?)
        })?,
        Format::Csv => {
            if args.excel {
                out.write_all(BYTE_ORDER_MARK)?;
            }
            let mut table = csv::Writer::from_writer(&mut out);
            table.write_record(COLUMNS).map_err(as_io)?;
            search::in_order(selection, &query, &mut |part, found| {
                records += 1;
                let row = Row::of(part, &found, query.insured.as_deref());
                Ok(table.write_record(row.0.iter().map(|cell| safe(cell))).map_err(as_io)?)
            })?;
            table.flush()?;
        }
    }
    out.flush()?;
    Ok(records)
}

/// csv hides the system's error inside its own.
fn as_io(error: csv::Error) -> std::io::Error {
    let text = error.to_string();
    if let csv::ErrorKind::Io(error) = error.into_kind() {
        return error;
    }
    std::io::Error::other(text)
}

/// The cells of one record, in the order of [`COLUMNS`].
struct Row([String; COLUMNS.len()]);

impl Row {
    /// `person`: the pseudonym that was looked for.
    fn of(part: &str, found: &Found, person: Option<&str>) -> Self {
        let entry = &found.entry;
        let mut row = Self(std::array::from_fn(|_| String::new()));
        row.set("part", part);
        row.set("number", entry.number);
        row.set("at", &entry.at);
        row.set("hash", &entry.hash);
        let tagged = serde_json::to_value(&entry.event).unwrap_or_default();
        row.set("event", crate::output::field(&tagged, "event"));
        row.event(&entry.event);
        if let Some(end) = &found.completion {
            row.set("ended_at", &end.at);
            row.event_end(&end.event);
        }
        row.counted_of(&entry.event, person);
        row
    }

    /// Of refusals that were counted together: how many concerned the one person looked for.
    fn counted_of(&mut self, event: &Event, person: Option<&str>) {
        if let (Event::Aggregated { insured, .. }, Some(person)) = (event, person)
            && let Some(count) = insured.get(person)
        {
            self.set("insured", person);
            self.set("count", count);
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "takes values and references alike")]
    fn set(&mut self, column: &str, value: impl ToString) {
        let at = COLUMNS.iter().position(|name| *name == column);
        if let Some(cell) = at.and_then(|at| self.0.get_mut(at)) {
            *cell = value.to_string();
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Decision {
                request_id,
                actor,
                action,
                object,
                decision,
                reasons,
                policy,
                facts_ca_seq,
                facts_hub_seq,
                client_addr,
                network,
            } => {
                self.parties(Some(request_id), actor, object);
                self.set("action", action.as_deref().unwrap_or_default());
                self.set("decision", decision);
                self.set("reasons", reasons.join(" "));
                self.set("policy", policy);
                self.set("facts_ca_seq", facts_ca_seq);
                self.set("facts_hub_seq", facts_hub_seq);
                self.set("client_addr", client_addr);
                self.set("network", network.as_deref().unwrap_or_default());
            }
            Event::HandshakeFailed { reason, detail, client_addr, actor } => {
                // A refused certificate proves nothing: what it says stands apart.
                if let Some(actor) = actor {
                    self.set("claimed", &actor.principal);
                }
                self.set("reasons", reason);
                self.set("detail", detail);
                self.set("client_addr", client_addr);
            }
            Event::Intent { request_id, actor, action, object, detail }
            | Event::Effect { request_id, actor, action, object, detail } => {
                self.parties(request_id.as_ref(), actor, object);
                self.set("action", action);
                self.set("detail", detail);
            }
            Event::Outcome { request_id, actor, action, object, detail, .. } => {
                self.parties(request_id.as_ref(), actor, object);
                self.set("action", action);
                self.set("detail", detail);
                self.event_end(event);
            }
            Event::Completion { request_id, .. } => {
                self.set("request_id", request_id);
                self.event_end(event);
            }
            Event::Aggregated { what, party, count, reasons, from, until, .. } => {
                self.parties(None, &Actor::of(party), &Object::default());
                self.set("from", from);
                self.set("until", until);
                self.set("count", count);
                let told: Vec<String> =
                    reasons.iter().map(|(code, n)| format!("{code}={n}")).collect();
                self.set("reasons", told.join(" "));
                self.set("detail", what);
            }
            Event::ServiceStarted { .. }
            | Event::ServiceStopped
            | Event::HandedOver
            | Event::Checkpoint { .. }
            | Event::TailCut { .. }
            | Event::Unfinished { .. }
            | Event::Unavailable { .. }
            | Event::ClockStepped { .. }
            | Event::SegmentsDeleted { .. } => self.set("detail", super::words::of(event)),
        }
    }

    fn event_end(&mut self, event: &Event) {
        if let Event::Completion { status, bytes_sent, duration_us, outcome, reasons, .. } = event {
            if !reasons.is_empty() {
                self.set("reasons", reasons.join(" "));
            }
            self.set("status", status);
            self.set("bytes_sent", bytes_sent);
            self.set("duration_us", duration_us);
            self.set("outcome", outcome);
        }
        if let Event::Outcome { result, .. } = event {
            self.set("outcome", result);
        }
    }

    fn parties(&mut self, request_id: Option<&String>, actor: &Actor, object: &Object) {
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        self.set("request_id", request_id.cloned().unwrap_or_default());
        self.set("principal", &actor.principal);
        self.set("office", or_empty(&actor.office));
        self.set("serial", or_empty(&actor.serial));
        self.set("staff", or_empty(&actor.staff));
        self.set("job", or_empty(&actor.job));
        self.set("insured", or_empty(&object.insured));
        self.set("document", or_empty(&object.document));
        self.set("document_id", or_empty(&object.document_id));
        self.set("object", or_empty(&object.name));
    }
}

/// A cell that no spreadsheet takes for a formula: the apostrophe makes it text.
fn safe(cell: &str) -> String {
    let starts_one = cell.starts_with(STARTS);
    if starts_one { format!("'{cell}") } else { cell.to_owned() }
}

/// What begins a formula; the full-width forms do in Japanese spreadsheets.
const STARTS: [char; 11] =
    ['=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];

const COLUMNS: [&str; 32] = [
    "part",
    "number",
    "at",
    "event",
    "request_id",
    "principal",
    "claimed",
    "office",
    "serial",
    "staff",
    "job",
    "action",
    "insured",
    "document",
    "document_id",
    "object",
    "decision",
    "reasons",
    "ended_at",
    "status",
    "bytes_sent",
    "duration_us",
    "outcome",
    "count",
    "from",
    "until",
    "policy",
    "facts_ca_seq",
    "facts_hub_seq",
    "client_addr",
    "detail",
    "hash",
];

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

#[cfg(test)]
mod tests {
    use super::super::selection::Log;
    use super::*;
    use crate::audit_keys::Pins;
    use crate::layout::{Layout, Part};
    use audit_log::{AuditLog, CheckpointKey, Options};

    #[test]
    fn no_cell_begins_like_a_formula() {
        for (cell, expected) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@x", "'@x"),
            ("\tx", "'\tx"),
            ("＝1", "'＝1"),
            ("＋1", "'＋1"),
            ("－1", "'－1"),
            ("＠x", "'＠x"),
            ("a=b", "a=b"),
            ("", ""),
        ] {
            assert_eq!(safe(cell), expected);
        }
    }

    fn selection(folder: &Path) -> Selection {
        let (key, _) = CheckpointKey::generate("id.example/audit/gateway").unwrap();
        let log = AuditLog::open(folder, Options::new("gateway", key)).unwrap();
        let event = Event::HandshakeFailed {
            reason: "certificate_expired".into(),
            detail: "=HYPERLINK(\"x\",\"a, b\")".into(),
            client_addr: "127.0.0.1:1".into(),
            actor: Some(Actor::of("office/1370000001/terminal/a")),
        };
        log.append(&event).unwrap().durable_blocking().unwrap();
        log.close();
        Selection::for_test(
            vec![Log { part: Part::Gateway, folder: folder.to_owned() }],
            Pins::read(Path::new("/nonexistent")).unwrap(),
        )
    }

    fn args(format: Format, out: Option<std::path::PathBuf>) -> Args {
        Args { format, out, excel: format == Format::Csv, filter: Filter::default() }
    }

    #[test]
    fn rows_have_every_column_and_files_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let selection = selection(&folder.path().join("log"));
        let layout = Layout::new(folder.path()).unwrap();
        let context = Context { layout, json: false };
        let path = folder.path().join("out.csv");
        run(&args(Format::Csv, Some(path.clone())), &selection, &context).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.get(..3), Some(BYTE_ORDER_MARK));
        let mut table = csv::Reader::from_reader(&bytes[3..]);
        assert_eq!(table.headers().unwrap().len(), COLUMNS.len());
        let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
        let row = rows.iter().find(|row| &row[3] == "handshake_failed").unwrap();
        let cell = |name: &str| &row[COLUMNS.iter().position(|column| *column == name).unwrap()];
        assert_eq!(cell("claimed"), "office/1370000001/terminal/a");
        assert_eq!((cell("principal"), cell("office")), ("", ""), "nothing of it is proved");
        assert_eq!(cell("detail"), "'=HYPERLINK(\"x\",\"a, b\")");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing temporary stays");
        let path = folder.path().join("out.jsonl");
        run(&args(Format::Jsonl, Some(path.clone())), &selection, &context).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["part"], "gateway");
        assert_eq!(text.lines().count(), rows.len());
        let nowhere = args(Format::Csv, Some("/nonexistent/x.csv".into()));
        assert_eq!(crate::exit::exit_code(&run(&nowhere, &selection, &context).unwrap_err()), 64);
    }

    #[test]
    fn counted_denials_say_the_person_their_own_count_and_the_time() {
        let (person, other) = ("ab".repeat(16), "cd".repeat(16));
        let event = Event::Aggregated {
            what: "denials".into(),
            party: "office/1370000001/terminal/a".into(),
            from: "2026-04-01T09:00:00.000Z".into(),
            until: "2026-04-01T09:01:00.000Z".into(),
            count: 40,
            reasons: std::collections::BTreeMap::from([("not_registered".to_owned(), 40)]),
            insured: [(person.clone(), 3), (other, 37)].into_iter().collect(),
            insured_not_named: 0,
        };
        let entry = audit_log::Entry { number: 1, at: String::new(), event, hash: String::new() };
        let found = Found { entry, completion: None };
        let row = Row::of("gateway", &found, Some(&person));
        let cell = |row: &Row, name: &str| {
            row.0[COLUMNS.iter().position(|column| *column == name).unwrap()].clone()
        };
        assert_eq!((cell(&row, "insured"), cell(&row, "count")), (person, "3".to_owned()));
        assert_eq!(cell(&row, "office"), "1370000001");
        assert_eq!(cell(&row, "from"), "2026-04-01T09:00:00.000Z");
        assert_eq!(cell(&row, "until"), "2026-04-01T09:01:00.000Z");
        let all = Row::of("gateway", &found, None);
        assert_eq!((cell(&all, "insured"), cell(&all, "count")), (String::new(), "40".to_owned()));
    }

    #[test]
    fn a_damaged_log_is_not_said_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let selection = selection(&folder.path().join("log"));
        std::fs::write(folder.path().join("log/00000001.jsonl"), "no header\n").unwrap();
        let context = Context { layout: Layout::new(folder.path()).unwrap(), json: false };
        let path = folder.path().join("out.csv");
        let error = run(&args(Format::Csv, Some(path)), &selection, &context).unwrap_err();
        let told = format!("{error:#}");
        assert!(told.contains("log of gateway") && !told.contains("cannot be written"), "{told}");
    }
}
