//! Facts that are kept on disk: what a gateway that starts again may decide from.

use std::time::Duration;

use policies::feed::Fact;

use crate::harness::{OFFICE, Party, World, now};
use crate::{CARD, bearer};

async fn status(world: &World, party: &Party) -> Option<u16> {
    let headers = bearer(&world.token(party, "s1", now() + 600));
    let config = std::sync::Arc::new(world.client_config(Some(party)));
    let mut client = world.connect(config).await.ok()?;
    Some(client.get(CARD, &headers).await.ok()?.status)
}

fn terminals(world: &World) -> (Party, Party) {
    let terminal =
        |name, serial| world.pki.client(&format!("office/{OFFICE}/terminal/{name}"), serial);
    (terminal("front-1", 21), terminal("back-1", 22))
}

async fn revoke(world: &World, party: &Party) {
    world.ca.send(Fact::Revoked { serial: party.serial.parse().unwrap(), at: now() });
    while status(world, party).await == Some(200) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_starts_again_goes_on_where_it_stood() {
    let mut world = World::start().await;
    let (front, back) = terminals(&world);
    revoke(&world, &back).await;
    world.stop().await;
    world.begin().await;
    world.ready().await;
    assert_eq!(status(&world, &front).await, Some(200));
    assert_eq!(status(&world, &back).await, None, "still revoked");
    for _ in 0..100 {
        if world.ca.had().len() == 2 && world.hub.had().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.ca.had(), [None, Some(1)], "no second snapshot");
    assert_eq!(world.hub.had(), [None, Some(0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_feeds_gone_a_restart_takes_no_revocation_back_and_makes_nothing_young() {
    let mut world = World::start().await;
    let (front, back) = terminals(&world);
    revoke(&world, &back).await;
    world.stop().await;
    world.ca.cut();
    world.hub.cut();
    world.begin().await;
    world.ready().await;
    assert_eq!(status(&world, &back).await, None, "still revoked");
    // The hub's facts are as old as they were: served for ten seconds and no longer.
    let first = status(&world, &front).await;
    assert!(first == Some(200) || first == Some(503), "{first:?}");
    tokio::time::sleep(Duration::from_secs(11)).await;
    world.stop().await;
    world.begin().await;
    world.ready().await;
    assert_eq!(status(&world, &front).await, Some(503), "facts_stale, not young again");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_facts_that_were_changed_are_refused_and_a_snapshot_is_taken() {
    let mut world = World::start().await;
    let (front, back) = terminals(&world);
    revoke(&world, &back).await;
    world.stop().await;
    let path = world.dir.path().join("facts/ca.facts");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    world.begin().await;
    world.ready().await;
    assert_eq!(world.ca.had(), [None, None], "a snapshot, not the damaged copy");
    assert_eq!(status(&world, &front).await, Some(200));
    assert_eq!(status(&world, &back).await, None, "still revoked");
}
