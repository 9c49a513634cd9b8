//! What a certificate of ours may say: profile × identity → [`Template`].
//!
//! A [`Profile`] is chosen by the operator when a code is issued; everything else in a certificate
//! follows from it, from the identity and from the CA's own words ([`Rules`]). Nothing a client
//! sends reaches a template. The RA and the signer both make the template, each from its own
//! configuration: the signer to sign it, the RA to compare it with what came back.
//!
//! The fields follow RFC 5280 §4; no personal names, no keyEncipherment, no serverAuth. A profile
//! for keys in a TPM, and one in the style of the three-year certificates of today's electronic
//! claims, belong here.

use std::net::IpAddr;
use std::str::FromStr;

use policies::identity::{Identity, Serial};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

/// Why an identity does not get a certificate of a profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is no profile.
    #[error("`{0}` is no profile: use one of {names}", names = names())]
    Unknown(String),
    /// The profile is for another kind of principal.
    #[error("profile `{profile}` is not for `{party}`")]
    Identity {
        /// The profile.
        profile: &'static str,
        /// Who asked.
        party: String,
    },
    /// The profile exists only in demo systems.
    #[error("profile `{0}` exists only in a demo system")]
    DemoOnly(&'static str),
    /// A lifetime in seconds is missing, out of range, or given where the profile fixes it.
    #[error("`not_after_s` of profile `{profile}`: expected {expected}")]
    Lifetime {
        /// The profile.
        profile: &'static str,
        /// The accepted values.
        expected: &'static str,
    },
    /// The text is not an OID arc.
    #[error("`{0}` is not an OID: expected numbers with dots, such as 2.999.1")]
    Oid(String),
}

/// The kinds of certificate for clients. The number is the last arc of the certificate policy OID
/// `<policy_arc>.1.<number>`; numbers are never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// A terminal whose user carries the key in the browser or a PKCS#12 file.
    OfficeBrowser,
    /// Care software that renews by itself.
    OfficeApi,
    /// A municipal system.
    Municipality,
    /// A national system.
    System,
    /// A network operator.
    Operator,
    /// Demo only: ends after so many seconds, to show what happens to an expired certificate.
    ShortLived,
}

impl Profile {
    /// Every profile, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::OfficeBrowser,
        Self::OfficeApi,
        Self::Municipality,
        Self::System,
        Self::Operator,
        Self::ShortLived,
    ];

    /// The name used in requests, records and files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OfficeBrowser => "office-browser",
            Self::OfficeApi => "office-api",
            Self::Municipality => "municipality",
            Self::System => "system",
            Self::Operator => "operator",
            Self::ShortLived => "short-lived",
        }
    }

    /// The last arc of its certificate policy OID.
    pub const fn number(self) -> u64 {
        match self {
            Self::OfficeBrowser => 1,
            Self::OfficeApi => 2,
            Self::Municipality => 3,
            Self::System => 4,
            Self::Operator => 5,
            Self::ShortLived => 6,
        }
    }

    /// How many days its certificates are valid; `None` where the request says how many seconds.
    const fn days(self) -> Option<i64> {
        match self {
            Self::OfficeBrowser | Self::Municipality | Self::System => Some(398),
            Self::OfficeApi | Self::Operator => Some(90),
            Self::ShortLived => None,
        }
    }

    const fn is_for(self, identity: &Identity) -> bool {
        match self {
            Self::OfficeBrowser | Self::OfficeApi | Self::ShortLived => {
                matches!(identity, Identity::Office { .. })
            }
            Self::Municipality => matches!(identity, Identity::Municipality { .. }),
            Self::System => matches!(identity, Identity::System { .. }),
            Self::Operator => matches!(identity, Identity::Operator { .. }),
        }
    }

    /// The lifetime of a certificate asked for with `not_after_s`.
    fn end(self, now: OffsetDateTime, not_after_s: Option<u32>) -> Result<OffsetDateTime, Error> {
        let wrong = |expected| Error::Lifetime { profile: self.as_str(), expected };
        match (self.days(), not_after_s) {
            // Valid through the last second named, so one second less (RFC 5280 §4.1.2.5).
            (Some(days), None) => Ok(now - BACKDATE + Duration::days(days) - Duration::SECOND),
            (Some(_), Some(_)) => Err(wrong("nothing: the profile fixes it")),
            (None, Some(s)) if SHORT_LIVED_S.contains(&s) => Ok(now + Duration::seconds(s.into())),
            (None, _) => Err(wrong("a number of seconds from 5 to 86400")),
        }
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .iter()
            .copied()
            .find(|profile| profile.as_str() == text)
            .ok_or_else(|| Error::Unknown(text.chars().take(40).collect()))
    }
}

/// An object identifier as its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oid(Vec<u64>);

impl Oid {
    /// An OID that is written in the code.
    pub fn fixed(arcs: &[u64]) -> Self {
        Self(arcs.to_vec())
    }

    /// This arc with more numbers after it.
    pub fn child(&self, arcs: &[u64]) -> Self {
        Self([self.0.as_slice(), arcs].concat())
    }

    /// The numbers.
    pub fn arcs(&self) -> &[u64] {
        &self.0
    }

    /// The content bytes of its DER form.
    pub fn to_der_content(&self) -> Vec<u8> {
        // Tag and length are one byte each: our OIDs are short.
        let oid = yasna::models::ObjectIdentifier::from_slice(&self.0);
        yasna::construct_der(|writer| writer.write_oid(&oid)).split_off(2)
    }
}

impl FromStr for Oid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Oid(text.chars().take(40).collect());
        let arcs: Vec<u64> = text
            .split('.')
            .map(|arc| arc.parse::<u32>().map(u64::from))
            .collect::<Result<_, _>>()
            .map_err(|_| wrong())?;
        match arcs.as_slice() {
            [0 | 1, second, ..] if *second >= 40 => Err(wrong()),
            [0..=2, _, ..] if arcs.len() <= 12 => Ok(Self(arcs)),
            _ => Err(wrong()),
        }
    }
}

/// A distinguished name of ours: `C=JP`, O, OU, CN, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// O: the operator of the network.
    pub organization: String,
    /// OU: the office, insurer or system.
    pub unit: Option<String>,
    /// CN.
    pub common_name: String,
}

/// What kind of certificate a template describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A certificate authority.
    Ca {
        /// How many CAs may stand below it.
        path_len: u8,
        /// What the certificates below it may be used for; `None` for a root.
        usage: Option<Usage>,
    },
    /// A client: the identity as SAN URI, and the policy of its profile.
    Client {
        /// The SAN URI.
        uri: String,
        /// The certificate policy OID.
        policy: Oid,
    },
    /// A TLS server of a demo system.
    Server {
        /// Its names.
        names: Vec<String>,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
}

/// Extended key usage: one, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// id-kp-clientAuth.
    Client,
    /// id-kp-serverAuth.
    Server,
}

/// Everything a certificate says, apart from its issuer and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Random, 16 bytes.
    pub serial: Serial,
    /// The subject.
    pub subject: Name,
    /// First second of validity.
    pub not_before: OffsetDateTime,
    /// Last second of validity.
    pub not_after: OffsetDateTime,
    /// CA, client or server.
    pub role: Role,
    /// The marker extension of demo systems, which a production configuration refuses.
    pub marker: Option<Oid>,
}

impl Template {
    /// The extended key usage that goes with the role.
    pub fn usage(&self) -> Option<Usage> {
        match self.role {
            Role::Ca { usage, .. } => usage,
            Role::Client { .. } => Some(Usage::Client),
            Role::Server { .. } => Some(Usage::Server),
        }
    }
}

/// The CA's own words, the same in every certificate.
#[derive(Debug, Clone)]
pub struct Rules {
    /// O of every subject.
    pub operator_name: String,
    /// Host of the SAN URIs.
    pub id_domain: String,
    /// The OID arc that the operator owns.
    pub policy_arc: Oid,
    /// Whether this is a demo system.
    pub demo: bool,
}

impl Rules {
    /// The template of a client certificate.
    ///
    /// # Errors
    /// Every [`Error`] but the parsers' own.
    pub fn client(
        &self,
        profile: Profile,
        identity: &Identity,
        not_after_s: Option<u32>,
        serial: Serial,
        now: OffsetDateTime,
    ) -> Result<Template, Error> {
        self.allows(profile, identity, not_after_s)?;
        let now = now.replace_nanosecond(0).unwrap_or(now);
        Ok(Template {
            serial,
            subject: self.client_name(identity),
            not_before: now - BACKDATE,
            not_after: profile.end(now, not_after_s)?,
            role: Role::Client {
                uri: identity.to_san_uri(&self.id_domain),
                policy: self.policy_arc.child(&[1, profile.number()]),
            },
            marker: self.marker(),
        })
    }

    /// Whether such a certificate could be issued at all, apart from its key.
    ///
    /// # Errors
    /// As [`Rules::client`].
    pub fn allows(
        &self,
        profile: Profile,
        identity: &Identity,
        not_after_s: Option<u32>,
    ) -> Result<(), Error> {
        if profile == Profile::ShortLived && !self.demo {
            return Err(Error::DemoOnly(profile.as_str()));
        }
        if !profile.is_for(identity) {
            return Err(Error::Identity { profile: profile.as_str(), party: identity.party() });
        }
        profile.end(OffsetDateTime::UNIX_EPOCH, not_after_s).map(|_| ())
    }

    /// The marker extension's OID, in a demo system.
    pub fn marker(&self) -> Option<Oid> {
        self.demo.then(|| marker_oid(&self.policy_arc))
    }

    fn client_name(&self, identity: &Identity) -> Name {
        let (unit, common_name) = match identity {
            Identity::Office { number, terminal } => {
                (number.to_string(), format!("{number}-{terminal}"))
            }
            Identity::Municipality { insurer, terminal } => {
                (insurer.to_string(), format!("{insurer}-{terminal}"))
            }
            Identity::System { name, terminal } => (name.to_string(), format!("{name}-{terminal}")),
            Identity::Operator { name } => ("operator".to_owned(), name.to_string()),
        };
        Name { organization: self.operator_name.clone(), unit: Some(unit), common_name }
    }
}

/// The OID of the extension that marks certificates of demo systems.
pub fn marker_oid(policy_arc: &Oid) -> Oid {
    policy_arc.child(&[99])
}

fn names() -> String {
    Profile::ALL.iter().map(|profile| profile.as_str()).collect::<Vec<_>>().join(", ")
}

/// How far before now a certificate begins, for clocks that are slow.
pub const BACKDATE: Duration = Duration::minutes(5);

/// The lifetimes that the short-lived profile accepts, in seconds.
const SHORT_LIVED_S: std::ops::RangeInclusive<u32> = 5..=86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rules;

    fn identity(path: &str) -> Identity {
        Identity::from_path(path).unwrap()
    }

    #[test]
    fn each_profile_is_for_its_own_kind_of_principal() {
        let paths = [
            "office/1370000001/terminal/a",
            "municipality/131016/terminal/a",
            "system/portal/terminal/a",
            "operator/op",
        ];
        let expected = [
            ("office-browser", [true, false, false, false]),
            ("office-api", [true, false, false, false]),
            ("municipality", [false, true, false, false]),
            ("system", [false, false, true, false]),
            ("operator", [false, false, false, true]),
            ("short-lived", [true, false, false, false]),
        ];
        for (name, row) in expected {
            let profile: Profile = name.parse().unwrap();
            let seconds = (profile == Profile::ShortLived).then_some(10);
            for (path, allowed) in paths.iter().zip(row) {
                let answer = rules(true).allows(profile, &identity(path), seconds);
                assert_eq!(answer.is_ok(), allowed, "{name} {path}");
            }
        }
    }

    #[test]
    fn lifetimes_come_from_the_profile() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let office = identity("office/1370000001/terminal/a");
        let serial = "40".parse().unwrap();
        let template =
            rules(false).client(Profile::OfficeBrowser, &office, None, serial, now).unwrap();
        assert_eq!(now - template.not_before, Duration::minutes(5));
        assert_eq!((template.not_after - template.not_before).whole_seconds(), 398 * 86_400 - 1);
        let short = rules(true).client(Profile::ShortLived, &office, Some(5), serial, now).unwrap();
        assert_eq!((short.not_after - now).whole_seconds(), 5);
        for (demo, profile, seconds) in [
            (true, Profile::ShortLived, None),
            (true, Profile::ShortLived, Some(4)),
            (true, Profile::ShortLived, Some(86_401)),
            (false, Profile::ShortLived, Some(5)),
            (true, Profile::OfficeApi, Some(5)),
        ] {
            assert!(rules(demo).allows(profile, &office, seconds).is_err(), "{profile:?}");
        }
    }

    #[test]
    fn oids_are_parsed_strictly_and_written_with_a_large_second_arc() {
        let arc: Oid = "2.999.1".parse().unwrap();
        assert_eq!(arc.child(&[99]).to_der_content(), [0x88, 0x37, 0x01, 0x63]);
        for bad in ["", "1", "3.1", "1.40", "2.999.x", "2.999.", "2..1"] {
            assert!(bad.parse::<Oid>().is_err(), "{bad}");
        }
    }
}
