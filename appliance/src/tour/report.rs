//! What the tour prints: for each check what it did, what came back, and ✓ or ✗.
//!
//! Invariant: a check that fails ends the tour ([`Surprise`]), so nothing after it builds on sand.

use std::fmt;
use std::time::Instant;

use serde_json::json;

use crate::output;

use super::exchange::Answer;

/// The running report.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    step: u8,
    checks: u32,
    started: Instant,
}

/// A check that failed; it was already printed.
#[derive(Debug)]
struct Surprise;

impl fmt::Display for Surprise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the tour met something that should not be")
    }
}

impl std::error::Error for Surprise {}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, step: 0, checks: 0, started: Instant::now() }
    }

    /// A line that is no check; standard error when data is JSON.
    pub(super) fn say(&self, text: &str) {
        if self.json { output::progress(text) } else { output::line(text) }
    }

    /// Begins a step of the main job, or a further part of the same step.
    pub(super) fn step(&mut self, number: u8, title: &str) {
        self.step = number;
        self.say(&format!("\n■ {number}. {title}"));
    }

    /// One check. `came` may have several lines.
    ///
    /// # Errors
    /// [`Surprise`] when it is not `as_expected`.
    pub(super) fn check(
        &mut self,
        does: &str,
        came: &str,
        expected: &str,
        as_expected: bool,
    ) -> anyhow::Result<()> {
        if self.json {
            let line = json!({
                "step": self.step, "does": does, "came": came, "expected": expected,
                "ok": as_expected,
            });
            output::line(&line.to_string());
        } else {
            let mark = if as_expected { '✓' } else { '✗' };
            output::line(&format!("  {mark} {does}"));
            for line in came.lines() {
                output::line(&format!("      → {line}"));
            }
            if !as_expected {
                output::line(&format!("      期待した結果: {expected}"));
            }
        }
        self.checks += u32::from(as_expected);
        if as_expected { Ok(()) } else { Err(Surprise.into()) }
    }

    /// An answer that should have this status.
    pub(super) fn answered(
        &mut self,
        does: &str,
        answer: &Answer,
        status: u16,
    ) -> anyhow::Result<()> {
        self.check(does, &answer.to_string(), &status.to_string(), answer.status == status)
    }

    /// A refusal that should have this status and code.
    pub(super) fn refused(
        &mut self,
        does: &str,
        answer: &Answer,
        status: u16,
        code: &str,
    ) -> anyhow::Result<()> {
        let fits = answer.status == status && answer.code() == code;
        self.check(does, &answer.to_string(), &format!("{status} {code}"), fits)
    }

    /// Prints how the tour ended; whether everything was as it should be.
    pub(super) fn finish(&mut self, walked: &anyhow::Result<()>) -> bool {
        if let Err(error) = walked
            && !error.is::<Surprise>()
        {
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            // The check itself could not be made: that is as much a surprise as a wrong answer.
            let _told = self.check("次の確認を行う", &chain.join(": "), "確認できること", false);
        }
        let (checks, seconds) = (self.checks, self.started.elapsed().as_secs_f32());
        let all = walked.is_ok();
        if self.json {
            output::line(&json!({"checks": checks, "ok": all, "seconds": seconds}).to_string());
        } else if all {
            output::line(&format!(
                "\n✓ すべて期待どおりでした（確認 {checks} 件、{seconds:.1} 秒）"
            ));
        } else {
            output::line(&format!(
                "\n✗ 期待と異なる結果があったため、ここで終了します（✓ {checks} 件）"
            ));
        }
        all
    }
}
