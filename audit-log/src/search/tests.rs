//! Every search against reading everything and choosing by hand.

use std::collections::BTreeMap;

use super::*;
use crate::crafted::{Crafted, compress, sample};
use crate::entry::Actor;
use crate::index::build_index;

/// What a search must give: choose, then put the pairs together.
fn by_hand(dir: &Path, query: &Query) -> Vec<Found> {
    let all: Vec<Entry> = crate::read(dir).map(Result::unwrap).collect();
    let mut taken = BTreeSet::new();
    let mut found = Vec::new();
    for (at, entry) in all.iter().enumerate() {
        if !query.matches(entry) || taken.contains(&entry.number) {
            continue;
        }
        let name = begins(&entry.event);
        let later = all.iter().skip(at + 1).find(|later| {
            name.is_some()
                && ends(&later.event) == name
                && !taken.contains(&later.number)
                && later.at <= join_deadline(&entry.at)
        });
        taken.extend(later.map(|later| later.number));
        found.push(Found { entry: entry.clone(), completion: later.cloned() });
    }
    found
}

fn run(dir: &Path, query: &Query) -> Vec<Found> {
    let mut ignore = |_| {};
    search(dir, query, &mut ignore).map(Result::unwrap).collect()
}

/// Five segments: compressed with index, plain with index, compressed without, plain without, open.
fn log() -> (Crafted, tempfile::TempDir) {
    let mut log = Crafted::new();
    for segment in 0..5 {
        if segment > 0 {
            log.begin_segment();
        }
        for n in 0..60 {
            log.push_sample();
            if n == 30 {
                log.push(&Event::Aggregated {
                    what: "denials".into(),
                    party: "office/1370000003/terminal/front-1".into(),
                    from: "2026-04-01T09:00:00.000Z".into(),
                    until: "2026-04-01T09:00:00.000Z".into(),
                    count: 3,
                    reasons: BTreeMap::from([("not_in_charge".into(), 3)]),
                    insured: BTreeMap::from([(format!("{:032x}", 5), 3)]),
                    insured_not_named: 0,
                });
                log.push(&Event::HandshakeFailed {
                    reason: "certificate_expired".into(),
                    detail: String::new(),
                    client_addr: "192.0.2.1:1".into(),
                    actor: Some(Actor::of("office/1370000004/terminal/front-2")),
                });
            }
        }
        log.checkpoint();
    }
    let dir = log.write();
    compress(dir.path(), 1, 7);
    compress(dir.path(), 3, 7);
    build_index(dir.path(), 1).unwrap();
    build_index(dir.path(), 2).unwrap();
    (log, dir)
}

#[test]
fn every_search_gives_what_choosing_by_hand_gives() {
    let (log, dir) = log();
    let some = |text: &str| Some(text.to_owned());
    let at = |part: i64| {
        Some(encoding::at_text(1_775_000_000_000 + (log.at_ms - 1_775_000_000_000) * part / 10))
    };
    let parts: Vec<Query> = vec![
        Query::default(),
        Query { insured: some(&format!("{:032x}", 5)), ..Query::default() },
        Query { office: some("1370000003"), ..Query::default() },
        Query { staff: some("staff-4"), ..Query::default() },
        Query { terminal: some("office/1370000004/terminal/front-2"), ..Query::default() },
        Query { document: some("care-plan"), ..Query::default() },
        Query { reason: some("not_in_charge"), ..Query::default() },
        Query { reason: some("certificate_expired"), ..Query::default() },
        Query { action: some("certificate.issue"), ..Query::default() },
        Query { request_id: some("req-61"), ..Query::default() },
        Query { decision: some("allow"), ..Query::default() },
        Query { decision: some("deny"), ..Query::default() },
        Query { staff: some("staff-4"), decision: some("deny"), ..Query::default() },
        Query { office: some("1370000003"), document: some("care-plan"), ..Query::default() },
        Query { office: some("nobody"), ..Query::default() },
    ];
    let mut results = 0;
    for part in parts {
        for (from, until) in
            [(None, None), (at(3), None), (None, at(4)), (at(2), at(7)), (at(9), at(1))]
        {
            let query = Query { from, until, ..part.clone() };
            let expected = by_hand(dir.path(), &query);
            assert_eq!(run(dir.path(), &query), expected, "{query:?}");
            results += expected.len();
        }
    }
    assert!(results > 1000, "{results}");
}

#[test]
fn a_completion_in_a_later_segment_is_put_to_its_decision() {
    let mut log = Crafted::new();
    log.push(&sample(16));
    log.push(&sample(6));
    log.checkpoint();
    log.begin_segment();
    log.push(&sample(17));
    log.checkpoint();
    log.begin_segment();
    log.push(&sample(7));
    let dir = log.write();
    for indexed in [false, true] {
        if indexed {
            build_index(dir.path(), 1).unwrap();
            build_index(dir.path(), 2).unwrap();
        }
        let query = Query { office: Some("1370000002".into()), ..Query::default() };
        let found = run(dir.path(), &query);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].completion.as_ref().map(|entry| entry.number), Some(4));
        let query = Query { action: Some("certificate.issue".into()), ..Query::default() };
        let found = run(dir.path(), &query);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].completion.as_ref().map(|entry| entry.number), Some(6));
    }
}

#[test]
fn a_decision_without_completion_is_given_without() {
    let mut log = Crafted::new();
    log.push(&sample(16));
    log.at_ms += JOIN_MS_MAX + 1;
    log.push(&sample(18));
    log.push(&sample(17));
    let found = run(log.write().path(), &Query::default());
    // The completion came too late to belong to it.
    let given: Vec<_> =
        found.iter().map(|found| (found.entry.number, found.completion.is_some())).collect();
    assert_eq!(given, [(1, false), (2, false), (3, false)]);
}

#[test]
fn more_results_than_are_held_back_are_given_all_the_same() {
    let mut log = Crafted::new();
    log.push(&sample(16));
    for _ in 0..HELD_MAX + 500 {
        log.push_json(br#"{"event":"service_stopped"}"#);
    }
    let found = run(log.write().path(), &Query::default());
    assert_eq!(found.len(), HELD_MAX + 501);
    assert!(found.windows(2).all(|pair| pair[0].entry.number < pair[1].entry.number));
}

#[test]
fn progress_is_told_and_segments_out_of_time_are_left_out() {
    let (log, dir) = log();
    let mut told = Vec::new();
    let mut tell = |progress: SearchProgress| told.push(progress);
    let query = Query { staff: Some("staff-4".into()), ..Query::default() };
    let found = search(dir.path(), &query, &mut tell).count() as u64;
    assert_eq!(told.len(), 5);
    let last = told.last().unwrap();
    assert_eq!((last.segments_done, last.segments, last.records_found), (5, 5, found));
    let from = Some(encoding::at_text(log.at_ms - 10));
    let mut told = Vec::new();
    let mut tell = |progress: SearchProgress| told.push(progress);
    let query = Query { from, ..Query::default() };
    assert!(search(dir.path(), &query, &mut tell).count() > 0);
    assert_eq!(told.last().map(|progress| progress.segments), Some(1));
}

#[test]
fn damage_ends_the_search_with_an_error() {
    let mut log = Crafted::of(2, 20);
    log.segments[0][5] = b"no record\n".to_vec();
    let mut ignore = |_| {};
    let dir = log.write();
    let results: Vec<_> = search(dir.path(), &Query::default(), &mut ignore).collect();
    assert!(matches!(results.last(), Some(Err(Error::Damaged { line: 6, .. }))));
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
}
