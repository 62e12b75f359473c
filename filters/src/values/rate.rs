//! Rates (`100/s`, `60/min`, `1000/h`) and percentages (`20%`).

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use super::scalar::{Scalar, number};

/// The time a [`Rate`] counts over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    /// Written `s`.
    Second,
    /// Written `min`.
    Minute,
    /// Written `h`.
    Hour,
}

impl Period {
    const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    /// How it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "h",
        }
    }

    /// How long it is.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
        })
    }
}

/// So many events in a period, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    count: NonZeroU32,
    period: Period,
}

impl Rate {
    /// A rate, for defaults.
    pub const fn new(count: NonZeroU32, period: Period) -> Self {
        Self { count, period }
    }

    /// Events in one period.
    pub const fn count(self) -> NonZeroU32 {
        self.count
    }

    /// The period counted over.
    pub const fn period(self) -> Period {
        self.period
    }
}

impl Scalar for Rate {
    const EXPECTED: &'static str = "a rate above zero such as `100/s`, `60/min` or `1000/h`";
    const PATTERN: Option<&'static str> = Some("^0*[1-9][0-9]*/(s|min|h)$");
    const EXAMPLE: &'static str = "100/s";

    fn read(text: &str) -> Option<Self> {
        let (count, rest) = number(text)?;
        let unit = rest.strip_prefix('/')?;
        let period = Period::ALL.into_iter().find(|period| period.name() == unit)?;
        let count = NonZeroU32::new(u32::try_from(count).ok()?)?;
        Some(Self { count, period })
    }
}

crate::scalar!(Rate);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.period.name())
    }
}

/// A share from `0%` to `100%`, with up to two decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent {
    /// Hundredths of a percent, at most 10,000.
    hundredths: u16,
}

impl Percent {
    /// A whole percentage, for defaults. More than 100 becomes 100.
    pub const fn from_whole(percent: u8) -> Self {
        Self { hundredths: if percent > 100 { 10_000 } else { percent as u16 * 100 } }
    }

    /// The share from 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.hundredths) / 10_000.0
    }

    /// Hundredths of a percent, from 0 to 10,000.
    pub const fn hundredths(self) -> u16 {
        self.hundredths
    }
}

impl Scalar for Percent {
    const EXPECTED: &'static str = "a percentage from `0%` to `100%` such as `20%` or `0.5%`";
    const PATTERN: Option<&'static str> = Some(r"^[0-9]{1,3}(\.[0-9]{1,2})?%$");
    const EXAMPLE: &'static str = "20%";

    fn read(text: &str) -> Option<Self> {
        let text = text.strip_suffix('%')?;
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let (whole, "") = number(whole)? else { return None };
        let (fraction, "") = number(decimals)? else { return None };
        let scale = match decimals.len() {
            1 => 10,
            2 => 1,
            _ => return None,
        };
        let hundredths = whole.checked_mul(100)?.checked_add(fraction * scale)?;
        let hundredths = u16::try_from(hundredths).ok().filter(|value| *value <= 10_000)?;
        Some(Self { hundredths })
    }
}

crate::scalar!(Percent);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.hundredths / 100, self.hundredths % 100);
        match rest {
            0 => write!(f, "{whole}%"),
            _ if rest % 10 == 0 => write!(f, "{whole}.{}%", rest / 10),
            _ => write!(f, "{whole}.{rest:02}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_a_count_and_a_period_and_read_back() {
        for (text, count, seconds) in [("100/s", 100, 1), ("60/min", 60, 60), ("1000/h", 1000, 3_600)] {
            let rate: Rate = serde_json::from_value(text.into()).unwrap();
            assert_eq!((rate.count().get(), rate.period().duration().as_secs()), (count, seconds));
            assert_eq!(serde_json::to_value(rate).unwrap(), text);
        }
    }

    #[test]
    fn a_rate_of_zero_cannot_exist() {
        for text in ["0/s", "00/min", "/s", "1/", "1", "1/d", "-1/s", "1/sec", "4294967296/s", "1.5/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_go_from_nothing_to_all_and_read_back() {
        for (text, hundredths) in
            [("0%", 0), ("20%", 2_000), ("0.5%", 50), ("0.05%", 5), ("99.99%", 9_999), ("100%", 10_000)]
        {
            let percent: Percent = serde_json::from_value(text.into()).unwrap();
            assert_eq!(percent.hundredths(), hundredths);
            assert_eq!(serde_json::to_value(percent).unwrap(), text);
        }
    }

    #[test]
    fn percentages_outside_the_range_or_without_the_sign_are_refused() {
        for text in ["20", "%", "101%", "100.01%", "-1%", "1.%", ".5%", "0.001%", "1e1%", "9999999999999%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }
}
