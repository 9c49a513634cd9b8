//! The service types of an office, kept with its record: a decision looks at them each time.

use std::ops::Deref;

use crate::identity::ServiceType;

/// Service type codes, in the order of the record. Most offices have a few, which lie in the value
/// itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTypes(Held);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Few { count: u8, codes: [ServiceType; FEW] },
    Many(Box<[ServiceType]>),
}

impl Deref for ServiceTypes {
    type Target = [ServiceType];

    fn deref(&self) -> &[ServiceType] {
        match &self.0 {
            Held::Few { count, codes } => &codes[..usize::from(*count)],
            Held::Many(codes) => codes,
        }
    }
}

impl From<Vec<ServiceType>> for ServiceTypes {
    fn from(codes: Vec<ServiceType>) -> Self {
        let Some(first) = codes.first().filter(|_| codes.len() <= FEW) else {
            return Self(Held::Many(codes.into()));
        };
        // What lies beyond the count is never looked at.
        let mut few = [*first; FEW];
        few[..codes.len()].copy_from_slice(&codes);
        Self(Held::Few { count: codes.len() as u8, codes: few })
    }
}

/// As many as make the value no larger than a list's three words.
const FEW: usize = 11;
const _: () = assert!(size_of::<ServiceTypes>() <= size_of::<Vec<ServiceType>>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_the_codes_that_were_given() {
        for count in 0..30 {
            let code = |at: usize| format!("{:02}", at % 10 + 10).parse().unwrap();
            let codes: Vec<ServiceType> = (0..count).map(code).collect();
            let held = ServiceTypes::from(codes.clone());
            assert_eq!(*held, *codes);
            assert_eq!(matches!(held.0, Held::Few { .. }), (1..=FEW).contains(&count), "{count}");
        }
    }
}
