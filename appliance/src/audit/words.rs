//! Records in words: one line each.

use audit_log::{Actor, Entry, Event, Object};

/// What a record says, on one line.
pub(super) fn of(event: &Event) -> String {
    match event {
        Event::Decision { request_id, actor, action, object, decision, reasons, .. } => {
            let action = action.as_deref().unwrap_or("unknown path");
            let why = listed(" [", reasons, "]");
            format!("{decision}{why} {action} {} request {request_id}", parties(actor, object))
        }
        Event::Completion { request_id, .. } => {
            format!("answered {} request {request_id}", ended(event).unwrap_or_default())
        }
        Event::HandshakeFailed { reason, client_addr, actor, .. } => {
            let who =
                actor.as_ref().map(|actor| format!(" (claimed {}, unproved)", actor.principal));
            format!("connection from {client_addr}{} refused [{reason}]", who.unwrap_or_default())
        }
        Event::Aggregated { what, party, from, until, count, reasons, .. } => {
            let why: Vec<String> = reasons.iter().map(|(code, n)| format!("{code} {n}")).collect();
            format!("{count} {what} of {party} from {from} until {until} [{}]", why.join(", "))
        }
        Event::Intent { request_id, actor, action, object, detail } => {
            work("will", action, actor, object, (request_id, detail))
        }
        Event::Effect { request_id, actor, action, object, detail } => {
            work("did", action, actor, object, (request_id, detail))
        }
        Event::Outcome { request_id, actor, action, object, result, detail } => {
            work(&format!("ended {result}"), action, actor, object, (request_id, detail))
        }
        Event::ServiceStarted { .. }
        | Event::ServiceStopped
        | Event::HandedOver
        | Event::Checkpoint { .. }
        | Event::TailCut { .. }
        | Event::Unfinished { .. }
        | Event::Unavailable { .. }
        | Event::ClockStepped { .. }
        | Event::SegmentsDeleted { .. } => of_log(event),
    }
}

/// What a log says about itself and its program.
fn of_log(event: &Event) -> String {
    match event {
        Event::ServiceStarted { version } => format!("program started, version {version}"),
        Event::ServiceStopped => "program stopped in good order".to_owned(),
        Event::HandedOver => "program handed its place to its successor".to_owned(),
        Event::Checkpoint { note } => {
            let size = note.lines().nth(1).unwrap_or("?");
            format!("checkpoint over {size} records")
        }
        Event::TailCut { segment, bytes, last_record } => {
            format!("torn tail: {bytes} bytes cut off {segment} behind record {last_record}")
        }
        Event::Unfinished { request_ids } => {
            let named: Vec<&str> = request_ids.iter().take(NAMED_MAX).map(String::as_str).collect();
            let count = request_ids.len();
            format!("left unfinished by the program before: {count} ({})", named.join(", "))
        }
        Event::Unavailable { reason, since, refused } => {
            format!("could not be written since {since}: {reason}; {refused} records refused")
        }
        Event::ClockStepped { clock, by_ms } => format!("clock set to {clock} (by {by_ms} ms)"),
        Event::SegmentsDeleted { through_record, until, .. } => {
            format!("records up to {through_record} (until {until}) deleted by retention")
        }
        Event::Decision { .. }
        | Event::Completion { .. }
        | Event::HandshakeFailed { .. }
        | Event::Aggregated { .. }
        | Event::Intent { .. }
        | Event::Effect { .. }
        | Event::Outcome { .. } => String::new(),
    }
}

/// How an access ended, from its completion record; how work ended, from its outcome.
pub(super) fn ended(event: &Event) -> Option<String> {
    match event {
        Event::Completion { status, bytes_sent, duration_us, outcome, reasons, .. } => {
            let ms = std::time::Duration::from_micros(*duration_us).as_secs_f64() * 1e3;
            let why = listed(", refused after all [", reasons, "]");
            Some(format!("{status}, {bytes_sent} bytes, {ms:.1} ms, {outcome}{why}"))
        }
        Event::Outcome { result, .. } => Some(result.clone()),
        Event::Decision { .. }
        | Event::HandshakeFailed { .. }
        | Event::Aggregated { .. }
        | Event::Intent { .. }
        | Event::Effect { .. }
        | Event::ServiceStarted { .. }
        | Event::ServiceStopped
        | Event::HandedOver
        | Event::Checkpoint { .. }
        | Event::TailCut { .. }
        | Event::Unfinished { .. }
        | Event::Unavailable { .. }
        | Event::ClockStepped { .. }
        | Event::SegmentsDeleted { .. } => None,
    }
}

/// The request id of a record that waits for another which says how it ended. Work without one
/// cannot be joined with its end.
pub(super) fn expects_end(event: &Event) -> Option<&str> {
    match event {
        Event::Decision { decision, request_id, .. } => {
            (decision == audit_log::ALLOW).then_some(request_id)
        }
        Event::Intent { request_id, .. } => request_id.as_deref(),
        Event::Completion { .. }
        | Event::Outcome { .. }
        | Event::HandshakeFailed { .. }
        | Event::Aggregated { .. }
        | Event::Effect { .. }
        | Event::ServiceStarted { .. }
        | Event::ServiceStopped
        | Event::HandedOver
        | Event::Checkpoint { .. }
        | Event::TailCut { .. }
        | Event::Unfinished { .. }
        | Event::Unavailable { .. }
        | Event::ClockStepped { .. }
        | Event::SegmentsDeleted { .. } => None,
    }
}

/// A found record with its end, as one line.
pub(super) fn line(part: &str, entry: &Entry, end: Option<&Entry>) -> String {
    let end = match end.and_then(|end| ended(&end.event)) {
        Some(end) => format!(" → {end}"),
        None if expects_end(&entry.event).is_some() => " → no end recorded".to_owned(),
        None => String::new(),
    };
    format!("{} {part} #{} {}{end}", entry.at, entry.number, of(&entry.event))
}

fn work(
    what: &str,
    action: &str,
    actor: &Actor,
    object: &Object,
    (request_id, detail): (&Option<String>, &str),
) -> String {
    let request = request_id.as_ref().map(|id| format!(" request {id}")).unwrap_or_default();
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    format!("{what}: {action} {}{detail}{request}", parties(actor, object))
}

/// Who, and about what.
fn parties(actor: &Actor, object: &Object) -> String {
    let mut words = vec![format!("by {}", actor.principal)];
    if let Some(staff) = &actor.staff {
        words.push(format!("staff {staff}"));
    }
    if let Some(job) = &actor.job {
        words.push(format!("({job})"));
    }
    if let Some(kind) = &object.document {
        words.push(format!("document {kind}"));
    }
    if let Some(id) = &object.document_id {
        words.push(format!("no. {id}"));
    }
    if let Some(person) = &object.insured {
        words.push(format!("person {person}"));
    }
    if let Some(name) = &object.name {
        words.push(format!("on {name}"));
    }
    words.join(" ")
}

fn listed(open: &str, words: &[String], close: &str) -> String {
    if words.is_empty() { String::new() } else { format!("{open}{}{close}", words.join(", ")) }
}

const NAMED_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: Event) -> Entry {
        let at = "2026-04-01T09:00:00.000Z".to_owned();
        Entry { number: 7, at, event, hash: "0".repeat(64) }
    }

    fn decision(decision: &str, reasons: &[&str]) -> Event {
        Event::Decision {
            request_id: "r1".into(),
            actor: Actor::of("office/1370000001/terminal/a").staff("s1", "care-manager"),
            action: Some("documents.view".into()),
            object: Object::person("ab".repeat(16)).document("insured-card", Some("3".into())),
            decision: decision.into(),
            reasons: reasons.iter().map(ToString::to_string).collect(),
            policy: "p".into(),
            facts_ca_seq: 1,
            facts_hub_seq: 2,
            client_addr: "127.0.0.1:1".into(),
            network: None,
        }
    }

    #[test]
    fn what_a_refused_certificate_says_is_told_as_a_claim() {
        let told = of(&Event::HandshakeFailed {
            reason: "certificate_untrusted".into(),
            detail: String::new(),
            client_addr: "192.0.2.1:1".into(),
            actor: Some(Actor::of("operator/root")),
        });
        assert!(told.contains("(claimed operator/root, unproved)"), "{told}");
    }

    #[test]
    fn an_access_is_one_line_with_its_end() {
        let end = entry(Event::Completion {
            request_id: "r1".into(),
            status: 200,
            bytes_sent: 512,
            duration_us: 1_500,
            outcome: "complete".into(),
            reasons: vec!["not_registered".into()],
        });
        let told = line("gateway", &entry(decision("allow", &[])), Some(&end));
        assert_eq!(
            told,
            "2026-04-01T09:00:00.000Z gateway #7 allow documents.view by \
             office/1370000001/terminal/a staff s1 (care-manager) document insured-card no. 3 \
             person abababababababababababababababab request r1 → 200, 512 bytes, 1.5 ms, \
             complete, refused after all [not_registered]"
        );
        let denied = line("gateway", &entry(decision("deny", &["not_registered"])), None);
        assert!(denied.contains("deny [not_registered] documents.view"), "{denied}");
        assert!(!denied.contains('→'), "{denied}");
        let open = line("gateway", &entry(decision("allow", &[])), None);
        assert!(open.ends_with("→ no end recorded"), "{open}");
    }
}
