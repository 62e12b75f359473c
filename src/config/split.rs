//! `split` of a route: a share of the requests for each of several variants.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::selector::Selector;
use tollhouse_filters::values::{Duration, FieldName, Percent, Scalar};
use tollhouse_filters::when::WhenSpec;

use super::Name;

/// A share of the requests for each of several variants: exactly one of `to` and `versions`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// Upstreams and their weights, whose sum need not be 100; 0 gets nothing but what is forced. Example: `{checkout: 90, checkout-v2: 10}`.
    pub to: BTreeMap<Name, u16>,
    /// Versions of the route's service and their weights, for requests that name none. Example: `{"1": 90, "2": 10}`.
    pub versions: BTreeMap<Name, u16>,
    /// What stays with its variant: the same value, the same variant, for as long as weights stay; when a weight is raised, some move to it and none elsewhere. Default: each request is drawn anew. Example: `[consumer, "cookie:uid", ip]`.
    pub sticky_by: Option<Selector>,
    /// Makes the same values fall differently than in other splits. Default: the route's name. Example: `spring`.
    pub salt: Option<String>,
    /// Lets testers choose their variant.
    pub force: Option<Force>,
    /// Moves the weight of one variant to another over a time.
    pub ramp: Option<Ramp>,
}

/// A weight that moves from one variant to another over a time, in steps.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// The variant that gives requests away.
    pub from: Name,
    /// The variant that gets them: beside its weight a growing share of what both have together.
    pub to: Name,
    /// How long it takes. Example: `24h`.
    pub over: Duration,
    /// In how many steps, each as long; the first one begins at once. From 1 to 1000. Default: `10`. Example: `5`.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1000))]
    pub steps: u16,
    /// The share that `to` has at the last step, of what both have together. Default: `100%`. Example: `50%`.
    #[serde(default = "all")]
    pub until: Percent,
    /// When to give it up: then the written weights are back until somebody takes note, through the admin API.
    #[serde(default)]
    pub abort_if: Option<AbortIf>,
}

fn ten() -> u16 {
    10
}

fn all() -> Percent {
    Percent::from_whole(100)
}

/// What ends a ramp: the new variant does worse than the old one. One of `error_ratio` and `p99` is needed.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AbortIf {
    /// More requests of the new variant than of the old one fail (5xx or no answer), by more than this. Default: none. Example: `5%`.
    #[serde(default)]
    pub error_ratio: Option<Percent>,
    /// What 99% of the new variant's requests take at most is more than so many times that of the old one's. Default: none. Example: `1.5x`.
    #[serde(default)]
    pub p99: Option<Times>,
    /// Requests of a variant that have to be seen before it is judged. Default: `100`. Example: `500`.
    #[serde(default = "hundred")]
    pub min_requests: NonZeroU32,
    /// How long requests count. Default: `1m`. Example: `5m`.
    #[serde(default = "minute")]
    pub window: Duration,
}

fn hundred() -> NonZeroU32 {
    NonZeroU32::new(100).expect("a literal over zero")
}

fn minute() -> Duration {
    Duration::from_secs(60)
}

/// A multiple such as `1.5x`, with up to two decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    hundredths: u32,
}

impl Times {
    /// As a number, over 1.
    #[must_use]
    pub fn factor(self) -> f64 {
        f64::from(self.hundredths) / 100.0
    }
}

impl Scalar for Times {
    const EXPECTED: &'static str = "a multiple over `1x` up to `100x`, such as `1.5x`";
    const PATTERN: Option<&'static str> = Some(r"^[0-9]{1,3}(\.[0-9]{1,2})?x$");
    const EXAMPLE: &'static str = "1.5x";

    fn read(text: &str) -> Option<Self> {
        let text = text.strip_suffix('x')?;
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || whole.len() > 3 || decimals.len() > 2 {
            return None;
        }
        let fraction: u32 = format!("{decimals:0<2}").parse().ok()?;
        let hundredths = whole.parse::<u32>().ok()? * 100 + fraction;
        (101..=10_000).contains(&hundredths).then_some(Self { hundredths })
    }
}

tollhouse_filters::scalar!(Times);

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.hundredths / 100, self.hundredths % 100);
        match rest {
            0 => write!(f, "{whole}x"),
            _ if rest % 10 == 0 => write!(f, "{whole}.{}x", rest / 10),
            _ => write!(f, "{whole}.{rest:02}x"),
        }
    }
}

/// Who may choose a variant, and how.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Force {
    /// The field that names the variant. It never reaches an upstream, nor does a client's copy on any other route. Example: `x-tollhouse-variant`.
    pub header: FieldName,
    /// Who may, as for filters. Default: everybody. Example: `{groups: [testers]}`.
    #[serde(default)]
    pub when: WhenSpec,
}
