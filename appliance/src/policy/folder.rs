//! `sekisho policy check|test|sign`: a policy folder, before it is used.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use policies::bundle::{self, Files, MATRIX, Policy, SIGNATURES, cases, signature};
use policies::matrix::Matrix;
use policies::problem::Problem;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::{OwnTerms, place};
use crate::cli::Context;
use crate::exit::usage;
use crate::files;
use crate::output::{self, progress};

/// Arguments of `policy sign`.
#[derive(Debug, clap::Args)]
pub(crate) struct Sign {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The operator who agrees, as named in `policy.operators` of config/gateway.toml
    #[arg(long, value_name = "NAME")]
    operator: String,
    /// The operator's private key: Ed25519, PKCS#8, PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Runs `check`.
///
/// # Errors
/// When the folder or the configuration cannot be read.
pub(super) async fn check(paths: &[PathBuf], context: &Context) -> anyhow::Result<bool> {
    let terms = OwnTerms::with_offices(&context.layout).await?;
    let (shown, checked) = match paths {
        [dir] if dir.is_dir() => (Some(dir.as_path()), texts(dir).and_then(|it| terms.load(&it))),
        paths => (None, some_files(paths, &terms)?),
    };
    Ok(report(shown, &checked, context))
}

/// Prints what a check found; whether it is good.
pub(super) fn report(
    dir: Option<&Path>,
    checked: &Result<Policy, Vec<Problem>>,
    context: &Context,
) -> bool {
    match checked {
        Ok(policy) => {
            let value = json!({ "ok": true, "problems": [], "policy": summary(policy) });
            output::data(context.json, &value, || good(policy));
        }
        Err(problems) => {
            let value = json!({ "ok": false, "problems": problems });
            let inside = dir.map_or(String::new(), |dir| format!("{}/", dir.display()));
            let line = |problem: &Problem| format!("{inside}{problem}");
            let text = || problems.iter().map(line).collect::<Vec<_>>().join("\n");
            output::data(context.json, &value, text);
            progress(&format!("refused: {} problem(s)", problems.len()));
        }
    }
    checked.is_ok()
}

/// What a good policy is, as JSON.
pub(super) fn summary(policy: &Policy) -> Value {
    let matrix = &policy.matrix;
    let overlay = |it: &policies::overlay::Overlay| {
        let (name, asks, source) = (&it.name, it.describe(), &it.source);
        json!({ "name": name, "asks": asks, "source": source })
    };
    json!({
        "version": matrix.version(),
        "profile": matrix.profile(),
        "overlays": matrix.overlays().iter().map(overlay).collect::<Vec<_>>(),
        "changes": policy.changes,
        "cases": policy.cases,
    })
}

fn good(policy: &Policy) -> String {
    let matrix = &policy.matrix;
    let mut lines = vec![format!(
        "good: version {}, profile {}, {} case(s) pass",
        matrix.version(),
        matrix.profile(),
        policy.cases
    )];
    for overlay in matrix.overlays().iter() {
        lines.push(format!("  {}: {}  [{}]", overlay.name, overlay.describe(), overlay.source));
    }
    for change in &policy.changes {
        let word = if change.widens { "opens" } else { "closes" };
        lines.push(format!("  {word} {}: {} → {}", change.cell, change.before, change.after));
    }
    lines.join("\n")
}

fn texts(dir: &Path) -> Result<Files, Vec<Problem>> {
    bundle::folder::read(dir)
}

/// Some files of a policy, without the rest of it: the cases may be missing then.
fn some_files(paths: &[PathBuf], terms: &OwnTerms) -> anyhow::Result<Result<Policy, Vec<Problem>>> {
    let mut texts = Files::new();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| usage(format!("`{}` is not a file", path.display())))?;
        let own = [MATRIX, bundle::MANIFEST, bundle::CASES, SIGNATURES].contains(&name.as_str());
        let inside = if own { name } else { format!("overlays/{name}") };
        let bytes = files::read_given(path)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| usage(format!("file `{}` is not UTF-8", path.display())))?;
        texts.insert(inside, text);
    }
    let has_cases = texts.contains_key(bundle::CASES);
    let without_cases = |problems: Vec<Problem>| -> Vec<Problem> {
        let other = |problem: &Problem| has_cases || problem.file != bundle::CASES;
        problems.into_iter().filter(other).collect()
    };
    Ok(match terms.load(&texts).map_err(without_cases) {
        Err(problems) if problems.is_empty() => {
            progress("note: files only; check the folder to run its cases");
            let matrix = Matrix::builtin(terms.profile()).context("the matrix does not load")?;
            Ok(Policy { matrix, changes: Vec::new(), cases: 0 })
        }
        checked => checked,
    })
}

/// Runs `test`.
///
/// # Errors
/// When the folder cannot be read or has no cases.
pub(super) fn test(dir: &Path, context: &Context) -> anyhow::Result<bool> {
    let texts = place::read(dir)?;
    let cases = cases::parse(&texts).map_err(|problems| place::refused(&problems))?;
    if cases.is_empty() {
        return Err(usage(format!("`{}` has no cases: write tests.json", dir.display())));
    }
    // The cases of a policy that does not load because of them are what is to be seen.
    let loose: Files = texts.into_iter().filter(|(path, _)| path != bundle::CASES).collect();
    let matrix = OwnTerms::read(&context.layout)?.matrix_of(&loose);
    let matrix = matrix.map_err(|problems| place::refused(&problems))?;
    let mut ran = Vec::new();
    for case in &cases {
        ran.push(cases::run(case, &matrix).map_err(|(what, hint)| {
            usage(format!("case `{}`: {what}; hint: {hint}", case.name))
        })?);
    }
    let passed = ran.iter().filter(|case| case.passed).count();
    let text = || {
        let line = |case: &cases::Ran| {
            let sign = if case.passed { "ok    " } else { "FAILED" };
            let reasons: Vec<&'static str> = case.reasons.iter().map(|it| it.as_str()).collect();
            let reasons = reasons.join(", ");
            format!("{sign} {}: {} {reasons}", case.name, word(case.decision)).trim_end().to_owned()
        };
        let lines: Vec<String> = ran.iter().map(line).collect();
        format!("{}\n{passed} of {} passed", lines.join("\n"), ran.len())
    };
    let value = json!({ "ok": passed == ran.len(), "passed": passed, "cases": ran });
    output::data(context.json, &value, text);
    Ok(passed == ran.len())
}

const fn word(decision: cases::Expected) -> &'static str {
    match decision {
        cases::Expected::Allow => "allow",
        cases::Expected::Deny => "deny",
    }
}

/// Runs `sign`.
///
/// # Errors
/// When the folder or the key cannot be read.
pub(super) fn sign(args: &Sign, context: &Context) -> anyhow::Result<bool> {
    let mut texts = place::read(&args.folder)?;
    let profile = OwnTerms::read(&context.layout)?.profile();
    let version = bundle::version(&texts, profile);
    let pem = files::read_given(&args.key)?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| {
        usage(format!("key file `{}` holds no PEM private key", args.key.display()))
    })?;
    let signed = signature::sign(&args.operator, key.secret_pkcs8_der(), &version)
        .map_err(|error| usage(format!("key file `{}`: {error}", args.key.display())))?;
    let file = texts.entry(SIGNATURES.to_owned()).or_default();
    file.push_str(&signed);
    let path = args.folder.join(SIGNATURES);
    std::fs::write(&path, file.as_bytes())
        .with_context(|| format!("file `{}` cannot be written", path.display()))?;
    let value = json!({ "version": version, "operator": args.operator });
    let text = || format!("{} signed version {version}", args.operator);
    output::data(context.json, &value, text);
    Ok(true)
}
