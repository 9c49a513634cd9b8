//! `sekisho cert list|show|revoke`: certificates that the cert-authority issued.

use policies::identity::{Identity, OfficeNumber, Serial};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::cli::Context;
use crate::output::{self, field};

/// Subcommands of `cert`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List certificates
    List {
        /// Only of this office (事業所番号)
        #[arg(long, value_name = "NUMBER")]
        office: Option<OfficeNumber>,
    },
    /// Show one certificate
    Show {
        /// Its serial number, hex
        #[arg(value_parser = serial)]
        serial: Serial,
    },
    /// Revoke one certificate
    Revoke {
        /// Its serial number, hex
        #[arg(value_parser = serial)]
        serial: Serial,
        /// Why (RFC 5280 §5.3.1)
        #[arg(long)]
        reason: Reason,
        /// Return only after every gateway applies it; exit code 1 otherwise
        #[arg(long)]
        wait: bool,
    },
}

/// CRL reasons.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Reason {
    KeyCompromise,
    CessationOfOperation,
    Superseded,
    AffiliationChanged,
    PrivilegeWithdrawn,
    Unspecified,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::KeyCompromise => "key-compromise",
            Self::CessationOfOperation => "cessation-of-operation",
            Self::Superseded => "superseded",
            Self::AffiliationChanged => "affiliation-changed",
            Self::PrivilegeWithdrawn => "privilege-withdrawn",
            Self::Unspecified => "unspecified",
        }
    }
}

/// Runs `cert`.
///
/// # Errors
/// When the RA does not run or refuses.
pub(crate) async fn run(command: &Command, context: &Context) -> anyhow::Result<bool> {
    context.layout.must_exist()?;
    let ra = Admin::ra(&context.layout);
    match command {
        Command::List { office } => {
            let query = office.map(|office| format!("?office={office}")).unwrap_or_default();
            let answer = ra.get(&format!("/certificates{query}")).await?;
            output::data(context.json, &answer, || as_table(&answer));
            Ok(true)
        }
        Command::Show { serial } => {
            let answer = ra.get(&format!("/certificates/{serial}")).await?;
            output::data(context.json, &answer, || as_lines(&answer));
            Ok(true)
        }
        Command::Revoke { serial, reason, wait } => {
            let body = json!({"reason": reason.as_str(), "wait": wait});
            let answer = ra.post(&format!("/certificates/{serial}/revoke"), &body).await?;
            output::data(context.json, &answer, || revoked(*serial, &answer));
            Ok(!wait || output::is_acknowledged(&answer))
        }
    }
}

/// A serial number as it was typed; an error shows it as it was typed, too.
fn serial(text: &str) -> Result<Serial, String> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        format!(
            "`{shown}` is not a certificate serial: expected 1 to 20 bytes in hex, not all zero"
        )
    })
}

/// What a revocation did, in words.
fn revoked(serial: Serial, answer: &Value) -> String {
    let unknown = answer.get("known").and_then(Value::as_bool) == Some(false);
    let note = if unknown { " (not issued by this RA; revoked all the same)" } else { "" };
    format!("revoked {serial}{note}")
}

/// A list, whether it came bare or under one key.
pub(crate) fn items(answer: &Value) -> Vec<&Value> {
    let list = answer.as_array().or_else(|| {
        answer.as_object().and_then(|object| object.values().find_map(Value::as_array))
    });
    list.map(|list| list.iter().collect()).unwrap_or_default()
}

fn as_table(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = items(answer)
        .iter()
        .map(|item| {
            let identity = identity(item).map_or("-".to_owned(), |identity| identity.path());
            let mut row = vec![field(item, "serial"), identity];
            row.extend(["profile", "state", "not_after"].map(|key| field(item, key)));
            row
        })
        .collect();
    output::table(&["SERIAL", "IDENTITY", "PROFILE", "STATE", "NOT AFTER"], &rows)
}

/// The identity in an entry of the list.
pub(crate) fn identity(item: &Value) -> Option<Identity> {
    serde_json::from_value(item.get("identity")?.clone()).ok()
}

/// The fields of an object, one a line.
pub(crate) fn as_lines(answer: &Value) -> String {
    let rows: Vec<String> = answer
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| format!("{key}: {}", field(answer, key)))
        .collect();
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_found_bare_and_under_a_key() {
        let entry = json!({
            "serial": "01ab",
            "state": "active",
            "identity": {"kind": "office", "number": "9970000015", "terminal": "a"},
        });
        for answer in [json!([entry]), json!({"certificates": [entry]})] {
            assert_eq!(items(&answer).len(), 1, "{answer}");
            let table = as_table(&answer);
            assert!(table.contains("01ab    office/9970000015/terminal/a"), "{table}");
        }
        assert!(items(&json!({})).is_empty());
    }

    #[test]
    fn a_serial_that_is_none_is_shown_as_typed() {
        for typed in ["00", "", "xyz", "0:0"] {
            let error = serial(typed).unwrap_err();
            assert!(error.starts_with(&format!("`{typed}` is not")), "{error}");
        }
        assert!(serial("01:AB").is_ok());
    }

    #[test]
    fn revoking_what_the_ra_did_not_issue_is_noted() {
        let serial = serial("01ab").unwrap();
        for (answer, expected) in [
            (
                json!({"known": false, "seq": 3}),
                "revoked 01ab (not issued by this RA; revoked all the same)",
            ),
            (json!({"known": true}), "revoked 01ab"),
            (json!({"seq": 3}), "revoked 01ab"),
        ] {
            assert_eq!(revoked(serial, &answer), expected);
        }
    }
}
