//! What a feed tells: one fact of the cert-authority's or the hub's.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{OFFICE_NAME_CHARACTERS_MAX, Source};
use crate::document::{DocumentKind, DocumentSet};
use crate::identity::{InsuredKey, InsurerNumber, OfficeNumber, Serial, ServiceType};

/// One fact. A fact replaces the earlier fact with the same [`Fact::key`]; facts are never removed,
/// they say themselves that they ended. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fact {
    /// 事業所: an office as the operator registered it.
    Office {
        /// 事業所番号.
        number: OfficeNumber,
        /// The service types of its record.
        service_types: Vec<ServiceType>,
        /// Whether the institution is a medical one (病院・診療所).
        medical: bool,
        /// Whether the operator suspended it.
        suspended: bool,
        /// Its name as the operator registered it, for people to read; empty in facts written
        /// before offices told their names. An empty one is left out, so that the text of such a
        /// fact, and with it the chain, stays what it was.
        #[serde(
            default,
            skip_serializing_if = "String::is_empty",
            deserialize_with = "office_name"
        )]
        name: String,
    },
    /// A revoked certificate.
    Revoked {
        /// Its serial number.
        serial: Serial,
        /// When the revocation was recorded.
        at: u64,
    },
    /// 担当事業所 registration of an office for a person.
    Registration {
        /// The registered office.
        office: OfficeNumber,
        /// The person.
        insured: InsuredKey,
        /// When it began.
        from: u64,
        /// When it lapses (last second), if set.
        until: Option<u64>,
        /// When it was ended by hand.
        ended: Option<u64>,
    },
    /// 同意: one consent of a person.
    Consent {
        /// The consent's id in the hub.
        id: u64,
        /// The person.
        insured: InsuredKey,
        /// The kinds of document it covers.
        scope: DocumentSet,
        /// When it begins.
        from: u64,
        /// When it ends (last second), if set.
        until: Option<u64>,
        /// When the person withdrew it.
        withdrawn: Option<u64>,
    },
    /// `party` wrote at least one document of this kind for this person.
    Author {
        /// [`crate::identity::Identity::party`] of the author.
        party: String,
        /// The person.
        insured: InsuredKey,
        /// The kind.
        document: DocumentKind,
    },
    /// ※1: the office makes the person's care plan (an accepted 届出 or a facility plan).
    PlansFor {
        /// The planning office.
        office: OfficeNumber,
        /// The person.
        insured: InsuredKey,
        /// Whether it still does.
        active: bool,
    },
    /// 主治医意見書作成依頼: the insurer asked this institution for an opinion on this person.
    OpinionRequest {
        /// The institution.
        office: OfficeNumber,
        /// The person.
        insured: InsuredKey,
        /// Whether the request is still to be answered.
        open: bool,
    },
    /// A municipality's go-live: it shares its people's documents from this time on.
    Sharing {
        /// The insurer.
        insurer: InsurerNumber,
        /// Since when; `None` means it does not share.
        from: Option<u64>,
    },
    /// A public key of the hub that signs staff tokens (ES256).
    StaffKey {
        /// The JWK key id.
        kid: String,
        /// The P-256 point's x, base64url without padding.
        x: String,
        /// The P-256 point's y, base64url without padding.
        y: String,
        /// Whether tokens of this key are no longer accepted.
        retired: bool,
    },
    /// A staff session that was ended (logout, lock, leaver).
    SessionEnded {
        /// The session id.
        session: String,
        /// When its last token would have expired; may be forgotten after that.
        until: u64,
    },
}

impl Fact {
    /// Whose fact this is to tell. A feed that tells another's is refused.
    pub const fn source(&self) -> Source {
        match self {
            Self::Office { .. } | Self::Revoked { .. } => Source::Ca,
            Self::Registration { .. }
            | Self::Consent { .. }
            | Self::Author { .. }
            | Self::PlansFor { .. }
            | Self::OpinionRequest { .. }
            | Self::Sharing { .. }
            | Self::StaffKey { .. }
            | Self::SessionEnded { .. } => Source::Hub,
        }
    }

    /// What this fact is about: a later fact with the same key replaces it.
    pub fn key(&self) -> String {
        match self {
            Self::Office { number, .. } => format!("office/{number}"),
            Self::Revoked { serial, .. } => format!("revoked/{serial}"),
            Self::Registration { office, insured, .. } => {
                format!("registration/{office}/{insured}")
            }
            Self::Consent { id, .. } => format!("consent/{id}"),
            Self::Author { party, insured, document } => {
                format!("author/{party}/{insured}/{document}")
            }
            Self::PlansFor { office, insured, .. } => format!("plans-for/{office}/{insured}"),
            Self::OpinionRequest { office, insured, .. } => {
                format!("opinion-request/{office}/{insured}")
            }
            Self::Sharing { insurer, .. } => format!("sharing/{insurer}"),
            Self::StaffKey { kid, .. } => format!("staff-key/{kid}"),
            Self::SessionEnded { session, .. } => format!("session-ended/{session}"),
        }
    }
}

fn office_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if name.chars().count() <= OFFICE_NAME_CHARACTERS_MAX {
        Ok(name)
    } else {
        Err(D::Error::custom("the name of an office is too long"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_office_fact_of_before_names_keeps_its_text_and_a_long_name_is_refused() {
        let old = concat!(
            r#"{"fact":"office","number":"1370000001","service_types":[],"#,
            r#""medical":false,"suspended":false}"#
        );
        let fact: Fact = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&fact).unwrap(), old);
        for (length, accepted) in [(200, true), (201, false)] {
            let name = format!(r#""name":"{}"}}"#, "見".repeat(length));
            let named = old.replace("false}", &format!("false,{name}"));
            let read: Result<Fact, _> = serde_json::from_str(&named);
            assert_eq!(read.is_ok(), accepted, "{length}");
            if let Ok(fact) = read {
                assert_eq!(serde_json::to_string(&fact).unwrap(), named);
            }
        }
    }
}
