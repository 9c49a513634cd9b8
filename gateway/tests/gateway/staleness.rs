//! A feed that falls silent is told first, then denied in stages; when it is back the answers are
//! right again, on the connections that there were.

use std::time::{Duration, Instant};

use policies::decide::Leases;

use crate::harness::{Client, Setup, World};
use crate::{CARD, SURVEY, code, consent, office};

/// Stages a second apart, so that each can be seen on a slow machine.
const SHORT: &str = "
[staleness]
alarm_ms = 700
hub_consent_ms = 1700
hub_deny_ms = 2700
ca_deny_ms = 2700
";

async fn world() -> World {
    World::start_with(Setup { tables: SHORT.to_owned(), ..Setup::default() }).await
}

/// Asks for two documents until the answers are `wanted`, and returns every pair of answers that
/// came before, without repetitions. The connection must live through all of it.
async fn until(client: &mut Client, headers: &str, wanted: [&str; 2]) -> Vec<[String; 2]> {
    let (start, mut seen) = (Instant::now(), Vec::new());
    loop {
        let mut answers = [String::new(), String::new()];
        for (answer, path) in answers.iter_mut().zip([CARD, SURVEY]) {
            let reply = client.get(path, headers).await.unwrap();
            *answer = if reply.status == 200 { "200".into() } else { code(&reply).to_owned() };
        }
        let is_last = answers == wanted;
        if seen.last() != Some(&answers) {
            seen.push(answers);
        }
        if is_last {
            return seen;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "never {wanted:?}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Two requests are not asked at one moment: a stage may begin between them.
fn in_order(seen: &[[String; 2]], expected: &[[&str; 2]]) {
    let mut at = seen.iter();
    for pair in expected {
        assert!(at.any(|found| found == pair), "{pair:?} is missing or late in {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_hub_takes_consent_first_and_then_everything_and_gives_it_back() {
    let world = world().await;
    let (party, headers) = office(&world, 1).await;
    world.hub.send(consent(None));
    let mut client = world.client(&party).await;
    until(&mut client, &headers, ["200", "200"]).await;
    world.metric("sekisho_feed_stage{feed=\"hub\"} 0").await;
    world.hub.mute(true);
    // T1 denies nothing.
    world.metric("sekisho_feed_stage{feed=\"hub\"} 1").await;
    let seen = until(&mut client, &headers, ["facts_stale", "facts_stale"]).await;
    in_order(&seen, &[["200", "200"], ["200", "facts_stale"], ["facts_stale", "facts_stale"]]);
    assert!(seen.len() <= 4, "{seen:?}");
    world.metric("sekisho_feed_stage{feed=\"hub\"} 3").await;
    world.metric("sekisho_feed_stage{feed=\"ca\"} 0").await;
    assert!(world.admin_get("/readyz").await.starts_with("HTTP/1.1 503"));
    // What changed meanwhile holds from the first answer on.
    world.hub.send(consent(Some(1)));
    world.hub.mute(false);
    let seen = until(&mut client, &headers, ["200", "consent_withdrawn"]).await;
    assert!(!seen.iter().any(|[_, survey]| survey == "200"), "{seen:?}");
    world.metric("sekisho_feed_stage{feed=\"hub\"} 0").await;
    assert!(world.admin_get("/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_cert_authority_is_told_first_and_then_everything_is_denied() {
    let world = world().await;
    let (party, headers) = office(&world, 1).await;
    world.hub.send(consent(None));
    let mut client = world.client(&party).await;
    until(&mut client, &headers, ["200", "200"]).await;
    world.ca.mute(true);
    world.metric("sekisho_feed_stage{feed=\"ca\"} 1").await;
    let seen = until(&mut client, &headers, ["facts_stale", "facts_stale"]).await;
    in_order(&seen, &[["200", "200"], ["facts_stale", "facts_stale"]]);
    world.metric("sekisho_feed_stage{feed=\"ca\"} 3").await;
    world.ca.mute(false);
    until(&mut client, &headers, ["200", "200"]).await;
    world.metric("sekisho_feed_stage{feed=\"ca\"} 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_makes_no_silent_feed_young() {
    let mut world = world().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    until(&mut client, &headers, ["200", "consent_required"]).await;
    world.hub.mute(true);
    until(&mut client, &headers, ["facts_stale", "facts_stale"]).await;
    drop(client);
    world.stop().await;
    world.begin().await;
    world.ready().await;
    // From its first moment on: no answer in between says otherwise.
    let mut client = world.client(&party).await;
    for _ in 0..20 {
        let reply = client.get(CARD, &headers).await.unwrap();
        assert_eq!((reply.status, code(&reply)), (503, "facts_stale"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.metric("sekisho_feed_stage{feed=\"hub\"} 3").await;
    world.hub.mute(false);
    until(&mut client, &headers, ["200", "consent_required"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_after_the_lease_is_withheld() {
    let world = world().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    until(&mut client, &headers, ["200", "consent_required"]).await;
    // Nothing changes, and so the facts are of one generation from first to last.
    let slow = format!("{CARD}?wait-ms=4500");
    assert_eq!(client.get(&slow, &headers).await.unwrap().status, 200);
    world.ca.mute(true);
    let reply = client.get(&slow, &headers).await.unwrap();
    assert_eq!((reply.status, code(&reply)), (503, "facts_stale"));
    world.ca.mute(false);
    until(&mut client, &headers, ["200", "consent_required"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_may_be_shorter_than_what_others_count_on_and_never_longer() {
    let world = world().await;
    let path = world.dir.path().join("gateway.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let load = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        std::fs::write(&path, good.replace(from, to)).unwrap();
        gateway::config::Config::load(&path)
    };
    let told = Leases { hub_consent_ms: 1_700, hub_deny_ms: 2_700, ca_deny_ms: 2_700 };
    assert_eq!(load("", "").unwrap().stages.leases, told);
    for (from, to, key) in [
        ("ca_deny_ms = 2700", "ca_deny_ms = 60001", "`staleness.ca_deny_ms`"),
        ("hub_deny_ms = 2700", "hub_deny_ms = 10001", "`staleness.hub_deny_ms`"),
        ("hub_consent_ms = 1700", "hub_consent_ms = 2701", "`staleness`"),
        ("alarm_ms = 700", "alarm_ms = 0", "`staleness`"),
        ("alarm_ms = 700", "alarm_ms = 1701", "`staleness`"),
        ("ca_deny_ms = 2700", "ca_deny_ms = 699", "`staleness`"),
    ] {
        let refused = load(from, to).err().unwrap().to_string();
        assert!(refused.contains(key), "{to}: {refused}");
    }
}
