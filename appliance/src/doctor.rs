//! `sekisho doctor`: looks at everything that commonly goes wrong, one line each with ✓ or ✗ and
//! what to do. Exit code 1 if anything is wrong. Changes nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use x509_parser::pem::Pem;

use crate::admin::{self, Admin};
use crate::audit::heads;
use crate::audit_keys::{self, Pins};
use crate::cert;
use crate::cli::Context;
use crate::clock;
use crate::files;
use crate::layout::{Layout, Part};
use crate::output;
use crate::part_config;
use crate::process;
use crate::settings::Settings;
use crate::status::{self, Health};
use crate::supervisor::{LISTENERS, Status};

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    name: String,
    good: bool,
    text: String,
}

impl Check {
    fn good(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), good: true, text: text.into() }
    }

    fn bad(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), good: false, text: text.into() }
    }
}

/// Runs `doctor`.
///
/// # Errors
/// When the folder is none of ours.
pub(crate) async fn run(context: &Context) -> anyhow::Result<bool> {
    let layout = &context.layout;
    layout.must_exist()?;
    let running = status::running(layout).unwrap_or_default();
    let mut checks = vec![settings(layout)];
    checks.extend(programs());
    checks.extend(key_files(layout));
    checks.extend(certificates(layout));
    checks.push(disk(layout.root()));
    checks.extend(audit_folders(layout));
    checks.extend(audit_keys_and_heads(layout, running.is_some()));
    checks.extend(ports(layout, running.as_ref()));
    checks.extend(parts(layout, running.as_ref()).await);
    checks.extend(gateway(running.as_ref()).await);
    checks.extend(issued(layout, running.as_ref()).await);
    let good = checks.iter().all(|check| check.good);
    output::data(context.json, &to_json(&checks, good), || to_text(&checks));
    Ok(good)
}

fn settings(layout: &Layout) -> Check {
    match Settings::read(&layout.settings()) {
        Ok(settings) if settings.demo => Check::good("settings", "demo folder"),
        Ok(_) => Check::good("settings", "production folder"),
        Err(error) => Check::bad("settings", format!("{error:#}")),
    }
}

fn programs() -> Vec<Check> {
    Part::ALL
        .iter()
        .filter_map(|part| process::program(part.program()).err())
        .map(|error| Check::bad("program", error.to_string()))
        .collect()
}

/// Every key must be readable by its owner alone.
fn key_files(layout: &Layout) -> Vec<Check> {
    let folders = [layout.secret(""), layout.ca(""), layout.ca("servers")];
    let mut files: Vec<PathBuf> = folders.iter().flat_map(|folder| listed(folder)).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "key" || kind == "pkcs8"));
    let loose: Vec<Check> = files.iter().filter_map(|file| wrong_key_file(file)).collect();
    if loose.is_empty() {
        vec![Check::good(
            "key files",
            format!("{} files, readable by their owner only", files.len()),
        )]
    } else {
        loose
    }
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

/// What is wrong with a key file, if anything.
fn wrong_key_file(file: &Path) -> Option<Check> {
    let found = std::fs::metadata(file).ok()?;
    let mode = found.permissions().mode() & 0o777;
    let path = output::shell_quoted(&file.display().to_string());
    if !found.is_file() {
        let text = format!("{path} is not a file: restore the key from the backup");
        return Some(Check::bad("key files", text));
    }
    (mode & 0o077 != 0).then(|| {
        Check::bad("key files", format!("mode {mode:03o} on {path}: run `chmod 600 {path}`"))
    })
}

/// Every certificate must be valid by this machine's clock, and not end soon.
fn certificates(layout: &Layout) -> Vec<Check> {
    let mut files = vec![layout.ca("root.pem"), layout.ca("issuing.pem")];
    for part in [Part::Ra, Part::Gateway] {
        files.extend(part_config::value(layout, part, "server_certificate").map(PathBuf::from));
    }
    let mut found: Vec<PathBuf> = listed(&layout.demo(""));
    found.retain(|folder| folder.join("cert.pem").is_file());
    found.sort();
    files.extend(found.iter().map(|folder| folder.join("cert.pem")));
    files.iter().map(|file| certificate(file, clock::now_s())).collect()
}

fn certificate(file: &Path, now_s: u64) -> Check {
    let name = format!("certificate {}", short(file));
    let bytes = match files::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return Check::bad(name, format!("{error:#}")),
    };
    let validity = Pem::iter_from_buffer(&bytes).next().and_then(Result::ok).and_then(|pem| {
        let parsed = pem.parse_x509().ok()?;
        let validity = parsed.validity();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    });
    let Some((not_before, not_after)) = validity else {
        return Check::bad(name, format!("`{}` holds no certificate", file.display()));
    };
    let now = i64::try_from(now_s).unwrap_or_default();
    let days = (not_after - now) / 86_400;
    let until = clock::text(not_after);
    if now < not_before {
        let from = clock::text(not_before);
        let clock_says = clock::text(now);
        Check::bad(name, format!("valid only from {from}, the clock says {clock_says}: set it"))
    } else if now > not_after {
        Check::bad(name, format!("expired {until}: renew it"))
    } else if days < NEAR_EXPIRY_DAYS {
        Check::bad(name, format!("ends in {days} days ({until}): renew it"))
    } else {
        Check::good(name, format!("valid until {until}"))
    }
}

/// The last two names of a path.
fn short(file: &Path) -> String {
    let names: Vec<String> = file
        .components()
        .map(|component| component.as_os_str().to_string_lossy().into_owned())
        .collect();
    names.get(names.len().saturating_sub(2)..).unwrap_or_default().join("/")
}

fn disk(root: &Path) -> Check {
    match rustix::fs::statvfs(root) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let mib = free / (1024 * 1024);
            if free < DISK_BYTES_MIN {
                Check::bad("disk", format!("{mib} MiB free: the audit log needs room, free some"))
            } else {
                Check::good("disk", format!("{mib} MiB free"))
            }
        }
        Err(error) => Check::bad("disk", format!("`{}`: {error}", root.display())),
    }
}

fn audit_folders(layout: &Layout) -> Vec<Check> {
    let bad: Vec<Check> = Part::ALL
        .iter()
        .map(|part| layout.audit(*part))
        .filter_map(|folder| {
            let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
            let error = rustix::fs::access(&folder, access).err()?;
            let text = format!("`{}` cannot be written ({error})", folder.display());
            Some(Check::bad("audit folder", text))
        })
        .collect();
    if bad.is_empty() { vec![Check::good("audit folders", "writable")] } else { bad }
}

/// Keys and pins must belong together, records must soon be under a signed head, and heads must
/// leave.
fn audit_keys_and_heads(layout: &Layout, is_running: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    let wrong: Vec<Check> = Part::ALL
        .iter()
        .filter_map(|part| audit_keys::state(layout, *part).err())
        .map(|error| Check::bad("audit keys", format!("{error:#}")))
        .collect();
    if wrong.is_empty() {
        let pins = layout.pins();
        checks.push(Check::good("audit keys", format!("as pinned in `{}`", pins.display())));
    }
    checks.extend(wrong);
    if let Ok(pins) = Pins::read(&layout.pins()) {
        let parts = Part::ALL.iter();
        checks.extend(parts.filter_map(|part| checkpoint(layout, *part, &pins, is_running)));
    }
    checks.push(heads_outside(layout, is_running));
    checks
}

/// The newest head of one log, and how far the records are ahead of it.
fn checkpoint(layout: &Layout, part: Part, pins: &Pins, is_running: bool) -> Option<Check> {
    let name = format!("head of {}", part.as_str());
    let folder = match audit_keys::log_folder(layout, part) {
        Ok(folder) => folder,
        Err(error) => return Some(Check::bad(name, format!("{error:#}"))),
    };
    let changed = |file: &Path| std::fs::metadata(file).and_then(|found| found.modified()).ok();
    let mut segments = listed(&folder);
    segments.retain(|file| file.extension().is_some_and(|kind| kind == "jsonl"));
    let records = segments.iter().filter_map(|file| changed(file)).max();
    let head = match audit_log::latest_checkpoint(&folder, pins.of(part)?) {
        Ok(head) => head,
        Err(error) => return Some(Check::bad(name, error.to_string())),
    };
    // Without any head yet the segment's own age counts.
    let signed = match head {
        Some(_) => changed(&folder.join("checkpoint")),
        None => records,
    };
    let newest = if head.is_some() { records? } else { SystemTime::now() };
    let behind = newest.duration_since(signed?).map_or(0, |behind| behind.as_secs());
    Some(match head {
        _ if is_running && behind > HEAD_ALARM_S => Check::bad(
            name,
            format!("{behind} s behind the newest records: look at the part's log"),
        ),
        Some(head) => {
            Check::good(name, format!("over {} records, signed {}", head.size(), head.time()))
        }
        None => Check::good(name, "none yet: the first comes within a second or two"),
    })
}

fn heads_outside(layout: &Layout, is_running: bool) -> Check {
    let name = "heads outside";
    let sinks = Settings::read(&layout.settings()).ok().and_then(|settings| settings.heads);
    let Some(sinks) = sinks.filter(|sinks| !sinks.is_empty()) else {
        let settings = layout.settings();
        return Check::bad(
            name,
            format!(
                "no sink: records cut off at the end would not be seen: write one under \
                 [audit.heads] of `{}`",
                settings.display()
            ),
        );
    };
    if let Some(folder) = sinks.file_drop.filter(|folder| folder.starts_with(layout.root())) {
        let text = "lies in the data folder: who can write one can write the other";
        return Check::bad(name, format!("`{}` {text}", folder.display()));
    }
    match heads::health(layout, is_running) {
        Ok(told) => Check::good(name, told),
        Err(problems) => Check::bad(name, problems),
    }
}

/// A running box must hold its ports; for a stopped one they must be free.
fn ports(layout: &Layout, running: Option<&Status>) -> Vec<Check> {
    let configured = LISTENERS.iter().filter_map(|(part, key, name)| {
        let address = part_config::value(layout, *part, key).ok()?;
        Some((*name, address))
    });
    configured.map(|(name, address)| port(name, &address, running.is_some())).collect()
}

fn port(name: &str, address: &str, is_running: bool) -> Check {
    let label = format!("port {name}");
    let taken = std::net::TcpListener::bind(address).err();
    match (is_running, taken) {
        (true, Some(_)) => Check::good(label, format!("{address} is served")),
        (true, None) => Check::bad(label, format!("nobody listens on {address}: `sekisho status`")),
        (false, None) => Check::good(label, format!("{address} is free")),
        (false, Some(error)) => {
            let advice = "stop the program that uses it, or choose another with `sekisho up`";
            Check::bad(label, format!("{address} ({error}): {advice}"))
        }
    }
}

async fn parts(layout: &Layout, running: Option<&Status>) -> Vec<Check> {
    if running.is_none() {
        return vec![Check::bad("box", "not running: start it with `sekisho up`")];
    }
    let lines = status::lines(layout, running).await;
    lines
        .iter()
        .map(|line| {
            let good = line.health == Health::Up;
            Check { name: line.name().to_owned(), good, text: line.why().to_owned() }
        })
        .collect()
}

/// What the gateway says of its feeds and its audit log.
async fn gateway(running: Option<&Status>) -> Vec<Check> {
    let Some(Ok(address)) = running.map(|status| status.address("admin")) else {
        return Vec::new();
    };
    match admin::get_plain(&address.to_string(), "/readyz").await {
        Ok(answer) => readiness(&answer.body),
        Err(error) => vec![Check::bad("readiness", format!("{error:#}"))],
    }
}

/// Certificates that the CA issued and that end soon.
async fn issued(layout: &Layout, running: Option<&Status>) -> Option<Check> {
    running?;
    let name = "issued certificates";
    Some(match Admin::ra(layout).get("/certificates").await {
        Ok(answer) => ending(&cert::items(&answer), &clock::text_in_days(NEAR_EXPIRY_DAYS)),
        Err(error) => Check::bad(name, format!("{error:#}")),
    })
}

/// RFC 3339 in UTC sorts as text.
fn ending(items: &[&Value], limit: &str) -> Check {
    let mut active: Vec<&&Value> = items
        .iter()
        .filter(|item| output::field(item, "state") == "active")
        .filter(|item| output::field(item, "profile") != "short-lived")
        .collect();
    let all = active.len();
    active.retain(|item| output::field(item, "not_after").as_str() < limit);
    let named: Vec<String> = active
        .iter()
        .take(NAMED_MAX)
        .map(|item| format!("{} ({})", output::field(item, "serial"), output::field(item, "party")))
        .collect();
    if active.is_empty() {
        Check::good("issued certificates", format!("{all} in force, none ends soon"))
    } else {
        let (count, names) = (active.len(), named.join(", "));
        let text = format!("{count} end within {NEAR_EXPIRY_DAYS} days, renew them: {names}");
        Check::bad("issued certificates", text)
    }
}

fn readiness(body: &Value) -> Vec<Check> {
    let mut checks = Vec::new();
    for (part, limit_ms) in [("feed_ca", FEED_ALARM_MS), ("feed_hub", FEED_ALARM_MS)] {
        let age = body["parts"][part]["age_ms"].as_u64();
        checks.push(match age {
            Some(age) if age <= limit_ms => Check::good(part, format!("{age} ms old")),
            Some(age) => Check::bad(part, format!("{age} ms old: look at its part's log")),
            None => Check::bad(part, "never heard: look at its part's log"),
        });
    }
    let audit = body["parts"]["audit"]["ok"].as_bool().unwrap_or(false);
    checks.push(if audit {
        Check::good("gateway audit", "records are written")
    } else {
        Check::bad("gateway audit", "records cannot be written: look at disk and folder modes")
    });
    checks
}

fn to_json(checks: &[Check], good: bool) -> Value {
    let list: Vec<Value> = checks
        .iter()
        .map(|check| json!({"check": check.name, "ok": check.good, "text": check.text}))
        .collect();
    json!({"ok": good, "checks": list})
}

fn to_text(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let mark = if check.good { "✓" } else { "✗" };
        format!("{mark} {}: {}", check.name, check.text)
    };
    checks.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Certificates that end within this many days are named.
const NEAR_EXPIRY_DAYS: i64 = 30;

/// At most this many certificates are named.
const NAMED_MAX: usize = 5;

/// Less free disk than this is named, in bytes.
const DISK_BYTES_MIN: u64 = 1024 * 1024 * 1024;

/// Records this much newer than the head over them are named, in seconds (a head is signed each
/// second).
const HEAD_ALARM_S: u64 = 10;

/// Feeds older than this are named, in milliseconds (design: alarm at 3 s).
const FEED_ALARM_MS: u64 = 3_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loose_key_files_are_named_with_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        files::private_folder(&layout.secret("")).unwrap();
        let key = layout.secret("permit.key");
        files::write_private(&key, b"k").unwrap();
        assert!(key_files(&layout).iter().all(|check| check.good));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        let checks = key_files(&layout);
        assert!(!checks[0].good && checks[0].text.contains("chmod 600"), "{checks:?}");
        std::fs::remove_file(&key).unwrap();
        std::fs::create_dir(&key).unwrap();
        let checks = key_files(&layout);
        assert!(!checks[0].good && checks[0].text.contains("is not a file"), "{checks:?}");
    }

    #[test]
    fn certificates_are_measured_by_the_clock() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cert.pem");
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, 12, 31);
        std::fs::write(&file, parameters.self_signed(&key).unwrap().pem()).unwrap();
        let at = |year, month, day| {
            let at = rcgen::date_time_ymd(year, month, day).unix_timestamp();
            certificate(&file, u64::try_from(at).unwrap())
        };
        assert!(at(2026, 6, 1).good);
        assert!(at(2025, 6, 1).text.contains("set it"));
        assert!(at(2026, 12, 20).text.contains("ends in 11 days"));
        assert!(at(2027, 6, 1).text.contains("expired"));
        std::fs::write(&file, "no").unwrap();
        assert!(!at(2026, 6, 1).good);
    }

    #[test]
    fn old_feeds_and_a_closed_audit_log_are_named() {
        let good = json!({"parts": {"feed_ca": {"age_ms": 10}, "feed_hub": {"age_ms": 20},
            "audit": {"ok": true}}});
        assert!(readiness(&good).iter().all(|check| check.good));
        let bad = json!({"parts": {"feed_ca": {"age_ms": 9000}, "feed_hub": {}}});
        assert!(readiness(&bad).iter().all(|check| !check.good));
    }

    #[test]
    fn issued_certificates_that_end_soon_are_named() {
        let entry = |serial: &str, state: &str, not_after: &str| {
            let party = "office/1";
            json!({"serial": serial, "state": state, "not_after": not_after, "party": party})
        };
        let (near, far) = ("2026-01-02T00:00:00Z", "2027-01-01T00:00:00Z");
        let items =
            [entry("0a", "active", near), entry("0b", "revoked", near), entry("0c", "active", far)];
        let items: Vec<&Value> = items.iter().collect();
        let check = ending(&items, "2026-02-01T00:00:00Z");
        assert!(!check.good && check.text.contains("0a (office/1)"), "{check:?}");
        assert!(!check.text.contains("0b") && !check.text.contains("0c"), "{check:?}");
        assert!(ending(&items, "2026-01-01T00:00:00Z").good);
    }

    #[test]
    fn a_taken_port_is_good_only_for_a_running_box() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(port("gateway", &address, true).good);
        assert!(!port("gateway", &address, false).good);
    }
}
