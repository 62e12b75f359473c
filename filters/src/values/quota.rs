//! Quotas: so much in a stretch of the calendar (`5000/day`), or a bare count for a window that rolls.

use std::fmt;
use std::num::NonZeroU64;

use super::scalar::{Scalar, number};

/// Most units: what Structured Fields can tell of (RFC 9651 s3.3.1).
const MOST: u64 = 999_999_999_999_999;

/// A stretch of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CalendarPeriod {
    /// Written `day`: from midnight to midnight.
    Day,
    /// Written `week`: from Monday (ISO 8601).
    Week,
    /// Written `month`: from the first.
    Month,
    /// Written `year`: from the first of January.
    Year,
}

impl CalendarPeriod {
    const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::Year];

    /// How it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }
}

/// So many units, at least one, in each stretch of the calendar if one is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    count: NonZeroU64,
    period: Option<CalendarPeriod>,
}

impl Quota {
    /// Units.
    #[must_use]
    pub const fn count(self) -> NonZeroU64 {
        self.count
    }

    /// The stretch of the calendar they are for; none for a bare count.
    #[must_use]
    pub const fn period(self) -> Option<CalendarPeriod> {
        self.period
    }
}

impl Scalar for Quota {
    const EXPECTED: &'static str =
        "a quota above zero such as `5000/day`, `1000000/month`, or a count beside `window`";
    const PATTERN: Option<&'static str> = Some("^0*[1-9][0-9]*(/(day|week|month|year))?$");
    const EXAMPLE: &'static str = "5000/day";
    const INTEGERS: bool = true;

    fn read(text: &str) -> Option<Self> {
        let (count, rest) = number(text)?;
        let count = NonZeroU64::new(count).filter(|count| count.get() <= MOST)?;
        let period = match rest.strip_prefix('/') {
            Some(unit) => Some(CalendarPeriod::ALL.into_iter().find(|period| period.name() == unit)?),
            None if rest.is_empty() => None,
            None => return None,
        };
        Some(Self { count, period })
    }
}

crate::scalar!(Quota);

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.period {
            Some(period) => write!(f, "{}/{}", self.count, period.name()),
            None => write!(f, "{}", self.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_a_count_and_perhaps_a_period_and_read_back() {
        for text in ["5000/day", "7/week", "1000000/month", "1/year", "5000", "999999999999999/day"] {
            let quota: Quota = serde_json::from_value(text.into()).expect(text);
            assert_eq!(serde_json::to_value(quota).expect("text"), text);
        }
        let bare: Quota = serde_json::from_value(5000.into()).expect("a bare count");
        assert_eq!((bare.count().get(), bare.period()), (5000, None));
    }

    #[test]
    fn a_quota_of_nothing_or_of_more_than_can_be_told_cannot_exist() {
        for text in ["0/day", "0", "/day", "1/", "1/h", "1/days", "-1/day", "1000000000000000/day", "1.5/day"]
        {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
    }
}
