//! The kinds of offices of an invented country, each as often as in the real one.

use crate::document::DocumentKind;
use crate::identity::{OfficeClass, ServiceType};

/// A kind of office.
#[derive(Debug)]
pub(super) struct Kind {
    /// How many of a thousand.
    share: u64,
    class: OfficeClass,
    pub(super) service_types: &'static [ServiceType],
    pub(super) medical: bool,
    /// What it writes.
    pub(super) writes: DocumentKind,
    pub(super) name: &'static str,
}

impl Kind {
    /// 区分 for a serial: that of 地域包括支援センター ends at 4999.
    pub(super) fn class_of(&self, serial: u16) -> OfficeClass {
        let is_support = self.class == OfficeClass::CommunitySupport;
        let fits = !is_support || (1..5_000).contains(&serial);
        if fits { self.class } else { OfficeClass::Designated }
    }
}

/// The kind that a random number falls on.
pub(super) fn pick(random: u64) -> &'static Kind {
    let mut left = random % 1_000;
    for kind in KINDS {
        if left < kind.share {
            return kind;
        }
        left -= kind.share;
    }
    // INVARIANT: the shares are a thousand, which a test adds up.
    &KINDS[0]
}

const fn care(
    share: u64,
    class: OfficeClass,
    service_types: &'static [ServiceType],
    name: &'static str,
) -> Kind {
    Kind { share, class, service_types, medical: false, writes: DocumentKind::LifeFeedback, name }
}

const fn planning(share: u64, class: OfficeClass, service_types: &'static [ServiceType]) -> Kind {
    let (writes, name) = (DocumentKind::HomeCarePlan, "居宅介護支援");
    Kind { share, class, service_types, medical: false, writes, name }
}

const fn facility(
    share: u64,
    class: OfficeClass,
    service_types: &'static [ServiceType],
    name: &'static str,
) -> Kind {
    let writes = DocumentKind::FacilityCarePlan;
    Kind { share, class, service_types, medical: false, writes, name }
}

const fn medical(share: u64, service_types: &'static [ServiceType], name: &'static str) -> Kind {
    let (class, writes) = (OfficeClass::Medical, DocumentKind::PhysicianOpinion);
    Kind { share, class, service_types, medical: true, writes, name }
}

/// サービス種類コード with two digits.
const fn code(number: u8) -> ServiceType {
    ServiceType::from_last_digits(number)
}

static KINDS: &[Kind] = &[
    planning(115, OfficeClass::Designated, &[code(43)]),
    planning(18, OfficeClass::Designated, &[code(43), code(11)]),
    planning(18, OfficeClass::CommunitySupport, &[code(46)]),
    care(100, OfficeClass::Designated, &[code(11)], "訪問介護"),
    care(14, OfficeClass::Designated, &[code(11), code(12)], "訪問入浴"),
    care(60, OfficeClass::VisitingNurse, &[code(13)], "訪問看護"),
    care(70, OfficeClass::Designated, &[code(15)], "通所介護"),
    care(16, OfficeClass::Designated, &[code(15), code(21)], "短期入所"),
    care(66, OfficeClass::CommunityBased, &[code(78)], "地域密着通所"),
    care(50, OfficeClass::CommunityBased, &[code(32)], "グループホーム"),
    care(20, OfficeClass::CommunityBased, &[code(73), code(68)], "小規模多機能"),
    care(12, OfficeClass::CommunityBased, &[code(76), code(77)], "定期巡回"),
    care(50, OfficeClass::Designated, &[code(17), code(41)], "福祉用具"),
    care(20, OfficeClass::Designated, &[code(33)], "特定施設"),
    facility(24, OfficeClass::Designated, &[code(51), code(21)], "特養"),
    facility(6, OfficeClass::Designated, &[code(51), code(21), code(43)], "特養"),
    facility(8, OfficeClass::CommunityBased, &[code(54)], "地域密着特養"),
    facility(12, OfficeClass::HealthFacility, &[code(52), code(16), code(22)], "老健"),
    facility(3, OfficeClass::HealthFacility, &[code(52), code(43)], "老健"),
    facility(3, OfficeClass::IntegratedFacility, &[code(55)], "介護医療院"),
    medical(80, &[code(31), code(13)], "診療所"),
    medical(25, &[code(14), code(16)], "病院"),
    medical(210, &[], "医院"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_a_thousand_and_each_kind_is_found() {
        assert_eq!(KINDS.iter().map(|kind| kind.share).sum::<u64>(), 1_000);
        for kind in KINDS {
            let found = (0..1_000).filter(|at| std::ptr::eq(pick(*at), kind)).count();
            assert_eq!(found as u64, kind.share, "{}", kind.name);
        }
    }
}
