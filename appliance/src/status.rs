//! `sekisho status`: one line a part, up, degraded or down, and why. Exit code 1 unless all are up.

use serde_json::{Value, json};

use crate::admin::{self, Admin};
use crate::audit::{access_index, heads};
use crate::cli::Context;
use crate::clock;
use crate::layout::{Layout, Part};
use crate::lock::Lock;
use crate::output;
use crate::part::{Record, State};
use crate::process::HEAD_BRINGER;
use crate::supervisor::Status;

/// How a part does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Up,
    Degraded,
    Down,
}

impl Health {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// One part, how it does, and why.
#[derive(Debug)]
pub(crate) struct Line {
    name: &'static str,
    /// How it does.
    pub(crate) health: Health,
    why: String,
    record: Option<Record>,
}

impl Line {
    /// The part's name.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// Why it does as it does.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }
}

/// Runs `status`.
///
/// # Errors
/// When the folder is none of ours, or what runs there cannot be read.
pub(crate) async fn run(context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let status = running(&context.layout)?;
    let lines = lines(&context.layout, status.as_ref()).await;
    let all_up = lines.iter().all(|line| line.health == Health::Up);
    output::data(context.json, &to_json(&lines, status.as_ref()), || to_text(&lines));
    Ok(all_up)
}

/// What the supervisor says, where one runs.
///
/// # Errors
/// When its file is not understood.
pub(crate) fn running(layout: &Layout) -> anyhow::Result<Option<Status>> {
    if !Lock::is_held(layout) {
        return Ok(None);
    }
    Ok(Status::read(layout)?.filter(|status| status.is_live(layout)))
}

/// Looks at every part.
pub(crate) async fn lines(layout: &Layout, status: Option<&Status>) -> Vec<Line> {
    let mut lines = Vec::new();
    for part in Part::ALL {
        let record = status
            .and_then(|status| status.parts.iter().find(|record| record.name == part.as_str()));
        let (health, why) = match record {
            None => (Health::Down, NOT_RUNNING.to_owned()),
            Some(record) => match record_health(record) {
                Ok(()) => answer_health(layout, part, status).await,
                Err((health, why)) => (health, why),
            },
        };
        lines.push(Line { name: part.as_str(), health, why, record: record.cloned() });
    }
    lines.extend(head_bringer(layout, status));
    lines
}

/// What brings the heads of the audit logs out, where they are to be brought anywhere.
fn head_bringer(layout: &Layout, status: Option<&Status>) -> Option<Line> {
    let record = status?.parts.iter().find(|record| record.name == HEAD_BRINGER)?;
    let (health, why) = match record_health(record) {
        Ok(()) => match heads::health(layout, true) {
            Ok(told) => (Health::Up, told),
            Err(problems) => (Health::Degraded, problems),
        },
        Err(told) => told,
    };
    Some(Line { name: HEAD_BRINGER, health, why, record: Some(record.clone()) })
}

/// What the supervisor's record alone tells.
fn record_health(record: &Record) -> Result<(), (Health, String)> {
    let last = record.last_exit.clone().unwrap_or_default();
    match record.state {
        State::Up => Ok(()),
        State::Starting if record.restarts == 0 => Err((Health::Down, "starting".to_owned())),
        State::Starting => Err((Health::Down, format!("starting again: {last}"))),
        State::Backoff => Err((
            Health::Down,
            format!("waits for its restart (restarts so far: {}): {last}", record.restarts),
        )),
        State::Stopping => Err((Health::Down, "stopping".to_owned())),
        State::Stopped => Err((Health::Down, "stopped".to_owned())),
    }
}

/// Asks the part itself.
async fn answer_health(layout: &Layout, part: Part, status: Option<&Status>) -> (Health, String) {
    match part {
        Part::Signer => {
            if admin::socket_answers(&layout.run("signer.sock")).await {
                (Health::Up, "answers on its socket".to_owned())
            } else {
                (Health::Degraded, "does not answer on its socket".to_owned())
            }
        }
        Part::Ra => admin_health(&Admin::ra(layout)).await,
        Part::Hub => match admin_health(&Admin::hub(layout)).await {
            (Health::Up, counts) => with_index(layout, counts, status).await,
            not_up => not_up,
        },
        Part::Gateway => gateway_health(status).await,
    }
}

async fn admin_health(admin: &Admin) -> (Health, String) {
    match admin.get("/status").await {
        Ok(status) => (Health::Up, counts(&status)),
        Err(error) => (Health::Degraded, format!("{error:#}")),
    }
}

/// The hub is whole only when its access histories are.
async fn with_index(layout: &Layout, counts: String, status: Option<&Status>) -> (Health, String) {
    let is_settled = [Part::Hub, Part::Gateway].iter().all(|part| {
        let record = status
            .and_then(|status| status.parts.iter().find(|record| record.name == part.as_str()));
        record.is_some_and(|record| is_up_since(record, clock::now_s()))
    });
    match access_index::health(layout, is_settled).await {
        Ok(None) => (Health::Up, counts),
        Ok(Some(told)) => (Health::Up, format!("{counts}, {told}")),
        Err(error) => (Health::Degraded, format!("{error:#}")),
    }
}

/// Whether a part has been up for [`SETTLED_S`].
fn is_up_since(record: &Record, now_s: u64) -> bool {
    let limit = clock::text(i64::try_from(now_s).unwrap_or_default() - SETTLED_S);
    record.state == State::Up && record.ready_at.as_ref().is_some_and(|at| *at < limit)
}

/// The numbers of a part's own status, as words, sorted by name.
fn counts(status: &Value) -> String {
    let numbers = status.as_object().into_iter().flatten().filter_map(|(key, value)| {
        value.as_u64().map(|number| format!("{} {number}", key.replace('_', " ")))
    });
    let mut numbers: Vec<String> = numbers.collect();
    numbers.sort();
    numbers.join(", ")
}

async fn gateway_health(status: Option<&Status>) -> (Health, String) {
    let Some(Ok(address)) = status.map(|status| status.address("admin")) else {
        return (Health::Degraded, "its admin address is not known".to_owned());
    };
    match admin::get_plain(&address.to_string(), "/readyz").await {
        Ok(answer) if answer.status == 200 => (Health::Up, "ready".to_owned()),
        Ok(answer) => (Health::Degraded, format!("not ready: {}", answer.body)),
        Err(error) => (Health::Degraded, format!("{error:#}")),
    }
}

fn to_json(lines: &[Line], status: Option<&Status>) -> Value {
    let parts: Vec<Value> = lines
        .iter()
        .map(|line| {
            let record = line.record.as_ref();
            json!({
                "name": line.name,
                "health": line.health.as_str(),
                "why": line.why,
                "pid": record.and_then(|record| record.pid),
                "restarts": record.map(|record| record.restarts),
                "last_exit": record.and_then(|record| record.last_exit.clone()),
            })
        })
        .collect();
    json!({
        "all_up": lines.iter().all(|line| line.health == Health::Up),
        "parts": parts,
        "addresses": status.map(|status| &status.addresses),
        "started_at": status.map(|status| &status.started_at),
    })
}

fn to_text(lines: &[Line]) -> String {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| vec![line.name.to_owned(), line.health.as_str().to_owned(), line.why.clone()])
        .collect();
    output::table(&["PART", "STATE", "WHY"], &rows)
}

/// The hub tries to reach the gateway's records at least every 10 s.
const SETTLED_S: i64 = 20;

const NOT_RUNNING: &str = "not running: start the box with `sekisho up`";

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_part_that_keeps_dying_is_down_and_says_why() {
        let mut record = Record::new("hub");
        record.spawned(Some(1));
        assert_eq!(record_health(&record), Err((Health::Down, "starting".to_owned())));
        record.ready("t".into());
        assert_eq!(record_health(&record), Ok(()));
        record.exited("killed by signal 9".into(), Duration::ZERO);
        let (health, why) = record_health(&record).unwrap_err();
        assert_eq!(health, Health::Down);
        assert!(why.contains("killed by signal 9"), "{why}");
    }

    #[test]
    fn a_part_is_settled_a_while_after_it_became_ready() {
        let mut record = Record::new("hub");
        record.spawned(Some(1));
        assert!(!is_up_since(&record, 1_774_971_000));
        record.ready(clock::text(1_774_971_000));
        assert!(!is_up_since(&record, 1_774_971_005));
        assert!(is_up_since(&record, 1_774_971_060));
    }

    #[tokio::test]
    async fn a_folder_without_a_supervisor_is_down() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        let lines = lines(&layout, running(&layout).unwrap().as_ref()).await;
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.health == Health::Down));
    }

    #[test]
    fn counts_are_words() {
        let status = json!({"offices": 3, "feed_seq": 9, "gateways": []});
        assert_eq!(counts(&status), "feed seq 9, offices 3");
    }
}
