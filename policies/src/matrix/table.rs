//! The table of the slide as plain values: document × party × relation → mark.

use serde::Serialize;

use super::{Column, Matrix};
use crate::identity::named;

named! {
    /// A party as the table is exchanged.
    Party, "a party of the table", {
        /// 利用者.
        Insured = "insured",
        /// 市区町村.
        Municipality = "municipality",
        /// 居宅介護支援事業所.
        CareManagement = "care-management",
        /// 介護事業所 other than those of ※2.
        CareService = "care-service",
        /// 介護老人保健施設 and 介護医療院 (※2).
        GeriatricFacility = "geriatric-facility",
        /// 医療機関.
        Medical = "medical",
    }
}

named! {
    /// Which half of a pair. Under ᵇ the left half is that of institutions that provide care.
    Relation, "a relation", {
        /// 作成事業所.
        Author = "author",
        /// Every other one.
        Other = "other",
    }
}

named! {
    /// A mark in words.
    Word, "a mark in words", {
        /// ★.
        Author = "author",
        /// ○.
        Shared = "shared",
        /// ◎.
        Consent = "consent",
        /// –.
        None = "none",
        /// ※3: there is no route at all.
        NotStored = "not-stored",
    }
}

/// One field of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// The kind of document; `claims` for both kinds that are not stored.
    pub document: &'static str,
    /// Whose field it is.
    pub party: Party,
    /// Which half.
    pub relation: Relation,
    /// What stands there.
    pub mark: Word,
}

impl Matrix {
    /// Every field of the table under this profile, in the order of the slide.
    pub fn fields(&self) -> Vec<Field> {
        let mut fields = Vec::new();
        let mut claims = false;
        for row in &self.rows {
            if !row.held && std::mem::replace(&mut claims, true) {
                continue;
            }
            for party in Party::ALL {
                let text = row.marks.get(&column(*party)).map_or("", String::as_str);
                for relation in Relation::ALL {
                    let mark =
                        if row.held { mark(text, *party, *relation) } else { Word::NotStored };
                    let document = if row.held { row.document.as_str() } else { "claims" };
                    fields.push(Field { document, party: *party, relation: *relation, mark });
                }
            }
        }
        fields
    }
}

const fn column(party: Party) -> Column {
    match party {
        Party::Insured => Column::Person,
        Party::Municipality => Column::Municipality,
        Party::CareManagement => Column::HomeSupport,
        Party::CareService | Party::GeriatricFacility => Column::Care,
        Party::Medical => Column::Medical,
    }
}

fn mark(text: &str, party: Party, relation: Relation) -> Word {
    let (left, right) = text.split_once('|').unwrap_or((text, text));
    let half = match relation {
        Relation::Author => left.trim(),
        Relation::Other => right.trim(),
    };
    match half.chars().next() {
        _ if half.contains("※2") && party == Party::CareService => Word::None,
        Some('★') => Word::Author,
        Some('○') => Word::Shared,
        Some('◎') => Word::Consent,
        Some(_) | None => Word::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Profile;

    /// The seed's table by hand: insured, municipality, care-management author | other,
    /// care-service author | other, geriatric-facility author | other, medical author | other.
    const DECK: [(&str, [&str; 10]); 11] = [
        ("certification-survey", ["–", "★", "◎", "◎", "–", "–", "–", "–", "–", "–"]),
        ("physician-opinion", ["–", "○", "◎", "◎", "–", "–", "★", "◎", "★", "◎"]),
        ("insured-card", ["○", "★", "○", "○", "○", "○", "○", "○", "○", "◎"]),
        ("burden-ratio", ["○", "★", "○", "○", "○", "○", "○", "○", "○", "◎"]),
        ("burden-limit", ["○", "★", "○", "○", "○", "○", "○", "○", "○", "◎"]),
        ("certification-application", ["★", "○", "–", "–", "–", "–", "–", "–", "–", "–"]),
        ("claims", ["x"; 10]),
        ("life-feedback", ["◎", "◎", "◎", "◎", "★", "◎", "★", "◎", "◎", "◎"]),
        ("home-care-plan", ["○", "◎", "★", "–", "○", "○", "○", "○", "◎", "◎"]),
        ("facility-care-plan", ["○", "◎", "★", "–", "○", "○", "○", "○", "◎", "◎"]),
        ("housing-equipment", ["◎", "★", "◎", "◎", "–", "–", "–", "–", "–", "–"]),
    ];

    fn field(document: &str, party: Party, relation: Relation) -> &'static str {
        let (_, marks) = DECK.iter().find(|(name, _)| *name == document).unwrap();
        let half = usize::from(relation == Relation::Other);
        match party {
            Party::Insured => marks[0],
            Party::Municipality => marks[1],
            Party::CareManagement => marks[2 + half],
            Party::CareService => marks[4 + half],
            Party::GeriatricFacility => marks[6 + half],
            Party::Medical => marks[8 + half],
        }
    }

    #[test]
    fn the_table_says_what_the_seeds_table_says() {
        let fields = Matrix::builtin(Profile::Deck2025).unwrap().fields();
        assert_eq!(fields.len(), DECK.len() * Party::ALL.len() * Relation::ALL.len());
        for Field { document, party, relation, mark } in fields {
            let expected = match field(document, party, relation) {
                "★" => Word::Author,
                "○" => Word::Shared,
                "◎" => Word::Consent,
                "–" => Word::None,
                _ => Word::NotStored,
            };
            assert_eq!(mark, expected, "{document} {party} {relation}");
        }
    }

    #[test]
    fn the_later_profile_changes_the_fields_that_its_sources_name() {
        let fields = Matrix::builtin(Profile::Impl2027).unwrap().fields();
        let mark = |document: &str, party, relation| {
            let same = |field: &&Field| {
                (field.document, field.party, field.relation) == (document, party, relation)
            };
            fields.iter().find(same).unwrap().mark
        };
        let plan = mark("home-care-plan", Party::CareManagement, Relation::Other);
        assert_eq!(plan, Word::Consent);
        assert_eq!(mark("burden-ratio", Party::Medical, Relation::Other), Word::None);
        assert_eq!(mark("insured-card", Party::Medical, Relation::Other), Word::Consent);
    }
}
