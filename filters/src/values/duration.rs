//! Durations with their unit: `250ms`, `30s`, `5m`, `2h`, `7d`.

use std::fmt;
use std::time::Duration as Time;

use super::scalar::{Scalar, number};

/// Longest duration a document may ask for, ten years: far below where adding to a clock overflows.
const LONGEST_MS: u64 = 3_650 * 86_400_000;

/// Unit names and their milliseconds, longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A duration above zero: a whole number and one unit, `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(Time);

/// A duration that may be zero, written `0s`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurationOrZero(Time);

/// A time limit, or `none` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timeout(Option<Duration>);

impl Duration {
    /// A duration of whole seconds, for defaults. Zero becomes one second.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(Time::from_secs(if seconds == 0 { 1 } else { seconds as u64 }))
    }

    /// A duration of milliseconds, for defaults. Zero becomes one millisecond.
    pub const fn from_millis(millis: u32) -> Self {
        Self(Time::from_millis(if millis == 0 { 1 } else { millis as u64 }))
    }

    /// The duration as the standard library's type, never zero.
    pub const fn get(self) -> Time {
        self.0
    }
}

impl DurationOrZero {
    /// A duration of whole seconds, for defaults.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(Time::from_secs(seconds as u64))
    }

    /// A duration of milliseconds, for defaults.
    pub const fn from_millis(millis: u32) -> Self {
        Self(Time::from_millis(millis as u64))
    }

    /// The duration as the standard library's type.
    pub const fn get(self) -> Time {
        self.0
    }
}

impl Timeout {
    /// No limit.
    pub const NONE: Self = Self(None);

    /// A limit.
    pub const fn after(duration: Duration) -> Self {
        Self(Some(duration))
    }

    /// The limit, if there is one.
    pub const fn get(self) -> Option<Time> {
        match self.0 {
            Some(duration) => Some(duration.get()),
            None => None,
        }
    }
}

impl From<Duration> for Time {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl Scalar for Duration {
    const EXPECTED: &'static str = "a duration such as `250ms`, `30s` or `2h`";
    const PATTERN: Option<&'static str> = Some("^0*[1-9][0-9]*(ms|s|m|h|d)$");
    const FORMAT: Option<&'static str> = Some("duration");
    const EXAMPLE: &'static str = "30s";

    fn read(text: &str) -> Option<Self> {
        read(text).filter(|time| !time.is_zero()).map(Self)
    }
}

impl Scalar for DurationOrZero {
    const EXPECTED: &'static str = "a duration such as `250ms`, `30s` or `0s`";
    const PATTERN: Option<&'static str> = Some("^[0-9]+(ms|s|m|h|d)$");
    const FORMAT: Option<&'static str> = Some("duration");
    const EXAMPLE: &'static str = "30s";

    fn read(text: &str) -> Option<Self> {
        read(text).map(Self)
    }
}

impl Scalar for Timeout {
    const EXPECTED: &'static str = "a duration such as `250ms` or `30s`, or `none`";
    const PATTERN: Option<&'static str> = Some("^(none|0*[1-9][0-9]*(ms|s|m|h|d))$");
    const FORMAT: Option<&'static str> = Some("duration");
    const EXAMPLE: &'static str = "30s";

    fn read(text: &str) -> Option<Self> {
        if text == "none" { Some(Self::NONE) } else { Duration::read(text).map(Self::after) }
    }
}

crate::scalar!(Duration);
crate::scalar!(DurationOrZero);
crate::scalar!(Timeout);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0)
    }
}

impl fmt::Display for DurationOrZero {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0)
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(duration) => duration.fmt(f),
            None => f.write_str("none"),
        }
    }
}

fn read(text: &str) -> Option<Time> {
    let (count, unit) = number(text)?;
    let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let millis = count.checked_mul(factor).filter(|millis| *millis <= LONGEST_MS)?;
    Some(Time::from_millis(millis))
}

/// Writes the longest unit that divides the duration.
fn write(f: &mut fmt::Formatter<'_>, time: Time) -> fmt::Result {
    let millis = u64::try_from(time.as_millis()).unwrap_or(LONGEST_MS);
    if millis == 0 {
        return f.write_str("0s");
    }
    let (unit, factor) = UNITS.into_iter().find(|(_, factor)| millis % factor == 0).unwrap_or(("ms", 1));
    write!(f, "{}{unit}", millis / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_whole_number_and_a_unit() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse::<Duration>().unwrap().get().as_millis(), millis, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "30", "s", "0s", "0ms", "-1s", "+1s", "1.5s", "1 s", " 1s", "1h30m", "1S", "1us", "٣s"]
        {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_beyond_ten_years_is_refused_and_does_not_overflow() {
        assert!("3650d".parse::<Duration>().is_ok());
        for text in ["3651d", "18446744073709551615d", "99999999999999999999ms"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_written_in_the_longest_exact_unit() {
        for (text, canonical) in [("60s", "1m"), ("1500ms", "1500ms"), ("24h", "1d"), ("90m", "90m")] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn the_message_says_what_is_expected_and_does_not_quote_the_text() {
        let error = serde_json::from_str::<Duration>("\"hunter2\"").unwrap_err().to_string();
        assert!(error.starts_with("expected a duration such as `250ms`, `30s` or `2h`"), "{error}");
        let error = serde_json::from_str::<Duration>("31337").unwrap_err().to_string();
        assert!(error.starts_with("expected a duration"), "{error}");
        assert!(!error.contains("31337"), "{error}");
    }

    #[test]
    fn a_timeout_may_be_none_and_reads_back_what_it_writes() {
        for text in ["none", "2s", "250ms"] {
            let timeout: Timeout = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(timeout).unwrap(), text);
        }
        assert_eq!("none".parse::<Timeout>().unwrap().get(), None);
        assert!("0s".parse::<Timeout>().is_err());
    }

    #[test]
    fn only_the_type_that_says_so_takes_zero() {
        let zero: DurationOrZero = "0ms".parse().unwrap();
        assert!(zero.get().is_zero());
        assert_eq!(zero.to_string(), "0s");
    }

    #[test]
    fn the_schema_has_the_pattern_and_the_format() {
        let schema = serde_json::to_value(schemars::schema_for!(Duration)).unwrap();
        assert_eq!(schema["format"], "duration");
        let pattern = regex::Regex::new(schema["pattern"].as_str().unwrap()).unwrap();
        assert!(pattern.is_match("30s") && !pattern.is_match("0s") && !pattern.is_match("30"));
    }
}
