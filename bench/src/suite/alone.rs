//! The measurements that need no load over the network: audit records, decisions, and the issuing
//! of certificates by a box of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::results::Results;
use super::session::{Session, words};

/// Audit records on the disk of the work folder.
///
/// # Errors
/// If the measurement fails.
pub(crate) fn audit(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let records = if session.quick { "60000" } else { "300000" };
    let dir = session.work.display().to_string();
    let args = words(&["audit", "--dir", &dir, "--records", records, "--json"]);
    let answer = session.answer(&args, None, Duration::from_secs(120))?;
    results.audit = Some(answer);
    Ok(())
}

/// Decisions among as many registrations as the goal names.
///
/// # Errors
/// If the measurement fails.
pub(crate) fn decide(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let registrations = if session.quick { "4000000" } else { "40000000" };
    let args = words(&["decide", "--registrations", registrations, "--json"]);
    let cpu = session.pins.server_cpu;
    let answer = session.answer(&args, Some(cpu), Duration::from_secs(240))?;
    results.decision = Some(answer);
    Ok(())
}

/// Certificates from a box that is started for it, on all cores.
///
/// # Errors
/// If the box does not start or the measurement fails.
pub(crate) fn issuing(session: &mut Session, results: &mut Results) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("box-")
        .tempdir_in(&session.work)
        .context("cannot make a folder for the box")?;
    let data = folder.path().join("data");
    let sekisho = session.beside("sekisho");
    let data_name = data.display().to_string();
    let up = words(&["up", "--demo", "--detach", "--data", &data_name]);
    let begun = session.output(&sekisho, &up, None, Duration::from_secs(90));
    let measured =
        begun.context("no box for issuing").and_then(|_| issue(session, &data, &sekisho));
    let down = words(&["down", "--data", &data_name]);
    let ended = session.output_always(&sekisho, &down, Duration::from_secs(60));
    // A box that did not come up has nothing to end: what went wrong first is told.
    results.issuing = Some(measured?);
    ended?;
    Ok(())
}

fn issue(
    session: &mut Session,
    data: &Path,
    sekisho: &Path,
) -> anyhow::Result<super::answers::IssuingAnswer> {
    let certificates = if session.quick { "500" } else { "4000" };
    let (data, sekisho) = (data.display().to_string(), sekisho.display().to_string());
    let mut args = words(&["issuing", "--data", &data, "--sekisho", &sekisho]);
    args.extend(words(&["--certificates", certificates, "--json"]));
    session.answer(&args, None, Duration::from_secs(150))
}
