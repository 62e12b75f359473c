//! Sizes in bytes with their unit: `512B`, `64KiB`, `10MiB`, `1GiB`, and so many of them a second: `240B/s`.

use std::fmt;
use std::num::NonZeroU64;

use super::scalar::{Scalar, number};

/// Unit names and their bytes, largest first.
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes: a whole number and one unit, `B`, `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size of that many bytes, for defaults.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of that many KiB, for defaults.
    pub const fn from_kib(kib: u32) -> Self {
        Self(kib as u64 * 1024)
    }

    /// A size of that many MiB, for defaults.
    pub const fn from_mib(mib: u32) -> Self {
        Self(mib as u64 * 1024 * 1024)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory; what does not fit is the longest length.
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Scalar for ByteSize {
    const EXPECTED: &'static str = "a size such as `64KiB`, `10MiB` or `1GiB`";
    const PATTERN: Option<&'static str> = Some("^[0-9]+(B|KiB|MiB|GiB)$");
    const EXAMPLE: &'static str = "10MiB";

    fn read(text: &str) -> Option<Self> {
        let (count, unit) = number(text)?;
        let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        count.checked_mul(factor).map(Self)
    }
}

crate::scalar!(ByteSize);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.into_iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        let (unit, factor) = exact.unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// So many bytes a second, at least one: a [`ByteSize`] and `/s`, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRate(Option<NonZeroU64>);

impl ByteRate {
    /// A rate of that many bytes a second, for defaults; 0 is none.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(NonZeroU64::new(bytes))
    }

    /// Bytes a second; `None` when none are asked for.
    pub const fn get(self) -> Option<NonZeroU64> {
        self.0
    }
}

impl Scalar for ByteRate {
    const EXPECTED: &'static str = "bytes a second such as `240B/s` or `1KiB/s`, or `none`";
    const PATTERN: Option<&'static str> = Some("^(none|0*[1-9][0-9]*(B|KiB|MiB|GiB)/s)$");
    const EXAMPLE: &'static str = "240B/s";

    fn read(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self(None));
        }
        let bytes = ByteSize::read(text.strip_suffix("/s")?)?;
        NonZeroU64::new(bytes.get()).map(|bytes| Self(Some(bytes)))
    }
}

crate::scalar!(ByteRate);

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{}/s", ByteSize(bytes.get())),
            None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_carry_their_unit() {
        for (text, bytes) in [("512B", 512), ("64KiB", 65_536), ("10MiB", 10_485_760), ("1GiB", 1 << 30)] {
            let size: ByteSize = serde_json::from_value(text.into()).unwrap();
            assert_eq!(size.get(), bytes);
            assert_eq!(serde_json::to_value(size).unwrap(), text);
        }
    }

    #[test]
    fn bare_numbers_and_decimal_units_are_refused() {
        for text in ["", "0", "1024", "10MB", "10mb", "10 MiB", "-1KiB", "1.5MiB", "99999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<ByteSize>("1024").is_err());
        assert!(serde_json::from_str::<ByteSize>("0").is_err());
    }

    #[test]
    fn a_rate_is_a_size_a_second_or_none() {
        for (text, bytes) in [("240B/s", 240), ("1KiB/s", 1024), ("2MiB/s", 2 << 20), ("none", 0)] {
            let rate: ByteRate = serde_json::from_value(text.into()).unwrap();
            assert_eq!(rate.get(), NonZeroU64::new(bytes));
            assert_eq!(serde_json::to_value(rate).unwrap(), text);
        }
        for text in ["", "0B/s", "240", "240B", "240/s", "240B/min", "240 B/s", "None"] {
            assert!(text.parse::<ByteRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn zero_is_written_with_a_unit() {
        assert_eq!("0MiB".parse::<ByteSize>().unwrap().to_string(), "0B");
    }
}
