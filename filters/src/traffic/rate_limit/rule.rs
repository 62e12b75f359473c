//! One limit, checked: whose requests it counts, and how.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use pingora_http::RequestHeader;

use super::{LimitRule, Options};
use crate::context::Context;
use crate::filter::BuildError;
use crate::limits::Policy;
use crate::selector::Selector;
use crate::tree::Path;
use crate::values::Rate;
use crate::world::{Budget, Charge};

/// Units a second: intervals are whole nanoseconds, and shorter ones would be off by more than a thousandth.
const FASTEST: u64 = 1_000_000;
const LONGEST_NAME: usize = 128;

/// One limit, checked.
pub(crate) struct Rule {
    /// What it is called in answers and logs.
    pub(crate) name: Box<str>,
    /// What clients are told.
    pub(crate) policy: Arc<Policy>,
    /// What its keys begin with: no two rules of a filter share a budget, and a rule with a name keeps its
    /// own wherever it is moved to.
    prefix: Box<[u8]>,
    per: Selector,
    budget: Budget,
    period: Duration,
    cost: u32,
}

impl Rule {
    /// What its key is made of.
    pub(super) fn per(&self) -> &Selector {
        &self.per
    }

    /// Units of a whole budget.
    pub(super) fn burst(&self) -> u32 {
        self.budget.burst()
    }

    /// Units that each request takes.
    pub(super) fn cost(&self) -> u32 {
        self.cost
    }

    /// Appends the request's key; of requests without one it is always the same.
    pub(crate) fn write_key(&self, request: &RequestHeader, ctx: &Context, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.prefix);
        self.per.write_limit_key(request, ctx, key);
    }

    /// What tells it from the other rules of its filter and other periods, and its period.
    pub(super) fn window(&self) -> (Vec<u8>, Duration) {
        ([&self.prefix, &self.period.as_secs().to_be_bytes()[..]].concat(), self.period)
    }

    /// What tells its budgets from those of any other rule, and what is enough of one: a budget that has too little for
    /// one cost may have enough for another.
    pub(super) fn shape(&self) -> String {
        format!("{:?} {:?} {}", self.prefix, self.budget, self.cost)
    }

    /// What one request takes of the budget of this key.
    pub(crate) fn charge<'a>(&self, key: &'a [u8]) -> Charge<'a> {
        Charge::new(key, self.budget, self.cost)
    }
}

/// The rules of one filter, at least one.
pub(super) fn rules(options: Options, instance: &str) -> Result<Vec<Rule>, BuildError> {
    let Options { per, limit, burst, cost, rules, .. } = options;
    if rules.is_empty() {
        let (Some(per), Some(limit)) = (per, limit) else {
            return Err(BuildError::new("no limit: add `per` and `limit`, or `rules`"));
        };
        // Only the ids of filters without a name have this in them.
        let name = (!instance.contains('#')).then(|| instance.to_owned());
        let written = LimitRule { name, per, limit, burst, cost: cost.unwrap_or(NonZeroU32::MIN) };
        return Ok(vec![rule(written, vec![0, 0], &Path::new())?]);
    }
    let beside = [
        ("per", per.is_some()),
        ("limit", limit.is_some()),
        ("burst", burst.is_some()),
        ("cost", cost.is_some()),
    ];
    if let Some((key, _)) = beside.into_iter().find(|(_, written)| *written) {
        return Err(BuildError::at(key, "belongs into each of the `rules`, where there are any"));
    }
    let mut checked: Vec<Rule> = Vec::with_capacity(rules.len());
    for (at, written) in rules.into_iter().enumerate() {
        let path = Path::new().join("rules").join(at);
        let prefix = prefix(written.name.as_deref(), at);
        let rule = rule(written, prefix, &path)?;
        if checked.iter().any(|other| other.name == rule.name) {
            let message = format!("another rule is called `{}` already: give each a `name`", rule.name);
            return Err(BuildError { path, message, hint: None });
        }
        checked.push(rule);
    }
    Ok(checked)
}

/// The name with its length before it, or none and the place in the list: places from the 256th on have a length of
/// their own.
fn prefix(name: Option<&str>, at: usize) -> Vec<u8> {
    let Some(name) = name else {
        return match u8::try_from(at) {
            Ok(place) if place < u8::MAX => vec![0, place],
            _ => [&[0, u8::MAX], &at.to_be_bytes()[..]].concat(),
        };
    };
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [&[length], name.as_bytes()].concat()
}

/// One limit, whose keys begin with `prefix`, or what is wrong with it.
pub(crate) fn rule(written: LimitRule, prefix: Vec<u8>, path: &Path) -> Result<Rule, BuildError> {
    let LimitRule { name, per, limit, burst, cost } = written;
    let wrong = |key: &str, message: String| BuildError { path: path.join(key), message, hint: None };
    let name = name.unwrap_or_else(|| limit.to_string());
    let tame = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if !(1..=LONGEST_NAME).contains(&name.len()) || !name.chars().all(tame) {
        let expected = "expected a name of 1 to 128 letters, digits, `.`, `_`, `-` or `/`";
        return Err(wrong("name", expected.to_owned()));
    }
    if u64::from(limit.count().get()) > FASTEST * limit.period().duration().as_secs() {
        return Err(wrong("limit", "expected at most `1000000/s`".to_owned()));
    }
    let burst = burst.unwrap_or(limit.count()).get();
    let budget = Budget::new(interval(limit), burst);
    let budget =
        budget.ok_or_else(|| wrong("burst", format!("takes more than a year to come back at {limit}")))?;
    if cost.get() > burst {
        return Err(wrong(
            "cost",
            format!("is more than the {burst} of `burst`: no request would ever pass"),
        ));
    }
    let policy = Arc::new(Policy::new(&name, limit, burst, cost.get()));
    Ok(Rule {
        name: name.into(),
        policy,
        prefix: prefix.into(),
        per,
        budget,
        period: limit.period().duration(),
        cost: cost.get(),
    })
}

/// The time in which one unit comes back, rounded up to nanoseconds: never more than the limit.
fn interval(limit: Rate) -> Duration {
    let period = limit.period().duration().as_nanos();
    let nanos = period.div_ceil(u128::from(limit.count().get()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_has_a_prefix_that_another_one_begins_with() {
        let prefixes: Vec<Vec<u8>> = (0..1000).map(|at| prefix(None, at)).collect();
        for (at, one) in prefixes.iter().enumerate() {
            assert!(
                prefixes[..at].iter().all(|other| !one.starts_with(other) && !other.starts_with(one)),
                "{at}"
            );
        }
        assert_eq!((prefix(None, 7), prefix(Some("ab"), 7)), (vec![0, 7], vec![2, b'a', b'b']));
    }
}
