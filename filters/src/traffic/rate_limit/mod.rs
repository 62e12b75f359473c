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
//! With `lease` as well, a gateway takes so many units of a budget at once and spends them without asking. Then of `n`
//! gateways at most `burst + limit * t + n * lease` pass in any time `t`: units that one holds may be spent later than
//! they were taken, for as long as a whole budget takes to come back. Never more passes than was taken.
//!
//! For `per: ip`, all addresses of an IPv6 network of 64 bits are one client. Requests that lack what
//! `per` names share one budget: a limit cannot be passed by leaving a field out. Who may choose his key
//! freely gets a new budget with each, so a field that nothing verifies is no protection on its own.
//!
//! With `over`, requests over the limit wait for their turn instead, in a line of their key, first come first
//! served. Whoever would wait longer than `delay` or than `timeouts.total`, or finds `queue` others waiting, is refused
//! at once. The place of a client that goes away meanwhile is another's.
//!
//! ```yaml
//! - rate_limit: {per: ip, limit: 10/s, over: {delay: 500ms, queue: 20}}
//! ```
//!
//! `strategy: estimate` counts in 512 KiB for each rule, however many keys there are: a count-min sketch for each
//! of two periods (pingora-limits). A key is never counted too low. It is counted too high by more than `0.00034`
//! of all requests of a period with a chance of less than 2 %, so that only a limit that small beside all traffic
//! refuses who kept it. Between periods the last one counts by the share of it that is less than a period ago
//! (a sliding window): in the long run `limit` passes, and at most twice that in any one period. For keeping
//! floods away it is cheap; for what was sold use the exact one.
//!
//! Answers tell what is left, unless `headers: false`: `RateLimit-Policy` lists the limits of all filters
//! on the way, `RateLimit` says where the request stands with the tightest
//! (draft-ietf-httpapi-ratelimit-headers-11). 429 has `Retry-After` (RFC 6585 s4, RFC 9110 s10.2.3).

mod estimate;
mod lease;
mod line;
pub(crate) mod rule;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::estimate::Estimate;
use self::lease::Leases;
use self::line::Lines;
use self::rule::Rule;
use crate::context::{Context, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::limits::{self, Standing};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnResponse, Phases};
use crate::problem::{Problem, RATE_LIMITED};
use crate::selector::Selector;
use crate::values::{Duration, Name, Rate};
use crate::world::{Charge, Ledger, ScopedState, Spent, StateError};

/// The longest that a request may wait.
const LONGEST_DELAY: std::time::Duration = std::time::Duration::from_secs(60);

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
    /// Takes so many units of a budget from the store at once, for requests to come without a round trip each.
    pub lease: Option<NonZeroU32>,
    /// How exactly requests are counted.
    pub strategy: Strategy,
    /// Lets requests over the limit wait for their turn; only with one limit. By default they are refused.
    pub over: Option<Over>,
    /// Whether answers have `RateLimit` and `RateLimit-Policy`; `Retry-After` they have anyway.
    pub headers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            per: None,
            limit: None,
            burst: None,
            cost: None,
            rules: Vec::new(),
            store: None,
            lease: None,
            strategy: Strategy::Exact,
            over: None,
            headers: true,
        }
    }
}

/// How exactly requests are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// To the request, in 16 bytes or so for each key that is in debt.
    #[default]
    Exact,
    /// Never too low and seldom too high, in the same memory for any number of keys; without `burst`.
    Estimate,
}

/// What becomes of requests over the limit.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimitOver")]
pub struct Over {
    /// How long a request may wait, at most `1m`; who would wait longer is refused at once.
    pub delay: Duration,
    /// How many requests with one key may wait.
    pub queue: NonZeroU32,
    /// How many requests may wait in all; 1000 by default.
    #[serde(default = "thousand")]
    pub total: NonZeroU32,
}

fn thousand() -> NonZeroU32 {
    const { NonZeroU32::new(1000).expect("not zero") }
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
    means: Means,
    headers: bool,
}

/// How requests are counted.
enum Means {
    /// Exactly.
    Exact(Ledger),
    /// By units that are taken from a store in advance.
    Leased(Ledger, Arc<Leases>),
    /// Exactly, and those over the limit wait.
    Patient(ScopedState, Lines),
    /// By estimates, one for each rule.
    Estimate(Box<[Arc<Estimate>]>),
}

impl Filter for RateLimit {
    const NAME: &'static str = "rate_limit";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        check(&options)?;
        let (headers, strategy, over) = (options.headers, options.strategy, options.over.clone());
        let lease = options.lease;
        let ledger = build.ledger("store", options.store.as_ref().map(Name::as_str))?;
        let rules = rule::rules(options, build.instance())?;
        rules.iter().for_each(|rule| build.selects(rule.per()));
        if let Some(size) = lease
            && rules.iter().any(|rule| rule.burst() < size.get() || rule.cost() > size.get())
        {
            return Err(BuildError::at("lease", "expected no less than `cost` and no more than `burst`"));
        }
        let means = match (strategy, over) {
            (Strategy::Estimate, _) => {
                let estimate = |rule: &Rule| {
                    let (part, period) = rule.window();
                    build.retained(&part, || Estimate::new(period, build.clock()))
                };
                Means::Estimate(rules.iter().map(estimate).collect())
            }
            (Strategy::Exact, None) => match lease {
                Some(size) => {
                    // What is held outlives a reload, as long as it is of the same limits of the same store.
                    let shapes: Vec<String> = rules.iter().map(Rule::shape).collect();
                    let part = format!("{size} {:?} {shapes:?}", ledger.store_id());
                    let leases = build.retained(part.as_bytes(), || Leases::new(size, build.clock()));
                    Means::Leased(ledger, leases)
                }
                None => Means::Exact(ledger),
            },
            (Strategy::Exact, Some(over)) => {
                let all = build.retained(b"", line::All::default);
                Means::Patient(build.state(), Lines::new(&over, all, build.clock(), build.metrics()))
            }
        };
        let filter = Arc::new(Self { rules: rules.into(), means, headers });
        let phases = Phases::new().on_request(filter.clone());
        Ok(if headers { phases.on_response(filter) } else { phases })
    }
}

/// What the options have to do with each other.
fn check(options: &Options) -> Result<(), BuildError> {
    if options.strategy == Strategy::Estimate {
        let burst = options.burst.is_some() || options.rules.iter().any(|rule| rule.burst.is_some());
        if burst || options.over.is_some() {
            return Err(BuildError::at("strategy", "`estimate` has no `burst`, and nobody waits for it"));
        }
    }
    if options.store.is_some() && (options.strategy == Strategy::Estimate || options.over.is_some()) {
        return Err(BuildError::at(
            "store",
            "is for exact limits without `over`: others are each gateway's own",
        ));
    }
    if options.lease.is_some() && options.store.is_none() {
        return Err(BuildError::at("lease", "is taken from a `store`, which is missing"));
    }
    let Some(over) = &options.over else { return Ok(()) };
    if !options.rules.is_empty() {
        return Err(BuildError::at("over", "is for one limit: make each of the `rules` a filter of its own"));
    }
    if over.delay.get() > LONGEST_DELAY {
        let path = ["over", "delay"].into_iter().collect();
        return Err(BuildError { path, message: "expected at most `1m`".to_owned(), hint: None });
    }
    Ok(())
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
        let spent = self.spend(&mut charges, ctx).await;
        let spent = spent.map_err(|error| FilterError::Unavailable(error.to_string()))?;
        self.note(&charges, spent, ctx);
        if spent == Spent::No { Ok(self.refusal(&charges, ctx).into()) } else { Ok(Outcome::Continue) }
    }
}

impl RateLimit {
    /// Spends all of these charges or none, perhaps later.
    async fn spend(&self, charges: &mut [Charge<'_>], ctx: &mut Context) -> Result<Spent, StateError> {
        let spent = |passes| if passes { Spent::Yes } else { Spent::No };
        match (&self.means, charges) {
            (Means::Patient(state, lines), [charge]) if !ctx.dry_run => {
                // By the machine's clock: that of a dry run moves on with all who waited before.
                let left = ctx.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                let most = left.unwrap_or(LONGEST_DELAY);
                let (passes, waited) = lines.spend(state, ctx.tenant, charge, most).await?;
                ctx.waited += waited;
                Ok(spent(passes))
            }
            (Means::Exact(ledger), charges) => ledger.spend(ctx.tenant, charges).await,
            (Means::Leased(ledger, leases), charges) => leases.spend(ledger, ctx.tenant, charges).await,
            (Means::Patient(state, _), charges) => state.spend(ctx.tenant, charges).await.map(spent),
            (Means::Estimate(estimates), charges) => {
                Ok(spent(estimate::spend(estimates, ctx.tenant, charges)))
            }
        }
    }

    /// Leaves what was found for the answer, and for who asks why.
    fn note(&self, charges: &[Charge<'_>], spent: Spent, ctx: &mut Context) {
        if spent == Spent::Uncounted {
            return ctx.decide(Verdict::Passed, "the store is away, so nothing is counted", &[]);
        }
        if self.headers {
            let standing = |(rule, charge): (&Rule, &Charge<'_>)| Standing {
                policy: rule.policy.clone(),
                balance: charge.balance,
                counts: None,
            };
            ctx.limits.extend(self.rules.iter().zip(charges).map(standing));
        }
        for (rule, charge) in self.rules.iter().zip(charges) {
            limits::explain(&rule.name, charge.balance, spent == Spent::Yes, ctx);
        }
    }

    /// 429, with when a request would keep every limit on its way so far.
    fn refusal(&self, charges: &[Charge<'_>], ctx: &Context) -> Problem {
        let own = self.rules.iter().zip(charges).map(|(rule, charge)| (charge.balance.wait, &*rule.name));
        let (wait, name) = own.max_by_key(|(wait, _)| *wait).unwrap_or_default();
        limits::refusal(&RATE_LIMITED, "limit", name, wait, ctx)
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
        limits::tell_if_first(self.rules.iter().map(|rule| &rule.policy), response, ctx)
    }
}

#[cfg(test)]
mod tests;
