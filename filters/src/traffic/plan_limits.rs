//! `plan_limits`: as much as the plan of the caller says.
//!
//! ```yaml
//! - plan_limits: {default: free}
//! ```
//!
//! The plan is that of the request's consumer. Every limit of it holds, and a request that breaks one takes
//! nothing of the others. What is counted belongs to the consumer and the limit of the plan: it is the same
//! wherever a filter of this kind stands, and a request that passes several of them is counted once. Those under
//! `dry_run` have counts of their own.
//!
//! A consumer without a plan, and who is no consumer, has the plan `default`; the latter is told apart by address
//! (an IPv6 network of 64 bits). Without `default` they are refused: 403.
//!
//! With `store`, all gateways that share it count together, in one round trip a request for all limits of the plan;
//! while it is away it is as its `on_failure` says. Of quotas there, see the filter `quota`.
//!
//! Over a rate of the plan, the answer is 429 `rate-limited`; over a quota it is 429 `quota-exceeded`. Quotas
//! count what was served, as in the filter `quota`. `RateLimit-Policy` lists all limits of the plan, `RateLimit`
//! says where the request stands with the tightest.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::quota::rule::{Reservation, reserve};
use super::quota::{hold, settle};
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Fact, Filter};
use crate::limits::{self, Standing};
use crate::outcome::{FilterError, Outcome, serves};
use crate::phase::{OnRequest, OnResponse, Phases};
use crate::plan::{Plan, Plans, who};
use crate::problem::{FORBIDDEN, Problem, QUOTA_EXCEEDED, RATE_LIMITED};
use crate::selector::Selector;
use crate::values::Name;
use crate::world::{Charge, Clock, Ledger, Spent, StateError};

/// As much as the plan of the caller says; over it: 429.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "PlanLimitsOptions")]
pub struct Options {
    /// The plan of whoever has none; without it they are refused (403).
    pub default: Option<Name>,
    /// The store that is counted in, for all gateways that share it; by default each counts for itself.
    pub store: Option<Name>,
}

/// The plans that a request was counted by so far.
#[derive(Default)]
struct Counted(Vec<Arc<Plan>>);

/// Their place in a context: no instance has it, whose ids are given out from 0, nor what is held of quotas.
fn counted() -> Slot<Counted> {
    Slot::new(u32::MAX - 1)
}

/// Has what goes on beside a request know by which plans that was counted, so that it is not counted again.
pub fn share(ctx: &Context, beside: &mut Context) {
    if let Some(Counted(plans)) = ctx.slot(counted()) {
        beside.set_slot(counted(), Counted(plans.clone()));
    }
}

/// See the [module](self).
pub struct PlanLimits {
    plans: Plans,
    default: Option<Arc<Plan>>,
    per: Selector,
    /// Not of this instance: counts are those of the plans.
    ledger: Ledger,
    /// Those of dry runs, which take nothing of what callers have.
    dry: Ledger,
    clock: Arc<dyn Clock>,
    held: Slot<()>,
}

impl Filter for PlanLimits {
    const NAME: &'static str = "plan_limits";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let plans = build.plans().cloned().unwrap_or_default();
        let found = options.default.as_ref().map(|name| plans.find(name.as_str()).cloned()).transpose();
        let default =
            found.map_err(|error| BuildError { path: ["default"].into_iter().collect(), ..error })?;
        if default.is_none() {
            build.needs(Fact::Consumer);
        }
        let ledger = build.ledger("store", options.store.as_ref().map(Name::as_str))?.of("plans#");
        let dry = ledger.of("plans#dry");
        let (clock, held) = (build.clock(), build.slot());
        let filter = Arc::new(Self { plans, default, per: who(), ledger, dry, clock, held });
        Ok(Phases::new().on_request(filter.clone()).on_response(filter))
    }
}

impl PlanLimits {
    fn plan(&self, ctx: &Context) -> Option<&Arc<Plan>> {
        let own = ctx.consumer.as_ref().and_then(|consumer| consumer.plan.as_deref());
        own.and_then(|name| self.plans.get(name)).or(self.default.as_ref())
    }

    /// Takes of all limits of the plan, or of none; what is held of quotas, or the refusal.
    async fn take(
        &self,
        plan: &Arc<Plan>,
        request: &RequestHeader,
        ctx: &mut Context,
    ) -> Result<Result<Option<Reservation>, Problem>, StateError> {
        let (quota_keys, quota_ends) = self.quota_keys(plan, request, ctx);
        let (mut keys, mut ends) = (Vec::with_capacity(64), vec![0]);
        for rule in &plan.rates {
            rule.write_key(request, ctx, &mut keys);
            ends.push(keys.len());
        }
        let keyed = ends.windows(2).map(|end| &keys[end[0]..end[1]]);
        let mut charges: Vec<Charge<'_>> =
            plan.rates.iter().zip(keyed).map(|(rule, key)| rule.charge(key)).collect();
        let rules = plan.quotas.iter().map(|(rule, _)| rule);
        let place = (if ctx.dry_run { &self.dry } else { &self.ledger }, &*self.clock);
        let reserved = reserve(rules, (quota_keys, &quota_ends), &mut charges, place, ctx).await?;
        if reserved.spent == Spent::Uncounted {
            ctx.decide(Verdict::Passed, "the store is away, so nothing is counted", &[]);
            return Ok(Ok(None));
        }
        // A dry run has counts of its own.
        if !ctx.dry_run {
            ctx.slot_mut(counted()).0.push(plan.clone());
        }
        let passes = reserved.spent == Spent::Yes;
        for (rule, standing) in &reserved.standings {
            limits::explain(&rule.name, standing.balance, passes, ctx);
            ctx.limits.push(standing.clone());
        }
        if let Some((name, wait)) = reserved.short() {
            // The rates were not asked then.
            ctx.limits.extend(plan.rates.iter().map(|rule| Standing::unasked(rule.policy.clone())));
            return Ok(Err(limits::refusal(&QUOTA_EXCEEDED, "quota", name, wait, ctx)));
        }
        for (rule, charge) in plan.rates.iter().zip(&charges) {
            limits::explain(&rule.name, charge.balance, passes, ctx);
            ctx.limits.push(Standing { policy: rule.policy.clone(), balance: charge.balance, counts: None });
        }
        let longest = plan.rates.iter().zip(&charges).max_by_key(|(_, charge)| charge.balance.wait);
        let refusal = longest.filter(|_| !passes).map(|(rule, charge)| {
            limits::refusal(&RATE_LIMITED, "limit", &rule.name, charge.balance.wait, ctx)
        });
        Ok(refusal.map_or(Ok(reserved.held), Err))
    }

    /// The keys of the plan's quotas one after the other, and where each ends.
    fn quota_keys(&self, plan: &Plan, request: &RequestHeader, ctx: &Context) -> (Vec<u8>, Vec<usize>) {
        let (mut keys, mut ends) = (Vec::with_capacity(64), Vec::with_capacity(plan.quotas.len()));
        for (rule, prefix) in &plan.quotas {
            rule.begin_key(&mut keys);
            keys.extend_from_slice(prefix);
            self.per.write_limit_key(request, ctx, &mut keys);
            ends.push(keys.len());
        }
        (keys, ends)
    }
}

#[async_trait]
impl OnRequest for PlanLimits {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let Some(plan) = self.plan(ctx).cloned() else {
            return Ok(Problem::new(&FORBIDDEN).detail("the caller has no plan").into());
        };
        let is_counted = |Counted(plans): &Counted| plans.iter().any(|known| Arc::ptr_eq(known, &plan));
        if ctx.slot(counted()).is_some_and(is_counted) {
            return Ok(Outcome::Continue);
        }
        let taken = self.take(&plan, request, ctx).await;
        match taken.map_err(|error| FilterError::Unavailable(error.to_string()))? {
            Ok(Some(held)) => hold(self.held, held, ctx),
            Ok(None) => {}
            Err(refusal) => return Ok(refusal.into()),
        }
        Ok(Outcome::Continue)
    }
}

#[async_trait]
impl OnResponse for PlanLimits {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if serves(response) {
            settle(ctx);
        }
        // Whose request it is may have been found out since: what is told is by which plans it was counted.
        let Some(Counted(plans)) = ctx.slot(counted()) else { return Ok(()) };
        let plans = plans.clone();
        limits::tell_if_first(plans.iter().flat_map(|plan| plan.policies()), response, ctx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::context::Consumer;
    use crate::testing::{Chain, Request, chain_with, get, refused_with};

    const PLANS: &str = "plans:
  free: {limits: [{name: day, quota: 3/day}]}
  gold: {limits: [{name: burst, limit: 2/s}, {name: month, quota: 5/month}]}
";

    fn plans(filters: &str) -> Chain {
        chain_with(PLANS, filters)
    }

    fn by(name: &str, plan: Option<&str>) -> Request {
        let consumer = Consumer { name: name.into(), groups: Arc::default(), plan: plan.map(Arc::from) };
        get("/").with(|ctx| ctx.consumer = Some(Arc::new(consumer)))
    }

    async fn served(chain: &Chain, request: Request) -> Option<u16> {
        let mut sent = chain.send(request).await;
        if sent.ctx.ended_by.is_some() {
            return Some(sent.responds(429).status());
        }
        sent.attempt(1).await;
        sent.answered(200, &[]).await;
        None
    }

    #[tokio::test]
    async fn every_limit_of_the_plan_holds_and_its_problem_tells_which_kind_it_is() {
        let chain = plans("- plan_limits: {}");
        let acme = || by("acme", Some("gold"));
        for _ in 0..2 {
            assert_eq!(served(&chain, acme()).await, None);
        }
        let sent = chain.send(acme()).await;
        let reason = sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.clone());
        assert_eq!(reason.as_deref(), Some("the limit `burst` is used up"));
        sent.responds(429).header("retry-after", "1").header("ratelimit", "\"burst\";r=0;t=1");
        chain.clock.advance(Duration::from_secs(1));
        for _ in 0..2 {
            assert_eq!(served(&chain, acme()).await, None);
        }
        chain.clock.advance(Duration::from_secs(1));
        assert_eq!(served(&chain, acme()).await, None, "what the rate refused was not taken of the quota");
        let sent = chain.send(acme()).await;
        let reason = sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.clone());
        assert_eq!(reason.as_deref(), Some("the quota `month` is used up"));
        // To the end of January.
        let end = 31 * 86_400 - 2;
        let refused = sent.responds(429).header("retry-after", &end.to_string());
        let refused = refused.header("ratelimit-policy", "\"month\";q=5, \"burst\";q=2;w=1");
        refused.header("ratelimit", &format!("\"month\";r=0;t={end}"));
    }

    #[tokio::test]
    async fn all_limits_are_told_and_the_tightest_alone() {
        let chain = plans("- plan_limits: {}");
        let answer = chain.answer(by("acme", Some("gold")), &[]).await;
        let answer = answer.header("ratelimit-policy", "\"month\";q=5, \"burst\";q=2;w=1");
        answer.header("ratelimit", "\"burst\";r=1;t=1");
    }

    #[tokio::test]
    async fn consumers_do_not_use_up_each_others_plans() {
        let chain = plans("- plan_limits: {}");
        for name in ["acme", "globex"] {
            for _ in 0..3 {
                assert_eq!(served(&chain, by(name, Some("free"))).await, None);
            }
            assert_eq!(served(&chain, by(name, Some("free"))).await, Some(429));
        }
    }

    #[tokio::test]
    async fn who_has_no_plan_has_the_default_and_strangers_by_address() {
        let chain = plans("- plan_limits: {default: free}");
        let from = |address: &str| {
            let address = address.parse().expect("an address");
            get("/").with(|ctx| ctx.client.address = address)
        };
        for _ in 0..3 {
            assert_eq!(served(&chain, by("acme", None)).await, None);
            assert_eq!(served(&chain, from("192.0.2.1")).await, None);
        }
        assert_eq!(served(&chain, by("acme", None)).await, Some(429));
        assert_eq!(served(&chain, from("192.0.2.1")).await, Some(429));
        assert_eq!(served(&chain, from("192.0.2.2")).await, None);
    }

    #[tokio::test]
    async fn without_a_default_nobody_passes_without_a_plan() {
        let chain = plans("- plan_limits: {}");
        chain.send(by("acme", None)).await.responds(403);
        chain.send(get("/")).await.responds(403);
    }

    #[tokio::test]
    async fn a_request_that_passes_two_of_them_is_counted_once_and_so_are_all_routes() {
        let chain = plans("- plan_limits: {}\n- plan_limits: {}\n  name: other");
        for _ in 0..3 {
            assert_eq!(served(&chain, by("acme", Some("free"))).await, None);
        }
        assert_eq!(served(&chain, by("acme", Some("free"))).await, Some(429));
    }

    #[tokio::test]
    async fn a_dry_run_takes_nothing_of_what_callers_have() {
        let chain =
            plans("- plan_limits: {default: free}\n  dry_run: true\n  name: other\n- plan_limits: {}");
        for _ in 0..3 {
            assert_eq!(served(&chain, by("acme", Some("free"))).await, None);
        }
        let sent = chain.send(by("acme", Some("free"))).await;
        let would = sent.ctx.decisions().iter().filter(|noted| noted.verdict == Verdict::WouldAnswer);
        assert_eq!(would.count(), 1, "it counted too");
        sent.responds(429);
    }

    #[tokio::test]
    async fn what_is_refused_later_costs_no_quota() {
        let chain = plans("- plan_limits: {default: free}\n- rate_limit: {per: ip, limit: 1/min}");
        assert_eq!(served(&chain, get("/")).await, None);
        for _ in 0..10 {
            chain.send(get("/")).await.responds(429).header("ratelimit", "\"1/min\";r=0;t=60");
        }
        chain.clock.advance(Duration::from_secs(60));
        assert_eq!(served(&chain, get("/")).await, None);
    }

    #[tokio::test]
    async fn a_call_that_is_refused_later_costs_no_quota_though_its_answer_begins_with_200() {
        let chain = plans("- plan_limits: {default: free}");
        for _ in 0..5 {
            chain.send(get("/")).await.continues().answered(200, &[("grpc-status", "14")]).await;
        }
        for _ in 0..3 {
            chain.send(get("/")).await.continues().answered(200, &[("grpc-status", "0")]).await;
        }
        chain.send(get("/")).await.responds(429);
    }

    #[tokio::test]
    async fn who_is_known_only_later_is_told_of_the_plan_that_counted() {
        let chain = plans("- plan_limits: {default: free}\n- rate_limit: {per: ip, limit: 9/s}");
        let mut sent = chain.send(get("/")).await.continues();
        sent.ctx.consumer = by("acme", Some("gold")).into_parts().1.consumer;
        let answer = sent.answered(200, &[]).await;
        let answer = answer.header("ratelimit-policy", "\"day\";q=3;w=86400, \"9/s\";q=9;w=1");
        answer.header("ratelimit", "\"day\";r=2;t=86400");
    }

    #[tokio::test]
    async fn what_goes_on_beside_a_request_is_not_counted_again() {
        let chain = plans("- plan_limits: {}");
        let acme = || by("acme", Some("gold"));
        for _ in 0..2 {
            let sent = chain.send(acme()).await.continues();
            let mut beside = sent.ctx.fork();
            share(&sent.ctx, &mut beside);
            chain.send(acme().with(|ctx| *ctx = beside)).await.continues();
        }
        chain.send(acme()).await.responds(429).header("ratelimit", "\"burst\";r=0;t=1");
    }

    #[test]
    fn a_default_that_is_no_plan_is_refused() {
        assert_eq!(refused_with(PLANS, "- plan_limits: {default: fre}"), "default: no plan is named `fre`");
    }
}
