//! Hours of the week in Japan, where there is one time and no summer time.

use std::fmt;

use serde::Serialize;

use crate::identity::named;

named! {
    /// A day of the week.
    Day, "a day", {
        /// 日曜日.
        Sunday = "sun",
        /// 月曜日.
        Monday = "mon",
        /// 火曜日.
        Tuesday = "tue",
        /// 水曜日.
        Wednesday = "wed",
        /// 木曜日.
        Thursday = "thu",
        /// 金曜日.
        Friday = "fri",
        /// 土曜日.
        Saturday = "sat",
    }
}

/// From a minute up to (and without) another, on some days of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The days.
    pub days: Vec<Day>,
    /// The first minute of the day that is open.
    pub from: u16,
    /// The first minute of the day that is closed again; 1440 is the day's end.
    pub until: u16,
}

/// A moment of the week in Japan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The day.
    pub day: Day,
    /// The minute of the day.
    pub minute: u16,
}

impl Moment {
    /// The moment of the week at `now` (Unix seconds).
    pub fn at(now: u64) -> Self {
        let local = now.saturating_add(JAPAN_AHEAD_S);
        // 1 January 1970 was a Thursday.
        let day = Day::ALL[((local / DAY_S + 4) % 7) as usize];
        Self { day, minute: ((local % DAY_S) / 60) as u16 }
    }
}

impl Window {
    /// Whether the window is open at a moment.
    pub fn contains(&self, moment: Moment) -> bool {
        self.days.contains(&moment.day) && (self.from..self.until).contains(&moment.minute)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days: Vec<&str> = self.days.iter().map(Day::as_str).collect();
        write!(f, "{} {}-{}", days.join(" "), Clock(self.from), Clock(self.until))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.day, Clock(self.minute))
    }
}

struct Clock(u16);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// `HH:MM` as a minute of the day; 24:00 is the day's end.
pub fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (minutes < 60 && hours * 60 + minutes <= DAY_END).then_some(hours * 60 + minutes)
}

/// `YYYY-MM-DDTHH:MM` in Japan as Unix seconds.
pub fn unix(text: &str) -> Option<u64> {
    let (date, clock) = text.split_once('T')?;
    let mut numbers = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let plausible = (1970..=9999).contains(&year) && (1..=12).contains(&month);
    if date.len() != 10 || !plausible || day < 1 || day > days_in(year, month) {
        return None;
    }
    let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let months: u64 = (1..month).map(|month| days_in(year, month)).sum();
    let days = years + months + day - 1;
    let local = days * DAY_S + u64::from(minute(clock)?) * 60;
    local.checked_sub(JAPAN_AHEAD_S)
}

fn is_leap(year: u64) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Japan is nine hours ahead of UTC, all year.
const JAPAN_AHEAD_S: u64 = 9 * 3600;
const DAY_S: u64 = 24 * 3600;

/// The minute behind the last one of a day.
pub const DAY_END: u16 = 1440;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_open_from_its_first_minute_to_the_one_before_its_end() {
        let weekdays = Day::ALL[1..6].to_vec();
        let window = Window { days: weekdays, from: 480, until: 1140 };
        for (at, open) in [
            ("2026-04-06T07:59", false),
            ("2026-04-06T08:00", true),
            ("2026-04-06T18:59", true),
            ("2026-04-06T19:00", false),
            ("2026-04-11T10:00", false),
            ("2026-04-12T10:00", false),
        ] {
            let moment = Moment::at(unix(at).unwrap());
            assert_eq!(window.contains(moment), open, "{at}: {moment}");
        }
    }

    #[test]
    fn times_are_those_of_japan() {
        // date -u -d '2026-04-05 15:00' +%s
        assert_eq!(unix("2026-04-06T00:00"), Some(1_775_401_200));
        assert_eq!(Moment::at(1_775_401_200).to_string(), "mon 00:00");
        assert_eq!(Moment::at(1_775_401_199).to_string(), "sun 23:59");
        // date -u -d '2028-02-29 03:30' +%s
        assert_eq!(unix("2028-02-29T12:30"), Some(1_835_407_800));
        for wrong in ["2026-02-29T10:00", "2026-13-01T10:00", "2026-04-06 10:00", "x", "1-1-1T1:1"]
        {
            assert_eq!(unix(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_clock_is_four_digits_up_to_midnight() {
        assert_eq!(minute("00:00"), Some(0));
        assert_eq!(minute("24:00"), Some(DAY_END));
        for wrong in ["8:00", "24:01", "10:60", "+1:00", "noon", ""] {
            assert_eq!(minute(wrong), None, "{wrong}");
        }
    }
}
