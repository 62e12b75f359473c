//! `rate_limit`: how often requests may come.
//!
//! ```yaml
//! - rate_limit: {per: ip, limit: 100/s, burst: 200}
//! ```
//!
//! Requests with the same key, such as those of one client, share a budget. It holds `burst` units, and
//! comes back at the rate of `limit`. A request that finds too little left is answered 429 and takes
//! nothing. So in any time `t`, at most `burst + limit * t` of a budget is spent, exactly (GCRA).
//!
//! Several limits are `rules` of one filter: a request has to keep all of them, and one that breaks any
//! takes nothing of the others.
//!
//! ```yaml
//! - rate_limit:
//!     rules:
//!       - {name: burst, per: ip, limit: 20/s}
//!       - {name: hourly, per: [header:x-api-key, ip], limit: 1000/h}
//! ```
//!
//! Budgets belong to the written list item: routes that use it through a chain share them. They survive
//! reloads, changes of their own rates included, and upgrades.
//!
//! With `store`, all gateways that share it share the budgets; requests are counted there, by its clock.
//! While it is away, limits hold as its `on_failure` says.
//!
//! For `per: ip`, all addresses of an IPv6 network of 64 bits are one client. Requests that lack what
//! `per` names share one budget: a limit cannot be passed by leaving a field out. Who may choose his key
//! freely gets a new budget with each, so a field that nothing verifies is no protection on its own.
//!
//! Answers tell what is left, unless `headers: false`: `RateLimit-Policy` lists the limits of all filters
//! on the way, `RateLimit` says where the request stands with the tightest
//! (draft-ietf-httpapi-ratelimit-headers-11). 429 has `Retry-After` (RFC 6585 s4, RFC 9110 s10.2.3).

mod rule;

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use self::rule::Rule;
use crate::context::{Context, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::limits::{self, Standing, seconds};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnResponse, Phases};
use crate::problem::{Problem, RATE_LIMITED};
use crate::selector::Selector;
use crate::values::{Name, Rate};
use crate::world::{Charge, Ledger, Spent};

/// How often requests may come; over it: 429.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whose requests share a budget, such as `ip`; those that lack it share one. For an IPv6 client, `ip`
    /// is its network of 64 bits.
    pub per: Option<Selector>,
    /// How many requests may come in the long run, at most `1000000/s`.
    pub limit: Option<Rate>,
    /// How many may come at once; by default as many as `limit` counts.
    pub burst: Option<NonZeroU32>,
    /// How much of `limit` and `burst` each request takes; 1 by default.
    pub cost: Option<NonZeroU32>,
    /// Several limits, all of which hold, instead of the keys above.
    pub rules: Vec<LimitRule>,
    /// The store that budgets are kept in, for all gateways that share it; by default each counts for itself.
    pub store: Option<Name>,
    /// Whether answers have `RateLimit` and `RateLimit-Policy`; `Retry-After` they have anyway.
    pub headers: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (per, limit, burst, cost, store) = (None, None, None, None, None);
        Self { per, limit, burst, cost, rules: Vec::new(), store, headers: true }
    }
}

/// One of several limits.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitRule {
    /// What clients are told it is called; by default the limit as it is written.
    pub name: Option<String>,
    /// Whose requests share a budget.
    pub per: Selector,
    /// How many requests may come in the long run.
    pub limit: Rate,
    /// How many may come at once; by default as many as `limit` counts.
    pub burst: Option<NonZeroU32>,
    /// How much of `limit` and `burst` each request takes.
    #[serde(default = "one")]
    pub cost: NonZeroU32,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// See the [module](self).
pub struct RateLimit {
    rules: Box<[Rule]>,
    ledger: Ledger,
    headers: bool,
}

impl Filter for RateLimit {
    const NAME: &'static str = "rate_limit";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let headers = options.headers;
        let ledger = build.ledger("store", options.store.as_ref().map(Name::as_str))?;
        let rules = rule::rules(options, build.instance())?;
        for fact in rules.iter().flat_map(Rule::needs) {
            build.needs(fact);
        }
        let filter = Arc::new(Self { rules: rules.into(), ledger, headers });
        let phases = Phases::new().on_request(filter.clone());
        Ok(if headers { phases.on_response(filter) } else { phases })
    }
}

#[async_trait]
impl OnRequest for RateLimit {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let mut keys = Vec::with_capacity(64);
        let mut ends = Vec::with_capacity(self.rules.len());
        for rule in &self.rules {
            rule.write_key(request, ctx, &mut keys);
            ends.push(keys.len());
        }
        let starts = std::iter::once(&0).chain(&ends);
        let parts = starts.zip(&ends).map(|(start, end)| &keys[*start..*end]);
        let mut charges: Vec<Charge<'_>> =
            self.rules.iter().zip(parts).map(|(rule, key)| rule.charge(key)).collect();
        let spent = self.ledger.spend(ctx.tenant, &mut charges).await;
        let spent = spent.map_err(|error| FilterError::Unavailable(error.to_string()))?;
        self.note(&charges, spent, ctx);
        if spent == Spent::No { Ok(self.refusal(&charges, ctx).into()) } else { Ok(Outcome::Continue) }
    }
}

impl RateLimit {
    /// Leaves what was found for the answer, and for who asks why.
    fn note(&self, charges: &[Charge<'_>], spent: Spent, ctx: &mut Context) {
        if spent == Spent::Uncounted {
            return ctx.decide(Verdict::Passed, "the store is away, so nothing is counted", &[]);
        }
        if self.headers {
            let standing = |(rule, charge): (&Rule, &Charge<'_>)| Standing {
                policy: rule.policy.clone(),
                balance: charge.balance,
            };
            ctx.limits.extend(self.rules.iter().zip(charges).map(standing));
        }
        if ctx.keeps_decisions() {
            let verdict = if spent == Spent::Yes { Verdict::Passed } else { Verdict::Changed };
            for (rule, charge) in self.rules.iter().zip(charges) {
                let left = charge.balance.available.to_string();
                let reason = format!("limit `{}` leaves {left}", rule.name);
                ctx.decide(verdict, reason, &[("limit", &rule.name), ("left", &left)]);
            }
        }
    }

    /// 429, with when a request would keep every limit on its way so far.
    fn refusal(&self, charges: &[Charge<'_>], ctx: &Context) -> Problem {
        let own = self.rules.iter().zip(charges).map(|(rule, charge)| (charge.balance.wait, rule));
        let longest = own.max_by_key(|(wait, _)| *wait);
        let others = ctx.limits.iter().map(|standing| standing.balance.wait);
        let wait = others.chain(longest.map(|(wait, _)| wait)).max().unwrap_or_default();
        let mut problem = Problem::new(&RATE_LIMITED);
        if let Some((_, rule)) = longest {
            problem = problem.detail(format!("the limit `{}` is used up", rule.name));
        }
        problem.retry_after = Some(seconds(wait).max(1));
        problem
    }
}

#[async_trait]
impl OnResponse for RateLimit {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        // The first one on the way in is the last one on the way out, and speaks for all.
        let first = ctx.limits.first().is_some_and(|standing| self.rules[0].is_of(&standing.policy));
        if first {
            limits::tell(&std::mem::take(&mut ctx.limits), response)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
