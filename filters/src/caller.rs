//! Conditions on who calls: consumers, groups, claims, addresses.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::condition::ValueMatch;
use crate::context::{Consumer, Context, Principal};
use crate::filter::Fact;
use crate::values::{IpSet, Name};

/// Conditions on who calls; all that are there must hold. What is not known of a caller holds for nothing.
#[derive(Debug, Clone, Default)]
pub struct CallerConditions {
    /// The consumer has one of these names.
    pub consumers: Option<Vec<String>>,
    /// The consumer is in one of these groups.
    pub groups: Option<Vec<String>>,
    /// The consumer has one of these plans.
    pub plans: Option<Vec<Name>>,
    /// Each of these claims is as wanted.
    pub claims: BTreeMap<String, ValueMatch>,
    /// The client's address is in one of these ranges.
    pub clients: Option<IpSet>,
}

impl CallerConditions {
    /// The first condition that does not hold, by the name of its key.
    #[must_use]
    pub fn unmet(&self, ctx: &Context) -> Option<Cow<'_, str>> {
        let consumer = ctx.consumer.as_deref();
        if self.clients.as_ref().is_some_and(|set| !ctx.client.is_in(set)) {
            return Some("clients".into());
        }
        if self.consumers.as_ref().is_some_and(|names| !consumer.is_some_and(|one| is_named(one, names))) {
            return Some("consumers".into());
        }
        if self.groups.as_ref().is_some_and(|groups| !consumer.is_some_and(|one| is_member(one, groups))) {
            return Some("groups".into());
        }
        if self.plans.as_ref().is_some_and(|plans| !consumer.is_some_and(|one| has_plan(one, plans))) {
            return Some("plans".into());
        }
        let principal = ctx.principal.as_deref();
        let unmet = self.claims.iter().find(|(name, wanted)| !has_claim(principal, name, wanted));
        unmet.map(|(name, _)| format!("claims.{name}").into())
    }

    /// The facts that must be established before these conditions can be told.
    #[must_use]
    pub fn needs(&self) -> Option<Fact> {
        let asks = self.consumers.is_some() || self.groups.is_some() || self.plans.is_some();
        (asks || !self.claims.is_empty()).then_some(Fact::Consumer)
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.needs().is_none() && self.clients.is_none()
    }
}

fn is_named(consumer: &Consumer, names: &[String]) -> bool {
    names.iter().any(|name| **name == *consumer.name)
}

fn is_member(consumer: &Consumer, groups: &[String]) -> bool {
    groups.iter().any(|group| consumer.groups.iter().any(|own| **own == **group))
}

fn has_plan(consumer: &Consumer, plans: &[Name]) -> bool {
    consumer.plan.as_deref().is_some_and(|own| plans.iter().any(|plan| plan.as_str() == own))
}

/// Any entry of a list will do. A list of nothing has no values, and a caller without claims has no claim,
/// so that what is wanted absent is; null is absent too. An object is there, as `act` of RFC 8693 s4.1.
fn has_claim(principal: Option<&Principal>, name: &str, wanted: &ValueMatch) -> bool {
    let values = match principal.and_then(|principal| principal.claims.get(name)) {
        Some(Value::Array(entries)) => entries.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    wanted.matches_some(values.iter().filter(|value| !value.is_null()).map(text))
}

/// A value as text; none for what holds further values.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string().into()),
        _ => None,
    }
}

/// What the caller's token is good for: the words of `scope` (RFC 8693 s4.2), and `scp` in either form, as some
/// issuers write it.
pub fn scopes(principal: Option<&Principal>) -> impl Iterator<Item = &str> {
    let claims = principal
        .into_iter()
        .flat_map(|principal| ["scope", "scp"].into_iter().filter_map(|name| principal.claims.get(name)));
    claims.flat_map(|claim| match claim {
        Value::String(words) => words.split(' ').collect::<Vec<_>>(),
        Value::Array(words) => words.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    })
}
