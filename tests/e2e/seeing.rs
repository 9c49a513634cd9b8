//! What the operator sees of a running gateway.

use e2e::System;
use serde_json::Value;

use crate::scenes::{document, readable_survey};

#[test]
fn top_shows_who_asks_and_what_is_refused() {
    let system = System::start();
    let insured = system.person(8_001);
    let (token, _) = readable_survey(&system, &insured);
    let office = system.care_management();
    let stranger = document(&system.person(8_002), "certification-survey");
    let readable = document(&insured, "certification-survey");
    // Two looks, a second apart: requests must fall between them.
    let told: Value = std::thread::scope(|scope| {
        let top = scope.spawn(|| system.sekisho(["top", "--once", "--json"]).ok().json());
        while !top.is_finished() {
            for path in [&readable, &stranger] {
                system.curl(&office.name).token(&token).get(path).send();
            }
        }
        top.join().unwrap()
    });
    let party = format!("office/{}", office.office.as_ref().unwrap());
    let mut parties = told["parties"].as_array().unwrap().iter();
    let own = parties.find(|found| found["party"] == party.as_str()).expect("the office");
    assert!(!own["name"].as_str().unwrap().is_empty(), "{own}");
    let rate = |value: &Value| value.as_f64().unwrap();
    let (asked, refused) = (rate(&own["requests_per_second"]), rate(&own["denied_per_second"]));
    assert!(refused > 0.0 && asked > refused, "{own}");
    assert!(rate(&told["denials_per_second"]["not_registered"]) > 0.0, "{told}");
    assert!(told["handshakes_per_second"].as_object().is_some_and(|all| !all.is_empty()));
    let text = system.sekisho(["top", "--once"]).ok().stdout;
    assert!(text.contains(&party) && text.contains("REQUESTS/S"), "{text}");
}
