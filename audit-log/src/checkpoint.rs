//! Signed tree heads: C2SP tlog-checkpoints in signed notes, made by a log's own Ed25519 key.
//!
//! ```text
//! sekisho.example/audit/gateway          origin: the name of the log, and of its key
//! 1204                                   records covered
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2…=     Merkle root over them, base64
//! time 2026-04-01T09:00:00.000Z          extension line: when it was signed
//!
//! — sekisho.example/audit/gateway Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+…
//! ```
//!
//! The secret half lies in a file of its own (C2SP signer key, mode 0600); the public half
//! ([`VerifyingKey`]) is pinned where the box that writes the log can not change it.
//!
//! Sources: c2sp.org/signed-note, c2sp.org/tlog-checkpoint.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use signed_note::{Note, StandardSigner, StandardVerifier, Verifier, VerifierList};
use tlog_tiles::Hash;

use crate::encoding;

/// Longest checkpoint in bytes that is looked at.
pub const CHECKPOINT_BYTES_MAX: usize = 4096;

/// Why a key or checkpoint is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused something.
    #[error("audit key `{}` can not be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Others than the owner may read the secret key.
    #[error("audit key `{}` is readable by others: run chmod 600 on it", .0.display())]
    LooseMode(PathBuf),
    /// The text is not a key.
    #[error("{what} is not a C2SP key of a signed note (Ed25519)")]
    NotAKey {
        /// Which text.
        what: String,
    },
    /// A name that can not stand in a note.
    #[error("`{0}` can not name a log: no spaces, `+` or line ends, 1 to 200 characters")]
    BadName(String),
    /// The text does not have the form of a checkpoint.
    #[error("this is not a checkpoint")]
    Malformed,
    /// The checkpoint is that of another log.
    #[error("the checkpoint is that of `{found}`, not of `{wanted}`")]
    OtherLog {
        /// Its origin.
        found: String,
        /// The log whose key it was checked with.
        wanted: String,
    },
    /// The signature is not by the pinned key.
    #[error("the checkpoint was not signed by the pinned key of `{0}`")]
    BadSignature(String),
    /// The operating system gave no random bytes, or signing failed.
    #[error("no signature could be made")]
    Signing,
}

/// The secret half: signs the heads of one log.
#[derive(Clone)]
pub struct CheckpointKey {
    signer: StandardSigner,
    public: VerifyingKey,
}

impl fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointKey({}, secret hidden)", self.public.name)
    }
}

impl CheckpointKey {
    /// Makes a new key for the log `name`; returns the text of the key file too.
    ///
    /// # Errors
    /// [`CheckpointError::BadName`], [`CheckpointError::Signing`].
    pub fn generate(name: &str) -> Result<(Self, String), CheckpointError> {
        if !signed_note::is_key_name_valid(name) || name.len() > NAME_BYTES_MAX {
            return Err(CheckpointError::BadName(name.to_owned()));
        }
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| CheckpointError::Signing)?;
        let public = public_half(&seed)?;
        let id = signed_note::key_id(name, &public);
        let mut secret = vec![ED25519];
        secret.extend_from_slice(&seed);
        let text = format!("PRIVATE+KEY+{name}+{id:08x}+{}", STANDARD.encode(secret));
        Ok((Self::parse(&text, "the new key")?, text))
    }

    /// Reads a key file: one line, mode 0600.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::LooseMode`], [`CheckpointError::NotAKey`].
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let io_error = |source| CheckpointError::Io { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(io_error)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(CheckpointError::LooseMode(path.to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(io_error)?;
        Self::parse(text.trim_end(), &format!("`{}`", path.display()))
    }

    pub(crate) fn parse(text: &str, what: &str) -> Result<Self, CheckpointError> {
        let wrong = || CheckpointError::NotAKey { what: what.to_owned() };
        let signer = StandardSigner::new(text).map_err(|_| wrong())?;
        // The base64 alphabet has a `+`: the last field is all that is left.
        let fields: Vec<&str> = text.splitn(5, '+').collect();
        let [_, _, name, _, secret] = fields[..] else { return Err(wrong()) };
        let secret = STANDARD.decode(secret).map_err(|_| wrong())?;
        let public = public_half(secret.get(1..).ok_or_else(wrong)?)?;
        let id = signed_note::key_id(name, &public);
        let vkey = format!("{name}+{id:08x}+{}", STANDARD.encode(public));
        Ok(Self { signer, public: VerifyingKey::parse(&vkey)? })
    }

    /// The public half.
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    /// Signs the head of a log.
    pub(crate) fn sign(
        &self,
        size: u64,
        root: Hash,
        time: &str,
    ) -> Result<Checkpoint, CheckpointError> {
        let body = tlog_tiles::Checkpoint::new(&self.public.name, size, root, &extension(time))
            .map_err(|_| CheckpointError::Malformed)?;
        let note = self.sign_text(&body.to_bytes())?;
        Ok(Checkpoint { origin: self.public.name.clone(), size, root, time: time.to_owned(), note })
    }

    /// Signs any text as a note under the log's name.
    pub(crate) fn sign_text(&self, text: &[u8]) -> Result<String, CheckpointError> {
        let mut note = Note::new(text, &[]).map_err(|_| CheckpointError::Malformed)?;
        note.add_sigs(&[&self.signer]).map_err(|_| CheckpointError::Signing)?;
        String::from_utf8(note.to_bytes()).map_err(|_| CheckpointError::Malformed)
    }
}

/// The public half of a log's key, in C2SP's text form `<name>+<id>+<base64>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    text: String,
}

impl VerifyingKey {
    /// Reads the text form.
    ///
    /// # Errors
    /// [`CheckpointError::NotAKey`].
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let verifier = StandardVerifier::new(text)
            .map_err(|_| CheckpointError::NotAKey { what: format!("`{text}`") })?;
        Ok(Self { name: verifier.name().to_owned(), text: text.to_owned() })
    }

    /// The log it belongs to: the origin of its checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text form, to be pinned.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Checks a note's signature; returns its text.
    pub(crate) fn open(&self, note: &str) -> Result<Vec<u8>, CheckpointError> {
        if note.len() > CHECKPOINT_BYTES_MAX {
            return Err(CheckpointError::Malformed);
        }
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| CheckpointError::Malformed)?;
        let verifier = StandardVerifier::new(&self.text).map_err(|_| CheckpointError::Malformed)?;
        let mut lines: Vec<&str> = note.lines().filter(|line| line.starts_with("— ")).collect();
        let signatures = lines.len();
        lines.sort_unstable();
        lines.dedup();
        if lines.len() != signatures {
            // The same note in another form: one text, one form.
            return Err(CheckpointError::Malformed);
        }
        parsed
            .verify(&VerifierList::new(vec![Box::new(verifier)]))
            .map_err(|_| CheckpointError::BadSignature(self.name.clone()))?;
        Ok(parsed.text().to_vec())
    }
}

/// A signed tree head whose signature was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Hash,
    time: String,
    note: String,
}

impl Checkpoint {
    /// Reads a checkpoint and checks that `key` signed it.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`], [`CheckpointError::OtherLog`],
    /// [`CheckpointError::BadSignature`].
    pub fn open(note: &str, key: &VerifyingKey) -> Result<Self, CheckpointError> {
        let origin = note.lines().next().unwrap_or_default();
        if origin != key.name && signed_note::is_key_name_valid(origin) {
            let found = origin.chars().take(NAME_BYTES_MAX).collect();
            return Err(CheckpointError::OtherLog { found, wanted: key.name.clone() });
        }
        let text = key.open(note)?;
        let body =
            tlog_tiles::Checkpoint::from_bytes(&text).map_err(|_| CheckpointError::Malformed)?;
        let time = body
            .extension()
            .strip_prefix("time ")
            .and_then(|rest| rest.strip_suffix('\n'))
            .filter(|time| encoding::is_at(time))
            .ok_or(CheckpointError::Malformed)?;
        Ok(Self {
            origin: body.origin().to_owned(),
            size: body.size(),
            root: *body.hash(),
            time: time.to_owned(),
            note: note.to_owned(),
        })
    }

    /// The log it is the head of.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Number of records that it covers.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The Merkle root over them, base64.
    pub fn root(&self) -> String {
        self.root.to_string()
    }

    /// The Merkle root over them.
    pub(crate) fn hash(&self) -> Hash {
        self.root
    }

    /// When it was signed: RFC 3339, UTC, milliseconds.
    pub fn time(&self) -> &str {
        &self.time
    }

    /// The signed note, byte for byte.
    pub fn note(&self) -> &str {
        &self.note
    }
}

/// The newest checkpoint that the log in `dir` wrote beside its segments, if there is one.
///
/// # Errors
/// As [`Checkpoint::open`]; [`CheckpointError::Io`].
pub fn latest_checkpoint(
    dir: &Path,
    key: &VerifyingKey,
) -> Result<Option<Checkpoint>, CheckpointError> {
    let path = dir.join(encoding::CHECKPOINT_FILE);
    match std::fs::read_to_string(&path) {
        Ok(note) => Checkpoint::open(&note, key).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Io { path, source }),
    }
}

fn extension(time: &str) -> String {
    format!("time {time}\n")
}

/// Algorithm byte and public key of a 32-byte Ed25519 seed (RFC 8032 section 5.1.5).
fn public_half(seed: &[u8]) -> Result<Vec<u8>, CheckpointError> {
    use aws_lc_rs::signature::KeyPair as _;
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(seed)
        .map_err(|_| CheckpointError::Signing)?;
    let mut public = vec![ED25519];
    public.extend_from_slice(pair.public_key().as_ref());
    Ok(public)
}

/// c2sp.org/signed-note: the signature type of Ed25519.
const ED25519: u8 = 1;
const NAME_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Frontier;

    #[test]
    fn a_checkpoint_is_a_signed_note_of_the_documented_form() {
        let (key, _) = CheckpointKey::generate("sekisho.example/audit/test").unwrap();
        let root = Frontier::default().root();
        let signed = key.sign(0, root, "2026-04-01T09:00:00.000Z").unwrap();
        let body = "sekisho.example/audit/test\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\
                    time 2026-04-01T09:00:00.000Z\n\n— sekisho.example/audit/test ";
        assert!(signed.note().starts_with(body), "{}", signed.note());
        assert_eq!(Checkpoint::open(signed.note(), key.verifying_key()).unwrap(), signed);
    }

    #[test]
    fn every_changed_byte_of_a_checkpoint_is_refused() {
        let (key, _) = CheckpointKey::generate("log/a").unwrap();
        let root = Frontier::default().root();
        let note = key.sign(7, root, "2026-04-01T09:00:00.000Z").unwrap().note().to_owned();
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(Checkpoint::open(&changed, key.verifying_key()).is_err(), "byte {at}");
        }
        let twice = format!("{note}{}\n", note.lines().last().unwrap());
        assert!(Checkpoint::open(&twice, key.verifying_key()).is_err());
        let (other, _) = CheckpointKey::generate("log/a").unwrap();
        assert!(matches!(
            Checkpoint::open(&note, other.verifying_key()),
            Err(CheckpointError::BadSignature(_))
        ));
        let (other, _) = CheckpointKey::generate("log/b").unwrap();
        assert!(matches!(
            Checkpoint::open(&note, other.verifying_key()),
            Err(CheckpointError::OtherLog { .. })
        ));
    }

    #[test]
    fn key_files_are_read_back_and_loose_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.key");
        // Many keys, so that base64 with `+` and `/` comes up.
        for _ in 0..50 {
            let (key, text) = CheckpointKey::generate("log/a").unwrap();
            std::fs::write(&path, format!("{text}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            let read = CheckpointKey::load(&path).unwrap();
            assert_eq!(read.verifying_key(), key.verifying_key());
            assert!(!format!("{read:?}").contains(&text[30..]));
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = CheckpointKey::load(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "no key").unwrap();
        assert!(matches!(CheckpointKey::load(&path), Err(CheckpointError::NotAKey { .. })));
        assert!(CheckpointKey::generate("a b").is_err());
    }
}
