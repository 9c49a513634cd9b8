//! Staff passwords: argon2id with the parameters that OWASP recommends, off the async threads.
//!
//! Invariants: at most one hash a core runs at a time, or two on a single core (19 MiB each), and
//! of one office at most one, so that an office under guessing makes no other wait; checking the
//! password of an unknown staff id costs the same as a wrong one.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use axum::http::StatusCode;
use policies::identity::OfficeNumber;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::refusal::Refusal;

/// Hashes and checks passwords, a bounded number at once.
pub(crate) struct Passwords {
    slots: Arc<Semaphore>,
    turns: Mutex<HashMap<OfficeNumber, Arc<Semaphore>>>,
}

impl Passwords {
    pub(crate) fn new() -> Self {
        // Made now, so that the first login of an unknown id takes no longer than the next.
        LazyLock::force(&NOBODY);
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let slots = Arc::new(Semaphore::new(cores.max(SLOTS_MIN)));
        Self { slots, turns: Mutex::default() }
    }

    /// The PHC string of a new password, with a random salt.
    pub(crate) async fn hash(&self, password: Zeroizing<String>) -> Result<String, Refusal> {
        let deadline = Instant::now() + WAIT_MAX;
        self.run(deadline, move || hash(password.as_bytes())).await?
    }

    /// Whether `password` is the one of `stored`; without `stored` it takes as long and is wrong.
    /// Logins of one office are looked at one after the other.
    pub(crate) async fn verify(
        &self,
        office: OfficeNumber,
        password: Zeroizing<String>,
        stored: Option<String>,
    ) -> Result<bool, Refusal> {
        let deadline = Instant::now() + WAIT_MAX;
        let turn = wait(&self.turn_of(office), deadline).await?;
        self.run(deadline, move || {
            let _turn = turn;
            let known = stored.is_some();
            let hash = stored.unwrap_or_else(|| NOBODY.clone());
            let fits = argon2().is_ok_and(|argon2| {
                argon2.verify_password(password.as_bytes(), hash.as_str()).is_ok()
            });
            known && fits
        })
        .await
    }

    /// The one turn of the office; offices with no login under way are forgotten.
    fn turn_of(&self, office: OfficeNumber) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(office).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }

    async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let permit = wait(&self.slots, deadline).await?;
        let run = move || {
            let value = work();
            drop(permit);
            value
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| Refusal::Internal(Box::new(error)))
    }
}

/// A place in `queue`, first come first served, at `deadline` at the latest.
async fn wait(queue: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, Refusal> {
    let acquired = tokio::time::timeout_at(deadline, Arc::clone(queue).acquire_owned());
    acquired.await.ok().and_then(Result::ok).ok_or_else(busy)
}

fn hash(password: &[u8]) -> Result<String, Refusal> {
    let hash = argon2()?.hash_password(password);
    hash.map(|hash| hash.to_string()).map_err(|error| Refusal::Internal(error.to_string().into()))
}

/// argon2id, 19 MiB, 2 passes, 1 lane (OWASP Password Storage Cheat Sheet).
fn argon2() -> Result<Argon2<'static>, Refusal> {
    let params = Params::new(19 * 1024, 2, 1, Some(32))
        .map_err(|error| Refusal::Internal(error.to_string().into()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn busy() -> Refusal {
    Refusal::coded(
        StatusCode::SERVICE_UNAVAILABLE,
        "login_busy",
        "too many logins at once; try again in a moment",
        "ログインが混み合っています。しばらくしてから再度お試しください。",
    )
}

/// A hash that no password is checked against but in vain.
static NOBODY: LazyLock<String> = LazyLock::new(|| hash(b"nobody").unwrap_or_default());

const SLOTS_MIN: usize = 2;
const WAIT_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_right_password_fits_and_no_other() {
        let passwords = Passwords::new();
        let word = |text: &str| Zeroizing::new(text.to_owned());
        let stored = passwords.hash(word("correct horse")).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        let office = "1370000001".parse().unwrap();
        let check =
            async |text: &str, stored| passwords.verify(office, word(text), stored).await.unwrap();
        assert!(check("correct horse", Some(stored.clone())).await);
        assert!(!check("wrong horse", Some(stored)).await);
        assert!(!check("nobody", None).await);
    }

    #[tokio::test]
    async fn one_office_never_takes_more_than_one_slot() {
        let passwords = Passwords::new();
        let [busy, other] = ["1370000001", "1370000002"].map(|office| office.parse().unwrap());
        let turn = wait(&passwords.turn_of(busy), Instant::now()).await.unwrap();
        let began = Instant::now();
        assert!(!passwords.verify(other, Zeroizing::default(), None).await.unwrap());
        let enough = began.elapsed() * 3;
        let second = passwords.verify(busy, Zeroizing::default(), None);
        let second = tokio::time::timeout(enough, second).await;
        assert!(!matches!(second, Ok(Ok(_))), "a second login of the office did not wait");
        drop(turn);
        assert!(!passwords.verify(busy, Zeroizing::default(), None).await.unwrap());
        passwords.turn_of(other);
        assert_eq!(passwords.turns.lock().unwrap().len(), 1);
    }
}
