//! Ranges of durations: `25ms..250ms`, or `25ms` alone.

use std::fmt;
use std::time::Duration as Time;

use super::duration::DurationOrZero;
use super::scalar::Scalar;

/// From the shorter one to the longer one; a single one is both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DurationRange {
    first: DurationOrZero,
    last: DurationOrZero,
}

impl DurationRange {
    /// A range of milliseconds, for defaults. The longer one is at least the shorter one.
    pub fn from_millis(first: u32, last: u32) -> Self {
        let millis = |millis: u32| DurationOrZero::from_millis(millis);
        Self { first: millis(first), last: millis(last.max(first)) }
    }

    /// The shorter one.
    pub const fn first(self) -> Time {
        self.first.get()
    }

    /// The longer one.
    pub const fn last(self) -> Time {
        self.last.get()
    }
}

impl Scalar for DurationRange {
    const EXPECTED: &'static str =
        "a duration such as `25ms`, or a range, the shorter one first, such as `25ms..250ms`";
    const PATTERN: Option<&'static str> = Some(r"^[0-9]+(ms|s|m|h|d)(\.\.[0-9]+(ms|s|m|h|d))?$");
    const EXAMPLE: &'static str = "25ms..250ms";

    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let (first, last) = (DurationOrZero::read(first)?, DurationOrZero::read(last)?);
        (first <= last).then_some(Self { first, last })
    }
}

crate::scalar!(DurationRange);

impl fmt::Display for DurationRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}..{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_the_shorter_duration_first_and_reads_back() {
        let range: DurationRange = "25ms..1s".parse().unwrap();
        assert_eq!((range.first().as_millis(), range.last().as_millis()), (25, 1000));
        for text in ["25ms..1s", "0s", "1s"] {
            assert_eq!(text.parse::<DurationRange>().unwrap().to_string(), text);
        }
        assert_eq!("1s..1s".parse::<DurationRange>().unwrap().to_string(), "1s");
        assert_eq!(DurationRange::from_millis(25, 250).to_string(), "25ms..250ms");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "25", "1s..25ms", "25..250ms", "25ms...1s", "25ms..", "..1s", "25ms .. 1s"] {
            assert!(text.parse::<DurationRange>().is_err(), "{text}");
        }
    }
}
