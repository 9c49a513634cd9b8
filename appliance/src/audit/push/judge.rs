//! Whether the newest head of a log may be brought out: it must continue the last proved one, and
//! every one that was accepted since.
//!
//! Invariants: every proof begins at the last proved head, which only a proof moves; an alarm about
//! a log that was cut or written anew stands until a proof succeeds, over restarts too.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use audit_log::{Checkpoint, ProofError, VerifyingKey};

use crate::layout::Part;

use super::super::heads::LogState;

/// What is to be done with the newest head.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The log has none yet.
    Nothing,
    /// It is kept back: an alarm stands, and nothing new is known.
    Withheld,
    /// It may be brought out.
    Sound { head: Checkpoint, is_proved: bool },
}

/// Why it is not brought out.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) text: String,
    /// Whether it stays until a proof succeeds.
    pub(super) stands: bool,
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self { text: format!("{error:#}"), stands: false }
    }
}

fn standing(error: &anyhow::Error) -> Trouble {
    Trouble { text: format!("{error:#}"), stands: true }
}

/// Judges heads; remembers when the next proof may be made.
#[derive(Debug, Default)]
pub(super) struct Judge {
    next_proof: Mutex<BTreeMap<Part, Instant>>,
}

impl Judge {
    /// Judges the newest head of a log by what is known of the ones before.
    ///
    /// # Errors
    /// When it cannot be read or is not signed by the pinned key; when records were cut off, or
    /// the head does not continue one that was brought out.
    pub(super) fn judge(
        &self,
        part: Part,
        folder: &Path,
        key: &VerifyingKey,
        before: &LogState,
    ) -> Result<Verdict, Trouble> {
        let head = audit_log::latest_checkpoint(folder, key).map_err(anyhow::Error::from)?;
        let Some(accepted) = &before.accepted else {
            // The first one: everything after is measured by it.
            let sound = |head| Verdict::Sound { head, is_proved: true };
            return Ok(head.map_or(Verdict::Nothing, sound));
        };
        let earlier = |note: &str| -> anyhow::Result<Checkpoint> {
            Checkpoint::open(note, key)
                .with_context(|| format!("the head that was brought out last: {ADVICE}"))
        };
        let accepted = earlier(accepted)?;
        let proved = before.proved.as_ref().map_or(Ok(accepted.clone()), |note| earlier(note))?;
        let head = head.with_context(|| {
            let size = accepted.size();
            format!(
                "the log has no head any more, and one over {size} records was brought out: \
                 {ADVICE}"
            )
        });
        let head = head.map_err(|error| standing(&error))?;
        is_not_smaller(&accepted, &head).map_err(|error| standing(&error))?;
        if head.size() == proved.size() && head.root() == proved.root() {
            return Ok(Verdict::Sound { head, is_proved: true });
        }
        self.prove(part, folder, key, (&proved, &accepted, head), before.stands)
    }

    /// On a large log a proof takes a while: then it is not made for every head. While an alarm
    /// stands no head passes without.
    fn prove(
        &self,
        part: Part,
        folder: &Path,
        key: &VerifyingKey,
        (proved, accepted, head): (&Checkpoint, &Checkpoint, Checkpoint),
        alarm_stands: bool,
    ) -> Result<Verdict, Trouble> {
        let now = Instant::now();
        let mut next_proof = self.next_proof.lock().unwrap_or_else(PoisonError::into_inner);
        if next_proof.get(&part).is_some_and(|not_before| now < *not_before) {
            return Ok(if alarm_stands {
                Verdict::Withheld
            } else {
                Verdict::Sound { head, is_proved: false }
            });
        }
        let shown = continues(folder, key, proved, &head).and_then(|first| {
            let is_between = accepted.size() > proved.size() && accepted.size() < head.size();
            let second = is_between.then(|| continues(folder, key, accepted, &head));
            second.map_or(Ok(first), |second| second.map(|second| first && second))
        });
        let pause = now.elapsed() * PROOF_PAUSE;
        let pause = if shown.is_err() { pause.max(FAILED_PAUSE) } else { pause };
        next_proof.insert(part, now + pause);
        match shown {
            // What retention has deleted cannot be shown here, and clears no alarm.
            Ok(false) if alarm_stands => Ok(Verdict::Withheld),
            Ok(_) => Ok(Verdict::Sound { head, is_proved: true }),
            Err(error) => Err(standing(&error)),
        }
    }
}

fn is_not_smaller(before: &Checkpoint, head: &Checkpoint) -> anyhow::Result<()> {
    anyhow::ensure!(
        head.size() >= before.size(),
        "the newest head covers {} records, and one over {} records was brought out: records were \
         cut off: {ADVICE}",
        head.size(),
        before.size()
    );
    anyhow::ensure!(
        head.size() > before.size() || head.root() == before.root(),
        "two heads over {} records differ: the log was written anew: {ADVICE}",
        head.size()
    );
    Ok(())
}

/// Whether a head is shown to continue an earlier, smaller one; `false` when retention has deleted
/// what that takes (the tombstone proves it, to `audit verify`).
///
/// # Errors
/// When it does not continue it.
fn continues(
    folder: &Path,
    key: &VerifyingKey,
    before: &Checkpoint,
    head: &Checkpoint,
) -> anyhow::Result<bool> {
    let proof = match audit_log::prove_consistency(folder, before, head) {
        Ok(proof) => proof,
        Err(ProofError::Deleted { .. }) => return Ok(false),
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "the head over {} records is not shown to continue the one over {}: {ADVICE}",
                    head.size(),
                    before.size()
                )
            });
        }
    };
    audit_log::check_consistency_proof(&proof, key)
        .map(|_| true)
        .with_context(|| format!("the log's proof for its newest head is wrong: {ADVICE}"))
}

/// What to do about a log that does not continue.
const ADVICE: &str = "look with `sekisho audit verify --heads`; after restoring a backup on \
    purpose, remove run/heads.json";

/// Proofs take at most one part in so many of the time.
const PROOF_PAUSE: u32 = 20;

/// After a proof that failed the next one waits at least so long.
const FAILED_PAUSE: Duration = Duration::from_secs(5);
