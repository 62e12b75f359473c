//! HTTP status codes and ranges of them: `204`, `200-299`.

use std::fmt;

use super::scalar::{Scalar, number};

/// One status code or an inclusive range of them, within 100 to 599 (RFC 9110 section 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    /// Whether the range holds this code.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }

    /// How many codes it holds, but one.
    pub fn width(self) -> u16 {
        self.last - self.first
    }

    /// Whether both hold some codes, and each holds some that the other does not.
    pub fn crosses(self, other: Self) -> bool {
        let (low, high) = if self.first <= other.first { (self, other) } else { (other, self) };
        low.first < high.first && high.first <= low.last && low.last < high.last
    }
}

impl Scalar for StatusRange {
    const EXPECTED: &'static str = "a status such as `204` or a range such as `200-299`";
    const PATTERN: Option<&'static str> = Some("^[1-5][0-9]{2}(-[1-5][0-9]{2})?$");
    const EXAMPLE: &'static str = "200-299";
    const INTEGERS: bool = true;

    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (code(first)?, code(last)?);
        (first <= last).then_some(Self { first, last })
    }
}

crate::scalar!(StatusRange);

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

fn code(text: &str) -> Option<u16> {
    let (code, "") = number(text)? else { return None };
    u16::try_from(code).ok().filter(|code| text.len() == 3 && (100..=599).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_both_ends() {
        let range: StatusRange = "200-299".parse().unwrap();
        assert!(range.contains(200) && range.contains(299));
        assert!(!range.contains(199) && !range.contains(300));
        assert_eq!(range.to_string(), "200-299");
    }

    #[test]
    fn ranges_cross_where_neither_is_within_the_other() {
        let crosses = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<StatusRange>().unwrap());
            assert_eq!(one.crosses(other), other.crosses(one), "{one} {other}");
            one.crosses(other)
        };
        for (one, other) in [("400-450", "404-499"), ("400-404", "404-405")] {
            assert!(crosses(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("404", "404"),
            ("404", "400-499"),
            ("400", "400-499"),
            ("499", "400-499"),
            ("400-499", "500-599"),
            ("400-450", "400-499"),
        ] {
            assert!(!crosses(one, other), "{one} {other}");
        }
    }

    #[test]
    fn a_single_status_may_be_a_bare_number() {
        let range: StatusRange = serde_json::from_str("204").unwrap();
        assert!(range.contains(204) && !range.contains(205));
        assert_eq!(range.to_string(), "204");
    }

    #[test]
    fn reversed_open_and_impossible_ranges_are_refused() {
        for text in ["", "299-200", "200-", "-299", "99", "600", "0200", "2xx", "200-299-300", "200 - 299"] {
            assert!(text.parse::<StatusRange>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<StatusRange>("99999").is_err());
        assert!(serde_json::from_str::<StatusRange>("-204").is_err());
    }
}
