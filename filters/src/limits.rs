//! What clients are told about limits: the fields `RateLimit-Policy` and `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers-11), which are Structured Fields (RFC 9651).

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pingora_http::ResponseHeader;

use crate::context::{Context, Verdict};
use crate::outcome::FilterError;
use crate::problem::{Kind, Problem};
use crate::values::Rate;
use crate::world::Balance;

/// A limit as clients are told of it.
#[derive(Debug)]
pub struct Policy {
    /// Its name, as a String of Structured Fields.
    name: String,
    /// Its item of `RateLimit-Policy`.
    item: String,
    /// Units that one request takes.
    cost: u32,
}

/// Where a request stands with one limit, once it was counted.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The limit.
    pub policy: Arc<Policy>,
    /// What is left, without what the request took.
    pub balance: Balance,
    /// Whether what it took counts by now, of what is given back if it never does.
    pub counts: Option<Arc<AtomicBool>>,
}

impl Policy {
    /// A rate of this name. `q` and `w` are the rate as it is written. What else belongs to the limit has the
    /// prefix that the draft asks of parameters of one's own (s3.1).
    #[must_use]
    pub fn new(name: &str, rate: Rate, burst: u32, cost: u32) -> Self {
        let seconds = rate.period().duration().as_secs();
        let burst = (burst != rate.count().get()).then_some(burst);
        Self::of(name, rate.count().get().into(), Some(seconds), burst, cost)
    }

    /// A quota of this name, of so many units in a window of so many seconds. Months and years are of no one
    /// length, and have no `w`.
    #[must_use]
    pub fn of_quota(name: &str, units: u64, seconds: Option<u64>, cost: u32) -> Self {
        Self::of(name, units, seconds, None, cost)
    }

    /// Letters that a String cannot hold are left out (RFC 9651 s3.3.3).
    fn of(name: &str, units: u64, seconds: Option<u64>, burst: Option<u32>, cost: u32) -> Self {
        let printable = name.chars().filter(|c| matches!(c, ' '..='~'));
        let escaped: String =
            printable.flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c])).collect();
        let name = format!("\"{escaped}\"");
        let mut item = format!("{name};q={units}");
        let parameters = [
            ("w", seconds),
            ("tollhouse-burst", burst.map(u64::from)),
            ("tollhouse-cost", Some(u64::from(cost)).filter(|cost| *cost != 1)),
        ];
        for (parameter, value) in parameters {
            item.extend(value.map(|value| format!(";{parameter}={value}")));
        }
        Self { name, item, cost }
    }
}

impl Standing {
    /// One that nobody asked, as another limit refused the request already: it is told of, and never the tightest.
    pub(crate) fn unasked(policy: Arc<Policy>) -> Self {
        let balance = Balance { available: u64::MAX, ..Balance::default() };
        Self { policy, balance, counts: None }
    }

    /// What is left once what does not count is given back.
    fn left(&self) -> Balance {
        let is_given_back = self.counts.as_ref().is_some_and(|counts| !counts.load(Ordering::Relaxed));
        let mut left = self.balance;
        if is_given_back {
            left.available = left.available.saturating_add(self.policy.cost.into());
            left.wait = Duration::ZERO;
        }
        left
    }

    /// Fewer requests before longer waits.
    fn looseness(&self) -> (u64, Reverse<Duration>) {
        let Balance { available, more_in, .. } = self.left();
        (available / u64::from(self.policy.cost.max(1)), Reverse(more_in))
    }
}

/// Adds all policies to `RateLimit-Policy`, and where the request stands with the tightest to `RateLimit`;
/// what the origin says of limits of its own stays beside them (s7.2).
///
/// `t` is when there is more than `r`, so `Retry-After` never ends before it (s6).
pub fn tell(standings: &[Standing], response: &mut ResponseHeader) -> Result<(), FilterError> {
    let Some(tightest) = standings.iter().min_by_key(|standing| standing.looseness()) else { return Ok(()) };
    let items: Vec<&str> = standings.iter().map(|standing| &*standing.policy.item).collect();
    response.append_header("RateLimit-Policy", items.join(", "))?;
    let Balance { available, more_in, .. } = tightest.left();
    let limit = format!("{};r={available};t={}", tightest.policy.name, seconds(more_in));
    response.append_header("RateLimit", limit)?;
    Ok(())
}

/// Has the answer tell all limits, if the first of them is one of these: the first filter on the way in is the
/// last one on the way out, and speaks for all.
pub(crate) fn tell_if_first<'a>(
    mut own: impl Iterator<Item = &'a Arc<Policy>>,
    response: &mut ResponseHeader,
    ctx: &mut Context,
) -> Result<(), FilterError> {
    let Some(first) = ctx.limits.first() else { return Ok(()) };
    if own.any(|policy| Arc::ptr_eq(policy, &first.policy)) {
        tell(&std::mem::take(&mut ctx.limits), response)?;
    }
    Ok(())
}

/// Notes where the request stands with a limit, for who asks why.
pub(crate) fn explain(name: &str, balance: Balance, passes: bool, ctx: &mut Context) {
    if ctx.keeps_decisions() {
        let verdict = if passes { Verdict::Passed } else { Verdict::Changed };
        let left = balance.available.to_string();
        ctx.decide(verdict, format!("limit `{name}` leaves {left}"), &[("limit", name), ("left", &left)]);
    }
}

/// A refusal by the limit of this name, with when a request would keep that and every limit on its way so far.
pub(crate) fn refusal(kind: &'static Kind, what: &str, name: &str, wait: Duration, ctx: &Context) -> Problem {
    let wait = ctx.limits.iter().map(|standing| standing.left().wait).fold(wait, Duration::max);
    let mut problem = Problem::new(kind).detail(format!("the {what} `{name}` is used up"));
    problem.retry_after = Some(seconds(wait).max(1));
    problem
}

/// Whole seconds, rounded up: who comes after them does not come too early.
#[must_use]
pub fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, rate: &str, burst: u32, cost: u32) -> String {
        Policy::new(name, rate.parse().expect("a rate"), burst, cost).item
    }

    #[test]
    fn a_policy_is_an_item_of_the_draft_with_parameters_of_our_own_behind() {
        assert_eq!(item("default", "100/s", 100, 1), "\"default\";q=100;w=1");
        assert_eq!(
            item("hourly", "1000/h", 50, 5),
            "\"hourly\";q=1000;w=3600;tollhouse-burst=50;tollhouse-cost=5"
        );
    }

    #[test]
    fn names_are_strings_of_structured_fields() {
        assert!(item("a\"b\\c", "1/s", 1, 1).starts_with(r#""a\"b\\c";"#));
        assert!(item("é\r\nx", "1/s", 1, 1).starts_with("\"x\";"));
    }

    #[test]
    fn seconds_are_rounded_up() {
        let times = [0, 1, 999_999_999, 1_000_000_000, 1_000_000_001].map(Duration::from_nanos);
        assert_eq!(times.map(seconds), [0, 1, 1, 1, 2]);
    }
}
