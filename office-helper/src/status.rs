//! What a terminal's certificate says about itself: identity, serial, days left, and the notice
//! that is due (90, 60, 30, 15, 7 days before the end).

use std::fmt;
use std::path::Path;

use rcgen::{KeyPair, PublicKeyData};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificate::{self, Certificate};
use crate::files::{self, Folder};

/// Why no status can be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no usable certificate here: enrol this terminal first, or name its folder with --dir")]
    Files(#[source] files::Error),
    #[error("`{path}` can not be used")]
    Certificate {
        path: String,
        #[source]
        source: certificate::Error,
    },
    #[error("`{0}` is not a key that can be used")]
    Key(String),
    #[error("`{certificate}` does not belong to `{key}`: enrol this terminal again with --replace")]
    OtherKey { certificate: String, key: String },
}

/// Whether a certificate can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Valid,
    RenewSoon,
    NotYetValid,
    Expired,
}

/// A certificate's state at one time.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Status {
    pub(crate) identity: String,
    pub(crate) serial: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    /// Whole days until `not_after`; negative after it.
    pub(crate) days_left: i64,
    pub(crate) state: State,
    /// The notice that is due: 90, 60, 30, 15 or 7 (days).
    pub(crate) notice: Option<i64>,
}

/// Reads `DIR/cert.pem` and checks that `DIR/key.pem` is its key.
pub(crate) fn read(dir: &Path) -> Result<Status, Error> {
    let folder = Folder::at(dir);
    let path = folder.certificate();
    let chain = files::read_certificates(&path).map_err(Error::Files)?;
    let leaf = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let certificate = Certificate::from_der(leaf)
        .map_err(|source| Error::Certificate { path: path.display().to_string(), source })?;
    let key_path = folder.key();
    let pem = files::read_key(&key_path).map_err(Error::Files)?;
    let key = KeyPair::from_pem(&pem).map_err(|_| Error::Key(key_path.display().to_string()))?;
    if key.subject_public_key_info() != certificate.spki {
        let (certificate, key) = (path.display().to_string(), key_path.display().to_string());
        return Err(Error::OtherKey { certificate, key });
    }
    Ok(Status::of(&certificate, OffsetDateTime::now_utc()))
}

impl Status {
    pub(crate) fn of(certificate: &Certificate, now: OffsetDateTime) -> Self {
        let left = certificate.not_after - now;
        let days_left = left.whole_seconds().div_euclid(SECONDS_PER_DAY);
        let notice = NOTICES.into_iter().find(|notice| days_left <= *notice);
        let state = if now < certificate.not_before {
            State::NotYetValid
        } else if left.is_negative() {
            State::Expired
        } else if notice.is_some() {
            State::RenewSoon
        } else {
            State::Valid
        };
        Self {
            identity: certificate.identity.path(),
            serial: certificate.serial.to_string(),
            not_before: text(certificate.not_before),
            not_after: text(certificate.not_after),
            days_left,
            state,
            notice: notice.filter(|_| state == State::RenewSoon),
        }
    }

    /// Whether a server would take the certificate now.
    pub(crate) fn is_usable(&self) -> bool {
        matches!(self.state, State::Valid | State::RenewSoon)
    }

    /// One line about the state, Japanese and English.
    pub(crate) fn summary(&self) -> (String, String) {
        let days = self.days_left;
        match self.state {
            State::Valid => (
                format!("証明書は有効です（残り {days} 日）"),
                format!("the certificate is valid ({days} days left)"),
            ),
            State::RenewSoon => (
                format!("証明書の期限が近づいています（残り {days} 日）。更新してください"),
                format!("the certificate ends soon ({days} days left): renew it"),
            ),
            State::NotYetValid => (
                "証明書の有効期間はまだ始まっていません。端末の時計を確認してください".to_owned(),
                "the certificate is not valid yet: check this computer's clock".to_owned(),
            ),
            State::Expired => (
                "証明書の期限が切れています。運用者に新しい発行用コードを依頼してください"
                    .to_owned(),
                "the certificate has expired: ask the operator for a new code".to_owned(),
            ),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ja, en) = self.summary();
        writeln!(f, "  {ja} / {en}")?;
        writeln!(f, "  識別名 / identity     {}", self.identity)?;
        writeln!(f, "  番号 / serial         {}", self.serial)?;
        writeln!(f, "  有効期限 / valid to   {}", self.not_after)
    }
}

fn text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// Days before the end at which a notice is due, the last one first.
const NOTICES: [i64; 5] = [7, 15, 30, 60, 90];
const SECONDS_PER_DAY: i64 = 86_400;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::ExtendedKeyUsagePurpose::ClientAuth;

    use super::*;
    use crate::certificate::tests::{FRONT, ca, key, leaf};

    fn status(days: i64) -> Status {
        let certificate =
            Certificate::from_der(&leaf(&ca("c"), &key(), FRONT, days, ClientAuth)).unwrap();
        Status::of(&certificate, OffsetDateTime::now_utc())
    }

    #[test]
    fn notices_are_due_at_90_60_30_15_and_7_days() {
        for (days, state, notice) in [
            (398, State::Valid, None),
            (91, State::Valid, None),
            (90, State::RenewSoon, Some(90)),
            (61, State::RenewSoon, Some(90)),
            (60, State::RenewSoon, Some(60)),
            (30, State::RenewSoon, Some(30)),
            (16, State::RenewSoon, Some(30)),
            (15, State::RenewSoon, Some(15)),
            (7, State::RenewSoon, Some(7)),
            (0, State::RenewSoon, Some(7)),
            (-2, State::Expired, None),
        ] {
            let status = status(days);
            assert_eq!((status.days_left, status.state, status.notice), (days, state, notice));
            assert_eq!(status.is_usable(), state != State::Expired);
        }
    }

    #[test]
    fn a_folder_is_read_and_a_key_of_another_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = format!("{:#}", anyhow::Error::from(read(dir.path()).unwrap_err()));
        assert!(missing.contains("cert.pem") && missing.contains("enrol"), "{missing}");
        let (ca, key) = (ca("c"), key());
        let der = leaf(&ca, &key, FRONT, 100, ClientAuth);
        std::fs::write(dir.path().join("cert.pem"), files::certificate_pem(&der)).unwrap();
        let write_key = |pem: String| {
            let path = dir.path().join("key.pem");
            std::fs::write(&path, pem).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write_key(key.serialize_pem());
        assert_eq!(read(dir.path()).unwrap().identity, FRONT);
        write_key(certificate::tests::key().serialize_pem());
        assert!(matches!(read(dir.path()), Err(Error::OtherKey { .. })));
        write_key("nonsense".to_owned());
        assert!(matches!(read(dir.path()), Err(Error::Key(_))));
    }
}
