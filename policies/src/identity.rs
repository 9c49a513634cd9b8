//! Who is who: the identifiers of the long-term-care domain and the SAN URI that carries one of
//! them in a certificate.
//!
//! INVARIANT: this is the only parser of these identifiers. Every value of these types was checked
//! when it was made, so later code never looks at the text again.
//!
//! Sources: office and insured numbers from ケアプランデータ連携標準仕様 4.1; the check-digit rules from
//! 厚生労働省 総合事業における事業所番号 資料13; SAN URI form from RFC 5280 §4.2.1.6.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

mod parts;

pub use parts::OfficeClass;

/// Why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text has the wrong length or a character that the identifier may not hold.
    #[error("`{text}` is not {what}: expected {expected}")]
    Malformed {
        /// The identifier that was asked for.
        what: &'static str,
        /// The form it should have.
        expected: &'static str,
        /// The text as it came, cut to 80 characters.
        text: String,
    },
    /// The SAN URI names a kind of principal that does not exist.
    #[error("SAN URI `{0}` names no known kind of principal")]
    UnknownKind(String),
}

fn malformed(what: &'static str, expected: &'static str, text: &str) -> Error {
    Error::Malformed { what, expected, text: text.chars().take(80).collect() }
}

/// Gives a fixed-length ASCII identifier its text form, parser and serde form.
macro_rules! ascii_identifier {
    ($name:ident, $length:literal, $what:literal, $expected:literal, $check:expr) => {
        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                // INVARIANT: only ASCII bytes pass `from_str`.
                std::str::from_utf8(&self.0).unwrap_or("")
            }

            /// The identifier's characters, all of them ASCII.
            pub const fn bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let bytes: [u8; $length] =
                    text.as_bytes().try_into().map_err(|_| malformed($what, $expected, text))?;
                let check: fn(usize, u8) -> bool = $check;
                if bytes.iter().enumerate().all(|(at, byte)| check(at, *byte)) {
                    Ok(Self(bytes))
                } else {
                    Err(malformed($what, $expected, text))
                }
            }
        }

        text_forms!($name);
    };
}

/// Display, Debug and serde through the text form.
macro_rules! text_forms {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.as_str())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// 事業所番号: 10 characters, digits and capital letters (never I, O, Q).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OfficeNumber([u8; 10]);

ascii_identifier!(
    OfficeNumber,
    10,
    "an office number (事業所番号)",
    "10 characters, digits or capital letters other than I, O and Q",
    |_, byte| byte.is_ascii_digit()
        || (byte.is_ascii_uppercase() && !matches!(byte, b'I' | b'O' | b'Q'))
);

impl OfficeNumber {
    /// Whether the check digit fits one of the two rules in use.
    ///
    /// A wrong digit is a reason to warn, never to refuse: 0.13 % of the numbers that the ministry
    /// itself publishes fit neither rule.
    pub fn check_digit_fits(&self) -> bool {
        let digit = self.0[9].wrapping_sub(b'0');
        digit == check_digit(&self.0[..9]) || digit == check_digit(&self.0[3..9])
    }
}

/// Modulus 10, weights 2-1 from the right, digits of each product summed, letters A = 10 and on.
fn check_digit(body: &[u8]) -> u8 {
    let letters = b"ABCDEFGHJKLMNPRSTUVWXYZ";
    let mut sum = 0u32;
    for (from_right, byte) in body.iter().rev().enumerate() {
        let value = match letters.iter().position(|letter| letter == byte) {
            Some(at) => 10 + at as u32,
            None => u32::from(byte.wrapping_sub(b'0')),
        };
        let product = value * if from_right % 2 == 0 { 2 } else { 1 };
        sum += product / 10 + product % 10;
    }
    ((10 - sum % 10) % 10) as u8
}

/// 保険者番号: 6 digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InsurerNumber([u8; 6]);

ascii_identifier!(
    InsurerNumber,
    6,
    "an insurer number (保険者番号)",
    "6 digits",
    |_, byte| byte.is_ascii_digit()
);

/// 被保険者番号: 10 digits, or `H` and 9 digits (生保単独). Unique only within one insurer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InsuredNumber([u8; 10]);

ascii_identifier!(
    InsuredNumber,
    10,
    "an insured number (被保険者番号)",
    "10 digits, or H and 9 digits",
    |at, byte| byte.is_ascii_digit() || (at == 0 && byte == b'H')
);

/// サービス種類コード: 2 characters, such as `43` (居宅介護支援) or `2A`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceType([u8; 2]);

ascii_identifier!(
    ServiceType,
    2,
    "a service type code (サービス種類コード)",
    "2 digits or capital letters",
    |_, byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()
);

/// An insured person: the number is unique only together with the insurer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InsuredKey {
    /// 保険者番号.
    pub insurer: InsurerNumber,
    /// 被保険者番号.
    pub number: InsuredNumber,
}

impl fmt::Display for InsuredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.insurer, self.number)
    }
}

impl FromStr for InsuredKey {
    type Err = Error;

    /// Parses `<insurer>/<number>`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (insurer, number) = text.split_once('/').ok_or_else(|| {
            malformed("an insured person", "`<insurer number>/<insured number>`", text)
        })?;
        Ok(Self { insurer: insurer.parse()?, number: number.parse()? })
    }
}

/// A terminal of an office, municipality or system, or an operator's name: 1 to 32 characters,
/// lower-case letters, digits and inner hyphens.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalId(String);

impl TerminalId {
    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TerminalId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let edges = text.starts_with('-') || text.ends_with('-');
        if (1..=32).contains(&text.len()) && text.bytes().all(allowed) && !edges {
            Ok(Self(text.to_owned()))
        } else {
            Err(malformed(
                "a terminal id",
                "1 to 32 lower-case letters, digits and inner hyphens",
                text,
            ))
        }
    }
}

text_forms!(TerminalId);

/// A certificate serial number (RFC 5280 §4.1.2.2): 1 to 20 bytes, written as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial {
    length: u8,
    bytes: [u8; 20],
}

impl Serial {
    /// Takes the big-endian value bytes of the INTEGER; leading zero bytes do not count.
    pub fn from_bytes(value: &[u8]) -> Result<Self, Error> {
        let first = value.iter().position(|byte| *byte != 0).unwrap_or(value.len());
        let value = &value[first..];
        if value.is_empty() || value.len() > 20 {
            return Err(malformed("a certificate serial", "1 to 20 bytes", &hex::encode(value)));
        }
        let mut bytes = [0; 20];
        bytes[..value.len()].copy_from_slice(value);
        Ok(Self { length: value.len() as u8, bytes })
    }

    /// The value bytes, big-endian, without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The serial as lower-case hex.
    pub fn as_str(&self) -> String {
        hex::encode(self.as_bytes())
    }
}

impl FromStr for Serial {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits: String = text.chars().filter(|c| *c != ':').collect::<String>();
        let padded = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
        let bytes = hex::decode(padded.to_ascii_lowercase())
            .map_err(|_| malformed("a certificate serial", "hex digits", text))?;
        Self::from_bytes(&bytes)
    }
}

text_forms!(Serial);

/// Gives a closed list of names its text form, parser, serde form and `ALL`.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $what:literal, {
        $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in paths, files and records.
            pub const fn as_str(&self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::identity::Error;

            fn from_str(text: &str) -> Result<Self, crate::identity::Error> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(crate::identity::unknown_name($what, text)),
                }
            }
        }

        crate::identity::text_forms!($name);
    };
}
pub(crate) use named;
pub(crate) use text_forms;

pub(crate) fn unknown_name(what: &'static str, text: &str) -> Error {
    malformed(what, "one of the names in ARCHITECTURE.md, Words", text)
}

named! {
    /// 職種: the occupation of a member of staff, as far as a rule asks for it.
    Job, "a job (職種)", {
        /// 介護支援専門員.
        CareManager = "care-manager",
        /// 医師.
        Physician = "physician",
        /// 看護職員.
        Nurse = "nurse",
        /// 介護職員.
        CareWorker = "care-worker",
        /// 相談員.
        SocialWorker = "social-worker",
        /// 事務職員.
        Clerk = "clerk",
    }
}

named! {
    /// A system client with a certificate of its own kind.
    SystemName, "a system name", {
        /// ケアプランデータ連携システム.
        CarePlanExchange = "care-plan-exchange",
        /// LIFE (科学的介護情報システム).
        Life = "life",
        /// PMH (Public Medical Hub).
        Pmh = "pmh",
        /// マイナポータル.
        Portal = "portal",
    }
}

/// The principal that a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Identity {
    /// A terminal of a care office or medical institution.
    Office {
        /// 事業所番号.
        number: OfficeNumber,
        /// The terminal that holds the key.
        terminal: TerminalId,
    },
    /// A municipal 介護保険事務システム.
    Municipality {
        /// 保険者番号.
        insurer: InsurerNumber,
        /// The terminal that holds the key.
        terminal: TerminalId,
    },
    /// A national system.
    System {
        /// Which system.
        name: SystemName,
        /// The terminal that holds the key.
        terminal: TerminalId,
    },
    /// A network operator; refused on public listeners.
    Operator {
        /// The operator's name.
        name: TerminalId,
    },
}

impl Identity {
    /// The path part of the SAN URI, without a leading slash: `office/1370000001/terminal/front-1`.
    pub fn path(&self) -> String {
        match self {
            Self::Office { number, terminal } => format!("office/{number}/terminal/{terminal}"),
            Self::Municipality { insurer, terminal } => {
                format!("municipality/{insurer}/terminal/{terminal}")
            }
            Self::System { name, terminal } => format!("system/{name}/terminal/{terminal}"),
            Self::Operator { name } => format!("operator/{name}"),
        }
    }

    /// The principal without its terminal: `office/1370000001`. What authorship is recorded under.
    pub fn party(&self) -> String {
        let (kind, name) = self.party_parts();
        format!("{kind}/{name}")
    }

    /// Calls `with` with what [`Identity::party`] says, without making a text of it.
    pub(crate) fn with_party<T>(&self, with: impl FnOnce(&str) -> T) -> T {
        let (kind, name) = self.party_parts();
        let mut bytes = [0; PARTY_BYTES_MAX];
        let length = kind.len() + 1 + name.len();
        bytes[..kind.len()].copy_from_slice(kind.as_bytes());
        bytes[kind.len()] = b'/';
        bytes[kind.len() + 1..length].copy_from_slice(name.as_bytes());
        // INVARIANT: both parts are texts.
        with(std::str::from_utf8(&bytes[..length]).unwrap_or(""))
    }

    fn party_parts(&self) -> (&'static str, &str) {
        match self {
            Self::Office { number, .. } => ("office", number.as_str()),
            Self::Municipality { insurer, .. } => ("municipality", insurer.as_str()),
            Self::System { name, .. } => ("system", name.as_str()),
            Self::Operator { name } => ("operator", name.as_str()),
        }
    }

    /// The SAN URI that carries this identity under `id_domain`.
    pub fn to_san_uri(&self, id_domain: &str) -> String {
        format!("https://{id_domain}/{}", self.path())
    }

    /// Reads a SAN URI under `id_domain`.
    ///
    /// # Errors
    /// [`Error::UnknownKind`] for another domain or path, [`Error::Malformed`] for a bad number.
    pub fn from_san_uri(uri: &str, id_domain: &str) -> Result<Self, Error> {
        let unknown = || Error::UnknownKind(uri.chars().take(120).collect());
        let path = uri
            .strip_prefix("https://")
            .and_then(|rest| rest.strip_prefix(id_domain))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(unknown)?;
        Self::from_path(path)
    }

    /// Reads the form printed by [`Identity::path`].
    ///
    /// # Errors
    /// As [`Identity::from_san_uri`].
    pub fn from_path(path: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            ["office", number, "terminal", terminal] => {
                Ok(Self::Office { number: number.parse()?, terminal: terminal.parse()? })
            }
            ["municipality", insurer, "terminal", terminal] => {
                Ok(Self::Municipality { insurer: insurer.parse()?, terminal: terminal.parse()? })
            }
            ["system", name, "terminal", terminal] => {
                Ok(Self::System { name: name.parse()?, terminal: terminal.parse()? })
            }
            ["operator", name] => Ok(Self::Operator { name: name.parse()? }),
            _ => Err(Error::UnknownKind(path.chars().take(120).collect())),
        }
    }

    /// The office number, where the principal is an office.
    pub fn office(&self) -> Option<OfficeNumber> {
        match self {
            Self::Office { number, .. } => Some(*number),
            Self::Municipality { .. } | Self::System { .. } | Self::Operator { .. } => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// The longest kind and the longest name: a terminal id has 32 characters, no other name has more.
const PARTY_BYTES_MAX: usize = "municipality/".len() + 32;

/// A member of staff, as the verified staff token names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staff {
    /// The staff id, unique within the office.
    pub id: String,
    /// The office that employs them.
    pub office: OfficeNumber,
    /// 職種.
    pub job: Job,
    /// The session that the token belongs to; what a logout or lock revokes.
    pub session: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn check_digits_follow_both_rules() {
        // 131000001: products 2,0,0,0,0,0,2,3,2 → 9 → digit 1; its last six alone: 2 → digit 8.
        // A counts 10, so 13A000001: 2,0,0,0,0,0,2+0,3,2 → 9 → digit 1.
        for (number, fits) in [
            ("1310000011", true),
            ("1310000018", true),
            ("1310000010", false),
            ("13A0000011", true),
            ("13A0000018", true),
            ("13A0000012", false),
            ("131000001A", false),
        ] {
            let office: OfficeNumber = number.parse().unwrap();
            assert_eq!(office.check_digit_fits(), fits, "{number}");
        }
    }

    #[test]
    fn identifiers_refuse_what_is_not_theirs() {
        for bad in ["", "137000000", "13700000011", "13I0000001", "137000000a", "１３７0000001"]
        {
            assert!(bad.parse::<OfficeNumber>().is_err(), "{bad}");
        }
        for bad in ["", "H", "1H00000001", "00000000001", "000000000１"] {
            assert!(bad.parse::<InsuredNumber>().is_err(), "{bad}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", &"a".repeat(33)] {
            assert!(bad.parse::<TerminalId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn san_uris_of_other_domains_and_paths_are_refused() {
        for bad in [
            "https://id.other.example/office/1370000001/terminal/a",
            "http://id.sekisho.example/office/1370000001/terminal/a",
            "https://id.sekisho.example/office/1370000001/terminal/a/",
            "https://id.sekisho.example/office/1370000001",
            "https://id.sekisho.example.evil/office/1370000001/terminal/a",
            "https://id.sekisho.example/system/other/terminal/a",
        ] {
            assert!(Identity::from_san_uri(bad, "id.sekisho.example").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn identities_round_trip(
            office in "[0-9]{2}[0-9A-H][0-9]{7}",
            insurer in "[0-9]{6}",
            terminal in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?",
        ) {
            let terminal: TerminalId = terminal.parse().unwrap();
            let identities = [
                Identity::Office { number: office.parse().unwrap(), terminal: terminal.clone() },
                Identity::Municipality {
                    insurer: insurer.parse().unwrap(),
                    terminal: terminal.clone(),
                },
                Identity::System { name: SystemName::Portal, terminal: terminal.clone() },
                Identity::Operator { name: terminal },
            ];
            for identity in identities {
                let uri = identity.to_san_uri("id.sekisho.example");
                let read = Identity::from_san_uri(&uri, "id.sekisho.example").unwrap();
                prop_assert_eq!(read, identity.clone());
                let json = serde_json::to_string(&identity).unwrap();
                prop_assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
            }
        }

        #[test]
        fn serials_round_trip(bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
            if let Ok(serial) = Serial::from_bytes(&bytes) {
                prop_assert_eq!(serial.to_string().parse::<Serial>().unwrap(), serial);
            }
        }
    }
}
