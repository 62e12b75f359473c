//! Plans: how much a consumer may, as it is sold; the filter `plan_limits` enforces them.
//!
//! ```yaml
//! plans:
//!   gold:
//!     limits:
//!       - {name: burst, limit: 100/s, burst: 200}
//!       - {name: month, quota: 5000000/month, time_zone: Europe/Berlin}
//! ```

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::BuildError;
use crate::limits::Policy;
use crate::selector::{Part, Selector};
use crate::traffic::quota;
use crate::traffic::rate_limit::{self, LimitRule};
use crate::tree::{Path, suggest};
use crate::values::{Duration, Name, Quota, Rate};

/// How much whoever has this plan may.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Plan")]
pub struct PlanSpec {
    /// All of these hold.
    pub limits: Vec<PlanLimitSpec>,
    /// The priority of its consumers' requests instead of the route's, where the gateway has too much to do: `low`,
    /// `normal`, `high` or `critical`.
    #[serde(default)]
    pub priority: Option<Priority>,
}

/// Which requests are refused first while the gateway has too much to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// These first.
    Low,
    /// Then these.
    #[default]
    Normal,
    /// And then these.
    High,
    /// Never.
    Critical,
}

impl Priority {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// One limit of a plan: a rate (`limit`) or a quota.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PlanLimit")]
pub struct PlanLimitSpec {
    /// What clients are told it is called; unique in its plan.
    pub name: Name,
    /// How many requests may come in the long run, as in `rate_limit`.
    #[serde(default)]
    pub limit: Option<Rate>,
    /// How many may come at once; by default as many as `limit` counts.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
    /// How many requests may come in a stretch of the calendar, as in `quota`.
    #[serde(default)]
    pub quota: Option<Quota>,
    /// A time that rolls, such as `30d`, beside a `quota` that is a bare count.
    #[serde(default)]
    pub window: Option<Duration>,
    /// Where the calendar of `quota` is kept, by its IANA name; `UTC` by default.
    #[serde(default)]
    pub time_zone: Option<String>,
}

/// The plans of a document, by name.
#[derive(Default, Clone)]
pub struct Plans {
    by_name: BTreeMap<Arc<str>, Arc<Plan>>,
}

/// One plan, checked.
#[derive(Default)]
pub struct Plan {
    pub(crate) rates: Vec<rate_limit::rule::Rule>,
    /// With what keys of each begin.
    pub(crate) quotas: Vec<(quota::rule::Rule, Vec<u8>)>,
}

impl Plans {
    /// The plan of this name, or that there is none; the error has no path.
    pub fn find(&self, name: &str) -> Result<&Arc<Plan>, BuildError> {
        self.by_name.get(name).ok_or_else(|| {
            let mut error = BuildError::new(format!("no plan is named `{name}`"));
            let near = suggest(name, self.by_name.keys().map(|name| &**name));
            error.hint = near.map(|near| format!("did you mean `{near}`?"));
            error
        })
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    /// The plan of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Plan>> {
        self.by_name.get(name)
    }
}

/// Builds the plans of a document; their problems have paths from its root. A plan with problems is there
/// all the same, so that nobody is told it is not.
#[must_use]
pub fn build(written: &BTreeMap<Name, PlanSpec>) -> (Plans, Vec<BuildError>) {
    let (mut plans, mut errors) = (Plans::default(), Vec::new());
    for (name, spec) in written {
        let path: Path = ["plans", name.as_str()].into_iter().collect();
        let path = path.join("limits");
        check(spec, &path, &mut errors);
        let mut plan = Plan::default();
        for (at, limit) in spec.limits.iter().enumerate() {
            if let Err(error) = plan.add(name, limit, path.join(at)) {
                errors.push(error);
            }
        }
        plans.by_name.insert(name.shared(), Arc::new(plan));
    }
    (plans, errors)
}

impl Plan {
    fn add(&mut self, plan: &Name, written: &PlanLimitSpec, path: Path) -> Result<(), BuildError> {
        // Names are at most 128 letters long, and a plan has a limit of one name once.
        let part = |name: &Name| [&[name.as_str().len() as u8], name.as_str().as_bytes()].concat();
        let prefix = [part(plan), part(&written.name)].concat();
        if let Some(limit) = written.limit {
            let (name, burst) = (Some(written.name.to_string()), written.burst);
            let limit = LimitRule { name, per: who(), limit, burst, cost: NonZeroU32::MIN };
            self.rates.push(rate_limit::rule::rule(limit, prefix, &path)?);
        } else if let Some(quota) = written.quota {
            let rule = quota::rule::Rule::new(&quota::rule::Written {
                path,
                key: "quota",
                name: Some(written.name.as_str()),
                quota,
                window: written.window,
                time_zone: written.time_zone.as_deref(),
                cost: NonZeroU32::MIN,
            })?;
            self.quotas.push((rule, prefix));
        }
        Ok(())
    }

    /// What clients are told of its limits.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.rates.iter().map(|rule| &rule.policy).chain(self.quotas.iter().map(|(rule, _)| &rule.policy))
    }
}

/// Whose requests are counted together: those of a consumer, or of the address of whoever is none.
pub(crate) fn who() -> Selector {
    Selector::First(vec![Selector::Part(Part::Consumer), Selector::Part(Part::Ip)])
}

fn check(spec: &PlanSpec, path: &Path, errors: &mut Vec<BuildError>) {
    let mut refuse = |path: Path, message: String| errors.push(BuildError { path, message, hint: None });
    if spec.limits.is_empty() {
        refuse(path.clone(), "a plan without limits limits nothing: add one".to_owned());
    }
    for (at, limit) in spec.limits.iter().enumerate() {
        let path = path.join(at);
        if spec.limits[..at].iter().any(|other| other.name == limit.name) {
            refuse(path.join("name"), format!("another limit of this plan is called `{}`", limit.name));
        }
        match (limit.limit, limit.quota) {
            (None, None) => refuse(path.clone(), "no limit: add `limit` or `quota`".to_owned()),
            (Some(_), Some(_)) => {
                refuse(path.join("quota"), "is a limit of its own: give it its own `name`".to_owned());
            }
            (Some(_), None) if limit.time_zone.is_some() => {
                refuse(path.join("time_zone"), "belongs to `quota`".to_owned());
            }
            (Some(_), None) if limit.window.is_some() => {
                refuse(path.join("window"), "belongs to `quota`".to_owned());
            }
            (None, Some(_)) if limit.burst.is_some() => {
                refuse(path.join("burst"), "belongs to `limit`".to_owned());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::yaml;

    fn problems(plans: &str) -> Vec<String> {
        let (_, errors) = build(&yaml(plans));
        errors.into_iter().map(|error| format!("{}: {}", error.path, error.message)).collect()
    }

    #[test]
    fn a_plan_that_makes_no_sense_is_refused_at_its_place() {
        for (limits, told) in [
            ("[]", ": a plan without limits limits nothing: add one"),
            ("[{name: a}]", "[0]: no limit: add `limit` or `quota`"),
            (
                "[{name: a, limit: 1/s, quota: 1/day}]",
                "[0].quota: is a limit of its own: give it its own `name`",
            ),
            ("[{name: a, limit: 1/s, time_zone: UTC}]", "[0].time_zone: belongs to `quota`"),
            ("[{name: a, quota: 1/day, burst: 2}]", "[0].burst: belongs to `limit`"),
            (
                "[{name: a, limit: 1/s}, {name: a, quota: 1/day}]",
                "[1].name: another limit of this plan is called `a`",
            ),
        ] {
            assert_eq!(
                problems(&format!("gold: {{limits: {limits}}}")),
                [format!("plans.gold.limits{told}")]
            );
        }
    }

    #[test]
    fn a_plan_that_is_not_there_is_told_with_the_one_that_was_meant() {
        let (plans, errors) = build(&yaml("gold: {limits: [{name: a, limit: 1/s}]}"));
        assert!(errors.is_empty() && plans.find("gold").is_ok());
        let error = plans.find("glod").err().expect("no such plan");
        assert_eq!(error.message, "no plan is named `glod`");
        assert_eq!(error.hint.as_deref(), Some("did you mean `gold`?"));
    }
}
