//! `quota`: how much may be used in a day, a month, or another long time.
//!
//! ```yaml
//! - quota: {per: consumer, limit: 5000/day, time_zone: Europe/Berlin}
//! ```
//!
//! Requests with the same key share the quota of each `day`, `week` (from Monday), `month` or `year` of the
//! calendar of `time_zone`. Over it, a request is answered 429 with another problem than that of a rate,
//! `quota-exceeded`, and `Retry-After` says when the next stretch begins.
//!
//! A `window` rolls instead: in any time of that length at most `limit` is used. It is counted in 60 parts, and
//! what was used comes back at most one part (of 30 days, 12 hours) later than it could, never earlier.
//!
//! ```yaml
//! - quota: {per: consumer, limit: 100000, window: 30d}
//! ```
//!
//! What counts is what was served: a request that was sent to a backend, or answered below 400. Units of others
//! are given back: of those that a later filter refuses, that find no backend, or that fail by a fault of the
//! gateway. A client that goes away once the request was sent has used its units.
//!
//! With `store`, all gateways that share it share the quota, which is counted there and nowhere else, in one round trip
//! a request. In which day or part of a window a request falls is told by each gateway's own clock. While the store is
//! away it is as its `on_failure` says; what a gateway counts by itself meanwhile is not added to the shared count
//! later, so that up to the whole quota more may be used for each gateway. Units that should be given back while it is
//! away stay used.
//!
//! Counts belong to the written list item, are kept over reloads and upgrades, and, by the file of
//! `server.quotas`, over restarts. They are written to that file in the background; requests never wait for it.
//! For `per: ip`, all addresses of an IPv6 network of 64 bits are one client, and requests that lack what `per`
//! names share one quota, as with `rate_limit`.

pub(crate) mod calendar;
pub(crate) mod rule;

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use self::rule::{Reservation, Rule, Written};
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::limits;
use crate::outcome::{FilterError, Outcome, serves};
use crate::phase::{OnRequest, OnResponse, Phases};
use crate::problem::QUOTA_EXCEEDED;
use crate::selector::Selector;
use crate::tree::Path;
use crate::values::{Duration, Name, Quota as Amount};
use crate::world::{Clock, Ledger, Spent};

/// How much may be used in a long time; over it: 429.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "QuotaOptions")]
pub struct Options {
    /// Whose requests share a quota, such as `consumer`; those that lack it share one. For an IPv6 client, `ip`
    /// is its network of 64 bits.
    pub per: Selector,
    /// How much may be used, such as `5000/day` or `1000000/month`; a bare count with `window`.
    pub limit: Amount,
    /// A time that rolls, such as `30d`, instead of a stretch of the calendar.
    #[serde(default)]
    pub window: Option<Duration>,
    /// Where the calendar is kept, by its IANA name such as `Europe/Berlin`; `UTC` by default.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// How much each request uses; 1 by default.
    #[serde(default = "one")]
    pub cost: NonZeroU32,
    /// The store that is counted in, for all gateways that share it; by default each counts for itself.
    #[serde(default)]
    pub store: Option<Name>,
    /// Whether answers have `RateLimit` and `RateLimit-Policy`; `Retry-After` they have anyway.
    #[serde(default = "yes")]
    pub headers: bool,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn yes() -> bool {
    true
}

/// See the [module](self).
pub struct Quota {
    per: Selector,
    rule: Rule,
    headers: bool,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    held: Slot<()>,
}

impl Filter for Quota {
    const NAME: &'static str = "quota";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        build.selects(&options.per);
        let ledger = build.ledger("store", options.store.as_ref().map(Name::as_str))?;
        let name = build.instance().clone();
        let rule = Rule::new(&Written {
            path: Path::new(),
            key: "limit",
            // Only the ids of filters without a name are no names.
            name: Name::is_valid(&name).then_some(&*name),
            quota: options.limit,
            window: options.window,
            time_zone: options.time_zone.as_deref(),
            cost: options.cost,
        })?;
        let filter = Arc::new(Self {
            per: options.per,
            rule,
            headers: options.headers,
            ledger,
            clock: build.clock(),
            held: build.slot(),
        });
        Ok(Phases::new().on_request(filter.clone()).on_response(filter))
    }
}

#[async_trait]
impl OnRequest for Quota {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let mut key = Vec::with_capacity(64);
        self.rule.begin_key(&mut key);
        self.per.write_limit_key(request, ctx, &mut key);
        let ends = [key.len()];
        let place = (&self.ledger, &*self.clock);
        let reserved = rule::reserve([&self.rule], (key, &ends), &mut [], place, ctx).await;
        let reserved = reserved.map_err(|error| FilterError::Unavailable(error.to_string()))?;
        if reserved.spent == Spent::Uncounted {
            ctx.decide(Verdict::Passed, "the store is away, so nothing is counted", &[]);
            return Ok(Outcome::Continue);
        }
        let passes = reserved.spent == Spent::Yes;
        let refused = reserved.short().map(|(name, wait)| (name.to_owned(), wait));
        for (rule, standing) in reserved.standings {
            limits::explain(&rule.name, standing.balance, passes, ctx);
            ctx.limits.extend(self.headers.then_some(standing));
        }
        if let Some((name, wait)) = refused {
            return Ok(limits::refusal(&QUOTA_EXCEEDED, "quota", &name, wait, ctx).into());
        }
        if let Some(held) = reserved.held {
            hold(self.held, held, ctx);
        }
        Ok(Outcome::Continue)
    }
}

/// What a request holds of quotas and plans, each with the slot of the instance that reserved it.
#[derive(Default)]
struct Held(Vec<(u32, Arc<Reservation>)>);

/// The place of all of them in a context: no instance has it, whose ids are given out from 0.
fn place() -> Slot<Held> {
    Slot::new(u32::MAX)
}

/// Has the request hold what an instance reserved, instead of what that reserved before.
pub(crate) fn hold(instance: Slot<()>, reservation: Reservation, ctx: &mut Context) {
    if ctx.dry_run {
        // A dry run is not seen again, and is to count as if it were none.
        return reservation.settle();
    }
    let Held(held) = ctx.slot_mut(place());
    held.retain(|(id, _)| *id != instance.id);
    held.push((instance.id, Arc::new(reservation)));
}

/// What the request holds counts: it was served, or is sent. Of the latter only who sends it knows: a filter behind
/// this one may still fail.
pub fn settle(ctx: &Context) {
    for (_, reservation) in ctx.slot(place()).into_iter().flat_map(|held| &held.0) {
        reservation.settle();
    }
}

/// Has what goes on beside a request hold what the request holds. It counts once one of them settles it, and is given
/// back when both are over and none has.
pub fn share(ctx: &Context, beside: &mut Context) {
    if let Some(Held(held)) = ctx.slot(place()) {
        beside.set_slot(place(), Held(held.clone()));
    }
}

#[async_trait]
impl OnResponse for Quota {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if serves(response) {
            settle(ctx);
        }
        limits::tell_if_first(std::iter::once(&self.rule.policy), response, ctx)
    }
}

#[cfg(test)]
mod tests;
