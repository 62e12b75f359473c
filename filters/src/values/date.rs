//! Moments of the calendar: `2027-01-01`, `2027-01-01T12:30:00Z`.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::scalar::Scalar;

const DAY: u64 = 86_400;

/// A moment in UTC, not before 1970: a date, which begins at 00:00, or a date and a time of RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(u64);

impl Date {
    /// The moment as the standard library's type.
    #[must_use]
    pub fn get(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0)
    }
}

impl Scalar for Date {
    const EXPECTED: &'static str = "a date such as `2027-01-01`, or a time such as `2027-01-01T12:30:00Z`";
    const PATTERN: Option<&'static str> = Some("^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?$");
    const EXAMPLE: &'static str = "2027-01-01";

    fn read(text: &str) -> Option<Self> {
        let (date, time) = match text.strip_suffix('Z') {
            Some(text) => text.split_once('T').map(|(date, time)| (date, Some(time)))?,
            None => (text, None),
        };
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let days = days(year, month, day)?;
        let Some(time) = time else { return Some(Self(days * DAY)) };
        let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
        (hour < 24 && minute < 60 && second < 60)
            .then(|| Self(days * DAY + hour * 3600 + minute * 60 + second))
    }
}

crate::scalar!(Date);

/// Three numbers of so many digits.
fn numbers(text: &str, between: char, lengths: [usize; 3]) -> Option<[u64; 3]> {
    let mut found = [0; 3];
    let mut parts = text.split(between);
    for (number, length) in found.iter_mut().zip(lengths) {
        let part = parts.next()?;
        let is_number = part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit());
        *number = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then_some(found)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the Gregorian calendar; none for a day that does not exist.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let exists = year >= 1970 && (1..=12).contains(&month) && (1..=days_of_month(year, month)).contains(&day);
    let years = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum::<u64>();
    let months = (1..month).map(|month| days_of_month(year, month)).sum::<u64>();
    exists.then(|| years + months + day - 1)
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut left, second) = (self.0 / DAY, self.0 % DAY);
        let (mut year, mut month) = (1970, 1);
        while left >= 365 + u64::from(is_leap(year)) {
            left -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        while left >= days_of_month(year, month) {
            left -= days_of_month(year, month);
            month += 1;
        }
        write!(f, "{year:04}-{month:02}-{:02}", left + 1)?;
        match second {
            0 => Ok(()),
            _ => write!(f, "T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<u64> {
        Date::read(text).map(|date| date.0)
    }

    #[test]
    fn dates_are_midnight_in_utc() {
        assert_eq!(seconds("1970-01-01"), Some(0));
        assert_eq!(seconds("2000-02-29"), Some(951_782_400));
        assert_eq!(seconds("2026-01-01"), Some(1_767_225_600));
        assert_eq!(seconds("2026-01-01T00:00:01Z"), Some(1_767_225_601));
    }

    #[test]
    fn days_that_do_not_exist_are_refused() {
        for text in [
            "2026-02-29",
            "2100-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-04-31",
            "2026-01-00",
            "1969-12-31",
            "2026-1-1",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+01:00",
            "2026-01-01Z",
            "2026-01-01-01",
            "+026-01-01",
            "",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn a_date_is_written_as_it_was_read() {
        for text in ["1970-01-01", "2000-12-31", "2024-02-29", "2027-01-01T12:30:05Z", "9999-12-31"] {
            assert_eq!(Date::read(text).map(|date| date.to_string()).as_deref(), Some(text));
        }
    }
}
