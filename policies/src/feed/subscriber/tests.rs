//! Tests of the order of lines, with a real signer.

use super::super::{GENESIS_HEAD, Parts, Signer};
use super::*;

fn fact(n: u64) -> Fact {
    Fact::Sharing { insurer: "131016".parse().unwrap(), from: Some(n) }
}

fn pair() -> (Signer, Subscriber) {
    let signer = Signer::from_pkcs8(Source::Hub, &Signer::generate_pkcs8().unwrap()).unwrap();
    let subscriber = Subscriber::new(Source::Hub, &signer.public_key()).unwrap();
    (signer, subscriber)
}

fn at(seq: u64, head: &str) -> Position {
    Position { seq, head: head.to_owned() }
}

fn text(fact: &Fact) -> String {
    serde_json::to_string(fact).unwrap()
}

/// The lines of a snapshot with one fact a part, for one that has seen nothing.
fn snapshot(signer: &Signer, position: Position, sent_at_ms: u64, facts: &[Fact]) -> Vec<String> {
    snapshot_after(signer, position, sent_at_ms, facts, None)
}

fn snapshot_after(
    signer: &Signer,
    position: Position,
    sent_at_ms: u64,
    facts: &[Fact],
    seen_head: Option<&str>,
) -> Vec<String> {
    let mut parts = Parts::begin(position, sent_at_ms).unwrap();
    let mut lines: Vec<String> =
        facts.iter().map(|fact| parts.part(signer, &[text(fact)]).unwrap()).collect();
    lines.push(parts.end(signer, seen_head.map(str::to_owned)).unwrap().0);
    lines
}

/// A snapshot with one fact, taken in.
fn begin(signer: &Signer, subscriber: &mut Subscriber, seq: u64, head: &str, sent_at_ms: u64) {
    for line in snapshot(signer, at(seq, head), sent_at_ms, &[fact(seq)]) {
        subscriber.accept(&line).unwrap();
    }
}

fn change(signer: &Signer, seq: u64, previous: &str, fact: Fact) -> String {
    let previous = previous.to_owned();
    let change = Message::Change { seq, previous, latest_seq: seq, sent_at_ms: 2, fact };
    signer.line(&change).unwrap()
}

#[test]
fn a_snapshot_then_changes_then_heartbeats_are_accepted() {
    let (signer, mut subscriber) = pair();
    let lines = snapshot(&signer, Position::genesis(), 1, &[fact(0), fact(1)]);
    let part = |begins, n| Update::Part { begins, facts: vec![fact(n)] };
    assert_eq!(subscriber.accept(&lines[0]).unwrap(), part(true, 0));
    assert_eq!(subscriber.accept(&lines[1]).unwrap(), part(false, 1));
    assert_eq!(subscriber.position(), None, "it does not count before its end");
    assert_eq!(subscriber.accept(&lines[2]).unwrap(), Update::Whole);
    let line = change(&signer, 1, GENESIS_HEAD, fact(7));
    assert_eq!(subscriber.accept(&line).unwrap(), Update::Apply(fact(7)));
    let head = next_head(GENESIS_HEAD, 1, &text(&fact(7)));
    let line = signer.line(&Message::Heartbeat { seq: 1, head, sent_at_ms: 3 }).unwrap();
    assert_eq!(subscriber.accept(&line).unwrap(), Update::Alive);
    assert_eq!((subscriber.applied_seq(), subscriber.caught_up_at_ms()), (1, 3));
}

#[test]
fn a_snapshot_without_facts_is_whole_at_once() {
    let (signer, mut subscriber) = pair();
    let lines = snapshot(&signer, Position::genesis(), 4, &[]);
    assert_eq!(lines.len(), 1);
    assert_eq!(subscriber.accept(&lines[0]).unwrap(), Update::Whole);
    assert_eq!(subscriber.position(), Some(&Position::genesis()));
}

#[test]
fn a_part_that_is_lost_repeated_or_of_another_snapshot_is_refused() {
    let (signer, _) = pair();
    let facts = [fact(0), fact(1), fact(2)];
    let one = snapshot(&signer, at(9, "aa"), 1, &facts);
    let other = snapshot(&signer, at(9, "aa"), 1, &facts);
    let later = snapshot(&signer, at(10, "bb"), 1, &facts);
    let beat = Message::Heartbeat { seq: 9, head: "aa".to_owned(), sent_at_ms: 1 };
    let beat = signer.line(&beat).unwrap();
    for wrong in [
        vec![&one[1]],
        vec![&one[3]],
        vec![&one[0], &one[2]],
        vec![&one[0], &one[0]],
        vec![&one[0], &one[1], &one[3]],
        vec![&one[0], &other[1]],
        vec![&one[0], &later[1]],
        vec![&one[0], &one[1], &one[2], &other[3]],
        vec![&one[0], &beat],
        vec![&one[0], &one[1], &one[2], &one[3], &one[3]],
    ] {
        let mut subscriber = Subscriber::new(Source::Hub, &signer.public_key()).unwrap();
        let (last, before) = wrong.split_last().unwrap();
        before.iter().for_each(|line| {
            subscriber.accept(line).unwrap();
        });
        let refused = subscriber.accept(last);
        assert!(matches!(refused, Err(Error::Broken { .. })), "{refused:?}");
    }
}

#[test]
fn what_was_kept_goes_on_where_it_stood() {
    let (signer, mut subscriber) = pair();
    subscriber.resume(at(5, "aa"), 40);
    let hello = subscriber.hello(Some("gw-1"));
    assert_eq!(
        hello,
        Hello { gateway: Some("gw-1".into()), have: Some(at(5, "aa")), seen: Some(at(5, "aa")) }
    );
    assert_eq!(subscriber.caught_up_at_ms(), 40);
    let line = change(&signer, 6, "aa", fact(6));
    assert_eq!(subscriber.accept(&line).unwrap(), Update::Apply(fact(6)));
    subscriber.disconnect();
    assert_eq!(subscriber.hello(None).have.map(|have| have.seq), Some(6));
    // An older snapshot, or another past, is refused.
    let old = snapshot(&signer, at(4, "zz"), 1, &[fact(4)]);
    let refused = subscriber.accept(&old[0]);
    assert!(matches!(refused, Err(Error::Rollback { have: 6, got: 4 })), "{refused:?}");
    let fork = change(&signer, 7, "ff", fact(7));
    assert!(matches!(subscriber.accept(&fork), Err(Error::Chain(7))));
    subscriber.restart();
    assert_eq!(subscriber.hello(None).have, None);
}

#[test]
fn a_subscriber_that_is_behind_does_not_count_as_fresh() {
    let (signer, mut subscriber) = pair();
    begin(&signer, &mut subscriber, 0, GENESIS_HEAD, 1);
    let mut head = GENESIS_HEAD.to_owned();
    for (seq, caught_up) in [(1, 1), (2, 1), (3, 50)] {
        let fact = fact(seq);
        let previous = head.clone();
        head = next_head(&previous, seq, &text(&fact));
        let change = Message::Change { seq, previous, latest_seq: 3, sent_at_ms: 50, fact };
        subscriber.accept(&signer.line(&change).unwrap()).unwrap();
        assert_eq!(subscriber.caught_up_at_ms(), caught_up, "after {seq}");
    }
}

#[test]
fn a_clock_that_was_set_back_does_not_keep_a_snapshot_out() {
    let (signer, mut subscriber) = pair();
    begin(&signer, &mut subscriber, 5, "aa", 9_000);
    subscriber.restart();
    let other = snapshot(&signer, at(5, "bb"), 1_000, &[fact(5)]);
    assert!(matches!(subscriber.accept(&other[0]), Err(Error::Fork(5))));
    for line in snapshot_after(&signer, at(5, "aa"), 1_000, &[fact(5)], Some("aa")) {
        subscriber.accept(&line).unwrap();
    }
    assert_eq!(subscriber.caught_up_at_ms(), 1_000);
}

#[test]
fn lines_of_another_key_source_or_text_are_refused() {
    let (signer, mut subscriber) = pair();
    let (other, _) = pair();
    let foreign = snapshot(&other, Position::genesis(), 1, &[fact(0)]);
    assert!(matches!(subscriber.accept(&foreign[0]), Err(Error::Signature("hub"))));
    let own = snapshot(&signer, Position::genesis(), 1, &[fact(0)]);
    let line = own[0].replace("131016", "131017");
    assert!(matches!(subscriber.accept(&line), Err(Error::Signature("hub"))));
    assert!(matches!(subscriber.accept("{}"), Err(Error::Malformed(..))));
}

#[test]
fn a_feed_that_tells_another_sources_fact_is_refused() {
    let (signer, mut subscriber) = pair();
    let foreign = Fact::Revoked { serial: "01".parse().unwrap(), at: 1 };
    let mut parts = Parts::begin(Position::genesis(), 1).unwrap();
    let line = parts.part(&signer, &[text(&fact(0)), text(&foreign)]).unwrap();
    assert!(matches!(subscriber.accept(&line), Err(Error::Foreign("hub"))));
    begin(&signer, &mut subscriber, 0, GENESIS_HEAD, 1);
    let line = change(&signer, 1, GENESIS_HEAD, foreign);
    assert!(matches!(subscriber.accept(&line), Err(Error::Foreign("hub"))));
    assert_eq!(subscriber.applied_seq(), 0);
}

#[test]
fn gaps_forks_and_old_snapshots_are_refused() {
    let (signer, mut subscriber) = pair();
    let early = change(&signer, 1, GENESIS_HEAD, fact(1));
    assert!(matches!(subscriber.accept(&early), Err(Error::Gap { have: 0, got: 1 })));
    begin(&signer, &mut subscriber, 5, GENESIS_HEAD, 10);
    let gap = change(&signer, 7, GENESIS_HEAD, fact(7));
    assert!(matches!(subscriber.accept(&gap), Err(Error::Gap { have: 5, got: 7 })));
    let fork = change(&signer, 6, "ff", fact(6));
    assert!(matches!(subscriber.accept(&fork), Err(Error::Chain(6))));
    subscriber.restart();
    let old = snapshot(&signer, at(4, GENESIS_HEAD), 11, &[fact(4)]);
    assert!(matches!(subscriber.accept(&old[0]), Err(Error::Rollback { have: 5, got: 4 })));
}

#[test]
fn a_source_that_was_restored_is_refused_also_when_its_numbers_have_caught_up() {
    let (signer, mut subscriber) = pair();
    begin(&signer, &mut subscriber, 9, "aa", 1);
    subscriber.restart();
    assert_eq!(subscriber.hello(None).seen, Some(at(9, "aa")));
    for (seen_head, accepted) in [(None, false), (Some("bb"), false), (Some("aa"), true)] {
        let mut asking = subscriber.clone();
        let lines = snapshot_after(&signer, at(12, "cc"), 2, &[fact(3)], seen_head);
        asking.accept(&lines[0]).unwrap();
        let end = asking.accept(&lines[1]);
        match accepted {
            true => assert_eq!(end.unwrap(), Update::Whole),
            false => assert!(matches!(end, Err(Error::Fork(9))), "{end:?}"),
        }
    }
}

#[test]
fn an_error_does_not_repeat_what_a_line_says_of_a_person() {
    let (signer, mut subscriber) = pair();
    begin(&signer, &mut subscriber, 0, GENESIS_HEAD, 1);
    let fact = r#"{"fact":"sharing","insurer":"見本の人","from":1}"#;
    let mut parts = Parts::begin(Position::genesis(), 1).unwrap();
    let line = parts.part(&signer, &[fact]).unwrap();
    let refused = subscriber.accept(&line).unwrap_err();
    assert!(matches!(refused, Error::Malformed("data", _)), "{refused:?}");
    assert!(!format!("{refused} {refused:?}").contains("見本"), "{refused}");
}
