//! The secrets of a data folder, made once: the permit key, the pseudonym key and the two feed
//! keys. The hub makes its own staff token key on first start.
//!
//! Invariants: an existing secret is never replaced; every file has mode 0600.

use std::path::Path;

use anyhow::Context as _;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use policies::feed::{Signer, Source};

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
    refuse_lost_pseudonyms(layout)?;
    for name in ["permit.key", "pseudonym.key"] {
        let path = layout.secret(name);
        if !path.exists() {
            files::write_private(&path, &random::<32>()?)?;
        }
    }
    Ok(FeedKeys {
        ca_public: feed_key(&layout.secret("feed-ca.pkcs8"), Source::Ca)?,
        hub_public: feed_key(&layout.secret("feed-hub.pkcs8"), Source::Hub)?,
    })
}

/// A new pseudonym key beside old records would part each person's records in two, unseen.
fn refuse_lost_pseudonyms(layout: &Layout) -> anyhow::Result<()> {
    let key = layout.secret("pseudonym.key");
    let has_records = ["gateway", "hub"].iter().any(|part| {
        let entries = std::fs::read_dir(layout.root().join("audit").join(part));
        entries.is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| is_segment(&entry.path())))
        })
    });
    anyhow::ensure!(
        key.exists() || !has_records,
        "key file `{}` is missing, and there are audit records made with it: restore it from the \
         backup",
        key.display()
    );
    Ok(())
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

fn feed_key(path: &Path, source: Source) -> anyhow::Result<String> {
    if !path.exists() {
        let der = Signer::generate_pkcs8().context("feed key cannot be made")?;
        files::write_private(path, &der)?;
    }
    let signer = Signer::from_pkcs8(source, &files::read(path)?)
        .with_context(|| format!("key file `{}`", path.display()))?;
    Ok(signer.public_key())
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
        std::fs::create_dir_all(layout.root().join("audit/hub")).unwrap();
        std::fs::write(layout.root().join("audit/hub/00000001.jsonl"), b"").unwrap();
        std::fs::rename(layout.secret("pseudonym.key"), layout.secret("away")).unwrap();
        let error = ensure(&layout).unwrap_err().to_string();
        assert!(error.contains("pseudonym.key` is missing"), "{error}");
        std::fs::rename(layout.secret("away"), layout.secret("pseudonym.key")).unwrap();
        std::fs::write(layout.secret("feed-ca.pkcs8"), b"no key").unwrap();
        let error = ensure(&layout).unwrap_err();
        assert!(format!("{error:#}").contains("feed-ca.pkcs8"), "{error:#}");
    }

    #[test]
    fn random_texts_have_their_length_and_differ() {
        let (one, other) = (random_text(20).unwrap(), random_text(20).unwrap());
        assert!(one.len() == 20 && one != other);
    }
}
