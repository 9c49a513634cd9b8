//! Who takes part in the demo. All invented.

use policies::identity::Identity;
use serde_json::{Value, json};

use crate::exit::usage;
use crate::layout::Layout;
use crate::office::Office;

/// The demo municipality's 保険者番号.
pub(super) const INSURER: &str = "131016";

/// The demo persons: 被保険者番号 and invented name. The first is shared with an office, the second
/// with none.
pub(super) const INSURED: [(&str, &str); 2] =
    [("0000000001", "見本 一郎"), ("0000000002", "見本 二子")];

/// One demo party: a terminal with its certificate.
#[derive(Debug)]
pub(super) struct Party {
    /// Its name and folder.
    pub(super) name: &'static str,
    /// Its identity path.
    pub(super) path: &'static str,
    /// The office that it belongs to.
    pub(super) office: Option<OfficeRecord>,
    /// Its member of staff.
    pub(super) staff: Option<StaffRecord>,
}

/// An invented office.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfficeRecord {
    number: &'static str,
    name: &'static str,
    service_types: &'static [&'static str],
    medical: bool,
}

/// An invented member of staff.
#[derive(Debug, Clone, Copy)]
pub(super) struct StaffRecord {
    /// Staff id.
    pub(super) id: &'static str,
    /// Name.
    pub(super) name: &'static str,
    /// 職種.
    pub(super) job: &'static str,
}

const CARE_MANAGEMENT: OfficeRecord = OfficeRecord {
    number: "9970000015",
    name: "見本居宅介護支援事業所",
    service_types: &["43"],
    medical: false,
};

const DAY_CARE: OfficeRecord = OfficeRecord {
    number: "9970000023",
    name: "見本デイサービス",
    service_types: &["15"],
    medical: false,
};

const HOSPITAL: OfficeRecord =
    OfficeRecord { number: "9910000018", name: "見本病院", service_types: &[], medical: true };

const CARE_MANAGER: StaffRecord =
    StaffRecord { id: "cm-01", name: "見本 花子 (介護支援専門員)", job: "care-manager" };

const CARE_WORKER: StaffRecord =
    StaffRecord { id: "cw-01", name: "見本 次郎 (介護職員)", job: "care-worker" };

const PHYSICIAN: StaffRecord =
    StaffRecord { id: "dr-01", name: "見本 三郎 (医師)", job: "physician" };

/// Every party, in the order of enrolment.
pub(super) const ALL: [Party; 9] = [
    Party {
        name: "care-management-1",
        path: "office/9970000015/terminal/desk-1",
        office: Some(CARE_MANAGEMENT),
        staff: Some(CARE_MANAGER),
    },
    Party {
        name: "care-management-1b",
        path: "office/9970000015/terminal/desk-2",
        office: Some(CARE_MANAGEMENT),
        staff: Some(CARE_MANAGER),
    },
    Party {
        name: "day-care-1",
        path: "office/9970000023/terminal/desk-1",
        office: Some(DAY_CARE),
        staff: Some(CARE_WORKER),
    },
    Party {
        name: "hospital-1",
        path: "office/9910000018/terminal/desk-1",
        office: Some(HOSPITAL),
        staff: Some(PHYSICIAN),
    },
    system("municipality-131016", "municipality/131016/terminal/main-1"),
    system("care-plan-exchange", "system/care-plan-exchange/terminal/main-1"),
    system("life", "system/life/terminal/main-1"),
    system("pmh", "system/pmh/terminal/main-1"),
    system("portal", "system/portal/terminal/main-1"),
];

const fn system(name: &'static str, path: &'static str) -> Party {
    Party { name, path, office: None, staff: None }
}

impl Party {
    /// Its identity.
    ///
    /// # Errors
    /// Never for the parties here; a test reads them all.
    pub(super) fn identity(&self) -> anyhow::Result<Identity> {
        Ok(Identity::from_path(self.path)?)
    }

    /// Its entry in env.json.
    pub(super) fn to_json(&self, layout: &Layout) -> Value {
        let folder = layout.demo(self.name);
        let kind = self.path.split('/').next().unwrap_or_default();
        let mut entry = json!({
            "name": self.name,
            "kind": kind,
            "identity": self.path,
            "cert": folder.join("cert.pem"),
            "key": folder.join("key.pem"),
        });
        if let Some(office) = self.office {
            entry["office_number"] = json!(office.number);
            entry["office_name"] = json!(office.name);
            entry["service_types"] = json!(office.service_types);
            entry["medical"] = json!(office.medical);
            entry["staff"] = json!(folder.join("staff.json"));
        }
        entry
    }
}

impl OfficeRecord {
    /// As the RA registers it.
    ///
    /// # Errors
    /// Never for the offices here.
    pub(super) fn office(&self) -> anyhow::Result<Office> {
        let service_types = self.service_types.iter().map(|code| code.parse());
        Ok(Office {
            number: self.number.parse()?,
            name: self.name.to_owned(),
            service_types: service_types.collect::<Result<_, _>>()?,
            medical: self.medical,
        })
    }
}

/// The party of a name.
///
/// # Errors
/// A usage error that lists the names.
pub(super) fn find(name: &str) -> anyhow::Result<&'static Party> {
    static PARTIES: [Party; 9] = ALL;
    PARTIES.iter().find(|party| party.name == name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|party| party.name).collect();
        usage(format!("no demo party `{name}`: choose one of {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::identity::{InsuredKey, Job};

    #[test]
    fn parties_are_well_formed_and_marked_as_invented() {
        for party in ALL {
            let identity = party.identity().unwrap();
            assert_eq!(identity.path(), party.path);
            let Some(record) = party.office else { continue };
            let office = record.office().unwrap();
            assert_eq!(identity.office(), Some(office.number));
            assert_eq!(office.warning(), None, "{}", party.name);
            assert!(office.name.contains("見本") && record.number.starts_with("99"));
            let staff = party.staff.unwrap();
            assert!(staff.name.contains("見本") && staff.job.parse::<Job>().is_ok());
        }
        for (number, name) in INSURED {
            assert!(format!("{INSURER}/{number}").parse::<InsuredKey>().is_ok());
            assert!(name.contains("見本"));
        }
        assert!(find("life").is_ok() && find("nobody").is_err());
    }
}
