//! What was done once may be done again: `up` on a running or stopped box, `tour` on an old folder.

use std::fs;

use e2e::System;

use crate::scenes::{readable_survey, survey_becomes};

#[test]
fn up_again_keeps_everything() {
    let system = System::start();
    let office = system.care_management().clone();
    let insured = system.person(4_001);
    let (token, _) = readable_survey(&system, &insured);
    let files = ["ca/root.pem", "ca/issuing.pem", "secrets/permit.key", "config/hub.toml"];
    let read = |system: &System| files.map(|file| fs::read(system.path(file)).unwrap());
    let kept = (read(&system), fs::read(&office.cert).unwrap(), system.pid("hub"));

    system.sekisho(["up", "--demo", "--detach"]).ok();
    assert_eq!((read(&system), fs::read(&office.cert).unwrap(), system.pid("hub")), kept);

    let again = system.stop().start();
    assert_eq!((read(&again), fs::read(&office.cert).unwrap()), (kept.0, kept.1));
    survey_becomes(&again, again.care_management(), &token, &insured, (200, ""));

    again.sekisho(["status"]).ok();
    let stopped = again.stop();
    let data = stopped.data();
    // Nothing is left to stop; saying so is no failure.
    e2e::sekisho(["down", "--data", data.to_str().unwrap()]).ok();
}

#[test]
fn the_tour_succeeds_twice_on_one_folder() {
    let start = System::prepare();
    let data = start.data();
    for _ in 0..2 {
        let tour = e2e::sekisho(["tour", "--data", data.to_str().unwrap()]).ok();
        // What the verifier says of damaged copies stands behind an arrow.
        let failed = tour.stdout.lines().any(|line| line.trim_start().starts_with('✗'));
        assert!(tour.stdout.contains('✓') && !failed, "{tour}");
        assert!(start.running().is_empty(), "{:?}", start.running());
    }
}
