//! What search and export look for: arguments to a query.

use audit_log::{ALLOW, DENY, Pseudonym, Query};
use policies::document::DocumentKind;
use policies::identity::{InsuredKey, OfficeNumber};

use crate::cli::Context;
use crate::exit::usage;
use crate::files;
use crate::layout::{Layout, Part};
use crate::output::progress;
use crate::part_config;

use super::moment::Moment;

/// All that are given must hold.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filter {
    /// The person (by the pseudonym key of the data folder)
    #[arg(long, value_name = "INSURER/NUMBER")]
    person: Option<InsuredKey>,
    /// The person, by pseudonym (32 hex digits)
    #[arg(long, value_name = "HEX", conflicts_with = "person", value_parser = pseudonym)]
    pseudonym: Option<String>,
    /// 事業所番号 of who acted
    #[arg(long, value_name = "NUMBER")]
    office: Option<OfficeNumber>,
    /// Staff id of who acted
    #[arg(long, value_name = "ID")]
    staff: Option<String>,
    /// Who acted, such as office/1370000001/terminal/front-1; with --office the terminal's name
    #[arg(long, value_name = "PRINCIPAL")]
    terminal: Option<String>,
    /// Document kind, such as certification-survey
    #[arg(long, value_name = "KIND")]
    document: Option<DocumentKind>,
    /// Reason code of a denial, such as not_registered
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Name of the operation, such as documents.view
    #[arg(long, value_name = "NAME")]
    action: Option<String>,
    /// Request id
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Only what was denied
    #[arg(long, conflicts_with = "allowed")]
    denied: bool,
    /// Only what was allowed
    #[arg(long)]
    allowed: bool,
    /// From this day in Japan (2026-04-01) or time (RFC 3339) on
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Up to the end of this day in Japan, or up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
}

impl Filter {
    /// The query; says which times the dates were taken for.
    ///
    /// # Errors
    /// When the pseudonym key cannot be read; a usage error when the times are in the wrong order.
    pub(super) fn query(&self, context: &Context) -> anyhow::Result<Query> {
        let from = self.since.map(Moment::first);
        let until = self.until.map(Moment::last);
        if let (Some(from), Some(until)) = (&from, &until)
            && from > until
        {
            return Err(usage("--since is later than --until: swap them"));
        }
        for (word, moment, at) in [("since", self.since, &from), ("until", self.until, &until)] {
            if let (Some(moment @ Moment::Day(_)), Some(at)) = (moment, at) {
                progress(&format!("{word} {moment}: {at}"));
            }
        }
        let insured = match &self.person {
            Some(person) => Some(pseudonym_of(&context.layout, person)?),
            None => self.pseudonym.clone(),
        };
        let decision = match (self.allowed, self.denied) {
            (true, _) => Some(ALLOW.to_owned()),
            (false, true) => Some(DENY.to_owned()),
            (false, false) => None,
        };
        Ok(Query {
            insured,
            office: self.office.as_ref().map(|office| office.as_str().to_owned()),
            staff: self.staff.clone(),
            terminal: self.terminal(),
            document: self.document.map(|kind| kind.to_string()),
            reason: self.reason.clone(),
            action: self.action.clone(),
            request_id: self.request.clone(),
            from,
            until,
            decision,
        })
    }

    fn terminal(&self) -> Option<String> {
        let terminal = self.terminal.as_ref()?;
        match &self.office {
            Some(office) if !terminal.contains('/') => {
                Some(format!("office/{}/terminal/{terminal}", office.as_str()))
            }
            Some(_) | None => Some(terminal.clone()),
        }
    }
}

/// The pseudonym of a person, with the key that hub and gateway use.
fn pseudonym_of(layout: &Layout, person: &InsuredKey) -> anyhow::Result<String> {
    let configured = part_config::find(layout, Part::Hub, "pseudonym_key").ok().flatten();
    let path = configured.map_or_else(|| layout.secret("pseudonym.key"), Into::into);
    let key = files::read_at_most(&path, 32).map_err(|error| {
        usage(format!("{error:#}: name the data folder with --data, or use --pseudonym"))
    })?;
    let key: [u8; 32] = key.try_into().map_err(|_| {
        usage(format!("key file `{}` has not 32 bytes: restore it", path.display()))
    })?;
    Ok(Pseudonym::new(&key).of(&person.to_string()))
}

fn pseudonym(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if text.len() == PSEUDONYM_DIGITS && digits {
        return Ok(text.to_owned());
    }
    Err(format!("a pseudonym has {PSEUDONYM_DIGITS} lower-case hex digits"))
}

const PSEUDONYM_DIGITS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_looked_for_under_the_pseudonym_of_the_folders_key() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        let person: InsuredKey = "131016/0000000001".parse().unwrap();
        let filter = Filter { person: Some(person), ..Filter::default() };
        let context = Context { layout: layout.clone(), json: false };
        let error = filter.query(&context).unwrap_err();
        assert!(error.to_string().contains("--pseudonym"), "{error}");
        files::private_folder(&layout.secret("")).unwrap();
        files::write_private(&layout.secret("pseudonym.key"), &[7; 32]).unwrap();
        let expected = Pseudonym::new(&[7; 32]).of("131016/0000000001");
        assert_eq!(filter.query(&context).unwrap().insured, Some(expected));
    }

    #[test]
    fn a_terminals_name_is_completed_by_its_office() {
        let office: OfficeNumber = "1370000001".parse().unwrap();
        let whole = "office/1370000001/terminal/front-1";
        for (terminal, office, expected) in [
            ("front-1", Some(office), whole),
            (whole, None, whole),
            ("municipality/131016", None, "municipality/131016"),
        ] {
            let filter = Filter { terminal: Some(terminal.into()), office, ..Filter::default() };
            assert_eq!(filter.terminal().as_deref(), Some(expected));
        }
    }

    #[test]
    fn times_in_the_wrong_order_are_refused() {
        let layout = Layout::new(std::path::Path::new("/none")).unwrap();
        let filter = Filter {
            since: "2026-04-02".parse().ok(),
            until: "2026-04-01".parse().ok(),
            ..Filter::default()
        };
        let error = filter.query(&Context { layout, json: false }).unwrap_err();
        assert_eq!(crate::exit::exit_code(&error), 64);
        assert!(pseudonym("ab").is_err() && pseudonym(&"A".repeat(32)).is_err());
    }
}
