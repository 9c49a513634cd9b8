//! The capacities in which a principal reads, from its certificate and its office's record.

use crate::facts::Office;
use crate::identity::{Identity, ServiceType, SystemName};
use crate::matrix::{Matrix, Standing};

/// A set of standings, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standings(u16);

impl Standings {
    const NONE: Self = Self(0);

    /// Every capacity in which the principal reads. `office` is its record, if it is an office.
    pub(super) fn of(matrix: &Matrix, principal: &Identity, office: Option<&Office>) -> Self {
        match principal {
            Identity::Office { .. } => {
                office.map_or(Self::NONE, |office| Self::of_office(matrix, office, |_| true))
            }
            Identity::Municipality { .. } => Self::NONE.with(Standing::OwnInsurer, true),
            Identity::System { name: SystemName::Portal, .. } => {
                Self::NONE.with(Standing::Person, true)
            }
            Identity::System { .. } | Identity::Operator { .. } => Self::NONE,
        }
    }

    /// The standings that those service types of the office give it which count.
    pub(super) fn of_office(
        matrix: &Matrix,
        office: &Office,
        counts: impl Fn(ServiceType) -> bool,
    ) -> Self {
        let types = matrix.service_types();
        let (mut home_support, mut when_planning, mut gives_care) = (false, false, false);
        let (mut facility, mut writes_opinions) = (false, false);
        for code in office.service_types.iter().filter(|code| counts(**code)) {
            let home = types.home_support.contains(code);
            let planning = types.home_support_when_planning.contains(code);
            home_support |= home;
            when_planning |= planning;
            gives_care |= !home && !planning;
            facility |= types.facilities.contains(code);
            writes_opinions |= types.opinion_writers.contains(code);
        }
        let care = gives_care && !office.medical;
        Self::NONE
            .with(Standing::HomeSupport, home_support)
            .with(Standing::HomeSupportWhenPlanning, !home_support && when_planning)
            .with(Standing::CareOfficeCareManager, care && !home_support && !facility)
            .with(Standing::FacilityCareManager, care && facility)
            .with(Standing::Care, care && !writes_opinions)
            .with(Standing::CareOpinionWriter, care && writes_opinions)
            .with(Standing::MedicalProvidingCare, office.medical && gives_care)
            .with(Standing::Medical, office.medical && !gives_care)
    }

    /// The standings in both.
    pub(super) fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The standings, in the order of declaration.
    pub(super) fn iter(self) -> impl Iterator<Item = Standing> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let next = Standing::ALL.get(left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(*next)
        })
    }

    fn with(self, standing: Standing, held: bool) -> Self {
        Self(self.0 | u16::from(held) << standing as u16)
    }
}

const _: () = assert!(Standing::ALL.len() < u16::BITS as usize);
