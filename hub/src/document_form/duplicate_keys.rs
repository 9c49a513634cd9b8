//! Finds keys that stand twice in one JSON object, at any depth.
//!
//! RFC 8259 leaves open what a doubled key means, so readers differ. A path is written `a.0.b`.

use std::collections::HashSet;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

/// The paths of the doubled keys in `json`, in the order of the text, at most [`FOUND_MAX`].
///
/// # Errors
/// When `json` is not JSON.
pub(super) fn find(json: &str) -> Result<Vec<String>, serde_json::Error> {
    let mut found = Vec::new();
    let walk = Walk { path: "", found: &mut found };
    walk.deserialize(&mut serde_json::Deserializer::from_str(json))?;
    Ok(found)
}

struct Walk<'a> {
    path: &'a str,
    found: &'a mut Vec<String>,
}

impl Walk<'_> {
    fn below(&self, name: impl fmt::Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = self.below(&key);
            if !seen.insert(key) && self.found.len() < FOUND_MAX {
                self.found.push(path.clone());
            }
            map.next_value_seed(Walk { path: &path, found: self.found })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for at in 0usize.. {
            let path = self.below(at);
            if seq.next_element_seed(Walk { path: &path, found: self.found })?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

const FOUND_MAX: usize = 100;
