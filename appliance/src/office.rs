//! `sekisho office add|list|show|suspend|resume|import`: the offices (事業所) that the operator
//! knows. The cert-authority keeps them; the gateway refuses every other office.

use std::path::{Path, PathBuf};

use policies::identity::{OfficeNumber, ServiceType};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::cert;
use crate::cli::Context;
use crate::exit::usage;
use crate::files;
use crate::output::{self, field, progress};

mod import;

/// Subcommands of `office`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Register an office
    Add {
        /// 事業所番号
        number: OfficeNumber,
        /// Its name
        #[arg(long)]
        name: String,
        /// サービス種類コード, separated by `;`, such as `43` or `15;78`
        #[arg(long, value_name = "CODES", value_delimiter = ';')]
        service_types: Vec<ServiceType>,
        /// A medical institution (病院・診療所)
        #[arg(long)]
        medical: bool,
    },
    /// List offices
    List,
    /// Show one office
    Show {
        /// 事業所番号
        number: OfficeNumber,
    },
    /// Suspend an office: every one of its terminals is refused at once
    Suspend {
        /// 事業所番号
        number: OfficeNumber,
        /// Why; kept in the audit log
        #[arg(long)]
        reason: String,
    },
    /// Let a suspended office in again
    Resume {
        /// 事業所番号
        number: OfficeNumber,
        /// Why; kept in the audit log
        #[arg(long, default_value = "resumed by the operator")]
        reason: String,
    },
    /// Register every office of a CSV file: number,name,service_types,medical
    Import {
        /// The file, UTF-8 or Shift-JIS; service types separated by `;`, medical true or false
        file: PathBuf,
    },
}

/// One office as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Office {
    /// 事業所番号.
    pub(crate) number: OfficeNumber,
    /// Its name.
    pub(crate) name: String,
    /// サービス種類コード.
    pub(crate) service_types: Vec<ServiceType>,
    /// Whether it is a medical institution.
    pub(crate) medical: bool,
}

impl Office {
    /// The body of the RA's `POST /offices`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "number": self.number,
            "name": self.name,
            "service_types": self.service_types,
            "medical": self.medical,
        })
    }

    /// What is odd about the number, where something is.
    pub(crate) fn warning(&self) -> Option<String> {
        let number = self.number;
        (!number.check_digit_fits()).then(|| {
            format!("office number `{number}` has a check digit that fits neither rule: check it")
        })
    }
}

/// Runs `office`.
///
/// # Errors
/// When the RA does not run or refuses, or a file is wrong.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let ra = Admin::ra(&context.layout);
    match command {
        Command::Add { number, name, service_types, medical } => {
            let office = Office {
                number: *number,
                name: name.clone(),
                service_types: service_types.clone(),
                medical: *medical,
            };
            add(&office, &ra, context).await?;
        }
        Command::List => {
            let answer = ra.get("/offices").await?;
            output::data(context.json, &answer, || as_table(&answer));
        }
        Command::Show { number } => {
            let answer = ra.get(&format!("/offices/{number}")).await?;
            output::data(context.json, &answer, || cert::as_lines(&answer));
        }
        Command::Suspend { number, reason } => {
            let path = format!("/offices/{number}/suspend");
            let answer = ra.post(&path, &json!({"reason": reason})).await?;
            output::data(context.json, &answer, || format!("office {number} is suspended"));
        }
        Command::Resume { number, reason } => {
            let path = format!("/offices/{number}/resume");
            let answer = ra.post(&path, &json!({"reason": reason})).await?;
            output::data(context.json, &answer, || format!("office {number} is let in again"));
        }
        Command::Import { file } => {
            let value = import_file(file, &ra).await?;
            output::data(context.json, &value, || format!("{} offices", field(&value, "offices")));
        }
    }
    Ok(true)
}

async fn add(office: &Office, ra: &Admin, context: &Context) -> anyhow::Result<()> {
    if office.service_types.is_empty() && !office.medical {
        return Err(usage(
            "an office needs a service type (--service-types 43) unless it is --medical",
        ));
    }
    if let Some(warning) = office.warning() {
        progress(&format!("warning: {warning}"));
    }
    let answer = ra.post("/offices", &office.to_json()).await?;
    output::data(context.json, &answer, || format!("office {} is registered", office.number));
    Ok(())
}

fn as_table(answer: &Value) -> String {
    let keys = ["number", "service_types", "medical", "suspended", "name"];
    let rows: Vec<Vec<String>> = cert::items(answer)
        .iter()
        .map(|item| keys.iter().map(|key| field(item, key)).collect())
        .collect();
    output::table(&["NUMBER", "SERVICES", "MEDICAL", "SUSPENDED", "NAME"], &rows)
}

/// Checks the whole file, then registers its offices: a file with a problem changes nothing.
async fn import_file(file: &Path, ra: &Admin) -> anyhow::Result<Value> {
    let mut checked = import::read(&files::read_given(file)?);
    let known = ra.get("/offices").await?;
    checked.compare(&cert::items(&known));
    for warning in &checked.warnings {
        progress(&format!("warning: {}: {warning}", file.display()));
    }
    if !checked.problems.is_empty() {
        for problem in &checked.problems {
            progress(&format!("{}: {problem}", file.display()));
        }
        return Err(usage(format!(
            "file `{}` has {}; nothing was imported: correct the lines above",
            file.display(),
            checked.how_many()
        )));
    }
    for (done, (line, office)) in checked.offices.iter().enumerate() {
        ra.post("/offices", &office.to_json()).await.map_err(|error| {
            anyhow::anyhow!(
                "{error:#}: line {line} of `{}`; {done} offices before it are registered; import \
                 the file again when this is solved",
                file.display()
            )
        })?;
    }
    Ok(json!({"offices": checked.offices.len(), "warnings": checked.warnings}))
}
