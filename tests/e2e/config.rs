//! The configuration files that are shipped are right, and every program can say so.

use std::fs;
use std::path::Path;

use e2e::{System, program, run};

const PROGRAMS: [(&str, &str); 4] = [
    ("gateway", "sekisho-gateway"),
    ("ra", "sekisho-ra"),
    ("signer", "sekisho-signer"),
    ("hub", "sekisho-hub"),
];

#[test]
fn the_files_that_up_writes_pass_check_config() {
    let system = System::shared();
    for (part, name) in PROGRAMS {
        let file = system.path(&format!("config/{part}.toml"));
        run(program(name), ["--config", file.to_str().unwrap(), "--check-config"]).ok();
    }
}

#[test]
fn every_shipped_file_passes_check_config_with_the_paths_of_a_box() {
    let system = System::shared();
    let data = system.data().to_str().unwrap().to_owned();
    let paths = [
        ("/etc/sekisho/servers", format!("{data}/ca/servers")),
        ("/etc/sekisho", data.clone()),
        ("/var/lib/sekisho", data.clone()),
        ("/run/sekisho", format!("{data}/run")),
        // The keys and certificates of this box are a demo's.
        ("demo = false", "demo = true".to_owned()),
        ("\"0.0.0.0:", "\"127.0.0.1:".to_owned()),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../appliance/config");
    for entry in fs::read_dir(&folder).unwrap() {
        let shipped = entry.unwrap().path();
        let name = shipped.file_name().unwrap().to_str().unwrap().to_owned();
        let part = PROGRAMS.iter().find(|(part, _)| name == format!("{part}.toml"));
        let (_, program_name) = part.unwrap_or_else(|| panic!("no program reads {name}"));
        let text = fs::read_to_string(&shipped).unwrap();
        let text = paths.iter().fold(text, |text, (from, to)| text.replace(from, to));
        let file = system.scratch().join(format!("shipped-{name}"));
        fs::write(&file, text).unwrap();
        let args = ["--config", file.to_str().unwrap(), "--check-config"];
        run(program(program_name), args).ok();
    }
}

#[test]
fn a_missing_or_broken_config_is_one_line_and_64() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.toml");
    fs::write(&broken, "listen = \n").unwrap();
    for (_, name) in PROGRAMS {
        let check = |file: &Path| {
            run(program(name), ["--config", file.to_str().unwrap(), "--check-config"])
        };
        check(&folder.path().join("absent.toml")).refused(64, &["absent.toml"]);
        check(&broken).refused(64, &["broken.toml"]);
    }
}
