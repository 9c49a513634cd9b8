//! Who takes part in the tour: invented offices, an invented municipality, two invented persons,
//! and their terminals.
//!
//! Offices and municipality stay the same each time; persons and terminals are new.

use policies::identity::{Identity, InsuredKey, InsurerNumber, OfficeNumber, Serial, TerminalId};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::admin::Admin;
use crate::client::{Client, Credentials, TlsVersion};
use crate::layout::Layout;

use super::system::Env;

/// An invented office. Numbers that begin with 99 belong to no prefecture.
#[derive(Debug)]
pub(super) struct Office {
    /// 事業所番号.
    pub(super) number: &'static str,
    /// Its name, marked as invented.
    pub(super) name: &'static str,
    /// What it is.
    pub(super) what: &'static str,
    /// サービス種類コード.
    pub(super) service_types: &'static [&'static str],
    /// Whether it is a medical institution.
    pub(super) medical: bool,
}

/// The 居宅介護支援事業所 that looks after the person.
pub(super) const CARE_MANAGEMENT: Office = Office {
    number: "9979900017",
    name: "関所巡り居宅介護支援事業所（架空）",
    what: "居宅介護支援事業所",
    service_types: &["43"],
    medical: false,
};

/// Another one, with nothing to do with the person.
pub(super) const OTHER_CARE_MANAGEMENT: Office = Office {
    number: "9979900025",
    name: "関所巡り第二居宅介護支援事業所（架空）",
    what: "別の居宅介護支援事業所",
    service_types: &["43"],
    medical: false,
};

/// A 通所介護 office.
pub(super) const DAY_SERVICE: Office = Office {
    number: "9979900033",
    name: "関所巡り通所介護（架空）",
    what: "通所介護事業所",
    service_types: &["15"],
    medical: false,
};

/// A hospital.
pub(super) const HOSPITAL: Office = Office {
    number: "9919900044",
    name: "関所巡り病院（架空）",
    what: "病院",
    service_types: &[],
    medical: true,
};

/// The invented municipality (保険者番号).
const INSURER: &str = "990010";

/// Everything that the steps share.
pub(super) struct Scene {
    /// The data folder.
    pub(super) layout: Layout,
    /// Addresses and trust.
    pub(super) env: Env,
    /// The RA's admin socket.
    pub(super) ra: Admin,
    /// The hub's admin socket.
    pub(super) hub: Admin,
    /// Where the enrolment client writes keys; removed at the end.
    pub(super) keys: TempDir,
    /// The municipality.
    pub(super) insurer: InsurerNumber,
    /// The person that the tour is about.
    pub(super) person: InsuredKey,
    /// A person who appears only in files that are refused.
    pub(super) bystander: InsuredKey,
    /// What makes this tour's terminals and staff its own.
    pub(super) mark: String,
}

impl Scene {
    /// New persons and terminal names from the time.
    pub(super) fn new(layout: &Layout, env: Env) -> anyhow::Result<Self> {
        let milliseconds = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        let insurer: InsurerNumber = INSURER.parse()?;
        let person = |offset: i128| -> anyhow::Result<InsuredKey> {
            let number = format!("{:010}", (milliseconds + offset) % 10_000_000_000);
            Ok(InsuredKey { insurer, number: number.parse()? })
        };
        Ok(Self {
            layout: layout.clone(),
            env,
            ra: Admin::ra(layout),
            hub: Admin::hub(layout),
            keys: tempfile::tempdir()?,
            insurer,
            person: person(0)?,
            bystander: person(1)?,
            mark: format!("{milliseconds:x}"),
        })
    }

    /// A terminal's id that no earlier tour used.
    pub(super) fn terminal(&self, name: &str) -> anyhow::Result<TerminalId> {
        Ok(format!("tour-{}-{name}", self.mark).parse()?)
    }

    /// The identity of a terminal of an office.
    pub(super) fn office(&self, office: &Office, name: &str) -> anyhow::Result<Identity> {
        Ok(Identity::Office { number: number(office)?, terminal: self.terminal(name)? })
    }

    /// A TLS 1.3 client of the gateway.
    pub(super) fn client(&self, credentials: Option<&Credentials>) -> anyhow::Result<Client> {
        self.client_of(credentials, TlsVersion::Tls13)
    }

    /// A client of the gateway.
    pub(super) fn client_of(
        &self,
        credentials: Option<&Credentials>,
        version: TlsVersion,
    ) -> anyhow::Result<Client> {
        Client::new(&self.env.gateway, &self.env.trust, credentials, version)
    }

    /// The path of something about the tour's person.
    pub(super) fn path(&self, rest: &str) -> String {
        path(self.person, rest)
    }
}

/// The path of something about a person.
pub(super) fn path(person: InsuredKey, rest: &str) -> String {
    format!("/v1/insured/{person}/{rest}")
}

/// The number of an office, checked.
pub(super) fn number(office: &Office) -> anyhow::Result<OfficeNumber> {
    Ok(office.number.parse()?)
}

/// An enrolled terminal.
pub(super) struct Terminal {
    /// Whom its certificate names.
    pub(super) identity: Identity,
    /// Its certificate and key.
    pub(super) credentials: Credentials,
    /// The certificate's serial number.
    pub(super) serial: Serial,
    /// Its side of TLS.
    pub(super) client: Client,
}

/// The enrolled terminals.
pub(super) struct Cast {
    /// Of the 居宅介護支援事業所.
    pub(super) care_management: Terminal,
    /// A second one of the same office.
    pub(super) second_terminal: Terminal,
    /// Of the other 居宅介護支援事業所.
    pub(super) other_care_management: Terminal,
    /// Of the 通所介護 office.
    pub(super) day_service: Terminal,
    /// Of the hospital.
    pub(super) hospital: Terminal,
    /// Of the municipal system.
    pub(super) municipality: Terminal,
    /// ケアプランデータ連携システム.
    pub(super) exchange: Terminal,
    /// LIFE.
    pub(super) life: Terminal,
    /// マイナポータル.
    pub(super) portal: Terminal,
}
