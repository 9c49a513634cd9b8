//! The documents (様式) of the sharing matrix, and sets of them.
//!
//! A kind that is not held here has a row in the matrix but no route: claims (請求) are shared
//! electronically elsewhere (※3 of the seed's table).

use serde::{Deserialize, Serialize};

use crate::identity::named;

named! {
    /// 様式: a kind of document in the sharing matrix.
    DocumentKind, "a document kind (様式)", {
        /// 認① 認定調査票.
        CertificationSurvey = "certification-survey",
        /// 認② 主治医意見書.
        PhysicianOpinion = "physician-opinion",
        /// 認③ 被保険者証.
        InsuredCard = "insured-card",
        /// 認③ 負担割合証.
        BurdenRatio = "burden-ratio",
        /// 認③ 負担限度額認定証.
        BurdenLimit = "burden-limit",
        /// 認④ 要介護認定申請書.
        CertificationApplication = "certification-application",
        /// ケ(1) 居宅サービス計画.
        HomeCarePlan = "home-care-plan",
        /// ケ(2) 施設サービス計画.
        FacilityCarePlan = "facility-care-plan",
        /// L① LIFE 利用者フィードバック票.
        LifeFeedback = "life-feedback",
        /// 改①② 住宅改修費・福祉用具購入費 利用情報.
        HousingEquipment = "housing-equipment",
        /// 請①② 給付管理票・居宅介護支援明細書 (not held).
        BenefitManagement = "benefit-management",
        /// 請③–⑧ 介護給付費請求書・明細書類 (not held).
        BenefitClaims = "benefit-claims",
    }
}

impl DocumentKind {
    /// Whether the hub stores this kind at all.
    pub const fn is_held(self) -> bool {
        !matches!(self, Self::BenefitManagement | Self::BenefitClaims)
    }

    /// The Japanese name, as printed to people.
    pub const fn ja(self) -> &'static str {
        match self {
            Self::CertificationSurvey => "認定調査票",
            Self::PhysicianOpinion => "主治医意見書",
            Self::InsuredCard => "被保険者証",
            Self::BurdenRatio => "負担割合証",
            Self::BurdenLimit => "負担限度額認定証",
            Self::CertificationApplication => "要介護認定申請書",
            Self::HomeCarePlan => "居宅サービス計画",
            Self::FacilityCarePlan => "施設サービス計画",
            Self::LifeFeedback => "LIFE 利用者フィードバック票",
            Self::HousingEquipment => "住宅改修費・福祉用具購入費 利用情報",
            Self::BenefitManagement => "給付管理票・居宅介護支援明細書",
            Self::BenefitClaims => "介護給付費請求書・明細書類",
        }
    }

    const fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

/// A set of document kinds, as a bit set. Serialised as a list of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct DocumentSet(u16);

impl DocumentSet {
    /// The set of nothing.
    pub const EMPTY: Self = Self(0);

    /// Every kind that the hub stores: the scope of a comprehensive consent (包括同意).
    pub fn held() -> Self {
        DocumentKind::ALL.iter().copied().filter(|kind| kind.is_held()).collect()
    }

    /// Whether `kind` is in the set.
    pub const fn contains(self, kind: DocumentKind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// Adds `kind`.
    pub fn insert(&mut self, kind: DocumentKind) {
        self.0 |= kind.bit();
    }

    /// The kinds in either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set holds nothing.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as bits, one for each kind in the order of the matrix.
    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    /// The set with these bits; `None` if one of them is of no kind.
    pub(crate) fn from_bits(bits: u16) -> Option<Self> {
        (bits >> DocumentKind::ALL.len() == 0).then_some(Self(bits))
    }

    /// The kinds, in the order of the matrix.
    pub fn iter(self) -> impl Iterator<Item = DocumentKind> {
        DocumentKind::ALL.iter().copied().filter(move |kind| self.contains(*kind))
    }
}

impl FromIterator<DocumentKind> for DocumentSet {
    fn from_iter<I: IntoIterator<Item = DocumentKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::EMPTY, |mut set, kind| {
            set.insert(kind);
            set
        })
    }
}

impl Serialize for DocumentSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for DocumentSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<DocumentKind>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_round_trip_as_lists_of_names() {
        let set: DocumentSet =
            [DocumentKind::BurdenRatio, DocumentKind::LifeFeedback].into_iter().collect();
        let json = serde_json::to_string(&set).unwrap();
        assert_eq!(json, r#"["burden-ratio","life-feedback"]"#);
        assert_eq!(serde_json::from_str::<DocumentSet>(&json).unwrap(), set);
        assert!(serde_json::from_str::<DocumentSet>(r#"["claims"]"#).is_err());
    }

    #[test]
    fn claims_are_never_held() {
        assert!(!DocumentSet::held().contains(DocumentKind::BenefitClaims));
        assert!(!DocumentSet::held().contains(DocumentKind::BenefitManagement));
        assert_eq!(DocumentSet::held().iter().count(), 10);
    }
}
