//! The signed heads of the logs leave the box, to each kind of sink, and show there what was cut
//! off here.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::{System, audit_copy, datagrams, https, run, sekisho, unix_datagrams, wait_until};

use crate::scenes::readable_survey;

/// The heads of the gateway's log in a file drop.
fn drop_of_gateway(heads: &Path) -> PathBuf {
    let folders = fs::read_dir(heads).unwrap().map(|entry| entry.unwrap().path());
    let mut folders = folders.filter(|folder| folder.to_str().unwrap().ends_with("_gateway"));
    folders.next().expect("heads of the gateway")
}

fn origin_is_gateway(note: &str) -> bool {
    note.lines().next().is_some_and(|origin| origin.ends_with("/gateway"))
}

fn write_sinks(settings: &Path, heads: &Path, more: &[(&str, &str)]) {
    let text = fs::read_to_string(settings).unwrap();
    let before = text.split("[audit.heads]").next().unwrap();
    let mut text = format!("{before}[audit.heads]\nfile_drop = \"{}\"\n", heads.display());
    for (key, value) in more {
        text.push_str(&format!("{key} = \"{value}\"\n"));
    }
    fs::write(settings, text).unwrap();
}

#[test]
fn heads_reach_every_kind_of_sink_and_show_a_log_that_was_cut_back() {
    let system = System::start();
    let (settings, heads) = (system.path("config/sekisho.toml"), system.heads());
    let log = system.path("audit/gateway");
    let trust = system.trust().to_str().unwrap().to_owned();
    let (web, syslog) = (https(&system), datagrams());
    let stopped = system.stop();
    let older = stopped.scratch().join("older");
    run("cp", ["-r", log.to_str().unwrap(), older.to_str().unwrap()]).ok();
    let sinks = [("http", web.target.as_str()), ("http_trust", &trust), ("syslog", &syslog.target)];
    write_sinks(&settings, &heads, &sinks);
    let system = stopped.start();
    readable_survey(&system, &system.person(8_001));
    let size_before = size(&older.join("checkpoint"));
    let posted = web.wait_for("a head by HTTPS", |note| {
        (origin_is_gateway(note) && size_of(note) > size_before).then(|| note.to_owned())
    });
    let sent = syslog.wait_for("a head by syslog", |message| {
        message.contains("/gateway\" size=\"").then(|| message.to_owned())
    });
    assert!(sent.starts_with("<109>1 ") && sent.contains(" checkpoint [checkpoint@"), "{sent}");
    let own = drop_of_gateway(&heads);
    wait_until("the posted head in the file drop", 20, || {
        let file = own.join(format!("{:020}.checkpoint", size_of(&posted)));
        // A sink may skip a head that a newer one has overtaken.
        let newest = size(&own.join("latest"));
        let same = fs::read_to_string(file).is_ok_and(|note| note == posted);
        (same || newest > size_of(&posted)).then_some(())
    });
    let status = system.sekisho(["status"]).ok();
    let line = status.stdout.lines().find(|line| line.starts_with("audit-push")).unwrap();
    assert!(line.contains("up") && line.contains("last "), "{status}");
    let drop_text = heads.to_str().unwrap().to_owned();
    system.sekisho(["audit", "verify", "--heads", &drop_text]).ok();
    // Where no head of a log lies, nothing is shown.
    let nowhere = settings.parent().unwrap().to_str().unwrap().to_owned();
    let seen = system.sekisho(["audit", "verify", "--heads", &nowhere]);
    assert_eq!(seen.code, 1, "{seen}");
    assert!(seen.stdout.contains("no head of `") && seen.stdout.contains(&nowhere), "{seen}");
    let stopped = system.stop();
    // The heads with which the programs closed their logs have left too.
    assert_eq!(size(&own.join("latest")), size(&log.join("checkpoint")));
    cut_back(&stopped.data(), &log, &older, &heads);
    one_more_sink(&stopped.data(), &settings, &heads, stopped.scratch());
}

/// The log as it was before stands in place of the newer one.
fn cut_back(data: &Path, log: &Path, older: &Path, heads: &Path) {
    let pins = data.with_file_name("data.audit-keys");
    let drop_text = heads.to_str().unwrap();
    audit_copy(older, &pins, &["verify"]).ok();
    let seen = audit_copy(older, &pins, &["verify", "--heads", drop_text]);
    assert_eq!(seen.code, 1, "{seen}");
    assert!(seen.stdout.starts_with('✗'), "{seen}");
    eprintln!("cut back to an older state: {}", seen.stdout.trim());
    let newer = data.with_file_name("newer");
    fs::rename(log, &newer).unwrap();
    run("cp", ["-r", older.to_str().unwrap(), log.to_str().unwrap()]).ok();
    let data_text = data.to_str().unwrap();
    let push = sekisho(["audit", "push", "--data", data_text]);
    assert_eq!(push.code, 1, "{push}");
    assert!(push.stdout.contains("records were cut off"), "{push}");
    // It stands: over another start, and whatever is done without a log that continues.
    let again = sekisho(["audit", "push", "--data", data_text]);
    assert_eq!(again.code, 1, "{again}");
    let doctor = sekisho(["doctor", "--data", data_text]);
    let told = doctor.stdout.lines().find(|line| line.contains("heads outside")).unwrap();
    assert!(told.starts_with('✗') && told.contains("cut off"), "{doctor}");
    fs::remove_dir_all(log).unwrap();
    fs::rename(&newer, log).unwrap();
    sekisho(["audit", "push", "--data", data_text]).ok();
}

/// A receiver on a unix socket, reached without a running box.
fn one_more_sink(data: &Path, settings: &Path, heads: &Path, scratch: &Path) {
    let local = unix_datagrams(&scratch.join("log.sock"));
    write_sinks(settings, heads, &[("syslog", &local.target)]);
    sekisho(["audit", "push", "--data", data.to_str().unwrap()]).ok();
    let count = || local.all().len();
    wait_until("the heads of four logs", 10, || (count() >= 4).then_some(()));
    sekisho(["audit", "push", "--data", data.to_str().unwrap()]).ok();
    assert_eq!(count(), 4, "each head once");
}

fn size(file: &Path) -> u64 {
    size_of(&fs::read_to_string(file).unwrap())
}

fn size_of(note: &str) -> u64 {
    note.lines().nth(1).unwrap().parse().unwrap()
}
