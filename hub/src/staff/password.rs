//! Staff passwords: argon2id with the parameters that OWASP recommends, off the async threads.
//!
//! Invariants: at most [`AT_ONCE_MAX`] hashes run at a time (19 MiB each); checking the password of
//! an unknown staff id costs the same as a wrong one.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use axum::http::StatusCode;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::refusal::Refusal;

/// Hashes and checks passwords, a bounded number at once.
pub(crate) struct Passwords {
    permits: Arc<Semaphore>,
}

impl Passwords {
    pub(crate) fn new() -> Self {
        // Made now, so that the first login of an unknown id takes no longer than the next.
        LazyLock::force(&NOBODY);
        Self { permits: Arc::new(Semaphore::new(AT_ONCE_MAX)) }
    }

    /// The PHC string of a new password, with a random salt.
    pub(crate) async fn hash(&self, password: Zeroizing<String>) -> Result<String, Refusal> {
        self.run(move || hash(password.as_bytes())).await?
    }

    /// Whether `password` is the one of `stored`; without `stored` it takes as long and is wrong.
    pub(crate) async fn verify(
        &self,
        password: Zeroizing<String>,
        stored: Option<String>,
    ) -> Result<bool, Refusal> {
        self.run(move || {
            let known = stored.is_some();
            let hash = stored.unwrap_or_else(|| NOBODY.clone());
            let fits = argon2().is_ok_and(|argon2| {
                argon2.verify_password(password.as_bytes(), hash.as_str()).is_ok()
            });
            known && fits
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let acquired = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.permits).acquire_owned());
        let permit = acquired.await.ok().and_then(Result::ok).ok_or_else(busy)?;
        let run = move || {
            let value = work();
            drop(permit);
            value
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| Refusal::Internal(Box::new(error)))
    }
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

const AT_ONCE_MAX: usize = 2;
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
        assert!(passwords.verify(word("correct horse"), Some(stored.clone())).await.unwrap());
        assert!(!passwords.verify(word("wrong horse"), Some(stored)).await.unwrap());
        assert!(!passwords.verify(word("nobody"), None).await.unwrap());
    }
}
