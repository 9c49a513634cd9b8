//! The secrets of a data folder, made once: the permit key, the pseudonym key, the key of the facts
//! that the gateway keeps, and the two feed keys. The hub makes its own staff token key on first
//! start.
//!
//! Invariants: an existing secret is never replaced; every file has mode 0600.

use std::path::Path;

use anyhow::Context as _;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use policies::feed::{Signer, Source};

use crate::exit::usage;
use crate::files;
use crate::layout::Layout;

/// The public halves of the feed keys, base64.
#[derive(Debug, Clone)]
pub(crate) struct FeedKeys {
    /// Of the cert-authority's feed.
    pub(crate) ca_public: String,
    /// Of the hub's feed.
    pub(crate) hub_public: String,
}

/// Makes what is missing and returns the public feed keys.
///
/// # Errors
/// When a file cannot be written, or an existing key is not usable.
pub(crate) fn ensure(layout: &Layout) -> anyhow::Result<FeedKeys> {
    for name in ["permit.key", "pseudonym.key", "facts-copy.key"] {
        let path = layout.secret(name);
        if !path.exists() {
            files::write_private(&path, &random::<32>()?)?;
        }
        is_file(&path)?;
    }
    // The hub makes this one; what is no file would be refused there in other words.
    let staff_token = layout.secret("staff-token.pkcs8");
    if staff_token.exists() {
        is_file(&staff_token)?;
    }
    Ok(FeedKeys {
        ca_public: feed_key(&layout.secret("feed-ca.pkcs8"), Source::Ca)?,
        hub_public: feed_key(&layout.secret("feed-hub.pkcs8"), Source::Hub)?,
    })
}

fn feed_key(path: &Path, source: Source) -> anyhow::Result<String> {
    if !path.exists() {
        let der = Signer::generate_pkcs8().context("feed key cannot be made")?;
        files::write_private(path, &der)?;
    }
    public_half(path, source)
}

/// The public half of a feed key, base64.
///
/// # Errors
/// When the file is no readable key.
pub(crate) fn public_half(path: &Path, source: Source) -> anyhow::Result<String> {
    is_file(path)?;
    let signer = Signer::from_pkcs8(source, &files::read(path)?)
        .with_context(|| format!("key file `{}`", path.display()))?;
    Ok(signer.public_key())
}

fn is_file(path: &Path) -> anyhow::Result<()> {
    if path.is_file() {
        return Ok(());
    }
    Err(usage(format!(
        "key file `{}` is not a file: move what has its name away and restore the key from the \
         backup",
        path.display()
    )))
}

/// Random bytes of the system.
///
/// # Errors
/// When the system has none.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gave no random bytes"))?;
    Ok(bytes)
}

/// A random text of `length` letters and digits (Crockford's base32, 5 bits each).
///
/// # Errors
/// As [`random`].
pub(crate) fn random_text(length: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    while text.len() < length {
        let [byte] = random::<1>()?;
        text.push(char::from(ALPHABET[usize::from(byte % 32)]));
    }
    Ok(text)
}

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        files::private_folder(&layout.secret("")).unwrap();
        let first = ensure(&layout).unwrap();
        let permit = files::read(&layout.secret("permit.key")).unwrap();
        let second = ensure(&layout).unwrap();
        assert_eq!(permit.len(), 32);
        assert_eq!(permit, files::read(&layout.secret("permit.key")).unwrap());
        assert_eq!(first.ca_public, second.ca_public);
        assert_ne!(first.ca_public, first.hub_public);
        std::fs::write(layout.secret("feed-ca.pkcs8"), b"no key").unwrap();
        let error = ensure(&layout).unwrap_err();
        assert!(format!("{error:#}").contains("feed-ca.pkcs8"), "{error:#}");
    }

    #[test]
    fn a_folder_in_place_of_a_key_is_said_as_such() {
        let keys = ["permit.key", "pseudonym.key", "feed-ca.pkcs8", "feed-hub.pkcs8"];
        for name in keys.into_iter().chain(["staff-token.pkcs8"]) {
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout::new(folder.path()).unwrap();
            files::private_folder(&layout.secret(name)).unwrap();
            let error = ensure(&layout).unwrap_err();
            let expected = format!("{name}` is not a file");
            assert!(error.to_string().contains(&expected), "{error:#}");
            assert_eq!(crate::exit::exit_code(&error), 64);
        }
    }

    #[test]
    fn random_texts_have_their_length_and_differ() {
        let (one, other) = (random_text(20).unwrap(), random_text(20).unwrap());
        assert!(one.len() == 20 && one != other);
    }
}
