//! Offices as the operator registered them, and their suspension.
//!
//! Changing an office's service types, and importing whole lists, belong here.

use policies::feed::Fact;
use policies::identity::{OfficeNumber, ServiceType};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{Error, Store};

/// What the operator says about an office.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfficeData {
    /// 事業所番号.
    pub number: OfficeNumber,
    /// Its name, 1 to 200 characters.
    pub name: String,
    /// Its service types.
    pub service_types: Vec<ServiceType>,
    /// Whether it is a medical institution.
    #[serde(default)]
    pub medical: bool,
}

/// A registered office.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Office {
    /// What the operator said; service types sorted, each once.
    #[serde(flatten)]
    pub data: OfficeData,
    /// Whether it is suspended: no access, no new certificates.
    pub suspended: bool,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend_reason: Option<String>,
    /// When it was registered, Unix seconds.
    #[serde(serialize_with = "crate::admin::rfc3339")]
    pub created_at: i64,
}

impl Office {
    fn fact(&self) -> Fact {
        Fact::Office {
            number: self.data.number,
            service_types: self.data.service_types.clone(),
            medical: self.data.medical,
            suspended: self.suspended,
            name: self.data.name.clone(),
        }
    }

    fn of(row: &SqliteRow) -> Result<Self, Error> {
        let number: &str = row.get("number");
        let types: &str = row.get("service_types");
        Ok(Self {
            data: OfficeData {
                number: number.parse().map_err(|_| Error::Corrupt("office number"))?,
                name: row.get("name"),
                service_types: serde_json::from_str(types)
                    .map_err(|_| Error::Corrupt("list of service types"))?,
                medical: row.get("medical"),
            },
            suspended: row.get("suspended"),
            suspend_reason: row.get("suspend_reason"),
            created_at: row.get("created_at"),
        })
    }
}

impl Store {
    /// Registers an office and publishes it; the same data again changes nothing. Says whether the
    /// office is new.
    ///
    /// # Errors
    /// [`Error::OfficeDiffers`], [`Error::Database`], [`Error::Corrupt`].
    pub async fn add_office(
        &self,
        mut data: OfficeData,
        now: i64,
    ) -> Result<(Office, bool), Error> {
        data.service_types.sort_unstable();
        data.service_types.dedup();
        let mut write = self.begin().await?;
        match load(write.connection(), data.number).await {
            Ok(office) if office.data == data => return Ok((office, false)),
            Ok(_) => return Err(Error::OfficeDiffers(data.number)),
            Err(Error::UnknownOffice(_)) => {}
            Err(error) => return Err(error),
        }
        let types = serde_json::to_string(&data.service_types)
            .map_err(|_| Error::Corrupt("list of service types"))?;
        sqlx::query(
            "INSERT INTO office (number, name, service_types, medical, created_at)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(data.number.as_str())
        .bind(&data.name)
        .bind(types)
        .bind(data.medical)
        .bind(now)
        .execute(write.connection())
        .await?;
        let office = Office { data, suspended: false, suspend_reason: None, created_at: now };
        write.publish(&office.fact()).await?;
        write.commit().await?;
        Ok((office, true))
    }

    /// Publishes again every office whose current fact tells no name: it was written before offices
    /// told theirs. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`].
    pub async fn tell_office_names(&self) -> Result<u64, Error> {
        let mut write = self.begin().await?;
        let rows = sqlx::query(
            "SELECT office.* FROM office
             JOIN fact_current ON fact_current.key = 'office/' || office.number
             WHERE json_extract(fact_current.fact, '$.name') IS NULL ORDER BY office.number",
        )
        .fetch_all(write.connection())
        .await?;
        for row in &rows {
            let office = Office::of(row)?;
            write.publish(&office.fact()).await?;
        }
        write.commit().await?;
        Ok(rows.len() as u64)
    }

    /// Every office, by number.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`].
    pub async fn offices(&self) -> Result<Vec<Office>, Error> {
        let rows =
            sqlx::query("SELECT * FROM office ORDER BY number").fetch_all(&self.read).await?;
        rows.iter().map(Office::of).collect()
    }

    /// One office.
    ///
    /// # Errors
    /// [`Error::UnknownOffice`], [`Error::Database`], [`Error::Corrupt`].
    pub async fn office(&self, number: OfficeNumber) -> Result<Office, Error> {
        load(&mut *self.read.acquire().await?, number).await
    }

    /// Suspends an office (with a reason) or resumes it, and publishes that if it is a change.
    /// Returns the office and the sequence number at which the state is published.
    ///
    /// # Errors
    /// [`Error::UnknownOffice`], [`Error::Database`], [`Error::Corrupt`].
    pub async fn set_suspended(
        &self,
        number: OfficeNumber,
        suspended: bool,
        reason: &str,
    ) -> Result<(Office, u64), Error> {
        let mut write = self.begin().await?;
        let mut office = load(write.connection(), number).await?;
        if office.suspended == suspended {
            return Ok((office, super::position(write.connection()).await?.seq));
        }
        office.suspended = suspended;
        office.suspend_reason = suspended.then(|| reason.to_owned());
        sqlx::query("UPDATE office SET suspended = ?, suspend_reason = ? WHERE number = ?")
            .bind(suspended)
            .bind(&office.suspend_reason)
            .bind(number.as_str())
            .execute(write.connection())
            .await?;
        let seq = write.publish(&office.fact()).await?;
        write.commit().await?;
        Ok((office, seq))
    }
}

/// Checks that an office may get certificates.
pub(super) async fn check_active(
    connection: &mut SqliteConnection,
    number: OfficeNumber,
) -> Result<(), Error> {
    let office = load(connection, number).await?;
    if office.suspended { Err(Error::OfficeSuspended(number)) } else { Ok(()) }
}

async fn load(connection: &mut SqliteConnection, number: OfficeNumber) -> Result<Office, Error> {
    let row = sqlx::query("SELECT * FROM office WHERE number = ?")
        .bind(number.as_str())
        .fetch_optional(connection)
        .await?;
    Office::of(&row.ok_or(Error::UnknownOffice(number))?)
}
