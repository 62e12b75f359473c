//! Further attempts while the first one keeps a client waiting, as the user writes them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, Scalar};

/// Most attempts besides the first.
pub const MAX_HEDGES: u8 = 3;

/// Another attempt at another backend, while the one before keeps the client waiting: the first good answer is the answer, and
/// the other attempts are given up. For idempotent requests without a body, or with one that a filter holds as a whole; taken
/// from the budget of retries. What cannot be hedged is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// How long the head of an answer is waited for: a time, or a percentile of what heads took lately, from `p50` to `p99`. Required. Example: `p95`.
    pub after: After,
    /// Attempts besides the first, from 0 to 3, each as long after the one before. Default: `1`. Example: `2`.
    #[serde(default = "one")]
    #[schemars(range(max = 3))]
    pub max: u8,
}

/// When another attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// After this time.
    Time(Duration),
    /// After a time that so many of a hundred answers do not take.
    Percentile(u8),
}

impl Scalar for After {
    const EXPECTED: &'static str = "a time such as `200ms`, or a percentile from `p50` to `p99`";
    const PATTERN: Option<&'static str> = None;
    const EXAMPLE: &'static str = "p95";

    fn read(text: &str) -> Option<Self> {
        match text.strip_prefix('p') {
            Some(of) if of.len() == 2 => {
                of.parse().ok().filter(|of| (50..=99).contains(of)).map(Self::Percentile)
            }
            Some(_) => None,
            None => Duration::read(text).map(Self::Time),
        }
    }
}

tollhouse_filters::scalar!(After);

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => time.fmt(f),
            Self::Percentile(of) => write!(f, "p{of}"),
        }
    }
}

const fn one() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hedge_is_after_a_time_or_a_percentile() {
        for text in ["200ms", "p50", "p95", "p99"] {
            assert_eq!(text.parse::<After>().unwrap().to_string(), text);
        }
        assert_eq!("p95".parse(), Ok(After::Percentile(95)));
        for text in ["", "p", "p5", "p49", "p100", "p9x", "95", "P95", "fast"] {
            assert!(text.parse::<After>().is_err(), "{text}");
        }
    }
}
