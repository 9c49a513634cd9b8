//! Identifiers put together from their parts, where a program makes them up: no text is parsed,
//! and no part can be out of range, so nothing can fail. What comes out is what the parser takes.

use std::num::NonZeroU128;

use super::{InsuredNumber, InsurerNumber, OfficeNumber, Serial, ServiceType, check_digit};

/// 区分: the third character of an office number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfficeClass {
    /// 地域包括支援センター.
    CommunitySupport,
    /// 医科.
    Medical,
    /// 介護老人保健施設.
    HealthFacility,
    /// 訪問看護.
    VisitingNurse,
    /// 指定事業所.
    Designated,
    /// 地域密着型.
    CommunityBased,
    /// 介護医療院, as found in the ministry's open data.
    IntegratedFacility,
}

impl OfficeClass {
    const fn character(self) -> u8 {
        match self {
            Self::CommunitySupport => b'0',
            Self::Medical => b'1',
            Self::HealthFacility => b'5',
            Self::VisitingNurse => b'6',
            Self::Designated => b'7',
            Self::CommunityBased => b'9',
            Self::IntegratedFacility => b'B',
        }
    }
}

impl OfficeNumber {
    /// The number with these parts, as far as they have room (2, 2 and 4 digits), and the check
    /// digit over its first nine characters.
    pub fn from_parts(prefecture: u8, class: OfficeClass, district: u8, serial: u16) -> Self {
        let mut number = [b'0'; 10];
        write(&mut number[..2], u64::from(prefecture));
        number[2] = class.character();
        write(&mut number[3..5], u64::from(district));
        write(&mut number[5..9], u64::from(serial));
        number[9] = b'0' + check_digit(&number[..9]);
        Self(number)
    }
}

impl InsurerNumber {
    /// The number of a municipality, as far as its parts have room (2 and 3 digits), with the check
    /// digit of the 2-1 rule.
    pub fn from_parts(prefecture: u8, municipality: u16) -> Self {
        let mut number = [b'0'; 6];
        write(&mut number[..2], u64::from(prefecture));
        write(&mut number[2..5], u64::from(municipality));
        number[5] = b'0' + check_digit(&number[..5]);
        Self(number)
    }
}

impl InsuredNumber {
    /// The last ten digits of a number.
    pub fn from_last_digits(number: u64) -> Self {
        let mut digits = [b'0'; 10];
        write(&mut digits, number);
        Self(digits)
    }
}

impl ServiceType {
    /// The last two digits of a number.
    pub const fn from_last_digits(number: u8) -> Self {
        Self([b'0' + number / 10 % 10, b'0' + number % 10])
    }
}

impl From<NonZeroU128> for Serial {
    fn from(value: NonZeroU128) -> Self {
        let leading = value.get().leading_zeros() as usize / 8;
        let value = value.get().to_be_bytes();
        let mut bytes = [0; 20];
        bytes[..value.len() - leading].copy_from_slice(&value[leading..]);
        Self { length: (value.len() - leading) as u8, bytes }
    }
}

/// Writes the last decimal digits of a number into all of a field.
fn write(field: &mut [u8], mut number: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLASSES: [OfficeClass; 7] = [
        OfficeClass::CommunitySupport,
        OfficeClass::Medical,
        OfficeClass::HealthFacility,
        OfficeClass::VisitingNurse,
        OfficeClass::Designated,
        OfficeClass::CommunityBased,
        OfficeClass::IntegratedFacility,
    ];

    #[test]
    fn parts_stand_where_the_rule_puts_them() {
        // By hand: 131000001 → 2,0,0,0,0,0,2,3,2 → 9 → digit 1.
        let number = OfficeNumber::from_parts(13, OfficeClass::Medical, 0, 1);
        assert_eq!(number.as_str(), "1310000011");
        let number = OfficeNumber::from_parts(13, OfficeClass::IntegratedFacility, 20, 345);
        assert!(number.as_str().starts_with("13B200345"), "{number}");
        // 13101: products 2,0,2,3,2 → 9 → digit 1. 131016 itself is the city of the demo.
        assert_eq!(InsurerNumber::from_parts(13, 101).as_str(), "131011");
        assert_eq!(InsuredNumber::from_last_digits(7).as_str(), "0000000007");
        assert_eq!(InsuredNumber::from_last_digits(12_345_678_901).as_str(), "2345678901");
        assert_eq!(ServiceType::from_last_digits(43).as_str(), "43");
        assert_eq!(Serial::from(NonZeroU128::MIN).to_string(), "01");
    }

    proptest! {
        #[test]
        fn what_is_made_is_what_the_parser_takes(
            (prefecture, district, class) in (any::<u8>(), any::<u8>(), 0..CLASSES.len()),
            (place, number, serial) in (any::<u16>(), any::<u64>(), 1..u128::MAX),
        ) {
            let office = OfficeNumber::from_parts(prefecture, CLASSES[class], district, place);
            prop_assert_eq!(office.as_str().parse::<OfficeNumber>().unwrap(), office);
            prop_assert!(office.check_digit_fits(), "{}", office);
            let insurer = InsurerNumber::from_parts(prefecture, place);
            prop_assert_eq!(insurer.as_str().parse::<InsurerNumber>().unwrap(), insurer);
            let insured = InsuredNumber::from_last_digits(number);
            prop_assert_eq!(insured.as_str().parse::<InsuredNumber>().unwrap(), insured);
            let code = ServiceType::from_last_digits(district);
            prop_assert_eq!(code.as_str().parse::<ServiceType>().unwrap(), code);
            let value = NonZeroU128::new(serial).unwrap();
            let serial = Serial::from_bytes(&serial.to_be_bytes()).unwrap();
            prop_assert_eq!(Serial::from(value), serial);
        }
    }
}
