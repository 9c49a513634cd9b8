//! Bad input: one clear line that names the file and the key or line, exit 64 or 1, no panic, and a
//! half-done start leaves nothing running.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use e2e::{Start, System, sekisho, wait_until};

/// A stopped box whose data folder can be spoiled.
fn stopped() -> Start {
    System::start().stop()
}

fn append(path: &Path, text: &str) {
    let before = fs::read_to_string(path).unwrap();
    fs::write(path, format!("{text}\n{before}")).unwrap();
}

fn nothing_left_running(start: &Start) {
    wait_until("the half-started box to be gone", 15, || start.running().is_empty().then_some(()));
}

#[test]
fn an_unusable_data_folder_is_named() {
    let start = stopped();

    // Each case spoils one thing, starts, and puts it right again.
    let config = |name: &str| start.data().join("config").join(name);
    for part in ["gateway", "hub", "ra", "signer"] {
        let path = config(&format!("{part}.toml"));
        let before = fs::read(&path).unwrap();
        append(&path, "colour = \"blue\"");
        start.try_up().refused(64, &[&format!("{part}.toml"), "colour"]);
        nothing_left_running(&start);
        fs::write(&path, before).unwrap();
    }

    let key = start.data().join("secrets/permit.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let ran = start.try_up();
    assert!([1, 64].contains(&ran.code), "{ran}");
    ran.refused(ran.code, &["permit.key", "chmod 600"]);
    nothing_left_running(&start);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    for key in ["trust_anchors", "server_certificate"] {
        let path = config("gateway.toml");
        let before = fs::read_to_string(&path).unwrap();
        let lines = before.lines().map(|line| match line.split_once(" = ") {
            Some((name, _)) if name == key => format!("{key} = \"/absent.pem\""),
            _ => line.to_owned(),
        });
        fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
        start.try_up().refused(64, &["gateway.toml", key, "/absent.pem"]);
        nothing_left_running(&start);
        fs::write(&path, before).unwrap();
    }

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = start.try_up_with(&["--gateway-listen", &address]);
    assert!([1, 64].contains(&ran.code), "{ran}");
    ran.refused(ran.code, &[&address]);
    nothing_left_running(&start);
    drop(taken);

    // With everything put right it starts again.
    start.start();
}

#[test]
fn a_wrong_office_file_is_refused_with_its_line_and_nothing_is_kept() {
    let system = System::shared();
    let before = system.sekisho(["office", "list", "--json"]).ok().json();
    let file = system.scratch().join("offices.csv");
    let cases = [
        ("number,name,service_types,medical\n9970000999,A,43,false\n13700,B,43,false\n", "line 3"),
        ("number,name,service_types,medical\n9970000999,A,43\n", "line 2"),
        ("nummer,name\n", "line 1"),
    ];
    for (text, line) in cases {
        fs::write(&file, text).unwrap();
        let ran = system.sekisho(["office", "import", file.to_str().unwrap()]);
        assert!([1, 64].contains(&ran.code), "{ran}");
        ran.refused(ran.code, &["offices.csv", line]);
    }
    assert_eq!(system.sekisho(["office", "list", "--json"]).ok().json(), before);
}

#[test]
fn wrong_usage_is_answered_with_usage_and_64() {
    let missing = ["--data", "/tmp/sekisho-no-such-folder"];
    for (args, words) in [
        (&["fly"][..], &["fly"][..]),
        (&["cert", "revoke"], &["SERIAL"]),
        (&["status", "--data", missing[1]], &["sekisho-no-such-folder"]),
        (&["down", "--data", missing[1]], &["sekisho-no-such-folder"]),
        (&["audit", "verify", "--data", missing[1]], &["sekisho-no-such-folder"]),
    ] {
        sekisho(args).refused(64, words);
    }
}

#[test]
fn unknown_offices_and_serials_are_named() {
    let system = System::shared();
    for args in [&["office", "show", "1399999999"][..], &["cert", "show", "00ff00ff"]] {
        let ran = system.sekisho(args.iter().copied());
        assert!([1, 64].contains(&ran.code), "{ran}");
        let named = args[2].trim_start_matches('0');
        ran.refused(ran.code, &[named]);
    }
    // A serial that this RA did not issue may still be a stolen one: it is revoked, and said.
    let revoked = system.sekisho(["cert", "revoke", "ff00ff", "--reason", "key-compromise"]).ok();
    assert!(revoked.stdout.contains("not issued by this RA"), "{revoked}");
}
